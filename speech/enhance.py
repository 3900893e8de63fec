"""Enhances files, folders or arrays with any waveform model.

::

    python -m speech.enhance noisy.wav -o clean.wav
    python -m speech.enhance recordings/ -o enhanced/ --model model.h5

Any rate and number of channels goes in; the same rate, channels, length, format and folder tree
come out. Each channel is resampled to the model's 16 kHz and enhanced by itself, so nothing above
8 kHz is left. As in training, the network is given the signal divided by its own maximum; its
output is scaled so that its peak is the input's, or ``--peak``.

Long files. The network normalises over the whole utterance, so a file can't be cut without
changing the result. Up to ``WHOLE_SECONDS`` a file is enhanced whole. A longer one is cut into
blocks of ``BLOCK_SECONDS``, each normalised by itself, as utterances are in training; neighbours
overlap by ``FADE_SECONDS`` and are cross-faded. The output of a block has no scale of its own: it
is multiplied by the gain that fits it best, in the least-squares sense, to its noisy input. That
keeps a block of mere noise from being blown up to the level of the noise. Memory stays bounded,
and the command says which way was taken; ``--whole`` enforces the first.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech import cli

if TYPE_CHECKING:
    import numpy as np

    from speech.modelfile import ModelFile

#: The model that is used when none is named.
DEFAULT_MODEL = Path(__file__).resolve().parent.parent / "models" / "fcn.h5"

WHOLE_SECONDS = 120.0
BLOCK_SECONDS = 60.0
FADE_SECONDS = 0.5


class Enhancer:
    """A waveform model ready to run: on the C kernels where they are, on Keras elsewhere.

    Args:
        path: An .h5 or .icse model file, possibly from a stranger.

    Attributes:
        file: The model file as it was read.
        engine: 'c' or 'keras': what runs it.

    Raises:
        ValueError: The file is refused, or is not a waveform model at 16 kHz.
    """

    def __init__(self, path: str | os.PathLike = DEFAULT_MODEL) -> None:
        from speech.audio import SAMPLE_RATE_HZ
        from speech.modelfile import read_model_file

        self.path = Path(path)
        self.file = read_model_file(path)
        kind = self.file.meta.get("kind", "waveform")
        rate_hz = self.file.meta.get("sample_rate_hz", SAMPLE_RATE_HZ)
        if kind != "waveform" or not _is_waveform(self.file):
            raise ValueError(
                f"{path}: is no waveform model (samples in, samples out); kind {kind!r} cannot "
                "enhance a file by itself"
            )
        if rate_hz != SAMPLE_RATE_HZ:
            raise ValueError(
                f"{path}: trained at {rate_hz} Hz; only {SAMPLE_RATE_HZ} Hz is supported"
            )
        self.engine, self._run = _runner(self.file)

    def __call__(self, signal: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Runs the network on a whole signal divided by its maximum.

        Args:
            signal: float [num_samples] at 16 kHz.
            threads: Of the C kernels; default: all cores.

        Returns:
            float32 [num_samples], as the network gives it; zeros for silence.

        Raises:
            ValueError: The signal is of another shape or kind, or it or the network's output holds
                a NaN or an infinity.
        """
        import numpy as np

        from speech.audio import is_silent, peak_normalize

        signal = _checked(signal)
        if is_silent(signal):
            return np.zeros(len(signal), np.float32)
        output = self._run(peak_normalize(signal).astype(np.float32), threads)
        if not np.isfinite(output).all():
            raise ValueError(f"{self.path}: the network's output holds a NaN or an infinity")
        return output

    def enhance(
        self,
        signal: np.ndarray,
        *,
        peak: float | None = None,
        whole: bool = False,
        threads: int | None = None,
    ) -> np.ndarray:
        """Enhances one channel of any length, in blocks if it is long (see the module).

        Args:
            signal: float [num_samples] at 16 kHz.
            peak: max |x| of the result; None for that of ``signal``.
            whole: Never cut into blocks, whatever the memory.
            threads: Of the C kernels; default: all cores.

        Returns:
            float32 [num_samples].

        Raises:
            ValueError: As `Enhancer.__call__`, or the peak is no positive number.
        """
        from speech.audio import SAMPLE_RATE_HZ

        signal = _checked(signal)
        if peak is not None and not 0 < peak < math.inf:
            raise ValueError(f"peak is {peak}; give a positive number, such as 1")
        if whole or len(signal) <= WHOLE_SECONDS * SAMPLE_RATE_HZ:
            output = self(signal, threads)
        else:
            output = self._in_blocks(signal, threads)
        target = _peak_of(signal) if peak is None else peak
        return output * _gain(target, _peak_of(output))

    def _in_blocks(self, signal: np.ndarray, threads: int | None) -> np.ndarray:
        import numpy as np

        from speech.audio import SAMPLE_RATE_HZ

        fade = round(FADE_SECONDS * SAMPLE_RATE_HZ)
        ramp = np.linspace(0.0, 1.0, fade + 2, dtype=np.float32)[1:-1]
        output = np.zeros(len(signal), np.float32)
        for start, stop in blocks(len(signal), round(BLOCK_SECONDS * SAMPLE_RATE_HZ), fade):
            noisy = signal[start:stop]
            part = self(noisy, threads)
            energy = float(np.dot(part, part))
            if energy:
                part = part * np.float32(max(float(np.dot(noisy, part)), 0.0) / energy)
            if start:
                part[:fade] *= ramp
            if stop < len(signal):
                part[-fade:] *= ramp[::-1]
            output[start:stop] += part
        return output


def blocks(num_samples: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of blocks that overlap and cover a signal.

    What is left for the last two is halved between them, so that none is a short rest.
    """
    hop = size - overlap
    start = 0
    while num_samples - start > 2 * size:
        yield start, start + size
        start += hop
    if num_samples - start > size + overlap:
        middle = start + (num_samples - start + overlap) // 2
        yield start, middle
        start = middle - overlap
    yield start, num_samples


def _checked(signal: np.ndarray) -> np.ndarray:
    """Returns a signal as float32 or float64 [num_samples]; raises ValueError if it can't be."""
    import numpy as np

    signal = np.asarray(signal)
    if signal.ndim != 1 or signal.dtype.kind not in "fiu":
        raise ValueError(
            f"signal must be [num_samples] of real numbers, received shape {signal.shape} of "
            f"{signal.dtype}"
        )
    if signal.dtype not in (np.float32, np.float64):
        signal = signal.astype(np.float32)
    if not np.isfinite(signal).all():
        raise ValueError("signal holds a NaN or an infinity; repair it first")
    return signal


def _is_waveform(file: ModelFile) -> bool:
    weighted = [layer for layer in file.layers if "kernel" in layer.weights]
    if not weighted:
        return False
    first, last = weighted[0].weights["kernel"], weighted[-1].weights["kernel"]
    return first.ndim == 3 and first.shape[1] == 1 and last.ndim == 3 and last.shape[2] == 1


def _runner(file: ModelFile) -> tuple[str, Callable[[np.ndarray, int | None], np.ndarray]]:
    """Returns what runs a network on float32 [num_samples] with some threads, and its name."""
    from speech import blockconv
    from speech.inference import InferenceNetwork
    from speech.network import blocks_from_layers, parameters_of

    found = blocks_from_layers([(layer.class_name, layer.config) for layer in file.layers])
    if found is not None and blockconv.is_available():
        network = InferenceNetwork(found[0], parameters_of(file.layers), tanh=found[1])
        return "c", lambda signal, threads: network(signal, threads)[:, 0]
    return "keras", _keras_runner(file)


def _keras_runner(file: ModelFile) -> Callable[[np.ndarray, int | None], np.ndarray]:
    import numpy as np

    from speech.device import quiet_start

    with quiet_start():
        import keras

    from speech.weights import build_model

    model = build_model(file.layers)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # One graph for every length.
        call = tf.function(
            lambda x: model(x, training=False),
            input_signature=[tf.TensorSpec([None, None, 1], tf.float32)],
        )
    else:

        def call(x):
            return model(x, training=False)

    def run(signal: np.ndarray, threads: int | None) -> np.ndarray:
        return np.array(keras.ops.convert_to_numpy(call(signal[None, :, None]))[0, :, 0])

    return run


@dataclass
class Report:
    """What a run did.

    Attributes:
        files: One row a file: input, output, seconds of audio, way ('whole' or 'blocks').
        skipped: (input, reason).
        seconds: Wall time without reading the model.
    """

    files: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio enhanced, channels counted apart."""
        return sum(row["audio_seconds"] * row["channels"] for row in self.files)


def enhance_file(
    enhancer: Enhancer,
    source: Path,
    target: Path,
    *,
    peak: float | None = None,
    whole: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Enhances one file into another of the same rate, channels, length and sample format.

    Returns:
        The row of the :class:`Report`.

    Raises:
        ValueError: The source can't be read, or the target can't be written.
    """
    import numpy as np

    from speech.audio import SAMPLE_RATE_HZ, read_multichannel, resample, write_audio

    audio = read_multichannel(source)
    samples = audio.samples  # overwritten channel by channel: long files are large
    for channel in range(samples.shape[1]):
        noisy = np.ascontiguousarray(samples[:, channel])
        wanted = _peak_of(noisy)
        at_16k = resample(noisy, audio.source_rate_hz, SAMPLE_RATE_HZ)
        del noisy
        if not len(at_16k):
            raise ValueError(f"{source}: too short, nothing is left at {SAMPLE_RATE_HZ} Hz")
        enhanced = resample(
            enhancer.enhance(at_16k, whole=whole, threads=threads),
            SAMPLE_RATE_HZ,
            audio.source_rate_hz,
        )
        enhanced = fit_length(enhanced, len(samples))
        # Resampling moves the peak a little: set it on the samples that are written.
        samples[:, channel] = enhanced * _gain(wanted, _peak_of(enhanced))
    if peak is not None:  # one factor for all channels: their balance stays
        samples *= _gain(peak, max(_peak_of(samples[:, c]) for c in range(samples.shape[1])))
    write_audio(target, samples, audio.source_rate_hz, writable_subtype(target, audio.subtype))
    seconds = len(samples) / audio.source_rate_hz
    return {
        "input": str(source),
        "output": str(target),
        "sample_rate_hz": audio.source_rate_hz,
        "channels": samples.shape[1],
        "audio_seconds": seconds,
        "way": "whole" if whole or seconds <= WHOLE_SECONDS else "blocks",
    }


def enhance_all(
    enhancer: Enhancer,
    jobs: Sequence[tuple[Path, Path]],
    *,
    peak: float | None = None,
    whole: bool = False,
    strict: bool = False,
) -> Report:
    """Enhances (source, target) pairs; a source that fails is skipped, or raised if ``strict``.

    One file has all cores to itself; several are enhanced side by side, a core each, which saves
    the waiting for each other and lets reading and resampling run beside the network.
    """
    from concurrent.futures import ThreadPoolExecutor

    from speech.blockconv import default_threads

    num_workers = min(default_threads(), len(jobs)) if enhancer.engine == "c" else 1
    threads = 1 if num_workers > 1 else None

    def work(job: tuple[Path, Path]) -> dict[str, Any] | str:
        try:
            return enhance_file(enhancer, *job, peak=peak, whole=whole, threads=threads)
        except ValueError as error:
            if strict:
                raise
            return cli.one_line(error)

    report = Report()
    started = time.perf_counter()
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        results = cli.progress(pool.map(work, jobs), total=len(jobs), label="enhancing")
        for (source, _), result in zip(jobs, results, strict=True):
            if isinstance(result, str):
                report.skipped.append((str(source), result))
            else:
                report.files.append(result)
    report.seconds = time.perf_counter() - started
    return report


def plan_outputs(inputs: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Returns (source, target) for files and folders; folders keep their tree below ``out``.

    Raises:
        ValueError: An input is missing, two would have one target, or one would be overwritten.
    """
    from speech.audio import FORMATS, find_audio

    jobs: list[tuple[Path, Path]] = []
    one_file = len(inputs) == 1 and inputs[0].is_file()
    to_file = one_file and out.suffix.lower() in FORMATS
    if one_file and out.suffix and not to_file and not out.is_dir():
        raise ValueError(f"{out}: cannot write {out.suffix!r}; use one of {', '.join(FORMATS)}")
    for item in inputs:
        if item.is_dir() and out.resolve().is_relative_to(item.resolve()):
            raise ValueError(f"{out}: lies inside the input folder {item}; choose another -o")
    for item in inputs:
        if item.is_dir():
            # With several folders each keeps its own name.
            base = out if len(inputs) == 1 else out / item.resolve().name
            jobs += [(path, base / _writable(path.relative_to(item))) for path in find_audio(item)]
        elif item.exists():
            jobs.append((item, out if to_file and not out.is_dir() else out / _writable(item.name)))
        else:
            raise ValueError(f"{item}: no such file or folder")
    targets: dict[Path, Path] = {}
    for source, target in jobs:
        if target in targets:
            raise ValueError(
                f"{targets[target]} and {source} would both be written to {target}; "
                "enhance them into different folders"
            )
        targets[target] = source
    sources = {source.resolve() for source, _ in jobs}
    for source, target in jobs:
        if target.resolve() in sources:
            raise ValueError(f"{source}: would be overwritten by {target}; choose another -o")
    return jobs


def _writable(path: Path | str) -> Path:
    """Returns the name to write: endings that only name a container we read become .wav."""
    from speech.audio import FORMATS

    path = Path(path)
    keep = path.suffix.lower() in FORMATS and FORMATS[path.suffix.lower()] != "NIST"
    return path if keep else path.with_suffix(".wav")


def writable_subtype(target: Path, wanted: str) -> str:
    """Returns a sample format for ``target``: ``wanted``, or its default if it can't hold that."""
    import soundfile

    from speech.audio import FORMATS

    audio_format = FORMATS.get(target.suffix.lower(), "WAV")
    # Of the compressed kinds only Vorbis is written by everything that reads it.
    plain = wanted.startswith("PCM_") or wanted in ("FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS")
    if plain and soundfile.check_format(audio_format, wanted):
        return wanted
    return soundfile.default_subtype(audio_format)


def _peak_of(signal: np.ndarray) -> float:
    """Returns max |x| without a copy of the signal."""
    return float(max(signal.max(), -signal.min(), 0.0)) if len(signal) else 0.0


def _gain(wanted: float, highest: float) -> np.float32:
    """Returns the factor from one peak to another; 1 for silence and what is as good as silence."""
    import numpy as np

    return np.float32(wanted / highest if highest > 1e-20 else 1.0)


def fit_length(signal: np.ndarray, num_samples: int) -> np.ndarray:
    """Cuts or fills up to a length: rounding in the two resamplings may differ by a sample."""
    import numpy as np

    if len(signal) >= num_samples:
        return signal[:num_samples]
    return np.pad(signal, (0, num_samples - len(signal)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.files import remove_leftovers, write_json

    jobs = plan_outputs(options.inputs, options.out)
    for folder in {target.parent for _, target in jobs}:
        remove_leftovers(folder)
    enhancer = Enhancer(options.model)
    named = all(item.is_file() for item in options.inputs)
    report = enhance_all(
        enhancer, jobs, peak=options.peak, whole=options.whole, strict=named and len(jobs) == 1
    )
    ways = [row["way"] for row in report.files]
    audio_seconds = report.audio_seconds
    print(f"model     {enhancer.file.path} (sha256 {enhancer.file.sha256[:12]}, {enhancer.engine})")
    print(f"files     {len(report.files)} enhanced, {len(report.skipped)} skipped")
    if report.files:
        print(f"way       {ways.count('whole')} whole, {ways.count('blocks')} in blocks of "
              f"{BLOCK_SECONDS:g} s with cross-fades of {FADE_SECONDS:g} s")  # fmt: skip
        print(f"audio     {audio_seconds:.1f} s in {report.seconds:.1f} s, real-time factor "
              f"{report.seconds / max(audio_seconds, 1e-9):.4f}")  # fmt: skip
        print(f"written   {report.files[0]['output'] if len(jobs) == 1 else options.out}")
    for _, reason in report.skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if options.json:
        write_json(
            options.json,
            {
                "model": str(enhancer.file.path),
                "sha256": enhancer.file.sha256,
                "engine": enhancer.engine,
                "seconds": report.seconds,
                "audio_seconds": audio_seconds,
                "files": report.files,
                "skipped": [{"input": source, "reason": why} for source, why in report.skipped],
            },
        )
    return 0 if report.files and not (named and report.skipped) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech.enhance",
        description="Remove noise from speech recordings.",
        **cli.examples(
            "python -m speech.enhance noisy.wav -o clean.wav",
            "python -m speech.enhance recordings/ -o enhanced/ --model models/fcn_small.icse",
            note="Long files are enhanced in cross-faded blocks, unless --whole says otherwise.",
        ),
    )
    add = parser.add_argument
    add("inputs", type=Path, nargs="+", metavar="INPUT", help="audio files or folders")
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="folder, or file for one file")
    add(
        "--model", type=Path, default=DEFAULT_MODEL, metavar="FILE", help="model (default: shipped)"
    )
    add("--peak", type=peak, metavar="P", help="max |x| of the output (default: the input's)")
    add("--whole", action="store_true", help="never cut into blocks (memory grows with length)")
    add("--json", **cli.JSON)
    return parser


def peak(text: str) -> float:
    """Parses a number in (0, 1]; argparse quotes the name of this function in its complaint."""
    value = float(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


if __name__ == "__main__":
    sys.exit(main())
