"""python -m quantization.run: files, accounting, fine-tuning, the container alone, bad usage."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mnn.experts import build_expert
from pruning import sparsity
from quantization import accounting, budget, calibration, graphs, process, run
from quantization.config import QuantizationConfig
from quantization.kmeans import Codebooks, cluster_layers, clustered_layers
from quantization.plans import ByK, ByLambda
from quantization.process import quantize_file
from quantization.ratedistortion import RateDistortion
from speech.modelfile import icse
from speech.modelfile.h5 import write_model_file
from speech.modelfile.meta import MaskConventions
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec
from speech.net.folding import fold_batch_normalization
from speech.net.keras_models import save_model
from speech.net.taps import has_kernel, taps_of
from speech.training.config import TrainingConfig
from speech.training.continuing import Continuation
from tests.builders import PIECES, TINY, mask_layers, network, zeros

SMALL = ["--num-train", "4", "--crop-seconds", "0.3", "--batch-size", "2", "--num-test", "1",
         "--snr", "5", "--gpu", "-1", "--jobs", "1"]  # fmt: skip


@pytest.fixture
def model(tmp_path, rng):
    path = tmp_path / "small.h5"
    layers = network(rng, (1, 6, 6, 1))
    for layer in layers:
        if "kernel" in layer.weights:
            layer.weights["kernel"][:] *= 0.1
    layers = sparsity.apply_masks(layers, sparsity.masks_for_share(layers, 0.25))
    meta = {"kind": "waveform", "sample_rate_hz": 16000, "pruning": {"theta": 0.6, "masks": {}}}
    write_model_file(path, layers, meta)
    return path


def kernels(path):
    return [x.weights["kernel"] for x in clustered_layers(read_model_file(path).layers)]


def assert_same_files(folder):
    one, other = (read_model_file(folder / name) for name in ("clustered.h5", "model.icse"))
    assert one.meta == other.meta
    for a, b in zip(one.layers, other.layers, strict=True):
        for key, array in a.weights.items():
            assert array.tobytes() == b.weights[key].tobytes()


@pytest.mark.parametrize("flags", [[], ["--centroids", "int8"], ["--no-entropy"], ["--per-sign"]])
def test_one_shot_writes_both_files_the_same(flags, model, tmp_path, capsys):
    out = tmp_path / "q"
    assert run.main([str(model), "-k", "4", "-o", str(out), *flags]) == 0
    assert_same_files(out)
    assert zeros(out / "model.icse") == zeros(model)
    for before, after in zip(kernels(model), kernels(out / "model.icse"), strict=True):
        assert_array_equal(after == 0, before == 0)
        assert len(np.unique(after[after != 0])) <= (8 if "--per-sign" in flags else 4)
    text = capsys.readouterr().out
    assert "paper rule" in text and "bit-packed" in text and "not fine-tuned" in text
    meta = read_model_file(out / "model.icse").meta
    assert meta["quantization"]["k"] == 4 and meta["pruning"] == {"theta": 0.6}


def test_accounting_is_that_of_naive_counts(model, tmp_path):
    out, table = tmp_path / "q", tmp_path / "q.json"
    assert run.main([str(model), "-k", "4", "-o", str(out), "--json", str(table)]) == 0
    result = json.loads(table.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    size = (out / "model.icse").stat().st_size
    assert result["total"]["file"] == size == sum(row["file"] for row in result["rows"])
    assert result["percent_of_original"]["file"] == 100 * size / model.stat().st_size
    for layer in clustered_layers(read_model_file(out / "clustered.h5").layers):
        kernel, row = layer.weights["kernel"], rows[layer.name]
        kept = kernel.any(axis=0)
        mask = 0 if kept.all() else -(-kept.size // 8)
        assert row["nonzero"] == (kernel != 0).sum() and row["weights"] == kernel.size
        assert row["paper"] == row["nonzero"] * 2 / 8
        assert row["packed"] == mask + 4 * 4 + kernel[:, kept].size * 2 / 8
        assert row["entropy"] <= row["packed"]
    # 6 + 6 biases are dead; 1 bias and 4 x 6 of normalisation are left, in FP16.
    assert rows["biases, norms"]["packed"] == 2 * (1 + 24)


def test_paper_rule_is_the_published_one():
    """docs/papers.md, eq. Q3: 16 centroids per sign count 4 bits: 234,850 x 4 bits = 117,425 B."""
    kernel = np.tile(np.linspace(-1, 1, 33).astype("f4"), 4)[:, None, None]
    row = accounting._kernel_row("c", kernel, {"c": 16}, 4, 100)
    assert row.num_values == 32 and row.paper == row.nonzero * 4 / 8


def test_dead_biases_have_no_effect(rng):
    layers = list(network(rng, (1, 4, 1)))
    names = [x.name for x in layers if x.class_name == "Conv1D"]
    assert process.dead_biases(layers) == {names[0]}
    norm = next(i for i, x in enumerate(layers) if x.class_name == "GroupNormalization")
    layers[norm] = LayerSpec("GroupNormalization", "n", {**layers[norm].config, "groups": 2}, {})
    assert process.dead_biases(layers) == set()


def test_container_commands_round_trip(model, tmp_path, capsys):
    out = tmp_path / "q"
    assert run.main([str(model), "-k", "4", "-o", str(out)]) == 0
    packed, back = tmp_path / "p.icse", tmp_path / "b.h5"
    assert run.main(["pack", str(out / "clustered.h5"), "-o", str(packed)]) == 0
    assert packed.read_bytes() == (out / "model.icse").read_bytes()
    assert run.main(["unpack", str(packed), "-o", str(back)]) == 0
    for a, b in zip(kernels(back), kernels(out / "clustered.h5"), strict=True):
        assert_array_equal(a, b)
    capsys.readouterr()
    assert run.main(["info", str(packed), "--json", str(tmp_path / "i.json")]) == 0
    assert f"{packed.stat().st_size:,} bytes" in capsys.readouterr().out
    assert json.loads((tmp_path / "i.json").read_text())["total"]["file"] == packed.stat().st_size
    # A model that is not clustered goes through without loss as well.
    assert run.main(["pack", str(model), "-o", str(packed)]) == 0
    for a, b in zip(kernels(packed), kernels(model), strict=True):
        assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore")
def test_tied_weights_stay_tied_while_they_train(model, rng):
    import keras

    from quantization.finetune import TiedWeights
    from speech.net.constraints import HeldZeros

    kernel = clustered_layers(cluster_layers(read_model_file(model).layers, Codebooks(k=4)))[1]
    kernel = kernel.weights["kernel"]
    tied = TiedWeights(kernel)

    def applied(constraint, array):
        return keras.ops.convert_to_numpy(constraint(keras.ops.convert_to_tensor(array)))

    assert_array_equal(applied(tied, kernel), kernel)
    step = rng.normal(0, 0.01, kernel.shape).astype("f4")
    moved = applied(tied, kernel + step)
    for value in np.unique(kernel):
        where = kernel == value
        expected = 0 if value == 0 else (kernel + step)[where].mean(dtype="f8")
        np.testing.assert_allclose(moved[where], expected, rtol=1e-5, atol=1e-7)
        assert len(np.unique(moved[where])) == 1
    held = applied(HeldZeros(kernel != 0), kernel + step)
    assert_array_equal(held == 0, kernel == 0)


@pytest.mark.filterwarnings("ignore")
def test_fine_tuning_keeps_codebooks_resumes_and_scores(model, tmp_path, capsys):
    out = tmp_path / "q"
    command = [str(model), "-k", "4", "-o", str(out), "--work", str(tmp_path / "work"),
               "--rounds", "1", "--finetune-epochs", "1", "--centroids", "fp16",
               "--json", str(tmp_path / "r.json"), *SMALL]  # fmt: skip
    assert run.main(command) == 0
    assert_same_files(out)
    tuned = kernels(out / "model.icse")
    for before, after in zip(kernels(model), tuned, strict=True):
        assert_array_equal(after[:, before.any(axis=0)] != 0, before[:, before.any(axis=0)] != 0)
        values = np.unique(after[after != 0])
        assert len(values) <= 4
        assert_array_equal(values, values.astype("f2").astype("f4"))
    assert zeros(out / "model.icse") == zeros(model)
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["name"] for row in result["scores"]] == ["noisy", "before", "after"]
    assert "epoch" in capsys.readouterr().out
    assert run.main(command) == 0
    assert "epoch" not in capsys.readouterr().out
    for a, b in zip(tuned, kernels(out / "model.icse"), strict=True):
        assert_array_equal(a, b)
    # Other codebooks in the same folder: its finished run was once taken for theirs.
    command[command.index("4")] = "3"
    assert run.main(command) == 1
    assert "round-1 holds a run with init" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--lambda", "0.01"], ["--lambda", "0.01", "--centroids", "int8"]]
)
def test_lambda_writes_both_files_the_same(flags, model, tmp_path, capsys, signals):
    out = tmp_path / "q"
    assert run.main([str(model), "-o", str(out), *flags]) == 0
    assert_same_files(out)
    for before, after in zip(kernels(model), kernels(out / "model.icse"), strict=True):
        assert not after[:, ~before.any(axis=0)].any()
    meta = read_model_file(out / "model.icse").meta["quantization"]
    assert meta["lambda"] == 0.01 and "k" not in meta
    assert meta["centroids"] == (flags[3] if len(flags) > 2 else "fp16")
    assert "paper rule" in capsys.readouterr().out


@pytest.fixture
def signals(monkeypatch, rng):
    """Short signals in place of the bundled mixtures."""
    found = [rng.normal(0, 0.1, (2000, 1)).astype("f4") for _ in range(3)]
    monkeypatch.setattr("quantization.calibration.bundled_signals", lambda: found)
    return found


def test_a_target_is_kept(model, tmp_path, signals, capsys):
    sizes = []
    for share in (0.95, 0.85):
        out = tmp_path / f"q{share}"
        whole = tmp_path / "whole"
        assert run.main([str(model), "-k", "16", "-o", str(whole)]) == 0
        target = int(share * (whole / "model.icse").stat().st_size)
        flags = ["--target-bytes", str(target), "-o", str(out)]
        assert run.main([str(model), *flags]) == 0
        assert_same_files(out)
        sizes.append((out / "model.icse").stat().st_size)
        assert sizes[-1] <= target
    assert sizes[1] < sizes[0]
    capsys.readouterr()
    flags = ["--target-percent", "0.5", "-o", str(tmp_path / "none")]
    assert run.main([str(model), *flags]) == 1
    assert "cannot be reached: the smallest file" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_tfmot_gets_the_network_as_it_is_and_the_centroids_of_kmeans(model, tmp_path, monkeypatch):
    seen = {}

    def cluster(layers, codebooks, **settings):
        seen.update(layers=layers, codebooks=codebooks)
        return cluster_layers(layers, Codebooks(k=4))

    monkeypatch.setattr(process, "cluster", cluster)
    config = TrainingConfig(epochs=2, learning_rate=1e-3)
    how = Continuation(None, None, config, [], "none", {"kind": "waveform"})
    monkeypatch.setattr(process, "continuation", lambda *arguments: how)
    out = tmp_path / "q"
    flags = ["-k", "4", "--method", "tfmot", "-o", str(out), "--work", str(tmp_path / "w")]
    flags += ["--gpu", "-1"]
    assert run.main([str(model), *flags]) == 0
    for given, kernel in zip(clustered_layers(seen["layers"]), kernels(model), strict=True):
        assert_array_equal(given.weights["kernel"], kernel)
    start = cluster_layers(read_model_file(model).layers, Codebooks(k=4))
    for layer in clustered_layers(start):
        kernel = layer.weights["kernel"]
        assert_array_equal(seen["codebooks"][layer.name], np.unique(kernel[kernel != 0]))


def test_a_layer_of_one_value(rng):
    """TF-MOT needs two centroids; a centroid of zero is one of them."""
    layers = network(rng, (1, 2, 1))
    layers[1].weights["kernel"][:] = np.float32(0.25)
    layers[4].weights["kernel"][:] = np.resize(np.float32([-1, 1, 3]), (11, 2, 1))
    clustered = list(layers)
    clustered[4] = run_with_kernel(layers[4], np.where(layers[4].weights["kernel"] > 2, 3, 0))
    found = process.codebooks_of(layers, clustered)
    one, two = found[layers[1].name]
    assert one == np.float32(0.25) and 0 < two - one < 1e-6
    assert_array_equal(found[layers[4].name], [0, 3])
    with pytest.raises(ValueError, match="only 1 distinct weights"):
        cluster_layers(layers, Codebooks(k=2))


def run_with_kernel(layer, kernel):
    from quantization.kmeans import with_kernel

    return with_kernel(layer, kernel.astype("f4"))


@pytest.mark.filterwarnings("ignore")
def test_lambda_is_fine_tuned_in_rounds(model, tmp_path, capsys):
    out = tmp_path / "q"
    command = [str(model), "--lambda", "0.01", "-o", str(out), "--work", str(tmp_path / "work"),
               "--rounds", "1", "--finetune-epochs", "1", *SMALL]  # fmt: skip
    assert run.main(command) == 0
    assert_same_files(out)
    for before, after in zip(kernels(model), kernels(out / "model.icse"), strict=True):
        assert not after[:, ~before.any(axis=0)].any()
    assert capsys.readouterr().out.count("lambda      0.01") == 2


# --------------------------------------------------------------------------------------------
# A network over time and frequency


@pytest.fixture
def spectral(tmp_path):
    """Such a network, pruned, with batch normalisation."""
    layers = mask_layers()
    layers = sparsity.apply_masks(layers, sparsity.masks_for_share(layers, 0.2, per_layer=True))
    write_model_file(tmp_path / "tf.h5", layers, TINY.meta())
    return tmp_path / "tf.h5"


@pytest.fixture
def speech_like(monkeypatch, rng):
    """Short signals in place of the bundled mixtures."""
    found = [(tone(800 * (n + 1), 6000) + 0.1 * rng.normal(0, 1, 6000))[:, None].astype("f4")
             for n in range(3)]  # fmt: skip
    monkeypatch.setattr("quantization.calibration.bundled_signals", lambda: found)
    return graphs.spectra_of(graphs.at_levels(found), MaskConventions.of(TINY.meta()))


def tone(frequency_hz, num_samples):
    return 0.3 * np.sin(2 * np.pi * frequency_hz / 16000 * np.arange(num_samples))


def output_error(path, other, spectra):
    """Power of the error of the estimates relative to theirs, through Keras."""
    from speech.net.keras_models import build_model

    one, two = (build_model(read_model_file(x).layers) for x in (path, other))
    parts = []
    for spectrum in spectra:
        wanted, found = (
            np.asarray(model(spectrum.features[None]))[0].view("c8")[..., 0] * spectrum.noisy
            for model in (one, two)
        )
        parts.append(np.sum(np.abs(found - wanted) ** 2) / np.sum(np.abs(wanted) ** 2))
    return np.mean(parts)


def is_zero(path):
    return {
        layer.name: taps_of(layer) == 0
        for layer in read_model_file(path).layers
        if has_kernel(layer)
    }


@pytest.mark.parametrize("flags", [[], ["--keep-norms"], ["--layer-k", "block1_bands=2"]])
def test_kmeans_of_a_network_over_time_and_frequency(
    flags, spectral, tmp_path, speech_like, capsys
):
    out = tmp_path / "q"
    assert run.main([str(spectral), "-k", "16", "-o", str(out), *flags]) == 0
    assert_same_files(out)
    file = read_model_file(out / "model.icse")
    norms = sum(layer.class_name == "BatchNormalization" for layer in file.layers)
    assert (norms > 0) == ("--keep-norms" in flags)
    assert ("folded      11 batch normalisations" in capsys.readouterr().out) == (norms == 0)
    assert file.kind == "complex_mask"
    before, after = is_zero(spectral), is_zero(out / "clustered.h5")
    for layer in clustered_layers(file.layers):
        assert_array_equal(after[layer.name], before[layer.name])
        most = 2 if layer.name == "block1_bands" and "--layer-k" in flags else 16
        values = np.unique(layer.weights["kernel"])
        assert len(values[values != 0]) <= most
    if "--layer-k" not in flags:
        assert output_error(spectral, out / "model.icse", speech_like) < 0.03


def test_accounting_of_kernels_of_four_axes(spectral, tmp_path):
    out, table = tmp_path / "q", tmp_path / "q.json"
    assert run.main([str(spectral), "-k", "4", "-o", str(out), "--json", str(table)]) == 0
    result = json.loads(table.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert result["total"]["file"] == (out / "model.icse").stat().st_size
    layers = read_model_file(out / "clustered.h5").layers
    for layer in clustered_layers(layers):
        kernel, row = layer.weights["kernel"], rows[layer.name]
        # Columns that are not all zero: of a convolution its channels, of a matrix its outputs.
        flat = kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1])
        matrix = kernel if kernel.ndim == 2 else flat
        kept = matrix.any(axis=0)
        mask = 0 if kept.all() else -(-kept.size // 8)
        counts = np.unique(matrix[:, kept], return_counts=True)[1]
        bits = int(np.ceil(np.log2(len(counts))))
        assert row["paper"] == (kernel != 0).sum() * 2 / 8
        assert row["packed"] == mask + 4 * len(counts) + counts.sum() * bits / 8
    biases = sum(x.weights["bias"].size for x in layers if "bias" in x.weights)
    assert rows["biases, norms"]["packed"] == 2 * biases


def test_rate_and_distortion_of_a_network_over_time_and_frequency(
    spectral, tmp_path, speech_like, capsys
):
    """A smaller file with a smaller error than k-means has; zeros stay."""
    found = {}
    for name, flags in (
        ("k", ["-k", "4", "--centroids", "fp16"]), ("coarse", ["--lambda", "0.003"]),
        ("fine", ["--lambda", "0.0003"]),
    ):  # fmt: skip
        out = tmp_path / name
        assert run.main([str(spectral), "-o", str(out), *flags]) == 0
        assert_same_files(out)
        packed = out / "model.icse"
        found[name] = packed.stat().st_size, output_error(spectral, packed, speech_like)
        for layer, zero in is_zero(out / "clustered.h5").items():
            assert zero[is_zero(spectral)[layer]].all()
    assert found["coarse"][0] < found["fine"][0] and found["coarse"][1] > found["fine"][1]
    assert found["coarse"][0] < found["k"][0] and found["coarse"][1] < found["k"][1]


def test_a_target_size_of_a_network_over_time_and_frequency(spectral, tmp_path, speech_like):
    out = tmp_path / "q"
    assert run.main([str(spectral), "-k", "8", "-o", str(tmp_path / "whole")]) == 0
    target = int(0.9 * (tmp_path / "whole" / "model.icse").stat().st_size)
    flags = ["--target-bytes", str(target), "-o", str(out)]
    assert run.main([str(spectral), *flags]) == 0
    assert_same_files(out)
    assert 0.7 * target < (out / "model.icse").stat().st_size <= target


def test_a_target_error_of_a_network_over_time_and_frequency(
    spectral, tmp_path, speech_like, capsys
):
    sizes = []
    for target in (10, 20):
        out = tmp_path / f"q{target}"
        assert run.main([str(spectral), "--target-snr", str(target), "-o", str(out)]) == 0
        assert read_model_file(out / "model.icse").meta["quantization"]["target_snr_db"] == target
        sizes.append((out / "model.icse").stat().st_size)
        error = output_error(spectral, out / "model.icse", speech_like)
        assert target - 0.05 < -10 * np.log10(error) < target + 2
    assert sizes[0] < sizes[1]
    capsys.readouterr()
    words = ["--target-snr", "60", "--centroids", "int8", "-o", str(tmp_path / "none")]
    assert run.main([str(spectral), *words]) == 1
    assert "cannot be reached: the smallest is" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_target_error_is_refused_where_nothing_runs_the_network(tmp_path, capsys):
    network, conventions = build_expert()
    path = tmp_path / "expert.h5"
    save_model(network, path, {"kind": "mask", **conventions.to_json()})
    assert run.main([str(path), "--target-snr", "20", "-o", str(tmp_path / "q")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "expert.h5: --target-snr measures outputs" in line and not (tmp_path / "q").exists()


def test_a_target_error_of_a_chain(model, tmp_path, signals, capsys):
    out = tmp_path / "q"
    assert run.main([str(model), "--target-snr", "15", "-o", str(out)]) == 0
    measure = budget.error_measure(read_model_file(model).layers, signals)
    error = measure(read_model_file(out / "model.icse").layers)
    assert 14.95 < -10 * np.log10(error) < 17
    assert "output at" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_fine_tuning_of_a_network_over_time_and_frequency(spectral, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("speech.training.datasets._VALIDATION_PIECES", 2)
    out = tmp_path / "q"
    flags = [x for x in PIECES if x != "--retrain"]
    flags = [x for n, x in enumerate(flags) if not {"--retrain-epochs", "--final-epochs"}
             & set(flags[max(n - 1, 0) : n + 1])]  # fmt: skip
    command = [str(spectral), "-k", "4", "-o", str(out), "--work", str(tmp_path / "work"),
               "--rounds", "1", "--finetune-epochs", "1", *flags]  # fmt: skip
    assert run.main(command) == 0
    assert_same_files(out)
    start = cluster_layers(
        fold_batch_normalization(read_model_file(spectral).layers), Codebooks(k=4)
    )
    before, zero = is_zero(spectral), is_zero(out / "model.icse")
    moved = False
    for layer, old in zip(
        clustered_layers(read_model_file(out / "model.icse").layers), clustered_layers(start),
        strict=True,
    ):  # fmt: skip
        assert_array_equal(zero[layer.name], before[layer.name])
        values = np.unique(layer.weights["kernel"])
        assert len(values[values != 0]) <= 4
        moved |= not np.array_equal(values, np.unique(old.weights["kernel"]))
    assert moved
    capsys.readouterr()
    assert run.main(command) == 0
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-k", "1"], "k is 1"),
        (["-k", "100"], "distinct weights"),
        (["--lambda", "0"], "lambda is"),
        (["--layer-k", "nowhere=4"], "no layer 'nowhere'"),
        (
            ["-k", "4", "--finetune-epochs", "1", "--timit", "/absent", "--noise", "/absent"],
            "absent",
        ),
    ],
)
def test_values_that_make_no_sense_are_one_line(flags, message, model, tmp_path, capsys):
    out = tmp_path / "q"
    assert run.main([str(model), "-o", str(out), "--work", str(tmp_path / "w"), *flags]) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    "flags",
    [["--rounds", "2"], ["--layer-k", "conv1"], ["-k", "x"],
     ["--rounds", "1", "--finetune-epochs", "1", "--method", "tfmot"],
     ["--lambda", "0.01", "-k", "4"], ["--target-bytes", "5k", "-k", "4"], ["--target-bytes", "x"],
     ["--target-bytes", "5k", "--target-percent", "4"], ["--target-percent", "100"],
     ["--lambda", "0.01", "--method", "tfmot"],
     ["--target-bytes", "5k", "--per-sign"], ["--lambda", "0.01", "--no-entropy"],
     ["--lambda", "0.01", "--target-bytes", "5k"],
     ["-k", "4", "--target-snr", "20"], ["--target-snr", "20", "--target-bytes", "5k"],
     ["--target-snr", "20", "--lambda", "0.01"], ["--target-snr", "0"],
     ["--target-snr", "20", "--method", "tfmot"],
     ["-k", "4", "--weighting", "plain"], ["--finetune-epochs", "1", "--snr-range", "5", "0"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(flags, model):
    with pytest.raises(SystemExit) as caught:
        run.main([str(model), *flags])
    assert caught.value.code == 2


def test_one_call_does_what_the_command_does(model, tmp_path, capsys):
    by_command, by_call = tmp_path / "command", tmp_path / "call"
    assert run.main([str(model), "-k", "4", "-o", str(by_command)]) == 0
    printed, said = capsys.readouterr().out, []
    found = quantize_file(model, by_call, QuantizationConfig(k=4), say=said.append)
    for name in ("clustered.h5", "model.icse"):
        assert (by_call / name).read_bytes() == (by_command / name).read_bytes()
    assert found.packed_bytes == found.packed.stat().st_size == sum(x.file for x in found.rows)
    assert said and "\n".join(said) in printed and capsys.readouterr().out == ""


def test_a_plan_does_not_change_but_returns_what_was_found(model, signals):
    layers = read_model_file(model).layers
    sizes, said = [], []

    def size_of(network, settings):
        sizes.append(settings["lambda"])
        return len(icse.pack(network, {}))

    plan = ByLambda(RateDistortion(), layers, signals, size_of, say=said.append)
    target = int(0.9 * size_of(plan(layers)[0], plan.settings))
    plan, before = replace(plan, target_bytes=target), plan.settings
    quantized, found = plan(layers)
    assert plan.settings == before and not plan.is_found and found.is_found
    assert found.how.lam > plan.how.lam and set(sizes) == {before["lambda"]}
    assert not found.is_missed(quantized) and plan.is_missed(layers)
    said.clear()
    again, _ = found(layers)  # starts where the search ended
    assert said[0].startswith(f"lambda      {found.how.lam:.4g}: ")
    clustered, by_k = ByK(Codebooks(k=4))(layers)
    assert by_k.settings["k"] == 4 and not by_k.is_missed(clustered)


@pytest.mark.parametrize("of_spectra", [False, True])
def test_a_search_weighs_the_layers_of_a_network_once(of_spectra, request, monkeypatch):
    names = ("spectral", "speech_like") if of_spectra else ("model", "signals")
    path, inputs = map(request.getfixturevalue, names)
    where = graphs if of_spectra else calibration
    weigh, weighed, said = where.sensitivities, [], []
    monkeypatch.setattr(
        where, "sensitivities", lambda *given: weighed.append(given) or weigh(*given)
    )
    plan = ByLambda(
        RateDistortion(), read_model_file(path).layers, inputs, lambda *_: 1, target_snr_db=17,
        say=said.append,
    )  # fmt: skip
    plan(plan.original)
    assert len(said) > 1 and len(weighed) == 1


def test_an_error_counts_from_the_network_that_is_quantized(model, signals):
    """Between rounds that is one that was trained on, not the one in the file."""
    layers = read_model_file(model).layers
    trained = tuple(
        replace(layer, weights={key: 1.3 * array for key, array in layer.weights.items()})
        for layer in layers
    )
    plan = ByLambda(
        RateDistortion(), layers, signals, lambda *_: 1, target_snr_db=20, say=lambda line: None
    )
    quantized, _ = plan(trained)
    error = budget.error_measure(trained, signals)(quantized)
    assert error <= 0.01 < budget.error_measure(layers, signals)(trained)


def test_the_model_itself_is_not_overwritten(model, tmp_path, capsys):
    for name in ("clustered.h5", "model.icse"):
        (tmp_path / name).write_bytes(model.read_bytes())
        assert run.main([str(tmp_path / name), "-k", "4", "-o", str(tmp_path)]) == 1
        assert "would overwrite the model; choose another -o" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == model.read_bytes()


def test_a_damaged_container_is_one_line(model, tmp_path, capsys):
    packed = tmp_path / "p.icse"
    icse.write_compact(packed, read_model_file(model).layers, {})
    packed.write_bytes(packed.read_bytes()[:-9])
    for command in (["info", str(packed)], ["unpack", str(packed)], [str(packed), "-k", "4"]):
        assert run.main(command) == 1
        assert "p.icse" in capsys.readouterr().err
    assert run.main(["unpack", str(model)]) == 1
    assert "not a packed model file" in capsys.readouterr().err
