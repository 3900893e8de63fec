"""The loss of the network over time and frequency: what its parts weigh.

All parts compare the estimate with the clean signal at the same level. c(X) is the compressed
spectrum |X|^0.3 X / |X| (``speech.net.timefrequency.compress``). M c(Y) is the estimate: the mask
times the compressed noisy spectrum. Means are over pieces, frames and bins, or over samples::

    magnitude     mean (|M c(Y)| - |c(S)|)^2
    complex       mean |M c(Y) - c(S)|^2
    consistency   mean |M c(Y) - c(STFT(e))|^2, e the waveform of the estimate
    waveform      mean |e - s|
    si_sdr        negative SI-SDR of e in dB (``speech.net.losses.NegativeSISDR``)

Magnitude and complex part after Braun and Tashev 2021 (eq. 7); all four as in FastEnhancer
(2025), which weighs them 0.3, 0.2, 0.3 and 0.2.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class MaskLoss:
    """What the parts of the loss weigh; a part of weight 0 is not computed.

    Attributes:
        magnitude: Of the error of the compressed magnitudes.
        complex: Of the error of the compressed complex spectra.
        consistency: Of the distance of the estimate from the spectra that a signal can have.
        waveform: Of the absolute error of the samples.
        si_sdr: Of the negative SI-SDR; a piece whose clean signal is silent has none.
    """

    magnitude: float = 7.0
    complex: float = 3.0
    consistency: float = 0.0
    waveform: float = 0.2
    si_sdr: float = 0.01

    def __post_init__(self) -> None:
        """Raises ValueError for weights that make no loss."""
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"the weight {name} of the loss is {value}; give 0 or more")
        if not self.magnitude + self.complex + self.waveform + self.si_sdr:
            raise ValueError(
                "magnitude, complex, waveform and si_sdr of the loss all weigh 0; give one more"
            )
