"""Damaged files on purpose: valid files of each format, and what chance and malice do to them.

Everything is drawn from the generator that is passed in, so that an input is known by its reader,
seed and number. Sizes and places are in bytes.
"""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Values that counts, sizes and addresses take in forged files.
_TELLING = (
    0, 1, 2, 3, 7, 8, 16, 255, 256, 999, 4096, 65_535, 65_536, 1 << 20, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 2, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1,
)  # fmt: skip
_HEAD = 256  # where most formats keep what matters

#: Conventions of `graph_layers`: frames of 32 samples, 16 bins.
GRAPH_META = {
    "kind": "complex_mask",
    "sample_rate_hz": 16_000,
    "stft": {"frame": 32, "hop": 16, "window": "sqrt_hann"},
    "power": 0.3,
    "features": ["real", "imaginary", "magnitude"],
}
_RANDOM_INPUTS = 0.02

_WAV_KINDS = ("PCM_16", "PCM_24", "FLOAT", "DOUBLE", "PCM_U8", "ULAW", "ALAW", "IMA_ADPCM",
              "MS_ADPCM", "GSM610", "G721_32", "MPEG_LAYER_III")  # fmt: skip


# --------------------------------------------------------------------------------------------
# Valid files


def seeds(reader: str) -> list[bytes]:
    """Returns valid files of the format that a reader is for.

    Args:
        reader: 'h5', 'icse', 'wav', 'flac' or 'sphere'.
    """
    return _SEEDS[reader]()


def _layers(rng: np.random.Generator, num_values: int | None = None) -> list:
    """Returns a small FCN, its kernels of few values if asked."""
    from speech.net.fcn import FCNConfig

    config = FCNConfig(num_hidden_layers=2, num_filters=4, kernel_size=9)
    entries = [{"class_name": name, "config": c} for name, c in config.layer_configs()]
    model = {"class_name": "Sequential", "config": {"layers": entries}}
    return _with_weights(model, rng, num_values)


def graph_layers(rng: np.random.Generator, num_values: int | None = None) -> list:
    """Returns a small network with skips, of every class of layer that only graphs hold.

    It takes features [batch, frames, 16, 3] and gives a mask [batch, frames, 16, 2], of the
    conventions `GRAPH_META`.

    Args:
        rng: Draws the weights.
        num_values: Most distinct values of a kernel; default: as many as there are weights.
    """
    from speech.modelfile.exam import model_config_of
    from speech.modelfile.spec import LayerSpec

    def convolution(filters: int, size: list[int], **settings: Any) -> dict[str, Any]:
        return {"filters": filters, "kernel_size": size, "strides": [1, 1], "padding": "same",
                "data_format": "channels_last", "dilation_rate": [1, 1], "activation": "linear",
                "use_bias": True, **settings}  # fmt: skip

    strided = convolution(4, [1, 4], strides=[1, 2], use_bias=False)
    dilated = convolution(4, [3, 1], padding="valid", dilation_rate=[2, 1])
    mask = convolution(2, [1, 4], strides=[1, 2])
    del mask["dilation_rate"]
    norm = {"axis": -1, "momentum": 0.9, "epsilon": 1e-3, "center": True, "scale": True}
    padding = {"padding": [[4, 0], [0, 0]], "data_format": "channels_last"}
    bands = {"units": 8, "activation": "silu", "use_bias": True}
    swap = {"dims": [1, 3, 2]}
    layers = [
        LayerSpec(class_name, name, config, {}, tuple(inputs.split()))
        for class_name, name, config, inputs in (
            ("InputLayer", "features", {"batch_shape": [None, None, 16, 3]}, ""),
            ("Conv2D", "encoder", strided, "features"),
            ("BatchNormalization", "norm", norm, "encoder"),
            ("Activation", "act", {"activation": "silu"}, "norm"),
            ("ZeroPadding2D", "pad", padding, "act"),
            ("Conv2D", "time", dilated, "pad"),
            ("Permute", "in", swap, "time"),
            ("Dense", "bands", bands, "in"),
            ("Permute", "out", swap, "bands"),
            ("Dropout", "drop", {"rate": 0.1}, "out"),
            ("Add", "sum", {}, "act drop"),
            ("Concatenate", "join", {"axis": -1}, "sum act"),
            ("Conv2DTranspose", "mask", mask, "join"),
        )
    ]
    return _with_weights(model_config_of(layers), rng, num_values)


def _with_weights(model: Any, rng: np.random.Generator, num_values: int | None) -> list:
    """Returns the layers of a Keras configuration with weights from 0.1 to 1."""
    from speech.modelfile.exam import plan_layers

    layers = []
    for spec, shapes in plan_layers(model):
        weights = {}
        for key, shape in shapes.items():
            array = rng.uniform(0.1, 1, shape)
            if key == "kernel" and num_values:
                array = np.floor(array * num_values) / num_values
                array[..., ::3] = 0
            weights[key] = array.astype(np.float32)
        layers.append(dataclasses.replace(spec, weights=weights))
    return layers


def _hdf5_seeds() -> list[bytes]:
    import h5py

    from speech.modelfile.h5 import write_model_file

    meta = {"kind": "waveform", "sample_rate_hz": 16_000}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "seed.h5")
        write_model_file(path, graph_layers(np.random.default_rng(0)), GRAPH_META)
        files = [path.read_bytes()]
        write_model_file(path, _layers(np.random.default_rng(0)), meta)
        files.append(path.read_bytes())
        with h5py.File(path, "a") as file:
            groups = file["model_weights"]
            for index in range(40):  # an index of several nodes
                groups.create_group(f"unused{index}")
            names = [str(name, "ascii") for name in groups["conv1"].attrs["weight_names"]]
            groups["conv1"].attrs["weight_names"] = np.array(names, h5py.string_dtype())
        files.append(path.read_bytes())
        with h5py.File(path, "a") as file:  # turns a group's symbol table into messages
            file["model_weights/unused7/x"] = file["model_weights/conv1/conv1/kernel"]
            file["model_weights/unused7/y"] = h5py.ExternalLink("other.h5", "/x")
        files.append(path.read_bytes())
    return files


def _compact_seeds() -> list[bytes]:
    from speech.modelfile.icse import pack

    rng = np.random.default_rng(0)
    chains = [pack(_layers(rng, values), {"kind": "waveform"}, entropy=entropy)
              for values in (None, 2, 5, 30) for entropy in (True, False)]  # fmt: skip
    return chains + [pack(graph_layers(rng, values), GRAPH_META) for values in (None, 2, 5)]


def _sound(audio_format: str, subtype: str, num_channels: int, rate_hz: int = 16_000) -> bytes:
    import soundfile

    rng = np.random.default_rng(num_channels)
    samples = 0.3 * np.cumsum(rng.uniform(-0.1, 0.1, (4000, num_channels)), axis=0)
    stream = io.BytesIO()
    soundfile.write(stream, samples.clip(-1, 1), rate_hz, subtype, format=audio_format)
    return stream.getvalue()


def _wav_seeds() -> list[bytes]:
    import soundfile

    files = []
    for subtype in _WAV_KINDS:
        if soundfile.check_format("WAV", subtype):
            rate_hz = 8000 if subtype == "G721_32" else 16_000
            channels = 1 if subtype in ("GSM610", "G721_32") else 2
            try:
                files.append(_sound("WAV", subtype, channels, rate_hz))
            except soundfile.LibsndfileError:  # listed, but this build cannot write it
                continue
    return [*files, *(_sound(name, "PCM_16", 2) for name in ("WAVEX", "RF64", "W64"))]


def _flac_seeds() -> list[bytes]:
    return [_sound("FLAC", subtype, channels)
            for subtype in ("PCM_16", "PCM_24") for channels in (1, 3)]  # fmt: skip


def _sphere_seeds() -> list[bytes]:
    return [_sound("NIST", subtype, channels)
            for subtype in ("PCM_16", "PCM_32", "ULAW") for channels in (1, 2)]  # fmt: skip


_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "h5": _hdf5_seeds,
    "icse": _compact_seeds,
    "wav": _wav_seeds,
    "flac": _flac_seeds,
    "sphere": _sphere_seeds,
}


# --------------------------------------------------------------------------------------------
# Damage


def damaged(files: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Returns one of the files after one to four kinds of damage, or noise.

    Args:
        files: Valid files of one format; parts of one may end up in another.
        rng: Decides everything.
    """
    data = bytearray(files[int(rng.integers(len(files)))])
    if rng.random() < _RANDOM_INPUTS:
        head = data[: rng.integers(0, 64)]
        return bytes(head) + rng.bytes(int(rng.integers(0, 4096)))
    if data.startswith(b"\x89ICSE") and rng.random() < 0.7:
        return _resealed(bytes(data), rng)
    if b"inbound_nodes" in data and rng.random() < 0.5:
        _copy_name(data, rng)
    for _ in range(rng.integers(1, 5)):
        if data:
            _DAMAGES[rng.integers(len(_DAMAGES))](data, files, rng)
    return bytes(data)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Returns a place in the file, half of the time near its start."""
    end = min(len(data), _HEAD) if rng.random() < 0.5 else len(data)
    return int(rng.integers(end))


def _flip_bits(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 9)):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _set_bytes(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    place = _place(data, rng)
    count = min(int(rng.integers(1, 9)), len(data) - place)
    data[place : place + count] = rng.bytes(count)


def _set_number(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    width = int(rng.choice([1, 2, 4, 8]))
    place = _place(data, rng)
    if rng.random() < 0.8:  # where fields of this width lie
        place -= place % min(width, 4)
    value = _TELLING[rng.integers(len(_TELLING))]
    if rng.random() < 0.3:  # a bit more or less than it was
        value = int.from_bytes(data[place : place + width], "little") + int(rng.integers(-9, 10))
    field = (value % (1 << 8 * width)).to_bytes(width, "big" if rng.random() < 0.2 else "little")
    data[place : place + width] = field[: len(data) - place]


def _copy_word(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    """Puts one field in the place of another: an address that points elsewhere."""
    one, other = (_place(data, rng) // 8 * 8 for _ in range(2))
    data[one : one + 8] = data[other : other + 8]


def _copy_block(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    one, other, count = _place(data, rng), _place(data, rng), int(rng.integers(1, 512))
    data[one : one + count] = data[other : other + count]


def _insert(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    place = _place(data, rng)
    data[place:place] = rng.bytes(int(rng.integers(1, 64)))


def _remove(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    place = _place(data, rng)
    del data[place : place + int(rng.integers(1, 256))]


def _truncate(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data))) :]


def _extend(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    data += rng.bytes(int(rng.integers(1, 512)))


def _splice(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    other = files[int(rng.integers(len(files)))]
    place = _place(data, rng)
    start = place if rng.random() < 0.5 else int(rng.integers(len(other)))
    data[place:] = other[start:]


def _change_digits(data: bytearray, files: Sequence[bytes], rng: np.random.Generator) -> None:
    """Changes a number that is written as text, as in SPHERE headers and JSON."""
    found = [match.span() for match in re.finditer(rb"-?\d+", data[: 8 * _HEAD])]
    if found:
        start, stop = found[rng.integers(len(found))]
        value = _TELLING[rng.integers(len(_TELLING))] * int(rng.choice([1, 1, 1, -1]))
        text = str(value).encode()
        if rng.random() < 0.5:  # keeps the places of what follows
            text = text[: stop - start].rjust(stop - start)
        data[start:stop] = text


def _copy_name(data: bytearray, rng: np.random.Generator) -> None:
    """Puts a name of a configuration in the place of another: a layer that reads another one."""
    spans = [match.span() for match in re.finditer(rb'"\w+"', data)]
    start, stop = spans[rng.integers(len(spans))]
    same = [span for span in spans if span[1] - span[0] == stop - start]
    other = same[rng.integers(len(same))]
    data[start:stop] = data[other[0] : other[1]]


_DAMAGES = (
    _flip_bits, _flip_bits, _set_bytes, _set_number, _set_number, _set_number, _copy_word,
    _copy_word, _copy_block, _insert, _remove, _truncate, _extend, _splice, _change_digits,
)  # fmt: skip


# --------------------------------------------------------------------------------------------
# Packed files with checksums that agree (docs/format.md)


def sections_of(data: bytes) -> list[bytearray]:
    """Returns the payloads of the sections of a valid packed file."""
    payloads, place = [], 6
    while place < len(data) - 4:
        length = shift = 0
        while True:
            byte = data[place]
            place += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        payloads.append(bytearray(data[place : place + length]))
        place += length + 4
    return payloads


def sealed(payloads: Sequence[bytes], checksum: bytes) -> bytes:
    """Returns a packed file of sections, each with the checksum that belongs to it.

    Args:
        payloads: Of the sections.
        checksum: Of the weights, 4 bytes.
    """
    parts = [b"\x89ICSE\x01"]
    for payload in payloads:
        left = len(payload)
        while left > 0x7F:
            parts.append(bytes([left & 0x7F | 0x80]))
            left >>= 7
        parts += [bytes([left]), bytes(payload), struct.pack("<I", zlib.crc32(payload))]
    return b"".join(parts) + checksum


def deflated(text: bytes) -> bytes:
    """Returns the payload of a header."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(text) + deflate.flush()


def _resealed(data: bytes, rng: np.random.Generator) -> bytes:
    """Damages sections of a packed file and repairs their checksums."""
    payloads = sections_of(data)
    for _ in range(rng.integers(1, 4)):
        index = int(rng.integers(len(payloads)))
        if index == 0:
            text = bytearray(zlib.decompress(payloads[0], -15))
            (_change_digits if rng.random() < 0.7 else _flip_bits)(text, (), rng)
            payloads[0] = bytearray(deflated(bytes(text)))
        elif payloads[index]:
            damage = _DAMAGES[rng.integers(len(_DAMAGES))]
            damage(payloads[index], [bytes(payload) for payload in payloads[1:]], rng)
        if len(payloads[index]) == 0:
            payloads[index] = bytearray(b"\0")
    return sealed([bytes(payload) for payload in payloads], data[-4:])
