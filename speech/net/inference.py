"""Runs a stack of convolutions on whole signals as fast as a CPU allows.

``speech.net.chain`` has the channels as SIMD lanes, which training needs. Here the blocks of the
signal are the lanes (``kernels/blocklanes.c``): the transforms of one-channel layers cost what one
channel costs, no channel is padded to whole vectors, and every (in, out) kernel is multiplied by
itself, so kernels that pruning has set to zero are skipped. Nothing is compiled per length.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech.net import blockconv
from speech.net.chain import ConvBlock, split_parameters
from speech.net.memory import lane_bytes


class _LaneSpectra(ctypes.Structure):
    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("pairs", ctypes.c_int),
    ]


class _LaneLayer(ctypes.Structure):
    _fields_ = [
        ("spectra", _LaneSpectra),
        ("in_channels", ctypes.c_int),
        ("out_channels", ctypes.c_int),
        ("pad", ctypes.c_int),
        ("bias", ctypes.c_void_p),
        ("gamma", ctypes.c_void_p),
        ("beta", ctypes.c_void_p),
        ("epsilon", ctypes.c_double),
        ("slope", ctypes.c_float),
        ("masks", ctypes.c_void_p),
        ("valid", ctypes.c_void_p),
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

    def fill(self, record: _LaneLayer) -> None:
        """Writes what does not depend on the signal into ``record``."""
        record.spectra = _LaneSpectra(
            self.weights.ctypes.data, self.index.ctypes.data, self.first.ctypes.data,
            len(self.index),
        )  # fmt: skip
        for name in ("bias", "gamma", "beta"):
            array = getattr(self, name)
            setattr(record, name, None if array is None else array.ctypes.data)
        record.pad = self.pad
        record.in_channels, record.out_channels = self.in_channels, self.out_channels
        record.epsilon, record.slope = self.block.epsilon, self.block.slope

    @classmethod
    def of(cls, block: ConvBlock, group: Sequence[np.ndarray], size: int) -> _Layer:
        """Transforms the kernels of one layer, except those that are zero."""
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
            np.ascontiguousarray(group[-2], np.float64) if block.normalized else None,
            np.ascontiguousarray(group[-1], np.float64) if block.normalized else None,
        )


def spectra_bytes(parameters: Sequence[np.ndarray]) -> int:
    """Returns the bytes that the kernels of a chain take once they are transformed.

    Args:
        parameters: As for `InferenceNetwork`.
    """
    kernels = [array for array in parameters if array.ndim == 3]
    size = blockconv.block_size(max((len(kernel) for kernel in kernels), default=1))
    return 8 * (size // 2 + 1) * sum(math.prod(kernel.shape[1:]) for kernel in kernels)


class InferenceNetwork:
    """A chain of layers with its parameters, transformed once.

    Args:
        blocks: The layers, as for :class:`speech.net.chain.Network`.
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
        self.threads = blockconv.num_threads(threads)
        self.width = blockconv.kernels().lane_width()
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
        threads = self.threads if threads is None else blockconv.num_threads(threads)
        signal = np.asarray(signal, np.float32)
        signal = signal[:, None] if signal.ndim == 1 else signal
        if signal.ndim != 2 or signal.shape[1] != self._layers[0].in_channels:
            raise ValueError(
                f"signal must be [time, {self._layers[0].in_channels}], received {signal.shape}"
            )
        num_samples = len(signal)
        if not num_samples:
            return np.zeros((0, self._layers[-1].out_channels), np.float32)
        frame = _frame(num_samples, self.size, self.hop, self.width)
        channels = [self._layers[0].in_channels, *(layer.out_channels for layer in self._layers)]
        values = self._buffer("values", frame.num_chunks, max(channels), self.hop, 2, self.width)
        frame.split(signal, values)
        edges = [
            self._buffer(f"edges{lot}", frame.num_chunks, max(channels), self.hop, 2)
            for lot in range(2)
        ]
        # Of the first lot, the input's lie as densely as the first layer's channels.
        inputs = edges[0].reshape(-1)[: frame.num_chunks * channels[0] * self.hop * 2]
        inputs = inputs.reshape(frame.num_chunks, channels[0], self.hop, 2)
        inputs[..., 0] = values[:, : channels[0], :, 0, 0]
        inputs[..., 1] = values[:, : channels[0], :, 1, -1]
        self._run_layers(frame, values, edges, threads)
        output = frame.join(values[:, : channels[-1]])
        return np.tanh(output, out=output) if self.tanh else output

    def num_bytes(self, num_samples: int, threads: int | None = None) -> int:
        """Returns the bytes of working memory for a signal, known before it runs."""
        threads = self.threads if threads is None else blockconv.num_threads(threads)
        most = max(self._layers[0].in_channels, *(layer.out_channels for layer in self._layers))
        return lane_bytes(num_samples, most, self.hop, self.width, threads)

    def _run_layers(
        self, frame: _Frame, values: np.ndarray, edges: Sequence[np.ndarray], threads: int
    ) -> None:
        """Runs all layers in place; the memory they point to is held here until they are done."""
        most = values.shape[1]
        sums = self._buffer("sums", len(self._layers), frame.num_chunks, most, 2)
        layers = (_LaneLayer * len(self._layers))()
        for layer, record, own_sums in zip(self._layers, layers, sums, strict=True):
            layer.fill(record)
            record.masks, record.valid = map(ctypes.addressof, frame.masks(layer.pad))
            record.sums = own_sums.ctypes.data
        plan = blockconv.plan(self.size)
        failed = blockconv.kernels().run_lanes(
            ctypes.byref(plan), ctypes.c_void_p(values.ctypes.data), most,
            (ctypes.c_void_p * 2)(*(lot.ctypes.data for lot in edges)), layers, len(layers),
            self.hop, ctypes.c_int64(frame.num_chunks),
            ctypes.c_void_p(frame.counts.ctypes.data), threads,
        )  # fmt: skip
        if failed:
            raise MemoryError("the convolution could not get its working memory")

    def _buffer(self, name: str, *shape: int) -> np.ndarray:
        """Returns memory of this thread that is kept: fresh pages cost as much as a layer."""
        kept = self._memory.__dict__
        num_floats = math.prod(shape)
        if name not in kept or kept[name].size < num_floats:
            kept[name] = _aligned(num_floats)
        return kept[name][:num_floats].reshape(shape)


class _Frame:
    """The layout of a signal of one length in blocks and lanes, and the places inside of it."""

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
        """Returns pointers, per chunk, to what is inside: of windows, and of the blocks alone.

        What they point to lives as long as the frame.
        """
        if pad not in self._kept:
            windows = self._inside(-pad, self.size)
            blocks = self._inside(0, self.hop)
            made = (*(_pointers(own) for own in (windows, blocks)), windows, blocks)
            # A thread may have been first: what it works with must not be replaced.
            self._kept.setdefault(pad, made)
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


@functools.lru_cache(maxsize=8)
def _frame(num_samples: int, size: int, hop: int, width: int) -> _Frame:
    """Returns the frame of a length, kept for the signals of the same length that follow."""
    return _Frame(num_samples, size, hop, width)


def _aligned(num_floats: int) -> np.ndarray:
    """Returns float32 [num_floats] that begins with a cache line."""
    memory = np.empty(num_floats + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + num_floats]


def _pointers(arrays: Sequence[np.ndarray | None]) -> ctypes.Array:
    values = [None if array is None else array.ctypes.data for array in arrays]
    return (ctypes.c_void_p * len(values))(*values)
