"""Statistics of BatchNormalization for averaged weights, against sums in float64."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from numpy.testing import assert_allclose

from speech.training.reestimate import has_statistics, reestimate


@pytest.fixture
def model(rng):
    """Two dense layers, each normalised: what `reestimate` needs of a training model."""
    inputs = keras.Input((None, 3))
    x = layers.Dense(4, use_bias=False)(inputs)
    x = layers.BatchNormalization(epsilon=1e-3, momentum=0.9)(x)
    x = layers.Dense(2, activation="tanh")(x)
    network = keras.Model(inputs, layers.BatchNormalization(momentum=0.8)(x))
    network.set_weights(
        [
            (rng.uniform(0.5, 1.5, w.shape) if "norm" in w.path else rng.standard_normal(w.shape))
            for w in network.weights
        ]
    )
    return SimpleNamespace(network=network, network_inputs=lambda noisy: noisy)


def batches(rng, count):
    return [
        SimpleNamespace(noisy=(k + 1 + rng.standard_normal((2, 5, 3))).astype(np.float32))
        for k in range(count)
    ]


def oracle(network, data):
    """Naive: every batch normalised by itself in training, sums over all values of all batches."""
    first, _, second, _ = (layer for layer in network.layers[1:])
    norm = network.layers[2]
    gamma, beta = norm.gamma.numpy().astype(float), norm.beta.numpy().astype(float)
    outputs = ([], [])
    for batch in data:
        x = batch.noisy.reshape(-1, 3).astype(float) @ first.kernel.numpy().astype(float)
        outputs[0].append(x)
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + norm.epsilon) * gamma + beta
        x = np.tanh(x @ second.kernel.numpy().astype(float) + second.bias.numpy().astype(float))
        outputs[1].append(x)
    return [(np.concatenate(parts).mean(0), np.concatenate(parts).var(0)) for parts in outputs]


def test_statistics_are_those_of_all_batches(model, rng):
    data = batches(rng, 3)
    before = [w.numpy() for w in model.network.trainable_weights]
    reestimate(model, data)
    norms = [x for x in model.network.layers if isinstance(x, layers.BatchNormalization)]
    for layer, (mean, variance) in zip(norms, oracle(model.network, data), strict=True):
        assert_allclose(layer.moving_mean.numpy(), mean, rtol=1e-5, atol=1e-5)
        assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-4, atol=1e-5)
    assert [layer.momentum for layer in norms] == [0.9, 0.8]
    for one, other in zip(model.network.trainable_weights, before, strict=True):
        assert np.array_equal(one.numpy(), other)


def test_after_one_batch_inference_is_training(model, rng):
    (batch,) = batches(rng, 1)
    trained = np.array(model.network(batch.noisy, training=True))
    assert not np.allclose(trained, np.array(model.network(batch.noisy)), atol=1e-2)
    reestimate(model, [batch])
    assert_allclose(np.array(model.network(batch.noisy)), trained, rtol=1e-4, atol=1e-5)


def test_networks_without_statistics_are_told_apart(model):
    assert has_statistics(model.network)
    assert not has_statistics(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
