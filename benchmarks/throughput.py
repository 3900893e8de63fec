"""How much audio each stage gets through, and what a large corpus would take.

::

    python -m benchmarks.throughput --json benchmarks/results/throughput.json
    python -m benchmarks.throughput --scale 0.05                                # a quick look

Every stage is measured on utterances of 3 s, made of the bundled corpus, in a process of its own
that is bound to one core; training and the scheduler have all cores of the machine. Stages:

    mix       mixing on the fly for training (`speech.data.pipeline`), audio in memory
    pieces    mixing pieces of 2 s (`speech.data.mixtures`), audio and rooms in memory
    train     a training step of the FCN, one utterance
    enhance   the shipped FCN, samples in memory
    score     PESQ-WB and STOI of files, with a cache
    prepare   `speech.prepare`: 60 mixtures of each utterance, written as float32
    schedule  calls that do nothing, through Dask on this machine

Audio is counted once for each mixture. *Busy* is processor time over time and cores: what is far
from 100 % waits, for the disk or for other processes. Figures are medians over rounds. The other
tables divide the hours of audio by the rates. Cores are taken to be like the one measured, and to
work side by side without cost, up to the calls that can be handed out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from eval.isolation import ONE_THREAD
from speech.base import cli

#: TIMIT's mean: 5.4 hours in 6300 utterances.
UTTERANCE_S = 3.0
PIECE_S = 2.0

#: Mixtures of each utterance that `prepare` writes, and in how many noises.
NUM_CONDITIONS, NUM_NOISES = 60, 6
NUM_ROUNDS = 3

#: What is computed for: name -> hours of audio.
NUM_UTTERANCES, NUM_PASSES = 30_000, 60
LOADS = {
    f"{NUM_UTTERANCES:,} x {NUM_PASSES} utterances of {UTTERANCE_S:g} s": (
        NUM_UTTERANCES * NUM_PASSES * UTTERANCE_S / 3600
    ),
    "10,000 hours": 10_000.0,
}

#: Machines of so many cores each.
MACHINES, CORES = (1, 10, 100), 16

_MB = 1e6


@dataclass(frozen=True)
class Stage:
    """One thing that is measured.

    Attributes:
        title: In the tables.
        start: Function from (folder, number of items) to what does them, called with the number
            of the round; it may yield after itself, to close things.
        num_items: Utterances a round; calls for the scheduler.
        one_core: Whether it is bound to one core.
        item_s: Seconds of audio of an item.
    """

    title: str
    start: Callable[[Path, int], Iterator[Callable[[int], None]]]
    num_items: int
    one_core: bool = True
    item_s: float = UTTERANCE_S


def _mix(folder: Path, num_items: int) -> Iterator[Callable[[int], None]]:
    from speech.data import corpus
    from speech.data.pipeline import MixtureSource, TrainingData

    speech = corpus.find_speech(_write_speech(folder, min(num_items, 100)))
    source = MixtureSource(speech, corpus.bundled_noise("TRAIN"), [-5, 0, 5, 10, 15])
    data = TrainingData(source, num_items=num_items)

    def once(number: int) -> None:
        epoch = data.at_epoch(number)
        for index in range(num_items):
            epoch.batch(index)

    yield once


def _pieces(folder: Path, num_items: int) -> Iterator[Callable[[int], None]]:
    from speech.data import corpus
    from speech.data.mixtures import PieceSource

    source = PieceSource(corpus.bundled_speech("TRAIN"), corpus.bundled_noise("TRAIN"))

    def once(number: int) -> None:
        for position in range(num_items):
            source.piece(position)

    yield once


def _train(folder: Path, num_items: int) -> Iterator[Callable[[int], None]]:
    from benchmarks.training import _ours
    from speech.base.device import quiet_start

    with quiet_start():
        import keras  # noqa: F401
    step = _ours(UTTERANCE_S, "fast")

    def once(number: int) -> None:
        for _ in range(num_items):
            step()

    yield once


def _enhance(folder: Path, num_items: int) -> Iterator[Callable[[int], None]]:
    from speech.net.enhancer import Enhancer

    enhancer, signal = Enhancer(), common.random_speech(UTTERANCE_S)[0, :, 0]

    def once(number: int) -> None:
        for _ in range(num_items):
            enhancer.enhance(signal, peak=1.0, threads=1)

    yield once


def _score(folder: Path, num_items: int) -> Iterator[Callable[[int], None]]:
    from eval import scoring
    from eval.systems import noisy_system, tasks_of
    from speech.data import corpus
    from speech.data.prepared import write_mixtures

    speech = corpus.find_speech(_write_speech(folder, num_items))
    plans = corpus.plan_mixtures(speech, corpus.bundled_noise("TEST")[:1], [5.0])
    write_mixtures(plans, folder / "pairs")
    pairs = [plan.pair(folder / "pairs") for plan in plans]
    tasks = tasks_of([noisy_system(pairs)], pairs)

    def once(number: int) -> None:
        cache = scoring.ScoreCache(folder / f"cache{number}.jsonl")
        rows = scoring.score_all(tasks, 1, ("pesq_wb", "stoi"), cache=cache)
        bad = [row["status"] for row in rows if row["status"] != "ok"]
        if len(bad) > len(rows) // 10:
            raise ValueError(f"{len(bad)} of {len(rows)} files could not be scored: {bad[0]}")

    yield once


def _prepare(folder: Path, num_items: int) -> Iterator[Callable[[int], None]]:
    from speech.data import corpus
    from speech.data.prepared import prepare

    speech = _write_speech(folder, max(1, num_items // NUM_CONDITIONS))
    noises = corpus.bundled_noise("TRAIN")[:NUM_NOISES]
    (folder / "noise").mkdir()
    for noise in noises:
        shutil.copy(noise.path, folder / "noise")
    snrs_db = [step - 5.0 for step in range(NUM_CONDITIONS // NUM_NOISES)]

    def once(number: int) -> None:
        report = prepare(speech, folder / "noise", snrs_db, folder / f"mixed{number}")
        if len(report.rows) != num_items or report.skipped:
            raise ValueError(f"{len(report.rows)} mixtures, expected {num_items}")

    yield once


def _schedule(folder: Path, num_items: int) -> Iterator[Callable[[int], None]]:
    from speech.base import cluster

    cluster.TASKS_A_THREAD = 64  # as many on their way as a cluster of many workers has
    with cluster.connected(cluster.LOCAL, len(os.sched_getaffinity(0))) as workers:
        assert workers is not None, "a cluster was asked for"

        def once(number: int) -> None:
            calls = ((-1,) for _ in range(num_items))
            if len(list(workers.map(abs, calls, num_items))) != num_items:
                raise ValueError("tasks were lost")

        yield once


STAGES = {
    "mix": Stage("mixing on the fly", _mix, 3000),
    "pieces": Stage("mixing pieces of 2 s", _pieces, 1000, item_s=PIECE_S),
    "train": Stage("training step", _train, 30, one_core=False),
    "enhance": Stage("enhancing", _enhance, 60),
    "score": Stage("scoring, PESQ-WB and STOI", _score, 50),
    "prepare": Stage("preparing files", _prepare, 10 * NUM_CONDITIONS),
    "schedule": Stage("handing out calls", _schedule, 10_000, one_core=False, item_s=0.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME",
        help=f"stages (default: {', '.join(STAGES)})")  # fmt: skip
    add("--scale", type=float, default=1.0, metavar="X", help="so many times the work")
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    options = parser.parse_args(argv)
    if not 0 < options.scale <= 100:
        parser.error(f"--scale is {options.scale}; give more than 0, up to 100")
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    rows = {}
    for name in options.only:
        rows[name] = measure(name, options.scale)
        print(f"measured {STAGES[name].title}", file=sys.stderr)
    print(markdown(rows))
    if rows.keys() == STAGES.keys():
        print("\n" + arithmetic(rows))
    common.write_result(options.json, {"utterance_seconds": UTTERANCE_S, "stages": rows})
    return 0


def measure(name: str, scale: float = 1.0) -> dict[str, Any]:
    """Measures one stage in a process of its own.

    Args:
        name: Key of `STAGES`.
        scale: So many times the usual number of items.

    Returns:
        items and audio_seconds of a round; medians of wall_seconds and cpu_seconds; bytes written;
        cores that it could use.

    Raises:
        ValueError: It failed.
    """
    stage = STAGES[name]
    num_items = max(1, round(stage.num_items * scale))
    if name == "prepare":
        num_items = max(1, num_items // NUM_CONDITIONS) * NUM_CONDITIONS
    context = multiprocessing.get_context("spawn")
    with _environment(stage.one_core), tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(_measured, name, Path(folder), num_items).result()


def _measured(name: str, folder: Path, num_items: int) -> dict[str, Any]:
    """Runs the rounds of a stage in this process, and one more before them."""
    stage = STAGES[name]
    if stage.one_core:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    wall, cpu = [], []
    running = stage.start(folder, num_items)
    once = next(running)
    for number in range(NUM_ROUNDS + 1):
        before, used, started = _num_bytes(folder), _cpu_seconds(), time.perf_counter()
        once(number)
        wall.append(time.perf_counter() - started)
        cpu.append(_cpu_seconds() - used)
        num_bytes = _num_bytes(folder) - before
    next(running, None)
    return {
        "items": num_items,
        "audio_seconds": num_items * stage.item_s,
        "wall_seconds": statistics.median(wall[1:]),
        "cpu_seconds": statistics.median(cpu[1:]),
        "bytes_written": num_bytes,
        "cores": len(os.sched_getaffinity(0)),
    }


@contextmanager
def _environment(one_core: bool) -> Iterator[None]:
    """Keeps NumPy in processes to come on one core, if asked for."""
    before = dict(os.environ)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if one_core:
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _cpu_seconds() -> float:
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF,
                                                      resource.RUSAGE_CHILDREN))  # fmt: skip
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_speech(folder: Path, num_files: int) -> Path:
    """Cuts the bundled speech into files of `UTTERANCE_S`; returns their folder."""
    import numpy as np

    from speech.data import corpus
    from speech.sound.audio import SAMPLE_RATE_HZ, read_audio, write_audio

    samples = np.concatenate([read_audio(item.path).samples for item in corpus.bundled_speech()])
    length = round(UTTERANCE_S * SAMPLE_RATE_HZ)
    for number in range(num_files):
        start = number * length % (len(samples) - length)
        piece = samples[start : start + length]
        write_audio(folder / "speech" / f"{number:05d}.wav", piece, subtype="PCM_16")
    return folder / "speech"


# --------------------------------------------------------------------------------------------
# Tables


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the measured table of docs/scaling.md."""
    lines = []
    for name, row in rows.items():
        wall = row["wall_seconds"]
        audio = f"{row['audio_seconds'] / wall:.1f}" if row["audio_seconds"] else ""
        written = f"{row['bytes_written'] / wall / _MB:.1f}" if row["bytes_written"] else ""
        busy = f"{100 * row['cpu_seconds'] / wall / row['cores']:.0f} %"
        rate = f"{row['items'] / wall:.1f}"
        lines.append([STAGES[name].title, str(row["cores"]), rate, audio, busy, written])
    header = ["stage", "cores", "items/s", "audio s per s", "busy", "MB/s written"]
    return common.table(header, lines)


def arithmetic(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the computed part of docs/scaling.md: a table for each load, and what else bounds."""
    rates = {
        name: (row["audio_seconds"] or row["items"]) / row["wall_seconds"]
        for name, row in rows.items()
    }
    calls_a_hour = 3600 * rates["schedule"]
    text = []
    for load, hours in LOADS.items():
        columns = [f"{count} x {CORES} cores" for count in MACHINES]
        lines = []
        num_files = hours * 3600 / UTTERANCE_S
        num_calls = {"enhance": 0, "score": num_files, "prepare": num_files / NUM_CONDITIONS}
        for name, count in num_calls.items():
            needed, least = hours / rates[name], count / calls_a_hour
            cells = [
                _time(max(least, needed / (number * CORES)))
                + (" *" if least > needed / (number * CORES) else "")
                for number in MACHINES
            ]
            ratio = f"{hours:,.0f} / {rates[name]:.1f} = {_digits(needed)}"
            lines.append([STAGES[name].title, ratio, *cells])
        header = ["stage", f"{hours:,.0f} h / rate = core-hours", *columns]
        text += [f"**{load}**", "", common.table(header, lines), ""]
    calls, files = rates["schedule"], rates["score"] / UTTERANCE_S
    text += [
        f"\\* The process that hands out calls is the limit: {calls:,.0f} per second. Scoring "
        f"takes one call per file, and {calls:,.0f} / {files:.1f} = {calls / files:,.0f} cores "
        f"score as many; preparing takes one call per {NUM_CONDITIONS} files.",
        "",
        "Training with one utterance per step takes, on the "
        f"{rows['train']['cores']} cores measured, "
        + "; ".join(
            f"{hours:,.0f} h / {rates['train']:.1f} = {_digits(hours / rates['train'])} h"
            for hours in LOADS.values()
        )
        + f". One core that mixes on the fly can feed {rates['mix']:.0f} / {rates['train']:.1f} = "
        f"{rates['mix'] / rates['train']:.0f} such trainings.",
    ]
    prepare = rows["prepare"]
    bytes_a_second = prepare["bytes_written"] / prepare["audio_seconds"]
    written = prepare["bytes_written"] / prepare["wall_seconds"] / _MB
    text += [
        "",
        f"Prepared files take {bytes_a_second / 1e3:.1f} kB per second of audio: "
        + "; ".join(
            f"{hours:,.0f} h = {hours * 3600 * bytes_a_second / 1e9:,.0f} GB"
            for hours in LOADS.values()
        )
        + f". {CORES} cores write {CORES} x {written:.1f} = {CORES * written:.0f} MB/s.",
    ]
    return "\n".join(text)


def _digits(value: float) -> str:
    """Returns a number with as many digits as are worth it."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _time(hours: float) -> str:
    """Returns a time in hours, minutes or seconds."""
    for unit, length in (("h", 1), ("min", 60)):
        if hours * length >= 1:
            return f"{_digits(hours * length)} {unit}"
    return f"{_digits(hours * 3600)} s"


if __name__ == "__main__":
    sys.exit(main())
