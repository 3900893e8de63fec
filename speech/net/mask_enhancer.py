"""Enhances signals of any length with a network of the kind 'complex_mask', in constant memory.

STFT, compression, network, mask and inverse STFT (``speech.net.timefrequency``) run hop by hop in
``speech.net.streaming``, where the C kernels are and know the network; no TensorFlow is loaded. A
frame of the mask depends on a finite number of frames before it (``speech.net.reach``) and on none
after it, so a core that starts that much earlier gives what the whole signal gives: several cores
share a long signal. Elsewhere Keras runs the network chunk by chunk. Both have batch normalisation
folded away, and only rounding depends on where a signal is cut.

Nothing is normalised over the signal, hence:

* The level of the output is the one that the mask gives. A network knows levels only from its
  training; a gain on the input is not simply a gain on the output.
* Silence stays silence, exactly: a mask multiplies.
* Bins below ``POWER_FLOOR`` (100 dB below a sine of full scale) come out softer than the mask says.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from speech.modelfile.exam import output_shapes
from speech.modelfile.meta import MaskConventions
from speech.modelfile.spec import LayerSpec, ModelFile, ModelFileError, refusals
from speech.net import blockconv
from speech.net.folding import fold_batch_normalization
from speech.net.keras_models import keras_function
from speech.net.memory import MAX_BYTES, keras_bytes
from speech.net.plan import plan_of
from speech.net.reach import causal_reach
from speech.net.streaming import MAX_SAMPLE, CEngine, CTable
from speech.net.timefrequency import compress, expand, features
from speech.sound.audio import valid_signal
from speech.sound.audiofiles import peak_of
from speech.sound.stft import Synthesis, whole_frames

#: New frames of a chunk, 10 s; the earlier frames that it starts with are not counted.
NEW_FRAMES = 625

#: Memory for the tensors of a chunk on Keras; beyond it, chunks become shorter.
_BYTES = 192 << 20


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
        new_frames: As given.

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
        self.new_frames = new_frames
        with refusals(file.path):
            self.conventions = MaskConventions.of(file.meta)
            self.behind = causal_reach(file.layers)
            self._table = _runnable(file) if engine == "fast" else None
            self.engine = "keras" if self._table is None else "c"
            if self._table is None:
                layers = fold_batch_normalization(file.layers)
                self._frame_bytes = _bytes_of(layers)
                num_frames = 2 * (self.behind + 1)
                least = max(num_frames * self._frame_bytes, keras_bytes(layers, num_frames))
                if least > MAX_BYTES:
                    raise ModelFileError(
                        f"the network reaches {self.behind:,} frames back and needs {least:,} "
                        f"bytes, expected at most {MAX_BYTES:,}"
                    )
        if self._table is None:
            self._function = keras_function(layers)

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
        if self._table is not None:
            return _CoresStream(self, self._table, threads)
        return _KerasStream(self)

    @property
    def chunk_frames(self) -> int:
        """Frames that Keras computes at a time.

        A chunk computes ``behind`` frames twice; with twice as many in all as that, a given memory
        gets most done.
        """
        room = _BYTES // self._frame_bytes
        return max(1, min(self.new_frames + self.behind, max(2 * (self.behind + 1), room)))

    def masks(self, compressed: np.ndarray, known: int) -> np.ndarray:
        """Returns masks for compressed spectra, by Keras.

        Args:
            compressed: complex64 [num_frames, num_bins]; the frames before them are silent, or
                ``known`` is `behind`.
            known: Frames whose masks are not asked for.

        Returns:
            complex64 [num_frames - known, num_bins].
        """
        found = np.ascontiguousarray(self._function(features(compressed)[None]))
        return found.view(np.complex64)[0, known:, :, 0]


def _runnable(file: ModelFile) -> CTable | None:
    """Returns the network as a table if the C kernels are there and know it."""
    if not blockconv.is_available():
        return None
    try:
        return CTable(plan_of(file))
    except ModelFileError:
        return None


class MaskStream:
    """A signal on its way through a network, pushed piece by piece. Made by `MaskEnhancer.stream`.

    What comes out, one after the other, is what the network makes of the whole, as soon as a chunk
    is complete: it is meant for long files, ``speech.net.streaming`` for the shortest delay.
    """

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Takes the next samples, float [any number], and returns those that are finished."""
        raise NotImplementedError

    def finish(self) -> np.ndarray:
        """Ends the signal and returns the rest: as many samples came out as went in."""
        raise NotImplementedError


def _checked(samples: np.ndarray) -> np.ndarray:
    """Returns samples as float32; raises ValueError for what has no measure."""
    samples = valid_signal(samples)
    highest = peak_of(samples)
    if highest > MAX_SAMPLE:
        raise ValueError(
            f"signal reaches {highest:.3g}, expected full scale at 1, at most {MAX_SAMPLE:g}"
        )
    return samples.astype(np.float32, copy=False)


class _CoresStream(MaskStream):
    """Runs in C, a chunk of hops at a time, which cores divide among themselves.

    The core with the first piece goes on from the state after the chunk before; the others begin
    as many hops early as their output depends on. There are no more cores than have room.
    """

    def __init__(self, enhancer: MaskEnhancer, table: CTable, threads: int | None) -> None:
        plan = table.plan
        at_once = max(1, MAX_BYTES // (4 * plan.tensor_floats))
        cores = min(blockconv.num_threads(threads), at_once)
        self._path, self._engines = enhancer.path, [CEngine(table)]
        self._more = lambda: CEngine(table)
        stft = plan.conventions.stft
        self._hop, self._beyond = stft.hop, stft.frame - stft.hop
        # An output depends on the frames that it lies in, those behind them, and their samples.
        self._early = enhancer.behind + 2 * self._beyond // stft.hop
        self._cores, self._chunk = cores, cores * enhancer.new_frames * stft.hop
        self._waiting: list[np.ndarray] = []
        self._num_samples = self._num_waiting = self._num_computed = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        samples = _checked(samples)
        self._num_samples += len(samples)
        self._waiting.append(samples)
        self._num_waiting += len(samples)
        return self._advance() if self._num_waiting >= self._chunk else np.zeros(0, np.float32)

    def finish(self) -> np.ndarray:
        if not self._num_samples:
            return np.zeros(0, np.float32)
        left = self._num_samples - max(self._num_computed - self._beyond, 0)
        rest = np.zeros(-self._num_waiting % self._hop + self._beyond, np.float32)
        self._waiting.append(rest)
        self._num_waiting += len(rest)
        return self._advance()[:left]

    def _advance(self) -> np.ndarray:
        """Computes all whole hops; returns the samples of the signal that they finish."""
        samples = np.concatenate(self._waiting)
        whole = len(samples) // self._hop * self._hop
        self._waiting, self._num_waiting = [samples[whole:].copy()], len(samples) - whole
        before = max(self._beyond - self._num_computed, 0)  # what lies in front of the signal
        self._num_computed += whole
        found = self._in_pieces(samples[:whole])
        if any(engine.num_silenced for engine in self._engines):
            raise ValueError(f"{self._path}: the network's output holds a NaN or an infinity")
        return found[before:]

    def _in_pieces(self, samples: np.ndarray) -> np.ndarray:
        num_hops = len(samples) // self._hop
        pieces = max(1, min(self._cores, num_hops // (2 * self._early)))
        if pieces == 1:
            return self._engines[0].run(samples)
        while len(self._engines) < pieces:
            self._engines.append(self._more())
        size = (num_hops - self._early) // pieces
        starts = [num_hops - (pieces - place) * size for place in range(1, pieces)]

        def run(place: int) -> np.ndarray:
            first, last = ([0, *starts][place], [*starts, num_hops][place])
            early = self._early if place else 0
            if place:
                self._engines[place].reset()
            piece = samples[(first - early) * self._hop : last * self._hop]
            return self._engines[place].run(piece)[early * self._hop :]

        with ThreadPoolExecutor(pieces) as pool:
            parts = list(pool.map(run, range(pieces)))
        # The core with the last piece knows how the signal goes on.
        self._engines[0], self._engines[pieces - 1] = self._engines[pieces - 1], self._engines[0]
        return np.concatenate(parts)


class _KerasStream(MaskStream):
    """Runs on Keras; each chunk begins as many frames early as the network looks back."""

    def __init__(self, enhancer: MaskEnhancer) -> None:
        self._enhancer = enhancer
        stft = enhancer.conventions.stft
        self._batch_frames = enhancer.chunk_frames
        self._waiting = [np.zeros(stft.frame - stft.hop, np.float32)]  # before the signal
        self._num_waiting = len(self._waiting[0])
        self._past = np.zeros((0, stft.num_bins - 1), np.complex64)
        self._synthesis = Synthesis(None, stft)
        self._num_samples = self._num_frames = self._num_given = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        samples = _checked(samples)
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
            mask = enhancer.masks(context, len(self._past))
            spectra[:, :-1] = expand(mask * context[len(self._past) :], power)
            spectra[:, -1] = 0
            output = self._synthesis.add(spectra)
        if not np.isfinite(output).all():
            raise ValueError(f"{enhancer.path}: the network's output holds a NaN or an infinity")
        self._num_frames += count
        self._past = context[max(len(context) - enhancer.behind, 0) :].copy()
        return output


def _bytes_of(layers: tuple[LayerSpec, ...]) -> int:
    """Returns the bytes of all outputs for one frame, the most that Keras holds."""
    shapes = output_shapes(layers).values()
    return 4 * sum(math.prod(axis for axis in shape if axis) for shape in shapes)
