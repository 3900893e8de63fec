"""What models cost: counts, sizes and cycles against the published figures and naive oracles."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval import cost, cycles
from speech.modelfile.h5 import write_model_file
from speech.modelfile.spec import LayerSpec
from speech.net.enhancer import BASELINE_MODEL
from speech.net.fcn import FCNConfig
from tests.builders import kernel_shapes, layers_of

GOLDEN = Path(__file__).parent / "golden"
SIZES = json.loads((GOLDEN / "published_cost.json").read_text())
CYCLES = json.loads((GOLDEN / "published_cycles.json").read_text())


def dense_layers(rng, extra=()):
    sizes = (1539, 32, 513)
    layers = [LayerSpec("InputLayer", "input", {"batch_shape": [None, sizes[0]]})]
    for index, (inputs, units) in enumerate(itertools.pairwise(sizes), start=1):
        kernel = rng.standard_normal((inputs, units)).astype(np.float32)
        weights = {"kernel": kernel, "bias": np.zeros(units, np.float32)}
        settings = {"units": units, "activation": "linear", "use_bias": True}
        layers.append(LayerSpec("Dense", f"dense{index}", settings, weights))
    return [*layers, *extra]


# --------------------------------------------------------------------------------------------
# Counts


def test_the_baseline_costs_what_is_published():
    found = cost.cost_of(layers_of(FCNConfig()))
    golden = SIZES["baseline"]
    assert found.total("parameters") == golden["parameters"]
    assert found.total("weights") == golden["weights"] == found.total("mac")
    values = found.to_dict()
    assert values["flop_per_step"] == golden["flop_per_sample"]
    assert values["flop_per_second"] == 16000 * golden["flop_per_sample"]
    assert found.receptive_field == golden["receptive_field_samples"]
    assert found.lookahead == 216
    assert values["receptive_field_ms"] == pytest.approx(27.0625)
    assert found.needs_whole_utterance and found.latency_ms is None
    assert found.codebook_size is None
    assert found.accounting()["full"]["percent"] == pytest.approx(100)


def test_the_released_model_has_the_published_sizes(tmp_path, rng):
    """The counts of the released weights give 9.76 % on paper and 12.51 % in full."""
    golden = SIZES["released_theta_0.65"]
    config = FCNConfig()
    kernels = []
    for shape, percent, each_sign in zip(
        kernel_shapes(config),
        golden["zero_percent_by_layer"],
        golden["centroids_of_each_sign"],
        strict=True,
    ):
        positive = np.linspace(0.01, 0.2, each_sign).astype(np.float32)
        centroids = np.concatenate([-positive, positive])
        size = math.prod(shape)
        # Every centroid occurs, whatever is zeroed.
        kernel = centroids[np.arange(size) % len(centroids)]
        kernel = rng.permutation(kernel).reshape(shape)
        num_kernels = shape[1] * shape[2]
        zero = rng.permutation(num_kernels)[: round(percent / 100 * num_kernels)]
        kernel.reshape(shape[0], num_kernels)[:, zero] = 0
        kernels.append(kernel)
    path = tmp_path / "released.h5"
    write_model_file(path, layers_of(config, kernels), {"kind": "waveform"})

    found = cost.cost_of(path, codebook_size=golden["paper_k"])
    assert found.total("kernels") == golden["kernels"]
    assert found.total("zero_kernels") == golden["zero_kernels"]
    convolutions = [layer for layer in found.layers if layer.kernel_shape]
    shares = [round(100 * c.zero_kernels / c.kernels, 1) for c in convolutions]
    assert shares == golden["zero_percent_by_layer"]
    assert [c.num_values for c in convolutions] == [
        2 * number for number in golden["centroids_of_each_sign"]
    ]
    assert round(found.paper_size_percent, 2) == golden["paper_size_percent"]
    accounting = found.accounting()
    assert round(accounting["full"]["percent"], 2) == golden["full_percent"]
    assert accounting["file"]["bytes"] == path.stat().st_size
    assert accounting["full_entropy"]["bytes"] <= accounting["full_huffman"]["bytes"]
    assert accounting["full_huffman"]["bytes"] <= accounting["full"]["bytes"]
    # All 32 values are found when k is not given.
    assert cost.cost_of(path).codebook_size == 32
    assert cost.cost_of(path).paper_size_percent == pytest.approx(found.paper_size_percent * 5 / 4)


def test_the_published_sizes_follow_from_the_rule():
    """All of theta = 0.65 from the released counts; theta = 0.70 from one number of weights."""
    parameters = SIZES["baseline"]["parameters"]
    released = SIZES["released_theta_0.65"]
    nonzero = {0.65: 55 * (released["kernels"] - released["zero_kernels"])}
    # Not published: the number of kernels for which all five sizes come out.
    nonzero[0.70] = 55 * 4698
    for theta, k, percent, _ in SIZES["size_against_score"]["rows"]:
        counted = cost.paper_size_percent(nonzero[theta], k, parameters)
        assert counted == pytest.approx(percent, abs=0.04), (theta, k)


def test_sparse_arithmetic_skips_whole_kernels_only(rng):
    config = FCNConfig(num_hidden_layers=1, num_filters=3, kernel_size=5)
    first, last = (rng.standard_normal(s).astype(np.float32) for s in kernel_shapes(config))
    first[:, 0, 1] = 0  # a kernel
    last[2, 0, 0] = 0  # a single weight
    found = cost.cost_of(layers_of(config, [first, last]))
    assert found.total("nonzero_weights") == 30 - 5 - 1
    assert found.total("zero_kernels") == 1
    assert found.total("sparse_mac") == 25
    assert found.to_dict()["sparse_flop_per_step"] == 50


def test_a_layer_that_is_all_zero_costs_nothing():
    config = FCNConfig(num_hidden_layers=1, num_filters=2, kernel_size=3)
    kernels = [np.zeros(shape, np.float32) for shape in kernel_shapes(config)]
    found = cost.cost_of(layers_of(config, kernels))
    assert found.total("sparse_mac") == found.total("nonzero_weights") == 0
    assert found.paper_bits == 0
    assert "all in FP32" in cost.format_cost(found)


def test_dense_layers_and_frames(rng):
    dropout = LayerSpec("Dropout", "dropout", {"rate": 0.2})
    found = cost.cost_of(dense_layers(rng, [dropout]))
    assert found.step == "frame"
    assert found.steps_per_second == 62.5
    assert found.total("mac") == 1539 * 32 + 32 * 513
    assert found.total("parameters") == found.total("mac") + 32 + 513
    assert found.receptive_field == 1
    assert found.latency_ms == 0


def test_moving_statistics_are_stored_but_not_parameters(rng):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: np.ones(513, np.float32) for name in names}
    settings = {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True}
    layer = LayerSpec("BatchNormalization", "norm", settings, weights)
    plain, normalized = (cost.cost_of(dense_layers(rng, extra)) for extra in ([], [layer]))
    assert normalized.total("parameters") - plain.total("parameters") == 2 * 513
    assert normalized.total("stored_values") - plain.total("stored_values") == 4 * 513
    assert not normalized.needs_whole_utterance


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_receptive_field_is_what_an_impulse_reaches(padding):
    """Oracle: push an impulse at every place through convolutions of ones."""
    shapes = [(4, 1), (3, 2), (6, 3)]
    layers = [LayerSpec("InputLayer", "input", {"batch_shape": [None, None, 1]})]
    for index, (taps, dilation) in enumerate(shapes):
        settings = {"kernel_size": taps, "dilation_rate": dilation, "padding": padding}
        weights = {"kernel": np.ones((taps, 1, 1), np.float32)}
        layers.append(LayerSpec("Conv1D", f"conv{index}", settings, weights))
    found = cost.cost_of(layers)
    length, centre = 101, 50
    reached = []
    for place in range(length):
        signal = np.zeros(length)
        signal[place] = 1
        for taps, dilation in shapes:
            span = (taps - 1) * dilation
            padded = np.pad(signal, (span // 2, span - span // 2))  # as Keras pads 'same'
            signal = sum(padded[t * dilation : t * dilation + length] for t in range(taps))
        if signal[centre]:
            reached.append(place)
    assert found.receptive_field == max(reached) - min(reached) + 1
    assert found.lookahead == max(reached) - centre


# --------------------------------------------------------------------------------------------
# Bits


@pytest.mark.parametrize(("values", "bits"), [(0, 0), (1, 0), (2, 1), (3, 2), (16, 4), (17, 5)])
def test_index_bits(values, bits):
    assert cost.index_bits(values) == bits


def naive_huffman_bits(counts):
    """Merges the two rarest groups until one is left; each merge adds a bit to its members."""
    groups = [(count, [symbol]) for symbol, count in enumerate(counts) if count]
    lengths = dict.fromkeys(range(len(counts)), 0)
    while len(groups) > 1:
        groups.sort(key=lambda group: group[0])
        (n, a), (m, b) = groups[:2]
        for symbol in a + b:
            lengths[symbol] += 1
        groups = [(n + m, a + b), *groups[2:]]
    return sum(lengths[symbol] * count for symbol, count in enumerate(counts))


def test_code_lengths(rng):
    for _ in range(20):
        counts = rng.integers(0, 100, size=rng.integers(1, 20))
        huffman, entropy = cost.huffman_bits(counts), cost.entropy_bits(counts)
        assert huffman == naive_huffman_bits(counts)
        assert entropy - 1e-9 <= huffman <= entropy + counts.sum()
        assert huffman <= counts.sum() * cost.index_bits(len(counts)) or len(counts) == 1
    assert cost.entropy_bits([8, 8, 8, 8]) == pytest.approx(64)
    assert cost.huffman_bits([]) == cost.huffman_bits([7]) == cost.entropy_bits([7]) == 0


def test_a_codebook_is_counted_only_where_it_pays(rng):
    config = FCNConfig(num_hidden_layers=1, num_filters=4, kernel_size=9)
    shared = np.array([0.5, -0.25], np.float32)[rng.integers(2, size=(9, 1, 4))]
    first, last = cost.cost_of(layers_of(config, [shared])).layers[::2]
    assert (first.codebook_size, first.index_bits) == (2, 36)
    assert (last.codebook_size, last.index_bits) == (0, 32 * 36)
    half = cost.cost_of(layers_of(config, [shared]), centroid_bits=16)
    whole = cost.cost_of(layers_of(config, [shared]))
    assert whole.full_bits() - half.full_bits() == 2 * 16


def test_pruning_alone_makes_no_codebook(rng):
    """Two fifths of the kernels at zero once passed for a codebook of all the other weights."""
    kernels = [
        rng.standard_normal(shape).astype(np.float32) for shape in kernel_shapes(FCNConfig())
    ]
    for kernel in kernels[1:-1]:
        kernel[:, :12] = 0
    found = cost.cost_of(layers_of(FCNConfig(), kernels))
    assert found.codebook_size is None
    assert found.paper_bits == 32 * sum(np.count_nonzero(kernel) for kernel in kernels)


def test_percent_of_another_baseline():
    config = FCNConfig(num_hidden_layers=1, num_filters=4, kernel_size=9)
    found = cost.cost_of(layers_of(config), baseline_parameters=300931)
    assert found.accounting()["fp32"]["percent"] == pytest.approx(100 * 85 / 300931)


# --------------------------------------------------------------------------------------------
# Bad input and the command


def test_bad_input(tmp_path, capsys):
    layers = layers_of(FCNConfig(num_hidden_layers=1, num_filters=2, kernel_size=3))
    with pytest.raises(ValueError, match="at least 2"):
        cost.cost_of(layers, codebook_size=1)
    with pytest.raises(ValueError, match="at least 1"):
        cost.cost_of(layers, baseline_parameters=0)
    with pytest.raises(ValueError, match="no layer has weights"):
        cost.cost_of(layers[:1])
    settings = {"axis": -1, "epsilon": 1e-3, "momentum": 0.9, "center": False, "scale": False}
    statistics = {"moving_mean": np.zeros(1), "moving_variance": np.ones(1)}
    statistics = {key: value.astype(np.float32) for key, value in statistics.items()}
    only = [layers[0], LayerSpec("BatchNormalization", "norm", settings, statistics)]
    with pytest.raises(ValueError, match="baseline_parameters is 0, expected at least 1"):
        cost.cost_of(only)
    write_model_file(tmp_path / "rate.h5", layers, {"sample_rate_hz": "fast"})
    with pytest.raises(ValueError, match="rate.h5.*sample_rate_hz.*'fast'.*positive number"):
        cost.cost_of(tmp_path / "rate.h5")
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    assert cost.main([str(tmp_path / "bad.h5")]) == 1
    assert cost.main([str(tmp_path / "absent.h5")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    with pytest.raises(SystemExit, match="2"):
        cost.main(["x.h5", "--k", "1"])
    with pytest.raises(ValueError, match="no model is named"):
        cost.CostConfig(())


def test_the_command_prints_and_writes_the_counts(tmp_path, capsys):
    path = tmp_path / "model.h5"
    write_model_file(path, layers_of(FCNConfig()), {"kind": "waveform", "sample_rate_hz": 16000})
    assert cost.main([str(path), "--json", str(tmp_path / "cost.json")]) == 0
    text = capsys.readouterr().out
    for expected in ("300,931", "600,600 FLOP per output sample", "433 samples (27.1 ms)",
                     "9.610 GFLOP per second", f"{path.stat().st_size:,} bytes"):  # fmt: skip
        assert expected in text
    (written,) = json.loads((tmp_path / "cost.json").read_text())
    assert written["parameters"] == 300931
    assert written["file_bytes"] == path.stat().st_size
    assert len(written["layers"]) == 15


def test_each_model_is_read_and_counted_once(tmp_path, monkeypatch):
    layers = layers_of(FCNConfig(num_hidden_layers=1, num_filters=4, kernel_size=9))
    paths = [tmp_path / f"{name}.h5" for name in ("first", "second", "other")]
    for path in paths[:2]:
        write_model_file(path, layers, {"kind": "waveform"})
    write_model_file(paths[2], layers_of(FCNConfig()), {"kind": "waveform"})
    count, counted = cost.cost_of, []

    def noted(source, **arguments):
        counted.append(source)
        return count(source, **arguments)

    monkeypatch.setattr(cost, "cost_of", noted)
    for baseline in (None, *paths):
        counted.clear()
        found = [
            each for each, _ in cost.costs_of(cost.CostConfig(tuple(paths[:2]), 4, 16, baseline))
        ]
        assert len(counted) == len(set(counted))
        parameters = count(baseline or paths[0]).total("parameters")
        assert found == [
            count(path, codebook_size=4, centroid_bits=16, baseline_parameters=parameters)
            for path in paths[:2]
        ]


def mask_network(tmp_path):
    from speech.net.keras_models import save_model
    from speech.net.timefrequency import TimeFrequencyConfig, build_time_frequency

    config = TimeFrequencyConfig(12, 10, (1, 3))
    path = tmp_path / "mask.h5"
    save_model(build_time_frequency(config), path, config.meta())
    return path


def test_a_network_over_bands_is_counted_for_each_band(tmp_path):
    """By hand: channels 12, bands 10, two blocks of (3 taps + Dense) and (bands + Dense)."""
    found = cost.cost_of(mask_network(tmp_path))
    macs = {layer.name: layer.mac for layer in found.layers}
    assert macs["encoder1"] == 64 * 8 * 3 * 12
    assert macs["encoder2"] == macs["decoder3"] == 64 * 3 * 12 * 12
    assert macs["bands_down"] == macs["bands_up"] == 12 * 64 * 10
    assert macs["block1_time"] == 10 * 3 * 12 * 12
    assert macs["block2_time_dense"] == 10 * 12 * 12
    assert macs["block2_bands"] == 12 * 10 * 10
    assert macs["mask"] == 64 * 8 * 12 * 2  # each band writes to 8 bins
    blocks = 2 * (10 * 3 * 144 + 2 * 10 * 144 + 12 * 100)
    edges = 64 * 8 * 3 * 12 + 4 * 64 * 3 * 144 + 2 * 12 * 640 + 64 * 8 * 12 * 2
    assert found.total("mac") == blocks + edges
    assert found.step == "frame" and found.steps_per_second == 62.5
    assert (found.receptive_field, found.lookahead, found.latency_ms) == (9, 0, 32.0)
    assert found.total("indexed_weights") == found.total("weights") - (
        found.total("zero_kernels")  # the triangles over bands, whose kernels are single weights
    )
    assert "latency: 32.0 ms with the STFT" in cost.format_cost(found)


def test_what_a_device_needs_is_said(tmp_path):
    found = cost.cost_of(mask_network(tmp_path))
    # Rings of 2 d + 1 frames of 10 bands by 16 channels (12 filled up), samples of two frames.
    assert found.device.state_bytes == 4 * ((3 + 7) * 10 * 16 + 2 * 512)
    # Kernels and biases of the folded network as floats.
    biases = 3 * 12 + 10 + 2 * (12 + 12 + 10 + 12) + 64 + 2 * 12 + 2 * 4
    kernels = found.total("weights")
    assert found.device.weight_bytes <= 4 * (kernels + biases)
    assert "bytes of RAM, 10,496 of them from hop to hop" in cost.format_cost(found)
    assert found.to_dict()["device"]["ram_bytes"] > found.device.state_bytes
    assert cost.cost_of(BASELINE_MODEL).device is None


def test_models_are_measured_on_one_core(tmp_path, capsys):
    path = mask_network(tmp_path)
    result = tmp_path / "cost.json"
    assert cost.main([str(path), "--measure", "--json", str(result)]) == 0
    measured = json.loads(result.read_text())[0]["measured"]
    assert 0 < measured["real_time_factor"] < 10
    assert 10e6 < measured["peak_bytes"] < 2e9
    assert "s per second of audio" in capsys.readouterr().out
    spectra = tmp_path / "spectra.h5"
    write_model_file(spectra, dense_layers(np.random.default_rng(0), []), {"kind": "dae"})
    assert cost.main([str(spectra), "--measure"]) == 1
    assert "cannot enhance a file by itself" in capsys.readouterr().err


def test_importing_needs_no_tensorflow():
    code = (
        "import sys, eval.cost, eval.cycles, eval.plots, eval.sweep; "
        "assert not {'tensorflow', 'keras', 'matplotlib', 'scalesim'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=GOLDEN.parent.parent)


# --------------------------------------------------------------------------------------------
# Cycles


def test_published_cycles_of_the_baseline():
    products = cycles.products(layers_of(FCNConfig()))[:7]
    found = [cycles.cycles(product, cycles.Array()) for product in products]
    assert found == CYCLES["baseline"]["layers"]
    assert sum(found) == CYCLES["baseline"]["total"]


def test_published_cycles_of_the_pruned_model(rng):
    settings = CYCLES["found_settings"]
    config = FCNConfig()
    kernels = [rng.standard_normal(shape).astype(np.float32) for shape in kernel_shapes(config)]
    kernels[0][:, :, settings["kept_filters_conv1"] :] = 0
    for kernel, kept in zip(kernels[1:7], settings["kept_channels_conv2_to_conv7"], strict=True):
        for filter_index in range(30):  # each filter loses channels of its own
            kernel[:, rng.permutation(30)[kept:], filter_index] = 0
    layers = layers_of(config, kernels)
    products = cycles.products(layers, skip_zero_kernels=True)[:7]
    found = [cycles.cycles(product, cycles.Array()) for product in products]
    assert found == CYCLES["pruned"]["layers"]
    assert sum(found) == CYCLES["pruned"]["total"]
    mflop = cost.cost_of(layers).to_dict()["sparse_flop_per_step"] / 1e6
    assert round(mflop, 2) == CYCLES["pruned"]["mflop_per_sample"]


@pytest.mark.parametrize(
    "change", [{"rows": 16}, {"rows": 64}, {"cols": 29}, {"folding": "serial"}]
)
def test_other_arrays_do_not_give_the_published_cycles(change):
    products = cycles.products(layers_of(FCNConfig()))[:7]
    found = [cycles.cycles(product, cycles.Array(**change)) for product in products]
    assert not set(found) & set(CYCLES["baseline"]["layers"])


def naive_overlapped(product, array):
    """When the last result leaves an array whose cells take up fold after fold, in cycles."""
    hop = max(product.window, array.rows)
    last = fold = 0
    for first_filter in range(0, product.filters, array.cols):
        for first_output in range(0, product.outputs, array.rows):
            for col in range(min(array.cols, product.filters - first_filter)):
                for row in range(min(array.rows, product.outputs - first_output)):
                    # Skewed operands reach cell (row, col) row + col cycles late; one more cycle
                    # hands the sum out.
                    last = max(last, fold * hop + row + col + product.window + 1)
            fold += 1
    return last


def test_overlapped_cycles_equal_a_naive_count(rng):
    for _ in range(60):
        outputs, window, filters, rows, cols = (int(n) for n in rng.integers(1, 30, size=5))
        product = cycles.Product("p", outputs, window, filters)
        array = cycles.Array(rows, cols)
        assert cycles.cycles(product, array) == naive_overlapped(product, array), product


@pytest.mark.parametrize("dataflow", cycles.DATAFLOWS)
def test_serial_cycles_equal_the_simulator(dataflow, rng):
    pytest.importorskip("scalesim")
    for _ in range(8):
        outputs, window, filters, rows, cols = (int(n) for n in rng.integers(2, 30, size=5))
        product = cycles.Product("p", outputs, window, filters)
        array = cycles.Array(rows, cols, dataflow, "serial")
        assert cycles.cycles(product, array) == cycles.simulate(product, array), (product, array)


@pytest.mark.slow
def test_the_simulator_on_a_whole_published_layer():
    pytest.importorskip("scalesim")
    product = cycles.products(layers_of(FCNConfig()))[0]
    assert cycles.simulate(product, cycles.Array(folding="serial")) == 280_683


def test_padding_and_bad_input(monkeypatch):
    layers = layers_of(FCNConfig(num_hidden_layers=1, num_filters=2, kernel_size=3))
    outputs = {
        padding: [product.outputs for product in cycles.products(layers, 10, padding=padding)]
        for padding in ("same", "valid")
    }
    assert outputs == {"same": [10, 10], "valid": [8, 6]}
    with pytest.raises(ValueError, match="leave none at layer 'conv2'"):
        cycles.products(layers, 4)
    with pytest.raises(ValueError, match="padding"):
        cycles.products(layers, 10, padding="reflect")
    with pytest.raises(ValueError, match="at least 1 x 1"):
        cycles.Array(0, 4)
    with pytest.raises(ValueError, match="serial"):
        cycles.Array(4, 4, "ws")
    with pytest.raises(ValueError, match="expected one of"):
        cycles.Array(4, 4, "rs", "serial")
    product = cycles.Product("conv1", 100_000, 1650, 30)
    monkeypatch.setitem(sys.modules, "scalesim.compute.systolic_compute_is", None)
    with pytest.raises(ValueError, match="extra 'cycles'"):
        cycles.simulate(product, cycles.Array())


def test_too_big_a_product_is_not_simulated():
    pytest.importorskip("scalesim")
    with pytest.raises(ValueError, match="too many to simulate"):
        cycles.simulate(cycles.Product("conv1", 10_000_000, 1650, 30), cycles.Array())


def test_the_command_prints_the_published_cycles(tmp_path, capsys):
    path = tmp_path / "model.h5"
    write_model_file(path, layers_of(FCNConfig()), {})
    assert cycles.main([str(path), "--json", str(tmp_path / "cycles.json")]) == 0
    text = capsys.readouterr().out
    assert all(f"{number:,}" in text for number in CYCLES["baseline"]["layers"])
    (report,) = json.loads((tmp_path / "cycles.json").read_text())
    assert report["array"]["rows"] == 32
    assert [row["cycles"] for row in report["layers"]][:7] == CYCLES["baseline"]["layers"]
    for wrong in (["--array", "32"], ["--folding", "overlapped", "--dataflow", "ws"]):
        with pytest.raises(SystemExit, match="2"):
            cycles.main([str(path), *wrong])
