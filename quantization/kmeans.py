"""Codebooks of a network's weights by one-dimensional k-means, in NumPy (docs/papers.md, eq. Q1).

Conventions: each kernel has its own codebook. Weights that are exactly zero belong to no cluster
and stay zero. Distortion is the sum of squared differences between weights and their centroids.
The centroids are the optimal ones, found by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantization.config import FORMATS
from speech.base.lazy import kmeans1d
from speech.modelfile.spec import LayerSpec, kernel_name
from speech.net.taps import has_kernel

MAX_K = 128


@dataclass(frozen=True)
class Codebooks:
    """Settings of the clustering of a network.

    Attributes:
        k: Centroids of each layer, zero not counted; of each sign if ``per_sign``.
        k_last: The same of the last layer; None for ``k``.
        k_of: The same by layer name, for layers that differ.
        per_sign: Positive and negative weights are clustered apart, as in the released model.
        centroids: One of `FORMATS`.

    Raises:
        ValueError: A value makes no sense.
    """

    k: int = 16
    k_last: int | None = None
    k_of: Mapping[str, int] | None = None
    per_sign: bool = False
    centroids: str = "fp32"

    def __post_init__(self) -> None:
        """Checks the values."""
        for k in (self.k, self.k_last, *(self.k_of or {}).values()):
            if k is not None:
                check_k(k)
        if self.centroids not in FORMATS:
            raise ValueError(f"centroids is {self.centroids!r}; give one of {', '.join(FORMATS)}")

    def k_for(self, name: str, is_last: bool) -> int:
        """Returns the k of a layer."""
        if self.k_of and name in self.k_of:
            return self.k_of[name]
        return self.k_last if is_last and self.k_last is not None else self.k


def check_k(k: int) -> None:
    """Raises ValueError unless 2 <= k <= 128."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 2 <= k <= MAX_K:
        raise ValueError(f"k is {k!r}; give a whole number of centroids from 2 to {MAX_K}")


# --------------------------------------------------------------------------------------------
# One set of values


def best_centroids(values: np.ndarray, k: int) -> np.ndarray:
    """Returns the centroids of the smallest distortion: O(k n) by SMAWK (Wu 1991; Gronlund 2017).

    Args:
        values: Finite numbers of any shape.
        k: Number of centroids, from 2 to the number of distinct values.

    Returns:
        float64 [k], ascending, all distinct.

    Raises:
        ValueError: ``k`` is out of range, or a value is not finite.
    """
    check_k(k)
    values = np.sort(np.asarray(values, np.float64), axis=None)
    if not np.isfinite(values).all():
        raise ValueError("the weights hold a NaN or an infinity; nothing was clustered")
    num_distinct = int(np.count_nonzero(np.diff(values))) + (values.size > 0)
    if k > num_distinct:
        raise ValueError(f"k is {k}, but there are only {num_distinct} distinct weights")
    # Without the mean the sums of squares lose no digits.
    clusters = np.asarray(kmeans1d.cluster(values - values.mean(), k).clusters)
    return np.bincount(clusters, values, k) / np.bincount(clusters, minlength=k)


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the index of the centroid nearest to each value; of two, the lower.

    Args:
        values: Of any shape.
        centroids: [k], ascending.
    """
    centroids = np.asarray(centroids, np.float64)
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, np.asarray(values, np.float64))


def round_centroids(centroids: np.ndarray, how: str) -> np.ndarray:
    """Returns centroids as they come back from storage, float32 [k].

    INT8 stores c = q s with q from -127 to 127. The scale s keeps the top 16 bits of a float32,
    rounded up so that nothing is clipped; with them each product is exact in float32.

    Raises:
        ValueError: A centroid is too large for FP16.
    """
    centroids = np.asarray(centroids, np.float32)
    if how == "fp32":
        return centroids
    if how == "fp16":
        largest = float(np.abs(centroids).max())
        if largest > float(np.finfo(np.float16).max):
            raise ValueError(f"a centroid is {largest:g}, too large for FP16; use FP32")
        return centroids.astype(np.float16).astype(np.float32)
    if how == "int8":
        if not centroids.any():
            return centroids
        scale = _upper_half(np.abs(centroids).max() / np.float32(127))
        return np.rint(centroids / scale).clip(-127, 127).astype(np.float32) * scale
    raise ValueError(f"centroids is {how!r}; give one of {', '.join(FORMATS)}")


def _upper_half(value: np.float32) -> np.float32:
    """Returns a positive float32 rounded up to its top 16 bits."""
    bits = np.array(value, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0xFFFF) & 0xFFFF0000).astype(np.uint32).view(np.float32)[()]  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------
# Kernels and networks


def cluster_kernel(
    kernel: np.ndarray,
    k: int,
    *,
    per_sign: bool = False,
    centroids: str = "fp32",
) -> np.ndarray:
    """Replaces each non-zero weight by its centroid.

    Args:
        kernel: float32 of any shape.
        k: Number of centroids; of each sign if ``per_sign``.
        per_sign: Positive and negative weights are clustered apart.
        centroids: One of `FORMATS`.

    Returns:
        float32 of the same shape: at most k (2 k) values besides zero, zeros where there were.

    Raises:
        ValueError: ``k`` is out of range.
    """
    signs = (kernel < 0, kernel > 0) if per_sign else (kernel != 0,)
    found = np.concatenate([best_centroids(kernel[where], k) for where in signs])
    codebook = np.unique(round_centroids(found, centroids))
    clustered = np.zeros_like(kernel, np.float32)
    for where, own in zip(signs, (codebook <= 0, codebook >= 0), strict=False):
        values = codebook[own] if per_sign else codebook
        clustered[where] = values[nearest(kernel[where], values)]
    return clustered + np.float32(0)  # no negative zero


def round_kernel(kernel: np.ndarray, how: str) -> np.ndarray:
    """Returns a clustered kernel whose values are stored in another of `FORMATS`."""
    values, places = np.unique(kernel, return_inverse=True)
    return round_centroids(values, how)[places].reshape(kernel.shape) + np.float32(0)


def clustered_layers(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """Returns the convolutions and matrices that get a codebook: all that have weights."""
    return [layer for layer in layers if has_kernel(layer) and layer.weights["kernel"].any()]


def clustered_kernels(layers: Sequence[LayerSpec]) -> dict[str, np.ndarray]:
    """Returns, by name, the kernels that get a codebook each, including recurrent kernels.

    The names are made by ``speech.modelfile.spec.kernel_name``.
    """
    return {
        kernel_name(layer.name, key): kernel
        for layer in layers
        for key, kernel in layer.kernels.items()
        if kernel.any()
    }


def with_kernels(
    layers: Sequence[LayerSpec], change: Callable[[str, np.ndarray], np.ndarray]
) -> tuple[LayerSpec, ...]:
    """Returns a network with other kernels in place of its `clustered_kernels`.

    Args:
        layers: The network.
        change: (name, kernel) -> the kernel that takes its place.
    """
    return tuple(
        replace(
            layer,
            weights={
                **layer.weights,
                **{
                    key: change(kernel_name(layer.name, key), kernel)
                    for key, kernel in layer.kernels.items()
                    if kernel.any()
                },
            },
        )
        for layer in layers
    )


def cluster_layers(layers: Sequence[LayerSpec], codebooks: Codebooks) -> tuple[LayerSpec, ...]:
    """Returns the network with clustered kernels.

    Raises:
        ValueError: There is nothing to cluster, a layer has fewer distinct weights than its k,
            or ``codebooks.k_of`` names no layer.
    """
    chosen = list(clustered_kernels(layers))
    if not chosen:
        raise ValueError("the model has no convolution or matrix to cluster")
    unknown = sorted(set(codebooks.k_of or {}) - set(chosen))
    if unknown:
        raise ValueError(f"no layer {unknown[0]!r} to cluster; there are {', '.join(chosen)}")
    return with_kernels(
        layers, lambda name, kernel: _cluster(name, kernel, codebooks, name == chosen[-1])
    )


def _cluster(name: str, kernel: np.ndarray, codebooks: Codebooks, is_last: bool) -> np.ndarray:
    try:
        return cluster_kernel(
            kernel,
            codebooks.k_for(name, is_last),
            per_sign=codebooks.per_sign,
            centroids=codebooks.centroids,
        )
    except ValueError as error:
        raise ValueError(f"layer {name}: {error}") from None


def with_kernel(layer: LayerSpec, kernel: np.ndarray) -> LayerSpec:
    """Returns a layer with another kernel."""
    return replace(layer, weights={**layer.weights, "kernel": kernel})
