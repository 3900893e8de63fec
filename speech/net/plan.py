"""Writes a causal network down as the table of layers that runs it frame by frame.

The table is that of ``kernels/denoise.h``: tensors of one frame each, kept for as many frames as a
convolution over time looks back to, and layers that each do what a convolution or Dense layer, its
activation and a residual do in Keras. Tensors that are not needed at the same time share memory.
``speech.net.streaming`` runs the table, ``speech.net.plain_c`` writes it as C. NumPy only.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from speech.modelfile.meta import COMPLEX_MASK, MaskConventions
from speech.modelfile.spec import LayerSpec, ModelFile, ModelFileError, refusals
from speech.net import tape
from speech.net.folding import fold_batch_normalization
from speech.net.memory import MAX_BYTES
from speech.net.reach import causal_reach

CONVOLUTION, OVER_BANDS, POINTWISE = range(3)
ACTIVATIONS = ("linear", "silu")

#: DENOISE_MOST_RINGS in denoise.h.
MOST_RINGS = 64
#: What the fields of the table hold.
_MOST = 32767
#: Frames of samples that the runtime works with, besides the tensors (NUM_ARRAYS in denoise.c).
NUM_ARRAYS = 7


@dataclass(frozen=True)
class Tensor:
    """The output of a layer: float [frames, before + bands + after, wide].

    Attributes:
        bands: Bands.
        channels: Number of channels, without padding.
        wide: Channels padded with zeros to a multiple of 8; the features are not padded.
        before: Bands of zeros in front, which a convolution over bands reads.
        after: Bands of zeros behind the last one, likewise.
        frames: 1, or the current frame plus the earlier frames that are read.
        place: Floats from the start of the tensors' memory.
    """

    bands: int
    channels: int
    wide: int
    before: int = 0
    after: int = 0
    frames: int = 1
    place: int = 0

    @property
    def frame_floats(self) -> int:
        """Floats of one frame."""
        return (self.before + self.bands + self.after) * self.wide

    @property
    def num_floats(self) -> int:
        """Floats in all."""
        return self.frames * self.frame_floats


@dataclass(frozen=True)
class Layer:
    """target = activation(kernel * source + bias) + residual.

    Attributes:
        kind: `CONVOLUTION`, `OVER_BANDS` or `POINTWISE`, which has no kernel.
        name: Of the Keras layer that the kernel is from.
        source: Number of a tensor, likewise ``target``.
        residual: Number of a tensor, -1 for none.
        activation: One of `ACTIVATIONS`.
        kernel: float32 [taps, width, in, out], or [in, out] over bands; None for none.
        bias: float32 [out] or None.
        dilation: Frames from one tap to the next.
        first: Band where the first window begins, counted with the zeros in front.
        stride: Bands from one window to the next.
    """

    kind: int
    name: str
    source: int
    target: int
    residual: int = -1
    activation: str = "linear"
    kernel: np.ndarray | None = None
    bias: np.ndarray | None = None
    dilation: int = 1
    first: int = 0
    stride: int = 1

    @property
    def taps(self) -> int:
        """Frames that a convolution reads."""
        return len(self.kernel) if self.kernel is not None and self.kernel.ndim == 4 else 1

    @property
    def width(self) -> int:
        """Bands that a convolution reads."""
        return self.kernel.shape[1] if self.kernel is not None and self.kernel.ndim == 4 else 1


@dataclass(frozen=True)
class Plan:
    """A network as a table.

    Attributes:
        conventions: STFT, rate and compression.
        tensors: By number.
        layers: In the order of computation.
        features: Number of the tensor that the network takes.
        masks: Number of the tensor that it gives.
        split: Bins in a band of the masks.
        tensor_floats: Memory of all tensors.
    """

    conventions: MaskConventions
    tensors: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    features: int
    masks: int
    split: int
    tensor_floats: int

    @functools.cached_property
    def widened(self) -> tuple[tuple[np.ndarray | None, np.ndarray | None], ...]:
        """Kernel and bias of each layer, with zeros up to whole groups of channels; None for none.

        All engines that run the plan read these arrays.
        """
        return tuple(self._widened(layer) for layer in self.layers)

    def _widened(self, layer: Layer) -> tuple[np.ndarray | None, np.ndarray | None]:
        kernel, bias = layer.kernel, layer.bias
        if kernel is not None and layer.kind == CONVOLUTION:
            ins = self.tensors[layer.source].wide - kernel.shape[2]
            outs = self.tensors[layer.target].wide - kernel.shape[3]
            kernel = np.pad(kernel, ((0, 0), (0, 0), (0, ins), (0, outs)))
            bias = None if bias is None else np.pad(bias, (0, outs))
        return _floats(kernel), _floats(bias)

    @property
    def state_bytes(self) -> int:
        """Bytes that one frame leaves for the next ones: rings of frames, samples."""
        rings = sum(tensor.num_floats for tensor in self.tensors if tensor.frames > 1)
        return 4 * (rings + 2 * self.conventions.stft.frame)

    @property
    def mac_per_frame(self) -> int:
        """Multiplications, each with an addition, of all kernels for one frame, edges in full."""
        total = 0
        for layer in self.layers:
            if layer.kernel is not None:
                target = self.tensors[layer.target]
                # A transposed convolution is computed for one band more than it reads.
                bands = target.bands - (self.split > 1 and layer.target == self.masks)
                over_bands = layer.kind == OVER_BANDS
                total += layer.kernel.size * (target.channels if over_bands else bands)
        return total


def plan_of(file: ModelFile) -> Plan:
    """Writes the network of a model file down.

    Raises:
        ModelFileError: It is of another kind, is not causal, takes too much memory, or has a layer
            that has no place in the table; the message says which.
    """
    with refusals(file.path):
        if file.kind != COMPLEX_MASK:
            raise ModelFileError(
                f"is of the kind {file.kind!r}, expected {COMPLEX_MASK!r}: only a causal network "
                "over time and frequency can stream, such as models/denoise.icse"
            )
        conventions = MaskConventions.of(file.meta)
        causal_reach(file.layers)
        frame = conventions.stft.frame
        if frame & (frame - 1) or frame > 1 << 14:
            raise ModelFileError(
                f"the STFT has frames of {frame:,} samples, expected a power of two up to 16,384"
            )
        layers = fold_batch_normalization(file.layers)
        nodes = tape.nodes_of(
            [(layer.class_name, layer.name, layer.config, layer.inputs) for layer in layers]
        )
        return _Writer(nodes, layers, conventions).plan()


class _Writer:
    def __init__(
        self,
        nodes: Sequence[tape.Node],
        layers: Sequence[LayerSpec],
        conventions: MaskConventions,
    ) -> None:
        self._nodes, self._conventions = nodes, conventions
        self._weights: Mapping[str, Mapping[str, np.ndarray]] = {
            layer.name: layer.weights for layer in layers
        }
        self._readers = [sum(node.inputs.count(i) for node in nodes) for i in range(len(nodes))]
        self._layers: list[Layer] = []
        self._places: dict[int, int] = {}  # node -> the tensor that holds it
        self._tensors: list[Tensor] = []

    def plan(self) -> Plan:
        for index, node in enumerate(self._nodes):
            self._add(index, node)
        masks = self._places[len(self._nodes) - 1]
        self._make_room()
        total = self._share_memory(masks)
        for tensor in self._tensors:
            largest = max(tensor.bands, tensor.wide, tensor.before, tensor.after, tensor.frames)
            if largest > _MOST:
                raise ModelFileError(
                    f"a tensor has {largest:,} bands, channels or frames, expected {_MOST:,} at "
                    "most in a stream"
                )
        if sum(tensor.frames > 1 for tensor in self._tensors) > MOST_RINGS:
            raise ModelFileError(
                f"more than {MOST_RINGS} layers are read by convolutions over time, expected "
                "fewer in a stream"
            )
        if 4 * total > MAX_BYTES:
            raise ModelFileError(
                f"the frames that are kept take {4 * total:,} bytes of memory, expected at most "
                f"{MAX_BYTES:,} in a stream"
            )
        split = self._nodes[-1].split or 1
        return Plan(
            self._conventions, tuple(self._tensors), tuple(self._layers), 0, masks, split, total
        )

    # ---- layers

    def _add(self, index: int, node: tape.Node) -> None:
        sources = [self._places[source] for source in node.inputs]
        if node.kind == "input":
            self._new_tensor(index, node, wide=node.channels)
        elif node.kind == "conv":
            kernel = tape.to_running(self._nodes, node, self._weights[node.name]["kernel"])
            bias = self._bias(node)
            if node.split and bias is not None:
                bias = np.tile(bias, node.split)
            target = self._new_tensor(index, node)
            self._layers.append(
                Layer(CONVOLUTION, node.name, sources[0], target, kernel=kernel, bias=bias,
                      dilation=node.dilation, first=-node.pad, stride=node.stride)
            )  # fmt: skip
        elif node.kind == "bands":
            kernel = self._weights[node.name]["kernel"]
            target = self._new_tensor(index, node)
            self._layers.append(
                Layer(OVER_BANDS, node.name, sources[0], target, kernel=kernel,
                      bias=self._bias(node))
            )  # fmt: skip
        elif node.normalized:
            raise ModelFileError(
                f"layer {node.name!r} (BatchNormalization) does not fold into the layer before "
                "it, which a stream needs"
            )
        else:
            activation = node.activation
            main, other = (*sources, -1)[:2]
            self._apply(index, node, main, other, activation)

    def _bias(self, node: tape.Node) -> np.ndarray | None:
        return self._weights[node.name]["bias"] if node.use_bias else None

    def _new_tensor(self, index: int, node: tape.Node, wide: int | None = None) -> int:
        wide = tape.padded(node.channels) if wide is None else wide
        self._tensors.append(Tensor(node.bands, node.channels, wide))
        self._places[index] = len(self._tensors) - 1
        return self._places[index]

    def _apply(self, index: int, node: tape.Node, main: int, other: int, activation: str) -> None:
        """Adds an activation and a sum: to the layer that gives an operand, or as one more."""
        options = [(main, other, node.inputs[0])]
        if node.kind == "add":
            options.append((other, main, node.inputs[1]))
        last = len(self._layers) - 1
        for source, residual, source_node in options:
            if last < 0 or self._readers[source_node] != 1:
                continue
            layer = self._layers[last]
            free = layer.residual < 0 and (activation == "linear" or layer.activation == "linear")
            if layer.target == source and free:
                merged = activation if layer.activation == "linear" else layer.activation
                self._layers[last] = replace(layer, activation=merged, residual=residual)
                self._places[index] = source
                return
        target = self._new_tensor(index, node)
        self._layers.append(
            Layer(POINTWISE, "", main, target, residual=other, activation=activation)
        )

    # ---- memory

    def _make_room(self) -> None:
        """Gives tensors the zeros around, and the frames, that their readers read."""
        tensors = self._tensors
        for layer in self._layers:
            source, target = tensors[layer.source], tensors[layer.target]
            if layer.kind != CONVOLUTION:
                continue
            pad = -layer.first
            behind = (target.bands - 1) * layer.stride + layer.width - pad - source.bands
            tensors[layer.source] = replace(
                source,
                before=max(source.before, pad),
                after=max(source.after, behind),
                frames=max(source.frames, (layer.taps - 1) * layer.dilation + 1),
            )
        self._layers = [
            replace(layer, first=tensors[layer.source].before + layer.first)
            if layer.kind == CONVOLUTION
            else layer
            for layer in self._layers
        ]

    def _share_memory(self, masks: int) -> int:
        """Gives each tensor its place; returns the floats in all."""
        last: dict[int, int] = {masks: len(self._layers)}
        first: dict[int, int] = {0: -1}
        for number, layer in enumerate(self._layers):
            first[layer.target] = number
            for read in (layer.source, layer.residual):
                last[read] = max(last.get(read, -1), number)
        # Rings first, then the largest: what is small fits in between.
        order = sorted(
            range(len(self._tensors)),
            key=lambda i: (self._tensors[i].frames == 1, -self._tensors[i].num_floats),
        )
        placed: list[tuple[int, int, int, int]] = []  # place, end, first, last layer
        total = 0
        for number in order:
            tensor = self._tensors[number]
            size = -(-tensor.num_floats // 16) * 16
            begin, end = first[number], last.get(number, first[number])
            if tensor.frames > 1:
                begin, end = -1, len(self._layers)
            place = 0
            for start, stop, since, until in sorted(placed):
                if since <= end and begin <= until and start < place + size and place < stop:
                    place = stop
            placed.append((place, place + size, begin, end))
            total = max(total, place + size)
            self._tensors[number] = replace(tensor, place=place)
        return total


def _floats(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else np.ascontiguousarray(array, np.float32)


def array_floats(conventions: MaskConventions) -> int:
    """Returns the floats of the runtime's own arrays, in front of the tensors."""
    return NUM_ARRAYS * (conventions.stft.frame + tape.LANES)
