"""Scores a grid of models on one test set, as one table and figures of score against size.

::

    python -m eval.sweep --model fcn=models/fcn.h5 pq16=pq16.h5,theta=0.65,k=16 --out runs/sweep
    python -m eval.sweep --model models/fcn.h5 --theta 0.65 0.70 none --k none 4 16 64

The second form makes the grid itself, by ``python -m pruning.run`` and ``python -m
quantization.run`` (``eval.grid``), below ``--out``; models that exist already are kept.

The first model is the baseline: sizes are in percent of its file (and of its parameters, for the
paper's rule), and each difference is to it, over the same files. A file for which one model has no
score is left out for all, and counted. The same command goes on where it was (``cache.jsonl``).

It writes to ``--out``: ``sweep.csv``, ``sweep.json`` and ``sweep.md`` (a row per model),
``scores.csv`` (a row per file and model), the figures, PNG and SVG, of PESQ-WB and STOI against the
bytes of the file and of PESQ-WB against the paper's size, and ``enhanced/<model>``, its output.

Labels may have any name: ``theta`` and ``k`` are marked in the figure, points that share all labels
but ``k`` are joined, and ``k`` is the k of the paper's rule (docs/papers.md, eq. Q3).
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import run, scoring
from eval.cost import ModelCost, costs_against
from eval.grid import Grid
from eval.plots import SYMBOLS, score_against_size
from eval.points import NOISY, Point, parse_point
from eval.scoring import OVERALL, compare, summarize
from eval.systems import bundled_pairs, model_system, noisy_system, tasks_of
from speech.base import cli
from speech.base.cluster import Cluster, add_option, connected
from speech.base.files import held, write_json, write_text
from speech.base.runinfo import run_info
from speech.base.words import markdown
from speech.data import corpus
from speech.data.corpus import Pair

DEFAULT_OUT = Path("runs") / "sweep"

#: The metrics, by the names of `eval.metrics`, and what the table calls them.
SHOWN = {"pesq_wb": "PESQ-WB", "stoi": "STOI"}


def _point_option(text: str) -> Point:
    try:
        if "=" not in text and Path(text).suffix in (".h5", ".icse"):
            return Point(re.sub(r"[^A-Za-z0-9_.+-]", "_", Path(text).stem), Path(text))
        return parse_point(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True)
class SweepConfig:
    """The models to score, and the test set.

    Attributes:
        models: The baseline first; with ``thetas`` or ``ks``, the one to start from.
        thetas: Sparsities above which channels are pruned, one model for each; None: not pruned.
        ks: Numbers of centroids per layer, one model for each; None: not quantized.
        centroids: Formats of the centroids, one model for each; () for 'fp32'.
        finetune_epochs: Epochs that each quantized model is fine-tuned for; None for none.
        noisy: Folder of noisy test files; None for the bundled test set.
        clean: Folder of their clean files.
        pair_by: How they are paired (`speech.data.corpus.find_matches`).
        num_test: Files of the bundled test set per noise and SNR; None: the default of `eval.run`.
        out: Folder to write.
        num_jobs: Files at a time; -1 for one per core.
        dask: Address of a Dask scheduler, to score there.
    """

    models: tuple[Point, ...]
    thetas: tuple[float | None, ...] = ()
    ks: tuple[int | None, ...] = ()
    centroids: tuple[str, ...] = ()
    finetune_epochs: int | None = None
    noisy: Path | None = None
    clean: Path | None = None
    pair_by: str | None = None
    num_test: int | None = None
    out: Path = DEFAULT_OUT
    num_jobs: int = -1
    dask: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for values that do not go together."""
        if not self.models:
            raise ValueError("no model is named; give at least one, the baseline first")
        if (self.noisy is None) != (self.clean is None):
            raise ValueError("--test-noisy and --test-clean go together")
        if self.pair_by and not self.noisy:
            raise ValueError("--pair-by is for --test-noisy and --test-clean")
        if (self.thetas or self.ks) and len(self.models) > 1:
            raise ValueError("--theta and --k start from one model: give one --model")
        if (self.centroids or self.finetune_epochs) and not self.ks:
            raise ValueError("--centroids and --finetune-epochs go with --k")
        if self.noisy and self.num_test:
            raise ValueError("--num-test is for the bundled test mixtures")


def sweep_models(config: SweepConfig) -> list[dict[str, Any]]:
    """Makes the grid, if one is asked for, and scores its models: all that the command does.

    Args:
        config: Which models to score, on what.

    Returns:
        The table of `sweep`.

    Raises:
        ValueError: Folders or models are not as they should be.
        OSError: A file can't be read or written.
    """
    cli.check_folder(config.out)
    cli.check_out(config.out, [config.noisy, config.clean], [config.out / "enhanced"])
    with held(config.out), connected(config.dask, config.num_jobs) as cluster:
        points = config.models
        if config.thetas or config.ks:
            grid = Grid(
                tuple(dict.fromkeys(config.thetas or [None])),
                tuple(dict.fromkeys(config.ks or [None])),
                tuple(dict.fromkeys(config.centroids or ["fp32"])),
                config.finetune_epochs,
            )
            points = (*points, *grid.make(points[0].path, config.out / "models"))
        pairs = _pairs(config)
        return sweep(points, pairs, config.out, num_jobs=config.num_jobs, cluster=cluster)


def _pairs(config: SweepConfig) -> list[Pair]:
    if config.noisy is not None and config.clean is not None:
        return corpus.find_pairs(config.noisy, config.clean, config.pair_by)
    num_each = config.num_test or run.BUNDLED_NUM_EACH
    return bundled_pairs(config.out / "test", num_each, run.BUNDLED_SNRS_DB, config.num_jobs)


def sweep(
    points: Sequence[Point],
    pairs: Sequence[Pair],
    out: Path,
    *,
    num_jobs: int = -1,
    cluster: Cluster | None = None,
) -> list[dict[str, Any]]:
    """Scores every model, writes tables and figures.

    Args:
        points: The baseline first.
        pairs: `speech.data.corpus.Pair` objects to enhance and score.
        out: Folder to write; what an earlier call made and scored is used again.
        num_jobs: Files at a time; -1 for one per core.
        cluster: Where to score instead.

    Returns:
        The table, the noisy files first: see ``tabulate``.

    Raises:
        ValueError: Names are not unique, a model is refused, or there is nothing to score.
    """
    names = [point.name for point in points]
    if not points or len(set(names)) < len(names):
        raise ValueError(f"expected models of different names, received {names}")
    if not pairs:
        raise ValueError("there are no test files to score")
    # All files are read before anything is scored: a bad one is not found after an hour.
    counted = costs_against([p.path for p in points], [_codebook_size(p) for p in points])
    costs = dict(zip(names, counted, strict=True))
    systems = [noisy_system(pairs)]
    for point in points:
        folder = out / "enhanced" / point.name
        systems.append(model_system(point.name, point.path, pairs, folder, True, num_jobs))
    rows = scoring.score_all(
        tasks_of(systems, pairs),
        num_jobs,
        tuple(SHOWN),
        cache=scoring.ScoreCache(out / "cache.jsonl"),
        cluster=cluster,
    )
    table = tabulate(points, costs, rows)
    write_text(out / "scores.csv", scoring.to_csv(rows))
    write_text(out / "sweep.csv", scoring.to_csv(table))
    write_text(out / "sweep.md", format_points(table) + "\n")
    write_json(
        out / "sweep.json",
        {
            "models": [
                {"name": p.name, "path": str(p.path), "sha256": s.sha256, "labels": dict(p.labels)}
                for p, s in zip(points, systems[1:], strict=True)
            ],
            "table": scoring.json_ready(table),
            "costs": {name: cost.to_dict() for name, cost in costs.items()},
            **run_info(),
        },
    )
    draw(points, table, out)
    return table


def tabulate(
    points: Sequence[Point], costs: Mapping[str, ModelCost], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Joins sizes and scores.

    Args:
        points: The baseline first.
        costs: By name.
        rows: Scores of 'noisy' and of every model.

    Returns:
        A row for 'noisy' and one per model, all of the same keys: name, the labels, file_bytes and
        file_percent (of the baseline's file), paper_size_percent (docs/papers.md, eq. Q3),
        full_percent ("ICSE: how size is counted" there),
        parameters, nonzero_weights, sparse_flop_per_step, n, unscored; and for PESQ-WB and STOI the
        mean, _std, _diff (mean difference to the baseline), _diff_low and _diff_high (its 95 %
        bootstrap interval) and _diff_p (Wilcoxon). What a row has not is NaN, a label None.
    """
    first = points[0].name
    means = {
        group["system"]: group
        for group in summarize(rows)
        if group["noise"] == group["snr_db"] == OVERALL
    }
    differences = {
        (group["system"], group["metric"]): group
        for group in compare(rows, first)
        if group["noise"] == group["snr_db"] == OVERALL
    }
    itself = {"difference": 0.0, "low": 0.0, "high": 0.0, "wilcoxon_p": math.nan}
    labels = list(dict.fromkeys(key for point in points for key in point.labels))
    table = []
    for name, point in [(NOISY, None), *((point.name, point) for point in points)]:
        row: dict[str, Any] = {"name": name}
        row |= {key: point.labels.get(key) if point else None for key in labels}
        row |= _sizes(costs[name] if point else None, costs[first])
        row |= {key: means[name][key] for key in ("n", "unscored")}
        for metric in SHOWN:
            found = itself if name == first else differences[name, metric]
            row |= {
                metric: means[name][metric],
                f"{metric}_std": means[name][f"{metric}_std"],
                f"{metric}_diff": found["difference"],
                f"{metric}_diff_low": found["low"],
                f"{metric}_diff_high": found["high"],
                f"{metric}_diff_p": found["wilcoxon_p"],
            }
        table.append(row)
    return table


def format_points(table: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table as Markdown, one that can also be read as it is."""
    labels = list(table[0])[1 : list(table[0]).index("file_bytes")]
    header = ["model", *labels, "file bytes", "file %", "paper %", "n"]
    lines = []
    for metric in SHOWN.values():
        header += [metric, f"{metric} difference (95 %)"]
    for row in table:
        named = ["" if row[key] is None else markdown(str(row[key])) for key in labels]
        cells = [row["name"], *named]
        cells.append("" if math.isnan(row["file_bytes"]) else f"{row['file_bytes']:,}")
        cells += [
            "" if math.isnan(row[key]) else f"{row[key]:.2f}"
            for key in ("file_percent", "paper_size_percent")
        ]
        cells.append(str(row["n"]))
        for metric in SHOWN:
            low, high = row[f"{metric}_diff_low"], row[f"{metric}_diff_high"]
            difference = f"{row[f'{metric}_diff']:+.4f} ({low:+.4f} to {high:+.4f})"
            cells += [f"{row[metric]:.3f}", "baseline" if row is table[1] else difference]
        lines.append(cells)
    widths = [max(len(cells[i]) for cells in [header, *lines]) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    text = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        + " |"
        for cells in [header, rule, *lines]
    ]
    unscored = table[0]["unscored"]
    text.append(
        f"\n{unscored} of the files could not be scored for every model; they are in no mean."
    )
    return "\n".join(text)


def draw(points: Sequence[Point], table: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draws score against size into ``out``; bars are intervals of the difference to the first."""
    series = {point.name: point for point in points}
    baseline = table[1]
    drawn = []
    for row in table[1:]:
        point = series[row["name"]]
        place = {
            **{key: point.labels.get(key) for key in SYMBOLS if _is_number(point.labels.get(key))},
            "series": point.series,
            "text": "" if point.labels else point.name,
            "file_percent": row["file_percent"],
            "paper_size_percent": row["paper_size_percent"],
        }
        for metric in SHOWN:
            place |= {metric: row[metric]}
            place |= {
                f"{metric}_{end}": baseline[metric] + row[f"{metric}_diff_{end}"]
                for end in ("low", "high")
            }
        drawn.append(place)
    title = f"n = {baseline['n']}; bars: 95 % interval of the difference to {baseline['name']}"
    for metric in SHOWN:
        score_against_size(
            drawn, metric, out / f"{metric}_by_file_size", title,
            size_label=f"file size (% of {baseline['name']}'s {baseline['file_bytes']:,} bytes)",
        )  # fmt: skip
    score_against_size(
        drawn, "pesq_wb", out / "pesq_wb_by_paper_size", title, size="paper_size_percent",
        size_label="size by the paper's rule (% of the baseline's parameters in FP32)",
        published=True,
    )  # fmt: skip


def _sizes(cost: ModelCost | None, first: ModelCost) -> dict[str, float]:
    if cost is None:
        names = ("file_bytes", "file_percent", "paper_size_percent", "full_percent", "parameters",
                 "nonzero_weights", "sparse_flop_per_step")  # fmt: skip
        return dict.fromkeys(names, math.nan)
    assert cost.file_bytes and first.file_bytes, "models of a sweep are files"
    return {
        "file_bytes": cost.file_bytes,
        "file_percent": 100 * cost.file_bytes / first.file_bytes,
        "paper_size_percent": cost.paper_size_percent,
        "full_percent": cost.accounting()["full"]["percent"],
        "parameters": cost.total("parameters"),
        "nonzero_weights": cost.total("nonzero_weights"),
        "sparse_flop_per_step": 2 * cost.total("sparse_mac"),
    }


def _codebook_size(point: Point) -> int | None:
    k = point.labels.get("k")
    return k if isinstance(k, int) and k >= 2 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


# --------------------------------------------------------------------------------------------
# Command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.sweep",
        description="Score models on one test set, and draw score against size. Without test "
        "folders it takes the bundled test mixtures. The same command goes on after an "
        "interruption.",
        **cli.examples(
            "python -m eval.sweep --model fcn=models/fcn.h5 small=models/fcn_small.icse,k=16",
            "python -m eval.sweep --model models/fcn.h5 --theta none 0.65 --k none 16 64",
        ),
    )
    add = parser.add_argument
    add("--model", type=_point_option, nargs="+", action="extend", required=True,
        metavar="NAME=FILE[,theta=0.65,k=16,...]",
        help="use this model (the baseline first; with --theta or --k, the one to start "
        "from)")  # fmt: skip
    add("--theta", type=_number_or_none, nargs="+", metavar="T",
        help="prune channels above this sparsity: T takes each of these; none does not "
        "prune")  # fmt: skip
    add("--k", type=_whole_or_none, nargs="+", metavar="K",
        help="take K centroids per layer: K takes each of these; none does not "
        "quantize")  # fmt: skip
    add("--centroids", choices=("fp32", "fp16", "int8"), nargs="+",
        help="store centroids in this format, with --k (default fp32)")  # fmt: skip
    add("--finetune-epochs", type=cli.positive_number, metavar="N",
        help="train for N epochs: fine-tune each quantized model on the bundled "
        "corpus")  # fmt: skip
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
        help="write to this folder (default %(default)s)")  # fmt: skip
    add("--test-noisy", type=Path, metavar="DIR",
        help="test on these noisy files: <noise>/<speaker>/<dB>/<name>.wav")  # fmt: skip
    add("--test-clean", type=Path, metavar="DIR",
        help="compare with these clean files (of the same names)")  # fmt: skip
    add("--pair-by", **cli.PAIR_BY)
    add("--num-test", type=cli.positive_number, metavar="N",
        help="test on N files per noise and SNR, of the bundled test set (default 3)")  # fmt: skip
    add("--jobs", **cli.JOBS)
    add_option(parser, "score")
    options = parser.parse_args(argv)
    try:
        config = SweepConfig(
            tuple(options.model), tuple(options.theta or ()), tuple(options.k or ()),
            tuple(options.centroids or ()), options.finetune_epochs, options.test_noisy,
            options.test_clean, options.pair_by, options.num_test, options.out, options.jobs,
            options.dask,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    cli.log_to_stderr()
    return cli.run(lambda: _run(config))


def _run(config: SweepConfig) -> int:
    print(format_points(sweep_models(config)))
    print(f"\nresults     {config.out.resolve()}")
    return 0


def _number_or_none(text: str) -> float | None:
    """Parses a number or 'none'; argparse quotes the name of this function in its complaint."""
    return None if text.lower() == "none" else cli.finite_number(text)


def _whole_or_none(text: str) -> int | None:
    return None if text.lower() == "none" else cli.positive_number(text)


if __name__ == "__main__":
    sys.exit(main())
