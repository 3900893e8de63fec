from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_array_equal

from speech.data import corpus
from speech.data.corpus import (
    Noise,
    Pair,
    Utterance,
    drop_low_snr,
    find_noise,
    find_pairs,
    find_speech,
    find_speech_trees,
    has_splits,
    load_noise,
    noise_segment,
    parse_snr_folder,
    plan_mixtures,
    render,
    snr_folder,
    split_pairs_original,
    split_utterances,
    training_pairs,
)
from tests.builders import make_noises, make_speech, make_timit
from tests.reference import mixing_oracle
from tests.reference.sphere import write_sphere

ALL_IDS = ["FAKS0_SA1", "FAKS0_SX37", "FCJF0_SA1", "FCJF0_SX37", "MABW0_SA1", "MABW0_SX37"]
ALL_IDS += ["MARC0_SA1", "MARC0_SX37"]


def touch(root, *names) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def ids(items) -> list[str]:
    return [item.id for item in items]


# --- speech -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("above", ["", "timit", "TIMIT/data"])
def test_timit_tree(tmp_path, rng, lower, above):
    make_timit(tmp_path / above, rng, lower=lower)
    found = find_speech(tmp_path)
    assert ids(found) == ALL_IDS
    first = found[0]
    assert (first.speaker, first.gender, first.dialect, first.split) == (
        "FAKS0",
        "F",
        "DR1",
        "TEST",
    )
    assert first.path.is_file()
    assert [item.gender for item in found] == list("FFFFMMMM")
    assert {item.id for item in find_speech(tmp_path, "train")} == {
        "FCJF0_SA1",
        "FCJF0_SX37",
        "MARC0_SA1",
        "MARC0_SX37",
    }
    assert ids(find_speech(tmp_path, "TEST", skip_sa=True)) == ["FAKS0_SX37", "MABW0_SX37"]


def test_converted_timit_gives_the_same_ids(timit, caplog):
    for path in find_speech(timit):
        shutil.copy(path.path, path.path.with_name(path.path.name + ".wav"))
    with caplog.at_level(logging.INFO, logger="speech"):
        both = find_speech(timit)
    assert ids(both) == ALL_IDS
    assert "4 converted copies" in caplog.text
    for item in both:
        item.path.unlink()
    assert ids(find_speech(timit)) == ALL_IDS


def test_any_other_tree(tmp_path):
    touch(tmp_path, "anna/a.wav", "anna/deep/b.flac", "c.sph")
    found = find_speech(tmp_path)
    assert ids(found) == ["anna_a", "anna_deep_b", "c"]
    assert [item.speaker for item in found] == ["anna", "deep", "unknown"]
    assert {(item.gender, item.dialect, item.split) for item in found} == {("", "", "")}
    with pytest.raises(ValueError, match="has no folder TRAIN"):
        find_speech(tmp_path, "TRAIN")


def test_split_folders_of_another_shape(tmp_path):
    touch(tmp_path, "train/x/a.wav", "test/b.wav")
    train, test = find_speech(tmp_path, "TRAIN"), find_speech(tmp_path, "TEST")
    assert [(item.id, item.speaker, item.split) for item in train + test] == [
        ("x_a", "x", "TRAIN"),
        ("b", "unknown", "TEST"),
    ]


def test_flat_librispeech_names(tmp_path):
    touch(tmp_path, "1034-121119-0000.flac", "1034-121119-0001.flac", "sub/7-1-0002.flac")
    found = find_speech(tmp_path)
    assert ids(found) == ["1034-121119-0000", "1034-121119-0001", "7-1-0002"]
    assert [item.speaker for item in found] == ["1034", "1034", "7"]
    assert not has_splits(tmp_path)


@pytest.mark.parametrize("above", ["", "LibriSpeech/"])
def test_librispeech_tree(tmp_path, above):
    touch(
        tmp_path,
        f"{above}train-clean-100/103/1240/103-1240-0000.flac",
        f"{above}train-other-500/20/205/20-205-0003.flac",
        f"{above}dev-clean/84/121123/84-121123-0000.flac",
        f"{above}test-clean/61/70968/61-70968-0000.flac",
    )
    found = {item.id: (item.speaker, item.split) for item in find_speech(tmp_path)}
    assert found == {
        "103-1240-0000": ("103", "TRAIN"),
        "20-205-0003": ("20", "TRAIN"),
        "84-121123-0000": ("84", "TEST"),
        "61-70968-0000": ("61", "TEST"),
    }
    for split in ("TRAIN", "TEST"):
        expected = {name for name, (_, part) in found.items() if part == split}
        assert set(ids(find_speech(tmp_path, split))) == expected
        assert set(ids(find_speech_trees([tmp_path], split))) == expected
    one = find_speech_trees([tmp_path / f"{above}train-clean-100"], "TRAIN")
    assert [(item.id, item.speaker) for item in one] == [("103-1240-0000", "103")]


def test_librispeech_names_below_train(tmp_path):
    touch(tmp_path, "TRAIN/103/1240/103-1240-0000.flac")
    item = find_speech(tmp_path, "TRAIN")[0]
    assert (item.id, item.speaker, item.split) == ("103-1240-0000", "103", "TRAIN")


def test_vctk_tree(tmp_path, caplog):
    touch(
        tmp_path,
        "wav48_silence_trimmed/p225/p225_001_mic1.flac",
        "wav48_silence_trimmed/p225/p225_001_mic2.flac",
        "wav48_silence_trimmed/p226/p226_002_mic2.flac",
        "wav48_silence_trimmed/s5/s5_003.wav",
    )
    with caplog.at_level(logging.INFO, "speech"):
        found = find_speech(tmp_path)
    assert [(item.id, item.speaker, item.path.name) for item in found] == [
        ("p225_001", "p225", "p225_001_mic1.flac"),
        ("p226_002", "p226", "p226_002_mic2.flac"),
        ("s5_003", "s5", "s5_003.wav"),
    ]
    assert "1 recordings of a second microphone left out" in caplog.text


def test_several_trees_keep_speakers_apart(tmp_path):
    touch(tmp_path / "a", "TRAIN/DR1/FAKS0/SX1.WAV", "TEST/DR1/MABW0/SX2.WAV")
    touch(tmp_path / "b", "1034-121119-0000.flac", "1034-121119-0001.flac")
    touch(tmp_path / "c/b", "1034-7-0000.flac", "9-1-0000.flac")
    touch(tmp_path / "d/b", "9-1-0000.flac")
    trees = [tmp_path / name for name in ("a", "b", "c/b", "d/b")]
    found = find_speech_trees(trees, "TRAIN")
    assert {item.id: item.speaker for item in found} == {
        "FAKS0_SX1": "FAKS0",
        "1034-121119-0000": "1034",
        "1034-121119-0001": "1034",
        "b_1034-7-0000": "b_1034",
        "b_9-1-0000": "b_9",
        "9-1-0000": "9",
    }
    assert ids(find_speech_trees(trees, "TEST")) == ["MABW0_SX2"]
    assert find_speech_trees(trees[:1], "TRAIN") == find_speech(trees[0], "TRAIN")


def test_several_trees_refuse_what_would_count_twice(tmp_path):
    touch(tmp_path, "a/s/1.wav", "a/b/2.wav")
    with pytest.raises(ValueError, match="is .*a or lies in it; give each folder"):
        find_speech_trees([tmp_path / "a", tmp_path / "a/b"])
    with pytest.raises(ValueError, match="give each folder"):
        find_speech_trees([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(ValueError, match="no folders of speech"):
        find_speech_trees([])
    with pytest.raises(ValueError, match="has no folder TEST"):
        find_speech_trees([tmp_path / "a"], "TEST")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "no audio file found"),
        (["a_b/c.wav", "a/b_c.wav"], "both named 'a_b_c'"),
        (["x.wav", "x.flac"], "both named 'x'"),
        (["TRAIN/DR1/FAKS0/SA1.WAV"], "SA sentences only"),
        (["train/a.wav", "TRAIN/b.wav"], "both named 'TRAIN'"),
    ],
)
def test_bad_speech_folders(tmp_path, names, reason):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=reason):
        find_speech(tmp_path, skip_sa=True)


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["TRAIN/FCJF0/SA1.wav", "TRAIN/FCJF0/SX127.wav", "TRAIN/MABC0/SA2.WAV"], "TRAIN",
         ["FCJF0_SX127"]),
        (["train/fcjf0/sa1.wav", "train/fcjf0/sx127.wav"], "TRAIN", ["FCJF0_SX127"]),
        (["DR1/FCJF0/SA1.WAV", "DR1/FCJF0/SX37.WAV"], None, ["DR1_FCJF0_SX37"]),
        (["FCJF0/SA1.WAV", "FCJF0/SX37.WAV"], None, ["FCJF0_SX37"]),
        (["FCJF0_SA1.wav", "FCJF0_SX37.wav", "visa1.wav"], None, ["FCJF0_SX37", "visa1"]),
        (["a/SA1_rif.wav", "a/SX1.wav"], None, ["a_SX1"]),
    ],
)  # fmt: skip
def test_sa_sentences_are_left_out_of_any_tree(tmp_path, names, split, expected):
    touch(tmp_path, *names)
    assert ids(find_speech(tmp_path, split, skip_sa=True)) == expected


def test_timit_without_dialects_tells_gender(tmp_path):
    touch(tmp_path, "train/fcjf0/sx1.wav", "train/mabc0/sx1.wav", "train/other/sx1.wav")
    found = find_speech(tmp_path, "TRAIN")
    assert [(item.id, item.speaker, item.gender, item.dialect) for item in found] == [
        ("FCJF0_SX1", "FCJF0", "F", ""), ("MABC0_SX1", "MABC0", "M", ""),
        ("other_sx1", "other", "", ""),
    ]  # fmt: skip


def test_missing_folders_are_named(tmp_path):
    for find in (find_speech, find_noise, lambda root: find_pairs(root, tmp_path)):
        with pytest.raises(ValueError, match="nowhere: no such folder"):
            find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        find_speech(tmp_path / "nowhere", "TRAIN")
    with pytest.raises(ValueError, match="split is 'dev'"):
        find_noise(make_noises(tmp_path / "n", np.random.default_rng(0)), "dev")


# --- noise ------------------------------------------------------------------------------------


def test_noise_is_split_by_folder(tmp_path):
    touch(tmp_path, "Train/birds.wav", "Train/engine.wav", "Test/birds.wav")
    assert [(n.name, n.start, n.stop) for n in find_noise(tmp_path, "TRAIN")] == [
        ("birds", 0.0, 1.0),
        ("engine", 0.0, 1.0),
    ]
    assert [n.path for n in find_noise(tmp_path, "TEST")] == [tmp_path / "Test" / "birds.wav"]
    with pytest.raises(ValueError, match="both named 'birds'"):
        find_noise(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["DKITCHEN/ch01.wav", "NPARK/ch01.wav"], ["DKITCHEN", "NPARK"]),
        (["DKITCHEN/ch02.wav", "DKITCHEN/ch01.wav", "DKITCHEN/ch10.wav"], ["DKITCHEN"]),
        (["TRAIN/DKITCHEN/ch01.wav", "TRAIN/NPARK/CH01.WAV"], ["DKITCHEN", "NPARK"]),
        (["street/rec1.wav", "car/rec1.wav", "car/rec2.wav"],
         ["car_rec1", "rec2", "street_rec1"]),
        (["ch01.wav", "babble.wav"], ["babble", "ch01"]),
    ],
)  # fmt: skip
def test_noise_is_named_by_its_folder_where_files_do_not_say_it(tmp_path, names, expected):
    touch(tmp_path, *names)
    found = find_noise(tmp_path, "TRAIN")
    assert [noise.name for noise in found] == expected
    if expected == ["DKITCHEN"]:
        assert found[0].path.name == "ch01.wav"


def test_noise_is_split_in_time(tmp_path, caplog):
    samples = np.linspace(0.001, 0.5, 16001).astype(np.float32)
    soundfile.write(tmp_path / "ramp.wav", samples, 16000, subtype="FLOAT")
    with caplog.at_level(logging.INFO, logger="speech"):
        (train,), (test,) = find_noise(tmp_path, "TRAIN"), find_noise(tmp_path, "TEST")
    assert "TRAIN uses 0 to 80 %" in caplog.text and "TEST uses 80 to 100 %" in caplog.text
    (one, first), (other, second) = load_noise(train), load_noise(test)
    assert (first, second) == (0, len(one))
    assert_array_equal(np.concatenate([one, other]), samples)
    assert find_noise(tmp_path) == [Noise("ramp", tmp_path / "ramp.wav", 0.0, 1.0)]


def test_noise_too_short_to_split(tmp_path):
    soundfile.write(tmp_path / "x.wav", [0.5, 0.5], 16000)
    with pytest.raises(ValueError, match="too short to be split"):
        load_noise(find_noise(tmp_path, "TEST")[0])


# --- pairs ------------------------------------------------------------------------------------


def test_original_layout(tmp_path):
    touch(tmp_path / "noisy", "car/f1/-5db/a.wav", "car/f1/10dB/a.wav", "birds/m1/0DB/b.WAV")
    touch(tmp_path / "clean", "a.wav", "B.flac")
    pairs = find_pairs(tmp_path / "noisy", tmp_path / "clean")
    assert [pair.relative_path.as_posix() for pair in pairs] == [
        "birds/m1/0db/b.wav",
        "car/f1/-5db/a.wav",
        "car/f1/10db/a.wav",
    ]
    assert [pair.clean_path.name for pair in pairs] == ["B.flac", "a.wav", "a.wav"]
    assert [pair.snr_db for pair in pairs] == [0, -5, 10]


def test_clean_files_by_speaker_or_by_unique_name(tmp_path):
    touch(tmp_path / "noisy", "car/f1/0db/SA1.wav", "car/m1/0db/SA1.wav", "car/m1/0db/SX1.wav")
    touch(tmp_path / "clean", "DR1/F1/SA1.WAV", "DR2/M1/SA1.WAV", "elsewhere/sx1.wav")
    pairs = find_pairs(tmp_path / "noisy", tmp_path / "clean")
    found = [pair.clean_path.relative_to(tmp_path / "clean").as_posix() for pair in pairs]
    # M1 has a folder of clean files, and SX1 is not in it: that elsewhere may be of anyone.
    assert found == ["DR1/F1/SA1.WAV", "DR2/M1/SA1.WAV"]
    touch(tmp_path / "noisy", "car/0db/SX1.wav")
    pairs = find_pairs(tmp_path / "noisy", tmp_path / "clean")
    (found,) = [pair for pair in pairs if pair.name == "SX1"]
    assert (found.noise, found.speaker, found.clean_path.name) == ("car", "unknown", "sx1.wav")


@pytest.mark.parametrize(
    ("name", "noise", "speaker", "snr_db"),
    [
        ("x.wav", "unknown", "unknown", math.nan),
        ("f1/x.wav", "unknown", "f1", math.nan),
        ("2.5db/x.wav", "unknown", "unknown", 2.5),
        ("car/f1/x.wav", "car", "f1", math.nan),
        ("set/car/f1/-10db/x.wav", "set_car", "f1", -10),
    ],
)
def test_trees_of_any_depth(tmp_path, name, noise, speaker, snr_db):
    touch(tmp_path / "noisy", name)
    touch(tmp_path / "clean", "x.wav")
    (pair,) = find_pairs(tmp_path / "noisy", tmp_path / "clean")
    assert (pair.noise, pair.speaker) == (noise, speaker)
    np.testing.assert_equal(pair.snr_db, snr_db)


def test_noisy_without_clean_is_skipped_and_listed(tmp_path, caplog):
    touch(tmp_path / "noisy", *(f"car/f1/0db/{name}.wav" for name in "abcdefgh"))
    touch(tmp_path / "clean", "a.wav", "one/b.wav", "two/b.wav")
    assert [pair.name for pair in find_pairs(tmp_path / "noisy", tmp_path / "clean")] == ["a"]
    assert "7 noisy files without one clean partner" in caplog.text
    assert "b.wav" in caplog.text and "and 2 more" in caplog.text
    (tmp_path / "clean" / "a.wav").unlink()
    with pytest.raises(ValueError, match="none of 8 noisy files has a clean partner"):
        find_pairs(tmp_path / "noisy", tmp_path / "clean")


def test_noisy_files_must_not_collide(tmp_path):
    touch(tmp_path / "noisy", "car/f1/0db/a.wav", "car/f1/0.0dB/a.wav")
    touch(tmp_path / "clean", "a.wav")
    with pytest.raises(ValueError, match="both named 'car/f1/0db/a.wav'"):
        find_pairs(tmp_path / "noisy", tmp_path / "clean")


@pytest.mark.parametrize(
    ("snr_db", "folder"),
    [(-5.0, "-5db"), (0.0, "0db"), (-0.0, "0db"), (2.5, "2.5db"), (math.nan, "unknown")],
)
def test_snr_folders(snr_db, folder):
    assert snr_folder(snr_db) == folder
    np.testing.assert_equal(parse_snr_folder(folder), snr_db + 0.0)


def test_other_folders_are_no_snr():
    assert [parse_snr_folder(name) for name in ("db", "5", "x5db", "5dbx", "FAKS0")] == [None] * 5
    assert [parse_snr_folder(name) for name in ("+5DB", "-2.5 dB")] == [5, -2.5]


# --- splits -----------------------------------------------------------------------------------


def utterances(count) -> list[Utterance]:
    return [Utterance(f"u{index:03}", Path(f"u{index}.wav"), "s") for index in range(count)]


def pairs_of(count, noise="car", snr_db=0.0) -> list[Pair]:
    return [
        Pair(Path(f"n{index}.wav"), Path(f"{index}.wav"), noise, "s", snr_db, f"{index:05}")
        for index in range(count)
    ]


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (10, 1), (100, 5)])
def test_split_is_disjoint_and_complete(count, expected):
    train, validation = split_utterances(utterances(count), seed=1)
    assert len(validation) == expected
    assert sorted(ids(train + validation)) == ids(utterances(count))


def test_split_depends_on_names_and_seed_only():
    items = utterances(200)
    chosen = [set(ids(split_utterances(items, 0.1, seed)[1])) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert set(ids(split_utterances(items[::-1], 0.1, 0)[1])) == chosen[0]


def test_pairs_of_one_clean_file_stay_together():
    items = [pair for snr_db in (-5, 0, 5) for pair in pairs_of(20, snr_db=snr_db)]
    train, validation = split_utterances(items, 0.2, seed=3)
    assert not {p.clean_path for p in train} & {p.clean_path for p in validation}
    assert (len(train), len(validation)) == (48, 12)


def test_split_refuses_nonsense():
    with pytest.raises(ValueError, match="1 utterances cannot be split"):
        split_utterances(utterances(1))
    with pytest.raises(ValueError, match="validation_fraction is 1.0"):
        split_utterances(utterances(9), 1.0)


def test_original_split_has_the_published_counts_and_leak():
    items = [pair for group in range(60) for pair in pairs_of(600, noise=f"n{group:02}")]
    train, validation = split_pairs_original(items[::-1])
    assert (len(train), len(validation)) == (34200, 1800)
    # The published arithmetic, index by index.
    train_indices = [600 * i + j for i in range(60) for j in range(570)]
    validation_indices = [570 * (i + 1) + j for i in range(60) for j in range(30)]
    assert train == [items[index] for index in train_indices]
    assert validation == [items[index] for index in validation_indices]
    known = set(train_indices)
    leaking = sum(
        all(index in known for index in validation_indices[30 * i : 30 * i + 30]) for i in range(60)
    )
    assert leaking == 57


@pytest.mark.parametrize("count", [1, 40, 600, 700, 1300])
def test_original_split_works_with_few_files(count):
    train, validation = split_pairs_original(pairs_of(count))
    assert train and validation
    assert len(set(train)) == len(train) and len(set(validation)) == len(validation)
    assert len(train) == sum(index % 600 < 570 for index in range(count))


def test_original_split_refuses_nonsense():
    with pytest.raises(ValueError, match="no pairs"):
        split_pairs_original([])
    with pytest.raises(ValueError, match="num_train is 600"):
        split_pairs_original(pairs_of(3), 600, 600)


def test_low_snr_is_dropped():
    items = [pairs_of(1, snr_db=snr_db)[0] for snr_db in (-15, -10, -5, math.nan)]
    assert drop_low_snr(items) == items[2:]
    assert drop_low_snr(items, excluded_db=()) == items


def test_low_snr_that_is_left_out_is_counted_and_can_be_kept(tmp_path):
    names = [f"babble/S1/{snr_db}db/u{n}.wav" for snr_db in (-15, -10, 0) for n in range(2)]
    touch(tmp_path / "noisy", *names)
    touch(tmp_path / "clean", "u0.wav", "u1.wav")
    folders = tmp_path / "noisy", tmp_path / "clean"
    pairs, left_out = training_pairs(*folders)
    assert [pair.snr_db for pair in pairs] == [0, 0]
    assert left_out.startswith("4 of 6 training pairs are left out, at -15 and -10 dB")
    pairs, left_out = training_pairs(*folders, keep_low_snr=True)
    assert (len(pairs), left_out) == (6, "")
    for name in names[-2:]:
        (tmp_path / "noisy" / name).unlink()
    with pytest.raises(ValueError, match="4 of 4 .* none remain; --keep-low-snr"):
        training_pairs(*folders)


# --- mixtures ---------------------------------------------------------------------------------


def test_plan_is_a_grid_that_new_files_do_not_change(timit, noises, rng):
    plans = plan_mixtures(find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN"), [-5, 0], 7)
    assert len(plans) == 4 * 2 * 2
    assert plans[0].relative_path.as_posix() == "birds/FCJF0/-5db/FCJF0_SA1.wav"
    before = {plan.relative_path: render(plan).noisy for plan in plans}
    write_sphere(timit / "TRAIN/DR1/FAAA0/SX1.WAV", make_speech(rng))
    make_noises(noises, rng, ["alarm"])
    more = plan_mixtures(find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN"), [-5, 0, 5], 7)
    assert len(more) == 5 * 3 * 3
    after = {plan.relative_path: plan for plan in more}
    for path, noisy in before.items():
        assert_array_equal(render(after[path]).noisy, noisy)


def test_segments_differ_between_mixtures_and_seeds(timit, noises):
    speech, noise = find_speech(timit, "TRAIN"), find_noise(noises, "TRAIN")
    plans = [plan for seed in (0, 1) for plan in plan_mixtures(speech, noise, [0, 5], seed)]
    offsets = [noise_segment(plan, 8000)[1] for plan in plans]
    assert len(set(offsets)) > len(offsets) // 2
    assert all(0 <= offset <= 0.8 * 16000 - 8000 for offset in offsets)


def test_test_segments_stay_in_their_part(timit, noises):
    whole = {noise.name: load_noise(noise)[0] for noise in find_noise(noises)}
    for plan in plan_mixtures(find_speech(timit), find_noise(noises, "TEST"), [0]):
        segment, offset = noise_segment(plan, 8000)
        assert 12800 <= offset < 16000
        part = whole[plan.noise.name][12800:]
        assert_array_equal(segment, mixing_oracle.loop(part, 8000, offset - 12800))


def test_mixtures_have_their_snr(timit, noises):
    for plan in plan_mixtures(find_speech(timit)[:1], find_noise(noises), [-5, 10]):
        mixture = render(plan)
        measured = mixing_oracle.snr_db(mixture.clean, mixture.noise)
        np.testing.assert_allclose(measured, plan.snr_db, rtol=0, atol=1e-6)


def test_silent_noise_is_named(timit, tmp_path):
    soundfile.write(tmp_path / "mute.wav", np.zeros(9000), 16000)
    (plan,) = plan_mixtures(find_speech(timit)[:1], [Noise("mute", tmp_path / "mute.wav")], [0])
    with pytest.raises(ValueError, match="mute.wav: noise is silent"):
        render(plan)


def test_plan_refuses_nonsense(timit, noises):
    speech, noise = find_speech(timit), find_noise(noises)
    with pytest.raises(ValueError, match="no noises to mix"):
        plan_mixtures(speech, [], [0])
    with pytest.raises(ValueError, match="an SNR occurs twice"):
        plan_mixtures(speech, noise, [0, 5, 0])
    with pytest.raises(ValueError, match="seed is -1"):
        plan_mixtures(speech, noise, [0], seed=-1)


def test_bundled_corpus_stands_beside_the_module(tmp_path, rng, monkeypatch):
    make_timit(tmp_path / "speech", rng)
    make_noises(tmp_path / "noise" / "TEST", rng)
    monkeypatch.setattr(corpus, "MINICORPUS", tmp_path)
    assert len(corpus.bundled_speech("TRAIN")) == 4
    assert [noise.name for noise in corpus.bundled_noise("TEST")] == ["birds", "typing"]


def test_noises_of_both_splits_need_a_split(tmp_path):
    for name in ("TRAIN/birds.wav", "TEST/birds.wav"):
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / name, np.zeros(100), 16000)
    with pytest.raises(ValueError, match=r"both named 'birds'; choose a split"):
        find_noise(tmp_path, None)
