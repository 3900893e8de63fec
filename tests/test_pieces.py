"""Pieces as the data of a run: the stream, shares of devices, pieces of premixed pairs."""

import pickle

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose

from speech.data.corpus import Pair
from speech.data.pairs import PairPieces
from speech.training.distribution import Replicas
from speech.training.pieces import PieceData


def write_pair(folder, name, noisy, clean):
    paths = folder / f"{name}.noisy.wav", folder / f"{name}.clean.wav"
    for path, samples in zip(paths, (noisy, clean), strict=True):
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    return Pair(*paths, noise="birds", speaker="FABC0", snr_db=0.0, name=name)


@pytest.fixture
def pairs(tmp_path, rng):
    """Clean is half of noisy, so that a piece shows which belongs to which."""
    found = []
    for index, length in enumerate((3000, 9000, 20000)):
        noisy = 0.1 * rng.standard_normal(length).astype(np.float32)
        found.append(write_pair(tmp_path, f"utterance{index}", noisy, noisy / 2))
    return found


def pieces(pairs, **settings):
    return PairPieces(pairs, num_samples=8000, batch_size=3, **settings)


def test_pieces_keep_the_scale_of_noisy_to_clean_and_have_a_level_of_their_own(pairs):
    source = pieces(pairs, level_range_dbfs=(-30.0, -20.0))
    noisy, clean = source.batch(2)
    assert noisy.shape == clean.shape == (3, 8000) and noisy.dtype == clean.dtype == np.float32
    assert_allclose(clean, noisy / 2, rtol=1e-6, atol=1e-8)
    levels_dbfs = 10 * np.log10(np.mean(np.square(noisy, dtype=float), axis=1))
    assert ((-30.01 < levels_dbfs) & (levels_dbfs < -19.99)).all() and np.ptp(levels_dbfs) > 0.1
    assert (noisy != 0).all()  # short utterances are joined, not filled up with zeros
    for row in range(3):
        assert np.array_equal(source.piece(6 + row)[0], noisy[row])
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.batch(2)[0], noisy)
    assert not np.array_equal(pieces(pairs, seed=1).batch(2)[0], noisy)


def test_a_piece_never_clips(pairs):
    noisy, _ = pieces(pairs, level_range_dbfs=(0.0, 0.0)).piece(0)
    assert np.abs(noisy).max() == pytest.approx(1.0)


def test_pairs_that_do_not_fit_are_left_out_and_named(pairs, tmp_path, rng, caplog):
    bad = write_pair(tmp_path, "bad", rng.standard_normal(900) * 0.1, np.zeros(800))
    source = pieces([*pairs, bad])
    for position in range(8):
        assert np.isfinite(source.piece(position)[0]).all()
    assert sum("must be aligned" in record.message for record in caplog.records) == 1
    with pytest.raises(ValueError, match="no usable pair in 50 draws.*bad.clean.wav"):
        pieces([bad]).piece(0)
    with pytest.raises(ValueError, match="no noisy/clean pairs"):
        pieces([])


def test_silence_stays_silence(tmp_path):
    noisy, clean = pieces([write_pair(tmp_path, "silence", np.zeros(100), np.zeros(100))]).piece(0)
    assert not noisy.any() and not clean.any()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_stream_is_that_of_the_batches_from_any_place(pairs, workers):
    data = PieceData(pieces(pairs), num_items=5, workers=workers)
    assert len(data) == 2 and data.num_items == 6  # whole batches
    expected = [data.at_epoch(epoch).batch(index) for epoch in range(2) for index in range(2)]
    stream = data.at_epoch(0).stream(1)
    for batch in expected[1:]:
        found = next(stream)
        assert np.array_equal(found.noisy, batch.noisy)
        assert np.array_equal(found.clean, batch.clean)
        assert found.noisy.shape == (3, 8000, 1) and list(found.lengths) == [8000] * 3
    stream.close()
    with pytest.raises(IndexError):
        data.batch(2)


def test_every_device_gets_its_rows_and_no_others_are_mixed(pairs):
    source = pieces(pairs)
    made = []
    piece = source.piece
    source.piece = lambda position: (made.append(position), piece(position))[1]
    second = Replicas(None, ["CPU:0"] * 2, None, 3)
    second.first, second.total = 1, 3  # behind a machine of one device
    stream = PieceData(source, workers=0).stream(4, second)
    share = next(stream)
    stream.close()
    assert share.num_items == 3 and [len(part.noisy) for part in share.batches] == [1, 1]
    for row, part in zip((1, 2), share.batches, strict=True):
        assert np.array_equal(part.noisy[0, :, 0], piece(12 + row)[0])
    assert 12 not in made and {13, 14} <= set(made)


def test_kept_batches_are_made_once(pairs):
    source = pieces(pairs)
    data = PieceData(source, num_items=3, workers=0, keep=True)
    batch = data.batch(0)
    source.batch = None
    assert data.batch(0) is batch
