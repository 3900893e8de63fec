"""Mixing speech and noise at an exact signal-to-noise ratio.

Conventions: pure NumPy in float64, one channel, shape [num_samples], full scale at +-1. The
ratio is taken over the whole utterance: SNR = 10 log10(sum clean^2 / sum noise^2) in dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from speech.sound.audio import valid_signal

#: Largest |sample| of a mixture; below full scale, so that no file format clips it.
MAX_PEAK = 0.99

#: Beyond this, noisy - clean no longer gives the noise back to 1e-6 dB in float64.
MAX_SNR_DB = 100.0

#: Draws before a noise is called silent. Recordings with pauses have silent segments.
_MAX_DRAWS = 100


@dataclass(frozen=True, eq=False)
class Mixture:
    """A noisy utterance and its parts: noisy == clean + noise, sample for sample.

    Attributes:
        noisy: float64 [num_samples].
        clean: float64 [num_samples], already multiplied by ``gain``.
        noise: float64 [num_samples], already scaled to the SNR and multiplied by ``gain``.
        gain: Common gain that keeps noisy and clean from clipping; 1.0 when none was needed.
        snr_db: The SNR asked for.
    """

    noisy: np.ndarray
    clean: np.ndarray
    noise: np.ndarray
    gain: float
    snr_db: float


def loop_or_crop(noise: np.ndarray, num_samples: int, offset: int = 0) -> np.ndarray:
    """Cuts ``num_samples`` from ``noise``, from ``offset`` on, going on at its start at its end.

    Args:
        noise: [num_noise_samples], at least one sample, any length and dtype.
        num_samples: Length to return.
        offset: First sample, 0 <= offset < num_noise_samples.

    Returns:
        A new array [num_samples] of the same dtype.

    Raises:
        ValueError: No noise, an offset outside of it, or a negative length.
    """
    noise = _one_channel(noise, "noise")
    if not 0 <= offset < len(noise):
        raise ValueError(f"offset {offset} lies outside the noise of {len(noise)} samples")
    if num_samples < 0:
        raise ValueError(f"num_samples is {num_samples}; give 0 or more")
    num_repeats = -(-(offset + num_samples) // len(noise))
    looped = noise if num_repeats <= 1 else np.tile(noise, num_repeats)
    return looped[offset : offset + num_samples].copy()


def draw_offset(noise: np.ndarray, num_samples: int, rng: np.random.Generator) -> int:
    """Draws where to cut a segment: uniformly from all segments that are not silent.

    A noise of at least ``num_samples`` is cut without wrapping around; a shorter one starts
    anywhere and is repeated.

    Returns:
        An offset for `loop_or_crop`.

    Raises:
        ValueError: The noise is empty, or none of a hundred draws hit a sound.
    """
    noise = _one_channel(noise, "noise")
    num_offsets = len(noise) - num_samples + 1 if len(noise) >= num_samples else len(noise)
    for _ in range(_MAX_DRAWS):
        offset = int(rng.integers(num_offsets))
        if np.any(loop_or_crop(noise, num_samples, offset)):
            return offset
    raise ValueError(f"noise is silent: no sound in {_MAX_DRAWS} segments of {num_samples} samples")


def draw_segment(noise: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a random segment [num_samples] of ``noise`` that is not silent: see `draw_offset`."""
    return loop_or_crop(noise, num_samples, draw_offset(noise, num_samples, rng))


def measure_snr_db(clean: np.ndarray, noise: np.ndarray) -> float:
    """Returns 10 log10(sum clean^2 / sum noise^2) in dB.

    Args:
        clean: [num_samples].
        noise: [num_samples], as it is in the mixture (noisy - clean).

    Returns:
        The ratio; +inf without noise, -inf without speech, NaN without both.
    """
    clean_energy, noise_energy = _energy(clean), _energy(noise)
    if noise_energy == 0.0:
        return math.inf if clean_energy else math.nan
    return 10.0 * math.log10(clean_energy / noise_energy) if clean_energy else -math.inf


def mix_at_snr(
    clean: np.ndarray, noise: np.ndarray, snr_db: float, peak: float | None = None
) -> Mixture:
    """Adds noise to speech at an SNR that is exact over the whole utterance.

    Only the noise is scaled for the SNR. When the noisy or the clean signal would exceed ``peak``,
    one common gain scales both alike, which leaves the SNR as it is.

    Args:
        clean: [num_samples], not silent.
        noise: [num_samples], not silent.
        snr_db: The SNR to make.
        peak: Largest |sample| allowed; None for `MAX_PEAK`, ``math.inf`` for no limit.

    Returns:
        The `Mixture`.

    Raises:
        ValueError: Lengths differ, either signal is silent or not finite, or |snr_db| > 100.
    """
    clean = valid_signal(clean, "clean", min_samples=1).astype(np.float64)
    noise = valid_signal(noise, "noise", min_samples=1).astype(np.float64)
    if len(clean) != len(noise):
        raise ValueError(f"clean has {len(clean)} samples, noise {len(noise)}; cut them alike")
    if not abs(snr_db) <= MAX_SNR_DB:
        raise ValueError(
            f"snr_db is {snr_db}; give a number from -{MAX_SNR_DB:g} to {MAX_SNR_DB:g}"
        )
    clean_energy, noise_energy = _energy(clean), _energy(noise)
    for name, energy in (("clean", clean_energy), ("noise", noise_energy)):
        if energy == 0.0:
            raise ValueError(f"{name} is silent: no SNR can be made; leave this {name} file out")
        if not math.isfinite(energy):
            raise ValueError(
                f"{name} is too loud: its energy is infinite; expected full scale at 1"
            )
    noise = noise * math.sqrt(clean_energy / noise_energy * 10.0 ** (-snr_db / 10.0))
    highest = max(np.max(np.abs(clean + noise)), np.max(np.abs(clean)))
    limit = MAX_PEAK if peak is None else peak
    gain = float(limit / highest) if highest > limit else 1.0
    clean, noise = clean * gain, noise * gain
    return Mixture(clean + noise, clean, noise, gain, float(snr_db))


def _energy(samples: np.ndarray) -> float:
    with np.errstate(over="ignore"):  # the caller says so
        return float(np.sum(np.square(samples, dtype=np.float64)))


def _one_channel(samples: np.ndarray, name: str) -> np.ndarray:
    """Returns samples as they are; whole recordings pass, so their values are not looked at."""
    samples = np.asarray(samples)
    if samples.ndim != 1 or not samples.size:
        raise ValueError(
            f"{name} has the shape {samples.shape}; one channel [num_samples] expected"
        )
    return samples
