"""Exports: ONNX and LiteRT give what Keras gives; bad input is one line."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech import export
from speech.modelfile.h5 import write_model_file
from speech.modelfile.spec import LayerSpec
from speech.net.keras_models import build_model
from tests.builders import network

pytestmark = pytest.mark.filterwarnings("ignore")
needs_onnx = pytest.mark.skipif(
    not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")),
    reason="the packages onnx and onnxruntime are not installed",
)
needs_litert = pytest.mark.skipif(
    not importlib.util.find_spec("ai_edge_litert"), reason="ai-edge-litert is not installed"
)
LENGTHS = (1, 37, 1000, 4001)


@pytest.fixture
def layers(rng):
    return network(rng, (1, 6, 5, 1))


def keras_output(layers, inputs):
    return np.asarray(build_model(layers)(inputs, training=False))


def run_onnx(data, inputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": np.asarray(inputs, np.float32)})[0]


def run_tflite(data, inputs):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    (place,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(place["index"], inputs.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(place["index"], np.asarray(inputs, np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def mixed(rng):
    """One of every layer that a model file may hold, over the time axis."""

    def draw(*shape):
        return rng.normal(0, 0.4, shape).astype("f4")

    conv = {"filters": 6, "kernel_size": 4, "strides": 1, "padding": "same", "dilation_rate": 3,
            "data_format": "channels_last", "activation": "relu", "use_bias": True}  # fmt: skip
    batch = {"axis": -1, "momentum": 0.9, "epsilon": 1e-3, "center": True, "scale": True}
    group = {"groups": 3, "axis": -1, "epsilon": 1e-3, "center": True, "scale": False}
    return (
        LayerSpec("InputLayer", "in", {"batch_shape": [None, None, 2]}),
        LayerSpec("Conv1D", "a", conv, {"kernel": draw(4, 2, 6), "bias": draw(6)}),
        LayerSpec(
            "BatchNormalization", "b", batch,
            {"gamma": draw(6), "beta": draw(6), "moving_mean": draw(6),
             "moving_variance": abs(draw(6)) + 0.1},
        ),
        LayerSpec("Dense", "c", {"units": 6, "activation": "sigmoid", "use_bias": True},
                  {"kernel": draw(6, 6), "bias": draw(6)}),
        LayerSpec("GroupNormalization", "d", group, {"beta": draw(6)}),
        LayerSpec("ReLU", "e", {"max_value": 1.0, "negative_slope": 0.2, "threshold": 0.1}),
        LayerSpec("Dropout", "f", {"rate": 0.5}),
        LayerSpec("Activation", "s", {"activation": "silu"}),
        LayerSpec("icse>ModifiedReLU", "g", {"epsilon": 1e-5}),
        LayerSpec("LeakyReLU", "h", {"negative_slope": 0.3}),
        LayerSpec("Conv1D", "i", {**conv, "filters": 1, "padding": "valid", "activation": "tanh"},
                  {"kernel": draw(4, 6, 1), "bias": draw(1)}),
    )  # fmt: skip


@needs_onnx
def test_onnx_gives_what_keras_gives_at_every_length(layers, rng):
    data = export.to_onnx(layers)
    for length in LENGTHS:
        inputs = rng.normal(0, 0.3, (2, length, 1)).astype("f4")
        found = run_onnx(data, inputs)
        assert_allclose(found, keras_output(layers, inputs), rtol=1e-4, atol=1e-4)


@needs_onnx
def test_onnx_knows_every_layer(rng):
    layers = mixed(rng)
    inputs = rng.normal(0, 1, (2, 50, 2)).astype("f4")
    found = run_onnx(export.to_onnx(layers), inputs)
    assert_allclose(found, keras_output(layers, inputs), rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 41, 1)


def over_bands(rng):
    """A network over time and frequency, with statistics as after training."""
    from speech.net.keras_models import layers_of
    from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency

    network = build_time_frequency(TimeFrequencyConfig(12, 10, (1, 3)))
    for variable in network.weights:
        name = variable.path.rsplit("/", 1)[-1]
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return layers_of(network)


def other_graph(rng):
    """What that network has not: Concatenate, 'valid', odd strides, an Add of three, bands lost."""
    import keras

    from speech.net.keras_models import layers_of

    layers = keras.layers
    inputs = keras.Input((None, 9, 2))
    x = layers.Conv2D(4, (2, 3), strides=(1, 2), padding="same", activation="relu")(inputs)
    y = layers.Conv2D(4, (1, 3), dilation_rate=(1, 2), padding="same")(x)
    y = layers.LeakyReLU(negative_slope=0.2)(y)
    z = layers.Add()([x, y, layers.Activation("tanh")(x)])
    z = layers.Concatenate()([z, layers.BatchNormalization()(y)])
    z = layers.Conv2D(3, (1, 2), padding="valid")(layers.ZeroPadding2D(((2, 0), (1, 0)))(z))
    z = layers.Conv2DTranspose(2, (1, 3), strides=(1, 2), padding="same")(z)
    network = keras.Model(inputs, layers.Permute((1, 3, 2))(z))
    for variable in network.weights:
        variable.assign(rng.uniform(0.1, 0.9, variable.shape))
    return layers_of(network)


def over_time(rng):
    """A graph without bands, whose Concatenate changes the channels before a normalisation."""
    import keras

    from speech.net.keras_models import layers_of

    layers = keras.layers
    inputs = keras.Input((None, 2))
    x = layers.Conv1D(6, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv1D(4, 1, padding="same")(x)
    z = layers.Concatenate()([x, y])
    z = layers.Add()([layers.GroupNormalization(groups=-1)(z), z])
    network = keras.Model(inputs, layers.Concatenate()([layers.Dense(3)(z), z]))
    for variable in network.weights:
        variable.assign(rng.uniform(0.1, 0.9, variable.shape))
    # Keras writes the number of groups down; a file may leave it to the channels.
    return tuple(
        dataclasses.replace(layer, config={**layer.config, "groups": -1})
        if layer.class_name == "GroupNormalization"
        else layer
        for layer in layers_of(network)
    )


GRAPHS = pytest.mark.parametrize("make", [over_bands, other_graph, over_time])


def same_as_keras(layers, run, rng, batch):
    shape = layers[0].config["batch_shape"]
    for length in (1, 5, 40):
        inputs = rng.normal(0, 1, (batch, length, *shape[2:])).astype("f4")
        wanted = keras_output(layers, inputs)
        found = run(inputs)
        assert found.shape == wanted.shape
        assert_allclose(found, wanted, rtol=0, atol=1e-4 * abs(wanted).max())


@needs_onnx
@GRAPHS
def test_onnx_of_a_graph_gives_what_keras_gives(make, rng):
    layers = make(rng)
    data = export.to_onnx(layers)
    same_as_keras(layers, lambda inputs: run_onnx(data, inputs), rng, batch=2)


@needs_litert
@GRAPHS
def test_litert_of_a_graph_gives_what_keras_gives(make, rng):
    layers = make(rng)
    data = export.to_tflite(layers)
    same_as_keras(layers, lambda inputs: run_tflite(data, inputs), rng, batch=1)


@needs_onnx
def test_onnx_of_a_network_of_matrices(rng):
    layers = (
        LayerSpec("InputLayer", "in", {"batch_shape": [None, 5]}),
        LayerSpec("Dense", "a", {"units": 3, "activation": "linear", "use_bias": False},
                  {"kernel": rng.normal(size=(5, 3)).astype("f4")}),
        LayerSpec("Activation", "b", {"activation": "sigmoid"}),
    )  # fmt: skip
    inputs = rng.normal(size=(7, 5)).astype("f4")
    found = run_onnx(export.to_onnx(layers), inputs)
    assert_allclose(found, keras_output(layers, inputs), rtol=1e-5, atol=1e-6)


@needs_litert
def test_litert_gives_what_keras_gives_at_every_length(layers, rng):
    data = export.to_tflite(layers)
    for length in LENGTHS:
        inputs = rng.normal(0, 0.3, (1, length, 1)).astype("f4")
        found = run_tflite(data, inputs)
        assert_allclose(found, keras_output(layers, inputs), rtol=1e-4, atol=1e-4)


@needs_litert
def test_int8_is_smaller_and_close(rng):
    layers = network(rng, (1, 30, 30, 1))
    exact, small = (export.to_tflite(layers, int8=int8) for int8 in (False, True))
    assert len(small) < 0.5 * len(exact)
    inputs = rng.normal(0, 0.3, (1, 2000, 1)).astype("f4")
    wanted = keras_output(layers, inputs)
    error = run_tflite(small, inputs) - wanted
    assert np.sum(error**2) < 0.02 * np.sum(wanted**2)


@needs_onnx
def test_the_command_takes_both_kinds_of_file_and_prints_sizes(layers, tmp_path, capsys):
    from speech.modelfile.icse import write_compact

    meta = {"kind": "waveform"}
    write_model_file(tmp_path / "m.h5", layers, meta)
    write_compact(tmp_path / "m.icse", layers, meta)
    assert export.main([str(tmp_path / "m.h5"), "--to", "onnx"]) == 0
    packed = ["--to", "onnx", "-o", str(tmp_path / "p.onnx")]
    assert export.main([str(tmp_path / "m.icse"), *packed]) == 0
    assert (tmp_path / "m.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()
    text = capsys.readouterr().out
    for name in ("m.h5", "m.icse", "m.onnx"):
        assert f"{(tmp_path / name).stat().st_size:,} bytes" in text


@needs_onnx
def test_the_ending_of_the_file_says_the_format(layers, tmp_path, capsys):
    write_model_file(tmp_path / "m.h5", layers, {"kind": "waveform"})
    assert export.main([str(tmp_path / "m.h5"), "-o", str(tmp_path / "a.ONNX")]) == 0
    assert export.main([str(tmp_path / "m.h5"), "--to", "onnx", "-o", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a.ONNX").read_bytes() == (tmp_path / "b").read_bytes()
    for words in ([], ["-o", str(tmp_path / "c.bin")]):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            export.main([str(tmp_path / "m.h5"), *words])
        assert "--to onnx or --to tflite" in capsys.readouterr().err


def test_bad_input(layers, tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    write_model_file(tmp_path / "m.h5", layers, {})
    same = ["--to", "onnx", "-o", str(tmp_path / "m.h5")]
    assert export.main([str(tmp_path / "bad.h5"), "--to", "onnx"]) == 1
    assert export.main([str(tmp_path / "none.h5"), "--to", "tflite"]) == 1
    assert export.main([str(tmp_path / "m.h5"), *same]) == 1
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert export.main([str(tmp_path / "m.h5"), "--to", "onnx"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 4 and "overwrite" in lines[2] and "pip install onnx" in lines[3]
    with pytest.raises(SystemExit, match="2"):
        export.main([str(tmp_path / "m.h5"), "--to", "onnx", "--int8"])
    with pytest.raises(SystemExit, match="2"):
        export.main([str(tmp_path / "m.h5"), "--to", "coreml"])
