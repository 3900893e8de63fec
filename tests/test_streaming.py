"""Streams: block by block what the whole gives, in C and in NumPy; refusals."""

import dataclasses
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from speech.modelfile.read import read_model_file
from speech.modelfile.spec import ModelFileError
from speech.net import blockconv
from speech.net.enhancer import BASELINE_MODEL, DEFAULT_MODEL, Enhancer
from speech.net.plan import array_floats, plan_of
from speech.net.streaming import Stream
from speech.net.timefrequency import SIZES, TimeFrequencyConfig
from speech.sound.audio import read_audio
from speech.sound.stft import StftConfig
from tests.builders import assert_near, conv2d, graph, mask_layers, write_mask_network
from tests.reference import timefrequency_oracle
from tests.strange_networks import STRANGE, model_of

ROOT = Path(__file__).parent.parent
FRAME = 512


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_mask_network(tmp_path_factory.mktemp("net") / "tiny.h5")


@pytest.fixture(scope="module", params=["fast", "numpy"])
def engine(request):
    if request.param == "fast" and not blockconv.is_available():
        pytest.skip("no C compiler here")
    return request.param


@pytest.fixture
def stream(file, engine):
    stream = Stream(file, engine=engine)
    assert stream.engine == {"fast": "c", "numpy": "numpy"}[engine]
    return stream


def in_blocks(stream, signal, size):
    parts = [stream.push(signal[at : at + size]) for at in range(0, len(signal), size)]
    return np.concatenate([*parts, stream.flush()])


# --------------------------------------------------------------------------------------------
# The numbers


def test_a_stream_gives_what_the_definition_gives(file, stream, noisy):
    signal = noisy[:2500]
    found = in_blocks(stream, signal, 333)
    assert found.dtype == np.float32
    assert_near(found, timefrequency_oracle.enhanced(file, signal)[1])


@pytest.mark.parametrize(
    "config",
    [
        TimeFrequencyConfig(9, 7, (2, 1, 5), normalization="none"),
        TimeFrequencyConfig(16, 6, (1,), power=0.5),
        TimeFrequencyConfig(33, 3, (1, 1), stft=StftConfig(512, 128, "sqrt_hann")),
    ],
    ids=["no normalisation", "power", "hop"],
)
def test_other_shapes_and_conventions(config, engine, tmp_path, noisy):
    file = write_mask_network(tmp_path / "other.h5", mask_layers(config), config)
    signal = noisy[:1500]
    _, expected = timefrequency_oracle.enhanced(file, signal)
    assert_near(in_blocks(Stream(file, engine=engine), signal, 700), expected)


@pytest.mark.parametrize("size", [1, 100, 256, 257, 3001, 9000])
def test_the_size_of_blocks_changes_nothing(stream, noisy, size):
    signal = noisy[: min(60 * size + 50, len(noisy))]
    assert_array_equal(in_blocks(stream, signal, size), in_blocks(stream, signal, len(signal)))


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_forms_give_what_speech_enhance_gives(name, tmp_path, engine, noisy):
    config = SIZES[name]
    file = write_mask_network(tmp_path / "form.icse", mask_layers(config), config)
    assert_near(in_blocks(Stream(file, engine=engine), noisy, 1000), Enhancer(file.path)(noisy))


def test_the_default_model_on_speech(engine):
    signal = read_audio(next((ROOT / "speech" / "minicorpus").rglob("*.flac"))).samples[:40000]
    expected = Enhancer(DEFAULT_MODEL)(signal)
    found = in_blocks(Stream(DEFAULT_MODEL, engine=engine), signal, 480)
    assert 0.1 < np.abs(expected).max() <= 1
    assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_samples", [0, 1, 255, 256, 257, 511, 512, 513, 4097])
def test_as_many_samples_come_out_as_went_in(file, stream, noisy, num_samples):
    signal = noisy[:num_samples]
    found = in_blocks(stream, signal, 300)
    assert found.shape == (num_samples,)
    if num_samples:
        assert_near(found, Enhancer(file.path)(signal))


def test_a_sample_leaves_within_the_latency(stream, noisy):
    assert stream.latency_samples == FRAME and stream.sample_rate_hz == 16000
    given = 0
    for place in range(2000):
        given += len(stream.push(noisy[place : place + 1]))
        assert place + 1 - FRAME < given <= max(place + 1 - 256, 0) + 1


# --------------------------------------------------------------------------------------------
# State


def test_a_new_signal_begins_after_the_end_of_one_and_after_a_reset(stream, noisy):
    first = in_blocks(stream, noisy, 1000)
    assert_array_equal(in_blocks(stream, noisy, 700), first)
    stream.push(noisy[:3333])
    stream.reset()
    assert_array_equal(in_blocks(stream, noisy, 700), first)


def test_streams_of_one_plan_do_not_meddle(file, engine, noisy):
    one = Stream(file, engine=engine)
    other = Stream(one.plan, engine=engine)
    parts = ([], [])
    for at in range(0, 6000, 600):
        parts[0].append(one.push(noisy[at : at + 600]))
        parts[1].append(other.push(-noisy[at : at + 600]))
    alone = Stream(one.plan, engine=engine)
    for own, sign in zip(parts, (1, -1), strict=True):
        alone.reset()
        assert_array_equal(np.concatenate(own), alone.push(sign * noisy[:6000]))


@pytest.mark.skipif(not blockconv.is_available(), reason="needs a C compiler")
def test_streams_of_one_plan_share_its_kernels():
    one = Stream(DEFAULT_MODEL)
    own = 4 * (one.plan.tensor_floats + array_floats(one.plan.conventions))
    tracemalloc.start()
    try:
        other = Stream(one.plan)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    kernels = sum(layer.kernel.nbytes for layer in other.plan.layers if layer.kernel is not None)
    assert own <= taken < own + kernels / 4


def test_memory_does_not_grow_with_the_signal(stream, noisy):
    stream.push(noisy)
    tracemalloc.start()
    stream.push(noisy[:3000])
    early = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        stream.push(noisy)
    late = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert late < early + 2000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("place", [0, 4000])
def test_a_hop_without_measure_is_silence(stream, noisy, bad, place):
    spoiled = noisy.copy()
    spoiled[place] = bad
    mute = noisy.copy()
    start = place // 256 * 256
    mute[start : start + 256] = 0
    expected = in_blocks(stream, mute, 1000)
    assert stream.num_silenced == 0
    assert_array_equal(in_blocks(stream, spoiled, 1000), expected)
    assert stream.num_silenced == 1
    stream.reset()
    assert stream.num_silenced == 0


def test_a_network_beyond_measure_is_silent_and_recovers(engine):
    """Weights of 1e30: speech overflows, silence does not, and nothing of it stays."""
    layers = graph(conv2d("hidden", "input", 3, 8), conv2d("mask", "hidden", 8, 2))
    for place, gain in ((-2, 0.0), (-1, 1.0)):
        weights = {n: np.full(a.shape, 1e30, "f4") for n, a in layers[place].weights.items()}
        weights["bias"] = np.full_like(weights["bias"], gain)
        layers = list(layers)
        layers[place] = dataclasses.replace(layers[place], weights=weights)
    stream = Stream(model_of(layers), engine=engine)
    found = stream.push(np.concatenate([np.ones(2000), np.zeros(4000)]))
    assert not found.any() and stream.num_silenced >= 7
    before = stream.num_silenced
    stream.push(np.zeros(4000))
    assert stream.num_silenced == before


# --------------------------------------------------------------------------------------------
# Refusals


def test_a_network_that_looks_ahead_is_refused():
    layers = graph(conv2d("mask", "input", 3, 2, (3, 1)))
    with pytest.raises(ModelFileError, match="^tiny.h5: .* 1 frames ahead, expected a causal one"):
        Stream(model_of(layers))


def test_a_waveform_network_is_refused():
    with pytest.raises(ModelFileError, match="fcn.h5: is of the kind 'waveform', expected"):
        Stream(BASELINE_MODEL)


@pytest.mark.parametrize("name", sorted(STRANGE))
def test_networks_of_strangers_run_or_are_refused(name, tmp_path, engine, noisy):
    layers, _ = STRANGE[name]
    file = write_mask_network(tmp_path / "strange.h5", layers)
    refused = {
        "bands of the input": "'mask'",
        "an activation of the input": "'mask'",
        "a sum with the input": "'mask'",
        "more taps than the kernels take": "'mask'",
        "branches of different reach": "'both'",
        "a frame late": "'c'",
    }
    if name in refused:
        with pytest.raises(ModelFileError, match=f"strange.h5: layer {refused[name]}"):
            plan_of(file)
    else:
        signal = noisy[:1500]
        _, expected = timefrequency_oracle.enhanced(file, signal)
        assert_near(in_blocks(Stream(file, engine=engine), signal, 300), expected)


@pytest.mark.parametrize("bad", [np.zeros((3, 2), "f4"), np.zeros(3, np.int16), np.float32(1)])
def test_what_is_no_signal_is_refused(stream, bad):
    with pytest.raises(ValueError, match="samples are .* expected float"):
        stream.push(bad)
    with pytest.raises(ValueError, match="engine must be 'fast' or 'numpy'"):
        Stream(read_model_file(DEFAULT_MODEL), engine="keras")


def test_no_tensorflow_is_loaded():
    code = (
        "import sys, numpy as np; from speech.net.streaming import Stream\n"
        f"Stream({str(DEFAULT_MODEL)!r}).push(np.zeros(4000))\n"
        "assert not {'tensorflow', 'keras', 'scipy.signal'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
