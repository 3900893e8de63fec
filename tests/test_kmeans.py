"""Codebooks: the exact optimum against a naive oracle, signs, storage formats."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantization import kmeans
from quantization.kmeans import (
    Codebooks,
    best_centroids,
    cluster_kernel,
    cluster_layers,
)
from tests.builders import network


def naive_optimum(values, k):
    """Smallest distortion by dynamic programming over all partitions of the sorted values."""
    values = np.sort(np.asarray(values, float))
    n = len(values)

    def cost(i, j):
        part = values[i:j]
        return ((part - part.mean()) ** 2).sum()

    best = [cost(0, j) if j else 0.0 for j in range(n + 1)]
    for count in range(2, k + 1):
        best = [
            min((best[i] + cost(i, j) for i in range(count - 1, j)), default=np.inf)
            for j in range(n + 1)
        ]
    return best[n]


@pytest.mark.parametrize("k", [2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["normal", "laplace", "ties", "offset"])
def test_exact_is_the_optimum(k, kind, rng):
    values = {
        "normal": rng.normal(0, 0.03, 60),
        "laplace": rng.laplace(0, 0.03, 60),
        "ties": rng.integers(-6, 7, 60) / 64,
        "offset": 100 + rng.normal(0, 0.01, 60),
    }[kind]
    centroids = best_centroids(values, k)
    assert centroids.shape == (k,) and (np.diff(centroids) > 0).all()
    found = centroids[kmeans.nearest(values, centroids)]
    assert_allclose(((values - found) ** 2).sum(), naive_optimum(values, k), rtol=1e-6, atol=1e-12)
    means = [values[found == centroid].mean() for centroid in centroids]
    assert_allclose(means, centroids, rtol=1e-9, atol=1e-12)


def test_exact_does_not_depend_on_order(rng):
    values = rng.normal(size=500)
    assert_array_equal(best_centroids(values, 7), best_centroids(rng.permutation(values), 7))


def test_as_many_centroids_as_values_are_the_values():
    values = [3.0, -1.0, 3.0, 0.5, -1.0]
    assert_array_equal(best_centroids(values, 3), [-1.0, 0.5, 3.0])


@pytest.mark.parametrize(
    ("k", "match"),
    [(1, "k is 1; give"), (0, "k is 0"), (129, "from 2 to 128"), (True, "k is True"),
     (2.5, "k is 2.5"), (4, "k is 4, but there are only 3 distinct weights")],
)  # fmt: skip
def test_k_out_of_range_is_one_line(k, match):
    with pytest.raises(ValueError, match=match) as caught:
        best_centroids([1.0, 2.0, 2.0, 3.0], k)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or an infinity"):
        best_centroids([1.0, np.nan, 2.0], 2)


@pytest.mark.parametrize("centroids", kmeans.FORMATS)
@pytest.mark.parametrize("per_sign", [False, True])
def test_kernel_keeps_zeros_signs_and_at_most_k_values(centroids, per_sign, rng):
    kernel = rng.normal(0, 0.05, (9, 4, 5)).astype("f4")
    kernel[:, 1, 2] = kernel[:, 3, 0] = 0
    clustered = cluster_kernel(kernel, 4, per_sign=per_sign, centroids=centroids)
    assert clustered.dtype == np.float32 and clustered.shape == kernel.shape
    assert not clustered[kernel == 0].any()
    values = np.unique(clustered[kernel != 0])
    assert len(values) <= (8 if per_sign else 4)
    assert not np.signbit(clustered[clustered == 0]).any()
    if per_sign:
        assert_array_equal(np.sign(clustered), np.sign(kernel))
    assert_array_equal(kmeans.round_kernel(clustered, "fp32"), clustered)


def test_fp16_and_int8_centroids_are_what_the_formats_hold(rng):
    centroids = np.sort(rng.normal(0, 0.05, 16)).astype("f4")
    half = kmeans.round_centroids(centroids, "fp16")
    assert_array_equal(half, half.astype("f2").astype("f4"))
    assert_allclose(half, centroids, rtol=2**-11, atol=1e-7)
    whole = kmeans.round_centroids(centroids, "int8")
    step = np.abs(centroids).max() / 127
    assert_allclose(whole, centroids, rtol=0, atol=0.51 * step)
    # One step s, of which all are whole multiples of at most 127.
    ratios = whole / kmeans._upper_half(np.float32(step))
    assert_array_equal(ratios, np.rint(ratios))
    assert np.abs(ratios).max() <= 127


def test_fp16_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="too large for FP16"):
        kmeans.round_centroids([1e5, 0.0], "fp16")


def test_network_k_by_layer_and_the_last_apart(rng):
    layers = network(rng, (1, 6, 6, 1))
    names = [layer.name for layer in kmeans.clustered_layers(layers)]
    found = cluster_layers(layers, Codebooks(k=4, k_last=3, k_of={names[0]: 7}))
    counts = [len(np.unique(x.weights["kernel"])) for x in kmeans.clustered_layers(found)]
    assert counts == [7, 4, 3]
    for old, new in zip(layers, found, strict=True):
        for key in old.weights.keys() - {"kernel"}:
            assert_array_equal(old.weights[key], new.weights[key])


def test_network_errors_name_the_layer(rng):
    layers = network(rng, (1, 2, 1))
    with pytest.raises(ValueError, match=r"layer \w+: k is 100, but there are only"):
        cluster_layers(layers, Codebooks(k=100))
    with pytest.raises(ValueError, match="no layer 'conv99' to cluster"):
        cluster_layers(layers, Codebooks(k=2, k_of={"conv99": 4}))
    with pytest.raises(ValueError, match="no convolution or matrix"):
        cluster_layers([x for x in layers if "kernel" not in x.weights], Codebooks())


@pytest.mark.parametrize("bad", [{"k": 1}, {"k_last": 1}, {"k_of": {"a": 0}}, {"centroids": "fp8"}])
def test_settings_that_make_no_sense(bad):
    with pytest.raises(ValueError, match="give"):
        Codebooks(**bad)


@pytest.mark.parametrize("how", ["fp32", "fp16", "int8"])
def test_a_codebook_of_zero_alone_stays_as_it_is(how):
    assert_array_equal(kmeans.round_centroids(np.zeros(1, np.float32), how), [0])
