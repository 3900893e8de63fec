"""The part of the results page about the judges, from ``benchmarks/results``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.reproduce.raw import Row, read_json
from benchmarks.reproduce.text import interval, number
from mnn.scoring import DEFAULT_JUDGE

RAW = Path(__file__).parent.parent / "results"

UNSEEN = "unseen"
HEADINGS = {
    "autoencoder": "`--judge autoencoder`",
    "ranker": "`--judge ranker`, the default",
    "both": "`--judge both`",
    "added by files": "`--combine files`",
    "added by bands": "`--combine bands`",
    "ranker, mixture alone": "`ranker` that hears the mixture alone",
    "ranker, estimates alone": "`ranker` that hears the mean of the estimates alone",
    "denoise": "`--judge ranker --ranker models/denoise.icse`",
    "denoise itself": "`models/denoise.icse` itself",
}
COMMANDS = (
    "Made by `python -m benchmarks.judges --timit corpus/speech --noise corpus/noise --other "
    "denoise=models/denoise.icse --experts DIR --json benchmarks/results/judges.json`, and the "
    "same with `--split TRAIN --mixtures 6` and judges_train.json."
)

#: Results of `benchmarks.pool`, and what is in the pool.
POOLS = {
    "pool": "five tools of other people",
    "pool_three": "three tools of other people",
    "pool_others": "three tools of other people and without `denoise.icse`",
    "pool_open": "five tools of other people, on the open corpus",
}


def render(raw: Path = RAW) -> list[str]:
    """Returns the tables of the judges and of the specialists.

    Args:
        raw: Folder of judges.json, judges_train.json and the results of `POOLS`; and of
            specialists.json and specialists_noise.json, which may be absent.
    """
    test, development = (read_json(raw / f"{name}.json") for name in ("judges", "judges_train"))
    parts = [
        "### Judges: autoencoder, ranker, both",
        COMMANDS + " The experts are the quantized ones. Recovery in SDR is in percent, and a sum "
        "of estimates can pass 100 %; in brackets stand 95 % bootstrap intervals.",
        _recoveries(test),
        "On voices and parts of noises of the training, where the constants were chosen:",
        _recoveries(development),
        "### Judges: what was asked and what was reached",
        _asked(test, read_json(raw / "selection.json"), read_json(raw / "pool_three.json")),
    ]
    if (raw / "specialists.json").exists():
        found = read_json(raw / "specialists.json")
        parts += [*specialists(found), *two_stages(found)]
    if (raw / "specialists_noise.json").exists():
        parts += later(read_json(raw / "specialists_noise.json"))
    for name, title in POOLS.items():
        parts += pool(read_json(raw / f"{name}.json"), title)
    return parts


def _recoveries(found: Row) -> str:
    tests = list(found["mixtures"])
    lines = [["mixtures", *(str(found["mixtures"][test]) for test in tests), ""]]
    for name, row in found["judges"].items():
        lines.append([HEADINGS[name], *(_cell(row["tests"][t]) for t in tests), _cell(row["mean"])])
    return table(["judge", *tests, "mean of eight"], lines)


def _cell(values: Sequence[float]) -> str:
    value, low, high = values
    return number(value, 0) + interval(low, high, 0, "")


def _asked(found: Row, costs: Row, tools: Row) -> str:
    """Returns the aims of the judges beside what the default one reaches.

    Args:
        found: Of `benchmarks.judges`.
        costs: Of `benchmarks.selection`.
        tools: Of `benchmarks.pool`, with three tools of other people.
    """
    own = found["judges"][DEFAULT_JUDGE]
    low_test, low = min(_eight(own).items(), key=lambda item: item[1][0])
    rows = [
        ["mean of the eight tests, one pick for each file", "88 %", _cell(own["mean"])],
        [f"the weakest of the eight tests, {low_test}", "75 %", _cell(low)],
        ["sum by time and band, as a share of the oracle's gain on chance", "100 %",
         _cell(found["judges"]["added by bands"]["mean"])],
    ]  # fmt: skip
    if UNSEEN in found["mixtures"]:
        unseen = own["tests"][UNSEEN]
        rows.append(["voices and noises that nothing has met", "70 %", _cell(unseen)])
    asked = [float(row[1].split()[0]) for row in rows]
    for row, wanted in zip(rows, asked, strict=True):
        row.append("yes" if float(row[2].split()[0]) >= wanted else "no")
    rows = [[f"recovery in SDR: {name}", *rest] for name, *rest in rows]
    shares = [own["cpu"] for title, own in costs["overheads"].items() if "FCNs" in title]
    rows.append(
        ["judging, of the time of three FCNs, at most", "10 %",
         " and ".join(f"{number(100 * share, 1)} %" for share in shares),
         "yes" if max(shares) <= 0.1 else "no"]
    )  # fmt: skip
    for what, gains in (("tool", tools["tool_gains"]), ("member", tools["gains"])):
        for name in ("ranker", "calibrated"):
            base, _, low, _ = gains[name]["sdr"]
            rows.append(
                [f"pool with three tools, one pick ({name}), SDR over the best {what}, {base}",
                 "above 0 dB", _gain(gains[name]["sdr"], 2),
                 "yes" if low > 0 else "no"]
            )  # fmt: skip
    return table(["", "asked for", "reached", "is it reached"], rows)


def _eight(row: Row) -> dict[str, Any]:
    return {test: values for test, values in row["tests"].items() if test != UNSEEN}


# --------------------------------------------------------------------------------------------
# Specialists

SYSTEMS = {
    "autoencoder": "picked by the autoencoder",
    "ranker": "picked by the ranker",
    "both": "picked by both",
    "added by files": "added",
    "added by bands": "added by time and band",
    "oracle": "oracle: the best for each file",
    "all": "one network, gone on with all conditions",
    "generalist, FP32": "one network, FP32",
}
DIGITS = {"sdr": 2, "pesq_wb": 3, "stoi": 4}
GENERAL, GENERAL_FP32, GONE_ON = "generalist", "generalist, FP32", "all"


def specialists(found: Row) -> list[str]:
    """Returns the tables of `benchmarks.specialists`.

    Args:
        found: Its result.
    """
    tests = found["tests"]
    own = found["specialists"]
    general, fp32 = (found["generalists"][name]["bytes"] for name in (GENERAL, GENERAL_FP32))
    version = found["generalists"][GENERAL].get("sha256", "")[:12]
    sizes = [one["bytes"] for name, one in own.items() if name != GONE_ON]
    return [
        "### Specialists of the network over time and frequency",
        "Made by `python -m benchmarks.specialists --speech corpus/speech librispeech --noise "
        "corpus/noise --json benchmarks/results/specialists.json`. "
        f"{len(sizes)} specialists of {min(sizes):,} to {max(sizes):,} bytes went on from "
        f"`models/denoise_fp32.icse` for {60 * found['hours']:.0f} minutes each, and so did one "
        f"network with all of their conditions. The generalist is `models/denoise.icse` "
        f"(sha256 `{version}`, {general:,} bytes). In its FP32 form it has {fp32:,} bytes, more "
        f"than all specialists of one test together ({_pool_bytes(found)}). Gains are means over "
        "mixtures of test voices, mixture by mixture; in brackets stand 95 % intervals.",
        "Gain over the generalist of one specialist's size:",
        _gains(tests, GENERAL, [name for name in SYSTEMS]),
        "Gain over the network that went on for as long with all conditions, also of one "
        "specialist's size:",
        _gains(tests, GONE_ON, ["ranker", "added by bands", "oracle"]),
        "Gain over the generalist in FP32:",
        _gains(tests, GENERAL_FP32, ["ranker", "added by bands", "oracle"]),
        _verdict(tests),
    ]


def _pool_bytes(found: Row) -> str:
    from benchmarks.specialists import SPECIALISTS

    sizes = [
        sum(found["specialists"][name]["bytes"] for name in names)
        for names in SPECIALISTS.values()
        if all(name in found["specialists"] for name in names)
    ]
    return f"{min(sizes):,} to {max(sizes):,}" if len(set(sizes)) > 1 else f"{sizes[0]:,}"


def _gains(tests: Row, base: str, names: Sequence[str]) -> str:
    lines = []
    for test, row in tests.items():
        for name in names:
            if name == base:
                continue
            cells = []
            for metric, digits in DIGITS.items():
                mean, low, high = row["gains"][base][name][metric]
                cells.append(number(mean, digits, "+") + interval(low, high, digits))
            lines.append([test, str(row["mixtures"]), SYSTEMS[name], *cells])
    return table(["test", "n", "system", "SDR, dB", "PESQ-WB", "STOI"], lines)


def _verdict(tests: Row) -> str:
    """Says in how many tests the picked specialist beats each generalist by the whole interval."""
    words = []
    for base, what in (
        (GENERAL, "the generalist of one specialist's size"),
        (GONE_ON, "the network that went on with all conditions"),
        (GENERAL_FP32, "the generalist in FP32"),
    ):
        above = {
            metric: [t for t, row in tests.items() if row["gains"][base]["ranker"][metric][1] > 0]
            for metric in DIGITS
        }
        below = {
            metric: [t for t, row in tests.items() if row["gains"][base]["ranker"][metric][2] < 0]
            for metric in DIGITS
        }
        words.append(
            f"- Against {what}, what the ranker picks is better by the whole interval in "
            f"{_counts(above, tests)}, and worse in {_counts(below, tests)}."
        )
    return "\n".join(words)


def _counts(found: dict[str, list[str]], tests: Row) -> str:
    labels = {"sdr": "SDR", "pesq_wb": "PESQ-WB", "stoi": "STOI"}
    return ", ".join(
        f"{len(names)} of {len(tests)} tests by {labels[metric]}"
        + (f" ({', '.join(names)})" if names else "")
        for metric, names in found.items()
    )


def later(found: Row) -> list[str]:
    """Returns the gains of the specialists by noise over a generalist that was trained further."""
    own = found["generalists"][GENERAL]
    return [
        "### Specialists by noise beside a generalist that was trained further",
        "Made by the same command with `--experiments noise --json "
        "benchmarks/results/specialists_noise.json`: the same specialists beside the "
        f"`models/denoise.icse` of a later training (sha256 `{own['sha256'][:12]}`).",
        _gains(
            found["tests"], GENERAL, ["autoencoder", "ranker", "both", "added by bands", "oracle"]
        ),
    ]


def two_stages(found: Row) -> list[str]:
    """Returns the table of copies that choose and winners that run in full."""
    rows = found["two_stages"]
    if not rows:
        return []
    whole = rows[0]
    lines = [
        [row["chosen_by"], f"{row['selector_bytes']:,}" if row["selector_bytes"] else "-",
         f"{row['read_bytes']:,.0f}", _share(row, whole, "read_bytes"),
         number(1e3 * row["seconds"], 1), _share(row, whole, "seconds"),
         number(100 * row["agreement"], 1) + " %", number(row["sdr_db"], 2)]
        for row in rows
    ]  # fmt: skip
    header = [
        "chosen by", "bytes of the copies", "bytes read for one file", "of all in full",
        "ms for each second of audio", "of all in full", "same choice", "SDR, dB",
    ]  # fmt: skip
    return [
        "### Two stages with the network over time and frequency",
        f"Specialists by noise in FP32 (`.h5`, {whole['expert_bytes']:,} bytes together) on "
        f"{whole['mixtures']} mixtures of their noises. Copies choose by the ranker, and only the "
        "winner runs in full. The small form starts anew and is trained for half the time. Times "
        "are those of the processor, medians over mixtures, with the judges.",
        table(header, lines),
    ]


def _share(row: Row, whole: Row, key: str) -> str:
    return number(100 * row[key] / whole[key], 0) + " %"


def _gain(found: Sequence[Any], places: int) -> str:
    """Returns a mean gain of `benchmarks.pool` with its interval."""
    _, mean, low, high = found
    return f"{number(mean, places, '+')}{interval(low, high, places)}"


def _over_tools(gains: Row, digits: dict[str, int]) -> list[str]:
    """Returns the gains of picks and sums over the best of the tools of other people."""
    names = ("ranker", "calibrated", "calibrated sum", "calibrated bands")
    lines = [
        [name, *(_gain(gains[name][metric], places) for metric, places in digits.items())]
        for name in names
    ]
    labels = {"sdr": "SDR, dB,", "pesq_wb": "PESQ-WB", "stoi": "STOI"}
    header = [f"{labels[metric]} over {gains[names[0]][metric][0]}" for metric in digits]
    return [
        "Over the best of the tools of other people, likewise:",
        table(["", *header], lines),
    ]


def pool(found: Row, title: str) -> list[str]:
    """Returns a table of `benchmarks.pool`: members, choices, and gains over the best member."""
    if "gains" not in found:
        return []
    digits = {"sdr": 2, "pesq_wb": 3, "stoi": 4}
    lines = []
    for row in found["table"]:
        cells = []
        for metric, places in digits.items():
            text = number(row[metric], places)
            if row["system"] in found["gains"]:
                text += f", {_gain(found['gains'][row['system']][metric], places)}"
            cells.append(text)
        share = row.get("recovery", {}).get("sdr")
        picks = found["picks"].get(row["system"], {})
        chosen = ", ".join(
            f"{name} {count}" for name, count in sorted(picks.items(), key=lambda own: -own[1])
        )
        recovered = "" if share is None else number(100 * share, 0) + " %"
        lines.append([row["system"], *cells, recovered, chosen])
    best = next(iter(found["gains"].values()))
    likeness = ", ".join(f"{name} {number(value, 2)}" for name, value in found["likeness"].items())
    beats = [
        f"{name} in {labels[metric]}"
        for labels in [{"sdr": "SDR", "pesq_wb": "PESQ-WB", "stoi": "STOI"}]
        for name, own in found["gains"].items()
        for metric in digits
        if own[metric][2] > 0 and name != "clean"
    ]
    verdict = (
        "What was chosen or added is better than the best member by the whole interval in: "
        f"{', '.join(beats) or 'nothing'}."
    )
    return [
        f"### The pool with {title}",
        f"Made by `{' '.join(found['command'])}`. "
        f"The test set is: {found['test_set']}. "
        "After the mean of a choice or a sum stands its gain over the best single member "
        f"({best['sdr'][0]} in SDR, {best['pesq_wb'][0]} in PESQ-WB, {best['stoi'][0]} in STOI), "
        "file by file.",
        table(["system", "SDR, dB", "PESQ-WB", "STOI", "recovery in SDR", "picks"], lines),
        verdict,
        *_over_tools(found["tool_gains"], digits),
        f"The correlation of members' errors with that of the ranker's reference is: {likeness}.",
    ]
