"""Model files (.h5) as data: read without running anything in them, written whole or not at all.

A model file is the legacy Keras HDF5 format: a ``model_config`` attribute (JSON) and one group of
weights per layer, as Keras 3, Keras 2 and tf.keras write it. Any Keras 3 opens a file written here,
without our code; one that holds the modified ReLU needs the few lines in ``speech.layers``. Files
are read by ``speech.hdf5``, in Python and with bounds on time and memory, and written by h5py.
Keras is never asked: reading a stranger's file cannot deserialise an object. A packed file (.icse,
``speech.compact``) is read in the same call and gives the same.

What is accepted:

* ``model_config`` is a Sequential model, or a Functional one: a graph of layers with one input and
  one output, in which each layer is called once. Nodes, settings and inputs may be written as
  Keras 3 or as Keras 2 writes them; they are kept as Keras 3 has them.
* Every layer is in ``LAYER_RULES`` and every setting is in range; settings that only matter for
  training from scratch (initializers, regularizers, constraints) are dropped.
* The shapes fit: all axes are followed through the graph, the axis of time as the input's plus a
  number of frames (``Frames``), so that an Add of two lengths is refused here and not by Keras. For
  one frame of input, all layers together compute at most ``MAX_VALUES`` values.
* Every weight is a float32 dataset stored in the file itself (hard links only; no external,
  virtual, chunked or never-written storage), of the shape its layer's settings imply, checked
  before it is read; every value is finite; all weights together take at most 512 MiB, no
  more than the file.

Anything else is a ``ModelFileError`` of one line that names the file (docs/security.md).

The attribute ``speech_meta`` (optional, at most 1 MiB) holds one JSON object on what the network
is for. All keys are optional, and readers ignore keys they do not know:

* ``kind``: what goes in and comes out: 'waveform' (samples in, samples out), or, over spectra,
  'mask' and 'autoencoder', which add ``stft``, ``context`` and ``input_scale`` (``mnn.features``),
  or 'complex_mask', which must come with ``sample_rate_hz``, ``stft``, ``power`` and ``features``
  (``MaskConventions``, ``speech.net.timefrequency``).
* ``sample_rate_hz``: the rate the network was trained at.
* ``created_by``: the command that wrote the file.
* ``training``: a summary such as epochs, seed, data hash and validation error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import heapq
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech import hdf5
from speech.files import atomic_path, sha256_of

if TYPE_CHECKING:
    from speech.stft import StftConfig

META_ATTRIBUTE = "speech_meta"
#: The first bytes of a packed file (``speech.compact``).
COMPACT_MAGIC = b"\x89ICSE"

MAX_FILE_BYTES = 2 << 30  # leaves room for an optimizer's state, which is not read
MAX_WEIGHT_BYTES = 512 << 20
MAX_CONFIG_BYTES = 4 << 20
MAX_META_BYTES = 1 << 20
MAX_JSON_DEPTH = 50
MAX_JSON_PARTS = 100_000
MAX_WEIGHT_DEPTH = 20
MAX_LAYERS = 1000
MAX_UNITS = 65_536
MAX_KERNEL_SIZE = 8_192
MAX_DILATION = 1_024
MAX_STRIDE = 64
MAX_PADDING = 65_536
#: Layers that one Add or Concatenate may read.
MAX_INPUTS = 16
#: Values that all layers together may compute for one frame of input: 16 MiB.
MAX_VALUES = 4 << 20

#: Activations that may be named by an ``Activation`` layer or by one with a kernel. Keras wrote
#: 'swish' for 'silu' once; it is read as 'silu'.
ACTIVATIONS = ["linear", "relu", "sigmoid", "tanh", "silu"]

#: Kind of a network that gives complex masks of spectra, and what it reads of each bin.
COMPLEX_MASK = "complex_mask"
MASK_FEATURES = ("real", "imaginary", "magnitude")

# What Keras should take our files for: weights in TensorFlow order, layout of Keras 3. Readers
# that find no version assume Keras 1 and transpose convolution kernels.
_FILE_ATTRIBUTES = {"keras_version": "3.0.0", "backend": "tensorflow"}

#: Frames that a 'mask' network is believed to take at once, to tell shapes from chance.
_MAX_CONTEXT = 99

_LAYER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class ModelFileError(ValueError):
    """A model file was refused; the message is one line that names the file and the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerSpec:
    """One layer: settings that passed the exam, and its weights.

    Attributes:
        class_name: Key of ``LAYER_RULES``, a Keras class such as 'Conv1D'.
        name: Name of the layer, unique in its file.
        config: The settings that matter for the forward pass, and no others.
        weights: float32 arrays by name ('kernel', 'bias', 'gamma', 'moving_mean', ...).
        inputs: Names of the layers it reads, in order. Layers that were read from a file name
            them all, the InputLayer none. Who builds a chain may leave them out: without a name,
            a layer reads the one before it (see ``linked``).
    """

    class_name: str
    name: str
    config: dict[str, Any]
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    inputs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFile:
    """A model file that passed the exam.

    Attributes:
        layers: The layers in the order of computation: the first is the InputLayer, each layer
            stands behind those it reads, and the last gives the output.
        meta: The ``speech_meta`` object, {} if the file has none.
        sha256: SHA-256 of the file's bytes, 64 hexadecimal digits.
        path: Where it was read.
    """

    layers: tuple[LayerSpec, ...]
    meta: dict[str, Any]
    sha256: str
    path: Path

    @property
    def num_parameters(self) -> int:
        """Number of stored weights, those that training does not change included."""
        return sum(array.size for layer in self.layers for array in layer.weights.values())

    @property
    def kind(self) -> str:
        """What goes in and comes out (see the module): what ``speech_meta`` says.

        A file that says nothing is known by the shapes of its kernels, if they are those of a
        'waveform' or a 'mask' network; else ''.
        """
        stated = self.meta.get("kind")
        if not stated:
            return kind_of_shapes(self.layers)
        return stated if isinstance(stated, str) else _show(stated)

    @property
    def is_chain(self) -> bool:
        """Whether each layer reads the one before it and nothing else."""
        return is_chain(self.layers)

    def require_chain(self, what: str) -> tuple[LayerSpec, ...]:
        """Returns the layers of a chain over time; see the function of this name.

        Raises:
            ModelFileError: The network is another one; the message names the file.
        """
        with refusals(self.path):
            return require_chain(self.layers, what)


def kind_of_shapes(layers: Sequence[LayerSpec]) -> str:
    """Returns the kind that the shapes of the kernels tell.

    'waveform': from a convolution over one channel to a kernel that gives one channel. 'mask':
    Dense layers from an odd number of frames of 513 bins to 513 bins, a logistic function last. '':
    anything else.
    """
    from speech.stft import DEFAULT

    kernels = [layer.weights["kernel"] for layer in layers if "kernel" in layer.weights]
    if not kernels:
        return ""
    first, last = kernels[0], kernels[-1]
    if first.ndim == 3 and last.ndim in (2, 3):  # Dense takes each frame by itself
        return "waveform" if first.shape[1] == last.shape[-1] == 1 else ""
    if any(kernel.ndim != 2 for kernel in kernels):
        return ""
    context, rest = divmod(first.shape[0], DEFAULT.num_bins)
    fits = not rest and context % 2 and context <= _MAX_CONTEXT
    if not fits or last.shape[1] != DEFAULT.num_bins:
        return ""
    final = next(layer for layer in reversed(layers) if layer.class_name != "Dropout")
    return "mask" if final.config.get("activation") == "sigmoid" else ""


# --------------------------------------------------------------------------------------------
# Chains and graphs


def linked(layers: Iterable[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Returns layers that all name their inputs, the InputLayer excepted.

    Raises:
        ModelFileError: A layer of a graph names no inputs.
    """
    layers = tuple(layers)
    chain = is_chain(layers)
    result = []
    for before, layer in zip((None, *layers), layers, strict=False):
        if before is not None and not layer.inputs and layer.class_name != "InputLayer":
            if not chain:
                raise ModelFileError(
                    f"layer {layer.name!r} ({layer.class_name}) of a graph names no inputs, "
                    "expected the names of the layers it reads (LayerSpec.inputs)"
                )
            layer = dataclasses.replace(layer, inputs=(before.name,))
        result.append(layer)
    return tuple(result)


def is_chain(layers: Sequence[LayerSpec]) -> bool:
    """Returns whether each layer reads the one before it and nothing else."""
    return _first_off_chain(layers) is None


def require_chain(layers: Sequence[LayerSpec], what: str) -> tuple[LayerSpec, ...]:
    """Returns the layers of a chain over time, for what cannot deal with another network yet.

    Args:
        layers: Any network.
        what: Who needs a chain, the subject of the message, such as 'the export to ONNX'.

    Raises:
        ModelFileError: A layer reads something else than the one before it, or the input has an
            axis of bands beside time and channels.
    """
    layer = _first_off_chain(layers)
    if layer is not None:
        reads = " and ".join(repr(name) for name in layer.inputs[:2]) or "nothing"
        raise ModelFileError(
            f"layer {layer.name!r} ({layer.class_name}) reads {reads}; {what} takes chains only, "
            "in which each layer reads the one before it"
        )
    shape = layers[0].config.get("batch_shape", []) if layers else []
    if len(shape) > 3:
        raise ModelFileError(
            f"the input has the shape {_show(shape)}; {what} takes networks over "
            "(batch, time, channels) or (batch, channels) only"
        )
    return tuple(layers)


def _first_off_chain(layers: Sequence[LayerSpec]) -> LayerSpec | None:
    names = [(layer.name,) for layer in layers]
    for before, layer in zip([(), *names], layers, strict=False):
        if layer.inputs not in ((), before):
            return layer
    return None


def sha256_of_weights(layers: Sequence[LayerSpec]) -> str:
    """Returns the SHA-256 of all weights of a network, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for layer in layers:
        for name, array in layer.weights.items():
            digest.update(f"{layer.name} {name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------
# The allow-list. A setting's check returns the value to keep or raises ValueError(what to expect)


Check = Callable[[Any], Any]
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Frames:
    """The length of an axis of time: that of the input, and ``more`` frames."""

    more: int = 0

    def __repr__(self) -> str:
        """Returns what a message shows."""
        return f"frames{self.more:+}" if self.more else "frames"


#: Axes of a tensor: None for the batch, `Frames` for time, a number for all others.
Shape = tuple[int | Frames | None, ...]


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """What a layer class may look like.

    Attributes:
        settings: Check of each setting that is kept; all of them must be present.
        shapes: ``(config, *shapes of the inputs) -> (shape of each weight, shape of the output)``,
            called with checked settings; raises ValueError if they do not fit. The order of the
            weights is the one in which Keras lists them. None: no weights, same shape.
        only: Settings that may be left out and must have exactly this value if present.
        ranks: Accepted number of axes of an input, the batch axis included.
        most_inputs: Layers that it may read: from 2 on if there may be several, else 1.
    """

    settings: Mapping[str, Check] = dataclasses.field(default_factory=dict)
    shapes: Callable[..., tuple[Shapes, Shape]] | None = None
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranks: tuple[int, ...] = (2, 3, 4)
    most_inputs: int = 1


def an_integer(lowest: int, highest: int) -> Check:
    """Returns a check for an int in a range, which may stand in a list of one as in [55]."""

    def check(value: Any) -> int:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError(f"an integer from {lowest} to {highest}")
        return value

    return check


def a_number(lowest: float, highest: float, *, or_none: bool = False) -> Check:
    """Returns a check for a finite number in a range, or None if allowed."""

    def check(value: Any) -> float | None:
        if value is None and or_none:
            return None
        if type(value) not in (int, float) or not lowest <= value <= highest:
            raise ValueError(f"a number from {lowest:g} to {highest:g}")
        return float(value)

    return check


def one_of(*choices: Any) -> Check:
    """Returns a check for one of a few values."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(" or ".join(repr(choice) for choice in choices))
        return value

    return check


def a_pair(check: Check) -> Check:
    """Returns a check for two values, [over the first axis, over the second]; 3 is [3, 3]."""

    def checked(value: Any) -> list[Any]:
        values = value if isinstance(value, list) else [value, value]
        if len(values) != 2:
            values = [None]  # whose refusal says what is expected
        try:
            return [check(item) for item in values]
        except ValueError as error:
            raise ValueError(f"a list of two, each {error}") from None

    return checked


def an_activation(value: Any) -> str:
    """Checks the name of an activation; a function or object is never accepted."""
    if value == "swish":
        return "silu"
    if value not in ACTIVATIONS:
        raise ValueError("one of the names " + ", ".join(ACTIVATIONS))
    return value


def _an_input_shape(value: Any) -> list[int | None]:
    if isinstance(value, list) and 2 <= len(value) <= 4 and value[0] is None:
        static, time = value[-1:] if len(value) < 4 else value[2:], value[1:2]
        with contextlib.suppress(ValueError):
            for size in static:
                an_integer(1, MAX_UNITS)(size)
            if len(value) > 2 and time != [None]:
                an_integer(1, 1 << 31)(time)
            return value
    raise ValueError(
        "[null, channels], [null, time or null, channels] or [null, time or null, bands, channels]"
    )


def _permuted_axes(value: Any) -> list[int]:
    if isinstance(value, list) and len(value) <= 3 and all(type(axis) is int for axis in value):
        if sorted(value) == [*range(1, len(value) + 1)]:
            return value
    raise ValueError("the axes behind the batch in another order, such as [1, 3, 2]")


def _channels(shape: Shape) -> int:
    """Returns the length of the last axis."""
    channels = shape[-1]
    if not isinstance(channels, int):
        raise ValueError("its last axis is time, expected channels")
    return channels


def _input_shapes(config: dict[str, Any]) -> tuple[Shapes, Shape]:
    batch, *rest = config["batch_shape"]
    return {}, (batch, *([Frames(), *rest[1:]] if len(rest) > 1 else rest))


def _with_bias(config: dict[str, Any], kernel: tuple[int, ...], outputs: int) -> Shapes:
    return {"kernel": kernel} | ({"bias": (outputs,)} if config["use_bias"] else {})


def _convolved(axis: Any, size: int, stride: int, dilation: int, padding: str) -> int | Frames:
    """Returns the length of an axis behind a convolution."""
    lost = 0 if padding == "same" else dilation * (size - 1)
    if isinstance(axis, Frames):
        if stride != 1:
            raise ValueError(f"'strides' over time is {stride}, expected 1")
        return Frames(axis.more - lost)
    if axis <= lost:
        raise ValueError(f"the kernel spans {lost + 1} of {axis} bands, expected no more than all")
    return -(-(axis - lost) // stride)


def _conv1d_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    filters, size = config["filters"], config["kernel_size"]
    time = _convolved(shape[1], size, config["strides"], config["dilation_rate"], config["padding"])
    return _with_bias(config, (size, _channels(shape), filters), filters), (None, time, filters)


def _conv2d_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    filters = config["filters"]
    if max(config["strides"]) > 1 and max(config["dilation_rate"]) > 1:
        raise ValueError("'strides' and 'dilation_rate' are both over 1, expected one of them")
    settings = (config[key] for key in ("kernel_size", "strides", "dilation_rate"))
    axes = [
        _convolved(axis, size, stride, dilation, config["padding"])
        for axis, size, stride, dilation in zip(shape[1:3], *settings, strict=True)
    ]
    kernel = (*config["kernel_size"], _channels(shape), filters)
    return _with_bias(config, kernel, filters), (None, *axes, filters)


def _conv2d_transpose_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    filters = config["filters"]
    axes: list[int | Frames] = []
    for axis, stride in zip(shape[1:3], config["strides"], strict=True):
        if isinstance(axis, int):
            axes.append(axis * stride)
        else:
            axes.append(_convolved(axis, 1, stride, 1, "same"))
    kernel = (*config["kernel_size"], filters, _channels(shape))
    return _with_bias(config, kernel, filters), (None, *axes, filters)


def _dense_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    units = config["units"]
    return _with_bias(config, (_channels(shape), units), units), (*shape[:-1], units)


def _padded_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    axes = [
        Frames(axis.more + sum(more)) if isinstance(axis, Frames) else (axis or 0) + sum(more)
        for axis, more in zip(shape[1:3], config["padding"], strict=True)
    ]
    return {}, (None, *axes, shape[3])


def _permuted_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    axes = config["dims"]
    if len(axes) != len(shape) - 1:
        raise ValueError(f"'dims' is {axes}, expected the {len(shape) - 1} axes behind the batch")
    return {}, (None, *(shape[axis] for axis in axes))


def _added_shapes(config: dict[str, Any], *shapes: Shape) -> tuple[Shapes, Shape]:
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"adds {_show_shapes(shapes)}, expected inputs of one shape")
    return {}, shapes[0]


def _joined_shapes(config: dict[str, Any], *shapes: Shape) -> tuple[Shapes, Shape]:
    if any(shape[:-1] != shapes[0][:-1] for shape in shapes):
        raise ValueError(
            f"joins {_show_shapes(shapes)}, expected inputs of one shape but for the channels"
        )
    return {}, (*shapes[0][:-1], sum(map(_channels, shapes)))


def _show_shapes(shapes: Sequence[Shape]) -> str:
    """Returns the first shape and the first other one, as a message shows them."""
    first, *others = shapes
    other = next((shape for shape in others if shape != first), first)
    return " and ".join(str(shape[1:]) for shape in (first, other))


def _scale_and_center(config: dict[str, Any], channels: int) -> Shapes:
    names = [name for name, key in (("gamma", "scale"), ("beta", "center")) if config[key]]
    return {name: (channels,) for name in names}


def _batch_normalization_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    channels = _channels(shape)
    moving: Shapes = {"moving_mean": (channels,), "moving_variance": (channels,)}
    return _scale_and_center(config, channels) | moving, shape


def _group_normalization_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    groups, channels = config["groups"], _channels(shape)
    if groups == 0 or (groups > 0 and channels % groups):
        raise ValueError(f"'groups' is {groups}, expected -1 or a divisor of {channels} channels")
    return _scale_and_center(config, channels), shape


def _a_last_axis(value: Any) -> int:
    """Checks an axis, to be compared with the rank in ``_with_last_axis``."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if type(value) is not int or value not in (-1, 1, 2, 3):
        raise ValueError("-1, the last axis")
    return value


def _with_last_axis(layer: LayerSpec, inputs: Sequence[Shape]) -> LayerSpec:
    """Returns a layer whose axis, if it has one, is -1.

    Keras notes the last axis by its number where it knows the number of axes.
    """
    axis = layer.config.get("axis", -1)
    if axis == -1:
        return layer
    if any(axis != len(shape) - 1 for shape in inputs):
        raise ModelFileError(
            f"{_where(layer)}: 'axis' is {axis}, expected -1, the last axis of {inputs[0][1:]}"
        )
    return dataclasses.replace(layer, config={**layer.config, "axis": -1})


_a_flag = one_of(True, False)
_an_epsilon = a_number(1e-12, 1.0)
_a_slope = a_number(0.0, 1000.0)
_a_padding = one_of("same", "valid")
_channels_last = one_of("channels_last")

#: The layers a model file may hold. The one place to add a class: a layer of our own stands here
#: under the name that ``speech.layers`` registers with Keras.
LAYER_RULES: dict[str, LayerRule] = {
    "InputLayer": LayerRule(
        {"batch_shape": _an_input_shape},
        _input_shapes,
        only={"sparse": False, "ragged": False, "optional": False},
    ),
    "Conv1D": LayerRule(
        {
            "filters": an_integer(1, MAX_UNITS),
            "kernel_size": an_integer(1, MAX_KERNEL_SIZE),
            "strides": an_integer(1, 1),
            "padding": _a_padding,
            "data_format": _channels_last,
            "dilation_rate": an_integer(1, MAX_DILATION),
            "activation": an_activation,
            "use_bias": _a_flag,
        },
        _conv1d_shapes,
        only={"groups": 1},
        ranks=(3,),
    ),
    "Conv2D": LayerRule(
        {
            "filters": an_integer(1, MAX_UNITS),
            "kernel_size": a_pair(an_integer(1, MAX_KERNEL_SIZE)),
            "strides": a_pair(an_integer(1, MAX_STRIDE)),
            "padding": _a_padding,
            "data_format": _channels_last,
            "dilation_rate": a_pair(an_integer(1, MAX_DILATION)),
            "activation": an_activation,
            "use_bias": _a_flag,
        },
        _conv2d_shapes,
        only={"groups": 1},
        ranks=(4,),
    ),
    "Conv2DTranspose": LayerRule(
        {
            "filters": an_integer(1, MAX_UNITS),
            "kernel_size": a_pair(an_integer(1, MAX_KERNEL_SIZE)),
            "strides": a_pair(an_integer(1, MAX_STRIDE)),
            "padding": one_of("same"),
            "data_format": _channels_last,
            "activation": an_activation,
            "use_bias": _a_flag,
        },
        _conv2d_transpose_shapes,
        only={"output_padding": None, "dilation_rate": [1, 1]},
        ranks=(4,),
    ),
    "Dense": LayerRule(
        {"units": an_integer(1, MAX_UNITS), "activation": an_activation, "use_bias": _a_flag},
        _dense_shapes,
        only={"quantization_config": None},
    ),
    "ZeroPadding2D": LayerRule(
        {"padding": a_pair(a_pair(an_integer(0, MAX_PADDING))), "data_format": _channels_last},
        _padded_shapes,
        ranks=(4,),
    ),
    "Permute": LayerRule({"dims": _permuted_axes}, _permuted_shapes, ranks=(3, 4)),
    "Add": LayerRule(shapes=_added_shapes, most_inputs=MAX_INPUTS),
    "Concatenate": LayerRule({"axis": _a_last_axis}, _joined_shapes, most_inputs=MAX_INPUTS),
    "BatchNormalization": LayerRule(
        {
            "axis": _a_last_axis,
            "momentum": a_number(0.0, 1.0),
            "epsilon": _an_epsilon,
            "center": _a_flag,
            "scale": _a_flag,
        },
        _batch_normalization_shapes,
        # 'renorm_*' only matter with 'renorm'.
        only={
            "renorm": False,
            "renorm_clipping": None,
            "renorm_momentum": 0.99,
            "synchronized": False,
        },
    ),
    "GroupNormalization": LayerRule(
        {
            "groups": an_integer(-1, MAX_UNITS),
            "axis": _a_last_axis,
            "epsilon": _an_epsilon,
            "center": _a_flag,
            "scale": _a_flag,
        },
        _group_normalization_shapes,
        ranks=(3,),
    ),
    "LeakyReLU": LayerRule({"negative_slope": _a_slope}),
    "ReLU": LayerRule(
        {
            "max_value": a_number(0.0, 1e9, or_none=True),
            "negative_slope": _a_slope,
            "threshold": a_number(0.0, 1e9),
        }
    ),
    "Activation": LayerRule({"activation": an_activation}),
    "Dropout": LayerRule({"rate": a_number(0.0, 0.999)}, only={"noise_shape": None}),
    "icse>ModifiedReLU": LayerRule({"epsilon": _an_epsilon}),
}

# Classes by which Keras runs what the file says.
_RUN_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__", "function")

# Settings of any layer that do not change what a trained network computes.
_HARMLESS = re.compile(r"name|trainable|autocast|seed|\w+_(initializer|regularizer|constraint)")


# --------------------------------------------------------------------------------------------
# Reading


def read_model_file(path: str | os.PathLike) -> ModelFile:
    """Reads a model file as data.

    Args:
        path: A legacy Keras .h5 file, or a packed one (``speech.compact``); the first bytes tell.

    Returns:
        Layers, weights and meta data that passed every check of the module docstring.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: The file is refused; the message says why and what to do.
    """
    path = Path(path)
    if is_compact(path):
        from speech.compact import read_compact

        return read_compact(path)
    with open_hdf5(path) as file:
        text = text_attribute(file, "model_config", MAX_CONFIG_BYTES)
        if text is None:
            raise ModelFileError(
                "no 'model_config' attribute, expected a whole Keras model; import old weights "
                "with 'python -m speech.weights import', or save it again with model.save()"
            )
        plan = plan_layers(parse_json(text, "'model_config'"))
        _refuse_reversed_kernels(file)
        text = text_attribute(file, META_ATTRIBUTE, MAX_META_BYTES)
        meta = {} if text is None else parse_json(text, f"'{META_ATTRIBUTE}'")
        if not isinstance(meta, dict):
            raise ModelFileError(f"'{META_ATTRIBUTE}' is {_show(meta)}, expected a JSON object")
        check_conventions([layer for layer, _ in plan], meta)
        num_bytes = sum(4 * math.prod(shape) for _, shapes in plan for shape in shapes.values())
        if num_bytes > file.file.num_bytes:
            raise ModelFileError(
                f"the layers call for {num_bytes:,} bytes of weights, the file has "
                f"{file.file.num_bytes:,}"
            )
        groups = child_group(file, "model_weights")
        layers = tuple(
            dataclasses.replace(layer, weights=_read_weights(groups, layer, shapes))
            for layer, shapes in plan
        )
    return ModelFile(layers, meta, sha256_of(path), path)


def _refuse_reversed_kernels(file: hdf5.Group) -> None:
    attribute = file.attribute("backend")
    if attribute is not None and attribute.datatype.is_string:
        backend = text_attribute(file, "backend", 100)
        if backend in ("theano", "cntk"):
            raise ModelFileError(
                f"saved with the backend {backend!r}, whose kernels run backwards; load it in "
                "Keras 2 with TensorFlow and save it again"
            )


def is_compact(path: str | os.PathLike) -> bool:
    """Returns whether a file starts as a packed one does; False if there is none."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        return stream.read(len(COMPACT_MAGIC)) == COMPACT_MAGIC


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
    return [(layer, shapes) for layer, shapes, _ in _examine(model_config)]


def output_shapes(layers: Iterable[LayerSpec]) -> dict[str, tuple[int | None, ...]]:
    """Returns the shape of each layer's output, (batch, time, bands, channels) or fewer axes.

    Batch and time are None, wherever a Permute may have moved the time.

    Raises:
        ModelFileError: The layers would not pass the exam.
    """
    return {
        layer.name: tuple(None if isinstance(axis, Frames) else axis for axis in shape)
        for layer, _, shape in _examine(model_config_of(layers))
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
        for layer, _, shape in _examine(model_config_of(layers))
    }


def frames_more(layers: Iterable[LayerSpec]) -> int:
    """Returns how many frames longer a network's output is than its input.

    The number is negative for convolutions without padding.

    Raises:
        ModelFileError: The layers would not pass the exam, or the output has no axis of time.
    """
    *_, (layer, _, shape) = _examine(model_config_of(layers))
    for axis in shape:
        if isinstance(axis, Frames):
            return axis.more
    raise ModelFileError(f"{_where(layer)} gives no axis of time")


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


def _examine(model_config: Any) -> list[tuple[LayerSpec, Shapes, Shape]]:
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
                f"{_where(layer)} brings the values that are computed for one frame to "
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
            raise ModelFileError(f"{_where(layer)} got {rank} axes, expected {expected}")
    if any(len(shape) != len(inputs[0]) for shape in inputs):
        ranks = " and ".join(str(len(shape)) for shape in inputs[:8])
        raise ModelFileError(f"{_where(layer)} got {ranks} axes, expected inputs of one shape")
    if rule.shapes is None:
        return {}, inputs[0]
    try:
        shapes, shape = rule.shapes(layer.config, *inputs)
    except ValueError as error:
        raise ModelFileError(f"{_where(layer)}: {error}") from None
    more = next((axis.more for axis in shape if isinstance(axis, Frames)), 0)
    if length and length + more < 1:
        raise ModelFileError(f"{_where(layer)} leaves nothing of the input's {length:,} frames")
    return shapes, shape


def _values_per_frame(shape: Shape) -> int:
    """Returns how many values a tensor holds for one frame of input, padding included."""
    return math.prod(
        1 + max(axis.more, 0) if isinstance(axis, Frames) else axis for axis in shape[1:] if axis
    )


def _where(layer: LayerSpec) -> str:
    return f"layer {layer.name!r} ({layer.class_name})"


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
            f"the model is a {_show(class_name)}, expected a Sequential or Functional model"
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
                f"{_where(layer)} is named {_show(entry['name'])} in the graph, expected one name"
            )
        layers[place] = dataclasses.replace(layer, inputs=_inputs_of(entry, layer))
    ends = []
    for key, what in (("input_layers", "inputs"), ("output_layers", "outputs")):
        tensors = _get(config, key)
        if isinstance(tensors, list) and len(tensors) == 1:
            tensors = tensors[0]
        if not _is_tensor(tensors):
            raise ModelFileError(
                f"{key!r} is {_show(tensors)}, expected one layer as ['name', 0, 0]; models of "
                f"several {what} are not accepted"
            )
        ends.append(tensors[0])
    source = next((layer for layer in layers if layer.class_name == "InputLayer"), None)
    if source is not None and source.name != ends[0]:
        raise ModelFileError(
            f"the model's input is {_show(ends[0])}, expected the InputLayer {source.name!r}"
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
            f"{_where(layer)} is called {len(nodes):,} times, expected once: a shared layer is "
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
            f"{_where(layer)}: 'inbound_nodes' is {_show(nodes)}, expected one plain call on the "
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
        raise ModelFileError(f"the model's output is {_show(output)}, but there is no such layer")
    readers: dict[str, list[int]] = {name: [] for name in by_name}
    for place, layer in enumerate(layers):
        if not (layer.class_name == "InputLayer") == (not layer.inputs) == (place == 0):
            raise ModelFileError(
                f"{_where(layer)} is layer {place + 1} and reads "
                f"{_show(layer.inputs[0]) if layer.inputs else 'nothing'}, expected one "
                "InputLayer, as the first; build the model with keras.Input and save it again"
            )
        most = LAYER_RULES[layer.class_name].most_inputs
        if place and not min(most, 2) <= len(layer.inputs) <= most:
            expected = "1" if most == 1 else f"2 to {most}"
            raise ModelFileError(
                f"{_where(layer)} reads {len(layer.inputs):,} layers, expected {expected}"
            )
        for name in layer.inputs:
            if name not in by_name:
                raise ModelFileError(
                    f"{_where(layer)} reads {_show(name)}, but there is no such layer"
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
                f"{_where(by_name[name])} is read by no layer and is not the output "
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
            f"layer {_show(class_name)} is of Keras 1; import its weights with 'python -m "
            "speech.weights import'"
        )
    else:
        raise ModelFileError(
            f"refused: layer {_show(class_name)} is not known; only {', '.join(LAYER_RULES)} are "
            "accepted (see docs/security.md): build the model of these and save it again"
        )
    name = _get(config, "name")
    if not isinstance(name, str) or not _LAYER_NAME.fullmatch(name):
        raise ModelFileError(
            f"a {class_name} layer is named {_show(name)}, expected letters, digits and _ . -"
        )
    where = f"layer {name!r} ({class_name})"
    kept = {}
    for key, check in rule.settings.items():
        if key not in config:
            raise ModelFileError(f"{where} lacks {key!r}; save it again with Keras 2 or 3")
        try:
            kept[key] = check(config[key])
        except ValueError as error:
            raise ModelFileError(
                f"{where}: {key!r} is {_show(config[key])}, expected {error}"
            ) from None
    for key, value in config.items():
        if key in kept:
            continue
        if key == "dtype":
            _check_dtype_policy(value, where)
        elif key in rule.only:
            if value != rule.only[key]:
                raise ModelFileError(
                    f"{where}: {key!r} is {_show(value)}, expected {rule.only[key]!r}"
                )
        elif not _HARMLESS.fullmatch(key):
            raise ModelFileError(
                f"{where}: unknown setting {_show(key)}, expected {', '.join(rule.settings)}; "
                "build the layer without it and save it again"
            )
    return LayerSpec(class_name, name, kept)


def _check_dtype_policy(value: Any, where: str) -> None:
    name = value
    if isinstance(value, dict):
        name = _get(_get(value, "config"), "name")
    if name != "float32":
        raise ModelFileError(f"{where} computes in {_show(name)}, expected 'float32'")


def _refuse_code_and_strangers(value: Any) -> None:
    """Refuses a configuration that names code, or what is not Keras's own, anywhere in it."""
    if isinstance(value, dict):
        if value.get("class_name") in _RUN_CODE:
            raise ModelFileError(
                f"refused: layer {_show(value['class_name'])} can run code; only "
                f"{', '.join(LAYER_RULES)} are accepted (see docs/security.md)"
            )
        module = value.get("module")
        if module is not None and not re.fullmatch(r"keras(\.\w+)*", str(module)):
            raise ModelFileError(
                f"refused: the configuration names module {_show(module)}, expected keras only "
                "(see docs/security.md)"
            )
        registered = value.get("registered_name")
        if registered not in (None, value.get("class_name"), *LAYER_RULES):
            raise ModelFileError(
                f"refused: the configuration asks for the registered object {_show(registered)} "
                "(see docs/security.md)"
            )
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_code_and_strangers(item)


def _read_weights(groups: hdf5.Group, layer: LayerSpec, shapes: Shapes) -> dict[str, np.ndarray]:
    """Reads the weights of one layer, all of ``shapes`` and no others."""
    if not shapes:
        return {}
    group = child_group(groups, layer.name)
    names = names_attribute(group, "weight_names")
    paths = {name.removesuffix(":0").rpartition("/")[2]: name for name in names}
    if len(names) != len(paths) or paths.keys() != shapes.keys():
        raise ModelFileError(
            f"layer {layer.name!r} ({layer.class_name}) holds the weights {_show(names)}, "
            f"expected {sorted(shapes)}"
        )
    return {key: read_array(_follow(group, paths[key]), shape) for key, shape in shapes.items()}


def _follow(group: hdf5.Group, path: str) -> hdf5.Group | hdf5.Dataset:
    """Returns what lies at a path such as 'model/layer/kernel', hard links all the way."""
    *parents, name = path.split("/")
    if len(parents) > MAX_WEIGHT_DEPTH:
        raise ModelFileError(
            f"a weight lies {len(parents):,} groups deep, expected at most {MAX_WEIGHT_DEPTH}"
        )
    for parent in parents:
        group = child_group(group, parent)
    return hard_linked(group, name)


# --------------------------------------------------------------------------------------------
# Writing


def write_model_file(
    path: str | os.PathLike, layers: Sequence[LayerSpec], meta: Mapping[str, Any]
) -> None:
    """Writes a model file atomically; what is written passes the exam of ``read_model_file``.

    Args:
        path: The file to write, ending in '.h5', by which Keras tells the format.
        layers: The layers in the order of computation, InputLayer first, with all weights.
        meta: The ``speech_meta`` object: JSON values, no NaN or infinity.

    Raises:
        ModelFileError: A layer, a weight or ``meta`` would not pass; nothing is written.
    """
    path = Path(path)
    with refusals(path):
        if path.suffix != ".h5":
            raise ModelFileError("cannot be written: expected a name that ends in .h5")
        layers = linked(layers)
        config_text = json.dumps(
            model_config_of(layers), separators=None if is_chain(layers) else (",", ":")
        )
        text_of_meta = meta_text(meta)
        plan = plan_layers(json.loads(config_text))
        check_conventions([layer for layer, _ in plan], meta)
        by_name = {layer.name: layer for layer in layers}
        arrays = {}
        for planned, shapes in plan:
            layer = by_name[planned.name]
            if layer.weights.keys() != shapes.keys():
                raise ModelFileError(
                    f"{_where(layer)} has the weights {sorted(layer.weights)}, expected "
                    f"{sorted(shapes)}"
                )
            weights = {key: np.asarray(layer.weights[key]) for key in shapes}
            for key, shape in shapes.items():
                _check_array(weights[key], shape, f"{layer.name}/{key}")
            arrays[layer.name] = weights
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            _hdf5_image(config_text, text_of_meta, arrays, lean=not is_chain(layers))
        )


def _hdf5_image(
    config_text: str,
    text_of_meta: str,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    *,
    lean: bool,
) -> bytes:
    """Returns the bytes of a model file.

    By default HDF5 takes 2.8 kB for the two groups of a layer, which is as much as the weights of a
    layer of a small network with skips. A list of links instead of a symbol table (any HDF5 since
    1.8 reads both), room for structures asked for as it is needed, and no groups for layers
    without weights leave a third. Chains, which have few layers, are written as they always were.

    Args:
        config_text: The ``model_config`` attribute.
        text_of_meta: The ``speech_meta`` attribute.
        arrays: Layer name -> its weights by name.
        lean: Whether to save these bytes.
    """
    import h5py

    options: dict[str, Any] = {"driver": "core", "backing_store": False}
    if lean:
        arrays = {name: weights for name, weights in arrays.items() if weights}
        options["meta_block_size"] = 1
        as_links = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        as_links.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED)
    # In memory: on a full disk HDF5 can neither write nor close a file, and crashes.
    with h5py.File("model.h5", "w", **options) as file:
        file.attrs.update(_FILE_ATTRIBUTES)
        file.attrs["model_config"] = config_text
        file.attrs[META_ATTRIBUTE] = text_of_meta
        groups = file.create_group("model_weights")
        groups.attrs.update(_FILE_ATTRIBUTES)
        groups.attrs["layer_names"] = _bytes_array(arrays)
        for name, weights in arrays.items():
            if lean:
                for path in (name, f"{name}/{name}"):
                    h5py.h5g.create(groups.id, path.encode(), gcpl=as_links)
            group = groups.require_group(name)
            group.attrs["weight_names"] = _bytes_array(f"{name}/{key}" for key in weights)
            for key, array in weights.items():
                group[f"{name}/{key}"] = array
        file.flush()
        return file.id.get_file_image()


@dataclasses.dataclass(frozen=True)
class MaskConventions:
    """What a network of the kind 'complex_mask' takes and gives (``speech.net.timefrequency``).

    Attributes:
        sample_rate_hz: Rate of the signal.
        stft: Frames of the spectrum.
        power: Exponent of the compression of the spectrum, above 0 and at most 1.
    """

    sample_rate_hz: int
    stft: StftConfig
    power: float

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> MaskConventions:
        """Reads the conventions in a ``speech_meta`` object.

        Raises:
            ModelFileError: One of them is missing, or makes no sense.
        """
        checks: dict[str, Check] = {
            "kind": one_of(COMPLEX_MASK),
            "sample_rate_hz": an_integer(1, 1_000_000),
            "stft": _an_stft,
            "power": a_number(1e-3, 1.0),
            "features": one_of(list(MASK_FEATURES)),
        }
        found = {}
        for key, check in checks.items():
            if key not in meta:
                raise ModelFileError(
                    f"'{META_ATTRIBUTE}' lacks {key!r}, which a {COMPLEX_MASK!r} network needs; "
                    "save it with the conventions that it was trained with"
                )
            try:
                found[key] = check(meta[key])
            except ValueError as error:
                raise ModelFileError(
                    f"'{META_ATTRIBUTE}': {key!r} is {_show(meta[key])}, expected {error}"
                ) from None
        return cls(found["sample_rate_hz"], found["stft"], found["power"])


def _an_stft(value: Any) -> StftConfig:
    from speech.stft import StftConfig

    match value:
        case {"frame": int(), "hop": int(), "window": str(), **rest} if not rest:
            with contextlib.suppress(ValueError):
                return StftConfig(**value)
    raise ValueError(
        "a frame, a hop that divides it and a window, such as "
        '{"frame": 512, "hop": 256, "window": "sqrt_hann"}'
    )


def check_conventions(layers: Sequence[LayerSpec], meta: Mapping[str, Any]) -> None:
    """Checks that a network of the kind 'complex_mask' is one.

    Args:
        layers: Layers that passed the exam, in order.
        meta: The ``speech_meta`` object; of another kind, nothing is checked.

    Raises:
        ModelFileError: A convention is missing or makes no sense, or the network takes or gives
            something else than its conventions say.
    """
    if meta.get("kind") != COMPLEX_MASK:
        return
    num_bins = MaskConventions.of(meta).stft.frame // 2
    expected = [None, None, num_bins, len(MASK_FEATURES)]
    if layers[0].config["batch_shape"] != expected:
        raise ModelFileError(
            f"the input has the shape {_show(layers[0].config['batch_shape'])}, but "
            f"'{META_ATTRIBUTE}' calls for {expected}: batch, frames, bins, features"
        )
    shape = _examine(model_config_of(layers))[-1][2]
    if shape != (None, Frames(), num_bins, 2):
        raise ModelFileError(
            f"the output has the shape {_show(shape[1:])}, but '{META_ATTRIBUTE}' calls for "
            f"(frames, {num_bins}, 2): a complex number per bin"
        )


def meta_text(meta: Mapping[str, Any]) -> str:
    """Returns the ``speech_meta`` object as JSON text; ModelFileError if it is none."""
    try:
        text = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"the meta data is not plain JSON ({error})") from None
    if len(text.encode()) > MAX_META_BYTES:
        raise ModelFileError(f"the meta data is {len(text):,} bytes, at most {MAX_META_BYTES:,}")
    return text


def _bytes_array(names: Any) -> np.ndarray:
    return np.array([name.encode() for name in names] or np.empty(0, "S1"))


# --------------------------------------------------------------------------------------------
# HDF5 and JSON as hostile input. Also used by the importer of old weights.


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Puts the file's name in front of every ``ModelFileError`` raised in the block."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[hdf5.Group]:
    """Opens an HDF5 file for reading; inside the block, any failure is a ``ModelFileError``.

    Yields:
        Its root group.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: Not a regular file, too big, not HDF5, damaged, or refused in the block.
    """
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such model file; check the path", str(path))
    with refusals(path):
        if not path.is_file():
            raise ModelFileError(
                "not a regular file, expected an HDF5 model file; of a SavedModel folder, load the "
                "model and save it with model.save('NAME.h5')"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path.stat().st_size:,} bytes, expected at most {MAX_FILE_BYTES:,}"
            )
        try:
            with open(path, "rb") as stream:
                if stream.read(4) == b"PK\3\4":
                    raise ModelFileError(
                        "an archive, as .keras files are, expected an HDF5 file; load the model "
                        "with Keras and save it with model.save('NAME.h5')"
                    )
                yield hdf5.File(stream).root
        except (hdf5.Hdf5Error, OSError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(
                f"not a readable HDF5 file ({reason}); it may be truncated or of another "
                "format: copy it again or save it again"
            ) from None


def parse_json(text: str, what: str) -> Any:
    """Parses strict JSON.

    Raises:
        ModelFileError: Not JSON, nested too deeply, of too many parts, or with NaN or an infinity.
    """
    num_parts = text.count("[") + text.count("{")  # each takes far more memory than text
    if num_parts > MAX_JSON_PARTS:
        raise ModelFileError(
            f"{what} holds {num_parts:,} lists and objects, expected at most {MAX_JSON_PARTS:,}"
        )
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{what} is not valid JSON ({error}), save it again") from None
    _check_depth(value, what)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _check_depth(value: Any, what: str) -> None:
    """Refuses what would exhaust the stack of whoever walks through it."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        lists = [list(item.values()) if isinstance(item, dict) else item
                 for item in level if isinstance(item, dict | list)]  # fmt: skip
        level = list(itertools.chain.from_iterable(lists))
        if not level:
            return
    raise ModelFileError(f"{what} is not valid JSON (nested too deeply), save it again")


def text_attribute(owner: hdf5.Group, name: str, max_bytes: int) -> str | None:
    """Returns a string attribute of at most ``max_bytes``, None if there is none."""
    attribute = owner.attribute(name)
    if attribute is None:
        return None
    if attribute.shape != () or not attribute.datatype.is_string:
        raise ModelFileError(f"attribute {name!r} is not a string, expected JSON text")
    num_bytes = attribute.string_bytes()
    if num_bytes > max_bytes:
        raise ModelFileError(f"{name!r} is {num_bytes:,} bytes, expected at most {max_bytes:,}")
    return attribute.strings()[0].decode("utf-8", "replace")


def names_attribute(owner: hdf5.Group, name: str) -> list[str]:
    """Returns an attribute that lists names, such as ``layer_names`` of a Keras file."""
    attribute = owner.attribute(name)
    if attribute is None:
        raise ModelFileError(f"no attribute {name!r} in {owner.name!r:.80}, expected Keras weights")
    count = attribute.count if len(attribute.shape) == 1 else -1
    if count == 0:
        return []
    # Strings of free length may all point at the same bytes: bound what they can grow to.
    if (
        not attribute.datatype.is_string
        or not 0 < count <= 10 * MAX_LAYERS
        or attribute.string_bytes() > MAX_META_BYTES
    ):
        raise ModelFileError(f"attribute {name!r} of {owner.name!r:.80} is not a list of names")
    return [value.decode("utf-8", "replace") for value in attribute.strings()]


def hard_linked(group: hdf5.Group, name: str) -> hdf5.Group | hdf5.Dataset:
    """Returns a direct child of a group that is stored in this very file.

    Raises:
        ModelFileError: No such child, or it is a soft or external link or a named type.
    """
    where = f"{group.name}/{name}".replace("//", "/")
    simple = name not in ("", ".", "..") and "/" not in name
    link = group.link(name) if simple else None
    if link is None:
        raise ModelFileError(f"no {_show(where)} in the file; save it again")
    if link.kind != "HardLink":
        raise ModelFileError(
            f"refused: {_show(where)} is a link ({link.kind}), expected the data "
            "itself (see docs/security.md)"
        )
    child = group.child(name)
    if child is None:
        raise ModelFileError(f"{_show(where)} is neither a group nor a dataset, expected weights")
    return child


def child_group(group: hdf5.Group, name: str) -> hdf5.Group:
    """Returns a hard-linked child that is a group."""
    child = hard_linked(group, name)
    if not isinstance(child, hdf5.Group):
        raise ModelFileError(f"{_show(child.name)} is a dataset, expected a group")
    return child


def read_array(dataset: hdf5.Group | hdf5.Dataset, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a float32 dataset after checking its type, shape and storage.

    Args:
        dataset: What was found where the weight should be.
        shape: The shape it must have.

    Returns:
        A float32 array of ``shape``, all finite.

    Raises:
        ModelFileError: It is something else.
    """
    if not isinstance(dataset, hdf5.Dataset):
        raise ModelFileError(f"{_show(dataset.name)} is a group, expected a dataset")
    where = _show(dataset.name)
    if dataset.datatype.dtype is None:
        raise ModelFileError(f"{where} is {dataset.datatype.name}, expected float32")
    if dataset.shape != shape:
        raise ModelFileError(f"{where} has shape {_show(dataset.shape)}, expected {shape}")
    # Chunks may be compressed bombs far bigger than the dataset; Keras writes none.
    if dataset.storage not in ("contiguous", "compact"):
        raise ModelFileError(
            f"refused: {where} has virtual, chunked or compressed storage, "
            "expected plain storage in this file; save it again with Keras"
        )
    if dataset.is_external:
        raise ModelFileError(
            f"refused: {where} has external storage, expected the data in this "
            "file (see docs/security.md)"
        )
    if dataset.num_bytes != 4 * math.prod(shape):
        raise ModelFileError(f"{where} was never written; save it again")
    array = dataset.read()
    _check_array(array, shape, dataset.name)
    return array


def _check_type_and_shape(array: Any, shape: tuple[int, ...], name: str) -> None:
    if array.dtype.newbyteorder("=") != np.float32:
        raise ModelFileError(f"{_show(name)} is {array.dtype}, expected float32")
    if array.shape != shape:
        raise ModelFileError(f"{_show(name)} has shape {array.shape}, expected {shape}")


def _check_array(array: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    _check_type_and_shape(array, shape, name)
    if not np.isfinite(array).all():
        raise ModelFileError(
            f"{_show(name)} holds NaN or infinite values, expected finite weights; "
            "the training may have diverged: use an earlier checkpoint"
        )


def _get(value: Any, key: str) -> Any:
    """Returns ``value[key]`` of a JSON object."""
    if not isinstance(value, dict) or key not in value:
        raise ModelFileError(f"the configuration lacks {key!r}; save it again with Keras 2 or 3")
    return value[key]


def _show(value: Any) -> str:
    """Returns a short repr: what a stranger wrote must not flood or drive a terminal."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
