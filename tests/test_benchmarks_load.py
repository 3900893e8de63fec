"""The load benchmark: a tiny run, and what it says about memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.trials import load

ROOT = Path(__file__).parent.parent


def test_a_tiny_run_measures_every_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "NUM_CLIPS", 1)
    monkeypatch.setattr(load, "SAMPLE_EVERY_S", 0.05)
    result = tmp_path / "load.json"
    words = ["--files", "4", "--hours", "0.002", "--experts", "4", "--json", str(result)]
    assert load.main(words) == 0
    text = capsys.readouterr().out
    rows = json.loads(result.read_text())["rows"]
    names = ["enhance, files", "score, files", "enhance, long", "select, long",
             "select, 3 experts", "select, 4 experts"]  # fmt: skip
    assert [row["name"] for row in rows] == names and all(name in text for name in names)
    assert [row["files"] for row in rows] == [4, 8, 1, 1, 1, 1]
    assert rows[2]["audio_seconds"] == pytest.approx(7.2)
    for row in rows:
        assert row["peak_mib"] > 20 and row["cpu_seconds"] > 0 and row["samples"] > 1
        assert row["real_time_factor"] == pytest.approx(row["wall_seconds"] / row["audio_seconds"])
    assert str(tmp_path) not in result.read_text().replace(str(result), "")


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(ValueError, match="python -m speech.enhance failed: .*no such file"):
        load.run(["speech.enhance", tmp_path / "absent", "-o", tmp_path / "out"])


def test_memory_is_that_of_the_process_and_its_children():
    code = (
        "import subprocess, sys\n"
        "block = bytearray(60 << 20)\n"
        "child = 'block = bytearray(40 << 20); print(0, flush=True); input()'\n"
        "subprocess.run([sys.executable, '-c', child])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        process.stdout.readline()
        found = load.memory_of_tree(process.pid)
        process.stdin.close()
    assert 100 < found / load.MIB < 160
    assert load.memory_of_tree(process.pid) == 0


def test_the_documented_table_is_that_of_the_committed_figures():
    result = json.loads((ROOT / "benchmarks/results/load.json").read_text())
    assert load.markdown(result["rows"]) in (ROOT / "docs/scaling.md").read_text()


def test_growth_and_slope_leave_the_start_out():
    seconds = [float(second) for second in range(40)]
    flat = load.Watch(seconds, [10 * place for place in range(10)] + 30 * [100])
    assert (flat.growth(), flat.slope(), flat.peak) == (0, 0, 100)
    leak = load.Watch(seconds, [5 * place for place in range(40)])
    assert leak.growth() == 5 * 20 and leak.slope() == pytest.approx(5)
    assert load.Watch([0.0], [7]).growth() is None and load.Watch([0.0], [7]).slope() is None
