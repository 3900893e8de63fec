"""The size of a packed model by every count, layer by layer (docs/papers.md, eq. Q3).

Ways of counting, in bytes:

* paper: non-zero weights x log2(k) bits and nothing else; k as asked, of one sign if per sign;
* packed: indices of a fixed number of bits, one bit per channel for the mask where something is
  pruned, the codebook, and whatever else the layer has;
* entropy: the same with indices at their entropy, the bound of a code without context (Huffman's);
* file: the bytes of the layer's section in the .icse file, which uses a code with context.

The rows 'biases, norms', 'header' and 'frame' stand for what belongs to no kernel, so that the
column 'file' adds up to the length of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from speech.modelfile.icse import CompactFile, as_matrix, index_bits, pack_floats
from speech.modelfile.spec import is_kernel, kernel_name

FLOAT_BYTES = 4
CENTROID_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
WAYS = {"fp32": "FP32", "paper": "paper rule", "packed": "bit-packed", "entropy": "entropy",
        "file": "file"}  # fmt: skip


@dataclass(frozen=True)
class SizeRow:
    """Bytes of one layer, or of one of the other parts of a file.

    Attributes:
        name: Layer or part.
        num_values: Distinct non-zero values of the kernel; 0 if there is none.
        weights: Of the kernel.
        nonzero: Weights that are not zero.
        fp32: Bytes of the layer's kernel, or of the part, in FP32.
        paper: See the module.
        packed: Likewise.
        entropy: Likewise.
        file: Likewise.
    """

    name: str
    num_values: int
    weights: int
    nonzero: int
    fp32: float
    paper: float
    packed: float
    entropy: float
    file: float


def account(found: CompactFile, k_of: Mapping[str, int], centroids: str = "fp32") -> list[SizeRow]:
    """Counts a packed file.

    Args:
        found: What ``speech.modelfile.icse.inspect_compact`` gives.
        k_of: k of the paper's rule by layer; layers without are counted by the values they hold.
        centroids: How centroids are stored: 'fp32', 'fp16' or 'int8'.

    Returns:
        A row per kernel, then 'biases, norms', 'header' (configuration and meta data) and 'frame'.
    """
    rows, others = [], []
    for layer in found.model.layers:
        for key, array in layer.weights.items():
            if not is_kernel(key):
                others.append(array)
                continue
            name = kernel_name(layer.name, key)
            file_bytes = found.kernel_bytes[name]
            rows.append(_kernel_row(name, array, k_of, CENTROID_BYTES[centroids], file_bytes))
    fp32 = FLOAT_BYTES * sum(array.size for array in others)
    stored = sum(len(pack_floats(array)) - 1 for array in others)
    used = found.header_bytes + found.others_bytes + sum(found.kernel_bytes.values())
    frame = found.file_bytes - used
    return [
        *rows,
        SizeRow("biases, norms", 0, 0, 0, fp32, 0, stored, stored, found.others_bytes),
        SizeRow("header", 0, 0, 0, 0, 0, 0, 0, found.header_bytes),
        SizeRow("frame", 0, 0, 0, 0, 0, 0, 0, frame),
    ]


def _kernel_row(
    name: str, kernel: np.ndarray, k_of: Mapping[str, int], centroid_bytes: int, file_bytes: int
) -> SizeRow:
    matrix = as_matrix(kernel)
    kept = matrix.any(axis=0)
    counts = np.unique(matrix[:, kept], return_counts=True)[1]
    nonzero = int(np.count_nonzero(kernel))
    num_values = len(np.unique(kernel[kernel != 0]))
    fp32 = FLOAT_BYTES * kernel.size
    extra = (0 if kept.all() else -(-kept.size // 8)) + centroid_bytes * len(counts)
    packed = extra + index_bits(max(len(counts), 1)) * int(counts.sum()) / 8
    entropy = extra + _entropy_bits(counts) / 8
    bits = math.ceil(math.log2(k_of.get(name, max(num_values, 1))))
    if packed >= fp32:  # a codebook would not pay
        stored = len(pack_floats(kernel)) - 1
        packed = entropy = stored
        bits = {4 * kernel.size: 32, 2 * kernel.size: 16}.get(stored, 0)
    return SizeRow(
        name, num_values, kernel.size, nonzero, fp32, nonzero * bits / 8, packed, entropy,
        file_bytes,
    )  # fmt: skip


def _entropy_bits(counts: np.ndarray) -> float:
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if len(counts) > 1 else 0.0


def total(rows: Sequence[SizeRow]) -> SizeRow:
    """Returns the sum of all rows."""
    sums = {
        key: sum(getattr(row, key) for row in rows)
        for key in SizeRow.__dataclass_fields__
        if key not in ("name", "num_values")
    }
    return SizeRow(name="total", num_values=max(row.num_values for row in rows), **sums)


def to_dict(rows: Sequence[SizeRow], original_bytes: int | None) -> dict[str, Any]:
    """Returns rows, total and percentages as JSON values.

    Args:
        rows: Of ``account``.
        original_bytes: Length of the original .h5 file, if it is at hand.
    """
    whole = total(rows)
    return {
        "rows": [asdict(row) for row in rows],
        "total": asdict(whole),
        "percent_of_fp32": {way: 100 * getattr(whole, way) / whole.fp32 for way in WAYS},
        "percent_of_original": original_bytes
        and {way: 100 * getattr(whole, way) / original_bytes for way in WAYS},
        "original_bytes": original_bytes,
    }


def format_sizes(rows: Sequence[SizeRow], original_bytes: int | None = None) -> str:
    """Returns the table: bytes by each way, percent of FP32, and of the original .h5 in total."""
    width = max(14, *(len(row.name) + 1 for row in rows))
    header = f"{'layer':<{width}}{'values':>7}{'non-zero':>10}" + f"{'FP32':>11}" + "".join(
        f"{WAYS[way]:>12}{'%':>7}" for way in list(WAYS)[1:]
    )  # fmt: skip
    lines = [header, "-" * len(header)]
    lines += [_line(row, row.fp32, width) for row in rows]
    whole = total(rows)
    lines += ["-" * len(header), _line(whole, whole.fp32, width)]
    if original_bytes:
        cells = "".join(
            f"{'':>12}{100 * getattr(whole, way) / original_bytes:>7.2f}" for way in list(WAYS)[1:]
        )
        lines.append(f"{'% of the .h5':<{width}}{'':>7}{original_bytes:>10,}{'':>11}" + cells)
    return "\n".join(lines)


def _line(row: SizeRow, base: float, width: int) -> str:
    cells = ""
    for way in list(WAYS)[1:]:
        value = getattr(row, way)
        share = f"{100 * value / base:.2f}" if base else ""
        cells += f"{round(value):>12,}{share:>7}"
    values = f"{row.num_values:,}" if row.num_values else ""
    return f"{row.name:<{width}}{values:>7}{row.nonzero or '':>10}{round(row.fp32):>11,}" + cells
