"""The baseline network: a fully convolutional net from noisy to clean waveform.

Tensors are [batch, time, 1] float32, samples in [-1, 1]; any length in, the same length out.
Hidden layer i is ``conv<i>`` -> ``norm<i>`` -> ``act<i>``; one more convolution with a single
filter and ``output`` (tanh) follow. The normalisation uses the statistics of each utterance and
channel over time, in training and at test time alike (docs/papers.md,
"ICSE: the FCN").
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from speech.base.lazy import keras
from speech.modelfile.exam import MAX_WEIGHT_BYTES


@dataclasses.dataclass(frozen=True)
class FCNConfig:
    """Shape and constants of the network; the defaults are the paper's.

    Source: docs/papers.md, "ICSE: the FCN".

    Attributes:
        num_hidden_layers: Convolutions before the last one.
        num_filters: Filters of every hidden layer, or one number for each hidden layer.
        kernel_size: Taps of every convolution.
        negative_slope: Slope of LeakyReLU below zero.
        normalization_epsilon: Added to the variance; Keras' own default is 1e-3.
        initializer_range: Kernels start uniform in +- this range.

    Raises:
        ValueError: A value is out of range.
    """

    num_hidden_layers: int = 7
    num_filters: int | tuple[int, ...] = 30
    kernel_size: int = 55
    negative_slope: float = 0.3
    normalization_epsilon: float = 1e-5
    initializer_range: float = 0.05

    def __post_init__(self) -> None:
        """Checks every value; a list of filters becomes a tuple."""
        _check_positive_int("num_hidden_layers", self.num_hidden_layers)
        _check_positive_int("kernel_size", self.kernel_size)
        if isinstance(self.num_filters, list | tuple):
            object.__setattr__(self, "num_filters", tuple(self.num_filters))
            if len(self.num_filters) != self.num_hidden_layers:
                raise ValueError(
                    f"num_filters lists {len(self.num_filters)} layers, expected one number "
                    f"for each of the {self.num_hidden_layers} hidden layers"
                )
        for number in self.filters:
            _check_positive_int("num_filters", number)
        for name in ("negative_slope", "normalization_epsilon", "initializer_range"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "negative_slope"):
                raise ValueError(f"{name} is {value!r}, expected a finite positive number")
        if 4 * self.num_convolution_weights > MAX_WEIGHT_BYTES:
            raise ValueError(
                f"num_filters is {self.num_filters}: {self.num_convolution_weights:,} weights, "
                f"more than the {MAX_WEIGHT_BYTES >> 20} MiB that a model file can hold"
            )

    @property
    def filters(self) -> tuple[int, ...]:
        """Number of filters of each hidden layer."""
        if isinstance(self.num_filters, tuple):
            return self.num_filters
        return (self.num_filters,) * self.num_hidden_layers

    @property
    def num_convolution_weights(self) -> int:
        """Number of kernel weights, biases left out."""
        channels = (1, *self.filters, 1)
        return self.kernel_size * sum(
            channels[i] * channels[i + 1] for i in range(len(channels) - 1)
        )

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters: kernels, biases, gammas and betas."""
        return self.num_convolution_weights + 3 * sum(self.filters) + 1

    @property
    def receptive_field(self) -> int:
        """Input samples that the convolutions see for one output sample."""
        return 1 + (self.num_hidden_layers + 1) * (self.kernel_size - 1)

    def layer_configs(self) -> list[tuple[str, dict[str, Any]]]:
        """Describes the network as (class name, settings) of standard Keras layers, in order."""
        layers: list[tuple[str, dict[str, Any]]] = [
            ("InputLayer", {"name": "input", "batch_shape": [None, None, 1]})
        ]
        for index, filters in enumerate((*self.filters, 1), start=1):
            layers.append(
                (
                    "Conv1D",
                    {
                        "name": f"conv{index}",
                        "filters": filters,
                        "kernel_size": self.kernel_size,
                        "strides": 1,
                        "padding": "same",
                        "data_format": "channels_last",
                        "dilation_rate": 1,
                        "activation": "linear",
                        "use_bias": True,
                    },
                )
            )
            if index > self.num_hidden_layers:
                break
            normalization = {
                "name": f"norm{index}",
                "groups": -1,  # one group per channel: statistics over time alone
                "axis": -1,
                "epsilon": self.normalization_epsilon,
                "center": True,
                "scale": True,
            }
            activation = {"name": f"act{index}", "negative_slope": self.negative_slope}
            layers += [("GroupNormalization", normalization), ("LeakyReLU", activation)]
        layers.append(("Activation", {"name": "output", "activation": "tanh"}))
        return layers


def build_fcn(config: FCNConfig | None = None, *, seed: int = 0) -> keras.Model:
    """Builds the network with fresh weights.

    Args:
        config: Shape and constants, by default the paper's.
        seed: Seed of the kernels; the same seed gives the same weights.

    Returns:
        A Sequential model of standard Keras layers, [batch, time, 1] -> [batch, time, 1].

    Raises:
        ValueError: ``seed`` is not a non-negative integer.
    """
    config = FCNConfig() if config is None else config
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}, expected an integer of at least 0")
    # One seed per layer: layers of one shape would otherwise start with the same kernels.
    seeds = iter(np.random.SeedSequence(seed).generate_state(config.num_hidden_layers + 1))
    layers = []
    for class_name, settings in config.layer_configs():
        if class_name == "Conv1D":
            settings["kernel_initializer"] = keras.initializers.RandomUniform(
                -config.initializer_range, config.initializer_range, seed=int(next(seeds))
            )
        layers.append(getattr(keras.layers, class_name)(**settings))
    return keras.Sequential(layers, name="fcn")


def _check_positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")
