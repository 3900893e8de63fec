"""The command that trains either network, run as its user runs it, on a synthetic TIMIT."""

import csv
import json
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

import timit_fcn_mse
from speech import train
from speech.base.files import sha256_of
from speech.data.mixtures import MixingConfig
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import sha256_of_weights
from speech.net.fcn import FCNConfig
from speech.net.keras_models import load_model, save_model
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import SIZES, TimeFrequencyConfig, build_time_frequency
from speech.prepare import main as prepare
from speech.training import datasets
from speech.training import options as training_options
from speech.training.config import TrainingConfig
from speech.training.request import TF_RECIPES

#: A network that is made in no time.
TINY = TimeFrequencyConfig(4, 4, (1,))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "small", TINY)
    monkeypatch.setattr(datasets, "_VALIDATION_PIECES", 4)


def tf_options(*words):
    return ["--network", "tf", "--size", "small", "--gpu", "-1", "--batch-size", "2",
            "--crop-seconds", "0.3", "--rooms", "0", "--codecs", "0", "--workers", "0",
            *map(str, words)]  # fmt: skip


def history(out):
    with open(out / "history.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def weights_hash(path):
    return sha256_of_weights(read_model_file(path).layers)


def validation_loss(path, options):
    """Returns the error of a model file on the run's validation pieces, through plain Keras."""
    from speech.net.training_model import MaskTrainingModel
    from speech.training.datasets import load_pieces

    request = asked(*options)
    _, validation, _ = load_pieces(request.data, request.mixing, request.training, 0)
    model = MaskTrainingModel(load_model(path), TINY, request.training.loss, "keras")
    model.compile(jit_compile=False)
    batches = [validation.batch(index) for index in range(len(validation))]
    losses = [
        model.test_on_batch((batch.noisy, batch.lengths), batch.clean, return_dict=True)["loss"]
        for batch in batches
    ]
    return np.mean([float(loss) for loss in losses])


def asked(*words):
    parser = train._parser()
    options = parser.parse_args(list(map(str, words)))
    training_options.check_usage(parser, options)
    return training_options.request(options)


def test_a_budget_trains_a_model_and_a_larger_one_goes_on(timit, noises, tmp_path, capsys):
    out, result = tmp_path / "out", tmp_path / "result.json"
    options = tf_options("--speech", timit, "--noise", noises, "-o", out)
    assert train.main([*options, "--hours", "0.0006", "--json", str(result)]) == 0
    said = capsys.readouterr().out
    assert "4 training and 0 validation" not in said and "utterances of" in said
    assert re.search(r"0\.\d+ h +\d+ %  step +\d+  training \d", said)
    assert f"python -m speech.enhance noisy.wav --model {out}/model.h5" in said
    for name in ("model.h5", "model.json", "run.json", "history.csv", "learning_curve.png",
                 "checkpoint.npz"):  # fmt: skip
        assert (out / name).stat().st_size > 0
    file = read_model_file(out / "model.h5")
    assert {name: file.meta[name] for name in TINY.meta()} == TINY.meta()
    assert file.meta["training"]["loss"]["magnitude"] == MaskLoss().magnitude
    assert "mixing codec_share 0.0" in file.meta["mixing"]
    assert json.loads(result.read_text())["sha256"] == sha256_of(out / "model.h5")
    rows = history(out)
    assert float(rows[-1]["hours"]) >= 0.0006
    # What was validated is what is saved: the averaged weights with statistics of their own.
    assert_allclose(
        validation_loss(out / "model.h5", options), float(rows[-1]["validation_loss"]), rtol=1e-4
    )
    with np.load(out / "checkpoint.npz") as file:
        used = json.loads(file["state"].tobytes())["used_seconds"]
    assert train.main([*options, "--hours", str((used + 1) / 3600)]) == 0
    assert len(history(out)) > len(rows) and history(out)[: len(rows)] == rows


def test_premixed_folders_train_a_model_on(timit, noises, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    words = ["--noise", str(noises), "--clean", str(timit), "--snr", "0", "--split", "TRAIN"]
    assert prepare([*words, "--out", str(mixed), "--jobs", "1"]) == 0
    folders = ["--train-noisy", mixed / "noisy", "--train-clean", mixed / "clean"]
    start, out = tmp_path / "start.h5", tmp_path / "out"
    network = build_time_frequency(TINY, seed=3)
    save_model(network, start, TINY.meta())
    words = tf_options(*folders, "--init", start, "--learning-rate", "1e-12")
    del words[words.index("--rooms") : words.index("--workers")]
    del words[words.index("--size") : words.index("--gpu")]
    assert train.main([*words, "-o", str(out), "--epochs", "1", "--num-train", "4"]) == 0
    assert "training and" in capsys.readouterr().out
    assert float(history(out)[0]["validation_loss"]) > 0
    meta = read_model_file(out / "model.h5").meta
    assert meta["mixing"] == ["level -35 to -10 dBFS"]
    assert meta["training"]["init"] == sha256_of(start)
    for variable, array in zip(network.weights, load_model(out / "model.h5").weights, strict=True):
        if variable.trainable:
            assert_allclose(array.numpy(), variable.numpy(), rtol=0, atol=1e-6)


def test_the_fcn_is_that_of_the_paper_s_command(timit, noises, tmp_path, capsys):
    words = ["--timit", str(timit), "--noise", str(noises), "--snr", "0", "--gpu", "-1",
             "--epochs", "1", "--num-train", "3", "--crop-seconds", "0.3", "--filters", "3",
             "--gain", "-6", "0", "--equalizer", "3"]  # fmt: skip
    paper, ours = tmp_path / "paper", tmp_path / "ours"
    assert timit_fcn_mse.main([*words, "--out", str(paper), "--num-test", "1", "--jobs", "1"]) == 0
    assert train.main(["--network", "fcn", *words, "--out", str(ours)]) == 0
    for name in ("model.h5", "last.h5"):
        assert weights_hash(ours / name) == weights_hash(paper / name)
    assert [row["validation_loss"] for row in history(ours)] == [
        row["validation_loss"] for row in history(paper)
    ]
    assert read_model_file(ours / "model.h5").meta["created_by"] == "python -m speech.train"
    capsys.readouterr()


def test_options_become_settings_once():
    default = asked("--network", "tf")
    assert (default.size, default.recipe, default.out.parts) == ("small", "quick", ("runs", "tf"))
    assert (default.training.hours, default.training.epochs) == (0.08, None)
    assert default.training.loss == MaskLoss()
    assert default.mixing == MixingConfig()
    best = asked("--network", "tf", "--speech", "a", "b", "--noise", "c")
    assert best.recipe == "best" and best.size == TF_RECIPES["best"]["size"] == "medium"
    assert [path.name for path in best.data.speech] == ["a", "b"]
    assert (best.training.optimizer, best.training.weight_decay) == ("adamw", 0.01)
    changed = asked(
        "--network", "tf", "--epochs", "3", "--optimizer", "adam", "--beta-2", "0.99", "--epsilon",
        "1e-7", "--final-learning-rate", "0.1", "--loss-si-sdr", "0", "--level", "-30", "-20",
        "--snr-range", "0", "5", "--equalizer", "3", "--babble", "0.5", "--voice-equalizer", "2",
    )  # fmt: skip
    training = changed.training
    assert (training.epochs, training.hours, training.weight_decay) == (3, None, 0.0)
    assert (training.beta_2, training.epsilon, training.final_learning_rate) == (0.99, 1e-7, 0.1)
    assert training.loss == MaskLoss(si_sdr=0.0)
    assert changed.mixing == MixingConfig(
        snr_range_db=(0, 5), level_range_dbfs=(-30, -20), noise_equalizer_db=3, babble_share=0.5,
        voice_envelope_db=2,
    )  # fmt: skip
    fcn = asked("--network", "fcn", "--speech", "a", "--noise", "c", "--hours", "2")
    assert (fcn.recipe, fcn.training) == ("paper", TrainingConfig(hours=2))
    assert fcn.num_filters == FCNConfig().num_filters


def test_rooms_are_left_out_where_they_cannot_be_simulated(monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert asked("--network", "tf").mixing.room_share == MixingConfig().room_share
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert asked("--network", "tf", "--rooms", "0").mixing.room_share == 0
    premixed = asked("--network", "tf", "--train-noisy", "a", "--train-clean", "b")
    assert premixed.mixing.room_share == 0
    assert caplog.messages == []  # nothing is lost that was wanted
    assert asked("--network", "tf").mixing.room_share == 0
    (message,) = caplog.messages
    assert "pip install pyroomacoustics" in message and "--rooms 0" in message


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--network", "rnn"],
        ["--network", "tf", "--hours", "1", "--epochs", "2"],
        ["--network", "tf", "--hours", "0"],
        ["--network", "tf", "--loss", "mse"],
        ["--network", "tf", "--filters", "22"],
        ["--network", "tf", "--gain", "-6", "0"],
        ["--network", "tf", "--recipe", "paper"],
        ["--network", "tf", "--speech", "x"],
        ["--network", "tf", "--train-noisy", "x"],
        ["--network", "tf", "--train-noisy", "x", "--train-clean", "y", "--babble", "0.1"],
        ["--network", "tf", "--init", "x.h5", "--normalization", "none"],
        ["--network", "tf", "--teacher-share", "0.5"],
        ["--network", "fcn", "--teacher", "x.h5"],
        ["--network", "fcn", "--size", "small"],
        ["--network", "fcn", "--babble", "0.1"],
        ["--network", "fcn", "--loss-complex", "1"],
        ["--network", "fcn", "--init", "x.h5", "--filters", "22"],
    ],
)
def test_options_that_do_not_go_together_are_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speech", "missing", "--noise", "missing"], "missing: no such folder"),
        (["--init", "missing.h5"], r"missing\.h5"),
        (["--init", "models/fcn.h5"], "not one over time and frequency; choose another --init"),
        (["--beta-2", "1"], "beta_2 is 1"),
        (["--validate-minutes", "1", "--epochs", "1"], "validate_minutes is for a run with hours"),
        (["--babble", "2"], "babble_share is 2"),
        (["--loss-magnitude", "-1"], "magnitude"),
        (["--crop-seconds", "0.01"], "crop_seconds is 0.01"),
        (["--gpu", "first"], "--gpu is 'first'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(words, message, tmp_path, capsys):
    given = ["--network", "tf", "--gpu", "-1", "--out", str(tmp_path / "out"), *words]
    assert train.main(given) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert re.search(message, error[-1])
