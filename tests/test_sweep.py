"""The sweep: sizes and scores of several models in one table, resumed, compared file by file."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from eval import cost, sweep
from eval.cost import cost_of
from eval.scoring import json_ready
from eval.systems import bundled_pairs
from speech.modelfile.h5 import write_model_file
from speech.net.fcn import FCNConfig
from speech.net.mask_enhancer import MaskEnhancer
from speech.sound.audio import peak_normalize, read_audio
from tests.builders import kernel_shapes, layers_of, write_mask_network

CONFIG = FCNConfig(num_hidden_layers=1, num_filters=4, kernel_size=9)


def write_model(path, seed, num_values=None):
    """A network that passes the signal through, about; its weights take a few values if asked."""
    rng = np.random.default_rng(seed)
    kernels = [0.02 * rng.standard_normal(s).astype(np.float32) for s in kernel_shapes(CONFIG)]
    for kernel in kernels:
        kernel[4] = 0.5
        if num_values:
            step = np.ptp(kernel) / (num_values - 1)
            kernel[...] = np.round(kernel / step) * step
    write_model_file(path, layers_of(CONFIG, kernels), {"kind": "waveform"})
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of a baseline and two 'compressed' models over three files."""
    root = tmp_path_factory.mktemp("sweep")
    points = [
        sweep.Point("base", write_model(root / "base.h5", 1)),
        sweep.Point("k4", write_model(root / "k4.h5", 1, 4), {"theta": 0.65, "k": 4}),
        sweep.Point("k3", write_model(root / "k3.h5", 1, 3), {"theta": 0.65, "k": 3}),
    ]
    pairs = bundled_pairs(root / "test", 1, (5.0,), 1)[:3]
    return points, pairs, root / "out", sweep.sweep(points, pairs, root / "out", num_jobs=1)


def test_networks_over_time_and_frequency_stand_beside_others(tmp_path):
    models = [tmp_path / "tf.h5", tmp_path / "tf.icse"]
    file = write_mask_network(models[0])
    write_mask_network(models[1])
    fcn = sweep.Point("fcn", write_model(tmp_path / "fcn.h5", 1))
    points = [fcn, *(sweep.Point(path.suffix[1:], path) for path in models)]
    pairs = bundled_pairs(tmp_path / "test", 1, (5.0,), 1)[:1]
    table = sweep.sweep(points, pairs, tmp_path / "out", num_jobs=1)
    assert [row["name"] for row in table] == ["noisy", "fcn", "h5", "icse"]
    assert {row["n"] for row in table} == {1} and table[3]["pesq_wb"] == table[2]["pesq_wb"]
    noisy = read_audio(pairs[0].noisy_path).samples
    expected = peak_normalize(MaskEnhancer(file)(noisy))
    found = read_audio(tmp_path / "out" / "enhanced" / "icse" / pairs[0].relative_path).samples
    assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_row_for_the_noisy_files_and_each_model(finished):
    points, pairs, out, table = finished
    assert [row["name"] for row in table] == ["noisy", "base", "k4", "k3"]
    noisy, base, k4, _ = table
    assert {row["n"] for row in table} == {3} and base["unscored"] == 0
    assert math.isnan(noisy["file_bytes"]) and base["file_percent"] == 100
    assert base["file_bytes"] == points[0].path.stat().st_size
    found = cost_of(points[1].path, codebook_size=4)
    assert k4["paper_size_percent"] == pytest.approx(found.paper_size_percent)
    assert (k4["theta"], k4["k"], base["k"]) == (0.65, 4, None)
    assert base["pesq_wb_diff"] == base["stoi_diff_low"] == 0
    with open(out / "scores.csv", encoding="utf-8") as stream:
        scores = list(csv.DictReader(stream))
    assert len(scores) == 4 * len(pairs)
    for metric in sweep.SHOWN:
        own, first = (
            np.array([float(r[metric]) for r in scores if r["system"] == name])
            for name in ("k4", "base")
        )
        assert k4[metric] == pytest.approx(own.mean())
        assert k4[f"{metric}_diff"] == pytest.approx((own - first).mean())
        assert k4[f"{metric}_diff_low"] <= k4[f"{metric}_diff"] <= k4[f"{metric}_diff_high"]


def test_everything_is_written(finished):
    _, _, out, table = finished
    for name in ("pesq_wb_by_file_size", "stoi_by_file_size", "pesq_wb_by_paper_size"):
        for ending in (".png", ".svg"):
            assert (out / (name + ending)).stat().st_size > 5000
    result = json.loads((out / "sweep.json").read_text())
    assert [model["name"] for model in result["models"]] == ["base", "k4", "k3"]
    assert result["table"][0]["file_bytes"] is None
    assert result["costs"]["k4"]["layers"]
    text = (out / "sweep.md").read_text()
    assert "| k4 " in text and "baseline" in text
    assert "0 of the files could not be scored" in text


def test_the_same_call_enhances_and_scores_nothing_again(finished, monkeypatch):
    points, pairs, out, table = finished

    def refuse(*_):
        raise AssertionError("called again")

    monkeypatch.setattr("eval.scoring._score_isolated", refuse)
    monkeypatch.setattr("eval.systems._enhance", refuse)
    monkeypatch.setattr(sweep, "draw", lambda *_: None)
    again = sweep.sweep(points, pairs, out, num_jobs=1)
    assert json_ready(again) == json_ready(table)


def test_a_bad_model_is_refused_before_anything_is_scored(finished, tmp_path, monkeypatch):
    points, pairs, _, _ = finished
    (tmp_path / "bad.h5").write_bytes(b"nothing")
    monkeypatch.setattr("eval.scoring.score_all", lambda *_: pytest.fail("scored"))
    with pytest.raises(ValueError, match="bad.h5"):
        sweep.sweep([*points, sweep.Point("bad", tmp_path / "bad.h5")], pairs, tmp_path / "out")
    with pytest.raises(ValueError, match="different names"):
        sweep.sweep([points[0], points[0]], pairs, tmp_path / "out")
    with pytest.raises(ValueError, match="different names"):
        sweep.sweep([], pairs, tmp_path / "out")
    with pytest.raises(ValueError, match="no test files"):
        sweep.sweep(points, [], tmp_path / "out")


def test_each_model_is_counted_once(finished, monkeypatch):
    points, pairs, out, _ = finished
    count, counted = cost.cost_of, []

    def noted(source, **arguments):
        counted.append(source)
        return count(source, **arguments)

    for module in (cost, sweep):
        monkeypatch.setattr(module, "cost_of", noted, raising=False)
    monkeypatch.setattr(sweep, "draw", lambda *_: None)
    sweep.sweep(points, pairs, out, num_jobs=1)
    assert counted == [point.path for point in points]


def test_a_file_without_a_score_is_left_out_for_all():
    points = [sweep.Point("a", Path("a.h5")), sweep.Point("b", Path("b.h5"))]
    costs = dict.fromkeys("ab", FakeCost())
    rows = [
        {"system": system, "noise": "n", "snr_db": 5.0, "name": str(name), "status": "ok",
         "pesq_wb": base + name, "stoi": 0.5}
        for system, base in (("noisy", 1.0), ("a", 2.0), ("b", 1.75))
        for name in range(4)
    ]  # fmt: skip
    rows[-1] |= {"pesq_wb": math.nan, "status": "estimate is silent"}
    table = sweep.tabulate(points, costs, rows)
    assert [(row["n"], row["unscored"]) for row in table] == [(3, 1)] * 3
    assert table[1]["pesq_wb"] == 3.0
    difference = [table[2][f"pesq_wb_diff{end}"] for end in ("", "_low", "_high")]
    assert difference == [-0.25, -0.25, -0.25]
    assert "1 of the files could not be scored" in sweep.format_points(table)


class FakeCost:
    file_bytes = 1000
    paper_size_percent = 10.0

    def accounting(self):
        return {"full": {"percent": 12.0}}

    def total(self, field):
        return 7


def test_points_are_read_from_the_command_line():
    point = sweep.parse_point("pq16=models/x=y.h5,theta=0.65,k=16,centroids=fp16,method=none")
    assert (point.name, point.path) == ("pq16", Path("models/x=y.h5"))
    assert point.labels == {"theta": 0.65, "k": 16, "centroids": "fp16", "method": None}
    assert point.series == r"$\theta$ = 0.65, fp16"
    assert sweep.parse_point("fcn=a.h5").series == "fcn"
    assert sweep.parse_point("pq=a.h5,theta=none,k=8").series == "k-means only"


@pytest.mark.parametrize(
    "text", ["fcn", "=a.h5", "fcn=", "fcn=a.h5,theta", "fcn=a.h5,=1", "noisy=a.h5", "a/b=a.h5"]
)
def test_malformed_points_are_wrong_usage(text, capsys):
    with pytest.raises(ValueError, match="NAME=path|names a model"):
        sweep.parse_point(text)
    with pytest.raises(SystemExit, match="2"):
        sweep.main(["--model", text])
    assert "--model" in capsys.readouterr().err


def test_wrong_usage_and_bad_folders(tmp_path, capsys):
    for wrong in (
        ["--test-noisy", "x"],
        ["--test-noisy", "x", "--test-clean", "y", "--num-test", "1"],
    ):
        with pytest.raises(SystemExit, match="2"):
            sweep.main(["--model", "a=a.h5", *wrong])
    (tmp_path / "file").write_text("")
    assert sweep.main(["--model", "a=a.h5", "--out", str(tmp_path / "file")]) == 1
    folders = ["--test-noisy", str(tmp_path / "no"), "--test-clean", str(tmp_path / "no")]
    assert sweep.main(["--model", "a=a.h5", "--out", str(tmp_path / "out"), *folders]) == 1
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 2


def test_the_command_prints_the_table(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "draw", lambda *_: None)
    points, pairs, _, _ = finished
    target = tmp_path / "noisy" / pairs[0].relative_path
    target.parent.mkdir(parents=True)
    shutil.copy(pairs[0].noisy_path, target)
    models = [f"{p.name}={p.path},k={p.labels.get('k', 'none')}" for p in points[:2]]
    arguments = ["--test-noisy", str(tmp_path / "noisy"), "--test-clean",
                 str(pairs[0].clean_path.parent), "--jobs", "1",
                 "--out", str(tmp_path / "out")]  # fmt: skip
    assert sweep.main(["--model", *models, *arguments]) == 0
    text = capsys.readouterr().out
    assert "| k4 " in text and str((tmp_path / "out").resolve()) in text
    # One call does what the command does.
    before = (tmp_path / "out" / "sweep.csv").read_bytes()
    config = sweep.SweepConfig(
        tuple(sweep.parse_point(model) for model in models), noisy=tmp_path / "noisy",
        clean=pairs[0].clean_path.parent, out=tmp_path / "out", num_jobs=1,
    )  # fmt: skip
    table = sweep.sweep_models(config)
    assert (tmp_path / "out" / "sweep.csv").read_bytes() == before
    assert sweep.format_points(table) in text and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="no model is named"):
        sweep.SweepConfig(())


# --------------------------------------------------------------------------------------------
# The grid


@pytest.fixture
def small_model(tmp_path):
    return write_model(tmp_path / "small.h5", 1)


def test_a_grid_is_made_by_the_commands_and_not_made_again(small_model, tmp_path, monkeypatch):
    from eval import grid

    asked = grid.Grid((0.9, None), (None, 4), ("fp16",))
    folder = tmp_path / "models"
    points = asked.make(small_model, folder)
    assert [(p.name, dict(p.labels)) for p in points] == [
        ("theta0.9", {"theta": 0.9}),
        ("theta0.9-k4-fp16", {"theta": 0.9, "k": 4, "centroids": "fp16"}),
        ("k4-fp16", {"k": 4, "centroids": "fp16"}),
    ]
    from speech.modelfile.read import read_model_file

    for point in points[1:]:
        for layer in read_model_file(point.path).layers:
            kernel = layer.weights.get("kernel", np.zeros(1))
            assert len(np.unique(kernel[kernel != 0])) <= 4
    times = [point.path.stat().st_mtime_ns for point in points]
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("made again"))
    assert asked.make(small_model, folder) == points
    assert times == [point.path.stat().st_mtime_ns for point in points]


def test_another_model_or_setting_makes_it_again(small_model, tmp_path, monkeypatch):
    from eval import grid

    commands = []

    class Done:
        returncode, stderr = 0, ""

    def run(command, **_):
        commands.append(command[2:])
        target = tmp_path / "m" / "k4-fp32" / "model.icse"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"made")
        return Done()

    monkeypatch.setattr("subprocess.run", run)
    grid.Grid((None,), (4,), ("fp32",)).make(small_model, tmp_path / "m")
    grid.Grid((None,), (4,), ("fp32",)).make(small_model, tmp_path / "m")
    assert len(commands) == 1 and "--finetune-epochs" not in commands[0]
    grid.Grid((None,), (4,), ("fp32",), 3).make(small_model, tmp_path / "m")
    assert commands[1][commands[1].index("--finetune-epochs") + 1] == "3"
    write_model(small_model, 2)
    grid.Grid((None,), (4,), ("fp32",), 3).make(small_model, tmp_path / "m")
    assert len(commands) == 3


def test_a_failed_command_is_one_line(small_model, tmp_path, capsys):
    arguments = ["--model", str(small_model), "--k", "99", "--out", str(tmp_path / "out")]
    assert sweep.main(arguments) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "distinct weights" in last


def test_the_grid_of_one_command(small_model, tmp_path, capsys, monkeypatch):
    seen = {}

    def fake(points, pairs, out, *, num_jobs, cluster):
        seen["points"] = points
        return [{"name": "noisy"}]

    monkeypatch.setattr(sweep, "sweep", fake)
    monkeypatch.setattr(sweep, "format_points", lambda table: "table")
    monkeypatch.setattr(sweep, "_pairs", lambda options: [])
    monkeypatch.setattr("eval.grid.make", lambda *_: None)
    arguments = ["--model", str(small_model), "--theta", "0.65", "none", "--k", "none", "2", "4",
                 "--centroids", "fp32", "int8", "--out", str(tmp_path / "out")]  # fmt: skip
    assert sweep.main(arguments) == 0
    names = [point.name for point in seen["points"]]
    assert names[:2] == ["small", "theta0.65"] and len(set(names)) == len(names) == 2 + 2 * 4
    for wrong in (
        ["--model", str(small_model), f"b={small_model}", "--k", "4"],
        ["--model", str(small_model), "--centroids", "fp16"],
        ["--model", str(small_model), "--finetune-epochs", "2"],
        ["--model", str(small_model), "--k", "x"],
        ["--model", str(small_model), "--theta", "inf"],
    ):
        with pytest.raises(SystemExit, match="2"):
            sweep.main(wrong)
