"""Scoring: one bad file costs itself only, nothing is scored twice, and tables count right."""

import json
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from eval import isolation, scoring
from eval.metrics import METRICS, OK
from eval.scoring import DEFAULT_METRICS, Task
from speech.base.children import Child
from speech.data.corpus import bundled_noise, bundled_speech
from speech.sound.audio import read_audio
from speech.sound.mixing import loop_or_crop, mix_at_snr

CHEAP = ("stoi", "si_sdr")


@pytest.fixture(scope="module")
def pair():
    clean = read_audio(bundled_speech("TEST")[0].path).samples[8000:32000].astype(float)
    noise = read_audio(bundled_noise("TEST")[0].path).samples.astype(float)
    mixture = mix_at_snr(clean, loop_or_crop(noise, len(clean)), 5.0)
    return mixture.clean, mixture.noisy


@pytest.fixture
def folder(pair, tmp_path):
    clean, noisy = pair
    for name, samples in (("clean", clean), ("noisy", noisy), ("half", 0.5 * noisy)):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
    return tmp_path


def task(folder, name="noisy", system="noisy", noisy=None):
    return Task(system, folder / f"{name}.wav", folder / "clean.wav", "n", 5.0, name, noisy)


def row(system="noisy", noise="a", snr_db=0.0, name="x", value=1.0, **others):
    keys = {"system": system, "noise": noise, "snr_db": snr_db, "name": name}
    return keys | dict.fromkeys(METRICS, value) | others | {"status": "ok"}


def test_one_bad_file_changes_no_mean(folder, pair):
    soundfile.write(folder / "silent.wav", 0 * pair[1], 16000, subtype="FLOAT")
    (folder / "cut.wav").write_bytes((folder / "noisy.wav").read_bytes()[:5000])
    tasks = [task(folder, name) for name in ("noisy", "silent", "cut", "missing")]
    rows = scoring.score_all(tasks, num_jobs=1)
    assert [row["status"] == "ok" for row in rows] == [True, False, False, False]
    assert "truncated" in rows[2]["status"]
    overall = scoring.summarize(rows)[-1]
    assert (overall["n"], overall["unscored"]) == (1, 3)
    assert overall["stoi"] == rows[0]["stoi"]
    text = scoring.format_table(scoring.summarize(rows))
    assert "3 of the files could not be scored" in text
    assert scoring.json_ready(rows)[1]["stoi"] is None
    assert scoring.to_csv(rows).count("\n") == 5
    assert list(rows[0])[4:-1] == list(DEFAULT_METRICS)


def kill_on_half(task, metrics, convert):
    """Stands for a metric whose C code crashes on one file."""
    if task.name == "half":
        os.kill(os.getpid(), signal.SIGSEGV)
    return {name: scoring.Score(1.0) for name in metrics}


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_a_file_that_kills_its_process_costs_itself_only(folder, monkeypatch, num_jobs):
    monkeypatch.setattr(scoring, "score", kill_on_half)
    tasks = [task(folder, name) for name in ("noisy", "half", "clean", "noisy", "half", "clean")]
    cache = scoring.ScoreCache(folder / "cache.jsonl")
    rows = scoring.score_all(tasks, num_jobs, CHEAP, cache=cache)
    died = "scoring process died (SIGSEGV)"
    assert [row["status"] for row in rows] == [OK, died, OK] * 2
    assert math.isnan(rows[1]["stoi"])
    assert len((folder / "cache.jsonl").read_text().splitlines()) == 4


def test_children_answer_raise_and_are_used_again(capfd):
    one = isolation.run_isolated(os.getpid)
    assert isolation.run_isolated(os.getpid) == one != os.getpid()
    assert isolation.run_isolated(print, "into stderr") is None
    with pytest.raises(ZeroDivisionError):
        isolation.run_isolated(divmod, 1, 0)
    with pytest.raises(isolation.ProcessDied, match="exit code 3"):
        isolation.run_isolated(os._exit, 3)
    isolation.close_idle()
    assert isolation.run_isolated(os.getenv, "OMP_NUM_THREADS") == "1"
    isolation.close_idle()
    assert "into stderr" in capfd.readouterr().err


def test_a_child_ends_with_its_object_but_not_with_a_fork():
    child = Child("operator:call")
    process = child.process
    assert child.call(os.getpid) == process.pid
    fork = multiprocessing.get_context("fork").Process(target=child._end)
    fork.start()
    fork.join()
    assert child.is_alive and child.call(os.getpid) == process.pid
    del child
    assert process.returncode == -signal.SIGKILL


def test_a_child_that_takes_too_long_is_ended_alone():
    start = time.monotonic()
    with pytest.raises(isolation.ProcessDied, match=r"took over 0\.5 s and was ended"):
        isolation.run_isolated(time.sleep, 60, limit_s=0.5)
    assert time.monotonic() - start < 20
    one = isolation.run_isolated(os.getpid, limit_s=60)
    assert isolation.run_isolated(os.getpid) == one  # a limit kept leaves the child alone
    isolation.close_idle()


def test_a_file_that_takes_too_long_to_score_is_a_status(folder, monkeypatch):
    monkeypatch.setattr(scoring, "LIMIT_S", 0.0)
    monkeypatch.setattr(scoring, "_SCORED_BYTES_PER_S", 1e12)
    (row,) = scoring.score_all([task(folder)], 1, CHEAP)
    assert math.isnan(row[CHEAP[0]]) and "s and was ended" in row["status"]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
def test_ctrl_c_ends_a_child_without_a_word_from_its_first_moment(capfd):
    for seconds in (0.0, 0.05, 0.2):
        child = Child("operator:call")
        time.sleep(seconds)
        child.process.send_signal(signal.SIGINT)
        assert child.process.wait(30) == -signal.SIGINT
        assert child.end() == "SIGINT"
    assert capfd.readouterr().err == ""


def test_a_child_whose_parent_was_killed_ends_without_a_word():
    command = [sys.executable, "-c", "from speech.base.children import serve; serve()"]
    command.append("operator:call")
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen(command, **pipes) as child:
        pickle.dump((time.sleep, 0.2), child.stdin)
        child.stdin.close()
        child.stdout.close()  # as a kill does, while the call is under way
        assert child.stderr.read() == b""
        assert child.wait(30) == 0


def test_scores_are_kept_and_found_by_content(folder, monkeypatch):
    path = folder / "cache.jsonl"
    tasks = [task(folder), task(folder, "half", "ours", folder / "noisy.wav")]
    first = scoring.score_all(tasks, 1, CHEAP, cache=scoring.ScoreCache(path))
    with path.open("a") as stream:
        stream.write('{"key": "cut by a ki')
    monkeypatch.setattr(scoring, "_score_isolated", None)  # whatever is scored again fails
    (folder / "half.wav").rename(folder / "renamed.wav")
    tasks[1] = task(folder, "renamed", "ours", folder / "noisy.wav")
    again = scoring.score_all(tasks, 1, CHEAP, cache=scoring.ScoreCache(path))
    assert [r["si_sdr"] for r in again] == [r["si_sdr"] for r in first]
    assert scoring.ScoreCache(path).get(tasks[1], CHEAP, convert=False) == {}
    entries = [json.loads(line) for line in path.read_text().splitlines()[:2]]
    assert set(entries[0]["scores"]) == {f"{name} {METRICS[name].version}" for name in CHEAP}


def test_another_file_or_metric_is_scored(folder, pair):
    path = folder / "cache.jsonl"
    before = scoring.score_all([task(folder)], 1, ("si_sdr",), cache=scoring.ScoreCache(path))
    soundfile.write(folder / "noisy.wav", pair[1] ** 3, 16000, subtype="FLOAT")
    cache = scoring.ScoreCache(path)
    after = scoring.score_all([task(folder)], 1, CHEAP, cache=cache)
    assert after[0]["si_sdr"] != before[0]["si_sdr"]
    assert set(cache.get(task(folder), CHEAP, True)) == set(CHEAP)


def test_published_scaling_spares_the_noisy_file(folder, pair):
    clean, noisy = pair
    names = ("ssnr", "ssnri")
    scores = scoring.score(task(folder, noisy=folder / "noisy.wav"), names)
    noisy_ssnr = METRICS["ssnr"](clean, noisy).value
    assert scores["ssnr"].value == pytest.approx(noisy_ssnr, abs=1e-4)
    assert scores["ssnri"].value == 0.0
    scores = scoring.score(task(folder, "half", "ours", folder / "noisy.wav"), names)
    scaled = METRICS["ssnr"](clean, noisy / np.max(np.abs(noisy))).value
    assert scores["ssnr"].value == pytest.approx(scaled, abs=1e-4)
    assert scores["ssnri"].value == pytest.approx(scaled - noisy_ssnr, abs=1e-4)
    assert (
        "noisy file is not known" in scoring.score(task(folder, "half", "o"), names)["ssnri"].status
    )


def test_lengths_rates_and_channels(folder, pair):
    clean, noisy = pair
    soundfile.write(folder / "longer.wav", np.append(noisy, np.ones(1000)), 16000)
    soundfile.write(folder / "cut.wav", noisy[:-1025], 16000)
    soundfile.write(folder / "8k.wav", noisy[::2], 8000)
    soundfile.write(folder / "stereo.wav", np.stack([noisy, noisy], 1), 16000, subtype="FLOAT")
    alike = METRICS["si_sdr"](clean, noisy).value

    def score(name, convert):
        return scoring.score(task(folder, name), ("si_sdr",), convert)["si_sdr"]

    assert score("longer", False).value == pytest.approx(alike, abs=1e-2)
    assert "24000 and 22975 samples; up to 1024" in score("cut", False).status
    assert "8000 Hz and 1 channels; expected 16000 Hz and one" in score("8k", False).status
    assert score("8k", True).status == OK
    assert "2 channels" in score("stereo", False).status
    assert score("stereo", True).value == pytest.approx(alike, abs=1e-3)


def test_summary_groups_by_noise_and_snr():
    rows = [
        row("noisy", "b", 5.0, value=1.0),
        row("noisy", "a", 10.0, value=2.0),
        row("noisy", "a", math.nan, value=6.0),
        row("enhanced", "b", 5.0, value=3.0),
    ]
    table = scoring.summarize(rows)
    keys = [(g["noise"], g["snr_db"], g["system"]) for g in table]
    assert keys[0] == ("a", 10.0, "noisy")
    assert ("all", 5.0, "enhanced") in keys
    assert ("a", "all", "noisy") in keys
    assert keys[-2:] == [("all", "all", "noisy"), ("all", "all", "enhanced")]
    assert table[-2]["stoi"] == 3.0
    assert table[-2]["stoi_std"] == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert math.isnan(table[-1]["stoi_std"])


def test_unknown_snrs_are_one_condition():
    rows = [row(snr_db=float("nan"), name=str(n)) for n in range(3)]
    table = scoring.summarize(rows)
    assert [(group["noise"], group["n"]) for group in table] == [("a", 3), ("all", 3)]


def test_systems_are_compared_on_the_same_files():
    rows = [row(s, name=n) for s in ("noisy", "enhanced") for n in ("x", "y")]
    rows[3] = rows[3] | {"stoi": math.nan, "pesq_wb": 4.0}
    for group in scoring.summarize(rows):
        assert (group["n"], group["unscored"], group["pesq_wb"]) == (1, 1, 1.0)


def test_a_system_without_any_score_takes_no_file_from_the_others():
    rows = [row(s, name=n) for s in ("noisy", "broken") for n in ("x", "y")]
    rows[2:] = [bad | {"stoi": math.nan} for bad in rows[2:]]
    noisy, broken = scoring.summarize(rows)[-2:]
    assert (noisy["n"], noisy["unscored"]) == (2, 0)
    assert (broken["n"], broken["unscored"]) == (0, 2)
    assert {d["n"] for d in scoring.compare(rows)} == {0}


def test_paired_differences_by_group():
    rows = [
        row(system, "ab"[n % 2], 5.0, str(n), value=base + n)
        for n in range(10)
        for system, base in (("noisy", 0.0), ("ours", 2.0), ("theirs", 1.0))
    ]
    rows = [{k: v for k, v in one.items() if k not in METRICS or k in CHEAP} for one in rows]
    table = scoring.compare(rows)
    overall = [d for d in table if d["noise"] == "all" and d["metric"] == "stoi"]
    assert [(d["system"], d["n"], d["difference"]) for d in overall] == [
        ("ours", 10, 2.0),
        ("theirs", 10, 1.0),
    ]
    assert overall[0]["low"] == overall[0]["high"] == 2.0
    assert overall[0]["wilcoxon_p"] < 0.01
    against = scoring.compare(rows, "ours")
    assert {d["system"]: d["difference"] for d in against} == {"noisy": -2.0, "theirs": -1.0}
    assert sum(d["noise"] == "a" for d in table) == 2 * len(CHEAP)
    with pytest.raises(ValueError, match="no system 'mine'"):
        scoring.compare(rows, "mine")
