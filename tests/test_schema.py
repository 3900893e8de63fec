"""Result files, journals and checkpoints of strangers: refused in one line, in time and memory."""

import hashlib
import io
import json
import time
import zipfile
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from benchmarks.trials.fuzz import peak_mb, reset_peak
from eval import systems
from eval.scoring import ScoreCache
from speech.base import recorded, schema
from speech.base.checkpoint import read_npz, write_npz
from speech.base.written import Written
from speech.data.prepared import COLUMNS, _Journal
from speech.sound.conditioning import read_manifest

ARRAYS = {
    "a": np.arange(6, dtype="f4").reshape(2, 3),
    "f": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
    "scalar": np.array(3, np.int64),
    "none": np.zeros((0, 4), "f4"),
    "state": np.frombuffer(b'{"epoch": 1}', np.uint8),
}


def test_arrays_come_back_as_they_were(tmp_path):
    path = tmp_path / "x.npz"
    write_npz(path, ARRAYS)
    for found in (read_npz(path), read_npz(str(path)), read_npz(io.BytesIO(path.read_bytes()))):
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == array.dtype
            assert_array_equal(found[name], array, strict=True)
            found[name][...] = 0  # they may be changed


def archive(*members, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return stream.getvalue()


def array_bytes(array, **changes):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, np.lib.format.header_data_from_array_1_0(array) | changes
    )
    return stream.getvalue() + array.tobytes()


def bomb():
    zeros = np.zeros(1 << 20, "f4")
    names = [(f"weight_{index}.npy", array_bytes(zeros)) for index in range(64)]
    return archive(*names, compression=zipfile.ZIP_DEFLATED)


def overlapping():
    """Many names for the same bytes: the directory says 400 times what the file holds."""
    data = archive(("a.npy", array_bytes(np.zeros(250_000, "f4"))))
    start = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    entry = data[start:end]
    tail = bytearray(data[end:])
    tail[8:12] = (400).to_bytes(2, "little") * 2
    tail[12:16] = (400 * len(entry)).to_bytes(4, "little")
    return data[:start] + entry * 400 + bytes(tail)


def whole():
    stream = io.BytesIO()
    np.savez(stream, **ARRAYS)
    return stream.getvalue()


def pickled():
    stream = io.BytesIO()
    np.savez(stream, a=np.array([{"x": 1}], object))
    return stream.getvalue()


SMALL = np.zeros(3, "f4")
CHECKPOINTS = {
    "compressed zeros": bomb,
    "bytes of many names": overlapping,
    "pickle": pickled,
    "shape of a terabyte": lambda: archive(("a.npy", array_bytes(SMALL, shape=(1 << 38,)))),
    "negative shape": lambda: archive(("a.npy", array_bytes(SMALL, shape=(-3,)))),
    "shape of nothing": lambda: archive(("a.npy", array_bytes(SMALL, shape=(1 << 40, 0)))),
    "type of text": lambda: archive(("a.npy", array_bytes(np.array(["ab"])))),
    "type of records": lambda: archive(("a.npy", array_bytes(np.zeros(2, "f4,i4")))),
    "no header": lambda: archive(("a.npy", b"\x93NUMPY\1\0\xff\xff")),
    "header that is code": lambda: archive(
        ("a.npy", b"\x93NUMPY\1\0\x20\0" + b"__import__('os').abort()".ljust(32))),
    "header deep": lambda: archive(
        ("a.npy", b"\x93NUMPY\1\0\x10\x27" + b"(" * 5000 + b")" * 5000)),
    "no array": lambda: archive(("a.txt", b"x")),
    "empty": lambda: b"",
    "text": lambda: b"not a checkpoint\n" * 100,
    "half": lambda: whole()[: len(whole()) // 2],
    "damaged": lambda: whole().replace(b"epoch", b"epoXh"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_strangers_are_refused(name, tmp_path):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(CHECKPOINTS[name]())
    before, start = reset_peak(), time.process_time()
    with pytest.raises(ValueError):
        read_npz(path)
    assert peak_mb() - before < 100
    assert time.process_time() - start < 2


@dataclass
class Kind:
    name: str
    rows: list[dict[str, float]]
    more: int = 0


GOOD = {"name": "x", "rows": [{"a": 1, "b": float("nan")}], "unknown": [1]}


def test_what_fits_is_a_value(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(GOOD))
    found = schema.read(tmp_path / "x.json", Kind)
    assert (found.name, found.rows[0]["a"], found.more) == ("x", 1, 0)
    assert np.isnan(found.rows[0]["b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("\x1b[2J", "no JSON"),
        ("[" * 100_000, "no JSON: nested too deeply"),
        ('{"name": 1, "rows": []}', "Expected `str`, got `int` - at `\\$.name`"),
        ('{"name": "x"}', "missing required field `rows`"),
        ('{"name": "x", "rows": [{"a": "\\u001b"}]}', "Expected `float`, got `str`"),
        ('{"name": "x", "rows": {}}', "Expected `array`, got `object`"),
        ("[]", "Expected `object`, got `array`"),
        ("null", "Expected `object`, got `null`"),
        ("[" + "1," * 2_100_000 + "1]", "values of JSON"),
        ('{"name": "' + "9" * 5000 + '", "rows": ' + "9" * 5000 + "}", "no JSON|Expected"),
    ],
)
def test_what_does_not_fit_is_one_line(text, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        schema.read(path, Kind)
    said = str(caught.value)
    assert said.startswith(f"{path}: malformed (") and said.isprintable() and len(said) < 400
    assert time.process_time() - start < 2
    assert list(schema.lines(path, Kind)) == []


#: Lines of journals that are JSON, but of no journal.
ODD_LINES = (
    "[]", "null", "1", '"x"', "{}", '{"key": 1, "scores": {}}', '{"key": "k", "scores": []}',
    '{"key": "k", "scores": {"a 1": 5}}', '{"key": "k", "scores": {"a 1": ["x", 1]}}',
    '{"file": 1, "noisy_sha256": "x", "model_sha256": "m"}',
    '{"file": "a", "noisy_sha256": ["x"], "model_sha256": "m"}',
    '{"utterance": "u"}', '{"utterance": ["u"], "sources": "s"}', "\x1b[2J", "[" * 50_000,
)  # fmt: skip


def test_odd_lines_of_journals_count_as_cut(tmp_path):
    path = tmp_path / "journal.jsonl"
    good = '{"key": "k", "scores": {"stoi 1": [0.5, "ok"], "pesq 1": [null, "silent"]}}'
    old = '{"file": "b", "noisy_sha256": "x", "model_sha256": "m"}'
    made = old.replace('"b"', '"a"')[:-1] + ', "made": {"num_bytes": 3, "sha256": "y"}}'
    path.write_bytes("\n".join([*ODD_LINES, good, made, good[:30]]).encode() + b"\n\xff\xfe\n")
    assert ScoreCache(path)._known == {"k": {"stoi 1": (0.5, "ok"), "pesq 1": (None, "silent")}}
    path.write_text("\n".join([*ODD_LINES, made, old, made[:20]]))
    with systems._Made(path, "m") as known:
        assert known._made == {"a": ("x", Written(3, "y"))}


def test_odd_lines_of_a_preparation_are_mixed_again(tmp_path):
    path = tmp_path / "journal"
    (tmp_path / "x").write_bytes(b"")
    plan = SimpleNamespace(utterance=SimpleNamespace(id="u", path=tmp_path / "x"),
                           noise=SimpleNamespace(path=tmp_path / "x"))  # fmt: skip
    run, sources = _Journal(path, [], "PCM_16")._run, _Journal(path, [], "PCM_16")._digest([plan])
    row = ["x"] * len(COLUMNS)
    files = {"x": {"num_bytes": 0, "sha256": hashlib.sha256().hexdigest()}}
    good = {"utterance": "u", "sources": sources, "converted_from": [16000, 1], "skipped": [],
            "rows": [row], "files": files}  # fmt: skip

    def read(**changes):
        lines = [run, *ODD_LINES, json.dumps(good | changes), json.dumps(good)[:50]]
        path.write_text("\n".join(lines) + "\n")
        return _Journal(path, [], "PCM_16").get([plan], tmp_path)

    assert read().rows == [dict(zip(COLUMNS, row, strict=True))]
    for changes in (
        {"rows": 5}, {"rows": [5]}, {"rows": [[]]}, {"rows": [["x"]]}, {"rows": [row + ["x"]]},
        {"rows": [[5] * len(COLUMNS)]}, {"rows": [[["x"]] * len(COLUMNS)]}, {"skipped": [["a"]]},
        {"converted_from": []}, {"converted_from": ["a", "b"]}, {"sources": None}, {"utterance": 1},
        {"files": {}}, {"files": None}, {"files": {"x": 1}}, {"files": {"y": files["x"]}},
        {"files": {"x": files["x"] | {"num_bytes": 1}}}, {"files": {"x": {"num_bytes": 0}}},
        {"files": {"x": files["x"] | {"sha256": "0"}}}, {"files": files | {"y": files["x"]}},
    ):  # fmt: skip
        assert read(**changes) is None, changes


@pytest.mark.parametrize("text", [*ODD_LINES, '{"command": 1}'])
def test_an_odd_record_of_a_run_is_none(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    assert not recorded.is_done(tmp_path / "run.json", {"command": ["x"]}, [])
    (tmp_path / "run.json").write_text('{"command": ["x"]}')
    assert recorded.is_done(tmp_path / "run.json", {"command": ["x"]}, [])


@pytest.mark.parametrize(
    "text",
    [
        "x",
        f"{'0' * 63}  a.flac",
        f"{'0' * 64} a.flac",
        f"{'0' * 64}  ../a.flac",
        f"{'0' * 64}  /etc/passwd",
        f"{'0' * 64}  a//b",
        f"{'0' * 64}  ",
        "\x1b[2J" * 1000,
        "\udcff",
    ],
)
def test_manifests_name_files_below_their_folder(text, tmp_path):
    path = tmp_path / "MANIFEST.sha256"
    good = f"{'a' * 64}  speech/a b.flac\n"
    path.write_text(good)
    assert read_manifest(path) == {"speech/a b.flac": "a" * 64}
    path.write_bytes((good + text).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="line 2 is .* expected a SHA-256, two spaces") as caught:
        read_manifest(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 400
