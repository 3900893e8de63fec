"""The modified ReLU in Keras and NumPy, files that hold it, and networks run without Keras."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mnn.dae import Autoencoder, build_dae
from mnn.expert_files import Place, open_expert
from mnn.experts import build_expert
from mnn.features import level, scaled_magnitudes
from mnn.layers import DenseNetwork, load_network, modified_relu
from speech.modelfile.read import read_model_file
from speech.modelfile.rules import ACTIVATIONS
from speech.modelfile.spec import LayerSpec, ModelFileError
from speech.net.keras_models import build_model, layers_of, load_model, save_model
from speech.net.layers import ModifiedReLU
from speech.sound.stft import context_frames, istft, stft

ROOT = Path(__file__).parent.parent
EPSILON = 1e-5
VALUES = np.array(
    [-1e30, -50, -1, -1e-5, 0, 1e-6, EPSILON, 2e-5, 0.5, 1 + EPSILON, 3, 1e30], np.float32
)

#: What the documentation of `speech.net.layers` tells a stranger to write.
STRANGER = """
import sys, keras
@keras.saving.register_keras_serializable("icse")
class ModifiedReLU(keras.layers.Layer):
    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, a):
        e = self.epsilon
        return keras.ops.where(a >= e, a, e / (1 + e - keras.ops.minimum(a, e)))

model = keras.models.load_model(sys.argv[1], compile=False)
assert "speech" not in sys.modules
print(repr(float(keras.ops.sum(model(keras.ops.ones((1, model.input_shape[-1])))))))
"""


def reference(a):
    """The formula of Liu et al., in float64."""
    a = float(a)
    return a if a >= EPSILON else -EPSILON / (a - 1 - EPSILON)


def slope(a):
    return 1.0 if a >= EPSILON else EPSILON / (float(a) - 1 - EPSILON) ** 2


def test_modified_relu_is_the_formula():
    expected = [reference(value) for value in VALUES]
    by_keras = keras.ops.convert_to_numpy(ModifiedReLU()(VALUES))
    assert_allclose(by_keras, expected, rtol=1e-5, atol=1e-12)
    assert_allclose(modified_relu(VALUES), expected, rtol=1e-5, atol=1e-12)
    assert modified_relu(VALUES).dtype == np.float32
    assert_allclose(modified_relu(VALUES.astype(float)), expected, rtol=1e-5, atol=1e-15)
    assert (by_keras[1:] > 0).all()


def test_its_gradient_is_finite_everywhere_and_one_at_the_junction():
    tf = pytest.importorskip("tensorflow")
    values = tf.constant(VALUES)
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(ModifiedReLU()(values))
    gradient = tape.gradient(total, values).numpy()
    assert np.isfinite(gradient).all()
    assert_allclose(gradient, [slope(value) for value in VALUES], rtol=1e-4, atol=1e-12)
    assert gradient[list(VALUES).index(np.float32(EPSILON))] == 1


def test_layer_comes_back_from_its_configuration():
    layer = ModifiedReLU(epsilon=0.01, name="act")
    assert ModifiedReLU.from_config(layer.get_config()).epsilon == 0.01
    assert keras.saving.get_registered_name(ModifiedReLU) == "icse>ModifiedReLU"
    with pytest.raises(ValueError, match="epsilon is 0, expected"):
        ModifiedReLU(0)


@pytest.fixture(scope="module")
def dae_file(tmp_path_factory):
    model, conventions = build_dae("128", seed=3)
    path = tmp_path_factory.mktemp("models") / "dae.h5"
    save_model(model, path, {"kind": "autoencoder", **conventions.to_json()})
    return path


@pytest.fixture(scope="module")
def expert_file(tmp_path_factory):
    model, conventions = build_expert("512x2", seed=3)
    path = tmp_path_factory.mktemp("models") / "expert.h5"
    save_model(model, path, {"kind": "mask", **conventions.to_json()})
    return path


def test_networks_are_those_of_the_paper():
    shapes = {
        ("dae", "128"): [(1539, 128), (128, 513)],
        ("dae", "2048x2"): [(513, 2048), (2048, 2048), (2048, 513)],
        ("expert", "512x2"): [(1539, 512), (512, 512), (512, 513)],
        ("expert", "2048x2"): [(1539, 2048), (2048, 2048), (2048, 513)],
    }
    for (what, net), expected in shapes.items():
        model, conventions = (build_dae if what == "dae" else build_expert)(net)
        assert [w.shape for w in model.get_weights()[::2]] == expected
        assert model.input_shape == (None, conventions.num_inputs)
        drops = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
        assert len(drops) == len(expected)
        assert_allclose([layer.rate for layer in drops], 0.2, rtol=1e-12, atol=0)
        ends_in = model.layers[-1]
        assert isinstance(ends_in, ModifiedReLU) or ends_in.activation.__name__ == "sigmoid"


def test_seeds_make_the_weights():
    one, same, other = (build_expert(seed=seed)[0].get_weights() for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])
    with pytest.raises(ValueError, match="'64'; a DAE is one of 128, 2048x2"):
        build_dae("64")


def test_a_file_opens_without_importing_anything_first(dae_file):
    code = (
        "import sys; from speech.net.keras_models import load_model; "
        "load_model(sys.argv[1]); assert 'mnn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, dae_file], check=True, cwd=ROOT)


def test_a_stranger_opens_it_with_the_class_of_the_documentation(dae_file, tmp_path):
    import speech.net.layers

    body = STRANGER[STRANGER.index("class Mod") : STRANGER.index("model =")]
    documented = "\n".join(line[4:] for line in speech.net.layers.__doc__.splitlines())
    assert body.strip() in documented
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, dae_file],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    ours = load_model(dae_file)(np.ones((1, 1539), np.float32))
    assert_allclose(float(done.stdout), float(np.sum(ours)), rtol=1e-5, atol=1e-6)


def test_a_setting_out_of_range_is_refused(tmp_path):
    from speech.modelfile.h5 import write_model_file

    layers = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, 4]}),
        LayerSpec("icse>ModifiedReLU", "act", {"epsilon": 0.0}),
    ]
    with pytest.raises(ModelFileError, match="'epsilon' is 0.0, expected a number from 1e-12"):
        write_model_file(tmp_path / "bad.h5", layers, {})


@pytest.mark.parametrize("which", ["dae_file", "expert_file"])
def test_numpy_and_keras_give_the_same(which, request, rng):
    path = request.getfixturevalue(which)
    frames = np.abs(rng.standard_normal((9, 1539))).astype(np.float32)
    by_keras = keras.ops.convert_to_numpy(load_model(path)(frames))
    by_numpy = DenseNetwork(read_model_file(path).layers)(frames)
    assert by_numpy.dtype == np.float32
    assert_allclose(by_numpy, by_keras, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numpy_and_keras_know_the_same_activations(activation, rng):
    kernel = rng.normal(size=(4, 3)).astype(np.float32)
    settings = {"units": 3, "activation": activation, "use_bias": False}
    layers = [
        LayerSpec("InputLayer", "in", {"batch_shape": [None, 4]}),
        LayerSpec("Dense", "dense", settings, {"kernel": kernel}),
        LayerSpec("Activation", "act", {"activation": activation}),
    ]
    frames = rng.normal(0, 3, (20, 4)).astype(np.float32)
    by_keras = keras.ops.convert_to_numpy(build_model(layers)(frames))
    assert_allclose(DenseNetwork(layers)(frames), by_keras, rtol=1e-5, atol=1e-6)


def test_dropout_is_drawn_when_asked_for(dae_file, rng):
    dae = Autoencoder(dae_file)
    frames = np.abs(rng.standard_normal((50, 513))).astype(np.float32)
    plain = dae.reconstruct(frames)
    draws = [dae.reconstruct(frames, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2]) and not np.array_equal(draws[0], plain)
    layer = LayerSpec("Dropout", "drop", {"rate": 0.2})
    dense = LayerSpec(
        "Dense", "d", {"activation": "linear"}, {"kernel": np.eye(100, dtype=np.float32)}
    )
    dropped = DenseNetwork([layer, dense])(np.ones((2000, 100), np.float32), rng)
    assert_allclose(np.unique(dropped), [0, 1.25], rtol=1e-6, atol=0)
    assert_allclose(dropped.mean(), 1, rtol=0, atol=0.01)


def test_an_expert_masks_the_mixture_at_any_level(expert_file, rng):
    noisy = rng.standard_normal(5000).astype(np.float32)

    def expert(signal):
        signal = np.asarray(signal, np.float32)
        return opened.signal(signal, level(signal), Place())

    opened = open_expert(expert_file)
    estimate = expert(noisy)
    assert estimate.shape == noisy.shape and estimate.dtype == np.float32
    spectra = stft(noisy)
    frames = context_frames(scaled_magnitudes(spectra, level(noisy)))
    mask = keras.ops.convert_to_numpy(load_model(expert_file)(frames))
    assert mask.min() >= 0 and mask.max() <= 1
    assert_allclose(estimate, istft(mask * spectra, 5000), rtol=1e-3, atol=1e-5)
    assert_allclose(expert(1e-3 * noisy), 1e-3 * estimate, rtol=1e-3, atol=1e-7)
    assert not expert(np.zeros(300)).any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "waveform"}, "kind 'waveform', expected 'mask'"),
        ({"sample_rate_hz": 8000}, "sample_rate_hz 8000, expected 16000"),
        ({"input_scale": "peak"}, "input_scale 'peak', expected 'utterance_rms'"),
        ({"context": 2}, "context 2 make no sense"),
        ({"context": 1}, "takes 1539 values and gives 513, but its speech_meta calls for 513"),
        ({"stft": {"frame": 1000, "hop": 300}}, "multiple of the hop"),
        ({"stft": {"size": 3}}, "size"),
        ({"stft": 7}, "stft 7"),
    ],
)
def test_a_file_that_takes_something_else_is_refused(expert_file, tmp_path, change, reason):
    from speech.modelfile.h5 import write_model_file

    file = read_model_file(expert_file)
    write_model_file(tmp_path / "other.h5", file.layers, {**file.meta, **change})
    with pytest.raises(ValueError, match=f"other.h5.*{reason}"):
        load_network(tmp_path / "other.h5", "mask")


def test_a_convolution_is_not_run_by_numpy():
    model = keras.Sequential([keras.Input((None, 1)), keras.layers.Conv1D(1, 3)])
    with pytest.raises(ValueError, match="no Dense layer"):
        DenseNetwork(layers_of(model))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.ReLU()])
    with pytest.raises(ValueError, match="is a ReLU, expected Dense"):
        DenseNetwork(layers_of(model))
