"""Runs a network on signals, layer by layer, and measures how much each filter matters.

Rate-distortion quantization (``quantization.ratedistortion``) weighs an error of a kernel by its
effect on the output of the network. The correlations of a layer's inputs give its effect on the
output of the layer, and gradients give the effect of that on the output of the network.

Conventions: a signal is float32 [time, channels]. The weights of a layer are seen as a matrix
[taps x in, filters], the input channel running faster. Correlations are means over time, of inputs
without their mean if a normalisation follows, which takes the mean away. NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from speech.base.lazy import scipy
from speech.data.corpus import bundled_noise, bundled_speech, render, spread_mixtures
from speech.data.pipeline import Batch, Batches
from speech.modelfile.spec import LayerSpec
from speech.net.chain import ConvBlock, blocks_from_layers, parameters_of, split_parameters
from speech.sound.audio import SAMPLE_RATE_HZ, peak_normalize
from speech.training.request import SNRS_DB

#: Mixtures of the bundled corpus that are used without other data, and seconds of each.
NUM_SIGNALS = 16
SECONDS = 2.0
_MIN_BLOCK = 1024


@dataclass(frozen=True)
class Stage:
    """A convolution with what follows it up to the next one.

    Attributes:
        name: Of the convolution.
        block: What it is.
        kernel: float32 [taps, in, filters].
        bias: float32 [filters].
        gamma: float32 [filters]; ones if there is no normalisation.
        beta: float32 [filters]; zeros likewise.
        tanh: Whether a tanh ends it.
    """

    name: str
    block: ConvBlock
    kernel: np.ndarray
    bias: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    tanh: bool

    def convolve(self, signal: np.ndarray) -> np.ndarray:
        """Returns the convolution, 'same', bias included."""
        return convolve(signal, self.kernel, (len(self.kernel) - 1) // 2) + self.bias

    def activate(self, inputs: np.ndarray) -> np.ndarray:
        """Returns what follows the convolution."""
        outputs = inputs
        if self.block.normalized:
            outputs = self.gamma * _normalized(inputs, self.block.epsilon)[0] + self.beta
        if self.block.slope != 1.0:
            outputs = np.where(outputs > 0, outputs, self.block.slope * outputs)
        return np.tanh(outputs) if self.tanh else outputs

    def activation_gradient(self, inputs: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Returns the gradient before ``activate``, given that behind it."""
        if self.tanh:
            gradient = gradient * (1 - np.tanh(inputs) ** 2)
        if not self.block.normalized:
            return np.where(inputs > 0, gradient, self.block.slope * gradient)
        unit, deviation = _normalized(inputs, self.block.epsilon)
        rising = self.gamma * unit + self.beta > 0
        gradient = self.gamma * np.where(rising, gradient, self.block.slope * gradient)
        level = gradient.mean(0) + unit * (gradient * unit).mean(0)
        return (gradient - level) / deviation


def stages_of(layers: Sequence[LayerSpec]) -> list[Stage] | None:
    """Returns the stages of a network that is a chain of convolutions; None if it is no such."""
    found = blocks_from_layers([(layer.class_name, layer.config) for layer in layers])
    if found is None:
        return None
    blocks, tanh = found
    names = [layer.name for layer in layers if layer.class_name == "Conv1D"]
    groups = split_parameters(blocks, parameters_of(layers))
    stages = []
    for name, block, group in zip(names, blocks, groups, strict=True):
        zeros = np.zeros(group[0].shape[2], np.float32)
        bias = group[1] if block.use_bias else zeros
        gamma, beta = group[-2:] if block.normalized else (zeros + 1, zeros)
        stages.append(Stage(name, block, group[0], bias, gamma, beta, False))
    stages[-1] = replace(stages[-1], tanh=tanh)
    return stages


def bundled_signals(num_signals: int = NUM_SIGNALS, seconds: float = SECONDS) -> list[np.ndarray]:
    """Returns training mixtures of the bundled corpus at -5 to 15 dB, float32 [time, 1]."""
    plans = spread_mixtures(bundled_speech("TRAIN"), bundled_noise("TRAIN"), SNRS_DB, 1)
    chosen = [plans[place] for place in np.linspace(0, len(plans) - 1, num_signals).astype(int)]
    length = round(seconds * SAMPLE_RATE_HZ)
    found = []
    for plan in chosen:
        noisy = peak_normalize(render(plan).noisy).astype(np.float32)
        first = max(0, (len(noisy) - length) // 2)
        found.append(noisy[first : first + length, None])
    return found


def signals_of(
    data: Batches[Batch], num_signals: int = NUM_SIGNALS, seconds: float = SECONDS
) -> list[np.ndarray]:
    """Returns the first inputs of training data, float32 [time, 1], no longer than so."""
    most = round(seconds * SAMPLE_RATE_HZ)
    found: list[np.ndarray] = []
    for place in range(len(data)):
        batch = data.batch(place)
        for one, length in zip(batch.noisy, batch.lengths, strict=True):
            first = max(0, (int(length) - most) // 2)
            found.append(np.array(one[first : min(int(length), first + most)]))
            if len(found) == num_signals:
                return found
    return found


# --------------------------------------------------------------------------------------------
# Convolutions and correlations by overlapping blocks


def convolve(signal: np.ndarray, kernel: np.ndarray, before: int) -> np.ndarray:
    """Returns y[n] = sum over t of kernel[t] signal[n + t - before], zeros outside.

    Args:
        signal: float32 [time, in].
        kernel: [taps, in, out].
        before: Zeros in front of the signal.

    Returns:
        float32 [time, out].
    """
    taps = len(kernel)
    size = _block_size(taps)
    hop = size - taps + 1
    spectra = _spectra(signal, before, size, hop)
    weights = np.conj(scipy.fft.rfft(np.asarray(kernel, np.float32), size, axis=0))
    blocks = scipy.fft.irfft(np.matmul(spectra, weights), size, axis=0)[:hop]
    return blocks.transpose(1, 0, 2).reshape(-1, kernel.shape[2])[: len(signal)]


def cross_correlation(one: np.ndarray, other: np.ndarray, first: int, count: int) -> np.ndarray:
    """Returns c[l] = sum over n of one[n] other[n + first + l], zeros outside.

    Args:
        one: float32 [time, a].
        other: float32 [time, b].
        first: The smallest lag.
        count: How many lags.

    Returns:
        float64 [count, a, b].
    """
    size = _block_size(count)
    hop = size - count + 1
    left = _spectra(one, 0, size, hop, window=hop)
    right = _spectra(other, -first, size, hop)
    summed = np.matmul(np.conj(left).transpose(0, 2, 1), right)
    return scipy.fft.irfft(summed.astype(np.complex128), size, axis=0)[:count]


def _block_size(taps: int) -> int:
    return max(_MIN_BLOCK, 1 << (4 * taps - 1).bit_length())


def _spectra(
    signal: np.ndarray, before: int, size: int, hop: int, window: int | None = None
) -> np.ndarray:
    """Returns spectra complex64 [size/2 + 1, blocks, channels] of overlapping blocks.

    Block b begins at sample b hop - before; only its first ``window`` samples are taken.
    """
    num_blocks = -(-len(signal) // hop)
    padded = np.zeros((max((num_blocks - 1) * hop + size, before + len(signal)), signal.shape[1]),
                      np.float32)  # fmt: skip
    start = max(before, 0)
    part = signal[max(-before, 0) :][: len(padded) - start]
    padded[start : start + len(part)] = part
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=0)[::hop][:num_blocks]
    return scipy.fft.rfft(windows[..., :window].transpose(2, 0, 1), size, axis=0)


def _normalized(inputs: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    centred = inputs - inputs.mean(0)
    deviation = np.sqrt(np.mean(centred**2, axis=0) + np.float32(epsilon))
    return centred / deviation, deviation


# --------------------------------------------------------------------------------------------
# What quantization needs


@dataclass(frozen=True)
class Statistics:
    """Statistics that tell how an error of a layer's weights changes the layer's output.

    Attributes:
        inputs: float64 [taps x in, taps x in], correlation of the inputs that reach a layer.
        targets: float64 [taps x in, filters], their correlation with the outputs wanted.
    """

    inputs: np.ndarray
    targets: np.ndarray


def statistics(
    signals: Sequence[np.ndarray], wanted: Sequence[np.ndarray], stage: Stage
) -> Statistics:
    """Returns the correlations of a layer's inputs, and with its outputs.

    Every signal counts the same, whatever its length and level.

    Args:
        signals: What reaches the layer.
        wanted: What the convolution should give for each.
        stage: The layer.
    """
    taps, channels, filters = stage.kernel.shape
    lags = np.zeros((2 * taps - 1, channels, channels))
    crossed = np.zeros((taps, channels, filters))
    pad = (taps - 1) // 2
    for signal, outputs in zip(signals, wanted, strict=True):
        outputs = outputs - stage.bias
        if stage.block.normalized:
            signal, outputs = signal - signal.mean(0), outputs - outputs.mean(0)
        power = max(float(np.square(signal).sum(dtype=np.float64)), 1e-30) / channels
        lags += cross_correlation(signal, signal, 1 - taps, 2 * taps - 1) / power
        # Tap t meets the input t - pad later than the output.
        found = cross_correlation(outputs, signal, -pad, taps)
        crossed += found.transpose(0, 2, 1) / power
    # Between taps t and u the input's lag is u - t.
    place = np.arange(taps)[None, :] - np.arange(taps)[:, None] + taps - 1
    inputs = lags[place].transpose(0, 2, 1, 3).reshape(taps * channels, taps * channels)
    num_signals = len(signals)
    return Statistics(
        (inputs + inputs.T) / (2 * num_signals),
        crossed.reshape(taps * channels, filters) / num_signals,
    )


def sensitivities(
    stages: Sequence[Stage], signals: Sequence[np.ndarray], *, probes: int = 1
) -> list[np.ndarray]:
    """Returns how much noise in each filter's output adds to that of the network.

    The factor from power of white noise in the output of a convolution to the power of the error
    of the network's output, relative to the power of that output: the mean square of the gradient
    of random projections of the output.

    Args:
        stages: The network.
        signals: Its inputs.
        probes: Projections per signal.

    Returns:
        float64 [filters] for each stage; the input's power of a stage counts as in `statistics`.
    """
    rng = np.random.default_rng(0)
    totals = [np.zeros(stage.kernel.shape[2]) for stage in stages]
    for signal in signals:
        inputs, powers = [], []
        for stage in stages:
            centred = signal - signal.mean(0) if stage.block.normalized else signal
            powers.append(float(np.mean(centred**2, dtype=np.float64)))
            inputs.append(stage.convolve(signal))
            signal = stage.activate(inputs[-1])
        scale = 1 / max(float(np.sum(signal**2, dtype=np.float64)), 1e-30)
        for _ in range(probes):
            gradient = rng.choice(np.array([-1, 1], np.float32), size=signal.shape)
            for index in reversed(range(len(stages))):
                stage = stages[index]
                gradient = stage.activation_gradient(inputs[index], gradient)
                squares = np.sum(gradient**2, axis=0, dtype=np.float64)
                totals[index] += squares * scale * powers[index]
                turned = stage.kernel[::-1].transpose(0, 2, 1)
                taps = len(turned)
                gradient = convolve(gradient, turned, taps - 1 - (taps - 1) // 2)
    return [total / (len(signals) * probes) for total in totals]


def walk(
    stages: Sequence[Stage], signals: Sequence[np.ndarray]
) -> Generator[tuple[Stage, Statistics], Stage, None]:
    """Goes through a network as it is being changed.

    Yields each stage with the statistics of the inputs that reach it through the changed stages
    before it, and of the outputs that the original gives. To each, ``send`` the changed stage.
    """
    original = changed = list(signals)
    for stage in stages:
        wanted = [stage.convolve(signal) for signal in original]
        new = yield stage, statistics(changed, wanted, stage)
        original = [stage.activate(outputs) for outputs in wanted]
        del wanted
        changed = [new.activate(new.convolve(signal)) for signal in changed]
