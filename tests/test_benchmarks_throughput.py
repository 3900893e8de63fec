"""The throughput benchmark: a tiny run, its arithmetic, and what the docs quote of it."""

import json
from pathlib import Path

import pytest

from benchmarks import throughput

ROOT = Path(__file__).parent.parent


def test_tiny_rounds_are_measured(tmp_path, capsys, monkeypatch):
    result = tmp_path / "throughput.json"
    words = ["--scale", "0.02", "--only", "pieces", "enhance", "prepare", "--json", str(result)]
    assert throughput.main(words) == 0
    rows = json.loads(result.read_text())["stages"]
    assert list(rows) == ["pieces", "enhance", "prepare"]
    pieces, enhance, prepare = rows.values()
    assert (pieces["items"], pieces["audio_seconds"], pieces["cores"]) == (20, 40.0, 1)
    assert (enhance["items"], enhance["audio_seconds"], enhance["cores"]) == (1, 3.0, 1)
    assert enhance["bytes_written"] == 0
    assert (prepare["items"], prepare["audio_seconds"], prepare["cores"]) == (60, 180.0, 1)
    # 60 noisy files and a clean one of float32 at 16 kHz, their headers, manifest and notes.
    assert 61 * 192_000 < prepare["bytes_written"] < 1.03 * 61 * 192_000
    assert all(0 < row["cpu_seconds"] < 1.1 * row["wall_seconds"] for row in rows.values())
    assert throughput.markdown(rows) in capsys.readouterr().out


@pytest.mark.slow
def test_all_stages(tmp_path, capsys):
    result = tmp_path / "throughput.json"
    assert throughput.main(["--scale", "0.05", "--json", str(result)]) == 0
    rows = json.loads(result.read_text())["stages"]
    assert rows.keys() == throughput.STAGES.keys()
    assert throughput.arithmetic(rows) in capsys.readouterr().out


def test_the_arithmetic():
    row = {"items": 100, "audio_seconds": 300.0, "wall_seconds": 3.0, "cpu_seconds": 2.4,
           "bytes_written": 0, "cores": 1}  # fmt: skip
    rows = dict.fromkeys(throughput.STAGES, row)
    rows["train"] = row | {"wall_seconds": 30.0, "cores": 2}
    rows["prepare"] = row | {"bytes_written": 19_200_000}
    rows["schedule"] = row | {"audio_seconds": 0.0, "items": 1500}
    text = throughput.arithmetic(rows)
    # 1500 h at 100 s a second are 15 core-hours, and 10,000 h are 100.
    assert "| enhancing | 1,500 / 100.0 = 15 | 56 min | 5.6 min | 34 s |" in text
    assert "| enhancing | 10,000 / 100.0 = 100 | 6.2 h | 38 min | 3.8 min |" in text
    # 30,000 and 200,000 utterances, 1.8 and 12 million files, at 500 a second.
    assert "| preparing files | 1,500 / 100.0 = 15 | 56 min | 5.6 min | 1 min * |" in text
    assert "| preparing files | 10,000 / 100.0 = 100 | 6.2 h | 38 min | 6.7 min * |" in text
    assert "| scoring, PESQ-WB and STOI | 1,500 / 100.0 = 15 | 1 h * | 1 h * | 1 h * |" in text
    assert "10,000 / 100.0 = 100 | 6.7 h * | 6.7 h * | 6.7 h * |" in text
    assert (
        "The process that hands out calls is the limit: 500 per second." in text
        and "500 / 33.3 = 15 cores score as many" in text
    )
    assert "2 cores measured, 1,500 h / 10.0 = 150 h; 10,000 h / 10.0 = 1,000 h." in text
    assert "can feed 100 / 10.0 = 10 such trainings" in text
    assert "take 64.0 kB per second of audio: 1,500 h = 346 GB; 10,000 h = 2,304 GB." in text
    assert "16 cores write 16 x 6.4 = 102 MB/s" in text
    table = throughput.markdown(rows)
    assert "| mixing on the fly | 1 | 33.3 | 100.0 | 80 % |  |" in table
    assert "| training step | 2 | 3.3 | 10.0 | 4 % |  |" in table
    assert "| handing out calls | 1 | 500.0 |  | 80 % |  |" in table


def test_wrong_usage(capsys):
    for words in (["--scale", "0"], ["--scale", "nan"], ["--only", "sleep"]):
        with pytest.raises(SystemExit) as stopped:
            throughput.main(words)
        assert stopped.value.code == 2
    assert "invalid choice: 'sleep'" in capsys.readouterr().err


def test_the_documented_tables_are_those_of_the_committed_figures():
    rows = json.loads((ROOT / "benchmarks/results/throughput.json").read_text())["stages"]
    text = (ROOT / "docs/scaling.md").read_text()
    assert throughput.markdown(rows) in text
    assert throughput.arithmetic(rows) in text
