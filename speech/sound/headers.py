"""Checks the headers of sound files, and repairs those that are wrong where that is safe.

libsndfile believes a header. Recorders that died, pipes and careless programs leave wrong sizes in
it, so sizes are compared with the file first (`inspect`). If a size is unknown or wrong by only a
few bytes, the file is read to its end, through a `View` that shows libsndfile a correct header. A
size that is wrong by more than that is an `AudioError`.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

#: How files start that libsndfile is given; some of its readers would take any bytes.
_RIFF = (b"RIFF", b"RIFX", b"RF64", b"FORM")
_OTHERS = (b"Crea", b"2BIT", b" paf", b"fap ", b"PVF1", b"ALaw")
_IRCAM = re.compile(rb"\x64\xa3[\x00-\x09]\x00|\x00[\x00-\x09]\xa3\x64")
#: MPEG has no start of its own: it goes by name, by the tag that players write before it, or by
#: its first two frames.
MPEG_SUFFIXES = (".mp3", ".mp2", ".mp1", ".mpga")
_ID3 = b"ID3"

_MAX_CHUNKS = 1000
#: Of the number of samples of a FLAC; and where to look for its last frame.
_FLAC_SAMPLES, _FLAC_SCAN_BYTES = (1 << 36) - 1, 1 << 16
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # tags of WAV
#: Tags that are appended to sounds: no samples.
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
#: Chunks that follow the samples of WAV and AIFF files.
_CHUNKS = re.compile(rb"LIST|id3 |ID3 |bext|iXML|cue |smpl|NAME|ANNO|AUTH|MARK|JUNK|PAD ")
#: Sizes that programs write into a pipe, in place of one that they can't know yet: within 64 KiB
#: of 2^31, 2^32 and 2^64, as the size of the header is often added or taken away.
_PIPE_SIZES = (
    range((1 << 31) - (1 << 16), (1 << 31) + (1 << 16)),
    range((1 << 32) - (1 << 16), 1 << 32),
    range((1 << 64) - (1 << 16), 1 << 64),
)
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0O\x8e\xdb\x8a"
#: MPEG's view is longer than the file by this factor, more than rates of bits differ.
_STRETCH = 1000
#: A size is wrong by no more than that, if its header is counted.
_FEW_BYTES = 1024
_SCAN_BYTES = 1 << 22


class AudioError(ValueError):
    """A file that cannot be used as audio. The message names the file, the reason and the fix."""


@dataclass(frozen=True)
class Header:
    """The facts about a file that are needed before libsndfile opens it.

    Attributes:
        patches: Bytes to show in place of those of the file: (offset, bytes).
        start: Bytes at the start to hide.
        is_mpeg: Whether the length is an estimate from the size of the file.
        shift: Bits by which the samples lie too low in their bytes.
        word: A message that says what is wrong with the header; '' if nothing is.
    """

    patches: tuple[tuple[int, bytes], ...] = ()
    start: int = 0
    is_mpeg: bool = False
    shift: int = 0
    word: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether libsndfile may open the file directly, without a `View`."""
        return not (self.patches or self.start or self.is_mpeg)


class View(io.RawIOBase):
    """A file as libsndfile is to see it.

    Args:
        stream: The file.
        header: What to change. The end of an MPEG file without a table is said to be far away:
            libsndfile stops at a length that it estimates from there.
    """

    def __init__(self, stream: io.BufferedReader, header: Header) -> None:
        self._stream, self._header = stream, header
        self._size = os.fstat(stream.fileno()).st_size - header.start
        self.seek(0)

    def readinto(self, buffer: Any) -> int:
        """Reads as files do, with the patches applied."""
        place = self.tell()
        count = self._stream.readinto(buffer)
        for offset, patch in self._header.patches:
            for index, value in enumerate(patch, offset - place):
                if 0 <= index < count:
                    buffer[index : index + 1] = bytes([value])
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seeks as files do; to the end of an MPEG file, far beyond it."""
        if whence == os.SEEK_END:
            far = self._header.is_mpeg and offset == 0
            offset += self._size * (_STRETCH if far else 1)
        elif whence == os.SEEK_CUR:
            offset += self.tell()
        return self._stream.seek(max(offset, 0) + self._header.start) - self._header.start

    def tell(self) -> int:
        """Returns the place in the view."""
        return self._stream.tell() - self._header.start


def mend(block: np.ndarray, header: Header) -> np.ndarray:
    """Returns samples at their true level: it moves them up by ``header.shift`` bits, in place.

    Args:
        block: float32, as libsndfile takes whole numbers that fill their bytes.
        header: Of the file.
    """
    if header.shift:
        block *= np.float32(2.0**header.shift)
        block[block >= 1.0] -= 2.0  # the sign was not extended
    return block


def inspect(path: Path) -> Header:
    """Looks at the header of a file where libsndfile says too little, or believes too much.

    Raises:
        AudioError: It is no sound file of a known format, damaged, or truncated.
    """
    if path.exists() and not path.is_file():
        raise AudioError(f"{path}: is not a file but a folder or device; give an audio file")
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: headerless audio has no rate or format; convert it to WAV")
    with open(path, "rb") as stream:
        num_bytes = os.fstat(stream.fileno()).st_size
        magic = stream.read(4)
        stream.seek(0)
        if num_bytes == 0:
            raise AudioError(f"{path}: is empty (0 bytes); copy or record it again")
        if magic in _RIFF:
            return _of_riff(stream, path, num_bytes)
        if magic == b"NIST":
            return _of_sphere(stream, path, num_bytes)
        if magic == b"fLaC":
            return _of_flac(stream, num_bytes)
        if magic == b"OggS":
            return _of_ogg(stream, path)
        if magic in (b"riff", b"caff", b".snd", b"dns."):
            samples = {b"riff": _in_w64, b"caff": _in_caf}.get(magic, _in_au)(stream)
            return Header() if samples is None else samples.compared(stream, path, num_bytes)
        if magic in _OTHERS or _IRCAM.fullmatch(magic):
            return Header()
        named = magic.startswith(_ID3) or path.suffix.lower() in MPEG_SUFFIXES
        if named or _starts_as_mpeg(stream):
            stream.seek(0)
            header = _of_mpeg(stream, path, num_bytes)
            if header is not None:
                return header
    raise AudioError(
        f"{path}: cannot be decoded as audio (no known format); convert it to WAV or FLAC"
    )


@dataclass(frozen=True)
class _Samples:
    """The place of the samples in the file, as the header states it.

    Attributes:
        size_at: Offset of the field that holds the size.
        code: Type of the field, as a ``struct`` format.
        start: Where they begin.
        num_bytes: What the field comes to; negative for unknown.
        more: What the field counts beside the samples.
        followers: Whether a rest of the file, given where it starts, is one of chunks.
        others: Further fields to patch, when the size is: (offset, code, bytes per unit).
        form_end: Where the whole form ends by its own size; 0 if it says none.
    """

    size_at: int
    code: str
    start: int
    num_bytes: int
    more: int = 0
    followers: Callable[[BinaryIO, int, int], bool] | None = None
    others: tuple[tuple[int, str, int], ...] = ()
    form_end: int = 0

    def compared(self, stream: BinaryIO, path: Path, file_bytes: int) -> Header:
        """Compares the size with what is there, and says what to do.

        Raises:
            AudioError: The file is truncated.
        """
        there, missing = file_bytes - self.start, self.start + self.num_bytes - file_bytes
        if self.num_bytes < 0 or (missing > 0 and _is_of_a_pipe(self.num_bytes)):
            word = "its header holds no length but that of a pipe"
        elif missing > 0:
            # Some recorders count their header.
            if missing > min(self.start, _FEW_BYTES):
                raise AudioError(
                    f"{path}: truncated, {missing} bytes of samples are missing; "
                    "copy or convert the file again"
                )
            word = f"its header says {missing} bytes too many"
        elif missing == 0 or not self._is_wrong(stream, file_bytes):
            return Header()
        elif self.num_bytes == 0:
            word = "its header was never finished"
        else:
            word = f"its header says {-missing} bytes too few"
        there -= self._following(stream, file_bytes)
        if there <= 0:
            return Header()
        patches = []
        for offset, code, unit in (
            (self.size_at, self.code, 1),
            *(other for other in self.others if other[0]),
        ):
            value = there + self.more if offset == self.size_at else there // unit
            if value < 1 << 8 * struct.calcsize(code) - 1:
                patches.append((offset, struct.pack(code, value)))
        return Header(tuple(patches), word=word)

    def _following(self, stream: BinaryIO, file_bytes: int) -> int:
        """Returns the bytes of chunks at the end of a file that does not say where they begin."""
        if self.followers is None:
            return 0
        first = max(self.start, file_bytes - (1 << 16))
        stream.seek(first)
        for found in _CHUNKS.finditer(stream.read(1 << 16)):
            place = first + found.start()
            if self.followers(stream, place, file_bytes):
                return file_bytes - place
        return 0

    def _is_wrong(self, stream: BinaryIO, file_bytes: int) -> bool:
        """Returns whether what follows the samples is samples too."""
        end = self.start + self.num_bytes
        if self.followers is None:
            return self.num_bytes == 0
        if self.followers(stream, end, file_bytes):
            return False
        stream.seek(end)
        head = stream.read(1 << 16).lstrip(b"\0")
        # Behind samples, zeros fill a file up; without any, they are those of a silent start.
        if (not head and self.num_bytes) or head.startswith(_TAGS):
            return False
        rest = file_bytes - end
        return (
            rest > self.num_bytes or rest <= min(self.start, _FEW_BYTES) or self.form_end > end + 1
        )


def _is_of_a_pipe(num_bytes: int) -> bool:
    return any(num_bytes in sizes for sizes in _PIPE_SIZES)


def _riff_followers(order: str) -> Callable[[BinaryIO, int, int], bool]:
    def are_chunks(stream: BinaryIO, start: int, end: int) -> bool:
        for place in {start, start + start % 2}:
            for _ in range(_MAX_CHUNKS):
                if end - place < 8:
                    if end - place <= 1:
                        return True
                    break
                stream.seek(place)
                name, size = struct.unpack(order + "4sI", stream.read(8))
                if not re.fullmatch(rb"[ -~]{4}", name):
                    break
                place += 8 + size
                if place == end:
                    return True
                place += size % 2
        return False

    return are_chunks


def _of_riff(stream: BinaryIO, path: Path, file_bytes: int) -> Header:
    """WAV, RF64 and AIFF.

    Raises:
        AudioError: The header is damaged, or the file truncated.
    """
    top = stream.read(12)
    order = ">" if top[:4] in (b"RIFX", b"FORM") else "<"
    form_end = 8 + struct.unpack(order + "I", top[4:8])[0] if len(top) == 12 else 0
    is_aiff = top[:4] == b"FORM"
    followers = _riff_followers(order)
    wide_at = wide = 0
    room: tuple[int, int, int] | None = None
    bits_at = 0
    others: tuple[tuple[int, str, int], ...] = ()
    for _ in range(_MAX_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            break
        name, num_bytes = head[:4], struct.unpack(order + "I", head[4:])[0]
        body = stream.tell()
        if name in (b"data", b"SSND"):
            more = 8 if is_aiff else 0  # an offset and a size of blocks
            found = _Samples(body - 4, order + "I", body + more, num_bytes - more, more, followers,
                             others, form_end)  # fmt: skip
            if is_aiff and num_bytes < more:
                found = _Samples(body - 4, order + "I", body + more, 0, more, followers, others)
            if wide_at and num_bytes == (1 << 32) - 1:
                found = _Samples(wide_at, "<Q", body, wide, 0, followers)
            header = found.compared(stream, path, file_bytes)
            if room is None:
                return header
            end = file_bytes if header.word else min(body + found.num_bytes, file_bytes)
            shift = _shift_of(stream, path, body, end, order, *room)
            if shift is None:
                block = bits_at - 2, struct.pack(order + "H", room[2])
                return replace(header, patches=(*header.patches, block))
            # libsndfile goes by the bits, or guesses.
            bits = bits_at, struct.pack(order + "H", 8 * room[0])
            return replace(header, patches=(*header.patches, bits), shift=shift)
        if name == b"ds64":
            sizes = stream.read(16)
            if len(sizes) == 16:
                wide_at, wide = body + 8, struct.unpack("<Q", sizes[8:])[0]
        if name == b"fmt ":
            room = _room_of(stream.read(min(num_bytes, 40)), order, path)
            bits_at = body + 14
        if name == b"COMM" and num_bytes >= 18:
            channels, _, bits = struct.unpack(">HIH", stream.read(8))
            others = ((body + 2, ">I", max(channels * -(-bits // 8), 1)),)
        stream.seek(body + num_bytes + num_bytes % 2)
    return Header()


def _room_of(chunk: bytes, order: str, path: Path) -> tuple[int, int, int] | None:
    """Checks the sizes of a WAV's samples, because libsndfile evaluates only some of them.

    Returns:
        Bytes and bits of a sample, if it has more room than it needs, and the block that would
        leave it none, if that is what the bytes per second say, or 0; else None.

    Raises:
        AudioError: The sizes disagree.
    """
    if len(chunk) < 16:
        return None
    tag, channels, rate_hz, bytes_per_s, block, bits = struct.unpack(order + "2H2I2H", chunk[:16])
    valid = bits
    packed = channels * -(-bits // 8)
    if tag == _EXTENSIBLE or bytes_per_s != rate_hz * packed:
        packed = 0
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        own, _, tag = struct.unpack(order + "HIH", chunk[18:26])
        valid = own if 0 < own <= bits else bits
    if tag == _PCM and (bits % 4 or not 8 <= bits <= 64):
        raise AudioError(
            f"{path}: damaged header, it claims {bits} bits per sample; convert the file again"
        )
    if tag not in (_PCM, _FLOAT) or not channels or not block:
        return None  # libsndfile refuses it, or goes by the bits
    size, odd = divmod(block, channels)
    if odd or 8 * size < bits or (tag == _FLOAT and 8 * size != bits) or (tag == _PCM and size > 4):
        if packed:
            return None  # libsndfile goes by the bits
        raise AudioError(
            f"{path}: damaged header, it claims {bits} bits per sample, {channels} channels and "
            f"blocks of {block} bytes, which disagree; convert the file again"
        )
    has_room = tag == _PCM and valid < 8 * size and size > 1
    return (size, valid, packed) if has_room else None


def _shift_of(
    stream: BinaryIO,
    path: Path,
    start: int,
    end: int,
    order: str,
    size: int,
    bits: int,
    packed: int,
) -> int | None:
    """Returns by how many bits samples lie too low in their bytes; None if they have no room.

    By the standard they fill the highest bits, and the lowest are zero.

    Raises:
        AudioError: It can't be told, or the samples are of another size.
    """
    spare = 8 * size - bits
    low = high = sign = some = False
    extended = plain = True
    kind = np.dtype("u1" if size == 3 else f"{order}i{size}")
    stream.seek(start)
    while (left := (end - stream.tell()) // size * size) > 0:
        data = stream.read(min(left, _SCAN_BYTES // size * size))
        data = data[: len(data) // size * size]
        if not data:
            break
        values = np.frombuffer(data, kind)
        if kind.itemsize != size:  # three bytes
            parts = values.reshape(-1, size).astype(np.int64)
            parts = parts if order == "<" else parts[:, ::-1]
            values = (parts << 8 * np.arange(size)).sum(axis=1)
            values -= (values >> 8 * size - 1) << 8 * size
        else:
            values = values.astype(np.int64)
        some = some or bool(values.any())
        low = low or bool((values & ((1 << spare) - 1)).any())
        top = values >> (bits - 1)
        extended = extended and bool(((top == 0) | (top == -1)).all())
        plain = plain and bool(((top == 0) | (top == 1)).all())
        sign = sign or bool((top == 1).any())
        high = high or not (extended or plain)
    if not some or (high and not low):
        return 0
    if not high and (low or (plain and sign)):
        return spare
    if low and packed:
        return None
    raise AudioError(
        f"{path}: its header claims {bits} bits in {size} bytes, but its samples "
        + ("use all bits" if low else "may be those of either end")
        + f"; convert it to plain {8 * -(-bits // 8)} bits, saying how its samples lie"
    )


def _of_sphere(stream: BinaryIO, path: Path, file_bytes: int) -> Header:
    """NIST SPHERE.

    Raises:
        AudioError: The samples are compressed, which libsndfile cannot undo, or the header is
            damaged, or the file truncated.
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
    missing = header_bytes + math.prod(counts) - file_bytes
    if len(counts) == len(_SPHERE_COUNTS) and missing > 0:
        raise AudioError(
            f"{path}: truncated, {missing} bytes of samples are missing; "
            "copy or convert the file again"
        )
    return Header()


_SPHERE_COUNTS = ("sample_count", "channel_count", "sample_n_bytes")


def _of_flac(stream: BinaryIO, file_bytes: int) -> Header:
    """FLAC: 36 bits hold the number of samples, 0 for unknown.

    libsndfile stops there. The last frame of the file says where it begins, so a number that is too
    small is replaced by that.
    """
    info = stream.read(26)
    if len(info) < 26 or info[4] & 0x7F:
        return Header()
    samples = int.from_bytes(info[21:26]) & _FLAC_SAMPLES
    if not samples:
        return Header(word="its header holds no length")
    numbers = int.from_bytes(info[8:10]), int.from_bytes(info[15:18])
    end = _end_of_flac(stream, file_bytes, *numbers)
    if end <= samples:
        return Header()
    patch = (int.from_bytes(info[21:26]) & ~_FLAC_SAMPLES | end & _FLAC_SAMPLES).to_bytes(5)
    return Header(((21, patch),), word=f"its header says {end - samples} samples too few")


def _end_of_flac(stream: BinaryIO, file_bytes: int, block: int, most_bytes: int) -> int:
    """Returns the number of samples by the last frame of a FLAC; 0 if that can't be told.

    Args:
        stream: The file.
        file_bytes: Its size.
        block: Samples of a frame, as the header has it, where all have the same number.
        most_bytes: Of the longest frame, as the header has it; 0 for unknown.
    """
    place = 4
    for _ in range(_MAX_CHUNKS):
        stream.seek(place)
        head = stream.read(4)
        if len(head) < 4:
            return 0
        place += 4 + int.from_bytes(head[1:])
        if head[0] & 0x80:
            break
    stream.seek(place)
    first = stream.read(4)
    if len(first) < 4 or first[0] != 0xFF or first[1] & 0xFE != 0xF8:
        return 0
    start = max(place, file_bytes - max(_FLAC_SCAN_BYTES, 2 * most_bytes))
    stream.seek(start)
    data = stream.read(file_bytes - start)
    at = len(data)
    while (at := data.rfind(first[:2], 0, at)) >= 0:
        # All frames have the same rate and bits, so that hardly anything else passes for one.
        head = data[at : at + 16]
        if len(head) > 5 and (head[2] & 15, head[3] & 15) == (first[2] & 15, first[3] & 15):
            if end := _end_of_frame(head, block):
                return end
        at += 1
    return 0


def _end_of_frame(head: bytes, block: int) -> int:
    """Returns the number of samples up to the end of a frame of FLAC; 0 for what is no frame.

    Args:
        head: How it starts, up to 16 bytes.
        block: Samples of each frame before it, where frames are counted and not samples.
    """
    ones = 8 - (head[4] ^ 0xFF).bit_length()
    if ones in (1, 8):
        return 0
    place = 4 + max(ones, 1)
    number = head[4] & (0x7F >> ones)
    for byte in head[5:place]:
        number = number << 6 | byte & 0x3F
    size_code, rate_code = head[2] >> 4, head[2] & 15
    if size_code == 0 or rate_code == 15:
        return 0
    more = {6: 1, 7: 2}.get(size_code, 0)
    size = 1 + int.from_bytes(head[place : place + more])
    if size_code == 1:
        size = 192
    elif not more:
        size = 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    place += more + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if place >= len(head) or _crc_8(head[:place]) != head[place]:
        return 0
    return (number if head[1] & 1 else number * block) + size


def _crc_8(data: bytes) -> int:
    """Returns the checksum of the head of a frame of FLAC: x^8 + x^2 + x + 1."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x107 if value & 0x80 else 0)) & 0x1FF
    return value & 0xFF


def _of_ogg(stream: BinaryIO, path: Path) -> Header:
    """Checks an Ogg file: a stream is a series of pages, with marks on the first and the last.

    Raises:
        AudioError: A second recording follows the first, which libsndfile leaves out.
    """
    is_past_start, flags = False, _OGG_LAST
    while True:
        head = stream.read(27)
        if len(head) < 27 or head[:4] != b"OggS":
            break
        if head[5] & _OGG_FIRST and is_past_start:
            raise AudioError(
                f"{path}: holds several recordings one after the other, and only the first can be "
                "read; convert the file to WAV or FLAC"
            )
        is_past_start = is_past_start or not head[5] & _OGG_FIRST
        sizes = stream.read(head[26])
        body = stream.read(sum(sizes))
        if len(body) < sum(sizes):
            flags = 0
            break
        flags = head[5]
    return Header(word="" if flags & _OGG_LAST else "its last page is missing")


_OGG_FIRST, _OGG_LAST = 2, 4


def _in_au(stream: BinaryIO) -> _Samples | None:
    code = "<I" if stream.read(4) == b"dns." else ">I"
    fields = stream.read(8)
    if len(fields) < 8:
        return None
    start, size = struct.unpack(code[0] + "2I", fields)
    return _Samples(8, code, start, -1 if size == (1 << 32) - 1 else size)


def _in_caf(stream: BinaryIO) -> _Samples | None:
    stream.seek(8)
    for _ in range(_MAX_CHUNKS):
        head = stream.read(12)
        if len(head) < 12:
            break
        name, size = head[:4], struct.unpack(">q", head[4:])[0]
        place = stream.tell()
        if name == b"data":
            # Its size counts a number of edits of four bytes.
            return _Samples(place - 8, ">q", place + 4, -1 if size < 0 else max(size - 4, 0), 4)
        if size < 0:
            break
        stream.seek(place + size)
    return None


def _in_w64(stream: BinaryIO) -> _Samples | None:
    stream.seek(40)
    for _ in range(_MAX_CHUNKS):
        head = stream.read(24)
        if len(head) < 24:
            break
        name, size = head[:16], struct.unpack("<Q", head[16:])[0]
        place = stream.tell()
        if name == _W64_DATA:
            return _Samples(place - 8, "<Q", place, max(size - 24, 0), 24)
        if size < 24 or size > 1 << 40:
            break
        stream.seek(place - 24 + (size + 7) // 8 * 8)
    return None


_MPEG_BITS = {
    (True, 3): [0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
    (True, 2): [0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
    (True, 1): [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    (False, 3): [0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
    (False, 2): [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
    (False, 1): [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
}


def _of_mpeg(stream: BinaryIO, path: Path, file_bytes: int) -> Header | None:
    """MPEG: a first frame may hold a table with the number of frames (Xing, Info); else nothing.

    A table that is older than the file, which happens when files are joined, is left out.

    Returns:
        What is to be known; None if no frame is found where the first should be.

    Raises:
        AudioError: The table counts more bytes than there are.
    """
    start, head = 0, stream.read(10)
    if head.startswith(_ID3) and len(head) == 10:
        start = 10 + sum((byte & 127) << 7 * place for place, byte in enumerate(head[:5:-1]))
    stream.seek(start)
    frame = stream.read(4096)
    place = next(
        (at for at in range(len(frame) - 3)
         if frame[at] == 255 and frame[at + 1] >> 5 == 7 and _frame_bytes(frame[at : at + 4])),
        None,
    )  # fmt: skip
    if place is None:
        return None
    frame, start = frame[place:], start + place
    table = next((at for at in (36, 21, 13) if frame[at : at + 4] in (b"Xing", b"Info")), None)
    if table is None or len(frame) < table + 16:
        return Header(is_mpeg=True)
    flags, num_frames, num_bytes = struct.unpack(">3I", frame[table + 4 : table + 16])
    if flags & 3 != 3 or not num_frames or not num_bytes:
        return Header(start=start + _frame_bytes(frame[:4]), is_mpeg=True)
    missing = start + num_bytes - file_bytes
    # Some tables count the first frame and some don't; tags follow the last one.
    if missing > 2 * _frame_bytes(frame[:4]) + num_bytes // 100:
        raise AudioError(
            f"{path}: truncated, {missing} bytes of samples are missing; "
            "copy or convert the file again"
        )
    stream.seek(start + num_bytes)
    follows = stream.read(4)
    if -missing > 1000 and follows[:1] == b"\xff" and _frame_bytes(follows):
        return Header(
            start=start + _frame_bytes(frame[:4]), is_mpeg=True,
            word="its header holds the length of a first part only",
        )  # fmt: skip
    return Header()


def _starts_as_mpeg(stream: BinaryIO) -> bool:
    """Returns whether a file, whatever its name, starts with two frames of MPEG."""
    stream.seek(0)
    size = _frame_bytes(stream.read(4))
    stream.seek(size)
    return size > 0 and _frame_bytes(stream.read(4)) > 0


def _frame_bytes(head: bytes) -> int:
    """Returns the length of an MPEG frame by its first four bytes; 0 if they are none."""
    if len(head) < 4 or head[0] != 255 or head[1] >> 5 != 7:
        return 0
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 0 or bits in (0, 15) or rate == 3:
        return 0
    rate_hz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits_per_s = 1000 * _MPEG_BITS[version == 3, layer][bits]
    if layer == 3:
        return (12 * bits_per_s // rate_hz + padding) * 4
    samples = 1152 if layer == 2 or version == 3 else 576
    return samples // 8 * bits_per_s // rate_hz + padding
