"""The ranker: what it hears and gives, sums over bands, training, and files that are none."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mnn import ranker as module
from mnn import ranking
from mnn.degradations import Scene
from mnn.features import level
from mnn.ranker import HEARD, NUM_BANDS, STFT, Ranker, added_by_bands, build_ranker, heard
from mnn.scoring import both, segment_bounds, tile_sums
from speech.modelfile.read import read_model_file
from tests.builders import make_speech
from tests.mnn_files import ranker_layers, write_mask, write_ranker
from tests.reference import ranker_oracle


@pytest.fixture
def ranker(tmp_path):
    return Ranker(write_ranker(tmp_path / "ranker.icse"))


@pytest.fixture
def sounds(rng):
    clean = make_speech(rng, 20000).astype(np.float32)
    noisy = clean + 0.05 * rng.standard_normal(20000).astype(np.float32)
    return clean, noisy, [0.5 * (clean + noisy), noisy, 0.7 * clean]


def part(inputs, name):
    place = HEARD.index(name) * NUM_BANDS
    return (inputs[..., place : place + NUM_BANDS] - 0.9) / 0.3


def test_it_hears_energies_of_bands(sounds):
    clean, noisy, estimates = sounds
    inputs = heard(noisy, estimates, level(noisy))
    assert inputs.shape == (3, STFT.num_frames(20000), 240) and inputs.dtype == np.float32
    unit, mean = ranker_oracle.unit(noisy), np.mean(estimates, axis=0, dtype=np.float64)
    for row, estimate in zip(inputs, estimates, strict=True):
        for name, signal in {
            "mixture": noisy, "estimate": estimate, "removed": noisy - estimate,
            "mean": mean, "apart": estimate - mean,
        }.items():  # fmt: skip
            expected = ranker_oracle.heights(ranker_oracle.spectra(signal), unit)
            # The floor is 7 decades down, where float32 of a difference has little left.
            assert_allclose(part(row, name), expected, rtol=0, atol=0.02, err_msg=name)


def test_neither_order_nor_a_common_gain_changes_the_errors(ranker, sounds):
    _, noisy, estimates = sounds
    errors = ranker.errors(noisy, estimates)
    assert errors.shape == (3, -(-STFT.num_frames(20000) // 16), 16) and np.all(errors > 0)
    turned = ranker.errors(noisy, estimates[::-1])
    assert_allclose(turned[::-1], errors, rtol=1e-4)
    soft = ranker.errors(noisy / 64, [estimate / 64 for estimate in estimates])
    assert_allclose(soft, errors, rtol=1e-4)


def test_blocks_give_what_the_whole_gives(ranker, sounds, monkeypatch):
    _, noisy, estimates = sounds
    whole = ranker.errors(noisy, estimates)
    frames = STFT.num_frames(len(noisy))
    monkeypatch.setattr(
        module,
        "frame_blocks",
        lambda count, size: [(a, min(a + 16, count)) for a in range(0, count, 16)],
    )
    assert frames > 64
    assert_allclose(ranker.errors(noisy, estimates), whole, rtol=1e-4)


@pytest.mark.parametrize("num_samples", [1, 255, 4096])
def test_any_length_is_judged(ranker, rng, num_samples):
    noisy = rng.standard_normal(num_samples).astype(np.float32)
    errors = ranker.errors(noisy, [noisy, 0 * noisy])
    assert np.isfinite(errors).all()
    joined = added_by_bands([noisy, noisy], errors, errors.sum(axis=(1, 2))[:, None])
    assert_allclose(joined, noisy, atol=1e-5)


def test_silence_is_judged(ranker):
    silence = np.zeros(3000, np.float32)
    assert np.isfinite(ranker.errors(silence, [silence, silence])).all()


def test_numpy_runs_what_keras_trains(tmp_path, rng):
    from speech.net.keras_models import save_model

    model = build_ranker(width=6, seed=3)
    for weight in model.weights:
        if weight.path.endswith("bias"):
            weight.assign(0.1 * rng.standard_normal(weight.shape))
    save_model(model, tmp_path / "r.h5", module.ranker_conventions())
    ranker = Ranker(tmp_path / "r.h5")
    assert ranker.halo == 15
    inputs = rng.standard_normal((40, 240)).astype(np.float32)
    expected = np.asarray(model(inputs[None]))[0]
    assert_allclose(ranker._run(inputs), expected, rtol=1e-4, atol=1e-5)


def test_estimates_are_added_where_they_are_good(rng):
    """One estimate is right in the first half, the other in the second; or below and above."""
    num_samples = 32768
    low, high = (
        np.sin(2 * np.pi * pitch_hz / 16000 * np.arange(num_samples)).astype(np.float32)
        for pitch_hz in (300, 3000)
    )
    clean, first = low + high, np.arange(num_samples) < num_samples // 2
    noise = rng.standard_normal(num_samples).astype(np.float32)
    estimates = [clean + noise * first, clean + noise * ~first]
    tiles = np.full((2, -(-STFT.num_frames(num_samples) // 16), 16), 1e-6)
    tiles[0, : tiles.shape[1] // 2] = tiles[1, tiles.shape[1] // 2 :] = 100.0
    joined = added_by_bands(estimates, tiles, np.ones((2, 1)))
    inside = np.abs(np.arange(num_samples) - num_samples // 2) > 8192
    assert np.mean((joined - clean)[inside] ** 2) < 1e-3 * np.mean((estimates[0] - clean) ** 2)
    tiles[:] = 1e-6
    tiles[0, :, 12:] = tiles[1, :, :10] = 100.0
    joined = added_by_bands([low, high], tiles, np.ones((2, 1)))
    assert np.mean((joined - clean) ** 2) < 0.02 * np.mean(clean**2)


def test_an_estimate_of_infinite_cost_gets_no_weight(rng):
    signals = [rng.standard_normal(5000).astype(np.float32) for _ in range(2)]
    tiles = np.ones((2, 2, 16))
    joined = added_by_bands(signals, tiles, np.array([[np.inf], [1.0]]))
    assert_allclose(joined, signals[1], atol=1e-5)


def test_tiles_are_added_up_over_segments(rng):
    tiles = rng.random((2, 10, 16))
    bounds = segment_bounds(10 * 4096, 2 * 4096)
    sums = tile_sums(tiles, bounds, 4096)
    assert_allclose(sums, tiles.reshape(2, 5, 2, 16).sum(axis=(2, 3)))
    assert_allclose(tile_sums(tiles, segment_bounds(40000, None), 4096)[:, 0], tiles.sum((1, 2)))
    short = tile_sums(tiles, segment_bounds(10 * 4096, 1600), 4096)
    assert short.shape[1] == round(40960 / 1600) and np.all(short > 0)


def test_both_costs_are_a_geometric_mean():
    found = both(np.array([[2.0, 1.0]]), np.array([[3.0, np.inf]]))
    assert_allclose(found, [[(2 * 3**4) ** 0.2, np.inf]])


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"kind": "autoencoder"}, "kind 'autoencoder', expected 'ranker'"),
        ({"heard": ["mixture"]}, "heard"),
        ({"stft": {"frame": 1024, "hop": 256, "window": "hann"}}, "stft"),
    ],
)
def test_files_of_other_conventions_are_refused(tmp_path, change, reason):
    path = write_ranker(tmp_path / "r.h5", **change)
    with pytest.raises(ValueError, match=reason):
        Ranker(path)


def test_files_that_are_no_rankers_are_refused(tmp_path, rng):
    layers = ranker_layers(rng)
    even = [layer for layer in layers if layer.class_name != "LeakyReLU"]
    narrow = (*layers[:-1], layers[-2], layers[-1])[:-2]
    for number, (chosen, reason) in enumerate(
        ((narrow, "is no ranker"), (even[:1] + even[2:], "240|is no ranker"))
    ):
        path = tmp_path / f"{number}.h5"
        with pytest.raises(ValueError, match=reason):
            Ranker(write_ranker(path, layers=tuple(chosen)))
    mask = write_mask(tmp_path / "mask.h5", 1.0)
    with pytest.raises(ValueError, match="expected 'ranker'"):
        Ranker(mask)


# --------------------------------------------------------------------------------------------
# Training


def scene(rng, count=3):
    clean = make_speech(rng, ranking.SCENE_SAMPLES).astype(np.float32)
    noise = 0.1 * rng.standard_normal(len(clean)).astype(np.float32)
    estimates = [clean + share * noise for share in (0.1, 0.5, 1.0)][:count]
    return Scene(clean, clean + noise, np.stack(estimates))


def test_targets_are_the_true_errors(rng):
    shown = scene(rng)
    inputs, targets = ranking.example(shown)
    assert inputs.shape == (4, 176, 240) and targets.shape == (4, ranking.num_targets())
    noise = shown.noisy - shown.clean
    whole_db = 20 * np.log10(np.std(shown.clean) / np.std(noise))
    assert_allclose(targets[:3, 0], whole_db + 20 * np.log10([10, 2, 1]), atol=0.3)
    assert_array_equal(targets[3], targets[0])
    expected = ranker_oracle.products(shown.clean, shown.estimates, shown.noisy, 11)
    again = [0, 1, 2, 0]
    table = targets[:, 1:].reshape(4, 4, 11, 16)
    assert_allclose(table, expected[again][:, again], rtol=2e-3, atol=1e-6)


def test_the_loss_is_that_of_the_words(rng):
    shown = [scene(rng), scene(rng, 2)]
    targets = np.concatenate([ranking.example(each)[1] for each in shown])
    logs = rng.normal(-3, 1, (8, 176, 16)).astype(np.float32)
    expected = []
    for own, row in zip(targets.reshape(2, 4, -1), logs.reshape(2, 4, 176, 16), strict=True):
        table = own[:, 1:].reshape(4, 4, 11, 16).astype(float)
        expected.append(ranker_oracle.loss(own[:, 0].astype(float), table, row))
    expected = np.mean(expected)
    assert_allclose(float(ranking.rank_loss(targets, logs)), expected, rtol=1e-4)


def test_the_truth_has_a_smaller_loss_than_anything_else(rng):
    targets = ranking.example(scene(rng))[1]
    table = targets[:, 1:].reshape(4, 4, 11, 16)
    true = np.log(np.stack([table[i, i] for i in range(4)]) / 16 + 1e-6)
    logs = np.repeat(true, 16, axis=1).astype(np.float32)
    least = float(ranking.rank_loss(targets, logs))
    for change in (rng.normal(0, 1, logs.shape), 2.0, -2.0):
        assert float(ranking.rank_loss(targets, (logs + change).astype(np.float32))) > least
    assert float(ranking.rank_loss(targets, logs[::-1].copy())) > least


def test_the_command_trains_and_goes_on(timit, noises, tmp_path, monkeypatch, capsys):
    from mnn.train import main

    monkeypatch.setattr(ranking, "NUM_PUPILS", 2)
    words = [
        "ranker", "--timit", timit, "--noise", noises, "--scenes", "6",
        "--iterations", "4", "--batch-size", "2", "--validate-every", "2", "--gpu", "-1",
    ]  # fmt: skip
    for name in ("one", "two"):
        assert main([*map(str, words), "--out", str(tmp_path / f"{name}.h5")]) == 0
    assert "6 to train on" in capsys.readouterr().out
    one, two = (read_model_file(tmp_path / f"{name}.h5") for name in ("one", "two"))
    for layer, other in zip(one.layers, two.layers, strict=True):
        for name, array in layer.weights.items():
            assert_array_equal(array, other.weights[name])
    Ranker(tmp_path / "one.h5")
    assert main([*map(str, words), "--out", str(tmp_path / "one.h5")]) == 0
    assert "done" in capsys.readouterr().out


def test_scenes_are_the_same_for_any_number_of_processes(rng, monkeypatch):
    monkeypatch.setattr(ranking, "CHUNK", 2)
    monkeypatch.setattr(ranking, "NUM_PUPILS", 1)
    speakers = [[make_speech(rng, 30000)], [make_speech(rng, 60000)]]
    one, other, third = (
        ranking.Scenes(speakers, 3, [seed, 0], num_jobs=jobs)
        for seed, jobs in ((5, 1), (5, 1), (6, 1))
    )
    for mine, yours in zip(one.batch(np.arange(3)), other.batch(np.arange(3)), strict=True):
        assert_array_equal(mine, yours)
    assert np.any(one.batch(np.arange(3))[1] != third.batch(np.arange(3))[1])
