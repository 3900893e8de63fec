"""Builds the bundled corpus from Debian packages, the same bytes every time.

``sources.json`` is the recipe: for every output file the package and the pieces (source file,
its SHA-256, first and last second) it is made of. Every source is averaged to mono, resampled to
16 kHz (soxr VHQ), freed from rumble by a zero-phase second-order high-pass, cut, and joined by
short cross-fades; speech is scaled to peak 0.5, noise to RMS 0.05 (peak at most 0.9). The result
is rounded to 16 bits and stored as FLAC.

The same bytes come out with the library versions pinned in ``requirements.txt`` on x86-64; other
decoders may differ in the last bit of a sample.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from speech.base import cli, debian, files
from speech.sound.conditioning import (
    SAMPLE_RATE_HZ,
    decode,
    fade_edges,
    join,
    lay_out_keys,
    manifest_of,
    noise_gain,
    speech_gain,
    to_int16,
    write_flac,
)

CORPUS = Path(__file__).parent
MANIFEST = "MANIFEST.sha256"


def read_recipe(path: Path = CORPUS / "sources.json") -> dict:
    """Returns the recipe: packages, speakers, noises and the pieces of every output file."""
    return json.loads(path.read_text(encoding="utf-8"))


def build_corpus(recipe: dict, package_folder: Path, out: Path) -> None:
    """Writes all files of ``recipe`` and their ``MANIFEST.sha256`` below ``out``.

    Args:
        recipe: What ``read_recipe`` returns.
        package_folder: Folder that holds the ``.deb`` file of every package.
        out: Root of the tree to write.

    Raises:
        ValueError: A package is missing, of another version, or holds another source file.
    """
    archives = {
        package: debian.find_archive(package, about["version"], package_folder)
        for package, about in recipe["packages"].items()
    }
    for package, archive in cli.progress(archives.items(), label="packages"):
        entries = {
            name: entry for name, entry in recipe["files"].items() if entry["package"] == package
        }
        pieces = [piece for entry in entries.values() for piece in entry["pieces"]]
        sources = debian.read_members(archive, {piece["path"] for piece in pieces})
        for piece in pieces:
            check_source(piece, sources[piece["path"]], package)
        for name, entry in entries.items():
            write_flac(out / name, render(name, entry, sources))
    files.write_text(out / MANIFEST, manifest_of(out, sorted(recipe["files"])))


def download_packages(recipe: dict, folder: Path) -> None:
    """Lets ``apt-get`` download every package of ``recipe`` into ``folder``."""
    for package, about in cli.progress(recipe["packages"].items(), label="download"):
        debian.download(package, about["version"], folder)


def check_source(piece: dict, content: bytes, package: str) -> None:
    """Raises ValueError unless ``content`` has the SHA-256 that the recipe gives for it."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != piece["sha256"]:
        raise ValueError(
            f"{package}: {piece['path']} has SHA-256 {digest}, the recipe says {piece['sha256']}"
        )


def render(name: str, entry: dict, sources: dict[str, bytes]) -> np.ndarray:
    """Returns the samples of one output file.

    Args:
        name: Path of the output file, ``speech/...`` or ``noise/...``.
        entry: Its record in the recipe.
        sources: Bytes of the source files by path.

    Returns:
        int16 array [num_samples] at 16 kHz.
    """
    highpass_hz = entry["highpass_hz"]
    pieces = [cut(sources[piece["path"]], piece, highpass_hz) for piece in entry["pieces"]]
    if "seed" in entry:
        signal = lay_out_keys(pieces, entry["duration_s"], entry["seed"])
    else:
        signal = join(pieces)
    fade_edges(signal)
    gain = speech_gain(signal) if name.startswith("speech/") else noise_gain(signal)
    return to_int16(signal * gain)


def cut(content: bytes, piece: dict, highpass_hz: float) -> np.ndarray:
    """Decodes a source and returns the seconds that ``piece`` asks for, mono at 16 kHz."""
    mono = decode(content, highpass_hz)
    return mono[round(piece["start_s"] * SAMPLE_RATE_HZ) : round(piece["end_s"] * SAMPLE_RATE_HZ)]


def differences(built: Path, committed: Path = CORPUS) -> list[str]:
    """Returns the files that two corpus trees do not have in common, byte for byte."""

    def digests(root: Path) -> dict[str, str]:
        paths = [*root.glob("speech/**/*.flac"), *root.glob("noise/**/*.flac"), root / MANIFEST]
        return {
            path.relative_to(root).as_posix(): files.sha256_of(path)
            for path in paths
            if path.is_file()
        }

    ours, theirs = digests(committed), digests(built)
    return [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]


def build(out: Path | None, packages: Path | None, check: bool) -> int:
    """Builds the tree, and compares it with the committed one if asked; returns the exit code."""
    if packages and not packages.is_dir():
        raise ValueError(f"{packages}: not a folder of .deb files")
    recipe = read_recipe()
    with tempfile.TemporaryDirectory() as temporary:
        if not packages:
            packages = Path(temporary, "packages")
            packages.mkdir()
            download_packages(recipe, packages)
        out = out or Path(temporary, "corpus")
        build_corpus(recipe, packages, out)
        print(f"{len(recipe['files'])} files built from {len(recipe['packages'])} packages")
        if not check:
            return 0
        different = differences(out)
    for name in different:
        print(f"differs: {name}", file=sys.stderr)
    print(f"{len(different)} files differ from the committed corpus")
    return 1 if different else 0


def main(argv: list[str] | None = None) -> int:
    """Command line: ``python -m speech.minicorpus.build --out DIR [--packages DIR] [--check]``."""
    parser = argparse.ArgumentParser(
        prog="python -m speech.minicorpus.build",
        description="Build the bundled corpus from Debian packages, bit for bit.",
        **cli.examples(
            "python -m speech.minicorpus.build -o corpus",
            "python -m speech.minicorpus.build --check --packages debs",
        ),
    )
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="write the tree here")
    parser.add_argument(
        "--packages",
        type=Path,
        metavar="DIR",
        help="take the .deb files from this folder; without it apt-get downloads them",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare: with the committed corpus; exit 1 naming what differs",
    )
    arguments = parser.parse_args(argv)
    if not arguments.out and not arguments.check:
        parser.error("give --out DIR, --check, or both")
    return cli.run(lambda: build(**vars(arguments)))


if __name__ == "__main__":
    sys.exit(main())
