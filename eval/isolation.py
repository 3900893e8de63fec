"""Functions run in child processes that may die.

The C code of PESQ can write past its tables and take its process with it. In a pool such as
joblib's or `concurrent.futures`' a dead process fails every task that is under way or waiting, and
does not say which one killed it. Here each call has a child to itself while it runs: if the child
dies, exactly this call fails, and the next one starts a new child. Calls come from threads, which
only wait; joblib or Dask spread the threads.

A child is a plain subprocess that reads pickled calls from its standard input and answers on its
standard output. It works on one core, and ends when its parent does.
A call may have a time limit.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any, TypeVar

from speech.base.cli import end_with_parent, python_command, python_environment, without_ctrl_c

T = TypeVar("T")

#: Environment variables that keep NumPy on one core.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_lock = threading.Lock()
_idle: list[subprocess.Popen] = []


class ProcessDied(RuntimeError):
    """The child died in the middle of a call; the message says how."""


def run_isolated(function: Callable[..., T], *arguments: Any, limit_s: float | None = None) -> T:
    """Runs ``function(*arguments)`` in a child process, which must be able to import it.

    Args:
        function: What to run.
        arguments: Its arguments, which are pickled.
        limit_s: Time after which the child is ended; None for no limit.

    Raises:
        ProcessDied: The child died, or was ended.
        Exception: What the function raised.
    """
    with _lock:
        child = _idle.pop() if _idle else None
    child = child or _start()
    calls, answers = _pipes(child)
    late = threading.Event()

    def end() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(limit_s or 0.0, end)
    timer.daemon = True
    if limit_s is not None:
        timer.start()
    try:
        pickle.dump((function, arguments), calls)
        calls.flush()
        succeeded, result = pickle.load(answers)
    except (EOFError, OSError, pickle.UnpicklingError):
        how = _stop(child)
        if late.is_set():
            raise ProcessDied(f"scoring took over {limit_s:g} s and was ended") from None
        raise ProcessDied(f"scoring process died ({how})") from None
    except BaseException:
        child.kill()
        _stop(child)
        raise
    finally:
        timer.cancel()
    if late.is_set():  # the answer came in the last moment
        _stop(child)
    else:
        with _lock:
            _idle.append(child)
    if not succeeded:
        raise result
    return result


def close_idle() -> None:
    """Ends the children that have nothing to do."""
    with _lock:
        children, _idle[:] = _idle[:], []
    for child in children:
        _stop(child)


atexit.register(close_idle)


def _start() -> subprocess.Popen:
    environment = python_environment(**dict.fromkeys(ONE_THREAD, "1"))
    command = python_command("-c", "from eval.isolation import serve; serve()")
    pipe = subprocess.PIPE
    with without_ctrl_c():
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)


def _pipes(child: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None and child.stdout is not None
    return child.stdin, child.stdout


def _stop(child: subprocess.Popen) -> str:
    """Ends a child, waits for it and returns how it ended."""
    calls, answers = _pipes(child)
    with contextlib.suppress(OSError):
        calls.close()
    code = child.wait()
    answers.close()
    names = {int(number): number.name for number in signal.Signals}
    return names.get(-code, f"exit code {code}")


def serve() -> None:
    """Answers calls until the parent closes the pipe: the main function of a child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):  # from here on Ctrl-C ends it, and without a word
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent()  # also in the middle of a call
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not print into the answers
    while True:
        try:
            function, arguments = pickle.load(calls)
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except Exception as error:
            answer = False, error
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the parent was killed; closing the stream would raise once more
            os._exit(0)
