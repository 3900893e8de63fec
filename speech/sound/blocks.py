"""Spectra of a signal block by block, so that an hour needs no more memory than a minute.

What comes out is what `speech.sound.stft` gives for the whole signal: a block of spectra is cut
from the samples that its frames meet. The way back is `speech.sound.stft.Synthesis`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import numpy as np

from speech.base.lazy import scipy
from speech.sound.stft import StftConfig, analysis_window

#: Frames a block: 65 s at 16 kHz, 17 MB of spectra.
BLOCK_FRAMES = 4096

#: Signals longer than this (17 minutes) wait in nameless files, so that many fit in memory.
MAX_MEMORY_SAMPLES = 1 << 24

#: Frames transformed at a time: what is only needed on the way stays in the cache.
_FFT_FRAMES = 64


def frame_blocks(num_frames: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of blocks of at most ``size`` frames (default `BLOCK_FRAMES`)."""
    size = size or BLOCK_FRAMES
    for start in range(0, num_frames, size):
        yield start, min(start + size, num_frames)


def signal_room(num_samples: int) -> np.ndarray:
    """Returns float32 [num_samples], in memory or, if it is long, in a nameless file.

    Raises:
        OSError: The disk is full.
    """
    if num_samples <= MAX_MEMORY_SAMPLES:
        return np.empty(num_samples, np.float32)
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, 4 * num_samples)  # a full disk is an error here
        return np.memmap(file, np.float32, "r+", shape=(num_samples,))


def stft_frames(
    signal: np.ndarray, start: int, stop: int, config: StftConfig, *, scale: float = 1.0
) -> np.ndarray:
    """Returns some frames of the STFT of a signal.

    Args:
        signal: float32 or float64 [num_samples].
        start: First frame.
        stop: The frame after the last.
        config: Frames and window.
        scale: A factor.

    Returns:
        complex [stop - start, num_bins], equal to ``stft(scale signal)[start:stop]``.
    """
    kind = np.result_type(signal.dtype, np.complex64)
    spectra = np.empty((stop - start, config.num_bins), kind)
    for part, own in _transforms(signal, start, stop, config, scale):
        spectra[part] = own
    return spectra


def magnitude_frames(
    signal: np.ndarray, start: int, stop: int, config: StftConfig, *, scale: float = 1.0
) -> np.ndarray:
    """Returns |STFT(scale signal)| for some frames: float32 [stop - start, num_bins].

    The arguments are those of `stft_frames` and a positive factor. The spectra are never all in
    memory, which is faster where only magnitudes are needed.
    """
    magnitudes = np.empty((stop - start, config.num_bins), np.float32)
    for part, own in _transforms(signal, start, stop, config, scale):
        np.abs(own, out=magnitudes[part], casting="same_kind")
    return magnitudes


def _transforms(
    signal: np.ndarray, start: int, stop: int, config: StftConfig, scale: float = 1.0
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields a few frames of the STFT at a time, and where they belong."""
    segment = _segment(signal, start, stop, config)
    frames = np.lib.stride_tricks.sliding_window_view(segment, config.frame)[:: config.hop]
    window = analysis_window(config, segment.dtype) * segment.dtype.type(scale)
    for place in range(0, len(frames), _FFT_FRAMES):
        part = slice(place, place + _FFT_FRAMES)
        yield part, scipy.fft.rfft(frames[part] * window, axis=-1)


def frame_energies(
    signal: np.ndarray,
    start: int,
    stop: int,
    config: StftConfig,
    *,
    minus: np.ndarray | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Returns the sum over bins of |STFT(scale (signal - minus))|^2 by Parseval's theorem.

    Over all frequencies the squares of the spectrum add up to ``frame`` times the squares of the
    windowed samples. The bins from 0 up hold half of that sum, plus half of the squares of the two
    bins that have no negative counterpart.

    Args:
        signal: float32 or float64 [num_samples].
        start: First frame.
        stop: The frame after the last.
        config: Frames and window.
        minus: Another signal of the same shape and type, or None.
        scale: A factor.

    Returns:
        float64 [stop - start].
    """
    segment = _segment(signal, start, stop, config)
    if minus is not None:
        segment = segment - _segment(minus, start, stop, config)
    hops = (segment * segment.dtype.type(scale)).reshape(-1, config.hop)
    window = analysis_window(config, hops.dtype)
    signs = 1 - 2 * (np.arange(config.frame) % 2).astype(hops.dtype)

    def by_frame(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        products = values @ weights.reshape(-1, config.hop).T  # one column per hop of the frame
        columns = enumerate(products.T.astype(np.float64))
        return sum(column[place : place + stop - start] for place, column in columns)

    edges = by_frame(hops, window) ** 2 + by_frame(hops, window * signs) ** 2
    return (config.frame * by_frame(hops * hops, window * window) + edges) / 2


def _segment(signal: np.ndarray, start: int, stop: int, config: StftConfig) -> np.ndarray:
    """Returns the samples that some frames meet, zeros outside of the signal."""
    overlap = config.frame - config.hop
    first, last = config.hop * start - overlap, config.hop * (stop - 1) - overlap + config.frame
    segment = signal[max(first, 0) : min(last, len(signal))]
    missing = max(-first, 0), max(last - len(signal), 0)
    return np.pad(segment, missing) if any(missing) else segment
