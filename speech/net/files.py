"""Saves networks that are no simple chain of layers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import keras

from speech import weights
from speech.files import atomic_path
from speech.modelfile import META_ATTRIBUTE, ModelFileError


def save_model(
    model: keras.Model, path: str | os.PathLike, meta: Mapping[str, Any] | None = None
) -> None:
    """Saves a model with its ``speech_meta``, atomically; see `speech.weights.save_model`."""
    try:
        weights.save_model(model, path, meta)
    except ModelFileError:
        import h5py

        with atomic_path(path) as temporary:
            keras.src.legacy.saving.legacy_h5_format.save_model_to_hdf5(
                model, str(temporary), include_optimizer=False
            )
            with h5py.File(temporary, "r+") as file:
                file.attrs[META_ATTRIBUTE] = json.dumps(meta or {}, allow_nan=False)
