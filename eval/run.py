"""Scores models, or folders of enhanced files, against the noisy files.

::

    python -m eval.run                                       # the shipped models, bundled test set
    python -m eval.run --model a=a.h5 --model b=b.icse       # two models, bundled test set
    python -m eval.run --clean C --noisy N --enhanced wiener=W --model fcn=fcn.h5 --out results

Noisy files stand in any tree whose files carry the names of the clean ones; the layout
``<noise>/<speaker>/<dB>/<name>.wav`` also gives the tables their noises and SNRs.

Writes to ``--out``: scores.csv (a row for each file and system, with its status), summary.csv,
.json and .md (mean and standard deviation by noise and SNR), differences.csv (paired, to the noisy
files or ``--baseline``), enhanced/NAME (what the models made), and cache.jsonl: the same command,
killed or not, scores no file twice.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech import cli
from speech.cli import positive_number
from speech.cluster import add_option, connected

DEFAULT_OUT = Path("runs") / "eval"

#: The bundled test set: as many utterances for each of its 8 noises and 5 SNRs.
BUNDLED_NUM_EACH = 3
BUNDLED_SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)

_NUM_LISTED = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check_usage(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from eval import scoring
    from eval.systems import tasks_of
    from speech.files import held

    started = time.perf_counter()
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out}: is not a folder; choose another --out")
    inputs = [options.noisy, options.clean, *(folder for _, folder in options.enhanced)]
    cli.check_out(options.out, inputs)
    with held(options.out), connected(options.dask, options.jobs) as cluster:
        pairs, num_unpaired = _pairs(options)
        systems = _systems(options, pairs)
        tasks = tasks_of(systems, pairs)
        rows = scoring.score_all(
            tasks,
            options.jobs,
            options.metrics,
            convert=options.convert,
            cache=scoring.ScoreCache(options.out / "cache.jsonl"),
            cluster=cluster,
        )
        _report(options, systems, rows, len(pairs), num_unpaired)
    print(f"\ntotal time  {time.perf_counter() - started:.0f} s")
    print(f"results     {options.out.resolve()}")
    if not any(row["status"] == "ok" for row in rows):
        raise ValueError(f"no file could be scored; the first: {rows[0]['status']}")
    return 0


def _pairs(options: argparse.Namespace) -> tuple[list[Any], int]:
    """Returns the pairs, and how many noisy files have no clean partner."""
    from speech import corpus
    from speech.audio import find_audio

    if options.noisy is None:
        from eval.systems import bundled_pairs

        folder = options.out / "test"
        num_each = options.num_test or BUNDLED_NUM_EACH
        return bundled_pairs(folder, num_each, BUNDLED_SNRS_DB, options.jobs), 0
    pairs = corpus.find_pairs(options.noisy, options.clean)
    return pairs, len(find_audio(options.noisy)) - len(pairs)


def _folders(options: argparse.Namespace) -> dict[str, Path]:
    """Returns where the noisy and the clean files are, for `eval.report`."""
    bundled = options.out / "test"
    return {
        "noisy": options.noisy or bundled / "noisy",
        "clean": options.clean or bundled / "clean",
    }


def _systems(options: argparse.Namespace, pairs: Sequence[Any]) -> list[Any]:
    from eval.systems import folder_system, model_system, noisy_system

    systems = [noisy_system(pairs)]
    for name, folder in options.enhanced:
        systems.append(folder_system(name, folder, pairs, options.noisy))
    for name, model in options.model:
        folder = options.out / "enhanced" / name
        system = model_system(name, model, pairs, folder, options.convert, options.jobs)
        systems.append(system)
    return systems


def _report(
    options: argparse.Namespace,
    systems: Sequence[Any],
    rows: Sequence[dict[str, Any]],
    num_pairs: int,
    num_unpaired: int,
) -> None:
    from eval import scoring, tables
    from eval.metrics import METRICS
    from speech.files import write_json, write_text
    from speech.runinfo import run_info

    summary = scoring.summarize(rows)
    differences = scoring.compare(rows, options.baseline)
    unscored = [row for row in rows if row["status"] != "ok"]
    out = options.out
    write_text(out / "scores.csv", scoring.to_csv(rows))
    write_text(out / "summary.csv", scoring.to_csv(summary))
    if differences:
        write_text(out / "differences.csv", scoring.to_csv(differences))
    title = "Evaluation: " + ", ".join(system.name for system in systems)
    write_text(
        out / "summary.md", tables.markdown(title, summary, differences, unscored, num_pairs)
    )
    result = {
        "systems": [
            {"name": s.name, "source": s.source, "sha256": s.sha256 or None}
            | {"file_bytes": Path(s.source).stat().st_size if s.sha256 else None}
            for s in systems
        ],
        "metrics": {
            name: {"label": m.label, "unit": m.unit, "version": m.version}
            | {"higher_is_better": m.higher_is_better}
            for name, m in METRICS.items()
            if name in options.metrics
        },
        "folders": {name: str(path.resolve()) for name, path in _folders(options).items()},
        "noisy_files": num_pairs,
        "noisy_files_without_clean": num_unpaired,
        "summary": scoring.json_ready(summary),
        "differences": scoring.json_ready(differences),
        "unscored": [{key: row[key] for key in ("system", "name", "status")} for row in unscored],
        **run_info(),
    }
    write_json(out / "summary.json", result)
    if options.json:
        write_json(options.json, result)
    if options.matlab_style:
        for name, text in tables.published_files(rows).items():
            write_text(out / "matlab" / name, text)
    print(tables.format_by_snr(summary))
    if differences:
        print("\n" + tables.format_differences(differences))
    left_out = max(group["unscored"] for group in summary if group["noise"] == scoring.OVERALL)
    print(f"\n{left_out} of {num_pairs} files could not be scored; they are in no mean.")
    for row in unscored[:_NUM_LISTED]:
        print(f"not scored: {row['system']} {row['name']}: {row['status']}", file=sys.stderr)
    if len(unscored) > _NUM_LISTED:
        print(f"and {len(unscored) - _NUM_LISTED} more, in scores.csv", file=sys.stderr)


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from eval.tables import PUBLISHED_COLUMNS
    from speech.enhance import BASELINE_MODEL, DEFAULT_MODEL

    if (options.clean is None) != (options.noisy is None):
        parser.error("--clean and --noisy go together")
    if options.enhanced and options.noisy is None:
        parser.error("--enhanced needs --clean and --noisy")
    if options.num_test and options.noisy is not None:
        parser.error("--num-test is for the bundled test set")
    if options.noisy is None and not options.model:
        options.model = [("denoise", DEFAULT_MODEL), ("fcn", BASELINE_MODEL)]
    names = [name for name, _ in options.enhanced + options.model]
    for name in names:
        if not re.fullmatch(r"[\w+-][\w.+-]*", name) or name in ("noisy", "all"):
            parser.error(f"{name!r} is no name for a system; letters, digits, . + - and _ will do")
        if names.count(name) > 1:
            parser.error(f"two systems are named {name!r}; write NAME=...")
    if options.baseline not in ["noisy", *names]:
        parser.error(f"--baseline {options.baseline}: no such system")
    missing = [name for name in PUBLISHED_COLUMNS.values() if name not in options.metrics]
    if options.matlab_style and missing:
        parser.error(f"--matlab-style needs the metrics {', '.join(missing)} too")


def _named_path(text: str) -> tuple[str, Path]:
    """Parses NAME=PATH, or PATH, whose name is that of the file or folder."""
    name, equals, path = text.partition("=")
    if not equals:
        name, path = Path(text).resolve().stem, text
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=PATH")
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
    from eval.metrics import METRICS

    parser = argparse.ArgumentParser(
        prog="python -m eval.run",
        description="Score models or folders of enhanced files by noise and SNR. Without "
        "arguments: the default model and the FCN on the bundled test set, in two minutes. The "
        "same command resumes.",
        **cli.examples(
            "python -m eval.run",
            "python -m eval.run --model mine=mine.h5 --model fcn=models/fcn.h5 --baseline fcn",
            "python -m eval.run --clean clean/ --noisy noisy/ --enhanced other=enhanced/",
        ),
    )
    what = parser.add_argument_group(
        "what to score (default: the shipped denoise and fcn, bundled test set)"
    )
    add = what.add_argument
    add("--clean", type=Path, metavar="DIR", help="clean files")
    add("--noisy", type=Path, metavar="DIR", help="noisy files: "
        "<noise>/<speaker>/<dB>/<name> of the same names, or flat")  # fmt: skip
    add("--enhanced", type=_named_path, action="append", default=[], metavar="NAME=DIR",
        help="enhanced files, in the tree of the noisy ones or flat; repeatable")  # fmt: skip
    add("--model", type=_named_path, action="append", default=[], metavar="NAME=FILE",
        help="model (.h5, .icse) to apply to the noisy files; repeatable")  # fmt: skip
    add("--num-test", type=positive_number, metavar="N",
        help="test files a noise and SNR, of the bundled test set "
        f"(default {BUNDLED_NUM_EACH})")  # fmt: skip
    add("--convert", action="store_true",
        help="resample to 16 kHz and average channels where needed; without it such files are "
        "counted as unscored")  # fmt: skip
    how = parser.add_argument_group("how")
    add = how.add_argument
    add("--metrics", nargs="+", choices=METRICS, default=list(METRICS), metavar="NAME",
        help=f"default: all of {', '.join(METRICS)}")  # fmt: skip
    add("--baseline", default="noisy", metavar="NAME",
        help="what the others are compared with, a system (default %(default)s)")  # fmt: skip
    add("--matlab-style", action="store_true",
        help="also write the published result files: one for each noise and SNR, with Mean and "
        "Stad rows, below --out/matlab")  # fmt: skip
    add("--jobs", **cli.JOBS)
    add_option(how, "score")
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
        help="folder to write (default %(default)s)")  # fmt: skip
    add("--json", **cli.JSON)
    return parser


if __name__ == "__main__":
    sys.exit(main())
