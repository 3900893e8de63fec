"""Networks as streams, frame by frame, on one core: ours beside RNNoise, GTCRN and DTLN.

::

    python -m benchmarks.streaming --json benchmarks/results/streaming.json
    python -m benchmarks.streaming --gtcrn gtcrn_simple.onnx --dtln model_1.onnx model_2.onnx

Ours are the default model and the small form (of random weights, unless ``--small`` names a file).
RNNoise needs ``pyrnnoise`` (extra ``[quality]``), GTCRN and DTLN need ``onnxruntime`` and the files
of their authors: the streaming GTCRN in one file, DTLN in two. What is absent is said and skipped.

Each system runs in a process of its own on one core; they take turns. A round is ten seconds of
noise that come in blocks of the system's hop, from a fresh state. Real-time factors are medians
over rounds of processor seconds (and of seconds by the clock) by second of audio. RNNoise works at
48 kHz: changing the rate is part of it, as its user waits for that too. STFT and inverse are
part of GTCRN and DTLN, in NumPy.

The cold start is that of ``python -m speech.enhance`` on a file of 5 s: from the start of the
process to its end.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common, peers
from speech.base import cli

if TYPE_CHECKING:
    import numpy as np

SECONDS = 10.0
COLD_SECONDS = 5.0
ROUNDS = 9


class OurStream(peers.System):
    """One of our model files, in blocks of a hop."""

    def __init__(self, path: str) -> None:
        from speech.net.streaming import Stream

        self._stream = Stream(path)
        self.num_bytes = os.path.getsize(path)
        self.weights = f"{Path(path).name}, engine {self._stream.engine}"

    def enhance(self, noisy: np.ndarray) -> np.ndarray:
        """See `peers.System`."""
        import numpy as np

        stream = self._stream
        parts = [stream.push(block) for block in blocks(noisy, stream.hop_samples)]
        return np.concatenate([*parts, stream.flush()])


class OnnxStream(peers.System):
    """A chain of networks on ONNX Runtime, each of whose inputs after the first is its state."""

    packages = ("onnxruntime",)
    frame = hop = 0

    def __init__(self, *paths: str) -> None:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._sessions = [
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in paths
        ]
        self.num_bytes = sum(os.path.getsize(path) for path in paths)
        self.weights = ", ".join(Path(path).name for path in paths)
        self._names = [[item.name for item in one.get_inputs()] for one in self._sessions]
        self._zeros = [
            [np.zeros(item.shape, np.float32) for item in one.get_inputs()[1:]]
            for one in self._sessions
        ]
        self.start()

    def start(self) -> None:
        """See `peers.System`."""
        self._states = [list(zeros) for zeros in self._zeros]

    def run(self, which: int, values: np.ndarray) -> np.ndarray:
        """Returns the output of a network for one frame and keeps its state."""
        inputs = dict(zip(self._names[which], [values, *self._states[which]], strict=True))
        output, *self._states[which] = self._sessions[which].run(None, inputs)
        return output

    def frame_of(self, samples: np.ndarray) -> np.ndarray:
        """Returns what becomes of a frame, float32 [frame]."""
        raise NotImplementedError

    def enhance(self, noisy: np.ndarray) -> np.ndarray:
        """See `peers.System`."""
        import numpy as np

        history = np.zeros(self.frame, np.float32)
        overlap = np.zeros(self.frame, np.float32)
        parts = []
        for block in blocks(noisy, self.hop):
            history = np.append(history[self.hop :], block)
            overlap += self.frame_of(history)
            parts.append(overlap[: self.hop].copy())
            overlap = np.append(overlap[self.hop :], np.zeros(self.hop, np.float32))
        return np.concatenate(parts)[: len(noisy)]


class GTCRN(OnnxStream):
    """The streaming GTCRN: frames of 512 samples every 256, one network of spectra."""

    frame, hop = 512, 256

    def frame_of(self, samples: np.ndarray) -> np.ndarray:
        """See `OnnxStream`."""
        import numpy as np

        window = np.sqrt(np.hanning(513)[:512]).astype(np.float32)
        spectrum = np.fft.rfft(samples * window)
        given = np.stack([spectrum.real, spectrum.imag], axis=-1)[None, :, None]
        found = self.run(0, given.astype(np.float32))[0, :, 0]
        return np.fft.irfft(found[:, 0] + 1j * found[:, 1]).astype(np.float32) * window


class DTLN(OnnxStream):
    """DTLN: frames of 512 samples every 128, a mask of magnitudes, then a network of samples."""

    frame, hop = 512, 128

    def frame_of(self, samples: np.ndarray) -> np.ndarray:
        """See `OnnxStream`."""
        import numpy as np

        spectrum = np.fft.rfft(samples)
        mask = self.run(0, np.abs(spectrum)[None, None].astype(np.float32))[0, 0]
        estimate = np.fft.irfft(spectrum * mask)[None, None].astype(np.float32)
        return self.run(1, estimate)[0, 0]


def blocks(noisy: np.ndarray, size: int) -> np.ndarray:
    """Returns whole blocks [num_blocks, size] of a signal, the last one filled up with zeros."""
    return peers.in_frames(noisy, size)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--small", type=Path, metavar="FILE", help="a model of the small form (default: random)")
    common.add_onnx_options(parser)
    add("--rounds", type=cli.positive_number, default=ROUNDS, metavar="N",
        help="default %(default)s")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    options = parser.parse_args(argv)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.net.enhancer import DEFAULT_MODEL

    onnx = common.onnx_systems(options.gtcrn, options.dtln)
    if options.small and not options.small.is_file():
        raise ValueError(f"{options.small}: no such file; check the path")
    here = "benchmarks.streaming"
    with tempfile.TemporaryDirectory() as name:
        small = options.small or random_small(Path(name) / "small.icse")
        specs: dict[str, peers.Spec | str] = {
            "ours, small": (f"{here}:OurStream", (str(small),)),
            "ours, medium": (f"{here}:OurStream", (str(DEFAULT_MODEL),)),
            "RNNoise": (peers.PEERS["RNNoise"], ()),
            "GTCRN": onnx.get("GTCRN", "--gtcrn"),
            "DTLN": onnx.get("DTLN", "--dtln"),
        }
        result: dict[str, Any] = {"seconds": SECONDS, "systems": _measured(specs, options.rounds)}
        result["cold_start"] = cold_start(Path(name), options.rounds)
    print(f"\n{'':<16}{'processor':>11}{'clock':>9}{'bytes':>11}")
    for name, row in result["systems"].items():
        if "skipped" in row:
            print(f"{name:<16}skipped: {row['skipped']}")
        else:
            print(f"{name:<16}{row['cpu_real_time_factor']:>11.4f}{row['real_time_factor']:>9.4f}"
                  f"{row['bytes']:>11,}")  # fmt: skip
    cold = result["cold_start"]
    print(
        f"\nspeech.enhance on {COLD_SECONDS:g} s of audio, from a cold start: "
        f"{cold['cpu_s']:.2f} s of the processor, {cold['wall_s']:.2f} s by the clock"
    )
    common.write_result(options.json, result)
    return 0


def random_small(path: Path) -> Path:
    """Writes the small form with random weights; they don't matter for speed."""
    from speech.modelfile.icse import write_compact
    from speech.net.keras_models import layers_of
    from speech.net.timefrequency import SIZES, build_time_frequency

    config = SIZES["small"]
    write_compact(path, layers_of(build_time_frequency(config)), config.meta())
    return path


def _measured(specs: dict[str, peers.Spec | str], rounds: int) -> dict[str, dict[str, Any]]:
    """Returns name -> medians, or why a system was skipped."""
    found: dict[str, dict[str, Any]] = {}
    workers: dict[str, peers.Worker] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    for name, spec in specs.items():
        if isinstance(spec, str):
            found[name] = {"skipped": f"no file given ({spec})"}
            continue
        try:
            workers[name] = peers.Worker(*spec)
        except peers.PeerUnavailable as error:
            found[name] = {"skipped": str(error)}
    noise = common.random_speech(SECONDS)[0, :, 0]
    for turn in range(rounds + 1):  # the first one warms up
        for name, worker in list(workers.items()):
            try:
                result = worker.run(noise)
            except peers.PeerFailed as error:
                found[name] = {"skipped": f"failed: {error}"}
                workers.pop(name).close()
                continue
            if turn:
                times.setdefault(name, []).append((result.cpu_s, result.wall_s))
    for name, worker in workers.items():
        cpu, wall = zip(*times[name], strict=True)
        found[name] = worker.info | {
            "cpu_real_time_factor": statistics.median(cpu) / SECONDS,
            "real_time_factor": statistics.median(wall) / SECONDS,
            "rounds": rounds,
        }
        worker.close()
    return {name: found[name] for name in specs}


def cold_start(folder: Path, rounds: int) -> dict[str, float]:
    """Returns seconds of ``python -m speech.enhance`` on a file of 5 s, medians on one core."""
    from speech.sound.audio import write_audio

    noisy, clean = folder / "noisy.wav", folder / "clean.wav"
    write_audio(noisy, common.random_speech(COLD_SECONDS)[0, :, 0])
    command = cli.python_command("-m", "speech.enhance", str(noisy), "-o", str(clean))
    environment = cli.python_environment(SPEECH_THREADS="1", OMP_NUM_THREADS="1")
    cpu, wall = [], []
    for _ in range(rounds + 1):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - start)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"cpu_s": statistics.median(cpu[1:]), "wall_s": statistics.median(wall[1:])}


if __name__ == "__main__":
    sys.exit(main())
