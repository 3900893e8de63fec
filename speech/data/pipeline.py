"""Batches of noisy and clean utterances for training, mixed on the fly or read from disk.

Every item has a position in one endless stream: pass after pass over the list, shuffled anew at
each pass (docs/papers.md). What stands at a position (utterance, noise, segment, SNR, crop) follows
from the seed and the position alone. A run can thus be taken up at any step, and any number of
threads gives the same batches.

As in the published script, noisy and clean are each divided by their own maximum over the whole
utterance; a silent one stays silent.

Decoded audio is kept in memory, as 16-bit integers where that loses nothing: 115 MB an hour.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from speech.data.cache import AudioCache, expand
from speech.data.corpus import Noise, Utterance, load_noise
from speech.sound import augment
from speech.sound.audio import peak_normalize
from speech.sound.augment import Augmentation, checked_range
from speech.sound.mixing import draw_segment, mix_at_snr

_LOGGER = logging.getLogger("speech")

#: An utterance that cannot be mixed (silent) is replaced by the next one, at most so many times.
_MAX_REPLACEMENTS = 20


B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class Described(Protocol):
    """Something that data come from."""

    def description(self) -> list[str]:
        """Returns in lines what the items are made of: the same lines, the same data."""
        ...


class Source(Described, Protocol):
    """Something that yields noisy and clean utterances."""

    def __len__(self) -> int:
        """Returns the number of different items of one pass."""
        ...

    def item(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float [num_samples] each; draws from ``rng`` alone."""
        ...


class MixtureSource:
    """Clean utterances, each mixed with a random segment of a random noise at a random SNR.

    Args:
        utterances: At least one.
        noises: At least one.
        snrs_db: SNRs to draw from; at least one.
        snr_range_db: (low, high): draw the SNR uniformly from it, and not from ``snrs_db``.
        augmentation: What else is done to speech and noise; None for nothing. Its gain is the
            business of `TrainingData`, after the peaks are normalised.
        cache: Share one between sources of the same files.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        noises: Sequence[Noise],
        snrs_db: Sequence[float],
        *,
        snr_range_db: tuple[float, float] | None = None,
        augmentation: Augmentation | None = None,
        cache: AudioCache | None = None,
    ) -> None:
        for what, values in (("utterances", utterances), ("noises", noises), ("SNRs", snrs_db)):
            if not len(values):
                raise ValueError(f"no {what} to train on; give at least one")
        self._utterances = list(utterances)
        self._noises = list(noises)
        self._snrs_db = [float(snr_db) for snr_db in snrs_db]
        self._snr_range_db = snr_range_db and checked_range("snr_range_db", snr_range_db)
        self._augmentation = augmentation or Augmentation()
        self._cache = cache or AudioCache()

    def __len__(self) -> int:
        """Returns the number of utterances."""
        return len(self._utterances)

    def item(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float64 [num_samples], at an SNR that is exact.

        In a room, the SNR is that of all the speech there, and clean is the early part of it.
        """
        settings = self._augmentation
        speech = self._cache.read(self._utterances[index].path)
        noise = self._noises[rng.integers(len(self._noises))]
        snr_db = self._draw_snr_db(rng)
        samples = self._noise(noise, len(speech), rng)
        if settings.second_noise and rng.random() < settings.second_noise:
            other = self._noises[rng.integers(len(self._noises))]
            level_db = rng.uniform(-augment.SECOND_NOISE_DB, augment.SECOND_NOISE_DB)
            samples = augment.add_noises(samples, self._noise(other, len(speech), rng), level_db)
        early = None
        if settings.rooms and rng.random() < settings.rooms:
            response = augment.room_response(augment.draw_room(rng))
            speech, early = augment.reverberate(speech, response)
        mixture = mix_at_snr(speech, samples, snr_db)
        noisy, clean = mixture.noisy, mixture.clean
        if early is not None:
            clean = early * mixture.gain
        if settings.band_limit and rng.random() < settings.band_limit:
            cutoff_hz = rng.uniform(*augment.BAND_LIMIT_HZ)
            noisy, clean = (augment.limit_band(x, cutoff_hz) for x in (noisy, clean))
        return noisy, clean

    def _draw_snr_db(self, rng: np.random.Generator) -> float:
        if self._snr_range_db is not None:
            return float(rng.uniform(*self._snr_range_db))
        return self._snrs_db[rng.integers(len(self._snrs_db))]

    def _noise(self, noise: Noise, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Returns a segment [num_samples] of a noise, changed as the augmentation says."""
        settings = self._augmentation
        samples = self._cache.get(noise, lambda: load_noise.__wrapped__(noise)[0])
        if not settings.equalizer_db and settings.noise_speed == 1:
            return expand(draw_segment(samples, num_samples, rng))
        speed = augment.draw_speed(settings.noise_speed, rng)
        gains_db = augment.draw_gains_db(settings.equalizer_db, rng)
        length, wanted = augment.lengths_at_speed(num_samples, speed)
        segment = expand(draw_segment(samples, length, rng))
        return augment.change_noise(segment, wanted, gains_db)[:num_samples]

    def description(self) -> list[str]:
        """Returns a line for each utterance, noise (with the part that is used) and setting."""
        snrs = [f"snr {snr_db}" for snr_db in self._snrs_db]
        if self._snr_range_db is not None:
            snrs = ["snr {} to {}".format(*self._snr_range_db)]
        return [
            *(f"speech {item.id} {_size(item.path)}" for item in self._utterances),
            *(
                f"noise {item.name} {_size(item.path)} {item.start} {item.stop}"
                for item in self._noises
            ),
            *snrs,
            *self._augmentation.description(),
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


class TrainingData:
    """One epoch of batches; ``at_epoch`` gives the others.

    Args:
        source: Where utterances come from.
        num_items: Utterances per epoch; default one pass over the source.
        batch_size: Utterances per batch.
        crop_samples: Cut a random piece of this length from longer utterances; None for whole ones.
        seed: Of all that is random.
        shuffle: Shuffle each pass. Without, the list is read in order (validation).
        gain_db: (low, high): scale noisy, at peak 1, by a random gain (``Augmentation``).
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
        gain_db: tuple[float, float] | None = None,
        epoch: int = 0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("num_items", num_items)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give at least 1")
        self.source = source
        self.num_items = num_items or len(source)
        self.batch_size = batch_size
        self.crop_samples = crop_samples
        self.seed = seed
        self.shuffle = shuffle
        self.gain_db = gain_db
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
            gain_db=self.gain_db,
            epoch=epoch,
        )
        other._skipped = self._skipped
        return other

    def with_seed(self, seed: int) -> TrainingData:
        """Returns the same data, drawn by another seed, at the first epoch."""
        other = self.at_epoch(0)
        other.seed = seed
        return other

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return -(-self.num_items // self.batch_size)

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
        if self.gain_db is not None:
            noisy = noisy * 10 ** (rng.uniform(*self.gain_db) / 20)
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


class Batches(Protocol[B_co]):
    """An epoch's batches, or a part of them."""

    def __len__(self) -> int:
        """Returns the number of batches."""
        ...

    def batch(self, index: int, /) -> B_co:
        """Returns one batch."""
        ...


def prefetched(data: Batches[B], first: int = 0, depth: int = 4) -> Iterator[B]:
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


def data_fingerprint(source: Described) -> str:
    """Returns a SHA-256 over a source's description: tells data sets apart."""
    lines = "\n".join(sorted(source.description()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size
