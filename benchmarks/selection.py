"""What choosing costs: judging estimates beside making them.

::

    python -m benchmarks.selection
    python -m benchmarks.selection --seconds 3 --cores 2 --metric snr --json selection.json

Three FCNs (one file under three names) and three mask experts enhance the same signal. Contenders:

    experts    each is run, nothing is judged
    judging    their signals, made before, are judged as files of other tools would be: levels
               fitted, spectra of all and of the mixture, the autoencoder, scores, the pick
    both       as `mnn.select` does it: the spectra of mask experts serve for both

They take turns in one run, on one core unless told otherwise. Ratios are medians over rounds; those
of processor time hold on a machine that is busy with other work, too, those by the clock do not.
The goal for FCNs (DAE_128) is at most 10 % on top.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from speech.base import cli

if TYPE_CHECKING:
    from mnn.arbiter import Arbiter
    from mnn.expert_files import Expert

EXPERTS, JUDGING, BOTH = "experts", "judging", "both"
GOAL = 0.10
SECONDS = (3.0, 10.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    from mnn.scoring import DEFAULT_SCORING
    from mnn.select import DEFAULT_DAE

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--seconds", type=float, nargs="+", default=list(SECONDS), metavar="S",
        help="of audio (default 3 10)")  # fmt: skip
    add("--rounds", type=cli.positive_number, default=15, metavar="N",
        help="at least 7 (default %(default)s)")  # fmt: skip
    add("--cores", type=cli.positive_number, default=1, metavar="N",
        help="to run on (default %(default)s)")  # fmt: skip
    add("--dae", type=Path, default=DEFAULT_DAE, metavar="FILE", help="default: the shipped one")
    # Not told by choices: what knows them imports NumPy.
    add("--metric", default="ae", help="as in mnn.select (default %(default)s)")
    add("--scoring", default=DEFAULT_SCORING, help="as in mnn.select (default %(default)s)")
    add("--judge", default="ranker", help="as in mnn.select (default %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    options = parser.parse_args(argv)
    if not all(0.1 <= seconds <= 60 for seconds in options.seconds):
        parser.error(f"--seconds is {options.seconds}; give 0.1 to 60 each")
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with on_cores(options.cores) as num_cores:
        # NumPy counts the cores when it is first imported.
        from mnn.arbiter import Arbiter
        from mnn.dae import Autoencoder
        from mnn.scoring import needs_of

        dae = Autoencoder(options.dae)
        arbiter = Arbiter(
            dae, needs_of(options.metric, options.scoring), fit=options.scoring != "paper"
        )
        tables: dict[str, Any] = {}
        overheads = {}
        for kind, pool in pools().items():
            for seconds in options.seconds:
                title = f"{len(pool)} {kind}, {seconds:g} s of audio, {num_cores} core(s)"
                signal = common.random_speech(seconds)[0, :, 0]
                contenders, cpu = contenders_of(arbiter, pool, signal, options)
                wall = common.take_turns(contenders, options.rounds)
                cpu.seconds = {name: own[-options.rounds :] for name, own in cpu.seconds.items()}
                common.print_table(f"{title}: by the clock", wall, EXPERTS)
                common.print_table(f"{title}: of the processor", cpu, EXPERTS)
                tables[title] = {"wall": wall.as_json(EXPERTS), "cpu": cpu.as_json(EXPERTS)}
                overheads[title] = {
                    "wall": wall.ratio(JUDGING, EXPERTS), "cpu": cpu.ratio(JUDGING, EXPERTS)
                }  # fmt: skip
    judged = f"{options.judge}, {options.metric}, {options.scoring}, {options.dae.name}"
    print(f"\njudging / running ({judged}); goal for FCNs: at most {100 * GOAL:g} %")
    for title, own in overheads.items():
        print(f"  {title:<44}{100 * own['cpu']:>6.1f} % of processor time, "
              f"{100 * own['wall']:.1f} % by the clock")  # fmt: skip
    result = {
        "metric": options.metric,
        "scoring": options.scoring,
        "judge": options.judge,
        "dae_sha256": dae.file.sha256,
        "cores_used": num_cores,
        "overheads": overheads,
        "tables": tables,
    }
    common.write_result(options.json, result)
    return 0


def pools() -> dict[str, list[Expert]]:
    """Returns three FCNs, which are one, and the three shipped mask experts."""
    from mnn.expert_files import open_expert
    from mnn.select import DEFAULT_EXPERTS
    from speech.net.enhancer import BASELINE_MODEL

    return {
        "FCNs": [open_expert(BASELINE_MODEL, f"fcn{number}") for number in (1, 2, 3)],
        "mask experts": [open_expert(path) for path in DEFAULT_EXPERTS],
    }


def contenders_of(
    arbiter: Arbiter, pool: Sequence[Expert], signal: Any, options: argparse.Namespace
) -> tuple[dict[str, Callable[[], Callable[[], Any]]], common.Timing]:
    """Returns what `benchmarks.common.take_turns` takes, and where processor time is noted.

    Args:
        arbiter: Judges.
        pool: The experts.
        signal: float32 [num_samples] at 16 kHz.
        options: With metric and scoring.
    """
    from mnn.expert_files import Expert
    from mnn.ranker import Ranker
    from mnn.select import DEFAULT_RANKER
    from mnn.selector import Selector

    made = [hearing.signal for hearing in arbiter.run(signal, pool)]
    ready = [
        Expert(expert.name, "waveform", expert.source, expert.sha256, None, lambda *_, own=own: own)
        for expert, own in zip(pool, made, strict=True)
    ]

    def chosen_by(experts: Sequence[Expert]) -> Callable[[], Any]:
        ranker = None if options.judge == "autoencoder" else Ranker(DEFAULT_RANKER)
        selector = Selector(
            arbiter, experts, options.metric, options.scoring, ranker=ranker, judge=options.judge
        )
        return lambda: selector.choose([signal])

    calls = {
        EXPERTS: lambda: arbiter.run(signal, pool),
        JUDGING: chosen_by(ready),
        BOTH: chosen_by(pool),
    }
    cpu = common.Timing({name: [] for name in calls})

    def counted(name: str) -> Callable[[], Any]:
        def call() -> Any:
            started = time.process_time()
            result = calls[name]()
            cpu.seconds[name].append(time.process_time() - started)
            return result

        return call

    return {name: partial(counted, name) for name in calls}, cpu


@contextlib.contextmanager
def on_cores(num_cores: int) -> Iterator[int]:
    """Keeps the process on so many cores, where the system can; yields how many it has then."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    chosen = set(sorted(before)[-num_cores:])
    os.sched_setaffinity(0, chosen)
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    sys.exit(main())
