"""Scores pairs of files in parallel and averages them by noise and SNR.

Each file is scored in a child process (`eval.isolation`), so that one which kills the metric's code
costs itself only. Threads wait for the children: of joblib on this machine, or of the workers of a
Dask cluster (`speech.base.cluster`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.isolation import ProcessDied, close_idle, run_isolated
from eval.metrics import METRICS, OK, SAMPLE_RATE_HZ, Score, cut_alike
from eval.statistics import mean_and_std, paired_differences
from speech.base import schema
from speech.base.cli import EXPECTED_ERRORS, one_line, progress
from speech.base.cluster import Cluster, Failed
from speech.base.files import append_text, end_line, sha256_of, strict_json
from speech.base.lazy import joblib
from speech.base.words import csv_text, shown
from speech.sound.audio import describe_conversion, peak_normalize, read_audio

OVERALL = "all"
NOISY = "noisy"

#: What `score_all` computes unless told otherwise.
DEFAULT_METRICS = ("pesq_wb", "pesq_nb", "stoi")


#: A file whose scoring takes longer has gone astray: so many seconds, and one per so many bytes.
LIMIT_S = 600.0
_SCORED_BYTES_PER_S = 10_000.0


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
        noisy: The noisy file, for the metrics that compare with it.
        problem: Why there is no estimate, if there is none.
    """

    system: str
    estimate: Path
    reference: Path
    noise: str
    snr_db: float
    name: str
    noisy: Path | None = None
    problem: str = ""

    @property
    def is_noisy(self) -> bool:
        """Whether the estimate is the noisy file itself."""
        return self.system == NOISY or self.estimate == self.noisy


def score(
    task: Task, metrics: Sequence[str] = DEFAULT_METRICS, convert: bool = True
) -> dict[str, Score]:
    """Returns the scores of one file by metric; a file that cannot be read has none, and says why.

    Args:
        task: The file.
        metrics: Names in `eval.metrics.METRICS`.
        convert: Resample to 16 kHz and average channels where needed; otherwise such a file is
            not scored.
    """
    needs_noisy = any(METRICS[name].needs_noisy for name in metrics)
    try:
        if task.problem:
            raise ValueError(task.problem)
        if needs_noisy and task.noisy is None and not task.is_noisy:
            raise ValueError("the noisy file is not known, with which to compare")
        paths = [task.reference, task.estimate]
        if needs_noisy and task.noisy is not None and not task.is_noisy:
            paths.append(task.noisy)
        signals = [read_at_16k(path, convert).astype(np.float64) for path in paths]
        reference, estimate, *others = cut_alike(*signals)
    except EXPECTED_ERRORS as error:
        return dict.fromkeys(metrics, Score(math.nan, one_line(error)))
    scores = {}
    for name in metrics:
        metric = METRICS[name]
        at_peak_1 = metric.at_peak_1 and not task.is_noisy and np.all(np.isfinite(estimate))
        given = peak_normalize(estimate) if at_peak_1 else estimate
        noisy = (others or [estimate])[:1] if metric.needs_noisy else ()
        scores[name] = metric(reference, given, *noisy)
    return scores


def read_at_16k(path: Path, convert: bool) -> np.ndarray:
    """Reads a file as float32 [num_samples] at 16 kHz.

    Raises:
        ValueError: It cannot be read, or has another rate or more channels and ``convert`` is off.
    """
    audio = read_audio(path)
    conversion = describe_conversion(audio.source_rate_hz, audio.source_channels)
    if conversion and not convert:
        raise ValueError(
            f"{path}: {audio.source_rate_hz} Hz and {audio.source_channels} channels; expected "
            f"{SAMPLE_RATE_HZ} Hz and one (--convert converts)"
        )
    return audio.samples


def score_all(
    tasks: Sequence[Task],
    num_jobs: int = -1,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    convert: bool = True,
    cache: ScoreCache | None = None,
    cluster: Cluster | None = None,
) -> list[dict[str, Any]]:
    """Scores every task, in parallel, in order.

    Args:
        tasks: What to score.
        num_jobs: Processes; -1 for one per core.
        metrics: Names in `eval.metrics.METRICS`.
        convert: As in `score`.
        cache: Scores of earlier runs, which are not computed again, and where new ones go.
        cluster: Where to score instead.

    Returns:
        One row a task: system, noise, snr_db, name, each metric, and one status.

    Raises:
        ValueError: The cluster can't do the work.
    """
    cache = cache or ScoreCache(None)
    known = [cache.get(task, metrics, convert) for task in tasks]
    missing = [[name for name in metrics if name not in scores] for scores in known]
    waiting = [place for place, names in enumerate(missing) if names]
    if cluster:
        calls = ((_absolute(tasks[place]), missing[place], convert) for place in waiting)
        results = cluster.map(_score_isolated, calls, len(waiting))
    else:
        jobs = joblib.Parallel(num_jobs, "threading", return_as="generator", batch_size=1)
        results = enumerate(
            jobs(
                joblib.delayed(_score_isolated)(tasks[place], missing[place], convert)
                for place in waiting
            )
        )
    try:
        for number, scores in progress(results, total=len(waiting), label="scoring"):
            place = waiting[number]
            if isinstance(scores, Failed):
                scores = dict.fromkeys(missing[place], Score(math.nan, scores.reason))
            known[place] |= scores
            cache.put(tasks[place], scores, convert)
    finally:
        close_idle()
        if cluster:
            cluster.tell(close_idle)
    return [_row(task, metrics, scores) for task, scores in zip(tasks, known, strict=True)]


def _absolute(task: Task) -> Task:
    """Returns a task for workers that stand in another folder."""
    return replace(
        task,
        estimate=task.estimate.absolute(),
        reference=task.reference.absolute(),
        noisy=task.noisy and task.noisy.absolute(),
    )


def _limit_s(task: Task) -> float:
    """Returns the time limit for scoring a file, far longer than scoring has ever taken."""
    num_bytes = 0
    for path in (task.reference, task.estimate):
        with contextlib.suppress(OSError):
            num_bytes += path.stat().st_size
    return LIMIT_S + num_bytes / _SCORED_BYTES_PER_S


def _score_isolated(task: Task, metrics: Sequence[str], convert: bool) -> dict[str, Score]:
    try:
        return run_isolated(score, task, metrics, convert, limit_s=_limit_s(task))
    except ProcessDied as error:
        return dict.fromkeys(metrics, Score(math.nan, str(error)))


def _row(task: Task, metrics: Sequence[str], scores: dict[str, Score]) -> dict[str, Any]:
    reasons = dict.fromkeys(scores[name].status for name in metrics if scores[name].status != OK)
    return {
        "system": task.system,
        "noise": task.noise,
        "snr_db": task.snr_db,
        "name": task.name,
        **{name: scores[name].value for name in metrics},
        "status": "; ".join(reasons) or OK,
    }


@dataclass
class _Scores:
    """A line of a `ScoreCache`: value and status by metric and version."""

    key: str
    scores: dict[str, tuple[int | float | None, str]]


class ScoreCache:
    """Scores on disk, found again by the content of the files and the version of the metric.

    Each file adds one line of JSON as soon as it is scored, so that a run that is killed resumes
    where it stopped. Files without any score (unreadable, silent, fatal) are tried again.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, tuple[int | float | None, str]]] = {}
        if path is not None and path.exists():
            end_line(path)
            for entry in schema.lines(path, _Scores):
                self._known.setdefault(entry.key, {}).update(entry.scores)

    def get(self, task: Task, metrics: Sequence[str], convert: bool) -> dict[str, Score]:
        """Returns the scores that are known, out of the given metrics."""
        if not self._known:  # then no file need be read
            return {}
        found = self._known.get(_key(task, convert) or "", {})
        versioned = {name: found.get(f"{name} {METRICS[name].version}") for name in metrics}
        return {
            name: Score(math.nan if entry[0] is None else entry[0], entry[1])
            for name, entry in versioned.items()
            if entry
        }

    def put(self, task: Task, scores: dict[str, Score], convert: bool) -> None:
        """Keeps the scores of a task."""
        if self._path is None or not any(score.status == OK for score in scores.values()):
            return
        key = _key(task, convert)
        if key is None:
            return
        entries = {
            f"{name} {METRICS[name].version}": (
                score.value if math.isfinite(score.value) else None,
                score.status,
            )
            for name, score in scores.items()
        }
        self._known.setdefault(key, {}).update(entries)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_text(self._path, json.dumps({"key": key, "scores": entries}) + "\n")


def _key(task: Task, convert: bool) -> str | None:
    """Returns what the scores of a task depend on; None if a file cannot be read."""
    if task.problem:
        return None
    paths = [task.reference, task.estimate]
    if task.noisy is not None and not task.is_noisy:
        paths.append(task.noisy)
    try:
        hashes = [_hash_of(path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths]
    except OSError:
        return None
    return " ".join([*hashes, "noisy" if task.is_noisy else "", "converted" if convert else ""])


@functools.lru_cache(maxsize=1 << 16)
def _hash_of(path: Path, _modified_ns: int, _num_bytes: int) -> str:
    return sha256_of(path)


def metrics_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the names of the metrics that rows, or groups of them, hold."""
    return [name for name in rows[0] if name in METRICS]


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Averages rows by system, noise and SNR, and over all.

    Returns:
        One dict a group: system, noise, snr_db ('all' in the overall groups), n, unscored, and
        for each metric its mean and standard deviation over the files that have a score.
        Sorted by noise and SNR; then each noise, each SNR and all of them overall.
    """
    metrics, unscored = metrics_of(rows), names_unscored(rows)
    table = []
    for noise, snr_db, chosen in _groups(rows):
        for system, own in _by_system(chosen).items():
            scored = [row for row in own if row["name"] not in unscored and _is_scored(row)]
            group: dict[str, Any] = {"system": system, "noise": noise, "snr_db": snr_db}
            group |= {"n": len(scored), "unscored": len(own) - len(scored)}
            for name in metrics:
                group[name], group[f"{name}_std"] = mean_and_std(
                    np.array([row[name] for row in scored], float)
                )
            table.append(group)
    return table


def names_unscored(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Returns the names of files that count for no system.

    Systems are compared on the same files: one that lacks a score of one system is left out for
    all. A system without any scored file is in no comparison, and takes no file from the others.
    """
    dead = {
        system for system, own in _by_system(rows).items() if not any(_is_scored(r) for r in own)
    }
    return {row["name"] for row in rows if row["system"] not in dead and not _is_scored(row)}


def compare(rows: Sequence[dict[str, Any]], baseline: str = NOISY) -> list[dict[str, Any]]:
    """Compares every other system with a baseline, file by file.

    Args:
        rows: Of `score_all`.
        baseline: Name of a system.

    Returns:
        One dict for each system, group of `summarize` and metric: n, the mean difference (system
        minus baseline), both ends of its 95 % bootstrap interval, and Wilcoxon's p-value.

    Raises:
        ValueError: There is no such system.
    """
    systems = list(_by_system(rows))
    if baseline not in systems:
        raise ValueError(f"no system {baseline!r} to compare with; there are {', '.join(systems)}")
    metrics, unscored = metrics_of(rows), names_unscored(rows)
    table = []
    for noise, snr_db, chosen in _groups(rows):
        values = {
            system: {
                row["name"]: [row[name] for name in metrics]
                for row in own
                if row["name"] not in unscored and _is_scored(row)
            }
            for system, own in _by_system(chosen).items()
        }
        base = values.pop(baseline, {})
        for system, own in values.items():
            names = [name for name in own if name in base]
            pairs = np.array([[own[name], base[name]] for name in names], float)
            pairs = pairs.reshape(len(names), 2, len(metrics))
            results = paired_differences(pairs[:, 0] - pairs[:, 1])
            for metric, result in zip(metrics, results, strict=True):
                table.append(
                    {
                        "system": system,
                        "baseline": baseline,
                        "noise": noise,
                        "snr_db": snr_db,
                        "metric": metric,
                        "n": result.n,
                        "difference": result.mean,
                        "low": result.low,
                        "high": result.high,
                        "wilcoxon_p": result.p,
                    }
                )
    return table


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Any, list[dict[str, Any]]]]:
    """Yields (noise, snr_db, rows) of each condition, then of the overall groups."""
    # One NaN for all: two of them, as they come back from other processes, are two conditions.
    rows = [row | {"snr_db": math.nan} if math.isnan(row["snr_db"]) else row for row in rows]
    conditions = sorted({(row["noise"], row["snr_db"]) for row in rows}, key=_condition_order)
    snrs_db = sorted({snr_db for _, snr_db in conditions}, key=lambda v: _condition_order(("", v)))
    noises = sorted({noise for noise, _ in conditions})
    groups: list[tuple[str, Any]] = [*conditions]
    groups += [(noise, OVERALL) for noise in noises] if len(snrs_db) > 1 < len(noises) else []
    groups += [(OVERALL, snr_db) for snr_db in snrs_db] if len(snrs_db) > 1 else []
    groups += [(OVERALL, OVERALL)]
    for noise, snr_db in groups:
        yield (
            noise,
            snr_db,
            [
                row
                for row in rows
                if noise in (OVERALL, row["noise"])
                and (snr_db == OVERALL or _same(snr_db, row["snr_db"]))
            ],
        )


def _by_system(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    systems: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        systems.setdefault(row["system"], []).append(row)
    return systems


def _is_scored(row: dict[str, Any]) -> bool:
    return all(math.isfinite(value) for name, value in row.items() if name in METRICS)


def format_table(summary: Sequence[dict[str, Any]]) -> str:
    """Returns the summary as a plain text table: per condition, noisy and enhanced side by side."""
    metrics = metrics_of(summary)
    systems = list(dict.fromkeys(group["system"] for group in summary))
    header = f"{'noise':<14}{'SNR dB':>7}{'n':>6}"
    for name in metrics:
        label = METRICS[name].label
        header += "  " + "".join(f"{label + ' ' + system:>18}" for system in systems)
    lines = [header, "-" * len(header)]
    conditions = list(dict.fromkeys((group["noise"], group["snr_db"]) for group in summary))
    for condition in conditions:
        groups = {g["system"]: g for g in summary if (g["noise"], g["snr_db"]) == condition}
        line = f"{shown(condition[0], 40):<14}{format_snr(condition[1]):>7}"
        line += f"{max(g['n'] for g in groups.values()):>6}"
        for name in metrics:
            line += "  " + "".join(
                f"{groups[s][name]:>18.3f}" if s in groups else f"{'':>18}" for s in systems
            )
        lines.append(line)
    unscored = max(g["unscored"] for g in summary if g["noise"] == g["snr_db"] == OVERALL)
    lines.append(f"{unscored} of the files could not be scored; they are in no mean.")
    return "\n".join(lines)


def format_snr(snr_db: float | str) -> str:
    """Returns an SNR, or 'all', as text."""
    return snr_db if isinstance(snr_db, str) else f"{snr_db:g}"


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows of equal keys as CSV text."""
    return csv_text(rows, list(rows[0]))


def json_ready(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows with NaN as None, as strict JSON needs."""
    return strict_json(list(rows))


def _condition_order(condition: tuple[str, float]) -> tuple[str, float]:
    noise, snr_db = condition
    return noise, math.inf if math.isnan(snr_db) else snr_db


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
