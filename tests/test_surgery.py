"""Removing filters: what is exact is exact, what is bounded stays below its bound."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pruning import surgery
from quantization import graphs
from speech.modelfile.h5 import write_model_file
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec
from speech.net.folding import fold_batch_normalization
from speech.net.taps import taps_of, with_taps
from tests.builders import TINY, conv2d, graph, mask_layers, network, own_copy

keras = pytest.importorskip("keras")


def run(layers, signal):
    from speech.net.keras_models import build_model

    return np.asarray(build_model(layers)(signal[None]))[0]


def conv_names(layers):
    return [layer.name for layer in layers if layer.class_name == "Conv1D"]


def weights_of(layers, name):
    return next(layer for layer in layers if layer.name == name).weights


def share_of_filters(layers, share):
    """Chooses the nearest whole number to a share of the filters of each layer but the last."""
    widths = surgery.widths(layers).items()
    return surgery.choose_down_to(layers, {name: n - round(share * n) for name, n in widths})


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
    from speech.net.keras_models import build_model

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
    chosen = share_of_filters(layers, 0.25)
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


# --------------------------------------------------------------------------------------------
# Skips and residuals


def outputs_of(layers, keras=False):
    signal = np.random.default_rng(5).standard_normal((30, 256, 3)).astype(np.float32)
    if not keras:
        return graphs.forward(layers, signal)[layers[-1].name]
    from speech.net.keras_models import build_model

    return np.asarray(build_model(layers)(signal[None]))[0]


def dead(layers, filters):
    """The network with the kernels of some filters at zero, in all layers that tie them."""
    indices = {
        name: filters[found.name]
        for found in surgery.channel_sets(layers)
        if found.name in filters
        for name in found.writers
    }
    result = []
    for layer in layers:
        if layer.name in indices:
            taps = taps_of(layer).copy()
            taps[..., indices[layer.name]] = 0
            layer = with_taps(layer, taps)
        result.append(layer)
    return tuple(result)


def without_readers(layers, filters):
    """The network whose kernels over some channels are zero."""
    by_name = {layer.name: layer for layer in layers}
    for found in surgery.channel_sets(layers):
        for name in found.readers if found.name in filters else ():
            taps = taps_of(by_name[name]).copy()
            taps[:, filters[found.name]] = 0
            by_name[name] = with_taps(by_name[name], taps)
    return tuple(by_name.values())


def test_what_is_added_is_tied_and_a_branch_has_channels_of_its_own():
    found = {one.name: one for one in surgery.channel_sets(mask_layers())}
    assert list(found) == ["encoder1", "encoder2", "encoder3", "block1_time", "block2_time"]
    assert found["encoder1"].writers == ["encoder1", "decoder2"]
    assert found["encoder1"].readers == ["encoder2", "mask"]
    assert found["encoder2"].writers == ["encoder2", "decoder3"]
    assert found["encoder3"].writers == ["encoder3"] + [
        f"block{n}_{kind}_dense" for n in (1, 2) for kind in ("time", "bands")
    ]
    # Matrices over bands pass channels on; they read none and make none.
    assert {"bands_down", "block1_bands", "bands_up"} <= set(found["encoder3"].carriers)
    assert found["block2_time"].readers == ["block2_time_dense"]


@pytest.mark.parametrize("normalized", [True, False])
def test_filters_leave_through_skips_and_residuals(normalized, tmp_path):
    """What is left computes what the network does whose readers take them for zero."""
    layers = mask_layers()
    layers = layers if normalized else fold_batch_normalization(layers)
    filters = {"encoder1": [0], "encoder2": [1, 3], "encoder3": [2, 4], "block1_time": [0, 4]}
    result = surgery.remove_filters(layers, filters)
    assert result.removed == filters
    wanted = outputs_of(without_readers(layers, filters))
    assert_allclose(outputs_of(result.layers, keras=normalized), wanted, atol=1e-5)
    write_model_file(tmp_path / "small.h5", result.layers, TINY.meta())
    shapes = {
        layer.name: layer.weights["kernel"].shape
        for layer in read_model_file(tmp_path / "small.h5").layers
        if "kernel" in layer.weights
    }
    assert shapes["encoder2"] == (1, 3, 4, 3) and shapes["encoder3"] == (1, 3, 3, 3)
    assert shapes["block1_time"] == (3, 1, 3, 3) and shapes["block1_time_dense"] == (3, 3)
    assert shapes["block1_bands"] == (6, 6) and shapes["mask"] == (1, 8, 2, 4)


@pytest.mark.parametrize("normalized", [True, False])
def test_dead_filters_leave_no_trace_where_that_is_exact(normalized):
    layers = own_copy(mask_layers())
    layers = layers if normalized else fold_batch_normalization(layers)
    layers = dead(layers, {"block1_time": [1, 3], "block2_time": [0], "encoder1": [2]})
    by_name = {layer.name: layer for layer in layers}
    by_name["decoder2"].weights["kernel"][:, :, 4] = 0  # nothing reads it
    by_name["encoder3"].weights["kernel"][:, :, 4] = 0
    found = surgery.removable_filters(layers)
    assert_array_equal(found["block1_time"], [1, 3])
    assert_array_equal(found["block2_time"], [0])
    assert_array_equal(found["encoder2"], [4])
    # What a constant leaves behind convolutions with zeros at their ends is no constant: it stays.
    assert not len(found["encoder1"]) and not len(found["encoder3"])
    result = surgery.remove_filters(layers, found)
    assert set(result.border_bound.values()) == {0.0}
    assert_allclose(outputs_of(result.layers), outputs_of(layers), atol=1e-5)
    assert "bias" in next(x for x in result.layers if x.name == "block1_time_dense").weights


def test_a_dead_tied_filter_is_taken_out_where_it_is_silent():
    """No bias, no shift: nothing is left of it in any band."""
    layers = dead(own_copy(mask_layers()), {"encoder1": [3], "encoder3": [2]})
    for layer in layers:
        for name in ("beta", "moving_mean", "bias"):
            if name in layer.weights:
                layer.weights[name][:] = 0
    found = surgery.removable_filters(layers)
    assert_array_equal(found["encoder1"], [3])
    assert_array_equal(found["encoder3"], [2])
    result = surgery.remove_filters(layers, found)
    assert_allclose(outputs_of(result.layers), outputs_of(layers), atol=1e-5)


def test_tied_filters_are_chosen_by_the_channels_of_all_their_layers():
    layers = own_copy(mask_layers())
    for layer in layers:
        if layer.name in ("encoder3", "block1_time_dense", "block1_bands_dense"):
            layer.weights["kernel"][..., 2] *= 1e-3
            layer.weights["kernel"].reshape(-1, 5)[0, 2] = 9
        if layer.name in ("block1_time", "block1_bands_dense", "decoder3"):
            layer.weights["kernel"][..., 2, :] *= 1e-3
    chosen = share_of_filters(layers, 0.2)
    assert_array_equal(chosen["encoder3"], [2])
    assert surgery.widths(layers) == dict.fromkeys(chosen, 5)


def test_a_tied_filter_goes_by_the_name_of_the_first_layer():
    with pytest.raises(ValueError, match="added to those of encoder3.*name encoder3"):
        surgery.remove_filters(mask_layers(), {"block2_time_dense": [0]})
    with pytest.raises(ValueError, match="layer mask is the last"):
        surgery.remove_filters(mask_layers(), {"mask": [0]})


def test_joined_channels_are_refused_and_those_added_to_the_ends_stay():
    joined = graph(
        conv2d("one", "input", 3, 4), conv2d("two", "input", 3, 4),
        ("Concatenate", "both", ["one", "two"], {"axis": -1}, {}), conv2d("last", "both", 8, 2),
    )  # fmt: skip
    with pytest.raises(ValueError, match="layer both joins channels: no filter in front"):
        surgery.remove_filters(joined, share_of_filters(joined, 0.5))
    ends = graph(
        conv2d("one", "input", 3, 3), ("Add", "sum", ["one", "input"], {}, {}),
        conv2d("two", "sum", 3, 4), conv2d("last", "two", 4, 3),
        ("Add", "end", ["last", "sum"], {}, {}),
    )  # fmt: skip
    assert list(surgery.widths(ends)) == ["two"]


@pytest.mark.parametrize("share", [1.0, 0.99])
def test_a_share_that_leaves_nothing_is_refused(share, rng):
    with pytest.raises(ValueError, match="remov"):
        share_of_filters(network(rng, (1, 6, 5, 1)), share)


def test_a_normalisation_over_groups_of_channels_is_refused(rng):
    layers = list(network(rng, (1, 6, 6, 1)))
    place = next(i for i, layer in enumerate(layers) if layer.class_name == "GroupNormalization")
    config = {**layers[place].config, "groups": 3}
    layers[place] = LayerSpec(
        "GroupNormalization", layers[place].name, config, layers[place].weights
    )
    with pytest.raises(ValueError, match="groups of channels"):
        surgery.remove_filters(layers, {conv_names(layers)[0]: [0]})
