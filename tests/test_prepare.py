from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.testing import assert_allclose, assert_array_equal

from speech import prepare
from speech.data import prepared
from speech.data.corpus import Noise, Utterance, find_pairs, plan_mixtures, put_in_rooms
from speech.sound import augment
from speech.sound.audio import read_audio, write_audio
from tests.builders import digests, make_noises, make_speech
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


def test_tree_and_manifest(run, tmp_path, timit, noises, capsys):
    assert run("--snr", -5, 2.5, "--split", "train", "--json", tmp_path / "summary.json") == 0
    out = tmp_path / "out"
    rows = manifest(out)
    assert tuple(rows[0]) == prepared.COLUMNS
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


@pytest.mark.parametrize("limit", [2, 3])
def test_a_limit_takes_all_speakers_in_turn(run, tmp_path, limit):
    assert run("--snr", 0, "--limit", limit) == 0
    taken = {row["clean"] for row in manifest(tmp_path / "out")}
    speakers = {Path(name).stem.split("_")[0] for name in taken}
    assert len(taken) == limit and len(speakers) == limit


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
    assert run("--snr", 0, 5, "--seed", 3) == 1
    assert "is not empty" in capsys.readouterr().err
    assert digests(tmp_path / "out") == first
    assert run("--snr", 0, 5, "--seed", 3, "--force") == 0
    assert digests(tmp_path / "out") != first
    assert run("--snr", 0, 5, "--force") == 0
    assert digests(tmp_path / "out") == first
    assert run("--snr", 0, "--force") == 1
    assert "holds 16 files that this command would not replace" in capsys.readouterr().err
    assert digests(tmp_path / "out") == first


def changes(folder):
    """Returns when each sound file was written, in the order of writing: renaming keeps it."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*.wav")
    }


def test_a_repeated_command_keeps_what_is_whole(run, tmp_path, timit, noises, capsys, rng):
    words = ["--snr", 0, 5, "--rooms", 0.5]
    write_sphere(timit / "TEST/DR1/FAKS0/SX9.WAV", np.zeros(8000))
    assert run(*words, "--json", tmp_path / "one.json") == 0
    out, said = tmp_path / "out", capsys.readouterr()
    assert "skipped     1" in said.out
    expected, whole = digests(out), changes(out)

    def rewritten():
        return {name for name, change in changes(out).items() if whole.get(name) != change}

    assert run(*words, "--json", tmp_path / "two.json", jobs=2) == 0
    assert digests(out) == expected and not rewritten()
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert capsys.readouterr() == said

    # A kill: no manifest, a note that is cut, a file that is not there.
    (out / "manifest.csv").unlink()
    (out / "noisy/birds/FCJF0/0db/FCJF0_SA1.wav").unlink()
    marker = out / prepared.MARKER
    run_line, *notes = marker.read_text().splitlines()
    assert len(notes) == 8
    marker.write_text("\n".join([run_line, *notes[:-1], notes[-1][:-9]]))
    last = json.loads(notes[-1])["utterance"]
    assert run(*words) == 0
    assert digests(out) == expected
    again = {name.rsplit("/", 1)[1].removesuffix(".wav") for name in rewritten()}
    assert again == {"FCJF0_SA1", last} and len(rewritten()) == 2 * 5
    assert all(json.loads(line) for line in marker.read_text().splitlines()[-2:])

    # Another source: what was made of it, and only that, is made again.
    whole = changes(out)
    write_sphere(timit / "TRAIN/DR2/MARC0/SX37.WAV", make_speech(rng))
    assert run(*words) == 0
    assert {name.rsplit("/", 1)[1] for name in rewritten()} == {"MARC0_SX37.wav"}
    before, expected = expected, digests(out)
    assert {name for name in before if before[name] != expected[name]} == {
        *rewritten(), "manifest.csv"
    }  # fmt: skip
    whole = changes(out)
    make_noises(noises, rng)
    assert run(*words) == 0
    assert rewritten() == whole.keys()
    whole, expected = changes(out), digests(out)
    assert run(*words, "--force") == 0
    assert rewritten() == whole.keys() and digests(out) == expected


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
        "print([n for n in ('joblib', 'scipy', 'soundfile', 'soxr', 'keras') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_noise_names_must_differ(run, noises, rng, capsys):
    (noise,) = noises.glob("birds.*")
    write_audio(noise.with_suffix(".flac"), read_audio(noise).samples, subtype="PCM_16")
    assert run("--snr", 0) == 1
    assert "both named 'birds'" in capsys.readouterr().err


def test_noises_of_one_name_get_their_folders_in_front(run, noises, rng, tmp_path):
    make_noises(noises / "again", rng, ["birds"])
    assert run("--snr", 0) == 0
    names = {Path(row["noisy"]).parts[1] for row in manifest(tmp_path / "out")}
    assert len(names) == len({row["source_noise"] for row in manifest(tmp_path / "out")})
    assert any("again" in name for name in names)


OLD_COLUMNS = (
    "noisy clean source_clean source_noise offset_samples seed snr_db measured_snr_db gain"
)


def in_room(source, number):
    """Returns all of the sound in a room and its early part, float64, by direct convolution."""
    dry = read_audio(source).samples.astype(float)
    response = augment.room_response(number).astype(float)
    direct = int(np.argmax(np.abs(response)))
    response /= response[direct]
    early = response[: direct + 800]  # 50 ms
    return [np.convolve(dry, part)[direct : direct + len(dry)] for part in (response, early)]


def schroeder_s(response):
    """Returns the reverberation time by a straight line through -5 to -35 dB of the decay."""
    decay_db = 10 * np.log10(np.cumsum(response[::-1].astype(float) ** 2)[::-1])
    decay_db -= decay_db[0]
    chosen = np.flatnonzero((decay_db < -5) & (decay_db > -35))
    return -60 / np.polyfit(chosen / 16000, decay_db[chosen], 1)[0]


def test_in_rooms_the_snr_is_exact_and_the_target_is_the_early_sound(run, tmp_path, timit, noises):
    words = ["--snr", -6, 18, "--split", "test", "--rooms", 1, "--json", tmp_path / "s.json"]
    assert run(*words) == 0
    rows = manifest(tmp_path / "out")
    assert list(rows[0]) == [*OLD_COLUMNS.split(), "num_samples", "room", "rt60_s"]
    assert len(rows) == 4 * 2 * 2
    rooms = {row["clean"]: int(row["room"]) for row in rows}
    assert len(set(rooms.values())) > 1
    for row in rows:
        number, gain = int(row["room"]), float(row["gain"])
        assert number == rooms[row["clean"]] >= augment.NUM_ROOMS  # training has the others
        rt60_s = schroeder_s(augment.room_response(number))
        assert float(row["rt60_s"]) == pytest.approx(rt60_s, rel=0.1)
        clean, noisy = (
            soundfile.read(tmp_path / "out" / row[key])[0] for key in ("clean", "noisy")
        )
        wet, early = in_room(timit / row["source_clean"], number)
        assert_allclose(clean, gain * early, rtol=0, atol=1e-6)
        assert not np.allclose(clean, gain * wet, rtol=0, atol=1e-4)
        noise = noisy - gain * wet
        assert mixing_oracle.snr_db(gain * wet, noise) == pytest.approx(
            float(row["snr_db"]), abs=1e-4
        )
        assert float(row["measured_snr_db"]) == pytest.approx(float(row["snr_db"]), abs=1e-6)
        part = read_audio(noises / row["source_noise"]).samples[12800:]  # the last fifth, in a loop
        used = np.roll(np.tile(part, 3), 12800 - int(row["offset_samples"]))[:8000]
        assert np.corrcoef(noise, used)[0, 1] > 0.999999
        assert max(np.max(np.abs(noisy)), np.max(np.abs(clean))) <= 0.99 + 1e-6
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["rooms"], summary["num_in_rooms"]) == (1.0, 4)


def test_rooms_are_the_same_each_time_whatever_else_is_mixed(run, tmp_path, timit, rng, capsys):
    assert run("--snr", 0, "--rooms", 0.5, out="one") == 0
    assert run("--snr", 0, "--rooms", 0.5, out="two", jobs=2) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    rooms = {row["clean"]: row["room"] for row in manifest(tmp_path / "one")}
    placed = {name: room for name, room in rooms.items() if room}
    assert 0 < len(placed) < len(rooms) == 8
    assert f"in rooms    {len(placed)} utterances in" in capsys.readouterr().out
    dry = [row for row in manifest(tmp_path / "one") if not row["room"]]
    assert dry and all(row["rt60_s"] == "" for row in dry)

    write_sphere(timit / "TEST/DR1/FAAA0/SX1.WAV", make_speech(rng))  # the first of all
    assert run("--snr", 0, "--rooms", 0.5, out="more") == 0
    before = digests(tmp_path / "one")
    before.pop("manifest.csv")
    assert before.items() < digests(tmp_path / "more").items()

    assert run("--snr", 0, "--rooms", 1, out="all") == 0
    everyone = {row["clean"]: row["room"] for row in manifest(tmp_path / "all")}
    assert placed.items() < everyone.items() and all(everyone.values())
    assert run("--snr", 0, "--rooms", 1, "--seed", 1, out="seed") == 0
    assert everyone != {row["clean"]: row["room"] for row in manifest(tmp_path / "seed")}


def test_without_rooms_nothing_is_different(run, tmp_path, timit):
    assert run("--snr", 0, "--json", tmp_path / "none.json", out="none") == 0
    assert run("--snr", 0, "--rooms", 0, "--json", tmp_path / "zero.json", out="zero") == 0
    assert run("--snr", 0, "--rooms", 0.5, out="half") == 0
    none, half = digests(tmp_path / "none"), digests(tmp_path / "half")
    assert none == digests(tmp_path / "zero")
    assert (tmp_path / "none.json").read_text() == (tmp_path / "zero.json").read_text()
    header = (tmp_path / "none/manifest.csv").read_text().partition("\n")[0]
    assert header == ",".join([*OLD_COLUMNS.split(), "num_samples"])
    for row in manifest(tmp_path / "half"):  # those that stay dry
        for path in (row["noisy"], row["clean"]):
            assert (none[path] == half[path]) == (row["room"] == "")
    for row in manifest(tmp_path / "none"):  # the bytes are those of the dry speech times the gain
        source = read_audio(timit / row["source_clean"]).samples.astype(float)
        clean = soundfile.read(tmp_path / "none" / row["clean"], dtype="float32")[0]
        assert_array_equal(clean, (source * float(row["gain"])).astype(np.float32))


def test_a_target_louder_than_the_whole_does_not_clip(tmp_path, noises, monkeypatch):
    dry = np.zeros(8000)
    dry[[0, 1000, 1160]] = 0.9
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech/x.wav", dry, 16000, subtype="FLOAT")
    response = np.zeros(2000)
    response[[0, 160, 1160]] = 1, 0.5, -0.5  # the last, late, cancels what is early
    monkeypatch.setattr(augment, "room_response", lambda number: response)
    monkeypatch.setattr(augment, "reverberation_time_s", lambda response: 0.1)
    words = ["--clean", tmp_path / "speech", "--noise", noises, "--out", tmp_path / "out"]
    words += ["--snr", 20, "--rooms", 1, "--jobs", 1]
    assert prepare.main([str(word) for word in words]) == 0
    row = manifest(tmp_path / "out")[0]
    assert float(row["gain"]) == pytest.approx(0.99 / 1.35, abs=1e-6)
    clean = soundfile.read(tmp_path / "out" / row["clean"])[0]
    assert np.max(np.abs(clean)) == pytest.approx(0.99, abs=1e-6)


@pytest.mark.parametrize("probability", ["1.5", "-0.1", "nan"])
def test_what_is_no_probability_is_refused(run, tmp_path, capsys, probability):
    assert run("--snr", 0, f"--rooms={probability}") == 1
    assert f"rooms is {float(probability)}; give a probability, 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rooms_need_the_library(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    assert run("--snr", 0, "--rooms", 0.5) == 1
    error = capsys.readouterr().err
    assert "pip install pyroomacoustics" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run("--snr", 0) == 0


def test_the_share_of_rooms_and_the_rooms_of_each_split():
    utterances = [Utterance(f"u{number}", Path("u.wav"), "s") for number in range(500)]
    plans = plan_mixtures(utterances, [Noise("n", Path("n.wav"))], [0])
    placed = [plan.room for plan in put_in_rooms(plans, 0.3) if plan.room is not None]
    assert 110 < len(placed) < 190  # mean 150, standard deviation 10
    assert max(placed) < augment.NUM_ROOMS
    tested = [plan.room for plan in put_in_rooms(plans, 1.0, "TEST")]
    assert min(tested) >= augment.NUM_ROOMS and len(set(tested)) > 150
    assert put_in_rooms(plans, 0.0) == plans
    noises = [Noise(name, Path(name)) for name in "mn"]
    many = put_in_rooms(plan_mixtures(utterances, noises, [0, 5]), 1.0, "TEST")
    assert [plan.room for plan in many] == list(np.repeat(tested, 4))
    own = [dataclasses.replace(plan.utterance, split="TEST") for plan in plans]
    plans = plan_mixtures(own, [Noise("n", Path("n.wav"))], [0])
    assert [plan.room for plan in put_in_rooms(plans, 1.0)] == tested
