"""Writes a premixed corpus: every utterance with every noise at every SNR.

::

    python -m speech.prepare --clean TIMIT --noise noises --snr -5 0 5 10 --split TRAIN --out mixed

gives ``mixed/noisy/<noise>/<speaker>/<dB>/<name>.wav``, ``mixed/clean/<name>.wav`` and
``mixed/manifest.csv``, all at 16 kHz mono. A noisy file minus its clean file is the noise, sample
for sample: one gain per utterance, common to all its mixtures, keeps every file from clipping. The
same command writes the same bytes, whatever ``--jobs``.

With ``--rooms P`` the share P of the utterances is in a simulated room (`speech.augment`), in the
same one in all mixtures. As in training, the SNR is that of all the speech in the room, and the
clean file is the direct sound with its early reflections. Noisy minus clean then also holds the
late reflections.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech import cli
from speech.cli import decibels, natural_number, positive_number

SUBTYPES = {"float": "FLOAT", "pcm16": "PCM_16"}

#: Shorter speech is skipped: PESQ scores nothing below a quarter of a second.
MIN_DURATION_S = 0.25

COLUMNS = (
    "noisy",  # below --out
    "clean",  # below --out
    "source_clean",  # below --clean
    "source_noise",  # below --noise
    "offset_samples",  # where the segment starts in the noise file, at 16 kHz
    "seed",
    "snr_db",  # asked for
    "measured_snr_db",  # before the samples are rounded to the file's format
    "gain",  # common to the noisy and the clean file
    "num_samples",
)

#: Further columns with ``--rooms``, empty for an utterance without a room.
ROOM_COLUMNS = (
    "room",  # number, see `speech.augment.room_response`
    "rt60_s",  # its reverberation time, measured on the impulse response
)

#: Says which run wrote, or began to write, what is there.
MARKER = ".prepared"

_SPLIT_HELP = "take this part; noise without TRAIN and TEST folders is split in time, 80:20"


@dataclass
class Report:
    """What became of one utterance, or of all.

    Attributes:
        rows: One manifest row (`COLUMNS`, in a room also `ROOM_COLUMNS`) for each mixture written.
        skipped: (source, reason) of whatever was left out.
        conversions: How many files of each (rate in Hz, number of channels) were read.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    conversions: Counter = field(default_factory=Counter)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def prepare(
    clean_root: Path,
    noise_root: Path,
    snrs_db: Sequence[float],
    out: Path,
    *,
    split: str | None = None,
    skip_sa: bool = False,
    seed: int = 0,
    num_jobs: int = 1,
    limit: int | None = None,
    subtype: str = "FLOAT",
    force: bool = False,
    rooms: float = 0.0,
) -> Report:
    """Writes the premixed corpus; the arguments are those of the command line.

    A call can be repeated as it was, whether it was killed or not: it writes the same bytes.

    Raises:
        ValueError: Bad folders, an ``out`` that holds something else or where another run is at
            work, nothing that could be mixed, or rooms that make no sense or can't be simulated.
    """
    from speech import corpus
    from speech.augment import Augmentation
    from speech.files import held

    Augmentation(rooms=rooms)  # checks it
    _check_apart(out, clean_root, noise_root)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is not a folder; choose another --out")
    speech_split = split if split is None or corpus.has_splits(clean_root) else None
    utterances = corpus.find_speech(clean_root, speech_split, skip_sa)[:limit]
    report = Report()
    noises = _sound(corpus.find_noise(noise_root, split), report)
    plans = corpus.plan_mixtures(utterances, noises, snrs_db, seed)
    if rooms:
        plans = corpus.put_in_rooms(plans, rooms, split)
    with held(out):
        _write(plans, report, out, clean_root, noise_root, num_jobs, subtype, force, rooms)
    return report


def _write(
    plans: Sequence[Any],
    report: Report,
    out: Path,
    clean_root: Path,
    noise_root: Path,
    num_jobs: int,
    subtype: str,
    force: bool,
    rooms: float,
) -> None:
    """Writes the mixtures and the manifest, and adds to the report."""
    from speech.files import write_text

    marker, this_run = out / MARKER, _fingerprint(plans, subtype)
    is_repeated = marker.exists() and marker.read_text(errors="replace") == this_run
    _check_target(out, plans, force or is_repeated)
    write_text(marker, this_run)
    (out / "manifest.csv").unlink(missing_ok=True)  # written last: its presence means complete

    try:
        written = write_mixtures(plans, out, num_jobs=num_jobs, subtype=subtype)
    except ValueError:
        if not any(out.rglob("*.wav")):
            marker.unlink()
        raise
    report.rows, report.conversions = written.rows, written.conversions
    report.skipped += written.skipped
    for row in report.rows:
        row["source_clean"] = Path(row["source_clean"]).relative_to(clean_root).as_posix()
        row["source_noise"] = Path(row["source_noise"]).relative_to(noise_root).as_posix()
    table = io.StringIO()
    columns = COLUMNS + ROOM_COLUMNS if rooms else COLUMNS
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.rows)
    write_text(out / "manifest.csv", table.getvalue())


def _fingerprint(plans: Sequence[Any], subtype: str) -> str:
    """Returns digits that tell what is to be written from anything else."""
    text = "\n".join(
        f"{plan.relative_path.as_posix()} {plan.seed} {plan.snr_db} {plan.room} {subtype} "
        f"{plan.utterance.path} {plan.noise.path} {plan.noise.start} {plan.noise.stop}"
        for plan in plans
    )
    return hashlib.sha256(text.encode()).hexdigest()


def write_mixtures(
    plans: Sequence[Any], out: Path, *, num_jobs: int = 1, subtype: str = "FLOAT"
) -> Report:
    """Writes ``out/noisy/...`` and ``out/clean/...`` of planned mixtures, in parallel.

    Args:
        plans: `speech.corpus.MixturePlan` objects; those of one utterance share a gain and a room.
        out: Folder to write.
        num_jobs: Processes.
        subtype: 'FLOAT' or 'PCM_16'.

    Raises:
        ValueError: Nothing could be mixed.
    """
    import joblib

    by_utterance: dict[str, list[Any]] = {}
    for plan in plans:
        by_utterance.setdefault(plan.utterance.id, []).append(plan)
    tasks = (joblib.delayed(_mix_utterance)(own, out, subtype) for own in by_utterance.values())
    results = joblib.Parallel(n_jobs=num_jobs, return_as="generator")(tasks)
    report = Report()
    for result in cli.progress(results, total=len(by_utterance), label="mixing"):
        report.rows += result.rows
        report.skipped += result.skipped
        report.conversions += result.conversions
    if not report.rows:
        raise ValueError(
            f"{out}: nothing was written, all {len(by_utterance)} utterances were skipped; "
            f"the first: {report.skipped[0][1]}"
        )
    return report


def _mix_utterance(plans: Sequence[Any], out: Path, subtype: str) -> Report:
    """Writes one utterance: its clean file and every mixture planned for it."""
    from speech import audio, corpus, mixing

    report, utterance = Report(), plans[0].utterance
    source = str(utterance.path)
    try:
        recording = audio.read_audio(utterance.path)
    except audio.AudioError as error:
        report.skipped.append((source, cli.one_line(error)))
        return report
    report.conversions[recording.source_rate_hz, recording.source_channels] += 1
    speech = recording.samples.astype(float)
    num_samples = len(speech)
    if num_samples < MIN_DURATION_S * audio.SAMPLE_RATE_HZ:
        report.skipped.append((source, f"{source}: shorter than {MIN_DURATION_S} s"))
        return report
    if audio.is_silent(speech):
        report.skipped.append((source, f"{source}: silent"))
        return report
    speech, clean, room = _placed(speech, plans[0].room)

    # Two passes, so that memory does not grow with the number of noises: find the one gain that
    # every mixture of this utterance can bear, then mix again with the speech already scaled.
    # The early sound of a room can have a higher peak than all of it.
    mixable, gain = [], min(1.0, mixing.MAX_PEAK / float(abs(clean).max()))
    for plan in plans:
        try:
            segment, _ = corpus.noise_segment(plan, num_samples)
            gain = min(gain, mixing.mix_at_snr(speech, segment, plan.snr_db).gain)
            mixable.append(plan)
        except ValueError as error:
            reason = cli.one_line(error)
            report.skipped.append((f"{plan.noise.path} with {source}", reason))
    speech, clean = speech * gain, clean * gain
    clean_path = Path("clean", f"{utterance.id}.wav")
    for plan in mixable:
        segment, offset = corpus.noise_segment(plan, num_samples)
        mixture = mixing.mix_at_snr(speech, segment, plan.snr_db, peak=math.inf)
        noisy_path = Path("noisy", plan.relative_path)
        audio.write_audio(out / noisy_path, mixture.noisy, subtype=subtype)
        values = (
            noisy_path.as_posix(),
            clean_path.as_posix(),
            source,
            str(plan.noise.path),
            offset,
            plan.seed,
            plan.snr_db,
            mixing.measure_snr_db(speech, mixture.noisy - speech),
            gain,
            num_samples,
        )
        report.rows.append(dict(zip(COLUMNS, values, strict=True)) | room)
    if mixable:
        audio.write_audio(out / clean_path, clean, subtype=subtype)
    return report


def _placed(speech: Any, room: int | None) -> tuple[Any, Any, dict[str, Any]]:
    """Returns speech [num_samples] as it sounds in a room, the target, and `ROOM_COLUMNS`."""
    from speech import augment

    if room is None:
        return speech, speech, {}
    response = augment.room_response(room)
    columns = room, round(augment.reverberation_time_s(response), 4)
    return *augment.reverberate(speech, response), dict(zip(ROOM_COLUMNS, columns, strict=True))


def _sound(noises: Sequence[Any], report: Report) -> list[Any]:
    """Returns the noises that can be read and heard; notes the others."""
    from speech import audio, corpus

    usable = []
    for noise in cli.progress(noises, label="noises"):
        try:
            samples, _ = corpus.load_noise(noise)
            if audio.is_silent(samples):
                raise ValueError(f"{noise.path}: silent")
            usable.append(noise)
        except ValueError as error:
            report.skipped.append((str(noise.path), cli.one_line(error)))
    if not usable:
        raise ValueError(f"none of {len(noises)} noises can be used: {report.skipped[0][1]}")
    return usable


def _check_apart(out: Path, *sources: Path) -> None:
    """Refuses to write among the sources, where a second run would mix mixtures."""
    for source in sources:
        one, other = out.resolve(), source.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise ValueError(f"{out}: overlaps the source folder {source}; choose another --out")


def _check_target(out: Path, plans: Sequence[Any], force: bool) -> None:
    """Refuses to overwrite without ``force``, and ever to leave files of another run among ours."""
    if all(path.name.startswith(".") for path in out.iterdir()):  # the lock is ours
        return
    if not force:
        raise ValueError(f"{out}: is not empty; choose another --out, or overwrite with --force")
    written = {out / "noisy" / plan.relative_path for plan in plans}
    written |= {out / "clean" / f"{plan.utterance.id}.wav" for plan in plans}
    found = {*out.glob("noisy/**/*.wav"), *out.glob("clean/**/*.wav")}
    # Hidden names are the temporary files of a run that was killed.
    strange = sorted(path for path in found - written if not path.name.startswith("."))
    if strange:
        raise ValueError(
            f"{out}: holds {len(strange)} files that this command would not replace, "
            f"such as {strange[0].relative_to(out)}; delete the folder first"
        )


def _run(options: argparse.Namespace) -> int:
    import joblib

    from speech import corpus
    from speech.audio import SAMPLE_RATE_HZ, describe_conversion
    from speech.files import write_json

    report = prepare(
        options.clean,
        options.noise,
        options.snr,
        options.out,
        split=options.split,
        skip_sa=options.skip_sa,
        seed=options.seed,
        num_jobs=options.jobs or joblib.cpu_count(),
        limit=options.limit,
        subtype=SUBTYPES[options.format],
        force=options.force,
        rooms=options.rooms,
    )
    converted = {
        what: count
        for (rate_hz, channels), count in sorted(report.conversions.items())
        if (what := describe_conversion(rate_hz, channels))
    }
    num_utterances = len({row["clean"] for row in report.rows})
    seconds = sum(row["num_samples"] for row in report.rows) / SAMPLE_RATE_HZ
    print(f"mixtures    {len(report.rows)} ({seconds / 60:.1f} min)")
    print(f"utterances  {num_utterances}")
    if options.rooms:
        in_rooms = {row["clean"]: row["room"] for row in report.rows if "room" in row}
        num_rooms = len(set(in_rooms.values()))
        print(f"in rooms    {len(in_rooms)} utterances in {num_rooms} rooms")
    for what, count in converted.items():
        print(f"converted   {count} utterances: {what}")
    print(f"skipped     {len(report.skipped)}")
    print(f"manifest    {options.out / 'manifest.csv'}")
    if report.skipped:
        reasons = corpus.listed(reason for _, reason in report.skipped)
        print(f"skipped {len(report.skipped)} sources: {reasons}", file=sys.stderr)
    if options.json:
        summary = {
            "num_mixtures": len(report.rows),
            "num_utterances": num_utterances,
            "duration_s": seconds,
            "snr_db": options.snr,
            "seed": options.seed,
            "split": options.split,
            "converted": converted,
            "skipped": [{"source": source, "reason": why} for source, why in report.skipped],
        }
        if options.rooms:
            summary |= {"rooms": options.rooms, "num_in_rooms": len(in_rooms)}
        write_json(options.json, summary)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech.prepare",
        description="Mix every utterance with every noise at every SNR and write the files.",
    )
    add = parser.add_argument
    add("--clean", type=Path, required=True, metavar="DIR", help="speech: TIMIT or any folder")
    add("--noise", type=Path, required=True, metavar="DIR", help="folder of noise recordings")
    add("--snr", type=decibels, nargs="+", required=True, metavar="DB", help="such as -5 0 5 10")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add("--split", type=str.upper, choices=("TRAIN", "TEST"), help=_SPLIT_HELP)
    add("--skip-sa", action="store_true", help="leave out TIMIT's SA sentences")
    add("--seed", type=natural_number, default=0, help="of the noise segments (default 0)")
    add(
        "--jobs", type=natural_number, default=0, metavar="N", help="processes (default: all cores)"
    )
    add("--limit", type=positive_number, metavar="N", help="the first N utterances only")
    add("--format", choices=SUBTYPES, default="float", help="samples of the WAVs (default float)")
    add("--rooms", type=float, default=0.0, metavar="P",
        help="probability that an utterance is in a simulated room (default 0; needs "
        "pyroomacoustics)")  # fmt: skip
    add("--force", action="store_true", help="overwrite another run in --out")
    add("--json", type=Path, metavar="FILE", help="also write the summary to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
