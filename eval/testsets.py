"""Joins runs that were scored on the same noisy files, so that their systems stand side by side.

Runs belong together when their noisy files have the same names and the same scores. A choice of
``mnn.select`` belongs to the noisy file of the same name, if its own input had the same samples up
to a factor: a test set is scaled as a whole.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval import scoring
from eval.metrics import METRICS
from eval.runfiles import Run, System, audio_files, audio_pairs
from eval.scoring import NOISY
from speech.data.corpus import Pair, find_pairs, parse_snr_folder
from speech.sound.audio import read_audio

#: Metrics that pages show first.
MAIN_METRICS = ("pesq_wb", "stoi", "si_sdr")

CHOICE = "MNN choice"

#: Of the correlation of two files: 16-bit rounding of a soft signal stays far below.
_TOLERANCE = 1e-4


@dataclass
class TestSet:
    """Noisy files and all that was made of them.

    Attributes:
        runs: Those that scored them; for a mere selection that run.
        systems: (run, system) with labels that are unique here.
        rows: Scores of all runs, 'system' being the label, the noisy files once.
        summary: Of `eval.scoring.summarize`, likewise; each run is averaged by itself.
        differences: Of `eval.scoring.compare`, to the noisy files.
        notes: What could not be had.
        pairs: Noisy and clean files by name.
        files: Audio by label and name.
        choices: What a selection says of a file, by name.
    """

    runs: list[Run]
    systems: list[tuple[Run, System]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pairs: dict[str, Pair] = field(default_factory=dict)
    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    choices: dict[str, tuple[Run, dict[str, Any]]] = field(default_factory=dict)

    __test__ = False  # pytest: no test of ours

    @property
    def labels(self) -> list[str]:
        """Of the systems, in order."""
        return [system.label for _, system in self.systems]

    @property
    def metrics(self) -> list[str]:
        """All metrics that any run has, with `MAIN_METRICS` first."""
        found = {name for row in self.rows for name in row if name in METRICS}
        return [name for name in MAIN_METRICS if name in found] + [
            name for name in METRICS if name in found and name not in MAIN_METRICS
        ]


def join_runs(runs: Sequence[Run], noisy: Path | None, clean: Path | None) -> list[TestSet]:
    """Groups runs into test sets and finds their audio.

    Args:
        runs: All of a page.
        noisy: Folder of noisy files for runs that do not say theirs.
        clean: Likewise.

    Returns:
        Test sets in the order of the runs; selections of other files come last, each by itself.
    """
    sets: list[TestSet] = []
    for run in sorted((run for run in runs if run.rows), key=lambda run: -len(_metrics(run))):
        found = next((own for own in sets if _same_scores(own.runs[0], run, NOISY)), None)
        if found is None:
            sets.append(TestSet([run]))
        else:
            found.runs.append(run)
    for own in sets:
        own.runs.sort(key=runs.index)
        _merge(own)
        _find_audio(own, noisy, clean)
    sets.sort(key=lambda own: runs.index(own.runs[0]))
    for run in runs:
        if run.kind == "selection":
            _place(run, sets, clean)
    return sets


def _metrics(run: Run) -> list[str]:
    return scoring.metrics_of(run.rows)


def _same_scores(one: Run, other: Run, system: str) -> bool:
    """Returns whether two runs have the same scores of a system, as far as both have them."""
    common = [name for name in _metrics(one) if name in _metrics(other)]
    if not common:
        return False
    scores = [
        {row["name"]: [row[name] for name in common] for row in run.rows if row["system"] == system}
        for run in (one, other)
    ]
    if not scores[0] or scores[0].keys() != scores[1].keys():
        return False
    return all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))
        for name, values in scores[0].items()
        for a, b in zip(values, scores[1][name], strict=True)
    )


def _merge(own: TestSet) -> None:
    # The noisy files are shown as the run with most metrics has them.
    first = max(own.runs, key=lambda run: len(_metrics(run)))
    used: set[str] = {NOISY}
    for run in own.runs:
        labels = {NOISY: NOISY}
        for system in run.systems:
            twin = _twin(own, run, system)
            if twin is not None:
                twin.num_bytes = twin.num_bytes or system.num_bytes
                twin.labels = twin.labels or system.labels
                continue
            label = system.label
            while label in used:
                label = f"{label} ({run.title})"
            used.add(label)
            system.label = labels[system.name] = label
            own.systems.append((run, system))
        known = [row for row in run.rows if row["system"] in labels]
        groups = scoring.summarize(known)
        for table, rows in ((own.rows, known), (own.summary, groups)):
            table += [
                row | {"system": labels[row["system"]]}
                for row in rows
                if row["system"] != NOISY or run is first
            ]
            table.sort(key=lambda row: row["system"] != NOISY)
        if any(row["system"] == NOISY for row in known) and len(labels) > 1:
            own.differences += [
                row | {"system": labels[row["system"]]}
                for row in scoring.compare(known)
                if row["noise"] == row["snr_db"] == scoring.OVERALL
            ]


def _twin(own: TestSet, run: Run, system: System) -> System | None:
    """Returns the system of an earlier run that has the same name and the same scores."""
    for earlier, other in own.systems:
        if earlier is not run and other.name == system.name:
            if _same_scores(earlier, run, system.name):
                return other
    return None


def _find_audio(own: TestSet, noisy: Path | None, clean: Path | None) -> None:
    for run in own.runs:
        known = [folder for folder in (run.noisy, run.clean) if folder is not None]
        if len(known) < 2 or not all(map(run.may_show, known)):
            run.noisy, run.clean = noisy, clean
    problems = []
    for run in own.runs:
        try:
            own.pairs = audio_pairs(run)
            break
        except ValueError as error:
            problems.append(str(error))
    else:
        own.notes += problems[:1]
        return
    names = {row["name"] for row in own.rows}
    own.pairs = {name: pair for name, pair in own.pairs.items() if name in names}
    for _, system in own.systems:
        try:
            own.files[system.label] = audio_files(system, run, own.pairs)
        except ValueError as error:
            own.notes.append(f"no audio of {system.label}: {error}")


def _place(run: Run, sets: list[TestSet], clean: Path | None) -> None:
    """Gives the choices of a selection to the test sets of its files, the rest to one more."""
    choices = {name_of(row["input"]): row for row in run.info["files"]}
    for own in sets:
        matching = [
            name
            for name, row in choices.items()
            if name in own.pairs and _is_scaled(own.pairs[name].noisy_path, row["input"], run)
        ]
        own.choices |= {name: (run, choices.pop(name)) for name in matching}
    if not choices:
        return
    own = TestSet([run])
    own.choices = {name: (run, row) for name, row in choices.items()}
    own.pairs = _pairs_of_choices(run, choices, run.clean or clean)
    own.rows = [
        {"system": NOISY, "noise": pair.noise, "snr_db": pair.snr_db, "name": name, "status": ""}
        for name, pair in own.pairs.items()
    ]
    if not own.pairs:
        own.notes.append(
            f"the noisy files of {run.title} were not found below its folder; name theirs with "
            "--noisy"
        )
    sets.append(own)


def _pairs_of_choices(
    run: Run, choices: Mapping[str, dict[str, Any]], clean: Path | None
) -> dict[str, Pair]:
    """Returns pairs for the inputs of a selection; without a clean file it is the noisy one."""
    inputs = {name: local(row["input"], run) for name, row in choices.items()}
    known: dict[Path, Path] = {}
    root = run.folder / "noisy"
    if clean is not None:
        try:
            known = {
                pair.noisy_path: pair.clean_path
                for pair in find_pairs(root, clean)
                if run.may_show(pair.clean_path)
            }
        except ValueError:
            known = {}
    pairs = {}
    for name, path in inputs.items():
        if path is not None:
            noise, speaker, snr_db = _condition(name)
            partner = next((c for n, c in known.items() if n.samefile(path)), path)
            pairs[name] = Pair(path, partner, noise, speaker, snr_db, Path(name).stem)
    return pairs


def name_of(path: str) -> str:
    """Returns ``<noise>/<speaker>/<dB>/<name>`` of a path that ends so, otherwise its last part."""
    parts = Path(path).parts
    is_condition = len(parts) >= 4 and parse_snr_folder(parts[-2]) is not None
    return "/".join(parts[-4:]) if is_condition else parts[-1] if parts else path


def local(path: str, run: Run) -> Path | None:
    """Returns where a file that a run names is now: there, or below the folder of the run.

    None for one that is gone, or that may not be shown (`eval.runfiles.Run.may_show`).
    """
    return _found((Path(path), run.folder / "noisy" / name_of(path)), run)


def local_output(path: str, run: Run) -> Path | None:
    """Returns where the file is that a selection wrote; see `local`."""
    return _found((Path(path), run.folder / "selected" / name_of(path)), run)


def _found(candidates: Sequence[Path], run: Run) -> Path | None:
    for candidate in candidates:
        with contextlib.suppress(OSError, ValueError):  # a name that can't be one
            if candidate.is_file() and run.may_show(candidate):
                return candidate
    return None


def _condition(name: str) -> tuple[str, str, float]:
    parts = name.split("/")
    if len(parts) != 4:
        return "unknown", "unknown", math.nan
    snr_db = parse_snr_folder(parts[2])
    return parts[0], parts[1], math.nan if snr_db is None else snr_db


def _is_scaled(path: Path, named: str, run: Run) -> bool:
    """Returns whether two files hold the same signal up to a positive factor."""
    other = local(named, run)
    if other is None:
        return False
    try:
        signals = [read_audio(each).samples.astype(float) for each in (path, other)]
    except ValueError:
        return False
    if len(signals[0]) != len(signals[1]):
        return False
    energies = math.prod(float(np.linalg.norm(signal)) for signal in signals)
    return float(signals[0] @ signals[1]) >= (1 - _TOLERANCE) * energies > 0
