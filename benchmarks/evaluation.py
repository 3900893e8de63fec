"""Scoring side by side: ours in parallel, and the bare metric packages on one core.

::

    python -m benchmarks.evaluation --files 40 --json benchmarks/results/evaluation.json
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from speech import cli

BASE = "ours, one process"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=cli.positive_number, default=40, metavar="N")
    parser.add_argument("--rounds", type=int, default=common.MIN_ROUNDS, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tasks = _write_mixtures(Path(folder), options.files)
        cores = len(os.sched_getaffinity(0))
        timing = common.take_turns(
            {
                BASE: lambda: _ours(tasks, 1),
                f"ours, {cores} processes": lambda: _ours(tasks, cores),
                "pesq and pystoi alone, one core": lambda: _bare(tasks),
            },
            options.rounds,
            warmups=1,
        )
    common.print_table(f"scoring {len(tasks)} files: PESQ-WB, PESQ-NB, STOI", timing, BASE)
    speedup = timing.ratio(BASE, f"ours, {cores} processes")
    overhead = timing.ratio(BASE, "pesq and pystoi alone, one core") - 1
    print(f"  parallel efficiency on {cores} cores: {100 * speedup / cores:.1f} %")
    print(f"  ours over the bare packages on one core: {100 * overhead:+.1f} %")
    result = timing.as_json(BASE) | {
        "files": len(tasks),
        "parallel_efficiency": speedup / cores,
        "overhead": overhead,
    }
    common.write_result(options.json, result)
    return 0


def _write_mixtures(folder: Path, num_files: int) -> list[Any]:
    from eval.scoring import Task
    from speech import corpus
    from speech.prepare import write_mixtures

    plans = corpus.plan_mixtures(
        corpus.bundled_speech("TEST"), corpus.bundled_noise("TEST"), [5.0]
    )[:num_files]
    write_mixtures(plans, folder)
    return [
        Task(
            "noisy",
            folder / "noisy" / plan.relative_path,
            folder / "clean" / f"{plan.utterance.id}.wav",
            plan.noise.name,
            plan.snr_db,
            str(plan.relative_path),
        )
        for plan in plans
    ]


def _ours(tasks: Sequence[Any], num_jobs: int) -> Callable[[], Any]:
    from eval.scoring import score_all

    return lambda: score_all(tasks, num_jobs)


def _bare(tasks: Sequence[Any]) -> Callable[[], Any]:
    import pesq
    import pystoi
    import soundfile

    pairs = [
        (soundfile.read(task.reference)[0], soundfile.read(task.estimate)[0]) for task in tasks
    ]

    def run() -> None:
        for reference, estimate in pairs:
            pesq.pesq(16000, reference, estimate, "wb")
            pesq.pesq(16000, reference, estimate, "nb")
            pystoi.stoi(reference, estimate, 16000)

    return run


if __name__ == "__main__":
    sys.exit(main())
