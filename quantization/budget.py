"""Finds the lambda of ``quantization.ratedistortion`` for a file size or an output error.

Both searches are deterministic. The size is measured on the packed file itself, and the error by
running the network: neither is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quantization import graphs
from quantization.calibration import stages_of
from quantization.ratedistortion import MAX_LAMBDA, RateDistortion, Signals
from speech.modelfile.spec import LayerSpec
from speech.net import blockconv
from speech.net.chain import blocks_from_layers, parameters_of
from speech.net.inference import InferenceNetwork

Layers = tuple[LayerSpec, ...]

MIN_LAMBDA = 1e-7
#: The search for lambda ends within this share of the bytes, or after so many tries.
_CLOSE = 0.985
#: Likewise of the error.
_CLOSE_ERROR = 0.9
_MAX_TRIES = 9


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
    where, smallest = (math.exp(number) for number in min(known, key=lambda pair: pair[1]))
    raise ValueError(
        f"{target:,} bytes cannot be reached: the smallest file, with lambda {where:.3g}, has "
        f"{round(smallest):,}; give more, or prune the model first"
    )


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
        ValueError: The error is larger at any lambda, or no lambda leaves anything of a layer.
    """
    low, high = math.log(MIN_LAMBDA), math.log(MAX_LAMBDA)
    below: tuple[float, float] | None = None  # log lambda, log error: small enough
    best: Layers | None = None
    above: tuple[float, float] | None = None
    smallest = math.inf
    refused: ValueError | None = None
    reach = 1.2  # of the next step down, in gaps between the error and the target
    place = min(max(math.log(start), low), high)
    for _ in range(_MAX_TRIES):
        try:
            found = quantize(math.exp(place))
        except ValueError as error_of_try:  # nothing is left of a layer
            refused = error_of_try
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
            # Where errors fall slowly, steps as long as the gap would never pass the target.
            step = reach * (above[1] - math.log(target))
            following, reach = max(above[0] - max(step, 0.1), low), 1.5 * reach
        if abs(following - place) < 1e-3:
            break
        place = following
    if best is None or below is None:
        if refused is not None and not math.isfinite(smallest):
            raise refused
        raise ValueError(
            f"an error {-10 * math.log10(target):.1f} dB down cannot be reached: the smallest is "
            f"{-10 * math.log10(smallest):.1f} dB down; ask for less"
        )
    return math.exp(below[0]), best


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
