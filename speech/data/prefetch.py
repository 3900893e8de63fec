"""Batches of pieces, mixed ahead of time by other processes, so that a step never waits for them.

Processes, not threads: mixing is a hundred short calls for each piece, and a thread that makes them
takes Python's lock from the training loop again and again. Measured on two cores, a loop of NumPy
calls of 0.1 ms ran at 60 % of its speed beside a thread that mixes without pause, which itself made
260 pieces of 2 s per second, and at 93 % beside a process, which made 410.

A worker is ``python -m speech.data.prefetch`` with a pipe and a piece of shared memory. It ends
when the pipe is closed, which the system does when the parent is killed. It imports neither Keras
nor TensorFlow.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, NoReturn

import numpy as np

from speech.base import cli
from speech.data.mixtures import PieceSource

#: Batches that are ready or in the making, for each worker.
_DEPTH = 4


def prefetched_batches(
    source: PieceSource, first: int = 0, stop: int | None = None, *, workers: int = 1
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Yields the batches of a source in order; they are the same for any number of workers.

    Args:
        source: What to mix. Each worker gets a copy and reads the files it needs.
        first: Index of the first batch.
        stop: Index after the last one; None for an endless stream.
        workers: Processes that mix. One makes about 300 pieces of 2 s per second; 0 mixes in
            the calling thread.

    Yields:
        Noisy and clean, float32 [batch_size, num_samples] each; they are the caller's.

    Raises:
        ValueError: ``workers`` is negative, or a batch cannot be made (`PieceSource.batch`).
        ChildProcessError: A worker was killed.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}; give 0 or more")
    if not workers:
        index = first
        while stop is None or index < stop:
            yield source.batch(index)
            index += 1
        return
    crew: list[_Worker] = []
    try:
        crew.extend(_Worker(source) for _ in range(workers))
        asked = taken = first
        while True:
            while asked < taken + _DEPTH * workers and (stop is None or asked < stop):
                crew[(asked - first) % workers].ask(asked)
                asked += 1
            if taken == asked:
                return
            yield crew[(taken - first) % workers].take()
            taken += 1
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A process that mixes what it is asked for, in order."""

    def __init__(self, source: PieceSource) -> None:
        self._connection, theirs = Pipe()
        shape = (_DEPTH, 2, source.batch_size, source.num_samples)
        with _shared_file() as file, theirs:
            os.truncate(file.fileno(), 4 * int(np.prod(shape)))
            self._slots = _mapped(file.fileno(), shape)
            numbers = (theirs.fileno(), file.fileno())
            self._process = subprocess.Popen(
                cli.python_command("-m", "speech.data.prefetch", *map(str, numbers)),
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                env=cli.python_environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
            )
        self._asked = self._taken = 0
        self._send(source)

    def ask(self, index: int) -> None:
        """Orders a batch; at most `_DEPTH` may be open."""
        self._send((index, self._asked % _DEPTH))
        self._asked += 1

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Waits for the batch that was ordered first."""
        try:
            error = self._connection.recv()
        except (EOFError, OSError):
            self._raise_gone()
        if error is not None:
            raise ValueError(error)
        noisy, clean = self._slots[self._taken % _DEPTH].copy()
        self._taken += 1
        return noisy, clean

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._connection.close()
        self._process.terminate()
        self._process.wait()

    def _send(self, what: object) -> None:
        try:
            self._connection.send(what)
        except OSError:
            self._raise_gone()

    def _raise_gone(self) -> NoReturn:
        code = self._process.wait()
        raise ChildProcessError(
            f"the process that mixes training data ended with code {code}; -9 means that it was "
            "killed, often because memory ran out: use fewer workers"
        ) from None


def _shared_file() -> IO[bytes]:
    """Returns a nameless file, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("batches"), "r+b")
    return tempfile.TemporaryFile()


def _mapped(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(descriptor, 4 * int(np.prod(shape))), np.float32).reshape(shape)


def _work(connection_number: int, file_number: int) -> None:
    """Mixes batch after batch until the parent closes its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    cli.end_with_parent()  # also while it mixes
    with Connection(connection_number) as connection:
        try:
            source = connection.recv()
            shape = (_DEPTH, 2, source.batch_size, source.num_samples)
            slots = _mapped(file_number, shape)
            while True:
                index, slot = connection.recv()
                error = None
                try:
                    slots[slot] = source.batch(index)
                except (ValueError, OSError, MemoryError) as reason:
                    error = str(reason)
                connection.send(error)
        except (EOFError, OSError):
            return


if __name__ == "__main__":
    _work(*map(int, sys.argv[1:]))
