"""Attacks by .h5 files: code, graphs, links, storage, types, texts, and forged HDF5."""

import base64
import json
import marshal
import struct

import h5py
import numpy as np

from speech.modelfile.exam import model_config_of
from speech.modelfile.h5 import write_model_file
from speech.modelfile.spec import LayerSpec
from tests import graph_files, recurrent_files
from tests import model_files as exam
from tests.builders import small_layers

KERNEL = exam.KERNEL
UNDEFINED = b"\xff" * 8


def good(folder):
    """Writes a valid file, and returns its path."""
    path = folder / "good.h5"
    write_model_file(path, small_layers(), {"kind": "waveform", "sample_rate_hz": 16_000})
    return path


def spoilt(folder, attacks, write=good):
    """Applies each of {name: what spoils a path} to a valid file."""
    whole = write(folder).read_bytes()
    (folder / "good.h5").unlink()
    for index, (name, spoil) in enumerate(attacks.items()):
        path = folder / f"{index:03}.h5"
        path.write_bytes(whole)
        spoil(path)
        yield name, path.name, None


def payload(marker):
    """Returns code that makes a file, as marshalled by Python and encoded as Keras does."""
    code = compile(f"open({str(marker)!r}, 'w').close()", "<payload>", "exec")
    return base64.b64encode(marshal.dumps(code)).decode()


def known_from_the_exam(folder):
    """Everything that tests/model_files.py says is refused for a reason of its own."""
    yield from spoilt(folder, {name: spoil for name, (spoil, _) in exam.HOSTILE.items()
                               if name != "folder"})  # fmt: skip


def code(folder):
    """Payloads in every place where Keras, old or new, deserialises an object."""
    text = payload(folder.parent / "marker")
    old = {"function": [text, None, None], "function_type": "lambda", "module": "__main__"}
    new = {"class_name": "__lambda__", "config": {"code": text, "defaults": None, "closure": None}}
    call = {"module": "os", "class_name": "function", "config": "system", "registered_name": "f"}
    lambdas = {"lambda, Keras 2": old, "lambda, Keras 3": {"function": new},
               "lambda by name": {"function": "os.system", "function_type": "f"}}  # fmt: skip
    attacks = {
        name: exam.insert_layer("Lambda", config={"name": "extra", **config})
        for name, config in lambdas.items()
    }
    for key in ("kernel_initializer", "bias_constraint", "kernel_regularizer"):
        for what, value in (("lambda", new), ("function", call)):
            attacks[f"{what} as {key}"] = exam.edit_layer(1, **{key: value})
    attacks |= {
        "lambda as activation": exam.edit_layer(8, activation=new),
        "function as activation": exam.edit_layer(8, activation=call),
        "lambda in an unknown setting": exam.edit_layer(1, extra=new),
        "lambda as dtype": exam.edit_layer(1, dtype=new),
        "saved model": exam.insert_layer(
            "TFSMLayer", config={"name": "x", "filepath": "https://example.org/evil"}
        ),
        "torch module": exam.insert_layer("TorchModuleWrapper", config={"module": text}),
        "unsafe switch": exam.insert_layer(
            "function", module="keras.config", config="enable_unsafe_deserialization"
        ),
        "file from the web": exam.insert_layer(
            "function", module="keras.utils", config={"name": "get_file", "origin": "x"}
        ),
        "lookup of a file": exam.insert_layer(
            "StringLookup", config={"name": "x", "vocabulary": "/etc/passwd"}
        ),
    }
    yield from spoilt(folder, attacks)


def graph(folder):
    """Classes, names, modules and graphs that are not on the list."""
    nest = {"name": "inner", "layers": []}
    names = ("os>system", "builtins>eval", "posix>system", "keras>Lambda", "../x", 7, ["Lambda"])
    attacks = {f"registered as {name}": exam.insert_layer("ReLU", registered_name=name)
               for name in names}  # fmt: skip
    attacks |= {f"class {name}": exam.insert_layer(name) for name in (
        "os>system", "eval", "SeparableConv2D", "conv1d", "Conv1D ", "Conv1D\0", "__class__", "",
        None, 7, "MultiHeadAttention", "Wrapper", "TimeDistributed", "RNN", "icse>x")}  # fmt: skip
    attacks |= {f"module {name}": exam.insert_layer("ReLU", module=name) for name in (
        "os", "builtins", "posix", "subprocess", "keras.layers;os", "keras\n", "keras..os",
        "kerаs", 7, ["keras"], {"keras": 1}, "tensorflow.keras", "speech.net.layers")}  # fmt: skip
    attacks |= {
        "model in model": exam.insert_layer("Model", config=nest),
        "functional in sequential": exam.insert_layer("Functional", config=nest),
        "sequential in sequential": exam.insert_layer("Sequential", config=nest),
        "sequential in sequential in ...": exam.edit_config(nested(40)),
        "a layer a thousand times": exam.edit_config(lambda model, layers: layers.extend(
            dict(layers[3], config=dict(layers[3]["config"], name=f"x{i}"))
            for i in range(1000))),
        "same name twice": exam.edit_layer(3, name="norm1"),
        "name of another's weights": exam.edit_layer(3, name="conv1"),
        "custom objects": exam.edit_config(
            lambda model, layers: model.update(custom_objects={"f": {"module": "os"}})),
        "config is its own text": exam.edit_file(
            lambda file: file.attrs.create("model_config", json.dumps("{}"))),
    }  # fmt: skip
    yield from spoilt(folder, attacks)


def skips(folder):
    """Networks with skips: graphs that are none, shapes that do not fit, bombs of shapes."""

    def deep(depth, key="args"):
        value = graph_files.tensor("pad")
        for _ in range(depth):
            value = [value]
        return graph_files.calls("time", {"args": [], "kwargs": {}, key: value})

    def ladder(config, layers):
        """Each layer reads all that it can of the layers before: paths without number."""
        names = ["act"]
        for index in range(900):
            name = f"add{index}"
            config["layers"].append({
                "class_name": "Add", "config": {"name": name}, "name": name,
                "inbound_nodes": [graph_files.nodes(*(names * 16)[-16:])],
            })  # fmt: skip
            names.append(name)
        layers["join"]["inbound_nodes"] = [graph_files.nodes(names[-1], "sum", "pad")]

    def long_cycle(config, layers):
        circle = []
        for index in range(900):
            name, before = f"act{index}", f"act{(index or 900) - 1}"
            circle.append({
                "class_name": "Activation", "config": {"name": name, "activation": "relu"},
                "name": name, "inbound_nodes": [graph_files.nodes(before)],
            })  # fmt: skip
        config["layers"] += circle

    def doubling(config, layers):
        """Concatenates double the channels until nobody could hold them."""
        last = "act"
        for index in range(200):
            name = f"double{index}"
            config["layers"].append({
                "class_name": "Concatenate", "config": {"name": name, "axis": -1}, "name": name,
                "inbound_nodes": [graph_files.nodes(last, last)],
            })  # fmt: skip
            last = name
        layers["join"]["inbound_nodes"] = [graph_files.nodes(last, "sum")]

    def stretched(config, layers):
        """Transposed convolutions, each of one weight, make 64 bands of each."""
        settings = graph_files.convolution(1, (1, 1), strides=[1, 64])
        del settings["dilation_rate"]
        last = "act"
        for index in range(100):
            name = f"stretch{index}"
            config["layers"].append({
                "class_name": "Conv2DTranspose", "config": {"name": name, **settings},
                "name": name, "inbound_nodes": [graph_files.nodes(last)],
            })  # fmt: skip
            last = name
        layers["join"]["inbound_nodes"] = [graph_files.nodes(last, "sum")]

    edit, calls, sets = graph_files.edit, graph_files.calls, graph_files.sets
    attacks = {name: spoil for name, (spoil, _) in graph_files.HOSTILE.items()}
    attacks |= {f"call {depth} deep": deep(depth) for depth in (3, 30, 60, 900)}
    attacks |= {f"options {depth} deep": deep(depth, "kwargs") for depth in (1, 30, 900)}
    attacks |= {
        "a thousand adds": graph_files.adds(1000),
        "900 adds without an end": edit(ladder),
        "900 layers in a circle": edit(long_cycle),
        "channels double 200 times": edit(doubling),
        "bands grow by 64, 100 times": edit(stretched),
        "20,000 inputs": graph_files.reads("sum", *["act"] * 20_000),
        "60,000 calls": calls("time", *[[["pad", 0, 0]]] * 30_000),
        "a name of a megabyte": graph_files.reads("time", "x" * (1 << 20)),
        "a name that drives the terminal": graph_files.reads("time", "\x1b[2J"),
        "no name": calls("time", [[None, 0, 0]]),
        "a call that is a number": calls("time", 7),
        "calls are an object": edit(
            lambda config, layers: layers["time"].update(inbound_nodes={"0": []})),
        "inputs are an object": graph_files.ends(input_layers={"x": ["features", 0, 0]}),
        "outputs deep in lists": graph_files.ends(output_layers=[[[["mask", 0, 0]]]]),
        "no nodes": edit(lambda config, layers: layers["time"].pop("inbound_nodes")),
        "no name in the graph": edit(lambda config, layers: layers["time"].pop("name")),
        "permute of a thousand axes": sets("in", dims=list(range(1, 1001))),
        "permute of none": sets("in", dims=[]),
        "permute of text": sets("in", dims="132"),
        "reshape to a giant": graph_files.inserts(
            "Reshape", "time", target_shape=[1 << 40, 1 << 40]),
        "upsampling": graph_files.inserts("UpSampling2D", "time", size=[1 << 20, 1 << 20]),
        "lambda between": graph_files.inserts("Lambda", "time", function="os.system"),
        "padding of 2^63": sets("pad", padding=[[0, 0], [1 << 63, 0]]),
        "padding of true": sets("pad", padding=[[True, 0], [0, 0]]),
        "padding three times": sets("pad", padding=[[1, 0], [0, 0], [0, 0]]),
        "padding of lists": sets("pad", padding=[[[[[1]]]], [0, 0]]),
        "strides of 0": sets("encoder", strides=[1, 0]),
        "a kernel of 8192 x 8192": sets("time", kernel_size=[8192, 8192], padding="same"),
        "dilated beyond all bands": sets("encoder", dilation_rate=[1, 1024], strides=[1, 1],
                                         padding="valid"),
        "meta of another kind of list": graph_files.meta(features=[["real"]] * 3),
        "power of 1e308": graph_files.meta(power=1e308),
        "frame of 2^20": graph_files.meta(stft={**graph_files.META["stft"], "frame": 1 << 20}),
        "frame of true": graph_files.meta(stft={**graph_files.META["stft"], "frame": True}),
        "frame of 2^70": graph_files.meta(stft={**graph_files.META["stft"], "frame": 1 << 70}),
    }  # fmt: skip
    yield from spoilt(folder, attacks, lambda f: graph_files.write_graph(f / "good.h5"))


def recurrent(folder):
    """Recurrent layers: states, directions, wrapped layers, units without end, spoilt weights."""
    attacks = {name: spoil for name, (spoil, _) in recurrent_files.HOSTILE.items()}
    attacks |= {
        "a wrapped lambda": recurrent_files.wraps(
            config={"function": [payload(folder.parent / "marker"), None, None]}),
        "a backward lambda": recurrent_files.sets(
            2, backward_layer={"class_name": "__lambda__", "config": {"code": "x"}}),
        "wrapped 22 deep": exam.edit_config(lambda model, layers: layers[2]["config"].update(
            layer=recurrent_files.nested_layer(layers[2]["config"]["layer"], 22))),
        "a thousand wrapped": exam.edit_config(lambda model, layers: layers.extend(
            {**layers[2], "config": {**layers[2]["config"], "name": f"b{i}"}}
            for i in range(1000))),
    }  # fmt: skip
    yield from spoilt(folder, attacks, lambda f: recurrent_files.write_small(f / "good.h5"))


def nested(depth):
    def change(model, layers):
        inner = layers[1]
        for level in range(depth):
            inner = {"class_name": "Sequential", "config": {"name": f"s{level}", "layers": [inner]}}
        layers.insert(2, inner)

    return change


def links(folder):
    """Soft, dangling, circular and external links; hard links that make circles."""

    def group(make):
        def change(file):
            file.move("model_weights/conv1", "elsewhere")
            make(file["model_weights"], file)

        return exam.edit_file(change)

    def put(link):
        return lambda groups, file: groups.__setitem__("conv1", link)

    def circle(groups, file):
        groups["conv1"] = groups

    def long_way(file):
        file[KERNEL.rpartition("/")[0]]["conv1"] = file[KERNEL.rpartition("/")[0]]
        names = ["conv1/" * 2000 + "kernel", "conv1/bias"]
        file["model_weights/conv1"].attrs["weight_names"] = np.array(names, "S")

    def kernel(path):
        return exam.replace_kernel(exam.link(h5py.SoftLink, path))

    yield from spoilt(folder, {
        "soft": kernel("/model_weights/dense/dense/kernel"),
        "dangling": kernel("/nowhere"),
        "to itself": kernel("/" + KERNEL),
        "relative": kernel("../conv1/kernel"),
        "to a file": exam.replace_kernel(exam.link(h5py.ExternalLink, "/etc/passwd", "/")),
        "to itself as a file": exam.replace_kernel(exam.link(h5py.ExternalLink, "000.h5", KERNEL)),
        "group, soft": group(put(h5py.SoftLink("/elsewhere"))),
        "group, external": group(put(h5py.ExternalLink("x.h5", "/x"))),
        "group in a circle": group(circle),
        "kernel is its own group": exam.replace_kernel(
            lambda group, name: group.__setitem__(name, group)),
        "long way round a circle": exam.edit_file(long_way),
        "kernel is the root": exam.replace_kernel(
            lambda group, name: group.__setitem__(name, group.file["/"])),
        "kernel is a type": exam.replace_kernel(
            lambda group, name: group.__setitem__(name, np.dtype("f4"))),
    })  # fmt: skip


def storage(folder):
    """Data elsewhere, shapes beyond all memory, bombs that unpack."""

    def dataset(shape, dtype="f4", **options):
        return exam.replace_kernel(
            lambda group, name: group.create_dataset(name, shape, dtype, **options))  # fmt: skip

    def bomb(path):
        with h5py.File(path, "a") as file:
            del file[KERNEL]
            group = file["model_weights/conv1/conv1"]
            data = group.create_dataset("kernel", (1 << 26,), "f4", compression="gzip",
                                        chunks=(1 << 20,))  # fmt: skip
            data[: 1 << 22] = 0

    def shared(path):
        """1000 layers that all call for the same 256 KiB of the file."""
        entries = [
            {"class_name": "InputLayer", "config": {"name": "i", "batch_shape": [None, 256]}}
        ]
        dense = {"units": 256, "activation": "linear", "use_bias": False}
        with h5py.File(path, "w") as file:
            groups = file.create_group("model_weights")
            kernel = groups.create_dataset("kernel", data=np.ones((256, 256), "f4"))
            for index in range(999):
                name = f"d{index}"
                entries.append({"class_name": "Dense", "config": {"name": name, **dense}})
                groups.create_group(name)["kernel"] = kernel
                groups[name].attrs["weight_names"] = np.array(["kernel"], "S")
            model = {"class_name": "Sequential", "config": {"name": "m", "layers": entries}}
            file.attrs["model_config"] = json.dumps(model)

    yield from spoilt(folder, {
        "external": exam.replace_kernel(exam.external_storage),
        "virtual": exam.replace_kernel(exam.virtual_dataset),
        "chunked": dataset((5, 1, 4), chunks=(1, 1, 1)),
        "gzip": dataset((5, 1, 4), compression="gzip"),
        "lzf, shuffled": dataset((5, 1, 4), compression="lzf", shuffle=True, fletcher32=True),
        "2^40 values": dataset((1 << 40,)),
        "2^40 values, chunked": dataset((1 << 40,), chunks=(1 << 20,)),
        "2^60 values in three axes": dataset((1 << 20,) * 3, chunks=(64,) * 3),
        "resizable": dataset((5, 1, 4), maxshape=(None, 1, 4)),
        "right shape, never written": dataset((5, 1, 4)),
        "bomb": bomb,
        "a thousand layers share a kernel": shared,
        "32 axes": exam.replace_kernel(exam.make((1,) * 32)),
        "no values": exam.replace_kernel(exam.make((0, 1, 4))),
    })  # fmt: skip


def types(folder):
    """Weights of every type that HDF5 has but float32."""
    shape = (5, 1, 4)
    compound = np.zeros(shape, [("a", "f4"), ("b", "f4")])
    free = h5py.vlen_dtype(np.float32)
    dtypes = {
        "float16": "f2", "float64": "f8", "int8": "i1", "int32": "i4", "uint64": "u8",
        "bool": "?", "complex64": "c8", "complex128": "c16", "text": "S4", "opaque": "V4",
        "enum": h5py.enum_dtype({"a": 1}), "references": h5py.ref_dtype,
        "region references": h5py.regionref_dtype, "free strings": h5py.string_dtype(),
        "free lists": free, "array": np.dtype(("f4", (2,))), "compound": compound.dtype,
    }  # fmt: skip

    def of(dtype):
        return exam.replace_kernel(
            lambda group, name: group.create_dataset(name, shape, dtype))  # fmt: skip

    def bit_field(group, name):
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(group.id, name.encode(), h5py.h5t.STD_B32LE, space)

    def odd_float(group, name):
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_ebias(100)
        h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape))

    def null_space(group, name):
        group.create_dataset(name, data=h5py.Empty("f4"))

    attacks = {name: of(dtype) for name, dtype in dtypes.items()}
    attacks |= {name: exam.replace_kernel(make) for name, make in (
        ("bit field", bit_field), ("odd float", odd_float), ("no space", null_space))}  # fmt: skip
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("-infinity", -np.inf)):
        attacks[name] = exam.set_kernel(value)
    for shape_of in ((4, 1, 5), (5, 4), (20,), (5, 1, 4, 1), (5, 1, 3), ()):
        attacks[f"shape {shape_of}"] = exam.replace_kernel(exam.make(shape_of))
    yield from spoilt(folder, attacks)


def texts(folder):
    """Attributes that are huge, deep or not what they seem."""

    def config(text):
        def change(file):
            file.attrs.create("model_config", text, dtype=h5py.string_dtype())

        return exam.edit_file(change)

    def meta(text):
        return exam.edit_file(lambda file: file.attrs.create("speech_meta", text))

    def many_names(file):
        names = np.array(["conv1/kernel"] * 100_000, object)
        file["model_weights/conv1"].attrs.create(
            "weight_names", names[:4000], dtype=h5py.string_dtype()
        )

    def dense_attributes(path):
        with h5py.File(path, "w", libver="latest") as file:
            for index in range(200):
                file.attrs[f"a{index}"] = "x" * 100
            file.attrs["model_config"] = "{}"

    deep = {f"{depth:,} deep": config("[" * depth + "]" * depth)
            for depth in (60, 900, 990, 1100, 5000, 1_000_000)}  # fmt: skip
    objects = {f"{depth:,} objects deep": config('{"config":' * depth + "1" + "}" * depth)
               for depth in (60, 900, 990, 1100, 50_000)}  # fmt: skip
    modules = '{"class_name": "Sequential", "config": {"layers": ' + "[" * 940 + "]" * 940 + "}}"
    yield from spoilt(folder, deep | objects | {
        "deep below": config(modules),
        "a list of lists, 4 MB": config("[" + "[]," * 1_390_000 + "[]]"),
        "a list of objects, 4 MB": config("[" + "{}," * 1_390_000 + "{}]"),
        "5 MB": config(" " * 5_000_000),
        "64 MB": config('{"a": "' + "x" * (64 << 20) + '"}'),
        "a number of 10^5 digits": config('{"class_name": ' + "9" * 100_000 + "}"),
        "1e999": config('{"class_name": 1e999}'),
        "half a surrogate": config('{"class_name": "\\ud800", "config": {"layers": []}}'),
        "no text": config(""),
        "NUL": exam.edit_file(lambda file: file.attrs.create(
            "model_config", np.bytes_(b'{"class_name"\0: 1}'))),
        "UTF-16": exam.edit_file(lambda file: file.attrs.create(
            "model_config", np.void('{"a": 1}'.encode("utf-16")))),
        "meta, 1e999": meta('{"sample_rate_hz": 1e999}'),
        "meta, 1,000 deep": meta('{"a":' * 1000 + "1" + "}" * 1000),
        "meta, 2 MB": meta('{"a": "' + "x" * (2 << 20) + '"}'),
        "meta is a number": meta(7),
        "meta is text": meta('"x"'),
        "4,000 names": exam.edit_file(many_names),
        "new format": dense_attributes,
    })  # fmt: skip


def truncated(folder):
    """A valid file cut at every 1 % of its length, and by a byte."""
    whole = good(folder).read_bytes()
    (folder / "good.h5").unlink()
    for percent in range(100):
        yield f"{percent} %", f"{percent:03}.h5", whole[: len(whole) * percent // 100]
    yield "a byte", "byte.h5", whole[:-1]


def structures(folder):
    """The bytes of HDF5 forged by hand: circles, sizes and addresses that lie."""
    path = good(folder)
    whole = path.read_bytes()
    path.unlink()
    tree, node, heap, strings = (whole.index(mark) for mark in (b"TREE", b"SNOD", b"HEAP", b"GCOL"))
    root = struct.unpack_from("<Q", whole, 64)[0]
    child = tree + 32  # first child of the root's index
    word = struct.Struct("<Q").pack
    half = struct.Struct("<H").pack
    edits = {
        "index is its own child": [(tree + 5, b"\1"), (child, word(tree))],
        "index of 255 levels": [(tree + 5, b"\xff")],
        "index of 65535 children": [(tree + 6, half(65535))],
        "index far away": [(child, word(1 << 62))],
        "index nowhere": [(child, UNDEFINED)],
        "index is the file": [(child, word(0))],
        "node of 65535 entries": [(node + 6, half(65535))],
        "entry's name far away": [(node + 8, word(1 << 40))],
        "entry's name before the file": [(node + 8, UNDEFINED)],
        "entry is the root": [(node + 16, word(root))],
        "entry is the superblock": [(node + 16, word(0))],
        "names of 2^63 bytes": [(heap + 8, word(1 << 63))],
        "names nowhere": [(heap + 24, UNDEFINED)],
        "header of 2^32 bytes": [(root + 8, b"\xff" * 4)],
        "header of 65535 messages": [(root + 2, half(65535))],
        "header of no bytes": [(root + 8, bytes(4))],
        "header of a new version": [(root, b"OHDR\2\0")],
        "root nowhere": [(64, UNDEFINED)],
        "root is the superblock": [(64, word(0))],
        "end of the file lies": [(40, word(1 << 40))],
        "data starts elsewhere": [(24, word(512))],
        "addresses of 4 bytes": [(13, b"\4")],
        "superblock 3": [(8, b"\3")],
        "strings of no bytes": [(strings + 8, word(0))],
        "strings of 2^63 bytes": [(strings + 8, word(1 << 63))],
        "string of 2^63 bytes": [(strings + 24, word(1 << 63))],
        "strings loop": [(strings + 16, bytes(16))],
    }
    for index, (name, changes) in enumerate(edits.items()):
        data = bytearray(whole)
        for place, value in changes:
            data[place : place + len(value)] = value
        yield name, f"{index:03}.h5", bytes(data)
    yield "continued in a circle", "circle.h5", continued_in_a_circle(whole, root)
    yield "a million strings", "strings.h5", a_million_strings(whole, strings)


def continued_in_a_circle(whole, root):
    """The root's header goes on in a block that goes on in itself."""
    data = bytearray(whole)
    block = len(data)
    go_on = struct.pack("<2HB3x2Q", 16, 16, 0, block, 24)
    data += go_on
    data[root + 2 : root + 4] = b"\xff\xff"
    data[root + 16 : root + 40] = go_on
    data[40:48] = struct.pack("<Q", len(data))
    return bytes(data)


def a_million_strings(whole, strings):
    """The strings move behind a million empty ones."""
    data = bytearray(whole)
    place, old = len(data), struct.pack("<Q", strings)
    empty = struct.pack("<2H4xQ", 9999, 0, 0)
    size = 16 + 1_000_000 * 16
    data += b"GCOL\1\0\0\0" + struct.pack("<Q", size) + empty * 1_000_000
    data = data.replace(old, struct.pack("<Q", place))
    data[40:48] = struct.pack("<Q", len(data))
    return bytes(data)


def steps(folder):
    """Short ways to long work: 900 layers whose groups are one, which takes long to look at."""
    num_layers = 900

    def shared(fill):
        """Spoils a chain of equal layers: ``fill(group, kernel)`` makes the group of them all."""
        layers = [
            LayerSpec("InputLayer", "i", {"batch_shape": [None, None, 1]}),
            *(LayerSpec("Conv1D", f"c{index}", one_tap()) for index in range(num_layers)),
        ]
        text = json.dumps(model_config_of(layers))

        def spoil(path):
            with h5py.File(path, "w") as file:
                file.attrs["model_config"] = text
                groups = file.create_group("model_weights")
                group = groups.create_group("c0")
                group["kernel"] = np.zeros((1, 1, 1), "f4")
                fill(group)
                for index in range(1, num_layers):
                    groups[f"c{index}"] = group

        return spoil

    def attributes(group):
        for index in range(3000):
            group.attrs[f"a{index:04}"] = np.float32(0)
        group.attrs["weight_names"] = np.array([b"kernel"])

    def names(group):
        group.attrs["weight_names"] = np.array([b""] * 9000 + [b"kernel"])

    def free_names(group):
        group.attrs["weight_names"] = ["a"] * 3000

    def long_way(group):
        attributes(group)
        group["x"] = group
        group.attrs["weight_names"] = np.array([b"x/" * 19 + b"kernel"])

    yield from spoilt(folder, {
        "an attribute behind many": shared(attributes),
        "a long header twenty times": shared(long_way),
        "names without end": shared(names),
        "names of free length": shared(free_names),
    })  # fmt: skip


def one_tap():
    return small_layers()[1].config | {
        "filters": 1, "kernel_size": 1, "use_bias": False, "activation": "linear"
    }  # fmt: skip


FAMILIES = {
    family.__name__: family
    for family in (known_from_the_exam, code, graph, skips, recurrent, links, storage, types, texts,
                   truncated, structures, steps)
}  # fmt: skip
