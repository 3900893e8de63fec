"""Experts of any kind under one roof: what each takes, and how it is run.

============ ============================================== ====================================
kind         what it is                                     what it gives
============ ============================================== ====================================
mask         network over frames of spectra, .h5 or .icse   a mask, times the mixture's spectrum
magnitude    likewise                                       |speech|, with the mixture's phase
waveform     network over samples, .h5 or .icse             samples
complex_mask network over time and frequency, .h5 or .icse  samples, at the level of the mixture
onnx         network over samples, .onnx (extra ``[onnx]``) samples
folder       files that any other tool has made             samples
============ ============================================== ====================================

The ``kind`` in the ``speech_meta`` of a model file says which it is, or else the shapes of its
kernels do (`speech.modelfile.spec.ModelFile.kind`); where they leave it open, the user is asked.
A network over frames takes each by itself, [batch, values], or their sequence, [batch, frames,
values]: recurrent layers see all frames of a signal, in order, wherever its blocks end (`Course`).
Samples are at 16 kHz. A network over samples is given the signal divided by its maximum, as
`speech.enhance` does. A complex mask has an STFT of its own, so the pool only meets its samples.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnn.features import Conventions, conventions_of, network_input, scaled_magnitudes
from mnn.layers import DenseNetwork
from mnn.sequences import SequenceNetwork
from speech.base import schema
from speech.base.files import sha256_of
from speech.base.lazy import load, onnxruntime
from speech.base.words import shown
from speech.data.made import MadeFiles
from speech.modelfile.exam import frames_more, output_shapes
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import COMPLEX_MASK, ModelFile, refusals
from speech.net.enhancer import Enhancer
from speech.net.keras_models import keras_function
from speech.net.memory import MAX_BYTES, keras_bytes, too_large
from speech.sound.audio import SAMPLE_RATE_HZ, Audio, read_multichannel
from speech.sound.audiofiles import at_16k
from speech.sound.blocks import frame_blocks, stft_frames
from speech.sound.stft import DEFAULT, Synthesis

SPECTRAL_KINDS = ("mask", "magnitude")

#: A file of another tool may be so much longer or shorter at 16 kHz: resampling rounds.
LENGTH_TOLERANCE_SAMPLES = 16


@dataclass(frozen=True)
class Place:
    """The file and channel that a signal comes from, for experts that look up its result.

    Attributes:
        relative: Path of its file below the input folder, or its name.
        channel: Number of the channel in the file, from 0.
    """

    relative: Path = Path()
    channel: int = 0


@dataclass(frozen=True, eq=False)
class Expert:
    """One expert.

    Attributes:
        name: Name in tables; unique in a pool.
        kind: See the module.
        source: The model file or folder.
        sha256: SHA-256 of the model file; '' for a folder.
        conventions: Input of an expert over spectra; None for an expert over samples.
    """

    name: str
    kind: str
    source: Path
    sha256: str
    conventions: Conventions | None
    _run: Callable[..., np.ndarray] = field(repr=False)
    _sequence: Sequence | None = field(default=None, repr=False)

    @property
    def is_spectral(self) -> bool:
        """Whether the expert reads spectra, so that it can share one STFT with others."""
        return self.conventions is not None

    @property
    def keeps_level(self) -> bool:
        """Whether the estimate has the level that the speech has in the mixture."""
        return self.is_spectral or self.kind == COMPLEX_MASK

    @property
    def halo(self) -> int:
        """Frames on either side that the estimate of a frame depends on."""
        return self.conventions.context // 2 if self.conventions else 0

    def estimate(self, spectra: np.ndarray, mixture_level: float) -> np.ndarray:
        """Returns the spectra of the speech: complex64 [num_frames, num_bins], spectral kinds only.

        Args:
            spectra: Of the mixture, complex64 [num_frames, num_bins], all frames of a signal.
            mixture_level: `mnn.features.level` of the mixture.
        """
        whole = 0, len(spectra)
        return Course(self, mixture_level).estimate(spectra, whole, whole)

    def course(self, noisy: np.ndarray, mixture_level: float) -> Course:
        """Starts on a signal whose spectra come block by block, spectral kinds only.

        Args:
            noisy: float32 [num_samples] at 16 kHz.
            mixture_level: `mnn.features.level` of it.

        Raises:
            ValueError: The network reads backwards, and the signal is too long for that.
        """
        course = Course(self, mixture_level)
        if self._sequence is not None and not self._sequence.is_causal:
            course.run_whole(noisy)
        return course

    def signal(self, noisy: np.ndarray, mixture_level: float, place: Place) -> np.ndarray:
        """Returns the speech: float32 [num_samples], for every kind.

        Args:
            noisy: float32 [num_samples] at 16 kHz.
            mixture_level: `mnn.features.level` of the mixture.
            place: Where ``noisy`` comes from.

        Raises:
            ValueError: There is none, or it is not finite.
        """
        if self.conventions is None:
            return self._run(noisy, place)
        config = self.conventions.stft
        num_frames = config.num_frames(len(noisy))
        synthesis, parts = Synthesis(len(noisy), config), []
        course = self.course(noisy, mixture_level)
        for start, stop in frame_blocks(num_frames):
            wide = max(0, start - self.halo), min(num_frames, stop + self.halo)
            spectra = stft_frames(noisy, *wide, config)
            parts.append(synthesis.add(course.estimate(spectra, wide, (start, stop))))
        return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Sequence:
    """A network over the sequence of a signal's frames.

    Attributes:
        frame_bytes: What a frame takes of memory, on its way through the layers.
        is_causal: Whether frames may come block by block; else all of them come as one.
        start: Returns what takes inputs [num_frames, num_inputs] from a signal's first frame on.
    """

    frame_bytes: int
    is_causal: bool
    start: Callable[[], Callable[[np.ndarray], np.ndarray]]

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the outputs of a whole signal, given its inputs [num_frames, num_inputs]."""
        return self.start()(inputs)


class Course:
    """One signal on its way through an expert over spectra, block by block.

    Args:
        expert: The expert.
        mixture_level: `mnn.features.level` of the mixture.
    """

    def __init__(self, expert: Expert, mixture_level: float) -> None:
        assert expert.conventions is not None, "a spectral expert"
        self._expert, self._conventions, self._level = expert, expert.conventions, mixture_level
        self._sequence = expert._sequence
        self._run = expert._run if self._sequence is None else self._sequence.start()
        # What a sequence has given of the frames from `_first` on that may be asked for again.
        self._given = np.zeros((0, expert.conventions.stft.num_bins), np.float32)
        self._first = 0

    def estimate(
        self, spectra: np.ndarray, wide: tuple[int, int], own: tuple[int, int]
    ) -> np.ndarray:
        """Returns the spectra of the speech, complex64 [frames of ``own``, num_bins].

        Args:
            spectra: Of the mixture, complex64 [frames of ``wide``, num_bins].
            wide: First frame and the frame after the last; `Expert.halo` more than ``own`` on
                either side, as far as the signal goes.
            own: Likewise; it may begin before the end of the block before, but not before that
                block, and leaves no gap to it.
        """
        frames = scaled_magnitudes(spectra, self._level, self._conventions.stft)
        inside = slice(own[0] - wide[0], own[1] - wide[0])
        if self._sequence is not None:
            output = self._of_sequence(frames, wide[0], own)
        else:
            output = self._run(network_input(frames, self._conventions))[inside]
        frames = frames[inside]
        if self._expert.kind == "magnitude":
            output = np.divide(output, frames, out=np.zeros_like(frames), where=frames > 0)
        return output * spectra[inside]

    def run_whole(self, noisy: np.ndarray) -> None:
        """Runs a sequence over a whole signal, float32 [num_samples], at once."""
        assert self._sequence is not None, "a sequence"
        config = self._conventions.stft
        num_frames = config.num_frames(len(noisy))
        num_bytes = num_frames * self._sequence.frame_bytes
        if num_bytes > MAX_BYTES:
            raise ValueError(
                f"{self._expert.source}: the network needs all frames of a signal at once, and "
                + too_large(num_bytes, f"{num_frames:,} frames")
            )
        frames = np.empty((num_frames, config.num_bins), np.float32)
        for start, stop in frame_blocks(num_frames):
            spectra = stft_frames(noisy, start, stop, config)
            frames[start:stop] = scaled_magnitudes(spectra, self._level, config)
        self._given = self._run(network_input(frames, self._conventions))

    def _of_sequence(self, frames: np.ndarray, first: int, own: tuple[int, int]) -> np.ndarray:
        """Returns the network's output, going on with frames that come for the first time.

        Args:
            frames: float32 [num_frames, num_bins], scaled magnitudes.
            first: Number of the first of them.
            own: As in `estimate`.
        """
        known = self._first + len(self._given)
        if own[1] > known:
            assert self._sequence is not None, "a sequence"
            inputs = network_input(frames, self._conventions)[known - first : own[1] - first]
            size = max(MAX_BYTES // self._sequence.frame_bytes, 1)
            if not self._sequence.is_causal:
                size = len(inputs)
            parts = [self._run(inputs[at : at + size]) for at in range(0, len(inputs), size)]
            self._given = np.concatenate([self._given[own[0] - self._first :], *parts])
            self._first = own[0]
        return self._given[own[0] - self._first : own[1] - self._first]


def open_expert(path: str | os.PathLike, name: str | None = None) -> Expert:
    """Opens a model file as an expert.

    Args:
        path: .h5, .icse or .onnx, possibly from a stranger.
        name: In tables; default: the file's name without its ending.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused, or it is not clear what it takes and gives.
    """
    path = Path(path)
    name = name or path.stem
    if path.suffix.lower() == ".onnx":
        return _onnx_expert(path, name)
    file = read_model_file(path)
    kind = file.kind
    if not kind:
        raise _question(file)
    if kind in SPECTRAL_KINDS:
        return _spectral_expert(file, kind, name)
    if kind == "autoencoder":
        raise ValueError(f"{path}: is an autoencoder, which judges experts; give it as --dae")
    return Expert(name, kind, path, file.sha256, None, _samples_of(Enhancer(file)))


def folder_expert(name: str, folder: Path) -> Expert:
    """Makes an expert of files that another tool has enhanced.

    A file belongs to an input as `speech.data.made.MadeFiles` says. Its rate may differ (it is
    resampled), its duration may not; one channel serves all channels of an input.

    Raises:
        ValueError: The folder is missing or holds no audio.
    """
    made = MadeFiles(folder)
    kept: list[Audio] = []  # the last file, for its other channels

    def run(noisy: np.ndarray, place: Place) -> np.ndarray:
        path = made.of(place.relative)
        if not kept or kept[0].path != path:
            kept[:] = [read_multichannel(path)]
        audio = kept[0]
        num_channels = audio.samples.shape[1]
        if num_channels > 1 and place.channel >= num_channels:
            raise ValueError(f"{path}: has no channel {place.channel + 1}")
        samples = at_16k(audio, min(place.channel, num_channels - 1))
        difference = len(samples) - len(noisy)
        if abs(difference) > LENGTH_TOLERANCE_SAMPLES:
            raise ValueError(
                f"{path}: {len(samples)} samples at 16 kHz, the noisy file {len(noisy)}"
            )
        return samples[: len(noisy)] if difference >= 0 else np.pad(samples, (0, -difference))

    return Expert(name, "folder", Path(folder), "", None, run)


def _question(file: ModelFile) -> ValueError:
    """Returns the error for a model that does not tell what it is; the message asks."""
    kernels = [layer.weights["kernel"] for layer in file.layers if "kernel" in layer.weights]
    shapes = f"{kernels[0].shape} to {kernels[-1].shape}" if kernels else "none"
    return ValueError(
        f"{file.path}: what does it take and give? Its speech_meta names no kind, and its kernels, "
        f"{shapes}, leave it open; write kind (waveform, complex_mask, mask or magnitude), and for "
        "spectra stft, context and input_scale, into its speech_meta "
        "(speech.net.keras_models.save_model)"
    )


def _spectral_expert(file: ModelFile, kind: str, name: str) -> Expert:
    if "kind" in file.meta:
        conventions = conventions_of(file.meta, kind, file.path)
    else:
        num_inputs = file.layers[0].config["batch_shape"][-1]
        conventions = Conventions(num_inputs // DEFAULT.num_bins)
    check_frames(file, conventions)
    return Expert(name, kind, file.path, file.sha256, conventions, *_runs(file))


def check_frames(file: ModelFile, conventions: Conventions) -> None:
    """Checks that a network works on frames, each by itself or in order, of some conventions.

    Raises:
        ValueError: It takes or gives something else.
    """
    *rest, num_inputs = file.layers[0].config["batch_shape"]
    with refusals(file.path):
        *axes, num_outputs = list(output_shapes(file.layers).values())[-1]
        keeps_time = len(rest) < 2 or not frames_more(file.layers)
    if len(rest) > 2 or axes != len(rest) * [None] or not keeps_time:
        raise ValueError(
            f"{file.path}: is a {file.kind} model, but does not give a frame for each frame that "
            "it takes; expected [batch, values], or [batch, frames, values] of equal length"
        )
    if (num_inputs, num_outputs) != (conventions.num_inputs, conventions.stft.num_bins):
        raise ValueError(
            f"{file.path}: takes {num_inputs} values and gives {num_outputs}, but its speech_meta "
            f"calls for {conventions.num_inputs} and {conventions.stft.num_bins}"
        )


def _runs(file: ModelFile) -> tuple[Callable[[np.ndarray], np.ndarray], Sequence | None]:
    """Returns what runs inputs [num_frames, num_inputs], and the network if it is a sequence's."""
    with contextlib.suppress(ValueError):
        return DenseNetwork(file.layers), None
    takes_frames = len(file.layers[0].config["batch_shape"]) == 2
    frame_bytes = max(keras_bytes(file.layers, 1), 1)
    if not takes_frames:
        with contextlib.suppress(ValueError):
            network = SequenceNetwork(file.layers)
            found = Sequence(frame_bytes, network.is_causal, network.start)
            return found.run, found
    function = keras_function(file.layers)
    if takes_frames:
        return function, None
    found = Sequence(frame_bytes, False, lambda: lambda inputs: function(inputs[np.newaxis])[0])
    return found.run, found


def _samples_of(enhancer: Enhancer) -> Callable[[np.ndarray, Place], np.ndarray]:
    return lambda noisy, place: enhancer.enhance(noisy)


class _OnnxEnhancer(Enhancer):
    """Runs an ONNX model over samples the way `speech.enhance` runs its own."""

    def __init__(self, path: Path) -> None:
        try:
            load(onnxruntime)
        except ImportError:
            raise ValueError(
                f"{path}: needs onnxruntime; run: pip install 'small-speech-enhancement[onnx]'"
            ) from None
        if not path.is_file():
            raise FileNotFoundError(2, "no such model file; check the path", str(path))
        try:
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own classes, derived from Exception
            raise ValueError(f"{path}: refused by onnxruntime ({schema.shown(error)})") from None
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = inputs[0].shape if inputs else []
        time = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        if len(time) == 2 and time[0] == 0:  # the batch is free too
            time = time[1:]
        others = [size for axis, size in enumerate(shape) if axis not in (time + [0])]
        if (
            len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)"
            or len(time) != 1 or any(size != 1 for size in others)
        ):  # fmt: skip
            raise ValueError(
                f"{path}: what does it take and give? Expected one float input of samples, [1, "
                f"time], [1, time, 1] or [1, 1, time], and one output; it takes "
                f"{_listed(f'{item.name} {item.shape}' for item in inputs)} and gives "
                f"{_listed(item.name for item in outputs)}"
            )
        rate = session.get_modelmeta().custom_metadata_map.get("sample_rate_hz", "16000")
        if rate != str(SAMPLE_RATE_HZ):
            raise ValueError(
                f"{path}: works at {shown(rate, 20)} Hz; only {SAMPLE_RATE_HZ} Hz is supported"
            )
        self.path = path
        self.engine = "onnx"
        self._session, self._name, self._shape = session, inputs[0].name, [1] * len(shape)
        self._shape[time[0]] = -1
        self._run = self._run_onnx

    def _run_onnx(self, signal: np.ndarray, threads: int | None) -> np.ndarray:
        given = signal.reshape(self._shape)
        try:
            (output,) = self._session.run(None, {self._name: given})
        except Exception as error:
            raise ValueError(f"{self.path}: onnxruntime failed ({schema.shown(error)})") from None
        output = np.asarray(output, np.float32).reshape(-1)
        if len(output) != len(signal):
            raise ValueError(
                f"{self.path}: gave {len(output)} samples for {len(signal)}; expected as many"
            )
        return output


def _listed(names: Iterable[str]) -> str:
    """Returns a few names that a file gives, in words."""
    found = [shown(name, 60) for name in names]
    return (", ".join(found[:3]) + (", ..." if found[3:] else "")) or "nothing"


def _onnx_expert(path: Path, name: str) -> Expert:
    enhancer = _OnnxEnhancer(path)
    return Expert(name, "onnx", path, sha256_of(path), None, _samples_of(enhancer))
