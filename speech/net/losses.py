"""Losses between enhanced and clean utterances, each once in NumPy and once in ``keras.ops``.

A loss is a weighted sum of terms. A term takes one utterance (NumPy: value and gradient, for the
C kernels) or a padded batch (``keras.ops``: values, for automatic differentiation on any
backend), and both give the same numbers. The loss of a batch is the mean over its utterances,
each with its own length: padding counts nowhere.

Conventions: signals are [num_samples] or [batch, time], full scale at +-1, enhanced and clean at
peak 1 or below. The NumPy forms compute in the dtype they are given.

=========  ==================================================================================
name       terms
=========  ==================================================================================
mse        mean squared error, the papers' (docs/papers.md)
sisdr      negative SI-SDR in dB
stft       L1 of the waveform + 0.5 (spectral convergence + L1 of log magnitudes), three STFTs
spectral   L1 of the waveform + squared error of spectra compressed to the power 0.3, three STFTs
=========  ==================================================================================

'stft' is the loss of Yamamoto et al. (2020, Parallel WaveGAN) as weighted by Defossez et al. (2020,
Real time speech enhancement in the waveform domain). 'spectral' follows Braun and Tashev (2021,
A consolidated view of loss functions for supervised deep learning-based speech enhancement).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from speech.base.lazy import ops, scipy
from speech.net.blockconv import default_threads

#: Power added to a sample's or a bin's: what is 70 dB below full scale counts as silence.
POWER_FLOOR = 1e-7

#: (frame length, hop) in samples at 16 kHz; every sample lies in four frames.
RESOLUTIONS = ((256, 64), (512, 128), (1024, 256))

_LARGE_BLOCK_BYTES = 32 * 10**6

_DB = 10 / math.log(10)  # 10 log10(x) = _DB ln(x)


class Term(Protocol):
    """One term of a loss."""

    def value_and_gradient(
        self, clean: np.ndarray, enhanced: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Returns the value for one utterance [num_samples] and d value / d enhanced."""
        ...

    def values(self, clean: Any, enhanced: Any, lengths: Any) -> Any:
        """Returns the values [batch] for a batch [batch, time] that is zero beyond ``lengths``."""
        ...


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean over time of the squared error."""

    def value_and_gradient(self, clean, enhanced):
        """See :class:`Term`."""
        error = enhanced - clean
        return float(np.dot(error, error)) / len(error), error * (2 / len(error))

    def values(self, clean, enhanced, lengths):
        """See :class:`Term`."""
        return ops.sum(ops.square(enhanced - clean), axis=1) / ops.cast(lengths, enhanced.dtype)


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean over time of the absolute error."""

    def value_and_gradient(self, clean, enhanced):
        """See :class:`Term`."""
        error = enhanced - clean
        return float(np.abs(error).mean()), np.sign(error) * (1 / len(error))

    def values(self, clean, enhanced, lengths):
        """See :class:`Term`."""
        return ops.sum(ops.abs(enhanced - clean), axis=1) / ops.cast(lengths, enhanced.dtype)


@dataclass(frozen=True)
class NegativeSISDR:
    """Negative scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, eq. 4).

    With the target t = a s, a = <e, s> / <s, s>, and the error d = e - t, all as mean squares::

        10 log10((|d|^2 + soft |t|^2 + floor) / (|t|^2 + floor))

    ``soft`` bounds the value (Wisdom et al. 2020, MixIT, eq. 2), ``floor`` keeps silence finite.
    A negative projection counts as none (a = 0): SI-SDR alone does not tell a voice from its
    inverse, and enhanced speech must not come out with the wrong sign.

    Attributes:
        soft_threshold_db: Beyond this SI-SDR nothing more is gained.
        floor: Mean square that counts as silence.
    """

    soft_threshold_db: float = 30.0
    floor: float = 1e-6

    def value_and_gradient(self, clean, enhanced):
        """See :class:`Term`."""
        count = len(clean)
        soft = 10 ** (-self.soft_threshold_db / 10)
        clean_power = float(np.dot(clean, clean)) / count
        reference = clean_power + self.floor
        scale = max(float(np.dot(enhanced, clean)) / count, 0.0) / reference
        error = enhanced - clean.dtype.type(scale) * clean
        target_power = scale**2 * clean_power
        error_power = float(np.dot(error, error)) / count
        upper = error_power + soft * target_power + self.floor
        lower = target_power + self.floor
        # d |t|^2 / d e = along s; d |d|^2 / d e = 2 d / count + along s, by the floor in a.
        d_target = 2 * scale * clean_power / reference / count
        d_error = -2 * float(np.dot(error, clean)) / count / reference / count if scale else 0.0
        along_clean = (d_error + soft * d_target) / upper - d_target / lower
        gradient = error * (_DB * 2 / count / upper) + clean * (_DB * along_clean)
        return _DB * math.log(upper / lower), gradient.astype(enhanced.dtype, copy=False)

    def values(self, clean, enhanced, lengths):
        """See :class:`Term`."""
        count = ops.cast(lengths, enhanced.dtype)
        soft = 10 ** (-self.soft_threshold_db / 10)
        clean_power = ops.sum(ops.square(clean), axis=1) / count
        projection = ops.relu(ops.sum(enhanced * clean, axis=1) / count)
        scale = projection / (clean_power + self.floor)
        error_power = ops.sum(ops.square(enhanced - scale[:, None] * clean), axis=1) / count
        target_power = ops.square(scale) * clean_power
        upper = error_power + soft * target_power + self.floor
        return _DB * ops.log(upper / (target_power + self.floor))


@dataclass(frozen=True)
class _SpectralTerm:
    """A term of the STFTs of enhanced and clean: Hann window, scaled to unit energy.

    Frames start ``size - hop`` before the first sample and go on until they hold no sample, so
    that each sample lies in ``size / hop`` of them and zeros beyond the end change nothing.

    Attributes:
        size: Frame length in samples.
        hop: Samples from frame to frame, a divisor of ``size``.
    """

    size: int = 512
    hop: int = 128

    def value_and_gradient(self, clean, enhanced):
        """See :class:`Term`."""
        window = _window(self.size).astype(enhanced.dtype)
        spectra = (
            scipy.fft.rfft(self._frames(signal) * window, overwrite_x=True)
            for signal in (clean, enhanced)
        )
        value, d_spectrum = self._compare(*spectra)
        # rfft's adjoint: inner bins stand for their mirror image as well.
        d_spectrum[:, 1:-1] *= 0.5
        d_frames = scipy.fft.irfft(d_spectrum, self.size, norm="forward", overwrite_x=True)
        d_frames *= window
        return value, self._overlap_add(d_frames, len(enhanced))

    def values(self, clean, enhanced, lengths):
        """See :class:`Term`."""
        window = ops.convert_to_tensor(_window(self.size), enhanced.dtype)
        spectra: list[Any] = []
        for signal in (clean, enhanced):
            padded = ops.pad(signal, [[0, 0], [self.size - self.hop, self.size]])
            frames = ops.extract_sequences(padded, self.size, self.hop)
            spectra.append(ops.rfft(frames * window))
        num_frames = (ops.cast(lengths, "int32") - 1 + self.size - self.hop) // self.hop + 1
        num_bins = ops.cast(num_frames * (self.size // 2 + 1), enhanced.dtype)
        return self._compare_tensors(spectra[0], spectra[1], num_bins)

    def _compare(self, clean: np.ndarray, enhanced: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the value for spectra [frame, bin] and its gradient in the enhanced spectra."""
        raise NotImplementedError

    def _compare_tensors(self, clean: Any, enhanced: Any, num_bins: Any) -> Any:
        """Returns the values [batch] for pairs of real and imaginary parts [batch, frame, bin]."""
        raise NotImplementedError

    def _frames(self, signal: np.ndarray) -> np.ndarray:
        """Returns overlapping views [frame, size] of a padded copy."""
        before = self.size - self.hop
        num_frames = (len(signal) - 1 + before) // self.hop + 1
        padded = np.zeros((num_frames - 1) * self.hop + self.size, signal.dtype)
        padded[before : before + len(signal)] = signal
        return np.lib.stride_tricks.sliding_window_view(padded, self.size)[:: self.hop]

    def _overlap_add(self, frames: np.ndarray, length: int) -> np.ndarray:
        """Returns [length]: the adjoint of `_frames`."""
        overlap = self.size // self.hop
        blocks = np.zeros((len(frames) + overlap - 1, self.hop), frames.dtype)
        for place in range(overlap):
            blocks[place : place + len(frames)] += frames[
                :, place * self.hop : (place + 1) * self.hop
            ]
        before = self.size - self.hop
        return blocks.ravel()[before : before + length]


class CompressedSpectralError(_SpectralTerm):
    """Squared error of compressed spectra (Braun and Tashev 2021, eq. 7).

    With magnitudes raised to the power c = 0.3, phases kept: 0.7 times the squared error of the
    magnitudes plus 0.3 times that of the complex spectra, mean over frames and bins.
    """

    power = 0.3
    complex_share = 0.3

    def _compare(self, clean, enhanced):
        share = self.complex_share
        _, clean_gain, clean_magnitude = self._compressed(clean)
        level, gain, magnitude = self._compressed(enhanced)
        excess = magnitude - clean_magnitude
        error = enhanced * gain
        error -= clean * clean_gain
        value = (1 - share) * _sum_of_squares(excess) + share * _sum_of_squares(error)
        # With P = |E|^2 + floor: d P^(c/2) = c P^(c/2 - 1) E and d P^((c-1)/2) likewise.
        along = error.real * enhanced.real
        along += error.imag * enhanced.imag
        along *= (2 * share * (self.power - 1)) * gain
        excess *= magnitude
        excess *= 2 * (1 - share) * self.power
        along += excess
        along /= level
        error *= (2 * share) * gain
        error += enhanced * along
        error *= 1 / clean.size
        return value / clean.size, error

    def _compressed(self, spectrum: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns power with floor, its power (c - 1) / 2 and its power c / 2."""
        level = _power(spectrum)
        gain = np.log(level)
        gain *= (self.power - 1) / 2
        np.exp(gain, out=gain)
        magnitude = np.sqrt(level)
        magnitude *= gain
        return level, gain, magnitude

    def _compare_tensors(self, clean, enhanced, num_bins):
        total = 0.0
        parts = []
        for real, imaginary in (clean, enhanced):
            level = ops.square(real) + ops.square(imaginary) + POWER_FLOOR
            gain = ops.exp((self.power - 1) / 2 * ops.log(level))
            parts.append((ops.sqrt(level) * gain, real * gain, imaginary * gain))
        weights = (1 - self.complex_share, self.complex_share, self.complex_share)
        for weight, one, other in zip(weights, *parts, strict=True):
            total = total + weight * ops.sum(ops.square(other - one), axis=(1, 2))
        return total / num_bins


class SpectralConvergenceAndLogMagnitude(_SpectralTerm):
    """Spectral convergence plus L1 of log magnitudes (Yamamoto et al. 2020, eq. 4 to 6)::

    || |S| - |E| || / || S || + mean | ln |S| - ln |E| |
    """  # noqa: D400, D415

    def _compare(self, clean, enhanced):
        level, clean_level = _power(enhanced), _power(clean)
        magnitude = np.sqrt(level)
        difference = magnitude - np.sqrt(clean_level)
        floor = POWER_FLOOR * clean.size
        distance = math.sqrt(_sum_of_squares(difference) + floor)
        norm = math.sqrt(_sum_of_squares(clean) + floor)
        log_ratio = 0.5 * np.log(level / clean_level)
        value = distance / norm + float(np.abs(log_ratio).mean())
        slope = difference / (distance * norm) / magnitude
        slope += np.sign(log_ratio) / level / clean.size
        return value, enhanced * slope

    def _compare_tensors(self, clean, enhanced, num_bins):
        (level, clean_level) = (
            ops.square(real) + ops.square(imaginary) + POWER_FLOOR
            for real, imaginary in (enhanced, clean)
        )
        floor = POWER_FLOOR * num_bins
        difference = ops.sqrt(level) - ops.sqrt(clean_level)
        distance = ops.sqrt(ops.sum(ops.square(difference), axis=(1, 2)) + floor)
        clean_power = ops.sum(ops.square(clean[0]) + ops.square(clean[1]), axis=(1, 2))
        log_ratio = 0.5 * ops.log(level / clean_level)
        return (
            distance / ops.sqrt(clean_power + floor)
            + ops.sum(ops.abs(log_ratio), axis=(1, 2)) / num_bins
        )


@dataclass(frozen=True)
class Loss:
    """A weighted sum of terms, mean over the utterances of a batch.

    Attributes:
        name: As in `LOSSES`.
        terms: (weight, term) pairs.
    """

    name: str
    terms: tuple[tuple[float, Term], ...]

    def value_and_gradient(
        self, clean: np.ndarray, enhanced: np.ndarray, lengths: Sequence[int] | np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Returns the loss of a padded batch and its gradient.

        Terms and utterances are computed side by side, on as many threads as there are cores.

        Args:
            clean: float [batch, time, 1].
            enhanced: Likewise, of the same dtype.
            lengths: int [batch], samples of each utterance, at least 1.

        Returns:
            The value, and d value / d enhanced [batch, time, 1], zero beyond the lengths.
        """
        tasks = [
            (row, weight / len(lengths), term, clean[row, :length, 0], enhanced[row, :length, 0])
            for row, length in enumerate(lengths)
            for weight, term in self.terms
        ]
        value, gradient = 0.0, np.zeros_like(enhanced)
        for row, weight, part, d_part in _threads().map(_run_term, tasks):
            value += weight * part
            gradient[row, : len(d_part), 0] += enhanced.dtype.type(weight) * d_part
        return value, gradient

    def value(self, clean: Any, enhanced: Any, lengths: Any) -> Any:
        """Returns the loss of a padded batch as a tensor of the Keras backend; see above."""
        lengths = ops.convert_to_tensor(lengths)
        inside = ops.arange(ops.shape(enhanced)[1])[None, :] < ops.cast(lengths, "int32")[:, None]
        mask = ops.cast(inside, enhanced.dtype)
        clean = ops.cast(clean[:, :, 0], enhanced.dtype) * mask
        enhanced = enhanced[:, :, 0] * mask
        return sum(
            weight * ops.mean(term.values(clean, enhanced, lengths)) for weight, term in self.terms
        )


def _resolutions(weight: float, term: type[_SpectralTerm]) -> tuple[tuple[float, Term], ...]:
    return tuple((weight / len(RESOLUTIONS), term(size, hop)) for size, hop in RESOLUTIONS)


_LOSSES = (
    Loss("mse", ((1.0, MeanSquaredError()),)),
    Loss("sisdr", ((1.0, NegativeSISDR()),)),
    Loss(
        "stft",
        ((1.0, MeanAbsoluteError()), *_resolutions(0.5, SpectralConvergenceAndLogMagnitude)),
    ),
    Loss(
        "spectral",
        ((1.0, MeanAbsoluteError()), *_resolutions(1.0, CompressedSpectralError)),
    ),
)
#: The names of the losses.
LOSSES = tuple(loss.name for loss in _LOSSES)

#: What each is, for the axis of a figure.
DESCRIPTIONS = {
    "mse": "mean squared error",
    "sisdr": "negative SI-SDR in dB",
    "stft": "waveform and multi-resolution STFT loss",
    "spectral": "waveform and compressed spectral loss",
}


def find_loss(name: str) -> Loss:
    """Returns the loss of a name.

    Raises:
        ValueError: There is no such loss.
    """
    for loss in _LOSSES:
        if loss.name == name:
            return loss
    raise ValueError(f"loss is {name!r}; give one of {', '.join(LOSSES)}")


def _run_term(task: tuple) -> tuple[int, float, float, np.ndarray]:
    row, weight, term, clean, enhanced = task
    return row, weight, *term.value_and_gradient(clean, enhanced)


def _power(spectrum: np.ndarray) -> np.ndarray:
    level = np.square(spectrum.real)
    level += np.square(spectrum.imag)
    level += POWER_FLOOR
    return level


def _sum_of_squares(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    return float(np.vdot(flat, flat).real)


@functools.cache
def _window(size: int) -> np.ndarray:
    """Returns a periodic Hann window float64 [size] of unit energy."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return window / np.sqrt(np.sum(window**2))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    # glibc returns freed memory to the system at once, and half of the time would go into getting
    # it back, until it has seen a block of this size come and go.
    np.empty(_LARGE_BLOCK_BYTES, np.uint8)
    return ThreadPoolExecutor(default_threads(), thread_name_prefix="losses")
