"""Several devices and several machines: the run is that of one process, and a lost one ends all."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose

import timit_fcn_mse
from speech.data.corpus import find_noise, find_speech
from speech.data.mixtures import MixingConfig, PieceSource
from speech.data.pipeline import MixtureSource, TrainingData, collate
from speech.net.fcn import FCNConfig, build_fcn
from speech.net.keras_models import load_model
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency
from speech.net.training_model import MaskTrainingModel
from speech.prepare import main as prepare
from speech.sound.augment import Augmentation
from speech.training import distribution
from speech.training.config import TrainingConfig
from speech.training.distribution import (
    EveryNth,
    MachineLostError,
    Replicas,
    Shares,
    Task,
    read_task,
)
from speech.training.pieces import PieceData
from speech.training.trainer import Trainer
from tests.builders import without_times

ROOT = Path(__file__).parent.parent
#: Steps of 3 and of 1 utterances, everything on that training has.
SETTINGS = ["--gpu", "-1", "--snr", "0", "--num-test", "1", "--jobs", "1", "--filters", "3",
            "--epochs", "4", "--num-train", "4", "--batch-size", "3", "--crop-seconds", "0.3",
            "--loss", "spectral", "--clip-norm", "0.5", "--ema", "0.9", "--schedule", "cosine",
            "--warmup", "3", "--second-noise", "0.5", "--gain", "-6", "0"]  # fmt: skip

#: The command itself; each step's loss is noted, and at one step it may be killed.
COMMAND = """
import os, signal, sys
from pathlib import Path
import importlib
from speech.training.trainer import Trainer

notes, die_at = Path(sys.argv[1]), int(sys.argv[2])
step, losses = Trainer._step, []

def watched(self, batch):
    if len(losses) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    losses.append(step(self, batch))
    notes.write_text("\\n".join(map(repr, losses)))
    return losses[-1]

Trainer._step = watched
sys.exit(importlib.import_module(sys.argv[3]).main(sys.argv[4:]))
"""


def free_ports(count):
    """Ports that nothing listens on, outside the range that the system gives to clients."""
    rng, ports = np.random.default_rng(), []
    while len(ports) < count:
        port = int(rng.integers(20000, 32000))
        with socket.socket() as probe:
            if port not in ports and probe.connect_ex(("127.0.0.1", port)):
                ports.append(port)
    return ports


def start(notes, arguments, die_at=-1, config=None, module="timit_fcn_mse"):
    environment = {**os.environ, "TF_CONFIG": json.dumps(config) if config else ""}
    command = [sys.executable, "-c", COMMAND, notes, die_at, module, *arguments]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def losses(notes):
    return [float(line) for line in notes.read_text().split()]


def history(out):
    lines = (out / "history.csv").read_text().splitlines()
    return np.array([[float(word) for word in line.split(",")[:-1]] for line in lines[1:]])


def test_two_machines_train_as_one_and_go_on_after_one_was_killed(
    timit, noises, tmp_path, monkeypatch
):
    data = ["--timit", str(timit), "--noise", str(noises), *SETTINGS]
    ports = free_ports(2)
    cluster = {"chief": [f"localhost:{ports[0]}"], "worker": [f"localhost:{ports[1]}"]}

    def start_both(die_at):
        return [
            start(
                tmp_path / f"{kind}.txt",
                [*data, "--out", tmp_path / kind],
                die_at if kind == "worker" else -1,
                {"cluster": cluster, "task": {"type": kind, "index": 0}},
            )
            for kind in ("chief", "worker")
        ]

    both = start_both(die_at=5)  # in the third epoch
    step, expected = Trainer._step, []
    with monkeypatch.context() as patch:
        patch.delenv("TF_CONFIG", raising=False)
        patch.setattr(
            Trainer, "_step", lambda self, batch: expected.append(step(self, batch)) or expected[-1]
        )
        assert timit_fcn_mse.main([*data, "--out", str(tmp_path / "alone")]) == 0
    assert len(expected) == 8
    output = [process.communicate(timeout=600) for process in both]
    assert both[1].returncode == -signal.SIGKILL
    assert both[0].returncode == 1
    errors = [line for line in output[0][1].splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "another machine of the run has ended" in errors[0]
    assert "Traceback" not in output[0][1]
    assert_allclose(losses(tmp_path / "chief.txt"), expected[:5], rtol=0, atol=1e-5)

    both = start_both(die_at=-1)
    output = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert "epoch 3, step 1" in output[0][1]
    assert "2 devices" in output[0][0]
    for kind in ("chief", "worker"):
        assert_allclose(losses(tmp_path / f"{kind}.txt"), expected[4:], rtol=0, atol=1e-5)
    assert not (tmp_path / "worker").exists()
    assert_allclose(history(tmp_path / "chief"), history(tmp_path / "alone"), rtol=0, atol=1e-5)
    for name in ("model.h5", "last.h5"):
        weights = [load_model(tmp_path / who / name).get_weights() for who in ("chief", "alone")]
        for one, other in zip(*weights, strict=True):
            assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "how"),
    [("chief", signal.SIGKILL), ("chief", signal.SIGSTOP), ("worker", signal.SIGSTOP)],
)
def test_a_machine_that_is_killed_or_frozen_ends_the_other(timit, noises, tmp_path, lost, how):
    ports = free_ports(2)
    cluster = {"chief": [f"127.0.0.1:{ports[0]}"], "worker": [f"127.0.0.1:{ports[1]}"]}
    data = ["--timit", timit, "--noise", noises, *SETTINGS, "--epochs", "10000"]
    both = {
        kind: start(
            tmp_path / f"{kind}.txt",
            [*data, "--out", tmp_path / kind],
            config={"cluster": cluster, "task": {"type": kind, "index": 0}},
        )
        for kind in ("chief", "worker")
    }
    while not (tmp_path / f"{lost}.txt").exists():
        assert both[lost].poll() is None
        time.sleep(0.2)
    both[lost].send_signal(how)
    other = both["worker" if lost == "chief" else "chief"]
    started = time.monotonic()
    errors = other.communicate(timeout=300)[1]
    assert time.monotonic() - started < 120
    assert other.returncode == 1
    assert errors.count("error: another machine of the run has ended or does not answer") == 1
    both[lost].kill()
    both[lost].communicate()


#: Two logical CPUs stand for two GPUs; the placement of the convolutions is told as well.
TWO_DEVICES = """
import json, sys
from pathlib import Path
from speech.base.device import quiet_start
with quiet_start():
    import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.test_distribution import small_trainer

folder = Path(sys.argv[1])
runs = {}
for name, devices in (("one", []), ("two", ["CPU:0", "CPU:1"])):
    trainer = small_trainer(folder, folder / name, devices)
    step, losses = trainer._step, []
    trainer._step = lambda batch, step=step, losses=losses: losses.append(step(batch)) or losses[-1]
    runs[name] = {"history": trainer.run().history, "losses": losses}
graphs = trainer._replicas._gradient._list_all_concrete_functions()
runs["places"] = sorted(
    {op.device[-5:] for graph in graphs for op in graph.graph.get_operations()
     if op.type == "Conv2D" and op.device})
runs["devices"] = trainer.num_devices
print(json.dumps(runs))
"""


def small_trainer(folder, out, devices, **settings):
    """A training on ``TIMIT`` and ``noises`` of a folder, with Keras' own convolutions."""
    config = TrainingConfig(
        **{"epochs": 2, "num_items": 4, "batch_size": 3, "learning_rate": 1e-2, "conv": "keras"}
        | settings
    )
    files = find_speech(folder / "TIMIT", "TRAIN"), find_noise(folder / "noises", "TRAIN")
    training = TrainingData(
        MixtureSource(*files, [0], augmentation=Augmentation(second_noise=0.5)),
        num_items=config.num_items,
        batch_size=config.batch_size,
        crop_samples=3200,
        gain_db=(-6, 0),
    )
    validation = TrainingData(MixtureSource(*files, [0]), num_items=2, shuffle=False)
    network = build_fcn(FCNConfig(num_hidden_layers=1, num_filters=3, kernel_size=9), seed=0)
    return Trainer(network, training, validation, config, out, devices=devices)


def test_two_devices_train_as_one(timit, noises, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)
    assert runs["devices"] == 2
    assert runs["places"] == ["CPU:0", "CPU:1"]
    assert len(runs["two"]["losses"]) == 4
    assert_allclose(runs["two"]["losses"], runs["one"]["losses"], rtol=0, atol=1e-5)
    for one, other in zip(runs["one"]["history"], runs["two"]["history"], strict=True):
        del one["seconds"], other["seconds"]
        assert one.keys() == other.keys()
        assert_allclose(list(other.values()), list(one.values()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "sisdr", "clip_norm": 0.1, "ema": 0.9, "warmup_steps": 2}]
)
def test_the_sum_of_shares_is_the_step_of_the_whole_batch(timit, noises, tmp_path, settings):
    """And a run goes on on another number of devices."""
    whole = small_trainer(tmp_path, tmp_path / "whole", [], **settings).run().history
    small_trainer(tmp_path, tmp_path / "run", [], epochs=1, **settings).run()
    state = small_trainer(tmp_path, tmp_path / "run", ["CPU:0"] * 3, **settings).run()
    for one, other in zip(without_times(whole), without_times(state.history), strict=True):
        assert one.keys() == other.keys()
        assert_allclose(list(other.values()), list(one.values()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "spectral"])
def test_gradients_of_shares_add_up(timit, noises, tmp_path, loss):
    trainer = small_trainer(tmp_path, tmp_path, [], loss=loss, num_items=6, conv="fast")
    replicas = Replicas(trainer.model, [], None, 3)

    def gradient(first, total):
        share = Shares(trainer.training, first, 1, total).batch(1)
        given = tuple((batch.noisy, batch.lengths, batch.clean) for batch in share.batches)
        return np.asarray(replicas._gradient(given, np.float32(share.num_items)))

    whole, parts = gradient(0, 1), [gradient(rank, 2) for rank in range(2)]
    assert abs(sum(parts) - whole)[-1] < 1e-6
    error = np.linalg.norm(sum(parts) - whole) / np.linalg.norm(whole)
    assert error < 1e-6
    assert np.linalg.norm(2 * parts[0] - whole) > 1e-3 * np.linalg.norm(whole)  # unequal shares
    assert abs(whole[-1] - trainer._step(trainer.training.batch(1))) < 1e-6


def test_what_is_held_at_zero_stays_there(timit, noises, tmp_path):
    from speech.net.constraints import HeldZeros

    trainer = small_trainer(tmp_path, tmp_path / "run", ["CPU:0", "CPU:0"])
    layer = next(x for x in trainer.network.layers if isinstance(x, keras.layers.Conv1D))
    mask = np.arange(3)[None, :] != 1
    layer.kernel.assign(layer.kernel * mask)
    layer.kernel.constraint = HeldZeros(mask)
    before = layer.kernel.numpy()
    trainer.run()
    after = layer.kernel.numpy()
    assert not after[:, :, 1].any()
    assert (after[:, :, [0, 2]] != before[:, :, [0, 2]]).all()


def test_devices_share_the_pieces_of_the_network_over_time_and_frequency(timit, noises, tmp_path):
    """Without BatchNormalization, whose statistics are those of a share, the step is the same."""
    form = TimeFrequencyConfig(3, 3, (1,), normalization="none")
    mixing = MixingConfig(room_share=0, codec_share=0)
    config = TrainingConfig(
        epochs=2, num_items=6, batch_size=3, conv="keras", loss=MaskLoss(), ema=0.9,
        optimizer="adamw", weight_decay=0.01, clip_norm=1.0,
    )  # fmt: skip

    def history(name, devices):
        sources = [
            PieceSource(
                find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN"), mixing,
                num_samples=3200, batch_size=3, seed=seed,
            )
            for seed in (0, 1)
        ]  # fmt: skip
        trainer = Trainer(
            build_time_frequency(form),
            PieceData(sources[0], num_items=6, workers=0),
            PieceData(sources[1], num_items=3, workers=0, keep=True),
            config,
            tmp_path / name,
            make_model=lambda network, engine: MaskTrainingModel(
                network, form, config.loss, engine
            ),
            devices=devices,
        )
        return without_times(trainer.run().history)

    for one, other in zip(history("one", []), history("two", ["CPU:0"] * 2), strict=True):
        assert one.keys() == other.keys()
        assert_allclose(list(other.values()), list(one.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_machines_use_up_one_budget(timit, noises, tmp_path):
    """By the clock of the first machine: both take the same steps and end together."""
    words = ["--network", "tf", "--size", "small", "--speech", timit, "--noise", noises,
             "--gpu", "-1", "--batch-size", "2", "--crop-seconds", "0.3", "--rooms", "0",
             "--hours", "0.01"]  # fmt: skip
    ports = free_ports(2)
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    both = [
        start(
            tmp_path / f"{index}.txt",
            [*words, "-o", tmp_path / f"{index}"],
            config={"cluster": cluster, "task": {"type": "worker", "index": index}},
            module="speech.train",
        )
        for index in range(2)
    ]
    output = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    first, second = (losses(tmp_path / f"{index}.txt") for index in range(2))
    assert first and first == second
    assert (tmp_path / "0" / "model.h5").exists() and not (tmp_path / "1").exists()


def test_more_devices_than_utterances_are_refused(timit, noises, tmp_path):
    with pytest.raises(ValueError, match="step of 1 .* 2 devices; give --batch-size 2"):
        small_trainer(tmp_path, tmp_path / "run", ["CPU:0", "CPU:0"], batch_size=1)


class Numbers:
    """A source whose items are their own number, of unequal lengths; counts what is asked for."""

    def __init__(self, count):
        self.asked = []
        self._count = count

    def __len__(self):
        return self._count

    def item(self, index, rng):
        self.asked.append(index)
        signal = np.append(np.full(5 + index, 0.5 + rng.uniform(0, 0.1)), 1.0)
        return signal, signal

    def description(self):
        return ["numbers"]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 7])
@pytest.mark.parametrize("places", [(1, 1), (2, 1), (1, 1, 3)])
def test_shares_are_the_batches(batch_size, places):
    source = Numbers(6)
    data = TrainingData(source, num_items=11, batch_size=batch_size, seed=3, epoch=2)
    total = sum(places)
    for index in range(len(data)):
        whole, rows, asked = data.batch(index), [], []
        for rank, count in enumerate(places):
            source.asked.clear()
            shares = Shares(data, sum(places[:rank]), count, total)
            assert len(shares) == len(data)
            share = shares.batch(index)
            assert share.num_items == len(whole.lengths)
            assert len(share.batches) == count
            found = [batch for batch in share.batches if batch is not None]
            own = [
                batch.noisy[row, :length, 0]
                for batch in found
                for row, length in enumerate(batch.lengths)
            ]
            assert len(source.asked) == len(own)  # and nothing of the others' shares
            asked += source.asked
            rows += own
        assert len(rows) == len(whole.lengths)
        again = collate([(row, row) for row in rows])
        assert np.array_equal(again.noisy, whole.noisy)
        assert np.array_equal(again.lengths, whole.lengths)


def test_validation_is_shared_whole():
    data = TrainingData(Numbers(5), shuffle=False)
    for count in (1, 2, 7):
        seen = [
            len(part.batch(index).noisy[0])
            for part in (EveryNth(data, rank, count) for rank in range(count))
            for index in range(len(part))
        ]
        assert sorted(seen) == [6, 7, 8, 9, 10]


def config_of(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_tf_config_is_read(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert read_task() is None
    monkeypatch.setenv("TF_CONFIG", config_of({"worker": ["a:1"]}))
    assert read_task() is None
    monkeypatch.setenv("TF_CONFIG", config_of({"worker": ["a:1", "[::1]:2"]}, index=1))
    task = read_task()
    assert (task.rank, task.addresses) == (1, ["a:1", "[::1]:2"])
    cluster = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
    for kind, index, rank in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        monkeypatch.setenv("TF_CONFIG", config_of(cluster, kind, index))
        task = read_task()
        assert (task.rank, task.addresses) == (rank, ["a:1", "b:2", "c:3"])


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "Expecting"), ("[]", "not usable"), ("{}", "cluster"),
     (config_of({"worker": ["a:1", "b:2"]}, index=2), "no worker 2"),
     (config_of({"worker": ["a:1", "b:2"]}, index=-1), "no worker -1"),
     (config_of({"worker": ["a:1", "b:2"]}, "chief"), "chief"),
     (config_of({"worker": ["a:1"], "ps": ["b:2"]}), "only one 'chief' and any number"),
     (config_of({"worker": ["a:1"], "chief": ["b:2", "c:3"]}), "only one 'chief'"),
     (config_of({"worker": ["a:1", "b"]}), "'b' is no host:port"),
     (config_of({"worker": ["a:1", "b:99999"]}), "is no host:port")],
)  # fmt: skip
def test_a_wrong_tf_config_is_one_line(monkeypatch, tmp_path, capsys, text, why):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r"TF_CONFIG is not usable: .*; give \{") as error:
        read_task()
    assert why in str(error.value)
    assert timit_fcn_mse.main(["--gpu", "-1", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_only_the_first_machine_evaluates(monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", config_of({"worker": ["a:1", "b:2"]}, index=1))
    assert timit_fcn_mse.main(["--gpu", "-1", "--eval-only"]) == 1
    assert "--eval-only runs on the first machine" in capsys.readouterr().err


def test_only_the_first_machine_makes_a_test_set(monkeypatch, timit, noises, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    words = ["--noise", noises, "--clean", timit, "--snr", "0", "--split", "TRAIN", "--out", mixed]
    assert prepare([*map(str, words), "--jobs", "1"]) == 0
    absent = tmp_path / "absent"
    premixed = ["--train-noisy", mixed / "noisy", "--train-clean", mixed / "clean",
                "--test-noisy", absent, "--test-clean", absent]  # fmt: skip
    trained = []
    monkeypatch.setenv("TF_CONFIG", config_of({"worker": ["a:1", "b:2"]}, index=1))
    monkeypatch.setattr(distribution, "Machines", lambda task: task)

    def train_waveform(data, asked, **settings):
        trained.append(data)
        return types.SimpleNamespace(writes=False)

    monkeypatch.setattr("speech.training.run.train_waveform", train_waveform)
    monkeypatch.setattr(
        "speech.training.datasets._write_test_set", lambda *_: pytest.fail("mixed a test set")
    )
    for data in (["--timit", timit, "--noise", noises], premixed):
        words = ["--gpu", "-1", "--out", tmp_path / "out", *data]
        assert timit_fcn_mse.main(list(map(str, words))) == 0
        assert "the rest is done by a:1" in capsys.readouterr().out
        assert len(trained.pop().training) and not (tmp_path / "out").exists()


def tasks(count):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
    return [Task(cluster, "worker", index) for index in range(count)]


def meet_all(all_tasks, seconds):
    """What each of them ends with: None if all met."""
    ends = {}

    def meet(task):
        try:
            distribution._meet(task, seconds)
            ends[task.rank] = None
        except ValueError as error:
            ends[task.rank] = error

    threads = [threading.Thread(target=meet, args=(task,)) for task in all_tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_machines_meet(monkeypatch):
    monkeypatch.setattr(distribution, "_ANSWER_SECONDS", 0.2)
    all_tasks = tasks(3)
    assert meet_all(all_tasks[::-1], 30) == {0: None, 1: None, 2: None}
    # Strangers, and one that came and left again, are not counted.
    first = threading.Thread(target=distribution._meet, args=(all_tasks[0], 30))
    first.start()
    place = ("127.0.0.1", distribution._host_and_port(all_tasks[0].addresses[0])[1])
    hellos = [b"", b"GET / HTTP/1.1\r\n\r\n", b"[{}, 1]\n", b"7\n"]
    for hello in (*hellos, json.dumps([all_tasks[0].cluster, 1]).encode() + b"\n"):
        for _ in range(100):
            try:
                with socket.create_connection(place, 1) as stranger:
                    stranger.sendall(hello)
                break
            except ConnectionRefusedError:
                threading.Event().wait(0.05)  # not open yet
    assert meet_all(all_tasks[1:], 30) == {1: None, 2: None}
    first.join()


def test_machines_that_do_not_come_are_named():
    all_tasks = tasks(3)
    ends = meet_all(all_tasks[:2], 1.5)
    assert set(ends) == {0, 1}
    assert all(isinstance(error, MachineLostError) for error in ends.values())
    assert str(ends[0]).startswith(f"{all_tasks[2].addresses[0 + 2]} did not come; start the same")
    assert f"{all_tasks[0].addresses[0]} did not answer, or waits for others" in str(ends[1])


def test_a_port_in_use_is_named():
    task = tasks(2)[0]
    port = distribution._host_and_port(task.addresses[0])[1]
    with socket.create_server(("", port)):
        with pytest.raises(ValueError, match=f"port {port} can't be opened on this machine"):
            distribution._meet(task, 1)


def drip(port, stop, what=b"[", pause_s=0.05):
    """A stranger who says a byte now and then, and never ends."""
    while not stop.is_set():
        try:
            with socket.create_connection(("localhost", port), 5) as stranger:
                while not stop.is_set():
                    stranger.sendall(what)
                    time.sleep(pause_s)
        except OSError:
            time.sleep(0.01)


@pytest.mark.parametrize("what", [b"[", b"", b"\n", b"x" * 5000])
def test_strangers_who_drip_do_not_hold_the_meeting(monkeypatch, what):
    monkeypatch.setattr(distribution, "_ANSWER_SECONDS", 10.0)
    all_tasks = tasks(2)
    stop = threading.Event()
    port = int(all_tasks[0].addresses[0].rpartition(":")[2])
    first = threading.Thread(target=distribution._meet, args=(all_tasks[0], 60))
    started = time.monotonic()
    first.start()
    strangers = [threading.Thread(target=drip, args=(port, stop, what)) for _ in range(5)]
    for stranger in strangers:
        stranger.start()
    time.sleep(0.5)
    try:
        distribution._meet(all_tasks[1], 60)
        first.join(30)
        assert not first.is_alive()
        assert time.monotonic() - started < 9  # less than one stranger may take
    finally:
        stop.set()
        for stranger in strangers:
            stranger.join()


def test_a_stranger_that_had_to_leave_is_not_heard_any_more(monkeypatch):
    """The server and a stranger are ready at once, and the one who comes takes its place."""
    monkeypatch.setattr(distribution, "_MOST_STRANGERS", 1)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        distribution._Hall(server, tasks(2)[0]) as hall,
    ):
        strangers = [socket.create_connection(server.getsockname())]
        assert hall.next(time.monotonic() + 0.2) is None
        (first,) = hall._said
        strangers[0].sendall(b"[")
        strangers.append(socket.create_connection(server.getsockname()))
        both = [hall._selector.get_key(one) for one in (server, first)]
        monkeypatch.setattr(hall._selector, "select", lambda _: [(key, 1) for key in both])
        assert hall.next(time.monotonic() + 0.2) is None
        assert first not in hall._said and len(hall._said) == 1
        for stranger in strangers:
            stranger.close()


def test_more_strangers_than_places_leave_one_for_the_machine(monkeypatch):
    monkeypatch.setattr(distribution, "_MOST_STRANGERS", 2)
    all_tasks = tasks(2)
    stop = threading.Event()
    port = int(all_tasks[0].addresses[0].rpartition(":")[2])
    first = threading.Thread(target=distribution._meet, args=(all_tasks[0], 60))
    first.start()
    strangers = [threading.Thread(target=drip, args=(port, stop, b"", 1.0)) for _ in range(6)]
    for stranger in strangers:
        stranger.start()
    try:
        distribution._meet(all_tasks[1], 60)
        first.join(30)
        assert not first.is_alive()
    finally:
        stop.set()
        for stranger in strangers:
            stranger.join()


def test_a_first_machine_that_only_asks_holds_nobody_beyond_the_deadline():
    """Whatever stands at its address: each byte of it is in time, the whole is not."""
    all_tasks = tasks(2)
    port = int(all_tasks[0].addresses[0].rpartition(":")[2])
    stop = threading.Event()

    def ask_for_ever():
        with socket.create_server(("", port)) as server:
            server.settimeout(10)
            other, _ = server.accept()
            with other:
                try:
                    while not stop.is_set():
                        other.sendall(b"?")
                        time.sleep(0.1)
                except OSError:
                    pass

    thread = threading.Thread(target=ask_for_ever)
    thread.start()
    started = time.monotonic()
    try:
        with pytest.raises(distribution.MachineLostError, match="did not answer"):
            distribution._meet(all_tasks[1], 1.5)
        assert time.monotonic() - started < 6
    finally:
        stop.set()
        thread.join()
