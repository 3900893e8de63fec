"""Tables of an evaluation: plain text, Markdown, and the published result files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.metrics import METRICS
from eval.scoring import NOISY, OVERALL, format_snr, metrics_of
from eval.statistics import mean_and_std
from speech.base.words import markdown as markdown_cell
from speech.base.words import shown
from speech.data.corpus import snr_folder

#: Columns of the published result files, and the metric in each.
PUBLISHED_COLUMNS = {"PESQ": "pesq_wb", "STOI": "stoi", "SSNRI": "ssnri"}

_NUM_LISTED = 50

#: The smallest amount that is not zero with three decimals.
_SHOWN = 0.0005


def format_by_snr(summary: Sequence[dict[str, Any]]) -> str:
    """Returns the means over all noises as plain text, a line for each SNR and system."""
    metrics = metrics_of(summary)
    groups = [group for group in summary if group["noise"] == OVERALL]
    width = max(8, *(len(group["system"]) for group in groups))
    header = f"{'SNR dB':>7}  {'system':<{width}}{'n':>6}"
    header += "".join(f"{METRICS[name].label:>10}" for name in metrics)
    lines, previous = [header, "-" * len(header)], None
    for group in groups:
        snr = format_snr(group["snr_db"])
        line = f"{snr if snr != previous else '':>7}  {group['system']:<{width}}{group['n']:>6}"
        lines.append(line + "".join(f"{group[name]:>10.3f}" for name in metrics))
        previous = snr
    return "\n".join(lines)


def format_differences(differences: Sequence[dict[str, Any]]) -> str:
    """Returns the overall paired differences as plain text."""
    rows = [d for d in differences if d["noise"] == d["snr_db"] == OVERALL]
    if not rows:
        return ""
    width = max(8, *(len(row["system"]) for row in rows))
    title = f"difference to {rows[0]['baseline']} on the same files, 95 % interval, Wilcoxon p"
    lines = [title]
    for row in rows:
        p = _p(row["wilcoxon_p"])
        lines.append(
            f"  {row['system']:<{width}}  {METRICS[row['metric']].label:<9}{row['n']:>6}"
            f"{row['difference']:>+10.3f}  [{_interval(row, ', ')}]"
            f"  p {p if p.startswith('<') else f'= {p}'}{_verdict(row)}"
        )
    return "\n".join(lines)


def markdown(
    title: str,
    summary: Sequence[dict[str, Any]],
    differences: Sequence[dict[str, Any]],
    unscored: Sequence[dict[str, Any]],
    num_files: int,
) -> str:
    """Returns the whole report.

    Args:
        title: First line.
        summary: Of `eval.scoring.summarize`.
        differences: Of `eval.scoring.compare`.
        unscored: Rows of `eval.scoring.score_all` without a full set of scores.
        num_files: Number of noisy files.
    """
    metrics = metrics_of(summary)
    systems = list(dict.fromkeys(group["system"] for group in summary))
    left_out = max(g["unscored"] for g in summary if g["noise"] == g["snr_db"] == OVERALL)
    kind = "noisy" if NOISY in systems else "enhanced"
    parts = [
        f"# {title}",
        f"{num_files} {kind} files. Mean ± standard deviation over files; n is the number of files "
        f"that have every score. {left_out} could not be scored and are in no mean.",
    ]
    conditions = list(dict.fromkeys((group["noise"], group["snr_db"]) for group in summary))
    for name in metrics:
        rows = []
        for condition in conditions:
            groups = {g["system"]: g for g in summary if (g["noise"], g["snr_db"]) == condition}
            cells = [_cell(groups[s], name) if s in groups else "" for s in systems]
            n = max(group["n"] for group in groups.values())
            rows.append([markdown_cell(condition[0]), format_snr(condition[1]), str(n), *cells])
        parts += [f"## {_heading(name)}", _table(["noise", "SNR dB", "n", *systems], rows)]
    overall = [d for d in differences if d["noise"] == d["snr_db"] == OVERALL]
    if overall:
        rows = [
            [
                d["system"],
                METRICS[d["metric"]].label,
                str(d["n"]),
                f"{d['difference']:+.3f}",
                _interval(d, " to "),
                _p(d["wilcoxon_p"]),
            ]
            for d in overall
        ]
        parts += [
            f"## Difference to {overall[0]['baseline']}",
            "Mean of the differences file by file, its 95 % bootstrap interval, and the p-value of "
            "Wilcoxon's signed-rank test. By noise and SNR: `differences.csv`.",
            _table(["system", "metric", "n", "difference", "95 % interval", "p"], rows),
        ]
    if unscored:
        keys = ("system", "name", "status")
        listed = [[markdown_cell(row[key]) for key in keys] for row in unscored[:_NUM_LISTED]]
        parts += [
            f"## Not scored: {len(unscored)}",
            _table(["system", "file", "reason"], listed),
        ]
        if len(unscored) > _NUM_LISTED:
            parts.append(f"and {len(unscored) - _NUM_LISTED} more in `scores.csv`.")
    return "\n\n".join(parts) + "\n"


def published_files(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns the result files of the published evaluation: one for each system, noise and SNR.

    Each holds a line a file with PESQ, STOI and SSNRI, then ``Mean`` and ``Stad``, which leave out
    files that have no score.

    Returns:
        ``<system>/<noise>_<dB>.txt`` -> text.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = f"{row['system']}/{row['noise'].lower()}_{snr_folder(row['snr_db'])}.txt"
        files.setdefault(name, []).append(row)
    return {name: _published_text(own) for name, own in files.items()}


def _published_text(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["{:>20}:\t{:>7}\t{:>8}\t{:>8}".format("EVALUATED METHODS", *PUBLISHED_COLUMNS)]
    columns = []
    for metric in PUBLISHED_COLUMNS.values():
        values = np.array([row[metric] for row in rows], float)
        columns.append(values)
    scored = np.isfinite(columns).all(axis=0)
    for place, row in enumerate(rows):
        file_name = row["name"].rsplit("/", 1)[-1]
        lines.append(_published_line(file_name, [column[place] for column in columns]))
    moments = [mean_and_std(column[scored]) for column in columns]
    lines.append(_published_line("Mean", [mean for mean, _ in moments]))
    lines.append(_published_line("Stad", [std for _, std in moments]))
    return "\n".join(lines) + "\n"


def _published_line(name: str, values: Sequence[float]) -> str:
    words = ["NaN" if math.isnan(value) else f"{value:f}" for value in values]
    return "\t".join([f"{shown(name):>20}:", *words])


def _heading(name: str) -> str:
    metric = METRICS[name]
    words = [metric.unit] if metric.unit else []
    words += [] if metric.higher_is_better else ["lower is better"]
    return metric.label + (f" ({', '.join(words)})" if words else "")


def _cell(group: dict[str, Any], name: str) -> str:
    return f"{group[name]:.3f} ± {group[f'{name}_std']:.3f}" if group["n"] else "-"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def _verdict(row: dict[str, Any]) -> str:
    """Returns which way a difference goes, where its interval leaves no doubt."""
    sign = 1 if METRICS[row["metric"]].higher_is_better else -1
    low, high = sorted((sign * row["low"], sign * row["high"]))
    # An end that the table shows as zero leaves doubt: rounding alone may have made it.
    return "  better" if low >= _SHOWN else "  worse" if high <= -_SHOWN else ""


def _interval(row: dict[str, Any], between: str) -> str:
    """Returns the ends of the interval of a difference; one file has none."""
    if not math.isfinite(row["low"] + row["high"]):
        return "-"
    return f"{row['low']:+.3f}{between}{row['high']:+.3f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
