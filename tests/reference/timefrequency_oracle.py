"""A network over time and frequency from the definitions, in float64: signal to mask to signal.

Layer by layer and frame by frame, as the Keras documentation and `speech.modelfile` describe them.
Arrays are [frames, bands, channels], one signal at a time.
"""

import numpy as np

FLOOR = 1e-6  # of |X|^2


def activated(x, name):
    return {
        "linear": lambda: x,
        "relu": lambda: np.maximum(x, 0),
        "tanh": lambda: np.tanh(x),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "silu": lambda: x / (1 + np.exp(-x)),
    }[name]()


def convolved(x, config, kernel):
    """Correlates over frames and bands; kernel [taps, width, in, out]."""
    pads, starts = [], []
    for axis in (0, 1):
        length, stride = x.shape[axis], config["strides"][axis]
        span = (kernel.shape[axis] - 1) * config["dilation_rate"][axis] + 1
        if config["padding"] == "same":
            count = -(-length // stride)
            missing = max((count - 1) * stride + span - length, 0)
        else:
            count, missing = (length - span) // stride + 1, 0
        pads.append((missing // 2, missing - missing // 2))
        starts.append([index * stride for index in range(count)])
    padded = np.pad(x, [*pads, (0, 0)])
    out = np.zeros((len(starts[0]), len(starts[1]), kernel.shape[3]))
    for tap in range(kernel.shape[0]):
        for band in range(kernel.shape[1]):
            times = [t + tap * config["dilation_rate"][0] for t in starts[0]]
            places = [f + band * config["dilation_rate"][1] for f in starts[1]]
            out += padded[np.ix_(times, places)] @ kernel[tap, band]
    return out


def spread(x, config, kernel):
    """Transposed convolution, 'same', over bands only; kernel [1, width, out, in]."""
    width, stride = kernel.shape[1], config["strides"][1]
    bands = x.shape[1]
    full = np.zeros((len(x), (bands - 1) * stride + max(width, stride), kernel.shape[2]))
    for f in range(bands):
        for band in range(width):
            full[:, f * stride + band] += x[:, f] @ kernel[0, band].T
    first = (width - stride) // 2
    return full[:, first : first + bands * stride]


def layer_output(layer, inputs):
    """Returns what one layer makes of float64 inputs."""
    x, config = inputs[0], layer.config
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    match layer.class_name:
        case "Conv2D":
            y = convolved(x, config, weights["kernel"]) + weights.get("bias", 0)
            return activated(y, config["activation"])
        case "Conv2DTranspose":
            y = spread(x, config, weights["kernel"]) + weights.get("bias", 0)
            return activated(y, config["activation"])
        case "Dense":
            y = np.einsum("tfi,io->tfo", x, weights["kernel"]) + weights.get("bias", 0)
            return activated(y, config["activation"])
        case "BatchNormalization":
            spread_out = np.sqrt(weights["moving_variance"] + config["epsilon"])
            y = (x - weights["moving_mean"]) / spread_out
            return y * weights.get("gamma", 1) + weights.get("beta", 0)
        case "Activation":
            return activated(x, config["activation"])
        case "LeakyReLU":
            return np.where(x > 0, x, config["negative_slope"] * x)
        case "ZeroPadding2D":
            return np.pad(x, [*config["padding"], (0, 0)])
        case "Permute":
            return x.transpose([axis - 1 for axis in config["dims"]])
        case "Add":
            return sum(inputs[1:], inputs[0])
        case "Concatenate":
            return np.concatenate(inputs, axis=-1)
        case "Dropout":
            return x
    raise AssertionError(f"the oracle knows no {layer.class_name}")


def mask_of(layers, features):
    """Returns the output of a graph for float64 [frames, bins, 3]."""
    values = {layers[0].name: features}
    for layer in layers[1:]:
        values[layer.name] = layer_output(layer, [values[name] for name in layer.inputs])
    return values[layers[-1].name]


def spectra_of(signal, frame, hop):
    """Returns [frames, frame / 2 + 1] of a signal, zero outside; square-root Hann window."""
    n = np.arange(frame)
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * n / frame))
    waves = np.exp(-2j * np.pi * np.outer(n, np.arange(frame // 2 + 1)) / frame)
    rows = []
    for start in range(hop - frame, len(signal), hop):
        piece = np.array([signal[i] if 0 <= i < len(signal) else 0.0 for i in start + n])
        rows.append((piece * window) @ waves)
    return np.array(rows)


def signal_of(spectra, num_samples, frame, hop):
    """Returns the least-squares signal of spectra: windowed frames over the sum of squares."""
    n = np.arange(frame)
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * n / frame))
    total, weight = np.zeros(num_samples), np.zeros(num_samples)
    k = np.arange(1, frame // 2)
    waves = np.exp(2j * np.pi * np.outer(k, n) / frame)
    for t, row in enumerate(spectra):
        piece = row[0].real + row[-1].real * (-1.0) ** n + 2 * (row[1:-1] @ waves).real
        for i, place in enumerate(range(hop - frame + t * hop, hop + t * hop)):
            if 0 <= place < num_samples:
                total[place] += window[i] * piece[i] / frame
                weight[place] += window[i] ** 2
    return total / np.maximum(weight, 1e-12)


def compressed(spectra, power):
    level = np.maximum(np.abs(spectra) ** 2, FLOOR)
    return spectra * level ** ((power - 1) / 2)


def enhanced(file, signal):
    """Returns (mask, signal) that the network of a model file makes of a signal, in float64."""
    stft, power = file.meta["stft"], file.meta["power"]
    spectra = spectra_of(np.asarray(signal, np.float64), stft["frame"], stft["hop"])
    own = compressed(spectra[:, :-1], power)
    mask = mask_of(file.layers, np.stack([own.real, own.imag, np.abs(own)], axis=-1))
    mask = mask[..., 0] + 1j * mask[..., 1]
    estimate = mask * own
    with np.errstate(divide="ignore"):
        louder = np.where(estimate == 0, 0, np.abs(estimate) ** (1 / power - 1))
    full = np.zeros_like(spectra)
    full[:, :-1] = estimate * louder
    return mask, signal_of(full, len(signal), stft["frame"], stft["hop"])
