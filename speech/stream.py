"""Enhances sound as it comes: raw PCM from a pipe into a pipe, or microphone to loudspeaker.

::

    arecord -f S16_LE -r 16000 | python -m speech.stream | aplay -f S16_LE -r 16000
    python -m speech.stream --device

As many samples come out as go in; each leaves 32 ms after it came, and what is finished is written
at once. Another ``--rate`` than the network's is resampled by soxr's stream, which keeps samples
for longer (67 ms at 48 kHz) and is said. A terminal on stderr shows levels, the real-time factor
and what was counted; the key b switches to the noisy signal and back, in step with the enhanced
one. No TensorFlow is loaded, and memory does not grow with time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.base import cli
from speech.base.lazy import load, sounddevice
from speech.net.enhancer import DEFAULT_MODEL
from speech.net.live import Live, decoded, encoded
from speech.net.streaming import Stream

FORMATS = {"s16": 2, "f32": 4}
_READ_BYTES = 1 << 15
_METER_S = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.device is not None and len(options.device) > 2:
        parser.error("--device takes at most two names or numbers: input and output")
    return cli.run(lambda: _run(**vars(options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech.stream",
        description="Remove noise from sound as it comes: standard input to standard output as raw "
        "PCM of one channel, or microphone to loudspeaker.",
        **cli.examples(
            "arecord -t raw -f S16_LE -r 16000 -c 1 | python -m speech.stream | "
            "aplay -t raw -f S16_LE -r 16000 -c 1",
            "ffmpeg -i noisy.mp4 -f f32le -ar 48000 -ac 1 - | "
            "python -m speech.stream --format f32 --rate 48000 | "
            "ffmpeg -f f32le -ar 48000 -ac 1 -i - clean.wav",
            "python -m speech.stream --device",
            "python -m speech.stream --device 3 5 --model models/denoise.icse",
            note="Keys, in a terminal: b switches to the noisy signal and back, q ends. --device "
            "needs pip install '.[live]'; python -m sounddevice lists the devices.",
        ),
    )
    add = parser.add_argument
    add("--model", type=Path, default=DEFAULT_MODEL, metavar="FILE",
        help="use this model (a causal network; default: the shipped denoise.icse)")  # fmt: skip
    add("--format", choices=sorted(FORMATS), default="s16",
        help="take and give samples in this format, native byte order (default s16)")  # fmt: skip
    add("--rate", type=cli.positive_number, metavar="HZ",
        help="take samples of this rate (default: the network's, 16000)")  # fmt: skip
    add("--device", nargs="*", metavar="DEVICE",
        help="lead a microphone to a loudspeaker; up to two names or numbers, input and output "
        "(default: the system's)")  # fmt: skip
    add("--bypass", action="store_true", help="begin with the noisy signal")
    return parser


def _run(
    model: Path, format: str, rate: int | None, device: Sequence[str] | None, bypass: bool
) -> int:
    stream = Stream(model)
    rate_hz = rate or stream.sample_rate_hz
    if not 1000 <= rate_hz <= 768_000:
        raise ValueError(f"--rate is {rate_hz}, expected 1,000 to 768,000 Hz")
    live = Live(stream, rate_hz, bypass=bypass)
    if rate_hz != stream.sample_rate_hz:
        print(f"{rate_hz} Hz resampled to {stream.sample_rate_hz} Hz and back, latency "
              f"{1000 * live.latency_s:.0f} ms; nothing is left above "
              f"{stream.sample_rate_hz / 2000:g} kHz", file=sys.stderr)  # fmt: skip
    if device is not None:
        return run_device(live, device, stream.hop_samples * rate_hz // stream.sample_rate_hz)
    return run_pipe(live, format, sys.stdin.fileno(), sys.stdout.fileno())


# --------------------------------------------------------------------------------------------
# Pipes


def run_pipe(live: Live, sample_format: str, source: int, target: int) -> int:
    """Reads raw PCM from one file descriptor until it ends and writes it to another.

    Args:
        live: Where the samples go through.
        sample_format: One of `FORMATS`.
        source: File descriptor to read.
        target: File descriptor to write.

    Returns:
        0.

    Raises:
        BrokenPipeError: The reader is gone; all that was finished before has been written.
    """
    size, rest = FORMATS[sample_format], b""
    with _watched(live) as is_wanted:
        while is_wanted() and (data := os.read(source, _READ_BYTES)):
            data = rest + data
            whole = len(data) // size * size
            rest = data[whole:]
            _write(target, encoded(live.push(decoded(data[:whole], sample_format)), sample_format))
        _write(target, encoded(live.finish(), sample_format))
    if rest:
        print(f"the input ends within a sample: {len(rest)} of {size} bytes; check --format",
              file=sys.stderr)  # fmt: skip
    print(_summary(live), file=sys.stderr)
    return 0


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


# --------------------------------------------------------------------------------------------
# Devices


def run_device(live: Live, devices: Sequence[str], block_samples: int) -> int:
    """Leads a microphone through the network to a loudspeaker until q or Ctrl-C.

    Args:
        live: Where the samples go through.
        devices: None, one or two of: name or number, of input and output.
        block_samples: Of a call by the device.

    Returns:
        0.

    Raises:
        ValueError: There is no such device, or it goes away.
    """
    try:
        load(sounddevice)
    except ImportError:
        raise ValueError("--device needs sounddevice: pip install '.[live]'") from None
    except OSError as error:  # the package is there, the library below it is not
        raise ValueError(f"{error}; install PortAudio, such as apt install libportaudio2") from None
    overruns, failed, ready = [0], [""], np.zeros(0, np.float32)

    def call(noisy: Any, output: Any, num_frames: int, times: Any, status: Any) -> None:
        nonlocal ready
        overruns[0] += bool(status)
        try:
            ready = np.concatenate([ready, live.push(noisy[:, 0].copy())])
        except Exception as error:  # PortAudio would print a traceback and go on without us
            failed[0] = str(error)
            raise sounddevice.CallbackAbort from None
        # At the beginning less has come out than went in: silence first.
        missing = max(num_frames - len(ready), 0)
        output[:missing, 0] = 0
        output[missing:, 0] = ready[: num_frames - missing]
        ready = ready[num_frames - missing :]

    chosen = [int(name) if name.isdecimal() else name for name in devices]
    device = (chosen * 2)[:2] if chosen else None
    try:
        with (
            sounddevice.Stream(
                samplerate=live.rate_hz, blocksize=block_samples, channels=1, dtype="float32",
                device=device, latency="low", callback=call,
            ) as line,
            _watched(live, overruns) as is_wanted,
            contextlib.suppress(KeyboardInterrupt),
        ):  # fmt: skip
            while is_wanted():
                if not line.active:
                    raise ValueError(failed[0] or "the sound device has gone away; connect it")
                time.sleep(_METER_S / 4)
    except sounddevice.PortAudioError as error:
        raise ValueError(
            f"the sound device: {error}; python -m sounddevice lists what there is"
        ) from None
    print(_summary(live, overruns), file=sys.stderr)
    return 0


# --------------------------------------------------------------------------------------------
# What is shown


def _summary(live: Live, overruns: Sequence[int] = ()) -> str:
    words = [f"{live.seconds:.1f} s of audio in {live.busy_s:.2f} s, real-time factor "
             f"{live.real_time_factor:.4f}"]  # fmt: skip
    if live.num_silenced:
        words.append(f"{live.num_silenced} hops held no number and were taken for silence")
    words += [f"{count} overruns" for count in overruns]
    return "; ".join(words)


def _meter(live: Live, overruns: Sequence[int]) -> str:
    noisy, output = live.levels_db
    words = [f"in {noisy:6.1f} dB", f"out {output:6.1f} dB", f"factor {live.real_time_factor:.4f}"]
    words += [f"overruns {count}" for count in overruns]
    words += [f"silenced {live.num_silenced}"] * bool(live.num_silenced)
    return "  ".join([*words, "[b] " + ("NOISY   " if live.bypass else "enhanced")])


@contextlib.contextmanager
def _watched(live: Live, overruns: Sequence[int] = ()) -> Iterator[Callable[[], bool]]:
    """Shows the meter and obeys keys while a block runs, if stderr is a terminal.

    Yields:
        Tells whether to go on.
    """
    if not sys.stderr.isatty():
        yield lambda: True
        return
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(_METER_S):
            sys.stderr.write("\r" + _meter(live, overruns))
            sys.stderr.flush()

    def obey(key: str) -> None:
        if key == "b":
            live.bypass = not live.bypass
        elif key == "q":
            ended.set()

    with _keys(obey):
        shower = threading.Thread(target=show, daemon=True)
        shower.start()
        try:
            yield lambda: not ended.is_set()
        finally:
            ended.set()
            shower.join()
            sys.stderr.write("\n")


@contextlib.contextmanager
def _keys(obey: Callable[[str], None]) -> Iterator[None]:
    """Hands each key that is pressed to ``obey``; standard input is not touched.

    The keys are of the job in front: one in the background would be halted for asking.
    """
    with contextlib.ExitStack() as stack:
        try:
            import termios
            import tty

            terminal = os.open("/dev/tty", os.O_RDONLY)
            stack.callback(os.close, terminal)
            is_in_front = os.tcgetpgrp(terminal) == os.getpgrp()
        except (ImportError, OSError):  # no such terminals here, or none
            is_in_front = False
        if not is_in_front:
            yield
            return
        ended, end = os.pipe()
        stack.callback(os.close, ended)

        def read() -> None:
            with contextlib.suppress(OSError):
                while ended not in select.select([terminal, ended], [], [])[0]:
                    if not (key := os.read(terminal, 1)):
                        break
                    obey(key.decode("latin-1"))

        reader = threading.Thread(target=read, daemon=True)
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal)
            reader.start()
            yield
        finally:
            os.close(end)
            if reader.is_alive():
                reader.join()
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main())
