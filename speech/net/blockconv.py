"""Convolution of long signals with short kernels on a CPU: the C kernels, compiled and bound.

``kernels/blockconv.c`` says how it works. It is compiled with the machine's own C compiler when
first needed (a second or two) and kept in the user's cache folder. Where there is no compiler,
:func:`is_available` is False and callers use the backend's convolution instead.

Conventions: signals are float32 [time, channels], C-contiguous; kernels are float32
[taps, in, out] and are correlated as in Keras: ``y[t] = bias + sum_k x[t + k - pad] @ w[k]``.
Results do not depend on how often a function was called; :func:`filter_gradient` sums in as many
parts as there are threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech.base.files import sha256_of

_LOGGER = logging.getLogger("speech")
_KERNELS = Path(__file__).parent / "kernels"
_SOURCES = (
    _KERNELS / "blockconv.c",
    _KERNELS / "blocklanes.c",
    _KERNELS / "tape.c",
    _KERNELS / "maskloss.c",
    _KERNELS / "denoise.c",
)
_HEADERS = (_KERNELS / "transform.h", _KERNELS / "denoise.h")
_LANES = 16

#: More than any machine has cores; OpenMP ends the process when it can't start what is asked for.
MAX_THREADS = 1024

#: Never -ffast-math: linking with it switches off subnormal numbers in the whole process.
_FLAGS = ("-O3", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
#: Tried in turn; the last one is the plainest.
_VARIANTS = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())


class _Plan(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_int),
        ("leaf", ctypes.c_int),
        ("twiddle", ctypes.c_void_p),
        ("position", ctypes.c_void_p),
    ]


class _Source(ctypes.Structure):
    _fields_ = [
        ("values", ctypes.c_void_p),
        ("inputs", ctypes.c_void_p),
        ("length", ctypes.c_int64),
        ("channels", ctypes.c_int),
        ("mode", ctypes.c_int),
        ("slope", ctypes.c_float),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("gain", ctypes.c_void_p),
        ("tilt", ctypes.c_void_p),
        ("level", ctypes.c_void_p),
    ]


class _Sink(ctypes.Structure):
    _fields_ = [
        ("values", ctypes.c_void_p),
        ("length", ctypes.c_int64),
        ("channels", ctypes.c_int),
        ("mode", ctypes.c_int),
        ("slope", ctypes.c_float),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    ]


def kernels() -> ctypes.CDLL:
    """Returns the loaded kernels.

    Raises:
        RuntimeError: They can't be used; ask :func:`is_available` first.
    """
    found = library()
    if found is None:
        raise RuntimeError("the C kernels can't be used here; ask is_available() first")
    return found


@functools.cache
def library() -> ctypes.CDLL | None:
    """Compiles (once per machine) and loads the kernels; None, with the reason logged, if not."""
    if os.environ.get("SPEECH_NO_C_KERNELS"):
        return None
    compiler = (
        shlex.split(os.environ.get("CC", ""))
        or [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))][:1]
    )
    if not compiler:
        _LOGGER.info(
            "no C compiler found: convolutions run on the Keras backend, several times slower"
        )
        return None
    source = b"".join(path.read_bytes() for path in (*_SOURCES, *_HEADERS))
    reason = ""
    for variant in _VARIANTS:
        key = hashlib.sha256(
            source + repr((compiler, _FLAGS, variant, platform.machine(), _processor())).encode()
        ).hexdigest()[:16]
        try:
            built = _built(_cache_folder(), f"blockconv-{key}", compiler, variant)
            # Threads that wait spin for a moment only: on a busy machine they would keep the one
            # they wait for off its core. Read by the OpenMP library when it is loaded.
            os.environ.setdefault("GOMP_SPINCOUNT", "10000")
            found = ctypes.CDLL(str(built))
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            continue
        for name in ("kernel_spectra", "convolve", "filter_gradient", "run_lanes", "run_phases",
                     "compressed_spectra", "mask_loss"):  # fmt: skip
            getattr(found, name).restype = ctypes.c_int
        return found
    _LOGGER.info(
        "the C kernels did not compile (%s): using the Keras backend", reason.strip()[:200]
    )
    return None


def _built(folder: Path, stem: str, compiler: list[str], variant: tuple[str, ...]) -> Path:
    """Returns the compiled kernels; the name of the file contains a hash of its bytes.

    A file that has been damaged, cut or exchanged since is removed and compiled again: loading it
    would end the process, or compute something else.
    """
    for path in folder.glob(f"{stem}-*.so"):
        if path.name == _name_of_built(stem, path):
            return path
        with contextlib.suppress(OSError):
            path.unlink()
    return _compile(compiler, variant, folder, stem)


def _name_of_built(stem: str, path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        return ""
    return f"{stem}-{sha256_of(path)[:32]}.so"


def _compile(compiler: list[str], variant: tuple[str, ...], cache: Path, stem: str) -> Path:
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        built = Path(folder) / f"{stem}.so"
        subprocess.run(
            [*compiler, *_FLAGS, *variant, *map(str, _SOURCES), "-o", str(built), "-lm"],
            check=True,
            capture_output=True,
            text=True,
        )
        path = cache / _name_of_built(stem, built)
        os.replace(built, path)
        return path


def _cache_folder() -> Path:
    folders = [Path(tempfile.gettempdir()) / f"icse-mnn-{os.getuid()}"]
    with contextlib.suppress(RuntimeError):  # a user without a home
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folders.insert(0, Path(base) / "icse-mnn")
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # Code is loaded from here: it must be ours alone.
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    raise OSError("no folder of ours to keep the compiled kernels in; set XDG_CACHE_HOME")


def _processor() -> str:
    """Returns what tells processors apart: -march=native code must not move between kinds."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line for line in text.splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def is_available() -> bool:
    """Returns whether the C kernels can be used on this machine."""
    return sys.platform != "win32" and library() is not None


def default_threads() -> int:
    """Returns the number of cores that this process may use (or ``SPEECH_THREADS``)."""
    asked = os.environ.get("SPEECH_THREADS")
    if asked:
        if not asked.isdecimal() or not 1 <= int(asked) <= MAX_THREADS:
            raise ValueError(
                f"SPEECH_THREADS is {asked!r}; give a whole number from 1 to {MAX_THREADS}"
            )
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads(asked: int | None) -> int:
    """Returns the number asked for, by default that of `default_threads`.

    Raises:
        ValueError: It is out of range, for which OpenMP would end the process.
    """
    if asked is None:
        return default_threads()
    if not 1 <= asked <= MAX_THREADS:
        raise ValueError(f"threads is {asked}; give a whole number from 1 to {MAX_THREADS}")
    return asked


def padded(num_channels: int) -> int:
    """Returns ``num_channels`` rounded up to whole SIMD vectors."""
    return -(-num_channels // _LANES) * _LANES


def pad_channels(values: np.ndarray) -> np.ndarray:
    """Returns a float32 [channels] vector filled up with zeros to whole SIMD vectors."""
    filled = np.zeros(padded(len(values)), np.float32)
    filled[: len(values)] = values
    return filled


@functools.cache
def plan(size: int) -> _Plan:
    """Returns the tables of a transform of ``size``, a power of two."""
    twiddles = []
    stage = size
    while stage > 8:
        angle = -2j * np.pi / stage * np.outer(np.arange(stage // 4), (1, 2, 3))
        twiddles.append(np.exp(angle).ravel())
        stage //= 4
    twiddle = np.concatenate(twiddles).astype(np.complex64)
    position = np.empty(size, np.int32)
    position[_frequency_order(size)] = np.arange(size, dtype=np.int32)
    tables = _Plan(size, stage, twiddle.ctypes.data, position.ctypes.data)
    tables.arrays = (twiddle, position)  # they live as long as the pointers to them
    return tables


def _frequency_order(size: int) -> np.ndarray:
    """Returns the frequencies in the order in which the forward transform leaves them."""
    if size <= 2:
        return np.arange(size)
    inner = _frequency_order(size // 4)
    return (np.arange(4)[:, None] + 4 * inner[None, :]).ravel()


def block_size(taps: int) -> int:
    """Returns the window length for kernels of ``taps`` samples: a power of two, from 2 taps on."""
    return max(16, 1 << (2 * taps - 1).bit_length())


@dataclass(frozen=True)
class Spectra:
    """Kernels [taps, in, out] in the form that :func:`convolve` multiplies with."""

    values: np.ndarray
    taps: int
    in_channels: int
    out_channels: int

    @classmethod
    def of(cls, kernel: np.ndarray, threads: int | None = None) -> Spectra:
        """Transforms a float32 kernel [taps, in, out]."""
        kernel = np.ascontiguousarray(kernel, np.float32)
        if kernel.ndim != 3 or 0 in kernel.shape:
            raise ValueError(f"a kernel must be [taps, in, out], received shape {kernel.shape}")
        taps, num_in, num_out = kernel.shape
        tables = plan(block_size(taps))
        values = np.empty((tables.size // 2 + 1, num_in, 2, padded(num_out)), np.float32)
        _check(
            kernels().kernel_spectra(
                ctypes.byref(tables),
                ctypes.c_void_p(kernel.ctypes.data),
                taps,
                num_in,
                num_out,
                ctypes.c_void_p(values.ctypes.data),
                num_threads(threads),
            )
        )
        return cls(values, taps, num_in, num_out)


@dataclass(frozen=True)
class Activation:
    """``leaky(scale x + shift)`` per channel: a normalisation with its LeakyReLU.

    Attributes:
        scale: float32 [padded channels].
        shift: float32 [padded channels].
        slope: Factor of negative values; 1.0 is the identity.
        mean: float32 [padded channels], what the normalisation subtracted; gradients only.
    """

    scale: np.ndarray
    shift: np.ndarray
    slope: float
    mean: np.ndarray | None = None


@dataclass(frozen=True)
class Signal:
    """The input of a convolution: rows [time, channels], optionally through a function of each.

    Attributes:
        values: float32 [time, channels].
        activation: Read ``activation(values)``.
        inputs: float32 [time, channels]: ``values`` are then gradients with respect to
            ``activation(inputs)`` and what is read is the gradient with respect to ``inputs``:
            ``gain leaky'(...) values + tilt inputs + level``.
        gain: float32 [padded channels]; likewise tilt and level.
    """

    values: np.ndarray
    activation: Activation | None = None
    inputs: np.ndarray | None = None
    gain: np.ndarray | None = None
    tilt: np.ndarray | None = None
    level: np.ndarray | None = None

    def as_source(self) -> _Source:
        """Returns the C view of this signal, which lives as long as this object."""
        source = _Source(
            values=_address(self.values), length=len(self.values), channels=self.values.shape[1]
        )
        if self.activation is not None:
            source.mode = 1 if self.inputs is None else 2
            source.slope = self.activation.slope
            source.scale = _address(self.activation.scale)
            source.shift = _address(self.activation.shift)
        if self.inputs is not None:
            source.inputs = _address(self.inputs)
            source.gain = _address(self.gain)
            source.tilt = _address(self.tilt)
            source.level = _address(self.level)
        return source


def convolve(
    signal: Signal | np.ndarray,
    spectra: Spectra,
    *,
    pad: int,
    bias: np.ndarray | None = None,
    out: np.ndarray | None = None,
    moments: bool = False,
    gradient_of: tuple[np.ndarray, Activation] | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Convolves ``signal`` with kernels: ``y[t] = bias + sum_k x[t + k - pad] @ w[k]``.

    Args:
        signal: float32 [time, in], or a :class:`Signal`.
        spectra: The kernels.
        pad: Zeros before the first sample; the number of outputs is ``len(out)``, by default the
            number of inputs.
        bias: float32 [padded out].
        out: float32 [time, out], written in place.
        moments: Also take, per block of outputs, the sum and the squared deviations from the
            block's own mean (see :func:`merge_moments`).
        gradient_of: ``(inputs, activation)``: the outputs are gradients with respect to
            ``activation(inputs)``; also take, per block, the sums of ``d = leaky' y`` and of
            ``d (inputs - activation.mean)``.
        threads: Default: all cores.

    Returns:
        The outputs float32 [time, out] and the sums float32 [blocks, 2, padded out] or None.
    """
    signal = signal if isinstance(signal, Signal) else Signal(signal)
    _require_signal("signal", signal.values, spectra.in_channels)
    if out is None:
        out = np.empty((len(signal.values), spectra.out_channels), np.float32)
    _require_signal("out", out, spectra.out_channels)
    tables = plan(block_size(spectra.taps))
    hop = tables.size - spectra.taps + 1
    sums = None
    sink = _Sink(values=_address(out), length=len(out), channels=spectra.out_channels)
    sink.bias = _address(bias)
    if moments or gradient_of is not None:
        # Blocks come in pairs; the C code touches only those that hold outputs.
        num_blocks = 2 * (-(-len(out) // (2 * hop)))
        sums = np.zeros((num_blocks, 2, padded(spectra.out_channels)), np.float32)
        sink.sums = _address(sums)
        sink.mode = 1
    if gradient_of is not None:
        inputs, activation = gradient_of
        _require_signal("inputs", inputs, spectra.out_channels)
        sink.mode = 2
        sink.slope = activation.slope
        sink.inputs = _address(inputs)
        sink.scale = _address(activation.scale)
        sink.shift = _address(activation.shift)
        sink.mean = _address(activation.mean)
    if len(out):
        source = signal.as_source()
        _check(
            kernels().convolve(
                ctypes.byref(tables),
                ctypes.byref(source),
                ctypes.c_void_p(_address(spectra.values)),
                spectra.taps,
                pad,
                ctypes.byref(sink),
                num_threads(threads),
            )
        )
    return out, sums


def filter_gradient(
    signal: Signal | np.ndarray,
    gradient: Signal | np.ndarray,
    *,
    taps: int,
    pad: int,
    threads: int | None = None,
) -> np.ndarray:
    """Returns ``sum_t x[t + k - pad, in] g[t, out]``: float32 [taps, in, out].

    Args:
        signal: What the convolution read: float32 [time, in], or a :class:`Signal`.
        gradient: Gradient with respect to its outputs: float32 [time, out], or a :class:`Signal`.
        taps: Kernel size.
        pad: Zeros that the convolution put before the first sample.
        threads: Default: all cores.
    """
    signal = signal if isinstance(signal, Signal) else Signal(signal)
    gradient = gradient if isinstance(gradient, Signal) else Signal(gradient)
    num_in, num_out = signal.values.shape[1], gradient.values.shape[1]
    _require_signal("signal", signal.values, num_in)
    _require_signal("gradient", gradient.values, num_out)
    threads = num_threads(threads)
    tables = plan(block_size(taps))
    result = np.empty((taps, num_in, num_out), np.float32)
    work = _workspace(threads * (tables.size // 2 + 1) * num_in * 2 * padded(num_out))
    source, gradient_source = signal.as_source(), gradient.as_source()
    _check(
        kernels().filter_gradient(
            ctypes.byref(tables),
            ctypes.byref(source),
            ctypes.byref(gradient_source),
            taps,
            pad,
            ctypes.c_void_p(result.ctypes.data),
            ctypes.c_void_p(work.ctypes.data),
            threads,
        )
    )
    return result


def merge_moments(sums: np.ndarray, num_samples: int, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance float64 [padded channels] from :func:`convolve`'s block moments."""
    hop = block_size(taps) - taps + 1
    counts = np.clip(num_samples - hop * np.arange(len(sums)), 0, hop)[:, None]
    return pooled_moments(sums[:, 0], sums[:, 1], counts)


def pooled_moments(
    sums: np.ndarray, deviations: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pools moments of parts as Chan, Golub and LeVeque do: no cancellation however large the mean.

    Args:
        sums: [parts, channels], the sum of each part.
        deviations: [parts, channels], its sum of squared deviations from its own mean.
        counts: int [parts, 1], its number of samples.

    Returns:
        Mean and variance, float64 [channels].
    """
    num_samples = max(counts.sum(), 1)
    sums = sums.astype(np.float64)
    mean = sums.sum(0) / num_samples
    between = counts * (sums / np.maximum(counts, 1) - mean) ** 2
    return mean, (deviations.sum(0, dtype=np.float64) + between.sum(0)) / num_samples


@functools.cache
def _workspaces() -> dict[int, np.ndarray]:
    return {}


def _workspace(num_floats: int) -> np.ndarray:
    """Returns memory that is kept between calls: fresh pages would cost more than the sums."""
    spaces = _workspaces()
    key = threading.get_ident()
    if key not in spaces or spaces[key].size < num_floats:
        spaces[key] = np.empty(num_floats, np.float32)
    return spaces[key]


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _require_signal(name: str, array: np.ndarray, num_channels: int) -> None:
    if array.dtype != np.float32 or array.ndim != 2 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a C-contiguous float32 [time, channels] array, received "
            f"{array.dtype} {array.shape}"
        )
    if array.shape[1] != num_channels:
        raise ValueError(f"{name} must have {num_channels} channels, received {array.shape[1]}")


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the convolution could not get its working memory")
