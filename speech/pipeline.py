"""Batches of noisy and clean utterances for training, mixed on the fly or read from disk.

Every item has a position in one endless stream: pass after pass over the list, shuffled anew at
each pass (SPEC 1). What stands at a position (utterance, noise, segment, SNR, crop) follows
from the seed and the position alone. A run can thus be taken up at any step, and any number of
threads gives the same batches.

As in the published script, noisy and clean are each divided by their own maximum over the whole
utterance; a silent one stays silent.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import keras
import numpy as np

from speech.audio import SAMPLE_RATE_HZ, peak_normalize, read_audio
from speech.corpus import Noise, Pair, Utterance, load_noise
from speech.mixing import draw_segment, mix_at_snr

_LOGGER = logging.getLogger("speech")

#: Decoded audio is kept in memory up to this size, then the oldest goes.
CACHE_BYTES = 2 << 30

#: An utterance that cannot be mixed (silent) is replaced by the next one, at most so many times.
_MAX_REPLACEMENTS = 20


class Source(Protocol):
    """Something that yields noisy and clean utterances."""

    def __len__(self) -> int:
        """Returns the number of different items of one pass."""
        ...

    def item(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float [num_samples] each; draws from ``rng`` alone."""
        ...

    def description(self) -> list[str]:
        """Returns in lines what the items are made of: the same lines, the same data."""
        ...


class PairSource:
    """Premixed pairs of files, as in the published data layout."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Takes at least one pair."""
        if not pairs:
            raise ValueError("no noisy/clean pairs to train on; check the folders")
        self._pairs = list(pairs)
        self._cache = _AudioCache()

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
        """Returns a line a pair: its place in the tree, its clean file, and both sizes."""
        return [
            f"{pair.relative_path.as_posix()} {_size(pair.noisy_path)} "
            f"{pair.clean_path.name} {_size(pair.clean_path)}"
            for pair in self._pairs
        ]


class MixtureSource:
    """Clean utterances, each mixed with a random segment of a random noise at a random SNR."""

    def __init__(
        self, utterances: Sequence[Utterance], noises: Sequence[Noise], snrs_db: Sequence[float]
    ) -> None:
        """Takes at least one of each."""
        for what, values in (("utterances", utterances), ("noises", noises), ("SNRs", snrs_db)):
            if not len(values):
                raise ValueError(f"no {what} to train on; give at least one")
        self._utterances = list(utterances)
        self._noises = list(noises)
        self._snrs_db = [float(snr_db) for snr_db in snrs_db]
        self._cache = _AudioCache()

    def __len__(self) -> int:
        """Returns the number of utterances."""
        return len(self._utterances)

    def item(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float64 [num_samples], at an SNR that is exact."""
        clean = self._cache.read(self._utterances[index].path)
        noise = self._noises[rng.integers(len(self._noises))]
        snr_db = self._snrs_db[rng.integers(len(self._snrs_db))]
        samples, _ = self._cache.get(noise, lambda: load_noise(noise))
        mixture = mix_at_snr(clean, draw_segment(samples, len(clean), rng), snr_db)
        return mixture.noisy, mixture.clean

    def description(self) -> list[str]:
        """Returns a line for each utterance, noise (with the part that is used) and SNR."""
        return [
            *(f"speech {item.id} {_size(item.path)}" for item in self._utterances),
            *(
                f"noise {item.name} {_size(item.path)} {item.start} {item.stop}"
                for item in self._noises
            ),
            *(f"snr {snr_db}" for snr_db in self._snrs_db),
        ]


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        noisy: float32 [batch, time, 1], zero beyond each utterance's end.
        lengths: int32 [batch], samples of each utterance.
        clean: float32 [batch, time, 1], likewise.
        weights: float32 [batch, time]: with them the mean over batch and time is the mean over
            utterances of each utterance's own mean, so that padding does not count.
    """

    noisy: np.ndarray
    lengths: np.ndarray
    clean: np.ndarray
    weights: np.ndarray


class TrainingData(keras.utils.PyDataset):
    """One epoch of batches; ``at_epoch`` gives the others.

    Indexing returns ``((noisy, lengths), clean, weights)``, what ``Model.fit`` takes with a
    ``speech.conv.TrainingModel``.

    Args:
        source: Where utterances come from.
        num_items: Utterances an epoch; default one pass over the source.
        batch_size: Utterances a batch.
        crop_samples: Cut a random piece of this length from longer utterances; None for whole ones.
        seed: Of all that is random.
        shuffle: Shuffle each pass. Without, the list is read in order (validation).
        epoch: Number of this epoch, from 0.
    """

    def __init__(
        self,
        source: Source,
        *,
        num_items: int | None = None,
        batch_size: int = 1,
        crop_samples: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        epoch: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("num_items", num_items)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        self.source = source
        self.num_items = num_items or len(source)
        self.batch_size = batch_size
        self.crop_samples = crop_samples
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = epoch
        self._permutations: dict[int, np.ndarray] = {}
        self._skipped: set[str] = set()

    def at_epoch(self, epoch: int) -> TrainingData:
        """Returns the same data at another epoch; audio in memory is shared."""
        other = TrainingData(
            self.source,
            num_items=self.num_items,
            batch_size=self.batch_size,
            crop_samples=self.crop_samples,
            seed=self.seed,
            shuffle=self.shuffle,
            epoch=epoch,
        )
        other._skipped = self._skipped
        return other

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return -(-self.num_items // self.batch_size)

    def __getitem__(self, index: int):
        """Returns ``((noisy, lengths), clean, weights)`` of one batch."""
        batch = self.batch(index)
        return (batch.noisy, batch.lengths), batch.clean, batch.weights

    def batch(self, index: int) -> Batch:
        """Returns one batch of this epoch.

        Raises:
            IndexError: No such batch.
            ValueError: A file cannot be read, or one utterance after another is silent.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        first = index * self.batch_size
        last = min(first + self.batch_size, self.num_items)
        start = self.epoch * self.num_items
        return collate([self._item(start + position) for position in range(first, last)])

    def _item(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        number_of_pass, place = divmod(position, len(self.source))
        rng = np.random.default_rng([self.seed, 1, position])
        reason = None
        for step in range(min(_MAX_REPLACEMENTS, len(self.source))):
            index = self._order(number_of_pass)[(place + step) % len(self.source)]
            try:
                noisy, clean = self.source.item(int(index), rng)
                break
            except ValueError as error:
                reason = error
                self._announce(str(error))
        else:
            raise ValueError(f"no usable utterance in {step + 1} tries; the last: {reason}")
        noisy, clean = peak_normalize(noisy), peak_normalize(clean)
        if self.crop_samples is not None and len(noisy) > self.crop_samples:
            start = int(rng.integers(len(noisy) - self.crop_samples + 1))
            noisy = noisy[start : start + self.crop_samples]
            clean = clean[start : start + self.crop_samples]
        return noisy, clean

    def _announce(self, reason: str) -> None:
        if reason not in self._skipped:
            self._skipped.add(reason)
            _LOGGER.warning("skipped in training: %s", reason)

    def _order(self, number_of_pass: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.source))
        if number_of_pass not in self._permutations:
            rng = np.random.default_rng([self.seed, 0, number_of_pass])
            self._permutations = {
                **dict(list(self._permutations.items())[-3:]),
                number_of_pass: rng.permutation(len(self.source)),
            }
        return self._permutations[number_of_pass]


def collate(items: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """Pads (noisy, clean) pairs [num_samples] to a common length: see :class:`Batch`."""
    lengths = np.array([len(noisy) for noisy, _ in items], np.int32)
    longest = int(lengths.max())
    noisy = np.zeros((len(items), longest, 1), np.float32)
    clean = np.zeros_like(noisy)
    weights = np.zeros(noisy.shape[:2], np.float32)
    for row, (noisy_item, clean_item) in enumerate(items):
        length = lengths[row]
        noisy[row, :length, 0] = noisy_item
        clean[row, :length, 0] = clean_item
        weights[row, :length] = longest / length
    return Batch(noisy, lengths, clean, weights)


def prefetched(data: TrainingData, first: int = 0, depth: int = 4) -> Iterator[Batch]:
    """Yields the batches of an epoch from ``first`` on, prepared by a thread ahead of time."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        ahead = [
            pool.submit(data.batch, index) for index in range(first, min(first + depth, len(data)))
        ]
        try:
            for index in range(first + depth, len(data) + depth):
                if not ahead:
                    return
                batch = ahead.pop(0).result()
                if index < len(data):
                    ahead.append(pool.submit(data.batch, index))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def data_fingerprint(source: Source) -> str:
    """Returns a SHA-256 over a source's description: tells data sets apart."""
    lines = "\n".join(sorted(source.description()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size


class _AudioCache:
    """Keeps decoded audio in memory up to `CACHE_BYTES`; safe to use from several threads."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._items: OrderedDict[Hashable, object] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def read(self, path: Path) -> np.ndarray:
        """Returns a file's samples, float32 [num_samples] at 16 kHz."""
        return self.get(path, lambda: read_audio(path, SAMPLE_RATE_HZ).samples)

    def get(self, key: Hashable, load: Callable[[], object]):
        """Returns what is kept under ``key``, or loads it."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        value = load()
        with self._lock:
            if key not in self._items:
                self._items[key] = value
                self._num_bytes += _num_bytes(value)
            while self._num_bytes > self._max_bytes and len(self._items) > 1:
                _, old = self._items.popitem(last=False)
                self._num_bytes -= _num_bytes(old)
        return value


def _num_bytes(value: object) -> int:
    arrays = value if isinstance(value, tuple) else (value,)
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
