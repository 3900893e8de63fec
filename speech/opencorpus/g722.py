"""Decodes G.722 at 64 kbit/s (ITU-T G.722, 1988), many files at once.

The decoder is a sequential adaptive loop that cannot be vectorized over time. It is vectorized
over files instead: every file is a lane, and one step of the loop decodes one byte of each.
All arithmetic is the standard's 16-bit fixed point, so the output is exact.
"""

from __future__ import annotations

import numpy as np

SAMPLE_RATE_HZ = 16000

# Tables of the standard: logarithmic step, quantizers' outputs, QMF.
_LOG_STEP_LOW = np.array([-60, -30, 58, 172, 334, 538, 1198, 3042])
_LOG_INDEX_LOW = np.array([0, 7, 6, 5, 4, 3, 2, 1, 7, 6, 5, 4, 3, 2, 1, 0])
_LOG_STEP_HIGH = np.array([798, -214, 798, -214])
_INVERSE_LOG = np.array(
    [2048, 2093, 2139, 2186, 2233, 2282, 2332, 2383, 2435, 2489, 2543, 2599, 2656, 2714, 2774, 2834,
     2896, 2960, 3025, 3091, 3158, 3228, 3298, 3371, 3444, 3520, 3597, 3676, 3756, 3838, 3922, 4008]
)  # fmt: skip
_OUTPUT_2_BITS = np.array([-7408, -1616, 7408, 1616])
_HALF_4_BITS = [20456, 12896, 8968, 6288, 4240, 2584, 1200]
_OUTPUT_4_BITS = np.array([0, *(-value for value in _HALF_4_BITS), *_HALF_4_BITS, 0])
_HALF_6_BITS = [
    24808, 21904, 19008, 16704, 14984, 13512, 12280, 11192, 10232, 9360, 8576, 7856, 7192, 6576,
    6000, 5456, 4944, 4464, 4008, 3576, 3168, 2776, 2400, 2032, 1688, 1360, 1040, 728,
]  # fmt: skip
_OUTPUT_6_BITS = np.array(
    [-136] * 4 + [-value for value in _HALF_6_BITS] + _HALF_6_BITS + [432, 136, -432, -136]
)
_QMF = np.array([3, -11, 12, 32, -210, 951, 3876, -805, 362, -156, 53, -11])

_FIRST_STEP = np.array([[32], [8]])  # low and high band
_LARGEST_LOG = np.array([[18432], [22528]])
_STEP_SHIFT = np.array([[8], [10]])


def decode(streams: list[bytes]) -> list[np.ndarray]:
    """Decodes G.722 streams.

    Args:
        streams: Bytes of the streams, one byte for two samples.

    Returns:
        int16 arrays [2 * len(stream)] at 16 kHz.
    """
    order = sorted(range(len(streams)), key=lambda lane: -len(streams[lane]))
    longest = len(streams[order[0]]) if streams else 0
    codes = np.zeros((longest, len(streams)), np.uint8)
    for lane, source in enumerate(order):
        codes[: len(streams[source]), lane] = np.frombuffer(streams[source], np.uint8)
    bands = _decode_bands(codes.astype(np.int64), [len(streams[source]) for source in order])
    decoded = [np.empty(0, np.int16)] * len(streams)
    for lane, source in enumerate(order):
        decoded[source] = _synthesize(bands[: len(streams[source]), :, lane])
    return decoded


def _decode_bands(codes: np.ndarray, lengths: list[int]) -> np.ndarray:
    """Decodes the two bands of every lane.

    Args:
        codes: Integers [num_steps, num_lanes], the lanes sorted from long to short.
        lengths: Bytes of each lane.

    Returns:
        Integers [num_steps, 2, num_lanes]: low and high band.
    """
    num_steps, num_lanes = codes.shape
    bands = np.zeros((num_steps, 2, num_lanes), np.int32)
    state = _State(num_lanes)
    for step in range(num_steps):
        while num_lanes and lengths[num_lanes - 1] <= step:  # the shortest lanes have ended
            num_lanes -= 1
        if num_lanes < state.num_lanes:
            state.shrink(num_lanes)
        bands[step, :, :num_lanes] = state.decode(codes[step, :num_lanes])
    return bands


class _State:
    """Predictors and steps of both bands; all arrays are integers [..., 2, num_lanes]."""

    def __init__(self, num_lanes: int):
        def zeros(*shape: int) -> np.ndarray:
            return np.zeros((*shape, 2, num_lanes), np.int64)

        self.num_lanes = num_lanes
        self.step = zeros() + _FIRST_STEP
        self.log_step = zeros()
        self.predicted = zeros()
        self.zeros_part = zeros()
        self.zeros_coefficients = zeros(6)
        self.differences = zeros(6)  # newest first
        self.poles_coefficients = zeros(2)
        self.last = zeros(1)  # reconstructed signal of the step before
        self.partial_signs = zeros(2)  # signs of the partly reconstructed signal, newest first

    def shrink(self, num_lanes: int) -> None:
        """Drops the last lanes."""
        self.num_lanes = num_lanes
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(self, name, np.ascontiguousarray(value[..., :num_lanes]))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Decodes one byte of every lane; returns [2, num_lanes]."""
        low, high = codes & 63, codes >> 6
        fine = np.stack([_OUTPUT_6_BITS[low], _OUTPUT_2_BITS[high]])
        signal = np.clip(self.predicted + (self.step * fine >> 15), -16384, 16383)
        coarse = np.stack([_OUTPUT_4_BITS[low >> 2], fine[1]])
        difference = self.step * coarse >> 15
        self._adapt_step(low >> 2, high)
        self._adapt_predictor(difference)
        return signal

    def _adapt_step(self, low: np.ndarray, high: np.ndarray) -> None:
        growth = np.stack([_LOG_STEP_LOW[_LOG_INDEX_LOW[low]], _LOG_STEP_HIGH[high]])
        self.log_step = np.clip((self.log_step * 127 >> 7) + growth, 0, _LARGEST_LOG)
        mantissa = _INVERSE_LOG[self.log_step >> 6 & 31]
        shift = _STEP_SHIFT - (self.log_step >> 11)
        self.step = (mantissa << np.maximum(-shift, 0) >> np.maximum(shift, 0)) << 2

    def _adapt_predictor(self, difference: np.ndarray) -> None:
        reconstructed = _saturate(self.predicted + difference)
        sign = _saturate(self.zeros_part + difference) >> 15
        first, second = self.poles_coefficients

        change = _saturate(first << 2)
        change = np.minimum(np.where(sign == self.partial_signs[0], -change, change), 32767)
        second = (
            np.where(sign == self.partial_signs[1], 128, -128)
            + (change >> 7)
            + (second * 32512 >> 15)
        )
        second = np.clip(second, -12288, 12288)
        bound = _saturate(15360 - second)
        first = _saturate(
            np.where(sign == self.partial_signs[0], 192, -192) + (first * 32640 >> 15)
        )
        first = np.clip(first, -bound, bound)

        push = np.where(difference == 0, 0, 128)
        same = (self.differences >> 15) == (difference >> 15)
        self.zeros_coefficients = _saturate(
            np.where(same, push, -push) + (self.zeros_coefficients * 32640 >> 15)
        )

        self.differences = np.concatenate([difference[None], self.differences[:-1]])
        self.partial_signs = np.stack([sign, self.partial_signs[0]])
        self.poles_coefficients = np.stack([first, second])
        poles = (first * _saturate(2 * reconstructed) >> 15) + (
            second * _saturate(2 * self.last[0]) >> 15
        )
        self.last = reconstructed[None]
        self.zeros_part = _saturate(
            np.sum(self.zeros_coefficients * _saturate(2 * self.differences) >> 15, axis=0)
        )
        self.predicted = _saturate(_saturate(poles) + self.zeros_part)


def _saturate(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -32768, 32767)


def _synthesize(bands: np.ndarray) -> np.ndarray:
    """Joins the two bands by the standard's quadrature mirror filter.

    Args:
        bands: Integers [num_steps, 2].

    Returns:
        int16 array [2 * num_steps].
    """
    num_steps = len(bands)
    if not num_steps:
        return np.empty(0, np.int16)
    sums, differences = bands[:, 0] + bands[:, 1], bands[:, 0] - bands[:, 1]
    samples = np.empty(2 * num_steps, np.int64)
    samples[0::2] = np.convolve(differences, _QMF)[:num_steps] >> 11
    samples[1::2] = np.convolve(sums, _QMF[::-1])[:num_steps] >> 11
    return _saturate(samples).astype(np.int16)
