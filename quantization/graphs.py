"""A network over time and frequency run layer by layer, and what matters in what reaches a kernel.

The counterpart of ``quantization.calibration`` for graphs of layers on spectra: outputs, gradients
and, for each kernel, the correlations of its inputs that an error of its weights meets.

Conventions: an input is one signal. Tensors are float32 [frames, bands, channels], without a batch.
A kernel is seen as float [taps, in, out] (``speech.net.taps``), and as a matrix [taps x in, out],
the input channel running faster; a Dense layer has one tap. The error of the output is that of the
estimate: mask times compressed noisy spectrum. NumPy only.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from speech.modelfile.meta import MaskConventions
from speech.modelfile.spec import LayerSpec, linked
from speech.net.taps import has_kernel, taps_of
from speech.net.timefrequency import compress, features
from speech.sound.stft import stft

#: Layers that `forward` and `gradients` know.
KNOWN = frozenset(
    ("InputLayer", "Conv2D", "Conv2DTranspose", "Dense", "BatchNormalization", "Activation",
     "Dropout", "LeakyReLU", "Permute", "ZeroPadding2D", "Add", "Concatenate")
)  # fmt: skip

#: RMS in dB relative to full scale.
LEVELS_DBFS = (-35.0, -15.0)
#: Multiples of it leave remainders that are spread evenly.
_GOLDEN = 0.618034

#: Part of the power of a kernel's inputs, means included, that counts as rounding.
_FLOOR = 1e-6
#: Projections per signal that the sensitivities are measured with.
_PROBES = 2

Layers = Sequence[LayerSpec]
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One signal as the network takes it.

    Attributes:
        features: float32 [frames, bins, 3].
        noisy: complex64 [frames, bins], the compressed spectrum, by which the mask is multiplied.
    """

    features: np.ndarray
    noisy: np.ndarray


def at_levels(signals: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns signals at levels spread over `LEVELS_DBFS`: those networks hear the level."""
    low, high = LEVELS_DBFS
    found = []
    for number, signal in enumerate(signals):
        level_db = low + (high - low) * (number * _GOLDEN % 1)
        power = max(float(np.mean(np.square(signal, dtype=np.float64))), 1e-20)
        found.append(signal * np.float32(10 ** (level_db / 20) / np.sqrt(power)))
    return found


def spectra_of(signals: Sequence[np.ndarray], conventions: MaskConventions) -> list[Spectrum]:
    """Returns signals float32 [time, 1] as spectra."""
    found = []
    for signal in signals:
        bins = stft(signal[:, 0], conventions.stft)[:, : conventions.stft.frame // 2]
        noisy = compress(bins, conventions.power)
        found.append(Spectrum(features(noisy).astype(np.float32), noisy))
    return found


def are_spectra(signals: Sequence[Any]) -> TypeGuard[Sequence[Spectrum]]:
    """Returns whether signals are what this module takes."""
    return bool(signals) and isinstance(signals[0], Spectrum)


def is_known(layers: Layers) -> bool:
    """Returns whether all layers of a network are of `KNOWN` kinds and work on [batch, 3 axes]."""
    return len(layers[0].config["batch_shape"]) == 4 and all(
        layer.class_name in KNOWN for layer in layers
    )


def estimate(layers: Layers, spectrum: Spectrum) -> np.ndarray:
    """Returns the compressed spectrum that a network makes of a noisy one, complex64."""
    mask = forward(layers, spectrum.features, keep=False)[layers[-1].name]
    return _as_complex(mask) * spectrum.noisy


def _as_complex(pairs: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pairs).view(np.complex64)[..., 0]


def forward(layers: Layers, features: np.ndarray, *, keep: bool = True) -> Tensors:
    """Returns all layers' outputs for one input; without ``keep``, the last layer's alone."""
    layers = linked(layers)
    left = Counter(name for layer in layers for name in layer.inputs)
    outputs = {layers[0].name: features}
    for layer in layers[1:]:
        outputs[layer.name] = _output(layer, [outputs[name] for name in layer.inputs])
        for name in layer.inputs:
            left[name] -= 1
            if not left[name] and not keep:
                del outputs[name]
    return outputs


# --------------------------------------------------------------------------------------------
# One layer


Slices = tuple[slice, slice]


def _places(layer: LayerSpec, shape: tuple[int, ...]) -> tuple[list[tuple[Slices, Slices]], Slices]:
    """Returns which inputs meet which outputs, tap by tap, and the output's size.

    Args:
        layer: Conv2D, Conv2DTranspose or Dense.
        shape: [frames, bands, channels] of its input.

    Returns:
        Per tap, slices of the input and slices of the output of the same size; and frames and bands
        of the output, as slices.
    """
    if layer.class_name == "Dense":
        return [((slice(None), slice(None)), (slice(None), slice(None)))], _whole(shape[:2])
    config = layer.config
    dilations = config.get("dilation_rate", (1, 1))
    axes, sizes = [], []
    for axis in (0, 1):
        num, taps, stride = shape[axis], config["kernel_size"][axis], config["strides"][axis]
        reach = (taps - 1) * dilations[axis]
        if layer.class_name == "Conv2DTranspose":
            # The gradient of a convolution of stride s from num x s inputs to num outputs.
            small, large = num, num * stride
        elif config["padding"] == "same":
            small, large = -(-num // stride), num
        else:
            small, large = -(-(num - reach) // stride), num
        pad = 0
        if config["padding"] == "same":
            pad = max((small - 1) * stride + reach + 1 - large, 0) // 2
        one_axis = []
        for tap in range(taps):
            offset = tap * dilations[axis] - pad
            first = max(0, -(offset // stride))
            last = min(small - 1, (large - 1 - offset) // stride)
            count = max(last - first + 1, 0)
            begin = first * stride + offset
            stop = begin + (count - 1) * stride + 1 if count else begin
            one_axis.append((slice(first, first + count), slice(begin, stop, stride)))
        axes.append(one_axis)
        sizes.append(large if layer.class_name == "Conv2DTranspose" else small)
    found = []
    for (small_t, large_t), (small_f, large_f) in itertools.product(*axes):
        inner, outer = (small_t, small_f), (large_t, large_f)
        is_up = layer.class_name == "Conv2DTranspose"
        found.append((inner, outer) if is_up else (outer, inner))
    return found, _whole(sizes)


def _whole(sizes: Sequence[int]) -> Slices:
    return slice(0, sizes[0]), slice(0, sizes[1])


def linear(layer: LayerSpec, inputs: np.ndarray) -> np.ndarray:
    """Returns what a kernel and its bias make of an input, before the layer's activation."""
    taps, (places, size) = taps_of(layer), _places(layer, inputs.shape)
    result = np.zeros((size[0].stop, size[1].stop, taps.shape[2]), np.float32)
    for tap, (read, write) in zip(taps, places, strict=True):
        result[write] += inputs[read] @ tap
    return result + layer.weights["bias"] if "bias" in layer.weights else result


def patches(layer: LayerSpec, inputs: np.ndarray) -> np.ndarray:
    """Returns what each output of a kernel is made of, float32 [frames, bands, taps x in]."""
    places, size = _places(layer, inputs.shape)
    channels = inputs.shape[2]
    result = np.zeros((size[0].stop, size[1].stop, len(places), channels), np.float32)
    for tap, (read, write) in enumerate(places):
        result[*write, tap] = inputs[read]
    return result.reshape(*result.shape[:2], -1)


def _input_gradient(layer: LayerSpec, inputs: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    result = np.zeros_like(inputs)
    for tap, (read, write) in zip(taps_of(layer), _places(layer, inputs.shape)[0], strict=True):
        result[read] += gradient[write] @ tap.T
    return result


def activate(layer: LayerSpec, values: np.ndarray) -> np.ndarray:
    """Returns what a layer with a kernel gives, given `linear`."""
    return _activation(layer.config.get("activation"), values)[0]


def _activation(name: str | None, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns an activation and its slope."""
    match name:
        case "relu":
            return np.maximum(values, 0), values > 0
        case "tanh":
            result = np.tanh(values)
            return result, 1 - result**2
        case "sigmoid" | "silu":
            rise = 0.5 + 0.5 * np.tanh(0.5 * values)
            if name == "sigmoid":
                return rise, rise * (1 - rise)
            return values * rise, rise * (1 + values * (1 - rise))
    return values, np.ones((), np.float32)


def _scale_and_shift(layer: LayerSpec) -> tuple[np.ndarray, np.ndarray]:
    own = layer.weights
    scale = own.get("gamma", 1.0) / np.sqrt(own["moving_variance"] + layer.config["epsilon"])
    return scale, own.get("beta", 0.0) - scale * own["moving_mean"]


def _output(layer: LayerSpec, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the output of a layer."""
    values, config = inputs[0], layer.config
    if has_kernel(layer):
        return activate(layer, linear(layer, values))
    match layer.class_name:
        case "Add":
            return sum(inputs[1:], start=values)
        case "Concatenate":
            return np.concatenate(inputs, axis=-1)
        case "Permute":
            return values.transpose([axis - 1 for axis in config["dims"]])
        case "ZeroPadding2D":
            return np.pad(values, [*config["padding"], (0, 0)])
        case "BatchNormalization":
            scale, shift = _scale_and_shift(layer)
            return (values * scale + shift).astype(np.float32)
        case "LeakyReLU":
            return np.where(values > 0, values, np.float32(config["negative_slope"]) * values)
        case "Activation":
            return _activation(config["activation"], values)[0]
    return values  # Dropout


def _gradients(
    layer: LayerSpec, inputs: Sequence[np.ndarray], gradient: np.ndarray
) -> list[np.ndarray]:
    """Returns the gradients of what a layer reads, of a layer without a kernel."""
    values, config = inputs[0], layer.config
    match layer.class_name:
        case "Add":
            return [gradient] * len(inputs)
        case "Concatenate":
            ends = np.cumsum([one.shape[-1] for one in inputs])
            return np.split(gradient, ends[:-1], axis=-1)
        case "Permute":
            return [gradient.transpose(np.argsort([axis - 1 for axis in config["dims"]]))]
        case "ZeroPadding2D":
            (top, _), (left, _) = config["padding"]
            return [gradient[top : top + values.shape[0], left : left + values.shape[1]]]
        case "BatchNormalization":
            return [(gradient * _scale_and_shift(layer)[0]).astype(np.float32)]
        case "LeakyReLU":
            return [np.where(values > 0, gradient, np.float32(config["negative_slope"]) * gradient)]
        case "Activation":
            return [gradient * _activation(config["activation"], values)[1]]
    return [gradient]


# --------------------------------------------------------------------------------------------
# What quantization needs


def gradients(layers: Layers, outputs: Tensors, upstream: np.ndarray) -> Tensors:
    """Returns the gradient of the outputs of each kernel, before their activation.

    Args:
        layers: The network.
        outputs: Of all its layers (`forward`).
        upstream: float32 [frames, bins, 2], the gradient of the network's output.

    Returns:
        Layer with a kernel -> float32, the shape of `linear`.
    """
    layers = linked(layers)
    above: dict[str, np.ndarray] = {layers[-1].name: upstream}
    found = {}
    for layer in reversed(layers[1:]):
        gradient = above.pop(layer.name)
        inputs = [outputs[name] for name in layer.inputs]
        if has_kernel(layer):
            if layer.config.get("activation") not in (None, "linear"):
                slope = _activation(layer.config["activation"], linear(layer, inputs[0]))[1]
                gradient = gradient * slope
            found[layer.name] = gradient
            parts = [_input_gradient(layer, inputs[0], gradient)]
        else:
            parts = _gradients(layer, inputs, gradient)
        for name, part in zip(layer.inputs, parts, strict=True):
            above[name] = above[name] + part if name in above else part
    return found


#: Per signal, float32 [frames, bands] of a kernel's output: the factor from the power of an error
#: there to that of the error of the network's output, relative to its power, summed over filters.
Sensitivity = tuple[np.ndarray, ...]


def sensitivities(layers: Layers, spectra: Sequence[Spectrum]) -> dict[str, Sensitivity]:
    """Returns how much each place of each kernel's output matters to the estimate.

    The mean square of the gradient of random projections of the estimate.

    Args:
        layers: The network.
        spectra: Its inputs.
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[np.ndarray]] = {}
    for spectrum in spectra:
        outputs = forward(layers, spectrum.features)
        output = _as_complex(outputs[layers[-1].name]) * spectrum.noisy
        scale = np.float32(1 / (_PROBES * max(float(np.vdot(output, output).real), 1e-30)))
        totals: Tensors = {}
        for _ in range(_PROBES):
            signs = rng.choice(np.array([-1, 1], np.float32), size=(*output.shape, 2))
            upstream = _as_complex(signs) * spectrum.noisy.conj()
            upstream = upstream.view(np.float32).reshape(*output.shape, 2)
            for name, gradient in gradients(layers, outputs, upstream).items():
                squares = np.square(gradient).sum(axis=2) * scale
                totals[name] = totals[name] + squares if name in totals else squares
        for name, squares in totals.items():
            found.setdefault(name, []).append(squares)
    return {name: tuple(places) for name, places in found.items()}


@dataclass(frozen=True)
class Statistics:
    """Statistics that tell how an error of a kernel changes the network's output.

    Attributes:
        inputs: float64 [taps x in, taps x in], R: if a kernel has errors e [taps x in, out], then
            e' R e, summed over filters, is the relative power of the error of the network's output.
        targets: float64 [taps x in, out], the inputs' correlation with the wanted outputs.
        mean_input: float64 [taps x in], the mean that was subtracted; zeros without a bias.
        mean_target: float64 [out], the mean that was subtracted from the outputs.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mean_input: np.ndarray
    mean_target: np.ndarray


def statistics(
    layer: LayerSpec,
    signals: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    sensitivity: Sensitivity,
) -> Statistics:
    """Returns the correlations of a layer's inputs, and with its outputs.

    A layer with a bias makes up for the mean of any error; then all is without means.

    Args:
        layer: With a kernel.
        signals: What reaches it.
        wanted: What `linear` should give for each.
        sensitivity: Of the layer.
    """
    rows, num_out = taps_of(layer).shape[0] * signals[0].shape[2], wanted[0].shape[2]
    inputs, targets = np.zeros((rows, rows)), np.zeros((rows, num_out))
    totals, means_in, means_out = [], [], []
    for signal, outputs, places in zip(signals, wanted, sensitivity, strict=True):
        weight = places.reshape(-1, 1)
        own = patches(layer, signal).reshape(-1, rows)
        outputs = outputs.reshape(-1, num_out)
        totals.append(max(float(places.sum(dtype=np.float64)), 1e-30))
        means_in.append((own * weight).sum(axis=0, dtype=np.float64) / totals[-1])
        means_out.append((outputs * weight).sum(axis=0, dtype=np.float64) / totals[-1])
        # Without the means of each signal, float32 does; they come back in float64.
        own = own - means_in[-1].astype(np.float32)
        weighted = own * weight
        inputs += weighted.T @ own
        targets += weighted.T @ (outputs - means_out[-1].astype(np.float32))
    weights, one, other = np.array(totals), np.array(means_in), np.array(means_out)
    mean_input, mean_target = np.zeros(rows), np.zeros(num_out)
    power = float(np.trace(inputs) + weights @ np.square(one).sum(axis=1))
    if "bias" in layer.weights:
        mean_input, mean_target = (weights @ means / weights.sum() for means in (one, other))
    spread = weights[:, np.newaxis] * (one - mean_input)
    inputs += spread.T @ (one - mean_input)
    targets += spread.T @ (other - mean_target)
    # Where inputs hardly vary, rounding would tell what is wanted: the weights as they are do.
    floor = _FLOOR * max(power / rows, 1e-30)
    inputs += floor * np.eye(rows)
    targets += floor * taps_of(layer).reshape(rows, num_out)
    # Every signal counts the same; the factor of a place was summed over filters.
    share = 1 / (len(signals) * num_out)
    return Statistics((inputs + inputs.T) * (share / 2), targets * share, mean_input, mean_target)


def walk(
    layers: Layers, spectra: Sequence[Spectrum], found: Mapping[str, Sensitivity]
) -> Generator[tuple[LayerSpec, Statistics], LayerSpec, None]:
    """Goes through a network as it is being changed.

    Yields each layer with a kernel, with the statistics of the inputs that reach it through the
    changed layers before it, and of the outputs that the original gives. To each, ``send`` the
    changed layer.

    Args:
        layers: The network.
        spectra: Its inputs.
        found: Of `sensitivities`.
    """
    layers = linked(layers)
    left = Counter(name for layer in layers for name in layer.inputs)
    start = [spectrum.features for spectrum in spectra]
    original, changed = {layers[0].name: start}, {layers[0].name: start}
    for layer in layers[1:]:
        name = layer.name
        if has_kernel(layer):
            reading, own = original[layer.inputs[0]], changed[layer.inputs[0]]
            wanted = [linear(layer, signal) for signal in reading]
            new = yield layer, statistics(layer, own, wanted, found[name])
            original[name] = [activate(layer, outputs) for outputs in wanted]
            changed[name] = [activate(new, linear(new, signal)) for signal in own]
        else:
            for tensors in (original, changed):
                several = zip(*(tensors[source] for source in layer.inputs), strict=True)
                tensors[name] = [_output(layer, inputs) for inputs in several]
        for source in layer.inputs:
            left[source] -= 1
            if not left[source]:
                del original[source], changed[source]
