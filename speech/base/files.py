"""Files that are whole or absent: every result is written beside its target and renamed.

A reader, or the same command run again after a kill, therefore never meets half a file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech.base.cli import means_no_room
from speech.base.lazy import filelock


def _current_umask() -> int:
    """Returns the umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


#: Read once: setting it, however briefly, would reach other threads' files.
_UMASK = _current_umask()

#: Of files that a run holds.
FILE_ENDINGS = (".h5", ".icse", ".json", ".npz")

#: A temporary file that nobody has written to for so long is left over, whoever began it.
LEFT_OVER_SECONDS = 24 * 3600.0

#: Temporary names hold the machine and the process that write: '.model.1f2e3d-4711-abcdefgh.h5'.
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{6})-(\d+)-[a-z0-9_]{8}(\.[^.]*)?")


@functools.cache
def _machine() -> str:
    """Returns six digits that stand for this machine, or this container's processes."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return hashlib.sha256(f"{platform.node()} {processes}".encode()).hexdigest()[:6]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, *, suffix: str | None = None) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it to ``path`` if the block succeeds.

    Args:
        path: The file to write. Missing parent folders are made.
        suffix: Ending of the temporary name; by default the one of ``path``, so that writers
            which choose a format by the ending choose the right one.

    Yields:
        The temporary path to write to. It is removed if the block raises.

    Raises:
        ValueError: There is something of that name that is no file; a device would be replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is a folder or a device, not a file; choose another name")
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem[:40]}.{_machine()}-{os.getpid()}-",
            suffix=path.suffix if suffix is None else suffix,
            dir=path.parent,
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        with _naming(path):
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives the error of a full disk the name that writing to an open file leaves out."""
    try:
        yield
    except OSError as error:
        if means_no_room(error) and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
        raise


def remove_leftovers(folder: str | os.PathLike, *, below: bool = False) -> int:
    """Removes temporary files of `atomic_path` whose writer was killed.

    Files of a process that still runs are kept, and so are recent files of other machines.

    Args:
        folder: Where to look.
        below: In all folders below as well.

    Returns:
        How many were removed.
    """
    num_removed = 0
    for parent, folders, names in os.walk(os.fspath(folder)):
        if not below:
            folders.clear()
        for name in names:
            found = _TEMPORARY.fullmatch(name)
            if found and _is_left_over(Path(parent, name), found[1], int(found[2])):
                with contextlib.suppress(OSError):
                    Path(parent, name).unlink()
                    num_removed += 1
    return num_removed


def _is_left_over(path: Path, machine: str, process: int) -> bool:
    if machine == _machine() and os.name == "posix":
        try:
            os.kill(process, 0)  # sends nothing
        except ProcessLookupError:
            return True
        except OSError:
            return False
    try:
        return time.time() - path.stat().st_mtime > LEFT_OVER_SECONDS
    except OSError:
        return False


@contextlib.contextmanager
def held(path: str | os.PathLike) -> Iterator[None]:
    """Holds what a run writes against a second run; a killed one holds nothing.

    What killed runs left half written there is removed (`remove_leftovers`).

    Args:
        path: The folder of the run, or the file that it writes: a name with one of the endings of
            `FILE_ENDINGS`. A hidden lock file stays there, unless nothing was written.

    Raises:
        ValueError: Another run is at work there.
    """
    path = Path(path)
    # Not any ending: a folder may be called 'fcn.k16', and is not there in the beginning.
    is_file = path.suffix in FILE_ENDINGS and not path.is_dir()
    folder = path.parent if is_file else path
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock_path = folder / (f".{path.name}.lock" if is_file else ".lock")
    _check_no_link(lock_path)
    # Since version 3.20.1 it follows no link itself, whatever happens in between.
    lock = filelock.FileLock(lock_path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ValueError(
            f"{path}: another run is at work there; wait for its end, or choose another place"
        ) from None
    try:
        remove_leftovers(folder, below=not is_file)
        yield
    finally:
        with contextlib.suppress(OSError):
            if is_new and [*folder.iterdir()] == [lock_path]:
                lock_path.unlink()
                folder.rmdir()
        lock.release()


def _check_no_link(path: Path) -> None:
    """Raises ValueError for a link, behind which a file of somebody else's would be changed."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(
            f"{path}: is a link, a folder or a device, where a file of ours is expected; remove "
            "it, or choose another place"
        )


def raise_if_full(temporary: str | os.PathLike, path: str | os.PathLike) -> None:
    """Raises the system's own error if a file can't grow any more, and returns if it can.

    For libraries that say no more than that a write failed.

    Args:
        temporary: What could not be written, still as large as it got; it grows.
        path: The file to name in the error.

    Raises:
        OSError: The disk is full, or a limit on the size of files is reached.
    """
    try:
        with open(temporary, "ab") as stream:
            stream.write(bytes(1 << 16))
            os.fsync(stream.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def end_line(path: str | os.PathLike) -> None:
    """Ends the last line of a file to append to, which a kill may have cut; leaves no file be.

    Raises:
        ValueError: It is a link.
    """
    _check_no_link(Path(path))
    with contextlib.suppress(FileNotFoundError), open(path, "r+b") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def append_text(path: str | os.PathLike, text: str) -> None:
    """Adds ``text`` as UTF-8 to the end of a file, which a kill in the middle can cut.

    Bytes of a name that are no text are written as escapes.

    Raises:
        ValueError: It is a link.
    """
    path = Path(path)
    _check_no_link(path)
    with _naming(path), path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` as UTF-8 to ``path``, whole or not at all; see `append_text`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` as indented, strict JSON (no NaN or Infinity) to ``path``, atomically.

    Raises:
        ValueError: ``value`` holds a NaN or an infinity; give None instead.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def strict_json(value: Any) -> Any:
    """Returns plain values with NaN and infinities as None, as strict JSON needs."""
    if isinstance(value, dict):
        return {key: strict_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strict_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_of(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
