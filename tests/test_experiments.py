"""The experiments: tables from rows, published figures, a tiny run that is killed and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest

import mnn.dae
import mnn.experts
from eval.metrics import METRICS
from mnn import experiments, published
from mnn.arbiter import Arbiter
from mnn.config import FitConfig
from mnn.experiments import Scale, conditions_of, main, plan_tests, selections
from mnn.scoring import needs_of
from mnn.selector import Selector
from mnn.tables import confusion, recovery, tabulate
from speech.data.corpus import bundled_noise, bundled_speech, render

GOLDEN = Path(__file__).parent / "golden" / "mnn_published.json"


def test_published_tables_are_the_golden_ones():
    golden = json.loads(GOLDEN.read_text())
    for name in experiments.EXPERIMENTS:
        assert list(published.EXPERTS[name]) == golden[name]["experts"]
        for metric, tables in published.TABLES.items():
            for row, values in tables[name].items():
                assert list(values) == golden[name][metric][row]
                assert len(values) == len(published.EXPERTS[name]) + len(published.COLUMNS)


def row(condition, a, b, pick):
    scores = {"a": {"sdr": a, "stoi": 0.5}, "b": {"sdr": b, "stoi": 0.7}}
    return {"condition": condition, "scores": scores, "picks": {"x": pick}}


def test_tables_average_and_recover():
    rows = [row("one", 1.0, 3.0, "b"), row("one", 5.0, 1.0, "b"), row("two", None, 2.0, "a")]
    table = {(ln["condition"], ln["metric"]): ln for ln in tabulate(rows, ["a", "b"], ["x"])}
    one = table["one", "sdr"]
    assert (one["a"], one["b"], one["chance"], one["oracle"], one["x"]) == (3.0, 2.0, 2.5, 4.0, 2.0)
    assert one["recovery"]["x"] == pytest.approx(-0.5 / 1.5)
    mean, low, high = one["above_chance"]["x"]  # gains of +1 and -2 dB
    assert (mean, low, high) == pytest.approx((-0.5, -2.0, 1.0))
    assert table["two", "sdr"] == {"condition": "two", "metric": "sdr", "n": 0, "unscored": 1}
    assert table["all", "sdr"]["n"] == 2 and table["all", "stoi"]["n"] == 3
    assert table["two", "stoi"]["recovery"]["x"] == pytest.approx(-1)
    assert confusion(rows, ["a", "b"], "x") == [[0, 1], [0, 1]]
    assert recovery(1.0, 1.0, 1.0) is None


def test_conditions_and_test_plans_are_the_paper_s():
    utterances, noises = bundled_speech("TEST"), bundled_noise("TEST")
    types = experiments.NOISE_TYPES["bundled"]
    plans = {
        condition.name: plan_tests(condition, utterances, noises, 4, 0)
        for experiment in experiments.EXPERIMENTS
        for condition in conditions_of(experiment, types if experiment == "noise" else ())
    }
    assert list(plans) == ["birds", "typing", "engine", "male", "female", "-5 dB", "0 dB", "5 dB"]
    assert {p.noise.name for p in plans["engine"]} == {"engine"} and len(plans["engine"]) == 4
    assert {p.utterance.gender for p in plans["male"]} == {"M"} and len(plans["male"]) == 32
    assert {p.snr_db for p in plans["-5 dB"]} == {-5.0}
    male, female = conditions_of("gender", ("birds", "engine"))
    mixed = plan_tests(female, utterances, noises, 4, 0)
    assert {(p.noise.name, p.utterance.gender) for p in mixed} == {("birds", "F"), ("engine", "F")}
    assert male.filters == {"gender": ["M"], "noise": ["birds", "engine"]}
    assert len(set(selections())) == len(selections()) and ("snr", "paper", "128") in selections()


@pytest.fixture
def tiny(monkeypatch, timit, noises):
    """Experts and autoencoders of a few units, trained for a few iterations."""
    for net, context in (("128", 3), ("2048x2", 1)):
        monkeypatch.setitem(mnn.dae.NETS, net, ((8,), context))
    monkeypatch.setitem(mnn.experts.NETS, "512x2", (8,))
    few = FitConfig(3, 30, validate_every=1)
    scale = Scale(
        dict.fromkeys(experiments.EXPERIMENTS, "512x2"),
        few,
        {"128": few, "2048x2": few},
        {"noise": 2, "gender": 1, "snr": 1},
    )
    monkeypatch.setitem(experiments.SCALES, "bundled", scale)
    return ["--timit", str(timit), "--noise", str(noises), "--scale", "bundled", "--gpu", "-1"]


def test_a_run_writes_everything_and_resumes(tiny, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["noise", *tiny, "--noise-types", "birds", "typing", "--out", str(out)]
    judge, calls = experiments.judge_mixture, []

    def dying(plan, *rest):
        calls.append(plan)
        if len(calls) == 3:
            raise OSError("killed")
        return judge(plan, *rest)

    monkeypatch.setattr(experiments, "judge_mixture", dying)
    assert main(words) == 1
    capsys.readouterr()
    assert len((out / "rows.jsonl").read_text().splitlines()) == 2
    with (out / "rows.jsonl").open("a") as stream:
        stream.write('{"key": "cut')
    assert main(words) == 0
    assert len(calls) == 5
    text = capsys.readouterr().out
    assert text.count("this very run's") == 4
    for what in (
        "expert birds",
        "oracle",
        "eq. 10, 2048x2",
        "12.12",
        "ae voiced 128",
        "Published",
    ):
        assert what in text, what
    result = json.loads((out / "results.json").read_text())
    assert [line["n"] for line in result["table"] if line["metric"] == "sdr"] == [2, 2, 4]
    for line in result["table"]:
        for which in experiments.all_selections():
            if line["n"] and "combined" not in which:
                assert line[which] <= line["oracle"] + 1e-9
    assert sum(map(sum, result["confusion"]["ae paper 128"])) == 4
    assert (out / "report.md").read_text() in text
    assert len((out / "scores.csv").read_text().splitlines()) == 5
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"
    # One call does what the command does.
    speech, noise = Path(tiny[1]), Path(tiny[3])
    config = experiments.ExperimentConfig(
        "noise", speech, noise, ("birds", "typing"), "bundled", out, gpu="-1"
    )
    again = experiments.run(config)
    assert len(calls) == 5 and capsys.readouterr().out == ""
    assert {key: again[key] for key in ("table", "models", "confusion")} == {
        key: result[key] for key in ("table", "models", "confusion")
    }


def test_the_combination_is_that_of_select(tiny, tmp_path, capsys, monkeypatch):
    judge, calls = experiments.judge_mixture, []

    def noted(plan, experts, daes):
        calls.append((plan, experts, daes, judge(plan, experts, daes)))
        return calls[-1][-1]

    monkeypatch.setattr(experiments, "judge_mixture", noted)
    assert main(["gender", *tiny, "--out", str(tmp_path / "out")]) == 0
    plan, experts, daes, (scores, picks) = calls[0]
    mixture = render(plan)
    for net, dae in daes.items():
        chooser = Selector(Arbiter(dae, needs_of("ae", "voiced")), experts, combine=True)
        _, (signal,) = chooser.choose([mixture.noisy.astype(np.float32)])
        signal = signal.astype(np.float64)
        expected = METRICS["sdr"](mixture.clean, signal).value
        assert picks[f"combined {net}"] == f"combined {net}"
        assert scores[f"combined {net}"]["sdr"] == pytest.approx(expected, abs=1e-4)
        assert scores[f"combined {net}"]["sdr"] not in [scores[e.name]["sdr"] for e in experts]


def test_experts_by_gender_run(tiny, tmp_path, capsys):
    assert main(["gender", *tiny, "--out", str(tmp_path / "out")]) == 0
    assert "10.38" in capsys.readouterr().out


def test_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["noise", "--timit", str(tmp_path)])
    assert stop.value.code == 2
    capsys.readouterr()
    out = ["--out", str(tmp_path / "o")]
    assert main(["noise", "--noise-types", "cars", *out]) == 1
    assert "there are: noise" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["noise", "--noise-types", "birds", "typing", "birds", *out])
    assert stop.value.code == 2
    assert "noise 'birds' occurs twice" in capsys.readouterr().err


def test_what_a_training_says_is_said_once(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    for words in (["--gpu", "x"], ["--models", str(tmp_path / "file")]):
        assert main(["noise", "--out", str(tmp_path / "o"), *words]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert [line.startswith("error: ") for line in lines][-1:] == [True]
        assert sum(line.startswith("error: ") for line in lines) == 1

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mnn.train._find_data", interrupt)
    assert main(["noise", "--out", str(tmp_path / "o")]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"
