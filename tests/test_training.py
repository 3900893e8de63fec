"""The loop: resumes to the same result, keeps the best, stops on NaN, refuses another run."""

import json

import numpy as np
import pytest

from speech.corpus import find_noise, find_speech
from speech.fcn import FCNConfig, build_fcn
from speech.pipeline import MixtureSource, TrainingData
from speech.training import Trainer, TrainingConfig, TrainingError
from speech.weights import load_model, load_model_and_meta

SMALL = FCNConfig(num_hidden_layers=1, num_filters=3, kernel_size=9)
CONFIG = TrainingConfig(epochs=3, num_items=4, crop_seconds=0.2, learning_rate=1e-2)


@pytest.fixture
def make_trainer(timit, noises, tmp_path):
    def make(folder="run", config=CONFIG, **options):
        source = MixtureSource(find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN"), [0])
        training = TrainingData(
            source, num_items=config.num_items, crop_samples=3200, seed=config.seed
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


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 0.5}, {"num_items": 3}])
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
    trainer._validate = lambda: float("inf")
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


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch_size": -1}, {"crop_seconds": 0.0}, {"learning_rate": -1.0},
            {"schedule": "steps"}, {"learning_rate": float("nan")}],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainingConfig(**bad)


def test_the_paper_s_values_are_the_defaults():
    config = TrainingConfig()
    assert (config.epochs, config.num_items, config.batch_size) == (60, 30000, 1)
    assert (config.learning_rate, config.schedule, config.crop_seconds) == (1e-3, "constant", None)
