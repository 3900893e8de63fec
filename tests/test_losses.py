"""Losses: gradients against finite differences, padding, both forms, silence, known values."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.net.losses import LOSSES, RESOLUTIONS, find_loss


def make_batch(rng, lengths, dtype=np.float64):
    clean = np.zeros((len(lengths), max(lengths), 1), dtype)
    enhanced = np.zeros_like(clean)
    for row, length in enumerate(lengths):
        clean[row, :length, 0] = 0.3 * np.tanh(rng.standard_normal(length))
        enhanced[row, :length, 0] = clean[row, :length, 0] + 0.1 * rng.standard_normal(length)
    return clean, enhanced, np.array(lengths, np.int32)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name, rng):
    loss = find_loss(name)
    clean, enhanced, lengths = make_batch(rng, [700, 333])
    _, gradient = loss.value_and_gradient(clean, enhanced, lengths)
    assert gradient.dtype == np.float64
    for _ in range(3):
        direction = rng.standard_normal(enhanced.shape)
        direction[1, 333:] = 0
        step = 1e-7
        ends = [
            loss.value_and_gradient(clean, enhanced + sign * step * direction, lengths)[0]
            for sign in (1, -1)
        ]
        assert_allclose(
            np.sum(gradient * direction), (ends[0] - ends[1]) / (2 * step), rtol=2e-5, atol=1e-8
        )


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_automatic_differentiation(name, rng):
    tf = pytest.importorskip("tensorflow")
    loss = find_loss(name)
    clean, enhanced, lengths = make_batch(rng, [2100, 1500, 90])
    with tf.GradientTape() as tape:
        variable = tf.Variable(enhanced)
        value = loss.value(tf.constant(clean), variable, lengths)
    expected = tape.gradient(value, variable)
    ours, gradient = loss.value_and_gradient(clean, enhanced, lengths)
    assert_allclose(ours, value, rtol=1e-10)
    assert_allclose(gradient, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_both_forms_agree_in_float32(name, rng):
    loss = find_loss(name)
    clean, enhanced, lengths = make_batch(rng, [4000, 3100], np.float32)
    value, gradient = loss.value_and_gradient(clean, enhanced, lengths)
    assert gradient.dtype == np.float32
    assert_allclose(value, float(loss.value(clean, enhanced, lengths)), rtol=1e-5)
    exact = loss.value_and_gradient(clean.astype(float), enhanced.astype(float), lengths)
    assert_allclose(value, exact[0], rtol=1e-5)
    assert_allclose(gradient, exact[1], rtol=1e-3, atol=1e-4 * np.abs(exact[1]).max())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("length", [1, 200, 1280, 1281])
def test_padding_changes_neither_value_nor_gradient(name, length, rng):
    loss = find_loss(name)
    clean, enhanced, lengths = make_batch(rng, [length])
    value, gradient = loss.value_and_gradient(clean, enhanced, lengths)
    padded = [np.pad(x, [[0, 0], [0, 777], [0, 0]]) for x in (clean, enhanced)]
    padded[1][:, length:] = 5.0  # even if a network does not mask its output
    longer, longer_gradient = loss.value_and_gradient(*padded, lengths)
    assert longer == value
    assert np.array_equal(longer_gradient[:, :length], gradient)
    assert not longer_gradient[:, length:].any()
    for pair in ((clean, enhanced), padded):
        assert_allclose(float(loss.value(*pair, lengths)), value, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_is_the_mean_of_its_utterances(name, rng):
    loss = find_loss(name)
    clean, enhanced, lengths = make_batch(rng, [900, 400])
    alone = [
        loss.value_and_gradient(clean[[row], :length], enhanced[[row], :length], [length])
        for row, length in enumerate(lengths)
    ]
    value, gradient = loss.value_and_gradient(clean, enhanced, lengths)
    assert_allclose(value, np.mean([one for one, _ in alone]), rtol=1e-12)
    assert_allclose(gradient[1, :400], alone[1][1][0] / 2, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_silence_is_finite(name, rng):
    loss = find_loss(name)
    signal = 0.1 * rng.standard_normal((1, 2000, 1)).astype(np.float32)
    silence = np.zeros_like(signal)
    for clean, enhanced in ((silence, signal), (signal, silence), (silence, silence)):
        value, gradient = loss.value_and_gradient(clean, enhanced, [2000])
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert_allclose(float(loss.value(clean, enhanced, [2000])), value, rtol=1e-5, atol=1e-7)


def test_sisdr_is_that_of_its_definition_and_knows_the_sign(rng):
    loss = find_loss("sisdr")
    clean, enhanced, lengths = make_batch(rng, [8000])
    s, e = clean[0, :, 0], enhanced[0, :, 0]
    target = np.dot(e, s) / np.dot(s, s) * s
    expected = -10 * np.log10(np.sum(target**2) / np.sum((e - target) ** 2))
    value = loss.value_and_gradient(clean, enhanced, lengths)[0]
    assert value == pytest.approx(expected, abs=0.1)  # the soft threshold
    assert loss.value_and_gradient(clean, 0.5 * enhanced, lengths)[0] == pytest.approx(value, 0.01)
    assert loss.value_and_gradient(clean, -clean, lengths)[0] > 30
    assert loss.value_and_gradient(clean, clean, lengths)[0] == pytest.approx(-30, abs=0.2)


@pytest.mark.parametrize("name", ["stft", "spectral"])
def test_spectral_losses_equal_their_formulas(name, rng):
    clean, enhanced, lengths = make_batch(rng, [1500])
    s, e = clean[0, :, 0], enhanced[0, :, 0]
    total = np.mean(np.abs(e - s))
    for size, hop in RESOLUTIONS:
        window = np.hanning(size + 1)[:-1]
        window /= np.sqrt(np.sum(window**2))
        starts = [t for t in range(-(size - hop), 1500, hop)]
        spectra = []
        for signal in (s, e):
            padded = np.concatenate([np.zeros(size), signal, np.zeros(size)])
            spectra.append(
                np.array([np.fft.rfft(window * padded[size + t : 2 * size + t]) for t in starts])
            )
        clean_level, level = (np.abs(spectrum) ** 2 + 1e-7 for spectrum in spectra)
        if name == "stft":
            distance = np.linalg.norm(np.sqrt(level) - np.sqrt(clean_level))
            convergence = distance / np.linalg.norm(spectra[0])
            log_error = np.mean(np.abs(np.log(np.sqrt(level / clean_level))))
            total += 0.5 * (convergence + log_error) / len(RESOLUTIONS)
        else:
            magnitudes = [power**0.15 for power in (clean_level, level)]
            compressed = [
                spectrum * power**-0.35
                for spectrum, power in zip(spectra, (clean_level, level), strict=True)
            ]
            total += (
                0.7 * np.mean((magnitudes[1] - magnitudes[0]) ** 2)
                + 0.3 * np.mean(np.abs(compressed[1] - compressed[0]) ** 2)
            ) / len(RESOLUTIONS)
    value = find_loss(name).value_and_gradient(clean, enhanced, lengths)[0]
    assert_allclose(value, total, rtol=1e-5)  # the floor below the root


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="loss is 'l2'; give one of mse, sisdr"):
        find_loss("l2")


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="this is the test for torch")
def test_torch_gives_the_same_value_and_gradient(rng, tmp_path):
    pytest.importorskip("torch")
    import os
    import subprocess
    import sys

    clean, enhanced, lengths = make_batch(rng, [1600, 700], np.float32)
    np.savez(tmp_path / "in.npz", clean=clean, enhanced=enhanced, lengths=lengths)
    code = """
import sys, numpy as np, torch
from speech.net.losses import LOSSES, find_loss
data = np.load(sys.argv[1])
results = {}
for name in LOSSES:
    enhanced = torch.tensor(data["enhanced"], requires_grad=True)
    value = find_loss(name).value(torch.tensor(data["clean"]), enhanced, data["lengths"])
    value.backward()
    results[name] = value.item()
    results[name + "_gradient"] = enhanced.grad.numpy()
np.savez(sys.argv[2], **results)
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")],
        check=True,
        env={**os.environ, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""},
    )
    results = np.load(tmp_path / "out.npz")
    for name in LOSSES:
        value, gradient = find_loss(name).value_and_gradient(clean, enhanced, lengths)
        assert_allclose(results[name], value, rtol=1e-5)
        scale = np.abs(gradient).max()
        assert_allclose(results[f"{name}_gradient"], gradient, rtol=1e-3, atol=1e-3 * scale)
