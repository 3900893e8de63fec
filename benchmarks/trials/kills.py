"""SIGKILL at random moments: is anything lost, half written, or another than without kills?

::

    python -m benchmarks.trials.kills --kills 45 --json benchmarks/results/kills.json
    python -m benchmarks.trials.kills --kills 8 --only train sweep

Each command runs once unbroken, on a few files of the bundled corpus with tiny networks. Then it is
started in another folder, killed after a random part of the time that it took, started again with
the same arguments, and so on until it has had its kills; then it may end. If it ends before, the
next kills go to a new folder. Rows of the table:

    kills      that found the command at work
    runs       folders that were brought to their end with kills
    files      that the unbroken run has and that are compared, bit for bit
    identical  runs all of whose files are the same
    lost       files that are missing or others at the end, over all runs
    half       files that were found unreadable just after a kill
    left       temporary files that are still there at the end

What is not compared: what holds times or paths (run.json, results.json and the like; of
history.csv all columns but the seconds are compared), and the notes of what is done
(checkpoint.npz, cache.jsonl, made.jsonl), which are read after each kill all the same.

The commands are started by a process that has imported everything once and forks: no time goes by,
and no kill is wasted, on imports.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import common
from speech.base import cli
from speech.base.files import remove_leftovers

_ROOT = Path(__file__).resolve().parents[2]
NUM_KILLS = 45

#: The longest that a tiny command may take, on a machine that is busy with other things.
TIMEOUT_S = 600.0

#: Imported before the first fork, besides the commands: by all, and by those that train.
_IMPORTS = ("eval.scoring", "eval.plots", "joblib", "matplotlib.figure", "soundfile", "soxr")
_IMPORTS_OF_TRAINING = ("mnn.training", "pruning.schedule", "quantization.finetune",
                        "quantization.plans", "speech.training.datasets", "speech.training.run",
                        "speech.weights")  # fmt: skip
_TRAINING = {"timit_fcn_mse", "speech.train", "pruning.run", "quantization.run", "mnn.train",
             "mnn.experiments"}  # fmt: skip

_NOT_COMPARED = {"run.json", "results.json", "summary.json", "sweep.json", "checkpoint.npz",
                 "cache.jsonl", "made.jsonl"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        module: Its module.
        arguments: Function from (folder of the inputs, folder of the run) to its arguments.
    """

    module: str
    arguments: Callable[[Path, Path], list[str]]


def _small(data: Path, *more: str) -> list[str]:
    return ["--timit", f"{data}/speech", "--noise", f"{data}/noise", "--snr", "5", "--gpu", "-1",
            "--jobs", "1", "--num-test", "1", "--batch-size", "1", "--num-train", "3",
            "--crop-seconds", "0.3", *more]  # fmt: skip


CASES = {
    "train": Case(
        "timit_fcn_mse",
        lambda data, out: [*_small(data, "--epochs", "6", "--filters", "4"), "--out", f"{out}/run"],
    ),
    "train-tf": Case(
        "speech.train",
        lambda data, out: [
            "--network", "tf", "--size", "small", "--speech", f"{data}/speech",
            "--noise", f"{data}/noise", "--gpu", "-1", "--batch-size", "2", "--num-train", "4",
            "--crop-seconds", "0.3", "--epochs", "4", "--rooms", "0", "-o", f"{out}/run",
        ],
    ),
    "prune": Case(
        "pruning.run",
        lambda data, out: [
            f"{data}/model.h5", *_small(data, "--retrain-epochs", "2", "--final-epochs", "2"),
            "--stages", "2", "--target-sparsity", "0.2", "-o", f"{out}/pruned.h5",
            "--work", f"{out}/work",
        ],
    ),
    "quantize": Case(
        "quantization.run",
        lambda data, out: [
            f"{data}/model.h5", *_small(data, "--finetune-epochs", "4"), "-k", "4",
            "--rounds", "1", "-o", f"{out}/quantized", "--work", f"{out}/work",
        ],
    ),
    "dae": Case(
        "mnn.train",
        lambda data, out: [
            "dae", "--timit", f"{data}/speech", "--noise", f"{data}/noise", "--gpu", "-1",
            "--iterations", "60", "--batch-size", "50", "--validate-every", "5",
            "--out", f"{out}/dae.h5",
        ],
    ),
    "experiment": Case(
        "mnn.experiments",
        lambda data, out: [
            "noise", "--scale", "small", "--timit", f"{data}/speech", "--noise", f"{data}/noise",
            "--noise-types", *_noises(data), "--gpu", "-1", "--out", f"{out}/experiment",
        ],
    ),
    "sweep": Case(
        "eval.sweep",
        lambda data, out: [
            "--model", f"a={data}/model.h5", f"b={data}/small.icse", *_pairs(data, "test-"),
            "--jobs", "1", "--out", f"{out}/sweep",
        ],
    ),
    "evaluate": Case(
        "eval.run",
        lambda data, out: [
            *_pairs(data, ""), "--model", f"a={data}/small.icse", "--jobs", "1",
            "--metrics", "pesq_wb", "stoi", "sdr", "--out", f"{out}/eval",
        ],
    ),
    "prepare": Case(
        "speech.prepare",
        lambda data, out: [
            "--clean", f"{data}/speech", "--noise", f"{data}/noise", "--split", "TRAIN",
            "--snr", "-5", "0", "5", "10",
            "--jobs", "1", "--out", f"{out}/mixed",
        ],
    ),
    "enhance": Case(
        "speech.enhance",
        lambda data, out: [
            f"{data}/pairs", "--model", f"{data}/small.icse", "-o", f"{out}/enhanced",
        ],
    ),
}  # fmt: skip


def _noises(data: Path) -> list[str]:
    return sorted(path.stem for path in (data / "noise" / "TRAIN").iterdir())


def _pairs(data: Path, prefix: str) -> list[str]:
    return [f"--{prefix}noisy", f"{data}/pairs/noisy", f"--{prefix}clean", f"{data}/pairs/clean"]


@dataclass
class Row:
    """What became of one command; see the module for the meaning of each."""

    name: str
    command: str
    kills: int = 0
    runs: int = 0
    files: int = 0
    identical: int = 0
    lost: int = 0
    half: int = 0
    left: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trials.kills", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--kills", type=cli.positive_number, default=NUM_KILLS, metavar="N",
        help="of all commands together (default %(default)s)")  # fmt: skip
    add("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME",
        help=f"commands (default: {', '.join(CASES)})")  # fmt: skip
    add("--seed", type=cli.natural_number, default=0, metavar="N", help="of the moments")
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        rows = kill_all(Path(name), options.only, options.kills, options.seed)
    print(markdown(rows))
    result = {
        "seed": options.seed,
        "rows": [asdict(row) for row in rows],
        "all": asdict(total(rows)),
    }
    common.write_result(options.json, result)
    together = total(rows)
    return 0 if together.identical == together.runs and not together.half else 1


def kill_all(folder: Path, names: Sequence[str], num_kills: int, seed: int = 0) -> list[Row]:
    """Kills commands and compares what they make in the end.

    Args:
        folder: An empty one to work in.
        names: Keys of `CASES`.
        num_kills: Of all of them together, as even as can be.
        seed: Of the moments.

    Returns:
        A row for each command.

    Raises:
        ValueError: A command fails, with or without a kill.
    """
    write_inputs(folder / "data")
    rows = []
    with Starter([CASES[name].module for name in names]) as starter:
        for place, name in enumerate(names):
            share = num_kills // len(names) + (place < num_kills % len(names))
            rng = random.Random(f"{seed} {name}")
            rows.append(_kill_one(starter, name, folder, share, rng))
            print(f"{name}: {rows[-1].kills} kills", file=sys.stderr)
    return rows


def _kill_one(starter: Starter, name: str, folder: Path, num_kills: int, rng: random.Random) -> Row:
    case, row = CASES[name], Row(name, f"python -m {CASES[name].module}")
    whole = folder / name / "whole"
    seconds = starter.run(case, folder / "data", whole)
    assert seconds is not None, "it was not killed"
    expected = contents(whole)
    row.files = len(expected)
    while row.kills < num_kills:
        out = folder / name / f"killed-{row.runs}"
        ended = False
        while row.kills < num_kills and not ended:
            ended = (
                starter.run(case, folder / "data", out, rng.uniform(0.02, 1) * seconds) is not None
            )
            row.kills += not ended
            row.half += len(unreadable(out))
        if not ended:
            starter.run(case, folder / "data", out)
        found = contents(out)
        lost = [path for path, digest in expected.items() if found.get(path) != digest]
        row.runs += 1
        row.lost += len(lost)
        row.identical += found == expected
        row.left += remove_leftovers(out, below=True)
        for path in lost:
            print(f"{name}: {path} differs from the unbroken run's", file=sys.stderr)
        shutil.rmtree(out)
    return row


# --------------------------------------------------------------------------------------------
# Starting commands


class Starter:
    """Runs commands in forks of a process that has imported everything.

    Args:
        modules: The commands that will be run.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        code = "from benchmarks.trials.kills import serve; serve()"
        self._process = subprocess.Popen(
            cli.python_command("-c", code, *modules),
            bufsize=0,  # or `select` would not see what has been read ahead
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=cli.python_environment(TF_CPP_MIN_LOG_LEVEL="3"),
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None, "pipes"
        self._calls, self._answers = self._process.stdin, self._process.stdout
        self._wait(TIMEOUT_S)  # for the imports

    def __enter__(self) -> Starter:
        """Nothing more to do: the process is ready."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self._calls.close()
        self._process.wait()
        self._answers.close()

    def run(
        self, case: Case, data: Path, out: Path, kill_after: float | None = None
    ) -> float | None:
        """Runs a command; returns its seconds, None if it was killed.

        Args:
            case: The command.
            data: The inputs.
            out: Where it writes.
            kill_after: Seconds to a SIGKILL; None for none.

        Raises:
            ValueError: It failed by itself; the message is the last line that it wrote.
        """
        out.mkdir(parents=True, exist_ok=True)
        log = out.with_name(f"{out.name}.log")
        call = {"module": case.module, "arguments": case.arguments(data, out), "log": str(log)}
        started = time.monotonic()
        self._calls.write(json.dumps(call).encode() + b"\n")
        self._calls.flush()
        pid = self._wait(TIMEOUT_S)
        if pid is None:
            raise ValueError(f"the process that starts {case.module} does not answer")
        code = self._wait(TIMEOUT_S if kill_after is None else kill_after)
        if code is None:
            os.kill(pid, signal.SIGKILL)  # it may have ended, but its number is still its own
            code = self._wait(TIMEOUT_S)
            if kill_after is None:
                raise ValueError(f"{case.module}: not done after {TIMEOUT_S:g} s")
        if code == -signal.SIGKILL:
            return None
        if code:
            last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
            raise ValueError(f"{case.module} failed: {last.removeprefix('error: ')}")
        return time.monotonic() - started

    def _wait(self, seconds: float) -> int | None:
        """Returns the next number from the other process, None if none comes in time."""
        if not select.select([self._answers], [], [], seconds)[0]:
            return None
        line = self._answers.readline()
        if not line:
            raise ValueError("the process that starts the commands died")
        return int(line)


def serve() -> None:
    """Forks a child for each line of standard input: the main function of the starter.

    Writes 0 when it is ready; then for each call the child's number, and how it ended.
    """
    modules = {name: importlib.import_module(name) for name in sys.argv[1:]}
    for name in _IMPORTS + (_IMPORTS_OF_TRAINING if _TRAINING & set(modules) else ()):
        importlib.import_module(name)
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w")
    print(0, file=answers, flush=True)
    child = None
    while line := calls.readline():
        if child is not None:
            os.waitpid(child, 0)  # only now may its number be given to another
        call = json.loads(line)
        child = os.fork()
        if not child:
            null, log = (
                os.open(os.devnull, os.O_RDONLY),
                os.open(call["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
            )
            for source, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            calls.close()
            answers.close()
            sys.argv = [call["module"], *call["arguments"]]
            sys.exit(modules[call["module"]].main(call["arguments"]))
        print(child, file=answers, flush=True)
        end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert end is not None, "it waits"
        code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        print(code, file=answers, flush=True)


# --------------------------------------------------------------------------------------------
# Inputs and results


def write_inputs(folder: Path) -> None:
    """Writes a tiny corpus, premixed pairs and two models."""
    from pruning.sparsity import apply_masks, masks_for_share
    from speech.base.files import write_json
    from speech.data import corpus
    from speech.data.prepared import write_mixtures
    from speech.modelfile.h5 import write_model_file
    from speech.modelfile.read import read_model_file

    for split, count in (("TRAIN", 4), ("TEST", 2)):
        speech = corpus.bundled_speech(split)
        chosen = sorted(speech, key=lambda item: item.path.stat().st_size)[:count]
        for place, utterance in enumerate(chosen):
            target = folder / "speech" / split / "DR1" / f"FAB{place}" / utterance.path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(utterance.path, target)
        for noise in corpus.bundled_noise(split)[:2]:
            target = folder / "noise" / split / noise.path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(noise.path, target)
    plans = corpus.plan_mixtures(
        corpus.find_speech(folder / "speech", "TEST"),
        corpus.find_noise(folder / "noise", "TEST"),
        [0.0, 5.0],
    )
    write_mixtures(plans, folder / "pairs")
    models = _ROOT / "models"
    shutil.copyfile(models / "fcn_small.icse", folder / "small.icse")
    file = read_model_file(models / "fcn.h5")
    layers = apply_masks(file.layers, masks_for_share(file.layers, 0.1))
    write_model_file(folder / "model.h5", layers, file.meta)
    write_json(folder / "done.json", {})


def contents(folder: Path) -> dict[str, str]:
    """Returns a digest of each file that is compared, by its path below the folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(_comparable(path)).hexdigest()
        for path in _files(folder)
        if path.name not in _NOT_COMPARED and not path.name.endswith(".run.json")
    }


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files that have their final names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield path


def _comparable(path: Path) -> bytes:
    """Returns the bytes of a file, without the seconds of a history."""
    if not path.name.endswith("history.csv"):
        return path.read_bytes()
    with open(path, newline="", encoding="utf-8") as stream:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]
    return json.dumps(rows).encode()


def unreadable(folder: Path) -> list[Path]:
    """Returns the files with final names that can't be read to their end."""
    return [path for path in _files(folder) if not _is_readable(path)]


def _is_readable(path: Path) -> bool:
    import numpy as np

    from speech.modelfile.read import read_model_file
    from speech.sound.audio import read_audio

    with contextlib.suppress(ValueError, OSError, EOFError, RuntimeError):
        if path.suffix in (".h5", ".icse"):
            read_model_file(path)
        elif path.suffix == ".npz":
            with np.load(path) as file:
                dict(file)
        elif path.suffix in (".wav", ".flac"):
            read_audio(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":  # what is added may be cut, in the last line only
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                json.loads(line)
        else:
            return path.stat().st_size > 0
        return True
    return False


def total(rows: Sequence[Row]) -> Row:
    """Adds the rows up."""
    sums = {
        key: sum(getattr(row, key) for row in rows)
        for key in ("kills", "runs", "files", "identical", "lost", "half", "left")
    }
    return Row("all", "", **sums)


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table of docs/scaling.md."""
    header = ["command", "kills survived", "runs", "results identical", "files compared",
              "files lost", "half files", "left over"]  # fmt: skip
    return common.table(header, (
        [f"`{row.command}`" if row.command else row.name,
         *map(str, (row.kills, row.runs, row.identical, row.files, row.lost, row.half, row.left))]
        for row in [*rows, total(rows)]
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
