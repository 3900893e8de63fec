"""Trains an autoencoder of speech, or an expert on some kind of mixtures (docs/papers.md).

::

    python -m mnn.train dae --out dae.h5                                # bundled corpus, minutes
    python -m mnn.train dae --net 2048x2 --timit TIMIT --noise NOISES --out dae.h5
    python -m mnn.train expert --noise-types birds --out birds.h5
    python -m mnn.train expert --net 2048x2 --gender F --out female.h5
    python -m mnn.train expert --snr -5 --where speaker=MCS0,FCS0 --out two.h5
    python -m mnn.train expert --init birds.pruned.h5 --noise-types birds --out birds22.h5

Spectra are computed once and kept; training runs on them. The same command goes on with an
interrupted run where it stood, and does nothing once it is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.base import cli
from speech.base.cli import natural_number, positive_number
from speech.training.common_options import add_data_options, check_data_options, is_bundled

if TYPE_CHECKING:
    import numpy as np

#: The paper's nets, the one that is trained by default first.
NETS = {"dae": ("128", "2048x2"), "expert": ("512x2", "2048x2")}

#: Speakers, and utterances of each: sections 4.1 and 4.2. Of the bundled corpus, all.
PAPER_SPEAKERS = {"dae": (40, 10), "expert": (12, 5)}

#: Experts are made at this SNR unless --snr says otherwise (section 4.2).
EXPERT_SNRS_DB = [0.0]


@dataclass(frozen=True)
class _Parts:
    """What trains and what validates: utterances, mixture plans or pairs."""

    training: Sequence[Any]
    validation: Sequence[Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse(argv)
    cli.log_to_stderr()
    return cli.run(lambda: run(options))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the checked options of the command; exits with code 2 if they make no sense."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check_usage(parser, options)
    return options


def run(options: argparse.Namespace) -> int:
    """Trains, or says that it is done; returns 0.

    Args:
        options: Of `parse`.

    Raises:
        ValueError: Data, device or files are not as they should be.
        OSError: A file can't be read or written.
    """
    from mnn.data import description
    from mnn.features import fingerprint
    from speech.base.device import select_devices

    parts = _find_data(options)
    print(
        f"data        {_source(options)}: {len(parts.training)} to train on, "
        f"{len(parts.validation)} to validate"
    )
    select_devices(options.gpu)
    from mnn.training import FitConfig, FrameTrainer, fingerprint_of, finished

    config = FitConfig(
        options.iterations, options.batch_size, options.optimizer, options.learning_rate,
        options.validate_every, options.patience, options.seed,
    )  # fmt: skip
    kind = "mask" if options.what == "expert" else "autoencoder"
    model, conventions, start = _network(options, kind)
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
            "conditions": options.conditions,
            "snrs_db": options.snr if options.what == "expert" else None,
            "draws": options.draws if options.what == "expert" else None,
            "items": [len(parts.training), len(parts.validation)],
            "data_sha256": data_sha256,
        },
    }
    done = finished(options.out, fingerprint_of(config, meta, data_sha256))
    if done is not None:
        print(f"done        {options.out} is this very run's (delete it to train anew)")
        _report(done)
        return 0
    training = _frames(parts.training, options, conventions, "training spectra")
    validation = _frames(parts.validation, options, conventions, "validation spectra")
    print(
        f"frames      {len(training):,} to train on, {len(validation):,} to validate; "
        f"{model.count_params():,} parameters",
        flush=True,
    )
    trainer = FrameTrainer(
        model, training, validation, config, options.out, meta=meta, data_sha256=data_sha256
    )
    state = trainer.run(_print_row(config))
    best = state.best_row
    assert best is not None, "the last iteration is validated"
    _report({**best, "best_iteration": best["iteration"], "iterations_done": state.iteration})
    print(f"time        {state.seconds:.1f} s\nwritten     {options.out}")
    return 0


def _print_row(config: Any) -> Any:
    """Returns what prints about twenty lines of the history, and the last."""
    every = max(config.iterations // 20, config.validate_every)

    def report(row: dict[str, float]) -> None:
        if row["iteration"] % every < config.validate_every or row["iteration"] == (
            config.iterations
        ):
            print(
                f"iteration {row['iteration']:5d}/{config.iterations}  training "
                f"{row['training_error']:.4f}  validation {row['validation_error']:.4f}  "
                f"{row['seconds']:.1f} s",
                flush=True,
            )

    return report


def _report(training: dict[str, Any]) -> None:
    print(
        f"best        validation error {training['validation_error']:.4f} a frame in iteration "
        f"{training['best_iteration']} of {training['iterations_done']}"
    )


def _network(options: argparse.Namespace, kind: str) -> tuple[Any, Any, dict[str, Any]]:
    """Returns a network, what it takes, and how it started, for the meta of its file."""
    if options.init is None:
        from mnn.dae import build_dae
        from mnn.experts import build_expert

        net = options.net or NETS[options.what][0]
        build = build_expert if options.what == "expert" else build_dae
        return *build(net, seed=options.seed), {"net": net}
    from mnn.layers import load_network
    from speech.net.constraints import HeldZeros
    from speech.net.keras_models import build_model

    file, conventions, _ = load_network(options.init, kind)
    model = build_model(file.layers)
    num_zeros = 0
    for layer in file.layers:
        if layer.class_name == "Dense" and not layer.weights["kernel"].all():
            mask = layer.weights["kernel"] != 0
            model.get_layer(layer.name).kernel.constraint = HeldZeros(mask)
            num_zeros += mask.size - int(mask.sum())
    print(f"init        {options.init}; {num_zeros:,} weights are zero and stay so")
    kept = {key: file.meta[key] for key in ("net", "pruning") if key in file.meta}
    return model, conventions, kept | {"init_sha256": file.sha256}


def _source(options: argparse.Namespace) -> str:
    if is_bundled(options):
        return "bundled corpus"
    return ", ".join(map(str, options.timit or [options.train_noisy]))


def _find_data(options: argparse.Namespace) -> _Parts:
    """Finds utterances for an autoencoder, mixture plans or premixed pairs for an expert."""
    from mnn import data
    from speech.data import corpus

    is_dae = options.what == "dae"
    if options.train_noisy is not None:
        pairs, left_out = corpus.training_pairs(
            options.train_noisy,
            options.train_clean,
            options.pair_by,
            keep_low_snr=bool(options.keep_low_snr),
        )
        if left_out:
            print(f"left out    {left_out}")
        pairs = data.matching(pairs, options.conditions)
        if is_dae:
            pairs = list({pair.clean_path: pair for pair in pairs}.values())
        return _Parts(*corpus.split_utterances(pairs, data.VALIDATION_FRACTION, options.seed))
    bundled = is_bundled(options)
    utterances = (
        corpus.bundled_speech("TRAIN")
        if bundled
        else corpus.find_speech_trees(options.timit, "TRAIN", options.skip_sa)
    )
    speakers, each = (None, None) if bundled else PAPER_SPEAKERS[options.what]
    parts = data.choose_speakers(
        data.matching(utterances, options.conditions),
        options.num_speakers or speakers,
        options.per_speaker or each,
        options.seed,
    )
    if is_dae:
        return _Parts(*parts)
    noises = corpus.bundled_noise("TRAIN") if bundled else corpus.find_noise(options.noise, "TRAIN")
    return _Parts(
        *(
            data.plan_expert(
                part, noises, options.snr, options.conditions,
                num_draws=options.draws, seed=options.seed,
            )
            for part in parts
        )
    )  # fmt: skip


def _frames(items: Sequence[Any], options: argparse.Namespace, conventions: Any, label: str) -> Any:
    from mnn.features import mask_frames, speech_frames

    shown, folder = cli.progress(items, total=len(items), label=label), options.out.parent
    if options.what == "dae":
        return speech_frames(_read_speech(shown), conventions, folder=folder)
    return mask_frames(_read_mixtures(shown), conventions, folder=folder)


def _read_speech(items: Any) -> Iterator[np.ndarray]:
    from speech.data.corpus import Pair
    from speech.sound.audio import read_audio

    for item in items:
        path = item.clean_path if isinstance(item, Pair) else item.path
        with _Skipping():
            yield read_audio(path).samples


def _read_mixtures(items: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from speech.data.corpus import Pair, render
    from speech.sound.audio import read_audio

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
            print(f"skipped in training: {cli.one_line(error)}", file=sys.stderr)
            return True
        return False


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from mnn.data import parse_conditions

    if options.snr_range:
        parser.error("--snr-range draws anew each time; mixtures are fixed here: give --snr")
    if options.net and options.init:
        parser.error("--net is for a new network; --init has its own")
    if options.out.suffix != ".h5":
        parser.error(f"--out is {options.out}; give a name that ends in .h5")
    if options.learning_rate is not None and not 0 < options.learning_rate < 1e6:
        parser.error(f"--learning-rate is {options.learning_rate}; give a positive number")
    snrs_db = options.snr
    check_data_options(parser, options)
    options.snr = snrs_db or EXPERT_SNRS_DB
    try:
        options.conditions = parse_conditions(options.where)
    except ValueError as error:
        parser.error(str(error))
    if options.gender:
        options.conditions["gender"] = [options.gender]
    if options.what == "expert" and options.noise_types:
        options.conditions["noise"] = options.noise_types
    if options.optimizer == "rprop" and not 1e-7 <= options.learning_rate <= 1e-1:
        parser.error("--learning-rate is Rprop's first step: give 1e-7 to 1e-1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mnn.train",
        description="Train an autoencoder of clean speech (dae), or an expert that gives a soft "
        "mask. Without data options it takes the bundled corpus. The same command goes on after "
        "an interruption.",
        **cli.examples(
            "python -m mnn.train dae -o dae.h5",
            "python -m mnn.train expert --noise-types birds -o birds.h5",
            "python -m mnn.train expert --snr 0 --timit TIMIT --noise noises -o low.h5",
        ),
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="dae|expert")
    for what, text in (("dae", "an autoencoder of clean speech"), ("expert", "a mask network")):
        command = commands.add_parser(what, help=f"train {text}", description=f"Train {text}.")
        add = command.add_argument
        add("-o", "--out", type=Path, required=True, metavar="FILE.h5",
            help="write this model file")  # fmt: skip
        add("--net", choices=NETS[what],
            help=f"take so many hidden units (default {NETS[what][0]})")  # fmt: skip
        add("--init", type=Path, metavar="FILE",
            help="start from the weights of this model, such as a pruned one; its zeros "
            "stay")  # fmt: skip
        _add_training_options(command)
        _add_choices(command, what)
        add_data_options(command)
        add("--gpu", default="0", metavar="LIST",
            help="run on this GPU: 0 (default), or -1 for the CPU")  # fmt: skip
    return parser


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training", "The defaults are the paper's values.").add_argument
    add("--optimizer", choices=("rprop", "adam"), default="rprop",
        help="train with this optimizer (default %(default)s)")  # fmt: skip
    add("--learning-rate", type=float, default=1e-3, metavar="R",
        help="set the learning rate, or Rprop's first step (default %(default)s)")  # fmt: skip
    add("--iterations", type=positive_number, default=5000, metavar="N",
        help="update the weights N times at most (default %(default)s)")  # fmt: skip
    add("--batch-size", type=positive_number, default=1000, metavar="N",
        help="take N frames per update (default %(default)s)")  # fmt: skip
    add("--validate-every", type=positive_number, default=50, metavar="N",
        help="validate every N iterations and keep the best weights (default "
        "%(default)s)")  # fmt: skip
    add("--patience", type=natural_number, default=1000, metavar="N",
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
