"""The inference path against the float64 oracle, at every kind of edge, pruned and small."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.net import blockconv
from speech.net.chain import ConvBlock
from speech.net.inference import InferenceNetwork, _Frame
from tests.builders import HIDDEN_BLOCK, chain_parameters
from tests.reference import fcn_oracle

pytestmark = pytest.mark.skipif(not blockconv.is_available(), reason="no C compiler here")

BLOCKS = [HIDDEN_BLOCK, HIDDEN_BLOCK, ConvBlock()]
CHUNK = 2 * 32 * 74  # samples of a chunk with 32 lanes, 55 taps


@pytest.mark.parametrize(
    "num_samples", [1, 2, 54, 74, 999, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 26, 2 * CHUNK + 27]
)
def test_output_equals_the_oracle(num_samples, rng):
    parameters = chain_parameters(rng)
    signal = rng.uniform(-1, 1, num_samples).astype(np.float32)
    found = InferenceNetwork(BLOCKS, parameters)(signal)
    assert found.shape == (num_samples, 1)
    assert_allclose(found[:, 0], fcn_oracle.forward_chain(signal, parameters), rtol=0, atol=1e-5)


def test_the_whole_fcn_is_within_1e_4(rng):
    """Seven hidden layers of 30 filters, three seconds of audio."""
    parameters = chain_parameters(rng, (1, *[30] * 7, 1))
    blocks = [HIDDEN_BLOCK] * 7 + [ConvBlock()]
    signal = rng.uniform(-1, 1, 48000).astype(np.float32)
    found = InferenceNetwork(blocks, parameters)(signal)
    assert_allclose(found[:, 0], fcn_oracle.forward_chain(signal, parameters), rtol=0, atol=2e-5)


@pytest.mark.parametrize("share", [0.22, 0.9, 1.0])
def test_zero_kernels_are_skipped_without_a_change(share, rng):
    parameters = chain_parameters(rng)
    for kernel in parameters[::4]:
        kernel *= rng.random((1, *kernel.shape[1:])) >= share
    signal = rng.uniform(-1, 1, 6000).astype(np.float32)
    network = InferenceNetwork(BLOCKS, parameters)
    num_pairs = [len(layer.index) for layer in network._layers]
    assert num_pairs == [np.count_nonzero(kernel.any(0)) for kernel in parameters[::4]]
    assert_allclose(
        network(signal)[:, 0], fcn_oracle.forward_chain(signal, parameters), rtol=0, atol=1e-5
    )


def test_several_channels_in_and_out_and_no_normalisation(rng):
    block = ConvBlock(slope=0.1)
    kernel = rng.standard_normal((9, 3, 4)).astype(np.float32)
    bias = rng.standard_normal(4).astype(np.float32)
    last = rng.standard_normal((7, 4, 2)).astype(np.float32)
    network = InferenceNetwork(
        [block, ConvBlock(use_bias=False)], [kernel, bias, last], tanh=False, threads=1
    )
    signal = rng.standard_normal((1500, 3)).astype(np.float32)
    hidden = fcn_oracle.convolve_same(signal, kernel, bias)
    hidden = np.where(hidden < 0, 0.1 * hidden, hidden)
    expected = fcn_oracle.convolve_same(hidden, last, np.zeros(2))
    assert_allclose(network(signal), expected, rtol=1e-5, atol=1e-3)


def test_a_large_mean_does_not_cancel(rng):
    parameters = chain_parameters(rng, (1, 6, 5, 1))
    parameters[3] += 1000.0  # beta: the next layer's outputs have a mean far beyond their spread
    signal = rng.uniform(-1, 1, 5000).astype(np.float32)
    found = InferenceNetwork(BLOCKS, parameters)(signal)[:, 0]
    # float32 holds a signal around 1000 to 1e-4 only, and what is taken around it was not larger
    assert_allclose(found, fcn_oracle.forward_chain(signal, parameters), rtol=0, atol=5e-3)


def test_lengths_follow_each_other_in_one_network(rng):
    parameters = chain_parameters(rng)
    network = InferenceNetwork(BLOCKS, parameters)
    signals = [rng.uniform(-1, 1, n).astype(np.float32) for n in (3000, 20, 9000, 3000)]
    together = [network(signal) for signal in signals]
    for signal, output in zip(signals, together, strict=True):
        assert np.array_equal(output, InferenceNetwork(BLOCKS, parameters, threads=1)(signal))


def test_threads_that_meet_at_a_new_length_share_its_masks(monkeypatch):
    """Both make them, one lot is kept: the C code reads it through bare pointers."""
    frame = _Frame(3 * CHUNK + 5, 128, 74, 32)
    meet, inside = threading.Barrier(2), frame._inside
    monkeypatch.setattr(frame, "_inside", lambda *place: (meet.wait(10), inside(*place))[1])
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(frame.masks, (27, 27))
    assert one[0] is other[0] is frame.masks(27)[0]
    assert one[1] is other[1] is frame.masks(27)[1]


def test_threads_do_not_disturb_each_other(rng):
    network = InferenceNetwork(BLOCKS, chain_parameters(rng), threads=1)
    signals = [rng.uniform(-1, 1, 5000 + 40 * (n // 2)).astype(np.float32) for n in range(60)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(network, signals))
    for signal, output in zip(signals, outputs, strict=True):
        assert np.array_equal(output, network(signal))


def test_edges_and_wrong_shapes(rng):
    network = InferenceNetwork(BLOCKS, chain_parameters(rng))
    assert network(np.zeros(0, np.float32)).shape == (0, 1)
    with pytest.raises(ValueError, match=r"signal must be \[time, 1\]"):
        network(np.zeros((5, 2), np.float32))
