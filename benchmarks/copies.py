r"""What compressing a modular network costs: experts and their autoencoder beside copies.

::

    python -m benchmarks.copies gender --timit corpus/speech --noise corpus/noise \
        --models runs/reproduce/mnn/models --copies dae_2048x2=k16/dae_2048x2/model.icse \
        male=k16/male/model.icse female=k16/female/model.icse

The test mixtures of `mnn.experiments` meet both. Each expert is scored alone and beside its copy;
then the autoencoder chooses among the experts, its copy among theirs, by the default scoring.
Originals have the names that `mnn.experiments` gives, copies those that are said with them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from mnn import experiments
from speech.base import cli
from speech.training.common_options import check_corpus

if TYPE_CHECKING:
    from mnn.dae import Autoencoder
    from mnn.expert_files import Expert

METRICS = ("sdr", "stoi")

#: An autoencoder by the name of its net, and experts.
Pool = tuple[dict[str, "Autoencoder"], Sequence["Expert"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.copies", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("experiment", choices=experiments.EXPERIMENTS, help="what the experts differ in")
    add("--timit", type=Path, metavar="DIR", help="tree with TEST (default: the bundled corpus)")
    add("--noise", type=Path, metavar="DIR", help="noise recordings (to mix with --timit)")
    add("--models", type=Path, required=True, metavar="DIR", help="where the originals are")
    add("--copies", type=cli.named_path, nargs="+", required=True, metavar="NAME=FILE",
        help="a copy of the autoencoder and of each expert, by the original's name")  # fmt: skip
    add("--num-test", type=cli.positive_number, default=2, metavar="N",
        help="utterances a condition and noise (default %(default)s)")  # fmt: skip
    add("--seed", **cli.SEED)
    add("--json", **cli.JSON)
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    kind = "bundled" if options.timit is None else "open"
    table = experiments.NOISE_TYPES if options.experiment == "noise" else experiments.MIXED_NOISES
    conditions = experiments.conditions_of(options.experiment, table[kind])
    names = [condition.name for condition in conditions]
    copies = dict(options.copies)
    daes = [name for name in copies if name.startswith("dae_")]
    if len(daes) != 1 or copies.keys() - daes != set(names):
        raise ValueError(
            f"--copies has {', '.join(copies)}; give one of {', '.join(experiments.DAES)} as "
            f"dae_NET, and {', '.join(names)}"
        )
    originals = {name: options.models / experiments.file_name(name) for name in copies}
    pools = [_opened(files, daes[0], names) for files in (originals, copies)]
    plans = experiments.test_plans(
        conditions, options.num_test, options.timit, options.noise, options.seed
    )
    shown = cli.progress(plans, total=len(plans), label="testing")
    rows = [compare(plan, pools) for _, plan in shown]
    result = summarize(rows, names) | {
        "experiment": options.experiment,
        "bytes": {name: [f.stat().st_size for f in (originals[name], copies[name])]
                  for name in copies},
        "files": rows,
    }  # fmt: skip
    print(format_result(result))
    common.write_result(options.json, result)
    return 0


def _opened(files: dict[str, Path], dae: str, names: Sequence[str]) -> Pool:
    from mnn.dae import Autoencoder
    from mnn.expert_files import open_expert

    experts = [open_expert(files[name], name) for name in names]
    return {dae.removeprefix("dae_"): Autoencoder(files[dae])}, experts


def compare(plan: Any, pools: Sequence[Pool]) -> dict[str, Any]:
    """Returns, for a mixture, the scores of each pool's experts and whom its autoencoder picks.

    Raises:
        ValueError: An expert fails.
    """
    from mnn.scoring import DEFAULT_SCORING

    scores, picks = [], []
    for daes, experts in pools:
        found, chosen = experiments.judge_mixture(plan, experts, daes)
        scores.append({expert.name: found[expert.name] for expert in experts})
        picks.append(chosen[f"ae {DEFAULT_SCORING} {next(iter(daes))}"])
    return {"name": plan.relative_path.as_posix(), "scores": scores, "picks": picks}


def summarize(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Returns means over mixtures.

    Args:
        rows: Of `compare` for originals and copies.
        names: Of the experts.

    Returns:
        ``change``: copy minus original by expert and metric; ``picked``: by metric, the means of
        what originals and copies pick; ``same_picks`` of ``mixtures``.
    """
    import numpy as np

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    return {
        "mixtures": len(rows),
        "same_picks": sum(row["picks"][0] == row["picks"][1] for row in rows),
        "change": {
            name: {
                metric: mean([
                    row["scores"][1][name][metric] - row["scores"][0][name][metric] for row in rows
                ])
                for metric in METRICS
            }
            for name in names
        },
        "picked": {
            metric: [
                mean([row["scores"][which][row["picks"][which]][metric] for row in rows])
                for which in (0, 1)
            ]
            for metric in METRICS
        },
    }  # fmt: skip


def format_result(result: dict[str, Any]) -> str:
    """Returns the result as lines of text."""
    lines = [f"{'network':<14}{'bytes':>12}{'copy':>12}{'SDR':>9}{'STOI':>10}"]
    for name, (size, copy) in result["bytes"].items():
        change = result["change"].get(name)
        own = f"{change['sdr']:>+9.3f}{change['stoi']:>+10.4f}" if change else ""
        lines.append(f"{name:<14}{size:>12,}{copy:>12,}{own}")
    sdr, stoi = result["picked"]["sdr"], result["picked"]["stoi"]
    lines.append(
        f"same pick in {result['same_picks']} of {result['mixtures']} mixtures; what is picked: "
        f"SDR {sdr[0]:.2f} -> {sdr[1]:.2f} dB, STOI {stoi[0]:.4f} -> {stoi[1]:.4f}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
