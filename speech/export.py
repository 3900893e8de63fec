"""Writes a model file in the formats of other runtimes: ONNX, LiteRT (TensorFlow Lite), plain C.

::

    python -m speech.export model.h5 --to onnx
    python -m speech.export model.icse --to tflite --int8 -o small.tflite
    python -m speech.export model.icse --to c -o folder
    python -m speech.export model.icse --to c --weights packed -o folder

``--to c`` writes a causal network over time and frequency as C99 sources without dependencies
(``speech.net.plain_c``): samples in, samples out, STFT and mask included. ``--weights`` says how
indices into codebooks are stored: ``coded``, which takes less flash, or ``packed``, which takes
less RAM; by default they are coded where that saves more than 5 % of the flash for weights.

Of the other formats, the exported network takes and gives what the Keras model does: float32
[batch, time, channels] of any batch and length, [batch, time, bands, channels] for a network over
time and frequency, or [batch, values] for a network of matrices. STFT, compression and mask are not
part of it, nor of the Keras model: ``speech.net.timefrequency`` defines them, and the model's
``speech_meta`` holds their numbers. LiteRT is exported for one item of any length: set it with
``resize_tensor_input``. ``--int8`` (LiteRT) stores kernels as INT8 with one scale per filter and
computes with what the runtime makes of them (dynamic-range quantization); all else is exact up to
the order of additions. Of a graph, batch normalisations are folded into the layers before them.

The ONNX graph is made from the layers themselves (opset 17, plain operators) and needs the package
``onnx``, extra ``[onnx]``. LiteRT goes through TensorFlow's own converter.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.base import cli
from speech.base.device import quiet_start
from speech.base.files import atomic_path
from speech.base.lazy import keras, load, onnx
from speech.base.lazy import tensorflow as tf
from speech.modelfile.exam import output_shapes
from speech.modelfile.icse import pack
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFile, is_chain, linked
from speech.net.folding import fold_batch_normalization
from speech.net.keras_models import build_model
from speech.net.plain_c import WEIGHTS, plain_c

FORMATS = ("onnx", "tflite", "c")
OPSET = 17
#: Readable by runtimes from 2023 on.
IR_VERSION = 8


def to_onnx(layers: Sequence[LayerSpec]) -> bytes:
    """Returns a network as an ONNX model.

    Args:
        layers: Those of a model file.

    Raises:
        ValueError: The package ``onnx`` is missing, or a layer has no counterpart.
    """
    try:
        load(onnx)
    except ImportError:
        raise ValueError("ONNX needs the package onnx: pip install onnx onnxruntime") from None
    return _OnnxGraph().of(_folded(layers)).SerializeToString()


def _folded(layers: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Returns a graph without batch normalisations that can be folded; a chain as it is."""
    return tuple(layers) if is_chain(layers) else fold_batch_normalization(layers)


class _OnnxGraph:
    """Builds the graph layer by layer; ``value`` is the name of the latest output.

    Signals with a time axis are [batch, channels, time] or [batch, channels, time, bands] between
    convolutions, as ONNX wants.
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._channels_first = False
        self.value = "input"

    def of(self, layers: Sequence[LayerSpec]) -> Any:
        """Returns the model."""
        helper = onnx.helper
        shape = ["batch", *layers[0].config["batch_shape"][1:]]
        if len(shape) > 2:
            shape[1] = shape[1] or "time"
        self._rank = len(shape)
        layers = linked(layers)
        self._shapes = output_shapes(layers)
        # Of each layer: name and order of its output.
        found = {layers[0].name: ("input", False)}
        for layer in layers[1:]:
            method = getattr(self, "_add_" + layer.class_name.replace("icse>", ""), None)
            if method is None:
                raise ValueError(f"layer {layer.name!r} is a {layer.class_name}: no ONNX for it")
            self._sources = []
            for source in layer.inputs:
                self.value, self._channels_first = found[source]
                if len(layer.inputs) > 1:
                    self._order(channels_first=False)
                    found[source] = self.value, False
                self._sources.append(self.value)
            method(layer)
            found[layer.name] = self.value, self._channels_first
        self._order(channels_first=False)
        self._node("Identity", self.value, output="output")
        # The length of a 'valid' convolution's output is another one.
        same = all(layer.config.get("padding", "same") == "same" for layer in layers)
        middle = shape[1:-1] if same else ["out_time"]
        last = self._shapes[layers[-1].name]
        if self._rank == 4:
            middle = ["out_time", last[2]]
        ends = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
            for name, dims in (
                ("input", shape),
                ("output", [shape[0], *middle, last[-1]]),
            )
        ]
        graph = helper.make_graph(self._nodes, "network", ends[:1], ends[1:], self._constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="speech.export"
        )
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model

    def _node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        self.value = output
        return output

    def _constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self._constants)}"
        array = np.ascontiguousarray(array, dtype)
        self._constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _order(self, *, channels_first: bool) -> None:
        if self._rank > 2 and channels_first != self._channels_first:
            inner = list(range(1, self._rank))
            order = [inner[-1], *inner[:-1]] if channels_first else [*inner[1:], inner[0]]
            self._node("Transpose", self.value, perm=[0, *order])
            self._channels_first = channels_first

    def _per_channel(self, array: np.ndarray) -> str:
        axes = (1,) * (self._rank - 2) if self._channels_first else ()
        return self._constant(np.reshape(array, (-1, *axes)))

    def _add_Conv1D(self, layer: LayerSpec) -> None:  # noqa: N802 - the name of the class
        self._order(channels_first=True)
        kernel, config = layer.weights["kernel"], layer.config
        reach = config["dilation_rate"] * (len(kernel) - 1)
        pads = [reach // 2, reach - reach // 2] if config["padding"] == "same" else [0, 0]
        inputs = [self.value, self._constant(kernel.transpose(2, 1, 0))]
        self._convolve("Conv", inputs, layer, pads=pads, dilations=[config["dilation_rate"]])

    def _add_Conv2D(self, layer: LayerSpec) -> None:  # noqa: N802
        self._order(channels_first=True)
        kernel, config = layer.weights["kernel"], layer.config
        low, high = [0, 0], [0, 0]
        if config["padding"] == "same":
            for axis in (0, 1):
                size = (kernel.shape[axis] - 1) * config["dilation_rate"][axis]
                stride = config["strides"][axis]
                # Over time there is no stride, and what is padded does not depend on the length.
                length = self._shapes[layer.inputs[0]][axis + 1] or 1
                total = max((-(-length // stride) - 1) * stride + size + 1 - length, 0)
                low[axis], high[axis] = total // 2, total - total // 2
        inputs = [self.value, self._constant(kernel.transpose(3, 2, 0, 1))]
        self._convolve("Conv", inputs, layer, pads=low + high, strides=config["strides"],
                       dilations=config["dilation_rate"])  # fmt: skip

    def _add_Conv2DTranspose(self, layer: LayerSpec) -> None:  # noqa: N802
        self._order(channels_first=True)
        kernel, strides = layer.weights["kernel"], layer.config["strides"]
        totals = [size - stride for size, stride in zip(kernel.shape, strides, strict=False)]
        if min(totals) < 0:
            raise ValueError(
                f"layer {layer.name!r}: kernel_size is {kernel.shape[:2]} and strides "
                f"{tuple(strides)}; ONNX needs a kernel at least as large as the stride"
            )
        pads = [total // 2 for total in totals] + [total - total // 2 for total in totals]
        inputs = [self.value, self._constant(kernel.transpose(3, 2, 0, 1))]
        self._convolve("ConvTranspose", inputs, layer, pads=pads, strides=strides)

    def _convolve(self, kind: str, inputs: list[str], layer: LayerSpec, **settings: Any) -> None:
        if "bias" in layer.weights:
            inputs.append(self._constant(layer.weights["bias"]))
        self._node(kind, *inputs, **settings)
        self._activate(layer.config["activation"])

    def _add_ZeroPadding2D(self, layer: LayerSpec) -> None:  # noqa: N802
        pads = [[0, 0], *layer.config["padding"]]
        pads.insert(1 if self._channels_first else 3, [0, 0])
        values = [before for before, _ in pads] + [after for _, after in pads]
        self._node("Pad", self.value, self._constant(values, np.int64))

    def _add_Permute(self, layer: LayerSpec) -> None:  # noqa: N802
        self._order(channels_first=False)
        self._node("Transpose", self.value, perm=[0, *layer.config["dims"]])

    def _add_Add(self, layer: LayerSpec) -> None:  # noqa: N802
        first, *others = self._sources
        for other in others:
            first = self._node("Add", first, other)

    def _add_Concatenate(self, layer: LayerSpec) -> None:  # noqa: N802
        self._node("Concat", *self._sources, axis=-1)

    def _add_Dense(self, layer: LayerSpec) -> None:  # noqa: N802
        self._order(channels_first=False)
        self._node("MatMul", self.value, self._constant(layer.weights["kernel"]))
        if "bias" in layer.weights:
            self._node("Add", self.value, self._constant(layer.weights["bias"]))
        self._activate(layer.config["activation"])

    def _add_GroupNormalization(self, layer: LayerSpec) -> None:  # noqa: N802
        self._order(channels_first=True)
        found, inputs = layer.weights, self.value
        groups = layer.config["groups"]
        groups = self._shapes[layer.name][-1] if groups == -1 else groups
        shape = self._node("Shape", inputs)
        self._node("Reshape", inputs, self._constant([0, groups, -1], np.int64))
        ones, zeros = self._constant(np.ones(groups)), self._constant(np.zeros(groups))
        self._node("InstanceNormalization", self.value, ones, zeros,
                   epsilon=layer.config["epsilon"])  # fmt: skip
        self._node("Reshape", self.value, shape)
        self._scale(found.get("gamma"), found.get("beta"))

    def _add_BatchNormalization(self, layer: LayerSpec) -> None:  # noqa: N802
        found = layer.weights
        variance = found["moving_variance"].astype(np.float64) + layer.config["epsilon"]
        scale = found.get("gamma", 1.0) / np.sqrt(variance)
        self._scale(scale, found.get("beta", 0.0) - scale * found["moving_mean"])

    def _scale(self, factor: Any, offset: Any) -> None:
        if factor is not None:
            self._node("Mul", self.value, self._per_channel(factor))
        if offset is not None:
            self._node("Add", self.value, self._per_channel(offset))

    def _add_Dropout(self, layer: LayerSpec) -> None:  # noqa: N802
        """Does nothing outside of training."""

    def _add_Activation(self, layer: LayerSpec) -> None:  # noqa: N802
        self._activate(layer.config["activation"])

    def _activate(self, name: str) -> None:
        if name == "silu":
            inputs = self.value
            self._node("Mul", inputs, self._node("Sigmoid", inputs))
        elif name != "linear":
            self._node({"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}[name], self.value)

    def _add_LeakyReLU(self, layer: LayerSpec) -> None:  # noqa: N802
        self._node("LeakyRelu", self.value, alpha=layer.config["negative_slope"])

    def _add_ReLU(self, layer: LayerSpec) -> None:  # noqa: N802
        config, inputs = layer.config, self.value
        threshold = self._constant(config["threshold"])
        below = self._node("Sub", inputs, threshold)
        below = self._node("Mul", below, self._constant(config["negative_slope"]))
        above = self._node("GreaterOrEqual", inputs, threshold)
        self._node("Where", above, inputs, below)
        if config["max_value"] is not None:
            self._node("Min", self.value, self._constant(config["max_value"]))

    def _add_ModifiedReLU(self, layer: LayerSpec) -> None:  # noqa: N802
        inputs, epsilon = self.value, layer.config["epsilon"]
        edge = self._constant(epsilon)
        low = self._node("Min", inputs, edge)
        low = self._node("Sub", self._constant(1 + epsilon), low)
        low = self._node("Div", edge, low)
        above = self._node("GreaterOrEqual", inputs, edge)
        self._node("Where", above, inputs, low)


def to_tflite(layers: Sequence[LayerSpec], *, int8: bool = False) -> bytes:
    """Returns a network as a LiteRT (TensorFlow Lite) model of one item of any length.

    Args:
        layers: Those of a model file.
        int8: Kernels as INT8, with a scale a filter (dynamic-range quantization).

    Raises:
        ValueError: Keras runs on another backend than TensorFlow.
    """
    with quiet_start():
        load(tf)
        load(keras)
    if keras.backend.backend() != "tensorflow":
        raise ValueError("LiteRT needs Keras on TensorFlow; unset KERAS_BACKEND")
    layers = linked(_folded(layers))
    model = build_model(layers)
    shape = [1, *layers[0].config["batch_shape"][1:]]

    def normalized(layer, inputs):
        """Returns what a GroupNormalization gives; Keras' own loses digits on the way to LiteRT."""
        groups = inputs.shape[-1] if layer.groups == -1 else layer.groups
        grouped = tf.reshape(inputs, [1, -1, groups, inputs.shape[-1] // groups])
        centred = grouped - tf.reduce_mean(grouped, axis=[1, 3], keepdims=True)
        variance = tf.reduce_mean(centred * centred, axis=[1, 3], keepdims=True)
        outputs = tf.reshape(centred * tf.math.rsqrt(variance + layer.epsilon), tf.shape(inputs))
        own = specs[layer.name].weights
        return outputs * own.get("gamma", np.float32(1)) + own.get("beta", np.float32(0))

    # Weights go in as constants: the converter does not see variables of Keras.
    constants = {
        layer.name: [
            [keras.ops.convert_to_numpy(variable) for variable in variables]
            for variables in (layer.trainable_variables, layer.non_trainable_variables)
        ]
        for layer in model.layers
    }
    specs = {layer.name: layer for layer in layers}

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="input")])
    def call(inputs):
        found = {layers[0].name: inputs}
        for spec in layers[1:]:
            layer = model.get_layer(spec.name)
            values = [found[name] for name in spec.inputs]
            if isinstance(layer, keras.layers.GroupNormalization):
                outputs = normalized(layer, values[0])
            else:
                given = values if len(values) > 1 else values[0]
                outputs, _ = layer.stateless_call(*constants[layer.name], given)
            found[spec.name] = outputs
        return {"output": outputs}

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [call.get_concrete_function()], tf.Module()
    )
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with quiet_start():  # the converter reports to stderr what it reads
        return converter.convert()


# --------------------------------------------------------------------------------------------
# Command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m speech.export",
        description="Write a model file as ONNX, as LiteRT (TensorFlow Lite) or as plain C.",
        **cli.examples(
            "python -m speech.export models/fcn.h5 --to onnx",
            "python -m speech.export models/fcn_small.icse --int8 -o small.tflite",
            "python -m speech.export models/denoise.icse --to c -o denoise_c",
        ),
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="read this .h5 or .icse model file")
    add("--to", choices=FORMATS,
        help="write this format (default: that of the ending of --out)")  # fmt: skip
    add("--int8", action="store_true", help="store kernels as INT8 (tflite only; dynamic range)")
    add("--weights", choices=WEIGHTS,
        help="store indices coded, which takes less flash, or packed, which takes less RAM (c "
        "only; default: coded where that saves more than 5 %% of the flash for weights)",
        )  # fmt: skip
    add("-o", "--out", type=Path, metavar="FILE",
        help="write this file, or this folder for c (default: beside MODEL)")  # fmt: skip
    options = parser.parse_args(argv)
    if options.to is None:
        options.to = options.out and options.out.suffix.lower().removeprefix(".")
        if options.to not in FORMATS:
            ways = " or ".join(f"--to {name}" for name in FORMATS)
            parser.error(f"the format is missing; give {ways}")
    if options.int8 and options.to != "tflite":
        parser.error("--int8 is for --to tflite")
    if options.weights and options.to != "c":
        parser.error("--weights is for --to c")
    cli.log_to_stderr()
    model, out = options.model, options.out
    if options.to == "c":
        folder = out or model.with_name(model.stem + "_c")
        return cli.run(lambda: _write_c(read_model_file(model), folder, options.weights))
    return cli.run(lambda: _run(model, options.to, out, options.int8))


def _run(model: Path, to: str, out: Path | None, int8: bool) -> int:
    file = read_model_file(model)
    out = out or model.with_suffix(".int8.tflite" if int8 else "." + to)
    if out.resolve() == model.resolve():
        raise ValueError(f"{out}: would overwrite the model; choose another -o")
    data = to_onnx(file.layers) if to == "onnx" else to_tflite(file.layers, int8=int8)
    with atomic_path(out) as temporary:
        temporary.write_bytes(data)
    original = model.stat().st_size
    packed = len(pack(file.layers, file.meta))
    rows = [(str(model), original), ("the same as .icse", packed), (str(out), len(data))]
    width = max(len(name) for name, _ in rows)
    for name, size in rows:
        print(f"{name:<{width}}  {size:>12,} bytes  {100 * size / original:6.2f} %")
    return 0


def _write_c(file: ModelFile, folder: Path, weights: str | None) -> int:
    found = plain_c(file, weights)
    others = [name for name in sorted(found.files) if os.path.lexists(folder / name)]
    # An export begins with denoise.h: where that is, the rest is of an export too.
    if others and "denoise.h" not in others:
        raise ValueError(
            f"{folder}: would replace {', '.join(others)}, and holds no denoise.h, so it is no "
            "earlier export; choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in found.files.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text)
    print(f"written    {folder}: {', '.join(sorted(found.files))}")
    sizes = found.sizes
    print(f"flash      {sizes.weight_bytes:,} bytes of weights ({file.path.name} as .icse: "
          f"{found.packed_bytes:,}), {sizes.table_bytes:,} of tables")  # fmt: skip
    decoded = f", {sizes.index_bytes:,} for decoded indices" if sizes.index_bytes else ""
    print(f"RAM        {sizes.ram_bytes:,} bytes, {sizes.state_bytes:,} of them from hop to hop"
          f"{decoded}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
