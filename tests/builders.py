"""Things that several tests make."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from speech.modelfile.h5 import write_model_file
from speech.modelfile.icse import write_compact
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFile
from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency

#: A network of the shape of the real ones that takes next to no time.
TINY = TimeFrequencyConfig(5, 6, (1, 3))


def shaken(layers: tuple[LayerSpec, ...], seed: int = 0) -> tuple[LayerSpec, ...]:
    """Gives all weights values of their own, variances positive ones, the kernels' of a sort."""
    rng = np.random.default_rng(seed)
    result = []
    for layer in layers:
        weights = {}
        for name, array in layer.weights.items():
            scale = {"kernel": 0.7 / np.sqrt(max(np.prod(array.shape[:-1]), 1))}.get(name, 0.2)
            if name in ("gamma", "moving_variance"):
                weights[name] = rng.uniform(0.6, 1.4, array.shape).astype(np.float32)
            else:
                weights[name] = (scale * rng.standard_normal(array.shape)).astype(np.float32)
        result.append(dataclasses.replace(layer, weights=weights))
    return tuple(result)


@functools.cache
def mask_layers(config: TimeFrequencyConfig = TINY, seed: int = 0) -> tuple[LayerSpec, ...]:
    """Returns the layers of a network over time and frequency of random weights, shared."""
    from speech.net.keras_models import layers_of

    return shaken(layers_of(build_time_frequency(config)), seed)


def write_mask_network(
    path: Path, layers: tuple[LayerSpec, ...] | None = None, config: TimeFrequencyConfig = TINY
) -> ModelFile:
    """Writes such a network, .h5 or .icse by the ending, and reads it again."""
    write = write_compact if path.suffix == ".icse" else write_model_file
    write(path, mask_layers(config) if layers is None else layers, config.meta())
    return read_model_file(path)


def mask_from_json(stored: dict) -> np.ndarray:
    """Returns a mask of pruned channels, bool [in, out], as the meta data of a model store it."""
    bits = "".join(f"{byte:08b}" for byte in bytes.fromhex(stored["kept"]))
    count = stored["shape"][0] * stored["shape"][1]
    return np.array([bit == "1" for bit in bits[:count]]).reshape(stored["shape"])


def graph(*layers: tuple) -> tuple[LayerSpec, ...]:
    """Returns layers of (class, name, inputs, settings, shapes of the weights), all random.

    An InputLayer of [frames, 256, 3] named 'input' stands before them.
    """
    first = LayerSpec("InputLayer", "input", {"batch_shape": [None, None, 256, 3]})
    specs = [first]
    for class_name, name, inputs, settings, shapes in layers:
        weights = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
        specs.append(LayerSpec(class_name, name, settings, weights, tuple(inputs)))
    return shaken(tuple(specs), seed=3)


def conv2d(name: str, source: str, ins: int, outs: int, size=(1, 1), **settings) -> tuple:
    """Returns a Conv2D for `graph`, linear and 'same' unless told otherwise."""
    config = {
        "filters": outs, "kernel_size": list(size), "strides": [1, 1], "padding": "same",
        "data_format": "channels_last", "dilation_rate": [1, 1], "activation": "linear",
        "use_bias": True, **settings,
    }  # fmt: skip
    return "Conv2D", name, [source], config, {"kernel": (*size, ins, outs), "bias": (outs,)}
