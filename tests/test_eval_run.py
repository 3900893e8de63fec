"""python -m eval.run: layouts, models, bad files, resuming, the published result files, usage."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from eval import run, scoring, systems, tables
from speech.data import corpus
from speech.sound.audio import read_audio
from speech.sound.mixing import loop_or_crop, mix_at_snr
from tests.builders import write_sound

RATE = 16000
FAST = ["--metrics", "pesq_wb", "stoi", "ssnri", "--jobs", "2"]


@pytest.fixture(scope="module")
def mixtures():
    """20 names -> (clean, noisy), of 1.2 s each."""
    noise = read_audio(corpus.bundled_noise("TEST")[0].path).samples.astype(float)
    result = {}
    for place in range(20):
        path = corpus.bundled_speech("TEST")[place % 8].path
        start = RATE // 2 + 1000 * place
        clean = read_audio(path).samples[start : start + 19200].astype(float)
        mixture = mix_at_snr(clean, loop_or_crop(noise, len(clean), 999 * place), 5.0)
        result[f"u{place:02d}"] = mixture.clean, mixture.noisy
    return result


def write_flat(root, mixtures, enhance=lambda noisy: noisy):
    for name, (clean, noisy) in mixtures.items():
        write_sound(root / "clean" / f"{name}.wav", clean)
        write_sound(root / "noisy" / f"{name}.wav", noisy)
        write_sound(root / "enhanced" / f"{name}.wav", enhance(noisy))
    return ["--clean", str(root / "clean"), "--noisy", str(root / "noisy")]


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def some(mixtures, count):
    return dict(list(mixtures.items())[:count])


def test_four_bad_files_among_20(mixtures, tmp_path, capsys):
    folders = write_flat(tmp_path, mixtures, lambda noisy: 0.9 * noisy + 0.01)
    enhanced = tmp_path / "enhanced"
    write_sound(enhanced / "u03.wav", np.zeros(19200))
    for kind, signal in zip(("clean", "noisy", "enhanced"), (0, 1, 1), strict=True):
        write_sound(tmp_path / kind / "u07.wav", mixtures["u07"][signal][:800])
    nan = mixtures["u11"][1].copy()
    nan[100] = math.nan
    write_sound(enhanced / "u11.wav", nan)
    whole = (enhanced / "u13.wav").read_bytes()
    (enhanced / "u13.wav").write_bytes(whole[: len(whole) // 2])

    out = tmp_path / "out"
    arguments = [*folders, "--enhanced", f"mine={enhanced}", *FAST, "--out", str(out)]
    assert run.main(arguments) == 0
    printed = capsys.readouterr()
    assert "4 of 20 files could not be scored" in printed.out
    rows = rows_of(out / "scores.csv")
    assert len(rows) == 40
    bad = {row["name"][-7:-4]: row["status"] for row in rows if row["status"] != "ok"}
    assert set(bad) == {"u03", "u07", "u11", "u13"}
    assert "estimate is silent" in bad["u03"]
    assert "1/4 of a second" in bad["u07"]
    assert "NaN or infinite" in bad["u11"]
    assert "truncated" in bad["u13"]
    for reason in bad.values():
        assert reason in printed.err
    good = [r for r in rows if r["name"][-7:-4] not in bad]
    overall = rows_of(out / "summary.csv")[-2:]
    for group in overall:
        values = [float(r["stoi"]) for r in good if r["system"] == group["system"]]
        assert (group["n"], group["unscored"], len(values)) == ("16", "4", 16)
        assert float(group["stoi"]) == pytest.approx(np.mean(values), abs=1e-12)
        assert float(group["stoi_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["folders"] == {name: str(tmp_path / name) for name in ("noisy", "clean")}
    assert len(summary["unscored"]) == 5  # the short file counts for both systems
    assert summary["metrics"]["stoi"]["version"].startswith("pystoi")
    text = (out / "summary.md").read_text()
    assert "4 could not be scored" in text
    assert "## Difference to noisy" in text
    (difference,) = [
        d
        for d in summary["differences"]
        if d["metric"] == "stoi" and d["noise"] == d["snr_db"] == "all"
    ]
    assert difference["n"] == 16
    assert difference["low"] <= difference["difference"] <= difference["high"]


def test_models_and_folders_in_the_published_layout(mixtures, tmp_path, capsys, monkeypatch):
    for name, (clean, noisy) in some(mixtures, 2).items():
        write_sound(tmp_path / "clean" / f"{name}.wav", clean)
        for noise in ("Car", "babble"):
            write_sound(tmp_path / "noisy" / noise / "spk" / "5db" / f"{name}.wav", noisy)
            write_sound(tmp_path / "wiener" / noise / "spk" / "5db" / f"{name}.WAV", noisy**3)
    (tmp_path / "noisy" / "Car" / "spk" / "5db" / "u00.wav").write_bytes(b"RIFF")
    write_sound(tmp_path / "noisy" / "Car" / "spk" / "5db" / "stranger.wav", np.ones(9000))
    out = tmp_path / "out"
    arguments = [
        "--clean", str(tmp_path / "clean"), "--noisy", str(tmp_path / "noisy"),
        "--enhanced", str(tmp_path / "wiener"), "--model", "models/fcn.h5",
        "--baseline", "wiener", "--matlab-style", *FAST, "--out", str(out),
    ]  # fmt: skip
    assert run.main([*arguments, "--json", str(tmp_path / "copy.json")]) == 0
    printed = capsys.readouterr()
    assert "1 noisy files without one clean partner" in printed.err
    assert "difference to wiener" in printed.out
    rows = rows_of(out / "scores.csv")
    assert [row["system"] for row in rows[:3]] == ["noisy", "wiener", "fcn"]
    by_place = {(row["system"], row["name"]): row for row in rows}
    assert "not enhanced" in by_place["fcn", "Car/spk/5db/u00.wav"]["status"]
    result = json.loads((tmp_path / "copy.json").read_text())
    assert result["noisy_files_without_clean"] == 1
    assert result["systems"][2]["sha256"]
    made = out / "enhanced" / "fcn" / "babble" / "spk" / "5db" / "u01.wav"
    assert np.max(np.abs(read_audio(made).samples)) == pytest.approx(1.0, abs=1e-6)
    lines = (out / "matlab" / "fcn" / "babble_5db.txt").read_text().split("\n")
    assert lines[0] == "   EVALUATED METHODS:\t   PESQ\t    STOI\t   SSNRI"
    assert [line.split(":")[0].strip() for line in lines[1:5]] == [
        "u00.wav",
        "u01.wav",
        "Mean",
        "Stad",
    ]
    values = [float(by_place["fcn", f"babble/spk/5db/u0{n}.wav"]["ssnri"]) for n in (0, 1)]
    assert lines[3].split("\t")[3] == f"{np.mean(values):f}"
    assert lines[4].split("\t")[3] == f"{np.std(values, ddof=1):f}"
    assert "NaN" in (out / "matlab" / "fcn" / "car_5db.txt").read_text()

    # The same command scores and enhances nothing again but the file that could not be read.
    before = made.stat().st_mtime_ns
    counted = []
    monkeypatch.setattr(
        scoring, "_score_isolated", lambda task, names, convert: counted.append(task.name) or {
            name: scoring.Score(math.nan, "bad") for name in names
        },
    )  # fmt: skip
    assert run.main(arguments) == 0
    assert set(counted) == {"Car/spk/5db/u00.wav"}
    assert made.stat().st_mtime_ns == before


def test_flat_folders_match_by_name(mixtures, tmp_path):
    few = some(mixtures, 3)
    write_flat(tmp_path, few)
    (tmp_path / "enhanced" / "u02.wav").unlink()
    write_sound(tmp_path / "enhanced" / "more" / "other.wav", np.ones(9000))
    pairs = corpus.find_pairs(tmp_path / "noisy", tmp_path / "clean")
    system = systems.folder_system("e", tmp_path / "enhanced", pairs, tmp_path / "noisy")
    tasks = systems.tasks_of([system], pairs)
    assert [task.estimate.name for task in tasks[:2]] == ["u00.wav", "u01.wav"]
    assert "no file for unknown/unknown/unknown/u02.wav" in tasks[2].problem
    scores = scoring.score(tasks[2], ("stoi",))
    assert scores["stoi"].status == tasks[2].problem
    # The tree of results is found for flat noisy files, too.
    write_sound(tmp_path / "tree" / "unknown" / "unknown" / "unknown" / "u00.flac.wav", np.ones(9))
    system = systems.folder_system("t", tmp_path / "tree", pairs, tmp_path / "noisy")
    assert system.files["unknown/unknown/unknown/u00.wav"].name == "u00.flac.wav"
    # So is a file in another tree, where one file alone has its name.
    write_sound(tmp_path / "other" / "a" / "U00.wav", np.ones(9))
    for folder in ("b", "c"):
        write_sound(tmp_path / "other" / folder / "u01.wav", np.ones(9))
    system = systems.folder_system("o", tmp_path / "other", pairs, tmp_path / "noisy")
    assert system.files["unknown/unknown/unknown/u00.wav"].name == "U00.wav"
    assert "several files for" in system.files["unknown/unknown/unknown/u01.wav"]
    with pytest.raises(ValueError, match="none of its files belongs to one of 3 noisy files"):
        systems.folder_system("m", tmp_path / "enhanced" / "more", pairs, tmp_path / "noisy")


def test_one_name_in_many_conditions_is_not_matched_by_name_alone(mixtures, tmp_path):
    clean, noisy = mixtures["u00"]
    write_sound(tmp_path / "clean" / "u.wav", clean)
    write_sound(tmp_path / "flat" / "u.wav", clean)
    for folder in ("0db", "5db"):
        write_sound(tmp_path / "noisy" / "n" / "s" / folder / "u.wav", noisy)
    pairs = corpus.find_pairs(tmp_path / "noisy", tmp_path / "clean")
    with pytest.raises(ValueError, match="name them like the noisy files"):
        systems.folder_system("f", tmp_path / "flat", pairs, tmp_path / "noisy")


def test_without_arguments_the_shipped_model_is_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "BUNDLED_SNRS_DB", (5.0,))
    monkeypatch.setattr(run, "BUNDLED_NUM_EACH", 1)
    monkeypatch.setattr(run, "DEFAULT_OUT", tmp_path / "eval")
    monkeypatch.setattr(
        corpus, "bundled_noise", lambda split, found=corpus.bundled_noise: found(split)[:2]
    )
    assert run.main([]) == 0
    out = capsys.readouterr().out
    assert "SI-SSNRI" in out
    assert "0 of 2 files could not be scored" in out
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert [system["name"] for system in summary["systems"]] == ["noisy", "denoise", "fcn"]
    groups = {g["system"]: g for g in summary["summary"] if g["noise"] == g["snr_db"] == "all"}
    for model in ("denoise", "fcn"):
        assert groups[model]["pesq_wb"] > groups["noisy"]["pesq_wb"]
    assert list(summary["metrics"]) == list(scoring.METRICS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clean", "x"], "--clean and --noisy go together"),
        (["--enhanced", "x"], "--enhanced needs --clean and --noisy"),
        (["--model", "a b=x.h5"], "'a b' is no name for a system"),
        (["--model", "noisy=x.h5"], "'noisy' is no name"),
        (["--model", "../x=x.h5"], "is no name"),
        (["--model", "a=x.h5", "--model", "a=y.h5"], "two systems are named 'a'"),
        (["--model", "=x.h5"], "write NAME=PATH"),
        (["--baseline", "other"], "--baseline other: no such system"),
        (["--metrics", "mos"], "invalid choice: 'mos'"),
        (["--metrics", "stoi", "--matlab-style"], "needs the metrics pesq_wb, ssnri too"),
        (["--jobs", "-1"], "argument --jobs"),
        (["--clean", "c", "--noisy", "n", "--num-test", "2"], "for the bundled test set"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_input_is_one_line(mixtures, tmp_path, capsys):
    folders = write_flat(tmp_path, some(mixtures, 1))
    (tmp_path / "file").write_text("no folder")
    out = ["--out", str(tmp_path / "out"), *FAST]
    for arguments, message in [
        (["--clean", str(tmp_path / "no"), *folders[2:]], "no such folder"),
        ([*folders, "--enhanced", f"e={tmp_path / 'no'}"], "no such folder"),
        ([*folders, "--model", f"m={tmp_path / 'file'}"], "file"),
    ]:
        assert run.main([*arguments, *out]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert run.main([*folders, "--out", str(tmp_path / "file")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    for name in ("noisy", "clean/results"):
        assert run.main([*folders, "--out", str(tmp_path / name), *FAST]) == 1
        assert "lies inside the input folder" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "noisy").iterdir()) == ["u00.wav"]
    write_sound(tmp_path / "clean" / "u00.wav", np.zeros(19200))
    assert run.main([*folders, *out]) == 1
    assert "no file could be scored; the first: reference is silent" in capsys.readouterr().err


def test_numbers_that_are_not_there_are_shown_as_such():
    row = {"noise": "a", "snr_db": 5.0, "name": "x", "status": "bad"}
    rows = [row | {"system": s, "stoi": math.nan} for s in ("noisy", "ours")]
    summary, differences = scoring.summarize(rows), scoring.compare(rows)
    text = tables.markdown("t", summary, differences, rows, 1)
    assert "| a | 5 | 0 | - | - |" in text
    assert "| ours | x | bad |" in text
    assert "nan" in tables.format_by_snr(summary)
    assert "p = -" in tables.format_differences(differences)
    small = [row | {"wilcoxon_p": 1e-5} for row in differences]
    assert "  p < 0.001" in tables.format_differences(small)
    no_ends = {"difference": 0.1, "low": math.nan, "high": math.nan}
    alone = [row | no_ends for row in differences]
    assert "  [-]  p" in tables.format_differences(alone)
    assert "nan" not in tables.format_differences(alone)
    assert "nan to" not in tables.markdown("# t", summary, alone, [], 1)


def test_enhanced_and_clean_files_alone(mixtures, tmp_path, capsys):
    write_flat(tmp_path, some(mixtures, 3), lambda noisy: 0.5 * noisy)
    for name, (_, noisy) in some(mixtures, 2).items():
        write_sound(tmp_path / "other" / "car" / "5dB" / f"{name}.wav", noisy**3)
    out = tmp_path / "out"
    words = ["--clean", str(tmp_path / "clean"), "--enhanced", f"a={tmp_path / 'enhanced'}",
             f"b={tmp_path / 'other'}", "--out", str(out), "--jobs", "1"]  # fmt: skip
    assert run.main([*words, "--metrics", "si_sdr", "ssnri"]) == 0
    printed = capsys.readouterr()
    assert "ssnri: without --noisy" in printed.out and "noisy  " not in printed.out
    rows = rows_of(out / "scores.csv")
    assert [(row["system"], row["status"] == "ok") for row in rows] == [
        ("a", True), ("b", True), ("a", True), ("b", True), ("a", True), ("b", False)
    ]  # fmt: skip
    assert set(rows[0]) == {"system", "noise", "snr_db", "name", "si_sdr", "status"}
    assert not (out / "differences.csv").exists()
    result = json.loads((out / "summary.json").read_text())
    assert result["folders"] == {"clean": str(tmp_path / "clean")}
    assert "3 enhanced files" in (out / "summary.md").read_text()
    assert run.main([*words, "--metrics", "ssnri"]) == 1
    assert "ssnri compare with the noisy files; give --noisy" in capsys.readouterr().err
    assert run.main([*words, "--metrics", "si_sdr", "--baseline", "a"]) == 0
    assert {row["system"] for row in rows_of(out / "differences.csv")} == {"b"}
    # One call does what the command does.
    before = (out / "differences.csv").read_bytes()
    folders = (("a", tmp_path / "enhanced"), ("b", tmp_path / "other"))
    config = run.EvalConfig(
        tmp_path / "clean", enhanced=folders, metrics=("si_sdr",), baseline="a", out=out, num_jobs=1
    )
    capsys.readouterr()
    found = run.evaluate(config)
    assert capsys.readouterr().out == "" and (out / "differences.csv").read_bytes() == before
    assert found.to_json() == json.loads((out / "summary.json").read_text())
    with pytest.raises(ValueError, match="--baseline c: no such system"):
        dataclasses.replace(config, baseline="c")
    with pytest.raises(ValueError, match="metric is 'mos'; give some of pesq_wb"):
        dataclasses.replace(config, metrics=("stoi", "mos"))


def test_enhanced_folders_inside_the_clean_one(mixtures, tmp_path):
    for name, (clean, noisy) in some(mixtures, 2).items():
        for folder, samples in (("", clean), ("a", noisy), ("b", 0.5 * noisy)):
            write_sound(tmp_path / "c" / folder / f"{name}.wav", samples)
    words = ["--clean", str(tmp_path / "c"), "--enhanced", f"a={tmp_path / 'c' / 'a'}",
             f"b={tmp_path / 'c' / 'b'}", "--metrics", "si_sdr", "--jobs", "1"]  # fmt: skip
    assert run.main([*words, "--out", str(tmp_path / "out")]) == 0
    scores = [float(row["si_sdr"]) for row in rows_of(tmp_path / "out" / "scores.csv")]
    assert len(scores) == 4 and max(scores) < 10


def test_files_that_are_numbered_pair_by_a_pattern(mixtures, tmp_path):
    for number, (clean, noisy) in enumerate(some(mixtures, 2).values()):
        write_sound(tmp_path / "clean" / f"clean_fileid_{number}.wav", clean)
        write_sound(
            tmp_path / "noisy" / f"book_{number}_snr5_tl-2{number}_fileid_{number}.wav", noisy
        )
        write_sound(tmp_path / "enh" / f"enhanced_fileid_{number}.wav", noisy)
    write_sound(tmp_path / "noisy" / "book_fileid_7.wav", np.ones(9000))
    words = ["--clean", str(tmp_path / "clean"), "--noisy", str(tmp_path / "noisy"), "--enhanced",
             f"x={tmp_path / 'enh'}", "--pair-by", r"fileid_(\d+)"]  # fmt: skip
    out = tmp_path / "out"
    words += ["--metrics", "si_sdr", "--jobs", "1", "--out", str(out)]
    assert run.main(words) == 0
    rows = rows_of(out / "scores.csv")
    assert [(row["system"], row["snr_db"], row["status"]) for row in rows] == [
        ("noisy", "5.0", "ok"), ("x", "5.0", "ok")
    ] * 2  # fmt: skip
    # The same signal is neither better nor worse than itself.
    assert abs(float(rows[0]["si_sdr"]) - float(rows[1]["si_sdr"])) < 1e-6
    result = json.loads((out / "summary.json").read_text())
    assert result["noisy_files_without_clean"] == 1
    assert result["without_clean"][0]["file"].endswith("book_fileid_7.wav")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1e-9, 2e-9, ""), (-3e-7, -1e-7, ""), (-0.0004, -0.0001, ""), (0.0, 0.0, ""),
        (0.001, 0.002, "  better"), (-0.2, -0.1, "  worse"), (-0.1, 0.1, ""),
        (math.nan, math.nan, ""),
    ],
)  # fmt: skip
def test_a_difference_of_zero_is_neither_better_nor_worse(low, high, verdict):
    row = {"metric": "stoi", "low": low, "high": high}
    assert tables._verdict(row) == verdict
    lower_is_better = {"  better": "  worse", "  worse": "  better"}
    assert tables._verdict(row | {"metric": "lsd"}) == lower_is_better.get(verdict, verdict)


@pytest.mark.parametrize(
    "words",
    [
        ["--noisy", "n"], ["--clean", "c"], ["--enhanced", "a=e"],
        ["--clean", "c", "--enhanced", "a=e", "--model", "m=m.h5"],
        ["--clean", "c", "--enhanced", "a=e", "--baseline", "b"],
        ["--clean", "c", "--noisy", "n", "--pair-by", "("], ["--pair-by", "x"],
    ],
)  # fmt: skip
def test_usage_without_noisy_files(words):
    with pytest.raises(SystemExit) as stop:
        run.main(words)
    assert stop.value.code == 2
