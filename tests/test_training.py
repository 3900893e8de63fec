"""The loop: resumes to the same result, keeps the best, stops on NaN, refuses another run."""

import itertools
import json
import os
import signal

import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.base.checkpoint import CheckpointError, read_npz, write_npz
from speech.base.files import held
from speech.modelfile.read import read_model_file
from speech.net.fcn import FCNConfig
from speech.net.keras_models import load_model
from speech.sound.augment import Augmentation
from speech.training.config import TrainingConfig, TrainingError
from tests.builders import without_times

SMALL = FCNConfig(num_hidden_layers=1, num_filters=3, kernel_size=9)
AUGMENTATION = Augmentation(second_noise=0.5, equalizer_db=6, noise_speed=1.2, band_limit=0.5)
CONFIG = TrainingConfig(epochs=3, num_items=4, crop_seconds=0.2, learning_rate=1e-2)


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
    model = load_model(tmp_path / "run" / "model.h5")
    meta = read_model_file(tmp_path / "run" / "model.h5").meta
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


#: What a stranger may put into the state of a checkpoint, and what the message says.
MALFORMED = {
    "no epoch": (lambda state: state.pop("epoch"), "missing required field `epoch`"),
    "epoch of text": (lambda state: state.update(epoch="1"), r"Expected `int`, got `str` - at"),
    "epoch below 0": (lambda state: state.update(epoch=-1), "fewer than no epochs"),
    "history of text": (lambda state: state.update(history="x"), "Expected `array`"),
    "history without losses": (lambda state: state.update(history=[{"a": 1}]), "lacks epochs"),
    "loss of text": (lambda state: state["history"][0].update(validation_loss="\x1b"), "got `str`"),
    "fingerprint of text": (lambda state: state.update(fingerprint="x"), "Expected `object`"),
    "fingerprint of nothing": (lambda state: state.update(fingerprint={}), "holds a run with"),
    "length of text": (lambda state: state.update(length="x"), "Expected"),
    "a list": (None, "Expected `object`, got `array`"),
}


def test_a_malformed_checkpoint_is_one_line(make_trainer, tmp_path):
    make_trainer().run()
    path = tmp_path / "run" / "checkpoint.npz"
    whole = read_npz(path)
    for name, (spoil, message) in MALFORMED.items():
        state = json.loads(whole["state"].tobytes())
        if spoil is None:
            state = []
        else:
            spoil(state)
        write_npz(path, whole | {"state": np.frombuffer(json.dumps(state).encode(), np.uint8)})
        with pytest.raises(ValueError, match=message) as caught:
            make_trainer().run()
        said = str(caught.value)
        assert str(tmp_path / "run") in said and said.isprintable() and len(said) < 600, name
    for key, message in (("weight_0", "another network"), ("best_0", "another network"),
                         ("optimizer_0", "another optimizer")):  # fmt: skip
        write_npz(path, whole | {key: np.zeros((2, 2, 2), "f4")})
        with pytest.raises(TrainingError, match=message):
            make_trainer().run()
    write_npz(path, {key: array for key, array in whole.items() if key != "weight_1"})
    with pytest.raises(CheckpointError, match="lacks weight_1"):
        make_trainer().run()
    write_npz(path, {key: array for key, array in whole.items() if key != "state"})
    with pytest.raises(CheckpointError, match="no state of a run"):
        make_trainer().run()


def test_a_damaged_checkpoint_is_named(make_trainer, tmp_path):
    make_trainer().run()
    path = tmp_path / "run" / "checkpoint.npz"
    whole = path.read_bytes()
    directory = whole.rindex(b"PK\x01\x02")
    for damaged in (whole[:1000], b"", whole[: directory + 8] + b"\xff" + whole[directory + 9 :]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a readable checkpoint.*delete it"):
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
            {"ema": 1.0}, {"clip_norm": 0.0}, {"clip_norm": float("nan")}, {"warmup_steps": -1},
            {"hours": 0.0}, {"hours": float("nan")}, {"epochs": 3, "hours": 1.0},
            {"validate_minutes": 1.0}, {"validate_minutes": 0.0, "hours": 1.0},
            {"optimizer": "sgd"}, {"beta_2": 1.0}, {"epsilon": 0.0}, {"weight_decay": 0.01},
            {"weight_decay": -1.0, "optimizer": "adamw"}, {"final_learning_rate": 2.0}],
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


# --------------------------------------------------------------------------------------------
# A budget of clock time


class Clocked:
    """Makes trainers whose clock is that of their steps: each takes ten seconds."""

    def __init__(self, make_trainer):
        self._make = make_trainer
        self.steps = 0

    def __call__(self, folder="run", at_step=None, **changes):
        settings = {"epochs": None, "hours": 0.05, "validate_minutes": 1.0, "ema": 0.6}
        settings |= {"schedule": "cosine", "warmup_steps": 2}
        config = TrainingConfig(**{**vars(CONFIG), **settings, **changes})
        trainer = self._make(folder, config)
        step = trainer._step

        def counted(batch):
            self.steps += 1
            loss = step(batch)
            if at_step is not None and self.steps == at_step[0]:
                at_step[1](trainer)
            return loss

        trainer._step = counted
        trainer._now = lambda: 10.0 * self.steps
        return trainer


@pytest.fixture
def clocked(make_trainer):
    return Clocked(make_trainer)


def same_weights(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_budget_ends_the_run_and_its_share_is_the_progress(clocked, tmp_path):
    trainer = clocked()
    rates = []
    step = trainer._step
    trainer._step = lambda batch: (
        rates.append(float(trainer.optimizer.learning_rate)),
        step(batch),
    )[1]
    state = trainer.run()
    assert [row["steps"] for row in state.history] == [6, 12, 18]
    assert [row["hours"] for row in state.history] == pytest.approx([1 / 60, 2 / 60, 0.05])
    assert (state.epoch, state.batch) == (4, 2)  # four utterances per pass over the data
    shares = np.arange(18) / 18
    cosine = 0.01 * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * shares)))
    assert_allclose(rates[:2], [0.005, 0.01], rtol=1e-6, atol=0)
    assert_allclose(rates[2:], cosine[2:], rtol=1e-6, atol=0)
    folder = tmp_path / "run"
    assert not (folder / "last.h5").exists()
    model = load_model(folder / "model.h5")
    meta = read_model_file(folder / "model.h5").meta
    assert same_weights(model.get_weights(), state.average)
    assert same_weights(model.get_weights(), trainer.network.get_weights())
    assert meta["training"]["steps_done"] == 18
    assert meta["training"]["validation_loss"] == state.history[-1]["validation_loss"]
    assert (folder / "history.csv").read_text().startswith("epoch,hours,steps,training_loss,")


@pytest.fixture
def heard():
    """Signals have their usual handlers, also where a shell has put the tests in background."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield usual
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_that_is_stopped_in_every_way_ends_like_an_unbroken_one(clocked, tmp_path, heard):
    whole = clocked("whole").run()
    clocked.steps = 0

    # SIGTERM, before the first validation
    stopped = clocked(at_step=(3, lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(SystemExit) as end:
        stopped.run()
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == heard[signal.SIGTERM]
    model = load_model(tmp_path / "run" / "model.h5")
    meta = read_model_file(tmp_path / "run" / "model.h5").meta
    assert same_weights(model.get_weights(), stopped.state.average)
    assert meta["training"]["steps_done"] == 3 and meta["training"]["validation_loss"] is None

    # Ctrl-C, while it validates
    stopped = clocked()
    validate = stopped._validate
    stopped._validate = lambda: (os.kill(os.getpid(), signal.SIGINT), validate())[1]
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert not stopped.state.history and stopped.state.num_items == 6

    # a kill, which loses what came after the checkpoint
    def die(_):
        raise Stop

    broken = clocked(at_step=(11, die))
    broken.checkpoint_seconds = 0.0
    with pytest.raises(Stop):
        broken.run()
    meta = read_model_file(tmp_path / "run" / "model.h5").meta
    assert meta["training"]["steps_done"] == 10
    clocked.steps = 10

    # where a shell lets Ctrl-C be ignored, it is
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    again = clocked(at_step=(12, lambda _: os.kill(os.getpid(), signal.SIGINT))).run()
    assert clocked.steps == 18
    assert without_times(again.history) == without_times(whole.history)
    assert same_weights(again.average, whole.average)


def test_a_larger_budget_goes_on_with_a_finished_run(clocked, tmp_path, caplog):
    clocked().run()
    checkpoint = tmp_path / "run" / "checkpoint.npz"
    before = checkpoint.read_bytes()
    with caplog.at_level("INFO", "speech"):
        clocked().run()
    assert checkpoint.read_bytes() == before
    assert "0.05 hours are used; a larger --hours goes on" in caplog.text
    longer = clocked(hours=0.1)
    rates = []
    step = longer._step
    longer._step = lambda batch: (rates.append(float(longer.optimizer.learning_rate)), step(batch))[
        1
    ]
    with caplog.at_level("INFO", "speech"):
        state = longer.run()
    assert "0.05 of 0.1 hours are used" in caplog.text
    assert [row["steps"] for row in state.history] == [6, 12, 18, 24, 30, 36]
    assert rates[0] == pytest.approx(0.01 * 0.505)  # half of the longer way
    assert rates[-1] < 2e-4
    with pytest.raises(TrainingError, match="holds a run with budget 'hours', not 'epochs'"):
        clocked(hours=None, epochs=3, validate_minutes=None).run()


def test_a_falling_schedule_may_get_longer_but_not_shorter(make_trainer):
    config = TrainingConfig(**{**vars(CONFIG), "schedule": "cosine"})
    make_trainer(config=config).run()
    longer = make_trainer(config=TrainingConfig(**{**vars(config), "epochs": 4}))
    assert [row["epoch"] for row in longer.run().history] == [1, 2, 3, 4]
    assert longer.state.history[-1]["learning_rate"] < longer.state.history[0]["learning_rate"]
    with pytest.raises(TrainingError, match="holds a run with epochs 4, not 2"):
        make_trainer(config=TrainingConfig(**{**vars(config), "epochs": 2})).run()


def test_a_checkpoint_of_before_goes_on(make_trainer, tmp_path):
    """Those of the FCN's runs of before the budget lack what came with it."""
    whole = make_trainer("whole").run()
    broken = make_trainer("broken", checkpoint_seconds=0.0)
    step, steps = broken._step, itertools.count(1)

    def dying_step(batch):
        if next(steps) == 7:
            raise Stop
        return step(batch)

    broken._step = dying_step
    with pytest.raises(Stop):
        broken.run()
    path = tmp_path / "broken" / "checkpoint.npz"
    with np.load(path) as file:
        arrays = dict(file)
    state = json.loads(arrays["state"].tobytes())
    for name in ("num_items", "used_seconds", "length"):
        del state[name]
    for name in ("budget", "optimizer", "beta_2", "epsilon", "weight_decay", "final_learning_rate"):
        del state["fingerprint"][name]
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    np.savez(path, **arrays)
    again = make_trainer("broken").run()
    assert without_times(again.history) == without_times(whole.history)
    assert same_weights(again.best_weights, whole.best_weights)


def test_only_kernels_decay(make_trainer):
    settings = {"optimizer": "adamw", "weight_decay": 0.5, "epsilon": 1e9}  # no step but the decay
    trainer = make_trainer(config=TrainingConfig(**{**vars(CONFIG), **settings}))
    for variable in trainer.network.trainable_variables:
        variable.assign(np.ones(variable.shape, np.float32))
    trainer._step(trainer.training.batch(0))
    for variable in trainer.network.trainable_variables:
        expected = 1 - 0.01 * 0.5 if variable.name == "kernel" else 1.0
        assert_allclose(variable.numpy(), expected, rtol=1e-6, atol=0, err_msg=variable.path)


def test_two_runs_in_one_folder_are_refused(make_trainer):
    trainer = make_trainer()
    with held(trainer.out), pytest.raises(ValueError, match="another run is at work there"):
        trainer.run()
    assert trainer.run().epoch == trainer.config.epochs
