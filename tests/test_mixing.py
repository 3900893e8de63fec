from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from speech.sound.mixing import (
    MAX_PEAK,
    draw_offset,
    draw_segment,
    loop_or_crop,
    measure_snr_db,
    mix_at_snr,
)
from tests.builders import make_speech
from tests.reference import mixing_oracle


@pytest.mark.parametrize("snr_db", [-100, -15, -5, 0, 2.5, 10, 40, 100])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 3.0])
def test_snr_is_exact(rng, snr_db, scale):
    clean = make_speech(rng, 2000).astype(np.float32)
    noise = (scale * rng.standard_normal(2000)).astype(np.float32)
    mixture = mix_at_snr(clean, noise, snr_db)
    assert_allclose(mixing_oracle.snr_db(mixture.clean, mixture.noise), snr_db, rtol=0, atol=1e-6)
    left = mixture.noisy - mixture.clean
    assert_allclose(mixing_oracle.snr_db(mixture.clean, left), snr_db, rtol=0, atol=1e-6)
    assert_allclose(measure_snr_db(mixture.clean, left), snr_db, rtol=0, atol=1e-6)


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 20.0])
def test_mixture_agrees_with_the_oracle(rng, snr_db):
    clean, noise = make_speech(rng, 500), rng.standard_normal(500)
    mixture = mix_at_snr(clean, noise, snr_db)
    noisy, scaled, gain = mixing_oracle.mix(clean, noise, snr_db, MAX_PEAK)
    assert_allclose(mixture.noisy, noisy, rtol=1e-12, atol=1e-14)
    assert_allclose(mixture.clean, scaled, rtol=1e-12, atol=1e-14)
    assert_allclose(mixture.gain, gain, rtol=1e-12, atol=0)
    assert mixture.snr_db == snr_db
    assert mixture.noisy.dtype == np.float64


def test_nothing_clips_and_the_gain_is_recorded(rng):
    clean, noise = make_speech(rng), rng.standard_normal(8000)
    loud = mix_at_snr(clean, noise, -20)
    assert loud.gain < 1
    assert_allclose(np.max(np.abs(loud.noisy)), MAX_PEAK, rtol=1e-12, atol=0)
    assert_allclose(loud.clean, loud.gain * clean, rtol=1e-12, atol=0)
    assert mix_at_snr(0.1 * clean, noise, 20).gain == 1.0
    assert mix_at_snr(clean, noise, -20, peak=math.inf).gain == 1.0
    assert mix_at_snr(clean, noise, -20, peak=0.1).gain < loud.gain


def test_clean_is_kept_from_clipping_where_the_noise_cancels_it():
    clean = np.array([1.5, 0.1])
    mixture = mix_at_snr(clean, np.array([-1.5, 0.1]), 0.0)
    assert np.max(np.abs(mixture.clean)) <= MAX_PEAK


def test_inputs_are_left_alone(rng):
    clean, noise = make_speech(rng, 100), rng.standard_normal(100)
    before = clean.copy(), noise.copy()
    mix_at_snr(clean, noise, -30)
    assert_array_equal(clean, before[0])
    assert_array_equal(noise, before[1])


@pytest.mark.parametrize(
    ("clean", "noise", "snr_db", "reason"),
    [
        (np.zeros(9), np.ones(9), 0, "clean is silent"),
        (np.ones(9), np.zeros(9), 0, "noise is silent"),
        (np.ones(9), np.ones(8), 0, "9 samples, noise 8"),
        (np.ones((9, 2)), np.ones(9), 0, "shape"),
        (np.ones(0), np.ones(0), 0, "clean has 0 samples, expected at least 1"),
        (np.full(9, 1e300), np.ones(9), 0, "clean is too loud"),
        (np.full(9, np.nan), np.ones(9), 0, "clean holds a NaN"),
        (np.ones(9), np.full(9, np.inf), 0, "noise holds a NaN"),
        (np.ones(9), np.ones(9), math.nan, "snr_db is nan"),
        (np.ones(9), np.ones(9), -5000, "snr_db is -5000"),
    ],
)
def test_bad_input_is_refused(clean, noise, snr_db, reason):
    with pytest.raises(ValueError, match=reason):
        mix_at_snr(clean, noise, snr_db)


@pytest.mark.parametrize("num_samples", [1, 6, 7, 8, 50])
@pytest.mark.parametrize("offset", [0, 3, 6])
def test_loop_or_crop_agrees_with_the_oracle(num_samples, offset):
    noise = np.arange(7.0)
    expected = mixing_oracle.loop(noise, num_samples, offset)
    assert_array_equal(loop_or_crop(noise, num_samples, offset), expected)


def test_loop_or_crop_returns_a_copy():
    noise = np.arange(7.0)
    loop_or_crop(noise, 5, 0)[:] = -1
    assert_array_equal(noise, np.arange(7.0))


@pytest.mark.parametrize("offset", [-1, 7])
def test_loop_or_crop_refuses_an_offset_outside(offset):
    with pytest.raises(ValueError, match="outside the noise of 7 samples"):
        loop_or_crop(np.arange(7.0), 3, offset)
    with pytest.raises(ValueError, match="num_samples is -1"):
        loop_or_crop(np.arange(7.0), -1)


def test_long_noise_is_cut_without_wrapping(rng):
    noise = np.arange(1.0, 101.0)
    offsets = [draw_offset(noise, 90, rng) for _ in range(300)]
    assert set(offsets) == set(range(11))
    assert_array_equal(np.diff(draw_segment(noise, 90, rng)), np.ones(89))


def test_short_noise_is_repeated(rng):
    segment = draw_segment(np.array([1.0, 2.0, 3.0]), 10, rng)
    assert sorted(set(segment)) == [1.0, 2.0, 3.0]
    assert len(segment) == 10


def test_silent_segments_are_avoided(rng):
    noise = np.concatenate([np.zeros(500), np.ones(500)])
    assert all(np.any(draw_segment(noise, 10, rng)) for _ in range(100))
    with pytest.raises(ValueError, match="noise is silent"):
        draw_segment(np.zeros(100), 10, rng)


def test_segments_follow_from_the_seed():
    noise = np.arange(1.0, 1000.0)
    one, two = (draw_segment(noise, 50, np.random.default_rng(3)) for _ in range(2))
    assert_array_equal(one, two)


def test_undefined_snr():
    assert measure_snr_db(np.ones(3), np.zeros(3)) == math.inf
    assert measure_snr_db(np.zeros(3), np.ones(3)) == -math.inf
    assert math.isnan(measure_snr_db(np.zeros(3), np.zeros(3)))
