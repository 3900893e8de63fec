"""Networks over time and frequency at work: right, causal, the same however a signal is cut."""

import dataclasses
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from speech.modelfile.meta import COMPLEX_MASK
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFileError
from speech.net import blockconv, mask_enhancer
from speech.net.mask_enhancer import MaskEnhancer
from speech.net.plan import plan_of
from speech.net.reach import Reach, reach_of, summary_of
from speech.net.timefrequency import SIZES, TimeFrequencyConfig
from tests.builders import (
    TINY,
    assert_near,
    conv2d,
    graph,
    make_speech,
    mask_layers,
    write_mask_network,
)
from tests.hostile import packed_files
from tests.reference import timefrequency_oracle
from tests.strange_networks import STRANGE, model_of

HOP, FRAME = 256, 512


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "tiny.h5"
    write_mask_network(path)
    return path


@pytest.fixture(scope="module")
def file(path):
    return read_model_file(path)


@pytest.fixture(scope="module", params=["fast", "keras"])
def engine(request):
    if request.param == "fast" and not blockconv.is_available():
        pytest.skip("no C compiler here")
    return request.param


@pytest.fixture(scope="module")
def enhancer(file, engine):
    enhancer = MaskEnhancer(file, engine=engine)
    assert enhancer.engine == {"fast": "c", "keras": "keras"}[engine]
    return enhancer


@pytest.fixture(scope="module")
def of_one(engine):
    """A network whose mask is 1 everywhere."""
    layers = graph(conv2d("hidden", "input", 3, 8), conv2d("mask", "hidden", 8, 2))
    weights = {"kernel": np.zeros((1, 1, 8, 2), np.float32), "bias": np.array([1, 0], np.float32)}
    layers = [*layers[:-1], dataclasses.replace(layers[-1], weights=weights)]
    return MaskEnhancer(model_of(layers), engine=engine)


# --------------------------------------------------------------------------------------------
# The numbers


@pytest.fixture(scope="module")
def oracle(file):
    """A signal, the mask and the enhanced signal by definition."""
    signal = make_speech(np.random.default_rng(5), 2500).astype(np.float32)
    return signal, *timefrequency_oracle.enhanced(file, signal)


def test_the_network_gives_what_its_definition_gives(enhancer, oracle):
    signal, mask, expected = oracle
    found = enhancer(signal)
    assert found.dtype == np.float32
    assert_near(found, expected)
    assert 0.05 < np.abs(expected).max() / np.abs(signal).max() < 20  # it says something
    assert np.ptp(np.abs(mask)) > 0.1


def test_plain_keras_opens_the_file_and_agrees(path, oracle):
    signal, expected, _ = oracle
    spectra = timefrequency_oracle.spectra_of(signal.astype(float), FRAME, HOP)[:, :-1]
    own = timefrequency_oracle.compressed(spectra, 0.3)
    model = keras.models.load_model(path, compile=False)
    features = np.stack([own.real, own.imag, np.abs(own)], axis=-1)[None].astype(np.float32)
    found = keras.ops.convert_to_numpy(model(features))[0]
    assert_near(found[..., 0] + 1j * found[..., 1], expected)


def test_batch_normalization_is_folded_away(file):
    classes = [layer.class_name for layer in file.layers]
    assert classes.count("BatchNormalization") == 5 + 3 * 2
    enhancer = MaskEnhancer(file)
    if enhancer.engine == "c":
        kernels = [layer for layer in enhancer._table.plan.layers if layer.kernel is not None]
        assert len(kernels) == len(enhancer._table.plan.layers) == 3 + 2 + 2 * 4 + 2 + 1


def test_a_packed_network_gives_the_same(tmp_path, file, noisy):
    packed = write_mask_network(tmp_path / "tiny.icse")
    assert_array_equal(MaskEnhancer(packed)(noisy), MaskEnhancer(file)(noisy))


# --------------------------------------------------------------------------------------------
# Time


@pytest.mark.parametrize("place", [0, 1, 2500, 5000, 8999])
def test_nothing_moves_before_a_change_less_its_latency(enhancer, noisy, place):
    changed = noisy.copy()
    changed[place:] += 0.3
    before, after = enhancer(noisy), enhancer(changed)
    first = max(place - FRAME + 1, 0)
    assert_array_equal(before[:first], after[:first])
    assert not np.array_equal(before[first:], after[first:])


def test_nothing_moves_beyond_the_reach(file, noisy):
    enhancer = MaskEnhancer(file)
    assert enhancer.behind == 8 == TINY.reach_frames - 1
    changed = noisy.copy()
    changed[3000] += 0.5
    last_frame = (3000 + FRAME - HOP) // HOP + enhancer.behind
    first_free = last_frame * HOP + HOP  # the frame after it, whose first half overlaps
    before, after = enhancer(noisy), enhancer(changed)
    assert_array_equal(before[first_free:], after[first_free:])
    last = slice(first_free - 2 * HOP, first_free)
    assert not np.array_equal(before[last], after[last])


@pytest.mark.parametrize("num_samples", [1, 2, 100, 255, 256, 257, 511, 512, 513, 4097])
def test_any_length_gives_its_own_length(enhancer, noisy, num_samples):
    found = enhancer(noisy[:num_samples])
    assert found.shape == (num_samples,) and found.any()
    settled = max(num_samples - FRAME, 0)  # later samples miss what follows in their frame
    assert_allclose(found[:settled], enhancer(noisy)[:settled], rtol=0, atol=1e-6)


def test_no_samples_give_none(enhancer):
    assert enhancer(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("new_frames", [1, 7, 20, 625])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chunks_and_threads_change_nothing(file, noisy, new_frames, threads):
    expected = MaskEnhancer(file, new_frames=10**6)(noisy, 1)
    enhancer = MaskEnhancer(file, new_frames=new_frames)
    assert_allclose(enhancer(noisy, threads), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 100, 256, 3001])
def test_a_stream_gives_what_the_whole_gives(file, noisy, size):
    signal = noisy[: 60 * size + 50]
    expected = MaskEnhancer(file)(signal)
    stream = MaskEnhancer(file, new_frames=5).stream(2)
    parts = [stream.push(signal[start : start + size]) for start in range(0, len(signal), size)]
    come = np.cumsum([len(part) for part in parts])
    assert (come <= np.minimum(np.arange(1, len(parts) + 1) * size, len(signal))).all()
    found = np.concatenate([*parts, stream.finish()])
    assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_memory_does_not_grow_with_the_signal(file):
    enhancer = MaskEnhancer(file, new_frames=100)
    block = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    peaks = []
    for seconds in (10, 60):
        tracemalloc.start()
        stream = enhancer.stream(2)
        count = sum(len(stream.push(block)) for _ in range(seconds)) + len(stream.finish())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == 16000 * seconds
    assert peaks[1] < 1.05 * peaks[0]


def test_one_enhancer_in_two_threads(file, rng):
    enhancer = MaskEnhancer(file)
    signals = [make_speech(rng, 9000 + 1000 * n) for n in range(6)]
    alone = [enhancer(signal) for signal in signals]
    with ThreadPoolExecutor(2) as pool:
        for expected, found in zip(alone, pool.map(enhancer, signals), strict=True):
            assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reach", [9, 64, 136])
def test_a_chunk_fits_into_the_memory(file, reach):
    enhancer = MaskEnhancer(file, engine="keras")
    enhancer.behind, enhancer._frame_bytes = reach, 1_000_000
    assert enhancer.chunk_frames > reach
    most = max(192 << 20, 2 * (reach + 1) * 1_000_000)
    assert enhancer.chunk_frames * 1_000_000 <= most


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_cores_share_a_signal(file, rng, threads):
    """Long enough for each to have a piece, in one chunk and in several."""
    signal = make_speech(rng, 60_000).astype(np.float32)
    expected = MaskEnhancer(file)(signal, 1)
    for new_frames in (625, 20):
        found = MaskEnhancer(file, new_frames=new_frames)(signal, threads)
        assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not blockconv.is_available(), reason="no C compiler here")
@pytest.mark.parametrize("room, expected", [(0.5, 1), (2.5, 2), (100, 7)])
def test_no_more_cores_work_than_have_room(file, rng, monkeypatch, room, expected):
    enhancer = MaskEnhancer(file)
    own = 4 * plan_of(file).tensor_floats
    monkeypatch.setattr(mask_enhancer, "MAX_BYTES", int(room * own))
    stream = enhancer.stream(threads=7)
    stream.push(make_speech(rng, 60_000).astype(np.float32))
    stream.finish()
    assert len(stream._engines) == expected


# --------------------------------------------------------------------------------------------
# Level


@pytest.mark.parametrize("gain", [1e-2, 0.1, 1.0, 3.0])
def test_a_mask_of_one_gives_the_signal_back_at_any_level(of_one, gain):
    tone = gain * np.sin(np.arange(9000) * 0.2)
    assert_near(of_one(tone)[FRAME:-FRAME], tone[FRAME:-FRAME], 2e-3)


def test_what_lies_below_the_floor_comes_out_softer(of_one):
    """Expanding does not undo the compression there; the loss grows with the distance."""
    tone = np.sin(np.arange(9000) * 0.2)
    ratios = [np.abs(of_one(level * tone)[1000:-1000]).max() / level for level in (1, 1e-6, 1e-7)]
    assert ratios[0] == pytest.approx(1, abs=1e-2)
    assert 0.5 > ratios[1] > 10 * ratios[2] > 0


def test_the_network_hears_levels(enhancer, noisy):
    """No normalisation over the signal: a gain on the input is no mere gain on the output."""
    loud, soft = enhancer(noisy), enhancer(noisy / 10)
    assert np.abs(10 * soft - loud).max() > 0.05 * np.abs(loud).max()


def test_silence_stays_silent(enhancer):
    assert not enhancer(np.zeros(3000)).any()
    signal = np.concatenate([np.zeros(3000), np.ones(100), np.zeros(3000)])
    found = enhancer(signal)
    assert not found[: 3000 - FRAME].any() and not found[3100 + FRAME :].any()


# --------------------------------------------------------------------------------------------
# What layers tell


def test_reach_latency_and_size(file):
    summary = summary_of(file)
    plain = mask_layers(dataclasses.replace(TINY, normalization="none"))
    expected = sum(array.size for layer in plain for array in layer.weights.values())
    assert summary.num_parameters == expected and summary.num_bytes == 4 * expected
    assert (summary.reach_frames, summary.latency_ms) == (9, 32)
    assert summary.reach_s == pytest.approx(9 * 0.016)
    assert file.kind == COMPLEX_MASK and COMPLEX_MASK in str(summary)


def test_the_reach_of_the_medium_form():
    config = dataclasses.replace(SIZES["medium"], num_channels=2, num_bands=2)
    assert reach_of(mask_layers(config)) == Reach(config.reach_frames - 1, 0) == Reach(136, 0)


@pytest.mark.parametrize("name", STRANGE)
def test_networks_of_strangers_are_computed_right(name, tmp_path, noisy):
    layers, behind = STRANGE[name]
    file = write_mask_network(tmp_path / "strange.h5", layers)
    assert reach_of(file.layers) == Reach(behind, 0)
    signal = noisy[:1500]
    _, expected = timefrequency_oracle.enhanced(file, signal)
    assert_near(MaskEnhancer(file)(signal), expected)
    assert_allclose(
        MaskEnhancer(file, new_frames=3)(signal), MaskEnhancer(file)(signal), rtol=0, atol=1e-5
    )


def test_a_network_that_looks_ahead_is_refused():
    layers = graph(conv2d("mask", "input", 3, 2, (3, 1)))
    assert reach_of(layers) == Reach(1, 1)
    with pytest.raises(ModelFileError, match="^tiny.h5: .* 1 frames ahead, expected a"):
        MaskEnhancer(model_of(layers))


def test_a_network_that_would_fill_the_memory_is_refused(tmp_path, engine):
    path = tmp_path / "far.icse"
    path.write_bytes(packed_files.stream(16))
    with pytest.raises(ModelFileError, match=r"far.icse: the network reaches 32,256 frames back"):
        MaskEnhancer(read_model_file(path), engine=engine)


def test_time_must_stay_where_it_is():
    layers = [
        LayerSpec("InputLayer", "input", {"batch_shape": [None, None, 256, 3]}),
        LayerSpec("Permute", "turned", {"dims": [2, 1, 3]}, inputs=("input",)),
    ]
    with pytest.raises(ModelFileError, match="'turned' .Permute. moves the time"):
        reach_of(layers)
    settings = {"groups": -1, "axis": -1, "epsilon": 1e-5, "center": True, "scale": True}
    layers[1] = LayerSpec("GroupNormalization", "norm", settings, inputs=("input",))
    with pytest.raises(ModelFileError, match="'norm' .GroupNormalization. depends on the whole"):
        reach_of(layers)


def test_what_is_no_signal_or_no_setting_is_refused(file):
    enhancer = MaskEnhancer(file)
    for bad, reason in (
        (np.array([0.1, np.nan]), "NaN or an infinity"),
        (np.zeros((2, 9)), r"received shape \(2, 9\)"),
    ):
        with pytest.raises(ValueError, match=reason):
            enhancer(bad)
    with pytest.raises(ValueError, match="'fast' or 'keras', received 'slow'"):
        MaskEnhancer(file, engine="slow")
    with pytest.raises(ValueError, match="new_frames is 0"):
        MaskEnhancer(file, new_frames=0)


def test_levels_beyond_measure_are_refused(enhancer, of_one):
    with pytest.raises(ValueError, match="signal reaches 1e.30, expected full scale at 1"):
        enhancer(np.full(2000, 1e30))
    assert np.isfinite(of_one(np.full(2000, 1e14))).all()


def test_an_output_beyond_measure_is_refused():
    layers = graph(conv2d("hidden", "input", 3, 8), conv2d("mask", "hidden", 8, 2))
    loud = {name: np.full(array.shape, 1e30, "f4") for name, array in layers[-1].weights.items()}
    layers = [*layers[:-1], dataclasses.replace(layers[-1], weights=loud)]
    with pytest.raises(ValueError, match="tiny.h5: the network's output holds a NaN"):
        MaskEnhancer(model_of(layers))(np.ones(2000))


def test_other_conventions_are_kept(tmp_path, noisy):
    config = TimeFrequencyConfig(5, 6, (1, 3), power=0.5)
    file = write_mask_network(tmp_path / "half.h5", mask_layers(config), config)
    _, expected = timefrequency_oracle.enhanced(file, noisy[:1500])
    assert_near(MaskEnhancer(file)(noisy[:1500]), expected)
