"""A pool is calibrated: what the ranker does not know of each expert is measured once, ahead.

The ranker takes the distance of an estimate from its own reference for the error of the estimate.
Both err, and where they err alike the distance is too small: if e is the error of the estimate and
r that of the reference,

    distance = |e|^2 + |r|^2 - 2 <e, r>,

and the last term differs from expert to expert. Its mean for each expert, and what each is worth in
general, can be measured on mixtures whose speech is known:

    log error = a[expert] + b log cost + d log others + what all estimates of the file share.

The cost is the ranker's; ``others`` is the distance of the estimate from the sum of all other
estimates, in which those of a low cost weigh more. That sum errs in other ways than the reference.
The coefficients are those of least squares, the slopes b and d at least 0. Estimates that are far
from the best of their file count less, for the choice is among the best.
No network is trained, and nothing about the files that are chosen for later is known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnn.expert_files import Expert
from mnn.features import level
from mnn.ranker import COST_POWER, TILE_FLOOR, Ranker, distances_from_others
from mnn.scoring import soft_weights
from speech.base import schema
from speech.base.files import write_json

#: Estimates of a file count less by the factor e for each 0.3 of log error (1.3 dB) that they are
#: worse than the best of it, but not below `LEAST`, so that bad experts get an offset, too.
NEARNESS, LEAST = 0.3, 1e-3

#: The smallest number of mixtures that a calibration is made from.
MIN_FILES = 10

#: Costs, distances and errors below this value (-60 dB) are taken for it.
FLOOR = 1e-6

#: A calibration is tried on so many parts of the mixtures, each left out in turn.
NUM_PARTS = 5
_WAYS = ("pick", "calibrated pick", "sum", "calibrated sum")

#: No coefficient is larger.
_MOST = 20.0


@dataclass(frozen=True)
class Calibrated:
    """What is known of one expert.

    Attributes:
        offset: a in the equation, a natural logarithm of energies: 1 is 4.3 dB.
        sha256: Of its file, by which it is known again; '' for a folder of files.
    """

    offset: float
    sha256: str = ""


@dataclass(frozen=True)
class Calibration:
    """What is known of a pool, as it stands in a JSON file.

    Attributes:
        experts: By name.
        cost_slope: b in the equation.
        others_slope: d.
        ranker_sha256: Of the ranker that it goes with.
        num_files: Mixtures that it was measured on.
    """

    experts: dict[str, Calibrated]
    cost_slope: float
    others_slope: float
    ranker_sha256: str
    num_files: int

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense."""
        offsets = [expert.offset for expert in self.experts.values()]
        if not all(abs(offset) <= _MOST for offset in offsets):
            raise ValueError(f"an offset is no number from -{_MOST:g} to {_MOST:g}")
        if not all(0 <= slope <= _MOST for slope in (self.cost_slope, self.others_slope)):
            raise ValueError(f"a slope is no number from 0 to {_MOST:g}")
        if len(self.experts) < 2 or self.num_files < MIN_FILES:
            raise ValueError(
                f"of {len(self.experts)} experts and {self.num_files} mixtures, expected 2 and "
                f"{MIN_FILES} at least"
            )

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

    def costs(self, names: Sequence[str], costs: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Returns calibrated costs.

        Args:
            names: Of the experts.
            costs: The ranker's, float [num_experts, num_segments], above 0.
            others: The distances from the others, likewise.

        Returns:
            Likewise: expected errors, but for a factor that all estimates of a file share.

        Raises:
            ValueError: An expert was not measured.
        """
        return self._errors(names, np.maximum(costs, FLOOR), np.maximum(others, FLOOR))

    def tiles(self, names: Sequence[str], tiles: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Returns calibrated errors of tiles, by the equation of whole files.

        Args:
            names: Of the experts.
            tiles: The ranker's, float [num_experts, num_tiles, num_bands].
            others: The distances from the others, likewise.

        Returns:
            Likewise, but for a common factor.
        """
        # A floor for tiles with almost no energy.
        return self._errors(names, *(part + TILE_FLOOR * part.mean() for part in (tiles, others)))

    def _errors(self, names: Sequence[str], costs: np.ndarray, others: np.ndarray) -> np.ndarray:
        if unknown := [name for name in names if name not in self.experts]:
            raise ValueError(f"{unknown[0]} is not in the calibration; calibrate again")
        logs = self.cost_slope * np.log(costs) + self.others_slope * np.log(others)
        offsets = [self.experts[name].offset for name in names]
        return np.exp(np.reshape(offsets, (-1, *[1] * (logs.ndim - 1))) + logs)

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


def seen(ranker: Ranker, noisy: np.ndarray, estimates: Sequence[np.ndarray]) -> np.ndarray:
    """Returns what is seen of estimates without their speech.

    Args:
        ranker: The ranker.
        noisy: The mixture, float32 [num_samples].
        estimates: Likewise, at least two.

    Returns:
        float64 [2, num_estimates]: the costs and the distances from the others.
    """
    costs = _total(ranker.errors(noisy, estimates))
    return np.stack([costs, _total(distances_from_others(estimates, costs, level(noisy)))])


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, FLOOR))


def _total(tiles: np.ndarray) -> np.ndarray:
    return tiles.sum(axis=(1, 2), dtype=np.float64)


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
    found: np.ndarray, sdr_db: np.ndarray, products: np.ndarray, names: Sequence[str]
) -> HeldOut | None:
    """Tries a calibration on mixtures that it was not made with.

    Args:
        found: As for `fitted`; mixtures that are alike, such as those of one noise, follow each
            other.
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
    for part in np.array_split(np.arange(num_files), NUM_PARTS):
        rest = np.setdiff1d(np.arange(num_files), part)
        calibration = fitted(found[rest], sdr_db[rest], [(name, "") for name in names], "")
        for place in part:
            plain = found[place, 0][:, None]
            own = calibration.costs(names, plain, found[place, 1][:, None])
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
    found: np.ndarray, sdr_db: np.ndarray, experts: Sequence[tuple[str, str]], ranker_sha256: str
) -> Calibration:
    """Fits the equation.

    Args:
        found: float64 [num_files, 2, num_experts], what is `seen` of each mixture.
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
    errors = _log(10 ** (-sdr_db / 10))
    weights = np.exp((errors.min(axis=1, keepdims=True) - errors) / NEARNESS)
    weights = np.maximum(weights, LEAST)
    weights /= weights.sum(axis=1, keepdims=True)
    own = np.broadcast_to(np.eye(num_experts), (num_files, num_experts, num_experts))
    slopes = np.zeros(2)
    used = [0, 1]
    while True:
        terms = np.concatenate([own, _log(found).transpose(0, 2, 1)[..., used]], axis=2)
        # What all estimates of a file share is taken out.
        inner, target = (
            values - np.einsum("fe,fe...->f...", weights, values)[:, None]
            for values in (terms, errors)
        )
        roots = np.sqrt(weights)
        coefficients = np.linalg.lstsq(
            (roots[..., None] * inner).reshape(num_files * num_experts, -1),
            (roots * target).ravel(),
        )[0]
        slopes[:] = 0
        slopes[used] = coefficients[num_experts:]
        # A larger distance can't mean a smaller error.
        if np.all(slopes >= 0):
            break
        used.remove(int(np.argmin(slopes)))
    offsets = coefficients[:num_experts]
    offsets = offsets + np.average(errors - terms @ coefficients, weights=weights)
    known = {
        name: Calibrated(float(offset), sha256)
        for (name, sha256), offset in zip(experts, offsets, strict=True)
    }
    return Calibration(known, float(slopes[0]), float(slopes[1]), ranker_sha256, num_files)
