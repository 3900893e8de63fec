"""Enhances a signal as it comes, one hop (16 ms) at a time, in constant memory.

::

    from speech.net.streaming import Stream

    stream = Stream("models/denoise.icse")
    clean = [stream.push(block) for block in blocks] + [stream.flush()]

Blocks may have any size. What comes out, one after the other, is what ``speech.enhance`` makes of
the whole up to rounding, sample by sample: ``push`` returns what is finished, and a sample is
finished once ``latency_samples`` have come from it on, itself included. The state is one frame of
samples, one of output, and for each convolution over time the frames that it looks back to.

``kernels/denoise.c`` computes, the very file that ``speech.export --to c`` writes; where there is
no compiler, NumPy does. A NaN, an infinity or a level without measure (above 1e15) in a hop makes
silence of that hop, which is counted; what follows is not touched. No TensorFlow is loaded.
"""

from __future__ import annotations

import ctypes
import os

import numpy as np

from speech.modelfile.read import read_model_file
from speech.modelfile.spec import ModelFile
from speech.net import blockconv
from speech.net import plan as plans
from speech.net.plan import Layer, Plan, plan_of
from speech.net.timefrequency import compress, expand, features
from speech.sound.stft import analysis_window

#: Louder samples count as silence: squares of their spectra may not fit in float32.
MAX_SAMPLE = 1e15


class Stream:
    """A network of the kind 'complex_mask' and the signal on its way through it.

    Args:
        model: A model file, its path, or the plan that another stream of it holds.
        engine: 'fast' for C where it can be compiled, 'numpy' for NumPy always.

    Attributes:
        plan: The network as a table of layers; streams of one model may share it.
        engine: 'c' or 'numpy': what runs it.
        sample_rate_hz: Of the signal.
        hop_samples: What is computed at a time.
        latency_samples: A sample leaves at most so many samples after it came, itself included.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: The file is refused, or its network cannot stream; the message says why.
    """

    def __init__(
        self, model: str | os.PathLike | ModelFile | Plan, *, engine: str = "fast"
    ) -> None:
        if engine not in ("fast", "numpy"):
            raise ValueError(f"engine must be 'fast' or 'numpy', received {engine!r}")
        if not isinstance(model, Plan):
            model = plan_of(model if isinstance(model, ModelFile) else read_model_file(model))
        self.plan = model
        is_fast = engine == "fast" and blockconv.is_available()
        self.engine = "c" if is_fast else "numpy"
        self._engine: CEngine | _NumpyEngine
        self._engine = CEngine(CTable(model)) if is_fast else _NumpyEngine(model)
        stft = model.conventions.stft
        self.sample_rate_hz = model.conventions.sample_rate_hz
        self.hop_samples, self.latency_samples = stft.hop, stft.frame
        self._begin()

    @property
    def num_silenced(self) -> int:
        """Hops that were taken for silence since the last reset."""
        return self._engine.num_silenced

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Takes the next samples and returns those that are finished.

        Args:
            samples: float [any number], full scale at 1.

        Returns:
            float32 [any number], those that follow the ones returned before.

        Raises:
            ValueError: The samples are of another shape or kind.
        """
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise ValueError(
                f"samples are {samples.dtype} of the shape {samples.shape}, expected float "
                "[num_samples], one channel with full scale at 1"
            )
        with np.errstate(over="ignore"):  # an infinity counts as silence
            samples = samples.astype(np.float32, copy=False)
        self._num_samples += len(samples)
        return self._advance(samples)

    def flush(self) -> np.ndarray:
        """Ends the signal, returns the rest and resets: as many samples came out as went in.

        Returns:
            float32 [what is left].
        """
        left = self._num_samples - self._num_given
        frame, hop = self.latency_samples, self.hop_samples
        # The last hop is filled up with zeros; a frame has ended for all others then.
        rest = self._advance(np.zeros(-len(self._waiting) % hop + frame - hop, np.float32))[:left]
        silenced = self.num_silenced
        self.reset()
        self._engine.num_silenced = silenced
        return rest

    def reset(self) -> None:
        """Forgets all that came before, the count of hops taken for silence too."""
        self._engine.reset()
        self._begin()

    def _begin(self) -> None:
        self._waiting = np.zeros(0, np.float32)
        self._early = self.latency_samples - self.hop_samples  # of the output, before the signal
        self._num_samples = self._num_given = 0

    def _advance(self, samples: np.ndarray) -> np.ndarray:
        samples = np.concatenate([self._waiting, samples]) if len(self._waiting) else samples
        whole = len(samples) // self.hop_samples * self.hop_samples
        self._waiting = samples[whole:].copy()
        found = self._engine.run(np.ascontiguousarray(samples[:whole]))
        early = min(self._early, len(found))
        self._early -= early
        self._num_given += len(found) - early
        return found[early:]


# --------------------------------------------------------------------------------------------
# C


class _CTensor(ctypes.Structure):
    _fields_ = [
        ("place", ctypes.c_int32),
        *((n, ctypes.c_int16) for n in ("bands", "channels", "before", "after", "frames", "ring")),
    ]


class _CLayer(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_uint8) for n in ("kind", "activation", "kernel_format", "bias_format")),
        *((n, ctypes.c_int16) for n in ("source", "target", "residual", "first", "taps",
                                        "dilation", "width", "stride", "in", "out")),
        *((n, ctypes.c_uint16) for n in ("book_size", "mask_rows")),
        ("indices", ctypes.c_int32),
        *((n, ctypes.c_void_p) for n in ("kernel", "book", "mask", "bias")),
    ]  # fmt: skip


class _CModel(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int32) for n in ("rate_hz", "frame", "hop", "window")),
        ("power", ctypes.c_float),
        *((n, ctypes.c_int16) for n in ("num_tensors", "num_layers", "features", "masks",
                                        "split")),
        *((n, ctypes.c_int32) for n in ("scratch", "num_floats")),
        ("tensors", ctypes.POINTER(_CTensor)),
        ("layers", ctypes.POINTER(_CLayer)),
    ]  # fmt: skip


class _CState(ctypes.Structure):
    _fields_ = [
        ("model", ctypes.POINTER(_CModel)),
        ("memory", ctypes.c_void_p),
        ("silenced", ctypes.c_uint32),
        ("slot", ctypes.c_uint16 * plans.MOST_RINGS),
    ]


def _fill(
    record: _CLayer, layer: Layer, kernel: np.ndarray | None, bias: np.ndarray | None
) -> None:
    record.kind, record.activation = layer.kind, plans.ACTIVATIONS.index(layer.activation)
    record.source, record.target, record.residual = layer.source, layer.target, layer.residual
    record.first, record.dilation, record.stride = layer.first, layer.dilation, layer.stride
    record.taps, record.width = layer.taps, layer.width
    if kernel is not None:
        setattr(record, "in", kernel.shape[-2])
        record.out = kernel.shape[-1]
        record.kernel = kernel.ctypes.data
    if bias is not None:
        record.bias = bias.ctypes.data


class CTable:
    """A network's table as C reads it; any number of engines share it, in any threads.

    Args:
        plan: The network.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan  # the table points to its kernels
        self._tensors = (_CTensor * len(plan.tensors))()
        ring = 0
        for tensor, record in zip(plan.tensors, self._tensors, strict=True):
            record.place, record.bands, record.channels = tensor.place, tensor.bands, tensor.wide
            record.before, record.after = tensor.before, tensor.after
            record.frames, record.ring = tensor.frames, ring
            ring += tensor.frames > 1
        self._layers = (_CLayer * len(plan.layers))()
        for layer, arrays, record in zip(plan.layers, plan.widened, self._layers, strict=True):
            _fill(record, layer, *arrays)
        stft = plan.conventions.stft
        self.num_floats = plans.array_floats(plan.conventions) + plan.tensor_floats
        self.model = _CModel(
            plan.conventions.sample_rate_hz, stft.frame, stft.hop, stft.window == "sqrt_hann",
            plan.conventions.power, len(plan.tensors), len(plan.layers), plan.features, plan.masks,
            plan.split, plan.tensor_floats, self.num_floats, self._tensors, self._layers,
        )  # fmt: skip


class CEngine:
    """Runs whole hops through ``kernels/denoise.c``; kernels are floats, nothing is unpacked."""

    def __init__(self, table: CTable) -> None:
        self._hop = table.plan.conventions.stft.hop
        self._table = table
        memory = np.zeros(table.num_floats + 16, np.float32)
        start = -memory.ctypes.data % 64 // 4
        self._memory = memory[start : start + table.num_floats]
        self._state = _CState()
        self._library = blockconv.kernels()
        self._library.denoise_start(
            ctypes.byref(self._state), ctypes.byref(table.model),
            ctypes.c_void_p(self._memory.ctypes.data), ctypes.c_size_t(table.num_floats),
        )  # fmt: skip

    @property
    def num_silenced(self) -> int:
        """Hops that were taken for silence."""
        return self._state.silenced

    @num_silenced.setter
    def num_silenced(self, number: int) -> None:
        self._state.silenced = number

    def reset(self) -> None:
        """Forgets all that came before."""
        self._library.denoise_reset(ctypes.byref(self._state))

    def run(self, samples: np.ndarray) -> np.ndarray:
        """Takes whole hops, float32 [num_samples]; returns as many, delayed by frame - hop."""
        found = np.empty_like(samples)
        self._library.denoise_hops(
            ctypes.byref(self._state), ctypes.c_void_p(samples.ctypes.data),
            ctypes.c_void_p(found.ctypes.data), ctypes.c_size_t(len(samples) // self._hop),
        )  # fmt: skip
        return found


# --------------------------------------------------------------------------------------------
# NumPy


class _NumpyEngine:
    """Does the same in NumPy; each tensor has an array of its own."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._window = analysis_window(plan.conventions.stft, np.dtype(np.float32))
        # Kernels as matrices: [taps][in x width, out], or [out, in] over bands.
        self._kernels = []
        for layer in plan.layers:
            kernel = layer.kernel
            if kernel is not None and layer.kind == plans.CONVOLUTION:
                kernel = kernel.transpose(0, 2, 1, 3).reshape(len(kernel), -1, kernel.shape[3])
            self._kernels.append(kernel)
        self.reset()

    def reset(self) -> None:
        stft = self._plan.conventions.stft
        self.num_silenced = 0
        self._history = np.zeros(stft.frame, np.float32)
        self._overlap = np.zeros(stft.frame, np.float32)
        self._clear()

    def _clear(self) -> None:
        self._frame = 0
        self._arrays = [
            np.zeros((x.frames, x.before + x.bands + x.after, x.channels), np.float32)
            for x in self._plan.tensors
        ]

    def run(self, samples: np.ndarray) -> np.ndarray:
        hop = self._plan.conventions.stft.hop
        parts = [self._hop(samples[at : at + hop]) for at in range(0, len(samples), hop)]
        return np.concatenate([np.zeros(0, np.float32), *parts])

    def _hop(self, samples: np.ndarray) -> np.ndarray:
        stft, power = self._plan.conventions.stft, self._plan.conventions.power
        is_bad = not (np.abs(samples) <= MAX_SAMPLE).all()
        own = np.zeros_like(samples) if is_bad else samples
        self._history = np.append(self._history[stft.hop :], own)
        with np.errstate(over="ignore", invalid="ignore"):
            spectrum = np.fft.rfft(self._history * self._window)
            own = compress(spectrum[:-1], power)
            spectrum[:-1] = expand(self._mask(features(own)) * own, power)
        spectrum[-1] = 0
        if not np.isfinite(spectrum).all():  # nothing of it may stay
            spectrum[:] = 0
            self._clear()
            is_bad = True
        self._frame += 1
        self.num_silenced += is_bad
        frame = np.fft.irfft(spectrum, stft.frame)
        self._overlap += frame * self._window * np.float32(stft.hop / stft.window_energy)
        found = self._overlap[: stft.hop].copy()
        self._overlap = np.append(self._overlap[stft.hop :], np.zeros(stft.hop, np.float32))
        return found

    def _at(self, number: int, age: int = 0) -> np.ndarray:
        array = self._arrays[number]
        return array[(self._frame - age) % len(array)]

    def _bands(self, number: int) -> np.ndarray:
        tensor = self._plan.tensors[number]
        return self._at(number)[tensor.before : tensor.before + tensor.bands]

    def _mask(self, values: np.ndarray) -> np.ndarray:
        """Returns complex64 [bins] for features [bins, 3]."""
        plan = self._plan
        self._bands(plan.features)[:] = values
        for layer, kernel in zip(plan.layers, self._kernels, strict=True):
            found = self._found(layer, kernel)
            if layer.bias is not None:
                found = found + (layer.bias[:, None] if layer.kind == plans.OVER_BANDS
                                 else layer.bias)  # fmt: skip
            if layer.activation == "silu":
                with np.errstate(over="ignore"):
                    found = found / (1 + np.exp(-found))
            if layer.residual >= 0:
                found = found + self._bands(layer.residual)
            self._bands(layer.target)[:] = found
        bins = self._bands(plan.masks)[:, : 2 * plan.split].reshape(-1, 2)
        bins = bins[plan.split // 2 :][: len(values)]
        return np.ascontiguousarray(bins).view(np.complex64)[:, 0]

    def _found(self, layer: Layer, kernel: np.ndarray | None) -> np.ndarray:
        if kernel is None:
            return self._bands(layer.source)
        if layer.kind == plans.OVER_BANDS:
            return kernel.T @ self._bands(layer.source)
        num_bands = self._plan.tensors[layer.target].bands
        total = np.zeros((num_bands, kernel.shape[-1]), np.float32)
        for tap in range(layer.taps):
            frame = self._at(layer.source, (layer.taps - 1 - tap) * layer.dilation)[layer.first :]
            windows = np.lib.stride_tricks.sliding_window_view(frame, layer.width, axis=0)
            windows = windows[:: layer.stride][:num_bands]
            total += windows.reshape(num_bands, -1) @ kernel[tap]
        return total
