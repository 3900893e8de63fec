r"""Score against size, for the FCN and the network over time and frequency in one picture.

::

    python -m benchmarks.sizes --json sizes.json --figure docs/sizes.png
    python -m benchmarks.sizes --speech corpus/speech librispeech --noise corpus/noise

The first makes files of `models/denoise_fp32.icse` by k-means, with and without pruning, and by
rate-distortion quantization, each in one shot, and scores them on the bundled test mixtures beside
the shipped files of the FCN. With data, codebooks of k = 4 and the smallest rate-distortion file
are fine-tuned too, tied and through TF-MOT. ``--control NAME=MODEL`` adds a network that was
trained in another way, packed into the same bytes: the small form, trained from scratch.

The same command goes on after an interruption: a file that is there is not made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from eval.plots import score_against_size
from eval.points import Point, parse_point
from eval.scoring import json_ready
from eval.sweep import SweepConfig, sweep_models
from speech.base import cli

MODELS = Path("models")
START, FCN = MODELS / "denoise_fp32.icse", MODELS / "fcn.h5"
TRAINED, FCN_TRAINED, SHIPPED_FCN = "as trained", "FCN as trained", "FCN"
RATE, KMEANS, PRUNED = "rate and distortion", "k-means", "22 % pruned, k-means"
TIED, TFMOT = "k-means, tied, fine-tuned", "TF-MOT, fine-tuned"
RATE_TIED = "rate and distortion, fine-tuned"
BYTES, KS = (12000, 16384, 20000, 24000, 32700, 48000), (4, 8, 16, 32, 64)
SMALLEST_FCN = ("fcn_least", "fcn_tiny", "fcn_small")
FCN_KS = tuple(f"fcn_pp22_k{k}" for k in KS)
#: How models are fine-tuned with data.
FIT = ("--num-train", "3200", "--batch-size", "16", "--crop-seconds", "2")


@dataclass(frozen=True)
class Way:
    """A file to make.

    Attributes:
        name: Of the file.
        series: What it is joined with in the picture.
        options: Of `quantization.run`.
        pruned: Starts from the network with 22 % of its channels pruned.
    """

    name: str
    series: str
    options: tuple[str, ...]
    pruned: bool = False


def ways(data: Sequence[str]) -> list[Way]:
    """Returns what is made of `START`; fine-tuned with ``data``, the options that name them."""
    made = [Way(f"rd{n}", RATE, ("--target-bytes", str(n))) for n in BYTES]
    made += [Way(f"k{k}", KMEANS, ("-k", str(k), "--centroids", "fp16")) for k in KS]
    made += [
        Way(f"p22k{k}", PRUNED, ("-k", str(k), "--centroids", "fp16"), pruned=True) for k in KS[2:4]
    ]
    if data:
        fit = (*data, *FIT, "--finetune-epochs", "2")
        made += [
            Way("k4-tied", TIED, ("-k", "4", "--centroids", "fp16", *fit)),
            Way("k4-tfmot", TFMOT, ("-k", "4", "--method", "tfmot", *fit)),
            Way(
                "rd16384-tied",
                RATE_TIED,
                ("--target-bytes", "16384", "--learning-rate", "3e-5", *fit),
            ),
        ]
    return made


def make(way: Way, out: Path) -> Path:
    """Makes a file unless it is there; returns its path.

    Raises:
        ValueError: A command failed.
    """
    folder = out / way.name
    packed = folder / "model.icse"
    if packed.exists():
        return packed
    source = START
    if way.pruned:
        source = out / "p22.h5"
        if not source.exists():
            common.run_command(
                "pruning.run", str(START), "--target-sparsity", "0.22", "--no-score",
                "--gpu", "-1", "-o", str(source),
            )  # fmt: skip
    common.run_command("quantization.run", str(source), *way.options, "--no-score", "--gpu", "-1",
          "-o", str(folder))  # fmt: skip
    return packed


def points_of(made: dict[Way, Path], controls: Sequence[Point]) -> list[tuple[Point, str]]:
    """Returns the models to score with the series of each, the baseline first."""
    found = [(Point("denoise_fp32", START), TRAINED)]
    found += [(Point(way.name, path), way.series) for way, path in made.items()]
    found.append((Point("fcn", FCN), FCN_TRAINED))
    found += [(Point(name, MODELS / f"{name}.icse"), SHIPPED_FCN + ", rate and distortion")
              for name in SMALLEST_FCN]  # fmt: skip
    found += [(Point(name, MODELS / f"{name}.icse"), SHIPPED_FCN + ", pruned, k-means")
              for name in FCN_KS]  # fmt: skip
    return found + [(point, "control") for point in controls]


def draw(table: Sequence[dict[str, Any]], series: dict[str, str], path: Path) -> None:
    """Draws PESQ-WB against the bytes of the file; bars are intervals of the difference.

    Args:
        table: From `eval.sweep.sweep_models`, the noisy files and the baseline first.
        series: Of each model, by name.
        path: PNG, SVG or PDF.
    """
    base = table[1]["pesq_wb"]
    points = [
        {
            "series": series[row["name"]],
            "text": "" if series[row["name"]].startswith(SHIPPED_FCN) else row["name"],
            "file_kb": row["file_bytes"] / 1000,
            "pesq_wb": row["pesq_wb"],
            "pesq_wb_low": base + row["pesq_wb_diff_low"],
            "pesq_wb_high": base + row["pesq_wb_diff_high"],
        }
        for row in table[1:]
    ]
    score_against_size(
        points, "pesq_wb", path,
        f"n = {table[1]['n']}; noisy: {table[0]['pesq_wb']:.2f}; bars: 95 % interval of the "
        "difference to denoise_fp32",
        size="file_kb", size_label="file, kB",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizes", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--speech", type=Path, nargs="+", metavar="DIR", help="fine-tune on these trees of speech")
    add("--noise", type=Path, metavar="DIR", help="noises to mix with it")
    add("--control", type=parse_point, nargs="+", default=[], metavar="NAME=FILE",
        help="score this model, too")  # fmt: skip
    add("--num-test", type=cli.positive_number, default=2, metavar="N",
        help="take N files per noise and SNR (default %(default)s)")  # fmt: skip
    add("--jobs", **cli.JOBS)
    add("-o", "--out", type=Path, default=Path("runs/sizes"), metavar="DIR",
        help="write to this folder (default %(default)s)")  # fmt: skip
    add("--figure", type=Path, metavar="FILE", help="also draw the scores against bytes")
    add("--json", **cli.JSON)
    options = parser.parse_args(argv)
    if bool(options.speech) != bool(options.noise):
        parser.error("--speech and --noise go together")
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    data: tuple[str, ...] = ()
    if options.speech:
        data = ("--speech", *map(str, options.speech), "--noise", str(options.noise))
    made = {way: make(way, options.out) for way in ways(data)}
    points = points_of(made, options.control)
    config = SweepConfig(
        tuple(point for point, _ in points), num_test=options.num_test,
        out=options.out / "scores", num_jobs=options.jobs,
    )  # fmt: skip
    table = json_ready(sweep_models(config))
    series = {point.name: name for point, name in points}
    print(format_table(table, series))
    if options.figure:
        draw(table, series, options.figure)
    common.write_result(options.json, {"table": table, "series": series})
    return 0


def format_table(table: Sequence[dict[str, Any]], series: dict[str, str]) -> str:
    """Returns the table in Markdown; differences are to the baseline, the second row."""
    lines = []
    for row in table[1:]:
        cells = [series[row["name"]], row["name"], f"{row['file_bytes']:,}"]
        for metric, digits in (("pesq_wb", 3), ("stoi", 4)):
            low, high = row[f"{metric}_diff_low"], row[f"{metric}_diff_high"]
            difference = f"{row[f'{metric}_diff']:+.{digits}f}"
            difference += f" ({low:+.{digits}f} to {high:+.{digits}f})"
            cells.append(f"{row[metric]:.3f}" if row is table[1] else difference)
        lines.append(cells)
    return common.table(["way", "file", "bytes", "PESQ-WB", "STOI"], lines)


if __name__ == "__main__":
    sys.exit(main())
