"""Bad input is one line, never a traceback: links in circles, models without inputs or weights."""

import base64
import importlib.util
import json
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import soundfile
from numpy.testing import assert_array_equal

import eval.report
import eval.run
import pruning.run
import quantization.run
import speech.demo
import speech.enhance
import speech.prepare
from mnn import pool, select
from speech import weights
from speech.base import cli
from speech.net.enhancer import _centred
from tests.builders import make_speech

ROOT = Path(__file__).parent.parent

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs the extra 'onnx'"
)

#: Keras writes its older format with a warning of NumPy's.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

#: A model that gives a constant and takes nothing.
NO_INPUT = base64.b64decode(
    "CAg6Ugo3EgF5IghDb25zdGFudCooCgV2YWx1ZSocCAEIBRABShQAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAKABBBIBZ2IUCgF5Eg8KDQgBEgkKAggBCgMSAXRCBAoAEBE="
)


@pytest.fixture
def circle(tmp_path, rng, monkeypatch):
    """Works in a folder of links that lead round in circles, and of one recording."""
    monkeypatch.chdir(tmp_path)
    for name in ("loop", "loop.wav", "loop.h5", "loop.json", "loop.icse"):
        Path(name).symlink_to(name)
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")
    Path("in").mkdir()
    soundfile.write("in/a.wav", make_speech(rng), 16000)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (speech.enhance, "loop.wav -o o.wav"),
        (speech.enhance, "in -o loop"),
        (speech.enhance, "in -o one/x"),
        (speech.enhance, "in/a.wav -o loop.wav"),
        (speech.enhance, "in/a.wav -o o.wav --model loop.h5"),
        (eval.run, "--clean loop --noisy in"),
        (eval.run, "--clean in --noisy two"),
        (eval.run, "--clean in --noisy in -o loop"),
        (eval.run, "--clean in --enhanced a=one"),
        (eval.report, "loop"),
        (eval.report, "loop.json"),
        (select, "in -o loop"),
        (select, "in -o o --candidates a=loop"),
        (select, "in/a.wav -o o --experts loop.icse"),
        (speech.prepare, "--clean loop --noise in --snr 0 -o q"),
        (speech.prepare, "--clean in --noise in --snr 0 -o one"),
        (pruning.run, "loop.h5 -o p.h5"),
        (quantization.run, "loop.h5 -k 4 -o p --no-score"),
        (speech.demo, "--models loop.h5 --port 0"),
    ],
    ids=str,
)
def test_links_in_circles(module, words, circle, capsys):
    assert module.main(words.split()) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and "Errno" not in error[-1]
    assert not [line for line in error if "Traceback" in line]


def test_a_summary_that_can_never_be_written_is_refused_before_the_work(circle, capsys):
    with pytest.raises(SystemExit) as caught:
        speech.enhance.main(["in", "-o", "o", "--json", "loop/x.json"])
    assert caught.value.code == 2 and "cannot be written" in capsys.readouterr().err


def test_other_errors_of_ours_keep_their_traceback():
    def command():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        cli.run(command)


@needs_onnx
def test_an_onnx_model_without_inputs_is_refused(tmp_path, rng, capsys):
    path = tmp_path / "noinput.onnx"
    path.write_bytes(NO_INPUT)
    with pytest.raises(ValueError, match="it takes nothing and gives y"):
        pool.open_expert(path)
    soundfile.write(tmp_path / "a.wav", make_speech(rng), 16000)
    words = [str(tmp_path / "a.wav"), "--experts", str(path), "-o", str(tmp_path / "o")]
    assert select.main(words) == 1
    assert "noinput.onnx: what does it take and give?" in capsys.readouterr().err


@needs_onnx
@pytest.mark.parametrize("data", [b"", b"\x08\x0a", b"\xff" * 100, b"onnx\x1b[2J" * 10])
def test_what_is_no_onnx_model_is_one_line(data, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="refused by onnxruntime|what does it take") as caught:
        pool.open_expert(path)
    assert cli.one_line(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("layer", ["Activation", "ReLU", "Dropout", "GroupNormalization"])
def test_a_model_without_kernels_is_neither_pruned_nor_clustered(layer, tmp_path, capsys):
    settings = {
        "Activation": {"activation": "tanh"}, "Dropout": {"rate": 0.1},
        "GroupNormalization": {"groups": -1},
    }.get(layer, {})  # fmt: skip
    path = tmp_path / "x.h5"
    keras.Sequential([keras.Input((None, 1)), getattr(keras.layers, layer)(**settings)]).save(path)
    assert pruning.run.main([str(path), "-o", str(tmp_path / "p.h5")]) == 1
    assert "x.h5: has no convolution or matrix to prune" in capsys.readouterr().err
    words = [str(path), "-k", "4", "-o", str(tmp_path / "q"), "--no-score"]
    assert quantization.run.main(words) == 1
    assert "no convolution or matrix to cluster" in capsys.readouterr().err


@pytest.mark.parametrize("num_samples", [0, 1, 4, 5])
@pytest.mark.parametrize("length", range(12))
def test_any_output_is_centred(num_samples, length):
    output = np.arange(1, length + 1, dtype="f4")
    found = _centred(output, num_samples)
    assert len(found) == num_samples
    kept = found[found > 0]
    if length >= num_samples:
        first = (length - num_samples) // 2
        assert_array_equal(found, output[first : first + num_samples])
    else:
        assert_array_equal(kept, output)
        assert int(np.argmax(found > 0)) == (num_samples - length) // 2 or not length


def test_every_process_of_ours_is_started_in_one_way():
    """With -P: no module is found in the folder that somebody works in."""
    places = [path for room in ("speech", "eval", "mnn", "pruning", "quantization", "benchmarks")
              for path in (ROOT / room).rglob("*.py")]  # fmt: skip
    found = [path.relative_to(ROOT).as_posix() for path in [*places, ROOT / "timit_fcn_mse.py"]
             if "sys.executable" in path.read_text(encoding="utf-8")]  # fmt: skip
    assert found == ["speech/base/cli.py"]


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;x\x07", "=1+1\u202e", "x" * 3000])
def test_names_of_layers_are_words(name, tmp_path, capsys):
    path = tmp_path / "x.h5"
    keras.Sequential([keras.Input((None, 1)), keras.layers.Conv1D(1, 3)]).save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][1]["class_name"] = name
        file.attrs["model_config"] = json.dumps(config)
    for module, words in ((weights, ["info", path]), (speech.enhance, [path, "-o", "x.wav"])):
        more = ["--model", str(path)] if module is speech.enhance else []
        assert module.main([*map(str, words), *more]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.strip().isprintable() and len(error) < 1100
