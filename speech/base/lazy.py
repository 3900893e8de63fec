"""The lazy loader: packages that are slow to import, or not always there, and modules on Keras.

``from speech.base.lazy import keras`` costs nothing; the package is imported when something of it
is first used. A command that only prints its help, or refuses a value, never waits for it, and
what has to be set before Keras and TensorFlow start can still be set. `load` imports one now::

    with quiet_start():
        load(keras)

A module of ours that defines layers or models for Keras imports it when it is imported itself.
A light module has it late, under the same name::

    if TYPE_CHECKING:
        from speech.net import constraints
    else:
        constraints = lazy.module("speech.net.constraints")

All other imports stand at the top of a file (``tests/test_architecture.py``).
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio as asyncio

    import constriction as constriction
    import cryptography as cryptography
    import dask as dask
    import distributed as distributed
    import filelock as filelock
    import h5py as h5py
    import jinja2 as jinja2
    import joblib as joblib
    import keras as keras
    import kmeans1d as kmeans1d
    import matplotlib as matplotlib
    import matplotlib.figure
    import matplotlib.ticker
    import msgspec as msgspec
    import onnx as onnx
    import onnxruntime as onnxruntime
    import pesq as pesq
    import PIL as PIL
    import PIL.Image
    import pyroomacoustics as pyroomacoustics
    import pystoi as pystoi
    import scipy as scipy
    import sounddevice as sounddevice
    import soundfile as soundfile
    import soxr as soxr
    import tensorflow as tensorflow
    import torch as torch
    import tqdm as tqdm
    from keras import ops as ops


class _Lazy(types.ModuleType):
    """Stands for a package or a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":  # what tools ask of any object
            raise AttributeError(f"{self.__name__} is not loaded, so {name} is not known")
        loaded = importlib.import_module(self.__name__)
        try:
            return getattr(loaded, name)
        except AttributeError as error:
            try:  # a part of the package that nobody has imported so far
                return importlib.import_module(f"{self.__name__}.{name}")
            except ModuleNotFoundError:
                raise error from None

    def __reduce__(self) -> tuple[Any, ...]:
        return module, (self.__name__,)


def module(name: str) -> Any:
    """Returns a package or a module that is imported when something of it is first used.

    Args:
        name: The full name, such as 'speech.net.constraints'.
    """
    return _Lazy(name)


def load(package: types.ModuleType) -> None:
    """Imports what a name of this loader stands for now.

    Raises:
        ImportError: It is not installed, or does not load.
    """
    importlib.import_module(package.__name__)


if not TYPE_CHECKING:
    asyncio = module("asyncio")
    constriction = module("constriction")
    cryptography = module("cryptography")
    dask = module("dask")
    distributed = module("distributed")
    filelock = module("filelock")
    h5py = module("h5py")
    jinja2 = module("jinja2")
    joblib = module("joblib")
    keras = module("keras")
    kmeans1d = module("kmeans1d")
    matplotlib = module("matplotlib")
    msgspec = module("msgspec")
    onnx = module("onnx")
    ops = module("keras.ops")
    onnxruntime = module("onnxruntime")
    pesq = module("pesq")
    PIL = module("PIL")
    pyroomacoustics = module("pyroomacoustics")
    pystoi = module("pystoi")
    scipy = module("scipy")
    sounddevice = module("sounddevice")
    soundfile = module("soundfile")
    soxr = module("soxr")
    tensorflow = module("tensorflow")
    torch = module("torch")
    tqdm = module("tqdm")
