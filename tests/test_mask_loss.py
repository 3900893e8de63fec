"""The loss of the network over time and frequency in C and NumPy: that of Keras, its own slope."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from speech.net import blockconv, mask_loss
from speech.net.mask_loss import MaskLoss
from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency, features
from speech.net.training_model import MaskTrainingModel
from speech.sound.stft import StftConfig

CONFIG = TimeFrequencyConfig(8, 4, (1,))
NONE = {"magnitude": 0, "complex": 0, "consistency": 0, "waveform": 0, "si_sdr": 0}
#: A loss needs one part besides consistency.
PARTS = {
    "magnitude": MaskLoss(**NONE | {"magnitude": 3}),
    "complex": MaskLoss(**NONE | {"complex": 2}),
    "consistency": MaskLoss(**NONE | {"complex": 1e-9, "consistency": 5}),
    "waveform": MaskLoss(**NONE | {"waveform": 4}),
    "si_sdr": MaskLoss(**NONE | {"si_sdr": 0.1}),
    "default": MaskLoss(),
}
each_part = pytest.mark.parametrize("part", PARTS)


@pytest.fixture(params=["c", "numpy"])
def engine(request, monkeypatch):
    """Runs a test with the C kernels and as if there were no compiler."""
    if request.param == "numpy":
        monkeypatch.setattr(blockconv, "is_available", lambda: False)
    elif not blockconv.is_available():
        pytest.skip("there is no C compiler")


@pytest.fixture
def batch(rng):
    """Noisy, clean and a mask; the clean signal of the last piece is silent."""
    clean = rng.normal(0, 0.1, (3, 3000)).astype("f4") * rng.uniform(0, 1, (3, 1)).astype("f4")
    clean[-1] = 0
    noisy = clean + rng.normal(0, 0.05, clean.shape).astype("f4")
    frames = CONFIG.stft.num_frames(clean.shape[1])
    mask = rng.normal(0, 0.5, (3, frames, 256, 2)).astype("f4")
    return noisy, clean, mask


def ours(batch, loss, mask=None, threads=2):
    noisy, clean, drawn = batch
    prepared = mask_loss.prepare(noisy, clean, CONFIG, threads)
    given = drawn if mask is None else mask
    return mask_loss.value_and_gradient(given, prepared, loss, CONFIG, threads)


@each_part
def test_loss_and_gradient_are_those_of_keras(part, batch, engine):
    noisy, clean, mask = batch
    value, gradient = ours(batch, PARTS[part])
    model = MaskTrainingModel(build_time_frequency(CONFIG), CONFIG, PARTS[part], engine="keras")
    given = tf.constant(mask)
    with tf.GradientTape() as tape:
        tape.watch(given)
        real, imaginary = model._compressed(tf.constant(noisy))
        first, second = given[..., 0], given[..., 1]
        estimate = tf.stack(
            [real * first - imaginary * second, real * second + imaginary * first], -1
        )
        wanted = model.compute_loss(y=clean[..., np.newaxis], y_pred=estimate)
    slope = tape.gradient(wanted, given).numpy()
    assert value == pytest.approx(float(wanted), rel=1e-4)
    assert np.abs(gradient - slope).max() <= 1e-4 * np.abs(slope).max()


@each_part
def test_gradient_is_the_slope(part, batch, rng, engine):
    """Along its own direction and along a random one, by central differences."""
    mask, loss = batch[2], PARTS[part]
    _, gradient = ours(batch, loss)
    for direction in (gradient, rng.normal(0, 1, mask.shape)):
        direction = (direction / np.linalg.norm(direction)).astype("f4")
        step = 0.1
        above, below = (ours(batch, loss, mask + sign * step * direction)[0] for sign in (1, -1))
        slope = float(np.vdot(gradient, direction))
        largest = float(np.linalg.norm(gradient))
        assert (above - below) / (2 * step) == pytest.approx(slope, abs=0.02 * largest)


def test_threads_change_nothing_and_silence_gives_numbers(batch, engine):
    noisy, clean, mask = batch
    loss = MaskLoss(consistency=1.0)
    results = [ours(batch, loss, threads=threads) for threads in (1, 3)]
    assert results[0][0] == results[1][0]
    assert np.array_equal(results[0][1], results[1][1])
    silent = (np.zeros_like(noisy), np.zeros_like(clean), mask)
    value, gradient = ours(silent, loss)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_features_are_those_of_the_network(batch, engine):
    noisy, clean, _ = batch
    prepared = mask_loss.prepare(noisy, clean, CONFIG, 2)
    assert np.allclose(prepared.features, features(prepared.noisy), rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(not blockconv.is_available(), reason="there is no C compiler")
@pytest.mark.parametrize("num_samples", [1, 100, 511, 4096, 4097])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, power=0.5, stft=StftConfig(512, 128, "hann")),
        dataclasses.replace(CONFIG, power=1.0, stft=StftConfig(512, 64, "sqrt_hann")),
    ],
)
def test_c_and_numpy_agree_for_all_lengths_and_conventions(config, num_samples, rng, monkeypatch):
    clean = rng.normal(0, 0.1, (2, num_samples)).astype("f4")
    noisy = clean + rng.normal(0, 0.05, clean.shape).astype("f4")
    mask = rng.normal(0, 0.5, (2, config.stft.num_frames(num_samples), 256, 2)).astype("f4")
    results = []
    for _ in range(2):
        prepared = mask_loss.prepare(noisy, clean, config, 2)
        value, gradient = mask_loss.value_and_gradient(mask, prepared, MaskLoss(), config, 2)
        results.append((prepared.noisy, prepared.target, np.float64(value), gradient))
        monkeypatch.setattr(blockconv, "is_available", lambda: False)
    for found, wanted in zip(*results, strict=True):
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_shapes_that_do_not_belong_together_are_refused(batch, engine):
    noisy, clean, mask = batch
    with pytest.raises(ValueError, match=r"clean has the shape \(3, 2999\), expected \(3, 3000\)"):
        mask_loss.prepare(noisy, clean[:, 1:], CONFIG, 1)
    with pytest.raises(ValueError, match=r"mask has the shape \(3, 12, 256, 2\), expected"):
        ours(batch, MaskLoss(), mask[:, 1:])


@pytest.mark.skipif(not blockconv.is_available(), reason="there is no C compiler")
def test_a_step_is_that_of_keras(batch, rng):
    noisy, clean, _ = batch
    lengths = np.full(3, noisy.shape[1], np.int32)
    networks = [build_time_frequency(CONFIG) for _ in range(2)]
    weights = [rng.normal(0, 0.3, w.shape) + (w.path[-5:] in ("gamma", "iance")) * 1.0
               for w in networks[0].weights]  # fmt: skip
    losses = []
    for network, engine in zip(networks, ("fast", "keras"), strict=True):
        network.set_weights(weights)
        model = MaskTrainingModel(network, CONFIG, engine=engine)
        assert model.uses_c_kernels == (engine == "fast")
        model.compile(keras.optimizers.SGD(0.01))
        given = (noisy[..., np.newaxis], lengths), clean[..., np.newaxis]
        losses.append(
            [float(model.test_on_batch(*given)), *(model.train_on_batch(*given) for _ in range(2))]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for one, other in zip(networks[0].weights, networks[1].weights, strict=True):
        difference = np.abs(np.asarray(one) - np.asarray(other)).max()
        assert difference <= 1e-4 * np.abs(np.asarray(other)).max() + 1e-6, one.path
