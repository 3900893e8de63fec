"""The open corpus: from packages to a tree, the same one every time."""

import copy
import hashlib
import json
import re
import shutil
import struct
import subprocess
from fnmatch import fnmatchcase

import numpy as np
import pytest
import soundfile

from speech.base import debian, files
from speech.data import corpus
from speech.minicorpus import build as minicorpus
from speech.opencorpus import __main__ as command
from speech.opencorpus import build, g722, noises, packages, recipe, report, voices
from speech.sound import conditioning

BOOK = recipe.read_recipe()
RATE_HZ = 16000

needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")


def say(rng, f0_hz: float, duration_s: float) -> np.ndarray:
    """A buzz in syllables with pauses, bright enough to pass for speech."""
    time_s = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    buzz = ((f0_hz * time_s + rng.random()) % 1) ** 4  # pulses
    envelope = np.clip(0.4 + np.sin(2 * np.pi * 2.5 * time_s), 0, None) ** 2
    return 0.2 * buzz * envelope + 1e-4 * rng.standard_normal(len(time_s))


def make_package(folder, name: str, recordings: dict[str, tuple[np.ndarray, int]]):
    """Writes a ``.deb`` file with FLAC recordings; returns what a recipe says of the package."""
    tree = folder / f"tree-{name}"
    for path, (samples, rate_hz) in recordings.items():
        target = tree / "usr/share" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, samples, rate_hz)
    (tree / "usr/share/doc" / name).mkdir(parents=True)
    (tree / "usr/share/doc" / name / "copyright").write_text(f"{name} is free\n")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: N <n@example.org>\n"
        "Description: sounds for a test\n"
    )
    path = folder / "debs" / f"{name}_1.0_all.deb"
    path.parent.mkdir(exist_ok=True)
    command_line = ["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "--build", tree, path]
    subprocess.run(command_line, check=True, capture_output=True)
    about = {"title": name, "copyright": "2024 N", "licence": "CC0-1.0"}
    return {"version": "1.0", "sha256": files.sha256_of(path), **about}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Two packages of synthetic sounds and the recipe for them: (folder of packages, recipe)."""
    folder = tmp_path_factory.mktemp("packages")
    rng = np.random.default_rng(5)
    clips = {}
    for speaker, f0_hz in (("anna", 220), ("bert", 110), ("cleo", 240)):
        for number, duration_s in enumerate((0.2, 0.9, 1.3, 1.3, 3.3, 9.7, 2.9, 2.9)):
            clips[f"say/{speaker}-{number}.flac"] = (say(rng, f0_hz, duration_s), RATE_HZ)
    clips["say/anna-8.flac"] = clips["say/anna-4.flac"]  # a copy
    clips["say/anna-9.flac"] = (say(rng, 110, 3.0), RATE_HZ)  # another voice
    clips["say/bert-9.flac"] = (np.clip(30 * say(rng, 110, 3.0), -1, 1), RATE_HZ)
    hiss = 0.1 * rng.standard_normal((44100, 2))
    book = {
        "packages": {
            "voices": make_package(folder, "voices", clips),
            "sounds": make_package(folder, "sounds", {"hiss.flac": (hiss, 22050)}),
        },
        "speakers": {
            speaker: {
                "split": split,
                "language": "Test",
                "gender": "female" if speaker[0] == "F" else "male",
                "voice": name,
                "package": "voices",
                "files": [f"usr/share/say/{name}-*.flac"],
                "f0_hz": f0_hz,
                "min_level_range_db": 20,
            }
            for speaker, name, split, f0_hz in (
                ("FAA0", "anna", "TRAIN", [180, 260]),
                ("MBB0", "bert", "TRAIN", [90, 140]),
                ("FCC0", "cleo", "TEST", [180, 300]),
            )
        },
        "noises": {
            "hiss": {
                "description": "Hiss",
                **{
                    split: {
                        "pieces": [{"package": "sounds", "file": "usr/share/hiss.flac", **part}]
                    }
                    for split, part in (
                        ("TRAIN", {"start_s": 0.1, "end_s": 1.1}),
                        ("TEST", {"start_s": 1.2}),
                    )
                },
            },
            "pink": {"description": "Pink", "TRAIN": {"make": "pink", "duration_s": 1}},
            "hum": {"description": "Hum", "TRAIN": {"make": "hum", "duration_s": 1}},
            "babble": {
                "description": "Babble",
                "TRAIN": {"make": "babble", "duration_s": 20, "talkers": 2},
            },
            "shaped": {
                "description": "Shaped",
                "TRAIN": {"make": "speech_shaped", "duration_s": 1},
            },
        },
    }
    return folder / "debs", book


@pytest.fixture(scope="module")
def built(workshop, tmp_path_factory):
    """The recipe, a tree built from it, and its records."""
    debs, book = workshop
    out = tmp_path_factory.mktemp("built")
    return book, out, build.build(book, debs, out, 1)


@pytest.fixture
def copied(built, tmp_path):
    """A copy of the built tree to break."""
    book, out, _ = built
    return book, shutil.copytree(out, tmp_path / "copy")


def tree_of(root) -> dict[str, str]:
    """Sums of all files but the state."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    names = {path.relative_to(root).as_posix(): files.sha256_of(path) for path in paths}
    return {name: sum_ for name, sum_ in names.items() if not name.startswith(build.STATE)}


def ages_of(root) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*.flac")}


@needs_dpkg
def test_files_are_16_khz_mono_16_bit_flac_of_the_right_length_and_level(built):
    _, out, _ = built
    speech = sorted((out / "speech").rglob("*.*"))
    assert len(speech) > 10
    for path in [*speech, *(out / "noise").rglob("*.*")]:
        info = soundfile.info(path)
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert (info.samplerate, info.channels) == (RATE_HZ, 1)
        samples, _ = soundfile.read(path)
        if path in speech:
            assert 1.5 <= info.duration <= 8.0
            np.testing.assert_allclose(np.max(np.abs(samples)), 0.5, rtol=0, atol=1e-4)
        else:
            rms = np.sqrt(np.mean(samples**2))
            np.testing.assert_allclose(rms, 0.05, rtol=0.02, atol=0)


@needs_dpkg
def test_tree_is_read_as_timit_with_disjoint_speakers(built):
    _, out, _ = built
    speakers = {
        split: {item.speaker for item in corpus.find_speech(out / "speech", split)}
        for split in ("TRAIN", "TEST")
    }
    assert speakers == {"TRAIN": {"FAA0", "MBB0"}, "TEST": {"FCC0"}}
    genders = {item.speaker: item.gender for item in corpus.find_speech(out / "speech")}
    assert genders == {"FAA0": "F", "MBB0": "M", "FCC0": "F"}
    assert [noise.name for noise in corpus.find_noise(out / "noise", "TEST")] == ["hiss"]
    assert len(corpus.find_noise(out / "noise", "TRAIN")) == 5


@needs_dpkg
def test_unfit_recordings_are_left_out_and_counted(built):
    _, _, records = built
    anna, bert = records["FAA0"], records["MBB0"]
    assert anna["refused"] == {"short": 1, "f0": 1}
    assert (anna["num_sources"], anna["num_clips"]) == (10, 7)  # the copy is neither
    assert bert["refused"] == {"short": 1, "clipped": 1}
    assert abs(anna["f0_hz"] - 220) < 5 and abs(bert["f0_hz"] - 110) < 3


@needs_dpkg
def test_manifest_names_every_file_with_its_sum(built):
    _, out, _ = built
    lines = (out / build.MANIFEST).read_text().splitlines()
    named = dict(reversed(line.split("  ")) for line in lines)
    assert named == {name: sum_ for name, sum_ in tree_of(out).items() if name != build.MANIFEST}
    assert {"ATTRIBUTION.md", "LICENSES/voices.txt", "LICENSES/sounds.txt"} <= named.keys()


@needs_dpkg
def test_attribution_names_works_licences_and_sources(built):
    _, out, _ = built
    text = (out / "ATTRIBUTION.md").read_text()
    assert "| voices | 1.0 | voices | 2024 N | CC0-1.0 |" in text
    assert "| `noise/TRAIN/hiss.flac` | sounds | hiss.flac: 0.1-1.1 |" in text
    assert (out / "LICENSES/voices.txt").read_text() == "voices is free\n"


@needs_dpkg
@pytest.mark.parametrize("num_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_second_build_is_bit_identical_whatever_the_jobs(built, workshop, tmp_path, num_jobs):
    book, out, _ = built
    build.build(book, workshop[0], tmp_path, num_jobs)
    assert tree_of(tmp_path) == tree_of(out)


@needs_dpkg
def test_finished_build_is_verified_and_needs_no_packages(copied, tmp_path):
    book, out = copied
    before = ages_of(out)
    build.build(book, tmp_path / "none", out, 1)
    assert ages_of(out) == before


@needs_dpkg
def test_damaged_file_is_made_again_and_no_other(copied, workshop):
    book, out = copied
    before, sums = ages_of(out), tree_of(out)
    victim = next((out / "speech/TRAIN/BB/MBB0").iterdir())
    victim.write_bytes(b"damaged")
    (out / "noise/TRAIN/.pink.abc.flac").write_bytes(b"left by a killed build")
    build.build(book, workshop[0], out, 1)
    assert tree_of(out) == sums
    changed = {path for path, age in ages_of(out).items() if before.get(path) != age}
    assert changed and all("MBB0" in path for path in changed)


@needs_dpkg
def test_interrupted_build_goes_on_where_it_stood(workshop, built, tmp_path, monkeypatch):
    debs, book = workshop
    with monkeypatch.context() as patch:
        patch.setattr(noises, "finish", lambda signal: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build.build(book, debs, tmp_path, 1)
    assert not (tmp_path / build.MANIFEST).exists()
    before = {path: age for path, age in ages_of(tmp_path / "speech").items()}
    assert len(before) > 10
    build.build(book, debs, tmp_path, 1)
    assert ages_of(tmp_path / "speech") == before
    assert tree_of(tmp_path) == tree_of(built[1])


@needs_dpkg
def test_change_of_a_voice_makes_it_and_what_is_made_of_it_again(copied, workshop):
    book, out = copied
    before = ages_of(out)
    book = copy.deepcopy(book)
    book["speakers"]["MBB0"]["min_level_range_db"] = 21
    book["speakers"]["MBB0"]["exclude"] = ["*-7.flac"]
    build.build(book, workshop[0], out, 1)
    after = ages_of(out)
    changed = {path for path in after if before.get(path) != after[path]}
    assert {path.split("/")[-1] for path in changed if "/noise/" in path} == {
        "babble.flac",
        "shaped.flac",
    }
    assert not any("FAA0" in path or "FCC0" in path for path in changed)


@needs_dpkg
def test_sounds_of_another_corpus_are_refused(copied, workshop):
    book, out = copied
    (out / "noise/TRAIN/other.flac").write_bytes(b"")
    with pytest.raises(ValueError, match="1 files of another corpus, such as noise/TRAIN/other"):
        build.build(book, workshop[0], out, 1)


@needs_dpkg
@pytest.mark.parametrize(
    "key, value, message",
    [
        ("sha256", "0" * 64, "has SHA-256 [0-9a-f]{64}, the recipe says 0{64}"),
        ("version", "2.0", "needs package voices of version 2.0, found 1.0"),
    ],
)
def test_another_package_is_one_line(workshop, tmp_path, capsys, key, value, message):
    debs, book = workshop
    book = copy.deepcopy(book)
    book["packages"]["voices"][key] = value
    (tmp_path / "recipe.json").write_text(json.dumps(book))
    out = tmp_path / "out"
    options = ["--out", str(out), "--packages", str(debs), "--corpus-recipe"]
    assert command.main([*options, str(tmp_path / "recipe.json")]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", error)
    assert not (out / "speech").exists()


@needs_dpkg
def test_recipe_that_names_a_missing_file_or_second_is_one_line(workshop, tmp_path):
    debs, book = workshop
    missing = copy.deepcopy(book)
    missing["noises"]["hiss"]["TEST"]["pieces"][0]["file"] = "usr/share/none.flac"
    with pytest.raises(ValueError, match="holds no file usr/share/none.flac"):
        build.build(missing, debs, tmp_path / "a", 1)
    long = copy.deepcopy(book)
    long["noises"]["hiss"]["TRAIN"]["pieces"][0]["end_s"] = 3
    with pytest.raises(ValueError, match="asks for 0.1 to 3 s, the recording has 2.00 s"):
        build.build(long, debs, tmp_path / "b", 1)


@needs_dpkg
def test_downloads_are_cached_and_damaged_ones_fetched_again(workshop, tmp_path, monkeypatch):
    debs, book = workshop
    fetched = []

    def download(package, version, folder):
        fetched.append(package)
        shutil.copy(debs / f"{package}_{version}_all.deb", folder)

    monkeypatch.setattr(debian, "download", download)
    packages.find_packages(book, None, tmp_path)
    packages.find_packages(book, None, tmp_path)
    assert fetched == ["sounds", "voices"]
    (tmp_path / "sounds_1.0_all.deb").write_bytes(b"damaged")
    found = packages.find_packages(book, None, tmp_path)
    assert fetched == ["sounds", "voices", "sounds"]
    assert files.sha256_of(found["sounds"]) == book["packages"]["sounds"]["sha256"]


@needs_dpkg
def test_stats_prints_the_tables_and_builds_nothing(built, tmp_path, capsys):
    book, out, records = built
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(book))
    assert command.main(["--out", str(out), "--stats", "--corpus-recipe", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed == report.statistics(book, records)
    assert "| TRAIN | 2 | 1 | 1 |" in printed and "| hiss | Hiss | 1.0 | 0.8 |  |" in printed
    assert command.main(["--out", str(tmp_path), "--stats", "--corpus-recipe", str(path)]) == 1
    assert "not complete, 8 parts such as FAA0 are missing" in capsys.readouterr().err


def test_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([])
    assert stop.value.code == 2
    none = str(tmp_path / "none")
    assert command.main(["--out", str(tmp_path), "--packages", none]) == 1
    assert capsys.readouterr().err.endswith(f"error: {none}: not a folder of .deb files\n")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not a JSON file"),
        ("[]", "not a recipe"),
        ("{}", "lacks 'packages'"),
        ('{"packages": {}, "speakers": {"../x": {}}, "noises": {}}', "give F or M"),
        ('{"packages": {}, "speakers": {}, "noises": {"../x": {}}}', "small letters only"),
        ('{"packages": {}, "speakers": {}, "noises": {"x": {}}}', "neither TRAIN nor TEST"),
        (
            '{"packages": {}, "speakers": {}, "noises": {"x": {"TEST": {"make": "music"}}}}',
            "cannot make 'music'",
        ),
        (
            '{"packages": {}, "speakers": {}, "noises": {"x": {"TEST": {"pieces": '
            '[{"package": "p", "file": "f"}]}}}}',
            "package p is used but not described",
        ),
    ],
)
def test_bad_recipe_is_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    assert command.main(["--out", str(tmp_path), "--corpus-recipe", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def _set(book, *path, value):
    *way, last = path
    for key in way:
        book = book[key]
    book[last] = value


def _rename_package(book, name):
    text = json.dumps(book).replace('"etw-data"', json.dumps(name))
    book.clear()
    book.update(json.loads(text))


_PIECE = ("noises", "crowd", "TRAIN", "pieces", 0)
_VOICE = ("speakers", "FAR0")

HOSTILE = {
    **{f"package {name!r:.30}": lambda book, name=name: _rename_package(book, name) for name in (
        "-oAPT::Update::Pre-Invoke::=touch marker", "../outside", "/etc", ".", "..", "a/b", "x y",
        "x*", "X", "x\n", "", "x=1", "a" * 1000, "x\u0661")},
    **{f"version {value!r:.30}": lambda book, v=value: _set(
        book, "packages", "etw-data", "version", value=v) for value in (
        "1.0 -o Dir=/", "../1", "-1", "1/2", "1*", "1\n", "\u0661", 1, None, ["1"], "1" * 1000)},
    **{f"sha256 {value!r:.30}": lambda book, v=value: _set(
        book, "packages", "etw-data", "sha256", value=v) for value in ("0", "Z" * 64, 0, None)},
    **{f"file {path!r:.30}": lambda book, p=path: _set(book, *_PIECE, "file", value=p) for path in (
        "../../etc/passwd", "/etc/passwd", "usr/../../x", "usr//x", "usr/./x", "", "a\0b", "a\x1bb",
        "usr/", "x" * 2000, 7, None, ["x"])},
    **{f"pattern {path!r:.30}": lambda book, p=path: _set(book, *_VOICE, "files", value=p)
       for path in (["../*"], ["/etc/*"], [7], "usr/*", {"a": 1}, [["x"]])},
    **{f"seconds {value!r:.30}": lambda book, v=value: _set(
        book, "noises", "brown", "TRAIN", "duration_s", value=v) for value in (
        1e9, -1, float("nan"), float("inf"), "30", None, True, [1])},
    "start": lambda book: _set(book, *_PIECE, "start_s", value=-5),
    "talkers": lambda book: _set(book, "noises", "babble", "TRAIN", "talkers", value=10**9),
    "pitch": lambda book: _set(book, *_VOICE, "f0_hz", value=[1]),
    "pitch of text": lambda book: _set(book, *_VOICE, "f0_hz", value=["a", "b"]),
    "gender": lambda book: _set(book, *_VOICE, "gender", value=""),
    "digit": lambda book: _set(book, "speakers", "FAR\u0661", value=book["speakers"]["FAR0"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_recipe_of_a_stranger_reaches_no_tool_and_no_folder(name, tmp_path, capsys, monkeypatch):
    book = copy.deepcopy(BOOK)
    HOSTILE[name](book)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(book))
    (tmp_path / "out" / "packages").mkdir(parents=True)
    (tmp_path / "out" / "outside").mkdir()
    monkeypatch.setattr(debian.subprocess, "run", lambda *a, **k: pytest.fail(f"ran {a}"))
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: pytest.fail(f"deleted {a}"))
    assert command.main(["--out", str(tmp_path / "out"), "--corpus-recipe", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and error.count("\n") == 1
    assert error.strip().isprintable() and len(error) < 400
    assert (tmp_path / "out" / "outside").is_dir()


@pytest.mark.parametrize(("package", "version"), [("-o", "1.0"), ("../x", "1.0"), ("xx", "-1")])
def test_tools_get_names_and_versions_only(package, version, tmp_path, monkeypatch):
    """Whoever calls them: the bundled corpus has a recipe of its own."""
    monkeypatch.setattr(debian.subprocess, "run", lambda *a, **k: pytest.fail(f"ran {a}"))
    for reach in (debian.find_archive, debian.download):
        with pytest.raises(ValueError, match="of a Debian package"):
            reach(package, version, tmp_path)


# The recipe that comes with the package.


def speakers_of(split: str) -> set[str]:
    return {name for name, voice in BOOK["speakers"].items() if voice["split"] == split}


def kinds_of(split: str) -> set[str]:
    return {kind for kind, noise in BOOK["noises"].items() if split in noise}


def test_recipe_has_enough_speakers_of_both_genders():
    assert len(BOOK["speakers"]) >= 14
    for letter in "FM":
        assert sum(speaker.startswith(letter) for speaker in BOOK["speakers"]) >= 6
    assert len(speakers_of("TRAIN")) >= 12 and len(speakers_of("TEST")) >= build.NUM_TALKERS


def test_bundled_voices_keep_their_split():
    bundled = minicorpus.read_recipe()["speakers"]
    for speaker, voice in bundled.items():
        assert BOOK["speakers"][speaker]["split"] == voice["split"]
        assert BOOK["speakers"][speaker]["package"] == voice["package"]
    assert {"FBE0", "FEL0", "MDA0", "MRU0"} <= speakers_of("TEST")


def test_speakers_of_the_test_stay_and_their_languages_are_not_taken_from_volunteers():
    assert speakers_of("TEST") == {"FBE0", "FEL0", "FUK0", "MDA0", "MLT0", "MRU0"}
    files = [name for voice in BOOK["speakers"].values() for name in voice["files"]]
    assert not [name for name in files if re.search(r"klettres/(uk|lt|da|be|el)/", name)]


def test_no_recording_can_be_of_two_speakers():
    patterns = [
        (voice["package"], pattern)
        for voice in BOOK["speakers"].values()
        for pattern in voice["files"]
    ]
    assert len(set(patterns)) == len(patterns)
    for package, pattern in patterns:
        example = pattern.replace("*", "x")
        matching = [p for name, p in patterns if name == package and fnmatchcase(example, p)]
        assert matching == [pattern]


def test_sounds_kept_for_outside_checks_are_left_out():
    assert "asterisk-core-sounds-fr-g722" in BOOK["packages"]
    for name in BOOK["packages"]:
        assert not re.match(r"asterisk-(core-sounds-(it|ru|en|es)|prompt)", name)
    reserved = re.compile(r"btanks.*/(city|train)\.ogg|crowd05")
    assert not [piece for piece in recipe.pieces_of(BOOK) if reserved.search(piece["file"])]


def test_recipe_has_enough_noises_some_of_them_unseen():
    assert len(kinds_of("TRAIN") & kinds_of("TEST")) >= 10
    unseen = kinds_of("TEST") - kinds_of("TRAIN")
    assert len(unseen) >= 4
    for kind in unseen:
        assert "pieces" in BOOK["noises"][kind]["TEST"]
    for kind, noise in BOOK["noises"].items():
        made = [part.get("make") for part in (noise.get("TRAIN"), noise.get("TEST")) if part]
        if set(made) & {*recipe.SYNTHETIC, "speech_shaped"}:
            assert "synthetic" in noise["description"] and kind not in kinds_of("TEST")


def spans(pieces) -> list[tuple[str, str, float, float]]:
    return [
        (p["package"], p["file"], p.get("start_s", 0.0), p.get("end_s", np.inf)) for p in pieces
    ]


def test_no_second_of_a_test_noise_is_in_training():
    train = [
        p for noise in BOOK["noises"].values() for p in noise.get("TRAIN", {}).get("pieces", ())
    ]
    test = [p for noise in BOOK["noises"].values() for p in noise.get("TEST", {}).get("pieces", ())]
    test += [
        {"package": entry["package"], "file": piece["path"], **piece}
        for name, entry in minicorpus.read_recipe()["files"].items()
        if name.startswith("noise/TEST/")
        for piece in entry["pieces"]
    ]
    for package, path, start_s, end_s in spans(train):
        for other_package, other_path, other_start_s, other_end_s in spans(test):
            if (package, path) == (other_package, other_path):
                assert end_s <= other_start_s or other_end_s <= start_s, path


def test_bundled_kinds_are_there():
    bundled = minicorpus.read_recipe()["noises"].keys()
    assert bundled <= kinds_of("TRAIN") & kinds_of("TEST")


def test_packages_are_those_used_each_with_its_sum():
    assert BOOK["packages"].keys() == recipe.used_packages(BOOK)
    for about in BOOK["packages"].values():
        assert re.fullmatch("[0-9a-f]{64}", about["sha256"])


# Voices.


def test_measured_range_pitch_and_ends_of_a_clip(rng):
    speech = say(rng, 200, 2.0)
    padded = np.concatenate([np.zeros(RATE_HZ), speech, np.zeros(RATE_HZ)])
    clip = voices.measure(padded + 1e-4 * rng.standard_normal(len(padded)), 0.0)
    assert abs(clip.f0_hz - 200) < 4
    assert 40 < clip.level_range_db < 70
    assert 1.6 < clip.duration_s < 2.3
    np.testing.assert_allclose(np.sum(10 ** (clip.bands_db / 10)), 1.0, rtol=1e-6, atol=0)
    assert voices.measure(np.zeros(RATE_HZ), 0.0) is None
    assert voices.measure(speech[:1000], 0.0) is None


def test_clipping_is_seen_at_full_scale_and_in_flat_tops():
    sine = np.sin(2 * np.pi * 200 * np.arange(RATE_HZ) / RATE_HZ + 0.1)
    quiet = 0.1 * sine
    assert voices.clipped_share(1.2 * sine) > 0.3
    assert voices.clipped_share(np.clip(quiet, -0.05, 0.05)) > 0.3
    assert voices.clipped_share(np.zeros(2)) == 0.0
    noise = 0.1 * np.random.default_rng(1).standard_normal(RATE_HZ)
    assert voices.clipped_share(noise) == 0.0


def test_odd_spectrum_is_refused(rng):
    clips = [voices.measure(say(rng, 200, 2.0), 0.0) for _ in range(5)]
    whistle = np.sin(2 * np.pi * 5500 * np.arange(2 * RATE_HZ) / RATE_HZ)
    odd = voices.measure(say(rng, 200, 2.0) + 0.2 * whistle * np.hanning(2 * RATE_HZ), 0.0)
    kept, refused = voices.choose([*clips, odd], {"f0_hz": [100, 300], "min_level_range_db": 5})
    assert len(kept) == 5 and refused == {"spectrum": 1}


def test_long_clip_is_cut_in_its_pauses_and_loses_nothing(rng):
    parts = [0.3 * rng.standard_normal(RATE_HZ * 3) for _ in range(4)]
    pause = np.zeros(RATE_HZ // 4)
    signal = np.concatenate([part for p in parts for part in (p, pause)])
    cuts = voices.split_long(signal)
    np.testing.assert_array_equal(np.concatenate(cuts), signal)
    assert all(1.5 <= len(cut) / RATE_HZ <= voices.LONGEST_S for cut in cuts)
    for cut in cuts[:-1]:
        assert np.max(np.abs(cut[-100:])) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_joined_clips_are_utterances_of_the_right_length(seed):
    rng = np.random.default_rng(seed)
    clips = [rng.standard_normal(round(RATE_HZ * rng.uniform(0.4, 7.5))) for _ in range(40)]
    joined = list(voices.join_clips(clips))
    assert joined
    for utterance in joined:
        assert voices.MIN_UTTERANCE_S <= len(utterance) / RATE_HZ <= voices.MAX_UTTERANCE_S
        np.testing.assert_allclose(
            np.max(np.abs(utterance)), conditioning.SPEECH_PEAK, rtol=1e-9, atol=0
        )
    assert sum(map(len, joined)) > 0.8 * sum(map(len, clips))
    assert list(voices.join_clips([np.ones(RATE_HZ)])) == []


def test_what_is_set_aside_is_in_no_other_file():
    utterances = [np.full(RATE_HZ, value) for value in range(30)]
    kept, aside = voices.set_aside(utterances, 1 / 6, 3.0)
    assert len(aside) == 3 and len(kept) == 27
    assert not {part[0] for part in kept} & {part[0] for part in aside}


def test_babble_is_the_sum_of_its_voices(rng):
    talkers = [0.1 * rng.standard_normal(RATE_HZ), 0.01 * rng.standard_normal(3 * RATE_HZ)]
    made, again = (voices.babble(talkers, 2.0, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(made, again)
    assert len(made) == 2 * RATE_HZ
    assert 0.7 < np.sqrt(np.mean(made**2) / 2) < 1.42  # each voice at 0 dB, give or take 3


def test_too_few_voices_for_babble():
    with pytest.raises(ValueError, match="babble needs 6 voices, there are 1"):
        build._babble([np.ones(10)], {"duration_s": 1}, 0)


# Noises.


@pytest.mark.parametrize("colour, slope_db", noises.COLOURS.items())
def test_slope_of_coloured_noise(colour, slope_db):
    signal = noises.coloured(colour, 20.0, 1)
    power = np.abs(np.fft.rfft(signal)) ** 2
    frequencies = np.fft.rfftfreq(len(signal), 1 / RATE_HZ)
    octaves = [
        np.mean(power[(frequencies >= low) & (frequencies < 2 * low)]) for low in (500, 1000, 2000)
    ]
    np.testing.assert_allclose(np.diff(10 * np.log10(octaves)), slope_db, rtol=0, atol=0.3)


def test_noise_of_a_name_is_the_same_every_time():
    assert noises.seed_of("TRAIN/white") == 2031952287
    first, again = (noises.white_noise(1.0, noises.seed_of("TRAIN/white")) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert noises.seed_of("TEST/white") != noises.seed_of("TRAIN/white")


# G.722.


def pseudo_random_bytes(number: int) -> bytes:
    state, out = 1, []
    for _ in range(number):
        state = (1103515245 * state + 12345) & 0x7FFFFFFF
        out.append(state >> 16 & 255)
    return bytes(out)


def test_g722_decoder_agrees_with_an_outside_decoder_bit_for_bit():
    """The sum is of what the C decoder of the PyPI package G722 1.2.8 gives for the same bytes."""
    decoded = g722.decode([pseudo_random_bytes(400)])[0]
    assert decoded.dtype == np.int16
    packed = struct.pack(f"<{len(decoded)}h", *decoded.tolist())
    expected = "a455c329bcb057bc6aea0d7410ae6aabc083be93bdc3e8153cab08275230ab67"
    assert hashlib.sha256(packed).hexdigest() == expected


def test_g722_files_decoded_together_are_decoded_alike():
    streams = [pseudo_random_bytes(number) for number in (30, 90, 0, 60)]
    for stream, together in zip(streams, g722.decode(streams), strict=True):
        np.testing.assert_array_equal(together, g722.decode([stream])[0])
        assert len(together) == 2 * len(stream)
    assert g722.decode([]) == []
