"""An exam of hostile .h5 files: each spoils a good file, and says what its refusal must name."""

import json
import os

import h5py
import numpy as np

KERNEL = "model_weights/conv1/conv1/kernel"


def edit_config(change):
    """Spoils the configuration: ``change`` gets the model's dict and the list of layers."""

    def spoil(path):
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            config = change(config, config["config"]["layers"]) or config
            file.attrs["model_config"] = json.dumps(config)

    return spoil


def edit_layer(index, **settings):
    def change(model, layers):
        layers[index]["config"].update(settings)

    return edit_config(change)


def edit_file(change):
    def spoil(path):
        with h5py.File(path, "a") as file:
            change(file)

    return spoil


def replace_kernel(make):
    """Spoils the kernel of conv1, of shape (5, 1, 4): ``make(group, name)`` puts another."""

    def change(file):
        del file[KERNEL]
        make(file["model_weights/conv1/conv1"], "kernel")

    return edit_file(change)


def set_kernel(value):
    return edit_file(lambda file: file[KERNEL].write_direct(np.full((5, 1, 4), value, "f4")))


def insert_layer(class_name, **entry):
    def change(model, layers):
        layers.insert(2, {"class_name": class_name, "config": {"name": "extra"}, **entry})

    return edit_config(change)


def nest(model, layers):
    inner = {"name": "inner", "layers": list(layers)}
    layers.insert(2, {"class_name": "Sequential", "config": inner})


def branch(model, layers):
    def tensor(name):
        history = {"shape": [None], "dtype": "float32", "keras_history": [name, 0, 0]}
        return {"class_name": "__keras_tensor__", "config": history}

    for index, layer in enumerate(layers):
        layer["name"] = layer["config"]["name"]
        before = "input" if index == 4 else layers[index - 1]["config"]["name"]
        layer["inbound_nodes"] = [{"args": [tensor(before)], "kwargs": {}}] if index else []
    model["class_name"] = "Functional"
    model["config"]["input_layers"] = ["input", 0, 0]
    model["config"]["output_layers"] = ["output", 0, 0]


def huge(model, layers):
    layers[1]["config"].update(filters=65_536, kernel_size=8_192)
    layers[-2]["config"].update(units=65_536)


def external_storage(group, name):
    path = os.path.join(os.path.dirname(group.file.filename), "secret")
    with open(path, "wb") as stream:
        stream.write(bytes(80))
    return group.create_dataset(name, (5, 1, 4), "f4", external=[(path, 0, 80)])


def virtual_dataset(group, name):
    layout = h5py.VirtualLayout((5, 1, 4), "f4")
    layout[...] = h5py.VirtualSource(group.file.filename + ".other", "data", (5, 1, 4))
    return group.create_virtual_dataset(name, layout)


def name_weights(*names):
    """Spoils the list of conv1's weights."""

    def change(file):
        file["model_weights/conv1"].attrs["weight_names"] = np.array(names, "S")

    return edit_file(change)


def cut(length):
    def spoil(path):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * length) if isinstance(length, float) else length])

    return spoil


def loop_in_the_strings(path):
    data = bytearray(path.read_bytes())
    start = data.index(b"GCOL") + 16
    data[start : start + 16] = bytes(16)
    path.write_bytes(data)


def folder(path):
    path.unlink()
    path.mkdir()


def bomb(group, name):
    return group.create_dataset(name, (1 << 20, 1 << 10, 1 << 10), "f4")


def compressed(group, name):
    return group.create_dataset(name, (5, 1, 4), "f4", chunks=True, compression="gzip")


def link(kind, *target):
    def make(group, name):
        group[name] = kind(*target)

    return make


def outer_link(file):
    file.move("model_weights", "elsewhere")
    file["model_weights"] = h5py.SoftLink("/elsewhere")


def make(shape, dtype="f4"):
    return lambda group, name: group.create_dataset(name, data=np.ones(shape, dtype))


UNREADABLE = "not a readable HDF5 file .*truncated or of another format"

HOSTILE = {
    # Not a whole HDF5 file.
    "empty": (cut(0), UNREADABLE),
    "cut at 7 bytes": (cut(7), UNREADABLE),
    "cut at 90 bytes": (cut(90), UNREADABLE),
    "cut in half": (cut(0.5), UNREADABLE),
    "cut by a byte": (cut(-1), UNREADABLE),
    "loop in the strings": (loop_in_the_strings, "its strings are damaged"),
    "text": (lambda path: path.write_text("hello\n" * 100), UNREADABLE),
    "folder": (folder, "not a regular file"),
    "no config": (edit_file(lambda file: file.attrs.clear()), "no 'model_config' attribute"),
    "config is a number": (
        edit_file(lambda file: file.attrs.create("model_config", 5)),
        "not a string",
    ),
    "config is not JSON": (
        edit_file(lambda file: file.attrs.create("model_config", "{'a")),
        "'model_config' is not valid JSON",
    ),
    "config is deep": (
        edit_file(lambda file: file.attrs.create("model_config", "[" * 100_000)),
        "'model_config' is not valid JSON",
    ),
    "config is a list": (edit_config(lambda model, layers: [1]), "lacks 'class_name'"),
    # The graph.
    "lambda": (
        insert_layer("Lambda"),
        r"refused: layer 'Lambda' can run code; only InputLayer.*"
        r"are accepted \(see docs/security.md\)",
    ),
    "nested model": (edit_config(nest), "refused: layer 'Sequential' is not known"),
    "unknown class": (insert_layer("UpSampling1D"), "layer 'UpSampling1D' is not known"),
    "class is a list": (insert_layer(["Conv1D"]), "is not known"),
    "foreign module": (insert_layer("ReLU", module="os.path"), "names module 'os.path'"),
    "module like keras": (insert_layer("ReLU", module="keras_evil"), "names module 'keras_evil'"),
    "foreign module deep inside": (
        edit_layer(1, kernel_initializer={"module": "builtins", "class_name": "eval"}),
        "names module 'builtins'",
    ),
    "subclassed model": (
        edit_config(lambda model, layers: {**model, "class_name": "Net"}),
        "the model is a 'Net'",
    ),
    "branching graph": (edit_config(branch), "'act1' .* is read by no layer"),
    "no layers": (edit_config(lambda model, layers: layers.clear()), "2 to 1000 layers"),
    "no input layer": (edit_config(lambda model, layers: layers.pop(0) and None), "InputLayer"),
    "two input layers": (edit_config(lambda model, layers: layers.insert(1, layers[0])), "named"),
    # Settings.
    "filters too many": (edit_layer(1, filters=10**9), "'filters' is 1000000000, expected an int"),
    "filters is a bool": (edit_layer(1, filters=True), "'filters' is True"),
    "kernel of two axes": (edit_layer(1, kernel_size=[5, 5]), "'kernel_size' is"),
    "padding": (edit_layer(1, padding="causal"), "'padding' is 'causal', expected 'same' or"),
    "grouped convolution": (edit_layer(1, groups=2), "'groups' is 2, expected 1"),
    "groups do not divide": (edit_layer(2, groups=3), "expected -1 or a divisor of 4"),
    "activation is an object": (
        edit_layer(1, activation={"class_name": "function", "config": "system"}),
        "refused: layer 'function' can run code",
    ),
    "unknown activation": (edit_layer(8, activation="system"), "'activation' is 'system'"),
    "slope is NaN": (edit_layer(3, negative_slope=float("nan")), "NaN is not allowed"),
    "unknown setting": (edit_layer(1, lora_rank=4), "unknown setting 'lora_rank'"),
    "missing setting": (
        edit_config(lambda model, layers: layers[1]["config"].pop("filters") and None),
        "lacks 'filters'",
    ),
    "half precision": (edit_layer(1, dtype="float16"), "computes in 'float16'"),
    "name with a slash": (edit_layer(1, name="../x"), "is named '../x'"),
    "name drives the terminal": (edit_layer(1, name="\x1b[2J"), r"is named '\\x1b\[2J'"),
    "too many weights": (edit_config(huge), "bytes of weights, expected at most 536,870,912"),
    # Weights.
    "external link": (
        replace_kernel(link(h5py.ExternalLink, "/etc/passwd", "/x")),
        r"refused: .* is a link \(ExternalLink\)",
    ),
    "soft link": (
        replace_kernel(link(h5py.SoftLink, "/model_weights/dense/dense/kernel")),
        r"refused: .* is a link \(SoftLink\)",
    ),
    "link on the way": (edit_file(outer_link), r"'/model_weights' is a link \(SoftLink\)"),
    "external storage": (replace_kernel(external_storage), "refused: .* has external storage"),
    "virtual dataset": (replace_kernel(virtual_dataset), "refused: .* has virtual, chunked"),
    "compressed": (replace_kernel(compressed), "refused: .* has virtual, chunked"),
    "shape bomb": (replace_kernel(bomb), r"shape \(1048576, 1024, 1024\), expected \(5, 1, 4\)"),
    "never written": (
        replace_kernel(lambda group, name: group.create_dataset(name, (5, 1, 4), "f4")),
        "was never written",
    ),
    "wrong shape": (replace_kernel(make((4, 1, 5))), r"shape \(4, 1, 5\), expected \(5, 1, 4\)"),
    "scalar": (replace_kernel(make(())), r"shape \(\), expected"),
    "integers": (replace_kernel(make((5, 1, 4), "i4")), "is int32, expected float32"),
    "text for numbers": (replace_kernel(make((5, 1, 4), "S4")), "expected float32"),
    "NaN": (set_kernel(np.nan), "holds NaN or infinite values"),
    "infinity": (set_kernel(np.inf), "holds NaN or infinite values"),
    "no weights": (edit_file(lambda file: file.pop("model_weights") and None), "no '/model_w"),
    "missing layer": (edit_file(lambda file: file.__delitem__("model_weights/conv1")), "no '/mod"),
    "missing weight": (edit_file(lambda file: file.__delitem__(KERNEL)), "no '/model_weights/c"),
    "group for a weight": (
        replace_kernel(lambda group, name: group.create_group(name)),
        "is a group, expected a dataset",
    ),
    "dataset for a group": (name_weights("conv1/bias/kernel", "conv1/bias"), "is a dataset, exp"),
    "fewer weights": (name_weights("conv1/kernel"), r"expected \['bias', 'kernel'\]"),
    "extra weight": (name_weights("conv1/kernel", "conv1/bias", "conv1/x"), "holds the weights"),
    "weight twice": (name_weights("conv1/kernel", "bias", "conv1/bias"), "holds the weights"),
    "path out of the layer": (name_weights("../kernel", "conv1/bias"), r"no '.*/conv1/\.\.' in"),
    "weight names are numbers": (
        edit_file(lambda file: file["model_weights/conv1"].attrs.create("weight_names", [1, 2])),
        "is not a list of names",
    ),
    # Meta data.
    "meta is a list": (
        edit_file(lambda file: file.attrs.create("speech_meta", "[1]")),
        "expected a JSON object",
    ),
    "meta too big": (
        edit_file(lambda file: file.attrs.create("speech_meta", '"' + "x" * (1 << 20) + '"')),
        "'speech_meta' is 1,048,578 bytes, expected at most 1,048,576",
    ),
}
