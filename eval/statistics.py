"""Means, and differences between two systems on the same files.

A difference of means says little when files differ far more from each other than systems do.
Files are therefore paired: the difference is taken file by file, its mean has a bootstrap interval
(Efron 1979: files drawn with replacement, percentiles of the means), and Wilcoxon's signed-rank
test (1945, two-sided) says how surprising the signs and ranks would be if the systems were alike.
Both take the files as independent; mixtures of one utterance are not quite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from speech.base.lazy import scipy

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95

_BLOCK_VALUES = 1 << 22  # drawn at once


@dataclass(frozen=True)
class Difference:
    """A paired difference; NaN where it is not defined.

    Attributes:
        n: Number of pairs.
        mean: Mean of the differences.
        low: Lower end of the 95 % interval of the mean.
        high: Upper end.
        p: Wilcoxon's p-value.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float


def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Returns mean and sample standard deviation (n - 1) of float [n]; NaN where undefined."""
    return (
        float(np.mean(values)) if len(values) else math.nan,
        float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
    )


def paired_differences(differences: np.ndarray, seed: int = 0) -> list[Difference]:
    """Judges the differences of several metrics on the same files.

    Args:
        differences: float [n, num_metrics], finite: one system minus the other, file by file.
        seed: Of the bootstrap.

    Returns:
        One :class:`Difference` a metric.
    """
    n = len(differences)
    lows, highs = bootstrap_interval(differences, seed)
    return [
        Difference(n, mean_and_std(column)[0], float(low), float(high), wilcoxon_p(column))
        for column, low, high in zip(differences.T, lows, highs, strict=True)
    ]


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns both ends of the 95 % bootstrap interval of the mean over rows.

    Args:
        values: float [n, num_columns].
        seed: The same seed gives the same interval.

    Returns:
        Two arrays [num_columns]; NaN with fewer than two rows.
    """
    n, num_columns = values.shape
    if n < 2:
        return np.full(num_columns, math.nan), np.full(num_columns, math.nan)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_VALUES // (n * num_columns))
    means = np.concatenate(
        [
            values[rng.integers(n, size=(min(block, NUM_RESAMPLES - start), n))].mean(axis=1)
            for start in range(0, NUM_RESAMPLES, block)
        ]
    )
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low, high


def wilcoxon_p(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of Wilcoxon's signed-rank test; NaN if all are zero."""
    if not np.any(differences):
        return math.nan
    return float(scipy.stats.wilcoxon(differences).pvalue)
