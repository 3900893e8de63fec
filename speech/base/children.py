"""Child processes that answer calls: what may die, hang or change a whole program runs there.

A child imports one function and answers each call with what that returns. It reads pickled calls
from its standard input and answers on its standard output; whatever prints does not print into the
answers, but to standard error. It ends when its parent does, in the middle of a call too.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from speech.base.cli import end_with_parent, python_command, python_environment, without_ctrl_c


class ChildDied(RuntimeError):
    """The child has died in the middle of a call; the message says how.

    Args:
        how: Such as 'died (SIGSEGV)'.
        late: Whether it was ended because the call took too long.
    """

    def __init__(self, how: str, late: bool = False) -> None:
        super().__init__(how)
        self.late = late


class Child:
    """A process that answers calls, one after the other.

    It ends with this object, and with this program, at the latest.

    Args:
        function: What answers, 'module:name'; the child must be able to import it.
        environment: Variables of the process; None for those of `python_environment`.
        stderr: As ``subprocess.Popen`` takes it.
    """

    def __init__(
        self,
        function: str,
        environment: Mapping[str, str] | None = None,
        stderr: IO[bytes] | int | None = None,
    ) -> None:
        command = python_command("-c", "from speech.base.children import serve; serve()", function)
        with without_ctrl_c():
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                env=python_environment() if environment is None else environment,
            )  # fmt: skip
        self._end = weakref.finalize(self, _ended, self.process, os.getpid())

    @property
    def is_alive(self) -> bool:
        """Whether it can be called."""
        return self._end.alive

    def call(self, *arguments: Any, limit_s: float | None = None) -> Any:
        """Returns what the function returns.

        Args:
            arguments: Its arguments, which are pickled.
            limit_s: Time after which the child is ended; None for no limit.

        Raises:
            ChildDied: The child died, or was ended.
            Exception: What the function raised.
        """
        calls, answers = _pipes(self.process)
        late = threading.Event()

        def end() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(limit_s or 0.0, end)
        timer.daemon = True
        if limit_s is not None:
            timer.start()
        try:
            pickle.dump(arguments, calls)
            calls.flush()
            succeeded, result = pickle.load(answers)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            how = self.end()
            if late.is_set():
                raise ChildDied(f"took over {limit_s:g} s and was ended", late=True) from None
            raise ChildDied(f"died ({how})") from None
        except BaseException:
            self.end()
            raise
        finally:
            timer.cancel()
        if late.is_set():  # the answer came in the last moment
            self.end()
        if not succeeded:
            raise result
        return result

    def end(self) -> str:
        """Ends the process, whatever it does, and returns how it has ended."""
        self._end()
        names = {int(number): number.name for number in signal.Signals}
        code = self.process.returncode
        return names.get(-code, f"exit code {code}")


def _pipes(process: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _ended(process: subprocess.Popen, parent: int) -> None:
    if os.getpid() != parent:  # a fork of the parent ends, which has no say
        return
    process.kill()
    process.wait()
    for pipe in _pipes(process):
        with suppress(OSError):  # what was not sent any more
            pipe.close()


def serve() -> None:
    """Answers calls until the parent closes the pipe: the main function of a child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):  # from here on Ctrl-C ends it, and without a word
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent()
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    function = None
    while True:
        try:
            arguments = pickle.load(calls)
        except EOFError:
            return
        try:
            function = function or getattr(importlib.import_module(module), name)
            answer = True, function(*arguments)
        except Exception as error:
            answer = False, error
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the parent was killed; closing the stream would raise once more
            os._exit(0)
