"""Says on one screen whether a machine has what the project needs, and how to get what is missing.

::

    python -m speech.doctor
    python -m speech.doctor --timit /data/TIMIT --noise /data/noises

Each line is a check; one that fails is followed by the command to type. The exit code is 0 if all
is well and 1 if not. The C kernels are compiled on the way if they were not yet.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech.base import cli
from speech.base.runinfo import version_of

_ROOT = Path(__file__).resolve().parent.parent

MIN_PYTHON = (3, 11)

#: What `setup.py` asks for at least.
PACKAGES = {
    "tensorflow": "2.19",
    "keras": "3.15",
    "numpy": "2.1",
    "scipy": "1.14",
    "h5py": "3.12",
    "soundfile": "0.13",
    "soxr": "0.5",
    "joblib": "1.4",
    "tqdm": "4.66",
    "filelock": "3.20.1",
    "matplotlib": "3.9",
    "pesq": "0.0.4",
    "pystoi": "0.4.1",
    "constriction": "0.5",
    "kmeans1d": "0.5",
    "msgspec": "0.19",
}
_NAMED = ("tensorflow", "keras", "numpy")

#: A training of the bundled corpus needs less than 1 GB; premixed corpora need more.
MIN_FREE_BYTES = 2e9

#: Largest difference of a convolution to NumPy's, relative to its largest value. GPUs may round
#: inputs to 10 bits (TF32).
_TOLERANCE = 1e-2

_INSTALL = "pip install -r requirements.txt"


class Trouble(Exception):
    """A check that failed.

    Args:
        what: What is wrong.
        fix: The command to type.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        name: Of the check.
        text: What was found, or what is wrong.
        fix: The command that mends it; '' if all is well.
    """

    name: str
    text: str
    fix: str = ""


def examine(
    checks: Sequence[tuple[str, Callable[[], str]]],
) -> Iterator[Finding]:
    """Runs checks one after the other; one that breaks is a finding like any other.

    Args:
        checks: (name, function that returns what it found or raises `Trouble`).

    Yields:
        A finding each.
    """
    for name, check in checks:
        try:
            yield Finding(name, check())
        except Trouble as trouble:
            yield Finding(name, cli.one_line(trouble), trouble.fix)
        except Exception as error:  # a doctor must not fall ill
            what = f"{type(error).__name__}: {cli.one_line(error)}"
            yield Finding(name, f"unexpected {what}", _INSTALL)


def check_packages() -> str:
    """Checks that every package is there and new enough.

    Raises:
        Trouble: One is missing or too old.
    """
    if _numbers(platform.python_version()) < MIN_PYTHON:
        raise Trouble(
            f"Python {platform.python_version()} is too old, 3.11 is needed",
            "python3.11 -m venv .venv && .venv/bin/pip install -r requirements.txt",
        )
    found, wrong = {}, []
    for name, least in PACKAGES.items():
        version = version_of(name)
        if version is None:
            wrong.append(f"{name} is missing")
        elif _numbers(version) < _numbers(least):
            wrong.append(f"{name} {version} is older than {least}")
        found[name] = version
    if wrong:
        raise Trouble(", ".join(wrong), _INSTALL)
    named = ", ".join(f"{name} {found[name]}" for name in _NAMED)
    return f"Python {platform.python_version()}, {named}; {len(found)} packages are there"


def check_cpu() -> str:
    """Says which processor this is."""
    from speech.net.blockconv import default_threads

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {default_threads()} cores to use{_memory()}"


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return ""
    return f", {size / 1e9:.0f} GB of memory"


def check_gpu() -> str:
    """Checks that TensorFlow sees the GPUs that are there, and that cuDNN has code for them.

    Raises:
        Trouble: A card is there that can't be used.
    """
    from speech.base.device import require_cudnn_for

    cards = nvidia_cards()
    devices = tensorflow_gpus()
    for details in devices:
        try:
            require_cudnn_for(details)
        except ValueError as error:
            raise Trouble(str(error), "pip install -r requirements-pascal.txt") from None
    if len(devices) < len(cards):
        names = ", ".join(name for name, _ in cards)
        old = any(capability < (7, 5) for _, capability in cards)
        pin = f"=={version}" if (version := version_of("tensorflow")) else ""
        fix = (
            "pip install -r requirements-pascal.txt"
            if old
            else f"pip install 'tensorflow[and-cuda]{pin}'"
        )
        raise Trouble(f"{names} is there, TensorFlow sees {len(devices)} GPUs", fix)
    if not devices:
        return "none, the CPU does the work"
    found = [str(details.get("device_name", "GPU")) for details in devices]
    cudnn = version_of("nvidia-cudnn-cu12") or "of the system"
    return f"{', '.join(found)}; cuDNN {cudnn}"


def nvidia_cards() -> list[tuple[str, tuple[int, ...]]]:
    """Returns (name, compute capability) of the cards that the driver knows."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    cards = [line.rpartition(",") for line in done.stdout.splitlines() if "," in line]
    return [(name.strip(), _numbers(capability)) for name, _, capability in cards]


def tensorflow_gpus() -> list[dict[str, Any]]:
    """Returns what TensorFlow says of each GPU that it can use.

    Raises:
        Trouble: TensorFlow can't be imported.
    """
    from speech.base.device import quiet_start

    try:
        with quiet_start():
            import tensorflow as tf

            found = tf.config.list_physical_devices("GPU")
            for device in found:
                # The rest of the memory belongs to whoever else is at work there.
                with contextlib.suppress(RuntimeError):
                    tf.config.experimental.set_memory_growth(device, True)
            return [tf.config.experimental.get_device_details(device) for device in found]
    except ImportError as error:
        raise Trouble(f"TensorFlow can't be imported: {error}", _INSTALL) from None


def check_kernels() -> str:
    """Checks that the C kernels compile, load and enhance.

    Raises:
        Trouble: There is no compiler, or it fails.
    """
    from speech.net import blockconv

    if os.environ.get("SPEECH_NO_C_KERNELS"):
        raise Trouble("switched off by SPEECH_NO_C_KERNELS", "unset SPEECH_NO_C_KERNELS")
    started = time.perf_counter()
    with _said() as messages:
        is_there = blockconv.is_available()
    if not is_there:
        what = messages[-1] if messages else "the C kernels can't be used"
        raise Trouble(what, "sudo apt-get install gcc libc6-dev libgomp1")
    return f"C kernels compiled and loaded in {time.perf_counter() - started:.1f} s"


class _Listener(logging.Handler):
    """Puts what is said into a list."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


@contextlib.contextmanager
def _said() -> Iterator[list[str]]:
    """Yields a list that gathers what the project's logger says."""
    messages: list[str] = []
    handler = _Listener(messages)
    logger = logging.getLogger("speech")
    kept = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(kept)


def check_convolutions() -> str:
    """Convolves on every device and compares with NumPy.

    Raises:
        Trouble: A device can't, or gives something else.
    """
    from speech.base.device import quiet_start

    with quiet_start():
        import keras

        devices = ["cpu:0", *(f"gpu:{place}" for place in range(len(tensorflow_gpus())))]
        times = [f"{device} ({1e3 * convolve_on(keras, device):.1f} ms)" for device in devices]
    return "agrees with NumPy's on " + ", ".join(times)


def convolve_on(keras: Any, device: str) -> float:
    """Convolves on a device; returns the seconds of the second time.

    Args:
        keras: The module.
        device: Such as 'cpu:0'.

    Raises:
        Trouble: The device can't, or gives something else than NumPy.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    signal = rng.standard_normal((1, 16000, 4)).astype(np.float32)
    kernel = rng.standard_normal((55, 4, 8)).astype(np.float32)
    fix = "pip install -r requirements-pascal.txt" if device.startswith("gpu") else _INSTALL
    try:
        with keras.device(device):
            for _ in range(2):
                started = time.perf_counter()
                result = keras.ops.convert_to_numpy(keras.ops.conv(signal, kernel))
                seconds = time.perf_counter() - started
    except Exception as error:  # each backend has errors of its own
        raise Trouble(f"{device}: no convolution ({cli.one_line(error)[:200]})", fix) from None
    windows = np.lib.stride_tricks.sliding_window_view(signal[0], 55, axis=0)
    expected = np.einsum("tik,kio->to", windows, kernel)
    difference = float(np.abs(result[0] - expected).max() / np.abs(expected).max())
    if not difference <= _TOLERANCE:
        raise Trouble(f"{device}: a convolution is wrong by {100 * difference:.2g} %", fix)
    return seconds


def check_disk(folder: Path = Path()) -> str:
    """Checks that there is room for a run.

    Args:
        folder: Where runs are written.

    Raises:
        Trouble: There is little.
    """
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder.resolve()}"
    if free < MIN_FREE_BYTES:
        raise Trouble(f"only {text}", f"df -h {folder.resolve()}  # make room, or --out elsewhere")
    return text


def check_bundled_corpus() -> str:
    """Checks that the bundled recordings are there, to the byte.

    Raises:
        Trouble: One is missing or damaged.
    """
    from speech.base.files import sha256_of
    from speech.data import corpus
    from speech.sound.conditioning import read_manifest

    root = corpus.MINICORPUS
    fix = "git checkout -- speech/minicorpus"
    manifest = root / "MANIFEST.sha256"
    if not manifest.is_file():
        raise Trouble(f"{manifest} is missing", fix)
    try:
        lines = read_manifest(manifest)
    except (OSError, ValueError) as error:
        raise Trouble(cli.one_line(error), fix) from None
    bad = [
        name for name, digest in lines.items()
        if not (root / name).is_file() or sha256_of(root / name) != digest
    ]  # fmt: skip
    if bad or not lines:
        raise Trouble(f"{len(bad)} files are missing or damaged, such as {bad[:1]}", fix)
    num_speech, num_noise = len(corpus.bundled_speech()), len(corpus.bundled_noise("TEST"))
    return f"{num_speech} utterances, {num_noise} noises, {len(lines)} files whole"


def check_timit(folder: Path) -> str:
    """Checks a corpus that is to be trained on.

    Args:
        folder: TIMIT, or any tree with TRAIN and TEST.

    Raises:
        Trouble: It holds no such tree, or its first file can't be read.
    """
    from speech.data import corpus
    from speech.sound.audio import read_audio

    fix = "python -m speech.opencorpus --out corpus  # or name the folder that holds TRAIN and TEST"
    counts = []
    for split in ("TRAIN", "TEST"):
        try:
            found = corpus.find_speech(folder, split)
            read_audio(found[0].path)
        except (ValueError, OSError, IndexError) as error:
            raise Trouble(f"{split}: {cli.one_line(error)}", fix) from None
        speakers = len({utterance.speaker for utterance in found})
        counts.append(f"{split} {len(found)} utterances of {speakers} speakers")
    return f"{folder}: {', '.join(counts)}"


def check_noise(folder: Path) -> str:
    """Checks a folder of noises.

    Args:
        folder: As for ``timit_fcn_mse.py --noise``.

    Raises:
        Trouble: It holds none, or the first can't be read.
    """
    from speech.data import corpus
    from speech.sound.audio import read_audio

    try:
        found = corpus.find_noise(folder, "TRAIN")
        read_audio(found[0].path)
    except (ValueError, OSError, IndexError) as error:
        fix = "python -m speech.opencorpus --out corpus  # or name the folder of the noise files"
        raise Trouble(cli.one_line(error), fix) from None
    return f"{folder}: {len(found)} noises"


def check_models(folder: Path = _ROOT / "models") -> str:
    """Checks that every shipped model can be read.

    Args:
        folder: Where they are.

    Raises:
        Trouble: There is none, or one can't be read.
    """
    from speech.modelfile.read import read_model_file

    fix = "git checkout -- models"
    paths = sorted(path for path in folder.glob("*") if path.suffix in (".h5", ".icse"))
    if not paths:
        raise Trouble(f"{folder}: no model is there", fix)
    bad, kinds = [], Counter[str]()
    for path in paths:
        try:
            kinds[read_model_file(path).kind or "of no stated kind"] += 1
        except (ValueError, OSError) as error:
            bad.append(cli.one_line(error))
    if bad:
        raise Trouble("; ".join(bad), fix)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{len(paths)} shipped models, all can be read: {counts}"


def check_network() -> str:
    """Enhances with a small network over time and frequency, and compares C kernels and Keras.

    Raises:
        Trouble: They differ, or one can't run it.
    """
    import numpy as np

    from speech.base.device import quiet_start
    from speech.modelfile.spec import ModelFile
    from speech.net.mask_enhancer import MaskEnhancer
    from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency

    with quiet_start():
        from speech.net.keras_models import layers_of

        config = TimeFrequencyConfig(8, 8, (1, 2))
        file = ModelFile(layers_of(build_time_frequency(config)), config.meta(), "", Path("tiny"))
        signal = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
        fast = MaskEnhancer(file)
        expected = MaskEnhancer(file, engine="keras")(signal)
    if fast.engine != "c":
        return "Keras runs it: no C kernels"
    difference = float(np.abs(fast(signal) - expected).max() / np.abs(expected).max())
    if not difference <= _TOLERANCE:
        raise Trouble(
            f"C kernels and Keras differ by {100 * difference:.2g} %",
            "export SPEECH_NO_C_KERNELS=1",
        )
    return f"C kernels and Keras agree to {difference:.0e}"


def checks_of(timit: Path | None, noise: Path | None) -> list[tuple[str, Callable[[], str]]]:
    """Returns all checks, cheap ones first."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", check_packages),
        ("processor", check_cpu),
        ("disk", check_disk),
        ("models", check_models),
        ("corpus", check_bundled_corpus),
    ]
    if timit is not None:
        checks.append(("--timit", lambda: check_timit(timit)))
    if noise is not None:
        checks.append(("--noise", lambda: check_noise(noise)))
    return [
        *checks,
        ("C compiler", check_kernels),
        ("GPU", check_gpu),
        ("convolution", check_convolutions),
        ("network", check_network),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    return cli.run(lambda: _run(checks_of(options.timit, options.noise)))


def _run(checks: list[tuple[str, Callable[[], str]]]) -> int:
    num_wrong = 0
    for finding in examine(checks):
        print(f"{'WRONG' if finding.fix else 'ok':6s}{finding.name:13s}{finding.text}", flush=True)
        if finding.fix:
            num_wrong += 1
            print(f"{'':6s}{'':13s}fix: {finding.fix}", flush=True)
    if num_wrong:
        print(f"\n{num_wrong} of these must be mended.")
    else:
        print("\nAll is well. Next: python timit_fcn_mse.py --gpu 0 --out runs/demo")
    return 1 if num_wrong else 0


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: '2.21.0rc1' gives (2, 21, 0)."""
    match = re.match(r"\d+(\.\d+)*", version.strip())
    return tuple(map(int, match[0].split("."))) if match else ()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech.doctor",
        description="Check versions, devices, compiler, disk, corpora and models, and say how to "
        "mend what is wrong.",
        **cli.examples(
            "python -m speech.doctor",
            "python -m speech.doctor --timit TIMIT --noise noises",
            note="The exit code is 0 if all is well, and 1 if something must be mended.",
        ),
    )
    add = parser.add_argument
    add("--timit", type=Path, metavar="DIR",
        help="read speech from TIMIT, or from any tree with TRAIN and TEST, and check "
        "it")  # fmt: skip
    add("--noise", type=Path, metavar="DIR",
        help="mix these noise recordings (they are checked)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
