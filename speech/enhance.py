"""Enhances files, folders or arrays with a waveform model, or one over time and frequency.

::

    python -m speech.enhance noisy.wav -o clean.wav
    python -m speech.enhance recordings/ -o enhanced/ --model model.h5

Any rate and number of channels goes in; the same rate, channels, length, format and folder tree
come out. Each channel is resampled to the model's 16 kHz and enhanced by itself, so nothing above
8 kHz is left. The file says what kind of network it holds (`speech.modelfile.spec.ModelFile.kind`):

* 'complex_mask' (``speech.net.enhancer``): the output has the level that the mask gives, unless
  ``--peak`` says another. A file is read, enhanced and written as a stream: memory does not grow
  with its length, and the result is that of the whole.
* 'waveform': as in training, the network is given the signal divided by its own maximum. Its output
  has no scale of its own: each channel is multiplied by the gain that fits it best, in the
  least-squares sense, to its noisy input. The speech keeps its level, whatever clicks, offsets or
  noise the input holds. ``--peak`` says another level.

Where an integer format would clip, all channels are turned down by one factor, which is said.

Long files and waveform models. Such a network normalises over the whole utterance, so a file can't
be cut without changing the result. Up to ``WHOLE_SECONDS`` it is enhanced whole. A longer one is
cut into blocks of ``BLOCK_SECONDS``, each normalised by itself, as utterances are in training;
neighbours overlap by ``FADE_SECONDS`` and are cross-faded. Each block gets the gain that fits it
to its input, which keeps a block of mere noise from being blown up to the level of the noise.
Memory stays bounded, and the command says which way was taken; ``--whole`` enforces the first. A
network so wide that these lengths do not fit into ``speech.net.memory.MAX_BYTES`` gets shorter
blocks, and one for which ``LEAST_SECONDS`` do not fit is refused.
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

from speech.base import cli

if TYPE_CHECKING:
    import numpy as np

    from speech.modelfile.spec import ModelFile
    from speech.net.enhancer import MaskEnhancer
    from speech.sound.audio import AudioReader

_MODELS = Path(__file__).resolve().parent.parent / "models"
#: The model that is used when none is named.
DEFAULT_MODEL = _MODELS / "denoise.icse"
#: The papers' network, on which their tables stand.
BASELINE_MODEL = _MODELS / "fcn.h5"

WHOLE_SECONDS = 120.0
BLOCK_SECONDS = 60.0
#: A waveform model that cannot run even such a block in `speech.net.memory.MAX_BYTES` is refused.
LEAST_SECONDS = 4.0
FADE_SECONDS = 0.5


class Enhancer:
    """A model ready to run: on the C kernels where they are, on Keras elsewhere.

    Args:
        path: An .h5 or .icse model file, possibly from a stranger.

    Attributes:
        file: The model file as it was read.
        engine: 'c' or 'keras': what runs it.
        mask: What runs a network of the kind 'complex_mask'; None for a waveform model.

    Raises:
        ValueError: The file is refused, or no network of these kinds at 16 kHz.
    """

    mask: MaskEnhancer | None = None
    #: Bytes that a waveform model takes for so many samples.
    _num_bytes: Callable[[int], int] = staticmethod(lambda num_samples: 0)

    def __init__(self, path: str | os.PathLike = DEFAULT_MODEL) -> None:
        from speech.modelfile.meta import COMPLEX_MASK
        from speech.modelfile.read import read_model_file
        from speech.modelfile.spec import kind_of_shapes
        from speech.net.memory import MAX_BYTES, too_large
        from speech.sound.audio import SAMPLE_RATE_HZ

        self.path = Path(path)
        self.file = read_model_file(path)
        kind = self.file.kind
        is_waveform = kind == "waveform" and kind_of_shapes(self.file.layers) == kind
        if kind != COMPLEX_MASK and not is_waveform:
            raise ValueError(
                f"{path}: is no waveform model (samples in, samples out) and no {COMPLEX_MASK}; "
                f"kind {kind!r} cannot enhance a file by itself"
            )
        rate_hz = self.file.meta.get("sample_rate_hz", SAMPLE_RATE_HZ)
        if rate_hz != SAMPLE_RATE_HZ:
            raise ValueError(
                f"{path}: trained at {rate_hz} Hz; only {SAMPLE_RATE_HZ} Hz is supported"
            )
        if kind == COMPLEX_MASK:
            from speech.net.enhancer import MaskEnhancer

            self.mask = MaskEnhancer(self.file)
            self.engine = self.mask.engine
        else:
            self.engine, self._run, self._num_bytes = _runner(self.file)
            num_bytes = self._num_bytes(round(LEAST_SECONDS * SAMPLE_RATE_HZ))
            if num_bytes > MAX_BYTES:
                raise ValueError(f"{path}: {too_large(num_bytes, f'{LEAST_SECONDS:g} s of sound')}")

    def __call__(self, signal: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Runs the network on a whole signal; a waveform model gets it divided by its maximum.

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

        from speech.sound.audio import is_silent, peak_normalize, valid_signal

        signal = valid_signal(signal)
        if self.mask is not None:
            return self.mask(signal, threads)
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
        """Enhances one channel of any length (see the module).

        Args:
            signal: float [num_samples] at 16 kHz.
            peak: max |x| of the result; None for the level that fits ``signal`` best, or, with a
                complex mask, what comes out.
            whole: Never cut into blocks, whatever the memory; a complex mask gives the same anyway.
            threads: Of the C kernels; default: all cores.

        Returns:
            float32 [num_samples].

        Raises:
            ValueError: As `Enhancer.__call__`, or the peak is no positive number.
        """
        from speech.sound.audio import valid_signal
        from speech.sound.audiofiles import gain_to, peak_of

        signal = valid_signal(signal)
        if peak is not None and not 0 < peak < math.inf:
            raise ValueError(f"peak is {peak}; give a positive number, such as 1")
        if self.mask is not None or whole or self.takes_whole(len(signal)):
            output = self(signal, threads)
            if peak is None and self.mask is None:
                output = _fitting(output, signal)
        else:
            output = self._in_blocks(signal, threads)
        return output if peak is None else output * gain_to(peak, peak_of(output))

    def takes_whole(self, num_samples: int) -> bool:
        """Returns whether a waveform model enhances so many samples at 16 kHz in one piece."""
        from speech.net.memory import MAX_BYTES
        from speech.sound.audio import SAMPLE_RATE_HZ

        is_short = num_samples <= WHOLE_SECONDS * SAMPLE_RATE_HZ
        return is_short and self._num_bytes(num_samples) <= MAX_BYTES

    def _block_samples(self) -> int:
        """Returns the length of a block: `BLOCK_SECONDS`, or halves of it until one fits."""
        from speech.net.memory import MAX_BYTES
        from speech.sound.audio import SAMPLE_RATE_HZ

        size = round(BLOCK_SECONDS * SAMPLE_RATE_HZ)
        # The last two blocks may be longer by half of the overlap.
        fade = round(FADE_SECONDS * SAMPLE_RATE_HZ)
        while self._num_bytes(size + fade) > MAX_BYTES and size > 4 * fade:
            size //= 2
        return size

    def _in_blocks(self, signal: np.ndarray, threads: int | None) -> np.ndarray:
        import numpy as np

        from speech.sound.audio import SAMPLE_RATE_HZ

        fade = round(FADE_SECONDS * SAMPLE_RATE_HZ)
        ramp = np.linspace(0.0, 1.0, fade + 2, dtype=np.float32)[1:-1]
        output = np.zeros(len(signal), np.float32)
        for start, stop in blocks(len(signal), self._block_samples(), fade):
            noisy = signal[start:stop]
            part = _fitting(self(noisy, threads), noisy)
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


def _runner(
    file: ModelFile,
) -> tuple[str, Callable[[np.ndarray, int | None], np.ndarray], Callable[[int], int]]:
    """Returns the engine, what runs float32 [num_samples] with some threads, and its memory."""
    from speech.net import blockconv
    from speech.net.chain import blocks_from_layers, parameters_of
    from speech.net.inference import InferenceNetwork, spectra_bytes
    from speech.net.memory import MAX_BYTES

    found = blocks_from_layers([(layer.class_name, layer.config) for layer in file.layers])
    parameters = parameters_of(file.layers)
    # The spectra of short kernels beside one long one may take far more than the file.
    fits = found is not None and spectra_bytes(parameters) <= MAX_BYTES // 4
    if found is not None and fits and blockconv.is_available():
        network = InferenceNetwork(found[0], parameters, tanh=found[1])
        return "c", lambda signal, threads: network(signal, threads)[:, 0], network.num_bytes
    from speech.modelfile.exam import frames_more
    from speech.modelfile.spec import refusals
    from speech.net.keras_models import keras_function
    from speech.net.memory import keras_bytes

    function = keras_function(file.layers)
    with refusals(file.path):
        lost = -frames_more(file.layers)

    def run(signal: np.ndarray, threads: int | None) -> np.ndarray:
        if len(signal) <= lost:
            raise ValueError(
                f"{file.path}: needs more than {lost} samples at a time, as it has no padding; "
                f"received {len(signal)}"
            )
        return _centred(function(signal[None, :, None])[0, :, 0], len(signal))

    return "keras", run, lambda num_samples: keras_bytes(file.layers, num_samples)


def _centred(output: np.ndarray, num_samples: int) -> np.ndarray:
    """Puts zeros before and behind what a network without padding gives."""
    import numpy as np

    missing = num_samples - len(output)
    return np.pad(output, (missing // 2, missing - missing // 2)) if missing else output


@dataclass
class Report:
    """What a run did.

    Attributes:
        files: One row per file: input, output, seconds of audio, way ('whole', 'blocks' or
            'stream'), and, where an integer format would have clipped, turned_down_db.
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
    from speech.sound.audio import SAMPLE_RATE_HZ, read_multichannel
    from speech.sound.audiofiles import at_16k, file_row, put_channel, write_like

    if enhancer.mask is not None:
        return _stream_file(enhancer.mask, source, target, peak, threads)
    audio = read_multichannel(source)
    samples, rate_hz = audio.samples, audio.source_rate_hz
    num_at_16k = math.ceil(len(samples) * SAMPLE_RATE_HZ / rate_hz)
    way = "whole" if whole or enhancer.takes_whole(num_at_16k) else "blocks"
    for channel in range(samples.shape[1]):
        signal = enhancer.enhance(at_16k(audio, channel), whole=whole, threads=threads)
        noisy = samples[:, channel].copy() if way == "whole" else None
        enhanced = put_channel(audio, channel, signal)
        if noisy is not None:  # resampling moves the gain a little
            enhanced[:] = _fitting(enhanced, noisy)
    row = file_row(source, target, rate_hz, samples.shape) | _way(rate_hz, way)
    write_like(target, audio, row, peak)
    return row


def _way(rate_hz: int, way: str) -> dict[str, Any]:
    return {"sample_rate_hz": rate_hz, "way": way}


def _stream_file(
    mask: MaskEnhancer, source: Path, target: Path, peak: float | None, threads: int | None
) -> dict[str, Any]:
    """Enhances a file of any length in constant memory; see `enhance_file`."""
    from speech.sound.audio import SAMPLE_RATE_HZ, open_audio, resampled_length
    from speech.sound.audiofiles import file_row, too_short, write_stream

    with open_audio(source) as reader:
        rate_hz, shape = reader.sample_rate_hz, (reader.num_samples, reader.num_channels)
        # Of a file without samples the reader says so.
        if shape[0] and not resampled_length(shape[0], rate_hz, SAMPLE_RATE_HZ):
            raise too_short(source)
        row = file_row(source, target, rate_hz, shape) | _way(rate_hz, "stream")
        write_stream(target, _enhanced(mask, reader, threads), reader, row, peak)
    return row


def _enhanced(mask: MaskEnhancer, reader: AudioReader, threads: int | None) -> Iterator[np.ndarray]:
    """Yields enhanced float32 [any number, num_channels] at the rate of the file."""
    import numpy as np

    from speech.sound.audio import SAMPLE_RATE_HZ, StreamResampler

    num_channels = reader.num_channels
    down = StreamResampler(reader.sample_rate_hz, SAMPLE_RATE_HZ, num_channels)
    up = StreamResampler(SAMPLE_RATE_HZ, reader.sample_rate_hz, num_channels)
    streams = [mask.stream(threads) for _ in range(num_channels)]

    def pushed(block: np.ndarray) -> np.ndarray:
        parts = [
            stream.push(np.ascontiguousarray(column))
            for stream, column in zip(streams, block.T, strict=True)
        ]
        return up.push(np.stack(parts, axis=1))

    for block in reader.blocks():
        yield pushed(down.push(block))
    yield pushed(down.finish())
    yield up.push(np.stack([stream.finish() for stream in streams], axis=1))
    yield up.finish()


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

    from speech.net.blockconv import default_threads

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


def _fitting(output: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """Returns an output of no scale of its own with the gain that fits it best to the input.

    The gain g is <x, y> / <y, y>, which makes the sum of (x - g y)^2 least.
    """
    import numpy as np

    from speech.sound.audiofiles import peak_of

    highest, at_most = peak_of(output), peak_of(noisy)
    if not highest or not at_most:
        return output
    unit = output / highest  # neither too large nor too small to be squared
    gain = float(np.dot(noisy / at_most, unit)) / float(np.dot(unit, unit))
    return unit * np.float32(gain * at_most)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.base.files import remove_leftovers, write_json
    from speech.net.reach import summary_of
    from speech.sound.audiofiles import plan_outputs, say_turned_down

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
    summary = summary_of(enhancer.file)
    if summary is not None:
        print(f"network   {summary}")
    print(f"files     {len(report.files)} enhanced, {len(report.skipped)} skipped")
    if report.files:
        if enhancer.mask is not None:
            print(f"way       {len(ways)} as streams: the result of the whole in constant memory")
        else:
            print(f"way       {ways.count('whole')} whole, {ways.count('blocks')} in blocks of "
                  f"{BLOCK_SECONDS:g} s with cross-fades of {FADE_SECONDS:g} s")  # fmt: skip
        print(f"audio     {audio_seconds:.1f} s in {report.seconds:.1f} s, real-time factor "
              f"{report.seconds / max(audio_seconds, 1e-9):.4f}")  # fmt: skip
        print(f"written   {report.files[0]['output'] if len(jobs) == 1 else options.out}")
    say_turned_down(report.files)
    for _, reason in report.skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if options.json:
        write_json(
            options.json,
            {
                "model": str(enhancer.file.path),
                "sha256": enhancer.file.sha256,
                "kind": enhancer.file.kind,
                **({} if summary is None else {"summary": summary.to_json()}),
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
            note="Waveform models (fcn) enhance long files in cross-faded blocks, unless --whole "
            "says otherwise; models over time and frequency give the same for any length.",
        ),
    )
    add = parser.add_argument
    add("inputs", type=Path, nargs="+", metavar="INPUT", help="audio files or folders")
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="folder, or file for one file")
    add(
        "--model", type=Path, default=DEFAULT_MODEL, metavar="FILE", help="model (default: shipped)"
    )
    add("--peak", type=peak, metavar="P",
        help="max |x| of the output (default: the level that fits the input best; with a model "
        "over time and frequency what it gives)")  # fmt: skip
    add("--whole", action="store_true",
        help="never cut into blocks (memory grows with length; for waveform models)")  # fmt: skip
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
