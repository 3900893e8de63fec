"""From the clips of one voice to its utterances: measure, choose, cut, join.

Signals are float64 arrays [num_samples] at 16 kHz, high-passed. Levels are those of 20 ms frames in
dB of full scale. The level range of a clip is the 95th minus the 5th percentile of its levels: a
lower bound of its signal-to-noise ratio, as a clip without a pause has no frame of pure background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from speech.base.lazy import scipy
from speech.sound.conditioning import SAMPLE_RATE_HZ, fade_edges, fade_in, speech_gain

FRAME = SAMPLE_RATE_HZ // 50
FLOOR_DB = -120.0
MIN_UTTERANCE_S, MAX_UTTERANCE_S = 1.5, 8.0
ENOUGH_S = 2.6  # clips are joined until an utterance is this long
LONGEST_S = 7.5  # before fades and pauses; a longer clip is cut at its quietest place
MIN_CLIP_S = 0.4
MARGIN_S = 0.12  # kept before and after the speech
PAUSE_S = 0.1  # between two clips, besides their margins
FADE_S = 0.02
MAX_BAND_DIFFERENCE_DB = 20.0
MAX_SILENT_SHARE = 0.4
MAX_CLIPPED_SHARE = 5e-4
_F0_RANGE_HZ = (75, 420)


@dataclass(frozen=True)
class Clip:
    """One recording of a voice and what was measured on it.

    Attributes:
        signal: The samples, cut to the speech and a margin.
        clipped_share: See `clipped_share`.
        level_range_db: See the module's docstring.
        f0_hz: Median fundamental frequency, NaN if nothing is voiced.
        bands_db: Energy of the 1 kHz bands relative to all, [8].
        silent_share: Share of the frames within the speech more than 40 dB below the loudest.
    """

    signal: np.ndarray
    clipped_share: float
    level_range_db: float
    f0_hz: float
    bands_db: np.ndarray
    silent_share: float

    @property
    def duration_s(self) -> float:
        """Seconds."""
        return len(self.signal) / SAMPLE_RATE_HZ


def measure(signal: np.ndarray, clipped_share: float) -> Clip | None:
    """Measures a recording and cuts it to the speech.

    Args:
        signal: The conditioned recording.
        clipped_share: See `clipped_share`.

    Returns:
        The clip, or None if the recording is too short or silent.
    """
    if len(signal) < MIN_CLIP_S * SAMPLE_RATE_HZ or np.max(np.abs(signal)) < 1e-3:
        return None
    levels = frame_levels_db(signal)
    first, last = speech_frames(levels)
    margin = round(MARGIN_S * SAMPLE_RATE_HZ)
    start, stop = max(0, first * FRAME - margin), (last + 1) * FRAME + margin
    within = levels[first : last + 1]
    return Clip(
        signal=signal[start:stop].copy(),
        clipped_share=clipped_share,
        level_range_db=float(np.subtract(*np.percentile(levels, [95, 5]))),
        f0_hz=median_f0_hz(signal),
        bands_db=band_levels_db(signal),
        silent_share=float(np.mean(within < levels.max() - 40)),
    )


def clipped_share(samples: np.ndarray) -> float:
    """Returns the share of samples that look clipped.

    These are the samples at or beyond 0.98 of full scale (lossy decoders overshoot where the
    recording was clipped) or, where there are more, those in flat tops: with both neighbours
    within 3 % of the peak.

    Args:
        samples: As decoded, before resampling, float [num_samples], full scale 1.
    """
    magnitudes = np.abs(samples)
    if len(magnitudes) < 3:
        return 0.0
    top = magnitudes > 0.97 * magnitudes.max()
    flat = np.mean(top[2:] & top[1:-1] & top[:-2])
    return float(max(flat, np.mean(magnitudes >= 0.98)))


def frame_levels_db(signal: np.ndarray) -> np.ndarray:
    """Returns the level of every whole 20 ms frame, [num_frames]."""
    frames = signal[: len(signal) // FRAME * FRAME].reshape(-1, FRAME)
    return 10 * np.log10(np.mean(frames**2, axis=1) + 10 ** (FLOOR_DB / 10))


def speech_frames(levels_db: np.ndarray) -> tuple[int, int]:
    """Returns the first and the last frame of speech: clearly above the background, not a click."""
    loudest, background = levels_db.max(), np.percentile(levels_db, 5)
    threshold = max(loudest - 38, min(background + 8, loudest - 25))
    above = levels_db > threshold
    speech = np.flatnonzero(np.convolve(above, np.ones(3), "same") >= 2)
    return (int(speech[0]), int(speech[-1])) if len(speech) else (0, len(levels_db) - 1)


def band_levels_db(signal: np.ndarray) -> np.ndarray:
    """Returns the energy of the bands 0-1, 1-2 .. 7-8 kHz relative to the sum, in dB, [8]."""
    power = np.abs(np.fft.rfft(signal)) ** 2
    edges = np.linspace(0, len(power), 9).round().astype(int)
    energy = np.array([power[a:b].sum() for a, b in zip(edges[:-1], edges[1:], strict=True)])
    return 10 * np.log10(energy / energy.sum() + 1e-12)


def median_f0_hz(signal: np.ndarray) -> float:
    """Returns the median fundamental frequency of the voiced frames, by autocorrelation."""
    length = 2 * FRAME
    if len(signal) <= length:
        return float("nan")
    voice = scipy.signal.butter(4, [70, 1000], "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    frames = np.lib.stride_tricks.sliding_window_view(scipy.signal.sosfilt(voice, signal), length)[
        ::FRAME
    ]
    energy = np.mean(frames**2, axis=1)
    frames = frames[energy > 0.05 * energy.max()]
    window = np.hanning(length)

    def autocorrelation(rows: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.abs(np.fft.rfft(rows, 4 * length)) ** 2)[..., :length]

    correlation, bias = autocorrelation(frames * window), autocorrelation(window)
    correlation /= (correlation[:, :1] + 1e-20) * (bias / bias[0])
    low, high = (SAMPLE_RATE_HZ // frequency for frequency in reversed(_F0_RANGE_HZ))
    lags = correlation[:, low:high].argmax(axis=1)
    voiced = correlation[np.arange(len(lags)), low + lags] > 0.6
    return float(np.median(SAMPLE_RATE_HZ / (low + lags[voiced]))) if voiced.any() else float("nan")


def refusal(clip: Clip, voice: dict) -> str | None:
    """Returns why a clip is not fit to be a training target, or None if it is.

    Args:
        clip: The clip.
        voice: Record of the recipe: ``f0_hz`` (lowest and highest), ``min_level_range_db``, and
            where it differs from the usual ``min_high_db`` (energy above 4 kHz).
    """
    lowest, highest = voice["f0_hz"]
    if clip.clipped_share > MAX_CLIPPED_SHARE:
        return "clipped"
    if clip.level_range_db < voice["min_level_range_db"]:
        return "level range"
    if not lowest <= clip.f0_hz <= highest:
        return "f0"
    if clip.silent_share > MAX_SILENT_SHARE:
        return "silence inside"
    if high_band_db(clip.bands_db) < voice.get("min_high_db", -45.0):
        return "dull"
    return None


def high_band_db(bands_db: np.ndarray) -> float:
    """Returns the energy above 4 kHz relative to all, in dB."""
    return float(10 * np.log10(np.sum(10 ** (bands_db[4:] / 10))))


def choose(clips: Iterable[Clip | None], voice: dict) -> tuple[list[Clip], Counter]:
    """Chooses the clips that are clean speech of this voice.

    Returns:
        The clips, in the order given, and how many were refused for which reason.
    """
    refused: Counter[str] = Counter()
    kept: list[Clip] = []
    for clip in clips:
        if clip is None or clip.duration_s < MIN_CLIP_S:
            refused["short"] += 1
        elif reason := refusal(clip, voice):
            refused[reason] += 1
        else:
            kept.append(clip)
    if kept:
        typical = np.median([clip.bands_db for clip in kept], axis=0)
        strange = [
            np.max(np.abs(clip.bands_db - typical)[1:]) > MAX_BAND_DIFFERENCE_DB for clip in kept
        ]
        refused["spectrum"] += int(sum(strange))
        kept = [clip for clip, odd in zip(kept, strange, strict=True) if not odd]
    return kept, +refused


def split_long(signal: np.ndarray) -> list[np.ndarray]:
    """Cuts a clip at its quietest places into parts of at most ``LONGEST_S``."""
    if len(signal) <= LONGEST_S * SAMPLE_RATE_HZ:
        return [signal]
    levels = np.convolve(10 ** (frame_levels_db(signal) / 10), np.ones(5) / 5, "same")
    first, last = round(MIN_UTTERANCE_S * 50), len(levels) - round(MIN_UTTERANCE_S * 50)
    last = min(last, round(LONGEST_S * 50))
    place = (first + int(np.argmin(levels[first:last]))) * FRAME + FRAME // 2
    return [signal[:place], *split_long(signal[place:])]


def join_clips(signals: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Joins clips, in the order given, to utterances.

    A clip is scaled to the RMS of the first of its utterance, faded at both ends, and set apart
    by a short pause. A rest too short to be an utterance is dropped.

    Yields:
        Utterances of ``MIN_UTTERANCE_S`` to ``MAX_UTTERANCE_S`` with peak 0.5.
    """
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE_HZ))
    parts: list[np.ndarray] = []
    duration_s = 0.0
    for signal in signals:
        signal = signal.copy()
        fade_edges(signal, FADE_S)
        added_s = len(signal) / SAMPLE_RATE_HZ + PAUSE_S
        if parts and duration_s + added_s > LONGEST_S:
            yield from _utterance(parts)
            parts, duration_s = [], 0.0
        if parts:
            parts += [pause, signal * (_rms(parts[0]) / _rms(signal))]
        else:
            parts = [signal]
        duration_s += added_s
        if duration_s - PAUSE_S >= ENOUGH_S:
            yield from _utterance(parts)
            parts, duration_s = [], 0.0
    if parts:
        yield from _utterance(parts)


def _utterance(parts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    joined = np.concatenate(parts)
    if MIN_UTTERANCE_S * SAMPLE_RATE_HZ <= len(joined) <= MAX_UTTERANCE_S * SAMPLE_RATE_HZ:
        yield joined * speech_gain(joined)


def _rms(signal: np.ndarray) -> float:
    return float(np.sqrt(np.mean(signal**2)))


def set_aside(
    utterances: Sequence[np.ndarray], share: float, longest_s: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Sets utterances aside, spread evenly, for babble: they are in no other file of the corpus.

    Args:
        utterances: All utterances of a voice.
        share: How many of them, as a fraction.
        longest_s: Set no more aside once they are this long together.

    Returns:
        The utterances to keep and those set aside.
    """
    step = max(2, min(round(1 / share), len(utterances)))
    kept, aside, aside_s = [], [], 0.0
    for place, utterance in enumerate(utterances):
        if place % step == step // 2 and aside_s < longest_s:
            aside.append(utterance)
            aside_s += len(utterance) / SAMPLE_RATE_HZ
        else:
            kept.append(utterance)
    return kept, aside


def babble(voices: Sequence[np.ndarray], duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Adds up voices, each going round from a place of its own.

    Args:
        voices: Speech of the voices without long pauses; each at least one sample.
        duration_s: Seconds to make.
        rng: Only uniform numbers are drawn from it.

    Returns:
        float64 array [num_samples], not scaled.
    """
    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    total = np.zeros(num_samples)
    for voice in voices:
        offset = int(rng.random() * len(voice))
        level = 10 ** ((rng.random() * 6 - 3) / 20)
        repeats = -(-(num_samples + offset) // len(voice))
        total += level / _rms(voice) * np.tile(voice, repeats)[offset : offset + num_samples]
    return total


def speech_shaped(voices: Sequence[np.ndarray], white: np.ndarray) -> np.ndarray:
    """Gives white noise the long-term average spectrum of speech."""
    spectrum = np.mean(
        [scipy.signal.welch(v / _rms(v), SAMPLE_RATE_HZ, nperseg=512)[1] for v in voices], axis=0
    )
    kernel = np.fft.fftshift(np.fft.irfft(np.sqrt(spectrum))) * np.hanning(512)
    shaped = scipy.signal.fftconvolve(white, kernel, "same")
    ramp = fade_in(FADE_S)  # the filter starts from silence
    shaped[: len(ramp)] *= ramp
    return shaped
