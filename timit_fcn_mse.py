"""Trains the FCN baseline on raw waveforms with MSE, enhances the test set and scores it (SPEC 1).

::

    python timit_fcn_mse.py --gpu 0                                   # bundled corpus, minutes
    python timit_fcn_mse.py --gpu 0 --timit TIMIT --noise NOISES      # your TIMIT, mixed on the fly
    python timit_fcn_mse.py --gpu 0 --train-noisy A --train-clean B --test-noisy C --test-clean D

The same command takes an interrupted run up where it stood.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech import cli
from speech.cli import decibels, natural_number, positive_number

#: Used for training and for the test set unless --snr says otherwise.
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)

#: The bundled corpus is small: a short run that ends within ten minutes on two cores.
BUNDLED_PRESET = {
    "epochs": 16,
    "num_items": 400,
    "batch_size": 2,
    "crop_seconds": 1.5,
    "schedule": "cosine",
    "learning_rate": 2e-3,
}
BUNDLED_NUM_TEST = 3
NUM_TEST = 20

OUTPUT_FOLDER = "FCN_TIMIT_MSE_wav"
DEFAULT_OUT = Path("runs") / "timit_fcn_mse"


@dataclass(frozen=True)
class Data:
    """What to train, validate and test on.

    Attributes:
        training: A `speech.pipeline.Source`.
        validation: Likewise.
        validation_items: Number of validation items to use.
        test: `speech.corpus.Pair` objects.
        description: One line for people.
    """

    training: Any
    validation: Any
    validation_items: int
    test: list[Any]
    description: str


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check_usage(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.device import select_devices

    select_devices(options.gpu)
    from speech.training import TrainingConfig

    started = time.perf_counter()
    bundled = options.timit is None and options.train_noisy is None
    asked = {
        "epochs": options.epochs,
        "num_items": options.num_train,
        "batch_size": options.batch_size,
        "crop_seconds": options.crop_seconds,
        "learning_rate": options.learning_rate,
        "schedule": options.schedule,
        "seed": options.seed,
        "conv": options.conv,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    config = TrainingConfig(**((BUNDLED_PRESET if bundled else {}) | asked))
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out}: is not a folder; choose another --out")
    data = _load_data(options, bundled)
    if not data.test:
        raise ValueError("no test files are left; check the test folders and --num-test")
    print(f"data        {data.description}")
    if not options.eval_only:
        _train(data, config, options.out)
    model_path = options.model or options.out / "model.h5"
    summary = _enhance_and_score(model_path, data.test, options)
    print(f"\ntotal time  {time.perf_counter() - started:.0f} s")
    print(f"results     {options.out.resolve()}")
    return 0 if summary else 1


def _load_data(options: argparse.Namespace, bundled: bool) -> Data:
    from speech import corpus
    from speech.pipeline import MixtureSource, PairSource

    if options.train_noisy is not None:
        pairs = corpus.drop_low_snr(corpus.find_pairs(options.train_noisy, options.train_clean))
        if not pairs:
            raise ValueError(
                f"{options.train_noisy}: only -15 and -10 dB, which are not trained on"
            )
        split = (
            corpus.split_pairs_original(pairs)
            if options.split == "original"
            else corpus.split_utterances(pairs, seed=options.seed)
        )
        training, validation = (PairSource(part) for part in split)
        test = corpus.find_pairs(options.test_noisy, options.test_clean)
        if options.num_test:
            test = _first_of_each_condition(test, options.num_test)
        what = f"{len(training)} training and {len(validation)} validation pairs"
        return Data(training, validation, len(validation), test, f"{what}, {len(test)} test pairs")

    if bundled:
        speech = {split: corpus.bundled_speech(split) for split in corpus.SPLITS}
        noise = {split: corpus.bundled_noise(split) for split in corpus.SPLITS}
    else:
        speech = {
            split: corpus.find_speech(options.timit, split, options.skip_sa)
            for split in corpus.SPLITS
        }
        noise = {split: corpus.find_noise(options.noise, split) for split in corpus.SPLITS}
    train, validation = corpus.split_utterances(speech["TRAIN"], seed=options.seed)
    num_test = options.num_test
    if num_test is None:
        num_test = BUNDLED_NUM_TEST if bundled else NUM_TEST
    plans = corpus.spread_mixtures(
        speech["TEST"], noise["TEST"], options.snr, num_test or None, options.seed
    )
    test = _write_test_set(plans, options.out / "test", options.jobs)
    return Data(
        MixtureSource(train, noise["TRAIN"], options.snr),
        MixtureSource(validation, noise["TRAIN"], options.snr),
        max(len(validation), 24),  # few utterances: several mixtures of each
        test,
        f"{'bundled corpus' if bundled else options.timit}: {len(train)} training, "
        f"{len(validation)} validation and {len(speech['TEST'])} test utterances, "
        f"{len(noise['TRAIN'])} noises, {len(test)} test mixtures",
    )


def _write_test_set(plans: Sequence[Any], folder: Path, num_jobs: int) -> list[Any]:
    """Writes the test mixtures, unless an earlier run of the same plan did."""
    import json

    from speech import corpus
    from speech.files import write_json
    from speech.prepare import write_mixtures

    wanted = sorted(
        f"{plan.relative_path.as_posix()} seed {plan.seed} "
        f"speech {plan.utterance.path.stat().st_size} noise {plan.noise.path.stat().st_size} "
        f"{plan.noise.start} {plan.noise.stop}"
        for plan in plans
    )
    record = folder / "plan.json"
    try:
        kept = json.loads(record.read_text(encoding="utf-8"))
        written, skipped = kept["written"], kept["skipped"]
        complete = kept["plan"] == wanted and all((folder / path).is_file() for path in written)
    except (OSError, ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        record.unlink(missing_ok=True)
        report = write_mixtures(plans, folder, num_jobs=num_jobs)
        written = sorted(row[key] for row in report.rows for key in ("noisy", "clean"))
        skipped = [reason for _, reason in report.skipped]
        write_json(record, {"plan": wanted, "written": written, "skipped": skipped})
    for reason in skipped:
        print(f"skipped in the test set: {reason}", file=sys.stderr)
    # A folder that was used before may hold mixtures of other plans.
    pairs = corpus.find_pairs(folder / "noisy", folder / "clean")
    return [pair for pair in pairs if f"noisy/{pair.relative_path.as_posix()}" in set(written)]


def _first_of_each_condition(pairs: Sequence[Any], num_each: int) -> list[Any]:
    counts: dict[tuple[str, float], int] = {}
    chosen = []
    for pair in pairs:
        condition = (pair.noise, pair.snr_db)
        counts[condition] = counts.get(condition, 0) + 1
        if counts[condition] <= num_each:
            chosen.append(pair)
    return chosen


def _train(data: Data, config: Any, out: Path) -> None:
    from eval.plots import learning_curve
    from speech.audio import SAMPLE_RATE_HZ
    from speech.fcn import FCNConfig, build_fcn
    from speech.files import write_text
    from speech.pipeline import TrainingData
    from speech.training import Trainer

    network = build_fcn(FCNConfig(), seed=config.seed)
    crop = config.crop_seconds and round(config.crop_seconds * SAMPLE_RATE_HZ)
    training = TrainingData(
        data.training,
        num_items=config.num_items,
        batch_size=config.batch_size,
        crop_samples=crop,
        seed=config.seed,
    )
    validation = TrainingData(
        data.validation, num_items=data.validation_items, seed=config.seed, shuffle=False
    )
    meta = {
        "kind": "waveform",
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "created_by": "timit_fcn_mse.py",
    }
    trainer = Trainer(network, training, validation, config, out, meta=meta)
    engine = "C kernels" if trainer.model.uses_c_kernels else "Keras convolutions"
    print(
        f"training    {len(training)} steps an epoch, {config.epochs} epochs, {engine}", flush=True
    )

    def report(row: dict[str, float]) -> None:
        print(
            f"epoch {row['epoch']:3d}/{config.epochs}  training {row['training_loss']:.5f}  "
            f"validation {row['validation_loss']:.5f}  {row['seconds']:.1f} s",
            flush=True,
        )
        learning_curve(trainer.state.history, out / "learning_curve.png", "FCN, MSE")

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "model.json", network.to_json(indent=2) + "\n")
    state = trainer.run(report)
    learning_curve(state.history, out / "learning_curve.png", "FCN, MSE")


def _enhance_and_score(
    model_path: Path, pairs: Sequence[Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    from eval import scoring
    from speech.audio import SAMPLE_RATE_HZ, peak_normalize, read_audio, write_audio
    from speech.enhance import Enhancer
    from speech.files import write_json, write_text
    from speech.runinfo import run_info

    enhancer = Enhancer(model_path)
    folder = options.out / OUTPUT_FOLDER
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
    rows = scoring.score_all(tasks, options.jobs)
    summary = scoring.summarize(rows)
    print("\n" + scoring.format_table(summary))
    for row in rows:
        if row["status"] != "ok":
            print(f"not scored: {row['system']} {row['name']}: {row['status']}", file=sys.stderr)
    write_text(options.out / "scores.csv", scoring.to_csv(rows))
    write_text(options.out / "results.csv", scoring.to_csv(summary))
    write_json(
        options.out / "results.json",
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
    paired = [options.train_noisy, options.train_clean, options.test_noisy, options.test_clean]
    if any(paired) and not all(paired):
        parser.error("--train-noisy, --train-clean, --test-noisy and --test-clean go together")
    if (options.timit is None) != (options.noise is None):
        parser.error("--timit and --noise go together")
    if options.timit and any(paired):
        parser.error("give --timit and --noise, or the four noisy and clean folders, not both")
    if options.split == "original" and not any(paired):
        parser.error("--split original is for the four noisy and clean folders")
    if any(paired) and (options.snr or options.skip_sa):
        parser.error("--snr and --skip-sa are for mixing; premixed folders are taken as they are")
    if options.snr is None:
        options.snr = list(SNRS_DB)
    if options.model and not options.eval_only:
        parser.error("--model goes with --eval-only")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train the FCN speech-enhancement baseline with MSE, enhance and score the "
        "test set. Without data options: the bundled corpus, in minutes. The same command resumes.",
    )
    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--timit", type=Path, metavar="DIR", help="TIMIT, or any tree with TRAIN and TEST")
    add("--noise", type=Path, metavar="DIR", help="noise recordings to mix with --timit")
    add("--train-noisy", type=Path, metavar="DIR", help="<noise>/<speaker>/<dB>/<name>.wav")
    add("--train-clean", type=Path, metavar="DIR", help="clean files of the same names")
    add("--test-noisy", type=Path, metavar="DIR", help="like --train-noisy")
    add("--test-clean", type=Path, metavar="DIR", help="like --train-clean")
    add("--snr", type=decibels, nargs="+", metavar="DB",
        help="SNRs to mix at (default -5 0 5 10 15); premixed folders have theirs")  # fmt: skip
    add("--skip-sa", action="store_true", help="leave out TIMIT's SA sentences (with --timit)")
    add("--split", choices=("disjoint", "original"), default="disjoint",
        help="validation split; 'original' is the published one, with its leak")  # fmt: skip
    add("--num-test", type=natural_number, metavar="N",
        help=f"test files a noise and SNR, 0 for all (default: premixed folders whole, "
        f"{NUM_TEST} with --timit, {BUNDLED_NUM_TEST} bundled)")  # fmt: skip
    training = parser.add_argument_group(
        "training", "defaults: the paper's values; in brackets those for the bundled corpus"
    )
    add = training.add_argument
    preset = BUNDLED_PRESET
    add("--epochs", type=positive_number, metavar="N", help=f"60 [{preset['epochs']}]")
    add("--num-train", type=positive_number, metavar="N",
        help=f"utterances an epoch: 30000 [{preset['num_items']}]")  # fmt: skip
    add("--batch-size", type=positive_number, metavar="N",
        help=f"utterances a step: 1 [{preset['batch_size']}]")  # fmt: skip
    add("--crop-seconds", type=float, metavar="S",
        help=f"train on pieces: no [{preset['crop_seconds']}]")  # fmt: skip
    add("--learning-rate", type=float, metavar="R",
        help=f"Adam's: 0.001 [{preset['learning_rate']}]")  # fmt: skip
    add("--schedule", choices=("constant", "cosine"),
        help=f"of the learning rate: constant [{preset['schedule']}]")  # fmt: skip
    add("--conv", choices=("fast", "keras"), help="convolution on a CPU (default fast)")
    add(
        "--seed",
        type=natural_number,
        default=0,
        metavar="N",
        help="of everything random (default 0)",
    )
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--gpu", default="0", metavar="LIST",
        help="0 (default), or -1 for the CPU; of several (0,1) the first trains")  # fmt: skip
    add("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="default %(default)s")
    add("--eval-only", action="store_true", help="enhance and score with the model in --out")
    add("--model", type=Path, metavar="FILE", help="with --eval-only: this model instead")
    add("--jobs", type=positive_number, default=-1, metavar="N",
        help="processes for mixing and scoring (default: one a core)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
