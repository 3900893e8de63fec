"""Clustering through TensorFlow Model Optimization (TF-MOT), started from given centroids.

::

    layers = cluster(layers, codebooks, data=training, validation=validation, epochs=3)

The network goes as settings and arrays to a process that TF-MOT has for itself
(`quantization.tfmot_worker`), where a copy of it in tf_keras is wrapped, trained on and stripped,
and the arrays come back. TF-MOT changes the Keras of the program that imports it; this program
imports nothing of it, and its warnings stay in the other process as well.

Conventions: a codebook is float [k], the centroids of one layer's weights that are not pruned. A
mask is bool [in, out], False where the channel is pruned, as in ``pruning.sparsity``. The zero of
the pruned channels is not in the codebook and does not count: k centroids are k values beside it
(TF-MOT by itself would count it). Each layer has its own codebook; biases and normalisation have
none.

Needs the packages ``tensorflow-model-optimization`` and ``tf_keras``, the latter of TensorFlow's
own version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from speech.base import cli
from speech.base.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from speech.base.children import Child, ChildDied
from speech.base.lazy import tensorflow as tf
from speech.base.lazy import tqdm
from speech.base.runinfo import version_of
from speech.data.pipeline import Batch, TrainingData, data_fingerprint, prefetched
from speech.modelfile.spec import LayerSpec
from speech.net.mask_loss import MaskLoss
from speech.net.taps import for_kernel, has_kernel, taps_of
from speech.net.timefrequency import TimeFrequencyConfig
from speech.training.pieces import PieceData

_LOGGER = logging.getLogger("speech")

#: First version of TF-MOT whose inner parts are where the worker looks for them.
MIN_TFMOT = (0, 8)

CHECKPOINT = "tfmot.npz"

Layers = tuple[LayerSpec, ...]
Data = TrainingData | PieceData


def cluster(
    layers: Sequence[LayerSpec],
    codebooks: Mapping[str, np.ndarray],
    *,
    data: Data | None = None,
    validation: Data | None = None,
    epochs: int = 0,
    learning_rate: float = 3e-4,
    loss: str | MaskLoss = "mse",
    seed: int = 0,
    progress: Callable[[dict[str, float]], None] | None = None,
    work: str | os.PathLike | None = None,
    conv: str = "fast",
    conventions: TimeFrequencyConfig | None = None,
) -> Layers:
    """Clusters the kernels of a network, and trains it on as it is clustered.

    In fine-tuning, centroids, the choice of a centroid for each weight, biases and normalisation
    are all trained, by Adam with a learning rate that falls along a cosine to a hundredth.

    Args:
        layers: The network; it is not changed. Channels that are all zero stay so.
        codebooks: Layer name -> centroids to start with, float [k], k >= 2. Layers without one
            keep a kernel of free values.
        data: Training data; its epochs from 0 on are used. Needed if ``epochs`` > 0.
        validation: If given, the result is the state with the smallest validation error, taken
            after each epoch and at the start; otherwise it is the last state.
        epochs: Epochs of fine-tuning. With 0, each weight becomes its nearest centroid, and nothing
            else changes.
        learning_rate: At the start.
        loss: One of ``speech.net.losses.LOSSES``, or that of a network over time and frequency.
        seed: Of Dropout. What else is random is the data's, which has its own seed.
        progress: Called after each epoch with a row: epoch, training_loss, validation_loss (if
            there is ``validation``), learning_rate, seconds. Epoch 0 is the start: validation_loss
            and seconds alone, and only with ``validation``.
        work: Folder that keeps the state after each epoch; the same call goes on from there.
        conv: 'fast' for the C kernels where they run, 'keras' for tf_keras' own layers always.
        conventions: Those of a network over time and frequency; None for one over waveforms.

    Returns:
        The network, at most k distinct values in the channels that are kept of each layer with a
        codebook. In float32, bit for bit what TF-MOT's ``strip_clustering`` gives.

    Raises:
        ValueError: TF-MOT or tf_keras is missing or too old; a codebook or a setting makes no
            sense; the error is not finite any more; ``work`` holds another run.
        ChildProcessError: The process with TF-MOT died, such as for want of memory.
    """
    layers = tuple(layers)
    _check_settings(epochs, data, learning_rate, conv)
    codebooks = checked_codebooks(layers, codebooks)
    masks = _masks_of(layers, codebooks)
    _check_sizes(layers, codebooks, masks)
    require_tfmot()
    run = _Run(data, validation, epochs, learning_rate, progress)
    if work is not None and epochs:
        run.checkpoint = Path(work) / CHECKPOINT
        run.fingerprint = _fingerprint(layers, codebooks, masks, run, loss, seed, conventions)
        run.resume()
    if run.epoch < epochs or run.best is None:
        with _borrowed_worker() as worker:
            worker.call(
                "start", layers, codebooks, masks,
                fast=conv == "fast", loss=loss, seed=seed, conventions=conventions,
            )  # fmt: skip
            run.train(worker)
    assert run.best is not None
    _check_result(run.best, layers, codebooks, masks)
    return tuple(
        replace(layer, weights=weights) for layer, weights in zip(layers, run.best, strict=True)
    )


# --------------------------------------------------------------------------------------------
# Checks


def require_tfmot() -> None:
    """Raises ValueError, with what to do, if TF-MOT can't run here."""
    found = {
        name: version_of(name)
        for name in ("tensorflow", "tensorflow-model-optimization", "tf_keras")
    }
    tensorflow, tfmot, tf_keras = found.values()
    minor = ".".join(map(str, _numbers(tensorflow or "")[:2])) or "2.21"
    wanted = (
        f"TF-MOT clustering needs tensorflow-model-optimization >= {MIN_TFMOT[0]}.{MIN_TFMOT[1]} "
        f"and tf_keras {minor}.*, the version of TensorFlow"
    )
    advice = f"pip install tensorflow-model-optimization==0.8.1 'tf_keras=={minor}.*'"
    for name, version in found.items():
        if version is None:
            raise ValueError(f"{wanted}; {name} is not installed: {advice}")
    assert tensorflow and tfmot and tf_keras
    if _numbers(tfmot) < MIN_TFMOT:
        raise ValueError(f"{wanted}; tensorflow-model-optimization is {tfmot}: {advice}")
    if _numbers(tf_keras)[:2] != _numbers(tensorflow)[:2]:
        raise ValueError(f"{wanted}; tf_keras is {tf_keras}: {advice}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _check_settings(epochs: int, data: Data | None, learning_rate: float, conv: str) -> None:
    if type(epochs) is not int or epochs < 0:
        raise ValueError(f"epochs is {epochs!r}; give an integer of at least 0")
    if epochs and data is None:
        raise ValueError(f"fine-tuning for {epochs} epochs needs training data; give some")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate!r}; give a positive number")
    if conv not in ("fast", "keras"):
        raise ValueError(f"conv must be 'fast' or 'keras', received {conv!r}")


def checked_codebooks(
    layers: Sequence[LayerSpec], codebooks: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the codebooks as float32 [k], each value once, rising.

    Raises:
        ValueError: There is none, one is of no layer with a kernel, or it is no codebook.
    """
    with_kernel = [layer.name for layer in layers if has_kernel(layer)]
    if not codebooks:
        raise ValueError("no codebooks to cluster with; give one for at least one layer")
    checked = {}
    for name, values in codebooks.items():
        if name not in with_kernel:
            raise ValueError(
                f"a codebook is for layer {name!r}; the convolutions and matrices are "
                f"{', '.join(with_kernel) or 'none'}"
            )
        values = np.asarray(values, np.float32)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError(f"the codebook of layer {name} is not one row of finite numbers")
        checked[name] = np.unique(values)
        if len(checked[name]) < 2:
            raise ValueError(
                f"the codebook of layer {name} has {len(checked[name])} centroids; TF-MOT needs "
                "at least 2"
            )
    return checked


def _masks_of(layers: Layers, codebooks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what is kept of each clustered layer that has channels of zeros."""
    found = {}
    for layer in layers:
        if layer.name in codebooks:
            mask = np.asarray(taps_of(layer).any(axis=0))
            if not mask.all():
                found[layer.name] = np.array(for_kernel(layer.class_name, mask))
    return found


def _check_sizes(
    layers: Layers, codebooks: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]
) -> None:
    """Raises ValueError for more centroids than weights."""
    for layer in layers:
        if layer.name not in codebooks:
            continue
        kernel = layer.weights["kernel"]
        kept = np.broadcast_to(masks.get(layer.name, True), kernel.shape)
        if kept.sum() < len(codebooks[layer.name]):
            raise ValueError(
                f"the codebook of layer {layer.name} has {len(codebooks[layer.name])} centroids, "
                f"but only {kept.sum()} weights of it are kept; give fewer"
            )


def _check_result(
    weights: Sequence[Mapping[str, np.ndarray]],
    layers: Layers,
    codebooks: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
) -> None:
    """Raises RuntimeError if TF-MOT did not do what it is relied on for."""
    for layer, found in zip(layers, weights, strict=True):
        if layer.name not in codebooks:
            continue
        kept = np.broadcast_to(masks.get(layer.name, True), found["kernel"].shape)
        num_values = len(np.unique(found["kernel"][kept]))
        if num_values > len(codebooks[layer.name]) or found["kernel"][~kept].any():
            raise RuntimeError(
                f"TF-MOT gave layer {layer.name} {num_values} values for "
                f"{len(codebooks[layer.name])} centroids, or a pruned weight that is not zero"
            )


# --------------------------------------------------------------------------------------------
# Training


@dataclass
class _Run:
    """The state of a run, and the settings that it goes on with.

    Attributes:
        data: See `cluster`; likewise ``validation``, ``epochs``, ``learning_rate``, ``progress``.
        checkpoint: File of the state; None to keep none.
        fingerprint: SHA-256 of what the run is made of.
        epoch: Epochs done.
        best: Weights of each layer at the smallest validation error.
        best_loss: That error; infinite if there is no validation.
        state: State of the worker (``Clusterer.state``), after ``epoch``.
    """

    data: Data | None
    validation: Data | None
    epochs: int
    learning_rate: float
    progress: Callable[[dict[str, float]], None] | None
    checkpoint: Path | None = None
    fingerprint: str = ""
    epoch: int = 0
    best: list[dict[str, np.ndarray]] | None = None
    best_loss: float = math.inf
    state: list[np.ndarray] = field(default_factory=list)

    def train(self, worker: Worker) -> None:
        """Trains to the end; ``best`` is the result."""
        if self.state:
            worker.call("restore", self.state)
        else:
            self._finish_epoch(worker, {"epoch": 0}, time.monotonic())
        while self.epoch < self.epochs:
            assert self.data is not None, "checked with the settings"
            started = time.monotonic()
            row = {"epoch": self.epoch + 1, "training_loss": self._train_epoch(worker, self.data)}
            self.epoch += 1
            rate = self._learning_rate_at(self.epoch * len(self.data) - 1, len(self.data))
            self._finish_epoch(worker, row, started, learning_rate=rate)

    def _train_epoch(self, worker: Worker, data: Data) -> float:
        data = data.at_epoch(self.epoch)
        worker.call("start_epoch", self.epoch)
        total = 0.0
        for index, batch in enumerate(_shown(data, f"epoch {self.epoch + 1}/{self.epochs}")):
            rate = self._learning_rate_at(self.epoch * len(data) + index, len(data))
            loss = worker.call("step", rate, batch.noisy, batch.lengths, batch.clean)
            self._require_finite(loss, "training", index + 1)
            total += loss * len(batch.lengths)
        return total / data.num_items

    def _finish_epoch(
        self, worker: Worker, row: dict[str, float], started: float, **more: float
    ) -> None:
        """Validates, keeps the best weights, writes the state and reports."""
        value = -math.inf  # without validation, the last state is the best
        if self.epochs and self.validation is not None:
            value = self._validate(worker, self.validation)
            self._require_finite(value, "validation", 0)
            row["validation_loss"] = value
        if value < self.best_loss or self.validation is None:
            self.best, self.best_loss = worker.call("stripped"), value
        if self.epoch and self.checkpoint is not None:
            self.state = worker.call("state")
            self._save(self.checkpoint)
        if self.epochs and self.progress is not None and (self.epoch or len(row) > 1):
            self.progress(row | more | {"seconds": time.monotonic() - started})

    def _validate(self, worker: Worker, data: Data) -> float:
        total = 0.0
        for batch in _shown(data, "validating"):
            loss = worker.call("score", batch.noisy, batch.lengths, batch.clean)
            total += loss * len(batch.lengths)
        return total / data.num_items

    def _learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        part = step / (self.epochs * steps_per_epoch)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))

    def _require_finite(self, loss: float, what: str, step: int) -> None:
        if not math.isfinite(loss):
            raise ValueError(
                f"the {what} error became {loss} in epoch {self.epoch + 1}, step {step}; try a "
                f"smaller learning rate than {self.learning_rate:g}"
            )

    def _save(self, checkpoint: Path) -> None:
        best = self.best or []
        arrays = {
            "variable": self.state,
            "best": [array for weights in best for array in weights.values()],
        }
        # Infinity is no JSON number: -inf stands for a run without validation.
        best_loss = self.best_loss if math.isfinite(self.best_loss) else None
        stored = {
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "best_loss": best_loss,
            "best": [list(weights) for weights in best],
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(checkpoint, arrays, stored)

    def resume(self) -> None:
        """Takes up what the checkpoint holds, if there is one.

        Raises:
            ValueError: It can't be read, or it is of another run.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        arrays, stored = read_checkpoint(self.checkpoint, _Stored)
        best = arrays.get("best", [])
        if len(best) != sum(map(len, stored.best)):
            raise CheckpointError(
                f"{self.checkpoint}: not a readable checkpoint ({len(best)} arrays of the best "
                f"network, it names {sum(map(len, stored.best))}); delete it to start anew"
            )
        self.epoch = stored.epoch
        self.best_loss = -math.inf if stored.best_loss is None else stored.best_loss
        self.state = arrays.get("variable", [])
        found = iter(best)
        self.best = [{name: next(found) for name in names} for names in stored.best]
        if stored.fingerprint != self.fingerprint:
            raise ValueError(
                f"{self.checkpoint} is of a run with another network, data or setting; choose "
                "another folder, or delete the file"
            )
        _LOGGER.info("going on with %s: epoch %d of %d", self.checkpoint, self.epoch, self.epochs)


@dataclass
class _Stored:
    """The contents of a checkpoint besides the arrays."""

    fingerprint: Any
    epoch: int
    best_loss: int | float | None
    best: list[list[str]]

    def __post_init__(self) -> None:
        """Checks what its types do not say."""
        if self.epoch < 0:
            raise ValueError("it counts fewer than no epochs")


def _shown(data: Data, text: str) -> Iterator[Batch]:
    """Yields the batches of an epoch under a progress bar, if stderr is a terminal."""
    return iter(
        tqdm.tqdm(
            prefetched(data), total=len(data), desc=text,
            file=cli.terminal(), disable=None, leave=False, unit="step",
        )
    )  # fmt: skip


def _fingerprint(
    layers: Layers,
    codebooks: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    run: _Run,
    loss: str | MaskLoss,
    seed: int,
    conventions: TimeFrequencyConfig | None,
) -> str:
    """Returns a SHA-256 over all that decides what a run gives."""
    digest = hashlib.sha256()
    settings: list[Any] = [run.epochs, run.learning_rate, loss, seed]
    for part in (run.data, run.validation):
        if part is not None:
            settings += [data_fingerprint(part.source), part.num_items, part.batch_size]
            # Of pieces, the source says all that.
            names = ("crop_samples", "seed", "shuffle", "gain_db")
            settings += [getattr(part, name, None) for name in names]
    if conventions is not None:
        settings.append(conventions.meta())
    settings += [[layer.class_name, layer.name, layer.config] for layer in layers]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    named = {f"{layer.name}/{key}": a for layer in layers for key, a in layer.weights.items()}
    named |= {f"codebook {name}": array for name, array in codebooks.items()}
    named |= {f"mask {name}": array for name, array in masks.items()}
    for name, array in sorted(named.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------
# The other process


_idle: list[Worker] = []


@contextlib.contextmanager
def _borrowed_worker() -> Iterator[Worker]:
    """Lends a worker process, which is kept for the next call unless this one is broken off."""
    worker = _idle.pop() if _idle else Worker()
    try:
        yield worker
    except ValueError:  # said no: it answered
        _idle.append(worker)
        raise
    except BaseException:
        worker.stop()
        raise
    else:
        _idle.append(worker)


def close_idle() -> None:
    """Ends the process that waits for the next call: its start takes seconds, so it is kept."""
    while _idle:
        _idle.pop().stop()


class Worker:
    """The process with TF-MOT in it."""

    def __init__(self) -> None:
        self._notes = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        function = "quantization.tfmot_worker:answer"
        self._child = Child(function, _environment(), self._notes.fileno())

    def stop(self) -> None:
        """Ends the process; there is nothing in it to save."""
        self._child.end()
        self._notes.close()

    def call(self, name: str, *positional: Any, **keyword: Any) -> Any:
        """Returns what ``Clusterer.<name>`` returns; 'start' makes the clusterer.

        Raises:
            ValueError: The call was refused.
            ChildProcessError: The process died; the text says how.
            RuntimeError: The call failed, for a reason that is no fault of the input.
        """
        try:
            return self._child.call(name, positional, keyword)
        except ChildDied as error:
            text = f"the TF-MOT process {error}: {self._last_words()}"
            raise ChildProcessError(text) from None

    def _last_words(self) -> str:
        """Returns the last line that the process wrote."""
        self._notes.seek(0)
        lines = self._notes.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        return last[:300]


def _environment() -> dict[str, str]:
    """Returns the environment of the process: our modules, our GPUs, none of our Keras."""
    environment = {
        name: value
        for name, value in cli.python_environment().items()
        if name not in ("TF_USE_LEGACY_KERAS", "KERAS_BACKEND")
    }
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" in sys.modules:
        if not tf.config.get_visible_devices("GPU"):
            environment["CUDA_VISIBLE_DEVICES"] = "-1"
    return environment
