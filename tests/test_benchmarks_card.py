"""The card of the default network: its numbers come from raw files of the shipped model."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import card
from benchmarks.reproduce.raw import read_csv, write_csv

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(tmp_path):
    """A repository of what the card takes."""
    baseline = [card.BASELINE, card.BASELINE.with_suffix(".md")]
    quality = Path("benchmarks/results/quality.json")
    for path in (card.MODEL, card.CARD, card.README, *baseline, quality):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copytree(ROOT / card.RAW, tmp_path / card.RAW)
    return tmp_path


def test_the_committed_card_and_readme_are_up_to_date():
    for path, text in card.render(ROOT).items():
        assert (ROOT / path).read_text() == text, "say python -m benchmarks.card"


def test_numbers_come_from_the_raw_files(copy):
    path = copy / card.RAW / "bundled.csv"
    rows = read_csv(path)
    for row in rows:
        if row["system"] == card.OURS:
            row["pesq_wb"], row["stoi"] = 4.5, 0.999
    write_csv(path, rows)
    texts = card.render(copy)
    assert "| 4.500 | 0.999 |" in texts[card.README]
    assert "| **all** | 240 | 1.249 | 4.500 |" in texts[card.CARD]
    assert "| **all** | 190 | 1.248 | 4.500 |" not in texts[card.CARD]


def run_of(folder, **hashes):
    folder.mkdir()
    systems = [{"name": name, "sha256": sha256} for name, sha256 in hashes.items()]
    (folder / "summary.json").write_text(json.dumps({"systems": systems}))
    shutil.copy(ROOT / card.RAW / "open.csv", folder / "scores.csv")
    return folder


def test_what_was_scored_is_what_is_shipped(copy, tmp_path):
    found = json.loads((copy / card.RAW / "models.json").read_text())
    right = {card.OURS: found["denoise.icse"], card.BESIDE: found["fcn.h5"]}
    history = copy / card.RAW / "history.csv"
    rows = read_csv(history)
    first, then = rows[:3], rows[:2]
    paths = [tmp_path / "first.csv", tmp_path / "then.csv"]
    write_csv(paths[0], first)
    write_csv(paths[1], [*then, rows[0] | {"steps": 1e6}])
    good = run_of(tmp_path / "good", **right)
    for name, path in ((card.OURS, "models/denoise.icse"), (card.BESIDE, "models/fcn.h5")):
        other = run_of(tmp_path / name, **right | {name: "0" * 64})
        with pytest.raises(ValueError, match=f"{name}: scored no {name} that is {path}"):
            card.collect({"open": good, "bundled": other}, paths, copy)
    card.collect({"open": good, "bundled": good}, paths, copy)
    joined = read_csv(history)
    assert joined[:3] == first and len(joined) == 5
    for row, own in zip(joined[3:], then, strict=True):
        assert row["steps"] == first[-1]["steps"] + own["steps"]
        assert row["hours"] == pytest.approx(first[-1]["hours"] + own["hours"])
        assert row["validation_loss"] == own["validation_loss"]
    assert (copy / card.RAW / "bundled.csv").read_text() == (
        copy / card.RAW / "open.csv"
    ).read_text()
    (copy / card.RAW / "models.json").write_text(json.dumps(found | {"fcn.h5": "0"}))
    with pytest.raises(ValueError, match="of other files than models/denoise.icse and models/fcn"):
        card.render(copy)


def test_a_place_that_is_missing_is_named(copy):
    path = copy / card.CARD
    path.write_text(path.read_text().replace("<!-- /open -->", ""))
    with pytest.raises(ValueError, match="open.* stands 0 times"):
        card.render(copy)


def test_half_of_the_sources_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        card.main(["--bundled", "x"])
    assert "go together" in capsys.readouterr().err
