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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.base import cli
from speech.net.enhancer import (
    BLOCK_SECONDS,
    DEFAULT_MODEL,
    FADE_SECONDS,
    Enhancer,
    fit_level,
    gain_to_peak,
    peak_of,
)

if TYPE_CHECKING:
    import numpy as np

    from speech.net.mask_enhancer import MaskEnhancer
    from speech.sound.audio import AudioReader

#: Samples above it (full scale at 1) are no recording's: a float file of 16-bit numbers has them.
_LOUDEST = 10.0

_WAITING_SAMPLES = 1 << 16
_UNBOUNDED = ("FLOAT", "DOUBLE")  # sample formats that never clip


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
    import numpy as np

    from speech.sound.audio import (
        SAMPLE_RATE_HZ,
        fit_length,
        read_multichannel,
        resample,
        write_audio,
    )

    if enhancer.mask is not None:
        return _stream_file(enhancer.mask, source, target, peak, threads)
    audio = read_multichannel(source)
    samples = audio.samples  # overwritten channel by channel: long files are large
    num_at_16k = math.ceil(len(samples) * SAMPLE_RATE_HZ / audio.source_rate_hz)
    way = "whole" if whole or enhancer.takes_whole(num_at_16k) else "blocks"
    for channel in range(samples.shape[1]):
        at_16k = resample(
            np.ascontiguousarray(samples[:, channel]), audio.source_rate_hz, SAMPLE_RATE_HZ
        )
        if not len(at_16k):
            raise _too_short(source)
        enhanced = resample(
            enhancer.enhance(at_16k, whole=whole, threads=threads),
            SAMPLE_RATE_HZ,
            audio.source_rate_hz,
        )
        enhanced = fit_length(enhanced, len(samples))
        if way == "whole":  # resampling moves the gain a little
            enhanced = fit_level(enhanced, samples[:, channel])
        samples[:, channel] = enhanced
    row = _row(source, target, audio.source_rate_hz, samples.shape, way)
    subtype = writable_subtype(target, audio.subtype)
    samples *= level_for(subtype, peak_of(samples), row, peak)
    write_audio(target, samples, audio.source_rate_hz, subtype)
    return row


def _row(
    source: Path, target: Path, rate_hz: int, shape: tuple[int, ...], way: str
) -> dict[str, Any]:
    return {
        "input": str(source),
        "output": str(target),
        "sample_rate_hz": rate_hz,
        "channels": shape[1],
        "audio_seconds": shape[0] / rate_hz,
        "way": way,
    }


def _too_short(source: Path) -> ValueError:
    from speech.sound.audio import SAMPLE_RATE_HZ

    return ValueError(f"{source}: too short, nothing is left at {SAMPLE_RATE_HZ} Hz")


def _stream_file(
    mask: MaskEnhancer, source: Path, target: Path, peak: float | None, threads: int | None
) -> dict[str, Any]:
    """Enhances a file of any length in constant memory; see `enhance_file`."""
    from speech.sound.audio import SAMPLE_RATE_HZ, open_audio, resampled_length, write_blocks

    with open_audio(source) as reader:
        rate_hz, shape = reader.sample_rate_hz, (reader.num_samples, reader.num_channels)
        subtype = writable_subtype(target, reader.subtype)
        # Of a file without samples the reader says so.
        if shape[0] and not resampled_length(shape[0], rate_hz, SAMPLE_RATE_HZ):
            raise _too_short(source)
        row = _row(source, target, rate_hz, shape, "stream")
        blocks = _fitted(_enhanced(mask, reader, threads, row), shape[0])
        if peak is not None or subtype not in _UNBOUNDED:
            blocks = _levelled(blocks, target.parent, row, subtype, peak)
        write_blocks(target, blocks, shape[1], rate_hz, subtype)
    return row


def _enhanced(
    mask: MaskEnhancer, reader: AudioReader, threads: int | None, row: dict[str, Any]
) -> Iterator[np.ndarray]:
    """Yields enhanced float32 [any number, num_channels] at the rate of the file.

    At the end ``row`` gets ``over_full_scale_db`` if samples were beyond `_LOUDEST`.
    """
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

    highest = 0.0
    for block in reader.blocks():
        highest = max(highest, float(np.max(np.abs(block), initial=0.0)))
        yield pushed(down.push(block))
    if highest > _LOUDEST:
        row["over_full_scale_db"] = round(20 * math.log10(highest), 3)
    yield pushed(down.finish())
    yield up.push(np.stack([stream.finish() for stream in streams], axis=1))
    yield up.finish()


def _fitted(blocks: Iterator[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    """Cuts blocks off, or adds one, so that they have ``num_samples`` in all.

    Rounding in two resamplings may differ by a sample.
    """
    from speech.sound.audio import fit_length

    left, last = num_samples, None
    for last in blocks:
        yield last[:left]
        left -= min(len(last), left)
    if left and last is not None:
        yield fit_length(last[:0], left)


def _levelled(
    blocks: Iterator[np.ndarray],
    folder: Path,
    row: dict[str, Any],
    subtype: str,
    peak: float | None,
) -> Iterator[np.ndarray]:
    """Yields blocks times one factor, which is known once all are there; they wait in a file.

    Args:
        blocks: float32 [any number, num_channels].
        folder: Where there is room for a file.
        row: As for `level_for`.
        subtype: Of the file.
        peak: max |x| to give; None to only keep it within full scale.
    """
    import tempfile

    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        highest = 0.0
        for block in blocks:
            highest = max(highest, float(np.max(np.abs(block), initial=0.0)))
            file.write(np.ascontiguousarray(block).data)
        gain = level_for(subtype, highest, row, peak)
        file.seek(0)
        num_channels = row["channels"]
        while data := file.read(4 * num_channels * _WAITING_SAMPLES):
            yield np.frombuffer(data, np.float32).reshape(-1, num_channels) * gain


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


def plan_outputs(inputs: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Returns (source, target) for files and folders; folders keep their tree below ``out``.

    Raises:
        ValueError: An input is missing, two would have one target, or one would be overwritten.
    """
    from speech.sound.audio import FORMATS, find_audio

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
            paths = [path.relative_to(item) for path in find_audio(item, unreadable=True)]
            jobs += [(item / path, base / name) for path, name in _names(paths).items()]
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


def _names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Returns the name to write for each of a tree: of x.wav and x.mp3, that of x.mp3.wav too."""
    names = {path: path for path in paths if _writable(path) == path}
    taken = set(names)
    for path in paths:
        if path not in names:
            name = _writable(path)
            names[path] = path.with_name(f"{path.name}.wav") if name in taken else name
            taken.add(names[path])
    return {path: names[path] for path in paths}


def _writable(path: Path | str) -> Path:
    """Returns the name to write: endings that can only be read become .wav."""
    from speech.sound.audio import FORMATS

    path = Path(path)
    keep = path.suffix.lower() in FORMATS and FORMATS[path.suffix.lower()] != "NIST"
    return path if keep else path.with_suffix(".wav")


def writable_subtype(target: Path, wanted: str) -> str:
    """Returns a sample format for ``target``: ``wanted``, or its default if it can't hold that."""
    import soundfile

    from speech.sound.audio import FORMATS

    audio_format = FORMATS.get(target.suffix.lower(), "WAV")
    # Of the compressed kinds only Vorbis is written by everything that reads it.
    plain = wanted.startswith("PCM_") or wanted in ("FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS")
    if plain and soundfile.check_format(audio_format, wanted):
        return wanted
    return soundfile.default_subtype(audio_format)


def level_for(
    subtype: str, highest: float, row: dict[str, Any], peak: float | None = None
) -> np.float32:
    """Returns the factor for all channels of a file: their balance stays.

    Args:
        subtype: libsndfile's name of the sample format.
        highest: max |x| of the samples.
        row: Gets ``turned_down_db`` where ``peak`` is None and the format would clip.
        peak: max |x| to give; None to only keep it within full scale.
    """
    import numpy as np

    if peak is not None:
        return gain_to_peak(peak, highest)
    if subtype in _UNBOUNDED or highest <= 1.0:
        return np.float32(1.0)
    row["turned_down_db"] = round(20 * math.log10(highest), 3)
    return np.float32((1 - 1e-6) / highest)


def say_turned_down(rows: Sequence[dict[str, Any]]) -> None:
    """Says on stderr which files `level_for` has turned down, and which were far too loud."""
    for row in rows:
        if "over_full_scale_db" in row:
            print(f"{row['input']}: its samples reach {row['over_full_scale_db']:.0f} dB above "
                  "full scale, far from all that the network was trained on; scale the file to at "
                  "most 1 first", file=sys.stderr)  # fmt: skip
        if "turned_down_db" in row:
            print(f"{row['output']}: turned down by {row['turned_down_db']:.1f} dB, its format "
                  "would have clipped", file=sys.stderr)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options = _parser().parse_args(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.base.files import remove_leftovers, write_json
    from speech.net.reach import summary_of

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
