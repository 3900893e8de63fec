"""Files through a network over time and frequency: streams of any rate, format and length."""

import importlib.util
import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from speech.enhance import main
from speech.modelfile.meta import META_ATTRIBUTE
from speech.modelfile.read import read_model_file
from speech.net.enhancer import Enhancer
from speech.sound.audio import (
    StreamResampler,
    fit_length,
    open_audio,
    read_multichannel,
    resample,
    write_blocks,
)
from tests.builders import (
    TINY,
    conv2d,
    graph,
    make_speech,
    mask_layers,
    write_mask_network,
    write_sound,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.h5"
    write_mask_network(path)
    return path


def enhance(source, target, model, *options):
    return main([str(source), "-o", str(target), "--model", str(model), *options])


# --------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(("factor", "said_db"), [(3e3, 66.0), (32768, 86.8), (8.0, None)])
def test_samples_far_beyond_full_scale_are_told(factor, said_db, model, tmp_path, capsys):
    loud = np.zeros((16000, 2))
    loud[7000, 1] = -2 / 3 * factor
    source = write_sound(tmp_path / "loud.wav", loud, 44100)
    summary = tmp_path / "files.json"
    assert enhance(source, tmp_path / "out.wav", model, "--json", str(summary)) == 0
    said = capsys.readouterr().err
    (row,) = json.loads(summary.read_text())["files"]
    if said_db is None:
        assert said == "" and "over_full_scale_db" not in row
    else:
        assert row["over_full_scale_db"] == pytest.approx(said_db, abs=0.2)
        assert re.search(rf"loud.wav: .*{row['over_full_scale_db']:.0f} dB above full scale", said)


@pytest.mark.parametrize(
    ("rate_hz", "channels", "suffix", "subtype"),
    [(16000, 1, ".wav", "FLOAT"), (44100, 2, ".flac", "PCM_24"), (8000, 3, ".wav", "PCM_16"),
     (48000, 8, ".wav", "FLOAT"), (11025, 1, ".ogg", "VORBIS"), (22050, 1, ".aiff", "PCM_U8")],
)  # fmt: skip
def test_a_file_is_what_its_channels_are(
    rate_hz, channels, suffix, subtype, model, tmp_path, rng, monkeypatch
):
    monkeypatch.setattr("speech.sound.audio._BLOCK_VALUES", 5000)  # several blocks
    samples = np.stack([0.2 * make_speech(rng, 9001) * 0.7**c for c in range(channels)], axis=1)
    if subtype == "PCM_U8":
        suffix, subtype = ".wav", "PCM_U8"
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    write_sound(source, samples, rate_hz, subtype)
    assert enhance(source, target, model) == 0
    before, after = soundfile.info(source), soundfile.info(target)
    for name in ("samplerate", "channels", "frames", "format", "subtype"):
        assert getattr(before, name) == getattr(after, name), name
    enhancer, noisy = Enhancer(model), read_multichannel(source).samples
    found, _ = soundfile.read(target, always_2d=True)
    step = {"PCM_16": 2**-15, "PCM_U8": 2**-7, "VORBIS": 0.1}.get(subtype, 1e-5)
    for channel in range(channels):
        at_16k = resample(np.ascontiguousarray(noisy[:, channel]), rate_hz, 16000)
        expected = resample(enhancer.enhance(at_16k), 16000, rate_hz)
        assert_allclose(found[:, channel], fit_length(expected, 9001), rtol=0, atol=step)


@pytest.mark.parametrize("num_samples", [1, 2, 100, 511, 16000])
@pytest.mark.parametrize("rate_hz", [16000, 16001])
def test_any_length(num_samples, rate_hz, model, tmp_path, rng):
    source = write_sound(tmp_path / "in.wav", 0.1 * rng.standard_normal(num_samples), rate_hz)
    assert enhance(source, tmp_path / "out.wav", model) == 0
    assert soundfile.info(tmp_path / "out.wav").frames == num_samples


def test_the_level_is_that_of_the_mask_unless_a_peak_is_asked_for(model, tmp_path, rng):
    samples = np.stack([0.3 * make_speech(rng, 8000), 0.01 * make_speech(rng, 8000)], axis=1)
    source = write_sound(tmp_path / "in.wav", samples)
    assert enhance(source, tmp_path / "a.wav", model) == 0
    assert enhance(source, tmp_path / "b.wav", model, "--peak", "0.5") == 0
    plain, _ = soundfile.read(tmp_path / "a.wav")
    scaled, _ = soundfile.read(tmp_path / "b.wav")
    enhancer = Enhancer(model)
    expected = np.stack([enhancer.enhance(samples[:, c]) for c in (0, 1)], axis=1)
    assert_allclose(plain, expected, rtol=0, atol=1e-6)
    assert np.abs(scaled).max() == pytest.approx(0.5, rel=1e-6)
    assert_allclose(scaled, plain * (0.5 / np.abs(plain).max()), rtol=0, atol=1e-6)


def loud_model(path):
    """A network whose mask makes everything much louder."""
    layers = graph(conv2d("hidden", "input", 3, 8), conv2d("mask", "hidden", 8, 2))
    layers[-1].weights["kernel"][:] = 0
    layers[-1].weights["bias"][:] = [2, 0]
    write_mask_network(path, layers)
    return path


@pytest.mark.parametrize(("suffix", "subtype"), [(".wav", "PCM_16"), (".flac", "PCM_24")])
def test_integers_do_not_clip(suffix, subtype, tmp_path, rng, capsys):
    model = loud_model(tmp_path / "loud.h5")
    samples = 0.5 * np.sin(np.arange(9000) * 0.2)[:, None] * [1.0, 0.1]
    source = write_sound(tmp_path / f"in{suffix}", samples, subtype=subtype)
    summary = tmp_path / "summary.json"
    target = tmp_path / f"out{suffix}"
    assert enhance(source, target, model, "--json", str(summary)) == 0
    found, _ = soundfile.read(target)
    # 2 to the power of 1 / 0.3 is 10.08: 5.04, turned down to 1.
    assert np.abs(found).max() == pytest.approx(1, abs=1e-4)
    assert np.count_nonzero(np.abs(found) > 0.9999) < 40  # tips, no plateaus
    assert np.abs(found[:, 1]).max() == pytest.approx(0.1, abs=1e-3)
    row = json.loads(summary.read_text())["files"][0]
    assert row["turned_down_db"] == pytest.approx(20 * np.log10(0.5 * 2 ** (1 / 0.3)), abs=0.1)
    assert row["way"] == "stream"
    said = capsys.readouterr().err
    assert re.search(r"turned down by 14\.[01] dB", said)
    assert "were clipped" not in said


def test_floats_keep_what_is_beyond_full_scale(tmp_path):
    model = loud_model(tmp_path / "loud.h5")
    source = write_sound(tmp_path / "in.wav", 0.5 * np.sin(np.arange(9000) * 0.2))
    assert enhance(source, tmp_path / "out.wav", model) == 0
    assert np.abs(soundfile.read(tmp_path / "out.wav")[0]).max() == pytest.approx(5.04, rel=0.01)


def test_a_folder_keeps_its_tree_and_bad_files_are_listed(model, tmp_path, rng, capsys):
    folder = tmp_path / "in"
    write_sound(folder / "a" / "one.wav", make_speech(rng, 4000), subtype="PCM_16")
    write_sound(folder / "b" / "two.flac", make_speech(rng, 4000), subtype="PCM_16")
    write_sound(folder / "b" / "silent.wav", np.zeros(4000))
    bad = make_speech(rng, 3000)
    bad[[7, 2000]] = np.nan, np.inf
    write_sound(folder / "nan.wav", bad)
    write_sound(folder / "none.wav", np.zeros(0))
    write_sound(folder / "fast.wav", np.zeros(20), 768000)
    cut = write_sound(folder / "cut.flac", make_speech(rng, 90000), subtype="PCM_16")
    cut.write_bytes(cut.read_bytes()[:-4000])
    (folder / "text.wav").write_text("not audio")
    assert enhance(folder, tmp_path / "out", model) == 0
    written = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*"))
    assert [str(p) for p in written] == ["a/one.wav", "b/silent.wav", "b/two.flac"]
    assert not soundfile.read(tmp_path / "out" / "b" / "silent.wav")[0].any()
    output = capsys.readouterr()
    assert "3 enhanced, 5 skipped" in output.out
    assert "nan.wav: 2 samples are NaN or infinite; convert the file again" in output.err
    assert "none.wav: holds no samples; record or copy it again" in output.err
    assert "fast.wav: too short, nothing is left at 16000 Hz" in output.err
    assert "cut.flac" in output.err and "text.wav: cannot be decoded" in output.err


def test_what_is_said(model, tmp_path, rng, capsys):
    source = write_sound(tmp_path / "in.wav", make_speech(rng, 4000))
    assert enhance(source, tmp_path / "out.wav", model, "--json", str(tmp_path / "s.json")) == 0
    said = capsys.readouterr().out
    assert re.search(r"network   complex_mask, .* reach 0\.14 s \(9 frames\), latency 32 ms", said)
    assert "way       1 as streams" in said
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["kind"] == "complex_mask" and summary["summary"]["latency_ms"] == 32


def test_memory_does_not_grow_with_the_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr("speech.sound.audio._BLOCK_VALUES", 1 << 16)
    monkeypatch.setenv("SPEECH_THREADS", "1")
    rng, peaks = np.random.default_rng(0), []
    for seconds in (25, 60):
        source = tmp_path / f"{seconds}.wav"
        write_sound(source, 0.1 * rng.standard_normal((8000 * seconds, 2)), 8000, "PCM_16")
        tracemalloc.start()
        assert enhance(source, tmp_path / "out.wav", model) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def run_apart(code, source, target, model, **settings):
    """Enhances in a process of its own, then runs ``code`` there."""
    start = "import sys; from speech.enhance import main; assert main(sys.argv[1:]) == 0; "
    arguments = [str(source), "-o", str(target), "--model", str(model)]
    subprocess.run(
        [sys.executable, "-c", start + code, *arguments], check=True, capture_output=True, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), **settings},
    )  # fmt: skip
    return soundfile.read(target)[0]


def test_where_there_are_kernels_neither_tensorflow_nor_keras_is_loaded(model, tmp_path, rng):
    if Enhancer(model).engine != "c":
        pytest.skip("no C compiler here")
    source = write_sound(tmp_path / "in.wav", 0.1 * make_speech(rng, 4000))
    code = "assert not {'tensorflow', 'keras', 'torch', 'jax'} & set(sys.modules)"
    assert run_apart(code, source, tmp_path / "out.wav", model).any()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_elsewhere_keras_runs_on_the_backend_that_was_chosen(backend, model, tmp_path, rng):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"no {backend} here")
    source = write_sound(tmp_path / "in.wav", 0.1 * make_speech(rng, 4000))
    code = f"import keras; assert keras.backend.backend() == {backend!r}"
    settings = {"SPEECH_NO_C_KERNELS": "1", "KERAS_BACKEND": backend}
    found = run_apart(code, source, tmp_path / "out.wav", model, **settings)
    expected = Enhancer(model).enhance(soundfile.read(source)[0])
    assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_plain_keras_does_the_same_in_the_lines_that_the_guide_shows(
    model, tmp_path, rng, monkeypatch
):
    text = (ROOT / "docs" / "network.md").read_text("utf-8")
    code = re.search(r"<!-- plain Keras -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    for num_samples in (1, 256, 5000):
        noisy = make_speech(rng, num_samples).astype(np.float32)
        write_sound(tmp_path / "noisy.wav", noisy)
        (tmp_path / "tf.h5").write_bytes(model.read_bytes())
        found = {}
        exec(code, found)
        expected = Enhancer(model).enhance(noisy)
        assert_allclose(found["clean"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --------------------------------------------------------------------------------------------
# Models that are no good


def forged(path, **changes):
    """Writes a good model file and changes the JSON of its attributes."""
    write_mask_network(path)
    with h5py.File(path, "r+") as file:
        for name, change in changes.items():
            value = json.loads(file.attrs[name])
            change(value)
            file.attrs[name] = json.dumps(value)
    return path


def without(key):
    return lambda meta: meta.pop(key)


def layer_of(config, name):
    return next(x for x in config["config"]["layers"] if x["config"]["name"] == name)


def cycle(config):
    names = [entry["config"]["name"] for entry in config["config"]["layers"]]
    skip = next(n for n in names if n.endswith("_add"))
    layer_of(config, skip)["inbound_nodes"][0][1][0] = names[-2]


def other_skip(config):
    names = [entry["config"]["name"] for entry in config["config"]["layers"]]
    layer_of(config, "mask_skip")["inbound_nodes"][0][1][0] = next(
        name for name in names if name.startswith("bands_down")
    )


def nan_weights(path):
    write_mask_network(path)
    with h5py.File(path, "r+") as file:
        file["model_weights/mask/mask/bias"][0] = np.nan
    return path


def wrong_shape(path):
    write_mask_network(path)
    with h5py.File(path, "r+") as file:
        weights = file["model_weights/mask/mask"]
        del weights["bias"]
        weights["bias"] = np.zeros(3, "f4")
    return path


BAD = {
    **{
        f"no {key}": (
            lambda path, key=key: forged(path, **{META_ATTRIBUTE: without(key)}),
            f"bad.h5: 'speech_meta' lacks '{key}'.*save it with the conventions",
        )
        for key in ("stft", "power", "features", "sample_rate_hz")
    },
    "no kind": (
        lambda path: forged(path, **{META_ATTRIBUTE: without("kind")}),
        "bad.h5: is a network of unknown kind, not one from waveform to waveform or one over time",
    ),
    "8 kHz": (
        lambda path: forged(path, **{META_ATTRIBUTE: lambda m: m.update(sample_rate_hz=8000)}),
        "bad.h5: trained at 8000 Hz; only 16000 Hz is supported",
    ),
    "frames of another length": (
        lambda path: forged(path, **{META_ATTRIBUTE: lambda m: m["stft"].update(frame=1024)}),
        "bad.h5: the input has the shape",
    ),
    "a cycle": (lambda path: forged(path, model_config=cycle), "bad.h5: the graph has a cycle"),
    "a skip of another shape": (
        lambda path: forged(path, model_config=other_skip), "bad.h5: .*mask_skip.* (adds|axes)"),
    "NaN": (nan_weights, "bad.h5: .*mask/bias.* holds NaN"),
    "a weight of another shape": (wrong_shape, r"bad.h5: .*bias.* has shape \(3,\)"),
    "looks ahead": (
        lambda path: write_mask_network(path, graph(conv2d("m", "input", 3, 2, (3, 1)))),
        "bad.h5: the 'complex_mask' network reads 1 frames ahead",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_one_line(name, tmp_path, rng, capsys):
    make, reason = BAD[name]
    make(tmp_path / "bad.h5")
    source = write_sound(tmp_path / "in.wav", make_speech(rng, 4000))
    assert enhance(source, tmp_path / "out.wav", tmp_path / "bad.h5") == 1
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and re.search(reason, said), said
    assert not (tmp_path / "out.wav").exists()


# --------------------------------------------------------------------------------------------
# Parts


def test_the_kind_of_a_file(tmp_path):
    """What the meta data says, else what the shapes say."""
    file = read_model_file(forged(tmp_path / "x.h5"))
    assert file.kind == "complex_mask"
    bare = {META_ATTRIBUTE: without("kind")}
    assert read_model_file(forged(tmp_path / "x.h5", **bare)).kind == ""
    odd = {META_ATTRIBUTE: lambda meta: meta.update(kind=["complex_mask"])}
    assert read_model_file(forged(tmp_path / "x.h5", **odd)).kind == "['complex_mask']"
    assert read_model_file(ROOT / "models" / "fcn.h5").kind == "waveform"


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 16000), (16000, 48000), (8000, 8000)])
@pytest.mark.parametrize("num_samples", [1, 7, 5000])
def test_a_stream_is_resampled_as_the_whole(from_hz, to_hz, num_samples, rng):
    signal = rng.standard_normal((num_samples, 2)).astype(np.float32)
    stream = StreamResampler(from_hz, to_hz, 2)
    parts = [stream.push(signal[start : start + 777]) for start in range(0, num_samples, 777)]
    found = np.concatenate([*parts, stream.finish()])
    assert_allclose(found, resample(signal, from_hz, to_hz), rtol=0, atol=1e-6)


def test_reading_by_blocks(tmp_path, rng, monkeypatch):
    monkeypatch.setattr("speech.sound.audio._BLOCK_VALUES", 1000)
    samples = rng.uniform(-1, 1, (1234, 3)).astype(np.float32)
    path = write_sound(tmp_path / "x.wav", samples, 22050)
    with open_audio(path) as reader:
        assert (reader.sample_rate_hz, reader.num_channels, reader.num_samples) == (22050, 3, 1234)
        blocks = list(reader.blocks())
    assert max(map(len, blocks)) == 333
    assert_array_equal(np.concatenate(blocks), samples)


def test_writing_stops_where_the_blocks_do(tmp_path):
    def blocks():
        yield np.zeros((10, 1))
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        write_blocks(tmp_path / "x.wav", blocks(), 1)
    assert not list(tmp_path.iterdir())
    write_blocks(tmp_path / "x.wav", [np.zeros((70000, 2)), np.ones((1, 2))], 2, 8000, "PCM_16")
    assert soundfile.info(tmp_path / "x.wav").frames == 70001


def test_layers_of_the_tiny_network_are_those_of_the_real_ones():
    classes = {layer.class_name for layer in mask_layers(TINY)}
    assert {"Conv2D", "Conv2DTranspose", "Dense", "Permute", "Add"} < classes
