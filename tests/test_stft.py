"""STFT: equal to its definition, inverted exactly at any length, neighbours edge-padded."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from speech.sound.stft import StftConfig, context_frames, istft, magnitudes, neighbour_indices, stft
from tests.reference import stft_oracle


@pytest.mark.parametrize("num_samples", [1, 3, 16, 37])
def test_equals_the_definition(rng, num_samples):
    signal = rng.standard_normal(num_samples)
    config = StftConfig(16, 4)
    expected = stft_oracle.stft(signal.tolist(), 16, 4)
    spectra = stft(signal, config)
    assert spectra.dtype == np.complex128 and len(spectra) == config.num_frames(num_samples)
    assert_allclose(spectra, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 2, 255, 256, 257, 768, 1023, 1024, 1025, 5000, 48001])
@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_the_inverse_gives_the_signal_back(rng, num_samples, dtype, atol):
    signal = rng.uniform(-1, 1, num_samples).astype(dtype)
    back = istft(stft(signal), num_samples)
    assert back.dtype == dtype
    assert_allclose(back, signal, rtol=0, atol=atol)


@pytest.mark.parametrize(("frame", "hop"), [(12, 4), (512, 128), (512, 64)])
def test_other_frames_are_inverted_too(rng, frame, hop):
    signal, config = rng.standard_normal(1000), StftConfig(frame, hop)
    assert_allclose(istft(stft(signal, config), 1000, config), signal, rtol=0, atol=1e-12)


def test_the_default_is_that_of_the_paper(rng):
    spectra = stft(rng.standard_normal(16000).astype(np.float32))
    assert spectra.shape == (66, 513) and spectra.dtype == np.complex64
    assert magnitudes(spectra).dtype == np.float32
    noise = stft(rng.standard_normal(160000))[4:-4]
    assert_allclose(np.mean(np.abs(noise) ** 2), StftConfig().window_energy, rtol=0.05)


def test_neighbours_stop_at_the_ends_of_each_utterance():
    rows = neighbour_indices(np.array([3, 1]), 3)
    assert_array_equal(rows, [[0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 3]])
    frames = np.arange(6.0).reshape(3, 2)
    assert_array_equal(context_frames(frames)[0], [0, 1, 0, 1, 2, 3])
    assert_array_equal(context_frames(frames)[2], [2, 3, 4, 5, 4, 5])
    assert_array_equal(context_frames(frames, 1), frames)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: stft(np.zeros(0)), r"shape \(0,\); \[num_samples\]"),
        (lambda: stft(np.zeros((2, 9))), r"shape \(2, 9\)"),
        (lambda: istft(np.zeros((4, 513)), 9000), r"9000 samples have \(39, 513\)"),
        (lambda: StftConfig(1024, 300), "multiple of the hop"),
        (lambda: StftConfig(1024, 512), "at least 3 times"),
        (lambda: StftConfig(1024.0, 256), "frame is 1024.0"),
        (lambda: StftConfig(window="boxcar"), "'boxcar'; give one of 'hann', 'sqrt_hann'"),
        (lambda: context_frames(np.zeros((3, 2)), 2), "context is 2; give an odd"),
    ],
)
def test_what_makes_no_sense_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
