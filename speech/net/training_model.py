"""Trains the network over time and frequency on waveforms: STFT, features, mask and loss.

On a CPU with the TensorFlow backend the C kernels compute a step (``speech.net.tape`` and
``speech.net.mask_loss``). Anywhere else Keras operations do, with every backend of Keras.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from speech.base.lazy import tensorflow as tf
from speech.net import mask_loss, tape
from speech.net.blockconv import default_threads
from speech.net.chain_training import uses_c_kernels
from speech.net.losses import NegativeSISDR
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import NUM_BINS, POWER_FLOOR, TimeFrequencyConfig
from speech.sound.stft import analysis_window

#: Keeps the slope of a root at zero finite.
_TINY = 1e-12

Complex = tuple[Any, Any]


class MaskTrainingModel(keras.Model):
    """Trains a plain network on pieces of noisy and clean speech.

    ``call`` takes ``(noisy, lengths)``: noisy float32 [batch, time, 1], and lengths int32 [batch],
    which are not used: a piece that is shorter than the others is silent to its end. It returns
    the estimate of the compressed clean spectrum, float32 [batch, frames, 256, 2].

    Args:
        network: The plain Keras model whose weights are trained. Save this one.
        config: Conventions of the network.
        loss: Weights of the parts of the loss.
        engine: 'fast' for C kernels where they run, 'keras' for Keras' own layers always.
    """

    def __init__(
        self,
        network: keras.Model,
        config: TimeFrequencyConfig | None = None,
        loss: MaskLoss | None = None,
        engine: str = "fast",
    ) -> None:
        super().__init__(name="training")
        if engine not in ("fast", "keras"):
            raise ValueError(f"engine must be 'fast' or 'keras', received {engine!r}")
        config = config or TimeFrequencyConfig()
        self.network = network
        self._loss = loss or MaskLoss()
        self._config = config
        self._stft, self._power = config.stft, config.power
        self._kernels = None
        if engine == "fast" and uses_c_kernels():
            nodes = tape.read_layers(layers_of(network))
            if nodes is not None:
                self._kernels = _Kernels(network, nodes, self._loss, config)

    @property
    def uses_c_kernels(self) -> bool:
        """Whether this model runs through the C kernels."""
        return self._kernels is not None

    def network_inputs(self, noisy: Any) -> Any:
        """Returns the features [batch, frames, 256, 3] of noisy speech [batch, time, 1]."""
        return _features(self._compressed(noisy[:, :, 0]))

    def call(self, inputs, training=False):
        """Estimates the compressed clean spectrum; see the class."""
        noisy, _ = inputs
        if self._kernels is not None:
            return noisy  # `compute_loss` goes from here to the loss in one step
        real, imaginary = self._compressed(noisy[:, :, 0])
        mask = self.network(_features((real, imaginary)), training=training)
        mask_real, mask_imaginary = mask[..., 0], mask[..., 1]
        return ops.stack(
            [
                real * mask_real - imaginary * mask_imaginary,
                real * mask_imaginary + imaginary * mask_real,
            ],
            axis=-1,
        )

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns the loss of a batch; ``y`` is clean [batch, time, 1], ``y_pred`` of `call`."""
        weights, clean = self._loss, ops.cast(y[:, :, 0], "float32")
        if self._kernels is not None:
            return self._kernels.loss(y_pred[:, :, 0], clean, training)
        estimate = y_pred[..., 0], y_pred[..., 1]
        target = self._compressed(clean)
        total = weights.complex * _mean_square(estimate, target)
        if weights.magnitude:
            excess = _magnitude(estimate) - _magnitude(target)
            total += weights.magnitude * ops.mean(ops.square(excess))
        if weights.consistency or weights.waveform or weights.si_sdr:
            enhanced = self._waveform(estimate)[:, : ops.shape(clean)[1]]
            total += weights.waveform * ops.mean(ops.abs(enhanced - clean))
            if weights.si_sdr:
                lengths = ops.full((ops.shape(clean)[0],), ops.shape(clean)[1], "int32")
                values = NegativeSISDR().values(clean, enhanced, lengths)
                speaks = ops.cast(ops.any(clean != 0, axis=1), values.dtype)
                total += weights.si_sdr * ops.mean(speaks * values)
            if weights.consistency:
                total += weights.consistency * _mean_square(estimate, self._compressed(enhanced))
        return total

    def compute_output_shape(self, input_shape):
        """Returns the shape of the outputs."""
        batch, time = input_shape[0][:2]
        return (batch, time and self._stft.num_frames(time), NUM_BINS, 2)

    def _compressed(self, signal: Any) -> Complex:
        """Returns the compressed spectra [batch, frames, 256] of signals [batch, time]."""
        frame, hop = self._stft.frame, self._stft.hop
        padded = ops.pad(signal, [[0, 0], [frame - hop, frame - 1]])
        window = ops.convert_to_tensor(analysis_window(self._stft, np.dtype("float32")))
        real, imaginary = ops.rfft(ops.extract_sequences(padded, frame, hop) * window)
        real, imaginary = real[..., :NUM_BINS], imaginary[..., :NUM_BINS]
        level = ops.square(real) + ops.square(imaginary)
        gain = ops.power(ops.maximum(level, POWER_FLOOR), (self._power - 1) / 2)
        return real * gain, imaginary * gain

    def _waveform(self, compressed: Complex) -> Any:
        """Returns the signals [batch, time] of compressed spectra, longer by part of a frame."""
        real, imaginary = compressed
        frame, hop = self._stft.frame, self._stft.hop
        level = ops.square(real) + ops.square(imaginary)
        gain = ops.power(ops.maximum(level, _TINY), (1 / self._power - 1) / 2)
        nyquist = [[0, 0], [0, 0], [0, 1]]
        spectra = ops.pad(real * gain, nyquist), ops.pad(imaginary * gain, nyquist)
        window = analysis_window(self._stft, np.dtype("float32")) / self._stft.window_energy * hop
        frames = ops.irfft(spectra, frame) * ops.convert_to_tensor(window.astype(np.float32))
        # Each frame falls into two blocks of a hop; the first block lies before the signal.
        blocks = frames[:, 1:, :hop] + frames[:, :-1, hop:]
        return ops.reshape(blocks, (ops.shape(blocks)[0], -1))


def layers_of(network: keras.Model) -> list[tape.Layer]:
    """Returns the layers of a Keras model as `speech.net.tape.read_layers` takes them."""
    result: list[tape.Layer] = []
    for layer in network.layers:
        sources = []
        if not isinstance(layer, keras.layers.InputLayer):
            tensors = layer._inbound_nodes[0].input_tensors
            sources = [tensor._keras_history.operation.name for tensor in tensors]
        result.append((type(layer).__name__, layer.name, layer.get_config(), sources))
    return result


class _Kernels:
    """Loss and gradients of a network through the C kernels, as a TensorFlow operation."""

    def __init__(
        self,
        network: keras.Model,
        nodes: Sequence[tape.Node],
        loss: MaskLoss,
        config: TimeFrequencyConfig,
    ) -> None:
        self._variables = list(network.weights)
        self._places = [tuple(weight.path.rsplit("/", 2)[-2:]) for weight in self._variables]
        trained = {id(variable) for variable in network.trainable_variables}
        self._trained = [id(variable) in trained for variable in self._variables]
        self._norms = [node for node in nodes if node.normalized]
        self._nodes, self._loss, self._config = tuple(nodes), loss, config
        self._tape = functools.lru_cache(maxsize=2)(self._make_tape)

    def _make_tape(self, pieces: int, frames: int, gradients: bool) -> tape.Tape:
        return tape.Tape(self._nodes, pieces, frames, gradients=gradients)

    def run(
        self, training: bool, noisy: np.ndarray, clean: np.ndarray, arrays: Sequence[np.ndarray]
    ) -> tuple[float, list[np.ndarray], list[np.ndarray]]:
        """Returns loss, gradients of trained weights and (mean, variance) of the batch."""
        weights: dict[str, dict[str, np.ndarray]] = {}
        for (layer, name), array in zip(self._places, arrays, strict=True):
            weights.setdefault(layer, {})[name] = array
        threads = default_threads()
        batch = mask_loss.prepare(noisy, clean, self._config, threads)
        runner = self._tape(*batch.noisy.shape[:2], training)
        mask = runner.forward(batch.features, weights)
        loss, gradient = mask_loss.value_and_gradient(
            mask, batch, self._loss, self._config, threads
        )
        if not training:
            return loss, [], []
        found = runner.backward(gradient, weights)
        gradients = [
            found[layer][name]
            for (layer, name), trained in zip(self._places, self._trained, strict=True)
            if trained
        ]
        moments = [
            moment.astype(np.float32)
            for node in self._norms
            for moment in runner.moments[node.name]
        ]
        return loss, gradients, moments

    def loss(self, noisy: Any, clean: Any, training: bool) -> Any:
        """Returns the loss as a tensor; in training, moves the moving statistics on."""
        # TensorFlow keeps the functions of every graph for good: they must not hold the memory.
        kernels = weakref.ref(self)
        num_trained = sum(self._trained) if training else 0
        num_moments = 2 * len(self._norms) if training else 0

        def compute(noisy, clean, *arrays):
            own = kernels()
            assert own is not None
            value, gradients, moments = own.run(training, noisy, clean, arrays)
            return np.float32(value), *gradients, *moments

        @tf.custom_gradient
        def op(noisy, clean, *arrays):
            types = [tf.float32] * (1 + num_trained + num_moments)
            value, *rest = tf.numpy_function(compute, [noisy, clean, *arrays], types)
            value.set_shape(())
            parts = iter(rest[:num_trained])
            by_array = [next(parts) if training and t else None for t in self._trained]
            for part, array in zip(by_array, arrays, strict=True):
                if part is not None:
                    part.set_shape(array.shape)

            def gradient(upstream, *_):
                scaled = [None if part is None else upstream * part for part in by_array]
                return (None, None, *scaled)

            return (value, *rest[num_trained:]), gradient

        tensors = [tf.identity(ops.convert_to_tensor(variable)) for variable in self._variables]
        value, *moments = op(ops.convert_to_tensor(noisy), ops.convert_to_tensor(clean), *tensors)
        by_place = dict(zip(self._places, self._variables, strict=True))
        for index in range(num_moments):
            node = self._norms[index // 2]
            name = ("moving_mean", "moving_variance")[index % 2]
            variable, moment = by_place[node.name, name], moments[index]
            moment.set_shape(variable.shape)
            variable.assign(variable * node.momentum + moment * (1 - node.momentum))
        return value


def _features(compressed: Complex) -> Any:
    return ops.stack([*compressed, _magnitude(compressed)], axis=-1)


def _magnitude(spectra: Complex) -> Any:
    return ops.sqrt(ops.square(spectra[0]) + ops.square(spectra[1]) + _TINY)


def _mean_square(one: Complex, other: Complex) -> Any:
    """Returns the mean |one - other|^2."""
    return sum(ops.mean(ops.square(a - b)) for a, b in zip(one, other, strict=True))
