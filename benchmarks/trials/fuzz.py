"""Damaged files by the thousand: does a reader refuse them, or does it crash, hang or let go?

::

    python -m benchmarks.trials.fuzz --inputs 20000 --jobs 2 --json benchmarks/results/fuzz.json
    python -m benchmarks.trials.fuzz --reader h5 wav --inputs 1000 --seed 7

Inputs are valid files after damage by chance and by intent (`benchmarks.trials.mutation`) and
noise; the same seed gives the same inputs. Readers run in processes of their own. One that takes
more than ``--timeout`` seconds of processor time hangs (a busy machine shall not count), and is
killed after ten times as long. Columns of the table:

    refused    the reader's own one-line error
    accepted   read; the damage was where it does not matter, or makes another valid file
    crashes    the process died
    hangs      no answer in time
    escapes    another exception, an error of several lines, or something printed
    peak MB    most memory that an input asked for on top of the process
    longest s  most processor time of an input

What fails is kept in ``--keep`` (as ``<reader>-<seed>-<number>``), and the command exits with 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.trials import mutation
from speech.base import cli
from speech.base.children import Child, ChildDied

READERS = ("h5", "icse", "wav", "flac", "sphere")
TIMEOUT_S = 2.0
KEEP = Path("runs/fuzz")

REFUSED, ACCEPTED, CRASH, HANG, ESCAPE = "refused", "accepted", "crashes", "hangs", "escapes"
FAILURES = (CRASH, HANG, ESCAPE)
_WARM_UP = -1  # number of the first message: a valid file, to import everything


@dataclass
class Tally:
    """What became of the inputs of one reader.

    Attributes:
        inputs: Number of inputs.
        refused: And so on: number of inputs by outcome.
        peak_mb: Most memory that an input took on top of the process, in MB.
        longest_s: Most processor time of an input.
        failures: Of each crash, hang and escape: number of the input, outcome, reason.
    """

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    crashes: int = 0
    hangs: int = 0
    escapes: int = 0
    peak_mb: float = 0.0
    longest_s: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, outcome: str) -> None:
        """Counts an input."""
        self.inputs += 1
        setattr(self, outcome, getattr(self, outcome) + 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if a reader crashed, hung or let an error escape."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trials.fuzz", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--reader", nargs="+", choices=READERS, default=list(READERS), help="default: all")
    add("--inputs", type=cli.positive_number, default=2000, metavar="N",
        help="a reader (default %(default)s)")  # fmt: skip
    add("--seed", type=cli.natural_number, default=0, metavar="N", help="default %(default)s")
    add("--jobs", type=cli.positive_number, default=1, metavar="N", help="default %(default)s")
    add("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="default %(default)s")
    add("--keep", type=Path, default=KEEP, metavar="DIR", help="for what fails (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    tallies = []
    for reader in options.reader:
        numbers = cli.progress(range(options.inputs), label=reader)
        tallies.append(fuzz(reader, numbers, seed=options.seed, jobs=options.jobs,
                            timeout_s=options.timeout, keep=options.keep))  # fmt: skip
    print_tallies(tallies)
    result = {"seed": options.seed, "timeout_s": options.timeout,
              "readers": [asdict(tally) for tally in tallies]}  # fmt: skip
    common.write_result(options.json, result)
    return int(any(tally.failures for tally in tallies))


def print_tallies(tallies: Iterable[Tally]) -> None:
    """Prints the table."""
    columns = ("inputs", REFUSED, ACCEPTED, *FAILURES)
    print(f"{'reader':<8}" + "".join(f"{name:>10}" for name in columns) + "   peak MB  longest s")
    for tally in tallies:
        counts = "".join(f"{getattr(tally, name):>10,}" for name in columns)
        print(f"{tally.reader:<8}{counts}{tally.peak_mb:>10.0f}{tally.longest_s:>11.2f}")
        for failure in tally.failures:
            print(f"  {failure['number']}: {failure['outcome']}: {failure['reason']}")


def fuzz(
    reader: str,
    numbers: Iterable[int],
    *,
    seed: int = 0,
    jobs: int = 1,
    timeout_s: float = TIMEOUT_S,
    keep: Path | None = None,
) -> Tally:
    """Feeds a reader with damaged files.

    Args:
        reader: One of `READERS`.
        numbers: Of the inputs.
        seed: Together with reader and number it decides on an input.
        jobs: Processes that read at the same time.
        timeout_s: Processor time an input may take; a process is killed after ten times as long.
        keep: Folder for inputs that make the reader fail; None: they are not kept.
    """
    tally, lock, numbers = Tally(reader), threading.Lock(), iter(numbers)

    def serve() -> None:
        with _Worker(reader, seed, timeout_s) as worker:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                outcome, reason, seconds, peak_mb = worker.read(number)
                with lock:
                    tally.add(outcome)
                    tally.longest_s = max(tally.longest_s, seconds)
                    tally.peak_mb = max(tally.peak_mb, peak_mb)
                    if outcome in FAILURES:
                        tally.failures.append(
                            {"number": number, "outcome": outcome, "reason": reason}
                        )
                        if keep is not None:
                            keep.mkdir(parents=True, exist_ok=True)
                            kept = keep / f"{reader}-{seed}-{number}"
                            kept.write_bytes(make_input(reader, seed, number))

    with ThreadPoolExecutor(jobs) as pool:
        for served in [pool.submit(serve) for _ in range(jobs)]:
            served.result()
    tally.failures.sort(key=lambda failure: failure["number"])
    return tally


_files: dict[str, list[bytes]] = {}


def make_input(reader: str, seed: int, number: int) -> bytes:
    """Returns an input by its number."""
    import numpy as np

    if reader not in _files:
        _files[reader] = mutation.seeds(reader)
    if number == _WARM_UP:
        return _files[reader][0]
    rng = np.random.default_rng([seed, READERS.index(reader), number])
    return mutation.damaged(_files[reader], rng)


#: What answers in the process that reads.
ANSWER = "benchmarks.trials.fuzz:answer"


class _Worker:
    """A process that reads inputs, started again whenever it dies or has to be killed.

    Args:
        reader: One of `READERS`.
        seed: See `fuzz`.
        timeout_s: See `fuzz`.
    """

    _START_S = 60.0  # to import everything on a busy machine

    def __init__(self, reader: str, seed: int, timeout_s: float) -> None:
        self._settings = reader, seed
        self._timeout_s = timeout_s
        self._child: Child | None = None

    def __enter__(self) -> _Worker:
        self._folder = tempfile.TemporaryDirectory()  # outlives the process, which may be killed
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.end()
        self._folder.cleanup()

    def read(self, number: int) -> tuple[str, str, float, float]:
        """Returns outcome, reason, seconds and MB of an input."""
        if self._child is None or not self._child.is_alive:
            with open(Path(self._folder.name, "said"), "w+b") as said:
                self._child = Child(ANSWER, stderr=said)
            if self._ask(_WARM_UP, self._START_S)[0] != ACCEPTED:
                raise RuntimeError(f"the reader {self._settings[0]} fails on a valid file")
        start = time.perf_counter()
        try:
            outcome, reason, seconds, peak_mb = self._ask(number, 10 * self._timeout_s)
        except ChildDied as error:
            spent_s = time.perf_counter() - start
            return HANG if error.late else CRASH, f"the process {error}", spent_s, 0.0
        if seconds > self._timeout_s:
            outcome, reason = HANG, f"{seconds:.1f} s of processor time; {reason}"
        return outcome, reason, seconds, peak_mb

    def _ask(self, number: int, limit_s: float) -> tuple[str, str, float, float]:
        assert self._child is not None
        return self._child.call(*self._settings, number, self._folder.name, limit_s=limit_s)


# --------------------------------------------------------------------------------------------
# In the process that reads


def answer(reader: str, seed: int, number: int, folder: str) -> tuple[str, str, float, float]:
    """Reads an input; what C libraries print meanwhile lies in the file behind descriptor 2."""
    path = Path(folder, f"input.{reader}")
    path.write_bytes(make_input(reader, seed, number))
    return _outcome_of(_reading(reader), path)


def _reading(reader: str) -> Callable[[Path], Any]:
    """Returns what opens a file; its own errors are ValueErrors."""
    if reader in ("h5", "icse"):
        from speech.modelfile.read import read_model_file

        return read_model_file
    from speech.sound.audio import read_audio

    logging.getLogger("speech").setLevel(logging.ERROR)  # headers that are wrong are announced
    return read_audio


def _outcome_of(read: Callable[[Path], Any], path: Path) -> tuple[str, str, float, float]:
    before_mb, start = reset_peak(), time.process_time()
    outcome, reason = ACCEPTED, ""
    try:
        read(path)
    except ValueError as error:
        text = str(error)
        outcome = REFUSED if text.startswith(str(path)) and text.isprintable() else ESCAPE
        reason = f"{type(error).__name__}: {text}"
    except BaseException as error:  # also what is no Exception, as a panic in Rust
        outcome, reason = ESCAPE, f"{type(error).__name__}: {error}"
    seconds, most_mb = time.process_time() - start, peak_mb() - before_mb
    if size := os.fstat(2).st_size:
        outcome, reason = ESCAPE, f"printed {os.pread(2, min(size, 200), 0)!r}"
        os.ftruncate(2, 0)
    reason = reason.replace(str(path), path.name)[:300]
    return outcome, reason, seconds, max(0.0, most_mb)


def reset_peak() -> float:
    """Forgets the most memory that this process had; returns what it has now, in MB.

    Where the system does not offer that (other than Linux), 0.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0.0
    return _memory_mb("VmRSS")


def peak_mb() -> float:
    """Returns the most memory that this process had since `reset_peak`, in MB, or 0."""
    return _memory_mb("VmHWM")


def _memory_mb(name: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    raise SystemExit(main())
