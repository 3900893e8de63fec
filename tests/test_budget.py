"""Quantization to a number of bytes: the search for lambda, and the choice of k by layer."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from quantization import budget
from quantization.kmeans import Codebooks, cluster_layers, clustered_layers
from quantization.run import parse_bytes
from speech.modelfile.icse import pack
from tests.builders import low_passed, output_error, smooth_layers


@pytest.fixture
def layers(rng):
    return smooth_layers(rng)


@pytest.fixture
def signals(rng):
    return [low_passed(rng, 3000) for _ in range(3)]


def size_of(found):
    return len(pack(found, {}))


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
        budget.to_lambda(never, size_of, 2_000)


def test_k_by_layer_fits_and_more_bytes_are_better(layers, signals):
    sizes, errors = [], []
    smallest, full = (size_of(cluster_layers(layers, Codebooks(k=k))) for k in (2, 64))
    for target in (smallest, (smallest + full) // 2, full):
        chosen = budget.choose_k(layers, Codebooks(), signals, target, size_of, ("fp16",))
        found = cluster_layers(layers, chosen)
        sizes.append(size_of(found))
        errors.append(output_error(layers, found, signals))
        assert sizes[-1] <= target
        assert set(chosen.k_of) == {layer.name for layer in clustered_layers(layers)}
    assert sizes == sorted(sizes) and 2 * max(errors[1:]) < errors[0]


def test_the_choice_is_no_worse_than_one_k_for_all(layers, signals):
    uniform = cluster_layers(layers, Codebooks(k=8, centroids="fp16"))
    chosen = budget.choose_k(layers, Codebooks(), signals, size_of(uniform), size_of)
    again = budget.choose_k(layers, Codebooks(), signals, size_of(uniform), size_of)
    assert chosen == again
    found = cluster_layers(layers, chosen)
    assert size_of(found) <= size_of(uniform)
    assert output_error(layers, found, signals) < 1.2 * output_error(layers, uniform, signals)
    assert set(chosen.centroids_of.values()) <= {"fp32", "fp16", "int8"}


def test_without_signals_the_weights_own_errors_count(layers):
    target = size_of(cluster_layers(layers, Codebooks(k=8)))
    chosen = budget.choose_k(layers, Codebooks(), [], target, size_of)
    assert size_of(cluster_layers(layers, chosen)) <= target


def test_too_few_bytes_are_refused_with_the_smallest_size(layers, signals):
    smallest = size_of(cluster_layers(layers, Codebooks(k=2, centroids="int8")))
    with pytest.raises(ValueError, match=f"100 bytes cannot be reached.*{smallest:,}"):
        budget.choose_k(layers, Codebooks(), signals, 100, size_of, ("int8",))
    with pytest.raises(ValueError, match="no convolution"):
        budget.choose_k(layers[:1], Codebooks(), signals, 100, size_of)


def test_the_hull_is_convex():
    def choice(num_bytes, error):
        return budget._Choice(2, "fp16", num_bytes, error, np.zeros(1))

    path = budget._hull([choice(*p) for p in ((10, 9), (20, 8), (30, 2), (40, 3), (50, 1))])
    assert [(c.num_bytes, c.error) for c in path] == [(10, 9), (30, 2), (50, 1)]


def test_numbers_of_bytes():
    found = [parse_bytes(text) for text in ("60000", "60k", "60K", "1.5M", "0.5k")]
    assert_array_equal(found, [60_000, 60_000, 60_000, 1_500_000, 500])
    for wrong in ("", "k", "-5", "0", "60kk", "nan"):
        with pytest.raises(ValueError, match="no number of bytes"):
            parse_bytes(wrong)
