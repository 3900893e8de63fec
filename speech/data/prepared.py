"""Mixtures written as files: noisy and clean trees with a table, in parallel, and gone on with."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speech.base import cli, schema
from speech.base.cluster import Cluster, Failed
from speech.base.files import append_text, end_line, held, remove_leftovers, write_text
from speech.base.lazy import joblib
from speech.base.words import csv_text
from speech.base.written import Written
from speech.data import corpus
from speech.sound import audio, augment, mixing
from speech.sound.augment import Augmentation

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
    "room",  # number, see `speech.sound.augment.room_response`
    "rt60_s",  # its reverberation time, measured on the impulse response
)

#: Shorter speech is skipped: PESQ scores nothing below a quarter of a second.
MIN_DURATION_S = 0.25


#: Says which run wrote, or began to write, what is there, and which utterances are whole.
MARKER = ".prepared"


@dataclass
class Report:
    """The results for one utterance, or for all of them.

    Attributes:
        rows: One manifest row (`COLUMNS`, in a room also `ROOM_COLUMNS`) for each mixture written.
        skipped: (source, reason) of whatever was left out.
        conversions: How many files of each (rate in Hz, number of channels) were read.
        files: What each file below the folder was when it was written.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    conversions: Counter = field(default_factory=Counter)
    files: dict[str, Written] = field(default_factory=dict)


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
    cluster: Cluster | None = None,
) -> Report:
    """Writes the premixed corpus; the arguments are those of the command line.

    A call can be repeated as it was, whether it was killed or not. It gives the same bytes, and
    keeps what is whole: an utterance is mixed again if one of its files is missing or is not what
    was written, byte for byte, or if its speech or noise has another size or time of change. With
    ``force`` all is mixed again.

    Raises:
        ValueError: Bad folders, an ``out`` that holds something else or where another run is at
            work, nothing that could be mixed, rooms that make no sense or can't be simulated, or
            a cluster that can't do the work.
    """
    Augmentation(rooms=rooms)  # checks it
    # The same wherever a repeated command stands; and workers stand in other folders.
    clean_root, noise_root = clean_root.absolute(), noise_root.absolute()
    out = out.absolute() if cluster else out
    _check_apart(out, clean_root, noise_root)
    cli.check_folder(out)
    speech_split = split if split is None or corpus.has_splits(clean_root) else None
    utterances = corpus.find_speech(clean_root, speech_split, skip_sa)
    if limit is not None:
        chosen = {utterance.id for utterance in corpus.speakers_in_turn(utterances)[:limit]}
        utterances = [utterance for utterance in utterances if utterance.id in chosen]
    report = Report()
    noises = _sound(corpus.find_noise(noise_root, split), report)
    plans = corpus.plan_mixtures(utterances, noises, snrs_db, seed)
    if rooms:
        plans = corpus.put_in_rooms(plans, rooms, split)
    with held(out):
        _write(plans, report, out, clean_root, noise_root, num_jobs, subtype, force, rooms, cluster)
    return report


def _check_apart(out: Path, *sources: Path) -> None:
    """Refuses to write among the sources, where a second run would mix mixtures."""
    for source in sources:
        if cli.overlap(out, source):
            raise ValueError(f"{out}: overlaps the source folder {source}; choose another --out")


def _write(
    plans: Sequence[corpus.MixturePlan],
    report: Report,
    out: Path,
    clean_root: Path,
    noise_root: Path,
    num_jobs: int,
    subtype: str,
    force: bool,
    rooms: float,
    cluster: Cluster | None,
) -> None:
    """Writes the mixtures and the manifest, and adds to the report."""
    journal = _Journal(out / MARKER, plans, subtype)
    _check_target(out, plans, force or journal.is_repeated)
    journal.begin(anew=force)
    (out / "manifest.csv").unlink(missing_ok=True)  # written last: its presence means complete

    try:
        written = write_mixtures(
            plans, out, num_jobs=num_jobs, subtype=subtype, cluster=cluster, journal=journal
        )
    except ValueError:
        if not any(out.rglob("*.wav")):
            journal.path.unlink()
        raise
    if cluster:
        remove_leftovers(out, below=True)  # of workers that died
    report.rows, report.conversions = written.rows, written.conversions
    report.skipped += written.skipped
    for row in report.rows:
        row["source_clean"] = Path(row["source_clean"]).relative_to(clean_root).as_posix()
        row["source_noise"] = Path(row["source_noise"]).relative_to(noise_root).as_posix()
    columns = COLUMNS + ROOM_COLUMNS if rooms else COLUMNS
    write_text(out / "manifest.csv", csv_text(report.rows, columns))


@dataclass
class _Entry:
    """A line of the journal; see `_Journal.add`."""

    utterance: str
    sources: str
    converted_from: tuple[int, int]
    skipped: list[tuple[str, str]]
    rows: list[list[str | int | float | None]]
    files: dict[str, Written]


class _Journal:
    """A file that records the run and the finished utterances with their rows of the manifest.

    The first line identifies the run. Each utterance adds a line as soon as it is written, so that
    a run that is killed resumes where it stopped.

    Args:
        path: The file.
        plans: All mixtures of the run.
        subtype: Of the files.
    """

    def __init__(self, path: Path, plans: Sequence[corpus.MixturePlan], subtype: str) -> None:

        self.path = path
        self._known: dict[str, _Entry] = {}
        self._sources: dict[str, str] = {}  # utterance -> what it was made of
        self._noises: dict[Path, str] = {}
        digest = hashlib.sha256(subtype.encode())
        for plan in plans:
            utterance, noise = plan.utterance, plan.noise
            digest.update(
                f"{plan.relative_path.as_posix()} {utterance.path} {plan.snr_db} {noise.path} "
                f"{noise.start} {noise.stop} {plan.seed} {plan.room}\n"
                "".encode("utf-8", "surrogateescape")
            )
        self._run = digest.hexdigest()
        run = ""
        if path.exists():
            end_line(path)
            with open(path, "rb") as stream:
                run = stream.readline(1000).decode("utf-8", "replace").rstrip("\n")
        self.is_repeated = run == self._run
        for entry in schema.lines(path, _Entry, skip=1) if self.is_repeated else ():
            self._known[entry.utterance] = entry

    def begin(self, anew: bool) -> None:
        """Takes the folder for this run; forgets what is whole, if it is all to be done anew."""
        if anew or not self.is_repeated:
            self._known.clear()
            write_text(self.path, f"{self._run}\n")

    def get_all(
        self, groups: Sequence[Sequence[corpus.MixturePlan]], out: Path
    ) -> list[Report | None]:
        """Returns what `get` does of each utterance; their files are read side by side."""
        num_threads = (os.cpu_count() or 1) if self._known else 1
        with ThreadPoolExecutor(num_threads) as pool:
            found = pool.map(lambda plans: self.get(plans, out), groups)
            return list(cli.progress(found, total=len(groups), label="checking"))

    def get(self, plans: Sequence[corpus.MixturePlan], out: Path) -> Report | None:
        """Returns the report of an utterance that is whole; None for one to be mixed."""
        name = plans[0].utterance.id
        self._sources[name] = self._digest(plans)
        entry = self._known.pop(name, None)
        if entry is None or entry.sources != self._sources[name]:
            return None
        rows = [dict(zip(COLUMNS + ROOM_COLUMNS, row, strict=False)) for row in entry.rows]
        if not all(
            len(row) in (len(COLUMNS), len(COLUMNS + ROOM_COLUMNS))
            and isinstance(row["noisy"], str) and isinstance(row["clean"], str)
            for row in rows
        ):  # fmt: skip
            return None
        if {str(row[key]) for row in rows for key in ("noisy", "clean")} != entry.files.keys():
            return None
        if not all(written.is_still(out / name) for name, written in entry.files.items()):
            return None
        return Report(rows, entry.skipped, Counter({entry.converted_from: 1}), entry.files)

    def add(self, plans: Sequence[corpus.MixturePlan], report: Report) -> None:
        """Notes an utterance after `get`; one without any mixture is tried again."""
        if not report.rows:
            return
        name = plans[0].utterance.id
        entry = {
            "utterance": name,
            "sources": self._sources[name],
            "converted_from": next(iter(report.conversions)),
            "skipped": report.skipped,
            "rows": [list(row.values()) for row in report.rows],
            "files": {path: asdict(written) for path, written in report.files.items()},
        }
        append_text(self.path, json.dumps(entry) + "\n")

    def _digest(self, plans: Sequence[corpus.MixturePlan]) -> str:
        """Returns digits for the sizes and times of change of all that an utterance is made of."""
        for plan in plans:
            if plan.noise.path not in self._noises:
                self._noises[plan.noise.path] = _stamp(plan.noise.path)
        stamps = [_stamp(plans[0].utterance.path)]
        stamps += [self._noises[plan.noise.path] for plan in plans]
        return hashlib.sha256(" ".join(stamps).encode()).hexdigest()


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:  # the reader says more
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def write_mixtures(
    plans: Sequence[corpus.MixturePlan],
    out: Path,
    *,
    num_jobs: int = 1,
    subtype: str = "FLOAT",
    cluster: Cluster | None = None,
    journal: _Journal | None = None,
) -> Report:
    """Writes ``out/noisy/...`` and ``out/clean/...`` of planned mixtures, in parallel.

    Args:
        plans: `speech.data.corpus.MixturePlan` objects; plans of the same utterance share a gain
            and a room.
        out: Folder to write.
        num_jobs: Processes; -1 for one per core.
        subtype: 'FLOAT' or 'PCM_16'.
        cluster: Where to work instead; the paths must be absolute, and ``out`` there.
        journal: Says what is whole already, and is told what becomes so.

    Returns:
        What became of the utterances, in the order of the plans.

    Raises:
        ValueError: Nothing could be mixed.
    """
    by_utterance: dict[str, list[corpus.MixturePlan]] = {}
    for plan in plans:
        by_utterance.setdefault(plan.utterance.id, []).append(plan)
    groups = list(by_utterance.values())
    reports = journal.get_all(groups, out) if journal else [None] * len(groups)
    waiting = [place for place, report in enumerate(reports) if report is None]
    calls = ((groups[place], out, subtype) for place in waiting)
    if cluster:
        results = cluster.map(_mix_on_cluster, calls, len(waiting))
    else:
        tasks = (joblib.delayed(_mix_utterance)(*call) for call in calls)
        results = enumerate(cli.in_processes(tasks, num_jobs))
    for number, result in cli.progress(results, total=len(waiting), label="mixing"):
        own = groups[waiting[number]]
        if isinstance(result, Failed):
            result = _given_up(own, out, result.reason)
        if journal:
            journal.add(own, result)
        reports[waiting[number]] = result
    report = Report()
    for result in filter(None, reports):
        report.rows += result.rows
        report.skipped += result.skipped
        report.conversions += result.conversions
    if not report.rows:
        raise ValueError(
            f"{out}: nothing was written, all {len(groups)} utterances were skipped; "
            f"the first: {report.skipped[0][1]}"
        )
    return report


def _mix_on_cluster(plans: Sequence[corpus.MixturePlan], out: Path, subtype: str) -> Report:
    if not out.is_dir():
        raise ValueError(
            f"{out}: is not there for the Dask worker on {platform.node()}; workers must see the "
            "same files under the same paths"
        )
    return _mix_utterance(plans, out, subtype)


def _given_up(plans: Sequence[corpus.MixturePlan], out: Path, reason: str) -> Report:
    """Removes what is there of an utterance that could not be written, and says why."""
    source = str(plans[0].utterance.path)
    for plan in plans:
        pair = plan.pair(out)
        pair.noisy_path.unlink(missing_ok=True)
        pair.clean_path.unlink(missing_ok=True)
    return Report(skipped=[(source, f"{source}: {reason}")])


def _mix_utterance(plans: Sequence[corpus.MixturePlan], out: Path, subtype: str) -> Report:
    """Writes one utterance: its clean file and every mixture planned for it."""
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
    clean_name = clean_path.as_posix()
    for plan in mixable:
        segment, offset = corpus.noise_segment(plan, num_samples)
        mixture = mixing.mix_at_snr(speech, segment, plan.snr_db, peak=math.inf)
        noisy_path = Path("noisy", plan.relative_path)
        audio.write_audio(out / noisy_path, mixture.noisy, subtype=subtype)
        report.files[noisy_path.as_posix()] = Written.of(out / noisy_path)
        values = (
            noisy_path.as_posix(),
            clean_name,
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
        report.files[clean_name] = Written.of(out / clean_path)
    return report


def _placed(speech: Any, room: int | None) -> tuple[Any, Any, dict[str, Any]]:
    """Returns speech [num_samples] as it sounds in a room, the target, and `ROOM_COLUMNS`."""
    if room is None:
        return speech, speech, {}
    response = augment.room_response(room)
    columns = room, round(augment.reverberation_time_s(response), 4)
    return *augment.reverberate(speech, response), dict(zip(ROOM_COLUMNS, columns, strict=True))


def _sound(noises: Sequence[corpus.Noise], report: Report) -> list[corpus.Noise]:
    """Returns the noises that can be read and heard; notes the others."""
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


def _check_target(out: Path, plans: Sequence[corpus.MixturePlan], force: bool) -> None:
    """Refuses to overwrite without ``force``, and ever to leave files of another run among ours."""
    if all(path.name.startswith(".") for path in out.iterdir()):  # the lock is ours
        return
    if not force:
        raise ValueError(f"{out}: is not empty; choose another --out, or overwrite with --force")
    written = {f"noisy/{plan.relative_path.as_posix()}" for plan in plans}
    written |= {f"clean/{plan.utterance.id}.wav" for plan in plans}
    strange = []
    for folder in ("noisy", "clean"):
        for path in out.glob(f"{folder}/**/*.wav"):
            name = path.relative_to(out).as_posix()
            # Hidden names are the temporary files of a run that was killed.
            if name not in written and not path.name.startswith("."):
                strange.append(name)
    if strange:
        raise ValueError(
            f"{out}: holds {len(strange)} files that this command would not replace, "
            f"such as {min(strange)}; choose another --out"
        )
