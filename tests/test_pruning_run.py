"""python -m pruning.run: one-shot, soft, filters, resuming, bad usage; frozen zeros stay zero."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mnn.experts import build_expert
from pruning import run, sparsity
from pruning.config import PruningConfig
from pruning.process import prune_file
from speech.modelfile.h5 import write_model_file
from speech.modelfile.read import read_model_file
from speech.net import blockconv
from speech.net.fcn import FCNConfig, build_fcn
from speech.net.keras_models import save_model
from speech.net.mask_loss import MaskLoss
from speech.training.continuing import _mask_loss_of, check_trains
from speech.training.request import TrainOn
from tests.builders import PIECES, TINY, mask_from_json, mask_layers, network, zeros

SMALL = ["--retrain", "--num-train", "4", "--crop-seconds", "0.3", "--batch-size", "2",
         "--retrain-epochs", "1", "--final-epochs", "1", "--num-test", "1", "--snr", "5",
         "--gpu", "-1", "--jobs", "1"]  # fmt: skip


@pytest.fixture
def model(tmp_path, rng):
    path = tmp_path / "small.h5"
    layers = network(rng, (1, 6, 6, 1))
    for layer in layers:
        if "kernel" in layer.weights:
            layer.weights["kernel"][:] *= 0.1
    write_model_file(path, layers, {"kind": "waveform", "sample_rate_hz": 16000})
    return path


@pytest.fixture
def spectral(tmp_path):
    """A network over time and frequency that was trained with a loss of its own."""
    path = tmp_path / "tf.h5"
    loss = {"magnitude": 2.0, "complex": 1.0, "consistency": 0.0, "waveform": 0.1, "si_sdr": 0.0}
    write_model_file(path, mask_layers(), {**TINY.meta(), "training": {"loss": loss}})
    return path


#: Training of such a network that ends at once, on the bundled corpus.


@pytest.fixture
def few_pieces(monkeypatch):
    monkeypatch.setattr("speech.training.datasets._VALIDATION_PIECES", 2)


def test_one_shot_alone_writes_beside_the_model_and_says_so(model, capsys):
    assert run.main([str(model), "--theta", "0.6"]) == 0
    out = capsys.readouterr().out
    assert "one-shot" in out and "no data given" in out
    pruned = read_model_file(model.with_name("small.pruned.h5"))
    before = read_model_file(model)
    masks = sparsity.masks_for_theta(before.layers, 0.6)
    for old, new in zip(before.layers, pruned.layers, strict=True):
        if old.name in masks:
            mask = masks[old.name]
            assert not new.weights["kernel"][:, ~mask].any()
            assert_array_equal(new.weights["kernel"][:, mask], old.weights["kernel"][:, mask])
    assert pruned.meta["pruning"]["from_sha256"] == before.sha256
    stored = pruned.meta["pruning"]["masks"]
    for name, mask in masks.items():
        assert_array_equal(mask_from_json(stored[name]), mask)
    assert pruned.meta["kind"] == "waveform" and pruned.meta["pruning"]["theta"] == 0.6


def test_one_shot_scores_on_the_bundled_test_set_if_asked(model, tmp_path, capsys):
    command = [str(model), "--target-sparsity", "0.1", "--score", "--num-test", "1", "--snr", "5",
               "--jobs", "1", "--work", str(tmp_path / "work")]  # fmt: skip
    assert run.main(command) == 0
    out = capsys.readouterr().out
    assert "| before " in out and "| after " in out and "PESQ-WB" in out


def test_target_sparsity_and_keep_are_the_same(model, tmp_path, capsys):
    for name, flag in (("a.h5", ["--target-sparsity", "0.25"]), ("b.h5", ["--keep", "0.75"])):
        assert run.main([str(model), "-o", str(tmp_path / name), *flag]) == 0
    assert zeros(tmp_path / "a.h5") == zeros(tmp_path / "b.h5")
    assert sum(zeros(tmp_path / "a.h5").values()) == round(0.25 * 42)


@pytest.mark.filterwarnings("ignore")
def test_soft_pruning_ends_at_the_target_resumes_and_scores(model, tmp_path, capsys):
    out, work = tmp_path / "soft.h5", tmp_path / "work"
    command = [str(model), "-o", str(out), "--target-sparsity", "0.25", "--stages", "2",
               "--work", str(work), "--json", str(tmp_path / "r.json"), *SMALL]  # fmt: skip
    assert run.main(command) == 0
    assert sum(zeros(out).values()) == round(0.25 * 42)
    first = read_model_file(out)
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["name"] for row in result["scores"]] == ["noisy", "before", "after"]
    assert result["settings"]["theta"] is None  # each stage had one of its own
    # Frozen: the channels that the last stage pruned are those of the fine-tuned model.
    stage = read_model_file(work / "stage-2" / "model.h5")
    masks = sparsity.masks_for_share(stage.layers, 0.25)
    found = sparsity.masks_of_zeros(first.layers, keep_last=True)
    for name, mask in masks.items():
        assert_array_equal(found[name], mask)
    assert any(
        not np.array_equal(a.weights["kernel"], b.weights["kernel"] * masks[a.name])
        for a, b in zip(first.layers, stage.layers, strict=True)
        if a.name in masks
    )
    # The same command again: nothing is trained, the same file comes out.
    capsys.readouterr()
    assert run.main(command) == 0
    again = read_model_file(out)
    assert "epoch" not in capsys.readouterr().out
    for a, b in zip(first.layers, again.layers, strict=True):
        for name, array in a.weights.items():
            assert_array_equal(array, b.weights[name])


@pytest.mark.filterwarnings("ignore")
def test_another_pruning_of_a_model_is_another_run(model, tmp_path, capsys, monkeypatch):
    """It once took the finished stages of the first one for its own, or refused to begin."""
    monkeypatch.chdir(tmp_path)
    quick = ["--stages", "1", "--no-score", *SMALL]
    for share, name in (("0.25", "a.h5"), ("0.5", "b.h5")):
        command = [str(model), "-o", name, "--target-sparsity", share, *quick]
        assert run.main(command) == 0
        assert sum(zeros(name).values()) == round(float(share) * 42)
    assert run.main([str(model), "-o", "c.h5", "--remove-filters", "0.34", *quick]) == 0
    # In the folder of another one it is refused.
    capsys.readouterr()
    assert run.main([str(model), "-o", "a.h5", "--target-sparsity", "0.3", *quick]) == 1
    error = capsys.readouterr().err
    assert "another --out" in error and "stage-1 holds a run with init" in error
    assert sum(zeros("a.h5").values()) == round(0.25 * 42)


@pytest.mark.filterwarnings("ignore")
def test_filters_leave_the_file_and_the_rest_is_trained_on(model, tmp_path, capsys):
    out = tmp_path / "filters.h5"
    command = [str(model), "-o", str(out), "--remove-filters", "0.34", "--stages", "2",
               "--work", str(tmp_path / "work"), *SMALL]  # fmt: skip
    assert run.main(command) == 0
    widths = [
        layer.config["filters"]
        for layer in read_model_file(out).layers
        if layer.class_name == "Conv1D"
    ]
    assert widths == [4, 4, 1]
    assert out.stat().st_size < model.stat().st_size


def test_filters_by_theta_go_at_once(model, tmp_path, capsys):
    """Three of six filters are read by nothing but channels of zeros."""
    file = read_model_file(model)
    second = [layer for layer in file.layers if layer.class_name == "Conv1D"][1]
    second.weights["kernel"][:, :3] = 0
    write_model_file(model, file.layers, file.meta)
    out = tmp_path / "theta.h5"
    command = [str(model), "-o", str(out), "--remove-filters", "theta", "--theta", "0.9"]
    assert run.main(command) == 0
    assert "3 filters change nothing" in capsys.readouterr().out
    first = next(x for x in read_model_file(out).layers if x.class_name == "Conv1D")
    assert first.config["filters"] == 3


def test_what_comes_pruned_stays_pruned_and_is_announced(model, tmp_path, capsys):
    once = tmp_path / "once.h5"
    assert run.main([str(model), "-o", str(once), "--target-sparsity", "0.3"]) == 0
    assert run.main([str(once), "-o", str(tmp_path / "twice.h5"), "--target-sparsity", "0.3"]) == 0
    assert "comes with 13 channels at zero" in capsys.readouterr().out
    assert zeros(once) == zeros(tmp_path / "twice.h5")


def test_one_shot_of_a_network_over_time_and_frequency(spectral, tmp_path, capsys):
    out = tmp_path / "p.h5"
    assert run.main([str(spectral), "-o", str(out), "--target-sparsity", "0.3"]) == 0
    assert "FLOP per frame (zero kernels skipped)" in capsys.readouterr().out
    before, after = read_model_file(spectral), read_model_file(out)
    masks = sparsity.masks_for_share(before.layers, 0.3)
    found = sparsity.masks_of_zeros(after.layers, keep_last=True)
    for name, mask in masks.items():
        assert_array_equal(found[name], mask)
    assert after.kind == "complex_mask" and after.meta["stft"] == before.meta["stft"]
    # Its skips and residuals are where they were.
    assert [x.inputs for x in after.layers] == [x.inputs for x in before.layers]


@pytest.mark.filterwarnings("ignore")
def test_soft_pruning_of_a_network_over_time_and_frequency(spectral, tmp_path, capsys, few_pieces):
    out, work = tmp_path / "soft.h5", tmp_path / "work"
    command = [str(spectral), "-o", str(out), "--target-sparsity", "0.3", "--stages", "1",
               "--work", str(work), *PIECES]  # fmt: skip
    assert run.main(command) == 0
    before, after = read_model_file(spectral), read_model_file(out)
    stage = read_model_file(work / "stage-1" / "model.h5")
    assert stage.kind == "complex_mask"
    masks = sparsity.masks_for_share(stage.layers, 0.3)
    found = sparsity.masks_of_zeros(after.layers, keep_last=True)
    for name, mask in masks.items():  # held through the C kernels and the averaged weights
        assert_array_equal(found[name], mask)
    changed = [
        key
        for a, b in zip(before.layers, after.layers, strict=True)
        for key in a.weights
        if not np.array_equal(a.weights[key], b.weights[key])
    ]
    assert {"kernel", "bias", "gamma", "moving_mean", "moving_variance"} <= set(changed)
    told = json.loads((work / "final" / "run.json").read_text())
    assert told["config"]["loss"]["magnitude"] == 2.0 and told["config"]["optimizer"] == "adamw"
    assert told["c_kernels"] == blockconv.is_available()
    assert told["config"]["learning_rate"] == run.RETRAIN_LEARNING_RATE
    seeds = [json.loads((work / x / "run.json").read_text())["config"]["seed"]
             for x in ("stage-1", "final")]  # fmt: skip
    assert seeds[0] != seeds[1]
    capsys.readouterr()
    assert run.main(command) == 0
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_filters_of_a_network_over_time_and_frequency(spectral, tmp_path, few_pieces):
    out = tmp_path / "filters.h5"
    command = [str(spectral), "-o", str(out), "--remove-filters", "0.4", "--stages", "1",
               "--work", str(tmp_path / "work"), *PIECES]  # fmt: skip
    assert run.main(command) == 0
    kernels = {
        layer.name: layer.weights["kernel"].shape
        for layer in read_model_file(out).layers
        if "kernel" in layer.weights
    }
    assert kernels["encoder3"] == (1, 3, 3, 3) and kernels["mask"] == (1, 8, 2, 3)
    assert kernels["block1_bands"] == (6, 6)  # bands stay


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss", "mse"], "--loss is for networks from waveform to waveform"),
        (["--gain", "-10", "0"], "--gain is for networks from waveform to waveform"),
        (["--recipe", "paper"], "give quick or best"),
        (["--crop-seconds", "0"], "crop_seconds is 0"),
    ],
)
def test_options_that_say_nothing_to_a_network_over_time_and_frequency(
    flags, message, spectral, tmp_path, capsys
):
    words = ["--retrain", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "y.h5"), *flags]
    assert run.main([str(spectral), *words]) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "y.h5").exists()


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"sample_rate_hz": 8000}, "trained at 8000 Hz; only 16000 Hz"),
        ({"training": {"loss": "no"}}, ""),
    ],
)
def test_meta_of_a_network_over_time_and_frequency(meta, message, tmp_path, capsys):
    write_model_file(tmp_path / "x.h5", mask_layers(), {**TINY.meta(), **meta})
    file = read_model_file(tmp_path / "x.h5")
    if message:
        with pytest.raises(ValueError, match=message):
            check_trains(file)
    else:
        check_trains(file)
        assert _mask_loss_of(file) == MaskLoss()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--theta", "1.5"], "between 0 and 1"),
        (["--theta", "0.05"], "smallest that leaves it one"),
        (["--target-sparsity", "1.2"], "less than 1"),
        (["--remove-filters", "0.99"], "left with none"),
        (["--remove-filters", "1.5"], "less than 1"),
        (["--remove-filters", "-0.1"], "give 0 to less than 1"),
    ],
)
def test_values_that_make_no_sense_are_one_line(flags, message, model, capsys):
    assert run.main([str(model), *flags]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert not model.with_name("small.pruned.h5").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--keep", "0.5", "--target-sparsity", "0.5"],
        ["--remove-filters", "0.2", "--target-sparsity", "0.5"],
        ["--criterion", "random"],
        ["--per-layer"],
        ["--init", "other.h5"],
        ["--out", "model.icse"],
    ],
)
def test_wrong_usage_exits_with_2(flags, model):
    with pytest.raises(SystemExit) as caught:
        run.main([str(model), *flags])
    assert caught.value.code == 2


def test_the_model_itself_is_not_overwritten(model, capsys):
    before = model.read_bytes()
    assert run.main([str(model), "-o", str(model.parent / "." / model.name)]) == 1
    assert "would overwrite the model; choose another -o" in capsys.readouterr().err
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("meta", "message"),
    [({"kind": ["waveform"]}, "is a network of kind"), ({"sample_rate_hz": 8000}, "only 16000 Hz")],
)
def test_meta_that_makes_no_sense_is_one_line_before_the_training(
    meta, message, model, tmp_path, capsys
):
    save_model(build_fcn(FCNConfig(num_hidden_layers=1, num_filters=2)), tmp_path / "x.h5", meta)
    words = ["--retrain", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "y.h5")]
    assert run.main([str(tmp_path / "x.h5"), *words]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and not (tmp_path / "y.h5").exists()


def test_one_call_does_what_the_command_does(model, tmp_path, capsys):
    by_command, by_call = tmp_path / "command.h5", tmp_path / "call.h5"
    assert run.main([str(model), "-o", str(by_command), "--target-sparsity", "0.25"]) == 0
    printed, said = capsys.readouterr().out, []
    found = prune_file(model, by_call, PruningConfig(target_sparsity=0.25), say=said.append)
    assert by_call.read_bytes() == by_command.read_bytes()
    assert found.sha256 == read_model_file(by_call).sha256 and found.test == []
    assert sum(row.pruned for row in sparsity.report(found.layers)) == round(0.25 * 42)
    assert said and "\n".join(said) in printed and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="no setting 'epoch'; give some of .* epochs"):
        PruningConfig(retrain=True, train_on=TrainOn(settings={"epoch": 2}))
    with pytest.raises(ValueError, match="recipe is 'fast'; give one of paper, quick, best"):
        TrainOn(recipe="fast")


def test_an_unreadable_file_is_one_line(tmp_path, capsys):
    (tmp_path / "x.h5").write_bytes(b"no model")
    assert run.main([str(tmp_path / "x.h5")]) == 1
    assert "x.h5" in capsys.readouterr().err


def test_an_expert_is_not_retrained_here(tmp_path, capsys):
    model, conventions = build_expert()
    save_model(model, tmp_path / "expert.h5", {"kind": "mask", **conventions.to_json()})
    assert run.main([str(tmp_path / "expert.h5"), "--retrain"]) == 1
    assert "python -m mnn.train expert --init" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "loss", "rate"),
    [
        ([], "sisdr", run.RETRAIN_LEARNING_RATE),
        (["--recipe", "quick"], "mse", run.RETRAIN_LEARNING_RATE),
        (["--loss", "stft", "--learning-rate", "0.002"], "stft", 0.002),
    ],
)
def test_retraining_goes_on_with_the_loss_of_the_model(model, tmp_path, flags, loss, rate):
    """A model of another loss was once retrained with MSE at the rate of a new network."""
    file = read_model_file(model)
    write_model_file(model, file.layers, {**file.meta, "training": {"loss": "sisdr"}})
    command = [str(model), "-o", str(tmp_path / "p.h5"), "--stages", "1", "--no-score", *SMALL]
    assert run.main([*command, "--work", str(tmp_path / "work"), *flags]) == 0
    config = json.loads((tmp_path / "work" / "stage-1" / "run.json").read_text())["config"]
    assert (config["loss"], config["learning_rate"]) == (loss, rate)
