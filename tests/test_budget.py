"""Quantization to a number of bytes: the search for lambda."""

import pytest
from numpy.testing import assert_array_equal

from quantization import budget
from quantization.run import parse_bytes


def by_law(factor=1000.0, power=0.25):
    """A network that is a number: its lambda; the file falls as a power of it."""
    tried = []

    def quantize(lam):
        tried.append(lam)
        return lam

    return quantize, lambda lam: int(factor * lam**-power), tried


@pytest.mark.parametrize("target", [1500, 4000, 9000])
@pytest.mark.parametrize("power", [0.15, 0.25, 0.4])
def test_the_file_just_fits(target, power):
    quantize, size, tried = by_law(power=power)
    lam, found = budget.to_lambda(quantize, size, target)
    assert found == pytest.approx(lam) and len(tried) <= 9
    assert 0.97 * target <= size(found) <= target


def test_a_target_out_of_reach_says_how_small_it_gets():
    quantize, size, _ = by_law()
    with pytest.raises(ValueError, match="999 bytes cannot be reached.*has 1,000"):
        budget.to_lambda(quantize, size, 999)


def test_a_target_that_is_never_reached_gives_the_best():
    quantize, size, _ = by_law()
    lam, _ = budget.to_lambda(quantize, size, 10**9)
    assert lam == pytest.approx(budget.MIN_LAMBDA)


def test_a_lambda_that_leaves_nothing_is_passed_over():
    def quantize(lam):
        if lam > 1e-4:
            raise ValueError("nothing is left")
        return lam

    lam, found = budget.to_lambda(quantize, lambda lam: int(1000 * lam**-0.25), 12_000)
    assert found <= 1e-4 and 1000 * found**-0.25 <= 12_001
    with pytest.raises(ValueError, match="cannot be reached"):
        budget.to_lambda(quantize, lambda lam: int(1000 * lam**-0.25), 2_000)

    def never(lam):
        raise ValueError("no convolution")

    with pytest.raises(ValueError, match="no convolution"):
        budget.to_lambda(never, len, 2_000)
    with pytest.raises(ValueError, match="no convolution"):
        budget.to_error(never, float, 0.01)


def test_an_error_is_met_as_closely_as_tries_allow():
    tried = []
    lam, found = budget.to_error(
        lambda lam: lam, lambda lam: lam**0.5, 0.05, report=lambda *values: tried.append(values)
    )
    assert found == pytest.approx(lam) and 0.8 * 0.05 <= lam**0.5 <= 0.05 and len(tried) <= 9
    with pytest.raises(ValueError, match="an error 30.0 dB down cannot be reached.*10.0 dB down"):
        budget.to_error(lambda lam: lam, lambda lam: 0.1, 0.001)


def test_numbers_of_bytes():
    found = [parse_bytes(text) for text in ("60000", "60k", "60K", "1.5M", "0.5k")]
    assert_array_equal(found, [60_000, 60_000, 60_000, 1_500_000, 500])
    for wrong in ("", "k", "-5", "0", "60kk", "nan"):
        with pytest.raises(ValueError, match="no number of bytes"):
            parse_bytes(wrong)
