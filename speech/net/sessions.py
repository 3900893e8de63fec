"""Live streams of several listeners at once, within limits; the page of ``speech.demo`` uses them.

A session is one signal on its way through one network (`Live`). Its samples come in numbered
blocks, each once and in order, and no faster than sound does. Nothing of it is kept but the state
of the stream, and a session to which nothing comes for `IDLE_S` is forgotten.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

import numpy as np

from speech.net.live import Live
from speech.net.plan import Plan
from speech.net.streaming import MAX_SAMPLE, Stream

MAX_SESSIONS = 4

#: A session is forgotten when no block comes for so long.
IDLE_S = 15.0

#: Longest block.
MAX_BLOCK_S = 1.0

#: Samples may come so much faster than their rate, as clocks differ and delayed blocks catch up.
_MOST_SPEED = 1.1
_MOST_AHEAD_S = 10.0

RATES_HZ = (8_000, 192_000)

#: How a sample is written: float32, full scale at 1, little-endian as in browsers.
SAMPLE_TYPE = np.dtype("<f4")

#: No block of any session has more bytes.
MAX_BLOCK_BYTES = round(MAX_BLOCK_S * RATES_HZ[1]) * SAMPLE_TYPE.itemsize


class Session:
    """One signal on its way through a network, block by block.

    Args:
        plan: The network.
        rate_hz: Of the samples; another one than the network's is resampled, there and back.
        clock: Says the time in seconds.

    Attributes:
        key: What its owner, and nobody else, knows.
        live: What runs it.
        last_s: When the last block came.
        block_samples: The best length of a block: what the network computes at a time.

    Raises:
        ValueError: The rate is out of range.
    """

    def __init__(self, plan: Plan, rate_hz: int, clock: Callable[[], float]) -> None:
        low, high = RATES_HZ
        if not low <= rate_hz <= high:
            raise ValueError(f"the rate is {rate_hz} Hz, expected {low:,} to {high:,} Hz")
        stream = Stream(plan)
        self.key = secrets.token_urlsafe(16)
        self.live = Live(stream, rate_hz)
        self.block_samples = stream.hop_samples * rate_hz // stream.sample_rate_hz
        self.last_s = clock()
        self._clock = clock
        self._lock = threading.Lock()
        self._number = 0
        self._allowed = _MOST_AHEAD_S * rate_hz

    def push(self, number: int, data: bytes) -> bytes:
        """Takes the next block and returns the samples that are finished.

        Args:
            number: Of the block, from 0.
            data: Of `SAMPLE_TYPE`, full scale at 1.

        Returns:
            The samples that follow those returned before, of the same type. The first one belongs
            to the first one that came: nothing is shifted.

        Raises:
            ValueError: The block is refused. It may come again; the signal has not moved.
        """
        with self._lock:
            samples = self._checked(number, data)
            self._number += 1
            return self.live.push(samples).astype(SAMPLE_TYPE).tobytes()

    def _checked(self, number: int, data: bytes) -> np.ndarray:
        if number != self._number:
            raise ValueError(
                f"block {number} came, expected block {self._number}: each comes once, in order"
            )
        size = SAMPLE_TYPE.itemsize
        if len(data) % size:
            raise ValueError(
                f"the block has {len(data)} bytes, expected a multiple of {size}: samples are "
                "float32, little-endian"
            )
        samples = np.frombuffer(data, SAMPLE_TYPE).astype(np.float32)
        if len(samples) > MAX_BLOCK_S * self.live.rate_hz:
            raise ValueError(
                f"the block has {len(samples):,} samples, expected at most {MAX_BLOCK_S:g} s, "
                f"which are {MAX_BLOCK_S * self.live.rate_hz:,.0f}"
            )
        num_bad = np.count_nonzero(~(np.abs(samples) <= MAX_SAMPLE))
        if num_bad:
            raise ValueError(
                f"{num_bad} of the block's {len(samples)} samples are NaN, infinite or beyond "
                "measure, expected full scale at 1"
            )
        self._pay(len(samples))
        return samples

    def _pay(self, num_samples: int) -> None:
        now, rate_hz = self._clock(), self.live.rate_hz
        earned = (now - self.last_s) * _MOST_SPEED * rate_hz
        allowed = min(self._allowed + earned, _MOST_AHEAD_S * rate_hz)
        if num_samples > allowed:
            raise ValueError(
                f"samples come faster than sound does, expected {rate_hz:,} per second; send "
                "what the microphone gives, when it gives it"
            )
        self._allowed, self.last_s = allowed - num_samples, now


class Sessions:
    """All sessions of a server; any thread may call.

    Args:
        clock: Says the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}

    @property
    def num_open(self) -> int:
        """Sessions that have neither stopped nor been forgotten."""
        return len(self._open)

    def start(self, plan: Plan, rate_hz: int) -> Session:
        """Opens a session.

        Args:
            plan: The network.
            rate_hz: Of the samples that will come.

        Raises:
            ValueError: The rate is out of range, or `MAX_SESSIONS` are open.
        """
        self.sweep()
        session = Session(plan, rate_hz, self._clock)
        with self._lock:
            if len(self._open) >= MAX_SESSIONS:
                raise ValueError(
                    f"{MAX_SESSIONS} live sessions are open, which is the most; stop one of them"
                )
            self._open[session.key] = session
        return session

    def of(self, key: str) -> Session:
        """Returns the session of a key.

        Raises:
            ValueError: There is none, or none any more.
        """
        try:
            return self._open[key]
        except KeyError:
            raise ValueError(
                f"there is no such live session, or nothing came for {IDLE_S:g} s and it was "
                "ended; start again"
            ) from None

    def stop(self, key: str) -> None:
        """Forgets a session, if there is one of this key."""
        with self._lock:
            self._open.pop(key, None)

    def sweep(self) -> None:
        """Forgets the sessions to which nothing comes any more."""
        with self._lock:
            now = self._clock()
            self._open = {k: s for k, s in self._open.items() if now - s.last_s <= IDLE_S}
