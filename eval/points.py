"""A model to score, its labels, and how both are written on a command line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.plots import SYMBOLS

NOISY = "noisy"


@dataclass(frozen=True)
class Point:
    """One model of the grid.

    Attributes:
        name: Unique, usable as the name of a file.
        path: Its model file.
        labels: What it is, such as theta, k, centroids, method; None for a thing not done.

    Raises:
        ValueError: The name cannot be used.
    """

    name: str
    path: Path
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the name."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", self.name) or self.name == NOISY:
            raise ValueError(
                f"{self.name!r:.120} names a model; expected letters, digits and _.+- and "
                f"not {NOISY!r}"
            )

    @property
    def series(self) -> str:
        """Name of the points that are joined with this one: all labels but k."""
        words = []
        for key, value in self.labels.items():
            if key != "k" and value is not None:
                numeric = isinstance(value, int | float)
                symbol = SYMBOLS.get(key, key)
                words.append(f"{symbol} = {value:g}" if numeric else str(value))
        return ", ".join(words) or ("k-means only" if self.labels.get("k") else self.name)


def parse_point(text: str) -> Point:
    """Reads ``NAME=path[,label=value...]``; numbers become numbers, 'none' becomes None.

    Raises:
        ValueError: It has another form.
    """
    name, equals, rest = text.partition("=")
    path, *labels = rest.split(",")
    pairs = [label.partition("=") for label in labels]
    if not (equals and name and path) or any(not key or not sign for key, sign, _ in pairs):
        raise ValueError(f"{text!r} is no NAME=path[,label=value...]")
    return Point(name, Path(path), {key: _value(value) for key, _, value in pairs})


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return text
