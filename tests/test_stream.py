"""speech.stream: pipes and devices, the switch, the meter, and whatever may go wrong with them."""

import os
import pty
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from speech import stream as command
from speech.net.enhancer import BASELINE_MODEL, DEFAULT_MODEL, Enhancer
from speech.net.live import Live, decoded, encoded
from speech.net.streaming import Stream
from tests.builders import write_mask_network

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_mask_network(tmp_path_factory.mktemp("net") / "tiny.icse").path


def pipe(data, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "speech.stream", *map(str, arguments)],
        cwd=ROOT, input=data, capture_output=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.decode()


# --------------------------------------------------------------------------------------------
# Pipes


def test_a_pipe_gives_what_speech_enhance_gives(path, noisy):
    code, found, said = pipe(noisy.tobytes(), "--model", path, "--format", "f32")
    assert code == 0 and said.startswith("0.6 s of audio in")
    assert_allclose(np.frombuffer(found, "f4"), Enhancer(path)(noisy), rtol=0, atol=1e-5)


def test_sixteen_bits_and_half_a_sample(path, noisy):
    samples = np.round(noisy * 32768).astype(np.int16)
    code, found, said = pipe(samples.tobytes() + b"x", "--model", path)
    assert code == 0 and "the input ends within a sample: 1 of 2 bytes" in said
    expected = Enhancer(path)(samples / np.float32(32768))
    assert_allclose(np.frombuffer(found, "i2") / 32768, expected, rtol=0, atol=1e-4)


def test_no_input_and_a_hop_without_number(path, noisy):
    assert pipe(b"", "--model", path)[:2] == (0, b"")
    noisy[5000] = np.nan
    code, found, said = pipe(noisy.tobytes(), "--model", path, "--format", "f32")
    assert code == 0 and "1 hops held no number and were taken for silence" in said
    assert np.isfinite(np.frombuffer(found, "f4")).all() and len(found) == 4 * len(noisy)


def test_what_is_finished_is_written_at_once_and_a_closed_reader_is_no_error(path):
    process = subprocess.Popen(
        [sys.executable, "-m", "speech.stream", "--model", str(path), "--format", "f32"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    block = np.full(512, 0.1, "f4").tobytes()
    process.stdin.write(block)
    assert len(process.stdout.read(4 * 256)) == 4 * 256  # while the input goes on
    process.stdout.close()
    with pytest.raises(BrokenPipeError):
        for _ in range(10_000):
            process.stdin.write(block)
    assert process.wait() == 0 and process.stderr.read() == b""
    process.stdin.close()
    process.stderr.close()


def test_memory_is_flat_and_no_tensorflow_is_loaded(path):
    code = (
        "import os, sys, threading, numpy as np\n"
        "from pathlib import Path\n"
        "from speech import stream\n"
        "def peak(): return int(next(x for x in Path('/proc/self/status').read_text().split('\\n')"
        " if x.startswith('VmHWM')).split()[1])\n"
        "for seconds in (5, 60):\n"
        "    source, feed = os.pipe(); target = os.open(os.devnull, os.O_WRONLY)\n"
        "    def write():\n"
        "        for _ in range(seconds): os.write(feed, bytes(32000))\n"
        "        os.close(feed)\n"
        "    threading.Thread(target=write).start()\n"
        "    from speech.net.live import Live\n"
        "    from speech.net.streaming import Stream\n"
        f"    live = Live(Stream({str(path)!r}), 16000)\n"
        "    assert stream.run_pipe(live, 's16', source, target) == 0\n"
        "    print(peak())\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    short, long = map(int, done.stdout.split())
    assert long < short + 500  # kB


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--model", BASELINE_MODEL], 1, "fcn.h5: is of the kind 'waveform', expected"),
        (["--model", "missing.icse"], 1, "missing.icse: no such model file"),
        (["--rate", "10"], 1, "--rate is 10, expected 1,000 to 768,000 Hz"),
        (["--device", "1", "2", "3"], 2, "at most two names or numbers"),
    ],
)
def test_bad_arguments_are_one_line(arguments, code, reason):
    found, output, said = pipe(b"", *arguments)
    assert (found, output) == (code, b"") and reason in said
    assert "Traceback" not in said


def in_a_terminal(code):
    """Returns what Python code shows, run as the first process of a terminal of its own."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # the terminal of a process that ended
        pass
    os.close(terminal)
    os.waitpid(pid, 0)
    return shown.decode()


def test_a_job_in_the_background_is_not_halted(path):
    """Settings of the terminal, and its keys, are of the job in front."""
    shown = in_a_terminal(
        "import os, subprocess, sys\n"
        f"words = [sys.executable, '-m', 'speech.stream', '--model', {str(path)!r}]\n"
        "job = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,\n"
        "                       process_group=0)\n"
        "job.stdin.write(bytes(32000)); job.stdin.close()\n"
        "_, status = os.waitpid(job.pid, os.WUNTRACED)\n"
        "print('halted' if os.WIFSTOPPED(status) else f'ended {status}')\n"
        "os.WIFSTOPPED(status) and job.kill()"
    )
    assert "ended 0" in shown and "1.0 s of audio" in shown


def test_nothing_of_the_terminal_stays_open():
    shown = in_a_terminal(
        "import os, threading\n"
        "from speech.stream import _keys\n"
        "def count(): return len(os.listdir('/proc/self/fd')), threading.active_count()\n"
        "before = count()\n"
        "for _ in range(3):\n"
        "    with _keys(print): assert count() > before\n"
        "print('left', count() == before)"
    )
    assert shown.split() == ["left", "True"]


def test_the_meter_and_the_keys_in_a_terminal(path):
    """With a terminal of its own, the key b switches and q ends."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        source, _ = os.pipe()  # nothing comes
        live_in = os.open(os.devnull, os.O_WRONLY)
        os.dup2(live_in, 1)
        del source
        feeder = "import os, time\nfor _ in range(400): os.write(1, bytes(3200)); time.sleep(0.02)"
        shell = f'{sys.executable} -c "$FEEDER" | {sys.executable} -m speech.stream --model {path}'
        os.execvpe("sh", ["sh", "-c", shell], {**os.environ, "FEEDER": feeder})
    shown, pressed, deadline = "", set(), time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(terminal, 4096).decode()
        except OSError:
            break
        for key, cue in (("b", "enhanced"), ("q", "NOISY")):
            if cue in shown and key not in pressed:
                pressed.add(key)
                os.write(terminal, key.encode())
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "factor 0." in shown and "dB" in shown and "NOISY" in shown
    assert "real-time factor" in shown


# --------------------------------------------------------------------------------------------
# Live


@pytest.mark.parametrize("rate_hz", [8000, 44100, 48000])
def test_another_rate_is_resampled(path, rng, rate_hz):
    t = np.arange(rate_hz) / rate_hz
    noisy = (np.sin(2 * np.pi * 440 * t) * 0.3 + 0.02 * rng.standard_normal(rate_hz)).astype("f4")
    live = Live(Stream(path), rate_hz, bypass=True)
    noisy[100] = np.nan
    parts = [live.push(noisy[at : at + 441]) for at in range(0, len(noisy), 441)]
    found = np.concatenate([*parts, live.finish()])
    assert found.shape == noisy.shape and np.isfinite(found).all() and live.num_silenced == 1
    assert 0.032 < live.latency_s < 0.4
    come = np.cumsum([len(part) for part in parts])
    late = np.arange(1, len(parts) + 1) * 441 - come
    assert late.max() <= live.latency_s * rate_hz + 882
    tone = np.exp(-2j * np.pi * 440 * t[2000:-2000])
    assert abs(np.mean(found[2000:-2000] * tone)) == pytest.approx(0.15, rel=0.03)


def test_the_switch_is_in_step_and_has_no_click(path, noisy):
    live = Live(Stream(path), 16000)
    enhanced = Enhancer(path)(noisy)
    parts = []
    for at in range(0, 9000, 1000):
        live.bypass = at // 3000 == 1
        parts.append(live.push(noisy[at : at + 1000]))
    found = np.concatenate([*parts, live.finish()])
    assert_allclose(found[:2500], enhanced[:2500], rtol=0, atol=1e-5)
    assert_allclose(found[3200:5500], noisy[3200:5500], rtol=0, atol=1e-6)
    assert_allclose(found[6200:], enhanced[6200:], rtol=0, atol=1e-5)
    middle = slice(2500, 3200)
    lowest = np.minimum(enhanced[middle], noisy[middle]) - 1e-5
    assert (found[middle] >= lowest).all()


def test_levels_and_time(path):
    live = Live(Stream(path), 16000, bypass=True)
    live.push(np.full(16000, 0.1, "f4"))
    assert live.levels_db == pytest.approx((-20, -20), abs=0.3)
    assert live.seconds == 1 and 0 < live.real_time_factor < 1
    live.push(np.full(100, np.inf, "f4"))
    assert np.isfinite(live.levels_db).all()


def test_raw_samples_there_and_back(rng):
    samples = np.array([-1, 0, 0.5, 32767 / 32768, 1.5, -2], "f4")
    assert_array_equal(decoded(encoded(samples, "f32"), "f32"), samples)
    assert_array_equal(decoded(encoded(samples, "s16"), "s16"), samples.clip(-1, 32767 / 32768))


# --------------------------------------------------------------------------------------------
# Devices: what PortAudio does, as there is none here


class Line:
    """Stands in for sounddevice.Stream: calls back in a thread, and may go away."""

    blocks, fails_after, output = (), None, []

    def __init__(self, *, callback, blocksize, **settings):
        self.settings, self._call, self.active = settings, callback, True
        Line.output = []
        self._thread = threading.Thread(target=self._run, args=(blocksize,))

    def _run(self, size):
        for place, block in enumerate(Line.blocks):
            output = np.full((size, 1), 9, "f4")
            self._call(block[:, None], output, size, None, place == 1)
            Line.output.append(output[:, 0])
        self.active = False

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()


@pytest.fixture
def sound(monkeypatch):
    module = types.ModuleType("sounddevice")
    module.Stream, module.CallbackAbort = Line, type("CallbackAbort", (Exception,), {})
    module.PortAudioError = type("PortAudioError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return module


def test_a_device_gets_silence_first_and_then_the_enhanced_signal(path, sound, noisy, capsys):
    Line.blocks = list(noisy[: 256 * 20].reshape(-1, 256))
    with pytest.raises(ValueError, match="the sound device has gone away"):
        command.run_device(Live(Stream(path), 16000), ["2", "out"], 256)
    found = np.concatenate(Line.output)
    assert not found[:256].any()
    expected = Enhancer(path)(noisy[: 256 * 20])
    assert_allclose(found[256:], expected[:-256], rtol=0, atol=1e-5)


def test_a_device_that_is_not_there_is_one_line(path, sound, capsys):
    def refuse(**settings):
        assert settings["device"] == [7, 7]
        raise sound.PortAudioError("Error querying device 7")

    sound.Stream = refuse
    assert command.main(["--model", str(path), "--device", "7"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the sound device: Error querying device 7; python -m")
    assert said.count("\n") == 1


def test_without_sounddevice_it_says_so(path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert command.main(["--model", str(path), "--device"]) == 1
    assert "pip install '.[live]'" in capsys.readouterr().err
    assert DEFAULT_MODEL.exists()
