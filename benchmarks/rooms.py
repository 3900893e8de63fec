"""Denoising and dereverberation by SNR, beside the published table.

::

    python -m benchmarks.rooms --timit CORPUS/speech --noise CORPUS/noise --model joint=model.h5
    python -m benchmarks.rooms --num-test 1      # models/fcn.h5, bundled corpus

Two test sets of the same utterances and pieces of noise, at the published SNRs: noise only, and
the speech in simulated rooms that no training has had (``speech.prepare --rooms 1``). The SNR is
that of all the speech in the room; the reference is the direct sound with its early reflections.

A gain is the mean over files of the score minus that of the noisy file, with its 95 % bootstrap
interval. A file that lacks a score of one system is in no mean, and counted. The published network
was trained and tested on other speech, noises and rooms, and what its scores were taken against is
not known: they are no baseline for ours. The same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from eval.published import JOINT_SNRS_DB, JOINT_TRAINING, SOURCE
from speech.base import cli
from speech.training.common_options import check_corpus

if TYPE_CHECKING:
    from eval.points import Point

NUM_TEST = 2
METRICS = ("pesq_wb", "stoi")

#: Published name of the job -> probability of a room, and the title of its table.
TEST_SETS = {
    "denoising": (0.0, "denoising"),
    "dereverberation": (1.0, "denoising + dereverberation"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    try:
        models = named_models(options.model)
    except ValueError as error:
        parser.error(f"--model: {error}")
    cli.log_to_stderr()
    return cli.run(lambda: _run(models, options))


def named_models(arguments: Sequence[str] | None) -> list[Point]:
    """Returns the models of ``--model NAME=FILE ...``; without any, the shipped one.

    Raises:
        ValueError: Another form, a name that can't be used, or one that occurs twice.
    """
    from eval.points import parse_point
    from speech.net.enhancer import BASELINE_MODEL

    models = [parse_point(argument) for argument in arguments or [f"fcn={BASELINE_MODEL}"]]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"a name occurs twice in {' '.join(names)}; choose another")
    return models


def _run(models: Sequence[Point], options: argparse.Namespace) -> int:
    from speech.base.files import held, sha256_of, strict_json, write_text
    from speech.sound.augment import require_rooms

    require_rooms()
    described = [
        {
            "name": model.name,
            "file": str(model.path),
            "sha256": sha256_of(model.path),
            "bytes": model.path.stat().st_size,
        }
        for model in models
    ]
    with held(options.out):
        results = {job: score_set(job, models, options) for job in TEST_SETS}
    text = "\n\n".join(format_set(job, result) for job, result in results.items())
    print(text)
    if options.markdown:
        write_text(options.markdown, text + "\n")
    published = {"source": SOURCE, "snrs_db": list(JOINT_SNRS_DB), **JOINT_TRAINING}
    result = {
        "corpus": "bundled" if options.timit is None else str(options.timit),
        "num_test": options.num_test,
        "seed": options.seed,
        "models": described,
        "test_sets": results,
        "published": published,
    }
    common.write_result(options.json, strict_json(result))
    return 0


def score_set(job: str, models: Sequence[Point], options: argparse.Namespace) -> dict[str, Any]:
    """Makes a test set, enhances it with each model and scores it.

    Args:
        job: A key of `TEST_SETS`.
        models: What enhances.
        options: Of the command.

    Returns:
        Number of files, the rooms, and of the scores: mean and standard deviation by SNR, gains
        over noisy by SNR, files without a score and why.

    Raises:
        ValueError: A model is refused, or no file has a score.
    """
    from eval import scoring
    from eval.systems import model_system, noisy_system, tasks_of

    folder = options.out / job
    pairs, rooms = test_set(job, folder / "test", options)
    systems = [noisy_system(pairs)]
    for model in models:
        made = folder / "enhanced" / model.name
        systems.append(model_system(model.name, model.path, pairs, made, False, options.jobs))
    cache = scoring.ScoreCache(options.out / "cache.jsonl")
    rows = scoring.score_all(tasks_of(systems, pairs), options.jobs, METRICS, cache=cache)
    unscored = [row for row in rows if row["status"] != "ok"]
    if len(unscored) == len(rows):
        raise ValueError(f"no file could be scored; the first: {rows[0]['status']}")
    return {
        "num_files": len(pairs),
        "rooms": rooms,
        "scores": _over_noises(scoring.summarize(rows)),
        "gains": _over_noises(scoring.compare(rows)),
        "unscored": [{key: row[key] for key in ("system", "name", "status")} for row in unscored],
    }


def test_set(
    job: str, folder: Path, options: argparse.Namespace
) -> tuple[list[Any], dict[str, Any] | None]:
    """Writes the mixtures of a test set, the same files each time.

    Args:
        job: A key of `TEST_SETS`.
        folder: Gets ``noisy`` and ``clean``.
        options: Of the command.

    Returns:
        The pairs; and how many rooms there are, and the least, median and largest reverberation
        time of the utterances in s, or None without rooms.
    """
    plans, rows = common.write_test_set(
        folder, options.timit, options.noise, JOINT_SNRS_DB, options.num_test, options.seed,
        options.jobs, TEST_SETS[job][0],
    )  # fmt: skip
    return [plan.pair(folder) for plan in plans], _rooms_of(rows)


def _rooms_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    import numpy as np

    placed = {row["clean"]: row for row in rows if "room" in row}
    if not placed:
        return None
    times = [row["rt60_s"] for row in placed.values()]
    low, median, high = (float(value) for value in np.percentile(times, [0, 50, 100]))
    return {
        "num_utterances": len(placed),
        "num_rooms": len({row["room"] for row in placed.values()}),
        "rt60_s": {"min": low, "median": median, "max": high},
    }


def _over_noises(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the groups over all noises, the highest SNR first, as published, and all last."""
    from eval.scoring import OVERALL

    chosen = [group for group in groups if group["noise"] == OVERALL]
    overall = [group for group in chosen if group["snr_db"] == OVERALL]
    by_snr = [group for group in chosen if group["snr_db"] != OVERALL]
    return sorted(by_snr, key=lambda group: -group["snr_db"]) + overall


def format_set(job: str, result: Mapping[str, Any]) -> str:
    """Returns the table of a test set as Markdown.

    Args:
        job: A key of `TEST_SETS`.
        result: Of `score_set`.
    """
    from eval.metrics import METRICS as KNOWN
    from eval.scoring import NOISY, format_snr

    scores = {(group["snr_db"], group["system"]): group for group in result["scores"]}
    gains = {(gain["snr_db"], gain["system"], gain["metric"]): gain for gain in result["gains"]}
    snrs_db = list(dict.fromkeys(snr_db for snr_db, _ in scores))
    models = [name for name in dict.fromkeys(name for _, name in scores) if name != NOISY]
    head = ["SNR dB", "n"]
    for metric in METRICS:
        head += [f"{KNOWN[metric].label} {name}" for name in (NOISY, *models, "published")]
    lines = []
    for snr_db in snrs_db:
        line = [format_snr(snr_db), str(scores[snr_db, NOISY]["n"])]
        for metric in METRICS:
            line.append(f"{scores[snr_db, NOISY][metric]:.3f}")
            for name in models:
                score = scores[snr_db, name][metric]
                line.append(f"{score:.3f} {_format_gain(gains.get((snr_db, name, metric)))}")
            line.append(_published(job, metric, snr_db))
        lines.append(line)
    return f"## {TEST_SETS[job][1]}\n\n{_caption(result)}\n\n{common.table(head, lines)}"


def _caption(result: Mapping[str, Any]) -> str:
    text = f"{result['num_files']} files, "
    if rooms := result["rooms"]:
        times = rooms["rt60_s"]
        text += (
            f"{rooms['num_utterances']} utterances in {rooms['num_rooms']} rooms with a "
            f"reverberation time of {times['min']:.2f} to {times['max']:.2f} s (median "
            f"{times['median']:.2f} s), "
        )
    left_out = max(group["unscored"] for group in result["scores"])
    return text + (
        f"{left_out} without a score. In brackets: gain over noisy on the same files, 95 % "
        "interval. Published: of another network, corpus and rooms."
    )


def _format_gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None or not gain["n"]:
        return "(no pairs)"
    if gain["n"] == 1:  # has no interval
        return f"({gain['difference']:+.3f})"
    return f"({gain['difference']:+.3f}, {gain['low']:+.3f} to {gain['high']:+.3f})"


def _published(job: str, metric: str, snr_db: float | str) -> str:
    if snr_db not in JOINT_SNRS_DB:
        return ""
    return f"{JOINT_TRAINING[job][metric][JOINT_SNRS_DB.index(snr_db)]:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rooms",
        description="Denoising and dereverberation by SNR, beside the published table.",
    )
    common.add_test_options(parser, NUM_TEST)
    add = parser.add_argument
    add("--model", nargs="+", action="extend", metavar="NAME=FILE",
        help="what enhances (default fcn=models/fcn.h5)")  # fmt: skip
    add("--out", type=Path, default=Path("runs/rooms"), metavar="DIR", help="default %(default)s")
    add("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
