"""The part of the results page about selection among experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import table
from benchmarks.reproduce import published
from benchmarks.reproduce.raw import Row, read_csv, read_json
from benchmarks.reproduce.steps import EXPERIMENTS
from benchmarks.reproduce.text import interval, number

#: Column of our tables -> heading, and that of the published ones.
SELECTIONS = {
    "snr paper 128": ("eq. 11, DAE_128", "snr 128"),
    "snr paper 2048x2": ("eq. 11, DAE_2048x2", "snr 2048x2"),
    "ae paper 128": ("eq. 10, DAE_128", "ae 128"),
    "ae paper 2048x2": ("eq. 10, DAE_2048x2", "ae 2048x2"),
}


def render(results: Path) -> list[str]:
    """Returns the section of the three experiments.

    Args:
        results: Folder of its raw files.
    """
    found = {name: read_json(results / f"{name}.json") for name in EXPERIMENTS}
    judged = {name: read_csv(results / f"{name}_recovery.csv") for name in EXPERIMENTS}
    means = read_csv(results / "mean_recovery.csv")
    best = max(means, key=lambda row: row["recovery"])["selection"]
    extra = [which for which in dict.fromkeys((found["noise"]["default"], best))
             if which not in SELECTIONS]  # fmt: skip
    scale = found["noise"]["scale"]
    parts = [
        f"Scale `{scale}` of `mnn.experiments`. Recovery is (selected - chance) / (oracle - "
        "chance); chance is the mean of the experts, the oracle takes the best of them for each "
        "mixture. The engine stands for the paper's motorcycle.",
        "### Recovery of every selection",
        _recoveries(means, judged, best),
        "\n".join(_check(judged, means, which, which == best) for which in dict.fromkeys(
            (best, found["noise"]["default"])
        )),
    ]  # fmt: skip
    for metric, unit in (("sdr", "SDR, dB"), ("stoi", "STOI")):
        parts += [f"### {unit}, ours and published", _experiments(found, metric, extra)]
    parts += ["### Recovery in SDR by row", _by_row(judged, extra)]
    parts += ["### Two stages: compressed copies choose", *_two_stage(results)]
    return parts


def heading(selection: str) -> str:
    """Returns the name of a selection such as 'ae voiced 128' for a table."""
    if selection in SELECTIONS:
        return SELECTIONS[selection][0]
    *_, scoring, net = selection.split()
    return f"{scoring}, DAE_{net}"


def _recoveries(means: Sequence[Row], judged: dict[str, list[Row]], best: str) -> str:
    paper = published.recoveries()
    lines = []
    for row in means:
        which = row["selection"]
        cells = [_bold(heading(which), which == best)]
        for rows in judged.values():
            own = [r["recovery"] for r in rows if (r["selection"], r["metric"]) == (which, "sdr")]
            cells.append(_percent(sum(own) / len(own)))
        cells.append(_percent(row["recovery"]) + _percents(row))
        if which in SELECTIONS:
            own = [value for values in paper.values()
                   for value in values[SELECTIONS[which][1]]]  # fmt: skip
            cells.append(_percent(sum(own) / len(own)))
        lines.append([*cells] if which in SELECTIONS else [*cells, "-"])
    header = ["selection, %", *judged, f"all {means[0]['rows']:.0f} rows", "published, all rows"]
    return table(header, lines)


def _bold(text: str, really: bool) -> str:
    return f"**{text}**" if really else text


def _percent(value: float) -> str:
    return number(100 * value, 0)


def _percents(row: Row) -> str:
    return interval(100 * row["recovery_low"], 100 * row["recovery_high"], 0, "")


def _check(judged: dict[str, list[Row]], means: Sequence[Row], which: str, is_best: bool) -> str:
    """Returns how a selection does, in words made of numbers."""

    def rows(experiment: str) -> list[Row]:
        return [r for r in judged[experiment] if (r["selection"], r["metric"]) == (which, "sdr")]

    mean = next(row for row in means if row["selection"] == which)
    worst = max(rows("noise"), key=lambda row: row["below_oracle"])
    others = rows("gender") + rows("snr")
    above = [row for row in others if row["above_chance"] > 0]
    surely = [row for row in others if row["above_chance_low"] > 0]
    what = "the best of these on these tests" if is_best else "the default of `mnn.select`"
    return (
        f"- {heading(which)}, {what}: {_percent(mean['recovery'])} %{_percents(mean)} of the way "
        f"from chance to the oracle, mean of the rows. Experiment noise: at most "
        f"{number(worst['below_oracle'], 2)} dB below the oracle ({worst['condition']}, n = "
        f"{worst['n']:.0f}). Experiments gender and snr: above chance in {len(above)} of "
        f"{len(others)} rows, with the whole interval in {len(surely)}."
    )


def _experiments(found: dict[str, Row], metric: str, extra: Sequence[str]) -> str:
    digits = 2 if metric == "sdr" else 4
    columns = ["chance", *SELECTIONS, *extra, "oracle"]
    lines = []
    for experiment, result in found.items():
        paper = published.MNN[metric][experiment]
        own = [r for r in result["table"] if (r["metric"], r["condition"] == "all", r["n"] > 0)
               == (metric, False, True)]  # fmt: skip
        for row, (name, values) in zip(own, paper.items(), strict=False):
            num_experts = len(values) - len(SELECTIONS) - 2
            experts = ", ".join(number(row[expert], digits) for expert in result["experts"])
            cells = [number(row[column], digits) for column in columns]
            lines.append([row["condition"], f"ours, n = {row['n']}", experts, *cells])
            experts = ", ".join(number(value, digits) for value in values[:num_experts])
            chance, *selected, oracle = (number(v, digits) for v in values[num_experts:])
            cells = [chance, *selected, *("-" for _ in extra), oracle]
            lines.append([name, "published", experts, *cells])
    heads = [heading(column) if " " in column else column for column in columns]
    return table(["test", "of", "experts", *heads], lines)


def _by_row(judged: dict[str, list[Row]], extra: Sequence[str]) -> str:
    shown = [*SELECTIONS, *extra]
    found = published.recoveries()
    lines = []
    for experiment, rows in judged.items():
        own = [row for row in rows if row["metric"] == "sdr"]
        for place, condition in enumerate(dict.fromkeys(row["condition"] for row in own)):
            by_name = {r["selection"]: r for r in own if r["condition"] == condition}
            cells = [_percent(by_name[w]["recovery"]) + _percents(by_name[w]) for w in shown]
            paper = ", ".join(
                _percent(found[experiment][key][place]) for _, key in SELECTIONS.values()
            )
            lines.append([condition, f"{by_name[shown[0]]['n']:.0f}", *cells, paper])
    header = ["test", "n", *(f"{heading(w)}, %" for w in shown), "published: the first four, %"]
    return table(header, lines)


def _two_stage(results: Path) -> list[str]:
    rows = read_json(results / "two_stage.json")
    lines = []
    for row in rows:
        seconds, audio = row["seconds"], row["audio_seconds"]
        per = [number(1e3 * seconds.get(key, 0.0) / audio, 1)
               for key in ("checking", "choosing", "experts", "judging")]  # fmt: skip
        ratio = 100 * sum(row["copy_bytes"]) / sum(row["expert_bytes"])
        lines.append(
            [row["experiment"], str(row["files"]), str(len(row["expert_bytes"])),
             f"{sum(row['expert_bytes']):,}", f"{sum(row['copy_bytes']):,} ({number(ratio, 1)} %)",
             f"{number(100 * row['agreement'], 1)} %", *per]
        )  # fmt: skip
    header = ["experts of", "files", "experts", "bytes", f"bytes of the copies, k = {rows[0]['k']}",
              "same choice", "all in full", "copies", "winner in full", "judging"]  # fmt: skip
    return [
        "Copies of the experts, quantized, choose; only the winner runs in full. The choice is "
        "compared with that of the full experts (`--check`). Times are ms for a second of audio.",
        table(header, lines),
    ]
