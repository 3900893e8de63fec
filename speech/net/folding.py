"""Folds batch normalisation into the layers before it, for packing and for use.

With fixed statistics a BatchNormalization is a gain and an offset per channel. Behind a layer with
a kernel both can move into its kernel and bias (Jacob et al. 2018, section 3.2)::

    scale = gamma / sqrt(moving_variance + epsilon)
    kernel' = kernel scale             bias' = (bias - moving_mean) scale + beta

The folded network computes the same but for rounding, holds fewer weights and has fewer layers. It
can't be trained on as before: the statistics are gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from speech.modelfile.spec import LayerSpec, linked

#: Layers that can take in a normalisation, and the axis of the kernel that holds their outputs.
_OUTPUT_AXIS = {"Conv1D": -1, "Conv2D": -1, "Conv2DTranspose": -2, "Dense": -1}


def fold_batch_normalization(layers: Iterable[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Folds each BatchNormalization into the convolution or Dense layer before it.

    A normalisation stays as it is if it reads another kind of layer, if that layer applies an
    activation of its own, if another layer reads that layer as well, or if the new weights would
    not be finite (a negative variance).

    Args:
        layers: A network with weights, a chain or a graph, in the order of computation.

    Returns:
        The network with all inputs named; the arithmetic is done in float64 and rounded once.

    Raises:
        ModelFileError: A layer of a graph names no inputs.
    """
    layers = linked(layers)
    readers = Counter(name for layer in layers for name in layer.inputs)
    found: dict[str, LayerSpec] = {}
    renamed: dict[str, str] = {}  # normalisations that are gone, and who took them in
    for layer in layers:
        layer = replace(layer, inputs=tuple(renamed.get(name, name) for name in layer.inputs))
        if layer.class_name == "BatchNormalization":
            (source,) = layer.inputs
            folded = _fold(found[source], layer) if readers[source] == 1 else None
            if folded is not None:
                found[source] = folded
                renamed[layer.name] = source
                readers[source] = readers[layer.name]
                continue
        found[layer.name] = layer
    return tuple(found.values())


def _fold(layer: LayerSpec, normalization: LayerSpec) -> LayerSpec | None:
    """Returns a layer with the normalisation folded into its weights, None if that can't be."""
    axis = _OUTPUT_AXIS.get(layer.class_name)
    if axis is None or layer.config["activation"] != "linear":
        return None
    weights = {name: array.astype(np.float64) for name, array in normalization.weights.items()}
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scale = weights.get("gamma", 1.0) / np.sqrt(
            weights["moving_variance"] + normalization.config["epsilon"]
        )
        bias = layer.weights.get("bias", 0.0) - weights["moving_mean"]
        kernel = layer.weights["kernel"] * (scale if axis == -1 else scale[:, np.newaxis])
        new = {
            "kernel": kernel.astype(np.float32),
            "bias": (bias * scale + weights.get("beta", 0.0)).astype(np.float32),
        }
    if not all(np.isfinite(array).all() for array in new.values()):
        return None
    return replace(layer, config={**layer.config, "use_bias": True}, weights=new)
