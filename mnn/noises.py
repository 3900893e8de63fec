"""Noise made of clean speech and by signal processing alone.

No recording of noise goes in. `NOISES` are kinds that resemble what there is in the world: hiss and
hum, knocks, birds and engines, other talkers, textures, crowds, rustling. Signals are float
[num_samples] at 16 kHz. Everything follows from the generator given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from speech.base.lazy import scipy
from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.stft import istft, stft

Rng = np.random.Generator
Signals = Sequence[np.ndarray]

_TINY = 1e-9


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _size(rng: Rng, low: float, high: float) -> int:
    return round(_log_uniform(rng, low, high))


def _curve(rng: Rng, size: int, num_points: int, deviation: float) -> np.ndarray:
    """Returns normal numbers at some points and straight lines between them: [size]."""
    points = rng.normal(0, deviation, num_points)
    return np.interp(np.linspace(0, 1, size), np.linspace(0, 1, num_points), points)


def random_field(rng: Rng, shape: tuple[int, int], num_points: tuple[int, int]) -> np.ndarray:
    """Returns a smooth field over frames and bins: normal numbers on a grid, interpolated.

    Args:
        rng: Draws the numbers.
        shape: Of the field, frames and bins.
        num_points: Of the grid.

    Returns:
        float32 ``shape``.
    """
    field = rng.standard_normal(num_points).astype(np.float32)
    for axis, size in enumerate(shape):
        place = np.linspace(0, num_points[axis] - 1, size)
        below = np.minimum(place.astype(int), max(num_points[axis] - 2, 0))
        above = np.minimum(below + 1, num_points[axis] - 1)
        part = (place - below).astype(np.float32)
        part = part[:, None] if axis == 0 else part
        field = field.take(below, axis) * (1 - part) + field.take(above, axis) * part
    return field


def unit(signal: np.ndarray) -> np.ndarray:
    """Returns a signal of standard deviation 1 (silence stays silent)."""
    return signal / (np.std(signal) + _TINY)


# --------------------------------------------------------------------------------------------
# Noise


def _equalized(rng: Rng, signal: np.ndarray, deviation_db: float) -> np.ndarray:
    """Filters by a random walk over frequency, at most 60 dB deep."""
    spectrum = np.fft.rfft(signal)
    num_points = int(rng.integers(4, 20))
    walk = np.cumsum(rng.normal(0, deviation_db / np.sqrt(3), num_points))
    place = np.sqrt(np.linspace(0, 1, len(spectrum)))  # more points at low frequencies
    gains_db = np.interp(place, np.linspace(0, 1, num_points), walk)
    gains_db = np.maximum(gains_db - gains_db.max(), -60)
    return np.fft.irfft(spectrum * 10 ** (gains_db / 20), len(signal))


def _envelope(rng: Rng, size: int) -> np.ndarray:
    """Returns a level over time: steady, wandering, periodic, switched or rough."""
    kind = rng.integers(5)
    if kind == 0:
        return np.ones(size)
    if kind == 1:
        return 10 ** (_curve(rng, size, int(rng.integers(3, 40)), rng.uniform(2, 10)) / 20)
    if kind == 2:
        depth, rate_hz = rng.uniform(0.2, 1), _log_uniform(rng, 1, 40)
        phase = 2 * np.pi * rate_hz / SAMPLE_RATE_HZ * np.arange(size) + rng.uniform(0, 6)
        return 1 - depth + depth * (0.5 + 0.5 * np.cos(phase)) ** rng.uniform(0.5, 6)
    if kind == 3:
        num_points = int(size / SAMPLE_RATE_HZ * rng.uniform(1, 12)) + 2
        on = (rng.random(num_points) < rng.uniform(0.2, 0.8)).astype(float)
        return 0.03 + np.interp(np.linspace(0, 1, size), np.linspace(0, 1, num_points), on)
    return 10 ** (_curve(rng, size, int(rng.integers(40, 200)), rng.uniform(3, 9)) / 20)


def coloured(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns Gaussian noise with a random spectrum and a random level over time."""
    return _equalized(rng, rng.standard_normal(size), 12) * _envelope(rng, size)


def impulses(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns knocks and clicks: a few sounds that die away, repeated at random times."""
    total = np.zeros(size)
    places = rng.integers(0, size, rng.poisson(_log_uniform(rng, 1, 40) * size / 16000) + 1)
    num_kinds = int(rng.integers(1, 5))
    for kind in range(num_kinds):
        length = int(rng.uniform(0.003, 0.15) * SAMPLE_RATE_HZ)
        steps = np.arange(length)
        sound = rng.standard_normal(length)
        if rng.random() < 0.5:
            pitch = 2 * np.pi * rng.uniform(200, 5000) / SAMPLE_RATE_HZ
            sound = 0.3 * sound + np.sin(pitch * steps + rng.uniform(0, 6))
        sound *= np.exp(-steps / (length * rng.uniform(0.1, 0.4)))
        train, own = np.zeros(size), places[kind::num_kinds]
        train[own] = 10 ** (rng.normal(0, 6, len(own)) / 20) * rng.choice([-1, 1], len(own))
        total += scipy.signal.fftconvolve(train, sound)[:size]
    floor = unit(_equalized(rng, rng.standard_normal(size), 12))
    return unit(_equalized(rng, total, 6)) + 10 ** (rng.uniform(-50, -20) / 20) * floor


def tones(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns chirps as of birds, or the harmonics of something that turns."""
    total = np.zeros(size)
    if rng.integers(3) == 0:
        bend = 2 ** _curve(rng, size, int(rng.integers(2, 12)), rng.uniform(0, 0.3))
        pitch_hz = _log_uniform(rng, 20, 300) * bend
        phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
        slope = rng.uniform(0, 1.5)
        for number in range(1, int(min(60.0, 7000 / float(np.mean(pitch_hz)))) + 1):
            gain = number**-slope * 10 ** (rng.normal(0, 6) / 20)
            total += gain * np.sin(number * phase + rng.uniform(0, 6))
        total *= _envelope(rng, size)
        below_db = rng.uniform(-30, 5)
    else:
        for _ in range(int(rng.integers(2, 30))):
            length = int(min(size, _log_uniform(rng, 0.03, 1.0) * SAMPLE_RATE_HZ))
            start = int(rng.integers(0, size - length + 1))
            octaves = _curve(rng, length, 5, rng.uniform(0.02, 0.6))
            if rng.random() < 0.4:
                trill = 2 * np.pi * rng.uniform(5, 50) / SAMPLE_RATE_HZ * np.arange(length)
                octaves = octaves + 0.15 * np.sin(trill)
            pitch_hz = np.minimum(_log_uniform(rng, 300, 7000) * 2**octaves, 7900)
            chirp = np.sin(2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ)
            gain = 10 ** (rng.normal(0, 6) / 20)
            total[start : start + length] += gain * chirp * np.hanning(length)
        below_db = rng.uniform(-40, -5)
    return unit(total) + 10 ** (below_db / 20) * unit(coloured(rng, size, talkers))


def voices(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns other talkers: backwards, with scrambled phases, or as they are, one to nine."""
    total = np.zeros(size)
    for _ in range(_size(rng, 1, 9)):
        voice = np.resize(talkers[int(rng.integers(len(talkers)))], size).astype(np.float32)
        kind = rng.integers(3)
        if kind == 0:
            voice = voice[::-1]
        elif kind == 1:
            spectra = np.abs(stft(voice))
            turns = rng.uniform(0, 2 * np.pi, spectra.shape)
            voice = istft((spectra * np.exp(1j * turns)).astype(np.complex64), size)
        total += unit(voice) * 10 ** (rng.normal(0, 4) / 20)
    return _equalized(rng, total, 4) if rng.random() < 0.5 else total


def _smeared(values: np.ndarray, num_frames: int, num_bins: int) -> np.ndarray:
    return scipy.ndimage.uniform_filter(values, (num_frames, num_bins), mode="nearest")


def textures(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns Gaussian noise under random fields of several scales over time and frequency."""
    spectra = stft(rng.standard_normal(size).astype(np.float32))
    gains_db = np.zeros(spectra.shape, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        points = (_size(rng, 2, spectra.shape[0]), _size(rng, 2, 120))
        gains_db += rng.uniform(2, 9) * random_field(rng, spectra.shape, points)
    kind = rng.integers(3)
    if kind == 1:
        points = (_size(rng, 4, spectra.shape[0]), 1)
        gains_db += rng.uniform(3, 12) * random_field(rng, spectra.shape, points)
    elif kind == 2:
        gains_db = np.maximum(gains_db - rng.uniform(0, 10), -30)
    noise = istft((spectra * 10 ** (gains_db / 20)).astype(np.complex64), size)
    return _equalized(rng, noise, rng.uniform(6, 14))


def crowds(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns noise that has the smeared, cut and shifted spectra of talkers."""
    total = np.zeros(size)
    for _ in range(int(rng.integers(1, 4))):
        voice = np.resize(talkers[int(rng.integers(len(talkers)))], size).astype(np.float32)
        spectra = np.abs(stft(voice))
        if rng.random() < 0.5:
            length = _size(rng, 2, 30)
            whole = len(spectra) // length * length
            pieces = spectra[:whole].reshape(-1, length, spectra.shape[1])
            spectra[:whole] = rng.permutation(np.array(pieces)).reshape(whole, -1)
        spectra = _smeared(spectra, _size(rng, 1, 15), _size(rng, 1, 5))
        if rng.random() < 0.5:
            spectra = np.roll(spectra, rng.integers(-30, 60), axis=1)
        carrier = stft(rng.standard_normal(size).astype(np.float32))
        total += istft(carrier * spectra, size) * 10 ** (rng.normal(0, 4) / 20)
    return _equalized(rng, total, rng.uniform(2, 8))


def _at_speed(signal: np.ndarray, size: int, speed: float) -> np.ndarray:
    """Plays a signal so much faster, pitch and all, again and again: [size]."""
    return np.interp(np.arange(size) * speed % len(signal), np.arange(len(signal)), signal)


def _any_speed(rng: Rng) -> float:
    """Returns a speed at which speech is no speech any more: a rumble, or a twitter."""
    return _log_uniform(rng, 1 / 16, 1 / 2) if rng.random() < 0.6 else _log_uniform(rng, 2, 10)


def slowed(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns talkers that are played far too slowly or too fast, perhaps with reverberation."""
    total = np.zeros(size)
    for _ in range(_size(rng, 1, 6)):
        voice = talkers[int(rng.integers(len(talkers)))]
        part = unit(_at_speed(np.roll(voice, rng.integers(len(voice))), size, _any_speed(rng)))
        total += part * 10 ** (rng.normal(0, 5) / 20)
    if rng.random() < 0.5:
        length = int(_log_uniform(rng, 0.02, 1.0) * SAMPLE_RATE_HZ)
        tail = rng.standard_normal(length) * np.exp(-5 * np.arange(length) / length)
        total = scipy.signal.fftconvolve(total, tail)[:size]
    return _equalized(rng, total, rng.uniform(2, 10))


def grains(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns scraps of talkers at any speed, scattered: rustling, rattling, dripping."""
    total, length = np.zeros(size), int(_log_uniform(rng, 0.005, 0.2) * SAMPLE_RATE_HZ)
    scraps = []
    for _ in range(int(rng.integers(1, 12))):
        voice = talkers[int(rng.integers(len(talkers)))]
        start = int(rng.integers(max(1, len(voice) - length)))
        scrap = _at_speed(voice[start : start + length], length, _log_uniform(rng, 1 / 4, 8))
        scraps.append(unit(scrap) * np.hanning(length))
    for start in rng.integers(0, size - length, _size(rng, 5, 600)):
        gain = 10 ** (rng.normal(0, 6) / 20)
        total[start : start + length] += gain * scraps[int(rng.integers(len(scraps)))]
    floor = unit(_equalized(rng, rng.standard_normal(size), 10)) * 10 ** (rng.uniform(-40, 0) / 20)
    return unit(_equalized(rng, total, rng.uniform(2, 10))) + floor


#: Kinds of noise, and how often each is drawn.
NOISES: dict[Callable[[Rng, int, Signals], np.ndarray], float] = {
    coloured: 0.15,
    impulses: 0.08,
    tones: 0.1,
    voices: 0.08,
    textures: 0.2,
    crowds: 0.09,
    slowed: 0.18,
    grains: 0.12,
}


def draw_noise(rng: Rng, size: int, talkers: Signals, names: Sequence[str] = ()) -> np.ndarray:
    """Returns one to three kinds of noise, added.

    Args:
        rng: Draws everything.
        size: Number of samples.
        talkers: Speech of others, from which noise of voices is made.
        names: Of the kinds in `NOISES` that are drawn; none for all.

    Returns:
        float64 [size], of any level.
    """
    own = {kind: often for kind, often in NOISES.items() if not names or kind.__name__ in names}
    kinds, weights = list(own), np.array(list(own.values()))
    number = min(1 + (rng.random() < 0.45) + (rng.random() < 0.15), len(kinds))
    chosen = [kinds[place] for place in rng.choice(len(kinds), number, p=weights / weights.sum())]
    parts = [unit(kind(rng, size, talkers)) * 10 ** (rng.normal(0, 6) / 20) for kind in chosen]
    return np.sum(parts, axis=0)


def draw_speech(rng: Rng, speakers: Sequence[Signals], size: int) -> np.ndarray:
    """Returns a piece of an utterance, or a whole one with silence around: float32 [size]."""
    own = speakers[int(rng.integers(len(speakers)))]
    signal = own[int(rng.integers(len(own)))]
    if len(signal) < size // 3:
        signal = np.concatenate([signal, own[int(rng.integers(len(own)))]])
    room = len(signal) - size
    start = int(rng.integers(abs(room) + 1))
    if room >= 0:
        return signal[start : start + size].astype(np.float32)
    return np.pad(signal, (start, -room - start)).astype(np.float32)
