"""How processes end: no recording and no worker stays, whatever ends the one that began them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speech.base import cli
from tests.builders import is_alive, wait_until

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and parents of POSIX")


# Whoever starts the tests in the background may have made them ignore Ctrl-C, or with nohup SIGHUP.
AS_IN_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""


def started(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", AS_IN_A_TERMINAL + code, *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )  # fmt: skip


HOLDS_RECORDINGS = """
import sys, tempfile, time
from pathlib import Path
from speech.base import cli
from speech.base.files import atomic_path

def command():
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(dir=folder) as own, atomic_path(folder / "out.wav") as path:
        (Path(own) / "clip.wav").write_bytes(b"speech")
        path.write_bytes(b"speech")
        print("ready", flush=True)
        time.sleep(60)

sys.exit(cli.run(command))
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_no_recording_is_left(number, tmp_path):
    with started(HOLDS_RECORDINGS, tmp_path) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert "Traceback" not in process.stderr.read()
    assert not list(tmp_path.iterdir())


def test_what_is_ignored_stays_ignored(tmp_path):
    """As `nohup` starts a command."""
    code = HOLDS_RECORDINGS.replace("time.sleep(60)", "time.sleep(1)")
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + code
    with started(code, tmp_path) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_signals_are_as_before_after_a_command():
    before = [signal.getsignal(number) for number in cli.ENDINGS]
    assert cli.run(lambda: 0) == 0
    assert [signal.getsignal(number) for number in cli.ENDINGS] == before


def test_the_page_leaves_no_recording_when_the_terminal_is_closed(tmp_path):
    """In the middle of a clip: half of it has come."""
    code = "import sys; from speech.demo import main; sys.exit(main(['--port', '0']))"
    with started(code, TMPDIR=str(tmp_path)) as process:
        port = int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 30) as browser:
            head = "POST /enhance?choice=0&name=a.wav HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            browser.sendall(f"{head}Content-Length: 4000000\r\n\r\n".encode() + bytes(2_000_000))
            assert wait_until(lambda: list(tmp_path.rglob("a.wav")))
            process.send_signal(signal.SIGHUP)
            assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
    assert not list(tmp_path.iterdir())


ISOLATED = """
import sys, threading, time
from eval.isolation import run_isolated
from tests import test_endings

threading.Thread(target=run_isolated, args=(test_endings.works_long, sys.argv[1])).start()
"""

JOBLIB = """
import sys, joblib
from speech.base import cli
from tests import test_endings

tasks = [joblib.delayed(test_endings.works_long)(sys.argv[1]) for _ in range(2)]
list(cli.in_processes(tasks, 2))
"""

COMMAND = """
import subprocess, sys
from speech.base import cli

code = "import sys; from speech.base import cli; from tests import test_endings; "
code += "cli.run(lambda: test_endings.works_long(sys.argv[1]))"
subprocess.run(cli.python_command("-c", code, sys.argv[1]), env=cli.python_environment())
"""

WORKER = """
import sys, threading
from tests import test_endings
from speech.data import prefetch

source = test_endings.Slow(sys.argv[1])
list(prefetch.prefetched_batches(source, workers=2))
"""


class Slow:
    """A source of pieces whose first batch takes for ever."""

    batch_size, num_samples = 1, 4

    def __init__(self, folder):
        self.folder = folder

    def batch(self, index):
        return works_long(self.folder)


def works_long(folder):
    """Says that it runs, and then works for a minute."""
    (Path(folder) / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        sum(range(10_000))


@pytest.mark.parametrize(
    ("code", "count"), [(ISOLATED, 1), (JOBLIB, 2), (COMMAND, 1), (WORKER, 2)],
    ids=["isolation", "joblib", "command", "mixing"],
)  # fmt: skip
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_parent_leaves_no_worker(code, count, tmp_path):
    with started(code, tmp_path) as parent:
        try:
            assert wait_until(lambda: len(list(tmp_path.iterdir())) >= count, 60)
            workers = [int(path.name) for path in tmp_path.iterdir()]
            assert all(map(is_alive, workers)) and parent.pid not in workers
        finally:
            parent.kill()
        assert wait_until(lambda: not any(map(is_alive, workers)), 15)


# --------------------------------------------------------------------------------------------
# Broken HTTP

REQUESTS = {
    "no address": b"GET //[ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no address of a clip": b"POST http://[::1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "many fields": b"GET /clip?" + b"a=1&" * 100 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "long number": b"POST /enhance?choice=" + b"9" * 5000
    + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\n\r\n",
    "long length": b"POST /enhance?choice=0 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
    + b"9" * 5000 + b"\r\n\r\n",
    "other digits": "POST /enhance?choice=٣ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
    "no length": b"POST /enhance?choice=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "negative": b"POST /enhance?choice=0 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    "controls": b"GET /\x00\x1b[2J HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no text": b"GET /\xff\xfe?\xff=\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "odd host": b"GET / HTTP/1.1\r\nHost: ]:[\xff\r\nOrigin: \xff\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "version": b"GET / HTTP/9999999999999999999999.1\r\n\r\n",
    "no request": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost 127.0.0.1\r\n: x\r\n\x00\r\n\r\n",
    "half": b"GET / HT",
    "file": b"GET /file?key=../../etc&what=passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    import threading

    from speech import demo

    with demo.Server(demo.Demo(tmp_path_factory.mktemp("demo")), port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", REQUESTS)
def test_broken_requests_are_answered_or_dropped(name, page, capfd):
    with socket.create_connection(page.socket.getsockname(), 20) as browser:
        with contextlib.suppress(OSError):  # it may have been closed before all was sent
            browser.sendall(REQUESTS[name])
            browser.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while more := browser.recv(1 << 16):
                answer += more
    assert answer[:9] in (b"", b"HTTP/1.1 ") or answer[:1] in b"<{"  # of before version 1.0
    if b"\r\n\r\n{" in answer:
        said = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert said.isprintable() and len(said) < 400
    with socket.create_connection(page.socket.getsockname(), 20) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert browser.recv(100).startswith(b"HTTP/1.1 200 ")
    out, error = capfd.readouterr()
    assert (out, error) == ("", "")
