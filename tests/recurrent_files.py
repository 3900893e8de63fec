"""Recurrent layers, small experts made of them, and ways to spoil their files, without Keras."""

import json

import numpy as np

from mnn.features import Conventions
from speech.modelfile.h5 import write_model_file
from speech.modelfile.rules import GATES
from speech.modelfile.spec import LayerSpec
from tests.mnn_files import NUM_BINS, dense, write
from tests.model_files import edit_config, edit_file, edit_layer

#: Settings that differ from layer to layer; see `recurrent`.
VARIANTS = {
    "LSTM": ("LSTM", {}),
    "LSTM without bias": ("LSTM", {"use_bias": False}),
    "LSTM of other functions": ("LSTM", {"activation": "relu", "recurrent_activation": "tanh"}),
    "GRU": ("GRU", {}),
    "GRU that resets before": ("GRU", {"reset_after": False}),
    "GRU without bias": ("GRU", {"use_bias": False, "activation": "silu"}),
    "SimpleRNN": ("SimpleRNN", {}),
    "linear SimpleRNN": ("SimpleRNN", {"activation": "linear", "use_bias": False}),
}


def settings_of(class_name, units, **changes):
    """Returns the settings of a recurrent layer as Keras has them by default."""
    config = {
        "units": units, "activation": "tanh", "use_bias": True, "return_sequences": True,
        "dropout": 0.0, "recurrent_dropout": 0.0,
    }  # fmt: skip
    if class_name != "SimpleRNN":
        config["recurrent_activation"] = "sigmoid"
    if class_name == "GRU":
        config["reset_after"] = True
    return {**config, **changes}


def weights_of(class_name, config, channels, rng, scale=0.5):
    """Returns random weights of a recurrent layer."""
    units, width = config["units"], GATES[class_name] * config["units"]
    shapes = {"kernel": (channels, width), "recurrent_kernel": (units, width)}
    if config["use_bias"]:
        shapes["bias"] = (2, width) if config.get("reset_after") else (width,)
    return {key: (scale * rng.standard_normal(shape)).astype("f4") for key, shape in shapes.items()}


def recurrent(name, class_name, units, channels, rng, *, scale=0.5, **changes):
    """Returns a recurrent layer of random weights."""
    config = settings_of(class_name, units, **changes)
    return LayerSpec(class_name, name, config, weights_of(class_name, config, channels, rng, scale))


def bidirectional(name, class_name, units, channels, rng, *, merge="concat", scale=0.5, **changes):
    """Returns a Bidirectional layer of random weights."""
    config = settings_of(class_name, units, **changes)
    weights = {
        f"{which}_{key}": array
        for which in ("forward", "backward")
        for key, array in weights_of(class_name, config, channels, rng, scale).items()
    }
    inner = {
        "module": "keras.layers",
        "class_name": class_name,
        "config": {"name": f"forward_{name}", **config},
        "registered_name": None,
    }
    return LayerSpec("Bidirectional", name, {"merge_mode": merge, "layer": inner}, weights)


def frames_input(channels):
    """Returns the input of a sequence of frames."""
    return LayerSpec("InputLayer", "frames", {"batch_shape": [None, None, channels]})


def small_network(rng, channels=5, outputs=3):
    """Returns a chain of every recurrent class."""
    return (
        frames_input(channels),
        recurrent("lstm", "LSTM", 4, channels, rng),
        LayerSpec("Dropout", "drop", {"rate": 0.2}),
        recurrent("gru", "GRU", 3, 4, rng),
        bidirectional("both", "LSTM", 2, 3, rng),
        bidirectional("sum", "GRU", 4, 4, rng, merge="sum"),
        recurrent("rnn", "SimpleRNN", 3, 4, rng),
        dense("output", rng.standard_normal((3, outputs)), np.zeros(outputs), "sigmoid"),
    )


def write_recurrent_mask(
    path, class_name="LSTM", *, units=6, context=1, bias=0.0, both=False, seed=0, meta=None,
    kind="mask",
):  # fmt: skip
    """Writes a mask expert of one recurrent layer and a Dense one."""
    rng = np.random.default_rng(seed)
    num_inputs = context * NUM_BINS
    make = bidirectional if both else recurrent
    layers = [
        frames_input(num_inputs),
        make("memory", class_name, units, num_inputs, rng, scale=0.05),
        dense("output", 0.5 * rng.standard_normal((units * (1 + both), NUM_BINS)),
              np.broadcast_to(bias, NUM_BINS), "sigmoid"),
    ]  # fmt: skip
    if meta is None:
        meta = {"kind": kind, **Conventions(context).to_json()}
    return write(path, layers, meta)


# --------------------------------------------------------------------------------------------
# What is refused


def write_small(path):
    """Writes the file that `HOSTILE` spoils: an LSTM, a Bidirectional GRU and a Dense layer."""
    rng = np.random.default_rng(7)
    layers = [
        frames_input(4),
        recurrent("memory", "LSTM", 3, 4, rng),
        bidirectional("both", "GRU", 2, 3, rng),
        dense("output", rng.standard_normal((4, 2)), np.zeros(2)),
    ]
    write_model_file(path, layers, {"kind": "test"})
    return path


def sets(index, **settings):
    """Returns what changes settings of a layer."""
    return edit_layer(index, **settings)


def inside(key="layer", **settings):
    """Returns what changes settings of what the Bidirectional wraps."""

    def change(model, layers):
        config = layers[2]["config"]
        if key == "backward_layer":
            config[key] = json.loads(json.dumps(config["layer"]))
            config[key]["config"]["go_backwards"] = True
        config[key]["config"].update(settings)

    return edit_config(change)


def wraps(**entry):
    """Returns what changes the entry that the Bidirectional wraps."""
    return edit_config(lambda model, layers: layers[2]["config"]["layer"].update(entry))


def lacks(index, key):
    """Returns what takes a setting out."""
    return edit_config(lambda model, layers: layers[index]["config"].pop(key) and None)


def stores(path, value):
    """Returns what puts another array in place of a weight."""

    def change(file):
        del file[path]
        file[path] = value

    return edit_file(change)


def names_weights(*names):
    """Returns what changes the list of the Bidirectional's weights."""

    def change(file):
        file["model_weights/both"].attrs["weight_names"] = np.array(names, "S")

    return edit_file(change)


MEMORY, BOTH = "model_weights/memory/memory", "model_weights/both/both"

#: Name -> (what spoils the file of `write_small`, what the refusal says).
HOSTILE = {
    "the last frame only": (sets(1, return_sequences=False), "'return_sequences' is False"),
    "sequences not said": (lacks(1, "return_sequences"), "lacks 'return_sequences'"),
    "state given out": (sets(1, return_state=True), "'return_state' is True, expected False"),
    "backwards": (sets(1, go_backwards=True), "'go_backwards' is True, expected False"),
    "stateful": (sets(1, stateful=True), "'stateful' is True, expected False"),
    "time first": (sets(1, time_major=True), "'time_major' is True, expected False"),
    "hard sigmoid": (sets(1, recurrent_activation="hard_sigmoid"), "'recurrent_activation' is"),
    "no gate": (lacks(1, "recurrent_activation"), "lacks 'recurrent_activation'"),
    "code as gate": (
        sets(1, recurrent_activation={"class_name": "__lambda__", "config": {}}), "can run code",
    ),
    "unrolled a little": (sets(1, unroll=3), "'unroll' is 3, expected True or False"),
    "dropout of 1": (sets(1, dropout=1.0), "'dropout' is 1.0"),
    "no units": (sets(1, units=0), "'units' is 0"),
    "half a unit": (sets(1, units=2.5), "'units' is 2.5"),
    "65,536 units": (sets(1, units=65_536), "bytes of weights, expected at most"),
    "units beyond all": (sets(1, units=1 << 62), "'units' is 46116860"),
    "6,000 units": (sets(2, layer={
        "class_name": "GRU", "config": {"name": "g", **settings_of("GRU", 6_000)}}),
        "bytes of weights, expected at most"),
    "3,000 units": (sets(1, units=3_000), "bytes of weights, the file has"),
    "4 units for 3": (sets(1, units=4), r"has shape \(4, 12\), expected \(4, 16\)"),
    "bias not there": (sets(1, use_bias=False), "holds the weights"),
    "a setting of another": (sets(1, reset_after=True), "unknown setting 'reset_after'"),
    "a cell of one's own": (
        edit_config(lambda model, layers: layers[1].update(class_name="RNN")), "'RNN' is not known",
    ),
    "a layer of cuDNN": (
        edit_config(lambda model, layers: layers[1].update(class_name="CuDNNLSTM")),
        "'CuDNNLSTM' is not known",
    ),
    "frames of bands": (
        sets(0, batch_shape=[None, None, 4, 4]), "got 4 axes, expected 3",
    ),
    "no frames": (sets(0, batch_shape=[None, 4]), "got 2 axes, expected 3"),
    "time at the end": (
        edit_config(lambda model, layers: layers.insert(
            1, {"class_name": "Permute", "config": {"name": "p", "dims": [2, 1]}})),
        "expected \\(frames, channels\\)",
    ),
    "two states": (sets(2, merge_mode=None), "'merge_mode' is None"),
    "nothing wrapped": (lacks(2, "layer"), "lacks 'layer'"),
    "a list wrapped": (sets(2, layer=[]), "lacks 'class_name'"),
    "Dense wrapped": (wraps(class_name="Dense"), "wraps a 'Dense', expected one of"),
    "itself wrapped": (wraps(class_name="Bidirectional"), "wraps a 'Bidirectional'"),
    "a model wrapped": (wraps(class_name="Sequential"), "wraps a 'Sequential'"),
    "no class": (wraps(class_name=["GRU"]), r"wraps a \['GRU'\]"),
    "Lambda wrapped": (wraps(class_name="Lambda"), "can run code"),
    "code wrapped": (wraps(module="os"), "names module 'os'"),
    "stateful inside": (inside(stateful=True), "'both' .*'stateful' is True"),
    "backwards inside": (inside(go_backwards=True), "'go_backwards' is True"),
    "the last frame inside": (inside(return_sequences=False), "'return_sequences' is False"),
    "a name for the terminal": (inside(name="\x1b[2J"), "is named"),
    "16 bits inside": (inside(dtype="float16"), "computes in 'float16'"),
    "another way back": (
        inside("backward_layer", activation="relu"), "expected the class and the settings",
    ),
    "no way back": (inside("backward_layer", go_backwards=False), "does not go backwards"),
    "a way back of text": (sets(2, backward_layer="GRU"), "lacks 'config'"),
    "wrapped 9 deep": (
        edit_config(lambda model, layers: layers[2]["config"].update(
            layer=nested_layer(layers[2]["config"]["layer"], 9))),
        "wraps a 'Bidirectional'",
    ),
    "NaN in the recurrent kernel": (
        stores(f"{MEMORY}/recurrent_kernel", np.full((3, 12), np.nan, "f4")), "NaN or infinite",
    ),
    "infinite on the way back": (
        stores(f"{BOTH}/backward_recurrent_kernel", np.full((2, 6), np.inf, "f4")),
        "NaN or infinite",
    ),
    "recurrent kernel of others": (
        stores(f"{MEMORY}/recurrent_kernel", np.zeros((12, 3), "f4")), "expected \\(3, 12\\)",
    ),
    "one bias for two": (
        stores(f"{BOTH}/forward_bias", np.zeros(6, "f4")), "expected \\(2, 6\\)",
    ),
    "one way only": (
        names_weights(*(f"both/forward_{key}" for key in ("kernel", "recurrent_kernel", "bias"))),
        "holds the weights",
    ),
    "an initial state": (
        edit_config(lambda model, layers: as_graph(model, layers)), "expected one plain call",
    ),
}  # fmt: skip


def nested_layer(inner, depth):
    """Returns a layer within Bidirectional layers."""
    for level in range(depth):
        config = {"name": f"b{level}", "merge_mode": "sum", "layer": inner}
        inner = {"class_name": "Bidirectional", "config": config}
    return inner


def as_graph(model, layers):
    """Makes a graph of the chain, whose LSTM starts from what another layer gives."""
    before = None
    for layer in layers:
        layer["name"] = layer["config"]["name"]
        layer["inbound_nodes"] = [[[before, 0, 0, {}]]] if before else []
        before = layer["name"]
    layers[1]["inbound_nodes"][0][0][3] = {"initial_state": [["frames", 0, 0]]}
    model["class_name"] = "Functional"
    model["config"]["input_layers"] = [["frames", 0, 0]]
    model["config"]["output_layers"] = [[before, 0, 0]]
