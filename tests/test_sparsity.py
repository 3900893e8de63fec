"""The sparsity criterion against a naive loop, masks by theta and by share."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pruning import sparsity
from speech.modelfile.spec import LayerSpec
from speech.net.taps import taps_of
from tests.builders import TINY, mask_from_json, mask_layers, network


def naive_sparsity(kernel):
    """S_j(k) of docs/papers.md (eq. P2), weight by weight."""
    taps, num_in, num_out = kernel.shape
    result = np.zeros((num_in, num_out))
    for j in range(num_out):
        mean = sum(abs(float(w)) for w in kernel[:, :, j].ravel()) / (taps * num_in)
        for k in range(num_in):
            result[k, j] = sum(abs(float(w)) < mean for w in kernel[:, k, j]) / taps
    return result


def kernels(layers):
    return [layer.weights["kernel"] for layer in layers if "kernel" in layer.weights]


def test_sparsity_equals_the_naive_loop(rng):
    kernel = rng.standard_normal((55, 7, 4)).astype(np.float32)
    assert_allclose(sparsity.channel_sparsity(kernel), naive_sparsity(kernel), atol=1e-12)


def test_all_taps_over_time_and_bands_count(rng):
    kernel = rng.standard_normal((3, 4, 5, 2)).astype(np.float32)
    naive = naive_sparsity(kernel.reshape(12, 5, 2))
    assert_allclose(sparsity.channel_sparsity(kernel), naive, atol=1e-12)


def test_a_transposed_convolution_is_pruned_by_its_filters(rng):
    """Keras keeps its kernel as [..., out, in]."""
    kernel = rng.standard_normal((1, 6, 2, 5)).astype(np.float32)
    layer = LayerSpec("Conv2DTranspose", "up", {}, {"kernel": kernel})
    masks = sparsity.masks_for_theta([layer], 0.6, keep_last=False)
    expected = naive_sparsity(kernel.reshape(6, 2, 5).transpose(0, 2, 1)) <= 0.6
    assert_array_equal(masks["up"], expected)
    (after,) = sparsity.apply_masks([layer], masks)
    assert_array_equal(after.weights["kernel"].any(axis=(0, 1)), expected.T)
    assert_array_equal(sparsity.masks_of_zeros([after])["up"], expected)
    assert taps_of(after)[0, 3, 1] in (0, kernel[0, 0, 1, 3])


def test_the_report_counts_the_bands_in_which_a_kernel_works():
    layers = mask_layers()
    times = {row.name: row.times for row in sparsity.report(layers)}
    channels, bands = TINY.num_channels, TINY.num_bands
    # 256 bins are 64 bands; a matrix over bands works once per channel.
    assert times["encoder1"] == times["encoder2"] == times["decoder2"] == times["mask"] == 64
    assert times["block1_time"] == times["block1_time_dense"] == bands
    assert times["bands_down"] == times["block2_bands"] == times["bands_up"] == channels


def test_a_channel_of_zeros_has_sparsity_one(rng):
    kernel = rng.standard_normal((9, 3, 2)).astype(np.float32)
    kernel[:, 1, 0] = 0
    kernel[:, :, 1] = 0
    found = sparsity.channel_sparsity(kernel)
    assert found[1, 0] == 1 and (found[:, 1] == 1).all() and (found[[0, 2], 0] < 1).all()


def test_a_dense_kernel_counts_as_one_tap(rng):
    kernel = rng.standard_normal((12, 5))
    found = sparsity.channel_sparsity(kernel)
    assert_array_equal(found, np.abs(kernel) < np.abs(kernel).mean(axis=0))


def test_theta_prunes_what_is_above_it_and_spares_the_last_layer(rng):
    layers = network(rng)
    masks = sparsity.masks_for_theta(layers, 0.6)
    assert len(masks) == len(kernels(layers)) - 1
    for layer in layers:
        if layer.name in masks:
            expected = naive_sparsity(layer.weights["kernel"]) <= 0.6
            assert_array_equal(masks[layer.name], expected)
    every = sparsity.masks_for_theta(layers, 0.6, keep_last=False)
    assert len(every) == len(kernels(layers))


@pytest.mark.parametrize("theta", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_theta_out_of_range_is_refused(theta, rng):
    with pytest.raises(ValueError, match="between 0 and 1"):
        sparsity.masks_for_theta(network(rng), theta)


def test_a_theta_that_empties_a_layer_names_it_and_the_next_that_works(rng):
    layers = network(rng)
    with pytest.raises(
        ValueError, match="layer .*conv.*smallest that leaves it one is 0"
    ) as caught:
        sparsity.masks_for_theta(layers, 0.05)
    theta = float(str(caught.value).split()[-1])
    name = str(caught.value).split("of layer ")[1].split(";")[0]
    layer = next(layer for layer in layers if layer.name == name)
    found = sparsity.channel_sparsity(layer.weights["kernel"])
    assert (found <= theta).any() and not (found <= theta - 0.01).any()


@pytest.mark.parametrize("criterion", sparsity.CRITERIA)
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_share_is_met_to_the_channel(criterion, per_layer, rng):
    layers = network(rng, (1, 10, 10, 10, 1))
    masks = sparsity.masks_for_share(layers, 0.2, criterion=criterion, per_layer=per_layer)
    pruned = {name: (~mask).sum() for name, mask in masks.items()}
    assert sum(pruned.values()) == round(0.2 * 210)
    if per_layer:
        assert list(pruned.values()) == [2, 20, 20]


def test_a_share_prunes_the_sparsest_and_among_equals_the_weakest(rng):
    layers = network(rng, (1, 8, 8, 1), taps=5)
    masks = sparsity.masks_for_share(layers, 0.3)
    values, sizes, kept = [], [], []
    for layer in sparsity.prunable_layers(layers):
        kernel = layer.weights["kernel"]
        values.append(naive_sparsity(kernel).ravel())
        mean = np.abs(kernel).mean(axis=(0, 1))
        sizes.append((np.abs(kernel).mean(axis=0) / mean).ravel())
        kept.append(masks[layer.name].ravel())
    values, sizes, kept = map(np.concatenate, (values, sizes, kept))
    limit = values[~kept].min()
    assert values[kept].max() <= limit + 1e-9
    equals = np.isclose(values, limit)
    assert sizes[equals & ~kept].max() <= sizes[equals & kept].min(initial=np.inf)
    assert sparsity.theta_of(layers, masks) == pytest.approx(limit)


def test_a_share_that_empties_a_layer_is_refused(rng):
    with pytest.raises(ValueError, match="empties layer"):
        sparsity.masks_for_share(network(rng, (1, 2, 2, 1)), 0.9)


def test_pruned_channels_are_zero_the_others_untouched_and_found_again(rng):
    layers = network(rng)
    masks = sparsity.masks_for_share(layers, 0.4)
    pruned = sparsity.apply_masks(layers, masks)
    for before, after in zip(layers, pruned, strict=True):
        if before.name not in masks:
            assert after is before
            continue
        mask = masks[before.name]
        assert not after.weights["kernel"][:, ~mask].any()
        assert_array_equal(after.weights["kernel"][:, mask], before.weights["kernel"][:, mask])
    found = sparsity.masks_of_zeros(pruned, keep_last=True)
    for name, mask in masks.items():
        assert_array_equal(found[name], mask)
    assert sum(row.pruned for row in sparsity.report(pruned)) == round(0.4 * 36)


def test_masks_are_stored_as_bits(rng):
    masks = {"a": rng.random((7, 5)) > 0.4, "b": rng.random((1, 3)) > 0.4}
    stored = sparsity.masks_to_json(masks)
    for name, mask in masks.items():
        assert_array_equal(mask_from_json(stored[name]), mask)


def test_counts_of_the_released_model(rng):
    """1,190 of 5,460 channels by the shares that docs/papers.md has for each layer: 21.79 %."""
    layers = network(rng, (1, *[30] * 7, 1), taps=55)
    shares = (0.100, 0.176, 0.159, 0.192, 0.240, 0.262, 0.290, 0.0)
    for share, layer in zip(shares, [x for x in layers if "kernel" in x.weights], strict=True):
        kernel = layer.weights["kernel"]
        order = rng.permutation(kernel[0].size)[: round(share * kernel[0].size)]
        kernel.reshape(55, -1)[:, order] = 0
    rows = sparsity.report(layers)
    assert sum(row.channels for row in rows) == 5460 and rows[-1].pruned == 0
    assert sum(row.pruned for row in rows) == pytest.approx(1190, abs=3)
    assert sum(row.weights for row in rows) == 300_300
    assert all(row.weights_left == (row.channels - row.pruned) * 55 for row in rows)
