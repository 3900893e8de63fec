"""A stream as a listener needs it: any sample rate, a switch to the noisy signal, a meter.

NumPy and soxr only; ``speech.stream`` brings samples from a pipe or a device and takes them there.
"""

from __future__ import annotations

import functools
import math
import time

import numpy as np

from speech.net.streaming import MAX_SAMPLE, Stream
from speech.sound.audio import StreamResampler

#: The switch between enhanced and noisy fades over so many seconds: no click.
_FADE_S = 0.01

#: Of soxr. Its very high quality would keep samples for twice as long.
_QUALITY = "HQ"


class Live:
    """One channel on its way through a network.

    Args:
        stream: The network.
        rate_hz: Of the samples that come and go; another one than the network's is resampled.
        bypass: Whether the noisy signal comes out, as late as the enhanced one would.

    Attributes:
        bypass: The same; may be changed at any time.
        seconds: Of audio so far.
        busy_s: Seconds that were needed for it.
    """

    def __init__(self, stream: Stream, rate_hz: int, *, bypass: bool = False) -> None:
        self.rate_hz, self.bypass = rate_hz, bypass
        self.seconds = self.busy_s = 0.0
        self._stream = stream
        self._down, self._up = self._resamplers()
        self._noisy = np.zeros(0, np.float32)  # what has not come out yet
        self._mix = float(bypass)
        self._num_samples = self._num_given = self._num_repaired = 0
        self._levels = [0.0, 0.0]  # mean squares of input and output, of late

    def _resamplers(self) -> tuple[StreamResampler, StreamResampler]:
        own_hz, inner_hz = self.rate_hz, self._stream.sample_rate_hz
        return (
            StreamResampler(own_hz, inner_hz, 1, quality=_QUALITY),
            StreamResampler(inner_hz, own_hz, 1, quality=_QUALITY),
        )

    @functools.cached_property
    def latency_s(self) -> float:
        """Seconds after which a sample leaves at the latest; what resampling takes is tried out."""
        found = self._stream.latency_samples / self._stream.sample_rate_hz
        if self.rate_hz != self._stream.sample_rate_hz:
            down, up = self._resamplers()
            block = np.zeros((max(self.rate_hz // 100, 1), 1), np.float32)
            given = [len(up.push(down.push(block))) for _ in range(100)]
            behind = np.arange(1, 101) * len(block) - np.cumsum(given)
            found += float(behind[50:].max()) / self.rate_hz
        return found

    @property
    def num_silenced(self) -> int:
        """Hops that held no number and were taken for silence."""
        return self._stream.num_silenced + math.ceil(self._num_repaired / self._stream.hop_samples)

    @property
    def real_time_factor(self) -> float:
        """Seconds needed per second of audio."""
        return self.busy_s / self.seconds if self.seconds else 0.0

    @property
    def levels_db(self) -> tuple[float, float]:
        """Levels of input and output of late, in dB of full scale (a square wave)."""
        noisy, enhanced = (10 * math.log10(max(level, 1e-12)) for level in self._levels)
        return noisy, enhanced

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Takes the next samples, float32 [any number], and returns those that are finished."""
        return self._timed(samples, is_last=False)

    def finish(self) -> np.ndarray:
        """Ends the signal and returns the rest: as many samples came out as went in."""
        return self._timed(np.zeros(0, np.float32), is_last=True)

    def _timed(self, samples: np.ndarray, is_last: bool) -> np.ndarray:
        started = time.perf_counter()
        self._num_samples += len(samples)
        self.seconds += len(samples) / self.rate_hz
        if self.rate_hz != self._stream.sample_rate_hz:  # a filter would spread what is no number
            bad = ~(np.abs(samples) <= MAX_SAMPLE)
            if bad.any():
                self._num_repaired += int(bad.sum())
                samples = np.where(bad, np.float32(0), samples)
        given = self._resampled(self._down, samples, is_last)
        self._noisy = np.concatenate([self._noisy, given])
        found = self._stream.push(given)
        if is_last:
            found = np.concatenate([found, self._stream.flush()])
        found = self._switched(found)
        self._weigh(0, samples)
        self._weigh(1, found)
        found = self._resampled(self._up, found, is_last)[: self._num_samples - self._num_given]
        if is_last:  # two resamplings may round a sample away
            found = np.pad(found, (0, self._num_samples - self._num_given - len(found)))
        self._num_given += len(found)
        self.busy_s += time.perf_counter() - started
        return found

    def _resampled(self, way: StreamResampler, samples: np.ndarray, is_last: bool) -> np.ndarray:
        parts = [way.push(samples[:, None]), *([way.finish()] if is_last else [])]
        return np.concatenate(parts)[:, 0]

    def _switched(self, enhanced: np.ndarray) -> np.ndarray:
        noisy, self._noisy = self._noisy[: len(enhanced)], self._noisy[len(enhanced) :]
        wanted, step = float(self.bypass), 1 / (_FADE_S * self._stream.sample_rate_hz)
        if not len(enhanced) or self._mix == wanted == 0:
            return enhanced
        way = self._mix + np.sign(wanted - self._mix) * step * np.arange(1, len(enhanced) + 1)
        mix = np.clip(way, 0, 1).astype(np.float32)
        self._mix = float(mix[-1])
        noisy = np.where(np.abs(noisy) <= MAX_SAMPLE, noisy, np.float32(0))
        return enhanced + mix * (noisy - enhanced)

    def _weigh(self, which: int, samples: np.ndarray) -> None:
        if len(samples):
            with np.errstate(over="ignore", invalid="ignore"):
                square = float(np.mean(np.square(samples, dtype=np.float64)))
            if math.isfinite(square):
                weight = min(1.0, len(samples) / (0.3 * self.rate_hz))
                self._levels[which] += weight * (square - self._levels[which])


def decoded(data: bytes, sample_format: str) -> np.ndarray:
    """Returns raw PCM as float32 [num_samples], full scale at 1.

    Args:
        data: Whole samples.
        sample_format: 's16' (16 bits, the machine's byte order) or 'f32'.
    """
    if sample_format == "f32":
        return np.frombuffer(data, np.float32)
    return np.frombuffer(data, np.int16).astype(np.float32) / np.float32(32768)


def encoded(samples: np.ndarray, sample_format: str) -> bytes:
    """Returns samples as raw PCM; what is beyond full scale is clipped in 16 bits."""
    if sample_format == "f32":
        return samples.astype(np.float32).tobytes()
    return np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16).tobytes()
