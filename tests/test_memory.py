"""Memory that a network takes for a signal is known, and refused, before the work."""

import math
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose

from speech.modelfile.exam import output_shapes
from speech.modelfile.h5 import write_model_file
from speech.modelfile.spec import LayerSpec
from speech.net import blockconv, keras_models, memory
from speech.net import enhancer as net_enhancer
from speech.net.enhancer import Enhancer
from speech.net.inference import spectra_bytes
from tests import graph_files

META = {"kind": "waveform", "sample_rate_hz": 16_000}


def conv(name, inputs, filters, taps=1, **changes):
    config = {
        "filters": filters, "kernel_size": taps, "strides": 1, "padding": "same",
        "data_format": "channels_last", "dilation_rate": 1, "activation": "linear",
        "use_bias": False, **changes,
    }  # fmt: skip
    return LayerSpec("Conv1D", name, config, {"kernel": np.ones((taps, inputs, filters), "f4")})


def chain(*widths, taps=1, **changes):
    """Returns a waveform network with layers of these many channels."""
    pairs = zip((1, *widths), (*widths, 1), strict=True)
    layers = [conv(f"c{place}", *pair, taps, **changes) for place, pair in enumerate(pairs)]
    return [LayerSpec("InputLayer", "i", {"batch_shape": [None, None, 1]}), *layers]


@pytest.mark.parametrize("engine", ["c", "keras"])
@pytest.mark.parametrize("widths", [(65_536,), (4, 30_000, 4)])
def test_a_layer_too_wide_for_any_signal_is_refused(engine, widths, tmp_path, monkeypatch):
    if engine == "keras":
        monkeypatch.setattr(blockconv, "is_available", lambda: False)
        monkeypatch.setattr(keras_models, "keras_function", lambda layers: None)  # slow to start
    write_model_file(tmp_path / "x.h5", chain(*widths), META)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"x\.h5: the layers take .* bytes of memory for 4 s"):
        Enhancer(tmp_path / "x.h5")
    assert time.process_time() - start < 2


def test_bytes_are_those_of_the_layers_side_by_side():
    assert memory.keras_bytes(chain(5, 7), 100) == 4 * 100 * (5 + 7)
    graph = graph_files.small_graph()
    one, ten = (memory.keras_bytes(graph, count) for count in (100, 1000))
    assert 0 < one < ten < 11 * one
    widest = max(math.prod(axis or 1000 for axis in shape[1:])
                 for shape in output_shapes(graph).values())  # fmt: skip
    assert ten > 4 * widest


def test_what_a_convolution_pads_is_counted():
    """8,192 taps that lie 1,024 apart span eight million samples, whatever the signal's length."""
    layers = chain(3, taps=8192, dilation_rate=1024)
    span = 100 + 1024 * 8191
    assert memory.keras_bytes(layers, 100) == 4 * (3 * span + 100 * (1 + 3))
    near = chain(3, taps=9)
    assert memory.keras_bytes(near, 100) == 4 * 100 * (1 + 3)


def test_a_wide_network_gets_short_blocks(tmp_path, monkeypatch, rng):
    monkeypatch.setattr(net_enhancer, "WHOLE_SECONDS", 3.0)
    monkeypatch.setattr(net_enhancer, "BLOCK_SECONDS", 2.5)
    monkeypatch.setattr(net_enhancer, "LEAST_SECONDS", 0.5)
    path = tmp_path / "x.h5"
    write_model_file(path, chain(3), META)
    enhancer = Enhancer(path)
    signal = 0.1 * rng.standard_normal(45_000).astype("f4")
    assert enhancer.takes_whole(len(signal)) and not enhancer.takes_whole(48_001)
    whole = enhancer.enhance(signal)
    seen = []
    run = enhancer._run
    monkeypatch.setattr(enhancer, "_run", lambda x, threads: seen.append(len(x)) or run(x, threads))
    monkeypatch.setattr(enhancer, "_num_bytes", lambda count: count * 4000)
    monkeypatch.setattr(net_enhancer, "MAX_BYTES", 4000 * 30_000)
    assert not enhancer.takes_whole(len(signal))
    assert_allclose(enhancer.enhance(signal), whole, atol=1e-5)  # pointwise, and no normalisation
    assert len(seen) > 1 and max(seen) <= 30_000


def test_keras_refuses_a_signal_and_cuts_a_batch(monkeypatch, rng):
    dense = LayerSpec(
        "Dense", "d", {"units": 3, "activation": "linear", "use_bias": False},
        {"kernel": rng.standard_normal((2, 3)).astype("f4")},
    )  # fmt: skip
    layers = [LayerSpec("InputLayer", "i", {"batch_shape": [None, 2]}), dense]
    function = keras_models.keras_function(layers)
    values = rng.standard_normal((50, 2)).astype("f4")
    monkeypatch.setattr(keras_models, "MAX_BYTES", 4 * 5 * 7)  # seven rows
    assert_allclose(function(values), values @ dense.weights["kernel"], rtol=1e-5, atol=1e-6)
    assert function(values[:0]).shape == (0, 3)
    function = keras_models.keras_function(chain(2))
    assert function(np.ones((1, 11, 1), "f4")).shape == (1, 11, 1)
    with pytest.raises(ValueError, match="take 144 bytes of memory for 12 frames, expected at"):
        function(np.ones((1, 12, 1), "f4"))


def test_spectra_that_take_far_more_than_the_kernels_go_to_keras(tmp_path, monkeypatch):
    """A long kernel sets the size of the transform for many kernels of one tap."""
    layers = [*chain(8, 8), conv("long", 1, 1, 99)]
    parameters = [layer.weights["kernel"] for layer in layers[1:]]
    size = blockconv.block_size(99)
    assert spectra_bytes(parameters) == 8 * (size // 2 + 1) * (8 + 64 + 8 + 1)
    write_model_file(tmp_path / "x.h5", layers, META)
    assert Enhancer(tmp_path / "x.h5").engine == ("c" if blockconv.is_available() else "keras")
    monkeypatch.setattr("speech.net.inference.spectra_bytes", lambda parameters: memory.MAX_BYTES)
    assert Enhancer(tmp_path / "x.h5").engine == "keras"
