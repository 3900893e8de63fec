"""Kernels of all layers in one form: float [taps, in, out].

A layer with a kernel is a convolution or a matrix. Its *filter* j makes output channel j of all
input channels; the *channel* (k, j) is what filter j does with input channel k, one weight per tap.
Keras keeps the taps of a Conv2D on two axes, swaps the channels of a Conv2DTranspose, and a Dense
kernel has a single tap. A Dense layer behind a Permute that brings the bands to the last axis mixes
bands: its inputs and outputs are then bands, and each of its weights is a channel.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from speech.modelfile.spec import LayerSpec

#: Layers with a kernel.
KERNEL_CLASSES = ("Conv1D", "Conv2D", "Conv2DTranspose", "Dense")


def has_kernel(layer: LayerSpec) -> bool:
    """Returns whether a layer is a convolution or a matrix."""
    return layer.class_name in KERNEL_CLASSES


def as_taps(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel [..., in, out] with all axes of taps, or none, as [taps, in, out]."""
    return kernel.reshape(-1, *kernel.shape[-2:])


def is_swapped(class_name: str) -> bool:
    """Returns whether a kernel's last two axes are [out, in]."""
    return class_name == "Conv2DTranspose"


def taps_of(layer: LayerSpec) -> np.ndarray:
    """Returns a layer's kernel as [taps, in, out]."""
    taps = as_taps(layer.weights["kernel"])
    return taps.swapaxes(1, 2) if is_swapped(layer.class_name) else taps


def for_kernel(class_name: str, channels: np.ndarray) -> np.ndarray:
    """Returns [..., in, out] as the last axes of such a layer's kernel: what multiplies it."""
    return channels.swapaxes(-1, -2) if is_swapped(class_name) else channels


def with_taps(layer: LayerSpec, taps: np.ndarray) -> LayerSpec:
    """Returns a layer with another kernel of the same size, given as [taps, in, out]."""
    kernel = np.ascontiguousarray(for_kernel(layer.class_name, taps))
    kernel = kernel.reshape(layer.weights["kernel"].shape)
    return replace(layer, weights={**layer.weights, "kernel": kernel})
