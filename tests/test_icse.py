"""The packed file: bit-exact round trips, its bytes as documented, hostile files."""

import dataclasses
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from quantization.kmeans import Codebooks, cluster_layers
from speech.modelfile import icse
from speech.modelfile.h5 import write_model_file
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFileError
from tests.builders import WAVEFORM_META, assert_same, clustered, network, small_layers

FORMAT = Path(__file__).parent.parent / "docs" / "format.md"


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("centroids", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("k", [2, 3, 16])
def test_round_trip_is_exact(k, centroids, entropy, rng):
    layers = clustered(rng, k, centroids)
    found = icse.unpack(icse.pack(layers, WAVEFORM_META, entropy=entropy))
    assert_same(layers, found.model.layers)
    assert found.model.meta == WAVEFORM_META


@pytest.mark.parametrize("entropy", [True, False])
def test_every_layer_class_and_weights_of_all_kinds(entropy):
    layers = small_layers()
    assert_same(layers, icse.unpack(icse.pack(layers, {}, entropy=entropy)).model.layers)


@pytest.mark.parametrize("case", ["zeros", "one value", "fp16", "stray zeros", "many values",
                                  "tiny", "huge", "all kept", "one kept"])  # fmt: skip
def test_kernels_of_all_kinds(case, rng):
    layers = list(network(rng, (1, 8, 8, 1)))
    kernel = layers[4].weights["kernel"]
    kernel[:] = {
        "zeros": np.zeros(kernel.shape),
        "one value": np.full(kernel.shape, 0.1),
        "fp16": kernel.astype("f2"),
        "stray zeros": rng.integers(-2, 3, kernel.shape) * 0.125,
        "many values": rng.integers(0, 300, kernel.shape) / 7,
        "tiny": rng.integers(-2, 3, kernel.shape) * 1e-45,
        "huge": rng.integers(-2, 3, kernel.shape) * 1.5e38,
        "all kept": rng.choice([0.3, -0.7], kernel.shape),
        "one kept": np.zeros(kernel.shape),
    }[case]
    if case == "one kept":
        kernel[:, 3, 3] = 0.25
    for entropy in (True, False):
        data = icse.pack(layers, WAVEFORM_META, entropy=entropy)
        assert_same(layers, icse.unpack(data).model.layers)


def test_dense_kernels(rng):
    def dense(name, rows, units):
        kernel = rng.choice([-0.5, 0.0, 0.25], (rows, units)).astype("f4")
        kernel[:, 3] = 0
        settings = {"units": units, "activation": "relu", "use_bias": False}
        return LayerSpec("Dense", name, settings, {"kernel": kernel})

    # More columns than a block.
    layers = [LayerSpec("InputLayer", "input", {"batch_shape": [None, 40]}),
              dense("a", 40, 5000), dense("b", 5000, 10)]  # fmt: skip
    found = icse.unpack(icse.pack(layers, {}))
    assert_same(layers, found.model.layers)
    assert set(found.codings.values()) == {"entropy-coded"}


def test_negative_zero_comes_back_as_zero(rng):
    layers = list(network(rng, (1, 4, 1)))
    layers[1].weights["kernel"][0] = -0.0
    back = icse.unpack(icse.pack(layers, WAVEFORM_META)).model.layers
    assert_array_equal(back[1].weights["kernel"], layers[1].weights["kernel"])
    assert not np.signbit(back[1].weights["kernel"][0]).any()


def smooth_network(rng, k):
    """A network of the FCN's shape whose taps resemble their neighbours, as trained ones do."""
    layers = []
    for layer in network(rng, (1, *[30] * 7, 1), taps=55):
        if "kernel" in layer.weights:
            kernel = rng.laplace(0, 0.02, layer.weights["kernel"].shape)
            for tap in range(1, len(kernel)):
                kernel[tap] = 0.8 * kernel[tap - 1] + 0.6 * kernel[tap]
            kernel[:, rng.random(kernel.shape[1:]) < 0.22] = 0
            layer = dataclasses.replace(
                layer, weights={**layer.weights, "kernel": kernel.astype("f4")}
            )
        layers.append(layer)
    return cluster_layers(layers, Codebooks(k=k))


def test_fcn_is_small_and_decodes_at_once(rng):
    layers = smooth_network(rng, 16)
    data = icse.pack(layers, WAVEFORM_META)
    assert len(data) < 0.09 * 1_203_724
    assert len(data) < 0.9 * len(icse.pack(layers, WAVEFORM_META, entropy=False))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        found = icse.unpack(data)
        times.append(time.perf_counter() - started)
    assert_same(layers, found.model.layers)
    assert min(times) < 0.5  # 0.05 s on an idle core


def test_file_works_wherever_a_model_file_does(rng, tmp_path):
    layers = clustered(rng)
    write_model_file(tmp_path / "a.h5", layers, WAVEFORM_META)
    icse.write_compact(tmp_path / "a.icse", layers, WAVEFORM_META)
    one, other = (read_model_file(tmp_path / name) for name in ("a.h5", "a.icse"))
    assert_same(one.layers, other.layers)
    assert one.meta == other.meta and len(other.sha256) == 64
    # By content, not by name.
    (tmp_path / "a.icse").rename(tmp_path / "b.h5")
    assert_same(one.layers, read_model_file(tmp_path / "b.h5").layers)


@pytest.mark.filterwarnings("ignore")
def test_load_model_and_enhancer_take_it(rng, tmp_path):
    from speech.net.enhancer import Enhancer
    from speech.net.keras_models import load_model

    layers = clustered(rng)
    write_model_file(tmp_path / "a.h5", layers, WAVEFORM_META)
    icse.write_compact(tmp_path / "a.icse", layers, WAVEFORM_META)
    signal = rng.uniform(-0.5, 0.5, 2000).astype("f4")
    for one, other in zip(
        load_model(tmp_path / "a.h5").get_weights(),
        load_model(tmp_path / "a.icse").get_weights(),
        strict=True,
    ):
        assert_array_equal(one, other)
    assert_array_equal(
        Enhancer(tmp_path / "a.h5").enhance(signal), Enhancer(tmp_path / "a.icse").enhance(signal)
    )


def test_writing_is_atomic_and_wants_the_ending(rng, tmp_path):
    layers = list(clustered(rng))
    with pytest.raises(ModelFileError, match="ends in .icse"):
        icse.write_compact(tmp_path / "a.h5", layers, WAVEFORM_META)
    icse.write_compact(tmp_path / "a.icse", layers, WAVEFORM_META)
    before = (tmp_path / "a.icse").read_bytes()
    layers[1] = dataclasses.replace(layers[1], weights={})
    with pytest.raises(ModelFileError, match=r"a\.icse: layer .* has the weights"):
        icse.write_compact(tmp_path / "a.icse", layers, WAVEFORM_META)
    assert (tmp_path / "a.icse").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.icse"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kernel": np.float32(np.nan)}, "expected finite float32"),
        ({"kernel": np.float64(1)}, "float64"),
    ],
)
def test_writer_refuses_what_the_reader_would(change, match, rng):
    layers = list(network(rng, (1, 4, 1)))
    kernel = layers[1].weights["kernel"]
    layers[1].weights["kernel"] = kernel * change["kernel"]
    with pytest.raises(ModelFileError, match=match):
        icse.pack(layers, WAVEFORM_META)
    with pytest.raises(ModelFileError, match="not plain JSON"):
        icse.pack(network(rng, (1, 4, 1)), {"loss": float("nan")})


# --------------------------------------------------------------------------------------------
# Hostile files


@pytest.fixture
def data(rng):
    return icse.pack(clustered(rng, widths=(1, 5, 4, 1)), WAVEFORM_META)


def with_sections(data, change):
    """Takes a file apart, lets ``change`` edit the list of payloads, and seals it again."""
    reader = icse._Reader(data, "the file")
    head = bytes(reader.take(6))
    payloads = []
    while len(data) - reader.position > 4:
        payloads.append(bytearray(reader.section("x")))
    change(payloads)
    return head + b"".join(icse._section(bytes(p)) for p in payloads) + data[-4:]


def test_sections_can_be_taken_apart(data):
    assert "entropy-coded" in icse.unpack(data).codings.values()
    assert with_sections(data, lambda payloads: None) == data


def test_truncations_are_refused(data):
    for length in range(0, len(data), 3):
        with pytest.raises(ModelFileError):
            icse.unpack(data[:length])
    with pytest.raises(ModelFileError, match="1 bytes too many"):
        icse.unpack(data + b"\0")


def test_random_damage_is_refused(data, rng):
    for _ in range(1000):
        spoilt = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            spoilt[rng.integers(len(spoilt))] ^= 1 << rng.integers(8)
        if bytes(spoilt) != data:
            with pytest.raises(ModelFileError):
                icse.unpack(bytes(spoilt))


@pytest.mark.parametrize("entropy", [True, False])
def test_damage_under_a_right_checksum_is_refused(entropy, rng):
    """What a hostile hand would write: only the checksum of the weights still says no."""
    data = icse.pack(clustered(rng, widths=(1, 4, 3, 1)), WAVEFORM_META, entropy=entropy)
    original = icse.unpack(data).model.layers
    for _ in range(300):

        def spoil(payloads):
            payload = payloads[rng.integers(1, len(payloads))]
            payload[rng.integers(min(len(payload), 40))] = rng.integers(256)

        try:
            found = icse.unpack(with_sections(data, spoil))
        except ModelFileError as error:
            assert "\n" not in str(error)
        else:  # the byte was the same, or means nothing
            assert_same(original, found.model.layers)


def header(layers, meta=None):
    text = json.dumps({"layers": layers, "meta": {} if meta is None else meta}).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(text) + deflate.flush()


def replace_header(payload):
    def change(payloads):
        payloads[0][:] = payload

    return change


DENSE = {"name": "d", "units": 65536, "activation": "relu", "use_bias": False}
INPUT = ["InputLayer", {"name": "i", "batch_shape": [None, 2048]}]
BOMB = zlib.compressobj(9, zlib.DEFLATED, -15)
BOMB = BOMB.compress(b" " * (64 << 20)) + BOMB.flush()


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (header([INPUT, ["Dense", DENSE]]), "bytes of weights in a file of"),
        (header([INPUT, ["Lambda", {"name": "x"}]]), "can run code"),
        (header([INPUT, ["Dense"]]), "the header is not"),
        (header([INPUT], [1]), "the header is not"),
        (header(7), "the header is not"),
        (BOMB, "takes over"),
        (b"\xff\xff", "header is damaged"),
        (b"", "header is damaged"),
        (header([INPUT, ["Dense", {**DENSE, "units": 1}]], {"n": "x" * (1 << 20)}), "at most"),
    ],
)
def test_hostile_headers(payload, match, data):
    started = time.monotonic()
    with pytest.raises(ModelFileError, match=match):
        icse.unpack(with_sections(data, replace_header(payload)))
    assert time.monotonic() - started < 2


def test_deeply_nested_header(data):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    payload = deflate.compress(b"[" * 100_000) + deflate.flush()
    with pytest.raises(ModelFileError, match="not valid JSON"):
        icse.unpack(with_sections(data, replace_header(payload)))


def test_other_versions_and_files_are_named(data, tmp_path):
    newer = data[:5] + b"\x02" + data[6:]
    with pytest.raises(ModelFileError, match="format version 2, expected 1"):
        icse.unpack(newer)
    with pytest.raises(ModelFileError, match="not a packed model file"):
        icse.unpack(b"RIFF" + data)
    (tmp_path / "x.icse").write_bytes(newer)
    with pytest.raises(ModelFileError, match=r"x\.icse: format version"):
        read_model_file(tmp_path / "x.icse")
    with pytest.raises(FileNotFoundError, match="no such model file"):
        icse.read_compact(tmp_path / "absent.icse")


def test_weights_that_come_out_otherwise_are_refused(data):
    with pytest.raises(ModelFileError, match="come out otherwise"):
        icse.unpack(data[:-4] + struct.pack("<I", 1))


@pytest.mark.parametrize(
    ("file_bytes", "most"), [(1000, 256_000), (1 << 20, 64 << 20), (4 << 20, 128 << 20)]
)
def test_large_weights_need_a_file_that_is_not_small(file_bytes, most):
    assert icse._most_bytes(file_bytes) == most


def test_too_many_rows_fall_back_to_fixed_length_and_are_refused(data, monkeypatch, rng):
    monkeypatch.setattr(icse, "MAX_ROWS", 3)
    with pytest.raises(ModelFileError, match="rows of indices, too many"):
        icse.unpack(data)
    layers = clustered(rng)
    found = icse.unpack(icse.pack(layers, WAVEFORM_META))
    assert "entropy-coded" not in found.codings.values()
    assert_same(layers, found.model.layers)


# --------------------------------------------------------------------------------------------
# The worked example of docs/format.md. To write it anew after a change of the format:
# python -c "from tests.test_icse import example; print(example())"


def example_layers():
    kernel = np.zeros((8, 1, 3), np.float32)
    kernel[:, 0, 0] = [-0.25, -0.25, -0.25, 0.5, 0.5, 0.5, -0.25, -0.25]
    kernel[:, 0, 2] = [0.5, 0.5, -0.25, -0.25, -0.25, 0.5, 0.5, 0.5]
    settings = {"filters": 3, "kernel_size": 8, "strides": 1, "padding": "same",
                "data_format": "channels_last", "dilation_rate": 1, "activation": "tanh",
                "use_bias": True}  # fmt: skip
    return (
        LayerSpec("InputLayer", "i", {"batch_shape": [None, None, 1]}),
        LayerSpec("Conv1D", "c", settings, {"kernel": kernel, "bias": np.array([0, 1, 0.5], "f4")}),
    )


def example():
    """Returns the file of the example as lines of 16 bytes in hex."""
    data = icse.pack(example_layers(), {"kind": "waveform"}, entropy=False)
    rows = [data[i : i + 16].hex(" ") for i in range(0, len(data), 16)]
    return "\n".join(f"{16 * i:04x}  {row}" for i, row in enumerate(rows))


def documented(name):
    """Returns the block of hex under a heading of docs/format.md, as bytes."""
    block = FORMAT.read_text(encoding="utf-8").split(f"<!-- {name} -->")[1].split("```")[1]
    return bytes.fromhex("".join(line[6:] for line in block.strip().splitlines()))


def test_documented_example_is_what_is_written_and_reads_back():
    found = icse.unpack(documented("example"))
    assert_same(example_layers(), found.model.layers)
    assert found.model.meta == {"kind": "waveform"}
    # Deflate may differ from zlib to zlib: what follows the header may not.
    data = icse.pack(example_layers(), {"kind": "waveform"}, entropy=False)
    assert data[6 + found.header_bytes :] == documented("example")[6 + found.header_bytes :]


GOLDEN = Path(__file__).parent / "golden" / "small.icse.hex"


def golden_layers():
    """A small network of pseudo-random indices that no library's generator has a say in."""
    state, layers = 1, list(example_layers())
    kernel = np.zeros(40 * 6, np.float32)
    for i in range(kernel.size):
        state = (1103515245 * state + 12345) % 2**31
        step = (state >> 16) % 5 - 2
        kernel[i] = np.clip((kernel[i - 6] if i >= 6 else 0) * 8 + step, -4, 4) / 8
    kernel = kernel.reshape(40, 1, 6)
    kernel[:, 0, 4] = 0
    settings = {**layers[1].config, "filters": 6, "kernel_size": 40}
    bias = np.zeros(6, np.float32)
    return (layers[0], LayerSpec("Conv1D", "c", settings, {"kernel": kernel, "bias": bias}))


def test_an_entropy_coded_file_of_version_1_still_reads():
    """If this fails after an update of constriction, old files need its old version."""
    found = icse.unpack(bytes.fromhex(GOLDEN.read_text()))
    assert found.codings == {"c": "entropy-coded"}
    assert_same(golden_layers(), found.model.layers)
