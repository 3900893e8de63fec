"""What each part of a training recipe buys: short runs of the same number of steps or hours.

::

    python -m benchmarks.recipes --timit CORPUS/speech --noise CORPUS/noise
    python -m benchmarks.recipes --steps 200 --out runs/recipes      # bundled corpus
    python -m benchmarks.recipes --network tf --hours 0.25 --timit CORPUS/speech --noise NOISE

The runs of the network over time and frequency (``--network tf``) are calls of ``speech.train``,
each with one setting that differs from the first row's: size, normalisation, loss, or data. All
have the same time on the clock (``--hours``), or the same number of steps (``--steps``), which does
not depend on what else the machine does. They are scored side by side by ``eval.sweep``, on the
bundled test mixtures or on the folders given.

Of the FCN, every run is a call of ``timit_fcn_mse.py`` from random weights, the next with one part
more; the losses branch off and go back. They share seed, test files and steps, not seconds of
audio: the paper's step is one utterance, the others are four pieces of two seconds. Short runs say
what helps early; parts against overfitting cost at first and pay later. An interrupted table goes
on where it was.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import common
from speech.base import cli
from speech.base.cli import amount, natural_number, positive_number
from speech.base.recorded import run_once
from speech.net.timefrequency import SIZES
from speech.training.common_options import check_corpus
from speech.training.request import TF_RECIPES

STEPS = 600
HOURS = 0.25
#: Validations of a run of so many steps.
EPOCHS = 4
BATCH_SIZE = 4
METRICS = {"pesq_wb": "PESQ-WB", "stoi": "STOI"}
#: Columns of a history that tell the error on validation, the first that is there; headings.
VALIDATION = {"validation_mse": "validation MSE", "validation_loss": "validation loss"}


@dataclass(frozen=True)
class Variant:
    """One run.

    Attributes:
        name: Of its row and of its folder.
        options: Of ``timit_fcn_mse.py``, beside data and length.
        batch_size: Utterances or pieces a step.
    """

    name: str
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    batch_size: int = BATCH_SIZE


def variants() -> list[Variant]:
    """Returns the rows of the table, each with all that the one above has, but for the losses."""
    pieces = {"--crop-seconds": ["2"]}
    decay = {**pieces, "--learning-rate": ["0.002"], "--schedule": ["cosine"], "--warmup": ["50"],
             "--clip-norm": ["1"]}  # fmt: skip
    average = {**decay, "--ema": ["0.999"]}
    spectral = {**average, "--loss": ["spectral"]}
    noises = {**spectral, "--second-noise": ["0.3"], "--equalizer": ["10"],
              "--noise-speed": ["1.25"], "--snr-range": ["-10", "20"]}  # fmt: skip
    levels = {**noises, "--gain": ["-20", "0"], "--band-limit": ["0.1"]}
    return [
        Variant("paper", batch_size=1),
        Variant("pieces", pieces),
        Variant("decay", decay),
        Variant("average", average),
        Variant("sisdr", {**average, "--loss": ["sisdr"]}),
        Variant("stft", {**average, "--loss": ["stft"]}),
        Variant("spectral", spectral),
        Variant("noises", noises),
        Variant("levels", levels),
    ]


#: Rows for the network over time and frequency: what differs, options of ``speech.train``.
TF_VARIANTS: dict[str, tuple[str, Sequence[str]]] = {
    "recipe": ("the recipe as it is, of the form of --size", []),
    "small": ("the small form", ["--size", "small"]),
    "medium": ("the medium form", ["--size", "medium"]),
    "large": ("the large form", ["--size", "large"]),
    "no_norm": ("no normalisation", ["--normalization", "none"]),
    "spectra": ("no loss between waveforms", ["--loss-waveform", "0", "--loss-si-sdr", "0"]),
    "consistency": (
        "the loss of FastEnhancer: magnitude, complex, consistency, waveform",
        ["--loss-magnitude", "3", "--loss-complex", "2", "--loss-consistency", "3",
         "--loss-waveform", "2", "--loss-si-sdr", "0"],
    ),
    "one_voice": (
        "only recorded voices: none changed, no babble",
        ["--voices", "0", "--babble", "0"],
    ),
    "no_rooms": (
        "no rooms, microphones, clipping or codecs",
        ["--rooms", "0", "--microphones", "0", "--clipping", "0", "--codecs", "0"],
    ),
    "more_speech": ("with the trees of --more-speech", []),
}  # fmt: skip

MEANINGS = {
    "paper": "the paper's: MSE, one whole utterance a step, Adam 0.001",
    "pieces": "+ four pieces of 2 s a step",
    "decay": "+ rate 0.002 with warm-up and cosine decay, clipped gradients",
    "average": "+ averaged weights",
    "sisdr": "that with SI-SDR for a loss",
    "stft": "that with multi-resolution STFT for a loss",
    "spectral": "that with waveform L1 and compressed spectra",
    "noises": "+ two noises, equalizer, speed, SNRs from -10 to 20 dB",
    "levels": "+ gain, low-pass: the recipe 'best'",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    names = TF_VARIANTS if options.network == "tf" else MEANINGS
    for name in options.only or ():
        if name not in names:
            parser.error(f"--only {name!r} is no run of {options.network}; give some of "
                         f"{', '.join(names)}")  # fmt: skip
    if options.network == "fcn" and (options.more_speech or options.test_noisy):
        parser.error("--more-speech, --test-noisy and --test-clean are for --network tf")
    if (options.test_noisy is None) != (options.test_clean is None):
        parser.error("--test-noisy and --test-clean go together")
    if options.network == "fcn" and options.hours:
        parser.error("--hours is for --network tf; give --steps")
    if options.steps and options.hours:
        parser.error("--steps and --hours are two ways to say how long: give one of them")
    if options.more_speech and not options.timit:
        parser.error("--more-speech goes with --timit")
    return cli.run(lambda: _run_tf(options) if options.network == "tf" else _run(options))


def _run(options: argparse.Namespace) -> int:
    chosen = [v for v in variants() if not options.only or v.name in options.only]
    rows = []
    for variant in chosen:
        folder = options.out / variant.name
        _train(variant, folder, options)
        rows.append({"name": variant.name, "meaning": MEANINGS[variant.name], **summary(folder)})
        print(format_rows(rows[-1:]), flush=True)
    print("\n" + format_rows(rows, head=True))
    common.write_result(options.json, {"steps": options.steps or STEPS, "rows": rows})
    return 0


def _run_tf(options: argparse.Namespace) -> int:
    names = [name for name in TF_VARIANTS if not options.only or name in options.only]
    names = [name for name in names if name != options.size]  # that row is 'recipe'
    if not options.more_speech:
        names = [name for name in names if name != "more_speech"]
    for name in names:
        print(f"training {name}", flush=True)
        _once(tf_command(name, options), options.out / name, "model.h5")
    test = options.out / "test"
    command = ["eval.sweep", "--out", str(test.resolve()), "--model"]
    command += [f"{name}={(options.out / name / 'model.h5').resolve()}" for name in names]
    if options.test_noisy:
        command += ["--test-noisy", str(options.test_noisy.resolve())]
        command += ["--test-clean", str(options.test_clean.resolve())]
    else:
        command += ["--num-test", str(options.num_test)]
    _once(command, test, "scores.csv", [options.out / name / "model.h5" for name in names])
    rows = [
        {"name": name, "meaning": TF_VARIANTS[name][0],
         **summary(options.out / name, test / "scores.csv", name)}
        for name in names
    ]  # fmt: skip
    print("\n" + format_rows(rows, head=True))
    length = {"steps": options.steps} if options.steps else {"hours": options.hours or HOURS}
    common.write_result(options.json, {"size": options.size, **length, "rows": rows})
    return 0


def tf_command(name: str, options: argparse.Namespace) -> list[str]:
    """Returns the call of ``speech.train`` for a row; repeated, it goes on where it was."""
    command = ["speech.train", "--network", "tf", "--recipe", "best"]
    if options.steps:
        items = max(1, options.steps // EPOCHS) * TF_RECIPES["best"]["batch_size"]
        command += ["--epochs", str(EPOCHS), "--num-train", str(items)]
    else:
        command += ["--hours", str(options.hours or HOURS)]
    command += ["--seed", str(options.seed)]
    if name not in SIZES:
        command += ["--size", options.size]
    command += ["--gpu", options.gpu, "--out", str((options.out / name).resolve())]
    if options.timit:
        trees = [*options.timit, *(options.more_speech if name == "more_speech" else ())]
        command += ["--speech", *(str(tree.resolve()) for tree in trees)]
        command += ["--noise", str(options.noise.resolve())]
    return [*command, *TF_VARIANTS[name][1]]


def _train(variant: Variant, folder: Path, options: argparse.Namespace) -> None:
    arguments = ["timit_fcn_mse", "--gpu", options.gpu, "--recipe", "paper"]
    steps = options.steps or STEPS
    arguments += ["--epochs", "1", "--num-train", str(steps * variant.batch_size)]
    arguments += ["--batch-size", str(variant.batch_size), "--seed", str(options.seed)]
    arguments += ["--num-test", str(options.num_test), "--out", str(folder.resolve())]
    if options.timit:
        arguments += ["--timit", *(str(tree.resolve()) for tree in options.timit)]
        arguments += ["--noise", str(options.noise.resolve())]
    for name, values in variant.options.items():
        arguments += [name, *values]
    _once(arguments, folder, "scores.csv")


def _once(command: Sequence[str], folder: Path, result: str, sources: Sequence[Path] = ()) -> None:
    """Runs a command that writes ``folder/result``, unless just that command has done so."""
    run_once(
        command, folder / "record.json", [folder / result], sources=sources,
        log=folder / "log.txt",
    )  # fmt: skip


def summary(folder: Path, scores: Path | None = None, system: str = "enhanced") -> dict[str, Any]:
    """Returns what a finished run has come to.

    Args:
        folder: Its ``--out``.
        scores: Table of scores by file; None for ``scores.csv`` of the folder.
        system: What the run is called there.

    Returns:
        The error on validation under the name that the history gives it, number of steps if it is
        known, number of files scored on both sides, and per metric the mean gain over the noisy
        file with the half width of its 95 % interval.
    """
    with open(folder / "history.csv", newline="") as stream:
        *_, last = csv.DictReader(stream)
    with open(scores or folder / "scores.csv", newline="") as stream:
        found = {(row["system"], row["name"]): row for row in csv.DictReader(stream)}
    names = sorted({name for _, name in found})
    error = next(key for key in VALIDATION if last.get(key))
    result: dict[str, Any] = {error: float(last[error])}
    if "steps" in last:
        result["steps"] = int(last["steps"])
    for metric in METRICS:
        gains = [
            float(found[system, name][metric]) - float(found["noisy", name][metric])
            for name in names
            if all(found[side, name]["status"] == "ok" for side in (system, "noisy"))
        ]
        if not gains:
            raise ValueError(f"{folder}: no file has a score, noisy and enhanced")
        result["n"] = len(gains)
        result[metric], result[f"{metric}_half_width"] = _mean(gains)
    return result


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the half width of its 95 % interval (normal approximation)."""
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return mean, 1.96 * math.sqrt(squares / max(len(values) - 1, 1) / len(values))


def format_rows(rows: Sequence[Mapping[str, Any]], *, head: bool = False) -> str:
    """Returns the table as Markdown."""
    lines = []
    if head:
        words = VALIDATION[_error_of(rows[0])]
        steps = f"steps, {words}" if "steps" in rows[0] else words
        lines = [f"| run | what | n | PESQ-WB | STOI | {steps} |", "|---" * 6 + "|"]
    for row in rows:
        steps = f"{row['steps']:,}, " if "steps" in row else ""
        lines.append(
            f"| {row['name']} | {row['meaning']} | {row['n']} | {row['pesq_wb']:+.3f} ± "
            f"{row['pesq_wb_half_width']:.3f} | {row['stoi']:+.3f} ± {row['stoi_half_width']:.3f} "
            f"| {steps}{row[_error_of(row)]:.5f} |"
        )
    return "\n".join(lines)


def _error_of(row: Mapping[str, Any]) -> str:
    return next(key for key in VALIDATION if key in row)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        description="Short training runs, side by side: what each part of a recipe buys.",
    )
    add = parser.add_argument
    add("--network", choices=("fcn", "tf"), default="fcn",
        help="the paper's, or the one over time and frequency (default %(default)s)")  # fmt: skip
    add("--timit", type=Path, nargs="+", metavar="DIR", help="speech (default: bundled)")
    add("--noise", type=Path, metavar="DIR", help="noise, with --timit")
    add("--steps", type=positive_number, metavar="N",
        help=f"of each run (default: {STEPS} of fcn; of tf, time decides)")  # fmt: skip
    add("--hours", type=amount, metavar="H",
        help=f"of each run of tf, on the clock (default {HOURS:g})")  # fmt: skip
    add("--size", choices=tuple(SIZES), default="medium",
        help="tf: form of all rows but those of other forms (default %(default)s)")  # fmt: skip
    add("--more-speech", type=Path, nargs="+", metavar="DIR",
        help="tf: trees that the row 'more_speech' has besides")  # fmt: skip
    add("--test-noisy", type=Path, metavar="DIR",
        help="tf: noisy files to score on (default: the bundled test mixtures)")  # fmt: skip
    add("--test-clean", type=Path, metavar="DIR", help="tf: clean files of the same names")
    add("--num-test", type=positive_number, default=1, metavar="N",
        help="number of test files per noise and SNR (default %(default)s)")  # fmt: skip
    add("--only", nargs="+", metavar="RUN", help="these rows alone")
    add("--seed", type=natural_number, default=0, metavar="N", help="default 0")
    add("--gpu", default="-1", metavar="LIST", help="default -1, the CPU")
    add("--out", type=Path, default=Path("runs/recipes"), metavar="DIR", help="default %(default)s")
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
