"""Scores models, or folders of enhanced files, against the noisy files.

::

    python -m eval.run                                       # the shipped models, bundled test set
    python -m eval.run --model a=a.h5 --model b=b.icse       # two models, bundled test set
    python -m eval.run --clean C --noisy N --enhanced wiener=W --model fcn=fcn.h5 --out results
    python -m eval.run --clean C --enhanced a=A b=B          # without noisy files

Noisy files may lie in any tree, under the names of the clean files (`speech.data.pairing` has the
rule); from the layout ``<noise>/<speaker>/<dB>/<name>.wav`` the tables take the noises and SNRs.
Without noisy files, the enhanced files are scored against the clean ones alone.

It writes to ``--out``: scores.csv (a row for each file and system, with its status), summary.csv,
.json and .md (mean and standard deviation by noise and SNR), differences.csv (paired, to the noisy
files or ``--baseline``), enhanced/NAME (the output of the models), and cache.jsonl, by which the
same command, killed or not, scores no file twice.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech.base import cli
from speech.base.cli import positive_number
from speech.base.cluster import add_option, connected
from speech.base.words import MOST, shown

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
    from speech.base.files import held

    started = time.perf_counter()
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out}: is not a folder; choose another --out")
    _check_metrics(options)
    inputs = [options.noisy, options.clean, *(folder for _, folder in options.enhanced)]
    made = [options.out / "enhanced" / name for name, _ in options.model]
    made += [options.out / "matlab"] if options.matlab_style else []
    cli.check_out(options.out, inputs, made)
    with held(options.out), connected(options.dask, options.jobs) as cluster:
        pairs, systems, unpaired = _pairs_and_systems(options)
        tasks = tasks_of(systems, pairs)
        rows = scoring.score_all(
            tasks,
            options.jobs,
            options.metrics,
            convert=options.convert,
            cache=scoring.ScoreCache(options.out / "cache.jsonl"),
            cluster=cluster,
        )
        _report(options, systems, rows, len(pairs), unpaired)
    print(f"\ntotal time  {time.perf_counter() - started:.0f} s")
    print(f"results     {options.out.resolve()}")
    if not any(row["status"] == "ok" for row in rows):
        raise ValueError(f"no file could be scored; the first: {rows[0]['status']}")
    return 0


def _pairs_and_systems(
    options: argparse.Namespace,
) -> tuple[list[Any], list[Any], list[tuple[Path, str]]]:
    """Returns the pairs, the systems, and what has no clean partner with the reason."""
    from speech.data import corpus

    if options.noisy is None and options.clean is not None:
        from eval.systems import enhanced_alone

        pairs, systems, unpaired = enhanced_alone(options.enhanced, options.clean, options.pair_by)
    elif options.noisy is None:
        from eval.systems import bundled_pairs

        folder = options.out / "test"
        num_each = options.num_test or BUNDLED_NUM_EACH
        pairs = bundled_pairs(folder, num_each, BUNDLED_SNRS_DB, options.jobs)
        unpaired, systems = [], _systems(options, pairs)
    else:
        apart = [folder for _, folder in options.enhanced]
        found = corpus.find_matches(options.noisy, options.clean, options.pair_by, apart)
        pairs, unpaired = found.pairs, found.unpaired
        systems = _systems(options, pairs)
    corpus.warn_of_unpaired(unpaired, options.clean)
    return pairs, systems, unpaired


def _check_metrics(options: argparse.Namespace) -> None:
    """Leaves out the metrics that compare with the noisy files, where there are none."""
    from eval.metrics import METRICS

    if options.noisy is not None or options.clean is None:
        return
    kept = [name for name in options.metrics if not METRICS[name].needs_noisy]
    left_out = [name for name in options.metrics if name not in kept]
    if not kept:
        raise ValueError(f"{', '.join(left_out)} compare with the noisy files; give --noisy")
    if left_out:
        print(
            f"left out    {', '.join(left_out)}: without --noisy there is nothing to compare with"
        )
    options.metrics = kept


def _folders(options: argparse.Namespace) -> dict[str, Path]:
    """Returns where the noisy and the clean files are, for `eval.report`."""
    bundled = options.out / "test"
    if options.clean is None:
        return {"noisy": bundled / "noisy", "clean": bundled / "clean"}
    return {"clean": options.clean} | ({"noisy": options.noisy} if options.noisy else {})


def _systems(options: argparse.Namespace, pairs: Sequence[Any]) -> list[Any]:
    from eval.systems import folder_system, model_system, noisy_system

    systems = [noisy_system(pairs)]
    for name, folder in options.enhanced:
        systems.append(folder_system(name, folder, pairs, options.noisy, options.pair_by))
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
    unpaired: Sequence[tuple[Path, str]],
) -> None:
    from eval import scoring, tables
    from eval.metrics import METRICS
    from speech.base.files import write_json, write_text
    from speech.base.runinfo import run_info

    summary = scoring.summarize(rows)
    names = {system.name for system in systems}
    differences = scoring.compare(rows, options.baseline) if options.baseline in names else []
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
        "noisy_files": num_pairs if scoring.NOISY in names else 0,
        "noisy_files_without_clean": len(unpaired),
        "without_clean": [{"file": str(path), "reason": reason} for path, reason in unpaired],
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
    if unpaired:
        print(
            f"{len(unpaired)} files have no clean partner and are not scored; summary.json names "
            "them."
        )
    for row in unscored[:_NUM_LISTED]:
        words = shown(f"{row['system']} {row['name']}: {row['status']}", MOST)
        print(f"not scored: {words}", file=sys.stderr)
    if len(unscored) > _NUM_LISTED:
        print(f"and {len(unscored) - _NUM_LISTED} more, in scores.csv", file=sys.stderr)


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from eval.tables import PUBLISHED_COLUMNS
    from speech.net.enhancer import BASELINE_MODEL, DEFAULT_MODEL

    if options.noisy is not None and options.clean is None:
        parser.error("--clean and --noisy go together")
    if options.enhanced and options.clean is None:
        parser.error("--enhanced needs --clean and --noisy, or --clean alone")
    alone = options.clean is not None and options.noisy is None
    if alone and options.model:
        parser.error("--model needs --noisy: the files that it is applied to")
    if alone and not options.enhanced:
        parser.error("--clean and --noisy go together, or --clean and --enhanced")
    if options.num_test and options.clean is not None:
        parser.error("--num-test is for the bundled test set")
    if options.pair_by and options.clean is None:
        parser.error("--pair-by is for --clean and --noisy or --enhanced")
    if options.clean is None and not options.model:
        options.model = [("denoise", DEFAULT_MODEL), ("fcn", BASELINE_MODEL)]
    names = [name for name, _ in options.enhanced + options.model]
    for name in names:
        if not re.fullmatch(r"[\w+-][\w.+-]*", name) or name in ("noisy", "all"):
            parser.error(f"{name!r} is no name for a system; letters, digits, . + - and _ will do")
        if names.count(name) > 1:
            parser.error(f"two systems are named {name!r}; write NAME=...")
    baselines = [*names] if alone and options.baseline != "noisy" else ["noisy", *names]
    if options.baseline not in baselines:
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
        "arguments it scores the default model and the FCN on the bundled test set, in two "
        "minutes. The same command goes on after an interruption.",
        **cli.examples(
            "python -m eval.run",
            "python -m eval.run --model mine=mine.h5 --model fcn=models/fcn.h5 --baseline fcn",
            "python -m eval.run --clean clean/ --noisy noisy/ --enhanced other=enhanced/",
            "python -m eval.run --clean clean/ --enhanced a=first/ b=second/",
        ),
    )
    what = parser.add_argument_group(
        "what to score (default: the shipped denoise and fcn, bundled test set)"
    )
    add = what.add_argument
    add("--clean", type=Path, metavar="DIR", help="read clean files from this folder")
    add("--noisy", type=Path, metavar="DIR", help="read noisy files from this folder: "
        "<noise>/<speaker>/<dB>/<name> of the same names, or flat")  # fmt: skip
    add("--enhanced", type=_named_path, action="extend", nargs="+", default=[],
        metavar="NAME=DIR", help="score these enhanced files, in the tree of the noisy ones or "
        "flat; without --noisy they are compared with the clean ones alone")  # fmt: skip
    add("--pair-by", **cli.PAIR_BY)
    add("--model", type=_named_path, action="append", default=[], metavar="NAME=FILE",
        help="use this model (.h5, .icse) on the noisy files; repeatable")  # fmt: skip
    add("--num-test", type=positive_number, metavar="N",
        help="test on N files per noise and SNR, of the bundled test set "
        f"(default {BUNDLED_NUM_EACH})")  # fmt: skip
    add("--convert", action="store_true",
        help="resample to 16 kHz and average channels where needed; without it such files are "
        "counted as unscored")  # fmt: skip
    how = parser.add_argument_group("how")
    add = how.add_argument
    add("--metrics", nargs="+", choices=METRICS, default=list(METRICS), metavar="NAME",
        help=f"compute these metrics (default: all of {', '.join(METRICS)})")  # fmt: skip
    add("--baseline", default="noisy", metavar="NAME",
        help="compare the others with this one, a system (default %(default)s)")  # fmt: skip
    add("--matlab-style", action="store_true",
        help="also write the published result files: one for each noise and SNR, with Mean and "
        "Stad rows, below --out/matlab")  # fmt: skip
    add("--jobs", **cli.JOBS)
    add_option(how, "score")
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
        help="write to this folder (default %(default)s)")  # fmt: skip
    add("--json", **cli.JSON)
    return parser


if __name__ == "__main__":
    sys.exit(main())
