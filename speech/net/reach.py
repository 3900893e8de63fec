"""Computes a network's reach: how many earlier and later frames a frame of the output depends on.

It follows from the layers alone. A convolution over time of k taps and dilation d spans (k - 1) d
frames more; padding shifts them; where branches meet, the widest span counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from speech.modelfile.meta import MaskConventions
from speech.modelfile.spec import (
    COMPLEX_MASK,
    LayerSpec,
    ModelFile,
    ModelFileError,
    linked,
    refusals,
)
from speech.net.folding import fold_batch_normalization

#: Layers that join frames one by one, whatever else they do.
_FRAME_BY_FRAME = frozenset(
    ["InputLayer", "Dense", "Permute", "Add", "Concatenate", "BatchNormalization", "LeakyReLU"]
    + ["ReLU", "Activation", "Dropout", "icse>ModifiedReLU"]
)


@dataclasses.dataclass(frozen=True)
class Reach:
    """The number of other frames of the input that a frame of the output depends on.

    Attributes:
        behind: Frames before it.
        ahead: Frames after it; 0 for a causal network.
    """

    behind: int
    ahead: int


def reach_of(layers: Iterable[LayerSpec]) -> Reach:
    """Returns the reach of a network over axis 1, the time.

    Args:
        layers: Layers that passed the exam of ``speech.modelfile``, in order.

    Raises:
        ModelFileError: There is none: a layer takes its statistics over the time, or moves it to
            another axis.
    """
    spans: dict[str, tuple[int, int]] = {}  # first and last frame, relative to the output's
    low = high = 0
    for layer in linked(layers):
        inputs = [spans[name] for name in layer.inputs] or [(0, 0)]
        before, after = _span(layer)
        low = min(own for own, _ in inputs) + before
        high = max(own for _, own in inputs) + after
        spans[layer.name] = low, high
    return Reach(max(-low, 0), max(high, 0))


def causal_reach(layers: Iterable[LayerSpec]) -> int:
    """Returns how many frames before it a frame of a causal network's output depends on.

    Args:
        layers: As for `reach_of`.

    Raises:
        ModelFileError: The network reads later frames, or has no reach.
    """
    reach = reach_of(layers)
    if reach.ahead:
        raise ModelFileError(
            f"the {COMPLEX_MASK!r} network reads {reach.ahead:,} frames ahead, expected a "
            "causal one: pad in front (ZeroPadding2D), with padding 'valid' over time"
        )
    return reach.behind


def _span(layer: LayerSpec) -> tuple[int, int]:
    """Returns the first and the last frame of its input that frame 0 of a layer depends on."""
    config: Mapping[str, Any] = layer.config
    match layer.class_name:
        case "Conv1D" | "Conv2D":
            size, dilation = _over_time(config["kernel_size"]), _over_time(config["dilation_rate"])
            span = (size - 1) * dilation
            before = span // 2 if config["padding"] == "same" else 0
            return -before, span - before
        case "Conv2DTranspose":
            span = _over_time(config["kernel_size"]) - 1
            return span // 2 - span, span // 2
        case "ZeroPadding2D":
            front = config["padding"][0][0]
            return -front, -front
        case "Permute" if config["dims"][0] != 1:
            raise ModelFileError(
                f"layer {layer.name!r} (Permute) moves the time to another axis; expected a "
                "network that leaves it where it is"
            )
        case name if name in _FRAME_BY_FRAME:
            return 0, 0
    raise ModelFileError(
        f"layer {layer.name!r} ({layer.class_name}) depends on the whole signal, expected a "
        "network of a finite reach"
    )


def _over_time(value: int | list[int]) -> int:
    return value if isinstance(value, int) else value[0]


@dataclasses.dataclass(frozen=True)
class MaskSummary:
    """Figures of a network of the kind 'complex_mask', for people.

    Attributes:
        num_parameters: Stored values of the network as it runs, normalisation folded away.
        reach_frames: Frames that a frame of the output depends on, itself included.
        reach_s: The same in seconds.
        latency_ms: From the arrival of a sample to that of the last one that its output needs.
    """

    num_parameters: int
    reach_frames: int
    reach_s: float
    latency_ms: float

    @property
    def num_bytes(self) -> int:
        """Bytes of the values in FP32."""
        return 4 * self.num_parameters

    def to_json(self) -> dict[str, Any]:
        """Returns all figures and the line as JSON values."""
        return {**dataclasses.asdict(self), "num_bytes": self.num_bytes, "text": str(self)}

    def __str__(self) -> str:
        """Returns one line."""
        return (
            f"{COMPLEX_MASK}, {self.num_parameters:,} parameters ({self.num_bytes:,} bytes) with "
            f"normalisation folded away, reach {self.reach_s:.2f} s ({self.reach_frames} frames), "
            f"latency {self.latency_ms:g} ms"
        )


def summary_of(file: ModelFile) -> MaskSummary | None:
    """Returns the figures of a network of the kind 'complex_mask', None for another kind.

    Raises:
        ModelFileError: The network has no reach.
    """
    if file.kind != COMPLEX_MASK:
        return None
    with refusals(file.path):
        conventions = MaskConventions.of(file.meta)
        reach = reach_of(file.layers)
    stft, rate_hz = conventions.stft, conventions.sample_rate_hz
    folded = fold_batch_normalization(file.layers)
    return MaskSummary(
        sum(array.size for layer in folded for array in layer.weights.values()),
        1 + reach.behind,
        (1 + reach.behind) * stft.hop / rate_hz,
        1000 * (stft.frame + reach.ahead * stft.hop) / rate_hz,
    )
