"""Finds the redundant channels of a layer by the paper's sparsity criterion, in NumPy.

Conventions: a layer's kernel is float [taps, in, out] (``speech.net.taps``): the taps of a Conv2D
over time and bands are one row of L taps, and a Dense kernel [in, out] counts as one tap. The
*channel* (k, j) is the kernel F_jk of filter j over input channel k; of a Dense layer it is a
single weight, whose S is 1 or 0. Masks are bool [in, out], True where a channel is kept. Masks and
scores of a network go by layer name, and only hold the layers that may be pruned: all convolutions
and Dense layers but the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pruning.config import CRITERIA
from speech.modelfile.exam import output_shapes
from speech.modelfile.spec import LayerSpec, linked
from speech.net.taps import as_taps, for_kernel, has_kernel, taps_of

Masks = dict[str, np.ndarray]


def mean_absolute_values(kernel: np.ndarray) -> np.ndarray:
    """Returns M_j, the mean absolute weight of each whole filter (the paper's MAV): [out]."""
    return np.abs(as_taps(kernel)).mean(axis=(0, 1), dtype=np.float64)


def channel_sparsity(kernel: np.ndarray) -> np.ndarray:
    """Returns the sparsity of each channel (docs/papers.md, eqs. P1 and P2).

    ::

        S_j(k) = 1/L sum_i [ |F_jk(i)| < M_j ]

    Args:
        kernel: float [..., in, out]; L is the number of all taps, 1 without such axes.

    Returns:
        float64 [in, out], from 0 to 1. A channel of zeros in a filter that has other weights
        has 1; in a filter of zeros, where no weight is below the mean, it has 1 as well.
    """
    magnitude = np.abs(as_taps(kernel))
    means = mean_absolute_values(kernel)
    sparsity = (magnitude < means).mean(axis=0, dtype=np.float64)
    sparsity[:, means == 0] = 1.0
    return sparsity


def channel_magnitude(kernel: np.ndarray) -> np.ndarray:
    """Returns the mean absolute weight of each channel, float64 [in, out]."""
    return np.abs(as_taps(kernel)).mean(axis=0, dtype=np.float64)


def kept_channels(kernel: np.ndarray) -> np.ndarray:
    """Returns the mask [in, out] that a kernel's own zeros are: the pruning found again."""
    return np.asarray(as_taps(kernel).any(axis=0))


def prunable_layers(layers: Sequence[LayerSpec], keep_last: bool = True) -> list[LayerSpec]:
    """Returns the layers with kernels; the last, which the released model spares, unless asked."""
    found = [layer for layer in layers if has_kernel(layer)]
    return found[:-1] if keep_last else found


def masks_for_theta(layers: Sequence[LayerSpec], theta: float, *, keep_last: bool = True) -> Masks:
    """Prunes the channels with S_j(k) > theta in every layer.

    Raises:
        ValueError: theta is not between 0 and 1, or empties a layer.
    """
    if not 0 < theta < 1:
        raise ValueError(f"theta is {theta:g}; give a number between 0 and 1, such as 0.65")
    prunable = prunable_layers(layers, keep_last)
    if not prunable:
        raise ValueError("the network has no layer that may be pruned")
    masks = {}
    for layer in prunable:
        sparsity = channel_sparsity(taps_of(layer))
        masks[layer.name] = sparsity <= theta
        if not masks[layer.name].any():
            raise ValueError(
                f"theta {theta:g} prunes all {sparsity.size} channels of layer {layer.name}; "
                f"the smallest that leaves it one is {np.ceil(sparsity.min() * 1e4) / 1e4:g}"
            )
    return masks


def masks_for_share(
    layers: Sequence[LayerSpec],
    share: float,
    *,
    criterion: str = CRITERIA[0],
    per_layer: bool = False,
    keep_last: bool = True,
    seed: int = 0,
) -> Masks:
    """Prunes a share of the channels, the most redundant ones.

    S_j(k) takes only as many values as a kernel has taps. Among equals the weaker channel goes
    first, by its mean absolute weight relative to M_j, so that the share is met to the channel. The
    single weights of Dense layers have S = 1 or 0: where there are such, they go first.

    Args:
        layers: The network.
        share: Of all prunable channels, 0 <= share < 1.
        criterion: One of `CRITERIA`.
        per_layer: The share of each layer by itself, not of all together.
        keep_last: Spare the last layer.
        seed: Of 'random'.

    Raises:
        ValueError: The share is out of range, empties a layer, or the criterion is unknown.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share to prune is {share:g}; give one from 0 to less than 1")
    prunable = prunable_layers(layers, keep_last)
    if not prunable:
        raise ValueError("the network has no layer that may be pruned")
    rng = np.random.default_rng(seed)
    redundancy = {
        layer.name: channel_redundancy(taps_of(layer), criterion, rng) for layer in prunable
    }
    if per_layer:
        masks = {name: _drop_most(values, share) for name, values in redundancy.items()}
    else:
        sizes = [values.size for values in redundancy.values()]
        kept = _drop_most(np.concatenate([v.ravel() for v in redundancy.values()]), share)
        parts = np.split(kept, np.cumsum(sizes)[:-1])
        masks = {
            name: part.reshape(values.shape)
            for (name, values), part in zip(redundancy.items(), parts, strict=True)
        }
    for name, mask in masks.items():
        if not mask.any():
            raise ValueError(
                f"pruning {share:.4g} of the channels empties layer {name}; give a smaller "
                "share, or prune each layer by itself"
            )
    return masks


def channel_redundancy(
    kernel: np.ndarray, criterion: str, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Returns [in, out] by which channels are ranked: the highest are pruned first."""
    if criterion == "sparsity":
        means = mean_absolute_values(kernel)
        relative = channel_magnitude(kernel) / np.where(means > 0, means, 1.0)
        # Steps of S are 1/L; what breaks ties stays below half of one.
        return channel_sparsity(kernel) + 0.5 / len(as_taps(kernel)) / (1 + relative)
    if criterion == "magnitude":
        return -channel_magnitude(kernel)
    if criterion == "random":
        if rng is None:
            raise ValueError("random pruning needs a generator")
        return rng.random(as_taps(kernel).shape[1:])
    raise ValueError(f"criterion is {criterion!r}; give one of {', '.join(CRITERIA)}")


def _drop_most(redundancy: np.ndarray, share: float) -> np.ndarray:
    """Returns the mask that drops the nearest whole number of the most redundant channels."""
    kept = np.ones(redundancy.size, bool)
    order = np.argsort(-redundancy, axis=None, kind="stable")
    kept[order[: round(share * redundancy.size)]] = False
    return kept.reshape(redundancy.shape)


def theta_of(layers: Sequence[LayerSpec], masks: Mapping[str, np.ndarray]) -> float:
    """Returns the smallest S_j(k) among the pruned channels: the theta that the masks stand for.

    1.0 if nothing is pruned.
    """
    values = [
        channel_sparsity(taps_of(layer))[~masks[layer.name]]
        for layer in layers
        if layer.name in masks
    ]
    pruned = np.concatenate(values) if values else np.empty(0)
    return float(pruned.min()) if pruned.size else 1.0


def apply_masks(
    layers: Sequence[LayerSpec], masks: Mapping[str, np.ndarray]
) -> tuple[LayerSpec, ...]:
    """Returns the network with the pruned channels at zero."""
    return tuple(
        replace(
            layer,
            weights={
                **layer.weights,
                "kernel": np.where(
                    for_kernel(layer.class_name, masks[layer.name]),
                    layer.weights["kernel"],
                    np.float32(0),
                ),
            },
        )
        if layer.name in masks
        else layer
        for layer in layers
    )


def masks_of_zeros(layers: Sequence[LayerSpec], keep_last: bool = False) -> Masks:
    """Returns the masks found again from the channels that are zero."""
    return {
        layer.name: kept_channels(taps_of(layer)) for layer in prunable_layers(layers, keep_last)
    }


def masks_to_json(masks: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Returns masks as JSON values: the shape, and the bits (row by row, 1 = kept) in hex."""
    return {
        name: {"shape": list(mask.shape), "kept": np.packbits(mask).tobytes().hex()}
        for name, mask in masks.items()
    }


@dataclass(frozen=True)
class LayerReport:
    """The size of a layer before and after pruning.

    Attributes:
        name: The layer.
        channels: Number of channels (kernels).
        pruned: How many of them are zero.
        weights: Number of weights in the kernel.
        weights_left: How many of them stand in channels that are kept.
        times: How often each weight is used for one sample, or one frame of spectra.
    """

    name: str
    channels: int
    pruned: int
    weights: int
    weights_left: int
    times: int = 1


def report(layers: Sequence[LayerSpec]) -> list[LayerReport]:
    """Returns one row per layer that has a kernel; channels that are all zero count as pruned."""
    rows = []
    times = _times_per_frame(layers) if works_on_spectra(layers) else {}
    for layer in prunable_layers(layers, keep_last=False):
        kernel = taps_of(layer)
        kept = kept_channels(kernel)
        num_kept = int(kept.sum())
        rows.append(
            LayerReport(
                layer.name, kept.size, kept.size - num_kept, kernel.size, num_kept * len(kernel),
                times.get(layer.name, 1),
            )
        )  # fmt: skip
    return rows


def works_on_spectra(layers: Sequence[LayerSpec]) -> bool:
    """Returns whether a network takes frames with bands and channels, not samples or vectors."""
    return len(layers[0].config["batch_shape"]) == 4


def _times_per_frame(layers: Sequence[LayerSpec]) -> dict[str, int]:
    """Returns in how many bands, or for a Dense over bands channels, each kernel is at work."""
    shapes = output_shapes(layers)
    found = {}
    for layer in linked(layers):
        is_up = layer.class_name == "Conv2DTranspose"
        shape = shapes[layer.inputs[0] if is_up else layer.name] if layer.inputs else ()
        found[layer.name] = math.prod(size for size in shape[:-1] if size is not None)
    return found
