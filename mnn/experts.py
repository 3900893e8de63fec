"""The paper's experts: Dense networks that give a soft mask of the centre frame (MNN, section 4.2).

    512x2    3 frames (1539) -> 512 -> 512 -> 513     experiment 1
    2048x2   3 frames (1539) -> 2048 -> 2048 -> 513   experiments 2 and 3

Modified ReLU inside, the logistic function at the end; trained like the autoencoders (section
4.1), dropout included, towards |s| / |s + n|. An expert differs from another by its data alone: see
`mnn.data`. The estimate is the mask times the mixture's spectrum, so it has the mixture's phase.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from mnn.dae import build_dense
from mnn.features import Conventions, level, network_input, scaled_magnitudes
from mnn.layers import load_network
from speech.sound.stft import istft, stft

if TYPE_CHECKING:
    import keras

#: Hidden units of the paper's two networks (sections 4.2 to 4.4).
NETS: dict[str, tuple[int, ...]] = {"512x2": (512, 512), "2048x2": (2048, 2048)}


def build_expert(net: str = "512x2", *, seed: int = 0) -> tuple[keras.Model, Conventions]:
    """Builds a mask network with fresh weights.

    Args:
        net: Key of `NETS`.
        seed: Of weights and dropout.

    Returns:
        A Sequential model [batch, 1539] -> [batch, 513] of values from 0 to 1, and what it takes.
    """
    if net not in NETS:
        raise ValueError(f"net is {net!r}; an expert is one of {', '.join(NETS)}")
    conventions = Conventions(3)
    return build_dense(f"expert_{net}", conventions, NETS[net], "sigmoid", seed), conventions


class MaskExpert:
    """A trained mask network, run by NumPy.

    Args:
        path: An .h5 model file, possibly from a stranger.

    Attributes:
        file: The model file as it was read.
        conventions: What it takes.

    Raises:
        ValueError: The file is refused or gives no mask (see `mnn.layers.load_network`).
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.file, self.conventions, self._network = load_network(path, "mask")

    def mask(self, frames: np.ndarray) -> np.ndarray:
        """Returns the soft mask of a mixture.

        Args:
            frames: float32 [num_frames, num_bins], from `mnn.features.scaled_magnitudes`.

        Returns:
            float32 [num_frames, num_bins]; from 0 to 1 if it ends in the logistic function.
        """
        return self._network(network_input(frames, self.conventions))

    def estimate(self, spectra: np.ndarray, mixture_level: float) -> np.ndarray:
        """Returns the spectra of the speech in a mixture, complex64 [num_frames, num_bins].

        Args:
            spectra: Of the mixture, complex64 [num_frames, num_bins]; one STFT serves all experts.
            mixture_level: `mnn.features.level` of the mixture.
        """
        frames = scaled_magnitudes(spectra, mixture_level, self.conventions.stft)
        return self.mask(frames) * spectra

    def __call__(self, noisy: np.ndarray) -> np.ndarray:
        """Returns the speech in a mixture: float32 [num_samples] of the same scale.

        Args:
            noisy: float [num_samples] at 16 kHz, any level.
        """
        noisy = np.asarray(noisy, np.float32)
        spectra = stft(noisy, self.conventions.stft)
        return istft(self.estimate(spectra, level(noisy)), len(noisy), self.conventions.stft)
