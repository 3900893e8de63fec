"""Prunes a model file, with or without retraining: what ``python -m pruning.run`` does.

::

    result = prune_file("fcn.h5", "pruned.h5", PruningConfig(target_sparsity=0.22))
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pruning import surgery
from pruning.config import BY_THETA, RETRAIN_LEARNING_RATE, PruningConfig
from pruning.schedule import Choice, Layers, Retraining, fine_tune, num_pruned, soft_prune
from pruning.sparsity import (
    apply_masks,
    kept_channels,
    masks_for_share,
    masks_for_theta,
    masks_of_zeros,
    masks_to_json,
    theta_of,
)
from speech.base.device import select_devices
from speech.base.files import held, sha256_of
from speech.data.corpus import Pair
from speech.modelfile.h5 import write_model_file
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import ModelFile
from speech.net.taps import has_kernel, taps_of
from speech.training.continuing import check_trains, continuation
from speech.training.datasets import load_data

Say = Callable[[str], None]


@dataclass(frozen=True)
class PruningResult:
    """The result of a pruning.

    Attributes:
        before: The model as it was.
        layers: The pruned network.
        settings: How it was pruned, as the meta data of the file say.
        path: The file that was written.
        sha256: SHA-256 of that file.
        num_bytes: Bytes of the file before and after.
        test: ``speech.data.corpus.Pair`` objects to score on; [] for none.
        work: Folder of checkpoints.
    """

    before: ModelFile
    layers: Layers
    settings: dict[str, Any]
    path: Path
    sha256: str
    num_bytes: tuple[int, int]
    test: list[Pair]
    work: Path


def prune_file(
    path: str | os.PathLike,
    out: str | os.PathLike,
    config: PruningConfig,
    *,
    say: Say = lambda line: None,
    finish: Callable[[PruningResult], None] = lambda result: None,
) -> PruningResult:
    """Prunes a model file; the same call resumes a retraining that was interrupted.

    Args:
        path: The model.
        out: The file to write, .h5.
        config: Settings of the pruning.
        say: Called with lines for people, as work goes on.
        finish: Called with the result before another run may use its folder, such as to score it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused, a value makes no sense, no data are found, or ``out`` is
            the model itself.
    """
    out = Path(out)
    file = read_model_file(path)
    if out.resolve() == file.path.resolve():
        raise ValueError(f"{out}: would overwrite the model; choose another -o")
    if not any(has_kernel(layer) for layer in file.layers):
        raise ValueError(f"{path}: has no convolution or matrix to prune")
    _tell_what_it_was(file, say)
    work = config.work or Path("runs") / "pruning" / f"{out.stem}-{file.sha256[:8]}"
    retraining, test = None, []
    with held(work) if config.retrain or config.score else contextlib.nullcontext():
        if config.retrain:
            check_trains(file)
            select_devices(config.gpu, several=True)
            retraining = _retraining(file, config, work, say)
            test = retraining.how.test if config.score is not False else []
        else:
            say(
                "one-shot    no data given: nothing is retrained "
                "(--retrain uses the bundled corpus)"
            )
            if config.score:
                asked = config.train_on
                test = load_data(asked.data, work / "test", num_jobs=asked.num_jobs).test
        prune = _prune_channels if config.remove_filters is None else _remove_filters
        layers, settings = prune(file.layers, config, retraining, say)
        masks = masks_to_json(masks_of_zeros(layers))
        meta = {
            **file.meta,
            "created_by": "python -m pruning.run",
            "pruning": {**settings, "from_sha256": file.sha256, "masks": masks},
        }
        write_model_file(out, layers, meta)
        num_bytes = file.path.stat().st_size, out.stat().st_size
        result = PruningResult(file, layers, settings, out, sha256_of(out), num_bytes, test, work)
        finish(result)
    return result


def _tell_what_it_was(file: ModelFile, say: Say) -> None:
    """Tells people when a model comes pruned or clustered: both are taken as they are."""
    zeros = num_pruned(file.layers)
    if zeros:
        say(f"note        the model comes with {zeros:,} channels at zero; they count as pruned")
    recurrent = [layer.name for layer in file.layers if len(layer.kernels) > 1]
    if recurrent:
        say(f"note        recurrent layers stay as they are: {', '.join(recurrent)}")
    if "quantization" in file.meta:
        say("note        the model is clustered; retraining undoes that, quantize it again")


def _retraining(file: ModelFile, config: PruningConfig, work: Path, say: Say) -> Retraining:
    asked = config.train_on
    asked = replace(asked, settings={**asked.settings, "epochs": config.num_epochs[0]})
    how = continuation(file, asked, RETRAIN_LEARNING_RATE, work / "test")
    say(f"data        {how.description}")

    def on_epoch(label: str, row: dict[str, float]) -> None:
        say(
            f"{label:<11} epoch {row['epoch']}  training {row['training_loss']:.5f}  "
            f"validation {row['validation_loss']:.5f}  {row['seconds']:.1f} s"
        )

    return Retraining(how, work, on_epoch)


def _prune_channels(
    layers: Layers, config: PruningConfig, retraining: Retraining | None, say: Say
) -> tuple[Layers, dict[str, Any]]:
    choose = _choice(config)
    share = config.target_sparsity
    masks = choose(layers)  # fails before any training, if it fails
    theta = config.theta if share is None else None
    if retraining is not None:  # each stage of a target has a theta of its own
        pruned = soft_prune(layers, [choose] * config.stages, retraining, config.num_epochs[1])
    else:
        pruned = apply_masks(layers, masks)
        if share is not None:
            theta = theta_of(layers, masks)
            say(f"theta       {theta:.4f} gives {100 * share:.1f} %")
    return pruned, {
        "method": "channels" if retraining is None else "channels, soft",
        "criterion": config.criterion,
        "theta": theta,
        "target_sparsity": share,
        "stages": config.num_stages,
    }


def _choice(config: PruningConfig) -> Choice:
    share, keep_last = config.target_sparsity, not config.prune_last
    if share is None:
        return lambda layers: masks_for_theta(layers, config.theta, keep_last=keep_last)
    return lambda layers: masks_for_share(
        layers,
        share,
        criterion=config.criterion,
        per_layer=config.per_layer,
        keep_last=keep_last,
        seed=config.seed,
    )


def _remove_filters(
    layers: Layers, config: PruningConfig, retraining: Retraining | None, say: Say
) -> tuple[Layers, dict[str, Any]]:
    """Takes filters out at once, or in stages with retraining in between."""
    theta, share = config.theta, config.remove_filters
    if share != BY_THETA and not (isinstance(share, int | float) and 0 <= share < 1):
        raise ValueError(f"the share of filters to remove is {share}; give 0 to less than 1")
    exact = surgery.remove_filters(layers, surgery.removable_filters(layers))
    free = sum(map(len, exact.removed.values()))
    if free:
        bound = max(exact.border_bound.values(), default=0.0)
        say(f"exact       {free} filters change nothing (at the ends at most {bound:.3g})")
    stages = config.num_stages or 1
    widths = surgery.widths(layers)
    for stage in range(1, stages + 1):
        if isinstance(share, str):
            chosen = surgery.filters_for_theta(layers, theta)
        else:
            left = 1 - share * stage / stages
            goal = {name: round(width * left) for name, width in widths.items()}
            chosen = surgery.choose_down_to(layers, goal, theta)
        layers = surgery.remove_filters(layers, chosen).layers
        if retraining is not None and stage < stages:
            layers = retraining.run(f"filters-{stage}", layers, None, stage)
    masks = {layer.name: kept_channels(taps_of(layer)) for layer in surgery.kernel_layers(layers)}
    if retraining is not None:
        layers = fine_tune(layers, masks, retraining, config.num_epochs[1], stages)
    return layers, {"method": "filters", "share": share, "theta": theta, "stages": stages}
