"""The training loop: the same command starts a run, takes it up after a kill, and ends it.

In the output folder stand ``model.h5`` (best validation error), ``last.h5``, ``history.csv``,
``learning_curve.png``, ``run.json`` and ``checkpoint.npz``. The checkpoint is one file, written
whole: weights, best weights, optimizer state, position in the data and history belong together,
so a run that is taken up goes on as if it had never stopped.

Of several machines (``speech.distribution``) the first one alone has the folder; the others take
the state of the run from it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from speech.conv import TrainingModel
from speech.distribution import EveryNth, Machines, Replicas, Share, local_devices
from speech.files import held, write_json, write_npz, write_text
from speech.losses import find_loss
from speech.pipeline import Batch, Batches, TrainingData, data_fingerprint, prefetched
from speech.runinfo import run_info
from speech.weights import save_model

_LOGGER = logging.getLogger("speech")
SCHEDULES = ("constant", "cosine")
MAX_COUNT = 10**9


class TrainingError(ValueError):
    """Training can't go on; the last good checkpoint stands."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The defaults are those of the published script (SPEC 1).

    Attributes:
        epochs: Passes of ``num_items`` utterances.
        num_items: Utterances an epoch; None for one pass over the data.
        batch_size: Utterances a step.
        crop_seconds: Longest piece of an utterance that is used; None for whole utterances.
        learning_rate: Adam's.
        schedule: 'constant', or 'cosine' down to a hundredth over the whole run.
        warmup_steps: The learning rate first rises in a straight line over so many steps.
        loss: One of ``speech.losses.LOSSES``.
        clip_norm: Gradients are scaled down to this global norm (Pascanu et al. 2013); None
            for as they are.
        ema: Weights are averaged with this momentum, step by step (Polyak and Juditsky 1992); the
            average is validated and saved. None for the weights as they are.
        init: SHA-256 of the model file, or of the weights, that start the run; None for random
            ones.
        seed: Of weights, order, mixing and crops.
        conv: 'fast' or 'keras': see :class:`speech.conv.TrainingModel`.
    """

    epochs: int = 60
    num_items: int | None = 30000
    batch_size: int = 1
    crop_seconds: float | None = None
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    loss: str = "mse"
    clip_norm: float | None = None
    ema: float | None = None
    init: str | None = None
    seed: int = 0
    conv: str = "fast"

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        for name in ("epochs", "batch_size", "num_items"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_COUNT:
                raise ValueError(f"{name} is {value}; give a number from 1 to {MAX_COUNT}")
        if self.crop_seconds is not None and not 0.1 <= self.crop_seconds <= 3600:
            raise ValueError(f"crop_seconds is {self.crop_seconds}; give 0.1 to 3600")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; give a positive number")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; give one of {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup_steps <= MAX_COUNT:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; give 0 to {MAX_COUNT}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm is {self.clip_norm}; give a positive number")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is {self.ema}; give a number between 0 and 1, such as 0.999")
        find_loss(self.loss)

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Returns the learning rate of a step, counted from 0 over the whole run."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        part = (step - self.warmup_steps) / max(num_steps - self.warmup_steps, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
        return self.learning_rate * (0.01 + 0.99 * cosine)

    def ema_at(self, step: int) -> float:
        """Returns the momentum of the average at a step: it starts at 0.1 and rises to ``ema``."""
        assert self.ema is not None
        return min(self.ema, (1 + step) / (10 + step))


@dataclass
class _State:
    """Where a run stands; all of it goes into one checkpoint."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_weights: list[np.ndarray] | None = None
    average: list[np.ndarray] | None = None

    @property
    def best_loss(self) -> float:
        """Smallest validation error so far."""
        return min((row["validation_loss"] for row in self.history), default=math.inf)


class Trainer:
    """Trains a plain Keras network and keeps everything in one folder.

    Args:
        network: The plain model (``speech.fcn.build_fcn``); trained in place.
        training: Its ``batch_size``, ``num_items`` and ``crop_samples`` are used as they are.
        validation: Read in order, never shuffled.
        config: See :class:`TrainingConfig`.
        out: Folder of the run.
        meta: What goes into the ``speech_meta`` of the model files.
        checkpoint_seconds: Also write a checkpoint within an epoch, so often.
        machines: All machines of the run; None for this one alone.
        devices: Of this machine, to share each step; default: its GPUs, if there are several.

    Raises:
        ValueError: There are more devices than utterances in a step.
    """

    def __init__(
        self,
        network: keras.Model,
        training: TrainingData,
        validation: TrainingData,
        config: TrainingConfig,
        out: Path,
        *,
        meta: dict[str, Any] | None = None,
        checkpoint_seconds: float = 300.0,
        machines: Machines | None = None,
        devices: Sequence[str] | None = None,
    ) -> None:
        self.network = network
        self.training = training
        self.validation = validation
        self.config = config
        self.out = Path(out)
        self.meta = meta or {}
        self.checkpoint_seconds = checkpoint_seconds
        self.machines = machines
        self.writes = machines is None or machines.rank == 0
        devices = local_devices() if devices is None else devices
        # The C kernels use all cores by themselves, for one batch at a time.
        conv = "keras" if len(devices) > 1 else config.conv
        self.model = TrainingModel(network, conv, find_loss(config.loss))
        self.optimizer = keras.optimizers.Adam(
            config.learning_rate,
            beta_1=0.9,
            beta_2=0.999,
            epsilon=1e-8,
            global_clipnorm=config.clip_norm,
        )
        # No XLA: it would compile anew for every length, and can't call the C kernels.
        self.model.compile(
            optimizer=self.optimizer,
            weighted_metrics=[] if config.loss == "mse" else ["mse"],
            jit_compile=False,
        )
        self.optimizer.build(network.trainable_variables)
        self._replicas = None
        if len(devices) > 1 or machines is not None:
            self._replicas = Replicas(self.model, devices, machines, training.batch_size)
        self.state = _State()
        self.waited_seconds = 0.0
        self._fingerprint = {
            "data": data_fingerprint(training.source),
            "gain_db": training.gain_db and list(training.gain_db),
            "parameters": int(network.count_params()),
            **{k: v for k, v in asdict(config).items() if k not in ("epochs", "conv")},
            **({"epochs": config.epochs} if config.schedule != "constant" else {}),
        }

    @property
    def num_devices(self) -> int:
        """On how many devices, of all machines, a step is computed."""
        return 1 if self._replicas is None else self._replicas.total

    @property
    def checkpoint_path(self) -> Path:
        """The file that holds the whole state of the run."""
        return self.out / "checkpoint.npz"

    def run(self, on_epoch: Callable[[dict[str, float]], None] | None = None) -> _State:
        """Trains to the end, from wherever the folder's checkpoint stands.

        Returns:
            The final state; its ``history`` has one row an epoch.

        Raises:
            TrainingError: The error is not finite, the folder holds another run, or another machine
                trains something else.
            MachineLostError: Another machine has ended.
            ValueError: Another run is at work in the folder.
        """
        with held(self.out) if self.writes else contextlib.nullcontext():
            if self.writes:
                self._resume()
            self._share_state()
            while self.state.epoch < self.config.epochs:
                row = self._epoch()
                self._share_state()  # machines of another kind round in another way
                if on_epoch is not None:
                    on_epoch(row)
        if self.state.best_weights is not None:
            self.network.set_weights(self.state.best_weights)
        return self.state

    def _epoch(self) -> dict[str, float]:
        state, data = self.state, self.training.at_epoch(self.state.epoch)
        started = written = time.monotonic()
        num_steps = self.config.epochs * len(data)
        before = state.seconds
        bar = _progress(data, state, self.config.epochs, None if self.writes else True)
        waiting = time.monotonic()
        batches: Batches[Batch | Share] = data
        if self._replicas is not None:
            batches = self._replicas.shares(data)
        for batch in prefetched(batches, first=state.batch):
            self.waited_seconds += time.monotonic() - waiting
            step = state.epoch * len(data) + state.batch
            self.optimizer.learning_rate = self.config.learning_rate_at(step, num_steps)
            loss = self._step(batch)
            if not math.isfinite(loss):
                self._diverged(f"training error became {loss}", f"step {state.batch + 1}")
            if self.config.ema is not None:
                self._average(step)
            place = state.batch * data.batch_size
            state.loss_sum += loss * min(data.batch_size, data.num_items - place)
            state.batch += 1
            state.seconds = before + time.monotonic() - started
            bar.set_postfix_str(
                f"{self.config.loss} {state.loss_sum / (state.batch * data.batch_size):.5f}"
            )
            bar.update()
            if self.writes and time.monotonic() - written > self.checkpoint_seconds:
                # The step of a finite error may have spoilt them; the next error would tell.
                if not all(np.isfinite(array).all() for array in self.network.get_weights()):
                    self._diverged("weights became infinite or NaN", f"step {state.batch}")
                self._save_checkpoint()
                written = time.monotonic()
            waiting = time.monotonic()
        bar.close()
        with self._averaged():
            errors = self._validate()
            weights = [np.array(array) for array in self.network.get_weights()]
        if not math.isfinite(errors["validation_loss"]):
            self._diverged(f"validation error became {errors['validation_loss']}", "at its end")
        last_step = (state.epoch + 1) * len(data) - 1
        row = {
            "epoch": state.epoch + 1,
            "training_loss": state.loss_sum / data.num_items,
            **errors,
            "learning_rate": float(self.config.learning_rate_at(last_step, num_steps)),
            "seconds": before + time.monotonic() - started,
        }
        if row["validation_loss"] < state.best_loss:
            state.best_weights = weights
        state.history.append(row)
        state.epoch, state.batch, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0
        if self.writes:
            self._save_models()
            self._save_checkpoint()
        return row

    def _diverged(self, what: str, where: str) -> None:
        kept = self.out / "last.h5"
        good = f"the last good model is {kept}" if kept.exists() else "no model was written"
        raise TrainingError(
            f"the {what} in epoch {self.state.epoch + 1}, {where}; {good}; try a smaller "
            f"--learning-rate than {self.config.learning_rate:g}"
        )

    def _step(self, batch: Batch | Share) -> float:
        if isinstance(batch, Share):
            assert self._replicas is not None
            return self._replicas.step(batch)
        logs = self.model.train_on_batch(
            (batch.noisy, batch.lengths),
            batch.clean,
            sample_weight=batch.weights,
            return_dict=True,
        )
        return float(logs["loss"])

    def _validate(self) -> dict[str, float]:
        """Returns the mean loss of the validation data and, if it is another, the mean MSE."""
        totals = {name: 0.0 for name in ("loss", "mse")[: 1 + (self.config.loss != "mse")]}
        data: Batches[Batch] = self.validation
        machines = self.machines
        if machines is not None:
            data = EveryNth(self.validation, machines.rank, machines.count)
        for batch in prefetched(data):
            logs = self.model.test_on_batch(
                (batch.noisy, batch.lengths),
                batch.clean,
                sample_weight=batch.weights,
                return_dict=True,
            )
            for name, value in logs.items():
                totals[name] += float(value) * len(batch.lengths)
        if machines is not None:
            sums = machines.sum(np.array(list(totals.values())))
            totals = dict(zip(totals, sums.tolist(), strict=True))
        return {
            f"validation_{name}": total / self.validation.num_items
            for name, total in totals.items()
        }

    def _average(self, step: int) -> None:
        """Moves the average of the weights by one step."""
        weights = self.network.get_weights()
        if self.state.average is None:
            self.state.average = [np.array(array) for array in weights]
        share = np.float32(1 - self.config.ema_at(step))
        for average, array in zip(self.state.average, weights, strict=True):
            average += share * (array - average)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the average of the weights, if there is one, into the network for a while."""
        if self.state.average is None:
            yield
            return
        current = [np.array(array) for array in self.network.get_weights()]
        self.network.set_weights(self.state.average)
        try:
            yield
        finally:
            self.network.set_weights(current)

    def _save_models(self) -> None:
        meta = {
            **self.meta,
            "training": {
                **asdict(self.config),
                "epochs_done": self.state.epoch,
                "validation_loss": self.state.best_loss,
                "data_sha256": self._fingerprint["data"],
            },
        }
        with self._averaged():
            save_model(self.network, self.out / "last.h5", meta)
        current = self.network.get_weights()
        self.network.set_weights(self.state.best_weights)
        save_model(self.network, self.out / "model.h5", meta)
        self.network.set_weights(current)
        write_history(self.out / "history.csv", self.state.history)
        write_json(
            self.out / "run.json",
            {
                "config": asdict(self.config),
                "meta": self.meta,
                "fingerprint": self._fingerprint,
                "c_kernels": self.model.uses_c_kernels,
                **run_info(),
            },
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        """Returns the whole state of the run."""
        state = self.state
        arrays = {f"weight_{i}": w for i, w in enumerate(self.network.get_weights())}
        arrays |= {f"optimizer_{i}": v.numpy() for i, v in enumerate(self.optimizer.variables)}
        arrays |= {f"best_{i}": w for i, w in enumerate(state.best_weights or [])}
        arrays |= {f"average_{i}": w for i, w in enumerate(state.average or [])}
        arrays["state"] = np.frombuffer(
            json.dumps(
                {
                    "fingerprint": self._fingerprint,
                    "epoch": state.epoch,
                    "batch": state.batch,
                    "loss_sum": state.loss_sum,
                    "seconds": state.seconds,
                    "history": state.history,
                }
            ).encode(),
            np.uint8,
        )
        return arrays

    def _save_checkpoint(self) -> None:
        write_npz(self.checkpoint_path, self._arrays())

    def _resume(self) -> None:
        if not self.checkpoint_path.exists():
            return
        try:
            with open(self.checkpoint_path, "rb") as stream:
                with np.load(stream, allow_pickle=False) as file:
                    arrays = dict(file)
            json.loads(arrays["state"].tobytes())["fingerprint"]
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise TrainingError(
                f"{self.checkpoint_path}: not a readable checkpoint ({error}); "
                "delete it to start anew"
            ) from None
        self._restore(
            arrays,
            f"{self.out}",
            "repeat its command, choose another --out, or delete the folder",
        )
        if self.state.epoch < self.config.epochs:
            _LOGGER.info(
                "going on with %s: epoch %d, step %d",
                self.out, self.state.epoch + 1, self.state.batch + 1,
            )  # fmt: skip
        else:
            _LOGGER.info("%s: %d epochs are done", self.out, self.state.epoch)

    def _share_state(self) -> None:
        """Gives all machines the state of the first one."""
        if self.machines is None:
            return
        stream = io.BytesIO()
        if self.writes:
            np.savez(stream, **self._arrays())  # type: ignore[arg-type]
        content = self.machines.broadcast(stream.getvalue())
        if not self.writes:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
            self._restore(arrays, "the first machine", "give all the same command and data")

    def _restore(self, arrays: dict[str, np.ndarray], whose: str, advice: str) -> None:
        """Takes the state of the run from what `_arrays` returned."""
        stored = json.loads(arrays["state"].tobytes())
        for name, value in self._fingerprint.items():
            other = stored["fingerprint"].get(name)
            if other != value:
                raise TrainingError(
                    f"{whose} holds a run with {name} {other!r}, not {value!r}; {advice}"
                )
        self.network.set_weights(_numbered(arrays, "weight"))
        for variable, value in zip(
            self.optimizer.variables, _numbered(arrays, "optimizer"), strict=True
        ):
            variable.assign(value)
        self.state = _State(
            stored["epoch"],
            stored["batch"],
            stored["loss_sum"],
            stored["seconds"],
            stored["history"],
            _numbered(arrays, "best") or None,
            _numbered(arrays, "average") or None,
        )


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Writes the history as CSV, one row an epoch."""
    table = io.StringIO()
    writer = csv.DictWriter(table, history[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, table.getvalue())


def _numbered(arrays: dict[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    while (name := f"{prefix}_{len(found)}") in arrays:
        found.append(arrays[name])
    return found


def _progress(data: TrainingData, state: _State, epochs: int, disable: bool | None) -> Any:
    import sys

    from tqdm import tqdm

    return tqdm(
        total=len(data), initial=state.batch, desc=f"epoch {state.epoch + 1}/{epochs}",
        file=sys.stderr, disable=disable, leave=False, unit="step",
    )  # fmt: skip
