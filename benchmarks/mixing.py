"""What a piece of mixed speech costs, and what mixing costs the loop that trains beside it.

::

    python -m benchmarks.mixing                                          # the bundled corpus
    python -m benchmarks.mixing --speech CORPUS/speech --noise CORPUS/noise

Pieces of 2 s with the default settings of `speech.data.mixtures`, audio and rooms in memory. The
loop stands for training: NumPy calls of about 0.1 ms, which release Python's lock. Its speed is
measured alone, beside a thread that mixes without pause, and beside a worker process that does.
Processor time is not that of the clock: other work on the machine changes it little.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from speech.base import cli
from speech.data import corpus
from speech.data.mixtures import PieceSource
from speech.data.prefetch import prefetched_batches
from speech.training.common_options import check_corpus


def main(argv: list[str] | None = None) -> int:
    """Runs the command; see the module."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_corpus(parser, options, "--speech")
    return cli.run(lambda: _run(options))


def measure(source: PieceSource, num_pieces: int, seconds: float) -> dict[str, float]:
    """Returns the figures of one source.

    Args:
        source: What to mix.
        num_pieces: Pieces that are drawn, again and again.
        seconds: Of each measurement of the loop.
    """
    for position in range(num_pieces):
        source.piece(position)
    started = time.process_time()
    for position in range(num_pieces):
        source.piece(position)
    result = {"piece_ms": 1e3 * (time.process_time() - started) / num_pieces}

    alone = _calls_per_s(seconds)
    with _Beside(lambda number: source.piece(number % num_pieces)):
        result["loop_beside_thread"] = _calls_per_s(seconds) / alone
    with contextlib.closing(prefetched_batches(source)) as batches:
        next(batches)
        with _Beside(lambda number: next(batches)):
            result["loop_beside_process"] = _calls_per_s(seconds) / alone
    return result


class _Beside:
    """Calls a function again and again in a thread."""

    def __init__(self, call: Callable[[int], Any]) -> None:
        self._call = call
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop)

    def _loop(self) -> None:
        number = 0
        while not self._stop.is_set():
            self._call(number)
            number += 1

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def _calls_per_s(seconds: float) -> float:
    values = np.linspace(0, 1, 200_000, dtype=np.float32)
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        np.sin(values)
        count += 1
    return count / passed


def _run(options: argparse.Namespace) -> int:
    if options.timit is None:
        speech, noises = corpus.bundled_speech("TRAIN"), corpus.bundled_noise("TRAIN")
    else:
        speech = corpus.find_speech_trees(options.timit, "TRAIN")
        noises = corpus.find_noise(options.noise, "TRAIN")
    result = measure(PieceSource(speech, noises), options.pieces, options.seconds)
    print(f"a piece of 2 s                {result['piece_ms']:6.2f} ms of one core")
    print(f"a loop beside a thread        {100 * result['loop_beside_thread']:6.0f} % of its speed")
    print(
        f"a loop beside a process       {100 * result['loop_beside_process']:6.0f} % of its speed"
    )
    common.write_result(options.json, result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixing",
        description="Measure what mixing costs, and what it costs the training beside it.",
        **cli.examples(
            "python -m benchmarks.mixing",
            "python -m benchmarks.mixing --speech corpus/speech --noise corpus/noise",
        ),
    )
    add = parser.add_argument
    add("--speech", "--timit", type=Path, nargs="+", metavar="DIR", dest="timit",
        help="clean speech; its TRAIN part (default: bundled)")  # fmt: skip
    add("--noise", type=Path, metavar="DIR", help="noise; its TRAIN part (with --speech)")
    add("--pieces", type=cli.positive_number, default=1000, metavar="N",
        help="number of pieces (default %(default)s)")  # fmt: skip
    add("--seconds", type=cli.amount, default=5.0, metavar="S",
        help="length of each measurement of the loop (default %(default)s)")  # fmt: skip
    add("--json", **cli.JSON)
    return parser


if __name__ == "__main__":
    sys.exit(main())
