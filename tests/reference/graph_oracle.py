"""Layers over time and frequency a second, naive way: float64, one output at a time."""

from __future__ import annotations

import numpy as np


def convolve(inputs, kernel, bias, strides, dilations, padding):
    """y[t, f, o] = b[o] + sum over taps (p, q) and i of x[t s + p d - pad, ...] w[p, q, i, o]."""
    taps = kernel.shape[:2]
    reaches = [(taps[a] - 1) * dilations[a] for a in (0, 1)]
    if padding == "same":
        sizes = [-(-inputs.shape[a] // strides[a]) for a in (0, 1)]
        missing = [
            max((sizes[a] - 1) * strides[a] + reaches[a] + 1 - inputs.shape[a], 0) for a in (0, 1)
        ]
        pads = [count // 2 for count in missing]
    else:
        sizes = [-(-(inputs.shape[a] - reaches[a]) // strides[a]) for a in (0, 1)]
        pads = [0, 0]
    result = np.zeros((*sizes, kernel.shape[3])) + bias
    for t in range(sizes[0]):
        for f in range(sizes[1]):
            for p in range(taps[0]):
                for q in range(taps[1]):
                    row = t * strides[0] + p * dilations[0] - pads[0]
                    column = f * strides[1] + q * dilations[1] - pads[1]
                    if 0 <= row < inputs.shape[0] and 0 <= column < inputs.shape[1]:
                        result[t, f] += inputs[row, column] @ kernel[p, q].astype(np.float64)
    return result


def convolve_transposed(inputs, kernel, bias, strides):
    """Each input adds w[p, q, o, i] x[t, f, i] at (t s + p - pad, f s + q - pad); 'same'."""
    taps = kernel.shape[:2]
    sizes = [inputs.shape[a] * strides[a] for a in (0, 1)]
    pads = [max(taps[a] - strides[a], 0) // 2 for a in (0, 1)]
    result = np.zeros((*sizes, kernel.shape[2])) + bias
    for t in range(inputs.shape[0]):
        for f in range(inputs.shape[1]):
            for p in range(taps[0]):
                for q in range(taps[1]):
                    row, column = t * strides[0] + p - pads[0], f * strides[1] + q - pads[1]
                    if 0 <= row < sizes[0] and 0 <= column < sizes[1]:
                        result[row, column] += kernel[p, q].astype(np.float64) @ inputs[t, f]
    return result
