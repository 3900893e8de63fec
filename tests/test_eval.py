"""Metrics and tables: undefined is NaN with a status, counted, never averaged."""

import math

import numpy as np
import pesq
import pystoi
import pytest
import soundfile

from eval import scoring
from eval.metrics import METRICS, pesq_nb, pesq_wb, stoi
from eval.plots import learning_curve
from speech.audio import read_audio
from speech.corpus import bundled_noise, bundled_speech
from speech.mixing import loop_or_crop, mix_at_snr


@pytest.fixture(scope="module")
def pair():
    clean = read_audio(bundled_speech("TEST")[0].path).samples.astype(float)
    noise = read_audio(bundled_noise("TEST")[0].path).samples.astype(float)
    mixture = mix_at_snr(clean, loop_or_crop(noise, len(clean)), 5.0)
    return mixture.clean, mixture.noisy


def test_scores_are_those_of_the_metric_packages(pair):
    clean, noisy = pair
    assert pesq_wb(clean, noisy).value == pesq.pesq(16000, clean, noisy, "wb")
    assert pesq_nb(clean, noisy).value == pesq.pesq(16000, clean, noisy, "nb")
    assert stoi(clean, noisy).value == pystoi.stoi(clean, noisy, 16000)
    assert {score(clean, noisy).status for score in METRICS.values()} == {"ok"}


def test_perfect_copies_and_level(pair):
    clean, noisy = pair
    assert pesq_wb(clean, clean).value == pytest.approx(4.644, abs=1e-3)
    assert stoi(clean, clean).value == pytest.approx(1.0, abs=1e-6)
    for metric in METRICS.values():
        assert metric(clean, 0.1 * noisy).value == pytest.approx(
            metric(clean, noisy).value, abs=1e-3
        )


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c, n: (np.zeros_like(c), n), "reference is silent"),
        (lambda c, n: (c, np.zeros_like(n)), "estimate is silent"),
        (lambda c, n: (c, np.where(np.arange(len(n)) == 9, np.nan, n)), "estimate holds a NaN"),
        (lambda c, n: (c[:0], n[:0]), "is empty"),
        (lambda c, n: (c[:800], n[:800]), ":"),
    ],
)
def test_undefined_scores_are_nan_with_a_reason(metric, change, reason, pair):
    score = metric(*change(*pair))
    assert math.isnan(score.value)
    assert reason in score.status


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_unequal_lengths_are_an_error(metric, pair):
    clean, noisy = pair
    with pytest.raises(ValueError, match="cut them alike"):
        metric(clean, noisy[:-1])


def test_one_bad_file_changes_no_mean(pair, tmp_path):
    clean, noisy = pair
    for name, samples in (("clean", clean), ("noisy", noisy), ("silent", 0 * noisy)):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "noisy.wav").read_bytes()[:5000])
    tasks = [
        scoring.Task("noisy", tmp_path / f"{name}.wav", tmp_path / "clean.wav", "n", 5.0, name)
        for name in ("noisy", "silent", "cut")
    ]
    rows = scoring.score_all(tasks, num_jobs=1)
    assert [row["status"] == "ok" for row in rows] == [True, False, False]
    overall = scoring.summarize(rows)[-1]
    assert (overall["n"], overall["unscored"]) == (1, 2)
    assert overall["stoi"] == rows[0]["stoi"]
    text = scoring.format_table(scoring.summarize(rows))
    assert "2 of the files could not be scored" in text
    assert scoring.json_ready(rows)[1]["stoi"] is None
    assert scoring.to_csv(rows).count("\n") == 4


def test_summary_groups_by_noise_and_snr():
    rows = [
        {"system": system, "noise": noise, "snr_db": snr_db, "name": "x", "status": "ok"}
        | dict.fromkeys(METRICS, value)
        for system, noise, snr_db, value in [
            ("noisy", "b", 5.0, 1.0), ("noisy", "a", 10.0, 2.0), ("noisy", "a", math.nan, 6.0),
            ("enhanced", "b", 5.0, 3.0),
        ]
    ]  # fmt: skip
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
    row = {"system": "noisy", "noise": "a", "status": "ok"} | dict.fromkeys(METRICS, 1.0)
    rows = [row | {"snr_db": float("nan"), "name": str(n)} for n in range(3)]
    table = scoring.summarize(rows)
    assert [(group["noise"], group["n"]) for group in table] == [("a", 3), ("all", 3)]


def test_systems_are_compared_on_the_same_files():
    row = {"noise": "a", "snr_db": 0.0, "status": "ok"} | dict.fromkeys(METRICS, 1.0)
    rows = [row | {"system": s, "name": n} for s in ("noisy", "enhanced") for n in ("x", "y")]
    rows[3] = rows[3] | {"stoi": math.nan, "pesq_wb": 4.0}
    for group in scoring.summarize(rows):
        assert (group["n"], group["unscored"], group["pesq_wb"]) == (1, 1, 1.0)


def test_a_recording_too_long_for_pesq_is_not_scored():
    """The C code would write beyond its tables."""
    long = np.tile(np.sin(np.arange(16000) / 9), 61)
    assert "longer than 60 s" in pesq_wb(long, long).status


def test_learning_curve_is_a_picture(tmp_path):
    history = [{"epoch": e, "training_loss": 0.1 / e, "validation_loss": 0.12 / e} for e in (1, 2)]
    for name in ("curve.png", "curve.svg"):
        learning_curve(history, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000
