"""Noises that are made of clean speech and by signal processing."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mnn import noises as module
from mnn.noises import NOISES, draw_noise, draw_speech
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


def test_only_kinds_that_are_named_are_drawn(talkers):
    noise = draw_noise(np.random.default_rng(4), SIZE, talkers, ["coloured"])
    again = draw_noise(np.random.default_rng(4), SIZE, talkers[::-1], ["coloured"])
    assert_array_equal(noise, again)  # it needs no talkers


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
