"""Takes whole filters out of a network: smaller tensors in the file, fewer products at run time.

A network is a chain. A filter of a layer with a kernel goes with its bias, its part of the
normalisation behind it and the input channel of the next layer that reads it.

What is removed without any change of the output:

* A filter that nothing reads: all kernels over its channel are zero.
* A filter of zeros. Its output is constant in time; what the layers behind it make of that
  constant, c, is added to the next layer's bias as c times the sum of the kernels over it. With
  'same' padding the next layer sees zeros, not c, beyond both ends of a signal, so its first and
  last (taps - 1) / 2 outputs would differ by at most |c| sum |w| before its normalisation;
  `Removal.border_bound` says by how much. It is 0 for Dense and 'valid' layers and for c = 0.

Any other filter changes the output, and the network wants retraining.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pruning.sparsity import (
    as_taps,
    channel_sparsity,
    has_kernel,
    kept_channels,
    mean_absolute_values,
    prunable_layers,
)
from speech.modelfile import LayerSpec, require_chain

#: Layers that treat every channel by itself, so that one can be taken out.
_CHANNELWISE = ("LeakyReLU", "ReLU", "Activation", "Dropout", "icse>ModifiedReLU")


@dataclass(frozen=True, eq=False)
class Removal:
    """A network without some of its filters.

    Attributes:
        layers: The smaller network.
        removed: Layer name -> indices of the filters that were taken out.
        border_bound: Layer name -> largest change of an output of this layer, before its
            normalisation, near the ends of a signal, by constants that were folded into its bias.
    """

    layers: tuple[LayerSpec, ...]
    removed: dict[str, list[int]]
    border_bound: dict[str, float]


@dataclass(frozen=True)
class _Stage:
    """A layer with a kernel and the layers behind it, up to the next kernel; places in the list."""

    kernel: int
    followers: tuple[int, ...]


def kernel_layers(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """Returns the convolutions and matrices of a network."""
    return prunable_layers(layers, keep_last=False)


def filter_redundancy(layers: Sequence[LayerSpec], theta: float = 0.65) -> dict[str, np.ndarray]:
    """Returns for each filter how redundant it is, by the channels of the paper.

    The share of redundant channels, S_j(k) > theta, among the filter's own and those that read
    it in the next layer; among equals, by the mean of S over the same channels.

    Returns:
        Layer name -> float64 [out]; layers but the last.
    """
    found = kernel_layers(layers)
    sparsity = [_sparsity_with_zeros(layer.weights["kernel"]) for layer in found]
    result = {}
    for layer, own, read in zip(found[:-1], sparsity[:-1], sparsity[1:], strict=True):
        # Each channel of this filter: own is [in, out], read is [out, out of the next].
        channels = np.concatenate([own, read.T])
        result[layer.name] = (channels > theta).mean(axis=0) + 1e-3 * channels.mean(axis=0)
    return result


def _sparsity_with_zeros(kernel: np.ndarray) -> np.ndarray:
    sparsity = channel_sparsity(kernel)
    sparsity[~kept_channels(kernel)] = 1.0
    return sparsity


def choose_filters(
    layers: Sequence[LayerSpec], share: float, theta: float = 0.65
) -> dict[str, np.ndarray]:
    """Chooses the nearest whole number to ``share`` of the filters of every layer but the last.

    Raises:
        ValueError: The share is out of range, or no filter of a layer would be left.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of filters to remove is {share:g}; give 0 to less than 1")
    widths = {layer.name: layer.weights["kernel"].shape[-1] for layer in kernel_layers(layers)}
    goal = {name: width - round(share * width) for name, width in widths.items()}
    return choose_down_to(layers, goal, theta)


def choose_down_to(
    layers: Sequence[LayerSpec], goal: Mapping[str, int], theta: float = 0.65
) -> dict[str, np.ndarray]:
    """Chooses the most redundant filters, so many that each layer is left with its goal."""
    chosen = {}
    for name, values in filter_redundancy(layers, theta).items():
        count = max(len(values) - goal[name], 0)
        if count == len(values):
            raise ValueError(
                f"layer {name} has {len(values)} filters and would be left with none; remove a "
                "smaller share"
            )
        chosen[name] = np.sort(np.argsort(-values, kind="stable")[:count])
    return chosen


def filters_for_theta(layers: Sequence[LayerSpec], theta: float) -> dict[str, np.ndarray]:
    """Chooses the filters of whose channels, own and reading, more than half have S > theta.

    Raises:
        ValueError: A layer would be left without filters.
    """
    redundancy = filter_redundancy(layers, theta)
    goal = {name: int((values <= 0.5).sum()) for name, values in redundancy.items()}
    return choose_down_to(layers, goal, theta)


def removable_filters(layers: Sequence[LayerSpec]) -> dict[str, np.ndarray]:
    """Returns the filters that can go without retraining: not read, or zero.

    One filter of a layer is kept in any case.
    """
    found = kernel_layers(layers)
    result = {}
    for layer, after in zip(found[:-1], found[1:], strict=True):
        unread = ~kept_channels(after.weights["kernel"]).any(axis=1)
        constant = mean_absolute_values(layer.weights["kernel"]) == 0
        indices = np.flatnonzero(unread | constant)
        result[layer.name] = indices[: layer.weights["kernel"].shape[-1] - 1]
    return result


def remove_filters(
    layers: Sequence[LayerSpec], filters: Mapping[str, Sequence[int] | np.ndarray]
) -> Removal:
    """Takes filters out of a network.

    Args:
        layers: The network, InputLayer first.
        filters: Layer name -> indices of the filters to take out.

    Raises:
        ValueError: A layer is unknown, is the last one, would be left without filters, or is
            followed by a layer that mixes channels, such as a normalisation over groups of them.
    """
    layers = list(require_chain(layers, "the removal of filters"))
    stages = _stages(layers)
    names = [layers[stage.kernel].name for stage in stages]
    unknown = sorted(set(filters) - set(names))
    if unknown:
        raise ValueError(f"there is no layer {unknown[0]!r} with filters; they are {names}")
    removed, bounds = {}, {}
    for index, stage in enumerate(stages):
        name = names[index]
        drop = np.unique(np.asarray(filters.get(name, ()), np.int64))
        if not drop.size:
            continue
        num_filters = layers[stage.kernel].weights["kernel"].shape[-1]
        _check_filters(name, drop, num_filters, is_last=index == len(stages) - 1)
        after = stages[index + 1].kernel
        constants = _constant_outputs(layers, stage, drop)
        layers[after], bound = _without_inputs(layers[after], drop, constants)
        for place in (stage.kernel, *stage.followers):
            layers[place] = _without_outputs(layers[place], drop, num_filters)
        removed[name] = drop.tolist()
        bounds[layers[after].name] = bound
    return Removal(tuple(layers), removed, bounds)


def _check_filters(name: str, drop: np.ndarray, num_filters: int, is_last: bool) -> None:
    if is_last:
        raise ValueError(f"layer {name} is the last: its filters are the output")
    if drop[0] < 0 or drop[-1] >= num_filters:
        raise ValueError(f"layer {name} has filters 0 to {num_filters - 1}, received {drop}")
    if len(drop) == num_filters:
        raise ValueError(f"layer {name} would be left without filters; remove fewer")


def _stages(layers: Sequence[LayerSpec]) -> list[_Stage]:
    places = [index for index, layer in enumerate(layers) if has_kernel(layer)]
    ends = [*places[1:], len(layers)]
    return [
        _Stage(place, tuple(range(place + 1, end))) for place, end in zip(places, ends, strict=True)
    ]


def _without_outputs(layer: LayerSpec, drop: np.ndarray, num_filters: int) -> LayerSpec:
    """Returns a layer without some of its output channels."""
    weights = {name: np.delete(array, drop, axis=-1) for name, array in layer.weights.items()}
    config = dict(layer.config)
    if layer.class_name == "Conv1D":
        config["filters"] = num_filters - len(drop)
    elif layer.class_name == "Dense":
        config["units"] = num_filters - len(drop)
    elif layer.class_name == "GroupNormalization":
        if config["groups"] not in (-1, num_filters):
            raise ValueError(
                f"layer {layer.name} normalises groups of channels together: no filter in "
                "front of it can be removed"
            )
        config["groups"] = -1
    elif layer.class_name != "BatchNormalization" and layer.class_name not in _CHANNELWISE:
        raise ValueError(
            f"layer {layer.name} is a {layer.class_name}: no filter in front of it can be removed"
        )
    return replace(layer, config=config, weights=weights)


def _without_inputs(
    layer: LayerSpec, drop: np.ndarray, constants: np.ndarray
) -> tuple[LayerSpec, float]:
    """Returns a layer that no longer reads some channels, with what was constant in its bias.

    Args:
        layer: A layer with a kernel.
        drop: Input channels.
        constants: Value of each, NaN where it is not constant.

    Returns:
        The layer, and the largest change of an output near the ends of a signal.
    """
    kernel = layer.weights["kernel"]
    taps = as_taps(kernel).astype(np.float64)[:, drop]
    constant = np.isfinite(constants) & (constants != 0)
    values = np.where(constant, constants, 0.0)
    weights = {**layer.weights, "kernel": np.delete(kernel, drop, axis=-2)}
    config = dict(layer.config)
    folded = np.einsum("tio,i->o", taps, values)
    if folded.any():
        bias = weights.get("bias", np.zeros(kernel.shape[-1], np.float32))
        weights = {**weights, "bias": (bias + folded).astype(np.float32)}
        # Keras lists a kernel before its bias.
        weights = {name: weights[name] for name in ("kernel", "bias")}
        config["use_bias"] = True
    padded = layer.class_name == "Conv1D" and config["padding"] == "same" and len(taps) > 1
    bound = np.einsum("tio,i->o", np.abs(taps), np.abs(values)).max() if padded else 0.0
    return replace(layer, config=config, weights=weights), float(bound)


def _constant_outputs(layers: Sequence[LayerSpec], stage: _Stage, drop: np.ndarray) -> np.ndarray:
    """Returns what comes out behind the filters ``drop`` if that is constant, else NaN: [drop]."""
    layer = layers[stage.kernel]
    kernel = as_taps(layer.weights["kernel"])
    bias = layer.weights.get("bias", np.zeros(kernel.shape[-1]))
    values = np.where(kernel[..., drop].any(axis=(0, 1)), np.nan, bias[drop].astype(np.float64))
    values = _activate(values, layer.config["activation"])
    for place in stage.followers:
        values = _pass_constant(layers[place], values, drop)
    return values


def _pass_constant(layer: LayerSpec, values: np.ndarray, drop: np.ndarray) -> np.ndarray:
    """Returns what a layer makes of channels that are constant in time."""
    weights = {name: array[drop].astype(np.float64) for name, array in layer.weights.items()}
    config = layer.config
    if layer.class_name == "GroupNormalization":  # nothing is left of a constant but beta
        return np.where(np.isnan(values), np.nan, weights.get("beta", 0.0))
    if layer.class_name == "BatchNormalization":
        deviation = np.sqrt(weights["moving_variance"] + config["epsilon"])
        values = (values - weights["moving_mean"]) / deviation
        return values * weights.get("gamma", 1.0) + weights.get("beta", 0.0)
    if layer.class_name == "LeakyReLU":
        return np.where(values > 0, values, config["negative_slope"] * values)
    if layer.class_name == "Activation":
        return _activate(values, config["activation"])
    if layer.class_name == "Dropout":
        return values
    if layer.class_name == "ReLU" and not config["threshold"]:
        above = np.minimum(values, config["max_value"] or np.inf)
        return np.where(values > 0, above, config["negative_slope"] * values)
    return np.full_like(values, np.nan)


def _activate(values: np.ndarray, activation: str | None) -> np.ndarray:
    match activation:
        case "tanh":
            return np.tanh(values)
        case "relu":
            return np.maximum(values, 0.0)
        case "sigmoid":
            return 1 / (1 + np.exp(-values))
        case "silu":
            return values / (1 + np.exp(-values))
    return values
