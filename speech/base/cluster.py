"""Many small pieces of work on a Dask cluster: the option ``--dask`` of several commands.

What is given to a cluster are calls on files: a few to a task, one to a task towards the end. Its
workers must have this package and see the same files under the same paths. A few tasks for each
thread of the workers are on their way at a time, however many there are.

Whoever reaches a scheduler or a worker can run code there: a cluster trusts its network, unless it
is set up with TLS. The processes of 'local' have keys of their own, made anew for each run.

A worker may die, and others may come. The tasks of a dead worker go to others; Dask allows a task
a few dead workers (``distributed.scheduler.allowed-failures``). The calls of one that had more are
tried again in the end, one by one: where the workers still die, that call is to blame, and failed.
A run that has no worker for `PATIENCE_S` ends, and so does one whose scheduler is gone.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from speech.base import cli
from speech.base.lazy import asyncio, cryptography, dask, distributed, joblib, load

#: What stands for a cluster of processes on this machine.
LOCAL = "local"

#: How long to wait for a scheduler to answer.
TIMEOUT_S = 10.0

#: How long to wait for workers where there is none.
PATIENCE_S = 60.0

#: Tasks on their way, for each thread of the workers.
TASKS_A_THREAD = 4

#: Calls in a task at most, and how many tasks for each thread should be left all the same: the
#: scheduler hands out some hundreds of tasks per second.
MOST_CALLS, TASKS_LEFT = 16, 8

#: Settings of a local cluster: dead workers that a task is allowed each time that it is tried, and
#: how long a dead worker may take to come back before it is given up.
LOCAL_SETTINGS = {
    "distributed.scheduler.allowed-failures": 1,
    "distributed.deploy.lost-worker-timeout": "10 minutes",
}

#: How long to wait for dead workers to come back before a task is tried again.
COME_BACK_S = 10.0

#: Ctrl-C is for this process alone, which ends its workers.
_NO_INTERRUPT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"

#: How long to wait for a result before all that are on their way are asked for anew.
_ASK_AGAIN_S = 60.0

_POLL_S = 0.02
_CHECK_EVERY_S = 1.0


@dataclass(frozen=True)
class Failed:
    """Stands for the result of a call that has cost too many workers.

    Attributes:
        reason: In words.
    """

    reason: str


def add_option(group: Any, what: str) -> None:
    """Adds ``--dask`` to a parser or a group of options.

    Args:
        group: Of argparse.
        what: What is done there, such as 'score'.
    """
    group.add_argument(
        "--dask", metavar="ADDRESS",
        help=f"{what} on a Dask cluster: tcp://HOST:PORT, or {LOCAL}; its workers must see the "
        "same files and this package",
    )  # fmt: skip


@contextlib.contextmanager
def connected(address: str | None, num_workers: int = -1) -> Iterator[Cluster | None]:
    """Yields the cluster at an address, or None without an address.

    Args:
        address: Such as 'tcp://host:8786', or 'local' for a cluster of processes on this machine.
        num_workers: Of a local cluster; below 1 for one per core.

    Raises:
        ValueError: Dask, or what it makes keys with, is not installed, or no scheduler answers at
            the address.
    """
    if address is None:
        yield None
        return
    try:
        load(distributed)
    except ImportError:
        raise ValueError(
            "Dask is not installed; run: pip install 'dask[distributed]', or leave --dask out"
        ) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_silence())
        target: Any = address
        if address == LOCAL:
            _require_cryptography()
            stack.enter_context(dask.config.set(LOCAL_SETTINGS))
            stack.enter_context(cli.only_our_modules())
            target = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=joblib.cpu_count() if num_workers < 1 else num_workers,
                    threads_per_worker=1,
                    # Without an address Dask serves HTTP to the whole network, at port 8787.
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    security=True,  # what it takes from anybody is run
                    memory_limit=None,
                    silence_logs=logging.CRITICAL,
                    preload=[_NO_INTERRUPT],
                )
            )
        else:
            _check_address(address)
        client = stack.enter_context(
            distributed.Client(target, timeout=TIMEOUT_S, set_as_default=False)
        )
        yield Cluster(client, address)


def _require_cryptography() -> None:
    """Raises ValueError where Dask can't make keys for its processes."""
    try:
        load(cryptography)
    except ImportError:
        raise ValueError(
            "cryptography is not installed, without which every user of this machine could run "
            "code in the workers; run: pip install cryptography, or leave --dask out"
        ) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps Dask from telling of what it mends, and from tracebacks beside our own line."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_address(address: str) -> None:
    """Raises ValueError unless a scheduler answers; `Client` alone may wait for ever."""

    async def ask() -> str:
        arguments = distributed.security.Security().get_connection_args("client")
        async with distributed.core.rpc(address, connection_args=arguments) as other:
            return (await other.identity())["type"]

    async def ask_in_time() -> str:
        return await asyncio.wait_for(ask(), TIMEOUT_S)

    try:
        kind = asyncio.run(ask_in_time())
    except TimeoutError:
        raise ValueError(
            f"{address}: no Dask scheduler answers within {TIMEOUT_S:g} s; check the address"
        ) from None
    except Exception as error:  # whatever stands there instead
        raise ValueError(
            f"{address}: no Dask scheduler answers ({error}); give tcp://HOST:PORT"
        ) from None
    if kind != "Scheduler":
        raise ValueError(f"{address}: is a Dask {kind.lower()}; give the scheduler's address")


class Cluster:
    """A Dask cluster with a connection to it; see the module for what it does about deaths.

    Args:
        client: A `distributed.Client`.
        address: To name it in errors.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        self._num_threads = self._most_workers = 0
        self._checked_s = -_CHECK_EVERY_S
        self._workers_seen_s = time.monotonic()

    def map(
        self, function: Callable[..., Any], calls: Iterable[tuple], total: int
    ) -> Iterator[tuple[int, Any]]:
        """Calls a function on the workers, and yields (place of the call, result) as they come.

        Args:
            function: One that the workers can import.
            calls: Its positional arguments, call by call. They are drawn as they are needed.
            total: How many calls there are.

        Yields:
            Each place once, with the result or `Failed`.

        Raises:
            ValueError: All workers or the scheduler are gone, or lack this package.
            Exception: What the function raised, after which nothing more is done.
        """
        self._workers_seen_s = time.monotonic()
        suspects = []
        for (place, call), result in self._round(function, enumerate(calls), total):
            if isinstance(result, Failed):
                suspects.append((place, call))
            else:
                yield place, result
        # Workers die with all that they have at the moment, so many of these are innocent.
        for suspect in suspects:
            with contextlib.suppress(OSError):
                self._client.wait_for_workers(self._most_workers, timeout=COME_BACK_S)
            for (place, _), result in self._round(function, iter([suspect]), 1):
                yield place, result

    def tell(self, function: Callable[[], Any]) -> None:
        """Calls a function once in each worker, without waiting for it."""
        with contextlib.suppress(OSError):
            self._client.run(function, wait=False, on_error="ignore")

    def _round(
        self, function: Callable[..., Any], waiting: Iterator[tuple[int, tuple]], total: int
    ) -> Iterator[tuple[tuple[int, tuple], Any]]:
        """Yields ((place, call), result or `Failed`) of each (place, call)."""

        # Sent by value, as all local functions are: a worker that lacks the package then fails at
        # the task, while a message that it can't read would throw it out of the cluster.
        def work(packed: bytes) -> list[Any]:
            function, calls = pickle.loads(packed)
            return [function(*call) for call in calls]

        def follow(futures: Iterable[Any]) -> Any:
            loop = self._client.loop
            return distributed.as_completed(futures, loop, with_results=True, raise_errors=False)

        running: dict[Any, list[tuple[int, tuple]]] = {}
        finished, last_s = follow(running), time.monotonic()
        while True:
            self._check()
            num_threads = max(1, self._num_threads)
            while len(running) < TASKS_A_THREAD * num_threads:
                size = max(1, min(MOST_CALLS, total // (TASKS_LEFT * num_threads)))
                group = list(itertools.islice(waiting, size))
                if not group:
                    break
                total -= len(group)
                packed = pickle.dumps((function, [call for _, call in group]))
                future = self._client.submit(work, packed, pure=False)
                running[future] = group
                finished.add(future)
            if not running:
                return
            batch = finished.next_batch(block=False)
            if batch:
                last_s = time.monotonic()
            elif time.monotonic() - last_s > _ASK_AGAIN_S:  # one may have been lost on its way
                finished, last_s = follow(running), time.monotonic()
            else:
                time.sleep(_POLL_S)
            for future, result in batch:
                group = running.pop(future)
                yield from zip(group, self._checked(result, len(group)), strict=True)

    def _checked(self, result: Any, size: int) -> list[Any]:
        """Returns the results of a task, or `Failed` for each; raises what a call has raised.

        Args:
            result: What Dask gives: the list of results, or (type, error, traceback), or that the
                task was cancelled. The state of a task says less: it may change again.
            size: Number of calls in the task.
        """
        if isinstance(result, list):
            return result
        if not isinstance(result, tuple):
            raise self._lost()
        _, error, traceback = result
        if isinstance(error, distributed.KilledWorker):
            num_dead = error.allowed_failures + 1
            return [Failed(f"{num_dead} Dask workers died while they had it")] * size
        if isinstance(error, ImportError):
            raise ValueError(
                f"{self._address}: a Dask worker lacks what it needs ({error}); install this "
                "package where the workers run"
            ) from error
        raise error.with_traceback(traceback)

    def _check(self) -> None:
        """Counts the workers now and then; raises ValueError if there is no hope."""
        now = time.monotonic()
        if now - self._checked_s < _CHECK_EVERY_S:
            return
        self._checked_s = now
        if self._client.status != "running":
            raise self._lost()
        try:
            workers = self._client.nthreads()
        except OSError:
            raise self._lost() from None
        self._num_threads = sum(workers.values())
        self._most_workers = max(self._most_workers, len(workers))
        if workers:
            self._workers_seen_s = now
        elif now - self._workers_seen_s > PATIENCE_S:
            raise ValueError(
                f"{self._address}: no Dask worker for {PATIENCE_S:g} s; start some and repeat the "
                "command: it goes on"
            )

    def _lost(self) -> ValueError:
        return ValueError(
            f"{self._address}: the Dask scheduler is gone; start it and repeat the command: it "
            "goes on"
        )
