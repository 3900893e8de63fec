"""Batches: reproducible from seed and position, shuffled anew, padded without being counted."""

import numpy as np
import pytest
import soundfile

from speech.data.cache import AudioCache, compact, expand
from speech.data.corpus import Pair, find_noise, find_speech
from speech.data.pairs import PairSource
from speech.data.pipeline import MixtureSource, TrainingData, collate, data_fingerprint, prefetched
from speech.sound.audio import read_audio
from speech.sound.augment import Augmentation
from speech.sound.mixing import measure_snr_db


@pytest.fixture
def source(timit, noises):
    return MixtureSource(find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN"), [-5, 5])


def test_same_seed_same_batches_and_fresh_ones_each_epoch(source):
    def epochs(seed, **options):
        data = TrainingData(source, num_items=6, seed=seed, **options)
        return [[b.noisy.tobytes() for b in prefetched(data.at_epoch(e))] for e in range(2)]

    first = epochs(3)
    assert first == epochs(3)
    assert len(set(first[0] + first[1])) == 12  # never the same mixture again
    assert first != epochs(4)


def test_every_utterance_comes_once_a_pass_in_a_new_order(source):
    data = TrainingData(source, num_items=len(source), seed=0)
    orders = [list(data._order(number)) for number in range(6)]
    assert all(sorted(order) == list(range(len(source))) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    unshuffled = TrainingData(source, seed=0, shuffle=False)
    assert list(unshuffled._order(5)) == list(range(len(source)))


def test_an_epoch_can_be_taken_up_in_the_middle(source):
    data = TrainingData(source, num_items=7, batch_size=2, seed=1)
    whole = [batch.clean.tobytes() for batch in prefetched(data)]
    assert len(whole) == len(data) == 4
    assert [batch.clean.tobytes() for batch in prefetched(data, first=2)] == whole[2:]
    assert [data.batch(i).clean.tobytes() for i in range(4)] == whole


def test_snr_and_peaks_are_right(source, rng):
    noisy, clean = source.item(0, rng)
    assert min(abs(measure_snr_db(clean, noisy - clean) - snr_db) for snr_db in (-5, 5)) < 1e-6
    data = TrainingData(source, seed=0)
    batch = data.batch(0)
    assert np.abs(batch.noisy).max() == np.abs(batch.clean).max() == 1.0


def test_crops_are_cut_alike_and_only_from_longer_utterances(source):
    data = TrainingData(source, num_items=4, crop_samples=3000, seed=0)
    for batch in prefetched(data):
        assert batch.noisy.shape == batch.clean.shape == (1, 3000, 1)
    whole = TrainingData(source, num_items=4, crop_samples=10**6, seed=0)
    assert next(prefetched(whole)).lengths[0] == 8000


def test_padding_has_no_weight():
    items = [(np.ones(4), np.ones(4)), (np.ones(2), np.zeros(2))]
    batch = collate(items)
    assert batch.noisy.shape == (2, 4, 1)
    assert list(batch.lengths) == [4, 2]
    error = (batch.noisy - batch.clean)[..., 0] ** 2 * batch.weights
    assert error.mean() == pytest.approx(0.5)  # utterance means 0 and 1


def test_a_bad_utterance_is_replaced_and_said_once(source, caplog, tmp_path, timit, noises):
    silent = tmp_path / "more" / "x.wav"
    silent.parent.mkdir()
    soundfile.write(silent, np.zeros(8000), 16000)
    utterances = find_speech(silent.parent) + find_speech(timit, "TRAIN")[:1]
    data = TrainingData(MixtureSource(utterances, find_noise(noises, "TRAIN"), [0]), num_items=6)
    assert sum(batch.clean.any() for batch in prefetched(data)) == 6
    assert sum("silent" in record.message for record in caplog.records) == 1
    only_bad = TrainingData(MixtureSource(utterances[:1], find_noise(noises, "TRAIN"), [0]))
    with pytest.raises(ValueError, match="no usable utterance in 1 tries"):
        only_bad.batch(0)


def test_pairs_of_unequal_length_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.ones(100) / 2, 16000)
    soundfile.write(tmp_path / "b.wav", np.ones(90) / 2, 16000)
    pair = Pair(tmp_path / "a.wav", tmp_path / "b.wav", "n", "s", 0.0, "a")
    with pytest.raises(ValueError, match="aligned sample for sample"):
        PairSource([pair]).item(0, np.random.default_rng(0))


def test_silent_pairs_stay_silent(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16000)
    pair = Pair(tmp_path / "a.wav", tmp_path / "a.wav", "n", "s", 0.0, "a")
    batch = TrainingData(PairSource([pair])).batch(0)
    assert not batch.noisy.any()
    assert np.isfinite(batch.weights).all()


def test_nothing_to_train_on_is_refused():
    with pytest.raises(ValueError, match="no utterances"):
        MixtureSource([], [1], [0])
    with pytest.raises(ValueError, match="no noisy/clean pairs"):
        PairSource([])


def test_augmentation_follows_from_seed_and_position(timit, noises):
    everything = Augmentation(
        second_noise=0.5, equalizer_db=10, noise_speed=1.25, band_limit=0.5, gain_db=(-20, 0)
    )

    def batches(first=0, augmentation=everything):
        source = MixtureSource(
            find_speech(timit, "TRAIN"),
            find_noise(noises, "TRAIN"),
            [0],
            snr_range_db=(-10, 20),
            augmentation=augmentation,
        )
        data = TrainingData(source, num_items=8, batch_size=2, gain_db=augmentation.gain_db)
        return [(b.noisy.tobytes(), b.clean.tobytes()) for b in prefetched(data, first)]

    whole = batches()
    assert batches() == whole
    assert batches(first=2) == whole[2:]
    assert all(one != other for one, other in zip(whole, batches(0, Augmentation()), strict=True))


def test_no_augmentation_changes_no_draw(timit, noises):
    files = find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN"), [-5, 5]
    plain, off = MixtureSource(*files), MixtureSource(*files, augmentation=Augmentation())
    for index in range(len(plain)):
        for one, other in zip(
            *(source.item(index, np.random.default_rng(index)) for source in (plain, off)),
            strict=True,
        ):
            assert np.array_equal(one, other)
    assert data_fingerprint(plain) == data_fingerprint(off)


def test_snrs_are_drawn_from_the_range_and_stay_exact_for_changed_noises(timit, noises, rng):
    source = MixtureSource(
        find_speech(timit, "TRAIN"),
        find_noise(noises, "TRAIN"),
        [0],
        snr_range_db=(2, 9),
        augmentation=Augmentation(second_noise=1.0, equalizer_db=10, noise_speed=2.0),
    )
    items = [source.item(index % len(source), rng) for index in range(20)]
    snrs_db = [measure_snr_db(clean, noisy - clean) for noisy, clean in items]
    assert 2 <= min(snrs_db) < 4 < 7 < max(snrs_db) <= 9


def test_gain_scales_the_noisy_signal_alone(source):
    plain = TrainingData(source, num_items=6, seed=1)
    scaled = TrainingData(source, num_items=6, seed=1, gain_db=(-20, -10))
    for one, other in zip(prefetched(plain), prefetched(scaled), strict=True):
        assert np.array_equal(one.clean, other.clean)
        assert 0.1 <= np.abs(other.noisy).max() <= 10**-0.5
        assert np.allclose(other.noisy / np.abs(other.noisy).max(), one.noisy, atol=1e-6)


def test_in_a_room_the_noise_is_not_in_the_target(timit, noises, rng, monkeypatch):
    response = np.zeros(3000, np.float32)
    response[[50, 2500]] = 1, 0.5
    monkeypatch.setattr("speech.sound.augment.room_response", lambda number: response)
    monkeypatch.setattr("speech.sound.augment.require_rooms", lambda: None)
    utterances = find_speech(timit, "TRAIN")
    source = MixtureSource(
        utterances, find_noise(noises, "TRAIN"), [60], augmentation=Augmentation(rooms=1.0)
    )
    noisy, clean = source.item(0, rng)
    dry = read_audio(utterances[0].path).samples
    gain = np.dot(clean, dry) / np.dot(dry, dry)
    assert np.allclose(clean, gain * dry, atol=1e-5)
    late = np.zeros_like(dry)
    late[2450:] = 0.5 * dry[:-2450]
    assert np.allclose(noisy, gain * (dry + late), atol=5e-3)  # noise at 60 dB below


def test_sixteen_bits_are_kept_in_sixteen_bits(rng):
    exact = rng.integers(-32768, 32768, 1000).astype(np.float32) / 32768
    exact = np.where(exact == -1, 0, exact).astype(np.float32)
    assert compact(exact).dtype == np.int16
    assert np.array_equal(expand(compact(exact)), exact)
    for other in (
        rng.standard_normal(1000).astype(np.float32),
        np.array([np.nan, 0], np.float32),
        np.array([1.0, 0], np.float32),
    ):
        assert compact(other) is other
        assert expand(other) is other


def test_the_cache_stays_within_its_size(timit):
    paths = sorted(timit.rglob("*.WAV"))[:4]
    cache = AudioCache(max_bytes=2 * 8000 * 2)
    for path in paths * 2:
        assert np.array_equal(cache.read(path), read_audio(path).samples)
    assert 0 < cache._num_bytes <= 2 * 8000 * 2


def test_fingerprint_tells_data_sets_apart(timit, noises):
    utterances, noise = find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN")
    whole = data_fingerprint(MixtureSource(utterances, noise, [0]))
    assert whole == data_fingerprint(MixtureSource(utterances[::-1], noise, [0]))
    assert whole != data_fingerprint(MixtureSource(utterances, noise, [5]))
    assert whole != data_fingerprint(MixtureSource(utterances, find_noise(noises, "TEST"), [0]))
    assert whole != data_fingerprint(MixtureSource(utterances[1:], noise, [0]))
    assert whole != data_fingerprint(MixtureSource(utterances, noise, [0], snr_range_db=(0, 5)))
    changed = MixtureSource(utterances, noise, [0], augmentation=Augmentation(equalizer_db=3))
    assert whole != data_fingerprint(changed)
