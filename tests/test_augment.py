"""Augmentation: lengths, levels, spectra and determinism; off unless asked for."""

import sys

import numpy as np
import pyroomacoustics
import pytest
from numpy.testing import assert_allclose

from speech.sound import augment
from speech.sound.augment import Augmentation
from speech.sound.mixing import measure_snr_db


def power_at(signal, low_hz, high_hz):
    spectrum = np.abs(np.fft.rfft(signal)) ** 2
    frequency = np.fft.rfftfreq(len(signal), 1 / 16000)
    return spectrum[(frequency >= low_hz) & (frequency < high_hz)].mean()


def test_nothing_is_on_by_default():
    assert Augmentation().description() == []
    assert Augmentation(rooms=0.0, equalizer_db=3).description() == ["augment equalizer_db 3"]


@pytest.mark.parametrize(
    "bad", [{"second_noise": 1.5}, {"band_limit": -0.1}, {"equalizer_db": 50}, {"noise_speed": 0.5},
            {"gain_db": (0, -10)}, {"gain_db": (float("nan"), 0)}, {"rooms": 2}],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Augmentation(**bad)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flat_gains_at_the_same_speed_change_nothing(dtype, rng):
    noise = rng.standard_normal(4000).astype(dtype)
    same = augment.change_noise(noise, 4000, np.zeros(10))
    assert same.dtype == dtype
    assert_allclose(same, noise, rtol=0, atol=1e-5)


def test_the_equalizer_gives_its_gains(rng):
    noise = rng.standard_normal(160000)
    gains_db = np.linspace(-9, 9, 10)
    shaped = augment.change_noise(noise, len(noise), gains_db)
    for centre, gain_db in zip(augment.BANDS_HZ[1:-1], gains_db[1:-1], strict=True):
        band = (0.95 * centre, 1.05 * centre)
        measured = 10 * np.log10(power_at(shaped, *band) / power_at(noise, *band))
        assert measured == pytest.approx(gain_db, abs=0.4)


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.4])
def test_speed_moves_the_pitch(speed):
    length, wanted = augment.lengths_at_speed(16001, speed)
    assert wanted >= 16001
    assert length / wanted == pytest.approx(speed, rel=0.03)
    tone = np.sin(2 * np.pi * 1000 / 16000 * np.arange(length))
    changed = augment.change_noise(tone, wanted, np.zeros(10))
    assert len(changed) == wanted
    peak_hz = np.argmax(np.abs(np.fft.rfft(changed))) * 16000 / wanted
    assert peak_hz == pytest.approx(1000 * length / wanted, abs=2)
    assert np.abs(changed[2000:-2000]).max() == pytest.approx(1, abs=0.05)


def test_drawn_values_stay_within_their_range(rng):
    speeds = [augment.draw_speed(1.25, rng) for _ in range(200)]
    assert 0.8 <= min(speeds) < 0.9 < 1.1 < max(speeds) <= 1.25
    assert augment.draw_speed(1.0, rng) == 1.0
    gains = np.array([augment.draw_gains_db(6, rng) for _ in range(50)])
    assert -6 <= gains.min() < -5 < 5 < gains.max() <= 6


def test_the_second_noise_has_its_level(rng):
    first, second = rng.standard_normal((2, 5000))
    both = augment.add_noises(first, 10 * second, 4.0)
    assert measure_snr_db(first, both - first) == pytest.approx(-4.0, abs=1e-6)


def test_a_limited_band_keeps_what_is_below(rng):
    noise = rng.standard_normal(48000).astype(np.float32)
    limited = augment.limit_band(noise, 3400.0)
    assert limited.dtype == np.float32
    assert len(limited) == len(noise)
    assert power_at(limited, 3600, 8000) < 1e-5 * power_at(noise, 3600, 8000)
    # no delay: what is kept is the same, sample for sample, away from the cut ends
    inner = slice(500, -500)
    assert_allclose(augment.limit_band(limited, 7000.0)[inner], limited[inner], rtol=0, atol=1e-3)
    tone = np.sin(2 * np.pi * 1000 / 16000 * np.arange(48000))
    assert_allclose(augment.limit_band(tone, 3400.0)[inner], tone[inner], atol=1e-3)


def test_a_room_s_target_is_direct_sound_with_early_reflections(rng):
    speech = rng.standard_normal(8000)
    response = np.zeros(4000)
    response[[100, 400, 2000]] = 0.5, -0.25, 0.1  # direct, early (19 ms), late (119 ms)
    wet, target = augment.reverberate(speech, response)
    early = speech.copy()
    early[300:] -= 0.5 * speech[:-300]
    assert_allclose(target, early, atol=1e-12)
    late = np.zeros(8000)
    late[1900:] = 0.2 * speech[:-1900]
    assert_allclose(wet, early + late, atol=1e-12)


def test_rooms_without_the_library_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(ValueError, match="pip install pyroomacoustics"):
        Augmentation(rooms=0.5)


def test_rooms_follow_from_their_number():
    responses = [augment.room_response(number) for number in range(4)]
    for response in responses:
        assert response.dtype == np.float32
        assert np.isfinite(response).all()
        direct = np.argmax(np.abs(response))
        assert direct < 400  # talker within 3 m, and the filters of the simulation
    again = augment.room_response.__wrapped__(2)
    assert np.array_equal(again, responses[2])
    assert not np.array_equal(responses[0][:1000], responses[1][:1000])


def test_rooms_do_not_depend_on_the_number_of_threads():
    before = pyroomacoustics.constants.get("num_threads")
    responses = []
    for num_threads in (1, 3):
        pyroomacoustics.constants.set("num_threads", num_threads)
        responses.append(augment.room_response.__wrapped__(0))
    pyroomacoustics.constants.set("num_threads", before)
    assert np.array_equal(*responses)


def test_rooms_of_tests_are_others(rng):
    train = {augment.draw_room(rng) for _ in range(500)}
    test = {augment.draw_room(rng, "TEST") for _ in range(500)}
    assert len(train) > 150 and len(test) > 150
    assert not train & test


@pytest.mark.parametrize("rt60_s", [0.2, 0.5])
def test_the_reverberation_time_of_a_known_decay(rng, rt60_s):
    time_s = np.arange(16000) / 16000
    response = rng.standard_normal(16000) * 10 ** (-3 * time_s / rt60_s)
    assert augment.reverberation_time_s(response) == pytest.approx(rt60_s, rel=0.05)
