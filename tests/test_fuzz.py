"""A bounded run of the fuzzer (``python -m benchmarks.trials.fuzz`` is the long one)."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.trials import fuzz, mutation

ROOT = Path(__file__).parent.parent

INPUTS = 300


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_damaged_files_are_refused_or_read(reader):
    tally = fuzz.fuzz(reader, range(INPUTS), seed=1)
    assert not tally.failures
    assert tally.inputs == tally.refused + tally.accepted == INPUTS
    assert tally.refused > INPUTS / 4
    assert tally.peak_mb < 500


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_inputs_are_the_same_every_time_and_differ(reader):
    inputs = [fuzz.make_input(reader, 3, number) for number in range(50)]
    assert inputs == [fuzz.make_input(reader, 3, number) for number in range(50)]
    assert len(set(inputs)) > 45


def test_sections_are_sealed_as_the_format_says():
    for data in mutation.seeds("icse"):
        assert mutation.sealed(mutation.sections_of(data), data[-4:]) == data


def bad_reader(path):
    """Fails in a way that depends on the file's first byte."""
    first = path.read_bytes()[0]
    if first == 1:
        os._exit(7)
    if first == 2:
        time.sleep(60)
    if first == 3:
        raise KeyError("x")
    if first == 4:
        raise ValueError(f"{path}: two\nlines")
    if first == 5:
        os.write(2, b"noise")
    if first == 6:
        raise ValueError(f"{path}: refused")
    if first == 7:
        start = time.process_time()
        while time.process_time() - start < 0.4:
            pass


def bad_readings(reader):
    return bad_reader


def answer_badly(*arguments):
    """Answers in the process that reads: inputs are one byte, their number."""
    fuzz.make_input = lambda reader, seed, number: bytes([max(number, 0)])
    fuzz._reading = bad_readings
    return fuzz.answer(*arguments)


def test_every_failure_is_counted_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "ANSWER", "tests.test_fuzz:answer_badly")
    monkeypatch.setattr(fuzz.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(fuzz, "make_input", lambda reader, seed, number: bytes([max(number, 0)]))
    tally = fuzz.fuzz("wav", range(9), jobs=2, timeout_s=0.3, keep=tmp_path / "kept")
    found = {failure["number"]: failure["outcome"] for failure in tally.failures}
    assert found == {1: "crashes", 2: "hangs", 3: "escapes", 4: "escapes", 5: "escapes", 7: "hangs"}
    assert (tally.inputs, tally.refused, tally.accepted) == (9, 1, 2)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        f"wav-0-{n}" for n in sorted(found)
    ]
    assert not list((tmp_path / "temporary").iterdir())
    fuzz.print_tallies([tally])
    assert "KeyError" in capsys.readouterr().out


def test_command_writes_its_table(tmp_path, capsys):
    path = tmp_path / "fuzz.json"
    arguments = ["--reader", "h5", "--inputs", "20", "--json", str(path)]
    assert fuzz.main([*arguments, "--keep", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["h5", "20"]
    (result,) = json.loads(path.read_text())["readers"]
    assert result["inputs"] == 20 and result["failures"] == []
    with pytest.raises(SystemExit, match="2"):
        fuzz.main(["--reader", "mp3"])


def test_damage_reaches_the_head_and_the_rest(rng):
    whole = bytes(5000)
    damaged = [mutation.damaged([whole], rng) for _ in range(300)]
    changed = [np.flatnonzero(np.frombuffer(data[:5000], np.uint8)) for data in damaged]
    places = np.concatenate(changed)
    assert (places < 256).any() and (places > 4000).any()


def test_memory_is_measured_from_input_to_input():
    """In a process that holds little: of one that holds gigabytes the system may take some back."""
    code = (
        "import numpy as np\n"
        "from benchmarks.trials import fuzz\n"
        "for num_mb in (200, 50):\n"
        "    before = fuzz.reset_peak()\n"
        "    np.ones(num_mb << 17)\n"
        "    print(num_mb, fuzz.peak_mb() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for num_mb, measured in (map(float, line.split()) for line in done.stdout.splitlines()):
        assert 0.8 * num_mb < measured < 1.3 * num_mb + 20
    assert done.stdout.count("\n") == 2
