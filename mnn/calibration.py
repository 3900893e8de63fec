"""Calibrates a pool: the errors of each expert are measured once, before use.

The ranker takes the distance of an estimate from its own reference for the error of the estimate.
Both err, and where they err alike the distance is too small: if e is the error of the estimate and
r that of the reference,

    distance = |e|^2 + |r|^2 - 2 <e, r>,

and the last term differs from expert to expert, and from file to file. How far mixture, reference
and estimates are from each other helps to predict it. How, is measured for each expert on mixtures
whose speech is known:

    log error = a[expert] + w[expert] . z + b log cost + what all estimates of the file share.

The cost is the ranker's, and z are the logarithms of the distances between every two of these
signals, in low and in high bands (`mnn.ranker.distances_between`), each less its mean over the
mixtures and divided by its standard deviation. The coefficients are those of least squares with a
penalty on w (ridge regression), in the subspace of the largest principal components of z.
Estimates that are far from the best of their file count less, for the choice is among the best.
No network is trained, and nothing is learned from the files that are enhanced later.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnn.expert_files import Expert
from mnn.features import level
from mnn.ranker import COST_POWER, TILE_FLOOR, Ranker, distances, distances_between
from mnn.scoring import soft_weights
from speech.base import schema
from speech.base.files import write_json

#: Estimates of a file count less by the factor e for each 0.3 of log error (1.3 dB) that they are
#: worse than the best of it, but not below `LEAST`, so that bad experts get an offset, too.
NEARNESS, LEAST = 0.3, 1e-3

#: The smallest number of mixtures that a calibration is made from.
MIN_FILES = 10

#: Costs and errors below this value (-60 dB) are taken for it.
FLOOR = 1e-6

#: At most so many principal components of z are used. The penalty is on the squares of w.
NUM_COMPONENTS, RIDGE = 20, 50.0

#: Smaller penalties keep a and b from growing where the mixtures do not determine them.
_RIDGE_OFFSET, _RIDGE_SLOPE = 1e-6, 0.01

#: Values of z are clipped to so many standard deviations.
MOST_UNUSUAL = 5.0

#: In tiles, whose errors are less reliable, only this share of the slope b is used.
TILE_SLOPE = 0.5

#: A calibration is tried on so many parts of the mixtures, each left out in turn.
NUM_PARTS = 5
_WAYS = ("pick", "calibrated pick", "sum", "calibrated sum")

#: No coefficient is larger, and no slope; and no standard deviation of a distance is smaller: at
#: 0.1 (0.4 dB) distances are as good as equal.
_MOST, _MOST_SLOPE, _LEAST_DEVIATION = 20.0, 3.0, 0.1


@dataclass(frozen=True)
class Calibrated:
    """What is known of one expert.

    Attributes:
        offset: a in the equation, a natural logarithm of energies: 1 is 4.3 dB.
        weights: w, one for each value of z.
        sha256: Of its file, by which it is known again; '' for a folder of files.
    """

    offset: float
    weights: tuple[float, ...]
    sha256: str = ""


@dataclass(frozen=True)
class Calibration:
    """What is known of a pool, as it stands in a JSON file.

    Attributes:
        experts: By name, in the order in which their distances stand in z.
        slope: b in the equation.
        means: Of the distances, over the mixtures.
        deviations: Their standard deviations.
        ranker_sha256: Of the ranker that it goes with.
        num_files: Mixtures that it was measured on.
    """

    experts: dict[str, Calibrated]
    slope: float
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    ranker_sha256: str
    num_files: int

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        num_signals, size = len(self.experts) + 2, len(self.means)
        if len(self.experts) < 2 or self.num_files < MIN_FILES:
            raise ValueError(
                f"of {len(self.experts)} experts and {self.num_files} mixtures, expected 2 and "
                f"{MIN_FILES} at least"
            )
        rows = [self.deviations, *(expert.weights for expert in self.experts.values())]
        if size != num_signals * (num_signals - 1) or any(len(row) != size for row in rows):
            raise ValueError("the numbers of distances, weights and experts do not go together")
        values = [self.means, *rows, [expert.offset for expert in self.experts.values()]]
        if not all(abs(value) <= _MOST for row in values for value in row):
            raise ValueError(f"a value is no number from -{_MOST:g} to {_MOST:g}")
        if not all(value >= _LEAST_DEVIATION for value in self.deviations):
            raise ValueError(f"a standard deviation is not {_LEAST_DEVIATION:g} at least")
        if not 0 <= self.slope <= _MOST_SLOPE:
            raise ValueError(f"the slope is no number from 0 to {_MOST_SLOPE:g}")

    def require(self, experts: Sequence[Expert], ranker: Ranker) -> None:
        """Checks that these are the pool and the ranker that were measured.

        The ranker hears the mean of all estimates, so its costs depend on who is in the pool.

        Raises:
            ValueError: They are not.
        """
        if self.ranker_sha256 != ranker.file.sha256:
            raise ValueError("it was made with another ranker; calibrate again with this one")
        for expert in experts:
            known = self.experts.get(expert.name)
            if known is None:
                raise ValueError(f"{expert.name} is not in it; calibrate again with this pool")
            if known.sha256 != expert.sha256:
                raise ValueError(f"{expert.name} has changed since; calibrate again")
        if gone := sorted(self.experts.keys() - {expert.name for expert in experts}):
            raise ValueError(f"{gone[0]} is not in this pool; calibrate again without it")

    def offsets(self, names: Sequence[str], between: np.ndarray) -> np.ndarray:
        """Returns a + w . z for a file.

        Args:
            names: Of the experts whose estimates there are, in any order.
            between: float64 [2, num_experts + 2, num_experts + 2], what is `seen` of the file. What
                is missing, because an expert is out or silent, is taken for usual.

        Returns:
            float64 [num_experts].

        Raises:
            ValueError: An expert was not measured.
        """
        if unknown := [name for name in names if name not in self.experts]:
            raise ValueError(f"{unknown[0]} is not in the calibration; calibrate again")
        order = list(self.experts)
        places = [0, 1, *(order.index(name) + 2 for name in names)]
        whole = np.full((2, len(order) + 2, len(order) + 2), np.nan)
        whole[:, np.reshape(places, (-1, 1)), places] = between
        unusual = _standard(_pairs(whole), np.array(self.means), np.array(self.deviations))
        unusual = np.nan_to_num(unusual)
        known = [self.experts[name] for name in names]
        found = [expert.offset + np.dot(expert.weights, unusual) for expert in known]
        return np.clip(found, -_MOST, _MOST)

    def costs(self, offsets: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Returns calibrated costs.

        Args:
            offsets: From `offsets`.
            costs: The ranker's, float [num_experts, num_segments], above 0.

        Returns:
            Likewise: expected errors, but for a factor that all estimates of a file share.
        """
        return np.exp(offsets[:, None] + self.slope * _log(costs))

    def tiles(self, offsets: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """Returns calibrated errors of tiles, by the equation of whole files with a smaller slope.

        Args:
            offsets: From `offsets`.
            tiles: The ranker's, float [num_experts, num_tiles, num_bands].

        Returns:
            Likewise, but for a common factor.
        """
        # A floor for tiles with almost no energy.
        logs = np.log(tiles + TILE_FLOOR * tiles.mean())
        return np.exp(offsets[:, None, None] + TILE_SLOPE * self.slope * logs)

    def write(self, path: str | os.PathLike) -> None:
        """Writes it as JSON."""
        write_json(path, asdict(self))


def read_calibration(path: str | os.PathLike) -> Calibration:
    """Reads what `Calibration.write` has written, possibly by a stranger.

    Raises:
        OSError: The file can't be read.
        ValueError: It is no calibration.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with python -m mnn.calibrate")
    return schema.read(path, Calibration)


def seen(
    ranker: Ranker, noisy: np.ndarray, estimates: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is seen of estimates without their speech.

    Args:
        ranker: The ranker.
        noisy: The mixture, float32 [num_samples].
        estimates: Likewise, at least one.

    Returns:
        The ranker's errors, float32 [num_estimates, num_tiles, num_bands], and the distances
        between mixture, reference and estimates, float64
        [2, num_estimates + 2, num_estimates + 2] (`mnn.ranker.distances_between`).
    """
    reference = ranker.reference(noisy, estimates)
    tiles = distances(reference, estimates, level(noisy))
    return tiles, distances_between([noisy, reference, *estimates])


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, FLOOR))


def _pairs(between: np.ndarray) -> np.ndarray:
    """Returns distances between every two signals, [..., 2 num_pairs]."""
    own = between[..., *np.triu_indices(between.shape[-1], 1)]
    return own.reshape(*own.shape[:-2], -1)


def _standard(values: np.ndarray, means: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    return np.clip((values - means) / deviations, -MOST_UNUSUAL, MOST_UNUSUAL)


@dataclass(frozen=True)
class HeldOut:
    """What choosing and adding would have given, each part calibrated by all other parts.

    Attributes:
        best: The expert with the best mean.
        si_sdr_db: Means over all mixtures, of this expert ('best'), of the picks and of the sums of
            files, plain and calibrated: 'pick', 'calibrated pick', 'sum', 'calibrated sum'.
    """

    best: str
    si_sdr_db: dict[str, float]


def held_out(
    costs: np.ndarray,
    between: np.ndarray,
    sdr_db: np.ndarray,
    products: np.ndarray,
    names: Sequence[str],
) -> HeldOut | None:
    """Tries a calibration on mixtures that it was not made with.

    Args:
        costs: As for `fitted`; mixtures that are alike, such as those of one noise, follow each
            other.
        between: As for `fitted`.
        sdr_db: As for `fitted`.
        products: float64 [num_files, num_experts + 1, num_experts + 1], the inner products of the
            estimates and, last, the clean speech.
        names: Of the experts.

    Returns:
        The result; None if there are too few mixtures to leave some out.
    """
    num_files, num_experts = sdr_db.shape
    if num_files - -(-num_files // NUM_PARTS) < MIN_FILES:
        return None
    each = np.eye(num_experts)
    weights = {name: np.zeros((num_files, num_experts)) for name in _WAYS}
    experts = [(name, "") for name in names]
    for part in np.array_split(np.arange(num_files), NUM_PARTS):
        rest = np.setdiff1d(np.arange(num_files), part)
        calibration = fitted(costs[rest], between[rest], sdr_db[rest], experts, "")
        for place in part:
            plain = costs[place][:, None]
            own = calibration.costs(calibration.offsets(names, between[place]), plain)
            for cost, kind in ((plain, ""), (own, "calibrated ")):
                weights[f"{kind}pick"][place] = each[int(np.argmin(cost))]
                weights[f"{kind}sum"][place] = soft_weights(cost, COST_POWER)[:, 0]
    alone = np.mean(
        [_si_sdr_db(products, np.broadcast_to(row, (num_files, num_experts))) for row in each],
        axis=1,
    )
    means = {name: float(np.mean(_si_sdr_db(products, own))) for name, own in weights.items()}
    return HeldOut(names[int(np.argmax(alone))], {"best": float(alone.max())} | means)


def _si_sdr_db(products: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the SI-SDR of weighted sums of estimates, [num_files]; see `held_out`."""
    own = np.einsum("fi,fij,fj->f", weights, products[:, :-1, :-1], weights)
    shared = np.einsum("fi,fi->f", weights, products[:, :-1, -1]) ** 2 / products[:, -1, -1]
    return 10 * np.log10(np.maximum(shared, 1e-30) / np.maximum(own - shared, 1e-6 * own + 1e-30))


def fitted(
    costs: np.ndarray,
    between: np.ndarray,
    sdr_db: np.ndarray,
    experts: Sequence[tuple[str, str]],
    ranker_sha256: str,
) -> Calibration:
    """Fits the equation.

    Args:
        costs: The ranker's, float64 [num_files, num_experts]: the sums of its errors.
        between: float64 [num_files, 2, num_experts + 2, num_experts + 2], what else is `seen`.
        sdr_db: float64 [num_files, num_experts], the true SDR: the error is 10^(-SDR / 10).
        experts: Name and SHA-256 of each expert.
        ranker_sha256: Of the ranker.

    Raises:
        ValueError: There are fewer than `MIN_FILES` mixtures, or fewer than two experts.
    """
    num_files, num_experts = sdr_db.shape
    if num_files < MIN_FILES or num_experts < 2:
        raise ValueError(
            f"{num_files} mixtures and {num_experts} experts are left, expected {MIN_FILES} and 2 "
            "at least"
        )
    apart = _pairs(between)
    means, deviations = apart.mean(axis=0), np.maximum(apart.std(axis=0), _LEAST_DEVIATION)
    unusual = _standard(apart, means, deviations)
    components = np.linalg.svd(unusual, full_matrices=False)[2][:NUM_COMPONENTS].T
    # One column for each coefficient: a of each expert, then w of each by component, then b.
    each = np.broadcast_to(np.eye(num_experts), (num_files, num_experts, num_experts))
    scores = (unusual @ components)[:, None, None]
    terms = (each[..., None] * scores).reshape(num_files, num_experts, -1)
    terms = np.concatenate([each, terms, _log(costs)[..., None]], axis=2)
    penalties = np.full(terms.shape[2], RIDGE)
    penalties[:num_experts], penalties[-1] = _RIDGE_OFFSET, _RIDGE_SLOPE
    errors = _log(10 ** (-sdr_db / 10))
    weights = np.exp((errors.min(axis=1, keepdims=True) - errors) / NEARNESS)
    weights = np.maximum(weights, LEAST)
    weights /= weights.sum(axis=1, keepdims=True)
    coefficients = _ridge(terms, errors, weights, penalties)
    if coefficients[-1] < 0:  # a larger cost can't mean a smaller error
        coefficients = np.append(_ridge(terms[..., :-1], errors, weights, penalties[:-1]), 0.0)
    offsets = coefficients[:num_experts]
    offsets = offsets + np.average(errors - terms @ coefficients, weights=weights)
    own = coefficients[num_experts:-1].reshape(num_experts, -1) @ components.T
    known = {
        name: Calibrated(float(offset), tuple(row.tolist()), sha256)
        for (name, sha256), offset, row in zip(
            experts, np.clip(offsets, -_MOST, _MOST), np.clip(own, -_MOST, _MOST), strict=True
        )
    }
    return Calibration(
        known,
        float(min(coefficients[-1], _MOST_SLOPE)),
        tuple(means.tolist()),
        tuple(deviations.tolist()),
        ranker_sha256,
        num_files,
    )


def _ridge(
    terms: np.ndarray, errors: np.ndarray, weights: np.ndarray, penalties: np.ndarray
) -> np.ndarray:
    """Returns the coefficients of weighted least squares; what a file shares is taken out."""
    inner, target = (
        values - np.einsum("fe,fe...->f...", weights, values)[:, None] for values in (terms, errors)
    )
    weighted = weights[..., None] * inner
    normal = np.einsum("fei,fej->ij", weighted, inner, optimize=True) + np.diag(penalties)
    return np.linalg.lstsq(normal, np.einsum("fei,fe->i", weighted, target))[0]
