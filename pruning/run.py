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
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.base import cli
from speech.base.cli import natural_number, positive_number
from speech.training.common_options import (
    add_data_options,
    add_training_options,
    check_data_options,
)

if TYPE_CHECKING:
    from pruning.schedule import Choice, Layers, Retraining
    from speech.modelfile.spec import ModelFile

THETA = 0.65
BY_THETA = "theta"
NUM_STAGES = 7
RETRAIN_EPOCHS = 2
RETRAIN_LEARNING_RATE = 3e-4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = parse(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the checked options of the command; exits with code 2 if they make no sense."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check_usage(parser, options)
    return options


def _run(options: argparse.Namespace) -> int:
    from speech.base.files import held
    from speech.modelfile.read import read_model_file
    from speech.net.taps import has_kernel

    file = read_model_file(options.model)
    if options.out.resolve() == options.model.resolve():
        raise ValueError(f"{options.out}: would overwrite the model; choose another -o")
    if not any(has_kernel(layer) for layer in file.layers):
        raise ValueError(f"{options.model}: has no convolution or matrix to prune")
    _say_what_it_was(file)
    work = options.work or Path("runs") / "pruning" / f"{options.out.stem}-{file.sha256[:8]}"
    needs_work = options.retrain or options.score
    with held(work) if needs_work else contextlib.nullcontext():
        return _prune(file, work, options)


def _prune(file: ModelFile, work: Path, options: argparse.Namespace) -> int:
    from pruning.sparsity import masks_of_zeros, masks_to_json, report
    from speech.base.files import sha256_of
    from speech.modelfile.h5 import write_model_file

    retraining: Retraining | None = None
    test: list[Any] = []
    if options.retrain:
        from speech.base.device import select_devices
        from speech.training.continuing import check_trains

        check_trains(file)
        select_devices(options.gpu, several=True)
        retraining = _load_retraining(file, options, work)
        test = retraining.how.test
    else:
        print("one-shot    no data given: nothing is retrained (--retrain uses the bundled corpus)")
        if options.score:
            from speech.training.datasets import load_data

            test = load_data(options, work / "test").test
    prune = _remove_filters if options.remove_filters is not None else _prune_channels
    layers, settings = prune(file.layers, options, retraining)
    masks = masks_to_json(masks_of_zeros(layers))
    meta = {
        **file.meta,
        "created_by": "python -m pruning.run",
        "pruning": {**settings, "from_sha256": file.sha256, "masks": masks},
    }
    write_model_file(options.out, layers, meta)
    print_report(file.layers, layers, report)
    before, after = options.model.stat().st_size, options.out.stat().st_size
    print(f"file        {before:,} -> {after:,} bytes ({100 * after / before:.1f} %)")
    result = {"model": str(options.model), "pruned": str(options.out), "settings": settings,
              "sha256": sha256_of(options.out), "bytes": [before, after],
              "layers": [vars(row) for row in report(layers)]}  # fmt: skip
    if test and options.score is not False:
        result["scores"] = _score(options, test, work)
    if options.json is not None:
        from speech.base.files import write_json
        from speech.base.runinfo import run_info

        write_json(options.json, result | run_info())
    print(f"written     {options.out}")
    return 0


def _say_what_it_was(file: ModelFile) -> None:
    """Tells people when a model comes pruned or clustered: both are taken as they are."""
    from pruning.schedule import num_pruned

    zeros = num_pruned(file.layers)
    if zeros:
        print(f"note        the model comes with {zeros:,} channels at zero; they count as pruned")
    if "quantization" in file.meta:
        print("note        the model is clustered; retraining undoes that, quantize it again")


def _prune_channels(
    layers: Layers, options: argparse.Namespace, retraining: Retraining | None
) -> tuple[Layers, dict[str, Any]]:
    from pruning.schedule import soft_prune
    from pruning.sparsity import apply_masks, theta_of

    choose = _choice(options)
    masks = choose(layers)  # fails before any training, if it fails
    if retraining is None:
        theta = theta_of(layers, masks) if options.target_sparsity is not None else options.theta
        pruned = apply_masks(layers, masks)
    else:
        pruned = soft_prune(layers, [choose] * options.stages, retraining, options.final_epochs)
        # Each stage of a target has a theta of its own.
        theta = None if options.target_sparsity is not None else options.theta
    settings = {
        "method": "channels" if retraining is None else "channels, soft",
        "criterion": options.criterion,
        "theta": theta,
        "target_sparsity": options.target_sparsity,
        "stages": options.stages if retraining is not None else 0,
    }
    if options.target_sparsity is not None and retraining is None:
        print(f"theta       {theta:.4f} gives {100 * options.target_sparsity:.1f} %")
    return pruned, settings


def _choice(options: argparse.Namespace) -> Choice:
    from pruning.sparsity import masks_for_share, masks_for_theta

    keep_last = not options.prune_last
    if options.target_sparsity is None:
        return lambda layers: masks_for_theta(layers, options.theta, keep_last=keep_last)
    return lambda layers: masks_for_share(
        layers,
        options.target_sparsity,
        criterion=options.criterion,
        per_layer=options.per_layer,
        keep_last=keep_last,
        seed=options.seed,
    )


def _remove_filters(
    layers: Layers, options: argparse.Namespace, retraining: Retraining | None
) -> tuple[Layers, dict[str, Any]]:
    """Takes filters out at once, or in stages with retraining in between."""
    from pruning import surgery
    from pruning.schedule import fine_tune
    from pruning.sparsity import kept_channels
    from speech.net.taps import taps_of

    asked = options.remove_filters
    theta = options.theta
    if asked != BY_THETA and not 0 <= asked < 1:
        raise ValueError(f"the share of filters to remove is {asked:g}; give 0 to less than 1")
    exact = surgery.remove_filters(layers, surgery.removable_filters(layers))
    free = sum(map(len, exact.removed.values()))
    if free:
        bound = max(exact.border_bound.values(), default=0.0)
        print(f"exact       {free} filters change nothing (at the ends at most {bound:.3g})")
    stages = options.stages if retraining is not None else 1
    widths = surgery.widths(layers)
    for stage in range(1, stages + 1):
        if asked == BY_THETA:
            chosen = surgery.filters_for_theta(layers, theta)
        else:
            left = 1 - asked * stage / stages
            goal = {name: round(width * left) for name, width in widths.items()}
            chosen = surgery.choose_down_to(layers, goal, theta)
        layers = surgery.remove_filters(layers, chosen).layers
        if retraining is not None and stage < stages:
            layers = retraining.run(f"filters-{stage}", layers, None, stage)
    masks = {layer.name: kept_channels(taps_of(layer)) for layer in surgery.kernel_layers(layers)}
    if retraining is not None:
        layers = fine_tune(layers, masks, retraining, options.final_epochs, stages)
    return layers, {"method": "filters", "share": asked, "theta": theta, "stages": stages}


def print_report(before: Layers, after: Layers, report: Callable) -> None:
    """Prints channels, parameters and operations per layer, before and after."""
    from pruning.sparsity import works_on_spectra

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


def _load_retraining(file: ModelFile, options: argparse.Namespace, work: Path) -> Retraining:
    from pruning.schedule import Retraining
    from speech.training.continuing import continuation

    how = continuation(file, options, RETRAIN_LEARNING_RATE, work / "test")
    print(f"data        {how.description}")

    def on_epoch(label: str, row: dict[str, float]) -> None:
        print(
            f"{label:<11} epoch {row['epoch']}  training {row['training_loss']:.5f}  "
            f"validation {row['validation_loss']:.5f}  {row['seconds']:.1f} s",
            flush=True,
        )

    return Retraining(how, work, on_epoch)


def _score(options: argparse.Namespace, test: list[Any], work: Path) -> Any:
    from eval.points import Point
    from eval.scoring import json_ready
    from eval.sweep import format_points, sweep

    points = [Point("before", options.model), Point("after", options.out)]
    table = sweep(points, test, work / "scores", num_jobs=options.jobs)
    print("\n" + format_points(table))
    return json_ready(table)


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    check_data_options(parser, options)
    if options.keep is not None:
        if options.target_sparsity is not None:
            parser.error("--keep X is --target-sparsity 1 - X: give one of them")
        options.target_sparsity = 1 - options.keep
    if options.target_sparsity is not None and options.remove_filters is not None:
        parser.error("--target-sparsity and --remove-filters are two ways: give one of them")
    if options.criterion != "sparsity" and options.target_sparsity is None:
        parser.error("--criterion goes with --target-sparsity; theta is the paper's criterion")
    if options.per_layer and options.target_sparsity is None:
        parser.error("--per-layer goes with --target-sparsity; theta is one for all layers")
    if options.timit or options.train_noisy:
        options.retrain = True
    if options.init is not None:
        parser.error("--init has no meaning here: MODEL is where it starts")
    if options.final_epochs is None:
        options.final_epochs = 2 * options.epochs if options.epochs else 2 * RETRAIN_EPOCHS
    if options.epochs is None:
        options.epochs = RETRAIN_EPOCHS
    if options.out is None:
        options.out = options.model.with_name(f"{options.model.stem}.pruned.h5")
    if options.out.suffix != ".h5":
        parser.error(f"--out is {options.out}; give a name that ends in .h5")


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
    add("--criterion", choices=("sparsity", "magnitude", "random"), default="sparsity",
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
    add("--gpu", default="0", metavar="LIST",
        help="run on this GPU: 0 (default), several as 0,1, or -1 for the CPU")  # fmt: skip
    add("--score", action=argparse.BooleanOptionalAction,
        help="score by PESQ and STOI before and after, on the test data given or the bundled ones; "
        "retraining implies it")  # fmt: skip
    add("--jobs", **cli.JOBS)
    add("--json", **cli.JSON)
    return parser


if __name__ == "__main__":
    sys.exit(main())
