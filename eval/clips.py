"""Clips to listen to: which files, at which level, as what bytes.

Signals are float [num_samples] at 16 kHz. Each version of a clip is scaled by the gain that fits it
best, in the least-squares sense, to the noisy one; then all share one factor. So levels can be
compared by ear and by eye, whatever scale a system writes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics import METRICS, SAMPLE_RATE_HZ
from eval.plots import FRAME_SAMPLES, spectrogram_db
from eval.scoring import NOISY
from speech.base.lazy import soundfile
from speech.sound.pictures import level_png

#: Highest sample of all versions of a clip.
PEAK = 0.9

#: From the loudest point of all versions of a clip to the bottom of the colours.
RANGE_DB = 70.0

#: Of the picture: as many rows, each of 2 bins of the analysis.
_NUM_BANDS = 128


def choose_clips(
    rows: Sequence[Mapping[str, Any]],
    system: str,
    metric: str,
    names: Collection[str],
    preferred: Collection[str] = (),
) -> list[tuple[str, list[str]]]:
    """Chooses files by the gain of a system on the noisy file.

    Args:
        rows: Scores; only the rows of 'noisy' and ``system`` are used.
        system: Name of the system.
        metric: The metric of the gain.
        names: Files that can be heard; no others are chosen.
        preferred: Of those, what stands for a noise if it can.

    Returns:
        (name, reasons), each name once: best, median and worst gain, then of every noise the file
        of median gain. Without any score the first of every noise.
    """
    noises = {row["name"]: row["noise"] for row in rows if row["name"] in names}
    gains = _gains([row for row in rows if row["name"] in names], system, metric)
    chosen: dict[str, list[str]] = {}
    ranked = sorted(gains, key=lambda name: (gains[name], name))
    if ranked:
        chosen.setdefault(ranked[-1], []).append("best gain")
        chosen.setdefault(ranked[(len(ranked) - 1) // 2], []).append("median gain")
        chosen.setdefault(ranked[0], []).append("worst gain")
    for noise in sorted(set(noises.values())):
        own = [name for name in ranked if noises[name] == noise]
        own = own or sorted(name for name in noises if noises[name] == noise)[:1]
        own = [name for name in own if name in preferred] or own
        name = own[(len(own) - 1) // 2]
        chosen.setdefault(name, []).append(f"typical of {noise}" if gains else noise)
    return list(chosen.items())


def _gains(rows: Sequence[Mapping[str, Any]], system: str, metric: str) -> dict[str, float]:
    sign = 1 if metric not in METRICS or METRICS[metric].higher_is_better else -1
    values: dict[str, dict[str, float]] = {NOISY: {}, system: {}}
    for row in rows:
        if row["system"] in values and math.isfinite(row.get(metric, math.nan)):
            values[row["system"]][row["name"]] = row[metric]
    return {
        name: sign * (value - values[NOISY][name])
        for name, value in values[system].items()
        if name in values[NOISY]
    }


def levelled(signals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the versions of a clip at comparable levels and of one length.

    Args:
        signals: By name, 'noisy' among them.

    Returns:
        float64, as long as the noisy one: longer ones are cut, shorter ones end in silence.
    """
    noisy = np.asarray(signals[NOISY], float)
    fitted = {}
    for name, signal in signals.items():
        own = np.zeros(len(noisy))
        own[: len(signal)] = signal[: len(noisy)]
        energy = float(own @ own)
        gain = max(float(noisy @ own), 0.0) / energy if energy else 0.0
        fitted[name] = own if name == NOISY else own * gain
    highest = max(float(np.max(np.abs(signal), initial=0.0)) for signal in fitted.values())
    factor = PEAK / highest if highest > 1e-9 else 1.0
    return {name: signal * factor for name, signal in fitted.items()}


def flac(signal: np.ndarray) -> bytes:
    """Returns a signal as a FLAC file: 16 bit, one channel, 16 kHz."""
    stream = io.BytesIO()
    soundfile.write(stream, signal, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def top_level_db(signals: Mapping[str, np.ndarray]) -> float:
    """Returns the level of the loudest point of all spectrograms."""
    return max(float(_bands_db(signal).max()) for signal in signals.values())


def spectrogram_png(signal: np.ndarray, top_db: float) -> bytes:
    """Returns a picture of a spectrogram, without axes: time to the right, 0 to 8 kHz upwards.

    Args:
        signal: float [num_samples].
        top_db: Level of the brightest colour; `RANGE_DB` below is the darkest.
    """
    return level_png(_bands_db(signal), top_db, RANGE_DB)


def _bands_db(signal: np.ndarray) -> np.ndarray:
    """Returns levels as float64 [num_frames, 128], the louder one of each two bins."""
    missing = max(0, FRAME_SAMPLES - len(signal))
    levels_db = spectrogram_db(np.pad(signal, (0, missing)))
    bands = levels_db[:, : 2 * _NUM_BANDS]
    return bands.reshape(len(bands), _NUM_BANDS, 2).max(axis=2)
