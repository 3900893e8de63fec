"""Model files: what is accepted, and one exam of hostile files for everything that is not."""

import dataclasses
import time

import h5py
import numpy as np
import pytest

from speech.modelfile.h5 import write_model_file
from speech.modelfile.read import read_model_file
from speech.modelfile.rules import LAYER_RULES, LayerRule
from speech.modelfile.spec import LayerSpec, ModelFileError
from tests.builders import small_layers
from tests.model_files import HOSTILE


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.h5"
    write_model_file(path, small_layers(), {"kind": "waveform", "sample_rate_hz": 16_000})
    return path


def test_round_trip_is_exact(good):
    file = read_model_file(str(good))
    assert file.meta == {"kind": "waveform", "sample_rate_hz": 16_000}
    assert len(file.sha256) == 64
    assert file.path == good
    for read, written in zip(file.layers, small_layers(), strict=True):
        assert (read.class_name, read.name, read.config) == (
            written.class_name,
            written.name,
            written.config,
        )
        assert read.weights.keys() == written.weights.keys()
        for key, array in written.weights.items():
            assert read.weights[key].dtype == np.float32
            np.testing.assert_array_equal(read.weights[key], array)
    assert file.num_parameters == 5 * 4 + 4 + 2 * 4 + 4 * 4 + 8


def test_meta_may_be_absent_and_fills_a_mebibyte(good):
    with h5py.File(good, "a") as file:
        del file.attrs["speech_meta"]
    assert read_model_file(good).meta == {}
    meta = {"note": "x" * 1_000_000, "training": {"epochs": 60}}
    write_model_file(good, small_layers(), meta)
    assert read_model_file(good).meta == meta


def test_a_rule_added_in_one_place_admits_a_custom_layer(good, monkeypatch):
    layers = list(small_layers())
    layers[3] = LayerSpec("icse>OtherReLU", "act1", {})
    with pytest.raises(ModelFileError, match="layer 'icse>OtherReLU' is not known"):
        write_model_file(good, layers, {})
    monkeypatch.setitem(LAYER_RULES, "icse>OtherReLU", LayerRule())
    write_model_file(good, layers, {})
    assert read_model_file(good).layers[3].class_name == "icse>OtherReLU"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_line(name, good):
    spoil, match = HOSTILE[name]
    spoil(good)
    started = time.monotonic()
    with pytest.raises(ModelFileError, match=match) as refusal:
        read_model_file(good)
    assert time.monotonic() - started < 2
    message = str(refusal.value)
    assert message.startswith(f"{good}: ")
    assert message.isprintable()
    assert len(message) < 600 + len(str(good))


def test_every_truncation_is_refused(good):
    data = good.read_bytes()
    for length in range(0, len(data), 97):
        good.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match="not a readable HDF5 file"):
            read_model_file(good)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model file"):
        read_model_file(tmp_path / "absent.h5")


@pytest.mark.parametrize(
    ("change", "meta", "match"),
    [
        ({"weights": {}}, {}, r"has the weights \[\], expected \['bias', 'kernel'\]"),
        ({"config": {"filters": 4}}, {}, "lacks 'kernel_size'"),
        ({}, {"loss": float("nan")}, "meta data is not plain JSON"),
        ({}, {"path": object()}, "meta data is not plain JSON"),
        ({}, {"note": "x" * (1 << 20)}, "meta data is 1,048,"),
    ],
)
def test_writer_refuses_what_the_reader_would(good, change, meta, match):
    before = good.read_bytes()
    layers = list(small_layers())
    layers[1] = dataclasses.replace(layers[1], **change)
    with pytest.raises(ModelFileError, match=match):
        write_model_file(good, layers, meta)
    assert good.read_bytes() == before


def test_writer_wants_the_ending_keras_wants(tmp_path):
    with pytest.raises(ModelFileError, match="ends in .h5"):
        write_model_file(tmp_path / "model.keras", small_layers(), {})


def test_a_failing_write_leaves_the_old_file_whole(good, monkeypatch):
    before = good.read_bytes()

    def fail(self, name, value):
        raise OSError("disk full")

    monkeypatch.setattr(h5py.Group, "__setitem__", fail)
    with pytest.raises(OSError, match="disk full"):
        write_model_file(good, small_layers(), {"new": True})
    monkeypatch.undo()
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]
