"""Our models beside what users could install instead, on the same unseen files.

::

    python -m benchmarks.quality --json benchmarks/results/quality.json --figure docs/quality.png
    python -m benchmarks.quality --timit CORPUS/speech --noise CORPUS/noise --num-test 3
    python -m benchmarks.quality --model fcn=models/fcn.h5 small=small.h5
    python -m benchmarks.quality --gtcrn gtcrn_simple.onnx --dtln model_1.onnx model_2.onnx
    python -m benchmarks.quality --json new.json --keep old.json

The others are optional (``pip install '.[quality]'``) and skipped with a note where they are
missing; the rows of the rest stay the same. GTCRN and DTLN need ``onnxruntime`` and the files of
their authors. ``--keep`` takes from an earlier result on the same
test set the rows of systems that have not changed since (versions, bytes and hash of the weights)
or are not installed now, and runs the others only. Each row that was kept names its commit; its
real-time factors are of that run.

The same for every system:

* Files: speakers and pieces of noise that ours never met. Still ours has an advantage: it was
  trained on the TRAIN part of such a corpus, with other pieces of many of these kinds of noise, and
  the others were not. The table of noises without a training part is the fairer one.
* Level: it is given the noisy file scaled to a peak of 0.5; its output is scaled to a peak of 1.
  No score depends on the level of the output.
* Delay: found once, as the lag of the largest cross-correlation of its output with its input, a
  clean utterance. So many zeros are added to the end of each file, and as many samples dropped
  from the start of the output.
* Time: systems take turns file by file, each on one core. Real-time factors are medians over files
  of seconds needed by second of audio: by the clock ('RTF'), and of the processor ('CPU'), which
  other work on the machine does not lengthen.
* Bytes: of the files that hold the weights, as they are installed.

A gain is the mean over files of score minus the noisy file's score, with the half width of its
95 % interval (Student's t, files taken as independent). A file that a system fails on, or whose
output has no score, is named, counted and in none of that system's means.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common, peers
from speech.base import cli
from speech.base.files import strict_json
from speech.training.common_options import check_corpus

if TYPE_CHECKING:
    import numpy as np

NOISY = "noisy"
INPUT_PEAK = 0.5
MAX_DELAY_SAMPLES = 4000

#: Test files per noise and SNR.
NUM_TEST = 3

#: Those of `eval.metrics`, and SI-SDR.
SCORED = {"pesq_wb": "PESQ-WB", "pesq_nb": "PESQ-NB", "stoi": "STOI", "estoi": "ESTOI"}
METRICS = SCORED | {"si_sdr_db": "SI-SDR dB"}

ALL, SEEN, UNSEEN = "all", "noises with a training part", "noises without a training part"

#: Not run, and why.
LEFT_OUT = {
    "deepfilternet (PyTorch)": "downloads its weights when first used, needs NumPy below 2",
    "denoiser": "downloads its weights when first used",
}

# Okabe and Ito's colours, told apart with any colour vision; markers differ too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dv<>Ph"


@dataclass
class Contender:
    """One system and what became of its files.

    Attributes:
        name: In the tables.
        worker: Runs it.
        delay_samples: What it delays, at 16 kHz.
        wall: Real-time factor of each file, by the clock.
        cpu: Likewise, of the processor.
        failed: (file, reason).
    """

    name: str
    worker: peers.Worker
    delay_samples: int = 0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__.split("\n")[0],
    )
    common.add_test_options(parser, NUM_TEST)
    add = parser.add_argument
    add("--snr", type=cli.decibels, nargs="+", metavar="DB", help="default -5 0 5 10 15")
    add("--model", nargs="+", action="extend", metavar="NAME=FILE",
        help="our models (default fcn=models/fcn.h5)")  # fmt: skip
    add("--rooms", action="store_true",
        help="put the speech in simulated rooms that no training has had")  # fmt: skip
    common.add_onnx_options(parser)
    add("--keep", type=Path, metavar="FILE",
        help="keep what an earlier --json FILE has of systems that have not changed")  # fmt: skip
    add("--figure", type=Path, metavar="FILE", help="also draw gains against bytes (PNG, SVG, PDF)")
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    models, onnx = named_models(options.model), common.onnx_systems(options.gtcrn, options.dtln)
    earlier = read_earlier(options.keep)
    if options.rooms:
        from speech.sound.augment import require_rooms

        require_rooms()
    if options.figure and options.figure.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{options.figure}: give a figure that ends in .png, .svg or .pdf")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, unseen, description = test_set(
            folder, options.timit, options.noise, options.snr, options.num_test, options.seed,
            options.jobs, options.rooms,
        )  # fmt: skip
        print(description)
        with contextlib.ExitStack() as stack:
            specs: dict[str, peers.Spec]
            specs = {name: (peers.OURS, (path,)) for name, path in models.items()}
            specs |= {name: (factory, ()) for name, factory in peers.PEERS.items()}
            specs |= onnx
            contenders, kept, skipped = _start(
                specs, models, earlier.get("systems", {}), stack, pairs[0].clean_path
            )
            enhance_all(contenders, pairs, folder)
        rows = _score(contenders, pairs, folder, options.jobs)
    groups: dict[str, Callable[[dict[str, Any]], bool]] = {ALL: lambda row: True}
    if 0 < len(unseen) < len({pair.noise for pair in pairs}):
        groups[SEEN] = lambda row: row["noise"] not in unseen
        groups[UNSEEN] = lambda row: row["noise"] in unseen
    snrs_db = sorted({pair.snr_db for pair in pairs})
    for snr_db in snrs_db if len(snrs_db) > 1 else ():
        groups[f"{snr_db:g} dB"] = partial(_is_at, snr_db)
    noisy = {name: noisy_means(rows, member) for name, member in groups.items()}
    if kept:
        check_same_test_set(options.keep, earlier, noisy)
        description = earlier["test_set"]  # which may name another folder of the same files
    done = kept | {one.name: _summary(one, rows, groups) for one in contenders}
    systems = {name: done[name] for name in specs if name in done}
    for name in groups:
        print("\n" + format_table(name, noisy[name], systems))
    unscored = _unscored(rows, NOISY)
    _print_notes(systems, skipped, unscored)
    result = {
        "test_set": description,
        "unseen_noises": sorted(unseen),
        "input_peak": INPUT_PEAK,
        "noisy": noisy,
        "noisy_unscored": unscored,
        "systems": systems,
        "skipped": skipped,
        "left_out": LEFT_OUT,
    }
    if options.figure:
        draw(systems, options.figure, description)
    common.write_result(options.json, strict_json(result))
    return 0


def read_earlier(path: Path | None) -> dict[str, Any]:
    """Returns an earlier result of this command; nothing if there is none at that path.

    Rows of systems that do not say so yet get the commit they were made with.

    Raises:
        ValueError: The file is no result of this command.
    """
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        has_all = {"noisy", "test_set"} <= found.keys()
        for system in found["systems"].values():
            system.setdefault("git_commit", found["git_commit"])
    except (ValueError, KeyError, TypeError, AttributeError):
        has_all = False
    if not has_all:
        raise ValueError(
            f"{path}: no result of benchmarks.quality; --keep needs what its --json wrote"
        )
    return found


def check_same_test_set(
    path: Path, earlier: dict[str, Any], noisy: dict[str, dict[str, Any]]
) -> None:
    """Makes sure that rows of an earlier result may stand beside new ones.

    Args:
        path: Of the earlier result, for the message.
        earlier: Of `read_earlier`.
        noisy: Group -> what `noisy_means` returns.

    Raises:
        ValueError: It has other groups, metrics or scores of the noisy files.
    """
    known = earlier["noisy"]
    if known.keys() != noisy.keys() or any(
        known[group].keys() != own.keys()
        or not all(math.isclose(known[group][key], own[key], rel_tol=1e-6) for key in own)
        for group, own in noisy.items()
    ):
        raise ValueError(
            f"{path}: its noisy files are others than those of this test set, or scored in other "
            "metrics; leave out --keep"
        )


def named_models(arguments: Sequence[str] | None) -> dict[str, str]:
    """Returns name -> file of ``--model NAME=FILE ...``.

    Raises:
        ValueError: No '=', a name twice or taken, or no such file.
    """
    from speech.net.enhancer import BASELINE_MODEL

    models: dict[str, str] = {}
    for argument in arguments or [f"fcn={BASELINE_MODEL}"]:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--model {argument}: give NAME=FILE, such as fcn=models/fcn.h5")
        if name in models or name in peers.PEERS or name == NOISY:
            raise ValueError(f"--model {argument}: the name {name!r} is taken; choose another")
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; --model needs a model file")
        models[name] = path
    return models


def test_set(
    folder: Path, timit: Path | None, noises: Path | None, snrs_db: Sequence[float] | None,
    num_test: int, seed: int, num_jobs: int, in_rooms: bool = False,
) -> tuple[list[Any], set[str], str]:  # fmt: skip
    """Writes the mixtures; returns the pairs, the noises without a training part, and a line."""
    from speech.data import corpus
    from speech.training.request import SNRS_DB

    snrs_db = snrs_db or SNRS_DB
    plans, _ = common.write_test_set(
        folder, timit, noises, snrs_db, num_test, seed, num_jobs, float(in_rooms)
    )
    pairs = corpus.find_pairs(folder / "noisy", folder / "clean")
    unseen = {plan.noise.name for plan in plans}
    unseen -= {noise.name for noise in corpus.recordings(timit, noises, "TRAIN")[1]}
    source = "bundled corpus" if timit is None else "/".join(timit.parts[-2:])
    speakers = {pair.speaker for pair in pairs}
    heard = {pair.noise for pair in pairs}
    description = (
        f"{source}, TEST: {len(pairs)} files, {len(speakers)} speakers, {len(heard)} noises "
        f"({len(heard & unseen)} without a training part), "
        f"{', '.join(f'{snr_db:g}' for snr_db in sorted(snrs_db))} dB"
        f"{', the speech in simulated rooms' if in_rooms else ''}"
    )
    return pairs, unseen, description


def _is_at(snr_db: float, row: dict[str, Any]) -> bool:
    return row["snr_db"] == snr_db


def _start(
    specs: Mapping[str, peers.Spec],
    models: Mapping[str, str],
    earlier: Mapping[str, dict[str, Any]],
    stack: contextlib.ExitStack,
    clean_path: Path,
) -> tuple[list[Contender], dict[str, dict[str, Any]], dict[str, str]]:
    """Starts what can be started and measures its delay.

    Args:
        specs: All systems.
        models: Those of them that are our files.
        earlier: Rows of an earlier result.
        stack: Ends what was started.
        clean_path: A clean utterance.

    Returns:
        What has to run, the earlier rows of what has not changed or is not here, and the reasons
        why other systems are skipped.
    """
    clean = at_peak(read_samples(clean_path))
    contenders, kept, skipped = [], {}, {}
    for name, spec in specs.items():
        known = earlier.get(name)
        try:
            worker = stack.enter_context(peers.Worker(*spec))
            if known and all(known.get(key) == value for key, value in worker.info.items()):
                worker.close()
                kept[name] = known
                continue
            contenders.append(Contender(name, worker, measure_delay(worker, clean)))
        except (peers.PeerUnavailable, peers.PeerFailed) as error:
            if name in models:
                raise ValueError(f"{models[name]}: {error}") from None
            if known:
                kept[name] = known
            else:
                skipped[name] = str(error)
    return contenders, kept, skipped


def measure_delay(worker: peers.Worker, clean: np.ndarray) -> int:
    """Returns by how many samples a system delays clean speech (negative: is early).

    The lag of the largest |cross-correlation| of output and input within `MAX_DELAY_SAMPLES`.

    Raises:
        PeerFailed: It fails, or returns silence.
    """
    import numpy as np

    from speech.sound.audio import lag_samples

    padded = np.pad(clean, (0, MAX_DELAY_SAMPLES))
    output = worker.run(padded).samples
    if not np.any(output):
        raise peers.PeerFailed("returns silence for clean speech")
    return lag_samples(output, padded, MAX_DELAY_SAMPLES)


def enhance_aligned(contender: Contender, noisy: np.ndarray) -> peers.Result:
    """Enhances float32 [num_samples] at the common level and takes the delay out.

    Raises:
        PeerFailed: The system fails, or returns silence.
    """
    import numpy as np

    delay = contender.delay_samples
    before, after = max(-delay, 0), max(delay, 0)
    result = contender.worker.run(np.pad(at_peak(noisy), (before, after)))
    samples = result.samples[after : after + len(noisy)]
    if not np.any(samples):
        raise peers.PeerFailed("returned silence")
    return peers.Result(samples / np.max(np.abs(samples)), result.wall_s, result.cpu_s)


def enhance_all(contenders: Sequence[Contender], pairs: Sequence[Any], folder: Path) -> None:
    """Lets every contender enhance every file, taking turns."""
    from speech.sound.audio import write_audio

    for pair in cli.progress(pairs, total=len(pairs), label="enhancing"):
        noisy = read_samples(pair.noisy_path)
        seconds = len(noisy) / peers.RATE_HZ
        for place, contender in enumerate(contenders):
            try:
                result = enhance_aligned(contender, noisy)
            except peers.PeerFailed as error:
                contender.failed.append((str(pair.relative_path), str(error)))
                continue
            contender.wall.append(result.wall_s / seconds)
            contender.cpu.append(result.cpu_s / seconds)
            write_audio(output_path(folder, place, pair), result.samples)


def _score(
    contenders: Sequence[Contender], pairs: Sequence[Any], folder: Path, num_jobs: int
) -> list[dict[str, Any]]:
    """Returns one row a system and file that there is, the noisy ones among them."""
    from eval.scoring import Task, score_all

    tasks = []
    for pair in pairs:
        labels = (pair.clean_path, pair.noise, pair.snr_db, str(pair.relative_path))
        tasks.append(Task(NOISY, pair.noisy_path, *labels))
        for place, contender in enumerate(contenders):
            path = output_path(folder, place, pair)
            if path.exists():
                tasks.append(Task(contender.name, path, *labels))
    rows = score_all(tasks, num_jobs, (*SCORED, "si_sdr"))
    return [row | {"si_sdr_db": row.pop("si_sdr")} for row in rows]


def _is_scored(row: dict[str, Any]) -> bool:
    return all(math.isfinite(row[metric]) for metric in METRICS)


def noisy_means(
    rows: Iterable[dict[str, Any]], member: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Returns n and the mean of each score of the noisy files of a group."""
    chosen = [row for row in rows if row["system"] == NOISY and member(row) and _is_scored(row)]
    return {"n": len(chosen)} | {
        metric: statistics.fmean(row[metric] for row in chosen) if chosen else math.nan
        for metric in METRICS
    }


def paired_gains(
    rows: Iterable[dict[str, Any]], system: str, member: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Compares a system with the noisy files, over files for which both have every score.

    Returns:
        n, and for each metric its mean, the mean gain over noisy and the half width of the gain's
        95 % interval (NaN where it is not defined).
    """
    scored = [row for row in rows if member(row) and _is_scored(row)]
    noisy = {row["name"]: row for row in scored if row["system"] == NOISY}
    chosen = [row for row in scored if row["system"] == system and row["name"] in noisy]
    result: dict[str, Any] = {"n": len(chosen)}
    for metric in METRICS:
        gains = [row[metric] - noisy[row["name"]][metric] for row in chosen]
        result[metric] = {
            "mean": statistics.fmean(row[metric] for row in chosen) if chosen else math.nan,
            "gain": statistics.fmean(gains) if gains else math.nan,
            "gain_ci95": half_width(gains),
        }
    return result


def half_width(values: Sequence[float]) -> float:
    """Returns half the width of the 95 % interval of the mean (Student's t); NaN for one value."""
    if len(values) < 2:
        return math.nan
    from scipy.stats import t

    quantile = float(t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _unscored(rows: Iterable[dict[str, Any]], system: str) -> list[dict[str, str]]:
    return [
        {"file": row["name"], "reason": row["status"]}
        for row in rows
        if row["system"] == system and not _is_scored(row)
    ]


def _summary(
    contender: Contender,
    rows: Sequence[dict[str, Any]],
    groups: dict[str, Callable[[dict[str, Any]], bool]],
) -> dict[str, Any]:
    failed = [{"file": file, "reason": reason} for file, reason in contender.failed]
    return contender.worker.info | {
        "delay_samples": contender.delay_samples,
        "real_time_factor": statistics.median(contender.wall) if contender.wall else math.nan,
        "cpu_real_time_factor": statistics.median(contender.cpu) if contender.cpu else math.nan,
        "failed": failed + _unscored(rows, contender.name),
        "groups": {name: paired_gains(rows, contender.name, one) for name, one in groups.items()},
    }


def format_table(group: str, noisy: dict[str, Any], systems: dict[str, dict[str, Any]]) -> str:
    """Returns one group as plain text: mean, and gain with the half width of its interval."""
    header = f"{'system':<18}{'bytes':>12}{'RTF':>8}{'CPU':>8}{'n':>6}"
    header += "".join(f"{label:>10}{'gain':>8}{'':>8}" for label in METRICS.values())
    line = f"{NOISY:<18}{'':>28}{noisy['n']:>6}"
    line += "".join(f"{noisy[metric]:>10.{_digits(metric)}f}{'':>16}" for metric in METRICS)
    lines = [group, header, "-" * len(header), line]
    for name, system in systems.items():
        scores = system["groups"][group]
        line = f"{name:<18}{system['bytes']:>12,}{system['real_time_factor']:>8.4f}"
        line += f"{system['cpu_real_time_factor']:>8.4f}{scores['n']:>6}"
        for metric in METRICS:
            one, digits = scores[metric], _digits(metric)
            spread = f"±{one['gain_ci95']:.{digits}f}"
            line += f"{one['mean']:>10.{digits}f}{one['gain']:>+8.{digits}f}{spread:>8}"
        lines.append(line)
    return "\n".join(lines)


def _digits(metric: str) -> int:
    return 1 if metric == "si_sdr_db" else 3


def _print_notes(
    systems: dict[str, dict[str, Any]], skipped: dict[str, str], unscored: Sequence[dict[str, str]]
) -> None:
    print()
    for row in unscored:
        print(f"no score for the noisy file, so for no system: {row['file']}: {row['reason']}")
    for name, system in systems.items():
        versions = ", ".join(f"{package} {v}" for package, v in system["packages"].items())
        print(
            f"{name}: {versions or 'ours'}; delay {system['delay_samples']} samples; "
            f"bytes: {system['weights']}"
        )
        if "git_commit" in system:
            print(f"  kept from the run of commit {(system['git_commit'] or 'unknown')[:9]}")
        for row in system["failed"]:
            print(f"  no score: {row['file']}: {row['reason']}")
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    for name, reason in LEFT_OUT.items():
        print(f"left out {name}: {reason}")


def draw(systems: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    """Draws the gains of PESQ-WB and STOI over noisy against the bytes of the weights.

    Bars are 95 % intervals. Systems without weights stand left of the smallest file.

    Args:
        systems: As in the JSON.
        path: PNG, SVG or PDF by its ending.
        title: Above the picture.
    """
    from matplotlib.figure import Figure

    from speech.base.files import atomic_path

    smallest = min((own["bytes"] for own in systems.values() if own["bytes"]), default=10**6)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, metric in zip(panels, ("pesq_wb", "stoi"), strict=True):
        axes.axhline(0, color="0.4", linewidth=1, linestyle="--")
        for number, (name, system) in enumerate(systems.items()):
            score = system["groups"][ALL][metric]
            axes.errorbar(
                system["bytes"] or smallest / 10, score["gain"], yerr=score["gain_ci95"],
                color=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)],
                markersize=8, linestyle="none", capsize=3,
                label=name if system["bytes"] else f"{name} (no weights)",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("bytes of the weights")
        axes.set_ylabel(f"{METRICS[metric]} gain over noisy")
        axes.grid(True, alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
    figure.suptitle(title, fontsize="medium")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def output_path(folder: Path, place: int, pair: Any) -> Path:
    """Returns where a contender's output for a pair is written."""
    return folder / f"enhanced-{place}" / pair.relative_path


def read_samples(path: Path) -> np.ndarray:
    """Returns the samples of a file, [num_samples]."""
    from speech.sound.audio import read_audio

    return read_audio(path).samples


def at_peak(signal: np.ndarray) -> np.ndarray:
    """Scales to the common peak; silence stays silence."""
    from speech.sound.audio import peak_normalize

    return peak_normalize(signal) * signal.dtype.type(INPUT_PEAK)


if __name__ == "__main__":
    sys.exit(main())
