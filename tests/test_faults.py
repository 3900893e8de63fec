"""Full disks, second runs, errors that are not finite, and what kills leave behind."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mnn.dae
import mnn.experiments
import mnn.train
import pruning.run
import quantization.run
import timit_fcn_mse
from eval import run as eval_run
from eval import scoring, sweep, systems
from pruning import sparsity
from speech import enhance, prepare
from speech.base import files
from speech.base.files import atomic_path, end_line, held, remove_leftovers
from speech.data import prepared
from speech.data.corpus import bundled_noise, bundled_speech, render, spread_mixtures
from speech.modelfile.h5 import write_model_file
from speech.net.keras_models import load_model
from speech.training.config import TrainingError
from speech.training.trainer import Trainer
from tests.builders import digests, make_speech, network, without_times

ROOT = Path(__file__).parent.parent
SMALL_MODEL = ROOT / "models" / "fcn_small.icse"
QUICK = ["--gpu", "-1", "--snr", "0", "--num-test", "1", "--num-train", "2",
         "--crop-seconds", "0.3", "--jobs", "1"]  # fmt: skip

DYING_WRITER = """
import os, signal, sys
from speech.base.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def hidden_files(folder):
    return sorted(p.name for p in folder.rglob(".*") if p.is_file() and ".lock" not in p.name)


@contextlib.contextmanager
def full_disk(num_bytes):
    """Lets no file grow beyond ``num_bytes``: the error is EFBIG, its way that of ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def model(tmp_path, rng):
    path = tmp_path / "small.h5"
    layers = network(rng, (1, 4, 1))
    for layer in layers:
        if "kernel" in layer.weights:
            layer.weights["kernel"][:] *= 0.1
    layers = sparsity.apply_masks(layers, sparsity.masks_for_share(layers, 0.25))
    write_model_file(path, layers, {"kind": "waveform", "sample_rate_hz": 16000})
    return path


@pytest.fixture
def corpus_options(timit, noises):
    return ["--timit", str(timit), "--noise", str(noises)]


@pytest.fixture
def speech_pair(tmp_path):
    """A noisy and a clean folder of one utterance."""
    plan = spread_mixtures(bundled_speech("TEST"), bundled_noise("TEST"), [5.0], 1)[0]
    mixture = render(plan)
    folders = {}
    for name in ("noisy", "clean"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        soundfile.write(folders[name] / "u.wav", getattr(mixture, name)[:32000], 16000)
    return folders


# --------------------------------------------------------------------------------------------
# What a kill leaves behind


def die_while_writing(path):
    done = subprocess.run([sys.executable, "-c", DYING_WRITER, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def test_half_files_of_killed_writers_are_removed_and_others_stay(tmp_path, monkeypatch):
    deep = tmp_path / "run" / "test" / "a.wav"
    die_while_writing(deep)
    (deep.parent / ".hidden.wav").write_text("somebody's")
    with atomic_path(deep.with_name("b.wav")) as ours:
        # Another machine's processes have other numbers: only age tells.
        elsewhere = ours.with_name(".c.000000-1-abcdefgh.wav")
        assert elsewhere.name != ours.name.replace("b.", "c.")
        elsewhere.write_text("half")
        assert len(hidden_files(tmp_path)) == 4
        assert remove_leftovers(tmp_path / "run") == 0  # not below
        with held(tmp_path / "run"):
            assert hidden_files(tmp_path) == sorted([ours.name, elsewhere.name, ".hidden.wav"])
        os.utime(elsewhere, (0, 0))
        assert remove_leftovers(deep.parent) == 1
        monkeypatch.setattr(files, "_machine", lambda: "ffffff")
        assert remove_leftovers(deep.parent) == 0
    assert hidden_files(tmp_path) == [".hidden.wav"] and not deep.exists()


def test_a_held_file_and_the_folder_of_enhanced_files_are_tidied_too(tmp_path, rng):
    die_while_writing(tmp_path / "model.h5")
    with held(tmp_path / "model.h5"):
        assert hidden_files(tmp_path) == []
    soundfile.write(tmp_path / "a.wav", make_speech(rng), 16000)
    die_while_writing(tmp_path / "out" / "a.wav")
    command = [str(tmp_path / "a.wav"), "-o", str(tmp_path / "out"), "--model", str(SMALL_MODEL)]
    assert enhance.main(command) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.wav"]


def test_a_cut_last_line_spoils_no_other(tmp_path, speech_pair):
    noisy, clean = (speech_pair[name] / "u.wav" for name in ("noisy", "clean"))
    task = scoring.Task("noisy", noisy, clean, "", 5.0, "u")
    path = tmp_path / "cache.jsonl"
    path.write_text('{"key": "cut by a ki')
    scores = {"stoi": scoring.Score(0.5, "ok")}
    scoring.ScoreCache(path).put(task, scores, True)
    assert scoring.ScoreCache(path).get(task, ["stoi"], True) == scores
    end_line(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_enhancing_goes_on_where_it_was_killed(tmp_path, speech_pair, monkeypatch):
    pairs = systems.bundled_pairs(tmp_path / "test", 1, (5.0,), 1)[:4]
    made, make = [], systems._enhance

    def dying(enhancer, pair, target, convert):
        if len(made) == 2:
            raise KeyboardInterrupt  # not caught, as a kill
        made.append(target)
        make(enhancer, pair, target, convert)

    monkeypatch.setattr(systems, "_enhance", dying)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        systems.model_system("fcn", SMALL_MODEL, pairs, out, True, 1)
    before = {path: path.stat().st_mtime_ns for path in made}
    with (out / "made.jsonl").open("a") as stream:
        stream.write('{"file": "cut')
    monkeypatch.setattr(systems, "_enhance", make)
    found = systems.model_system("fcn", SMALL_MODEL, pairs, out, True, 1)
    assert len(before) == 2 and all(path.is_file() for path in found.files.values())
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # Another model makes all anew.
    systems.model_system("fcn", ROOT / "models/fcn.h5", pairs, out, True, 1)
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


# --------------------------------------------------------------------------------------------
# A second run


def refused(code, capsys):
    return code == 1 and "another run is at work there" in capsys.readouterr().err


def test_a_second_training_run_is_refused_before_it_writes(tmp_path, corpus_options, capsys):
    out = tmp_path / "out"
    command = [*corpus_options, *QUICK, "--epochs", "1", "--out", str(out)]
    with held(out / "results.json"):
        assert refused(timit_fcn_mse.main(command), capsys)
        assert refused(timit_fcn_mse.main([*command, "--eval-only"]), capsys)
    assert not (out / "test").exists()
    with held(out):  # what trains there otherwise
        assert refused(timit_fcn_mse.main(command), capsys)
    assert not (out / "model.h5").exists()


def test_a_second_soft_pruning_is_refused(model, tmp_path, corpus_options, capsys):
    work = tmp_path / "work"
    command = [str(model), *corpus_options, *QUICK, "--retrain-epochs", "1", "--work", str(work)]
    with held(work):
        assert refused(pruning.run.main(command), capsys)
    assert not (work / "test").exists()


def test_a_second_fine_tuning_is_refused(model, tmp_path, corpus_options, capsys):
    out, work = tmp_path / "q", tmp_path / "work"
    command = [str(model), "-k", "4", *corpus_options, *QUICK, "--finetune-epochs", "1",
               "-o", str(out), "--work", str(work)]  # fmt: skip
    with held(out):
        assert refused(quantization.run.main(command), capsys)
    assert not work.exists()
    with held(work / "tied"):  # another output, the same checkpoints
        assert refused(quantization.run.main(command), capsys)
    assert not (out / "clustered.h5").exists()


def test_fine_tuning_without_work_keeps_its_test_set_to_itself(
    model, tmp_path, corpus_options, capsys, monkeypatch
):
    """In a folder that all runs share, one would score on the mixtures of another."""
    monkeypatch.chdir(tmp_path)
    command = [str(model), "-k", "4", *corpus_options, *QUICK, "--finetune-epochs", "1", "-o", "q"]
    quantization.run.main(command)  # whose scores of half a second of noise don't matter
    assert (tmp_path / "q/test/noisy").is_dir() and not Path("runs/quantization/test").exists()


def test_a_second_training_of_an_expert_is_refused(
    tmp_path,
    corpus_options,
    capsys,
    small_dae,
):
    out = tmp_path / "dae.h5"
    with held(out):
        command = ["dae", *corpus_options, "--gpu", "-1", "--iterations", "1", "--out", str(out)]
        assert refused(mnn.train.main(command), capsys)


@pytest.mark.parametrize("command", [eval_run, sweep])
def test_a_second_evaluation_is_refused(command, tmp_path, capsys):
    out = tmp_path / "out"
    with held(out):
        words = ["--model", f"a={SMALL_MODEL}", "--num-test", "1", "--out", str(out)]
        assert refused(command.main(words), capsys)
    assert not (out / "test").exists()


# --------------------------------------------------------------------------------------------
# A full disk


def test_a_full_disk_leaves_the_checkpoint_whole(make_trainer):
    whole = make_trainer("whole").run()
    trainer = make_trainer("broken", checkpoint_seconds=0.0)
    step, steps = trainer._step, iter(range(100))
    limits = contextlib.ExitStack()

    def step_on_a_disk_that_fills(batch):
        if next(steps) == 6:  # the second epoch's third: checkpoints are there
            before.append(trainer.checkpoint_path.read_bytes())
            limits.enter_context(full_disk(2000))
        return step(batch)

    before: list[bytes] = []
    trainer._step = step_on_a_disk_that_fills
    with limits, pytest.raises(OSError, match="File too large: .*checkpoint.npz"):
        trainer.run()
    assert trainer.checkpoint_path.read_bytes() == before[0]
    assert hidden_files(trainer.out) == []
    state = make_trainer("broken").run()
    assert without_times(state.history) == without_times(whole.history)


def test_a_full_disk_leaves_the_checkpoint_of_an_expert_whole(make_frame_trainer):
    whole = make_frame_trainer("whole").run()
    trainer = make_frame_trainer("broken", checkpoint_seconds=0.0)
    step, limits = trainer._step, contextlib.ExitStack()

    def step_on_a_disk_that_fills(iteration):
        if iteration == 7:
            limits.enter_context(full_disk(2000))
        return step(iteration)

    trainer._step = step_on_a_disk_that_fills
    with limits, pytest.raises(OSError, match="File too large"):
        trainer.run()
    assert hidden_files(trainer.out.parent) == []
    seen = []
    state = make_frame_trainer("broken").run(seen.append)
    assert len(seen) == 2  # of three: it went on
    assert without_times(state.history) == without_times(whole.history)


def test_results_on_a_full_disk_are_one_line(tmp_path, speech_pair, capsys):
    out = tmp_path / "out"
    folders = [f"--{name}={folder}" for name, folder in speech_pair.items()]
    command = [*folders, "--metrics", "stoi", "--jobs", "1", "--out", str(out)]
    command += ["--enhanced", f"x={speech_pair['clean']}"]
    assert eval_run.main(command) == 0
    before = {path: path.read_bytes() for path in out.glob("*") if path.name[0] != "."}
    capsys.readouterr()
    with full_disk(600):
        assert eval_run.main([*command, "--metrics", "stoi", "si_sdr"]) == 1
    error = capsys.readouterr().err.strip()
    assert "File too large; make room and repeat the command" in error.splitlines()[-1]
    assert str(out) in error.splitlines()[-1]
    for path in set(before) - {out / "cache.jsonl"}:
        assert path.read_bytes() == before[path] or json.loads(path.read_text() or "{}") is not None
    assert hidden_files(out) == []
    assert eval_run.main([*command, "--metrics", "stoi", "si_sdr"]) == 0


def test_enhanced_files_on_a_full_disk_stay_as_they_were(tmp_path, rng, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        soundfile.write(tmp_path / "in" / f"{name}.wav", make_speech(rng, 16000), 16000)
    out = tmp_path / "out"
    command = [str(tmp_path / "in"), "-o", str(out), "--model", str(SMALL_MODEL)]
    assert enhance.main(command) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    with full_disk(10_000):
        assert enhance.main(command) == 1
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert capsys.readouterr().err.strip()


def test_prepared_files_on_a_full_disk_are_whole_or_absent(tmp_path, timit, noises, capsys):
    out = tmp_path / "out"
    command = ["--clean", str(timit), "--noise", str(noises), "--snr", "0", "--out", str(out),
               "--jobs", "1", "--limit", "2"]  # fmt: skip
    with full_disk(10_000):
        assert prepare.main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "wav" in error
    assert not list(out.rglob("*.wav"))  # nor hidden ones


# --------------------------------------------------------------------------------------------
# Errors that are not finite


def nan_from(number, monkeypatch):
    """Lets the loss of a step of `Trainer`, counted over all runs, and of later ones be NaN."""
    step, steps = Trainer._step, iter(range(10_000))
    monkeypatch.setattr(
        Trainer,
        "_step",
        lambda self, batch: step(self, batch) if next(steps) < number else float("nan"),
    )


def assert_good(path):
    assert all(np.isfinite(array).all() for array in load_model(path).get_weights())


def test_weights_that_are_not_finite_never_reach_a_checkpoint(make_trainer):
    trainer = make_trainer(checkpoint_seconds=0.0)
    step, steps = trainer._step, iter(range(100))

    def spoiling(batch):
        loss = step(batch)
        if next(steps) == 5:  # finite, but its update was not
            trainer.network.set_weights([w * np.nan for w in trainer.network.get_weights()])
        return loss

    trainer._step = spoiling
    with pytest.raises(TrainingError, match=r"weights became .* in epoch 2, step 2; the last good"):
        trainer.run()
    again = make_trainer()
    again._resume()
    assert (again.state.epoch, again.state.batch) == (1, 1)
    assert all(np.isfinite(array).all() for array in again.network.get_weights())


def test_training_names_the_last_good_model(tmp_path, corpus_options, capsys, monkeypatch):
    nan_from(3, monkeypatch)
    out = tmp_path / "out"
    assert timit_fcn_mse.main([*corpus_options, *QUICK, "--epochs", "3", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "error: the training error became nan in epoch 2, step 2" in error
    assert f"the last good model is {out / 'last.h5'}" in error
    assert_good(out / "last.h5")
    assert_good(out / "model.h5")


def test_soft_pruning_names_the_last_good_model(
    model, tmp_path, corpus_options, capsys, monkeypatch
):
    nan_from(3, monkeypatch)  # in the second of two epochs of the first stage
    out, work = tmp_path / "pruned.h5", tmp_path / "work"
    command = [str(model), "-o", str(out), *corpus_options, *QUICK, "--retrain-epochs", "2",
               "--stages", "2", "--work", str(work)]  # fmt: skip
    assert pruning.run.main(command) == 1
    assert f"the last good model is {work / 'stage-1' / 'last.h5'}" in capsys.readouterr().err
    assert_good(work / "stage-1" / "last.h5")
    assert not out.exists() and not (work / "stage-2").exists()


def test_fine_tuning_names_the_last_good_model(
    model, tmp_path, corpus_options, capsys, monkeypatch
):
    nan_from(3, monkeypatch)
    out, work = tmp_path / "q", tmp_path / "work"
    command = [str(model), "-k", "4", "-o", str(out), *corpus_options, *QUICK,
               "--finetune-epochs", "2", "--work", str(work)]  # fmt: skip
    assert quantization.run.main(command) == 1
    assert f"the last good model is {work / 'tied' / 'last.h5'}" in capsys.readouterr().err
    assert_good(work / "tied" / "last.h5")
    assert not (out / "clustered.h5").exists() and not (out / "model.icse").exists()


@pytest.mark.parametrize("where", ["training", "validation", "weights"])
def test_an_expert_whose_error_is_not_finite_leaves_its_best_weights(
    make_frame_trainer,
    where,
):
    trainer = make_frame_trainer(checkpoint_seconds=0.0)
    best = trainer.out.with_suffix(".best.h5")
    step, kept = trainer._step, []

    def spoiling(iteration):
        loss = step(iteration)
        if iteration == 4:  # behind the first validation
            kept.append(trainer.state.best)
        if iteration == 6 and where == "training":
            return float("nan")
        if iteration == 7 and where == "validation":
            trainer.model.test_on_batch = lambda *batch: float("inf")
        if iteration == 6 and where == "weights":
            trainer.model.set_weights([w * np.nan for w in trainer.model.get_weights()])
        return loss

    trainer._step = spoiling
    with pytest.raises(TrainingError, match=f"{where} .*became.*iteration 4, is .*best.h5; try"):
        trainer.run()
    assert not trainer.out.exists()
    for one, other in zip(load_model(best).get_weights(), kept[0], strict=True):
        assert np.array_equal(one, other)
    again = make_frame_trainer()
    again._resume()
    assert all(np.isfinite(array).all() for array in again.model.get_weights())


def test_a_full_disk_ends_enhancing_with_one_line(tmp_path, rng, capsys):
    """It is no file among others that can't be enhanced."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        soundfile.write(tmp_path / "in" / f"{name}.wav", make_speech(rng, 16000), 16000)
    command = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", str(SMALL_MODEL)]
    with full_disk(10_000):
        assert enhance.main(command) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "wav: File too large; make room" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_the_quantized_model_whole(tmp_path, capsys):
    """HDF5 itself would crash the process."""
    out = tmp_path / "q"
    command = ["-k", "4", "-o", str(out)]
    assert quantization.run.main([str(SMALL_MODEL), *command]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    with full_disk(20_000):
        assert quantization.run.main([str(SMALL_MODEL), *command, "--per-sign"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "clustered.h5: File too large; make room" in error
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_second_preparation_and_experiment_are_refused(tmp_path, timit, noises, capsys):
    out = tmp_path / "out"
    command = ["--clean", str(timit), "--noise", str(noises), "--snr", "0", "--out", str(out),
               "--jobs", "1"]  # fmt: skip
    with held(out):
        assert refused(prepare.main(command), capsys)
        words = ["noise", "--timit", str(timit), "--noise", str(noises), "--out", str(out)]
        assert refused(mnn.experiments.main(words), capsys)
    assert prepare.main(command) == 0


def test_a_preparation_that_was_killed_is_repeated_as_it_was(
    tmp_path, timit, noises, capsys, monkeypatch
):
    out = tmp_path / "out"
    command = ["--clean", str(timit), "--noise", str(noises), "--snr", "0", "--out", str(out),
               "--jobs", "1"]  # fmt: skip
    mix, calls = prepared._mix_utterance, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("killed")
        return mix(*arguments)

    monkeypatch.setattr(prepared, "_mix_utterance", dying)
    assert prepare.main(command) == 1
    monkeypatch.setattr(prepared, "_mix_utterance", mix)
    capsys.readouterr()
    assert prepare.main([*command, "--seed", "1"]) == 1  # another run is not taken up
    assert "is not empty" in capsys.readouterr().err
    assert prepare.main(command) == 0
    whole = digests(out)
    assert "manifest.csv" in whole
    assert prepare.main(command) == 0  # a kill may come after the last file, before the end
    assert digests(out) == whole
    assert prepare.main([*command, "--seed", "1"]) == 1  # but another run needs --force
    assert "is not empty" in capsys.readouterr().err
