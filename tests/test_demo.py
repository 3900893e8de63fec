"""python -m speech.demo: what it makes of clips, what it refuses, the page in a real browser."""

import base64
import contextlib
import http.client
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose

from speech import demo
from speech.demo import Demo, Server, spectrogram_db
from speech.enhance import main
from speech.net.enhancer import Enhancer
from tests import mnn_files
from tests.builders import make_speech, needs_browser, wait_in, write_mask_network
from tests.pages import ask, opened

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    models = [mnn_files.write_fcn(folder / "mine.h5"), folder / "tf.h5"]
    write_mask_network(models[1])
    with Server(Demo(folder / "clips", models), port=0, max_mb=8) as server:
        (folder / "clips").mkdir()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def enhance(server, content, name="clip.wav", choice=0, **headers):
    query = urlencode({"choice": choice, "name": name})
    status, _, body = ask(server, "POST", f"/enhance?{query}", content, **headers)
    return status, json.loads(body)


def fetch(server, result, what):
    query = urlencode({"key": result["key"], "what": what})
    status, _, body = ask(server, "GET", f"/file?{query}")
    return body if status == 200 else None


def pool_of(server):
    """Returns the number of the pool among the choices."""
    return next(i for i, own in enumerate(server.demo.choices) if own.module == "mnn.select")


def audio(samples, rate_hz=16000, kind="WAV", subtype="PCM_16"):
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, subtype, format=kind)
    return stream.getvalue()


def test_shipped_models_the_pool_and_one_s_own_are_offered(server):
    status, headers, body = ask(server, "GET", "/offer")
    offer = json.loads(body)
    assert status == 200 and headers["Content-Type"] == "application/json"
    names = [label.split(" ")[0] for label in offer["choices"]]
    assert names[:5] == ["mine.h5", "tf.h5", "denoise.icse", "the", "fcn.h5"]
    assert "the best of a pool" in offer["choices"][3]
    assert {"fcn_small.icse", "fcn_pp22_k16.icse"} < set(names)
    for choice in server.demo.choices:
        if choice.module == "speech.enhance":
            assert Enhancer(choice.options[1])
    assert "(1,266 kB)" in offer["choices"][4]
    assert len(offer["clips"]) == 8 and offer["max_bytes"] == 8_000_000
    for noise in offer["clips"][:2]:
        status, _, clip = ask(server, "GET", f"/clip?noise={noise}")
        assert status == 200 and soundfile.info(io.BytesIO(clip)).samplerate == 16000


@pytest.mark.parametrize(
    ("rate_hz", "channels", "kind", "subtype", "suffix"),
    [(16000, 1, "WAV", "PCM_16", ".wav"), (44100, 2, "FLAC", "PCM_24", ".flac"),
     (8000, 3, "WAV", "FLOAT", ".wav"), (48000, 1, "OGG", "VORBIS", ".ogg")],
)  # fmt: skip
def test_any_rate_and_channels(server, rate_hz, channels, kind, subtype, suffix, rng):
    samples = np.stack([make_speech(rng, 9001) * 0.7**c for c in range(channels)], axis=1)
    content = audio(samples, rate_hz, kind, subtype)
    status, result = enhance(server, content, f"a clip{suffix}")
    assert status == 200
    assert (result["sample_rate_hz"], result["channels"]) == (rate_hz, channels)
    assert result["audio_seconds"] == pytest.approx(9001 / rate_hz)
    assert result["output_name"] == f"a clip_enhanced{suffix}"
    assert 0 < result["seconds"] < result["seconds_in_all"]
    before, after = (
        soundfile.read(io.BytesIO(c)) for c in (content, fetch(server, result, "output"))
    )
    assert after[0].shape == before[0].shape and after[1] == rate_hz
    assert not np.array_equal(before[0], after[0])
    # What is heard is what was given and what was written, to 16 bits.
    for what, (own, _) in (("before", before), ("after", after)):
        heard, heard_rate_hz = soundfile.read(io.BytesIO(fetch(server, result, what)))
        assert heard_rate_hz == rate_hz
        own = own.mean(axis=1) if channels > 2 else own
        assert_allclose(heard, own, rtol=0, atol=2 / 2**15)
    for name in ("before", "after"):
        image = result[f"{name}_image"].removeprefix("data:image/png;base64,")
        assert base64.b64decode(image).startswith(b"\x89PNG")
    assert result["command"].startswith("python -m speech.enhance 'a clip")


def test_the_command_that_is_shown_makes_the_same(server, tmp_path, rng):
    content = audio(make_speech(rng, 16000))
    _, result = enhance(server, content, choice=2)
    (tmp_path / "clip.wav").write_bytes(content)
    command = result["command"].split()
    assert command[:3] == ["python", "-m", "speech.enhance"]
    assert command[-1] == str(Path("models", "denoise.icse"))
    command[0], command[-1] = sys.executable, str(ROOT / command[-1])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    assert (tmp_path / "enhanced" / "clip.wav").read_bytes() == fetch(server, result, "output")


def test_the_pool_shows_its_pick_and_errors(server):
    _, _, clip = ask(server, "GET", "/clip?noise=birds")
    status, result = enhance(server, clip, "birds.wav", pool_of(server))
    assert status == 200 and result["command"] == "python -m mnn.select birds.wav -o enhanced"
    experts = {own["name"]: own for own in result["experts"]}
    assert set(experts) == {"expert_birds", "expert_typing", "expert_engine"}
    best = min(result["experts"], key=lambda own: own["error"])
    assert [own["name"] for own in result["experts"] if own["picked"]] == [best["name"]]
    assert best["name"] == "expert_birds" and best["error"] > 0
    size = (ROOT / "models" / "expert_birds.icse").stat().st_size
    assert best["num_bytes"] == size


def test_experts_of_one_s_own(tmp_path, rng):
    quiet = mnn_files.write_mask(tmp_path / "quiet.h5", -1.0, spread=1.0)
    bad = tmp_path / "bad.h5"
    bad.write_text("no model")
    own = Demo(tmp_path, experts=[quiet, bad])
    choice = next(choice for choice in own.choices if choice.module == "mnn.select")
    content = audio(make_speech(rng, 8000))
    result = own.enhance(own.take(io.BytesIO(content), len(content), "x.wav"), choice)
    assert [expert["name"] for expert in result["experts"]] == ["quiet"]
    (note,) = result["notes"]
    assert "bad.h5" in note


def test_an_expert_that_is_not_there_is_told_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="none.h5: no such model file"):
        Demo(tmp_path, experts=[tmp_path / "none.h5"])


def test_silence_stays_silent(server):
    for choice in (0, pool_of(server)):
        status, result = enhance(server, audio(np.zeros(16000)), choice=choice)
        assert status == 200 and result["is_silent"]
        assert not soundfile.read(io.BytesIO(fetch(server, result, "output")))[0].any()


def test_a_network_over_time_and_frequency(server, rng):
    samples = 0.3 * make_speech(rng, 2 * 9000).reshape(-1, 2)
    status, result = enhance(server, audio(samples, 22050), choice=1)
    assert status == 200 and not result["in_blocks"]
    assert re.fullmatch("complex_mask, .* latency 32 ms", result["network"])
    after, rate_hz = soundfile.read(io.BytesIO(fetch(server, result, "output")))
    assert after.shape == samples.shape and rate_hz == 22050


def test_a_long_clip_goes_in_blocks(server, rng):
    samples = np.tile(make_speech(rng, 8000), 2 * 125)
    status, result = enhance(server, audio(samples))
    assert status == 200 and result["in_blocks"]
    assert result["audio_seconds"] == pytest.approx(125)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"not audio at all", "notes.txt", "notes.txt: cannot be decoded as audio"),
        (b"", "empty.wav", "empty.wav: is empty"),
        (audio(np.ones(4000))[:999], "cut.wav", "cut.wav: truncated"),
        (audio(np.full(2000, np.nan), subtype="FLOAT"), "nan.wav", "nan.wav: 2000 samples are NaN"),
        (b"\x1aE\xdf\xa3webm", "phone.webm", "phone.webm: cannot be decoded as audio"),
    ],
)
def test_what_is_no_audio_is_refused_as_by_the_command(
    server, content, name, words, tmp_path, capsys
):
    (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name), "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    for choice in [0, pool_of(server)][: 2 if name == "notes.txt" else 1]:
        status, result = enhance(server, content, name, choice)
        assert status == 400 and result["error"].startswith(words)
        assert said == f"error: {result['error']}\n"


def test_a_command_that_is_killed_is_told(tmp_path, monkeypatch):
    own = Demo(tmp_path)
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    source = own.take(io.BytesIO(b"x"), 1, "x.wav")
    with pytest.raises(ValueError, match="exit code -9"):
        own.enhance(source, own.choices[0])
    assert not source.parent.exists()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd.wav", "passwd.wav"),
        ("C:\\temp\\a b.WAV", "a b.WAV"),
        (".hidden", "hidden"),
        ("", "clip"),
        ("-o.wav", "o.wav"),
        ("summary.json", "summary.json"),
        ("é\n<b>.flac", "é__b_.flac"),
        ("x" * 300 + ".wav", "x" * 60 + ".wav"),
    ],
)
def test_names_are_made_harmless(tmp_path, name, kept):
    own = Demo(tmp_path)
    path = own.take(io.BytesIO(b"ab"), 2, name)
    assert path.name == kept and path.is_relative_to(tmp_path) and path.read_bytes() == b"ab"


def test_a_name_of_ours_is_no_trap(server, rng):
    for name in ("summary.json", "enhanced", "before.wav"):
        status, result = enhance(server, audio(make_speech(rng, 4000)), name)
        assert status == 200 and result["name"] == name
        assert fetch(server, result, "output")


def test_a_clip_that_is_too_large_is_not_read(server):
    status, result = enhance(server, b"", **{"Content-Length": "8000001"})
    assert status == 413 and "8 MB" in result["error"] and "--max-mb" in result["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/../setup.py", 404),
        ("GET", "/clip?noise=../x", 400),
        ("GET", "/file?key=..&what=output", 400),
        ("GET", "/file", 400),
        ("POST", "/enhance?choice=99&name=a", 404),
        ("POST", "/enhance?choice=-1&name=a", 404),
        ("POST", "/offer", 404),
        ("PUT", "/enhance?choice=0", 501),
    ],
)
def test_nothing_else_is_answered(server, method, path, status):
    assert ask(server, method, path)[0] == status


def test_other_sites_are_refused(server):
    port = server.server_address[1]
    assert ask(server, "GET", "/offer", Host=f"evil.example:{port}")[0] == 403
    assert enhance(server, b"x", Origin="http://evil.example")[0] == 403
    assert ask(server, "GET", "/offer", Host=f"localhost:{port}")[0] == 200
    assert server.server_address[0] == "127.0.0.1"
    for path in ("/", "/demo.js", "/demo.css"):
        status, headers, body = ask(server, "GET", path)
        assert status == 200 and headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert not re.search(rb"https?://", body)


def test_a_browser_that_goes_leaves_nothing(server):
    before = set(server.demo._folder.iterdir())
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    connection.putrequest("POST", "/enhance?choice=0&name=a.wav")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"only this")
    connection.close()
    assert ask(server, "GET", "/offer")[0] == 200
    for thread in threading.enumerate():
        if "process_request" in thread.name:
            thread.join(10)
    assert set(server.demo._folder.iterdir()) == before


def test_old_results_are_removed(tmp_path, rng):
    own = Demo(tmp_path / "clips", [mnn_files.write_fcn(tmp_path / "mine.h5")])
    (tmp_path / "clips").mkdir()
    content = audio(make_speech(rng, 4000))
    results = [
        own.enhance(own.take(io.BytesIO(content), len(content), "x.wav"), own.choices[0])
        for _ in range(demo.KEPT + 1)
    ]
    assert len(list((tmp_path / "clips").iterdir())) == demo.KEPT
    with pytest.raises(ValueError, match="gone"):
        own.file(results[0]["key"], "output")
    assert own.file(results[-1]["key"], "output").is_file()


@pytest.mark.parametrize("num_samples", [1, 128, 5000, 256 * 128 * 2 + 77])
def test_a_spectrogram_by_parts_is_that_of_the_whole(num_samples, rng):
    signal = rng.standard_normal(num_samples).astype(np.float32)
    window = np.hanning(513)[:-1]
    padded = np.concatenate([np.zeros(384), signal, np.zeros(512)])
    for max_columns in (10_000, 100):
        levels = spectrogram_db(signal, max_columns)
        together = math.ceil(math.ceil(num_samples / 128) / max_columns)
        assert len(levels) <= max_columns
        for column in (0, len(levels) // 2, len(levels) - 2):
            if 0 <= column:
                starts = 128 * np.arange(column * together, (column + 1) * together)
                frames = [np.abs(np.fft.rfft(window * padded[s : s + 512])) for s in starts]
                expected = 20 * np.log10(np.maximum(np.max(frames, axis=0), 1e-6))
                assert_allclose(levels[column], expected, rtol=0, atol=0.05)


def test_bad_models_and_ports_are_one_line(tmp_path, capsys):
    assert demo.main(["--models", str(tmp_path / "none.h5")]) == 1
    assert demo.main(["--models", str(ROOT / "models" / "expert_birds.icse")]) == 1
    with contextlib.closing(http.client.socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert demo.main(["--port", str(taken.getsockname()[1])]) == 1
    assert demo.main(["--port", "70000"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") for line in errors)
    assert "none.h5" in errors[0] and "not one from waveform to waveform" in errors[1]
    assert "in use" in errors[2] and "--port" in errors[3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_clean(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "speech.demo", "--port", "0"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with process:
        address = re.fullmatch(r"page +http://127\.0\.0\.1:(\d+)/\n", process.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1]), timeout=60)
        connection.request("GET", "/")
        assert b"<title>" in connection.getresponse().read()
        connection.close()
        assert len(list(tmp_path.glob("speech-demo-*"))) == 1
        # Twice at once, as `timeout` does, and then as the impatient do, until it is gone.
        process.send_signal(number)
        while process.poll() is None:
            process.send_signal(number)
            time.sleep(0.001)
        assert process.returncode == 0
        assert "Traceback" not in process.stderr.read()
    assert not list(tmp_path.iterdir())


def test_a_caller_in_this_process_gets_its_signals_back(monkeypatch, capsys):
    serve = demo.Server.serve_forever

    def interrupted(server):
        os.kill(os.getpid(), signal.SIGINT)
        serve(server)

    monkeypatch.setattr(demo.Server, "serve_forever", interrupted)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert demo.main(["--port", "0"]) == 0
    assert "ended" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --------------------------------------------------------------------------------------------
# A real browser


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(server, width, tmp_path, rng):
    pytest.importorskip("playwright")
    clip = tmp_path / "real clip.wav"
    clip.write_bytes(server.demo.clip("typing"))
    seconds = soundfile.info(clip).duration
    with opened(server, viewport={"width": width, "height": 800}) as (tab, troubles):
        wait_in(tab, "document.querySelectorAll('#choice option').length > 3")
        assert tab.locator("#go").is_disabled()
        tab.set_input_files("#file", clip)
        assert tab.inner_text("#chosen") == "real clip.wav"
        for choice in (1, pool_of(server)) if width == 1280 else (pool_of(server),):
            tab.select_option("#choice", str(choice))
            tab.click("#go")
            wait_in(tab, "!document.querySelector('#result').hidden")
            wait_in(tab, "[...document.querySelectorAll('audio')].every(a => a.duration > 0)")
            durations = tab.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
            assert durations == pytest.approx([seconds] * 2, abs=1e-3)
            assert tab.evaluate(
                "[...document.querySelectorAll('#result img')].every(i => i.naturalWidth > 200)"
            )
            with tab.expect_download() as download:
                tab.click("#download")
            assert download.value.suggested_filename == "real clip_enhanced.wav"
            enhanced, _ = soundfile.read(download.value.path())
            assert len(enhanced) / 16000 == pytest.approx(seconds)
            assert not np.array_equal(enhanced, soundfile.read(clip)[0])
            assert tab.locator("#experts").is_visible() == (choice == pool_of(server))
        assert tab.inner_text("#experts .picked").split()[0] == "expert_typing"
        assert tab.locator("#experts li").count() == 3
        # One player at a time; the other one goes on at the same place.
        tab.evaluate(
            "() => { const [a, b] = document.querySelectorAll('audio');"
            "a.currentTime = 0.5; return a.play().then(() => b.play()); }"
        )
        wait_in(
            tab,
            "(() => { const [a, b] = document.querySelectorAll('audio');"
            "return a.paused && b.currentTime > 0.5; })()",
        )
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert not troubles


@needs_browser
def test_dropped_recorded_and_refused_in_a_browser(server, tmp_path):
    pytest.importorskip("playwright")
    with opened(server, permissions=["microphone"]) as (tab, troubles):
        wait_in(tab, "document.querySelectorAll('#choice option').length > 3")
        tab.evaluate(
            "() => { const held = new DataTransfer();"
            "held.items.add(new File(['no audio'], 'note.txt'));"
            "document.querySelector('#drop').dispatchEvent("
            "new DragEvent('drop', {dataTransfer: held, bubbles: true, cancelable: true})); }"
        )
        assert tab.inner_text("#chosen") == "note.txt"
        tab.click("#go")
        wait_in(tab, "!document.querySelector('#error').hidden")
        assert tab.inner_text("#error").startswith("note.txt: cannot be decoded as audio")
        # The browser writes down that an answer was an error; nothing else went wrong.
        assert all("400 (Bad Request)" in trouble for trouble in troubles)
        troubles.clear()
        large = tmp_path / "large.wav"
        large.write_bytes(bytes(8_000_001))
        tab.set_input_files("#file", large)
        assert "--max-mb" in tab.inner_text("#error")
        assert tab.locator("#go").is_disabled()

        tab.click("#record")
        wait_in(tab, "document.querySelector('#record').textContent === 'Stop (1 s)'")
        tab.click("#record")
        wait_in(tab, "document.querySelector('#chosen').textContent === 'recording.wav'")
        tab.click("#go")
        wait_in(tab, "document.querySelector('#after audio').duration > 0.9")
        samples, _ = soundfile.read(next(server.demo._folder.glob("*/given/recording.wav")))
        assert np.abs(samples).max() > 0.01  # the beeps of the browser's own test device
        assert not troubles


def test_what_is_heard_never_clips(tmp_path, rng, caplog):
    samples = 3 * np.stack([make_speech(rng, 4000), make_speech(rng, 4000)], axis=1)
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="FLOAT")
    _, heard = demo._shown({"x": tmp_path / "x.wav"}, tmp_path)
    found = soundfile.read(heard["x"])[0]
    assert_allclose(found * np.abs(samples).max(), samples, rtol=0, atol=3e-4)
    assert "clipped" not in caplog.text
