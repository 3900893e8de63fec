"""The allow-list: which layers a model file may hold, which settings, and the shapes that follow.

A setting's check returns the value to keep or raises ValueError(what to expect).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_UNITS = 65_536
MAX_KERNEL_SIZE = 8_192
MAX_DILATION = 1_024
MAX_STRIDE = 64
MAX_PADDING = 65_536
#: Layers that one Add or Concatenate may read.
MAX_INPUTS = 16

#: Activations that may be named by an ``Activation`` layer or by one with a kernel. Keras wrote
#: 'swish' for 'silu' once; it is read as 'silu'.
ACTIVATIONS = ["linear", "relu", "sigmoid", "tanh", "silu"]

#: Recurrent layers and their gates: their kernels are so many times as wide as they have units.
GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
#: What the names of the weights of a Bidirectional begin with, in the order in which Keras lists
#: them.
DIRECTIONS = ("forward", "backward")

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
    """The settings, weights and shapes that a layer class may have.

    Attributes:
        settings: Check of each setting that is kept; all of them must be present.
        shapes: ``(config, *shapes of the inputs) -> (shape of each weight, shape of the output)``,
            called with checked settings; raises ValueError if they do not fit. The order of the
            weights is the one in which Keras lists them. None: no weights, same shape.
        only: Settings that may be left out and must have exactly this value if present.
        ignored: Checks of settings that may be left out and change nothing that is computed.
        wraps: Classes that its setting 'layer' may hold.
        ranks: Accepted number of axes of an input, the batch axis included.
        most_inputs: Layers that it may read: from 2 on if there may be several, else 1.
    """

    settings: Mapping[str, Check] = dataclasses.field(default_factory=dict)
    shapes: Callable[..., tuple[Shapes, Shape]] | None = None
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, Check] = dataclasses.field(default_factory=dict)
    wraps: tuple[str, ...] = ()
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


def _recurrent_shapes(class_name: str) -> Callable[..., tuple[Shapes, Shape]]:
    """Returns the shapes of a recurrent layer: of its kernels, and of the sequence it gives."""
    gates = GATES[class_name]

    def shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
        if not isinstance(shape[1], Frames):
            raise ValueError(f"got the shape {shape[1:]}, expected (frames, channels)")
        units, width = config["units"], gates * config["units"]
        found: Shapes = {"kernel": (_channels(shape), width), "recurrent_kernel": (units, width)}
        if config["use_bias"]:
            found["bias"] = (2, width) if config.get("reset_after") else (width,)
        return found, (None, shape[1], units)

    return shapes


def _bidirectional_shapes(config: dict[str, Any], shape: Shape) -> tuple[Shapes, Shape]:
    wrapped = config["layer"]
    rule = LAYER_RULES[wrapped["class_name"]]
    assert rule.shapes is not None, "a recurrent layer"
    one, output = rule.shapes(wrapped["config"], shape)
    both = {f"{which}_{key}": size for which in DIRECTIONS for key, size in one.items()}
    twice = 2 if config["merge_mode"] == "concat" else 1
    return both, (*output[:-1], twice * _channels(output))


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


_a_flag = one_of(True, False)
_a_rate = a_number(0.0, 0.999)
_an_epsilon = a_number(1e-12, 1.0)
_a_slope = a_number(0.0, 1000.0)
_a_padding = one_of("same", "valid")
_channels_last = one_of("channels_last")


def _recurrent(class_name: str, **more: Check) -> LayerRule:
    """Returns the rule of a recurrent layer that gives a sequence and starts from zeros."""
    return LayerRule(
        {
            "units": an_integer(1, MAX_UNITS),
            "activation": an_activation,
            "use_bias": _a_flag,
            "return_sequences": one_of(True),
            "dropout": _a_rate,
            "recurrent_dropout": _a_rate,
            **more,
        },
        _recurrent_shapes(class_name),
        only={
            "return_state": False,
            "go_backwards": False,
            "stateful": False,
            "time_major": False,
        },
        # How Keras computes, how weights start, and what happens to frames that a mask hides:
        # there are no masks.
        ignored={
            "unroll": _a_flag,
            "zero_output_for_mask": _a_flag,
            "unit_forget_bias": _a_flag,
            "implementation": an_integer(0, 2),
        },
        ranks=(3,),
    )


#: The layers a model file may hold. The one place to add a class: a layer of our own stands here
#: under the name that ``speech.net.layers`` registers with Keras.
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
    "LSTM": _recurrent("LSTM", recurrent_activation=an_activation),
    "GRU": _recurrent("GRU", recurrent_activation=an_activation, reset_after=_a_flag),
    "SimpleRNN": _recurrent("SimpleRNN"),
    "Bidirectional": LayerRule(
        {"merge_mode": one_of("concat", "sum", "mul", "ave")},
        _bidirectional_shapes,
        wraps=tuple(GATES),
        ranks=(3,),
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
    "Dropout": LayerRule({"rate": _a_rate}, only={"noise_shape": None}),
    "icse>ModifiedReLU": LayerRule({"epsilon": _an_epsilon}),
}

# Classes by which Keras runs what the file says.
RUN_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__", "function")

# Settings of any layer that do not change what a trained network computes.
HARMLESS = re.compile(r"name|trainable|autocast|seed|\w+_(initializer|regularizer|constraint)")
