"""JSON files as data: one check of the whole shape, before a value is used.

A result file, a journal or the state in a checkpoint may come from anybody. What a kind of file
must hold is said once, as a dataclass; ``msgspec`` compares a file with it and names what does not
fit. Keys that the dataclass does not know are left alone, so newer files stay readable.

``msgspec`` and not ``pydantic``: it has no dependencies, is imported in hundredths of a second
when the first file is read, and takes plain dataclasses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from speech.base import words
from speech.base.lazy import msgspec

T = TypeVar("T")

#: Larger files are refused unread, and so are files with more lists, objects and values than this.
MAX_BYTES = 64 << 20
MAX_PARTS = 2_000_000


class SchemaError(ValueError):
    """The text is no JSON or of another shape; the message says what is wrong, and where."""


def parse(text: str | bytes, kind: type[T]) -> T:
    """Returns JSON text as a value of a type.

    Args:
        text: JSON, UTF-8. NaN and infinities, which Python writes, count as numbers.
        kind: A dataclass, or any type that ``msgspec`` knows, such as ``dict[str, float]``.

    Raises:
        SchemaError: The text is too large, no JSON, or of another shape.
    """
    comma = b"," if isinstance(text, bytes) else ","
    if len(text) > MAX_BYTES or text.count(comma) > MAX_PARTS:  # type: ignore[arg-type]
        raise SchemaError(f"over {MAX_BYTES:,} bytes or {MAX_PARTS:,} values of JSON")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"no JSON: {shown(error)}") from None
    return check(value, kind)


def check(value: Any, kind: type[T]) -> T:
    """Returns parsed JSON as a value of a type; see `parse`."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SchemaError(shown(error)) from None


def read(path: str | os.PathLike, kind: type[T]) -> T:
    """Reads a JSON file as a value of a type.

    Raises:
        OSError: It cannot be read.
        ValueError: As `parse`; the message names the file.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SchemaError(f"over {MAX_BYTES:,} bytes, expected far fewer")
        return parse(path.read_bytes(), kind)
    except SchemaError as error:
        raise ValueError(f"{path}: malformed ({error}); make it again or delete it") from None


def lines(path: str | os.PathLike, kind: type[T], skip: int = 0) -> Iterator[T]:
    """Yields the lines of a journal that are whole; a kill may have cut one, a stranger made one.

    Args:
        path: A file of one JSON value per line.
        kind: Type of each.
        skip: Lines at the top that are something else.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(stream):
            if number < skip:
                continue
            try:
                yield parse(line, kind)
            except SchemaError:
                continue


def shown(error: BaseException) -> str:
    """Returns what an error says in at most 200 characters that any terminal can show."""
    text = str(error) if not isinstance(error, RecursionError) else "nested too deeply"
    text = " ".join(text.split()) or type(error).__name__
    return words.shown(text, 200)
