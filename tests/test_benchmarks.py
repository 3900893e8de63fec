"""The timing itself: turns, ratios, contenders that are not installed. No speed is tested."""

import importlib.util
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import timit_fcn_mse
from benchmarks import (
    common,
    evaluation,
    inference,
    mask_steps,
    pruning,
    recipes,
    training,
    triptych,
)
from pruning import run as pruning_command
from speech.data import corpus

MINICORPUS = Path(__file__).parent.parent / "speech/minicorpus"


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


def test_a_step_of_ours_is_timed_and_checked_in_its_own_process(tmp_path):
    """PyTorch and Keras have to agree with what this leaves; here are only those installed."""
    task = mask_steps.Task("small", 2, tmp_path)
    step = mask_steps.start(mask_steps.OURS, task)
    step()
    with np.load(tmp_path / "gradients.npz") as found:
        assert np.isfinite(found["loss"]) and len(found.files) > 60
        gradients = dict(found)
    mask_steps._check(task, gradients.pop("loss"), gradients)
    gradients["mask/bias"] = gradients["mask/bias"] * 1.001
    with pytest.raises(ValueError, match="the gradient of mask/bias differs from ours"):
        mask_steps._check(task, np.load(tmp_path / "gradients.npz")["loss"], gradients)
    if importlib.util.find_spec("torch"):
        mask_steps.start("PyTorch", task)()
    else:
        with pytest.raises(ImportError, match="torch"):
            mask_steps.start("PyTorch", task)


def test_the_picture_of_the_readme_shows_the_median_file(tmp_path, capsys, monkeypatch):
    speech = corpus.bundled_speech("TEST")[:3]
    monkeypatch.setattr(corpus, "bundled_speech", lambda split: speech)
    words = ["--snr", "0", "-o", str(tmp_path / "t.png")]
    assert triptych.main(words) == 0
    title = capsys.readouterr().out.splitlines()[0]
    before, after = map(float, re.search(r"PESQ-WB (\S+) to ([\d.]+)", title).groups())
    assert after > before and sum(utterance.id in title for utterance in speech) == 1
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.width > 1000 and picture.mode == "P"
    assert triptych.main([*words, "--noise", "cars"]) == 1
    assert "there are birds" in capsys.readouterr().err


def test_results_are_strict_json_with_what_made_them(tmp_path):
    common.write_result(tmp_path / "r.json", {"x": 1.0})
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["x"] == 1.0
    assert result["cores"] >= 1
    assert result["packages"]["numpy"]


@pytest.mark.slow
def test_recipes_train_score_and_are_not_run_twice(tmp_path, capsys):
    """On real speech: one speaker that trains, one that tests, one noise, five mixtures."""
    names = ["TRAIN/CS/MCS0/U01", "TRAIN/CS/MCS0/U03", "TRAIN/CS/MCS0/U04", "TEST/BE/FBE0/U01"]
    for name in [f"speech/{name}" for name in names] + ["noise/TRAIN/birds", "noise/TEST/birds"]:
        target = tmp_path / f"{name}.flac"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(MINICORPUS / f"{name}.flac", target)
    out, result = tmp_path / "runs", tmp_path / "r.json"
    arguments = ["--timit", str(tmp_path / "speech"), "--noise", str(tmp_path / "noise")]
    arguments += ["--steps", "2", "--only", "spectral"]
    arguments += ["--out", str(out), "--json", str(result)]
    assert recipes.main(arguments) == 0
    rows = json.loads(result.read_text())["rows"]
    assert [row["name"] for row in rows] == ["spectral"]
    assert all(row["n"] == 5 and math.isfinite(row["pesq_wb"] + row["stoi"]) for row in rows)
    config = json.loads((out / "spectral/run.json").read_text())["config"]
    assert (config["loss"], config["batch_size"], config["num_items"]) == ("spectral", 4, 8)
    before = (out / "test/scores.csv").stat().st_mtime_ns
    assert recipes.main(arguments) == 0
    assert (out / "test/scores.csv").stat().st_mtime_ns == before
    assert "| spectral |" in capsys.readouterr().out


def test_recipes_of_the_network_for_use_are_understood(tmp_path, capsys):
    from speech import train
    from speech.training.options import check_usage, request

    words = ["--network", "tf", "--timit", "a", "--noise", "n", "--more-speech", "b", "c"]
    options = recipes._parser().parse_args([*words, "--hours", "0.5", "--out", str(tmp_path)])
    parser = train._parser()
    asked = {}
    for name in recipes.ROWS["tf"]:
        command = recipes.command(name, options)
        assert command[0] == "speech.train"
        parsed = parser.parse_args(command[1:])
        check_usage(parser, parsed)
        asked[name] = request(parsed)
        assert asked[name].training.hours == 0.5
    assert asked["recipe"].size == "medium" and asked["large"].size == "large"
    assert asked["no_norm"].normalization == "none" and asked["small"].normalization == "batch"
    options = recipes._parser().parse_args([*words, "--steps", "400", "--size", "small"])
    command = recipes.command("recipe", options)
    parsed = parser.parse_args(command[1:])
    check_usage(parser, parsed)
    config = request(parsed).training
    assert (config.epochs * config.num_items, config.hours) == (400 * config.batch_size, None)
    assert asked["consistency"].training.loss.consistency == 3
    assert [len(asked[name].data.speech) for name in ("recipe", "more_speech")] == [1, 3]
    options = recipes._parser().parse_args(["--steps", "400"])
    parsed = parser.parse_args(recipes.command("levels", options)[1:])
    check_usage(parser, parsed)
    assert request(parsed).training.num_items == 1600
    for wrong in (["--only", "paper"], ["--test-noisy", "x"]):
        with pytest.raises(SystemExit, match="2"):
            recipes.main(["--network", "tf", *wrong])
    with pytest.raises(SystemExit, match="2"):
        recipes.main(["--more-speech", "x", "--timit", "a", "--noise", "b"])
    assert "give some of recipe" in capsys.readouterr().err


def test_recipes_gain_is_paired_and_leaves_out_what_has_no_score(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,validation_loss\n1,0.5\n")
    scores = tmp_path / "scores.csv"
    lines = ["system,name,pesq_wb,stoi,status", "noisy,a,1.0,0.5,ok", "small,a,1.5,0.6,ok",
             "noisy,b,2.0,0.5,ok", "small,b,nan,nan,silent", "noisy,c,1.0,0.7,ok",
             "small,c,1.1,0.6,ok", "large,a,1.9,0.9,ok"]  # fmt: skip
    scores.write_text("\n".join(lines) + "\n")
    found = recipes.summary(tmp_path, scores, "small")
    assert found["n"] == 2 and "steps" not in found
    assert found["pesq_wb"] == pytest.approx(0.3)
    assert found["stoi"] == pytest.approx(0.0)
    assert found["pesq_wb_half_width"] == pytest.approx(1.96 * np.std([0.5, 0.1], ddof=1) / 2**0.5)
    (tmp_path / "history.csv").write_text("hours,steps,validation_loss\n0.5,1200,7.5\n")
    row = {"name": "small", "meaning": "m", **recipes.summary(tmp_path, scores, "small")}
    assert "| 1,200, 7.50000 |" in recipes.format_rows([row])


def test_pruning_commands_are_understood_and_train_alike(tmp_path):
    options = pruning._parser().parse_args(["--out", str(tmp_path), "--stage-steps", "3",
        "--final-steps", "7", "--long-steps", "80", "--timit", "a", "--noise", "b"])  # fmt: skip
    rows = pruning.rows("all")
    assert rows[0].name == pruning.BASELINE
    assert len({row.name for row in rows}) == len(rows) == 16
    steps = set()
    for row in rows:
        if row.options:
            command = pruning._pruning(row, tmp_path / row.name / "model.h5", options)
            parsed = pruning_command.parse(command[1:])
            config = parsed.config
            assert config.retrain == row.is_retrained
            if not row.is_retrained:
                continue
            (each, final), settings = config.num_epochs, config.train_on.settings
            epochs = config.stages * each + final
            num_items, batch_size = settings["num_items"], settings["batch_size"]
            if row.name == pruning.LONG:
                assert final * num_items // batch_size == 80
                continue
        else:
            command = pruning._from_scratch(tmp_path / row.name, options)
            parsed = timit_fcn_mse._parser().parse_args(command[1:])
            assert parsed.filters == 22
            epochs, num_items, batch_size = parsed.epochs, parsed.num_items, parsed.batch_size
        steps.add(epochs * num_items // batch_size)
    assert steps == {7 * 3 + 3 * 3}
