"""Pairs noisy files with clean ones by their paths, by one rule for all commands. Reads no file.

A path is taken apart into its file name and its levels, the folders above it. Known levels are the
SNR (`parse_snr_folder`), a dialect region of TIMIT, a split such as TRAIN, and words for what a
folder holds, such as ``noisy_testset_wav`` or ``mix_both``. The partner of a noisy file is

1. the clean file at the same relative path, whatever the ending and upper or lower case;
2. otherwise the clean file of the same name, if the noisy path contains all of its levels in the
   same order: the remaining levels of the noisy path are the noise and the SNR;
3. otherwise the only clean file of that name, unless the noisy path names another speaker.

In 2 and 3 dialects, splits and SNRs must agree where both paths have one. Where a rule finds two
files there is no partner, and where two speakers claim one file it is the partner of neither.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from speech.sound.audio import is_audio_name

UNKNOWN = "unknown"

# Why a noisy file has no partner.
NO_NAME = "no such name"
SEVERAL = "several clean files of that name"
ANOTHER = "its speaker is another one than in the clean files"
TWO_SPEAKERS = "speakers of two folders have one clean file of that name"
ITSELF = "is its own clean file"
NO_NOISY = "stands beside the noisy files: it is noise or a source of them"
NO_MATCH = "the pattern of --pair-by is not found in it"

_LARGEST_SNR_DB = 100.0  # a larger number is a date or an id
_SNR = re.compile(
    r"(?P<tag>(?:snr|db)[ _=:]?)?(?P<sign>[+\-\u2212]|minus|plus|neg|m|p)?[ _]?"
    r"(?P<number>\d+(?:[.,]\d+)?)(?:[ _-]?(?P<unit>db))?(?:[ _-]?(?P<after>snr))?"
)
_SNR_IN_NAME = re.compile(r"(?<![^_ ])(?:snr?[_ =]?[+-]?\d+(?:\.\d+)?(?:db)?|[+-]?\d+(?:\.\d+)?db)"
                          r"(?![^_ .-])")  # fmt: skip
_WHOLE_NUMBER = re.compile(r"\d{1,2}")

_DIALECT = re.compile(r"dr\d")
_SPLITS = {
    "train": "train", "tr": "train", "training": "train", "test": "test", "tt": "test",
    "testing": "test", "dev": "dev", "cv": "dev", "val": "dev", "valid": "dev",
    "validation": "dev", "devel": "dev", "eval": "eval",
}  # fmt: skip
#: Words that say whether a folder holds noisy or clean files, and nothing about the utterance.
_NOISY_WORDS = {"noisy", "isolated", "mix", "mixed", "mixture", "mixtures", "both", "single"}
_CLEAN_WORDS = {"clean", "reverberated", "scaled", "target", "targets", "reference", "references"}
_ROLES = _NOISY_WORDS | _CLEAN_WORDS | {"wav", "wavs", "enhanced", "denoised"}
_MIX = re.compile(r"(mix|mixed|mixtures?)(_(both|single|clean))?")
#: Levels of a clean tree that say nothing either.
_GENERIC = re.compile(
    r"(wav|wave|flac|sph)s?\d*k?|\d+k(hz)?|audio|data|files|speech|utterances|recordings|timit"
    r"|librispeech|(train|dev|test)-(clean|other)(-\d+)?"
)
_SPEAKER = re.compile(
    r"[fm][a-z]{3}\d|p\d{3}|\d{2,6}|(spk|speaker|id|reader|s|f|m|spkr)[_-]?\d+", re.ASCII
)
_NOISE = re.compile(
    r"[a-z]noise|(?<![a-z])(?:f16|m109|airport|babble|baby|bird|brown|buccaneer|bus|cafe|cafeter|cafeteria|car"
    r"|chatter|cockpit|construction|crowd|destroyer(?:engine|ops)|dishes|dkitchen|dliving|dwashing"
    r"|engine|exhibition|factory|fan|hfchannel|hum|keyboard|kitchen|leopard|machine|machinegun"
    r"|market|metro|music|nfield|noise|npark|nriver|office|ohallway|omeeting|ooffice|pcafeter"
    r"|pedestrian|pink|pressto|pstation|rain|restaurant|river|scafe|spsquare|square|ssn|station"
    r"|straffic|street|subway|tbus|tcar|tmetro|traffic|train|typing|vacuum|volvo|water|white|wind)"
    r"(?:s|noise)?(?![a-z])"
)


@dataclass(frozen=True)
class Match:
    """The clean file, noise, speaker and SNR that were found for one noisy file.

    Attributes:
        clean: Position of its clean file in the list; None if it has none.
        reason: Why it has none; '' if it has one.
        noise: Kind of noise, or 'unknown'.
        speaker: Speaker, or 'unknown'.
        snr_db: SNR in dB; NaN where the path says none.
    """

    clean: int | None
    reason: str
    noise: str = UNKNOWN
    speaker: str = UNKNOWN
    snr_db: float = math.nan


@dataclass(frozen=True)
class _Levels:
    """The folders above a file.

    Attributes:
        name: The file's name, without endings and marks of copies, in lower case.
        texts: Levels that are not known ones, as written; '' for a level with words for a role.
        keys: The same levels without the empty ones and words for roles, in lower case.
        known: Kind -> value of dialect and split.
        snr_db: None where the path says none.
        is_mix: Whether a level says that the file is a mixture.
        is_single: Whether a level says that the file holds a single speaker.
        is_noisy: Whether a level says that the file is noisy.
        is_noise: Whether a level says that it is noise, and none that it is noisy.
    """

    name: str
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    known: dict[str, str] = field(default_factory=dict)
    snr_db: float | None = None
    is_mix: bool = False
    is_single: bool = False
    is_noisy: bool = False
    is_noise: bool = False


def audio_stem(path: str | os.PathLike) -> str:
    """Returns a file name without its audio endings: 'SA1' of 'SA1.WAV' and of 'SA1.WAV.wav'."""
    name = PurePath(path)
    while is_audio_name(name):
        name = name.with_suffix("")
    return name.name


def parse_snr_folder(name: str) -> float | None:
    """Returns the SNR in dB that the name of a folder says; None if it says none.

    Understood are ``-5``, ``5.0``, ``5dB``, ``m6dB``, ``snr-5``, ``SNR5``, ``snr_5dB`` and the
    like; 'unknown' gives NaN. A whole number without a sign is no SNR: it may be a speaker.
    """
    if name == UNKNOWN:
        return math.nan
    match = _SNR.fullmatch(name.lower())
    if match is None:
        return None
    sign, number = match["sign"] or "", match["number"].replace(",", ".")
    is_tagged = bool(match["tag"] or match["unit"] or match["after"])
    if not is_tagged and (sign in ("m", "p", "neg", "plus") or not (sign or "." in number)):
        return None
    value = float(number)
    if value > _LARGEST_SNR_DB:
        return None
    is_negative = sign in ("-", "\u2212", "m", "minus", "neg")
    return -value if is_negative and value else value


def copies(paths: Iterable[PurePath]) -> set[PurePath]:
    """Returns the paths that are converted copies of other paths.

    ``x.WAV.wav`` and ``x_rif.wav`` are copies where ``x.WAV`` (any ending, any case) stands beside
    them, as in some distributions of TIMIT.
    """
    groups: dict[tuple[str, str], list[PurePath]] = defaultdict(list)
    for path in paths:
        groups[str(path.parent), _bare(path)].append(path)
    found: set[PurePath] = set()
    for group in groups.values():
        originals = [path for path in group if not _is_converted(path)]
        if originals:
            found.update(path for path in group if _is_converted(path))
        else:
            found.update(sorted(group, key=lambda path: (len(path.name), str(path)))[1:])
    return found


def match(
    noisy: Sequence[str | PurePath],
    clean: Sequence[str | PurePath],
    pair_by: str | None = None,
    is_same: Callable[[int, int], bool] = lambda noisy, clean: False,
) -> list[Match]:
    """Finds the partner of each noisy file.

    Args:
        noisy: Paths of the noisy files relative to their folder.
        clean: Paths of the clean files relative to theirs.
        pair_by: Regular expression; what its groups find (without groups, all of it) in the file
            names of both must be equal, and names and folders need not be. It is searched in the
            relative path if it contains a slash.
        is_same: Tells of a position in each list whether both are one file, which never pairs.

    Returns:
        One match for each noisy file.
    """
    noisy_paths, clean_paths = (
        [PurePath(path) for path in noisy],
        [PurePath(path) for path in clean],
    )
    clean_levels = [_levels(path) for path in clean_paths]
    names = {key for levels in clean_levels for key in levels.keys}
    depths = _depths(noisy_paths, names)
    levels = [_levels(path, *depths) for path in noisy_paths]
    chooser = _Chooser(clean_paths, clean_levels, names, pair_by)
    found = []
    kinds = [own.is_mix for own in levels], [own.is_noisy for own in levels]
    for place, (path, own) in enumerate(zip(noisy_paths, levels, strict=True)):
        if (any(kinds[0]) and not own.is_mix) or (any(kinds[1]) and own.is_noise):
            found.append(Match(None, NO_NOISY))
            continue
        chosen, reason = chooser.choose(path, own)
        if chosen is not None and is_same(place, chosen):
            chosen, reason = None, ITSELF
        found.append(Match(chosen, reason))
    if pair_by is None:
        _drop_claims_of_two(found, noisy_paths, levels, clean_paths, clean_levels)
    return _labelled(found, noisy_paths, levels, clean_levels)


class _Chooser:
    """Finds the partner of one file after the other."""

    def __init__(
        self,
        paths: Sequence[PurePath],
        levels: Sequence[_Levels],
        names: set[str],
        pair_by: str | None,
    ) -> None:
        self._levels, self._names = levels, names
        self._pair_by = pair_by
        self._exact = {str(path): place for place, path in enumerate(paths)}
        self._same_path: dict[str, list[int]] = defaultdict(list)
        self._by_level: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._by_key: dict[tuple[str, ...], list[int]] = defaultdict(list)
        copied = copies(paths)
        for place, path in enumerate(paths):
            if path in copied:
                continue
            own = levels[place]
            if pair_by is not None:
                if (key := key_of(pair_by, path)) is not None:
                    self._by_key[key].append(place)
                continue
            self._same_path[_bare_path(path)].append(place)
            self._by_name[own.name].append(place)
            for level in _said(own) or ("",):
                self._by_level[own.name, level].append(place)
            # Prepared trees name a file SPEAKER_NAME.
            for level in own.keys[-1:]:
                self._by_level[f"{level}_{own.name}", level].append(place)
                self._by_name[f"{level}_{own.name}"].append(place)

    def choose(self, path: PurePath, own: _Levels) -> tuple[int | None, str]:
        """Returns the position of the clean file, or None and why there is none."""
        if self._pair_by is not None:
            return self._by_pattern(path, own)
        if str(path) in self._exact:
            return self._exact[str(path)], ""
        if len(same := self._same_path.get(_bare_path(path), [])) == 1:
            return same[0], ""
        keys = ("", *own.keys, *_said_by_mix(own))
        places = {place for key in keys for place in self._by_level.get((own.name, key), [])}
        for key in own.keys:
            places.update(self._by_level.get((f"{key}_{own.name}", ""), []))
        ranked = sorted(
            (-score, place) for place in places if (score := self._score(own, place)) is not None
        )
        if ranked:
            is_tied = len(ranked) > 1 and ranked[0][0] == ranked[1][0]
            return (None, SEVERAL) if is_tied else (ranked[0][1], "")
        others = self._by_name.get(own.name, [])
        if not others:
            return None, NO_NAME
        fitting = [place for place in others if self._may_be(own, place)]
        if len(fitting) == 1:
            return fitting[0], ""
        return None, SEVERAL if fitting else ANOTHER

    def _by_pattern(self, path: PurePath, own: _Levels) -> tuple[int | None, str]:
        key = key_of(self._pair_by, path)
        if key is None:
            return None, NO_MATCH
        places = self._by_key.get(key, [])
        if len(places) < 2:
            return (places[0], "") if places else (None, NO_NAME)
        fitting = [place for place in places if self._score(own, place) is not None]
        return (fitting[0], "") if len(fitting) == 1 else (None, SEVERAL)

    def _score(self, own: _Levels, place: int) -> int | None:
        """Returns how many levels agree if all that say something do, otherwise None."""
        other = self._levels[place]
        if not _agree(own, other):
            return None
        if not _is_subsequence(_needed(own, other), own.keys):
            return None
        return sum(key in own.keys for key in other.keys)

    def _may_be(self, own: _Levels, place: int) -> bool:
        """Whether a clean file with levels that the noisy path lacks may still be the partner."""
        other = self._levels[place]
        if not _agree(own, other):
            return False
        in_name = set(re.split(r"[-_ .]", other.name)) | set(re.split(r"[-_ .]", own.name))
        shared = set(other.keys) & set(own.keys)
        missing = [key for key in _needed(own, other) if key not in shared | in_name]
        if not missing:
            return True
        left = [key for key in own.keys if key not in shared | in_name]
        unknown = [key for key in left if not _is_noise(key)]
        if any(_SPEAKER.fullmatch(key) or key in self._names for key in unknown):
            return False
        # One level that is no known noise is taken for the noise, if the speaker is known to agree.
        spare = 1 if shared and len(unknown) == len(left) else 0
        return len(unknown) <= spare


def _agree(own: _Levels, other: _Levels) -> bool:
    """Whether the known levels of a noisy and a clean path agree, where both have them."""
    if other.is_noisy or other.is_noise:
        return False
    if any(own.known.get(kind, value) != value for kind, value in other.known.items()):
        return False
    snrs_db = [own.snr_db, other.snr_db]
    is_known = all(snr_db is not None and not math.isnan(snr_db) for snr_db in snrs_db)
    return not is_known or snrs_db[0] == snrs_db[1]


def _needed(own: _Levels, other: _Levels) -> list[str]:
    """Returns the levels of a clean path that the noisy one must have too."""
    return [key for key in _said(other) if key in own.keys or key not in _said_by_mix(own)]


def _said_by_mix(own: _Levels) -> tuple[str, ...]:
    """Returns the names of folders of sources that belong to a mixture."""
    if not own.is_mix:
        return ()
    return ("s1",) if own.is_single else tuple(f"s{number}" for number in range(1, 10))


def _said(levels: _Levels) -> tuple[str, ...]:
    """Returns the levels of a clean path that say something."""
    return tuple(key for key in levels.keys if not _GENERIC.fullmatch(key))


def _is_subsequence(part: Sequence[str], whole: Sequence[str]) -> bool:
    rest = iter(whole)
    return all(key in rest for key in part)


def _levels(
    path: PurePath, snr_depths: Container[int] = (), noise_depths: Container[int] = ()
) -> _Levels:
    """Takes a relative path apart; for the depths see `_depths`."""
    folders = list(path.parent.parts)
    snr_place, snr_db = _find_snr(folders, snr_depths)
    if snr_db is None:
        snr_db = _snr_in_name(audio_stem(path))
    texts, keys, known = [], [], {}
    words: set[str] = set()
    is_mix = is_single = is_noisy = has_noise = False
    for place, text in enumerate(folders):
        lower = _folded(text)
        if place == snr_place or lower == UNKNOWN:
            continue
        if _DIALECT.fullmatch(lower):
            known["dialect"] = lower
        elif lower in _SPLITS and place not in noise_depths:
            known["split"] = _SPLITS[lower]
        else:
            tokens = [token for token in re.split(r"[_\- ]", lower) if token]
            said = [token for token in tokens if token not in _ROLES]
            roles = {token for token in tokens if token in _NOISY_WORDS | _CLEAN_WORDS}
            is_generic = _GENERIC.fullmatch(lower) is not None
            has_noise |= lower in ("noise", "noises")
            if not is_generic:
                words |= roles
            if _MIX.fullmatch(lower):
                is_noisy, is_mix, is_single = True, "clean" not in tokens, "single" in tokens
            if said:
                is_role = bool(roles) and not is_generic
                texts.append("" if is_role else text)
                keys.append("_".join(said) if is_role else lower)
    is_noisy |= bool(words & {"noisy", "isolated"})
    return _Levels(
        _bare(path), tuple(texts), tuple(keys), known, snr_db, is_mix, is_single, is_noisy,
        has_noise and not is_noisy,
    )  # fmt: skip


def _find_snr(
    folders: Sequence[str], snr_depths: Container[int]
) -> tuple[int | None, float | None]:
    """Returns which level is the SNR, and the SNR; the lowest one if there are several."""
    found = [(place, parse_snr_folder(text)) for place, text in enumerate(folders)]
    said = [(place, snr_db) for place, snr_db in found if snr_db is not None]
    sure = [(place, snr_db) for place, snr_db in said if not math.isnan(snr_db)]
    tagged = [(place, snr_db) for place, snr_db in sure if not _is_plain(folders[place])]
    if tagged or sure:
        return (tagged or sure)[-1]
    for place, text in enumerate(folders):
        if place in snr_depths and _WHOLE_NUMBER.fullmatch(text):
            return place, float(text)
    if said and said[-1][0] == len(folders) - 1:
        return said[-1]
    return None, None


def _is_plain(text: str) -> bool:
    return re.search("[a-z]", text, re.IGNORECASE) is None


def _snr_in_name(stem: str) -> float | None:
    found = _SNR_IN_NAME.findall(stem.lower())
    return parse_snr_folder(re.sub("^sn(?!r)", "snr", found[-1])) if found else None


def _depths(paths: Sequence[PurePath], clean_names: set[str]) -> tuple[set[int], set[int]]:
    """Returns at which depths whole numbers are SNRs, and at which 'train' is a noise.

    Whole numbers without a sign are SNRs where no clean folder has such a name, all folders of that
    depth are numbers, and one of them is surely an SNR or an utterance occurs at several of them.
    """
    values: dict[int, set[str]] = defaultdict(set)
    for path in paths:
        for depth, text in enumerate(path.parent.parts):
            values[depth].add(text)
    snr_depths = set()
    for depth, texts in values.items():
        plain = {text for text in texts if _WHOLE_NUMBER.fullmatch(text)}
        surely = {text for text in texts - plain if parse_snr_folder(text) is not None}
        if not plain or plain & clean_names or plain | surely != texts:
            continue
        if surely or _varies(paths, depth):
            snr_depths.add(depth)
    noise_depths = {
        depth
        for depth, texts in values.items()
        if any(_is_noise(key) for key in map(_folded, texts) if key not in _SPLITS)
    }
    return snr_depths, noise_depths


def _varies(paths: Sequence[PurePath], depth: int) -> bool:
    """Whether two paths differ at this depth only: then the level there is a condition."""
    seen: set[tuple[str, ...]] = set()
    for path in paths:
        if len(path.parts) > depth + 1:
            key = (*path.parts[:depth], "", *path.parts[depth + 1 :])
            if key in seen:
                return True
            seen.add(key)
    return False


def _drop_claims_of_two(
    found: list[Match],
    noisy_paths: Sequence[PurePath],
    levels: Sequence[_Levels],
    clean_paths: Sequence[PurePath],
    clean_levels: Sequence[_Levels],
) -> None:
    """Takes a clean file from all that claim it if two speakers do; changes ``found``."""
    claims: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, one in enumerate(found):
        if one.clean is None or _bare_path(noisy_paths[place]) == _bare_path(
            clean_paths[one.clean]
        ):
            continue
        own, other = levels[place], clean_levels[one.clean]
        left = [key for key in own.keys if key not in other.keys]
        in_name = [key for key in left if own.name.startswith(key)]
        speakers = [key for key in left if _SPEAKER.fullmatch(key) and not _is_noise(key)]
        if not speakers and len(left) > 1 and _ends_with_snr(noisy_paths[place], own):
            speakers = [key for key in left[-1:] if not _is_noise(key)]
        if speakers and not in_name and not any(map(_SPEAKER.fullmatch, other.keys)):
            claims[one.clean][speakers[-1]].append(place)
    for speakers_of in claims.values():
        if len(speakers_of) > 1:
            for place in (place for places in speakers_of.values() for place in places):
                found[place] = Match(None, TWO_SPEAKERS)


def _ends_with_snr(path: PurePath, own: _Levels) -> bool:
    """Whether the path is of the documented layout, ``<noise>/<speaker>/<dB>/<name>``."""
    return own.snr_db is not None and parse_snr_folder(path.parent.name) is not None


def _labelled(
    found: Sequence[Match],
    paths: Sequence[PurePath],
    levels: Sequence[_Levels],
    clean_levels: Sequence[_Levels],
) -> list[Match]:
    """Adds noise, speaker and SNR, in as few words as make them unique."""
    repeated = _repeated_levels(levels)
    tried: list[list[Match]] = []
    for num_words in range(3):
        labelled: list[Match] = []
        tried.append(labelled)
        for one, path, own in zip(found, paths, levels, strict=True):
            other = clean_levels[one.clean] if one.clean is not None else None
            noise, speaker = _noise_and_speaker(own, other, repeated, num_words > 0)
            if num_words > 1:
                words = [text for text in path.parent.parts if parse_snr_folder(text) is None]
                noise = "_".join(words) or UNKNOWN
            snr_db = math.nan if own.snr_db is None else own.snr_db
            labelled.append(replace(one, noise=noise, speaker=speaker, snr_db=snr_db))
        counts = Counter(
            (one.noise, one.speaker, str(one.snr_db), own.name)
            for one, own in zip(labelled, levels, strict=True)
            if one.clean is not None
        )
        if not counts or max(counts.values()) == 1:
            return labelled
    return tried[0]


def _repeated_levels(levels: Sequence[_Levels]) -> bool:
    """Whether an utterance occurs below several levels, in trees of one level: these are noises."""
    seen: dict[tuple[str, float | None], set[str]] = defaultdict(set)
    for own in levels:
        if len(own.keys) == 1 and not _SPEAKER.fullmatch(own.keys[0]):
            seen[own.name, own.snr_db].add(own.keys[0])
    return any(len(keys) > 1 for keys in seen.values())


def _noise_and_speaker(
    own: _Levels, other: _Levels | None, repeated: bool, is_long: bool
) -> tuple[str, str]:
    texts = {
        key: text or key for key, text in zip(own.keys, own.texts, strict=True) if text or is_long
    }
    shared = [key for key in texts if other is not None and key in other.keys]
    left = [key for key in texts if key not in shared]
    noises = [key for key in shared if _is_noise(key)]
    if noises:  # the clean tree has a folder for each noise, too
        left, shared = [*noises, *left], [key for key in shared if key not in noises]
    elif not left and len(shared) > 1 and own.snr_db is not None:
        left, shared = shared[:-1], shared[-1:]
    if shared:
        chosen = shared if is_long else [_speaker_of(shared)]
        noise, speaker = left, "_".join(texts[key] for key in chosen)
    else:
        place = _speaker_place(own, left, repeated)
        noise = [key for number, key in enumerate(left) if number != place]
        speaker = UNKNOWN if place is None else texts[left[place]]
    words = [texts[key] for key in noise]
    if is_long:
        words += own.known.values()
    return "_".join(words) or UNKNOWN, speaker


def _speaker_of(keys: Sequence[str]) -> str:
    return next((key for key in keys if _SPEAKER.fullmatch(key)), keys[-1])


def _speaker_place(own: _Levels, keys: Sequence[str], repeated: bool) -> int | None:
    """Returns which level is the speaker's, if no clean folder says it."""
    if not keys:
        return None
    certain = [
        place
        for place, key in enumerate(keys)
        if (_SPEAKER.fullmatch(key) or own.name.startswith(key)) and not _is_noise(key)
    ]
    if len(certain) == 1:
        return certain[0]
    if len(keys) == 1:
        is_noise = _is_noise(keys[0]) or repeated or own.snr_db is not None
        return None if is_noise and not certain else 0
    possible = [place for place, key in enumerate(keys) if not _is_noise(key)]
    return possible[-1] if possible else None


def _is_noise(key: str) -> bool:
    return _NOISE.search(key) is not None


def key_of(pair_by: str | None, path: PurePath) -> tuple[str, ...] | None:
    """Returns what the pattern of ``pair_by`` finds in a relative path, None if it finds nothing.

    That is what its groups find, or all of it without groups, in the file name without its ending;
    a pattern with a slash is searched in the whole path.
    """
    if pair_by is None:
        return None
    found = re.search(pair_by, path.as_posix() if "/" in pair_by else audio_stem(path))
    if found is None:
        return None
    return tuple(part or "" for part in found.groups()) or (found[0],)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _bare(path: PurePath) -> str:
    """Returns a file name in lower case, without endings and marks of a conversion."""
    return re.sub(r"_riff?$", "", _folded(audio_stem(path)))


def _bare_path(path: PurePath) -> str:
    return "/".join((*map(_folded, path.parent.parts), _bare(path)))


def _is_converted(path: PurePath) -> bool:
    """Whether a name says that the file was converted from another one."""
    stem = audio_stem(path)
    return stem != path.stem or re.search(r"_riff?$", stem, re.IGNORECASE) is not None
