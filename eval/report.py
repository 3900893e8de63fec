"""Writes one page about runs, with their tables and figures and with clips to hear and see.

::

    python -m eval.report runs/demo runs/eval runs/sweep -o report
    python -m eval.report runs/eval runs/select/select.json -o report

Runs are the output folders of ``timit_fcn_mse.py``, ``eval.run``, ``eval.sweep`` and
``mnn.experiments``, and the ``--json`` files of ``mnn.select``. Those that were scored on the same
noisy files stand side by side. The page, ``report/index.html``, is one file: it opens from disk and
asks nothing of any server. It is kept below ``--max-mb`` by leaving clips out, and says so.

A run may come from anybody, so files are put on the page only if they lie below the folder of one
of the runs, or below one that you name with ``--noisy``, ``--clean`` or ``--show``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.metrics import METRICS
from eval.page import build, render
from eval.runfiles import read_runs
from eval.testsets import join_runs
from speech.base import cli
from speech.base.cli import positive_number
from speech.base.files import write_text
from speech.base.lazy import jinja2, load

DEFAULT_OUT = Path("report")
MAX_MB = 15.0
NUM_CLIPS = 12
CLIP_SECONDS = 10.0
NUM_SYSTEMS = 6
TITLE = "Speech enhancement: report"


@dataclass(frozen=True)
class ReportConfig:
    """Settings of the page.

    Attributes:
        runs: Output folders of commands, and JSON files of ``mnn.select``.
        out: Folder for index.html.
        title: Of the page.
        noisy: Folder of noisy files, for runs that do not say where theirs are.
        clean: Folder of clean files, likewise.
        clip_metric: Clips are chosen by their gain in this metric; None for each run's first.
        num_clips: Number of files to hear per test set.
        num_systems: Number of systems to hear per file.
        clip_s: Length in seconds to which longer files are cut.
        max_mb: Largest size of the page; clips that would exceed it are left out.
        num_jobs: Processes; -1 for one per core.
        show: Folders outside of the runs whose clips may be shown.
    """

    runs: tuple[Path, ...]
    out: Path = DEFAULT_OUT
    title: str = TITLE
    noisy: Path | None = None
    clean: Path | None = None
    clip_metric: str | None = None
    num_clips: int = NUM_CLIPS
    num_systems: int = NUM_SYSTEMS
    clip_s: float = CLIP_SECONDS
    max_mb: float = MAX_MB
    num_jobs: int = -1
    show: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Report:
    """The page that `write_report` wrote.

    Attributes:
        path: The page.
        num_bytes: Its size.
        num_runs: Number of runs that were read.
        num_clips: Number of clips to hear.
        notes: What was left out, and why.
    """

    path: Path
    num_bytes: int
    num_runs: int
    num_clips: int
    notes: tuple[str, ...]


def write_report(config: ReportConfig) -> Report:
    """Reads runs and writes the page.

    Args:
        config: What stands on it.

    Raises:
        ValueError: A run is none, or Jinja2 is not installed.
        OSError: A file can't be read or written.
    """
    _require_jinja()
    cli.check_folder(config.out)
    folders = [config.noisy, config.clean, *config.show]
    runs = read_runs(config.runs, [folder for folder in folders if folder is not None])
    page = build(
        runs,
        join_runs(runs, config.noisy, config.clean),
        title=config.title,
        metric=config.clip_metric,
        num_clips=config.num_clips,
        num_systems=config.num_systems,
        clip_seconds=config.clip_s,
        num_jobs=config.num_jobs,
    )
    text = render(page, int(config.max_mb * 1e6))
    path = config.out / "index.html"
    write_text(path, text)
    num_clips = sum(len(section.clips) for section in page.sections)
    return Report(path, len(text.encode()), len(runs), num_clips, tuple(page.notes))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    config = ReportConfig(
        tuple(options.runs), options.out, options.title, options.noisy, options.clean,
        options.clip_metric, options.clips, options.systems, options.clip_seconds, options.max_mb,
        options.jobs, tuple(options.show),
    )  # fmt: skip
    cli.log_to_stderr()
    return cli.run(lambda: _run(config))


def _run(config: ReportConfig) -> int:
    report = write_report(config)
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"page      {report.path.resolve()}")
    print(
        f"size      {report.num_bytes / 1e6:.1f} MB, {report.num_runs} runs, {report.num_clips} "
        "clips"
    )
    return 0


def _require_jinja() -> None:
    try:
        load(jinja2)
    except ImportError:
        raise ValueError("Jinja2 is not installed; run: pip install jinja2") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.report",
        description="Write one self-contained page about runs, with tables, figures and clips to "
        "hear.",
        **cli.examples(
            "python -m eval.report runs/demo runs/eval -o report",
            "python -m eval.report runs/eval runs/select/select.json --clip-metric stoi",
        ),
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN_DIR",
        help="show these output folders of timit_fcn_mse.py, eval.run, eval.sweep, "
        "mnn.experiments; "
        "JSON files of mnn.select, or folders that hold them")  # fmt: skip
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
        help="write index.html to this folder (default %(default)s)")  # fmt: skip
    add("--title", default=TITLE, metavar="TEXT",
        help="give the page this title (default %(default)r)")  # fmt: skip
    add("--noisy", type=Path, metavar="DIR",
        help="read noisy files from this folder (for runs that do not name theirs)")  # fmt: skip
    add("--clean", type=Path, metavar="DIR",
        help="read clean files from this folder (likewise)")  # fmt: skip
    add("--show", type=Path, nargs="+", default=[], metavar="DIR",
        help="allow clips from these folders outside of the runs, such as those of eval.run "
        "--enhanced")  # fmt: skip
    add("--clip-metric", choices=METRICS, metavar="NAME",
        help="choose clips by their gain in this metric (default: the first that a run "
        "has)")  # fmt: skip
    add("--clips", type=positive_number, default=NUM_CLIPS, metavar="N",
        help="offer N files of each test set to hear (default %(default)s)")  # fmt: skip
    add("--systems", type=positive_number, default=NUM_SYSTEMS, metavar="N",
        help="offer N systems of each file to hear (default %(default)s)")  # fmt: skip
    add("--clip-seconds", type=cli.amount, default=CLIP_SECONDS, metavar="S",
        help="cut longer files to S seconds (default %(default)g)")  # fmt: skip
    add("--max-mb", type=cli.amount, default=MAX_MB, metavar="MB",
        help="allow this size at most: for the page, which leaves out clips beyond it (default "
        "%(default)g)")  # fmt: skip
    add("--jobs", **cli.JOBS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
