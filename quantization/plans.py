"""How a network is quantized, by the options of a run: by k, or by lambda; to a size if one is set.

A plan is called with a network, once before and perhaps again between rounds of fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantization import budget, graphs, ratedistortion
from quantization.budget import Signals
from quantization.kmeans import (
    Codebooks,
    cluster_layers,
    clustered_layers,
    round_kernel,
    with_kernel,
)
from quantization.ratedistortion import RateDistortion
from speech.modelfile.spec import LayerSpec, is_chain

Layers = tuple[LayerSpec, ...]

#: Signals that measure what k does; fewer and shorter than those of the correlations.
_NUM_MEASURED = 6
#: Bytes that the name and k of a layer take in the header, at most.
_K_BYTES = 14


@dataclass
class ByK:
    """k-means with k centroids per layer.

    Attributes:
        codebooks: How; with a target, what is not chosen.
        signals: Inputs to measure with, if there is a target (see ``quantization.budget``).
        target: Bytes; None for k as it is.
        formats: Of centroids, to choose from.
        size_of: Network -> bytes of its file.
    """

    codebooks: Codebooks
    signals: Signals = ()
    target: int | None = None
    formats: Sequence[str] = ()
    size_of: Callable[[Layers], int] | None = None

    def __call__(self, layers: Layers, *, final: bool = False) -> Layers:
        """Returns the network with FP32 centroids, or if ``final`` as they are stored."""
        if self.target is not None:
            free = replace(self.codebooks, k_of=None, centroids="fp32", centroids_of=None)
            # The chosen k go into the meta data, which the search does not see.
            target = self.target - _K_BYTES * len(clustered_layers(layers))
            assert self.size_of is not None, "a target needs it"
            self.codebooks = budget.choose_k(
                layers, free, self.signals[:_NUM_MEASURED], target, self.size_of, self.formats
            )
            chosen = self.codebooks.k_of
            print("k           " + "  ".join(f"{name} {k}" for name, k in (chosen or {}).items()))
        how = self.codebooks
        if not final:
            how = replace(how, centroids="fp32", centroids_of=None)
        clustered = cluster_layers(layers, how)
        error = power = 0.0
        for old, new in zip(clustered_layers(layers), clustered_layers(clustered), strict=True):
            kernel = old.weights["kernel"].astype("f8")
            error += ((kernel - new.weights["kernel"]) ** 2).sum()
            power += (kernel**2).sum()
        print(f"clustered   {how.algorithm} k-means, error {100 * error / power:.3f} % of power")
        return clustered

    def finish(self, layers: Layers) -> Layers:
        """Returns a trained network with the centroids as they are stored."""
        return _rounded(layers, self.codebooks.format_for)

    def k_of(self, layers: Layers) -> dict[str, int]:
        """Returns k by layer, for the paper's rule."""
        named = [layer.name for layer in clustered_layers(layers)]
        return {name: self.codebooks.k_for(name, name == named[-1]) for name in named}

    @property
    def settings(self) -> dict[str, Any]:
        """What goes into the meta data."""
        found = self.codebooks
        return {
            "k": found.k if self.target is None else None, "k_last": found.k_last,
            "k_of": dict(found.k_of or {}), "per_sign": found.per_sign,
            "centroids": found.centroids, "algorithm": found.algorithm,
        }  # fmt: skip


@dataclass
class ByLambda:
    """Rate-distortion quantization.

    Attributes:
        how: Settings; with a target, lambda is what the search found last.
        original: The network whose zero channels stay zero.
        signals: Inputs of the network.
        target: Bytes; None for lambda as it is.
        size_of: Network -> bytes of its file.
        target_snr_db: Power of the output over that of its error that is asked for, in dB, instead
            of ``target``; measured on the signals.
    """

    how: RateDistortion
    original: Layers
    signals: Signals
    target: int | None
    size_of: Callable[[Layers], int]
    target_snr_db: float | None = None
    _is_first: bool = True
    _known: tuple[Layers, dict[str, graphs.Sensitivity]] | None = None

    def __call__(self, layers: Layers, *, final: bool = False) -> Layers:
        """Returns the quantized network; ``final`` or not, centroids are as they are stored."""
        if self.target_snr_db is not None:
            lam, result = budget.to_error(
                lambda lam: self._quantize(layers, lam),
                budget.error_measure(self.original, self.signals),
                10 ** (-self.target_snr_db / 10),
                self.how.lam,
                lambda lam, error, result: _say(lam, self.size_of(result), error),
            )
            self.how = replace(self.how, lam=lam)
            return result
        if self.target is None:
            result = self._quantize(layers, self.how.lam)
            _say(self.how.lam, self.size_of(result))
            return result
        start = _lambda_for(self.target, layers) if self._is_first else self.how.lam
        lam, result = budget.to_lambda(
            lambda lam: self._quantize(layers, lam), self.size_of, self.target, start, _say
        )
        self._is_first = False
        self.how = replace(self.how, lam=lam)
        return result

    def _quantize(self, layers: Layers, lam: float) -> Layers:
        how = replace(self.how, lam=lam)
        found = None
        if graphs.are_spectra(self.signals):
            if self._known is None or self._known[0] is not layers:
                self._known = layers, graphs.sensitivities(layers, self.signals)
            found = self._known[1]
        return ratedistortion.quantize(
            layers, how, self.signals, original=self.original, sensitivities_of=found
        )

    def finish(self, layers: Layers) -> Layers:
        """Returns a trained network with the centroids as they are stored."""
        return _rounded(layers, lambda _: self.how.centroids)

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


def _lambda_for(target: int, layers: Layers) -> float:
    """Returns about the lambda that gives a file of so many bytes, as measured on our networks."""
    num_weights = sum(layer.weights["kernel"].size for layer in clustered_layers(layers))
    bits = max(8 * target / max(num_weights, 1), 1e-3)
    bits_at, power = (0.79, 3.7) if is_chain(layers) else (2.96, 4.7)
    return float(np.clip(0.003 * (bits_at / bits) ** power, budget.MIN_LAMBDA, 0.1))


def _say(lam: float, size: int, error: float | None = None) -> None:
    shown = "" if error is None else f", output at {-10 * math.log10(error):.1f} dB"
    print(f"lambda      {lam:.4g}: about {size:,} bytes{shown}", flush=True)


def _rounded(layers: Layers, format_for: Callable[[str], str]) -> Layers:
    names = {layer.name for layer in clustered_layers(layers)}
    return tuple(
        with_kernel(layer, round_kernel(layer.weights["kernel"], format_for(layer.name)))
        if layer.name in names
        else layer
        for layer in layers
    )
