"""What it takes to train a finished model on: data, settings and loss that suit its kind.

For the commands that take something from a model and train what is left: pruning, quantization.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.modelfile.meta import MaskConventions
from speech.modelfile.spec import COMPLEX_MASK, WAVEFORM, ModelFile
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import TimeFrequencyConfig
from speech.training.common_options import augmentation, train_on, training_config
from speech.training.config import TrainingConfig
from speech.training.datasets import load_data, load_pieces, training_parts
from speech.training.options import TF_RECIPES, DataOptions, mixing_config

if TYPE_CHECKING:
    from speech.training.trainer import MakeModel

#: Pieces per epoch on the bundled corpus, for networks over time and frequency.
QUICK_PIECES = 800

#: Options of `speech.training.common_options` that say nothing to a network over time and
#: frequency.
_OF_WAVEFORMS = {"loss": "--loss", "gain_db": "--gain"}


@dataclass(frozen=True)
class Continuation:
    """What it takes to train a model on.

    Attributes:
        training: ``speech.data.pipeline.TrainingData`` or ``speech.training.pieces.PieceData``.
        validation: Likewise.
        config: How to train.
        test: ``speech.data.corpus.Pair`` objects to score on.
        description: The data in one line.
        meta: ``speech_meta`` of what is saved on the way.
        conventions: Those of a network over time and frequency; None for one over waveforms.
    """

    training: Any
    validation: Any
    config: TrainingConfig
    test: list[Any]
    description: str
    meta: dict[str, Any]
    conventions: TimeFrequencyConfig | None = None

    @property
    def make_model(self) -> MakeModel | None:
        """What trains the network, as `speech.training.trainer.Trainer` takes it."""
        if self.conventions is None:
            return None
        from speech.net.training_model import MaskTrainingModel

        conventions, loss = self.conventions, self.config.loss
        assert isinstance(loss, MaskLoss)
        return lambda network, engine: MaskTrainingModel(network, conventions, loss, engine)


def check_trains(file: ModelFile) -> None:
    """Raises ValueError for networks that are trained elsewhere, and for other sample rates."""
    what = {"mask": "expert", "autoencoder": "dae"}.get(file.kind)
    where = f"python -m mnn.train {what} --init FILE" if what else "with what made it"
    fix = f"work on it without training, and train the result on: {where}"
    if file.require_kind(WAVEFORM, COMPLEX_MASK, fix=fix) == COMPLEX_MASK:
        conventions_of(file)


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
    file: ModelFile, options: argparse.Namespace, learning_rate: float, test_folder: Path
) -> Continuation:
    """Returns what trains a model on, by the options of a command.

    The loss is that which the model was trained with.

    Args:
        file: The model, of a kind that passes `check_trains`.
        options: Of ``speech.training.common_options``, checked; what they leave open is filled in.
        learning_rate: Where nothing else is asked for.
        test_folder: Where test mixtures are written, if there are none on disk.

    Raises:
        ValueError: An option says nothing to this kind, or no data are found.
    """
    if file.kind == COMPLEX_MASK:
        return _of_pieces(file, options, learning_rate, test_folder)
    train_on(options, file.meta, learning_rate)
    config = training_config(options)
    data = load_data(options, test_folder)
    training, validation = training_parts(data, config, augmentation(options).gain_db)
    return Continuation(
        training, validation, config, data.test, data.description, {"kind": WAVEFORM}
    )


def _of_pieces(
    file: ModelFile, options: argparse.Namespace, learning_rate: float, test_folder: Path
) -> Continuation:
    conventions = conventions_of(file)
    for name, flag in _OF_WAVEFORMS.items():
        if getattr(options, name) is not None:
            raise ValueError(
                f"{flag} is for networks from waveform to waveform, {file.path} is one over time "
                "and frequency; leave it out"
            )
    data = DataOptions.of(options)
    recipe = options.recipe or ("quick" if data.is_bundled else "best")
    if recipe not in TF_RECIPES:
        raise ValueError(
            f"--recipe {recipe} is for networks from waveform to waveform, {file.path} is one over "
            f"time and frequency; give {' or '.join(TF_RECIPES)}"
        )
    names = {field.name for field in fields(TrainingConfig)} - {"hours", "warmup_steps", "init"}
    settings = {name: x for name, x in TF_RECIPES[recipe].items() if name in names}
    if recipe == "quick":
        settings["num_items"] = QUICK_PIECES
    settings |= {
        "learning_rate": learning_rate,
        "loss": _loss_of(file.meta),
        "schedule": "constant",
    }
    asked = {name: x for name, x in vars(options).items() if x is not None}
    settings |= {name: x for name, x in asked.items() if name in (*names, "warmup_steps")}
    config = TrainingConfig(**settings)
    training, validation, description = load_pieces(data, mixing_config(options), config, 1)
    test = load_data(options, test_folder).test
    return Continuation(
        training, validation, config, test,
        f"{description}, {len(test)} test mixtures", conventions.meta(), conventions,
    )  # fmt: skip


def _loss_of(meta: Mapping[str, Any]) -> MaskLoss:
    """Returns the loss that a model was trained with; ours if its file says nothing clear."""
    training = meta.get("training")
    stored = training.get("loss") if isinstance(training, dict) else None
    names = {field.name for field in fields(MaskLoss)}
    if not isinstance(stored, dict) or stored.keys() != names:
        return MaskLoss()
    try:
        return MaskLoss(**stored)
    except (TypeError, ValueError):
        return MaskLoss()
