"""Scenes to learn judging from, made of clean speech alone: a mixture and some estimates of it.

No recording of noise, no expert and no label goes in. Noise is made by signal processing
(`NOISES`), and estimates in two ways:

* `draw_mask` knows speech and noise and errs on purpose: it keeps noise, loses speech, smears,
  subtracts a spectrum, leaves out a band, garbles phases.
* A `Pupil` is a mask estimator that has to find the speech in the mixture, as an expert does. It
  is a least-squares fit over random features (Rahimi and Recht 2008), solved at once, to a few
  sentences of a few speakers in one kind of noise; on other speakers and noises it errs as
  experts do.

Signals are float [num_samples] at 16 kHz. Masks are over frames of 1024 samples every 256, those of
the paper's experts (`speech.sound.stft.DEFAULT`). Everything follows from the generator given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from speech.base.lazy import scipy
from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.stft import DEFAULT, istft, stft

Rng = np.random.Generator
Signals = Sequence[np.ndarray]

#: SNRs of scenes, in dB.
SNR_RANGE_DB = (-10.0, 20.0)

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


def _any_field(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Returns a field of any smoothness, from one value to nearly white over time."""
    return random_field(rng, shape, (_size(rng, 2, shape[0]), _size(rng, 2, 64)))


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


def draw_noise(rng: Rng, size: int, talkers: Signals) -> np.ndarray:
    """Returns one to three kinds of noise, added.

    Args:
        rng: Draws everything.
        size: Number of samples.
        talkers: Speech of others, from which noise of voices is made.

    Returns:
        float64 [size], of any level.
    """
    kinds, weights = list(NOISES), list(NOISES.values())
    number = 1 + (rng.random() < 0.45) + (rng.random() < 0.15)
    chosen = [kinds[place] for place in rng.choice(len(kinds), number, p=weights)]
    parts = [unit(kind(rng, size, talkers)) * 10 ** (rng.normal(0, 6) / 20) for kind in chosen]
    return np.sum(parts, axis=0)


# --------------------------------------------------------------------------------------------
# Masks that know the speech


def _smeared(values: np.ndarray, num_frames: int, num_bins: int) -> np.ndarray:
    return scipy.ndimage.uniform_filter(values, (num_frames, num_bins), mode="nearest")


def draw_mask(rng: Rng, speech: np.ndarray, noise: np.ndarray, talkers: Signals) -> np.ndarray:
    """Returns a mask that errs in one of seven ways.

    Args:
        rng: Draws everything.
        speech: Its spectra, complex64 [num_frames, num_bins].
        noise: Likewise.
        talkers: Speech of others.

    Returns:
        float or complex [num_frames, num_bins]; times the mixture's spectra it is the estimate.
    """
    ways = {
        _ideal: 0.15, _wiener: 0.25, _knows_other_noise: 0.15, _keeps_and_loses: 0.2,
        _subtracts: 0.1, _filters: 0.07, _garbles: 0.08,
    }  # fmt: skip
    way = list(ways)[rng.choice(len(ways), p=list(ways.values()))]
    mask = way(rng, speech, noise, talkers)
    if np.iscomplexobj(mask):
        return mask
    floor = 10 ** (-rng.uniform(15, 60) / 20) if rng.random() < 0.7 else 0
    return np.clip(mask, floor, rng.choice([1, 1, 2]))


def _energies(speech: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns |S|^2, |N|^2 and what keeps their sum from being 0."""
    own = np.abs(speech) ** 2
    return own, np.abs(noise) ** 2, _TINY * float(own.mean()) + 1e-20


def _wobble(rng: Rng, shape: tuple[int, int], most_db: float) -> np.ndarray:
    return 10 ** (rng.uniform(0, most_db) * _any_field(rng, shape) / 20)


def _ideal(rng: Rng, speech: np.ndarray, noise: np.ndarray, talkers: Signals) -> np.ndarray:
    own, other, tiny = _energies(speech, noise)
    ratio = (own / (own + other + tiny)) ** rng.uniform(0.25, 1.2)
    return ratio * _wobble(rng, own.shape, 10)


def _wiener(rng: Rng, speech: np.ndarray, noise: np.ndarray, talkers: Signals) -> np.ndarray:
    """Knows smeared spectra only, of the noise perhaps no more than its mean."""
    own, other, tiny = _energies(speech, noise)
    smooth = _smeared(np.sqrt(own), _size(rng, 1, 9), _size(rng, 1, 13)) ** 2
    kind = rng.integers(4)
    if kind == 0:
        other = np.broadcast_to(other.mean(axis=0), other.shape)
    elif kind == 1:
        other = _smeared(other, _size(rng, 3, 31), _size(rng, 1, 9))
    elif kind == 2:
        other = np.full_like(other, other.mean())
    else:
        other = _smeared(np.sqrt(other), _size(rng, 1, 7), _size(rng, 1, 7)) ** 2
    weight = _log_uniform(rng, 0.1, 6)
    mask = (smooth / (smooth + weight * other + tiny)) ** rng.uniform(0.4, 1.1)
    return mask * _wobble(rng, own.shape, 4)


def _knows_other_noise(
    rng: Rng, speech: np.ndarray, noise: np.ndarray, talkers: Signals
) -> np.ndarray:
    """Removes what another noise could explain, and takes the rest for speech."""
    own, other, tiny = _energies(speech, noise)
    size = (len(speech) - 1) * DEFAULT.hop
    known = np.abs(stft(draw_noise(rng, size, talkers).astype(np.float32))) ** 2
    known = np.resize(known, other.shape)
    known *= other.mean() / (known.mean() + tiny)
    known = _smeared(known, _size(rng, 1, len(known)), _size(rng, 1, 9))
    removed = np.minimum(known, other * rng.uniform(0.3, 2))
    kept = (own + np.maximum(other - removed, 0)) / (own + other + tiny)
    return np.clip(kept ** rng.uniform(0.4, 1), 0, 1) * _wobble(rng, own.shape, 4)


def _keeps_and_loses(
    rng: Rng, speech: np.ndarray, noise: np.ndarray, talkers: Signals
) -> np.ndarray:
    own, other, tiny = _energies(speech, noise)
    lost_db = np.abs(rng.uniform(0, 12) * _any_field(rng, own.shape) + rng.uniform(-4, 2))
    removed_db = rng.uniform(0, 25) + rng.uniform(0, 12) * _any_field(rng, own.shape)
    kept, left = 10 ** (-lost_db / 10), 10 ** (-np.maximum(removed_db, 0) / 10)
    return np.sqrt((kept * own + left * other) / (own + other + tiny))


def _subtracts(rng: Rng, speech: np.ndarray, noise: np.ndarray, talkers: Signals) -> np.ndarray:
    """Subtracts a steady spectrum from the mixture's, with musical noise (Berouti et al. 1979)."""
    mixture = np.abs(speech + noise) ** 2
    steady = np.quantile(mixture, rng.uniform(0.1, 0.6), axis=0)
    share = (steady / (mixture + 1e-20)) ** rng.uniform(0.4, 1)
    return np.maximum(1 - rng.uniform(0.5, 4) * share, 10 ** (-rng.uniform(10, 40) / 20))


def _filters(rng: Rng, speech: np.ndarray, noise: np.ndarray, talkers: Signals) -> np.ndarray:
    """Leaves the mixture as it is, cuts bands off, or closes in pauses."""
    kind, mask = rng.integers(3), np.ones(speech.shape)
    if kind == 1:
        num_bins = speech.shape[1]
        mask[:, int(rng.uniform(0.2, 1) * num_bins) :] = 10 ** (-rng.uniform(6, 40) / 20)
        mask[:, : int(rng.uniform(0, 0.06) * num_bins)] = 10 ** (-rng.uniform(6, 40) / 20)
    elif kind == 2:
        heights = np.abs(speech + noise).mean(axis=1, keepdims=True)
        mask *= np.clip((heights / (heights.max() + 1e-20)) ** rng.uniform(0.2, 1.5), 0.01, 1)
    return mask


def _garbles(rng: Rng, speech: np.ndarray, noise: np.ndarray, talkers: Signals) -> np.ndarray:
    """Gives parts of both and something that follows the speech, phases and all."""
    shape = speech.shape
    left_db = rng.uniform(5, 25) - rng.uniform(0, 8) * _any_field(rng, shape)
    estimate = _wobble(rng, shape, 6) * speech + 10 ** (-left_db / 20) * noise
    heights = _smeared(np.abs(speech), 3, 5) * 10 ** (-rng.uniform(8, 30) / 20)
    estimate += heights * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    mixture = speech + noise
    tiny = 1e-6 * np.abs(mixture).mean() + 1e-12
    return estimate / np.where(np.abs(mixture) < tiny, tiny, mixture)


# --------------------------------------------------------------------------------------------
# Masks that have to find the speech


@dataclass(frozen=True, eq=False)
class Pupil:
    """A mask estimator, fitted to a few sentences in one kind of noise.

    Attributes:
        kind: The noise that it knows; None for all kinds.
        sounds: Seed of that noise: which sounds of its kind.
        snr_db: The SNR that it knows; None for all.
        speakers: Numbers of the speakers that it knows.
        projection: float32 [3 * num_bands, num_features], random.
        offsets: float32 [num_features], random.
        readout: float32 [num_features + 3 * num_bands + 1, num_bins], fitted.
    """

    kind: Callable[[Rng, int, Signals], np.ndarray] | None
    sounds: int
    snr_db: float | None
    speakers: np.ndarray
    projection: np.ndarray
    offsets: np.ndarray
    readout: np.ndarray

    def noise(self, rng: Rng, size: int, talkers: Signals) -> np.ndarray:
        """Returns noise of the kind that it knows: float64 [size]."""
        if self.kind is None:
            return draw_noise(rng, size, talkers)
        return self.kind(_sound(self.sounds, rng), size, talkers)

    def mask(self, mixture: np.ndarray) -> np.ndarray:
        """Returns its mask of a mixture's spectra, [num_frames, num_bins], within 0 to 1."""
        features = _pupil_features(mixture, self.projection, self.offsets)
        return np.clip(features @ self.readout, 0, 1)


#: Each kind has a few sounds that a pupil hears again and again.
_SOUNDS_EACH = 3

_PUPIL_BANDS = np.unique(
    np.round(np.concatenate([np.arange(1, 33), np.geomspace(33, 513, 33)])).astype(int)
)


def _sound(sounds: int, rng: Rng) -> Rng:
    return np.random.default_rng([sounds, int(rng.integers(_SOUNDS_EACH))])


def _pupil_features(spectra: np.ndarray, projection: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    energies = np.abs(spectra) ** 2
    bands = np.add.reduceat(energies[:, 1:], _PUPIL_BANDS[:-1] - 1, axis=1)
    heights = np.log10(bands / (energies.mean() + 1e-20) + 1e-5).astype(np.float32) / 2
    padded = np.pad(heights, ((1, 1), (0, 0)), mode="edge")
    near = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)
    hidden = np.maximum(near @ projection + offsets, 0)
    return np.concatenate([hidden, near, np.ones((len(near), 1), np.float32)], axis=1)


def fit_pupil(rng: Rng, speakers: Sequence[Signals], size: int) -> Pupil:
    """Fits a pupil to speech and noise that are drawn for it.

    Args:
        rng: Draws everything.
        speakers: Utterances of each speaker, float [num_samples].
        size: Samples of a piece.

    Returns:
        The pupil: what it knows differs from one to the next, and how well.
    """
    few = rng.random() >= 0.4
    own = (
        rng.integers(len(speakers), size=int(rng.integers(1, 5)))
        if few
        else np.arange(len(speakers))
    )
    kinds, weights = list(NOISES), list(NOISES.values())
    kind = None if rng.random() < 0.35 else kinds[rng.choice(len(kinds), p=weights)]
    snr_db = float(rng.choice([-5, 0, 5, 10])) if rng.random() < 0.6 else None
    sounds, is_power = int(rng.integers(1 << 31)), rng.random() < 0.5
    num_inputs, num_features = 3 * (len(_PUPIL_BANDS) - 1), _size(rng, 60, 400)
    projection = rng.standard_normal((num_inputs, num_features)) * (2.5 / np.sqrt(num_inputs))
    pupil = Pupil(
        kind, sounds, snr_db, own, projection.astype(np.float32),
        rng.standard_normal(num_features).astype(np.float32), np.empty(0, np.float32),
    )  # fmt: skip
    covariance, product = np.zeros(()), np.zeros(())
    for _ in range(_size(rng, 6, 40)):
        clean = draw_speech(rng, [speakers[number] for number in own], size)
        talkers = [draw_speech(rng, speakers, size) for _ in range(3)]
        level_db = snr_db if snr_db is not None else rng.uniform(-5, 15)
        added = at_snr(pupil.noise(rng, size, talkers), clean, level_db)
        speech, noise = stft(clean), stft(added)
        features = _pupil_features(speech + noise, pupil.projection, pupil.offsets)
        heights = [np.abs(part) ** (2 if is_power else 1) for part in (speech, noise)]
        target = heights[0] / (sum(heights) + _TINY)
        covariance = covariance + features.T @ features
        product = product + features.T @ target
    ridge = _log_uniform(rng, 1e-4, 1e-2) * np.trace(covariance) / len(covariance)
    readout = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), product)
    return replace(pupil, readout=readout.astype(np.float32))


# --------------------------------------------------------------------------------------------
# Scenes


@dataclass(frozen=True, eq=False)
class Scene:
    """A mixture and what several have made of it.

    Attributes:
        clean: float32 [num_samples], the speech.
        noisy: Likewise the mixture.
        estimates: float32 [num_estimates, num_samples].
    """

    clean: np.ndarray
    noisy: np.ndarray
    estimates: np.ndarray


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


def at_snr(noise: np.ndarray, clean: np.ndarray, snr_db: float) -> np.ndarray:
    """Returns noise of the level that gives this SNR: float32 [num_samples]."""
    return (unit(noise) * (np.std(clean) * 10 ** (-snr_db / 20))).astype(np.float32)


def draw_scene(
    rng: Rng, speakers: Sequence[Signals], pupils: Sequence[Pupil], size: int, most: int
) -> Scene:
    """Draws a scene.

    Args:
        rng: Draws everything.
        speakers: Utterances of each speaker.
        pupils: Those that may make estimates; without, all are made by masks that err.
        size: Number of samples.
        most: Estimates at most, 2 at least.

    Returns:
        The scene. In half of those with masks that err, the estimates are variants of one; in some
        of those of pupils, one of them knows the noise or the speaker, in some all know all noises.
    """
    number = int(rng.integers(2, most + 1))
    talkers = [draw_speech(rng, speakers, size) for _ in range(4)]
    chosen: list[Pupil] = []
    if pupils and rng.random() < 0.55:
        chosen = [pupils[place] for place in rng.integers(len(pupils), size=number)]
        general = [pupil for pupil in pupils if pupil.kind is None]
        if general and rng.random() < 0.2:
            chosen = [general[place] for place in rng.integers(len(general), size=number)]
    first = chosen[0] if chosen else None
    own = speakers
    if first and rng.random() < 0.5:
        own = [speakers[place] for place in first.speakers]
    clean = draw_speech(rng, own, size)
    snr_db = rng.uniform(*SNR_RANGE_DB)
    if first and rng.random() < 0.45:
        noise = first.noise(rng, size, talkers)
        if first.snr_db is not None:
            snr_db = first.snr_db + rng.choice([0, 0, 5, -5, 10])
    else:
        noise = draw_noise(rng, size, talkers)
    added = at_snr(noise, clean, snr_db)
    noisy = clean + added
    spectra = stft(clean), stft(added)
    masks = (
        _pupils_masks(rng, chosen, *spectra, talkers)
        if chosen
        else _masks_that_err(rng, number, *spectra, talkers)
    )
    estimates = []
    for mask in masks:
        estimate = istft((mask * (spectra[0] + spectra[1])).astype(np.complex64), size)
        estimates.append(estimate * np.float32(_level(rng, noisy, estimate)))
    return Scene(clean, noisy, np.stack(estimates))


def _level(rng: Rng, noisy: np.ndarray, estimate: np.ndarray) -> float:
    """Returns a gain: that of an expert over samples, fitted to the mixture, or next to 1."""
    if rng.random() < 0.4:
        energy = float(np.vecdot(estimate, estimate))
        return float(np.vecdot(noisy, estimate)) / energy if energy > 0 else 0.0
    return 10 ** (rng.normal(0, 0.7) / 20)


def _pupils_masks(
    rng: Rng, pupils: Sequence[Pupil], speech: np.ndarray, noise: np.ndarray, talkers: Signals
) -> list[np.ndarray]:
    masks = []
    for pupil in pupils:
        mask = pupil.mask(speech + noise)
        if rng.random() < 0.12:
            mask = draw_mask(rng, speech, noise, talkers)
        elif rng.random() < 0.2:
            mask = mask ** rng.uniform(0.6, 2)
        masks.append(mask)
    return masks


def _masks_that_err(
    rng: Rng, number: int, speech: np.ndarray, noise: np.ndarray, talkers: Signals
) -> list[np.ndarray]:
    if rng.random() < 0.5:
        return [draw_mask(rng, speech, noise, talkers) for _ in range(number)]
    base = draw_mask(rng, speech, noise, talkers)
    height = np.maximum(np.abs(base), 1e-4)
    change_db, change = rng.uniform(0.5, 6), rng.uniform(0.05, 0.5)
    masks = []
    for _ in range(number):
        mask = base * 10 ** (change_db * _any_field(rng, base.shape) / 20)
        mask = mask * height ** rng.uniform(-change, change)
        if rng.random() < 0.3:
            mask = 0.5 * mask + 0.5 * draw_mask(rng, speech, noise, talkers)
        masks.append(mask * np.minimum(1, 4 / np.maximum(np.abs(mask), _TINY)))
    return masks
