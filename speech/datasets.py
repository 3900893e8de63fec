"""The data that the options of a command name: to train, validate and test on."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech import corpus
from speech.augment import Augmentation
from speech.files import write_json
from speech.options import BUNDLED_NUM_TEST, NUM_TEST, augmentation, is_bundled, resolved
from speech.prepare import write_mixtures

if TYPE_CHECKING:
    from speech.modelfile import ModelFile

#: Validation mixtures, at least: few utterances give several mixtures each.
_MIN_VALIDATION_ITEMS = 24


@dataclass(frozen=True)
class Data:
    """What to train, validate and test on.

    Attributes:
        training: A `speech.pipeline.Source`.
        validation: Likewise, never augmented.
        validation_items: Number of validation items to use.
        test: `speech.corpus.Pair` objects.
        description: One line for people.
    """

    training: Any
    validation: Any
    validation_items: int
    test: list[Any]
    description: str


def check_trains_on_waveforms(file: ModelFile) -> None:
    """Raises ValueError for networks over spectra, which are trained elsewhere, and other rates."""
    from speech.audio import SAMPLE_RATE_HZ

    kind = file.meta.get("kind", "waveform")
    rate_hz = file.meta.get("sample_rate_hz", SAMPLE_RATE_HZ)
    if rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(
            f"{file.path}: trained at {rate_hz!r:.60} Hz; only {SAMPLE_RATE_HZ} Hz is supported"
        )
    if kind != "waveform":
        what = {"mask": "expert", "autoencoder": "dae"}.get(str(kind))
        where = f"python -m mnn.train {what} --init FILE" if what else "with what made it"
        raise ValueError(
            f"{file.path}: is a network of kind {kind!r:.60}, not from waveform to waveform; work "
            f"on it without training, and train the result on: {where}"
        )


def load_data(options: argparse.Namespace, test_folder: Path) -> Data:
    """Finds the data that the options of `add_data_options` and `add_training_options` name.

    Args:
        options: Checked by `check_data_options`; also ``jobs``, ``seed``.
        test_folder: Where the test mixtures are written, if there are none on disk.

    Raises:
        ValueError: A folder is missing, empty or of another shape; premixed folders can't be
            augmented.
    """
    from speech.data.cache import AudioCache
    from speech.pipeline import MixtureSource

    changes = augmentation(options)
    if options.train_noisy is not None:
        return _load_pairs(options, changes)
    bundled = is_bundled(options)
    if bundled:
        speech = {split: corpus.bundled_speech(split) for split in corpus.SPLITS}
        noise = {split: corpus.bundled_noise(split) for split in corpus.SPLITS}
    else:
        speech = {
            split: corpus.find_speech_trees(options.timit, split, options.skip_sa)
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
    test = _write_test_set(plans, test_folder, options.jobs)
    cache = AudioCache()
    where = "bundled corpus" if bundled else ", ".join(map(str, options.timit))
    return Data(
        MixtureSource(
            train,
            noise["TRAIN"],
            options.snr,
            snr_range_db=resolved(options).get("snr_range"),
            augmentation=changes,
            cache=cache,
        ),
        MixtureSource(validation, noise["TRAIN"], options.snr, cache=cache),
        max(len(validation), _MIN_VALIDATION_ITEMS),
        test,
        f"{where}: {len(train)} training, "
        f"{len(validation)} validation and {len(speech['TEST'])} test utterances, "
        f"{len(noise['TRAIN'])} noises, {len(test)} test mixtures",
    )


def training_parts(data: Data, config: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """Returns the `TrainingData` to train and to validate on.

    Args:
        data: What `load_data` found.
        config: The `speech.training.TrainingConfig` of the run.
        options: Those of `add_training_options`.
    """
    from speech.audio import SAMPLE_RATE_HZ
    from speech.pipeline import TrainingData

    training = TrainingData(
        data.training,
        num_items=config.num_items,
        batch_size=config.batch_size,
        crop_samples=config.crop_seconds and round(config.crop_seconds * SAMPLE_RATE_HZ),
        seed=config.seed,
        gain_db=augmentation(options).gain_db,
    )
    validation = TrainingData(
        data.validation, num_items=data.validation_items, seed=config.seed, shuffle=False
    )
    return training, validation


def _load_pairs(options: argparse.Namespace, changes: Augmentation) -> Data:
    from speech.pipeline import PairSource

    mixing = {**asdict(changes), "gain_db": None}
    if Augmentation(**mixing) != Augmentation():
        raise ValueError(
            "premixed folders are taken as they are: of the augmentations only --gain works with "
            "them; with --recipe best give --speech and --noise"
        )
    pairs = corpus.drop_low_snr(corpus.find_pairs(options.train_noisy, options.train_clean))
    if not pairs:
        raise ValueError(f"{options.train_noisy}: only -15 and -10 dB, which are not trained on")
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


def _write_test_set(plans: Sequence[Any], folder: Path, num_jobs: int) -> list[Any]:
    """Writes the test mixtures, unless an earlier run of the same plan did."""
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
