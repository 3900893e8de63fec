"""Audio files: find, read, check, convert and write them.

Conventions: samples are float32 with full scale at +-1 and the time axis first, [num_samples] for
mono and [num_samples, num_channels] otherwise. Rates are in Hz and always whole numbers.

Nothing happens silently: an average over channels or a change of rate is announced on the logger
``speech`` (level INFO), and a file that does not hold what its header promises is an `AudioError`
instead of a shorter signal. A length that is an estimate (MP3) or unknown (a pipe) is not trusted:
such a file is decoded to its end. Where a header is wrong by a few bytes or was never finished, the
samples that are there are read, which is announced as a warning.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mimetypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speech.base.files import atomic_path, raise_if_full
from speech.base.lazy import scipy, soundfile, soxr
from speech.sound import headers
from speech.sound.headers import AudioError, Header, mend

#: The rate of every model of this project, as in both papers.
SAMPLE_RATE_HZ = 16000

#: File endings that can be written, and the libsndfile format of each.
FORMATS = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".sph": "NIST",
    ".nist": "NIST",
    ".aiff": "AIFF",
    ".aif": "AIFF",
    ".aifc": "AIFF",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".wave": "WAV",
    ".w64": "W64",
    ".caf": "CAF",
    ".au": "AU",
    ".snd": "AU",
}

#: Further endings of what libsndfile reads; its own names of formats are endings too.
_ALIASES = {
    "IRCAM": (".sf",),
    "MP3": headers.MPEG_SUFFIXES,
    "OGG": (".opus",),
    "SVX": (".8svx", ".iff"),
    "WAV": (".bwf",),
}
#: Formats of libsndfile that hold no recordings, or that any bytes would pass for.
_NO_RECORDINGS = frozenset(["HTK", "MAT4", "MAT5", "MPC2K", "RAW", "SD2", "SDS", "WAVEX", "XI"])
#: Endings of sounds that libsndfile does not read and Python's list of types does not know.
_OTHER_SOUNDS = (
    ".ac3",
    ".amr",
    ".ape",
    ".dts",
    ".m4a",
    ".m4b",
    ".mka",
    ".mkv",
    ".spx",
    ".wma",
    ".wv",
)

#: Rates outside this range are taken for a damaged header. The lower bound also keeps a lying
#: header from turning a small file into a huge one by resampling.
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 768_000

#: Samples (of all channels together) that a file may decode to: so many at least, and so many a
#: byte. Speech comes to 50 a byte at most; silence can be packed into next to nothing.
MAX_SMALL_VALUES = 1 << 25
MAX_VALUES_A_BYTE = 128

_BLOCK_VALUES = 1 << 20  # samples x channels decoded at once
_UNKNOWN_LENGTH = 1 << 62
_BLOCK_FRAMES = 1 << 16  # samples of every channel encoded at once
_VORBIS_MAX_RATE_HZ, _VORBIS_MAX_CHANNELS = 200_000, 255  # beyond them its encoder crashes

_logger = logging.getLogger("speech")
_announced: set[tuple[int, int, int]] = set()
_told: set[Path] = set()


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
    """Reads a file as one channel at one rate; channels are averaged (docs/papers.md).

    Args:
        path: WAV, FLAC, uncompressed NIST SPHERE (TIMIT's own ``.WAV``), AIFF, Ogg, Opus, Wave64,
            CAF, AU, MP3 and the like. The format is told by the content, not by the ending; only
            MP3 needs its own.
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
        raise AudioError(f"{path}: too short, nothing is left at {sample_rate_hz} Hz")
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
    return soxr.resample(samples, from_hz, to_hz, quality="VHQ")


class StreamResampler:
    """Resamples a signal that comes block by block, as `resample` does the whole.

    Args:
        from_hz: Rate of the signal.
        to_hz: Rate to return.
        num_channels: Of the signal.
        quality: Of soxr, from 'QQ' to 'VHQ'; what is lower keeps samples for less time.
    """

    def __init__(self, from_hz: int, to_hz: int, num_channels: int, quality: str = "VHQ") -> None:
        self._rates_hz = from_hz, to_hz
        self._num_in = self._num_out = 0
        self._stream = None
        if from_hz != to_hz:
            self._stream = soxr.ResampleStream(
                from_hz, to_hz, num_channels, dtype="float32", quality=quality
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
                _name_of(temporary), "w", sample_rate_hz, num_channels, subtype, format=audio_format
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


@functools.cache
def readable_suffixes() -> tuple[str, ...]:
    """Returns the endings, in lower case, of what this libsndfile reads; '.wav' is the first."""
    names = soundfile.available_formats().keys() - _NO_RECORDINGS
    found = {f".{name.lower()}" for name in names}
    found |= {suffix for suffix, name in FORMATS.items() if name in names}
    found |= {suffix for name in names for suffix in _ALIASES.get(name, ())}
    return tuple(sorted(found, key=lambda suffix: (suffix != ".wav", suffix)))


def is_audio_name(path: str | os.PathLike) -> bool:
    """Tells whether a file has the ending of a format that can be read."""
    return Path(path).suffix.lower() in readable_suffixes()


def _is_other_sound(path: Path) -> bool:
    """Tells whether a file has the ending of a sound or film that can't be read."""
    suffix = path.suffix.lower()
    kind = mimetypes.MimeTypes().guess_type(f"x{suffix}")[0] or ""
    return suffix in _OTHER_SOUNDS or kind.startswith(("audio/", "video/"))


def find_audio(folder: str | os.PathLike, *, unreadable: bool = False) -> list[Path]:
    """Returns the audio files below a folder, sorted by path.

    Endings count in upper and lower case (see `readable_suffixes`); hidden files and folders (macOS
    writes ``._x.wav`` beside ``x.wav``) do not count. Links to folders are followed, each real
    folder once.

    Args:
        folder: Where to look.
        unreadable: Also return sounds whose format can't be read, for callers that list what they
            fail to read. By default they are named in an announcement.

    Raises:
        ValueError: The folder is missing or holds no audio file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise ValueError(f"{folder}: {what}; give the folder that holds the audio files")
    found, others, visited = [], [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real_parent = os.path.realpath(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if real_parent in visited:
            folders.clear()
            continue
        visited.add(real_parent)
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if is_audio_name(path):
                found.append(path)
            elif _is_other_sound(path):
                others.append(path)
    if others and not unreadable:
        few = ", ".join(str(path.relative_to(folder)) for path in sorted(others)[:3])
        left_out = f"{len(others)} files that libsndfile does not read ({few}"
        left_out += ", ...)" if others[3:] else ")"
        if found and folder not in _told:
            _told.add(folder)
            _logger.warning("%s: left out %s; convert them to WAV or FLAC", folder, left_out)
    if not found and not (others and unreadable):
        looked = f"looked for {', '.join(readable_suffixes())}"
        if others:
            looked = f"there are {left_out}; convert them to WAV or FLAC"
        raise ValueError(f"{folder}: no audio file found; {looked}")
    return sorted([*found, *others] if unreadable else found)


def valid_signal(signal: np.ndarray, name: str = "signal", *, min_samples: int = 0) -> np.ndarray:
    """Returns one channel as float32 or float64 [num_samples]: the gate of all that takes samples.

    Args:
        signal: [num_samples] of real numbers; what is neither float32 nor float64 becomes float32.
        name: What the errors call it.
        min_samples: The fewest samples that will do.

    Raises:
        ValueError: It has another shape or type, is too short, or holds a NaN or an infinity.
    """
    signal = np.asarray(signal)
    if signal.ndim != 1 or signal.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must be [num_samples] of real numbers, received shape {signal.shape} of "
            f"{signal.dtype}"
        )
    if len(signal) < min_samples:
        raise ValueError(f"{name} has {len(signal)} samples, expected at least {min_samples}")
    if signal.dtype not in (np.float32, np.float64):
        signal = signal.astype(np.float32)
    if not np.isfinite(signal).all():
        raise ValueError(f"{name} holds a NaN or an infinity; convert it again or leave it out")
    return signal


def is_silent(samples: np.ndarray) -> bool:
    """Tells whether every sample is exactly zero (or there is none)."""
    return not np.any(samples)


def lag_samples(signal: np.ndarray, reference: np.ndarray, most: int) -> int:
    """Returns by how many samples a signal comes later than a reference (negative: earlier).

    It is the lag of the largest magnitude of their cross-correlation.

    Args:
        signal: float [num_samples].
        reference: Likewise, as long.
        most: The largest lag that is looked for, either way.
    """
    most = min(most, len(reference) - 1)
    size = scipy.fft.next_fast_len(len(reference) + most, real=True)
    one, other = scipy.fft.rfft(np.stack([signal, reference]).astype(np.float64), size)
    found = np.abs(scipy.fft.irfft(one * other.conj(), size))
    return int(np.argmax(np.roll(found, most)[: 2 * most + 1])) - most


def peak_normalize(samples: np.ndarray) -> np.ndarray:
    """Divides by max |x| (docs/papers.md), whatever the shape; a silent signal stays silent.

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
        num_samples: Samples of each channel; `blocks` gives so many or raises.
        subtype: libsndfile's name of its sample format.
    """

    path: Path
    sample_rate_hz: int
    num_channels: int
    num_samples: int
    subtype: str
    _file: soundfile.SoundFile
    _header: Header

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields float32 [block, num_channels] to the end, once.

        Reading by blocks bounds what is allocated by what is really there.

        Raises:
            AudioError: The file holds no sample, fewer than it says, a NaN or an infinity. Whatever
                came before is not to be used.
        """
        num_read = num_bad = 0
        for block in _decoded(self.path, self._file, self.num_samples):
            num_read += len(block)
            num_bad += block.size - int(np.count_nonzero(np.isfinite(block)))
            if not num_bad:  # else the rest is only counted
                yield mend(block, self._header)
        if not num_read:
            raise AudioError(f"{self.path}: holds no samples; record or copy it again")
        if num_read < self.num_samples:
            raise AudioError(
                f"{self.path}: truncated, {num_read} of {self.num_samples} samples are there; "
                "copy or convert the file again"
            )
        if num_bad:
            raise AudioError(
                f"{self.path}: {num_bad} samples are NaN or infinite; convert the file again"
            )


@contextlib.contextmanager
def open_audio(path: str | os.PathLike) -> Iterator[AudioReader]:
    """Opens a file to be read block by block, every channel at its own rate.

    A file that does not say its length, or only an estimate, is decoded once to count its samples.

    Yields:
        The reader; it can be used inside the block only.

    Raises:
        AudioError: As `read_audio`; what is wrong with samples is found when they are read.
    """
    path = Path(path)
    with _decoding(path):
        header = headers.inspect(path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(path, header))
        rate_hz, num_channels, num_samples = file.samplerate, file.channels, file.frames
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            raise AudioError(
                f"{path}: damaged header, it claims a rate of {rate_hz} Hz; convert the file again"
            )
        if header.is_mpeg or num_samples >= _UNKNOWN_LENGTH:
            num_samples = _count(path, file)
            file = stack.enter_context(_opened(path, header))
        # No more are decoded than that. Every reader may resample; at a low rate that makes many
        # samples of few.
        highest_hz = max(rate_hz, SAMPLE_RATE_HZ)
        _check_amount(path, num_samples * num_channels * highest_hz // rate_hz)
        if header.word and path not in _told:
            _told.add(path)
            _logger.warning(
                "%s: %s; the %d samples that are there are read", path, header.word, num_samples
            )
        yield AudioReader(path, rate_hz, num_channels, num_samples, file.subtype, file, header)


def _count(path: Path, file: soundfile.SoundFile) -> int:
    """Returns the samples of each channel that can be decoded."""
    num_samples = 0
    for block in _decoded(path, file, _UNKNOWN_LENGTH):
        num_samples += len(block)
        highest_hz = max(file.samplerate, SAMPLE_RATE_HZ)
        _check_amount(path, num_samples * file.channels * highest_hz // file.samplerate)
    return num_samples


def _decoded(path: Path, file: soundfile.SoundFile, num_samples: int) -> Iterator[np.ndarray]:
    """Yields float32 [block, num_channels], at most ``num_samples`` in all."""
    num_frames = max(1, _BLOCK_VALUES // file.channels)
    while num_samples > 0:
        with _decoding(path):
            block = file.read(min(num_frames, num_samples), dtype="float32", always_2d=True)
        if not len(block):
            break
        num_samples -= len(block)
        yield block


def _name_of(path: Path) -> str | bytes:
    """Returns a name as soundfile takes it, which need not be text."""
    return str(path) if os.name == "nt" else os.fsencode(path)


@contextlib.contextmanager
def _opened(path: Path, header: Header) -> Iterator[soundfile.SoundFile]:
    """Opens a file as its header was inspected, to be read forward only."""

    class Forward(soundfile.SoundFile):
        def seekable(self) -> bool:
            # Else it seeks after each block, which a file of unknown length can't.
            return False

    with contextlib.ExitStack() as stack:
        with _decoding(path):
            if header.is_plain:
                file = Forward(_name_of(path))
            else:
                stream = stack.enter_context(open(path, "rb"))
                file = Forward(headers.View(stream, header))
            stack.enter_context(file)
        yield file


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turns what libsndfile and the system say into `AudioError`."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path}: cannot be decoded as audio ({error.error_string.strip(' .')}); "
            "convert it to WAV or FLAC"
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


def _clear_time_stamp(path: Path) -> None:
    """Zeroes the time of writing that libsndfile leaves in the PEAK chunk of a float WAV."""
    with open(path, "r+b") as stream:
        position = stream.read(128).find(b"PEAK")
        if position >= 0:
            stream.seek(position + 12)  # after the chunk's name, size and version
            stream.write(bytes(4))


def _raise(error: OSError) -> None:
    raise error
