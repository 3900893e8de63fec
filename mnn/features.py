"""Spectra as networks see them, for training and for use: the one place where scales are set.

Input of a network: |STFT(x / r)| / sqrt(E), where r is the root mean square of the utterance
x (of the mixture for an expert, of the clean speech for an autoencoder) and E the energy of the
window. White noise thus has a mean square of 1 in every bin, and a gain on x changes nothing.
The paper does not say how its magnitudes were scaled. ``CONVENTIONS`` names this in the model file;
`conventions_of` refuses a file that was made otherwise.

An autoencoder scores the estimates of several experts of one mixture: all of them must be
divided by the same r, or their levels can't be compared. r is therefore an argument.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.stft import (
    DEFAULT,
    StftConfig,
    context_frames,
    magnitudes,
    neighbour_indices,
    stft,
)

#: Name of the scale of the inputs (see the module).
INPUT_SCALE = "utterance_rms"

#: Frames are kept in memory up to this size, beyond it in a file mapped into memory.
MAX_MEMORY_BYTES = 1 << 30

#: Frames of a piece that recurrent networks are trained on: 1.6 s.
PIECE_FRAMES = 100

_PIECE_SAMPLES = 1024


@dataclass(frozen=True)
class Conventions:
    """The form of the input of a network over spectra.

    Attributes:
        context: Frames joined to one input: 1 or 3.
        stft: Frames of the spectra.
    """

    context: int = 3
    stft: StftConfig = DEFAULT

    @property
    def num_inputs(self) -> int:
        """Values an input: 513 or 1539."""
        return self.context * self.stft.num_bins

    def to_json(self) -> dict[str, Any]:
        """Returns what goes into the ``speech_meta`` of a model file."""
        return {
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "stft": self.stft.to_json(),
            "context": self.context,
            "input_scale": INPUT_SCALE,
        }


def conventions_of(meta: Mapping[str, Any], kind: str, path: str | os.PathLike) -> Conventions:
    """Reads the conventions of a model file, which may be a stranger's.

    Args:
        meta: Its ``speech_meta``.
        kind: 'mask' or 'autoencoder': what is expected.
        path: Named in errors.

    Raises:
        ValueError: It is of another kind, rate or scale, or its frames make no sense.
    """
    rest = {"sample_rate_hz": SAMPLE_RATE_HZ, "input_scale": INPUT_SCALE}
    for key, expected in {"kind": kind, **rest}.items():
        if meta.get(key) != expected:
            raise ValueError(
                f"{path}: speech_meta says {key} {meta.get(key)!r:.60}, expected {expected!r}; "
                "choose a model made by python -m mnn.train, or write what it takes into its meta"
            )
    try:
        settings = meta.get("stft", {})
        config = StftConfig(**settings) if isinstance(settings, dict) else None
        context = meta.get("context")
        if config is None or type(context) is not int or not 1 <= context <= 99 or not context % 2:
            raise ValueError(f"stft {settings!r:.60} and context {context!r:.20} make no sense")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: speech_meta: {error}") from None
    return Conventions(context, config)


def inner_product(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the sum of products of two signals [num_samples].

    Short pieces are added up in the signals' own type, which is fast, and their sums in float64:
    for float32 the error is below 1e-6 of the sum of magnitudes. Where squares of such numbers
    would not fit in float32, all is float64.
    """
    size = _PIECE_SAMPLES
    whole = len(one) // size * size
    with np.errstate(over="ignore", invalid="ignore"):
        pieces = np.vecdot(one[:whole].reshape(-1, size), other[:whole].reshape(-1, size))
        total = float(np.sum(pieces, dtype=np.float64) + np.vecdot(one[whole:], other[whole:]))
    if 1e-20 < abs(total) < 1e30:
        return total
    return float(np.vecdot(one.astype(np.float64), other.astype(np.float64)))


def level(signal: np.ndarray) -> float:
    """Returns the root mean square of a signal [num_samples]; 1 for silence, which has none.

    Silence is also what is so soft that float32 does not hold its inverse.
    """
    rms = math.sqrt(inner_product(signal, signal) / len(signal)) if len(signal) else 0.0
    return rms if rms > np.finfo(np.float32).tiny else 1.0


def scaled_magnitudes(
    spectra: np.ndarray, signal_level: float, config: StftConfig = DEFAULT
) -> np.ndarray:
    """Returns |spectra| in the scale of the networks (see the module).

    Args:
        spectra: complex [num_frames, num_bins], of the signal as it is.
        signal_level: Its `level`, or that of the mixture from which it was estimated.
        config: Frames of the spectra.

    Returns:
        float32 [num_frames, num_bins].
    """
    scale = 1 / (signal_level * np.sqrt(config.window_energy))
    return magnitudes(spectra) * np.float32(scale)


def network_input(frames: np.ndarray, conventions: Conventions) -> np.ndarray:
    """Joins scaled magnitudes [num_frames, num_bins] to inputs [num_frames, num_inputs]."""
    return frames if conventions.context == 1 else context_frames(frames, conventions.context)


def mask_target(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """Returns the soft mask |s| / |s + n|, clipped to [0, 1] (docs/papers.md, eq. 2).

    Args:
        clean: complex spectra of the speech in the mixture, [num_frames, num_bins].
        noisy: Likewise of the mixture.

    Returns:
        float32 [num_frames, num_bins]; 0 where the mixture is 0.
    """
    speech, mixture = magnitudes(clean), magnitudes(noisy)
    # Compared before dividing: a denormal mixture would overflow the quotient.
    ratio = np.divide(speech, mixture, out=np.ones_like(speech), where=mixture > speech)
    return np.where(mixture > 0, ratio, np.float32(0))


@dataclass(frozen=True, eq=False)
class Frames:
    """Training examples: the frames of many utterances in one stack.

    Attributes:
        inputs: float32 [num_frames, num_bins], scaled magnitudes.
        targets: float32 [num_frames, num_bins]; for an autoencoder the inputs themselves.
        neighbours: int [num_frames, context], rows that make the input of each frame.
        lengths: int [num_utterances], frames of each, in their order.
    """

    inputs: np.ndarray
    targets: np.ndarray
    neighbours: np.ndarray
    lengths: np.ndarray

    #: Frames of an example.
    frames_each = 1

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.inputs)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs [len(rows), context * num_bins] and targets [len(rows), num_bins]."""
        joined = self.inputs[self.neighbours[rows]]
        return joined.reshape(len(rows), -1), self.targets[rows]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Training examples for networks over sequences: pieces of utterances, all of one length.

    Attributes:
        frames: The frames of the utterances.
        starts: int [num_pieces], the first row of each.
        frames_each: Frames of a piece.
    """

    frames: Frames
    starts: np.ndarray
    frames_each: int

    @classmethod
    def of(cls, frames: Frames, frames_each: int | None = None) -> Pieces:
        """Cuts utterances into pieces; the last of each overlaps the one before it.

        Args:
            frames: Of the utterances; those shorter than a piece are left out.
            frames_each: Of a piece; default: `PIECE_FRAMES`.

        Raises:
            ValueError: No utterance is that long.
        """
        frames_each = frames_each or PIECE_FRAMES
        ends = np.cumsum(frames.lengths)
        starts = [
            min(place, end - frames_each)
            for end, length in zip(ends, frames.lengths, strict=True)
            if length >= frames_each
            for place in range(end - length, end, frames_each)
        ]
        if not starts:
            raise ValueError(
                f"no utterance has the {frames_each} frames that a recurrent network needs; the "
                f"longest has {max(frames.lengths)}"
            )
        return cls(frames, np.array(starts), frames_each)

    def __len__(self) -> int:
        """Returns the number of pieces."""
        return len(self.starts)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs [len(rows), frames_each, context * num_bins] and targets likewise."""
        own = self.starts[rows][:, np.newaxis] + np.arange(self.frames_each)
        inputs, targets = self.frames.batch(own.ravel())
        shape = (len(rows), self.frames_each, -1)
        return inputs.reshape(shape), targets.reshape(shape)


def speech_frames(
    signals: Iterable[np.ndarray],
    conventions: Conventions,
    *,
    max_bytes: int = MAX_MEMORY_BYTES,
    folder: Path | None = None,
) -> Frames:
    """Computes the examples of an autoencoder.

    Args:
        signals: Clean utterances, float [num_samples] each; silent ones are left out.
        conventions: Of the network.
        max_bytes: Keep so much in memory, and what is more in a nameless file.
        folder: Where that file is made; default: where temporary files go.

    Raises:
        ValueError: No signal is left.
    """

    def spectra() -> Iterable[tuple[np.ndarray]]:
        for signal in signals:
            if np.any(signal):
                yield (_scaled(signal, conventions)[0],)

    (inputs,), lengths = _stack(spectra(), 1, conventions, max_bytes, folder)
    return Frames(inputs, inputs, neighbour_indices(lengths, conventions.context), lengths)


def mask_frames(
    mixtures: Iterable[tuple[np.ndarray, np.ndarray]],
    conventions: Conventions,
    *,
    max_bytes: int = MAX_MEMORY_BYTES,
    folder: Path | None = None,
) -> Frames:
    """Computes the examples of a mask network; the arguments are those of `speech_frames`.

    Args:
        mixtures: (noisy, clean), float [num_samples] each, clean as it is in the mixture.
        conventions: See there.
        max_bytes: See there.
        folder: See there.
    """

    def examples() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for noisy, clean in mixtures:
            if np.any(noisy):
                inputs, spectra = _scaled(noisy, conventions)
                clean = np.asarray(clean, np.float32)
                yield inputs, mask_target(stft(clean, conventions.stft), spectra)

    (inputs, targets), lengths = _stack(examples(), 2, conventions, max_bytes, folder)
    return Frames(inputs, targets, neighbour_indices(lengths, conventions.context), lengths)


def _scaled(signal: np.ndarray, conventions: Conventions) -> tuple[np.ndarray, np.ndarray]:
    spectra = stft(np.asarray(signal, np.float32), conventions.stft)
    return scaled_magnitudes(spectra, level(signal), conventions.stft), spectra


def _stack(
    parts: Iterable[tuple[np.ndarray, ...]],
    num_arrays: int,
    conventions: Conventions,
    max_bytes: int,
    folder: Path | None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Stacks parts [num_frames, num_bins] of each array, in memory or mapped from files."""
    stacks = [_Stack(max_bytes // num_arrays, folder) for _ in range(num_arrays)]
    lengths = []
    for arrays in parts:
        lengths.append(len(arrays[0]))
        for stack, array in zip(stacks, arrays, strict=True):
            stack.append(array)
    if not lengths:
        raise ValueError("no sound to train on: every utterance is silent, or there is none")
    return [stack.array(conventions.stft.num_bins) for stack in stacks], np.array(lengths)


class _Stack:
    """Grows in memory up to a bound, then in a nameless file that goes with the process."""

    def __init__(self, max_bytes: int, folder: Path | None) -> None:
        self._max_bytes = max_bytes
        self._folder = folder
        self._parts: list[np.ndarray] = []
        self._num_bytes = 0
        self._file: IO[bytes] | None = None

    def append(self, part: np.ndarray) -> None:
        self._parts.append(part)
        self._num_bytes += part.nbytes
        if self._num_bytes > self._max_bytes:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)
        for part in self._parts:
            part.tofile(self._file)
        self._parts, self._num_bytes = [], 0

    def array(self, num_columns: int) -> np.ndarray:
        if self._file is None:
            return np.concatenate(self._parts)
        self._spill()
        self._file.flush()
        mapped = np.memmap(self._file, np.float32, "r")
        self._file.close()
        return mapped.reshape(-1, num_columns)


def fingerprint(lines: Iterable[str]) -> str:
    """Returns a SHA-256 over lines that describe data, in any order: tells data sets apart."""
    text = "\n".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
