"""Prunes a model: sets channels to zero, or takes whole filters out (docs/papers.md).

::

    python -m pruning.run model.h5                                    # one-shot, theta 0.65
    python -m pruning.run model.h5 --retrain                          # soft pruning, bundled corpus
    python -m pruning.run model.h5 --target-sparsity 0.22 --timit TIMIT --noise NOISES
    python -m pruning.run model.h5 --remove-filters 0.25 --retrain

The same command goes on with an interrupted retraining where it stood.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.points import Point
from eval.scoring import json_ready
from pruning.config import (
    BY_THETA,
    CRITERIA,
    NUM_STAGES,
    RETRAIN_LEARNING_RATE,
    THETA,
    PruningConfig,
)
from pruning.sparsity import report, works_on_spectra
from speech.base import cli, lazy
from speech.base.cli import natural_number, positive_number
from speech.base.files import write_json
from speech.base.runinfo import run_info
from speech.modelfile.spec import LayerSpec
from speech.training.common_options import (
    add_data_options,
    add_training_options,
    check_data_options,
    train_on,
)

if TYPE_CHECKING:
    from eval import sweep
    from pruning import process
else:
    process = lazy.module("pruning.process")
    sweep = lazy.module("eval.sweep")


@dataclass(frozen=True)
class Command:
    """The parsed command line.

    Attributes:
        model: The model file.
        out: The file to write.
        config: Settings of the pruning.
        json: File for the results.
    """

    model: Path
    out: Path
    config: PruningConfig
    json: Path | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    asked = parse(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(asked))


def parse(argv: Sequence[str] | None = None) -> Command:
    """Returns what the options ask for; exits with code 2 if they make no sense."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check_usage(parser, options)
    config = PruningConfig(
        theta=options.theta,
        target_sparsity=1 - options.keep if options.keep is not None else options.target_sparsity,
        per_layer=options.per_layer,
        criterion=options.criterion,
        prune_last=options.prune_last,
        remove_filters=options.remove_filters,
        retrain=bool(options.retrain or options.timit or options.train_noisy),
        train_on=train_on(options),
        stages=options.stages,
        final_epochs=options.final_epochs,
        seed=options.seed,
        score=options.score,
        work=options.work,
        gpu=options.gpu,
    )
    out = options.out or options.model.with_name(f"{options.model.stem}.pruned.h5")
    if out.suffix != ".h5":
        parser.error(f"--out is {out}; give a name that ends in .h5")
    return Command(options.model, out, config, options.json)


def _run(asked: Command) -> int:
    process.prune_file(
        asked.model, asked.out, asked.config, say=cli.say, finish=partial(_print_result, asked)
    )
    return 0


def _print_result(asked: Command, found: process.PruningResult) -> None:
    print_report(found.before.layers, found.layers)
    before, after = found.num_bytes
    print(f"file        {before:,} -> {after:,} bytes ({100 * after / before:.1f} %)")
    result = {"model": str(asked.model), "pruned": str(asked.out), "settings": found.settings,
              "sha256": found.sha256, "bytes": [before, after],
              "layers": [vars(row) for row in report(found.layers)]}  # fmt: skip
    if found.test:
        result["scores"] = _score(asked, found)
    if asked.json is not None:
        write_json(asked.json, result | run_info())
    print(f"written     {asked.out}")


def print_report(before: Sequence[LayerSpec], after: Sequence[LayerSpec]) -> None:
    """Prints channels, parameters and operations per layer, before and after."""
    old, new = report(before), report(after)
    print(
        f"\n{'layer':<18}{'channels':>11}{'now':>11}{'zero':>11}{'%':>7}{'weights':>12}{'left':>12}"
    )
    for one, other in zip(old, new, strict=True):
        share = 100 * other.pruned / other.channels
        print(
            f"{one.name:<18}{one.channels:>11,}{other.channels:>11,}{other.pruned:>11,}"
            f"{share:>7.1f}{one.weights:>12,}{other.weights_left:>12,}"
        )
    channels, pruned = (sum(getattr(r, key) for r in new) for key in ("channels", "pruned"))
    weights, left = sum(row.weights for row in old), sum(row.weights_left for row in new)
    print(
        f"{'all':<18}{sum(row.channels for row in old):>11,}{channels:>11,}{pruned:>11,}"
        f"{100 * pruned / channels:>7.1f}{weights:>12,}{left:>12,}"
    )
    flop, flop_left = (
        2 * sum(count * row.times for count, row in counted)
        for counted in (((r.weights, r) for r in old), ((r.weights_left, r) for r in new))
    )
    unit = "per frame" if works_on_spectra(after) else "per sample"
    print(f"\noperations  {flop:,} -> {flop_left:,} FLOP {unit} (zero kernels skipped)")


def _score(asked: Command, found: process.PruningResult) -> list[dict[str, Any]]:
    points = [Point("before", asked.model), Point("after", asked.out)]
    num_jobs = asked.config.train_on.num_jobs
    table = sweep.sweep(points, found.test, found.work / "scores", num_jobs=num_jobs)
    print("\n" + sweep.format_points(table))
    return json_ready(table)


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    check_data_options(parser, options)
    if options.keep is not None and options.target_sparsity is not None:
        parser.error("--keep X is --target-sparsity 1 - X: give one of them")
    has_share = options.keep is not None or options.target_sparsity is not None
    if has_share and options.remove_filters is not None:
        parser.error("--target-sparsity and --remove-filters are two ways: give one of them")
    if options.criterion != "sparsity" and not has_share:
        parser.error("--criterion goes with --target-sparsity; theta is the paper's criterion")
    if options.per_layer and not has_share:
        parser.error("--per-layer goes with --target-sparsity; theta is one for all layers")
    if options.init is not None:
        parser.error("--init has no meaning here: MODEL is where it starts")


def _share_or_theta(text: str) -> float | str:
    return text if text == BY_THETA else float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pruning.run",
        description="Set redundant channels of a model to zero, or remove filters, and retrain if "
        "there are data. The same command goes on after an interruption.",
        **cli.examples(
            "python -m pruning.run models/fcn.h5 --theta 0.65",
            "python -m pruning.run models/fcn.h5 --target-sparsity 0.22 --retrain -o p22.h5",
            "python -m pruning.run models/fcn.h5 --remove-filters 0.5 --retrain -o half.h5",
            note="Retraining goes on with the loss that the model was trained with, at a learning "
            f"rate of {RETRAIN_LEARNING_RATE:g}, unless options say otherwise.",
        ),
    )
    parser.add_argument("model", type=Path, metavar="MODEL.h5", help="prune this model file")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE",
        help="write this file (default: MODEL.pruned.h5 beside the model)")  # fmt: skip
    add = parser.add_argument_group("what to prune").add_argument
    add("--theta", type=float, default=THETA, metavar="T",
        help="prune channels above this sparsity, S_j(k) (default %(default)s)")  # fmt: skip
    add("--target-sparsity", type=float, metavar="X", help="prune this share of channels, as 0.22")
    add("--keep", type=float, metavar="X", help="keep this share of channels, as 0.78")
    add("--per-layer", action="store_true", help="prune the share in each layer by itself")
    add("--criterion", choices=CRITERIA, default=CRITERIA[0],
        help="rank channels by this (with --target-sparsity; default: the paper's "
        "sparsity)")  # fmt: skip
    add("--prune-last", action="store_true", help="prune the last layer as well")
    add("--remove-filters", type=_share_or_theta, metavar="X",
        help="take this share of the filters of every layer out of the file; 'theta' takes out a "
        "filter if more than half of the channels that it reads, or that read it, are "
        "redundant")  # fmt: skip
    add = parser.add_argument_group("retraining").add_argument
    add("--retrain", action="store_true",
        help="retrain, on the bundled corpus unless data options are given, which imply "
        "it")  # fmt: skip
    add("--stages", type=positive_number, default=NUM_STAGES, metavar="N",
        help="prune and retrain N times (default %(default)s)")  # fmt: skip
    add("--final-epochs", type=natural_number, metavar="N",
        help="then train for N epochs with pruned channels held at zero (default: as two "
        "stages)")  # fmt: skip
    add("--work", type=Path, metavar="DIR",
        help="keep checkpoints in this folder (default runs/pruning/OUT-...)")  # fmt: skip
    add_data_options(parser)
    add_training_options(parser, epochs_flag="--retrain-epochs")
    add = parser.add_argument_group("run").add_argument
    add("--gpu", **cli.GPUS)
    add("--score", action=argparse.BooleanOptionalAction,
        help="score by PESQ and STOI before and after, on the test data given or the bundled ones; "
        "retraining implies it")  # fmt: skip
    add("--jobs", **cli.JOBS)
    add("--json", **cli.JSON)
    return parser


if __name__ == "__main__":
    sys.exit(main())
