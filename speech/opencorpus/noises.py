"""Noise signals: pieces of recordings one after the other, or synthetic ones.

Signals are float64 arrays [num_samples] at 16 kHz, full scale 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from speech.sound.conditioning import SAMPLE_RATE_HZ, fade_edges, join, noise_gain, to_int16

#: Slope of the power spectrum in dB an octave.
COLOURS = {"white": 0.0, "pink": -3.0, "brown": -6.0}


def seed_of(name: str) -> int:
    """Returns a seed that follows from ``name`` alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:4], "big")


def cut(recording: np.ndarray, piece: dict) -> np.ndarray:
    """Returns the seconds of a recording that a piece of the recipe asks for.

    Raises:
        ValueError: The recording is shorter than the recipe says.
    """
    stop_s = piece.get("end_s", len(recording) / SAMPLE_RATE_HZ)
    start, stop = (round(t * SAMPLE_RATE_HZ) for t in (piece.get("start_s", 0.0), stop_s))
    if not 0 <= start < stop <= len(recording):
        raise ValueError(
            f"{piece['file']}: the recipe asks for {start / SAMPLE_RATE_HZ:g} to {stop_s:g} s, "
            f"the recording has {len(recording) / SAMPLE_RATE_HZ:.2f} s"
        )
    return recording[start:stop]


def join_pieces(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Joins recordings of one kind by cross-fades, each at the same RMS."""
    return join([piece / np.sqrt(np.mean(piece**2)) for piece in pieces])


def coloured(colour: str, duration_s: float, seed: int) -> np.ndarray:
    """Returns synthetic stationary noise from 60 Hz up.

    Args:
        colour: One of ``COLOURS``.
        duration_s: Seconds.
        seed: Seed of the generator.
    """
    white = white_noise(duration_s, seed)
    frequencies = np.fft.rfftfreq(len(white), 1 / SAMPLE_RATE_HZ)
    gain = np.zeros(len(frequencies))
    audible = frequencies >= 60
    slope = COLOURS[colour] / (20 * np.log10(2))
    gain[audible] = (frequencies[audible] / 1000) ** slope
    return np.fft.irfft(np.fft.rfft(white) * gain, len(white))


def white_noise(duration_s: float, seed: int) -> np.ndarray:
    """Returns white noise; uniform numbers, so that it is the same with every NumPy."""
    return np.random.default_rng(seed).random(round(duration_s * SAMPLE_RATE_HZ)) - 0.5


def hum(duration_s: float, seed: int) -> np.ndarray:
    """Returns a synthetic hum: harmonics of 50 and 60 Hz mains, slowly changing in level."""
    uniform = np.random.default_rng(seed).random
    time_s = np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    halves = []
    for mains_hz in (50, 60):
        half = np.zeros(len(time_s) // 2)
        for harmonic in range(2, 40):
            level = uniform() / harmonic**0.7
            change = 1 + 0.5 * np.sin(2 * np.pi * (time_s[: len(half)] * uniform() + uniform()))
            phase = 2 * np.pi * (mains_hz * harmonic * time_s[: len(half)] + uniform())
            half += level * change * np.sin(phase)
        halves.append(half)
    return join_pieces(halves)


def finish(signal: np.ndarray) -> np.ndarray:
    """Fades the ends, scales to the level of noise, and rounds to int16."""
    signal = signal.copy()
    fade_edges(signal)
    return to_int16(signal * noise_gain(signal))
