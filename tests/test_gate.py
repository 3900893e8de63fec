"""What a model takes is asked in one place: every command refuses the same files, in one line."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from speech.modelfile.h5 import write_model_file
from speech.modelfile.spec import COMPLEX_MASK, WAVEFORM, ModelFile, ModelFileError
from tests.builders import TINY, mask_layers, network

QUICK = ["--gpu", "-1", "--epochs", "1", "--num-train", "2", "--crop-seconds", "0.2"]
TEST = ["--num-test", "1", "--snr", "5", "--jobs", "1"]
RETRAIN = [*QUICK[:2], *QUICK[4:], *TEST, "--work", "work"]

#: What takes a network from waveform to waveform.
OF_WAVEFORMS = {
    "timit_fcn_mse": ["--init", "x.h5", *QUICK, *TEST, "-o", "out"],
    "speech.train": ["--network", "fcn", "--init", "x.h5", *QUICK, "-o", "out"],
    "pruning.run": ["x.h5", "--retrain", "--retrain-epochs", "1", *RETRAIN, "-o", "p.h5"],
    "quantization.run": ["x.h5", "-k", "2", "--finetune-epochs", "1", *RETRAIN, "-o", "q"],
    "speech.enhance": ["noisy.wav", "-o", "out.wav", "--model", "x.h5"],
}
#: What takes one over time and frequency.
OF_MASKS = OF_WAVEFORMS | {
    "speech.train": ["--network", "tf", "--init", "x.h5", *QUICK, "-o", "out"],
}
del OF_MASKS["timit_fcn_mse"]
RATE = "x.h5: trained at 8000 Hz; only 16000 Hz is supported"
#: Name -> channels that the network takes, what its file says of it, and what is said of that.
BAD = {
    "another rate": (1, {"kind": WAVEFORM, "sample_rate_hz": 8000}, RATE),
    "another rate and no kind": (1, {"sample_rate_hz": 8000}, RATE),
    "a rate that is none": (1, {"sample_rate_hz": "16k"}, "x.h5: trained at '16k' Hz"),
    "another kind": (1, {"kind": "mask"}, "x.h5: is a network of kind 'mask'"),
    "a kind that is none": (1, {"kind": [1]}, "x.h5: is a network of kind [1]"),
    "two channels": (2, {"kind": WAVEFORM}, "x.h5: says that its kind is 'waveform'"),
    "two channels and no kind": (2, {}, "x.h5: is a network of unknown kind"),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    soundfile.write("noisy.wav", rng.uniform(-0.1, 0.1, 800), 16000)


def taking(channels, rng):
    """Returns a small FCN that takes so many channels."""
    first, second, *rest = network(rng, (1, 3, 1))
    shape = {**first.config, "batch_shape": [None, None, channels]}
    kernel = np.repeat(second.weights["kernel"], channels, axis=1)
    weights = {**second.weights, "kernel": kernel}
    return (replace(first, config=shape), replace(second, weights=weights), *rest)


def refused(module, arguments, message, capsys):
    assert importlib.import_module(module).main(arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize("module", OF_WAVEFORMS)
@pytest.mark.parametrize("name", BAD)
def test_no_command_takes_another_network_for_one_from_waveform_to_waveform(
    name, module, tmp_path, rng, capsys
):
    """timit_fcn_mse.py and speech.train took a model of another rate as their start."""
    channels, meta, message = BAD[name]
    write_model_file(tmp_path / "x.h5", taking(channels, rng), meta)
    refused(module, OF_WAVEFORMS[module], message, capsys)


@pytest.mark.parametrize("module", OF_MASKS)
def test_no_command_takes_a_network_over_time_and_frequency_of_another_rate(
    module, tmp_path, capsys
):
    write_model_file(tmp_path / "x.h5", mask_layers(), {**TINY.meta(), "sample_rate_hz": 8000})
    refused(module, OF_MASKS[module], RATE, capsys)


def test_each_network_of_the_two_is_refused_where_the_other_is_wanted(tmp_path, rng, capsys):
    write_model_file(tmp_path / "x.h5", mask_layers(), TINY.meta())
    for module in ("timit_fcn_mse", "speech.train"):
        words = OF_WAVEFORMS[module]
        refused(module, words, "x.h5: is a network of kind 'complex_mask', not one from", capsys)
    write_model_file(tmp_path / "x.h5", network(rng, (1, 3, 1)), {"kind": WAVEFORM})
    message = "x.h5: is a network of kind 'waveform', not one over time and frequency"
    refused("speech.train", OF_MASKS["speech.train"], message, capsys)


def test_the_gate(tmp_path, rng):
    def file(layers, **meta):
        return ModelFile(layers, meta, "0" * 64, tmp_path / "x.h5")

    layers = network(rng, (1, 3, 1))
    assert file(layers).require_waveform() == WAVEFORM
    assert file(layers, sample_rate_hz=16000.0).require_kind(COMPLEX_MASK, WAVEFORM) == WAVEFORM
    with pytest.raises(ModelFileError, match="; choose another$"):
        file(layers, kind="mask").require_waveform(fix="choose another")
    with pytest.raises(ModelFileError, match="trained at nan Hz"):
        file(layers, sample_rate_hz=np.nan).require_waveform()
