"""Interleaved timing, optional contenders, tables."""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from speech.base import cli
from speech.base.files import write_json
from speech.base.runinfo import run_info

if TYPE_CHECKING:
    from speech.data.corpus import MixturePlan

#: Fewer rounds give no median worth printing.
MIN_ROUNDS = 7


@dataclass
class Timing:
    """Seconds of each contender, round by round.

    Attributes:
        seconds: Contender -> one value a round.
        skipped: Contender -> why it did not run.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Median seconds of one contender."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Median over rounds of ``name``'s seconds over ``base``'s in the same round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def as_json(self, base: str) -> dict[str, Any]:
        """Returns medians, spreads and ratios as plain values."""
        return {
            name: {
                "median_s": self.median(name),
                "min_s": min(values),
                "max_s": max(values),
                "ratio_to_base": self.ratio(name, base),
                "rounds": len(values),
            }
            for name, values in self.seconds.items()
        } | {name: {"skipped": reason} for name, reason in self.skipped.items()}


def take_turns(
    contenders: dict[str, Callable[[], Callable[[], Any]]], rounds: int, warmups: int = 2
) -> Timing:
    """Times contenders in turn.

    Args:
        contenders: Name -> function that prepares it and returns what is timed. One that raises
            ImportError is skipped with a note.
        rounds: At least `MIN_ROUNDS`.
        warmups: Calls of each that are not counted.
    """
    if rounds < MIN_ROUNDS:
        raise ValueError(f"rounds is {rounds}; give at least {MIN_ROUNDS}")
    timing, ready = Timing(), {}
    for name, prepare in contenders.items():
        try:
            ready[name] = prepare()
        except ImportError as error:
            timing.skipped[name] = f"not installed ({error.name})"
            continue
        for _ in range(warmups):
            ready[name]()
        timing.seconds[name] = []
    for _ in range(rounds):
        for name, call in ready.items():
            gc.collect()
            start = time.perf_counter()
            call()
            timing.seconds[name].append(time.perf_counter() - start)
    return timing


def print_table(title: str, timing: Timing, base: str) -> None:
    """Prints median, spread and how many times as long as ``base`` each contender takes."""
    print(f"\n{title}")
    print(f"  {'':<34}{'median ms':>11}{'min':>10}{'max':>10}{'/ ' + base:>12}")
    for name, values in timing.seconds.items():
        print(
            f"  {name:<34}{1e3 * timing.median(name):>11.2f}{1e3 * min(values):>10.2f}"
            f"{1e3 * max(values):>10.2f}{timing.ratio(name, base):>11.2f}x"
        )
    for name, reason in timing.skipped.items():
        print(f"  {name:<34}skipped: {reason}")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Writes the result with what it was made with, if a file was asked for."""
    if path is not None:
        write_json(path, result | {"cores": len(os.sched_getaffinity(0)), **run_info()})
        print(f"\nwritten {path}", file=sys.stderr)


def run_command(module: str, *arguments: str) -> None:
    """Runs one of our commands in a process of its own.

    Raises:
        ValueError: It failed.
    """
    command = cli.python_command("-m", module, *arguments)
    done = subprocess.run(command, env=cli.python_environment(), check=False)
    if done.returncode:
        raise ValueError(f"python -m {module} ended with {done.returncode}; its reason is above")


def add_test_options(parser: argparse.ArgumentParser, num_test: int) -> None:
    """Adds the options that say on which mixtures networks are compared."""
    add = parser.add_argument
    add("--timit", type=Path, metavar="DIR", help="take speech of its TEST part (default: bundled)")
    add("--noise", type=Path, metavar="DIR", help="mix noise of its TEST part (with --timit)")
    add("--num-test", type=cli.positive_number, default=num_test, metavar="N",
        help="take N files per noise and SNR (default %(default)s)")  # fmt: skip
    add("--seed", **cli.SEED)
    add("--jobs", **cli.JOBS)
    add("--json", **cli.JSON)


def write_test_set(
    folder: Path,
    speech: Path | None,
    noise: Path | None,
    snrs_db: Sequence[float],
    num_test: int,
    seed: int,
    num_jobs: int,
    room_share: float = 0.0,
    split: str = "TEST",
) -> tuple[list[MixturePlan], list[dict[str, Any]]]:
    """Writes mixtures of one part, the same files each time; says what can't be mixed.

    Args:
        folder: Gets ``noisy`` and ``clean``.
        speech: Of `corpus.recordings`.
        noise: Likewise.
        snrs_db: SNRs.
        num_test: Files per noise and SNR.
        seed: Of the mixtures.
        num_jobs: Processes that mix.
        room_share: Share of the utterances that are put in rooms which no training has had.
        split: The part, TRAIN or TEST.

    Returns:
        The plans, and the rows of the table of what was written.
    """
    from speech.data import corpus
    from speech.data.prepared import write_mixtures

    plans = corpus.spread_mixtures(
        *corpus.recordings(speech, noise, split), snrs_db, num_test, seed
    )
    plans = corpus.put_in_rooms(plans, room_share, split)
    report = write_mixtures(plans, folder, num_jobs=num_jobs)
    for _, reason in report.skipped:
        print(f"skipped in the test set: {reason}", file=sys.stderr)
    return plans, report.rows


def add_onnx_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for networks of others that come as ONNX files."""
    add = parser.add_argument
    add("--gtcrn", type=Path, metavar="FILE", help="the streaming GTCRN as ONNX")
    add("--dtln", type=Path, nargs=2, metavar="FILE", help="both networks of DTLN as ONNX")


def onnx_systems(gtcrn: Path | None, dtln: Sequence[Path] | None) -> dict[str, peers.Spec]:
    """Returns name -> what `peers.Worker` takes, of the networks whose files were given.

    Args:
        gtcrn: The streaming GTCRN.
        dtln: Both networks of DTLN.

    Raises:
        ValueError: There is no such file.
    """
    given = {"GTCRN": [gtcrn] if gtcrn else [], "DTLN": list(dtln or ())}
    for path in sum(given.values(), []):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; check the path")
    return {
        name: (f"benchmarks.streaming:{name}", tuple(map(str, paths)))
        for name, paths in given.items()
        if paths
    }


def random_speech(seconds: float, seed: int = 0, batch: int = 1) -> Any:
    """Returns float32 [batch, time, 1] of noise at 16 kHz; values don't matter for speed."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal((batch, round(16000 * seconds), 1))).astype(np.float32)


def torch_fcn() -> Any:
    """Returns the FCN in PyTorch: Conv1d, InstanceNorm1d, LeakyReLU, tanh.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch
    from torch import nn

    layers: list[Any] = []
    channels = 1
    for _ in range(7):
        layers += [
            nn.Conv1d(channels, 30, 55, padding="same"),
            nn.InstanceNorm1d(30, eps=1e-5, affine=True),
            nn.LeakyReLU(0.3),
        ]
        channels = 30
    layers += [nn.Conv1d(30, 1, 55, padding="same"), nn.Tanh()]
    torch.manual_seed(0)
    return nn.Sequential(*layers)
