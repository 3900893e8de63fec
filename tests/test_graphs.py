"""Networks over time and frequency run for quantization: outputs, gradients, statistics."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from quantization import graphs
from speech.modelfile.meta import MaskConventions
from speech.modelfile.spec import LayerSpec
from speech.net.folding import fold_batch_normalization
from speech.net.taps import has_kernel, taps_of, with_taps
from tests.builders import TINY, mask_layers
from tests.reference import graph_oracle


def spectra(rng, count=2, num_samples=3000):
    """Noise in a tone, as the network takes it."""
    time = np.arange(num_samples)
    signals = [
        0.05 * rng.standard_normal(num_samples) + 0.1 * np.sin(0.1 * (n + 1) * time)
        for n in range(count)
    ]
    signals = [signal.astype("f4")[:, None] for signal in signals]
    return graphs.spectra_of(signals, MaskConventions.of(TINY.meta()))


def draw(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


CONVOLUTIONS = [
    ("Conv2D", (1, 8), (1, 4), (1, 1), "same"),
    ("Conv2D", (1, 3), (1, 1), (1, 1), "same"),
    ("Conv2D", (3, 1), (1, 1), (2, 1), "valid"),
    ("Conv2D", (2, 5), (1, 2), (1, 1), "valid"),
    ("Conv2DTranspose", (1, 8), (1, 4), (1, 1), "same"),
    ("Conv2DTranspose", (3, 2), (1, 3), (1, 1), "same"),
]


def convolution(rng, class_name, size, strides, dilations, padding):
    channels = (4, 3) if class_name == "Conv2DTranspose" else (3, 4)
    config = {"kernel_size": size, "strides": strides, "dilation_rate": dilations,
              "padding": padding, "activation": "linear"}  # fmt: skip
    weights = {"kernel": draw(rng, *size, *channels), "bias": draw(rng, 4)}
    return LayerSpec(class_name, "c", config, weights)


def oracle(layer, inputs):
    config, own = layer.config, layer.weights
    if layer.class_name == "Conv2DTranspose":
        return graph_oracle.convolve_transposed(
            inputs, own["kernel"], own["bias"], config["strides"]
        )
    return graph_oracle.convolve(
        inputs, own["kernel"], own["bias"], config["strides"], config["dilation_rate"],
        config["padding"],
    )  # fmt: skip


@pytest.mark.parametrize("settings", CONVOLUTIONS)
def test_a_convolution_is_that_of_naive_sums_and_of_its_patches(settings, rng):
    layer, inputs = convolution(rng, *settings), draw(rng, 7, 10, 3)
    expected = oracle(layer, inputs)
    assert_allclose(graphs.linear(layer, inputs), expected, rtol=1e-4, atol=1e-4)
    matrix = taps_of(layer).reshape(-1, 4).astype("f8")
    found = graphs.patches(layer, inputs) @ matrix + layer.weights["bias"]
    assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", CONVOLUTIONS)
def test_the_gradient_of_a_convolution_is_its_transpose(settings, rng):
    """<A x, g> = <x, A' g>, with A by the oracle."""
    layer, inputs = convolution(rng, *settings), draw(rng, 7, 10, 3)
    layer.weights["bias"][:] = 0
    upstream = draw(rng, *oracle(layer, inputs).shape)
    gradient = graphs._input_gradient(layer, inputs, upstream)
    other = draw(rng, 7, 10, 3)
    left, right = (oracle(layer, other) * upstream).sum(), (other * gradient.astype("f8")).sum()
    assert_allclose(left, right, rtol=1e-4)


@pytest.mark.parametrize("folded", [False, True])
def test_outputs_are_those_of_keras(folded, rng):
    from speech.net.keras_models import build_model

    layers = mask_layers()
    layers = fold_batch_normalization(layers) if folded else layers
    inputs = draw(rng, 20, 256, 3)
    found = graphs.forward(layers, inputs, keep=False)
    assert list(found) == [layers[-1].name]
    wanted = np.asarray(build_model(layers)(inputs[None]))[0]
    assert_allclose(found[layers[-1].name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("folded", [False, True])
def test_gradients_are_difference_quotients(folded, rng):
    layers = mask_layers()
    layers = fold_batch_normalization(layers) if folded else layers
    inputs, upstream = draw(rng, 9, 256, 3), draw(rng, 9, 256, 2)
    found = graphs.gradients(layers, graphs.forward(layers, inputs), upstream)
    assert set(found) == {layer.name for layer in layers if has_kernel(layer)}

    def value(name, step):
        moved = [
            replace(layer, weights={**layer.weights, "bias": bias + step})
            if layer.name == name
            else layer
            for layer in layers
            if (bias := layer.weights.get("bias", np.float32(0))) is not None
        ]
        output = graphs.forward(moved, inputs)[layers[-1].name]
        return float((output.astype("f8") * upstream).sum())

    for name in ("encoder1", "encoder3", "bands_down", "block2_time", "block1_bands", "decoder2"):
        quotient = (value(name, 1e-2) - value(name, -1e-2)) / 2e-2
        assert_allclose(found[name].sum(dtype="f8"), quotient, rtol=0.02, atol=0.05)


#: Errors of a kernel whose mean is predicted.
NUM_ERRORS = 8


def unchanged(layers, inputs):
    """Yields each layer with a kernel, with its statistics in the network as it is."""
    walking = graphs.walk(layers, inputs, graphs.sensitivities(layers, inputs))
    layer, found = next(walking)
    with contextlib.suppress(StopIteration):
        while True:
            yield layer, found
            layer, found = walking.send(layer)


def test_statistics_tell_the_error_that_errors_of_a_kernel_make(rng):
    """Exact at the output; further up, errors of several places are taken as independent."""
    layers = fold_batch_normalization(mask_layers())
    inputs = spectra(rng)
    sensitivity = graphs.sensitivities(layers, inputs)
    assert set(sensitivity) == {layer.name for layer in layers if has_kernel(layer)}
    largest_factor = {"mask": 1.1, "decoder2": 1.3, "encoder2": 1.6, "block1_time": 1.6,
                      "block2_bands": 1.6, "block2_bands_dense": 1.6}  # fmt: skip
    by_name = {layer.name: layer for layer in layers}
    for layer, found in unchanged(layers, inputs):
        if layer.name not in largest_factor:
            continue
        taps = taps_of(layer)
        predicted = measured = 0.0
        for _ in range(NUM_ERRORS):  # the estimate is one of a mean
            error = 0.01 * draw(rng, *taps.shape)
            vectors = error.reshape(-1, taps.shape[2]).astype("f8")
            predicted += np.einsum("rf,rf->", vectors, found.inputs @ vectors)
            # The bias makes up for the mean of the error, as quantization lets it.
            moved = with_taps(layer, taps + error)
            bias = layer.weights["bias"] - (found.mean_input @ vectors).astype("f4")
            moved = replace(moved, weights={**moved.weights, "bias": bias})
            changed = [moved if one.name == layer.name else one for one in by_name.values()]
            for one in inputs:
                wanted = graphs.estimate(layers, one)
                change = graphs.estimate(changed, one) - wanted
                power = np.vdot(change, change).real / np.vdot(wanted, wanted).real
                measured += power / len(inputs)
        factor = largest_factor[layer.name]
        assert 1 / factor < predicted / measured < factor, layer.name
        # The weights themselves give the outputs wanted.
        own = found.inputs @ taps.reshape(-1, taps.shape[2]).astype("f8")
        assert_allclose(own, found.targets, rtol=1e-3, atol=1e-4 * np.abs(own).max())


def test_levels_are_spread(rng):
    signals = [3.0 * draw(rng, 800, 1) for _ in range(16)]
    levels_db = sorted(10 * np.log10(np.mean(np.square(one))) for one in graphs.at_levels(signals))
    assert -35.01 < levels_db[0] < -33 and -17 < levels_db[-1] < -14.99
    assert np.diff(levels_db).max() < 3
