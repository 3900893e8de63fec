"""What each part of a training recipe buys: short runs of the same number of steps.

::

    python -m benchmarks.recipes --timit CORPUS/speech --noise CORPUS/noise
    python -m benchmarks.recipes --steps 200 --out runs/recipes      # bundled corpus

Every run is a call of ``timit_fcn_mse.py`` from random weights, the next with one part more; the
losses branch off and go back. They share seed, test files and steps, not seconds of audio: the
paper's step is one utterance, the others are four pieces of two seconds. Short runs say what helps
early; parts against overfitting cost at first and pay later. An interrupted table goes on where it
was.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import common
from speech import cli
from speech.cli import natural_number, positive_number
from speech.options import check_corpus

ROOT = Path(__file__).parent.parent
STEPS = 600
BATCH_SIZE = 4
METRICS = {"pesq_wb": "PESQ-WB", "stoi": "STOI"}


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
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    chosen = [v for v in variants() if not options.only or v.name in options.only]
    rows = []
    for variant in chosen:
        folder = options.out / variant.name
        _train(variant, folder, options)
        rows.append({"name": variant.name, "meaning": MEANINGS[variant.name], **summary(folder)})
        print(format_rows(rows[-1:]), flush=True)
    print("\n" + format_rows(rows, head=True))
    common.write_result(options.json, {"steps": options.steps, "rows": rows})
    return 0


def _train(variant: Variant, folder: Path, options: argparse.Namespace) -> None:
    """Runs the training, unless it is done: then the command has little to do."""
    arguments = [sys.executable, "timit_fcn_mse.py", "--gpu", options.gpu, "--recipe", "paper"]
    arguments += ["--epochs", "1", "--num-train", str(options.steps * variant.batch_size)]
    arguments += ["--batch-size", str(variant.batch_size), "--seed", str(options.seed)]
    arguments += ["--num-test", str(options.num_test), "--out", str(folder.resolve())]
    if options.timit:
        arguments += ["--timit", str(options.timit.resolve())]
        arguments += ["--noise", str(options.noise.resolve())]
    for name, values in variant.options.items():
        arguments += [name, *values]
    if (folder / "scores.csv").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w") as log:
        status = subprocess.run(
            arguments, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=os.environ, check=False
        ).returncode
    if status:
        raise ValueError(f"{variant.name}: timit_fcn_mse.py ended with {status}, see {log.name}")


def summary(folder: Path) -> dict[str, Any]:
    """Returns what a finished run has come to.

    Args:
        folder: Its ``--out``.

    Returns:
        Validation MSE, number of files scored on both sides, and per metric the mean gain over the
        noisy file with the half width of its 95 % interval.
    """
    with open(folder / "history.csv", newline="") as stream:
        *_, last = csv.DictReader(stream)
    with open(folder / "scores.csv", newline="") as stream:
        scores = {(row["system"], row["name"]): row for row in csv.DictReader(stream)}
    names = sorted({name for _, name in scores})
    result: dict[str, Any] = {
        "validation_mse": float(last.get("validation_mse") or last["validation_loss"]),
    }
    for metric in METRICS:
        gains = [
            float(scores["enhanced", name][metric]) - float(scores["noisy", name][metric])
            for name in names
            if all(scores[system, name]["status"] == "ok" for system in ("enhanced", "noisy"))
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
        lines = ["| run | what | n | PESQ-WB | STOI | validation MSE |", "|---" * 6 + "|"]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['meaning']} | {row['n']} | {row['pesq_wb']:+.3f} ± "
            f"{row['pesq_wb_half_width']:.3f} | {row['stoi']:+.3f} ± {row['stoi_half_width']:.3f} "
            f"| {row['validation_mse']:.5f} |"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes",
        description="Short training runs, each with one part more than the one before.",
    )
    add = parser.add_argument
    add("--timit", type=Path, metavar="DIR", help="speech (default: bundled)")
    add("--noise", type=Path, metavar="DIR", help="noise, with --timit")
    add("--steps", type=positive_number, default=STEPS, metavar="N",
        help="of each run (default %(default)s)")  # fmt: skip
    add("--num-test", type=positive_number, default=1, metavar="N",
        help="test files a noise and SNR (default %(default)s)")  # fmt: skip
    add("--only", nargs="+", choices=tuple(MEANINGS), metavar="RUN", help="these rows alone")
    add("--seed", type=natural_number, default=0, metavar="N", help="default 0")
    add("--gpu", default="-1", metavar="LIST", help="default -1, the CPU")
    add("--out", type=Path, default=Path("runs/recipes"), metavar="DIR", help="default %(default)s")
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
