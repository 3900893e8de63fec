"""Scoring in child processes that may die.

The C code of PESQ can write past its tables and take its process with it. In a pool such as
joblib's or `concurrent.futures`' a dead process fails every task that is under way or waiting, and
does not say which one killed it. Here each call has a child (`speech.base.children`) to itself
while it runs: if the child dies, exactly this call fails, and the next one starts a new child.
Calls come from threads, which only wait; joblib or Dask spread the threads. A child works on one
core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from speech.base.children import Child, ChildDied
from speech.base.cli import python_environment

T = TypeVar("T")

#: Environment variables that keep NumPy on one core.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_lock = threading.Lock()
_idle: list[Child] = []


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
    child = child or Child("operator:call", python_environment(**dict.fromkeys(ONE_THREAD, "1")))
    try:
        return child.call(function, *arguments, limit_s=limit_s)
    except ChildDied as error:
        raise ProcessDied(f"scoring process {error}") from None
    finally:
        if child.is_alive:
            with _lock:
                _idle.append(child)


def close_idle() -> None:
    """Ends the children that have nothing to do."""
    with _lock:
        children, _idle[:] = _idle[:], []
    for child in children:
        child.end()
