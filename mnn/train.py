"""Trains an autoencoder of speech, an expert on some mixtures (docs/papers.md), or a ranker.

::

    python -m mnn.train dae --out dae.h5                                # bundled corpus, minutes
    python -m mnn.train dae --net 2048x2 --timit TIMIT --noise NOISES --out dae.h5
    python -m mnn.train expert --noise-types birds --out birds.h5
    python -m mnn.train expert --net 2048x2 --gender F --out female.h5
    python -m mnn.train expert --net lstm --noise-types birds --optimizer adam --out lstm.h5
    python -m mnn.train expert --snr -5 --where speaker=MCS0,FCS0 --out two.h5
    python -m mnn.train expert --init birds.pruned.h5 --noise-types birds --out birds22.h5
    python -m mnn.train ranker --out ranker.h5             # see mnn.ranker

Spectra are computed once and kept; training runs on them. The same command goes on with an
interrupted run where it stood, and does nothing once it is done.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mnn import conditions
from mnn.conditions import description, parse_conditions
from mnn.config import (
    EXPERT_SNRS_DB,
    NETS,
    OPTIMIZERS,
    SCHEDULES,
    FitConfig,
    RankerConfig,
    TrainConfig,
)
from mnn.dae import build_dae
from mnn.expert_files import check_frames
from mnn.experts import build_expert
from mnn.features import (
    Conventions,
    Frames,
    Pieces,
    conventions_of,
    fingerprint,
    mask_frames,
    speech_frames,
)
from mnn.layers import load_network
from mnn.noises import NOISES
from mnn.ranking import train_ranker
from speech.base import cli, lazy
from speech.base.cli import natural_number, positive_number
from speech.base.device import select_devices
from speech.base.lazy import keras
from speech.data import corpus
from speech.data.corpus import Pair, render
from speech.modelfile.read import read_model_file
from speech.net.keras_models import build_model, variables_of
from speech.net.timefrequency import SIZES
from speech.sound.audio import read_audio
from speech.training.common_options import add_data_options, check_data_options, data_options

if TYPE_CHECKING:
    from mnn import training as network_training
    from speech.net import constraints
else:
    constraints = lazy.module("speech.net.constraints")
    network_training = lazy.module("mnn.training")

_logger = logging.getLogger("speech")

#: Speakers, and utterances of each: sections 4.1 and 4.2. Of the bundled corpus, all.
PAPER_SPEAKERS = {"dae": (40, 10), "expert": (12, 5)}


@dataclass(frozen=True)
class _Parts:
    """What trains and what validates: utterances, mixture plans or pairs."""

    training: Sequence[Any]
    validation: Sequence[Any]


@dataclass(frozen=True)
class TrainResult:
    """What `train` did.

    Attributes:
        out: The model file.
        was_done: Whether this very training had been done before.
        validation_error: The smallest, of the weights that were kept: a frame.
        best_iteration: Where it was met.
        iterations_done: Of how many iterations.
        seconds: What training took; 0 if it was done.
    """

    out: Path
    was_done: bool
    validation_error: float
    best_iteration: int
    iterations_done: int
    seconds: float = 0.0


def train(config: TrainConfig, say: Callable[[str], None] | None = None) -> TrainResult:
    """Trains an autoencoder or an expert, unless this very training is done.

    Args:
        config: What to train, on what, and how.
        say: Gets lines that say what is being done.

    Raises:
        ValueError: Data, device or files are not as they should be.
        OSError: A file can't be read or written.
    """
    say = say or (lambda line: None)
    parts = _find_data(config, say)
    say(
        f"data        {config.data.name}: {len(parts.training)} to train on, "
        f"{len(parts.validation)} to validate"
    )
    select_devices(config.gpu)
    is_expert = config.what == "expert"
    kind = _KINDS[config.what]
    model, conventions, start = _network(config, kind, say)
    lines = [description(items) for items in (parts.training, parts.validation)]
    data_sha256 = fingerprint(
        f"{name} {line}"
        for name, part in zip(("train", "validate"), lines, strict=True)
        for line in part
    )
    meta = {
        "kind": kind,
        **conventions.to_json(),
        **start,
        "created_by": "python -m mnn.train",
        "training": {
            "conditions": {key: list(words) for key, words in config.conditions.items()},
            "snrs_db": list(config.data.snrs_db) if is_expert else None,
            "draws": config.num_draws if is_expert else None,
            "items": [len(parts.training), len(parts.validation)],
            "data_sha256": data_sha256,
        },
    }
    done = network_training.finished(
        config.out, network_training.fingerprint_of(config.fit, meta, data_sha256)
    )
    if done is not None:
        found = (done[key] for key in ("validation_error", "best_iteration", "iterations_done"))
        return TrainResult(config.out, True, *found)
    training, validation = _examples(config, parts, conventions, len(model.input_shape) > 2)
    counts = [len(own) * own.frames_each for own in (training, validation)]
    say(
        f"frames      {counts[0]:,} to train on, {counts[1]:,} to validate; "
        f"{model.count_params():,} parameters"
    )
    trainer = network_training.FrameTrainer(
        model, training, validation, config.fit, config.out, meta=meta, data_sha256=data_sha256,
    )  # fmt: skip
    state = trainer.run(_saying(config.fit, say))
    best = state.best_row
    assert best is not None, "the last iteration is validated"
    return TrainResult(
        config.out, False, best["validation_error"], int(best["iteration"]), state.iteration,
        state.seconds,
    )  # fmt: skip


def _saying(fit: FitConfig, say: Callable[[str], None]) -> Callable[[dict[str, float]], None]:
    """Returns what says about twenty lines of the history, and the last."""
    every = max(fit.iterations // 20, fit.validate_every)

    def report(row: dict[str, float]) -> None:
        if row["iteration"] % every < fit.validate_every or row["iteration"] == fit.iterations:
            say(
                f"iteration {row['iteration']:5d}/{fit.iterations}  training "
                f"{row['training_error']:.4f}  validation {row['validation_error']:.4f}  "
                f"{row['seconds']:.1f} s"
            )

    return report


#: The ``kind`` of what is trained, in its ``speech_meta``.
_KINDS = {"dae": "autoencoder", "expert": "mask"}


def _network(
    config: TrainConfig, kind: str, say: Callable[[str], None]
) -> tuple[keras.Model, Conventions, dict[str, Any]]:
    """Returns a network, what it takes, and how it started, for the meta of its file."""
    if config.init is None:
        net = config.net or NETS[config.what][0]
        build = build_expert if config.what == "expert" else build_dae
        model, conventions = build(net, seed=config.fit.seed)
        return model, conventions, {"net": net}
    if kind == "mask":
        file = read_model_file(config.init)
        conventions = conventions_of(file.meta, kind, config.init)
        check_frames(file, conventions)
    else:
        file, conventions, _ = load_network(config.init, kind)
    model = build_model(file.layers)
    num_zeros = 0
    for layer in file.layers:
        for key, kernel in layer.kernels.items():
            if not kernel.all():
                mask, held = kernel != 0, variables_of(model.get_layer(layer.name))[key]
                held.constraint = constraints.HeldZeros(mask)
                num_zeros += mask.size - int(mask.sum())
    say(f"init        {config.init}; {num_zeros:,} weights are zero and stay so")
    kept = {key: file.meta[key] for key in ("net", "pruning") if key in file.meta}
    return model, conventions, kept | {"init_sha256": file.sha256}


def _examples(
    config: TrainConfig, parts: _Parts, conventions: Conventions, are_pieces: bool
) -> tuple[network_training.Examples, network_training.Examples]:
    """Returns what trains and what validates."""
    training = _frames(parts.training, config, conventions, "training spectra")
    validation = _frames(parts.validation, config, conventions, "validation spectra")
    if are_pieces:
        return Pieces.of(training), Pieces.of(validation)
    return training, validation


def _find_data(config: TrainConfig, say: Callable[[str], None]) -> _Parts:
    """Finds utterances for an autoencoder, mixture plans or premixed pairs for an expert."""
    is_clean, given, seed = config.what != "expert", config.data, config.fit.seed
    if given.noisy is not None and given.clean is not None:
        pairs, left_out = corpus.training_pairs(
            given.noisy, given.clean, given.pair_by, keep_low_snr=given.keep_low_snr
        )
        if left_out:
            say(f"left out    {left_out}")
        pairs = conditions.matching(pairs, config.conditions)
        if is_clean:
            pairs = list({pair.clean_path: pair for pair in pairs}.values())
        return _Parts(*corpus.split_utterances(pairs, conditions.VALIDATION_FRACTION, seed))
    utterances = (
        corpus.bundled_speech("TRAIN")
        if given.is_bundled
        else corpus.find_speech_trees(given.speech, "TRAIN", given.skip_sa)
    )
    speakers, each = (None, None) if given.is_bundled else PAPER_SPEAKERS[config.what]
    parts = conditions.choose_speakers(
        conditions.matching(utterances, config.conditions),
        config.num_speakers or speakers,
        config.per_speaker or each,
        seed,
    )
    if is_clean:
        return _Parts(*parts)
    noises = (
        corpus.bundled_noise("TRAIN")
        if given.noise is None
        else corpus.find_noise(given.noise, "TRAIN")
    )
    return _Parts(
        *(
            conditions.plan_expert(
                part, noises, given.snrs_db, config.conditions,
                num_draws=config.num_draws, seed=seed,
            )
            for part in parts
        )
    )  # fmt: skip


def _frames(
    items: Sequence[Any], config: TrainConfig, conventions: Conventions, label: str
) -> Frames:
    shown, folder = cli.progress(items, total=len(items), label=label), config.out.parent
    if config.what == "dae":
        return speech_frames(_read_speech(shown), conventions, folder=folder)
    return mask_frames(_read_mixtures(shown), conventions, folder=folder)


def _read_speech(items: Any) -> Iterator[np.ndarray]:
    for item in items:
        path = item.clean_path if isinstance(item, Pair) else item.path
        with _Skipping():
            yield read_audio(path).samples


def _read_mixtures(items: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for item in items:
        with _Skipping():
            if isinstance(item, Pair):
                noisy, clean = (read_audio(p).samples for p in (item.noisy_path, item.clean_path))
                if len(noisy) != len(clean):
                    raise ValueError(
                        f"{item.noisy_path}: {len(noisy)} samples, its clean file {len(clean)}"
                    )
                yield noisy, clean
            else:
                mixture = render(item)
                yield mixture.noisy, mixture.clean


class _Skipping:
    """Announces an utterance that can't be read or mixed, and goes on without it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> bool:
        if isinstance(error, ValueError):
            _logger.warning("skipped in training: %s", cli.one_line(error))
            return True
        return False


# --------------------------------------------------------------------------------------------
# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.what == "ranker":
        ranker = _ranker_config(parser, options)
        cli.log_to_stderr()
        return cli.run(lambda: _run_ranker(ranker))
    config = _config(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(config))


def _run_ranker(config: RankerConfig) -> int:
    print(f"written     {train_ranker(config, cli.say)}")
    return 0


def _ranker_config(parser: argparse.ArgumentParser, options: argparse.Namespace) -> RankerConfig:
    """Returns what the options say; exits with code 2 if they make no sense."""
    try:
        return RankerConfig(
            options.out, tuple(options.timit or ()), options.size, options.hours, options.noises,
            tuple(options.kinds), options.jobs, options.seed, options.gpu,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))


def _run(config: TrainConfig) -> int:
    for line in lines_of(train(config, lambda line: print(line, flush=True))):
        print(line)
    return 0


def lines_of(result: TrainResult) -> list[str]:
    """Returns what the command says of a training."""
    best = (
        f"best        validation error {result.validation_error:.4f} a frame in iteration "
        f"{result.best_iteration} of {result.iterations_done}"
    )
    if result.was_done:
        return [f"done        {result.out} is this very run's (delete it to train anew)", best]
    return [best, f"time        {result.seconds:.1f} s", f"written     {result.out}"]


def _config(parser: argparse.ArgumentParser, options: argparse.Namespace) -> TrainConfig:
    """Returns what the options say; exits with code 2 if they make no sense."""
    if options.snr_range:
        parser.error("--snr-range draws anew each time; mixtures are fixed here: give --snr")
    snrs_db = options.snr or EXPERT_SNRS_DB
    check_data_options(parser, options)
    is_expert = options.what == "expert"
    try:
        conditions = parse_conditions(options.where)
        if options.gender:
            conditions["gender"] = [options.gender]
        if is_expert and options.noise_types:
            conditions["noise"] = options.noise_types
        return TrainConfig(
            what=options.what,
            out=options.out,
            net=options.net,
            init=options.init,
            fit=FitConfig(
                options.iterations, options.batch_size, options.optimizer, options.learning_rate,
                options.schedule, options.validate_every, options.patience, options.seed,
            ),
            data=replace(data_options(options), snrs_db=tuple(snrs_db)),
            conditions=conditions,
            num_speakers=options.num_speakers,
            per_speaker=options.per_speaker,
            num_draws=options.draws if is_expert else 1,
            gpu=options.gpu,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mnn.train",
        description="Train an autoencoder of clean speech (dae), an expert that gives a soft mask, "
        "or a ranker, which says how far estimates are from the speech. Without data options it "
        "takes the bundled corpus. The same command goes on after "
        "an interruption.",
        **cli.examples(
            "python -m mnn.train dae -o dae.h5",
            "python -m mnn.train expert --noise-types birds -o birds.h5",
            "python -m mnn.train expert --snr 0 --timit TIMIT --noise noises -o low.h5",
            "python -m mnn.train ranker -o ranker.h5",
        ),
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="dae|expert|ranker")
    for what, text in (
        ("dae", "an autoencoder of clean speech"),
        ("expert", "a mask network"),
        ("ranker", "a judge of estimates, from clean speech alone"),
    ):
        command = commands.add_parser(what, help=f"train {text}", description=f"Train {text}.")
        add = command.add_argument
        add("-o", "--out", type=Path, required=True, metavar="FILE.h5",
            help="write this model file")  # fmt: skip
        add("--gpu", **cli.GPU)
        if what == "ranker":
            _add_ranker_options(command)
            continue
        add("--net", choices=NETS[what],
            help=f"take this network (default {NETS[what][0]})")  # fmt: skip
        add("--init", type=Path, metavar="FILE",
            help="start from the weights of this model, such as a pruned one; its zeros "
            "stay")  # fmt: skip
        _add_training_options(command)
        _add_choices(command, what)
        add_data_options(command, test=False)
    return parser


def _add_ranker_options(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, RankerConfig(Path("ranker.h5"))
    add("--speech", "--timit", type=Path, nargs="+", metavar="DIR", dest="timit",
        help="read speech from TIMIT, or from any trees (default: the bundled "
        "corpus)")  # fmt: skip
    add("--size", choices=tuple(SIZES), default=default.size,
        help="train this form of tf (default %(default)s)")  # fmt: skip
    add("--hours", type=cli.amount, default=default.hours, metavar="H",
        help="end after H hours of clock time, over all calls of the command (default "
        "%(default)s)")  # fmt: skip
    add("--noises", type=positive_number, default=default.num_noises, metavar="N",
        help="make N noises of 10 s of the speech, 0.3 MB each (default %(default)s)")  # fmt: skip
    add("--kinds", nargs="+", choices=[kind.__name__ for kind in NOISES], default=(),
        help="make noises of these kinds (default: all)")  # fmt: skip
    add("--seed", **cli.SEED)
    add("--jobs", **cli.JOBS)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    fit = FitConfig()
    add = parser.add_argument_group("training", "The defaults are the paper's values.").add_argument
    add("--optimizer", choices=OPTIMIZERS, default=fit.optimizer,
        help="train with this optimizer (default %(default)s)")  # fmt: skip
    add("--learning-rate", type=float, default=fit.learning_rate, metavar="R",
        help="set the learning rate, or Rprop's first step (default %(default)s)")  # fmt: skip
    add("--schedule", choices=SCHEDULES, default=fit.schedule,
        help="let the learning rate follow this: stay as it is, or fall to 0 along a "
        "cosine (default %(default)s)")  # fmt: skip
    add("--iterations", type=positive_number, default=fit.iterations, metavar="N",
        help="update the weights N times at most (default %(default)s)")  # fmt: skip
    add("--batch-size", type=positive_number, default=fit.batch_size, metavar="N",
        help="take N frames per update (default %(default)s)")  # fmt: skip
    add("--validate-every", type=positive_number, default=fit.validate_every, metavar="N",
        help="validate every N iterations and keep the best weights (default "
        "%(default)s)")  # fmt: skip
    add("--patience", type=natural_number, default=fit.patience, metavar="N",
        help="end after N iterations without a better validation; 0 means never (default "
        "%(default)s)")  # fmt: skip
    add("--seed", **cli.SEED)


def _add_choices(parser: argparse.ArgumentParser, what: str) -> None:
    speakers, each = PAPER_SPEAKERS[what]
    add = parser.add_argument_group("which data").add_argument
    add("--gender", choices=("F", "M"), help="take speakers of one gender")
    add("--where", nargs="+", default=[], metavar="COLUMN=PATTERN",
        help="take only mixtures that match, such as speaker=F* or utterance=*SX*")  # fmt: skip
    add("--num-speakers", type=positive_number, metavar="N",
        help=f"take N speakers, genders in turn (default {speakers}, bundled: all)")  # fmt: skip
    add("--per-speaker", type=positive_number, metavar="N",
        help=f"take N utterances of each speaker (default {each}, bundled: all)")  # fmt: skip
    if what == "expert":
        add("--noise-types", nargs="+", metavar="NAME",
            help="take noises of these names, or patterns such as 'birds*' (default: all); the SNR "
            "is "
            "0 dB unless --snr is given")  # fmt: skip
        add("--num-mixtures", type=positive_number, default=1, metavar="N", dest="draws",
            help="make N mixtures of each utterance, noise and SNR (default 1)")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
