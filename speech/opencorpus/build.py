"""Builds the tree: packages -> voices and noises -> files, sums, attribution.

The work falls into parts: one for every speaker and every kind of noise. A part that is done leaves
a record in ``.state`` with the sums of its files and a fingerprint of all that it was made from;
a part whose record fits is not made again. Hence an interrupted build goes on, a finished one is
verified, and a damaged file is made anew.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from speech.base import cli, files, schema
from speech.base.lazy import joblib, soundfile
from speech.opencorpus import g722, noises, packages, recipe, report, voices
from speech.sound.conditioning import (
    SAMPLE_RATE_HZ,
    condition,
    lay_out_keys,
    manifest_of,
    read_manifest,
    to_int16,
    write_flac,
)

MANIFEST = "MANIFEST.sha256"
STATE = ".state"
LICENCE_TEXTS = Path(__file__).parents[1] / "minicorpus" / "LICENSES"
HIGHPASS_HZ = {"speech": 60.0, "noise": 20.0}

#: Part of every fingerprint: a change of the processing that changes samples raises it.
PROCESSING = 1

ASIDE_SHARE, ASIDE_S = 1 / 12, 45.0  # utterances kept out of the tree, for babble
NUM_TALKERS = 6
BABBLE_PART_S = 20.0

G722_LONGEST_S = 12.0  # decoding takes as long as the longest file; the longer ones are menus


@dataclass(frozen=True)
class Part:
    """A speaker or a kind of noise.

    Attributes:
        name: Speaker id or kind.
        record: What the recipe says of it.
        fingerprint: SHA-256 of all that its files follow from.
        folders: Where the packages are unpacked, by name.
    """

    name: str
    record: dict
    fingerprint: str
    folders: dict[str, Path]


def build(book: dict, package_folder: Path | None, out: Path, num_jobs: int) -> dict[str, dict]:
    """Builds the corpus of a recipe, or what is missing of it.

    Args:
        book: What `recipe.read_recipe` returns.
        package_folder: Folder of ``.deb`` files; None to download them into ``out/packages``.
        out: Root of the tree.
        num_jobs: Processes.

    Returns:
        The records of all parts by name, for `report`.

    Raises:
        ValueError: A package is missing or is not the one of the recipe, ``out`` holds sounds of
            another corpus, or a recording does not fit the recipe.
    """
    require_no_strangers(book, out)
    records = read_records(book, out)
    if not missing_parts(book, records) and _is_whole(out):
        return records
    archives = packages.find_packages(book, package_folder, out / "packages")
    unpacked = packages.unpack_all(book, archives, out / STATE / "unpacked", num_jobs)
    _remove_leftovers(out)
    records = _make_parts(book, unpacked, out, num_jobs)
    _write_papers(book, unpacked, records, out)
    shutil.rmtree(out / STATE / "unpacked")
    return records


def require_no_strangers(book: dict, out: Path) -> None:
    """Raises ValueError if there are sounds below ``out`` that this build would not replace."""
    folders = {recipe.speaker_folder(name, voice) for name, voice in book["speakers"].items()}
    kinds = {
        f"noise/{split}/{kind}.flac"
        for kind, noise in book["noises"].items()
        for split in recipe.SPLITS
        if split in noise
    }
    strangers = []
    for top in ("speech", "noise"):
        for path in sorted((out / top).rglob("*")):
            name = path.relative_to(out)
            ours = name.as_posix() in kinds or name.parent.as_posix() in folders
            if path.is_file() and not ours and not name.name.startswith("."):
                strangers.append(name)
    if strangers:
        raise ValueError(
            f"{out}: holds {len(strangers)} files of another corpus, such as {strangers[0]}; "
            "delete them or build elsewhere"
        )


def _remove_leftovers(out: Path) -> None:
    """Removes the temporary files of a build that was killed."""
    for top in ("speech", "noise"):
        for path in (out / top).rglob(".*.flac"):
            path.unlink()


def missing_parts(book: dict, records: dict[str, dict]) -> list[str]:
    """Returns the speakers and noises of a recipe that have no record."""
    return sorted((book["speakers"].keys() | book["noises"].keys()) - records.keys())


def read_records(book: dict, out: Path) -> dict[str, dict]:
    """Returns the records of the parts that are done: fingerprint and sums of files fit."""
    records = {}
    for name in book["speakers"]:
        record = _read_record(out, name, _speaker_fingerprint(book, name))
        if record:
            records[name] = record
    for kind in book["noises"]:
        record = _read_record(out, kind, _noise_fingerprint(book, kind, records))
        if record:
            records[kind] = record
    return records


@dataclass
class _File:
    sha256: str
    seconds: int | float


@dataclass
class _Record:
    """The part of a record that every part has; `report` prints the rest."""

    fingerprint: str
    files: dict[str, _File]
    num_sources: int = 0
    num_clips: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    f0_hz: int | float = 0.0
    level_range_db: int | float = 0.0


def _read_record(out: Path, name: str, fingerprint: str) -> dict | None:
    try:
        path = out / STATE / f"{name}.json"
        about = schema.read(path, _Record)
        record = schema.read(path, dict[str, Any])
    except (OSError, ValueError):
        return None
    if about.fingerprint != fingerprint:
        return None
    for path_of, file in about.files.items():
        if not (out / path_of).is_file() or files.sha256_of(out / path_of) != file.sha256:
            return None
    return record


def _speaker_fingerprint(book: dict, speaker: str) -> str:
    voice = book["speakers"][speaker]
    return recipe.fingerprint(
        [PROCESSING, speaker, voice, book["packages"][voice["package"]]["sha256"]]
    )


def _noise_fingerprint(book: dict, kind: str, records: dict[str, dict]) -> str:
    """Fingerprint of a noise; one made of voices also follows from what these set aside."""
    noise = book["noises"][kind]
    used = sorted({p["package"] for s in recipe.SPLITS for p in noise.get(s, {}).get("pieces", ())})
    sums = [book["packages"][package]["sha256"] for package in used]
    asides = []
    if _is_of_voices(noise):
        for speaker in sorted(book["speakers"]):
            about = records.get(speaker, {}).get("files", {}).get(_aside_path(speaker), {})
            asides.append([speaker, about.get("sha256")])
    return recipe.fingerprint([PROCESSING, kind, noise, sums, asides])


def _is_of_voices(noise: dict) -> bool:
    return any(noise.get(split, {}).get("make") in recipe.OF_VOICES for split in recipe.SPLITS)


def _aside_path(speaker: str) -> str:
    return f"{STATE}/aside/{speaker}.flac"


def _make_parts(book: dict, unpacked: dict[str, Path], out: Path, num_jobs: int) -> dict[str, dict]:
    """Makes all parts that are not done; first the voices, as babble is made of them."""
    records = read_records(book, out)
    speakers = [
        Part(name, voice, _speaker_fingerprint(book, name), unpacked)
        for name, voice in sorted(book["speakers"].items())
        if name not in records
    ]
    _in_parallel(_make_speaker, speakers, out, num_jobs, "voices")
    records = read_records(book, out)
    kinds = [
        Part(
            kind,
            {**noise, "voices": _asides_of(book, out)} if _is_of_voices(noise) else noise,
            _noise_fingerprint(book, kind, records),
            unpacked,
        )
        for kind, noise in sorted(book["noises"].items())
        if kind not in records
    ]
    return records | _in_parallel(_make_noise, kinds, out, num_jobs, "noises")


def _in_parallel(
    make: Callable[[Part, Path], dict], parts: list[Part], out: Path, num_jobs: int, label: str
) -> dict[str, dict]:
    with warnings.catch_warnings():
        # joblib replaces a process that has grown, as one does that held half an hour of speech
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        tasks = (joblib.delayed(_make_part)(make, part, out) for part in parts)
        done = cli.in_processes(tasks, num_jobs)
        return dict(cli.progress(done, total=len(parts), label=label))


def _make_part(make: Callable[[Part, Path], dict], part: Part, out: Path) -> tuple[str, dict]:
    """Makes the files of a part, then its record."""
    record = {"fingerprint": part.fingerprint, **make(part, out)}
    for path, about in record["files"].items():
        about["sha256"] = files.sha256_of(out / path)
    files.write_json(out / STATE / f"{part.name}.json", record)
    return part.name, record


def _make_speaker(part: Part, out: Path) -> dict:
    """Writes the utterances of a speaker, and those set aside as one file.

    Raises:
        ValueError: No clip is fit.
    """
    base = part.folders[part.record["package"]]
    names = sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())
    paths = [base / name for name in names if recipe.is_of_voice(part.record, name)]
    clips, refused = voices.choose(_measured(_without_copies(paths)), part.record)
    signals = [signal for clip in clips for signal in voices.split_long(clip.signal)]
    utterances, aside = voices.set_aside(list(voices.join_clips(signals)), ASIDE_SHARE, ASIDE_S)
    if not utterances:
        raise ValueError(f"{part.name}: none of {len(paths)} recordings is fit ({dict(refused)})")

    folder = recipe.speaker_folder(part.name, part.record)
    if (out / folder).is_dir():
        shutil.rmtree(out / folder)
    made: dict[str, dict] = {}
    for number, utterance in enumerate(utterances, start=1):
        made |= _write(out, f"{folder}/U{number:04d}.flac", to_int16(utterance))
    if aside:
        made |= _write(out, _aside_path(part.name), to_int16(np.concatenate(aside)))
    return {
        "files": made,
        "num_sources": len(paths),
        "num_clips": len(clips),
        "refused": dict(sorted(refused.items())),
        "f0_hz": round(float(np.median([clip.f0_hz for clip in clips])), 1),
        "level_range_db": round(float(np.median([clip.level_range_db for clip in clips])), 1),
    }


def _write(out: Path, name: str, samples: np.ndarray) -> dict[str, dict]:
    write_flac(out / name, samples)
    return {name: {"seconds": round(len(samples) / SAMPLE_RATE_HZ, 3)}}


def _without_copies(paths: list[Path]) -> list[Path]:
    """Leaves out files whose bytes occurred before."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(files.sha256_of(path), path)
    return sorted(first.values())


def _measured(paths: list[Path]) -> list[voices.Clip | None]:
    clips: list[voices.Clip | None] = []
    for samples, rate_hz in _decoded(paths):
        if len(samples) < voices.MIN_CLIP_S * rate_hz:
            clips.append(None)
            continue
        signal = condition(samples, rate_hz, HIGHPASS_HZ["speech"])
        clips.append(voices.measure(signal, voices.clipped_share(samples)))
    return clips


def _decoded(paths: list[Path]) -> list[tuple[np.ndarray, int]]:
    """Reads recordings: float64 [num_samples], channels averaged, and their rate in Hz."""
    coded = [path for path in paths if path.suffix == ".g722"]
    streams = {path: path.read_bytes() for path in coded}
    longest = round(G722_LONGEST_S * g722.SAMPLE_RATE_HZ / 2)
    streams = {path: stream for path, stream in streams.items() if len(stream) <= longest}
    decoded = dict(zip(streams, g722.decode(list(streams.values())), strict=True))
    return [
        (decoded[path] / 32768, g722.SAMPLE_RATE_HZ) if path in decoded else _read(path)
        for path in paths
        if path in decoded or path.suffix != ".g722"
    ]


def _read(path: Path) -> tuple[np.ndarray, int]:
    try:
        content = BytesIO(path.read_bytes())
        samples, rate_hz = soundfile.read(content, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: {error}") from error
    return samples.mean(axis=1), rate_hz


def _asides_of(book: dict, out: Path) -> dict[str, list[str]]:
    """Returns the files of utterances set aside, by split."""
    return {
        split: [
            str(path)
            for speaker, voice in sorted(book["speakers"].items())
            if voice["split"] == split and (path := out / _aside_path(speaker)).is_file()
        ]
        for split in recipe.SPLITS
    }


def _make_noise(part: Part, out: Path) -> dict:
    """Writes the files of a kind of noise."""
    made: dict[str, dict] = {}
    for split in recipe.SPLITS:
        if split in part.record:
            signal = _noise_signal(part, split)
            made |= _write(out, f"noise/{split}/{part.name}.flac", noises.finish(signal))
    return {"files": made}


def _noise_signal(part: Part, split: str) -> np.ndarray:
    about = part.record[split]
    seed = noises.seed_of(f"{split}/{part.name}")
    if "pieces" in about:
        pieces = [_piece(part, piece) for piece in about["pieces"]]
        if "typing_s" in about:
            return lay_out_keys(pieces, about["typing_s"], seed)
        return noises.join_pieces(pieces)
    if about["make"] in noises.COLOURS:
        return noises.coloured(about["make"], about["duration_s"], seed)
    if about["make"] == "hum":
        return noises.hum(about["duration_s"], seed)
    talkers = [_read(Path(path))[0] for path in part.record["voices"][split]]
    if about["make"] == "speech_shaped":
        return voices.speech_shaped(talkers, noises.white_noise(about["duration_s"], seed))
    return _babble(talkers, about, seed)


def _piece(part: Part, piece: dict) -> np.ndarray:
    samples, rate_hz = _read(part.folders[piece["package"]] / piece["file"])
    return noises.cut(condition(samples, rate_hz, HIGHPASS_HZ["noise"]), piece).copy()


def _babble(talkers: list[np.ndarray], about: dict, seed: int) -> np.ndarray:
    """Babble of a few voices, other ones every ``BABBLE_PART_S``.

    Raises:
        ValueError: There are fewer voices than are to talk at once.
    """
    num_talkers = about.get("talkers", NUM_TALKERS)
    if len(talkers) < num_talkers:
        raise ValueError(f"babble needs {num_talkers} voices, there are {len(talkers)}")
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(max(1, round(about["duration_s"] / BABBLE_PART_S))):
        chosen = np.argsort(rng.random(len(talkers)))[:num_talkers]
        parts.append(voices.babble([talkers[index] for index in chosen], BABBLE_PART_S, rng))
    return noises.join_pieces(parts)


def _write_papers(
    book: dict, unpacked: dict[str, Path], records: dict[str, dict], out: Path
) -> None:
    """Writes licences, attribution and, last of all, the sums."""
    shutil.rmtree(out / "LICENSES", ignore_errors=True)
    for package, folder in sorted(unpacked.items()):
        text = (folder / recipe.copyright_path(package)).read_bytes()
        files.write_text(out / "LICENSES" / f"{package}.txt", text.decode("utf-8", "replace"))
    texts = sorted(LICENCE_TEXTS.glob("*.txt"))
    for path in texts:  # the copyright files refer to texts that only a Debian system has
        files.write_text(out / "LICENSES" / path.name, path.read_text(encoding="utf-8"))
    files.write_text(out / "ATTRIBUTION.md", report.attribution(book, records))
    names = [path for record in records.values() for path in record["files"]]
    names = [name for name in names if not name.startswith(STATE)]
    names += [f"LICENSES/{name}.txt" for name in [*unpacked, *(path.stem for path in texts)]]
    names.append("ATTRIBUTION.md")
    files.write_text(out / MANIFEST, manifest_of(out, sorted(names)))


def _is_whole(out: Path) -> bool:
    """Tells whether the files that ``MANIFEST`` names are there with their sums."""
    try:
        named = read_manifest(out / MANIFEST)
    except (OSError, ValueError):
        return False
    return all(
        (out / name).is_file() and files.sha256_of(out / name) == sum_
        for name, sum_ in named.items()
    )
