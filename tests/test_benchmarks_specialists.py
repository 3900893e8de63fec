"""Specialists and generalists compared: data, test mixtures, numbers, and a small run."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from benchmarks import specialists
from mnn.arbiter import Arbiter
from mnn.dae import Autoencoder
from mnn.experiments import MIXED_NOISES
from mnn.expert_files import open_expert
from mnn.ranker import Ranker
from mnn.scoring import DEFAULT_SCORING, JUDGES, needs_of
from mnn.select import DEFAULT_DAE, DEFAULT_RANKER
from speech.data import corpus
from speech.data.corpus import render
from speech.sound.audio import write_audio


@pytest.fixture
def trees(tmp_path):
    rng = np.random.default_rng(0)
    for split, speakers in (("TRAIN", ("FAA0", "MBB0")), ("TEST", ("FCC0", "MDD0"))):
        for speaker in speakers:
            for number in range(2):
                path = tmp_path / "speech" / split / "XX" / speaker / f"U{number}.wav"
                write_audio(path, 0.1 * rng.standard_normal(24000))
        for name in MIXED_NOISES["open"]:
            write_audio(
                tmp_path / "noise" / split / f"{name}.wav", 0.1 * rng.standard_normal(48000)
            )
    write_audio(tmp_path / "other" / "1034-121119-0000.wav", 0.1 * rng.standard_normal(24000))
    return tmp_path / "speech", tmp_path / "other", tmp_path / "noise"


@pytest.mark.parametrize(
    ("experiment", "name", "speakers", "num_noises"),
    [
        ("noise", "birds", {"FAA0", "MBB0", "1034"}, 1),
        ("gender", "female", {"FAA0"}, 10),
        ("gender", "male", {"MBB0"}, 10),
        ("room", "reverberant", {"FAA0", "MBB0", "1034"}, 10),
    ],
)
def test_a_specialist_is_given_its_condition_alone(
    trees, tmp_path, experiment, name, speakers, num_noises
):
    speech, other, noise = trees
    specialty = specialists.SPECIALISTS[experiment][name]
    for _ in range(2):  # the same command once more
        found, noises = specialists.make_folders(
            specialty, [speech, other], noise, tmp_path / "out"
        )
    voices = corpus.find_speech_trees(found, "TRAIN")
    assert {item.speaker for item in voices} == speakers
    assert len(corpus.find_noise(noises, "TRAIN")) == num_noises
    words = specialists.training_arguments(specialty, found, noises, 0.1, tmp_path / "run")
    assert float(words[words.index("--rooms") + 1]) == (name == "reverberant")


def test_missing_noises_and_genders_are_named(trees, tmp_path):
    speech, other, noise = trees
    with pytest.raises(ValueError, match="no speaker is known to be F"):
        specialists.make_folders(
            specialists.SPECIALISTS["gender"]["female"], [other], noise, tmp_path / "out"
        )
    with pytest.raises(ValueError, match="holds 0 of the noises thunder"):
        specialists.make_folders(
            specialists.Specialty(("thunder",)), [speech], noise, tmp_path / "out"
        )


def test_snr_specialists_hear_their_snr(tmp_path):
    for name, specialty in specialists.SPECIALISTS["snr"].items():
        low, high = specialty.snr_range_db
        assert low < float(name.split()[0]) < high
        words = specialists.training_arguments(specialty, [], tmp_path, 0.1, tmp_path)
        place = words.index("--snr-range")
        assert [float(word) for word in words[place + 1 : place + 3]] == [low, high]


def test_the_target_in_a_room_is_part_of_its_sound(trees):
    pytest.importorskip("pyroomacoustics")
    speech, _, noise = trees
    plans = specialists.plans_of("room", speech, noise, 1, 0)
    assert len(plans["dry"]) == len(plans["reverberant"]) == 10
    dry, wet = plans["dry"][0], plans["reverberant"][0]
    mixture = render(dry)
    noisy, target = specialists.rendered(dry)
    assert_allclose(noisy, mixture.noisy, atol=1e-6)
    assert_allclose(target, mixture.clean, atol=1e-6)
    reverberant, early = specialists.rendered(wet)
    assert wet.room is not None and not np.allclose(reverberant, noisy)
    # The direct sound is its largest part, delayed by nothing.
    alike = [np.dot(target[99:-99], early[99 + d : len(early) - 99 + d]) for d in range(-99, 99)]
    assert np.argmax(alike) == 99


def row(general, one, two, pick):
    scores = {"generalist": general, "one": one, "two": two}
    return {
        "scores": {k: dict.fromkeys(specialists.METRICS, v) for k, v in scores.items()},
        "picks": {"both": pick, "oracle": "one" if one > two else "two"},
    }


def test_gains_are_of_what_was_picked_and_leave_unscored_mixtures_out():
    rows = [row(1.0, 2.0, 0.0, "one"), row(1.0, 2.0, 5.0, "one"), row(None, 9.0, 9.5, "two")]
    found = specialists.tabulate(rows, ["generalist"])
    assert (found["mixtures"], found["unscored"]) == (2, 1)
    assert found["means"]["both"]["sdr"] == 2.0 and found["means"]["oracle"]["sdr"] == 3.5
    mean, low, high = found["gains"]["generalist"]["both"]["pesq_wb"]
    assert (mean, low, high) == (1.0, 1.0, 1.0)
    mean, low, high = found["gains"]["generalist"]["oracle"]["stoi"]
    assert mean == 2.5 and low == 1.0 and high == 4.0


def test_mixtures_are_compared_once(tmp_path, monkeypatch):
    monkeypatch.setattr(specialists, "MAX_SAMPLES", 24000)
    experts = [open_expert(specialists.GENERALIST, name) for name in ("one", "two")]
    generalists = [
        open_expert(specialists.GENERALIST, name)
        for name in (specialists.GENERAL, specialists.GONE_ON)
    ]
    judges = specialists.Judges(
        Arbiter(Autoencoder(DEFAULT_DAE), needs_of("ae", DEFAULT_SCORING)), Ranker(DEFAULT_RANKER)
    )
    plans = corpus.spread_mixtures(
        corpus.bundled_speech("TEST")[:1], corpus.bundled_noise("TEST")[:1], [0.0], 1
    )
    journal = tmp_path / "rows.jsonl"
    rows = specialists.compare_all(plans, experts, generalists, judges, journal)
    own = rows[0]["scores"]
    # A network and its twin: every pick, and the sum of both, are what the generalist gives.
    assert own["one"] == own["two"] == own[specialists.GENERAL]
    assert own["added by bands"]["sdr"] == pytest.approx(own["one"]["sdr"], abs=0.01)
    assert rows[0]["picks"].keys() == {*JUDGES, specialists.ORACLE}
    assert own["one"]["sdr"] > own[specialists.NOISY]["sdr"] + 3

    monkeypatch.setattr(specialists, "compare", lambda *a: pytest.fail("compared twice"))
    assert specialists.compare_all(plans, experts, generalists, judges, journal) == rows


def test_a_finished_training_is_repeated_only_for_other_data_length_or_start(
    trees, tmp_path, monkeypatch
):
    speech, _, noise = trees
    out, calls = tmp_path / "out", []

    def call(module, *arguments):
        calls.append(module)
        folder = out / "birds"
        for path in (folder / "run" / "model.h5", folder / "packed" / "model.icse"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")

    monkeypatch.setattr(specialists.common, "run_command", call)
    own = specialists.SPECIALISTS["noise"]["birds"]
    for _ in range(2):
        packed = specialists.train("birds", own, [speech], noise, 0.1, out)
    assert packed == out / "birds.icse" and packed.exists()
    assert calls == ["speech.train", "quantization.run"]
    specialists.train("birds", own, [speech], noise, 0.2, out)
    assert calls.count("speech.train") == 2
    other = tmp_path / "other.icse"
    other.write_bytes(b"another network")
    monkeypatch.setattr(specialists, "INIT", other)
    specialists.train("birds", own, [speech], noise, 0.2, out)
    assert calls.count("speech.train") == 3
