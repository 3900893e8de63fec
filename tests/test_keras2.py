"""Model files of Keras 2 and tf.keras: read with equal weights, or refused for the true reason."""

import json
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from speech.enhance import main
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFileError
from speech.net.enhancer import Enhancer
from speech.net.keras_models import build_model, load_model, save_model

GOLDEN = Path(__file__).parent / "golden" / "keras2"
SIGNAL = (np.sin(np.arange(64) ** 1.3 / 5) / 2).astype(np.float32)


@pytest.mark.parametrize("name", ["k2_bn", "k2_func"])
def test_files_of_tf_keras_give_what_they_gave_there(name):
    expected = json.loads((GOLDEN / "outputs.json").read_text())[name]
    found = np.array(load_model(GOLDEN / f"{name}.h5")(SIGNAL[None, :, None]))[0, :, 0]
    assert_allclose(found, expected, rtol=0, atol=2e-6)
    with h5py.File(GOLDEN / f"{name}.h5") as file:
        for layer in read_model_file(GOLDEN / f"{name}.h5").layers:
            for key, array in layer.weights.items():
                stored = file[f"model_weights/{layer.name}/{layer.name}/{key}:0"][()]
                assert_array_equal(array, stored)


def write_keras_2(path, layers, spelling):
    """Writes layers as Keras 2 did.

    Args:
        path: The file.
        layers: `LayerSpec` in the order of computation.
        spelling: What to do as which version did: any of 'input in the first layer', 'a list',
            'Model', 'Functional', 'axis by number'.
    """
    entries, before = [], None
    for number, layer in enumerate(layers):
        config = {"name": layer.name, "trainable": True, "dtype": "float32", **layer.config}
        if layer.class_name == "InputLayer":
            config["batch_input_shape"] = config.pop("batch_shape")
            config |= {"sparse": False, "ragged": False}
        if layer.class_name == "LeakyReLU":
            config["alpha"] = config.pop("negative_slope")
        if layer.class_name == "BatchNormalization" and "axis by number" in spelling:
            config["axis"] = [2]
        if layer.class_name == "Conv1D":
            for key in ("kernel_size", "strides", "dilation_rate"):
                config[key] = [config[key]]
            zeros = {"class_name": "Zeros", "config": {}}
            config |= {"bias_initializer": zeros, "kernel_regularizer": None}
        if number == 1 and "input in the first layer" in spelling:
            config["batch_input_shape"] = layers[0].config["batch_shape"]
        nodes = [[[before, 0, 0, {}]]] if before else []
        entries.append({"class_name": layer.class_name, "config": config, "name": layer.name,
                        "inbound_nodes": nodes})  # fmt: skip
        before = layer.name
    if "input in the first layer" in spelling:
        entries = entries[1:]
    config = {"name": "model", "layers": entries}
    if "Model" in spelling or "Functional" in spelling:
        config |= {
            "input_layers": [[layers[0].name, 0, 0]],
            "output_layers": [[layers[-1].name, 0, 0]],
        }
    kind = next((name for name in ("Model", "Functional") if name in spelling), "Sequential")
    with h5py.File(path, "w") as file:
        file.attrs.update(keras_version="2.4.0", backend="tensorflow")
        whole = {"class_name": kind, "config": entries if "a list" in spelling else config}
        file.attrs["model_config"] = json.dumps(whole)
        groups = file.create_group("model_weights")
        for layer in layers:
            group = groups.create_group(layer.name)
            names = [f"{layer.name}/{key}:0" for key in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, layer.weights.values(), strict=True):
                group[name] = array


def convolution(name, filters, size, channels, rng, **settings):
    config = {
        "filters": filters, "kernel_size": size, "strides": 1, "padding": "same",
        "data_format": "channels_last", "dilation_rate": 1, "activation": "linear",
        "use_bias": True, **settings,
    }  # fmt: skip
    weights = {
        "kernel": rng.normal(size=(size, channels, filters)).astype("f4"),
        "bias": rng.normal(size=filters).astype("f4"),
    }
    return LayerSpec("Conv1D", name, config, weights)


def chain(rng, **settings):
    """Returns the layers of a small network over samples."""
    normal = {name: rng.uniform(0.5, 1, 3).astype("f4")
              for name in ("gamma", "beta", "moving_mean", "moving_variance")}  # fmt: skip
    axis = {"axis": -1, "momentum": 0.9, "epsilon": 1e-3, "center": True, "scale": True}
    return (
        LayerSpec("InputLayer", "signal", {"batch_shape": [None, None, 1]}),
        convolution("conv", 3, 7, 1, rng, **settings),
        LayerSpec("BatchNormalization", "normal", axis, normal),
        LayerSpec("LeakyReLU", "leaky", {"negative_slope": 0.25}),
        convolution("last", 1, 5, 3, rng, **settings),
    )


@pytest.mark.parametrize(
    "spelling",
    [
        ("axis by number",),
        ("input in the first layer",),
        ("input in the first layer", "a list", "axis by number"),
        ("a list",),
        ("Model", "axis by number"),
        ("Functional",),
    ],
    ids=", ".join,
)
def test_every_spelling_of_keras_2_is_read(spelling, tmp_path, rng):
    layers = chain(rng)
    write_keras_2(tmp_path / "x.h5", layers, spelling)
    found = read_model_file(tmp_path / "x.h5").layers
    assert [layer.class_name for layer in found] == [layer.class_name for layer in layers]
    for one, other in zip(layers, found, strict=True):
        assert one.config == other.config
        assert one.weights.keys() == other.weights.keys()
        for key, array in one.weights.items():
            assert_array_equal(array, other.weights[key])
    signal = rng.normal(size=(1, 50, 1)).astype("f4")
    expected = np.array(build_model(layers)(signal))
    assert_allclose(np.array(load_model(tmp_path / "x.h5")(signal)), expected, rtol=0, atol=1e-6)
    assert Enhancer(tmp_path / "x.h5").enhance(signal[0, :, 0]).shape == (50,)


def edit(path, change):
    with h5py.File(path, "a") as file:
        change(file)


def set_axis(number):
    def change(file):
        text = file.attrs["model_config"]
        file.attrs["model_config"] = text.replace('"axis": -1', f'"axis": [{number}]')

    return change


def backend(name):
    return lambda file: file.attrs.modify("backend", name)


def rename(old, new):
    def change(file):
        file.attrs["model_config"] = file.attrs["model_config"].replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_axis(1), "'axis' is 1, expected -1, the last axis of"),
        (backend("theano"), "backend 'theano', whose kernels run backwards; load it in Keras 2"),
        (rename('"Conv1D"', '"Convolution1D"'), "of Keras 1; import .* speech.weights import"),
        (rename('"padding": "same"', '"padding": "causal"'), "'causal', expected 'same'"),
        (rename('"LeakyReLU"', '"PReLU"'), "'PReLU' is not known; .*: build the model of these"),
    ],
    ids=["axis", "theano", "Keras 1", "causal", "PReLU"],
)
def test_what_is_refused_says_the_true_reason(change, reason, tmp_path, rng):
    write_keras_2(tmp_path / "x.h5", chain(rng), {"Functional"})
    edit(tmp_path / "x.h5", change)
    with pytest.raises(ModelFileError, match=reason) as caught:
        read_model_file(tmp_path / "x.h5")
    assert "Keras 3" not in str(caught.value) and "\n" not in str(caught.value)


def test_other_kinds_of_files_name_the_step(tmp_path):
    (tmp_path / "x.keras").write_bytes(b"PK\3\4" + bytes(200))
    (tmp_path / "saved").mkdir()
    for name, reason in (("x.keras", "an archive"), ("saved", "not a regular file")):
        with pytest.raises(ModelFileError, match=rf"{reason}.*model\.save\('NAME\.h5'\)"):
            read_model_file(tmp_path / name)


@pytest.mark.parametrize(("first", "second"), [(7, 5), (8, 4), (8, 5), (2, 2)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_output_lies_where_the_input_does(first, second, padding, tmp_path):
    """A network of kernels that pass the middle sample gives the input, and zeros at its ends."""
    model = keras.Sequential(
        [
            keras.Input((None, 1)),
            keras.layers.Conv1D(1, first, padding=padding, dilation_rate=2),
            keras.layers.Conv1D(1, second, padding=padding),
        ]
    )
    for layer, size in zip(model.layers, (first, second), strict=True):
        kernel = np.zeros((size, 1, 1))
        kernel[(size - 1) // 2] = 1
        layer.set_weights([kernel, np.zeros(1)])
    save_model(model, tmp_path / "x.h5", {"kind": "waveform", "sample_rate_hz": 16000})
    signal = np.random.default_rng(0).normal(size=300).astype("f4")
    found = Enhancer(tmp_path / "x.h5")(signal) * np.abs(signal).max()
    lost = 2 * (first - 1) + second - 1 if padding == "valid" else 0
    # Keras pads an even kernel of dilation 2 evenly; of the taps, the middle one is half a tap off.
    shift = 2 * ((first - 1) / 2 - (first - 1) // 2) + (second - 1) / 2 - (second - 1) // 2
    assert len(found) == 300
    delay = np.argmax(np.correlate(found, signal, "full")) - 299
    assert abs(delay) <= int(np.ceil(shift))
    inner = slice(lost + 3, 297 - lost)
    assert_allclose(np.roll(found, -delay)[inner], signal[inner], rtol=0, atol=1e-5)
    assert np.count_nonzero(found == 0) == lost + (padding == "same") * abs(delay)
    assert np.count_nonzero(found[:150] == 0) >= lost // 2


def test_a_signal_shorter_than_a_network_without_padding_is_refused(tmp_path, capsys):
    model = keras.Sequential([keras.Input((None, 1)), keras.layers.Conv1D(1, 40)])
    save_model(model, tmp_path / "x.h5", {})
    for name, size in (("short", 39), ("long", 40)):
        soundfile.write(tmp_path / f"{name}.wav", np.ones(size) / 2, 16000)
    for name, code in (("short", 1), ("long", 0)):
        arguments = [str(tmp_path / f"{name}.wav"), "-o", str(tmp_path / f"{name}_out.wav")]
        assert main([*arguments, "--model", str(tmp_path / "x.h5")]) == code
    error = capsys.readouterr().err
    assert "needs more than 39 samples at a time" in error and len(error.splitlines()) == 1


def test_a_dense_layer_may_end_a_waveform_model(tmp_path):
    layers = [keras.layers.Conv1D(4, 9, padding="same"), keras.layers.Dense(1)]
    save_model(keras.Sequential([keras.Input((None, 1)), *layers]), tmp_path / "x.h5", {})
    assert read_model_file(tmp_path / "x.h5").kind == "waveform"
    assert Enhancer(tmp_path / "x.h5").enhance(SIGNAL).shape == (64,)
