"""The part of the results page about the network for use, beside other people's tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.quality import ALL, METRICS, SEEN, UNSEEN
from benchmarks.reproduce import published
from benchmarks.reproduce.raw import Row, read_json
from benchmarks.reproduce.text import number

RATE_KHZ = 16
#: Of the tables, with decimals; the raw files also have PESQ-NB.
SHOWN = {"pesq_wb": 3, "stoi": 3, "estoi": 3, "si_sdr_db": 1}
BY_SNR = ("pesq_wb", "stoi")
LABELS = METRICS | {"si_sdr_db": "SI-SDR, dB"}
IN_ROOMS = (
    "The SNR is that of all the speech in the room; the reference is the direct sound with its "
    "early reflections."
)
GAINS = "Means, and gains over noisy with 95 % intervals (Student's t)."


def render(results: Path) -> list[str]:
    """Returns the section of the network for use.

    Args:
        results: Folder of its raw files.
    """
    found, rooms = read_json(results / "open.json"), read_json(results / "rooms.json")
    parts = ["### The systems", *_systems(found, results)]
    parts += ["### All noises", f"{found['test_set']}. {GAINS}"]
    if (results / "open.png").exists():
        parts.append("![quality against bytes](results/use/open.png)")
    parts += [_scores(found, ALL), *_kept(found)]
    for group in (SEEN, UNSEEN):
        if group in found["noisy"]:
            parts += [f"### {group[0].upper()}{group[1:]}", _scores(found, group)]
    for metric in BY_SNR:
        parts += [f"### {LABELS[metric]} by SNR", _by_snr(found, metric)]
    parts += ["### In rooms", f"{rooms['test_set']}. {IN_ROOMS} {GAINS}"]
    parts += [_scores(rooms, ALL), *_kept(rooms)]
    for metric in BY_SNR:
        parts += [f"### {LABELS[metric]} in rooms by SNR", _by_snr(rooms, metric)]
    for where, reasons in (
        ("", found["skipped"] | found["left_out"]),
        (" in rooms", rooms["skipped"]),
    ):
        parts += [f"Not run{where}: {name}: {reason}." for name, reason in reasons.items()]
    return parts


def _systems(found: Row, results: Path) -> list[str]:
    costs = {Path(cost["name"]).name: cost for cost in read_json(results / "cost.json")}
    speed = read_json(results / "speed.json")
    lines = []
    for name, system in found["systems"].items():
        cost = costs.get(system["weights"].split(",")[0])
        facts = _our_facts(name, cost) if cost else _their_facts(name, system)
        factors = [number(own["factors"].get(name), 4) for own in speed]
        lines.append([name, f"{system['bytes']:,}", *facts[:2], *factors, *facts[2:]])
    header = ["system", "bytes", "parameters", "million MACs per second",
              *(f"real-time factor, {own['given']}" for own in speed), "latency, ms", "causal",
              "trained on"]  # fmt: skip
    return [table(header, lines), "\n".join(f"- {line}" for line in _about(speed))]


def _about(speed: Sequence[Row]) -> list[str]:
    """Returns where the facts about the systems come from, a sentence or two for each kind."""
    told = [
        "Bytes are those of the files with the weights, as they are installed.",
        "Real-time factors are seconds on one core per second of audio; each column was measured "
        "in one run, the systems taking turns.",
    ]
    for own in speed:
        commit = f", commit {own['git_commit'][:9]}" if own["git_commit"] else ""
        told.append(f"{own['given'].capitalize()}: `{own['source']}`, {own['processor']}{commit}.")
    told.append(
        "Frame by frame, `denoise` had the same network with other weights, whose values do not "
        "matter for speed."
    )
    told += [
        "The latency of others is the delay of their output, which was measured, and the block in "
        "which they take samples.",
        published.TOOLS_SOURCE,
    ]
    return told


def _our_facts(name: str, cost: Mapping[str, Any]) -> list[str]:
    """Returns parameters, MACs, latency, whether it is causal, and what it was trained on."""
    latency = number(cost["latency_ms"], 0)
    whole = cost["needs_whole_utterance"]
    return [
        f"{cost['parameters']:,}",
        f"{cost['mac_per_second'] / 1e6:,.0f}",
        "the whole utterance" if whole else latency,
        "no" if whole or cost["lookahead"] else "yes",
        published.OUR_TRAINING.get(name, "-"),
    ]


def _their_facts(name: str, system: Mapping[str, Any]) -> list[str]:
    tool = published.TOOLS.get(name, published.Tool())
    delay_ms = system["delay_samples"] / RATE_KHZ
    latency = number(delay_ms + tool.block_ms, 0) if tool.block_ms else tool.latency
    return [tool.parameters, tool.million_macs, latency, tool.causal, tool.trained_on]


def _scores(found: Row, group: str) -> str:
    noisy = found["noisy"][group]
    lines = [["noisy", str(noisy["n"]), *(number(noisy[m], d) for m, d in SHOWN.items())]]
    for name, system in found["systems"].items():
        own = system["groups"][group]
        lines.append([name, str(own["n"]), *(_score(own[m], d) for m, d in SHOWN.items())])
    return table(["system", "n", *(LABELS[metric] for metric in SHOWN)], lines)


def _score(own: Mapping[str, float | None], digits: int) -> str:
    gain = f"{number(own['gain'], digits, '+')} ± {number(own['gain_ci95'], digits)}"
    return f"{number(own['mean'], digits)}, {gain}"


def _by_snr(found: Row, metric: str) -> str:
    groups, digits = [name for name in found["noisy"] if name.endswith(" dB")], SHOWN[metric]
    noisy = [number(found["noisy"][group][metric], digits) for group in groups]
    lines = [["noisy", *noisy]]
    for name, system in found["systems"].items():
        lines.append([name, *(_score(system["groups"][group][metric], digits) for group in groups)])
    return table(["system", *groups], lines)


def _kept(found: Row) -> list[str]:
    """Returns which rows are of an earlier run."""
    commits: dict[str, list[str]] = {}
    for name, system in found["systems"].items():
        if "git_commit" in system:
            commits.setdefault((system["git_commit"] or "unknown")[:9], []).append(name)
    if not commits:
        return []
    told = "; ".join(f"{', '.join(names)} (commit {commit})" for commit, names in commits.items())
    return [f"Not changed since an earlier run of the command, and not run again: {told}."]
