"""The exam of a network: from a Keras configuration, possibly hostile, to checked layers."""

from __future__ import annotations

import dataclasses
import heapq
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from speech.modelfile.rules import HARMLESS, LAYER_RULES, RUN_CODE, Check, Frames, Shape, Shapes
from speech.modelfile.spec import LayerSpec, ModelFileError, is_chain, linked, show

MAX_WEIGHT_BYTES = 512 << 20
MAX_LAYERS = 1000
#: Values that all layers together may compute for one frame of input: 16 MiB.
MAX_VALUES = 4 << 20

_LAYER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def _with_last_axis(layer: LayerSpec, inputs: Sequence[Shape]) -> LayerSpec:
    """Returns a layer whose axis, if it has one, is -1.

    Keras notes the last axis by its number where it knows the number of axes.
    """
    axis = layer.config.get("axis", -1)
    if axis == -1:
        return layer
    if any(axis != len(shape) - 1 for shape in inputs):
        raise ModelFileError(
            f"{layer.where}: 'axis' is {axis}, expected -1, the last axis of {inputs[0][1:]}"
        )
    return dataclasses.replace(layer, config={**layer.config, "axis": -1})


def plan_layers(model_config: Any) -> list[tuple[LayerSpec, Shapes]]:
    """Checks a Keras model configuration and says which weights it calls for.

    Args:
        model_config: Parsed JSON, ``{"class_name": ..., "config": {"layers": [...]}}``.

    Returns:
        Per layer, in the order of computation: its spec, still without weights, and the shape of
        each weight.

    Raises:
        ModelFileError: A class, a setting or the graph is not on the allow-list. The message
            does not name the file; ``refusals`` adds that.
    """
    return [(layer, shapes) for layer, shapes, _ in examine(model_config)]


def output_shapes(layers: Iterable[LayerSpec]) -> dict[str, tuple[int | None, ...]]:
    """Returns the shape of each layer's output, (batch, time, bands, channels) or fewer axes.

    Batch and time are None, wherever a Permute may have moved the time.

    Raises:
        ModelFileError: The layers would not pass the exam.
    """
    return {
        layer.name: tuple(None if isinstance(axis, Frames) else axis for axis in shape)
        for layer, _, shape in examine(model_config_of(layers))
    }


def shapes_for(layers: Iterable[LayerSpec], num_frames: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each layer's output for one signal, in the order of computation.

    Args:
        layers: Layers that pass the exam.
        num_frames: Length of the signal, if the network has an axis of time.
    """
    return {
        layer.name: tuple(
            max(num_frames + axis.more, 0) if isinstance(axis, Frames) else axis or 1
            for axis in shape[1:]
        )
        for layer, _, shape in examine(model_config_of(layers))
    }


def frames_more(layers: Iterable[LayerSpec]) -> int:
    """Returns how many frames longer a network's output is than its input.

    The number is negative for convolutions without padding.

    Raises:
        ModelFileError: The layers would not pass the exam, or the output has no axis of time.
    """
    *_, (layer, _, shape) = examine(model_config_of(layers))
    for axis in shape:
        if isinstance(axis, Frames):
            return axis.more
    raise ModelFileError(f"{layer.where} gives no axis of time")


def model_config_of(layers: Iterable[LayerSpec]) -> dict[str, Any]:
    """Returns the Keras configuration of layers, Sequential if they are a chain.

    The nodes of a Functional model are written as Keras 2 did, which every Keras reads and which
    takes a fifth of the bytes.

    Raises:
        ModelFileError: A layer of a graph names no inputs.
    """
    layers = linked(layers)
    entries: list[dict[str, Any]] = [
        {"class_name": layer.class_name, "config": {"name": layer.name, **layer.config}}
        for layer in layers
    ]
    if is_chain(layers):
        return {"class_name": "Sequential", "config": {"name": "model", "layers": entries}}
    for layer, entry in zip(layers, entries, strict=True):
        entry["name"] = layer.name
        entry["inbound_nodes"] = [[[name, 0, 0] for name in layer.inputs]] if layer.inputs else []
    ends = {
        "input_layers": [layers[0].name, 0, 0],
        "output_layers": [layers[-1].name, 0, 0],
    }
    return {"class_name": "Functional", "config": {"name": "model", "layers": entries, **ends}}


def examine(model_config: Any) -> list[tuple[LayerSpec, Shapes, Shape]]:
    """Returns the layers in order, the shapes of their weights and that of their output."""
    _refuse_code_and_strangers(model_config)
    layers = _in_order(*_layers_and_output(model_config))
    plan: list[tuple[LayerSpec, Shapes, Shape]] = []
    found: dict[str, Shape] = {}
    length = layers[0].config["batch_shape"][1] if len(layers[0].config["batch_shape"]) > 2 else 0
    num_bytes = num_values = 0
    for layer in layers:
        inputs = [found[name] for name in layer.inputs]
        layer = _with_last_axis(layer, inputs)
        shapes, shape = _shapes_of(layer, inputs, length)
        num_bytes += sum(4 * math.prod(shape) for shape in shapes.values())
        num_values += _values_per_frame(shape)
        if num_values > MAX_VALUES:
            raise ModelFileError(
                f"{layer.where} brings the values that are computed for one frame to "
                f"{num_values:,}, expected at most {MAX_VALUES:,} in all layers"
            )
        found[layer.name] = shape
        plan.append((layer, shapes, shape))
    if num_bytes > MAX_WEIGHT_BYTES:
        raise ModelFileError(
            f"the layers call for {num_bytes:,} bytes of weights, expected at most "
            f"{MAX_WEIGHT_BYTES:,}"
        )
    return plan


def _shapes_of(
    layer: LayerSpec, inputs: Sequence[Shape], length: int | None
) -> tuple[Shapes, Shape]:
    """Returns the shapes of a layer's weights and of its output.

    Args:
        layer: A checked layer.
        inputs: Shapes of what it reads.
        length: Frames of the model's input if the model says so.
    """
    rule = LAYER_RULES[layer.class_name]
    for rank in map(len, inputs):
        if rank not in rule.ranks:
            expected = " or ".join(map(str, rule.ranks))
            raise ModelFileError(f"{layer.where} got {rank} axes, expected {expected}")
    if any(len(shape) != len(inputs[0]) for shape in inputs):
        ranks = " and ".join(str(len(shape)) for shape in inputs[:8])
        raise ModelFileError(f"{layer.where} got {ranks} axes, expected inputs of one shape")
    if rule.shapes is None:
        return {}, inputs[0]
    try:
        shapes, shape = rule.shapes(layer.config, *inputs)
    except ValueError as error:
        raise ModelFileError(f"{layer.where}: {error}") from None
    more = next((axis.more for axis in shape if isinstance(axis, Frames)), 0)
    if length and length + more < 1:
        raise ModelFileError(f"{layer.where} leaves nothing of the input's {length:,} frames")
    return shapes, shape


def _values_per_frame(shape: Shape) -> int:
    """Returns how many values a tensor holds for one frame of input, padding included."""
    return math.prod(
        1 + max(axis.more, 0) if isinstance(axis, Frames) else axis for axis in shape[1:] if axis
    )


def _layers_and_output(model_config: Any) -> tuple[list[LayerSpec], str]:
    """Returns the checked layers of a model with their inputs, and the output's name."""
    class_name = _get(model_config, "class_name")
    config = _get(model_config, "config")
    if class_name == "Sequential" and isinstance(config, list):  # Keras 2 before 2.2.3
        config = {"layers": config}
    class_name = "Functional" if class_name == "Model" else class_name  # Keras 2 before 2.3
    entries = _get(config, "layers")
    if class_name == "Sequential":
        entries = _with_input(entries)
    if class_name not in ("Sequential", "Functional"):
        raise ModelFileError(
            f"the model is a {show(class_name)}, expected a Sequential or Functional model"
        )
    if not isinstance(entries, list) or not 2 <= len(entries) <= MAX_LAYERS:
        raise ModelFileError(f"expected a list of 2 to {MAX_LAYERS} layers in 'model_config'")
    layers = [_checked_layer(entry) for entry in entries]
    if class_name == "Sequential":
        names = [(layer.name,) for layer in layers[:-1]]
        layers = [
            dataclasses.replace(layer, inputs=inputs)
            for layer, inputs in zip(layers, [(), *names], strict=True)
        ]
        return layers, layers[-1].name
    for place, (layer, entry) in enumerate(zip(layers, entries, strict=True)):
        if _get(entry, "name") != layer.name:
            raise ModelFileError(
                f"{layer.where} is named {show(entry['name'])} in the graph, expected one name"
            )
        layers[place] = dataclasses.replace(layer, inputs=_inputs_of(entry, layer))
    ends = []
    for key, what in (("input_layers", "inputs"), ("output_layers", "outputs")):
        tensors = _get(config, key)
        if isinstance(tensors, list) and len(tensors) == 1:
            tensors = tensors[0]
        if not _is_tensor(tensors):
            raise ModelFileError(
                f"{key!r} is {show(tensors)}, expected one layer as ['name', 0, 0]; models of "
                f"several {what} are not accepted"
            )
        ends.append(tensors[0])
    source = next((layer for layer in layers if layer.class_name == "InputLayer"), None)
    if source is not None and source.name != ends[0]:
        raise ModelFileError(
            f"the model's input is {show(ends[0])}, expected the InputLayer {source.name!r}"
        )
    return layers, ends[1]


def _with_input(entries: Any) -> Any:
    """Returns the layers of a Sequential model with an InputLayer.

    Keras 2 may note the input in the first layer instead.
    """
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        return entries
    config = entries[0].get("config")
    if entries[0].get("class_name") == "InputLayer" or not isinstance(config, dict):
        return entries
    shape = config.get("batch_input_shape")
    if shape is None or not isinstance(config.get("name"), str):
        return entries
    source = {"name": f"{config['name'][:90]}_input", "batch_shape": shape}
    return [{"class_name": "InputLayer", "config": source}, *entries]


def _as_keras_3(class_name: str, config: Any) -> Any:
    """Returns settings of a layer under the names that Keras 3 gives them."""
    if not isinstance(config, dict):
        return config
    renamed = _KERAS_2_NAMES.get(class_name, {})
    config = {
        name: value
        for name, value in config.items()
        if name not in renamed and (name != "batch_input_shape" or class_name == "InputLayer")
    } | {new: config[old] for old, new in renamed.items() if old in config and new not in config}
    return config


#: Settings that Keras 2 has under other names.
_KERAS_2_NAMES = {
    "InputLayer": {"batch_input_shape": "batch_shape"},
    "LeakyReLU": {"alpha": "negative_slope"},
}


def _inputs_of(entry: Any, layer: LayerSpec) -> tuple[str, ...]:
    """Returns the names of the layers that a layer of a Functional model reads."""
    nodes = _get(entry, "inbound_nodes")
    if nodes == []:
        return ()
    if isinstance(nodes, list) and len(nodes) > 1:
        raise ModelFileError(
            f"{layer.where} is called {len(nodes):,} times, expected once: a shared layer is "
            "not accepted"
        )
    tensors: Any = None
    match nodes:
        case [{"args": [list(read)], "kwargs": options}] if _says_nothing(options):  # Keras 3
            tensors = [_get(_get(tensor, "config"), "keras_history") for tensor in read]
        case [{"args": [read], "kwargs": options}] if _says_nothing(options):
            tensors = [_get(_get(read, "config"), "keras_history")]
        case [list(read)]:  # Keras 2
            tensors = [
                tensor[:3]
                if isinstance(tensor, list) and len(tensor) == 4 and _says_nothing(tensor[3])
                else tensor
                for tensor in read
            ]
    if not isinstance(tensors, list) or not tensors or not all(map(_is_tensor, tensors)):
        raise ModelFileError(
            f"{layer.where}: 'inbound_nodes' is {show(nodes)}, expected one plain call on the "
            "outputs of other layers"
        )
    return tuple(tensor[0] for tensor in tensors)


def _is_tensor(value: Any) -> bool:
    """Returns whether a value names the one output of a layer, ['name', 0, 0]."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(type(number) is int and number == 0 for number in value[1:])
    )


def _says_nothing(options: Any) -> bool:
    """Returns whether these are the options of a plain call.

    Keras notes {"mask": null} or {"training": false} for a plain call of some layers.
    """
    return isinstance(options, dict) and all(v is None or v is False for v in options.values())


def _in_order(layers: Sequence[LayerSpec], output: str) -> list[LayerSpec]:
    """Returns the layers of a graph so that each stands behind those it reads, the output last."""
    by_name: dict[str, LayerSpec] = {}
    for layer in layers:
        if layer.name in by_name:
            raise ModelFileError(f"two layers are named {layer.name!r}, expected unique names")
        by_name[layer.name] = layer
    if output not in by_name:
        raise ModelFileError(f"the model's output is {show(output)}, but there is no such layer")
    readers: dict[str, list[int]] = {name: [] for name in by_name}
    for place, layer in enumerate(layers):
        if not (layer.class_name == "InputLayer") == (not layer.inputs) == (place == 0):
            raise ModelFileError(
                f"{layer.where} is layer {place + 1} and reads "
                f"{show(layer.inputs[0]) if layer.inputs else 'nothing'}, expected one "
                "InputLayer, as the first; build the model with keras.Input and save it again"
            )
        most = LAYER_RULES[layer.class_name].most_inputs
        if place and not min(most, 2) <= len(layer.inputs) <= most:
            expected = "1" if most == 1 else f"2 to {most}"
            raise ModelFileError(
                f"{layer.where} reads {len(layer.inputs):,} layers, expected {expected}"
            )
        for name in layer.inputs:
            if name not in by_name:
                raise ModelFileError(
                    f"{layer.where} reads {show(name)}, but there is no such layer"
                )
            readers[name].append(place)
    unread = [name for name, places in readers.items() if not places]
    ordered, ready = [], [0]
    missing = [len(layer.inputs) for layer in layers]
    while ready:
        layer = layers[heapq.heappop(ready)]
        ordered.append(layer)
        for place in readers[layer.name]:
            missing[place] -= 1
            if not missing[place]:
                heapq.heappush(ready, place)
    if len(ordered) < len(layers):
        raise ModelFileError(
            f"the graph has a cycle through {_cycle(by_name, ordered)}, expected layers that "
            "read earlier ones only"
        )
    for name in unread:
        if name != output:
            raise ModelFileError(
                f"{by_name[name].where} is read by no layer and is not the output "
                f"{output!r}; leave it out"
            )
    if readers[output]:
        raise ModelFileError(
            f"the output {output!r} is read by {layers[readers[output][0]].name!r}, expected the "
            "last layer"
        )
    return ordered


def _cycle(by_name: Mapping[str, LayerSpec], ordered: Sequence[LayerSpec]) -> str:
    """Returns the names of a few layers of a cycle."""
    stuck = by_name.keys() - {layer.name for layer in ordered}
    name, seen = min(stuck), []
    while name not in seen:
        seen.append(name)
        name = next(other for other in by_name[name].inputs if other in stuck)
    around = seen[seen.index(name) :]
    return " and ".join(repr(other) for other in around[:3]) + (" ..." if around[3:] else "")


def _checked_layer(entry: Any) -> LayerSpec:
    """Checks one entry of the list of layers against its rule."""
    class_name = _get(entry, "class_name")
    config = _get(entry, "config")
    rule = LAYER_RULES.get(class_name) if isinstance(class_name, str) else None
    if rule is not None:
        config = _as_keras_3(class_name, config)
    elif isinstance(class_name, str) and class_name.startswith("Convolution"):
        raise ModelFileError(
            f"layer {show(class_name)} is of Keras 1; import its weights with 'python -m "
            "speech.weights import'"
        )
    else:
        raise ModelFileError(
            f"refused: layer {show(class_name)} is not known; only {', '.join(LAYER_RULES)} are "
            "accepted (see docs/security.md): build the model of these and save it again"
        )
    name = _get(config, "name")
    if not isinstance(name, str) or not _LAYER_NAME.fullmatch(name):
        raise ModelFileError(
            f"a {class_name} layer is named {show(name)}, expected letters, digits and _ . -"
        )
    where = f"layer {name!r} ({class_name})"
    kept = {}
    for key, check in rule.settings.items():
        if key not in config:
            raise ModelFileError(f"{where} lacks {key!r}; save it again with Keras 2 or 3")
        kept[key] = _checked(check, key, config[key], where)
    if rule.wraps:
        kept["layer"] = _wrapped_layer(config, rule.wraps, where)
    for key, value in config.items():
        if key in kept or (rule.wraps and key == "backward_layer"):
            continue
        if key == "dtype":
            _check_dtype_policy(value, where)
        elif key in rule.only:
            if value != rule.only[key]:
                raise ModelFileError(
                    f"{where}: {key!r} is {show(value)}, expected {rule.only[key]!r}"
                )
        elif key in rule.ignored:
            _checked(rule.ignored[key], key, value, where)
        elif not HARMLESS.fullmatch(key):
            raise ModelFileError(
                f"{where}: unknown setting {show(key)}, expected {', '.join(rule.settings)}; "
                "build the layer without it and save it again"
            )
    return LayerSpec(class_name, name, kept)


def _checked(check: Check, key: str, value: Any, where: str) -> Any:
    """Returns a setting that passed its check."""
    try:
        return check(value)
    except ValueError as error:
        raise ModelFileError(f"{where}: {key!r} is {show(value)}, expected {error}") from None


def _wrapped_layer(config: Any, classes: Sequence[str], where: str) -> dict[str, Any]:
    """Returns the layer that a Bidirectional runs in both directions, as Keras 3 notes it.

    Keras builds the one that runs backwards from it.
    """
    forward = _inner_layer(_get(config, "layer"), classes, where)
    given = config.get("backward_layer")
    if given is not None:
        settings = _get(given, "config")
        if not isinstance(settings, dict) or settings.get("go_backwards") is not True:
            raise ModelFileError(f"{where}: its backward layer does not go backwards")
        turned = {**given, "config": {**settings, "go_backwards": False}}
        backward = _inner_layer(turned, classes, where)
        if (backward.class_name, backward.config) != (forward.class_name, forward.config):
            raise ModelFileError(
                f"{where}: its backward layer is {show(backward.config)}, expected the class and "
                "the settings of the forward one"
            )
    return {
        "module": "keras.layers",
        "class_name": forward.class_name,
        "config": {"name": forward.name, **forward.config},
        "registered_name": None,
    }


def _inner_layer(entry: Any, classes: Sequence[str], where: str) -> LayerSpec:
    class_name = _get(entry, "class_name")
    if class_name not in classes:
        raise ModelFileError(
            f"{where} wraps a {show(class_name)}, expected one of {', '.join(classes)}"
        )
    try:
        return _checked_layer(entry)
    except ModelFileError as error:
        raise ModelFileError(f"{where}: {error}") from None


def _check_dtype_policy(value: Any, where: str) -> None:
    name = value
    if isinstance(value, dict):
        name = _get(_get(value, "config"), "name")
    if name != "float32":
        raise ModelFileError(f"{where} computes in {show(name)}, expected 'float32'")


def _refuse_code_and_strangers(value: Any) -> None:
    """Refuses a configuration that names code, or what is not Keras's own, anywhere in it."""
    if isinstance(value, dict):
        if value.get("class_name") in RUN_CODE:
            raise ModelFileError(
                f"refused: layer {show(value['class_name'])} can run code; only "
                f"{', '.join(LAYER_RULES)} are accepted (see docs/security.md)"
            )
        module = value.get("module")
        if module is not None and not re.fullmatch(r"keras(\.\w+)*", str(module)):
            raise ModelFileError(
                f"refused: the configuration names module {show(module)}, expected keras only "
                "(see docs/security.md)"
            )
        registered = value.get("registered_name")
        if registered not in (None, value.get("class_name"), *LAYER_RULES):
            raise ModelFileError(
                f"refused: the configuration asks for the registered object {show(registered)} "
                "(see docs/security.md)"
            )
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_code_and_strangers(item)


def _get(value: Any, key: str) -> Any:
    """Returns ``value[key]`` of a JSON object."""
    if not isinstance(value, dict) or key not in value:
        raise ModelFileError(f"the configuration lacks {key!r}; save it again with Keras 2 or 3")
    return value[key]
