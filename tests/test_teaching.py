"""Networks that start or learn from others: widened ones, and those that have a teacher."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.data import corpus
from speech.data.mixtures import PieceSource
from speech.modelfile.icse import write_compact
from speech.net.mask_enhancer import MaskEnhancer
from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency
from speech.net.widening import widened
from speech.training.pieces import PieceData
from speech.training.teaching import TaughtPieces
from tests import builders
from tests.builders import TINY, shaken_model

WIDE = dataclasses.replace(TINY, num_channels=13, num_bands=8)


@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_a_widened_network_computes_the_same(rng, normalization):
    narrow = shaken_model(
        build_time_frequency(dataclasses.replace(TINY, normalization=normalization))
    )
    wide = widened(narrow, WIDE)
    values = rng.standard_normal((2, 9, 256, 3)).astype(np.float32)
    expected = np.asarray(narrow(values))
    assert wide.get_layer("encoder2").filters == 13
    assert_allclose(np.asarray(wide(values)), expected, atol=1e-4 * np.abs(expected).max())


def test_copies_of_a_channel_are_told_apart():
    wide = widened(shaken_model(build_time_frequency(TINY)), WIDE)
    kernel = np.asarray(wide.get_layer("encoder2").kernel)[0]
    for first, second in ((0, 5), (0, 10), (2, 12)):
        assert np.abs(kernel[:, first] - kernel[:, second]).min() > 0, "what reads them"
        assert np.abs(kernel[..., first] - kernel[..., second]).max() > 0, "what they read"


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(TimeFrequencyConfig(4, 6, (1, 3)), id="fewer-channels"),
        pytest.param(TimeFrequencyConfig(9, 5, (1, 3)), id="fewer-bands"),
        pytest.param(TimeFrequencyConfig(9, 6, (1, 3, 1)), id="more-blocks"),
    ],
)
def test_only_channels_and_bands_can_be_added(form):
    with pytest.raises(ValueError, match="widen"):
        widened(build_time_frequency(TINY), form)


@pytest.fixture
def source():
    speech, noise = corpus.bundled_speech("TRAIN"), corpus.bundled_noise("TRAIN")
    return PieceSource(speech[:6], noise[:2], num_samples=8000, batch_size=3)


@pytest.fixture
def teacher(tmp_path):
    return builders.write_mask_network(tmp_path / "teacher.icse")


def test_targets_are_in_part_what_the_teacher_says(source, teacher):
    taught = TaughtPieces(source, teacher.path, 0.25)
    (noisy, clean), (same, target) = source.batch(1), taught.batch(1)
    assert np.array_equal(same, noisy) and target.dtype == np.float32
    answers = [MaskEnhancer(teacher)(row) for row in noisy]
    assert_allclose(target, 0.75 * clean + 0.25 * np.stack(answers), atol=1e-6)
    assert np.array_equal(taught.piece(4)[1], target[1])
    assert np.array_equal(pickle.loads(pickle.dumps(taught)).batch(1)[1], target)


def test_another_teacher_or_share_is_another_data_set(source, teacher, tmp_path):
    other = write_compact(tmp_path / "other.icse", builders.mask_layers(seed=3), TINY.meta())
    found = {
        tuple(one.description())
        for one in (
            source,
            TaughtPieces(source, teacher.path, 0.5),
            TaughtPieces(source, teacher.path, 0.6),
            TaughtPieces(source, other or tmp_path / "other.icse", 0.5),
        )
    }
    assert len(found) == 4


def test_data_with_another_seed_leave_the_first_as_they_are(source, teacher):
    data = PieceData(TaughtPieces(source, teacher.path))
    before = data.batch(0)
    other = data.with_seed(7).batch(0)
    assert not np.array_equal(other.noisy, before.noisy)
    assert np.array_equal(data.batch(0).clean, before.clean)
    assert copy.copy(data.source).seed == source.seed == 0


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(source, teacher, share):
    with pytest.raises(ValueError, match="teacher_share"):
        TaughtPieces(source, teacher.path, share)


def test_a_teacher_of_another_kind_is_refused(source):
    with pytest.raises(ValueError, match="choose another --teacher"):
        TaughtPieces(source, "models/fcn_tiny.icse")
