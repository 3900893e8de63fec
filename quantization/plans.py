"""Plans of a quantization: by k, or by lambda, which is searched for if there is a target.

A plan is called with a network, once before and perhaps again between rounds of fine-tuning. It
does not change: the call returns the quantized network, and the plan that holds what was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantization import budget, ratedistortion
from quantization.kmeans import (
    Codebooks,
    cluster_layers,
    clustered_kernels,
    clustered_layers,
    round_kernel,
    with_kernels,
)
from quantization.ratedistortion import RateDistortion, Signals
from speech.modelfile.spec import LayerSpec, is_chain

Layers = tuple[LayerSpec, ...]
#: (network, settings of the plan) -> bytes of its file.
SizeOf = Callable[[Layers, dict[str, Any]], int]
Say = Callable[[str], None]


@dataclass(frozen=True)
class ByK:
    """k-means with k centroids per layer.

    Attributes:
        codebooks: How.
        say: Called with lines for people.
    """

    codebooks: Codebooks
    say: Say = lambda line: None

    def __call__(self, layers: Layers, *, final: bool = False) -> tuple[Layers, ByK]:
        """Returns the network with FP32 centroids, or if ``final`` as they are stored."""
        how = self.codebooks if final else replace(self.codebooks, centroids="fp32")
        clustered = cluster_layers(layers, how)
        error = power = 0.0
        pairs = zip(
            clustered_kernels(layers).values(), clustered_kernels(clustered).values(), strict=True
        )
        for old, new in pairs:
            kernel = old.astype("f8")
            error += ((kernel - new) ** 2).sum()
            power += (kernel**2).sum()
        self.say(f"clustered   exact k-means, error {100 * error / power:.3f} % of power")
        return clustered, self

    def finish(self, layers: Layers) -> Layers:
        """Returns a trained network with the centroids as they are stored."""
        return _rounded(layers, self.codebooks.centroids)

    def is_missed(self, layers: Layers) -> bool:
        """Returns whether a network misses the target: there is none."""
        return False

    def k_of(self, layers: Layers) -> dict[str, int]:
        """Returns k by layer, for the paper's rule."""
        named = list(clustered_kernels(layers))
        return {name: self.codebooks.k_for(name, name == named[-1]) for name in named}

    @property
    def settings(self) -> dict[str, Any]:
        """What goes into the meta data."""
        found = self.codebooks
        return {
            "k": found.k, "k_last": found.k_last, "k_of": dict(found.k_of or {}),
            "per_sign": found.per_sign, "centroids": found.centroids,
        }  # fmt: skip


@dataclass(frozen=True)
class ByLambda:
    """Rate-distortion quantization.

    Attributes:
        how: Settings; with a target, lambda is what the last search found.
        original: The network whose zero channels stay zero.
        signals: Inputs of the network.
        size_of: What tells the bytes of a network's file.
        target_bytes: None for lambda as it is.
        target_snr_db: Power of the output over that of its error that is asked for, in dB, instead
            of ``target_bytes``; measured on the signals.
        is_found: Whether lambda is what a search found; the next one starts there.
        say: Called with lines for people.
    """

    how: RateDistortion
    original: Layers
    signals: Signals
    size_of: SizeOf
    target_bytes: int | None = None
    target_snr_db: float | None = None
    is_found: bool = False
    say: Say = lambda line: None

    def __call__(self, layers: Layers, *, final: bool = False) -> tuple[Layers, ByLambda]:
        """Returns the quantized network; ``final`` or not, centroids are as they are stored."""
        known = ratedistortion.sensitivities(layers, self.signals)

        def quantize(lam: float) -> Layers:
            return ratedistortion.quantize(
                layers, replace(self.how, lam=lam), self.signals,
                original=self.original, known=known,
            )  # fmt: skip

        lam = self.how.lam
        if self.target_snr_db is not None:
            lam, result = budget.to_error(
                quantize,
                budget.error_measure(layers, self.signals),
                10 ** (-self.target_snr_db / 10),
                lam,
                lambda lam, error, result: self._tell(lam, self._num_bytes(result), error),
            )
        elif self.target_bytes is not None:
            start = lam if self.is_found else _lambda_for(self.target_bytes, layers)
            lam, result = budget.to_lambda(
                quantize, self._num_bytes, self.target_bytes, start, self._tell
            )
        else:
            result = quantize(lam)
            self._tell(lam, self._num_bytes(result))
        return result, replace(self, how=replace(self.how, lam=lam), is_found=True)

    def _num_bytes(self, layers: Layers) -> int:
        return self.size_of(layers, self.settings)

    def _tell(self, lam: float, size: int, error: float | None = None) -> None:
        shown = "" if error is None else f", output at {-10 * math.log10(error):.1f} dB"
        self.say(f"lambda      {lam:.4g}: about {size:,} bytes{shown}")

    def finish(self, layers: Layers) -> Layers:
        """Returns a trained network with the centroids as they are stored."""
        return _rounded(layers, self.how.centroids)

    def is_missed(self, layers: Layers) -> bool:
        """Returns whether the file of a network has more bytes than the target."""
        return self.target_bytes is not None and self._num_bytes(layers) > self.target_bytes

    def k_of(self, layers: Layers) -> dict[str, int]:
        """Returns nothing: the paper's rule counts the values there are."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """What goes into the meta data."""
        found = {"lambda": float(f"{self.how.lam:.6g}"), "weighting": self.how.weighting,
                 "centroids": self.how.centroids}  # fmt: skip
        if self.target_snr_db is not None:
            found["target_snr_db"] = self.target_snr_db
        return found


Plan = ByK | ByLambda


def _lambda_for(target: int, layers: Layers) -> float:
    """Returns about the lambda that gives a file of so many bytes, as measured on our networks."""
    num_weights = sum(layer.weights["kernel"].size for layer in clustered_layers(layers))
    bits = max(8 * target / max(num_weights, 1), 1e-3)
    bits_at, power = (0.79, 3.7) if is_chain(layers) else (2.96, 4.7)
    return float(np.clip(0.003 * (bits_at / bits) ** power, budget.MIN_LAMBDA, 0.1))


def _rounded(layers: Layers, centroids: str) -> Layers:
    return with_kernels(layers, lambda name, kernel: round_kernel(kernel, centroids))
