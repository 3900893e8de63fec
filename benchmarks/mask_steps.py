"""Training steps of the network over time and frequency, each contender in a process of its own.

A process sets itself up from the weights of ours, takes one step of two pieces, and is refused if
its loss or any of its gradients is another; then it takes a step of the whole batch whenever it is
asked to. ``benchmarks.training`` asks. Two pieces only: over a whole batch PyTorch's own sums in
float32 are off by up to 1e-4 of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speech.base import cli
from speech.base.checkpoint import write_npz
from speech.base.children import Child, ChildDied

OURS = "ours"
#: Contender -> the backend of Keras it runs on; PyTorch alone uses none.
CONTENDERS = {
    OURS: "tensorflow",
    "PyTorch": None,
    "Keras, TensorFlow": "tensorflow",
    "Keras, JAX": "jax",
    "Keras, torch": "torch",
}
PIECE_SECONDS = 2.0
CHECKED_PIECES = 2
#: Loss and gradients may differ by this share of the largest gradient of a layer.
TOLERANCE = 1e-4
_BETA_1 = 0.9
_OPTIMIZER = {"learning_rate": 1e-3, "weight_decay": 0.01}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What all contenders do.

    Attributes:
        size: Form of the network, of ``speech.net.timefrequency.SIZES``.
        pieces: Pieces of speech per step, of `PIECE_SECONDS` each.
        folder: Where ours leaves its weights, loss and gradients for the others.
    """

    size: str
    pieces: int
    folder: Path

    def signals(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float32 [pieces, num_samples, 1]."""
        from benchmarks import common

        clean = common.random_speech(PIECE_SECONDS, 0, self.pieces)
        return clean + common.random_speech(PIECE_SECONDS, 1, self.pieces), clean


def start(name: str, task: Task) -> Callable[[], None]:
    """Starts a contender's process and returns what asks it for a step.

    Args:
        name: Of `CONTENDERS`; ours goes first.
        task: The same for all.

    Raises:
        ImportError: A package of the contender is not installed.
        ValueError: It computes something else than ours, or has failed.
    """
    backend = CONTENDERS[name]
    changes = {} if backend is None else {"KERAS_BACKEND": backend}
    child = Child("benchmarks.mask_steps:answer", cli.python_environment(**changes))
    try:
        child.call("begin", name, task)
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed", name=error.name) from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except ChildDied as error:
        raise ValueError(f"{name}: its process {error}; see above") from None
    return lambda: child.call("step")


_step: list[Callable[[], Any]] = []


def answer(what: str, *arguments: Any) -> None:
    """Answers in a contender's process: 'begin' sets it up, 'step' takes a step."""
    if what == "begin":
        name, task = arguments
        if CONTENDERS[name] is None:
            _step[:] = [_torch_step(task)]
        else:
            _step[:] = [_keras_step(task, "fast" if name == OURS else "keras")]
    else:
        _step[0]()


def _keras_step(task: Task, engine: str) -> Callable[[], Any]:
    from speech.base.device import quiet_start

    with quiet_start():
        import keras

        from speech.net.training_model import MaskTrainingModel
    from speech.net.timefrequency import SIZES, build_time_frequency

    config = SIZES[task.size]
    network = build_time_frequency(config)
    places = ["/".join(variable.path.rsplit("/", 2)[-2:]) for variable in network.weights]
    path = task.folder / "weights.npz"
    if engine == "fast":
        write_npz(path, _random_weights(network, places))
    with np.load(path) as found:
        for place, variable in zip(places, network.weights, strict=True):
            variable.assign(found[place])
    model = MaskTrainingModel(network, config, engine=engine)
    if engine == "fast" and not model.uses_c_kernels:
        raise ValueError("the C kernels do not run here; see python -m speech.doctor")
    optimizer = keras.optimizers.AdamW(beta_1=_BETA_1, **_OPTIMIZER)
    model.compile(optimizer, jit_compile=keras.backend.backend() == "jax")
    noisy, clean = task.signals()
    lengths = np.full(len(noisy), noisy.shape[1], np.int32)

    def step(pieces: int | None = None) -> Any:
        some = slice(pieces)
        return model.train_on_batch((noisy[some], lengths[some]), clean[some])

    loss = float(np.asarray(step(CHECKED_PIECES)))
    # After one step the momentum is the gradient times 1 - beta_1.
    trained = [place for place, variable in zip(places, network.weights, strict=True)
               if variable.trainable]  # fmt: skip
    momenta = zip(trained, optimizer._momentums, strict=True)
    _check(task, loss, {
        place: keras.ops.convert_to_numpy(momentum) / (1 - _BETA_1) for place, momentum in momenta
    })  # fmt: skip
    return step


def _random_weights(network: Any, places: list[str]) -> Arrays:
    """Returns the weights with random normalisations: as built, some of these are zero."""
    rng = np.random.default_rng(0)
    weights = {}
    for place, variable in zip(places, network.weights, strict=True):
        array = np.asarray(variable)
        if place.endswith("/gamma"):
            array = rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
        elif place.endswith("/beta"):
            array = rng.normal(0, 0.1, array.shape).astype(np.float32)
        weights[place] = array
    return weights


def _torch_step(task: Task) -> Callable[[], Any]:
    import torch

    from benchmarks.torch_time_frequency import Step
    from speech.net.mask_loss import MaskLoss
    from speech.net.timefrequency import SIZES

    own = Step(SIZES[task.size], MaskLoss())
    weights: dict[str, Arrays] = {}
    with np.load(task.folder / "weights.npz") as found:
        for place, array in found.items():
            layer, name = place.split("/")
            weights.setdefault(layer, {})[name] = array
    own.network.load(weights)
    optimizer = torch.optim.AdamW(
        own.network.parameters(), lr=_OPTIMIZER["learning_rate"], betas=(_BETA_1, 0.999),
        weight_decay=_OPTIMIZER["weight_decay"],
    )  # fmt: skip
    noisy, clean = (torch.from_numpy(signal[:, :, 0]) for signal in task.signals())

    def step(pieces: int | None = None) -> float:
        optimizer.zero_grad()
        loss = own.loss(noisy[:pieces], clean[:pieces])
        loss.backward()
        optimizer.step()
        return loss.item()

    loss = step(CHECKED_PIECES)
    _check(task, loss, {
        f"{layer}/{name}": array
        for layer, found in own.network.gradients().items() for name, array in found.items()
    })  # fmt: skip
    return step


def _check(task: Task, loss: float, gradients: Arrays) -> None:
    """Compares loss and gradients with those of ours, or keeps them if they are the first.

    Raises:
        ValueError: They are others: it would be no comparison.
    """
    path = task.folder / "gradients.npz"
    if not path.exists():
        write_npz(path, {"loss": np.asarray(loss), **gradients})
        return
    with np.load(path) as stored:
        ours = dict(stored)
    gradients = gradients | {"loss": np.asarray(loss)}
    if set(gradients) != set(ours):
        raise ValueError(f"other weights than ours: {sorted(set(gradients) ^ set(ours))[:3]}")
    for place, array in ours.items():
        error, largest = np.abs(gradients[place] - array).max(), np.abs(array).max()
        if error > TOLERANCE * largest:
            raise ValueError(
                f"the gradient of {place} differs from ours by {error:.2g}, the largest is "
                f"{largest:.2g}"
            )
