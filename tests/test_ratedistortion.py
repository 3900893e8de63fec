"""Rate-distortion quantization: its statistics against naive sums, its results against k-means."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from quantization import calibration, ratedistortion
from quantization.calibration import Stage
from quantization.kmeans import Codebooks, cluster_layers, clustered_layers
from quantization.ratedistortion import RateDistortion, quantize
from speech.modelfile.icse import pack, unpack
from speech.modelfile.spec import LayerSpec
from speech.net.chain import ConvBlock
from tests.builders import low_passed, output_error, smooth_layers


def draw(rng, *shape):
    return rng.normal(0, 1, shape).astype("f4")


@pytest.fixture
def layers(rng):
    return smooth_layers(rng)


@pytest.fixture
def signals(rng):
    return [low_passed(rng, 3000) for _ in range(3)]


def naive_convolution(signal, kernel, before):
    result = np.zeros((len(signal), kernel.shape[2]))
    for n in range(len(signal)):
        for t in range(len(kernel)):
            if 0 <= n + t - before < len(signal):
                result[n] += signal[n + t - before] @ kernel[t].astype("f8")
    return result


def size_of(layers):
    return sum(unpack(pack(layers, {})).kernel_bytes.values())


# --------------------------------------------------------------------------------------------
# Statistics


@pytest.mark.parametrize(("length", "taps"), [(5, 9), (40, 4), (2100, 7)])
def test_convolution_and_correlation_are_those_of_naive_sums(length, taps, rng):
    signal, kernel = draw(rng, length, 2), draw(rng, taps, 2, 3)
    for before in (0, (taps - 1) // 2, taps - 1):
        found = calibration.convolve(signal, kernel, before)
        assert_allclose(found, naive_convolution(signal, kernel, before), rtol=1e-4, atol=1e-4)
    other = draw(rng, length, 3)
    for first, count in ((1 - taps, 2 * taps - 1), (-2, taps)):
        found = calibration.cross_correlation(signal, other, first, count)
        for place, lag in enumerate(range(first, first + count)):
            expected = sum(
                (
                    np.outer(signal[n], other[n + lag])
                    for n in range(length)
                    if 0 <= n + lag < length
                ),
                np.zeros((2, 3)),
            )
            assert_allclose(found[place], expected, rtol=1e-3, atol=1e-3)


def test_stages_compute_what_the_network_computes(layers, signals):
    from speech.net.chain import Network, blocks_from_layers, parameters_of

    blocks, tanh = blocks_from_layers([(x.class_name, x.config) for x in layers])
    values = signals[0]
    for stage in calibration.stages_of(layers):
        values = stage.activate(stage.convolve(values))
    network_ = Network(blocks, tanh=tanh)
    lengths = np.array([len(signals[0])])
    wanted, _ = network_.forward(signals[0][None], lengths, parameters_of(layers))
    assert_allclose(values, wanted[0], rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("normalized", [True, False])
def test_gradient_of_an_activation_is_the_difference_quotient(normalized, rng):
    stage = Stage("s", ConvBlock(normalized=normalized, slope=0.3), draw(rng, 3, 2, 4),
                  *(draw(rng, 4) for _ in range(3)), tanh=False)  # fmt: skip
    inputs, upstream = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    found = stage.activation_gradient(inputs, upstream)
    for place in ((0, 0), (7, 1), (29, 3)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = inputs.copy()
            moved[place] += step
            ends.append(np.sum(stage.activate(moved) * upstream))
        assert_allclose(found[place], (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-6)


def test_statistics_tell_the_error_of_a_layers_output(rng):
    signal, taps = low_passed(rng, 4000, 2) + 1, 5
    stage = Stage("s", ConvBlock(normalized=True), draw(rng, taps, 2, 3),
                  *(draw(rng, 3) for _ in range(3)), tanh=False)  # fmt: skip
    found = calibration.statistics([signal], [stage.convolve(signal)], stage)
    power = np.square(signal - signal.mean(0)).sum() / 2
    error = 0.1 * draw(rng, taps, 2, 3)
    made = calibration.convolve(signal, error, 2)
    made = made - made.mean(0)
    vectors = error.reshape(-1, 3).astype("f8")
    predicted = np.einsum("rf,rs,sf->f", vectors, found.inputs, vectors)
    assert_allclose(predicted, np.square(made).sum(0) / power, rtol=0.02)
    # The weights themselves give the targets, but for the ends of the signal.
    given = found.inputs @ stage.kernel.reshape(-1, 3).astype("f8")
    assert np.abs(given - found.targets).max() < 0.02 * np.abs(found.targets).max()


def test_sensitivities_tell_what_noise_in_a_layer_does_to_the_output(layers, signals, rng):
    stages = calibration.stages_of(layers)
    factors = calibration.sensitivities(stages, signals, probes=8)
    for index in (0, 1, 2):
        predicted = measured = 0.0
        for signal in signals:
            values, wanted, factor = signal, signal, 0.0
            for number, stage in enumerate(stages):
                if number == index:
                    centred = values - values.mean(0) if stage.block.normalized else values
                    factor = factors[index].sum() / np.mean(centred**2)
                values, wanted = stage.convolve(values), stage.convolve(wanted)
                if number == index:
                    sigma = 0.01 * values.std()
                    values = values + rng.normal(0, sigma, values.shape).astype("f4")
                values, wanted = stage.activate(values), stage.activate(wanted)
            predicted += factor * sigma**2
            measured += np.sum((values - wanted) ** 2) / np.sum(wanted**2)
        assert 0.6 < predicted / measured < 1.6


# --------------------------------------------------------------------------------------------
# Quantization


def test_smaller_lambda_larger_file_smaller_error(layers, signals):
    found = [quantize(layers, RateDistortion(lam=lam), signals) for lam in (0.1, 0.01, 0.001)]
    sizes = [size_of(one) for one in found]
    errors = [output_error(layers, one, signals) for one in found]
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert errors[2] < 0.02


def test_it_beats_kmeans_and_plain_errors(layers, signals, rng):
    fresh = [low_passed(rng, 3000) for _ in range(3)]
    kmeans = cluster_layers(layers, Codebooks(k=8, centroids="fp16"))
    found = quantize(layers, RateDistortion(lam=0.003), signals)
    plain = quantize(layers, RateDistortion(lam=0.003, weighting="plain"), signals)
    power = quantize(layers, RateDistortion(lam=0.003, weighting="power"), signals)
    assert size_of(found) < 0.9 * size_of(kmeans)
    assert output_error(layers, found, fresh) < output_error(layers, kmeans, fresh)
    for other in (plain, power):
        larger = size_of(other) > size_of(found)
        worse = output_error(layers, other, fresh) > output_error(layers, found, fresh)
        assert larger or worse


@pytest.mark.parametrize("centroids", ["fp32", "fp16", "int8"])
def test_values_are_few_stored_as_asked_and_survive_the_file(centroids, layers, signals):
    found = quantize(layers, RateDistortion(lam=0.01, centroids=centroids), signals)
    again = quantize(layers, RateDistortion(lam=0.01, centroids=centroids), signals)
    back = unpack(pack(found, {})).model.layers
    for one, two, three in zip(found, again, back, strict=True):
        for key, array in one.weights.items():
            assert array.dtype == np.float32
            assert_array_equal(array, two.weights[key])
            assert array.tobytes() == (three.weights[key] + np.float32(0)).tobytes()
    for layer in clustered_layers(found):
        values = np.unique(layer.weights["kernel"])
        assert len(values) < 60
        if centroids == "fp16":
            assert_array_equal(values, values.astype("f2").astype("f4"))


def test_pruned_channels_stay_zero(layers, signals):
    found = quantize(layers, RateDistortion(lam=0.003), signals)
    assert not found[4].weights["kernel"][:, 2:4, :3].any()
    free = [*layers]
    kernel = layers[4].weights["kernel"].copy()
    kernel[:, 2:4, :3] = 0.1
    free[4] = ratedistortion.with_kernel(layers[4], kernel)
    found = quantize(free, RateDistortion(lam=0.003), signals, original=layers)
    assert not found[4].weights["kernel"][:, 2:4, :3].any()


def test_scales_of_channels_change_nothing_by_themselves(layers, signals, monkeypatch):
    """At a tiny lambda what is left is the scales, which the normalisation takes along."""
    layers[2].weights["gamma"][1] *= 16
    layers[2].weights["beta"][1] *= 16
    layers[4].weights["kernel"][:, 1] /= 16
    monkeypatch.setattr(ratedistortion, "_PASSES", 1)
    found = quantize(layers, RateDistortion(lam=1e-6, centroids="fp32"), signals)
    assert output_error(layers, found, signals) < 1e-4
    assert not np.array_equal(found[2].weights["gamma"], layers[2].weights["gamma"])


def test_networks_of_matrices_are_quantized_by_their_weights(rng):
    layers = (
        LayerSpec("InputLayer", "in", {"batch_shape": [None, 40]}),
        LayerSpec("Dense", "a", {"units": 30, "activation": "relu", "use_bias": True},
                  {"kernel": draw(rng, 40, 30), "bias": draw(rng, 30)}),
        LayerSpec("Dense", "b", {"units": 5, "activation": "linear", "use_bias": False},
                  {"kernel": draw(rng, 30, 5)}),
    )  # fmt: skip
    found = quantize(layers, RateDistortion(lam=0.01), [])
    for before, after in zip(clustered_layers(layers), clustered_layers(found), strict=True):
        one, other = before.weights["kernel"], after.weights["kernel"]
        assert np.sum((one - other) ** 2) < 0.2 * np.sum(one**2)
        assert len(np.unique(other)) < 40
    assert_array_equal(found[1].weights["bias"], layers[1].weights["bias"])


def test_values_that_make_no_sense(layers, signals):
    for wrong in (0, -1.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match="lambda is"):
            RateDistortion(lam=wrong)
    with pytest.raises(ValueError, match="weighting"):
        RateDistortion(weighting="other")
    with pytest.raises(ValueError, match="centroids"):
        RateDistortion(centroids="fp8")
    with pytest.raises(ValueError, match="no convolution"):
        quantize(layers[:1], RateDistortion(), signals)
