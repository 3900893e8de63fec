"""Names of files that are no UTF-8, that a terminal can't show, or whose accents are apart."""

import io
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

import eval.run
import speech.enhance
import speech.prepare
from mnn.expert_files import Place, folder_expert
from speech.base import cli, files
from speech.sound.audio import AudioError, find_audio, read_audio, write_audio
from tests.builders import make_speech

#: Latin-1, as on old disks; a picture; control characters.
NAMES = [b"Gru\xdf.wav", "m\N{MICROPHONE}.wav".encode(), b"a\x1b[31mb.wav", b"two.wav"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")


@pytest.fixture
def corpus(tmp_path, rng):
    """Makes clean, noisy and noise folders; returns their parent."""
    clean = make_speech(rng, 16000)
    for folder, samples in (("clean", clean), ("noisy", clean + 0.1 * rng.normal(size=16000))):
        (tmp_path / folder).mkdir()
        for name in NAMES:
            path = os.fsencode(tmp_path / folder) + b"/" + name
            soundfile.write(path, samples, 16000, format="WAV")
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "hum.wav", 0.1 * rng.normal(size=32000), 16000)
    return tmp_path


@pytest.fixture(params=["ascii", "cp1252", "utf-8"])
def terminal(request, monkeypatch):
    """Returns what puts streams of an encoding in place of standard output and error."""

    def install():
        raw = io.BytesIO(), io.BytesIO()
        for name, stream in zip(("stdout", "stderr"), raw, strict=True):
            text = io.TextIOWrapper(stream, request.param, "strict", write_through=True)
            monkeypatch.setattr(sys, name, text)
        return raw

    return install


def names_in(folder):
    return sorted(os.fsencode(path.name) for path in find_audio(folder))


def test_every_name_is_enhanced(corpus, terminal):
    streams = terminal()
    out, summary = corpus / "out", corpus / "s.json"
    arguments = [str(corpus / "noisy"), "-o", str(out), "--json", str(summary)]
    assert speech.enhance.main(arguments) == 0
    assert names_in(out) == sorted(NAMES)
    assert b"4 enhanced, 0 skipped" in streams[0].getvalue()


def test_every_name_is_scored(corpus, terminal):
    streams = terminal()
    out = corpus / "out"
    arguments = ["--clean", str(corpus / "clean"), "--noisy", str(corpus / "noisy")]
    more = ["--metrics", "si_sdr", "--jobs", "1", "--out", str(out)]
    assert eval.run.main([*arguments, *more]) == 0
    table = (out / "scores.csv").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.endswith(",ok")]
    assert len(rows) == 4 and any(r"Gru\udcdf.wav" in row for row in rows)
    assert b"0 of 4 files could not be scored" in streams[0].getvalue()


def test_a_damaged_file_of_such_a_name_is_named(corpus, terminal):
    streams = terminal()
    path = os.fsencode(corpus / "noisy") + b"/Gru\xdf.wav"
    with open(path, "wb") as stream:
        stream.write(b"no sound")
    assert speech.enhance.main([str(corpus / "noisy"), "-o", str(corpus / "out")]) == 0
    assert rb"Gru\udcdf.wav: cannot be decoded" in streams[1].getvalue()
    assert b"3 enhanced, 1 skipped" in streams[0].getvalue()


def test_every_name_is_mixed(corpus, terminal):
    terminal()
    arguments = ["--clean", str(corpus / "clean"), "--noise", str(corpus / "noise"), "--snr", "5"]
    assert speech.prepare.main([*arguments, "--out", str(corpus / "out"), "--jobs", "1"]) == 0
    assert names_in(corpus / "out" / "clean") == sorted(NAMES)
    assert names_in(corpus / "out" / "noisy") == sorted(NAMES)


def test_a_name_that_cannot_be_shown_ends_no_command(terminal):
    streams = terminal()

    def command():
        print("m\N{MICROPHONE} Gru\udcdf")
        print("s\N{MICROPHONE}\udcdf", file=sys.stderr)
        raise ValueError("no\udcdf \x1b[31m")

    assert cli.run(command) == 1
    out, error = (stream.getvalue() for stream in streams)
    assert rb"Gru\udcdf" in out and rb"\udcdf" in error
    assert error.endswith(b"error: no\\udcdf \\x1b[31m\n")


def test_the_line_of_an_error_is_plain_text():
    assert cli.one_line(ValueError("a\n b\udcdf\x1b\u202e\tc")) == r"a b\udcdf\x1b\u202e c"
    assert cli.one_line(ValueError("Gruß, 録音.wav")) == "Gruß, 録音.wav"


def test_text_files_hold_such_names_with_escapes(tmp_path):
    files.write_text(tmp_path / "x.txt", "Gru\udcdf\n")
    files.append_text(tmp_path / "x.txt", "ß\udcdf\n")
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "Gru\\udcdf\nß\\udcdf\n"


def test_audio_is_read_and_written_under_any_name(tmp_path, rng):
    samples = make_speech(rng, 1000).astype(np.float32)
    for name in NAMES:
        path = tmp_path / os.fsdecode(name)
        write_audio(path, samples)
        np.testing.assert_array_equal(read_audio(path).samples, samples)
        with pytest.raises(AudioError):
            read_audio(path.with_name(f"no{path.name}"))
    assert names_in(tmp_path) == sorted(NAMES)


@pytest.mark.parametrize("ours", ["NFC", "NFD"])
def test_a_candidate_is_found_whichever_way_its_accents_are_written(ours, tmp_path, rng):
    theirs = "NFD" if ours == "NFC" else "NFC"
    name = "Größe é.wav"
    samples = make_speech(rng, 1000)
    write_audio(tmp_path / unicodedata.normalize(theirs, name), samples)
    expert = folder_expert("tool", tmp_path)
    place = Place(Path(unicodedata.normalize(ours, name)), 0)
    np.testing.assert_allclose(expert._run(samples, place), samples, atol=1e-6)
