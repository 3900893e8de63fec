"""Checkpoints: the state of a run in one file, lists of arrays beside one JSON object.

The file is an uncompressed ``.npz``. Array 3 of the list 'weight' is named ``weight_3``; the array
``state`` holds the bytes of the JSON. It is written to a temporary name and renamed, so a kill
leaves the one before. A checkpoint may come from anybody: nothing in it is unpickled, its arrays
take no more memory than the file has bytes, and its JSON is compared with a dataclass.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import numpy as np

from speech.base import schema
from speech.base.files import atomic_path

T = TypeVar("T")


class CheckpointError(ValueError):
    """The file is no readable checkpoint; the message names it and says what to do."""


def write_checkpoint(
    path: str | os.PathLike, arrays: Mapping[str, Sequence[np.ndarray]], state: Mapping[str, Any]
) -> None:
    """Writes a checkpoint atomically.

    Args:
        path: The file, which must end in ``.npz``.
        arrays: Lists of numeric arrays by name.
        state: What else there is to know, as JSON values; NaN and infinities are allowed.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(checkpoint_bytes(arrays, state))


def checkpoint_bytes(arrays: Mapping[str, Sequence[np.ndarray]], state: Mapping[str, Any]) -> bytes:
    """Returns the content of a checkpoint; see `write_checkpoint`."""
    named = {
        f"{name}_{i}": array for name, found in arrays.items() for i, array in enumerate(found)
    }
    return _npz({**named, "state": np.frombuffer(json.dumps(state).encode(), np.uint8)})


def read_checkpoint(
    path: str | os.PathLike | BinaryIO, kind: type[T]
) -> tuple[dict[str, list[np.ndarray]], T]:
    """Reads a checkpoint.

    Args:
        path: The file, or a stream of it that can be searched.
        kind: A dataclass that the JSON must fit (`speech.base.schema`); it may check itself.

    Returns:
        The lists of arrays by name, and the JSON. A list that was empty is missing.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or is of another shape.
    """
    try:
        named = read_npz(path)
        if "state" not in named:
            raise ValueError("it holds no state of a run")
        state = schema.parse(named.pop("state").tobytes(), kind)
        arrays: dict[str, list[np.ndarray]] = {}
        for name in sorted(named, key=_place):
            prefix, index = _place(name)
            if index != len(arrays.setdefault(prefix, [])):
                raise ValueError(f"it lacks {prefix}_{len(arrays[prefix])}")
            arrays[prefix].append(named[name])
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({schema.shown(error)}); delete it to start anew"
        ) from None
    return arrays, state


def _place(name: str) -> tuple[str, int]:
    prefix, _, index = name.rpartition("_")
    if not prefix or not index.isdecimal():
        raise ValueError(f"it holds {name!r:.60}")
    return prefix, int(index)


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()  # to a full disk, older NumPy would leave its archive open
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def write_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays to ``path``, which must end in ``.npz``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(_npz(arrays))


def read_npz(path: str | os.PathLike | BinaryIO) -> dict[str, np.ndarray]:
    """Returns the named arrays of a file of `write_npz`, a file of any origin being data.

    Nothing is unpickled or decompressed, and no memory is asked for that the file does not fill:
    `write_npz` compresses nothing.

    Args:
        path: The file, or a stream of it that can be searched.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such file, damaged, or compressed; the message does not name it.
    """
    with contextlib.ExitStack() as stack:
        stream: BinaryIO
        if isinstance(path, str | os.PathLike):
            stream = stack.enter_context(open(path, "rb"))
        else:
            stream = path
        num_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        try:
            with zipfile.ZipFile(stream) as archive:
                members = archive.infolist()
                if sum(member.file_size for member in members) > num_bytes:
                    raise ValueError("its arrays take more bytes than the file has")
                return {_array_name(member): _stored(archive, member) for member in members}
        except (
            EOFError, LookupError, RuntimeError, TypeError, SyntaxError, MemoryError, struct.error,
            zipfile.BadZipFile,
        ) as error:  # fmt: skip
            raise ValueError(str(error) or type(error).__name__) from None


def _array_name(member: zipfile.ZipInfo) -> str:
    if member.compress_type != zipfile.ZIP_STORED or not member.filename.endswith(".npy"):
        raise ValueError(f"{member.filename!r:.60} is no plain array")
    return member.filename.removesuffix(".npy")


def _stored(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Returns an array of numbers whose header agrees with what is there."""
    data = archive.read(member)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{member.filename!r:.60} is an array of format {version}")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    left = data[stream.tell() :]
    if dtype.kind not in "biufc" or dtype.itemsize * math.prod(shape) != len(left):
        raise ValueError(f"{member.filename!r:.60} is no array of numbers, or is damaged")
    array = np.frombuffer(left, dtype).reshape(shape, order="F" if is_fortran else "C")
    return array.copy()
