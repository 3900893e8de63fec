"""Writes ``RESULTS.md`` from the raw files below ``results``; computes and measures nothing.

Every section begins with the command that made its raw files, and ends with what that runs, folded
up. ``results/SECTION/notes.md``, if it is there, is put below the section's tables as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import table
from benchmarks.reproduce import (
    eq10_tables,
    figures,
    judges_tables,
    mnn_tables,
    published,
    use_tables,
)
from benchmarks.reproduce.raw import ALL, NOISY, SEEN, UNSEEN, Row, read_csv, read_json
from benchmarks.reproduce.steps import CONTROLS, K_MAIN, ROOT, SECTIONS
from benchmarks.reproduce.text import LABELS, duration, interval, number, score
from speech.base.files import write_text

PAGE = "RESULTS.md"
TITLES = {
    "use": "A network for use",
    "compression": "Compression: pruned, quantized, both",
    "grid": "Score against size, and the controls",
    "mnn": "Selection among experts: the three experiments",
    "eq10": "Eq. 10, explained",
    "cost": "Cost: operations, cycles, time",
    "rooms": "Denoising and dereverberation",
    "departures": "What differs from the papers",
}
#: What a compressed model may lose.
LOSSES = {"pesq_wb": 0.03, "stoi": 0.01}
TEST_SETS = {"open": "the open corpus", "bundled": "the bundled corpus"}

INTRODUCTION = """\
# Results

The tables of the two papers beside ours. This page is written by code from the files below
`results/` (`python -m benchmarks.reproduce --render-only`); no number in it is typed by hand, but
for the published ones and the notes. Each section begins with the command that makes its numbers,
to be run in the root of the repository, and ends with the commands that this one runs; `corpus` is
what `python -m speech.opencorpus --out corpus` builds. `make reproduce-small` runs a reduced
version of everything.

Differences are taken file by file. In brackets: 95 % bootstrap intervals; n is the number of files.
The published scores are of other recordings: compare differences, not levels."""


def write(page: Path) -> Path:
    """Draws the figures and writes the page.

    Args:
        page: Folder of ``results`` and of the page.

    Returns:
        The page.
    """
    figures.draw_all(page / "results")
    write_text(page / PAGE, render(page))
    return page / PAGE


def render(page: Path) -> str:
    """Returns the page as Markdown.

    Args:
        page: Folder of ``results``.
    """
    parts = [INTRODUCTION]
    for letter, section in zip(" abcdefg", SECTIONS, strict=True):
        parts.append(f"## ({letter}) {TITLES[section]}".replace("( ) ", ""))
        parts += _section(section, page / "results" / section)
    return "\n\n".join(parts) + "\n"


def _section(section: str, results: Path) -> list[str]:
    first: list[str] = []
    last: list[str] = []
    if section == "departures":
        parts = departures()
    elif (results / "commands.json").exists():
        made = read_json(results / "commands.json")
        first, last = [f"Made by `{made['command']}`."], _commands(made)
        parts = _SECTIONS[section](results)
    else:
        parts = [f"Not run yet: `python -m benchmarks.reproduce --only {section}`."]
    if (results / "notes.md").exists():
        parts.append((results / "notes.md").read_text(encoding="utf-8").strip())
    return [*first, *parts, *last]


def _commands(made: Row) -> list[str]:
    """Returns what the command of a section runs, folded up, and with which versions."""
    seconds = sum(step.get("seconds", 0) for step in made["steps"])
    lines = [step["command"] for step in made["steps"]]
    packages = made["packages"]
    told = [
        f"Commands: {len(made['steps'])}, {duration(seconds)} in all; commit "
        f"{(made['git_commit'] or 'unknown')[:9]}, TensorFlow {packages.get('tensorflow', '-')}, "
        f"Keras {packages.get('keras', '-')}, Python {made['python']}."
    ]
    adopted = [step for step in made["steps"] if "adopted_sha256" in step]
    if adopted:
        names = ", ".join(f"{s['name']} (sha256 `{s['adopted_sha256'][:12]}`)" for s in adopted)
        told.append(
            f"Not run again, but taken over as a file from an earlier run of the command: {names}."
        )
    # With empty lines around it, GitHub and MkDocs (md_in_html) both read Markdown inside.
    return [
        '<details markdown="1">\n<summary>What this command runs</summary>',
        "```sh\n" + "\n".join(lines) + "\n```",
        *told,
        "</details>",
    ]


# --------------------------------------------------------------------------------------------
# (a)


def _compression(results: Path) -> list[str]:
    sizes = {row["model"]: row for row in read_csv(results / "sizes.csv")}
    found = {name: read_csv(results / f"{name}.csv") for name in TEST_SETS
             if (results / f"{name}.csv").exists()}  # fmt: skip
    parts = []
    for name, rows in found.items():
        about = read_json(results / f"{name}.json")
        parts += [f"### All models, {TEST_SETS[name]}", _about(about, rows), _models(sizes, rows)]
        parts.append(_within(sizes, rows))
    parts.append("### Beside the published figures")
    first = next(iter(found))
    parts += _published(sizes, found[first], TEST_SETS[first])
    for name, rows in found.items():
        for metric in LOSSES:
            parts += [f"### {LABELS[metric]} by SNR and noise, {TEST_SETS[name]}",
                      _by_group(rows, metric)]  # fmt: skip
    return parts


def _about(about: Row, rows: Sequence[Row]) -> str:
    n = int(rows[0]["n"])
    text = f"n = {n}; {int(rows[0]['unscored'])} of {about['noisy_files']} files have no score."
    if about["unseen_noises"]:
        text += f" Not trained on: {', '.join(about['unseen_noises'])}."
    return text + " Differences are to `fcn`, the shipped `models/fcn.h5`."


def describe(model: str) -> str:
    """Returns what the name of a compressed model means."""
    words = []
    for pattern, text in (
        (r"^fcn$", "FP32 baseline"),
        (r"^pp(\d+)", "{} % of the channels pruned, soft"),
        (r"-k(\d+)$", "k = {}, tied weights trained on"),
        (r"-t(\d+)$", "`--target-percent {}`"),
    ):
        if match := re.search(pattern, model):
            words.append(text.format(*match.groups()))
    return ", ".join(words)


def _models(sizes: dict[str, Row], rows: Sequence[Row]) -> str:
    metrics = ("pesq_wb", "pesq_nb", "stoi", "ssnri")
    scores = {(r["system"], r["metric"]): r for r in rows if r["group"] == ALL}
    lines = [[NOISY, "", "", "", "", *(score(scores[NOISY, m]) for m in metrics)]]
    for name, size in sizes.items():
        by_rule = "-" if "-t" in name else number(size["paper_size_percent"], 2)
        lines.append(
            [f"`{name}`", describe(name), f"{size['file_bytes']:,.0f}",
             number(size["file_percent"], 2), by_rule,
             *(score(scores[name, m], name == "fcn") for m in metrics)]
        )  # fmt: skip
    header = ["model", "what", "bytes", "% of the .h5", "% by the paper's rule"]
    return table([*header, *(LABELS[m] for m in metrics)], lines)


def _within(sizes: dict[str, Row], rows: Sequence[Row]) -> str:
    """Returns which files lose little, and the smallest."""
    scores = {(r["system"], r["metric"]): r for r in rows if r["group"] == ALL}

    def keeps(name: str, end: str) -> bool:
        return all(scores[name, m][end] >= -loss for m, loss in LOSSES.items())

    limit = " and ".join(f"{loss:g} {LABELS[metric]}" for metric, loss in LOSSES.items())
    lines = []
    for end, what in (("difference", "on average"), ("low", "with their whole intervals")):
        kept = [name for name in sizes if name != "fcn" and keeps(name, end)]
        text = f"- Files that lose at most {limit} {what}: {len(kept)} of {len(sizes) - 1}"
        if kept:
            best = min(kept, key=lambda name: sizes[name]["file_bytes"])
            size = sizes[best]
            text += (
                f"; the smallest is `{best}`, {size['file_bytes']:,.0f} bytes "
                f"({number(size['file_percent'], 2)} %)"
            )
        lines.append(text + ".")
    return "\n".join(lines)


def _published(sizes: dict[str, Row], rows: Sequence[Row], test_set: str) -> list[str]:
    scores = {(r["system"], r["metric"]): r for r in rows if r["group"] == ALL}
    base = published.TIMIT_FCN["pesq_wb"]
    plot = {(theta, k): (size, pesq) for theta, k, size, pesq in published.SIZE_PESQ}
    first = next(name for name in sizes if name.startswith("pp"))
    lines = []
    for k in sorted({k for _, k in plot}, reverse=True):
        name = f"{first}-k{k}"
        if name not in sizes:
            continue
        cells = [str(k)]
        for theta in (0.65, 0.70):
            size, pesq = plot[theta, k]
            cells += [f"{size:g}", f"{pesq:g}", number(pesq - base, 3, "+")]
        own, pesq_row = sizes[name], scores[name, "pesq_wb"]
        ends = interval(pesq_row["low"], pesq_row["high"], 3)
        cells += [
            number(own["paper_size_percent"], 2),
            number(own["file_percent"], 2),
            number(pesq_row["mean"], 3),
            number(pesq_row["difference"], 3, "+") + ends,
        ]
        lines.append(cells)
    header = ["k", "theta 0.65: size, %", "PESQ", "difference", "theta 0.70: size, %", "PESQ",
              "difference", f"ours (`{first}`): size, %", "file, %", "PESQ-WB",
              "difference"]  # fmt: skip
    parts = [
        f"Published: {published.ICSE}, read off the figure, differences to their FCN of "
        f"{base:g}; sizes by the paper's rule. Ours: {test_set}.",
        table(header, lines),
    ]
    lines = [
        [corpus, size, *(f"{before:.2f} -> {after:.2f}, {number(after - before, 2, '+')}"
                         for before, after in (pesq, stoi))]
        for corpus, size, pesq, stoi in published.COMPRESSED
    ]  # fmt: skip
    name = f"{first}-k{K_MAIN}"
    means = [[scores[system, m]["mean"] for m in LOSSES] for system in ("fcn", name)]
    cells = [f"{number(before, 3)} -> {number(after, 3)}, {number(after - before, 3, '+')}"
             for before, after in zip(*means, strict=True)]  # fmt: skip
    percents = f"{number(sizes[name]['paper_size_percent'], 2)} % by the rule, "
    percents += f"{number(sizes[name]['file_percent'], 2)} % of the file"
    lines.append([f"ours, {test_set}: `{name}`", percents, *cells])
    return [*parts, table(["FCN -> PP + PQ", "size", "PESQ", "STOI"], lines)]


def _by_group(rows: Sequence[Row], metric: str) -> str:
    groups = list(dict.fromkeys(row["group"] for row in rows))
    # What is compared in one noise is compared in all groups.
    systems = list(dict.fromkeys(row["system"] for row in rows if row["group"] == groups[-1]))
    found = {(r["group"], r["system"]): r for r in rows if r["metric"] == metric}
    lines = []
    for group in groups:
        own = [found[group, system] for system in systems]
        emphasis = "**" if group in (ALL, SEEN, UNSEEN) else ""
        cells = [score(row, row["system"] == "fcn") for row in own]
        name = group.removeprefix("noise ")
        lines.append([f"{emphasis}{name}{emphasis}", f"{own[0]['n']:.0f}", *cells])
    return table(["", "n", *systems], lines)


# --------------------------------------------------------------------------------------------
# (b)


def _grid(results: Path) -> list[str]:
    sweep, controls = read_csv(results / "sweep.csv"), read_csv(results / "controls.csv")
    pruning = read_json(results / "pruning.json")
    rows = [
        [_label(row, "theta"), _label(row, "k"), _label(row, "centroids"), *_sweep_cells(row)]
        for row in sweep[1:]
    ]
    header = ["bytes", "% of the .h5", "% by the paper's rule", "PESQ-WB", "STOI"]
    parts = [
        "### Theta, k and the format of the centroids",
        f"One shot, nothing is trained on. n = {sweep[0]['n']:.0f}, the bundled corpus. Bars in "
        "the figures are intervals of the difference to `models/fcn.h5`.",
        "![score against size](results/grid/pesq_wb_by_file_size.png)",
        "![score against size, with the controls](results/grid/controls.png)",
        "![score against size by the paper's rule](results/grid/pesq_wb_by_paper_size.png)",
        table(["theta", "k", "centroids", *header], rows),
        "### Controls",
        f"Each is trained for {pruning['steps']:,} steps; `k = {K_MAIN}` is quantized after that, "
        f"one shot, FP16 centroids. n = {controls[0]['n']:.0f}; differences to `models/fcn.h5`.",
    ]
    rows = []
    for row in controls[1:]:
        name, _, k = row["name"].partition(f"-k{K_MAIN}")
        what = "baseline" if name == "fcn" else CONTROLS[name]
        what += f", k = {K_MAIN}" if _label(row, "k") != "none" else ""
        rows.append([what, *_sweep_cells(row)])
    parts.append(table(["model", *header], rows))
    rows = [[row["name"], *_sweep_cells(_numbers(row))] for row in pruning["table"]]
    parts += [
        "### Against the control, and without retraining",
        "`python -m benchmarks.pruning`: differences to `control`, which had the same steps with "
        "nothing pruned. Rows that end in a share are pruned by it and not trained on.",
        table(["model", *header], rows),
    ]
    rows = [
        [name, number(1e3 * own["median_s"], 1), number(own["ratio_to_base"], 3),
         str(own["rounds"])]
        for name, own in pruning["inference"].items() if "median_s" in own
    ]  # fmt: skip
    parts.append("Time for 3 s of audio, in turns on the same machine:")
    parts.append(table(["model", "median, ms", "ratio to the control", "rounds"], rows))
    return parts


def _numbers(row: Row) -> Row:
    return {key: math.nan if value is None else value for key, value in row.items()}


def _label(row: Row, key: str) -> str:
    value = row.get(key, math.nan)
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else "none"
    return str(value)


def _sweep_cells(row: Row) -> list[str]:
    cells = [f"{row['file_bytes']:,.0f}" if math.isfinite(row["file_bytes"]) else "",
             number(row["file_percent"], 2), number(row["paper_size_percent"], 2)]  # fmt: skip
    for metric in LOSSES:
        ends = {end: row[f"{metric}_diff{end}"] for end in ("", "_low", "_high")}
        own = {"metric": metric, "n": row["n"], "mean": row[metric], "difference": ends[""],
               "low": ends["_low"], "high": ends["_high"]}  # fmt: skip
        is_base = not any(ends.values())
        cells.append(score(own, is_base))
    return cells


# --------------------------------------------------------------------------------------------
# (e), (f), (g)


def _cost(results: Path) -> list[str]:
    costs, cycles = read_json(results / "cost.json"), read_json(results / "cycles.json")
    names = [f"`{cost['name']}`" for cost in costs]
    keys = (
        ("parameters", "parameters"),
        ("weights that are not zero", "nonzero_weights"),
        ("kernels at zero", "zero_kernels"),
        ("FLOP per sample", "flop_per_step"),
        ("FLOP per sample without zero kernels", "sparse_flop_per_step"),
        ("bytes of the file", "file_bytes"),
    )
    paper = published.COST
    lines = [
        [label, *(f"{cost[key]:,}" for cost in costs), *paper.get(key, ("-", "-"))]
        for label, key in keys
    ]
    parts = [
        "### Parameters, operations, bytes",
        table(["", *names, "published FCN", "published, pruned"], lines),
        "### Cycles of the accelerator",
    ]
    dense, small = cycles[0]["layers"], cycles[-1]["layers"]
    lines = []
    for place, (one, other) in enumerate(zip(dense, small, strict=True)):
        theirs = [f"{values[place]:,}" if place < len(values) else "-"
                 for values in published.CYCLES.values()]  # fmt: skip
        cells = [f"{one['cycles']:,}", theirs[0], f"{other['sparse_cycles']:,}", theirs[1]]
        lines.append([one["name"], *cells])
    num = len(published.CYCLES["dense"])
    lines.append(
        [f"the first {num}", f"{sum(row['cycles'] for row in dense[:num]):,}",
         f"{sum(published.CYCLES['dense']):,}",
         f"{sum(row['sparse_cycles'] for row in small[:num]):,}",
         f"{sum(published.CYCLES['pruned']):,}"]
    )  # fmt: skip
    header = ["layer", names[0], "published FCN", f"{names[-1]}, without zero kernels",
              "published, pruned"]  # fmt: skip
    return [*parts, table(header, lines), "### Measured time", *_times(results)]


def _times(results: Path) -> list[str]:
    found = read_json(results / "inference.json")
    names = list(dict.fromkeys(
        name for own in found["utterances"].values() for name, value in own.items()
        if isinstance(value, dict) and "median_s" in value
    ))  # fmt: skip
    lines = []
    for seconds, own in found["utterances"].items():
        cells = [
            f"{number(1e3 * own[name]['median_s'], 1)} ({number(own[name]['ratio_to_base'], 1)})"
            if "median_s" in own.get(name, {}) else "-"
            for name in names
        ]  # fmt: skip
        lines.append([seconds, *cells])
    parts = [
        f"One utterance through the FCN on {found['cores']} cores of {found['processor']}, median "
        "ms (median ratio to ours within a round), in turns. Other work on the machine changes the "
        "times more than the ratios:",
        table(["seconds", *names], lines),
    ]
    if "growth" in found:
        lines = [
            [f"{row['seconds']:g}", number(row["time_s"], 2), f"{row['peak_bytes'] / 1e6:.0f}"]
            for row in found["growth"]
        ]
        parts += ["By length, through the library:",
                  table(["seconds", "time, s", "peak memory, MB"], lines)]  # fmt: skip
    own = found["compressed"]
    lines = [[name, number(1e3 * value["median_s"], 2), number(1 / value["ratio_to_base"], 2)]
             for name, value in own.items() if isinstance(value, dict)]  # fmt: skip
    return [*parts, "Compressed networks, ours, 3 s:",
            table(["network", "median, ms", "times as fast"], lines)]  # fmt: skip


def _rooms(results: Path) -> list[str]:
    from benchmarks.rooms import format_set

    history = read_csv(results / "joint_history.csv")
    found = read_json(results / "rooms.json")
    first, last = history[0], history[-1]
    parts = [
        f"`joint` starts from `models/fcn.h5` and is trained on, half of the speech in simulated "
        f"rooms. Validation error after epoch 1: {number(first['validation_loss'], 5)}, after "
        f"epoch {len(history)}: {number(last['validation_loss'], 5)}."
    ]
    for job, result in found["test_sets"].items():
        parts.append(format_set(job, result).replace("## ", "### ", 1))
    return parts


def departures(root: Path = ROOT) -> list[str]:
    """Returns the tables of ``docs/departures.md`` and ``docs/mnn.md``, and that of this page."""
    parts = []
    pages = {"docs/departures.md": "FCN, pruning, quantization", "docs/mnn.md": "Selection"}
    for name, title in pages.items():
        text = (root / name).read_text(encoding="utf-8")
        found = re.search(r"^## Departures[^\n]*\n+(\|.*?)(?:\n\n|\Z)", text, re.S | re.M)
        if found is None:
            raise ValueError(f"{name}: has no table below '## Departures'; put it back")
        parts += [f"### {title}", f"From [{name}]({name}):", found[1].strip()]
    return [*parts, "### These tables", _our_departures()]


def _our_departures() -> str:
    header, *rows = published.DEPARTURES
    return table(header, rows)


_SECTIONS: dict[str, Callable[[Path], list[str]]] = {
    "use": use_tables.render,
    "compression": _compression,
    "grid": _grid,
    "mnn": lambda results: [*mnn_tables.render(results), *judges_tables.render()],
    "eq10": eq10_tables.render,
    "cost": _cost,
    "rooms": _rooms,
}
