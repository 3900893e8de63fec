"""Model files that are graphs: round trips, agreement with Keras, and one exam of bad ones."""

import dataclasses
import importlib
import json
import time

import h5py
import keras
import numpy as np
import pytest
from keras import layers as klayers

from speech.modelfile import icse
from speech.modelfile.exam import model_config_of, output_shapes
from speech.modelfile.h5 import write_model_file
from speech.modelfile.hdf5 import File
from speech.modelfile.meta import MaskConventions
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFileError, is_chain, linked, require_chain
from speech.net.keras_models import build_model, load_model, save_model
from speech.net.timefrequency import SIZES, TimeFrequencyConfig, build_time_frequency
from speech.weights import main
from tests import graph_files
from tests.builders import assert_same, shaken_model
from tests.graph_files import META, convolution, small_graph, write_graph

#: Keras' own saving in HDF5 warns under NumPy 2.
LIBRARY = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("good") / "good.h5").read_bytes()


@pytest.fixture
def good(image, tmp_path):
    path = tmp_path / "good.h5"
    path.write_bytes(image)
    return path


def assert_same_graph(layers, others):
    assert [layer.inputs for layer in layers] == [layer.inputs for layer in others]
    assert_same(layers, others)


def assert_agree(one, other, shape):
    signal = np.random.default_rng(1).normal(size=shape).astype("f4")
    expected, found = np.array(one(signal)), np.array(other(signal))
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------
# Round trips


def test_files_of_both_kinds_are_exact(good, tmp_path):
    file = read_model_file(good)
    assert_same_graph(file.layers, small_graph())
    assert file.meta == META
    assert not file.is_chain
    icse.write_compact(tmp_path / "model.icse", file.layers, file.meta)
    packed = read_model_file(tmp_path / "model.icse")
    assert_same_graph(packed.layers, file.layers)
    assert packed.meta == META


@pytest.mark.parametrize("entropy", [True, False])
def test_kernels_of_few_values_are_packed_exactly(entropy):
    rng = np.random.default_rng(5)
    layers = []
    for layer in small_graph():
        weights = dict(layer.weights)
        if "kernel" in weights:
            kernel = rng.choice([-0.5, -0.25, 0.125, 1], weights["kernel"].shape).astype("f4")
            kernel[..., 0, 1] = 0  # a channel that was pruned
            weights["kernel"] = kernel
        layers.append(dataclasses.replace(layer, weights=weights))
    found = icse.unpack(icse.pack(layers, META, entropy=entropy))
    assert_same_graph(found.model.layers, layers)
    assert "bit-packed" in found.codings.values()


def test_graphs_are_coded_without_contexts_where_that_is_shorter():
    """Indices that tell nothing about each other, in kernels as wide as the network's."""
    rng = np.random.default_rng(6)
    wide = 24
    values = np.linspace(-1, 1, 9, dtype="f4")
    layers = [LayerSpec("InputLayer", "x", {"batch_shape": [None, None, 16, wide]})]
    for index in range(6):
        shape = (3, 1, wide, wide)
        kernel = values[np.clip(np.rint(rng.normal(4, 1.2, shape)), 0, 8).astype(int)]
        kernel[:, :, rng.random((wide, wide)) < 0.2] = 0
        settings = convolution(wide, (3, 1))
        layers.append(LayerSpec("Conv2D", f"c{index}", settings, {"kernel": kernel}))
    chain = icse.unpack(icse.pack(layers, {}))
    assert set(chain.codings.values()) == {"entropy-coded"}
    skip = LayerSpec("Add", "sum", {}, {}, ("x", "c5"))
    found = icse.unpack(icse.pack([*linked(layers), skip], {}))
    assert_same_graph(found.model.layers[:-1], linked(layers))
    assert set(found.codings.values()) == {"entropy-coded, no context"}
    assert sum(found.kernel_bytes.values()) < 0.98 * sum(chain.kernel_bytes.values())


def test_layers_come_in_the_order_of_computation(good):
    def shuffle(config, layers):
        config["layers"] = [config["layers"][0], *config["layers"][:0:-1]]

    graph_files.edit(shuffle)(good)
    layers = read_model_file(good).layers
    assert {layer.name for layer in layers} == {layer.name for layer in small_graph()}
    seen = set()
    for layer in layers:
        assert seen.issuperset(layer.inputs)
        seen.add(layer.name)
    assert layers[-1].name == "mask"
    shuffled = (layers[0], *layers[-2:0:-1], layers[-1])
    assert_same_graph(icse.unpack(icse.pack(shuffled, META)).model.layers, layers)
    write_model_file(good, shuffled, META)
    assert_agree(build_model(layers), load_model(good), (1, 3, 16, 3))


def test_chains_over_bands_are_written_as_sequential_models(tmp_path):
    """Without the skips, in a file and packed; inputs are named by the reader."""
    layers = [
        LayerSpec("InputLayer", "x", {"batch_shape": [None, None, 8, 2]}),
        LayerSpec("Conv2D", "c", convolution(3, (3, 2), padding="valid"),
                  {"kernel": np.ones((3, 2, 2, 3), "f4")}),
        LayerSpec("Permute", "p", {"dims": [3, 1, 2]}),
    ]  # fmt: skip
    path = tmp_path / "chain.h5"
    write_model_file(path, layers, {})
    with h5py.File(path) as file:
        assert json.loads(file.attrs["model_config"])["class_name"] == "Sequential"
    assert_same_graph(read_model_file(path).layers, linked(layers))
    assert_same_graph(icse.unpack(icse.pack(layers, {})).model.layers, linked(layers))
    assert output_shapes(layers) == {
        "x": (None, None, 8, 2), "c": (None, None, 7, 3), "p": (None, 3, None, 7)
    }  # fmt: skip


def test_shapes_follow_all_axes():
    shapes = output_shapes(small_graph())
    assert shapes["encoder"] == shapes["sum"] == (None, None, 8, 4)
    assert shapes["bands"] == (None, None, 4, 8)
    assert shapes["join"] == (None, None, 8, 8)
    assert shapes["mask"] == (None, None, 16, 2)


@LIBRARY
def test_files_of_the_network_are_lean(tmp_path):
    """Half of what Keras writes: groups of two levels are lists of links."""
    model = build_time_frequency(SIZES["small"])
    model.save(tmp_path / "keras.h5", include_optimizer=False)
    save_model(model, tmp_path / "ours.h5", SIZES["small"].meta())
    sizes = [(tmp_path / name).stat().st_size for name in ("ours.h5", "keras.h5")]
    weights = 4 * model.count_params()
    assert sizes[0] < 0.55 * sizes[1]
    assert sizes[0] - weights < 110_000
    for name in ("ours.h5", "keras.h5"):  # our reader and the library see the same
        with open(tmp_path / name, "rb") as stream, h5py.File(tmp_path / name) as file:
            group = File(stream).root.child("model_weights").child("mask").child("mask")
            kernel = file["model_weights/mask/mask/kernel"][()]
            np.testing.assert_array_equal(group.child("kernel").read(), kernel)


# --------------------------------------------------------------------------------------------
# Keras


@LIBRARY
def test_plain_keras_opens_the_network_and_agrees(tmp_path):
    config = TimeFrequencyConfig(5, 7, (1, 2))
    model = shaken_model(build_time_frequency(config))
    ours, theirs = tmp_path / "ours.h5", tmp_path / "theirs.h5"
    save_model(model, ours, config.meta())
    model.save(theirs, include_optimizer=False)
    shape = (2, 9, 256, 3)
    assert_agree(model, keras.models.load_model(ours, compile=False), shape)
    assert_agree(model, load_model(theirs), shape)
    layers = read_model_file(ours).layers
    assert_same_graph(layers, read_model_file(theirs).layers)
    assert_agree(model, build_model(icse.unpack(icse.pack(layers, {})).model.layers), shape)
    assert output_shapes(layers)["mask"] == model.output_shape
    for layer in model.layers:
        assert output_shapes(layers)[layer.name] == tuple(layer.output.shape), layer.name


def test_plain_keras_agrees_on_every_class(good):
    layers = read_model_file(good).layers
    model = keras.models.load_model(good, compile=False)
    assert_agree(model, build_model(layers), (2, 7, 16, 3))
    assert [tuple(layer.output.shape) for layer in model.layers] == [
        output_shapes(layers)[layer.name] for layer in model.layers
    ]


def test_swish_of_older_files_is_silu(good):
    expected = build_model(small_graph())
    graph_files.sets("act", activation="swish")(good)
    graph_files.sets("bands", activation="swish")(good)
    file = read_model_file(good)
    assert [layer.config["activation"] for layer in file.layers if layer.name in ("act", "bands")]
    assert_agree(expected, build_model(file.layers), (1, 4, 16, 3))


def test_calls_may_be_written_as_keras_3_does(good):
    expected = read_model_file(good)
    graph_files.calls("norm", graph_files.call(graph_files.tensor("encoder"), mask=None))(good)
    two = [graph_files.tensor("act"), graph_files.tensor("drop")]
    graph_files.calls("sum", graph_files.call(two))(good)
    graph_files.calls("time", [["pad", 0, 0, {}]])(good)
    assert_same_graph(read_model_file(good).layers, expected.layers)


def test_a_waveform_model_with_a_skip(tmp_path):
    inputs = keras.Input((None, 1))
    hidden = klayers.Conv1D(4, 5, padding="same", activation="silu")(inputs)
    hidden = klayers.Add()([hidden, klayers.Conv1D(4, 3, padding="same")(hidden)])
    model = keras.Model(inputs, klayers.Dense(1)(hidden))
    save_model(model, tmp_path / "skip.h5", {"kind": "waveform"})
    assert_agree(model, load_model(tmp_path / "skip.h5"), (2, 30, 1))


# --------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize("name", graph_files.HOSTILE)
def test_bad_graph_is_refused_in_one_line(name, good):
    spoil, match = graph_files.HOSTILE[name]
    spoil(good)
    started = time.process_time()
    with pytest.raises(ModelFileError, match=match) as refusal:
        read_model_file(good)
    assert time.process_time() - started < 1
    message = str(refusal.value)
    assert message.startswith(f"{good}: ")
    assert message.isprintable()
    assert len(message) < 500 + len(str(good))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda layers: layers[5], r"'time' \(Conv2D\) of a graph names no inputs"),
        (lambda layers: layers[10], r"'sum' \(Add\) of a graph names no inputs"),
    ],
)
@pytest.mark.parametrize("write", ["h5", "icse", "keras"])
def test_layers_of_a_graph_must_name_their_inputs(change, match, write, tmp_path):
    layers = list(small_graph())
    spoilt = change(layers)
    layers[layers.index(spoilt)] = dataclasses.replace(spoilt, inputs=())
    with pytest.raises(ModelFileError, match=match):
        if write == "h5":
            write_model_file(tmp_path / "x.h5", layers, {})
        elif write == "icse":
            icse.write_compact(tmp_path / "x.icse", layers, {})
        else:
            build_model(layers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".h5", ".icse"])
def test_writers_check_the_conventions(suffix, tmp_path):
    write = {".h5": write_model_file, ".icse": icse.write_compact}[suffix]
    meta = {key: value for key, value in META.items() if key != "power"}
    with pytest.raises(ModelFileError, match="model.* 'speech_meta' lacks 'power'"):
        write(tmp_path / f"model{suffix}", small_graph(), meta)
    assert not list(tmp_path.iterdir())


def test_packed_conventions_are_checked_on_the_way_in():
    data = icse.pack(small_graph(), {**META, "kind": "other", "power": 2})
    assert icse.unpack(data).model.meta["power"] == 2


def test_conventions_are_those_of_the_network():
    for config in (*SIZES.values(), TimeFrequencyConfig(power=0.5)):
        found = MaskConventions.of(config.meta())
        assert (found.stft, found.power) == (config.stft, config.power)
        assert found.sample_rate_hz == 16_000


def test_only_chains_over_time_pass_for_chains():
    with pytest.raises(ModelFileError, match=r"'sum' \(Add\) reads 'act' and 'drop'; pruning take"):
        require_chain(small_graph(), "pruning")
    flat = [LayerSpec("InputLayer", "x", {"batch_shape": [None, None, 8, 2]})]
    assert is_chain(flat)
    with pytest.raises(ModelFileError, match="pruning takes networks over"):
        require_chain(flat, "pruning")
    line = [LayerSpec("InputLayer", "x", {"batch_shape": [None, 8]}), LayerSpec("ReLU", "y", {})]
    assert require_chain(line, "pruning") == tuple(line)
    assert [layer.inputs for layer in linked(line)] == [(), ("x",)]
    assert model_config_of(line)["class_name"] == "Sequential"


def test_fixed_lengths_must_leave_a_frame(tmp_path):
    layers = [
        LayerSpec("InputLayer", "x", {"batch_shape": [None, 4, 8, 2]}),
        LayerSpec("Conv2D", "c", convolution(3, (5, 1), padding="valid"),
                  {"kernel": np.ones((5, 1, 2, 3), "f4")}),
    ]  # fmt: skip
    with pytest.raises(ModelFileError, match=r"'c' \(Conv2D\) leaves nothing of the input's 4 fr"):
        write_model_file(tmp_path / "x.h5", layers, {})


# --------------------------------------------------------------------------------------------
# Commands


def test_info_says_what_each_layer_reads(good, tmp_path, capsys):
    assert main(["info", str(good), "--json", str(tmp_path / "info.json")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["layer", "class", "reads", "weights", "parameters"]
    assert "sum       Add                 act drop" in out
    info = json.loads((tmp_path / "info.json").read_text())
    assert {layer["name"]: layer["inputs"] for layer in info["layers"]}["join"] == ["sum", "act"]


@pytest.mark.parametrize("module", ["eval.cycles"])
def test_commands_for_chains_refuse_graphs_in_one_line(module, good, tmp_path, capsys):
    more = {
        "eval.cycles": [],
    }[module]
    assert importlib.import_module(module).main([str(good), *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {good}: layer 'sum' (Add) reads 'act' and 'drop'; ")
    assert list(tmp_path.iterdir()) == [good]
