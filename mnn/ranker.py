"""The ranker: a small network that has learned how far an estimate is from the speech.

Like the autoencoder it knows nothing but clean speech (`mnn.degradations` makes the scenes that it
learns from), so any expert can join a pool without retraining. Where the autoencoder asks whether
an estimate looks like speech, the ranker hears the mixture too and says where, and by how much, an
estimate is wrong.

Spectra are those of the network over time and frequency: frames of 512 samples every 256, square-
root Hann. Their energies are added up in 48 bands, the lowest of one bin each, in the scale of
`mnn.features` (the mixture's mean square is 1). What the ranker hears of a frame, in log10:

    mixture     |x|^2
    estimate    |s|^2
    removed     |x - s|^2
    mean        |m|^2, where m is the mean of all estimates
    apart       |s - m|^2

It gives, for each frame and each of 16 bands of 3 of those, the log of the energy of s minus the
speech that it expects. The sum over a tile, 16 frames (a quarter of a second) of one band, is that
tile's expected error; the sum over a file ranks the estimates. As the mean of all estimates is
heard, what an expert gets depends on the others, though not on their order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnn.features import level
from speech.base.lazy import keras
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import ModelFile
from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.blocks import frame_blocks, stft_frames
from speech.sound.stft import StftConfig, Synthesis

KIND = "ranker"
STFT = StftConfig(512, 256, "sqrt_hann")

#: First bin of each band, and the end: 24 of one bin, from 31 Hz, then 24 that grow wider.
BAND_EDGES = np.concatenate([np.arange(1, 25), np.round(np.geomspace(25, 257, 25)).astype(int)])
NUM_BANDS = len(BAND_EDGES) - 1
HEARD = ("mixture", "estimate", "removed", "mean", "apart")

#: A tile: so many frames, and so many of the bands.
TILE_FRAMES, TILE_BANDS = 16, 3
TILE_EDGES = BAND_EDGES[::TILE_BANDS]
NUM_TILE_BANDS = len(TILE_EDGES) - 1

#: Energies below this share of the mixture's mean are as good as none.
_FLOOR = 1e-7

#: Brings the logs to about -1 to 2.
_SCALE, _OFFSET = 0.3, 0.9

#: How strongly the better estimates prevail in a tile, by its expected error and by their cost.
TILE_POWER, COST_POWER = 2.0, 32.0

DILATIONS = (1, 2, 4, 8)
WIDTH = 48


def heard(
    noisy: np.ndarray,
    estimates: Sequence[np.ndarray],
    mixture_level: float,
    frames: tuple[int, int] | None = None,
) -> np.ndarray:
    """Returns what the ranker hears of estimates.

    Args:
        noisy: The mixture, float32 [num_samples].
        estimates: Likewise, at least one.
        mixture_level: `mnn.features.level` of the mixture.
        frames: First frame, and the one after the last; None for all.

    Returns:
        float32 [num_estimates, num_frames, 5 * 48].
    """
    start, stop = frames or (0, STFT.num_frames(len(noisy)))
    unit = mixture_level**2 * STFT.window_energy * (STFT.num_bins - 1) / NUM_BANDS
    mixture = stft_frames(noisy, start, stop, STFT)
    spectra = [stft_frames(estimate, start, stop, STFT) for estimate in estimates]
    mean = np.asarray(np.mean(spectra, axis=0, dtype=np.complex64))
    shared = {"mixture": _heights(mixture, unit), "mean": _heights(mean, unit)}
    rows = []
    for own in spectra:
        parts = shared | {
            "estimate": _heights(own, unit),
            "removed": _heights(mixture - own, unit),
            "apart": _heights(own - mean, unit),
        }
        rows.append(np.concatenate([parts[name] for name in HEARD], axis=1))
    return np.stack(rows) * np.float32(_SCALE) + np.float32(_OFFSET)


def _heights(spectra: np.ndarray, unit: float) -> np.ndarray:
    """Returns log10 of band energies: float32 [num_frames, 48]."""
    return np.log10(band_sums(np.square(np.abs(spectra)) / np.float32(unit)) + np.float32(_FLOOR))


def band_sums(values: np.ndarray, edges: np.ndarray = BAND_EDGES) -> np.ndarray:
    """Adds up [num_frames, num_bins] over bands; what lies beyond the last edge is left out."""
    return np.add.reduceat(values[:, edges[0] : edges[-1]], edges[:-1] - edges[0], axis=1)


def ranker_conventions() -> dict[str, Any]:
    """Returns what the ``speech_meta`` of a ranker must say."""
    return {
        "kind": KIND,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "stft": STFT.to_json(),
        "heard": list(HEARD),
    }


def build_ranker(*, width: int = WIDTH, seed: int = 0) -> keras.Model:
    """Builds a ranker with fresh weights.

    Args:
        width: Channels of its layers.
        seed: Of weights and dropout.

    Returns:
        A Sequential model of convolutions over time: [batch, num_frames, 240] to
        [batch, num_frames, 16], natural logs of expected errors.
    """
    seeds = (int(s) for s in np.random.SeedSequence(seed).generate_state(len(DILATIONS) + 3))

    def conv(channels: int, name: str, taps: int = 1, dilation: int = 1, bias: float = 0.0) -> Any:
        return keras.layers.Conv1D(
            channels, taps, dilation_rate=dilation, padding="same", name=name,
            kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds)),
            bias_initializer=keras.initializers.Constant(bias),
        )  # fmt: skip

    layers = [keras.Input((None, len(HEARD) * NUM_BANDS), name="input"), conv(width, "conv1")]
    for number, dilation in enumerate(DILATIONS, start=2):
        layers += [
            keras.layers.LeakyReLU(name=f"act{number - 1}"),
            conv(width, f"conv{number}", 3, dilation),
        ]
    layers += [
        keras.layers.LeakyReLU(name=f"act{len(DILATIONS) + 1}"),
        keras.layers.Dropout(0.2, seed=next(seeds), name="dropout"),
        conv(NUM_TILE_BANDS, "output", bias=-4.0),
    ]
    return keras.Sequential(layers, name=KIND)


class Ranker:
    """A trained ranker, run by NumPy.

    Args:
        path: A model file, possibly from a stranger.

    Attributes:
        file: The model file as it was read.
        halo: Frames on either side that the judgement of a frame depends on.

    Raises:
        ValueError: The file is refused or is no ranker.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.file = read_model_file(path)
        for key, expected in ranker_conventions().items():
            if (found := self.file.meta.get(key)) != expected:
                raise ValueError(
                    f"{path}: speech_meta says {key} {found!r:.80}, expected {expected!r:.80}; "
                    "choose a model made by python -m mnn.train ranker"
                )
        self._steps = convolutions(self.file)
        self.halo = sum(step.reach for step in self._steps)

    def errors(self, noisy: np.ndarray, estimates: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the expected errors of estimates, block by block.

        Args:
            noisy: The mixture, float32 [num_samples].
            estimates: Likewise, at least one.

        Returns:
            float64 [num_estimates, num_tiles, 16]: energies, in the scale in which the mixture has
            48 on average in a frame. Tile t begins with frame 16 t; the last may be shorter.
        """
        num_frames, mixture_level = STFT.num_frames(len(noisy)), level(noisy)
        tiles = np.zeros((len(estimates), -(-num_frames // TILE_FRAMES), NUM_TILE_BANDS))
        for start, stop in frame_blocks(num_frames, TILE_FRAMES * 64):
            first, last = max(start - self.halo, 0), min(stop + self.halo, num_frames)
            inputs = heard(noisy, estimates, mixture_level, (first, last))
            place = slice(start // TILE_FRAMES, -(-stop // TILE_FRAMES))
            for number, values in enumerate(inputs):
                energies = np.exp(self._run(values)[start - first :][: stop - start])
                starts = np.arange(0, stop - start, TILE_FRAMES)
                tiles[number, place] = np.add.reduceat(energies, starts, axis=0, dtype=np.float64)
        return tiles

    def _run(self, values: np.ndarray) -> np.ndarray:
        for step in self._steps:
            values = step(values)
        return values


def added_by_bands(
    signals: Sequence[np.ndarray], tiles: np.ndarray, costs: np.ndarray
) -> np.ndarray:
    """Adds estimates, with weights of their own in each tile of time and band.

    The weights fall with the error that is expected there and with the cost of the whole estimate;
    between the centres of tiles they go over linearly, in time and in frequency.

    Args:
        signals: float32 [num_samples] each.
        tiles: float [num_signals, num_tiles, 16], from `Ranker.errors`.
        costs: float [num_signals, num_segments], of which the mean counts; infinite for an estimate
            that gets no weight.

    Returns:
        float32 [num_samples].
    """
    cost = costs.mean(axis=1)
    used = np.flatnonzero(np.isfinite(cost))
    cost, tiles = cost[used], tiles[used]
    # Tiles in which next to nothing is expected have no say of their own.
    floor = 1e-3 * tiles.mean()
    logs = -TILE_POWER * np.log(tiles + floor) - COST_POWER * np.log(cost + 1e-12)[:, None, None]
    weights = np.exp(logs - logs.max(axis=0))
    weights /= weights.sum(axis=0)
    centres = (TILE_EDGES[:-1] + TILE_EDGES[1:] - 1) / 2
    by_bin = _between(centres, np.arange(STFT.num_bins))
    num_samples = len(signals[0])
    num_frames = STFT.num_frames(num_samples)
    middles = (np.arange(tiles.shape[1]) + 0.5) * TILE_FRAMES - 0.5
    synthesis, parts = Synthesis(num_samples, STFT), []
    for start, stop in frame_blocks(num_frames):
        by_frame = _between(middles, np.arange(start, stop))
        total = np.zeros((stop - start, STFT.num_bins), np.complex64)
        for own, place in zip(weights, used, strict=True):
            spectra = stft_frames(signals[int(place)], start, stop, STFT)
            total += (by_frame @ own @ by_bin.T).astype(np.float32) * spectra
        parts.append(synthesis.add(total))
    return np.concatenate(parts)


def _between(centres: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns what linear interpolation takes of each centre: [num_places, num_centres]."""
    return np.stack([np.interp(places, centres, row) for row in np.eye(len(centres))], axis=1)


@dataclass(frozen=True, eq=False)
class _Conv:
    """A convolution over time that keeps the length, and the LeakyReLU in front of it.

    Attributes:
        kernel: float32 [num_taps, in_channels, out_channels], an odd number of taps.
        bias: float32 [out_channels].
        dilation: Frames from tap to tap.
        slope: Of negative inputs; 1 for no LeakyReLU.
    """

    kernel: np.ndarray
    bias: np.ndarray
    dilation: int
    slope: float

    @property
    def reach(self) -> int:
        """Frames on either side that a frame depends on."""
        return len(self.kernel) // 2 * self.dilation

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if self.slope != 1:
            values = np.where(values < 0, np.float32(self.slope) * values, values)
        output = np.tile(self.bias, (len(values), 1))
        for tap, matrix in enumerate(self.kernel):
            shift = (tap - len(self.kernel) // 2) * self.dilation
            low, high = max(0, -shift), min(len(values), len(values) - shift)
            if low < high:
                output[low:high] += values[low + shift : high + shift] @ matrix
        return output


def convolutions(file: ModelFile) -> list[_Conv]:
    """Returns the steps of a ranker; ValueError if the network is none."""
    steps, slope = [], 1.0
    for layer in file.layers:
        config = layer.config
        match layer.class_name:
            case "InputLayer" | "Dropout":
                pass
            case "LeakyReLU":
                slope *= config["negative_slope"]
            case "Conv1D" if _keeps_length(config):
                kernel = layer.weights["kernel"]
                bias = layer.weights.get("bias", np.zeros(kernel.shape[2], np.float32))
                steps.append(_Conv(kernel, bias, _only(config["dilation_rate"]), slope))
                slope = 1.0
            case other:
                raise ValueError(
                    f"{file.path}: layer {layer.name!r} ({other}) has no place in a ranker"
                )
    shapes = [step.kernel.shape for step in steps]
    if not shapes or (shapes[0][1], shapes[-1][2]) != (len(HEARD) * NUM_BANDS, NUM_TILE_BANDS):
        raise ValueError(f"{file.path}: is no ranker: its convolutions have the shapes {shapes}")
    return steps


def _only(value: Any) -> int:
    return value[0] if isinstance(value, list | tuple) else value


def _keeps_length(config: dict[str, Any]) -> bool:
    return (
        config["padding"] == "same" and _only(config["strides"]) == 1
        and _only(config["kernel_size"]) % 2 == 1 and config.get("groups", 1) == 1
        and config["activation"] == "linear"
    )  # fmt: skip
