"""Networks of checked layers as functions on arrays, run by Keras on whatever backend it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from speech.modelfile import LayerSpec
from speech.net.memory import MAX_BYTES, keras_bytes, too_large


def keras_function(layers: Iterable[LayerSpec]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that runs a network without training it.

    Args:
        layers: Layers with weights that passed the exam of ``speech.modelfile``.

    Returns:
        A function of float32 [batch, time, ...] or [batch, values], of any batch and time, that
        returns float32. It may be called from several threads. A batch without time goes in parts
        that fit into memory. It raises ValueError for a signal that does not fit.
    """
    from speech.device import quiet_start

    with quiet_start():
        import keras

    from speech.weights import build_model

    layers = tuple(layers)
    model = build_model(layers)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # One graph for every length.
        shape = layers[0].config["batch_shape"]
        free = [None, None, *shape[2:]] if len(shape) > 2 else [None, *shape[1:]]
        call = tf.function(
            lambda x: model(x, training=False), input_signature=[tf.TensorSpec(free, tf.float32)]
        )
    else:

        def call(x):
            return model(x, training=False)

    def part(values: np.ndarray) -> np.ndarray:
        return np.array(keras.ops.convert_to_numpy(call(values)), np.float32)

    def run(values: np.ndarray) -> np.ndarray:
        num_frames = values.shape[1] if values.ndim > 2 else 1
        item_bytes = keras_bytes(layers, num_frames)
        if values.ndim == 2:
            size = max(1, MAX_BYTES // max(item_bytes, 1))
            return np.concatenate(
                [part(values[at : at + size]) for at in range(0, max(len(values), 1), size)]
            )
        if item_bytes * len(values) > MAX_BYTES:
            raise ValueError(too_large(item_bytes * len(values), f"{num_frames:,} frames"))
        return part(values)

    return run
