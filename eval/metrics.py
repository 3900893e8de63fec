"""Speech quality and intelligibility of one utterance.

Conventions: the reference comes before the estimate; both are float [num_samples] at 16 kHz and of
equal length. A score that is not defined (silence, too short, NaN) is NaN with a status that says
why; it is never 0, never averaged, always counted.

pesq_wb: ITU-T P.862.2, about 1.0 to 4.64. pesq_nb: ITU-T P.862 with the P.862.1 mapping, about 1.0
to 4.55. stoi: Taal et al. 2011 (not extended), about 0 to 1. Higher is better in all of them, and
none depends on the level of the estimate.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE_HZ = 16000
OK = "ok"

#: The C code of P.862 has room for 50 utterances and writes past it on longer recordings.
MAX_PESQ_SECONDS = 60


@dataclass(frozen=True)
class Score:
    """One metric of one utterance.

    Attributes:
        value: The score, NaN if undefined.
        status: 'ok', or why there is no score.
    """

    value: float
    status: str = OK


def validate(reference: np.ndarray, estimate: np.ndarray) -> None:
    """Checks the shapes of a pair.

    Raises:
        ValueError: Not one channel each, or unequal lengths.
    """
    for name, signal in (("reference", reference), ("estimate", estimate)):
        if signal.ndim != 1:
            raise ValueError(f"{name} must be [num_samples], received shape {signal.shape}")
    if len(reference) != len(estimate):
        raise ValueError(
            f"reference has {len(reference)} samples, estimate {len(estimate)}; cut them alike"
        )


def _undefined(reference: np.ndarray, estimate: np.ndarray) -> str | None:
    """Returns why no metric is defined for this pair, or None."""
    for name, signal in (("reference", reference), ("estimate", estimate)):
        if not len(signal):
            return f"{name} is empty"
        if not np.all(np.isfinite(signal)):
            return f"{name} holds a NaN or an infinity"
        if not np.any(signal):
            return f"{name} is silent"
    return None


def pesq_wb(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns wideband PESQ (ITU-T P.862.2)."""
    return _pesq(reference, estimate, "wb")


def pesq_nb(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns narrowband PESQ (ITU-T P.862, mapped by P.862.1) of the 16 kHz signals."""
    return _pesq(reference, estimate, "nb")


def _pesq(reference: np.ndarray, estimate: np.ndarray, band: str) -> Score:
    import pesq

    validate(reference, estimate)
    reason = _undefined(reference, estimate)
    if reason:
        return Score(math.nan, reason)
    if len(reference) > MAX_PESQ_SECONDS * SAMPLE_RATE_HZ:
        return Score(math.nan, f"pesq: longer than {MAX_PESQ_SECONDS} s; score shorter pieces")
    try:
        value = pesq.pesq(SAMPLE_RATE_HZ, reference, estimate, band)
    except (pesq.PesqError, ValueError) as error:
        text = error.args[0] if error.args else type(error).__name__
        text = text.decode() if isinstance(text, bytes) else str(text)
        return Score(math.nan, f"pesq: {text}")
    return Score(float(value))


def stoi(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns STOI (Taal et al. 2011), not extended."""
    import pystoi

    validate(reference, estimate)
    reason = _undefined(reference, estimate)
    if reason:
        return Score(math.nan, reason)
    with warnings.catch_warnings():
        # Too little speech gives 1e-5 and a warning: that is no score.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            value = pystoi.stoi(reference, estimate, SAMPLE_RATE_HZ, extended=False)
        except (RuntimeWarning, ValueError, IndexError) as error:
            if "Not enough STFT frames" in str(error) or isinstance(error, IndexError | ValueError):
                return Score(math.nan, "stoi: less than 0.4 s of speech")
            return Score(math.nan, f"stoi: {error}")
    return Score(float(value))


METRICS = {"pesq_wb": pesq_wb, "pesq_nb": pesq_nb, "stoi": stoi}
