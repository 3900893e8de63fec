"""A Keras model whose training step is fast on a CPU.

About 85 % of a stock Keras training step of this project's network is the CPU kernel for the
convolution's filter gradient. :class:`TrainingModel` runs a whole network through
:mod:`speech.net.chain` instead, normalisation included. Weights, results and files are those of the
plain Keras layers, and those layers themselves run on a GPU, on a Keras backend other than
TensorFlow, and without a C compiler.
"""

from __future__ import annotations

import itertools
import weakref

import keras
import numpy as np
from keras import ops

from speech.base.lazy import tensorflow as tf
from speech.net import blockconv
from speech.net.chain import Network, blocks_from_layers
from speech.net.losses import Loss


def uses_c_kernels() -> bool:
    """Returns whether the C kernels run: TensorFlow backend, no visible GPU, a C compiler."""
    if keras.backend.backend() != "tensorflow":
        return False
    return not tf.config.get_visible_devices("GPU") and blockconv.is_available()


class TrainingModel(keras.Model):
    """Trains a plain network on batches of utterances of unequal length.

    ``call`` takes ``(noisy, lengths)``: noisy float32 [batch, time, 1], zero beyond each
    utterance's length, and lengths int32 [batch]. It returns float32 [batch, time, 1], zero
    beyond the length. Every utterance has its own statistics and sees zeros at its own end, so
    a batch gives what its utterances give one by one (the paper trains with batches of one).

    Args:
        network: The plain Keras model whose weights are trained. Save this one.
        conv: 'fast' for the C kernels where they run, 'keras' for Keras' own layers always.
        loss: Compared with the clean batch; None for the loss that ``compile`` is given, which
            needs sample weights to leave the padding out.
    """

    def __init__(self, network: keras.Model, conv: str = "fast", loss: Loss | None = None) -> None:
        super().__init__(name="training")
        if conv not in ("fast", "keras"):
            raise ValueError(f"conv must be 'fast' or 'keras', received {conv!r}")
        self.network = network
        self._batch_loss = loss
        found = blocks_from_layers(
            [(type(layer).__name__, layer.get_config()) for layer in network.layers]
        )
        # The chain has no Dropout, which an enhancing network does without but training needs.
        drops = any(getattr(layer, "rate", 0) for layer in network.layers)
        self._chain = None
        if conv == "fast" and found is not None and not drops and uses_c_kernels():
            self._chain = Network(found[0], tanh=found[1])
        self._ticket = itertools.count(1)
        self._traces: tuple[int, list] = (0, [])

    @property
    def uses_c_kernels(self) -> bool:
        """Whether this model runs through the C kernels."""
        return self._chain is not None

    def call(self, inputs, training=False):
        """Enhances a padded batch; see the class."""
        noisy, lengths = inputs
        if self._chain is not None:
            return self._run_chain(noisy, lengths)
        return self._run_layers(noisy, lengths, training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns the loss of a batch: of ``loss`` if there is one, else Keras' own."""
        if self._batch_loss is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        lengths = x[1]
        if self._chain is not None:
            return self._run_loss(y, y_pred, lengths)
        return self._batch_loss.value(y, y_pred, lengths)

    def compute_output_shape(self, input_shape):
        """Returns the shape of the outputs: that of ``noisy``."""
        return input_shape[0]

    def _run_loss(self, clean, enhanced, lengths):
        """TensorFlow op of the loss in NumPy, value and gradient in one go."""
        loss = self._batch_loss
        assert loss is not None

        def forward(clean, enhanced, lengths):
            value, gradient = loss.value_and_gradient(clean, enhanced, lengths)
            return np.float32(value), gradient

        @tf.custom_gradient
        def op(enhanced):
            value, gradient = tf.numpy_function(
                forward, [clean, enhanced, lengths], [tf.float32, tf.float32], stateful=False
            )
            value.set_shape(())
            gradient.set_shape(enhanced.shape)
            return value, lambda upstream: upstream * gradient

        return op(enhanced)

    def _run_layers(self, noisy, lengths, training):
        mask = ops.cast(
            ops.arange(ops.shape(noisy)[1])[None, :] < ops.cast(lengths, "int32")[:, None],
            noisy.dtype,
        )[:, :, None]
        num_samples = ops.cast(lengths, noisy.dtype)[:, None, None]
        outputs = noisy
        for layer in self.network.layers:
            if isinstance(layer, keras.layers.GroupNormalization):
                outputs = _masked_normalization(layer, outputs, mask, num_samples)
            elif isinstance(layer, keras.layers.Dropout):
                outputs = layer(outputs, training=training)
            elif not isinstance(layer, keras.layers.InputLayer):
                outputs = layer(outputs)
            # 'same' padding puts zeros beyond the end of an utterance: so must a batch.
            if not isinstance(layer, keras.layers.InputLayer | keras.layers.Conv1D):
                outputs = outputs * mask
        return outputs * mask

    def _run_chain(self, noisy, lengths):
        # TensorFlow keeps the gradient functions of every graph for good, so they must not hold
        # the model: it keeps the outputs of all layers for a whole batch in memory.
        model = weakref.ref(self)

        def forward(batch, lengths, *parameters):
            this = model()
            assert this is not None and this._chain is not None
            outputs, traces = this._chain.forward(batch, lengths, parameters)
            ticket = next(this._ticket)
            this._traces = (ticket, traces)
            return outputs, np.int64(ticket)

        def backward(gradient, ticket, batch, lengths, *parameters):
            this = model()
            assert this is not None and this._chain is not None
            if this._traces[0] != ticket:  # another forward pass came between
                forward(batch, lengths, *parameters)
            return this._chain.backward(gradient, this._traces[1], parameters)

        @tf.custom_gradient
        def op(batch, lengths, *parameters):
            outputs, ticket = tf.numpy_function(
                forward, [batch, lengths, *parameters], [tf.float32, tf.int64]
            )
            outputs.set_shape(batch.shape)

            def gradient(upstream):
                parts = tf.numpy_function(
                    backward,
                    [upstream, ticket, batch, lengths, *parameters],
                    [tf.float32] * len(parameters),
                )
                for part, parameter in zip(parts, parameters, strict=True):
                    part.set_shape(parameter.shape)
                return (None, None, *parts)

            return outputs, gradient

        return op(
            ops.convert_to_tensor(noisy),
            ops.convert_to_tensor(lengths),
            *(tf.identity(ops.convert_to_tensor(weight)) for weight in self.network.weights),
        )


def _masked_normalization(layer, inputs, mask, num_samples):
    """Per-utterance, per-channel normalisation over the valid samples of each utterance."""
    if layer.groups not in (-1, inputs.shape[-1]):
        raise ValueError(
            f"layer {layer.name!r} normalises {layer.groups} groups; only one group per channel "
            "(groups=-1) can be trained on padded batches"
        )
    mean = ops.sum(inputs * mask, axis=1, keepdims=True) / num_samples
    centred = (inputs - mean) * mask
    variance = ops.sum(ops.square(centred), axis=1, keepdims=True) / num_samples
    return centred * ops.rsqrt(variance + layer.epsilon) * layer.gamma + layer.beta
