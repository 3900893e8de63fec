"""Draws the figures of the results page from the raw files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reproduce.raw import Row, read_csv, read_json
from benchmarks.reproduce.steps import CONTROLS, K_MAIN

METRIC = "pesq_wb"
#: Of the grid, in the figure that also shows the controls.
FORMAT = "fp16"


def draw_all(results: Path) -> None:
    """Draws what there are raw files for.

    Args:
        results: Folder of the sections' raw files; figures go beside them.
    """
    grid = results / "grid"
    if (grid / "sweep.csv").exists() and (grid / "controls.csv").exists():
        _draw_grid(grid)
    use = results / "use" / "open.json"
    if use.exists():
        _draw_use(use)


def _draw_use(path: Path) -> None:
    from benchmarks.quality import draw

    found = read_json(path)
    systems = {
        name: system
        for name, system in found["systems"].items()
        if all(system["groups"]["all"][m]["gain_ci95"] is not None for m in ("pesq_wb", "stoi"))
    }
    draw(systems, path.with_suffix(".png"), found["test_set"])


def _draw_grid(folder: Path) -> None:
    from eval.plots import score_against_size

    sweep, controls = read_csv(folder / "sweep.csv")[1:], read_csv(folder / "controls.csv")[1:]
    base = sweep[0]
    title = f"n = {base['n']:.0f}; bars: 95 % interval of the difference to the baseline"
    size = f"file size (% of the baseline's {base['file_bytes']:,.0f} bytes)"
    formats = {row["centroids"] for row in sweep if isinstance(row["centroids"], str)}
    kept = FORMAT if FORMAT in formats else min(formats, default="")
    # Lines of one theta lie close together: k stands beside those of one format only.
    points = [
        _point(row if row["centroids"] == kept else {**row, "k": math.nan}, base, _series(row))
        for row in sweep
        if row["centroids"] in formats
    ]
    if points:
        path = folder / "pesq_wb_by_file_size.png"
        score_against_size(points, METRIC, path, title, size_label=size)
    both = [
        _point(row, base, _series({**row, "centroids": math.nan}))
        for row in sweep
        if row["centroids"] == kept or row["centroids"] not in formats
    ]
    # By the paper's rule all formats have the same size.
    score_against_size(
        both, METRIC, folder / "pesq_wb_by_paper_size.png", title, size="paper_size_percent",
        size_label="size by the paper's rule (% of the baseline's parameters in FP32)",
        published=True,
    )  # fmt: skip
    for row in controls:
        name = row["name"].removesuffix(f"-k{K_MAIN}")
        if name in CONTROLS:
            both.append(_point(row, base, CONTROLS[name]))
    score_against_size(both, METRIC, folder / "controls.png", title, size_label=size)


def _series(row: Row) -> str:
    words = [f"theta {row['theta']:.2f}" if math.isfinite(row["theta"]) else "not pruned"]
    if isinstance(row["centroids"], str):
        words.append(row["centroids"])
    return ", ".join(words)


def _point(row: Row, base: Row, series: str) -> Row:
    labels = {"k": row["k"]} if math.isfinite(row.get("k", math.nan)) else {}
    ends: Sequence[str] = ("low", "high")
    return {
        "series": series,
        "file_percent": 100 * row["file_bytes"] / base["file_bytes"],
        "paper_size_percent": row["paper_size_percent"],
        METRIC: row[METRIC],
        **labels,
        **{f"{METRIC}_{end}": base[METRIC] + row[f"{METRIC}_diff_{end}"] for end in ends},
    }
