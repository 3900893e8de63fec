"""One training on several devices and several machines: synchronous, data parallel.

Every step's batch is split among the devices of all machines; each machine mixes only its own
utterances. Gradients of all shares, each weighed by its number of utterances, are added up, and
every machine takes the same step with the sum. Clipping, the schedule and the average of the
weights come after the sum, so the run is that of one process with the whole batch, apart from the
order of additions.

Machines find each other by ``TF_CONFIG``, as ``tf.distribute`` defines it; sums are all-reduced by
its ``MultiWorkerMirroredStrategy``. Keras' own way, a model built in the scope of a strategy, does
not train so (Keras 3.15, TensorFlow 2.21): ``train_on_batch`` hands the whole batch to each replica
of a ``MirroredStrategy``, gradients are clipped before they are added up, ``fit`` fails with shares
of unequal size, and under a ``MultiWorkerMirroredStrategy`` ``train_on_batch`` fails altogether.
Variables are therefore plain ones on a machine's first device, where its other devices read them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speech.base import cli
from speech.base.device import select_devices
from speech.base.lazy import keras
from speech.base.lazy import tensorflow as tf
from speech.data.pipeline import Batch, Batches, TrainingData, collate
from speech.training.request import Request
from speech.training.tensorboard import require_tensorboard

_LOGGER = logging.getLogger("speech")

#: So long machines wait for each other, in the beginning and in every step.
WAIT_SECONDS = 600.0

_ANSWER_SECONDS = 10.0
_HELLO_BYTES = 1 << 16
_MOST_STRANGERS = 100
_ASK, _HERE, _GO = b"?", b"!", b"g"


class MachineLostError(ValueError):
    """Another machine of the run has ended or does not answer."""


@dataclass(frozen=True)
class Task:
    """The place of this process among the processes of one run.

    Attributes:
        cluster: Kind of task ('chief', 'worker') to ``host:port`` of each, as in TF_CONFIG.
        kind: Kind of this process.
        index: Number of this process among the processes of its kind.
    """

    cluster: dict[str, list[str]]
    kind: str
    index: int

    @cached_property
    def addresses(self) -> list[str]:
        """``host:port`` of all, the first machine's first."""
        return self.cluster.get("chief", []) + self.cluster.get("worker", [])

    @property
    def rank(self) -> int:
        """Place of this process in ``addresses``; 0 writes the files."""
        return self.index + (len(self.cluster.get("chief", [])) if self.kind == "worker" else 0)


def read_task() -> Task | None:
    """Returns what TF_CONFIG says of this process; None if it trains alone.

    Raises:
        ValueError: TF_CONFIG is not as tf.distribute defines it, or has other tasks than 'chief'
            and 'worker'.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        found = json.loads(text)
        cluster = {kind: list(map(str, places)) for kind, places in found["cluster"].items()}
        task = Task(cluster, found["task"]["type"], int(found["task"]["index"]))
        if not set(cluster) <= {"chief", "worker"} or len(cluster.get("chief", [])) > 1:
            raise ValueError("only one 'chief' and any number of 'worker' train")
        if not 0 <= task.index < len(cluster[task.kind]):
            raise ValueError(f"there is no {task.kind} {task.index}")
        for address in task.addresses:
            _host_and_port(address)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"TF_CONFIG is not usable: {error!s:.200}; give "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        ) from None
    return task if len(task.addresses) > 1 else None


def begin(asked: Request, filled: Sequence[Path] = ()) -> Task | None:
    """Does what comes first in a command that trains, before anything of Keras is imported.

    It checks the folder of the run, and chooses the devices.

    Args:
        asked: What is trained.
        filled: Folders that the command fills, as `speech.base.cli.check_out` takes them.

    Returns:
        Of `read_task`.

    Raises:
        ValueError: The folder, a device or TF_CONFIG is unusable, or TensorBoard is missing.
    """
    cli.check_folder(asked.out)
    cli.check_out(asked.out, asked.data.folders, filled)
    select_devices(asked.gpu, several=True)
    task = read_task()
    if asked.tensorboard is not None and (task is None or not task.rank):
        require_tensorboard(asked.tensorboard)  # not after an hour of mixing
    return task


class Machines:
    """The machines of one run; made once in each process, before TensorFlow computes anything.

    Args:
        task: This process.
        wait_seconds: So long one waits for the others.

    Raises:
        MachineLostError: Not all came in time.
        ValueError: The port is in use, or Keras runs on another backend than TensorFlow.
    """

    def __init__(self, task: Task, wait_seconds: float = WAIT_SECONDS) -> None:
        if keras.backend.backend() != "tensorflow":
            raise ValueError("training on several machines needs KERAS_BACKEND=tensorflow")
        self.task = task
        self.rank = task.rank
        self.count = len(task.addresses)
        self._wait_seconds = wait_seconds
        _meet(task, wait_seconds)
        self._total = self._connected()

    def _connected(self) -> Any:
        """Returns the tf.function that adds up a vector over all machines."""
        distribute, task = tf.distribute, self.task
        resolver = distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(task.cluster),
            task_type=task.kind,
            task_id=task.index,
            num_accelerators={},  # sums are exchanged from the host's memory
            rpc_layer="grpc",
        )
        how = distribute.experimental.CommunicationOptions(
            timeout_seconds=self._wait_seconds,
            implementation=distribute.experimental.CommunicationImplementation.RING,
        )
        try:
            strategy = distribute.MultiWorkerMirroredStrategy(resolver, how)
        except (tf.errors.OpError, RuntimeError) as error:
            raise ValueError(
                f"TF_CONFIG: {task.addresses[self.rank]} can't be served ({error!s:.200}); is this "
                "machine reached by that name, and the port free?"
            ) from None

        def add(values):
            context = distribute.get_replica_context()
            return context.all_reduce(distribute.ReduceOp.SUM, tf.identity(values))

        return tf.function(lambda values: strategy.run(add, (values,)), reduce_retracing=True)

    def sum(self, values: Any) -> np.ndarray:
        """Returns the sum of a vector [n] over all machines: the same bits on each.

        Args:
            values: float32, float64 or int32, of the same length everywhere.

        Raises:
            MachineLostError: One has ended, or has not come here in time.
        """
        try:
            with tf.device("CPU:0"):
                return self._total(tf.convert_to_tensor(values)).numpy()
        except tf.errors.OpError as error:
            raise MachineLostError(
                f"another machine of the run has ended or does not answer{self._where(error)}; its "
                "own output says why; repeat the command on all: it goes on from the checkpoint"
            ) from error

    def _where(self, error: Exception) -> str:
        found = re.search(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", str(error))
        if found is None or found[1] not in self.task.cluster:
            return ""
        return f" ({self.task.cluster[found[1]][int(found[2])]})"

    def broadcast(self, content: bytes) -> bytes:
        """Returns, on every machine, the bytes that the first one was given."""
        length = int(self.sum(np.array([len(content) if self.rank == 0 else 0], np.int32))[0])
        words = np.zeros(-(-length // 4), np.int32)  # all others add zeros
        if self.rank == 0:
            words.view(np.uint8)[:length] = np.frombuffer(content, np.uint8)
        return self.sum(words).tobytes()[:length]


def _meet(task: Task, wait_seconds: float) -> None:
    """Waits until all have come; TensorFlow itself would wait an hour, deaf to Ctrl-C."""
    deadline = time.monotonic() + wait_seconds
    port = _host_and_port(task.addresses[task.rank])[1]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=100)
    except OSError as error:
        raise ValueError(
            f"TF_CONFIG: port {port} can't be opened on this machine ({error.strerror}); end what "
            "uses it, or choose another port"
        ) from None
    with server:
        meet = _gather if task.rank == 0 else _report
        meet(task, server, deadline)


def _gather(task: Task, server: socket.socket, deadline: float) -> None:
    """On the first machine: lets all go when all are there."""
    _LOGGER.info("waiting for %d other machines", len(task.addresses) - 1)
    with ExitStack() as stack:
        hall = stack.enter_context(_Hall(server, task))
        come: dict[int, socket.socket] = {}
        while True:
            missing = [i for i in range(1, len(task.addresses)) if i not in come]
            if not missing:
                # One that came early may have left again.
                come = {i: other for i, other in come.items() if _is_there(other)}
                if len(come) == len(task.addresses) - 1:
                    break
                continue
            found = hall.next(deadline)
            if found is None:
                names = ", ".join(task.addresses[i] for i in missing)
                raise MachineLostError(
                    f"{names} did not come; start the same command there, with the same cluster in "
                    "TF_CONFIG, and see that the machines reach each other's ports"
                )
            rank, other = found
            come[rank] = stack.enter_context(closing(other))
        for other in come.values():
            other.sendall(_GO)


class _Hall:
    """Listens to all who have come at once: one who says nothing, or drips, holds nobody up.

    Args:
        server: Where they come to.
        task: The first machine.
    """

    def __init__(self, server: socket.socket, task: Task) -> None:
        self._server, self._task = server, task
        self._selector = selectors.DefaultSelector()
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)
        #: What each has said so far, and until when it may go on; in the order in which they came.
        self._said: dict[socket.socket, tuple[bytearray, float]] = {}

    def __enter__(self) -> _Hall:
        return self

    def __exit__(self, *_: object) -> None:
        for other in list(self._said):
            self._leave(other).close()
        self._selector.close()

    def next(self, deadline: float) -> tuple[int, socket.socket] | None:
        """Waits for the next machine that belongs here; None after the deadline.

        Args:
            deadline: In the seconds of `time.monotonic`.

        Returns:
            Its rank, and the connection to it, with a limit on each answer.
        """
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(left, 1.0)):
                if key.fileobj is self._server:
                    self._welcome()
                    continue
                if key.fileobj not in self._said:  # had to make room for another one just now
                    continue
                found = self._hear(key.fileobj)
                if found is not None:
                    return found
            late = [other for other, (_, until) in self._said.items() if until < time.monotonic()]
            for other in late:
                self._leave(other).close()
        return None

    def _welcome(self) -> None:
        try:
            other = self._server.accept()[0]
        except OSError:  # gone again
            return
        if len(self._said) >= _MOST_STRANGERS:
            self._leave(next(iter(self._said))).close()
        other.setblocking(False)
        self._said[other] = bytearray(), time.monotonic() + _ANSWER_SECONDS
        self._selector.register(other, selectors.EVENT_READ)

    def _hear(self, other: Any) -> tuple[int, socket.socket] | None:
        said, _ = self._said[other]
        try:
            more = other.recv(_HELLO_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            more = b""
        said += more
        if more and b"\n" not in more and len(said) < _HELLO_BYTES:
            return None
        self._leave(other)
        rank = _rank_of(bytes(said[:_HELLO_BYTES]), self._task)
        if rank is None:
            other.close()
            return None
        other.settimeout(_ANSWER_SECONDS)
        return rank, other

    def _leave(self, other: socket.socket) -> socket.socket:
        del self._said[other]
        self._selector.unregister(other)
        return other


def _report(task: Task, server: socket.socket, deadline: float) -> None:
    """On the others: tells the first machine and waits for its word."""
    first = task.addresses[0]
    hello = json.dumps([task.cluster, task.rank]).encode() + b"\n"
    _LOGGER.info("waiting for %s", first)
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(_host_and_port(first), min(left, _ANSWER_SECONDS)) as s:
                s.sendall(hello)
                s.settimeout(left)
                while (word := s.recv(1)) == _ASK:
                    s.sendall(_HERE)
                    s.settimeout(max(deadline - time.monotonic(), 1e-3))
                if word == _GO:
                    return
        except OSError:
            pass  # not there yet
        time.sleep(min(0.5, max(left, 0)))
    raise MachineLostError(
        f"{first} did not answer, or waits for others; start the same command on every machine, "
        "with the same cluster in TF_CONFIG, and see that they reach each other's ports"
    )


def _rank_of(hello: bytes, task: Task) -> int | None:
    """Returns the rank of who has said so; None for a stranger."""
    try:
        cluster, rank = json.loads(hello.partition(b"\n")[0])
    except (ValueError, TypeError, RecursionError):
        return None
    is_other = cluster != task.cluster or type(rank) is not int
    if is_other or rank not in range(1, len(task.addresses)):
        _LOGGER.warning("one came with another cluster in its TF_CONFIG")
        return None
    return rank


def _is_there(other: socket.socket) -> bool:
    try:
        other.sendall(_ASK)
        return other.recv(1) == _HERE
    except OSError:
        return False


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r:.100} is no host:port")
    return host.strip("[]"), int(port)


def local_devices() -> list[str]:
    """Returns the GPUs of this machine that training is to be split among; empty below two."""
    if keras.backend.backend() != "tensorflow":
        return []
    gpus = tf.config.get_visible_devices("GPU")
    return [f"GPU:{place}" for place in range(len(gpus))] if len(gpus) > 1 else []


@dataclass(frozen=True)
class Share:
    """The batches that one machine trains on in a step.

    Attributes:
        batches: One for each of its devices, None where nothing is left for it.
        num_items: Utterances of the whole step, on all machines.
    """

    batches: tuple[Batch | None, ...]
    num_items: int


class Shares:
    """The shares of one machine in the batches of an epoch.

    Args:
        data: The whole epoch.
        first: Number of this machine's first device among the devices of all machines.
        count: Number of its devices.
        total: Number of devices of all machines.
    """

    def __init__(self, data: TrainingData, first: int, count: int, total: int) -> None:
        self._data = data
        self._single = data.at_epoch(data.epoch)
        self._single.batch_size = 1
        self._devices = slice(first, first + count)
        self._total = total

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return len(self._data)

    def batch(self, index: int) -> Share:
        """Returns the share in one batch; only its own utterances are read and mixed."""
        first = index * self._data.batch_size
        last = min(first + self._data.batch_size, self._data.num_items)
        parts = np.array_split(np.arange(first, last), self._total)[self._devices]
        return Share(tuple(self._collated(part) for part in parts), last - first)

    def _collated(self, places: np.ndarray) -> Batch | None:
        singles = [self._single.batch(int(place)) for place in places]
        items = [(batch.noisy[0, :, 0], batch.clean[0, :, 0]) for batch in singles]
        return collate(items) if items else None


class EveryNth:
    """Every ``count``-th batch of some data, from batch ``first`` on."""

    def __init__(self, data: Batches[Batch], first: int, count: int) -> None:
        self._data = data
        self._places = range(first, len(data), count)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self._places)

    def batch(self, index: int) -> Batch:
        """Returns one batch."""
        return self._data.batch(self._places[index])


class Replicas:
    """Takes the training steps of one model on several devices and machines.

    Args:
        model: A compiled ``speech.net.chain_training.TrainingModel``; several devices of one
            machine need its convolutions to be Keras' own.
        devices: Of this machine, such as 'GPU:0'; empty for where TensorFlow puts things.
        machines: All machines of the run; None for this one alone.
        batch_size: Utterances of a step.

    Raises:
        ValueError: There are more devices than utterances in a step.
    """

    def __init__(
        self, model: keras.Model, devices: Sequence[str], machines: Machines | None, batch_size: int
    ) -> None:
        self._model = model
        self._machines = machines
        self._devices: list[str | None] = list(devices) or [None]
        self.first, self.total = 0, len(self._devices)
        if machines is not None:
            counts = np.zeros(machines.count, np.int32)
            counts[machines.rank] = len(self._devices)
            counts = machines.sum(counts)
            self.first, self.total = int(counts[: machines.rank].sum()), int(counts.sum())
        if batch_size < self.total:
            raise ValueError(
                f"a step of {batch_size} utterances can't be shared by {self.total} devices; give "
                f"--batch-size {self.total} or more"
            )
        self._gradient = tf.function(self._local_gradient, reduce_retracing=True)
        self._update = tf.function(self._apply)

    def shares(self, data: TrainingData) -> Shares:
        """Returns this machine's shares of an epoch."""
        return Shares(data, self.first, len(self._devices), self.total)

    def places(self, num_items: int) -> list[range]:
        """Returns which items of a batch each device of this machine gets."""
        parts = np.array_split(np.arange(num_items), self.total)
        chosen = parts[self.first : self.first + len(self._devices)]
        return [range(int(part[0]), int(part[-1]) + 1) for part in chosen]

    def step(self, share: Share) -> float:
        """Takes one step; returns the loss of the whole batch before it.

        Raises:
            MachineLostError: See `Machines.sum`.
        """
        given = tuple(b and (b.noisy, b.lengths, b.clean) for b in share.batches)
        if any(given):
            vector = self._gradient(given, tf.constant(share.num_items, tf.float32))
        else:
            vector = np.zeros(1 + sum(map(_size, self._model.trainable_variables)), np.float32)
        if self._machines is not None:
            vector = self._machines.sum(vector)
        self._update(vector)
        return float(vector[-1])

    def _local_gradient(self, given: Sequence[tuple | None], num_items: Any) -> Any:
        """Returns the gradient of this machine's part of the loss, flat, and the part itself."""
        variables = [variable.value for variable in self._model.trainable_variables]
        vectors = []
        for device, batch in zip(self._devices, given, strict=True):
            if batch is None:
                continue
            noisy, lengths, clean = batch
            with tf.device(device):
                with tf.GradientTape() as tape:
                    enhanced = self._model((noisy, lengths), training=True)
                    loss = self._model.compute_loss((noisy, lengths), clean, enhanced)
                    part = loss * (tf.cast(tf.shape(noisy)[0], loss.dtype) / num_items)
                    scaled = self._model.optimizer.scale_loss(part)
                gradients = tape.gradient(scaled, variables, unconnected_gradients="zero")
                flat = [tf.reshape(gradient, [-1]) for gradient in gradients]
                vectors.append(tf.concat([*flat, tf.reshape(part, [1])], axis=0))
        return tf.add_n(vectors)

    def _apply(self, vector: Any) -> None:
        """Takes the optimizer's step with the gradient of all."""
        variables = self._model.trainable_variables
        parts = tf.split(vector[:-1], [_size(variable) for variable in variables])
        gradients = [
            tf.reshape(part, variable.shape)
            for part, variable in zip(parts, variables, strict=True)
        ]
        self._model.optimizer.apply(gradients, variables)


def _size(variable: Any) -> int:
    return int(np.prod(variable.shape))
