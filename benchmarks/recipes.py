"""What each part of a training recipe buys: short runs of the same number of steps or hours.

::

    python -m benchmarks.recipes --timit CORPUS/speech --noise CORPUS/noise
    python -m benchmarks.recipes --steps 200 --out runs/recipes      # bundled corpus
    python -m benchmarks.recipes --network tf --hours 0.25 --timit CORPUS/speech --noise NOISE

Every run is a call of ``speech.train`` from random weights. All are scored side by side by
``eval.sweep``: on the folders given, else on mixtures of the TEST part of the first corpus.

Of the network over time and frequency (``--network tf``), each run has one setting that differs
from the first row's: size, normalisation, loss, or data. All have the same time on the clock
(``--hours``), or the same number of steps (``--steps``), which does not depend on what else the
machine does.

Of the FCN, each run has one part more than the one before; the losses branch off and go back. They
share seed and steps, not seconds of audio: the paper's step is one utterance, the others are four
pieces of two seconds. Short runs say what helps early; parts against overfitting cost at first and
pay later. An interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from speech.base import cli
from speech.base.cli import amount, positive_number
from speech.base.recorded import run_once
from speech.net.timefrequency import SIZES
from speech.training.common_options import check_corpus
from speech.training.request import SNRS_DB, TF_RECIPES

STEPS = 600
HOURS = 0.25
#: Validations of a run of so many steps, by network.
EPOCHS = {"fcn": 1, "tf": 4}
BATCH_SIZE = 4
METRICS = {"pesq_wb": "PESQ-WB", "stoi": "STOI"}
#: Columns of a history that tell the error on validation, the first that is there; headings.
VALIDATION = {"validation_mse": "validation MSE", "validation_loss": "validation loss"}


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        meaning: In the table.
        options: Of ``speech.train``, beside data and length.
        batch_size: Utterances or pieces per step.
    """

    meaning: str
    options: tuple[str, ...] = ()
    batch_size: int = BATCH_SIZE


def fcn_rows() -> dict[str, Row]:
    """Returns the rows of the FCN, each with all that the one above has, but for the losses."""
    pieces = ("--crop-seconds", "2")
    decay = (*pieces, "--learning-rate", "0.002", "--schedule", "cosine", "--warmup", "50",
             "--clip-norm", "1")  # fmt: skip
    average = (*decay, "--ema", "0.999")
    spectral = (*average, "--loss", "spectral")
    noises = (*spectral, "--second-noise", "0.3", "--equalizer", "10", "--noise-speed", "1.25",
              "--snr-range", "-10", "20")  # fmt: skip
    levels = (*noises, "--gain", "-20", "0", "--band-limit", "0.1")
    return {
        "paper": Row("the paper's: MSE, one whole utterance a step, Adam 0.001", batch_size=1),
        "pieces": Row("+ four pieces of 2 s a step", pieces),
        "decay": Row("+ rate 0.002 with warm-up and cosine decay, clipped gradients", decay),
        "average": Row("+ averaged weights", average),
        "sisdr": Row("that with SI-SDR for a loss", (*average, "--loss", "sisdr")),
        "stft": Row("that with multi-resolution STFT for a loss", (*average, "--loss", "stft")),
        "spectral": Row("that with waveform L1 and compressed spectra", spectral),
        "noises": Row("+ two noises, equalizer, speed, SNRs from -10 to 20 dB", noises),
        "levels": Row("+ gain, low-pass: the recipe 'best'", levels),
    }


def tf_rows() -> dict[str, Row]:
    """Returns the rows of the network over time and frequency: what differs."""
    rows = {
        "recipe": ("the recipe as it is, of the form of --size", ""),
        "small": ("the small form", "--size small"),
        "medium": ("the medium form", "--size medium"),
        "large": ("the large form", "--size large"),
        "no_norm": ("no normalisation", "--normalization none"),
        "spectra": ("no loss between waveforms", "--loss-waveform 0 --loss-si-sdr 0"),
        "consistency": (
            "the loss of FastEnhancer: magnitude, complex, consistency, waveform",
            "--loss-magnitude 3 --loss-complex 2 --loss-consistency 3 --loss-waveform 2 "
            "--loss-si-sdr 0",
        ),
        "one_voice": ("only recorded voices: none changed, no babble", "--voices 0 --babble 0"),
        "no_rooms": (
            "no rooms, microphones, clipping or codecs",
            "--rooms 0 --microphones 0 --clipping 0 --codecs 0",
        ),
        "more_speech": ("with the trees of --more-speech", ""),
    }
    batch_size = TF_RECIPES["best"]["batch_size"]
    return {
        name: Row(meaning, tuple(options.split()), batch_size)
        for name, (meaning, options) in rows.items()
    }


#: By network: its rows, and the recipe that they start from.
ROWS = {"fcn": fcn_rows(), "tf": tf_rows()}
RECIPE = {"fcn": "paper", "tf": "best"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    for name in options.only or ():
        if name not in ROWS[options.network]:
            parser.error(f"--only {name!r} is no run of {options.network}; give some of "
                         f"{', '.join(ROWS[options.network])}")  # fmt: skip
    if options.network == "fcn" and options.more_speech:
        parser.error("--more-speech is for --network tf")
    if (options.test_noisy is None) != (options.test_clean is None):
        parser.error("--test-noisy and --test-clean go together")
    if options.network == "fcn" and options.hours:
        parser.error("--hours is for --network tf; give --steps")
    if options.steps and options.hours:
        parser.error("--steps and --hours are two ways to say how long: give one of them")
    if options.more_speech and not options.timit:
        parser.error("--more-speech goes with --timit")
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    names = [name for name in ROWS[options.network] if not options.only or name in options.only]
    names = [name for name in names if name != options.size]  # that row is 'recipe'
    if not options.more_speech:
        names = [name for name in names if name != "more_speech"]
    for name in names:
        print(f"training {name}", flush=True)
        _once(command(name, options), options.out / name, "model.h5")
    noisy, clean = options.test_noisy, options.test_clean
    if noisy is None:
        folder = options.out / "mixtures"
        noisy, clean = folder / "noisy", folder / "clean"
        speech = options.timit[0] if options.timit else None
        common.write_test_set(
            folder, speech, options.noise, SNRS_DB, options.num_test, options.seed, -1
        )
    test = options.out / "test"
    words = ["eval.sweep", "--out", str(test.resolve()), "--model"]
    words += [f"{name}={(options.out / name / 'model.h5').resolve()}" for name in names]
    words += ["--test-noisy", str(noisy.resolve()), "--test-clean", str(clean.resolve())]
    _once(words, test, "scores.csv", [options.out / name / "model.h5" for name in names])
    rows = [
        {"name": name, "meaning": ROWS[options.network][name].meaning,
         **summary(options.out / name, test / "scores.csv", name)}
        for name in names
    ]  # fmt: skip
    print("\n" + format_rows(rows))
    common.write_result(options.json, {
        "network": options.network, "size": options.size, "steps": options.steps,
        "hours": options.hours, "rows": rows,
    })  # fmt: skip
    return 0


def command(name: str, options: argparse.Namespace) -> list[str]:
    """Returns the call of ``speech.train`` for a row; repeated, it goes on where it was."""
    network, row = options.network, ROWS[options.network][name]
    words = ["speech.train", "--network", network, "--recipe", RECIPE[network]]
    steps = options.steps or (STEPS if network == "fcn" else None)
    if steps:
        epochs = EPOCHS[network]
        items = max(1, steps // epochs) * row.batch_size
        words += ["--epochs", str(epochs), "--num-train", str(items)]
        words += ["--batch-size", str(row.batch_size)]
    else:
        words += ["--hours", str(options.hours or HOURS)]
    words += ["--seed", str(options.seed)]
    if network == "tf" and name not in SIZES:
        words += ["--size", options.size]
    words += ["--gpu", options.gpu, "--out", str((options.out / name).resolve())]
    if options.timit:
        trees = [*options.timit, *(options.more_speech if name == "more_speech" else ())]
        words += ["--speech", *(str(tree.resolve()) for tree in trees)]
        words += ["--noise", str(options.noise.resolve())]
    return [*words, *row.options]


def _once(words: Sequence[str], folder: Path, result: str, sources: Sequence[Path] = ()) -> None:
    """Runs a command that writes ``folder/result``, unless just that command has done so."""
    run_once(
        words, folder / "record.json", [folder / result], sources=sources, log=folder / "log.txt"
    )


def summary(folder: Path, scores: Path, system: str) -> dict[str, Any]:
    """Returns what a finished run has come to.

    Args:
        folder: Its ``--out``.
        scores: Table of scores by file.
        system: What the run is called there.

    Returns:
        The error on validation under the name that the history gives it, number of steps if it is
        known, number of files scored on both sides, and per metric the mean gain over the noisy
        file with the half width of its 95 % interval.
    """
    with open(folder / "history.csv", newline="") as stream:
        *_, last = csv.DictReader(stream)
    with open(scores, newline="") as stream:
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


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table as Markdown."""
    error = next(key for key in VALIDATION if key in rows[0])
    steps = f"steps, {VALIDATION[error]}" if "steps" in rows[0] else VALIDATION[error]
    lines = [f"| run | what | n | PESQ-WB | STOI | {steps} |", "|---" * 6 + "|"]
    for row in rows:
        steps = f"{row['steps']:,}, " if "steps" in row else ""
        lines.append(
            f"| {row['name']} | {row['meaning']} | {row['n']} | {row['pesq_wb']:+.3f} ± "
            f"{row['pesq_wb_half_width']:.3f} | {row['stoi']:+.3f} ± {row['stoi_half_width']:.3f} "
            f"| {steps}{row[error]:.5f} |"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        description="Short training runs, side by side: what each part of a recipe buys.",
    )
    add = parser.add_argument
    add("--timit", type=Path, nargs="+", metavar="DIR",
        help="speech (default: bundled); the first tree is tested on, too")  # fmt: skip
    add("--noise", type=Path, metavar="DIR", help="noise, with --timit")
    add("--num-test", type=positive_number, default=1, metavar="N",
        help="number of test files per noise and SNR (default %(default)s)")  # fmt: skip
    add("--seed", **cli.SEED)
    add("--json", **cli.JSON)
    add("--network", choices=tuple(ROWS), default="fcn",
        help="the paper's, or the one over time and frequency (default %(default)s)")  # fmt: skip
    add("--steps", type=positive_number, metavar="N",
        help=f"of each run (default: {STEPS} of fcn; of tf, time decides)")  # fmt: skip
    add("--hours", type=amount, metavar="H",
        help=f"of each run of tf, on the clock (default {HOURS:g})")  # fmt: skip
    add("--size", choices=tuple(SIZES), default="medium",
        help="tf: form of all rows but those of other forms (default %(default)s)")  # fmt: skip
    add("--more-speech", type=Path, nargs="+", metavar="DIR",
        help="tf: trees that the row 'more_speech' has besides")  # fmt: skip
    add("--test-noisy", type=Path, metavar="DIR",
        help="score on these noisy files (default: mixtures of the TEST part)")  # fmt: skip
    add("--test-clean", type=Path, metavar="DIR", help="clean files of the same names")
    add("--only", nargs="+", metavar="RUN", help="these rows alone")
    add("--gpu", default="-1", metavar="LIST", help="default -1, the CPU")
    add("--out", type=Path, default=Path("runs/recipes"), metavar="DIR", help="default %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
