"""Enhances files, folders or arrays with a waveform model or one over time and frequency.

::

    python -m speech.enhance noisy.wav -o clean.wav
    python -m speech.enhance recordings/ -o enhanced/ --model model.h5

Any rate and number of channels may go in; the output has the same rate, channels, length, format
and folder tree. Each channel is resampled to the model's 16 kHz and enhanced by itself, so nothing
above 8 kHz is left. A network over time and frequency runs as a stream: memory does not grow with
the length of the file, the result is the same as for the whole file at once, and the masks
determine the level of the output. A waveform model runs on whole files, and on long ones in blocks;
its output gets the level that fits it best to the input (``speech.net.enhancer``). ``--peak`` sets
another level, and ``--whole`` forbids blocks.

Where an integer format would clip, all channels are turned down by one factor, and the command says
so.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech.base import cli
from speech.base.files import remove_leftovers, write_json
from speech.net.blockconv import default_threads
from speech.net.enhancer import (
    BLOCK_SECONDS,
    DEFAULT_MODEL,
    FADE_SECONDS,
    Enhancer,
    fit_level,
)
from speech.net.reach import summary_of
from speech.sound.audio import (
    SAMPLE_RATE_HZ,
    AudioReader,
    StreamResampler,
    open_audio,
    read_multichannel,
    resampled_length,
)
from speech.sound.audiofiles import (
    at_16k,
    file_row,
    peak_of,
    plan_outputs,
    put_channel,
    say_turned_down,
    too_short,
    write_like,
    write_stream,
)

if TYPE_CHECKING:
    from speech.net.mask_enhancer import MaskEnhancer

#: Samples above it (full scale at 1) are no recording's: a float file of 16-bit numbers has them.
_LOUDEST = 10.0


@dataclass(frozen=True)
class EnhanceConfig:
    """What to enhance, and how.

    Attributes:
        inputs: Audio files and folders.
        out: Folder to write; for one file it may be the file.
        model: Model file.
        peak: Level of the outputs, max |x| in (0, 1]; None for the one that fits the input best, or
            that a network over time and frequency gives.
        whole: Whether a waveform model never cuts into blocks.
    """

    inputs: tuple[Path, ...]
    out: Path
    model: Path = DEFAULT_MODEL
    peak: float | None = None
    whole: bool = False


@dataclass
class Report:
    """What a run did.

    Attributes:
        files: One row per file: input, output, seconds of audio, way ('whole', 'blocks' or
            'stream'); turned_down_db where an integer format would have clipped, and
            over_full_scale_db where a stream was far louder than anything a network is trained on.
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
            enhanced[:] = fit_level(enhanced, noisy)
    row = file_row(source, target, rate_hz, samples.shape) | _way(rate_hz, way)
    write_like(target, audio, row, peak)
    return row


def _way(rate_hz: int, way: str) -> dict[str, Any]:
    return {"sample_rate_hz": rate_hz, "way": way}


def _stream_file(
    mask: MaskEnhancer, source: Path, target: Path, peak: float | None, threads: int | None
) -> dict[str, Any]:
    """Enhances a file of any length in constant memory; see `enhance_file`."""
    with open_audio(source) as reader:
        rate_hz, shape = reader.sample_rate_hz, (reader.num_samples, reader.num_channels)
        # Of a file without samples the reader says so.
        if shape[0] and not resampled_length(shape[0], rate_hz, SAMPLE_RATE_HZ):
            raise too_short(source)
        row = file_row(source, target, rate_hz, shape) | _way(rate_hz, "stream")
        write_stream(target, _enhanced(mask, reader, threads, row), reader, row, peak)
    return row


def _enhanced(
    mask: MaskEnhancer, reader: AudioReader, threads: int | None, row: dict[str, Any]
) -> Iterator[np.ndarray]:
    """Yields enhanced float32 [any number, num_channels] at the rate of the file.

    At the end ``row`` gets ``over_full_scale_db`` if samples were beyond `_LOUDEST`.
    """
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

    highest = 0.0
    for block in reader.blocks():
        highest = max(highest, peak_of(block))
        yield pushed(down.push(block))
    if highest > _LOUDEST:
        row["over_full_scale_db"] = round(20 * math.log10(highest), 3)
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


def enhance(config: EnhanceConfig) -> tuple[Enhancer, Report]:
    """Enhances files and folders: what ``python -m speech.enhance`` does.

    Returns:
        What it was done with, and what was done.

    Raises:
        ValueError: The model is refused, two outputs would be one file, or the only input can't be
            read.
    """
    jobs = plan_outputs(config.inputs, config.out)
    for folder in {target.parent for _, target in jobs}:
        remove_leftovers(folder)
    enhancer = Enhancer(config.model)
    strict = len(jobs) == 1 and all(item.is_file() for item in config.inputs)
    return enhancer, enhance_all(
        enhancer, jobs, peak=config.peak, whole=config.whole, strict=strict
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    config = EnhanceConfig(
        tuple(options.inputs), options.out, options.model, options.peak, options.whole
    )
    cli.log_to_stderr()
    return cli.run(lambda: _run(config, options.json))


def _run(config: EnhanceConfig, json: Path | None) -> int:

    enhancer, report = enhance(config)
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
        is_one = len(report.files) + len(report.skipped) == 1
        print(f"written   {report.files[0]['output'] if is_one else config.out}")
    say_turned_down(report.files)
    for _, reason in report.skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if json:
        write_json(
            json,
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
    named = all(item.is_file() for item in config.inputs)
    return 0 if report.files and not (named and report.skipped) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech.enhance",
        description="Remove noise from speech recordings.",
        **cli.examples(
            "python -m speech.enhance noisy.wav -o clean.wav",
            "python -m speech.enhance recordings/ -o enhanced/ --model models/fcn_small.icse",
            note="Waveform models (fcn) enhance long files in cross-faded blocks, unless --whole "
            "is "
            "given; models over time and frequency enhance files of any length as a stream.",
        ),
    )
    add = parser.add_argument
    add("inputs", type=Path, nargs="+", metavar="INPUT",
        help="enhance these audio files or folders")  # fmt: skip
    add("-o", "--out", type=Path, required=True, metavar="OUT",
        help="write to this folder, or file for one file")  # fmt: skip
    add("--model", type=Path, default=DEFAULT_MODEL, metavar="FILE",
        help="use this model (default: the shipped denoise.icse)")  # fmt: skip
    add("--peak", type=peak, metavar="P",
        help="scale the output to max |x| = P (default: the level that fits the input best; with a "
        "model over time and frequency the level that it gives)")  # fmt: skip
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
