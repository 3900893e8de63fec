"""The network for use: causal convolutions over time and frequency, from a spectrum to a mask.

The Keras model takes features [batch, frames, 256, 3] and gives a mask [batch, frames, 256, 2]; it
consists of standard Keras layers only. All around it is arithmetic on arrays, here in NumPy:

1. ``stft``: frames of 512 samples every 256, square-root Hann window (``speech.sound.stft``). The
bin of
   8 kHz is dropped, which leaves 256.
2. ``compress``: the spectrum X becomes |X|^0.3 X / |X|. Features are its real part, its imaginary
   part and its magnitude.
3. The network gives a complex number M for each bin, as real and imaginary part, without bounds.
4. M times the compressed spectrum is expanded again (``expand``, the inverse of ``compress``) and
   goes through the inverse STFT.

Frame t needs no later frame, so a sample leaves at most 512 samples (32 ms) after it came. There
is no normalisation over the signal: any length is computed in constant memory.

The layers (C channels, F bands, after RESEARCH: a dual path of convolutions, no recurrence)::

    encoder1  Conv2D C, 1 x 8, stride 1 x 4                        256 bins -> 64 bands
    encoder2, encoder3   Conv2D C, 1 x 3
    bands_down  Dense over bands, 64 -> F
    B blocks of two residual halves, over time and over bands:
        ZeroPadding2D, Conv2D C 3 x 1 dilated, BN, SiLU, Dense C, BN, Add
        Permute, Dense F, SiLU, Permute, Dense C, BN, Add
    bands_up    Dense over bands, F -> 64
    decoder3, decoder2   Add the encoder's output of that number, Conv2D C, 1 x 3
    mask        Add encoder1's output, Conv2DTranspose 2, 1 x 8, stride 1 x 4

After each convolution of encoder and decoder: BatchNormalization and SiLU. Skips are added, not
concatenated: that halves the cost of the decoder, the dearest part.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from speech.base.lazy import keras
from speech.modelfile.spec import COMPLEX_MASK
from speech.sound.audio import SAMPLE_RATE_HZ
from speech.sound.stft import StftConfig

#: Bins of a spectrum that the network sees; 8 kHz itself is left out.
NUM_BINS = 256
#: Bands inside of the network: bins / stride.
NUM_BANDS = 64
STRIDE = 4
FEATURES = ("real", "imaginary", "magnitude")

#: Powers |X|^2 below this count as silence: 100 dB below a sine of full scale.
POWER_FLOOR = 1e-6

NORMALIZATIONS = ("batch", "none")


@dataclasses.dataclass(frozen=True)
class TimeFrequencyConfig:
    """Shape and conventions of the network.

    Attributes:
        num_channels: Channels of every layer, C.
        num_bands: Bands that the blocks work on, F.
        dilations: Of the convolution over time in each block, in frames.
        normalization: 'batch' for BatchNormalization; 'none' for biases instead, as in a network
            whose normalisation was folded away.
        power: Exponent of the compression.
        stft: Frames of the spectrum.
    """

    num_channels: int = 32
    num_bands: int = 24
    dilations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 1, 4)
    normalization: str = "batch"
    power: float = 0.3
    stft: StftConfig = StftConfig(frame=512, hop=256, window="sqrt_hann")

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no network."""
        object.__setattr__(self, "dilations", tuple(self.dilations))
        for name, value, highest in (
            ("num_channels", self.num_channels, 1024),
            ("num_bands", self.num_bands, NUM_BANDS),
            *(("dilations", dilation, 1024) for dilation in self.dilations),
        ):
            if type(value) is not int or not 1 <= value <= highest:
                raise ValueError(f"{name} is {value!r}, expected an integer from 1 to {highest}")
        if not self.dilations:
            raise ValueError("dilations is empty, expected one number for each block")
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization is {self.normalization!r}, expected one of "
                f"{', '.join(NORMALIZATIONS)}"
            )
        if not 0 < self.power <= 1:
            raise ValueError(f"power is {self.power!r}, expected a number above 0, at most 1")
        if self.stft.frame != 2 * NUM_BINS:
            raise ValueError(f"stft.frame is {self.stft.frame}, expected {2 * NUM_BINS} samples")

    @property
    def reach_frames(self) -> int:
        """Number of frames that one frame of the output depends on, itself included."""
        return 1 + 2 * sum(self.dilations)

    def meta(self) -> dict[str, Any]:
        """Returns the conventions, for the ``speech_meta`` of a model file."""
        return {
            "kind": COMPLEX_MASK,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "stft": self.stft.to_json(),
            "power": self.power,
            "features": list(FEATURES),
        }


#: The forms that ``--size`` names.
SIZES = {
    "small": TimeFrequencyConfig(24, 16, (1, 2, 4, 8, 16, 1)),
    "medium": TimeFrequencyConfig(32, 24, (1, 2, 4, 8, 16, 32, 1, 4)),
    "large": TimeFrequencyConfig(48, 24, (1, 2, 4, 8, 16, 32, 1, 4)),
}


def build_time_frequency(config: TimeFrequencyConfig | None = None, seed: int = 0) -> keras.Model:
    """Builds the network: features [batch, frames, 256, 3] to masks [batch, frames, 256, 2].

    Args:
        config: Default: the medium form.
        seed: Of the random weights.
    """
    layers = keras.layers
    config = config or SIZES["medium"]
    channels, batch = config.num_channels, config.normalization == "batch"
    seeds = iter(range(1000))

    def initializer(kind: str = "he_normal") -> Any:
        return keras.initializers.get({"class_name": kind, "config": {"seed": _seed(seed, seeds)}})

    def normalized(x: Any, name: str, gamma: str = "ones") -> Any:
        if not batch:
            return x
        return layers.BatchNormalization(
            epsilon=1e-5, gamma_initializer=gamma, name=f"{name}_norm"
        )(x)

    def convolution(x: Any, name: str, size: tuple, **settings: Any) -> Any:
        x = layers.Conv2D(
            channels, size, padding="same", use_bias=not batch, name=name,
            kernel_initializer=initializer(), **settings,
        )(x)  # fmt: skip
        return layers.Activation("silu", name=f"{name}_act")(normalized(x, name))

    def over_bands(x: Any, name: str, units: int, act: bool = False) -> Any:
        x = layers.Permute((1, 3, 2), name=f"{name}_in")(x)
        x = layers.Dense(units, kernel_initializer=initializer("glorot_uniform"), name=name)(x)
        if act:
            x = layers.Activation("silu", name=f"{name}_act")(x)
        return layers.Permute((1, 3, 2), name=f"{name}_out")(x)

    def residual(x: Any, branch: Any, name: str) -> Any:
        branch = layers.Dense(
            channels, use_bias=not batch, name=f"{name}_dense",
            kernel_initializer=initializer("glorot_uniform"),
        )(branch)  # fmt: skip
        # A branch that starts at zero leaves the signal alone until it has learnt something.
        branch = normalized(branch, f"{name}_dense", "zeros")
        return layers.Add(name=f"{name}_add")([x, branch])

    inputs = keras.Input((None, NUM_BINS, len(FEATURES)), name="features")
    skips = [convolution(inputs, "encoder1", (1, 2 * STRIDE), strides=(1, STRIDE))]
    for number in (2, 3):
        skips.append(convolution(skips[-1], f"encoder{number}", (1, 3)))
    x = over_bands(skips[-1], "bands_down", config.num_bands)
    for number, dilation in enumerate(config.dilations, 1):
        name = f"block{number}_time"
        y = layers.ZeroPadding2D(((2 * dilation, 0), (0, 0)), name=f"{name}_pad")(x)
        y = layers.Conv2D(
            channels, (3, 1), dilation_rate=(dilation, 1), use_bias=not batch, name=name,
            kernel_initializer=initializer(),
        )(y)  # fmt: skip
        y = layers.Activation("silu", name=f"{name}_act")(normalized(y, name))
        x = residual(x, y, name)
        name = f"block{number}_bands"
        x = residual(x, over_bands(x, name, config.num_bands, act=True), name)
    x = over_bands(x, "bands_up", NUM_BANDS)
    for number in (3, 2):
        x = layers.Add(name=f"decoder{number}_skip")([x, skips[number - 1]])
        x = convolution(x, f"decoder{number}", (1, 3))
    x = layers.Add(name="mask_skip")([x, skips[0]])
    outputs = layers.Conv2DTranspose(
        2, (1, 2 * STRIDE), strides=(1, STRIDE), padding="same", name="mask",
        kernel_initializer=initializer("glorot_uniform"),
    )(x)  # fmt: skip
    model = keras.Model(inputs, outputs, name="time_frequency")
    down = band_triangles(config.num_bands)
    model.get_layer("bands_down").kernel.assign(down / down.sum(0))
    model.get_layer("bands_up").kernel.assign((down / down.sum(1, keepdims=True)).T)
    # The mask starts near 1: the signal as it is.
    model.get_layer("mask").bias.assign(np.array([1.0, 0.0], np.float32))
    return model


def _seed(seed: int, numbers: Any) -> int:
    """Returns a seed of its own for each layer."""
    return int(np.random.default_rng([seed, next(numbers)]).integers(1 << 31))


def band_triangles(num_bands: int) -> np.ndarray:
    """Returns triangles that gather the 64 bands into fewer, narrow below and wide above.

    Centres lie evenly on the ERB-rate scale (Glasberg and Moore 1990), but never closer than one
    of the 64 bands: float32 [64, num_bands], each row with a sum of 1.
    """
    places = np.arange(NUM_BANDS, dtype=np.float64)
    hz = (places + 0.5) * SAMPLE_RATE_HZ / 2 / NUM_BANDS
    scale = np.log1p(hz * 0.00437)
    centres = np.interp(np.linspace(scale[0], scale[-1], num_bands), scale, places)
    for index in range(1, num_bands):
        centres[index] = max(centres[index], centres[index - 1] + 1)
    overshoot = centres - (NUM_BANDS - 1 - np.arange(num_bands)[::-1])
    centres -= np.maximum(overshoot, 0)
    triangles = np.stack(
        [np.interp(places, centres, row) for row in np.eye(num_bands)], axis=1
    )  # beyond the first and last centre np.interp holds the outer values
    return triangles.astype(np.float32)


# --------------------------------------------------------------------------------------------
# Around the network


def compress(spectra: np.ndarray, power: float = 0.3) -> np.ndarray:
    """Returns |X|^power X / |X| of complex spectra of any shape; zero stays zero."""
    level = np.square(spectra.real) + np.square(spectra.imag)
    floor = level.dtype.type(POWER_FLOOR)
    return spectra * np.power(np.maximum(level, floor), level.dtype.type((power - 1) / 2))


def expand(compressed: np.ndarray, power: float = 0.3) -> np.ndarray:
    """Undoes `compress`: returns the spectra behind ``compressed``, for levels above the floor."""
    level = np.square(compressed.real) + np.square(compressed.imag)
    return compressed * np.power(level, level.dtype.type((1 / power - 1) / 2))


def features(compressed: np.ndarray) -> np.ndarray:
    """Returns what the network takes: float [..., bins, 3] of complex [..., bins]."""
    return np.stack([compressed.real, compressed.imag, np.abs(compressed)], axis=-1)
