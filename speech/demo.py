"""Serves a page on this machine to try the networks: give it a clip, or speak; hear and see.

::

    python -m speech.demo
    python -m speech.demo --models mine.h5 --port 9000

Drop or record a clip, choose a model or the pool of experts, and compare before and after. Each
clip is handed to the command that does the same in a shell, `speech.enhance` or ``mnn.select``, in
a process of its own; a clip that it refuses is refused by the page in the same words.

Live, the browser's microphone goes through a network that can stream and back to the ear. The page
posts blocks of 16 ms, one after the other on one connection, and the answer to a block is what is
finished. Posts pass the checks that all else passes, need no protocol of our own, and take a few
milliseconds on one machine. Blocks that wait for an answer travel together, so that a slow moment
costs no order. Nothing of it is written anywhere.

The page is served by Python's own HTTP server, to this machine alone unless ``--host`` says
otherwise, and asks nothing of any other: it needs no fonts or scripts from outside. Clips live in a
temporary folder; the last `KEPT` results are kept, and all are deleted when the command ends.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from speech.base import cli
from speech.base.cli import natural_number
from speech.base.lazy import soundfile
from speech.base.words import shown
from speech.data import corpus
from speech.modelfile.read import read_model_file
from speech.net.enhancer import BASELINE_MODEL, DEFAULT_MODEL, Enhancer
from speech.net.plan import Plan, plan_of
from speech.net.sessions import MAX_BLOCK_BYTES, Sessions
from speech.sound.audio import SAMPLE_RATE_HZ, is_silent, read_multichannel, resample, write_audio
from speech.sound.audiofiles import level_for
from speech.sound.pictures import level_png
from speech.sound.stft import StftConfig, magnitudes, stft

_ROOT = Path(__file__).resolve().parent.parent
_TEMPLATES = Path(__file__).parent / "templates"

HOST = "127.0.0.1"
PORT = 8765
MAX_MB = 100

#: Results whose files can still be fetched.
KEPT = 4

#: Of a bundled clip to try.
SNR_DB = 5.0

#: Of the spectrograms: columns at most, and from the loudest point of both down to black.
MAX_COLUMNS = 1200
RANGE_DB = 70.0

#: A connection on which nothing moves for so long is closed.
_IDLE_SECONDS = 60

#: Signals that end the command.
_ENDINGS = (signal.SIGINT, *cli.ENDINGS)

#: How often to remove the folder of the clips, to which another thread may be writing.
_MOST_REMOVALS = 50

_PAGE = {
    "/": ("demo.html", "text/html; charset=utf-8"),
    "/demo.css": ("demo.css", "text/css; charset=utf-8"),
    "/demo.js": ("demo.js", "text/javascript; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/live-sound.js": ("live-sound.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Choice:
    """What the page offers to enhance a clip with.

    Attributes:
        label: On the page.
        module: The command, 'speech.enhance' or 'mnn.select'.
        options: Of the command.
    """

    label: str
    module: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class _Result:
    """Files that can be fetched, by name, all in one folder."""

    folder: Path
    files: dict[str, Path]


class Demo:
    """What the page can do, without the page.

    Args:
        folder: Where clips and results go.
        models: Models to offer beside the shipped ones, all that `speech.enhance` takes.
        experts: Of the pool; none for the shipped ones.

    Attributes:
        choices: To enhance with, the default one first.
        sessions: The live ones.

    Raises:
        ValueError: A model is refused.
    """

    def __init__(
        self, folder: Path, models: Sequence[Path] = (), experts: Sequence[Path] = ()
    ) -> None:
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._child: subprocess.Popen | None = None
        self._results: deque[_Result] = deque()
        self._is_closed = False
        self._plans_to_stream: dict[Choice, Plan] = {}
        self.sessions = Sessions()
        for path in models:
            Enhancer(path)  # refuses what it can't run
        for path in experts:  # mnn.select, which runs apart, says what is wrong inside
            if not path.is_file():
                raise ValueError(f"{path}: no such model file; check the path")
        own = [_model(path.resolve()) for path in models]
        shipped = [_model(path) for path in _shipped_models()]
        options = ("--experts", *(str(path.resolve()) for path in experts)) if experts else ()
        names = f"{len(experts)} experts of yours" if experts else "the shipped experts"
        pool = Choice(f"the best of a pool: {names}", "mnn.select", options)
        self.choices = [*own, *shipped[:1], pool, *shipped[1:]]

    @cached_property
    def _plans(self) -> dict[str, Any]:
        speech, noise = corpus.bundled_speech("TEST"), corpus.bundled_noise("TEST")
        return {p.noise.name: p for p in corpus.spread_mixtures(speech, noise, [SNR_DB], 1)}

    @property
    def clips(self) -> list[str]:
        """Noises of the bundled clips."""
        return list(self._plans)

    def clip(self, noise: str) -> bytes:
        """Returns a bundled noisy clip as a WAV file.

        Args:
            noise: One of `clips`.

        Raises:
            ValueError: There is no such clip.
        """
        if noise not in self._plans:
            raise ValueError(f"{noise}: no such clip; there are {', '.join(self._plans)}")
        stream = io.BytesIO()
        noisy = corpus.render(self._plans[noise]).noisy
        soundfile.write(stream, noisy, SAMPLE_RATE_HZ, "PCM_16", format="WAV")
        return stream.getvalue()

    def take(self, stream: io.BufferedIOBase, size: int, name: str) -> Path:
        """Writes a clip into a folder of its own, and returns its path.

        Args:
            stream: What to read it from.
            size: Its length in bytes.
            name: That it has on the user's disk; anything.

        Raises:
            ConnectionError: The stream ends before.
            OSError: The clip can't be written.
        """
        folder = self._folder / secrets.token_urlsafe(12)
        path = folder / "given" / _safe(name)
        path.parent.mkdir(parents=True)
        with _removed_if_it_fails(folder), open(path, "wb") as file:
            while size:
                if self._is_closed:
                    raise ConnectionError("the page has been closed")
                block = stream.read(min(size, 1 << 20))
                if not block:
                    raise ConnectionError("the browser has gone")
                file.write(block)
                size -= len(block)
        return path

    def enhance(self, source: Path, choice: Choice) -> dict[str, Any]:
        """Enhances a clip, one at a time.

        Args:
            source: Of `take`. Its folder is removed where this fails, and after `KEPT` others.
            choice: With what.

        Returns:
            What the page shows, JSON values only. The files are had with `file`.

        Raises:
            ValueError: The command failed, for the reason that it gave.
        """
        with self._lock, _removed_if_it_fails(source.parent.parent):
            result = self._enhance(source, choice)
            while len(self._results) > KEPT:
                shutil.rmtree(self._results.popleft().folder, ignore_errors=True)
        return result

    def file(self, key: str, what: str) -> Path:
        """Returns a file of a result.

        Args:
            key: Of the result.
            what: 'before' or 'after', which a browser can play, or 'output', as it was written.

        Raises:
            ValueError: It is gone, or never was.
        """
        for own in list(self._results):
            if own.folder.name == key and what in own.files:
                return own.files[what]
        raise ValueError("this clip is gone; enhance it again")

    def _enhance(self, source: Path, choice: Choice) -> dict[str, Any]:
        folder = source.parent.parent
        summary = folder / "summary.json"
        started = time.perf_counter()
        self._run(
            [choice.module, str(source), "-o", str(folder / "enhanced"), *choice.options,
             "--json", str(summary)], source.parent,
        )  # fmt: skip
        took = time.perf_counter() - started
        found = json.loads(summary.read_text(encoding="utf-8"))
        row = found["files"][0]
        output = Path(row["output"])
        shown, files = _shown({"before": source, "after": output}, folder)
        self._results.append(_Result(folder, files | {"output": output}))
        spent = found["seconds"]
        command = ["python", "-m", choice.module, source.name, "-o", "enhanced"]
        return shown | {
            "key": folder.name,
            "name": source.name,
            "label": choice.label,
            "output_name": f"{source.stem}_enhanced{output.suffix}",
            "audio_seconds": row["audio_seconds"],
            "channels": row["channels"],
            "in_blocks": row.get("way") == "blocks",
            "network": found.get("summary", {}).get("text"),
            "seconds": spent["wall"] if isinstance(spent, dict) else spent,
            "seconds_in_all": took,
            "experts": _experts(found, row),
            "notes": [*found.get("refused", []), *_out(row), *_turned_down(row)],
            "command": shlex.join([*command, *map(_short, choice.options)]),
        }

    def _run(self, command: Sequence[str], folder: Path) -> None:
        """Runs one of our commands; raises ValueError with its last words if it fails."""
        if self._is_closed:
            raise ConnectionError("the page has been closed")
        self._child = subprocess.Popen(
            cli.python_command("-m", *command),
            cwd=_ROOT, env=cli.python_environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        _, said = self._child.communicate()
        code, self._child = self._child.returncode, None
        if code:
            last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
            words = re.sub("^(error|skipped): ", "", last).replace(f"{folder}/", "")
            raise ValueError(
                words
                or f"the command ended without a word (exit code {code}), perhaps for want "
                "of memory; try a shorter clip"
            )

    def stream_plan(self, choice: Choice) -> Plan:
        """Returns the network of a choice as a stream runs it.

        Raises:
            ValueError: It cannot stream; the message says why.
        """
        if choice.module != "speech.enhance":
            raise ValueError(
                "a pool listens to the whole clip before it picks an expert, so it cannot run "
                "live; choose one network, such as denoise.icse"
            )
        if choice not in self._plans_to_stream:
            path = Path(choice.options[1])
            try:
                self._plans_to_stream[choice] = plan_of(read_model_file(path))
            except ValueError as error:
                raise ValueError(str(error).replace(f"{path.parent}{os.sep}", "")) from None
        return self._plans_to_stream[choice]

    def close(self) -> None:
        """Ends the command that runs, if there is one, and takes no clip any more."""
        self._is_closed = True
        child = self._child
        if child is not None:
            child.kill()


def _model(path: Path) -> Choice:
    label = f"{shown(path.name, 100)} ({path.stat().st_size / 1000:,.0f} kB)"
    return Choice(label, "speech.enhance", ("--model", str(path)))


def _shipped_models() -> list[Path]:
    """Returns the models that are shipped to enhance with, the default first, then the FCN."""
    first = [DEFAULT_MODEL, BASELINE_MODEL, BASELINE_MODEL.with_name("fcn_small.icse")]
    found = [p for p in BASELINE_MODEL.parent.glob("fcn*") if p.suffix in (".h5", ".icse")]
    return [*first, *sorted(set(found) - set(first))]


def _safe(name: str) -> str:
    """Returns a file name of harmless characters, with the ending of the one given."""
    path = Path(re.sub(r"[^\w .()+-]", "_", name.replace("\\", "/").rpartition("/")[2]).strip())
    stem = path.stem.lstrip(".- ").rstrip()[:60]
    return (stem or "clip") + path.suffix[:8]


def _short(option: str) -> str:
    """Returns an option as one would type it in the project's folder."""
    path = Path(option)
    return str(path.relative_to(_ROOT)) if path.is_relative_to(_ROOT) else option


def _experts(found: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the experts of a pool that were judged: name, error, size, whether picked."""
    sizes = {own["name"]: Path(own["source"]).stat().st_size for own in found.get("experts", [])}
    return [
        {"name": name, "error": error, "num_bytes": sizes[name], "picked": name == row["pick"]}
        for name, error in row.get("scores", {}).items()
    ]


def _out(row: dict[str, Any]) -> list[str]:
    return [f"{name} is out: {why}" for name, why in row.get("disqualified", {}).items()]


def _turned_down(row: dict[str, Any]) -> list[str]:
    if "turned_down_db" not in row:
        return []
    return [f"turned down by {row['turned_down_db']:.1f} dB, its format would have clipped"]


def _shown(paths: dict[str, Path], folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Writes what a browser can play of audio files, and draws their spectrograms alike.

    Args:
        paths: By name; of equal length.
        folder: Where to write ``<name>.wav``.

    Returns:
        Rate and silence of the first, an image of each as a data: URI; and the files by name.
    """
    facts: dict[str, Any] = {}
    files, levels = {}, {}
    for name, path in paths.items():
        audio = read_multichannel(path)
        samples, rate_hz = audio.samples, audio.source_rate_hz
        mono = samples.mean(axis=1)
        files[name] = folder / "heard" / f"{name}.wav"
        heard = samples if samples.shape[1] <= 2 else mono
        heard = heard * level_for("PCM_16", float(abs(heard).max()), {})
        write_audio(files[name], heard, rate_hz, "PCM_16")
        facts = facts or {"sample_rate_hz": rate_hz, "is_silent": is_silent(samples)}
        levels[name] = spectrogram_db(resample(mono, rate_hz, SAMPLE_RATE_HZ))
    top_db = max(float(own.max()) for own in levels.values())
    for name, own in levels.items():
        content = base64.b64encode(level_png(own, top_db, RANGE_DB)).decode()
        facts[f"{name}_image"] = f"data:image/png;base64,{content}"
    return facts, files


def spectrogram_db(signal: np.ndarray, max_columns: int = MAX_COLUMNS) -> np.ndarray:
    """Returns levels in time and frequency, of a long signal the loudest of each few frames.

    Args:
        signal: float [num_samples] at 16 kHz, at least one sample.
        max_columns: Of the result.

    Returns:
        float32 [num_columns, 257]; silence has -120 dB.
    """
    config = StftConfig(512, 128)
    together = max(1, math.ceil(len(signal) / config.hop / max_columns))
    num_frames = 256 * together
    columns = []
    for start in range(0, len(signal), num_frames * config.hop):
        first = max(0, start - config.frame)  # so that frames at a seam are whole
        part = stft(signal[first : start + num_frames * config.hop], config)
        frames = magnitudes(part)[(start - first) // config.hop :][:num_frames]
        groups = np.arange(0, len(frames), together)
        columns.append(np.maximum.reduceat(frames, groups, axis=0))
    return 20 * np.log10(np.maximum(np.concatenate(columns), 1e-6))[:max_columns]


@contextlib.contextmanager
def _removed_if_it_fails(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class Server(ThreadingHTTPServer):
    """Serves the page of a `Demo`.

    Args:
        demo: What to serve.
        host: Address to listen on.
        port: Likewise; 0 for one that is free.
        max_mb: Largest clip.

    Raises:
        ValueError: The address can't be had.
    """

    daemon_threads = True

    def __init__(
        self, demo: Demo, host: str = HOST, port: int = PORT, max_mb: float = MAX_MB
    ) -> None:
        self.demo = demo
        self.max_bytes = round(max_mb * 1e6)
        # Another site's name may be made to lead to this address: then it stands in 'Host'.
        self.is_local = host in ("127.0.0.1", "localhost")
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ValueError(
                f"{host}:{port}: {why.lower()}; choose others with --host and --port"
            ) from None

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{host}:{port}/"

    def service_actions(self) -> None:
        """Forgets live sessions whose page has gone, every half second."""
        self.demo.sessions.sweep()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of connections that break off; other faults are ours, and are shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True  # a live answer must not wait for the next one
    server_version = "speech.demo"
    sys_version = ""

    def do_GET(self) -> None:
        """Answers with the page, what it offers, a bundled clip or a result."""
        self._guarded(self._get)

    def do_POST(self) -> None:
        """Takes a clip or a live block and answers with what became of it."""
        # Until all of it is read, nothing else can follow on this connection.
        self.close_connection = True
        self._guarded(self._post)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Answers what can't be understood, such as an address that is none, in one line."""
        try:
            work()
        except ValueError as error:
            self.close_connection = True
            words = f"the request is malformed: {cli.one_line(error)}"
            self._send_json({"error": words}, HTTPStatus.BAD_REQUEST)

    def _get(self) -> None:
        if not self._is_ours():
            return
        path, query = self._asked()
        demo = self.server.demo
        if path in _PAGE:
            name, kind = _PAGE[path]
            self._send((_TEMPLATES / name).read_bytes(), kind)
        elif path == "/offer":
            labels = [choice.label for choice in demo.choices]
            offer = {"choices": labels, "clips": demo.clips, "max_bytes": self.server.max_bytes}
            self._send_json(offer)
        elif path == "/clip":
            self._answer(lambda: self._send(demo.clip(query.get("noise", "")), "audio/wav"))
        elif path == "/file":
            key, what = query.get("key", ""), query.get("what", "")
            self._answer(lambda: self._send_file(demo.file(key, what)))
        elif path == "/live/offer" and (choice := self._chosen(query)):
            self._send_json({"refused": _refusal(lambda: demo.stream_plan(choice))})
        else:
            self._send_json({"error": "there is no such page"}, HTTPStatus.NOT_FOUND)

    def _post(self) -> None:
        if not self._is_ours():
            return
        path, query = self._asked()
        demo = self.server.demo
        if path == "/enhance" and (choice := self._chosen(query)):
            limit = self.server.max_bytes
            whose = "the page; start it with --max-mb, or use the command"
            if (size := self._size(limit, whose)) is not None:
                self._answer(lambda: self._enhance(size, query.get("name", ""), choice))
        elif path == "/live/start" and (choice := self._chosen(query)):
            self._answer(lambda: self._start_live(choice, query.get("rate", "")))
        elif path == "/live/push":
            if (size := self._size(MAX_BLOCK_BYTES, "a block")) is not None:
                self._answer(lambda: self._push(size, query))
        elif path == "/live/stop":
            demo.sessions.stop(query.get("session", ""))
            self._send_json({})
        else:
            self._send_json({"error": "there is no such choice"}, HTTPStatus.NOT_FOUND)

    def _chosen(self, query: dict[str, str]) -> Choice | None:
        number, choices = query.get("choice", ""), self.server.demo.choices
        known = {str(place): choice for place, choice in enumerate(choices)}
        return known.get(number)

    def _size(self, limit: int, whose: str) -> int | None:
        """Returns how many bytes will come; answers where that is unknown or too much."""
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal():
            self._send_json({"error": "the length is missing"}, HTTPStatus.LENGTH_REQUIRED)
        elif int(size) > limit:
            words = f"{int(size) / 1e6:,.0f} MB: more than the {limit / 1e6:g} MB of {whose}"
            self._send_json({"error": words}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            return int(size)
        return None

    def _enhance(self, size: int, name: str, choice: Choice) -> None:
        source = self.server.demo.take(self.rfile, size, name)
        self.close_connection = False
        self._send_json(self.server.demo.enhance(source, choice))

    def _start_live(self, choice: Choice, rate: str) -> None:
        demo = self.server.demo
        plan = demo.stream_plan(choice)
        session = demo.sessions.start(plan, _natural("rate", rate))
        self._send_json(
            {
                "session": session.key,
                "block_samples": session.block_samples,
                "latency_ms": 1000 * session.live.latency_s,
                "network_hz": plan.conventions.sample_rate_hz,
            }
        )

    def _push(self, size: int, query: dict[str, str]) -> None:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the browser has gone")
        self.close_connection = False
        session = self.server.demo.sessions.of(query.get("session", ""))
        found = session.push(_natural("block", query.get("block", "")), data)
        self._send(found, "application/octet-stream")

    def _answer(self, work: Any) -> None:
        try:
            work()
        except ConnectionError:
            raise
        except cli.EXPECTED_ERRORS as error:
            self._send_json({"error": cli.one_line(error)}, HTTPStatus.BAD_REQUEST)

    def _is_ours(self) -> bool:
        """Tells whether the page itself asks; answers otherwise."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        named = host.rpartition(":")[0] if ":" in host else host
        is_here = not self.server.is_local or named in ("127.0.0.1", "localhost")
        if is_here and origin in (None, f"http://{host}"):
            return True
        self.close_connection = True
        self._send_json({"error": "another site asks"}, HTTPStatus.FORBIDDEN)
        return False

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, errors="replace", max_num_fields=10)
        return unquote(parts.path, errors="replace"), {k: v[0] for k, v in query.items()}

    def _send_file(self, path: Path) -> None:
        with open(path, "rb") as stream:
            self._send_head("application/octet-stream", os.fstat(stream.fileno()).st_size)
            shutil.copyfileobj(stream, self.wfile)

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send_head(kind, len(content), status)
        self.wfile.write(content)

    def _send_head(self, kind: str, num_bytes: int, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(num_bytes))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Keeps what is asked to itself."""


def _refusal(work: Callable[[], Any]) -> str:
    """Returns why something is refused, or nothing."""
    try:
        work()
    except cli.EXPECTED_ERRORS as error:
        return cli.one_line(error)
    return ""


def _natural(name: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", text):
        raise ValueError(f"{name} is {shown(text, 40)!r}, expected a whole number")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(argv is None, **vars(options)))


def _run(is_command: bool, **options: Any) -> int:
    """Serves until a signal comes; a command hears no other until its process is gone."""
    before = {number: signal.signal(number, _stop) for number in _ENDINGS}
    try:
        return _serve(**options)
    finally:
        stopped = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if not (stopped and is_command):
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """Yields a folder for recordings, and leaves nothing of it, whatever is still being written."""
    folder = tempfile.mkdtemp(prefix="speech-demo-")
    try:
        yield folder
    finally:
        for _ in range(_MOST_REMOVALS):
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.lexists(folder):
                break
            time.sleep(0.1)


def _serve(models: list[Path], experts: list[Path], host: str, port: int, max_mb: float) -> int:
    with _own_folder() as folder:
        demo = Demo(Path(folder), models, experts)
        with Server(demo, host, port, max_mb) as server:
            print(f"page      {server.url}", flush=True)
            if not server.is_local:
                print("whoever reaches this address can use the page", file=sys.stderr)
            print("Ctrl-C ends it", file=sys.stderr)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("ended", file=sys.stderr)
            finally:
                demo.close()
    return 0


def _stop(*_: Any) -> None:
    """Ends the server; a second signal must not break into the removal of the clips."""
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech.demo",
        description="Serve a page on this machine to try the networks on your own clips, or "
        "live on your microphone.",
        **cli.examples(
            "python -m speech.demo",
            "python -m speech.demo --models mine.h5 small.icse --port 9000",
            note="Live needs a network that can stream, such as models/denoise.icse, headphones, "
            "and a browser on this machine: no other may use a microphone without https.",
        ),
    )
    add = parser.add_argument
    add("--models", type=Path, nargs="+", default=[], metavar="FILE",
        help="offer these models (.h5, .icse) beside the shipped ones")  # fmt: skip
    add("--experts", type=Path, nargs="+", default=[], metavar="FILE",
        help="take these models (.h5, .icse, .onnx) as experts (default: the shipped "
        "ones)")  # fmt: skip
    add("--host", default=HOST, help="listen on this address (default %(default)s: this machine)")
    add("--port", type=natural_number, default=PORT, metavar="N",
        help="listen on this port, 0 for one that is free (default %(default)s)")  # fmt: skip
    add("--max-mb", type=cli.amount, default=MAX_MB, metavar="MB",
        help="allow this size at most: for a clip (default %(default)g)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
