from __future__ import annotations

import logging
import struct

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from speech.sound import audio
from speech.sound.audio import (
    AudioError,
    find_audio,
    is_silent,
    lag_samples,
    peak_normalize,
    read_audio,
    read_multichannel,
    resample,
    write_audio,
)
from tests.builders import make_speech
from tests.reference.sphere import quantize, sphere_header, write_sphere


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph", ".nist", ".aiff"])
def test_pcm16_round_trip_is_exact(tmp_path, rng, suffix):
    samples = quantize(make_speech(rng)) / 32768
    path = tmp_path / f"x{suffix}"
    soundfile.write(path, quantize(samples), 16000, format=audio.FORMATS[suffix])
    read = read_audio(path)
    assert_array_equal(read.samples, samples.astype(np.float32))
    assert read.samples.dtype == np.float32
    assert (read.sample_rate_hz, read.source_rate_hz, read.source_channels) == (16000, 16000, 1)
    assert (read.subtype, read.path) == ("PCM_16", path)


def test_timit_sphere_is_read(tmp_path, rng):
    samples = make_speech(rng)
    write_sphere(tmp_path / "SA1.WAV", samples)
    read = read_audio(tmp_path / "SA1.WAV").samples
    assert_array_equal(read, (quantize(samples) / 32768).astype(np.float32))


def test_float_round_trip_is_exact_and_reproducible(tmp_path, rng):
    samples = (3 * rng.standard_normal(1000)).astype(np.float32)
    write_audio(tmp_path / "new" / "x.wav", samples)
    assert_array_equal(read_audio(tmp_path / "new" / "x.wav").samples, samples)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.wav"]
    written = (tmp_path / "new" / "x.wav").read_bytes()
    position = written.find(b"PEAK")  # libsndfile puts the time of writing there
    assert position > 0 and written[position + 12 : position + 16] == bytes(4)


@pytest.mark.parametrize(("suffix", "subtype"), [(".flac", "PCM_24"), (".ogg", "VORBIS")])
def test_other_formats_are_written(tmp_path, rng, suffix, subtype):
    samples = make_speech(rng)
    write_audio(tmp_path / f"x{suffix}", samples, subtype=subtype)
    read = read_audio(tmp_path / f"x{suffix}").samples
    assert len(read) == len(samples)
    assert np.corrcoef(read, samples)[0, 1] > 0.9


def test_channels_are_averaged(tmp_path, rng):
    samples = rng.uniform(-1, 1, (5000, 3)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="FLOAT")
    read = read_audio(tmp_path / "x.wav")
    naive = [sum(float(value) for value in row) / 3 for row in samples]
    assert_allclose(read.samples, naive, rtol=1e-6, atol=1e-7)
    assert read.source_channels == 3


def test_multichannel_is_left_as_it_is(tmp_path, rng):
    samples = rng.uniform(-1, 1, (5000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, 44100, subtype="FLOAT")
    read = read_multichannel(tmp_path / "x.wav")
    assert_array_equal(read.samples, samples)
    assert (read.sample_rate_hz, read.source_rate_hz, read.source_channels) == (44100, 44100, 2)
    soundfile.write(tmp_path / "mono.wav", samples[:, 0], 8000)
    assert read_multichannel(tmp_path / "mono.wav").samples.shape == (5000, 1)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_frequency_level_length_and_phase(tmp_path, rate_hz):
    num_samples = rate_hz + 7
    sine = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(num_samples) / rate_hz)
    soundfile.write(tmp_path / "x.wav", sine, rate_hz, subtype="FLOAT")
    read = read_audio(tmp_path / "x.wav").samples
    assert len(read) == round(num_samples * 16000 / rate_hz)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(len(read)) / 16000)
    assert_allclose(read[800:-800], expected[800:-800], rtol=0, atol=1e-4)


def test_resample_keeps_channels_and_dtype():
    assert resample(np.zeros((441, 2)), 44100, 16000).shape == (160, 2)
    same = np.zeros(5, np.float32)
    assert resample(same, 8000, 8000) is same


def test_conversions_are_announced_once(tmp_path, rng, caplog, monkeypatch):
    monkeypatch.setattr(audio, "_announced", set())
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", rng.uniform(-1, 1, (900, 2)), 32000)
    soundfile.write(tmp_path / "plain.wav", rng.uniform(-1, 1, 900), 16000)
    with caplog.at_level(logging.INFO, logger="speech"):
        for path in find_audio(tmp_path):
            read_audio(path)
    assert len(caplog.messages) == 1
    assert "a.wav: 2 channels averaged, 32000 Hz resampled to 16000 Hz" in caplog.messages[0]


def corrupt_files(folder, rng) -> dict[str, str]:
    """Writes one file of each kind of damage; returns {name: reason expected}."""
    good = quantize(make_speech(rng, 4000))
    soundfile.write(folder / "good.wav", good, 16000)
    soundfile.write(folder / "good.flac", good, 16000)
    soundfile.write(folder / "good.aiff", good, 16000)
    soundfile.write(folder / "good64.wav", good, 16000, format="RF64")
    wav, flac, aiff, rf64 = (
        (folder / name).read_bytes()
        for name in ("good.wav", "good.flac", "good.aiff", "good64.wav")
    )
    endless_flac = bytearray(flac)
    endless_flac[21] |= 0x0F  # the 36-bit number of samples, all ones
    endless_flac[22:26] = b"\xff" * 4
    contents = {
        "empty.wav": (b"", "is empty"),
        "text.wav": (b"not audio at all\n" * 50, "cannot be decoded"),
        "header.wav": (wav[:30], "cannot be decoded"),
        "cut.wav": (wav[:2000], "truncated, 6044 bytes"),
        "cut.flac": (flac[: len(flac) // 2], "cannot be decoded|truncated"),
        "cut.aiff": (aiff[:2000], "truncated"),
        "cut64.wav": (rf64[:2000], "truncated"),
        "cut.sph": (sphere_header(4000) + good.tobytes()[:1000], "truncated, 7000 bytes"),
        "shorten.sph": (
            sphere_header(4000, coding="pcm,embedded-shorten-v2.00") + b"ajkg" + bytes(999),
            "compressed NIST SPHERE",
        ),
        "zero.sph": (sphere_header(0), "cannot be decoded|no samples"),
        "channels.sph": (sphere_header(4000, num_channels=0) + good.tobytes(), "cannot be decoded"),
        "endless.sph": (sphere_header(2**31) + good.tobytes(), "truncated"),
        "nonsense.sph": (b"NIST_1A\n   10x4\n" + bytes(2000), "cannot be decoded"),
        "endless.wav": (wav[:40] + struct.pack("<I", 2**30) + wav[44:], "truncated"),
        "endless.flac": (bytes(endless_flac), "cannot be decoded|truncated"),
        "channels.wav": (wav[:22] + bytes(2) + wav[24:], "cannot be decoded"),
        "rate0.wav": (wav[:24] + bytes(4) + wav[28:], "cannot be decoded"),
        "rate1.wav": (wav[:24] + struct.pack("<I", 1) + wav[28:], "rate of 1 Hz"),
        "headerless.raw": (good.tobytes(), "headerless"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in contents.items()}
    nan = good / 32768
    nan[[3, 5]] = np.nan, np.inf
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    soundfile.write(folder / "opposed.wav", [[np.inf, -np.inf]] * 9, 16000, subtype="FLOAT")
    soundfile.write(folder / "none.wav", good[:0], 16000)
    soundfile.write(folder / "blink.wav", good[:1], 768000)
    (folder / "folder.wav").mkdir()
    return reasons | {
        "nan.wav": "2 samples are NaN or infinite",
        "opposed.wav": "NaN or infinite",
        "none.wav": "no samples",
        "blink.wav": "too short",
        "folder.wav": "not a file",
        "missing.wav": "cannot be read \\(No such file",
    }


def test_corrupt_files_are_refused_in_one_line(tmp_path, rng):
    for name, reason in corrupt_files(tmp_path, rng).items():
        with pytest.raises(AudioError, match=reason) as caught:
            read_audio(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / name)) and "\n" not in message, name
        assert isinstance(caught.value, ValueError)
        if name != "blink.wav":
            with pytest.raises(AudioError, match=reason):
                read_multichannel(tmp_path / name)
    for name in ("good.wav", "good.flac", "good.aiff", "good64.wav"):
        assert len(read_audio(tmp_path / name).samples) == 4000


def test_wav_written_to_a_pipe_is_read(tmp_path, rng):
    soundfile.write(tmp_path / "x.wav", quantize(make_speech(rng)), 16000)
    content = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(content[:40] + b"\xff" * 4 + content[44:])
    assert len(read_audio(tmp_path / "x.wav").samples) == 8000


@pytest.mark.parametrize(
    ("name", "samples", "subtype", "reason"),
    [
        ("x.mp4", np.zeros(9), "FLOAT", "use one of .wav, .flac"),
        ("x.flac", np.zeros(9), "FLOAT", "FLAC has no subtype 'FLOAT'"),
        ("x.wav", np.array([0, np.nan]), "FLOAT", "NaN"),
        ("x.wav", np.array([0, 1]), "FLOAT", "samples must be float"),
        ("x.wav", np.ones(2) + 1j, "FLOAT", "received shape \\(2,\\) of complex128"),
        ("x.wav", np.array(0.5), "FLOAT", "received shape \\(\\)"),
        ("x.wav", None, "FLOAT", "of object"),
    ],
)
def test_bad_output_is_refused_and_leaves_nothing(tmp_path, name, samples, subtype, reason):
    with pytest.raises(ValueError, match=reason):
        write_audio(tmp_path / name, samples, subtype=subtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("num_channels", "rate_hz"), [(1, 200_001), (2, 768_000), (256, 16000)])
def test_what_vorbis_has_not_is_refused_where_its_encoder_would_crash(
    tmp_path, num_channels, rate_hz
):
    with pytest.raises(ValueError, match=r"x.ogg: cannot be written as OGG .* at most 200000 Hz"):
        write_audio(tmp_path / "x.ogg", np.zeros((9, num_channels)), rate_hz, "VORBIS")
    assert not list(tmp_path.iterdir())


def test_vorbis_up_to_its_limits(tmp_path):
    write_audio(tmp_path / "x.ogg", np.zeros((9, 255)), 200_000, "VORBIS")
    assert soundfile.info(tmp_path / "x.ogg").channels == 255


def test_clipping_is_announced(tmp_path, caplog):
    write_audio(tmp_path / "x.wav", np.array([0.5, 2.0, -3.0]), subtype="PCM_16")
    assert "2 samples beyond full scale were clipped" in caplog.text
    assert_allclose(read_audio(tmp_path / "x.wav").samples, [0.5, 1, -1], rtol=0, atol=1e-4)


def test_find_audio(tmp_path):
    wanted = ["B/x.Flac", "a.WAV", "a/b/c.sph", "b.wav"]
    others = ["._a.wav", ".hidden/x.wav", "a/note.txt", "a/b/x.mp4", "a.wav.bak"]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert found == sorted(wanted, key=lambda name: tuple(name.split("/")))


def test_find_audio_names_the_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        find_audio(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no audio file found; looked for .wav"):
        find_audio(tmp_path)
    (tmp_path / "x.wav").touch()
    with pytest.raises(ValueError, match="not a folder"):
        find_audio(tmp_path / "x.wav")


def test_peak_normalize(rng):
    samples = (0.01 * rng.standard_normal(100)).astype(np.float32)
    normalized = peak_normalize(samples)
    assert np.max(np.abs(normalized)) == 1 and normalized.dtype == np.float32
    assert_allclose(normalized * np.max(np.abs(samples)), samples, rtol=1e-6, atol=0)
    assert_array_equal(peak_normalize(np.zeros(5)), np.zeros(5))
    assert peak_normalize(np.zeros(0)).shape == (0,)


def test_is_silent():
    assert is_silent(np.zeros(5)) and is_silent(np.zeros(0))
    assert not is_silent(np.array([0, 1e-30]))


def test_more_samples_than_a_file_is_believed_to_hold_are_refused(tmp_path, rng, monkeypatch):
    path = tmp_path / "x.wav"
    soundfile.write(path, quantize(make_speech(rng, 4000)), 8000)
    assert len(read_audio(path).samples) == 8000
    monkeypatch.setattr(audio, "MAX_VALUES_A_BYTE", 0)
    monkeypatch.setattr(audio, "MAX_SMALL_VALUES", 7999)  # what it comes to at 16 kHz: 8000
    # Whoever reads it will resample it: the amount counts at the rate that all networks have.
    for read in (read_audio, read_multichannel):
        with pytest.raises(AudioError, match="8,000 samples in 8,044 bytes: truncated, or silence"):
            read(path)
    soundfile.write(path, quantize(make_speech(rng, 8000)), 48_000)
    with pytest.raises(AudioError, match="8,000 samples in 16,044 bytes"):
        read_multichannel(path)
    monkeypatch.setattr(audio, "MAX_SMALL_VALUES", 8000)
    assert read_multichannel(path).samples.shape == (8000, 1)


def test_no_more_is_decoded_than_the_header_says(tmp_path, rng, monkeypatch):
    """The limit on samples looks at the header alone."""
    soundfile.write(tmp_path / "x.wav", quantize(make_speech(rng, 4000)), 16000)
    monkeypatch.setattr(soundfile.SoundFile, "frames", 10)
    assert len(read_audio(tmp_path / "x.wav").samples) == 10


@pytest.mark.parametrize("lag", [-300, -7, 0, 1, 160, 300])
@pytest.mark.parametrize("gain", [0.3, -2.0])
def test_lags_are_found_and_those_beyond_are_not_looked_for(lag, gain, rng):
    reference = rng.standard_normal(2000)
    later = np.zeros(2000)
    later[max(lag, 0) : 2000 + min(lag, 0)] = reference[max(-lag, 0) : 2000 - max(lag, 0)]
    later = gain * later + 0.1 * rng.standard_normal(2000)
    assert lag_samples(later, reference, 300) == lag
    assert abs(lag_samples(later, reference, 5)) <= 5
    assert lag_samples(later[:3], later[:3], 4000) == 0
