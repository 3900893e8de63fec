"""Batch normalisation folds away: same outputs, fewer layers, and only where that is exact."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from speech.modelfile.exam import output_shapes
from speech.modelfile.spec import is_chain
from speech.net.folding import fold_batch_normalization
from speech.net.keras_models import build_model, layers_of
from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency
from tests.builders import shaken_model

RNG = np.random.default_rng(7)


def assert_same(model, folded, shape):
    signal = RNG.normal(size=shape).astype("f4")
    expected, found = np.array(model(signal)), np.array(build_model(folded)(signal))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def classes(specs):
    return [layer.class_name for layer in specs]


def test_the_network_is_left_without_normalisation():
    model = shaken_model(build_time_frequency(TimeFrequencyConfig(6, 5, (1, 2))))
    before = layers_of(model)
    folded = fold_batch_normalization(before)
    assert "BatchNormalization" not in classes(folded)
    num_gone = classes(before).count("BatchNormalization")
    assert num_gone == 5 + 2 * 3 and len(folded) == len(before) - num_gone
    plain = layers_of(build_time_frequency(TimeFrequencyConfig(6, 5, (1, 2), "none")))
    assert [(layer.name, layer.config, layer.inputs) for layer in folded] == [
        (layer.name, layer.config, layer.inputs) for layer in plain
    ]
    assert_same(model, folded, (2, 11, 256, 3))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv1D(3, 5, padding="same"), (9, 2)),
        (layers.Conv1D(3, 5, use_bias=False), (9, 2)),
        (layers.Conv2D(3, (2, 3), dilation_rate=(2, 1)), (9, 8, 2)),
        (layers.Conv2DTranspose(3, (1, 4), strides=(1, 2), padding="same"), (9, 8, 2)),
        (layers.Dense(3), (9, 8, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("settings", [{}, {"scale": False, "center": False}], ids=["all", "bare"])
def test_every_layer_with_a_kernel_takes_it_in(layer, shape, settings):
    layer = type(layer).from_config(layer.get_config())
    norms = [layers.BatchNormalization(epsilon=1e-3, **settings) for _ in range(2)]
    model = shaken_model(keras.Sequential([keras.Input((None, *shape[1:])), layer, *norms]))
    folded = fold_batch_normalization(layers_of(model))
    assert classes(folded) == ["InputLayer", type(layer).__name__]
    assert is_chain(folded)
    assert folded[1].weights["kernel"].dtype == np.float32
    assert_same(model, folded, (2, *shape))


def unchanged(model, shape):
    before = layers_of(shaken_model(model))
    folded = fold_batch_normalization(before)
    assert classes(folded) == classes(before)
    assert_same(model, folded, shape)


def test_it_stays_where_the_convolution_is_read_twice():
    inputs = keras.Input((None, 8, 2))
    convolved = layers.Conv2D(3, (1, 3), padding="same")(inputs)
    outputs = layers.Add()([convolved, layers.BatchNormalization()(convolved)])
    unchanged(keras.Model(inputs, outputs), (2, 5, 8, 2))


def test_two_normalisations_of_one_convolution_stay():
    inputs = keras.Input((None, 8, 2))
    convolved = layers.Conv2D(3, (1, 3), padding="same")(inputs)
    norms = [layers.BatchNormalization()(convolved) for _ in range(2)]
    unchanged(keras.Model(inputs, layers.Concatenate()(norms)), (2, 5, 8, 2))


@pytest.mark.parametrize(
    "between",
    [layers.Activation("silu"), layers.Permute((1, 3, 2)), layers.ZeroPadding2D(((1, 0), (0, 0)))],
    ids=lambda layer: type(layer).__name__,
)
def test_it_stays_behind_other_layers(between):
    between = type(between).from_config(between.get_config())
    unchanged(
        keras.Sequential(
            [keras.Input((None, 8, 2)), layers.Dense(3), between, layers.BatchNormalization()]
        ),
        (2, 5, 8, 2),
    )


def test_it_stays_behind_an_activation_inside_of_the_layer():
    model = [keras.Input((None, 8, 2)), layers.Dense(3, "relu"), layers.BatchNormalization()]
    unchanged(keras.Sequential(model), (2, 5, 8, 2))


def test_it_stays_where_no_finite_weights_would_come_out():
    model = [keras.Input((None, 2)), layers.Dense(3), layers.BatchNormalization()]
    *rest, norm = layers_of(keras.Sequential(model))
    weights = {**norm.weights, "moving_variance": np.array([1, -2, 1], "f4")}
    folded = fold_batch_normalization([*rest, dataclasses.replace(norm, weights=weights)])
    assert classes(folded)[-1] == "BatchNormalization"


def test_skips_read_the_layer_that_took_it_in():
    inputs = keras.Input((None, 4))
    hidden = layers.BatchNormalization(name="norm")(layers.Dense(4, name="dense")(inputs))
    model = shaken_model(keras.Model(inputs, layers.Add(name="sum")([hidden, hidden])))
    folded = fold_batch_normalization(layers_of(model))
    assert folded[-1].inputs == ("dense", "dense")
    assert output_shapes(folded)["sum"] == (None, None, 4)
    assert_same(model, folded, (2, 5, 4))
