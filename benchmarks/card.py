"""Writes the scores in the cards of the default network and the FCN, and the rows of the README.

::

    python -m benchmarks.card --open-set RUN --bundled RUN --history runs/tf/history.csv
    python -m benchmarks.card                       # write them anew from the raw files

``RUN`` is the folder of an `eval.run` that scored the shipped file as ``denoise`` beside ``fcn``,
on the test set of the open corpus and on the bundled one; the card has the commands. What the
tables stand on is kept in ``results/denoise``: scores by file, the curve, the hash of the scored
file. Several histories are of trainings of which each went on with the network of the one before,
by ``--init``. A file with another hash than the shipped one is refused, so that the two belong
together.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import table
from benchmarks.reproduce.raw import NOISY, Row, read_csv, read_json, write_csv
from benchmarks.reproduce.steps import ROOT
from benchmarks.reproduce.text import interval, number
from eval.scoring import compare, summarize
from speech.base import cli
from speech.base.files import sha256_of, write_json, write_text
from speech.modelfile.read import read_model_file

MODEL = Path("models/denoise.icse")
CARD, README, RAW = Path("models/denoise.md"), Path("README.md"), Path("results/denoise")
BASELINE = Path("models/fcn.h5")
OURS, BESIDE = "denoise", "fcn"
SETS = ("open", "bundled")
#: Metrics in the card of the FCN.
OF_BASELINE = ("pesq_wb", "pesq_nb", "stoi")
#: Metric -> heading and decimals.
METRICS = {"pesq_wb": ("PESQ-WB", 3), "stoi": ("STOI", 3), "si_sdr": ("SI-SDR in dB", 1)}


def collect(runs: dict[str, Path], histories: Sequence[Path], root: Path = ROOT) -> None:
    """Keeps what the card stands on.

    Args:
        runs: Folder of the `eval.run` on each of `SETS`.
        histories: ``history.csv`` of the training, and of those before it that it went on with;
            later validations than the file's are left out.
        root: The repository.

    Raises:
        ValueError: A run scored another file than the shipped one.
        OSError: A file is missing.
    """
    file = read_model_file(root / MODEL)
    for name, run in runs.items():
        systems = {system["name"]: system for system in read_json(run / "summary.json")["systems"]}
        for system, path in ((OURS, MODEL), (BESIDE, BASELINE)):
            if systems.get(system, {}).get("sha256") != sha256_of(root / path):
                raise ValueError(f"{run}: scored no {system} that is {path}; score the file again")
        keys = ("system", "noise", "snr_db", "name", "pesq_nb", *METRICS, "status")
        rows = [{key: row[key] for key in keys} for row in read_csv(run / "scores.csv")]
        write_csv(root / RAW / f"{name}.csv", rows)
    *earlier, last = [read_csv(path) for path in histories]
    steps = file.meta["training"]["steps_done"]
    curve: list[Row] = []
    for part in (*earlier, [row for row in last if row["steps"] <= steps]):
        before = curve[-1] if curve else {}
        adds = {key: before.get(key, 0) for key in ("epoch", "hours", "steps")}
        curve += [row | {key: row[key] + value for key, value in adds.items()} for row in part]
    write_csv(root / RAW / "history.csv", curve)
    write_json(root / RAW / "models.json", _hashes(root))


def _hashes(root: Path) -> dict[str, str]:
    return {path.name: sha256_of(root / path) for path in (MODEL, BASELINE)}


def render(root: Path = ROOT) -> dict[Path, str]:
    """Returns the documents with the numbers of the raw files: path below ``root`` -> text.

    Raises:
        ValueError: The raw files are of another model than the shipped one, or a place to write to
            is missing.
    """
    file = read_model_file(root / MODEL)
    if read_json(root / RAW / "models.json") != _hashes(root):
        raise ValueError(f"{RAW}: of other files than {MODEL} and {BASELINE}; collect them again")
    rows = {name: read_csv(root / RAW / f"{name}.csv") for name in SETS}
    training = file.meta["training"]
    validated = read_csv(root / RAW / "history.csv")
    steps, hours = int(validated[-1]["steps"]), validated[-1]["hours"]
    heard = steps * training["batch_size"] * training["crop_seconds"] / 3600
    size = f"{(root / MODEL).stat().st_size:,}"
    curve = [
        [f"{row['hours']:.2f}", f"{row['steps']:.0f}", f"{row['training_loss']:.4f}",
         f"{row['validation_loss']:.4f}"]
        for row in validated
    ]  # fmt: skip
    card = (root / CARD).read_text(encoding="utf-8")
    for pattern, text in (
        (r"packed, [\d,]+ bytes; sha256 `\w+`",
         f"packed, {size} bytes; sha256 `{file.sha256}`"),
        (r"[\d,]+ steps, \d+ hours of mixtures, [\d.]+ hours of clock",
         f"{steps:,} steps, {heard:.0f} hours of mixtures, {hours:.1f} hours of clock"),
    ):  # fmt: skip
        card = _replaced(card, pattern, text)
    header = ["hours", "steps", "training loss", "validation loss"]
    card = _between(card, "curve", table(header, curve))
    for name in SETS:
        card = _between(card, name, _scores(rows[name], with_unseen=name == "open", root=root))
    readme = (root / README).read_text(encoding="utf-8")
    means = {row["system"]: row for row in _overall(summarize(rows["bundled"]))}
    gains = _gains(rows["open"])
    readme = _replaced(
        readme, r"(?m)^\| the default network, `models/denoise\.icse` \|.*$",
        f"| the default network, `{MODEL}` | {size} | {number(means[OURS]['pesq_wb'], 3)} | "
        f"{number(means[OURS]['stoi'], 3)} |",
    )  # fmt: skip
    readme = _replaced(
        readme, r"(?m)^\| `models/denoise\.icse` \| [\d,]+ \| [+-].*$",
        f"| `{MODEL}` | {size} | "
        + " | ".join(number(gains[m]["difference"], METRICS[m][1], "+") for m in METRICS) + " |",
    )  # fmt: skip
    path = BASELINE.with_suffix(".md")
    baseline = (root / path).read_text(encoding="utf-8")
    for name in SETS:
        unseen = _unseen(root) if name == "open" else []
        baseline = _between(baseline, name, _by_snr_and_noise(rows[name], unseen))
    return {CARD: card, README: readme, path: baseline}


def _replaced(text: str, pattern: str, by: str) -> str:
    found, count = re.subn(pattern, lambda _: by, text)
    if count != 1:
        raise ValueError(f"{pattern!r} stands {count} times in the document, expected once")
    return found


def _between(text: str, name: str, body: str) -> str:
    """Puts a text between the marks of a name."""
    begin, end = f"<!-- {name}: python -m benchmarks.card -->", f"<!-- /{name} -->"
    return _replaced(text, f"(?s){re.escape(begin)}.*?{re.escape(end)}", f"{begin}\n{body}\n{end}")


def _overall(groups: Sequence[Row]) -> list[Row]:
    return [row for row in groups if row["noise"] == "all" and row["snr_db"] == "all"]


def _gains(rows: Sequence[Row], system: str = OURS) -> dict[str, Row]:
    """Returns metric -> the comparison of a network with the noisy files, over all files."""
    # One group: intervals by noise and SNR, which nobody asks for here, take a minute.
    own = [row | {"noise": "some", "snr_db": 0.0} for row in rows]
    return {row["metric"]: row for row in _overall(compare(own)) if row["system"] == system}


def _said(gains: dict[str, Row]) -> str:
    """Returns the gains in the metrics of `METRICS` as a sentence."""
    told = []
    for metric, (heading, digits) in METRICS.items():
        row = gains[metric]
        ends = interval(row["low"], row["high"], digits)
        told.append(f"{heading} {number(row['difference'], digits, '+')}{ends}")
    return f"Gain over noisy: {', '.join(told)}."


def _unseen(root: Path) -> list[str]:
    """Returns the noises of the open test set of which no training had any."""
    return read_json(root / "benchmarks/results/quality.json")["unseen_noises"]


def _by_snr_and_noise(rows: Sequence[Row], unseen: Sequence[str]) -> str:
    """Returns the FCN's gains, and means and standard deviations by SNR, over all, and by noise."""
    groups = summarize(rows)
    chosen: list[tuple[str, list[Row]]] = []
    for snr_db in sorted({row["snr_db"] for row in rows}):
        own = [row for row in groups if row["noise"] == "all" and row["snr_db"] == snr_db]
        chosen.append((f"{snr_db:g} dB", own))
    chosen.append(("**all**", _overall(groups)))
    if unseen:
        for label, is_own in (
            (f"**the {len(unseen)} unseen noises**", True),
            ("the others", False),
        ):
            some = [row | {"noise": "some"} for row in rows if (row["noise"] in unseen) == is_own]
            chosen.append((label, _overall(summarize(some))))
    for noise in sorted({row["noise"] for row in rows}):
        own = [row for row in groups if row["noise"] == noise and row["snr_db"] == "all"]
        chosen.append((f"{noise} (unseen)" if noise in unseen else noise, own))
    lines = []
    for label, own in chosen:
        means = {row["system"]: row for row in own}
        cells = [
            f"{number(means[system][metric], 3)} ± {number(means[system][f'{metric}_std'], 3)}"
            for metric in OF_BASELINE for system in (NOISY, BESIDE)
        ]  # fmt: skip
        lines.append([label, str(means[BESIDE]["n"]), *cells])
    header = ["", "n"]
    for heading in ("PESQ-WB", "PESQ-NB", "STOI"):
        header += [f"{heading} {NOISY}", "enhanced"]
    return f"{_said(_gains(rows, BESIDE))}\n\n{table(header, lines)}"


def _scores(rows: Sequence[Row], *, with_unseen: bool, root: Path) -> str:
    """Returns the table by SNR, and sentences on the gain over the noisy files."""
    groups = [row for row in summarize(rows) if row["noise"] == "all"]
    lines = []
    for snr_db in sorted({row["snr_db"] for row in groups if row["snr_db"] != "all"}) + ["all"]:
        own = {row["system"]: row for row in groups if row["snr_db"] == snr_db}
        cells = [
            number(own[system][metric], digits)
            for metric, (_, digits) in METRICS.items() for system in (NOISY, OURS, BESIDE)
        ]  # fmt: skip
        label = "**all**" if snr_db == "all" else f"{snr_db:g} dB"
        lines.append([label, str(own[OURS]["n"]), *cells])
    header = ["", "n"]
    for heading, _ in METRICS.values():
        header += [f"{heading} {NOISY}", OURS, BESIDE]
    text = f"{table(header, lines)}\n\n{_said(_gains(rows))}"
    if with_unseen:
        unseen = _unseen(root)
        text += (
            f" On the {len(unseen)} noises of kinds that no training had{_change(rows, unseen)};"
        )
        text += f" in babble{_change(rows, ['babble'])}."
    return text


def _change(rows: Sequence[Row], noises: Sequence[str]) -> str:
    """Returns ' (n = 10): PESQ-WB 1.0 -> 1.1, STOI 0.70 -> 0.80' of some noises."""
    own = [row | {"noise": "some"} for row in rows if row["noise"] in noises]
    means = {row["system"]: row for row in _overall(summarize(own))}
    told = [
        f"{METRICS[m][0]} {number(means[NOISY][m], 3)} -> {number(means[OURS][m], 3)}"
        for m in ("pesq_wb", "stoi")
    ]
    return f" (n = {means[OURS]['n']}): {', '.join(told)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.card",
        description="Write the scores in the cards of the default network and the FCN, and the "
        "rows of the README.",
    )
    add = parser.add_argument
    add("--open-set", type=Path, metavar="RUN", help="read the eval.run on the open test set")
    add("--bundled", type=Path, metavar="RUN", help="read the eval.run on the bundled test set")
    add("--history", type=Path, nargs="+", metavar="FILE",
        help="read the history.csv of the training, after those that it went on with")  # fmt: skip
    options = parser.parse_args(argv)
    given = [options.open_set, options.bundled, options.history]
    if any(given) and not all(given):
        parser.error("--open-set, --bundled and --history go together")
    return cli.run(lambda: _run(options if all(given) else None))


def _run(options: argparse.Namespace | None) -> int:
    if options is not None:
        collect(dict(zip(SETS, (options.open_set, options.bundled), strict=True)), options.history)
    for path, text in render().items():
        write_text(ROOT / path, text)
        print(f"written     {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
