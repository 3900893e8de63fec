"""Small experts and autoencoders as model files, .h5 or .icse by the ending, without Keras."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mnn.features import Conventions
from speech.modelfile.h5 import write_model_file
from speech.modelfile.icse import write_compact
from speech.modelfile.spec import LayerSpec
from tests.builders import write_mask_network

NUM_BINS = 513


def write(path, layers, meta):
    path.parent.mkdir(parents=True, exist_ok=True)
    (write_compact if path.suffix == ".icse" else write_model_file)(path, layers, meta)
    return path


def dense(name, kernel, bias, activation="linear"):
    config = {"units": kernel.shape[1], "activation": activation, "use_bias": True}
    weights = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return LayerSpec("Dense", name, config, weights)


def write_mask(path: Path, shape, *, context=3, meta=None, spread=0.0, seed=0) -> Path:
    """Writes a mask network whose mask is about logistic(shape [513] or a number)."""
    rng = np.random.default_rng(seed)
    num_inputs = context * NUM_BINS
    kernel = spread * rng.standard_normal((num_inputs, NUM_BINS)) / np.sqrt(num_inputs)
    layers = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, num_inputs]}),
        dense("output", kernel, np.broadcast_to(shape, NUM_BINS), "sigmoid"),
    ]
    if meta is None:
        meta = {"kind": "mask", **Conventions(context).to_json()}
    return write(path, layers, meta)


def write_dae(path: Path, *, units=6, context=3, seed=0, dropout=0.2) -> Path:
    """Writes an autoencoder of random weights with dropout on input and hidden units."""
    rng = np.random.default_rng(seed)
    num_inputs = context * NUM_BINS
    layers = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, num_inputs]}),
        LayerSpec("Dropout", "dropout1", {"rate": dropout}),
        dense("dense1", rng.standard_normal((num_inputs, units)) / 30, np.zeros(units)),
        LayerSpec("icse>ModifiedReLU", "act1", {"epsilon": 1e-5}),
        LayerSpec("Dropout", "dropout2", {"rate": dropout}),
        dense("dense2", np.abs(rng.standard_normal((units, NUM_BINS))) / 3, np.zeros(NUM_BINS)),
        LayerSpec("icse>ModifiedReLU", "output", {"epsilon": 1e-5}),
    ]
    return write(path, layers, {"kind": "autoencoder", **Conventions(context).to_json()})


def write_ranker(path: Path) -> Path:
    """Writes a ranker of random weights."""
    return write_mask_network(path).path


def write_fcn(path: Path, *, taps=11, seed=0, meta=None, scale=1.0) -> Path:
    """Writes a waveform network of one convolution, about a low-pass filter."""
    rng = np.random.default_rng(seed)
    kernel = np.hanning(taps)[:, None, None] / taps
    kernel = scale * (kernel + 0.01 * rng.standard_normal((taps, 1, 1)))
    config = {
        "filters": 1, "kernel_size": taps, "strides": 1, "padding": "same",
        "data_format": "channels_last", "dilation_rate": 1, "activation": "tanh",
        "use_bias": True,
    }  # fmt: skip
    weights = {"kernel": kernel.astype(np.float32), "bias": np.zeros(1, np.float32)}
    layers = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, None, 1]}),
        LayerSpec("Conv1D", "conv", config, weights),
    ]
    return write(path, layers, {"kind": "waveform"} if meta is None else meta)
