"""The ``speech_meta`` object of a model file: strict JSON, and the conventions of mask networks.

The attribute ``speech_meta`` (optional, at most 1 MiB) holds one JSON object on what the network
is for. All keys are optional, and readers ignore keys they do not know:

* ``kind``: what goes in and comes out: 'waveform' (samples in, samples out), or, over spectra,
  'mask' and 'autoencoder', which add ``stft``, ``context`` and ``input_scale`` (``mnn.features``),
  or 'complex_mask', which must come with ``sample_rate_hz``, ``stft``, ``power`` and ``features``
  (``MaskConventions``, ``speech.net.timefrequency``).
* ``sample_rate_hz``: the rate the network was trained at.
* ``created_by``: the command that wrote the file.
* ``training``: a summary such as epochs, seed, data hash and validation error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from speech.modelfile.exam import examine, model_config_of
from speech.modelfile.rules import Check, Frames, a_number, an_integer, one_of
from speech.modelfile.spec import COMPLEX_MASK, LayerSpec, ModelFileError, show
from speech.sound.stft import StftConfig

META_ATTRIBUTE = "speech_meta"
MAX_META_BYTES = 1 << 20
MAX_JSON_DEPTH = 50
MAX_JSON_PARTS = 100_000

#: What a network of the kind `COMPLEX_MASK` reads of each bin.
MASK_FEATURES = ("real", "imaginary", "magnitude")


@dataclasses.dataclass(frozen=True)
class MaskConventions:
    """Input and output of networks of the kind 'complex_mask' (``speech.net.timefrequency``).

    Attributes:
        sample_rate_hz: Rate of the signal.
        stft: Frames of the spectrum.
        power: Exponent of the compression of the spectrum, above 0 and at most 1.
    """

    sample_rate_hz: int
    stft: StftConfig
    power: float

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> MaskConventions:
        """Reads the conventions in a ``speech_meta`` object.

        Raises:
            ModelFileError: One of them is missing, or makes no sense.
        """
        checks: dict[str, Check] = {
            "kind": one_of(COMPLEX_MASK),
            "sample_rate_hz": an_integer(1, 1_000_000),
            "stft": _an_stft,
            "power": a_number(1e-3, 1.0),
            "features": one_of(list(MASK_FEATURES)),
        }
        found = {}
        for key, check in checks.items():
            if key not in meta:
                raise ModelFileError(
                    f"'{META_ATTRIBUTE}' lacks {key!r}, which a {COMPLEX_MASK!r} network needs; "
                    "save it with the conventions that it was trained with"
                )
            try:
                found[key] = check(meta[key])
            except ValueError as error:
                raise ModelFileError(
                    f"'{META_ATTRIBUTE}': {key!r} is {show(meta[key])}, expected {error}"
                ) from None
        return cls(found["sample_rate_hz"], found["stft"], found["power"])


def _an_stft(value: Any) -> StftConfig:
    match value:
        case {"frame": int(), "hop": int(), "window": str(), **rest} if not rest:
            with contextlib.suppress(ValueError):
                return StftConfig(**value)
    raise ValueError(
        "a frame, a hop that divides it and a window, such as "
        '{"frame": 512, "hop": 256, "window": "sqrt_hann"}'
    )


def check_conventions(layers: Sequence[LayerSpec], meta: Mapping[str, Any]) -> None:
    """Checks that a network of the kind 'complex_mask' is one.

    Args:
        layers: Layers that passed the exam, in order.
        meta: The ``speech_meta`` object; of another kind, nothing is checked.

    Raises:
        ModelFileError: A convention is missing or makes no sense, or the network takes or gives
            something else than its conventions say.
    """
    if meta.get("kind") != COMPLEX_MASK:
        return
    num_bins = MaskConventions.of(meta).stft.frame // 2
    expected = [None, None, num_bins, len(MASK_FEATURES)]
    if layers[0].config["batch_shape"] != expected:
        raise ModelFileError(
            f"the input has the shape {show(layers[0].config['batch_shape'])}, but "
            f"'{META_ATTRIBUTE}' calls for {expected}: batch, frames, bins, features"
        )
    shape = examine(model_config_of(layers))[-1][2]
    if shape != (None, Frames(), num_bins, 2):
        raise ModelFileError(
            f"the output has the shape {show(shape[1:])}, but '{META_ATTRIBUTE}' calls for "
            f"(frames, {num_bins}, 2): a complex number per bin"
        )


def meta_text(meta: Mapping[str, Any]) -> str:
    """Returns the ``speech_meta`` object as JSON text; ModelFileError if it is none."""
    try:
        text = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"the meta data is not plain JSON ({error})") from None
    if len(text.encode()) > MAX_META_BYTES:
        raise ModelFileError(f"the meta data is {len(text):,} bytes, at most {MAX_META_BYTES:,}")
    return text


def parse_json(text: str, what: str) -> Any:
    """Parses strict JSON.

    Raises:
        ModelFileError: Not JSON, nested too deeply, of too many parts, or with NaN or an infinity.
    """
    num_parts = text.count("[") + text.count("{")  # each takes far more memory than text
    if num_parts > MAX_JSON_PARTS:
        raise ModelFileError(
            f"{what} holds {num_parts:,} lists and objects, expected at most {MAX_JSON_PARTS:,}"
        )
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{what} is not valid JSON ({error}), save it again") from None
    _check_depth(value, what)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _check_depth(value: Any, what: str) -> None:
    """Refuses what would exhaust the stack of whoever walks through it."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        lists = [list(item.values()) if isinstance(item, dict) else item
                 for item in level if isinstance(item, dict | list)]  # fmt: skip
        level = list(itertools.chain.from_iterable(lists))
        if not level:
            return
    raise ModelFileError(f"{what} is not valid JSON (nested too deeply), save it again")
