"""Dense networks in NumPy: what runs experts and autoencoders once they are trained.

No Keras, no TensorFlow. The Keras layer of the modified ReLU, with which they are trained, is
`speech.layers.ModifiedReLU`; it stands there so that a model file opens without this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import scipy.special

from mnn.features import Conventions, conventions_of
from speech.modelfile import LayerSpec, ModelFile, read_model_file

#: Frames that go through the network at a time: bounds the memory.
BLOCK_FRAMES = 4096

Step = Callable[[np.ndarray, np.random.Generator | None], np.ndarray]


def modified_relu(values: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    """Returns a for a >= epsilon, -epsilon / (a - 1 - epsilon) below (Liu et al. 2014).

    Args:
        values: Float array of any shape; a new one of the same dtype is returned.
        epsilon: Where the two pieces meet.
    """
    below = epsilon / (1 + epsilon - np.minimum(values, epsilon))
    return np.where(values >= epsilon, values, below)


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda values: values,
    "relu": lambda values: np.maximum(values, 0),
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
}


class DenseNetwork:
    """A chain of Dense, Dropout and pointwise layers, ready to run.

    Args:
        layers: As `speech.modelfile.read_model_file` gives them, InputLayer first.

    Attributes:
        num_inputs: Values a frame that go in.
        num_outputs: Values a frame that come out.

    Raises:
        ValueError: A layer is none of these; such a model runs in Keras only.
    """

    def __init__(self, layers: Sequence[LayerSpec]) -> None:
        kernels = [layer.weights["kernel"] for layer in layers if layer.class_name == "Dense"]
        if not kernels:
            raise ValueError("the network has no Dense layer")
        self.num_inputs, self.num_outputs = kernels[0].shape[0], kernels[-1].shape[1]
        self._steps = [step for layer in layers if (step := _step(layer)) is not None]

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
        output = np.empty((len(frames), self.num_outputs), np.float32)
        for start in range(0, len(frames), BLOCK_FRAMES):
            values = frames[start : start + BLOCK_FRAMES].astype(np.float32, copy=False)
            for step in self._steps:
                values = step(values, rng)
            output[start : start + len(values)] = values
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


def _step(layer: LayerSpec) -> Step | None:
    config = layer.config
    match layer.class_name:
        case "InputLayer":
            return None
        case "Dense":
            kernel, bias = layer.weights["kernel"], layer.weights.get("bias", np.float32(0))
            activation = _ACTIVATIONS[config["activation"]]
            return lambda values, _: activation(values @ kernel + bias)
        case "Activation":
            activation = _ACTIVATIONS[config["activation"]]
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
