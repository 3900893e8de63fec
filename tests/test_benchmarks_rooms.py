"""Denoising and dereverberation: the two test sets, the scores, the published table beside them."""

import csv
import hashlib
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import rooms
from eval import published, scoring, systems
from speech.sound import augment

ROOT = Path(__file__).parent.parent
MINICORPUS = ROOT / "speech/minicorpus"
SNRS_DB = (18, 12, 6, 0, -6)


@pytest.fixture
def corpus_options(tmp_path):
    """Real speech: two pieces of 1.6 s and a noise to test on."""
    for name in ("speech/TEST/BE/FBE0/U01", "speech/TEST/BE/FBE0/U02", "noise/TEST/birds"):
        target = tmp_path / f"{name}.flac"
        target.parent.mkdir(parents=True, exist_ok=True)
        samples, rate_hz = soundfile.read(MINICORPUS / f"{name}.flac", dtype="int16")
        soundfile.write(target, samples[:25600], rate_hz)
    return ["--timit", str(tmp_path / "speech"), "--noise", str(tmp_path / "noise")]


def table_of(text, title):
    lines = text.split(f"## {title}\n")[1].split("\n## ")[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    rows = [";".join(row) for row in cells if row[0] != "---"]
    return list(csv.DictReader(io.StringIO("\n".join(rows)), delimiter=";"))


def test_both_sets_are_scored_beside_the_published_table(corpus_options, tmp_path, capsys):
    out, result_path, markdown = tmp_path / "out", tmp_path / "r.json", tmp_path / "r.md"
    arguments = [*corpus_options, "--num-test", "2", "--out", str(out), "--jobs", "1"]
    arguments += ["--json", str(result_path), "--markdown", str(markdown)]
    assert rooms.main(arguments) == 0
    result = json.loads(result_path.read_text(), parse_constant=pytest.fail)
    model = ROOT / "models/fcn.h5"
    assert [(m["name"], m["sha256"]) for m in result["models"]] == [
        ("fcn", hashlib.sha256(model.read_bytes()).hexdigest())
    ]
    assert result["command"] and result["packages"]["numpy"]
    sets = result["test_sets"]
    assert list(sets) == ["denoising", "dereverberation"]
    for own in sets.values():
        assert (own["num_files"], own["unscored"]) == (10, [])
        by_snr = {(g["snr_db"], g["system"]): g for g in own["scores"]}
        assert [snr_db for snr_db, system in by_snr if system == "noisy"] == [*SNRS_DB, "all"]
        assert all(group["n"] == (10 if snr_db == "all" else 2)
                   for (snr_db, _), group in by_snr.items())  # fmt: skip
        for gain in own["gains"]:
            name, snr_db = gain["metric"], gain["snr_db"]
            expected = by_snr[snr_db, "fcn"][name] - by_snr[snr_db, "noisy"][name]
            assert gain["difference"] == pytest.approx(expected, abs=1e-9)
            assert gain["low"] <= gain["difference"] <= gain["high"]
        noisy = [by_snr[snr_db, "noisy"]["stoi"] for snr_db in SNRS_DB]
        assert noisy == sorted(noisy, reverse=True)
    assert sets["denoising"]["rooms"] is None
    assert sets["dereverberation"]["rooms"]["num_utterances"] == 2
    least, most = (sets["dereverberation"]["rooms"]["rt60_s"][end] for end in ("min", "max"))
    assert 0.05 < least <= most < 1
    means = {
        job: {g["snr_db"]: g["stoi"] for g in own["scores"] if g["system"] == "noisy"}
        for job, own in sets.items()
    }
    assert means["dereverberation"][18] < means["denoising"][18]

    text = markdown.read_text()
    assert text.strip() in capsys.readouterr().out
    for title, job in (("denoising", "denoising"),
                       ("denoising + dereverberation", "dereverberation")):  # fmt: skip
        rows = table_of(text, title)
        assert [row["SNR dB"] for row in rows] == ["18", "12", "6", "0", "-6", "all"]
        values = published.JOINT_TRAINING[job]
        assert [float(row["PESQ-WB published"]) for row in rows[:5]] == list(values["pesq_wb"])
        assert [float(row["STOI published"]) for row in rows[:5]] == list(values["stoi"])
        assert rows[5]["STOI published"] == ""
        assert float(rows[0]["STOI noisy"]) == pytest.approx(means[job][18], abs=6e-4)

    made = out / "dereverberation/enhanced/fcn/birds/FBE0/18db/FBE0_U01.wav"
    before = (made.stat().st_mtime_ns, (out / "cache.jsonl").read_bytes())
    assert rooms.main(arguments) == 0
    assert before == (made.stat().st_mtime_ns, (out / "cache.jsonl").read_bytes())
    assert markdown.read_text() == text


def test_the_sets_differ_by_the_room_alone(corpus_options, tmp_path):
    options = rooms._parser().parse_args([*corpus_options, "--num-test", "1", "--jobs", "1"])
    dry, no_rooms = rooms.test_set("denoising", tmp_path / "dry", options)
    wet, in_rooms = rooms.test_set("dereverberation", tmp_path / "wet", options)
    assert no_rooms is None
    assert in_rooms["num_utterances"] == len({pair.name for pair in wet})
    assert [pair.relative_path for pair in dry] == [pair.relative_path for pair in wet]
    assert {pair.snr_db for pair in wet} == set(SNRS_DB)
    for one, other in zip(dry, wet, strict=True):
        clean, noisy = (soundfile.read(path)[0] for path in (one.clean_path, one.noisy_path))
        early, in_room = (soundfile.read(path)[0] for path in (other.clean_path, other.noisy_path))
        assert abs(np.corrcoef(clean, early)[0, 1]) < 0.999
        if one.snr_db == -6:  # little but noise
            assert np.corrcoef(noisy - clean, in_room - early)[0, 1] > 0.8


def test_files_without_a_score_are_counted(tmp_path, monkeypatch, corpus_options, capsys):
    """Scores are made up: the SNR, and 0.5 more for what is enhanced."""

    def score_all(tasks, num_jobs, metrics, *, cache):
        return [
            {"system": task.system, "noise": task.noise, "snr_db": task.snr_db, "name": task.name}
            | dict.fromkeys(metrics, math.nan if task.problem else score_of(task))
            | {"status": task.problem or "ok"}
            for task in tasks
        ]

    def score_of(task):
        return task.snr_db + 0.5 * (task.system == "fcn")

    def enhance(enhancer, pair, target, convert):
        if pair.snr_db == 6 and pair.name == "FBE0_U01":
            raise ValueError("not this one")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()

    monkeypatch.setattr(systems, "_enhance", enhance)
    monkeypatch.setattr(scoring, "score_all", score_all)
    result_path = tmp_path / "r.json"
    arguments = [*corpus_options, "--out", str(tmp_path / "out"), "--json", str(result_path)]
    assert rooms.main([*arguments, "--jobs", "1"]) == 0
    for own in json.loads(result_path.read_text())["test_sets"].values():
        [missing] = own["unscored"]
        assert (missing["system"], missing["name"]) == ("fcn", "birds/FBE0/6db/FBE0_U01.wav")
        assert "not this one" in missing["status"]
        counts = {group["snr_db"]: group["n"] for group in own["scores"]}
        assert counts == {18: 2, 12: 2, 6: 1, 0: 2, -6: 2, "all": 9}
    text = capsys.readouterr().out
    assert "10 files, 1 without a score" in text
    rows = table_of(text, "denoising")
    assert rows[0]["PESQ-WB fcn"] == "18.500 (+0.500, +0.500 to +0.500)"
    assert rows[2]["PESQ-WB fcn"] == "6.500 (+0.500)"


def test_published_scores_are_those_of_the_paper():
    golden = json.loads((ROOT / "tests/golden/icse_published.json").read_text())
    joint = golden["joint_training"]
    assert list(published.JOINT_SNRS_DB) == joint["snrs_db"]
    for job, metrics in published.JOINT_TRAINING.items():
        assert {name: list(values) for name, values in metrics.items()} == joint[job]
    assert set(joint) == {"snrs_db", *published.JOINT_TRAINING} == {"snrs_db", *rooms.TEST_SETS}


@pytest.mark.parametrize(
    "words", [["--timit", "x"], ["--model", "fcn.h5"], ["--model", "a=x.h5", "a=y.h5"],
              ["--model", "noisy=x.h5"], ["--model", "../a=x.h5"], ["--num-test", "0"]],
)  # fmt: skip
def test_wrong_usage(words):
    with pytest.raises(SystemExit) as caught:
        rooms.main(words)
    assert caught.value.code == 2


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    arguments = ["--out", str(tmp_path / "out")]
    assert rooms.main([*arguments, "--model", f"a={tmp_path / 'none.h5'}"]) == 1
    assert "none.h5: No such file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    augment.room_response.cache_clear()
    assert rooms.main(arguments) == 1
    error = capsys.readouterr().err
    assert "pip install pyroomacoustics" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
