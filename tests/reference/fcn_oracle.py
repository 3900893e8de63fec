"""The FCN's forward pass a second, naive way: float64 NumPy, written from docs/papers.md."""

from __future__ import annotations

import numpy as np


def convolve_same(signal, kernel, bias):
    """Convolves with kernels as they are stored (not flipped); the output is as long as the input.

    Args:
        signal: [time, channels in].
        kernel: [taps, channels in, filters].
        bias: [filters].
    """
    num_samples, num_channels = signal.shape
    taps, _, num_filters = kernel.shape
    before = (taps - 1) // 2
    padded = np.zeros((num_samples + taps - 1, num_channels))
    padded[before : before + num_samples] = signal
    result = np.empty((num_samples, num_filters))
    for filter_index in range(num_filters):
        total = np.full(num_samples, bias[filter_index], dtype=np.float64)
        for channel in range(num_channels):
            total += np.correlate(padded[:, channel], kernel[:, channel, filter_index], "valid")
        result[:, filter_index] = total
    return result


def normalise(signal, gamma, beta, epsilon):
    """Normalises every channel by this utterance's own mean and variance over time."""
    result = np.empty_like(signal)
    for channel in range(signal.shape[1]):
        values = signal[:, channel]
        mean = sum(values) / len(values)
        variance = sum((values - mean) ** 2) / len(values)
        result[:, channel] = (values - mean) / np.sqrt(variance + epsilon) * gamma[channel]
        result[:, channel] += beta[channel]
    return result


def forward(samples, hidden, last, *, negative_slope=0.3, epsilon=1e-5):
    """Runs the network on one utterance.

    Args:
        samples: [time].
        hidden: (kernel, bias, gamma, beta) of each hidden layer.
        last: (kernel, bias) of the last convolution.
        negative_slope: Slope of LeakyReLU below zero.
        epsilon: Added to the variance.

    Returns:
        [time] float64.
    """
    signal = np.asarray(samples, np.float64)[:, None]
    for layer in hidden:
        kernel, bias, gamma, beta = (np.asarray(array, np.float64) for array in layer)
        signal = normalise(convolve_same(signal, kernel, bias), gamma, beta, epsilon)
        signal = np.where(signal < 0, negative_slope * signal, signal)
    kernel, bias = (np.asarray(array, np.float64) for array in last)
    return np.tanh(convolve_same(signal, kernel, bias))[:, 0]


def forward_chain(signal, parameters, negative_slope=0.3):
    """The same of a flat list of arrays: kernel, bias, gamma, beta of each hidden layer."""
    hidden = [tuple(parameters[i : i + 4]) for i in range(0, len(parameters) - 2, 4)]
    return forward(signal, hidden, tuple(parameters[-2:]), negative_slope=negative_slope)
