"""Trains the network over time and frequency on waveforms: STFT, features, mask and loss.

Keras operations only, so that it trains with every backend of Keras.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import NUM_BINS, POWER_FLOOR, TimeFrequencyConfig
from speech.stft import analysis_window

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
        self._stft, self._power = config.stft, config.power

    @property
    def uses_c_kernels(self) -> bool:
        """Whether this model runs through the C kernels."""
        return False

    def network_inputs(self, noisy: Any) -> Any:
        """Returns the features [batch, frames, 256, 3] of noisy speech [batch, time, 1]."""
        return _features(self._compressed(noisy[:, :, 0]))

    def call(self, inputs, training=False):
        """Estimates the compressed clean spectrum; see the class."""
        noisy, _ = inputs
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
        estimate = y_pred[..., 0], y_pred[..., 1]
        target = self._compressed(clean)
        total = weights.complex * _mean_square(estimate, target)
        if weights.magnitude:
            excess = _magnitude(estimate) - _magnitude(target)
            total += weights.magnitude * ops.mean(ops.square(excess))
        if weights.consistency or weights.waveform:
            enhanced = self._waveform(estimate)[:, : ops.shape(clean)[1]]
            total += weights.waveform * ops.mean(ops.abs(enhanced - clean))
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


def _features(compressed: Complex) -> Any:
    return ops.stack([*compressed, _magnitude(compressed)], axis=-1)


def _magnitude(spectra: Complex) -> Any:
    return ops.sqrt(ops.square(spectra[0]) + ops.square(spectra[1]) + _TINY)


def _mean_square(one: Complex, other: Complex) -> Any:
    """Returns the mean |one - other|^2."""
    return sum(ops.mean(ops.square(a - b)) for a, b in zip(one, other, strict=True))
