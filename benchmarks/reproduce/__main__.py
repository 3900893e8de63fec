"""Runs everything that the results page stands on, and writes the page.

::

    python -m benchmarks.reproduce --timit corpus/speech --noise corpus/noise     # hours
    python -m benchmarks.reproduce --only compression cost --timit ... --noise ...
    python -m benchmarks.reproduce --small --out runs/reproduce_small  # a reduced version of all
    python -m benchmarks.reproduce --list                              # the commands, nothing run
    python -m benchmarks.reproduce --render-only                       # the page from the raw files

A section is a list of steps, a step one command of this repository, in a process of its own. Below
``--out``: ``logs/STEP.txt`` (what it printed), ``records/STEP.json`` (the command and the SHA-256
of the models that it started from) and what it made. A step whose record and results are there is
not run again, so that the same command goes on after a kill; commands that can themselves resume do
so. To run a step once more, delete its record. A step that fails is named, what needs its result is
left out, everything else goes on, and the exit code is 1.

Numbers of a section whose steps are all done go to ``results/SECTION`` and the page is made of
them (`benchmarks.reproduce.raw`, `benchmarks.reproduce.page`): in the repository, with ``--small``
below ``--out``. ``--adopt STEP=FILE`` puts a finished model in the place of a step's result instead
of running it; the page says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from benchmarks import common
from benchmarks.reproduce import page as results_page
from benchmarks.reproduce import raw
from benchmarks.reproduce.steps import ROOT, SECTIONS, Setting, Step
from speech.base import cli
from speech.base.files import held, sha256_of, write_json
from speech.base.recorded import is_done, record_of, run_recorded
from speech.training.common_options import check_corpus

OUT = ROOT / "runs" / "reproduce"
SMALL_OUT = ROOT / "runs" / "reproduce_small"
#: What an interrupted command has to end by itself.
GRACE_S = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    if options.small and options.timit:
        parser.error("--small is for the bundled corpus: leave out --timit and --noise")
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    setting = _setting(options)
    page = _absolute(options.page) or (setting.out if setting.small else ROOT)
    chosen = [name for name in SECTIONS if name in (options.only or SECTIONS)]
    if options.render_only:
        return _render(page)
    steps = {name: list(SECTIONS[name](setting)) for name in chosen}
    if options.list:
        print(listing(steps))
        return 0
    with held(setting.out), _ends_on_sigterm():
        adopt(options.adopt, steps, setting)
        failures = run_sections(steps, setting, page, _own_command(options))
    _render(page)
    for failure in failures:
        print(f"failed      {failure}", file=sys.stderr)
    return 1 if failures else 0


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM an interrupt, so that the command at work is ended too."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_in_group(command: Sequence[str], **how: Any) -> subprocess.CompletedProcess:
    """Does as ``subprocess.run``, but an interrupt ends what the command has started, too.

    What is left alone would go on and hold its folder against the next call.
    """
    with subprocess.Popen(command, process_group=0, **how) as process:
        try:
            process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode)


def _render(page: Path) -> int:
    print(f"page        {results_page.write(page)}")
    return 0


def _setting(options: argparse.Namespace) -> Setting:
    out = options.out or (SMALL_OUT if options.small else OUT)
    return Setting(
        _absolute(out), options.small, _absolute(options.timit), _absolute(options.noise),
        options.scale, _absolute(options.gtcrn), tuple(map(_absolute, options.dtln or ())),
    )  # fmt: skip


@overload
def _absolute(path: Path) -> Path: ...
@overload
def _absolute(path: None) -> None: ...
def _absolute(path: Path | None) -> Path | None:
    # Links stay: a link below the repository makes a path that is the same everywhere.
    return None if path is None else Path(os.path.abspath(path))


def _own_command(options: argparse.Namespace) -> str:
    """Returns the command of which `run_sections` adds the section."""
    words = ["python", "-m", "benchmarks.reproduce", *(["--small"] if options.small else [])]
    if options.timit is not None:
        words += ["--timit", str(_absolute(options.timit)), "--noise"]
        words.append(str(_absolute(options.noise)))
        words += ["--scale", options.scale] if options.scale != Setting.scale else []
    words += _setting(options).onnx
    return shlex.join(words)


def listing(steps: Mapping[str, Sequence[Step]]) -> str:
    """Returns the commands of all steps, for a shell in the root of the repository."""
    parts = []
    for section, own in steps.items():
        lines = [f"# {step.name}\n{step.shown}" for step in own]
        parts.append("\n".join([f"## {section}", *(lines or ["# text only"])]))
    return "\n\n".join(parts)


def run_sections(
    steps: Mapping[str, Sequence[Step]], setting: Setting, page: Path, command: str
) -> list[str]:
    """Runs steps, and takes the numbers of each section that is complete.

    Args:
        steps: By section.
        setting: Where they work.
        page: Folder of the page and of ``results``.
        command: What runs all this; ``--only SECTION`` is added to it.

    Returns:
        A line for each step that failed or could not start.
    """
    failures: list[str] = []
    for section, own in steps.items():
        failed = [line for step in own for line in run_step(step, setting)]
        if not failed and own:
            failed = _collected(section, own, setting, page, f"{command} --only {section}")
        failures += failed
    return failures


def run_step(step: Step, setting: Setting) -> list[str]:
    """Runs a step unless its result is there.

    Returns:
        Why there is no result, on one line; [] if there is one.
    """
    missing = [path for path in step.sources if not (ROOT / path).exists()]
    if missing:
        return [_said(f"{step.name}: not run, {missing[0]} is missing")]
    record = record_path(setting, step)
    wanted = record_of(step.command, [ROOT / path for path in step.sources])
    results = [ROOT / path for path in step.results]
    if is_done(record, wanted, results):
        print(f"there       {step.name}", flush=True)
        return []
    print(f"running     {step.name}: {step.shown}", flush=True)
    log = setting.out / "logs" / f"{step.name}.txt"
    started = time.perf_counter()
    try:
        run_recorded(step.command, record, wanted, log=log, cwd=ROOT, run=run_in_group)
    except ValueError as error:
        return [_said(f"{step.name}: {error} (all of it: {setting.word(log)})")]
    absent = [path for path in step.results if not (ROOT / path).exists()]
    if absent:
        record.unlink()
        return [_said(f"{step.name}: {absent[0]} was not written (see {setting.word(log)})")]
    seconds = time.perf_counter() - started
    write_json(record, wanted | {"seconds": round(seconds, 1)})
    print(f"done        {step.name}, {seconds:.0f} s", flush=True)
    return []


def _said(line: str) -> str:
    print(f"failed      {line}", file=sys.stderr, flush=True)
    return line


def record_path(setting: Setting, step: Step) -> Path:
    """Returns where a step notes that it is done."""
    return setting.out / "records" / f"{step.name}.json"


def _collected(
    section: str, steps: Sequence[Step], setting: Setting, page: Path, command: str
) -> list[str]:
    try:
        if raw.collect(section, setting, page):
            records = [
                {"name": step.name, "command": step.shown} | _notes(record_path(setting, step))
                for step in steps
            ]
            raw.note_commands(section, command, records, setting, page)
    except (*cli.EXPECTED_ERRORS, KeyError) as error:
        return [_said(f"{section}: its results can't be read: {cli.one_line(error)}")]
    return []


def _notes(record: Path) -> dict[str, Any]:
    found = raw.read_json(record)
    return {key: found[key] for key in ("seconds", "adopted_sha256") if key in found}


def adopt(
    pairs: Sequence[tuple[str, Path]], steps: Mapping[str, Sequence[Step]], setting: Setting
) -> None:
    """Puts files in the place of results that steps would make.

    Args:
        pairs: Name of a step and the file.
        steps: By section.
        setting: Where they work.

    Raises:
        ValueError: There is no such step or file, the step has several results, or it starts from
            a model that is not there yet.
    """
    known = {step.name: step for own in steps.values() for step in own}
    for name, file in pairs:
        if name not in known:
            raise ValueError(f"--adopt {name}: no such step; --list shows them all")
        step = known[name]
        if not file.is_file() or Path(step.results[0]).suffix != file.suffix:
            raise ValueError(f"--adopt {name}={file}: give a file like {step.results[0]}")
        if len(step.results) > 1:
            raise ValueError(f"--adopt {name}: it makes more than {step.results[0]}; run it")
        target = ROOT / step.results[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        wanted = record_of(step.command, [ROOT / path for path in step.sources])
        write_json(record_path(setting, step), wanted | {"adopted_sha256": sha256_of(target)})
        print(f"adopted     {name}: {file}")


def _step_and_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r}: write STEP=FILE")
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description="Run what the results page stands on and write the page: RESULTS.md and the "
        "raw numbers below results. The same command resumes.",
    )
    add = parser.add_argument
    add("--small", action="store_true",
        help="a reduced version of everything, on the bundled corpus")  # fmt: skip
    add("--only", nargs="+", choices=tuple(SECTIONS), metavar="SECTION",
        help=f"of {', '.join(SECTIONS)}")  # fmt: skip
    add("--timit", type=Path, metavar="DIR", help="speech, as of speech.opencorpus")
    add("--noise", type=Path, metavar="DIR", help="noise to mix it with")
    add("--scale", choices=("open", "paper"), default=Setting.scale,
        help="of the experiments of selection on --timit (default %(default)s; paper for TIMIT "
        "and its noises)")  # fmt: skip
    common.add_onnx_options(parser)
    add("--out", type=Path, metavar="DIR",
        help="models, logs and records (default runs/reproduce, with --small "
        "runs/reproduce_small)")  # fmt: skip
    add("--page", type=Path, metavar="DIR",
        help="folder of RESULTS.md and results (default: the repository; with --small: "
        "--out)")  # fmt: skip
    add("--adopt", type=_step_and_file, action="append", default=[], metavar="STEP=FILE",
        help="take this finished model for the result of a step; repeatable")  # fmt: skip
    add("--list", action="store_true", help="print the commands of all steps and end")
    add("--render-only", action="store_true", help="write the page from the raw files and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
