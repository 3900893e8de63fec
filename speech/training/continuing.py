"""Prepares the further training of a finished model: data, settings and loss that suit its kind.

Used by the commands that make a model smaller and then retrain it: pruning and quantization.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.base import lazy
from speech.data.corpus import Pair
from speech.data.pipeline import TrainingData
from speech.modelfile.meta import MaskConventions
from speech.modelfile.spec import COMPLEX_MASK, WAVEFORM, ModelFile
from speech.net.losses import LOSSES
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import TimeFrequencyConfig
from speech.training.config import TrainingConfig
from speech.training.datasets import load_data, load_pieces, training_parts
from speech.training.pieces import PieceData
from speech.training.request import (
    RECIPES,
    TF_RECIPES,
    TrainOn,
    augmentation,
    mixing_config,
    recipe_of,
    training_config,
)
from speech.training.trainer import MakeModel

if TYPE_CHECKING:
    from speech.net import training_model
else:
    training_model = lazy.module("speech.net.training_model")

#: Pieces per epoch on the bundled corpus, for networks over time and frequency.
QUICK_PIECES = 800

#: Settings that say nothing to a network over time and frequency, and their options.
_OF_WAVEFORMS = {"loss": "--loss", "gain_db": "--gain"}


@dataclass(frozen=True)
class Continuation:
    """Everything that is needed to train a finished model further.

    Attributes:
        training: Data to train on.
        validation: Data to validate on.
        config: Settings of the training.
        test: Pairs to score on.
        description: The data in one line.
        meta: ``speech_meta`` of what is saved on the way.
        conventions: Those of a network over time and frequency; None for one over waveforms.
    """

    training: TrainingData | PieceData
    validation: TrainingData | PieceData
    config: TrainingConfig
    test: list[Pair]
    description: str
    meta: dict[str, Any]
    conventions: TimeFrequencyConfig | None = None

    @property
    def make_model(self) -> MakeModel | None:
        """The function that makes the training model, for `speech.training.trainer.Trainer`."""
        if self.conventions is None:
            return None
        conventions, loss = self.conventions, self.config.loss
        assert isinstance(loss, MaskLoss)
        return lambda network, engine: training_model.MaskTrainingModel(
            network, conventions, loss, engine
        )


def check_trains(file: ModelFile) -> None:
    """Raises ValueError for networks that are trained elsewhere, and for other sample rates."""
    what = {"mask": "expert", "autoencoder": "dae"}.get(file.kind)
    where = f"python -m mnn.train {what} --init FILE" if what else "with what made it"
    fix = f"work on it without training, and train the result on: {where}"
    if file.require_kind(WAVEFORM, COMPLEX_MASK, fix=fix) == COMPLEX_MASK:
        conventions_of(file)
    for layer in file.layers:
        if layer.class_name == "Bidirectional":
            raise ValueError(
                f"{file.path}: {layer.where} would read the padding behind an utterance of a batch "
                "first; work on it without training"
            )


def conventions_of(file: ModelFile) -> TimeFrequencyConfig:
    """Returns the conventions of a network over time and frequency.

    Raises:
        ValueError: It is another network, or our training has other conventions.
    """
    file.require_kind(COMPLEX_MASK)
    found = MaskConventions.of(file.meta)
    try:
        return replace(TimeFrequencyConfig(), stft=found.stft, power=found.power)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None


def continuation(
    file: ModelFile, asked: TrainOn, learning_rate: float, test_folder: Path
) -> Continuation:
    """Returns everything that is needed to train a finished model further.

    The loss is the one that the model was trained with, unless a recipe is asked for: another loss
    would move it elsewhere. The learning rate is small; the recipes' rates are for new networks.

    Args:
        file: The model, of a kind that passes `check_trains`.
        asked: On what, and how.
        learning_rate: Where nothing else is asked for.
        test_folder: Where test mixtures are written, if there are none on disk.

    Raises:
        ValueError: A setting says nothing to this kind, or no data are found.
    """
    check_trains(file)
    if file.kind == COMPLEX_MASK:
        return _of_pieces(file, asked, learning_rate, test_folder)
    settings = RECIPES[recipe_of(RECIPES, asked.data, asked.recipe)] | {
        "learning_rate": learning_rate
    }
    loss = _stored_loss(file)
    if asked.recipe is None and isinstance(loss, str) and loss in LOSSES:
        settings["loss"] = loss
    settings |= asked.settings
    config, changes = training_config(settings), augmentation(settings)
    data = load_data(asked.data, test_folder, changes, settings.get("snr_range"), asked.num_jobs)
    training, validation = training_parts(data, config, changes.gain_db)
    return Continuation(
        training, validation, config, data.test, data.description, {"kind": WAVEFORM}
    )


def _of_pieces(
    file: ModelFile, asked: TrainOn, learning_rate: float, test_folder: Path
) -> Continuation:
    conventions = conventions_of(file)
    for name, flag in _OF_WAVEFORMS.items():
        if name in asked.settings:
            raise ValueError(
                f"{flag} is for networks from waveform to waveform, {file.path} is one over time "
                "and frequency; leave it out"
            )
    data = asked.data
    recipe = recipe_of(TF_RECIPES, data, asked.recipe)
    if recipe not in TF_RECIPES:
        raise ValueError(
            f"--recipe {recipe} is for networks from waveform to waveform, {file.path} is one over "
            f"time and frequency; give {' or '.join(TF_RECIPES)}"
        )
    settings = {k: v for k, v in TF_RECIPES[recipe].items() if k not in ("hours", "warmup_steps")}
    if recipe == "quick":
        settings["num_items"] = QUICK_PIECES
    settings |= {"learning_rate": learning_rate, "schedule": "constant"}
    config = training_config({**settings, **asked.settings}, loss=_mask_loss_of(file))
    mixing = mixing_config(asked.settings, is_premixed=data.noisy is not None)
    training, validation, description = load_pieces(data, mixing, config, 1)
    changes = augmentation(asked.settings)
    test = load_data(data, test_folder, changes, num_jobs=asked.num_jobs).test
    return Continuation(
        training, validation, config, test,
        f"{description}, {len(test)} test mixtures", conventions.meta(), conventions,
    )  # fmt: skip


def _stored_loss(file: ModelFile) -> Any:
    """Returns what a file, possibly a stranger's, says of the loss it was trained with."""
    training = file.meta.get("training")
    return training.get("loss") if isinstance(training, dict) else None


def _mask_loss_of(file: ModelFile) -> MaskLoss:
    """Returns the loss that a model was trained with; ours if its file says nothing clear."""
    stored = _stored_loss(file)
    names = {field.name for field in fields(MaskLoss)}
    if not isinstance(stored, dict) or stored.keys() != names:
        return MaskLoss()
    try:
        return MaskLoss(**stored)
    except (TypeError, ValueError):
        return MaskLoss()
