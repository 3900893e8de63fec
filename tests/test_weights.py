"""Loading, saving and importing: exact weights, plain Keras, old files, hostile old files."""

import json
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest

from speech import weights
from speech.modelfile.read import read_model_file
from speech.modelfile.rules import LAYER_RULES, LayerRule
from speech.modelfile.spec import ModelFileError
from speech.net.fcn import FCNConfig, build_fcn
from speech.net.keras_models import load_model, save_model
from speech.weights import import_keras1, main
from tests.builders import write_mask_network
from tests.reference import keras1_files
from tests.reference.fcn_oracle import forward

SMALL = {"filters": (3, 4), "kernel_size": 7}


@keras.saving.register_keras_serializable(package="icse")
class TestedActivation(keras.layers.Layer):
    """Stands for a registered activation such as the modified ReLU."""

    __test__ = False

    def call(self, inputs):
        return keras.ops.maximum(inputs, -0.5)


def small_fcn(seed=0):
    return build_fcn(FCNConfig(num_hidden_layers=2, num_filters=(3, 4), kernel_size=7), seed=seed)


def with_random_weights(model, seed=0):
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        layer.set_weights([rng.uniform(0.1, 1, array.shape) for array in layer.get_weights()])
    return model


def output_of(model, num_samples=300):
    samples = np.random.default_rng(9).uniform(-1, 1, (2, num_samples, 1)).astype(np.float32)
    return np.asarray(model(samples))


def assert_same_model(model, other):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(output_of(model), output_of(other))


# --------------------------------------------------------------------------------------------
# Save and load


def test_round_trip_is_exact_and_keeps_the_meta(tmp_path):
    model = with_random_weights(small_fcn())
    meta = {"kind": "waveform", "sample_rate_hz": 16_000, "training": {"epochs": 3}}
    save_model(model, tmp_path / "model.h5", meta)
    loaded = load_model(tmp_path / "model.h5")
    loaded_meta = read_model_file(tmp_path / "model.h5").meta
    assert loaded_meta == meta
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    assert_same_model(model, loaded)


def test_full_network_reloads_and_agrees_with_the_oracle(tmp_path):
    save_model(build_fcn(seed=2), tmp_path / "model.h5")
    model = load_model(tmp_path / "model.h5")
    arrays = {layer.name: layer.get_weights() for layer in model.layers}
    hidden = [(*arrays[f"conv{i}"], *arrays[f"norm{i}"]) for i in range(1, 8)]
    samples = np.random.default_rng(4).uniform(-1, 1, 1_500)
    output = np.asarray(model(np.float32(samples)[None, :, None]))[0, :, 0]
    np.testing.assert_allclose(output, forward(samples, hidden, arrays["conv8"]), rtol=0, atol=1e-5)


def test_file_opens_in_plain_keras(tmp_path):
    model = with_random_weights(small_fcn())
    save_model(model, tmp_path / "model.h5", {"kind": "waveform"})
    assert_same_model(model, keras.models.load_model(tmp_path / "model.h5", compile=False))


def test_file_opens_in_a_process_without_our_code(tmp_path):
    model = with_random_weights(small_fcn())
    save_model(model, tmp_path / "model.h5")
    code = (
        "import keras, numpy, sys\n"
        "model = keras.models.load_model('model.h5', compile=False)\n"
        "assert not any(name.split('.')[0] == 'speech' for name in sys.modules)\n"
        "numpy.save('output.npy', model(numpy.ones((1, 50, 1), 'float32')))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    expected = np.asarray(model(np.ones((1, 50, 1), np.float32)))
    np.testing.assert_array_equal(np.load(tmp_path / "output.npy"), expected)


@pytest.mark.parametrize("functional", [False, True])
def test_every_layer_class_survives(functional, tmp_path):
    layers = [
        keras.layers.Conv1D(4, 5, padding="valid", dilation_rate=2, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.9, scale=False),
        keras.layers.ReLU(max_value=3.0, negative_slope=0.1, threshold=0.05),
        keras.layers.Dropout(0.5, seed=1),
        keras.layers.GroupNormalization(groups=2, epsilon=1e-4, center=False),
        keras.layers.LeakyReLU(negative_slope=0.2),
        keras.layers.Dense(3, use_bias=False, activation="sigmoid", kernel_regularizer="l2"),
        keras.layers.Activation("tanh"),
    ]
    if functional:
        inputs = keras.Input((None, 1))
        outputs = inputs
        for layer in layers:
            outputs = layer(outputs)
        model = keras.Model(inputs, outputs)
    else:
        model = keras.Sequential([keras.Input((None, 1)), *layers])
    model.compile("adam", "mse")  # the optimizer must not matter
    with_random_weights(model)
    save_model(model, tmp_path / "model.h5")
    assert_same_model(model, load_model(tmp_path / "model.h5"))
    assert_same_model(model, keras.models.load_model(tmp_path / "model.h5", compile=False))


def test_network_over_frames_survives(tmp_path):
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(3, activation="relu")])
    save_model(model, tmp_path / "model.h5")
    frames = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    np.testing.assert_array_equal(model(frames), load_model(tmp_path / "model.h5")(frames))


# Keras' own writer asks NumPy 2 for an array in an old way; it is not the code under test.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("functional", [False, True])
def test_files_written_by_keras_load(functional, tmp_path):
    model = with_random_weights(small_fcn())
    model.compile("adam", "mse")
    if functional:
        model = keras.Model(model.inputs[0], model.outputs[0])
    model.save(tmp_path / "keras.h5")
    loaded = load_model(tmp_path / "keras.h5")
    meta = read_model_file(tmp_path / "keras.h5").meta
    assert meta == {}
    assert_same_model(model, loaded)


def test_a_registered_layer_loads_once_its_rule_is_there(tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((None, 2)), TestedActivation(name="act")])
    with pytest.raises(ModelFileError, match="names module 'tests.test_weights'"):
        save_model(model, tmp_path / "model.h5")
    monkeypatch.setitem(LAYER_RULES, "icse>TestedActivation", LayerRule())
    save_model(model, tmp_path / "model.h5")
    assert type(load_model(tmp_path / "model.h5").layers[0]) is TestedActivation
    by_keras = keras.models.load_model(tmp_path / "model.h5", compile=False)
    assert type(by_keras.layers[0]) is TestedActivation


def test_a_failing_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.h5"
    save_model(small_fcn(seed=1), path, {"kind": "waveform"})
    before = path.read_bytes()
    broken = small_fcn()
    broken.layers[0].set_weights([np.full((7, 1, 3), np.nan), np.zeros(3)])
    with pytest.raises(ModelFileError, match="model.h5: 'conv1/kernel' holds NaN"):
        save_model(broken, path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(h5py.Group, "__setitem__", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(small_fcn(), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_models_of_two_outputs_are_not_saved(tmp_path):
    inputs = keras.Input((None, 1))
    hidden = keras.layers.Conv1D(1, 3, padding="same")(inputs)
    model = keras.Model(inputs, [keras.layers.Add()([inputs, hidden]), hidden])
    with pytest.raises(ModelFileError, match="model.h5: 'output_layers' is .*several outputs"):
        save_model(model, tmp_path / "model.h5")


def test_lambda_payload_does_not_run(tmp_path):
    touched, path = tmp_path / "touched", tmp_path / "lambda.h5"
    target = str(touched)
    payload = keras.layers.Lambda(lambda x: (open(target, "w").close(), x)[1])
    model = keras.Sequential([keras.Input((None, 1)), payload])
    model.save(path)
    touched.unlink()  # building the model ran it
    with pytest.raises(ModelFileError, match="refused: layer 'Lambda' can run code"):
        load_model(path)
    assert not touched.exists()
    # The payload is live: a loader that trusts the file does run it.
    keras.models.load_model(path, compile=False, safe_mode=False)
    assert touched.exists()


# --------------------------------------------------------------------------------------------
# Old files


@pytest.mark.parametrize("with_json", [True, False])
def test_imported_pair_agrees_with_the_oracle(with_json, tmp_path, capsys):
    rng = np.random.default_rng(11)
    hidden, last = keras1_files.random_network(rng)
    files = keras1_files.write_pair(tmp_path, hidden, last)[0 if with_json else 1 :]
    out = tmp_path / "model.h5"
    assert main(["import", *map(str, files), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "300,931" in printed
    assert "running statistics are not used" in printed
    model = load_model(out)
    meta = read_model_file(out).meta
    assert meta["kind"] == "waveform"
    assert meta["sample_rate_hz"] == 16_000
    assert set(meta["imported_from"]) == {file.name for file in files}
    assert [layer.name for layer in model.layers] == [layer.name for layer in build_fcn().layers]
    samples = rng.uniform(-1, 1, 1_000)
    output = np.asarray(model(np.float32(samples)[None, :, None]))[0, :, 0]
    np.testing.assert_allclose(output, forward(samples, hidden, last), rtol=0, atol=1e-5)


def test_imported_weights_are_exact_and_in_numeric_order(tmp_path):
    # Eleven convolutions: by text, convolution1d_10 would come before convolution1d_2.
    hidden, last = keras1_files.random_network(
        np.random.default_rng(0), filters=(2,) * 10, kernel_size=3
    )
    layers = import_keras1(*reversed(keras1_files.write_pair(tmp_path, hidden, last)))
    found = {layer.name: layer.weights for layer in layers}
    for index, (kernel, bias, gamma, beta) in enumerate(hidden, start=1):
        np.testing.assert_array_equal(found[f"conv{index}"]["kernel"], kernel)
        np.testing.assert_array_equal(found[f"conv{index}"]["bias"], bias)
        np.testing.assert_array_equal(found[f"norm{index}"]["gamma"], gamma)
        np.testing.assert_array_equal(found[f"norm{index}"]["beta"], beta)
    np.testing.assert_array_equal(found["conv11"]["kernel"], last[0])


def test_constants_come_from_the_json(tmp_path):
    def change(model):
        for layer in model["config"]:
            if layer["class_name"] == "LeakyReLU":
                layer["config"]["alpha"] = 0.10000000149011612
            if layer["class_name"] == "BatchNormalization":
                layer["config"]["epsilon"] = 1e-3

    hidden, last = keras1_files.random_network(np.random.default_rng(0), **SMALL)
    json_path, weights_path = keras1_files.write_pair(tmp_path, hidden, last, change=change)
    configs = {layer.name: layer.config for layer in import_keras1(weights_path, json_path)}
    assert configs["act1"]["negative_slope"] == 0.1
    assert configs["norm2"]["epsilon"] == 1e-3


def set_in(index, **settings):
    """Spoils the settings of one layer, or of those in a slice."""

    def change(model):
        chosen = model["config"][index]
        for layer in chosen if isinstance(chosen, list) else [chosen]:
            layer["config"].update(settings)

    return change


HOSTILE_JSON = {
    "mode 0": (set_in(1, mode=0), "'mode' is 0, expected 2"),
    "no mode": (
        lambda model: model["config"][1]["config"].pop("mode"),
        "'mode' is None, expected 2",
    ),
    "axis": (set_in(1, axis=1), "'axis' is 1, expected -1"),
    "padding": (set_in(0, border_mode="valid"), "'border_mode' is 'valid', expected 'same'"),
    "stride": (set_in(0, subsample_length=2), "'subsample_length' is 2"),
    "no bias": (set_in(0, bias=False), "'bias' is False, expected True"),
    "activation": (set_in(0, activation="relu"), "'activation' is 'relu', expected 'linear'"),
    "end": (set_in(7, activation="relu"), "'activation' is 'relu', expected 'tanh'"),
    "alpha": (
        set_in(slice(2, 6, 3), alpha="0.3"),
        "'alpha' is '0.3', expected a number from 0 to 1",
    ),
    "two alphas": (set_in(2, alpha=0.1), "'alpha' differs from layer to layer"),
    "other filters": (set_in(0, nb_filter=5), "give the JSON file that was saved with"),
    "filters is text": (set_in(0, nb_filter="3"), "num_filters is '3'"),
    "filters is a list": (set_in(0, nb_filter=[3]), r"num_filters is \[3\]"),
    "kernel is a list": (set_in(0, filter_length=[7]), "'filter_length' differs"),
    "two outputs": (set_in(6, nb_filter=2), "the last 'nb_filter' is 2, expected 1"),
    "other names": (set_in(0, name="convolution1d_9"), "give the JSON file that was saved with"),
    "other layers": (lambda model: model["config"].pop(1), "the layers are 'Convolution1D Leaky"),
    "lambda": (
        lambda model: model["config"].insert(1, {"class_name": "Lambda", "config": {"name": "x"}}),
        "the layers are 'Convolution1D Lambda",
    ),
    "no layers": (lambda model: model["config"].clear(), "the layers are ''"),
    "nameless": (lambda model: model["config"][0]["config"].pop("name"), "a layer lacks"),
    "functional": (lambda model: model.update({"class_name": "Model"}), "Sequential model"),
    "Keras 2": (lambda model: model.update({"keras_version": "2.1"}), "expected Keras 1"),
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_json_that_disagrees_is_refused(name, tmp_path):
    change, match = HOSTILE_JSON[name]
    hidden, last = keras1_files.random_network(np.random.default_rng(0), **SMALL)
    json_path, weights_path = keras1_files.write_pair(tmp_path, hidden, last, change=change)
    with pytest.raises(ModelFileError, match=match) as refusal:
        import_keras1(weights_path, json_path)
    assert str(refusal.value).startswith(str(tmp_path))
    assert str(refusal.value).isprintable()


def replace(name, make):
    def change(file):
        del file[name]
        group, key = name.split("/")
        make(file[group], key)

    return change


W = "convolution1d_2/convolution1d_2_W:0"
GAMMA = "batchnormalization_1/batchnormalization_1_gamma:0"
STD = "batchnormalization_1/batchnormalization_1_running_std:0"

HOSTILE_WEIGHTS = {
    "no layer_names": (lambda file: file.attrs.clear(), "no attribute 'layer_names'"),
    "layer_names is text": (
        lambda file: file.attrs.create("layer_names", "convolution1d_1"),
        "'layer_names' of '/' is not a list of names",
    ),
    "layer_names are numbers": (
        lambda file: file.attrs.create("layer_names", [1, 2]),
        "is not a list of names",
    ),
    "unknown layer": (
        lambda file: file.attrs.create("layer_names", [b"lstm_1"], dtype="S6"),
        "layer 'lstm_1', expected convolution1d_<i>",
    ),
    "path for a layer": (
        lambda file: file.attrs.create("layer_names", [b"../x"], dtype="S4"),
        "layer '../x', expected convolution1d_<i>",
    ),
    "no layers": (
        lambda file: file.attrs.create("layer_names", [], dtype="S1", shape=(0,)),
        "0 convolutions",
    ),
    "missing group": (lambda file: file.__delitem__("leakyrelu_1"), "no '/leakyrelu_1'"),
    "missing norm": (
        lambda file: file.attrs.create(
            "layer_names",
            [n for n in file.attrs["layer_names"] if n != b"batchnormalization_2"],
            dtype="S30",
        ),
        "1 BatchNormalization layers, expected one less than the 3 convolutions",
    ),
    "linked group": (
        lambda file: (
            file.move("convolution1d_1", "elsewhere"),
            file.__setitem__("convolution1d_1", h5py.SoftLink("/elsewhere")),
        ),
        r"link \(SoftLink\)",
    ),
    "external link": (
        replace(GAMMA, lambda g, key: g.__setitem__(key, h5py.ExternalLink("/etc/passwd", "/x"))),
        r"link \(ExternalLink\)",
    ),
    "kernel of rank 3": (
        replace(W, lambda group, key: group.create_dataset(key, data=np.ones((7, 3, 4), "f4"))),
        r"a kernel has shape \(7, 3, 4\), expected \(taps, 1, 3, filters\)",
    ),
    "kernel is a group": (replace(W, lambda g, key: g.create_group(key)), "shape None"),
    "shape bomb": (
        replace(W, lambda g, key: g.create_dataset(key, (7, 1, 3, 1 << 40), "f4")),
        "a kernel has shape|'filters' is",
    ),
    "wrong gamma": (
        replace(GAMMA, lambda group, key: group.create_dataset(key, data=np.ones(5, "f4"))),
        r"shape \(5,\), expected \(3,\)",
    ),
    "half precision": (
        replace(GAMMA, lambda group, key: group.create_dataset(key, data=np.ones(3, "f2"))),
        "is float16, expected float32",
    ),
    "NaN": (lambda file: file[GAMMA].write_direct(np.full(3, np.nan, "f4")), "holds NaN"),
    "NaN statistics": (lambda file: file[STD].write_direct(np.full(3, np.inf, "f4")), "NaN or inf"),
    "missing weight": (lambda file: file.__delitem__(STD), "running_std:0' in the file"),
    "other weight names": (
        lambda file: file["convolution1d_1"].attrs.create("weight_names", [b"W"], dtype="S1"),
        "lists the weights",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_hostile_old_weights_are_refused(name, tmp_path):
    change, match = HOSTILE_WEIGHTS[name]
    hidden, last = keras1_files.random_network(np.random.default_rng(0), **SMALL)
    _, weights_path = keras1_files.write_pair(tmp_path, hidden, last)
    with h5py.File(weights_path, "a") as file:
        change(file)
    with pytest.raises(ModelFileError, match=match) as refusal:
        import_keras1(weights_path)
    assert str(refusal.value).startswith(f"{weights_path}: ")
    assert str(refusal.value).isprintable()


def test_truncated_old_weights_are_refused(tmp_path):
    hidden, last = keras1_files.random_network(np.random.default_rng(0), **SMALL)
    _, path = keras1_files.write_pair(tmp_path, hidden, last)
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match="not a readable HDF5 file"):
            import_keras1(path)


# --------------------------------------------------------------------------------------------
# Commands


def test_info_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / "model.h5"
    save_model(build_fcn(), path, {"kind": "waveform"})
    assert main(["info", str(path), "--json", str(tmp_path / "info.json")]) == 0
    printed = capsys.readouterr().out
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["parameters"] == 300_931
    assert info["weight_bytes"] == 1_203_724
    assert info["file_bytes"] == path.stat().st_size
    assert info["sha256"] == read_model_file(path).sha256
    assert info["meta"] == {"kind": "waveform"}
    assert info["layers"][1]["weights"] == {"kernel": [55, 1, 30], "bias": [30]}
    for expected in ("conv8", "GroupNormalization", "300,931", info["sha256"], "waveform"):
        assert expected in printed


def test_info_says_what_a_network_over_time_and_frequency_is(tmp_path, capsys):
    path = tmp_path / "model.icse"
    file = write_mask_network(path)
    assert main(["info", str(path), "--json", str(tmp_path / "info.json")]) == 0
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["kind"] == "complex_mask"
    summary = info["summary"]
    assert (summary["reach_frames"], summary["latency_ms"]) == (9, 32)
    assert summary["num_parameters"] < info["parameters"] == file.num_parameters
    printed = capsys.readouterr().out
    assert f"kind        complex_mask\nparameters  {info['parameters']:,}" in printed
    assert f"network     {summary['text']}" in printed


@pytest.mark.parametrize("command", ["info", "import"])
def test_bad_input_is_one_line_and_exit_1(command, tmp_path, capsys):
    bad, out = tmp_path / "bad.h5", tmp_path / "out.h5"
    options = ["-o", str(out)] if command == "import" else []
    for make in (lambda: None, lambda: bad.write_text("no model")):
        make()
        assert main([command, str(bad), *options]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"error: {bad}: ")
        assert captured.err.count("\n") == 1
        assert not out.exists()


def test_missing_json_is_one_line_and_exit_1(tmp_path, capsys):
    absent = tmp_path / "absent.json"
    assert main(["import", str(absent), "w.hdf5", "-o", str(tmp_path / "out.h5")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {absent}: ")


@pytest.mark.parametrize(
    "arguments", [[], ["import", "a"], ["import", "a", "b", "c", "-o", "d.h5"]]
)
def test_wrong_usage_exits_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_commands_do_not_load_keras(tmp_path):
    hidden, last = keras1_files.random_network(np.random.default_rng(0), **SMALL)
    json_path, weights_path = keras1_files.write_pair(tmp_path, hidden, last)
    code = (
        "import sys\n"
        "from speech.weights import main\n"
        "status = main(sys.argv[1:])\n"
        "sys.exit(status or 3 * any(name in sys.modules for name in ('keras', 'tensorflow')))\n"
    )
    command = [sys.executable, "-c", code, "import", json_path, weights_path, "-o"]
    subprocess.run([*command, tmp_path / "out.h5"], check=True, capture_output=True)
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", weights.__name__, "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "info" in shown.stdout
    assert "tensorflow" not in shown.stderr
    assert "keras" not in shown.stderr
