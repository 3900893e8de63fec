"""The block-transform convolution against naive float64 oracles."""

import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.net import blockconv
from speech.net.blockconv import Activation, Signal, Spectra
from tests.reference import convolution_oracle as oracle


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
def test_the_kernels_compile_wherever_there_is_a_compiler():
    """Without this, kernels that do not compile would turn the other tests into skips."""
    assert blockconv.is_available()


needs_kernels = pytest.mark.skipif(not blockconv.is_available(), reason="no C compiler here")

#: (time, in, out, taps): the network's layers, odd sizes, one sample, more than two SIMD vectors.
SHAPES = [
    (3000, 30, 30, 55),
    (1000, 1, 30, 55),
    (1000, 30, 1, 55),
    (1, 3, 5, 55),
    (20, 2, 2, 55),
    (777, 17, 33, 7),
    (500, 40, 70, 16),
    (300, 5, 4, 1),
    (129, 16, 16, 128),
]


def relative(found, expected):
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_oracle(shape, threads, rng):
    num_samples, num_in, num_out, taps = shape
    signal = rng.standard_normal((num_samples, num_in)).astype(np.float32)
    kernel = rng.standard_normal((taps, num_in, num_out)).astype(np.float32)
    gradient = rng.standard_normal((num_samples, num_out)).astype(np.float32)
    bias = rng.standard_normal(num_out).astype(np.float32)
    pad = (taps - 1) // 2
    output, sums = blockconv.convolve(
        signal,
        Spectra.of(kernel, threads),
        pad=pad,
        bias=blockconv.pad_channels(bias),
        threads=threads,
    )
    assert sums is None
    assert relative(output, oracle.convolve(signal, kernel, pad, num_samples) + bias) < 1e-5
    back, _ = blockconv.convolve(
        gradient, Spectra.of(kernel[::-1].transpose(0, 2, 1)), pad=taps - 1 - pad, threads=threads
    )
    assert relative(back, oracle.input_gradient(gradient, kernel, pad, num_samples)) < 1e-5
    found = blockconv.filter_gradient(signal, gradient, taps=taps, pad=pad, threads=threads)
    assert relative(found, oracle.filter_gradient(signal, gradient, taps, pad)) < 1e-5


@needs_kernels
def test_valid_padding_gives_fewer_outputs(rng):
    signal = rng.standard_normal((400, 3)).astype(np.float32)
    kernel = rng.standard_normal((9, 3, 2)).astype(np.float32)
    out = np.empty((392, 2), np.float32)
    blockconv.convolve(signal, Spectra.of(kernel), pad=0, out=out)
    assert relative(out, oracle.convolve(signal, kernel, 0, 392)) < 1e-5


@needs_kernels
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_do_not_cancel(offset, rng):
    signal = rng.standard_normal((5000, 20)).astype(np.float32)
    kernel = rng.standard_normal((55, 20, 18)).astype(np.float32)
    bias = np.full(18, offset, np.float32)
    output, sums = blockconv.convolve(
        signal, Spectra.of(kernel), pad=27, bias=blockconv.pad_channels(bias), moments=True
    )
    mean, variance = blockconv.merge_moments(sums, 5000, 55)
    exact = output.astype(np.float64)
    assert_allclose(mean[:18], exact.mean(0), rtol=1e-6, atol=1e-5)
    assert_allclose(variance[:18], exact.var(0), rtol=1e-5, atol=0)


@needs_kernels
def test_activation_is_applied_while_reading_and_outside_is_zero(rng):
    raw = rng.standard_normal((600, 20)).astype(np.float32)
    scale, shift = rng.standard_normal((2, 20)).astype(np.float32)
    kernel = rng.standard_normal((55, 20, 7)).astype(np.float32)
    activation = Activation(blockconv.pad_channels(scale), blockconv.pad_channels(shift), 0.3)
    found, _ = blockconv.convolve(Signal(raw, activation), Spectra.of(kernel), pad=27)
    activated = raw * scale + shift
    activated = np.where(activated < 0, 0.3 * activated, activated)
    assert relative(found, oracle.convolve(activated, kernel, 27, 600)) < 1e-5


@needs_kernels
def test_same_call_gives_same_bits(rng):
    signal = rng.standard_normal((4000, 30)).astype(np.float32)
    kernel = rng.standard_normal((55, 30, 30)).astype(np.float32)
    first = blockconv.convolve(signal, Spectra.of(kernel), pad=27, threads=2)[0]
    second = blockconv.convolve(signal, Spectra.of(kernel), pad=27, threads=1)[0]
    assert np.array_equal(first, second)
    gradients = [
        blockconv.filter_gradient(signal, first, taps=55, pad=27, threads=2) for _ in range(2)
    ]
    assert np.array_equal(*gradients)


@needs_kernels
@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (np.zeros((10, 3)), "float32"),
        (np.zeros(10, np.float32), "float32"),
        (np.zeros((10, 4), np.float32), "3 channels"),
        (np.zeros((20, 3), np.float32)[::2], "contiguous"),
    ],
)
def test_wrong_signals_are_refused(signal, message):
    spectra = Spectra.of(np.zeros((5, 3, 2), np.float32))
    with pytest.raises(ValueError, match=message):
        blockconv.convolve(signal, spectra, pad=2)


@needs_kernels
def test_wrong_kernel_is_refused():
    with pytest.raises(ValueError, match=r"\[taps, in, out\]"):
        Spectra.of(np.zeros((5, 3), np.float32))


def test_without_a_compiler_it_says_so(tmp_path):
    code = """
        import logging
        logging.basicConfig(level=logging.INFO)
        from speech.net import blockconv
        print(blockconv.is_available())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        check=True,
    )
    assert done.stdout.strip() == "False"
    assert "no C compiler found" in done.stderr


def test_a_broken_compiler_is_no_error(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", "from speech.net import blockconv; print(blockconv.is_available())"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CC": str(compiler)},
        check=True,
    )
    assert done.stdout.strip() == "False"
