"""Benchmarks of the modular network: tables from made-up scores, small runs. No speed is tested."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import copies, peers, pool, quality, selection
from mnn.layers import DenseNetwork
from speech.data import corpus
from speech.sound.blocks import frame_energies, stft_frames
from speech.sound.stft import DEFAULT, StftConfig, context_frames
from tests.mnn_files import dense, write_dae, write_mask

ROOT = Path(__file__).parent.parent


class Louder(peers.System):
    """Gives its input back at another level: as good as the noisy file."""

    packages = ("numpy",)

    def enhance(self, noisy):
        return 0.3 * noisy


class Missing(peers.System):
    def __init__(self):
        raise ImportError("no such thing", name="nowhere")


def row(name, sdr, picks):
    """A row in which PESQ is SDR / 10 and STOI is SDR / 100."""
    scores = {who: {"sdr": v, "pesq_wb": v / 10, "stoi": v / 100} for who, v in sdr.items()}
    rest = {which: next(iter(picks.values())) for which in pool.SELECTIONS}
    return {"name": name, "scores": scores, "picks": rest | picks, "out": {}}


def systems(a, b, combined=5.0):
    return {"noisy": 0.0, "a": a, "b": b, "combined": combined}


def test_a_table_of_scores():
    rows = [
        row("1", systems(2.0, 6.0), {"voiced": "b", "eq. 10, literal": "a"}),
        row("2", systems(8.0, 4.0), {"voiced": "a", "eq. 10, literal": "a"}),
        row("3", systems(math.nan, 4.0), {"voiced": "b"}),
    ]
    table, num_unscored = pool.tabulate(rows, ["a", "b"])
    lines = {line["system"]: line for line in table}
    assert num_unscored == 1
    assert {line["n"] for line in table} == {2}
    expected = {"noisy": 0, "a": 5, "b": 5, "chance": 5, "combined": 5, "oracle": 7}
    expected |= {"voiced": 7, "eq. 10, literal": 5}
    for name, value in expected.items():
        assert lines[name]["sdr"] == pytest.approx(value)
        assert lines[name]["pesq_wb"] == pytest.approx(value / 10)
    assert lines["voiced"]["recovery"]["sdr"] == pytest.approx(1)
    assert lines["eq. 10, literal"]["recovery"]["stoi"] == pytest.approx(0)
    assert "recovery" not in lines["a"]
    assert [one["picks"].get("oracle") for one in rows] == ["b", "a", None]
    assert pool.count_picks(rows, "oracle") == {"a": 1, "b": 1}
    text = pool.format_table(table)
    assert text.splitlines()[0].split()[:2] == ["system", "n"]
    assert any(line.startswith("voiced") and "100 %" in line for line in text.splitlines())


def test_the_oracle_goes_by_sdr():
    rows = [row("1", systems(2.0, 6.0), {"voiced": "a"})]
    rows[0]["scores"]["a"]["stoi"] = 0.9
    lines = {line["system"]: line for line in pool.tabulate(rows, ["a", "b"])[0]}
    assert lines["oracle"]["stoi"] == pytest.approx(0.06)


def test_where_all_members_are_alike_there_is_no_recovery():
    table, _ = pool.tabulate([row("1", systems(3.0, 3.0), {"voiced": "a"})], ["a", "b"])
    recoveries = [value for line in table for value in line.get("recovery", {}).values()]
    assert set(recoveries) == {None}
    assert pool.format_table(table)


def test_without_scored_files_means_are_undefined():
    rows = [row("1", systems(math.nan, 3.0), {"voiced": "a"})]
    table, num_unscored = pool.tabulate(rows, ["a", "b"])
    assert num_unscored == 1
    assert all(math.isnan(line["sdr"]) for line in table)
    assert pool.format_table(table)


def test_gains_are_over_the_best_member_of_each_metric_file_by_file():
    rows = [
        row("1", systems(2.0, 6.0), {"both": "b"}),
        row("2", systems(8.0, 5.0), {"both": "a"}),
        row("3", systems(math.nan, 9.0), {"both": "b"}),
    ]
    for one in rows:
        one["scores"]["a"]["stoi"] = 0.9
    table, _ = pool.tabulate(rows, ["a", "b"])
    gains = pool.gains_of(rows, table, ["a", "b"])
    assert gains["both"]["sdr"] == ["b", 1.5, 0.0, 3.0]
    assert gains["combined"]["sdr"] == ["b", -0.5, -1.0, 0.0]
    assert gains["both"]["stoi"][0] == "a" and "a" not in gains and "oracle" not in gains
    assert pool.gains_of(rows, table, ["a"])["both"]["sdr"] == ["a", 2.0, 0.0, 4.0]
    assert pool.gains_of(rows, table, []) == {}


@pytest.fixture
def small_test_set(monkeypatch):
    """The shortest utterance with one noise."""
    speech = sorted(corpus.bundled_speech("TEST"), key=lambda item: item.path.stat().st_size)[:1]
    noise = {split: corpus.bundled_noise(split)[:1] for split in corpus.SPLITS}
    monkeypatch.setattr(corpus, "bundled_speech", lambda split: speech)
    monkeypatch.setattr(corpus, "bundled_noise", noise.get)


def test_tools_join_by_their_folders(tmp_path, monkeypatch, capsys, small_test_set):
    fakes = {"noisereduce": f"{__name__}:Louder", "RNNoise": f"{__name__}:Missing"}
    monkeypatch.setattr(peers, "PEERS", fakes)
    monkeypatch.setattr(pool, "NUM_CALIBRATE", 2)  # of each of the eight noises
    expert = write_mask(tmp_path / "half.h5", 0.0)
    silent = write_mask(tmp_path / "silent.h5", -30.0)
    out = tmp_path / "r.json"
    command = ["--experts", str(expert), str(silent), "--dae", str(write_dae(tmp_path / "d.h5"))]
    command += ["--snr", "5", "--jobs", "1", "--json", str(out)]
    command += ["--calibrate", *(str(corpus.MINICORPUS / name) for name in ("speech", "noise"))]
    assert pool.main(command) == 0
    printed = capsys.readouterr().out
    assert "skipped RNNoise: not installed (nowhere)" in printed
    result = json.loads(out.read_text())
    assert list(result["members"]) == ["half", "silent", "noisereduce"]
    assert result["members"]["noisereduce"] == {"kind": "folder", "sha256": None}
    assert result["tools"]["noisereduce"]["delay_samples"] == 0
    assert "DeepFilterNet 3" not in result["tools"]
    (file,) = result["files"]
    assert file["picks"]["eq. 10, literal"] == "silent"
    assert not {"silent"} & {file["picks"][name] for name in ("voiced", "ranker", "both")}
    assert file["picks"]["clean"] in ("half", "noisereduce") and "others" in result["gains"]
    # What errs as the mixture does is all that is left at half its level.
    assert file["likeness"]["half"] == pytest.approx(file["likeness"]["noisereduce"], abs=0.01)
    assert 0 < result["likeness"]["half"] < 1
    assert result["calibration"]["num_files"] == 16 and len(result["calibration"]["experts"]) == 3
    assert file["picks"]["calibrated"] != "silent"
    assert {*pool.SUMS, "combined", *pool.CALIBRATED_SUMS} <= file["scores"].keys()
    assert set(result["gains"]["both"])
    assert {own["sdr"][0] for own in result["tool_gains"].values()} == {"noisereduce"}
    assert file["scores"]["noisereduce"]["sdr"] == pytest.approx(file["scores"]["noisy"]["sdr"])
    assert file["scores"]["half"]["sdr"] == pytest.approx(file["scores"]["noisy"]["sdr"], abs=0.01)


def test_a_member_that_fails_is_out_for_its_file_only(tmp_path, monkeypatch, small_test_set):
    """Without any file of its own a tool is skipped; the others go on."""

    def failing(worker, clean):
        raise peers.PeerFailed("returns silence for clean speech")

    monkeypatch.setattr(peers, "PEERS", {"noisereduce": f"{__name__}:Louder"})
    monkeypatch.setattr(quality, "measure_delay", failing)
    expert, out = write_mask(tmp_path / "half.h5", 0.0), tmp_path / "r.json"
    command = ["--experts", str(expert), "--dae", str(write_dae(tmp_path / "d.h5"))]
    assert pool.main([*command, "--snr", "5", "--jobs", "1", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["skipped"] == {"noisereduce": "returns silence for clean speech"}
    assert list(result["members"]) == ["half"]


def test_wrong_use(tmp_path, capsys):
    with pytest.raises(SystemExit):
        pool.main(["--timit", str(tmp_path)])
    with pytest.raises(SystemExit):
        selection.main(["--seconds", "0"])
    for arguments, message in [
        (["--rounds", "3"], "at least 7"),
        (["--metric", "x"], "give one of ae, snr"),
        (["--dae", str(tmp_path / "no.h5")], "no.h5"),
    ]:
        assert selection.main(["--seconds", "0.1", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_judging_and_running_take_turns(tmp_path, monkeypatch, capsys):
    from mnn.expert_files import open_expert

    paths = [write_mask(tmp_path / f"{name}.h5", level) for name, level in (("a", 0), ("b", 1))]
    monkeypatch.setattr(selection, "pools", lambda: {"masks": [open_expert(p) for p in paths]})
    out = tmp_path / "r.json"
    command = ["--dae", str(write_dae(tmp_path / "d.h5")), "--seconds", "0.2", "--rounds", "7"]
    assert selection.main([*command, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    (table,) = result["tables"].values()
    for clock in ("wall", "cpu"):
        assert list(table[clock]) == ["experts", "judging", "both"]
        assert {one["rounds"] for one in table[clock].values()} == {7}
    assert "% of processor time" in capsys.readouterr().out


# -- what makes judging fast gives what the plain way gives


@pytest.mark.parametrize("num_frames", [1, 2, 3, 10, 23])
@pytest.mark.parametrize("context", [1, 3, 7])
def test_frames_need_not_be_joined(num_frames, context, monkeypatch, rng):
    monkeypatch.setattr("mnn.layers.BLOCK_FRAMES", 4)
    kernel, bias = rng.standard_normal((5 * context, 6)), rng.standard_normal(6)
    second = dense("two", rng.standard_normal((6, 3)), np.ones(3))
    network = DenseNetwork([dense("one", kernel, bias, "relu"), second])
    frames = rng.standard_normal((num_frames, 5)).astype("f4")
    joined = context_frames(frames, context)
    np.testing.assert_allclose(
        network.over_frames(frames, context), network(joined), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("config", [DEFAULT, StftConfig(12, 3), StftConfig(40, 10)])
@pytest.mark.parametrize("num_samples", [1, 500, 5000])
def test_energies_of_frames_need_no_spectra(config, num_samples, rng):
    one, other = rng.standard_normal((2, num_samples))
    num_frames = config.num_frames(num_samples)
    for span in ((0, num_frames), (num_frames // 3, num_frames)):
        spectra = 3 * stft_frames(one - other, *span, config)
        found = frame_energies(one, *span, config, minus=other, scale=3.0)
        expected = np.sum(np.abs(spectra) ** 2, axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_copies_beside_their_originals(tmp_path, capsys, small_test_set):
    """One copy is its original, one is silent; the autoencoders are the same."""
    models, noise = tmp_path / "models", corpus.bundled_noise("TEST")[0].name
    write_dae(models / "dae_128.h5")
    for place, name in enumerate(("-5 dB", "0 dB", "5 dB")):
        write_mask(models / f"{name.replace(' ', '_')}.h5", float(place))
    silent = write_mask(tmp_path / "silent.icse", -30.0, spread=0.1)
    out = tmp_path / "r.json"
    files = [f"dae_128={models}/dae_128.h5", f"-5 dB={models}/-5_dB.h5", f"0 dB={silent}"]
    command = ["snr", "--models", str(models), "--num-test", "1", "--json", str(out), "--copies"]
    assert copies.main([*command, *files, f"5 dB={models}/5_dB.h5"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["mixtures"] == 3 and {noise in row["name"] for row in result["files"]} == {True}
    assert set(result["change"]["-5 dB"].values()) == set(result["change"]["5 dB"].values()) == {0}
    own = [[row["scores"][which]["0 dB"]["sdr"] for row in result["files"]] for which in (0, 1)]
    expected = np.mean(np.subtract(own[1], own[0]))
    assert result["change"]["0 dB"]["sdr"] == pytest.approx(expected) != 0
    same = [row["picks"][0] == row["picks"][1] for row in result["files"]]
    assert result["same_picks"] == sum(same)
    before, after = (
        np.mean([row["scores"][which][row["picks"][which]]["sdr"] for row in result["files"]])
        for which in (0, 1)
    )
    assert f"SDR {before:.2f} -> {after:.2f} dB" in printed
    assert copies.main([*command, *files]) == 1
    assert "give one of 128, 2048x2 as dae_NET, and -5 dB, 0 dB, 5 dB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        copies.main([*command, "nameless"])


def test_the_guide_says_what_copies_cost():
    guide = " ".join((ROOT / "docs/mnn.md").read_text().split())
    for name in ("gender", "snr"):
        result = json.loads((ROOT / f"benchmarks/results/copies_{name}.json").read_text())
        before, after = result["picked"]["sdr"]
        assert f"{before:.2f} to {after:.2f} dB" in guide
        assert f"{result['same_picks']} of {result['mixtures']}" in guide
        for change in result["change"].values():
            assert f"{change['sdr']:.2f}" in guide
