"""Decoded audio kept in memory.

What was recorded in 16 bits is kept in 16 bits, which takes 115 MB per hour at 16 kHz.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from speech.sound.audio import SAMPLE_RATE_HZ, read_audio

#: Decoded audio is kept in memory up to this size, then the oldest goes.
CACHE_BYTES = 2 << 30


class AudioCache:
    """Keeps decoded audio in memory up to a size; safe to use from several threads.

    What was recorded in 16 bits is kept in 16 bits: see `compact`.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._items: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """Another process gets an empty one: it reads what it needs."""
        return AudioCache, (self._max_bytes,)

    def read(self, path: Path) -> np.ndarray:
        """Returns a file's samples, float32 [num_samples] at 16 kHz."""
        return expand(self.get(path, lambda: read_audio(path, SAMPLE_RATE_HZ).samples))

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns what is kept under ``key``, or loads it; `expand` makes it float32."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        value = compact(load())
        with self._lock:
            if key not in self._items:
                self._items[key] = value
                self._num_bytes += value.nbytes
            while self._num_bytes > self._max_bytes and len(self._items) > 1:
                _, old = self._items.popitem(last=False)
                self._num_bytes -= old.nbytes
        return value


def compact(samples: np.ndarray) -> np.ndarray:
    """Returns float32 samples as int16 if that loses nothing, else as they are."""
    scaled = samples * np.float32(32768)
    if not (np.abs(scaled) <= 32767).all():  # NaN is not, either
        return samples
    integers = scaled.astype(np.int16)
    return integers if np.array_equal(integers, scaled) else samples


def expand(samples: np.ndarray) -> np.ndarray:
    """Returns what `compact` was given, float32 [num_samples]."""
    if samples.dtype != np.int16:
        return samples
    return samples * np.float32(1 / 32768)
