"""The recipe of the corpus: packages, voices and noises.

``recipe.json`` holds three tables:

- ``packages``: name -> version, SHA-256 of the ``.deb`` file, title, copyright, licence;
- ``speakers``: id -> split, language, gender, voice, package, files (patterns; ``*`` also matches
  ``/``), exclude (patterns), f0_hz (lowest and highest median of a clip), min_level_range_db;
- ``noises``: kind -> description, and for each split that has it either ``pieces`` (package, file,
  start_s, end_s; the whole file where these are missing) or ``make`` and ``duration_s``.

The sum of the package fixes every file in it, so files have no sums of their own.

A recipe is data, possibly of a stranger: names, versions and paths must look like such
(``speech.base.debian``) before a tool or the file system sees one of them, and lengths are bounded.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from speech.base import debian

BUNDLED = Path(__file__).with_name("recipe.json")
SPLITS = ("TRAIN", "TEST")

#: What ``make`` may name besides pieces of recordings.
SYNTHETIC = ("white", "pink", "brown", "hum")
OF_VOICES = ("babble", "speech_shaped")


#: Bounds what a recipe may ask for, in seconds and in bytes.
MAX_SECONDS = 3600.0
MAX_BYTES = 16 << 20
MAX_TALKERS = 100


def read_recipe(path: Path = BUNDLED) -> dict:
    """Reads and checks a recipe.

    Raises:
        ValueError: The file is no recipe, or names a package, split or maker that there is not.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES:,} bytes, expected a recipe")
        recipe = json.loads(path.read_text(encoding="utf-8"))
        _check(recipe)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    except KeyError as error:
        raise ValueError(f"{path}: an entry lacks {error}") from error
    except (TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ValueError(f"{path}: not a recipe ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe


def _check(recipe: dict) -> None:
    packages = recipe["packages"]
    for name, about in packages.items():
        debian.check_package(name, about["version"])
        for key in ("version", "sha256", "title", "copyright", "licence"):
            if not about[key] or not isinstance(about[key], str):
                raise ValueError(f"package {name}: {key} is empty, or no text")
        if not re.fullmatch("[0-9a-f]{64}", about["sha256"]):
            raise ValueError(f"package {name}: sha256 is not 64 small hexadecimal digits")
    for speaker, voice in recipe["speakers"].items():
        if not re.fullmatch("[FM][A-Z]{2}[0-9]", speaker):
            raise ValueError(f"speaker {speaker!r:.40}: give F or M, two letters, a digit")
        if voice["split"] not in SPLITS or speaker[0] != voice["gender"][0].upper():
            raise ValueError(f"speaker {speaker}: split or gender is wrong")
        for key in ("files", "exclude"):
            if not isinstance(patterns := voice.get(key, []), list):
                raise ValueError(f"speaker {speaker}: {key} is no list of patterns")
            for pattern in patterns:
                _check_path(f"speaker {speaker}", pattern)
        lowest, highest = voice["f0_hz"]
        for value in (lowest, highest, voice["min_level_range_db"], voice.get("min_high_db", 0)):
            _check_number(f"speaker {speaker}", value, -1e6, 1e6)
    for kind, noise in recipe["noises"].items():
        if not re.fullmatch(r"[a-z]+", kind):
            raise ValueError(f"noise {kind!r:.40}: give small letters only")
        if not any(split in noise for split in SPLITS):
            raise ValueError(f"noise {kind}: has neither TRAIN nor TEST")
        for split in SPLITS:
            part = noise.get(split, {})
            if part.get("make", "white") not in SYNTHETIC + OF_VOICES:
                raise ValueError(f"noise {kind}: cannot make {part['make']!r:.40}")
            if part and "pieces" not in part and "make" not in part:
                raise ValueError(f"noise {kind}: has neither pieces nor make")
            if "make" in part and "pieces" not in part:
                _check_number(f"noise {kind}", part["duration_s"], 0.0, MAX_SECONDS)
            if "typing_s" in part:
                _check_number(f"noise {kind}", part["typing_s"], 0.0, MAX_SECONDS)
            talkers = part.get("talkers", 1)
            if type(talkers) is not int or not 1 <= talkers <= MAX_TALKERS:
                raise ValueError(f"noise {kind}: talkers is {talkers!r:.40}, expected 1 or more")
            for piece in part.get("pieces", ()):
                _check_path(f"noise {kind}", piece["file"])
                for key in ("start_s", "end_s"):
                    _check_number(f"noise {kind}", piece.get(key, 0), 0.0, 1e6)
    for name in sorted(used_packages(recipe) - packages.keys()):
        raise ValueError(f"package {name} is used but not described")


def _check_path(whose: str, path: Any) -> None:
    try:
        debian.check_path(path)
    except ValueError as error:
        raise ValueError(f"{whose}: {error}") from None


def _check_number(whose: str, value: Any, lowest: float, highest: float) -> None:
    is_number = type(value) in (int, float) and math.isfinite(value)
    if not is_number or not lowest <= value <= highest:
        raise ValueError(f"{whose}: {value!r:.40} is not a number from {lowest:g} to {highest:g}")


def used_packages(recipe: dict) -> set[str]:
    """Returns the packages that a voice or a noise of the recipe names."""
    voices = {voice["package"] for voice in recipe["speakers"].values()}
    return voices | {piece["package"] for piece in pieces_of(recipe)}


def is_wanted(recipe: dict, package: str, path: str) -> bool:
    """Tells whether a file of a package is used: for a voice, a noise, or as its copyright."""
    if path == copyright_path(package):
        return True
    if any(piece["file"] == path for piece in pieces_of(recipe, package)):
        return True
    voices = (voice for voice in recipe["speakers"].values() if voice["package"] == package)
    return any(is_of_voice(voice, path) for voice in voices)


def is_of_voice(voice: dict, path: str) -> bool:
    """Tells whether a file of its package is a recording of ``voice``."""
    return any(fnmatchcase(path, pattern) for pattern in voice["files"]) and not any(
        fnmatchcase(path, pattern) for pattern in voice.get("exclude", ())
    )


def speaker_folder(speaker: str, voice: dict) -> str:
    """Returns where the utterances of a speaker stand, language as dialect."""
    return f"speech/{voice['split']}/{speaker[1:3]}/{speaker}"


def copyright_path(package: str) -> str:
    """Returns where a package holds its copyright and licence."""
    return f"usr/share/doc/{package}/copyright"


def pieces_of(recipe: dict, package: str | None = None) -> list[dict]:
    """Returns the pieces of noise that come from ``package``, or all."""
    parts = (noise.get(split, {}) for noise in recipe["noises"].values() for split in SPLITS)
    pieces = (piece for part in parts for piece in part.get("pieces", ()))
    return [piece for piece in pieces if package in (None, piece["package"])]


def fingerprint(value: Any) -> str:
    """Returns the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()
