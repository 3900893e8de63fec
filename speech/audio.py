"""Audio files: find, read, check, convert and write them.

Conventions: samples are float32 with full scale at +-1 and the time axis first, [num_samples] for
mono and [num_samples, num_channels] otherwise. Rates are in Hz and always whole numbers.

Nothing happens silently: an average over channels or a change of rate is announced on the logger
``speech`` (level INFO), and a file that does not hold what its header promises is an `AudioError`
instead of a shorter signal.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from speech.files import atomic_path, raise_if_full

if TYPE_CHECKING:
    import soundfile

#: The rate of every model of this project, as in both papers.
SAMPLE_RATE_HZ = 16000

#: File endings looked for in folders, and the libsndfile format each is written as.
FORMATS = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".sph": "NIST",
    ".nist": "NIST",
    ".aiff": "AIFF",
    ".aif": "AIFF",
    ".ogg": "OGG",
}

#: Rates outside this range are taken for a damaged header. The lower bound also keeps a lying
#: header from turning a small file into a huge one by resampling.
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 768_000

#: Samples (of all channels together) that a file may decode to: so many at least, and so many a
#: byte. Speech comes to 50 a byte at most; silence can be packed into next to nothing.
MAX_SMALL_VALUES = 1 << 25
MAX_VALUES_A_BYTE = 128

_BLOCK_VALUES = 1 << 20  # samples x channels decoded at once
_BLOCK_FRAMES = 1 << 16  # samples of every channel encoded at once
_MAX_RIFF_CHUNKS = 1000
#: How files start that libsndfile is given: WAV, RF64, Wave64, AIFF, FLAC, Ogg, SPHERE, CAF, AU.
#: Its readers of rarer formats are little tested. MPEG has no start of its own: by name only.
_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b"NIST", b"caff", b".snd")
_MPEG_SUFFIXES = (".mp3", ".mp2")
_PCM = 1  # WAV's tag of plain samples
_VORBIS_MAX_RATE_HZ, _VORBIS_MAX_CHANNELS = 200_000, 255  # beyond them its encoder crashes
_UNKNOWN_SIZE = 0xFFFFFFFF  # what a WAV written to a pipe says of its length

_logger = logging.getLogger("speech")
_announced: set[tuple[int, int, int]] = set()


class AudioError(ValueError):
    """A file that cannot be used as audio. The message names the file, the reason and the fix."""


@dataclass(frozen=True, eq=False)
class Audio:
    """Samples and where they come from.

    Attributes:
        samples: float32 [num_samples], or [num_samples, num_channels] from `read_multichannel`.
        sample_rate_hz: Rate of ``samples``.
        source_rate_hz: Rate of the file.
        source_channels: Number of channels of the file.
        subtype: libsndfile's name of the file's sample format, such as 'PCM_16' or 'FLOAT'.
        path: The file.
    """

    samples: np.ndarray
    sample_rate_hz: int
    source_rate_hz: int
    source_channels: int
    subtype: str
    path: Path


def read_audio(path: str | os.PathLike, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Audio:
    """Reads a file as one channel at one rate (SPEC 1: 16 kHz mono, channels averaged).

    Args:
        path: WAV, FLAC, uncompressed NIST SPHERE (TIMIT's own ``.WAV``), AIFF, Ogg, Wave64, CAF,
            AU. The format is told by the content, not by the ending; only MP3 needs its own.
        sample_rate_hz: Rate to return; other rates are resampled with soxr at quality VHQ. A
            signal of n samples comes out round(n * sample_rate_hz / source_rate_hz) long.

    Returns:
        An `Audio` whose samples have the shape [num_samples].

    Raises:
        AudioError: The file is missing, empty, truncated, not audio, or holds no sample, a NaN or
            an infinity, or far more samples than its size makes likely.
    """
    audio = _decode(Path(path), downmix=True)
    situation = (audio.source_rate_hz, audio.source_channels, sample_rate_hz)
    if situation != (sample_rate_hz, 1, sample_rate_hz) and situation not in _announced:
        _announced.add(situation)
        what = describe_conversion(audio.source_rate_hz, audio.source_channels, sample_rate_hz)
        _logger.info("%s: %s (said once for all such files)", path, what)
    if audio.source_rate_hz == sample_rate_hz:
        return audio
    _check_amount(audio.path, len(audio.samples) * sample_rate_hz // audio.source_rate_hz)
    samples = resample(audio.samples, audio.source_rate_hz, sample_rate_hz)
    if not samples.size:
        raise AudioError(f"{path}: too short, nothing is left at {sample_rate_hz} Hz; remove it")
    return replace(audio, samples=samples, sample_rate_hz=sample_rate_hz)


def read_multichannel(path: str | os.PathLike) -> Audio:
    """Reads a file as it is: every channel, at its own rate.

    Returns:
        An `Audio` whose samples have the shape [num_samples, num_channels].

    Raises:
        AudioError: As `read_audio`.
    """
    return _decode(Path(path), downmix=False)


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Resamples along the first axis with soxr at quality VHQ; no copy when the rates agree.

    Args:
        samples: float32 or float64 [num_samples] or [num_samples, num_channels].
        from_hz: Rate of ``samples``.
        to_hz: Rate to return.

    Returns:
        The same dtype, round(num_samples * to_hz / from_hz) samples long, without delay.
    """
    if from_hz == to_hz:
        return samples
    import soxr

    return soxr.resample(samples, from_hz, to_hz, quality="VHQ")


class StreamResampler:
    """Resamples a signal that comes block by block, as `resample` does the whole.

    Args:
        from_hz: Rate of the signal.
        to_hz: Rate to return.
        num_channels: Of the signal.
    """

    def __init__(self, from_hz: int, to_hz: int, num_channels: int) -> None:
        self._rates_hz = from_hz, to_hz
        self._num_in = self._num_out = 0
        self._stream = None
        if from_hz != to_hz:
            import soxr

            self._stream = soxr.ResampleStream(
                from_hz, to_hz, num_channels, dtype="float32", quality="VHQ"
            )
        self._num_channels = num_channels

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Takes the next float32 [any number, num_channels]; returns what is finished, likewise."""
        if self._stream is None:
            return samples
        found = self._stream.resample_chunk(np.ascontiguousarray(samples))
        self._num_in += len(samples)
        self._num_out += len(found)
        return found

    def finish(self) -> np.ndarray:
        """Ends the signal and returns the rest; `resample` gives as many samples in all."""
        rest = np.zeros((0, self._num_channels), np.float32)
        if self._stream is None:
            return rest
        rest = self._stream.resample_chunk(rest, last=True)
        from_hz, to_hz = self._rates_hz
        left = resampled_length(self._num_in, from_hz, to_hz) - self._num_out
        return fit_length(rest, max(left, 0))


def resampled_length(num_samples: int, from_hz: int, to_hz: int) -> int:
    """Returns the number of samples that `resample` makes of ``num_samples``."""
    return (2 * num_samples * to_hz + from_hz) // (2 * from_hz)


def fit_length(samples: np.ndarray, num_samples: int) -> np.ndarray:
    """Cuts samples, or fills them up with zeros, along the first axis."""
    missing = max(num_samples - len(samples), 0)
    return np.pad(samples[:num_samples], [(0, missing)] + [(0, 0)] * (samples.ndim - 1))


def describe_conversion(
    source_rate_hz: int, source_channels: int, sample_rate_hz: int = SAMPLE_RATE_HZ
) -> str:
    """Returns in words what `read_audio` does to such a file; '' when it does nothing."""
    words = []
    if source_channels != 1:
        words.append(f"{source_channels} channels averaged")
    if source_rate_hz != sample_rate_hz:
        words.append(f"{source_rate_hz} Hz resampled to {sample_rate_hz} Hz")
    return ", ".join(words)


def write_audio(
    path: str | os.PathLike,
    samples: np.ndarray,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    subtype: str = "FLOAT",
) -> None:
    """Writes samples to a file, whole or not at all; the same samples give the same bytes.

    Args:
        path: The file; its ending chooses the format (see `FORMATS`).
        samples: float [num_samples] or [num_samples, num_channels]. Integer subtypes clip what
            lies beyond full scale, and say so as a warning.
        sample_rate_hz: Rate of ``samples``.
        subtype: libsndfile's name of the sample format, such as 'FLOAT', 'PCM_16' or 'VORBIS'.

    Raises:
        ValueError: Unknown ending, samples of another kind, a subtype, rate or number of channels
            the format does not have, NaN or infinite samples.
        OSError: The disk is full.
    """
    path, samples = Path(path), np.asarray(samples)
    if samples.dtype.kind != "f" or not samples.ndim:
        raise ValueError(
            f"{path}: samples must be float [num_samples] or [num_samples, num_channels], "
            f"received shape {samples.shape} of {samples.dtype}"
        )
    num_channels = 1 if samples.ndim == 1 else samples.shape[1]
    write_blocks(path, [samples], num_channels, sample_rate_hz, subtype)


def write_blocks(
    path: str | os.PathLike,
    blocks: Iterable[np.ndarray],
    num_channels: int,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    subtype: str = "FLOAT",
) -> None:
    """Writes blocks of samples to a file as `write_audio` does, as they come.

    Args:
        path: The file; its ending chooses the format.
        blocks: float [any number, num_channels], one after the other; if iterating over them
            raises, nothing is written.
        num_channels: Of the file.
        sample_rate_hz: Rate of the samples.
        subtype: libsndfile's name of the sample format.

    Raises:
        ValueError: As `write_audio`.
        OSError: The disk is full.
    """
    import soundfile

    path = Path(path)
    audio_format = FORMATS.get(path.suffix.lower())
    if audio_format is None:
        raise ValueError(f"{path}: cannot write {path.suffix!r}; use one of {', '.join(FORMATS)}")
    if not soundfile.check_format(audio_format, subtype):
        choices = ", ".join(soundfile.available_subtypes(audio_format))
        raise ValueError(f"{path}: {audio_format} has no subtype {subtype!r}; use one of {choices}")
    num_clipped = 0
    refused = (
        f"{path}: cannot be written as {audio_format} ({num_channels} channels, "
        f"{sample_rate_hz} Hz, {subtype}): "
    )
    is_beyond = sample_rate_hz > _VORBIS_MAX_RATE_HZ or num_channels > _VORBIS_MAX_CHANNELS
    if subtype == "VORBIS" and is_beyond:
        raise ValueError(
            f"{refused}it has at most {_VORBIS_MAX_RATE_HZ} Hz and {_VORBIS_MAX_CHANNELS} "
            "channels; write WAV or FLAC"
        )
    with atomic_path(path) as temporary:
        try:
            with soundfile.SoundFile(
                temporary, "w", sample_rate_hz, num_channels, subtype, format=audio_format
            ) as file:
                for block in _in_pieces(blocks):
                    if not np.isfinite(block).all():
                        raise ValueError(
                            f"{path}: not written, the samples hold a NaN or an infinity"
                        )
                    num_clipped += int(np.count_nonzero(np.abs(block) > 1.0))
                    file.write(block)
        except soundfile.SoundFileError as error:
            raise_if_full(temporary, path)
            # A rate or number of channels that the format does not have.
            reason = str(getattr(error, "error_string", error)).strip(" .")
            raise ValueError(refused + reason) from None
        if audio_format == "WAV":
            _clear_time_stamp(temporary)
    if num_clipped and subtype not in ("FLOAT", "DOUBLE"):
        _logger.warning("%s: %d samples beyond full scale were clipped", path, num_clipped)


def _in_pieces(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Cuts blocks: libsndfile's Vorbis encoder crashes on a long signal in one piece."""
    for block in blocks:
        for start in range(0, len(block), _BLOCK_FRAMES):
            yield block[start : start + _BLOCK_FRAMES]


def find_audio(folder: str | os.PathLike) -> list[Path]:
    """Returns the audio files below a folder, sorted by path.

    Endings count in upper and lower case; hidden files and folders (macOS writes ``._x.wav``
    beside ``x.wav``) do not count. Links to folders are followed, each real folder once.

    Raises:
        ValueError: The folder is missing or holds no audio file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise ValueError(f"{folder}: {what}; give the folder that holds the audio files")
    found, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real_parent = os.path.realpath(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if real_parent in visited:
            folders.clear()
            continue
        visited.add(real_parent)
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in FORMATS
        ]
    if not found:
        raise ValueError(f"{folder}: no audio file found; looked for {', '.join(FORMATS)}")
    return sorted(found)


def require_signal(signal: np.ndarray) -> np.ndarray:
    """Returns one channel as float32 or float64 [num_samples]; whole numbers become float32.

    Raises:
        ValueError: It has another shape or type, or holds a NaN or an infinity.
    """
    signal = np.asarray(signal)
    if signal.ndim != 1 or signal.dtype.kind not in "fiu":
        raise ValueError(
            f"signal must be [num_samples] of real numbers, received shape {signal.shape} of "
            f"{signal.dtype}"
        )
    if signal.dtype not in (np.float32, np.float64):
        signal = signal.astype(np.float32)
    if not np.isfinite(signal).all():
        raise ValueError("signal holds a NaN or an infinity; repair it first")
    return signal


def is_silent(samples: np.ndarray) -> bool:
    """Tells whether every sample is exactly zero (or there is none)."""
    return not np.any(samples)


def peak_normalize(samples: np.ndarray) -> np.ndarray:
    """Divides by max |x| (SPEC 1), whatever the shape; a silent signal stays silent.

    The published script divides by zero here.
    """
    return samples.copy() if is_silent(samples) else samples / np.max(np.abs(samples))


@dataclass(frozen=True, eq=False)
class AudioReader:
    """A file that is read block by block.

    Attributes:
        path: The file.
        sample_rate_hz: Its rate.
        num_channels: Its channels.
        num_samples: Samples of each channel, by the header; `blocks` gives so many or raises.
        subtype: libsndfile's name of its sample format.
    """

    path: Path
    sample_rate_hz: int
    num_channels: int
    num_samples: int
    subtype: str
    _file: soundfile.SoundFile

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields float32 [block, num_channels] to the end, once.

        Reading by blocks bounds what is allocated by what is really there.

        Raises:
            AudioError: The file holds no sample, fewer than it says, a NaN or an infinity. Whatever
                came before is not to be used.
        """
        num_read = num_bad = 0
        num_frames = max(1, _BLOCK_VALUES // self.num_channels)
        while True:
            with _decoding(self.path):
                block = self._file.read(num_frames, dtype="float32", always_2d=True)
            if not len(block):
                break
            num_read += len(block)
            num_bad += block.size - int(np.count_nonzero(np.isfinite(block)))
            if not num_bad:  # else the rest is only counted
                yield block
        if not num_read:
            raise AudioError(f"{self.path}: holds no samples; remove it")
        if num_read < self.num_samples:
            raise AudioError(
                f"{self.path}: truncated, {num_read} of {self.num_samples} samples are there; "
                "copy or convert the file again"
            )
        if num_bad:
            raise AudioError(
                f"{self.path}: {num_bad} samples are NaN or infinite; repair or remove the file"
            )


@contextlib.contextmanager
def open_audio(path: str | os.PathLike) -> Iterator[AudioReader]:
    """Opens a file to be read block by block, every channel at its own rate.

    Yields:
        The reader; it can be used inside the block only.

    Raises:
        AudioError: As `read_audio`; what is wrong with samples is found when they are read.
    """
    import soundfile

    path = Path(path)
    with _decoding(path):
        _check_header(path)
        file = soundfile.SoundFile(str(path))
    with file:
        if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
            raise AudioError(
                f"{path}: damaged header, it claims a rate of {file.samplerate} Hz; "
                "convert the file again"
            )
        # No more are decoded than the header says: soundfile stops there.
        # Every reader may resample; at a low rate that makes many samples of few.
        rate_hz = max(file.samplerate, SAMPLE_RATE_HZ)
        _check_amount(path, file.frames * file.channels * rate_hz // file.samplerate)
        yield AudioReader(path, file.samplerate, file.channels, file.frames, file.subtype, file)


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turns what libsndfile and the system say into `AudioError`."""
    import soundfile

    try:
        yield
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path}: cannot be decoded as audio ({error.error_string.strip(' .')}); "
            "convert it to WAV or FLAC, or remove it"
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise AudioError(f"{path}: cannot be read ({reason}); check the path") from None


def _decode(path: Path, *, downmix: bool) -> Audio:
    """Reads and checks a whole file at its own rate, averaging the channels block by block."""
    with open_audio(path) as reader:
        blocks = [_average(block) if downmix else block for block in reader.blocks()]
    samples = np.empty((reader.num_samples, *blocks[0].shape[1:]), np.float32)
    blocks.reverse()
    place = 0
    while blocks:  # each block is freed as soon as it is copied
        block = blocks.pop()
        samples[place : place + len(block)] = block
        place += len(block)
    rate_hz = reader.sample_rate_hz
    return Audio(samples, rate_hz, rate_hz, reader.num_channels, reader.subtype, path)


def _check_amount(path: Path, num_values: int) -> None:
    """Raises `AudioError` for more samples than a file of this size is believed to hold."""
    num_bytes = path.stat().st_size
    if num_values > max(MAX_SMALL_VALUES, MAX_VALUES_A_BYTE * num_bytes):
        raise AudioError(
            f"{path}: {num_values:,} samples in {num_bytes:,} bytes: truncated, or silence packed "
            "to fill the memory; copy the file again or convert it to WAV"
        )


def _average(block: np.ndarray) -> np.ndarray:
    """Averages [num_samples, num_channels] over the channels, in float64, to float32."""
    return block.mean(axis=1, dtype=np.float64).astype(np.float32)


def _check_header(path: Path) -> None:
    """Raises `AudioError` where libsndfile says too little, or silently reads fewer samples."""
    if path.exists() and not path.is_file():
        raise AudioError(f"{path}: is not a file but a folder or device; give an audio file")
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: headerless audio has no rate or format; convert it to WAV")
    with open(path, "rb") as stream:
        num_bytes = os.fstat(stream.fileno()).st_size
        magic = stream.read(4)
        stream.seek(0)
        if num_bytes == 0:
            raise AudioError(f"{path}: is empty (0 bytes); copy the file again or remove it")
        if magic in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
            end = _end_of_riff_samples(stream, path)
        elif magic == b"NIST":
            end = _end_of_sphere_samples(stream, path)
        elif magic in _MAGICS or path.suffix.lower() in _MPEG_SUFFIXES:
            return
        else:
            raise AudioError(
                f"{path}: cannot be decoded as audio (no known format); convert it to WAV or "
                "FLAC, or remove it"
            )
    if end > num_bytes:
        raise AudioError(
            f"{path}: truncated, {end - num_bytes} bytes of samples are missing; "
            "copy or convert the file again"
        )


def _check_sample_bits(chunk: bytes, order: str, path: Path) -> None:
    """Refuses PCM of 1 or 7 bits, say, which libsndfile takes for 8."""
    if len(chunk) == 16:
        tag, *_, num_bits = struct.unpack(order + "2H2I2H", chunk)
        if tag == _PCM and (num_bits % 4 or not 8 <= num_bits <= 64):
            raise AudioError(
                f"{path}: damaged header, it claims {num_bits} bits a sample; "
                "convert the file again"
            )


def _end_of_riff_samples(stream: BinaryIO, path: Path) -> int:
    """Returns where the samples of a WAV, RF64 or AIFF file end by its header; 0 if unknown.

    A data size of 2^32 - 1 is what programs write that stream into a pipe: length unknown.

    Raises:
        AudioError: The header is damaged.
    """
    order = ">" if stream.read(12)[:4] in (b"RIFX", b"FORM") else "<"
    data_bytes_64 = 0
    for _ in range(_MAX_RIFF_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            break
        name, num_bytes = head[:4], struct.unpack(order + "I", head[4:])[0]
        if name in (b"data", b"SSND"):
            if num_bytes == _UNKNOWN_SIZE:
                return stream.tell() + data_bytes_64 if data_bytes_64 else 0
            return stream.tell() + num_bytes
        body = stream.tell()
        if name == b"ds64":
            sizes = stream.read(16)
            data_bytes_64 = struct.unpack("<Q", sizes[8:])[0] if len(sizes) == 16 else 0
        if name == b"fmt ":
            _check_sample_bits(stream.read(16), order, path)
        stream.seek(body + num_bytes + num_bytes % 2)
    return 0


def _end_of_sphere_samples(stream: BinaryIO, path: Path) -> int:
    """Returns where the samples of a NIST SPHERE file end by its header; 0 if it does not say.

    Raises:
        AudioError: The samples are compressed, which libsndfile cannot undo, or the header is
            damaged.
    """
    header, end_mark, _ = stream.read(1 << 16).partition(b"\nend_head")
    lines = header.decode("latin-1").split("\n")
    fields = {words[0]: words[2] for line in lines[2:] if len(words := line.split(None, 2)) == 3}
    coding = fields.get("sample_coding", "pcm")
    if "," in coding:  # as in 'pcm,embedded-shorten-v2.00'
        raise AudioError(
            f"{path}: compressed NIST SPHERE ({coding.strip()[:40]!r}); "
            "decompress it first, for example: sph2pipe -f wav in.sph out.wav"
        )
    damaged = AudioError(
        f"{path}: cannot be decoded as audio (damaged NIST SPHERE header); copy the file again"
    )
    try:
        header_bytes = int(lines[1])
        counts = [int(fields[name]) for name in _SPHERE_COUNTS if name in fields]
    except (ValueError, IndexError):
        raise damaged from None
    if not end_mark or header_bytes < 0 or min(counts, default=1) < 1:
        raise damaged
    return header_bytes + math.prod(counts) if len(counts) == len(_SPHERE_COUNTS) else 0


_SPHERE_COUNTS = ("sample_count", "channel_count", "sample_n_bytes")


def _clear_time_stamp(path: Path) -> None:
    """Zeroes the time of writing that libsndfile leaves in the PEAK chunk of a float WAV."""
    with open(path, "r+b") as stream:
        position = stream.read(128).find(b"PEAK")
        if position >= 0:
            stream.seek(position + 12)  # after the chunk's name, size and version
            stream.write(bytes(4))


def _raise(error: OSError) -> None:
    raise error
