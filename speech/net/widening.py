"""A wider network that computes what a narrower one does, to train on from there.

After Net2Net (Chen, Goodfellow and Shlens 2016, section 3.1): each new channel, or band, is a copy
of an old one, and what reads it shares its weights out among the copies, so that their sum stays.
There the copies get equal shares, and noise tells them apart. Here the shares are random, each
weight for itself: the output is the same but for rounding, and no two copies have one gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from speech.base.lazy import keras
from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency

#: Axes of a kernel, by class of layer: what it reads, and what it writes.
_AXES = {"Conv2D": (-2, -1), "Dense": (-2, -1), "Conv2DTranspose": (-1, -2)}


def widened(narrow: keras.Model, form: TimeFrequencyConfig, seed: int = 0) -> keras.Model:
    """Returns a wider network over time and frequency that computes what a narrow one does.

    Args:
        narrow: A network of `speech.net.timefrequency.build_time_frequency`.
        form: The same layers with more channels, or bands; normalisation is that of the narrow one.
        seed: Of the shares.

    Raises:
        ValueError: The layers differ in more than this, or the form has fewer.
    """
    own = {layer.name: layer for layer in narrow.layers if layer.weights}
    form = replace(form, normalization="batch" if any("norm" in name for name in own) else "none")
    wide, rng = build_time_frequency(form), np.random.default_rng(seed)
    layers = [layer for layer in wide.layers if layer.weights]
    if own.keys() != {layer.name for layer in layers}:
        raise ValueError(
            "--size widens a network of the same layers, and this one has "
            f"{', '.join(sorted(own.keys() ^ {layer.name for layer in layers})[:3])} ..."
        )
    for layer in layers:
        for old, new in zip(own[layer.name].weights, layer.weights, strict=True):
            new.assign(_widened(np.asarray(old), tuple(new.shape), type(layer).__name__, rng))
    return wide


def _widened(values: np.ndarray, shape: tuple[int, ...], kind: str, rng: Any) -> np.ndarray:
    """Returns weights of another shape: float32 ``shape``."""
    if values.ndim != len(shape) or any(a > b for a, b in zip(values.shape, shape, strict=True)):
        raise ValueError(f"weights of the shape {values.shape} can't be widened to {shape}")
    reads, writes = (0, -1) if values.ndim == 1 else _AXES[kind]
    for axis in (writes,) if values.ndim == 1 else (writes, reads):
        old, size = values.shape[axis], shape[axis]
        values = np.take(values, np.arange(size) % old, axis=axis)
        if axis != reads or size == old:
            continue
        values = np.moveaxis(values, axis, 0)
        shares = rng.uniform(0, 1, values.shape)
        for channel in range(old):
            shares[channel::old] /= shares[channel::old].sum(axis=0)
        values = np.moveaxis(values * shares, 0, axis)
    if values.shape != shape:
        raise ValueError(f"weights of the shape {values.shape} can't be widened to {shape}")
    return values.astype(np.float32)
