"""The errors that a ranker expects: naive, float64, by the words of its module."""

from __future__ import annotations

import itertools

import numpy as np

HOP, FRAME = 256, 512


def spectra(signal):
    """Frames of 512 samples every 256 under a square-root Hann window, by the definition."""
    count = -(-(len(signal) + FRAME - HOP) // HOP)
    padded = np.zeros(count * HOP + FRAME)
    padded[FRAME - HOP : FRAME - HOP + len(signal)] = signal
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME))
    return np.array([np.fft.rfft(window * padded[t * HOP : t * HOP + FRAME]) for t in range(count)])


def edges():
    """The first bin of each of 48 bands, and the end."""
    wide = [round(25 * (257 / 25) ** (k / 24)) for k in range(25)]
    return [*range(1, 25), *wide]


def errors(reference, estimates):
    """Errors of tiles of 4 frames and one band, shares of the fitted reference's energy.

    Args:
        reference: [num_samples].
        estimates: Likewise.
    """
    known = spectra(reference)
    rows = []
    for estimate in estimates:
        own = spectra(estimate)
        table, energy = np.zeros((-(-len(known) // 4), 48)), 0.0
        for number, (low, high) in enumerate(itertools.pairwise(edges())):
            r, s = known[:, low:high], own[:, low:high]
            gain = np.sum((r.conj() * s).real) / np.sum(np.abs(r) ** 2)
            energy += np.sum(np.abs(gain * r) ** 2)
            for t in range(len(table)):
                part = slice(4 * t, 4 * t + 4)
                table[t, number] = np.sum(np.abs(s[part] - gain * r[part]) ** 2)
        rows.append(table / energy)
    return np.array(rows)
