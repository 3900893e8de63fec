"""Runs a stack of convolutions on whole signals as fast as a CPU allows.

``speech.network`` has the channels as SIMD lanes, which training needs. Here the blocks of the
signal are the lanes (``kernels/blocklanes.c``): the transforms of one-channel layers cost what one
channel costs, no channel is padded to whole vectors, and every (in, out) kernel is multiplied by
itself, so kernels that pruning has set to zero are skipped. Nothing is compiled per length.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech import blockconv
from speech.network import ConvBlock, split_parameters

#: scale and shift, float32 [channels], and slope: leaky(scale x + shift)
_Activation = tuple[np.ndarray, np.ndarray, float]


class _LaneSource(ctypes.Structure):
    _fields_ = [
        ("edges", ctypes.c_void_p),
        ("channels", ctypes.c_int),
        ("slope", ctypes.c_float),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
    ]


class _LaneSpectra(ctypes.Structure):
    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("pairs", ctypes.c_int),
    ]


class _LaneSink(ctypes.Structure):
    _fields_ = [
        ("edges", ctypes.c_void_p),
        ("channels", ctypes.c_int),
        ("bias", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class _Layer:
    """A layer ready to run.

    Attributes:
        block: What it is.
        pad: Zeros that 'same' padding puts before the first sample.
        weights: float32 [size/2 + 1, pairs, 2].
        index: int32 [pairs], input channels.
        first: int32 [out + 1], where an output channel's pairs begin.
        in_channels: Number of input channels.
        bias: float32 [out]; None for none, or if a normalisation follows.
        gamma: float64 [out] or None; likewise beta.
    """

    block: ConvBlock
    pad: int
    weights: np.ndarray
    index: np.ndarray
    first: np.ndarray
    in_channels: int
    bias: np.ndarray | None
    gamma: np.ndarray | None
    beta: np.ndarray | None

    @property
    def out_channels(self) -> int:
        """Number of filters."""
        return len(self.first) - 1

    @classmethod
    def of(cls, block: ConvBlock, group: Sequence[np.ndarray], size: int) -> _Layer:
        """Transforms the kernels of one layer, those that are not zero."""
        kernel = np.asarray(group[0], np.float64)
        spectra = np.conj(np.fft.rfft(kernel, size, axis=0)) / size
        out_index, in_index = np.nonzero(kernel.any(axis=0).T)
        weights = spectra[:, in_index, out_index].astype(np.complex64)
        counts = np.bincount(out_index, minlength=kernel.shape[2])
        return cls(
            block,
            (kernel.shape[0] - 1) // 2,
            np.ascontiguousarray(weights).view(np.float32),
            in_index.astype(np.int32),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            kernel.shape[1],
            # A normalisation takes the mean away, and the bias with it.
            np.ascontiguousarray(group[1], np.float32)
            if block.use_bias and not block.normalized
            else None,
            np.asarray(group[-2], np.float64) if block.normalized else None,
            np.asarray(group[-1], np.float64) if block.normalized else None,
        )


class InferenceNetwork:
    """A chain of layers with its parameters, transformed once.

    Args:
        blocks: The layers, as for :class:`speech.network.Network`.
        parameters: Arrays in Keras' order, layer by layer: kernel [taps, in, out], bias [out],
            gamma [out], beta [out].
        tanh: Whether tanh ends the chain.
        threads: Default: all cores.
    """

    def __init__(
        self,
        blocks: Sequence[ConvBlock],
        parameters: Sequence[np.ndarray],
        *,
        tanh: bool = True,
        threads: int | None = None,
    ) -> None:
        groups = split_parameters(blocks, parameters)
        taps = max(group[0].shape[0] for group in groups)
        self.size = blockconv.block_size(taps)
        self.hop = self.size - taps + 1
        self.tanh = tanh
        self.threads = threads or blockconv.default_threads()
        self.width = blockconv.library().lane_width()
        self._layers = [
            _Layer.of(block, group, self.size) for block, group in zip(blocks, groups, strict=True)
        ]
        self._memory = threading.local()

    def __call__(self, signal: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Runs the network. Several Python threads may do so at the same time.

        Args:
            signal: float32 [time, in] or [time] for one channel.
            threads: Default: those of the network.

        Returns:
            float32 [time, out].
        """
        signal = np.asarray(signal, np.float32)
        signal = signal[:, None] if signal.ndim == 1 else signal
        if signal.ndim != 2 or signal.shape[1] != self._layers[0].in_channels:
            raise ValueError(
                f"signal must be [time, {self._layers[0].in_channels}], received {signal.shape}"
            )
        num_samples = len(signal)
        if not num_samples:
            return np.zeros((0, self._layers[-1].out_channels), np.float32)
        frame = _Frame(num_samples, self.size, self.hop, self.width)
        channels = [self._layers[0].in_channels, *(layer.out_channels for layer in self._layers)]
        values = self._buffer("values", frame.num_chunks, max(channels), self.hop, 2, self.width)
        frame.split(signal, values)
        edges = self._buffer("edges0", frame.num_chunks, channels[0], self.hop, 2)
        edges[..., 0] = values[:, : channels[0], :, 0, 0]
        edges[..., 1] = values[:, : channels[0], :, 1, -1]
        activation: _Activation | None = None
        for index, layer in enumerate(self._layers):
            # The two lots of edges take turns.
            new_edges = self._buffer(
                f"edges{(index + 1) % 2}", frame.num_chunks, layer.out_channels, self.hop, 2
            )
            sums = self._convolve(
                layer, frame, values, edges, new_edges, activation, threads or self.threads
            )
            activation, edges = _activation(layer, frame, sums), new_edges
        output = frame.join(values[:, : channels[-1]])
        return np.tanh(output, out=output) if self.tanh else output

    def _convolve(
        self,
        layer: _Layer,
        frame: _Frame,
        values: np.ndarray,
        edges: np.ndarray,
        new_edges: np.ndarray,
        activation: _Activation | None,
        threads: int,
    ) -> np.ndarray | None:
        """Runs one layer in place; returns its moments if it is normalised."""
        source = _LaneSource(edges=edges.ctypes.data, channels=layer.in_channels)
        if activation is not None:
            scale, shift, slope = activation
            source.scale, source.shift, source.slope = scale.ctypes.data, shift.ctypes.data, slope
        spectra = _LaneSpectra(
            layer.weights.ctypes.data, layer.index.ctypes.data, layer.first.ctypes.data,
            len(layer.index),
        )  # fmt: skip
        sums = None
        sink = _LaneSink(edges=new_edges.ctypes.data, channels=layer.out_channels)
        if layer.bias is not None:
            sink.bias = layer.bias.ctypes.data
        if layer.block.normalized:
            sums = np.empty((frame.num_chunks, layer.out_channels, 2), np.float32)
            sink.sums = sums.ctypes.data
        masks, valid = frame.masks(layer.pad)
        plan = blockconv.plan(self.size)
        failed = blockconv.library().convolve_lanes(
            ctypes.byref(plan), ctypes.c_void_p(values.ctypes.data), values.shape[1],
            ctypes.byref(source), ctypes.byref(spectra), self.hop, layer.pad, ctypes.byref(sink),
            ctypes.c_int64(frame.num_chunks), masks, valid,
            ctypes.c_void_p(frame.counts.ctypes.data), threads,
        )  # fmt: skip
        if failed:
            raise MemoryError("the convolution could not get its working memory")
        return sums

    def _buffer(self, name: str, *shape: int) -> np.ndarray:
        """Returns memory of this thread that is kept: fresh pages cost as much as a layer."""
        kept = self._memory.__dict__
        num_floats = math.prod(shape)
        if name not in kept or kept[name].size < num_floats:
            kept[name] = _aligned(num_floats)
        return kept[name][:num_floats].reshape(shape)


class _Frame:
    """How a signal of one length lies in blocks and lanes, and which places are inside of it."""

    def __init__(self, num_samples: int, size: int, hop: int, width: int) -> None:
        self.num_samples = num_samples
        self.size = size
        self.hop = hop
        self.width = width
        self.chunk_samples = 2 * width * hop
        self.num_chunks = -(-num_samples // self.chunk_samples)
        starts = np.arange(self.num_chunks, dtype=np.int64) * self.chunk_samples
        self.counts = np.clip(num_samples - starts, 0, self.chunk_samples)
        self._kept: dict[int, tuple] = {}

    def split(self, signal: np.ndarray, values: np.ndarray) -> None:
        """Lays a signal [time, in] out in the first channels of ``values``.

        values: float32 [chunks, channels, hop, 2, width].
        """
        filled = np.zeros((self.num_chunks * self.chunk_samples, signal.shape[1]), np.float32)
        filled[: len(signal)] = signal
        lanes = filled.reshape(self.num_chunks, self.width, 2, self.hop, signal.shape[1])
        values[:, : signal.shape[1]] = lanes.transpose(0, 4, 3, 2, 1)

    def join(self, values: np.ndarray) -> np.ndarray:
        """Returns the signal [time, channels] of float32 [chunks, channels, hop, 2, width]."""
        signal = values.transpose(0, 4, 3, 2, 1).reshape(-1, values.shape[1])
        return np.ascontiguousarray(signal[: self.num_samples])

    def masks(self, pad: int) -> tuple[ctypes.Array, ctypes.Array]:
        """Returns pointers, per chunk, to what is inside: of windows, and of the blocks alone."""
        if pad not in self._kept:
            windows = self._inside(-pad, self.size)
            blocks = self._inside(0, self.hop)
            self._kept[pad] = (*(_pointers(own) for own in (windows, blocks)), windows, blocks)
        return self._kept[pad][:2]

    def _inside(self, first: int, count: int) -> list[np.ndarray | None]:
        """Returns [count, 2, width] per chunk: 1 where the rows from ``first`` on are inside."""
        row = np.arange(first, first + count)[:, None, None]
        part, lane = np.arange(2)[None, :, None], np.arange(self.width)[None, None, :]
        offset = row + (2 * lane + part) * self.hop
        result: list[np.ndarray | None] = []
        for chunk in range(self.num_chunks):
            start = chunk * self.chunk_samples
            lowest = start + first
            highest = start + self.chunk_samples - self.hop + first + count
            if lowest >= 0 and highest <= self.num_samples:
                result.append(None)
                continue
            time = start + offset
            result.append(((time >= 0) & (time < self.num_samples)).astype(np.float32))
        return result


def _aligned(num_floats: int) -> np.ndarray:
    """Returns float32 [num_floats] that begins with a cache line."""
    memory = np.empty(num_floats + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + num_floats]


def _pointers(arrays: Sequence[np.ndarray | None]) -> ctypes.Array:
    values = [None if array is None else array.ctypes.data for array in arrays]
    return (ctypes.c_void_p * len(values))(*values)


def _activation(layer: _Layer, frame: _Frame, sums: np.ndarray | None) -> _Activation | None:
    """Returns a layer's normalisation and LeakyReLU: scale and shift float32 [out], slope."""
    block = layer.block
    if sums is None:
        if block.slope == 1.0:
            return None
        ones = np.ones(layer.out_channels, np.float32)
        return ones, np.zeros_like(ones), block.slope
    mean, variance = blockconv.pooled_moments(sums[:, :, 0], sums[:, :, 1], frame.counts[:, None])
    scale = layer.gamma / np.sqrt(variance + block.epsilon)
    shift = layer.beta - scale * mean
    return scale.astype(np.float32), shift.astype(np.float32), block.slope
