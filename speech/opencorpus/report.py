"""What is in a built corpus: tables of voices and noises, and the attribution file."""

from __future__ import annotations

from collections import Counter

from speech.opencorpus import recipe


def statistics(book: dict, records: dict[str, dict]) -> str:
    """Returns the tables of voices and noises as Markdown.

    Args:
        book: The recipe.
        records: Records of all parts by name, as `build.build` returns them.
    """
    tables = (_totals(book, records), _voices(book, records), _noises(book, records))
    return "\n\n".join("\n".join(rows) for rows in tables) + "\n"


def _utterances(records: dict[str, dict], speaker: str) -> list[float]:
    """Returns the seconds of every utterance of a speaker."""
    made = records[speaker]["files"].items()
    return [about["seconds"] for path, about in made if path.startswith("speech/")]


def _totals(book: dict, records: dict[str, dict]) -> list[str]:
    rows = [
        "| split | speakers | female | male | utterances | hours | noise kinds | unseen | "
        "noise seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for split in recipe.SPLITS:
        speakers = [name for name, voice in book["speakers"].items() if voice["split"] == split]
        genders = Counter(name[0] for name in speakers)
        seconds = [s for name in speakers for s in _utterances(records, name)]
        kinds = [kind for kind, noise in book["noises"].items() if split in noise]
        unseen = sum("TRAIN" not in book["noises"][kind] for kind in kinds)
        noise_s = sum(_noise_seconds(records, kind, split) for kind in kinds)
        rows.append(
            f"| {split} | {len(speakers)} | {genders['F']} | {genders['M']} | {len(seconds)} | "
            f"{sum(seconds) / 3600:.2f} | {len(kinds)} | {unseen} | {noise_s:.0f} |"
        )
    return rows


def _voices(book: dict, records: dict[str, dict]) -> list[str]:
    rows = [
        "| speaker | split | language | gender | voice | package | clips used | left out | "
        "utterances | minutes | F0 in Hz | level range in dB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = sorted(book["speakers"].items(), key=lambda item: (item[1]["split"] == "TEST", item[0]))
    for speaker, voice in order:
        record, seconds = records[speaker], _utterances(records, speaker)
        left_out = ", ".join(f"{reason} {count}" for reason, count in record["refused"].items())
        rows.append(
            f"| {speaker} | {voice['split']} | {voice['language']} | {voice['gender']} | "
            f"{voice['voice']} | {voice['package']} | "
            f"{record['num_clips']} of {record['num_sources']} | {left_out} | {len(seconds)} | "
            f"{sum(seconds) / 60:.1f} | {record['f0_hz']:.0f} | {record['level_range_db']:.0f} |"
        )
    return rows


def _noise_seconds(records: dict[str, dict], kind: str, split: str) -> float:
    return records[kind]["files"][f"noise/{split}/{kind}.flac"]["seconds"]


def _noises(book: dict, records: dict[str, dict]) -> list[str]:
    rows = ["| noise | what | TRAIN s | TEST s | |", "|---|---|---|---|---|"]
    for kind, noise in sorted(book["noises"].items()):
        seconds = [
            f"{_noise_seconds(records, kind, split):.1f}" if split in noise else "-"
            for split in recipe.SPLITS
        ]
        remark = "unseen" if "TRAIN" not in noise else "" if "TEST" in noise else "TRAIN only"
        rows.append(f"| {kind} | {noise['description']} | {' | '.join(seconds)} | {remark} |")
    return rows


def attribution(book: dict, records: dict[str, dict]) -> str:
    """Returns the text of ``ATTRIBUTION.md``: works, authors, licences, changes."""
    packages = sorted(recipe.used_packages(book))
    lines = [
        "# Attribution",
        "",
        "The sounds in the folders speech and noise come from the Debian packages below. The",
        "folder is an aggregate: each file stays under the licence of the package that it comes",
        "from. `LICENSES/` holds the copyright file of every package and the common licences.",
        "",
        "Changed: channels averaged, resampled to 16 kHz, high-passed (speech 60 Hz, noise 20 Hz),",
        "cut, joined, faded, scaled (speech to peak 0.5, noise to RMS 0.05 with a peak of at most",
        "0.9), rounded to 16 bits, stored as FLAC. Typing is laid out at random from single keys,",
        "babble is added up from six voices of its split, noises called synthetic are computed.",
        "",
        "## Packages",
        "",
        "| package | version | work | copyright | licence |",
        "|---|---|---|---|---|",
    ]
    for name in packages:
        about = book["packages"][name]
        lines.append(
            f"| {name} | {about['version']} | {about['title']} | {about['copyright']} | "
            f"{about['licence']} |"
        )
    lines += ["", "## Noise", "", "| file | package | source: seconds used |", "|---|---|---|"]
    for kind, noise in sorted(book["noises"].items()):
        for split in recipe.SPLITS:
            if split in noise:
                name = f"`noise/{split}/{kind}.flac`"
                lines += [f"| {name} | {row} |" for row in _sources(noise[split], split)]
    return "\n".join([*lines, "", "## Statistics", "", statistics(book, records)])


def _sources(part: dict, split: str) -> list[str]:
    """Returns 'package | sources' of one file of noise, a line for each package."""
    if "pieces" not in part:
        voices = f"voices of {split}" if part["make"] in recipe.OF_VOICES else "synthetic"
        return [f"- | {part['make']}, {voices}"]
    used: dict[str, list[str]] = {}
    for piece in part["pieces"]:
        used.setdefault(piece["package"], []).append(_seconds(piece))
    return [f"{package} | {', '.join(sources)}" for package, sources in used.items()]


def _seconds(piece: dict) -> str:
    name = piece["file"].rsplit("/", 1)[-1]
    if "start_s" not in piece and "end_s" not in piece:
        return name
    end = f"{piece['end_s']:g}" if "end_s" in piece else "end"
    return f"{name}: {piece.get('start_s', 0):g}-{end}"
