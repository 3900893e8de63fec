"""The ranker: a small network that makes out the speech, and says which estimate is nearest to it.

Like the autoencoder it knows nothing but clean speech (`mnn.noises` makes all the noise that it
learns from), so any expert can join a pool without retraining. Where the autoencoder asks whether
an estimate looks like speech, the ranker hears the mixture too, and makes an estimate r of its own,
the reference. It need not be better than those of the experts. If S is the speech, of which the
mixture leaves several possible, then for each estimate s

    E|s - S|^2 = |s - E S|^2 + var S,

and the last term is the same for all: the mean E S ranks them by their expected squared error. The
network is one over time and frequency (`speech.net.timefrequency`), trained on SI-SDR, whose best
answer is that mean, but for a gain. It hears (x + m) / 2, where x is the mixture and m the mean of
all estimates: what the experts have found out helps it, and what they have lost is still there. So
what an expert gets depends on the others, though not on their order.

Errors are sums over frames of 512 samples every 256, square-root Hann, in 48 bands, the lowest of
one bin each. In each band of the whole file the reference gets the gain g that brings it nearest to
s, because SDR does not punish a filter:

    error = sum |s - g r|^2,    over all bands, divided by the energy of all g r.

A tile is 4 frames (64 ms) of one of those bands.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from mnn.features import level
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import COMPLEX_MASK
from speech.net.mask_enhancer import MaskEnhancer
from speech.sound.blocks import frame_blocks, signal_room, stft_frames
from speech.sound.stft import StftConfig, Synthesis

STFT = StftConfig(512, 256, "sqrt_hann")

#: First bin of each band, and the end: 24 of one bin, from 31 Hz, then 24 that grow wider.
BAND_EDGES = np.concatenate([np.arange(1, 25), np.round(np.geomspace(25, 257, 25)).astype(int)])
NUM_BANDS = len(BAND_EDGES) - 1

#: Frames of a tile.
TILE_FRAMES = 4

#: Of the mixture in what the ranker hears; the rest is the mean of all estimates.
MIXTURE_SHARE = 0.5

#: The root of the mean square of what it hears, in the middle of the levels of its training.
HEARD_LEVEL = 0.06

#: Samples that the network is given at a time.
_PUSHED = 1 << 20

#: Energies below this share of the largest are as good as none.
_TINY = 1e-12

#: How strongly the better estimates prevail in a sum: in a tile, and by the cost of the whole.
TILE_POWER, COST_POWER = 4.0, 4.0
#: In a tile, by calibrated errors.
CALIBRATED_TILE_POWER = 1.0

#: Of the mean error of tiles: below it a tile has no say of its own.
TILE_FLOOR = 1e-3

#: The first of the bands from 656 Hz up, in which distances between signals are taken apart.
_MIDDLE = 20


class Ranker:
    """A trained ranker.

    Args:
        path: A model file, possibly from a stranger, of any network over time and frequency.
        mixture_share: Of the mixture in what it hears, 0 to 1.

    Attributes:
        file: The model file as it was read.

    Raises:
        ValueError: The file is refused, or is of another kind.
    """

    def __init__(self, path: str | os.PathLike, mixture_share: float = MIXTURE_SHARE) -> None:
        self.file = read_model_file(path)
        self.file.require_kind(COMPLEX_MASK, fix="choose a model of python -m mnn.train ranker")
        self._network = MaskEnhancer(self.file)
        self._share = mixture_share

    def reference(self, noisy: np.ndarray, estimates: Sequence[np.ndarray]) -> np.ndarray:
        """Returns what the ranker takes for the speech.

        Args:
            noisy: The mixture, float32 [num_samples].
            estimates: Likewise, at least one.

        Returns:
            float32 [num_samples], of some gain.
        """
        each = (1 - self._share) / len(estimates)
        heard = _added([noisy, *estimates], [self._share, *(each for _ in estimates)])
        gain = np.float32(HEARD_LEVEL / level(heard))
        stream, made = self._network.stream(), 0
        for start in range(0, len(noisy) + 1, _PUSHED):
            piece = heard[start : start + _PUSHED] * gain
            found = stream.push(piece)
            if start + _PUSHED > len(noisy):
                found = np.concatenate([found, stream.finish()])
            # What comes out came in before: there is room for it where it was read.
            heard[made : made + len(found)] = found
            made += len(found)
        return heard

    def errors(self, noisy: np.ndarray, estimates: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the expected errors of estimates, block by block.

        Args:
            noisy: The mixture, float32 [num_samples].
            estimates: Likewise, at least one.

        Returns:
            float32 [num_estimates, num_tiles, 48]: shares of the energy that the reference has in
            the whole file, with its gains. Tile t begins with frame 4 t; the last may be shorter.
        """
        return distances(self.reference(noisy, estimates), estimates, level(noisy))


def distances(
    reference: np.ndarray, estimates: Sequence[np.ndarray], noisy_level: float
) -> np.ndarray:
    """Returns the distances of estimates from a reference, as `Ranker.errors` does from its own.

    Args:
        reference: float32 [num_samples], of any gain.
        estimates: Likewise, at least one.
        noisy_level: Of the mixture (`mnn.features.level`).

    Returns:
        As `Ranker.errors`.
    """
    # Squares of any level stay numbers.
    unit, own_unit = HEARD_LEVEL / noisy_level, HEARD_LEVEL / level(reference)
    num_frames = STFT.num_frames(len(reference))
    shape = -(-num_frames // TILE_FRAMES), NUM_BANDS
    given = np.zeros(shape, np.float32)
    own, shared = (np.zeros((len(estimates), *shape), np.float32) for _ in range(2))
    for start, stop in frame_blocks(num_frames, TILE_FRAMES * 256):
        place = slice(start // TILE_FRAMES, -(-stop // TILE_FRAMES))
        stop = start + TILE_FRAMES * (place.stop - place.start)  # beyond the end is silence
        known = stft_frames(reference, start, stop, STFT, scale=own_unit)
        given[place] = _products(known, known)
        for number, estimate in enumerate(estimates):
            spectra = stft_frames(estimate, start, stop, STFT, scale=unit)
            own[number, place] = _products(spectra, spectra)
            shared[number, place] = _products(known, spectra)
    energies, common = (sums.sum(axis=-2, dtype=np.float64) for sums in (given, shared))
    gains = common / (energies + _TINY * energies.max() + 1e-30)
    explained = np.sum(gains * common, axis=1)
    scale = 1 / np.maximum(explained, _TINY * explained.max() + 1e-30)
    for tiles, products, gain, share in zip(
        own, shared, gains.astype(np.float32), scale, strict=True
    ):
        tiles += gain * (gain * given - 2 * products)
        np.maximum(tiles, _TINY * tiles.max(), out=tiles)
        tiles *= share
        tiles += np.float32(1e-30)
    own[explained <= _TINY * explained.max()] = 1.0  # no speech at all, and be it silence
    return own


def distances_between(signals: Sequence[np.ndarray]) -> np.ndarray:
    """Returns how far signals are from each other, in low and in high bands.

    The distance of one signal from another is that of `distances`, so gains do not matter. It is
    not that of the other from the one; the logarithms of both are averaged.

    Args:
        signals: float32 [num_samples] each.

    Returns:
        float64 [2, num_signals, num_signals], below and above 656 Hz, symmetric: natural
        logarithms, from -14 to 14; NaN in the row and column of a silent signal.
    """
    num = len(signals)
    units = [HEARD_LEVEL / level(signal) for signal in signals]
    products = np.zeros((num * num, NUM_BANDS))
    for start, stop in frame_blocks(STFT.num_frames(len(signals[0])), TILE_FRAMES * 256):
        spectra = np.stack([
            stft_frames(signal, start, stop, STFT, scale=unit).view(np.float32)
            for signal, unit in zip(signals, units, strict=True)
        ])  # fmt: skip
        by_bin = spectra.transpose(2, 0, 1) @ spectra.transpose(2, 1, 0)
        products += band_sums(by_bin.reshape(-1, num * num).T, 2 * BAND_EDGES)
    shared = products.reshape(num, num, NUM_BANDS)
    energies = np.einsum("iib->ib", shared)
    explained = shared**2 / np.maximum(energies, 1e-30)
    left = np.maximum(energies[:, None] - explained, 0.0)
    parts = np.stack([left[..., :_MIDDLE].sum(axis=2), left[..., _MIDDLE:].sum(axis=2)])
    logs = np.log(parts / np.maximum(explained.sum(axis=2), 1e-30) + 1e-6)
    logs[:, energies.sum(axis=1) == 0] = np.nan
    return np.minimum((logs + logs.transpose(0, 2, 1)) / 2, 14.0)


def _added(signals: Sequence[np.ndarray], weights: Iterable[float]) -> np.ndarray:
    """Adds signals, float32 [num_samples] each, with weights."""
    total = signal_room(len(signals[0]))
    shares = [np.float32(weight) for weight in weights]
    for start in range(0, len(total), _PUSHED):
        own = slice(start, start + _PUSHED)
        total[own] = shares[0] * signals[0][own]
        for share, signal in zip(shares[1:], signals[1:], strict=True):
            total[own] += share * signal[own]
    return total


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns sums of Re(conj(one) other) over tiles and bands: float32 [num_tiles, 48].

    Both are complex64 [4 num_tiles, num_bins].
    """
    tiles = [
        part.view(np.float32).reshape(-1, TILE_FRAMES, 2 * STFT.num_bins) for part in (one, other)
    ]
    return band_sums(np.einsum("tfb,tfb->tb", *tiles), 2 * BAND_EDGES)


def band_sums(values: np.ndarray, edges: np.ndarray = BAND_EDGES) -> np.ndarray:
    """Adds up [num_frames, num_bins] over bands; what lies beyond the last edge is left out."""
    return np.add.reduceat(values[:, edges[0] : edges[-1]], edges[:-1] - edges[0], axis=1)


def added_by_bands(
    signals: Sequence[np.ndarray],
    tiles: np.ndarray,
    costs: np.ndarray,
    tile_power: float = TILE_POWER,
) -> np.ndarray:
    """Adds estimates, with weights of their own in each tile of time and band.

    The weights fall with the error that is expected there and with the cost of the whole estimate;
    between the centres of tiles they go over linearly, in time and in frequency.

    Args:
        signals: float32 [num_samples] each.
        tiles: float [num_signals, num_tiles, 48], from `Ranker.errors`.
        costs: float [num_signals, num_segments], of which the mean counts; infinite for an estimate
            that gets no weight.
        tile_power: The larger, the more the best of each tile prevails.

    Returns:
        float32 [num_samples].
    """
    cost = costs.mean(axis=1)
    used = np.flatnonzero(np.isfinite(cost))
    cost, tiles = cost[used], tiles[used]
    logs = -tile_power * np.log(tiles + TILE_FLOOR * tiles.mean())
    logs -= COST_POWER * np.log(cost + 1e-12)[:, None, None]
    weights = np.exp(logs - logs.max(axis=0))
    weights /= weights.sum(axis=0)
    centres = (BAND_EDGES[:-1] + BAND_EDGES[1:] - 1) / 2
    by_bin = _between(centres, np.arange(STFT.num_bins))
    num_samples = len(signals[0])
    num_frames = STFT.num_frames(num_samples)
    middles = (np.arange(tiles.shape[1]) + 0.5) * TILE_FRAMES - 0.5
    synthesis, parts = Synthesis(num_samples, STFT), []
    for start, stop in frame_blocks(num_frames, TILE_FRAMES * 256):
        # Only these tiles have a say in the block.
        near = slice(max(start // TILE_FRAMES - 1, 0), stop // TILE_FRAMES + 2)
        by_frame = _between(middles[near], np.arange(start, stop))
        total = np.zeros((stop - start, STFT.num_bins), np.complex64)
        for own, place in zip(weights, used, strict=True):
            spectra = stft_frames(signals[int(place)], start, stop, STFT)
            total += (by_frame @ own[near] @ by_bin.T).astype(np.float32) * spectra
        parts.append(synthesis.add(total))
    return np.concatenate(parts)


def _between(centres: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns what linear interpolation takes of each centre: [num_places, num_centres]."""
    return np.stack([np.interp(places, centres, row) for row in np.eye(len(centres))], axis=1)
