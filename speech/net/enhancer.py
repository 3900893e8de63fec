"""Enhances signals of any length with a network of the kind 'complex_mask', in constant memory.

STFT, compression, network, mask and inverse STFT (``speech.net.timefrequency``) run chunk by chunk.
A frame of the mask depends on a finite number of frames before it (``speech.net.reach``) and on
none after it, so a chunk that starts that much earlier gives what the whole signal gives; only
rounding depends on where a signal is cut. Nothing is normalised over the signal, hence:

* The level of the output is the one that the mask gives. A network knows levels only from its
  training; a gain on the input is not simply a gain on the output.
* Silence stays silence, exactly: a mask multiplies.
* Bins below ``POWER_FLOOR`` (100 dB below a sine of full scale) come out softer than the mask says.

The C kernels run the network where they are (``speech.net.tape``, no TensorFlow is loaded), Keras
does elsewhere; both with batch normalisation folded away.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np

from speech.modelfile.exam import output_shapes
from speech.modelfile.meta import COMPLEX_MASK, MaskConventions
from speech.modelfile.spec import LayerSpec, ModelFile, ModelFileError, refusals
from speech.net import blockconv, tape
from speech.net.folding import fold_batch_normalization
from speech.net.memory import MAX_BYTES
from speech.net.reach import reach_of
from speech.net.timefrequency import compress, expand, features
from speech.sound.audio import valid_signal
from speech.sound.stft import Synthesis, whole_frames

#: Frames of a chunk besides those that it only starts earlier with: 10 s.
NEW_FRAMES = 625

#: Pieces that cores work on side by side have at least so many new frames (0.5 s).
_MIN_NEW_FRAMES = 32

#: Memory for the tensors of all cores together; beyond it, chunks become shorter and cores idle.
_BYTES = 192 << 20

#: Squares of spectra of louder signals may not fit in float32.
_MAX_SAMPLE = 1e15


class MaskEnhancer:
    """A network of the kind 'complex_mask', ready to run. Several Python threads may share it.

    Args:
        file: The model file.
        new_frames: Frames of a chunk that are not only there for what follows.
        engine: 'fast' for the C kernels where they can run it, 'keras' for Keras always.

    Attributes:
        conventions: STFT, rate and compression.
        engine: 'c' or 'keras': what runs it.
        behind: Frames before it that a frame of the output depends on.

    Raises:
        ModelFileError: The network is of another kind, reads later frames, or is too large to run.
    """

    def __init__(
        self, file: ModelFile, *, new_frames: int = NEW_FRAMES, engine: str = "fast"
    ) -> None:
        if engine not in ("fast", "keras"):
            raise ValueError(f"engine must be 'fast' or 'keras', received {engine!r}")
        if new_frames < 1:
            raise ValueError(f"new_frames is {new_frames}, expected at least 1")
        self.path = file.path
        self._new_frames = new_frames
        with refusals(file.path):
            self.conventions = MaskConventions.of(file.meta)
            reach = reach_of(file.layers)
            if reach.ahead:
                raise ModelFileError(
                    f"the {COMPLEX_MASK!r} network reads {reach.ahead:,} frames ahead, expected a "
                    "causal one: pad in front (ZeroPadding2D), with padding 'valid' over time"
                )
            self.behind = reach.behind
            layers = fold_batch_normalization(file.layers)
            nodes = None
            if engine == "fast" and blockconv.is_available():
                nodes = tape.read_layers(
                    [(layer.class_name, layer.name, layer.config, layer.inputs) for layer in layers]
                )
            self.engine = "keras" if nodes is None else "c"
            self._frame_bytes = _bytes_of(layers) if nodes is None else _bytes_of_tape(nodes)
            least = 2 * (self.behind + 1) * self._frame_bytes
            if least > MAX_BYTES:
                raise ModelFileError(
                    f"the network reaches {self.behind:,} frames back and needs "
                    f"{self._frame_bytes:,} bytes per frame, {least:,} in all; expected at most "
                    f"{MAX_BYTES:,}"
                )
        self._run: Callable[[np.ndarray, tuple[int, int]], np.ndarray]
        if nodes is None:
            self._run = _keras_runner(layers)
        else:
            self._run = _Kernels(nodes, layers).run

    def __call__(self, signal: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Enhances a whole signal.

        Args:
            signal: float [num_samples] at the network's rate, full scale at 1.
            threads: Of the C kernels; default: all cores.

        Returns:
            float32 [num_samples].

        Raises:
            ValueError: The signal is of another shape or kind, or it or the network's output holds
                a NaN or an infinity.
        """
        stream = self.stream(threads)
        return np.concatenate([stream.push(signal), stream.finish()])

    def stream(self, threads: int | None = None) -> MaskStream:
        """Begins a signal that comes piece by piece; the argument is that of `__call__`."""
        return MaskStream(self, threads)

    def batch_shape(self, threads: int | None = None) -> tuple[int, int]:
        """Returns pieces and frames per piece that are computed at a time.

        Cores share the memory. A piece computes ``behind`` frames twice; with twice as many in all
        as that, a given memory gets most done.
        """
        pieces = blockconv.num_threads(threads) if self.engine == "c" else 1
        room = _BYTES // self._frame_bytes
        frames = min(self._new_frames + self.behind, max(2 * (self.behind + 1), room // pieces))
        return max(1, min(pieces, room // frames)), frames

    def masks(self, compressed: np.ndarray, known: int, shape: tuple[int, int]) -> np.ndarray:
        """Returns masks for compressed spectra.

        Args:
            compressed: complex64 [num_frames, num_bins]; the frames before them are silent, or
                ``known`` is `behind`.
            known: Frames whose masks are not asked for.
            shape: Of `batch_shape`; ``num_frames`` is at most what fits.

        Returns:
            complex64 [num_frames - known, num_bins].
        """
        most_pieces, most_frames = shape
        num_frames = len(compressed)
        count = max(num_frames - self.behind, 1)
        smallest = min(_MIN_NEW_FRAMES, most_frames - self.behind)
        pieces = min(most_pieces, -(-count // smallest))
        new = -(-count // pieces)
        frames = min(new + self.behind, num_frames)
        pieces = -(-count // new)
        given = features(compressed)
        batch = np.zeros((pieces, frames, *given.shape[1:]), np.float32)
        for place, piece in enumerate(batch):
            own = given[place * new : place * new + frames]
            piece[: len(own)] = own
        found = np.ascontiguousarray(self._run(batch, shape)).view(np.complex64)[..., 0]
        rows = [found[0, known:], *found[1:, self.behind :]]
        return np.concatenate(rows)[: num_frames - known]


class MaskStream:
    """A signal on its way through a network, pushed piece by piece. Made by `MaskEnhancer.stream`.

    What comes out, one after the other, is what the network makes of the whole, as soon as a chunk
    is complete: it is meant for long files, not for the shortest delay.
    """

    def __init__(self, enhancer: MaskEnhancer, threads: int | None = None) -> None:
        self._enhancer, self._shape = enhancer, enhancer.batch_shape(threads)
        stft = enhancer.conventions.stft
        pieces, frames = self._shape
        self._batch_frames = pieces * (frames - enhancer.behind) + enhancer.behind
        self._waiting = [np.zeros(stft.frame - stft.hop, np.float32)]  # before the signal
        self._num_waiting = len(self._waiting[0])
        self._past = np.zeros((0, stft.num_bins - 1), np.complex64)
        self._synthesis = Synthesis(None, stft)
        self._num_samples = self._num_frames = self._num_given = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Takes the next samples, float [any number], and returns those that are finished."""
        samples = valid_signal(samples)
        highest = float(np.max(np.abs(samples), initial=0.0))
        if highest > _MAX_SAMPLE:
            raise ValueError(
                f"signal reaches {highest:.3g}, expected full scale at 1, at most {_MAX_SAMPLE:g}"
            )
        samples = samples.astype(np.float32, copy=False)
        self._num_samples += len(samples)
        self._append(samples)
        stft = self._enhancer.conventions.stft
        parts = []
        while True:
            count = self._batch_frames - len(self._past)
            if self._num_waiting < (count - 1) * stft.hop + stft.frame:
                break
            parts.append(self._advance(count))
        return self._give(parts)

    def finish(self) -> np.ndarray:
        """Ends the signal and returns the rest: as many samples came out as went in."""
        stft = self._enhancer.conventions.stft
        parts = []
        if self._num_samples:
            left = stft.num_frames(self._num_samples) - self._num_frames
            self._append(
                np.zeros((left - 1) * stft.hop + stft.frame - self._num_waiting, np.float32)
            )
            while left:
                count = min(left, self._batch_frames - len(self._past))
                parts.append(self._advance(count))
                left -= count
        return self._give(parts)

    def _append(self, samples: np.ndarray) -> None:
        self._waiting.append(samples)
        self._num_waiting += len(samples)

    def _give(self, parts: list[np.ndarray]) -> np.ndarray:
        found = np.concatenate([np.zeros(0, np.float32), *parts])
        found = found[: self._num_samples - self._num_given]
        self._num_given += len(found)
        return found

    def _advance(self, count: int) -> np.ndarray:
        """Computes the next ``count`` frames; returns the samples that they finish."""
        enhancer, conventions = self._enhancer, self._enhancer.conventions
        stft, power = conventions.stft, conventions.power
        samples = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting = [samples[count * stft.hop :]]
        self._num_waiting -= count * stft.hop
        spectra = whole_frames(samples[: (count - 1) * stft.hop + stft.frame], stft)
        with np.errstate(over="ignore", invalid="ignore"):  # said below, in words
            context = np.concatenate([self._past, compress(spectra[:, :-1], power)])
            mask = enhancer.masks(context, len(self._past), self._shape)
            spectra[:, :-1] = expand(mask * context[len(self._past) :], power)
            spectra[:, -1] = 0
            output = self._synthesis.add(spectra)
        if not np.isfinite(output).all():
            raise ValueError(f"{enhancer.path}: the network's output holds a NaN or an infinity")
        self._num_frames += count
        self._past = context[max(len(context) - enhancer.behind, 0) :].copy()
        return output


class _Kernels:
    """Runs a network through the C kernels; each Python thread has a tape of its own."""

    def __init__(self, nodes: tuple[tape.Node, ...], layers: tuple[LayerSpec, ...]) -> None:
        self._nodes = nodes
        self._weights = {layer.name: layer.weights for layer in layers}
        self._local = threading.local()

    def run(self, batch: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Returns float32 [pieces, frames, bins, 2] of features, of at most ``shape``."""
        kept = getattr(self._local, "tape", None)
        if kept is None or (kept.pieces, kept.frames) != shape:
            kept = self._local.tape = tape.Tape(self._nodes, *shape, threads=shape[0])
        with np.errstate(invalid="ignore"):  # a negative variance: the output tells
            return kept.forward(batch, self._weights)


def _keras_runner(
    layers: tuple[LayerSpec, ...],
) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    from speech.net.keras_models import keras_function

    function = keras_function(layers)
    return lambda batch, shape: function(batch)


def _bytes_of(layers: tuple[LayerSpec, ...]) -> int:
    """Returns the bytes of all outputs for one frame, the most that Keras holds."""
    shapes = output_shapes(layers).values()
    return 4 * sum(math.prod(axis for axis in shape if axis) for shape in shapes)


def _bytes_of_tape(nodes: tuple[tape.Node, ...]) -> int:
    return tape.Tape(nodes, 1, 1, threads=1).num_bytes
