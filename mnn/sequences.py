"""Recurrent networks over frames in NumPy: LSTM, GRU and SimpleRNN, and the layers of `mnn.layers`.

Frames come block by block, and each recurrent layer keeps its state from one block to the next, so
that the blocks give the same results as the whole signal, up to rounding. A Bidirectional layer
also reads from the end; such a network takes the whole signal as one block. All states start at
zero.

The equations follow Keras, with its order of the gates along the last axis of a kernel:
input, forget, candidate, output for an LSTM (Hochreiter and Schmidhuber 1997, with the forget gate
of Gers et al. 2000); update, reset, candidate for a GRU (Cho et al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from mnn.layers import ACTIVATIONS, step_of
from speech.modelfile.rules import DIRECTIONS, GATES
from speech.modelfile.spec import LayerSpec, is_chain

#: Frames whose inputs are multiplied at a time: bounds the memory of the gates.
PIECE_FRAMES = 256

#: float32 [num_frames, num_inputs] -> [num_frames, num_outputs]; may keep a state between calls.
Run = Callable[[np.ndarray], np.ndarray]

_MERGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "concat": lambda one, other: np.concatenate([one, other], axis=1),
    "sum": np.add,
    "mul": np.multiply,
    "ave": lambda one, other: (one + other) / 2,
}


class SequenceNetwork:
    """A chain of recurrent, Dense, Dropout and pointwise layers, ready to run.

    Args:
        layers: As `speech.modelfile.read.read_model_file` gives them, InputLayer first.

    Attributes:
        is_causal: Whether no frame depends on a later one; else a signal comes as one block.

    Raises:
        ValueError: A layer is none of these, or reads something else than the one before it; such a
            model runs in Keras only.
    """

    def __init__(self, layers: Sequence[LayerSpec]) -> None:
        if not is_chain(layers):
            raise ValueError("the network is no chain of layers")
        self.is_causal = all(layer.class_name != "Bidirectional" for layer in layers)
        self._starts = [start for layer in layers if (start := _start_of(layer)) is not None]

    def start(self) -> Run:
        """Returns what runs one signal, block after block from its first frame on."""
        runs = [start() for start in self._starts]

        def run(frames: np.ndarray) -> np.ndarray:
            # What overflows ends as a NaN or an infinity, which whoever asked looks for.
            with np.errstate(over="ignore", invalid="ignore"):
                return reduce(lambda values, own: own(values), runs, frames)

        return run


def _start_of(layer: LayerSpec) -> Callable[[], Run] | None:
    """Returns the function that starts a layer on a signal; None for the InputLayer."""
    if layer.class_name in GATES:
        return _Recurrent.of(layer.class_name, layer.config, layer.weights).start
    if layer.class_name == "Bidirectional":
        return _bidirectional(layer)
    step = step_of(layer)
    return None if step is None else lambda: lambda values: step(values, None)


def _bidirectional(layer: LayerSpec) -> Callable[[], Run]:
    inner, weights = layer.config["layer"], layer.weights
    forward, backward = (
        _Recurrent.of(
            inner["class_name"],
            inner["config"],
            {
                key.removeprefix(f"{which}_"): array
                for key, array in weights.items()
                if key.startswith(f"{which}_")
            },
        )
        for which in DIRECTIONS
    )
    merge = _MERGES[layer.config["merge_mode"]]
    return lambda: (
        lambda values: merge(forward.start()(values), backward.start()(values[::-1])[::-1])
    )


@dataclass(frozen=True, eq=False)
class _Recurrent:
    """An LSTM, GRU or SimpleRNN.

    Attributes:
        class_name: Key of `GATES`.
        kernel: float32 [num_inputs, gates * units].
        recurrent: float32 [units, gates * units].
        bias: Of the inputs, [gates * units] or 0.
        recurrent_bias: Of what is read of the state, [gates * units] or 0; not 0 for a GRU with
            ``reset_after`` only.
        activation: Of candidates and outputs.
        gate: Of the gates.
        reset_after: Whether a GRU resets after the recurrent kernel, not before it.
    """

    class_name: str
    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray
    recurrent_bias: np.ndarray
    activation: Callable[[np.ndarray], np.ndarray]
    gate: Callable[[np.ndarray], np.ndarray]
    reset_after: bool

    @classmethod
    def of(cls, class_name: str, config: dict, weights: dict[str, np.ndarray]) -> _Recurrent:
        none = np.zeros((), np.float32)
        bias, recurrent_bias = weights.get("bias", none), none
        if bias.ndim == 2:
            bias, recurrent_bias = bias[0], bias[1]
        return cls(
            class_name,
            weights["kernel"],
            weights["recurrent_kernel"],
            bias,
            recurrent_bias,
            ACTIVATIONS[config["activation"]],
            ACTIVATIONS[config.get("recurrent_activation", "linear")],
            config.get("reset_after", False),
        )

    def start(self) -> Run:
        """Returns what runs a signal from its first frame on, with a state of its own."""
        units = len(self.recurrent)
        step = {"LSTM": self._lstm, "GRU": self._gru, "SimpleRNN": self._simple}[self.class_name]
        state = (np.zeros(units, np.float32), np.zeros(units, np.float32))

        def run(values: np.ndarray) -> np.ndarray:
            nonlocal state
            output = np.empty((len(values), units), np.float32)
            for first in range(0, len(values), PIECE_FRAMES):
                inputs = values[first : first + PIECE_FRAMES] @ self.kernel
                inputs += self.bias
                for place, own in enumerate(inputs, first):
                    state = step(own, *state)
                    output[place] = state[0]
            return output

        return run

    def _lstm(
        self, inputs: np.ndarray, hidden: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        inputs += hidden @ self.recurrent
        units = len(cell)
        write, keep = self.gate(inputs[: 2 * units].reshape(2, units))
        cell = keep * cell + write * self.activation(inputs[2 * units : 3 * units])
        return self.gate(inputs[3 * units :]) * self.activation(cell), cell

    def _gru(
        self, inputs: np.ndarray, hidden: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        ends = 2 * len(hidden)
        if self.reset_after:
            read = hidden @ self.recurrent + self.recurrent_bias
            update, reset = self.gate(inputs[:ends] + read[:ends]).reshape(2, -1)
            candidate = self.activation(inputs[ends:] + reset * read[ends:])
        else:
            gates = self.gate(inputs[:ends] + hidden @ self.recurrent[:, :ends])
            update, reset = gates.reshape(2, -1)
            candidate = self.activation(inputs[ends:] + (reset * hidden) @ self.recurrent[:, ends:])
        return update * hidden + (1 - update) * candidate, cell

    def _simple(
        self, inputs: np.ndarray, hidden: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.activation(inputs + hidden @ self.recurrent), cell
