"""Features, data of experts, and the loop: it learns, resumes, stops in time, refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import mnn.dae
import mnn.experts
import mnn.features
import pruning.run
from mnn import conditions, train
from mnn.config import FitConfig, TrainConfig
from mnn.expert_files import Place, open_expert
from mnn.features import (
    Conventions,
    Frames,
    Pieces,
    conventions_of,
    inner_product,
    level,
    mask_frames,
    mask_target,
    scaled_magnitudes,
    speech_frames,
)
from speech.base.checkpoint import CheckpointError, read_npz, write_npz
from speech.base.files import sha256_of
from speech.data.corpus import Noise, Pair, Utterance, bundled_noise, bundled_speech
from speech.modelfile.h5 import write_model_file
from speech.modelfile.read import read_model_file
from speech.sound.stft import context_frames, neighbour_indices, stft
from speech.training.config import TrainingError
from speech.training.request import DataOptions
from tests.builders import make_speech, without_times

ROOT = Path(__file__).parent.parent


# --------------------------------------------------------------------------------------------
# Features


def test_white_noise_is_one_in_every_bin_at_any_level(rng):
    for gain in (1e-4, 3.0):
        noise = gain * rng.standard_normal(80000)
        frames = scaled_magnitudes(stft(noise), level(noise))
        assert frames.dtype == np.float32
        assert_allclose(np.mean(frames[4:-4] ** 2), 1, rtol=0.02, atol=0)
    assert level(np.zeros(5)) == 1.0


@pytest.mark.parametrize("gain", [1e-25, 1e-3, 1.0, 1e25])
@pytest.mark.parametrize("num_samples", [0, 1, 1000, 1024, 70_001])
def test_inner_products_are_those_of_float64(rng, gain, num_samples):
    one, other = np.float32(gain) * rng.standard_normal((2, num_samples)).astype(np.float32)
    exact = np.dot(one.astype(float), other.astype(float))
    sum_of_magnitudes = np.abs(one.astype(float) * other).sum()
    assert abs(inner_product(one, other) - exact) <= 1e-6 * sum_of_magnitudes
    if num_samples:
        assert level(one) == pytest.approx(np.sqrt(np.mean(np.square(one.astype(float)))), rel=1e-6)


def test_mask_target_is_the_clipped_ratio():
    clean = np.array([[1, 2j, 0, 0, 3, 1e-40]], np.complex64)
    noisy = np.array([[2, 1, 1, 0, 0, 1e-44]], np.complex64)
    assert_allclose(mask_target(clean, noisy), [[0.5, 1, 0, 0, 0, 1]], rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_bytes", [1 << 30, 100_000, 0])
def test_frames_are_those_of_each_utterance(rng, tmp_path, max_bytes):
    mixtures = [(make_speech(rng, n), make_speech(rng, n)) for n in (3000, 700, 9000)]
    silent = (np.zeros(500), np.zeros(500))
    frames = mask_frames([*mixtures, silent], Conventions(), max_bytes=max_bytes, folder=tmp_path)
    assert isinstance(frames.inputs, np.memmap) == (max_bytes < 1 << 30)
    assert list(tmp_path.iterdir()) == []
    start = 0
    for noisy, clean in mixtures:
        noisy, clean = noisy.astype(np.float32), clean.astype(np.float32)
        expected = context_frames(scaled_magnitudes(stft(noisy), level(noisy)))
        rows = np.arange(start, start + len(expected))
        inputs, targets = frames.batch(rows)
        assert_allclose(inputs, expected, rtol=1e-5, atol=1e-6)
        assert_allclose(targets, mask_target(stft(clean), stft(noisy)), rtol=1e-5, atol=1e-6)
        start += len(expected)
    assert len(frames) == start


def test_an_autoencoder_has_its_centre_frame_as_target(rng):
    frames = speech_frames([make_speech(rng), np.zeros(100)], Conventions(3))
    inputs, targets = frames.batch(np.arange(len(frames)))
    assert_array_equal(inputs[:, 513:1026], targets)
    alone = speech_frames([make_speech(rng)], Conventions(1))
    assert_array_equal(*alone.batch(np.array([2, 5])))
    with pytest.raises(ValueError, match="every utterance is silent"):
        speech_frames([np.zeros(100)], Conventions())


def test_conventions_come_back_from_the_meta():
    conventions = Conventions(1)
    meta = json.loads(json.dumps({"kind": "mask", **conventions.to_json()}))
    assert conventions_of(meta, "mask", "x.h5") == conventions


# --------------------------------------------------------------------------------------------
# Data


def people(num_each=4, speakers=("FA", "FB", "MC", "MD")):
    return [
        Utterance(f"{speaker}_{number}", Path("x"), speaker, speaker[0], "DR1")
        for speaker in speakers
        for number in range(num_each)
    ]


def test_conditions_choose_mixtures_by_any_column():
    noises = [Noise(name, Path("n")) for name in ("birds_1", "birds_2", "typing")]
    every = conditions.plan_expert(people(), noises, [-5, 0], {})
    assert len(every) == 16 * 3 * 2
    asked = conditions.parse_conditions(["noise=Birds*", "gender=F", "snr_db=-5.0"])
    chosen = conditions.plan_expert(people(), noises, [-5, 0], asked, num_draws=2)
    assert len(chosen) == 8 * 2 * 2
    assert len({(p.relative_path, p.seed) for p in chosen}) == len(chosen)
    assert {(p.utterance.gender, p.snr_db) for p in chosen} == {("F", -5.0)}
    two = conditions.matching(every, {"utterance": ["*_0", "fa_1"], "noise": ["typing"]})
    assert len(two) == 5 * 2
    pair = Pair(Path("a"), Path("b"), "birds", "FCJF0", float("nan"), "sx1")
    assert conditions.matching([pair], {"gender": ["F"], "snr_db": ["nan"]}) == [pair]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: conditions.parse_conditions(["colour=red"]), "one of utterance, speaker"),
        (lambda: conditions.parse_conditions(["noise"]), "'noise'; give COLUMN=PATTERN"),
        (
            lambda: conditions.matching(people(), {"gender": ["X"]}),
            "no data meet: gender X; there are: gender 'F', 'M'",
        ),
    ],
)
def test_conditions_that_nothing_meets_are_named(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def test_speakers_are_drawn_in_pairs_and_four_of_them_validate():
    names = [f"{gender}{number:02d}" for gender in "FM" for number in range(10)]
    utterances = people(6, names)
    training, validation = conditions.choose_speakers(utterances, 12, 5, seed=1)
    for part, count in ((training, 12), (validation, 4)):
        speakers = {item.speaker for item in part}
        assert len(speakers) == count and len(part) == 5 * count
        assert sum(name[0] == "F" for name in speakers) == count // 2
    assert not {u.speaker for u in training} & {u.speaker for u in validation}
    assert conditions.choose_speakers(utterances, 4, 5, seed=1)[1] == validation
    assert conditions.choose_speakers(utterances, 12, 5, seed=2)[0] != training


def test_few_speakers_all_train():
    training, validation = conditions.choose_speakers(people(10))
    assert len({u.speaker for u in training}) == 4 and len(validation) == 4
    assert not {u.id for u in training} & {u.id for u in validation}
    two, _ = conditions.choose_speakers(people(10), 2)
    assert {u.speaker for u in two} <= {"FA", "FB", "MC", "MD"}


def test_the_bundled_corpus_has_what_the_experiments_need():
    training, validation = conditions.choose_speakers(bundled_speech("TRAIN"))
    assert len(training) > 60 and {u.gender for u in validation} == {"F", "M"}
    birds = conditions.plan_expert(training, bundled_noise("TRAIN"), [0], {"noise": ["birds"]})
    assert len(birds) == len(training)


# --------------------------------------------------------------------------------------------
# Training

CONFIG = FitConfig(iterations=12, batch_size=32, validate_every=4, seed=5)


@pytest.mark.parametrize("optimizer", ["rprop", "adam"])
def test_the_error_falls_and_the_best_weights_are_kept(make_frame_trainer, optimizer):
    config = FitConfig(100, 64, optimizer, 3e-3, validate_every=10)
    trainer = make_frame_trainer(config=config)
    state = trainer.run()
    errors = [row["validation_error"] for row in state.history]
    assert min(errors) < 0.8 * errors[0]
    file = read_model_file(trainer.out)
    training = file.meta["training"]
    assert training["validation_error"] == min(errors)
    assert training["best_iteration"] == 10 * (1 + errors.index(min(errors)))
    # The kept file gives the kept error, by the definition of eq. (6), without dropout.
    inputs, targets = trainer.validation.batch(np.arange(len(trainer.validation)))
    output = mnn.dae.Autoencoder(trainer.out).reconstruct(trainer.validation.inputs)
    error = np.mean(np.sum(np.square(output.astype(float) - targets), axis=1))
    assert_allclose(error, min(errors), rtol=1e-4, atol=0)
    run = json.loads(trainer.out.with_suffix(".run.json").read_text())
    assert run["meta"]["training"]["optimizer"] == optimizer
    assert not trainer.checkpoint_path.exists()


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("optimizer", ["rprop", "adam"])
def test_a_run_that_is_killed_ends_like_an_unbroken_one(make_frame_trainer, optimizer):
    config = FitConfig(12, 32, optimizer, validate_every=4, seed=5)
    whole = make_frame_trainer("whole", config)
    expected = whole.run()
    broken = make_frame_trainer("broken", config, checkpoint_seconds=0.0)
    step = broken._step

    def dying_step(iteration):
        if iteration == 6:
            raise Stop
        return step(iteration)

    broken._step = dying_step
    with pytest.raises(Stop):
        broken.run()
    again = make_frame_trainer("broken", config)
    seen = []
    result = again.run(seen.append)
    assert [row["iteration"] for row in seen] == [8, 12]
    assert without_times(result.history) == without_times(expected.history)
    for one, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        assert_array_equal(one, other)


def test_it_stops_when_validation_no_longer_improves(make_frame_trainer, monkeypatch):
    trainer = make_frame_trainer(config=FitConfig(1000, 32, validate_every=2, patience=6))
    errors = iter([5.0, 3.0, 4.0, 3.5, 3.0] + 99 * [9.0])
    test = trainer.model.test_on_batch
    monkeypatch.setattr(
        trainer.model, "test_on_batch", lambda *batch: next(errors) + 0 * test(*batch)
    )
    state = trainer.run()
    assert state.iteration == 10 and state.best_row["iteration"] == 4


def test_another_run_is_not_taken_up(make_frame_trainer):
    trainer = make_frame_trainer(checkpoint_seconds=0.0)
    trainer._save_results = lambda: None
    step = trainer._step

    def dying_step(iteration):
        if iteration == 5:
            raise Stop
        return step(iteration)

    trainer._step = dying_step
    with pytest.raises(Stop):
        trainer.run()
    with pytest.raises(TrainingError, match="is of a run with seed 5, not 6"):
        make_frame_trainer(config=FitConfig(12, 32, validate_every=4, seed=6)).run()
    with pytest.raises(TrainingError, match="data_sha256 'd', not 'e'"):
        make_frame_trainer(data_sha256="e").run()
    whole = trainer.checkpoint_path.read_bytes()
    trainer.checkpoint_path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a readable checkpoint .* delete it"):
        make_frame_trainer().run()
    trainer.checkpoint_path.write_bytes(whole)
    arrays = read_npz(trainer.checkpoint_path)
    state = json.loads(arrays["state"].tobytes())
    for changes, message in (
        ({"state": {**state["state"], "iteration": "x"}}, "Expected `int`, got `str`"),
        ({"state": {**state["state"], "history": [{"a": 1}]}}, "its history lacks errors"),
        ({"state": []}, "Expected `object`, got `array`"),
        ({"fingerprint": "x"}, "Expected `object`, got `str`"),
        ({"fingerprint": {}}, "is of a run with"),
    ):
        text = json.dumps(state | changes).encode()
        write_npz(trainer.checkpoint_path, arrays | {"state": np.frombuffer(text, np.uint8)})
        with pytest.raises(ValueError, match=message):
            make_frame_trainer().run()
    write_npz(trainer.checkpoint_path, arrays | {"variable_0": np.zeros((2, 2), "f4")})
    with pytest.raises(TrainingError, match="not a readable checkpoint .*of another network"):
        make_frame_trainer().run()


def test_an_error_that_is_not_finite_ends_the_run(make_frame_trainer):
    trainer = make_frame_trainer()
    trainer._step = lambda iteration: float("nan")
    with pytest.raises(TrainingError, match="became nan in iteration 1; no model was written; try"):
        trainer.run()
    assert not trainer.out.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 0},
        {"batch_size": 10**10},
        {"optimizer": "sgd"},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": 1e6, "optimizer": "adam"},
        {"learning_rate": 0.2},
        {"learning_rate": 1e-8, "optimizer": "rprop"},
        {"patience": -1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        FitConfig(**settings)


# --------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def run(timit, noises, small_dae, monkeypatch, capsys):
    monkeypatch.setitem(mnn.experts.NETS, "512x2", (12, 12))
    places = ["--timit", str(timit), "--noise", str(noises)]
    quick = ["--iterations", "6", "--validate-every", "2", "--batch-size", "40", "--gpu", "-1"]

    def call(*words, source=places):
        code = train.main([*words, *source, *quick])
        return code, *capsys.readouterr()

    return call


def test_dae_command_writes_a_file_that_describes_itself(run, tmp_path):
    out = tmp_path / "new" / "dae.h5"
    code, text, _ = run("dae", "--out", str(out))
    assert code == 0 and "best        validation error" in text
    visible = (path.name for path in out.parent.iterdir() if not path.name.startswith("."))
    assert sorted(visible) == ["dae.h5", "dae.history.csv", "dae.run.json"]
    meta = read_model_file(out).meta
    assert meta["kind"] == "autoencoder" and meta["sample_rate_hz"] == 16000
    assert meta["stft"] == {"frame": 1024, "hop": 256, "window": "hann"} and meta["context"] == 3
    assert meta["created_by"] == "python -m mnn.train" and meta["training"]["iterations"] == 6
    before = out.read_bytes()
    code, text, _ = run("dae", "--out", str(out))
    assert code == 0 and "this very run's" in text and out.read_bytes() == before
    code, _, error = run("dae", "--out", str(out), "--seed", "1")
    assert code == 1 and "choose another --out" in error and len(error.splitlines()) == 1


def test_expert_command_trains_on_what_is_asked_for(run, timit, noises, tmp_path):
    out = tmp_path / "birds.h5"
    words = ["expert", "--noise-types", "birds", "--gender", "F", "--snr", "-5"]
    words += ["--num-mixtures", "2"]
    code, text, _ = run(*words, "--out", str(out), "--optimizer", "adam")
    assert code == 0 and "2 to train on, 2 to validate" in text
    meta = read_model_file(out).meta
    assert meta["kind"] == "mask" and meta["context"] == 3
    training = meta["training"]
    assert training["conditions"] == {"gender": ["F"], "noise": ["birds"]}
    assert training["snrs_db"] == [-5.0] and training["optimizer"] == "adam"
    # One call does what the command does: it finds this very run.
    config = TrainConfig(
        "expert", out, fit=FitConfig(6, 40, "adam", validate_every=2),
        data=DataOptions((timit,), noises, snrs_db=(-5.0,)),
        conditions={"gender": ["F"], "noise": ["birds"]}, num_draws=2, gpu="-1",
    )  # fmt: skip
    found = train.train(config)
    assert found.was_done and found.validation_error == training["validation_error"]
    with pytest.raises(TrainingError, match="with patience 1000, not 1"):
        train.train(replace(config, fit=replace(config.fit, patience=1)))
    assert open_expert(out).signal(np.ones(700, np.float32), 1.0, Place()).shape == (700,)


@pytest.mark.parametrize("optimizer", ["adam", "rprop"])
@pytest.mark.parametrize(
    ("how", "shape"),
    [(["--target-sparsity", "0.5"], (1539, 12)), (["--remove-filters", "0.5"], (1539, 6))],
)
def test_a_pruned_expert_is_trained_on_and_its_zeros_stay(run, tmp_path, how, shape, optimizer):
    whole, pruned, out = (tmp_path / f"{name}.h5" for name in ("whole", "pruned", "out"))
    assert run("expert", "--out", str(whole))[0] == 0
    assert pruning.run.main([str(whole), *how, "-o", str(pruned)]) == 0
    code, text, _ = run(
        "expert", "--init", str(pruned), "--out", str(out), "--optimizer", optimizer
    )
    assert code == 0 and "are zero and stay so" in text
    meta = read_model_file(out).meta
    assert meta["init_sha256"] == sha256_of(pruned) and meta["pruning"]["method"] in text + str(
        meta
    )
    kernels = [
        [
            layer.weights["kernel"]
            for layer in read_model_file(path).layers
            if "kernel" in layer.weights
        ]
        for path in (pruned, out)
    ]
    assert kernels[1][0].shape == shape
    for before, after in zip(*kernels, strict=True):
        assert not after[before == 0].any()
        assert (after != before)[before != 0].any()
    code, _, error = run("dae", "--init", str(pruned), "--out", str(tmp_path / "dae.h5"))
    assert code == 1 and "kind 'mask', expected 'autoencoder'" in error


def test_premixed_folders_and_files_that_cannot_be_used(run, timit, noises, tmp_path):
    from speech.data.prepared import prepare

    prepare(timit, noises, [0.0, 5.0], tmp_path / "set", split="TRAIN")
    noisy, clean = tmp_path / "set" / "noisy", tmp_path / "set" / "clean"
    broken = sorted(noisy.rglob("*.wav"))[0]
    source = ["--train-noisy", str(noisy), "--train-clean", str(clean)]
    for what in ("dae", "expert"):
        code, text, _ = run(what, "--out", str(tmp_path / f"{what}.h5"), source=source)
        assert code == 0 and "written" in text
    words = ["expert", "--where", "snr_db=5", "noise=typing", "--out", str(tmp_path / "w.h5")]
    code, text, _ = run(*words, source=source)
    assert code == 0 and "3 to train on, 1 to validate" in text
    broken.write_bytes(b"RIFF")
    code, _, error = run("expert", "--out", str(tmp_path / "b.h5"), source=source)
    assert code == 0 and f"skipped in training: {broken}" in error


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["expert", "--noise-types", "cars", "--out", "x.h5"], 1, "there are: noise 'birds'"),
        (["dae", "--out", "x.keras"], 2, "ends in .h5"),
        (["dae", "--out", "x.h5", "--noise-types", "birds"], 2, "unrecognized arguments"),
        (["expert", "--out", "x.h5", "--where", "a=b"], 2, "COLUMN is one of"),
        (["expert", "--out", "x.h5", "--snr-range", "0", "5"], 2, "give --snr"),
        (["dae", "--out", "x.h5", "--learning-rate", "5"], 2, "Rprop's first step"),
        (["dae", "--out", "x.h5", "--init", "a.h5", "--net", "128"], 2, "--init has its own"),
        (["dae", "--out", "x.h5", "--init", "a.h5"], 1, "no such model file"),
    ],
)
def test_wrong_usage_is_one_line(run, tmp_path, monkeypatch, capsys, words, code, reason):
    monkeypatch.chdir(tmp_path)
    if code == 2:
        with pytest.raises(SystemExit) as exit_:
            run(*words)
        assert exit_.value.code == 2 and reason in capsys.readouterr().err
    else:
        status, _, error = run(*words)
        assert status == 1 and reason in error.splitlines()[-1]


def test_imports_and_help_need_no_tensorflow():
    code = (
        "import sys, mnn.train, mnn.conditions, mnn.dae, mnn.experts, mnn.features; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_models_are_plain_keras(make_frame_trainer):
    assert isinstance(make_frame_trainer().model, keras.Sequential)


def test_pieces_are_frames_in_order(rng):
    inputs = rng.standard_normal((30, 4)).astype("f4")
    lengths = np.array([11, 3, 16])
    frames = Frames(inputs, 2 * inputs, neighbour_indices(lengths, 3), lengths)
    pieces = Pieces.of(frames, 5)
    assert pieces.starts.tolist() == [0, 5, 6, 14, 19, 24, 25]
    given, targets = pieces.batch(np.array([2, 3]))
    for place, start in enumerate((6, 14)):
        expected = frames.batch(np.arange(start, start + 5))
        assert_array_equal(given[place], expected[0])
        assert_array_equal(targets[place], expected[1])
    with pytest.raises(ValueError, match="no utterance has the 17 frames.*the longest has 16"):
        Pieces.of(frames, 17)


def test_a_recurrent_expert_is_trained_and_trained_on(run, tmp_path, monkeypatch):
    monkeypatch.setitem(mnn.experts.LSTM_NETS, "lstm", 5)
    monkeypatch.setattr(mnn.features, "PIECE_FRAMES", 8)
    out = tmp_path / "lstm.h5"
    code, text, _ = run("expert", "--net", "lstm", "--optimizer", "adam", "--out", str(out))
    assert code == 0 and "to train on" in text
    file = read_model_file(out)
    assert [layer.class_name for layer in file.layers][2] == "LSTM"
    assert file.meta["context"] == 1 and file.meta["training"]["frames"][0] % 8 == 0
    assert open_expert(out).kind == "mask"
    layers = list(file.layers)
    recurrent = layers[2].weights["recurrent_kernel"].copy()
    recurrent[:, ::3] = 0
    weights = {**layers[2].weights, "recurrent_kernel": recurrent}
    layers[2] = replace(layers[2], weights=weights)
    write_model_file(tmp_path / "holes.h5", layers, file.meta)
    code, text, _ = run(
        "expert", "--init", str(tmp_path / "holes.h5"), "--out", str(tmp_path / "more.h5")
    )
    assert code == 0 and "35 weights are zero and stay so" in text
    found = read_model_file(tmp_path / "more.h5").layers[2].weights["recurrent_kernel"]
    assert not found[:, ::3].any() and not np.array_equal(found, recurrent)
