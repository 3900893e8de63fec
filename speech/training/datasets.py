"""The data that a training is asked to use: to train, validate and test on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from speech.base import schema
from speech.base.files import write_json
from speech.data import corpus
from speech.data.cache import AudioCache
from speech.data.mixtures import MixingConfig, training_and_validation
from speech.data.pairs import PairPieces, PairSource
from speech.data.pipeline import MixtureSource, Source, TrainingData
from speech.data.prepared import write_mixtures
from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.augment import Augmentation
from speech.training.config import TrainingConfig
from speech.training.pieces import PieceData, Pieces
from speech.training.request import BUNDLED_NUM_TEST, NUM_TEST, DataOptions

_LOGGER = logging.getLogger("speech")

#: Validation mixtures, at least: few utterances give several mixtures each.
_MIN_VALIDATION_ITEMS = 24

#: Validation pieces of networks that hear pieces.
_VALIDATION_PIECES = 128


@dataclass(frozen=True)
class Data:
    """The data to train, validate and test on.

    Attributes:
        training: A `speech.data.pipeline.Source`.
        validation: Likewise, never augmented.
        validation_items: Number of validation items to use.
        test: `speech.data.corpus.Pair` objects.
        description: One line for people.
        num_noises: Number of noises in the training data.
        left_out: Sentence on premixed files that are not trained on, or ''.
    """

    training: Source
    validation: Source
    validation_items: int
    test: list[corpus.Pair]
    description: str
    num_noises: int = 0
    left_out: str = ""


def load_data(
    data: DataOptions,
    test_folder: Path,
    changes: Augmentation = Augmentation(),  # noqa: B008 - frozen
    snr_range_db: tuple[float, float] | None = None,
    num_jobs: int = -1,
) -> Data:
    """Finds what to train, validate and test on, for networks from waveform to waveform.

    Args:
        data: Which recordings.
        test_folder: Where the test mixtures are written, if there are none on disk.
        changes: Of the training data.
        snr_range_db: As in `load_training`.
        num_jobs: Processes that write the test mixtures.

    Raises:
        ValueError: A folder is missing, empty or of another shape; premixed folders can't be
            augmented.
    """
    found = load_training(data, changes, snr_range_db)
    if data.test_noisy is not None and data.test_clean is not None:
        test = corpus.find_pairs(data.test_noisy, data.test_clean, data.pair_by)
        if data.num_test:
            test = _first_of_each_condition(test, data.num_test)
        return replace(found, test=test, description=f"{found.description}, {len(test)} test pairs")
    speech, noise = _recordings(data, "TEST")
    num_test = data.num_test
    if num_test is None:
        num_test = BUNDLED_NUM_TEST if data.is_bundled else NUM_TEST
    plans = corpus.spread_mixtures(speech, noise, data.snrs_db, num_test or None, data.seed)
    test = _write_test_set(plans, test_folder, num_jobs)
    return replace(
        found,
        test=test,
        description=f"{data.name}: {len(found.training)} training, {len(found.validation)} "
        f"validation and {len(speech)} test utterances, {found.num_noises} noises, "
        f"{len(test)} test mixtures",
    )


def load_training(
    data: DataOptions, changes: Augmentation, snr_range_db: tuple[float, float] | None = None
) -> Data:
    """Finds what to train and validate on, for networks from waveform to waveform.

    Args:
        data: Which recordings.
        changes: Of the training data.
        snr_range_db: (low, high): draw the training SNRs from it, and not from ``data.snrs_db``.

    Returns:
        The data, without a test set.

    Raises:
        ValueError: A folder is missing, empty or of another shape; premixed folders can't be
            augmented.
    """
    if data.noisy is not None:
        return _load_pairs(data, changes)
    speech, noise = _recordings(data, "TRAIN")
    train, validation = corpus.split_utterances(speech, seed=data.seed)
    cache = AudioCache()
    return Data(
        MixtureSource(
            train,
            noise,
            data.snrs_db,
            snr_range_db=snr_range_db,
            augmentation=changes,
            cache=cache,
        ),
        MixtureSource(validation, noise, data.snrs_db, cache=cache),
        max(len(validation), _MIN_VALIDATION_ITEMS),
        [],
        f"{data.name}: {len(train)} training and {len(validation)} validation utterances, "
        f"{len(noise)} noises",
        len(noise),
    )


def load_pieces(
    data: DataOptions, mixing: MixingConfig, config: TrainingConfig, workers: int
) -> tuple[PieceData, PieceData, str]:
    """Finds what to train and validate on, for networks that hear pieces at their own level.

    Args:
        data: Which recordings.
        mixing: How they are mixed; of premixed ones only the level is drawn.
        config: Length of a piece, pieces per step and per epoch, seed.
        workers: Processes that mix; 0 for a thread.

    Returns:
        Training, validation, and one line for people.

    Raises:
        ValueError: A folder is missing, empty or of another shape, or rooms are asked for and
            can't be simulated.
    """
    assert config.crop_seconds is not None
    num_samples = round(config.crop_seconds * SAMPLE_RATE_HZ)
    training: Pieces
    validation: Pieces
    if data.noisy is not None and data.clean is not None:
        parts = _split_pairs(data, corpus.find_pairs(data.noisy, data.clean, data.pair_by))
        training, validation = (
            PairPieces(
                part, num_samples=num_samples, batch_size=config.batch_size, seed=seed,
                level_range_dbfs=mixing.level_range_dbfs,
            )
            for part, seed in zip(parts, (2 * config.seed, 2 * config.seed + 1), strict=True)
        )  # fmt: skip
        what = f"{len(parts[0])} training and {len(parts[1])} validation pairs"
    else:
        speech, noise = _recordings(data, "TRAIN")
        training, validation = training_and_validation(
            speech, noise, mixing,
            num_samples=num_samples, batch_size=config.batch_size, seed=config.seed,
        )  # fmt: skip
        what = (
            f"{len(training.utterances)} training and {len(validation.utterances)} validation "
            f"utterances of {len(training.speakers)} speakers, {len(noise)} noises"
        )
    num_items = None if config.hours is not None else config.num_items
    return (
        PieceData(training, num_items=num_items, workers=workers),
        PieceData(validation, num_items=_VALIDATION_PIECES, workers=0, keep=True),
        f"{data.name}: {what}",
    )


def _recordings(data: DataOptions, split: str) -> tuple[list[corpus.Utterance], list[corpus.Noise]]:
    """Returns the utterances and the noises of a split."""
    if data.is_bundled:
        return corpus.bundled_speech(split), corpus.bundled_noise(split)
    assert data.noise is not None
    speech = corpus.find_speech_trees(data.speech, split, data.skip_sa)
    return speech, corpus.find_noise(data.noise, split)


def training_parts(
    data: Data, config: TrainingConfig, gain_db: tuple[float, float] | None
) -> tuple[TrainingData, TrainingData]:
    """Returns the `TrainingData` to train and to validate on.

    Args:
        data: What `load_data` or `load_training` found.
        config: Of the run.
        gain_db: As in `speech.sound.augment.Augmentation`.
    """
    crop = config.crop_seconds
    training = TrainingData(
        data.training,
        num_items=config.num_items,
        batch_size=config.batch_size,
        crop_samples=None if crop is None else round(crop * SAMPLE_RATE_HZ),
        seed=config.seed,
        gain_db=gain_db,
    )
    validation = TrainingData(
        data.validation, num_items=data.validation_items, seed=config.seed, shuffle=False
    )
    return training, validation


def _load_pairs(data: DataOptions, changes: Augmentation) -> Data:
    mixing = {**asdict(changes), "gain_db": None}
    if Augmentation(**mixing) != Augmentation():
        raise ValueError(
            "premixed folders are taken as they are: of the augmentations only --gain works with "
            "them; with --recipe best give --speech and --noise"
        )
    assert data.noisy is not None and data.clean is not None
    pairs, left_out = corpus.training_pairs(
        data.noisy, data.clean, data.pair_by, keep_low_snr=data.keep_low_snr
    )
    training, validation = (PairSource(part) for part in _split_pairs(data, pairs))
    what = f"{len(training)} training and {len(validation)} validation pairs"
    return Data(training, validation, len(validation), [], what, left_out=left_out)


def _split_pairs(
    data: DataOptions, pairs: list[corpus.Pair]
) -> tuple[list[corpus.Pair], list[corpus.Pair]]:
    if data.split == "original":
        return corpus.split_pairs_original(pairs)
    return corpus.split_utterances(pairs, seed=data.seed)


@dataclass
class _Plan:
    """plan.json of a test set: what it was made of, its files, and what could not be made."""

    plan: list[str]
    written: list[str]
    skipped: list[str]


def _write_test_set(
    plans: Sequence[corpus.MixturePlan], folder: Path, num_jobs: int
) -> list[corpus.Pair]:
    """Writes the test mixtures, unless an earlier run of the same plan did."""
    wanted = sorted(
        f"{plan.relative_path.as_posix()} seed {plan.seed} "
        f"speech {plan.utterance.path.stat().st_size} noise {plan.noise.path.stat().st_size} "
        f"{plan.noise.start} {plan.noise.stop}"
        for plan in plans
    )
    record = folder / "plan.json"
    try:
        kept = schema.read(record, _Plan)
        written, skipped = kept.written, kept.skipped
        complete = kept.plan == wanted and all((folder / path).is_file() for path in written)
    except (OSError, ValueError):
        complete = False
    if not complete:
        record.unlink(missing_ok=True)
        report = write_mixtures(plans, folder, num_jobs=num_jobs)
        written = sorted(row[key] for row in report.rows for key in ("noisy", "clean"))
        skipped = [reason for _, reason in report.skipped]
        write_json(record, {"plan": wanted, "written": written, "skipped": skipped})
    for reason in skipped:
        _LOGGER.warning("skipped in the test set: %s", reason)
    # A folder that was used before may hold mixtures of other plans.
    pairs = corpus.find_pairs(folder / "noisy", folder / "clean")
    own = set(written)
    return [pair for pair in pairs if f"noisy/{pair.relative_path.as_posix()}" in own]


def _first_of_each_condition(pairs: Sequence[corpus.Pair], num_each: int) -> list[corpus.Pair]:
    counts: dict[tuple[str, float], int] = {}
    chosen = []
    for pair in pairs:
        condition = (pair.noise, pair.snr_db)
        counts[condition] = counts.get(condition, 0) + 1
        if counts[condition] <= num_each:
            chosen.append(pair)
    return chosen
