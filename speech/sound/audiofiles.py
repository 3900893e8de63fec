"""Trees of sound files in, trees out: what a file becomes keeps its rate, channels, length, format.

A command that makes one file of another reads it with `speech.sound.audio.read_multichannel`, takes
its channels at 16 kHz (`at_16k`), puts each result back (`put_channel`) and writes (`write_like`);
`plan_outputs` says beforehand which file goes where. What comes block by block is written by
`write_stream`. Where an integer format would clip, all channels are turned down by one factor,
which is said.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.base.lazy import soundfile
from speech.sound.audio import (
    FORMATS,
    SAMPLE_RATE_HZ,
    Audio,
    AudioError,
    AudioReader,
    find_audio,
    fit_length,
    resample,
    write_audio,
    write_blocks,
)

_logger = logging.getLogger("speech")

#: Sample formats that never clip.
_UNBOUNDED = ("FLOAT", "DOUBLE")

_WAITING_SAMPLES = 1 << 16


def plan_outputs(inputs: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Returns (source, target) for files and folders; folders keep their tree below ``out``.

    Raises:
        ValueError: An input is missing, two would have one target, or one would be overwritten.
    """
    jobs: list[tuple[Path, Path]] = []
    one_file = len(inputs) == 1 and inputs[0].is_file()
    to_file = one_file and out.suffix.lower() in FORMATS
    if one_file and out.suffix and not to_file and not out.is_dir():
        raise ValueError(f"{out}: cannot write {out.suffix!r}; use one of {', '.join(FORMATS)}")
    for item in inputs:
        if item.is_dir() and out.resolve().is_relative_to(item.resolve()):
            raise ValueError(f"{out}: lies inside the input folder {item}; choose another -o")
    for item in inputs:
        if item.is_dir():
            # With several folders each keeps its own name.
            base = out if len(inputs) == 1 else out / item.resolve().name
            paths = [path.relative_to(item) for path in find_audio(item, unreadable=True)]
            jobs += [(item / path, base / name) for path, name in _names(paths).items()]
        elif item.exists():
            jobs.append((item, out if to_file and not out.is_dir() else out / _writable(item.name)))
        else:
            raise ValueError(f"{item}: no such file or folder")
    targets: dict[Path, Path] = {}
    for source, target in jobs:
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {source} would both be written to {target}; "
                "enhance them into different folders"
            )
        targets[target] = source
    sources = {source.resolve() for source, _ in jobs}
    for source, target in jobs:
        if target.resolve() in sources:
            raise ValueError(f"{source}: would be overwritten by {target}; choose another -o")
    return jobs


def _names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Returns the name to write for each of a tree: of x.wav and x.mp3, that of x.mp3.wav too."""
    names = {path: path for path in paths if _writable(path) == path}
    taken = set(names)
    for path in paths:
        if path not in names:
            name = _writable(path)
            names[path] = path.with_name(f"{path.name}.wav") if name in taken else name
            taken.add(names[path])
    return {path: names[path] for path in paths}


def _writable(path: Path | str) -> Path:
    """Returns the name to write: endings that can only be read become .wav."""
    path = Path(path)
    keep = path.suffix.lower() in FORMATS and FORMATS[path.suffix.lower()] != "NIST"
    return path if keep else path.with_suffix(".wav")


def writable_subtype(target: Path, wanted: str) -> str:
    """Returns a sample format for ``target``: ``wanted``, or its default if it can't hold that."""
    audio_format = FORMATS.get(target.suffix.lower(), "WAV")
    # Of the compressed kinds only Vorbis is written by everything that reads it.
    plain = wanted.startswith("PCM_") or wanted in ("FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS")
    if plain and soundfile.check_format(audio_format, wanted):
        return wanted
    return soundfile.default_subtype(audio_format)


def level_for(
    subtype: str, highest: float, row: dict[str, Any], peak: float | None = None
) -> np.float32:
    """Returns the factor for all channels of a file: their balance stays.

    Args:
        subtype: libsndfile's name of the sample format.
        highest: max |x| of the samples.
        row: Gets ``turned_down_db`` where ``peak`` is None and the format would clip.
        peak: max |x| to give; None to only keep it within full scale.
    """
    if peak is not None:
        return gain_to_peak(peak, highest)
    if subtype in _UNBOUNDED or highest <= 1.0:
        return np.float32(1.0)
    row["turned_down_db"] = round(20 * math.log10(highest), 3)
    return np.float32((1 - 1e-6) / highest)


def say_turned_down(rows: Sequence[dict[str, Any]]) -> None:
    """Announces which files `level_for` has turned down, and which were far too loud."""
    for row in rows:
        if "over_full_scale_db" in row:
            _logger.warning(
                "%s: its samples reach %.0f dB above full scale, far from all that the network was "
                "trained on; scale the file to at most 1 first",
                row["input"], row["over_full_scale_db"],
            )  # fmt: skip
        if "turned_down_db" in row:
            _logger.warning(
                "%s: turned down by %.1f dB, its format would have clipped",
                row["output"], row["turned_down_db"],
            )  # fmt: skip


def peak_of(signal: np.ndarray) -> float:
    """Returns max |x| without a copy of the signal."""
    return float(max(signal.max(), -signal.min(), 0.0)) if len(signal) else 0.0


def gain_to_peak(wanted: float, highest: float) -> np.float32:
    """Returns the factor from one peak to another; 1 for silence and what is as good as silence."""
    return np.float32(wanted / highest if highest > 1e-20 else 1.0)


def file_row(source: Path, target: Path, rate_hz: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns what a report says of each file; ``shape`` is [num_samples, num_channels]."""
    return {
        "input": str(source),
        "output": str(target),
        "channels": shape[1],
        "audio_seconds": shape[0] / rate_hz,
    }


def too_short(source: Path) -> AudioError:
    """Returns the error for a file so short that resampling leaves no sample."""
    return AudioError(f"{source}: too short, nothing is left at {SAMPLE_RATE_HZ} Hz")


def at_16k(audio: Audio, channel: int) -> np.ndarray:
    """Returns one channel of a file at 16 kHz: float32 [num_samples].

    Args:
        audio: From `speech.sound.audio.read_multichannel`.
        channel: Which one, from 0.

    Raises:
        AudioError: Nothing is left of it.
    """
    column = np.ascontiguousarray(audio.samples[:, channel])
    samples = resample(column, audio.source_rate_hz, SAMPLE_RATE_HZ)
    if not len(samples):
        raise too_short(audio.path)
    return samples


def put_channel(audio: Audio, channel: int, signal: np.ndarray) -> np.ndarray:
    """Puts a signal in the place of a channel, at the rate of the file and as long as it was.

    Args:
        audio: As for `at_16k`; its samples are overwritten, as long files are large.
        channel: Which one, from 0.
        signal: float32 [num_samples] at 16 kHz.

    Returns:
        The channel in its place, a view.
    """
    samples = resample(signal, SAMPLE_RATE_HZ, audio.source_rate_hz)
    audio.samples[:, channel] = fit_length(samples, len(audio.samples))
    return audio.samples[:, channel]


def write_like(target: Path, audio: Audio, row: dict[str, Any], peak: float | None = None) -> None:
    """Writes samples in the sample format that their file had; they get one gain, in place.

    Args:
        target: The file to write.
        audio: What was read, its samples overwritten.
        row: As for `level_for`.
        peak: max |x| to give; None to only keep it within full scale.
    """
    subtype = writable_subtype(target, audio.subtype)
    samples = audio.samples
    samples *= level_for(subtype, peak_of(samples), row, peak)
    write_audio(target, samples, audio.source_rate_hz, subtype)


def write_stream(
    target: Path,
    blocks: Iterator[np.ndarray],
    reader: AudioReader,
    row: dict[str, Any],
    peak: float | None = None,
) -> None:
    """Writes blocks in the sample format of the file that they are made of, as long as it is.

    Args:
        target: The file to write.
        blocks: float32 [any number, num_channels] at the rate of the file.
        reader: The file.
        row: As for `level_for`.
        peak: max |x| to give; None to only keep it within full scale.
    """
    subtype = writable_subtype(target, reader.subtype)
    blocks = _fitted(blocks, reader.num_samples)
    if peak is not None or subtype not in _UNBOUNDED:
        blocks = _levelled(blocks, target.parent, row, subtype, peak)
    write_blocks(target, blocks, reader.num_channels, reader.sample_rate_hz, subtype)


def _fitted(blocks: Iterator[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    """Cuts blocks off, or adds one, so that they have ``num_samples`` in all.

    Rounding in two resamplings may differ by a sample.
    """
    left, last = num_samples, None
    for last in blocks:
        yield last[:left]
        left -= min(len(last), left)
    if left and last is not None:
        yield fit_length(last[:0], left)


def _levelled(
    blocks: Iterator[np.ndarray],
    folder: Path,
    row: dict[str, Any],
    subtype: str,
    peak: float | None,
) -> Iterator[np.ndarray]:
    """Yields blocks times one factor, which is known once all are there; they wait in a file.

    Args:
        blocks: float32 [any number, num_channels].
        folder: Where there is room for a file.
        row: As for `level_for`.
        subtype: Of the file.
        peak: max |x| to give; None to only keep it within full scale.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        highest = 0.0
        for block in blocks:
            highest = max(highest, peak_of(block))
            file.write(np.ascontiguousarray(block).data)
        gain = level_for(subtype, highest, row, peak)
        file.seek(0)
        num_channels = row["channels"]
        while data := file.read(4 * num_channels * _WAITING_SAMPLES):
            yield np.frombuffer(data, np.float32).reshape(-1, num_channels) * gain
