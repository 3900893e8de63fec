"""Soft pruning: prune, retrain, and again, until what was pruned stays away (docs/papers.md).

In every stage the redundant channels are set to zero and the network is retrained, in which they
may grow back. After the last stage they are pruned once more and held at zero while a final
fine-tuning runs. Each stage is a run of ``speech.training.Trainer`` in a folder of its own: the
same command finds the finished ones, takes up the one that was interrupted, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pruning.sparsity import Masks, apply_masks, report
from speech.base import lazy
from speech.base.lazy import keras
from speech.modelfile.spec import LayerSpec, sha256_of_weights
from speech.net.keras_models import build_model, layers_of
from speech.net.taps import for_kernel
from speech.training.continuing import Continuation
from speech.training.trainer import Trainer

if TYPE_CHECKING:
    from speech.net import constraints
else:
    constraints = lazy.module("speech.net.constraints")

#: (layers) -> masks: which channels to prune now.
Choice = Callable[[Sequence[LayerSpec]], Masks]
Layers = tuple[LayerSpec, ...]


@dataclass(frozen=True)
class Retraining:
    """The retraining of a network after channels or filters were taken from it.

    Attributes:
        how: Data and settings of a stage; the ``epochs`` of its config are per stage.
        out: Folder of all stages.
        on_epoch: Called with the label of the stage and the row of each finished epoch.
    """

    how: Continuation
    out: Path
    on_epoch: Callable[[str, dict[str, float]], None] = lambda label, row: None

    def run(
        self, label: str, layers: Layers, masks: Masks | None, stage: int, **changes: Any
    ) -> Layers:
        """Trains on, from wherever the folder of this stage stands.

        Args:
            label: Name of the stage and of its folder.
            layers: The network as it enters the stage.
            masks: Channels to hold at zero; None to let them grow.
            stage: Number of the stage: each draws its own mixtures and crops.
            changes: Settings of the config that are others in this stage.

        Returns:
            The network with the smallest validation error.
        """
        network = build_model(layers)
        if masks is not None:
            hold_at_zero(network, masks)
        start = sha256_of_weights(layers)  # another start is another run
        seed = self.how.config.seed + stage
        config = replace(self.how.config, seed=seed, init=start, **changes)
        trainer = Trainer(
            network,
            self.how.training.with_seed(seed),
            self.how.validation,
            config,
            self.out / label,
            make_model=self.how.make_model,
            meta={**self.how.meta, "created_by": f"pruning, {label}"},
        )
        trainer.run(lambda row: self.on_epoch(label, row))
        return layers_of(network)


def hold_at_zero(network: keras.Model, masks: Mapping[str, np.ndarray]) -> None:
    """Lets the optimizer put the pruned channels back to zero after every step.

    Args:
        network: A Keras model.
        masks: Layer name -> bool [in, out], False where pruned.
    """
    for layer in network.layers:
        if layer.name in masks:
            mask = for_kernel(type(layer).__name__, masks[layer.name])
            layer.kernel.constraint = constraints.HeldZeros(mask)


def soft_prune(
    layers: Layers, choose: Sequence[Choice], retraining: Retraining, final_epochs: int
) -> Layers:
    """Prunes and retrains by turns.

    Args:
        layers: The network.
        choose: One choice of channels per stage; the last one is final.
        retraining: Data and settings.
        final_epochs: Epochs of fine-tuning with the pruned channels at zero, 0 for none; the
            learning rate falls to a hundredth over them.

    Returns:
        The pruned network; its pruned channels are zero.
    """
    for stage, choice in enumerate(choose, 1):
        layers = apply_masks(layers, choice(layers))
        layers = retraining.run(f"stage-{stage}", layers, None, stage)
    masks = choose[-1](layers)
    layers = apply_masks(layers, masks)
    return fine_tune(layers, masks, retraining, final_epochs, len(choose) + 1)


def fine_tune(
    layers: Layers, masks: Masks | None, retraining: Retraining, epochs: int, stage: int = 1
) -> Layers:
    """Trains a pruned network on, what is pruned held at zero, the learning rate falling."""
    if not epochs:
        return layers
    return retraining.run("final", layers, masks, stage, epochs=epochs, schedule="cosine")


def num_pruned(layers: Sequence[LayerSpec]) -> int:
    """Returns how many channels of a network are zero."""
    return sum(row.pruned for row in report(layers))
