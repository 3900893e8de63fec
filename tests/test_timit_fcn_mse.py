"""The main job, run as its user runs it, on a synthetic TIMIT in NIST SPHERE format."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import timit_fcn_mse
from speech.base.files import sha256_of
from speech.data import corpus
from speech.modelfile.read import read_model_file
from speech.net.keras_models import load_model
from speech.prepare import main as prepare
from speech.sound.augment import Augmentation
from speech.training.common_options import check_data_options
from speech.training.config import TrainingConfig
from speech.training.options import request
from speech.training.request import RECIPES

ROOT = Path(__file__).parent.parent
QUICK = ["--gpu", "-1", "--snr", "0", "--num-test", "1", "--epochs", "2", "--num-train", "3",
         "--crop-seconds", "0.3", "--jobs", "1"]  # fmt: skip


def run(arguments, **options):
    command = [sys.executable, str(ROOT / "timit_fcn_mse.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def history(out):
    with open(out / "history.csv", newline="") as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def test_timit_in_sphere_format_trains_and_is_scored(timit, noises, tmp_path):
    out = tmp_path / "out"
    done = run(["--timit", timit, "--noise", noises, "--out", out, *QUICK, "--gpu", "0"])
    assert done.returncode == 0, done.stderr
    assert "0 found: going on with the CPU" in done.stderr
    assert "Traceback" not in done.stderr
    assert "PESQ-WB noisy" in done.stdout
    written = sorted((out / "FCN_TIMIT_MSE_wav").rglob("*.wav"))
    assert len(written) == 2  # one utterance for each of two noises
    for path in written:
        assert re.fullmatch(r"(birds|typing)/F\w+/0db/\w+\.wav|.*/M\w+/0db/\w+\.wav",
                            str(path.relative_to(out / "FCN_TIMIT_MSE_wav")))  # fmt: skip
        samples, rate_hz = soundfile.read(path)
        assert rate_hz == 16000
        assert soundfile.info(path).subtype == "FLOAT"
        assert np.abs(samples).max() == pytest.approx(1.0)
    for name in ("model.h5", "last.h5", "model.json", "run.json", "learning_curve.png",
                 "scores.csv", "results.csv", "results.json", "history.csv"):  # fmt: skip
        assert (out / name).stat().st_size > 0
    results = json.loads((out / "results.json").read_text())
    assert results["real_time_factor"] > 0
    assert {group["system"] for group in results["summary"]} == {"noisy", "enhanced"}
    assert load_model(out / "model.h5").count_params() == 300_931


def test_the_original_layout_and_its_split(timit, noises, tmp_path, capsys):
    arguments = ["--noise", str(noises), "--clean", str(timit), "--snr", "-10", "0"]
    for split in ("TRAIN", "TEST"):
        out = tmp_path / split
        assert prepare([*arguments, "--split", split, "--out", str(out), "--jobs", "1"]) == 0
    folders = ["--train-noisy", tmp_path / "TRAIN" / "noisy", "--train-clean",
               tmp_path / "TRAIN" / "clean", "--test-noisy", tmp_path / "TEST" / "noisy",
               "--test-clean", tmp_path / "TEST" / "clean"]  # fmt: skip
    out = tmp_path / "out"
    quick = [word for word in QUICK if word not in ("--snr", "0")]
    arguments = [*map(str, folders), "--out", str(out), *quick, "--split", "original"]
    assert timit_fcn_mse.main(arguments) == 0
    # 4 utterances x 2 noises; -10 dB is not trained on, but tested
    printed = capsys.readouterr().out
    assert "8 training and 8 validation pairs, 4 test pairs" in printed
    assert "8 of 16 training pairs are left out, at -15 and -10 dB" in printed
    assert "--keep-low-snr" in printed
    assert len(list((out / "FCN_TIMIT_MSE_wav").rglob("-10db/*.wav"))) == 2
    before = (out / "model.h5").read_bytes()
    assert timit_fcn_mse.main([*arguments, "--eval-only"]) == 0
    assert (out / "model.h5").read_bytes() == before
    assert timit_fcn_mse.main([*arguments, "--recipe", "best"]) == 1
    assert "premixed folders are taken as they are" in capsys.readouterr().err


def test_the_test_set_follows_its_sources(timit, noises, tmp_path, capsys):
    """Lost and stale mixtures are made anew, never scored as they are or left out in silence."""
    out = tmp_path / "out"
    arguments = ["--timit", str(timit), "--noise", str(noises), "--out", str(out), *QUICK]
    assert timit_fcn_mse.main(arguments) == 0
    mixture = next((out / "test" / "noisy" / "birds").rglob("*.wav"))
    before = mixture.read_bytes()
    mixture.unlink()
    assert timit_fcn_mse.main([*arguments, "--eval-only"]) == 0
    assert mixture.read_bytes() == before
    soundfile.write(noises / "birds.wav", np.full(20000, 0.1), 16000, subtype="FLOAT")
    corpus.load_noise.cache_clear()  # as in a new process
    assert timit_fcn_mse.main([*arguments, "--eval-only"]) == 0
    assert mixture.read_bytes() != before
    capsys.readouterr()


def chosen(*arguments):
    parser = timit_fcn_mse._parser()
    options = parser.parse_args(list(arguments))
    check_data_options(parser, options)
    asked = request(options)
    return asked.training, asked.augmentation


def test_recipes_and_what_overrides_them():
    folders = ("--timit", "x", "--noise", "y")
    assert chosen(*folders) == (TrainingConfig(), Augmentation())
    assert chosen(*folders, "--recipe", "paper") == chosen(*folders)
    assert chosen()[0] == TrainingConfig(**RECIPES["quick"])
    config, changes = chosen(*folders, "--recipe", "best")
    assert (config.loss, config.ema, config.schedule) == ("spectral", 0.999, "cosine")
    assert changes.equalizer_db > 0
    config, changes = chosen(
        *folders, "--recipe", "best", "--loss", "sisdr", "--num-train", "7", "--equalizer", "0",
        "--gain", "-3", "0", "--warmup", "0",
    )  # fmt: skip
    assert (config.loss, config.num_items, config.warmup_steps) == ("sisdr", 7, 0)
    assert config.ema == 0.999
    assert (changes.equalizer_db, changes.gain_db) == (0.0, (-3.0, 0.0))
    assert changes.second_noise > 0


def test_the_best_recipe_and_fine_tuning_run(timit, noises, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--timit", str(timit), "--noise", str(noises), *QUICK, "--batch-size", "2"]
    assert timit_fcn_mse.main([*options, "--recipe", "best", "--out", str(out)]) == 0
    run = json.loads((out / "run.json").read_text())
    assert run["config"]["loss"] == "spectral"
    assert run["meta"]["recipe"] == "best"
    assert "augment equalizer_db 10.0" in run["meta"]["augmentation"]
    assert float(history(out)[1]["validation_mse"]) > 0

    tuned = tmp_path / "tuned"
    start = ["--init", str(out / "model.h5"), "--learning-rate", "1e-12"]
    assert timit_fcn_mse.main([*options, *start, "--out", str(tuned)]) == 0
    model = load_model(tuned / "model.h5")
    meta = read_model_file(tuned / "model.h5").meta
    assert meta["training"]["init"] == sha256_of(out / "model.h5")
    for one, other in zip(
        model.get_weights(), load_model(out / "model.h5").get_weights(), strict=True
    ):
        assert np.allclose(one, other, atol=1e-6)
    capsys.readouterr()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_run_goes_on_and_ends_like_an_unbroken_one(timit, noises, tmp_path):
    options = ["--timit", timit, "--noise", noises, *QUICK, "--epochs", "6"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run([*options, "--out", whole]).returncode == 0
    command = [sys.executable, str(ROOT / "timit_fcn_mse.py"), *map(str, options)]
    process = subprocess.Popen(
        [*command, "--out", str(broken)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (broken / "checkpoint.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(history(broken)) < 6
    done = run([*options, "--out", broken])
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stderr
    assert [row["epoch"] for row in history(broken)] == list("123456")
    assert history(broken) == history(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timit", "missing", "--noise", "missing"], "missing: no such folder"),
        (["--gpu", "first"], "--gpu is 'first'"),
        (["--crop-seconds", "inf"], "crop_seconds is inf"),
        (["--num-train", "1" + "0" * 20], "num_items is 1"),
        (["--eval-only", "--model", "missing.h5"], r"missing\.h5"),
        (["--init", "missing.h5"], r"missing\.h5"),
        (["--ema", "1"], "ema is 1"),
        (["--second-noise", "2"], "second_noise is 2"),
        (["--gain", "0", "-5"], "gain_db is 0 to -5"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(arguments, message, tmp_path, capsys):
    assert timit_fcn_mse.main(["--gpu", "-1", "--out", str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert re.search(message, error[-1])


def test_a_backend_that_is_not_installed_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # set anew by the command
    monkeypatch.setitem(sys.modules, "keras", None)
    assert timit_fcn_mse.main(["--gpu", "-1", "--out", str(tmp_path)]) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: KERAS_BACKEND is 'jax': ")


def test_results_among_the_data_are_refused(timit, noises, tmp_path, capsys):
    for out in (timit, timit / "TRAIN", noises / "results"):
        words = ["--timit", str(timit), "--noise", str(noises), "--out", str(out)]
        assert timit_fcn_mse.main(words) == 1
        assert "lies inside the input folder" in capsys.readouterr().err
    assert not (noises / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--timit", "x"],
        ["--train-noisy", "x"],
        ["--split", "original"],
        ["--model", "x.h5"],
        ["--init", "x.h5", "--filters", "22"],
        ["--filters", "0"],
        ["--epochs", "0"],
        ["--num-test", "-1"],
        ["--jobs", "-1"],
        ["--snr", "nan"],
        ["--snr-range", "5", "0"],
        [
            *(
                word
                for name in ("train-noisy", "train-clean", "test-noisy", "test-clean")
                for word in (f"--{name}", "x")
            ),
            "--snr",
            "0",
        ],
    ],
)
def test_half_of_the_options_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        timit_fcn_mse.main(arguments)
    assert stop.value.code == 2
    capsys.readouterr()
