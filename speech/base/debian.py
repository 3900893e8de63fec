"""Debian packages as a source of sounds: find or download an archive, read files out of it.

Nothing is installed: ``dpkg-deb`` reads the archives and ``apt-get download`` fetches them.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: What the policy of Debian allows: no option of a tool, no folder, no pattern of file names.
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
_VERSION = re.compile(r"([0-9]{1,5}:)?[0-9][A-Za-z0-9.+~-]{0,127}")
_PATH_PART = re.compile(r"[^/\0-\x1f\x7f]{1,255}")
_MAX_PATH = 1024


def check_package(package: object, version: object) -> None:
    """Raises ValueError unless these are the name and the version of a package."""
    for what, value, form, such in (
        ("name", package, _NAME, "etw-data"),
        ("version", version, _VERSION, "4:22.12.3-1"),
    ):
        if not isinstance(value, str) or not form.fullmatch(value):
            raise ValueError(
                f"{value!r:.80} is no {what} of a Debian package; give one such as {such}"
            )


def check_path(path: object) -> None:
    """Raises ValueError unless this is the path of a file inside a package, or a pattern of such.

    It is relative, and every part is a name: no ``..``, no control characters.
    """
    parts = path.split("/") if isinstance(path, str) and len(path) <= _MAX_PATH else [""]
    if any(part in (".", "..") or not _PATH_PART.fullmatch(part) for part in parts):
        raise ValueError(
            f"{path!r:.80} is no path inside a package; give one such as usr/share/games/x.ogg"
        )


def find_archive(package: str, version: str, folder: Path) -> Path:
    """Returns the ``.deb`` file of ``package`` in ``folder``, once its version is checked."""
    check_package(package, version)
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


def download(package: str, version: str, folder: Path) -> None:
    """Lets ``apt-get`` download one package into ``folder``."""
    check_package(package, version)
    run_tool("apt-get", "--quiet", "download", "--", f"{package}={version}", folder=folder)


@contextmanager
def _members(archive: Path) -> Iterator[tarfile.TarFile]:
    """Opens the files inside a ``.deb`` file as a stream.

    Raises:
        ValueError: The archive is broken.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as members:
                yield members
        except tarfile.TarError as error:
            raise ValueError(f"{archive}: not a readable Debian package ({error})") from error
        finally:
            process.kill()


def read_members(archive: Path, paths: set[str]) -> dict[str, bytes]:
    """Returns the bytes of the files ``paths`` inside a ``.deb`` file.

    Raises:
        ValueError: The archive is broken or lacks one of the files.
    """
    found = {}
    with _members(archive) as members:
        for member in members:
            path = member.name.removeprefix("./")
            if path in paths and member.isfile():
                found[path] = _content(members, member)
                if len(found) == len(paths):
                    break
    for path in sorted(paths - found.keys()):
        raise ValueError(f"{archive}: holds no file {path}")
    return found


def unpack(archive: Path, wanted: Callable[[str], bool], folder: Path) -> list[str]:
    """Writes the files of a ``.deb`` file whose path is ``wanted`` below ``folder``.

    Args:
        archive: The ``.deb`` file.
        wanted: Tells by the path, such as ``usr/share/doc/x/copyright``, whether to write a file.
        folder: Where to write; the path inside the archive is kept.

    Returns:
        The paths written, sorted.

    Raises:
        ValueError: The archive is broken, or holds a path that leads out of ``folder``.
    """
    written = []
    with _members(archive) as members:
        for member in members:
            path = member.name.removeprefix("./")
            if not member.isfile() or not wanted(path):
                continue
            if path.startswith("/") or ".." in Path(path).parts:
                raise ValueError(f"{archive}: the path {path} leads out of the package")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_content(members, member))
            written.append(path)
    return sorted(written)


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


def _content(members: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = members.extractfile(member)
    assert stream is not None, "a regular file"
    return stream.read()
