"""Things that several tests make."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose

from pruning import sparsity
from quantization import calibration
from quantization.kmeans import Codebooks, cluster_layers
from speech.data import prepared
from speech.modelfile.exam import plan_layers
from speech.modelfile.h5 import write_model_file
from speech.modelfile.icse import write_compact
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFile
from speech.net.chain import ConvBlock
from speech.net.fcn import FCNConfig
from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency
from tests.reference.sphere import write_sphere

#: A network of the shape of the real ones that takes next to no time.
TINY = TimeFrequencyConfig(5, 6, (1, 3))


def shaken(layers: tuple[LayerSpec, ...], seed: int = 0) -> tuple[LayerSpec, ...]:
    """Gives all weights values of their own, variances positive ones, the kernels' of a sort."""
    rng = np.random.default_rng(seed)
    result = []
    for layer in layers:
        weights = {}
        for name, array in layer.weights.items():
            num_inputs = max(math.prod(array.shape[:-1]), 1)
            scale = 0.7 / np.sqrt(num_inputs) if name == "kernel" else 0.2
            if name in ("gamma", "moving_variance"):
                weights[name] = rng.uniform(0.6, 1.4, array.shape).astype(np.float32)
            else:
                weights[name] = (scale * rng.standard_normal(array.shape)).astype(np.float32)
        result.append(dataclasses.replace(layer, weights=weights))
    return tuple(result)


def shaken_model(model):
    """Gives every weight of a Keras model a value of its own, variances a positive one."""
    rng = np.random.default_rng(2)
    for variable in model.weights:
        low, high = (0.3, 2.0) if "variance" in variable.path else (-0.4, 0.6)
        variable.assign(rng.uniform(low, high, variable.shape))
    return model


@functools.cache
def mask_layers(config: TimeFrequencyConfig = TINY, seed: int = 0) -> tuple[LayerSpec, ...]:
    """Returns the layers of a network over time and frequency of random weights, shared."""
    from speech.net.keras_models import layers_of

    layers = shaken(layers_of(build_time_frequency(config)), seed)
    for layer in layers:
        for array in layer.weights.values():
            array.flags.writeable = False  # so that no test changes what others get
    return layers


def own_copy(layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """Returns layers whose weights may be changed."""
    return tuple(
        dataclasses.replace(
            layer, weights={name: array.copy() for name, array in layer.weights.items()}
        )
        for layer in layers
    )


def write_mask_network(
    path: Path, layers: tuple[LayerSpec, ...] | None = None, config: TimeFrequencyConfig = TINY
) -> ModelFile:
    """Writes such a network, .h5 or .icse by the ending, and reads it again."""
    write = write_compact if path.suffix == ".icse" else write_model_file
    write(path, mask_layers(config) if layers is None else layers, config.meta())
    return read_model_file(path)


def mask_from_json(stored: dict) -> np.ndarray:
    """Returns a mask of pruned channels, bool [in, out], as the meta data of a model store it."""
    bits = "".join(f"{byte:08b}" for byte in bytes.fromhex(stored["kept"]))
    count = stored["shape"][0] * stored["shape"][1]
    return np.array([bit == "1" for bit in bits[:count]]).reshape(stored["shape"])


def graph(*layers: tuple) -> tuple[LayerSpec, ...]:
    """Returns layers of (class, name, inputs, settings, shapes of the weights), all random.

    An InputLayer of [frames, 256, 3] named 'input' stands before them.
    """
    first = LayerSpec("InputLayer", "input", {"batch_shape": [None, None, 256, 3]})
    specs = [first]
    for class_name, name, inputs, settings, shapes in layers:
        weights = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
        specs.append(LayerSpec(class_name, name, settings, weights, tuple(inputs)))
    return shaken(tuple(specs), seed=3)


def conv2d(
    name: str, source: str, ins: int, outs: int, size: tuple[int, int] = (1, 1), **settings: object
) -> tuple:
    """Returns a Conv2D for `graph`, linear and 'same' unless told otherwise."""
    config = {
        "filters": outs, "kernel_size": list(size), "strides": [1, 1], "padding": "same",
        "data_format": "channels_last", "dilation_rate": [1, 1], "activation": "linear",
        "use_bias": True, **settings,
    }  # fmt: skip
    return "Conv2D", name, [source], config, {"kernel": (*size, ins, outs), "bias": (outs,)}


def network(rng, sizes=(1, 6, 5, 1), taps=11):
    """Layer specs of a small FCN with random kernels; no Keras needed."""
    config = FCNConfig(
        num_hidden_layers=len(sizes) - 2, num_filters=tuple(sizes[1:-1]), kernel_size=taps
    )
    layers, channels, index = [], 1, 0
    for number, (class_name, settings) in enumerate(config.layer_configs()):
        weights = {}
        if class_name == "Conv1D":
            out = sizes[index + 1]
            weights = {
                "kernel": rng.standard_normal((taps, channels, out)).astype(np.float32),
                "bias": rng.standard_normal(out).astype(np.float32),
            }
            channels, index = out, index + 1
        elif class_name == "GroupNormalization":
            weights = {
                "gamma": rng.uniform(0.5, 1.5, channels).astype(np.float32),
                "beta": rng.standard_normal(channels).astype(np.float32),
            }
        name = settings.get("name") or f"{class_name.lower()}_{number}"
        settings = {key: value for key, value in settings.items() if key != "name"}
        layers.append(LayerSpec(class_name, name, settings, weights))
    return tuple(layers)


def without_times(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def low_passed(rng, length, channels=1):
    """Noise whose neighbouring samples are alike, as those of speech are."""
    noise = rng.normal(0, 1, (length + 30, channels))
    window = np.hanning(31)[:, None]
    return (
        np.stack(
            [np.convolve(noise[:, c], window[:, 0], "valid") for c in range(channels)], axis=1
        )[:length].astype("f4")
        * 0.2
    )


def smooth_layers(rng):
    """A chain whose filters are smooth, some channels pruned."""
    found = list(network(rng, (1, 8, 8, 1), taps=16))
    window = np.hanning(18)[1:-1, None, None]
    for layer in found:
        if layer.class_name == "Conv1D":
            layer.weights["kernel"][:] = 0.3 * window * rng.normal(
                0, 1, layer.weights["kernel"].shape[1:]
            ) + 0.03 * rng.normal(0, 1, layer.weights["kernel"].shape)
    found[4].weights["kernel"][:, 2:4, :3] = 0
    return tuple(found)


def output_error(layers, changed, signals):
    """Power of the error of the output relative to the output's, the best gain applied."""
    error = power = 0.0
    for signal in signals:
        outputs = []
        for one in (layers, changed):
            values = signal
            for stage in calibration.stages_of(one) or []:
                values = stage.activate(stage.convolve(values))
            outputs.append(values.ravel().astype("f8"))
        wanted, found = outputs
        found = found * (wanted @ found) / (found @ found)
        error += np.sum((wanted - found) ** 2)
        power += np.sum(wanted**2)
    return error / power


WAVEFORM_META = {"kind": "waveform", "sample_rate_hz": 16000}


def clustered(rng, k=8, centroids="fp32", widths=(1, 12, 12, 1), pruned=0.3):
    """A clustered network, part of its channels at zero."""
    layers = network(rng, widths, taps=40)
    for layer in layers[:-2]:
        if "kernel" in layer.weights:
            kernel = layer.weights["kernel"]
            kernel[:] = np.cumsum(kernel, axis=0)
            kernel[:, rng.random(kernel.shape[1:]) < pruned] = 0
    return cluster_layers(layers, Codebooks(k=k, centroids=centroids))


def assert_same(layers, others):
    for one, other in zip(layers, others, strict=True):
        assert (one.class_name, one.name, one.config) == (
            other.class_name,
            other.name,
            other.config,
        )
        assert one.weights.keys() == other.weights.keys()
        for key, array in one.weights.items():
            assert array.shape == other.weights[key].shape
            assert array.tobytes() == other.weights[key].tobytes(), f"{one.name}/{key}"


def assert_near(found, expected, tolerance=1e-5):
    """Compares with the largest absolute value as the unit."""
    assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def layers_of(config, kernels=None, rng=None):
    """Layers of an FCN with the given kernels, or random ones."""
    entries = [
        {"class_name": name, "config": settings} for name, settings in config.layer_configs()
    ]
    plan = plan_layers({"class_name": "Sequential", "config": {"layers": entries}})
    kernels = iter(kernels or [])
    rng = rng or np.random.default_rng(0)
    layers = []
    for spec, shapes in plan:
        weights = {}
        for key, shape in shapes.items():
            given = next(kernels, None) if key == "kernel" else None
            drawn = rng.standard_normal(shape) if given is None else given
            weights[key] = np.asarray(drawn, np.float32)
        layers.append(LayerSpec(spec.class_name, spec.name, spec.config, weights))
    return layers


def kernel_shapes(config):
    channels = (1, *config.filters, 1)
    return [(config.kernel_size, *pair) for pair in itertools.pairwise(channels)]


HIDDEN_BLOCK = ConvBlock(normalized=True, epsilon=1e-5, slope=0.3)


def chain_parameters(rng, channels=(1, 6, 5, 1), taps=55):
    parameters = []
    for index, (num_in, num_out) in enumerate(zip(channels, channels[1:], strict=False)):
        parameters += [
            rng.uniform(-0.05, 0.05, (taps, num_in, num_out)),
            rng.uniform(-0.1, 0.1, num_out),
        ]
        if index < len(channels) - 2:
            parameters += [rng.uniform(0.5, 1.5, num_out), rng.uniform(-0.2, 0.2, num_out)]
    return [parameter.astype(np.float32) for parameter in parameters]


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file that a preparation wrote."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", prepared.MARKER)
    }


PIECES = ["--retrain", "--num-train", "4", "--crop-seconds", "0.3", "--batch-size", "2",
          "--rooms", "0", "--retrain-epochs", "1", "--final-epochs", "1", "--num-test", "1",
          "--snr", "5", "--gpu", "-1", "--jobs", "1", "--no-score"]  # fmt: skip


def zeros(path):
    return {row.name: row.pruned for row in sparsity.report(read_model_file(path).layers)}


def small_layers():
    """Returns a chain with every layer class of the allow-list."""
    rng = np.random.default_rng(0)

    def weights(**shapes):
        return {key: rng.uniform(0.1, 1, shape).astype("f4") for key, shape in shapes.items()}

    scale = {"epsilon": 1e-5, "axis": -1, "center": True, "scale": True}
    convolution = {
        "filters": 4,
        "kernel_size": 5,
        "strides": 1,
        "padding": "same",
        "data_format": "channels_last",
        "dilation_rate": 2,
        "activation": "linear",
        "use_bias": True,
    }
    batch = weights(gamma=4, beta=4, moving_mean=4, moving_variance=4)
    dense = {"units": 2, "activation": "sigmoid", "use_bias": False}
    return (
        LayerSpec("InputLayer", "input", {"batch_shape": [None, None, 1]}),
        LayerSpec("Conv1D", "conv1", convolution, weights(kernel=(5, 1, 4), bias=4)),
        LayerSpec("GroupNormalization", "norm1", {"groups": -1, **scale}, weights(gamma=4, beta=4)),
        LayerSpec("LeakyReLU", "act1", {"negative_slope": 0.3}),
        LayerSpec("BatchNormalization", "norm2", {"momentum": 0.9, **scale}, batch),
        LayerSpec("ReLU", "act2", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}),
        LayerSpec("Dropout", "drop", {"rate": 0.2}),
        LayerSpec("Dense", "dense", dense, weights(kernel=(4, 2))),
        LayerSpec("Activation", "output", {"activation": "tanh"}),
    )


SPEAKERS = {
    "TRAIN": [("DR1", "FCJF0"), ("DR2", "MARC0")],
    "TEST": [("DR1", "FAKS0"), ("DR3", "MABW0")],
}


SENTENCES = ("SA1", "SX37")


def make_speech(rng: np.random.Generator, num_samples: int = 8000) -> np.ndarray:
    """Noise bursts with pauses, |x| < 1: float64 [num_samples], the rhythm of syllables."""
    time_s = np.arange(num_samples) / 16000
    envelope = np.clip(np.sin(2 * np.pi * 4 * time_s + rng.uniform(0, 6)), 0, None)
    return 0.5 * envelope * np.tanh(rng.standard_normal(num_samples))


def make_timit(root: Path, rng: np.random.Generator, *, lower: bool = False) -> Path:
    """Writes a tiny TIMIT tree of NIST SPHERE files and returns ``root``."""
    for split, speakers in SPEAKERS.items():
        for dialect, speaker in speakers:
            for sentence in SENTENCES:
                name = f"{split}/{dialect}/{speaker}/{sentence}.WAV"
                path = root / (name.lower() if lower else name)
                write_sphere(path, make_speech(rng))
                path.with_suffix(".TXT").write_text("0 8000 She had your dark suit.\n")
    return root


def make_noises(
    root: Path, rng: np.random.Generator, names: tuple[str, ...] = ("birds", "typing")
) -> Path:
    """Writes one second of white noise under each name and returns ``root``."""
    for name in names:
        path = root / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(16000), 16000, subtype="FLOAT")
    return root


def write_sound(path, samples, rate_hz=16000, subtype="FLOAT"):
    """Writes a sound file with its folders and returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return path


def patched(data, *changes):
    """Returns bytes with others in the places given."""
    data = bytearray(data)
    for place, value in changes:
        data[place : place + len(value)] = value
    return bytes(data)


def is_alive(pid: int) -> bool:
    """Returns whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition, seconds=30.0):
    """Waits for a condition; returns whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


_BROWSERS = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
BROWSER = next(filter(None, _BROWSERS), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is here")


def wait_in(tab, expression):
    """Waits for a condition in a page; playwright's own way is what our pages' policy forbids."""
    for _ in range(1200):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(50)
    pytest.fail(f"never became true: {expression}")
