"""Pieces of noisy and clean speech for the network over time and frequency, mixed on the fly.

Every piece has a position in one endless stream. What stands there (voice, noises, room, level,
codec) follows from the seed and the position alone, so a run can be taken up at any step, and any
number of threads gives the same pieces.

Noisy and clean keep one common scale: ``noisy - clean`` is what the network has to remove. Nothing
is normalised to its peak; the noisy piece gets an absolute level instead, as in use. A network that
gives a mask can only weaken and strengthen what it hears, so whatever takes a band away from the
noisy signal takes it away from the target, too.

The order is that of the real thing: voice (speed, spectral envelope), room, noises and the
self-noise of the microphone at the SNR, colour and band limit of the microphone, overload, level,
codec. All linear filters are applied at once, in one transform for each signal, before the SNR is
made: the SNR is that of the piece itself.

Conventions: float32 [num_samples] at 16 kHz, full scale at +-1. NumPy and SciPy only.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from speech.base.lazy import scipy, soundfile
from speech.data.cache import AudioCache, expand
from speech.data.corpus import Noise, Utterance, load_noise, split_utterances
from speech.sound import augment
from speech.sound.audio import SAMPLE_RATE_HZ, AudioError, read_audio
from speech.sound.augment import checked_range
from speech.sound.mixing import draw_segment

_LOGGER = logging.getLogger("speech")

#: Frames of the active speech level, in samples: 20 ms.
ACTIVE_FRAME_SAMPLES = 320
#: Frames this far below the loudest one are pauses.
ACTIVE_RANGE_DB = 30.0

#: Half the sample rate in equal steps: filters are drawn on this grid.
_GRID_HZ = np.linspace(0, SAMPLE_RATE_HZ / 2, 513)
_LOG_GRID = np.log(np.maximum(_GRID_HZ, 1.0))
_LOG_BANDS = np.log(augment.BANDS_HZ)
#: Control points of the spectral envelope of a voice: coarser than formants lie apart.
_LOG_ENVELOPE = np.log(np.geomspace(150.0, 8000.0, 6))

#: Sound before and after a piece that filters may reach into, and that rooms need.
_MARGIN_SAMPLES = 256
_ROOM_LEAD_SAMPLES = round(0.6 * SAMPLE_RATE_HZ)

#: A piece that cannot be made (silence, a bad file) is drawn anew, at most so many times.
_MAX_DRAWS = 20
#: Draws of a place in an utterance before a quiet one is taken.
_MAX_PLACES = 8
#: A piece this far below the active level of its utterance is a pause.
_QUIET_DB = 15.0

_PAUSE_S = (0.1, 0.8)
_JOIN_DB = 3.0  # utterances of one speaker are joined at levels this far apart, at most
_BABBLE_DB = 6.0  # likewise the voices of a babble
_SELF_NOISE_DB = (-30.0, 0.0)  # relative to the other noise
_TILT_DB = (-9.0, 3.0)  # per octave, of synthetic noise
_MODULATIONS_HZ = (0.5, 8.0)
_CLIPPING_DB = (1.0, 12.0)


@dataclass(frozen=True)
class Codec:
    """A lossy way to keep or send speech.

    Attributes:
        name: For messages and counts.
        format: 'MULAW', or a format of libsndfile, which codes and decodes in memory.
        subtype: Of libsndfile.
        compression_level: Of libsndfile, 0 to 1: the higher, the fewer bits.
        cutoff_hz: What lies above is lost, so it is taken from the target as well; 0 for nothing.
        weight: How often it is drawn, relative to the others.
    """

    name: str
    format: str
    subtype: str = ""
    compression_level: float = 0.0
    cutoff_hz: float = 0.0
    weight: float = 1.0


#: Bit rates and cutoffs as measured with libsndfile 1.2.2 on speech at 16 kHz. None of them delays
#: the signal (a test measures it). Opus takes ten times as long as the others, so it is rare.
CODECS = (
    Codec("mu-law, 8 kHz", "MULAW", cutoff_hz=3900.0, weight=3.0),
    Codec("mu-law, 16 kHz", "MULAW", weight=2.0),
    Codec("MP3, 32 kbit/s", "MP3", "MPEG_LAYER_III", 0.8, 7400.0, 1.0),
    Codec("MP3, 27 kbit/s", "MP3", "MPEG_LAYER_III", 0.95, 5500.0, 1.0),
    Codec("MP3, 24 kbit/s", "MP3", "MPEG_LAYER_III", 0.99, 4300.0, 1.0),
    Codec("Vorbis, 43 kbit/s", "OGG", "VORBIS", 0.9, weight=1.0),
    Codec("Vorbis, 40 kbit/s", "OGG", "VORBIS", 1.0, 7600.0, 1.0),
    Codec("Opus, 17 kbit/s", "OGG", "OPUS", 0.97, weight=0.25),
    Codec("Opus, 12 kbit/s", "OGG", "OPUS", 0.99, 4200.0, 0.25),
)


@dataclass(frozen=True)
class MixingConfig:
    """Settings of the pieces and how they are mixed.

    Every ``*_share`` is a probability, 0 to 1, every ``*_range*`` is (low, high), drawn uniformly.

    Attributes:
        snr_range_db: SNR in dB: power of the speech (in a room: of all of it) over its active
            frames (`active_power`), over the power of all noise in the piece.
        level_range_dbfs: RMS of the noisy piece in dB relative to full scale. It is lowered where
            the peak would pass 1.
        noise_share: Pieces of noise alone, with silence as the target.
        speech_share: Pieces of speech alone, which is its own target.
        babble_share: Noises that are 4 to 8 voices of other speakers.
        synthetic_share: Noises that are white noise with a random smooth spectrum and a slow
            random modulation.
        second_noise_share: Pieces with a second noise, within `augment.SECOND_NOISE_DB` of the
            first.
        self_noise_share: Pieces with the white noise of a microphone.
        noise_equalizer_db: Ten bands of every noise are raised or lowered by up to this.
        noise_speed: Noises are played faster or slower by up to this factor.
        voice_share: Speech made that of another voice, by `voice_speed` and `voice_envelope_db`.
        voice_speed: Speed and pitch change by up to this factor.
        voice_envelope_db: Six bands of the voice are raised or lowered by up to this.
        room_share: Speech in a simulated room. The target is the direct sound with its early
            reflections (`augment.EARLY_S`). Needs pyroomacoustics.
        microphone_share: Pieces, speech and noise alike, with the colour of a microphone.
        microphone_db: Ten bands are raised or lowered by up to this.
        band_limit_share: Pieces, speech and noise alike, without what lies above a frequency
            within `augment.BAND_LIMIT_HZ`.
        clipping_share: Pieces whose noisy signal is clipped, 1 to 12 dB below its peak.
        codec_share: Pieces whose noisy signal went through one of `CODECS`.
    """

    snr_range_db: tuple[float, float] = (-10.0, 25.0)
    level_range_dbfs: tuple[float, float] = (-35.0, -10.0)
    noise_share: float = 0.05
    speech_share: float = 0.05
    babble_share: float = 0.08
    synthetic_share: float = 0.08
    second_noise_share: float = 0.3
    self_noise_share: float = 0.15
    noise_equalizer_db: float = 10.0
    noise_speed: float = 1.25
    voice_share: float = 0.5
    voice_speed: float = 1.15
    voice_envelope_db: float = 5.0
    room_share: float = 0.2
    microphone_share: float = 0.2
    microphone_db: float = 4.0
    band_limit_share: float = 0.1
    clipping_share: float = 0.05
    codec_share: float = 0.08

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        for name, value in asdict(self).items():
            if name.endswith("_share") and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give a probability, 0 to 1")
            if name.endswith("_db") and not name.endswith("_range_db") and not 0 <= value <= 40:
                raise ValueError(f"{name} is {value}; give 0 to 40 dB")
            if name.endswith("_speed") and not 1 <= value <= 4:
                raise ValueError(f"{name} is {value}; give a factor from 1 to 4")
        for name in ("snr_range_db", "level_range_dbfs"):
            object.__setattr__(self, name, checked_range(name, getattr(self, name)))
        for one, other in (("noise_share", "speech_share"), ("babble_share", "synthetic_share")):
            if getattr(self, one) + getattr(self, other) > 1:
                raise ValueError(f"{one} and {other} add up to more than 1; lower one of them")
        if self.level_range_dbfs[1] > 0:
            raise ValueError(
                f"level_range_dbfs goes up to {self.level_range_dbfs[1]:g}; full scale is 0"
            )

    def description(self) -> list[str]:
        """Returns a line for each setting."""
        return [f"mixing {name} {value}" for name, value in asdict(self).items()]


@dataclass(frozen=True)
class NoisePlan:
    """One noise of a piece.

    Attributes:
        kind: 'recorded', 'babble' for several voices at once, or 'synthetic' for shaped and
            modulated white noise.
        index: Which recording, 0 where it is none.
        speakers: Whose voices, for a babble.
        level_db: Relative to the first noise of the piece.
    """

    kind: str
    index: int = 0
    speakers: tuple[str, ...] = ()
    level_db: float = 0.0


@dataclass(frozen=True)
class PiecePlan:
    """All random choices for one piece, without the samples.

    Attributes:
        kind: 'mixture' of speech and noise, 'noise' alone, whose target is silence, or 'speech'
            alone.
        speaker: Whose speech; '' for noise alone.
        snr_db: Of a mixture.
        level_dbfs: RMS of the noisy piece.
        noises: None for speech alone, else one or two.
        self_noise_db: Level of the self-noise relative to the other noise; None for none.
        is_new_voice: Whether the voice is changed.
        speed: Of the voice, to 1 %.
        room: Number of the simulated room (`augment.room_response`); None for none.
        has_microphone: Whether speech and noise are coloured.
        band_limit_hz: What lies above is taken from both; 0 for nothing.
        clipping_db: How far below its peak the noisy signal is clipped; 0 for not at all.
        codec: What the noisy signal went through; None for nothing.
    """

    kind: str
    speaker: str
    snr_db: float
    level_dbfs: float
    noises: tuple[NoisePlan, ...] = ()
    self_noise_db: float | None = None
    is_new_voice: bool = False
    speed: float = 1.0
    room: int | None = None
    has_microphone: bool = False
    band_limit_hz: float = 0.0
    clipping_db: float = 0.0
    codec: Codec | None = None


class PieceSource:
    """An endless stream of noisy and clean pieces of one length: see the module.

    Speakers are drawn evenly, whatever the number of their utterances. An utterance longer than a
    piece is cut at random; shorter ones of the same speaker are joined, with pauses of 0.1 to
    0.8 s in which the target is zero and the noise goes on.

    Args:
        utterances: At least one.
        noises: At least one; all of them, and only the parts that they name, are used.
        config: See `MixingConfig`.
        num_samples: Length of a piece at 16 kHz.
        batch_size: Pieces of a batch.
        seed: Another seed gives another stream.
        cache: Share one between sources of the same files.

    Raises:
        ValueError: No utterances, no noises, a size below 1, a negative seed, or rooms are asked
            for and cannot be simulated.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        noises: Sequence[Noise],
        config: MixingConfig | None = None,
        *,
        num_samples: int = 2 * SAMPLE_RATE_HZ,
        batch_size: int = 16,
        seed: int = 0,
        cache: AudioCache | None = None,
    ) -> None:
        for what, values in (("utterances", utterances), ("noises", noises)):
            if not len(values):
                raise ValueError(f"no {what} to train on; give at least one")
        for name, value, lowest in (
            ("num_samples", num_samples, ACTIVE_FRAME_SAMPLES),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if value < lowest:
                raise ValueError(f"{name} is {value}; give at least {lowest}")
        self.config = config or MixingConfig()
        if self.config.room_share:
            augment.require_rooms()
        self.utterances = tuple(utterances)
        self.noises = tuple(noises)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self._cache = cache or AudioCache()
        self._by_speaker: dict[str, list[Utterance]] = {}
        for utterance in utterances:
            self._by_speaker.setdefault(utterance.speaker, []).append(utterance)
        self.speakers = tuple(sorted(self._by_speaker))
        self._powers: dict[str, float] = {}
        self._announced: set[str] = set()
        self._codec_weights = np.array([codec.weight for codec in CODECS])
        self._codec_weights /= self._codec_weights.sum()

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float32 [batch_size, num_samples] each, of one batch.

        Raises:
            ValueError: As `piece`.
        """
        first = index * self.batch_size
        noisy = np.empty((self.batch_size, self.num_samples), np.float32)
        clean = np.empty_like(noisy)
        for row in range(self.batch_size):
            noisy[row], clean[row] = self.piece(first + row)
        return noisy, clean

    def piece(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns noisy and clean, float32 [num_samples] each, of one position from 0 up.

        Raises:
            ValueError: None of twenty draws gave a piece: files are silent or cannot be read.
        """
        reason: Exception | None = None
        for attempt in range(_MAX_DRAWS):
            plan = self.plan(position, attempt)
            try:
                return self._render(plan, self._rng(position, attempt, 1))
            except ValueError as error:
                reason = error
                if str(error) not in self._announced:
                    self._announced.add(str(error))
                    _LOGGER.warning("skipped in training: %s", error)
        raise ValueError(f"no usable piece in {_MAX_DRAWS} draws; the last: {reason}")

    def plan(self, position: int, attempt: int = 0) -> PiecePlan:
        """Returns what is drawn for a position; ``attempt`` counts what could not be made."""
        config, rng = self.config, self._rng(position, attempt, 0)
        # Everything is drawn in any case: a changed share changes nothing else.
        kind_draw, room_draw, voice_draw, band_draw, clipping_draw, codec_draw, colour_draw = (
            rng.random(7)
        )
        kind = "mixture"
        if kind_draw < config.noise_share:
            kind = "noise"
        elif kind_draw < config.noise_share + config.speech_share:
            kind = "speech"
        plan = PiecePlan(
            kind,
            speaker=self.speakers[rng.integers(len(self.speakers))],
            snr_db=float(rng.uniform(*config.snr_range_db)),
            level_dbfs=float(rng.uniform(*config.level_range_dbfs)),
            has_microphone=bool(colour_draw < config.microphone_share),
        )
        speed = augment.draw_speed(config.voice_speed, rng)
        room = augment.draw_room(rng)
        cutoff_hz = float(rng.uniform(*augment.BAND_LIMIT_HZ))
        clipping_db = float(rng.uniform(*_CLIPPING_DB))
        codec = CODECS[int(rng.choice(len(CODECS), p=self._codec_weights))]
        noises = self._plan_noises(plan.speaker, rng)
        self_noise_db = self._plan_self_noise(rng)
        changes: dict[str, Any] = {}
        if voice_draw < config.voice_share:
            changes |= {"is_new_voice": True, "speed": speed}
        if room_draw < config.room_share and kind == "mixture":
            changes["room"] = room
        if band_draw < config.band_limit_share:
            changes["band_limit_hz"] = cutoff_hz
        if clipping_draw < config.clipping_share and kind != "speech":
            changes["clipping_db"] = clipping_db
        if codec_draw < config.codec_share and kind != "speech":
            changes["codec"] = codec
        if kind != "speech":
            changes |= {"noises": noises, "self_noise_db": self_noise_db}
        if kind == "noise":
            changes |= {"speaker": "", "is_new_voice": False, "speed": 1.0}
        return replace(plan, **changes)

    def description(self) -> list[str]:
        """Returns a line for each utterance, noise (with the part that is used) and setting."""
        return [
            *(f"speech {item.id} {item.path.stat().st_size}" for item in self.utterances),
            *(
                f"noise {item.name} {item.path.stat().st_size} {item.start} {item.stop}"
                for item in self.noises
            ),
            f"pieces {self.num_samples} {self.batch_size} {self.seed}",
            *self.config.description(),
        ]

    def fingerprint(self) -> str:
        """Returns a SHA-256 over `description`: tells data sets apart."""
        lines = "\n".join(sorted(self.description()))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2, *numbers])

    def _plan_noises(self, speaker: str, rng: np.random.Generator) -> tuple[NoisePlan, ...]:
        second_draw, level_db = rng.random(), rng.uniform(-1, 1) * augment.SECOND_NOISE_DB
        noises = [self._plan_noise(speaker, rng) for _ in range(2)]
        if second_draw >= self.config.second_noise_share:
            return (noises[0],)
        return noises[0], replace(noises[1], level_db=float(level_db))

    def _plan_noise(self, speaker: str, rng: np.random.Generator) -> NoisePlan:
        config, kind_draw = self.config, rng.random()
        index, num_voices = int(rng.integers(len(self.noises))), int(rng.integers(4, 9))
        others = [name for name in self.speakers if name != speaker]
        if kind_draw < config.babble_share and others:
            chosen = rng.choice(len(others), num_voices, replace=len(others) < num_voices)
            return NoisePlan("babble", speakers=tuple(others[place] for place in chosen))
        if 0 <= kind_draw - config.babble_share < config.synthetic_share:
            return NoisePlan("synthetic")
        return NoisePlan("recorded", index)

    def _plan_self_noise(self, rng: np.random.Generator) -> float | None:
        draw, level_db = rng.random(), float(rng.uniform(*_SELF_NOISE_DB))
        return level_db if draw < self.config.self_noise_share else None

    def _render(self, plan: PiecePlan, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        both = self._draw_microphone(plan, rng)
        noise = None
        if plan.noises:
            noise = self._noise(plan, both, rng)
        if plan.kind == "noise":
            assert noise is not None
            noisy, clean = noise, np.zeros_like(noise)
        else:
            heard, clean = self._speech(plan, both, rng)
            noisy = heard
            if noise is not None:
                ratio = active_power(heard) / _positive(_power(noise), "noise")
                noisy = heard + noise * np.float32(math.sqrt(ratio * 10 ** (-plan.snr_db / 10)))
        if plan.clipping_db:
            peak = float(np.max(np.abs(noisy))) * 10 ** (-plan.clipping_db / 20)
            noisy = np.clip(noisy, -peak, peak)
        gain = 10 ** (plan.level_dbfs / 20) / math.sqrt(_positive(_power(noisy), "a piece"))
        gain = min(gain, 1 / _peak(noisy, clean))
        noisy, clean = noisy * np.float32(gain), clean * np.float32(gain)
        if plan.codec is not None:
            noisy = apply_codec(noisy, plan.codec)
            if (peak := _peak(noisy)) > 1:
                noisy, clean = noisy / np.float32(peak), clean / np.float32(peak)
        return noisy, clean

    def _draw_microphone(self, plan: PiecePlan, rng: np.random.Generator) -> np.ndarray:
        """Returns the gains on the grid that speech and noise have in common."""
        gains = np.ones(len(_GRID_HZ))
        if plan.has_microphone:
            gains_db = augment.draw_gains_db(self.config.microphone_db, rng)
            gains = _on_grid(gains_db, _LOG_BANDS)
        limits_hz = [plan.band_limit_hz, plan.codec.cutoff_hz if plan.codec else 0.0]
        for cutoff_hz in filter(None, limits_hz):
            gains = gains * _low_pass(cutoff_hz)
        return gains

    def _speech(
        self, plan: PiecePlan, gains: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the speech that is heard and its early part; without a room they are one."""
        if plan.is_new_voice:
            envelope_db = rng.uniform(-1, 1, len(_LOG_ENVELOPE)) * self.config.voice_envelope_db
            gains = gains * _on_grid(envelope_db, _LOG_ENVELOPE)
        lead = _MARGIN_SAMPLES if plan.room is None else _ROOM_LEAD_SAMPLES
        total = scipy.fft.next_fast_len(lead + self.num_samples + _MARGIN_SAMPLES, real=True)
        length = _input_length(total, plan.speed)
        dry = self._join(plan.speaker, length, rng)
        curve = _curve(gains, total // 2 + 1)
        place = slice(lead, lead + self.num_samples)
        if plan.room is None:
            speech = augment.filter_and_resample(dry, total, curve)[place]
            return speech, speech
        heard, early = (
            augment.filter_and_resample(dry, total, response * curve)[place]
            for response in _room_spectra(plan.room, total)
        )
        return heard, early

    def _join(self, speaker: str, length: int, rng: np.random.Generator) -> np.ndarray:
        """Returns float32 [length] of one speaker, with pauses where utterances are short."""
        utterances = self._by_speaker[speaker]
        samples, power = self._utterance(utterances[rng.integers(len(utterances))])
        if len(samples) >= length:
            for _ in range(_MAX_PLACES):
                start = int(rng.integers(len(samples) - length + 1))
                piece = expand(samples[start : start + length])
                if _power(piece) > power * 10 ** (-_QUIET_DB / 10):
                    break
            return piece
        joined = np.zeros(length, np.float32)
        # The first one may begin before the piece: any place of it is as likely to be heard.
        position = int(rng.integers(-len(samples) // 2, length // 4 + 1))
        target = power
        while position < length:
            factor = np.float32(1 / 32768 if samples.dtype == np.int16 else 1)
            level_db = rng.uniform(-1, 1) * _JOIN_DB
            factor *= np.float32(math.sqrt(target / power) * 10 ** (level_db / 20))
            first, last = max(position, 0), min(position + len(samples), length)
            if last > first:
                joined[first:last] = samples[first - position : last - position] * factor
            position += len(samples) + round(rng.uniform(*_PAUSE_S) * SAMPLE_RATE_HZ)
            samples, power = self._utterance(utterances[rng.integers(len(utterances))])
        return joined

    def _utterance(self, utterance: Utterance) -> tuple[np.ndarray, float]:
        """Returns samples, int16 or float32, and their active power.

        Raises:
            ValueError: The file cannot be read or is silent.
        """
        path = utterance.path
        samples = self._cache.get(path, lambda: read_audio(path, SAMPLE_RATE_HZ).samples)
        if (power := self._powers.get(utterance.id)) is None:
            try:
                power = active_power(expand(samples))
            except ValueError as error:
                raise AudioError(f"{path}: {error}; leave this file out") from None
            self._powers[utterance.id] = power
        return samples, power

    def _noise(self, plan: PiecePlan, gains: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns all noise of a piece, of any level."""
        total = scipy.fft.next_fast_len(self.num_samples + _MARGIN_SAMPLES, real=True)
        noise: np.ndarray | None = None
        for part in plan.noises:
            one = self._one_noise(part, gains, total, rng)[: self.num_samples]
            scale = 10 ** (part.level_db / 20) / math.sqrt(_positive(_power(one), "noise"))
            one *= np.float32(scale)
            noise = one if noise is None else noise + one
        assert noise is not None
        if plan.self_noise_db is not None:
            white = rng.standard_normal(total, np.float32)
            white = augment.filter_and_resample(white, total, _curve(gains, total // 2 + 1))
            noise = noise + white[: self.num_samples] * np.float32(
                math.sqrt(_power(noise)) * 10 ** (plan.self_noise_db / 20)
            )
        return noise

    def _one_noise(
        self, part: NoisePlan, gains: np.ndarray, total: int, rng: np.random.Generator
    ) -> np.ndarray:
        config = self.config
        equalizer_db = augment.draw_gains_db(config.noise_equalizer_db, rng)
        length = total
        if part.kind != "synthetic" and config.noise_speed != 1:
            speed = augment.draw_speed(config.noise_speed, rng)
            length = _input_length(total, speed)
        if part.kind == "recorded":
            noise = self.noises[part.index]
            samples = self._cache.get(noise, lambda: load_noise.__wrapped__(noise)[0])
            try:
                source = expand(draw_segment(samples, length, rng))
            except ValueError as error:
                raise ValueError(f"{noise.path}: {error}; leave this file out") from None
        elif part.kind == "babble":
            source = self._babble(part.speakers, length, rng)
        else:
            source = rng.standard_normal(length, np.float32)
            tilt_db = rng.uniform(*_TILT_DB) * np.log2(np.maximum(_GRID_HZ, 60.0) / 60.0)
            gains = gains * 10 ** (tilt_db / 20)
        gains = gains * _on_grid(equalizer_db, _LOG_BANDS)
        result = augment.filter_and_resample(source, total, _curve(gains, total // 2 + 1))
        return _modulated(result, rng) if part.kind == "synthetic" else result

    def _babble(
        self, speakers: tuple[str, ...], length: int, rng: np.random.Generator
    ) -> np.ndarray:
        babble = np.zeros(length, np.float32)
        for speaker in speakers:
            voice = self._join(speaker, length, rng)
            level_db = rng.uniform(-1, 1) * _BABBLE_DB
            if power := _power(voice):
                babble += voice * np.float32(10 ** (level_db / 20) / math.sqrt(power))
        return babble


def training_and_validation(
    utterances: Sequence[Utterance],
    noises: Sequence[Noise],
    config: MixingConfig | None = None,
    *,
    validation_fraction: float = 0.05,
    num_samples: int = 2 * SAMPLE_RATE_HZ,
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[PieceSource, PieceSource]:
    """Returns the sources of training and of validation, which share no utterance.

    The held-out utterances come from training speakers, except where a speaker has no other. Both
    sources use the same noises, from the training part of a corpus.

    Args:
        utterances: Of the training part of a corpus.
        noises: Likewise.
        config: See `MixingConfig`.
        validation_fraction: See `speech.data.corpus.split_utterances`.
        num_samples: Length of a piece.
        batch_size: Pieces of a batch.
        seed: Of both; their pieces differ all the same.

    Raises:
        ValueError: As `PieceSource` and `split_utterances`.
    """
    train, held_out = split_utterances(utterances, validation_fraction, seed)
    cache = AudioCache()
    training, validation = (
        PieceSource(
            chosen, noises, config,
            num_samples=num_samples, batch_size=batch_size, seed=number, cache=cache,
        )
        for chosen, number in ((train, 2 * seed), (held_out, 2 * seed + 1))
    )  # fmt: skip
    return training, validation


def active_power(speech: np.ndarray) -> float:
    """Returns the mean square of speech without its pauses.

    The mean is taken over frames of 20 ms whose energy lies within 30 dB of the loudest one, a
    simple form of the active speech level of ITU-T P.56.

    Args:
        speech: Float [num_samples], any length from 1 up.

    Raises:
        ValueError: The speech is silent or not finite.
    """
    whole = len(speech) // ACTIVE_FRAME_SAMPLES * ACTIVE_FRAME_SAMPLES
    if not whole:
        return _positive(_power(speech), "speech")
    frames = speech[:whole].reshape(-1, ACTIVE_FRAME_SAMPLES)
    powers = np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / ACTIVE_FRAME_SAMPLES
    threshold = _positive(float(powers.max()), "speech") * 10 ** (-ACTIVE_RANGE_DB / 10)
    return float(powers[powers >= threshold].mean())


def apply_codec(signal: np.ndarray, codec: Codec) -> np.ndarray:
    """Codes and decodes a signal.

    Args:
        signal: Float32 [num_samples] within +-1; what lies above the codec's cutoff should
            already be gone.
        codec: One of `CODECS`.

    Returns:
        Float32 [num_samples], without delay.
    """
    if codec.format != "MULAW":
        return _through_libsndfile(signal, codec)
    if codec.cutoff_hz > 4000 or not codec.cutoff_hz:
        return _mu_law(signal)
    even = np.concatenate([signal, signal[-1:]]) if len(signal) % 2 else signal
    coded = _mu_law(even[::2])
    return augment.filter_and_resample(coded, len(even), 1.0)[: len(signal)].astype(np.float32)


def _mu_law(signal: np.ndarray) -> np.ndarray:
    """Rounds to the 8 bits of mu-law (its formula, not the segments of ITU-T G.711)."""
    scale = np.float32(math.log(256.0))
    companded = np.log1p(np.abs(signal) * np.float32(255.0)) / scale
    steps = np.round(companded * np.float32(127.0)) / np.float32(127.0)
    return np.copysign(np.expm1(steps * scale) / np.float32(255.0), signal)


def _through_libsndfile(signal: np.ndarray, codec: Codec) -> np.ndarray:
    with io.BytesIO() as stream:
        soundfile.write(
            stream, signal, SAMPLE_RATE_HZ,
            format=codec.format, subtype=codec.subtype,
            compression_level=codec.compression_level,
        )  # fmt: skip
        stream.seek(0)
        decoded, _ = soundfile.read(stream, dtype="float32")
    result = np.zeros_like(signal)
    result[: len(decoded)] = decoded[: len(signal)]
    return result


@functools.lru_cache(maxsize=2 * augment.NUM_ROOMS)
def _room_spectra(number: int, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the spectra of a room and of its early part, complex64 [num_samples // 2 + 1].

    The direct sound has no delay and the gain 1. The tail is cut, faded, where the lead ends.
    """
    response = augment.room_response(number)
    direct = int(np.argmax(np.abs(response)))
    response = response[: direct + _ROOM_LEAD_SAMPLES] / response[direct]
    fade = min(len(response) - direct, 1600)
    response[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    early = response[: direct + round(augment.EARLY_S * SAMPLE_RATE_HZ)]
    spectra = []
    for part in (response, early):
        wrapped = np.zeros(num_samples, np.float32)
        wrapped[: len(part) - direct] = part[direct:]
        before = part[max(direct - _MARGIN_SAMPLES, 0) : direct]
        wrapped[num_samples - len(before) :] = before
        spectra.append(scipy.fft.rfft(wrapped))
    return spectra[0], spectra[1]


def _on_grid(gains_db: np.ndarray, log_bands: np.ndarray) -> np.ndarray:
    """Returns factors on the grid: straight lines over the logarithm of frequency."""
    return 10 ** (np.interp(_LOG_GRID, log_bands, gains_db) / 20)


def _low_pass(cutoff_hz: float) -> np.ndarray:
    """Returns factors on the grid; as `augment.limit_band`."""
    slope = np.clip((cutoff_hz - _GRID_HZ) / (0.1 * cutoff_hz), 0, 1)
    return 0.5 - 0.5 * np.cos(np.pi * slope)


def _curve(gains: np.ndarray, num_bins: int) -> np.ndarray:
    """Returns factors on the grid as float32 [num_bins]."""
    below, share = _grid_places(num_bins)
    gains = gains.astype(np.float32)
    steps = np.append(np.diff(gains), np.float32(0))
    return gains[below] + share * steps[below]


@functools.lru_cache(maxsize=8)
def _grid_places(num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    places = np.linspace(0, len(_GRID_HZ) - 1, num_bins)
    below = places.astype(np.int32)
    return below, (places - below).astype(np.float32)


def _modulated(noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lets the level of a noise wander by a few dB, slowly."""
    rate_hz = math.exp(rng.uniform(*np.log(_MODULATIONS_HZ)))
    depth_db = rng.uniform(0, 6)
    num_points = max(round(len(noise) / SAMPLE_RATE_HZ * rate_hz), 1) + 1
    points = 10 ** (depth_db * rng.standard_normal(num_points) / 20)
    places = np.linspace(0, num_points - 1, len(noise))
    return noise * np.interp(places, np.arange(num_points), points).astype(np.float32)


def _input_length(num_samples: int, speed: float) -> int:
    """Returns how much sound makes ``num_samples`` at a speed, to 1 %: a fast transform."""
    # Those for complex transforms lie ten times as close as those for real ones.
    return scipy.fft.next_fast_len(round(num_samples * speed), real=False)


def _power(samples: np.ndarray) -> float:
    return float(np.einsum("i,i->", samples, samples, dtype=np.float64)) / len(samples)


def _peak(*signals: np.ndarray) -> float:
    return max(float(np.max(np.abs(signal))) for signal in signals)


def _positive(power: float, what: str) -> float:
    """Returns a power.

    Raises:
        ValueError: There is none, or it is not finite.
    """
    if not 0 < power < math.inf:
        state = "silent" if power == 0 else "not finite"
        raise ValueError(f"{what} is {state}, expected sound")
    return power
