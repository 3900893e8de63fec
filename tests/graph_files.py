"""A small network with skips, of every class that a graph may hold, and ways to spoil its file."""

import json

import h5py
import numpy as np

from benchmarks.trials.mutation import GRAPH_META as META
from benchmarks.trials.mutation import graph_layers
from speech.modelfile.h5 import write_model_file


def convolution(filters, size, **settings):
    """Returns the settings of a Conv2D."""
    return {
        "filters": filters,
        "kernel_size": list(size),
        "strides": [1, 1],
        "padding": "same",
        "data_format": "channels_last",
        "dilation_rate": [1, 1],
        "activation": "linear",
        "use_bias": False,
        **settings,
    }


def small_graph():
    """Returns the layers: features [batch, frames, 16, 3] to a mask [batch, frames, 16, 2]."""
    return graph_layers(np.random.default_rng(3))


def write_graph(path):
    """Writes it as a model file."""
    write_model_file(path, small_graph(), META)
    return path


def edit(change):
    """Returns what spoils a file: ``change`` gets the configuration and its layers by name."""

    def spoil(path):
        with h5py.File(path, "a") as file:
            model = json.loads(file.attrs["model_config"])
            layers = {layer["name"]: layer for layer in model["config"]["layers"]}
            change(model["config"], layers)
            file.attrs["model_config"] = json.dumps(model)

    return spoil


def reads(name, *inputs):
    """Returns what makes a layer read others."""
    return edit(lambda config, layers: layers[name].update(inbound_nodes=[nodes(*inputs)]))


def sets(name, **settings):
    """Returns what changes settings of a layer."""
    return edit(lambda config, layers: layers[name]["config"].update(settings))


def nodes(*inputs):
    """Returns the call of a layer on others, as Keras 2 writes it."""
    return [[name, 0, 0] for name in inputs]


def tensor(name, *numbers, **more):
    """Returns the output of a layer, as Keras 3 writes it."""
    history = [name, *(numbers or (0, 0))]
    config = {"shape": [None, None, 8, 4], "dtype": "float32", "keras_history": history}
    return {"class_name": "__keras_tensor__", "config": config, **more}


def call(*arguments, **options):
    """Returns the call of a layer, as Keras 3 writes it."""
    return {"args": list(arguments), "kwargs": options}


def calls(name, *found):
    """Returns what puts other calls of a layer into a file."""
    return edit(lambda config, layers: layers[name].update(inbound_nodes=list(found)))


def inserts(class_name, before, name="extra", **settings):
    """Returns what puts a layer in front of another one that reads one layer."""

    def change(config, layers):
        node = layers[before]["inbound_nodes"]
        layers[before]["inbound_nodes"] = [nodes(name)]
        layer = {"class_name": class_name, "config": {"name": name, **settings}, "name": name}
        config["layers"].insert(1, layer | {"inbound_nodes": node})

    return edit(change)


def adds(count, of=2):
    """Returns what puts many Adds in front of the mask, each of the one before and ``act``."""

    def change(config, layers):
        last = "join"
        for index in range(count):
            name = f"add{index}"
            read = [last if index else "sum", *["act"] * (of - 1)]
            config["layers"].append(
                {"class_name": "Add", "config": {"name": name}, "name": name,
                 "inbound_nodes": [nodes(*read)]}
            )  # fmt: skip
            last = name
        layers["join"]["inbound_nodes"] = [nodes(last, "act")]

    return edit(change)


def meta(**changes):
    """Returns what changes the conventions of a file; None takes one out."""

    def spoil(path):
        with h5py.File(path, "a") as file:
            found = {**json.loads(file.attrs["speech_meta"]), **changes}
            text = json.dumps({key: value for key, value in found.items() if value is not None})
            file.attrs["speech_meta"] = text

    return spoil


def ends(**places):
    """Returns what names other inputs or outputs of the model."""
    return edit(lambda config, layers: config.update(places))


#: What is refused -> what spoils a good file, what the message must name.
HOSTILE = {
    # The graph.
    "cycle": (reads("encoder", "sum"), "cycle through .* and .*expected layers that read earlier"),
    "cycle of one": (reads("time", "time"), "cycle through 'time', expected"),
    "cycle beside the way": (reads("sum", "act", "join"), "cycle through 'join' and 'sum', exp"),
    "unknown input": (reads("time", "nowhere"), r"'time' \(Conv2D\) reads 'nowhere', but there"),
    "no input": (calls("time"), r"'time' \(Conv2D\) is layer 6 and reads nothing, expected one In"),
    "input reads": (reads("features", "mask"), "'features' .* reads 'mask', expected one InputLay"),
    "layer nobody reads": (reads("sum", "act", "act"), "'drop' .* is read by no layer and is not"),
    "output is read": (ends(output_layers=["join", 0, 0]), "'mask' .* is read by no layer and is"),
    "two outputs": (
        ends(output_layers=[["mask", 0, 0], ["sum", 0, 0]]),
        "'output_layers' is .*, expected one layer .* models of several outputs are not accepted",
    ),
    "no outputs": (ends(output_layers=[]), r"'output_layers' is \[\], expected one layer"),
    "unknown output": (ends(output_layers=["x", 0, 0]), "the model's output is 'x', but there is"),
    "two inputs": (
        ends(input_layers=[["features", 0, 0], ["act", 0, 0]]),
        "'input_layers' is .*models of several inputs",
    ),
    "input in the middle": (ends(input_layers=["act", 0, 0]), "input is 'act', expected the Inpu"),
    "two names": (
        edit(lambda config, layers: layers["time"].update(name="other")),
        r"'time' \(Conv2D\) is named 'other' in the graph, expected one name",
    ),
    "name twice": (
        edit(lambda config, layers: config["layers"].append(layers["act"])),
        "two layers are named 'act', expected unique names",
    ),
    "shared layer": (
        calls("time", nodes("pad"), nodes("act")),
        r"'time' \(Conv2D\) is called 2 times, expected once",
    ),
    "second output of a layer": (calls("time", [["pad", 0, 1]]), "expected one plain call"),
    "second call of a layer": (calls("time", [["pad", 1, 0]]), "expected one plain call"),
    "true for zero": (calls("time", [["pad", False, 0]]), "expected one plain call"),
    "option of a call": (calls("act", [["norm", 0, 0, {"training": True}]]), "one plain call"),
    "mask of a call": (calls("act", call(tensor("norm"), mask=tensor("pad"))), "one plain call"),
    "two arguments": (calls("sum", call(tensor("act"), tensor("drop"))), "expected one plain call"),
    "number for a layer": (calls("sum", [[7, 0, 0], ["act", 0, 0]]), "expected one plain call"),
    "text for a call": (calls("sum", "act"), "expected one plain call"),
    "constant for a tensor": (calls("sum", call([1.0, tensor("act")])), "lacks 'config'"),
    "call without history": (calls("sum", call([{"config": {}}])), "lacks 'keras_history'"),
    "lambda in a call": (
        calls("act", call(tensor("norm"), x={"class_name": "__lambda__", "config": {}})),
        "refused: layer '__lambda__' can run code",
    ),
    "module in a call": (calls("act", call(tensor("norm", module="os"))), "names module 'os'"),
    "one input to add": (reads("sum", "drop"), r"'sum' \(Add\) reads 1 layers, expected 2 to 16"),
    "17 inputs to add": (reads("sum", *["act"] * 17), "reads 17 layers, expected 2 to 16"),
    "two inputs to a convolution": (reads("time", "pad", "act"), "reads 2 layers, expected 1"),
    # Shapes.
    "skip of other channels": (reads("sum", "features", "drop"), r"'sum' \(Add\): adds .*16, 3"),
    "skip of another time": (
        reads("sum", "pad", "drop"),
        r"'sum' \(Add\): adds \(frames\+4, 8, 4\) and \(frames, 8, 4\), expected inputs of one",
    ),
    "skip over a transposed tensor": (reads("sum", "bands", "drop"), r"adds \(frames, 4, 8\) and"),
    "join of other bands": (reads("join", "sum", "features"), r"'join' \(Concatenate\): joins .*"),
    "axis of join": (sets("join", axis=1), "'axis' is 1, expected -1"),
    "stride over time": (sets("encoder", strides=[2, 1]), "'strides' over time is 2, expected 1"),
    "stride back over time": (sets("mask", strides=[2, 2]), "'strides' over time is 2, expected 1"),
    "strides and dilation": (
        sets("encoder", dilation_rate=[1, 2]),
        "'strides' and 'dilation_rate' are both over 1",
    ),
    "more taps than bands": (
        sets("encoder", kernel_size=[1, 17], padding="valid", strides=[1, 1]),
        "the kernel spans 17 of 16 bands",
    ),
    "dense over time": (sets("in", dims=[2, 3, 1]), r"'bands' \(Dense\): its last axis is time"),
    "dims of too few axes": (sets("in", dims=[2, 1]), r"'dims' is \[2, 1\], expected the 3 axes"),
    "dims with the batch": (sets("in", dims=[0, 1, 2]), r"'dims' is \[0, 1, 2\], expected the ax"),
    "dims twice": (sets("in", dims=[1, 1, 2]), "'dims' is .*, expected the axes"),
    "dims are huge": (sets("in", dims=[10**30, 1, 2]), "'dims' is .*, expected the axes"),
    "groups": (sets("time", groups=2), "'groups' is 2, expected 1"),
    "kernel of one axis": (
        sets("time", kernel_size=[3]),
        r"'kernel_size' is \[3\], expected a list of two, each an integer from 1 to 8192",
    ),
    "kernel of three axes": (sets("time", kernel_size=[3, 1, 1]), "expected a list of two"),
    "padding grows back": (sets("mask", padding="valid"), "'padding' is 'valid', expected 'same'"),
    "output padding": (sets("mask", output_padding=[0, 1]), r"'output_padding' is \[0, 1\], expec"),
    "negative padding": (sets("pad", padding=[[-1, 0], [0, 0]]), "'padding' is .*, expected a li"),
    "endless padding": (sets("pad", padding=[[1 << 40, 0], [0, 0]]), "each an integer from 0 to 6"),
    "far too many bands": (
        edit(lambda config, layers: (
            layers["features"]["config"].update(batch_shape=[None, None, 65536, 65536]))),
        "the values that are computed for one frame to 4,294,967,296, expected at most",
    ),
    "padding of all frames": (
        sets("pad", padding=[[65536, 65536], [0, 0]]),
        r"'pad' \(ZeroPadding2D\) brings the values that are computed for one frame",
    ),
    "reshape": (inserts("Reshape", "time", target_shape=[-1, 32]), "'Reshape' is not known"),
    "convolution over samples": (
        inserts("Conv1D", "time", **(convolution(4, (3, 1)) | dict.fromkeys(
            ("kernel_size", "strides", "dilation_rate"), 1))),
        r"'extra' \(Conv1D\) got 4 axes, expected 3",
    ),
    # Conventions.
    **{f"no {key}": (meta(**{key: None}), f"'speech_meta' lacks '{key}', which a 'complex_mask' n")
       for key in ("sample_rate_hz", "stft", "power", "features")},
    "power of 0": (meta(power=0), "'power' is 0, expected a number from 0.001 to 1"),
    "power is text": (meta(power="0.3"), "'power' is '0.3', expected a number"),
    "rate of 0": (meta(sample_rate_hz=0), "'sample_rate_hz' is 0, expected an integer"),
    "other features": (meta(features=["real"]), r"'features' is \['real'\], expected \['real', "),
    "stft is a number": (meta(stft=512), "'stft' is 512, expected a frame, a hop that divides it"),
    "hop does not divide": (meta(stft={**META["stft"], "hop": 15}), "'stft' is .*, expected a fr"),
    "unknown window": (meta(stft={**META["stft"], "window": "box"}), "'stft' is .*, expected a f"),
    "window is a list": (meta(stft={**META["stft"], "window": []}), "'stft' is .*, expected a fr"),
    "stft without hop": (meta(stft={"frame": 32, "window": "hann"}), "'stft' is .*, expected a f"),
    "other bins": (
        meta(stft={**META["stft"], "frame": 64}),
        r"input has the shape \[None, None, 16, 3\], but 'speech_meta' calls for .*32, 3\]",
    ),
    "frames are fixed": (
        sets("features", batch_shape=[None, 100, 16, 3]),
        r"the input has the shape \[None, 100, 16, 3\]",
    ),
    "output of other bins": (
        edit(lambda config, layers: (
            config.update(output_layers=["join", 0, 0]), config["layers"].pop())),
        r"the output has the shape \(frames, 8, 8\), but 'speech_meta' calls for \(frames, 16, 2\)",
    ),
    "output of other frames": (
        edit(lambda config, layers: (
            layers["pad"]["config"].update(padding=[[6, 0], [0, 0]]),
            layers["sum"].update(inbound_nodes=[nodes("drop", "drop")]),
            layers["join"].update(inbound_nodes=[nodes("sum", "sum")]))),
        r"the output has the shape \(frames\+2, 16, 2\)",
    ),
}  # fmt: skip
