"""Reads a model file of either format; the first bytes tell which."""

from __future__ import annotations

import os

from speech.modelfile.h5 import read_h5
from speech.modelfile.icse import is_compact, read_compact
from speech.modelfile.spec import ModelFile


def read_model_file(path: str | os.PathLike) -> ModelFile:
    """Reads a model file as data.

    Args:
        path: A legacy Keras .h5 file, or a packed one (``speech.modelfile.icse``); the first bytes
            tell.

    Returns:
        Layers, weights and meta data that passed every check of the module docstring.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: The file is refused; the message says why and what to do.
    """
    return read_compact(path) if is_compact(path) else read_h5(path)
