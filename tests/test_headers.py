"""Headers of sound files that are wrong, unfinished or of a pipe: what is there is read."""

import io
import logging
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from speech.sound import audio
from speech.sound.audio import AudioError, open_audio, read_audio, read_multichannel
from tests.builders import patched
from tests.reference.sphere import quantize

NUM_SAMPLES = 6000


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    monkeypatch.setattr(audio, "_told", set())


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    return quantize(0.5 * np.sin(np.arange(NUM_SAMPLES) / 9) + 0.01 * rng.normal(size=NUM_SAMPLES))


def content(samples, audio_format="WAV", subtype=None, **more):
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16000, subtype, format=audio_format, **more)
    return stream.getvalue()


def little(value):
    return struct.pack("<I", value)


def read_with_words(path, caplog):
    """Returns the samples, in [-32768, 32767], and what was said."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="speech"):
        found = read_audio(path).samples
        read_multichannel(path)  # says it no second time
    return np.rint(found * 32768).astype(int), caplog.messages


SIZE = 2 * NUM_SAMPLES


@pytest.mark.parametrize(
    ("size", "riff", "reason"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF, "a pipe"),  # ffmpeg
        (0x7FFFF000, 0x7FFFF024, "a pipe"),  # sox
        (0x80000000, 0x80000024, "a pipe"),  # arecord
        (0x7FFFFFFF - 36, 0x7FFFFFFF, "a pipe"),
        (0xFFFFFFFF - 44, 0xFFFFFFFF - 8, "a pipe"),
        (0, 0, "never finished"),
        (0, 36, "never finished"),
        (0, SIZE + 36, "never finished"),
        (4096, 4096 + 36, "7904 bytes too few"),  # one buffer, the first
        (SIZE + 44, SIZE + 36, "44 bytes too many"),
        (SIZE + 36, SIZE + 72, "36 bytes too many"),
        (SIZE + 2, SIZE + 36, "2 bytes too many"),
        (SIZE - 44, SIZE - 8, "44 bytes too few"),
        (SIZE - 8, SIZE + 36, "8 bytes too few"),
    ],
)
def test_sizes_that_are_none_give_the_samples_that_are_there(
    size, riff, reason, samples, tmp_path, caplog
):
    path = tmp_path / "x.wav"
    path.write_bytes(patched(content(samples), (40, little(size)), (4, little(riff))))
    found, words = read_with_words(path, caplog)
    assert_array_equal(found, samples)
    assert len(words) == 1 and reason in words[0] and "the 6000 samples" in words[0], words
    with open_audio(path) as reader:
        assert reader.num_samples == NUM_SAMPLES


def test_a_recording_that_starts_in_silence_is_no_empty_one(samples, tmp_path, caplog):
    silent = np.concatenate([np.zeros(40000, np.int16), samples])
    path = tmp_path / "x.wav"
    path.write_bytes(patched(content(silent), (40, little(0)), (4, little(0))))
    found, words = read_with_words(path, caplog)
    assert_array_equal(found, silent)
    assert len(words) == 1


def chunk(name, body):
    return name + little(len(body)) + body


@pytest.mark.parametrize(
    "rest",
    [
        chunk(b"LIST", b"INFOISFT" + bytes(24)),
        chunk(b"id3 ", b"x" * 7) + bytes(1),
        chunk(b"bext", bytes(602)) + chunk(b"cue ", bytes(28)),
        b"TAG" + b"y" * 125,
        bytes(900),
        b"\r\n",
    ],
)
@pytest.mark.parametrize("odd", [0, 1])
def test_what_follows_the_samples_is_no_sample(rest, odd, samples, tmp_path, caplog):
    """Chunks, tags and filling behind a right header are left out, without a word."""
    whole = content(samples)
    if rest == b"\r\n" or odd:
        rest += bytes(odd)
    path = tmp_path / "x.wav"
    inside = rest[:4] in (b"LIST", b"id3 ", b"bext")
    path.write_bytes(patched(whole + rest, (4, little(SIZE + 36 + inside * len(rest)))))
    found, words = read_with_words(path, caplog)
    assert len(found) - NUM_SAMPLES <= (rest[:2] == b"\r\n")
    assert_array_equal(found[:NUM_SAMPLES], samples)
    assert not words or rest[:2] == b"\r\n"


def test_a_file_without_samples_and_with_chunks_is_empty(samples, tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(content(samples[:0]) + chunk(b"LIST", bytes(26)))
    with pytest.raises(AudioError, match="holds no samples") as caught:
        read_audio(path)
    assert "remove" not in str(caught.value) and "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("x.aiff", [(-2 * NUM_SAMPLES - 12, bytes(4))]),
        ("x.aiff", [(-2 * NUM_SAMPLES - 12, b"\x7f\xff\xff\xff")]),
        ("x.au", [(8, b"\xff" * 4)]),
        ("x.au", [(8, bytes(4))]),
        ("x.au", [(8, struct.pack(">I", SIZE + 24))]),
        ("x.w64", [(-2 * NUM_SAMPLES - 8, bytes(8))]),
        ("x.w64", [(-2 * NUM_SAMPLES - 8, struct.pack("<Q", 24))]),
        ("x.caf", [(-2 * NUM_SAMPLES - 12, b"\xff" * 8)]),
        ("x.caf", [(-2 * NUM_SAMPLES - 12, struct.pack(">q", 0))]),
        ("x.rf64", [(28, bytes(8))]),
        ("x.rf64", [(28, b"\xff" * 8)]),
    ],
)
def test_other_containers_likewise(name, changes, samples, tmp_path, caplog):
    whole = content(samples, name[2:].upper(), "PCM_16")
    # The samples come last.
    changes = [(len(whole) + place if place < 0 else place, value) for place, value in changes]
    path = tmp_path / name
    path.write_bytes(patched(whole, *changes))
    found, words = read_with_words(path, caplog)
    assert_array_equal(found, samples)
    assert len(words) == 1


@pytest.mark.parametrize("name", ["x.au", "x.w64", "x.caf", "x.aiff", "x.wav", "x.rf64"])
def test_truncation_is_said_where_the_container_proves_it(name, samples, tmp_path):
    whole = content(samples, name[2:].upper(), "PCM_16")
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError, match=r"truncated, \d{4} bytes"):
        read_audio(path)


def test_a_flac_of_unknown_length_is_read_to_its_end(samples, tmp_path, caplog):
    whole = content(np.tile(samples, 20), "FLAC")
    path = tmp_path / "pipe.flac"
    path.write_bytes(patched(whole, (21, bytes([whole[21] & 0xF0])), (22, bytes(4))))
    found, words = read_with_words(path, caplog)
    assert_array_equal(found, np.tile(samples, 20))
    assert len(words) == 1 and "holds no length" in words[0]


def mpeg(signal, **more):
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 16000, 1, "MPEG_LAYER_III", format="MP3", **more) as file:
        file.write(signal)
    return stream.getvalue()


def without_table(data):
    """Leaves out the first frame, which holds the number of frames."""
    table = max(data.find(b"Xing"), data.find(b"Info"))
    assert table == 13
    second = data.index(data[:2], 4)
    return data[second:]


@pytest.mark.parametrize("loud", ["first", "last", "all"])
def test_an_mp3_without_a_table_is_decoded_to_its_end(loud, tmp_path, caplog):
    """The length by the rate of the first frame is too small or too large, or nearly right."""
    rng = np.random.default_rng(1)
    noise, quiet = 0.3 * rng.normal(size=16000), np.zeros(48000)
    parts = {"first": [noise, quiet], "last": [quiet, noise], "all": [noise] * 4}[loud]
    data = mpeg(np.concatenate(parts), bitrate_mode="VARIABLE", compression_level=0.3)
    path = tmp_path / "x.mp3"
    path.write_bytes(data)
    assert len(read_audio(path).samples) == 64000
    path.write_bytes(without_table(data))
    found, words = read_with_words(path, caplog)
    assert 64000 <= len(found) <= 64000 + 4 * 576 and not words
    rms = np.sqrt(np.mean((found / 32768) ** 2))
    assert rms == pytest.approx(0.3 if loud == "all" else 0.15, rel=0.1)
    path.write_bytes(b"ID3\3\0\0\0\0\1\0" + bytes(128) + without_table(data) + b"TAG" + bytes(125))
    assert len(read_audio(path).samples) == len(found)


def test_two_mp3_joined_are_read_both(tmp_path, caplog):
    rng = np.random.default_rng(1)
    one, two = (mpeg(0.3 * rng.normal(size=32000)) for _ in range(2))
    path = tmp_path / "x.mp3"
    path.write_bytes(one + two)
    found, words = read_with_words(path, caplog)
    assert len(found) >= 64000 and len(words) == 1 and "first part only" in words[0]


def test_an_mp3_cut_in_half_is_said_where_its_table_proves_it(tmp_path):
    data = mpeg(0.3 * np.random.default_rng(1).normal(size=64000))
    path = tmp_path / "x.mp3"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"x\.mp3: truncated"):
        read_audio(path)
    path.write_bytes(without_table(data)[: len(data) // 2])
    assert 25000 < len(read_audio(path).samples) < 35000


def test_an_mp3_is_read_under_any_name(tmp_path):
    (tmp_path / "x.wav").write_bytes(mpeg(0.3 * np.random.default_rng(1).normal(size=8000)))
    assert len(read_audio(tmp_path / "x.wav").samples) == 8000


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_chunks_behind_samples_of_unknown_number_are_left_out(size, samples, tmp_path, caplog):
    path = tmp_path / "x.wav"
    rest = chunk(b"LIST", b"INFOISFT\x0e\0\0\0Lavf58.29.100\0") + chunk(b"cue ", bytes(28))
    path.write_bytes(patched(content(samples) + rest, (40, little(size))))
    found, words = read_with_words(path, caplog)
    assert_array_equal(found, samples)
    assert len(words) == 1


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_whose_end_is_missing_is_said_and_two_in_one_are_refused(
    subtype, samples, tmp_path, caplog
):
    noise = 0.2 * np.random.default_rng(0).normal(size=80000)
    whole = content(noise, "OGG", subtype)
    path = tmp_path / "x.ogg"
    path.write_bytes(whole)
    assert read_with_words(path, caplog)[1] == []
    pages = [at for at in range(len(whole)) if whole[at : at + 4] == b"OggS"]
    path.write_bytes(whole[: pages[-1] + 100])
    try:
        found, words = read_with_words(path, caplog)
    except AudioError as error:
        assert subtype == "OPUS" and "malformed" in str(error)
    else:
        assert 16000 < len(found) < 80000
        assert len(words) == 1 and "its last page is missing" in words[0]
    path.write_bytes(whole + whole)
    with pytest.raises(AudioError, match="several recordings one after the other"):
        read_audio(path)


def container(values, size, bits, order="<", *, extensible=False, block=None, rate=None):
    """Returns a WAV of whole numbers as they are, in so many bytes each."""
    unsigned = np.asarray(values, np.int64) % (1 << 8 * size)
    byte_order = range(size) if order == "<" else range(size)[::-1]
    data = np.stack([unsigned >> 8 * n & 255 for n in byte_order], axis=1).astype("u1").tobytes()
    block = size if block is None else block
    tag, bits_told = (0xFFFE, 8 * size) if extensible else (1, bits)
    fmt = struct.pack(order + "2H2I2H", tag, 1, 16000, rate or 16000 * block, block, bits_told)
    if extensible:
        guid = b"\1\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
        fmt += struct.pack("<HHI", 22, bits, 4) + guid
    size_of = struct.Struct(order + "I").pack
    chunks = b"WAVEfmt " + size_of(len(fmt)) + fmt + b"data" + size_of(len(data)) + data
    return (b"RIFF" if order == "<" else b"RIFX") + size_of(len(chunks)) + chunks


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("size", "bits"), [(4, 24), (3, 20), (4, 20), (2, 12), (4, 16), (3, 16)])
def test_samples_that_lie_at_the_wrong_end_of_their_bytes(
    size, bits, extensible, samples, tmp_path
):
    truth = np.asarray(samples, np.int64) << max(bits - 16, 0) >> max(16 - bits, 0)
    truth[::2] += bits > 16  # else its lowest bits are zero, as those of the other end
    expected = truth / 2.0 ** (bits - 1)
    kinds = {
        "high": truth << 8 * size - bits,
        "zero_top": truth % (1 << bits),
        "sign": truth,
    }
    for name, values in kinds.items():
        path = tmp_path / f"{name}.wav"
        path.write_bytes(container(values, size, bits, extensible=extensible))
        found = read_multichannel(path).samples[:, 0]
        assert_allclose(found, expected, rtol=0, atol=1e-7, err_msg=name)


def test_sixteen_bits_in_the_lower_three_of_four_bytes(samples, tmp_path):
    """Their lowest byte is zero too: what tells is that no sample would be negative."""
    values = (np.asarray(samples, np.int64) << 8) % (1 << 24)
    (tmp_path / "x.wav").write_bytes(container(values, 4, 24))
    found = read_multichannel(tmp_path / "x.wav").samples[:, 0]
    assert_array_equal(found, samples / np.float32(32768))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda s: container(np.asarray(s, np.int64) << 8, 4, 24), "either end"),
        (lambda s: container(np.random.default_rng(0).integers(-(2**31), 2**31, 900), 4, 24),
         "use all bits"),
        (lambda s: container(s, 2, 16, block=8), "blocks of 8 bytes, which disagree"),
        (lambda s: container(s, 2, 24), "24 bits per sample, 1 channels and blocks of 2 bytes"),
        (lambda s: container(s, 2, 16, block=4), "use all bits"),
    ],
    ids=["quiet or low", "all bits", "eight", "more bits than room", "packed"],
)  # fmt: skip
def test_sizes_that_disagree_are_refused_in_one_line(data, reason, samples, tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(data(samples))
    with pytest.raises(AudioError, match=reason) as caught:
        read_multichannel(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "block"), [(2, 1), (2, 4), (2, 3), (3, 4), (3, 1), (2, 8)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_block_size_that_bits_and_bytes_per_second_prove_wrong(
    size, block, order, samples, tmp_path
):
    values = np.asarray(samples, np.int64) << 8 * size - 16
    values[::2] += size > 2
    path = tmp_path / "x.wav"
    path.write_bytes(container(values, size, 8 * size, order, block=block, rate=16000 * size))
    expected = values / 2.0 ** (8 * size - 1)
    assert_allclose(read_multichannel(path).samples[:, 0], expected, rtol=0, atol=1e-7)


def test_the_other_order_of_bytes(samples, tmp_path):
    truth = np.asarray(samples, np.int64) << 8 | 1
    for name, values in (("low", truth % (1 << 24)), ("sign", truth), ("high", truth << 8)):
        (tmp_path / f"{name}.wav").write_bytes(container(values, 4, 24, ">"))
        found = read_multichannel(tmp_path / f"{name}.wav").samples[:, 0]
        assert_allclose(found, truth / 2.0**23, rtol=0, atol=1e-7, err_msg=name)


def test_silence_lies_at_both_ends(tmp_path):
    (tmp_path / "x.wav").write_bytes(container(np.zeros(500), 4, 24))
    assert not read_multichannel(tmp_path / "x.wav").samples.any()


def some_formats(samples, folder):
    """Writes a file of each ending that can be read and written by libsndfile; their names."""
    names = set()
    for suffix in audio.readable_suffixes():
        name = audio.FORMATS.get(suffix, suffix[1:].upper())
        aliases = [key for key, value in audio._ALIASES.items() if suffix in value]
        audio_format = (aliases or [name])[0]
        subtype = {"MP3": "MPEG_LAYER_III", "OGG": "OPUS" if suffix == ".opus" else "VORBIS"}
        subtype |= {"WVE": "ALAW"}
        rate_hz = 8000 if audio_format == "WVE" else 16000
        path = folder / f"of{suffix[1:]}{suffix.upper() if len(names) % 2 else suffix}"
        soundfile.write(
            path, samples, rate_hz, subtype.get(audio_format, "PCM_16"), format=audio_format
        )
        names.add(path.name)
    return names


def test_a_folder_gives_all_that_the_library_reads(samples, tmp_path):
    names = some_formats(samples, tmp_path)
    assert names >= {"ofwav.wav"} and len(names) > 20
    assert {path.name for path in audio.find_audio(tmp_path)} == names
    for name in names:
        found = read_audio(tmp_path / name)
        assert abs(len(found.samples) * found.source_rate_hz / 16000 - NUM_SAMPLES) < 1200, name
        assert np.abs(found.samples).max() == pytest.approx(0.52, abs=0.1), name


def test_sounds_that_the_library_does_not_read_are_listed(samples, tmp_path, caplog):
    others = ["a.m4a", "b.WMA", "c.mp4", "sub/d.aac", "e.amr"]
    (tmp_path / "sub").mkdir()
    for name in others:
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    (tmp_path / "note.txt").write_text("no sound")
    with pytest.raises(ValueError, match=r"no audio file found; there are 5 files .*a\.m4a"):
        audio.find_audio(tmp_path)
    soundfile.write(tmp_path / "x.wav", samples, 16000)
    with caplog.at_level(logging.WARNING, logger="speech"):
        for _ in range(2):
            assert [path.name for path in audio.find_audio(tmp_path)] == ["x.wav"]
    assert len(caplog.messages) == 1 and "left out 5 files" in caplog.text
    assert len(audio.find_audio(tmp_path, unreadable=True)) == 6


@pytest.mark.parametrize(
    "name",
    [
        "sound/audio",
        "sound/headers",
        "sound/mixing",
        "data/corpus",
        "enhance",
        "data/prepared",
        "data/mixtures",
    ],
)
def test_no_message_about_a_recording_advises_removing_it(name):
    text = (Path(__file__).parent.parent / "speech" / f"{name}.py").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert not re.search(r"(remove|delete) (it|the (file|recording|folder)|them)\b.*\"", line)


def with_flac_total(data, total):
    """A FLAC whose header holds another number of samples."""
    field = int.from_bytes(data[21:26]) & ~((1 << 36) - 1) | total
    return data[:21] + field.to_bytes(5) + data[26:]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_S8"])
@pytest.mark.parametrize("shape", [(20_001,), (16_384,), (100,), (9_000, 2), (300_000,)])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 11_111])
def test_a_flac_that_says_too_few_samples_is_read_to_its_end(
    tmp_path, rng, caplog, subtype, shape, rate_hz
):
    path = tmp_path / "x.flac"
    soundfile.write(path, 0.1 * rng.standard_normal(shape), rate_hz, subtype)
    whole = read_multichannel(path).samples
    data = path.read_bytes()
    assert not caplog.records  # a right number is taken as it is
    for place, total in enumerate((1, shape[0] // 2, shape[0] - 1)):
        path = tmp_path / f"{place}.flac"
        # Tags behind the last frame are no frames.
        path.write_bytes(with_flac_total(data, total) + b"TAG" * place)
        caplog.clear()
        assert_array_equal(read_multichannel(path).samples, whole)
        assert f"its header says {shape[0] - total} samples too few" in caplog.text
    path.write_bytes(with_flac_total(data, shape[0] + 1))
    with pytest.raises(AudioError, match="truncated"):
        read_multichannel(path)
