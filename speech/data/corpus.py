"""Corpora: which utterances, noises and noisy/clean pairs a folder holds, and how they are split.

All sources become the same lists: a TIMIT tree, LibriSpeech and VCTK, any other tree of audio
files, the layout of the original script (``<noise>/<speaker>/<dB>/<name>.wav`` beside one clean
folder; docs/papers.md), and the corpus bundled with this package. Lists are sorted, and noisy and
clean are matched by name, never by position. Nothing is chosen by a global random state: every
draw follows from a seed and from the names involved, so that adding a file leaves the others as
they were.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from speech.base.words import MOST, shown
from speech.data import pairing
from speech.data.pairing import audio_stem
from speech.data.pairing import parse_snr_folder as parse_snr_folder
from speech.sound.audio import find_audio, read_audio
from speech.sound.augment import draw_room
from speech.sound.mixing import Mixture, draw_offset, loop_or_crop, mix_at_snr

SPLITS = ("TRAIN", "TEST")

#: Share of each noise file, from its start, that is for training when the noise folder has no
#: TRAIN and TEST sub-folders. MNN, experiment 1, also tests on "other parts of the same noises".
NOISE_TRAIN_SHARE = 0.8

UNKNOWN = pairing.UNKNOWN

#: LibriSpeech's ``speaker-chapter-utterance``, its parts, and VCTK's ``speaker_utterance[_mic]``.
_LIBRISPEECH_NAME = re.compile(r"(\d+)-\d+-\d+")
_LIBRISPEECH_PART = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")
#: A file of DEMAND and other recordings by several microphones.
_CHANNEL = re.compile(r"(ch|channel|mic)[-_ ]?\d{1,2}", re.IGNORECASE)
_TIMIT_SPEAKER = re.compile(r"[FM][A-Z]{3}\d", re.IGNORECASE)
_VCTK_NAME = re.compile(r"((p\d+|s5)_\d+)(?:_mic(\d))?")

MINICORPUS = Path(__file__).resolve().parent.parent / "minicorpus"
_NUM_LISTED = 5  # skipped files named one by one

_logger = logging.getLogger("speech")


@dataclass(frozen=True)
class Utterance:
    """One clean recording.

    Attributes:
        id: Unique in its corpus; also the file name of everything made from it.
        path: The file.
        speaker: Speaker id, or the name of the parent folder.
        gender: 'F', 'M' or '' where unknown.
        dialect: TIMIT's dialect region, such as 'DR1', or ''.
        split: 'TRAIN', 'TEST' or ''.
    """

    id: str
    path: Path
    speaker: str
    gender: str = ""
    dialect: str = ""
    split: str = ""


@dataclass(frozen=True)
class Noise:
    """One noise recording; only its part from ``start`` to ``stop`` may be used.

    Attributes:
        name: File name without its ending.
        path: The file.
        start: Fraction of the file's duration, 0 <= start < stop.
        stop: Fraction of the file's duration, start < stop <= 1.
    """

    name: str
    path: Path
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class Pair:
    """A noisy file and the clean file it was made from.

    Attributes:
        noisy_path: The noisy file.
        clean_path: The clean file.
        noise: Kind of noise, or 'unknown'.
        speaker: Speaker id, or 'unknown'.
        snr_db: Signal-to-noise ratio in dB, NaN where unknown.
        name: File name without its ending.
    """

    noisy_path: Path
    clean_path: Path
    noise: str
    speaker: str
    snr_db: float
    name: str

    @property
    def relative_path(self) -> Path:
        """``<noise>/<speaker>/<dB>/<name>.wav``, where results for this pair are written."""
        return _relative_path(self.noise, self.speaker, self.snr_db, self.name)


@dataclass(frozen=True)
class Matches:
    """The pairs that a folder of noisy files and a folder of clean files form.

    Attributes:
        pairs: Noisy files with their clean files.
        unpaired: Noisy files without a clean partner, and why each has none.
    """

    pairs: list[Pair]
    unpaired: list[tuple[Path, str]]


@dataclass(frozen=True)
class MixturePlan:
    """One mixture to make: everything but the samples.

    Attributes:
        utterance: The speech.
        noise: The noise; which segment of it follows from ``seed`` and the names.
        snr_db: The SNR to make.
        seed: Seed of the run.
        room: Number of the simulated room (`speech.sound.augment.room_response`); None for no room.
    """

    utterance: Utterance
    noise: Noise
    snr_db: float
    seed: int
    room: int | None = None

    @property
    def relative_path(self) -> Path:
        """``<noise>/<speaker>/<dB>/<utterance id>.wav``."""
        utterance = self.utterance
        return _relative_path(self.noise.name, utterance.speaker, self.snr_db, utterance.id)

    def rng(self) -> np.random.Generator:
        """Returns the generator of this mixture alone, whatever else is planned."""
        words = (self.utterance.id, self.noise.name, snr_folder(self.snr_db))
        return np.random.default_rng([self.seed, _stable_hash(*words)])

    def pair(self, folder: Path) -> Pair:
        """Returns the files that ``speech.data.prepared`` makes of it in ``folder``."""
        utterance = self.utterance
        return Pair(
            folder / "noisy" / self.relative_path,
            folder / "clean" / f"{utterance.id}.wav",
            self.noise.name,
            utterance.speaker,
            self.snr_db,
            utterance.id,
        )


Item = TypeVar("Item", Utterance, Pair)


def snr_folder(snr_db: float) -> str:
    """Returns the folder name of an SNR: -5.0 gives '-5db', 2.5 '2.5db', NaN 'unknown'."""
    if math.isnan(snr_db):
        return UNKNOWN
    digits = f"{snr_db:.4f}".rstrip("0").rstrip(".")
    return "0db" if digits == "-0" else f"{digits}db"


def find_speech(
    root: str | os.PathLike, split: str | None = None, skip_sa: bool = False
) -> list[Utterance]:
    """Finds the clean utterances of a corpus.

    Below folders named TRAIN and TEST, files at ``<dialect>/<speaker>/<name>`` are read as TIMIT,
    as are those at ``<speaker>/<name>`` where the speaker has a name of TIMIT, such as FCJF0:
    id ``SPEAKER_NAME`` and gender from the first letter of the speaker id, all in upper case, so
    that both spellings of the corpus give the same ids and hence the same mixtures. ``root`` is
    the folder that holds TRAIN and TEST, or one above it when that one is named TIMIT or data.

    Elsewhere, file names of LibriSpeech (``1034-121119-0000``, in its own folders or in any others)
    and of VCTK (``p225_001`` or ``p225_001_mic1`` in a folder ``p225``) are ids, which say the
    speaker. Of VCTK's two microphones the second is left out where the first is there.
    LibriSpeech's folders dev-* and test-* are the split TEST. For all other files the id is the
    relative path joined with '_' and the speaker is the parent folder.

    Args:
        root: Folder of the corpus, upper or lower case, any format `read_audio` takes.
        split: 'TRAIN', 'TEST' or None for both.
        skip_sa: Leave out TIMIT's SA sentences, which every speaker reads: files named SA1 or
            FCJF0_SA1, in any folder.

    Returns:
        Utterances sorted by id.

    Raises:
        ValueError: The folder is missing, holds no audio, lacks the split, or two files share
            an id.
    """
    root = Path(root)
    folders = _split_folders(_corpus_base(root))
    if split is None and not folders:
        utterances = [_utterance(path, root, "") for path in _find_once(root)]
    elif not folders and (parts := _librispeech_parts(root)):
        utterances = [item for item in parts if item.split == _checked_split(split)]
        if not utterances:
            raise ValueError(f"{root}: holds no LibriSpeech folder for {split}; add one")
    else:
        utterances = [
            _utterance(path, folder, name)
            for name, folder in _choose_split(folders, split, root).items()
            for path in _find_once(folder)
        ]
    utterances = _one_microphone(utterances, root)
    if skip_sa:
        utterances = [item for item in utterances if not _is_sa(item.path)]
        if not utterances:
            raise ValueError(f"{root}: holds SA sentences only; do not skip them")
    utterances.sort(key=lambda utterance: utterance.id)
    _require_unique((item.id, item.path) for item in utterances)
    return utterances


def find_speech_trees(
    roots: Sequence[str | os.PathLike], split: str | None = None, skip_sa: bool = False
) -> list[Utterance]:
    """Finds the clean utterances of several corpora as if they were one.

    A tree without splits is all for training. Where a tree has an id or a speaker that an earlier
    one has, all of its ids and speakers begin with the name of its folder: speakers of two
    trees are never taken for one.

    Args:
        roots: Folders, at least one; each as in `find_speech`.
        split: 'TRAIN', 'TEST' or None for both; at least one tree must have it.
        skip_sa: See `find_speech`.

    Returns:
        Utterances sorted by id. Those of a single tree are the same as without others.

    Raises:
        ValueError: As `find_speech`; or a folder is given twice, or lies in another one.
    """
    folders = [Path(root) for root in roots]
    if not folders:
        raise ValueError("no folders of speech; give at least one")
    for folder, other in itertools.permutations(folders, 2):
        if folder.resolve().is_relative_to(other.resolve()):
            raise ValueError(f"{folder} is {other} or lies in it; give each folder of speech once")
    chosen = _checked_split(split)
    used = [folder for folder in folders if chosen != "TEST" or has_splits(folder)] or folders
    found: list[Utterance] = []
    ids: set[str] = set()
    speakers: set[str] = set()
    for folder in used:
        whole = chosen == "TRAIN" and not has_splits(folder)
        tree = find_speech(folder, None if whole else chosen, skip_sa)
        prefix, number = "", 1
        while any(prefix + t.id in ids or prefix + t.speaker in speakers for t in tree):
            prefix = f"{folder.resolve().name}{number if number > 1 else ''}_"
            number += 1
        for item in tree:
            found.append(replace(item, id=prefix + item.id, speaker=prefix + item.speaker))
        ids.update(item.id for item in found)
        speakers.update(item.speaker for item in found)
    return sorted(found, key=lambda utterance: utterance.id)


def has_splits(root: str | os.PathLike) -> bool:
    """Tells whether a split can be asked for: TRAIN or TEST folders, or LibriSpeech's parts."""
    root = Path(root)
    return bool(_split_folders(_corpus_base(root))) or bool(_part_folders(root))


def find_noise(root: str | os.PathLike, split: str | None = None) -> list[Noise]:
    """Finds the noises for training or testing, so that the two never share a sample.

    Where ``root`` has TRAIN and TEST sub-folders (any case), these are the split. Otherwise every
    file is split in time: its first 80 % are for training and its last 20 % for testing, which
    is announced.

    A noise is named like its file. Where files are named by channel (``DKITCHEN/ch01.wav`` of
    DEMAND), the folder is the noise, and its first channel is taken, which is announced. Other
    files that share a name have their folder's name before it.

    Args:
        root: Folder of noise recordings.
        split: 'TRAIN', 'TEST' or None for all of everything.

    Returns:
        Noises sorted by name.

    Raises:
        ValueError: The folder is missing, holds no audio, lacks the split, or two files share a
            name.
    """
    root = Path(root)
    folders = _split_folders(root)
    start, stop = 0.0, 1.0
    if folders:
        paths = [
            path
            for folder in _choose_split(folders, split, root).values()
            for path in _find_once(folder)
        ]
    else:
        paths = _find_once(root)
        if chosen := _checked_split(split):
            share = NOISE_TRAIN_SHARE
            start, stop = (0.0, share) if chosen == "TRAIN" else (share, 1.0)
            _logger.info(
                "%s: no TRAIN and TEST folders; %s uses %.0f to %.0f %% of each noise file",
                root, chosen, 100 * start, 100 * stop,
            )  # fmt: skip
    names = _noise_names(paths, root)
    noises = [Noise(name, path, start, stop) for path, name in names.items()]
    noises.sort(key=lambda noise: noise.name)
    _require_unique((noise.name, noise.path) for noise in noises)
    return noises


def _noise_names(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """Names noises by their files, or by their folders where files do not tell them apart."""
    bases = {root, *_split_folders(root).values()}
    names: dict[Path, str] = {}
    channels: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        if _CHANNEL.fullmatch(audio_stem(path)) and path.parent not in bases:
            channels[path.parent].append(path)
        else:
            names[path] = audio_stem(path)
    counts = Counter(names.values())
    for path, name in names.items():
        if counts[name] > 1 and path.parent not in bases:
            names[path] = f"{path.parent.name}_{name}"
    for folder, own in channels.items():
        first = min(own, key=lambda path: (int(re.sub(r"\D", "", audio_stem(path))), path.name))
        names[first] = folder.name
    num_left_out = sum(len(own) - 1 for own in channels.values())
    if num_left_out:
        _logger.info(
            "%s: %d more channels of the same noises left out; the first of each folder is used",
            root, num_left_out,
        )  # fmt: skip
    return names


def find_pairs(
    noisy_root: str | os.PathLike, clean_root: str | os.PathLike, pair_by: str | None = None
) -> list[Pair]:
    """Finds noisy files and their clean partners by the rule of `speech.data.pairing`.

    Noisy files without a partner are skipped; a warning counts them and lists the first.

    Args:
        noisy_root: Folder of the noisy files.
        clean_root: Folder of the clean files.
        pair_by: See `find_matches`.

    Returns:
        Pairs sorted by noise, SNR, speaker and name.

    Raises:
        ValueError: As `find_matches`.
    """
    found = find_matches(noisy_root, clean_root, pair_by)
    warn_of_unpaired(found.unpaired, Path(clean_root))
    return found.pairs


def warn_of_unpaired(unpaired: Sequence[tuple[Path, str]], clean_root: Path) -> None:
    """Counts noisy files without a partner in a warning, with the reasons and the first names."""
    if unpaired:
        reasons = Counter(reason for _, reason in unpaired)
        _logger.warning(
            "%d noisy files without one clean partner in %s were skipped (%s): %s",
            len(unpaired), clean_root,
            "; ".join(f"{count}: {reason}" for reason, count in reasons.items()),
            listed(str(path) for path, _ in unpaired),
        )  # fmt: skip


def find_matches(
    noisy_root: str | os.PathLike,
    clean_root: str | os.PathLike,
    pair_by: str | None = None,
    apart: Iterable[str | os.PathLike] = (),
) -> Matches:
    """Finds noisy files and their clean partners, and names those without one.

    The rule is that of `speech.data.pairing`. Converted copies (``x.WAV.wav`` and ``x_rif.wav``
    beside ``x.WAV``) are taken once. Where one of the two folders lies in the other, its files are
    left out of the other, which is announced, as are folders of the noisy tree that are named
    ``clean``.

    Args:
        noisy_root: Folder of the noisy files.
        clean_root: Folder of the clean files.
        pair_by: Regular expression; what it finds in the names of a noisy and of a clean file must
            be equal, instead of their names.
        apart: More folders whose files are neither noisy nor clean ones.

    Returns:
        Pairs sorted by noise, SNR, speaker and name, and the noisy files without a partner.

    Raises:
        ValueError: A folder is missing or empty, both are the same, no noisy file has a clean
            partner, or two noisy files differ in their ending only.
    """
    noisy_root, clean_root = Path(noisy_root), Path(clean_root)
    noisy, clean = find_audio(noisy_root), find_audio(clean_root)
    if noisy_root.resolve() == clean_root.resolve():
        raise ValueError(
            f"{noisy_root}: noisy and clean are the same folder, and no file is paired with itself;"
            " give the folder of the noisy files and that of the clean ones"
        )
    noisy = _outside(noisy, noisy_root, [clean_root, *map(Path, apart)])
    clean = _outside(clean, clean_root, [noisy_root, *map(Path, apart)])
    named_clean = [path for path in noisy if _is_named_clean(path.relative_to(noisy_root))]
    if named_clean and len(named_clean) < len(noisy):
        _logger.warning(
            "%s: %d files below folders named clean are no noisy ones and left out: %s",
            noisy_root, len(named_clean), listed(map(str, named_clean)),
        )  # fmt: skip
        noisy = sorted({*noisy} - {*named_clean})
    copied = pairing.copies(noisy)
    if copied:
        _logger.info("%s: %d converted copies left out", noisy_root, len(copied))
        noisy = [path for path in noisy if path not in copied]
    matches = pairing.match(
        [path.relative_to(noisy_root) for path in noisy],
        [path.relative_to(clean_root) for path in clean],
        pair_by,
        lambda one, other: os.path.samefile(noisy[one], clean[other]),
    )
    pairs, unpaired = [], []
    for path, match in zip(noisy, matches, strict=True):
        if match.clean is None:
            unpaired.append((path, match.reason))
            continue
        name = audio_stem(path)
        partner = clean[match.clean]
        pairs.append(Pair(path, partner, match.noise, match.speaker, match.snr_db, name))
    if not pairs:
        path, reason = unpaired[0]
        raise ValueError(
            f"{noisy_root}: none of {len(unpaired)} noisy files has a clean partner of the same "
            f"name in {clean_root}, e.g. {path.relative_to(noisy_root)}: {reason}; check the two "
            "folders, or pair by a part of the names (--pair-by)"
        )
    _require_unique((str(pair.relative_path), pair.noisy_path) for pair in pairs)
    return Matches(sorted(pairs, key=_pair_order), unpaired)


def _outside(paths: list[Path], root: Path, others: Sequence[Path]) -> list[Path]:
    """Leaves out the files of other folders that lie in a folder, and says so."""
    for other in others:
        real, inner = root.resolve(), other.resolve()
        if inner == real or not inner.is_relative_to(real):
            continue
        kept = [path for path in paths if not path.resolve().is_relative_to(inner)]
        if len(kept) < len(paths):
            _logger.warning(
                "%d files in %s, which lies in %s, are left out of the latter",
                len(paths) - len(kept), other, root,
            )  # fmt: skip
        paths = kept
    if not paths:
        raise ValueError(f"{root}: all of its files belong to a folder in it; name another folder")
    return paths


def _is_named_clean(path: Path) -> bool:
    return any(re.fullmatch(r"clean([-_ ].*)?", name.lower()) for name in path.parent.parts)


def bundled_speech(split: str | None = None) -> list[Utterance]:
    """Returns the utterances of the corpus that comes with this package: see `find_speech`."""
    return find_speech(MINICORPUS / "speech", split)


def bundled_noise(split: str | None = None) -> list[Noise]:
    """Returns the noises of the corpus that comes with this package: see `find_noise`."""
    return find_noise(MINICORPUS / "noise", split)


def recordings(
    speech: Path | None, noise: Path | None, split: str
) -> tuple[list[Utterance], list[Noise]]:
    """Returns the utterances and the noises of a split; without folders, those of this package.

    Args:
        speech: Of `find_speech`.
        noise: Of `find_noise`.
        split: 'TRAIN' or 'TEST'.

    Raises:
        ValueError: There are none.
    """
    if speech is None or noise is None:
        return bundled_speech(split), bundled_noise(split)
    return find_speech(speech, split), find_noise(noise, split)


def split_utterances(
    items: Sequence[Item], validation_fraction: float = 0.05, seed: int = 0
) -> tuple[list[Item], list[Item]]:
    """Splits into training and validation so that no utterance is in both.

    All pairs of one clean file name stay together. Which utterances validate follows from a hash
    of their names and the seed, not from the order of the list or the place of the files.

    Args:
        items: Utterances, or pairs.
        validation_fraction: Share of the utterances to validate on, between 0 and 1; at least
            one utterance validates and at least one trains.
        seed: Another seed gives another split.

    Returns:
        Training and validation items, each in the order given.

    Raises:
        ValueError: The fraction is out of range, or there are fewer than two utterances.
    """
    if not 0.0 < validation_fraction < 1.0:
        raise ValueError(f"validation_fraction is {validation_fraction}; give one between 0 and 1")
    keys = [_utterance_key(item) for item in items]
    names = sorted(set(keys), key=lambda name: (_stable_hash(str(seed), name), name))
    if len(names) < 2:
        raise ValueError(f"{len(names)} utterances cannot be split in two; give more clean files")
    num_validation = min(max(1, round(validation_fraction * len(names))), len(names) - 1)
    chosen = set(names[:num_validation])
    train = [item for item, key in zip(items, keys, strict=True) if key not in chosen]
    validation = [item for item, key in zip(items, keys, strict=True) if key in chosen]
    return train, validation


def split_pairs_original(
    pairs: Sequence[Pair], group_size: int = 600, num_train: int = 570
) -> tuple[list[Pair], list[Pair]]:
    """Splits the way the original script does, with its leak: for comparison only.

    See docs/papers.md, "ICSE: training and test".

    Sorted by noise, SNR, speaker and name, the pairs fall into groups of ``group_size``. Of group
    i the pairs [group_size * i, group_size * i + num_train) train. Validation takes
    [num_train * (i + 1), num_train * (i + 1) + group_size - num_train): the step is num_train where
    group_size was meant, so for 57 of the published 60 groups the validation pairs are training
    pairs of an earlier group. Use `split_utterances` for a split without leak.

    With fewer pairs the last group is incomplete: it trains on what there is of its first
    ``num_train``, and validation positions past the end go on at the start of the list.

    Returns:
        Training and validation pairs; the two overlap.

    Raises:
        ValueError: No pairs, or not 0 < num_train < group_size.
    """
    if not pairs:
        raise ValueError("no pairs to split; check the noisy and clean folders")
    if not 0 < num_train < group_size:
        raise ValueError(f"num_train is {num_train}; give one between 0 and {group_size}")
    ordered = sorted(pairs, key=_pair_order)
    train: list[Pair] = []
    validation: dict[int, None] = {}
    for group in range(-(-len(ordered) // group_size)):
        train += ordered[group_size * group :][:num_train]
        first = num_train * (group + 1)
        for position in range(first, first + group_size - num_train):
            validation[position % len(ordered)] = None  # a dict: each pair once, in order
    return train, [ordered[position] for position in validation]


def drop_low_snr(
    pairs: Iterable[Pair], excluded_db: Sequence[float] = (-15.0, -10.0)
) -> list[Pair]:
    """Leaves out pairs at the given SNRs, as the original script does when it trains."""
    return [pair for pair in pairs if pair.snr_db not in excluded_db]


def training_pairs(
    noisy_root: str | os.PathLike,
    clean_root: str | os.PathLike,
    pair_by: str | None = None,
    *,
    keep_low_snr: bool = False,
) -> tuple[list[Pair], str]:
    """Finds pairs to train on; pairs at a low SNR (`drop_low_snr`) are left out unless kept.

    Returns:
        The pairs, and a sentence on those left out, '' if none are.

    Raises:
        ValueError: As `find_pairs`; or none are left.
    """
    found = find_pairs(noisy_root, clean_root, pair_by)
    kept = found if keep_low_snr else drop_low_snr(found)
    num_left_out = len(found) - len(kept)
    what = f"{num_left_out} of {len(found)} training pairs are left out, at -15 and -10 dB"
    if not kept:
        raise ValueError(f"{noisy_root}: {what}: none remain; --keep-low-snr trains on them")
    return kept, f"{what}; --keep-low-snr trains on them too" if num_left_out else ""


def plan_mixtures(
    utterances: Sequence[Utterance],
    noises: Sequence[Noise],
    snrs_db: Sequence[float],
    seed: int = 0,
) -> list[MixturePlan]:
    """Plans every utterance with every noise at every SNR.

    A plan depends on its own utterance, noise, SNR and the seed only: adding files adds plans and
    changes none.

    Raises:
        ValueError: One of the lists is empty, an SNR occurs twice, or the seed is negative.
    """
    for what, values in (("utterances", utterances), ("noises", noises), ("snrs_db", snrs_db)):
        if not len(values):
            raise ValueError(f"no {what} to mix; give at least one")
    if len({snr_folder(snr_db) for snr_db in snrs_db}) < len(snrs_db):
        raise ValueError(f"an SNR occurs twice in {list(snrs_db)}; give each once")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give a whole number from 0 up")
    return [
        MixturePlan(utterance, noise, float(snr_db), seed)
        for utterance in utterances
        for noise in noises
        for snr_db in snrs_db
    ]


def speakers_in_turn(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Returns the first utterance of every speaker, then the second of every speaker, and so on."""
    by_speaker = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance)
    turns = itertools.zip_longest(*by_speaker.values())
    return [utterance for turn in turns for utterance in turn if utterance is not None]


def spread_mixtures(
    utterances: Sequence[Utterance],
    noises: Sequence[Noise],
    snrs_db: Sequence[float],
    num_each: int | None,
    seed: int = 0,
) -> list[MixturePlan]:
    """Plans ``num_each`` utterances for every noise and SNR, all speakers and utterances in turn.

    Args:
        utterances: As in `plan_mixtures`; likewise noises, snrs_db and seed.
        noises: See there.
        snrs_db: See there.
        num_each: Utterances per condition; None (or more than there are) for all of them.
        seed: See there.
    """
    plans = plan_mixtures(utterances, noises, snrs_db, seed)
    if num_each is None or num_each >= len(utterances):
        return plans
    order = [utterance.id for utterance in speakers_in_turn(utterances)]
    conditions = [(noise.name, float(snr_db)) for noise in noises for snr_db in snrs_db]
    chosen = {
        (order[(place * num_each + step) % len(order)], *condition)
        for place, condition in enumerate(conditions)
        for step in range(num_each)
    }
    return [p for p in plans if (p.utterance.id, p.noise.name, p.snr_db) in chosen]


def put_in_rooms(
    plans: Sequence[MixturePlan], probability: float, split: str | None = None
) -> list[MixturePlan]:
    """Puts utterances into simulated rooms; all mixtures of an utterance share room and target.

    Whether an utterance is in a room, and in which, follows from its id and the seed of its plans
    alone. A higher probability adds rooms and changes none.

    Args:
        plans: Mixtures without rooms.
        probability: Probability that an utterance is in a room.
        split: 'TRAIN' or 'TEST', which have different rooms; None for the split of each utterance,
            where an utterance without a split counts as 'TRAIN'.
    """

    def room_of(plan: MixturePlan) -> int | None:
        rng = np.random.default_rng([plan.seed, _stable_hash(plan.utterance.id, "room")])
        is_in_room = rng.random() < probability
        return draw_room(rng, split or plan.utterance.split) if is_in_room else None

    return [replace(plan, room=room_of(plan)) for plan in plans]


def render(plan: MixturePlan) -> Mixture:
    """Reads the files of a plan and mixes them; the same plan gives the same samples.

    Of plans without a room only.

    Raises:
        ValueError: The speech or the noise is silent, or (`AudioError`) cannot be read.
    """
    clean = read_audio(plan.utterance.path).samples
    segment, _ = noise_segment(plan, len(clean))
    return mix_at_snr(clean, segment, plan.snr_db)


def noise_segment(plan: MixturePlan, num_samples: int) -> tuple[np.ndarray, int]:
    """Returns the noise of a plan and where it was cut.

    Args:
        plan: The mixture.
        num_samples: Length of the utterance at 16 kHz.

    Returns:
        float32 [num_samples], and the offset in samples from the start of the noise file at 16 kHz.

    Raises:
        ValueError: The noise is silent, or (`AudioError`) cannot be read.
    """
    usable, first = load_noise(plan.noise)
    try:
        offset = draw_offset(usable, num_samples, plan.rng())
    except ValueError as error:
        raise ValueError(f"{plan.noise.path}: {error}; leave this file out") from None
    return loop_or_crop(usable, num_samples, offset), first + offset


@functools.lru_cache(maxsize=32)  # every utterance meets every noise; 32 x 4 min are 0.5 GB
def load_noise(noise: Noise) -> tuple[np.ndarray, int]:
    """Reads the usable part of a noise, and keeps the last few in memory.

    Returns:
        Read-only float32 [num_samples] at 16 kHz, and its position in the file in samples.

    Raises:
        AudioError: The file cannot be read.
        ValueError: The part is empty.
    """
    samples = read_audio(noise.path).samples
    first, stop = (round(fraction * len(samples)) for fraction in (noise.start, noise.stop))
    usable = samples[first:stop].copy()
    if not usable.size:
        raise ValueError(f"{noise.path}: too short to be split in time; leave this file out")
    usable.flags.writeable = False
    return usable, first


def listed(words: Iterable[str]) -> str:
    """Joins the first few words and counts the others."""
    words = [shown(word, MOST) for word in words]
    more = f" and {len(words) - _NUM_LISTED} more" if len(words) > _NUM_LISTED else ""
    return ", ".join(words[:_NUM_LISTED]) + more


def _relative_path(noise: str, speaker: str, snr_db: float, name: str) -> Path:
    return Path(noise, speaker, snr_folder(snr_db), f"{name}.wav")


def _utterance(path: Path, base: Path, split: str) -> Utterance:
    folders, stem = path.relative_to(base).parent.parts, audio_stem(path)
    if match := _LIBRISPEECH_NAME.fullmatch(stem):
        parts = [part for name in path.parts[:-1] if (part := _LIBRISPEECH_PART.fullmatch(name))]
        split = split or (parts and ("TRAIN" if parts[-1][1] == "train" else "TEST")) or ""
        return Utterance(stem, path, match[1], split=split)
    match = _VCTK_NAME.fullmatch(stem)
    if match and match[2] == path.parent.name and not split:
        return Utterance(match[1], path, match[2])
    if split and (
        len(folders) == 2 or (len(folders) == 1 and _TIMIT_SPEAKER.fullmatch(folders[0]))
    ):
        dialect, speaker = "", folders[-1].upper()
        if len(folders) == 2:
            dialect = folders[0].upper()
        gender = speaker[0] if speaker[0] in "FM" else ""
        return Utterance(f"{speaker}_{stem.upper()}", path, speaker, gender, dialect, split)
    speaker = folders[-1] if folders else UNKNOWN
    return Utterance("_".join((*folders, stem)), path, speaker, split=split)


def _part_folders(root: Path) -> list[Path]:
    """Returns the parts of LibriSpeech in a folder, or in a folder of that name in it."""
    if not root.is_dir():
        return []
    inner = root / "LibriSpeech"
    return [
        path
        for path in sorted((inner if inner.is_dir() else root).iterdir())
        if path.is_dir() and _LIBRISPEECH_PART.fullmatch(path.name)
    ]


def _librispeech_parts(root: Path) -> list[Utterance]:
    return [
        _utterance(path, folder, "")
        for folder in _part_folders(root)
        for path in find_audio(folder)
    ]


def _one_microphone(utterances: list[Utterance], root: Path) -> list[Utterance]:
    """Leaves out the second microphone of VCTK where the first one is there."""
    seen: dict[str, Utterance] = {}
    second = []
    for item in utterances:
        match = _VCTK_NAME.fullmatch(audio_stem(item.path))
        if match and match[3] == "2" and item.id == match[1]:
            second.append(item)
        else:
            seen.setdefault(item.id, item)
    left_out = [item for item in second if item.id in seen]
    if left_out:
        _logger.info("%s: %d recordings of a second microphone left out", root, len(left_out))
    dropped = {item.path for item in left_out}
    return [item for item in utterances if item.path not in dropped]


def _is_sa(path: Path) -> bool:
    """Whether a name is that of an SA sentence, with or without its speaker before it."""
    return (
        re.fullmatch(r"([FM][A-Z]{3}\d[-_])?SA\d+(_RIFF?)?", audio_stem(path).upper()) is not None
    )


def _corpus_base(root: Path) -> Path:
    """Goes down from ``root`` through folders named TIMIT or data to the one with the splits."""
    base = root
    while base.is_dir() and not _split_folders(base):
        below = [path for path in base.iterdir() if path.name.lower() in ("timit", "data")]
        if len(below) != 1:
            return root
        base = below[0]
    return base


def _split_folders(root: Path) -> dict[str, Path]:
    """Returns the sub-folders that are splits, as {'TEST': ..., 'TRAIN': ...}."""
    if not root.is_dir():
        return {}
    found = sorted(path for path in root.iterdir() if path.name.upper() in SPLITS and path.is_dir())
    _require_unique((path.name.upper(), path) for path in found)
    return {path.name.upper(): path for path in found}


def _choose_split(folders: dict[str, Path], split: str | None, root: Path) -> dict[str, Path]:
    split = _checked_split(split)
    if split is None:
        return folders
    if split not in folders:
        find_audio(root)  # a missing or empty folder is the better reason
        raise ValueError(f"{root}: has no folder {split}; make one, or ask for no split")
    return {split: folders[split]}


def _checked_split(split: str | None) -> str | None:
    if split is not None and split.upper() not in SPLITS:
        raise ValueError(f"split is {split!r}; give TRAIN, TEST or None")
    return split and split.upper()


def _find_once(folder: Path) -> list[Path]:
    """Finds audio without converted copies, which some distributions of TIMIT hold."""
    paths = find_audio(folder)
    copied = pairing.copies(paths)
    if copied:
        _logger.info(
            "%s: %d converted copies (x.WAV.wav or x_rif.wav beside x.WAV) left out",
            folder, len(copied),
        )  # fmt: skip
    return [path for path in paths if path not in copied]


def _pair_order(pair: Pair) -> tuple[str, float, str, str, Path]:
    snr_db = math.inf if math.isnan(pair.snr_db) else pair.snr_db  # NaN has no order
    return pair.noise, snr_db, pair.speaker, pair.name, pair.noisy_path


def _utterance_key(item: Utterance | Pair) -> str:
    return item.id if isinstance(item, Utterance) else audio_stem(item.clean_path)


def _require_unique(named_paths: Iterable[tuple[str, Path]]) -> None:
    """Raises ValueError at the first name that two paths share."""
    seen: dict[str, Path] = {}
    for name, path in named_paths:
        if name in seen:
            parts = {part.upper() for one in (seen[name], path) for part in one.parts}
            fix = "choose a split" if parts >= set(SPLITS) else "rename one"
            raise ValueError(f"{seen[name]} and {path} are both named {name!r}; {fix}")
        seen[name] = path


def _stable_hash(*words: str) -> int:
    """Hashes words to 64 bits, alike on every machine and in every process (unlike `hash`)."""
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
