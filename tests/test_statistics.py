"""Paired differences: intervals that hold what they promise, p-values by hand."""

import itertools
import math

import numpy as np
import pytest

from eval import statistics


def test_mean_and_std():
    mean, std = statistics.mean_and_std(np.array([1.0, 2.0, 6.0]))
    assert (mean, std) == (pytest.approx(3.0), pytest.approx(math.sqrt(7)))
    assert math.isnan(statistics.mean_and_std(np.array([]))[0])
    assert math.isnan(statistics.mean_and_std(np.array([1.0]))[1])


def test_bootstrap_interval_against_every_resample():
    """Of three values there are 27 resamples: the percentiles of their means are known."""
    values = np.array([0.0, 1.0, 5.0])
    means = [np.mean(chosen) for chosen in itertools.product(values, repeat=3)]
    low, high = statistics.bootstrap_interval(values[:, None])
    expected = np.percentile(means, [2.5, 97.5], method="inverted_cdf")
    assert [low[0], high[0]] == pytest.approx(expected, abs=1e-12)


def test_bootstrap_interval_covers_the_mean_nearly_always(rng):
    covered = 0
    for _ in range(40):
        low, high = statistics.bootstrap_interval(rng.normal(0.3, 1.0, (60, 1)))
        covered += low[0] < 0.3 < high[0]
    assert covered >= 34  # 38 expected


def test_bootstrap_is_the_same_by_blocks_of_any_size(rng, monkeypatch):
    values = rng.standard_normal((50, 2))
    whole = statistics.bootstrap_interval(values)
    normal = np.std(values, axis=0) / np.sqrt(50) * 1.96
    np.testing.assert_allclose(whole[1] - values.mean(axis=0), normal, rtol=0.15, atol=0)
    np.testing.assert_array_equal(whole, statistics.bootstrap_interval(values))
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 700)
    blocks = statistics.bootstrap_interval(values)
    np.testing.assert_allclose(blocks, whole, rtol=0.1, atol=0.02)


def test_wilcoxon_by_hand():
    # Five positive differences: 2 of the 32 ways to set their signs are as extreme.
    assert statistics.wilcoxon_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 32)
    assert math.isnan(statistics.wilcoxon_p(np.zeros(5)))


def test_differences_of_few_files():
    (result,) = statistics.paired_differences(np.array([[2.0]]))
    assert (result.n, result.mean) == (1, 2.0)
    assert math.isnan(result.low)
    (result,) = statistics.paired_differences(np.empty((0, 1)))
    assert result.n == 0
    assert math.isnan(result.mean)
    assert math.isnan(result.p)
