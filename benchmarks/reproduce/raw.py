"""Takes from what steps wrote the numbers that stay: small CSV and JSON files in ``results``.

No audio and no models; relative paths only; JSON without NaN. All intervals are computed here, so
that the page (`benchmarks.reproduce.page`) only writes down what stands in these files.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.quality import ALL, SEEN, UNSEEN
from benchmarks.reproduce.steps import (
    EXPERIMENTS,
    K_EXPERTS,
    K_MAIN,
    METRICS,
    ROOT,
    SHARES,
    Setting,
    compressed_models,
    pruned_name,
)
from speech.base.files import strict_json, write_json, write_text

#: A table of single files is kept only if it is smaller.
MAX_FILE_TABLE_BYTES = 300_000
NUM_RESAMPLES = 10_000
#: Metrics of that table.
FILE_METRICS = ("pesq_wb", "stoi")
#: What `eval.scoring` calls the unprocessed files.
NOISY = "noisy"

Row = dict[str, Any]


def collect(section: str, setting: Setting, page: Path) -> bool:
    """Writes the raw files of a section whose steps are done.

    Args:
        section: One of `reproduce_steps.SECTIONS`.
        setting: Where the results of the steps are.
        page: Folder that holds ``results``.

    Returns:
        Whether they are new; those of an earlier run may be kept.
    """
    collector = _COLLECTORS.get(section)
    return collector is not None and collector(setting, page / "results" / section) is not False


def portable(value: Any, setting: Setting) -> Any:
    """Returns JSON values without folders of this machine.

    Paths below the repository become relative to it; the data stand for themselves as
    ``corpus/speech`` and ``corpus/noise``, what was made as ``runs/reproduce``; of any other
    absolute path only the name is left.
    """
    if isinstance(value, Mapping):
        return {portable(key, setting): portable(item, setting) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, setting) for item in value]
    if not isinstance(value, str):
        return value
    names = {setting.speech: "corpus/speech", setting.noise: "corpus/noise"}
    if not setting.out.is_relative_to(ROOT):
        names[setting.out] = "runs/reproduce"
    for path, name in names.items():
        if path is not None and not path.is_relative_to(ROOT):
            value = value.replace(str(path), name)
    value = value.replace(f"{ROOT}/", "")
    return re.sub(r"(?<![\w./+-])/(?:[^/\s:;,'\"]+/)+(?=[^/\s])", "", value)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of equal keys; floats in 7 significant digits, what is not finite as nothing."""
    write_text(path, csv_text(rows))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns what `write_csv` writes."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.7g}" if math.isfinite(value) else ""
    return "" if value is None else value


def read_csv(path: Path) -> list[Row]:
    """Returns the rows of a CSV; numbers as floats, empty cells as NaN."""
    with open(path, encoding="utf-8", newline="") as stream:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(stream)]


def _value(text: str) -> Any:
    try:
        return float(text or "nan")
    except ValueError:
        return text


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------
# Compression


def _compression(setting: Setting, results: Path) -> None:
    folder = setting.out / "compression"
    models = compressed_models(setting)
    rows = [
        _size_row(name, cost)
        for name, cost in zip(models, read_json(folder / "sizes.json"), strict=True)
    ]
    for row in rows:
        row["file_percent"] = 100 * row["file_bytes"] / rows[0]["file_bytes"]
    write_csv(results / "sizes.csv", rows)
    first = pruned_name(SHARES[0])
    main = ["fcn", first, f"{first}-k{K_MAIN}", *(f"{first}-t{t}" for t in setting.size.targets)]
    for name in ("open", "bundled"):
        if name == "bundled" or setting.data:
            unseen = unseen_noises(setting) if name == "open" else set()
            _test_set(setting, folder / name, results, name, main, unseen)


def _size_row(name: str, cost: Mapping[str, Any]) -> Row:
    keys = ("file_bytes", "parameters", "nonzero_weights", "kernels", "zero_kernels",
            "flop_per_step", "sparse_flop_per_step", "paper_size_percent")  # fmt: skip
    row = {"model": name} | {key: cost[key] for key in keys}
    return row | {"full_percent": cost["accounting"]["full"]["percent"]}


def unseen_noises(setting: Setting) -> set[str]:
    """Returns the names of the noises that only the TEST part of the corpus has."""
    from speech.data import corpus

    if setting.noise is None:
        return set()
    test, train = (
        {noise.name for noise in corpus.find_noise(setting.noise, split)}
        for split in ("TEST", "TRAIN")
    )
    return test - train


def _test_set(
    setting: Setting,
    folder: Path,
    results: Path,
    name: str,
    main: Sequence[str],
    unseen: set[str],
) -> None:
    rows = read_csv(folder / "scores.csv")
    write_csv(results / f"{name}.csv", compared(rows, "fcn", main, unseen))
    summary = read_json(folder / "summary.json")
    kept = {key: value for key, value in summary.items() if key not in ("summary", "differences")}
    kept["unseen_noises"] = sorted(unseen)
    write_json(results / f"{name}.json", portable(strict_json(kept), setting))
    _write_if_small(results / f"{name}_files.csv", file_table(rows))


def compared(
    rows: Sequence[Row], baseline: str, main: Sequence[str], unseen: Iterable[str] = ()
) -> list[Row]:
    """Averages scores by group and compares them with the baseline on the same files.

    Args:
        rows: Of `eval.scoring`: system, noise, snr_db, name, status and `METRICS`.
        baseline: A system.
        main: Systems that are also compared by SNR and by noise; so are the noisy files.
        unseen: Noises that were not trained on.

    Returns:
        A row for each group, system and metric: n, unscored, mean, std, and the mean difference to
        the baseline with the ends of its 95 % bootstrap interval (`eval.statistics`). A file that
        lacks a score of one system is left out for all.
    """
    import numpy as np

    from eval.scoring import names_unscored
    from eval.statistics import mean_and_std, paired_differences

    metrics = [name for name in METRICS if name in rows[0]]
    left_out = names_unscored(rows)
    systems = list(dict.fromkeys(row["system"] for row in rows))
    table = []
    for group, member in _groups(rows, set(unseen)):
        chosen = [row for row in rows if member(row)]
        # In the order of the rows, as `eval.scoring.compare` has them: the same draws.
        names = list(dict.fromkeys(row["name"] for row in chosen))
        scored = [name for name in names if name not in left_out]
        values = {
            system: {row["name"]: [row[m] for m in metrics] for row in chosen
                     if row["system"] == system}
            for system in systems if group == ALL or system in (NOISY, *main)
        }  # fmt: skip
        base = np.array([values[baseline][name] for name in scored]).reshape(-1, len(metrics))
        for system, own in values.items():
            scores = np.array([own[name] for name in scored]).reshape(-1, len(metrics))
            results = paired_differences(scores - base)
            for metric, column, result in zip(metrics, scores.T, results, strict=True):
                mean, std = mean_and_std(column)
                table.append(
                    {"group": group, "system": system, "metric": metric, "n": len(scored),
                     "unscored": len(names) - len(scored), "mean": mean, "std": std,
                     "difference": result.mean, "low": result.low, "high": result.high}
                )  # fmt: skip
    return table


def _groups(rows: Sequence[Row], unseen: set[str]) -> list[tuple[str, Callable[[Row], bool]]]:
    """Returns (name, which rows belong to it): all, by SNR, by part of the noises, by noise."""
    groups: list[tuple[str, Callable[[Row], bool]]] = [(ALL, lambda row: True)]
    for snr_db in sorted({row["snr_db"] for row in rows if math.isfinite(row["snr_db"])}):
        groups.append((f"{snr_db:g} dB", partial(_has, "snr_db", snr_db)))
    if unseen:
        groups.append((SEEN, lambda row: row["noise"] not in unseen))
        groups.append((UNSEEN, lambda row: row["noise"] in unseen))
    for noise in sorted({row["noise"] for row in rows}):
        groups.append((f"noise {noise}", partial(_has, "noise", noise)))
    return groups


def file_table(rows: Sequence[Row]) -> list[Row]:
    """Returns one row a file with the scores of all systems side by side, in 4 decimals."""
    table: dict[str, Row] = {}
    for row in rows:
        labels = {key: row[key] for key in ("name", "noise", "snr_db")}
        own = table.setdefault(row["name"], labels)
        for metric in FILE_METRICS:
            own[f"{row['system']} {metric}"] = round(row[metric], 4)
    return list(table.values())


def _write_if_small(path: Path, rows: Sequence[Row]) -> None:
    text = csv_text(rows)
    if len(text) < MAX_FILE_TABLE_BYTES:
        write_text(path, text)
    else:
        path.unlink(missing_ok=True)
        print(f"not kept    {path.name}: {len(text):,} bytes", flush=True)


# --------------------------------------------------------------------------------------------
# The others


def _grid(setting: Setting, results: Path) -> None:
    folder = setting.out / "grid"
    for name in ("sweep", "controls"):
        found = read_json(folder / name / "sweep.json")
        rows = [{key: row[key] for key in row if not key.endswith("_p")} for row in found["table"]]
        write_csv(results / f"{name}.csv", rows)
    write_json(results / "pruning.json", portable(read_json(folder / "pruning.json"), setting))


def _has(column: str, value: Any, row: Row) -> bool:
    return row[column] == value


def _mnn(setting: Setting, results: Path) -> None:
    folder = setting.out / "mnn"
    judged: list[Row] = []
    draws: dict[str, list] = {}
    for experiment in EXPERIMENTS:
        found = read_json(folder / experiment / "results.json")
        found.pop("published", None)
        write_json(results / f"{experiment}.json", portable(found, setting))
        rows = read_csv(folder / experiment / "scores.csv")
        table, own = recoveries(rows, found["experts"])
        write_csv(results / f"{experiment}_recovery.csv", table)
        judged += table
        for which, ratios in own.items():
            draws.setdefault(which, []).extend(ratios)
        _write_if_small(
            results / f"{experiment}_mixtures.csv",
            [{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in rows],
        )
    write_csv(results / "mean_recovery.csv", mean_recoveries(judged, draws))
    two_stage = [_two_stage(setting, experiment) for experiment in setting.size.two_stage]
    write_json(results / "two_stage.json", two_stage)


def recoveries(rows: Sequence[Row], experts: Sequence[str]) -> tuple[list[Row], dict[str, list]]:
    """Judges every selection of an experiment, mixture by mixture.

    Args:
        rows: A mixture each: condition, 'sdr NAME' and 'stoi NAME' of each expert and combination,
            and the name that each selection chose, 'pick WHICH'.
        experts: Names.

    Returns:
        A row for each condition, metric and selection: n, the means of chance, selection and
        oracle; above_chance and below_oracle, the differences between them, and recovery, their
        share (selected - chance) / (oracle - chance), each with the ends of its 95 % bootstrap
        interval, mixtures drawn with replacement. And the draws of recovery in SDR by selection,
        an array a condition.
    """
    import numpy as np

    table: list[Row] = []
    draws: dict[str, list] = {}
    selections = [key.removeprefix("pick ") for key in rows[0] if key.startswith("pick ")]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        own = [row for row in rows if row["condition"] == condition]
        for metric in ("sdr", "stoi"):
            values = np.array([[row[f"{metric} {name}"] for name in experts] for row in own])
            scored = np.isfinite(values).all(axis=1)
            values = values[scored]
            drawn = np.random.default_rng(0).integers(
                len(values), size=(NUM_RESAMPLES, len(values))
            )
            for which in selections:
                picked = [row[f"{metric} {row[f'pick {which}']}"] for row in own]
                chosen = np.array(picked)[scored]
                judged, ratios = _recovery(
                    values.mean(axis=1), chosen, values.max(axis=1), drawn
                )  # fmt: skip
                row = {"condition": condition, "metric": metric, "selection": which}
                table.append(row | judged)
                if metric == "sdr":
                    draws.setdefault(which, []).append(ratios)
    return table, draws


def _recovery(chance: Any, chosen: Any, oracle: Any, drawn: Any) -> tuple[Row, Any]:
    """Returns means and intervals of float [n] each, and recovery in each draw."""
    import numpy as np

    row = {"chance": chance.mean(), "selected": chosen.mean(), "oracle": oracle.mean()}
    differences = {"above_chance": chosen - chance, "below_oracle": oracle - chosen}
    means = {key: values[drawn].mean(axis=1) for key, values in differences.items()}
    for key, values in differences.items():
        row |= {key: values.mean()} | _ends(key, means[key])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = means["above_chance"] / (means["above_chance"] + means["below_oracle"])
    gap = row["oracle"] - row["chance"]
    row["recovery"] = row["above_chance"] / gap if gap > 1e-9 else math.nan
    row |= _ends("recovery", ratios)
    return {"n": len(chance)} | {key: float(value) for key, value in row.items()}, ratios


def mean_recoveries(rows: Sequence[Row], draws: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Averages recovery in SDR over the rows of all experiments, each row counting once.

    Args:
        rows: Of `recoveries`.
        draws: Likewise.

    Returns:
        A row for each selection: number of rows, mean recovery and the ends of its interval.
    """
    import numpy as np

    table = []
    for which, own in draws.items():
        found = [r["recovery"] for r in rows if (r["metric"], r["selection"]) == ("sdr", which)]
        mean = float(np.mean(found))
        ends = _ends("recovery", np.mean(own, axis=0))
        table.append({"selection": which, "rows": len(found), "recovery": mean} | ends)
    return table


def _ends(key: str, means: Any) -> Row:
    import numpy as np

    low, high = np.percentile(means, [2.5, 97.5])
    return {f"{key}_low": float(low), f"{key}_high": float(high)}


def _two_stage(setting: Setting, experiment: str) -> Row:
    found = read_json(setting.out / "mnn" / f"two_stage_{experiment}.json")

    def num_bytes(key: str) -> list[int]:
        return [(ROOT / expert["source"]).stat().st_size for expert in found[key]]

    return {
        "experiment": experiment,
        "k": K_EXPERTS,
        "files": len(found["files"]),
        "audio_seconds": found["audio_seconds"],
        "agreement": found["agreement"],
        "picks": [found["picks"][expert["name"]] for expert in found["experts"]],
        "expert_bytes": num_bytes("experts"),
        "copy_bytes": num_bytes("selector_experts"),
        "seconds": found["seconds"],
    }


def _copied(*names: str) -> Callable[[Setting, Path], None]:
    """Returns a collector that keeps the JSON files of that name as they are."""

    def copy(setting: Setting, results: Path) -> None:
        for name in names:
            found = read_json(setting.out / results.name / name)
            write_json(results / name, portable(strict_json(found), setting))

    return copy


def _rooms(setting: Setting, results: Path) -> None:
    _copied("rooms.json")(setting, results)
    write_csv(results / "joint_history.csv", read_csv(setting.out / "rooms/joint/history.csv"))


#: Where speed was measured in one run, systems taking turns -> what they were given.
SPEED = {
    "benchmarks/results/streaming.json": "frame by frame",
    "benchmarks/results/quality.json": "whole files",
}
#: What `benchmarks.streaming` calls the network for use.
STREAMED = {"ours, medium": "denoise"}


def _use(setting: Setting, results: Path) -> None:
    """Also takes the real-time factors from where all systems were measured side by side."""
    _copied("cost.json", "open.json", "rooms.json")(setting, results)
    speed = []
    for source, given in SPEED.items():
        found = read_json(ROOT / source)
        factors = {
            STREAMED.get(name, name): system["real_time_factor"]
            for name, system in found["systems"].items()
            if "real_time_factor" in system
        }
        about = {key: found.get(key) for key in ("processor", "git_commit")}
        speed.append({"source": source, "given": given, "factors": factors} | about)
    write_json(results / "speed.json", speed)


_COLLECTORS: dict[str, Callable[[Setting, Path], bool | None]] = {
    "use": _use,
    "compression": _compression,
    "grid": _grid,
    "mnn": _mnn,
    "eq10": _copied("eq10.json"),
    "cost": _copied("cost.json", "cycles.json", "inference.json"),
    "rooms": _rooms,
}


def note_commands(
    section: str, command: str, records: Sequence[Row], setting: Setting, page: Path
) -> None:
    """Writes ``commands.json``: what made the raw files of a section.

    Args:
        section: Its name.
        command: The one that runs them all.
        records: Of its steps: name, command, seconds, adopted.
        setting: For portable paths.
        page: Folder that holds ``results``.
    """
    from speech.base.runinfo import run_info

    info = run_info()
    info.pop("command")
    value = {"command": command, "steps": list(records), **info}
    write_json(page / "results" / section / "commands.json", portable(value, setting))
