"""Tables of the experiments: means, recovery and confusion of rows, one a test mixture.

A row holds ``condition``, ``scores`` (by expert and metric; None where undefined) and ``picks`` (by
selection, such as 'ae voiced 128': metric, scoring, autoencoder). What a selection picks is an
expert or another estimate that has scores, such as a combination.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.statistics import bootstrap_interval
from mnn import published
from speech.base.words import markdown

METRICS = ("sdr", "stoi")


def tabulate(
    rows: Sequence[dict[str, Any]], names: Sequence[str], selected: Sequence[str]
) -> list[dict[str, Any]]:
    """Averages rows by condition.

    Args:
        rows: One row per mixture: condition, scores by estimate and metric, picks by selection.
        names: Names of the experts, in order.
        selected: Selections to tabulate.

    Returns:
        One dict per condition and metric: condition, metric, n, unscored, and the columns: each
        expert, 'chance', each selection, 'oracle'; and by selection ``recovery`` and
        ``above_chance``, its gain over chance: mean and ends of the 95 % interval over the mixtures
        (`eval.statistics`). A mixture is counted and left out if an expert or pick has no score.
    """
    table = []
    for condition in [*dict.fromkeys(row["condition"] for row in rows), "all"]:
        own = [row for row in rows if condition in (row["condition"], "all")]
        for metric in METRICS:
            found = np.array(
                [
                    [math.nan if (v := row["scores"][name][metric]) is None else v
                     for name in (*names, *(row["picks"][which] for which in selected))]
                    for row in own
                ],
                float,
            )  # fmt: skip
            scored = np.isfinite(found).all(axis=1)
            values, picked = np.split(found[scored], [len(names)], axis=1)
            line = {"condition": condition, "metric": metric, "n": len(values),
                    "unscored": int((~scored).sum())}  # fmt: skip
            if len(values):
                line |= {name: float(v) for name, v in zip(names, values.mean(axis=0), strict=True)}
                line["chance"] = float(values.mean())
                gains = picked - values.mean(axis=1, keepdims=True)
                lows, highs = bootstrap_interval(gains)
                line |= dict(zip(selected, picked.mean(axis=0).tolist(), strict=True))
                line["oracle"] = float(values.max(axis=1).mean())
                line["recovery"] = {
                    which: recovery(line[which], line["chance"], line["oracle"])
                    for which in selected
                }
                intervals = zip(gains.mean(axis=0), lows, highs, strict=True)
                line["above_chance"] = {
                    which: [None if math.isnan(value) else float(value) for value in interval]
                    for which, interval in zip(selected, intervals, strict=True)
                }
            table.append(line)
    return table


def recovery(selected: float, chance: float, oracle: float) -> float | None:
    """Returns (selected - chance) / (oracle - chance); None where there is nothing to recover."""
    gap = oracle - chance
    return (selected - chance) / gap if gap > 1e-9 else None


def confusion(
    rows: Sequence[dict[str, Any]], names: Sequence[str], which: str, metric: str = "sdr"
) -> list[list[int]]:
    """Counts picks against the oracle: `counts[oracle][pick]`, experts in order."""
    counts = [[0] * len(names) for _ in names]
    for row in rows:
        values = [row["scores"][name][metric] for name in names]
        if None not in values:
            best = max(range(len(names)), key=lambda place: values[place])
            counts[best][names.index(row["picks"][which])] += 1
    return counts


def report_markdown(result: dict[str, Any]) -> str:
    """Returns the tables of a run: ours and the published ones, recoveries, confusion."""
    names, default = result["experts"], result["default"]
    _, scoring, _ = default.split()
    own = [f"ae {scoring} 128", f"ae {scoring} 2048x2", "combined 128", "combined 2048x2"]
    columns = ["chance", "snr paper 128", "snr paper 2048x2", "ae paper 128", "ae paper 2048x2",
               *own, "oracle"]  # fmt: skip
    heads = ["chance", "eq. 11, 128", "eq. 11, 2048x2", "eq. 10, 128", "eq. 10, 2048x2",
             f"{scoring}, 128", f"{scoring}, 2048x2", "combined, 128", "combined, 2048x2",
             "oracle"]  # fmt: skip
    parts = [f"# Experiment {result['experiment']}, scale {result['scale']}"]
    for metric, unit in (("sdr", "SDR, dB"), ("stoi", "STOI")):
        digits = 2 if metric == "sdr" else 4
        lines = [line for line in result["table"] if line["metric"] == metric and line["n"]]
        rows = [
            [line["condition"], str(line["n"]),
             *(f"{line[c]:.{digits}f}" for c in [*names, *columns])]
            for line in lines
        ]  # fmt: skip
        parts += [
            f"## {unit}",
            _table(["test", "n", *(f"expert {n}" for n in names), *heads], rows),
        ]
        paper = result["published"][metric]
        rows = [
            [name, *(f"{value:.{digits}f}" for value in values)]
            for name, values in paper["rows"].items()
        ]
        published_heads = [h for h, c in zip(heads, columns, strict=True) if c not in own]
        parts += [
            f"Published ({published.SOURCE}):",
            _table(["test", *(f"expert {n}" for n in paper["experts"]), *published_heads], rows),
        ]
    parts += ["## Oracle recovery, SDR, %", _recoveries(result, columns, heads)]
    parts += ["## Above chance, SDR in dB, 95 % interval", _above_chance(result, columns, heads)]
    parts += ["## All selections, mean over all tests", _comparison(result)]
    for which, counts in result["confusion"].items():
        rows = [[name, *map(str, own)] for name, own in zip(names, counts, strict=True)]
        parts += [f"## Pick against oracle (SDR): {which}",
                  _table(["oracle / pick", *names], rows)]  # fmt: skip
    left_out = sum(line["unscored"] for line in result["table"] if line["condition"] == "all")
    parts.append(f"Left out for want of a score: {left_out} mixtures and metrics.")
    return "\n\n".join(parts) + "\n"


def _selections(columns: Sequence[str], heads: Sequence[str]) -> list[tuple[str, str]]:
    return [(c, h) for c, h in zip(columns, heads, strict=True) if c not in ("chance", "oracle")]


def _above_chance(result: dict[str, Any], columns: Sequence[str], heads: Sequence[str]) -> str:
    chosen, rows = _selections(columns, heads), []
    for line in result["table"]:
        if line["metric"] == "sdr" and line["n"]:
            gains = [line["above_chance"][which] for which, _ in chosen]
            cells = [
                f"{mean:+.2f}" if low is None else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
                for mean, low, high in gains
            ]
            rows.append([line["condition"], *cells])
    return _table(["test", *(head for _, head in chosen)], rows)


def _recoveries(result: dict[str, Any], columns: Sequence[str], heads: Sequence[str]) -> str:
    chosen = _selections(columns, heads)
    rows = []
    for line in result["table"]:
        if line["metric"] == "sdr" and line["n"]:
            rows.append(
                [line["condition"], "ours", *(_percent(line["recovery"][c]) for c, _ in chosen)]
            )
    num_experts = len(result["published"]["sdr"]["experts"])
    for name, values in result["published"]["sdr"]["rows"].items():
        own = dict(zip(published.COLUMNS, values[num_experts:], strict=True))
        cells = [
            _percent(recovery(own[key], own["chance"], own["oracle"]))
            if (key := c.replace(" paper", "")) in own
            else "-"
            for c, _ in chosen
        ]
        rows.append([name, "paper", *cells])
    return _table(["test", "of", *(h for _, h in chosen)], rows)


def _comparison(result: dict[str, Any]) -> str:
    lines = {line["metric"]: line for line in result["table"] if line["condition"] == "all"}
    rows = []
    for which in ("chance", *lines["sdr"].get("recovery", {}), "oracle"):
        cells = [which]
        for metric, digits in (("sdr", 2), ("stoi", 4)):
            line = lines[metric]
            cells.append(f"{line[which]:.{digits}f}" if line["n"] else "-")
            cells.append(_percent(line["recovery"].get(which)) if line["n"] else "-")
        rows.append(cells)
    return _table(["selection", "SDR, dB", "recovery, %", "STOI", "recovery, %"], rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[*map(markdown, header)], ["---"] * len(header)]
    lines += [[*map(markdown, row)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
