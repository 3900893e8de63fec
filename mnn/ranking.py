"""What a ranker is trained on, and for what: scenes, and the loss that ranks their estimates.

A scene (`mnn.degradations`) is 3 s of speech with noise, and up to four estimates of it. The
targets are the true errors: for each tile the products of all pairs of errors, which are sums of
Re(e_i e_j*) over its frames and bins with e = s - speech, and the true SDR of each estimate (scale-
invariant, Le Roux et al. 2019). The loss has three terms:

    rank      cross entropy from softmax(SDR) to softmax(predicted SDR), both in dB: listwise
              (Cao et al. 2007), so that near misses cost little
    tiles     r - log r - 1 of the ratio r of true to expected error, the deviance of a gamma
              distribution: the expected error is a mean, so that sums of it are right
    combined  log of the error of all estimates added, weighted in each tile by the inverse of their
              expected errors, over the error of the best one
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnn.degradations import Scene, Signals, draw_scene, fit_pupil
from mnn.features import level
from mnn.ranker import (
    HEARD,
    NUM_BANDS,
    NUM_TILE_BANDS,
    STFT,
    TILE_EDGES,
    TILE_FRAMES,
    band_sums,
    heard,
)
from speech.base.lazy import joblib, ops
from speech.sound.stft import stft

SCENE_SAMPLES = 48000
MOST_ESTIMATES = 4
NUM_TILES = STFT.num_frames(SCENE_SAMPLES) // TILE_FRAMES
NUM_FRAMES = NUM_TILES * TILE_FRAMES

#: Scenes that share pupils, and how many pupils these are.
CHUNK, NUM_PUPILS = 250, 15

#: Weights of the terms of the loss.
RANK, TILES, COMBINED = 1.0, 0.3, 1.0

_SDR_LIMIT_DB = 60.0


class Scenes:
    """Scenes in one file mapped into memory, a batch at a time.

    Args:
        speakers: Utterances of each speaker, float32 [num_samples].
        count: How many scenes.
        seed: Of everything.
        num_jobs: Processes; the scenes are the same for any number.
        folder: Where the nameless file lies, 0.4 MB a scene; None for the system's.
    """

    #: A scene is one example.
    frames_each = 1

    def __init__(
        self,
        speakers: Sequence[Signals],
        count: int,
        seed: Sequence[int],
        *,
        num_jobs: int = 1,
        folder: Path | None = None,
    ) -> None:
        self._inputs = _room(
            np.float16, (count, MOST_ESTIMATES, NUM_FRAMES, len(HEARD) * NUM_BANDS), folder
        )
        self._targets = _room(np.float32, (count, MOST_ESTIMATES, num_targets()), folder)
        sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
        made = joblib.Parallel(num_jobs, return_as="generator")(
            joblib.delayed(_examples)(speakers, size, [*seed, number])
            for number, size in enumerate(sizes)
        )
        for number, (inputs, targets) in enumerate(made):
            place = slice(number * CHUNK, number * CHUNK + len(inputs))
            self._inputs[place], self._targets[place] = inputs, targets

    def __len__(self) -> int:
        """Returns the number of scenes."""
        return len(self._inputs)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs [4 * len(rows), 176, 240] and targets [4 * len(rows), num_targets]."""
        inputs, targets = self._inputs[rows], self._targets[rows]
        return (
            inputs.reshape(-1, *inputs.shape[2:]).astype(np.float32),
            targets.reshape(-1, targets.shape[2]),
        )


def num_targets() -> int:
    """Returns the values of a target: the SDR, and a product with each estimate for each tile."""
    return 1 + MOST_ESTIMATES * NUM_TILES * NUM_TILE_BANDS


def _room(dtype: Any, shape: tuple[int, ...], folder: Path | None) -> np.ndarray:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)


def _examples(
    speakers: Sequence[Signals], count: int, seed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs float16 [count, 4, 176, 240] and targets float32 [count, 4, num_targets]."""
    rng = np.random.default_rng(seed)
    pupils = [fit_pupil(rng, speakers, SCENE_SAMPLES) for _ in range(NUM_PUPILS)]
    pairs = [
        example(draw_scene(rng, speakers, pupils, SCENE_SAMPLES, MOST_ESTIMATES))
        for _ in range(count)
    ]
    inputs, targets = zip(*pairs, strict=True)
    return np.stack(inputs).astype(np.float16), np.stack(targets)


def example(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the ranker hears of a scene, and what it should have said.

    Args:
        scene: Of `SCENE_SAMPLES` samples. With fewer estimates than `MOST_ESTIMATES`, they are
            repeated.

    Returns:
        float32 [4, 176, 240], and [4, num_targets]: each row has the SDR in dB, and then the
        products [4, num_tiles, 16] of its error with those of all.
    """
    mixture_level = level(scene.noisy)
    again = np.arange(MOST_ESTIMATES) % len(scene.estimates)
    inputs = heard(scene.noisy, list(scene.estimates), mixture_level, (0, NUM_FRAMES))[again]
    clean = stft(scene.clean, STFT)[:NUM_FRAMES]
    errors = [stft(estimate, STFT)[:NUM_FRAMES] - clean for estimate in scene.estimates]
    unit = mixture_level**2 * STFT.window_energy * (STFT.num_bins - 1) / NUM_BANDS
    starts = np.arange(0, NUM_FRAMES, TILE_FRAMES)
    shape = (len(errors), len(errors), NUM_TILES, NUM_TILE_BANDS)
    products = np.empty(shape, np.float32)
    for one in range(len(errors)):
        for other in range(one, len(errors)):
            product = (errors[one] * errors[other].conj()).real / np.float32(unit)
            tiles = np.add.reduceat(band_sums(product, TILE_EDGES), starts, axis=0)
            products[one, other] = products[other, one] = tiles
    sdr_db = [_sdr_db(scene.clean, estimate) for estimate in scene.estimates]
    rows = products[again][:, again].reshape(MOST_ESTIMATES, -1)
    return inputs, np.column_stack([np.array(sdr_db, np.float32)[again], rows])


def _sdr_db(clean: np.ndarray, estimate: np.ndarray) -> float:
    """Returns the scale-invariant SDR, within +-60 dB."""
    one, other = clean.astype(np.float64), estimate.astype(np.float64)
    energy = (one @ one) * (other @ other)
    share = (one @ other) ** 2 / energy if energy > 0 else 0.0
    least = 10 ** (-_SDR_LIMIT_DB / 10)
    share = min(max(share, least), 1 - least)
    return float(10 * np.log10(share / (1 - share)))


def rank_loss(target: Any, output: Any) -> Any:
    """Returns the loss of a batch (see the module).

    Args:
        target: [4 * batch, num_targets], from `Scenes.batch`.
        output: [4 * batch, 176, 16], natural logs of expected errors of frames and bands.

    Returns:
        [], the mean over scenes.
    """
    tiny = 1e-5
    shape = (-1, MOST_ESTIMATES, NUM_TILES, TILE_FRAMES, NUM_TILE_BANDS)
    expected = ops.logsumexp(ops.reshape(output, shape), axis=3)
    sdr_db = ops.reshape(target[:, 0], (-1, MOST_ESTIMATES))
    products = ops.reshape(
        target[:, 1:], (-1, MOST_ESTIMATES, MOST_ESTIMATES, NUM_TILES, NUM_TILE_BANDS)
    )
    true = ops.einsum("seetb->setb", products)
    ratio = ops.clip(ops.log(true + tiny) - expected, -12.0, 3.0)
    tiles = ops.mean(ops.exp(ratio) - ratio - 1)
    decibel = 10 / float(np.log(10.0))
    flat = ops.reshape(expected, (-1, MOST_ESTIMATES, NUM_TILES * NUM_TILE_BANDS))
    predicted_db = -decibel * ops.logsumexp(flat, axis=2)
    wanted = ops.softmax(sdr_db, axis=1)
    rank = ops.mean(
        ops.sum(wanted * (ops.log(wanted + 1e-9) - ops.log_softmax(predicted_db, 1)), 1)
    )
    weights = ops.softmax(-expected, axis=1)
    added = ops.einsum("sitb,sjtb,sijtb->stb", weights, weights, products)
    combined = ops.sum(ops.maximum(added, 0.0), axis=(1, 2))
    best = ops.min(ops.sum(true, axis=(2, 3)), axis=1)
    combined = ops.mean(ops.log(combined + tiny) - ops.log(best + tiny))
    return RANK * rank + TILES * tiles + COMBINED * combined
