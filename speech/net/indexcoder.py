"""Codes indices into a codebook for a device: an adaptive range coder in whole numbers.

``kernels/denoise.c`` decodes what ``encode`` writes. Both keep a count of each index, which starts
at 1; an index of count c among a total of n takes c / n of the range (G. N. N. Martin, Range
encoding, 1979), and then its count grows by `STEP`. No table of probabilities is stored. There are
only additions, products and quotients of whole numbers below 2^32, so that every machine decodes
the same; the coder of the packed file (``speech.modelfile.icse``) computes with floats, and so no
device could be trusted with it. Contexts like those of the packed file save nothing here: taps and
channels of small kernels do not resemble their neighbours (docs/format.md).
"""

from __future__ import annotations

import numpy as np

#: What one occurrence adds to a count.
STEP = 2
#: A total above this halves all counts: they are 16 bits on a device.
MOST_TOTAL = 1 << 15

_TOP = 1 << 32
_LEAST_RANGE = 1 << 24


def encode(indices: np.ndarray, num_values: int) -> bytes:
    """Returns coded indices; a decoder reads every byte and none beyond.

    Args:
        indices: Whole numbers [n] from 0 to ``num_values - 1``.
        num_values: Of the codebook, 1 to 256.

    Raises:
        ValueError: An index lies outside of the codebook.
    """
    if indices.size and not 0 <= indices.min() <= indices.max() < num_values <= 256:
        raise ValueError(
            f"indices from {indices.min()} to {indices.max()} into {num_values} values, expected "
            "0 to below the number of values, which is at most 256"
        )
    counts, total = [1] * num_values, num_values
    low, span, out = 0, _TOP - 1, bytearray()
    for index in indices.tolist():
        part = span // total
        low += part * sum(counts[:index])
        span = part * counts[index]
        if low >= _TOP:
            _carry(out)
            low -= _TOP
        while span < _LEAST_RANGE:
            out.append(low >> 24)
            low = low << 8 & _TOP - 1
            span <<= 8
        counts[index] += STEP
        total += STEP
        if total > MOST_TOTAL:
            counts = [count - count // 2 for count in counts]
            total = sum(counts)
    return bytes(out) + low.to_bytes(4, "big")


def _carry(out: bytearray) -> None:
    """Adds one to the number that the bytes are."""
    place = len(out) - 1
    while out[place] == 0xFF:
        out[place] = 0
        place -= 1
    out[place] += 1
