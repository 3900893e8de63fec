"""A pool of our experts and of other people's tools, and what each judge of `mnn.select` picks.

::

    python -m benchmarks.pool --json benchmarks/results/pool.json
    python -m benchmarks.pool --gtcrn gtcrn_simple.onnx --dtln model_1.onnx model_2.onnx
    python -m benchmarks.pool --timit CORPUS/speech --noise CORPUS/noise --num-test 2
    python -m benchmarks.pool --experts models/fcn.h5 mine.h5 theirs.onnx
    python -m benchmarks.pool --calibrate VOICES NOISES

Any network that is already trained can join (MNN, section 3). In this pool are the shipped networks
`denoise.icse` and `fcn.h5`, the three shipped mask experts, and noisereduce, RNNoise and
DeepFilterNet 3 from PyPI (extra ``[quality]``; what is not installed is skipped with a note). GTCRN
and DTLN join where onnxruntime and the files of their authors are (`benchmarks.streaming`). The
tools enhance the test set first, each in a process of its own, their delays taken out
(`benchmarks.quality`); their files join by the candidates folders of `mnn.expert_files`, as with
``python -m mnn.select --candidates NAME=DIR``.

Rows of the table:

    noisy      the files as they are
    NAME       each member alone
    chance     mean of the members
    voiced     the judge autoencoder of `mnn.select`: one member for each file
    ranker     the judge ranker, the default
    both       the judge both
    eq. 10     the paper's form; literal: estimates over samples at the level they come with (tools:
    eq. 11     peak 1), and with their levels fitted to the mixture
    combined   all members, weighted by the scoring voiced
    added by   all members, weighted by the ranker: for each file, or by time and band
    calibrated the judge ranker with what `mnn.calibrate` has measured of the members, on mixtures
               of the TRAIN part of the folders --calibrate (the tools enhance these, too);
    calibrated sum, bands: all members, weighted by it for each file, or by time and band
    others     the ranker's distance, not from its own reference, but from all other members, added
    clean      the ranker's distance from the clean speech: the limit for judges that measure so
    oracle     the member with the best SDR of each file

The likeness of a member is the correlation of its error with that of the ranker's reference. An
error is what is left of a signal when the clean speech is subtracted, at the gain that leaves the
least. The ranker is in favour of members that err as its reference does.

Recovery is (row - chance) / (oracle - chance). Means are over the files that have every score of
every member; the others are counted. Gains are over the member with the best mean in a metric, and
over that tool of other people, file by file, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common, peers, quality
from speech.base import cli
from speech.base.files import strict_json
from speech.training.common_options import check_corpus

if TYPE_CHECKING:
    import numpy as np

    from mnn.calibration import Calibration
    from mnn.expert_files import Expert
    from mnn.ranker import Ranker

#: Keys of `benchmarks.peers.PEERS`.
TOOLS = ("noisereduce", "RNNoise", "DeepFilterNet 3")

_MODELS = (
    "denoise.icse", "fcn.h5", "expert_birds.icse", "expert_typing.icse", "expert_engine.icse",
)  # fmt: skip

#: Test files per noise and SNR.
NUM_TEST = 1

#: Row -> metric, scoring, and whether levels are fitted.
SELECTIONS = {
    "voiced": ("ae", "voiced", True),
    "eq. 10, literal": ("ae", "paper", False),
    "eq. 11, literal": ("snr", "paper", False),
    "eq. 10, fitted": ("ae", "paper", True),
    "eq. 11, fitted": ("snr", "paper", True),
}
DEFAULT = "voiced"

#: Judges that need the ranker; `DEFAULT` is that of the autoencoder alone.
RANKED = ("ranker", "both")
#: Sums by the ranker -> how, as for `mnn.select --combine`.
SUMS = {"added by files": "files", "added by bands": "bands"}

#: The ranker's pick and sums, calibrated; and mixtures for each noise and SNR to calibrate with.
CALIBRATED, NUM_CALIBRATE = "calibrated", 9
CALIBRATED_SUMS = {"calibrated sum": "files", "calibrated bands": "bands"}

#: What the distance of the ranker is taken from, to find where its limit lies.
OTHERS, CLEAN = "others", "clean"

NOISY, CHANCE, COMBINED, ORACLE = "noisy", "chance", "combined", "oracle"
METRICS = {"sdr": "SDR dB", "pesq_wb": "PESQ-WB", "stoi": "STOI"}
_DIGITS = {"sdr": 2, "pesq_wb": 3, "stoi": 3}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    from mnn.select import DEFAULT_DAE, DEFAULT_RANKER

    models = DEFAULT_DAE.parent
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pool", description=__doc__.split("\n")[0]
    )
    common.add_test_options(parser, NUM_TEST)
    add = parser.add_argument
    add("--snr", type=cli.decibels, nargs="+", metavar="DB", help="default -5 0 5 10 15")
    add("--experts", type=Path, nargs="+", default=[models / name for name in _MODELS],
        metavar="FILE", help="our members (default: the shipped networks)")  # fmt: skip
    common.add_onnx_options(parser)
    add("--dae", type=Path, default=DEFAULT_DAE, metavar="FILE", help="default: the shipped one")
    add("--ranker", type=Path, default=DEFAULT_RANKER, metavar="FILE",
        help="default: the shipped one")  # fmt: skip
    add("--calibrate", type=Path, nargs=2, metavar=("SPEECH", "NOISE"),
        help="calibrate the pool with mixtures of the TRAIN part of these folders")  # fmt: skip
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from mnn.pool import open_pool
    from mnn.ranker import Ranker

    onnx = common.onnx_systems(options.gtcrn, options.dtln)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, _, description = quality.test_set(
            folder, options.timit, options.noise, options.snr, options.num_test, options.seed,
            options.jobs,
        )  # fmt: skip
        print(description)
        folders, tools, skipped = enhance_all(pairs, folder, onnx)
        opened, refused = open_pool(options.experts, list(folders.items()))
        members = [member for member in opened if member is not None]
        for reason in refused:
            print(f"refused: {reason}", file=sys.stderr)
        if not members:
            raise ValueError("no member is left, all were refused; give others with --experts")
        calibration = None
        if options.calibrate:
            models = [path for path, one in zip(options.experts, opened, strict=False) if one]
            calibration = _calibrated(options, models, folders, folder / "calibration", onnx)
            calibration.require(members, Ranker(options.ranker))
        rows = judge(
            pairs, members, options.dae, options.ranker, folder / "pool", options.jobs, calibration
        )  # fmt: skip
    for row in rows:
        row["out"] = {key: why.replace(f"{folder}/", "") for key, why in row["out"].items()}
    names = [member.name for member in members]
    table, num_unscored = tabulate(rows, names)
    picks = {which: count_picks(rows, which) for which in rows[0]["picks"]}
    gains, tool_gains = gains_of(rows, table, names), gains_of(rows, table, [*folders])
    print("\n" + format_table(table))
    for system, own in [*gains.items(), *tool_gains.items()]:
        print(f"{system}: " + "; ".join(
            f"{METRICS[key]} {gain[0]:+.3f} ({gain[1]:+.3f} to {gain[2]:+.3f}) over {base}"
            for key, (base, *gain) in own.items()
        ))  # fmt: skip
    likeness = {
        name: statistics.fmean(found)
        for name in names
        if (found := [row["likeness"][name] for row in rows if name in row["likeness"]])
    }
    print("likeness to the ranker: " + ", ".join(f"{n} {v:.2f}" for n, v in likeness.items()))
    for which, counts in picks.items():
        print(f"{which}: " + ", ".join(f"{name} {counts[name]}" for name in names))
    if num_unscored:
        print(f"{num_unscored} of {len(rows)} files lack a score of some member: in no row")
    for row in rows:
        for name, reason in row["out"].items():
            print(f"{name} is out for {row['name']}: {reason}", file=sys.stderr)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    result = {
        "test_set": description,
        "members": {m.name: {"kind": m.kind, "sha256": m.sha256 or None} for m in members},
        "tools": tools,
        "skipped": skipped,
        "table": table,
        "gains": gains,
        "tool_gains": tool_gains,
        "picks": picks,
        "likeness": likeness,
        "calibration": asdict(calibration) if calibration else None,
        "unscored": num_unscored,
        "files": rows,
    }
    common.write_result(options.json, strict_json(result))
    return 0


def _calibrated(
    options: argparse.Namespace,
    models: Sequence[Path],
    tools: Iterable[str],
    folder: Path,
    onnx: Mapping[str, peers.Spec],
) -> Calibration:
    """Calibrates the models and tools of a pool, on files that go below ``folder``."""
    from mnn.calibrate import CalibrateConfig, calibrate
    from speech.data import corpus
    from speech.training.request import SNRS_DB

    speech, noise = options.calibrate
    common.write_test_set(
        folder, speech, noise, options.snr or SNRS_DB, NUM_CALIBRATE, options.seed, options.jobs,
        split="TRAIN",
    )  # fmt: skip
    noisy, clean = folder / "noisy", folder / "clean"
    folders, _, _ = enhance_all(corpus.find_pairs(noisy, clean), folder, onnx)
    candidates = tuple((name, path) for name, path in folders.items() if name in tools)
    return calibrate(
        CalibrateConfig(tuple(models), candidates, noisy, clean, ranker=options.ranker)
    ).calibration


def enhance_all(
    pairs: Sequence[Any], folder: Path, onnx: Mapping[str, peers.Spec] | None = None
) -> tuple[dict[str, Path], dict[str, Any], dict[str, str]]:
    """Lets the tools enhance the test set.

    Args:
        pairs: The test set.
        folder: Where their files go.
        onnx: Networks that come as ONNX files, of `common.onnx_systems`.

    Returns:
        Folder by tool; packages, delay and failures by tool; and why the others are skipped.
    """
    clean = quality.at_peak(quality.read_samples(pairs[0].clean_path))
    contenders, skipped = [], {}
    with contextlib.ExitStack() as stack:
        wanted: dict[str, peers.Spec] = {
            name: (peers.PEERS[name], ()) for name in TOOLS if name in peers.PEERS
        }
        wanted |= onnx or {}
        for name, (factory, arguments) in wanted.items():
            try:
                worker = stack.enter_context(peers.Worker(factory, arguments))
                delay_samples = quality.measure_delay(worker, clean)
            except (peers.PeerUnavailable, peers.PeerFailed) as error:
                skipped[name] = str(error)
                continue
            contenders.append(quality.Contender(name, worker, delay_samples))
        quality.enhance_all(contenders, pairs, folder)
    folders, tools = {}, {}
    for place, one in enumerate(contenders):
        if len(one.failed) == len(pairs):
            skipped[one.name] = f"fails on every file: {one.failed[0][1]}"
            continue
        path = quality.output_path(folder, place, pairs[0])
        folders[one.name] = path.parents[len(pairs[0].relative_path.parts) - 1]
        tools[one.name] = one.worker.info | {
            "delay_samples": one.delay_samples,
            "failed": [{"file": file, "reason": reason} for file, reason in one.failed],
        }
    return folders, tools, skipped


def judge(
    pairs: Sequence[Any],
    members: Sequence[Expert],
    dae_path: Path,
    ranker_path: Path,
    folder: Path,
    num_jobs: int,
    calibration: Calibration | None = None,
) -> list[dict[str, Any]]:
    """Lets the members enhance each file, chooses in all ways, and scores what comes out.

    Args:
        pairs: The test set.
        members: The pool.
        dae_path: The autoencoder.
        ranker_path: The ranker.
        folder: Where estimates go.
        num_jobs: Processes for scoring.
        calibration: Of the pool; None for none.

    Returns:
        One row for each file: noise, snr_db, name; ``scores`` by system (members, noisy, sums) and
        metric, NaN where there is none; ``picks`` by selection; ``likeness`` by member; ``out``,
        the members that failed with their reasons.
    """
    from eval.scoring import Task, score_all
    from mnn.dae import Autoencoder
    from mnn.ranker import Ranker
    from speech.sound.audio import write_audio

    dae, ranker = Autoencoder(dae_path), Ranker(ranker_path)
    rows, tasks = [], []
    for pair in cli.progress(pairs, total=len(pairs), label="judging"):
        noisy, clean = (quality.read_samples(path) for path in (pair.noisy_path, pair.clean_path))
        signals, picks, out = choose(noisy, members, dae, ranker, pair.relative_path, calibration)
        made = {name: signals[name] for name in (m.name for m in members) if name in signals}
        found, likeness = limits(noisy, clean, made, ranker)
        labels = (pair.clean_path, pair.noise, pair.snr_db, str(pair.relative_path))
        tasks.append(Task(NOISY, pair.noisy_path, *labels))
        for place, (name, signal) in enumerate(signals.items()):
            path = folder / str(place) / pair.relative_path
            write_audio(path, signal)
            tasks.append(Task(name, path, *labels))
        rows.append({"noise": pair.noise, "snr_db": pair.snr_db, "name": labels[-1],
                     "picks": picks | found, "likeness": likeness, "out": out,
                     "scores": {}})  # fmt: skip
    by_name = {row["name"]: row for row in rows}
    for task, scores in zip(tasks, score_all(tasks, num_jobs, tuple(METRICS)), strict=True):
        # So many digits say all that the scores are worth, and keep the result small.
        by_name[task.name]["scores"][task.system] = {key: round(scores[key], 4) for key in METRICS}
    return rows


def choose(
    noisy: Any,
    members: Sequence[Expert],
    dae: Any,
    ranker: Any,
    relative: Path,
    calibration: Calibration | None = None,
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Runs a pool on one signal.

    Args:
        noisy: float32 [num_samples] at 16 kHz.
        members: The pool.
        dae: The `mnn.dae.Autoencoder`.
        ranker: The `mnn.ranker.Ranker`.
        relative: Path of the file below its folder, by which candidates are found.
        calibration: Of the pool; None for none.

    Returns:
        Signals of the members (levels fitted) and of their sums; the pick of each selection; and
        the reasons of members that are out.

    Raises:
        ValueError: All are out.
    """
    from benchmarks.judges import made
    from mnn.arbiter import Arbiter
    from mnn.expert_files import Place
    from mnn.scoring import (
        costs,
        joined,
        needs_of,
        pick,
        segment_bounds,
        segment_sums,
        soft_weights,
    )
    from mnn.selector import Selector

    bounds, hop = segment_bounds(len(noisy), None), dae.conventions.stft.hop
    signals: dict[str, Any] = {}
    picks: dict[str, str] = {}
    out: dict[str, str] = {}
    for fit in (True, False):
        chosen = {name: how for name, how in SELECTIONS.items() if how[2] == fit}
        needs = dict.fromkeys(
            key for metric, how, _ in chosen.values() for key in needs_of(metric, how)
        )
        hearings = Arbiter(dae, tuple(needs), fit=fit).hear(
            noisy, members, Place(relative), keep=fit
        )
        out |= {own.expert.name: own.reason for own in hearings if own.reason}
        hearings = [own for own in hearings if not own.reason]
        if not hearings:
            raise ValueError(f"{relative}: no member is left: {'; '.join(out.values())}")
        keys = [(own.expert.name, own.expert.sha256) for own in hearings]
        found = [own.statistics for own in hearings if own.statistics is not None]
        sums = [segment_sums(own, bounds, hop) for own in found]
        for name, (metric, scoring, _) in chosen.items():
            _, cost = costs(sums, metric, scoring)
            picks[name] = keys[pick(cost, keys)[0]][0]
            if name == DEFAULT:
                own = [hearing.signal for hearing in hearings]
                signals = {key[0]: signal for key, signal in zip(keys, own, strict=True)}
                signals[COMBINED] = joined(own, soft_weights(cost), bounds, 0)
    picks = {name: picks[name] for name in SELECTIONS}
    arbiter = Arbiter(dae, needs_of("ae", DEFAULT))
    pool = [made(member, signals[member.name]) for member in members if member.name in signals]
    for name in RANKED:
        selector = Selector(arbiter, pool, ranker=ranker, judge=name)
        picks[name] = selector.choose([noisy], relative)[0].picks[0]
    for name, how in SUMS.items():
        selector = Selector(arbiter, pool, combine=how, ranker=ranker, judge=RANKED[0])
        signals[name] = selector.choose([noisy], relative)[1][0]
    for name, how in CALIBRATED_SUMS.items() if calibration is not None else ():
        selector = Selector(
            arbiter, pool, combine=how, ranker=ranker, judge=RANKED[0], calibration=calibration
        )
        decision, added = selector.choose([noisy], relative)
        picks[CALIBRATED], signals[name] = decision.picks[0], added[0]
    return signals, picks, out


def limits(
    noisy: np.ndarray, clean: np.ndarray, estimates: Mapping[str, np.ndarray], ranker: Ranker
) -> tuple[dict[str, str], dict[str, float]]:
    """Chooses by the ranker's distance from something other than its own reference.

    Args:
        noisy: float32 [num_samples] at 16 kHz.
        clean: Likewise.
        estimates: Likewise, by member.
        ranker: The ranker.

    Returns:
        The picks `OTHERS` (where there are others) and `CLEAN`; and the likeness by member.
    """
    import numpy as np

    from mnn.calibration import seen
    from mnn.features import level
    from mnn.ranker import distances

    names, signals, picks = [*estimates], [*estimates.values()], {}
    if len(names) > 1:
        picks[OTHERS] = names[int(np.argmin(seen(ranker, noisy, signals)[1]))]
    from_clean = distances(clean, signals, level(noisy)).sum(axis=(1, 2))
    picks[CLEAN] = names[int(np.argmin(from_clean))]
    own = _error(ranker.reference(noisy, signals), clean)
    return picks, {name: float(own @ _error(s, clean)) for name, s in estimates.items()}


def _error(signal: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Returns what a signal has beside the clean speech, with the energy 1."""
    import numpy as np

    error = signal.astype(np.float64)
    error -= (error @ clean) / max(float(clean @ clean), 1e-30) * clean
    return error / max(float(np.linalg.norm(error)), 1e-30)


def tabulate(
    rows: Sequence[dict[str, Any]], names: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """Averages rows of `judge`.

    Args:
        rows: One a file.
        names: Of the members, in order.

    Returns:
        One line a system: system, n, each metric, and ``recovery`` by metric (None where it says
        nothing); and the number of files that lack a score.
    """
    from mnn.tables import recovery

    sums = [
        name
        for name in (COMBINED, *SUMS, *CALIBRATED_SUMS)
        if any(name in row["scores"] for row in rows)
    ]
    known = (*SELECTIONS, *RANKED, CALIBRATED, OTHERS, CLEAN)
    selections = [name for name in known if any(name in row["picks"] for row in rows)]
    systems = [NOISY, *names, *sums]
    scored = [row for row in rows if all(_is_scored(row["scores"].get(name)) for name in systems)]
    means: dict[str, dict[str, float]] = {}

    def average(system: str, chosen: Sequence[dict[str, float]]) -> None:
        means[system] = {
            key: statistics.fmean(own[key] for own in chosen) if chosen else math.nan
            for key in METRICS
        }

    for name in [NOISY, *names]:
        average(name, [row["scores"][name] for row in scored])
    average(CHANCE, [row["scores"][name] for row in scored for name in names])
    for which in selections:
        average(which, [row["scores"][row["picks"][which]] for row in scored])
    for name in sums:
        average(name, [row["scores"][name] for row in scored])
    for row in scored:
        sdr_db = {name: row["scores"][name]["sdr"] for name in names}
        row["picks"][ORACLE] = max(names, key=sdr_db.__getitem__)
    average(ORACLE, [row["scores"][row["picks"][ORACLE]] for row in scored])
    table = []
    for system, own in means.items():
        line: dict[str, Any] = {"system": system, "n": len(scored), **own}
        if system in (*selections, *sums):
            line["recovery"] = {
                key: recovery(own[key], means[CHANCE][key], means[ORACLE][key]) for key in METRICS
            }
        table.append(line)
    return table, len(rows) - len(scored)


def gains_of(
    rows: Sequence[dict[str, Any]], table: Sequence[dict[str, Any]], names: Sequence[str]
) -> dict[str, dict[str, list[Any]]]:
    """Compares what was chosen, and the sums, with the best member, file by file.

    Args:
        rows: Of `judge`.
        table: Of `tabulate`.
        names: Of the members to compare with, such as the tools of other people.

    Returns:
        By system and metric: the member that has the best mean in this metric, the mean of the
        differences to it, and the ends of its 95 % bootstrap interval. Empty without scored files
        or members.
    """
    import numpy as np

    from eval.statistics import paired_differences

    means = {line["system"]: line for line in table}
    chosen = [line["system"] for line in table if "recovery" in line]
    systems = [*names, *(name for name in chosen if name in rows[0]["scores"])]
    scored = [row for row in rows if all(_is_scored(row["scores"].get(n)) for n in systems)]
    gains: dict[str, dict[str, list[Any]]] = {}
    for system in chosen if scored and names else ():
        gains[system] = {}
        for key in METRICS:
            best = max(names, key=lambda name: means[name][key])
            own = [row["scores"][row["picks"].get(system, system)][key] for row in scored]
            differences = np.subtract(own, [row["scores"][best][key] for row in scored])
            (found,) = paired_differences(differences[:, None])
            gains[system][key] = [best, found.mean, found.low, found.high]
    return gains


def _is_scored(scores: dict[str, float] | None) -> bool:
    return scores is not None and all(math.isfinite(scores[key]) for key in METRICS)


def count_picks(rows: Sequence[dict[str, Any]], which: str) -> dict[str, int]:
    """Counts how often a selection, or the oracle, picked each member."""
    return Counter(row["picks"][which] for row in rows if which in row["picks"])


def format_table(table: Sequence[dict[str, Any]]) -> str:
    """Returns the table as plain text: mean and recovery of each metric."""
    header = f"{'system':<18}{'n':>5}"
    header += "".join(f"{label:>10}{'recovery':>10}" for label in METRICS.values())
    lines = [header, "-" * len(header)]
    for line in table:
        text = f"{line['system']:<18}{line['n']:>5}"
        for key in METRICS:
            share = line.get("recovery", {}).get(key)
            percent = "" if share is None else f"{100 * share:.0f} %"
            text += f"{line[key]:>10.{_DIGITS[key]}f}{percent:>10}"
        lines.append(text)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
