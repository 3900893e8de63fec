"""Premixed pairs of noisy and clean files, as they are and cut into pieces. NumPy only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speech.data.cache import AudioCache
from speech.data.corpus import Pair
from speech.data.mixtures import MixingConfig
from speech.sound.audio import SAMPLE_RATE_HZ

_LOGGER = logging.getLogger("speech")

#: A piece is joined of so many pairs, at most; what cannot be read counts.
_MAX_JOINED = 50


class PairSource:
    """Premixed pairs of files, as in the published data layout."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Takes at least one pair."""
        if not pairs:
            raise ValueError("no noisy/clean pairs to train on; check the folders")
        self._pairs = list(pairs)
        self._cache = AudioCache()

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self._pairs)

    def item(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean of one pair, float32 [num_samples]; ``rng`` is not used.

        Raises:
            ValueError: The two lengths differ.
        """
        pair = self._pairs[index]
        noisy, clean = self._cache.read(pair.noisy_path), self._cache.read(pair.clean_path)
        if len(noisy) != len(clean):
            raise ValueError(
                f"{pair.noisy_path}: {len(noisy)} samples, but its clean file {pair.clean_path} "
                f"has {len(clean)}; noisy and clean must be aligned sample for sample"
            )
        return noisy, clean

    def description(self) -> list[str]:
        """Returns one line per pair: its place in the tree, its clean file, and both sizes."""
        return [
            f"{pair.relative_path.as_posix()} {_size(pair.noisy_path)} "
            f"{pair.clean_path.name} {_size(pair.clean_path)}"
            for pair in self._pairs
        ]


class PairPieces:
    """Pieces cut from premixed pairs of files at random places.

    Pairs that are shorter than a piece are joined. The level of the noisy piece is drawn; noisy
    and clean are scaled alike, so the SNR stays that of the files.

    Args:
        pairs: At least one.
        num_samples: Length of a piece at 16 kHz.
        batch_size: Pieces per batch.
        seed: Another seed gives another stream.
        level_range_dbfs: RMS of the noisy piece in dB relative to full scale, (low, high). It is
            lowered where the peak would pass 1.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        num_samples: int = 2 * SAMPLE_RATE_HZ,
        batch_size: int = 16,
        seed: int = 0,
        level_range_dbfs: tuple[float, float] = MixingConfig.level_range_dbfs,
    ) -> None:
        self._source = PairSource(pairs)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self._level_range_dbfs = level_range_dbfs
        self._skipped: set[str] = set()

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float32 [batch_size, num_samples] each.

        Raises:
            ValueError: As `piece`.
        """
        first = index * self.batch_size
        pieces = [self.piece(first + row) for row in range(self.batch_size)]
        return np.stack([noisy for noisy, _ in pieces]), np.stack([clean for _, clean in pieces])

    def piece(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float32 [num_samples] each, of one position from 0 up.

        Raises:
            ValueError: None of fifty draws gave a pair that can be used.
        """
        rng = np.random.default_rng([self.seed, 3, position])
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        missing, reason = self.num_samples, None
        for _ in range(_MAX_JOINED):
            try:
                noisy, clean = self._source.item(int(rng.integers(len(self._source))), rng)
            except ValueError as error:
                reason = error
                self._announce(str(error))
                continue
            start = int(rng.integers(max(len(noisy) - missing, 0) + 1))
            parts.append((noisy[start : start + missing], clean[start : start + missing]))
            missing -= len(parts[-1][0])
            if not missing:
                break
        if not parts:
            raise ValueError(f"no usable pair in {_MAX_JOINED} draws; the last: {reason}")
        noisy, clean = np.zeros((2, self.num_samples), np.float32)
        filled = self.num_samples - missing
        noisy[:filled] = np.concatenate([part[0] for part in parts])
        clean[:filled] = np.concatenate([part[1] for part in parts])
        rms = float(np.sqrt(np.mean(np.square(noisy, dtype=np.float64))))
        if rms:
            level_dbfs = rng.uniform(*self._level_range_dbfs)
            gain = min(10 ** (level_dbfs / 20) / rms, 1 / float(np.abs(noisy).max()))
            noisy, clean = noisy * np.float32(gain), clean * np.float32(gain)
        return noisy, clean

    def _announce(self, reason: str) -> None:
        if reason not in self._skipped:
            self._skipped.add(reason)
            _LOGGER.warning("skipped in training: %s", reason)

    def description(self) -> list[str]:
        """Returns a line for each pair, and one for what is cut from them."""
        low, high = self._level_range_dbfs
        return [
            *self._source.description(),
            f"pieces {self.num_samples} {self.batch_size} {self.seed}",
            f"level {low:g} to {high:g} dBFS",
        ]


def _size(path: Path) -> int:
    return path.stat().st_size
