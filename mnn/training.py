"""Trains a network over frames; the same command resumes an interrupted run where it stopped.

An iteration is one update on a batch of frames. Each pass shuffles all frames anew, and the frames
of a batch follow from the seed and the number of the iteration alone. A recurrent network learns
from pieces of utterances, shuffled likewise; a batch of pieces has about as many frames. The error
is the sum of squared errors over the bins, averaged over the frames of a batch (MNN, section 4.1;
the factor makes no difference to Rprop). At regular intervals the whole validation set is run
without dropout, and the weights with the smallest error are kept; if that error does not fall for
too long, training ends early.

Beside ``NAME.h5`` lie ``NAME.history.csv`` and ``NAME.run.json``, and ``NAME.checkpoint.npz`` until
the run is done. A run whose error is not finite any more leaves the best weights so far in
``NAME.best.h5``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from mnn.config import FitConfig
from speech.base import cli, lazy
from speech.base.checkpoint import read_checkpoint, write_checkpoint
from speech.base.files import held, write_json
from speech.base.lazy import keras, tqdm
from speech.base.runinfo import run_info
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import ModelFileError
from speech.net.keras_models import save_model
from speech.training.config import TrainingError
from speech.training.trainer import write_history

if TYPE_CHECKING:
    from mnn import rprop
else:
    rprop = lazy.module("mnn.rprop")

_LOGGER = logging.getLogger("speech")


@dataclass
class _State:
    iteration: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: list[np.ndarray] | None = None

    @property
    def best_row(self) -> dict[str, float] | None:
        """The row of the smallest validation error."""
        return min(self.history, key=lambda row: row["validation_error"], default=None)


@dataclass
class _Progress:
    """The part of `_State` that is JSON."""

    iteration: int
    loss_sum: float
    loss_count: int
    seconds: float
    history: list[dict[str, int | float]]

    def __post_init__(self) -> None:
        """Checks what its types do not say."""
        if not all("validation_error" in row for row in self.history):
            raise ValueError("its history lacks errors")


@dataclass
class _Stored:
    """The contents of a checkpoint besides the arrays."""

    fingerprint: dict[str, Any]
    state: _Progress


def sum_of_squares(target: Any, output: Any) -> Any:
    """Returns the squared error summed over bins: [batch], of sequences [batch, frames]."""
    return keras.ops.sum(keras.ops.square(target - output), axis=-1)


class Examples(Protocol):
    """What a network is trained on, in rows that can be asked for."""

    @property
    def frames_each(self) -> int:
        """Frames of a row, or 1 if rows are no sequences of them."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs and targets of some rows."""


class FrameTrainer:
    """Trains one network and writes its model file.

    Args:
        model: A built Keras model, from `mnn.dae.build_dae` or `mnn.experts.build_expert`.
        training: Its frames, or pieces if it is recurrent.
        validation: The same of other speakers or utterances.
        config: See :class:`FitConfig`.
        out: The model file to write, ending in '.h5'.
        meta: ``speech_meta`` of the file; what was trained is added.
        data_sha256: Fingerprint of the data, of both parts.
        checkpoint_seconds: Write the checkpoint so often.
    """

    def __init__(
        self,
        model: keras.Model,
        training: Examples,
        validation: Examples,
        config: FitConfig,
        out: Path,
        *,
        meta: dict[str, Any],
        data_sha256: str,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        self.model, self.training, self.validation = model, training, validation
        self.config, self.out, self.meta = config, Path(out), meta
        self.checkpoint_seconds = checkpoint_seconds
        self.checkpoint_path = self.out.with_suffix(".checkpoint.npz")
        self.state = _State()
        self.fingerprint = fingerprint_of(config, meta, data_sha256)
        if config.optimizer == "rprop":
            self.optimizer = rprop.Rprop(config.learning_rate)
        else:
            rate = config.learning_rate
            if config.schedule == "cosine":
                rate = keras.optimizers.schedules.CosineDecay(rate, config.iterations)
            self.optimizer = keras.optimizers.Adam(rate)
        model.compile(self.optimizer, loss=sum_of_squares, jit_compile=False)
        self.optimizer.build(model.trainable_variables)
        self._order: tuple[int, np.ndarray] | None = None

    def run(self, on_validation: Callable[[dict[str, float]], None] | None = None) -> _State:
        """Trains to the end, from wherever the checkpoint stands, and writes the model file.

        Args:
            on_validation: Gets each row of the history.

        Raises:
            TrainingError: The error is not finite, or the checkpoint is of another run.
            ValueError: Another run is at work on the same file.
        """
        with held(self.out):
            return self._run(on_validation)

    def _run(self, on_validation: Callable[[dict[str, float]], None] | None) -> _State:
        self._resume()
        state, config = self.state, self.config
        started = written = time.monotonic()
        before = state.seconds
        bar = _progress(state.iteration, config.iterations)
        while not self._is_done():
            loss = self._step(state.iteration)
            if not math.isfinite(loss):
                self._diverged(f"training error became {loss}", state.iteration + 1)
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
            state.iteration += 1
            state.seconds = before + time.monotonic() - started
            bar.update()
            if state.iteration % config.validate_every == 0 or state.iteration == config.iterations:
                row = self._validate()
                bar.set_postfix_str(
                    f"error {row['training_error']:.4g}, validation {row['validation_error']:.4g}"
                )
                if on_validation is not None:
                    on_validation(row)
            if time.monotonic() - written > self.checkpoint_seconds:
                # The step of a finite error may have spoilt them; the next error would tell.
                if not all(np.isfinite(array).all() for array in self.model.get_weights()):
                    self._diverged("weights became infinite or NaN", state.iteration)
                self._save_checkpoint()
                written = time.monotonic()
        bar.close()
        self._save_checkpoint()  # should the model file fail to be written, nothing is lost
        self.model.set_weights(state.best)
        self._save_results()
        self.checkpoint_path.unlink(missing_ok=True)
        return state

    def _is_done(self) -> bool:
        state, config = self.state, self.config
        if state.iteration >= config.iterations:
            return True
        best = state.best_row
        return bool(
            best and config.patience and state.iteration - best["iteration"] >= config.patience
        )

    def _step(self, iteration: int) -> float:
        inputs, targets = self.training.batch(self._rows(iteration))
        self.model.reset_metrics()
        return float(self.model.train_on_batch(inputs, targets))

    def _rows(self, iteration: int) -> np.ndarray:
        """Returns the rows of a batch; what is left of a pass when no whole batch is stays out."""
        whole = max(self.config.batch_size // self.training.frames_each, 1)
        size = min(whole, len(self.training))
        number_of_pass, place = divmod(iteration, len(self.training) // size)
        if self._order is None or self._order[0] != number_of_pass:
            rng = np.random.default_rng([self.config.seed, 3, number_of_pass])
            self._order = number_of_pass, rng.permutation(len(self.training))
        # Sorted, which changes nothing but the speed of reading.
        return np.sort(self._order[1][place * size : (place + 1) * size])

    def _validate(self) -> dict[str, float]:
        state, total = self.state, 0.0
        size = max(1000 // self.validation.frames_each, 1)
        for start in range(0, len(self.validation), size):
            rows = np.arange(start, min(start + size, len(self.validation)))
            inputs, targets = self.validation.batch(rows)
            self.model.reset_metrics()
            total += float(self.model.test_on_batch(inputs, targets)) * len(rows)
        row = {
            "iteration": state.iteration,
            "training_error": state.loss_sum / state.loss_count,
            "validation_error": total / len(self.validation),
            "seconds": state.seconds,
        }
        if not math.isfinite(row["validation_error"]):
            self._diverged(f"validation error became {row['validation_error']}", state.iteration)
        best = state.best_row
        if best is None or row["validation_error"] < best["validation_error"]:
            state.best = [np.array(array) for array in self.model.get_weights()]
        state.history.append(row)
        state.loss_sum, state.loss_count = 0.0, 0
        return row

    def _diverged(self, what: str, iteration: int) -> NoReturn:
        """Ends the run with a reason; the best weights so far, if there are any, are kept."""
        best, kept = self.state.best_row, "no model was written"
        if best is not None:
            path = self.out.with_suffix(".best.h5")
            self.model.set_weights(self.state.best)
            save_model(self.model, path, self.meta)
            kept = f"the last good model, of iteration {best['iteration']}, is {path}"
        raise TrainingError(
            f"the {what} in iteration {iteration}; {kept}; try a smaller --learning-rate than "
            f"{self.config.learning_rate:g}"
        )

    def _save_results(self) -> None:
        state, best = self.state, self.state.best_row
        assert best is not None
        training = {
            **asdict(self.config),
            "error": "sum of squares over bins, mean over frames",
            "iterations_done": state.iteration,
            "best_iteration": best["iteration"],
            "validation_error": best["validation_error"],
            "frames": [len(own) * own.frames_each for own in (self.training, self.validation)],
            **self.meta.get("training", {}),
            "fingerprint": self.fingerprint,
        }
        write_history(self.out.with_suffix(".history.csv"), state.history)
        write_json(
            self.out.with_suffix(".run.json"),
            {"meta": {**self.meta, "training": training}, "seconds": state.seconds, **run_info()},
        )
        # Last: with it, the run counts as done.
        save_model(self.model, self.out, {**self.meta, "training": training})

    def _variables(self) -> list[Any]:
        """Returns all that changes in training: weights, seeds of dropout, optimizer."""
        return [*self.model.variables, *self.optimizer.variables]

    def _save_checkpoint(self) -> None:
        state = self.state
        arrays = {
            "variable": [variable.numpy() for variable in self._variables()],
            "best": state.best or [],
        }
        values = {key: value for key, value in vars(state).items() if key != "best"}
        stored = {"fingerprint": self.fingerprint, "state": values}
        write_checkpoint(self.checkpoint_path, arrays, stored)

    def _resume(self) -> None:
        path = self.checkpoint_path
        if not path.exists():
            return
        arrays, stored = read_checkpoint(path, _Stored)
        _require_same_run(path, stored.fingerprint, self.fingerprint)
        variables, own, best = self._variables(), arrays.get("variable", []), arrays.get("best", [])
        shapes = [array.shape for array in self.model.get_weights()]
        if [array.shape for array in own] != [tuple(v.shape) for v in variables] or (
            best and [array.shape for array in best] != shapes
        ):
            raise TrainingError(
                f"{path}: not a readable checkpoint (its arrays are of another network); delete it "
                "to start anew"
            )
        for variable, array in zip(variables, own, strict=True):
            variable.assign(array)
        self.state = _State(**vars(stored.state))
        self.state.best = best or None
        _LOGGER.info("going on with %s: iteration %d", self.out, self.state.iteration + 1)


def fingerprint_of(config: FitConfig, meta: dict[str, Any], data_sha256: str) -> dict[str, Any]:
    """Returns what tells one run from another, as JSON values."""
    keys = ("kind", "net", "init_sha256", "context", "stft", "input_scale")
    settings = asdict(config)
    if config.schedule == "constant":  # so that models from before there was a choice are known
        del settings["schedule"]
    return {
        "data_sha256": data_sha256,
        **{key: meta[key] for key in keys if key in meta},
        **settings,
    }


def finished(out: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the ``training`` of the meta of ``out`` if this very run wrote it; None without file.

    Raises:
        TrainingError: Something else lies there.
    """
    if not out.exists():
        return None
    try:
        training = read_model_file(out).meta.get("training")
    except ModelFileError as error:
        raise TrainingError(f"{error}; choose another --out, or delete the file") from None
    stored = training.get("fingerprint") if isinstance(training, dict) else None
    _require_same_run(out, stored if isinstance(stored, dict) else {}, fingerprint)
    return training


def _require_same_run(path: Path, stored: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    for name, value in fingerprint.items():
        if stored.get(name) != value:
            raise TrainingError(
                f"{path} is of a run with {name} {stored.get(name)!r:.80}, not {value!r:.80}; "
                "repeat its command, choose another --out, or delete the file"
            )


def _progress(done: int, total: int) -> Any:
    return tqdm.tqdm(
        total=total, initial=done, desc="training", file=cli.terminal(), disable=None, leave=False,
        unit="it",
    )  # fmt: skip
