"""Making corpus files out of recordings: decode, high-pass, join, type at random, write as FLAC.

Signals are float64 arrays [num_samples] at 16 kHz, full scale 1, unless stated otherwise. Used by
the builders of the bundled corpus (``speech.minicorpus``) and of the open one
(``speech.opencorpus``), which promise the same bytes every time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np

from speech.base import files
from speech.base.lazy import scipy, soundfile, soxr

SAMPLE_RATE_HZ = 16000
_MAX_MANIFEST_BYTES = 64 << 20
SPEECH_PEAK = 0.5
NOISE_RMS = 0.05
NOISE_PEAK = 0.9
JOIN_S = 0.02  # cross-fade between two pieces
EDGE_S = 0.005  # fade at both ends of a file


def decode(content: bytes, highpass_hz: float) -> np.ndarray:
    """Decodes a sound file: channels averaged, 16 kHz, freed from rumble.

    Args:
        content: The bytes of a file that libsndfile reads.
        highpass_hz: Cut-off of the zero-phase second-order high-pass.

    Returns:
        float64 array [num_samples].
    """
    samples, rate_hz = soundfile.read(BytesIO(content), dtype="float64", always_2d=True)
    return condition(samples.mean(axis=1), rate_hz, highpass_hz)


def condition(mono: np.ndarray, rate_hz: int, highpass_hz: float) -> np.ndarray:
    """Resamples one channel to 16 kHz (soxr VHQ) and high-passes it."""
    mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, quality="VHQ")
    highpass = scipy.signal.butter(2, highpass_hz, "highpass", fs=SAMPLE_RATE_HZ, output="sos")
    return scipy.signal.sosfiltfilt(highpass, mono)


def join(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the pieces one after the other, overlapping by a cross-fade of ``JOIN_S``."""
    fade = fade_in(JOIN_S)
    overlap = len(fade)
    first, *others = pieces
    joined = first.copy()
    for piece in others:
        middle = joined[-overlap:] * fade[::-1] + piece[:overlap] * fade
        joined = np.concatenate([joined[:-overlap], middle, piece[overlap:]])
    return joined


def fade_in(duration_s: float) -> np.ndarray:
    """Returns a raised-cosine ramp from 0 to 1; it and its reverse add up to 1."""
    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    return 0.5 - 0.5 * np.cos(np.pi * (np.arange(num_samples) + 0.5) / num_samples)


def fade_edges(signal: np.ndarray, duration_s: float = EDGE_S) -> None:
    """Fades both ends of ``signal`` in place."""
    fade = fade_in(duration_s)
    signal[: len(fade)] *= fade
    signal[-len(fade) :] *= fade[::-1]


def speech_gain(signal: np.ndarray) -> float:
    """Returns the gain that brings speech to its peak ``SPEECH_PEAK``."""
    return SPEECH_PEAK / np.max(np.abs(signal))


def noise_gain(signal: np.ndarray) -> float:
    """Returns the gain that brings noise to ``NOISE_RMS``, peak at most ``NOISE_PEAK``."""
    return min(NOISE_RMS / np.sqrt(np.mean(signal**2)), NOISE_PEAK / np.max(np.abs(signal)))


def to_int16(signal: np.ndarray) -> np.ndarray:
    """Rounds a signal of full scale 1 to 16 bits."""
    return np.rint(signal * 32768).astype(np.int16)


def lay_out_keys(pieces: list[np.ndarray], duration_s: float, seed: int) -> np.ndarray:
    """Types at random: key strokes at irregular times, with a pause now and then.

    Args:
        pieces: Key sounds, press and release of each key in turn; their ends are faded in place.
        duration_s: Length of the result in seconds.
        seed: Seed of the generator. Only uniform numbers are drawn from it, the part of NumPy's
            generators least likely to change between versions.

    Returns:
        float64 array [num_samples].
    """
    uniform = np.random.default_rng(seed).random
    fade_out = fade_in(EDGE_S)[::-1]
    for piece in pieces:  # the recordings start at the stroke itself; only the end needs a fade
        piece[-len(fade_out) :] *= fade_out
    keys = list(zip(pieces[::2], pieces[1::2], strict=True))
    signal = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    time_s = 0.05
    while time_s < duration_s - 0.5:
        press, release = keys[int(uniform() * len(keys))]
        level = 0.6 + 0.4 * uniform()
        release_s = time_s + 0.06 + 0.06 * uniform()
        for sound, start_s in ((press, time_s), (release, release_s)):
            start = round(start_s * SAMPLE_RATE_HZ)
            place = signal[start : start + len(sound)]
            place += level * sound[: len(place)]
        time_s += 0.09 + 0.16 * uniform()
        if uniform() < 0.08:
            time_s += 0.2 + 0.4 * uniform()
    return signal


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Writes int16 ``samples`` as a 16-bit FLAC file."""
    with files.atomic_path(path) as temporary:
        soundfile.write(
            temporary,
            samples,
            SAMPLE_RATE_HZ,
            format="FLAC",
            subtype="PCM_16",
            compression_level=1.0,
        )


def manifest_of(root: Path, names: Iterable[str]) -> str:
    """Returns the lines of a ``sha256sum`` file for ``names`` below ``root``."""
    return "".join(f"{files.sha256_of(root / name)}  {name}\n" for name in names)


def read_manifest(path: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file by its name, from what `manifest_of` wrote.

    Raises:
        OSError: It cannot be read.
        ValueError: It is malformed, or names a file outside of its folder.
    """
    found = {}
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ValueError(f"{path}: over {_MAX_MANIFEST_BYTES:,} bytes, expected a manifest")
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        digest, _, name = line.partition("  ")
        parts = name.split("/")
        if not re.fullmatch("[0-9a-f]{64}", digest) or {"", ".", ".."} & set(parts):
            raise ValueError(
                f"{path}: line {number} is {line!r:.80}, expected a SHA-256, two spaces and a "
                "name below its folder; make it again"
            )
        found[name] = digest
    return found
