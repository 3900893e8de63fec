"""Batches: reproducible from seed and position, shuffled anew, padded without being counted."""

import numpy as np
import pytest
import soundfile

from speech.audio import read_audio
from speech.corpus import Pair, find_noise, find_speech
from speech.mixing import measure_snr_db
from speech.pipeline import (
    MixtureSource,
    PairSource,
    TrainingData,
    _AudioCache,
    collate,
    data_fingerprint,
    prefetched,
)


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
    assert [data[i][1].tobytes() for i in range(4)] == whole


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


def test_the_cache_stays_within_its_size(timit):
    paths = sorted(timit.rglob("*.WAV"))[:4]
    cache = _AudioCache(max_bytes=2 * 8000 * 4)
    for path in paths * 2:
        assert np.array_equal(cache.read(path), read_audio(path).samples)
    assert cache._num_bytes <= 2 * 8000 * 4


def test_fingerprint_tells_data_sets_apart(timit, noises):
    utterances, noise = find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN")
    whole = data_fingerprint(MixtureSource(utterances, noise, [0]))
    assert whole == data_fingerprint(MixtureSource(utterances[::-1], noise, [0]))
    assert whole != data_fingerprint(MixtureSource(utterances, noise, [5]))
    assert whole != data_fingerprint(MixtureSource(utterances, find_noise(noises, "TEST"), [0]))
    assert whole != data_fingerprint(MixtureSource(utterances[1:], noise, [0]))
