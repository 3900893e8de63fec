"""Removing filters: what is exact is exact, what is bounded stays below its bound."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pruning import surgery
from speech.modelfile import LayerSpec, read_model_file, write_model_file
from tests.test_sparsity import network

keras = pytest.importorskip("keras")


def run(layers, signal):
    from speech.weights import build_model

    return np.asarray(build_model(layers)(signal[None]))[0]


def conv_names(layers):
    return [layer.name for layer in layers if layer.class_name == "Conv1D"]


def weights_of(layers, name):
    return next(layer for layer in layers if layer.name == name).weights


def test_filters_that_nothing_reads_go_without_any_change(rng):
    layers = network(rng, (1, 6, 5, 1))
    first, second, _ = conv_names(layers)
    weights_of(layers, second)["kernel"][:, [1, 4]] = 0
    signal = rng.standard_normal((400, 1)).astype(np.float32)
    found = surgery.removable_filters(layers)
    assert_array_equal(found[first], [1, 4])
    result = surgery.remove_filters(layers, found)
    assert weights_of(result.layers, first)["kernel"].shape == (11, 1, 4)
    assert weights_of(result.layers, second)["kernel"].shape == (11, 4, 5)
    assert result.border_bound[second] == 0
    assert_allclose(run(result.layers, signal), run(layers, signal), atol=2e-6)


def test_a_constant_filter_is_folded_into_the_next_bias(rng):
    """Exact away from the ends of the signal; there within what the bound says."""
    layers = network(rng, (1, 6, 5, 1))
    layers = tuple(layer for layer in layers if layer.class_name != "GroupNormalization")
    first, second, last = conv_names(layers)
    weights_of(layers, first)["kernel"][:, :, 2] = 0
    removed = surgery.remove_filters(layers, {first: [2]})
    signal = 0.1 * rng.standard_normal((300, 1)).astype(np.float32)
    # Up to the second convolution, before anything is done to its outputs.
    upto = [layer.name for layer in layers].index(second) + 1
    before, after = run(layers[:upto], signal), run(removed.layers[:upto], signal)
    difference = np.abs(before - after)
    assert difference[5:-5].max() < 1e-5
    assert 0 < difference.max() <= removed.border_bound[second] * (1 + 1e-5)
    assert last not in removed.border_bound


def test_a_constant_filter_before_a_normalisation_leaves_the_inside_nearly_as_it_was(rng):
    layers = network(rng, (1, 8, 6, 1))
    first, second, _ = conv_names(layers)
    weights_of(layers, first)["kernel"][:, :, 3] = 0
    removed = surgery.remove_filters(layers, surgery.removable_filters(layers))
    assert removed.removed == {first: [3]}
    signal = rng.standard_normal((6000, 1)).astype(np.float32)
    difference = np.abs(run(layers, signal) - run(removed.layers, signal))
    assert difference[50:-50].max() < 0.02  # the ends have a small part in the statistics


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_dense_layers_fold_exactly(activation, rng):
    def dense(name, num_in, num_out, activation):
        config = {"units": num_out, "activation": activation, "use_bias": True}
        weights = {
            "kernel": rng.standard_normal((num_in, num_out)).astype(np.float32),
            "bias": rng.standard_normal(num_out).astype(np.float32),
        }
        return LayerSpec("Dense", name, config, weights)

    layers = (
        LayerSpec("InputLayer", "input", {"batch_shape": [None, 9]}),
        dense("one", 9, 12, activation),
        LayerSpec("Dropout", "dropout", {"rate": 0.2}),
        dense("two", 12, 8, "tanh"),
        dense("three", 8, 4, "sigmoid"),
    )
    layers[1].weights["kernel"][:, [0, 5]] = 0
    layers[3].weights["kernel"][:, 7] = 0
    layers[4].weights["kernel"][2] = 0
    result = surgery.remove_filters(layers, surgery.removable_filters(layers))
    assert result.removed == {"one": [0, 5], "two": [2, 7]}
    assert set(result.border_bound.values()) == {0.0}
    signal = rng.standard_normal((20, 9)).astype(np.float32)
    from speech.weights import build_model

    outputs = [np.asarray(build_model(part)(signal)) for part in (layers, result.layers)]
    assert_allclose(outputs[1], outputs[0], atol=1e-6)


def test_chosen_filters_are_the_most_redundant_and_the_file_gets_smaller(rng, tmp_path):
    layers = network(rng, (1, 8, 8, 1))
    first, second, _ = conv_names(layers)
    # Nearly all weights of a channel below the mean: a spike among small values.
    kernel = weights_of(layers, first)["kernel"]
    kernel[:, :, 6] = 1e-3
    kernel[5, :, 6] = 5
    weights_of(layers, second)["kernel"][:, 6] *= 1e-3
    chosen = surgery.choose_filters(layers, 0.25)
    assert 6 in chosen[first] and [len(chosen[name]) for name in (first, second)] == [2, 2]
    result = surgery.remove_filters(layers, chosen)
    write_model_file(tmp_path / "before.h5", layers, {})
    write_model_file(tmp_path / "after.h5", result.layers, {})
    read = read_model_file(tmp_path / "after.h5")
    assert read.num_parameters == sum(
        array.size for layer in result.layers for array in layer.weights.values()
    )
    counts = [
        sum(a.size for layer in part for a in layer.weights.values())
        for part in (layers, result.layers)
    ]
    assert counts[1] < 0.65 * counts[0]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"nothing": [0]}, "no layer 'nothing'"),
        ({"last": [0]}, "is the last"),
        ({"first": [99]}, "filters 0 to 5"),
        ({"first": range(6)}, "without filters"),
    ],
)
def test_what_cannot_be_removed_is_refused(filters, message, rng):
    layers = network(rng, (1, 6, 5, 1))
    names = dict(zip(("first", "second", "last"), conv_names(layers), strict=True))
    filters = {names.get(name, name): indices for name, indices in filters.items()}
    with pytest.raises(ValueError, match=message):
        surgery.remove_filters(layers, filters)


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.99])
def test_a_share_that_leaves_nothing_is_refused(share, rng):
    with pytest.raises(ValueError, match="remov"):
        surgery.choose_filters(network(rng, (1, 6, 5, 1)), share)


def test_a_normalisation_over_groups_of_channels_is_refused(rng):
    layers = list(network(rng, (1, 6, 6, 1)))
    place = next(i for i, layer in enumerate(layers) if layer.class_name == "GroupNormalization")
    config = {**layers[place].config, "groups": 3}
    layers[place] = LayerSpec(
        "GroupNormalization", layers[place].name, config, layers[place].weights
    )
    with pytest.raises(ValueError, match="groups of channels"):
        surgery.remove_filters(layers, {conv_names(layers)[0]: [0]})
