"""The part of the results page about the readings of eq. (10)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import table
from benchmarks.eq10 import (
    EQ_11,
    EXPLAINED,
    LITERAL,
    distance,
    published_recoveries,
)
from benchmarks.reproduce.mnn_tables import heading
from benchmarks.reproduce.raw import Row, read_csv, read_json
from benchmarks.reproduce.steps import EXPERIMENTS
from benchmarks.reproduce.text import interval, number

#: Selections of the tests of section 'mnn' -> the published column beside them.
ON_TESTS = {
    f"{metric} {scoring} {net}": f"{metric} {net}"
    for net in ("128", "2048x2")
    for metric, scoring in (("snr", "paper"), ("ae", "paper"), ("ae", "level"))
}


def render(results: Path) -> list[str]:
    """Returns the section of the readings of eq. (10).

    Args:
        results: Folder of its raw files; those of section 'mnn' lie beside it.
    """
    found = read_json(results / "eq10.json")
    rows = {row["name"]: row for row in found["table"]}
    literal, explained = rows[LITERAL.name], rows[EXPLAINED.name]
    alike = found["likeness"]
    parts = [
        f"All {len(rows)} rows judge the same estimates of the shipped experts. They are of "
        f"{sum(found['mixtures'])} mixtures of training voices and training parts of the noises, "
        "and nothing here is chosen on test data. A reading is what the autoencoder hears, which "
        "autoencoder it is, and how its error is counted. Recovery in SDR is in percent; the "
        "distance is the root mean square, over the eight tests, of recovery minus the published "
        "one. The choice of these mixtures alone makes a distance of "
        f"{number(explained['sampling'], 0)} points (the deviation of recovery when mixtures are "
        "drawn anew).",
        "### The literal reading, and each estimate at its own level",
        _pattern(rows, found),
        f"- Literal eq. 10 is {number(literal['distance_sdr'], 0)} points"
        f"{_ends(literal, 'distance')} from the published eq. 10, and with each estimate at its "
        f"own level it is {number(explained['distance_sdr'], 0)} points"
        f"{_ends(explained, 'distance')}.\n"
        f"- In the paper eq. 10 and eq. 11 choose nearly alike: {number(alike['published'], 0)} "
        "points lie between their recoveries. Here it is "
        f"{number(alike['literal'], 0)} points for the literal eq. 10, and "
        f"{number(alike['explained'], 0)} points with each estimate at its own level.",
        "### All readings",
        _all(found),
    ]
    tests = results.parent / "mnn"
    if all((tests / f"{name}_recovery.csv").exists() for name in EXPERIMENTS):
        parts += ["### On the tests of section (c)", _on_tests(tests)]
    return parts


def _ends(row: Row, key: str) -> str:
    return interval(row[f"{key}_low"], row[f"{key}_high"], 0, "")


def _numbers(values: Sequence[float] | np.ndarray) -> list[str]:
    return [number(float(value), 0) for value in values]


def _pattern(rows: dict[str, Row], found: Row) -> str:
    lines = [["mixtures", "", *map(str, found["mixtures"]), str(sum(found["mixtures"])), ""]]
    for equation, column, names in (
        ("eq. 11", "snr 128", {"ours": EQ_11}),
        ("eq. 10", "ae 128", {"ours, literal": LITERAL.name, "ours, own level": EXPLAINED.name}),
    ):
        paper = published_recoveries("sdr", column)
        lines.append([equation, "published", *_numbers([*paper, paper.mean()]), ""])
        for of, name in names.items():
            row = rows[name]
            cells = [*_numbers(row["sdr"]), number(row["mean"], 0) + _ends(row, "mean")]
            lines.append([equation, of, *cells, number(row["distance_sdr"], 0)])
    return table(["DAE_128", "of", *found["tests"], "mean", "distance"], lines)


def _all(found: Row) -> str:
    lines = []
    for row in sorted(found["table"], key=lambda row: (row["distance_sdr"], row["name"])):
        name = row["name"]
        words = [name, "", ""] if name == EQ_11 else name.split("; ")
        if name in (LITERAL.name, EXPLAINED.name):
            words = [f"**{word}**" for word in words]
        lines.append(
            [*words, *_numbers(row["sdr"]), number(row["mean"], 0),
             number(row["distance_sdr"], 0) + _ends(row, "distance"),
             number(row["distance_stoi"], 0)]
        )  # fmt: skip
    header = ["autoencoder", "hears", "error", *found["tests"], "mean", "distance",
              "distance in STOI"]  # fmt: skip
    return table(header, lines)


def _on_tests(tests: Path) -> str:
    rows = [row for name in EXPERIMENTS for row in read_csv(tests / f"{name}_recovery.csv")
            if row["metric"] == "sdr"]  # fmt: skip
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    lines = []
    for which, column in ON_TESTS.items():
        paper = published_recoveries("sdr", column)
        own = {row["condition"]: row for row in rows if row["selection"] == which}
        values = 100 * np.array([own[condition]["recovery"] for condition in conditions])
        if " paper " in which:
            cells = [*_numbers([*paper, paper.mean()]), ""]
            lines.append([f"{heading(which)}, published", *cells])
        cells = [*_numbers([*values, values.mean()])]
        lines.append([heading(which), *cells, number(float(distance(values, paper)), 0)])
    return table(["selection, recovery in %", *conditions, "mean", "distance"], lines)
