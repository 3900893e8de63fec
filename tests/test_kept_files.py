"""Files that are lost or wrongly kept: damaged, exchanged or linked since they were written."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import soundfile

from eval import systems
from speech.base.files import append_text, end_line, held
from speech.base.written import Written
from speech.data import corpus, prepared
from speech.net import blockconv
from tests.builders import digests, make_speech

ROOT = Path(__file__).parent.parent


def same_times(path, stat):
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    """A bit of the last sample, size and time of change as before."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    same_times(path, stat)


def exchanged(path):
    other = sorted(p for p in path.parent.rglob("*.wav") if p != path)[0]
    shutil.copyfile(other, path)


def emptied(path):
    path.write_bytes(b"")


def foldered(path):
    path.unlink()
    path.mkdir()
    path.rmdir()


DAMAGES = [cut, flipped, exchanged, emptied, foldered]


def test_what_a_file_was(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    was = Written.of(path)
    assert was == Written(3, hashlib.sha256(b"abc").hexdigest()) and was.is_still(path)
    for data in (b"abd", b"ab", b"abcd", b""):
        path.write_bytes(data)
        assert not was.is_still(path)
    path.unlink()
    assert not was.is_still(path) and not was.is_still(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["noisy", "clean"])
def test_a_repeated_preparation_keeps_no_damaged_file(damage, which, timit, noises, tmp_path):
    out = tmp_path / "out"
    arguments = (timit, noises, [0.0], out)
    prepared.prepare(*arguments, split="TRAIN", limit=3)
    before = digests(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.wav")}
    victim = sorted((out / which).rglob("*.wav"))[0]
    damage(victim)
    assert digests(out) != before
    prepared.prepare(*arguments, split="TRAIN", limit=3)
    assert digests(out) == before
    kept = [path for path, time in times.items() if path.stat().st_mtime_ns == time]
    assert len(kept) == 6  # the utterances that are whole: a clean file and two mixtures each
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.wav")}
    prepared.prepare(*arguments, split="TRAIN", limit=3)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_foreign_file_is_not_scored_as_the_models(damage, tmp_path, rng):
    for folder in ("noisy", "clean"):
        for name in ("a.wav", "b.wav"):
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, make_speech(rng), 16000, subtype="FLOAT")
    pairs = corpus.find_pairs(tmp_path / "noisy", tmp_path / "clean")
    model, out = ROOT / "models/fcn_tiny.icse", tmp_path / "out" / "enhanced" / "tiny"

    def enhanced():
        made = systems.model_system("tiny", model, pairs, out, False, 1)
        return {name: Path(path).read_bytes() for name, path in made.files.items()}

    before = enhanced()
    victim, other = (out / pair.relative_path for pair in pairs)
    damage(victim)
    time = other.stat().st_mtime_ns
    assert enhanced() == before
    assert other.stat().st_mtime_ns == time  # what is whole is kept


def links_to(target, tmp_path):
    """Yields names of links: to a file, to nothing, to themselves, round a circle."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    return [target, tmp_path / "gone", tmp_path / "loop", tmp_path / "one"]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("is_file", [False, True])
def test_a_lock_that_is_a_link_changes_nothing(place, is_file, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    target = links_to(precious, tmp_path)[place]
    out = tmp_path / "out"
    out.mkdir()
    (out / (".model.h5.lock" if is_file else ".lock")).symlink_to(target)
    with pytest.raises(ValueError, match="lock: is a link") as caught:
        with held(out / "model.h5" if is_file else out):
            pass
    assert "\n" not in str(caught.value)
    assert precious.read_text() == "kept" and not (tmp_path / "gone").exists()


@pytest.mark.parametrize("place", range(4))
def test_a_journal_that_is_a_link_is_not_written_through(place, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    journal = tmp_path / "cache.jsonl"
    journal.symlink_to(links_to(precious, tmp_path)[place])
    for write in (lambda: append_text(journal, "x"), lambda: end_line(journal)):
        with pytest.raises(ValueError, match="cache.jsonl: is a link"):
            write()
    assert precious.read_text() == "kept" and not (tmp_path / "gone").exists()


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_code(path):
    """A library that loads, and is not what its name says."""
    data = path.read_bytes()
    at = data.index(b"run_phase")
    path.write_bytes(data[:at] + b"run_phrse" + data[at + 9 :])


def linked(path):
    real = path.with_name("elsewhere.bin")
    path.rename(real)
    path.symlink_to(real)


@pytest.mark.skipif(not blockconv.is_available(), reason="no C compiler")
@pytest.mark.parametrize("damage", [half, emptied, flipped, other_code, foldered, linked])
def test_damaged_kernels_are_compiled_again(damage, tmp_path, monkeypatch):
    compiled = []

    def compile_it(compiler, variant, cache, stem):
        compiled.append(stem)
        built = cache / "built"
        built.write_bytes(b"\x7fELF run_phase" + bytes(1000))
        path = cache / blockconv._name_of_built(stem, built)
        built.rename(path)
        return path

    monkeypatch.setattr(blockconv, "_compile", compile_it)
    first = blockconv._built(tmp_path, "blockconv-x", ["cc"], ())
    assert blockconv._built(tmp_path, "blockconv-x", ["cc"], ()) == first and len(compiled) == 1
    good = first.read_bytes()
    damage(first)
    again = blockconv._built(tmp_path, "blockconv-x", ["cc"], ())
    assert again == first and again.read_bytes() == good and not again.is_symlink()
    assert len(compiled) == 2


@pytest.mark.skipif(not blockconv.is_available(), reason="no C compiler")
def test_half_a_library_in_the_cache_does_not_end_the_process(tmp_path):
    import subprocess

    code = (
        "import sys; from pathlib import Path; from speech.net import blockconv\n"
        "blockconv.library()._name and print(blockconv.library()._name)"
    )
    how = {"cwd": ROOT, "env": os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, "text": True}
    first = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, **how)
    path = Path(first.stdout.strip())
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 3])
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, **how)
    path = Path(again.stdout.strip())
    assert [*path.parent.glob("*.so")] == [path]
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:32] in path.name
