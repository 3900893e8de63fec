"""Pieces of one length as the data of a run: what `speech.training.trainer.Trainer` takes.

For networks that keep the level of what they hear: noisy and clean have one common scale.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from speech.data.pipeline import Batch, prefetched
from speech.data.prefetch import prefetched_batches
from speech.training.distribution import Replicas, Share

#: Pieces of a pass that does not end.
ENDLESS = 10**9


class Pieces(Protocol):
    """A stream of pieces without end, such as `speech.data.mixtures.PieceSource`."""

    seed: int

    @property
    def batch_size(self) -> int:
        """Pieces of a batch."""
        ...

    @property
    def num_samples(self) -> int:
        """Length of a piece."""
        ...

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float32 [batch_size, num_samples] each."""
        ...

    def piece(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float32 [num_samples] each, of one position from 0 up."""
        ...

    def description(self) -> list[str]:
        """Returns in lines what the pieces are made of: the same lines, the same data."""
        ...


class PieceData:
    """The batches of a run, as `speech.data.pipeline.TrainingData` gives them.

    Args:
        source: Where the pieces come from.
        num_items: Pieces per epoch, rounded up to whole batches; None for one epoch without end.
        workers: Processes that mix ahead of time; 0 for a thread.
        keep: Keep the batches in memory: for validation.
        epoch: Number of this epoch, from 0.
    """

    gain_db = None

    def __init__(
        self,
        source: Pieces,
        *,
        num_items: int | None = None,
        workers: int = 1,
        keep: bool = False,
        epoch: int = 0,
    ) -> None:
        self.source = source
        self.batch_size = source.batch_size
        self.num_items = -(-(num_items or ENDLESS) // self.batch_size) * self.batch_size
        self.epoch = epoch
        self._workers = workers
        self._kept: dict[int, Batch] | None = {} if keep else None

    def at_epoch(self, epoch: int) -> PieceData:
        """Returns the same data at another epoch."""
        return PieceData(self.source, num_items=self.num_items, workers=self._workers, epoch=epoch)

    def with_seed(self, seed: int) -> PieceData:
        """Returns the same data, drawn by another seed; audio in memory is shared."""
        source = copy.copy(self.source)
        source.seed = 2 * seed  # odd seeds belong to validation
        return PieceData(source, num_items=self.num_items, workers=self._workers)

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return self.num_items // self.batch_size

    def batch(self, index: int) -> Batch:
        """Returns one batch of this epoch.

        Raises:
            IndexError: No such batch.
            ValueError: Pieces cannot be made.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        batch = _batch(*self.source.batch(self.epoch * len(self) + index))
        if self._kept is not None:
            self._kept[index] = batch
        return batch

    def stream(self, first: int = 0, replicas: Replicas | None = None) -> Iterator[Batch | Share]:
        """Yields the batches from ``first`` of this epoch on, epoch after epoch, without end.

        Args:
            first: Number of a batch of this epoch.
            replicas: Yield the shares of this machine's devices; only they are mixed.

        Raises:
            ValueError: Pieces cannot be made.
            ChildProcessError: A process that mixes was killed.
        """
        start = self.epoch * len(self) + first
        source: Any = self.source
        shares = None
        if replicas is not None:
            shares = replicas.places(self.batch_size)
            source = _Rows(source, shares[0].start, shares[-1].stop)
        batches: Any = (
            prefetched_batches(source, start, workers=self._workers)
            if self._workers
            else prefetched(_Endless(source), start)
        )
        with contextlib.closing(batches):
            for noisy, clean in batches:
                if shares is None:
                    yield _batch(noisy, clean)
                    continue
                rows = [slice(s.start - shares[0].start, s.stop - shares[0].start) for s in shares]
                parts = tuple(_batch(noisy[row], clean[row]) for row in rows)
                yield Share(parts, self.batch_size)


@dataclass(frozen=True)
class _Rows:
    """Some rows of each batch of a source: what one machine trains on."""

    source: Any
    first: int
    stop: int

    @property
    def batch_size(self) -> int:
        return self.stop - self.first

    @property
    def num_samples(self) -> int:
        return self.source.num_samples

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = index * self.source.batch_size
        pieces = [self.source.piece(start + row) for row in range(self.first, self.stop)]
        return np.stack([noisy for noisy, _ in pieces]), np.stack([clean for _, clean in pieces])


@dataclass(frozen=True)
class _Endless:
    """A source as `speech.data.pipeline.prefetched` takes it."""

    source: Any

    def __len__(self) -> int:
        return ENDLESS

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.source.batch(index)


def _batch(noisy: np.ndarray, clean: np.ndarray) -> Batch:
    """Returns pieces [batch, num_samples] as a batch."""
    lengths = np.full(len(noisy), noisy.shape[1], np.int32)
    weights = np.ones(noisy.shape, np.float32)
    return Batch(noisy[:, :, None], lengths, clean[:, :, None], weights)
