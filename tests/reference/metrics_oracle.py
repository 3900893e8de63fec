"""Metrics the naive way: explicit matrices and loops in float64, straight from the definitions."""

from __future__ import annotations

import cmath
import math

import numpy as np


def sdr_db(reference, estimate, num_taps) -> float:
    """Least squares against a matrix whose columns are the delayed reference."""
    num_rows = len(reference) + num_taps - 1
    delayed = np.zeros((num_rows, num_taps))
    for delay in range(num_taps):
        delayed[delay : delay + len(reference), delay] = reference
    padded = np.zeros(num_rows)
    padded[: len(estimate)] = estimate
    fit = delayed @ np.linalg.lstsq(delayed, padded, rcond=None)[0]
    return 10 * math.log10(sum(fit**2) / sum((padded - fit) ** 2))


def si_sdr_db(reference, estimate) -> float:
    gain = _dot(reference, estimate) / _dot(reference, reference)
    target = [gain * x for x in reference]
    rest = [y - t for y, t in zip(estimate, target, strict=True)]
    return 10 * math.log10(_dot(target, target) / _dot(rest, rest))


def best_gain(reference, estimate) -> float:
    return _dot(reference, estimate) / _dot(estimate, estimate)


def ssnr_db(reference, estimate, limits=None) -> float:
    """Frames of 256 without overlap; what is left at the end is not used."""
    values = []
    for start in range(0, len(reference) - 255, 256):
        signal = error = 0.0
        for index in range(start, start + 256):
            signal += reference[index] ** 2
            error += (reference[index] - estimate[index]) ** 2
        if limits is None:
            if signal and error:
                values.append(10 * math.log10(signal / error))
        else:
            value = 10 * math.log10(max(signal, 1e-300) / max(error, 1e-300))
            values.append(min(max(value, limits[0]), limits[1]))
    return math.fsum(values) / len(values)


def lsd_db(reference, estimate) -> float:
    """512-point frames every 256, Hann; floor 50 dB below the highest value of the reference."""
    gain = best_gain(reference, estimate)
    one = _spectra(reference)
    other = _spectra([gain * y for y in estimate])
    floor = max(max(row) for row in one) * 10**-2.5
    distances = []
    for row, other_row in zip(one, other, strict=True):
        squares = [
            (20 * math.log10(max(a, floor)) - 20 * math.log10(max(b, floor))) ** 2
            for a, b in zip(row, other_row, strict=True)
        ]
        distances.append(math.sqrt(sum(squares) / len(squares)))
    return sum(distances) / len(distances)


def _spectra(signal):
    size, hop = 512, 256
    twiddle = [cmath.exp(-2j * math.pi * index / size) for index in range(size)]
    window = [math.sin(math.pi * index / size) ** 2 for index in range(size)]
    rows = []
    for start in range(0, len(signal) - size + 1, hop):
        frame = [signal[start + index] * window[index] for index in range(size)]
        rows.append(
            [
                abs(sum(frame[t] * twiddle[bin_ * t % size] for t in range(size)))
                for bin_ in range(size // 2 + 1)
            ]
        )
    return rows


def _dot(one, other) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(one, other, strict=True))
