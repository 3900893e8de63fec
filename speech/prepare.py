"""Writes a premixed corpus: every utterance with every noise at every SNR.

::

    python -m speech.prepare --clean TIMIT --noise noises --snr -5 0 5 10 --split TRAIN --out mixed

This writes ``mixed/noisy/<noise>/<speaker>/<dB>/<name>.wav``, ``mixed/clean/<name>.wav`` and
``mixed/manifest.csv``, all at 16 kHz mono. A noisy file minus its clean file is the noise, sample
for sample: one gain per utterance, common to all its mixtures, keeps every file from clipping. The
same command writes the same bytes for any ``--jobs`` and ``--dask``. Repeated after a kill, it
keeps the utterances that are complete and goes on.

With ``--rooms P`` the share P of the utterances is put in a simulated room
(`speech.sound.augment`), in the same one in all mixtures. As in training, the SNR counts all the
speech in the room, and the clean file is the direct sound with its early reflections. Noisy minus
clean then also holds the late reflections.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech.base import cli
from speech.base.cli import decibels, positive_number
from speech.base.cluster import add_option, connected
from speech.base.files import write_json
from speech.data import corpus
from speech.data.prepared import prepare
from speech.sound.audio import SAMPLE_RATE_HZ, describe_conversion

SUBTYPES = {"float": "FLOAT", "pcm16": "PCM_16"}

_SPLIT_HELP = "take this part; noise without TRAIN and TEST folders is split in time, 80:20"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(**vars(options)))


def _run(
    clean: Path, noise: Path, snr: Sequence[float], out: Path, *,
    split: str | None, seed: int, rooms: float, format: str, jobs: int, dask: str | None,
    json: Path | None, **more: Any,
) -> int:  # fmt: skip
    with connected(dask, jobs) as cluster:
        report = prepare(
            clean, noise, snr, out, split=split, seed=seed, rooms=rooms, num_jobs=jobs,
            subtype=SUBTYPES[format], cluster=cluster, **more,
        )  # fmt: skip
    converted = {
        what: count
        for (rate_hz, channels), count in sorted(report.conversions.items())
        if (what := describe_conversion(rate_hz, channels))
    }
    num_utterances = len({row["clean"] for row in report.rows})
    seconds = sum(row["num_samples"] for row in report.rows) / SAMPLE_RATE_HZ
    print(f"mixtures    {len(report.rows)} ({seconds / 60:.1f} min)")
    print(f"utterances  {num_utterances}")
    if rooms:
        in_rooms = {row["clean"]: row["room"] for row in report.rows if "room" in row}
        num_rooms = len(set(in_rooms.values()))
        print(f"in rooms    {len(in_rooms)} utterances in {num_rooms} rooms")
    for what, count in converted.items():
        print(f"converted   {count} utterances: {what}")
    print(f"skipped     {len(report.skipped)}")
    print(f"manifest    {out / 'manifest.csv'}")
    if report.skipped:
        reasons = corpus.listed(reason for _, reason in report.skipped)
        print(f"skipped {len(report.skipped)} sources: {reasons}", file=sys.stderr)
    if json:
        summary = {
            "num_mixtures": len(report.rows),
            "num_utterances": num_utterances,
            "duration_s": seconds,
            "snr_db": snr,
            "seed": seed,
            "split": split,
            "converted": converted,
            "skipped": [{"source": source, "reason": why} for source, why in report.skipped],
        }
        if rooms:
            summary |= {"rooms": rooms, "num_in_rooms": len(in_rooms)}
        write_json(json, summary)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech.prepare",
        description="Mix every utterance with every noise at every SNR and write the files.",
        **cli.examples(
            "python -m speech.prepare --clean TIMIT --noise noises --snr -5 0 5 10 -o mixed",
            "python -m speech.prepare --clean a --noise b --snr 0 --split TEST --rooms 0.5 -o test",
        ),
    )
    add = parser.add_argument
    add("--clean", type=Path, required=True, metavar="DIR",
        help="read clean files from this folder: TIMIT or any other")  # fmt: skip
    add("--noise", type=Path, required=True, metavar="DIR",
        help="mix these noise recordings (a folder)")  # fmt: skip
    add("--snr", type=decibels, nargs="+", required=True, metavar="DB",
        help="mix at these SNRs (such as -5 0 5 10)")  # fmt: skip
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="write to this folder")
    add("--split", type=str.upper, choices=("TRAIN", "TEST"), help=_SPLIT_HELP)
    add("--skip-sa", action="store_true", help="leave out TIMIT's SA sentences")
    add("--seed", **cli.SEED)
    add("--jobs", **cli.JOBS)
    add_option(parser, "mix")
    add("--limit", type=positive_number, metavar="N",
        help="take only N utterances, of all speakers in turn")  # fmt: skip
    add("--format", choices=SUBTYPES, default="float",
        help="write samples in this format (default float)")  # fmt: skip
    add("--rooms", type=float, default=0.0, metavar="P",
        help="put the speech in a room with probability P (needs pyroomacoustics; drawn for each "
        "utterance; default 0)")  # fmt: skip
    add("--force", action="store_true",
        help="overwrite another run in --out and keep nothing of it")  # fmt: skip
    add("--json", **cli.JSON)
    return parser


if __name__ == "__main__":
    sys.exit(main())
