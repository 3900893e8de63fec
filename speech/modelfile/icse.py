"""The packed model file (.icse): codebooks, entropy-coded indices, masks; lossless and checked.

A model file (``speech.modelfile``) whose kernels hold few distinct values takes a fraction of its
bytes here and comes back bit for bit (a negative zero comes back as zero). For each array the
smallest exact form is taken: nothing at all for zeros, FP16, a codebook with indices, FP32.
``docs/format.md`` describes every byte.

Indices go through the range coder of ``constriction``. Neighbouring taps of a long trained filter
are alike, so the probabilities of an index depend on the three taps before it: their linear
prediction and how much they vary choose one of up to 64 contexts, each with counts that adapt as
the indices go by and that the next layer starts from. The taps of a small kernel, such as one of
3 x 1 taps, tell nothing about each other: there one context does, which learns sooner. Decoder
and encoder run the same code.

A file is data, possibly hostile: each section has a CRC32, all sizes are known before memory is
asked for, layers pass the allow-list of ``speech.modelfile``, and whatever is wrong is a
``ModelFileError`` of one line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from speech.base.files import atomic_path, sha256_of
from speech.base.lazy import constriction
from speech.modelfile.exam import MAX_WEIGHT_BYTES, model_config_of, plan_layers
from speech.modelfile.meta import MAX_META_BYTES, check_conventions, meta_text, parse_json
from speech.modelfile.rules import Shapes
from speech.modelfile.spec import (
    LayerSpec,
    ModelFile,
    ModelFileError,
    is_chain,
    is_kernel,
    kernel_name,
    linked,
    refusals,
)

#: The first bytes of a packed file (``speech.modelfile.icse``).
COMPACT_MAGIC = b"\x89ICSE"


def is_compact(path: str | os.PathLike) -> bool:
    """Returns whether a file starts as a packed one does; False if there is none."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        return stream.read(len(COMPACT_MAGIC)) == COMPACT_MAGIC


VERSION = 1
SUFFIX = ".icse"
MAX_CODEBOOK = 256
#: The weights may take so many times the bytes of the file: what a decoder may be made to ask for.
MAX_EXPANSION = 256
#: The same for weights of over `LARGE_BYTES`.
MAX_EXPANSION_LARGE = 32
LARGE_BYTES = 64 << 20
#: Rows of indices in a file that are decoded one by one.
MAX_ROWS = 10_000
#: What decoding all indices of a file may take, in units of about 2 ns (`_work`): a bound on time.
MAX_WORK = 800_000_000
#: Indices of a kernel up to which the writer tries to do without contexts.
MAX_FLAT_INDICES = 1 << 15
MAX_HEADER_BYTES = 2 * MAX_META_BYTES

# How an array is stored.
ZEROS, FP16, FP32, PACKED, CODED, CODED_FLAT = range(6)
CODINGS = ("zeros", "fp16", "fp32", "bit-packed", "entropy-coded", "entropy-coded, no context")
# How a codebook is stored.
BOOK_FP32, BOOK_FP16, BOOK_INT8 = range(3)
# How the mask of the columns that are not all zero is stored.
MASK_NONE, MASK_PACKED, MASK_CODED = range(3)

_FLOATS: dict[int, np.dtype] = {FP16: np.dtype("<f2"), FP32: np.dtype("<f4")}
_BOOKS: dict[int, np.dtype] = {
    BOOK_FP32: np.dtype("<f4"),
    BOOK_FP16: np.dtype("<f2"),
    BOOK_INT8: np.dtype("i1"),
}


@dataclass(frozen=True)
class CompactFile:
    """The content of a packed file, and how many bytes each part of it takes.

    Attributes:
        model: Layers, weights, meta data.
        header_bytes: Of the section with configuration and meta data.
        others_bytes: Of the section with biases and normalisation.
        kernel_bytes: Of each kernel's section, by ``speech.modelfile.spec.kernel_name``.
        codings: Of each kernel, one of `CODINGS`, likewise.
        file_bytes: Of the file; the rest are the magic and the checksum of the weights.
    """

    model: ModelFile
    header_bytes: int
    others_bytes: int
    kernel_bytes: dict[str, int]
    codings: dict[str, str]
    file_bytes: int


# --------------------------------------------------------------------------------------------
# Writing


def write_compact(
    path: str | os.PathLike,
    layers: Sequence[LayerSpec],
    meta: Mapping[str, Any],
    *,
    entropy: bool = True,
) -> None:
    """Writes a packed file atomically; reading it gives the same weights, bit for bit.

    Args:
        path: The file to write, ending in '.icse'.
        layers: Layers that ``speech.modelfile.h5.write_model_file`` accepts.
        meta: The ``speech_meta`` object.
        entropy: False for indices of a fixed number of bits, with no entropy coding.

    Raises:
        ModelFileError: A layer, a weight or ``meta`` would not pass; nothing is written.
    """
    path = Path(path)
    with refusals(path):
        if path.suffix != SUFFIX:
            raise ModelFileError(f"cannot be written: expected a name that ends in {SUFFIX}")
        data = pack(layers, meta, entropy=entropy)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def pack(layers: Sequence[LayerSpec], meta: Mapping[str, Any], *, entropy: bool = True) -> bytes:
    """Returns the bytes of a packed file; see ``write_compact``."""
    layers = _in_order(layers)
    meta_text(meta)  # checks it
    header = {"layers": _entries(layers), "meta": dict(meta)}
    text = json.dumps(header, separators=(",", ":"))
    plan = _plan(json.loads(text))
    layers = [_canonical(layer, shapes) for layer, (_, shapes) in zip(layers, plan, strict=True)]
    others, kernels = bytearray(), []
    coder = _Coder(entropy, flat=not is_chain(layers))
    for layer in layers:
        for key, array in layer.weights.items():
            if is_kernel(key):
                kernels.append(_pack_kernel(array, coder))
            else:
                others += pack_floats(array)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    packed_header = deflate.compress(text.encode()) + deflate.flush()
    if len(text.encode()) > MAX_HEADER_BYTES:
        raise ModelFileError(f"configuration and meta data take over {MAX_HEADER_BYTES:,} bytes")
    sections = b"".join(map(_section, (packed_header, bytes(others), *kernels)))
    data = COMPACT_MAGIC + bytes([VERSION]) + sections + struct.pack("<I", _checksum(layers))
    num_bytes = sum(array.nbytes for layer in layers for array in layer.weights.values())
    if num_bytes > _most_bytes(len(data)):
        # So many zeros need no file of this kind; bytes that mean nothing keep the bound simple.
        raise ModelFileError(
            f"{len(data):,} bytes for {num_bytes:,} bytes of weights, which no reader accepts; "
            "remove the zero filters (python -m pruning.run --remove-filters)"
        )
    return data


def _most_bytes(file_bytes: int) -> int:
    """Returns how many bytes the weights of a file may have once they are unpacked."""
    return min(MAX_EXPANSION * file_bytes, max(LARGE_BYTES, MAX_EXPANSION_LARGE * file_bytes))


def _in_order(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """Returns layers that name their inputs, each behind those it reads."""
    layers = linked(layers)
    by_name = {layer.name: layer for layer in layers}
    # Through JSON, as if read: settings may be tuples.
    model_config = json.loads(json.dumps(model_config_of(layers)))
    return [by_name[layer.name] for layer, _ in plan_layers(model_config)]


def _entries(layers: Sequence[LayerSpec]) -> list[list[Any]]:
    """Returns the layers of a header: [class, settings, how many layers back each input is].

    A layer that reads the one before it, and nothing else, goes without the last part.
    """
    places = {layer.name: place for place, layer in enumerate(layers)}
    entries: list[list[Any]] = []
    for place, layer in enumerate(layers):
        steps = [place - places[name] for name in layer.inputs]
        settings = {"name": layer.name, **layer.config}
        entries.append([layer.class_name, settings, *([steps] if place and steps != [1] else [])])
    return entries


def _plan(header: Any) -> list[tuple[LayerSpec, Shapes]]:
    """Checks the layers of a header as ``speech.modelfile`` checks those of an .h5 file."""
    match header:
        case {"layers": list(entries), "meta": dict(meta)} if all(map(_is_entry, entries)):
            plan = plan_layers(_model_config(entries))
            check_conventions([layer for layer, _ in plan], meta)
            return plan
    raise ModelFileError(
        "the header is not {'layers': [[class, config] or [class, config, inputs], ...], "
        "'meta': {...}}"
    )


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) in (2, 3) and isinstance(entry[1], dict)


def _model_config(entries: list[list[Any]]) -> dict[str, Any]:
    """Returns the Keras configuration of a header's layers."""
    listed = [{"class_name": entry[0], "config": entry[1]} for entry in entries]
    if all(len(entry) == 2 for entry in entries):
        return {"class_name": "Sequential", "config": {"layers": listed}}
    names = [entry[1].get("name") for entry in entries]
    for place, (layer, entry) in enumerate(zip(listed, entries, strict=True)):
        steps = entry[2] if len(entry) == 3 else [1] if place else []
        if not isinstance(steps, list) or not all(
            type(step) is int and 1 <= step <= place for step in steps
        ):
            raise ModelFileError(
                f"the inputs of layer {place + 1} are {steps!r:.60}, expected how many layers back "
                f"each is, from 1 to {place}"
            )
        nodes = [[[names[place - step], 0, 0] for step in steps]]
        layer |= {"name": names[place], "inbound_nodes": nodes if steps else []}
    ends = {"input_layers": [names[0], 0, 0], "output_layers": [names[-1], 0, 0]}
    return {"class_name": "Functional", "config": {"layers": listed, **ends}}


def _canonical(layer: LayerSpec, shapes: Shapes) -> LayerSpec:
    """Returns a layer whose weights are checked, in the order of ``shapes``, without -0.0."""
    if layer.weights.keys() != shapes.keys():
        raise ModelFileError(
            f"layer {layer.name!r} has the weights {sorted(layer.weights)}, "
            f"expected {sorted(shapes)}"
        )
    weights = {}
    for key, shape in shapes.items():
        array = np.asarray(layer.weights[key])
        if array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
            raise ModelFileError(
                f"{layer.name}/{key} is {array.dtype} {array.shape}, expected finite float32 "
                f"{shape}"
            )
        weights[key] = array + np.float32(0)
    return replace(layer, weights=weights)


def _checksum(layers: Sequence[LayerSpec]) -> int:
    """Returns the CRC32 of all weights as float32, in order: what a decoder must come to."""
    value = 0
    for layer in layers:
        for array in layer.weights.values():
            value = zlib.crc32(np.ascontiguousarray(array, "<f4").data, value)
    return value


def _section(payload: bytes) -> bytes:
    return _varint(len(payload)) + payload + struct.pack("<I", zlib.crc32(payload))


def _varint(value: int) -> bytes:
    """Returns a number in groups of 7 bits, low ones first; the top bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack_floats(array: np.ndarray) -> bytes:
    """Returns an array as zeros, FP16 if that is exact, or FP32: a byte for which, and values."""
    if not array.any():
        return bytes([ZEROS])
    floats = exact_floats(array)
    return bytes([FP16 if floats.itemsize == 2 else FP32]) + floats.tobytes()


def exact_floats(array: np.ndarray) -> np.ndarray:
    """Returns float32 as little-endian FP16 if that is exact, or FP32."""
    with np.errstate(over="ignore"):
        half = array.astype(_FLOATS[FP16])
    is_exact = np.array_equal(half.astype(np.float32), array)
    return half if is_exact else array.astype(_FLOATS[FP32])


def _pack_kernel(kernel: np.ndarray, coder: _Coder) -> bytes:
    """Returns the shortest form of a kernel."""
    plain = pack_floats(kernel)
    matrix = as_matrix(kernel)
    kept = np.asarray(matrix.any(axis=0))
    values, places = np.unique(matrix[:, kept], return_inverse=True)
    if not 1 <= len(values) <= MAX_CODEBOOK:
        return plain
    indices = places.reshape(len(matrix), -1).astype(np.uint8)
    book = bytes([len(values) - 1]) + _pack_book(values)
    packed = (
        bytes([PACKED, MASK_NONE if kept.all() else MASK_PACKED])
        + (b"" if kept.all() else np.packbits(kept).tobytes())
        + book
        + pack_bits(indices, index_bits(len(values)))
    )
    shortest = min(plain, packed, key=len)
    if not coder.entropy or shortest is not packed:
        return shortest
    candidates = [(CODED, fitted_contexts(values, indices))]
    if coder.flat and len(values) > 1 and indices.size <= MAX_FLAT_INDICES:
        candidates.append((CODED_FLAT, flat_contexts(values)))
    before = best = coder.mark()
    for coding, contexts in candidates:
        coder.back_to(before)
        if coder.has_room(kernel.shape, kept, contexts):
            coded = _pack_coded(coding, kernel.shape, kept, contexts, indices, book, coder)
            if len(coded) < len(shortest):
                shortest, best = coded, coder.mark()
    coder.back_to(best)
    return shortest


def index_bits(num_values: int) -> int:
    """Returns the bits of an index into a codebook, ceil(log2(num_values))."""
    return (num_values - 1).bit_length()


def pack_bits(indices: np.ndarray, num_bits: int) -> bytes:
    """Returns indices of ``num_bits`` each, high bits first, row by row."""
    bits = np.unpackbits(indices.reshape(-1, 1), axis=1)[:, 8 - num_bits :]
    return np.packbits(bits).tobytes()


def _pack_book(values: np.ndarray) -> bytes:
    """Returns a codebook in the smallest format that is exact."""
    scale = _int8_scale(values)
    if scale is not None:
        top = np.array(scale, "<f4").tobytes()[2:]
        return bytes([BOOK_INT8]) + top + np.rint(values / scale).astype(np.int8).tobytes()
    floats = exact_floats(values)
    return bytes([BOOK_FP16 if floats.itemsize == 2 else BOOK_FP32]) + floats.tobytes()


def _int8_scale(values: np.ndarray) -> np.float32 | None:
    """Returns s with values = q s for whole q from -127 to 127, if 16 bits of a float hold s."""
    largest = np.abs(values).max()
    for q in np.arange(127, 0, -1, dtype=np.float32):
        scale = largest / q
        if scale.view(np.uint32) & 0xFFFF or not scale:
            continue
        if np.array_equal(np.rint(values / scale) * scale, values):
            return scale
    return None


# --------------------------------------------------------------------------------------------
# The model of the indices, shared by both directions

_NUM_SPREADS = 4
_MAX_PREDICTIONS = 16
_BLOCK = 4096  # columns at a time: bounds the table of probabilities
_STEP = 10  # what one occurrence adds to a count, which starts at 1
_INHERITED = 200  # what a context's counts from the layer before may sum to
_MAX_COUNT = 1 << 22  # of a context: float32 holds every whole number up to 2^24
_FULL_SCALE = 255
_MASK_LEVELS = np.array([0, _FULL_SCALE], np.int32)


@dataclass
class _Contexts:
    """Chooses probabilities of the next index in a column by the three before it.

    Attributes:
        levels: int32 [k], the centroids scaled to +-255.
        weights: Two int8: the prediction is (w0 level[-1] + w1 level[-2]) / 64.
        thresholds: Three ascending uint16 that divide the local variation,
            2 |level[-1] - level[-2]| + |level[-2] - level[-3]|.
        counts: float32 [contexts, k], whole numbers.
    """

    levels: np.ndarray
    weights: np.ndarray
    thresholds: np.ndarray
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Makes the counts."""
        k = len(self.levels)
        predictions = min(k, _MAX_PREDICTIONS)
        cuts = np.arange(1, predictions) * k // predictions
        self._edges = self.levels[cuts - 1] + self.levels[cuts]
        self.counts = np.ones((predictions * _NUM_SPREADS, k), np.float32)

    def inherit(self, counts: np.ndarray | None) -> None:
        """Starts from what the layer before has learnt, if its codebook had the same size."""
        if counts is not None:
            totals = counts.sum(axis=1, keepdims=True)
            self.counts += np.floor(counts * np.float32(_INHERITED) / totals)

    def of(self, recent: np.ndarray) -> np.ndarray:
        """Returns the contexts [n] that follow levels int32 [3, n], the latest first."""
        doubled = (self.weights[0] * recent[0] + self.weights[1] * recent[1]) >> 5
        spread = 2 * np.abs(recent[0] - recent[1]) + np.abs(recent[1] - recent[2])
        prediction = np.searchsorted(self._edges, doubled)
        return prediction * _NUM_SPREADS + np.searchsorted(self.thresholds, spread)

    def learn(self, contexts: np.ndarray, indices: np.ndarray) -> None:
        """Counts indices that occurred."""
        k = len(self.levels)
        seen = np.bincount(contexts * k + indices, minlength=self.counts.size)
        self.counts += _STEP * seen.reshape(self.counts.shape).astype(np.float32)
        full = self.counts.sum(axis=1) > _MAX_COUNT
        if full.any():
            self.counts[full] = np.ceil(self.counts[full] / 2)


class _Flat(_Contexts):
    """One context for all indices; its counts adapt after at most 64 columns or a 16th of a row.

    Args:
        levels: The same as for `_Contexts`.
    """

    def __init__(self, levels: np.ndarray) -> None:
        self.levels = levels
        self.counts = np.ones((1, len(levels)), np.float32)

    def of(self, recent: np.ndarray) -> np.ndarray:
        """Returns the one context, [n] times."""
        return np.zeros(recent.shape[1], np.int64)


def _block(contexts: _Contexts, num_columns: int) -> int:
    """Returns how many columns are coded before the counts adapt: bounds time and memory."""
    return min(max(64, -(-num_columns // 16)), _BLOCK) if isinstance(contexts, _Flat) else _BLOCK


def _num_blocks(contexts: _Contexts, shape: tuple[int, int]) -> int:
    """Returns in how many blocks an array of indices is coded."""
    return shape[0] * -(-shape[1] // _block(contexts, shape[1]))


def _work(contexts: _Contexts, shape: tuple[int, int]) -> int:
    """Returns what coding an array of indices takes, in units of one probability (2 ns).

    Each index needs k of them and as much as 32 more, each block as much as 32,768 and its counts.
    """
    blocks = _num_blocks(contexts, shape)
    return math.prod(shape) * (len(contexts.levels) + 32) + blocks * (
        (1 << 15) + contexts.counts.size
    )


def _walk(
    shape: tuple[int, int],
    contexts: _Contexts,
    transfer: Callable[[np.ndarray, int, slice], np.ndarray],
) -> None:
    """Goes through an array of indices, row by row, a block of columns at a time.

    Args:
        shape: [rows, columns].
        contexts: Adapts on the way.
        transfer: (weights of the probabilities [n, k], row, columns) -> the indices [n] there,
            which it encodes or decodes.
    """
    recent = np.zeros((3, shape[1]), np.int32)
    block = _block(contexts, shape[1])
    for row in range(shape[0]):
        for first in range(0, shape[1], block):
            columns = slice(first, first + block)
            found = contexts.of(recent[:, columns])
            indices = transfer(contexts.counts[found], row, columns)
            contexts.learn(found, indices)
            recent[1:, columns] = recent[:2, columns]
            recent[0, columns] = contexts.levels[indices]


def _levels(values: np.ndarray) -> np.ndarray:
    """Returns centroids as whole numbers of +-255."""
    scaled = values.astype(np.float64) * _FULL_SCALE / max(float(np.abs(values).max()), 1e-300)
    return np.rint(scaled).astype(np.int32)


def _fitted(levels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights and thresholds of `_Contexts` that suit some indices [rows, columns]."""
    signal = levels[indices]
    padded = np.pad(signal, ((3, 0), (0, 0)))
    one, two, three = (padded[3 - lag : len(padded) - lag] for lag in (1, 2, 3))
    past = np.stack([one.ravel(), two.ravel()]).astype(np.float64)
    normal = past @ past.T + np.eye(2)
    best = np.linalg.solve(normal, past @ signal.ravel())
    weights = np.rint(64 * best).clip(-127, 127).astype(np.int32)
    spread = 2 * np.abs(one - two) + np.abs(two - three)
    quarters = np.quantile(spread, [0.25, 0.5, 0.75], method="lower")
    return weights, quarters.astype(np.int32)


def fitted_contexts(values: np.ndarray, indices: np.ndarray) -> _Contexts:
    """Returns the contexts that the coder chooses for some indices.

    Args:
        values: float32 [k], a codebook, ascending.
        indices: int [rows, columns].
    """
    levels = _levels(values)
    return _Contexts(levels, *_fitted(levels, indices))


def flat_contexts(values: np.ndarray) -> _Contexts:
    """Returns the one context that the coder may choose for a small kernel.

    Args:
        values: float32 [k], a codebook, ascending.
    """
    return _Flat(_levels(values))


class _Coder:
    """State that is carried from kernel to kernel: counts, the number of rows coded, their work.

    Args:
        entropy: Whether to entropy-code at all.
        flat: Whether to try without contexts. Only in graphs: their files are beyond older
            readers of version 1 in any case.
    """

    def __init__(self, entropy: bool = True, flat: bool = False) -> None:
        self.entropy = entropy
        self.flat = flat
        self.num_rows = self.work = 0
        self.learnt: dict[tuple[int, ...], np.ndarray] = {}

    def has_room(self, shape: tuple[int, ...], kept: np.ndarray, contexts: _Contexts) -> bool:
        """Returns whether a kernel of a shape stays within ``MAX_ROWS`` and ``MAX_WORK``."""
        walks = [(contexts, _matrix_shape(shape))]
        if not kept.all():
            walks.append((_mask_contexts(), _mask_shape(shape)))
        num_rows = sum(_num_blocks(*walk) for walk in walks)
        work = sum(_work(*walk) for walk in walks)
        return self.num_rows + num_rows <= MAX_ROWS and self.work + work <= MAX_WORK

    def mark(self) -> tuple[int, int, dict[tuple[int, ...], np.ndarray]]:
        """Returns the state, for ``back_to``."""
        return self.num_rows, self.work, dict(self.learnt)

    def back_to(self, mark: tuple[int, int, dict[tuple[int, ...], np.ndarray]]) -> None:
        """Forgets what came after a mark."""
        self.num_rows, self.work, self.learnt = *mark[:2], dict(mark[2])

    def walk(self, shape: tuple[int, int], contexts: _Contexts, transfer: Callable) -> None:
        """Runs ``_walk`` with the counts of the layer before, and keeps the new ones."""
        self.num_rows += _num_blocks(contexts, shape)
        if self.num_rows > MAX_ROWS:
            raise ModelFileError(f"over {MAX_ROWS:,} rows of indices, too many to decode")
        self.work += _work(contexts, shape)
        if self.work > MAX_WORK:
            raise ModelFileError(
                f"{math.prod(shape):,} indices into {len(contexts.levels)} values take too long to "
                "decode; write it again with entropy coding off, or with fewer values"
            )
        kind = contexts.counts.shape
        contexts.inherit(self.learnt.get(kind))
        _walk(shape, contexts, transfer)
        self.learnt[kind] = contexts.counts


def _mask_contexts() -> _Contexts:
    """Returns the contexts of a mask: the two input channels before, in the same filter."""
    return _Contexts(_MASK_LEVELS, np.array([32, 32], np.int32), np.array([255, 510, 765]))


def as_matrix(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel as rows of taps (of a Dense layer: inputs) and columns of channels."""
    return kernel.reshape(_matrix_shape(kernel.shape))


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns [rows, columns] of ``as_matrix``."""
    num_rows = math.prod(shape[: max(len(shape) - 2, 1)])
    return num_rows, math.prod(shape) // num_rows


def _mask_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns [input channels, filters] of a convolution's kernel, [1, units] of a Dense one."""
    return (shape[-2], shape[-1]) if len(shape) > 2 else (1, shape[1])


def _pack_coded(
    coding: int,
    shape: tuple[int, ...],
    kept: np.ndarray,
    contexts: _Contexts,
    indices: np.ndarray,
    book: bytes,
    coder: _Coder,
) -> bytes:
    """Returns mask and indices through the range coder."""
    family = constriction.stream.model.Categorical(perfect=False)
    encoder = constriction.stream.queue.RangeEncoder()

    def sender(symbols: np.ndarray) -> Callable:
        def transfer(weights: np.ndarray, row: int, columns: slice) -> np.ndarray:
            encoder.encode(symbols[row, columns].astype(np.int32), family, weights)
            return symbols[row, columns]

        return transfer

    if not kept.all():
        mask = kept.reshape(_mask_shape(shape)).astype(np.uint8)
        coder.walk(mask.shape, _mask_contexts(), sender(mask))
    settings = b""
    if len(contexts.levels) > 1:
        if coding == CODED:
            settings = struct.pack("<2b3H", *contexts.weights, *contexts.thresholds)
        coder.walk(indices.shape, contexts, sender(indices))
    words = encoder.get_compressed().astype("<u4").tobytes()
    mask_coding = MASK_NONE if kept.all() else MASK_CODED
    return bytes([coding, mask_coding]) + book + settings + words


# --------------------------------------------------------------------------------------------
# Reading


class _Reader:
    """Takes bytes off a buffer, never more than there are.

    Args:
        data: The buffer.
        what: Its name, for messages.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = memoryview(data)
        self._what = what
        self.position = 0

    def take(self, num_bytes: int) -> memoryview:
        """Returns the next bytes."""
        part = self._data[self.position : self.position + num_bytes]
        if len(part) < num_bytes:
            raise ModelFileError(f"{self._what} ends too early; copy the file again")
        self.position += num_bytes
        return part

    def byte(self) -> int:
        """Returns the next byte."""
        return self.take(1)[0]

    def rest(self) -> memoryview:
        """Returns all that is left."""
        return self.take(len(self._data) - self.position)

    def end(self) -> None:
        """Raises ModelFileError if anything is left."""
        left = len(self._data) - self.position
        if left:
            raise ModelFileError(f"{self._what} has {left:,} bytes too many; copy the file again")

    def section(self, name: str) -> bytes:
        """Returns the payload of the next section, its checksum checked."""
        length = shift = 0
        while True:
            byte = self.byte()
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 28:
                raise ModelFileError(f"the length of {name} is damaged; copy the file again")
        payload = bytes(self.take(length))
        (expected,) = struct.unpack("<I", self.take(4))
        if zlib.crc32(payload) != expected:
            raise ModelFileError(f"the checksum of {name} is wrong; copy the file again")
        return payload


def read_compact(path: str | os.PathLike) -> ModelFile:
    """Reads a packed file as data, as ``speech.modelfile.read.read_model_file`` reads an .h5 file.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: The file is refused; the message says why and what to do.
    """
    return inspect_compact(path).model


def inspect_compact(path: str | os.PathLike) -> CompactFile:
    """Reads a packed file and says where its bytes go; raises as ``read_compact``."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such model file; check the path", str(path))
    with refusals(path):
        if not path.is_file():
            raise ModelFileError("not a regular file, expected a packed model file")
        limit = MAX_WEIGHT_BYTES + MAX_HEADER_BYTES
        if path.stat().st_size > limit:
            raise ModelFileError(f"{path.stat().st_size:,} bytes, expected at most {limit:,}")
        data = path.read_bytes()
        found = unpack(data)
    return replace(found, model=replace(found.model, sha256=sha256_of(path), path=path))


def unpack(data: bytes) -> CompactFile:
    """Decodes the bytes of a packed file; the model comes without path and SHA-256.

    Raises:
        ModelFileError: The bytes are refused; the message does not name the file.
    """
    reader = _Reader(data, "the file")
    if bytes(data[: len(COMPACT_MAGIC)]) != COMPACT_MAGIC:
        raise ModelFileError("not a packed model file: it does not start with 89 'ICSE'")
    reader.take(len(COMPACT_MAGIC))
    version = reader.byte()
    if version != VERSION:
        raise ModelFileError(f"format version {version}, expected {VERSION}; update this program")
    start = reader.position
    header = _read_header(reader.section("the header"))
    header_bytes = reader.position - start
    plan = _plan(header)
    num_bytes = sum(4 * math.prod(shape) for _, shapes in plan for shape in shapes.values())
    if num_bytes > _most_bytes(len(data)):
        raise ModelFileError(
            f"refused: {num_bytes:,} bytes of weights in a file of {len(data):,} bytes, expected "
            f"at most {_most_bytes(len(data)):,}"
        )
    start = reader.position
    others = _Reader(reader.section("biases and normalisation"), "biases and normalisation")
    others_bytes = reader.position - start
    layers, sizes, codings, coder = [], {}, {}, _Coder()
    for layer, shapes in plan:
        weights = {}
        for key, shape in shapes.items():
            if not is_kernel(key):
                weights[key] = _read_floats(others, others.byte(), shape)
                continue
            name = kernel_name(layer.name, key)
            start, what = reader.position, f"the kernel of {name}"
            payload = _Reader(reader.section(what), what)
            coding = payload.byte()
            weights[key] = _read_kernel(payload, coding, shape, coder)
            codings[name] = CODINGS[coding]
            sizes[name] = reader.position - start
        for key, array in weights.items():
            if not np.isfinite(array).all():
                raise ModelFileError(f"{layer.name}/{key} holds NaN or infinite values")
        layers.append(replace(layer, weights=weights))
    others.end()
    (expected,) = struct.unpack("<I", reader.take(4))
    reader.end()
    if _checksum(layers) != expected:
        raise ModelFileError(
            "the weights come out otherwise than they went in; the file is damaged, or the "
            "installed constriction decodes otherwise (see docs/format.md)"
        )
    model = ModelFile(tuple(layers), header["meta"], "", Path())
    return CompactFile(model, header_bytes, others_bytes, sizes, codings, len(data))


def _read_header(payload: bytes) -> Any:
    inflate = zlib.decompressobj(-15)
    try:
        text = inflate.decompress(payload, MAX_HEADER_BYTES)
    except zlib.error as error:
        raise ModelFileError(f"the header is damaged ({error}); copy the file again") from None
    if not inflate.eof or inflate.unused_data:
        raise ModelFileError(f"the header is damaged or takes over {MAX_HEADER_BYTES:,} bytes")
    header = parse_json(text.decode("utf-8", "replace"), "the header")
    _plan(header)
    meta_text(header["meta"])
    return header


def _read_floats(reader: _Reader, coding: int, shape: tuple[int, ...]) -> np.ndarray:
    if coding == ZEROS:
        return np.zeros(shape, np.float32)
    if coding not in _FLOATS:
        raise ModelFileError(f"an array has the coding {coding}, expected 0 to {CODED_FLAT}")
    dtype = _FLOATS[coding]
    data = reader.take(dtype.itemsize * math.prod(shape))
    return np.frombuffer(data, dtype).astype(np.float32).reshape(shape)


def _read_kernel(reader: _Reader, coding: int, shape: tuple[int, ...], coder: _Coder) -> np.ndarray:
    if coding not in (PACKED, CODED, CODED_FLAT):
        kernel = _read_floats(reader, coding, shape)
        reader.end()
        return kernel
    mask_coding = reader.byte()
    if mask_coding not in (MASK_NONE, MASK_PACKED if coding == PACKED else MASK_CODED):
        raise ModelFileError(f"a mask has the coding {mask_coding}, which does not fit")
    num_rows, num_columns = _matrix_shape(shape)
    kept = np.ones(num_columns, bool)
    if mask_coding == MASK_PACKED:
        bits = np.frombuffer(reader.take(-(-num_columns // 8)), np.uint8)
        kept = np.unpackbits(bits, count=num_columns).astype(bool)
    values = _read_book(reader)
    if coding == PACKED:
        indices = _read_bits(reader, (num_rows, int(kept.sum())), index_bits(len(values)))
    else:
        kept, indices = _read_coded(reader, coding, shape, kept, mask_coding, values, coder)
    reader.end()
    if indices.size and indices.max() >= len(values):
        raise ModelFileError("an index lies outside of its codebook")
    if kept.all():
        return values[indices].reshape(shape)
    kernel = np.zeros((num_rows, num_columns), np.float32)
    kernel[:, kept] = values[indices]
    return kernel.reshape(shape)


def _read_book(reader: _Reader) -> np.ndarray:
    """Returns a codebook, float32 [k], ascending and finite."""
    size, coding = reader.byte() + 1, reader.byte()
    if coding not in _BOOKS:
        raise ModelFileError(f"a codebook has the format {coding}, expected 0 to {BOOK_INT8}")
    scale = np.float32(1)
    if coding == BOOK_INT8:
        scale = np.frombuffer(b"\0\0" + bytes(reader.take(2)), "<f4")[0]
    data = reader.take(size * _BOOKS[coding].itemsize)
    stored = np.frombuffer(data, _BOOKS[coding]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored * scale
    if not (np.isfinite(values).all() and (values[1:] > values[:-1]).all()):
        raise ModelFileError("a codebook is not finite and ascending")
    return values


def _read_bits(reader: _Reader, shape: tuple[int, int], num_bits: int) -> np.ndarray:
    count = math.prod(shape)
    data = np.frombuffer(reader.take(-(-count * num_bits // 8)), np.uint8)
    indices = np.zeros(count, np.uint8)
    padded = np.zeros((_BLOCK, 8), np.uint8)
    for start in range(0, count, _BLOCK if num_bits else max(count, 1)):
        block = indices[start : start + _BLOCK]
        part = data[start * num_bits // 8 :]
        bits = np.unpackbits(part[:_BLOCK], count=len(block) * num_bits)
        padded[: len(block), 8 - num_bits :] = bits.reshape(len(block), num_bits)
        block[:] = np.packbits(padded[: len(block)], axis=1)[:, 0]
    return indices.reshape(shape)


def _read_coded(
    reader: _Reader,
    coding: int,
    shape: tuple[int, ...],
    kept: np.ndarray,
    mask_coding: int,
    values: np.ndarray,
    coder: _Coder,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mask [columns] and indices [rows, kept columns] out of the range coder."""
    contexts: _Contexts | None = None
    if len(values) > 1 and coding == CODED_FLAT:
        contexts = _Flat(_levels(values))
    elif len(values) > 1:
        *weights, low, middle, high = struct.unpack("<2b3H", reader.take(8))
        thresholds = np.array([low, middle, high], np.int32)
        if not low <= middle <= high:
            raise ModelFileError("the thresholds of the contexts are not ascending")
        contexts = _Contexts(_levels(values), np.array(weights, np.int32), thresholds)
    data = bytes(reader.rest())
    if len(data) % 4:
        raise ModelFileError("the indices are no whole number of words; copy the file again")
    words = np.frombuffer(data, "<u4").astype(np.uint32)
    family = constriction.stream.model.Categorical(perfect=False)
    decoder = constriction.stream.queue.RangeDecoder(words)

    def receiver(symbols: np.ndarray) -> Callable:
        def transfer(weights: np.ndarray, row: int, columns: slice) -> np.ndarray:
            found = decoder.decode(family, weights)
            symbols[row, columns] = found
            return found

        return transfer

    with _invalid_streams():
        if mask_coding == MASK_CODED:
            mask = np.zeros(_mask_shape(shape), np.uint8)
            coder.walk(mask.shape, _mask_contexts(), receiver(mask))
            kept = mask.ravel().astype(bool)
        indices = np.zeros((_matrix_shape(shape)[0], int(kept.sum())), np.uint8)
        if contexts is not None:
            coder.walk(indices.shape, contexts, receiver(indices))
    return kept, indices


@contextlib.contextmanager
def _invalid_streams() -> Iterator[None]:
    """Turns what constriction raises for a stream no encoder made into a ``ModelFileError``."""
    try:
        yield
    except ModelFileError:
        raise
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        reason = " ".join(str(error).split())[:100]
        raise ModelFileError(f"the indices are damaged ({reason}); copy the file again") from None
