"""Chooses the devices that TensorFlow may use and says what was found."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from speech.base.lazy import keras, load
from speech.base.lazy import tensorflow as tf
from speech.base.runinfo import version_of

_LOGGER = logging.getLogger("speech")

#: cuDNN from this version on has no code for compute capability below 7.5 (GTX 10 series).
_CUDNN_WITHOUT_PASCAL = (9, 11)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Hides what TensorFlow's C++ code writes to file descriptor 2 while it starts up.

    No setting of TensorFlow turns these notes off. Exceptions come through all the same.
    """
    # Of several machines: one that is lost is an exception, and else a page of C++ errors too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if os.environ.get("TF_CONFIG") else "2")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def select_devices(gpu: str, *, several: bool = False) -> list[str]:
    """Makes only the GPUs asked for visible; call before Keras is imported.

    Args:
        gpu: '-1' for the CPU, '0' for the first GPU, '0,1' for several.
        several: Whether the command trains on several at once; else it says that it does not.

    Returns:
        Names of the GPUs that will be used; empty on the CPU. A GPU that is missing is announced,
        and the run goes on without it.

    Raises:
        ValueError: ``gpu`` is no list of numbers, or the GPU can't work with the cuDNN installed.
    """
    try:
        indices = [int(word) for word in gpu.split(",")]
    except ValueError:
        raise ValueError(f"--gpu is {gpu!r}; give -1, 0 or a list such as 0,1") from None
    if min(indices) < -1 or (-1 in indices and len(indices) > 1):
        raise ValueError(f"--gpu is {gpu!r}; give -1, 0 or a list such as 0,1")
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        try:
            load(keras)
        except ImportError as error:
            raise ValueError(
                f"KERAS_BACKEND is {os.environ['KERAS_BACKEND']!r}: {error}; install it, or unset "
                "KERAS_BACKEND"
            ) from None
        return []
    with quiet_start():
        found = tf.config.list_physical_devices("GPU")
    chosen = [found[index] for index in indices if 0 <= index < len(found)]
    tf.config.set_visible_devices(chosen, "GPU")
    if indices != [-1] and len(chosen) < len(indices):
        _LOGGER.warning(
            "GPU %s asked for, %d found: going on with %s",
            gpu, len(found), f"{len(chosen)} GPU" if chosen else "the CPU",
        )  # fmt: skip
    for device in chosen:
        tf.config.experimental.set_memory_growth(device, True)
        require_cudnn_for(tf.config.experimental.get_device_details(device))
    if len(chosen) > 1 and not several:
        _LOGGER.warning("training runs on the first of %d GPUs", len(chosen))
    return [device.name for device in chosen]


def require_cudnn_for(details: dict) -> None:
    """Checks that the installed cuDNN has code for a GPU.

    Args:
        details: What TensorFlow says of the GPU (``get_device_details``).

    Raises:
        ValueError: It is a Pascal card, and cuDNN has dropped those.
    """
    capability = details.get("compute_capability")
    if capability is None or tuple(capability) >= (7, 5):
        return
    version = version_of("nvidia-cudnn-cu12")
    if version is None:
        return
    if tuple(int(part) for part in version.split(".")[:2]) >= _CUDNN_WITHOUT_PASCAL:
        raise ValueError(
            f"{details.get('device_name', 'this GPU')} has compute capability "
            f"{'.'.join(map(str, capability))}, which cuDNN {version} no longer supports; run: "
            "pip install -r requirements-pascal.txt (or use --gpu -1)"
        )
