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
from pathlib import Path

from speech.base import cli
from speech.base.cli import positive_number

DEFAULT_OUT = Path("report")
MAX_MB = 15.0
NUM_CLIPS = 12
CLIP_SECONDS = 10.0
NUM_SYSTEMS = 6
TITLE = "Speech enhancement: report"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    _require_jinja()
    from eval.page import build, render
    from eval.runfiles import read_runs
    from eval.testsets import join_runs
    from speech.base.files import write_text

    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out}: is not a folder; choose another -o")
    folders = [options.noisy, options.clean, *options.show]
    runs = read_runs(options.runs, [folder for folder in folders if folder is not None])
    sets = join_runs(runs, options.noisy, options.clean)
    page = build(
        runs,
        sets,
        title=options.title,
        metric=options.clip_metric,
        num_clips=options.clips,
        num_systems=options.systems,
        clip_seconds=options.clip_seconds,
        num_jobs=options.jobs,
    )
    text = render(page, int(options.max_mb * 1e6))
    path = options.out / "index.html"
    write_text(path, text)
    for note in page.notes:
        print(f"note: {note}", file=sys.stderr)
    clips = sum(len(section.clips) for section in page.sections)
    print(f"page      {path.resolve()}")
    print(f"size      {len(text.encode()) / 1e6:.1f} MB, {len(runs)} runs, {clips} clips")
    return 0


def _require_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ValueError("Jinja2 is not installed; run: pip install jinja2") from None


def _parser() -> argparse.ArgumentParser:
    from eval.metrics import METRICS

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
