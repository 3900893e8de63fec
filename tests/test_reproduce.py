"""Steps that resume, failures that are named, commands that parse, and the page from raw files."""

import contextlib
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import METRICS
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce import page as results_page
from benchmarks.reproduce import published as results_published
from benchmarks.reproduce import raw as reproduce_raw
from benchmarks.reproduce import steps as reproduce_steps
from benchmarks.reproduce.steps import SECTIONS, Setting, Step
from eval.scoring import compare

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"

#: A command: notes that it ran, waits if it is told to, fails if it is told to.
TOY = """
import os, subprocess, sys, time
name, folder = sys.argv[1], sys.argv[2]
with open(f"{folder}/calls.txt", "a") as calls:
    calls.write(name + "\\n")
if os.path.exists(f"{folder}/wait-{name}"):
    child = subprocess.Popen(["sleep", "60"])
    with open(f"{folder}/waiting.part", "w") as file:
        print(os.getpid(), child.pid, file=file)
    os.rename(f"{folder}/waiting.part", f"{folder}/waiting")
    time.sleep(60)
if os.path.exists(f"{folder}/fail-{name}"):
    print("half done")
    sys.exit("error: no room for " + name)
print("made", name)
open(f"{folder}/{name}.h5", "w").write(name)
if os.path.exists(f"{folder}/half-{name}"):
    sys.exit("error: died while writing")
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_command.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)  # a child may import what we may import
    return tmp_path


def toy_step(folder, name, *sources):
    paths = tuple(str(folder / f"{source}.h5") for source in sources)
    words = ("toy_command", name, str(folder))
    return Step(f"toys/{name}", words, (str(folder / f"{name}.h5"),), paths)


def calls(folder):
    path = folder / "calls.txt"
    return path.read_text().split() if path.exists() else []


def run(folder, *steps):
    setting = Setting(folder / "out")
    return reproduce.run_sections({"toys": steps}, setting, folder / "page", "x")


# --------------------------------------------------------------------------------------------
# Steps


def test_a_step_is_run_once_and_leaves_a_log_and_a_record(toy):
    one, two = toy_step(toy, "one"), toy_step(toy, "two", "one")
    assert run(toy, one, two) == run(toy, one, two) == []
    assert calls(toy) == ["one", "two"]
    assert "made one" in (toy / "out/logs/toys/one.txt").read_text()
    record = json.loads((toy / "out/records/toys/two.json").read_text())
    assert record["command"] == ["toy_command", "two", str(toy)] and record["seconds"] >= 0
    assert len(record["source_sha256"]) == 1


def test_another_source_command_or_a_lost_result_runs_it_again(toy):
    one, two = toy_step(toy, "one"), toy_step(toy, "two", "one")
    run(toy, one, two)
    (toy / "one.h5").write_text("another")
    assert run(toy, one, two) == []
    assert calls(toy) == ["one", "two", "two"]
    (toy / "two.h5").unlink()
    run(toy, one, two)
    longer = Step(one.name, (*one.command, "--more"), one.results)
    run(toy, longer)
    assert calls(toy) == ["one", "two", "two", "two", "one"]


def test_half_a_result_is_not_taken_for_the_one_on_record(toy):
    one = toy_step(toy, "one")
    assert run(toy, one) == []
    (toy / "one.h5").unlink()
    (toy / "half-one").touch()
    assert "died while writing" in run(toy, one)[0]
    (toy / "half-one").unlink()
    assert run(toy, one) == [] and calls(toy) == ["one"] * 3


def is_running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on_where_it_was(toy, how):
    (toy / "wait-two").touch()
    code = (
        "import sys; from pathlib import Path\n"
        "from benchmarks.reproduce import __main__ as reproduce\n"
        "from benchmarks.reproduce.steps import Setting, Step\n"
        f"f = Path({str(toy)!r})\n"
        "def step(n): return Step('toys/' + n, ('toy_command', n, str(f)), (str(f / n) + '.h5',))\n"
        "toys = {'toys': [step('one'), step('two')]}\n"
        "with reproduce._ends_on_sigterm():\n"
        "    reproduce.run_sections(toys, Setting(f / 'out'), f, '')"
    )
    path = os.pathsep.join([str(ROOT), str(toy)])
    at_work = []
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            if (toy / "waiting").exists():
                break
            time.sleep(0.1)
        assert calls(toy) == ["one", "two"]
        at_work = [int(word) for word in (toy / "waiting").read_text().split()]
        os.kill(child.pid, how)
        assert child.wait(20) != 0
        if how == signal.SIGTERM:  # the command and what it has started have ended too
            deadline = time.monotonic() + 10
            while any(is_running(pid) for pid in at_work):
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        for pid in at_work:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.kill()
    assert not (toy / "out/records/toys/two.json").exists()
    (toy / "wait-two").unlink()
    assert run(toy, toy_step(toy, "one"), toy_step(toy, "two")) == []
    assert calls(toy) == ["one", "two", "two"]


def test_a_failing_step_is_named_and_the_rest_goes_on(toy, monkeypatch, capsys):
    (toy / "fail-bad").touch()
    sections = {
        "cost": lambda setting: [
            toy_step(toy, "bad"), toy_step(toy, "after", "bad"), toy_step(toy, "beside")
        ],
        "rooms": lambda setting: [toy_step(toy, "good")],
    }  # fmt: skip
    collected = []

    def collect(section, setting, page):
        collected.append(section)
        return False

    monkeypatch.setattr(reproduce, "SECTIONS", sections)
    monkeypatch.setattr(reproduce_raw, "collect", collect)
    arguments = ["--out", str(toy / "out"), "--page", str(toy / "page")]
    assert reproduce.main(arguments) == 1
    assert calls(toy) == ["bad", "beside", "good"] and collected == ["rooms"]
    lines = capsys.readouterr().err.splitlines()
    assert any("toys/bad" in line and "no room for bad" in line for line in lines)
    assert any("toys/after: not run" in line and "bad.h5 is missing" in line for line in lines)
    assert "half done" in (toy / "out/logs/toys/bad.txt").read_text()
    (toy / "fail-bad").unlink()
    assert reproduce.main(arguments) == 0
    assert calls(toy) == ["bad", "beside", "good", "bad", "after"]
    assert collected == ["rooms", "cost", "rooms"]


def test_a_step_that_writes_nothing_has_failed(toy):
    step = Step("toys/one", toy_step(toy, "one").command, (str(toy / "elsewhere.h5"),))
    assert "elsewhere.h5 was not written" in run(toy, step)[0]
    run(toy, step)
    assert calls(toy) == ["one", "one"]


def test_raw_results_that_cannot_be_read_are_a_failure(toy, monkeypatch):
    def collect(*_):
        raise KeyError("summary")

    monkeypatch.setattr(reproduce_raw, "collect", collect)
    assert run(toy, toy_step(toy, "one")) == ["toys: its results can't be read: 'summary'"]


def test_a_finished_model_is_taken_over_and_said_to_be(toy):
    one, two = toy_step(toy, "one"), toy_step(toy, "two", "one")
    (toy / "mine.h5").write_text("mine")
    setting = Setting(toy / "out")
    reproduce.adopt([("toys/one", toy / "mine.h5")], {"toys": [one, two]}, setting)
    assert run(toy, one, two) == []
    assert calls(toy) == ["two"] and (toy / "one.h5").read_text() == "mine"
    record = json.loads((toy / "out/records/toys/one.json").read_text())
    assert record["adopted_sha256"]
    made = {"command": "x", "git_commit": None, "python": "3", "packages": {},
            "steps": [{**record, "name": "toys/one", "command": "y"}]}  # fmt: skip
    text = "\n".join(results_page._commands(made))
    assert (
        "Not run again" in text and f"toys/one (sha256 `{record['adopted_sha256'][:12]}`)" in text
    )
    for name, file, why in (
        ("toys/none", "mine.h5", "no such step"),
        ("toys/one", "missing.h5", "give a file like"),
        ("toys/one", "toy_command.py", "give a file like"),
    ):
        with pytest.raises(ValueError, match=why):
            reproduce.adopt([(name, toy / file)], {"toys": [one, two]}, setting)
    several = Step("toys/one", one.command, (*one.results, "more"))
    with pytest.raises(ValueError, match="makes more than"):
        reproduce.adopt([("toys/one", toy / "mine.h5")], {"toys": [several]}, setting)


# --------------------------------------------------------------------------------------------
# Commands


def settings(tmp_path):
    corpus = {"speech": tmp_path / "speech", "noise": tmp_path / "noise"}
    for folder in corpus.values():
        folder.mkdir(exist_ok=True)
    out = ROOT / "runs" / "nowhere"
    return {
        "full": Setting(out, speech=corpus["speech"], noise=corpus["noise"]),
        "paper": Setting(out, speech=corpus["speech"], noise=corpus["noise"], scale="paper"),
        "bundled": Setting(out),
        "small": Setting(out, small=True),
    }


@pytest.mark.parametrize("size", ["full", "paper", "bundled", "small"])
@pytest.mark.parametrize("section", SECTIONS)
def test_every_command_parses_and_what_it_starts_from_is_made_before(
    section, size, tmp_path, monkeypatch
):
    asked = []

    def instead(command):
        asked.append(command)
        return 0

    monkeypatch.setattr("speech.base.cli.run", instead)
    steps = SECTIONS[section](settings(tmp_path)[size])
    there = {getattr(reproduce_steps, name) for name in ("BASELINE", "SMALLEST", "FOR_USE")}
    assert len({step.name for step in steps}) == len(steps)
    for number, step in enumerate(steps, 1):
        module, *words = step.command
        assert importlib.import_module(module).main(words) == 0
        assert len(asked) == number, "it did something else than to run"
        assert set(step.sources) <= there, step.name
        # What is written is named by the command itself, or lies in the folder that it names.
        assert any(step.results[0].startswith(word) for word in words if "nowhere" in word)
        there |= set(step.results)
    assert all((ROOT / path).exists() for path in (reproduce_steps.BASELINE,))


def test_the_sections_cover_what_the_page_names(tmp_path):
    setting = settings(tmp_path)["full"]
    models = reproduce_steps.compressed_models(setting)
    assert set(models) == {"fcn", "pp22", "pp15", "pp15-k16", "pp22-t4", "pp22-t3"} | {
        f"{name}-k{k}" for name in ("pq", "pp22") for k in (4, 8, 16, 32, 64)
    }
    steps = {step.name: step for step in SECTIONS["compression"](setting)}
    assert all(f"compression/{name}" in steps for name in models if name != "fcn")
    for name in ("compression/open", "compression/bundled"):
        assert set(models.values()) == set(steps[name].sources)
    pruned = " ".join(steps["compression/pp22"].command)
    for words in ("--target-sparsity 0.22", "--stages 7", "--num-train 400", "--final-epochs 6",
                  "--learning-rate 0.0005", "--batch-size 4", "--recipe best"):  # fmt: skip
        assert words in pruned
    tied = " ".join(steps["compression/pp22-k16"].command)
    assert "--finetune-epochs 2" in tied and "--num-train 400" in tied
    assert list(SECTIONS) == list(results_page.TITLES)


def test_the_list_can_be_pasted_into_a_shell(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "run_sections", lambda *_: pytest.fail("run"))
    assert reproduce.main(["--list", "--only", "cost", "mnn", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["## mnn", "## cost"]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.startswith("python -m ") for line in lines)
    assert f"--json {tmp_path}/cost/cycles.json" in text


def test_wrong_usage(capsys):
    for wrong in (["--timit", "x"], ["--small", "--timit", "x", "--noise", "y"], ["--only", "x"],
                  ["--adopt", "x"]):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            reproduce.main(wrong)
    assert "--small is for the bundled corpus" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------
# Raw files


def scored(systems, noises=("birds", "fire"), snrs_db=(-5.0, 5.0), num_each=3):
    """Rows as eval.run's scores.csv has them; a system is better by its number than the noisy."""
    rng = np.random.default_rng(3)
    rows = []
    for noise in noises:
        for snr_db in snrs_db:
            for place in range(num_each):
                name = f"{noise}/S/{snr_db:g}db/{place}.wav"
                base = {m: float(rng.uniform(1, 2)) for m in reproduce_steps.METRICS}
                for system, better in systems.items():
                    scores = {m: v + better + 0.01 * float(rng.normal()) * (system != "noisy")
                              for m, v in base.items()}  # fmt: skip
                    rows.append({"system": system, "noise": noise, "snr_db": snr_db, "name": name,
                                 **scores, "status": "ok"})  # fmt: skip
    return rows


def test_groups_and_differences_are_those_of_a_naive_count(monkeypatch):
    monkeypatch.setattr("eval.statistics.NUM_RESAMPLES", 200)
    rows = scored({"noisy": 0.0, "fcn": 0.5, "pp22": 0.4, "pq-k4": 0.1})
    rows[-1]["stoi"], rows[-1]["status"] = math.nan, "estimate is silent"
    table = reproduce_raw.compared(rows, "fcn", ["fcn", "pp22"], {"fire"})
    by_key = {(r["group"], r["system"], r["metric"]): r for r in table}
    lost = rows[-1]["name"]
    for group, member in {
        "all": lambda row: True,
        "-5 dB": lambda row: row["snr_db"] == -5,
        "noises without a training part": lambda row: row["noise"] == "fire",
        "noise birds": lambda row: row["noise"] == "birds",
    }.items():
        own = [row for row in rows if member(row) and row["name"] != lost]
        for metric in ("pesq_wb", "stoi"):
            values = {
                system: [row[metric] for row in own if row["system"] == system]
                for system in ("fcn", "pp22")
            }
            found = by_key[group, "pp22", metric]
            assert found["n"] == len(values["fcn"])
            assert found["mean"] == pytest.approx(sum(values["pp22"]) / found["n"])
            difference = [a - b for a, b in zip(values["pp22"], values["fcn"], strict=True)]
            assert found["difference"] == pytest.approx(sum(difference) / found["n"])
            assert min(difference) <= found["low"] <= found["difference"] <= found["high"]
    assert by_key["all", "fcn", "stoi"]["unscored"] == 1
    for row in compare(rows, "fcn"):
        if row["noise"] == row["snr_db"] == "all":
            same = by_key["all", row["system"], row["metric"]]
            assert [same[key] for key in ("difference", "low", "high")] == pytest.approx(
                [row[key] for key in ("difference", "low", "high")]
            )
    assert by_key["noise birds", "fcn", "stoi"]["unscored"] == 0
    assert ("noise birds", "pq-k4", "stoi") not in by_key and ("all", "pq-k4", "stoi") in by_key


def test_recovery_is_that_of_a_naive_count():
    rng = np.random.default_rng(0)
    rows = []
    for condition in ("a", "b"):
        for _ in range(30):
            sdr = rng.normal(5, 2, 2)
            rows.append(
                {"condition": condition, "sdr a": sdr[0], "sdr b": sdr[1], "stoi a": 0.5,
                 "stoi b": math.nan if len(rows) == 0 else 0.6, "pick right": "ab"[sdr.argmax()],
                 "pick wrong": "ab"[sdr.argmin()], "pick a": "a"}
            )  # fmt: skip
    table, draws = reproduce_raw.recoveries(rows, ["a", "b"])
    found = {(r["condition"], r["metric"], r["selection"]): r for r in table}
    right, wrong = found["a", "sdr", "right"], found["a", "sdr", "wrong"]
    for key in ("recovery", "recovery_low", "recovery_high"):
        assert right[key] == pytest.approx(1)
    assert wrong["recovery"] == pytest.approx(-1) and right["below_oracle"] == 0
    own = [row for row in rows if row["condition"] == "b"]
    chance = sum((row["sdr a"] + row["sdr b"]) / 2 for row in own) / 30
    oracle = sum(max(row["sdr a"], row["sdr b"]) for row in own) / 30
    chosen = sum(row["sdr a"] for row in own) / 30
    always = found["b", "sdr", "a"]
    assert always["recovery"] == pytest.approx((chosen - chance) / (oracle - chance))
    assert always["above_chance"] == pytest.approx(chosen - chance)
    assert always["recovery_low"] < always["recovery"] < always["recovery_high"]
    assert (found["a", "stoi", "a"]["n"], found["b", "stoi", "a"]["n"]) == (29, 30)
    means = {row["selection"]: row for row in reproduce_raw.mean_recoveries(table, draws)}
    both = [found[condition, "sdr", "a"]["recovery"] for condition in "ab"]
    assert means["a"]["recovery"] == pytest.approx(sum(both) / 2) and means["a"]["rows"] == 2
    width = means["a"]["recovery_high"] - means["a"]["recovery_low"]
    assert 0 < width < always["recovery_high"] - always["recovery_low"]


def test_no_folder_of_this_machine_stays(tmp_path):
    setting = Setting(tmp_path / "out", speech=Path("/data/TIMIT"), noise=Path("/data/noises"))
    given = {
        "command": ["x.py", "/data/TIMIT", "--noise", "/data/noises", f"{ROOT}/models/fcn.h5"],
        f"{tmp_path}/out/a.h5": 1.5,
        "reason": "/opt/some/where/lib.so: not found; see /proc/x/y.",
        "kept": ["docs/mnn.md", "a / b", "n/a", "5 dB", "python -m x -o ../y/z"],
    }
    assert reproduce_raw.portable(given, setting) == {
        "command": ["x.py", "corpus/speech", "--noise", "corpus/noise", "models/fcn.h5"],
        "runs/reproduce/a.h5": 1.5,
        "reason": "lib.so: not found; see y.",
        "kept": ["docs/mnn.md", "a / b", "n/a", "5 dB", "python -m x -o ../y/z"],
    }


def test_noises_that_only_test_has(tmp_path):
    for name in ("TRAIN/birds", "TRAIN/rain", "TEST/birds", "TEST/fire"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "speech/minicorpus/noise/TEST/birds.flac", tmp_path / f"{name}.flac")
    assert reproduce_raw.unseen_noises(Setting(tmp_path, noise=tmp_path)) == {"fire"}
    assert reproduce_raw.unseen_noises(Setting(tmp_path)) == set()


def test_tables_of_single_files_stay_small(tmp_path, capsys, monkeypatch):
    rows = reproduce_raw.file_table(scored({"noisy": 0.0, "fcn": 0.5}))
    scores = {f"{system} {m}" for system in ("noisy", "fcn") for m in ("pesq_wb", "stoi")}
    assert len(rows) == 12 and set(rows[0]) == {"name", "noise", "snr_db"} | scores
    reproduce_raw._write_if_small(tmp_path / "a.csv", rows)
    assert reproduce_raw.read_csv(tmp_path / "a.csv") == rows
    monkeypatch.setattr(reproduce_raw, "MAX_FILE_TABLE_BYTES", 100)
    reproduce_raw._write_if_small(tmp_path / "a.csv", rows)
    assert not (tmp_path / "a.csv").exists() and "not kept" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------
# The page


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def make_compression(setting):
    """What the steps of section compression leave."""
    models = reproduce_steps.compressed_models(setting)
    costs = []
    for place, name in enumerate(models):
        costs.append(
            {"file_bytes": 1_000_000 // (place + 1), "parameters": 10, "nonzero_weights": 9,
             "kernels": 8, "zero_kernels": 2, "flop_per_step": 20, "sparse_flop_per_step": 18,
             "paper_size_percent": 50.0 - place, "accounting": {"full": {"percent": 60.0}},
             "name": name}
        )  # fmt: skip
    folder = setting.out / "compression"
    write(folder / "sizes.json", costs)
    better = {"noisy": 0.0, "fcn": 0.5} | {name: 0.45 for name in models if name != "fcn"}
    better["pp22-t4"] = 0.49
    rows = scored(better)
    write(folder / "bundled/scores.csv", reproduce_raw.csv_text(rows))
    write(folder / "bundled/summary.json", {"noisy_files": 12, "summary": 1, "differences": 2})
    return rows


def make_sweep(setting):
    def row(name, percent, pesq, **labels):
        row = {"name": name, "theta": None, "k": None, "centroids": None, **labels}
        row |= {"file_bytes": 10_000 * percent, "file_percent": percent, "n": 240}
        row |= {"paper_size_percent": percent, "unscored": 0}
        for metric, value in (("pesq_wb", pesq), ("stoi", pesq / 2)):
            difference = value - (1.5 if metric == "pesq_wb" else 0.75)
            ends = (difference - 0.01, difference + 0.01) if difference else (0.0, 0.0)
            row |= {metric: value, f"{metric}_diff": difference, f"{metric}_diff_low": ends[0],
                    f"{metric}_diff_high": ends[1], f"{metric}_diff_p": None}  # fmt: skip
        return row

    noisy = row("noisy", 0.0, 1.2) | {"file_bytes": None, "file_percent": None}
    grid = [noisy, row("fcn", 100.0, 1.5), row("theta0.65", 99.0, 1.4, theta=0.65)]
    grid.append(row("k4-fp16", 4.0, 1.375, k=4, centroids="fp16"))
    write(setting.out / "grid/sweep/sweep.json", {"table": grid})
    controls = [row("noisy", 0.0, 1.2), row("fcn", 100.0, 1.5)]
    controls += [row(name, 100.0, 1.45) for name in reproduce_steps.CONTROLS]
    controls += [row(f"{name}-k16", 8.0, 1.425, k=16) for name in reproduce_steps.CONTROLS]
    write(setting.out / "grid/controls/sweep.json", {"table": controls})
    timing = {"control": {"median_s": 0.025, "ratio_to_base": 1.0, "rounds": 21}}
    pruning = {"steps": 1300, "table": controls[:3], "inference": timing}
    write(setting.out / "grid/pruning.json", pruning | {"model": f"{ROOT}/models/fcn.h5"})


def make_mnn(setting):
    from mnn.experiments import all_selections
    from mnn.tables import tabulate

    rng = np.random.default_rng(1)
    which = all_selections()
    experiments = {
        "noise": ("birds", "typing", "engine"),
        "gender": ("male", "female"),
        "snr": ("-5 dB", "0 dB", "5 dB"),
    }
    for experiment, names in experiments.items():
        rows = []
        for place, condition in enumerate(names):
            for number in range(6):
                sdr = rng.normal(5, 1, len(names))
                sdr[place] += 6
                scores = {n: {"sdr": v, "stoi": v / 20} for n, v in zip(names, sdr, strict=True)}
                scores["combined 128"] = scores["combined 2048x2"] = {"sdr": 9.0, "stoi": 0.9}
                picks = {w: w if w in scores else names[0] for w in which}
                picks["ae voiced 128"] = condition
                rows.append({"condition": condition, "scores": scores, "picks": picks,
                             "name": str(number)})  # fmt: skip
        table = tabulate(rows, names, which)
        write(setting.out / f"mnn/{experiment}/results.json",
              {"experts": names, "table": table, "scale": "bundled", "published": 1,
               "default": "ae level 128"})  # fmt: skip
        flat = [
            {"condition": r["condition"], "name": r["name"],
             **{f"{m} {n}": r["scores"][n][m] for m in ("sdr", "stoi") for n in r["scores"]},
             **{f"pick {w}": p for w, p in r["picks"].items()}}
            for r in rows
        ]  # fmt: skip
        write(setting.out / f"mnn/{experiment}/scores.csv", reproduce_raw.csv_text(flat))
        experts = []
        for name in names:
            path = setting.out / f"mnn/{name}.h5"
            write(path, "x" * 100)
            experts.append({"name": name, "source": str(path)})
        seconds = {"experts": 1.0, "choosing": 3.0, "checking": 2.5, "judging": 0.5}
        two = {"experts": experts, "selector_experts": experts, "files": [{}] * 16,
               "audio_seconds": 50.0, "agreement": 15 / 16, "picks": dict.fromkeys(names, 4),
               "seconds": seconds}  # fmt: skip
        write(setting.out / f"mnn/two_stage_{experiment}.json", two)


def copy_results(setting, section, *names):
    """Takes what an earlier run of the steps has left in this repository."""
    folder = setting.out / section
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(ROOT / "results" / section / name, folder)


def make_eq10(setting):
    copy_results(setting, "eq10", "eq10.json")


def make_cost(setting):
    copy_results(setting, "cost", "cost.json", "cycles.json", "inference.json")


def make_rooms(setting):
    copy_results(setting, "rooms", "rooms.json")
    history = "epoch,training_loss,validation_loss\n1,0.2,0.125\n2,0.1,0.0625\n"
    write(setting.out / "rooms/joint/history.csv", history)


def make_use(setting):
    """A row of ours, which is new, and one of each kind of tool, all of an earlier run."""
    folder = setting.out / "use"
    copy_results(setting, "use", "cost.json")
    scores = {"mean": 1.5, "gain": 0.25, "gain_ci95": 0.125}
    groups = ("all", "noises with a training part", "noises without a training part", "5 dB")
    rows = {group: {"n": 8, **dict.fromkeys(METRICS, scores)} for group in groups}
    old = {"packages": {}, "groups": rows, "git_commit": "0123456789ab"}
    systems = {
        "denoise": {"bytes": 32_000, "weights": "denoise.icse, sha256 1", "delay_samples": 0},
        "fcn": old | {"bytes": 1_265_608, "weights": "fcn.h5, sha256 2", "delay_samples": 0},
        "DTLN": old | {"bytes": 3, "weights": "model_1.onnx, model_2.onnx", "delay_samples": 384},
        "noisereduce": old | {"bytes": 0, "weights": "no weights", "delay_samples": 0},
    }
    systems["denoise"] |= {"packages": {}, "groups": rows}
    noisy = {group: {"n": 8, **dict.fromkeys(METRICS, 1.25)} for group in groups}
    for name in ("open", "rooms"):
        found = {"test_set": f"a set, {name}", "noisy": noisy, "systems": systems,
                 "skipped": {"RNNoise": "not installed (pyrnnoise)"}, "left_out": {}}  # fmt: skip
        write(folder / f"{name}.json", found)


def collected(section, setting, page):
    assert reproduce_raw.collect(section, setting, page)
    records = [{"name": f"{section}/x", "command": "python -m x", "seconds": 90.0}]
    command = f"python -m benchmarks.reproduce --only {section} --out {setting.out}"
    reproduce_raw.note_commands(section, command, records, setting, page)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of which every section has raw files."""
    folder = tmp_path_factory.mktemp("reproduced")
    setting = Setting(folder / "out", small=True)
    patch = pytest.MonkeyPatch()
    patch.setattr(reproduce_raw, "NUM_RESAMPLES", 200)
    patch.setattr("eval.statistics.NUM_RESAMPLES", 200)
    for section, make in {
        "compression": make_compression, "grid": make_sweep, "mnn": make_mnn, "eq10": make_eq10,
        "cost": make_cost, "rooms": make_rooms, "use": make_use,
    }.items():  # fmt: skip
        make(setting)
        collected(section, setting, folder / "page")
    patch.undo()
    write(folder / "page/results/cost/notes.md", "A note of ours.\n")
    return folder / "page"


def test_every_section_is_written_from_its_raw_files(page):
    path = results_page.write(page)
    text = path.read_text()
    assert text == results_page.render(page) and "Not run yet" not in text
    assert "A note of ours." in text.split("## (e)")[1].split("## (f)")[0]
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles[:2] == ["## A network for use", "## (a) Compression: pruned, quantized, both"]
    assert [title[4] for title in titles[1:]] == list("abcdefg")
    for section in text.split("\n## ")[1:-1]:
        title, body = section.split("\n", 1)
        assert body.strip().startswith("Made by `python -m benchmarks.reproduce --only "), title
        tables, commands = body.split('<details markdown="1">')
        assert "\n| --- |" in tables and "```" not in tables
        assert "```sh\npython -m x\n```\n\nCommands: 1, 2 min in all" in commands
        assert commands.endswith("</details>\n")
    # Every table is whole: as many cells in each row as in its header.
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block[:200]
    for figure in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (page / figure).stat().st_size > 5000
    for file in [path, *(page / "results").rglob("*.*")]:
        if file.suffix != ".png":
            content = file.read_text()
            assert str(page.parent) not in content and str(ROOT) not in content, file
            if file.suffix == ".json":
                json.loads(content, parse_constant=pytest.fail)
        assert file.stat().st_size < 300_000


def test_numbers_of_the_page(page):
    text = results_page.render(page)
    rows = reproduce_raw.read_csv(page / "results/compression/bundled.csv")
    own = next(r for r in rows if (r["group"], r["system"], r["metric"]) ==
               ("all", "pp22-t4", "pesq_wb"))  # fmt: skip
    expected = (
        f"{own['mean']:.3f}, {own['difference']:+.3f} ({own['low']:+.3f} to {own['high']:+.3f})"
    )
    line = next(line for line in text.splitlines() if line.startswith("| `pp22-t4` |"))
    assert (
        expected in line and "| 22 % of the channels pruned, soft, `--target-percent 4` |" in line
    )
    # Only that one loses as little as is asked for in PESQ and none in STOI.
    assert "0.03 PESQ-WB and 0.01 STOI on average: 0 of 8" in text or "`pp22-t4`" in text
    # MNN: the selection that always picks the best has all of the way.
    best = next(line for line in text.splitlines() if line.startswith("| **voiced, DAE_128**"))
    assert best.split("|")[5].strip() == "100 (100 to 100)"
    checks = [line for line in text.splitlines() if line.startswith("- ") and "DAE_128" in line]
    assert "the best of these on these tests: 100 % (100 to 100)" in checks[0]
    assert "at most 0.00 dB below the oracle" in checks[0]
    assert "above chance in 5 of 5 rows" in checks[0]
    assert "level, DAE_128, the default" in checks[1] and "in 2 of 5 rows" in checks[1]
    assert "| 93.8 % | 50.0 | 60.0 | 20.0 | 10.0 |" in text
    assert "| birds | published | 12.12, 0.00, 0.49 | 4.21 | 12.12 |" in text
    # Cycles of the baseline are the published ones.
    assert "| the first 7 | 23,821,318 | 23,821,318 |" in text
    assert "after epoch 1: 0.12500, after epoch 2: 0.06250" in text
    assert "| none | 4 | fp16 | 40,000 | 4.00 | 4.00 | 1.375, -0.125 (-0.135 to -0.115) |" in text


def test_losses_within_the_limits_are_counted():
    sizes = {
        name: {"file_bytes": size, "file_percent": size / 10}
        for name, size in (("fcn", 1000.0), ("a", 90.0), ("b", 40.0), ("c", 10.0))
    }

    def row(system, metric, difference, low):
        return {"group": "all", "system": system, "metric": metric, "difference": difference,
                "low": low}  # fmt: skip

    rows = [row("a", "pesq_wb", -0.01, -0.02), row("a", "stoi", 0.0, -0.001),
            row("b", "pesq_wb", -0.02, -0.04), row("b", "stoi", 0.0, -0.001),
            row("c", "pesq_wb", 0.02, 0.01), row("c", "stoi", -0.011, -0.02)]  # fmt: skip
    first, second = results_page._within(sizes, rows).splitlines()
    assert "on average: 2 of 3; the smallest is `b`, 40 bytes (4.00 %)" in first
    assert "whole intervals: 1 of 3; the smallest is `a`, 90 bytes" in second


def test_a_page_without_raw_files_says_so(tmp_path):
    text = results_page.render(tmp_path)
    assert text.count("Not run yet: `python -m benchmarks.reproduce --only ") == len(SECTIONS) - 1
    assert "| normalisation |" in text and "| default judge: the ranker" in text


def test_the_network_for_use_stands_beside_the_others(page):
    text = results_page.render(page).split("\n## ")[1]
    speed = {own["given"]: own["factors"]
             for own in reproduce_raw.read_json(page / "results/use/speed.json")}  # fmt: skip
    streamed, whole = speed["frame by frame"], speed["whole files"]
    systems = text.split("### The systems")[1].split("###")[0]
    lines = [line.split("|") for line in systems.splitlines() if "|" in line]
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in lines}
    assert rows["denoise"][:2] == ["32,000", "63,418"]
    assert rows["denoise"][2:7] == ["131", f"{streamed['denoise']:.4f}", "-", "32", "yes"]
    assert rows["fcn"][1:3] == ["300,931", "4,805"]
    assert rows["fcn"][4:7] == [f"{whole['fcn']:.4f}", "the whole utterance", "no"]
    # 384 samples at 16 kHz are 24 ms, and DTLN takes blocks of 8 ms.
    assert rows["DTLN"][3:7] == [f"{streamed['DTLN']:.4f}", f"{whole['DTLN']:.4f}", "32", "yes"]
    assert rows["noisereduce"][5:] == ["the whole utterance", "no", "nothing"]
    for heading in ("All noises", "Noises with a training part", "Noises without a training part",
                    "In rooms"):  # fmt: skip
        own = text.split(f"### {heading}\n")[1].split("###")[0]
        assert "| noisy | 8 | 1.250 | 1.250 | 1.250 | 1.2 |" in own
        assert "| denoise | 8 | 1.500, +0.250 ± 0.125 | 1.500, +0.250 ± 0.125 |" in own
    assert "### STOI in rooms by SNR" in text and "a set, rooms." in text
    assert text.count("not run again: fcn, DTLN, noisereduce (commit 012345678).") == 2
    for where in ("", " in rooms"):
        assert f"Not run{where}: RNNoise: not installed (pyrnnoise)." in text


def test_files_of_others_go_into_the_commands(tmp_path):
    files = [tmp_path / f"{name}.onnx" for name in ("g", "one", "two")]
    setting = Setting(tmp_path, gtcrn=files[0], dtln=tuple(files[1:]))
    words = ["--gtcrn", str(files[0]), "--dtln", str(files[1]), str(files[2])]
    command = {step.name: " ".join(step.command) for step in SECTIONS["use"](setting)}
    for name in ("open", "rooms"):
        assert " ".join(words) in command[f"use/{name}"]
        assert f"--keep results/use/{name}.json" in command[f"use/{name}"]
    assert "--rooms" in command["use/rooms"] and "--rooms" not in command["use/open"]
    options = reproduce._parser().parse_args([*words, "--out", str(tmp_path)])
    assert reproduce._setting(options) == setting
    assert reproduce._own_command(options).endswith(" ".join(words))
    assert "--gtcrn" not in " ".join(SECTIONS["use"](Setting(tmp_path))[1].command)


def test_published_figures_are_the_golden_ones():
    icse = json.loads((GOLDEN / "icse_published.json").read_text())
    rows = icse["pesq_wb_against_size_read_off_the_figure"]["rows"]
    assert [list(row) for row in results_published.SIZE_PESQ] == rows
    assert icse["timit"]["fcn"].items() >= results_published.TIMIT_FCN.items()
    found = {name: (pesq, stoi) for name, _, pesq, stoi in results_published.COMPRESSED}
    for key, name in (("chime2", "CHiME-2"), ("mhint", "MHINT")):
        one, other = icse[key]["fcn"], icse[key]["pruned_and_quantized"]
        pairs = tuple((one[metric], other[metric]) for metric in ("pesq_wb", "stoi"))
        assert found[name] == pairs
    cycles = json.loads((GOLDEN / "published_cycles.json").read_text())
    assert list(results_published.CYCLES["dense"]) == cycles["baseline"]["layers"]
    assert list(results_published.CYCLES["pruned"]) == cycles["pruned"]["layers"]
    recovered = results_published.recoveries()
    # docs/papers.md, "MNN: experiments": 94 to 100 % (DAE_128), 32 to 94 %, 37 to 86 %.
    ranges = {name: [round(100 * v) for own in columns.values() for v in own]
              for name, columns in recovered.items()}  # fmt: skip
    assert (min(ranges["gender"]), max(ranges["gender"])) == (32, 94)
    assert (min(ranges["snr"]), max(ranges["snr"])) == (37, 86)
    assert max(ranges["noise"]) == 100


def test_the_committed_page_is_up_to_date():
    assert (ROOT / "RESULTS.md").read_text() == results_page.render(ROOT), (
        "say python -m benchmarks.reproduce --render-only"
    )
