"""C kernels of the network over time and frequency: outputs and gradients are those of Keras."""

import ctypes

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from speech.net import blockconv, tape
from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency
from speech.net.training_model import layers_of

pytestmark = pytest.mark.skipif(not blockconv.is_available(), reason="there is no C compiler")

PIECES, FRAMES = 3, 37  # several blocks of frames, the last one shorter


def randomized(network, rng):
    """Weights at random, normalisations too, of which some would start at zero."""
    for variable in network.weights:
        name, shape = variable.path.rsplit("/", 1)[-1], variable.shape
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif name != "kernel":
            variable.assign(rng.normal(0, 0.3, shape))
        else:
            variable.assign(rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[:-1])))
    return network


def by_layer(variables, arrays):
    found = {}
    for variable, array in zip(variables, arrays, strict=True):
        layer, name = variable.path.rsplit("/", 2)[-2:]
        found.setdefault(layer, {})[name] = np.asarray(array)
    return found


def of_keras(network, inputs, upstream, *, training):
    """Returns output and gradients of Keras' own layers."""
    with tf.GradientTape() as tape_:
        outputs = network(inputs, training=training)
        total = tf.reduce_sum(outputs * upstream)
    variables = network.trainable_variables
    found = tape_.gradient(total, [variable.value for variable in variables])
    return np.asarray(outputs), by_layer(variables, found)


def weights_of(network):
    return by_layer(network.weights, network.get_weights())


def check(network, rng, threads=2):
    """Compares outputs and gradients, those with fixed statistics too; returns the gradients."""
    nodes = tape.read_layers(layers_of(network))
    assert nodes is not None
    weights = weights_of(network)
    inputs = rng.normal(0, 1, (PIECES, FRAMES, *network.input_shape[2:])).astype("f4")
    runner = tape.Tape(nodes, PIECES, FRAMES, threads=threads)
    fixed = np.asarray(network(inputs, training=False))
    close(runner.forward(inputs, weights), fixed)
    # Fewer and shorter pieces than there is room for.
    close(runner.forward(inputs[:2, :9], weights), fixed[:2, :9])
    runner = tape.Tape(nodes, PIECES, FRAMES, gradients=True, threads=threads)
    upstream = rng.normal(0, 1, fixed.shape).astype("f4")
    outputs, gradients = of_keras(network, inputs, upstream, training=True)
    close(runner.forward(inputs, weights), outputs)
    found = runner.backward(upstream, weights)
    assert {k: set(v) for k, v in found.items()} == {k: set(v) for k, v in gradients.items()}
    for layer, own in gradients.items():
        for name, array in own.items():
            assert found[layer][name].shape == array.shape
            close(found[layer][name], array, f"{layer}/{name}")
    return found


def close(found, wanted, what="output"):
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max()
    assert error <= 1e-4 * np.abs(wanted).max() + 1e-7, f"{what}: {error}"


@pytest.mark.parametrize("normalization", ["batch", "none"])
@pytest.mark.parametrize(("channels", "bands"), [(12, 10), (20, 24), (5, 3), (48, 10)])
def test_outputs_and_gradients_are_those_of_keras(channels, bands, normalization, rng):
    config = TimeFrequencyConfig(channels, bands, (5, 40), normalization)
    check(randomized(build_time_frequency(config), rng), rng)


def test_results_do_not_depend_on_the_number_of_threads(rng):
    network = randomized(build_time_frequency(TimeFrequencyConfig(12, 10, (1, 2))), rng)
    nodes, weights = tape.read_layers(layers_of(network)), weights_of(network)
    inputs = rng.normal(0, 1, (PIECES, FRAMES, 256, 3)).astype("f4")
    upstream = rng.normal(0, 1, (PIECES, FRAMES, 256, 2)).astype("f4")
    results = []
    for threads in (1, 2, 3):
        runner = tape.Tape(nodes, PIECES, FRAMES, gradients=True, threads=threads)
        for _ in range(2):  # what a step leaves in memory changes nothing in the next
            outputs = runner.forward(inputs, weights)
            gradients = runner.backward(upstream, weights)
        flat = [array for own in gradients.values() for array in own.values()]
        results.append(b"".join(array.tobytes() for array in [outputs, *flat]))
    assert results[0] == results[1] == results[2]


def test_gradients_add_up_where_several_layers_read_one(rng):
    inputs = keras.Input((None, 9, 3))
    first = layers.Conv2D(12, (1, 3), padding="same", activation="silu", name="first")(inputs)
    second = layers.Conv2D(12, (1, 3), padding="same", name="second")(first)
    both = layers.Add(name="both")([first, second])
    again = layers.Add(name="again")([both, first])
    dense = layers.Dense(12, use_bias=False, name="dense")(again)
    normed = layers.BatchNormalization(name="norm")(dense)
    three = layers.Add(name="three")([layers.Activation("silu", name="act")(normed), both])
    last = layers.Add(name="last")([three, again])
    outputs = layers.Dense(2, name="out")(last)
    check(randomized(keras.Model(inputs, outputs), rng), rng)


def test_odd_convolutions(rng):
    inputs = keras.Input((None, 11, 2))
    x = layers.Conv2D(7, (1, 4), strides=(1, 2), padding="same", name="a")(inputs)
    x = layers.ZeroPadding2D(((6, 0), (0, 0)), name="pad")(x)
    x = layers.Conv2D(9, (4, 1), dilation_rate=(2, 1), activation="silu", name="b")(x)
    x = layers.Conv2D(10, (1, 2), name="c")(x)
    x = layers.Conv2D(4, (1, 6), padding="same", name="wider_than_the_bands")(x)
    check(randomized(keras.Model(inputs, x), rng), rng)


def test_other_networks_are_left_to_keras():
    def nodes(*made):
        inputs = x = keras.Input((None, 8, 4))
        for layer in made:
            x = layer(x)
        return tape.read_layers(layers_of(keras.Model(inputs, x)))

    assert nodes(layers.Dense(4), layers.Dense(4)) is not None
    for layer in (
        layers.Activation("relu"),
        layers.LayerNormalization(),
        layers.Conv2D(4, (3, 1), padding="same"),  # sees the future
        layers.Conv2D(4, (2, 2), padding="same"),
        layers.Conv2D(4, (1, 3), dilation_rate=(1, 2), padding="same"),
        layers.Conv2D(4, (1, 2), groups=2),
        layers.Dropout(0.5),
        layers.Permute((2, 1, 3)),
    ):
        assert nodes(layers.Dense(4), layer) is None, layer
    assert nodes(layers.Dense(4), layers.Dropout(0.0), layers.Dense(4)) is not None
    inputs = keras.Input((None, 8, 4))
    joined = layers.Concatenate()([layers.Dense(4)(inputs), layers.Dense(4)(inputs)])
    assert tape.read_layers(layers_of(keras.Model(inputs, joined))) is None


def test_input_of_another_shape_is_refused(rng):
    network = build_time_frequency(TimeFrequencyConfig(8, 4, (1,)))
    nodes, weights = tape.read_layers(layers_of(network)), weights_of(network)
    runner = tape.Tape(nodes, 2, 8, gradients=True)
    for shape in ((2, 8, 256, 2), (1, 8, 256, 3), (2, 7, 256, 3)):
        with pytest.raises(ValueError, match="inputs have the shape"):
            runner.forward(np.zeros(shape, "f4"), weights)
    with pytest.raises(ValueError, match="inputs have the shape"):
        tape.Tape(nodes, 2, 8).forward(np.zeros((2, 9, 256, 3), "f4"), weights)


def test_extremes_of_the_activation_are_those_of_keras():
    """SiLU far from zero, between Dense layers that pass their input on."""
    inputs = keras.Input((None, 1, 1))
    outputs = layers.Dense(1, activation="silu", name="a")(inputs)
    outputs = layers.Dense(1, name="b")(outputs)
    network = keras.Model(inputs, outputs)
    network.set_weights([np.ones((1, 1)), np.zeros(1)] * 2)
    values = np.array([-1e12, -1e4, -200, -88, -20, -1, -1e-9, 0, 0.5, 20, 88, 200, 1e4, 1e12])
    runner = tape.Tape(tape.read_layers(layers_of(network)), 1, len(values))
    batch = values.astype("f4").reshape(1, -1, 1, 1)
    found = runner.forward(batch, weights_of(network)).ravel()
    np.testing.assert_allclose(found, np.asarray(network(batch)).ravel(), rtol=1e-6, atol=1e-30)


def test_python_and_c_agree_on_an_operation():
    assert ctypes.sizeof(tape._Record) == blockconv.kernels().op_bytes()
