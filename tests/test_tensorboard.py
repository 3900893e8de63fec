"""Logging for TensorBoard: the event files are read back by TensorBoard itself."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import timit_fcn_mse
from speech.data import corpus
from speech.sound.audio import read_audio, write_audio
from speech.training import tensorboard
from tests.builders import make_speech

ROOT = Path(__file__).parent.parent
TINY = ["--gpu", "-1", "--snr", "0", "--num-test", "1", "--num-train", "2", "--crop-seconds",
        "0.2", "--jobs", "1", "--filters", "4"]  # fmt: skip


@pytest.fixture
def loaded():
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def load(folder):
        found = EventAccumulator(str(folder), {"scalars": 0, "audio": 0, "images": 0})
        return found.Reload()

    return load


@pytest.fixture
def pairs(tmp_path, rng):
    result = []
    for place in range(7):
        paths = [tmp_path / kind / f"u{place}.wav" for kind in ("noisy", "clean")]
        for path in paths:
            write_audio(path, make_speech(rng, 4000 + place))
        result.append(corpus.Pair(*paths, "birds", "S", 5.0, f"u{place}"))
    return result


def row(number):
    return {"epoch": number, "training_loss": 1 / number, "validation_loss": 2 / number,
            "learning_rate": 1e-3 / number, "seconds": 0.5}  # fmt: skip


class Halved:
    """In place of a model: every output is half of its input."""

    def __init__(self, path):
        assert path.name == "last.h5"

    def enhance(self, noisy):
        return 0.5 * noisy


def test_what_is_written_is_read_back(loaded, pairs, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(tensorboard, "Enhancer", Halved)
    folder = tmp_path / "board"
    log = tensorboard.TensorBoardLog(folder, pairs, tmp_path / "last.h5", num_epochs=6)
    history = []
    assert not folder.exists()
    for number in range(1, 7):
        history.append(row(number))
        log.epoch(history)
    log.close(history)
    found = loaded(folder)
    assert set(found.Tags()["scalars"]) == {
        "error/training_loss", "error/validation_loss", "learning_rate", "seconds",
    }  # fmt: skip
    events = found.Scalars("error/validation_loss")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([e.value for e in events], [2 / n for n in range(1, 7)], rtol=1e-6)
    names = [f"clips/birds_S_5db_u{place}" for place in (0, 2, 4)]
    assert set(found.Tags()["audio"]) == {
        f"{name}/{what}" for name in names for what in ("noisy", "clean", "enhanced")
    }
    assert [event.step for event in found.Audio(f"{names[0]}/noisy")] == [0]
    heard = found.Audio(f"{names[1]}/enhanced")
    assert [event.step for event in heard] == [5, 6]
    signal, rate_hz = soundfile.read(io.BytesIO(heard[0].encoded_audio_string))
    assert rate_hz == 16000
    noisy = read_audio(pairs[2].noisy_path).samples
    np.testing.assert_allclose(signal, 0.5 * noisy, rtol=0, atol=1 / 32768)
    (first, last) = found.Images(f"{names[0]}/noisy, enhanced, clean")
    assert (first.step, last.step) == (5, 6)
    image = Image.open(io.BytesIO(first.encoded_image_string))
    assert image.size == (first.width, first.height) and first.height == 3 * 513 + 2 * 4


def test_a_run_that_is_taken_up_adds_its_epochs_only(loaded, pairs, tmp_path):
    folder, history = tmp_path / "board", [row(1), row(2)]
    first = tensorboard.TensorBoardLog(folder, pairs, tmp_path / "last.h5", num_epochs=9)
    first.epoch(history)  # switched on in epoch 2: what was before is written too
    first.close(history)
    second = tensorboard.TensorBoardLog(folder, pairs, tmp_path / "last.h5", num_epochs=9)
    second.epoch([*history, row(3)])
    second.close([*history, row(3)])
    found = loaded(folder)
    assert [event.step for event in found.Scalars("learning_rate")] == [1, 2, 3]
    assert len(found.Audio("clips/birds_S_5db_u0/noisy")) == 1


def test_the_same_files_give_the_same_clips(pairs):
    assert tensorboard.fixed_clips(pairs[:2]) == pairs[:2]
    assert tensorboard.fixed_clips(pairs) == [pairs[0], pairs[2], pairs[4]]
    assert tensorboard.fixed_clips([]) == []


def test_silence_can_be_drawn():
    content, height, width = tensorboard._stacked([np.zeros(3000)] * 3)
    assert content.startswith(b"\x89PNG") and height > width > 0


def test_the_command_writes_a_board(loaded, timit, noises, tmp_path, capsys):
    out = tmp_path / "out"
    data = ["--timit", str(timit), "--noise", str(noises), "--out", str(out), *TINY]
    assert timit_fcn_mse.main([*data, "--epochs", "1", "--tensorboard"]) == 0
    assert str(out / "tensorboard") in capsys.readouterr().out
    found = loaded(out / "tensorboard")
    assert [e.step for e in found.Scalars("error/training_loss")] == [1]
    assert len([tag for tag in found.Tags()["audio"] if tag.endswith("/enhanced")]) == 2
    # A finished run that is asked again into another folder: its history is there.
    board = tmp_path / "other"
    assert timit_fcn_mse.main([*data, "--epochs", "1", "--tensorboard", str(board)]) == 0
    assert [e.step for e in loaded(board).Scalars("error/training_loss")] == [1]


def test_a_missing_package_is_said_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    out = tmp_path / "out"
    assert timit_fcn_mse.main(["--gpu", "-1", "--out", str(out), "--tensorboard"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "pip install tensorboard" in error and error.startswith("error: ")
    assert not (out / "test").exists()


def test_a_folder_that_cannot_be_is_said_at_once(capsys, tmp_path):
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "out"
    for name in ("file", "file/board"):
        words = ["--gpu", "-1", "--out", str(out), "--tensorboard", str(tmp_path / name)]
        assert timit_fcn_mse.main(words) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and "a file stands where a folder is needed" in error
        assert not (out / "test").exists()


def test_wrong_usage():
    with pytest.raises(SystemExit) as error:
        timit_fcn_mse.main(["--eval-only", "--tensorboard"])
    assert error.value.code == 2


def test_nothing_is_imported_unless_asked_for():
    code = (
        "import sys, timit_fcn_mse, speech.train, speech.training.run, speech.enhance\n"
        "assert not [m for m in sys.modules if m.startswith(('tensorboard', 'speech.tensorb'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
