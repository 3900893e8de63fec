"""The command: choices written and told, two stages, segments, bad input."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from mnn import select
from mnn.ranker import Ranker
from mnn.select import main
from tests.builders import make_speech
from tests.mnn_files import write_dae, write_fcn, write_mask, write_ranker

ROOT = Path(__file__).parent.parent
LOW = np.where(np.arange(513) < 100, 4.0, -4.0)


@pytest.fixture
def pool(tmp_path):
    """Experts that keep what is low, what is high, and about all."""
    folder = tmp_path / "pool"
    files = [
        write_mask(folder / "low.h5", LOW, spread=0.3, seed=1),
        write_mask(folder / "high.icse", -LOW, spread=0.3, seed=2),
        write_fcn(folder / "fcn.h5"),
    ]
    write_dae(folder / "dae.h5")
    return [str(path) for path in files]


@pytest.fixture
def noisy(tmp_path, rng):
    folder = tmp_path / "noisy"
    for name, rate_hz, channels in (("a/one.wav", 16000, 1), ("two.flac", 44100, 2)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        samples = np.stack([make_speech(rng, rate_hz) for _ in range(channels)], axis=1)
        soundfile.write(folder / name, samples, rate_hz)
    return folder


@pytest.fixture
def run(tmp_path, pool, capsys):
    def call(*words, experts=pool, dae=True):
        arguments = ["--experts", *experts] if experts else []
        arguments += [str(word) for word in words]
        arguments += ["--dae", str(tmp_path / "pool" / "dae.h5")] if dae else []
        arguments += ["--json", str(tmp_path / "report.json")]
        if "-o" not in arguments:
            arguments += ["-o", str(tmp_path / "out")]
        code = main(arguments)
        report = tmp_path / "report.json"
        report = json.loads(report.read_text()) if report.exists() else None
        return code, report, capsys.readouterr()

    return call


def test_the_chosen_signals_are_written(run, pool, noisy, tmp_path):
    code, report, output = run(noisy)
    assert code == 0
    assert [row["input"] for row in report["files"]] == [
        str(noisy / "a" / "one.wav"), str(noisy / "two.flac"),
    ]  # fmt: skip
    for row in report["files"]:
        before, after = soundfile.info(row["input"]), soundfile.info(row["output"])
        for name in ("samplerate", "channels", "frames", "format", "subtype"):
            assert getattr(before, name) == getattr(after, name), name
        assert set(row["scores"]) == {"low", "high", "fcn"}
        best = min(row["scores"], key=row["scores"].get)
        assert row["pick"] == best and f"-> {best}" in output.out
    assert sum(report["picks"].values()) == 2 and "picks       " in output.out
    assert [len(expert["sha256"]) for expert in report["experts"]] == [64, 64, 64]
    assert len(report["dae"]["sha256"]) == 64 and report["scoring"] == "voiced"
    chosen = report["files"][0]
    pick = next(path for path in pool if Path(path).stem == chosen["pick"])
    alone = tmp_path / "alone"
    first = soundfile.read(chosen["output"])[0]
    code, _, output = run(noisy / "a" / "one.wav", "-o", alone / "x.wav", experts=[pick])
    assert code == 0 and "one expert: there is nothing to choose" in output.out
    assert_array_equal(soundfile.read(alone / "x.wav")[0], first)
    # One call does what the command does.
    paths = tuple(map(Path, pool))
    config = select.SelectConfig(
        (noisy,), tmp_path / "out", paths, dae=tmp_path / "pool" / "dae.h5"
    )
    result = select.select(config).to_json()
    changing = {"seconds"}
    assert {k: v for k, v in result.items() if k not in changing} == {
        k: v for k, v in report.items() if k not in changing
    }
    with pytest.raises(ValueError, match="--check compares"):
        select.SelectConfig(check=True)


def test_order_of_experts_does_not_matter(run, pool, noisy):
    _, report, _ = run(noisy)
    _, turned, _ = run(noisy, experts=pool[::-1])
    assert [row["pick"] for row in report["files"]] == [row["pick"] for row in turned["files"]]
    for one, other in zip(report["files"], turned["files"], strict=True):
        assert one["scores"] == other["scores"]


@pytest.mark.parametrize(
    "words",
    [
        ["--metric", "snr"],
        ["--scoring", "paper"],
        ["--scoring", "level", "--draws", "2", "--seed", "3"],
        ["--combine"],
        ["--combine", "--granularity", "segment", "--segment-seconds", "0.25"],
    ],
)
def test_ways_to_choose(run, noisy, words):
    code, report, _ = run(noisy, *words)
    assert code == 0
    for row in report["files"]:
        weights = np.array(list(row["weights"].values()))
        assert_allclose(weights.sum(axis=0), 1, rtol=1e-9)
        assert weights.shape[1] == (4 if "segment" in words else 1)
        soft = "--combine" in words
        assert np.any((weights > 0) & (weights < 1)) == soft


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--combine"],
        ["--combine", "bands"],
        ["--granularity", "segment", "--segment-seconds", "0.3"],
    ],
)
@pytest.mark.parametrize("judge", ["ranker", "both"])
def test_a_ranker_judges(run, pool, noisy, tmp_path, judge, words):
    ranker = write_ranker(tmp_path / "ranker.icse")
    words = [*words, "--judge", judge, "--ranker", ranker]
    code, report, output = run(*words, noisy)
    assert code == 0 and report["judge"] == judge and str(ranker) in output.out
    assert report["ranker"]["sha256"] == Ranker(ranker).file.sha256
    assert ("\nbest " in output.out) == ("--combine" in words) != ("\npicks " in output.out)
    if "--combine" in words:
        said = "-> all, by time and band" if "bands" in words else " % low + "
        assert output.out.count(said) == len(report["files"])
    for row in report["files"]:
        assert all(score > 0 for score in row["scores"].values())
        found, _ = soundfile.read(row["output"], always_2d=True)
        assert np.isfinite(found).all() and found.any()
    _, turned, _ = run(*words, noisy, experts=pool[::-1])
    assert [row["pick"] for row in report["files"]] == [row["pick"] for row in turned["files"]]


def test_copies_choose_by_the_ranker_too(run, pool, noisy, tmp_path):
    ranker = write_ranker(tmp_path / "ranker.icse")
    for words in ([], ["--combine", "bands"]):
        code, report, _ = run(
            noisy,
            "--judge",
            "both",
            "--ranker",
            ranker,
            "--selector-experts",
            *pool,
            "--check",
            *words,
        )
        assert code == 0 and report["agreement"] == 1.0


def test_segments_take_the_better_expert_of_each(run, tmp_path, rng):
    """A low tone, then a high one: the candidates are each good for one half."""
    time_s = np.arange(16000) / 16000
    halves = [np.sin(2 * np.pi * hz * time_s) for hz in (200, 5000)]
    noise = 0.1 * rng.standard_normal(32000)
    noisy = tmp_path / "in" / "x.wav"
    noisy.parent.mkdir()
    soundfile.write(noisy, 0.3 * (np.concatenate(halves) + noise), 16000, subtype="FLOAT")
    words = [noisy, "--granularity", "segment", "--segment-seconds", "1"]
    code, report, output = run(*words)
    row = report["files"][0]
    assert code == 0 and [part["start_s"] for part in row["segments"]] == [0.0, 1.0]
    whole = soundfile.read(row["output"])[0]
    assert len(whole) == 32000 and np.all(np.isfinite(whole))
    for place, part in enumerate(row["segments"]):
        index = next(n for n, name in enumerate(row["weights"]) if name == part["pick"])
        assert list(row["weights"].values())[index][place] == 1


def test_two_stages_run_the_winner_in_full(run, pool, noisy, tmp_path):
    masks = pool[:2]
    small = [
        write_mask(tmp_path / "s" / "low.icse", LOW, spread=0.3, seed=1),
        write_mask(tmp_path / "s" / "high.icse", -LOW, spread=0.3, seed=2),
    ]
    _, alone, _ = run(noisy, experts=masks)
    signals = [soundfile.read(row["output"])[0] for row in alone["files"]]
    code, report, output = run(noisy, "--selector-experts", *small, "--check", experts=masks)
    assert code == 0 and "agreement   100.0 %" in output.out and report["agreement"] == 1.0
    assert report["seconds"]["choosing"] > 0
    assert [row["pick"] for row in report["files"]] == [row["pick"] for row in alone["files"]]
    for row, signal in zip(report["files"], signals, strict=True):
        assert_allclose(soundfile.read(row["output"])[0], signal, rtol=0, atol=1e-4)
    assert [len(e["sha256"]) for e in report["selector_experts"]] == [64, 64]
    code, report, output = run(noisy, "--selector-experts", *small, experts=masks)
    assert report["agreement"] is None and "agreement" not in output.out


def test_the_next_best_serves_where_a_winner_fails(run, pool, noisy, tmp_path, monkeypatch):
    _, alone, _ = run(noisy, experts=pool[:2])
    pick = alone["files"][0]["pick"]
    from mnn.arbiter import Arbiter

    original = Arbiter.run

    def failing(self, signal, experts, place=None):
        hearings = original(self, signal, experts, place)
        for hearing in hearings:
            if hearing.expert.name == pick:
                hearing.reason, hearing.signal = "gave a NaN", None
        return hearings

    monkeypatch.setattr(Arbiter, "run", failing)
    words = ["--selector-experts", *pool[:2]]
    code, report, output = run(noisy / "a" / "one.wav", *words, experts=pool[:2])
    row = report["files"][0]
    assert code == 0 and row["pick"] != pick and row["disqualified"] == {pick: "gave a NaN"}
    monkeypatch.setattr(
        Arbiter, "run",
        lambda self, signal, experts, place=None: [
            setattr(h, "reason", "gone") or h for h in original(self, signal, experts, place)
        ],
    )  # fmt: skip
    code, _, output = run(noisy / "a" / "one.wav", *words, experts=pool[:2])
    assert code == 1 and "no expert is left" in output.err


def test_candidates_of_other_tools_join(run, noisy, tmp_path):
    made = tmp_path / "made"
    (made / "a").mkdir(parents=True)
    samples, rate_hz = soundfile.read(noisy / "a" / "one.wav")
    soundfile.write(made / "a" / "one.wav", 0.9 * samples, rate_hz)
    code, report, output = run(noisy, "--candidates", f"tool={made}")
    assert code == 0 and "tool" in report["files"][0]["scores"]
    assert "tool" not in report["files"][1]["scores"]
    assert "no file for two.flac" in report["files"][1]["disqualified"]["tool"]
    assert "disqualified for" in output.err and "(folder)" in output.out
    assert "out         tool: 1 of 2 files" in output.out
    code, report, _ = run(noisy, "--candidates", f"tool={made}", experts=[])
    assert code == 0 and len(report["files"]) == 1 and len(report["skipped"]) == 1


def test_bad_experts_and_files_leave_the_others(run, pool, noisy, tmp_path):
    evil = tmp_path / "evil.h5"
    evil.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    slow = write_fcn(tmp_path / "slow.h5", meta={"kind": "waveform", "sample_rate_hz": 8000})
    (noisy / "text.wav").write_text("not audio")
    soundfile.write(noisy / "silent.wav", np.zeros(5000), 16000)
    pool = [*pool, str(evil), str(slow)]
    code, report, output = run(noisy, experts=pool)
    assert code == 0 and len(report["files"]) == 3 and len(report["experts"]) == 3
    assert "refused: " in output.err and "evil.h5" in output.err and "8000 Hz" in output.err
    assert len(report["refused"]) == 2 and "text.wav" in report["skipped"][0]["input"]
    silent = next(row for row in report["files"] if row["silent"])
    assert silent["pick"] in silent["scores"] and "(silent input)" in output.out
    assert not soundfile.read(silent["output"])[0].any()
    code, _, output = run(noisy, "--strict", experts=pool)
    assert code == 1 and len(output.err.strip().splitlines()) == 1 and "evil.h5" in output.err


@pytest.mark.parametrize("peak", [1e-42, 1e-36, 1e-30, 1e30])
def test_any_level_that_a_float_has_is_enhanced(run, pool, tmp_path, rng, peak):
    samples = (peak * make_speech(rng, 4000)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="FLOAT")
    code, report, output = run(tmp_path / "x.wav", experts=pool)
    assert code == 0 and not output.err
    chosen = soundfile.read(report["files"][0]["output"])[0]
    assert np.isfinite(chosen).all() and np.abs(chosen).max() <= 4 * np.abs(samples).max()


@pytest.mark.parametrize(
    ("words", "experts", "reason"),
    [
        (["x.wav"], ["missing.h5"], "no expert is left, all were refused"),
        (["missing.wav"], None, "missing.wav: no such file"),
        (["x.wav", "--dae", "low.h5"], None, "speech_meta says kind 'mask'"),
        (["x.wav", "--dae", "missing_dae.h5"], None, "missing_dae.h5: no such model file"),
        (["x.wav", "--candidates", "a=nothing"], None, ""),
    ],
)
def test_bad_input_is_a_line(run, pool, tmp_path, monkeypatch, words, experts, reason, rng):
    monkeypatch.chdir(tmp_path / "pool")
    soundfile.write("x.wav", make_speech(rng, 3000), 16000)
    code, _, output = run(*words, experts=experts or pool, dae="--dae" not in words)
    if reason:
        assert code == 1 and reason in output.err.strip().splitlines()[-1]
    else:
        assert code == 0 and "nothing: no such folder" in output.err
    assert "Traceback" not in output.err


def test_shipped_files_that_are_missing_are_named(run, tmp_path, monkeypatch, noisy):
    missing = tmp_path / "nowhere" / "dae.h5"
    monkeypatch.setattr(select, "DEFAULT_DAE", missing)
    code = main([str(noisy), "--dae", str(missing), "-o", str(tmp_path / "out")])
    assert code == 1
    monkeypatch.setattr(select, "DEFAULT_EXPERTS", (tmp_path / "nowhere" / "a.h5",))
    code, _, output = run(noisy, experts=[])
    assert code == 1 and "the shipped expert is not there" in output.err
    assert len(output.err.strip().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--experts"], "expected at least one argument"),
        (["--experts", "a.wav", "--dae", "x.h5"], "names no model file"),
        (["--experts", "a.h5", "--selector-experts", "a.h5", "b.h5"], "give as many"),
        (["--experts", "a.h5", "--check"], "--check compares"),
        (["--selector-experts", "a.h5"], "1 --selector-experts for 3 --experts"),
        (["--experts", "a.h5", "--selector-experts", "b.h5", "--candidates", "x=y"], "leave out"),
        (["--candidates", "tool"], "write NAME=PATH"),
        (["--granularity", "segment", "--segment-seconds", "0"], "give 0.1 to 3600"),
    ],
)
def test_wrong_usage_is_exit_code_2(words, reason, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and re.search(reason, capsys.readouterr().err)


def test_without_inputs_it_takes_bundled_clips(run, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(select, "NUM_CLIPS_EACH", 1)
    code, report, output = run(experts=pool[:2])
    assert code == 0 and len(report["files"]) == 8
    assert all(Path(row["output"]).is_relative_to(tmp_path / "out" / "selected")
               for row in report["files"])  # fmt: skip


def test_imports_and_help_need_no_tensorflow():
    code = (
        "import sys, mnn.arbiter, speech.sound.blocks, mnn.pool, mnn.scoring\n"
        "from mnn.select import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'tensorflow', 'keras', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
