"""The paper's experts: Dense networks that give a soft mask of the centre frame (MNN, section 4.2).

    512x2    3 frames (1539) -> 512 -> 512 -> 513     experiment 1
    2048x2   3 frames (1539) -> 2048 -> 2048 -> 513   experiments 2 and 3

Modified ReLU inside, the logistic function at the end; trained like the autoencoders (section
4.1), dropout included, towards |s| / |s + n|. An expert differs from another by its data alone: see
`mnn.conditions`. The estimate is the mask times the mixture's spectrum, so it has the phase of the
mixture.
"""

from __future__ import annotations

from mnn.dae import build_dense
from mnn.features import Conventions
from speech.base.lazy import keras

#: Hidden units of the paper's two networks (sections 4.2 to 4.4).
NETS: dict[str, tuple[int, ...]] = {"512x2": (512, 512), "2048x2": (2048, 2048)}


def build_expert(net: str = "512x2", *, seed: int = 0) -> tuple[keras.Model, Conventions]:
    """Builds a mask network with fresh weights.

    Args:
        net: Key of `NETS`.
        seed: Of weights and dropout.

    Returns:
        A Sequential model [batch, 1539] -> [batch, 513] of values from 0 to 1, and what it takes.
    """
    if net not in NETS:
        raise ValueError(f"net is {net!r}; an expert is one of {', '.join(NETS)}")
    conventions = Conventions(3)
    return build_dense(f"expert_{net}", conventions, NETS[net], "sigmoid", seed), conventions
