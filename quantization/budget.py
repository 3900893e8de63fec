"""Quantization to a given number of bytes.

Two ways, both deterministic and both measured by the packed file itself, not by an estimate:

* ``to_lambda`` looks for the lambda of ``quantization.ratedistortion`` at which the file just
  fits. It gives by far the smaller error for the bytes.
* ``choose_k`` chooses k and the format of the centroids layer by layer. What a choice costs is
  known from packing the network; what it does is measured: the error of the network's output with
  this one layer quantized. Steps are then taken where they save most error a byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantization import graphs
from quantization.kmeans import (
    FORMATS,
    Codebooks,
    clustered_layers,
    find_centroids,
    with_centroids,
    with_kernel,
)
from quantization.ratedistortion import MAX_LAMBDA, RateDistortion
from speech.modelfile.icse import pack, unpack
from speech.modelfile.spec import LayerSpec
from speech.net.taps import taps_of

Layers = tuple[LayerSpec, ...]
#: Inputs of a network: signals float32 [time, 1], or those of ``quantization.graphs``.
Signals = Sequence[np.ndarray] | Sequence[graphs.Spectrum]

#: From which ``choose_k`` chooses.
K_CHOICES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MIN_LAMBDA = 1e-7
#: The search for lambda ends within this share of the bytes, or after so many tries.
_CLOSE = 0.985
#: Likewise of the error.
_CLOSE_ERROR = 0.9
_MAX_TRIES = 9
#: Steps of ``choose_k`` that may be taken back.
_NUM_LAST = 6


def _refusal(target: int, smallest: int, how: str) -> ValueError:
    return ValueError(
        f"{target:,} bytes cannot be reached: the smallest file, {how}, has {smallest:,}; "
        "give more, or prune the model first"
    )


# --------------------------------------------------------------------------------------------
# By lambda


def to_lambda(
    quantize: Callable[[float], Layers],
    size_of: Callable[[Layers], int],
    target: int,
    start: float = RateDistortion.lam,
    report: Callable[[float, int], None] | None = None,
) -> tuple[float, Layers]:
    """Finds the lambda at which a file has at most so many bytes, and hardly less.

    Args:
        quantize: Lambda -> the quantized network; ValueError if nothing is left of it.
        size_of: Network -> bytes of its file.
        target: Bytes.
        start: The first lambda to try.
        report: Called with each lambda and size.

    Returns:
        Lambda and the network.

    Raises:
        ValueError: The file is larger at any lambda; the message says how small it gets.
    """
    goal = math.log(target * (1 + _CLOSE) / 2)
    limits = math.log(MIN_LAMBDA), math.log(MAX_LAMBDA)
    known: list[tuple[float, float]] = []  # log lambda, log size
    too_far = math.inf
    best: tuple[int, float, Layers] | None = None
    refused: ValueError | None = None
    place = min(max(math.log(start), limits[0]), limits[1])
    for _ in range(_MAX_TRIES):
        lam = math.exp(place)
        try:
            found = quantize(min(lam, MAX_LAMBDA))
        except ValueError as error:
            refused, too_far = error, min(too_far, place)
        else:
            size = size_of(found)
            known.append((place, math.log(size)))
            if report is not None:
                report(lam, size)
            if size <= target and (best is None or size > best[0]):
                best = size, lam, found
            if _CLOSE * target <= size <= target:
                break
        following = _next_place(known, too_far, goal, limits)
        if any(abs(following - tried) < 1e-3 for tried in (too_far, *(x for x, _ in known))):
            break
        place = following
    if best is not None:
        return best[1:]
    if not known and refused is not None:
        raise refused
    smallest = min(known, key=lambda pair: pair[1])
    raise _refusal(target, round(math.exp(smallest[1])), f"with lambda {math.exp(smallest[0]):.3g}")


def _next_place(
    known: Sequence[tuple[float, float]], too_far: float, goal: float, limits: tuple[float, float]
) -> float:
    """Returns the log lambda to try next, given (log lambda, log size) tried."""
    low = max((pair for pair in known if pair[1] > goal), default=None)
    high = min((pair for pair in known if pair[1] <= goal), default=None)
    if low is not None and high is not None and low[0] < high[0]:
        share = (low[1] - goal) / (low[1] - high[1])
        return low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
    nearest = high if low is None else low
    if nearest is None:  # nothing was left so far
        return max(too_far - math.log(10), limits[0])
    # Sizes fall about as the fourth root of lambda; a file's other parts do not fall at all.
    slope = 0.25
    if len(known) > 1:
        (one, size), (other, other_size) = known[-2:]
        slope = min(max((size - other_size) / (other - one), 0.02), 0.5)
    place = nearest[0] + 1.2 * (nearest[1] - goal) / slope
    place = min(max(place, limits[0]), limits[1])
    return place if place < too_far else (nearest[0] + too_far) / 2


def to_error(
    quantize: Callable[[float], Layers],
    error_of: Callable[[Layers], float],
    target: float,
    start: float = RateDistortion.lam,
    report: Callable[[float, float, Layers], None] | None = None,
) -> tuple[float, Layers]:
    """Finds the largest lambda at which the output has at most so large an error.

    Args:
        quantize: Lambda -> the quantized network; ValueError if nothing is left of it.
        error_of: Network -> relative power of its output's error.
        target: The largest error, above 0.
        start: The first lambda to try.
        report: Called with each lambda, error and network.

    Returns:
        Lambda and the network.

    Raises:
        ValueError: The error is larger at any lambda.
    """
    low, high = math.log(MIN_LAMBDA), math.log(MAX_LAMBDA)
    below: tuple[float, float] | None = None  # log lambda, log error: small enough
    best: Layers | None = None
    above: tuple[float, float] | None = None
    smallest = math.inf
    place = min(max(math.log(start), low), high)
    for _ in range(_MAX_TRIES):
        try:
            found = quantize(math.exp(place))
        except ValueError:  # nothing is left of a layer
            above = place, math.log(target) + 2
        else:
            error = max(error_of(found), 1e-30)
            smallest = min(smallest, error)
            if report is not None:
                report(math.exp(place), error, found)
            if error <= target:
                below, best = (place, math.log(error)), found
                if error >= _CLOSE_ERROR * target:
                    break
            else:
                above = place, math.log(error)
        if below and above:
            share = (math.log(target) - below[1]) / (above[1] - below[1])
            following = below[0] + min(max(0.95 * share, 0.1), 0.9) * (above[0] - below[0])
        elif below:
            following = min(below[0] + max(math.log(target) - below[1], 0.1), high)
        else:
            assert above is not None
            following = max(above[0] - 1.2 * (above[1] - math.log(target)), low)
        if abs(following - place) < 1e-3:
            break
        place = following
    if best is None or below is None:
        raise ValueError(
            f"an error {-10 * math.log10(target):.1f} dB down cannot be reached: the smallest is "
            f"{-10 * math.log10(smallest):.1f} dB down; ask for less"
        )
    return math.exp(below[0]), best


# --------------------------------------------------------------------------------------------
# By k


@dataclass(frozen=True)
class _Choice:
    """What a layer may become.

    Attributes:
        k: Centroids.
        centroids: Their format.
        num_bytes: Of the layer in the packed file, about.
        error: Relative power of the error of the network's output with this layer quantized.
        kernel: The quantized kernel.
    """

    k: int
    centroids: str
    num_bytes: int
    error: float
    kernel: np.ndarray


def choose_k(
    layers: Sequence[LayerSpec],
    codebooks: Codebooks,
    signals: Signals,
    target: int,
    size_of: Callable[[Layers], int],
    formats: Sequence[str] = FORMATS,
) -> Codebooks:
    """Chooses k and format of each layer so that the file has at most so many bytes.

    Args:
        layers: The network.
        codebooks: All other settings.
        signals: Inputs to measure with, float32 [time, 1], or spectra for a network over time and
            frequency. Without any, and for networks of other kinds, weights' own errors count.
        target: Bytes.
        size_of: Network -> bytes of its file.
        formats: Of centroids, from which to choose.

    Returns:
        ``codebooks`` with ``k_of`` and ``centroids_of``.

    Raises:
        ValueError: Two centroids per layer are too much; the message says what they take.
    """
    layers = tuple(layers)
    choices = _choices(layers, codebooks, signals, formats)
    names = list(choices)
    paths = {name: _hull(found) for name, found in choices.items()}
    steps = sorted(
        (
            (path[i].error - path[i + 1].error) / (path[i].num_bytes - path[i + 1].num_bytes),
            names.index(name), i,
        )
        for name, path in paths.items() for i in range(len(path) - 1)
    )  # fmt: skip

    def state(num_steps: int) -> dict[str, _Choice]:
        places = dict.fromkeys(names, 0)
        for _, layer, place in steps[:num_steps]:
            places[names[layer]] = place + 1
        return {name: paths[name][place] for name, place in places.items()}

    def network(num_steps: int) -> Layers:
        return _with_kernels(layers, {n: c.kernel for n, c in state(num_steps).items()})

    def size(num_steps: int) -> int:
        return size_of(network(num_steps))

    # Steps that save most error a byte come first; as many as fit.
    low, high = 0, len(steps)
    smallest = size(0)
    if smallest > target:
        raise _refusal(target, smallest, "with the fewest centroids in every layer")
    while low < high:
        middle = (low + high + 1) // 2
        if size(middle) <= target:
            low = middle
        else:
            high = middle - 1
    # Errors of layers do not just add up: the last states are measured as they are.
    measure = error_measure(layers, signals)
    last = range(max(0, low - _NUM_LAST), low + 1)
    errors = [measure(network(number)) for number in last]
    chosen = state(last[int(np.argmin(errors))])
    return replace(
        codebooks,
        k_of={name: choice.k for name, choice in chosen.items()},
        centroids_of={name: choice.centroids for name, choice in chosen.items()},
    )


def _hull(choices: Sequence[_Choice]) -> list[_Choice]:
    """Returns the choices on the lower convex hull of error over bytes, bytes ascending."""
    path: list[_Choice] = []
    for choice in sorted(choices, key=lambda c: (c.num_bytes, c.error, c.k)):
        if path and choice.error >= path[-1].error:
            continue
        while len(path) > 1 and _slope(path[-2], path[-1]) >= _slope(path[-1], choice):
            path.pop()
        path.append(choice)
    return path


def _slope(one: _Choice, other: _Choice) -> float:
    return (other.error - one.error) / max(other.num_bytes - one.num_bytes, 1e-9)


def _choices(
    layers: Layers, codebooks: Codebooks, signals: Signals, formats: Sequence[str]
) -> dict[str, list[_Choice]]:
    """Returns what each layer may become, with its bytes and its measured error."""
    error_of = _error_of_kernel(layers, signals)
    chosen = clustered_layers(layers)
    if not chosen:
        raise ValueError("the model has no convolution or matrix to cluster")
    most = {layer.name: _most_k(layer, codebooks.per_sign) for layer in chosen}
    found: dict[str, list[_Choice]] = {layer.name: [] for layer in chosen}
    for k in K_CHOICES:
        k_of = {name: min(k, limit) for name, limit in most.items()}
        if min(k_of.values()) < 2:
            poor = min(k_of, key=k_of.__getitem__)
            raise ValueError(f"layer {poor} has fewer than 2 distinct weights to cluster")
        centroids = {
            layer.name: find_centroids(
                layer.weights["kernel"], k_of[layer.name], per_sign=codebooks.per_sign,
                algorithm=codebooks.algorithm, seed=codebooks.seed,
            )
            for layer in chosen
        }  # fmt: skip

        def kernel_of(
            layer: LayerSpec, how: str, centroids: dict[str, np.ndarray] = centroids
        ) -> np.ndarray:
            return with_centroids(
                layer.weights["kernel"], centroids[layer.name], per_sign=codebooks.per_sign,
                centroids=how,
            )  # fmt: skip

        exact = tuple(
            with_kernel(layer, kernel_of(layer, "fp32")) if layer.name in centroids else layer
            for layer in layers
        )
        # All layers in one file: what one has learnt, the next one's code starts from.
        sizes = unpack(pack(exact, {})).kernel_bytes
        for layer in chosen:
            name = layer.name
            for how in formats:
                kernel = kernel_of(layer, how)
                saved = (4 - {"fp32": 4, "fp16": 2, "int8": 1}[how]) * k_of[name]
                error = error_of(name, kernel)
                found[name].append(_Choice(k_of[name], how, sizes[name] - saved, error, kernel))
    return found


def _most_k(layer: LayerSpec, per_sign: bool) -> int:
    kernel = layer.weights["kernel"]
    signs = (kernel[kernel < 0], kernel[kernel > 0]) if per_sign else (kernel[kernel != 0],)
    return min(len(np.unique(values)) for values in signs)


def _with_kernels(layers: Layers, kernels: Mapping[str, np.ndarray]) -> Layers:
    return tuple(
        with_kernel(layer, kernels[layer.name]) if layer.name in kernels else layer
        for layer in layers
    )


def _error_of_kernel(layers: Layers, signals: Signals) -> Callable[[str, np.ndarray], float]:
    """Returns what tells the error of the output with one layer's kernel quantized.

    A network over time and frequency has many layers; what reaches them says what an error of one
    does to the output, without running the network once for each choice.
    """
    if not graphs.are_spectra(signals):
        measure = error_measure(layers, signals)
        return lambda name, kernel: measure(_with_kernels(layers, {name: kernel}))
    by_name = {layer.name: layer for layer in layers}
    found = {layer.name: s.inputs for layer, s in graphs.unchanged(layers, signals)}

    def error(name: str, kernel: np.ndarray) -> float:
        layer = by_name[name]
        moved = taps_of(with_kernel(layer, kernel)) - taps_of(layer).astype(np.float64)
        moved = moved.reshape(-1, moved.shape[2])
        return float(np.einsum("rf,rf->", moved, found[name] @ moved))

    return error


def can_measure(layers: Layers, signals: Signals) -> bool:
    """Returns whether `error_measure` runs the network, and does not only compare its kernels."""
    return graphs.are_spectra(signals) or (bool(signals) and _runner(layers) is not None)


def error_measure(layers: Layers, signals: Signals) -> Callable[[Layers], float]:
    """Returns what measures the error of a network's output after its weights have changed.

    Args:
        layers: The network as it was.
        signals: Its inputs. Without any, and for networks of kinds that nothing here runs, the
            errors of the kernels count, each relative to its power.

    Returns:
        Network -> relative power of the error of its output, in the mean over the signals. Of
        waveforms the best gain is applied first: the scale of an enhanced signal means nothing.
    """
    run: Callable[[Layers, Any], np.ndarray] | None = None
    if graphs.are_spectra(signals):
        run = graphs.estimate
    elif signals:
        run = _runner(layers)
    if run is None:
        kernels = {x.name: x.weights["kernel"] for x in layers if "kernel" in x.weights}
        powers = {name: np.square(kernel, dtype="f8").sum() for name, kernel in kernels.items()}
        return lambda changed: float(
            sum(
                np.square(x.weights["kernel"] - kernels[x.name], dtype="f8").sum() / powers[x.name]
                for x in changed
                if x.name in kernels and x.weights["kernel"] is not kernels[x.name]
            )
        )
    relative = _relative_error if graphs.are_spectra(signals) else _relative_error_at_best_gain
    wanted = [run(layers, signal) for signal in signals]

    def error(changed: Layers) -> float:
        return float(
            np.mean(
                [
                    relative(run(changed, signal), output)
                    for signal, output in zip(signals, wanted, strict=True)
                ]
            )
        )

    return error


def _relative_error(result: np.ndarray, wanted: np.ndarray) -> float:
    error = result - wanted
    return float(np.vdot(error, error).real / max(np.vdot(wanted, wanted).real, 1e-30))


def _relative_error_at_best_gain(result: np.ndarray, wanted: np.ndarray) -> float:
    powers = np.square(result).sum() * np.square(wanted).sum()
    return 1 - np.sum(result * wanted) ** 2 / max(powers, 1e-30)


def _runner(layers: Layers) -> Callable[[Layers, np.ndarray], np.ndarray] | None:
    """Returns what runs a network on a signal, the faster the better; None if nothing here does."""
    from quantization.calibration import stages_of
    from speech.net import blockconv
    from speech.net.chain import blocks_from_layers, parameters_of
    from speech.net.inference import InferenceNetwork

    found = blocks_from_layers([(layer.class_name, layer.config) for layer in layers])
    if found is None:
        return None
    kept: dict[str, Any] = {}

    def prepared(network: Layers, make: Callable[[], Any]) -> Any:
        if kept.get("layers") is not network:
            kept["layers"], kept["network"] = network, make()
        return kept["network"]

    if blockconv.is_available():

        def run(network: Layers, signal: np.ndarray) -> np.ndarray:
            made = prepared(
                network,
                lambda: InferenceNetwork(found[0], parameters_of(network), tanh=found[1]),
            )
            return made(signal).astype(np.float64)

    else:

        def run(network: Layers, signal: np.ndarray) -> np.ndarray:
            for stage in prepared(network, lambda: stages_of(network)):
                signal = stage.activate(stage.convolve(signal))
            return signal.astype(np.float64)

    return run
