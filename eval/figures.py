"""Pictures for a page: the same drawing for light and dark, for wide and narrow screens."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speech.base.lazy import matplotlib

_SIZES = {"wide": (7.2, 4.4), "narrow": (4.4, 4.4)}
_INKS = {"light": ("#1c2430", "#c9d1db", "#ffffff"), "dark": ("#e4e9f0", "#465060", "#171c24")}

#: Black lines of ``eval.plots.COLORS``, which a dark page would swallow.
_BLACK, _ON_DARK = "#000000", "#f2f2f2"


@dataclass(frozen=True)
class Picture:
    """One drawing.

    Attributes:
        sources: data: URI by (width, theme): 'wide' or 'narrow', 'light' or 'dark'.
        alt: What is seen, in words.
        caption: Below the picture.
    """

    sources: dict[tuple[str, str], str]
    alt: str
    caption: str

    @property
    def num_bytes(self) -> int:
        """Of all sources."""
        return sum(map(len, self.sources.values()))


def picture(draw: Callable[[], matplotlib.figure.Figure], alt: str, caption: str) -> Picture:
    """Draws four times.

    Args:
        draw: Returns the figure, in the colours that matplotlib's settings say.
        alt: See `Picture`.
        caption: See `Picture`.
    """
    sources = {
        (width, theme): data_uri(_svg(draw, size, theme), "image/svg+xml")
        for width, size in _SIZES.items()
        for theme in _INKS
    }
    return Picture(sources, alt, caption)


def data_uri(content: bytes, kind: str) -> str:
    """Returns a file as a data: URI.

    Args:
        content: Its bytes.
        kind: Its media type.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def plain(text: str) -> str:
    """Returns text that matplotlib draws as it is: no formulas, not hidden from the legend."""
    text = text.replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def _svg(
    draw: Callable[[], matplotlib.figure.Figure], size: tuple[float, float], theme: str
) -> bytes:
    ink, grid, ground = _INKS[theme]
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(names, ink) | {
        "grid.color": grid,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.facecolor": ground,
        "legend.edgecolor": grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "report",
    }
    with matplotlib.rc_context(settings):
        figure = draw()
        figure.set_size_inches(size)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return (text.replace(_BLACK, _ON_DARK) if theme == "dark" else text).encode()
