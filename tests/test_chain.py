"""The whole chain against the float64 oracle: outputs, and every gradient along a direction."""

import numpy as np
import pytest

from speech.net import blockconv
from speech.net.chain import ConvBlock, Network, blocks_from_layers
from tests.builders import HIDDEN_BLOCK, chain_parameters
from tests.reference import fcn_oracle

pytestmark = pytest.mark.skipif(not blockconv.is_available(), reason="no C compiler here")


@pytest.fixture
def network():
    return Network([HIDDEN_BLOCK, HIDDEN_BLOCK, ConvBlock()])


@pytest.mark.parametrize("num_samples", [1, 54, 999, 4000])
def test_output_equals_the_oracle(network, num_samples, rng):
    parameters = chain_parameters(rng)
    signal = rng.uniform(-1, 1, num_samples).astype(np.float32)
    found, _ = network.forward(signal[None, :, None], np.array([num_samples]), parameters)
    assert found.shape == (1, num_samples, 1)
    np.testing.assert_allclose(
        found[0, :, 0], fcn_oracle.forward_chain(signal, parameters), rtol=0, atol=1e-5
    )


def test_every_gradient_equals_the_oracle_s_slope(network, rng):
    """Directional derivatives of the float64 oracle by central differences."""
    parameters = chain_parameters(rng)
    signal = rng.uniform(-1, 1, 700).astype(np.float32)
    weights = rng.standard_normal(700)
    output, traces = network.forward(signal[None, :, None], np.array([700]), parameters)
    gradients = network.backward(weights[None, :, None].astype(np.float32), traces, parameters)
    assert output.shape == (1, 700, 1)
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        direction = rng.standard_normal(parameter.shape)
        step = 1e-6
        values = []
        for sign in (1, -1):
            moved = [p.astype(np.float64) for p in parameters]
            moved[index] = moved[index] + sign * step * direction
            values.append(float(weights @ fcn_oracle.forward_chain(signal, moved)))
        expected = (values[0] - values[1]) / (2 * step)
        found = float(np.sum(gradient.astype(np.float64) * direction))
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(found - expected) < 1e-5 * max(scale, 1.0), index


def test_batch_equals_one_by_one(network, rng):
    parameters = chain_parameters(rng)
    lengths = np.array([300, 120, 1])
    batch = rng.uniform(-1, 1, (3, 300, 1)).astype(np.float32)
    for row, length in enumerate(lengths):
        batch[row, length:] = 7.0  # garbage in the padding must not matter
    output, traces = network.forward(batch, lengths, parameters)
    upstream = rng.standard_normal(output.shape).astype(np.float32)
    together = network.backward(upstream, traces, parameters)
    total = [np.zeros_like(p) for p in parameters]
    for row, length in enumerate(lengths):
        alone, own = network.forward(
            batch[row : row + 1, :length], lengths[row : row + 1], parameters
        )
        assert np.array_equal(output[row, :length], alone[0])
        assert not output[row, length:].any()
        for part, gradient in zip(
            total, network.backward(upstream[row : row + 1, :length], own, parameters), strict=True
        ):
            part += gradient
    for found, expected in zip(together, total, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_without_normalisation_and_with_zero_gamma(rng):
    plain = Network([ConvBlock(slope=0.0), ConvBlock()], tanh=False)
    parameters = chain_parameters(rng, (1, 4, 1))
    relu = [*parameters[:2], *parameters[4:]]
    signal = rng.uniform(-1, 1, (1, 200, 1)).astype(np.float32)
    output, traces = plain.forward(signal, np.array([200]), relu)
    kernel, bias, last, last_bias = (p.astype(np.float64) for p in relu)
    hidden = np.maximum(fcn_oracle.convolve_same(signal[0], kernel, bias), 0)
    expected = fcn_oracle.convolve_same(hidden, last, last_bias)
    np.testing.assert_allclose(output[0], expected, rtol=1e-5, atol=1e-6)
    assert len(plain.backward(np.ones_like(output), traces, relu)) == 4

    normalised = Network([HIDDEN_BLOCK, ConvBlock()])
    parameters[2][:2] = 0.0  # two dead channels: no division by zero
    output, traces = normalised.forward(signal, np.array([200]), parameters)
    gradients = normalised.backward(np.ones_like(output), traces, parameters)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_stacks_of_another_kind_are_left_to_keras():
    conv = {
        "filters": 3, "kernel_size": [5], "strides": [1], "padding": "same", "groups": 1,
        "dilation_rate": [1], "activation": "linear", "use_bias": True,
    }  # fmt: skip
    assert blocks_from_layers([("Conv1D", conv)]) == ([ConvBlock()], False)
    assert blocks_from_layers([("Conv1D", {**conv, "activation": "tanh"})])[1]
    for change in ({"strides": [2]}, {"dilation_rate": [2]}, {"padding": "causal"}, {"groups": 3}):
        assert blocks_from_layers([("Conv1D", {**conv, **change})]) is None
    assert blocks_from_layers([("Dense", {})]) is None
    assert blocks_from_layers([]) is None


def test_wrong_number_of_parameters_is_refused(network):
    with pytest.raises(ValueError, match="expected 10 parameter arrays, received 1"):
        network.split([np.zeros(3)])
    with pytest.raises(ValueError, match="last layer"):
        Network([HIDDEN_BLOCK])
