"""The Debian packages of a recipe: found or downloaded, checked, unpacked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from speech.base import cli, debian, files
from speech.base.lazy import joblib
from speech.opencorpus import recipe


def find_packages(book: dict, folder: Path | None, cache: Path) -> dict[str, Path]:
    """Returns the ``.deb`` file of every package of a recipe, once its sum is checked.

    Args:
        book: What `recipe.read_recipe` returns.
        folder: Folder of ``.deb`` files; None to download what ``cache`` does not hold yet.
        cache: Where to download to.

    Raises:
        ValueError: A package is missing, of another version or not the one of the recipe.
    """
    archives = {}
    for package in cli.progress(sorted(recipe.used_packages(book)), label="packages"):
        about = book["packages"][package]
        if folder is None:
            archives[package] = _downloaded(package, about, cache)
        else:
            archives[package] = _checked(package, about, folder)
    return archives


def _checked(package: str, about: dict, folder: Path) -> Path:
    path = debian.find_archive(package, about["version"], folder)
    digest = files.sha256_of(path)
    if digest != about["sha256"]:
        raise ValueError(
            f"{path}: has SHA-256 {digest}, the recipe says {about['sha256']}; it is damaged or "
            "another build of the package, download it again"
        )
    return path


def _downloaded(package: str, about: dict, cache: Path) -> Path:
    """Returns a package of the cache; downloads it first if it is not there or damaged."""
    for path in sorted(cache.glob(f"{package}_*.deb")):
        if files.sha256_of(path) == about["sha256"]:
            return path
        path.unlink()
    fresh = _empty_folder(cache / f".{package}")
    debian.download(package, about["version"], fresh)
    path = _checked(package, about, fresh)
    os.replace(path, cache / path.name)
    shutil.rmtree(fresh)
    return cache / path.name


def unpack_all(
    book: dict, archives: dict[str, Path], folder: Path, num_jobs: int
) -> dict[str, Path]:
    """Unpacks what a recipe uses of every package, in parallel.

    A package unpacked by an earlier, interrupted build is taken as it is.

    Returns:
        The folder of every package.

    Raises:
        ValueError: A package is broken or lacks a file that the recipe names.
    """
    tasks = (
        joblib.delayed(_unpack)(book, package, archive, folder)
        for package, archive in archives.items()
    )
    done = cli.in_processes(tasks, num_jobs)
    return dict(cli.progress(done, total=len(archives), label="unpack"))


def _unpack(book: dict, package: str, archive: Path, folder: Path) -> tuple[str, Path]:
    used = [
        book["packages"][package]["sha256"],
        [voice for voice in book["speakers"].values() if voice["package"] == package],
        recipe.pieces_of(book, package),
    ]
    target = folder / f"{package}-{recipe.fingerprint(used)[:16]}"
    if not target.is_dir():
        fresh = _empty_folder(folder / f".{package}")
        found = debian.unpack(archive, lambda path: recipe.is_wanted(book, package, path), fresh)
        named = {piece["file"] for piece in recipe.pieces_of(book, package)}
        for path in sorted((named | {recipe.copyright_path(package)}) - set(found)):
            raise ValueError(f"{archive}: holds no file {path}")
        os.replace(fresh, target)
    return package, target


def _empty_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
