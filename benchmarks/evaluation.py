"""Scoring side by side: ours on one and on all cores, the bare metric packages, and SDR alone.

::

    python -m benchmarks.evaluation --json benchmarks/results/evaluation.json

The bare packages get signals that are in memory already; ours read, check and hash files, start
their processes and make rows of the scores. SDR is timed on noisy files and on files enhanced by
the shipped model, half of each.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from eval.isolation import ONE_THREAD
from speech.base import cli

BASE = "ours, one process"
BARE = "pesq and pystoi alone, one core"
SDR = "ours"
MIR_EVAL = "mir_eval"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=cli.positive_number, default=200, metavar="N")
    parser.add_argument("--sdr-pairs", type=cli.positive_number, default=20, metavar="N")
    parser.add_argument("--rounds", type=int, default=common.MIN_ROUNDS, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    common.take_turns({}, options.rounds)  # too few rounds are refused before the work
    # One thread of BLAS each, as in the processes that score; set before NumPy is imported.
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    with tempfile.TemporaryDirectory() as folder:
        tasks = _write_mixtures(Path(folder), max(options.files, options.sdr_pairs))
        scoring = _time_scoring(tasks[: options.files], options.rounds)
        sdr = _time_sdr(_sdr_pairs(tasks[: options.sdr_pairs]), options.rounds)
    common.write_result(options.json, {"scoring": scoring, "sdr": sdr})
    return 0


def _time_scoring(tasks: Sequence[Any], rounds: int) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    parallel = f"ours, {cores} processes"
    timing = common.take_turns(
        {
            BASE: lambda: _ours(tasks, 1),
            parallel: lambda: _ours(tasks, cores),
            BARE: lambda: _bare(tasks),
        },
        rounds,
        warmups=1,
    )
    common.print_table(f"scoring {len(tasks)} files: PESQ-WB, PESQ-NB, STOI", timing, BASE)
    # Both within a round: the speed of a shared machine drifts from one round to the next.
    efficiency = timing.ratio(BASE, parallel) / cores
    overhead = timing.ratio(BASE, BARE) - 1
    print(f"  parallel efficiency on {cores} cores: {100 * efficiency:.1f} %")
    print(f"  ours over the bare packages on one core: {100 * overhead:+.1f} %")
    return timing.as_json(BASE) | {
        "files": len(tasks),
        "processes": cores,
        "parallel_efficiency": efficiency,
        "overhead": overhead,
    }


def _time_sdr(pairs: Sequence[tuple[Any, Any]], rounds: int) -> dict[str, Any]:
    contenders = {
        SDR: _our_sdr,
        MIR_EVAL: _mir_eval_sdr,
        "fast_bss_eval": _fast_bss_eval_sdr(None),
        "fast_bss_eval, 10 iterations": _fast_bss_eval_sdr(10),
    }
    values: dict[str, list[float]] = {}

    def over_all(name: str, prepare: Callable[[], Callable[[Any, Any], float]]) -> Callable:
        def ready() -> Callable[[], None]:
            sdr = prepare()

            def run() -> None:
                values[name] = [float(sdr(*pair)) for pair in pairs]

            return run

        return ready

    timing = common.take_turns(
        {name: over_all(name, prepare) for name, prepare in contenders.items()}, rounds, warmups=1
    )
    common.print_table(f"SDR of {len(pairs)} pairs", timing, SDR)
    result = timing.as_json(SDR) | {"pairs": len(pairs)}
    if MIR_EVAL in values:
        for name, own in values.items():
            largest = max(abs(a - b) for a, b in zip(own, values[MIR_EVAL], strict=True))
            result[name]["largest_difference_to_mir_eval_db"] = largest
            print(f"  {name}: at most {largest:.2g} dB from mir_eval")
        result["speedup_over_mir_eval"] = timing.ratio(MIR_EVAL, SDR)
        print(f"  ours is {result['speedup_over_mir_eval']:.1f} x as fast as mir_eval")
    return result


def _write_mixtures(folder: Path, num_files: int) -> list[Any]:
    from eval.systems import noisy_system, tasks_of
    from speech.data import corpus
    from speech.data.prepared import write_mixtures

    plans = corpus.plan_mixtures(*corpus.recordings(None, None, "TEST"), [5.0])[:num_files]
    write_mixtures(plans, folder)
    pairs = [plan.pair(folder) for plan in plans]
    return tasks_of([noisy_system(pairs)], pairs)


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


def _sdr_pairs(tasks: Sequence[Any]) -> list[tuple[Any, Any]]:
    from speech.net.enhancer import Enhancer
    from speech.sound.audio import read_audio

    enhancer, pairs = Enhancer(), []
    for place, task in enumerate(tasks):
        clean, noisy = (read_audio(path).samples for path in (task.reference, task.estimate))
        estimate = enhancer(noisy) if place % 2 else noisy
        pairs.append((clean.astype(float), estimate.astype(float)))
    return pairs


def _our_sdr() -> Callable[[Any, Any], float]:
    from eval.bsseval import sdr_db

    return sdr_db


def _mir_eval_sdr() -> Callable[[Any, Any], float]:
    from mir_eval import separation

    def sdr(reference: Any, estimate: Any) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # mir_eval 0.9 takes it away
            return separation.bss_eval_sources(reference[None], estimate[None], False)[0][0]

    return sdr


def _fast_bss_eval_sdr(num_iterations: int | None) -> Callable[[], Callable[[Any, Any], float]]:
    def prepare() -> Callable[[Any, Any], float]:
        import fast_bss_eval

        return lambda reference, estimate: fast_bss_eval.sdr(
            reference[None], estimate[None], use_cg_iter=num_iterations
        )[0]

    return prepare


if __name__ == "__main__":
    sys.exit(main())
