from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from speech import prepare
from speech.audio import read_audio
from speech.corpus import find_pairs
from tests.conftest import make_noises, make_speech
from tests.reference import mixing_oracle
from tests.reference.sphere import write_sphere


@pytest.fixture
def run(timit, noises, tmp_path):
    """Runs the command on the small corpus; returns its exit code."""

    def run(*more, out="out", jobs=1):
        command = ["--clean", timit, "--noise", noises, "--out", tmp_path / out, "--jobs", jobs]
        return prepare.main([str(word) for word in (*command, *more)])

    return run


def manifest(folder) -> list[dict[str, str]]:
    with open(folder / "manifest.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def digests(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_tree_and_manifest(run, tmp_path, timit, noises, capsys):
    assert run("--snr", -5, 2.5, "--split", "train", "--json", tmp_path / "summary.json") == 0
    out = tmp_path / "out"
    rows = manifest(out)
    assert tuple(rows[0]) == prepare.COLUMNS
    assert len(rows) == 4 * 2 * 2
    assert rows[0]["noisy"] == "noisy/birds/FCJF0/-5db/FCJF0_SA1.wav"
    assert rows[0]["clean"] == "clean/FCJF0_SA1.wav"
    named = {row[key] for row in rows for key in ("noisy", "clean")}
    assert set(digests(out)) == named | {"manifest.csv"}
    for row in rows:
        clean, noisy = (soundfile.read(out / row[key])[0] for key in ("clean", "noisy"))
        assert len(clean) == len(noisy) == int(row["num_samples"])
        assert_allclose(float(row["measured_snr_db"]), float(row["snr_db"]), rtol=0, atol=1e-6)
        measured = mixing_oracle.snr_db(clean, noisy - clean)
        assert_allclose(measured, float(row["snr_db"]), rtol=0, atol=1e-4)  # float32 files
        source = read_audio(timit / row["source_clean"]).samples.astype(float)
        assert_allclose(clean, float(row["gain"]) * source, rtol=1e-6, atol=1e-9)
        noise = read_audio(noises / row["source_noise"]).samples[int(row["offset_samples"]) :][
            :8000
        ]
        assert np.corrcoef(noisy - clean, noise)[0, 1] > 0.999999
        assert np.max(np.abs(noisy)) <= 0.99 + 1e-6
    assert "mixtures    16" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["num_mixtures"], summary["num_utterances"], summary["skipped"]) == (16, 4, [])


def test_what_was_written_is_read_back_as_pairs(run, tmp_path):
    assert run("--snr", -5, 0) == 0
    pairs = find_pairs(tmp_path / "out/noisy", tmp_path / "out/clean")
    assert len(pairs) == 8 * 2 * 2
    assert {pair.snr_db for pair in pairs} == {-5, 0}
    assert all(pair.clean_path.stem == pair.name for pair in pairs)


def test_one_gain_per_utterance_keeps_every_mixture_from_clipping(run, tmp_path):
    assert run("--snr", -25, 20, "--limit", 2) == 0
    rows = manifest(tmp_path / "out")
    gains = {row["clean"]: {r["gain"] for r in rows if r["clean"] == row["clean"]} for row in rows}
    assert all(len(values) == 1 for values in gains.values()) and len(gains) == 2
    peaks = [np.max(np.abs(soundfile.read(tmp_path / "out" / row["noisy"])[0])) for row in rows]
    assert max(peaks) <= 0.99 + 1e-6 and max(peaks) > 0.98
    assert all(float(row["gain"]) < 1 for row in rows)


def test_same_bytes_whatever_the_number_of_jobs(run, tmp_path):
    assert run("--snr", 0, 5, out="one") == 0
    assert run("--snr", 0, 5, out="two", jobs=2) == 0
    assert run("--snr", 0, 5, "--seed", 1, out="seed") == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one") != digests(tmp_path / "seed")


def test_a_new_speaker_changes_no_other_file(run, tmp_path, timit, rng):
    assert run("--snr", 0, out="before") == 0
    write_sphere(timit / "TEST/DR2/FZZZ0/SX1.WAV", make_speech(rng))
    assert run("--snr", 0, out="after") == 0
    before, after = digests(tmp_path / "before"), digests(tmp_path / "after")
    before.pop("manifest.csv")
    assert before.items() < after.items()


def test_pcm16(run, tmp_path):
    assert run("--snr", 0, "--format", "pcm16", "--limit", 1) == 0
    row = manifest(tmp_path / "out")[0]
    assert soundfile.info(tmp_path / "out" / row["noisy"]).subtype == "PCM_16"
    clean, noisy = (soundfile.read(tmp_path / "out" / row[key])[0] for key in ("clean", "noisy"))
    assert_allclose(mixing_oracle.snr_db(clean, noisy - clean), 0, rtol=0, atol=0.01)


def test_stereo_speech_at_another_rate(tmp_path, rng, noises, capsys):
    (tmp_path / "speech").mkdir()
    stereo = np.stack([make_speech(rng, 44100)] * 2, axis=1)
    soundfile.write(tmp_path / "speech" / "x.wav", stereo, 44100)
    words = ["--clean", tmp_path / "speech", "--noise", noises, "--out", tmp_path / "out"]
    words += ["--snr", "0", "--split", "TRAIN"]  # applies to the noise; the speech has no folders
    assert prepare.main([str(word) for word in words]) == 0
    assert manifest(tmp_path / "out")[0]["num_samples"] == "16000"
    assert "1 utterances: 2 channels averaged, 44100 Hz" in capsys.readouterr().out


def test_overwriting_needs_force(run, tmp_path, capsys):
    assert run("--snr", 0, 5) == 0
    first = digests(tmp_path / "out")
    assert run("--snr", 0, 5) == 1
    assert "is not empty" in capsys.readouterr().err
    assert digests(tmp_path / "out") == first
    assert run("--snr", 0, 5, "--force") == 0
    assert digests(tmp_path / "out") == first
    assert run("--snr", 0, "--force") == 1
    assert "holds 16 files that this command would not replace" in capsys.readouterr().err
    assert digests(tmp_path / "out") == first


def test_bad_sources_are_skipped_and_listed(run, tmp_path, timit, noises, capsys):
    speaker = timit / "TEST/DR1/FAKS0"
    (speaker / "SX2.WAV").write_text("not audio")
    (speaker / "SX3.WAV").touch()
    write_sphere(speaker / "SX4.WAV", np.zeros(8000))
    write_sphere(speaker / "SX5.WAV", np.full(300, 0.5))
    soundfile.write(noises / "mute.wav", np.zeros(9000), 16000)
    soundfile.write(noises / "cut.wav", np.ones(9000), 16000)
    (noises / "cut.wav").write_bytes((noises / "cut.wav").read_bytes()[:999])
    assert run("--snr", 0, "--split", "TEST", "--json", tmp_path / "s.json", jobs=2) == 0
    assert len(manifest(tmp_path / "out")) == 4 * 2
    skipped = json.loads((tmp_path / "s.json").read_text())["skipped"]
    reasons = {item["source"].rsplit("/", 1)[1]: item["reason"] for item in skipped}
    assert set(reasons) == {"SX2.WAV", "SX3.WAV", "SX4.WAV", "SX5.WAV", "mute.wav", "cut.wav"}
    assert "silent" in reasons["SX4.WAV"] and "shorter than 0.25 s" in reasons["SX5.WAV"]
    assert "truncated" in reasons["cut.wav"] and "empty" in reasons["SX3.WAV"]
    captured = capsys.readouterr()
    assert "skipped     6" in captured.out and "skipped 6 sources" in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out/clean/FAKS0_SX4.wav").exists()


def test_nothing_to_write_is_a_failure(run, tmp_path, timit, noises, capsys):
    for path in timit.rglob("*.WAV"):
        path.write_bytes(b"")
    assert run("--snr", 0) == 1
    assert "nothing was written, all 8 utterances were skipped" in capsys.readouterr().err
    shutil.rmtree(noises)
    noises.mkdir()
    assert run("--snr", 0) == 1
    assert "noises: no audio file found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_among_the_sources_is_refused(run, timit, noises, capsys):
    for out in ("TIMIT/mixed", "noises", "."):
        assert run("--snr", 0, out=out) == 1
        assert "overlaps the source folder" in capsys.readouterr().err
    assert not (timit / "mixed").exists()


@pytest.mark.parametrize("words", [["--snr", "loud"], ["--snr", "nan"], ["--snr"], []])
def test_wrong_usage(run, words):
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2


def test_as_a_program(timit, noises, tmp_path):
    command = [sys.executable, "-m", "speech.prepare", "--clean", timit, "--noise", noises]
    command += ["--snr", "-5", "0", "--jobs", "2", "--limit", "3", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(manifest(tmp_path / "out")) == 12
    assert_array_equal([row["seed"] for row in manifest(tmp_path / "out")], ["0"] * 12)


def test_help_does_not_load_the_heavy_parts():
    code = (
        "import sys; from speech import prepare\n"
        "try: prepare.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('numpy', 'joblib', 'soundfile', 'keras') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_noise_names_must_differ(run, noises, rng, capsys):
    make_noises(noises / "again", rng, ["birds"])
    assert run("--snr", 0) == 1
    assert "both named 'birds'" in capsys.readouterr().err
