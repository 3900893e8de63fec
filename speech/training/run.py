"""A run from its first line to its last: what the commands that train a network have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.base import lazy
from speech.base.files import write_text
from speech.base.lazy import keras
from speech.data.corpus import Pair
from speech.data.pipeline import TrainingData
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import COMPLEX_MASK, WAVEFORM
from speech.net.blockconv import default_threads
from speech.net.keras_models import build_model
from speech.net.losses import DESCRIPTIONS
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import SIZES
from speech.net.widening import widened
from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.pictures import learning_curve
from speech.training.config import TrainingConfig
from speech.training.continuing import conventions_of
from speech.training.datasets import Data, load_pieces, load_training, training_parts
from speech.training.distribution import Machines
from speech.training.pieces import PieceData
from speech.training.request import NETWORKS, Request
from speech.training.teaching import TaughtPieces
from speech.training.tensorboard import TensorBoardLog
from speech.training.trainer import MakeModel, Trainer

if TYPE_CHECKING:
    from speech.net import chain_training, training_model
else:
    chain_training = lazy.module("speech.net.chain_training")
    training_model = lazy.module("speech.net.training_model")

#: A line is printed if more than this share of the time is spent waiting for data.
_WAITING_SHARE = 0.1

#: The loss of the network over time and frequency, as the axis of a figure names it.
_SPECTRAL = "weighted error of compressed spectra"


def train_request(
    asked: Request,
    *,
    machines: Machines | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Trainer:
    """Trains what is asked for: what ``python -m speech.train`` does.

    Args:
        asked: The network, how and on what it is trained, and the folder of the run. Devices are
            the caller's (`speech.base.device.select_devices`).
        machines: Those that train together; None for this one alone.
        say: Called with lines for people.

    Returns:
        The trainer, its run done; the model is ``asked.out / "model.h5"``.

    Raises:
        ValueError: No data are found, ``asked.init`` is of another kind, or the folder holds
            another run.
    """
    if NETWORKS[asked.network].kind == COMPLEX_MASK:
        return _train_mask(asked, machines, say)
    data = load_training(asked.data, asked.augmentation, asked.snr_range_db)
    say(f"data        {data.description}")
    if data.left_out:
        say(f"left out    {data.left_out}")
    return train_waveform(
        data, asked, created_by="python -m speech.train", machines=machines, say=say
    )


def _train_mask(asked: Request, machines: Machines | None, say: Callable[[str], None]) -> Trainer:
    config = asked.training
    training, validation, description = load_pieces(
        asked.data, asked.mixing, config, _workers(asked)
    )
    say(f"data        {description}; pieces of {config.crop_seconds:g} s")
    if asked.teacher is not None:
        training.source = TaughtPieces(training.source, asked.teacher, asked.teacher_share)
        say(f"teacher     {asked.teacher}, {100 * asked.teacher_share:g} % of each target")
    if asked.init is None:
        network, form = NETWORKS[asked.network].build(asked)
        assert form is not None
        words = asked.size or asked.network
    else:
        file = read_model_file(asked.init)
        network, form = build_model(file.layers), conventions_of(file)
        words = f"as in {asked.init}"
        if asked.size is not None:
            network, words = (
                widened(network, SIZES[asked.size]),
                f"{asked.size}, widened from {asked.init}",
            )
    say(f"network     over time and frequency, {words}, {network.count_params():,} weights")
    loss = config.loss
    assert isinstance(loss, MaskLoss)
    meta = {
        **form.meta(),
        "created_by": "python -m speech.train",
        "recipe": asked.recipe,
        "mixing": training.source.description()[-1:]
        if asked.data.noisy
        else asked.mixing.description(),
    }
    return train(
        network, training, validation, config, asked.out,
        make_model=lambda network, engine: training_model.MaskTrainingModel(
            network, form, loss, engine
        ),
        title=NETWORKS[asked.network].title, meta=meta, machines=machines,
        tensorboard=asked.tensorboard, say=say,
    )  # fmt: skip


def _workers(asked: Request) -> int:
    """Returns how many processes mix; one keeps up with a CPU, but not with a GPU."""
    if asked.workers is not None:
        return asked.workers
    return 1 if chain_training.uses_c_kernels() else max(1, min(8, default_threads() // 2))


def train_waveform(data: Data, asked: Request, *, created_by: str, **settings: Any) -> Trainer:
    """Trains a network from waveform to waveform, such as the FCN.

    Args:
        data: Of `speech.training.datasets.load_data` or `load_training`, with the augmentation
            that is asked for but for the gain, which is done here.
        asked: How to train, from what start, and the folder of the run.
        created_by: The command, for the model file.
        settings: Further arguments of `train`.

    Returns:
        The trainer, its run done.

    Raises:
        ValueError: ``asked.init`` is no network from waveform to waveform.
    """
    config = asked.training
    if asked.init is None:
        network, _ = NETWORKS[asked.network].build(asked)
    else:
        file = read_model_file(asked.init)
        file.require_waveform()
        network = build_model(file.layers)
    training, validation = training_parts(data, config, asked.augmentation.gain_db)
    meta = {
        "kind": WAVEFORM,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "created_by": created_by,
        "recipe": asked.recipe,
        "augmentation": asked.augmentation.description(),
    }
    return train(
        network, training, validation, config, asked.out,
        title=NETWORKS[asked.network].title, meta=meta, tensorboard=asked.tensorboard, **settings,
    )  # fmt: skip


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
    clips: Sequence[Pair] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Trainer:
    """Trains a network to the end, tells how far it is, and draws the learning curve.

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
        clips: What may be heard there.
        say: Called with lines for people.

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
    say(f"training    {length}, {engine}{devices}")
    if not trainer.writes:
        trainer.run()
        return trainer
    log = None
    if tensorboard is not None:
        say(f"tensorboard {tensorboard}")
        newest = out / ("last.h5" if config.hours is None else "model.h5")
        log = TensorBoardLog(tensorboard, clips, newest, config.epochs or 0)
    label = DESCRIPTIONS[config.loss] if isinstance(config.loss, str) else _SPECTRAL

    def draw() -> None:
        if trainer.state.history:
            learning_curve(
                trainer.state.history, out / "learning_curve.png", f"{title}, {label}", label
            )

    def report(row: dict[str, float]) -> None:
        say(_line(row, config))
        draw()
        if log is not None:
            log.epoch(trainer.state.history)

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "model.json", network.to_json(indent=2) + "\n")
    started = time.perf_counter()
    trainer.run(report)
    waited = trainer.waited_seconds / (time.perf_counter() - started)
    if waited > _WAITING_SHARE:
        say(f"note        the steps waited for data {100 * waited:.0f} % of the time")
    draw()
    if log is not None:
        log.close(trainer.state.history)
    return trainer


def _line(row: dict[str, float], config: TrainingConfig) -> str:
    """Returns a row of the history as a line for people to read."""
    errors = f"training {row['training_loss']:.5f}  validation {row['validation_loss']:.5f}"
    if config.hours is None:
        return f"epoch {row['epoch']:3d}/{config.epochs}  {errors}  {row['seconds']:.1f} s"
    share = 100 * row["hours"] / config.hours
    return f"{row['hours']:.3f} h {share:4.0f} %  step {row['steps']:6d}  {errors}"
