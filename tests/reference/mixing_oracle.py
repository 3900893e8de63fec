"""Mixing, the naive way: Python floats, one sample at a time."""

from __future__ import annotations

import math


def energy(samples) -> float:
    return math.fsum(float(value) * float(value) for value in samples)


def snr_db(clean, noise) -> float:
    return 10.0 * math.log10(energy(clean) / energy(noise))


def loop(noise, num_samples, offset) -> list[float]:
    return [noise[(offset + index) % len(noise)] for index in range(num_samples)]


def mix(clean, noise, wanted_db, peak):
    """Returns (noisy, clean, gain)."""
    wanted_energy = energy(clean) / 10.0 ** (wanted_db / 10.0)
    factor = math.sqrt(wanted_energy / energy(noise))
    noisy = [float(s) + factor * float(n) for s, n in zip(clean, noise, strict=True)]
    highest = max(max(abs(value) for value in noisy), max(abs(float(value)) for value in clean))
    gain = min(1.0, peak / highest)
    return [gain * value for value in noisy], [gain * float(value) for value in clean], gain
