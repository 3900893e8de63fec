"""Readings of eq. (10): what they hear, how they count, whom they pick, and what is kept."""

import json

import numpy as np
import pytest

from benchmarks import eq10
from benchmarks.eq10 import EQ_11, EXPLAINED, LITERAL, Reading
from mnn.expert_files import open_expert
from mnn.features import level, scaled_magnitudes
from speech.data import corpus
from speech.modelfile.read import read_model_file
from speech.sound.stft import DEFAULT, stft
from tests.mnn_files import write_dae, write_mask
from tests.reference import mnn_scoring_oracle as oracle


@pytest.fixture
def sound(rng):
    """A mixture and a part of it: float32 [4000] each."""
    noisy = rng.standard_normal(4000).astype("f4")
    return noisy, np.convolve(noisy, np.hanning(9) / 4, "same").astype("f4")


def costs_of(estimate, noisy, dae, readings):
    x = scaled_magnitudes(stft(noisy, DEFAULT), level(noisy))
    return eq10.costs_of(estimate, x, level(noisy), {"128": dae}, readings)


def shipped_readings():
    return [reading for reading in eq10.readings() if reading.dae == "128"]


def test_literal_and_eq_11_are_those_of_the_paper(sound, tmp_path):
    noisy, estimate = sound
    path = write_dae(tmp_path / "dae.h5")
    found = costs_of(estimate, noisy, eq10.Rebuild(path), [LITERAL])
    layers = read_model_file(path).layers
    expected = oracle.scores(
        oracle.spectra(estimate.astype("f8")), noisy.astype("f8"), layers, context=3
    )
    assert found[LITERAL.name] == pytest.approx(expected[0], rel=1e-4)
    assert found[EQ_11] == pytest.approx(-expected[1], rel=1e-4)


def test_what_has_its_own_level_does_not_care_for_gain(sound, tmp_path):
    noisy, estimate = sound
    dae, readings = eq10.Rebuild(write_dae(tmp_path / "dae.h5")), shipped_readings()
    one, other = (costs_of(gain * estimate, noisy, dae, readings) for gain in (1, 0.25))
    free = {eq10.OWN, "own maximum"}
    for reading in readings:
        if reading.heard in free:
            assert other[reading.name] == pytest.approx(one[reading.name], rel=1e-3), reading
    # The autoencoder of the test has no bias, so that its error is proportional to the level.
    assert other[LITERAL.name] == pytest.approx(one[LITERAL.name] / 16, rel=1e-2)
    assert all(np.isfinite(list(one.values())))
    silent = costs_of(0 * estimate, noisy, dae, readings)
    assert all(np.isfinite(list(silent.values())))


def test_errors_are_nothing_where_all_comes_back(rng):
    frames = np.abs(rng.standard_normal((5, 513))).astype("f4")
    for name, error in eq10.ERRORS.items():
        if name == eq10.SOFTEST.error:
            assert error(frames, frames) == pytest.approx(np.sum(np.square(frames)))
            continue
        assert error(frames, frames) == pytest.approx(0, abs=1e-6), name
        assert error(frames, 1.5 * frames) > error(frames, 1.2 * frames) > 0, name
    by_frame = eq10.by_frame(frames * np.array([[1], [2], [3], [4], [5]], "f4"))
    np.testing.assert_allclose(np.mean(np.square(by_frame), axis=1), 1, rtol=1e-5)


def test_each_reading_departs_in_one_choice():
    readings = eq10.readings()
    assert len({reading.name for reading in readings}) == len(readings)
    assert {LITERAL, EXPLAINED} <= set(readings)
    assert {reading.dae for reading in readings} == eq10.SHIPPED.keys() | eq10.TRAINED.keys()
    assert {reading.error for reading in readings} == eq10.ERRORS.keys()
    assert {reading.heard for reading in readings} == eq10.HEARD.keys() - {
        # Divided by its level, a frame does not tell the level of the whole.
        f"by frame, {eq10.MIXTURE}"
    }


def test_published_recoveries():
    found = eq10.published_recoveries("sdr", "ae 128")
    np.testing.assert_allclose(found[:2], 100, atol=1e-9)
    assert found[3] == pytest.approx(100 * (9.65 - 9.27) / (10.45 - 9.27))
    assert eq10.published_recoveries("stoi", "snr 128")[4] == pytest.approx(
        100 * (0.8477 - 0.8265) / (0.8505 - 0.8265)
    )


def test_tables_of_known_picks():
    """The oracle's picks recover all, chance's none; distances follow from the published rows."""
    sdr = np.array([[4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
    best, worst = sdr.argmax(axis=1), sdr.argmin(axis=1)
    picks = {LITERAL.name: worst, EXPLAINED.name: best, EQ_11: best}
    rows = {row["name"]: row for row in eq10.tabulate([({"sdr": sdr, "stoi": sdr}, picks)] * 8)}
    paper = eq10.published_recoveries("sdr", "ae 128")
    for name, value in ((LITERAL.name, -100), (EXPLAINED.name, 100)):
        row = rows[name]
        assert row["sdr"] == row["stoi"] == [value] * 8
        assert row["mean"] == row["mean_low"] == row["mean_high"] == pytest.approx(value)
        assert row["distance_sdr"] == pytest.approx(np.sqrt(np.mean((paper - value) ** 2)))
        assert row["sampling"] == 0
    alike = eq10.likeness(list(rows.values()))
    assert alike["literal"] == pytest.approx(200) and alike["explained"] == 0
    np.testing.assert_array_equal(eq10.recovery(np.ones((2, 2)), np.ones(2), np.array([[0, 1]])), 0)


def test_the_literal_reading_picks_silence(tmp_path):
    utterance = min(corpus.bundled_speech("TRAIN"), key=lambda item: item.path.stat().st_size)
    noise = [noise for noise in corpus.bundled_noise("TRAIN") if noise.name == "birds"]
    plans = corpus.spread_mixtures([utterance], noise, [0.0], 1)
    masks = (("silent", -30.0), ("half", 0.0))
    experts = [open_expert(write_mask(tmp_path / f"{name}.h5", value)) for name, value in masks]
    dae = eq10.Rebuild(eq10.MODELS / eq10.SHIPPED["128"][0])
    scores, picks = eq10.judge(plans, experts, {"128": dae}, [LITERAL])
    assert scores["sdr"].shape == (1, 2) and picks[LITERAL.name].tolist() == [0]


def make_experts(folder):
    folder.mkdir()
    for number, name in enumerate(("male", "female", "-5_dB", "0_dB", "5_dB")):
        write_mask(folder / f"{name}.h5", number - 2.0)


def test_a_run_and_the_same_once_more(tmp_path, monkeypatch, capsys):
    """Two trainings and a mixture a test; the second time nothing is trained or judged."""
    all_plans = eq10.plan

    def plan(*arguments):
        return {test: own[:1] for test, own in all_plans(*arguments).items()}

    chosen = ("128, trained without dropout", "128, trained on power")
    monkeypatch.setattr(eq10, "plan", plan)
    monkeypatch.setattr(eq10, "TRAINED", {name: eq10.TRAINED[name] for name in chosen})
    monkeypatch.setattr(eq10, "NUM_RESAMPLES", 20)
    monkeypatch.setattr(eq10, "MAX_SAMPLES", 16000)
    out, made = tmp_path / "work", tmp_path / "made"
    command = ["--num", "1", "1", "1", "--iterations", "2", "--out", str(out)]
    command += ["--experts", str(made), "--json"]
    assert eq10.main([*command, str(tmp_path / "one.json")]) == 1
    assert "male.h5: no such expert; python -m mnn.experiments gender" in capsys.readouterr().err
    make_experts(made)
    assert eq10.main([*command, str(tmp_path / "one.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "one.json").read_text(), parse_constant=pytest.fail)
    assert result["mixtures"] == [1] * 8
    assert result["tests"] == "birds,typing,engine,male,female,-5 dB,0 dB,5 dB".split(",")
    names = [row["name"] for row in result["table"]]
    assert names == [*(reading.name for reading in eq10.readings()), EQ_11]
    assert Reading(chosen[1], f"power, {eq10.MIXTURE}").name in names
    assert all(len(row["sdr"]) == 8 and row["distance_sdr"] > 0 for row in result["table"])
    assert printed.count("\n") == len(names) + 3
    scale = read_model_file(out / "dae_1.h5").meta["input_scale"]
    assert scale == "utterance_rms, power"  # so that nothing else takes it for a plain one

    def again(*arguments):
        pytest.fail("done before")

    monkeypatch.setattr(eq10, "judge", again)
    monkeypatch.setattr("mnn.training.FrameTrainer.run", again)
    assert eq10.main([*command, str(tmp_path / "two.json")]) == 0
    assert json.loads((tmp_path / "two.json").read_text())["table"] == result["table"]


def test_what_was_judged_otherwise_is_judged_anew(tmp_path):
    path = tmp_path / "male.json"
    for text in ("", "[", "[]", '{"data_sha256": "other"}'):
        path.write_text(text)
        assert eq10._stored(path, "this") is None
    path.write_text('{"data_sha256": "this", "scores": {"sdr": [[1, 2]]}, "picks": {"a": [1]}}')
    scores, picks = eq10._stored(path, "this")
    assert scores["sdr"].tolist() == [[1, 2]] and picks["a"].tolist() == [1]


def test_wrong_usage(tmp_path, capsys):
    for wrong in (["--timit", str(tmp_path)], ["--num", "1", "2"], ["--iterations", "0"]):
        with pytest.raises(SystemExit) as caught:
            eq10.main(wrong)
        assert caught.value.code == 2
    make_experts(tmp_path / "made")
    command = ["--experts", str(tmp_path / "made"), "--out", str(tmp_path)]
    assert eq10.main(["--num", "99", "99", "99", *command]) == 1
    assert "give a smaller --num" in capsys.readouterr().err
