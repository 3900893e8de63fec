"""What pruning costs in quality and gains in bytes and time, beside the controls.

::

    python -m benchmarks.pruning --timit CORPUS/speech --noise CORPUS/noise
    python -m benchmarks.pruning --stage-steps 5 --final-steps 10    # bundled corpus, a dry run

Every row that is retrained starts from the same model and gets the same number of steps, with the
same settings: seven stages, then a final run with a falling learning rate. ``control`` goes through
all of them with nothing pruned, so what another row loses to it is what pruning costs. ``small`` is
a network of the width that filter removal leaves, from random weights and with that many steps.
``filters-long`` has its filters removed at once and is then trained for ``--long-steps``.
An interrupted comparison goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from pruning.config import CRITERIA
from speech.base import cli
from speech.base.cli import natural_number, positive_number
from speech.base.recorded import run_once
from speech.net.enhancer import BASELINE_MODEL
from speech.training.common_options import check_corpus

if TYPE_CHECKING:
    from eval.points import Point

STAGES = 7
BATCH_SIZE = 4
LEARNING_RATE = 5e-4
#: Of the one row that is trained for longer, whose rate falls from here.
LONG, LONG_LEARNING_RATE, LONG_EPOCHS = "filters-long", 2e-3, 8
SPARSITY = 0.22
FILTER_SHARE = 0.25
#: Shares of channels that are pruned without retraining.
ONE_SHOT = (0.1, 0.22, 0.4)
#: Seconds of the signal that is timed.
SECONDS = 3.0
BASELINE = "control"
METRICS = {"pesq_wb": "PESQ-WB", "stoi": "STOI"}


@dataclass(frozen=True)
class Row:
    """One model of the comparison.

    Attributes:
        name: Of the row and of its file.
        options: Of ``pruning.run``; empty for the network from random weights.
        labels: For the table: criterion, share, retrained.
    """

    name: str
    options: tuple[str, ...]
    labels: dict[str, Any]

    @property
    def is_retrained(self) -> bool:
        """Whether it is trained after pruning."""
        return self.labels["retrained"] == "yes"


def rows(which: str) -> list[Row]:
    """Returns the rows, the control first.

    Args:
        which: 'retrained', 'one-shot' or 'all'.
    """

    def channels(name: str, share: float, criterion: str, retrained: bool) -> Row:
        options = ("--target-sparsity", str(share), "--criterion", criterion)
        labels = {"criterion": criterion if share else "none", "share": share}
        return Row(name, options, {**labels, "retrained": "yes" if retrained else "no"})

    found = [channels(BASELINE, 0, "sparsity", True)]
    if which != "one-shot":
        soft = [channels(f"soft-{name}", SPARSITY, name, True) for name in CRITERIA]
        filters = {"criterion": "filters", "share": FILTER_SHARE, "retrained": "yes"}
        small = {"criterion": "from scratch", "share": None, "retrained": "yes"}
        found += [soft[0], Row("filters", ("--remove-filters", str(FILTER_SHARE)), filters)]
        found += [Row("small", (), small), *soft[1:]]
        labels = {**filters, "criterion": "filters, longer"}
        found.append(Row(LONG, ("--remove-filters", str(FILTER_SHARE)), labels))
    if which != "retrained":
        found += [
            channels(f"{name}-{share:g}", share, name, False)
            for name in CRITERIA
            for share in ONE_SHOT
        ]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from eval.points import Point
    from eval.run import BUNDLED_SNRS_DB
    from eval.scoring import json_ready
    from eval.sweep import format_points, sweep
    from eval.systems import bundled_pairs

    points = [Point("before", options.model, {"retrained": "no"})]
    for row in rows(options.which):
        if row.name == LONG and not options.long_steps:
            continue
        path = _made(row, options)
        points.append(Point(row.name, path, row.labels))
        print(f"{row.name:<18} {path.stat().st_size:,} bytes", flush=True)
    # The control is what the others are compared to.
    points = [points[1], points[0], *points[2:]]
    pairs = bundled_pairs(options.out / "test", options.num_test, BUNDLED_SNRS_DB, options.jobs)
    table = sweep(points, pairs, options.out / "sweep", num_jobs=options.jobs)
    print("\n" + format_points(table))
    timing = time_models(points, options.rounds)
    common.print_table(f"{SECONDS:g} s of audio", timing, BASELINE)
    if options.figure:
        draw(table, options.figure)
    result = {
        "model": str(options.model),
        "steps": _num_steps(options),
        "long_steps": options.long_steps,
        "table": json_ready(table),
        "inference": timing.as_json(BASELINE),
    }
    common.write_result(options.json, result)
    return 0


def time_models(points: Sequence[Point], rounds: int) -> common.Timing:
    """Times the networks on the same signal in turn, but for those pruned without retraining.

    Args:
        points: The models.
        rounds: Of the timing.
    """
    from speech.net.enhancer import Enhancer

    signal = common.random_speech(SECONDS)[0, :, 0]

    def contender(path: Path) -> Any:
        def prepare() -> Any:
            enhancer = Enhancer(path)
            return lambda: enhancer(signal)

        return prepare

    kept = [p for p in points if p.labels["retrained"] == "yes" or p.name == "before"]
    return common.take_turns({point.name: contender(point.path) for point in kept}, rounds)


def draw(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws what the scores lose to the control against the weights that are left.

    Args:
        table: Rows of ``eval.sweep`` with the labels of `Row`, weights counted without zeros.
        path: PNG, SVG or PDF by its ending.
    """
    from matplotlib.figure import Figure

    from speech.base.files import atomic_path

    baseline = next(row for row in table if row["name"] == BASELINE)
    series: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        if row["criterion"] is not None and row["name"] != BASELINE:
            how = "retrained" if row["retrained"] == "yes" else "one shot"
            series.setdefault(f"{row['criterion']}, {how}", []).append(row)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
        axes.axhline(0, color="0.5", linewidth=1)
        for place, (name, own) in enumerate(series.items()):
            own = sorted(own, key=lambda row: row["nonzero_weights"])
            left = [100 * row["nonzero_weights"] / baseline["nonzero_weights"] for row in own]
            mean = [row[f"{metric}_diff"] for row in own]
            bars = [
                [m - row[f"{metric}_diff_low"] for m, row in zip(mean, own, strict=True)],
                [row[f"{metric}_diff_high"] - m for m, row in zip(mean, own, strict=True)],
            ]
            style = "-" if name.endswith("one shot") else "none"
            axes.errorbar(
                left, mean, bars, label=name, marker="os^Dv<>P"[place % 8], linestyle=style,
                capsize=3, markersize=6 + 0.6 * place, markerfacecolor="none",
            )  # fmt: skip
        axes.set_xlabel("weights left, %")
        axes.set_ylabel(f"{label}, difference to the control")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _made(row: Row, options: argparse.Namespace) -> Path:
    """Returns the model file of a row; makes it if it is not there."""
    folder = options.out / row.name
    path = folder / "model.h5"
    command = _pruning(row, path, options) if row.options else _from_scratch(folder, options)
    run_once(
        command, folder / "record.json", [path], sources=[options.model], log=folder / "log.txt"
    )
    return path


def _pruning(row: Row, path: Path, options: argparse.Namespace) -> list[str]:
    command = ["pruning.run", str(options.model.resolve())]
    command += ["-o", str(path.resolve()), *row.options]
    if row.is_retrained:
        if row.name == LONG:
            stages, epochs, rate, schedule = 1, LONG_EPOCHS, LONG_LEARNING_RATE, []
            steps = -(-options.long_steps // LONG_EPOCHS)
        else:
            stages, epochs, rate = STAGES, _final_epochs(options), LEARNING_RATE
            steps, schedule = options.stage_steps, ["--schedule", "constant"]
        command += ["--retrain", "--stages", str(stages), "--final-epochs", str(epochs)]
        command += ["--retrain-epochs", "1", "--num-train", str(steps * BATCH_SIZE)]
        command += ["--learning-rate", str(rate), *schedule]
        command += ["--work", str((path.parent / "work").resolve()), "--no-score"]
        command += _common(options)
    return command


def _from_scratch(folder: Path, options: argparse.Namespace) -> list[str]:
    from speech.modelfile.read import read_model_file

    widths = [
        layer.config["filters"]
        for layer in read_model_file(options.model).layers
        if layer.class_name == "Conv1D"
    ]
    filters = round(widths[0] * (1 - FILTER_SHARE))
    num_train = _num_steps(options) * BATCH_SIZE
    command = ["timit_fcn_mse", "--out", str(folder.resolve())]
    command += ["--filters", str(filters), "--epochs", "1", "--num-train", str(num_train)]
    return [*command, *_common(options)]


def _final_epochs(options: argparse.Namespace) -> int:
    return -(-options.final_steps // options.stage_steps)


def _num_steps(options: argparse.Namespace) -> int:
    """Returns the steps of every row that is trained: stages and final run, in whole epochs."""
    return (STAGES + _final_epochs(options)) * options.stage_steps


def _common(options: argparse.Namespace) -> list[str]:
    """Returns data, recipe and device, the same for all."""
    common_options = ["--recipe", "best", "--batch-size", str(BATCH_SIZE), "--warmup", "50"]
    common_options += ["--gpu", options.gpu, "--seed", str(options.seed), "--num-test", "1"]
    if options.timit:
        common_options += ["--timit", str(options.timit.resolve())]
        common_options += ["--noise", str(options.noise.resolve())]
    return common_options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning",
        description="Pruned networks beside the controls: scores on the bundled test set, bytes, "
        "time.",
    )
    add = parser.add_argument
    add("--model", type=Path, default=BASELINE_MODEL, metavar="FILE",
        help="default models/fcn.h5")  # fmt: skip
    add("--timit", type=Path, metavar="DIR", help="speech to retrain on (default: bundled)")
    add("--noise", type=Path, metavar="DIR", help="noise, with --timit")
    add("--which", choices=("all", "retrained", "one-shot"), default="all",
        help="rows (default %(default)s)")  # fmt: skip
    add("--stage-steps", type=positive_number, default=100, metavar="N",
        help=f"of each of the {STAGES} stages (default %(default)s)")  # fmt: skip
    add("--final-steps", type=positive_number, default=600, metavar="N",
        help="after them, in whole stages' worth (default %(default)s)")  # fmt: skip
    add("--long-steps", type=natural_number, default=4000, metavar="N",
        help=f"of row {LONG}; 0 leaves it out (default %(default)s)")  # fmt: skip
    add("--num-test", type=positive_number, default=6, metavar="N",
        help="bundled test files per noise and SNR (default %(default)s)")  # fmt: skip
    add("--rounds", type=positive_number, default=21, metavar="N",
        help="of the timing (default %(default)s)")  # fmt: skip
    add("--seed", type=natural_number, default=0, metavar="N", help="default 0")
    add("--gpu", default="-1", metavar="LIST", help="default -1, the CPU")
    add("--jobs", type=positive_number, default=-1, metavar="N", help="default: one per core")
    add("--out", type=Path, default=Path("runs/pruning-benchmark"), metavar="DIR",
        help="default %(default)s")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    add("--figure", type=Path, metavar="FILE", help="also draw scores against weights left")
    return parser


if __name__ == "__main__":
    sys.exit(main())
