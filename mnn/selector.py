"""Chooses among the experts of a pool for one recording, in one stage or in two.

In one stage every expert is run and judged, and what was chosen is at hand. In two, compressed
copies of the experts, the selectors, are run and judged, and of the experts only the winner is run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnn.arbiter import Arbiter, Hearing
from mnn.calibration import Calibration, seen
from mnn.expert_files import Expert, Place
from mnn.features import inner_product
from mnn.ranker import (
    CALIBRATED_TILE_POWER,
    COST_POWER,
    STFT,
    TILE_FRAMES,
    TILE_POWER,
    Ranker,
    added_by_bands,
)
from mnn.scoring import (
    COMBINE_POWER,
    DEFAULT_SCORING,
    SILENT_SHARE,
    both,
    costs,
    hard_weights,
    joined,
    pick,
    segment_bounds,
    segment_sums,
    soft_weights,
    tile_sums,
)
from speech.sound.audio import SAMPLE_RATE_HZ, is_silent

#: Length of a cross-fade between segments.
FADE_SECONDS = 0.1


@dataclass(eq=False)
class Decision:
    """What was chosen for one file.

    Attributes:
        names: Of the experts that were in.
        scores: Of each over the whole file.
        picks: Name of the chosen one in each segment.
        weights: float [num_experts, num_segments].
        bounds: int [num_segments + 1], in samples.
        out: Name -> reason of those that were out.
        is_silent: Whether there was nothing to hear.
        tiles: Errors by the ranker, [num_experts, num_tiles, num_bands], calibrated if the costs
            are; None without a ranker.
        costs: float [num_experts, num_segments], of which the smallest wins.
    """

    names: list[str]
    scores: list[float]
    picks: list[str]
    weights: np.ndarray
    bounds: np.ndarray
    out: dict[str, str] = field(default_factory=dict)
    is_silent: bool = False
    tiles: np.ndarray | None = None
    costs: np.ndarray | None = None


@dataclass(eq=False)
class Selector:
    """A pool, an arbiter and how to choose.

    Attributes:
        arbiter: Runs experts, and judges by the autoencoder; its ``needs`` are those of metric and
            scoring.
        experts: Make the signals.
        metric: Key of `mnn.scoring.METRICS`.
        scoring: Key of `mnn.scoring.SCORINGS`.
        segment_seconds: Choose anew so often; None for once per file.
        combine: Add all estimates, with weights: one for each ('files'), or one for each in each
            tile of time and band ('bands', with a ranker); '' for none.
        selectors: Choose in place of ``experts``, one for each.
        check: Run all experts all the same, and compare.
        ranker: Judges too, or alone; None for the autoencoder alone.
        judge: One of `mnn.scoring.JUDGES`.
        calibration: Of the experts that are judged, by the judge 'ranker'; None for its costs as
            they are.
        seconds: What was spent on running 'experts', selectors ('choosing'), experts for comparison
            only ('checking'), and on 'judging'.
        agreement: Whether experts and selectors chose alike, a segment each.
    """

    arbiter: Arbiter
    experts: Sequence[Expert]
    metric: str = "ae"
    scoring: str = DEFAULT_SCORING
    segment_seconds: float | None = None
    combine: str = ""
    selectors: Sequence[Expert] = ()
    check: bool = False
    ranker: Ranker | None = None
    judge: str = "autoencoder"
    calibration: Calibration | None = None
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    agreement: list[bool] = field(default_factory=list)

    def choose(
        self, channels: Sequence[np.ndarray], relative: Path = Path()
    ) -> tuple[Decision, list[np.ndarray]]:
        """Chooses for one file and returns its signals.

        Args:
            channels: float32 [num_samples] at 16 kHz each, of equal length.
            relative: Path of the file below the input folder, or its name.

        Returns:
            The decision, and one signal a channel.

        Raises:
            ValueError: No expert is left.
        """
        if not self.selectors:
            hearings = self._hear(channels, relative, self.experts, "experts")
            decision = self._decide(channels, hearings, self.experts)
            return decision, self._join(decision, hearings)
        hearings = self._hear(channels, relative, self.selectors, "choosing")
        decision = self._decide(channels, hearings, self.selectors)
        twins = {s.name: e.name for s, e in zip(self.selectors, self.experts, strict=True)}
        decision.names = [twins[name] for name in decision.names]
        decision.picks = [twins[name] for name in decision.picks]
        if self.check:
            full = self._hear(channels, relative, self.experts, "checking")
            other = self._decide(channels, full, self.experts)
            pairs = zip(decision.picks, other.picks, strict=True)
            self.agreement += [one == two for one, two in pairs]
        return decision, self._join(decision, self._run_winners(decision, channels, relative))

    def _hear(
        self, channels: Sequence[np.ndarray], relative: Path, experts: Sequence[Expert], what: str
    ) -> list[list[Hearing]]:
        """Returns the hearings of each channel; who is out in one channel is out in all.

        ``what`` is the key in ``seconds`` of the time that running the experts takes. Signals are
        kept if it is 'experts'.
        """
        keep = what == "experts" or self.ranker is not None
        hearings = [
            self.arbiter.run(signal, experts, Place(relative, number))
            if self.judge == "ranker"
            else self.arbiter.hear(signal, experts, Place(relative, number), keep=keep)
            for number, signal in enumerate(channels)
        ]
        for own in zip(*hearings, strict=True):
            reason = next((hearing.reason for hearing in own if hearing.reason), "")
            for hearing in own:
                hearing.reason = reason
                self.seconds[what] += hearing.seconds
                if what != "checking":
                    self.seconds["judging"] += hearing.judge_seconds
        return hearings

    def _decide(
        self,
        channels: Sequence[np.ndarray],
        hearings: Sequence[Sequence[Hearing]],
        experts: Sequence[Expert],
    ) -> Decision:
        out = {own.expert.name: own.reason for own in hearings[0] if own.reason}
        places = [place for place, own in enumerate(hearings[0]) if not own.reason]
        if not places:
            raise _nobody(out)
        left = [experts[place] for place in places]
        tiles, offsets = self._ranked(channels, hearings, places)
        num_samples = len(channels[0])
        length = self.segment_seconds and round(self.segment_seconds * SAMPLE_RATE_HZ)
        for size in (None, length) if length else (None,):
            bounds = segment_bounds(num_samples, size)
            scores, cost = self._costs(channels, hearings, places, tiles, bounds)
            if self.calibration is not None and offsets is not None:
                scores = self.calibration.costs(offsets, scores)
                cost = np.where(np.isfinite(cost), scores, cost)
            if size is None:
                whole_scores = scores[:, 0]
        if self.calibration is not None and offsets is not None and tiles is not None:
            tiles = self.calibration.tiles(offsets, tiles)
        picks = pick(cost, [(expert.name, expert.sha256) for expert in left])
        power = COMBINE_POWER if self.judge == "autoencoder" else COST_POWER
        weights = soft_weights(cost, power) if self.combine else hard_weights(picks, len(left))
        return Decision(
            [expert.name for expert in left],
            whole_scores.tolist(),
            [left[place].name for place in picks],
            weights,
            bounds,
            out,
            all(is_silent(signal) for signal in channels),
            tiles,
            cost,
        )

    def _ranked(
        self,
        channels: Sequence[np.ndarray],
        hearings: Sequence[Sequence[Hearing]],
        places: Sequence[int],
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Returns what the ranker finds in the experts at these places, the means of channels.

        Returns:
            The errors, [num_experts, num_tiles, num_bands]; None without a ranker. The offsets of
            the calibration, [num_experts]; None without one.
        """
        if self.ranker is None:
            return None, None
        started = time.perf_counter()
        # In a silent channel all are alike, and their distances from silence say nothing.
        loud = [number for number, signal in enumerate(channels) if not is_silent(signal)]
        judged = [
            (channels[number], [_signal(hearings[number][place]) for place in places])
            for number in loud or range(len(channels))
        ]
        offsets = None
        if self.calibration is None:
            tiles = np.mean([self.ranker.errors(noisy, own) for noisy, own in judged], axis=0)
        else:
            found = [seen(self.ranker, noisy, own) for noisy, own in judged]
            tiles = np.mean([own for own, _ in found], axis=0)
            # An estimate may be silent in one channel only.
            between = np.ma.masked_invalid([own for _, own in found]).mean(axis=0).filled(np.nan)
            names = [hearings[0][place].expert.name for place in places]
            offsets = self.calibration.offsets(names, between)
        self.seconds["judging"] += time.perf_counter() - started
        return tiles, offsets

    def _costs(
        self,
        channels: Sequence[np.ndarray],
        hearings: Sequence[Sequence[Hearing]],
        places: Sequence[int],
        tiles: np.ndarray | None,
        bounds: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and costs, both [num_experts, num_segments], as `mnn.scoring.costs`."""
        ranked = np.empty(0)
        if tiles is not None:
            ranked = _shares(tiles, bounds)
        if self.judge == "ranker":
            kept = [sum(_energy(own[place].signal) for own in hearings) for place in places]
            whole = sum(_energy(signal) for signal in channels)
            silent = np.array(kept) < SILENT_SHARE * whole
            return ranked, np.where(silent[:, None] & ~silent.all(), np.inf, ranked)
        hop = self.arbiter.dae.conventions.stft.hop
        sums = []
        for place in places:
            first, *others = (found for own in hearings if (found := own[place].statistics))
            sums.append(segment_sums(sum(others, first), bounds, hop))
        scores, cost = costs(sums, self.metric, self.scoring)
        if tiles is None:
            return scores, cost
        return both(ranked, scores), both(ranked, cost)

    def _join(self, decision: Decision, hearings: Sequence[Sequence[Hearing]]) -> list[np.ndarray]:
        """Returns the signal of each channel."""
        if self.combine == "bands":
            assert decision.tiles is not None and decision.costs is not None, "a ranker"
            power = CALIBRATED_TILE_POWER if self.calibration is not None else TILE_POWER
            return [
                added_by_bands(
                    [found[name] for name in decision.names],
                    decision.tiles,
                    decision.costs,
                    power,
                )
                for own in hearings
                if (found := {h.expert.name: _signal(h) for h in own if not h.reason})
            ]
        fade = round(FADE_SECONDS * SAMPLE_RATE_HZ)
        signals = [{hearing.expert.name: hearing.signal for hearing in own} for own in hearings]
        return [
            joined(
                [own.get(name) for name in decision.names], decision.weights, decision.bounds, fade
            )
            for own in signals
        ]

    def _run_winners(
        self, decision: Decision, channels: Sequence[np.ndarray], relative: Path
    ) -> list[list[Hearing]]:
        """Runs the experts that have a weight; those that fail leave the decision.

        Raises:
            ValueError: No expert is left.
        """
        while True:
            used = {
                name
                for name, own in zip(decision.names, decision.weights, strict=True)
                if own.any()
            }
            experts = [expert for expert in self.experts if expert.name in used]
            hearings = [
                self.arbiter.run(signal, experts, Place(relative, number))
                for number, signal in enumerate(channels)
            ]
            self.seconds["experts"] += sum(h.seconds for own in hearings for h in own)
            failed = {h.expert.name: h.reason for own in hearings for h in own if h.reason}
            if not failed:
                return hearings
            self._leave_out(decision, failed)

    def _leave_out(self, decision: Decision, failed: dict[str, str]) -> None:
        """Takes experts out; their segments go to the best of the others over the whole file."""
        decision.out |= failed
        left = [place for place, name in enumerate(decision.names) if name not in failed]
        if not left:
            raise _nobody(decision.out)
        sign = -1 if self.metric == "snr" else 1
        decision.names = [decision.names[place] for place in left]
        decision.scores = [decision.scores[place] for place in left]
        best = min(
            range(len(left)),
            key=lambda place: (sign * decision.scores[place], decision.names[place]),
        )
        if decision.tiles is not None and decision.costs is not None:
            decision.tiles, decision.costs = decision.tiles[left], decision.costs[left]
        weights = decision.weights[left]
        weights[best, ~weights.any(axis=0)] = 1
        decision.weights = weights / weights.sum(axis=0)
        decision.picks = [decision.names[place] for place in np.argmax(weights, axis=0)]


def _shares(tiles: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns the errors of segments as shares of the speech's energy, [num_experts, num_segments].

    The errors ``tiles`` are shares of the energy of the whole file.
    """
    sums = tile_sums(tiles, bounds, TILE_FRAMES * STFT.hop)
    return sums / (np.diff(bounds) / bounds[-1])


def _signal(hearing: Hearing) -> np.ndarray:
    assert hearing.signal is not None, "an expert that was run"
    return hearing.signal


def _energy(signal: np.ndarray | None) -> float:
    return inner_product(signal, signal) if signal is not None else 0.0


def _nobody(out: dict[str, str]) -> ValueError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in out.items())
    return ValueError(f"no expert is left: {reasons}")
