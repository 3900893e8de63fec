"""Commands of this repository, run once: beside each result stands what it was made from."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speech.base import cli, schema
from speech.base.files import sha256_of, write_json


def record_of(command: Sequence[str], sources: Sequence[Path]) -> dict[str, Any]:
    """Returns what a result depends on.

    Args:
        command: Module and arguments.
        sources: Models that it starts from.

    Raises:
        OSError: One of them is not there.
    """
    return {"command": list(command), "source_sha256": [sha256_of(path) for path in sources]}


def is_done(record: Path, wanted: Mapping[str, Any], results: Sequence[Path]) -> bool:
    """Returns whether results are there that were made as wanted.

    Args:
        record: File that `run_recorded` wrote.
        wanted: Of `record_of`; what else the file holds does not matter.
        results: Files or folders.
    """
    try:
        found = schema.read(record, dict[str, Any])
        same = all(found[key] == value for key, value in wanted.items())
    except (OSError, ValueError, KeyError):
        return False
    return same and all(path.exists() for path in results)


def run_once(
    command: Sequence[str],
    record: Path,
    results: Sequence[Path],
    *,
    sources: Sequence[Path] = (),
    log: Path | None = None,
    announce: Callable[[], None] = lambda: None,
) -> None:
    """Runs a command of this repository, unless its results are there.

    Args:
        command: Module and arguments.
        record: File of what they were made with.
        results: Files or folders that it writes.
        sources: Models that it starts from.
        log: File for what it prints; None drops that.
        announce: Called before it runs.

    Raises:
        ValueError: It failed; the message is the last line that it wrote.
    """
    wanted = record_of(command, sources)
    if not is_done(record, wanted, results):
        announce()
        run_recorded(command, record, wanted, log=log)


def run_recorded(
    command: Sequence[str],
    record: Path,
    wanted: Mapping[str, Any],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    run: Callable[..., Any] | None = None,
) -> None:
    """Runs a command of this repository in a process of its own, and notes it when it is done.

    Args:
        command: Module and arguments.
        record: File to write when it has succeeded; an older one is removed before it starts.
        wanted: What to write there.
        log: File for what it prints; None drops that.
        cwd: Folder to run it in; None for this one.
        run: In place of ``subprocess.run``, with its arguments and result.

    Raises:
        ValueError: It failed; the message is the last line that it wrote to stderr.
    """
    record.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        # With a log both streams go there, in the order in which they were written.
        streams: dict[str, Any] = {"capture_output": True}
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(open(log, "w", encoding="utf-8"))
            streams = {"stdout": stream, "stderr": subprocess.STDOUT}
        done = (run or subprocess.run)(
            cli.python_command("-m", *command),
            stdin=subprocess.DEVNULL, text=True, errors="replace", cwd=cwd,
            env=cli.python_environment(), **streams,
        )  # fmt: skip
    if done.returncode:
        text = log.read_text(encoding="utf-8", errors="replace") if log else done.stderr
        last = ([line for line in text.splitlines() if line.strip()] or ["no message"])[-1]
        raise ValueError(
            f"python -m {' '.join(command)} failed: "
            f"{cli.one_line(ValueError(last.removeprefix('error: ')))}"
        )
    write_json(record, wanted)
