"""The recipe of the corpus: packages, voices and noises.

``recipe.json`` holds three tables:

- ``packages``: name -> version, SHA-256 of the ``.deb`` file, title, copyright, licence;
- ``speakers``: id -> split, language, gender, voice, package, files (patterns; ``*`` also matches
  ``/``), exclude (patterns), f0_hz (lowest and highest median of a clip), min_level_range_db;
- ``noises``: kind -> description, and for each split that has it either ``pieces`` (package, file,
  start_s, end_s; the whole file where these are missing) or ``make`` and ``duration_s``.

The sum of the package fixes every file in it, so files have no sums of their own.
"""

from __future__ import annotations

import hashlib
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).with_name("recipe.json")
SPLITS = ("TRAIN", "TEST")

#: What ``make`` may name besides pieces of recordings.
SYNTHETIC = ("white", "pink", "brown", "hum")
OF_VOICES = ("babble", "speech_shaped")


def read_recipe(path: Path = BUNDLED) -> dict:
    """Reads and checks a recipe.

    Raises:
        ValueError: The file is no recipe, or names a package, split or maker that there is not.
    """
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        _check(recipe)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    except KeyError as error:
        raise ValueError(f"{path}: an entry lacks {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a recipe ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return recipe


def _check(recipe: dict) -> None:
    packages = recipe["packages"]
    for name, about in packages.items():
        for key in ("version", "sha256", "title", "copyright", "licence"):
            if not about[key]:
                raise ValueError(f"package {name}: {key} is empty")
    for speaker, voice in recipe["speakers"].items():
        if not re.fullmatch(r"[FM][A-Z]{2}\d", speaker):
            raise ValueError(f"speaker {speaker!r}: give F or M, two letters, a digit")
        if voice["split"] not in SPLITS or speaker[0] != voice["gender"][0].upper():
            raise ValueError(f"speaker {speaker}: split or gender is wrong")
    for kind, noise in recipe["noises"].items():
        if not re.fullmatch(r"[a-z]+", kind):
            raise ValueError(f"noise {kind!r}: give small letters only")
        if not any(split in noise for split in SPLITS):
            raise ValueError(f"noise {kind}: has neither TRAIN nor TEST")
        for split in SPLITS:
            part = noise.get(split, {})
            if part.get("make", "white") not in SYNTHETIC + OF_VOICES:
                raise ValueError(f"noise {kind}: cannot make {part['make']!r}")
    for name in sorted(used_packages(recipe) - packages.keys()):
        raise ValueError(f"package {name} is used but not described")


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
