"""The network over time and frequency in plain PyTorch, with its loss: what ours is timed against.

The same layers with the same weights in the same order as
``speech.net.timefrequency.build_time_frequency``, and the loss of ``speech.net.mask_loss``, written
as one would write them in PyTorch: signals [batch, channels, frames, bands], in memory with the
channels last, which PyTorch's convolutions on a CPU are fastest with.

Importing this module raises ImportError without PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from speech.net.losses import NegativeSISDR
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import (
    FEATURES,
    NUM_BANDS,
    NUM_BINS,
    POWER_FLOOR,
    STRIDE,
    TimeFrequencyConfig,
)
from speech.sound.stft import analysis_window

#: Keeps the slope of a root at zero finite.
_TINY = 1e-12
_SI_SDR = NegativeSISDR()


class TimeFrequency(nn.Module):
    """Features [batch, 3, frames, 256] to masks [batch, 2, frames, 256]."""

    def __init__(self, config: TimeFrequencyConfig) -> None:
        super().__init__()
        if config.normalization != "batch":
            raise ValueError(f"normalization is {config.normalization!r}, expected 'batch'")
        channels, bands = config.num_channels, config.num_bands
        self.dilations = config.dilations
        self.layers = nn.ModuleDict()
        self._convolution("encoder1", len(FEATURES), channels, (1, 2 * STRIDE),
                          stride=(1, STRIDE), padding=(0, STRIDE // 2))  # fmt: skip
        for name in ("encoder2", "encoder3", "decoder3", "decoder2"):
            self._convolution(name, channels, channels, (1, 3), padding=(0, 1))
        self.layers["bands_down"] = nn.Linear(NUM_BANDS, bands)
        self.layers["bands_up"] = nn.Linear(bands, NUM_BANDS)
        for number, dilation in enumerate(config.dilations, 1):
            name = f"block{number}"
            self._convolution(f"{name}_time", channels, channels, (3, 1), dilation=(dilation, 1))
            self._convolution(f"{name}_time_dense", channels, channels, 1)
            self.layers[f"{name}_bands"] = nn.Linear(bands, bands)
            self._convolution(f"{name}_bands_dense", channels, channels, 1)
        self.layers["mask"] = nn.ConvTranspose2d(
            channels, 2, (1, 2 * STRIDE), stride=(1, STRIDE), padding=(0, STRIDE // 2)
        )

    def _convolution(self, name: str, ins: int, outs: int, size: Any, **settings: Any) -> None:
        self.layers[name] = nn.Conv2d(ins, outs, size, bias=False, **settings)
        self.layers[f"{name}_norm"] = nn.BatchNorm2d(outs, eps=1e-5, momentum=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the masks of a batch."""

        def normalized(x: torch.Tensor, name: str) -> torch.Tensor:
            return self.layers[f"{name}_norm"](self.layers[name](x))

        skips = []
        for name in ("encoder1", "encoder2", "encoder3"):
            x = functional.silu(normalized(x, name))
            skips.append(x)
        x = self.layers["bands_down"](x)
        for number, dilation in enumerate(self.dilations, 1):
            name = f"block{number}"
            y = functional.silu(
                normalized(functional.pad(x, (0, 0, 2 * dilation, 0)), f"{name}_time")
            )
            x = x + normalized(y, f"{name}_time_dense")
            y = functional.silu(self.layers[f"{name}_bands"](x))
            x = x + normalized(y, f"{name}_bands_dense")
        x = self.layers["bands_up"](x)
        for number in (3, 2):
            x = functional.silu(normalized(x + skips[number - 1], f"decoder{number}"))
        return self.layers["mask"](x + skips[0])

    def load(self, weights: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Takes weights by Keras layer and name."""
        with torch.no_grad():
            for layer, own in weights.items():
                for name, array in own.items():
                    parameter = getattr(self.layers[layer], _NAMES[name])
                    parameter.copy_(torch.from_numpy(_to_torch(array, self.layers[layer])))

    def gradients(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns the gradients of all weights by Keras layer and name, in Keras' shapes."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for layer, module in self.layers.items():
            norm = isinstance(module, nn.BatchNorm2d)
            for name, keras_name in (
                ("weight", "gamma" if norm else "kernel"),
                ("bias", "beta" if norm else "bias"),
            ):
                parameter = getattr(module, name)
                if parameter is not None:
                    array = parameter.grad.numpy()
                    found.setdefault(layer, {})[keras_name] = _to_keras(array, module)
        return found


_NAMES = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_variance": "running_var",
}  # fmt: skip


def _to_torch(array: np.ndarray, module: nn.Module) -> np.ndarray:
    """Returns a weight of Keras in the order of PyTorch."""
    if array.ndim == 2:
        array = array.T
        return array[:, :, None, None] if isinstance(module, nn.Conv2d) else array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def _to_keras(array: np.ndarray, module: nn.Module) -> np.ndarray:
    """Returns a weight of PyTorch in the order of Keras; the inverse of `_to_torch`."""
    if array.ndim == 4:
        # A Conv2d of one tap is a Dense layer there.
        dense = isinstance(module, nn.Conv2d) and array.shape[2:] == (1, 1)
        return array[:, :, 0, 0].T if dense else array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array


class Step:
    """One training step on waveforms: features, mask, loss, gradients.

    Args:
        config: Of the network.
        loss: Weights of the parts; consistency is not computed.
    """

    def __init__(self, config: TimeFrequencyConfig, loss: MaskLoss) -> None:
        if loss.consistency:
            raise ValueError("the loss in PyTorch has no consistency; give it the weight 0")
        self.network = TimeFrequency(config).to(memory_format=torch.channels_last).train()
        self._config, self._loss, self._stft = config, loss, config.stft
        window = analysis_window(config.stft, np.dtype(np.float32))
        self._window = torch.from_numpy(window.copy())

    def loss(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a batch of signals [batch, num_samples]."""
        weights, noisy_spectra = self._loss, self._compressed(noisy)
        features = torch.stack(
            [noisy_spectra.real, noisy_spectra.imag, noisy_spectra.abs()], dim=1
        ).contiguous(memory_format=torch.channels_last)
        mask = self.network(features)
        estimate = torch.complex(mask[:, 0], mask[:, 1]) * noisy_spectra
        target = self._compressed(clean)
        error = estimate - target
        total = weights.complex * (error.real.square() + error.imag.square()).mean()
        excess = _magnitude(estimate) - _magnitude(target)
        total = total + weights.magnitude * excess.square().mean()
        if weights.waveform or weights.si_sdr:
            enhanced = self._waveform(estimate)[:, : clean.shape[1]]
            total = total + weights.waveform * (enhanced - clean).abs().mean()
            total = total + weights.si_sdr * _negative_si_sdr(clean, enhanced)
        return total

    def _compressed(self, signal: torch.Tensor) -> torch.Tensor:
        frame, hop = self._stft.frame, self._stft.hop
        padded = functional.pad(signal, (frame - hop, frame - 1))
        spectra = torch.fft.rfft(padded.unfold(1, frame, hop) * self._window)[..., :NUM_BINS]
        level = spectra.real.square() + spectra.imag.square()
        return spectra * level.clamp(min=POWER_FLOOR) ** ((self._config.power - 1) / 2)

    def _waveform(self, compressed: torch.Tensor) -> torch.Tensor:
        frame, hop = self._stft.frame, self._stft.hop
        level = compressed.real.square() + compressed.imag.square()
        spectra = compressed * level.clamp(min=_TINY) ** ((1 / self._config.power - 1) / 2)
        frames = torch.fft.irfft(functional.pad(spectra, (0, 1)), frame) * self._window
        frames = frames / self._stft.window_energy * hop
        return (frames[:, 1:, :hop] + frames[:, :-1, hop:]).flatten(1)


def _magnitude(spectra: torch.Tensor) -> torch.Tensor:
    return (spectra.real.square() + spectra.imag.square() + _TINY).sqrt()


def _negative_si_sdr(clean: torch.Tensor, enhanced: torch.Tensor) -> torch.Tensor:
    """Returns the mean of ``speech.net.losses.NegativeSISDR`` over pieces that are not silent."""
    floor, soft = _SI_SDR.floor, 10 ** (-_SI_SDR.soft_threshold_db / 10)
    power = clean.square().mean(1)
    scale = (enhanced * clean).mean(1).relu() / (power + floor)
    error = (enhanced - scale[:, None] * clean).square().mean(1)
    target = scale.square() * power
    values = 10 * torch.log10((error + soft * target + floor) / (target + floor))
    return (values * (clean != 0).any(1)).mean()
