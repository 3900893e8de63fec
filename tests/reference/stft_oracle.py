"""The STFT from its definition, in float64: one frame, one bin, one sum at a time."""

import cmath
import math


def stft(signal, frame, hop):
    """Returns spectra[t][k] of a list of numbers, zero outside, first frame at hop - frame."""
    spectra = []
    start = hop - frame
    while start < len(signal):
        row = []
        for k in range(frame // 2 + 1):
            total = 0j
            for n in range(frame):
                if 0 <= start + n < len(signal):
                    window = 0.5 - 0.5 * math.cos(2 * math.pi * n / frame)
                    total += window * signal[start + n] * cmath.exp(-2j * math.pi * k * n / frame)
            row.append(total)
        spectra.append(row)
        start += hop
    return spectra
