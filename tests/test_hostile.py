"""Every attack is refused in one line, in time and in memory, and runs nothing."""

import base64
import io
import marshal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from speech.modelfile import icse
from speech.modelfile.read import read_model_file
from tests import hostile
from tests.hostile import hdf5_files, packed_files, sound_files
from tests.hostile.__main__ import content_of

ROOT = Path(__file__).parent.parent
MAX_SECONDS = 2.0  # of processor time: other work on the machine does not count
MAX_MB = 500

#: What is accepted, because it reads as it did before: fields that no reader looks at.
HARMLESS = {
    "packed: forged": {"kernel too long"},  # the decoder leaves what follows the last index
    "sound: flac": {"blocks of 0"},
    # Such sizes are written to pipes: they mean unknown.
    "sound: wav": {f"data of {size} bytes" for size in sound_files.HUGE if size >= 0x7FFFFFFF},
}


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Returns the folder and the results of all attacks, made in one go: starting is slow."""
    folder = tmp_path_factory.mktemp("hostile")
    return folder, hostile.attack(folder, hostile.FAMILIES)


def content_before(family):
    """Returns the content of the file that a family's attacks start from."""
    if family == "packed: forged":
        return content_of(icse.unpack(packed_files.good()).model)
    data = sound_files.sound(family.removeprefix("sound: ").upper())
    samples = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    return content_of(SimpleNamespace(samples=samples))


@pytest.mark.parametrize("family", hostile.FAMILIES)
def test_attacks_are_refused(family, campaign):
    results = campaign[1][family]
    assert len(results) > 3
    accepted = {name: result for name, result in results.items() if result["outcome"] != "refused"}
    assert accepted.keys() == HARMLESS.get(family, set())
    for result in accepted.values():
        assert result["reason"] == content_before(family)
    for name, result in results.items():
        assert result["seconds"] < MAX_SECONDS, name
        assert result["mb"] < MAX_MB, name
        if name not in accepted:
            reason = result["reason"].removeprefix(f"{result['file']}: ")
            assert reason != result["reason"], name
            assert reason and reason.isprintable() and len(reason) < 600, name


def test_no_attack_ran_its_payload(campaign):
    assert not list(campaign[0].rglob("marker"))


def test_the_payload_would_leave_a_mark(tmp_path):
    code = hdf5_files.payload(tmp_path / "marker")
    exec(marshal.loads(base64.b64decode(code)))
    assert (tmp_path / "marker").exists()


def test_what_the_attacks_start_from_is_accepted(tmp_path):
    def whole(folder):
        hdf5_files.good(folder)
        yield "h5", "good.h5", None
        yield "icse", "good.icse", packed_files.good()
        yield "wav", "good.wav", sound_files.sound("WAV")
        yield "flac", "good.flac", sound_files.sound("FLAC")
        header = sound_files.sphere_header(sound_files.NUM_SAMPLES)
        yield "sphere", "good.sph", header + bytes(2 * sound_files.NUM_SAMPLES)

    results = hostile.attack(tmp_path, {"whole": whole})["whole"]
    assert {name: result["outcome"] for name, result in results.items()} == dict.fromkeys(
        ("h5", "icse", "wav", "flac", "sphere"), "accepted"
    )


def test_bytes_behind_the_end_change_nothing(tmp_path):
    """HDF5 says where it ends; what follows is not read. Packed files must end at their end."""
    path = hdf5_files.good(tmp_path)
    before = content_of(read_model_file(path))
    path.write_bytes(path.read_bytes() + b"more")
    assert content_of(read_model_file(path)) == before


@pytest.mark.parametrize(
    "module", ["speech.enhance", "pruning.run", "quantization.run", "mnn.select"]
)
def test_commands_say_it_in_one_line(module, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    evil = files / next(iter(hdf5_files.code(files)))[1]
    noisy = tmp_path / "noisy.wav"
    soundfile.write(noisy, 0.1 * np.ones(4000), 16_000)
    arguments = {
        "speech.enhance": [str(noisy), "--model", str(evil), "-o", str(tmp_path / "x.wav")],
        "pruning.run": [str(evil), "-o", str(tmp_path / "x.h5")],
        "quantization.run": ["pack", str(evil), "-o", str(tmp_path / "x.icse")],
        "mnn.select": [str(noisy), "--experts", str(evil), str(evil), "-o", str(tmp_path / "o")],
    }[module]
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    lines = run.stderr.splitlines()
    if module == "mnn.select":  # a line for each expert that is refused
        assert [line.partition(":")[0] for line in lines] == ["refused", "refused", "error"]
    else:
        assert len(lines) == 1 and lines[0].startswith("error: ")
    assert "layer 'Lambda' can run code" in lines[0]
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "x.wav").exists()


def test_the_work_of_decoding_is_known_before(campaign):
    """Not only refused: for what it would take, and not after most of it was done."""
    results = campaign[1]["packed: bombs"]
    for name, result in results.items():
        if "symbols of" in name:
            assert "take too long to decode" in result["reason"], name
            assert result["seconds"] < 0.5, name
