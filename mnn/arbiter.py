"""Runs the experts of a pool on one signal and lets the autoencoder of speech judge them.

The STFT of the mixture is computed once for all experts over spectra, and each expert is run once.
All this is done block by block, with the same results as on the whole signal. Experts over samples
are run first, on the whole signal.

The estimate of a mask has the scale of the mixture. The output of a waveform network, or of another
tool, has a scale of its own (a network that gets the signal divided by its maximum cannot know the
original scale). SDR does not depend on it, but the squared error of eq. (10) does. Such an estimate
is therefore multiplied by the gain with which it fits the mixture best, <x, s> / <s, s>: where
noise and speech are uncorrelated, this gives it the level that the speech has in the mixture. With
``fit=False``, as in the paper, the estimate is used unchanged.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mnn.dae import Autoencoder
from mnn.expert_files import Course, Expert, Place
from mnn.features import inner_product, level, scaled_magnitudes
from mnn.scoring import (
    DIFFERENCE,
    MIXTURE,
    RESIDUAL,
    Statistics,
    energy_by_frame,
    energy_by_hop,
    frame_statistics,
    rebuilt_difference,
)
from speech.base.cli import one_line
from speech.sound import blocks
from speech.sound.audio import valid_signal
from speech.sound.blocks import (
    frame_blocks,
    frame_energies,
    magnitude_frames,
    signal_room,
    stft_frames,
)
from speech.sound.stft import StftConfig, Synthesis

#: Frames judged at a time where nothing is drawn (4 s): few enough for the processor's cache.
CACHED_FRAMES = 256


@dataclass(eq=False)
class Hearing:
    """The result of one expert on one signal, and the autoencoder's statistics of it.

    Attributes:
        expert: The expert.
        reason: Why the expert is excluded; '' if it is not.
        statistics: Statistics by the autoencoder; None if the expert is excluded.
        signal: The estimate, float32 [num_samples]; None if excluded or not asked for.
        seconds: Time that it took to run the expert.
        judge_seconds: Time that it took to judge the estimate.
    """

    expert: Expert
    reason: str = ""
    statistics: Statistics | None = None
    signal: np.ndarray | None = None
    seconds: float = 0.0
    judge_seconds: float = 0.0


@dataclass(frozen=True)
class Arbiter:
    """An autoencoder of speech and how it is asked.

    Attributes:
        dae: The autoencoder.
        needs: Names of statistics to compute, from `mnn.scoring.needs_of`.
        num_draws: Draws of dropout (eq. 7, the input's mask included) over which errors are
            averaged; 0 for none, as in most uses of dropout after training.
        seed: Of the draws; every expert meets the same ones.
        fit: Fit the gain of estimates over samples (see the module).
    """

    dae: Autoencoder
    needs: tuple[str, ...]
    num_draws: int = 0
    seed: int = 0
    fit: bool = True

    def hear(
        self,
        noisy: np.ndarray,
        experts: Sequence[Expert],
        place: Place | None = None,
        *,
        keep: bool = True,
    ) -> list[Hearing]:
        """Runs and judges experts.

        Args:
            noisy: float32 [num_samples] at 16 kHz, at least one sample.
            experts: The pool.
            place: Where ``noisy`` comes from.
            keep: Keep the signals; without, experts over spectra are judged without ever making
                a signal.

        Returns:
            One hearing an expert, in their order. An expert that fails, or gives a NaN or another
            length, is out, and its hearing says why.
        """
        noisy = valid_signal(noisy, "noisy").astype(np.float32, copy=False)
        scene = _Scene(noisy, level(noisy), place or Place(), keep)
        runs = [self._start(scene, Hearing(expert)) for expert in experts]
        config = self.dae.conventions.stft
        margin = self.dae.conventions.context // 2
        halo = margin + max((run.halo for run in runs), default=0)
        num_frames = config.num_frames(len(noisy))
        # What is drawn for a frame depends on its block: those with draws keep their length.
        size = None if self.num_draws else min(blocks.BLOCK_FRAMES, CACHED_FRAMES)
        for start, stop in frame_blocks(num_frames, size):
            block = _Block(
                start,
                (max(0, start - halo), min(num_frames, stop + halo)),
                (max(0, start - margin), min(num_frames, stop + margin)),
                (start, stop),
            )
            spectra = None
            if any(run.shared for run in runs):
                spectra = stft_frames(noisy, *block.wide, config)
            given = {}
            if MIXTURE in self.needs:
                given[MIXTURE] = frame_energies(
                    noisy, *block.own, config, scale=scene.scale(config)
                )
            for run in runs:
                if not run.hearing.reason:
                    with np.errstate(over="ignore", invalid="ignore"):  # `finish` sees to it
                        self._judge(scene, run, block, spectra, given)
        for run in runs:
            if not run.hearing.reason:
                run.finish(config.hop, keep)
        return [run.hearing for run in runs]

    def run(
        self, noisy: np.ndarray, experts: Sequence[Expert], place: Place | None = None
    ) -> list[Hearing]:
        """Runs experts without judging them; the arguments are the same as for `hear`."""
        noisy = valid_signal(noisy, "noisy").astype(np.float32, copy=False)
        scene = _Scene(noisy, level(noisy), place or Place(), True)
        runs = [self._start(scene, Hearing(expert), alone=True) for expert in experts]
        for run in runs:
            run.hearing.signal = run.signal
        return [run.hearing for run in runs]

    def _start(self, scene: _Scene, hearing: Hearing, alone: bool = False) -> _Run:
        """Runs an expert over samples, or any that is ``alone``; makes one over spectra ready."""
        expert, config = hearing.expert, self.dae.conventions.stft
        own = expert.conventions
        shared = not alone and own is not None and own.stft == config
        run = _Run(hearing, shared, expert.halo if shared else 0)
        num_samples = len(scene.noisy)
        if DIFFERENCE in self.needs:
            run.differences = [Synthesis(num_samples, config) for _ in range(self.num_draws or 1)]
        if shared:
            if scene.keep or run.differences:
                run.synthesis, run.signal = Synthesis(num_samples, config), signal_room(num_samples)
            started = time.perf_counter()
            try:
                with np.errstate(over="ignore", invalid="ignore"):  # `_judge` sees to it
                    run.course = expert.course(scene.noisy, scene.level)
            except (ValueError, MemoryError) as error:
                hearing.reason = one_line(error)
            hearing.seconds = time.perf_counter() - started
            return run
        started = time.perf_counter()
        try:
            signal = expert.signal(scene.noisy, scene.level, scene.place)
            _check(signal, num_samples, expert)
        except (ValueError, OSError, MemoryError) as error:
            hearing.reason = one_line(error)
        else:
            run.signal = signal_room(num_samples)
            fit = self.fit and not expert.keeps_level
            gain = fitting_gain(scene.noisy, signal) if fit else 1.0
            np.multiply(signal, np.float32(gain), out=run.signal)
        hearing.seconds = time.perf_counter() - started
        return run

    def _judge(
        self,
        scene: _Scene,
        run: _Run,
        block: _Block,
        spectra: np.ndarray | None,
        given: dict[str, np.ndarray],
    ) -> None:
        """Adds the statistics of a block.

        Args:
            scene: The signal.
            run: The expert.
            block: Its frames.
            spectra: Of the mixture, frames ``block.wide``; None if no expert is over spectra.
            given: Statistics that are the same for every expert, frames ``block.own``.
        """
        hearing, config = run.hearing, self.dae.conventions.stft
        started = time.perf_counter()
        if run.shared:
            assert spectra is not None and run.course is not None
            estimate = run.course.estimate(spectra, block.wide, block.inner)
            if not np.isfinite(estimate).all():
                hearing.reason = f"{hearing.expert.source}: gave a NaN or an infinity"
                return
            if run.synthesis is not None:
                run.write(run.synthesis.add(estimate[block.within(block.inner)]))
            hearing.seconds += time.perf_counter() - started
            started = time.perf_counter()
            frames = scaled_magnitudes(estimate, scene.level, config)
        elif run.differences:
            estimate = stft_frames(run.samples, *block.inner, config)
            frames = scaled_magnitudes(estimate, scene.level, config)
        else:
            scale = scene.scale(config)
            frames = magnitude_frames(run.samples, *block.inner, config, scale=scale)
        own = block.within(block.inner)
        part: dict[str, np.ndarray] = {}
        for draw, rebuilt in enumerate(self._rebuilt(frames, block)):
            found = frame_statistics(self.needs, frames[own], rebuilt)
            for name, values in found.items():
                part[name] = part.get(name, 0.0) + values / (self.num_draws or 1)
            if run.differences:
                scale = scene.level * np.sqrt(config.window_energy)
                change = rebuilt_difference(estimate[own], frames[own], rebuilt, scale)
                finished = run.differences[draw].add(change)
                run.energies[draw].append(energy_by_hop(finished, config.hop))
        if RESIDUAL in self.needs:
            if run.shared:
                assert spectra is not None
                removed = spectra[block.within(block.wide)] - estimate[own]
                removed *= np.float32(scene.scale(config))
                part[RESIDUAL] = energy_by_frame(removed.view(removed.real.dtype))
            else:
                part[RESIDUAL] = frame_energies(
                    scene.noisy, *block.own, config, minus=run.signal, scale=scene.scale(config)
                )
        run.parts.append(part | given)
        hearing.judge_seconds += time.perf_counter() - started

    def _rebuilt(self, frames: np.ndarray, block: _Block) -> list[np.ndarray]:
        """Returns what the autoencoder makes of frames ``block.inner``: ``block.own``, a draw each.

        The draws are the same for every expert: only what they heard makes them differ.
        """
        own = block.within(block.inner)
        if not self.num_draws:
            return [self.dae.reconstruct(frames)[own]]
        seeds = ([self.seed, draw, block.number] for draw in range(self.num_draws))
        return [self.dae.reconstruct(frames, np.random.default_rng(seed))[own] for seed in seeds]


def fitting_gain(noisy: np.ndarray, signal: np.ndarray) -> float:
    """Returns the gain with which a signal is nearest to the mixture: <x, s> / <s, s>.

    Args:
        noisy: float [num_samples].
        signal: float [num_samples], of any scale and polarity.

    Returns:
        The gain; 0 for silence.
    """
    energy = inner_product(signal, signal)
    return inner_product(noisy, signal) / energy if energy > 0 else 0.0


@dataclass(frozen=True)
class _Scene:
    """One signal: float32 [num_samples], its level, its place, whether estimates are kept."""

    noisy: np.ndarray
    level: float
    place: Place
    keep: bool

    def scale(self, config: StftConfig) -> float:
        """Returns the factor to the scale of the networks (`mnn.features`)."""
        return 1 / (self.level * math.sqrt(config.window_energy))


@dataclass(frozen=True)
class _Block:
    """Frames from a first to behind a last one, each range within the one before.

    Attributes:
        number: Its first own frame.
        wide: Those of the mixture from which the estimates of ``inner`` follow.
        inner: Those of an estimate from which the judgement of ``own`` follows.
        own: Those that are counted.
    """

    number: int
    wide: tuple[int, int]
    inner: tuple[int, int]
    own: tuple[int, int]

    def within(self, outer: tuple[int, int]) -> slice:
        """Returns where the own frames lie in ``outer``."""
        return _slice(outer, self.own)


@dataclass(eq=False)
class _Run:
    """An expert at work on one signal."""

    hearing: Hearing
    shared: bool
    halo: int
    course: Course | None = None
    signal: np.ndarray | None = None
    synthesis: Synthesis | None = None
    differences: list[Synthesis] = field(default_factory=list)
    parts: list[dict[str, np.ndarray]] = field(default_factory=list)
    energies: defaultdict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    position: int = 0

    @property
    def samples(self) -> np.ndarray:
        """The signal of a run that has one."""
        assert self.signal is not None
        return self.signal

    def write(self, samples: np.ndarray) -> None:
        """Appends finished samples to the signal."""
        self.samples[self.position : self.position + len(samples)] = samples
        self.position += len(samples)

    def finish(self, hop: int, keep: bool) -> None:
        """Puts the statistics of all blocks together."""
        frames = {name: np.concatenate([p[name] for p in self.parts]) for name in self.parts[0]}
        hops = {}
        if self.energies:
            draws = [np.concatenate(parts) for parts in self.energies.values()]
            hops = {
                "signal": energy_by_hop(self.samples, hop),
                "difference": np.mean(draws, axis=0),
            }
        if not all(np.isfinite(values).all() for values in (*frames.values(), *hops.values())):
            self.hearing.reason = f"{self.hearing.expert.source}: gave values beyond measure"
            return
        self.hearing.statistics = Statistics(frames, hops)
        self.hearing.signal = self.signal if keep else None


def _slice(outer: tuple[int, int], inner: tuple[int, int]) -> slice:
    return slice(inner[0] - outer[0], inner[1] - outer[0])


def _check(signal: np.ndarray, num_samples: int, expert: Expert) -> None:
    if signal.shape != (num_samples,):
        raise ValueError(
            f"{expert.source}: gave the shape {signal.shape} for {num_samples} samples"
        )
    if not np.isfinite(signal).all():
        raise ValueError(f"{expert.source}: gave a NaN or an infinity")
