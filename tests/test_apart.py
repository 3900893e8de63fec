"""Outputs never replace inputs, and a report shows nothing but what is below its runs' folders."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile

import eval.report
import eval.run
import eval.sweep
import timit_fcn_mse
from eval import listening, runfiles, testsets
from mnn import select
from speech.base import cli
from tests import report_files
from tests.builders import digests, make_speech
from tests.mnn_files import write_dae, write_fcn

ROOT = Path(__file__).parent.parent

MODEL = ROOT / "models/fcn_tiny.icse"


def test_folders_overlap_wherever_links_lead(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    for one, other in (("a", "a"), ("a", "a/b"), ("a/b", "a"), ("link", "a"), ("a", "link/new")):
        assert cli.overlap(tmp_path / one, tmp_path / other)
    for one, other in (("a/b", "c"), ("c", "a"), ("a", "ab"), ("link", "c")):
        assert not cli.overlap(tmp_path / one, tmp_path / other)


@pytest.fixture
def sounds(tmp_path, rng):
    """Folders of the same names: noisy, clean, what a tool made, and models for mnn.select."""
    for folder in ("noisy", "clean", "made", "out/enhanced/fcn", "out/matlab/x"):
        for name in ("a.wav", "b.wav"):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, make_speech(rng, 6000), 16000)
    write_fcn(tmp_path / "pool" / "fcn.h5")
    write_dae(tmp_path / "pool" / "dae.h5")
    (tmp_path / "link").symlink_to(tmp_path / "made")
    return tmp_path


@pytest.mark.parametrize("out", ["made", "link", "made/sub", "up"])
def test_choices_do_not_replace_the_candidates(out, sounds, capsys):
    if out == "up":  # the tree of the inputs leads into the candidates
        shutil.move(sounds / "noisy", sounds / "in")
        (sounds / "noisy").mkdir()
        shutil.move(sounds / "in", sounds / "noisy" / "made")
    before = digests(sounds)
    words = ["--experts", str(sounds / "pool/fcn.h5"), "--dae", str(sounds / "pool/dae.h5")]
    words += ["--candidates", f"tool={sounds / 'made'}", str(sounds / "noisy")]
    assert select.main([*words, "-o", str(sounds if out == "up" else sounds / out)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "lies inside" in error and "choose another" in error
    assert digests(sounds) == before


def test_bundled_clips_do_not_replace_the_candidates(sounds, capsys):
    words = ["--experts", str(sounds / "pool/fcn.h5"), "--dae", str(sounds / "pool/dae.h5")]
    words += ["--candidates", f"tool={sounds / 'noisy'}"]
    before = digests(sounds)
    assert select.main([*words, "-o", str(sounds)]) == 1
    assert "overlaps the input folder" in capsys.readouterr().err
    assert digests(sounds) == before


@pytest.mark.parametrize(
    "words",
    [
        ["--noisy", "noisy", "--enhanced", "old=out/enhanced/fcn", "--model", f"fcn={MODEL}"],
        ["--noisy", "noisy", "--enhanced", "old=out/enhanced", "--model", f"fcn={MODEL}"],
        ["--noisy", "out/enhanced/fcn", "--model", f"fcn={MODEL}"],
        ["--noisy", "noisy", "--enhanced", "old=made", "-o", "made"],
        ["--noisy", "noisy", "--enhanced", "old=made", "-o", "link"],
        ["--enhanced", "old=made", "-o", "made/deeper"],
        ["--noisy", "noisy", "--enhanced", "x=out/matlab", "--matlab-style"],
    ],
)
def test_an_evaluation_does_not_replace_what_it_scores(words, sounds, monkeypatch, capsys):
    monkeypatch.chdir(sounds)
    before = digests(sounds)
    out = [] if "-o" in words else ["-o", "out"]
    assert eval.run.main(["--clean", "clean", *words, *out]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "input folder" in error
    assert digests(sounds) == before


def test_sweeps_and_trainings_do_not_replace_their_test_files(sounds, monkeypatch, capsys):
    monkeypatch.chdir(sounds)
    (sounds / "out" / timit_fcn_mse.OUTPUT_FOLDER).symlink_to(sounds / "made")
    before = digests(sounds)
    words = ["--test-noisy", "out/enhanced/fcn", "--test-clean", "clean", "-o", "out"]
    assert eval.sweep.main(["--model", f"fcn={MODEL}", *words]) == 1
    words = ["--test-noisy", "made", "--test-clean", "clean", "-o", "out"]
    words += ["--train-noisy", "noisy", "--train-clean", "clean"]
    assert timit_fcn_mse.main(["--gpu", "-1", *words]) == 1
    assert capsys.readouterr().err.count("overlaps the input folder") == 2
    assert digests(sounds) == before


def test_scoring_what_was_made_elsewhere_is_still_allowed(sounds, monkeypatch):
    monkeypatch.chdir(sounds)
    words = ["--clean", "clean", "--noisy", "noisy", "--enhanced", "old=out/enhanced/fcn"]
    assert eval.run.main([*words, "--metrics", "si_sdr", "--jobs", "1", "-o", "out"]) == 0


# --------------------------------------------------------------------------------------------
# The report


def secrets(folder):
    """Writes noisy and clean files of the names of the runs, which a run may name instead."""
    report_files.write_audio(folder, {"made": 0.5}, seed=7)
    shutil.move(folder / "test" / "noisy", folder / "noisy")
    shutil.move(folder / "test" / "clean", folder / "clean")
    return folder


def shown_files(paths, shown=()):
    """Returns the real paths of all files that a page of some runs would show."""
    found = set()
    for own in testsets.join_runs(runfiles.read_runs(paths, shown), None, None):
        for name in own.pairs:
            found |= {version.path.resolve() for version in listening._versions(own, name, 9)}
    return found


def changed(path, **changes):
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | changes))


def named_folders(run, private):
    folders = {kind: str(private / kind) for kind in ("noisy", "clean")}
    changed(run / "summary.json", folders=folders)


def named_clean(run, private):
    folders = {"noisy": str(run / "test/noisy"), "clean": str(private / "clean")}
    changed(run / "summary.json", folders=folders)


def named_system(run, private):
    systems = [{"name": "noisy"}, {"name": "pruned", "source": str(private / "made")}]
    changed(run / "summary.json", systems=systems)


def relative_system(run, private):
    named_system(run, run / ".." / private.name)


def linked_folder(run, private):
    shutil.rmtree(run / "enhanced" / "pruned")
    (run / "enhanced" / "pruned").symlink_to(private / "made")


def linked_files(run, private):
    for name in report_files.names():
        path = run / "enhanced" / "pruned" / name
        path.unlink()
        path.symlink_to(private / "made" / name)


def linked_noisy(run, private):
    shutil.rmtree(run / "test" / "noisy")
    (run / "test" / "noisy").symlink_to(private / "noisy")


def linked_clean(run, private):
    for path in (run / "test" / "clean").iterdir():
        path.unlink()
        path.symlink_to(private / "clean" / path.name)


def option_folders(run, private):
    words = ["eval/run.py", "--noisy", str(private / "noisy"), "--clean", str(private / "clean")]
    changed(run / "summary.json", folders=None, command=words)


WAYS = [named_folders, named_clean, named_system, relative_system, linked_folder, linked_files,
        linked_noisy, linked_clean, option_folders]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_run_shows_nothing_outside_of_its_folder(way, tmp_path):
    private = secrets(tmp_path / "private")
    run = report_files.evaluation_run(tmp_path / "eval")
    assert shown_files([run])
    way(run, private)
    assert all(path.is_relative_to(run) for path in shown_files([run]))
    # What the user names is shown.
    assert any(path.is_relative_to(private) for path in shown_files([run], [private]))


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_selection_shows_nothing_outside_of_its_folder(kind, tmp_path):
    private = secrets(tmp_path / "private")
    source = report_files.evaluation_run(tmp_path / "eval")
    name = report_files.names()[0]
    run = report_files.selection_run(tmp_path / kind, source, [name])
    info = json.loads((run / "select.json").read_text())
    info["files"][0][kind] = str(private / "noisy" / name)
    shutil.rmtree(run / ("noisy" if kind == "input" else "selected"))
    path = run / "select.json"
    path.write_text(json.dumps(info))
    assert all(found.is_relative_to(run) for found in shown_files([path]))
    assert any(found.is_relative_to(private) for found in shown_files([path], [private]))


def test_a_selection_may_show_the_files_of_another_run_of_the_page(tmp_path):
    source = report_files.evaluation_run(tmp_path / "eval")
    name = report_files.names()[0]
    run = report_files.selection_run(tmp_path / "select", source, [name])
    info = json.loads((run / "select.json").read_text())
    info["files"][0]["input"] = str(source / "test" / "noisy" / name)
    (run / "select.json").write_text(json.dumps(info))
    output = (run / "selected" / name).resolve()
    assert output in shown_files([source, run])


def test_folders_that_the_user_names_are_shown(tmp_path):
    run = report_files.evaluation_run(tmp_path / "eval")
    shutil.move(run / "test", tmp_path / "elsewhere")
    named = {kind: str(tmp_path / "elsewhere" / kind) for kind in ("noisy", "clean")}
    changed(run / "summary.json", folders=named)
    out = tmp_path / "page"
    words = [str(run), "-o", str(out), "--jobs", "1", "--clips", "1"]
    assert eval.report.main(words) == 0
    page = (out / "index.html").read_text("utf-8")
    assert "<audio" not in page and "name theirs with --noisy and --clean" in page
    words += ["--noisy", named["noisy"], "--clean", named["clean"]]
    assert eval.report.main(words) == 0
    assert "<audio" in (out / "index.html").read_text("utf-8")
