r"""Which reading of eq. (10) of the MNN paper gives the published pattern.

::

    python -m benchmarks.eq10 --timit corpus/speech --noise corpus/noise --json eq10.json

By eq. (10) the estimate wins that an autoencoder of clean speech gives back with the smallest error
(docs/papers.md). The paper leaves open how estimates are scaled before the autoencoder hears them,
whether its dropout acts at run time, which magnitudes it was trained on, and more. Each choice is a
`Reading`: what the autoencoder hears (`HEARD`), which autoencoder it is (`DAES`), and how its error
becomes a cost (`ERRORS`). All readings judge the same estimates of the same experts; the table
has the recovery of each of the paper's eight tests, (selected - chance) / (oracle - chance) in SDR,
and the distance from the published recoveries: root mean square over the tests, in percent points.

Mixtures are of the training voices and the training parts of the noises, none of the test data.
The autoencoders that are not shipped are trained on other utterances of the same voices, and kept
in ``--out``, as are the choices of each test: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from benchmarks.reproduce import published
from mnn import experiments
from mnn.features import (
    INPUT_SCALE,
    Conventions,
    Frames,
    fingerprint,
    level,
    scaled_magnitudes,
    speech_frames,
)
from mnn.layers import DenseNetwork
from mnn.scoring import rebuilt_difference
from speech.base import cli
from speech.base.files import write_json
from speech.data import corpus
from speech.data.corpus import MixturePlan, Utterance, render
from speech.modelfile.read import read_model_file
from speech.sound.audio import read_audio
from speech.sound.stft import DEFAULT, istft, stft
from speech.training.common_options import check_corpus

if TYPE_CHECKING:
    from mnn.expert_files import Expert

MODELS = Path(__file__).parent.parent / "models"

#: Experts, and mixtures for each noise, by experiment; the paper's rows in their order.
EXPERTS = {
    "noise": ("birds", "typing", "engine"),
    "gender": ("male", "female"),
    "snr": ("-5 dB", "0 dB", "5 dB"),
}
MIXTURES = {"noise": 12, "gender": 5, "snr": 4}
METRICS = ("sdr", "stoi")

#: No more of an utterance is used, which bounds the time.
MAX_SAMPLES = 6 * 16000

#: Utterances of a voice that autoencoders are trained on, and validated on, at most.
TRAINING_UTTERANCES, VALIDATION_UTTERANCES = 12, 3
VALIDATE_EVERY = 200
NUM_RESAMPLES = 2000

#: Frames this far below an estimate's loudest do not count where each frame has a ratio of its own.
ACTIVE_DB = 30.0

Magnitudes = np.ndarray
Hear = Callable[[Magnitudes, Magnitudes], Magnitudes]
Error = Callable[[Magnitudes, Magnitudes], float]
#: Scores by metric and picks by reading, see `judge`.
Judged = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


# --------------------------------------------------------------------------------------------
# What the autoencoder hears of an estimate s of a mixture x: magnitudes [num_frames, num_bins],
# both divided by the level of the mixture (`mnn.features`)


def _own_level(s: Magnitudes) -> Magnitudes:
    """Returns s with a mean square of 1, as `mnn.features` scales what networks are trained on."""
    return s / np.float32(max(math.sqrt(np.mean(np.square(s))), 1e-12))


def _mask(s: Magnitudes, x: Magnitudes) -> Magnitudes:
    return np.minimum(s / np.maximum(x, 1e-6), 1)


def by_frame(s: Magnitudes) -> Magnitudes:
    """Returns frames with a mean square of 1 each, but near silence."""
    return s / np.maximum(np.sqrt(np.mean(np.square(s), axis=1, keepdims=True)), np.float32(0.01))


#: Magnitudes that an autoencoder may be trained on, of those at the level of the utterance.
COMPRESSED: dict[str, Callable[[Magnitudes], Magnitudes]] = {
    "power": lambda s: np.square(s) / np.float32(8),
    "^0.5": np.sqrt,
    "^0.3": lambda s: s ** np.float32(0.3),
    "log": lambda s: np.log1p(10 * s),
    "by frame": by_frame,
}

MIXTURE, OWN = "level of the mixture", "own level"
HEARD: dict[str, Hear] = {
    MIXTURE: lambda s, x: s,
    OWN: lambda s, x: _own_level(s),
    "all magnitudes times 0.01": lambda s, x: s * np.float32(0.01),
    "all magnitudes times 100": lambda s, x: s * np.float32(100),
    # 20 is about the largest magnitude of clean speech at a root mean square of 1.
    "own maximum": lambda s, x: s * np.float32(20 / max(float(s.max()), 1e-12)),
    "own level of each frame": lambda s, x: by_frame(s),
    "mask squared": lambda s, x: x * np.square(_mask(s, x)),
    "mask binary": lambda s, x: x * (_mask(s, x) > 0.5),
}


def _compressed(name: str, hear: Hear) -> Hear:
    return lambda s, x: COMPRESSED[name](hear(s, x))


HEARD |= {
    f"{name}, {scale}": _compressed(name, HEARD[scale])
    for name in COMPRESSED
    for scale in (MIXTURE, OWN)
}


# --------------------------------------------------------------------------------------------
# Costs, of which the smallest wins, of what was heard, s, and what was made of it, d


def squares(s: Magnitudes, d: Magnitudes) -> float:
    """Returns E of eq. (10)."""
    return float(np.sum(np.square(s - d), dtype=np.float64))


def relative(s: Magnitudes, d: Magnitudes) -> float:
    """Returns E / sum s^2, the scoring ``level`` of `mnn.scoring`."""
    return squares(s, d) / max(squares(s, np.zeros_like(s)), 1e-12)


def _norms(s: Magnitudes, d: Magnitudes) -> float:
    return float(np.sum(np.linalg.norm(s - d, axis=1), dtype=np.float64))


def _absolute(s: Magnitudes, d: Magnitudes) -> float:
    return float(np.sum(np.abs(s - d), dtype=np.float64))


def _kullback_leibler(s: Magnitudes, d: Magnitudes) -> float:
    s, d = s + np.float32(1e-3), np.maximum(d, 0) + np.float32(1e-3)
    return float(np.sum(s * np.log(s / d) - s + d, dtype=np.float64))


def _itakura_saito(s: Magnitudes, d: Magnitudes) -> float:
    ratio = (np.square(s) + np.float32(1e-2)) / (np.square(np.maximum(d, 0)) + np.float32(1e-2))
    return float(np.sum(ratio - np.log(ratio) - 1, dtype=np.float64))


def _by_active_frame(s: Magnitudes, d: Magnitudes) -> float:
    energy = np.sum(np.square(s), axis=1)
    active = energy > 10 ** (-ACTIVE_DB / 10) * energy.max(initial=0)
    if not active.any():
        return 0.0
    return float(np.mean((np.sum(np.square(s - d), axis=1)[active]) / energy[active]))


ERRORS: dict[str, Error] = {
    "squares": squares,
    "squares / energy": relative,
    "square root of each frame's": _norms,
    "absolute": _absolute,
    "squares of roots": lambda s, d: squares(np.sqrt(s), np.sqrt(np.maximum(d, 0))),
    "squares of logarithms": lambda s, d: squares(
        np.log(s + np.float32(0.03)), np.log(np.maximum(d, 0) + np.float32(0.03))
    ),
    "Kullback-Leibler": _kullback_leibler,
    "Itakura-Saito": _itakura_saito,
    "squares / energy by frame, mean": _by_active_frame,
    "none, the softest wins": lambda s, d: squares(s, np.zeros_like(s)),
}


# --------------------------------------------------------------------------------------------
# Autoencoders


@dataclass(frozen=True)
class Training:
    """How an autoencoder is trained; DAE_128 of the paper in all else.

    Attributes:
        magnitudes: Key of `COMPRESSED`; None for magnitudes as they are.
        iterations: Share of those that were asked for.
        optimizer: 'adam' or 'rprop'.
        batch_size: Frames a batch.
        dropout: Whether inputs and hidden units are dropped.
    """

    magnitudes: str | None = None
    iterations: float = 1.0
    optimizer: str = "adam"
    batch_size: int = 250
    dropout: bool = True


#: Shipped, and whether its dropout acts at run time.
SHIPPED = {
    "128": ("dae_128.h5", False),
    "128, dropout acts": ("dae_128.h5", True),
}
TRAINED = {
    "128, these voices": Training(),
    "128, a tenth of the iterations": Training(iterations=0.1),
    "128, trained without dropout": Training(dropout=False),
    "128, trained by Rprop": Training(optimizer="rprop", batch_size=1000),
    **{f"128, trained on {name}": Training(name) for name in COMPRESSED},
}


@dataclass(frozen=True)
class Reading:
    """One way to read eq. (10).

    Attributes:
        dae: Key of `SHIPPED` or `TRAINED`.
        heard: Key of `HEARD`.
        error: Key of `ERRORS`.
    """

    dae: str
    heard: str
    error: str = "squares"

    @property
    def name(self) -> str:
        """All three, for a table."""
        return f"DAE_{self.dae}; {self.heard}; {self.error}"


LITERAL, EXPLAINED = Reading("128", MIXTURE), Reading("128", OWN)
#: A control that no autoencoder has a say in.
SOFTEST = Reading("128", MIXTURE, "none, the softest wins")
EQ_11 = "eq. 11, DAE_128"


def readings() -> list[Reading]:
    """Returns all that are tried: each departs from `LITERAL` or `EXPLAINED` in one choice."""
    found = [Reading("128", heard) for heard in HEARD if not heard.startswith(tuple(COMPRESSED))]
    found += [
        Reading("128", heard, error)
        for error in ERRORS for heard in (MIXTURE, OWN) if error != SOFTEST.error
    ]  # fmt: skip
    found.append(SOFTEST)
    found += [
        Reading("128", heard, "squares / energy") for heard in ("mask squared", "mask binary")
    ]
    for dae in (*SHIPPED, *TRAINED):
        training = TRAINED.get(dae, Training())
        start = f"{training.magnitudes}, " if training.magnitudes else ""
        # What each frame's level is divided out of does not depend on the level of the whole.
        levels = (OWN,) if training.magnitudes == "by frame" else (MIXTURE, OWN)
        found += [Reading(dae, start + heard) for heard in levels]
    return list(dict.fromkeys(found))


def train_all(
    speech: Sequence[Utterance], folder: Path, iterations: int, seed: int
) -> dict[str, Rebuild]:
    """Trains the autoencoders of `TRAINED` that are not there yet.

    Args:
        speech: Utterances to train and validate on.
        folder: Of the model files.
        iterations: Of a training with a share of 1.
        seed: Of weights, order and dropout.

    Raises:
        ValueError: There is no speech, or a file is of another run.
    """
    by_voice: dict[str, list[Utterance]] = {}
    for utterance in speech:
        by_voice.setdefault(utterance.speaker, []).append(utterance)
    parts: tuple[list[Utterance], list[Utterance]] = ([], [])
    for own in by_voice.values():
        num_validating = min(VALIDATION_UTTERANCES, max(1, len(own) // 4))
        parts[1].extend(own[:num_validating])
        parts[0].extend(own[num_validating : num_validating + TRAINING_UTTERANCES])
    if not parts[0]:
        raise ValueError(
            f"{len(speech)} utterances are in no mixture, too few to train autoencoders; give a "
            "smaller --num"
        )
    conventions = Conventions(3)
    training, validation = (
        speech_frames((read_audio(u.path).samples[:MAX_SAMPLES] for u in part), conventions)
        for part in parts
    )
    names = ",".join(u.path.name for part in parts for u in part)
    return {
        name: _trained(how, folder / f"dae_{place}.h5", training, validation, iterations, seed,
                       names)
        for place, (name, how) in enumerate(cli.progress(TRAINED.items(), label="training"))
    }  # fmt: skip


def _trained(
    how: Training,
    out: Path,
    training: Frames,
    validation: Frames,
    iterations: int,
    seed: int,
    names: str,
) -> Rebuild:
    from mnn.config import FitConfig
    from mnn.dae import build_dae
    from mnn.training import FrameTrainer, finished

    model, conventions = build_dae("128", seed=seed)
    scale = INPUT_SCALE + (f", {how.magnitudes}" if how.magnitudes else "")
    meta = {"kind": "autoencoder", **conventions.to_json(), "input_scale": scale}
    if not how.dropout:
        for layer in model.layers:
            if hasattr(layer, "rate"):
                layer.rate = 0.0
    count = max(1, round(how.iterations * iterations))
    every = min(count, VALIDATE_EVERY)
    fit = FitConfig(
        count, how.batch_size, how.optimizer, validate_every=every, patience=0, seed=seed
    )  # fmt: skip

    def changed(part: Frames) -> Frames:
        if how.magnitudes is None:
            return part
        inputs = COMPRESSED[how.magnitudes](part.inputs)
        return Frames(inputs, inputs, part.neighbours, part.lengths)

    trainer = FrameTrainer(
        model, changed(training), changed(validation), fit, out,
        meta=meta, data_sha256=fingerprint([names, repr(how)]),
    )  # fmt: skip
    if finished(out, trainer.fingerprint) is None:
        trainer.run()
    return Rebuild(out)


class Rebuild:
    """An autoencoder as a function of magnitudes; `mnn.dae` takes one scale of them alone.

    Args:
        path: Model file.
        dropout: Whether dropout acts.
        seed: Of dropout, the same for all estimates.
    """

    def __init__(self, path: Path, dropout: bool = False, seed: int = 0) -> None:
        file = read_model_file(path)
        self.sha256, self._seed = file.sha256, seed if dropout else None
        self._network, self._context = DenseNetwork(file.layers), int(file.meta["context"])

    def __call__(self, s: Magnitudes) -> Magnitudes:
        """Returns what is made of magnitudes, float32 [num_frames, num_bins]."""
        rng = None if self._seed is None else np.random.default_rng(self._seed)
        return self._network.over_frames(s, self._context, rng)


# --------------------------------------------------------------------------------------------
# Mixtures and what is chosen


def plan(
    speech: Path | None,
    noise: Path | None,
    num: Mapping[str, int],
    seed: int,
    *,
    split: str = "TRAIN",
) -> dict[tuple[str, str], list[MixturePlan]]:
    """Plans mixtures of the voices and the parts of noises of a split.

    Args:
        speech: Tree with TRAIN; None for the bundled corpus.
        noise: Folder of noises.
        num: Mixtures for each noise by experiment, of those that are planned.
        seed: Of the noise segments.
        split: 'TRAIN' or 'TEST'.

    Returns:
        By experiment and condition, in the order of the published rows.
    """
    kind = "bundled" if speech is None or noise is None else "open"
    utterances, noises = corpus.recordings(speech, noise, split)
    plans = {}
    for experiment in num:
        table = experiments.NOISE_TYPES if experiment == "noise" else experiments.MIXED_NOISES
        for condition in experiments.conditions_of(experiment, table[kind]):
            plans[experiment, condition.name] = experiments.plan_tests(
                condition, utterances, noises, num[experiment], seed
            )
    return plans


def costs_of(
    estimate: np.ndarray,
    noisy: np.ndarray,
    signal_level: float,
    daes: Mapping[str, Rebuild],
    chosen: Sequence[Reading],
) -> dict[str, float]:
    """Returns what an estimate costs by each reading, and by eq. (11), its SNR with a minus.

    Args:
        estimate: float32 [num_samples].
        noisy: Magnitudes of the mixture, [num_frames, num_bins].
        signal_level: Of the mixture.
        daes: Autoencoders by name.
        chosen: Readings, `LITERAL` among them.
    """
    spectra = stft(estimate, DEFAULT)
    s = scaled_magnitudes(spectra, signal_level)
    known: dict[tuple[str, str], tuple[Magnitudes, Magnitudes]] = {}
    found = {}
    for reading in chosen:
        key = reading.dae, reading.heard
        if key not in known:
            heard = HEARD[reading.heard](s, noisy)
            known[key] = heard, daes[reading.dae](heard)
        found[reading.name] = ERRORS[reading.error](*known[key])
    scale = signal_level * math.sqrt(DEFAULT.window_energy)
    energy = float(np.sum(np.square(estimate, dtype=np.float64)))
    difference = rebuilt_difference(spectra, *known[LITERAL.dae, LITERAL.heard], scale)
    error = float(np.sum(np.square(istft(difference, len(estimate)), dtype=np.float64)))
    found[EQ_11] = -10 * math.log10(max(energy, 1e-30) / max(error, 1e-30))
    return found


def judge(
    plans: Iterable[MixturePlan],
    experts: Sequence[Expert],
    daes: Mapping[str, Rebuild],
    chosen: Sequence[Reading],
) -> Judged:
    """Runs experts on mixtures, scores their estimates and lets all readings choose.

    Returns:
        Scores by metric, float [num_mixtures, num_experts], and the place of the expert that each
        reading picks, int [num_mixtures]. A mixture that an estimate has no score for is left out.
    """
    from eval.metrics import METRICS as SCORES
    from mnn.expert_files import Place

    scores: dict[str, list[list[float]]] = {metric: [] for metric in METRICS}
    picks: dict[str, list[int]] = {}
    for one in plans:
        mixture = render(one)
        noisy = mixture.noisy[:MAX_SAMPLES].astype(np.float32)
        clean, own_level = mixture.clean[:MAX_SAMPLES], level(noisy)
        x = scaled_magnitudes(stft(noisy, DEFAULT), own_level)
        estimates = [expert.signal(noisy, own_level, Place()) for expert in experts]
        own = {
            metric: [SCORES[metric](clean, y.astype(np.float64)).value for y in estimates]
            for metric in METRICS
        }
        if not np.isfinite(list(own.values())).all():
            continue
        costs = [costs_of(y, x, own_level, daes, chosen) for y in estimates]
        for metric, values in own.items():
            scores[metric].append(values)
        for name in costs[0]:
            picks.setdefault(name, []).append(int(np.argmin([cost[name] for cost in costs])))
    return (
        {metric: np.array(values) for metric, values in scores.items()},
        {name: np.array(places) for name, places in picks.items()},
    )


# --------------------------------------------------------------------------------------------
# Tables


def published_recoveries(metric: str, column: str) -> np.ndarray:
    """Returns the published recoveries in percent, one per test: float [8].

    Args:
        metric: 'sdr' or 'stoi'.
        column: Such as 'ae 128', of `mnn.published.COLUMNS`.
    """
    found = published.recoveries(metric).values()
    return 100 * np.array([value for columns in found for value in columns[column]])


def recovery(scores: np.ndarray, selected: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Returns (selected - chance) / (oracle - chance) of means over mixtures, in percent.

    Args:
        scores: float [num_mixtures, num_experts].
        selected: Of what was selected, float [num_mixtures].
        drawn: Mixtures of each draw, int [num_draws, n].

    Returns:
        float [num_draws]; 0 where the oracle is no better than chance.
    """
    chance, best = scores.mean(axis=1), scores.max(axis=1)
    gained = (selected - chance)[drawn].mean(axis=1)
    gap = (best - chance)[drawn].mean(axis=1)
    return 100 * np.divide(gained, gap, out=np.zeros_like(gained), where=gap > 1e-9)


def column_of(name: str) -> str:
    """Returns the published column that a reading stands beside."""
    return "snr 128" if name == EQ_11 else "ae 128"


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the root mean square of differences over tests, the last axis."""
    return np.sqrt(np.mean(np.square(one - other), axis=-1))


def tabulate(
    judged: Sequence[Judged],
) -> list[dict[str, Any]]:
    """Returns a row for each reading and for eq. (11).

    Args:
        judged: From `judge`, a value for each published test.

    Returns:
        Rows with ``name``; ``sdr`` and ``stoi``: recovery of each test in percent; ``mean``, of the
        tests in SDR, and its 95 % interval, mixtures drawn with replacement; ``distance_sdr`` from
        the published recoveries with its interval, ``distance_stoi``; ``sampling``, the distance
        that the choice of mixtures alone makes (the deviation of the draws).
    """
    rows = []
    for name in judged[0][1]:
        row: dict[str, Any] = {"name": name}
        for metric in METRICS:
            values, draws = [], []
            for scores, picks in judged:
                rng = np.random.default_rng(0)
                num = len(picks[name])
                drawn = rng.integers(num, size=(NUM_RESAMPLES, num))
                selected = scores[metric][np.arange(num), picks[name]]
                values.append(recovery(scores[metric], selected, np.arange(num)[None])[0])
                draws.append(recovery(scores[metric], selected, drawn))
            own, spread = np.array(values), np.stack(draws, axis=1)
            paper = published_recoveries(metric, column_of(name))
            row[metric] = own.tolist()
            row[f"distance_{metric}"] = float(distance(own, paper))
            if metric == "sdr":
                ends = np.percentile(spread.mean(axis=1), [2.5, 97.5])
                row |= {"mean": float(own.mean()), "mean_low": ends[0], "mean_high": ends[1]}
                ends = np.percentile(distance(spread, paper), [2.5, 97.5])
                row |= {"distance_low": ends[0], "distance_high": ends[1]}
                row["sampling"] = float(np.sqrt(np.mean(np.var(spread, axis=0))))
        rows.append(row)
    return rows


def likeness(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns how far eq. (10) is from eq. (11), both with DAE_128, in the paper and here, SDR."""
    by_name = {row["name"]: np.array(row["sdr"]) for row in rows}
    eq_11 = by_name[EQ_11]
    return {
        "published": float(
            distance(published_recoveries("sdr", "ae 128"), published_recoveries("sdr", "snr 128"))
        ),
        "literal": float(distance(by_name[LITERAL.name], eq_11)),
        "explained": float(distance(by_name[EXPLAINED.name], eq_11)),
    }


def format_table(result: Mapping[str, Any]) -> str:
    """Returns the result as lines of text, the nearest reading first."""
    heads = [name[:7] for name in result["tests"]]
    lines = [f"{'recovery in SDR, %':<66}" + "".join(f"{head:>8}" for head in heads) + "    dist."]
    for column in ("snr 128", "ae 128"):
        cells = "".join(f"{value:8.0f}" for value in published_recoveries("sdr", column))
        lines.append(f"{'published, ' + column:<66}{cells}")
    for row in sorted(result["table"], key=lambda row: row["distance_sdr"]):
        cells = "".join(f"{value:8.0f}" for value in row["sdr"])
        lines.append(f"{row['name'][:65]:<66}{cells}{row['distance_sdr']:9.1f}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------
# The command

#: Where `benchmarks.reproduce` has the experts by gender and SNR, too large to be shipped.
MADE = Path("runs/reproduce/mnn/models")


def expert_paths(experiment: str, made: Path) -> list[Path]:
    """Returns the files of an experiment's experts: shipped ones by noise, others of ``made``.

    Args:
        experiment: Key of `EXPERTS`.
        made: Folder of models, as `mnn.experiments` writes it.

    Raises:
        ValueError: A file is missing.
    """
    names = EXPERTS[experiment]
    if experiment == "noise":
        return [MODELS / f"expert_{name}.icse" for name in names]
    paths = [made / experiments.file_name(name) for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"{path}: no such expert; python -m mnn.experiments {experiment} --scale open "
                f"--models {made} trains it, or --experts names another folder"
            )
    return paths


def add_experts_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--experts``, the folder for `expert_paths`."""
    parser.add_argument(
        "--experts", type=Path, default=MADE, metavar="DIR",
        help="take experts by gender and SNR from this folder of mnn.experiments "
        "(default %(default)s)",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.eq10", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--timit", type=Path, metavar="DIR", help="tree with TRAIN (default: the bundled corpus)")
    add("--noise", type=Path, metavar="DIR", help="noise recordings (to mix with --timit)")
    add(
        "--num",
        type=cli.positive_number,
        nargs=3,
        default=list(MIXTURES.values()),
        metavar="N",
        help="mixtures for each noise in the experiments noise, gender and snr (default 12 5 4)",
    )
    add(
        "--iterations",
        type=cli.positive_number,
        default=1500,
        metavar="N",
        help="train each autoencoder for so many (default %(default)s)",
    )
    add(
        "-o",
        "--out",
        type=Path,
        default=Path("runs/eq10"),
        metavar="DIR",
        help="keep the autoencoders in this folder (default %(default)s)",
    )
    add_experts_option(parser)
    add("--seed", **cli.SEED)
    add("--json", **cli.JSON)  # fmt: skip
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.base.device import select_devices

    num = dict(zip(EXPERTS, options.num, strict=True))
    plans = plan(options.timit, options.noise, num, options.seed)
    experts = {name: expert_paths(name, options.experts) for name in EXPERTS}
    used = {one.utterance.path for own in plans.values() for one in own}
    speech, _ = corpus.recordings(options.timit, options.noise, "TRAIN")
    select_devices("-1")
    daes = {name: Rebuild(MODELS / file, acts, options.seed)
            for name, (file, acts) in SHIPPED.items()}  # fmt: skip
    rest = [utterance for utterance in speech if utterance.path not in used]
    daes |= train_all(rest, options.out, options.iterations, options.seed)
    chosen = readings()
    judged = [
        _judged(options.out / f"{experiment}_{condition}.json".replace(" ", "_"), own,
                experts[experiment], daes, chosen)
        for (experiment, condition), own in plans.items()
    ]  # fmt: skip
    table = tabulate(judged)
    result = {
        "tests": [condition for _, condition in plans],
        "mixtures": [len(scores["sdr"]) for scores, _ in judged],
        "iterations": options.iterations,
        "table": table,
        "likeness": likeness(table),
    }
    print(format_table(result))
    common.write_result(options.json, result)
    return 0


def _judged(
    path: Path,
    plans: Sequence[MixturePlan],
    paths: Sequence[Path],
    daes: Mapping[str, Rebuild],
    chosen: Sequence[Reading],
) -> Judged:
    """Does as `judge`, unless ``path`` holds what it gave before."""
    from mnn.expert_files import open_expert

    experts = [open_expert(path) for path in paths]
    what = [*(f"{one.relative_path} {one.seed}" for one in plans), *(e.sha256 for e in experts)]
    what += [f"{reading.name} {daes[reading.dae].sha256}" for reading in chosen]
    data_sha256 = fingerprint(what)
    if (stored := _stored(path, data_sha256)) is not None:
        return stored
    shown = cli.progress(plans, total=len(plans), label=path.stem)
    scores, picks = judge(shown, experts, daes, chosen)
    lists = [{key: array.tolist() for key, array in part.items()} for part in (scores, picks)]
    write_json(path, {"data_sha256": data_sha256, "scores": lists[0], "picks": lists[1]})
    return scores, picks


def _stored(path: Path, data_sha256: str) -> Judged | None:
    """Returns what was judged of just these mixtures, readings and models before, if anything."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.get("data_sha256") != data_sha256:
        return None
    return (
        {metric: np.array(values) for metric, values in stored["scores"].items()},
        {name: np.array(places) for name, places in stored["picks"].items()},
    )


if __name__ == "__main__":
    sys.exit(main())
