"""What a ranker hears, gives and is trained for: naive, float64, by the words of its modules."""

from __future__ import annotations

import itertools
import math

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


def heights(values, unit):
    """log10 of the energies of complex values in 48 bands, [num_frames, 48]."""
    bounds = edges()
    rows = []
    for frame in values:
        energies = [
            sum(abs(v) ** 2 for v in frame[low:high]) / unit
            for low, high in itertools.pairwise(bounds)
        ]
        rows.append([math.log10(energy + 1e-7) for energy in energies])
    return np.array(rows)


def unit(noisy):
    """The energy that the mixture has in a band of a frame, on average."""
    return np.mean(np.square(noisy, dtype=np.float64)) * FRAME / 2 * 256 / 48


def products(clean, estimates, noisy, num_tiles):
    """Sums of Re(e_i e_j*) over tiles of 16 frames and 3 bands: [n, n, num_tiles, 16]."""
    errors = [spectra(estimate) - spectra(clean) for estimate in estimates]
    bounds = edges()[::3]
    table = np.zeros((len(errors), len(errors), num_tiles, 16))
    for i, one in enumerate(errors):
        for j, other in enumerate(errors):
            for t in range(num_tiles):
                for b, (low, high) in enumerate(itertools.pairwise(bounds)):
                    part = np.s_[16 * t : 16 * t + 16, low:high]
                    table[i, j, t, b] = np.sum((one[part] * other[part].conj()).real)
    return table / unit(noisy)


def loss(sdr_db, table, logs):
    """The three terms for one scene.

    Args:
        sdr_db: [n].
        table: [n, n, num_tiles, 16], from `products`.
        logs: [n, 16 * num_tiles, 16], natural logs of expected errors of frames.
    """
    n, num_tiles = len(sdr_db), table.shape[2]
    expected = np.exp(logs).reshape(n, num_tiles, 16, 16).sum(axis=2)
    true = np.array([table[i, i] for i in range(n)])
    log_ratio = np.clip(np.log((true + 1e-5) / expected), -12, 3)
    tiles = np.mean(np.exp(log_ratio) - log_ratio - 1)
    predicted = np.array([-10 * math.log10(own.sum()) for own in expected])
    wanted = np.exp(sdr_db) / np.exp(sdr_db).sum()
    given = np.exp(predicted) / np.exp(predicted).sum()
    rank = np.sum(wanted * (np.log(wanted + 1e-9) - np.log(given)))
    weights = (1 / expected) / (1 / expected).sum(axis=0)
    added = 0.0
    for t in range(num_tiles):
        for b in range(16):
            w = weights[:, t, b]
            added += max(w @ table[:, :, t, b] @ w, 0)
    best = min(own.sum() for own in true)
    return rank + 0.3 * tiles + math.log((added + 1e-5) / (best + 1e-5))
