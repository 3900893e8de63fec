"""The parts that all commands share: exit codes, one-line errors, progress, options.

Exit codes: 0 done, 1 failed (one line on stderr says why), 2 wrong usage (argparse), 130 ended by
Ctrl-C, 143 by SIGTERM, 129 when the terminal was closed.

Whatever a command prints, by `print` or as an announcement, is text: control characters of a name
or a message are shown as escapes, and a line of a megabyte is cut (`speech.base.words`).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TextIO, TypeGuard, TypeVar

from speech.base.lazy import joblib, load, tqdm
from speech.base.words import MOST, shown

T = TypeVar("T")

_ROOT = str(Path(__file__).resolve().parents[2])

#: Exceptions that mean "the input is bad" or "the machine said no", never "our code is wrong".
EXPECTED_ERRORS = (ValueError, OSError, MemoryError)

#: The largest ratio, up or down.
MAX_DECIBELS = 100.0

#: Exit code after Ctrl-C, as shells have it: 128 and the number of the signal.
INTERRUPTED = 130

#: A line that is printed has so many characters at most.
MAX_LINE = 4000

#: Other signals that end a command, but not before it has tidied up: its temporary files may hold
#: somebody's recordings.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

#: Says in the environment of a process of ours who has started it.
_PARENT = "SPEECH_PARENT"
_LOOK_EVERY_S = 0.5

#: What a full disk, a quota and a limit on the size of files say.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_NO_FOLDER = "a file stands where a folder is needed; choose another place"

#: What some errors of the system come to, and what to do.
_HINTS = {
    errno.ENOENT: "No such file or directory; check the path",
    errno.EACCES: "Permission denied; choose another place, or get access to this one",
    errno.EISDIR: "is a folder, where a file is needed; check the path",
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.ELOOP: "its links lead round in a circle; check the path",
}

#: What `Path.resolve` says of such links before Python 3.13, in an error that means nothing else.
_LINK_LOOP = "Symlink loop from "


def run(command: Callable[[], int]) -> int:
    """Runs ``command`` and turns an expected error into one line on stderr and exit code 1.

    Set ``SPEECH_TRACEBACK=1`` to see the traceback all the same.
    """
    _open_standard_streams()
    # joblib counts what is thrown away with the results, after an error or Ctrl-C.
    warnings.filterwarnings("ignore", r"\d+ tasks (which were|have been)")
    if os.environ.get(_PARENT) == str(os.getppid()):
        end_with_parent()
    with _plain_streams(), _tidy_endings():
        return _run(command)


def _run(command: Callable[[], int]) -> int:
    try:
        return command()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EXPECTED_ERRORS as error:
        if os.environ.get("SPEECH_TRACEBACK"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not str(error).startswith(_LINK_LOOP):
            raise
        path = str(error).removeprefix(_LINK_LOOP)[1:-1]
        print(f"error: {shown(path, MOST)}: {_HINTS[errno.ELOOP]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return INTERRUPTED


def _open_standard_streams() -> None:
    """Opens the standard streams that the caller has closed (``2>&-``), so that no file takes them.

    Otherwise a model or a recording could get the number 2, and TensorFlow would write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is taken.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
    # Names of files may hold what the terminal can't show, or bytes that are no text at all.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Plain:
    """A text stream that shows what would drive a terminal, and cuts what would fill it.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes text; line feeds and tabs stay."""
        if len(text) > MAX_LINE or not text.replace("\n", "").isprintable():
            lines = (shown(line, MAX_LINE, keep="\t") for line in text.split("\n"))
            self.stream.write("\n".join(lines))
        else:
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes lines as `write` does."""
        for line in lines:
            self.write(line)


def terminal() -> TextIO:
    """Returns standard error as it is, for progress bars, which move about on the terminal."""
    return sys.stderr.stream if isinstance(sys.stderr, _Plain) else sys.stderr


@contextlib.contextmanager
def _plain_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    plain = [stream if isinstance(stream, _Plain) else _Plain(stream) for stream in before]
    sys.stdout, sys.stderr = plain
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def _tidy_endings() -> Iterator[None]:
    """Turns signals that would end this process at once into an exception.

    What is ignored (``nohup``) or has a handler stays as it is, and a second signal does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    heard = [number for number in ENDINGS if signal.getsignal(number) is signal.SIG_DFL]
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            if signal.getsignal(number) is end:  # otherwise the command has set it, to stay
                signal.signal(number, signal.SIG_DFL)


def end_with_parent(parent: int | None = None) -> None:
    """Ends this process soon after the one that has started it, however that one ended.

    Args:
        parent: Number of that process; another one is not watched. None for whichever it is.
    """
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY_S)
        os._exit(1)

    if os.name == "posix" and os.getppid() == parent:
        threading.Thread(target=watch, name="end with parent", daemon=True).start()


def means_no_room(error: BaseException) -> TypeGuard[OSError]:
    """Returns whether a disk is full: then the next file has no chance either."""
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def one_line(error: BaseException) -> str:
    """Returns the message of ``error`` on one line, cut to `speech.base.words.MOST` characters."""
    if means_no_room(error):
        where = f"{error.filename}: " if error.filename else ""
        text = (
            f"{where}{os.strerror(error.errno or 0)}; make room and repeat the command: it goes on"
        )
    elif isinstance(error, OSError) and error.filename and error.strerror:
        number = error.errno or 0
        # Our own words, in place of the system's, stay.
        hint = _HINTS.get(number) if error.strerror == os.strerror(number) else None
        text = f"{error.filename}: {hint or error.strerror}"
    elif isinstance(error, MemoryError):
        text = f"not enough memory ({error})" if str(error) else "not enough memory"
    else:
        text = str(error) or type(error).__name__
    return shown(" ".join(text.split()), MOST)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Sends the project's announcements (resampled, averaged, skipped) to stderr."""
    logger = logging.getLogger("speech")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)


class _StderrHandler(logging.Handler):
    """Writes to the ``sys.stderr`` of the moment, without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.tqdm.write(shown(self.format(record), MAX_LINE), file=terminal())


def say(line: str) -> None:
    """Prints a line of progress without buffering it, even where the output is a pipe."""
    print(line, flush=True)


def progress(items: Iterable[T], *, total: int | None = None, label: str = "") -> Iterable[T]:
    """Iterates over ``items`` with a progress bar on stderr, if that is a terminal."""
    return tqdm.tqdm(
        items, total=total, desc=shown(label), file=terminal(), disable=None, leave=False
    )


def finite_number(text: str) -> float:
    """Parses a finite number; argparse quotes the name of this function in its complaint."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def pattern(text: str) -> str:
    """Parses a regular expression that a name may be searched with."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    if not text:
        raise argparse.ArgumentTypeError("the pattern is empty; give one such as 'fileid_(\\d+)'")
    return text


#: Of commands that pair noisy and clean files.
PAIR_BY: dict[str, Any] = {
    "type": pattern,
    "metavar": "PATTERN",
    "help": "pair noisy and clean files by what this regular expression finds in their names, such "
    "as 'fileid_(\\d+)' (default: by path and name)",
}


def decibels(text: str) -> float:
    """Parses a ratio from -100 to 100, as `speech.sound.mixing` takes it."""
    value = finite_number(text)
    if abs(value) > MAX_DECIBELS:
        raise argparse.ArgumentTypeError(
            f"{text} is not from -{MAX_DECIBELS:g} to {MAX_DECIBELS:g} dB"
        )
    return value


def natural_number(text: str) -> int:
    """Parses a whole number from 0 up."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return value


def positive_number(text: str) -> int:
    """Parses a whole number from 1 up."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1")
    return value


def amount(text: str) -> float:
    """Parses a number above 0; argparse quotes the name of this function in its complaint."""
    value = finite_number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def json_file(text: str) -> Path:
    """Parses the name of a file to write, and looks before hours of work whether it can be."""
    path = Path(text)
    if path.suffix.lower() != ".json":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .json")
    # os.path: to Path.exists a folder that may not be looked into is an error.
    folder = next(p for p in path.absolute().parents if os.path.lexists(p))
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; choose another place")
    return path


def python_command(*arguments: str) -> list[str]:
    """Returns the command line of a Python process of ours; give it `python_environment`.

    It finds no module in the folder it works in: a ``soundfile.py`` that lies beside somebody's
    recordings is no program of ours.
    """
    return [sys.executable, "-P", *arguments]


def python_environment(**changes: str) -> dict[str, str]:
    """Returns the environment of such a process: what this one may import, less that folder.

    Args:
        changes: Variables to set besides.
    """
    here = os.getcwd()
    folders = [os.path.abspath(folder) for folder in sys.path]
    path = os.pathsep.join([_ROOT, *(folder for folder in folders if folder != here)])
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", _PARENT: str(os.getpid())}
    return {**os.environ, **own, **changes}


@contextlib.contextmanager
def only_our_modules() -> Iterator[None]:
    """Does what `python_command` does, for the processes that a library starts inside."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Holds Ctrl-C back from the processes that are started inside, for as long as they live.

    The terminal sends it to all of them, and each would end with a traceback of its own; this
    process, which gets it after the block at the latest, ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_processes(tasks: Iterable[Any], num_jobs: int) -> Iterable[Any]:
    """Runs ``joblib.delayed`` calls side by side; yields their results in their order."""
    load(joblib)
    with only_our_modules():
        if num_jobs != 1 and hasattr(signal, "pthread_sigmask"):
            for tracker in (resource_tracker, joblib.externals.loky.backend.resource_tracker):
                tracker.ensure_running()  # its start, if inside, would let Ctrl-C through again
        with without_ctrl_c():  # the processes start here; the results are waited for outside
            # joblib's own would live on for minutes if this process were killed.
            how = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
            return joblib.Parallel(
                n_jobs=num_jobs, return_as="generator", **(how if num_jobs != 1 else {})
            )(tasks)


def check_folder(out: Path) -> None:
    """Raises ValueError if a folder is to be written where a file stands."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is not a folder; choose another --out")


def check_out(out: Path, inputs: Iterable[Path | None], filled: Iterable[Path | None] = ()) -> None:
    """Raises ValueError if results would be found among the inputs, now or by the next run.

    Args:
        out: The folder to write.
        inputs: Folders to read; None for those not given.
        filled: Folders below ``out`` that the command fills with files named like the inputs: no
            input may lie there either, or hold one of them.
    """
    places = [place for place in filled if place is not None]
    for folder in inputs:
        if folder is None:
            continue
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out}: lies inside the input folder {folder}; choose another --out")
        for place in places:
            if overlap(place, folder):
                raise ValueError(
                    f"{place}: would be written, and overlaps the input folder {folder}; choose "
                    "another --out"
                )


def overlap(one: Path, other: Path) -> bool:
    """Returns whether one of two folders lies inside the other, wherever links lead."""
    places = one.resolve(), other.resolve()
    return places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0])


def named_path(text: str) -> tuple[str, Path]:
    """Parses NAME=PATH, for ``type`` of an option."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=PATH")
    return name, Path(path)


def num_jobs(text: str) -> int:
    """Parses a number of processes; 0 is one per core, which joblib calls -1."""
    return natural_number(text) or -1


#: Options that mean the same in every command: ``add("--seed", **SEED)``.
SEED: dict[str, Any] = {
    "type": natural_number,
    "default": 0,
    "metavar": "N",
    "help": "seed everything random (default %(default)s)",
}
JSON: dict[str, Any] = {
    "type": json_file,
    "metavar": "FILE",
    "help": "also write the results to FILE as JSON",
}
GPU: dict[str, Any] = {
    "default": "0",
    "metavar": "LIST",
    "help": "run on this GPU: 0 (default), or -1 for the CPU",
}
#: Of commands that share each training step among several.
GPUS: dict[str, Any] = GPU | {
    "help": "run on this GPU: 0 (default), several as 0,1 to share each step, or -1 for the CPU",
}
JOBS: dict[str, Any] = {
    "type": num_jobs,
    "default": -1,
    "metavar": "N",
    "help": "run N processes (default: one per core)",
}


def examples(*commands: str, note: str = "") -> dict[str, Any]:
    """Returns the arguments of an ``ArgumentParser`` that end its help with examples.

    Args:
        commands: Whole command lines, as one types them.
        note: A paragraph after them.
    """
    text = "\n".join(["examples:", *(f"  {command}" for command in commands)])
    return {"epilog": f"{text}\n\n{note}" if note else text, "formatter_class": _HelpFormatter}


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps text, but leaves indented lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.split("\n")
        fill = super()._fill_text
        return "\n".join(x if x.startswith("  ") else fill(x, width, indent) for x in lines)
