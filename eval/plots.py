"""Pictures, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech.files import atomic_path


def learning_curve(history: Sequence[dict[str, Any]], path: Path, title: str = "") -> None:
    """Draws training and validation error against the epoch.

    Args:
        history: Rows with 'epoch', 'training_loss' and 'validation_loss'.
        path: PNG, SVG or PDF by its ending.
        title: Above the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) < 40 else None
    best = min(history, key=lambda row: row["validation_loss"])
    lowest = f"validation (best {best['validation_loss']:.5f} in epoch {best['epoch']})"
    for key, label in (("training_loss", "training"), ("validation_loss", lowest)):
        axes.plot(epochs, [row[key] for row in history], marker=marker, markersize=3, label=label)
    axes.axvline(best["epoch"], color="0.6", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean squared error")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    axes.set_title(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
