"""Networks of checked layers as functions on arrays, run by Keras on whatever backend it has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech.base import lazy
from speech.base.device import quiet_start
from speech.base.lazy import keras
from speech.base.lazy import tensorflow as tf
from speech.modelfile.exam import plan_layers
from speech.modelfile.h5 import write_model_file
from speech.modelfile.read import read_model_file
from speech.modelfile.rules import DIRECTIONS, LAYER_RULES
from speech.modelfile.spec import LayerSpec, ModelFileError, is_chain, linked, refusals
from speech.net.memory import MAX_BYTES, keras_bytes, too_large

if TYPE_CHECKING:
    from speech.net import layers as own_layers
else:
    own_layers = lazy.module("speech.net.layers")


# --------------------------------------------------------------------------------------------
# Keras models


def load_model(path: str | os.PathLike) -> keras.Model:
    """Loads a model file as a plain Keras model.

    Args:
        path: A .h5 or .icse model file, possibly from a stranger.

    Returns:
        A model of standard Keras layers, Sequential if they are a chain, not compiled.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: The file is refused (see ``speech.modelfile``).
    """
    return build_model(read_model_file(path).layers)


def build_model(layers: Iterable[LayerSpec]) -> keras.Model:
    """Builds a model from checked layers and sets its weights.

    Returns:
        A Sequential model if the layers are a chain, else a Functional one.

    Raises:
        ValueError: A custom layer is allowed but its class was not registered with Keras.
        ModelFileError: A layer of a graph names no inputs.
    """
    layers = linked(layers)
    built = []
    for spec in layers:
        layer_class = getattr(keras.layers, spec.class_name, None)
        if layer_class is None:
            lazy.load(own_layers)  # registers them
            layer_class = keras.saving.get_registered_object(spec.class_name)
        if layer_class is None:
            raise ValueError(
                f"layer {spec.name!r} is a {spec.class_name}, which is not registered with "
                "Keras; import the module that defines it before loading"
            )
        # Through its configuration: that of a Bidirectional holds another layer.
        built.append(layer_class.from_config({"name": spec.name, **spec.config}))
    if is_chain(layers):
        model = keras.Sequential(built)
    else:
        outputs = {layers[0].name: built[0].output}
        for layer, spec in zip(built[1:], layers[1:], strict=True):
            inputs = [outputs[name] for name in spec.inputs]
            outputs[spec.name] = layer(inputs if len(inputs) > 1 else inputs[0])
        model = keras.Model(outputs[layers[0].name], outputs[layers[-1].name], name="model")
    for layer, spec in zip(built, layers, strict=True):
        for key, variable in variables_of(layer).items():
            variable.assign(spec.weights[key])
    return model


def variables_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns the weights of a Keras layer under the names of ``LayerSpec.weights``."""
    if not isinstance(layer, keras.layers.Bidirectional):
        return {variable.name: variable for variable in layer.weights}
    return {
        f"{which}_{variable.name}": variable
        for which, own in zip(DIRECTIONS, (layer.forward_layer, layer.backward_layer), strict=True)
        for variable in own.weights
    }


def layers_of(model: keras.Model) -> tuple[LayerSpec, ...]:
    """Returns the settings and weights of a Keras model, as plain layers.

    Args:
        model: A built Sequential or Functional model of one input and one output.

    Raises:
        ModelFileError: The model has a layer or a graph that a model file cannot hold.
    """
    config = model.get_config()
    by_name = {layer.name: layer for layer in model.layers}
    entries = []
    for entry in config.get("layers", []):
        if entry.get("registered_name") in LAYER_RULES:
            entry = {**entry, "class_name": entry["registered_name"], "module": None}
        entries.append(entry)
    class_name = "Sequential" if isinstance(model, keras.Sequential) else "Functional"
    try:
        text = json.dumps({"class_name": class_name, "config": {**config, "layers": entries}})
    except TypeError as error:
        raise ModelFileError(f"the model's configuration is not plain JSON ({error})") from None
    layers = []
    for spec, shapes in plan_layers(json.loads(text)):
        weights = {}
        if shapes:
            variables = variables_of(by_name[spec.name])
            weights = {key: np.array(variables[key].numpy()) for key in shapes}
        layers.append(replace(spec, weights=weights))
    return tuple(layers)


def save_model(
    model: keras.Model, path: str | os.PathLike, meta: Mapping[str, Any] | None = None
) -> None:
    """Saves a model atomically as a .h5 file of standard Keras layers.

    The weights are exact. ``keras.models.load_model(path, compile=False)`` opens the file
    without our code. Initializers, regularizers and the optimizer are not kept.

    Args:
        model: What ``layers_of`` accepts.
        path: The file to write, ending in '.h5'.
        meta: The ``speech_meta`` object (see ``speech.modelfile``).

    Raises:
        ModelFileError: The model, its weights or ``meta`` cannot be written; nothing is.
    """
    with refusals(Path(path)):
        layers = layers_of(model)
    write_model_file(path, layers, meta or {})


def keras_function(layers: Iterable[LayerSpec]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that runs a network without training it.

    Args:
        layers: Layers with weights that passed the exam of ``speech.modelfile``.

    Returns:
        A function of float32 [batch, time, ...] or [batch, values], of any batch and time, that
        returns float32. It may be called from several threads. A batch without time goes in parts
        that fit into memory. It raises ValueError for a signal that does not fit.
    """
    with quiet_start():
        lazy.load(keras)
    layers = tuple(layers)
    model = build_model(layers)
    if keras.backend.backend() == "tensorflow":
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
