"""Short-time Fourier transform, its inverse, and frames with their neighbours.

Frames of 1024 samples every 256 samples at 16 kHz: 513 bins, 75 % overlap, as in the MNN paper
(section 4.1), which names no window. Ours is the periodic Hann window, in both directions. The
time-frequency network (``speech.net.timefrequency``) takes its square root, so that half as many
frames do: 512 samples every 256.

Edges: the signal is taken to be zero outside. Frame t covers the samples from
``hop * t - (frame - hop)`` on, for every t whose frame meets the signal. Each sample thus lies in
``frame / hop`` frames, over which the squared window sums to a constant; dividing by it makes
``istft(stft(x), len(x))`` equal to x, ends included, for any length from 1 up. A spectrum that was
changed (masked) comes back as the signal whose STFT is nearest to it in the least-squares
sense (Griffin and Lim 1984).

NumPy and SciPy only. float32 goes to complex64 and back, float64 to complex128.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from speech.base.lazy import scipy

#: Frames that must overlap for the squared windows to add up to a constant, and its mean.
_WINDOWS = {"hann": (3, 0.375), "sqrt_hann": (2, 0.5)}


@dataclass(frozen=True)
class StftConfig:
    """Frames of an STFT.

    Attributes:
        frame: Samples in a frame, a multiple of ``hop``, at least 3 times as large (2 times with
            'sqrt_hann'): only then do the squared windows add up to a constant.
        hop: Samples from one frame to the next.
        window: 'hann' (periodic) or 'sqrt_hann', its square root.
    """

    frame: int = 1024
    hop: int = 256
    window: str = "hann"

    def __post_init__(self) -> None:
        """Raises ValueError for frames from which no signal can be put together again."""
        for name in ("frame", "hop"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 1 << 20:
                raise ValueError(f"stft {name} is {value!r}; give an integer of at least 1")
        if self.window not in _WINDOWS:
            raise ValueError(
                f"stft window is {self.window!r}; give one of {', '.join(map(repr, _WINDOWS))}"
            )
        least = _WINDOWS[self.window][0]
        if self.frame % self.hop or self.frame < least * self.hop or self.frame % 2:
            raise ValueError(
                f"stft frame is {self.frame} and hop {self.hop}; give an even frame that is a "
                f"multiple of the hop, at least {least} times as long"
            )

    @property
    def num_bins(self) -> int:
        """Bins from 0 Hz to half the sample rate: 513."""
        return self.frame // 2 + 1

    @property
    def window_energy(self) -> float:
        """Sum of the squared window: the mean |STFT|^2 of white noise of unit variance."""
        return _WINDOWS[self.window][1] * self.frame

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of a signal of ``num_samples``."""
        return -(-(num_samples + self.frame - self.hop) // self.hop)

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as JSON values, for the ``speech_meta`` of a model."""
        return asdict(self)


DEFAULT = StftConfig()


def stft(signal: np.ndarray, config: StftConfig = DEFAULT) -> np.ndarray:
    """Returns the spectra of a signal.

    Args:
        signal: float32 or float64 [num_samples], at least one sample; other types become float32.
        config: Frames and window.

    Returns:
        complex64 (float64: complex128) [num_frames, num_bins].

    Raises:
        ValueError: Not one channel, or empty.
    """
    signal = np.asarray(signal)
    if signal.ndim != 1 or not signal.size:
        raise ValueError(f"signal has the shape {signal.shape}; [num_samples] expected")
    if signal.dtype != np.float64:
        signal = signal.astype(np.float32, copy=False)
    overlap = config.frame - config.hop
    total = (config.num_frames(len(signal)) - 1) * config.hop + config.frame
    padded = np.zeros(total, signal.dtype)
    padded[overlap : overlap + len(signal)] = signal
    return whole_frames(padded, config)


def whole_frames(samples: np.ndarray, config: StftConfig = DEFAULT) -> np.ndarray:
    """Returns the spectra of the frames that lie inside a piece of signal, the first at its start.

    Args:
        samples: float32 or float64 [at least config.frame].
        config: Frames and window.

    Returns:
        complex [1 + (num_samples - config.frame) // config.hop, num_bins].
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, config.frame)[:: config.hop]
    return scipy.fft.rfft(frames * analysis_window(config, samples.dtype), axis=-1)


def istft(spectra: np.ndarray, num_samples: int, config: StftConfig = DEFAULT) -> np.ndarray:
    """Returns the signal of some spectra: the inverse of `stft`.

    Args:
        spectra: complex [num_frames, num_bins].
        num_samples: Length of the signal.
        config: That of the `stft`.

    Returns:
        float32 (complex128: float64) [num_samples].

    Raises:
        ValueError: The shape is not that of the spectra of ``num_samples`` samples.
    """
    spectra = np.asarray(spectra)
    expected = (config.num_frames(num_samples), config.num_bins)
    if num_samples < 1 or spectra.shape != expected:
        raise ValueError(
            f"spectra have the shape {spectra.shape}; {num_samples} samples have {expected}"
        )
    frames = scipy.fft.irfft(spectra, config.frame, axis=-1)
    num_blocks = config.frame // config.hop
    # Each frame falls into blocks of a hop; block b of frame t is added to block t + b.
    gain = frames.dtype.type(1 / (_WINDOWS[config.window][1] * num_blocks))
    frames *= analysis_window(config, frames.dtype) * gain
    parts = frames.reshape(len(frames), num_blocks, config.hop)
    blocks = np.zeros((len(frames) + num_blocks - 1, config.hop), frames.dtype)
    for block in range(num_blocks):
        blocks[block : block + len(frames)] += parts[:, block]
    overlap = config.frame - config.hop
    return blocks.reshape(-1)[overlap : overlap + num_samples].copy()


class Synthesis:
    """The inverse STFT of blocks that come one after the other.

    Args:
        num_samples: Length of the signal; None if it is not known yet: what is beyond it has to be
            cut off.
        config: That of the spectra.
    """

    def __init__(self, num_samples: int | None, config: StftConfig = DEFAULT) -> None:
        self._num_samples, self._config = num_samples, config
        self._overlap = config.frame - config.hop
        self._position = -self._overlap
        self._tail: np.ndarray | None = None

    def add(self, spectra: np.ndarray) -> np.ndarray:
        """Takes the next frames, complex [num_frames, num_bins].

        Returns:
            The samples that are now complete, float [num_finished]; after the last frame, all
            results one after the other are ``istft`` of all spectra.
        """
        config = self._config
        beyond = self._overlap // config.hop
        length = config.hop * (len(spectra) - 1) + config.frame
        segment = istft(np.pad(spectra, ((beyond, beyond), (0, 0))), length, config)
        if self._tail is not None:
            segment[: self._overlap] += self._tail
        finished = length - self._overlap
        self._tail = segment[finished:]
        first = max(0, -self._position)
        last = finished
        if self._num_samples is not None:
            last = min(finished, self._num_samples - self._position)
        self._position += finished
        return segment[first : max(last, first)]


def magnitudes(spectra: np.ndarray) -> np.ndarray:
    """Returns |spectra| as float32 [num_frames, num_bins]."""
    return np.abs(spectra).astype(np.float32, copy=False)


def context_frames(frames: np.ndarray, context: int = 3) -> np.ndarray:
    """Joins each frame with its neighbours: [s_(t-1), s_t, s_(t+1)] (MNN, section 4.1).

    At the ends the first and the last frame stand in for the missing neighbours (edge padding).

    Args:
        frames: [num_frames, num_bins], at least one frame.
        context: Number of frames to join, odd; 1 for the frame alone.

    Returns:
        [num_frames, context * num_bins], earliest frame first.
    """
    neighbours = neighbour_indices(np.array([len(frames)]), context)
    return frames[neighbours].reshape(len(frames), -1)


def neighbour_indices(num_frames: np.ndarray, context: int) -> np.ndarray:
    """Returns which frames to join in a stack of utterances, each edge-padded by itself.

    Args:
        num_frames: int [num_utterances], frames of each utterance.
        context: Number of frames to join, odd.

    Returns:
        int64 [sum of num_frames, context]: rows of the stack.

    Raises:
        ValueError: ``context`` is not odd and positive.
    """
    if context < 1 or context % 2 == 0:
        raise ValueError(f"context is {context}; give an odd number of frames, such as 3")
    num_frames = np.asarray(num_frames, np.int64)
    ends = np.cumsum(num_frames)
    first = np.repeat(ends - num_frames, num_frames)
    last = np.repeat(ends - 1, num_frames)
    offsets = np.arange(context) - context // 2
    rows = np.arange(len(first))[:, None] + offsets
    return np.clip(rows, first[:, None], last[:, None])


@functools.lru_cache(maxsize=8)
def analysis_window(config: StftConfig, dtype: np.dtype) -> np.ndarray:
    """Returns the window, [frame]; shared, so not writeable."""
    # Equals scipy.signal.get_window("hann", frame) bit for bit; that import takes half a second.
    window = 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, config.frame + 1))[:-1]
    if config.window == "sqrt_hann":
        window = np.sqrt(window)
    window = window.astype(dtype)
    window.flags.writeable = False
    return window
