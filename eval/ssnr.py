"""Segmental SNR: signal-to-noise ratio by frames of 256 samples (16 ms).

Two forms. As published: the evaluation script of ICSE averages 10 log10(sum x^2 / sum (x - y)^2)
over frames that do not overlap, without limits. It scales the enhanced file to max |y| = 1 and
compares it with the clean file as it is, so that the result depends on the gain of both. A frame
that would make the mean infinite (digital silence) is left out here. The script's own functions for
the SNR of a frame were not published; the formula is the one it keeps in a comment.

Gain-independent (``si_``): the estimate is first scaled by the gain that fits it best to the
reference, and each frame is limited to -10 to 35 dB, as is usual since Hansen and Pellom (1998).

The improvements (SSNRI) subtract the value of the noisy file, which neither the script nor this
package scales in the published form.
"""

from __future__ import annotations

import numpy as np

FRAME_SAMPLES = 256
MIN_DB, MAX_DB = -10.0, 35.0


def frame_snrs_db(reference: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Returns the SNR of each whole frame.

    Args:
        reference: float [num_samples].
        estimate: float [num_samples].

    Returns:
        float64 [num_samples // 256] in dB; minus infinity where the reference is silent, infinity
        where the estimate equals it, NaN where both.

    Raises:
        ValueError: Shorter than one frame.
    """
    num_frames = len(reference) // FRAME_SAMPLES
    if not num_frames:
        raise ValueError(f"shorter than a frame of {FRAME_SAMPLES} samples")
    shape = num_frames, FRAME_SAMPLES
    signal = reference[: num_frames * FRAME_SAMPLES].reshape(shape)
    error = signal - estimate[: num_frames * FRAME_SAMPLES].reshape(shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * np.log10(np.sum(signal**2, axis=1) / np.sum(error**2, axis=1))


def ssnr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Returns the published form, of an estimate that is scaled already.

    Raises:
        ValueError: No frame has a finite SNR.
    """
    values = frame_snrs_db(reference, estimate)
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError("no frame has a finite SNR")
    return float(np.mean(values))


def si_ssnr_db(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Returns the gain-independent form; its frames lie between -10 and 35 dB."""
    values = frame_snrs_db(reference, fit_gain(reference, estimate))
    values = np.nan_to_num(values, nan=MAX_DB)  # both silent: nothing is wrong
    return float(np.mean(np.clip(values, MIN_DB, MAX_DB)))


def fit_gain(reference: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Returns the estimate with the gain of least squared error to the reference."""
    return estimate * (np.dot(reference, estimate) / np.dot(estimate, estimate))
