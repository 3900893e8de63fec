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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import scoring, tables
from eval.metrics import METRICS
from eval.systems import (
    System,
    bundled_pairs,
    enhanced_alone,
    folder_system,
    model_system,
    noisy_system,
    tasks_of,
)
from eval.tables import PUBLISHED_COLUMNS
from speech.base import cli
from speech.base.cli import positive_number
from speech.base.cluster import add_option, connected
from speech.base.files import held, write_json, write_text
from speech.base.runinfo import run_info
from speech.base.words import MOST, shown
from speech.data import corpus
from speech.data.corpus import Pair
from speech.net.enhancer import BASELINE_MODEL, DEFAULT_MODEL

DEFAULT_OUT = Path("runs") / "eval"

#: What is scored where neither models nor enhanced files are named.
DEFAULT_MODELS = (("denoise", DEFAULT_MODEL), ("fcn", BASELINE_MODEL))

#: The bundled test set: as many utterances for each of its 8 noises and 5 SNRs.
BUNDLED_NUM_EACH = 3
BUNDLED_SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)

_NUM_LISTED = 10


@dataclass(frozen=True)
class EvalConfig:
    """Settings of an evaluation.

    Attributes:
        clean: Folder of clean files; None for the bundled test set.
        noisy: Folder of noisy files; None to score ``enhanced`` and ``clean`` alone.
        enhanced: Name and folder of systems whose files are there.
        models: Name and model file of systems whose files are made; () for `DEFAULT_MODELS` on the
            bundled test set.
        pair_by: How files are paired (`speech.data.corpus.find_matches`).
        num_test: Files of the bundled test set per noise and SNR; None for `BUNDLED_NUM_EACH`.
        convert: Whether to resample to 16 kHz and to average channels where needed.
        metrics: Keys of `eval.metrics.METRICS`.
        baseline: Name of the system that the others are compared with.
        matlab_style: Whether to write the published result files too.
        out: Folder to write.
        num_jobs: Processes; -1 for one per core.
        dask: Address of a Dask scheduler, to score there.
    """

    clean: Path | None = None
    noisy: Path | None = None
    enhanced: tuple[tuple[str, Path], ...] = ()
    models: tuple[tuple[str, Path], ...] = ()
    pair_by: str | None = None
    num_test: int | None = None
    convert: bool = False
    metrics: tuple[str, ...] = tuple(METRICS)
    baseline: str = "noisy"
    matlab_style: bool = False
    out: Path = DEFAULT_OUT
    num_jobs: int = -1
    dask: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense or do not go together."""
        if self.noisy is not None and self.clean is None:
            raise ValueError("--clean and --noisy go together")
        if self.enhanced and self.clean is None:
            raise ValueError("--enhanced needs --clean and --noisy, or --clean alone")
        if self.is_alone and self.models:
            raise ValueError("--model needs --noisy: the files that it is applied to")
        if self.is_alone and not self.enhanced:
            raise ValueError("--clean and --noisy go together, or --clean and --enhanced")
        if self.num_test and self.clean is not None:
            raise ValueError("--num-test is for the bundled test set")
        if self.pair_by and self.clean is None:
            raise ValueError("--pair-by is for --clean and --noisy or --enhanced")
        names = [name for name, _ in (*self.enhanced, *self.applied)]
        for name in names:
            if not re.fullmatch(r"[\w+-][\w.+-]*", name) or name in ("noisy", "all"):
                raise ValueError(
                    f"{name!r} is no name for a system; letters, digits, . + - and _ will do"
                )
            if names.count(name) > 1:
                raise ValueError(f"two systems are named {name!r}; write NAME=...")
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"metric is {name!r}; give some of {', '.join(METRICS)}")
        without = self.is_alone and self.baseline != "noisy"
        if self.baseline not in (names if without else ["noisy", *names]):
            raise ValueError(f"--baseline {self.baseline}: no such system")
        missing = [name for name in PUBLISHED_COLUMNS.values() if name not in self.metrics]
        if self.matlab_style and missing:
            raise ValueError(f"--matlab-style needs the metrics {', '.join(missing)} too")

    @property
    def is_alone(self) -> bool:
        """Whether enhanced and clean files are scored without noisy ones."""
        return self.clean is not None and self.noisy is None

    @property
    def applied(self) -> tuple[tuple[str, Path], ...]:
        """Name and file of the models; the default models if none are given."""
        return DEFAULT_MODELS if self.clean is None and not self.models else self.models

    @property
    def folders(self) -> dict[str, Path]:
        """Folders of the noisy and the clean files, for `eval.report`."""
        bundled = self.out / "test"
        if self.clean is None:
            return {"noisy": bundled / "noisy", "clean": bundled / "clean"}
        return {"clean": self.clean} | ({"noisy": self.noisy} if self.noisy else {})


@dataclass(frozen=True, eq=False)
class EvalResult:
    """The result of `evaluate`.

    Attributes:
        config: What was asked for.
        metrics: The metrics that could be used.
        systems: What was compared.
        rows: One per file and system, from `eval.scoring.score_all`.
        num_pairs: Number of test files.
        unpaired: Files without a clean partner, and the reason.
        summary: Means by system, noise and SNR, from `eval.scoring.summarize`.
        differences: Paired differences to the baseline, from `eval.scoring.compare`.
    """

    config: EvalConfig
    metrics: tuple[str, ...]
    systems: Sequence[System]
    rows: Sequence[dict[str, Any]]
    num_pairs: int
    unpaired: Sequence[tuple[Path, str]]
    summary: list[dict[str, Any]]
    differences: list[dict[str, Any]]

    @property
    def unscored(self) -> list[dict[str, Any]]:
        """The rows that have no scores."""
        return [row for row in self.rows if row["status"] != "ok"]

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the rows as plain JSON values."""
        has_noisy = any(system.name == scoring.NOISY for system in self.systems)
        keys = ("system", "name", "status")
        return {
            "systems": [
                {"name": s.name, "source": s.source, "sha256": s.sha256 or None}
                | {"file_bytes": Path(s.source).stat().st_size if s.sha256 else None}
                for s in self.systems
            ],
            "metrics": {
                name: {"label": m.label, "unit": m.unit, "version": m.version}
                | {"higher_is_better": m.higher_is_better}
                for name, m in METRICS.items()
                if name in self.metrics
            },
            "folders": {name: str(path.resolve()) for name, path in self.config.folders.items()},
            "noisy_files": self.num_pairs if has_noisy else 0,
            "noisy_files_without_clean": len(self.unpaired),
            "without_clean": [
                {"file": str(path), "reason": reason} for path, reason in self.unpaired
            ],
            "summary": scoring.json_ready(self.summary),
            "differences": scoring.json_ready(self.differences),
            "unscored": [{key: row[key] for key in keys} for row in self.unscored],
            **run_info(),
        }


def evaluate(config: EvalConfig) -> EvalResult:
    """Makes what is not there, scores every file of every system, and writes the tables.

    Args:
        config: What to score, and how.

    Raises:
        ValueError: Folders, models or metrics are not as they should be.
        OSError: A file can't be read or written.
    """
    cli.check_folder(config.out)
    metrics = _usable_metrics(config)
    inputs = [config.noisy, config.clean, *(folder for _, folder in config.enhanced)]
    made = [config.out / "enhanced" / name for name, _ in config.applied]
    made += [config.out / "matlab"] if config.matlab_style else []
    cli.check_out(config.out, inputs, made)
    with held(config.out), connected(config.dask, config.num_jobs) as cluster:
        pairs, systems, unpaired = _pairs_and_systems(config)
        rows = scoring.score_all(
            tasks_of(systems, pairs),
            config.num_jobs,
            metrics,
            convert=config.convert,
            cache=scoring.ScoreCache(config.out / "cache.jsonl"),
            cluster=cluster,
        )
        is_compared = config.baseline in [system.name for system in systems]
        result = EvalResult(
            config, metrics, systems, rows, len(pairs), unpaired, scoring.summarize(rows),
            scoring.compare(rows, config.baseline) if is_compared else [],
        )  # fmt: skip
        _write(result)
    return result


def _usable_metrics(config: EvalConfig) -> tuple[str, ...]:
    """Returns the metrics; without noisy files, the metrics that need them are left out.

    Raises:
        ValueError: None is left.
    """
    if not config.is_alone:
        return config.metrics
    kept = tuple(name for name in config.metrics if not METRICS[name].needs_noisy)
    if not kept:
        raise ValueError(f"{', '.join(config.metrics)} compare with the noisy files; give --noisy")
    return kept


def _pairs_and_systems(
    config: EvalConfig,
) -> tuple[list[Pair], list[System], list[tuple[Path, str]]]:
    """Returns the pairs, the systems, and what has no clean partner with the reason."""
    unpaired: list[tuple[Path, str]] = []
    if config.clean is None:
        folder = config.out / "test"
        num_each = config.num_test or BUNDLED_NUM_EACH
        pairs = bundled_pairs(folder, num_each, BUNDLED_SNRS_DB, config.num_jobs)
        systems = _systems(config, pairs)
    elif config.noisy is None:
        pairs, systems, unpaired = enhanced_alone(config.enhanced, config.clean, config.pair_by)
    else:
        apart = [folder for _, folder in config.enhanced]
        found = corpus.find_matches(config.noisy, config.clean, config.pair_by, apart)
        pairs, unpaired = found.pairs, found.unpaired
        systems = _systems(config, pairs)
    if config.clean is not None:
        corpus.warn_of_unpaired(unpaired, config.clean)
    return pairs, systems, unpaired


def _systems(config: EvalConfig, pairs: Sequence[Pair]) -> list[System]:
    systems = [noisy_system(pairs)]
    for name, folder in config.enhanced:
        assert config.noisy is not None, "enhanced files stand beside noisy ones"
        systems.append(folder_system(name, folder, pairs, config.noisy, config.pair_by))
    for name, model in config.applied:
        folder = config.out / "enhanced" / name
        system = model_system(name, model, pairs, folder, config.convert, config.num_jobs)
        systems.append(system)
    return systems


def _write(result: EvalResult) -> None:
    """Writes the tables of a run into its folder."""
    out, summary, differences = result.config.out, result.summary, result.differences
    write_text(out / "scores.csv", scoring.to_csv(result.rows))
    write_text(out / "summary.csv", scoring.to_csv(summary))
    if differences:
        write_text(out / "differences.csv", scoring.to_csv(differences))
    title = "Evaluation: " + ", ".join(system.name for system in result.systems)
    text = tables.markdown(title, summary, differences, result.unscored, result.num_pairs)
    write_text(out / "summary.md", text)
    write_json(out / "summary.json", result.to_json())
    if result.config.matlab_style:
        for name, text in tables.published_files(result.rows).items():
            write_text(out / "matlab" / name, text)


# --------------------------------------------------------------------------------------------
# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        config = EvalConfig(
            options.clean, options.noisy, tuple(options.enhanced), tuple(options.model),
            options.pair_by, options.num_test, options.convert, tuple(options.metrics),
            options.baseline, options.matlab_style, options.out, options.jobs, options.dask,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    cli.log_to_stderr()
    return cli.run(lambda: _run(config, options.json))


def _run(config: EvalConfig, json: Path | None) -> int:
    started = time.perf_counter()
    result = evaluate(config)
    if json:
        write_json(json, result.to_json())
    _print(result)
    print(f"\ntotal time  {time.perf_counter() - started:.0f} s")
    print(f"results     {config.out.resolve()}")
    if len(result.unscored) == len(result.rows):
        raise ValueError(f"no file could be scored; the first: {result.rows[0]['status']}")
    return 0


def _print(result: EvalResult) -> None:
    left_out = [name for name in result.config.metrics if name not in result.metrics]
    if left_out:
        print(
            f"left out    {', '.join(left_out)}: without --noisy there is nothing to compare with"
        )
    print(tables.format_by_snr(result.summary))
    if result.differences:
        print("\n" + tables.format_differences(result.differences))
    whole = [group for group in result.summary if group["noise"] == scoring.OVERALL]
    most = max(group["unscored"] for group in whole)
    print(f"\n{most} of {result.num_pairs} files could not be scored; they are in no mean.")
    if result.unpaired:
        print(
            f"{len(result.unpaired)} files have no clean partner and are not scored; summary.json "
            "names them."
        )
    unscored = result.unscored
    for row in unscored[:_NUM_LISTED]:
        words = shown(f"{row['system']} {row['name']}: {row['status']}", MOST)
        print(f"not scored: {words}", file=sys.stderr)
    if len(unscored) > _NUM_LISTED:
        print(f"and {len(unscored) - _NUM_LISTED} more, in scores.csv", file=sys.stderr)


def _named_path(text: str) -> tuple[str, Path]:
    """Parses NAME=PATH, or PATH alone: then the name is taken from the file or folder."""
    name, equals, path = text.partition("=")
    if not equals:
        name, path = Path(text).resolve().stem, text
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=PATH")
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
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
