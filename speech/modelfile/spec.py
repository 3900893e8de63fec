"""The content of a model file: its layers, as data, and the meta data.

This is the lowest module of its package: all others in it import this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.stft import DEFAULT

#: Kinds of networks that enhance by themselves: from samples to samples, and over time and
#: frequency, from spectra to complex masks of them.
WAVEFORM = "waveform"
COMPLEX_MASK = "complex_mask"
_WORDS = {WAVEFORM: "one from waveform to waveform", COMPLEX_MASK: "one over time and frequency"}

#: Frames that a 'mask' network is believed to take at once, to tell shapes from chance.
_MAX_CONTEXT = 99


class ModelFileError(ValueError):
    """A model file was refused; the message is one line that names the file and the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerSpec:
    """One layer: settings that passed the exam, and its weights.

    Attributes:
        class_name: Key of ``LAYER_RULES``, a Keras class such as 'Conv1D'.
        name: Name of the layer, unique in its file.
        config: The settings that matter for the forward pass, and no others.
        weights: float32 arrays by name ('kernel', 'bias', 'gamma', 'moving_mean', ...). A recurrent
            layer has a 'recurrent_kernel' too; a Bidirectional has two of each array, whose names
            begin with 'forward_' and 'backward_'.
        inputs: Names of the layers it reads, in order. Layers that were read from a file name
            them all; the InputLayer has none. Code that builds a chain may leave them out: a layer
            without names reads the layer before it (see ``linked``).
    """

    class_name: str
    name: str
    config: dict[str, Any]
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The layer's name and class, as messages name it."""
        return f"layer {self.name!r} ({self.class_name})"

    @property
    def kernels(self) -> dict[str, np.ndarray]:
        """Its kernels, recurrent ones too, by name in ``weights``."""
        return {key: array for key, array in self.weights.items() if is_kernel(key)}


def is_kernel(key: str) -> bool:
    """Returns whether an array of this name in ``LayerSpec.weights`` multiplies what is read."""
    return key.endswith("kernel")


def kernel_name(layer: str, key: str) -> str:
    """Returns what a kernel is called in a network: 'conv1', or 'lstm1/recurrent_kernel'."""
    return layer if key == "kernel" else f"{layer}/{key}"


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFile:
    """A model file that passed the exam.

    Attributes:
        layers: The layers in the order of computation: the first is the InputLayer, each layer
            stands behind those it reads, and the last gives the output.
        meta: The ``speech_meta`` object, {} if the file has none.
        sha256: SHA-256 of the file's bytes, 64 hexadecimal digits.
        path: Where it was read.
    """

    layers: tuple[LayerSpec, ...]
    meta: dict[str, Any]
    sha256: str
    path: Path

    @property
    def num_parameters(self) -> int:
        """Number of stored weights, including those that training does not change."""
        return sum(array.size for layer in self.layers for array in layer.weights.values())

    @property
    def kind(self) -> str:
        """The kind of input and output (``speech.modelfile.meta``), as ``speech_meta`` states it.

        If the file does not state it, the shapes of the kernels decide between 'waveform' and
        'mask'; '' if they fit neither.
        """
        stated = self.meta.get("kind")
        if not stated:
            return kind_of_shapes(self.layers)
        return stated if isinstance(stated, str) else show(stated)

    def require_kind(self, *kinds: str, fix: str = "choose another model") -> str:
        """Returns the kind of a network that is of one of these kinds and works at 16 kHz.

        Args:
            kinds: `WAVEFORM`, `COMPLEX_MASK` or both.
            fix: What one does about a file of another kind, the end of the message.

        Raises:
            ModelFileError: The network is of another kind or sample rate, or is not of the kind
                that its file states; the message names the file.
        """
        kind = self.kind
        if kind not in kinds:
            what = f"kind {show(self.meta.get('kind', kind))}"
            wanted = " or ".join(_WORDS[kind] for kind in kinds)
            raise ModelFileError(
                f"{self.path}: is a network of {what if kind else 'unknown kind'}, not {wanted}; "
                f"{fix}"
            )
        if kind == WAVEFORM and kind_of_shapes(self.layers) != kind:
            raise ModelFileError(
                f"{self.path}: says that its kind is {kind!r}, but it does not take and give one "
                f"channel; {fix}"
            )
        rate_hz = self.meta.get("sample_rate_hz", SAMPLE_RATE_HZ)
        if rate_hz != SAMPLE_RATE_HZ:
            raise ModelFileError(
                f"{self.path}: trained at {show(rate_hz)} Hz; only {SAMPLE_RATE_HZ} Hz is supported"
            )
        return kind

    def require_waveform(self, fix: str = "choose another model") -> str:
        """Returns 'waveform', as `require_kind` of that kind alone does."""
        return self.require_kind(WAVEFORM, fix=fix)

    @property
    def is_chain(self) -> bool:
        """Whether each layer reads the one before it and nothing else."""
        return is_chain(self.layers)

    def require_chain(self, what: str) -> tuple[LayerSpec, ...]:
        """Returns the layers of a chain over time; see the function of this name.

        Raises:
            ModelFileError: The network is another one; the message names the file.
        """
        with refusals(self.path):
            return require_chain(self.layers, what)


def kind_of_shapes(layers: Sequence[LayerSpec]) -> str:
    """Returns the kind that the shapes of the kernels tell.

    'waveform': from a convolution over one channel to a kernel that gives one channel. 'mask':
    Dense and recurrent layers from an odd number of frames of 513 bins to the 513 bins of a Dense
    layer, a logistic function last. '': anything else.
    """
    kernels = [next(iter(layer.kernels.values())) for layer in layers if layer.kernels]
    if not kernels or len([layer for layer in layers if layer.kernels][-1].kernels) > 1:
        return ""
    first, last = kernels[0], kernels[-1]
    if first.ndim == 3 and last.ndim in (2, 3):  # Dense takes each frame by itself
        return "waveform" if first.shape[1] == last.shape[-1] == 1 else ""
    if any(kernel.ndim != 2 for kernel in kernels):
        return ""
    context, rest = divmod(first.shape[0], DEFAULT.num_bins)
    fits = not rest and context % 2 and context <= _MAX_CONTEXT
    if not fits or last.shape[1] != DEFAULT.num_bins:
        return ""
    final = next(layer for layer in reversed(layers) if layer.class_name != "Dropout")
    return "mask" if final.config.get("activation") == "sigmoid" else ""


def linked(layers: Iterable[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Returns layers that all name their inputs, the InputLayer excepted.

    Raises:
        ModelFileError: A layer of a graph names no inputs.
    """
    layers = tuple(layers)
    chain = is_chain(layers)
    result = []
    for before, layer in zip((None, *layers), layers, strict=False):
        if before is not None and not layer.inputs and layer.class_name != "InputLayer":
            if not chain:
                raise ModelFileError(
                    f"layer {layer.name!r} ({layer.class_name}) of a graph names no inputs, "
                    "expected the names of the layers it reads (LayerSpec.inputs)"
                )
            layer = dataclasses.replace(layer, inputs=(before.name,))
        result.append(layer)
    return tuple(result)


def is_chain(layers: Sequence[LayerSpec]) -> bool:
    """Returns whether each layer reads the one before it and nothing else."""
    return _first_off_chain(layers) is None


def require_chain(layers: Sequence[LayerSpec], what: str) -> tuple[LayerSpec, ...]:
    """Returns the layers of a chain over time, for what cannot deal with another network yet.

    Args:
        layers: Any network.
        what: Who needs a chain, the subject of the message, such as 'the export to ONNX'.

    Raises:
        ModelFileError: A layer reads something else than the one before it, or the input has an
            axis of bands beside time and channels.
    """
    layer = _first_off_chain(layers)
    if layer is not None:
        reads = " and ".join(repr(name) for name in layer.inputs[:2]) or "nothing"
        raise ModelFileError(
            f"layer {layer.name!r} ({layer.class_name}) reads {reads}; {what} takes chains only, "
            "in which each layer reads the one before it"
        )
    shape = layers[0].config.get("batch_shape", []) if layers else []
    if len(shape) > 3:
        raise ModelFileError(
            f"the input has the shape {show(shape)}; {what} takes networks over "
            "(batch, time, channels) or (batch, channels) only"
        )
    return tuple(layers)


def _first_off_chain(layers: Sequence[LayerSpec]) -> LayerSpec | None:
    names = [(layer.name,) for layer in layers]
    for before, layer in zip([(), *names], layers, strict=False):
        if layer.inputs not in ((), before):
            return layer
    return None


def sha256_of_weights(layers: Sequence[LayerSpec]) -> str:
    """Returns the SHA-256 of all weights of a network, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for layer in layers:
        for name, array in layer.weights.items():
            digest.update(f"{layer.name} {name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Puts the file's name in front of every ``ModelFileError`` raised in the block."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None


def show(value: Any) -> str:
    """Returns a short repr: what a stranger wrote must not flood or drive a terminal."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
