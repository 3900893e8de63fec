"""The bundled corpus is what its recipe and its attribution say it is."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.base import files
from speech.minicorpus import build
from speech.sound import conditioning

ROOT = build.CORPUS
RECIPE = build.read_recipe()
NAMES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("speech", "noise")
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
)
SPEECH = [name for name in NAMES if name.startswith("speech/")]
NOISE = [name for name in NAMES if name.startswith("noise/")]


def speakers_of(split: str) -> set[str]:
    return {name.split("/")[3] for name in SPEECH if name.split("/")[1] == split}


def kinds_of(split: str) -> set[str]:
    return {Path(name).stem for name in NOISE if name.split("/")[1] == split}


def total_seconds(prefix: str) -> float:
    return sum(soundfile.info(ROOT / name).duration for name in NAMES if name.startswith(prefix))


def test_tree_has_the_timit_shape():
    pattern = re.compile(r"speech/(TRAIN|TEST)/([A-Z]{2})/[FM]\2\d/U\d\d\.flac")
    assert SPEECH and all(pattern.fullmatch(name) for name in SPEECH)
    assert NOISE and all(re.fullmatch(r"noise/(TRAIN|TEST)/[a-z]+\.flac", name) for name in NOISE)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_16_khz_mono_16_bit_flac_and_neither_silent_nor_clipped(name):
    info = soundfile.info(ROOT / name)
    assert (info.format, info.subtype) == ("FLAC", "PCM_16")
    assert (info.samplerate, info.channels) == (16000, 1)
    samples, _ = soundfile.read(ROOT / name)
    rms = np.sqrt(np.mean(samples**2))
    assert 0.02 < rms < 0.2
    assert abs(np.mean(samples)) < 0.05 * rms
    if name in SPEECH:
        assert 2.0 <= info.duration <= 5.0
        np.testing.assert_allclose(
            np.max(np.abs(samples)), conditioning.SPEECH_PEAK, rtol=0, atol=1e-4
        )
    else:
        assert np.max(np.abs(samples)) <= conditioning.NOISE_PEAK + 1e-4


def test_training_and_test_speakers_are_disjoint_and_both_genders_are_there():
    train, test = speakers_of("TRAIN"), speakers_of("TEST")
    assert not train & test
    assert len(train) >= 6 and len(test) >= 4
    for group, at_least in ((train, 3), (test, 2)):
        for letter in "FM":
            assert sum(speaker.startswith(letter) for speaker in group) >= at_least


def test_speaker_records_agree_with_the_tree():
    assert RECIPE["speakers"].keys() == speakers_of("TRAIN") | speakers_of("TEST")
    for speaker, record in RECIPE["speakers"].items():
        assert speaker in speakers_of(record["split"])
        assert record["gender"] == {"F": "female", "M": "male"}[speaker[0]]
        assert (record["f0_hz"] > 180) == (record["gender"] == "female")


def test_durations_in_total():
    assert 270 <= total_seconds("speech/TRAIN") <= 330
    assert 80 <= total_seconds("speech/TEST") <= 105
    for speaker in speakers_of("TRAIN"):
        assert total_seconds(f"speech/TRAIN/{speaker[1:3]}/{speaker}/") >= 40
    for speaker in speakers_of("TEST"):
        assert total_seconds(f"speech/TEST/{speaker[1:3]}/{speaker}/") >= 20


def test_whole_folder_is_at_most_12_mb():
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) <= 12e6


def test_noises_have_training_and_test_parts():
    assert kinds_of("TRAIN") == kinds_of("TEST") == RECIPE["noises"].keys()
    assert len(kinds_of("TRAIN")) >= 6
    assert {"birds", "typing", "engine"} <= kinds_of("TRAIN")


@pytest.mark.parametrize("kind", sorted(RECIPE["noises"]))
def test_noise_parts_do_not_overlap_in_their_sources(kind):
    train, test = (
        RECIPE["files"][f"noise/{split}/{kind}.flac"]["pieces"] for split in ("TRAIN", "TEST")
    )
    for ours in train:
        for theirs in test:
            if ours["sha256"] == theirs["sha256"]:
                assert ours["end_s"] <= theirs["start_s"] or theirs["end_s"] <= ours["start_s"]


def test_no_speech_source_is_used_twice():
    digests = [piece["sha256"] for name in SPEECH for piece in RECIPE["files"][name]["pieces"]]
    assert len(set(digests)) == len(digests)


def test_recipe_and_manifest_name_exactly_the_files_of_the_tree():
    assert sorted(RECIPE["files"]) == NAMES
    manifest = (ROOT / build.MANIFEST).read_text(encoding="utf-8")
    assert manifest == conditioning.manifest_of(ROOT, NAMES)


def test_attribution_names_exactly_the_files_packages_and_licences_of_the_recipe():
    text = (ROOT / "ATTRIBUTION.md").read_text(encoding="utf-8")
    folders = {str(Path(name).parent) + "/" if name in SPEECH else name for name in RECIPE["files"]}
    assert set(re.findall(r"`((?:speech|noise)/[^`]*)`", text)) == folders
    for package, about in RECIPE["packages"].items():
        assert all(about[key] in text for key in ("version", "copyright", "licence"))
        assert package in text
        assert (ROOT / "LICENSES" / about["licence_file"]).is_file()
    used = {about["licence_file"] for about in RECIPE["packages"].values()}
    assert {path.name for path in (ROOT / "LICENSES").iterdir()} == used
    for record in [*RECIPE["files"].values(), *RECIPE["speakers"].values()]:
        assert record["package"] in RECIPE["packages"]


def test_sounds_kept_for_outside_checks_are_left_out():
    paths = [piece["path"] for entry in RECIPE["files"].values() for piece in entry["pieces"]]
    kept = re.compile(r"btanks.*/(city|train)\.ogg|crowd05\.wav|asterisk")
    assert not [path for path in paths if kept.search(path)]


def test_join_overlaps_by_the_cross_fade_and_keeps_a_constant():
    joined = conditioning.join([np.ones(1000), np.ones(2000)])
    assert len(joined) == 3000 - round(conditioning.JOIN_S * conditioning.SAMPLE_RATE_HZ)
    np.testing.assert_allclose(joined, 1.0, rtol=0, atol=1e-12)


def test_typing_is_the_same_for_the_same_seed_only():
    keys = [np.full(100, level) for level in (0.1, 0.2, 0.3, 0.4)]
    first, again, other = (
        conditioning.lay_out_keys([key.copy() for key in keys], 3.0, seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert len(first) == 3 * conditioning.SAMPLE_RATE_HZ
    assert np.any(first != other)


def test_check_source_names_the_file_that_changed():
    piece = {"path": "usr/share/a.ogg", "sha256": "0" * 64}
    with pytest.raises(ValueError, match="usr/share/a.ogg has SHA-256"):
        build.check_source(piece, b"other", "package")


def test_differences_name_changed_missing_and_added_files(tmp_path):
    names = {"speech/a.flac": b"1", "speech/b.flac": b"2", "noise/c.flac": b"3"}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for root in (ours, theirs):
        for name, content in names.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    assert build.differences(theirs, ours) == []
    (theirs / "speech/a.flac").write_bytes(b"changed")
    (theirs / "speech/b.flac").unlink()
    (theirs / "noise/d.flac").write_bytes(b"4")
    assert build.differences(theirs, ours) == ["noise/d.flac", "speech/a.flac", "speech/b.flac"]


def test_wrong_usage_exits_2(capsys):
    with pytest.raises(SystemExit) as stop:
        build.main([])
    assert stop.value.code == 2
    assert "give --out DIR, --check, or both" in capsys.readouterr().err


def test_missing_package_folder_is_one_line(tmp_path, capsys):
    assert build.main(["--out", str(tmp_path), "--packages", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: not a folder of .deb files\n"


def test_missing_package_is_one_line(tmp_path, capsys):
    out = tmp_path / "out"
    assert build.main(["--out", str(out), "--packages", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: .*needs package .* found none; get it with: .*\n", error)
    assert not out.exists()


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_broken_package_is_one_line(tmp_path, capsys):
    package = min(RECIPE["packages"])
    (tmp_path / f"{package}_1_all.deb").write_bytes(b"not a package")
    assert build.main(["--check", "--packages", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
def test_rebuild_gives_the_same_bytes(tmp_path, capsys):
    packages = os.environ.get("MINICORPUS_PACKAGES")
    if not packages:
        pytest.skip("MINICORPUS_PACKAGES names no folder of .deb files")
    assert build.main(["--check", "--out", str(tmp_path), "--packages", packages]) == 0
    assert "0 files differ" in capsys.readouterr().out
    assert files.sha256_of(tmp_path / build.MANIFEST) == files.sha256_of(ROOT / build.MANIFEST)
