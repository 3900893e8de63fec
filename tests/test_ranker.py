"""The ranker: what it makes out, errors, sums over bands, training, and files that are none."""

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from mnn import ranker as module
from mnn.ranker import STFT, Ranker, added_by_bands
from mnn.scoring import both, segment_bounds, tile_sums
from speech.modelfile.read import read_model_file
from speech.net.mask_enhancer import MaskEnhancer
from tests.builders import make_speech
from tests.mnn_files import write_mask, write_ranker
from tests.reference import ranker_oracle


@pytest.fixture
def ranker(tmp_path):
    return Ranker(write_ranker(tmp_path / "ranker.icse"))


@pytest.fixture
def sounds(rng):
    clean = make_speech(rng, 20000).astype(np.float32)
    noisy = clean + 0.05 * rng.standard_normal(20000).astype(np.float32)
    return clean, noisy, [0.5 * (clean + noisy), noisy, 0.7 * clean]


def test_it_hears_the_mixture_and_the_mean_of_all_estimates(ranker, sounds):
    _, noisy, estimates = sounds
    heard = 0.5 * noisy + 0.5 * np.mean(estimates, axis=0)
    heard *= 0.06 / np.sqrt(np.mean(np.square(heard, dtype=float)))
    expected = MaskEnhancer(ranker.file)(heard.astype(np.float32))
    assert_allclose(ranker.reference(noisy, estimates), expected, rtol=1e-3, atol=1e-6)
    alone = Ranker(ranker.file.path, mixture_share=1.0)
    assert_array_equal(alone.reference(noisy, estimates), alone.reference(noisy, estimates[:1]))


def test_errors_are_distances_from_what_it_makes_out(ranker, sounds):
    _, noisy, estimates = sounds
    expected = ranker_oracle.errors(ranker.reference(noisy, estimates), estimates)
    found = ranker.errors(noisy, estimates)
    assert found.shape == (3, -(-STFT.num_frames(20000) // 4), 48)
    assert_allclose(found, expected, rtol=2e-3, atol=1e-6 * expected.max())


def test_what_the_ranker_makes_out_itself_is_best(ranker, sounds, monkeypatch):
    clean, noisy, estimates = sounds
    monkeypatch.setattr(Ranker, "reference", lambda *_: clean)
    half = 0.5 * (clean + estimates[0])
    errors = ranker.errors(noisy, [*estimates, half, 0.1 * clean]).sum(axis=(1, 2))
    assert_array_equal(np.argsort(errors)[2:], [3, 0, 1])
    assert errors[2] < 1e-6 and errors[4] < 1e-6, "no gain is punished"


def test_neither_order_nor_a_common_gain_changes_the_errors(ranker, sounds):
    _, noisy, estimates = sounds
    errors = ranker.errors(noisy, estimates)
    assert np.all(errors > 0)
    turned = ranker.errors(noisy, estimates[::-1])
    assert_allclose(turned[::-1], errors, rtol=1e-4)
    soft = ranker.errors(noisy / 64, [estimate / 64 for estimate in estimates])
    assert_allclose(soft, errors, rtol=1e-4)


@pytest.mark.parametrize("gain", [1e-15, 1e15])
def test_no_level_is_too_soft_or_too_loud(ranker, sounds, gain):
    _, noisy, estimates = sounds
    gain = np.float32(gain)
    found = ranker.errors(gain * noisy, [gain * estimate for estimate in estimates])
    expected = ranker.errors(noisy, estimates).sum(axis=(1, 2))
    assert_allclose(found.sum(axis=(1, 2)), expected, rtol=1e-3)


def test_silence_is_nobody_s_speech(ranker, sounds):
    _, noisy, estimates = sounds
    errors = ranker.errors(noisy, [*estimates, 0 * noisy]).sum(axis=(1, 2))
    assert errors[3] > 10 * errors[:3].max()


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
    tiles = np.full((2, -(-STFT.num_frames(num_samples) // 4), 48), 1e-6)
    tiles[0, : tiles.shape[1] // 2] = tiles[1, tiles.shape[1] // 2 :] = 100.0
    joined = added_by_bands(estimates, tiles, np.ones((2, 1)))
    inside = np.abs(np.arange(num_samples) - num_samples // 2) > 8192
    assert np.mean((joined - clean)[inside] ** 2) < 1e-3 * np.mean((estimates[0] - clean) ** 2)
    tiles[:] = 1e-6
    tiles[0, :, 36:] = tiles[1, :, :30] = 100.0
    joined = added_by_bands([low, high], tiles, np.ones((2, 1)))
    assert np.mean((joined - clean) ** 2) < 0.02 * np.mean(clean**2)


def test_a_sum_is_the_same_in_blocks_and_needs_no_more_for_a_long_signal(rng, monkeypatch):
    signals = [rng.standard_normal(60_000).astype(np.float32) for _ in range(2)]
    tiles = rng.random((2, -(-STFT.num_frames(60_000) // 4), 48))
    whole = added_by_bands(signals, tiles, np.ones((2, 1)))
    asked, between = [], module._between
    monkeypatch.setattr(
        module, "_between", lambda *two: (asked.append(len(two[0])), between(*two))[1]
    )
    monkeypatch.setattr(
        module,
        "frame_blocks",
        lambda count, size: [(a, min(a + 16, count)) for a in range(0, count, 16)],
    )
    assert_allclose(added_by_bands(signals, tiles, np.ones((2, 1))), whole, atol=1e-5)
    assert max(asked[1:]) <= 16 // 4 + 3  # tiles that a block looks at


def test_an_estimate_of_infinite_cost_gets_no_weight(rng):
    signals = [rng.standard_normal(5000).astype(np.float32) for _ in range(2)]
    tiles = np.ones((2, 6, 48))
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
    assert_allclose(found, [[6**0.5, np.inf]])


def test_files_that_are_no_rankers_are_refused(tmp_path):
    mask = write_mask(tmp_path / "mask.h5", 1.0)
    with pytest.raises(ValueError, match="mnn.train ranker"):
        Ranker(mask)


# --------------------------------------------------------------------------------------------
# Training


def test_the_command_trains_and_goes_on(timit, tmp_path, capsys):
    from mnn.train import main

    words = ["ranker", "--speech", timit, "--noises", "3", "--gpu", "-1", "--jobs", "1"]
    words = [*map(str, words), "--out", str(tmp_path / "r.h5"), "--hours", "0.001"]
    assert main(words) == 0
    assert "made of the speech" in capsys.readouterr().out
    first = read_model_file(tmp_path / "r.h5")
    Ranker(first.path)
    assert first.meta["kind"] == "complex_mask" and first.meta["training"]["loss"]["si_sdr"] == 0.05
    first.path.unlink()
    assert main(words) == 0
    assert "a larger --hours goes on" in capsys.readouterr().err
    assert read_model_file(first.path).sha256 == first.sha256


def test_noises_are_the_same_for_any_number_of_processes(timit, tmp_path):
    from mnn.ranking import write_noises

    one, two = (tmp_path / name for name in ("one", "two"))
    assert write_noises([timit], one, 4, 1) == write_noises([timit], two, 4, 2) >= 2
    paths = sorted(one.iterdir())
    for path in paths:
        assert path.read_bytes() == (two / path.name).read_bytes()
        samples, rate_hz = soundfile.read(path)
        assert (len(samples), rate_hz) == (160_000, 16_000) and 0 < np.abs(samples).max() < 1
    paths[0].write_bytes(b"mine")
    paths[1].unlink()
    write_noises([timit], one, 4, 1)
    assert paths[0].read_bytes() == b"mine"
    assert paths[1].read_bytes() == (two / paths[1].name).read_bytes()


def test_noises_of_other_kinds_or_speech_are_not_taken_for_one_s_own(timit, tmp_path, rng):
    from mnn.ranking import write_noises

    folder = tmp_path / "noise"
    write_noises([timit], folder, 2, 1)
    with pytest.raises(ValueError, match="noises of another run"):
        write_noises([timit], folder, 2, 1, ["coloured"])
    other = tmp_path / "other" / "TRAIN" / "A"
    other.mkdir(parents=True)
    soundfile.write(other / "a.wav", make_speech(rng, 20_000), 16_000)
    with pytest.raises(ValueError, match="noises of another run"):
        write_noises([tmp_path / "other"], folder, 2, 1)


@pytest.mark.parametrize("words", [["--hours", "-1"], ["--noises", "0"], ["--out", "r.icse"]])
def test_what_makes_no_sense_is_wrong_usage(words, tmp_path):
    from mnn.train import main

    with pytest.raises(SystemExit) as exit_info:
        main(["ranker", "--out", str(tmp_path / "r.h5"), *words])
    assert exit_info.value.code == 2
