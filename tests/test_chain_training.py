"""The fast training step: same results and same training as those of the plain layers."""

import gc
import weakref

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.net.chain_training import TrainingModel, uses_c_kernels
from speech.net.fcn import FCNConfig, build_fcn
from speech.net.losses import LOSSES, find_loss

needs_c_kernels = pytest.mark.skipif(not uses_c_kernels(), reason="the C kernels do not run here")
SMALL = FCNConfig(num_hidden_layers=2, num_filters=5, kernel_size=9)


def padded_batch(rng, lengths):
    noisy = np.zeros((len(lengths), max(lengths), 1), np.float32)
    clean, weights = np.zeros_like(noisy), np.zeros(noisy.shape[:2], np.float32)
    for row, length in enumerate(lengths):
        noisy[row, :length, 0] = rng.uniform(-1, 1, length)
        clean[row, :length, 0] = rng.uniform(-0.5, 0.5, length)
        weights[row, :length] = max(lengths) / length
    return noisy, np.array(lengths, np.int32), clean, weights


@needs_c_kernels
def test_training_is_the_same_with_either_convolution(rng):
    batches = [padded_batch(rng, [300, 200]), padded_batch(rng, [150, 250])]
    losses, weights = [], []
    for conv in ("fast", "keras"):
        network = build_fcn(SMALL, seed=1)
        model = TrainingModel(network, conv)
        assert model.uses_c_kernels == (conv == "fast")
        model.compile(keras.optimizers.SGD(0.1), "mse")
        losses.append(
            [
                float(model.train_on_batch((noisy, lengths), clean, sample_weight=weight))
                for noisy, lengths, clean, weight in batches
            ]
        )
        weights.append(network.get_weights())
    assert_allclose(*losses, rtol=1e-5, atol=0)
    for fast, plain in zip(*weights, strict=True):
        assert_allclose(fast, plain, rtol=1e-4, atol=1e-5)


@needs_c_kernels
@pytest.mark.parametrize("loss", LOSSES)
def test_training_with_any_loss_is_the_same_with_either_convolution(loss, rng):
    batches = [padded_batch(rng, [1300, 900]), padded_batch(rng, [700, 800])]
    losses, weights = [], []
    for conv in ("fast", "keras"):
        network = build_fcn(SMALL, seed=1)
        model = TrainingModel(network, conv, find_loss(loss))
        model.compile(keras.optimizers.SGD(1e-3), weighted_metrics=["mse"])
        for noisy, lengths, clean, weight in batches:
            logs = model.train_on_batch(
                (noisy, lengths), clean, sample_weight=weight, return_dict=True
            )
            losses.append((conv, logs["loss"], logs["mse"]))
        weights.append(network.get_weights())
    assert_allclose([x[1:] for x in losses[:2]], [x[1:] for x in losses[2:]], rtol=1e-4)
    if loss == "mse":
        assert_allclose([x[1] for x in losses], [x[2] for x in losses], rtol=1e-5)
    for fast, plain in zip(*weights, strict=True):
        assert_allclose(fast, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("conv", ["fast", "keras"])
def test_a_padded_batch_equals_its_utterances_one_by_one(conv, rng):
    lengths = [200, 90, 131]
    noisy, sizes, clean, weights = padded_batch(rng, lengths)
    network = build_fcn(SMALL, seed=2)
    model = TrainingModel(network, conv)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    output = np.array(model((noisy, sizes)))
    together = float(model.test_on_batch((noisy, sizes), clean, sample_weight=weights))
    alone = []
    for row, length in enumerate(lengths):
        single = np.array(network(noisy[row : row + 1, :length]))
        assert_allclose(output[row, :length], single[0], rtol=1e-5, atol=2e-6)
        assert not output[row, length:].any()
        alone.append(np.mean((single[0] - clean[row, :length]) ** 2))
    assert_allclose(together, np.mean(alone), rtol=1e-5)


@needs_c_kernels
def test_a_forward_pass_in_between_does_not_spoil_the_gradient(rng):
    import tensorflow as tf

    network = build_fcn(SMALL, seed=3)
    model = TrainingModel(network, "fast")
    noisy, lengths, clean, _ = padded_batch(rng, [100])
    other = rng.uniform(-1, 1, (1, 80, 1)).astype(np.float32)

    def gradients(disturb):
        with tf.GradientTape() as tape:
            output = model((noisy, lengths))
            if disturb:
                model((other, np.array([80], np.int32)))
            loss = tf.reduce_mean((output - clean) ** 2)
        return tape.gradient(loss, network.trainable_variables)

    for calm, disturbed in zip(gradients(False), gradients(True), strict=True):
        assert np.array_equal(calm, disturbed)


def test_unknown_convolution_is_refused():
    with pytest.raises(ValueError, match="'fast' or 'keras'"):
        TrainingModel(build_fcn(SMALL), "quick")


@needs_c_kernels
def test_a_model_that_is_done_with_gives_its_memory_back(rng):
    """TensorFlow keeps the gradient functions of every graph for good: they must not hold it."""
    model = TrainingModel(build_fcn(SMALL, seed=1), "fast", find_loss("spectral"))
    model.compile(optimizer=keras.optimizers.Adam(), jit_compile=False)
    clean = rng.uniform(-1, 1, (2, 3000, 1)).astype(np.float32)
    model.train_on_batch((clean, np.full(2, 3000, np.int32)), clean)
    chain = weakref.ref(model._chain)
    assert chain() is not None
    del model
    gc.collect()
    assert chain() is None
