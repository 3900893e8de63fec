"""Pieces of mixtures: exact SNR, levels, shares, and the same piece at the same position."""

import logging
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from speech.data import corpus, mixtures
from speech.data.corpus import Noise, Utterance
from speech.data.mixtures import (
    CODECS,
    MixingConfig,
    PieceSource,
    active_power,
    apply_codec,
    training_and_validation,
)
from speech.sound import augment
from tests.reference.active_level import active_power as active_power_oracle

RATE_HZ = 16000
PLAIN = MixingConfig(
    noise_share=0, speech_share=0, babble_share=0, synthetic_share=0, second_noise_share=0,
    self_noise_share=0, noise_equalizer_db=0, noise_speed=1, voice_share=0, room_share=0,
    microphone_share=0, band_limit_share=0, clipping_share=0, codec_share=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def bundled():
    return corpus.bundled_speech("TRAIN"), corpus.bundled_noise("TRAIN")


@pytest.fixture(scope="module")
def source(bundled):
    return PieceSource(*bundled, replace(MixingConfig(), room_share=0.02), seed=3)


@pytest.fixture(scope="module")
def plans(bundled):
    source = PieceSource(*bundled, seed=1)
    return [source.plan(position) for position in range(4000)]


def write(folder, name, samples):
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, np.asarray(samples, np.float32), RATE_HZ, subtype="PCM_16")
    return folder / name


def buzz(rng, duration_s):
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    return 0.2 * np.sin(700 * time_s) * np.sin(12 * time_s) + 1e-3 * rng.standard_normal(
        len(time_s)
    )


def level_db(samples):
    return 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))


def band_db(samples, low_hz, high_hz):
    """Energy of a band relative to all, in dB."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequency_hz = np.linspace(0, RATE_HZ / 2, len(power))
    inside = power[(frequency_hz >= low_hz) & (frequency_hz < high_hz)].sum()
    return 10 * np.log10(inside / power.sum() + 1e-30)


# --- a piece ----------------------------------------------------------------------------------


def test_snr_is_exact_over_the_active_speech(bundled):
    config = replace(MixingConfig(), room_share=0, clipping_share=0, codec_share=0)
    source = PieceSource(*bundled, config, seed=5)
    checked = 0
    for position in range(30):
        plan = source.plan(position)
        if plan.kind != "mixture":
            continue
        noisy, clean = (signal.astype(np.float64) for signal in source.piece(position))
        noise = np.mean((noisy - clean) ** 2)
        measured_db = 10 * np.log10(active_power_oracle(clean) / noise)
        assert_allclose(measured_db, plan.snr_db, rtol=0, atol=1e-4)
        checked += 1
    assert checked > 20


def test_same_position_same_piece_whatever_was_asked_before(bundled):
    one, other = (PieceSource(*bundled, PLAIN, num_samples=8000, seed=2) for _ in range(2))
    expected = [one.piece(position) for position in range(6)]
    for position in (5, 0, 3, 3):
        for made, again in zip(other.piece(position), expected[position], strict=True):
            assert_array_equal(made, again)
    assert not np.array_equal(expected[0][0], expected[1][0])
    different = PieceSource(*bundled, PLAIN, num_samples=8000, seed=4)
    assert not np.array_equal(different.piece(0)[0], expected[0][0])
    copied = pickle.loads(pickle.dumps(one))
    assert_array_equal(copied.piece(4)[0], expected[4][0])


def test_pieces_are_finite_float32_within_full_scale_at_their_level(source):
    at_level = 0
    for position in range(80):
        plan = source.plan(position)
        noisy, clean = source.piece(position)
        assert noisy.dtype == clean.dtype == np.float32
        assert noisy.shape == clean.shape == (32000,)
        assert np.isfinite(noisy).all() and np.isfinite(clean).all()
        assert max(np.abs(noisy).max(), np.abs(clean).max()) <= 1 + 1e-6
        if plan.codec is None:
            assert level_db(noisy) <= plan.level_dbfs + 1e-3
            at_level += abs(level_db(noisy) - plan.level_dbfs) < 1e-3
    assert at_level > 45  # the others would pass full scale


def test_batch_is_pieces_in_order(bundled):
    source = PieceSource(*bundled, PLAIN, num_samples=4000, batch_size=3)
    noisy, clean = source.batch(2)
    assert noisy.shape == clean.shape == (3, 4000)
    for row in range(3):
        piece = source.piece(6 + row)
        assert_array_equal(noisy[row], piece[0])
        assert_array_equal(clean[row], piece[1])


def test_noise_alone_has_silence_as_target_and_speech_alone_itself(bundled):
    alone = PieceSource(*bundled, replace(MixingConfig(), noise_share=1, speech_share=0))
    for position in range(4):
        noisy, clean = alone.piece(position)
        assert noisy.any() and not clean.any()
    speech = PieceSource(*bundled, replace(MixingConfig(), noise_share=0, speech_share=1))
    for position in range(4):
        noisy, clean = speech.piece(position)
        assert noisy.any()
        assert_array_equal(noisy, clean)


def test_clipping_touches_the_noisy_signal_alone(bundled):
    source = PieceSource(*bundled, replace(PLAIN, clipping_share=1, snr_range_db=(20, 20)))
    plain = PieceSource(*bundled, replace(PLAIN, snr_range_db=(20, 20)))
    for position in range(5):
        noisy, clean = source.piece(position)
        peak = np.abs(noisy).max()
        assert np.sum(np.abs(noisy) > 0.9999 * peak) > 5
        other = plain.piece(position)[1]
        assert_allclose(clean / np.abs(clean).max(), other / np.abs(other).max(), rtol=0, atol=1e-5)


def test_band_limits_are_those_of_both(bundled):
    source = PieceSource(*bundled, replace(PLAIN, band_limit_share=1, synthetic_share=1))
    for position in range(5):
        cutoff_hz = source.plan(position).band_limit_hz
        for signal in source.piece(position):
            assert band_db(signal, cutoff_hz * 1.02, 8000) < -50


def test_band_that_a_codec_takes_is_not_in_the_target(bundled):
    source = PieceSource(*bundled, replace(PLAIN, codec_share=1))
    seen = set()
    for position in range(40):
        codec = source.plan(position).codec
        if codec.cutoff_hz and codec.name not in seen:
            seen.add(codec.name)
            noisy, clean = source.piece(position)
            assert band_db(clean, codec.cutoff_hz * 1.02, 8000) < -50
            assert noisy.shape == clean.shape
    assert len(seen) >= 3


def test_voice_is_faster_and_higher(tmp_path, rng):
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(4 * RATE_HZ) / RATE_HZ)
    path = write(tmp_path, "tone.wav", tone)
    noise = Noise("n", write(tmp_path / "n", "n.wav", 0.1 * rng.standard_normal(RATE_HZ)))
    config = replace(PLAIN, speech_share=1, voice_share=1)
    source = PieceSource([Utterance("a", path, "a")], [noise], config)
    speeds = []
    for position in range(12):
        speed = source.plan(position).speed
        _, clean = source.piece(position)
        peak_hz = np.argmax(np.abs(np.fft.rfft(clean))) / 2
        assert_allclose(peak_hz, 1000 * speed, rtol=0.01, atol=1)
        speeds.append(speed)
    assert 1 / 1.15 <= min(speeds) < 0.95 and 1.05 < max(speeds) <= 1.15


@pytest.mark.parametrize("number", [0, 7])
def test_room_and_its_early_part_are_a_convolution(rng, number):
    lead, length = mixtures._ROOM_LEAD_SAMPLES, 2000
    total = lead + length + mixtures._MARGIN_SAMPLES
    dry = rng.standard_normal(total)
    response = augment.room_response(number).astype(np.float64)
    direct = int(np.argmax(np.abs(response)))
    response = response / response[direct]
    heard, early = (
        augment.filter_and_resample(dry, total, spectrum)[lead : lead + length]
        for spectrum in mixtures._room_spectra(number, total)
    )
    expected = np.convolve(dry, response[: direct + 800])[direct:][lead : lead + length]
    assert_allclose(early, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    if len(response) - direct < lead - 1600:  # otherwise its tail is faded
        expected = np.convolve(dry, response)[direct:][lead : lead + length]
    else:
        response[direct + lead - 1600 :] = 0
        expected = np.convolve(dry, response)[direct:][lead : lead + length]
    assert np.std(heard - expected) < 0.02 * np.std(expected)


def test_target_in_a_room_is_the_early_sound_at_its_place(bundled):
    config = replace(PLAIN, room_share=1, snr_range_db=(60, 60))
    source = PieceSource(*bundled, config, num_samples=16000, seed=1)
    late = []
    for position in range(4):
        assert source.plan(position).room is not None
        noisy, clean = source.piece(position)
        spectrum = np.fft.rfft(noisy, 65536) * np.conj(np.fft.rfft(clean, 65536))
        assert np.argmax(np.fft.irfft(spectrum / np.abs(spectrum))) == 0
        late.append(np.std(noisy - clean) / np.std(clean))
    assert max(late) > 0.1


# --- codecs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("num_samples", [32000, 15001])
def test_codecs_do_not_delay(bundled, codec, num_samples):
    speech = soundfile.read(bundled[0][0].path, dtype="float32")[0]
    speech = np.tile(speech, 3)[:num_samples]
    if codec.cutoff_hz:
        speech = augment.limit_band(speech, codec.cutoff_hz)
    coded = apply_codec(speech, codec)
    assert coded.dtype == np.float32 and coded.shape == speech.shape
    correlation = np.fft.irfft(np.fft.rfft(coded, 1 << 17) * np.conj(np.fft.rfft(speech, 1 << 17)))
    assert np.argmax(correlation) == 0
    assert 0.8 < correlation[0] / np.sum(speech**2) < 1.1
    difference_db = level_db(coded - speech) - level_db(speech)
    assert -60 < difference_db < -5
    assert band_db(speech, 0, (codec.cutoff_hz or 8000) * 0.9) > -0.1
    for low_hz in (200, 1000, 2000, 3000):  # what the target keeps, the codec keeps
        if low_hz + 1000 <= 0.9 * (codec.cutoff_hz or 8000):
            kept = band_db(coded, low_hz, low_hz + 1000) - band_db(speech, low_hz, low_hz + 1000)
            assert abs(kept) < 4


# --- what is drawn ----------------------------------------------------------------------------


def assert_share(count, total, share):
    """Within five standard deviations."""
    assert abs(count - total * share) <= 5 * np.sqrt(total * share * (1 - share)) + 1


def test_shares_are_those_of_the_settings(plans):
    config, total = MixingConfig(), len(plans)
    kinds = Counter(plan.kind for plan in plans)
    assert_share(kinds["noise"], total, config.noise_share)
    assert_share(kinds["speech"], total, config.speech_share)
    mixed = [plan for plan in plans if plan.kind == "mixture"]
    assert_share(sum(plan.room is not None for plan in mixed), len(mixed), config.room_share)
    assert_share(sum(plan.is_new_voice for plan in mixed), len(mixed), config.voice_share)
    assert_share(sum(plan.has_microphone for plan in plans), total, config.microphone_share)
    assert_share(sum(plan.band_limit_hz > 0 for plan in plans), total, config.band_limit_share)
    noisy = [plan for plan in plans if plan.kind != "speech"]
    for name in ("clipping_db", "codec", "self_noise_db"):
        share = getattr(config, f"{name.removesuffix('_db')}_share")
        assert_share(sum(bool(getattr(plan, name)) for plan in noisy), len(noisy), share)
    assert_share(sum(len(p.noises) == 2 for p in noisy), len(noisy), config.second_noise_share)
    noises = Counter(noise.kind for plan in plans for noise in plan.noises)
    assert_share(noises["babble"], noises.total(), config.babble_share)
    assert_share(noises["synthetic"], noises.total(), config.synthetic_share)
    assert {plan.codec.name for plan in plans if plan.codec} == {codec.name for codec in CODECS}


def test_draws_lie_in_their_ranges_and_fill_them(plans):
    for name, (low, high) in (("snr_db", (-10, 25)), ("level_dbfs", (-35, -10))):
        values = [getattr(plan, name) for plan in plans]
        assert low <= min(values) < low + 0.2 and high - 0.2 < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 0.5


def test_babble_never_has_the_voice_of_the_target(plans):
    babbles = [(plan.speaker, n.speakers) for plan in plans for n in plan.noises if n.speakers]
    assert len(babbles) > 100
    for speaker, voices in babbles:
        assert 4 <= len(voices) <= 8 and speaker not in voices


def test_a_changed_share_changes_nothing_else(bundled):
    some, all_ = (
        PieceSource(*bundled, replace(MixingConfig(), room_share=share)) for share in (0.2, 1)
    )
    for position in range(50):
        plan = some.plan(position)
        if plan.kind == "mixture":
            assert replace(all_.plan(position), room=plan.room) == plan


def test_speakers_are_drawn_evenly(tmp_path):
    utterances = [Utterance(f"a{n}", tmp_path / f"a{n}.wav", "a") for n in range(90)]
    utterances += [Utterance("b", tmp_path / "b.wav", "b"), Utterance("c", tmp_path / "c.wav", "c")]
    source = PieceSource(utterances, [Noise("n", tmp_path / "n.wav")], PLAIN)
    counts = Counter(source.plan(position).speaker for position in range(3000))
    for speaker in "abc":
        assert_share(counts[speaker], 3000, 1 / 3)


def test_only_the_part_of_a_noise_that_is_for_training_is_heard(tmp_path, rng):
    time_s = np.arange(8 * RATE_HZ) / RATE_HZ
    tones = 0.2 * np.where(time_s < 6.4, np.sin(3000 * time_s), np.sin(20000 * time_s))
    noise = Noise("n", write(tmp_path, "n.wav", tones), 0.0, 0.8)
    speech = Utterance("a", write(tmp_path / "s", "a.wav", buzz(rng, 3)), "a")
    source = PieceSource([speech], [noise], replace(PLAIN, noise_share=1))
    for position in range(10):
        assert band_db(source.piece(position)[0], 2500, 8000) < -40


def test_training_and_validation_share_no_utterance(bundled):
    training, validation = training_and_validation(*bundled, PLAIN, num_samples=8000, seed=1)
    train, held_out = ({u.id for u in s.utterances} for s in (training, validation))
    assert train and held_out and not train & held_out
    assert train | held_out == {utterance.id for utterance in bundled[0]}
    assert not {u.id for u in corpus.bundled_speech("TEST")} & (train | held_out)


# --- awkward files ----------------------------------------------------------------------------


@pytest.fixture
def noise(tmp_path, rng):
    path = write(tmp_path / "noise", "hiss.wav", 0.05 * rng.standard_normal(2 * RATE_HZ))
    return Noise("hiss", path)


def test_short_utterances_are_joined_with_pauses(tmp_path, noise, rng):
    utterances = [
        Utterance(f"u{n}", write(tmp_path, f"u{n}.wav", buzz(rng, 0.3)), "a") for n in range(3)
    ]
    source = PieceSource(utterances, [noise], replace(PLAIN, snr_range_db=(20, 20)))
    for position in range(5):
        noisy, clean = source.piece(position)
        silent = np.abs(clean) < 1e-6
        assert 0.05 < silent.mean() < 0.9
        assert level_db(noisy[silent]) > -80  # the noise goes on


def test_tiny_silent_and_broken_files(tmp_path, noise, rng, caplog):
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    utterances = [
        Utterance("good", write(tmp_path, "good.wav", buzz(rng, 3)), "a"),
        Utterance("tiny", write(tmp_path, "tiny.wav", [0.1]), "b"),
        Utterance("silent", write(tmp_path, "silent.wav", np.zeros(RATE_HZ)), "c"),
        Utterance("broken", tmp_path / "broken.wav", "d"),
    ]
    source = PieceSource(utterances, [noise], num_samples=8000)
    with caplog.at_level(logging.WARNING, "speech"):
        for position in range(40):
            assert all(np.isfinite(signal).all() for signal in source.piece(position))
    for name in ("silent.wav", "broken.wav"):
        assert sum(name in record.message for record in caplog.records) == 1
    assert "speech is silent, expected sound; leave this file out" in caplog.text


def test_nothing_but_silence_is_one_line(tmp_path, noise):
    speech = [Utterance("silent", write(tmp_path, "silent.wav", np.zeros(RATE_HZ)), "a")]
    with pytest.raises(ValueError, match="no usable piece in 20 draws; the last: .*silent.wav"):
        PieceSource(speech, [noise], PLAIN).piece(0)
    quiet = Noise("quiet", write(tmp_path / "n", "quiet.wav", np.zeros(4 * RATE_HZ)))
    with pytest.raises(ValueError, match="quiet.wav: noise is silent"):
        PieceSource(corpus.bundled_speech("TRAIN"), [quiet], PLAIN).piece(0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"room_share": 1.5}, "room_share is 1.5; give a probability"),
        ({"snr_range_db": (5, -5)}, "snr_range_db is 5 to -5; give low <= high"),
        ({"level_range_dbfs": (-20, 3)}, "goes up to 3; full scale is 0"),
        ({"voice_speed": 0.5}, "voice_speed is 0.5; give a factor"),
        ({"microphone_db": -1}, "microphone_db is -1; give 0 to 40 dB"),
        ({"noise_share": 0.7, "speech_share": 0.7}, "add up to more than 1"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        MixingConfig(**changes)


def test_sources_that_make_no_sense(bundled):
    speech, noises = bundled
    for arguments, message in (
        (([], noises), "no utterances"),
        ((speech, []), "no noises"),
    ):
        with pytest.raises(ValueError, match=message):
            PieceSource(*arguments)
    for name, value in (("num_samples", 10), ("batch_size", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{name} is {value}; give at least"):
            PieceSource(speech, noises, **{name: value})


def test_fingerprint_follows_from_settings_and_files(bundled):
    speech, noises = bundled
    prints = {
        PieceSource(speech, noises).fingerprint(),
        PieceSource(speech, noises, PLAIN).fingerprint(),
        PieceSource(speech[1:], noises).fingerprint(),
        PieceSource(speech, noises, seed=1).fingerprint(),
    }
    assert len(prints) == 4
    assert PieceSource(speech, noises).fingerprint() in prints


# --- the level of speech ----------------------------------------------------------------------


def test_active_power_agrees_with_the_oracle_and_leaves_pauses_out(rng):
    speech = buzz(rng, 1.0).astype(np.float32)
    assert_allclose(active_power(speech), active_power_oracle(speech), rtol=1e-6, atol=0)
    padded = np.concatenate([speech, np.zeros(RATE_HZ, np.float32)])
    assert_allclose(active_power(padded), active_power(speech), rtol=1e-6, atol=0)
    assert_allclose(active_power(np.full(100, 0.5)), 0.25, rtol=1e-12, atol=0)
    for bad, state in ((np.zeros(1000), "silent"), (np.full(1000, np.nan), "not finite")):
        with pytest.raises(ValueError, match=f"speech is {state}"):
            active_power(bad)
