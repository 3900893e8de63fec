"""The paper's experts: Dense networks that give a soft mask of the centre frame (MNN, section 4.2).

    512x2    3 frames (1539) -> 512 -> 512 -> 513     experiment 1
    2048x2   3 frames (1539) -> 2048 -> 2048 -> 513   experiments 2 and 3
    lstm     1 frame (513) -> LSTM of 256 units -> 513   the paper's future work, in our size

Modified ReLU inside, the logistic function at the end; trained like the autoencoders (section
4.1), dropout included, towards |s| / |s + n|. An expert differs from another by its data alone: see
`mnn.conditions`. The estimate is the mask times the mixture's spectrum, so it has the phase of the
mixture.
"""

from __future__ import annotations

import numpy as np

from mnn.dae import KEEP, build_dense
from mnn.features import Conventions
from speech.base.lazy import keras

#: Hidden units of the paper's two networks (sections 4.2 to 4.4).
NETS: dict[str, tuple[int, ...]] = {"512x2": (512, 512), "2048x2": (2048, 2048)}

#: Units of recurrent networks.
LSTM_NETS = {"lstm": 256}


def build_expert(net: str = "512x2", *, seed: int = 0) -> tuple[keras.Model, Conventions]:
    """Builds a mask network with fresh weights.

    Args:
        net: Key of `NETS` or `LSTM_NETS`.
        seed: Of weights and dropout.

    Returns:
        A Sequential model [batch, 1539] -> [batch, 513] of values from 0 to 1, and what it takes. A
        recurrent one is [batch, frames, 513] -> [batch, frames, 513].
    """
    if net in LSTM_NETS:
        conventions = Conventions(1)
        return _build_lstm(f"expert_{net}", conventions, LSTM_NETS[net], seed), conventions
    if net not in NETS:
        raise ValueError(f"net is {net!r}; an expert is one of {', '.join((*NETS, *LSTM_NETS))}")
    conventions = Conventions(3)
    return build_dense(f"expert_{net}", conventions, NETS[net], "sigmoid", seed), conventions


def _build_lstm(name: str, conventions: Conventions, units: int, seed: int) -> keras.Model:
    """Builds an LSTM and a Dense layer, with dropout in front of each."""
    seeds = (int(s) for s in np.random.SeedSequence(seed).generate_state(5))
    start, turn, end = (
        keras.initializers.GlorotUniform(next(seeds)),
        keras.initializers.Orthogonal(seed=next(seeds)),
        keras.initializers.GlorotUniform(next(seeds)),
    )
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((None, conventions.num_inputs), name="input"),
            layers.Dropout(1 - KEEP, seed=next(seeds), name="dropout1"),
            layers.LSTM(
                units,
                return_sequences=True,
                kernel_initializer=start,
                recurrent_initializer=turn,
                name="lstm1",
            ),
            layers.Dropout(1 - KEEP, seed=next(seeds), name="dropout2"),
            layers.Dense(
                conventions.stft.num_bins, "sigmoid", kernel_initializer=end, name="output"
            ),
        ],
        name=name,
    )
