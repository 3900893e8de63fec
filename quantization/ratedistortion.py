"""Quantization for the smallest file at a given error: cost = error + lambda x code length.

::

    layers = quantize(layers, RateDistortion(lam=0.003), bundled_signals())

The kernels of a chain of convolutions are quantized one after the other. What counts is not how far
a weight moves but what that does to the output of its layer (``quantization.calibration``):

* The error of a layer is e' R e summed over filters, R the correlation of its inputs between taps
  and channels, times the layer's part in the error of the network's output.
* Weights are decided tap by tap in the order in which they are coded; the error of each is made up
  for by the weights to come, as well as R allows (LDL feedback; Frantar et al. 2023, GPTQ). Then
  each weight is decided again, given all others.
* The code length is that of the coder of the packed file, with its contexts
  (``speech.modelfile.icse``); zero is a symbol and the cheapest one where weights are small.
* Centroids, zero apart, move to the least squares under R; code lengths are counted again; so a few
  times over.
* What is wanted of a layer are the outputs of the original network, given the inputs that come out
  of the layers quantized before: their errors are made up for as well.
* Channels behind a LeakyReLU may have any scale, if gamma and beta of the normalisation before it
  take it along: scales are chosen so that one codebook suits all of a layer, and the network stays
  what it is. Filters in front of a normalisation could be scaled as well; it does not pay.

Lambda is in relative power of the output's error for a bit a weight, and so does not depend on the
size of the network: an error of X dB goes with about a tenth of its power.

A network over time and frequency goes the same way, layer by layer through its graph
(``quantization.graphs``), with three differences: each place of a layer's output counts as much as
an error there does to the estimate; the bias makes up for the mean of an error; and as its kernels
are small, the values of a codebook cost the bits that they take, and contexts are left out. A layer
that a residual or a skip goes past may lose all of its weights.

Networks of another kind have no such statistics: their weights' own errors count, relative to the
power of their layer.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantization import calibration, graphs
from quantization.calibration import Stage, Statistics, stages_of, walk
from quantization.config import WEIGHTINGS
from quantization.kmeans import clustered_layers, round_centroids, with_kernel
from speech.base.lazy import scipy
from speech.modelfile.icse import as_matrix, fitted_contexts, flat_contexts
from speech.modelfile.spec import LayerSpec, is_chain
from speech.net.taps import taps_of, with_taps

#: Inputs of a network: signals float32 [time, 1], or the spectra of ``quantization.graphs``.
Signals = Sequence[np.ndarray] | Sequence[graphs.Spectrum]
#: By layer name: a ``graphs.Sensitivity``, or of a chain float64 [filters].
Sensitivities = Mapping[str, Any]

MAX_LAMBDA = 1.0

#: Step of the first codebook: the one at which ``_STEP_COST`` step^2 = lambda.
_STEP_COST = 0.15
_MAX_LEVEL = 100
#: Added to the diagonal of R, of its mean.
_DAMPING = 1e-3
#: The same in fitting the weights that are wanted, by so many steps.
_TARGET_DAMPING = 1e-4
_TARGET_ITERATIONS = 100
_MAX_CHANNEL_SCALE = 16.0
#: Times that all weights are decided and the centroids moved.
_PASSES = 3
#: Bits that a value of a small codebook takes, with those in which the coder gets to know it.
_BOOK_BITS = {"fp32": 36.0, "fp16": 20.0, "int8": 12.0}
#: Strength of the prior in the counts of a context.
_PRIOR = 4.0


@dataclass(frozen=True)
class RateDistortion:
    """Settings of a rate-distortion quantization.

    Attributes:
        lam: Lambda, see the module.
        centroids: One of ``quantization.config.FORMATS``.
        weighting: One of `WEIGHTINGS`.

    Raises:
        ValueError: A value makes no sense.
    """

    lam: float = 0.003
    centroids: str = "fp16"
    weighting: str = WEIGHTINGS[0]

    def __post_init__(self) -> None:
        """Checks the values."""
        check_lambda(self.lam)
        if self.weighting not in WEIGHTINGS:
            raise ValueError(
                f"weighting is {self.weighting!r}; give one of {', '.join(WEIGHTINGS)}"
            )
        round_centroids(np.ones(1), self.centroids)


def check_lambda(lam: float) -> None:
    """Raises ValueError unless 0 < lambda <= 1."""
    if not (isinstance(lam, int | float) and 0 < lam <= MAX_LAMBDA):
        raise ValueError(f"lambda is {lam!r}; give a number above 0, at most {MAX_LAMBDA:g}")


def sensitivities(layers: Sequence[LayerSpec], signals: Signals) -> Sensitivities:
    """Returns what errors of each layer do to the output of a network, whatever lambda is.

    Args:
        layers: The network.
        signals: As `quantize` takes them.

    Returns:
        Layer name -> what the error counts; {} for networks that have no such statistics.
    """
    if graphs.are_spectra(signals):
        return graphs.sensitivities(layers, signals)
    waveforms = [np.asarray(signal) for signal in signals]
    stages = stages_of(layers) if waveforms else None
    if stages is None:
        return {}
    factors = calibration.sensitivities(stages, waveforms)
    return {stage.name: own for stage, own in zip(stages, factors, strict=True)}


def quantize(
    layers: Sequence[LayerSpec],
    settings: RateDistortion,
    signals: Signals,
    *,
    original: Sequence[LayerSpec] | None = None,
    known: Sensitivities | None = None,
) -> tuple[LayerSpec, ...]:
    """Returns the network with quantized kernels; channels that are all zero stay so.

    Args:
        layers: The network.
        settings: How.
        signals: What it is for: float32 [time, 1] each, see ``calibration.bundled_signals``; for a
            network over time and frequency ``graphs.spectra_of`` them.
        original: Network whose zero channels stay zero as well; None for ``layers``.
        known: What `sensitivities` gives for these layers and signals, if it is at hand.

    Raises:
        ValueError: There is nothing to quantize, or lambda is so large that nothing is left.
    """
    found = clustered_layers(layers)
    if not found:
        raise ValueError("the model has no convolution or matrix to cluster")
    known = sensitivities(layers, signals) if known is None else known
    if graphs.are_spectra(signals):
        walking = graphs.walk(layers, signals, known)
        result = _quantize_graph(layers, settings, walking, original or layers)
    else:
        waveforms = [np.asarray(signal) for signal in signals]
        kept = {
            layer.name: np.asarray(as_matrix(layer.weights["kernel"]).any(axis=0))
            for layer in clustered_layers(original)
        } if original is not None else {}  # fmt: skip
        stages = stages_of(layers)
        if stages is None or not waveforms:
            result = _quantize_apart(layers, settings, kept)
        else:
            result = _with_stages(layers, _quantize_chain(stages, settings, waveforms, kept, known))
    gone = {layer.name for layer in found} - {layer.name for layer in clustered_layers(result)}
    if not is_chain(layers) and found[-1].name not in gone:
        gone = set()  # what goes past a layer in a residual or a skip still arrives
    if gone:
        raise ValueError(
            f"lambda {settings.lam:g} leaves nothing of layer {sorted(gone)[0]}; give a smaller one"
        )
    return result


def _quantize_chain(
    stages: Sequence[Stage],
    settings: RateDistortion,
    signals: Sequence[np.ndarray],
    kept_of: dict[str, np.ndarray],
    known: Sensitivities,
) -> list[Stage]:
    """Quantizes a chain of convolutions, each behind those before it."""
    lam = settings.lam / sum(stage.kernel.size for stage in stages)
    done: list[Stage] = []
    walking = walk(stages, signals)
    stage, found = next(walking)
    for index in range(len(stages)):
        kept = np.asarray(stage.kernel.any(axis=0))
        if stage.name in kept_of:
            kept = np.asarray(kept & kept_of[stage.name].reshape(kept.shape))
        # Scales of filters: their squares sum to the layer's part in the error.
        parts = known[stage.name]
        scales = np.full(len(parts), math.sqrt(max(float(parts.mean()), 1e-30)))
        problem = _problem(stage, found, kept, scales, settings)
        channels = np.ones(stage.kernel.shape[1])
        if index and done[-1].block.slope >= 0:
            channels = _channel_scales(problem)
            problem = problem.with_channels(channels)
            previous = done[-1]
            if previous.block.normalized:
                done[-1] = replace(
                    previous,
                    gamma=(previous.gamma * channels).astype(np.float32),
                    beta=(previous.beta * channels).astype(np.float32),
                )
            else:  # nothing there that could take the scales along
                problem = problem.with_channels(1 / channels)
                channels = np.ones_like(channels)
        values, indices = _solve(problem, lam)
        # Behind a normalisation the scale of a filter has no effect: the kernel keeps its size.
        undo = np.exp(np.log(scales).mean()) if stage.block.normalized else scales[0]
        book = round_centroids(values / undo, settings.centroids)
        kernel = book[indices]
        done.append(replace(stage, kernel=kernel + np.float32(0)))
        # The signals of the walk have no channel scales yet: the kernel takes them along.
        own = replace(stage, kernel=(kernel * channels[:, None]).astype(np.float32))
        if index + 1 < len(stages):
            stage, found = walking.send(own)
    return done


def _quantize_graph(
    layers: Sequence[LayerSpec],
    settings: RateDistortion,
    walking: Generator[tuple[LayerSpec, graphs.Statistics], LayerSpec, None],
    original: Sequence[LayerSpec],
) -> tuple[LayerSpec, ...]:
    """Quantizes the kernels of a network over time and frequency, each behind those before it."""
    kept_of = {layer.name: _kept_weights(layer) for layer in clustered_layers(original)}
    lam = settings.lam / sum(layer.weights["kernel"].size for layer in clustered_layers(layers))
    done: dict[str, LayerSpec] = {}
    try:
        layer, statistics = next(walking)
        while True:
            if layer.weights["kernel"].any():
                kept = _kept_weights(layer) & kept_of.get(layer.name, True)
                layer = _quantize_layer(layer, statistics, kept, lam, settings)
            done[layer.name] = layer
            layer, statistics = walking.send(layer)
    except StopIteration:
        return tuple(done.get(layer.name, layer) for layer in layers)


def _kept_weights(layer: LayerSpec) -> np.ndarray:
    """Returns which weights are in channels that are not all zero, bool [taps, in, out]."""
    taps = taps_of(layer)
    return np.broadcast_to(taps.any(axis=0), taps.shape)


def _quantize_layer(
    layer: LayerSpec,
    found: graphs.Statistics,
    kept: np.ndarray,
    lam: float,
    settings: RateDistortion,
) -> LayerSpec:
    """Quantizes a kernel; its bias makes up for the mean of the error."""
    taps = taps_of(layer)
    # The coder goes through a Dense kernel input by input.
    shape = (taps.shape[1], 1, taps.shape[2]) if layer.class_name == "Dense" else taps.shape
    wanted = taps.reshape(-1, taps.shape[2]).astype(np.float64)
    if settings.weighting == "correlation":
        wanted = _solved_weights(found, wanted, kept.reshape(wanted.shape))
    # A layer may matter next to nothing: its errors count by the mean, and bits as much more.
    scale = float(np.trace(found.inputs)) / len(found.inputs)
    problem = _weighed(found.inputs / scale, wanted, kept.reshape(shape), settings)
    problem = replace(problem, book_bits=_BOOK_BITS[settings.centroids])
    values, indices = _solve(problem, lam / scale)
    kernel = round_centroids(values, settings.centroids)[indices].reshape(taps.shape)
    layer = with_taps(layer, kernel + np.float32(0))
    if "bias" in layer.weights and settings.weighting == "correlation":
        error = found.mean_input @ kernel.reshape(wanted.shape).astype(np.float64)
        bias = (found.mean_target - error).astype(np.float32)
        layer = replace(layer, weights={**layer.weights, "bias": bias})
    return layer


def _quantize_apart(
    layers: Sequence[LayerSpec], settings: RateDistortion, kept_of: dict[str, np.ndarray]
) -> tuple[LayerSpec, ...]:
    """Quantizes each kernel for its own error."""
    chosen = clustered_layers(layers)
    lam = settings.lam / sum(layer.weights["kernel"].size for layer in chosen)
    result = []
    for layer in layers:
        if layer.name not in {one.name for one in chosen}:
            result.append(layer)
            continue
        kernel = layer.weights["kernel"]
        matrix = as_matrix(kernel)
        kept = matrix.any(axis=0) & kept_of.get(layer.name, True)
        power = float(np.square(kernel, dtype=np.float64).sum()) * len(chosen)
        weights = matrix[:, np.newaxis] / math.sqrt(power)
        problem = _Problem(weights, np.broadcast_to(kept, weights.shape), None)
        values, indices = _solve(problem, lam)
        book = round_centroids(values * math.sqrt(power), settings.centroids)
        result.append(with_kernel(layer, book[indices].reshape(kernel.shape) + np.float32(0)))
    return tuple(result)


def _with_stages(layers: Sequence[LayerSpec], stages: Sequence[Stage]) -> tuple[LayerSpec, ...]:
    """Returns the layers with the kernels and normalisations of stages."""
    remaining = iter(stages)
    result = []
    for layer in layers:
        if layer.class_name == "Conv1D":
            stage = next(remaining)
            layer = with_kernel(layer, stage.kernel)
        elif layer.class_name == "GroupNormalization":
            layer = replace(layer, weights={"gamma": stage.gamma, "beta": stage.beta})
        result.append(layer)
    return tuple(result)


# --------------------------------------------------------------------------------------------
# One layer


@dataclass(frozen=True)
class _Problem:
    """Weights to quantize and what their errors count.

    Attributes:
        wanted: float [taps, in, filters].
        kept: bool [taps, in, filters]; the others are zero.
        correlation: float64 [taps x in, taps x in]; None for the unit matrix.
        book_bits: Bits that each value of the codebook takes; 0 if they are few beside the bits of
            the weights. Otherwise the kernel is small, and its indices are coded without contexts.
    """

    wanted: np.ndarray
    kept: np.ndarray
    correlation: np.ndarray | None
    book_bits: float = 0.0

    def with_channels(self, scales: np.ndarray) -> _Problem:
        """Returns the same problem, inputs multiplied by scales [in]."""
        every = np.tile(scales, len(self.wanted))
        return _Problem(
            self.wanted / scales[:, None], self.kept, self.correlation * every[:, None] * every
        )


def _problem(
    stage: Stage,
    found: Statistics,
    kept: np.ndarray,
    scales: np.ndarray,
    settings: RateDistortion,
) -> _Problem:
    """Returns what is wanted of a stage, its filters multiplied by ``scales``."""
    start = stage.kernel.reshape(-1, stage.kernel.shape[2]) * scales
    kept = np.broadcast_to(kept, stage.kernel.shape)
    if settings.weighting == "correlation":
        damping = _TARGET_DAMPING * float(np.trace(found.inputs)) / len(found.inputs)
        start = _fitted_weights(found, start, scales, kept.reshape(start.shape), damping)
    return _weighed(found.inputs, start, kept, settings)


def _weighed(
    correlation: np.ndarray, start: np.ndarray, kept: np.ndarray, settings: RateDistortion
) -> _Problem:
    """Returns wanted weights and what their errors count, as settings say.

    Args:
        correlation: float64 [taps x in, taps x in], of the inputs.
        start: float [taps x in, filters], the weights that are wanted.
        kept: bool [taps, in, filters].
        settings: How to weigh.
    """
    mean = float(np.trace(correlation)) / len(correlation)
    if settings.weighting == "power":
        correlation = np.diag(np.diag(correlation))
    elif settings.weighting == "plain":
        correlation = mean * np.eye(len(correlation))
    correlation = correlation + _DAMPING * max(mean, 1e-30) * np.eye(len(correlation))
    return _Problem(start.reshape(kept.shape), kept, correlation)


def _solved_weights(found: graphs.Statistics, start: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Returns the weights that give the wanted outputs best, near ``start``, for few of them.

    Args:
        found: Of the layer.
        start: float64 [taps x in, filters].
        kept: bool, likewise; the others are zero.
    """
    damping = _TARGET_DAMPING * float(np.trace(found.inputs)) / len(found.inputs)
    matrix = found.inputs + damping * np.eye(len(start))
    targets = found.targets + damping * start
    if kept.all():
        return scipy.linalg.solve(matrix, targets, assume_a="pos")
    solved = np.zeros_like(start)
    for filter_, own in enumerate(kept.T):
        if own.any():
            part, wanted = matrix[np.ix_(own, own)], targets[own, filter_]
            solved[own, filter_] = scipy.linalg.solve(part, wanted, assume_a="pos")
    return solved


def _fitted_weights(
    found: Statistics, start: np.ndarray, scales: np.ndarray, kept: np.ndarray, damping: float
) -> np.ndarray:
    """Returns the weights that give the wanted outputs best, near ``start``.

    Conjugate gradients on (R + damping) w = B + damping w0, for the weights that are kept.
    """
    correlation = found.inputs.astype(np.float32)
    targets = (found.targets * scales).astype(np.float32)
    weights = (start * kept).astype(np.float32)
    residual = (targets + damping * start - correlation @ weights - damping * weights) * kept
    direction = residual.copy()
    power = np.square(residual).sum(axis=0)
    for _ in range(_TARGET_ITERATIONS):
        mapped = (correlation @ direction + np.float32(damping) * direction) * kept
        curvature = np.maximum((direction * mapped).sum(axis=0), 1e-30)
        weights = weights + power / curvature * direction
        residual = residual - power / curvature * mapped
        following = np.square(residual).sum(axis=0)
        direction = residual + following / np.maximum(power, 1e-30) * direction
        power = following
    return weights.astype(np.float64)


def _channel_scales(problem: _Problem) -> np.ndarray:
    """Returns scales [in] that make what errors cost the same in all channels, about."""
    cost = 1 / np.square(np.diag(_feedback_factor(problem)))
    scales = np.exp(-0.5 * np.log(cost.reshape(problem.wanted.shape[:2])).mean(axis=0))
    scales = (scales / np.exp(np.log(scales).mean())).clip(
        1 / _MAX_CHANNEL_SCALE, _MAX_CHANNEL_SCALE
    )
    # Powers of two: gamma and beta keep their digits.
    return np.exp2(np.rint(np.log2(scales)))


def _feedback_factor(problem: _Problem) -> np.ndarray:
    """Returns the upper Cholesky factor U of the inverse of R."""
    return scipy.linalg.cholesky(scipy.linalg.inv(problem.correlation))


def _solve(problem: _Problem, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns a codebook float64 [k] and indices int [taps, in, filters]."""
    wanted, kept = problem.wanted.astype(np.float32), problem.kept
    correlation = factor = None
    if problem.correlation is not None:
        correlation = problem.correlation.astype(np.float32)
        factor = _feedback_factor(problem).astype(np.float32)
    # The step is right when errors of step^2 / 12 per weight cost as much as the bits they save.
    cost = math.exp(-2 * np.log(np.diag(factor)).mean()) if factor is not None else 1.0
    step = math.sqrt(lam / (_STEP_COST * cost))
    most = int(np.clip(np.ceil(np.abs(wanted).max() / step), 1, _MAX_LEVEL))
    step = max(step, float(np.abs(wanted).max()) / (most + 0.5))
    values = np.arange(-most, most + 1) * step
    indices = np.where(kept, np.rint(wanted / step).astype(int).clip(-most, most), 0) + most
    if correlation is not None:
        targets = correlation @ wanted.reshape(-1, wanted.shape[2])
    for _ in range(_PASSES):
        if correlation is not None and factor is not None:
            coder = _Costs(values, indices, kept, lam, problem.book_bits)
            indices = _with_feedback(wanted, kept, factor, coder)
            coder = _Costs(values, indices, kept, lam, problem.book_bits)
            indices = _one_by_one(wanted, kept, correlation, coder, indices)
            values, indices = _moved_centroids(correlation, targets, values, indices)
        else:
            coder = _Costs(values, indices, kept, lam)
            indices = _apart(wanted, kept, coder)
            values, indices = _own_means(wanted, values, indices)
    return values, indices


class _Costs:
    """The codebook, and lambda times the code length of each index in each context.

    Args:
        values: float64 [k], ascending, zero among them.
        indices: int [taps, in, filters]; the code lengths follow from their statistics.
        kept: bool [taps, in, filters]; columns in which nothing is kept are not coded.
        lam: What a bit costs.
        book_bits: Of `_Problem`.
    """

    def __init__(
        self,
        values: np.ndarray,
        indices: np.ndarray,
        kept: np.ndarray,
        lam: float,
        book_bits: float = 0.0,
    ) -> None:
        self.values = values.astype(np.float32)
        self.zero = int(np.abs(values).argmin())
        rows = indices.reshape(len(indices), -1)[:, kept.any(axis=0).ravel()]
        if book_bits:
            self._contexts = flat_contexts(self.values)
        else:
            self._contexts = fitted_contexts(self.values, rows)
        counts = np.zeros(self._contexts.counts.shape)
        self.restart(rows.shape[1])
        for row in rows:
            np.add.at(counts, (self._contexts.of(self._recent), row), 1)
            self.remember(row)
        common = counts.sum(axis=0) + 0.5
        prior = _PRIOR * common / common.sum()
        lengths = -np.log2((counts + prior) / (counts.sum(axis=1, keepdims=True) + _PRIOR))
        if book_bits:  # shared by the weights of a value: a rare one is not worth its place
            own = counts.sum(axis=0)
            lengths += np.where(np.arange(len(own)) == self.zero, 0.0, book_bits / (own + 1))
        self._table = (lam * lengths).astype(np.float32)

    def restart(self, num_columns: int) -> None:
        """Goes to the first row."""
        self._recent = np.zeros((3, num_columns), np.int32)

    def now(self) -> np.ndarray:
        """Returns the cost of each index in each column, float32 [columns, k]."""
        return self._table[self._contexts.of(self._recent)]

    def remember(self, row: np.ndarray) -> None:
        """Goes on to the next row."""
        self._recent[1:] = self._recent[:2]
        self._recent[0] = self._contexts.levels[row]


def _with_feedback(
    wanted: np.ndarray, kept: np.ndarray, factor: np.ndarray, costs: _Costs
) -> np.ndarray:
    """Decides weights in order; those to come make up for the error of each.

    Args:
        wanted: float32 [taps, in, filters].
        kept: bool [taps, in, filters].
        factor: float32, of ``_feedback_factor``.
        costs: Codebook and code lengths.

    Returns:
        Indices int [taps, in, filters].
    """
    taps, channels, filters = wanted.shape
    left = wanted.reshape(-1, filters).copy()
    indices = np.empty(wanted.shape, np.int64)
    weight = 1 / np.square(np.diag(factor))
    costs.restart(channels * filters)
    for tap in range(taps):
        start, stop = tap * channels, (tap + 1) * channels
        rate = costs.now().reshape(channels, filters, -1)
        errors = np.empty((channels, filters), np.float32)
        for channel, row in enumerate(range(start, stop)):
            cost = np.square(left[row][:, None] - costs.values) * weight[row] + rate[channel]
            chosen = np.where(kept[tap, channel], cost.argmin(axis=1), costs.zero)
            indices[tap, channel] = chosen
            error = errors[channel] = (left[row] - costs.values[chosen]) / factor[row, row]
            left[row + 1 : stop] -= factor[row, row + 1 : stop, None] * error
        left[stop:] -= factor[start:stop, stop:].T @ errors
        costs.remember(indices[tap].ravel())
    return indices


def _one_by_one(
    wanted: np.ndarray,
    kept: np.ndarray,
    correlation: np.ndarray,
    costs: _Costs,
    indices: np.ndarray,
) -> np.ndarray:
    """Decides each weight again, given all others; for shapes see ``_with_feedback``."""
    taps, channels, filters = wanted.shape
    indices = indices.copy()
    slope = correlation @ (wanted - costs.values[indices]).reshape(-1, filters)
    costs.restart(channels * filters)
    for tap in range(taps):
        rate = costs.now().reshape(channels, filters, -1)
        for channel in range(channels):
            row = tap * channels + channel
            weight = correlation[row, row]
            old = costs.values[indices[tap, channel]]
            best = old + slope[row] / weight
            cost = np.square(best[:, None] - costs.values) * weight + rate[channel]
            chosen = np.where(kept[tap, channel], cost.argmin(axis=1), costs.zero)
            change = costs.values[chosen] - old
            if change.any():
                slope -= correlation[row][:, None] * change
                indices[tap, channel] = chosen
        costs.remember(indices[tap].ravel())
    return indices


def _apart(wanted: np.ndarray, kept: np.ndarray, costs: _Costs) -> np.ndarray:
    """Decides each weight by itself."""
    indices = np.empty(wanted.shape, np.int64)
    costs.restart(wanted[0].size)
    for tap, row in enumerate(wanted):
        cost = np.square(row.reshape(-1, 1) - costs.values) + costs.now()
        chosen = cost.argmin(axis=1).reshape(row.shape)
        indices[tap] = np.where(kept[tap], chosen, costs.zero)
        costs.remember(indices[tap].ravel())
    return indices


def _moved_centroids(
    correlation: np.ndarray, targets: np.ndarray, values: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codebook of the least error, zero apart, and the indices into it.

    Args:
        correlation: float32 R.
        targets: float32 [taps x in, filters], R times the wanted weights.
        values: float64 [k].
        indices: int [taps, in, filters].
    """
    k, filters = len(values), indices.shape[2]
    matrix, right = np.zeros((k, k)), np.zeros(k)
    for filter_ in range(filters):
        own = indices[:, :, filter_].ravel()
        ones = (own[:, None] == np.arange(k)).astype(np.float32)
        matrix += ones.T @ (correlation @ ones)
        right += np.bincount(own, targets[:, filter_], k)
    zero = int(np.abs(values).argmin())
    used = [place for place in np.unique(indices) if place != zero]
    part = matrix[np.ix_(used, used)]
    moved = np.zeros(k)
    if used:
        ridge = 1e-6 * np.diag(np.diag(part))
        right = right[used] + 1e-6 * np.diag(part) * values[used]
        moved[used] = np.linalg.solve(part + ridge, right)
    return _compacted(moved, indices, [zero, *used])


def _own_means(
    wanted: np.ndarray, values: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codebook of the means of its weights, zero apart, and the indices into it."""
    zero = int(np.abs(values).argmin())
    used = [place for place in np.unique(indices) if place != zero]
    moved = np.zeros(len(values))
    for place in used:
        moved[place] = wanted[indices == place].mean(dtype=np.float64)
    return _compacted(moved, indices, [zero, *used])


def _compacted(
    values: np.ndarray, indices: np.ndarray, used: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values in use, ascending and each once, and the indices into them."""
    found, places = np.unique(values[list(used)].astype(np.float32), return_inverse=True)
    mapping = np.zeros(len(values), np.int64)
    mapping[list(used)] = places
    return found.astype(np.float64), mapping[indices]
