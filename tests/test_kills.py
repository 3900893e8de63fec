"""Commands that are killed by SIGKILL at random moments end as if they had never been killed."""

import json
import signal
from pathlib import Path

import pytest

from benchmarks.trials import kills

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")

#: Of each kind one: training, scoring, writing many files.
FAST = ("dae", "sweep", "prepare", "enhance")


def check(rows, num_kills):
    assert sum(row.kills for row in rows) == num_kills
    for row in rows:
        assert row.runs and row.files, row
        assert (row.identical, row.lost, row.half) == (row.runs, 0, 0), row
        # A kill leaves one half-written file at most, and the next run removes it.
        assert row.left == 0, row


def test_killed_commands_end_like_unbroken_ones(tmp_path):
    check(kills.kill_all(tmp_path, FAST, 8), 8)


@pytest.mark.slow
def test_every_command_survives_many_kills(tmp_path, capsys):
    result = tmp_path / "kills.json"
    assert kills.main(["--kills", "32", "--seed", "1", "--json", str(result)]) == 0
    rows = [kills.Row(**row) for row in json.loads(result.read_text())["rows"]]
    assert [row.name for row in rows] == list(kills.CASES)
    check(rows, 32)
    assert "python -m pruning.run" in capsys.readouterr().out


def test_what_is_lost_half_or_other_is_counted(tmp_path):
    """The judge itself, on a folder that is not as it should be."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        (folder / "history.csv").write_text(f"epoch,seconds\n1,{len(folder.name)}\n")
        (folder / "run.json").write_text(json.dumps(folder.name))
        (folder / "a.txt").write_text("a")
        (folder / "cache.jsonl").write_text('{"a": 1}\n{"cut')
    assert kills.contents(whole) == kills.contents(broken)
    assert kills.contents(whole).keys() == {"history.csv", "a.txt"}
    assert kills.unreadable(broken) == []
    (broken / "history.csv").write_text("epoch,seconds\n2,0\n")
    (broken / "a.txt").write_text("b")
    assert not kills.contents(whole).items() & kills.contents(broken).items()
    for name in ("m.h5", "m.icse", "c.npz", "x.wav", "x.json", "empty.csv"):
        (broken / name).write_bytes(b"" if name == "empty.csv" else b"half")
    (broken / "cache.jsonl").write_text('{"cut\n{"a": 1}\n')
    (broken / ".hidden.h5").write_bytes(b"half")
    assert len(kills.unreadable(broken)) == 7


def test_a_command_that_fails_is_an_error_and_no_kill(tmp_path):
    kills.write_inputs(tmp_path / "data")
    case = kills.Case("speech.enhance", lambda data, out: [f"{data}/absent", "-o", f"{out}/x"])
    with kills.Starter([case.module]) as starter:
        with pytest.raises(ValueError, match="speech.enhance failed: .*absent: no such file"):
            starter.run(case, tmp_path / "data", tmp_path / "out")
        good = kills.CASES["enhance"]
        assert starter.run(good, tmp_path / "data", tmp_path / "out", 0.0) is None
        assert starter.run(good, tmp_path / "data", tmp_path / "out") > 0


def test_the_documented_table_is_that_of_the_committed_figures():
    result = json.loads((ROOT / "benchmarks/results/kills.json").read_text())
    rows = [kills.Row(**row) for row in result["rows"]]
    assert kills.Row(**result["all"]) == kills.total(rows)
    assert kills.markdown(rows) in (ROOT / "docs/scaling.md").read_text()


def test_the_table_adds_up():
    rows = [kills.Row("a", "python -m a", 3, 2, 5, 2), kills.Row("b", "", 1, 1, 7, 0, 4, 1, 1)]
    assert kills.total(rows) == kills.Row("all", "", 4, 3, 12, 2, 4, 1, 1)
    assert kills.markdown(rows).splitlines()[-1] == "| all | 4 | 3 | 2 | 12 | 4 | 1 | 1 |"
