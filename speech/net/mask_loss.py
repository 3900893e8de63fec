"""The loss of the network over time and frequency: its parts, and its gradient without Keras.

All parts compare the estimate with the clean signal at the same level. c(X) is the compressed
spectrum |X|^0.3 X / |X| (``speech.net.timefrequency.compress``). M c(Y) is the estimate: the mask
times the compressed noisy spectrum. Means are over pieces, frames and bins, or over samples::

    magnitude     mean (|M c(Y)| - |c(S)|)^2
    complex       mean |M c(Y) - c(S)|^2
    consistency   mean |M c(Y) - c(STFT(e))|^2, e the waveform of the estimate
    waveform      mean |e - s|
    si_sdr        negative SI-SDR of e in dB (``speech.net.losses.NegativeSISDR``)

Magnitude and complex part after Braun and Tashev 2021 (eq. 7); all four as in FastEnhancer
(2025), which weighs them 0.3, 0.2, 0.3 and 0.2.

``speech.net.training_model`` gives the same numbers through ``keras.ops`` (a test compares). Here
each piece is computed by itself, several at a time on as many threads: by ``kernels/maskloss.c``,
or in NumPy where there is no C compiler and for a loss with consistency, which the kernel does not
know.

A gradient with respect to a complex z is d/d Re(z) + i d/d Im(z).
"""

from __future__ import annotations

import ctypes
import functools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from speech.base.lazy import scipy
from speech.net import blockconv
from speech.net.losses import MeanAbsoluteError, NegativeSISDR
from speech.net.timefrequency import NUM_BINS, POWER_FLOOR, TimeFrequencyConfig, compress, features
from speech.sound.stft import StftConfig, analysis_window, istft, stft

_TINY = np.float32(1e-12)
_WAVEFORM = MeanAbsoluteError()
_SI_SDR = NegativeSISDR()


def _part(weight: float, what: str) -> Any:
    """Returns the field of a part; ``what`` is for the help of its option."""
    return field(default=weight, metadata={"what": what})


@dataclass(frozen=True)
class MaskLoss:
    """The weights of the parts of the loss; a part of weight 0 is not computed.

    Attributes:
        magnitude: Weight of the error of the compressed magnitudes.
        complex: Weight of the error of the compressed complex spectra.
        consistency: Weight of the distance from the spectra that a signal can have.
        waveform: Weight of the absolute error of the samples.
        si_sdr: Weight of the negative SI-SDR; a piece with a silent clean signal has none.
    """

    magnitude: float = _part(7.0, "error of the compressed magnitudes")
    complex: float = _part(3.0, "error of the compressed complex spectra")
    consistency: float = _part(0.0, "distance from the spectra that a signal can have")
    waveform: float = _part(0.2, "absolute error of the samples")
    si_sdr: float = _part(0.01, "negative SI-SDR")

    def __post_init__(self) -> None:
        """Raises ValueError for weights that make no loss."""
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"the weight {name} of the loss is {value}; give 0 or more")
        if not self.magnitude + self.complex + self.waveform + self.si_sdr:
            raise ValueError(
                "magnitude, complex, waveform and si_sdr of the loss all weigh 0; give one more"
            )


@dataclass(frozen=True)
class Prepared:
    """The arrays of a batch that a training step needs besides the network.

    Attributes:
        noisy: complex64 [batch, frames, 256], compressed spectra.
        target: Likewise, of the clean speech.
        clean: float32 [batch, num_samples].
        features: What the network takes, float32 [batch, frames, 256, 3].
    """

    noisy: np.ndarray
    target: np.ndarray
    clean: np.ndarray
    features: np.ndarray


class _Conventions(ctypes.Structure):
    _fields_ = [
        ("fft", ctypes.c_void_p),
        ("roots", ctypes.c_void_p),
        ("window", ctypes.c_void_p),
        ("samples", ctypes.c_int64),
        ("frames", ctypes.c_int32),
        ("hop", ctypes.c_int32),
        ("power", ctypes.c_float),
        ("floor", ctypes.c_float),
    ]


class _Parts(ctypes.Structure):
    _fields_ = [
        ("complex", ctypes.c_double),
        ("magnitude", ctypes.c_double),
        ("waveform", ctypes.c_double),
        ("si_sdr", ctypes.c_double),
        ("soft", ctypes.c_double),
        ("floor", ctypes.c_double),
        ("tiny", ctypes.c_float),
    ]


@functools.lru_cache(maxsize=8)
def _conventions(config: TimeFrequencyConfig, num_samples: int) -> _Conventions:
    """Returns what the C kernels know of spectra."""
    fft = blockconv.plan(NUM_BINS)
    roots = np.exp(-1j * np.pi * np.arange(NUM_BINS) / NUM_BINS).astype(np.complex64)
    window = np.ascontiguousarray(analysis_window(config.stft, np.dtype(np.float32)))
    made = _Conventions(
        ctypes.addressof(fft), roots.ctypes.data, window.ctypes.data, num_samples,
        config.stft.num_frames(num_samples), config.stft.hop, config.power, POWER_FLOOR,
    )  # fmt: skip
    made.kept = (fft, roots, window)  # they live as long as the pointers to them
    return made


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _require_shape(name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    if np.shape(array) != expected:
        raise ValueError(f"{name} has the shape {np.shape(array)}, expected {expected}")


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the loss could not get its working memory")


def prepare(
    noisy: np.ndarray, clean: np.ndarray, config: TimeFrequencyConfig, threads: int
) -> Prepared:
    """Transforms a batch.

    Args:
        noisy: float32 [batch, num_samples].
        clean: Likewise.
        config: Conventions of the network.
        threads: To work on.

    Raises:
        ValueError: The shapes differ.
    """
    _require_shape("clean", clean, np.shape(noisy))
    if blockconv.is_available():
        return _prepare_in_c(noisy, clean, config, threads)

    def spectra(signal: np.ndarray) -> np.ndarray:
        return compress(stft(signal, config.stft)[:, :NUM_BINS], config.power)

    both = list(_pool(threads).map(spectra, [*noisy, *clean]))
    mixed = np.stack(both[: len(noisy)])
    return Prepared(mixed, np.stack(both[len(noisy) :]), clean, features(mixed))


def _prepare_in_c(
    noisy: np.ndarray, clean: np.ndarray, config: TimeFrequencyConfig, threads: int
) -> Prepared:
    noisy, clean = (np.ascontiguousarray(signal, np.float32) for signal in (noisy, clean))
    conventions = _conventions(config, noisy.shape[1])
    shape = (len(noisy), conventions.frames, NUM_BINS)
    spectra = [np.empty(shape, np.complex64) for _ in range(2)]
    values = np.empty((*shape, 3), np.float32)
    for signals, out, more in ((noisy, spectra[0], _address(values)), (clean, spectra[1], None)):
        _check(
            blockconv.kernels().compressed_spectra(
                ctypes.byref(conventions), _address(signals), ctypes.c_int64(len(signals)),
                _address(out), more, threads,
            )
        )  # fmt: skip
    return Prepared(spectra[0], spectra[1], clean, values)


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

    Raises:
        ValueError: The mask has another shape than the batch.
    """
    _require_shape("mask", mask, (*batch.noisy.shape, 2))
    if blockconv.is_available() and not loss.consistency:
        return _in_c(mask, batch, loss, config, threads)

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


def _in_c(
    mask: np.ndarray,
    batch: Prepared,
    loss: MaskLoss,
    config: TimeFrequencyConfig,
    threads: int,
) -> tuple[float, np.ndarray]:
    mask = np.ascontiguousarray(mask, np.float32)
    soft = 10 ** (-_SI_SDR.soft_threshold_db / 10)
    parts = _Parts(
        loss.complex, loss.magnitude, loss.waveform, loss.si_sdr, soft, _SI_SDR.floor, _TINY
    )
    values, gradient = np.empty(len(mask)), np.empty(mask.shape, np.float32)
    _check(
        blockconv.kernels().mask_loss(
            ctypes.byref(_conventions(config, batch.clean.shape[1])), ctypes.byref(parts),
            _address(mask), _address(batch.noisy), _address(batch.target), _address(batch.clean),
            ctypes.c_int64(len(mask)), _address(values), _address(gradient), threads,
        )
    )  # fmt: skip
    return float(np.mean(values)), gradient


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
