"""The network: counts of the paper, lengths, seeds, and the forward pass against the oracle."""

import subprocess
import sys

import numpy as np
import pytest

from speech.net.fcn import FCNConfig, build_fcn
from tests.reference.fcn_oracle import forward


def parts_of(model):
    """Returns (hidden, last) of a Keras FCN as the oracle takes them."""
    weights = {layer.name: layer.get_weights() for layer in model.layers}
    count = sum(name.startswith("conv") for name in weights)
    hidden = [(*weights[f"conv{i}"], *weights[f"norm{i}"]) for i in range(1, count)]
    return hidden, weights[f"conv{count}"]


def run(model, samples):
    """Runs a Keras model on one utterance [time] -> [time]."""
    return np.asarray(model(np.float32(samples)[None, :, None]))[0, :, 0]


def test_counts_are_the_papers():
    config = FCNConfig()
    assert config.num_convolution_weights == 300_300
    assert config.num_parameters == 300_931
    assert config.receptive_field == 433
    model = build_fcn(config)
    assert model.count_params() == 300_931
    assert [layer.name for layer in model.layers[:4]] == ["conv1", "norm1", "act1", "conv2"]
    assert [layer.name for layer in model.layers[-2:]] == ["conv8", "output"]


def test_counts_agree_with_keras_for_uneven_filters():
    config = FCNConfig(num_hidden_layers=3, num_filters=[4, 1, 6], kernel_size=7)
    assert config.num_filters == (4, 1, 6)
    assert build_fcn(config).count_params() == config.num_parameters


def test_forward_pass_agrees_with_the_oracle():
    rng = np.random.default_rng(1)
    model = build_fcn(seed=3)
    for layer in model.layers:  # fresh biases, gammas and betas are 0 or 1 and would hide errors
        if layer.name.startswith(("conv", "norm")):
            first, second = layer.get_weights()
            layer.set_weights([first * rng.uniform(0.5, 1.5), second + rng.normal(0, 0.2)])
    samples = rng.uniform(-1, 1, 2_000)
    expected = forward(samples, *parts_of(model))
    np.testing.assert_allclose(run(model, samples), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 2, 54, 433, 1_001])
def test_output_is_as_long_as_the_input(num_samples):
    model = build_fcn(FCNConfig(num_hidden_layers=2, num_filters=3))
    output = run(model, np.random.default_rng(0).uniform(-1, 1, num_samples))
    assert output.shape == (num_samples,)
    assert np.isfinite(output).all()
    assert np.abs(output).max() <= 1


def test_silence_stays_finite():
    output = run(build_fcn(FCNConfig(num_hidden_layers=2, num_filters=3)), np.zeros(100))
    assert np.isfinite(output).all()


def test_seed_decides_the_weights():
    config = FCNConfig(num_hidden_layers=3, num_filters=4, kernel_size=9)
    first, again, other = (build_fcn(config, seed=seed) for seed in (5, 5, 6))
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(first.get_weights()[0] != other.get_weights()[0])
    kernels = [layer.get_weights()[0] for layer in first.layers if layer.name in ("conv2", "conv3")]
    assert np.any(kernels[0] != kernels[1])
    assert np.abs(kernels[0]).max() <= 0.05


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected an integer of at least 1"),
        ({"kernel_size": 5.0}, "kernel_size is 5.0"),
        ({"num_filters": True}, "num_filters is True"),
        ({"num_filters": (30, 30)}, "lists 2 layers, expected one number for each of the 7"),
        ({"num_hidden_layers": 2, "num_filters": (3, -1)}, "num_filters is -1"),
        ({"normalization_epsilon": 0.0}, "normalization_epsilon is 0.0"),
        ({"negative_slope": float("nan")}, "negative_slope is nan"),
        ({"num_filters": 99_999_999}, "more than the 512 MiB that a model file can hold"),
    ],
)
def test_bad_config_is_refused(values, match):
    with pytest.raises(ValueError, match=match):
        FCNConfig(**values)


def test_bad_seed_is_refused():
    with pytest.raises(ValueError, match="seed is -1"):
        build_fcn(seed=-1)


def test_import_does_not_load_keras():
    code = "import sys, speech.net.fcn; sys.exit(bool({'keras', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
