"""Pools: what each file is taken for, what is refused, and who is out."""

import dataclasses
import json
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from mnn.arbiter import Arbiter
from mnn.dae import Autoencoder
from mnn.expert_files import Expert, Place, folder_expert, open_expert
from mnn.features import Conventions, level
from mnn.pool import names_of, open_pool
from mnn.scoring import needs_of
from speech.base.files import sha256_of
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec
from speech.net.enhancer import Enhancer
from speech.net.keras_models import save_model
from speech.net.mask_enhancer import MaskEnhancer
from speech.sound import blocks
from speech.sound.stft import StftConfig, istft, stft
from tests.builders import write_mask_network
from tests.mnn_files import dense, write, write_dae, write_fcn, write_mask


def heard(tmp_path, experts, noisy, **options):
    dae = Autoencoder(write_dae(tmp_path / "judge.h5"))
    return Arbiter(dae, needs_of("ae", "voiced")).hear(noisy, experts, **options)


def test_experts_give_what_they_give_alone(tmp_path, noisy):
    mask = write_mask(tmp_path / "mask.h5", 0.5, spread=1.0)
    fcn = write_fcn(tmp_path / "fcn.h5")
    hearings = heard(tmp_path, [open_expert(mask), open_expert(fcn)], noisy)
    spectra = stft(noisy)
    expected = istft(open_expert(mask).estimate(spectra, level(noisy)), len(noisy))
    assert_allclose(hearings[0].signal, expected, rtol=0, atol=1e-6)
    alone = Enhancer(fcn).enhance(noisy)
    ratio = np.dot(hearings[1].signal, alone) / np.dot(alone, alone)
    assert_allclose(hearings[1].signal, ratio * alone, rtol=0, atol=1e-6)


def test_h5_and_packed_experts_are_alike(tmp_path, noisy):
    for write_one in (write_mask, write_fcn):
        arguments = {} if write_one is write_fcn else {"shape": 0.2, "spread": 1.0}
        pair = [write_one(tmp_path / f"x{end}", **arguments) for end in (".h5", ".icse")]
        one, other = heard(tmp_path, [open_expert(path) for path in pair], noisy)
        assert_array_equal(one.signal, other.signal)


@pytest.mark.parametrize("write_one", [write_fcn, write_mask_network, write_mask])
def test_an_expert_is_read_once_so_that_its_sum_is_of_what_runs(tmp_path, monkeypatch, write_one):
    path = tmp_path / "x.h5"
    write_one(path, **{"shape": 0.5} if write_one is write_mask else {})
    reads = []

    def noted(name):
        reads.append(name)
        return read_model_file(name)

    for module in ("mnn.expert_files", "speech.modelfile.read"):
        monkeypatch.setattr(f"{module}.read_model_file", noted)
    assert open_expert(path).sha256 == sha256_of(path)
    assert reads == [path]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: write_fcn(path, meta={}), "waveform"),
        (lambda path: write_mask(path, 0.0, spread=1, meta={}), "mask"),
        (lambda path: write_mask(path, 0.0, spread=1, context=5, meta={}), "mask"),
    ],
)
def test_files_without_a_kind_are_known_by_their_shapes(tmp_path, make, kind, noisy):
    expert = open_expert(make(tmp_path / "x.h5"))
    assert expert.kind == kind
    assert heard(tmp_path, [expert], noisy)[0].reason == ""


def test_a_magnitude_network_keeps_the_phase(tmp_path, noisy):
    layers = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, 513]}),
        dense("output", 0.25 * np.eye(513), np.zeros(513)),
    ]
    path = write(tmp_path / "m.h5", layers, {"kind": "magnitude", **Conventions(1).to_json()})
    (hearing,) = heard(tmp_path, [open_expert(path)], noisy)
    assert_allclose(hearing.signal, 0.25 * noisy, rtol=0, atol=1e-6)


def test_layers_that_only_keras_runs(tmp_path, noisy):
    model = keras.Sequential(
        [
            keras.Input((513,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(513, "sigmoid"),
        ]
    )
    save_model(model, tmp_path / "x.h5", {"kind": "mask", **Conventions(1).to_json()})
    (hearing,) = heard(tmp_path, [open_expert(tmp_path / "x.h5")], noisy)
    assert hearing.reason == "" and 0 < level(hearing.signal) < level(noisy)


def test_another_stft_runs_by_itself(tmp_path, noisy, monkeypatch):
    conventions = Conventions(3, StftConfig(512, 128))
    layers = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, 3 * 257]}),
        dense("output", np.zeros((3 * 257, 257)), np.zeros(257), "sigmoid"),
    ]
    path = write(tmp_path / "m.h5", layers, {"kind": "mask", **conventions.to_json()})
    for size in (4096, 9):
        monkeypatch.setattr(blocks, "BLOCK_FRAMES", size)
        (hearing,) = heard(tmp_path, [open_expert(path)], noisy)
        assert_allclose(hearing.signal, 0.5 * noisy, rtol=0, atol=1e-6)


def test_a_complex_mask_is_heard_at_its_level(tmp_path, noisy):
    path = tmp_path / "tf.icse"
    alone = MaskEnhancer(write_mask_network(path))(noisy)
    mask = write_mask(tmp_path / "mask.h5", 0.5, spread=1.0)
    expert = open_expert(path)
    assert expert.kind == "complex_mask" and expert.keeps_level and not expert.is_spectral
    for fit in (True, False):
        arbiter = Arbiter(Autoencoder(write_dae(tmp_path / "judge.h5")), needs_of("ae", "voiced"))
        judge = dataclasses.replace(arbiter, fit=fit)
        hearings = judge.hear(noisy, [open_expert(mask), expert])
        assert [hearing.reason for hearing in hearings] == ["", ""]
        assert_allclose(hearings[1].signal, alone, rtol=0, atol=1e-6)
        assert all(np.isfinite(own).all() for own in hearings[1].statistics.frames.values())


def refused_files(tmp_path):
    rate = {"kind": "waveform", "sample_rate_hz": 8000}
    mask = {"kind": "mask", **Conventions(3).to_json()}
    wide = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, 40]}),
        dense("output", np.ones((40, 513)), np.zeros(513), "sigmoid"),
    ]
    linear = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, 513]}),
        dense("output", np.ones((513, 513)), np.zeros(513)),
    ]
    (tmp_path / "text.h5").write_text("no model")
    with h5py.File(tmp_path / "lambda.h5", "w") as file:
        layer = {"class_name": "Lambda", "config": {"name": "l", "function": "evil"}}
        first = {"class_name": "InputLayer", "config": {"name": "i", "batch_shape": [None, 4]}}
        config = {"class_name": "Sequential", "config": {"layers": [first, layer]}}
        file.attrs["model_config"] = json.dumps(config)
    return [
        (tmp_path / "text.h5", "not a readable HDF5 file"),
        (tmp_path / "lambda.h5", "Lambda"),
        (tmp_path / "missing.h5", "no such model file"),
        (write_fcn(tmp_path / "rate.h5", meta=rate), "8000 Hz"),
        (write_dae(tmp_path / "dae.h5"), "give it as --dae"),
        (write(tmp_path / "wide.h5", wide, {}), "what does it take and give"),
        (write(tmp_path / "linear.h5", linear, {}), "what does it take and give"),
        (write(tmp_path / "sizes.h5", wide, mask), "takes 40 values"),
        (write_fcn(tmp_path / "mask.h5", meta=mask), "takes 1 values and gives 1"),
        (
            write_fcn(tmp_path / "kind.h5", meta={"kind": "music"}),
            "not one from waveform to waveform",
        ),
    ]


def test_refused_files_leave_the_others(tmp_path):
    files = refused_files(tmp_path)
    good = write_fcn(tmp_path / "good.h5")
    experts, reasons = open_pool([*(path for path, _ in files), good])
    assert [expert is None for expert in experts] == len(files) * [True] + [False]
    for (path, reason), found in zip(files, reasons, strict=True):
        assert reason in found and path.name in found and "\n" not in found
        with pytest.raises((ValueError, OSError)):
            open_pool([good, path], strict=True)


def test_experts_that_fail_are_out_with_their_reason(tmp_path, noisy):
    def broken(result):
        return Expert("x", "onnx", tmp_path / "x", "", None, lambda noisy, place: result(noisy))

    def mask_of(value):
        return Expert(
            "m", "mask", tmp_path / "m", "", Conventions(1), lambda f: np.full_like(f, value)
        )

    def failing(noisy):
        raise ValueError("no\nfile")

    pool = [
        broken(lambda noisy: noisy[:-1]),
        broken(lambda noisy: noisy * np.nan),
        broken(failing),
        mask_of(np.nan),
        mask_of(0.5),
        mask_of(1e30),
    ]
    hearings = heard(tmp_path, pool, noisy)
    reasons = [hearing.reason for hearing in hearings]
    assert "gave the shape (8999,) for 9000 samples" in reasons[0]
    assert "NaN" in reasons[1] and reasons[2] == "no file" and "NaN" in reasons[3]
    assert reasons[4] == "" and hearings[4].statistics is not None
    assert "gave values beyond measure" in reasons[5]
    assert all(hearing.statistics is None for hearing in [*hearings[:4], hearings[5]])


def test_long_signals_wait_in_files(tmp_path, noisy, monkeypatch):
    pool = [
        open_expert(write_mask(tmp_path / "m.h5", 0.5)),
        open_expert(write_fcn(tmp_path / "w.h5")),
    ]
    expected = heard(tmp_path, pool, noisy)
    monkeypatch.setattr(blocks, "MAX_MEMORY_SAMPLES", 100)
    found = heard(tmp_path, pool, noisy)
    for one, other in zip(expected, found, strict=True):
        assert isinstance(other.signal, np.memmap)
        assert_array_equal(one.signal, other.signal)


def test_files_of_other_tools(tmp_path, noisy):
    folder = tmp_path / "made"
    for name in ("a/one.wav", "b/one.flac", "two.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, 0.5 * noisy, 16000)
    soundfile.write(folder / "short.wav", noisy[:4000], 16000)
    soundfile.write(folder / "fast.wav", np.repeat(noisy, 3), 48000)
    soundfile.write(folder / "pair.wav", np.stack([noisy, 0.1 * noisy], 1), 16000)
    expert = folder_expert("tool", folder)

    def signal(name, channel=0):
        return expert.signal(noisy, 1.0, Place(Path(name), channel))

    for name in ("a/one.wav", "A/ONE.WAV", "b/one.wav", "x/two.flac"):
        assert_allclose(signal(name), 0.5 * noisy, rtol=0, atol=1e-3)
    assert_allclose(signal("pair.wav", 1), 0.1 * noisy, rtol=0, atol=1e-3)
    assert len(signal("fast.wav")) == len(noisy)
    for name, channel, reason in (
        ("c/one.wav", 0, "several files for c/one.wav"),
        ("three.wav", 0, "no file for three.wav"),
        ("short.wav", 0, "4000 samples at 16 kHz, the noisy file 9000"),
        ("pair.wav", 2, "has no channel 3"),
    ):
        with pytest.raises(ValueError, match=reason):
            signal(name, channel)
    with pytest.raises(ValueError, match="no such folder"):
        folder_expert("x", tmp_path / "nothing")


def test_names_tell_experts_apart(tmp_path):
    def names(*texts):
        return names_of([Path(text) for text in texts])

    assert names("x/a.h5", "y/b.h5") == ["a", "b"]
    assert names("a.h5", "a.icse") == ["a.h5", "a.icse"]
    assert names("x/a.h5", "y/a.h5") == ["x/a.h5", "y/a.h5"]
    assert names("a.h5", "a.h5", "b.h5") == ["a.h5", "a.h5#2", "b.h5"]
    path = write_fcn(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="two experts are named 'a'"):
        open_pool([path], [("a", tmp_path)])


def test_onnx_without_onnxruntime_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'small-speech-enhancement\[onnx\]'"):
        open_expert(tmp_path / "x.onnx")


def write_onnx(path, shape=(1, "time"), *, cut=False, rate=None):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
    nodes = [helper.make_node("Mul", ["x", "half"], ["scaled"])]
    last = "scaled"
    constants = [half]
    if cut:
        constants += [
            helper.make_tensor("first", TensorProto.INT64, [1], [1]),
            helper.make_tensor("end", TensorProto.INT64, [1], [1 << 40]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ]
        nodes.append(helper.make_node("Slice", ["scaled", "first", "end", "axis"], ["y"]))
        last = "y"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    if rate:
        helper.set_model_props(model, {"sample_rate_hz": rate})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("shape", [(1, "time"), ("batch", "time", 1), (1, 1, "time")])
def test_onnx_models_join(tmp_path, noisy, shape):
    expert = open_expert(write_onnx(tmp_path / "x.onnx", shape))
    assert expert.kind == "onnx" and len(expert.sha256) == 64
    (hearing,) = heard(tmp_path, [expert], noisy)
    assert_allclose(hearing.signal, noisy, rtol=0, atol=1e-6)


def test_onnx_models_that_do_not_fit(tmp_path, noisy):
    expert = open_expert(write_onnx(tmp_path / "cut.onnx", cut=True))
    (hearing,) = heard(tmp_path, [expert], noisy)
    assert "gave 8999 samples for 9000" in hearing.reason
    for shape in ((1, 400), (1, 7, "time")):
        with pytest.raises(ValueError, match="what does it take and give"):
            open_expert(write_onnx(tmp_path / "shape.onnx", shape))
    with pytest.raises(ValueError, match="works at 8000 Hz"):
        open_expert(write_onnx(tmp_path / "rate.onnx", rate="8000"))
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="refused by onnxruntime"):
        open_expert(tmp_path / "bad.onnx")
    with pytest.raises(FileNotFoundError):
        open_expert(tmp_path / "missing.onnx")
