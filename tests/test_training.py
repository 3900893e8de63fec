"""The loop: resumes to the same result, keeps the best, stops on NaN, refuses another run."""

import itertools
import json

import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.augment import Augmentation
from speech.corpus import find_noise, find_speech
from speech.fcn import FCNConfig, build_fcn
from speech.files import held
from speech.pipeline import MixtureSource, TrainingData
from speech.training.config import TrainingConfig, TrainingError
from speech.training.trainer import Trainer
from speech.weights import load_model, load_model_and_meta

SMALL = FCNConfig(num_hidden_layers=1, num_filters=3, kernel_size=9)
AUGMENTATION = Augmentation(second_noise=0.5, equalizer_db=6, noise_speed=1.2, band_limit=0.5)
CONFIG = TrainingConfig(epochs=3, num_items=4, crop_seconds=0.2, learning_rate=1e-2)


@pytest.fixture
def make_trainer(timit, noises, tmp_path):
    def make(folder="run", config=CONFIG, augmentation=None, gain_db=None, **options):
        files = find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN")
        source = MixtureSource(*files, [0])
        training = TrainingData(
            MixtureSource(*files, [0], augmentation=augmentation),
            num_items=config.num_items,
            crop_samples=3200,
            seed=config.seed,
            gain_db=gain_db,
        )
        validation = TrainingData(source, num_items=2, shuffle=False)
        network = build_fcn(SMALL, seed=config.seed)
        return Trainer(network, training, validation, config, tmp_path / folder, **options)

    return make


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


class Stop(Exception):
    """Stands for a kill."""


def test_a_run_that_is_killed_ends_like_an_unbroken_one(make_trainer, tmp_path):
    whole = make_trainer("whole").run()
    broken = make_trainer("broken", checkpoint_seconds=0.0)
    steps = 0
    step = broken._step

    def dying_step(batch):
        nonlocal steps
        steps += 1
        if steps == 7:  # the third step of the second epoch
            raise Stop
        return step(batch)

    broken._step = dying_step
    with pytest.raises(Stop):
        broken.run()
    again = make_trainer("broken")
    state = again.run()
    assert [row["epoch"] for row in state.history] == [1, 2, 3]
    assert without_times(state.history) == without_times(whole.history)
    for name in ("model.h5", "last.h5"):
        for one, other in zip(
            load_model(tmp_path / "whole" / name).get_weights(),
            load_model(tmp_path / "broken" / name).get_weights(),
            strict=True,
        ):
            assert np.array_equal(one, other)


def test_everything_at_once_resumes_to_the_same_bits(make_trainer):
    """Average of the weights, clipping, warm-up, decay, another loss, changed noises."""
    settings = {"loss": "spectral", "ema": 0.9, "clip_norm": 0.5, "schedule": "cosine"}
    config = TrainingConfig(**{**vars(CONFIG), **settings, "warmup_steps": 3})
    options = {"config": config, "augmentation": AUGMENTATION, "gain_db": (-6, 0)}
    whole = make_trainer("whole", **options).run()
    broken = make_trainer("broken", checkpoint_seconds=0.0, **options)
    step, steps = broken._step, itertools.count(1)

    def dying_step(batch):
        if next(steps) == 6:
            raise Stop
        return step(batch)

    broken._step = dying_step
    with pytest.raises(Stop):
        broken.run()
    again = make_trainer("broken", **options).run()
    assert without_times(again.history) == without_times(whole.history)
    for name in ("average", "best_weights"):
        for one, other in zip(getattr(again, name), getattr(whole, name), strict=True):
            assert np.array_equal(one, other)


def test_the_average_of_the_weights_is_what_is_validated_and_saved(make_trainer, tmp_path):
    config = TrainingConfig(**{**vars(CONFIG), "ema": 0.6, "epochs": 2})
    trainer = make_trainer(config=config)
    step, seen = trainer._step, []

    def watched(batch):
        loss = step(batch)
        seen.append(trainer.network.get_weights())
        return loss

    trainer._step = watched
    trainer.run()
    average = [array.astype(np.float64) for array in seen[0]]
    for number, weights in enumerate(seen):
        momentum = min(0.6, (1 + number) / (10 + number))
        average = [momentum * a + (1 - momentum) * w for a, w in zip(average, weights, strict=True)]
    last = load_model(tmp_path / "run" / "last.h5").get_weights()
    for ours, expected, raw in zip(last, average, seen[-1], strict=True):
        assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
        assert np.array_equal(ours, raw) == (not raw.any())  # a normalised bias stays zero
    again = make_trainer(config=config)  # reads the checkpoint: the raw weights are in it
    again._resume()
    for ours, raw in zip(again.network.get_weights(), seen[-1], strict=True):
        assert np.array_equal(ours, raw)


def test_gradients_are_clipped_to_the_norm(make_trainer):
    clipped = make_trainer(config=TrainingConfig(**{**vars(CONFIG), "clip_norm": 1e-12}))
    before = clipped.network.get_weights()
    clipped._step(clipped.training.batch(0))  # below Adam's epsilon, hence next to no step
    for one, other in zip(clipped.network.get_weights(), before, strict=True):
        assert_allclose(one, other, rtol=0, atol=2e-6)


def test_other_losses_report_the_mse_as_well(make_trainer):
    plain = make_trainer("mse").run().history[0]
    assert "validation_mse" not in plain
    row = make_trainer("sisdr", TrainingConfig(**{**vars(CONFIG), "loss": "sisdr"})).run()
    assert {"validation_loss", "validation_mse"} <= set(row.history[0])
    assert row.history[0]["validation_mse"] > 0


def test_a_run_killed_while_it_validates_goes_on(make_trainer):
    """The checkpoint then stands behind the epoch's last step."""
    whole = make_trainer("whole").run()
    broken = make_trainer("broken", checkpoint_seconds=0.0)

    def dying():
        raise Stop

    broken._validate = dying
    with pytest.raises(Stop):
        broken.run()
    assert without_times(make_trainer("broken").run().history) == without_times(whole.history)


def test_the_best_model_is_kept_and_described(make_trainer, tmp_path):
    trainer = make_trainer(meta={"kind": "waveform", "sample_rate_hz": 16000})
    history = trainer.run().history
    best = min(row["validation_loss"] for row in history)
    model, meta = load_model_and_meta(tmp_path / "run" / "model.h5")
    assert meta["kind"] == "waveform"
    assert meta["training"]["validation_loss"] == best
    for one, other in zip(model.get_weights(), trainer.network.get_weights(), strict=True):
        assert np.array_equal(one, other)
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,training_loss,validation_loss")
    assert len(rows) == 4
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["config"]["epochs"] == 3
    assert run["packages"]["keras"]


def test_a_finished_run_is_left_as_it_is_and_can_be_made_longer(make_trainer, tmp_path):
    make_trainer().run()
    before = (tmp_path / "run" / "checkpoint.npz").read_bytes()
    make_trainer().run()
    assert (tmp_path / "run" / "checkpoint.npz").read_bytes() == before
    longer = make_trainer(config=TrainingConfig(**{**vars(CONFIG), "epochs": 4})).run()
    assert [row["epoch"] for row in longer.history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"learning_rate": 0.5}, {"num_items": 3}, {"loss": "stft"}, {"ema": 0.9},
     {"clip_norm": 1.0}, {"init": "0" * 64}],
)  # fmt: skip
def test_another_run_in_the_same_folder_is_refused(make_trainer, change):
    make_trainer().run()
    with pytest.raises(TrainingError, match=f"holds a run with {next(iter(change))}"):
        make_trainer(config=TrainingConfig(**{**vars(CONFIG), **change})).run()


def test_a_nan_stops_the_run_and_leaves_the_last_good_model(make_trainer, tmp_path):
    trainer = make_trainer()
    step, steps = trainer._step, iter(range(100))
    trainer._step = lambda batch: step(batch) if next(steps) < 5 else float("nan")
    with pytest.raises(TrainingError, match="became nan in epoch 2, step 2.*learning-rate"):
        trainer.run()
    assert all(np.isfinite(w).all() for w in load_model(tmp_path / "run" / "last.h5").get_weights())


def test_a_nan_before_any_model_or_in_validation_says_so(make_trainer):
    trainer = make_trainer("first")
    trainer._step = lambda batch: float("nan")
    with pytest.raises(TrainingError, match="no model was written"):
        trainer.run()
    trainer = make_trainer("validation")
    trainer._validate = lambda: {"validation_loss": float("inf")}
    with pytest.raises(TrainingError, match="validation error became inf in epoch 1"):
        trainer.run()


def test_a_damaged_checkpoint_is_named(make_trainer, tmp_path):
    make_trainer().run()
    path = tmp_path / "run" / "checkpoint.npz"
    whole = path.read_bytes()
    directory = whole.rindex(b"PK\x01\x02")
    for damaged in (whole[:1000], b"", whole[: directory + 8] + b"\xff" + whole[directory + 9 :]):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match="not a readable checkpoint.*delete it"):
            make_trainer().run()


def test_cosine_schedule():
    config = TrainingConfig(schedule="cosine", learning_rate=1.0)
    assert config.learning_rate_at(0, 100) == pytest.approx(1.0)
    assert config.learning_rate_at(50, 100) == pytest.approx(0.505)
    assert config.learning_rate_at(100, 100) == pytest.approx(0.01)
    assert TrainingConfig().learning_rate_at(99, 100) == 1e-3
    config = TrainingConfig(schedule="cosine", learning_rate=1.0, warmup_steps=10)
    assert config.learning_rate_at(0, 100) == pytest.approx(0.1)
    assert config.learning_rate_at(9, 100) == config.learning_rate_at(10, 100) == pytest.approx(1)
    assert config.learning_rate_at(55, 100) == pytest.approx(0.505)
    assert config.learning_rate_at(100, 100) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch_size": -1}, {"crop_seconds": 0.0}, {"learning_rate": -1.0},
            {"schedule": "steps"}, {"learning_rate": float("nan")}, {"loss": "l2"},
            {"ema": 1.0}, {"clip_norm": 0.0}, {"clip_norm": float("nan")}, {"warmup_steps": -1}],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainingConfig(**bad)


def test_the_paper_s_values_are_the_defaults():
    config = TrainingConfig()
    assert (config.epochs, config.num_items, config.batch_size) == (60, 30000, 1)
    assert (config.learning_rate, config.schedule, config.crop_seconds) == (1e-3, "constant", None)
    assert (config.loss, config.clip_norm, config.ema, config.warmup_steps) == (
        "mse",
        None,
        None,
        0,
    )


def test_two_runs_in_one_folder_are_refused(make_trainer):
    trainer = make_trainer()
    with held(trainer.out), pytest.raises(ValueError, match="another run is at work there"):
        trainer.run()
    assert trainer.run().epoch == trainer.config.epochs
