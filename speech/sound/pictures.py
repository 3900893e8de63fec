"""Pictures, drawn without a display: spectrograms without axes, and the curve of a training."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.base.files import atomic_path
from speech.base.lazy import PIL, matplotlib

#: Those of Okabe and Ito, which the colour-blind tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

_NUM_COLORS = 64


def level_png(levels_db: np.ndarray, top_db: float, range_db: float) -> bytes:
    """Returns levels in time and frequency as a PNG: time to the right, frequency upwards.

    Args:
        levels_db: float [num_frames, num_bands].
        top_db: Level of the brightest colour.
        range_db: From there down to black.
    """
    share = np.clip((levels_db - top_db) / range_db + 1, 0, 1)
    indices = np.round(share.T[::-1] * (_NUM_COLORS - 1)).astype(np.uint8)
    colors = matplotlib.colormaps["magma"](np.linspace(0, 1, _NUM_COLORS), bytes=True)[:, :3]
    image = PIL.Image.fromarray(indices, "L")
    image.putpalette(colors.tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def learning_curve(
    history: Sequence[dict[str, Any]],
    path: Path | None = None,
    title: str = "",
    loss: str = "mean squared error",
) -> matplotlib.figure.Figure:
    """Draws training and validation error against the epoch, or against the hours of training.

    The axis is logarithmic unless an error is not positive, as SI-SDR is not.

    Args:
        history: Rows with 'epoch' or 'hours', 'training_loss' and 'validation_loss'.
        path: Where to write it.
        title: Above the picture.
        loss: What the errors are.
    """
    figure, axes = new_figure(7, 4.2)
    unit = "hours" if "hours" in history[0] else "epoch"
    places = [row[unit] for row in history]
    marker = "o" if len(places) < 40 else None
    best = min(history, key=lambda row: row["validation_loss"])
    where = f"after {best['hours']:.3g} hours" if unit == "hours" else f"in epoch {best['epoch']}"
    lowest = f"validation (best {best['validation_loss']:.5f} {where})"
    for key, label, color in zip(
        ("training_loss", "validation_loss"), ("training", lowest), COLORS, strict=False
    ):
        values = [row[key] for row in history]
        axes.plot(places, values, marker=marker, markersize=3, label=label, color=color)
    axes.axvline(best[unit], color="0.6", linestyle=":", linewidth=1)
    if all(row[key] > 0 for row in history for key in ("training_loss", "validation_loss")):
        axes.set_yscale("log")
        for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            set_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
    axes.set_xlabel("hours of training" if unit == "hours" else "epoch")
    axes.set_ylabel(loss)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=unit == "epoch"))
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    axes.set_title(title)
    return written(figure, path)


def new_figure(width: float, height: float, ncols: int = 1) -> tuple[matplotlib.figure.Figure, Any]:
    """Returns a figure of a size in inches and its axes, one or several side by side."""
    # Not pyplot: no display, no global state, nothing to close.
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(ncols=ncols, sharey=ncols > 1)
    return figure, axes


def written(figure: matplotlib.figure.Figure, path: Path | None) -> matplotlib.figure.Figure:
    """Writes a figure, if there is a path, and returns it.

    Args:
        figure: Of `new_figure`.
        path: PNG, SVG or PDF by the ending; without one, PNG and SVG both.
    """
    if path is None:
        return figure
    path = Path(path)
    # Matplotlib before 3.11 lays a figure out a little differently the second time: SVG first.
    targets = [path] if path.suffix else [path.with_suffix(".svg"), path.with_suffix(".png")]
    for target in targets:
        # The same data give the same bytes: no date, no random ids in an SVG.
        metadata = {"Date": None} if target.suffix == ".svg" else None
        with atomic_path(target) as temporary, matplotlib.rc_context({"svg.hashsalt": "eval"}):
            figure.savefig(temporary, dpi=130, metadata=metadata)
    return figure
