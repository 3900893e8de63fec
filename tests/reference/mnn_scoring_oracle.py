"""Equations (10) and (11) in plain float64 loops: whole signals, nothing shared with the code."""

import numpy as np

FRAME, HOP = 1024, 256
WINDOW = np.sin(np.pi * np.arange(FRAME) / FRAME) ** 2


def spectra(signal):
    """complex128 [num_frames, 513]: Hann frames every 256 samples, zeros outside."""
    padded = np.concatenate([np.zeros(FRAME - HOP), signal, np.zeros(2 * FRAME)])
    count = -(-(len(signal) + FRAME - HOP) // HOP)
    return np.array([np.fft.rfft(padded[HOP * t : HOP * t + FRAME] * WINDOW) for t in range(count)])


def synthesis(frames, num_samples):
    """float64 [num_samples]: windowed frames added up, over the sum of squared windows."""
    total = np.zeros(HOP * len(frames) + FRAME)
    weight = np.zeros_like(total)
    for t, frame in enumerate(frames):
        total[HOP * t : HOP * t + FRAME] += np.fft.irfft(frame, FRAME) * WINDOW
        weight[HOP * t : HOP * t + FRAME] += WINDOW**2
    inside = slice(FRAME - HOP, FRAME - HOP + num_samples)
    return total[inside] / weight[inside]


def with_neighbours(frames, context):
    """[num_frames, context * 513]: the first and last frame stand in at the ends."""
    half = context // 2
    rows = []
    for t in range(len(frames)):
        near = [frames[min(max(t + o, 0), len(frames) - 1)] for o in range(-half, half + 1)]
        rows.append(np.concatenate(near))
    return np.array(rows)


def autoencode(layers, frames, context):
    """Runs Dense and modified ReLU layers on magnitudes; dropout does nothing."""
    values = with_neighbours(frames, context)
    for layer in layers:
        if layer.class_name == "Dense":
            kernel = layer.weights["kernel"].astype(np.float64)
            values = values @ kernel + layer.weights["bias"].astype(np.float64)
        elif layer.class_name == "icse>ModifiedReLU":
            epsilon = 1e-5
            negative = -epsilon / (np.minimum(values, epsilon) - 1 - epsilon)
            values = np.where(values >= epsilon, values, negative)
    return values


def scores(estimate_spectra, mixture, layers, context):
    """Returns (eq. 10, eq. 11 in dB) of the spectra of one estimate.

    Magnitudes are divided by the root mean square of the mixture and of the window's energy.
    """
    rms = np.sqrt(np.mean(mixture**2))
    scale = rms * np.sqrt(np.sum(WINDOW**2))
    magnitude = np.abs(estimate_spectra) / scale
    rebuilt = autoencode(layers, magnitude, context)
    ae = np.sum((magnitude - rebuilt) ** 2)
    signal = synthesis(estimate_spectra, len(mixture))
    phase = np.exp(1j * np.angle(estimate_spectra))
    other = synthesis(rebuilt * scale * phase, len(mixture))
    return ae, 10 * np.log10(np.sum(signal**2) / np.sum((signal - other) ** 2))
