"""SDR of BSS Eval version 3 (Vincent, Gribonval, Fevotte 2006), fast.

The estimate is split into the best fit that a filter of 512 taps can make out of the reference, and
the rest; SDR is the energy of the fit over that of the rest, in dB. This is what
`mir_eval.separation.bss_eval_sources` returns for one source. There, a dense system of 512
equations and long FFTs take the time. The system is Toeplitz, and Levinson's recursion solves it in
a small part of that; of the correlations only 512 lags are computed, block by block.

Why not a package: mir_eval is slow and takes the function away in 0.9; fast_bss_eval (last release
2022) solves the dense system too, is 0.15 dB off with its fast iterative solver,
and imports PyTorch wherever that is installed.
"""

from __future__ import annotations

import numpy as np

from speech.base.lazy import scipy

NUM_TAPS = 512

#: cos of the angle between fit and rest, above which Levinson's solution was too inexact.
_MAX_COSINE = 1e-6

#: Rests of less energy than this (70 dB down) drown in the rounding of energies.
_MIN_REST = 1e-7


def sdr_db(reference: np.ndarray, estimate: np.ndarray, num_taps: int = NUM_TAPS) -> float:
    """Returns the signal-to-distortion ratio.

    Args:
        reference: float [num_samples], not silent.
        estimate: float [num_samples], not silent.
        num_taps: Length of the filter that counts as no distortion.

    Returns:
        SDR in dB; infinite if there is no distortion.

    Raises:
        ValueError: The signals are not longer than the filter.
    """
    if len(reference) <= num_taps:
        raise ValueError(f"{len(reference)} samples are not more than its {num_taps} taps")
    # Levels have no influence; alike they keep the arithmetic far from its limits.
    # (A sum, not BLAS: its threads cost more than they save, and much more on a busy machine.)
    reference, estimate = (
        signal / np.sqrt(np.sum(np.square(signal))) for signal in (reference, estimate)
    )
    autocorrelation, correlation = _correlate(reference, estimate, num_taps)
    try:
        taps = scipy.linalg.solve_toeplitz(autocorrelation, correlation)
    except scipy.linalg.LinAlgError:
        taps = None
    if taps is None or not _is_solution(autocorrelation, correlation, taps):
        # The reference has empty bands: the system is singular, though the fit is not.
        taps = scipy.linalg.lstsq(scipy.linalg.toeplitz(autocorrelation), correlation)[0]
    fit, rest = _energies(autocorrelation, correlation, taps)
    if rest < _MIN_REST:
        fit, rest = _exact_energies(reference, estimate, taps)
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.float64(fit) / rest))


def _correlate(
    reference: np.ndarray, estimate: np.ndarray, num_lags: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns sum_n r[n] r[n + k] and sum_n r[n] e[n + k] for k from 0: two float64 [num_lags]."""
    size = scipy.fft.next_fast_len(4 * max(num_lags, NUM_TAPS), real=True)
    block = size - num_lags + 1  # no lag reaches round the end of a block
    num_blocks = -(-len(reference) // block)
    windows = []
    for signal in (reference, estimate):
        padded = np.zeros((num_blocks - 1) * block + size)
        padded[: len(signal)] = signal
        windows.append(np.lib.stride_tricks.sliding_window_view(padded, size)[::block])
    heads = scipy.fft.rfft(windows[0][:, :block], size).conj()
    spectra = [np.einsum("bf,bf->f", heads, scipy.fft.rfft(window)) for window in windows]
    autocorrelation, correlation = scipy.fft.irfft(spectra, size)[:, :num_lags]
    return autocorrelation, correlation


def _energies(
    autocorrelation: np.ndarray, correlation: np.ndarray, taps: np.ndarray
) -> tuple[float, float]:
    """Returns the energies of fit and rest; the estimate's is 1.

    Any taps give the true energies of what they fit, so that an error of theirs counts squared.
    """
    fit = taps @ scipy.linalg.matmul_toeplitz(autocorrelation, taps)
    return fit, 1.0 - 2.0 * (taps @ correlation) + fit


def _is_solution(autocorrelation: np.ndarray, correlation: np.ndarray, taps: np.ndarray) -> bool:
    """Tells whether fit and rest are at right angles, as the best fit has it."""
    if not np.isfinite(taps).all():
        return False
    fit, rest = _energies(autocorrelation, correlation, taps)
    return fit >= 0 and abs(taps @ correlation - fit) <= _MAX_COSINE * np.sqrt(
        fit * max(rest, _MIN_REST)
    )


def _exact_energies(
    reference: np.ndarray, estimate: np.ndarray, taps: np.ndarray
) -> tuple[float, float]:
    """Returns the energies of fit and rest, computed sample by sample."""
    fit = scipy.signal.oaconvolve(reference, taps)  # the filter rings on after the end
    rest = -fit
    rest[: len(estimate)] += estimate
    return float(np.sum(fit**2)), float(np.sum(rest**2))
