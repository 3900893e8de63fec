"""The comparison of judges: a small run, and its numbers."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks import judges


def test_recovery_is_the_share_of_the_way_to_the_oracle():
    scores = np.array([[0.0, 4.0], [2.0, 6.0]])
    every = np.arange(2)[None]
    assert_allclose(judges.recovery(scores, np.array([4.0, 6.0]), every), [100])
    assert_allclose(judges.recovery(scores, np.array([2.0, 4.0]), every), [0])
    assert_allclose(judges.recovery(scores, np.array([5.0, 7.0]), every), [150])
    assert_allclose(judges.recovery(np.ones((2, 2)), np.ones(2), every), [0])


def test_the_unseen_test_is_in_no_mean():
    scores = np.array([[0.0, 4.0], [2.0, 6.0]])
    good, bad = {"ranker": scores[:, 1]}, {"ranker": scores[:, 0]}
    row = judges.tabulate({"male": (scores, good), judges.UNSEEN: (scores, bad)})["ranker"]
    assert row["mean"][0] == 100 and row["tests"][judges.UNSEEN][0] == -100
    assert row["tests"]["male"][1] <= 100 <= row["tests"]["male"][2]


def test_a_small_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(judges, "MAX_SAMPLES", 24000)
    plan = judges.plan

    def few(*args, **kwargs):
        found = plan(*args, **kwargs)
        return {key: own[:1] for key, own in found.items() if key[0] == "noise"}

    monkeypatch.setattr(judges, "plan", few)
    out = tmp_path / "judges.json"
    words = ["--mixtures", "1", "--json", str(out), "--other", "denoise=models/denoise.icse"]
    assert judges.main(words) == 0
    result = json.loads(out.read_text())
    assert result["mixtures"] == {"birds": 1, "typing": 1, "engine": 1}
    rows = {*judges.JUDGES, *judges.SUMS, *judges.HEARINGS, "denoise", "denoise itself"}
    assert set(result["judges"]) == rows
    for test, found in result["sdr_db"].items():
        assert len(found["experts"]) == 3
        for name in (*judges.JUDGES, *judges.HEARINGS, "denoise"):
            assert found["selected"][name] == pytest.approx(
                min(found["experts"], key=lambda value: abs(value - found["selected"][name])),
                abs=0.01,
            ), (test, name)
    assert "| mean of eight |" in capsys.readouterr().out
