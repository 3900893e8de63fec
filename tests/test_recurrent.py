"""Recurrent layers: files, execution by NumPy and by Keras, experts in a pool, quantization."""

import json
import re
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from eval.cost import cost_of
from mnn import select, sequences
from mnn.arbiter import Arbiter
from mnn.dae import Autoencoder
from mnn.expert_files import Place, open_expert
from mnn.features import Conventions, level
from mnn.layers import load_network
from mnn.scoring import needs_of
from mnn.sequences import SequenceNetwork
from pruning.run import main as prune
from quantization.config import QuantizationConfig
from quantization.finetune import constrain
from quantization.kmeans import Codebooks, cluster_layers, clustered_kernels
from quantization.process import quantize_file
from quantization.run import main as quantize
from speech.modelfile.h5 import write_model_file
from speech.modelfile.icse import inspect_compact
from speech.modelfile.read import read_model_file
from speech.modelfile.spec import LayerSpec, ModelFileError
from speech.net.enhancer import Enhancer
from speech.net.keras_models import build_model, layers_of, save_model
from speech.sound import blocks
from speech.sound.audio import peak_normalize
from speech.sound.stft import istft, stft
from tests import recurrent_files
from tests.builders import make_speech
from tests.mnn_files import NUM_BINS, dense, write, write_dae, write_fcn, write_mask
from tests.recurrent_files import (
    HOSTILE,
    VARIANTS,
    bidirectional,
    frames_input,
    recurrent,
    small_network,
    write_recurrent_mask,
    write_small,
)
from tests.reference import recurrent_oracle

#: Keras and NumPy 2 disagree on how arrays are copied when Keras writes a file.
LIBRARY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KERAS_2 = Path(__file__).parent / "golden" / "keras2"
MERGES = ("concat", "sum", "mul", "ave")


def all_layers(rng, channels=5):
    """Returns a layer of every variant, alone and in both directions."""
    found = []
    for number, (class_name, changes) in enumerate(VARIANTS.values()):
        found.append(recurrent(f"one{number}", class_name, 4, channels, rng, **changes))
        merge = MERGES[number % len(MERGES)]
        found.append(
            bidirectional(f"two{number}", class_name, 3, channels, rng, merge=merge, **changes)
        )
    return found


def run_numpy(layers, frames):
    return SequenceNetwork(layers).start()(frames)


# --------------------------------------------------------------------------------------------
# Execution


def test_layers_are_their_equations(rng, monkeypatch):
    monkeypatch.setattr(sequences, "PIECE_FRAMES", 7)
    frames = rng.standard_normal((30, 5)).astype("f4")
    for layer in all_layers(rng):
        expected = np.array(recurrent_oracle.run(layer, frames))
        found = run_numpy((frames_input(5), layer), frames)
        assert found.dtype == np.float32
        assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=repr(layer.config))


def test_keras_computes_the_same(rng):
    """One model of all layers side by side: starting Keras sixteen times is slow."""
    frames = rng.standard_normal((25, 5)).astype("f4")
    found = all_layers(rng)
    join = LayerSpec("Concatenate", "join", {"axis": -1}, {}, tuple(one.name for one in found))
    sides = [LayerSpec(x.class_name, x.name, x.config, x.weights, ("frames",)) for x in found]
    model = build_model((frames_input(5), *sides, join))
    by_keras = np.array(model(frames[np.newaxis]))[0]
    by_numpy = [run_numpy((frames_input(5), layer), frames) for layer in found]
    assert_allclose(np.concatenate(by_numpy, axis=1), by_keras, rtol=1e-5, atol=1e-5)


def test_blocks_carry_the_state(rng):
    frames = rng.standard_normal((40, 5)).astype("f4")
    layers = (
        frames_input(5),
        recurrent("lstm", "LSTM", 6, 5, rng),
        recurrent("gru", "GRU", 4, 6, rng),
        recurrent("rnn", "SimpleRNN", 3, 4, rng),
    )
    network = SequenceNetwork(layers)
    assert network.is_causal
    whole = network.start()(frames)
    for cuts in ([1, 2, 3], [20], [0, 39, 39]):
        run = network.start()
        parts = [run(part) for part in np.split(frames, cuts)]
        assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-6)
    assert not SequenceNetwork(small_network(rng)).is_causal


# --------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("suffix", [".h5", ".icse"])
def test_files_are_exact(suffix, rng, tmp_path):
    layers = cluster_layers(small_network(rng), Codebooks(k=4))
    file = read_model_file(write(tmp_path / f"x{suffix}", layers, {"kind": "test"}))
    assert [layer.class_name for layer in file.layers] == [x.class_name for x in layers]
    for one, other in zip(layers, file.layers, strict=True):
        assert one.config == other.config and list(one.weights) == list(other.weights)
        for key, array in one.weights.items():
            assert array.tobytes() == other.weights[key].tobytes()


@LIBRARY
def test_keras_opens_what_we_write_and_we_what_it_writes(rng, tmp_path):
    frames = rng.standard_normal((1, 9, 5)).astype("f4")
    layers = small_network(rng)
    write_model_file(tmp_path / "ours.h5", layers, {})
    model = keras.models.load_model(tmp_path / "ours.h5", compile=False)
    expected = run_numpy(layers, frames[0])
    assert_allclose(np.array(model(frames))[0], expected, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "theirs.h5")
    found = read_model_file(tmp_path / "theirs.h5").layers
    for one, other in zip(layers, found, strict=True):
        assert one.config == other.config
        for key, array in one.weights.items():
            assert_array_equal(array, other.weights[key])
    for one, other in zip(layers, layers_of(model), strict=True):
        for key, array in one.weights.items():
            assert_array_equal(array, other.weights[key])


def test_files_of_tf_keras_give_what_they_gave_there():
    expected = json.loads((KERAS_2 / "outputs.json").read_text())["k2_lstm"]
    frames = (np.sin(np.arange(60) ** 1.3 / 5) / 2).astype("f4").reshape(20, 3)
    file = read_model_file(KERAS_2 / "k2_lstm.h5")
    assert_allclose(run_numpy(file.layers, frames), expected, rtol=0, atol=2e-6)
    with h5py.File(KERAS_2 / "k2_lstm.h5") as stored:
        group = stored["model_weights/both/both"]
        names = [f"{way}_gru/gru_cell/{key}:0" for way in ("forward", "backward")
                 for key in ("kernel", "recurrent_kernel", "bias")]  # fmt: skip
        both = next(layer for layer in file.layers if layer.name == "both")
        for name, array in zip(names, both.weights.values(), strict=True):
            assert_array_equal(array, group[name][()])


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_recurrent_layer_is_refused_in_one_line(name, tmp_path):
    spoil, match = HOSTILE[name]
    path = write_small(tmp_path / "good.h5")
    spoil(path)
    with pytest.raises(ModelFileError, match=match) as refusal:
        read_model_file(path)
    assert "\n" not in str(refusal.value) and path.name in str(refusal.value)


def test_settings_that_change_nothing_are_left_out(tmp_path):
    path = write_small(tmp_path / "good.h5")
    before = read_model_file(path)
    for index in (1, 2):
        harmless = {
            "unroll": True, "unit_forget_bias": False, "implementation": 1, "time_major": False,
            "zero_output_for_mask": True, "kernel_initializer": {"class_name": "Zeros"}, "seed": 3,
        }  # fmt: skip
        spoil = (
            recurrent_files.sets(1, **harmless)
            if index == 1
            else recurrent_files.inside(**harmless)
        )
        spoil(path)
    recurrent_files.inside("backward_layer")(path)
    assert [x.config for x in read_model_file(path).layers] == [x.config for x in before.layers]


# --------------------------------------------------------------------------------------------
# Experts


@pytest.fixture
def noisy(rng):
    return make_speech(rng, 20_000).astype(np.float32)


def heard(tmp_path, experts, noisy, **options):
    dae = Autoencoder(write_dae(tmp_path / "judge.h5"))
    return Arbiter(dae, needs_of("ae", "paper")).hear(noisy, experts, **options)


def write_both(path):
    return write_recurrent_mask(path, "GRU", context=3, both=True, bias=1.0)


EXPERTS = {
    "causal": lambda path: write_recurrent_mask(path),
    "context": lambda path: write_recurrent_mask(path, "GRU", context=3, bias=-1.0),
    "both ways": write_both,
    "packed": lambda path: write_recurrent_mask(path.with_suffix(".icse"), "SimpleRNN"),
    "magnitude": lambda path: write_recurrent_mask(path, kind="magnitude"),
    "no meta": lambda path: write_recurrent_mask(path, context=3, meta={}),
    "both ways, no meta": lambda path: write_recurrent_mask(path, both=True, meta={}),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_a_recurrent_expert_hears_all_frames(name, tmp_path, noisy, monkeypatch):
    path = EXPERTS[name](tmp_path / "x.h5")
    expert = open_expert(path)
    assert expert.kind == ("magnitude" if name == "magnitude" else "mask")
    spectra = stft(noisy)
    frames = np.abs(spectra) / (level(noisy) * np.sqrt(expert.conventions.stft.window_energy))
    context = expert.conventions.context
    places = np.arange(len(frames))[:, None] + np.arange(context) - context // 2
    joined = frames[places.clip(0, len(frames) - 1)].reshape(len(frames), -1)
    mask = run_numpy(read_model_file(path).layers, joined.astype("f4"))
    if name == "magnitude":
        mask = np.divide(mask, frames, out=np.zeros_like(mask), where=frames > 0)
    expected = istft((mask * spectra).astype(np.complex64), len(noisy))
    judged = []
    for size in (4096, 5):
        monkeypatch.setattr(blocks, "BLOCK_FRAMES", size)
        beside = open_expert(write_mask(tmp_path / "dense.h5", 0.5, context=5))
        hearing, other = heard(tmp_path, [expert, beside], noisy)
        assert hearing.reason == other.reason == ""
        assert_allclose(hearing.signal, expected, rtol=0, atol=1e-5)
        judged.append(hearing.statistics.frames)
        assert_allclose(expert.signal(noisy, level(noisy), Place()), expected, rtol=0, atol=1e-5)
        (run,) = Arbiter(Autoencoder(tmp_path / "judge.h5"), ()).run(noisy, [expert])
        assert_allclose(run.signal, expected, rtol=0, atol=1e-5)
    for key, values in judged[0].items():
        assert_allclose(judged[1][key], values, rtol=1e-3, atol=1e-5)


def test_a_network_of_both_directions_has_a_longest_signal(tmp_path, noisy, monkeypatch):
    pool = [open_expert(write_both(tmp_path / "both.h5")),
            open_expert(write_recurrent_mask(tmp_path / "causal.h5"))]  # fmt: skip
    monkeypatch.setattr("mnn.expert_files.MAX_BYTES", 200_000)
    both, causal = heard(tmp_path, pool, noisy)
    assert re.search("both.h5: .*all frames of a signal at once.*bytes of memory", both.reason)
    assert causal.reason == ""
    (hearing,) = Arbiter(Autoencoder(tmp_path / "judge.h5"), ()).run(noisy, pool[:1])
    assert hearing.reason == both.reason


def test_what_overflows_is_out(tmp_path, noisy):
    rng = np.random.default_rng(0)
    layers = [
        frames_input(NUM_BINS),
        recurrent("x", "SimpleRNN", 4, NUM_BINS, rng, scale=9, activation="linear"),
        dense("output", np.ones((4, NUM_BINS)), np.zeros(NUM_BINS)),
    ]
    path = write(tmp_path / "x.h5", layers, {"kind": "mask", **Conventions(1).to_json()})
    (hearing,) = heard(tmp_path, [open_expert(path)], noisy)
    assert "NaN" in hearing.reason or "beyond measure" in hearing.reason


def test_keras_runs_what_numpy_does_not(tmp_path, noisy):
    """A residual around an LSTM, and batch normalisation: a graph."""
    inputs = keras.Input((None, NUM_BINS))
    x = keras.layers.Dense(6)(inputs)
    x = keras.layers.Add()([x, keras.layers.LSTM(6, return_sequences=True)(x)])
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dense(NUM_BINS, "sigmoid")(x))
    save_model(model, tmp_path / "x.h5", {"kind": "mask", **Conventions(1).to_json()})
    expert = open_expert(tmp_path / "x.h5")
    (hearing,) = heard(tmp_path, [expert], noisy)
    spectra = stft(noisy)
    frames = np.abs(spectra) / (level(noisy) * np.sqrt(expert.conventions.stft.window_energy))
    mask = np.array(model(frames[np.newaxis].astype("f4")))[0]
    expected = istft((mask * spectra).astype(np.complex64), len(noisy))
    assert_allclose(hearing.signal, expected, rtol=0, atol=1e-5)


def test_shapes_that_are_no_frames_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    meta = {"kind": "mask", **Conventions(1).to_json()}
    narrow = [frames_input(NUM_BINS), recurrent("x", "LSTM", 3, NUM_BINS, rng)]
    with pytest.raises(ValueError, match="gives 3, but its speech_meta calls for 513 and 513"):
        open_expert(write(tmp_path / "narrow.h5", narrow, meta))
    turned = [frames_input(NUM_BINS), LayerSpec("Permute", "p", {"dims": [2, 1]})]
    with pytest.raises(ValueError, match="does not give a frame for each frame"):
        open_expert(write(tmp_path / "turned.h5", turned, meta))
    with pytest.raises(ValueError, match="what does it take and give"):
        open_expert(write(tmp_path / "open.h5", narrow, {}))


def test_judges_are_networks_of_frames(tmp_path):
    path = write_recurrent_mask(tmp_path / "x.h5", kind="autoencoder")
    with pytest.raises(ValueError, match="layer 'memory' is a LSTM, expected Dense layers only"):
        load_network(path, "autoencoder")


def test_recurrent_experts_beside_dense_ones_are_chosen_from(tmp_path, monkeypatch, capsys):
    """On bundled clips, by the shipped autoencoder: the LSTM lets speech through, others less."""
    monkeypatch.setattr(select, "NUM_CLIPS_EACH", 1)
    experts = [
        write_recurrent_mask(tmp_path / "lstm.h5", bias=1.0, seed=1),
        write_recurrent_mask(tmp_path / "gru.icse", "GRU", both=True, context=3, bias=-2.0),
        write_mask(tmp_path / "dense.h5", -3.0, spread=0.3),
        write_fcn(tmp_path / "fcn.h5"),
    ]
    report = tmp_path / "report.json"
    arguments = ["--experts", *map(str, experts), "-o", str(tmp_path / "out"), "--json"]
    assert select.main([*arguments, str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["refused"] == [] and len(found["files"]) == 8
    for row in found["files"]:
        assert row["scores"].keys() == {"lstm", "gru", "dense", "fcn"} and not row["disqualified"]
        assert Path(row["output"]).exists()
    capsys.readouterr()


# --------------------------------------------------------------------------------------------
# Smaller files


def test_quantization_clusters_every_kernel(tmp_path, capsys):
    path = write_recurrent_mask(tmp_path / "x.h5", both=True, units=9)
    result = quantize_file(path, tmp_path / "q", QuantizationConfig(k=4))
    file, packed = read_model_file(result.clustered), inspect_compact(result.packed)
    names = ["memory/forward_kernel", "memory/forward_recurrent_kernel",
             "memory/backward_kernel", "memory/backward_recurrent_kernel", "output"]  # fmt: skip
    assert list(clustered_kernels(file.layers)) == list(packed.codings) == names
    assert [row.name for row in result.rows[: len(names)]] == names
    assert sum(row.file for row in result.rows) == result.packed_bytes
    assert result.packed_bytes < result.original_bytes / 10
    for one, other in zip(file.layers, packed.model.layers, strict=True):
        for key, array in one.weights.items():
            assert array.tobytes() == other.weights[key].tobytes()
        for kernel in one.kernels.values():
            assert len(np.unique(kernel)) <= 4
    assert open_expert(result.packed).kind == "mask"
    assert quantize([str(path), "-k", "4", "--layer-k", "memory/forward_kernel=2", "-o",
                     str(tmp_path / "r")]) == 0  # fmt: skip
    kernel = read_model_file(tmp_path / "r" / "model.icse").layers[1].weights["forward_kernel"]
    assert len(np.unique(kernel)) == 2
    assert quantize(["info", str(tmp_path / "r" / "model.icse")]) == 0
    assert "memory/backward_recurrent_kernel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--lambda", "0.01"], "--lambda and targets weigh the kernels of convolutions"),
        (["--target-percent", "10"], "layer 'memory' .LSTM. is recurrent; give -k"),
        (["-k", "4", "--method", "tfmot"], "--method tfmot clusters convolutions and matrices"),
        (["-k", "4", "--finetune-epochs", "1"], "python -m mnn.train expert"),
    ],
)
def test_what_quantization_does_not_do_to_them_is_a_line(words, reason, tmp_path, capsys):
    path = write_recurrent_mask(tmp_path / "x.h5")
    assert quantize([str(path), *words, "-o", str(tmp_path / "q")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(reason, lines[0])


def over_samples(rng, make):
    """Returns a network from samples to samples with a recurrent layer."""
    front = {"filters": 3, "kernel_size": 1, "strides": 1, "padding": "same", "activation": "tanh",
             "data_format": "channels_last", "dilation_rate": 1, "use_bias": False}  # fmt: skip
    kernel = rng.standard_normal((1, 1, 3)).astype("f4")
    middle = make("memory", "LSTM", 4, 3, rng)
    width = 8 if make is bidirectional else 4
    return [
        frames_input(1),
        LayerSpec("Conv1D", "front", front, {"kernel": kernel}),
        middle,
        dense("output", rng.standard_normal((width, 1)), np.zeros(1), "tanh"),
    ]


@pytest.mark.parametrize("make", [recurrent, bidirectional])
def test_networks_over_samples_may_be_recurrent(make, rng, tmp_path):
    layers = over_samples(rng, make)
    path = write(tmp_path / "x.icse", layers, {"kind": "waveform"})
    signal = peak_normalize(rng.standard_normal(300)).astype("f4")
    front = dense("front", layers[1].weights["kernel"][0], np.zeros(3), "tanh")
    expected = run_numpy([layers[0], front, *layers[2:]], signal[:, np.newaxis])[:, 0]
    assert open_expert(path).kind == "waveform"
    assert_allclose(Enhancer(path)(signal), expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_reads_backwards_is_not_trained_on_batches(rng, tmp_path, capsys):
    path = write(tmp_path / "x.h5", over_samples(rng, bidirectional), {"kind": "waveform"})
    words = ["-k", "3", "--finetune-epochs", "1", "-o", str(tmp_path / "q")]
    assert quantize([str(path), *words]) == 1
    assert "'memory' (Bidirectional) would read the padding" in capsys.readouterr().err


def test_fine_tuning_ties_recurrent_kernels(rng):
    network = (
        frames_input(5),
        recurrent("memory", "GRU", 4, 5, rng),
        bidirectional("both", "LSTM", 2, 4, rng, merge="sum"),
    )
    layers = cluster_layers(network, Codebooks(k=3))
    model = build_model(layers)
    constrain(model, layers, tied=True)
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False, run_eagerly=True)
    model.train_on_batch(rng.standard_normal((4, 3, 5)), rng.uniform(size=(4, 3, 2)))
    trained = clustered_kernels(layers_of(model))
    for name, kernel in clustered_kernels(layers).items():
        assert len(np.unique(trained[name])) <= 3
        assert not np.array_equal(trained[name], kernel)
        for value in np.unique(kernel):
            assert len(np.unique(trained[name][kernel == value])) == 1


def test_pruning_leaves_recurrent_kernels_as_they_are(tmp_path, capsys):
    rng = np.random.default_rng(0)
    layers = [
        frames_input(NUM_BINS),
        dense("front", rng.standard_normal((NUM_BINS, 8)), np.zeros(8), "relu"),
        recurrent("memory", "LSTM", 6, 8, rng),
        dense("output", rng.standard_normal((6, NUM_BINS)), np.zeros(NUM_BINS), "sigmoid"),
    ]
    path = write(tmp_path / "x.h5", layers, {"kind": "mask", **Conventions(1).to_json()})
    assert prune([str(path), "--target-sparsity", "0.3", "-o", str(tmp_path / "p.h5")]) == 0
    assert "recurrent layers stay as they are: memory" in capsys.readouterr().out
    front, memory_layer = read_model_file(tmp_path / "p.h5").layers[1:3]
    assert 0.2 < np.mean(front.weights["kernel"] == 0) < 0.4
    for key, array in layers[2].weights.items():
        assert_array_equal(memory_layer.weights[key], array)
    only = write_recurrent_mask(tmp_path / "only.h5")
    assert prune([str(only), "--theta", "0.6", "-o", str(tmp_path / "q.h5")]) == 1
    assert "no layer that may be pruned" in capsys.readouterr().err
    assert prune([str(path), "--remove-filters", "0.3", "-o", str(tmp_path / "r.h5")]) == 1
    assert "memory is a LSTM: no filter in front of it can be" in capsys.readouterr().err


def test_costs_count_every_kernel(tmp_path):
    cost = cost_of(write_recurrent_mask(tmp_path / "x.h5", both=True, units=5))
    assert cost.total("mac") == 2 * (NUM_BINS + 5) * 20 + 10 * NUM_BINS
    assert cost.total("parameters") == read_model_file(tmp_path / "x.h5").num_parameters
    assert cost.latency_ms is None
    assert cost_of(write_recurrent_mask(tmp_path / "y.h5")).latency_ms == 0
