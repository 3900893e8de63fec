"""Scores pairs of files in parallel and averages them by noise and SNR."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics import METRICS, OK

OVERALL = "all"


@dataclass(frozen=True)
class Task:
    """One file to score.

    Attributes:
        system: Name of what made the file, such as 'noisy' or 'enhanced'.
        estimate: The file.
        reference: Its clean file.
        noise: Kind of noise.
        snr_db: In dB, NaN where unknown.
        name: Name in the tables.
    """

    system: str
    estimate: Path
    reference: Path
    noise: str
    snr_db: float
    name: str


def score(task: Task) -> dict[str, Any]:
    """Returns a row: the task's names, each metric's value and one status.

    A file that cannot be read is a row of NaN with the reason.
    """
    from speech.audio import read_audio
    from speech.cli import one_line

    row: dict[str, Any] = {
        "system": task.system,
        "noise": task.noise,
        "snr_db": math.nan if math.isnan(task.snr_db) else task.snr_db,
        "name": task.name,
    }
    try:
        reference = read_audio(task.reference).samples.astype(np.float64)
        estimate = read_audio(task.estimate).samples.astype(np.float64)
        scores = {name: metric(reference, estimate) for name, metric in METRICS.items()}
    except ValueError as error:
        return row | dict.fromkeys(METRICS, math.nan) | {"status": one_line(error)}
    reasons = sorted({score.status for score in scores.values() if score.status != OK})
    return (
        row
        | {name: score.value for name, score in scores.items()}
        | {"status": "; ".join(reasons) or OK}
    )


def score_all(tasks: Sequence[Task], num_jobs: int = -1) -> list[dict[str, Any]]:
    """Scores every task, in parallel, in order.

    Args:
        tasks: What to score.
        num_jobs: Processes; -1 for one a core.
    """
    import joblib

    from speech.cli import progress

    jobs = joblib.Parallel(n_jobs=num_jobs, return_as="generator")
    results = jobs(joblib.delayed(score)(task) for task in tasks)
    return list(progress(results, total=len(tasks), label="scoring"))


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Averages rows by system, noise and SNR, and over all.

    Returns:
        One dict a group: system, noise, snr_db ('all' in the overall groups), n, unscored, and
        for each metric its mean and standard deviation over the files that have a score.
        Sorted by noise and SNR; then each noise, each SNR and all of them overall.
    """
    # One NaN for all: two of them, as they come back from other processes, are two conditions.
    rows = [row | {"snr_db": math.nan} if math.isnan(row["snr_db"]) else row for row in rows]
    # Systems are compared on the same files: one that is unscored for one is so for all.
    unscored = {row["name"] for row in rows if not all(math.isfinite(row[m]) for m in METRICS)}
    systems = list(dict.fromkeys(row["system"] for row in rows))
    conditions = sorted({(row["noise"], row["snr_db"]) for row in rows}, key=_condition_order)
    snrs_db = sorted({snr_db for _, snr_db in conditions}, key=lambda v: _condition_order(("", v)))
    noises = sorted({noise for noise, _ in conditions})
    groups = [*conditions]
    groups += [(noise, OVERALL) for noise in noises] if len(snrs_db) > 1 < len(noises) else []
    groups += [(OVERALL, snr_db) for snr_db in snrs_db] if len(snrs_db) > 1 else []
    groups += [(OVERALL, OVERALL)]
    table = []
    for noise, snr_db in groups:
        for system in systems:
            chosen = [
                row
                for row in rows
                if row["system"] == system
                and noise in (OVERALL, row["noise"])
                and (snr_db == OVERALL or _same(snr_db, row["snr_db"]))
            ]
            if chosen:
                table.append(
                    {"system": system, "noise": noise, "snr_db": snr_db}
                    | _moments([row for row in chosen if row["name"] not in unscored])
                    | {"unscored": sum(row["name"] in unscored for row in chosen)}
                )
    return table


def _moments(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {"n": len(rows), "unscored": 0}
    for name in METRICS:
        column = np.array([row[name] for row in rows], float)
        result[name] = float(column.mean()) if len(column) else math.nan
        result[f"{name}_std"] = float(column.std(ddof=1)) if len(column) > 1 else math.nan
    return result


def format_table(summary: Sequence[dict[str, Any]]) -> str:
    """Returns the summary as a plain text table, noisy and enhanced side by side a condition."""
    labels = {"pesq_wb": "PESQ-WB", "pesq_nb": "PESQ-NB", "stoi": "STOI"}
    systems = list(dict.fromkeys(group["system"] for group in summary))
    header = f"{'noise':<14}{'SNR dB':>7}{'n':>6}"
    for name in METRICS:
        header += "  " + "".join(f"{labels[name] + ' ' + system:>18}" for system in systems)
    lines = [header, "-" * len(header)]
    conditions = list(dict.fromkeys((group["noise"], group["snr_db"]) for group in summary))
    for condition in conditions:
        groups = {g["system"]: g for g in summary if (g["noise"], g["snr_db"]) == condition}
        snr_db = condition[1] if isinstance(condition[1], str) else f"{condition[1]:g}"
        line = f"{condition[0]:<14}{snr_db:>7}{max(g['n'] for g in groups.values()):>6}"
        for name in METRICS:
            line += "  " + "".join(
                f"{groups[s][name]:>18.3f}" if s in groups else f"{'':>18}" for s in systems
            )
        lines.append(line)
    unscored = max(g["unscored"] for g in summary if g["noise"] == g["snr_db"] == OVERALL)
    lines.append(f"{unscored} of the files could not be scored; they are in no mean.")
    return "\n".join(lines)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows of equal keys as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_ready(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows with NaN as None, as strict JSON needs."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]


def _condition_order(condition: tuple[str, float]) -> tuple[str, float]:
    noise, snr_db = condition
    return noise, math.inf if math.isnan(snr_db) else snr_db


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
