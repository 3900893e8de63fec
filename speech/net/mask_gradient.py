"""The loss of the network over time and frequency in NumPy, with its gradient, for the C kernels.

``speech.net.training_model`` gives the same numbers through ``keras.ops`` (a test compares). The
parts are those of :class:`speech.net.mask_loss.MaskLoss`. Each piece is computed by itself, several
pieces at a time on as many threads.

A gradient with respect to a complex z is d/d Re(z) + i d/d Im(z).
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft

from speech.net.losses import MeanAbsoluteError, NegativeSISDR
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import NUM_BINS, TimeFrequencyConfig, compress
from speech.sound.stft import StftConfig, analysis_window, istft, stft

_TINY = np.float32(1e-12)
_WAVEFORM = MeanAbsoluteError()
_SI_SDR = NegativeSISDR()


@dataclass(frozen=True)
class Prepared:
    """What a step needs of a batch besides the network.

    Attributes:
        noisy: complex64 [batch, frames, 256], compressed spectra.
        target: Likewise, of the clean speech.
        clean: float32 [batch, num_samples].
    """

    noisy: np.ndarray
    target: np.ndarray
    clean: np.ndarray

    def features(self) -> np.ndarray:
        """Returns what the network takes, float32 [batch, frames, 256, 3]."""
        result = np.empty((*self.noisy.shape, 3), np.float32)
        result[..., 0], result[..., 1] = self.noisy.real, self.noisy.imag
        np.abs(self.noisy, out=result[..., 2])
        return result


def prepare(
    noisy: np.ndarray, clean: np.ndarray, config: TimeFrequencyConfig, threads: int
) -> Prepared:
    """Transforms a batch.

    Args:
        noisy: float32 [batch, num_samples].
        clean: Likewise.
        config: Conventions of the network.
        threads: To work on.
    """

    def spectra(signal: np.ndarray) -> np.ndarray:
        return compress(stft(signal, config.stft)[:, :NUM_BINS], config.power)

    both = list(_pool(threads).map(spectra, [*noisy, *clean]))
    return Prepared(np.stack(both[: len(noisy)]), np.stack(both[len(noisy) :]), clean)


def value_and_gradient(
    mask: np.ndarray,
    batch: Prepared,
    loss: MaskLoss,
    config: TimeFrequencyConfig,
    threads: int,
) -> tuple[float, np.ndarray]:
    """Returns the loss of a batch and its gradient with respect to the mask.

    Args:
        mask: float32 [batch, frames, 256, 2].
        batch: Of `prepare`.
        loss: Weights.
        config: Conventions of the network.
        threads: To work on.

    Returns:
        The mean over the pieces, and float32 [batch, frames, 256, 2].
    """

    def one(index: int) -> tuple[float, np.ndarray]:
        own = np.ascontiguousarray(mask[index]).view(np.complex64)[..., 0]
        noisy = batch.noisy[index]
        value, gradient = _estimate_gradient(
            own * noisy, batch.target[index], batch.clean[index], loss, config
        )
        gradient *= noisy.conj()
        gradient *= np.float32(1 / len(mask))
        return value, gradient.view(np.float32).reshape(*gradient.shape, 2)

    parts = list(_pool(threads).map(one, range(len(mask))))
    return float(np.mean([value for value, _ in parts])), np.stack([part for _, part in parts])


def _estimate_gradient(
    estimate: np.ndarray,
    target: np.ndarray,
    clean: np.ndarray,
    loss: MaskLoss,
    config: TimeFrequencyConfig,
) -> tuple[float, np.ndarray]:
    """Returns the loss of one estimate [frames, 256] and the gradient with respect to it."""
    count = np.float32(estimate.size)
    error = estimate - target
    value = loss.complex * _energy(error) / count
    gradient = error * np.float32(2 * loss.complex / count)
    if loss.magnitude:
        level = np.sqrt(_power(estimate) + _TINY)
        excess = level - np.sqrt(_power(target) + _TINY)
        value += loss.magnitude * float(np.vdot(excess, excess)) / count
        gradient += estimate * (excess / level * np.float32(2 * loss.magnitude / count))
    if not (loss.waveform or loss.consistency or loss.si_sdr):
        return float(value), gradient
    power = np.maximum(_power(estimate), _TINY)
    curve = np.float32((1 / config.power - 1) / 2)
    gain = np.power(power, curve)
    spectra = np.zeros((len(estimate), NUM_BINS + 1), np.complex64)
    np.multiply(estimate, gain, out=spectra[:, :NUM_BINS])
    enhanced = istft(spectra, len(clean), config.stft)
    upstream = np.zeros(len(clean), np.float32)
    for weight, term in ((loss.waveform, _WAVEFORM), (loss.si_sdr, _SI_SDR)):
        # SI-SDR says nothing about silence.
        if weight and not (term is _SI_SDR and not clean.any()):
            part, slope = term.value_and_gradient(clean, enhanced)
            value += weight * part
            upstream += np.float32(weight) * slope
    if loss.consistency:
        again = stft(enhanced, config.stft)[:, :NUM_BINS]
        gap = compress(again, config.power) - estimate
        value += loss.consistency * _energy(gap) / count
        gap *= np.float32(2 * loss.consistency / count)
        gradient -= gap
        upstream += _stft_adjoint(
            _compress_adjoint(again, gap, config.power), len(clean), config.stft
        )
    above = _istft_adjoint(upstream, config.stft)[:, :NUM_BINS]
    # E = gain e: dE = gain de + 2 curve gain / |e|^2 Re(conj(e) de) e
    along = above.real * estimate.real
    along += above.imag * estimate.imag
    along *= 2 * curve
    along *= gain
    along /= power
    gradient += above * gain
    gradient += estimate * along
    return float(value), gradient


def _power(spectra: np.ndarray) -> np.ndarray:
    result = np.square(spectra.real)
    result += np.square(spectra.imag)
    return result


def _energy(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    return float(np.vdot(flat, flat).real)


def _compress_adjoint(spectra: np.ndarray, gradient: np.ndarray, exponent: float) -> np.ndarray:
    """Returns the gradient before `compress`; ``gradient`` is that of what it returned."""
    from speech.net.timefrequency import POWER_FLOOR

    power = _power(spectra)
    floor = power.dtype.type(POWER_FLOOR)
    curve = np.float32((exponent - 1) / 2)
    above = power > floor
    power = np.maximum(power, floor)
    gain = np.power(power, curve)
    along = gradient.real * spectra.real
    along += gradient.imag * spectra.imag
    along *= gain
    along /= power
    along *= 2 * curve
    along *= above
    return gradient * gain + spectra * along


def _istft_adjoint(signal: np.ndarray, config: StftConfig) -> np.ndarray:
    """Returns the gradient [frames, bins] of spectra; ``signal`` is that of their `istft`."""
    gradient = stft(signal, config)  # windows and cuts as the inverse windows and adds
    num_blocks = config.frame // config.hop
    scale = 1 / (config.window_energy / config.frame * num_blocks)
    gradient *= np.float32(2 * scale / config.frame)
    gradient[:, 0] = 0.5 * gradient[:, 0].real
    gradient[:, -1] = 0.5 * gradient[:, -1].real
    return gradient


def _stft_adjoint(gradient: np.ndarray, num_samples: int, config: StftConfig) -> np.ndarray:
    """Returns the gradient of a signal; ``gradient`` [frames, 256] is that of its `stft`."""
    spectra = np.zeros((len(gradient), NUM_BINS + 1), np.complex64)
    spectra[:, :NUM_BINS] = gradient * np.float32(config.frame / 2)
    spectra[:, 0] *= 2
    window = analysis_window(config, np.dtype(np.float32))
    frames = scipy.fft.irfft(spectra, config.frame, axis=-1, overwrite_x=True) * window
    num_blocks = config.frame // config.hop
    parts = frames.reshape(len(frames), num_blocks, config.hop)
    blocks = np.zeros((len(frames) + num_blocks - 1, config.hop), frames.dtype)
    for block in range(num_blocks):
        blocks[block : block + len(frames)] += parts[:, block]
    overlap = config.frame - config.hop
    return blocks.reshape(-1)[overlap : overlap + num_samples]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mask-loss")
