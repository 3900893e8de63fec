"""Many files, a long file and many experts: memory over time, and throughput.

::

    python -m benchmarks.trials.load --json benchmarks/results/load.json
    python -m benchmarks.trials.load --files 200 --hours 0.2 --experts 16

The inputs are made of the bundled corpus. Each command runs in a process of its own, as its user
runs it; a thread adds up the resident memory of that process and of all that it starts, twice a
second. Rows of the table:

    enhance, files     `speech.enhance` on a folder of short noisy files
    score, files       `eval.run` on the files that the first one wrote, and on the noisy ones:
                       PESQ-WB and STOI
    enhance, long      `speech.enhance` on one long file
    select, long       `mnn.select` with the shipped experts on the same file
    select, N experts  `mnn.select` on a few clips: the shipped experts alone, then N of them, which
                       are copies under other names

Growth is the median memory of the last quarter of the working time minus that of the second one:
what is left when everything has been loaded and warmed up. Processor seconds are those of the
command and of the processes that it started; they depend less on what else the machine does than
the time that passed. All include the start of Python. The real-time factor is the time that passed
for a second of audio.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from speech.base import cli
from speech.base.files import strict_json

if TYPE_CHECKING:
    import numpy as np

MIB = 1 << 20

NUM_FILES, HOURS, NUM_EXPERTS = 2000, 2.0, 64

#: Of each short file, which start at random places of the utterances.
SHORT_SECONDS = 1.5
SNR_DB = 5.0

#: Whole utterances that the pools of experts judge.
NUM_CLIPS = 4

SAMPLE_EVERY_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trials.load", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--files", type=cli.positive_number, default=NUM_FILES, metavar="N",
        help="short files (default %(default)s)")  # fmt: skip
    add("--hours", type=float, default=HOURS, metavar="H",
        help="of the long file (default %(default)s)")  # fmt: skip
    add("--experts", type=cli.positive_number, default=NUM_EXPERTS, metavar="N",
        help="default %(default)s")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    options = parser.parse_args(argv)
    if not 0 < options.hours <= 24:
        parser.error(f"--hours is {options.hours}; give more than 0, up to 24")
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for row in measure(Path(name), options.files, options.hours, options.experts):
            rows.append(row)
            print(f"measured {row['name']}", file=sys.stderr)
    print(markdown(rows))
    common.write_result(options.json, strict_json({"short_seconds": SHORT_SECONDS, "rows": rows}))
    return 0


def measure(
    folder: Path, num_files: int, hours: float, num_experts: int
) -> Iterator[dict[str, Any]]:
    """Makes the inputs, runs the commands one after another and yields the rows of the table.

    Args:
        folder: An empty one to work in.
        num_files: Short files.
        hours: Of the long file.
        num_experts: In the large pool.

    Raises:
        ValueError: A command failed.
    """
    write_short_files(folder, num_files)
    short = num_files * SHORT_SECONDS
    enhanced = folder / "enhanced"
    found = run(["speech.enhance", folder / "noisy", "-o", enhanced])
    yield _row("enhance, files", found, num_files, short)
    found = run(["eval.run", "--clean", folder / "clean", "--noisy", folder / "noisy",
                 "--enhanced", f"fcn={enhanced}", "--metrics", "pesq_wb", "stoi",
                 "--out", folder / "scores"])  # fmt: skip
    # Each pair is scored twice: as it is, and enhanced.
    yield _row("score, files", found, 2 * num_files, 2 * short)
    shutil.rmtree(enhanced)

    long = folder / "long.wav"
    write_long_file(long, hours)
    seconds = 3600 * hours
    found = run(["speech.enhance", long, "-o", folder / "long_enhanced.wav"])
    yield _row("enhance, long", found, 1, seconds)
    (folder / "long_enhanced.wav").unlink()
    found = run(["mnn.select", long, "-o", folder / "long_selected"])
    yield _row("select, long", found, 1, seconds)
    long.unlink()
    shutil.rmtree(folder / "long_selected")

    clips, clip_seconds = folder / "clips", write_clips(folder / "clips")
    for experts in ([], copies_of_experts(folder / "pool", num_experts)):
        pool = ["--experts", *experts] if experts else []
        found = run(["mnn.select", *pool, clips, "-o", folder / "chosen"])
        count = len(experts) or len(_shipped())
        yield _row(f"select, {count} experts", found, NUM_CLIPS, clip_seconds)


# --------------------------------------------------------------------------------------------
# Inputs


def write_short_files(folder: Path, num_files: int) -> None:
    """Writes pairs ``noisy/<noise>/<speaker>/<dB>/<name>.wav`` and ``clean/<name>.wav``."""
    import numpy as np

    from speech.sound.audio import SAMPLE_RATE_HZ, write_audio

    rng = np.random.default_rng(0)
    length = round(SHORT_SECONDS * SAMPLE_RATE_HZ)
    mixtures = list(_mixtures())
    for number in range(num_files):
        pair, noisy, clean = mixtures[number % len(mixtures)]
        start = int(rng.integers(len(noisy) - length + 1))
        name = f"{number:05d}.wav"
        place = folder / "noisy" / pair.noise.name / pair.utterance.speaker / f"{SNR_DB:g}db"
        write_audio(place / name, noisy[start : start + length], subtype="PCM_16")
        write_audio(folder / "clean" / name, clean[start : start + length], subtype="PCM_16")


def write_long_file(path: Path, hours: float) -> None:
    """Writes one noisy recording, 16 bits at 16 kHz: the test mixtures again and again."""
    import numpy as np
    import soundfile

    from speech.sound.audio import SAMPLE_RATE_HZ

    once = np.concatenate([noisy for _, noisy, _ in _mixtures()]).astype(np.float32)
    left = round(3600 * hours * SAMPLE_RATE_HZ)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1, "PCM_16") as file:
        while left > 0:
            file.write(once[:left])
            left -= len(once)


def write_clips(folder: Path) -> float:
    """Writes whole noisy utterances for the pools; returns their seconds."""
    from speech.sound.audio import SAMPLE_RATE_HZ, write_audio

    mixtures = list(_mixtures())
    num_samples = 0
    for number in range(NUM_CLIPS):
        _, noisy, _ = mixtures[number * len(mixtures) // NUM_CLIPS]
        write_audio(folder / f"{number}.wav", noisy, subtype="PCM_16")
        num_samples += len(noisy)
    return num_samples / SAMPLE_RATE_HZ


def copies_of_experts(folder: Path, num_experts: int) -> list[Path]:
    """Copies the shipped experts in turn, each under a name of its own."""
    folder.mkdir()
    paths = []
    for number in range(num_experts):
        source = _shipped()[number % len(_shipped())]
        paths.append(folder / f"expert_{number:03d}{source.suffix}")
        shutil.copyfile(source, paths[-1])
    return paths


def _shipped() -> Sequence[Path]:
    from mnn.select import DEFAULT_EXPERTS

    return DEFAULT_EXPERTS


def _mixtures() -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yields (plan, noisy, clean) of test utterances that are longer than the short files."""
    from speech.data import corpus
    from speech.sound.audio import SAMPLE_RATE_HZ

    plans = corpus.spread_mixtures(
        corpus.bundled_speech("TEST"), corpus.bundled_noise("TEST"), [SNR_DB], 5
    )
    for plan in plans:
        mixture = corpus.render(plan)
        if len(mixture.noisy) > SHORT_SECONDS * SAMPLE_RATE_HZ:
            yield plan, mixture.noisy, mixture.clean


# --------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Watch:
    """Memory of a process and of what it started, over time.

    Attributes:
        seconds: When, from the start.
        bytes: Resident memory of all of them together; pages that they share count for each.
    """

    seconds: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def follow(self, process: subprocess.Popen) -> None:
        """Takes samples until the process ends."""
        started = time.monotonic()
        while process.poll() is None:
            self.seconds.append(time.monotonic() - started)
            self.bytes.append(memory_of_tree(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_EVERY_S)

    @property
    def peak(self) -> int:
        """Largest sample."""
        return max(self.bytes, default=0)

    def growth(self) -> float | None:
        """Returns last quarter minus second quarter, medians in bytes; None for a short run."""
        quarter = len(self.bytes) // 4
        if not quarter:
            return None
        second, last = self.bytes[quarter : 2 * quarter], self.bytes[-quarter:]
        return statistics.median(last) - statistics.median(second)

    def slope(self) -> float | None:
        """Returns bytes a second, by least squares, after the first quarter of the time."""
        start = len(self.bytes) // 4
        seconds, values = self.seconds[start:], self.bytes[start:]
        if len(set(seconds)) < 2:
            return None
        return statistics.linear_regression(seconds, values).slope


def memory_of_tree(root: int) -> int:
    """Returns the resident bytes of a process and of all its descendants; 0 if it is gone."""
    parents, pages = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold blanks.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parents[int(entry.name)], pages[int(entry.name)] = int(fields[1]), int(fields[21])
    total = 0
    for process, count in pages.items():
        ancestor: int | None = process
        while ancestor is not None and ancestor != root:
            ancestor = parents.get(ancestor)
        if ancestor == root:
            total += count
    return total * os.sysconf("SC_PAGE_SIZE")


def run(command: Sequence[Any]) -> dict[str, Any]:
    """Runs a command of this repository and watches it.

    Args:
        command: Module and arguments.

    Returns:
        wall_seconds, cpu_seconds, peak_mib, growth_mib, slope_mib_per_minute and samples.

    Raises:
        ValueError: It failed.
    """
    watch = Watch()
    started, used = time.perf_counter(), _cpu_seconds_of_children()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            cli.python_command("-m", *map(str, command)),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            env=cli.python_environment(),
        )  # fmt: skip
        thread = threading.Thread(target=watch.follow, args=(process,))
        thread.start()
        thread.join()
        if process.returncode:
            errors.seek(0)
            last = ([line for line in errors.read().splitlines() if line.strip()] or [""])[-1]
            raise ValueError(f"python -m {command[0]} failed: {last.removeprefix('error: ')}")
    growth, slope = watch.growth(), watch.slope()
    return {
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": _cpu_seconds_of_children() - used,
        "peak_mib": watch.peak / MIB,
        "growth_mib": None if growth is None else growth / MIB,
        "slope_mib_per_minute": None if slope is None else 60 * slope / MIB,
        "samples": len(watch.bytes),
    }


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _row(name: str, found: dict[str, Any], files: int, audio_seconds: float) -> dict[str, Any]:
    wall = found["wall_seconds"]
    return {
        "name": name,
        "files": files,
        "audio_seconds": audio_seconds,
        **found,
        "files_per_second": files / wall,
        "real_time_factor": wall / audio_seconds,
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table of docs/scaling.md."""
    header = ["", "files", "audio s", "s", "processor s", "files/s", "real-time factor",
              "peak MiB", "growth MiB"]  # fmt: skip
    return common.table(header, (
        [row["name"], str(row["files"]), f"{row['audio_seconds']:.0f}",
         f"{row['wall_seconds']:.0f}", f"{row['cpu_seconds']:.0f}",
         f"{row['files_per_second']:.2f}", f"{row['real_time_factor']:.3f}",
         f"{row['peak_mib']:.0f}",
         "" if row["growth_mib"] is None else f"{row['growth_mib']:+.1f}"]
        for row in rows
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
