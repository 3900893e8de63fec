"""Scenes made of clean speech: noises, masks that err, pupils that have to find the speech."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mnn import degradations as module
from mnn.degradations import NOISES, at_snr, draw_mask, draw_noise, draw_scene, draw_speech
from speech.sound.stft import stft
from tests.builders import make_speech

SIZE = 24000


@pytest.fixture
def speakers(rng):
    return [[make_speech(rng, 30000), make_speech(rng, 9000)], [make_speech(rng, 60000)]]


@pytest.fixture
def talkers(rng, speakers):
    return [draw_speech(rng, speakers, SIZE) for _ in range(3)]


@pytest.mark.parametrize("kind", NOISES)
def test_noises_follow_from_their_seed(kind, talkers):
    one, other, third = (kind(np.random.default_rng(seed), SIZE, talkers) for seed in (1, 1, 2))
    assert one.shape == (SIZE,) and np.isfinite(one).all() and np.std(one) > 0
    assert_array_equal(one, other)
    assert np.any(one != third)


def test_how_often_kinds_are_drawn_adds_up():
    assert_allclose(sum(NOISES.values()), 1)


def test_many_noises_are_finite(rng, talkers):
    for _ in range(30):
        noise = draw_noise(rng, SIZE, talkers)
        assert noise.shape == (SIZE,) and np.isfinite(noise).all() and np.std(noise) > 0


def test_fields_are_smooth(rng):
    field = module.random_field(rng, (200, 100), (5, 4))
    assert field.shape == (200, 100) and field.dtype == np.float32
    # Linear between the points of the grid: no step is larger than a point apart over its length.
    assert np.abs(np.diff(field, axis=0)).max() < 8 * 4 / 199
    assert module.random_field(rng, (7, 3), (1, 1)).std() == 0


def test_speech_is_a_piece_or_has_silence_around(rng, speakers):
    for _ in range(20):
        piece = draw_speech(rng, speakers, SIZE)
        assert piece.shape == (SIZE,) and piece.dtype == np.float32 and piece.any()


@pytest.mark.parametrize("snr_db", [-10, 0, 20])
def test_noise_has_the_level_that_is_asked_for(rng, snr_db):
    clean = make_speech(rng, SIZE)
    noise = at_snr(rng.standard_normal(SIZE), clean, snr_db)
    assert_allclose(20 * np.log10(np.std(clean) / np.std(noise)), snr_db, atol=1e-3)


def test_masks_err_and_stay_finite(rng, talkers):
    clean = draw_speech(rng, [talkers], SIZE)
    speech, noise = stft(clean), stft(at_snr(draw_noise(rng, SIZE, talkers), clean, 0))
    kinds = set()
    for _ in range(40):
        mask = draw_mask(rng, speech, noise, talkers)
        assert mask.shape == speech.shape and np.isfinite(mask).all()
        kinds.add(np.iscomplexobj(mask))
        if not np.iscomplexobj(mask):
            assert mask.min() >= 0 and mask.max() <= 2
    assert kinds == {True, False}


def test_masks_of_silence_are_finite(rng, talkers):
    silence = np.zeros((97, 513), np.complex64)
    for _ in range(20):
        assert np.isfinite(draw_mask(rng, silence, silence, talkers)).all()


def test_a_pupil_helps_in_its_own_noise(speakers):
    """It was fitted to this: of most pupils the error is smaller than that of the mixture."""
    gains = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        pupil = module.fit_pupil(rng, speakers, SIZE)
        talkers = [draw_speech(rng, speakers, SIZE) for _ in range(3)]
        clean = draw_speech(rng, [speakers[number] for number in pupil.speakers], SIZE)
        added = at_snr(pupil.noise(rng, SIZE, talkers), clean, 0)
        speech, mixture = stft(clean), stft(clean + added)
        mask = pupil.mask(mixture)
        assert mask.shape == mixture.shape and mask.min() >= 0 and mask.max() <= 1
        gains.append(np.sum(abs(mixture - speech) ** 2) / np.sum(abs(mask * mixture - speech) ** 2))
    assert np.median(gains) > 1.5


def test_scenes_have_a_mixture_and_estimates(speakers):
    rng = np.random.default_rng(3)
    pupils = [module.fit_pupil(rng, speakers, SIZE) for _ in range(2)]
    counts = set()
    for _ in range(12):
        scene = draw_scene(rng, speakers, pupils, SIZE, 4)
        noise = scene.noisy - scene.clean
        snr_db = 20 * np.log10(np.std(scene.clean) / np.std(noise))
        assert -16 < snr_db < 21
        assert scene.estimates.shape[1] == SIZE and np.isfinite(scene.estimates).all()
        counts.add(len(scene.estimates))
    assert counts == {2, 3, 4}
    one, other = (draw_scene(np.random.default_rng(9), speakers, pupils, SIZE, 4) for _ in range(2))
    assert_array_equal(one.estimates, other.estimates)
