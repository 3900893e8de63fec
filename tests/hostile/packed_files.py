"""Attacks by .icse files: damage, and forgeries whose checksums agree (docs/format.md)."""

import json
import struct
import zlib

import numpy as np

from benchmarks.trials.mutation import deflated, sealed, sections_of
from speech.modelfile import icse
from tests import graph_files, recurrent_files
from tests.builders import TINY, WAVEFORM_META, clustered, conv2d, graph
from tests.strange_networks import add, causal, dense, padded, permute

SAMPLED = 300


def good():
    """Returns the bytes of a valid file."""
    return icse.pack(clustered(np.random.default_rng(0), widths=(1, 5, 4, 1)), WAVEFORM_META)


def numbered(attacks):
    for index, (name, data) in enumerate(attacks):
        yield name, f"{index:04}.icse", data


def flipped(folder):
    """Each byte of the first 100 and of the last 10, and a sample of the others."""
    whole = good()
    rng = np.random.default_rng(1)
    places = {*range(100), *range(len(whole) - 10, len(whole)),
              *map(int, rng.integers(100, len(whole), SAMPLED))}  # fmt: skip

    def attacks():
        for place in sorted(places):
            data = bytearray(whole)
            data[place] ^= 1 << int(rng.integers(8))
            yield f"byte {place}", bytes(data)

    yield from numbered(attacks())


def truncated(folder):
    """Cut at every 1 % of its length, and a byte too short and too long."""
    whole = good()
    cuts = [(f"{percent} %", whole[: len(whole) * percent // 100]) for percent in range(1, 100)]
    yield from numbered([*cuts, ("a byte", whole[:-1]), ("a byte more", whole + b"\0")])


def forged(folder):
    """Lengths, counts and settings that lie, under checksums that agree."""
    whole = good()

    def edit(index, place, value):
        payloads = sections_of(whole)
        payloads[index][place : place + len(value)] = value
        return sealed(payloads, whole[-4:])

    attacks = [(f"section {index} of {length} bytes", section_length(whole, index, length))
               for index in range(4) for length in (0, 1, 1 << 28, (1 << 35) - 1)]  # fmt: skip
    for kernel in (2, 3, 4):
        for place in range(8):
            for value in (0, 5, 127, 255):
                data = edit(kernel, place, bytes([value]))
                if data != whole:
                    attacks.append((f"byte {place} of kernel {kernel} is {value}", data))
    for cut in (1, 10, 100):
        payloads = sections_of(whole)
        payloads[2] = payloads[2][:-cut]
        attacks.append((f"kernel short by {cut}", sealed(payloads, whole[-4:])))
    payloads = sections_of(whole)
    payloads[2] += bytes(1000)
    attacks.append(("kernel too long", sealed(payloads, whole[-4:])))
    rng = np.random.default_rng(2)
    for number in range(20):
        payloads = sections_of(whole)
        payloads[2][20:] = rng.bytes(len(payloads[2]) - 20)
        attacks.append((f"noise for indices {number}", sealed(payloads, whole[-4:])))
    attacks.append(("a section less", sealed(sections_of(whole)[:-1], whole[-4:])))
    attacks.append(("a section more", sealed([*sections_of(whole), b"x"], whole[-4:])))
    attacks.append(("other checksum", whole[:-4] + b"\0\0\0\0"))
    attacks.append(("NaN", edit(1, 0, b"\2" + struct.pack("<4f", *[np.nan] * 4))))
    attacks.append(("version 2", whole[:5] + b"\2" + whole[6:]))
    yield from numbered(attacks)


def section_length(whole, index, length):
    """Returns the file with another length in front of a section."""
    payloads = sections_of(whole)
    start = len(sealed(payloads[:index], b""))
    rest = sealed(payloads[index:], whole[-4:])[6:]
    varint = bytearray()
    for _ in range(4):
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length & 0x7F)
    skip = next(place for place, byte in enumerate(rest) if byte < 0x80) + 1
    return whole[:start] + bytes(varint) + rest[skip:]


def bombs(folder):
    """Headers that unpack to much, layers that call for much, deep and foreign configurations."""
    whole = good()
    source = ["InputLayer", {"name": "i", "batch_shape": [None, 8192]}]

    def dense(name, units):
        return ["Dense", {"name": name, "units": units, "activation": "relu", "use_bias": False}]

    def header(text):
        return sealed([deflated(text), *sections_of(whole)[1:]], whole[-4:])

    def of(layers, meta=None):
        return header(json.dumps({"layers": layers, "meta": meta or {}}).encode())

    def zeros(layers, padding):
        text = json.dumps({"layers": layers, "meta": {}}).encode()
        kernels = [b"\0"] * (len(layers) - 1)
        return sealed([deflated(text), b"", *kernels], bytes(4)) + bytes(padding)

    yield from numbered([
        ("spaces, 64 MB", header(b" " * (64 << 20))),
        ("header is noise", sealed([b"\xff" * 100, *sections_of(whole)[1:]], whole[-4:])),
        ("lists, 2 MB", header(b"[" + b"[]," * 690_000 + b"[]]")),
        ("objects, 2 MB", header(b"[" + b"{}," * 690_000 + b"{}]")),
        *((f"{depth:,} deep", header(b"[" * depth + b"]" * depth))
          for depth in (60, 900, 990, 1100, 500_000)),
        *((f"meta {depth:,} deep", of([source, dense("d", 2)], nested(depth)))
          for depth in (60, 600)),
        ("meta with 1e999", header(b'{"layers": [], "meta": {"a": 1e999}}')),
        ("256 MiB of zeros", of([source, dense("d", 8192)])),
        ("512 MiB of zeros in 2 MB", zeros([source, dense("a", 8192), dense("b", 8192)], 2 << 20)),
        ("65536 x 65536", of([["InputLayer", {"name": "i", "batch_shape": [None, 65536]}],
                              dense("d", 65536)])),
        ("lambda", of([source, ["Lambda", {"name": "x", "function": ["YQ==", None, None]}]])),
        ("nested model", of([source, ["Sequential", {"name": "x", "layers": []}]])),
        ("module", of([source, ["ReLU", {"name": "x", "module": "os"}]])),
        ("rows without end", rows(60_000)),
        ("65536 rows of a column", rows(65_536)),
        ("800 rows of 16384 symbols of 256 values", symbols(800, 16_384, 256)),
        ("3200 rows of 4096 symbols of 128 values", symbols(3200, 4096, 128)),
        ("9000 rows, each of few symbols of 256 values", symbols(9000, 300, 256)),
    ])  # fmt: skip
    for channels in (1, 16):  # 32 bits count the floats of the first, not of the second
        yield f"a stream of {channels} channels", f"stream{channels}.icse", stream(channels)


def skips(folder):
    """Headers whose graphs are none, or whose shapes do not fit; conventions that are missing."""
    whole = icse.pack(graph_files.small_graph(), graph_files.META)
    _, *sections = sections_of(whole)
    header = json.loads(zlib.decompress(bytes(sections_of(whole)[0]), -15))
    place = {entry[1]["name"]: index for index, entry in enumerate(header["layers"])}

    def spoil(change):
        spoilt = json.loads(json.dumps(header))
        change(spoilt)
        text = json.dumps(spoilt, separators=(",", ":")).encode()
        return sealed([deflated(text), *sections], whole[-4:])

    def steps(name, value):
        return spoil(lambda h: h["layers"][place[name]].insert(2, value))

    def adds(count, inputs):
        def change(h):
            for index in range(count):
                h["layers"].insert(place["join"], ["Add", {"name": f"a{index}"}, inputs])

        return spoil(change)

    def settings(layer, **changes):
        return spoil(lambda h: h["layers"][place[layer]][1].update(changes))

    yield from numbered([
        *((f"steps {value!r:.30}", steps("time", value)) for value in (
            [], [0], [-1], [6], [1 << 40], [True], [1.0], ["pad"], [None], [[1]], 1, None, "1",
            {"1": 1}, [1, 1])),
        *((f"{count} inputs", steps("sum", [1] * count)) for count in (17, 50_000)),
        ("input reads", steps("features", [1])),
        ("skip of other channels", steps("sum", [10, 1])),
        ("skip of another time", steps("sum", [6, 1])),
        ("skip of one", steps("sum", [1])),
        ("layer nobody reads", steps("sum", [7, 7])),
        ("an entry of four", spoil(lambda h: h["layers"][3].extend([[1], [1]]))),
        ("an entry of one", spoil(lambda h: h["layers"][3].pop())),
        ("name twice", settings("act", name="norm")),
        ("name of a list", settings("act", name=["norm"])),
        ("a thousand adds", adds(1000, [1, 1])),
        ("900 adds and a skip too far", adds(900, [1, 910])),
        ("permuted time", settings("in", dims=[2, 3, 1])),
        ("padding without end", settings("pad", padding=[[65_536, 65_536], [65_536, 65_536]])),
        ("padding of time only", settings("pad", padding=[[6, 0], [0, 0]])),
        ("stride over time", settings("encoder", strides=[2, 2])),
        ("kernel of 512 MiB", settings("time", kernel_size=[8192, 1024], padding="same")),
        *((f"no {key}", spoil(lambda h, key=key: h["meta"].pop(key)))
          for key in ("stft", "power", "features", "sample_rate_hz")),
        ("power of 2", spoil(lambda h: h["meta"].update(power=2))),
        ("frame of 64", spoil(lambda h: h["meta"]["stft"].update(frame=64))),
    ])  # fmt: skip


def recurrent(folder):
    """Headers with recurrent layers whose states, directions or weights are others."""
    rng = np.random.default_rng(7)
    whole = icse.pack(recurrent_files.small_network(rng), {})
    _, *sections = sections_of(whole)
    header = json.loads(zlib.decompress(bytes(sections_of(whole)[0]), -15))
    place = {entry[1]["name"]: index for index, entry in enumerate(header["layers"])}

    def settings(name, inner=False, **changes):
        spoilt = json.loads(json.dumps(header))
        config = spoilt["layers"][place[name]][1]
        (config["layer"]["config"] if inner else config).update(changes)
        text = json.dumps(spoilt, separators=(",", ":")).encode()
        return sealed([deflated(text), *sections], whole[-4:])

    yield from numbered([
        ("more units", settings("lstm", units=5)),
        ("units of 512 MiB", settings("lstm", units=5_700)),
        ("65,536 units", settings("lstm", units=65_536)),
        ("no sequence", settings("lstm", return_sequences=False)),
        ("stateful", settings("gru", stateful=True)),
        ("another bias", settings("gru", reset_after=False)),
        ("backwards", settings("rnn", go_backwards=True)),
        ("merged otherwise", settings("both", merge_mode="sum")),
        ("not merged", settings("both", merge_mode=None)),
        ("fewer units inside", settings("both", True, units=1)),
        ("stateful inside", settings("sum", True, stateful=True)),
        ("nothing wrapped", settings("both", layer=None)),
        ("cut kernel", sealed([*sections_of(whole)[:3], b"", *sections_of(whole)[4:]],
                              whole[-4:])),
        ("a kernel too few", sealed(sections_of(whole)[:-1], whole[-4:])),
    ])  # fmt: skip


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def rows(count):
    """Returns a file whose indices are entropy-coded in many rows."""
    layers = [["InputLayer", {"name": "i", "batch_shape": [None, count]}]]
    for name, units in (("a", 2), ("b", count), ("c", 2)):
        settings = {"name": name, "units": units, "activation": "relu", "use_bias": False}
        layers.append(["Dense", settings])
    book = bytes([1, 0]) + struct.pack("<2f", 0.25, 0.5)
    kernel = bytes([icse.CODED, icse.MASK_NONE]) + book
    kernel += struct.pack("<2b3H", 1, 1, 1, 2, 3) + np.random.default_rng(0).bytes(4000)
    text = json.dumps({"layers": layers, "meta": {}}).encode()
    return sealed([deflated(text), b"", kernel, kernel, kernel], struct.pack("<I", zlib.crc32(b"")))


def stream(channels):
    """Returns a file of a valid network that keeps many frames, each with many bands of zeros."""
    layers = graph(
        conv2d("kept", "input", 3, channels, strides=[1, 64]),
        padded("pad", "kept", 63 * 512),
        causal("time", "pad", channels, 1, 64, 512),
        conv2d("bands", "kept", channels, 1, (1, 8191)),
        add("sum", "time", "bands"),
        permute("turned", "sum"),
        dense("wide", "turned", 4, 256),
        permute("back", "wide"),
        conv2d("mask", "back", 1, 2),
    )
    return icse.pack(layers, TINY.meta())


def symbols(num_rows, num_columns, num_values):
    """Returns a file whose indices choose among many values: each symbol weighs all of them."""
    layers = [
        ["InputLayer", {"name": "i", "batch_shape": [None, num_rows]}],
        ["Dense", {"name": "d", "units": num_columns, "activation": "relu", "use_bias": False}],
    ]
    book = bytes([num_values - 1, icse.BOOK_FP32])
    book += np.arange(1, num_values + 1, dtype="<f4").tobytes()
    kernel = bytes([icse.CODED, icse.MASK_NONE]) + book
    kernel += struct.pack("<2b3H", 0, 0, 1, 2, 3) + bytes(4000)
    # Zeros are the first symbol, of which a good model needs next to no bits.
    padding = "x" + np.random.default_rng(0).bytes(200_000).hex()
    text = json.dumps({"layers": layers, "meta": {"padding": padding}}).encode()
    return sealed([deflated(text), b"", kernel], struct.pack("<I", zlib.crc32(b"")))


FAMILIES = {
    family.__name__: family for family in (flipped, truncated, forged, skips, recurrent, bombs)
}
