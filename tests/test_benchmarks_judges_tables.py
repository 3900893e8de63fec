"""The tables of judges and specialists on the results page."""

import re

import pytest

from benchmarks.reproduce import judges_tables
from benchmarks.reproduce.judges_tables import RAW
from benchmarks.reproduce.raw import read_json


def test_every_judge_and_test_has_its_recovery():
    text = "\n\n".join(judges_tables.render())
    found = read_json(RAW / "judges.json")
    for name, row in found["judges"].items():
        line = next(
            ln for ln in text.splitlines() if ln.startswith(f"| {judges_tables.HEADINGS[name]} |")
        )
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        values = [*(row["tests"][test][0] for test in found["mixtures"]), row["mean"][0]]
        assert [float(cell.split()[0]) for cell in cells] == [round(value) for value in values]


def test_what_is_asked_for_is_said_to_be_reached_only_if_it_is():
    names = ("judges", "selection", "pool_three")
    found, costs, tools = (read_json(RAW / f"{name}.json") for name in names)
    lines = judges_tables._asked(found, costs, tools).splitlines()[2:]
    assert len(lines) == 9
    for row in found["judges"].values():
        row["mean"] = [100.4, 100, 101]
        row["tests"] = {test: [99.0, 98.0, 100.0] for test in row["tests"]}
    improved = judges_tables._asked(found, costs, tools).splitlines()[2:]
    for line, better in zip(lines[:4], improved, strict=False):
        asked, reached = (float(x) for x in re.findall(r"\| (\d+)", line)[:2])
        assert line.endswith("yes |" if reached >= asked else "no |")
        assert better.endswith("yes |")
    shares = [float(share) for share in re.findall(r"([\d.]+) %", lines[4])[1:]]
    assert lines[4].endswith("yes |" if max(shares) <= 10 else "no |") and len(shares) == 2
    for line in lines[5:]:
        low = float(re.search(r"\(([+-][\d.]+) to", line)[1])
        assert line.endswith("yes |" if low > 0 else "no |"), line


@pytest.fixture
def found():
    def gains(sdr):
        return {metric: [sdr, sdr - 0.1, sdr + 0.1] for metric in judges_tables.DIGITS}

    systems = {name: gains(0.0) for name in judges_tables.SYSTEMS}
    better, worse = ({**systems, "ranker": gains(sign * 0.5)} for sign in (1, -1))
    bases = (judges_tables.GENERAL, judges_tables.GONE_ON, judges_tables.GENERAL_FP32)
    return {
        "hours": 0.1,
        "specialists": {name: {"bytes": 32000} for name in ("dry", "reverberant", "all")},
        "generalists": {name: {"bytes": 32348} for name in bases},
        "tests": {
            "dry": {"mixtures": 4, "gains": dict.fromkeys(bases, better)},
            "reverberant": {"mixtures": 4, "gains": dict.fromkeys(bases, worse)},
        },
    }


def test_specialists_are_better_only_with_the_whole_interval(found):
    text = judges_tables.specialists(found)[-1]
    assert text.count("better by the whole interval in 1 of 2 tests by SDR (dry)") == 3
    assert text.count("worse in 1 of 2 tests by SDR (reverberant)") == 3
    for row in found["tests"].values():
        for own in row["gains"].values():
            own["ranker"] = {metric: [0.5, -0.1, 1.1] for metric in judges_tables.DIGITS}
    assert "better by the whole interval in 0 of 2 tests by SDR, 0" in judges_tables._verdict(
        found["tests"]
    )


def test_the_table_of_gains_leaves_out_the_base(found):
    table = judges_tables._gains(found["tests"], judges_tables.GONE_ON, ["ranker", "all"])
    assert len(table.splitlines()) == 2 + 2 and "gone on" not in table
