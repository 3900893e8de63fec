"""Chooses the mixtures that an expert is trained on: by speaker, noise, SNR or any other column.

Every mixture is a row of words, with the columns of `COLUMNS`. A condition names a column and some
patterns, and one of the patterns must match: ``{"noise": ["birds*"], "gender": ["F"]}``.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from speech.data.corpus import (
    MixturePlan,
    Noise,
    Pair,
    Utterance,
    parse_snr_folder,
    plan_mixtures,
    snr_folder,
    split_utterances,
)

COLUMNS = ("utterance", "speaker", "gender", "dialect", "noise", "snr_db")

#: Speakers held out to validate on: "additional four speakers" (section 4.1).
NUM_VALIDATION_SPEAKERS = 4

#: With fewer speakers, all of them train, and a tenth of the utterances validates.
MIN_SPEAKERS = 12
VALIDATION_FRACTION = 0.1

Conditions = Mapping[str, Sequence[str]]
Item = TypeVar("Item", Utterance, Noise, MixturePlan, Pair)


def row_of(item: Utterance | Noise | MixturePlan | Pair) -> dict[str, str]:
    """Returns, as words, the columns of `COLUMNS` that are known for an item."""
    match item:
        case Utterance():
            return {
                "utterance": item.id,
                "speaker": item.speaker,
                "gender": item.gender,
                "dialect": item.dialect,
            }
        case Noise():
            return {"noise": item.name}
        case MixturePlan():
            return {**row_of(item.utterance), **row_of(item.noise), "snr_db": _db(item.snr_db)}
        case Pair():
            first = item.speaker[:1].upper()
            return {
                "utterance": item.name,
                "speaker": item.speaker,
                "gender": first if first in ("F", "M") else "",
                "dialect": "",
                "noise": item.noise,
                "snr_db": _db(item.snr_db),
            }
    raise TypeError(f"no manifest row of a {type(item).__name__}")


def parse_conditions(texts: Iterable[str]) -> dict[str, list[str]]:
    """Parses ``COLUMN=PATTERN[,PATTERN...]``.

    Raises:
        ValueError: There is no such column, or no pattern.
    """
    conditions: dict[str, list[str]] = {}
    for text in texts:
        column, _, patterns = text.partition("=")
        if column not in COLUMNS or not patterns:
            raise ValueError(
                f"condition is {text!r}; give COLUMN=PATTERN, where COLUMN is one of "
                f"{', '.join(COLUMNS)}"
            )
        conditions.setdefault(column, []).extend(patterns.split(","))
    return conditions


def matching(items: Sequence[Item], conditions: Conditions) -> list[Item]:
    """Returns the items whose row meets all conditions on columns that it has.

    Patterns are read as by `fnmatch`, whatever the case; an SNR is a number: '0', '-5', '2.5'.

    Raises:
        ValueError: There are items, but none of them meets the conditions.
    """
    chosen = [item for item in items if _meets(row_of(item), conditions)]
    if items and not chosen:
        asked = "; ".join(f"{key} {' or '.join(words)}" for key, words in conditions.items())
        columns = [column for column in row_of(items[0]) if column in conditions]
        there = {
            column: sorted({row_of(item)[column] for item in items})[:12] for column in columns
        }
        found = "; ".join(f"{key} {', '.join(map(repr, words))}" for key, words in there.items())
        raise ValueError(f"no data meet: {asked}; there are: {found}")
    return chosen


def _meets(row: Mapping[str, str], conditions: Conditions) -> bool:
    for column, patterns in conditions.items():
        if column not in row:
            continue
        if column == "snr_db":
            wanted = {_db(float(pattern)) for pattern in patterns}
            if row[column] not in wanted:
                return False
        elif not any(
            fnmatch.fnmatchcase(row[column].lower(), pattern.lower()) for pattern in patterns
        ):
            return False
    return True


def choose_speakers(
    utterances: Sequence[Utterance],
    num_speakers: int | None = None,
    per_speaker: int | None = None,
    seed: int = 0,
) -> tuple[list[Utterance], list[Utterance]]:
    """Draws speakers, both genders in turn, and some utterances of each.

    Four speakers validate, and are the same whatever ``num_speakers`` is. Where there are fewer
    than `MIN_SPEAKERS`, all of them train, and a tenth of the utterances validates.

    Args:
        utterances: The corpus.
        num_speakers: Speakers to train on at most; None for all that there are.
        per_speaker: Utterances of each speaker at most; None for all.
        seed: Another seed draws others.

    Returns:
        Training and validation utterances, each in the order given.

    Raises:
        ValueError: Fewer than two utterances.
    """
    rng = np.random.default_rng([seed, 2])
    by_gender: dict[str, list[str]] = defaultdict(list)
    for gender, speaker in sorted({(u.gender, u.speaker) for u in utterances}):
        by_gender[gender].append(speaker)
    shuffled = [list(rng.permutation(speakers)) for _, speakers in sorted(by_gender.items())]
    turns = itertools.zip_longest(*shuffled)
    speakers = [str(name) for turn in turns for name in turn if name is not None]
    some = set()
    for speaker in speakers:
        own = [item.id for item in utterances if item.speaker == speaker]
        some.update(rng.permutation(own)[:per_speaker].tolist())
    usable = [item for item in utterances if item.id in some]
    if len(speakers) < MIN_SPEAKERS:
        chosen = set(speakers[:num_speakers])
        usable = [item for item in usable if item.speaker in chosen]
        return split_utterances(usable, VALIDATION_FRACTION, seed)
    held_out, rest = speakers[:NUM_VALIDATION_SPEAKERS], speakers[NUM_VALIDATION_SPEAKERS:]
    training = set(rest[:num_speakers])
    return (
        [item for item in usable if item.speaker in training],
        [item for item in usable if item.speaker in held_out],
    )


def plan_expert(
    utterances: Sequence[Utterance],
    noises: Sequence[Noise],
    snrs_db: Sequence[float],
    conditions: Conditions,
    *,
    num_draws: int = 1,
    seed: int = 0,
) -> list[MixturePlan]:
    """Plans the mixtures that meet some conditions.

    Args:
        utterances: To mix, each with every noise at every SNR.
        noises: See there.
        snrs_db: See there.
        conditions: See the module.
        num_draws: Mixtures of each utterance, noise and SNR, with other segments of the noise.
        seed: Of the segments.
    """
    plans = [
        plan
        for draw in range(num_draws)
        for plan in plan_mixtures(utterances, matching(noises, conditions), snrs_db, seed + draw)
    ]
    return matching(plans, conditions)


def description(items: Iterable[Utterance | MixturePlan | Pair]) -> list[str]:
    """Returns one line per item; equal lines mean equal data."""
    lines = []
    for item in items:
        words = [f"{key} {value}" for key, value in row_of(item).items()]
        match item:
            case MixturePlan(utterance=speech, noise=noise, seed=seed):
                paths = [speech.path, noise.path]
                words += [f"from {noise.start} to {noise.stop} seed {seed}"]
            case Pair():
                paths = [item.noisy_path, item.clean_path]
            case _:
                paths = [item.path]
        lines.append(" ".join([*words, *(str(path.stat().st_size) for path in paths)]))
    return lines


def _db(snr_db: float) -> str:
    """Returns '0' for 0.0, '-5' for -5.0, 'unknown' for NaN: the folder name without its unit."""
    folder = snr_folder(snr_db)
    return folder if parse_snr_folder(folder) != snr_db else folder.removesuffix("db")
