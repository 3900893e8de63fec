"""The timing itself: turns, ratios, contenders that are not installed. No speed is tested."""

import json

import pytest

from benchmarks import common, evaluation, inference, training


def test_contenders_take_turns_and_missing_ones_are_noted():
    calls = []

    def contender(name):
        return lambda: lambda: calls.append(name)

    def missing():
        raise ImportError("no such thing", name="torch")

    timing = common.take_turns({"a": contender("a"), "b": contender("b"), "c": missing}, 7, 1)
    assert calls == ["a", "b"] + ["a", "b"] * 7
    assert len(timing.seconds["a"]) == 7
    assert timing.skipped == {"c": "not installed (torch)"}
    assert timing.as_json("a")["c"] == {"skipped": "not installed (torch)"}


def test_ratios_are_taken_within_a_round():
    timing = common.Timing({"ours": [1.0, 10.0, 1.0], "theirs": [2.0, 20.0, 4.0]})
    assert timing.ratio("theirs", "ours") == 2.0
    assert timing.ratio("ours", "ours") == 1.0
    assert timing.median("ours") == 1.0


def test_too_few_rounds_are_refused(capsys):
    with pytest.raises(ValueError, match="at least 7"):
        common.take_turns({}, 3)
    for module in (training, inference, evaluation):
        assert module.main(["--rounds", "1"]) == 1
        assert "at least 7" in capsys.readouterr().err


def test_results_are_strict_json_with_what_made_them(tmp_path):
    common.write_result(tmp_path / "r.json", {"x": 1.0})
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["x"] == 1.0
    assert result["cores"] >= 1
    assert result["packages"]["numpy"]
