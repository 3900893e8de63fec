"""Statistics of BatchNormalization for weights that no training step has seen: averaged ones.

The moving statistics of a network belong to the weights that it had while they were gathered. The
average of the weights over many steps is another network: what its layers give is distributed in
another way, so it needs statistics of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from speech.base.lazy import keras, torch
from speech.data.pipeline import Batch


def has_statistics(network: keras.Model) -> bool:
    """Returns whether a network normalises by statistics of its training data."""
    return bool(_normalizations(network))


def reestimate(model: keras.Model, batches: Iterable[Batch]) -> None:
    """Replaces the moving statistics of a network by the statistics of some batches.

    The network runs in training mode, so that each layer sees what the layers before it give when
    they are normalised by the batch. Mean and variance are taken over all values of all batches
    together, and each batch has the same weight.

    Args:
        model: A training model with ``network`` and ``network_inputs``, such as
            ``speech.net.training_model.MaskTrainingModel``.
        batches: At least one.
    """
    layers = _normalizations(model.network)
    momenta = [layer.momentum for layer in layers]
    sums: list[Any] = [0.0] * (2 * len(layers))
    count = 0
    try:
        for layer in layers:
            layer.momentum = 0.0  # so that the moving statistics equal those of the last batch
        for batch in batches:
            count += 1
            with _without_gradients():
                model.network(model.network_inputs(batch.noisy), training=True)
            for place, layer in enumerate(layers):
                mean, variance = (
                    np.asarray(variable.numpy(), np.float64)
                    for variable in (layer.moving_mean, layer.moving_variance)
                )
                sums[2 * place] += mean
                sums[2 * place + 1] += variance + np.square(mean)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    for place, layer in enumerate(layers):
        mean, square = sums[2 * place] / count, sums[2 * place + 1] / count
        layer.moving_mean.assign(np.float32(mean))
        layer.moving_variance.assign(np.float32(square - np.square(mean)))


def _normalizations(network: keras.Model) -> list[Any]:
    return [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]


@contextlib.contextmanager
def _without_gradients() -> Iterator[None]:
    if keras.backend.backend() == "torch":
        with torch.no_grad():
            yield
    else:
        yield
