"""Score against size: what is made, once, and what is shown of it."""

import json
from pathlib import Path

import pytest

from benchmarks import sizes
from tests.builders import write_mask_network

ROOT = Path(__file__).parent.parent


def test_a_file_is_made_once(tmp_path, monkeypatch):
    start = tmp_path / "start.icse"
    write_mask_network(start)
    monkeypatch.setattr(sizes, "START", start)
    way = next(way for way in sizes.ways(()) if way.pruned)
    path = sizes.make(way, tmp_path / "out")
    made = path.read_bytes()
    assert len(made) < start.stat().st_size
    monkeypatch.setattr(sizes.common, "run_command", lambda *words: pytest.fail(f"ran {words}"))
    assert sizes.make(way, tmp_path / "out").read_bytes() == made
    names = [way.name for way in sizes.ways(("--speech", "x", "--noise", "y"))]
    assert len(set(names)) == len(names)


def test_the_guide_and_the_picture_have_what_was_measured(tmp_path):
    result = json.loads((ROOT / "benchmarks/results/sizes.json").read_text())
    table, series = result["table"], result["series"]
    lines = sizes.format_table(table, series).splitlines()
    assert len(lines) == len(table) + 1
    guide = (ROOT / "docs/compression.md").read_text()
    for line in lines[2:]:
        name, scores = line.split(" | ")[1], " | ".join(line.split(" | ")[2:])
        assert scores in guide or name in sizes.FCN_KS, line
    sizes.draw(table, series, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10000


def test_wrong_usage():
    for wrong in (["--speech", "x"], ["--noise", "x"], ["--control", "nameless"]):
        with pytest.raises(SystemExit) as caught:
            sizes.main(wrong)
        assert caught.value.code == 2
