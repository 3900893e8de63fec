"""Takes whole filters out of a network: smaller tensors in the file, fewer products at run time.

A filter of a layer with a kernel goes with its bias, its part of the normalisation behind it and
the input channel of every layer that reads it.

In a chain each layer stands for itself. In a graph channels may be tied: outputs that are added
(skips, residuals) can only lose the same channel, all of them together. A set of tied channels
(`channel_sets`) goes by the name of the first layer that makes them. Layers that treat each channel
by itself pass the channels of a set on; a Dense layer that a Permute lets work on the bands mixes
bands, and is one of them.

What is removed without any change of the output:

* A filter that nothing reads: all kernels over its channel are zero.
* A filter of zeros. Its output is constant in time; what the layers behind it make of that
  constant, c, is added to the biases of all readers as c times the sum of the kernels over it. That
  is exact where c is the same in all bands and no padding with zeros stands in between; a filter
  with another constant is kept, with one exception: with 'same' padding of a Conv1D the next layer
  sees zeros, not c, beyond both ends of a signal, so its first and last (taps - 1) / 2 outputs
  would differ by at most |c| sum |w| before its normalisation; `Removal.border_bound` says by how
  much. It is 0 for Dense and 'valid' layers and for c = 0.

Any other filter changes the output, and the network wants retraining.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pruning.config import THETA
from pruning.sparsity import channel_sparsity, kept_channels, prunable_layers
from speech.modelfile.exam import output_shapes
from speech.modelfile.spec import LayerSpec, linked
from speech.net.taps import has_kernel, is_swapped, taps_of

#: Layers without channels of their own, which treat every channel by itself.
_CHANNELWISE = ("LeakyReLU", "ReLU", "Activation", "Dropout", "icse>ModifiedReLU")
_NORMALIZATIONS = ("BatchNormalization", "GroupNormalization")


@dataclass(frozen=True, eq=False)
class Removal:
    """A network without some of its filters.

    Attributes:
        layers: The smaller network.
        removed: First layer of a set -> indices of the filters that were taken out.
        border_bound: Layer name -> largest change of an output of this layer, before its
            normalisation, near the ends of a signal, by constants that were folded into its bias.
    """

    layers: tuple[LayerSpec, ...]
    removed: dict[str, list[int]]
    border_bound: dict[str, float]


@dataclass
class ChannelSet:
    """Channels that are removed from all layers of the set, or from none.

    Attributes:
        size: Number of channels.
        writers: Layers whose filters make the channels; more than one where outputs are added.
        normalizations: Layers between them that have weights of their own for each channel.
        carriers: Layers that pass the channels on and have none.
        readers: Layers whose kernels read them.
        is_end: Whether these are the input or the output of the network, which stay as they are.
        reason: Why nothing can be removed otherwise; '' if it can.
    """

    size: int
    writers: list[str] = field(default_factory=list)
    normalizations: list[str] = field(default_factory=list)
    carriers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    is_end: bool = False
    reason: str = ""

    @property
    def name(self) -> str:
        """The layer by which the set goes."""
        return self.writers[0]


def channel_sets(layers: Sequence[LayerSpec]) -> list[ChannelSet]:
    """Returns the sets of tied channels whose filters may be removed, in the order of the layers.

    Args:
        layers: A network, a chain or a graph. The sets of its input and output are left out.
    """
    return [found for found in _all_sets(layers) if found.writers and not found.is_end]


def widths(layers: Sequence[LayerSpec]) -> dict[str, int]:
    """Returns the number of filters of each set that may lose some, by its first layer."""
    return {found.name: found.size for found in channel_sets(layers)}


def kernel_layers(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """Returns the convolutions and matrices of a network."""
    return prunable_layers(layers, keep_last=False)


@dataclass(frozen=True, eq=False)
class _Output:
    """The axis on which a layer's output has its channels, and the set that these belong to.

    Attributes:
        axis: Their axis, the batch being axis 0.
        rank: Number of axes.
        channels: The set they belong to.
    """

    axis: int
    rank: int
    channels: ChannelSet

    @property
    def is_last(self) -> bool:
        return self.axis == self.rank - 1


def _all_sets(layers: Sequence[LayerSpec]) -> list[ChannelSet]:
    """Returns all sets of channels of a network."""
    layers = linked(layers)
    rank = len(layers[0].config["batch_shape"])
    source = ChannelSet(layers[0].config["batch_shape"][-1], is_end=True)
    outputs = {layers[0].name: _Output(rank - 1, rank, source)}
    sets = [source]
    for layer in layers[1:]:
        read = [outputs[name] for name in layer.inputs]
        if layer.class_name == "Concatenate":
            reason = f"layer {layer.name} joins channels: no filter in front of it can be removed"
            joined = ChannelSet(sum(one.channels.size for one in read), reason=reason)
            sets.append(joined)
            for one in read:
                one.channels.reason = one.channels.reason or reason
            outputs[layer.name] = replace(read[0], channels=joined)
            continue
        if len(layer.kernels) > 1:
            channels = read[0].channels
            channels.reason = channels.reason or _obstacle(layer, read, channels.size)
            made = ChannelSet(output_shapes(layers)[layer.name][-1] or 0)
            sets.append(made)
            outputs[layer.name] = _Output(rank - 1, rank, made)
            continue
        if has_kernel(layer) and read[0].is_last:
            read[0].channels.readers.append(layer.name)
            made = ChannelSet(taps_of(layer).shape[2], [layer.name])
            sets.append(made)
            outputs[layer.name] = _Output(rank - 1, rank, made)
            continue
        for other in read[1:]:
            _tie(read[0].channels, other.channels, sets, outputs)
        channels = outputs[layer.inputs[0]].channels
        is_scaled = layer.class_name in _NORMALIZATIONS and read[0].is_last
        (channels.normalizations if is_scaled else channels.carriers).append(layer.name)
        channels.reason = channels.reason or _obstacle(layer, read, channels.size)
        axis = read[0].axis
        if layer.class_name == "Permute":
            axis = 1 + layer.config["dims"].index(axis)
        outputs[layer.name] = _Output(axis, rank, channels)
    outputs[layers[-1].name].channels.is_end = True
    return sets


def _tie(
    one: ChannelSet, other: ChannelSet, sets: list[ChannelSet], outputs: dict[str, _Output]
) -> None:
    """Makes one set of two."""
    if one is other:
        return
    first, second = sorted((one, other), key=sets.index)
    for names in ("writers", "normalizations", "carriers", "readers"):
        getattr(first, names).extend(getattr(second, names))
    first.is_end |= second.is_end
    first.reason = first.reason or second.reason
    sets.remove(second)
    for name, output in outputs.items():
        if output.channels is second:
            outputs[name] = replace(output, channels=first)


def _obstacle(layer: LayerSpec, read: Sequence[_Output], size: int) -> str:
    """Returns why no channel can be taken from in front of a layer, '' if it can."""
    if layer.class_name == "GroupNormalization":
        if layer.config["groups"] not in (-1, size) or not read[0].is_last:
            return (
                f"layer {layer.name} normalises groups of channels together: no filter in "
                "front of it can be removed"
            )
        return ""
    same_axis = all(output.axis == read[0].axis for output in read)
    padded = layer.class_name == "ZeroPadding2D" and read[0].is_last
    if (
        padded
        or (layer.class_name == "Add" and same_axis)
        or layer.class_name in (*_CHANNELWISE, "BatchNormalization", "Permute", "Dense")
    ):
        return ""
    return f"layer {layer.name} is a {layer.class_name}: no filter in front of it can be removed"


# --------------------------------------------------------------------------------------------
# Choosing


def filter_redundancy(layers: Sequence[LayerSpec], theta: float = THETA) -> dict[str, np.ndarray]:
    """Returns for each filter how redundant it is, by the channels of the paper.

    A filter is rated by the share of redundant channels, S_j(k) > theta, among its own channels
    and the channels that read it. Between filters of equal share, the mean of S over the same
    channels decides. For tied filters, the channels of all of them count.

    Returns:
        First layer of a set -> float64 [size]; sets but the output's.
    """
    sparsity = {layer.name: _sparsity_with_zeros(taps_of(layer)) for layer in kernel_layers(layers)}
    result = {}
    for found in channel_sets(layers):
        # Each channel of this filter: own is [in, out], read is [out, out of the reader].
        own = [sparsity[name] for name in found.writers]
        channels = np.concatenate([*own, *(sparsity[name].T for name in found.readers)])
        result[found.name] = (channels > theta).mean(axis=0) + 1e-3 * channels.mean(axis=0)
    return result


def _sparsity_with_zeros(kernel: np.ndarray) -> np.ndarray:
    sparsity = channel_sparsity(kernel)
    sparsity[~kept_channels(kernel)] = 1.0
    return sparsity


def choose_down_to(
    layers: Sequence[LayerSpec], goal: Mapping[str, int], theta: float = THETA
) -> dict[str, np.ndarray]:
    """Chooses the most redundant filters, as many as leave each set with its goal."""
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
    """Chooses filters for which over half of their own channels and their readers' are redundant.

    A channel is redundant when S > theta (`filter_redundancy`).

    Raises:
        ValueError: A layer would be left without filters.
    """
    redundancy = filter_redundancy(layers, theta)
    goal = {name: int((values <= 0.5).sum()) for name, values in redundancy.items()}
    return choose_down_to(layers, goal, theta)


def removable_filters(layers: Sequence[LayerSpec]) -> dict[str, np.ndarray]:
    """Returns the filters that can go without retraining: not read, or constant and foldable.

    One filter of a set is kept in any case.
    """
    by_name = {layer.name: layer for layer in linked(layers)}
    result = {}
    for found in channel_sets(layers):
        every = np.arange(found.size)
        constants = _constants(by_name, found, every)
        free = np.ones(found.size, bool)
        for name in found.readers:
            reader = by_name[name]
            taps = taps_of(reader)
            foldable = np.isfinite(_foldable(reader, constants[reader.inputs[0]]))
            free &= foldable | ~taps.any(axis=(0, 2))
        result[found.name] = np.flatnonzero(free)[: found.size - 1]
    return result


# --------------------------------------------------------------------------------------------
# Removing


def remove_filters(
    layers: Sequence[LayerSpec], filters: Mapping[str, Sequence[int] | np.ndarray]
) -> Removal:
    """Takes filters out of a network.

    Args:
        layers: The network, InputLayer first.
        filters: First layer of a set (`channel_sets`) -> indices of the filters to take out.

    Raises:
        ValueError: A layer is unknown, makes the output, is tied to an earlier one, would be left
            without filters, or is followed by a layer that mixes channels, such as a
            normalisation over groups of them.
    """
    by_name = {layer.name: layer for layer in linked(layers)}
    sets = [found for found in _all_sets(layers) if found.writers]
    _check_names(filters, sets)
    removed: dict[str, list[int]] = {}
    bounds: dict[str, float] = {}
    for found in sets:
        drop = np.unique(np.asarray(filters.get(found.name, ()), np.int64))
        if not drop.size:
            continue
        _check_filters(found, drop)
        constants = _constants(by_name, found, drop)
        for name in found.readers:
            by_name[name], bound = _without_inputs(
                by_name[name], drop, constants[by_name[name].inputs[0]]
            )
            bounds[name] = max(bound, bounds.get(name, 0.0))
        for name in (*found.writers, *found.normalizations):
            by_name[name] = _without_outputs(by_name[name], drop)
        removed[found.name] = drop.tolist()
    smaller = []
    for layer in layers:
        new = by_name[layer.name]
        smaller.append(replace(layer, config=new.config, weights=new.weights))
    return Removal(tuple(smaller), removed, bounds)


def _check_names(filters: Iterable[str], sets: Sequence[ChannelSet]) -> None:
    leader = {name: found.name for found in sets for name in found.writers}
    for name in sorted(filters):
        if name not in leader:
            raise ValueError(f"there is no layer {name!r} with filters; they are {list(leader)}")
        if leader[name] != name:
            raise ValueError(
                f"the outputs of layer {name} are added to those of {leader[name]}, so their "
                f"filters go together; name {leader[name]}"
            )


def _check_filters(found: ChannelSet, drop: np.ndarray) -> None:
    name = found.name
    if found.is_end:
        raise ValueError(f"layer {name} is the last: its filters are the output")
    if drop[0] < 0 or drop[-1] >= found.size:
        raise ValueError(f"layer {name} has filters 0 to {found.size - 1}, received {drop}")
    if len(drop) == found.size:
        raise ValueError(f"layer {name} would be left without filters; remove fewer")
    if found.reason:
        raise ValueError(found.reason)


def _without_outputs(layer: LayerSpec, drop: np.ndarray) -> LayerSpec:
    """Returns a layer that makes or scales fewer channels."""
    axes = {"kernel": -2 if is_swapped(layer.class_name) else -1}
    weights = {
        name: np.delete(array, drop, axis=axes.get(name, -1))
        for name, array in layer.weights.items()
    }
    config = dict(layer.config)
    if layer.class_name == "GroupNormalization":
        config["groups"] = -1
    for key in ("filters", "units"):
        if key in config:
            config[key] -= len(drop)
    return replace(layer, config=config, weights=weights)


def _without_inputs(
    layer: LayerSpec, drop: np.ndarray, constants: np.ndarray
) -> tuple[LayerSpec, float]:
    """Returns a layer that no longer reads some channels, with what was constant in its bias.

    Args:
        layer: A layer with a kernel.
        drop: Input channels.
        constants: Value of each, [bands, drop]; NaN where it is not constant.

    Returns:
        The layer, and the largest change of an output near the ends of a signal.
    """
    kernel = layer.weights["kernel"]
    taps = taps_of(layer).astype(np.float64)[:, drop]
    values = _foldable(layer, constants)
    values = np.where(np.isfinite(values), values, 0.0)
    axis = -1 if is_swapped(layer.class_name) else -2
    weights = {**layer.weights, "kernel": np.delete(kernel, drop, axis=axis)}
    config = dict(layer.config)
    folded = np.einsum("tio,i->o", taps, values)
    if folded.any():
        bias = weights.get("bias", np.zeros(taps.shape[2], np.float32))
        weights = {**weights, "bias": (bias + folded).astype(np.float32)}
        # Keras lists a kernel before its bias.
        weights = {name: weights[name] for name in ("kernel", "bias")}
        config["use_bias"] = True
    padded = layer.class_name == "Conv1D" and config["padding"] == "same" and len(taps) > 1
    bound = np.einsum("tio,i->o", np.abs(taps), np.abs(values)).max() if padded else 0.0
    return replace(layer, config=config, weights=weights), float(bound)


# --------------------------------------------------------------------------------------------
# Constants


def _foldable(layer: LayerSpec, constants: np.ndarray) -> np.ndarray:
    """Returns the constants that a layer's bias can stand for, NaN for all others: [channels].

    Args:
        layer: A layer with a kernel.
        constants: [bands, channels] that reach it; NaN where a channel is not constant in time.
    """
    first = constants[0]
    values = np.where((constants == first).all(axis=0), first, np.nan)
    is_wide = len(taps_of(layer)) > 1 and layer.class_name != "Conv1D"
    if layer.class_name == "Conv2DTranspose" or (is_wide and layer.config["padding"] == "same"):
        return np.where(values == 0, 0.0, np.nan)
    return values


def _constants(
    by_name: Mapping[str, LayerSpec], found: ChannelSet, channels: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns what is in channels of a set if that is constant in time, else NaN.

    Args:
        by_name: The network, linked, in order.
        found: The set.
        channels: Indices of the channels.

    Returns:
        Layer of the set -> float64 [bands, channels], with 1 band if all have the same.
    """
    values: dict[str, np.ndarray] = {}
    scaled, others = set(found.normalizations), set(found.carriers)
    for name, layer in by_name.items():
        if name in found.writers:
            values[name] = _written(layer, channels)[np.newaxis]
        elif name in scaled:
            own = {key: array[channels] for key, array in layer.weights.items()}
            values[name] = _normalized(layer, own, values[layer.inputs[0]])
        elif name in others and all(source in values for source in layer.inputs):
            values[name] = _passed_on(layer, [values[source] for source in layer.inputs])
    return values


def _written(layer: LayerSpec, channels: np.ndarray) -> np.ndarray:
    """Returns the output of filters of zeros, NaN for all others."""
    taps = taps_of(layer)[..., channels]
    bias = layer.weights.get("bias", np.zeros(taps_of(layer).shape[2]))
    values = np.where(taps.any(axis=(0, 1)), np.nan, bias[channels].astype(np.float64))
    return _activate(values, layer.config["activation"])


def _normalized(
    layer: LayerSpec, weights: Mapping[str, np.ndarray], values: np.ndarray
) -> np.ndarray:
    """Returns what a normalisation makes of constants; its weights broadcast to them."""
    own = {name: array.astype(np.float64) for name, array in weights.items()}
    if layer.class_name == "GroupNormalization":  # nothing is left of a constant but beta
        return np.where(np.isnan(values), np.nan, own.get("beta", 0.0))
    deviation = np.sqrt(own["moving_variance"] + layer.config["epsilon"])
    values = (values - own["moving_mean"]) / deviation
    return values * own.get("gamma", 1.0) + own.get("beta", 0.0)


def _passed_on(layer: LayerSpec, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Returns what a layer without weights for channels makes of constants [bands, channels]."""
    values, config = inputs[0], layer.config
    match layer.class_name:
        case "Add":
            return sum(inputs[1:], start=values)
        case "Dropout" | "Permute":
            return values
        case "ZeroPadding2D":
            grows = any(any(pair) for pair in config["padding"])
            return np.where(values == 0, 0.0, np.nan) if grows else values
        case "Dense":  # over bands
            kernel = layer.weights["kernel"].astype(np.float64)
            values = np.broadcast_to(values, (len(kernel), values.shape[1]))
            mixed = kernel.T @ values + layer.weights.get("bias", np.zeros(1))[:, np.newaxis]
            return _activate(mixed, config["activation"])
        case "BatchNormalization":  # of bands
            own = {key: array[:, np.newaxis] for key, array in layer.weights.items()}
            return _normalized(layer, own, values)
        case "LeakyReLU":
            return np.where(values > 0, values, config["negative_slope"] * values)
        case "Activation":
            return _activate(values, config["activation"])
        case "ReLU" if not config["threshold"]:
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
