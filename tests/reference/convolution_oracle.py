"""Convolution and its gradients a second, naive way: float64, one tap at a time."""

from __future__ import annotations

import numpy as np


def _padded(signal, taps, pad, num_outputs):
    after = num_outputs + taps - 1 - pad - len(signal)
    return np.pad(np.asarray(signal, np.float64), ((pad, after), (0, 0)))


def convolve(signal, kernel, pad, num_outputs):
    """y[t, o] = sum over k and i of x[t + k - pad, i] w[k, i, o]."""
    padded = _padded(signal, len(kernel), pad, num_outputs)
    result = np.zeros((num_outputs, kernel.shape[2]))
    for tap, weights in enumerate(kernel):
        result += padded[tap : tap + num_outputs] @ np.asarray(weights, np.float64)
    return result


def input_gradient(gradient, kernel, pad, num_inputs):
    """Scatters each output's gradient back to the inputs that it was made of."""
    taps = len(kernel)
    result = np.zeros((len(gradient) + taps - 1, kernel.shape[1]))
    for tap, weights in enumerate(kernel):
        result[tap : tap + len(gradient)] += gradient.astype(np.float64) @ weights.T
    return result[pad : pad + num_inputs]


def filter_gradient(signal, gradient, taps, pad):
    """g[k, i, o] = sum over t of x[t + k - pad, i] dy[t, o]."""
    padded = _padded(signal, taps, pad, len(gradient))
    return np.stack(
        [padded[tap : tap + len(gradient)].T @ gradient.astype(np.float64) for tap in range(taps)]
    )
