"""The autoencoder of clean speech that judges the experts: a dropout-based DAE (MNN, 3.1, 4.1).

It learns to give back the magnitudes of clean speech (eqs. 5 to 7) while dropout turns off a fifth
of its inputs and of its hidden units. Sounds other than speech are given back badly.

    DAE_128      3 frames (1539) -> 128 -> 513, the centre frame
    DAE_2048x2   1 frame (513) -> 2048 -> 2048 -> 513

Where the paper leaves a choice, we decided as follows. The output has the modified ReLU as well:
magnitudes are not negative, and Liu et al. 2014, which the paper cites, do so. Weights start
Glorot-uniform. The values that dropout keeps are scaled by 1 / keep in training, so that nothing
needs to be scaled afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mnn.features import Conventions
from mnn.layers import load_network
from speech.base import lazy
from speech.base.lazy import keras

if TYPE_CHECKING:
    from speech.net import layers as own_layers
else:
    own_layers = lazy.module("speech.net.layers")

#: Hidden units and frames of context of the paper's two networks (section 4.1).
NETS: dict[str, tuple[tuple[int, ...], int]] = {"128": ((128,), 3), "2048x2": ((2048, 2048), 1)}

KEEP = 0.8


def build_dae(net: str = "128", *, seed: int = 0) -> tuple[keras.Model, Conventions]:
    """Builds an autoencoder with fresh weights.

    Args:
        net: Key of `NETS`.
        seed: Of weights and dropout.

    Returns:
        A Sequential model [batch, context * 513] -> [batch, 513], and what it takes.
    """
    hidden, context = _settings(net)
    conventions = Conventions(context)
    return build_dense(f"dae_{net}", conventions, hidden, "modified_relu", seed), conventions


def build_dense(
    name: str, conventions: Conventions, hidden: Sequence[int], output: str, seed: int
) -> keras.Model:
    """Builds a Dense network with modified ReLUs, dropout on inputs and on hidden units.

    Args:
        name: Of the model.
        conventions: What goes in; a frame of as many bins comes out.
        hidden: Units of each hidden layer.
        output: 'modified_relu' or an activation of Keras.
        seed: Of weights and dropout.
    """
    # A seed each: layers of one shape would otherwise start alike and drop alike.
    seeds = (int(s) for s in np.random.SeedSequence(seed).generate_state(2 * len(hidden) + 2))

    def dense(units: int, name: str, activation: str = "linear") -> keras.layers.Layer:
        start = keras.initializers.GlorotUniform(seed=next(seeds))
        return keras.layers.Dense(units, activation, kernel_initializer=start, name=name)

    layers = [keras.Input((conventions.num_inputs,), name="input")]
    for index, units in enumerate(hidden, start=1):
        layers += [
            keras.layers.Dropout(1 - KEEP, seed=next(seeds), name=f"dropout{index}"),
            dense(units, f"dense{index}"),
            own_layers.ModifiedReLU(name=f"act{index}"),
        ]
    layers.append(
        keras.layers.Dropout(1 - KEEP, seed=next(seeds), name=f"dropout{len(hidden) + 1}")
    )
    if output == "modified_relu":
        layers += [
            dense(conventions.stft.num_bins, "dense_out"),
            own_layers.ModifiedReLU(name="output"),
        ]
    else:
        layers.append(dense(conventions.stft.num_bins, "output", output))
    return keras.Sequential(layers, name=name)


class Autoencoder:
    """A trained autoencoder, run by NumPy.

    Args:
        path: An .h5 model file, possibly from a stranger.

    Attributes:
        file: The model file as it was read.
        conventions: What it takes.

    Raises:
        ValueError: The file is refused or is no autoencoder (see `mnn.layers.load_network`).
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.file, self.conventions, self._network = load_network(path, "autoencoder")

    def reconstruct(self, frames: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Returns what the autoencoder makes of the magnitudes of a signal.

        Args:
            frames: float32 [num_frames, num_bins], from `mnn.features.scaled_magnitudes`.
            rng: Draws the masks of eq. (7), the input's included; None for no dropout.

        Returns:
            float32 [num_frames, num_bins], in the same scale.
        """
        return self._network.over_frames(frames, self.conventions.context, rng)


def _settings(net: str) -> tuple[tuple[int, ...], int]:
    if net not in NETS:
        raise ValueError(f"net is {net!r}; a DAE is one of {', '.join(NETS)}")
    return NETS[net]
