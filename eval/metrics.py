"""Speech quality and intelligibility of one utterance.

Conventions: the reference comes before the estimate; both are float [num_samples] at 16 kHz and of
equal length. A score that is not defined (silence, too short, NaN) is NaN with a status that says
why; it is never 0, never averaged, always counted.

======== =========================================================== ================== ========
name     what                                                        unit, range        level
======== =========================================================== ================== ========
pesq_wb  ITU-T P.862.2, package pesq                                 MOS, 1.0 to 4.64   free
pesq_nb  ITU-T P.862 mapped by P.862.1, package pesq                 MOS, 1.0 to 4.55   free
stoi     Taal et al. 2011, package pystoi                            about 0 to 1       free
estoi    Jensen and Taal 2016, package pystoi                        about 0 to 1       free
sdr      BSS Eval v3, 512 taps: `eval.bsseval`                       dB                 free
si_sdr   Le Roux et al. 2019, no mean removed                        dB                 free
ssnr     segmental SNR as published: `eval.ssnr`                     dB                 matters
ssnri    its improvement over the noisy file                         dB                 matters
si_ssnr  segmental SNR after the best gain, frames -10 to 35 dB      dB                 free
si_ssnri its improvement over the noisy file                         dB                 free
lsd      log-spectral distance after the best gain; low is good      dB, from 0         free
======== =========================================================== ================== ========
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eval.bsseval import sdr_db
from eval.ssnr import fit_gain, si_ssnr_db, ssnr_db
from speech.base.lazy import load, pesq, pystoi

SAMPLE_RATE_HZ = 16000
OK = "ok"

#: Two files may differ in length by this much (64 ms, one long STFT frame); both are cut at their
#: ends to the shorter one. More is no rounding of frames but another recording.
MAX_LENGTH_DIFFERENCE = 1024

#: The C code of P.862 has room for 50 utterances and writes past it without a check.
MAX_PESQ_SECONDS = 60
MAX_PESQ_UTTERANCES = 50

#: A distortion this far below the signal is rounding error.
MAX_DB = 200.0

LSD_FRAME, LSD_HOP = 512, 256
LSD_RANGE_DB = 50.0

#: Of the formulas in this package; raise it with any change of a value.
_OWN_VERSION = "1"


@dataclass(frozen=True)
class Score:
    """One metric of one utterance.

    Attributes:
        value: The score, NaN if undefined.
        status: 'ok', or why there is no score.
    """

    value: float
    status: str = OK


@dataclass(frozen=True)
class Metric:
    """A metric and what tables say of it.

    Call it with (reference, estimate) or, where it needs the noisy signal, (reference, estimate,
    noisy).

    Attributes:
        name: Key in tables.
        label: For people.
        unit: 'MOS', 'dB' or ''.
        function: What computes it.
        package: The package that does, or None for this one.
        needs_noisy: Whether ``function`` takes the noisy signal too.
        at_peak_1: Whether the published script scales an enhanced signal to max |x| = 1 first.
        higher_is_better: Direction.
    """

    name: str
    label: str
    unit: str
    function: Callable[..., Score]
    package: str | None = None
    needs_noisy: bool = False
    at_peak_1: bool = False
    higher_is_better: bool = True

    def __call__(self, *signals: np.ndarray) -> Score:
        """Returns the score of float [num_samples] signals of equal length."""
        return self.function(*signals)

    @functools.cached_property
    def version(self) -> str:
        """Name and version of what computes it: scores of unlike versions are not compared."""
        if self.package is None:
            return f"eval {_OWN_VERSION}"
        return f"{self.package} {importlib.metadata.version(self.package)}"


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


def cut_alike(*signals: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cuts signals at their ends to the length of the shortest.

    Raises:
        ValueError: They differ by more than `MAX_LENGTH_DIFFERENCE` samples.
    """
    lengths = [len(signal) for signal in signals]
    if max(lengths) - min(lengths) > MAX_LENGTH_DIFFERENCE:
        raise ValueError(
            f"lengths differ: {' and '.join(map(str, lengths))} samples; "
            f"up to {MAX_LENGTH_DIFFERENCE} would be cut"
        )
    return tuple(signal[: min(lengths)] for signal in signals)


def pesq_wb(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns wideband PESQ (ITU-T P.862.2)."""
    return _score("pesq", functools.partial(_pesq, band="wb"), reference, estimate)


def pesq_nb(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns narrowband PESQ (ITU-T P.862, mapped by P.862.1) of the 16 kHz signals."""
    return _score("pesq", functools.partial(_pesq, band="nb"), reference, estimate)


def stoi(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns short-time objective intelligibility (Taal et al. 2011), not extended."""
    return _score("stoi", functools.partial(_stoi, extended=False), reference, estimate)


def estoi(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns extended STOI (Jensen and Taal 2016): lower numbers than STOI."""
    return _score("stoi", functools.partial(_stoi, extended=True), reference, estimate)


def sdr(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns the signal-to-distortion ratio of BSS Eval v3 (Vincent et al. 2006), in dB."""
    return _score("sdr", sdr_db, reference, estimate)


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns the scale-invariant SDR (Le Roux et al. 2019, eq. 5), in dB.

    No mean is removed, as in torchmetrics and fast_bss_eval.
    """
    return _score("si_sdr", _si_sdr, reference, estimate)


def ssnr(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns the segmental SNR as published, in dB; the level of the estimate matters."""
    return _score("ssnr", ssnr_db, reference, estimate)


def ssnri(reference: np.ndarray, estimate: np.ndarray, noisy: np.ndarray) -> Score:
    """Returns the segmental SNR of the estimate minus that of the noisy signal, in dB."""
    return _minus(ssnr(reference, estimate), ssnr(reference, noisy))


def si_ssnr(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns the gain-independent segmental SNR, in dB."""
    return _score("si_ssnr", si_ssnr_db, reference, estimate)


def si_ssnri(reference: np.ndarray, estimate: np.ndarray, noisy: np.ndarray) -> Score:
    """Returns the gain-independent segmental SNR minus that of the noisy signal, in dB."""
    return _minus(si_ssnr(reference, estimate), si_ssnr(reference, noisy))


def lsd(reference: np.ndarray, estimate: np.ndarray) -> Score:
    """Returns the log-spectral distance (Gray and Markel 1976), in dB; lower is better.

    Frames of 512 samples under a Hann window, every 256. The estimate has the gain of least squared
    error, and both spectra are floored 50 dB below the highest value of the reference: the root of
    the mean squared difference in dB over frequency, averaged over frames.
    """
    return _score("lsd", _lsd, reference, estimate)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("pesq_wb", "PESQ-WB", "MOS", pesq_wb, "pesq"),
        Metric("pesq_nb", "PESQ-NB", "MOS", pesq_nb, "pesq"),
        Metric("stoi", "STOI", "", stoi, "pystoi"),
        Metric("estoi", "ESTOI", "", estoi, "pystoi"),
        Metric("sdr", "SDR", "dB", sdr),
        Metric("si_sdr", "SI-SDR", "dB", si_sdr),
        Metric("ssnr", "SSNR", "dB", ssnr, at_peak_1=True),
        Metric("ssnri", "SSNRI", "dB", ssnri, needs_noisy=True, at_peak_1=True),
        Metric("si_ssnr", "SI-SSNR", "dB", si_ssnr),
        Metric("si_ssnri", "SI-SSNRI", "dB", si_ssnri, needs_noisy=True),
        Metric("lsd", "LSD", "dB", lsd, higher_is_better=False),
    )
}


def _score(
    name: str,
    compute: Callable[[np.ndarray, np.ndarray], float],
    reference: np.ndarray,
    estimate: np.ndarray,
) -> Score:
    """Computes a metric; what makes it undefined becomes the status.

    Raises:
        ValueError: The shapes are wrong.
    """
    validate(reference, estimate)
    reason = _undefined(reference, estimate)
    if reason:
        return Score(math.nan, reason)
    try:
        value = compute(reference, estimate)
    except ValueError as error:
        return Score(math.nan, f"{name}: {error}")
    if math.isinf(value) or (name in ("sdr", "si_sdr") and value > MAX_DB):
        return Score(math.nan, f"{name}: the estimate equals the reference, the ratio is infinite")
    if math.isnan(value):
        return Score(math.nan, f"{name}: the result is not a number")
    return Score(float(value))


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


def _minus(one: Score, other: Score) -> Score:
    reasons = dict.fromkeys(score.status for score in (one, other) if score.status != OK)
    return Score(one.value - other.value, "; ".join(reasons) or OK)


def _pesq(reference: np.ndarray, estimate: np.ndarray, band: str) -> float:
    if len(reference) > MAX_PESQ_SECONDS * SAMPLE_RATE_HZ:
        raise ValueError(f"longer than {MAX_PESQ_SECONDS} s; score shorter pieces")
    if most_utterances(reference) >= MAX_PESQ_UTTERANCES:
        raise ValueError(
            f"may hold more than the {MAX_PESQ_UTTERANCES} utterances that its tables hold; "
            "score shorter pieces"
        )
    try:
        return float(pesq.pesq(SAMPLE_RATE_HZ, reference, estimate, band))
    except (pesq.PesqError, ValueError) as error:
        text = error.args[0] if error.args else type(error).__name__
        raise ValueError(text.decode() if isinstance(text, bytes) else str(text)) from None


def most_utterances(reference: np.ndarray) -> int:
    """Returns how many utterances P.862 may find at most, whatever its threshold is.

    Its activity detector works on 4 ms energies, joins what is less than 200 ms apart and counts
    what lasts 200 ms or longer. The threshold depends on the signal: many are tried.
    """
    frame, shortest = 64, 50
    num_frames = len(reference) // frame
    if num_frames < 2 * shortest * MAX_PESQ_UTTERANCES:
        return num_frames // (2 * shortest)
    energy = np.sum(reference[: num_frames * frame].reshape(num_frames, frame) ** 2, axis=1)
    most = 0
    for threshold_db in range(0, -70, -2):
        active = np.flatnonzero(energy > energy.max() * 10 ** (threshold_db / 10))
        if len(active):
            breaks = np.flatnonzero(np.diff(active) > shortest)
            starts = active[np.r_[0, breaks + 1]]
            stops = active[np.r_[breaks, len(active) - 1]]
            most = max(most, int(np.count_nonzero(stops - starts >= shortest - 5)))
    return most


def _stoi(reference: np.ndarray, estimate: np.ndarray, extended: bool) -> float:
    load(pystoi)
    with warnings.catch_warnings():
        # Too little speech gives 1e-5 and a warning: that is no score.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(reference, estimate, SAMPLE_RATE_HZ, extended=extended))
        except (RuntimeWarning, ValueError, IndexError) as error:
            if "Not enough STFT frames" in str(error) or isinstance(error, IndexError | ValueError):
                raise ValueError("less than 0.4 s of speech") from None
            raise ValueError(str(error)) from None


def _si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    target = reference * (np.dot(reference, estimate) / np.dot(reference, reference))
    error = estimate - target
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.dot(target, target) / np.dot(error, error)))


def _lsd(reference: np.ndarray, estimate: np.ndarray) -> float:
    if len(reference) < LSD_FRAME:
        raise ValueError(f"shorter than a frame of {LSD_FRAME} samples")
    spectra = [_magnitudes(signal) for signal in (reference, fit_gain(reference, estimate))]
    floor = spectra[0].max() * 10 ** (-LSD_RANGE_DB / 20)
    one, other = (20 * np.log10(np.maximum(spectrum, floor)) for spectrum in spectra)
    return float(np.mean(np.sqrt(np.mean((one - other) ** 2, axis=1))))


def _magnitudes(signal: np.ndarray) -> np.ndarray:
    """Returns float64 [num_frames, num_bins] of the whole frames."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, LSD_FRAME)[::LSD_HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(LSD_FRAME) / LSD_FRAME)
    return np.abs(np.fft.rfft(frames * window, axis=1))
