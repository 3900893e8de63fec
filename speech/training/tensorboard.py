"""Writes the course of a training for TensorBoard: errors, learning rate, fixed test clips.

Event files are written by the package ``tensorboard`` itself, so any Keras backend will do. Where a
run is taken up, the epochs that it adds go into a further file of the same folder; what was trained
before logging was switched on is written first.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech.base import lazy
from speech.base.lazy import soundfile
from speech.data.corpus import Pair
from speech.net.enhancer import Enhancer
from speech.sound.audio import SAMPLE_RATE_HZ, read_audio
from speech.sound.pictures import level_png
from speech.sound.stft import DEFAULT, magnitudes, stft

if TYPE_CHECKING:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer import event_file_writer
else:
    event_pb2 = lazy.module("tensorboard.compat.proto.event_pb2")
    summary_pb2 = lazy.module("tensorboard.compat.proto.summary_pb2")
    event_file_writer = lazy.module("tensorboard.summary.writer.event_file_writer")

#: How many test clips, and after how many epochs they are heard again.
NUM_CLIPS = 3
CLIP_EPOCHS = 5

_RANGE_DB = 70.0
_GAP_BANDS = 4


def require_tensorboard(folder: Path | None = None) -> None:
    """Checks that the package is there, and that its files can be.

    Args:
        folder: Where they go; made if it is missing. None: not looked at.

    Raises:
        ValueError: The package is not there.
        OSError: The folder can't be made or written to.
    """
    try:
        lazy.load(event_file_writer)
    except ImportError:
        raise ValueError(
            "TensorBoard is not installed; run: pip install tensorboard, or leave --tensorboard out"
        ) from None
    if folder is not None:  # TensorFlow's errors are no OSError
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


class TensorBoardLog:
    """The log of one run; nothing is written before the first epoch has ended.

    Args:
        folder: Where event files go.
        pairs: Test files; some of them, always the same, can be heard.
        model: The model file as it stands after each epoch.
        num_epochs: Of the whole run: after the last one clips are heard again.

    Raises:
        ValueError: The package is missing.
    """

    def __init__(self, folder: Path, pairs: Sequence[Pair], model: Path, num_epochs: int) -> None:
        require_tensorboard()
        self._folder = Path(folder)
        self._pairs = fixed_clips(pairs)
        self._model = Path(model)
        self._num_epochs = num_epochs
        self._writer: Any = None

    def epoch(self, history: Sequence[dict[str, float]]) -> None:
        """Writes the last epoch; after every `CLIP_EPOCHS`, and at the end, the clips too.

        Args:
            history: Rows of all epochs so far, at least one.
        """
        self._open(history[:-1])
        row = history[-1]
        self._scalars(row)
        number = int(row["epoch"])
        if number == self._num_epochs or number % CLIP_EPOCHS == 0:
            self._clips(number)
        self._writer.flush()

    def close(self, history: Sequence[dict[str, float]]) -> None:
        """Closes the file; writes the history first if no epoch was left to train.

        Args:
            history: Rows of all epochs.
        """
        self._open(history)
        self._writer.close()

    def _open(self, history: Sequence[dict[str, float]]) -> None:
        """Starts a file, in a new folder with the epochs that are done and the clips as given."""
        if self._writer is not None:
            return
        is_new = not any(self._folder.glob("*tfevents*"))
        self._writer = event_file_writer.EventFileWriter(str(self._folder))
        if is_new:
            for row in history:
                self._scalars(row)
            for pair in self._pairs:
                for name, path in (("noisy", pair.noisy_path), ("clean", pair.clean_path)):
                    self._audio(pair, name, _read(path), 0)

    def _scalars(self, row: dict[str, float]) -> None:
        values = [
            summary_pb2.Summary.Value(tag=_tag(name), simple_value=float(value))
            for name, value in row.items()
            if name != "epoch"
        ]
        self._add(values, int(row["epoch"]))

    def _clips(self, number: int) -> None:
        enhancer = Enhancer(self._model)
        for pair in self._pairs:
            noisy, clean = _read(pair.noisy_path), _read(pair.clean_path)
            enhanced = enhancer.enhance(noisy)
            self._audio(pair, "enhanced", enhanced, number)
            content, height, width = _stacked([noisy, enhanced, clean])
            image = summary_pb2.Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=content
            )
            tag = f"clips/{_name(pair)}/noisy, enhanced, clean"
            self._add([summary_pb2.Summary.Value(tag=tag, image=image)], number)

    def _audio(self, pair: Pair, what: str, signal: np.ndarray, number: int) -> None:
        stream = io.BytesIO()
        highest = max(float(np.max(np.abs(signal), initial=0.0)), 1.0)
        soundfile.write(stream, signal / highest, SAMPLE_RATE_HZ, "PCM_16", format="WAV")
        audio = summary_pb2.Summary.Audio(
            sample_rate=SAMPLE_RATE_HZ,
            num_channels=1,
            length_frames=len(signal),
            encoded_audio_string=stream.getvalue(),
            content_type="audio/wav",
        )
        self._add(
            [summary_pb2.Summary.Value(tag=f"clips/{_name(pair)}/{what}", audio=audio)], number
        )

    def _add(self, values: Sequence[Any], number: int) -> None:
        event = event_pb2.Event(
            wall_time=time.time(), step=number, summary=summary_pb2.Summary(value=values)
        )
        self._writer.add_event(event)


def fixed_clips(pairs: Sequence[Pair]) -> list[Pair]:
    """Returns a few test files, spread over all; the same ones for the same files."""
    count = min(NUM_CLIPS, len(pairs))
    return [pairs[place * len(pairs) // count] for place in range(count)]


def _tag(name: str) -> str:
    """Returns the name on the board: losses side by side, the rest under its own."""
    is_error = name.endswith("_loss") or name.startswith("validation_")
    return f"error/{name}" if is_error else name


def _name(pair: Pair) -> str:
    return pair.relative_path.with_suffix("").as_posix().replace("/", "_")


def _read(path: Path) -> np.ndarray:
    return read_audio(path).samples


def _stacked(signals: Sequence[np.ndarray]) -> tuple[bytes, int, int]:
    """Returns (PNG, height, width) of spectrograms above each other, the first one on top.

    All are scaled to the same peak: a network's output has no level of its own.
    """
    length = min(map(len, signals))
    bands: list[np.ndarray] = []
    for signal in reversed(signals):
        scaled = signal[:length] / max(float(np.max(np.abs(signal), initial=0.0)), 1e-9)
        levels = 20 * np.log10(np.maximum(magnitudes(stft(scaled, DEFAULT)), 1e-9))
        bands += [levels, np.full((len(levels), _GAP_BANDS), np.inf)]
    joined = np.concatenate(bands[:-1], axis=1)
    top_db = float(joined[np.isfinite(joined)].max())
    return level_png(joined, top_db, _RANGE_DB), joined.shape[1], joined.shape[0]
