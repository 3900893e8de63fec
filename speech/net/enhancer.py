"""A model file as a function on signals of any length, run by the C kernels or by Keras.

The file says what kind of network it holds (`speech.modelfile.spec.ModelFile.kind`):

* 'complex_mask' (``speech.net.mask_enhancer``): the output has the level that the mask gives.
* 'waveform': as in training, the network is given the signal divided by its own maximum. Its output
  has no scale of its own: it is multiplied by the gain that fits it best, in the least-squares
  sense, to the noisy input. The speech keeps its level, whatever clicks, offsets or noise the input
  holds.

Long signals and waveform models. Such a network normalises over the whole utterance, so a signal
can't be cut without changing the result. Up to ``WHOLE_SECONDS`` it is enhanced whole. A longer one
is cut into blocks of ``BLOCK_SECONDS``, each normalised by itself, as utterances are in training;
neighbours overlap by ``FADE_SECONDS`` and are cross-faded. Each block gets the gain that fits it
to its input, which keeps a block of mere noise from being blown up to the level of the noise. A
network so wide that these lengths do not fit into ``speech.net.memory.MAX_BYTES`` gets shorter
blocks, and one for which ``LEAST_SECONDS`` do not fit is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speech.base import lazy
from speech.modelfile.exam import frames_more
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import COMPLEX_MASK, WAVEFORM, ModelFile, refusals
from speech.net import blockconv
from speech.net.memory import MAX_BYTES, keras_bytes, too_large
from speech.sound.audio import SAMPLE_RATE_HZ, valid_signal
from speech.sound.audiofiles import gain_to_peak, peak_of

if TYPE_CHECKING:
    from speech.net import chain, inference, keras_models, mask_enhancer
else:
    chain = lazy.module("speech.net.chain")
    inference = lazy.module("speech.net.inference")
    keras_models = lazy.module("speech.net.keras_models")
    mask_enhancer = lazy.module("speech.net.mask_enhancer")

_MODELS = Path(__file__).resolve().parents[2] / "models"
#: The model that is used when none is named.
DEFAULT_MODEL = _MODELS / "denoise.icse"
#: The papers' network, on which their tables stand.
BASELINE_MODEL = _MODELS / "fcn.h5"

WHOLE_SECONDS = 120.0
BLOCK_SECONDS = 60.0
#: A waveform model that cannot run even such a block in `speech.net.memory.MAX_BYTES` is refused.
LEAST_SECONDS = 4.0
FADE_SECONDS = 0.5


class Enhancer:
    """A model ready to run: on the C kernels where they are, on Keras elsewhere.

    Args:
        model: An .h5 or .icse model file, possibly from a stranger, or one that has been read.

    Attributes:
        file: The model file as it was read.
        engine: 'c' or 'keras': what runs it.
        mask: What runs a network of the kind 'complex_mask'; None for a waveform model.

    Raises:
        ValueError: The file is refused, or no network of these kinds at 16 kHz.
    """

    mask: mask_enhancer.MaskEnhancer | None = None
    #: Bytes that a waveform model takes for so many samples.
    _num_bytes: Callable[[int], int] = staticmethod(lambda num_samples: 0)

    def __init__(self, model: str | os.PathLike | ModelFile = DEFAULT_MODEL) -> None:
        self.file = model if isinstance(model, ModelFile) else read_model_file(model)
        self.path = self.file.path
        kind = self.file.require_kind(
            WAVEFORM, COMPLEX_MASK, fix="such a network cannot enhance a file by itself"
        )
        if kind == COMPLEX_MASK:
            self.mask = mask_enhancer.MaskEnhancer(self.file)
            self.engine = self.mask.engine
        else:
            self.engine, self._run, self._num_bytes = _runner(self.file)
            num_bytes = self._num_bytes(round(LEAST_SECONDS * SAMPLE_RATE_HZ))
            if num_bytes > MAX_BYTES:
                much = too_large(num_bytes, f"{LEAST_SECONDS:g} s of sound")
                raise ValueError(f"{self.path}: {much}")

    def __call__(self, signal: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Runs the network on a whole signal; a waveform model gets it divided by its maximum.

        Args:
            signal: float [num_samples] at 16 kHz.
            threads: Of the C kernels; default: all cores.

        Returns:
            float32 [num_samples], as the network gives it; zeros for silence.

        Raises:
            ValueError: The signal is of another shape or kind, or it or the network's output holds
                a NaN or an infinity.
        """
        if self.mask is not None:
            return self.mask(signal, threads)
        return self._waveform(valid_signal(signal), threads)

    def _waveform(self, signal: np.ndarray, threads: int | None) -> np.ndarray:
        """Runs a waveform model on a whole signal that passed the gate; see `__call__`."""
        highest = peak_of(signal)
        if not highest:
            return np.zeros(len(signal), np.float32)
        output = self._run((signal / highest).astype(np.float32), threads)
        if not np.isfinite(output).all():
            raise ValueError(f"{self.path}: the network's output holds a NaN or an infinity")
        return output

    def enhance(
        self,
        signal: np.ndarray,
        *,
        peak: float | None = None,
        whole: bool = False,
        threads: int | None = None,
    ) -> np.ndarray:
        """Enhances one channel of any length (see the module).

        Args:
            signal: float [num_samples] at 16 kHz.
            peak: max |x| of the result; None for the level that fits ``signal`` best, or, with a
                complex mask, what comes out.
            whole: Never cut into blocks, whatever the memory; a complex mask gives the same anyway.
            threads: Of the C kernels; default: all cores.

        Returns:
            float32 [num_samples].

        Raises:
            ValueError: As `Enhancer.__call__`, or the peak is no positive number.
        """
        if peak is not None and not 0 < peak < math.inf:
            raise ValueError(f"peak is {peak}; give a positive number, such as 1")
        if self.mask is not None:
            output = self.mask(signal, threads)
        else:
            signal = valid_signal(signal)
            if whole or self.takes_whole(len(signal)):
                output = self._waveform(signal, threads)
                if peak is None:
                    output = fit_level(output, signal)
            else:
                output = self._in_blocks(signal, threads)
        return output if peak is None else output * gain_to_peak(peak, peak_of(output))

    def takes_whole(self, num_samples: int) -> bool:
        """Returns whether a waveform model enhances so many samples at 16 kHz in one piece."""
        is_short = num_samples <= WHOLE_SECONDS * SAMPLE_RATE_HZ
        return is_short and self._num_bytes(num_samples) <= MAX_BYTES

    def _block_samples(self) -> int:
        """Returns the length of a block: `BLOCK_SECONDS`, or halves of it until one fits."""
        size = round(BLOCK_SECONDS * SAMPLE_RATE_HZ)
        # The last two blocks may be longer by half of the overlap.
        fade = round(FADE_SECONDS * SAMPLE_RATE_HZ)
        while self._num_bytes(size + fade) > MAX_BYTES and size > 4 * fade:
            size //= 2
        return size

    def _in_blocks(self, signal: np.ndarray, threads: int | None) -> np.ndarray:
        fade = round(FADE_SECONDS * SAMPLE_RATE_HZ)
        ramp = np.linspace(0.0, 1.0, fade + 2, dtype=np.float32)[1:-1]
        output = np.zeros(len(signal), np.float32)
        for start, stop in blocks(len(signal), self._block_samples(), fade):
            noisy = signal[start:stop]
            part = fit_level(self._waveform(noisy, threads), noisy)
            if start:
                part[:fade] *= ramp
            if stop < len(signal):
                part[-fade:] *= ramp[::-1]
            output[start:stop] += part
        return output


def blocks(num_samples: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of blocks that overlap and cover a signal.

    What is left for the last two is halved between them, so that none is a short rest.
    """
    hop = size - overlap
    start = 0
    while num_samples - start > 2 * size:
        yield start, start + size
        start += hop
    if num_samples - start > size + overlap:
        middle = start + (num_samples - start + overlap) // 2
        yield start, middle
        start = middle - overlap
    yield start, num_samples


def _runner(
    file: ModelFile,
) -> tuple[str, Callable[[np.ndarray, int | None], np.ndarray], Callable[[int], int]]:
    """Returns the engine, what runs float32 [num_samples] with some threads, and its memory."""
    found = chain.blocks_from_layers([(layer.class_name, layer.config) for layer in file.layers])
    parameters = chain.parameters_of(file.layers)
    # The spectra of short kernels beside one long one may take far more than the file.
    fits = found is not None and inference.spectra_bytes(parameters) <= MAX_BYTES // 4
    if found is not None and fits and blockconv.is_available():
        network = inference.InferenceNetwork(found[0], parameters, tanh=found[1])
        return "c", lambda signal, threads: network(signal, threads)[:, 0], network.num_bytes
    function = keras_models.keras_function(file.layers)
    with refusals(file.path):
        lost = -frames_more(file.layers)

    def run(signal: np.ndarray, threads: int | None) -> np.ndarray:
        if len(signal) <= lost:
            raise ValueError(
                f"{file.path}: needs more than {lost} samples at a time, as it has no padding; "
                f"received {len(signal)}"
            )
        return _centred(function(signal[None, :, None])[0, :, 0], len(signal))

    return "keras", run, lambda num_samples: keras_bytes(file.layers, num_samples)


def _centred(output: np.ndarray, num_samples: int) -> np.ndarray:
    """Puts zeros before and behind what a network without padding gives; cuts what is too long.

    A network whose padding gives more than it takes has the middle of its output.
    """
    missing = num_samples - len(output)
    if missing < 0:
        return output[-missing // 2 :][:num_samples]
    return np.pad(output, (missing // 2, missing - missing // 2)) if missing else output


def fit_level(output: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """Returns an output of no scale of its own with the gain that fits it best to the input.

    The gain g is <x, y> / <y, y>, which makes the sum of (x - g y)^2 least.
    """
    highest, at_most = peak_of(output), peak_of(noisy)
    if not highest or not at_most:
        return output
    unit = output / highest  # neither too large nor too small to be squared
    gain = float(np.dot(noisy / at_most, unit)) / float(np.dot(unit, unit))
    return unit * np.float32(gain * at_most)
