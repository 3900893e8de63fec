"""Spectra of a signal block by block and back, so that an hour needs no more memory than a minute.

What comes out is what `speech.stft` gives for the whole signal: a block of spectra is cut from the
samples that its frames meet, and synthesised blocks are added where they overlap.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from speech.stft import StftConfig, istft, stft

#: Frames a block: 65 s at 16 kHz, 17 MB of spectra.
BLOCK_FRAMES = 4096


def frame_blocks(num_frames: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of blocks of at most ``size`` frames (default `BLOCK_FRAMES`)."""
    size = size or BLOCK_FRAMES
    for start in range(0, num_frames, size):
        yield start, min(start + size, num_frames)


def stft_frames(signal: np.ndarray, start: int, stop: int, config: StftConfig) -> np.ndarray:
    """Returns some frames of the STFT of a signal.

    Args:
        signal: float32 or float64 [num_samples].
        start: First frame.
        stop: The frame after the last.
        config: Frames and window.

    Returns:
        complex [stop - start, num_bins], equal to ``stft(signal)[start:stop]``.
    """
    overlap = config.frame - config.hop
    first, last = config.hop * start - overlap, config.hop * (stop - 1) - overlap + config.frame
    segment = signal[max(first, 0) : min(last, len(signal))]
    missing = max(-first, 0), max(last - len(signal), 0)
    if any(missing):
        segment = np.pad(segment, missing)
    skipped = overlap // config.hop
    return stft(segment, config)[skipped : skipped + stop - start]


class Synthesis:
    """The inverse STFT of blocks that come one after the other.

    Args:
        num_samples: Length of the signal.
        config: That of the spectra.
    """

    def __init__(self, num_samples: int, config: StftConfig) -> None:
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
        last = min(finished, self._num_samples - self._position)
        self._position += finished
        return segment[first : max(last, first)]
