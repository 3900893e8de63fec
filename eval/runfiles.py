"""Reads what the commands of this repository leave in their output folders.

Known are the folders of ``timit_fcn_mse.py``, ``eval.run``, ``eval.sweep``, ``mnn.select`` (by the
file of its ``--json``) and ``mnn.experiments``. Every file is taken for data from a stranger: what
is missing or malformed is an error that names the file, and audio is found by walking the folders,
never by a path that stands in a table.
"""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.metrics import METRICS
from eval.scoring import NOISY
from eval.systems import folder_system
from speech.base import cli, schema
from speech.base.words import MOST, from_cell, shown
from speech.data import corpus

#: What the trained network of ``timit_fcn_mse.py`` is called on the page.
BASELINE = "baseline"
_BASELINE_FOLDER = "FCN_TIMIT_MSE_wav"

_ROW_KEYS = ("system", "noise", "snr_db", "name", "status")


@dataclass
class System:
    """One system of a run.

    Attributes:
        name: In the run's tables.
        label: On the page.
        model: Its model file, if it is one.
        num_bytes: Of that file, if known.
        folder: Where its audio is, if anywhere.
        flat: Whether that folder may have any layout (`eval.systems.folder_system`).
        labels: What a sweep says of it, such as theta and k.
    """

    name: str
    label: str
    model: str = ""
    num_bytes: int | None = None
    folder: Path | None = None
    flat: bool = False
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """The results that one command has written.

    Attributes:
        folder: Its output folder.
        kind: 'training', 'evaluation', 'sweep', 'selection' or 'experiment'.
        title: Short name, unique on a page.
        info: Its result file: command, versions, commit and more.
        rows: Scores, as `eval.scoring.score_all` returns them.
        systems: All but the noisy files, in order.
        noisy: Folder of the noisy files, None where unknown.
        clean: Folder of the clean files, None where unknown.
        history: Rows of history.csv.
        shown: Other folders than its own whose files may be shown.
    """

    folder: Path
    kind: str
    title: str
    info: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    systems: list[System] = field(default_factory=list)
    noisy: Path | None = None
    clean: Path | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    shown: tuple[Path, ...] = ()

    def may_show(self, path: Path) -> bool:
        """Returns whether a file or folder may be shown, links followed.

        A run may come from anybody, and name any file of this machine: what lies outside of its
        folder is shown only if the user has named a folder, or another run, that holds it.
        """
        try:
            real = path.resolve()
        except (OSError, RuntimeError):
            return False
        return any(real.is_relative_to(root.resolve()) for root in (self.folder, *self.shown))

    @property
    def command(self) -> str:
        """The command line, as far as the run says."""
        words = self.info.get("command")
        return shlex.join(map(str, words)) if isinstance(words, list) else ""


# --------------------------------------------------------------------------------------------
# What result files must look like where they are looked into; all else in them is left alone.


@dataclass
class _Result:
    """Any result file."""

    command: list[str | int | float] | None = None
    model: str | None = None


@dataclass
class _Scored:
    name: str
    source: str | None = None
    sha256: str | None = None
    file_bytes: int | float | None = None


@dataclass
class _Summary(_Result):
    """summary.json of ``eval.run``."""

    systems: list[_Scored] = field(default_factory=list)
    folders: dict[str, str | None] | None = None


@dataclass
class _SweptRow:
    name: str | None = None
    file_bytes: int | float | None = None


@dataclass
class _Swept:
    name: str
    path: str | None = None
    labels: dict[str, str | int | float | bool | None] | None = None


@dataclass
class _SweepResult(_Result):
    """sweep.json of ``eval.sweep``."""

    table: list[_SweptRow] = field(default_factory=list)
    models: list[_Swept] = field(default_factory=list)


@dataclass
class _Segment:
    pick: str
    start_s: int | float = 0


@dataclass
class _Choice:
    input: str
    scores: dict[str, int | float | None]
    pick: str | None = None
    segments: list[_Segment] | None = None


@dataclass
class _Named:
    name: str


@dataclass(kw_only=True)
class _SelectionResult(_Result):
    """The file of ``mnn.select --json``."""

    experts: list[_Named | str]
    files: list[_Choice]
    picks: dict[str, int | float]
    metric: str | None = None
    scoring: str | None = None


@dataclass
class _Published:
    rows: dict[str, list[int | float | None]] = field(default_factory=dict)
    experts: list[str] | None = None
    columns: list[str] | None = None


@dataclass
class _ExperimentResult(_Result):
    """results.json of ``mnn.experiments``."""

    table: list[dict[str, Any]] | None = None
    experts: list[str] | None = None
    confusion: dict[str, list[list[int | float | None]]] | None = None
    published: dict[str, _Published] | None = None


def read_runs(paths: Sequence[Path], shown: Sequence[Path] = ()) -> list[Run]:
    """Reads run folders, and JSON files of ``mnn.select``.

    Args:
        paths: Of the runs.
        shown: Other folders than these whose files may be shown.

    Raises:
        ValueError: One is missing, holds no results, or holds malformed ones.
    """
    runs = [run for path in paths for run in _read(Path(path))]
    # The user has named the other runs too.
    folders = (*shown, *dict.fromkeys(run.folder for run in runs))
    for run in runs:
        run.shown = folders
    titles: dict[str, int] = {}
    for run in runs:
        count = titles[run.title] = titles.get(run.title, 0) + 1
        if count > 1:
            run.title += f" ({count})"
    return runs


def _read(path: Path) -> list[Run]:
    if path.is_file():
        found = [_selection(path.parent, path, _json(path))]
    elif path.is_dir():
        found = [run for run in (*_scored_runs(path), *_other_runs(path)) if run]
    else:
        raise ValueError(f"{path}: no such file or folder")
    if not found:
        raise ValueError(
            f"{path}: holds no results; give the --out folder of timit_fcn_mse.py, eval.run, "
            "eval.sweep or mnn.experiments, or the --json file of mnn.select"
        )
    return found


def _scored_runs(folder: Path) -> list[Run | None]:
    """Returns the runs whose rows stand in scores.csv."""
    if (folder / "sweep.json").is_file():
        return [_sweep(folder, _json(folder / "sweep.json", _SweepResult))]
    if (folder / "summary.json").is_file():
        return [_evaluation(folder, _json(folder / "summary.json", _Summary))]
    results = folder / "results.json"
    info = _json(results) if results.is_file() else {}
    if "experiment" in info:
        info = _json(results, _ExperimentResult)
        return [Run(folder, "experiment", _title(folder), info)]
    if "model_sha256" in info or (folder / "history.csv").is_file():
        return [_training(folder, info)]
    return []


def _other_runs(folder: Path) -> list[Run]:
    """Returns the selections whose JSON file lies in a folder."""
    known = {"summary.json", "sweep.json", "results.json", "run.json", "model.json", "made.json"}
    runs = []
    for path in sorted(folder.glob("*.json")):
        if path.name not in known:
            info = _json(path)
            if _is_selection(info):
                runs.append(_selection(folder, path, info))
    return runs


def _training(folder: Path, info: dict[str, Any]) -> Run:
    run = Run(folder, "training", _title(folder), info or _json_if_there(folder / "run.json"))
    if (folder / "history.csv").is_file():
        run.history = _read_history(folder / "history.csv")
    if info and (folder / "scores.csv").is_file():
        run.rows = read_scores(folder / "scores.csv")
        model = str(info.get("model", ""))
        path = Path(model) if Path(model).is_file() else folder / "model.h5"
        run.systems = [
            System("enhanced", BASELINE, model, _size_of(path), folder / _BASELINE_FOLDER)
        ]
        run.noisy, run.clean = _test_folders(run, "--test-noisy", "--test-clean")
    return run


def _evaluation(folder: Path, info: dict[str, Any]) -> Run:
    run = Run(folder, "evaluation", _title(folder), info, read_scores(folder / "scores.csv"))
    for system in info.get("systems") or ():
        name, source = system["name"], system.get("source") or ""
        if name == NOISY:
            continue
        if system.get("sha256"):
            size = system.get("file_bytes") or _size_of(Path(source))
            made = folder / "enhanced" / name
            run.systems.append(System(name, name, source, _positive(size), made))
        else:
            run.systems.append(System(name, name, folder=Path(source), flat=True))
    folders = info.get("folders")
    if isinstance(folders, dict) and Path(str(folders.get("noisy"))).is_dir():
        run.noisy, run.clean = Path(str(folders["noisy"])), Path(str(folders.get("clean")))
    else:
        run.noisy, run.clean = _test_folders(run, "--noisy", "--clean")
    return run


def _sweep(folder: Path, info: dict[str, Any]) -> Run:
    run = Run(folder, "sweep", _title(folder), info, read_scores(folder / "scores.csv"))
    sizes = {row.get("name"): row.get("file_bytes") for row in info.get("table") or ()}
    for model in info.get("models") or ():
        name, size = str(model.get("name")), sizes.get(model.get("name"))
        labels = model.get("labels")
        labels = labels if isinstance(labels, dict) else {}
        path, made = model.get("path") or "", folder / "enhanced" / name
        run.systems.append(System(name, name, path, _positive(size), made, labels=labels))
    run.noisy, run.clean = _test_folders(run, "--test-noisy", "--test-clean")
    return run


def _selection(folder: Path, path: Path, info: dict[str, Any]) -> Run:
    if not _is_selection(info):
        raise ValueError(f"{path}: is no result of mnn.select --json")
    _check(info, path, _SelectionResult)
    title = _title(folder) if path.stem in ("select", "result", "results") else path.stem
    clean = folder / "clean"
    return Run(folder, "selection", title, info, clean=clean if clean.is_dir() else None)


def _is_selection(info: dict[str, Any]) -> bool:
    return {"dae", "experts", "files", "picks"} <= set(info) and isinstance(info["files"], list)


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Reads the scores.csv of a run.

    Returns:
        Rows with system, noise, snr_db, name, status and the metrics that are known; NaN where
        there is no score.

    Raises:
        ValueError: The file is missing, empty, or no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is no table of scores ({error})") from None
    except OSError as error:
        raise ValueError(cli.one_line(error)) from None
    if not lines or not set(_ROW_KEYS) <= set(lines[0]):
        raise ValueError(f"{path}: expected rows with the columns {', '.join(_ROW_KEYS)}")
    metrics = [name for name in lines[0] if name in METRICS]
    rows = []
    for number, line in enumerate(lines, 2):
        if None in line.values() or None in line:
            raise ValueError(f"{path}: line {number} has another number of columns")
        row: dict[str, Any] = {key: from_cell(line[key]) for key in _ROW_KEYS}
        row["snr_db"] = _number(line["snr_db"])
        rows.append(row | {name: _number(line[name]) for name in metrics})
    return rows


def audio_pairs(run: Run) -> dict[str, corpus.Pair]:
    """Returns the pairs of noisy and clean files of a run, by their names in the tables.

    Raises:
        ValueError: The folders are missing, or hold no pairs.
    """
    if not all(folder is not None and run.may_show(folder) for folder in (run.noisy, run.clean)):
        raise ValueError(
            f"the noisy and clean files of {run.title} were not found below its folder; name "
            "theirs with --noisy and --clean"
        )
    assert run.noisy is not None and run.clean is not None, "asked above"
    pairs = corpus.find_pairs(run.noisy, run.clean, _option(run, "--pair-by"))
    pairs = [
        pair for pair in pairs if run.may_show(pair.noisy_path) and run.may_show(pair.clean_path)
    ]
    return {shown(pair.relative_path.as_posix(), MOST): pair for pair in pairs}


def audio_files(system: System, run: Run, pairs: Mapping[str, corpus.Pair]) -> dict[str, Path]:
    """Returns the files of a system by their names in the tables.

    Raises:
        ValueError: Its folder is missing, or belongs to other files.
    """
    if system.folder is None:
        return {}
    if not run.may_show(system.folder):
        raise ValueError(
            f"{system.folder}: lies outside of the folder of {run.title}; name it with --show"
        )
    if system.flat:
        assert run.noisy is not None, "has pairs"
        found = folder_system(system.name, system.folder, list(pairs.values()), run.noisy).files
        files = {name: path for name, path in found.items() if isinstance(path, Path)}
    else:
        files = {name: system.folder / pair.relative_path for name, pair in pairs.items()}
    return {name: path for name, path in files.items() if path.is_file() and run.may_show(path)}


def _read_history(path: Path) -> list[dict[str, float]]:
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = [{key: float(value) for key, value in row.items()}
                    for row in csv.DictReader(stream)]  # fmt: skip
    except (UnicodeDecodeError, csv.Error, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no history of a training ({error})") from None
    needed = {"epoch", "training_loss", "validation_loss"}
    if not all(math.isfinite(row.get("epoch", 0)) for row in rows):
        raise ValueError(f"{path}: is no history of a training (an epoch that is no number)")
    if rows and not needed <= set(rows[0]):
        raise ValueError(f"{path}: expected the columns {', '.join(sorted(needed))}")
    for row in rows:
        row["epoch"] = int(row["epoch"])
    return rows


def _test_folders(run: Run, noisy: str, clean: str) -> tuple[Path | None, Path | None]:
    """Returns the folders that the command named, or those that the run has made."""
    named = [Path(path) for name in (noisy, clean) if (path := _option(run, name))]
    if len(named) == 2 and all(path.is_dir() for path in named):
        return named[0], named[1]
    made = [run.folder / "test" / name for name in ("noisy", "clean")]
    return (made[0], made[1]) if all(path.is_dir() for path in made) else (None, None)


def _option(run: Run, name: str) -> str | None:
    """Returns the value that the recorded command gives to an option."""
    words = [str(word) for word in run.info.get("command") or []]
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def _json(path: Path, kind: type[_Result] = _Result) -> dict[str, Any]:
    """Returns a result file, as it stands there, once it has the shape of a kind."""
    value = schema.read(path, dict[str, Any])
    _check(value, path, kind)
    return value


def _check(value: dict[str, Any], path: Path, kind: type[_Result]) -> None:
    try:
        schema.check(value, kind)
    except schema.SchemaError as error:
        raise ValueError(f"{path}: malformed ({error}); make it again, or leave it out") from None


def _json_if_there(path: Path) -> dict[str, Any]:
    return _json(path) if path.is_file() else {}


def _positive(size: Any) -> int | None:
    return int(size) if isinstance(size, int | float) and 0 < size < 1e15 else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _title(folder: Path) -> str:
    return folder.resolve().name or "run"
