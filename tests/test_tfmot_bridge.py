"""TF-MOT clustering: started from our centroids, every known trap, its Keras kept to itself.

Nothing here may import TF-MOT: the process of the tests is one that must not be touched by it.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantization import tfmot_bridge
from quantization.tfmot_bridge import CHECKPOINT, Worker, cluster, require_tfmot
from speech.modelfile.exam import plan_layers
from speech.modelfile.h5 import write_model_file
from speech.net.timefrequency import TimeFrequencyConfig
from tests.builders import mask_layers

ROOT = Path(__file__).parent.parent

needs_tfmot = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tensorflow_model_optimization", "tf_keras"))),
    reason="TF-MOT is not installed",
)


def conv(name, filters, kernel_size=9):
    settings = dict(
        name=name, filters=filters, kernel_size=kernel_size, strides=1, padding="same",
        data_format="channels_last", dilation_rate=1, activation="linear", use_bias=True,
    )  # fmt: skip
    return "Conv1D", settings


def normalization(name):
    return "GroupNormalization", dict(
        name=name, groups=-1, axis=-1, epsilon=1e-5, center=True, scale=True
    )


INPUT = ("InputLayer", {"name": "input", "batch_shape": [None, None, 1]})
OUTPUT = ("Activation", {"name": "output", "activation": "tanh"})
FCN = [
    INPUT,
    conv("conv1", 4), normalization("norm1"), ("LeakyReLU", dict(name="a1", negative_slope=0.3)),
    conv("conv2", 4), normalization("norm2"), ("LeakyReLU", dict(name="a2", negative_slope=0.3)),
    conv("conv3", 1), OUTPUT,
]  # fmt: skip
# Layers that no chain of C kernels has.
MIXED = [
    INPUT,
    conv("conv1", 4),
    ("BatchNormalization", dict(
        name="norm1", axis=-1, momentum=0.9, epsilon=1e-3, center=True, scale=True)),
    ("ReLU", dict(name="a1", max_value=None, negative_slope=0.0, threshold=0.0)),
    ("Dropout", dict(name="drop", rate=0.1)),
    ("Dense", dict(name="dense", units=5, activation="relu", use_bias=True)),
    normalization("norm2"),
    conv("conv2", 1), OUTPUT,
]  # fmt: skip


def network(stack, seed=0):
    """Layers with random weights; variances and scales are positive."""
    rng = np.random.default_rng(seed)
    entries = [{"class_name": name, "config": config} for name, config in stack]
    plan = plan_layers({"class_name": "Sequential", "config": {"layers": entries}})
    return tuple(
        replace(
            layer,
            weights={
                name: (
                    rng.uniform(0.5, 1.5, shape)
                    if name in ("gamma", "moving_variance")
                    else 0.2 * rng.standard_normal(shape)
                ).astype(np.float32)
                for name, shape in shapes.items()
            },
        )
        for layer, shapes in plan
    )


def kernels(layers):
    return {layer.name: layer.weights["kernel"] for layer in layers if "kernel" in layer.weights}


def centroids(kernel, k):
    """Starts from the weights that are not pruned: the zero is not one of the k."""
    return np.quantile(kernel[kernel != 0], (np.arange(k) + 0.5) / k).astype(np.float32)


def pruned(layers, name, share=0.4, seed=1):
    """The network with some channels of a layer at zero, and the mask."""
    mask = np.random.default_rng(seed).random(kernels(layers)[name].shape[-2:]) > share
    assert 0 < mask.mean() < 1
    return tuple(
        replace(
            layer,
            weights=layer.weights
            | {"kernel": np.where(mask, layer.weights["kernel"], np.float32(0))},
        )
        if layer.name == name
        else layer
        for layer in layers
    ), mask


class Tones:
    """A source of training items: sines in noise, 600 to 800 samples."""

    def __init__(self, name="tones"):
        self.name = name

    def __len__(self):
        return 6

    def item(self, index, rng):
        time = np.arange(600 + 40 * index)
        clean = np.sin(0.05 * (index + 1) * time)
        return clean + 0.5 * rng.standard_normal(len(time)), clean

    def description(self):
        return [self.name]


def tones(**settings):
    from speech.data.pipeline import TrainingData

    return TrainingData(Tones(), batch_size=2, **settings)


def same(one, other):
    return all(
        a.name == b.name
        and a.config == b.config
        and all(np.array_equal(a.weights[n], b.weights[n]) for n in a.weights | b.weights)
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module", autouse=True)
def no_worker_stays():
    yield
    tfmot_bridge.close_idle()


# --------------------------------------------------------------------------------------------
# Without training


@needs_tfmot
def test_every_weight_becomes_its_nearest_given_centroid_and_nothing_else_changes():
    # Trap 7: TF-MOT only has seedings. Trap 6: it changes the model it is given. Trap 4: its
    # registry refuses GroupNormalization. Trap 10: one codebook a layer, of any size.
    layers = network(FCN)
    before = network(FCN)
    books = {"conv1": centroids(kernels(layers)["conv1"], 3), "conv2": np.float32([0.3, -0.1])}
    result = cluster(layers, books)
    assert same(layers, before)
    for old, new in zip(layers, result, strict=True):
        for name, array in old.weights.items():
            if name == "kernel" and old.name in books:
                nearest = np.abs(array[..., None] - books[old.name]).argmin(-1)
                np.testing.assert_array_equal(new.weights[name], books[old.name][nearest])
            else:
                np.testing.assert_array_equal(new.weights[name], array)
            assert new.weights[name].dtype == np.float32


@needs_tfmot
def test_this_process_is_left_alone():
    # Trap 1: importing TF-MOT sets an environment variable and may replace tf.keras.
    import keras
    import tensorflow as tf

    cluster(network(FCN), {"conv1": [-0.1, 0.1]})
    assert keras.__version__.startswith("3.")
    assert tf.keras.__version__ == keras.__version__
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert not {"tf_keras", "tensorflow_model_optimization"} & set(sys.modules)


@needs_tfmot
def test_pruned_channels_stay_zero_and_small_weights_of_others_do_not_join_them():
    # Trap 8: TF-MOT counts the zero as one of k, needs k >= 3, and zeros what is near zero.
    layers, mask = pruned(network(FCN), "conv2")
    kernel = kernels(layers)["conv2"]
    kernel[0, mask] = 0  # zeros in kept channels are weights like others
    kernel[1, mask] = 1e-6
    book = np.float32([-0.2, 0.2])
    result = kernels(cluster(layers, {"conv2": book}))["conv2"]
    np.testing.assert_array_equal(result.any(axis=0), mask)
    assert set(np.unique(result[:, mask])) == set(book)
    np.testing.assert_array_equal(result[1, mask], book[1])


@needs_tfmot
def test_result_is_a_plain_model_of_the_same_size(tmp_path):
    # Traps 11, 12: what is wrapped is four times as large and opens with TF-MOT only.
    import keras

    layers = network(FCN)
    result = cluster(layers, {name: centroids(k, 4) for name, k in kernels(layers).items()})
    write_model_file(tmp_path / "plain.h5", layers, {})
    write_model_file(tmp_path / "clustered.h5", result, {})
    sizes = [(tmp_path / name).stat().st_size for name in ("plain.h5", "clustered.h5")]
    assert sizes[0] == sizes[1]
    loaded = keras.models.load_model(tmp_path / "clustered.h5", compile=False)
    for name, kernel in kernels(result).items():
        np.testing.assert_array_equal(loaded.get_layer(name).kernel.numpy(), kernel)


# --------------------------------------------------------------------------------------------
# Training


def fine_tuned(stack, work=None, epochs=2, **settings):
    layers, mask = pruned(network(stack), "conv2" if stack is FCN else "dense")
    books = {name: centroids(kernel, 4) for name, kernel in kernels(layers).items()}
    rows = []
    result = cluster(
        layers, books, data=tones(), validation=tones(shuffle=False, seed=5), epochs=epochs,
        learning_rate=3e-3, progress=rows.append, work=work, **settings,
    )  # fmt: skip
    return layers, mask, result, rows


@needs_tfmot
@pytest.mark.parametrize("stack", [FCN, MIXED], ids=["fcn", "mixed"])
def test_fine_tuning_learns_within_the_codebooks(stack):
    layers, mask, result, rows = fine_tuned(stack)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[2]["validation_loss"] < rows[0]["validation_loss"]
    # Adam's cosine ends at a hundredth, and every epoch is timed
    assert rows[1]["learning_rate"] > rows[2]["learning_rate"] > 3e-5
    before, after = kernels(layers), kernels(result)
    for name, kernel in after.items():
        kept = np.broadcast_to(mask if not kernel.all() else True, kernel.shape)
        assert len(np.unique(kernel[kept])) <= 4
        assert not set(np.unique(kernel[kept])) <= set(centroids(before[name], 4))
    zeros = after["conv2" if stack is FCN else "dense"]
    np.testing.assert_array_equal(zeros != 0, np.broadcast_to(mask, zeros.shape))
    # kernels alone are clustered
    biases = [layer.weights["bias"] for layer in result if layer.name == "conv1"]
    assert len(np.unique(biases)) == 4
    if stack is MIXED:  # Trap 5: within TF-MOT's wrapper, moving statistics never move
        for name in ("moving_mean", "moving_variance"):
            old, new = (
                next(x.weights[name] for x in stage if name in x.weights)
                for stage in (layers, result)
            )
            assert (old != new).all()


@needs_tfmot
def test_fast_steps_are_the_steps_of_tf_keras(monkeypatch):
    from speech.net import blockconv

    if not blockconv.is_available():
        pytest.skip("no C compiler")
    uses_c_kernels, call = [], Worker.call

    def watched(self, name, *positional, **keyword):
        answer = call(self, name, *positional, **keyword)
        if name == "start":
            uses_c_kernels.append(answer)
        return answer

    monkeypatch.setattr(Worker, "call", watched)
    fast, stock = (fine_tuned(FCN, conv=kind) for kind in ("fast", "keras"))
    assert uses_c_kernels == [True, False]
    for one, other in zip(fast[3], stock[3], strict=True):
        for name in set(one) - {"seconds"}:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=0)


SPECTRAL = TimeFrequencyConfig(4, 4, (1,))


class Hums:
    """A stream of pieces: sines in noise, at their own level."""

    batch_size, num_samples, seed = 2, 2000, 0

    def piece(self, position):
        rng = np.random.default_rng([self.seed, position])
        clean = 0.1 * np.sin(rng.uniform(0.05, 0.4) * np.arange(self.num_samples))
        noisy = clean + 0.05 * rng.standard_normal(self.num_samples)
        return noisy.astype(np.float32), clean.astype(np.float32)

    def batch(self, index):
        pieces = [self.piece(index * self.batch_size + row) for row in range(self.batch_size)]
        return tuple(np.stack([piece[side] for piece in pieces]) for side in (0, 1))

    def description(self):
        return [f"hums {self.seed}"]


@needs_tfmot
def test_a_network_over_time_and_frequency_learns_within_its_codebooks(tmp_path):
    """Skips, kernels of four axes, normalisation that was kept; C kernels and tf_keras alike."""
    from pruning.sparsity import apply_masks, masks_for_share
    from speech.net.mask_loss import MaskLoss
    from speech.net.taps import taps_of
    from speech.training.pieces import PieceData

    layers = mask_layers(SPECTRAL)
    masks = masks_for_share(layers, 0.3, per_layer=True, keep_last=False)
    layers = apply_masks(layers, masks)
    books = {name: centroids(kernel, 4) for name, kernel in kernels(layers).items()}
    runs, norms = {}, {}
    for conv in ("fast", "keras"):
        rows = []
        result = cluster(
            layers, books, data=PieceData(Hums(), num_items=8, workers=0),
            validation=PieceData(Hums(), num_items=2, workers=0), epochs=1, learning_rate=3e-3,
            loss=MaskLoss(), progress=rows.append, work=tmp_path / conv, conv=conv,
            conventions=SPECTRAL,
        )  # fmt: skip
        assert rows[1]["validation_loss"] < rows[0]["validation_loss"]
        for layer in result:
            if layer.name in books:
                taps = taps_of(layer)
                assert not taps[:, ~masks[layer.name]].any()
                values = np.unique(taps[:, masks[layer.name]])
                assert len(values) <= 4 and not set(values) <= set(books[layer.name])
        runs[conv] = rows
        norms[conv] = next(x.weights for x in result if x.name == "block1_time_norm")
    for one, other in zip(runs["fast"], runs["keras"], strict=True):
        for name in set(one) - {"seconds"}:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-3, atol=0)
    before = next(layer.weights for layer in layers if layer.name == "block1_time_norm")
    for name, array in before.items():
        assert not np.array_equal(norms["fast"][name], array)
        np.testing.assert_allclose(norms["fast"][name], norms["keras"][name], rtol=1e-3, atol=1e-4)


@needs_tfmot
def test_what_the_process_refuses_is_a_value_error_and_it_lives_on():
    for _ in range(2):
        with pytest.raises(ValueError, match="loss is 'no'"):
            cluster(network(FCN), {"conv1": [-0.1, 0.1]}, loss="no")
    assert len(tfmot_bridge._idle) == 1


@needs_tfmot
def test_an_error_that_is_no_number_ends_the_run():
    data = tones()
    data.source.item = lambda index, rng: (np.full(100, 1e-3), np.ones(100))
    layers = network(FCN)
    layers[1].weights["kernel"][:] = np.nan
    with pytest.raises(ValueError, match="became nan in epoch 1, step 1; try a smaller learning"):
        cluster(layers, {"conv2": [-0.1, 0.1]}, data=data, epochs=1)


# --------------------------------------------------------------------------------------------
# TF-MOT itself, and the process around it

FACTS = """
import os
import numpy as np
from quantization import tfmot_worker
parts = tfmot_worker.tfmot_classes()
assert os.environ["TF_USE_LEGACY_KERAS"] == "1"  # trap 1

import keras
import tensorflow as tf
layer = keras.layers.Conv1D(2, 3)
layer.build((None, None, 1))
try:
    tfmot_worker.wrap(layer, np.float32([0, 1]), None)
except ValueError as error:
    assert "returned nothing" in str(error)  # trap 2
else:
    raise AssertionError("a layer of Keras 3 was taken")

import tensorflow_model_optimization as tfmot
norm = parts["keras"].layers.GroupNormalization(-1)
norm.build((None, None, 4))
try:
    tfmot.clustering.keras.cluster_weights(norm, 4)
except ValueError:
    pass  # trap 4
else:
    raise AssertionError("TF-MOT takes GroupNormalization now")

# our lookup is TF-MOT's
rng = np.random.default_rng(0)
centroids = tf.Variable(rng.standard_normal(7).astype(np.float32))
weights = tf.constant(rng.standard_normal((5, 3, 4)).astype(np.float32))
conv = parts["Conv1D"](4, 5)
mine = conv.get_clusterable_algorithm("kernel")(clusters_centroids=centroids)
theirs = tfmot.clustering.keras.ClusteringAlgorithm(centroids)
np.testing.assert_array_equal(*(x.get_pulling_indices(weights).numpy() for x in (mine, theirs)))
"""


@needs_tfmot
def test_what_we_rely_on_in_tfmot_is_so():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FACTS], check=True, cwd=ROOT)


def test_importing_the_bridge_imports_no_tensorflow():
    code = (
        "import sys, quantization.tfmot_bridge, quantization.tfmot_worker;"
        "assert not {'tensorflow', 'keras', 'tf_keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_only_the_worker_imports_tfmot():
    for path in ROOT.glob("*/*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
        if path.name != "tfmot_worker.py":
            assert not any(name.startswith("tensorflow_model_opt") for name in names), path


def test_a_process_that_dies_says_so():
    worker = Worker()
    worker._child.process.kill()
    with pytest.raises(ChildProcessError, match="TF-MOT process died .SIGKILL"):
        worker.call("start", (), {}, {})
    worker.stop()


# Trap 3: three packages that must fit each other, which pip does not see to.
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensorflow-model-optimization": None}, "tensorflow-model-optimization is not installed"),
        ({"tf_keras": None}, "tf_keras is not installed: pip install .*'tf_keras==2.21"),
        ({"tensorflow-model-optimization": "0.7.5"}, "optimization is 0.7.5: pip install"),
        ({"tf_keras": "2.18.0"}, r"needs .* tf_keras 2.21.*; tf_keras is 2.18.0: pip"),
    ],
)
def test_packages_that_are_missing_or_do_not_fit(monkeypatch, changes, message):
    found = {
        "tensorflow": "2.21.0", "tensorflow-model-optimization": "0.8.1", "tf_keras": "2.21.0"
    }  # fmt: skip
    monkeypatch.setattr(tfmot_bridge, "version_of", (found | changes).get)
    with pytest.raises(ValueError, match=message) as refused:
        cluster(network(FCN), {"conv1": [-0.1, 0.1]})
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(tfmot_bridge, "version_of", found.get)
    require_tfmot()


@pytest.mark.parametrize(
    ("codebooks", "settings", "message"),
    [
        ({}, {}, "no codebooks"),
        ({"norm1": [1, 2]}, {}, "for layer 'norm1'; the convolutions and matrices are conv1, conv"),
        ({"conv1": [0.1]}, {}, "has 1 centroids; TF-MOT needs at least 2"),
        ({"conv1": [0.1, 0.1]}, {}, "has 1 centroids"),
        ({"conv1": [[0.1, 0.2]]}, {}, "not one row of finite numbers"),
        ({"conv1": [0.1, np.nan]}, {}, "not one row of finite numbers"),
        # Trap 9: TF-MOT's own error would speak of num_to_sample and points.rows().
        ({"conv1": np.arange(37)}, {}, "37 centroids, but only 36 weights of it are kept"),
        ({"conv1": [1, 2]}, {"epochs": 1}, "needs training data"),
        ({"conv1": [1, 2]}, {"epochs": -1}, "epochs is -1"),
        ({"conv1": [1, 2]}, {"learning_rate": 0}, "learning_rate is 0"),
        ({"conv1": [1, 2]}, {"conv": "slow"}, "conv must be"),
    ],
)
def test_input_that_makes_no_sense_is_refused(codebooks, settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        cluster(network(FCN), codebooks, **settings)
    assert "\n" not in str(refused.value)


@needs_tfmot
def test_a_seed_gives_one_result_and_a_killed_run_goes_on_to_it(tmp_path, monkeypatch):
    def kill(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    layers = network(MIXED)
    books = {name: centroids(kernel, 4) for name, kernel in kernels(layers).items()}
    rows = []
    settings = dict(
        data=tones(), validation=tones(shuffle=False, seed=5), epochs=2, learning_rate=3e-3
    )
    unbroken = cluster(layers, books, **settings)
    with pytest.raises(KeyboardInterrupt):
        cluster(layers, books, work=tmp_path, progress=kill, **settings)
    assert not tfmot_bridge._idle  # the rest is another process's
    broken = cluster(layers, books, work=tmp_path, progress=rows.append, **settings)
    assert [row["epoch"] for row in rows] == [2]
    assert same(broken, unbroken)
    assert not same(broken, cluster(layers, books, **settings | {"seed": 7}))  # of Dropout
    # What is done needs no process.
    tfmot_bridge.close_idle()
    monkeypatch.setattr(tfmot_bridge, "Worker", None)
    assert same(broken, cluster(layers, books, work=tmp_path, **settings))
    with pytest.raises(ValueError, match="another network, data or setting"):
        cluster(layers, books, work=tmp_path, **settings | {"learning_rate": 1e-3})
    (tmp_path / CHECKPOINT).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        cluster(layers, books, work=tmp_path, **settings)
