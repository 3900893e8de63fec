"""Enhancing files: same rate, channels, length, tree and peak; long files; bad input."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose

from speech import enhance
from speech.data.corpus import bundled_speech
from speech.enhance import main
from speech.net import blockconv
from speech.net import enhancer as net_enhancer
from speech.net.enhancer import BASELINE_MODEL, Enhancer, blocks
from speech.net.fcn import FCNConfig, build_fcn
from speech.net.keras_models import load_model, save_model
from speech.sound.audio import peak_normalize, read_audio, write_audio
from tests.builders import make_speech, write_sound


@pytest.fixture
def model_path(tmp_path) -> Path:
    path = tmp_path / "small.h5"
    save_model(
        build_fcn(FCNConfig(num_hidden_layers=2, num_filters=4, kernel_size=11), seed=0),
        path,
        {"kind": "waveform", "sample_rate_hz": 16000},
    )
    return path


@pytest.fixture(params=["c", "keras"])
def enhancer(request, model_path, monkeypatch) -> Enhancer:
    if request.param == "c" and not blockconv.is_available():
        pytest.skip("no C compiler here")
    if request.param == "keras":
        monkeypatch.setattr(blockconv, "is_available", lambda: False)
    enhancer = Enhancer(model_path)
    assert enhancer.engine == request.param
    return enhancer


@pytest.mark.parametrize("num_samples", [1, 320, 5000])
def test_output_is_the_network_s(enhancer, model_path, num_samples, rng):
    signal = 0.2 * rng.standard_normal(num_samples)
    expected = np.array(load_model(model_path)(peak_normalize(signal)[None, :, None]))[0, :, 0]
    assert_allclose(enhancer(signal), expected, rtol=0, atol=1e-5)
    if num_samples > 1:  # one sample is normalised to nothing
        gain = np.dot(signal, expected) / np.dot(expected, expected)
        assert_allclose(enhancer.enhance(signal), gain * expected, rtol=0, atol=1e-5)
        assert np.abs(enhancer.enhance(signal, peak=1.0)).max() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("signal", "options", "message"),
    [
        (np.array([0.1, np.nan]), {}, "signal holds a NaN or an infinity"),
        (np.array([0.1, np.inf]), {}, "signal holds a NaN or an infinity"),
        (np.zeros((2, 9)), {}, r"must be \[num_samples\] of real numbers, .* \(2, 9\)"),
        (np.array(1.0), {}, r"received shape \(\)"),
        (np.ones(9) + 1j, {}, "of complex128"),
        (np.array(["a"]), {}, "of <U1"),
        (None, {}, "of object"),
        (np.ones(9), {"peak": np.nan}, "peak is nan"),
        (np.ones(9), {"peak": -1.0}, "peak is -1.0"),
    ],
)
def test_what_is_no_signal_is_refused(enhancer, signal, options, message):
    with pytest.raises(ValueError, match=message):
        enhancer.enhance(signal, **options)


def test_whole_numbers_and_lists_are_signals_too(enhancer, rng):
    signal = rng.integers(-32768, 32767, 500)
    signal[7] = -32768
    expected = enhancer.enhance(signal.astype(float))
    for other in (signal.astype(np.int16), list(signal)):
        assert_allclose(enhancer.enhance(other), expected, rtol=1e-5, atol=1)


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_threads_that_would_end_the_process_are_refused(model_path, threads, monkeypatch):
    enhancer = Enhancer(model_path)
    if enhancer.engine == "c":
        with pytest.raises(ValueError, match=f"threads is {threads}; give .* 1 to 1024"):
            enhancer.enhance(np.ones(9), threads=threads)
    monkeypatch.setenv("SPEECH_THREADS", str(threads))
    with pytest.raises(ValueError, match="SPEECH_THREADS"):
        blockconv.default_threads()


def test_silence_stays_silent(enhancer):
    assert not enhancer.enhance(np.zeros(1000)).any()


@pytest.mark.parametrize(
    ("rate_hz", "channels", "suffix", "subtype"),
    [(16000, 1, ".wav", "PCM_16"), (44100, 2, ".flac", "PCM_24"), (8000, 3, ".wav", "FLOAT")],
)
def test_rate_channels_length_and_format_are_kept_and_the_level_fits(
    rate_hz, channels, suffix, subtype, model_path, tmp_path, rng
):
    samples = np.stack([make_speech(rng, 9001) * 0.7**c for c in range(channels)], axis=1)
    source = write_sound(tmp_path / f"in{suffix}", samples, rate_hz, subtype)
    target = tmp_path / f"out{suffix}"
    assert main([str(source), "-o", str(target), "--model", str(model_path)]) == 0
    before, after = soundfile.info(source), soundfile.info(target)
    for name in ("samplerate", "channels", "frames", "format", "subtype"):
        assert getattr(before, name) == getattr(after, name), name
    noisy, _ = soundfile.read(source, always_2d=True)
    enhanced, _ = soundfile.read(target, always_2d=True)
    for before, after in zip(noisy.T, enhanced.T, strict=True):
        assert np.dot(before, after) / np.dot(after, after) == pytest.approx(1.0, abs=0.002)


def test_a_folder_keeps_its_tree_and_bad_files_are_listed(model_path, tmp_path, rng, capsys):
    folder = tmp_path / "in"
    write_sound(folder / "a" / "one.wav", make_speech(rng, 4000))
    write_sound(folder / "b" / "two.flac", make_speech(rng, 4000), subtype="PCM_16")
    write_sound(folder / "b" / "silent.wav", np.zeros(4000))
    write_sound(folder / "short.wav", make_speech(rng, 320))
    write_sound(folder / "nan.wav", np.full(2000, np.nan), subtype="FLOAT")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not audio")
    summary = tmp_path / "summary.json"
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--model", str(model_path)]
    assert main([*arguments, "--json", str(summary)]) == 0
    written = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*"))
    assert [str(p) for p in written] == ["a/one.wav", "b/silent.wav", "b/two.flac", "short.wav"]
    output = capsys.readouterr()
    assert "4 enhanced, 3 skipped" in output.out
    for name in ("nan.wav", "empty.wav", "text.wav"):
        assert name in output.err
    assert len(json.loads(summary.read_text())["skipped"]) == 3


def test_a_folder_of_many_formats(model_path, tmp_path, rng, capsys):
    """What can be read is enhanced, in its own format if that can be written; names differ."""
    folder = tmp_path / "in"
    for name in ("x.wav", "x.mp3", "x.caf", "y.opus", "z.au", "z.MP3", "v.w64", "u.oga"):
        write_as = {"opus": ("OGG", "OPUS"), "mp3": ("MP3", None), "oga": ("OGG", None)}
        ending = name[2:].lower()
        audio_format, subtype = write_as.get(ending, (ending.upper(), "PCM_16"))
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / name, make_speech(rng, 4000), 16000, subtype, format=audio_format)
    (folder / "w.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    (folder / "note.txt").write_text("no sound")
    assert main([str(folder), "-o", str(tmp_path / "out"), "--model", str(model_path)]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"x.wav", "x.mp3.wav", "x.caf", "y.wav", "z.au", "z.wav", "v.w64", "u.oga"}
    output = capsys.readouterr()
    assert "8 enhanced, 1 skipped" in output.out and "w.m4a: cannot be decoded" in output.err


def bad_inputs(tmp_path):
    tmp_path.joinpath("text.wav").write_text("not audio")
    tmp_path.joinpath("cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    write_sound(tmp_path / "good.wav", np.ones(100) / 2)
    tmp_path.joinpath("nothing").mkdir()
    return [
        (["text.wav", "-o", "out.wav"], "text.wav"),
        (["missing.wav", "-o", "out.wav"], "missing.wav.*no such file"),
        (["nothing", "-o", "out"], "nothing.*no audio file"),
        (["good.wav", "-o", "out.wav", "--model", "cut.h5"], r"cut\.h5"),
        (["good.wav", "-o", "out.wav", "--model", "missing.h5"], r"missing\.h5"),
        (["good.wav", "-o", "good.wav"], "overwritten"),
        (["good.wav", "-o", "out.mp4"], "cannot write '.mp4'"),
        ([".", "-o", "enhanced"], "inside the input folder"),
    ]


@pytest.mark.parametrize("number", range(8))
def test_bad_input_is_one_line(number, model_path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = bad_inputs(tmp_path)[number]
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(model_path)]
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert not Path("out.wav").exists()


def test_channels_keep_their_balance(model_path, tmp_path, rng):
    speech = make_speech(rng, 8000)
    samples = np.stack([speech, 0.01 * speech], axis=1)
    source = write_sound(tmp_path / "in.wav", samples, subtype="FLOAT")
    arguments = [str(source), "-o", str(tmp_path / "out.wav"), "--model", str(model_path)]
    assert main([*arguments, "--peak", "1"]) == 0
    enhanced, _ = soundfile.read(tmp_path / "out.wav")
    peaks, before = np.abs(enhanced).max(0), np.abs(samples).max(0)
    assert peaks.max() == pytest.approx(1.0, rel=1e-5)
    assert peaks[1] / peaks[0] == pytest.approx(before[1] / before[0], rel=1e-4)


def speech_level_db(clean, signal):
    """Returns the level of the clean speech in a signal."""
    return 20 * np.log10(abs(np.dot(clean, signal) / np.dot(clean, clean)))


@pytest.mark.parametrize("fault", ["click", "burst", "offset", "clipped", "hum", "none"])
def test_the_speech_keeps_its_level_whatever_the_input_holds(fault, tmp_path):
    """With the shipped model; a peak says nothing of the level."""
    clean = 0.2 * peak_normalize(read_audio(bundled_speech("TEST")[0].path).samples)[:24000]
    noisy = clean.copy()
    if fault == "click":
        noisy[12000] = 0.99
    elif fault == "burst":
        noisy[20000:20040] = 0.9
    elif fault == "offset":
        noisy += 0.3
    elif fault == "clipped":
        noisy = np.clip(noisy, -0.1, 0.1)
    elif fault == "hum":
        noisy += 0.05 * np.sin(2 * np.pi * 50 * np.arange(len(noisy)) / 16000)
    enhanced = Enhancer(BASELINE_MODEL).enhance(noisy)
    before = speech_level_db(clean, noisy - noisy.mean())
    assert speech_level_db(clean, enhanced) == pytest.approx(before, abs=1.0)


@pytest.mark.parametrize("snr_db", [-5, 5])
@pytest.mark.parametrize("in_blocks", [False, True])
def test_noise_does_not_change_the_level_of_the_speech(snr_db, in_blocks, monkeypatch, rng):
    if in_blocks:
        for name, value in (("WHOLE_SECONDS", 0.5), ("BLOCK_SECONDS", 1.0), ("FADE_SECONDS", 0.1)):
            monkeypatch.setattr(net_enhancer, name, value)
    clean = 0.05 * peak_normalize(read_audio(bundled_speech("TEST")[0].path).samples)
    noise = rng.standard_normal(len(clean))
    scale = np.sqrt(np.dot(clean, clean) / np.dot(noise, noise) / 10 ** (snr_db / 10))
    enhanced = Enhancer(BASELINE_MODEL).enhance(clean + scale * noise)
    assert abs(speech_level_db(clean, enhanced)) < 1.0


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e30])
def test_any_level_that_a_float_has_is_fitted(scale, enhancer, rng):
    signal = make_speech(rng, 4000).astype(np.float32)
    expected = enhancer.enhance(signal)
    assert_allclose(enhancer.enhance(signal * np.float32(scale)) / scale, expected, atol=1e-4)


def test_a_network_that_turns_the_sign_is_no_silence(enhancer, rng):
    signal = make_speech(rng, 4000)
    output = enhancer(signal)
    run = enhancer._run
    enhancer._run = lambda given, threads: -run(given, threads)
    assert_allclose(enhancer.enhance(signal), net_enhancer.fit_level(output, signal), atol=1e-6)


@pytest.mark.parametrize(("suffix", "subtype"), [(".wav", "PCM_16"), (".flac", "PCM_24")])
def test_integer_formats_are_turned_down_where_they_would_clip(
    suffix, subtype, model_path, tmp_path, capsys, monkeypatch, rng
):
    for module in (enhance, net_enhancer):
        monkeypatch.setattr(module, "fit_level", lambda output, noisy: 3 * noisy)
    speech = 0.9 * make_speech(rng, 4000) / np.abs(make_speech(rng, 4000)).max()
    samples = np.stack([np.clip(speech, -0.9, 0.9), 0.1 * np.clip(speech, -0.9, 0.9)], axis=1)
    source = write_sound(tmp_path / f"in{suffix}", samples, subtype=subtype)
    summary = tmp_path / "s.json"
    target = tmp_path / f"out{suffix}"
    arguments = [str(source), "-o", str(target), "--model", str(model_path), "--json", str(summary)]
    assert main(arguments) == 0
    enhanced, _ = soundfile.read(target)
    down_db = json.loads(summary.read_text())["files"][0]["turned_down_db"]
    highest = np.abs(3 * soundfile.read(source)[0]).max()
    assert down_db == pytest.approx(20 * np.log10(highest), abs=0.001)
    assert_allclose(enhanced, 3 * soundfile.read(source)[0] / highest, rtol=0, atol=1e-4)
    output = capsys.readouterr().err
    assert "turned down by" in output and "clipped" in output and "beyond full scale" not in output
    float_source = write_sound(tmp_path / "f.wav", samples, subtype="FLOAT")
    target = tmp_path / "g.wav"
    assert main([str(float_source), "-o", str(target), "--model", str(model_path)]) == 0
    assert np.abs(soundfile.read(target)[0]).max() == pytest.approx(2.7, abs=0.1)
    assert "turned down" not in capsys.readouterr().err


def test_one_enhancer_in_two_threads(model_path, rng):
    enhancer = Enhancer(model_path)
    signals = [make_speech(rng, 20000 + 1000 * n) for n in range(8)]
    alone = [enhancer(signal) for signal in signals]
    with ThreadPoolExecutor(2) as pool:
        for expected, found in zip(alone, pool.map(enhancer, signals), strict=True):
            assert np.array_equal(expected, found)


def test_a_long_vorbis_file_and_an_mp3_are_written(model_path, tmp_path, rng):
    """libsndfile's encoder crashed on a long signal, and WAV holds no MP3 of its own."""
    samples = np.tile(make_speech(rng, 16000), 90)
    source = tmp_path / "in.ogg"
    write_audio(source, samples, 16000, "VORBIS")
    assert main([str(source), "-o", str(tmp_path / "o"), "--model", str(model_path)]) == 0
    assert soundfile.info(tmp_path / "o" / "in.ogg").frames == len(samples)
    soundfile.write(tmp_path / "in.mp3", samples[:16000], 16000, format="MP3")
    target = tmp_path / "mp3.wav"
    arguments = [str(tmp_path / "in.mp3"), "-o", str(target), "--model", str(model_path)]
    assert main(arguments) == 0
    assert soundfile.info(target).subtype == "PCM_16"


def test_two_inputs_for_one_output_are_refused(model_path, tmp_path, capsys):
    for folder in ("a", "b"):
        write_sound(tmp_path / folder / "x.wav", np.ones(100) / 2)
    inputs = [str(tmp_path / folder / "x.wav") for folder in ("a", "b")]
    assert main([*inputs, "-o", str(tmp_path / "out"), "--model", str(model_path)]) == 1
    assert "would both be written" in capsys.readouterr().err


def test_a_model_of_another_kind_is_refused(tmp_path, capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    save_model(model, tmp_path / "dense.h5", {})
    write_sound(tmp_path / "x.wav", np.ones(100) / 2)
    arguments = [str(tmp_path / "x.wav"), "-o", str(tmp_path / "y.wav")]
    assert main([*arguments, "--model", str(tmp_path / "dense.h5")]) == 1
    assert "not one from waveform to waveform" in capsys.readouterr().err


@pytest.mark.parametrize("num_samples", [1, 100, 101, 150, 199, 200, 201, 290, 300, 1000, 12345])
def test_blocks_cover_the_signal_and_overlap(num_samples):
    found = list(blocks(num_samples, 100, 10))
    assert found[0][0] == 0
    assert found[-1][1] == num_samples
    for (_, stop), (start, _) in zip(found, found[1:], strict=False):
        assert stop - start == 10
    sizes = [stop - start for start, stop in found]
    assert max(sizes) <= 110
    if num_samples > 110:
        assert min(sizes) > 50


def test_a_long_file_is_cross_faded_without_steps(model_path, monkeypatch, rng):
    """Where the statistics do not matter, blocks and whole agree; nothing jumps at a seam."""
    for name, value in (("WHOLE_SECONDS", 1.0), ("BLOCK_SECONDS", 0.75), ("FADE_SECONDS", 0.1)):
        monkeypatch.setattr(net_enhancer, name, value)
    enhancer = Enhancer(model_path)
    time_s = np.arange(5 * 16000) / 16000
    signal = 0.3 * np.sin(2 * np.pi * 200 * time_s) + 0.001 * rng.standard_normal(len(time_s))
    in_blocks = enhancer.enhance(signal)
    whole = enhancer.enhance(signal, whole=True)
    assert len(in_blocks) == len(signal)
    middle = slice(2000, -2000)
    error = np.sqrt(np.mean((in_blocks - whole)[middle] ** 2) / np.mean(whole[middle] ** 2))
    assert error < 0.05


def test_a_block_of_noise_alone_is_not_blown_up(enhancer, monkeypatch, rng):
    """A quiet stretch keeps its level beside a loud one."""
    for name, value in (("WHOLE_SECONDS", 1.0), ("BLOCK_SECONDS", 1.0), ("FADE_SECONDS", 0.1)):
        monkeypatch.setattr(net_enhancer, name, value)
    signal = np.concatenate([make_speech(rng, 48000), 0.001 * rng.standard_normal(48000)])
    output = enhancer.enhance(signal)
    assert np.abs(output[-32000:]).max() < 0.02


def test_help_is_quick_and_needs_no_tensorflow():
    code = (
        "import sys; from speech.enhance import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'tensorflow', 'keras', 'scipy', 'soundfile', 'soxr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_wrong_usage_is_exit_code_2(capsys):
    for arguments in ([], ["x.wav"], ["x.wav", "-o", "y.wav", "--peak", "2"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    capsys.readouterr()
