"""Makes the models of a sweep: pruned at each theta, quantized with each k and format.

Each is made by the command that anyone would use, in a process of its own; nothing of ``pruning``
and ``quantization`` is imported here. Beside each model stands ``<name>.json``, the command and the
SHA-256 of what it started from: a model is made again only if one of them is another.
``run_recorded`` does that for any command of this repository.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.sweep import Point
from speech.base import cli, schema
from speech.base.files import sha256_of, write_json

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Grid:
    """Which models to make.

    Attributes:
        thetas: None for not pruned.
        ks: None for not quantized.
        centroids: Formats of the centroids.
        finetune_epochs: None for no fine-tuning.
    """

    thetas: Sequence[float | None]
    ks: Sequence[int | None]
    centroids: Sequence[str]
    finetune_epochs: int | None = None

    def make(self, model: Path, folder: Path) -> list[Point]:
        """Makes what is not there, and returns the models without the one they start from.

        Args:
            model: The file to prune and quantize.
            folder: Where they go.

        Raises:
            ValueError: A command failed; the message is its own.
        """
        points = []
        for theta in self.thetas:
            pruned, labels, name = model, {}, "original"
            if theta is not None:
                labels, name = {"theta": theta}, f"theta{theta:g}"
                pruned = folder / f"{name}.h5"
                make(pruned, model, ["pruning.run", str(model), "--theta", f"{theta:g}", "-o",
                                     str(pruned)])  # fmt: skip
            for k in self.ks:
                if k is None:
                    if theta is not None:
                        points.append(Point(name, pruned, labels))
                    continue
                for how in self.centroids:
                    own = f"{name}-k{k}-{how}" if theta is not None else f"k{k}-{how}"
                    points.append(
                        Point(
                            own,
                            self._quantized(pruned, folder / own, k, how),
                            {**labels, "k": k, "centroids": how},
                        )
                    )
        return points

    def _quantized(self, source: Path, out: Path, k: int, centroids: str) -> Path:
        command = ["quantization.run", str(source), "-k", str(k), "--centroids", centroids, "-o",
                   str(out)]  # fmt: skip
        if self.finetune_epochs is not None:
            command += ["--finetune-epochs", str(self.finetune_epochs), "--work", str(out / "work")]
        packed = out / "model.icse"
        make(packed, source, command)
        return packed


def make(target: Path, source: Path, command: Sequence[str]) -> None:
    """Runs a command of this repository, unless its result is there.

    Args:
        target: The model it writes.
        source: The model it starts from.
        command: Module and arguments.

    Raises:
        ValueError: It failed; the message is the last line that it wrote to stderr.
    """
    record, wanted = target.with_suffix(".json"), record_of(command, [source])
    if not is_done(record, wanted, [target]):
        print(f"making      {target}", flush=True)
        run_recorded(command, record, wanted)


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
