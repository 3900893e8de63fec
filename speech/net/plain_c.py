"""Writes a causal network as C99 sources that need nothing: runtime, weights, program, Makefile.

The runtime is ``kernels/denoise.c``, which Python streams run as well. ``weights.c`` holds the
table of layers (``speech.net.plan``) and each kernel in the smallest exact form: floats, halves, or
indices of as few bits as its codebook needs, with a bit per weight that says whether it is zero
where that is shorter. A layer's kernel is unpacked each time before it runs, into memory that all
layers share.

Indices stay where they are, or they are coded (``speech.net.indexcoder``), which takes less flash
and more RAM: the runtime decodes them at the start, into a byte for each index. Unless the caller
chooses, they are coded if that saves more than 5 % of the flash for weights.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speech.modelfile.icse import exact_floats, index_bits, pack, pack_bits
from speech.modelfile.spec import ModelFile
from speech.net import indexcoder, tape
from speech.net import plan as plans
from speech.net.plan import Layer, Plan, plan_of

_KERNELS = Path(__file__).parent / "kernels"
_TEMPLATES = Path(__file__).parent.parent / "templates" / "c"

#: How indices are stored: coded, or of as few bits as their codebook needs.
CODED, PACKED = "coded", "packed"
WEIGHTS = (CODED, PACKED)
#: Coding is worth its RAM where the weights take less than this part of what they take packed.
CODED_BELOW = 0.95

(_FLOATS, _HALVES, _INDICES_TO_FLOATS, _INDICES_TO_HALVES, _CODED_TO_FLOATS,
 _CODED_TO_HALVES) = range(6)  # fmt: skip
_FORMATS = (
    "DENOISE_FLOATS", "DENOISE_HALVES", "DENOISE_INDICES_TO_FLOATS", "DENOISE_INDICES_TO_HALVES",
    "DENOISE_CODED_TO_FLOATS", "DENOISE_CODED_TO_HALVES",
)  # fmt: skip
_KINDS = ("DENOISE_CONVOLUTION", "DENOISE_OVER_BANDS", "DENOISE_POINTWISE")
_ACTIVATIONS = ("DENOISE_LINEAR", "DENOISE_SILU")
_MOST_VALUES = 256

# Bytes of the structs in denoise.h where a pointer has 4 bytes.
_TENSOR_BYTES, _LAYER_BYTES, _MODEL_BYTES, _STATE_BYTES = 16, 48, 48, 12 + 2 * plans.MOST_RINGS


@dataclass(frozen=True)
class DeviceSizes:
    """The bytes that a network needs on a device.

    Attributes:
        weight_bytes: Constants: kernels, codebooks and biases.
        table_bytes: Constants: tables of layers and tensors, with pointers of 4 bytes.
        ram_bytes: State and working memory.
        state_bytes: The part of ``ram_bytes`` that one hop leaves for the next.
        scratch_bytes: The part of ``ram_bytes`` that holds the kernel being unpacked.
        index_bytes: The part of ``ram_bytes`` that holds indices decoded at the start; 0: none are
            coded.
        num_unpacked: Weights that are unpacked for each hop.
    """

    weight_bytes: int
    table_bytes: int
    ram_bytes: int
    state_bytes: int
    scratch_bytes: int
    index_bytes: int
    num_unpacked: int


@dataclass(frozen=True)
class PlainC:
    """A network as C sources.

    Attributes:
        files: Texts by name.
        sizes: What it takes on a device.
        packed_bytes: Of the packed model file.
    """

    files: dict[str, str]
    sizes: DeviceSizes
    packed_bytes: int


@dataclass(frozen=True)
class _Stored:
    """An array as it stands in weights.c; `mask` and `book` may be empty.

    `num_indices` are decoded at the start; 0 if it is not coded.
    """

    format: int
    data: bytes
    book: bytes = b""
    book_size: int = 0
    mask: bytes = b""
    mask_rows: int = 0
    num_indices: int = 0

    @property
    def num_bytes(self) -> int:
        return len(self.data) + len(self.book) + len(self.mask)


def stored(array: np.ndarray, *, coded: bool = False) -> _Stored:
    """Returns the shortest exact form of a kernel.

    Args:
        array: float32 [..., in, out].
        coded: Whether indices may be coded.
    """
    forms = [_plain(array)]
    rows = array.reshape(-1, array.shape[-2] * array.shape[-1])
    whole = np.ones(rows.shape, bool)
    for kept in (whole, whole & rows.any(axis=0), rows != 0):
        chosen = rows[kept]
        values = np.unique(chosen)
        if not 1 <= len(values) <= _MOST_VALUES:
            continue
        indices = np.searchsorted(values, chosen).astype(np.uint8)
        packed = pack_bits(indices, index_bits(len(values)))
        book = _plain(values)
        is_halves = book.format == _HALVES
        same = bool((kept == kept[0]).all())  # one row of the mask does for all
        mask = b"" if kept.all() else np.packbits(kept[0] if same else kept).tobytes()
        form = _Stored(
            _INDICES_TO_HALVES if is_halves else _INDICES_TO_FLOATS,
            packed + b"\0\0",  # what is read beyond the last index
            book.data,
            len(values),
            mask,
            (1 if same else len(rows)) if mask else 0,
        )
        forms.append(form)
        if coded and form.mask_rows < 2:  # coded zeros need no bits for where they are
            forms.append(
                replace(
                    form,
                    format=_CODED_TO_HALVES if is_halves else _CODED_TO_FLOATS,
                    data=indexcoder.encode(indices, len(values)),
                    num_indices=len(indices),
                )
            )
    return min(forms, key=lambda form: form.num_bytes)


def _shape(layer: Layer) -> tuple[int, ...]:
    return () if layer.kernel is None else layer.kernel.shape


def _plain(array: np.ndarray) -> _Stored:
    floats = exact_floats(array)
    return _Stored(_HALVES if floats.itemsize == 2 else _FLOATS, floats.tobytes())


class _Encoded:
    """Kernels and biases of a plan in their shortest forms, by layer, and what they need."""

    def __init__(self, plan: Plan, *, coded: bool) -> None:
        self.kernels = {
            i: stored(x.kernel, coded=coded)
            for i, x in enumerate(plan.layers)
            if x.kernel is not None
        }
        self.biases = {i: _plain(x.bias) for i, x in enumerate(plan.layers) if x.bias is not None}
        scratch = num_unpacked = 0
        for number, kernel in self.kernels.items():
            layer = plan.layers[number]
            wide, bias = plan.widened[number]
            assert wide is not None
            is_ready = kernel.format == _FLOATS and wide.shape == _shape(layer)
            if not is_ready:
                num_unpacked += math.prod(_shape(layer))
            if not is_ready or bias is not None:
                outs = tape.padded(wide.shape[-1])
                scratch = max(scratch, outs + (0 if is_ready else wide.size))
        place = 4 * (plan.tensor_floats + scratch)
        self.places: dict[int, int] = {}  # of decoded indices, in bytes, by layer
        for number, kernel in self.kernels.items():
            if kernel.num_indices:
                self.places[number] = place
                place += kernel.num_indices
        self.num_floats = plans.array_floats(plan.conventions) + -(-place // 4)
        self.sizes = DeviceSizes(
            sum(item.num_bytes for item in (*self.kernels.values(), *self.biases.values())),
            _MODEL_BYTES + _TENSOR_BYTES * len(plan.tensors) + _LAYER_BYTES * len(plan.layers),
            4 * self.num_floats + _STATE_BYTES,
            plan.state_bytes,
            4 * scratch,
            sum(kernel.num_indices for kernel in self.kernels.values()),
            num_unpacked,
        )


def _encoded(plan: Plan, weights: str | None) -> _Encoded:
    if weights not in (None, *WEIGHTS):
        raise ValueError(f"weights is {weights!r}, expected {' or '.join(WEIGHTS)}, or None")
    found = {
        name: _Encoded(plan, coded=name == CODED) for name in WEIGHTS if weights in (None, name)
    }
    if weights is None:
        coded, packed = (found[name].sizes.weight_bytes for name in (CODED, PACKED))
        weights = CODED if coded < CODED_BELOW * packed else PACKED
    return found[weights]


def sizes_of(file: ModelFile, weights: str | None = None) -> DeviceSizes:
    """Returns what a network takes on a device; arguments and errors are those of `plain_c`."""
    return _encoded(plan_of(file), weights).sizes


def plain_c(file: ModelFile, weights: str | None = None) -> PlainC:
    """Writes a network as C.

    Args:
        file: A causal network of the kind 'complex_mask'.
        weights: How indices are stored, one of `WEIGHTS`; None chooses.

    Raises:
        ModelFileError: It cannot stream; the message says why.
        ValueError: There are no such ``weights``.
    """
    plan = plan_of(file)
    encoded, packed_bytes = _encoded(plan, weights), len(pack(file.layers, file.meta))
    files = {name: (_KERNELS / name).read_text() for name in ("denoise.h", "denoise.c")}
    files |= {name: (_TEMPLATES / name).read_text() for name in ("main.c", "Makefile")}
    files["weights.h"] = _weights_h(plan, encoded)
    files["weights.c"] = "".join(_weights_c(file, plan, encoded))
    files["README.md"] = _readme(file, plan, encoded.sizes, packed_bytes)
    return PlainC(files, encoded.sizes, packed_bytes)


def _weights_h(plan: Plan, encoded: _Encoded) -> str:
    stft, index_bytes = plan.conventions.stft, encoded.sizes.index_bytes
    decoded = f" /* {index_bytes:,} bytes of them for decoded indices */" if index_bytes else ""
    return f"""/* The network of weights.c and the memory that it needs. */

#ifndef DENOISE_WEIGHTS_H
#define DENOISE_WEIGHTS_H

#include "denoise.h"

#define DENOISE_RATE_HZ {plan.conventions.sample_rate_hz}
#define DENOISE_FRAME {stft.frame}
#define DENOISE_HOP {stft.hop}
#define DENOISE_MEMORY_FLOATS {encoded.num_floats}{decoded}

extern const denoise_model denoise_weights;

#endif
"""


def _weights_c(file: ModelFile, plan: Plan, encoded: _Encoded) -> Iterator[str]:
    kernels, biases = encoded.kernels, encoded.biases
    yield f"/* The network of {file.path.name}, sha256 {file.sha256}. */\n\n"
    yield '#include "weights.h"\n\n'
    for number, layer in enumerate(plan.layers):
        if number in kernels:
            kernel = kernels[number]
            yield f"/* {layer.name}: {' x '.join(map(str, _shape(layer)))} */\n"
            yield _array(f"kernel_{number}", kernel.data, kernel.format == _FLOATS)
            if kernel.book:
                is_floats = kernel.format in (_INDICES_TO_FLOATS, _CODED_TO_FLOATS)
                yield _array(f"book_{number}", kernel.book, is_floats)
            if kernel.mask:
                yield _array(f"mask_{number}", kernel.mask, False)
        if number in biases:
            bias = biases[number]
            yield _array(f"bias_{number}", bias.data, bias.format == _FLOATS)
    yield "static const denoise_tensor tensors[] = {\n"
    ring = 0
    for tensor in plan.tensors:
        numbers = (
            tensor.place, tensor.bands, tensor.wide, tensor.before, tensor.after, tensor.frames,
            ring,
        )  # fmt: skip
        yield f"    {{{', '.join(map(str, numbers))}}},\n"
        ring += tensor.frames > 1
    yield "};\n\nstatic const denoise_layer layers[] = {\n"
    for number, layer in enumerate(plan.layers):
        place = encoded.places.get(number, 0)
        yield _table_row(number, layer, kernels.get(number), biases.get(number), place)
    stft, power = plan.conventions.stft, plan.conventions.power
    window = "DENOISE_ROOT_HANN" if stft.window == "sqrt_hann" else "DENOISE_HANN"
    yield f"""}};

const denoise_model denoise_weights = {{
    {plan.conventions.sample_rate_hz}, {stft.frame}, {stft.hop}, {window}, {_literal(power)},
    {len(plan.tensors)}, {len(plan.layers)}, {plan.features}, {plan.masks}, {plan.split},
    {plan.tensor_floats}, {encoded.num_floats}, tensors, layers,
}};
"""


def _table_row(
    number: int, layer: Layer, kernel: _Stored | None, bias: _Stored | None, place: int
) -> str:
    ins, outs = (0, 0) if layer.kernel is None else layer.kernel.shape[-2:]
    numbers = (
        layer.source, layer.target, layer.residual, layer.first, layer.taps, layer.dilation,
        layer.width, layer.stride, ins, outs, kernel.book_size if kernel else 0,
        kernel.mask_rows if kernel else 0, place,
    )  # fmt: skip
    places = [
        f"kernel_{number}" if kernel else "0",
        f"book_{number}" if kernel and kernel.book else "0",
        f"mask_{number}" if kernel and kernel.mask else "0",
        f"bias_{number}" if bias else "0",
    ]
    names = [
        _KINDS[layer.kind],
        _ACTIVATIONS[plans.ACTIVATIONS.index(layer.activation)],
        _FORMATS[kernel.format if kernel else 0],
        _FORMATS[bias.format if bias else 0],
    ]
    rows = [", ".join(names), ", ".join(map(str, numbers)), ", ".join(places)]
    return "    {" + ",\n     ".join(rows) + "},\n"


def _array(name: str, data: bytes, is_floats: bool) -> str:
    """Returns a constant of floats or bytes."""
    if is_floats:
        items, kind = [_literal(float(x)) for x in np.frombuffer(data, "<f4")], "float"
        per_line = 8
    else:
        items, kind, per_line = [str(byte) for byte in data], "uint8_t", 24
    lines = [", ".join(items[start : start + per_line]) for start in range(0, len(items), per_line)]
    return f"static const {kind} {name}[] = {{\n    " + ",\n    ".join(lines) + "};\n\n"


def _literal(value: float) -> str:
    """Returns a float32 in C, exact."""
    text = f"{value:.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def _readme(file: ModelFile, plan: Plan, found: DeviceSizes, packed_bytes: int) -> str:
    conventions = plan.conventions
    stft, rate_hz = conventions.stft, conventions.sample_rate_hz
    if found.index_bytes:
        packing = (
            "Kernels are stored as indices into codebooks, and the indices are coded. "
            "`denoise_start` decodes them into the memory of its state, a byte for each, and a "
            "layer's kernel is unpacked from there each time it is needed. "
            "`python -m speech.export --weights packed` leaves the indices in flash, which takes "
            "more flash and that much less RAM."
        )
    elif found.num_unpacked:
        packing = (
            "Kernels are stored in their shortest exact form: as indices into a codebook, as "
            "halves or as floats. They are unpacked layer by layer each time they are needed."
        )
    else:
        packing = (
            "Kernels are floats and stay where they are; a model that was quantized "
            "(`python -m quantization.run`) takes a fraction of the flash."
        )
    template = string.Template((_TEMPLATES / "README.md").read_text())
    return template.substitute(
        model=file.path.name,
        sha256=file.sha256,
        rate_hz=rate_hz,
        hop=stft.hop,
        hop_ms=f"{1000 * stft.hop / rate_hz:g}",
        frame=stft.frame,
        latency_ms=f"{1000 * stft.frame / rate_hz:g}",
        weight_bytes=f"{found.weight_bytes:,}",
        table_bytes=f"{found.table_bytes:,}",
        packed_bytes=f"{packed_bytes:,}",
        ram_bytes=f"{found.ram_bytes:,}",
        state_bytes=f"{found.state_bytes:,}",
        scratch_bytes=f"{found.scratch_bytes:,}",
        decoded=f", {found.index_bytes:,} are decoded indices" if found.index_bytes else "",
        mac_per_second=f"{plan.mac_per_frame * rate_hz / stft.hop / 1e6:.1f}",
        mac_per_hop=f"{plan.mac_per_frame:,}",
        num_powers=stft.frame,
        num_unpacked=f"{found.num_unpacked:,}",
        packing=packing,
    )
