"""Dense networks in NumPy: what runs experts and autoencoders once they are trained.

No Keras, no TensorFlow. The Keras layer of the modified ReLU, with which they are trained, is
`speech.net.layers.ModifiedReLU`; it stands there so that a model file opens without this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mnn.features import Conventions, conventions_of
from speech.base.lazy import scipy
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFile
from speech.sound.stft import context_frames

#: Frames that go through the network at a time: bounds the memory.
BLOCK_FRAMES = 4096

Step = Callable[[np.ndarray, np.random.Generator | None], np.ndarray]


def modified_relu(values: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    """Returns a for a >= epsilon, -epsilon / (a - 1 - epsilon) below (Liu et al. 2014).

    Args:
        values: Float array of any shape; a new one of the same dtype is returned.
        epsilon: Where the two pieces meet.
    """
    below = np.minimum(values, epsilon)
    np.subtract(1 + epsilon, below, out=below)
    np.divide(epsilon, below, out=below)
    # The lower piece lies above a below epsilon, and at epsilon, which it reaches, from there on.
    return np.maximum(values, below, out=below)


#: By the names of `speech.modelfile.rules.ACTIVATIONS`.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda values: values,
    "relu": lambda values: np.maximum(values, 0),
    "sigmoid": lambda x: scipy.special.expit(x),
    "tanh": np.tanh,
    "silu": lambda values: values * scipy.special.expit(values),
}


class DenseNetwork:
    """A chain of Dense, Dropout and pointwise layers, ready to run.

    Args:
        layers: As `speech.modelfile.read.read_model_file` gives them, InputLayer first.

    Attributes:
        num_inputs: Values per frame that go in.
        num_outputs: Values per frame that come out.

    Raises:
        ValueError: A layer is none of these; such a model runs in Keras only.
    """

    def __init__(self, layers: Sequence[LayerSpec]) -> None:
        kernels = [layer.weights["kernel"] for layer in layers if layer.class_name == "Dense"]
        if not kernels:
            raise ValueError("the network has no Dense layer")
        self.num_inputs, self.num_outputs = kernels[0].shape[0], kernels[-1].shape[1]
        self._steps = [step for layer in layers if (step := step_of(layer)) is not None]
        named = [layer for layer in layers if layer.class_name != "InputLayer"]
        first = next(place for place, layer in enumerate(named) if layer.class_name == "Dense")
        # Dropout, which does nothing in use, may stand before the first product.
        plain = all(layer.class_name == "Dropout" for layer in named[:first])
        self._first = _Dense.of(named[first]) if plain else None
        self._rest = self._steps[first + 1 :]
        self._kernels: dict[int, np.ndarray] = {}  # the first one, its parts side by side

    def __call__(self, frames: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Runs the network.

        Args:
            frames: float32 [num_frames, num_inputs].
            rng: Draws what dropout turns off, on input and hidden units, as in training; what
                is left is scaled by 1 / keep. None: nothing is turned off.

        Returns:
            float32 [num_frames, num_outputs].

        Raises:
            ValueError: The shape is another.
        """
        if frames.ndim != 2 or frames.shape[1] != self.num_inputs:
            raise ValueError(
                f"frames have the shape {frames.shape}; [num_frames, {self.num_inputs}] expected"
            )
        frames = frames.astype(np.float32, copy=False)
        return self._in_blocks(
            len(frames), lambda start, stop: _through(self._steps, frames[start:stop], rng)
        )

    def over_frames(
        self, frames: np.ndarray, context: int, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Runs the network on frames joined with their neighbours (see ``context_frames``).

        Without dropout nothing is joined: each frame is multiplied once with the rows of the first
        kernel that belong to each of its places in an input, and the products are added.

        Args:
            frames: float32 [num_frames, num_inputs / context].
            context: Number of frames joined to an input, odd.
            rng: As for a call.

        Returns:
            float32 [num_frames, num_outputs].
        """
        if context == 1 or rng is not None or self._first is None:
            return self(frames if context == 1 else context_frames(frames, context), rng)
        frames, layer = frames.astype(np.float32, copy=False), self._first
        kernel = self._kernels.get(context)
        if kernel is None:
            kernel = self._kernels[context] = np.hstack(np.split(layer.kernel, context))

        def block(start: int, stop: int) -> np.ndarray:
            values = _joined_product(frames, kernel, context, start, stop)
            return _through(self._rest, layer.finish(values), None)

        return self._in_blocks(len(frames), block)

    def _in_blocks(self, num_frames: int, block: Callable[[int, int], np.ndarray]) -> np.ndarray:
        if 0 < num_frames <= BLOCK_FRAMES:
            return block(0, num_frames).astype(np.float32, copy=False)
        output = np.empty((num_frames, self.num_outputs), np.float32)
        for start in range(0, num_frames, BLOCK_FRAMES):
            stop = min(start + BLOCK_FRAMES, num_frames)
            output[start:stop] = block(start, stop)
        return output


def load_network(path: str | os.PathLike, kind: str) -> tuple[ModelFile, Conventions, DenseNetwork]:
    """Loads a network over spectra.

    Args:
        path: An .h5 model file, possibly from a stranger.
        kind: 'mask' or 'autoencoder'.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused, is of another kind, or is no Dense network of the
            inputs that its ``speech_meta`` names.
    """
    file = read_model_file(path)
    conventions = conventions_of(file.meta, kind, path)
    try:
        network = DenseNetwork(file.layers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    sizes = network.num_inputs, network.num_outputs
    expected = conventions.num_inputs, conventions.stft.num_bins
    if sizes != expected:
        raise ValueError(
            f"{path}: takes {sizes[0]} values and gives {sizes[1]}, but its speech_meta calls for "
            f"{expected[0]} and {expected[1]}"
        )
    return file, conventions, network


@dataclass(frozen=True, eq=False)
class _Dense:
    """A Dense layer: kernel [num_inputs, units], bias [units] or 0, activation."""

    kernel: np.ndarray
    bias: np.ndarray
    activation: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, layer: LayerSpec) -> _Dense:
        bias = layer.weights.get("bias", np.zeros((), np.float32))
        return cls(layer.weights["kernel"], bias, ACTIVATIONS[layer.config["activation"]])

    def finish(self, product: np.ndarray) -> np.ndarray:
        """Returns the output, given inputs times kernel, which is overwritten."""
        product += self.bias
        return self.activation(product)


def _through(
    steps: Sequence[Step], values: np.ndarray, rng: np.random.Generator | None
) -> np.ndarray:
    for step in steps:
        values = step(values, rng)
    return values


def _joined_product(
    frames: np.ndarray, kernel: np.ndarray, context: int, start: int, stop: int
) -> np.ndarray:
    """Returns joined frames ``start`` to ``stop`` times the kernel of a network's first layer.

    Args:
        frames: [num_frames, num_bins].
        kernel: [num_bins, context * units], that of the earliest frame first.
        context: Frames joined, odd; at the ends the first and the last stand in for others.
        start: First frame.
        stop: The frame after the last.
    """
    num_frames, margin = len(frames), context // 2
    first = max(start - margin, 0)
    products = frames[first : stop + margin] @ kernel
    parts = np.split(products, context, axis=1)
    total = parts[margin][start - first : stop - first].copy()
    for shift in range(-margin, margin + 1):
        if not shift:
            continue
        own = parts[margin + shift]
        low, high = start + shift, stop + shift
        begin = max(low, 0)
        end = max(min(high, num_frames), begin)
        total[begin - low : end - low] += own[begin - first : end - first]
        total[: begin - low] += own[0]
        total[end - low :] += own[-1]
    return total


def step_of(layer: LayerSpec) -> Step | None:
    """Returns what a layer does to frames, each by itself; None for the InputLayer.

    Raises:
        ValueError: The layer is of another class.
    """
    config = layer.config
    match layer.class_name:
        case "InputLayer":
            return None
        case "Dense":
            dense = _Dense.of(layer)
            return lambda values, _: dense.finish(values @ dense.kernel)
        case "Activation":
            activation = ACTIVATIONS[config["activation"]]
            return lambda values, _: activation(values)
        case "icse>ModifiedReLU":
            return lambda values, _: modified_relu(values, config["epsilon"])
        case "Dropout":
            return lambda values, rng: _dropout(values, config["rate"], rng)
    raise ValueError(f"layer {layer.name!r} is a {layer.class_name}, expected Dense layers only")


def _dropout(values: np.ndarray, rate: float, rng: np.random.Generator | None) -> np.ndarray:
    if rng is None or not rate:
        return values
    kept = rng.random(values.shape, np.float32) >= rate
    return values * kept * np.float32(1 / (1 - rate))
