"""Tables of a page, as cells that a template only has to write down.

A cell holds the text, the number to sort by, and what is written small beside it. A score is marked
where no other system of the same group is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.metrics import METRICS
from eval.runfiles import Run
from eval.scoring import NOISY, OVERALL, format_snr
from eval.testsets import MAIN_METRICS, TestSet, name_of

#: Digits after the point, by unit.
_DIGITS = {"MOS": 3, "dB": 2, "": 3}

NONE = "–"


@dataclass
class Cell:
    """One cell.

    Attributes:
        text: What is written.
        value: Number to sort by; None to sort by the text.
        note: Written small beside it.
        mark: Whether it is the best of its group.
    """

    text: str
    value: float | None = None
    note: str = ""
    mark: bool = False


@dataclass
class Table:
    """A table; the first column names the row.

    Attributes:
        caption: What it shows.
        columns: (heading, explanation, whether it holds numbers).
        rows: Cells in the order of the columns.
        note: Below it.
    """

    caption: str
    columns: list[tuple[str, str, bool]]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""


def number(value: float | None, digits: int = 3, sign: bool = False, note: str = "") -> Cell:
    """Returns a cell with a number, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return Cell(NONE)
    return Cell(minus(f"{value:{'+' if sign else ''},.{digits}f}"), float(value), note)


def minus(text: str) -> str:
    """Returns a number with the sign that type-setters use."""
    return text.replace("-", "−")


def size_text(num_bytes: float) -> str:
    """Returns a size in bytes for people."""
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:.2f} MB"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes >= 1e3 else f"{num_bytes:.0f} B"


def metric_label(name: str) -> str:
    """Returns the heading of a metric."""
    metric = METRICS[name]
    return f"{metric.label}, dB" if metric.unit == "dB" else metric.label


def _explained(name: str) -> str:
    return "higher is better" if METRICS[name].higher_is_better else "lower is better"


def scores_table(own: TestSet) -> Table:
    """Returns one row per system: its size, the mean of every metric, its labels, and n."""
    systems = {system.label: system for _, system in own.systems}
    groups = {g["system"]: g for g in own.summary if g["noise"] == g["snr_db"] == OVERALL}
    table = Table("Mean ± standard deviation over the files", [("system", "", False)])
    table.rows = [[Cell(label)] for label in groups]

    def add(column: tuple[str, str, bool], cells: Sequence[Cell]) -> None:
        table.columns.append(column)
        for row, cell in zip(table.rows, cells, strict=True):
            row.append(cell)

    def add_metric(name: str) -> None:
        cells = [_score(group, name) for group in groups.values()]
        _mark_best([c for c, label in zip(cells, groups, strict=True) if label != NOISY], name)
        add((metric_label(name), _explained(name), True), cells)

    known = [systems.get(label) for label in groups]
    if any(system and system.num_bytes for system in known):
        sizes = [system.num_bytes if system else None for system in known]
        cells = [Cell(size_text(size), float(size)) if size else Cell(NONE) for size in sizes]
        add(("file", "size of the model file", True), cells)
    # What is looked at first comes first: a phone shows a few columns at a time.
    for name in own.metrics:
        if name in MAIN_METRICS:
            add_metric(name)
    for key in dict.fromkeys(key for system in systems.values() for key in system.labels):
        values = [system.labels.get(key) if system else None for system in known]
        add((key, "", any(map(_is_number, values))), list(map(_label_cell, values)))
    counts = [number(group["n"], 0) for group in groups.values()]
    add(("n", "files that have every score", True), counts)
    for name in own.metrics:
        if name not in MAIN_METRICS:
            add_metric(name)
    left_out = max((group["unscored"] for group in groups.values()), default=0)
    if left_out:
        files = "1 file" if left_out == 1 else f"{left_out} files"
        table.note = f"{files} could not be scored; no mean has them."
    return table


def conditions_table(own: TestSet) -> Table:
    """Returns a row for each noise, SNR and system."""
    metrics = own.metrics
    columns = [("noise", "", False), ("SNR, dB", "", True), ("system", "", False), ("n", "", True)]
    columns += [(metric_label(name), _explained(name), True) for name in metrics]
    table = Table("By noise and SNR", columns)
    order: dict[tuple[str, str], int] = {}
    for group in own.summary:
        order.setdefault((group["noise"], format_snr(group["snr_db"])), len(order))
    for group in sorted(own.summary, key=lambda g: order[g["noise"], format_snr(g["snr_db"])]):
        snr = group["snr_db"]
        value = None if isinstance(snr, str) or math.isnan(snr) else float(snr)
        text = "unknown" if not isinstance(snr, str) and math.isnan(snr) else format_snr(snr)
        cells = [
            Cell(group["noise"]), Cell(minus(text), value), Cell(group["system"]),
            number(group["n"], 0),
        ]  # fmt: skip
        table.rows.append(cells + [_score(group, name) for name in metrics])
    return table


def differences_table(own: TestSet) -> Table | None:
    """Returns the paired differences to the noisy files; None where there are none."""
    if not own.differences:
        return None
    columns = [("system", "", False), ("metric", "", False), ("n", "", True)]
    columns += [
        ("difference", "mean over the files", True),
        ("from", "lower end of the 95 % bootstrap interval", True),
        ("to", "upper end of the 95 % bootstrap interval", True),
        ("p", "Wilcoxon's signed-rank test", True),
    ]
    table = Table("Difference to the noisy files, paired, with 95 % intervals", columns)
    for row in own.differences:
        p = number(row["wilcoxon_p"])
        if p.value is not None and p.value < 0.001:
            p.text = "< 0.001"
        cells = [Cell(row["system"]), Cell(metric_label(row["metric"])), number(row["n"], 0)]
        cells += [number(row[key], sign=True) for key in ("difference", "low", "high")]
        table.rows.append([*cells, p])
    return table


def picks_table(run: Run) -> Table:
    """Returns how often each expert was chosen."""
    table = Table("Picks", [("expert", "", False), ("chosen", "files", True)])
    picks = run.info["picks"]
    if isinstance(picks, dict):
        table.rows = [[Cell(str(name)), _any(count)] for name, count in picks.items()]
    return table


def selection_table(run: Run, max_rows: int) -> Table:
    """Returns every expert's error for every file, and the pick."""
    files = run.info["files"]
    names = list(dict.fromkeys(name for row in files for name in row["scores"]))
    columns = [("file", "", False), *((str(name), error_words(run), True) for name in names)]
    columns.append(("pick", "", False))
    table = Table(f"Error of every expert, {error_words(run)}", columns)
    for row in files[:max_rows]:
        cells = [Cell(name_of(row["input"]))]
        for name in names:
            cell = error_cell(row["scores"].get(name))
            cell.mark = name == row.get("pick")
            cells.append(cell)
        table.rows.append([*cells, Cell(pick_text(row))])
    if len(files) > max_rows:
        table.note = f"{len(files) - max_rows:,} more files stand in the JSON file."
    return table


def error_words(run: Run) -> str:
    """Returns how the scores of a selection are to be read."""
    which = f"{run.info.get('metric', '')} {run.info.get('scoring', '')}".strip()
    wins = "largest wins" if run.info.get("metric") == "snr" else "smallest wins"
    return f"{which}: {wins}"


def error_cell(value: Any) -> Cell:
    """Returns a score of an expert: four digits, whatever its magnitude."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return Cell(NONE)
    digits = 0 if abs(value) >= 1000 else 2 if abs(value) >= 10 else 4
    return number(float(value), digits)


def pick_text(row: Mapping[str, Any]) -> str:
    """Returns what was picked of a file, segment by segment where picks differ."""
    segments = [part for part in row.get("segments") or [] if isinstance(part, dict)]
    if len({part.get("pick") for part in segments}) < 2:
        return str(row.get("pick", ""))
    return ", ".join(f"{part.get('start_s', 0):g} s {part.get('pick')}" for part in segments)


def experiment_tables(run: Run) -> list[Table]:
    """Returns the tables of ``mnn.experiments``: ours, the published ones, the confusion."""
    tables = []
    lines = [line for line in run.info.get("table") or [] if isinstance(line, dict)]
    for metric in dict.fromkeys(str(line.get("metric")) for line in lines):
        own = [line for line in lines if str(line.get("metric")) == metric]
        skipped = ("metric", "condition", "n", "unscored")
        keys = [k for k, v in own[0].items() if k not in skipped and _is_number(v)]
        label = metric_label(metric) if metric in METRICS else metric
        columns = [("test", "", False), ("n", "", True), *((key, "", True) for key in keys)]
        table = Table(f"{label}: experts, chance, selections, oracle", columns)
        for line in own:
            cells = [Cell(str(line.get("condition"))), _any(line.get("n"))]
            table.rows.append(cells + [_any(line.get(key)) for key in keys])
        tables += [table, *_published(run, metric, label)]
    confusions = run.info.get("confusion")
    for which, counts in confusions.items() if isinstance(confusions, dict) else ():
        names = [str(name) for name in run.info.get("experts") or []]
        table = Table(
            f"Pick against oracle: {which}",
            [("oracle", "", False), *((f"picked {name}", "", True) for name in names)],
        )
        table.rows = [
            [Cell(name), *map(_any, own)] for name, own in zip(names, counts, strict=False)
        ]
        tables.append(table)
    return tables


def _published(run: Run, metric: str, label: str) -> list[Table]:
    published = run.info.get("published")
    paper = published.get(metric) if isinstance(published, dict) else None
    if not isinstance(paper, dict) or not isinstance(paper.get("rows"), dict):
        return []
    names = [*(paper.get("experts") or []), *(paper.get("columns") or [])]
    table = Table(
        f"{label}, as published", [("test", "", False), *((str(n), "", True) for n in names)]
    )
    for name, values in paper["rows"].items():
        cells = [_any(value) for value in values[: len(names)]]
        cells += [Cell(NONE)] * (len(names) - len(cells))
        table.rows.append([Cell(str(name)), *cells])
    return [table]


def _score(group: Mapping[str, Any], name: str) -> Cell:
    if name not in group:
        return Cell(NONE)
    digits = _DIGITS[METRICS[name].unit]
    cell = number(group[name], digits)
    spread = group.get(f"{name}_std", math.nan)
    if cell.value is not None and math.isfinite(spread):
        cell.note = f"± {spread:.{digits}f}"
    return cell


def _mark_best(cells: Sequence[Cell], metric: str) -> None:
    values = [cell.value for cell in cells if cell.value is not None]
    if len(values) > 1:
        best = max(values) if METRICS[metric].higher_is_better else min(values)
        for cell in cells:
            cell.mark = cell.value == best


def _label_cell(value: Any) -> Cell:
    if _is_number(value):
        return Cell(f"{value:g}", float(value))
    return Cell(NONE if value is None else str(value))


def _any(value: Any) -> Cell:
    if not _is_number(value):
        return Cell(NONE)
    return number(float(value), 0 if isinstance(value, int) else 3)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
