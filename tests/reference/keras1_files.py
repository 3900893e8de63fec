"""Writes JSON and weights as Keras 1.1 wrote them for the original FCN (docs/papers.md)."""

from __future__ import annotations

import json

import h5py
import numpy as np


def random_network(rng, *, filters=(30,) * 7, kernel_size=55):
    """Returns (hidden, last) as ``fcn_oracle.forward`` takes them, float32."""

    def uniform(low, high, *shape):
        return rng.uniform(low, high, shape).astype(np.float32)

    hidden, channels = [], 1
    for number in filters:
        kernel = uniform(-0.05, 0.05, kernel_size, channels, number)
        bias = uniform(-0.1, 0.1, number)
        hidden.append((kernel, bias, uniform(0.5, 1.5, number), uniform(-0.2, 0.2, number)))
        channels = number
    return hidden, (uniform(-0.05, 0.05, kernel_size, channels, 1), uniform(-0.1, 0.1, 1))


def write_json(path, hidden, last, *, change=None):
    """Writes the model's JSON; ``change(model)`` may edit it first."""
    layers = []
    kernels = [layer[0] for layer in hidden] + [last[0]]
    for index, kernel in enumerate(kernels, start=1):
        convolution = {
            "name": f"convolution1d_{index}",
            "trainable": True,
            "nb_filter": kernel.shape[2],
            "filter_length": kernel.shape[0],
            "init": "uniform",
            "activation": "linear",
            "border_mode": "same",
            "subsample_length": 1,
            "W_regularizer": None,
            "b_regularizer": None,
            "activity_regularizer": None,
            "W_constraint": None,
            "b_constraint": None,
            "bias": True,
            "input_dim": kernel.shape[1],
            "input_length": None,
        }
        if index == 1:
            convolution |= {"batch_input_shape": [None, None, 1], "input_dtype": "float32"}
        layers.append({"class_name": "Convolution1D", "config": convolution})
        if index > len(hidden):
            break
        normalization = {
            "name": f"batchnormalization_{index}",
            "trainable": True,
            "mode": 2,
            "axis": -1,
            "epsilon": 1e-05,
            "momentum": 0.99,
            "gamma_regularizer": None,
            "beta_regularizer": None,
        }
        layers.append({"class_name": "BatchNormalization", "config": normalization})
        leaky = {"name": f"leakyrelu_{index}", "trainable": True, "alpha": 0.30000001192092896}
        layers.append({"class_name": "LeakyReLU", "config": leaky})
    activation = {"name": "activation_1", "trainable": True, "activation": "tanh"}
    layers.append({"class_name": "Activation", "config": activation})
    model = {"class_name": "Sequential", "keras_version": "1.1.0", "config": layers}
    if change is not None:
        change(model)
    path.write_text(json.dumps(model))


def write_weights(path, hidden, last):
    """Writes the weights; running statistics are 0 and 1, as in the released files."""
    layers = []
    for index, (kernel, bias, gamma, beta) in enumerate(hidden, start=1):
        layers.append((f"convolution1d_{index}", {"W": kernel[:, None], "b": bias}))
        running = {"running_mean": np.zeros_like(gamma), "running_std": np.ones_like(gamma)}
        normalization = {"gamma": gamma, "beta": beta, **running}
        layers.append((f"batchnormalization_{index}", normalization))
        layers.append((f"leakyrelu_{index}", {}))
    kernel, bias = last
    layers.append((f"convolution1d_{len(hidden) + 1}", {"W": kernel[:, None], "b": bias}))
    layers.append(("activation_1", {}))
    with h5py.File(path, "w") as file:
        _write_names(file, "layer_names", [name for name, _ in layers])
        for name, weights in layers:
            group = file.create_group(name)
            _write_names(group, "weight_names", [f"{name}_{key}:0" for key in weights])
            for key, array in weights.items():
                group.create_dataset(f"{name}_{key}:0", data=array)


def write_pair(folder, hidden, last, *, change=None):
    """Writes both files and returns (json path, weights path)."""
    json_path, weights_path = folder / "FCN.json", folder / "FCN.hdf5"
    write_json(json_path, hidden, last, change=change)
    write_weights(weights_path, hidden, last)
    return json_path, weights_path


def _write_names(owner, name, names):
    # Fixed-length byte strings, as h5py wrote them under Python 2.
    longest = max(map(len, names), default=1)
    owner.attrs.create(name, [n.encode() for n in names], dtype=f"S{longest}", shape=(len(names),))
