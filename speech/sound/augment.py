"""Augmentation: noises, levels, bands and rooms that the recordings themselves do not hold.

Pure functions of arrays and a ``numpy.random.Generator``; ``speech.data.pipeline`` calls them. All
of it is off by default, as in the published recipe.

Conventions: float [num_samples] at 16 kHz, one channel; the dtype is kept.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass

import numpy as np

from speech.base.lazy import load, pyroomacoustics, scipy
from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.mixing import mix_at_snr

#: Centres of the bands of a random equalizer.
BANDS_HZ = np.geomspace(60.0, 8000.0, 10)

#: A second noise is this much weaker or louder than the first, at most.
SECOND_NOISE_DB = 10.0

#: Range of the upper end of a limited band: from a telephone's to nearly all there is.
BAND_LIMIT_HZ = (3400.0, 7500.0)

#: Reflections up to this time after the direct sound belong to the target: they help to
#: understand speech (Bradley et al. 2003).
EARLY_S = 0.05

#: Training draws from so many rooms, tests from as many others; each is simulated when first drawn.
NUM_ROOMS = 200
_MAX_REVERBERATION_S = 0.6
#: Reflections of higher order lie far below the direct sound, and cost with the cube of this.
_MAX_ORDER = 24


@dataclass(frozen=True)
class Augmentation:
    """Changes made to the training data; the defaults change nothing.

    Attributes:
        second_noise: Probability that a second noise is added to the first, at a level within
            +-`SECOND_NOISE_DB` of it.
        equalizer_db: Each of ten bands of a noise is raised or lowered by up to this, drawn anew
            for every noise: one recording then stands for many (as Valin 2018 does with filters).
        noise_speed: Noises are played faster or slower by up to this factor, pitch and all.
        gain_db: (low, high): the noisy signal, at peak 1, is scaled by so many dB. The target is
            not: the network's normalisation takes the level of its input out again, down to its
            epsilon, which is what this trains for.
        band_limit: Probability that noisy and clean both lose what is above a random frequency.
            Both: enhancement is not asked to invent a band that was never recorded.
        rooms: Probability that the speech is put into a simulated room. The target then is the
            direct sound with its early reflections (`EARLY_S`). Needs pyroomacoustics.
    """

    second_noise: float = 0.0
    equalizer_db: float = 0.0
    noise_speed: float = 1.0
    gain_db: tuple[float, float] | None = None
    band_limit: float = 0.0
    rooms: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        for name in ("second_noise", "band_limit", "rooms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a probability, 0 to 1")
        if not 0 <= self.equalizer_db <= 40:
            raise ValueError(f"equalizer_db is {self.equalizer_db}; give 0 to 40")
        if not 1 <= self.noise_speed <= 4:
            raise ValueError(f"noise_speed is {self.noise_speed}; give 1 to 4")
        if self.gain_db is not None:
            object.__setattr__(self, "gain_db", checked_range("gain_db", self.gain_db))
        if self.rooms:
            require_rooms()

    def description(self) -> list[str]:
        """Returns a line for each setting that is not its default."""
        plain = asdict(Augmentation())
        return [f"augment {k} {v}" for k, v in asdict(self).items() if v != plain[k]]


def checked_range(name: str, values: tuple[float, float], limit: float = 100.0) -> tuple:
    """Returns (low, high) as floats.

    Raises:
        ValueError: Not low <= high, or beyond +-limit.
    """
    low, high = (float(value) for value in values)
    if not -limit <= low <= high <= limit:
        raise ValueError(f"{name} is {low:g} to {high:g}; give low <= high within +-{limit:g}")
    return low, high


def draw_gains_db(depth_db: float, rng: np.random.Generator) -> np.ndarray:
    """Draws the gains in dB of the bands `BANDS_HZ`, uniformly within +-depth_db."""
    return rng.uniform(-depth_db, depth_db, len(BANDS_HZ))


def draw_speed(largest: float, rng: np.random.Generator) -> float:
    """Draws a speed between 1 / largest and largest, uniformly in its logarithm."""
    return math.exp(rng.uniform(-1, 1) * math.log(largest))


def lengths_at_speed(num_samples: int, speed: float) -> tuple[int, int]:
    """Returns how many samples `change_noise` is best given and asked for: fast transforms.

    Args:
        num_samples: Needed in the end.
        speed: Wanted; the ratio of the two lengths is close to it.
    """
    wanted = scipy.fft.next_fast_len(num_samples, real=True)
    return scipy.fft.next_fast_len(max(round(wanted * speed), 2), real=True), wanted


def change_noise(noise: np.ndarray, num_samples: int, gains_db: np.ndarray) -> np.ndarray:
    """Resamples and equalizes a noise at once, in one transform; it wraps around at its ends.

    Args:
        noise: [any number of samples]: with more than ``num_samples`` it becomes faster and higher.
        num_samples: Length to return.
        gains_db: Gains at `BANDS_HZ`; in between, straight lines over the logarithm of frequency.

    Returns:
        [num_samples].
    """
    return filter_and_resample(noise, num_samples, _curve(num_samples // 2 + 1, gains_db))


def filter_and_resample(
    signal: np.ndarray, num_samples: int, gains: np.ndarray | float
) -> np.ndarray:
    """Filters and resamples a signal in one transform, without delay; it wraps around at its ends.

    Args:
        signal: [any number of samples]: more than ``num_samples`` become faster and higher.
        num_samples: Length to return.
        gains: Factors of the bins from 0 Hz to half the sample rate of the result,
            [num_samples // 2 + 1], real or complex; or one for all of them.

    Returns:
        [num_samples], of the dtype of ``signal``.
    """
    spectrum = scipy.fft.rfft(signal)
    num_bins = num_samples // 2 + 1
    changed = np.zeros(num_bins, spectrum.dtype)
    shared = min(num_bins, len(spectrum))
    curve = gains[:shared] if isinstance(gains, np.ndarray) else gains
    curve = curve * (num_samples / len(signal))
    dtype = spectrum.dtype if np.iscomplexobj(curve) else signal.dtype
    changed[:shared] = spectrum[:shared] * np.asarray(curve).astype(dtype)
    return scipy.fft.irfft(changed, num_samples, overwrite_x=True)


def _curve(num_bins: int, gains_db: np.ndarray) -> np.ndarray:
    """Returns gain factors float64 [num_bins] from 0 Hz to half the sample rate."""
    # Interpolated on a coarse grid first: logarithms of every bin would cost as much as the FFT.
    grid = np.linspace(0, SAMPLE_RATE_HZ / 2, 513)
    level_db = np.interp(np.log(np.maximum(grid, 1.0)), np.log(BANDS_HZ), gains_db)
    return np.interp(np.linspace(0, 512, num_bins), np.arange(513), 10 ** (level_db / 20))


def add_noises(first: np.ndarray, second: np.ndarray, level_db: float) -> np.ndarray:
    """Adds two noises [num_samples], the second ``level_db`` above the first.

    Raises:
        ValueError: One of them is silent.
    """
    return mix_at_snr(first, second, -level_db, peak=math.inf).noisy


def limit_band(signal: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """Removes what is above ``cutoff_hz``, without delay; the slope is a tenth of it wide."""
    size = scipy.fft.next_fast_len(len(signal) + 512, real=True)
    spectrum = scipy.fft.rfft(signal, size)
    frequency = np.linspace(0, SAMPLE_RATE_HZ / 2, len(spectrum))
    slope = np.clip((cutoff_hz - frequency) / (0.1 * cutoff_hz), 0, 1)
    spectrum *= (0.5 - 0.5 * np.cos(np.pi * slope)).astype(signal.dtype)
    return scipy.fft.irfft(spectrum, size, overwrite_x=True)[: len(signal)]


def reverberate(
    speech: np.ndarray, response: np.ndarray, early_s: float = EARLY_S
) -> tuple[np.ndarray, np.ndarray]:
    """Puts speech into a room.

    Args:
        speech: [num_samples], dry.
        response: Room impulse response [num_response_samples]; its largest sample is the direct
            sound. The delay of it is taken out.
        early_s: See `EARLY_S`.

    Returns:
        All of the sound, and the direct sound with its early reflections: [num_samples] each.
    """
    direct = int(np.argmax(np.abs(response)))
    response = (response / response[direct]).astype(speech.dtype)
    early = response[: direct + round(early_s * SAMPLE_RATE_HZ)]
    return tuple(
        scipy.signal.oaconvolve(speech, part)[direct : direct + len(speech)]
        for part in (response, early)
    )


def require_rooms() -> None:
    """Raises ValueError where pyroomacoustics is missing."""
    try:
        load(pyroomacoustics)
    except ImportError:
        raise ValueError(
            "rooms are simulated by pyroomacoustics, which is not installed; "
            "`pip install pyroomacoustics`, or leave rooms out"
        ) from None


def draw_room(rng: np.random.Generator, split: str = "TRAIN") -> int:
    """Draws the number of a room for `room_response`; no room is in both splits.

    Args:
        rng: Drawn from once.
        split: 'TRAIN' or 'TEST'.
    """
    return int(rng.integers(NUM_ROOMS)) + (NUM_ROOMS if split == "TEST" else 0)


def reverberation_time_s(response: np.ndarray) -> float:
    """Measures in how many seconds the sound of a room falls by 60 dB.

    Extrapolated from 30 dB of the backward integral of the energy (Schroeder 1965). A simulated
    room differs from the time it was made for, since Sabine's formula is an approximation.

    Args:
        response: Room impulse response [num_samples] at 16 kHz.

    Raises:
        ValueError: pyroomacoustics is missing.
    """
    require_rooms()
    return float(
        pyroomacoustics.experimental.measure_rt60(
            np.asarray(response, np.float64), SAMPLE_RATE_HZ, decay_db=30
        )
    )


@functools.lru_cache(maxsize=NUM_ROOMS)
def room_response(number: int) -> np.ndarray:
    """Simulates a shoebox room by the image method (Allen and Berkley 1979).

    Size 3 to 10 by 3 to 8 by 2.4 to 4 m, walls for a reverberation time of 0.15 to 0.6 s by
    Sabine's formula, talker and microphone 0.3 to 3 m apart: all follow from ``number``.

    Returns:
        Read-only float32 [num_samples] at 16 kHz.

    Raises:
        ValueError: pyroomacoustics is missing.
    """
    require_rooms()
    # The order in which reflections are added up, and so the last bits, depends on it.
    pyroomacoustics.constants.set("num_threads", 1)
    rng = np.random.default_rng([7, number])
    while True:
        size = rng.uniform((3.0, 3.0, 2.4), (10.0, 8.0, 4.0))
        try:
            absorption, order = pyroomacoustics.inverse_sabine(
                rng.uniform(0.15, _MAX_REVERBERATION_S), size
            )
            break
        except ValueError:  # no wall absorbs enough for so short a time in so large a room
            continue
    room = pyroomacoustics.ShoeBox(
        size,
        fs=SAMPLE_RATE_HZ,
        materials=pyroomacoustics.Material(absorption),
        max_order=min(order, _MAX_ORDER),
    )
    margin = 0.3
    microphone = rng.uniform(margin, size - margin)
    direction = rng.standard_normal(3)
    distance = rng.uniform(0.3, 3.0)
    talker = microphone + distance * direction / np.linalg.norm(direction)
    room.add_source(np.clip(talker, margin, size - margin))
    room.add_microphone(microphone)
    room.compute_rir()
    response = np.asarray(room.rir[0][0], np.float32)
    response.flags.writeable = False
    return response
