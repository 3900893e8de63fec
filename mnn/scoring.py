"""Finds the best of several estimates of the speech by an autoencoder that knows clean speech.

Symbols: x is the mixture, s an expert's estimate, D(s) the autoencoder's output for it: magnitudes
[num_frames, num_bins], all divided by the same factor, the level of the mixture (`mnn.features`),
so that a common gain changes nothing. Sums run over frames and bins.

Metrics (MNN, section 3.1):

    ae    E = sum (s - D(s))^2, eq. (10); the smallest wins
    snr   10 log10(sum s(t)^2 / sum (s(t) - r(t))^2) in dB, eq. (11), where r(t) is the signal of
          D(s) with the phase of the estimate; the largest wins

Eq. (10) depends on scale: an expert that returns next to nothing beats all others, because the
error of a faint estimate is small as well. Dividing by the energy of the estimate does not solve
this: it forgives noise that an expert has left. The scorings of the metric ae, all to be minimised:

    paper     E, the literal form
    level     E / sum s^2
    balanced  (E + 0.02 sum |x - s|^2) / (sum s^2 / sum x^2)^(3/4), the difference taken before
              magnitudes: what is removed is charged, and the power, between 0 of the literal form
              and 1 of the level-free one, lets leftover noise count. An estimate more than 3 dB
              below the level at which it fits the mixture best is taken to be raised to there (E
              and s grow alike), so that turning it down further gains nothing
    voiced    (E + 0.01 sum |x - s|^2) / sum s^2, the default: E and s up to 3 kHz, where voiced
              speech has its energy and the autoencoder knows it best, what is removed over all
              bins, quiet estimates raised as in balanced

The numbers of voiced were chosen on mixtures of the open corpus' training voices that no model had
heard, the others in the same way on the bundled corpus (`python -m mnn.experiments` compares them;
docs/mnn.md, "Scorings"). All but ``paper`` also pass over an estimate that has
less than a thousandth of the energy of the mixture in the whole file, unless there is no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from speech.sound.audio import SAMPLE_RATE_HZ

METRICS = ("ae", "snr")

#: Who judges: the autoencoder, by a metric and a scoring; the ranker (`mnn.ranker`), by the errors
#: that it expects; or both, by the product of their costs.
JUDGES = ("autoencoder", "ranker", "both")
DEFAULT_JUDGE = "ranker"

#: Raise it with any change of a score: choices kept from earlier runs are then made anew.
VERSION = "4"

DEFAULT_SCORING = "voiced"

#: Below this share of the mixture's energy (-30 dB) an estimate is as good as silent.
SILENT_SHARE = 1e-3

VOICED_HZ = 3000.0

#: Of the gain that fits an estimate best to the mixture; that of masks is mostly 1 to 1.6.
QUIET_GAIN = 1.4

BALANCED_RATE, VOICED_RATE = 0.02, 0.01
BALANCED_POWER = 0.75

#: How strongly the better estimates prevail in a combination by the autoencoder.
COMBINE_POWER = 16.0

#: SNRs of eq. (11) stay within this, also where there is silence.
MAX_SNR_DB = 200.0

Frames = np.ndarray
_Statistic = Callable[[Frames, Frames], np.ndarray]


def energy_by_frame(values: np.ndarray) -> np.ndarray:
    """Returns the sum of squares over bins: float64 [num_frames], added up in their own type."""
    return np.vecdot(values, values).astype(np.float64, copy=False)


def _voiced(frames: Frames) -> Frames:
    hz = np.linspace(0, SAMPLE_RATE_HZ / 2, frames.shape[1])
    return frames[:, : np.searchsorted(hz, VOICED_HZ)]


#: What is known of a frame; each gets (s, D(s)).
STATISTICS: dict[str, _Statistic] = {
    "error": lambda s, d: energy_by_frame(s - d),
    "energy": lambda s, d: energy_by_frame(s),
    "voiced_error": lambda s, d: energy_by_frame(_voiced(s) - _voiced(d)),
    "voiced_energy": lambda s, d: energy_by_frame(_voiced(s)),
}

#: Statistics that are not made of an estimate's magnitudes alone; `mnn.arbiter` computes them.
MIXTURE, RESIDUAL, DIFFERENCE = "mixture", "residual", "difference"

_GUARD = ("energy", "mixture")


@dataclass(frozen=True)
class Scoring:
    """One way to score under the metric ae.

    Attributes:
        needs: Names of statistics.
        cost: From their sums, [num_experts, num_segments] each, the cost of the same shape.
        guarded: Whether estimates that are as good as silent are passed over.
    """

    needs: tuple[str, ...]
    cost: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    guarded: bool = True


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole; 0 where both are 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _raised(sums: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gain that quiet estimates get, 1 for others, and what they then remove."""
    energy, mixture = sums["energy"], sums["mixture"]
    product = (mixture + energy - sums["residual"]) / 2  # <x, s>, from |x - s|^2
    fit = _share(product.sum(axis=1, keepdims=True), energy.sum(axis=1, keepdims=True))
    gain = np.maximum(fit / QUIET_GAIN, 1.0)
    return gain, np.maximum(mixture - 2 * gain * product + gain**2 * energy, 0.0)


def _balanced(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    gain, residual = _raised(sums)
    kept = np.maximum(_share(gain**2 * sums["energy"], sums["mixture"]), 1e-12)
    return (gain**2 * sums["error"] + BALANCED_RATE * residual) / kept**BALANCED_POWER


def _voiced_cost(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    gain, residual = _raised(sums)
    energy = np.maximum(gain**2 * sums["voiced_energy"], 1e-12 * sums["mixture"])
    return _share(gain**2 * sums["voiced_error"] + VOICED_RATE * residual, energy)


_OF_RAISED = ("residual", "energy", "mixture")

SCORINGS: dict[str, Scoring] = {
    "paper": Scoring(("error",), lambda sums: sums["error"], guarded=False),
    "level": Scoring(("error", "energy"), lambda sums: _share(sums["error"], sums["energy"])),
    "balanced": Scoring(("error", *_OF_RAISED), _balanced),
    "voiced": Scoring(("voiced_error", "voiced_energy", *_OF_RAISED), _voiced_cost),
}


def needs_of(metric: str, scoring: str) -> tuple[str, ...]:
    """Returns the names of the statistics that a metric and a scoring call for.

    Raises:
        ValueError: There is no such metric or scoring.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; give one of {', '.join(METRICS)}")
    if scoring not in SCORINGS:
        raise ValueError(f"scoring is {scoring!r}; give one of {', '.join(SCORINGS)}")
    own = (DIFFERENCE,) if metric == "snr" else SCORINGS[scoring].needs
    guard = _GUARD if SCORINGS[scoring].guarded else ()
    return tuple(dict.fromkeys((*own, *guard)))


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one estimate, computed with the autoencoder.

    Attributes:
        frames: float64 [num_frames] by name; frame t is centred at sample hop * (t - 1).
        hops: float64 [num_hops] by name ('signal', 'difference'): energies over hop samples.
    """

    frames: dict[str, np.ndarray]
    hops: dict[str, np.ndarray] = field(default_factory=dict)

    def __add__(self, other: Statistics) -> Statistics:
        """Adds the statistics of another channel of the same length."""
        return Statistics(
            {name: values + other.frames[name] for name, values in self.frames.items()},
            {name: values + other.hops[name] for name, values in self.hops.items()},
        )


def frame_statistics(
    names: Sequence[str], estimate: np.ndarray, rebuilt: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes the named statistics, as far as they follow from magnitudes.

    Args:
        names: Keys of `STATISTICS`; others are left out.
        estimate: float [num_frames, num_bins], s.
        rebuilt: Likewise D(s).

    Returns:
        float64 [num_frames] by name.
    """
    chosen = [name for name in names if name in STATISTICS]
    return {name: STATISTICS[name](estimate, rebuilt) for name in chosen}


def rebuilt_difference(
    spectra: np.ndarray, frames: np.ndarray, rebuilt: np.ndarray, scale: float
) -> np.ndarray:
    """Returns the spectra of estimate minus reconstruction, both with the estimate's phase.

    Args:
        spectra: Of the estimate, complex [num_frames, num_bins].
        frames: |spectra| / scale.
        rebuilt: What the autoencoder made of ``frames``.
        scale: Factor from the scale of the networks to that of the spectra.

    Returns:
        Like ``spectra``; where those are next to 0, their phase is taken to be 0.
    """
    magnitude = np.abs(spectra)
    # Denormal numbers have no reciprocal in float32; next to them the phase does not matter.
    usable = magnitude > 1e-30
    reciprocal = np.divide(1, magnitude, out=np.zeros_like(magnitude), where=usable)
    phase = np.where(usable, spectra * reciprocal, 1)
    return ((frames - rebuilt) * phase * np.float32(scale)).astype(spectra.dtype, copy=False)


def energy_by_hop(signal: np.ndarray, hop: int) -> np.ndarray:
    """Returns the energy of each piece of ``hop`` samples; the last may be shorter: float64."""
    whole = len(signal) // hop * hop
    energies = [
        np.sum(np.square(part.reshape(-1, hop), dtype=np.float64), axis=1)
        for part in np.split(signal[:whole], range(hop << 12, whole, hop << 12))
    ]
    if whole < len(signal):
        energies.append(np.sum(np.square(signal[whole:], dtype=np.float64), keepdims=True))
    return np.concatenate(energies)


# --------------------------------------------------------------------------------------------
# From statistics to a choice


def segment_bounds(num_samples: int, segment_samples: int | None) -> np.ndarray:
    """Returns where segments begin and the last one ends: int [num_segments + 1].

    A rest of less than half a segment belongs to the last one.

    Args:
        num_samples: Length of the signal.
        segment_samples: Length of a segment; None for one segment.
    """
    if not segment_samples:
        return np.array([0, num_samples])
    count = max(1, math.floor(num_samples / segment_samples + 0.5))
    return np.append(np.arange(count) * segment_samples, num_samples)


def segment_sums(statistics: Statistics, bounds: np.ndarray, hop: int) -> dict[str, np.ndarray]:
    """Adds statistics up over segments.

    Args:
        statistics: Of one estimate.
        bounds: From `segment_bounds`.
        hop: Samples from frame to frame.

    Returns:
        float64 [num_segments] by name. A frame belongs to the segment that holds its centre, those
        before the first sample or behind the last to the nearest.
    """
    sums = {}
    for group, shift in ((statistics.frames, 1), (statistics.hops, 0)):
        if not group:
            continue
        places = (np.arange(len(next(iter(group.values())))) - shift) * hop
        segment = np.searchsorted(bounds[1:-1], places, side="right")
        for name, values in group.items():
            sums[name] = np.bincount(segment, values, minlength=len(bounds) - 1)
    return sums


def costs(
    sums: Sequence[Mapping[str, np.ndarray]], metric: str = "ae", scoring: str = DEFAULT_SCORING
) -> tuple[np.ndarray, np.ndarray]:
    """Scores estimates; the score of an expert does not depend on the other experts.

    Args:
        sums: Per expert, from `segment_sums`.
        metric: 'ae' or 'snr'.
        scoring: Key of `SCORINGS`; with 'snr', 'paper' leaves the guard against silence out.

    Returns:
        Scores as they are printed (for snr in dB), and costs; the smallest cost wins. The cost is
        infinite for an estimate that is practically silent while others are not. Both float64
        [num_experts, num_segments].
    """
    needs_of(metric, scoring)
    table = {name: np.stack([own[name] for own in sums]) for name in sums[0]}
    if metric == "snr":
        scores = snr_db(table["signal"], table["difference"])
        cost = 10 ** (-scores / 10)
    else:
        scores = SCORINGS[scoring].cost(table)
        cost = scores.copy()
    if SCORINGS[scoring].guarded:
        kept, whole = (table[name].sum(axis=1) for name in _GUARD)
        if not np.all(silent := kept < SILENT_SHARE * whole):
            cost[silent] = np.inf
    return scores, cost


def tile_sums(tiles: np.ndarray, bounds: np.ndarray, tile_samples: int) -> np.ndarray:
    """Adds the errors of tiles up over bands and over segments.

    Args:
        tiles: float [num_experts, num_tiles, num_bands], from `mnn.ranker.Ranker.errors`.
        bounds: From `segment_bounds`.
        tile_samples: Samples from tile to tile.

    Returns:
        float64 [num_experts, num_segments]. A tile belongs to the segment that holds its centre,
        one that is behind the last sample to the last; a segment that holds no centre gets the
        tile that is nearest to its own.
    """
    centres = (np.arange(tiles.shape[1]) + 0.5) * tile_samples
    segment = np.searchsorted(bounds[1:-1], centres, side="right")
    sums = np.stack(
        [np.bincount(segment, own.sum(axis=1), minlength=len(bounds) - 1) for own in tiles]
    )
    for empty in np.flatnonzero(np.bincount(segment, minlength=len(bounds) - 1) == 0):
        middle = (bounds[empty] + bounds[empty + 1]) / 2
        sums[:, empty] = tiles[:, np.argmin(np.abs(centres - middle))].sum(axis=1)
    return sums


def both(ranked: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Returns the costs of the ranker and of the autoencoder as one: their geometric mean.

    Args:
        ranked: float [num_experts, num_segments], positive.
        cost: Likewise, from `costs`; infinite for an estimate that is passed over.
    """
    return np.sqrt(ranked * np.maximum(cost, 0))


def snr_db(signal: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Returns 10 log10(signal / difference) of energies, within +-`MAX_SNR_DB`; -200 for 0 / 0."""
    tiny = 10 ** (-MAX_SNR_DB / 10)
    ratio = np.divide(signal, difference, out=np.where(signal > 0, 1 / tiny, tiny),
                      where=difference > 0)  # fmt: skip
    return 10 * np.log10(np.clip(ratio, tiny, 1 / tiny))


def pick(cost: np.ndarray, keys: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Returns the cheapest expert of each segment: int [num_segments].

    Args:
        cost: float [num_experts, num_segments], from `costs`.
        keys: Name and hash of each expert. Of equals the first in their order wins, so that the
            choice does not depend on the order in which experts are given.
    """
    order = sorted(range(len(keys)), key=lambda place: keys[place])
    return np.array(order)[np.argmin(cost[order], axis=0)]


def hard_weights(picks: np.ndarray, num_experts: int) -> np.ndarray:
    """Returns 1 for what was picked: float64 [num_experts, num_segments]."""
    return (np.arange(num_experts)[:, None] == picks).astype(np.float64)


def soft_weights(cost: np.ndarray, power: float = COMBINE_POWER) -> np.ndarray:
    """Returns weights that fall with the cost as cost^-power and add up to 1.

    Args:
        cost: float [num_experts, num_segments], 0 or more; infinite for no weight.
        power: The larger, the more the best prevails.

    Returns:
        float64 [num_experts, num_segments]; where no cost is finite, all alike.
    """
    cheapest = np.min(cost, axis=0, keepdims=True)
    free = np.isfinite(cheapest) & (cheapest <= 0)
    ratio = np.divide(
        np.where(np.isfinite(cheapest), cheapest, 1.0), cost,
        out=np.zeros_like(cost), where=np.isfinite(cost) & (cost > 0),
    )  # fmt: skip
    weights = np.where(free, cost <= 0, ratio**power)
    weights = np.where(np.isfinite(cheapest), weights, 1.0)
    return weights / weights.sum(axis=0, keepdims=True)


def fades(bounds: np.ndarray, fade_samples: int) -> list[tuple[int, int]]:
    """Returns where one segment goes over into the next: (start, stop) around each inner bound.

    A fade is at most as long as the shorter of its two segments, so that none meet.
    """
    lengths = np.minimum(np.diff(bounds)[:-1], np.diff(bounds)[1:])
    starts = bounds[1:-1] - np.minimum(lengths, fade_samples) // 2
    return [(int(a), int(a + min(n, fade_samples))) for a, n in zip(starts, lengths, strict=True)]


def joined(
    signals: Sequence[np.ndarray | None],
    weights: np.ndarray,
    bounds: np.ndarray,
    fade_samples: int,
) -> np.ndarray:
    """Adds estimates up, with weights that change from segment to segment by linear cross-fades.

    Args:
        signals: float32 [num_samples] each; None for one whose weights are all 0.
        weights: float [num_experts, num_segments], which add up to 1.
        bounds: From `segment_bounds`.
        fade_samples: Length of a cross-fade at most.

    Returns:
        float32 [num_samples]. One expert with weight 1 throughout comes back as it is.
    """
    spans = fades(bounds, fade_samples)
    inner = [0, *(point for span in spans for point in span), int(bounds[-1])]
    output = np.zeros(int(bounds[-1]), np.float32)
    for own, signal in zip(weights.astype(np.float32), signals, strict=True):
        if np.all(own == 1):
            return np.array(signal)
        if signal is None:
            assert not own.any(), "a weight and no signal"
            continue
        for place, weight in enumerate(own):
            if weight:
                part = slice(inner[2 * place], inner[2 * place + 1])
                output[part] += weight * signal[part]
        for (start, stop), before, after in zip(spans, own[:-1], own[1:], strict=True):
            if before or after:
                ramp = (np.arange(stop - start, dtype=np.float32) + 0.5) / max(stop - start, 1)
                output[start:stop] += (before + (after - before) * ramp) * signal[start:stop]
    return output
