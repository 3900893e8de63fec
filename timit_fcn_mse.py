"""Trains the FCN baseline on raw waveforms, enhances the test set and scores it.

The loss is MSE unless ``--loss`` or ``--recipe`` says otherwise.

::

    python timit_fcn_mse.py --gpu 0                                   # bundled corpus, minutes
    python timit_fcn_mse.py --gpu 0 --timit TIMIT --noise NOISES      # your TIMIT, mixed on the fly
    python timit_fcn_mse.py --gpu 0 --train-noisy A --train-clean B --test-noisy C --test-clean D
    python timit_fcn_mse.py --gpu 0,1 --batch-size 8                  # several GPUs share each step

The same command goes on with an interrupted run where it stood. Started on several machines with
TF_CONFIG set, it trains one network on all of them (docs/training.md).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import scoring
from speech import train
from speech.base import cli, lazy
from speech.base.cli import positive_number
from speech.base.files import held, write_json, write_text
from speech.base.runinfo import run_info
from speech.base.words import MOST, shown
from speech.data.corpus import Pair
from speech.net.enhancer import Enhancer
from speech.sound.audio import SAMPLE_RATE_HZ, peak_normalize, read_audio, write_audio
from speech.training.common_options import (
    add_data_options,
    add_training_options,
    check_data_options,
)
from speech.training.options import request
from speech.training.request import NUM_FILTERS, Request

if TYPE_CHECKING:
    from speech.training import datasets, distribution, run
else:
    datasets = lazy.module("speech.training.datasets")
    distribution = lazy.module("speech.training.distribution")
    run = lazy.module("speech.training.run")

OUTPUT_FOLDER = "FCN_TIMIT_MSE_wav"
RESULTS = "results.json"
DEFAULT_OUT = Path("runs") / "timit_fcn_mse"


@dataclass(frozen=True)
class Experiment:
    """What one call of the command does.

    Attributes:
        training: How and on what the FCN is trained, and the folder of the run.
        eval_only: Whether a model that is there is enhanced with and scored, and none trained.
        model: That model; None for the one in the folder of the run.
        num_jobs: Processes that mix and score; -1 for as many as there are cores.
    """

    training: Request
    eval_only: bool = False
    model: Path | None = None
    num_jobs: int = -1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check_usage(parser, options)
    cli.log_to_stderr()
    return cli.run(
        lambda: _run(Experiment(request(options), options.eval_only, options.model, options.jobs))
    )


def _run(asked: Experiment) -> int:
    out = asked.training.out
    task = distribution.begin(asked.training, [out / OUTPUT_FOLDER])
    if task is not None and task.rank:
        # The first machine alone writes, enhances and scores.
        if asked.eval_only:
            raise ValueError("--eval-only runs on the first machine of TF_CONFIG alone")
        train.train(asked.training, task)
        return 0
    # The trainer holds the folder itself, and only while it trains.
    with held(out / RESULTS):
        return _lead(task, asked)


def _lead(task: distribution.Task | None, asked: Experiment) -> int:
    out = asked.training.out
    started = time.perf_counter()
    data = _load_data(asked, out / "test")
    if not data.test:
        raise ValueError("no test files are left; check the test folders and --num-test")
    if not asked.eval_only:
        _train(task, data, asked.training)
    summary = _enhance_and_score(asked.model or out / "model.h5", data.test, out, asked.num_jobs)
    print(f"\ntotal time  {time.perf_counter() - started:.0f} s")
    print(f"results     {out.resolve()}")
    return 0 if summary else 1


def _load_data(asked: Experiment, test_folder: Path) -> datasets.Data:
    how = asked.training
    data = datasets.load_data(
        how.data, test_folder, how.augmentation, how.snr_range_db, asked.num_jobs
    )
    print(f"data        {data.description}")
    if data.left_out and not asked.eval_only:
        print(f"left out    {data.left_out}")
    return data


def _train(task: distribution.Task | None, data: datasets.Data, how: Request) -> None:
    run.train_waveform(
        data, how, created_by="timit_fcn_mse.py",
        machines=None if task is None else distribution.Machines(task),
        clips=data.test, say=cli.say,
    )  # fmt: skip


def _enhance_and_score(
    model_path: Path, pairs: Sequence[Pair], out: Path, num_jobs: int
) -> list[dict[str, Any]]:
    enhancer = Enhancer(model_path)
    folder = out / OUTPUT_FOLDER
    seconds_of_audio = seconds_of_network = 0.0
    started = time.perf_counter()
    tasks, failed = [], []
    for pair in cli.progress(pairs, total=len(pairs), label="enhancing"):
        try:
            noisy = read_audio(pair.noisy_path).samples
            before = time.perf_counter()
            enhanced = enhancer(noisy)
            seconds_of_network += time.perf_counter() - before
            seconds_of_audio += len(noisy) / SAMPLE_RATE_HZ
            write_audio(folder / pair.relative_path, peak_normalize(enhanced))
        except ValueError as error:
            failed.append(cli.one_line(error))
            continue
        labels = (pair.clean_path, pair.noise, pair.snr_db, str(pair.relative_path))
        tasks.append(scoring.Task("noisy", pair.noisy_path, *labels))
        tasks.append(scoring.Task("enhanced", folder / pair.relative_path, *labels))
    wall = time.perf_counter() - started
    if not tasks:
        raise ValueError(f"none of {len(pairs)} test files could be enhanced: {failed[0]}")
    for reason in failed:
        print(f"skipped in the test: {reason}", file=sys.stderr)
    factor = seconds_of_network / seconds_of_audio
    print(
        f"enhanced    {len(tasks) // 2} files, {seconds_of_audio:.0f} s of audio in {wall:.1f} s; "
        f"network alone {seconds_of_network:.1f} s, real-time factor {factor:.4f}"
    )
    rows = scoring.score_all(tasks, num_jobs)
    summary = scoring.summarize(rows)
    print("\n" + scoring.format_table(summary))
    for row in rows:
        if row["status"] != "ok":
            words = shown(f"{row['system']} {row['name']}: {row['status']}", MOST)
            print(f"not scored: {words}", file=sys.stderr)
    write_text(out / "scores.csv", scoring.to_csv(rows))
    write_text(out / "results.csv", scoring.to_csv(summary))
    write_json(
        out / RESULTS,
        {
            "model": str(model_path),
            "model_sha256": enhancer.file.sha256,
            "summary": scoring.json_ready(summary),
            "files_not_enhanced": failed,
            "audio_seconds": seconds_of_audio,
            "wall_seconds": wall,
            "network_seconds": seconds_of_network,
            "real_time_factor": factor,
            **run_info(),
        },
    )
    return summary


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    check_data_options(parser, options)
    if options.model and not options.eval_only:
        parser.error("--model goes with --eval-only")
    if options.tensorboard is not None and options.eval_only:
        parser.error("--tensorboard logs a training; leave out --eval-only")
    if options.filters is not None and options.init is not None:
        parser.error("--filters is for a new network; --init has its own")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train the FCN speech-enhancement baseline, with MSE or another loss, enhance "
        "and score the test set. Without data options it uses the bundled corpus and needs "
        "minutes. The same command goes on after an interruption.",
        **cli.examples(
            "python timit_fcn_mse.py --gpu 0",
            "python timit_fcn_mse.py --timit TIMIT --noise noises --recipe best -o runs/fcn",
            "python timit_fcn_mse.py --gpu 0 --eval-only --model models/fcn_small.icse",
        ),
    )
    add_data_options(parser)
    add_training_options(parser)
    add = parser.add_argument_group("network").add_argument
    add("--filters", type=positive_number, metavar="N",
        help=f"give each hidden layer N filters (default {NUM_FILTERS}, the paper's)")  # fmt: skip
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--gpu", **cli.GPUS)
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
        help="write to this folder (default %(default)s)")  # fmt: skip
    add("--eval-only", action="store_true", help="enhance and score with the model in --out")
    add("--model", type=Path, metavar="FILE", help="use this model (with --eval-only)")
    add("--tensorboard", nargs="?", type=Path, const=False, metavar="DIR",
        help="log errors, learning rate and fixed test clips for TensorBoard (default DIR: "
        "OUT/tensorboard); needs pip install tensorboard")  # fmt: skip
    add("--jobs", **cli.JOBS)
    # What `request` asks of the options of speech.train, and this command has no option for.
    parser.set_defaults(
        network="fcn",
        size=None,
        normalization=None,
        workers=None,
        teacher=None,
        teacher_share=None,
        json=None,
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
