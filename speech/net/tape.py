"""Runs a network over time and frequency on a CPU through C kernels: outputs and gradients.

``kernels/tape.c`` computes; this module reads the layers of such a network, writes down which
operations they come to (the tape), finds memory for what the operations pass on, and leads through
a training step. Each core takes a piece of signal (2 s, say) through as many operations as need
nothing of other pieces; only the batch statistics of a normalisation make all pieces wait for each
other. It goes through such a phase block by block, some frames at a time, which stay in the core's
cache from operation to operation; what no later phase and no other block reads has memory for one
block only. Normalisation, activation and residual are one operation. The backward pass computes
activations again that it would have to read from memory.

Tensors are float32 [pieces, frames, bands, channels]; inside, channels are filled up with zeros to
whole vectors of 8. Weights have Keras' shapes and come and go in Keras' order. NumPy only.

What is understood, anything else is left to Keras (``read_layers`` returns None): Conv2D over
bands ('same') or over time (after a ZeroPadding2D that makes it causal), Dense over channels, Dense
over bands (between two Permute), Conv2DTranspose over bands with a kernel of two strides,
BatchNormalization, Activation (SiLU, linear) and Add.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from speech.modelfile.spec import ModelFileError
from speech.net import blockconv

LANES = 8
(_CONV, _CONV_WEIGHTS, _BANDS, _BANDS_WEIGHTS, _APPLY, _ACT_GRADIENT, _NORM_GRADIENT, _ADD,
 _MOMENTS, _MOMENT_GRADIENTS) = range(10)  # fmt: skip
_ACTIVATIONS = {"linear": 0, "silu": 1, "swish": 1}
_MAX_TAPS = 64  # MOST_SEGMENTS in tape.c

#: A block of frames holds so many floats of the widest tensor, 64 kB: several fit into a core's
#: second cache.
_BLOCK_FLOATS = 16384
_FEWEST_FRAMES = 4
_LINE_FLOATS = 16
_TURNED_FRAMES = 4  # TURNED in tape.c

#: class name, layer name, Keras config, names of the layers it reads
Layer = tuple[str, str, dict[str, Any], Sequence[str]]
Weights = Mapping[str, Mapping[str, np.ndarray]]  # by layer and weight: 'kernel', 'gamma', ...


def padded(channels: int) -> int:
    """Returns the number of channels filled up to whole vectors."""
    return -(-channels // LANES) * LANES


# --------------------------------------------------------------------------------------------
# Reading layers


@dataclass(frozen=True)
class Node:
    """One step of the network, as it will run.

    Attributes:
        kind: 'input', 'conv', 'bands', 'apply' (normalisation, activation and residual, as far as
            the network has them) or 'add'.
        name: Layer that holds the weights; for 'apply' that of the normalisation, or ''.
        inputs: Indices of the nodes it reads; of an 'apply' the second one is the residual.
        bands: Bands of the output.
        channels: Channels of the output, without padding.
        taps: Of a convolution over time.
        dilation: Frames from one tap to the next.
        width: Bands that a convolution sees.
        stride: Bands from one of its windows to the next.
        pad: Bands that its first window reaches beyond the first band.
        split: Of a transposed convolution, the number of bins that a band becomes; else 0.
        use_bias: Whether there is a bias.
        activation: 'linear' or 'silu'.
        epsilon: Of the normalisation.
        momentum: Of its moving statistics.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    bands: int
    channels: int
    taps: int = 1
    dilation: int = 1
    width: int = 1
    stride: int = 1
    pad: int = 0
    split: int = 0
    use_bias: bool = False
    activation: str = "linear"
    epsilon: float = 0.0
    momentum: float = 0.99

    @property
    def normalized(self) -> bool:
        """Whether this is an 'apply' with a normalisation."""
        return self.kind == "apply" and bool(self.name)


@dataclass(frozen=True)
class _Value:
    """A layer's output, expressed by a node."""

    node: int
    swapped: bool = False  # bands and channels exchanged by a Permute
    padding: int = 0  # frames of zeros in front


class _NotUnderstoodError(Exception):
    pass


def read_layers(layers: Sequence[Layer]) -> tuple[Node, ...] | None:
    """Returns the nodes of a network, the last one its output; None if it is of another kind."""
    try:
        return nodes_of(layers)
    except ModelFileError:
        return None


def nodes_of(layers: Sequence[Layer]) -> tuple[Node, ...]:
    """Returns the same, and says what is of another kind.

    Raises:
        ModelFileError: A layer, or how it is connected, is not understood.
    """
    reader = _Reader(layers)
    try:
        return reader.nodes()
    except _NotUnderstoodError:
        raise ModelFileError(
            f"layer {reader.at!r} is none that the C kernels run as it stands; expected the layers "
            "of docs/network.md, as python -m speech.train --network tf makes them"
        ) from None


def _require(condition: Any) -> None:
    if not condition:
        raise _NotUnderstoodError


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class _Reader:
    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._nodes: list[Node] = []
        self._values: dict[str, _Value] = {}
        self._readers: dict[str, int] = {}
        for _, _, _, inputs in layers:
            for name in inputs:
                self._readers[name] = self._readers.get(name, 0) + 1
        self._single: set[int] = set()  # nodes that one layer alone reads, so far unmerged
        self.at = layers[0][1]  # the layer that is being read

    def nodes(self) -> tuple[Node, ...]:
        for class_name, name, config, inputs in self._layers:
            self.at = name
            read = getattr(self, f"_{class_name.lower()}", None)
            if read is None:
                raise _NotUnderstoodError
            _require(config.get("data_format") in (None, "channels_last"))
            _require(all(source in self._values for source in inputs))
            known = len(self._nodes)
            value = read(name, config, [self._values[source] for source in inputs])
            self._values[name] = value
            # A layer that only passes a value on does not hide who else reads it.
            was_single = value.node >= known or value.node in self._single
            if was_single and self._readers.get(name, 0) == 1 and not value.swapped:
                self._single.add(value.node)
            else:
                self._single.discard(value.node)
        last = self._values[self._layers[-1][1]]
        _require(last == _Value(len(self._nodes) - 1))
        inner = self._nodes[:-1]
        _require(not any(node.split for node in inner) and len(inner) > 1)
        _require(all(node.taps <= _MAX_TAPS for node in self._nodes))
        # The channels of the input are not filled up to whole vectors; convolutions know it.
        for node in self._nodes:
            _require(node.kind == "conv" or 0 not in node.inputs)
        return tuple(self._nodes)

    def _add_node(self, node: Node) -> _Value:
        self._nodes.append(node)
        return _Value(len(self._nodes) - 1)

    def _plain(self, values: Sequence[_Value], count: int = 1) -> list[int]:
        _require(len(values) == count)
        _require(not any(value.swapped or value.padding for value in values))
        return [value.node for value in values]

    def _activated(self, value: _Value, config: dict[str, Any]) -> _Value:
        activation = config.get("activation") or "linear"
        _require(activation in _ACTIVATIONS)
        if activation == "linear":
            return value
        node = self._nodes[value.node]
        made = Node("apply", "", (value.node,), node.bands, node.channels, activation=activation)
        return replace(self._add_node(made), swapped=value.swapped)

    def _inputlayer(self, name, config, values):
        shape = config["batch_shape"]
        _require(len(shape) == 4 and not self._nodes)
        return self._add_node(Node("input", name, (), shape[2], shape[3]))

    def _dropout(self, name, config, values):
        _require(not config["rate"])
        return values[0]

    def _zeropadding2d(self, name, config, values):
        (top, bottom), sides = config["padding"]
        _require(not bottom and tuple(sides) == (0, 0) and len(values) == 1)
        _require(not values[0].swapped and not values[0].padding)
        return replace(values[0], padding=top)

    def _permute(self, name, config, values):
        _require(tuple(config["dims"]) == (1, 3, 2) and not values[0].padding)
        return replace(values[0], swapped=not values[0].swapped)

    def _conv2d(self, name, config, values):
        (taps, width), (stride_t, stride) = _pair(config["kernel_size"]), _pair(config["strides"])
        dilation, dilation_f = _pair(config["dilation_rate"])
        _require(config.get("groups", 1) == 1 and stride_t == 1 and dilation_f == 1)
        _require(taps == 1 or width == 1)
        source = self._nodes[values[0].node]
        _require(values[0].padding == (taps - 1) * dilation and not values[0].swapped)
        _require(taps == 1 or (stride == 1 and config["padding"] == "valid"))
        bands, pad = source.bands, 0
        if config["padding"] == "same":
            bands = -(-source.bands // stride)
            pad = max((bands - 1) * stride + width - source.bands, 0) // 2
        else:
            bands = (source.bands - width) // stride + 1
        _require(stride == 1 or source.kind == "input")
        node = Node(
            "conv", name, (values[0].node,), bands, config["filters"], taps, dilation, width,
            stride, pad, use_bias=config["use_bias"],
        )  # fmt: skip
        return self._activated(self._add_node(node), config)

    def _conv2dtranspose(self, name, config, values):
        (taps, width), (stride_t, stride) = _pair(config["kernel_size"]), _pair(config["strides"])
        _require(taps == 1 and stride_t == 1 and config["padding"] == "same")
        _require(width == 2 * stride and stride % 2 == 0)
        _require(_pair(config.get("dilation_rate", 1)) == (1, 1))
        _require(not config.get("output_padding") and config.get("activation") in (None, "linear"))
        (node,) = self._plain(values)
        source = self._nodes[node]
        return self._add_node(
            Node("conv", name, (node,), source.bands + 1, config["filters"] * stride, width=2,
                 pad=1, split=stride, use_bias=config["use_bias"])
        )  # fmt: skip

    def _dense(self, name, config, values):
        _require(len(values) == 1 and not values[0].padding)
        source, units = self._nodes[values[0].node], config["units"]
        inputs, bias = (values[0].node,), config["use_bias"]
        if values[0].swapped:
            node = Node("bands", name, inputs, units, source.channels, use_bias=bias)
        else:
            node = Node("conv", name, inputs, source.bands, units, use_bias=bias)
        value = replace(self._add_node(node), swapped=values[0].swapped)
        return self._activated(value, config)

    def _batchnormalization(self, name, config, values):
        (node,) = self._plain(values)
        _require(config["axis"] in (-1, 3, [-1], [3]) and config["center"] and config["scale"])
        source = self._nodes[node]
        _require(source.kind == "conv" and not source.split and node in self._single)
        return self._add_node(
            Node("apply", name, (node,), source.bands, source.channels,
                 epsilon=config["epsilon"], momentum=config["momentum"])
        )  # fmt: skip

    def _activation(self, name, config, values):
        value = values[0]
        _require(len(values) == 1 and not value.padding)
        activation = config["activation"]
        _require(activation in _ACTIVATIONS)
        node = self._nodes[value.node]
        free = node.kind == "apply" and node.activation == "linear" and len(node.inputs) == 1
        if free and value.node == len(self._nodes) - 1 and value.node in self._single:
            self._nodes[value.node] = replace(node, activation=activation)
            return value
        return self._activated(value, config)

    def _add(self, name, config, values):
        first, second = self._plain(values, 2)
        _require(first != second)
        shapes = {(self._nodes[node].bands, self._nodes[node].channels) for node in (first, second)}
        _require(len(shapes) == 1)
        for node, other in ((second, first), (first, second)):
            made = self._nodes[node]
            last = node == len(self._nodes) - 1 and node in self._single
            if last and made.kind == "apply" and len(made.inputs) == 1:
                self._nodes[node] = replace(made, inputs=(*made.inputs, other))
                return _Value(node)
        bands, channels = shapes.pop()
        return self._add_node(Node("add", "", (first, second), bands, channels))


# --------------------------------------------------------------------------------------------
# Operations and their memory


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("per", ctypes.c_int32),
        ("frame", ctypes.c_int32),
    ]


_NUMBERS = (
    "kind", "accumulate", "taps", "first", "step", "width", "stride", "pad", "in_bands",
    "in_channels", "out_bands", "out_channels", "activation", "history",
)  # fmt: skip
_TENSORS = (
    "in", "out", "extra", "residual", "value", "weights", "bias", "scale", "shift", "level", "sums",
)  # fmt: skip


class _Record(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int32) for n in _NUMBERS),
        ("epsilon", ctypes.c_float),
        *((n, _Tensor) for n in _TENSORS),
    ]


class _Phase(ctypes.Structure):
    _fields_ = [("ops", ctypes.c_void_p), ("count", ctypes.c_int32), ("size", ctypes.c_int32)]


@dataclass(eq=False)
class _Buffer:
    """A tensor to find memory for.

    Attributes:
        size: Number of floats: per frame if it has frames, otherwise in all.
        array: float32 [owners, floats], once memory was found; constants have it from the start.
        per: The owner of a row: 0 all, 1 each piece, 2 each thread.
        has_frames: Whether it runs along the piece.
        first: Number of the operation that writes it first; likewise ``last``, that reads it last.
        phases: Phases in which it is used.
        is_far: Whether an operation reads other frames of it than the one it writes.
        is_fixed: Keep all of it, whoever reads it (inputs, outputs).
    """

    size: int
    array: np.ndarray | None = None
    per: int = 1
    has_frames: bool = True
    first: int = 1 << 30
    last: int = -1
    phases: set[int] = field(default_factory=set)
    is_far: bool = False
    is_fixed: bool = False

    @property
    def is_local(self) -> bool:
        """Whether memory for one block of frames is enough."""
        return not (self.is_far or self.is_fixed or len(self.phases) > 1)


@dataclass(eq=False)
class _Op:
    kind: int
    numbers: dict[str, Any]
    tensors: dict[str, _Buffer]


def _aligned(rows: int, size: int) -> np.ndarray:
    """Returns float32 zeros [rows, size]; each row begins with a line of the cache."""
    stride = -(-size // _LINE_FLOATS) * _LINE_FLOATS
    memory = np.zeros(rows * stride + _LINE_FLOATS, np.float32)
    start = -memory.ctypes.data % (4 * _LINE_FLOATS) // 4
    return memory[start : start + rows * stride].reshape(rows, stride)[:, :size]


def _constant(array: np.ndarray, per: int = 0) -> _Buffer:
    """Returns an array that exists as a buffer: one for all, or a row for each piece."""
    size = int(np.prod(array.shape[1:])) if per else array.size
    return _Buffer(size, array, per, has_frames=False, is_fixed=True)


class _Program:
    """Operations in phases, with memory."""

    def __init__(self) -> None:
        self.phases: list[list[_Op]] = [[]]
        self._buffers: list[_Buffer] = []
        self._count = 0

    def barrier(self) -> int:
        """Ends a phase, if anything is in it; returns the number of the next."""
        if self.phases[-1]:
            self.phases.append([])
        return len(self.phases) - 1

    def add(self, kind: int, tensors: Mapping[str, _Buffer | None], **numbers: Any) -> None:
        """Appends an operation."""
        used = {name: buffer for name, buffer in tensors.items() if buffer is not None}
        for buffer in used.values():
            buffer.first = min(buffer.first, self._count)
            buffer.last = max(buffer.last, self._count)
            buffer.phases.add(len(self.phases) - 1)
            if buffer.array is None and buffer not in self._buffers:
                self._buffers.append(buffer)
        if numbers.get("taps", 1) > 1:
            used["in"].is_far = True
        self.phases[-1].append(_Op(kind, numbers, used))
        self._count += 1

    def block_frames(self, phase: int) -> int:
        """Returns the number of frames that a phase works on at a time."""
        widest = max(
            (
                buffer.size
                for op in self.phases[phase]
                for buffer in op.tensors.values()
                if buffer.has_frames
            ),
            default=1,
        )
        return max(_BLOCK_FLOATS // widest, _FEWEST_FRAMES)

    def allocate(self, pieces: int, frames: int, threads: int) -> int:
        """Gives every buffer memory, which buffers share that are not needed at a time.

        Blocks of frames come one after the other, so within a phase only buffers of one block
        may take turns.

        Returns:
            The bytes taken.
        """
        free: list[tuple[tuple[int, bool], np.ndarray]] = []
        held: list[_Buffer] = []
        total = 0

        def is_over(old: _Buffer, new: _Buffer) -> bool:
            if old.is_local and new.is_local:
                return old.last < new.first
            return max(old.phases) < min(new.phases)

        for buffer in sorted(self._buffers, key=lambda item: item.first):
            for other in [x for x in held if not x.is_fixed and is_over(x, buffer)]:
                held.remove(other)
                assert other.array is not None
                free.append(((other.per, other.is_local), other.array))
            buffer.per = 2 if not buffer.is_fixed and len(buffer.phases) == 1 else 1
            kind, size = (buffer.per, buffer.is_local), buffer.size
            if buffer.has_frames:
                block = self.block_frames(min(buffer.phases))
                size *= min(block, frames) if buffer.is_local else frames
            fits = [x for x in free if x[0] == kind and x[1].shape[1] >= size]
            if fits and not buffer.is_fixed:
                best = min(fits, key=lambda x: x[1].shape[1])
                free = [x for x in free if x[1] is not best[1]]
                buffer.array = best[1]
            else:
                rows = pieces if buffer.per == 1 else threads
                buffer.array = _aligned(rows, size)
                total += buffer.array.nbytes
            held.append(buffer)
        return total

    def records(self) -> list[Any]:
        """Returns the phases as C arrays."""
        result = []
        for phase in self.phases:
            array = (_Record * len(phase))()
            for op, record in zip(phase, array, strict=True):
                record.kind = op.kind
                for name, value in op.numbers.items():
                    setattr(record, name, value)
                for name, buffer in op.tensors.items():
                    memory = buffer.array
                    assert memory is not None
                    stride = memory.strides[0] // 4 if buffer.per else 0
                    frame = 0 if buffer.is_local or not buffer.has_frames else buffer.size
                    setattr(record, name, _Tensor(memory.ctypes.data, stride, buffer.per, frame))
            result.append(array)
        return result


# --------------------------------------------------------------------------------------------
# Weights between Keras' shapes and the kernels'


def _in_stride(nodes: Sequence[Node], node: Node) -> int:
    """Returns the channels that a node reads, as they lie in memory."""
    source = nodes[node.inputs[0]]
    return source.channels if source.kind == "input" else padded(source.channels)


def _kernel_shape(nodes: Sequence[Node], node: Node) -> tuple[int, ...]:
    """Returns taps, width, channels in and out of a convolution as it runs."""
    return node.taps, node.width, nodes[node.inputs[0]].channels, node.channels


def to_running(nodes: Sequence[Node], node: Node, kernel: np.ndarray) -> np.ndarray:
    """Returns Keras' kernel of a convolution as [taps, width, in, out], as it runs."""
    if node.split:
        # Bin 4 i + r of group i comes from the bands i - 1 and i by the taps r + 4 and r.
        halves = kernel[0].reshape(2, node.split, *kernel.shape[2:])[::-1]
        return halves.transpose(0, 3, 1, 2).reshape(1, 2, kernel.shape[3], -1)
    return kernel.reshape(_kernel_shape(nodes, node))


def _to_keras(node: Node, running: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns what `to_running` was given."""
    if node.split:
        _, _, outs, ins = shape
        halves = running.reshape(2, ins, node.split, outs).transpose(0, 2, 3, 1)
        return halves[::-1].reshape(shape)
    return running.reshape(shape)


# --------------------------------------------------------------------------------------------
# Running


class Tape:
    """A network ready to run on batches of one shape, without gradients also on smaller ones.

    Args:
        nodes: Of `read_layers`.
        pieces: Pieces in a batch.
        frames: Frames of a piece.
        gradients: Whether `backward` will be called; the normalisation then takes its statistics
            from the batch.
        threads: Default: all cores.

    Attributes:
        num_bytes: Memory that the tensors take.
        moments: Mean and (biased) variance of the latest batch, float64, by normalisation layer;
            the next `forward` overwrites them.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        pieces: int,
        frames: int,
        *,
        gradients: bool = False,
        threads: int | None = None,
    ) -> None:
        self.nodes = tuple(nodes)
        self.pieces, self.frames, self.gradients = pieces, frames, gradients
        self.threads = min(blockconv.num_threads(threads), pieces)
        self.moments: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._program = _Program()
        self._memory: dict[tuple[str, str], np.ndarray] = {}
        self._values = self._write_forward()
        self._forward_phases = len(self._program.phases)
        if gradients:
            self._forward_phases = self._program.barrier()
            self._write_backward()
        self.num_bytes = self._program.allocate(pieces, frames, self.threads)
        self._records = self._program.records()
        self._phases = (_Phase * len(self._records))()
        for number, (phase, records) in enumerate(zip(self._phases, self._records, strict=True)):
            phase.ops, phase.count = ctypes.addressof(records), len(records)
            phase.size = self._program.block_frames(number)

    # ---- writing the tape

    def _array(self, name: str, what: str, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        """Returns memory for a constant of a layer, made once."""
        if (name, what) not in self._memory:
            self._memory[name, what] = np.zeros(shape, dtype)
        return self._memory[name, what]

    def _sums(self, name: str, what: str, channels: int) -> _Buffer:
        return _constant(self._array(name, what, self.pieces, 2, channels, dtype=np.float64), 1)

    def _size(self, node: Node) -> int:
        """Returns the floats of a frame."""
        return node.bands * padded(node.channels)

    def _write_forward(self) -> list[_Buffer]:
        add, values = self._program.add, []
        for index, node in enumerate(self.nodes):
            if node.kind == "input":
                out = _Buffer(node.bands * node.channels, is_fixed=True)
                values.append(out)
                continue
            out = _Buffer(self._size(node), is_fixed=index == len(self.nodes) - 1)
            sources = [values[source] for source in node.inputs]
            wide, source = padded(node.channels), self.nodes[node.inputs[0]]
            if node.kind == "conv":
                ins = _in_stride(self.nodes, node)
                weights = self._array(node.name, "forward", node.taps, node.width, ins, wide)
                statistics = self.gradients and self._is_normalized(index)
                add(
                    _CONV,
                    {
                        "in": sources[0],
                        "out": out,
                        "weights": _constant(weights),
                        "bias": self._bias(node, wide),
                        "sums": self._sums(node.name, "moments", wide) if statistics else None,
                    },
                    taps=node.taps, first=(1 - node.taps) * node.dilation, step=node.dilation,
                    width=node.width, stride=node.stride, pad=node.pad,
                    in_bands=source.bands, in_channels=ins, out_bands=node.bands,
                    out_channels=wide,
                )  # fmt: skip
            elif node.kind == "bands":
                weights = self._array(node.name, "forward", source.bands, node.bands)
                add(
                    _BANDS,
                    {
                        "in": sources[0],
                        "out": out,
                        "weights": _constant(weights),
                        "bias": self._bias(node, node.bands),
                    },
                    in_bands=source.bands, in_channels=wide, out_bands=node.bands,
                    out_channels=wide,
                )  # fmt: skip
            elif node.kind == "apply":
                if node.normalized and self.gradients:
                    self._write_moments(node)
                add(
                    _APPLY,
                    {
                        "in": sources[0],
                        "out": out,
                        "residual": sources[1] if len(sources) > 1 else None,
                        **self._scale_and_shift(node),
                    },
                    out_bands=node.bands, out_channels=wide,
                    activation=_ACTIVATIONS[node.activation],
                )  # fmt: skip
            else:
                add(_ADD, {"in": sources[0], "extra": sources[1], "out": out},
                    out_bands=node.bands, out_channels=wide)  # fmt: skip
            values.append(out)
        return values

    def _is_normalized(self, index: int) -> bool:
        return any(node.normalized and node.inputs[0] == index for node in self.nodes)

    def _bias(self, node: Node, size: int) -> _Buffer | None:
        return _constant(self._array(node.name, "bias", size)) if node.use_bias else None

    def _scale_and_shift(self, node: Node) -> dict[str, _Buffer]:
        if not node.normalized:
            return {}
        wide = padded(node.channels)
        return {name: _constant(self._array(node.name, name, wide)) for name in ("scale", "shift")}

    def _write_moments(self, node: Node) -> None:
        """Begins a phase with what turns the moments of the batch into scale and shift."""
        wide, below = padded(node.channels), self.nodes[node.inputs[0]]
        statistics = self._array(node.name, "statistics", 2, wide, dtype=np.float64)
        self.moments[node.name] = statistics[0, : node.channels], statistics[1, : node.channels]
        self._program.barrier()
        self._program.add(
            _MOMENTS,
            {
                "in": _constant(self._array(node.name, "gamma", wide)),
                "extra": _constant(self._array(node.name, "beta", wide)),
                "sums": self._sums(below.name, "moments", wide),
                "value": _constant(statistics),
                **self._scale_and_shift(node),
            },
            epsilon=node.epsilon, out_bands=node.bands, out_channels=wide,
        )  # fmt: skip

    def _write_backward(self) -> None:
        """Writes the operations that compute the gradients of all weights from the output's."""
        nodes, values, add = self.nodes, self._values, self._program.add
        gradients: list[_Buffer | None] = [None] * len(nodes)
        waiting: dict[int, Any] = {}  # node -> writes what needs the node's output once more
        last = len(nodes) - 1
        gradients[last] = self._upstream = _Buffer(self._size(nodes[last]), is_fixed=True)

        def shape(node: Node) -> dict[str, int]:
            return {"out_bands": node.bands, "out_channels": padded(node.channels)}

        def receive(index: int) -> tuple[_Buffer, int]:
            """Returns where the gradient of a node's output goes, and whether to add to it."""
            known = gradients[index]
            if known is None:
                gradients[index] = known = _Buffer(self._size(nodes[index]))
                return known, 0
            return known, 1

        def collide(one: int, other: int, done: int) -> bool:
            """Returns whether what happens to one's gradient would spoil that of the other."""
            adding = [i for i in range(other, done) if one in nodes[i].inputs]
            later = nodes[max(one, other)]
            in_place = later.kind == "apply" and len(later.inputs) == 1
            return bool(adding) or in_place

        def give(index: int, gradient: _Buffer, reader: int) -> None:
            """Passes a gradient on as it is; ``reader`` is the node that does so."""
            if gradients[index] is not None:
                add(_ADD, {"in": gradient, "out": gradients[index]}, accumulate=1,
                    **shape(nodes[index]))  # fmt: skip
                return
            sharing = [i for i in range(reader) if gradients[i] is gradient] + [index]
            pairs = [(one, other) for one in sharing for other in sharing if one != other]
            if any(collide(one, other, reader) for one, other in pairs):
                own = _Buffer(self._size(nodes[index]))
                add(_ADD, {"in": gradient, "out": own}, **shape(nodes[index]))
                gradient = own
            gradients[index] = gradient

        for index in reversed(range(1, len(nodes))):
            node, gradient = nodes[index], gradients[index]
            assert gradient is not None, "a node that nobody reads"
            source = nodes[node.inputs[0]]
            if node.kind == "add":
                for other in node.inputs:
                    give(other, gradient, index)
            elif node.kind == "apply":
                if len(node.inputs) > 1:
                    give(node.inputs[1], gradient, index)
                curved = node.activation != "linear"
                out = gradient
                if curved and len(node.inputs) > 1:
                    out = _Buffer(self._size(node))
                wide = padded(node.channels)
                sums = self._sums(node.name, "sums", wide) if node.normalized else None
                inputs = {"extra": values[node.inputs[0]], **self._scale_and_shift(node)}
                if index in waiting:
                    inputs["value"] = again = _Buffer(self._size(node))
                if curved or sums is not None:
                    add(_ACT_GRADIENT, {"in": gradient, "out": out, "sums": sums, **inputs},
                        activation=_ACTIVATIONS[node.activation], **shape(node))  # fmt: skip
                if index in waiting:
                    waiting.pop(index)(again)
                if not node.normalized:
                    assert gradients[node.inputs[0]] is None, "activations are read alone"
                    gradients[node.inputs[0]] = out
                    continue
                self._program.barrier()
                below, accumulate = receive(node.inputs[0])
                assert not accumulate
                numbers = {
                    name: _constant(self._array(node.name, f"turn_{name}", wide))
                    for name in ("scale", "shift", "level")
                }
                add(_MOMENT_GRADIENTS,
                    {"in": _constant(self._array(node.name, "gamma", wide)), "sums": sums,
                     "value": _constant(self._memory[node.name, "statistics"]),
                     "out": _constant(self._array(node.name, "gradients", 2, wide)), **numbers},
                    epsilon=node.epsilon, **shape(node))  # fmt: skip
                add(_NORM_GRADIENT,
                    {"in": out, "extra": values[node.inputs[0]], "out": below, **numbers},
                    **shape(node))  # fmt: skip
            elif node.kind == "conv":
                write_weights = self._write_conv_gradients(node, gradient, receive)
                readers = [other for other in nodes if node.inputs[0] in other.inputs]
                if source.kind == "apply" and len(source.inputs) == 1 == len(readers):
                    # Not kept since the forward pass: its own gradient computes it anyway.
                    waiting[node.inputs[0]] = write_weights
                else:
                    write_weights(values[node.inputs[0]])
            else:
                columns = padded(node.bands)
                weights = self._array(node.name, "gradient", self.pieces, source.bands, columns)
                bias = None
                if node.use_bias:
                    bias = _constant(
                        self._array(node.name, "bias_gradient", self.pieces, columns), 1
                    )
                sizes = {
                    "in_bands": source.bands, "in_channels": padded(node.channels), **shape(node),
                }  # fmt: skip
                add(
                    _BANDS_WEIGHTS,
                    {
                        "in": values[node.inputs[0]],
                        "extra": gradient,
                        "out": _constant(weights, 1),
                        "level": _Buffer(
                            _TURNED_FRAMES * padded(node.channels) * columns, has_frames=False
                        ),
                        "sums": bias,
                    },
                    **sizes,
                )
                below, accumulate = receive(node.inputs[0])
                turned = self._array(node.name, "backward", node.bands, source.bands)
                add(
                    _BANDS,
                    {"in": gradient, "out": below, "weights": _constant(turned)},
                    accumulate=accumulate, in_bands=node.bands, in_channels=sizes["in_channels"],
                    out_bands=source.bands, out_channels=sizes["in_channels"],
                )  # fmt: skip

    def _write_conv_gradients(
        self, node: Node, gradient: _Buffer, receive: Any
    ) -> Callable[[_Buffer], None]:
        """Writes all but the gradient of the weights; returns what writes that, given the input."""
        add = self._program.add
        source, wide = self.nodes[node.inputs[0]], padded(node.channels)
        ins = _in_stride(self.nodes, node)
        first, step = (1 - node.taps) * node.dilation, node.dilation
        if node.use_bias:
            add(_ACT_GRADIENT,
                {"in": gradient, "out": gradient,
                 "sums": self._sums(node.name, "bias_gradient", wide)},
                out_bands=node.bands, out_channels=wide)  # fmt: skip
        if source.kind != "input":
            turned = self._array(node.name, "backward", node.taps, node.width, wide, ins)
            below, accumulate = receive(node.inputs[0])
            add(
                _CONV,
                {"in": gradient, "out": below, "weights": _constant(turned)},
                accumulate=accumulate, taps=node.taps, first=-first, step=-step, width=node.width,
                stride=1, pad=node.width - 1 - node.pad, in_bands=node.bands, in_channels=wide,
                out_bands=source.bands, out_channels=ins,
            )  # fmt: skip
        weights = self._array(node.name, "gradient", self.pieces, node.taps, node.width, ins, wide)

        def write_weights(inputs: _Buffer) -> None:
            add(
                _CONV_WEIGHTS,
                {"in": inputs, "extra": gradient, "out": _constant(weights, 1)},
                taps=node.taps, first=first, step=step, width=node.width, stride=node.stride,
                pad=node.pad, in_bands=source.bands, in_channels=ins, out_bands=node.bands,
                out_channels=wide,
            )  # fmt: skip

        return write_weights

    # ---- running

    def forward(self, inputs: np.ndarray, weights: Weights) -> np.ndarray:
        """Runs a batch.

        Args:
            inputs: float32 [pieces, frames, bands, channels]; of a tape without gradients, pieces
                and frames may be fewer than the tape has room for.
            weights: Of each layer; read when it is called, so they may change in between.

        Returns:
            float32 [pieces, frames, bands, channels], new memory.

        Raises:
            ValueError: The shape of the inputs is another.
        """
        first, source = self._values[0].array, self.nodes[0]
        assert first is not None
        pieces, frames, *rest = np.shape(inputs)
        fits = pieces <= self.pieces and frames <= self.frames
        if self.gradients:
            fits = (pieces, frames) == (self.pieces, self.frames)
        if not fits or rest != [source.bands, source.channels]:
            raise ValueError(
                f"inputs have the shape {np.shape(inputs)}, expected "
                f"{(self.pieces, self.frames, source.bands, source.channels)}"
            )
        flat = np.asarray(inputs, np.float32).reshape(pieces, -1)
        first[:pieces, : flat.shape[1]] = flat
        self._fill(weights)
        self._run(0, self._forward_phases, pieces, frames)
        return self._output(pieces, frames)

    def backward(self, gradient: np.ndarray, weights: Weights) -> dict[str, dict[str, np.ndarray]]:
        """Returns the gradients of all trained weights, summed over the batch.

        Args:
            gradient: float32, of the shape of the output of the latest `forward`.
            weights: The same as there.
        """
        self._take_upstream(gradient)
        self._run(self._forward_phases, len(self._phases), self.pieces, self.frames)
        result: dict[str, dict[str, np.ndarray]] = {}
        for node in self.nodes:
            if node.kind in ("conv", "bands"):
                result[node.name] = self._weight_gradients(node, weights)
            elif node.normalized:
                gamma, beta = self._memory[node.name, "gradients"][:, : node.channels].copy()
                result[node.name] = {"gamma": gamma, "beta": beta}
        return result

    def _run(self, first: int, stop: int, pieces: int, frames: int) -> None:
        blockconv.kernels().run_phases(
            ctypes.byref(self._phases, first * ctypes.sizeof(_Phase)), stop - first,
            ctypes.c_int64(pieces), frames, first >= self._forward_phases,
            min(self.threads, pieces),
        )  # fmt: skip

    def _output(self, pieces: int, frames: int) -> np.ndarray:
        node, memory = self.nodes[-1], self._values[-1].array
        assert memory is not None
        own = memory[:pieces].reshape(pieces, self.frames, node.bands, -1)[:, :frames]
        out = own[..., : node.channels]
        if not node.split:
            return out.copy()
        half = node.split // 2
        parts = out.reshape(pieces, frames, node.bands, node.split, -1)
        result = np.empty((*parts.shape[:2], (node.bands - 1) * node.split, parts.shape[4]), "f4")
        result[:, :, :half] = parts[:, :, 0, half:]
        result[:, :, -half:] = parts[:, :, -1, :half]
        inner = result[:, :, half:-half].reshape(*parts.shape[:2], node.bands - 2, *parts.shape[3:])
        inner[:] = parts[:, :, 1:-1]
        return result

    def _take_upstream(self, gradient: np.ndarray) -> None:
        node, memory = self.nodes[-1], self._upstream.array
        assert memory is not None
        rows = memory.reshape(self.pieces, self.frames, node.bands, -1)[..., : node.channels]
        if not node.split:
            rows[:] = gradient
            return
        half = node.split // 2
        parts = rows.reshape(*rows.shape[:3], node.split, -1)
        parts[:, :, 0, :half] = 0
        parts[:, :, 0, half:] = gradient[:, :, :half]
        parts[:, :, 1:-1] = gradient[:, :, half:-half].reshape(
            *rows.shape[:2], node.bands - 2, *parts.shape[3:]
        )
        parts[:, :, -1, :half] = gradient[:, :, -half:]
        parts[:, :, -1, half:] = 0

    def _fill(self, weights: Weights) -> None:
        """Copies the weights into the layout of the kernels."""
        for node in self.nodes:
            if node.kind == "conv":
                own = weights[node.name]
                kernel = to_running(self.nodes, node, own["kernel"])
                ins, outs = kernel.shape[2:]
                self._memory[node.name, "forward"][:, :, :ins, :outs] = kernel
                if (node.name, "backward") in self._memory:
                    turned = self._memory[node.name, "backward"]
                    turned[:, :, :outs, :ins] = kernel[:, ::-1].transpose(0, 1, 3, 2)
                if node.use_bias:
                    self._memory[node.name, "bias"][:outs] = np.tile(own["bias"], node.split or 1)
            elif node.kind == "bands":
                own = weights[node.name]
                self._memory[node.name, "forward"][:] = own["kernel"]
                if (node.name, "backward") in self._memory:
                    self._memory[node.name, "backward"][:] = own["kernel"].T
                if node.use_bias:
                    self._memory[node.name, "bias"][:] = own["bias"]
            elif node.normalized and self.gradients:
                for name in ("gamma", "beta"):
                    self._memory[node.name, name][: node.channels] = weights[node.name][name]
            elif node.normalized:
                own = weights[node.name]
                scale = own["gamma"] / np.sqrt(
                    own["moving_variance"].astype(np.float64) + node.epsilon
                )
                self._memory[node.name, "scale"][: node.channels] = scale
                shift = own["beta"] - scale * own["moving_mean"]
                self._memory[node.name, "shift"][: node.channels] = shift

    def _weight_gradients(self, node: Node, weights: Weights) -> dict[str, np.ndarray]:
        total = self._memory[node.name, "gradient"].sum(0)
        result = {}
        if node.kind == "bands":
            result["kernel"] = total[:, : node.bands]
            if node.use_bias:
                result["bias"] = self._memory[node.name, "bias_gradient"].sum(0)[: node.bands]
            return result
        ins = self.nodes[node.inputs[0]].channels
        running = total[:, :, :ins, : node.channels]
        result["kernel"] = _to_keras(node, running, weights[node.name]["kernel"].shape)
        if node.use_bias:
            bias = self._memory[node.name, "bias_gradient"].sum(0)[0, : node.channels]
            result["bias"] = bias.reshape(node.split or 1, -1).sum(0).astype(np.float32)
        return result
