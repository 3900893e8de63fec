"""A run from its first line to its last: what the commands that train a network have in common."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from speech.base.files import write_text
from speech.data.pipeline import TrainingData
from speech.net.fcn import FCNConfig, build_fcn
from speech.net.keras_models import load_model_and_meta
from speech.net.losses import DESCRIPTIONS
from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.augment import Augmentation
from speech.sound.pictures import learning_curve
from speech.training.config import TrainingConfig
from speech.training.datasets import Data, training_parts
from speech.training.distribution import Machines
from speech.training.pieces import PieceData
from speech.training.trainer import MakeModel, Trainer

#: Waiting for data that is worth a line.
_WAITING_SHARE = 0.1

#: What the loss of the network over time and frequency is, for the axis of a figure.
_SPECTRAL = "weighted error of compressed spectra"


def train_fcn(
    data: Data,
    config: TrainingConfig,
    augmentation: Augmentation,
    out: Path,
    *,
    recipe: str,
    created_by: str,
    num_filters: int,
    init: Path | None = None,
    **settings: Any,
) -> Trainer:
    """Trains the FCN.

    Args:
        data: Of `speech.training.datasets.load_data` or `load_training`.
        config: How to train.
        augmentation: What has been done to the data, apart from the gain, which is done here.
        out: Folder of the run.
        recipe: Name of the recipe, for the model file.
        created_by: The command, likewise.
        num_filters: Of a new network.
        init: Model file whose weights start the run.
        settings: Further arguments of `train`.

    Returns:
        The trainer, its run done.

    Raises:
        ValueError: ``init`` is no network from waveform to waveform.
    """
    if init is None:
        network = build_fcn(FCNConfig(num_filters=num_filters), seed=config.seed)
    else:
        network = _waveform_network(init)
    training, validation = training_parts(data, config, augmentation.gain_db)
    meta = {
        "kind": "waveform",
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "created_by": created_by,
        "recipe": recipe,
        "augmentation": augmentation.description(),
    }
    return train(network, training, validation, config, out, title="FCN", meta=meta, **settings)


def _waveform_network(path: Path) -> keras.Model:
    network, meta = load_model_and_meta(path)
    if meta.get("kind", "waveform") != "waveform" or network.output_shape != (None, None, 1):
        raise ValueError(f"{path}: is not a network from waveform to waveform; choose another")
    return network


def train(
    network: keras.Model,
    training: TrainingData | PieceData,
    validation: TrainingData | PieceData,
    config: TrainingConfig,
    out: Path,
    *,
    title: str,
    meta: dict[str, Any],
    make_model: MakeModel | None = None,
    machines: Machines | None = None,
    tensorboard: Path | None = None,
    clips: Sequence[Any] = (),
) -> Trainer:
    """Trains a network to the end, says how far it is, and draws the learning curve.

    Args:
        network: As `Trainer` takes it, like all that is not named here.
        training: Likewise.
        validation: Likewise.
        config: Likewise.
        out: Likewise; the learning curve and ``model.json`` stand there as well.
        title: Of the curve: what network it is.
        meta: Likewise.
        make_model: Likewise.
        machines: Likewise.
        tensorboard: Folder for TensorBoard; None for none.
        clips: ``speech.data.corpus.Pair`` objects that may be heard there.

    Returns:
        The trainer, its run done.
    """
    trainer = Trainer(
        network, training, validation, config, out,
        make_model=make_model, meta=meta, machines=machines,
    )  # fmt: skip
    engine = "C kernels" if trainer.model.uses_c_kernels else "Keras convolutions"
    devices = f", {trainer.num_devices} devices" if trainer.num_devices > 1 else ""
    if config.hours is None:
        length = f"{len(training)} steps per epoch, {config.epochs} epochs"
    else:
        length = f"{config.hours:g} hours, batches of {config.batch_size}"
    print(f"training    {length}, {engine}{devices}", flush=True)
    if not trainer.writes:
        trainer.run()
        return trainer
    log = None
    if tensorboard is not None:
        from speech.training.tensorboard import TensorBoardLog

        print(f"tensorboard {tensorboard}")
        newest = out / ("last.h5" if config.hours is None else "model.h5")
        log = TensorBoardLog(tensorboard, clips, newest, config.epochs or 0)
    label = DESCRIPTIONS[config.loss] if isinstance(config.loss, str) else _SPECTRAL

    def draw() -> None:
        if trainer.state.history:
            learning_curve(
                trainer.state.history, out / "learning_curve.png", f"{title}, {label}", label
            )

    def report(row: dict[str, float]) -> None:
        print(_line(row, config), flush=True)
        draw()
        if log is not None:
            log.epoch(trainer.state.history)

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "model.json", network.to_json(indent=2) + "\n")
    started = time.perf_counter()
    trainer.run(report)
    waited = trainer.waited_seconds / (time.perf_counter() - started)
    if waited > _WAITING_SHARE:
        print(f"note        the steps waited for data {100 * waited:.0f} % of the time")
    draw()
    if log is not None:
        log.close(trainer.state.history)
    return trainer


def _line(row: dict[str, float], config: TrainingConfig) -> str:
    """Returns a row of the history for people."""
    errors = f"training {row['training_loss']:.5f}  validation {row['validation_loss']:.5f}"
    if config.hours is None:
        return f"epoch {row['epoch']:3d}/{config.epochs}  {errors}  {row['seconds']:.1f} s"
    share = 100 * row["hours"] / config.hours
    return f"{row['hours']:.3f} h {share:4.0f} %  step {row['steps']:6d}  {errors}"
