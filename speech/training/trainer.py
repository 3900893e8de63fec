"""The training loop: the same command starts a run, takes it up after a kill, and ends it.

In the output folder stand ``model.h5`` (best validation error), ``last.h5``, ``history.csv``,
``run.json`` and ``checkpoint.npz``. The checkpoint is one file, written whole: weights, best
weights, optimizer state, position in the data and history belong together, so a run that is taken
up goes on as if it had never stopped.

A run with a budget of clock time (``TrainingConfig.hours``) has no ``last.h5``: its ``model.h5`` is
the newest one, and is written with every checkpoint. A larger budget takes a finished run up
again.

SIGTERM, SIGHUP and Ctrl-C end a run after the step at work, with a checkpoint.

Of several machines (``speech.training.distribution``) the first one alone has the folder; the
others take the state of the run from it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from speech.base import cli, lazy
from speech.base.checkpoint import checkpoint_bytes, read_checkpoint, write_checkpoint
from speech.base.files import held, write_json, write_text
from speech.base.lazy import keras, tqdm
from speech.base.runinfo import run_info
from speech.base.words import csv_text
from speech.data.pipeline import Batch, Batches, TrainingData, data_fingerprint, prefetched
from speech.net.keras_models import save_model
from speech.net.losses import find_loss
from speech.training.config import TrainingConfig, TrainingError
from speech.training.distribution import EveryNth, Machines, Replicas, Share, local_devices
from speech.training.pieces import PieceData
from speech.training.reestimate import has_statistics, reestimate

if TYPE_CHECKING:
    from speech.net import chain_training
else:
    chain_training = lazy.module("speech.net.chain_training")

_LOGGER = logging.getLogger("speech")

#: Number of batches from which averaged weights get the statistics of their normalisations.
#: Measured on a tiny network and 2000 steps: the validation error is 0.509 with averaged
#: statistics, and 0.502 to 0.504 with the statistics of 8, 16 or 32 batches.
STATISTICS_BATCHES = 16

#: A run with a budget validates less often where that would take a larger share of its time.
_VALIDATION_SHARE = 0.1

#: Steps before a validation, unless its time is asked for.
_MIN_STEPS = 10

#: Settings of a run that may change when it is taken up.
_FREE = ("epochs", "hours", "validate_minutes", "conv")
_DEFAULTS = asdict(TrainingConfig())

#: Signals that end a run, its files written.
_ENDINGS = (signal.SIGINT, *cli.ENDINGS)

#: (network, 'fast' or 'keras') -> what trains it.
MakeModel = Callable[["keras.Model", str], "keras.Model"]


class _StoppedError(Exception):
    """A signal came while the network was validated."""


@dataclass
class _State:
    """The state of a run; all of it goes into one checkpoint.

    Attributes:
        epoch: Passes over the data that are done.
        batch: Steps done in the current pass.
        num_items: Utterances since the last validation.
        loss_sum: Sum of their errors.
        seconds: Time since the last validation, in all sessions.
        used_seconds: Time of the whole run, in all sessions.
        history: A row per validation.
        best_weights: Those of the smallest validation error.
        average: Running average of the weights.
    """

    epoch: int = 0
    batch: int = 0
    num_items: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    used_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_weights: list[np.ndarray] | None = None
    average: list[np.ndarray] | None = None

    @property
    def best_loss(self) -> float:
        """Smallest validation error so far."""
        return min((row["validation_loss"] for row in self.history), default=math.inf)


@dataclass
class _Stored:
    """The state of a run in its checkpoint, as JSON; arrays stand beside it."""

    fingerprint: dict[str, Any]
    epoch: int
    batch: int
    loss_sum: float
    seconds: float
    history: list[dict[str, int | float]]
    num_items: int | None = None
    used_seconds: float = 0.0
    length: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Checks what its types do not say."""
        if min(self.epoch, self.batch, self.num_items or 0) < 0:
            raise ValueError("it counts fewer than no epochs")
        if not all({"epoch", "validation_loss"} <= row.keys() for row in self.history):
            raise ValueError("its history lacks epochs or losses")


class Trainer:
    """Trains a plain Keras network and keeps everything in one folder.

    Args:
        network: The plain model (``speech.net.fcn.build_fcn``); trained in place.
        training: Its ``batch_size``, ``num_items`` and ``crop_samples`` are used as they are.
        validation: Read in order, never shuffled.
        config: See :class:`TrainingConfig`.
        out: Folder of the run.
        make_model: Returns what trains the network: a Keras model whose ``compute_loss`` is that
            of the run, with ``uses_c_kernels``. None for
            ``speech.net.chain_training.TrainingModel``, of networks from waveform to waveform.
        meta: What goes into the ``speech_meta`` of the model files.
        checkpoint_seconds: Also write a checkpoint between validations, so often.
        machines: All machines of the run; None for this one alone.
        devices: Of this machine, to share each step; default: its GPUs, if there are several.

    Raises:
        ValueError: There are more devices than utterances in a step.
    """

    def __init__(
        self,
        network: keras.Model,
        training: TrainingData | PieceData,
        validation: TrainingData | PieceData,
        config: TrainingConfig,
        out: Path,
        *,
        make_model: MakeModel | None = None,
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
        engine = "keras" if len(devices) > 1 else config.conv
        self.model = (make_model or self._waveform_model)(network, engine)
        self.optimizer = _optimizer(config)
        # No XLA: it would compile anew for every length, and can't call the C kernels. Pieces have
        # one length, and JAX is slow without it.
        self.model.compile(
            optimizer=self.optimizer,
            weighted_metrics=["mse"] if self._reports_mse else [],
            jit_compile=isinstance(training, PieceData) and keras.backend.backend() == "jax",
        )
        self.optimizer.build(network.trainable_variables)
        self._replicas = None
        if len(devices) > 1 or machines is not None:
            self._replicas = Replicas(self.model, devices, machines, training.batch_size)
        self.state = _State()
        self.waited_seconds = 0.0
        self._has_statistics = has_statistics(network)
        self._statistics_batches: list[Batch] = []
        self._settled: list[np.ndarray] | None = None
        self._session = 0.0
        self._validation_seconds: float | None = None
        self._signal: int | None = None
        self._fingerprint = {
            "data": data_fingerprint(training.source),
            "gain_db": training.gain_db and list(training.gain_db),
            "parameters": int(network.count_params()),
            "budget": "epochs" if config.hours is None else "hours",
            **{k: v for k, v in asdict(config).items() if k not in _FREE},
        }

    @property
    def _length(self) -> dict[str, Any]:
        return {"epochs": self.config.epochs, "hours": self.config.hours}

    @property
    def _loss_name(self) -> str:
        return self.config.loss if isinstance(self.config.loss, str) else "loss"

    def _waveform_model(self, network: keras.Model, engine: str) -> keras.Model:
        assert isinstance(self.config.loss, str)
        return chain_training.TrainingModel(network, engine, find_loss(self.config.loss))

    @property
    def _reports_mse(self) -> bool:
        """Whether the mean squared error is validated beside the loss."""
        return isinstance(self.config.loss, str) and self.config.loss != "mse"

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

        Args:
            on_epoch: Called with the new row of the history after each validation.

        Returns:
            The final state; its ``history`` has one row per validation.

        Raises:
            TrainingError: The error is not finite, the folder holds another run, or another machine
                trains something else.
            MachineLostError: Another machine has ended.
            ValueError: Another run is at work in the folder.
            KeyboardInterrupt: Ctrl-C; the checkpoint is written.
            SystemExit: SIGTERM or SIGHUP; likewise.
        """
        with held(self.out) if self.writes else contextlib.nullcontext():
            if self.writes:
                self._resume()
            self._share_state()
            self._session = time.monotonic() - self.state.used_seconds
            trained = not self._is_done()
            with self._signals(), contextlib.closing(self._batches()) as batches:
                while not self._is_done():
                    row = self._epoch(batches)
                    self._share_state()  # machines of another kind round in another way
                    if on_epoch is not None:
                        on_epoch(row)
        if self.config.hours is not None:
            # A run that was done before has its statistics in the file: not all over again.
            if trained:
                self.network.set_weights(self._averaged_weights())
        elif self.state.best_weights is not None:
            self.network.set_weights(self.state.best_weights)
        return self.state

    def _is_done(self) -> bool:
        budget = self.config.budget_seconds
        if budget is None:
            assert self.config.epochs is not None
            return self.state.epoch >= self.config.epochs
        return self.state.used_seconds >= budget and not self.state.num_items

    def _is_due(self) -> bool:
        """Returns whether it is time to validate."""
        state, budget = self.state, self.config.budget_seconds
        if budget is None:
            return state.batch >= len(self.training)
        if not state.num_items or state.used_seconds >= budget:
            return state.num_items > 0
        # The first steps of a call are slow: what they need is built.
        soon = self.config.validate_minutes is None and (
            state.num_items < _MIN_STEPS * self.training.batch_size
        )
        cost = (self._validation_seconds or 0.0) / _VALIDATION_SHARE
        wait = max(self.config.validate_seconds, cost)
        return state.seconds >= wait and not soon

    def _now(self) -> float:
        """Returns the seconds of the whole run, by the clock of this machine."""
        return time.monotonic() - self._session

    def _tick(self) -> None:
        """Reads the clock of the run: on all machines that of the first one."""
        used = self._now()
        if self.machines is not None and self.config.hours is not None:
            used = float(self.machines.sum(np.array([used if self.writes else 0.0]))[0])
        self.state.used_seconds = used

    def _batches(self) -> Generator[Batch | Share]:
        """Yields the batches of the run from where it stands, pass after pass, without end."""
        first = self.state.batch
        if isinstance(self.training, PieceData):
            yield from self.training.at_epoch(self.state.epoch).stream(first, self._replicas)
        for epoch in itertools.count(self.state.epoch):
            data = self.training.at_epoch(epoch)
            assert isinstance(data, TrainingData)
            batches: Batches[Batch | Share] = data
            if self._replicas is not None:
                batches = self._replicas.shares(data)
            yield from prefetched(batches, first=first)
            first = 0

    def _learning_rate(self, step: int) -> float:
        config = self.config
        if config.budget_seconds is None:
            assert config.epochs is not None
            return config.learning_rate_at(step, config.epochs * len(self.training))
        return config.learning_rate_of(step, self.state.used_seconds / config.budget_seconds)

    def _epoch(self, batches: Iterator[Batch | Share]) -> dict[str, float]:
        """Trains up to the next validation, validates, and writes all files."""
        state, data = self.state, self.training
        before, started, written = state.seconds, state.used_seconds, time.monotonic()
        bar = self._progress_bar()
        while not self._is_due():
            waiting = time.monotonic()
            batch = next(batches)
            self.waited_seconds += time.monotonic() - waiting
            step = state.epoch * len(data) + state.batch
            self.optimizer.learning_rate = self._learning_rate(step)
            loss = self._step(batch)
            if not math.isfinite(loss):
                self._diverged(f"training error became {loss}", f"step {state.batch + 1}")
            if self.config.ema is not None:
                self._average(step)
            num_items = min(data.batch_size, data.num_items - state.batch * data.batch_size)
            state.loss_sum += loss * num_items
            state.num_items += num_items
            state.batch += 1
            if self.config.hours is not None and state.batch == len(data):
                state.epoch, state.batch = state.epoch + 1, 0
            self._tick()
            state.seconds = before + self.state.used_seconds - started
            bar.set_postfix_str(f"{self._loss_name} {state.loss_sum / state.num_items:.5f}")
            bar.update()
            if self._signal is not None:
                self._stop()
            if self.writes and time.monotonic() - written > self.checkpoint_seconds:
                self._save_progress(exact=False)
                written = time.monotonic()
        bar.close()
        try:
            with self._averaged():
                errors = self._validate()
                weights = [np.array(array) for array in self.network.get_weights()]
        except _StoppedError:
            self._stop()
        if not math.isfinite(errors["validation_loss"]):
            self._diverged(f"validation error became {errors['validation_loss']}", "at its end")
        row: dict[str, float] = {"epoch": len(state.history) + 1}
        last_step = state.epoch * len(data) + state.batch - 1
        if self.config.hours is not None:
            row |= {"hours": state.used_seconds / 3600, "steps": last_step + 1}
        row |= {
            "training_loss": state.loss_sum / state.num_items,
            **errors,
            "learning_rate": float(self._learning_rate(last_step)),
            "seconds": before + self._now() - started,
        }
        if self.config.hours is None:
            if row["validation_loss"] < state.best_loss:
                state.best_weights = weights
            state.epoch, state.batch = state.epoch + 1, 0
        state.history.append(row)
        state.num_items, state.loss_sum, state.seconds = 0, 0.0, 0.0
        if self.writes:
            self._save_models()
        trained = state.used_seconds
        self._tick()
        # The first one of a call makes its pieces and its graph, which the others have then.
        is_first = self._validation_seconds is None
        self._validation_seconds = 0.0 if is_first else state.used_seconds - trained
        if self.writes:
            self._save_checkpoint()
        return row

    def _progress_bar(self) -> Any:
        state, config = self.state, self.config
        settings: dict[str, Any] = {
            "total": len(self.training), "initial": state.batch,
            "desc": f"epoch {state.epoch + 1}/{config.epochs}",
        }  # fmt: skip
        if config.hours is not None:
            settings = {"desc": f"{state.used_seconds / 3600:.2f}/{config.hours:g} h"}
        return tqdm.tqdm(
            file=cli.terminal(), disable=None if self.writes else True, leave=False, unit="step",
            **settings,
        )  # fmt: skip

    def _diverged(self, what: str, where: str) -> None:
        kept = self.out / ("last.h5" if self.config.hours is None else "model.h5")
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
        totals = {name: 0.0 for name in ("loss", "mse")[: 1 + self._reports_mse]}
        data: Batches[Batch] = self.validation
        machines = self.machines
        if machines is not None:
            data = EveryNth(self.validation, machines.rank, machines.count)
        for batch in prefetched(data):
            if self._signal is not None:
                raise _StoppedError
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
        self._settled = None

    def _averaged_weights(self) -> list[np.ndarray]:
        """Returns the averaged weights with statistics of their own; without average as they are.

        What the normalisations of a network have gathered belongs to the weights of each step.
        """
        if self._settled is None:
            current = [np.array(array) for array in self.network.get_weights()]
            self._settled = self.state.average or current
            if self.state.average is not None and self._has_statistics:
                self.network.set_weights(self.state.average)
                reestimate(self.model, self._first_batches())
                self._settled = [np.array(array) for array in self.network.get_weights()]
                self.network.set_weights(current)
        return self._settled

    def _first_batches(self) -> list[Batch]:
        """Returns always the same batches of the training data."""
        if not self._statistics_batches:
            places = (divmod(place, len(self.training)) for place in range(STATISTICS_BATCHES))
            self._statistics_batches = [
                self.training.at_epoch(epoch).batch(index) for epoch, index in places
            ]
        return self._statistics_batches

    @contextlib.contextmanager
    def _averaged(self, exact: bool = True) -> Iterator[None]:
        """Puts the average of the weights, if there is one, into the network for a while.

        Args:
            exact: Whether to compute the statistics for the averaged weights; otherwise the
                average of the steps' statistics is used, which takes no time.
        """
        if self.state.average is None:
            yield
            return
        current = [np.array(array) for array in self.network.get_weights()]
        self.network.set_weights(self._averaged_weights() if exact else self.state.average)
        try:
            yield
        finally:
            self.network.set_weights(current)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Lets signals that end a run wait for the end of a step; a second one does not wait."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: Any) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number

        # What is ignored stays ignored: Ctrl-C, in the background of a shell.
        heard = [x for x in _ENDINGS if signal.getsignal(x) is not signal.SIG_IGN]
        before = {number: signal.signal(number, ask) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> NoReturn:
        """Ends the run as a signal has asked, all its files written."""
        if self.writes:
            self._save_progress(exact=True)
            _LOGGER.info("%s: stopped; the same command goes on from here", self.out)
        number, self._signal = self._signal, None
        if number is not None and number != signal.SIGINT:
            raise SystemExit(128 + number)
        raise KeyboardInterrupt

    def _save_progress(self, exact: bool) -> None:
        """Writes the checkpoint between validations; with a budget, the model as well."""
        # The step of a finite error may have spoilt them; the next error would tell.
        if not all(np.isfinite(array).all() for array in self.network.get_weights()):
            self._diverged("weights became infinite or NaN", f"step {self.state.batch}")
        self._save_checkpoint()
        if self.config.hours is not None:
            self._save_models(exact)

    def _save_models(self, exact: bool = True) -> None:
        state, timed = self.state, self.config.hours is not None
        done: dict[str, Any] = {
            "epochs_done": state.epoch,
            "validation_loss": state.best_loss,
        }
        if timed:
            done = {
                "hours_done": state.used_seconds / 3600,
                "steps_done": state.epoch * len(self.training) + state.batch,
                "validation_loss": state.history[-1]["validation_loss"] if state.history else None,
            }
        meta = {
            **self.meta,
            "training": {
                **asdict(self.config),
                **done,
                "data_sha256": self._fingerprint["data"],
            },
        }
        with self._averaged(exact):
            save_model(self.network, self.out / ("model.h5" if timed else "last.h5"), meta)
        if not timed:
            current = self.network.get_weights()
            self.network.set_weights(state.best_weights)
            save_model(self.network, self.out / "model.h5", meta)
            self.network.set_weights(current)
        if state.history:
            write_history(self.out / "history.csv", state.history)
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

    def _whole_state(self) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
        """Returns the whole state of the run: lists of arrays, and what is JSON."""
        state = self.state
        arrays = {
            "weight": self.network.get_weights(),
            "optimizer": [variable.numpy() for variable in self.optimizer.variables],
            "best": state.best_weights or [],
            "average": state.average or [],
        }
        return arrays, {
            "fingerprint": self._fingerprint,
            "epoch": state.epoch,
            "batch": state.batch,
            "num_items": state.num_items,
            "loss_sum": state.loss_sum,
            "seconds": state.seconds,
            "used_seconds": state.used_seconds,
            "length": self._length,
            "history": state.history,
        }

    def _save_checkpoint(self) -> None:
        write_checkpoint(self.checkpoint_path, *self._whole_state())

    def _resume(self) -> None:
        if not self.checkpoint_path.exists():
            return
        arrays, stored = read_checkpoint(self.checkpoint_path, _Stored)
        advice = "repeat its command, choose another --out, or delete the folder"
        self._restore(arrays, stored, f"{self.out}", advice)
        state, hours = self.state, self.config.hours
        if hours is not None:
            if self._is_done():
                text = "%s: %.3g hours are used; a larger --hours goes on"
            else:
                text = "going on with %s: %.3g of %g hours are used"
            values = (state.used_seconds / 3600, hours)
            _LOGGER.info(text, self.out, *values[: text.count("g ")])
        elif self._is_done():
            _LOGGER.info("%s: %d epochs are done", self.out, state.epoch)
        else:
            _LOGGER.info(
                "going on with %s: epoch %d, step %d", self.out, state.epoch + 1, state.batch + 1
            )

    def _share_state(self) -> None:
        """Gives all machines the state of the first one."""
        if self.machines is None:
            return
        own = checkpoint_bytes(*self._whole_state()) if self.writes else b""
        content = self.machines.broadcast(own)
        if not self.writes:
            arrays, stored = read_checkpoint(io.BytesIO(content), _Stored)
            advice = "give all the same command and data"
            self._restore(arrays, stored, "the first machine", advice)

    def _restore(
        self, arrays: dict[str, list[np.ndarray]], stored: _Stored, whose: str, advice: str
    ) -> None:
        """Takes the state of the run from what `_whole_state` returned."""
        # Settings that came later than a checkpoint had their defaults.
        theirs = _DEFAULTS | {"budget": "epochs"} | stored.fingerprint
        mine = dict(self._fingerprint)
        length = stored.length or {"epochs": theirs.get("epochs")}
        # Side by side, machines have the same way to go. A run that is taken up may have got a
        # longer one, and its learning rate follows; with a shorter one it would be past its end.
        shorter = (self.config.epochs or 0) < (_whole(length.get("epochs")))
        if not self.writes or (self.config.schedule != "constant" and shorter):
            theirs, mine = theirs | length, mine | self._length
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise TrainingError(
                    f"{whose} holds a run with {name} {theirs.get(name)!r:.80}, not {value!r}; "
                    f"{advice}"
                )
        weights, optimizer = arrays.get("weight", []), arrays.get("optimizer", [])
        lists = [arrays.get("best", []), arrays.get("average", [])]
        shapes = [array.shape for array in self.network.get_weights()]
        for found in (weights, *filter(None, lists)):
            if [array.shape for array in found] != shapes:
                raise TrainingError(f"{whose} holds weights of another network; {advice}")
        if [array.shape for array in optimizer] != [
            tuple(variable.shape) for variable in self.optimizer.variables
        ]:
            raise TrainingError(f"{whose} holds the state of another optimizer; {advice}")
        self.network.set_weights(weights)
        for variable, value in zip(self.optimizer.variables, optimizer, strict=True):
            variable.assign(value)
        at_work = min(stored.batch * self.training.batch_size, self.training.num_items)
        self.state = _State(
            epoch=stored.epoch,
            batch=stored.batch,
            num_items=at_work if stored.num_items is None else stored.num_items,
            loss_sum=stored.loss_sum,
            seconds=stored.seconds,
            used_seconds=stored.used_seconds,
            history=stored.history,
            best_weights=lists[0] or None,
            average=lists[1] or None,
        )
        self._settled = None


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Writes the history as CSV, one row per epoch."""
    write_text(path, csv_text(history, list(history[0])))


def _optimizer(config: TrainingConfig) -> keras.optimizers.Optimizer:
    settings: dict[str, Any] = {
        "beta_1": 0.9,
        "beta_2": config.beta_2,
        "epsilon": config.epsilon,
        "global_clipnorm": config.clip_norm,
    }
    if config.optimizer == "adam":
        return keras.optimizers.Adam(config.learning_rate, **settings)
    optimizer = keras.optimizers.AdamW(
        config.learning_rate, weight_decay=config.weight_decay, **settings
    )
    optimizer.exclude_from_weight_decay(var_names=[r"(^|/)(bias|beta|gamma)(:0)?$"])
    return optimizer
