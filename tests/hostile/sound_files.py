"""Attacks by sound files: headers that lie, samples that are none, packed silence."""

import io
import struct

import numpy as np
import soundfile

from tests.builders import patched
from tests.reference.sphere import sphere_header

NUM_SAMPLES = 4000
HUGE = (0xFFFFFFFE, 0x80000000, 0x7FFFFFFF, 1 << 30)


def sound(audio_format, subtype="PCM_16", num_channels=1, rate_hz=16_000, samples=None):
    """Returns the bytes of a valid file."""
    if samples is None:
        rng = np.random.default_rng(0)
        samples = rng.uniform(-0.5, 0.5, (NUM_SAMPLES, num_channels))
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, subtype, format=audio_format)
    return stream.getvalue()


def numbered(suffix, attacks):
    for index, (name, data) in enumerate(attacks.items()):
        yield name, f"{index:03}{suffix}", data


def wav(folder):
    """Fields of a RIFF header that lie, and sizes that point beyond the file."""
    whole = sound("WAV")
    two, four = struct.Struct("<H").pack, struct.Struct("<I").pack
    extensible = sound("WAVEX", num_channels=2)
    rf64 = sound("RF64")
    attacks = {f"{count} channels": patched(whole, (22, two(count)))
               for count in (0, 1025, 0x7FFF, 0x8000, 0xFFFF)}  # fmt: skip
    attacks |= {f"rate {rate} Hz": patched(whole, (24, four(rate)))
                for rate in (0, 1, 999, 768_001, 10**9, 0x7FFFFFFF, 1 << 31)}  # fmt: skip
    attacks |= {f"data of {size} bytes": patched(whole, (40, four(size))) for size in HUGE}
    attacks |= {f"format chunk of {size} bytes": patched(whole, (16, four(size)))
                for size in (0, 15, *HUGE)}  # fmt: skip
    attacks |= {f"format {tag:#x}": patched(whole, (20, two(tag)))
                for tag in (0, 0x0F, 0x99, 0x674F, 0xFFFE, 0xFFFF)}  # fmt: skip
    attacks |= {f"{bits} bits": patched(whole, (34, two(bits))) for bits in (0, 1, 7, 65, 0xFFFF)}
    attacks |= {f"blocks of {size} bytes, {tag}": patched(whole, (20, two(tag)), (32, two(size)))
                for size in (0, 0xFFFF) for tag in (2, 0x11, 0x31)}  # fmt: skip
    attacks |= {
        "channels of another format": patched(extensible, (22, two(0))),
        "unknown codec by its name": patched(extensible, (44, b"\xff" * 16)),
        "RF64 of 2^63 bytes": patched(rf64, (28, struct.pack("<Q", 1 << 63))),
        "RF64 of 2^62 bytes": patched(rf64, (28, struct.pack("<Q", 1 << 62))),
        "a million chunks": whole[:36] + b"junk\0\0\0\0" * 1_000_000,
        "chunk in a circle": whole[:36] + b"junk" + four(0xFFFFFFF0) + whole[36:],
        "no samples": sound("WAV", samples=np.zeros((0, 1))),
        "text": b"not audio at all\n" * 100,
        "zeros": bytes(10_000),
        "only a name": b"RIFF",
        "empty": b"",
    }
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("-infinity", -np.inf)):
        for subtype in ("FLOAT", "DOUBLE"):
            samples = np.zeros((100, 2))
            samples[50, 1] = value
            attacks[f"{name}, {subtype}"] = sound("WAV", subtype, samples=samples)
    yield from numbered(".wav", attacks)


def wav_truncated(folder):
    """A valid file cut at every 1 % of its length."""
    whole = sound("WAV")
    yield from numbered(".wav", {f"{percent} %": whole[: len(whole) * percent // 100]
                                 for percent in range(100)})  # fmt: skip


def flac(folder):
    """STREAMINFO that lies, frames that are damaged or missing, packed silence."""
    whole = sound("FLAC")
    info = 8  # of STREAMINFO: sizes, then 20 bits rate, 3 channels, 5 bits, 36 samples

    def claim(rate=16_000, samples=NUM_SAMPLES):
        packed = rate << 44 | 15 << 36 | samples
        return patched(whole, (info + 10, struct.pack(">Q", packed)))

    attacks = {f"rate {rate} Hz": claim(rate) for rate in (0, 1, 999, 0xFFFFF)}
    attacks |= {f"{count} samples": claim(samples=count)
                for count in (NUM_SAMPLES + 1, 1 << 31, (1 << 36) - 1)}  # fmt: skip
    packed = silence(300 << 20)
    unknown = (info + 13, bytes([packed[info + 13] & 0xF0, 0, 0, 0, 0]))
    attacks |= {
        "blocks of 0": patched(whole, (info, bytes(4))),
        "metadata of 2^24 bytes": patched(whole, (5, b"\xff\xff\xff")),
        "metadata without end": whole[:42] + b"\4\0\0\0" * 100_000,
        "only metadata": whole[:42],
        "noise for frames": whole[:200] + np.random.default_rng(0).bytes(8000),
        "silence, 300 MB": packed,
        "silence of unknown length": patched(packed, unknown),
        "silence at 1000 Hz, 1 GB at 16 kHz": silence(64 << 20, 1000),
    }
    yield from numbered(".flac", attacks)


def silence(num_bytes, rate_hz=16_000):
    """Returns a FLAC that decodes to so many bytes of float32."""
    stream = io.BytesIO()
    block = np.zeros((1 << 20, 8), np.int16)
    with soundfile.SoundFile(stream, "w", rate_hz, 8, "PCM_16", format="FLAC") as file:
        for _ in range(num_bytes // (4 * block.size)):
            file.write(block)
    return stream.getvalue()


def flac_truncated(folder):
    """A valid file cut at every 1 % of its length."""
    whole = sound("FLAC")
    yield from numbered(".flac", {f"{percent} %": whole[: len(whole) * percent // 100]
                                  for percent in range(100)})  # fmt: skip


def sphere(folder):
    """Fields of a SPHERE header that lie or are no numbers."""
    samples = bytes(2 * NUM_SAMPLES)

    def header(*changes):
        text = sphere_header(NUM_SAMPLES)
        for old, new in changes:
            text = text.replace(old, new)
        return text + samples

    attacks = {f"{count} channels": sphere_header(NUM_SAMPLES, num_channels=count) + samples
               for count in (0, -1, 2, 1025, 2**31, 2**64, 10**30)}  # fmt: skip
    attacks |= {f"rate {rate} Hz": sphere_header(NUM_SAMPLES, rate) + samples
                for rate in (0, -1, 999, 10**9, 2**31, 2**64, "1e9", "x")}  # fmt: skip
    attacks |= {f"{count} samples": sphere_header(count) + samples
                for count in (0, NUM_SAMPLES + 1, 2**31, 2**62, 2**64, 10**40)}  # fmt: skip
    attacks |= {
        "samples of 0 bytes": header((b"n_bytes -i 2", b"n_bytes -i 0")),
        "samples of -2 bytes": header((b"n_bytes -i 2", b"n_bytes -i -2")),
        "samples of 2^31 bytes": header((b"n_bytes -i 2", b"n_bytes -i 2147483648")),
        "header of 2^31 bytes": header((b"   1024", b"2147483648")),
        "header of -1 bytes": header((b"   1024", b"     -1")),
        "header of x bytes": header((b"   1024", b"      x")),
        "no end": header((b"end_head", b"xxx_xxxx")),
        "unknown codec": sphere_header(NUM_SAMPLES, coding="vocoder") + samples,
        "shorten": sphere_header(NUM_SAMPLES, coding="pcm,embedded-shorten-v2.00") + samples,
        "shorten, of noise": sphere_header(NUM_SAMPLES, coding="pcm," + "\x1b[2J" * 100) + samples,
        "half of the samples": sphere_header(NUM_SAMPLES) + samples[: len(samples) // 2],
        "number of 5,000 digits": header((b"-i 4000", b"-i " + b"9" * 5000)),
    }
    yield from numbered(".sph", attacks)


def sphere_truncated(folder):
    """A valid file cut at every 1 % of its length."""
    whole = sphere_header(NUM_SAMPLES) + bytes(2 * NUM_SAMPLES)
    yield from numbered(".sph", {f"{percent} %": whole[: len(whole) * percent // 100]
                                 for percent in range(100)})  # fmt: skip


def other_formats(folder):
    """The formats beyond, by their names: most of them damaged in the middle."""
    yield from numbered(".aiff", {
        "AIFF, 0 channels": patched(sound("AIFF"), (20, bytes(2))),
        "AIFF, truncated": sound("AIFF")[:1000],
    })  # fmt: skip
    yield from numbered(".ogg", {
        "Ogg, truncated": sound("OGG", "VORBIS")[:3000],
        "Ogg, only a page": sound("OGG", "VORBIS")[:58],
    })  # fmt: skip
    yield from numbered(".wav", {
        "MPEG by chance": patched(sound("WAV", "ULAW"), (0, b"\xff\xff\0\0")),
        "MPEG by its tag": b"ID3\4\0\0\0\0\0\0" + bytes(5000),
    })  # fmt: skip
    yield from numbered(".bin", {
        "a program": b"\x7fELF" + bytes(1000),
        "a model": b"\x89HDF\r\n\x1a\n" + bytes(1000),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(1000),
        "an archive": b"PK\3\4" + bytes(1000),
    })  # fmt: skip


FAMILIES = {
    family.__name__: family
    for family in (wav, wav_truncated, flac, flac_truncated, sphere, sphere_truncated,
                   other_formats)
}  # fmt: skip
