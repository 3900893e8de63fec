"""Computes how much memory a network needs for a signal, before it runs.

A file of 3 KB may hold a layer of 65,536 channels, which come to 12 GB for three seconds of sound.
The bound on the values per frame (``speech.modelfile.exam.MAX_VALUES``) accepts such a layer; it is
the length of the signal that counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from speech.modelfile.exam import shapes_for
from speech.modelfile.spec import LayerSpec, is_chain, linked

#: Bytes that the tensors of a network may take at a time, on any engine.
MAX_BYTES = 480 << 20


def keras_bytes(layers: Iterable[LayerSpec], num_frames: int) -> int:
    """Returns about how many bytes the tensors of one signal take in Keras.

    Args:
        layers: A network that passed the exam of ``speech.modelfile``.
        num_frames: Length of the signal: frames or samples; 1 for a network without time.

    Returns:
        Of a chain, the largest pair of a layer's input and output; else of all outputs. A
        convolution holds its input once more, padded, if it pads it far.
    """
    layers = linked(layers)
    shapes = shapes_for(layers, num_frames)
    counts = [math.prod(shape) for shape in shapes.values()]
    padded = max((_padded(layer, shapes[layer.inputs[0]]) for layer in layers[1:]), default=0)
    pairs = [sum(pair) for pair in zip(counts, counts[1:], strict=False)]
    return 4 * (padded + (max(pairs, default=0) if is_chain(layers) else sum(counts)))


def _padded(layer: LayerSpec, shape: tuple[int, ...]) -> int:
    """Returns the values of a convolution's input of a shape with what it pads; 0 if little."""
    if layer.config.get("padding") != "same" or "kernel_size" not in layer.config:
        return 0
    *axes, channels = shape
    sizes, dilations = (
        [value] if isinstance(value, int) else value
        for value in (layer.config["kernel_size"], layer.config.get("dilation_rate", [1, 1]))
    )
    spans = [
        axis + dilation * (size - 1)
        for axis, size, dilation in zip(axes, sizes, dilations, strict=False)
    ]
    padded = math.prod(spans) * channels
    return padded if padded > 2 * math.prod(shape) else 0


def too_large(num_bytes: int, what: str) -> str:
    """Returns what to say of a network that does not fit.

    Args:
        num_bytes: What it would take.
        what: For what signal, such as '4 s of sound'.
    """
    return (
        f"the layers take {num_bytes:,} bytes of memory for {what}, expected at most "
        f"{MAX_BYTES:,}; use a network with fewer channels"
    )


def lane_bytes(num_samples: int, most_channels: int, hop: int, width: int, threads: int) -> int:
    """Returns the bytes of working memory of ``speech.net.inference.InferenceNetwork``.

    Args:
        num_samples: Length of the signal.
        most_channels: Of its widest layer.
        hop: New samples of a block.
        width: Blocks side by side in a register.
        threads: Each has a block of all channels in work.
    """
    chunk = 2 * width * hop
    chunks = math.ceil(num_samples / chunk)
    return 4 * most_channels * (chunks * (chunk + 4 * hop + 2) + 2 * threads * chunk)
