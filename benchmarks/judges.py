"""Who chooses best: the autoencoder, the ranker, both, or the sums that follow from the ranker.

::

    python -m benchmarks.judges --timit corpus/speech --noise corpus/noise --json judges.json
    python -m benchmarks.judges --split TRAIN                     # where constants were chosen

The shipped experts by noise, and those by gender and SNR that `mnn.experiments` has trained,
enhance mixtures of the paper's eight tests, with the test voices and the test parts of the noises.
A ninth test, ``unseen``, has the noises of the test part that have no training part: no expert, and
none of the judges, has met them or the voices; its pool is the FCN with the three experts by noise.

Recovery is (selected - chance) / (oracle - chance) of means over mixtures, in percent of SDR, where
chance is the mean of the experts and the oracle takes the best of them for each mixture. A sum of
estimates can pass 100 %. Intervals come from mixtures drawn anew.

Further rows are rankers that hear something else: the mixture alone, or the mean of all estimates
alone. ``--other NAME=MODEL`` adds one that makes out the speech by another network, such as one
that was trained with recordings of noise, and the score of what this network makes of the mixture
itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.eq10 import (
    MAX_SAMPLES,
    MODELS,
    NUM_RESAMPLES,
    add_experts_option,
    expert_paths,
    plan,
    recovery,
)
from eval.metrics import METRICS
from mnn.arbiter import Arbiter
from mnn.dae import Autoencoder
from mnn.expert_files import Expert, open_expert
from mnn.ranker import Ranker
from mnn.scoring import DEFAULT_JUDGE, DEFAULT_SCORING, JUDGES, needs_of
from mnn.select import COMBINATIONS, DEFAULT_DAE, DEFAULT_RANKER
from mnn.selector import Selector
from speech.base import cli
from speech.base.files import sha256_of
from speech.data import corpus
from speech.data.corpus import MixturePlan, render, spread_mixtures
from speech.modelfile.spec import COMPLEX_MASK
from speech.training.common_options import check_corpus

#: Mixtures for each noise, by experiment.
MIXTURES = {"noise": 20, "gender": 20, "snr": 8}
UNSEEN, UNSEEN_EACH = "unseen", 3
UNSEEN_SNRS_DB = (-5.0, 0.0, 5.0, 10.0)
SUMS = {f"added by {how}": how for how in COMBINATIONS}

#: The judge that is asked for, and others of the same network that hear something else.
RANKER = DEFAULT_JUDGE
HEARINGS = {"ranker, mixture alone": 1.0, "ranker, estimates alone": 0.0}

#: Expert scores [num_mixtures, num_experts] and the scores of what was selected, by judge.
Judged = tuple[np.ndarray, dict[str, np.ndarray]]


def unseen_plans(speech: Path | None, noise: Path | None, seed: int) -> list[MixturePlan]:
    """Returns mixtures of test voices with the noises that have a test part only; [] if none."""
    voices = corpus.bundled_speech("TEST") if speech is None else corpus.find_speech(speech, "TEST")
    parts = [
        corpus.bundled_noise(split) if noise is None else corpus.find_noise(noise, split)
        for split in ("TRAIN", "TEST")
    ]
    known = {item.name for item in parts[0]}
    unseen = [item for item in parts[1] if item.name not in known]
    if not unseen:
        return []
    return spread_mixtures(voices, unseen, UNSEEN_SNRS_DB, UNSEEN_EACH, seed)


def made(expert: Expert, signal: np.ndarray) -> Expert:
    """Returns an expert that gives what another one has made of the mixture."""
    kind = COMPLEX_MASK if expert.keeps_level else expert.kind
    return Expert(
        expert.name, kind, expert.source, expert.sha256, None, lambda noisy, place: signal
    )


def judge(
    plans: Sequence[MixturePlan],
    experts: Sequence[Expert],
    arbiter: Arbiter,
    rankers: Mapping[str, Ranker],
) -> Judged:
    """Lets experts enhance mixtures, and all judges choose.

    Args:
        plans: The mixtures.
        experts: Of the pool.
        arbiter: Asks the autoencoder.
        rankers: By name; `RANKER` is the one that both judges and all sums go by.

    Returns:
        SDR in dB of each expert, [num_mixtures, num_experts], and of what each judge selected,
        [num_mixtures]. A mixture that has no score is left out.
    """
    scores: list[list[float]] = []
    selected: dict[str, list[float]] = {}
    for one in cli.progress(plans, total=len(plans), label="judging"):
        mixture = render(one)
        noisy = mixture.noisy[:MAX_SAMPLES].astype(np.float32)
        clean = mixture.clean[:MAX_SAMPLES].astype(np.float64)
        hearings = arbiter.run(noisy, experts)
        if any(hearing.reason for hearing in hearings):
            raise ValueError("; ".join(hearing.reason for hearing in hearings if hearing.reason))
        signals = [hearing.signal for hearing in hearings if hearing.signal is not None]
        own = [_sdr_db(clean, signal) for signal in signals]
        if not np.isfinite(own).all():
            continue
        scores.append(own)
        pool = [made(expert, signal) for expert, signal in zip(experts, signals, strict=True)]
        names = [expert.name for expert in pool]
        found = {}
        for name in JUDGES:
            selector = Selector(arbiter, pool, ranker=rankers[RANKER], judge=name)
            if name == JUDGES[0]:
                selector = replace(selector, ranker=None)
            decision, _ = selector.choose([noisy])
            found[name] = own[names.index(decision.picks[0])]
        for name, how in SUMS.items():
            selector = Selector(arbiter, pool, combine=how, ranker=rankers[RANKER], judge=RANKER)
            found[name] = _sdr_db(clean, selector.choose([noisy])[1][0])
        for name, other in rankers.items():
            if name != RANKER:
                errors = other.errors(noisy, signals).sum(axis=(1, 2))
                found[name] = own[int(np.argmin(errors))]
            if name not in (RANKER, *HEARINGS):
                found[f"{name} itself"] = _sdr_db(clean, other.reference(noisy, [noisy]))
        for name, value in found.items():
            selected.setdefault(name, []).append(value)
    return np.array(scores), {name: np.array(values) for name, values in selected.items()}


def _sdr_db(clean: np.ndarray, signal: np.ndarray) -> float:
    return METRICS["sdr"](clean, signal.astype(np.float64)).value


def tabulate(judged: Mapping[str, Judged]) -> dict[str, Any]:
    """Returns recoveries with 95 % intervals, by judge and test, and the mean of the eight tests.

    Args:
        judged: From `judge`, by test.

    Returns:
        By judge: 'tests', {test: [recovery, low, high]}, and 'mean', likewise.
    """
    rows: dict[str, Any] = {}
    for name in next(iter(judged.values()))[1]:
        tests, draws = {}, []
        for test, (scores, selected) in judged.items():
            num = len(scores)
            drawn = np.random.default_rng(0).integers(num, size=(NUM_RESAMPLES, num))
            value = recovery(scores, selected[name], np.arange(num)[None])[0]
            spread = recovery(scores, selected[name], drawn)
            tests[test] = [float(value), *map(float, np.quantile(spread, (0.025, 0.975)))]
            if test != UNSEEN:
                draws.append(spread)
        mean = float(np.mean([tests[test][0] for test in judged if test != UNSEEN]))
        ends = np.quantile(np.mean(draws, axis=0), (0.025, 0.975))
        rows[name] = {"tests": tests, "mean": [mean, *map(float, ends)]}
    return rows


def format_table(result: Mapping[str, Any]) -> str:
    """Returns the table in Markdown."""
    tests = list(result["mixtures"])
    lines = ["| recovery in SDR, % | " + " | ".join([*tests, "mean of eight"]) + " |"]
    lines.append("|---" * (len(tests) + 2) + "|")
    counts = [str(result["mixtures"][test]) for test in tests]
    lines.append("| mixtures | " + " | ".join([*counts, ""]) + " |")
    for name, row in result["judges"].items():
        cells = [_cell(row["tests"][test]) for test in tests]
        lines.append("| " + " | ".join([name, *cells, _cell(row["mean"])]) + " |")
    for name in ("chance", "oracle"):
        cells = [f"{result['sdr_db'][test][name]:.2f} dB" for test in tests]
        lines.append("| " + " | ".join([name, *cells, ""]) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    return f"{values[0]:.0f} ({values[1]:.0f} to {values[2]:.0f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.judges", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--timit", type=Path, metavar="DIR", help="speech (default: the bundled corpus)")
    add("--noise", type=Path, metavar="DIR", help="noises to mix with it")
    add("--split", choices=("TEST", "TRAIN"), default="TEST",
        help="take these voices and these parts of the noises (default %(default)s)")  # fmt: skip
    add("--mixtures", type=cli.positive_number, metavar="N",
        help=f"mixtures for each noise of each test (default {MIXTURES})")  # fmt: skip
    add("--dae", type=Path, default=DEFAULT_DAE, metavar="FILE", help="default: the shipped one")
    add("--ranker", type=Path, default=DEFAULT_RANKER, metavar="FILE",
        help="default: the shipped one")  # fmt: skip
    add("--other", type=cli.named_path, action="append", default=[], metavar="NAME=MODEL",
        help="judge by a ranker that makes out the speech by this network, too")  # fmt: skip
    add_experts_option(parser)
    add("--seed", **cli.SEED)
    add("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    options = parser.parse_args(argv)
    check_corpus(parser, options)
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    num = {name: options.mixtures or count for name, count in MIXTURES.items()}
    plans = plan(options.timit, options.noise, num, options.seed, split=options.split)
    experts = {name: expert_paths(name, options.experts) for name, _ in plans}
    arbiter = Arbiter(Autoencoder(options.dae), needs_of("ae", DEFAULT_SCORING))
    rankers = {RANKER: Ranker(options.ranker)}
    rankers |= {name: Ranker(options.ranker, share) for name, share in HEARINGS.items()}
    rankers |= {name: Ranker(path) for name, path in options.other}
    judged: dict[str, Judged] = {}
    for (experiment, condition), own in plans.items():
        pool = [open_expert(path) for path in experts[experiment]]
        judged[condition] = judge(own, pool, arbiter, rankers)
    own = unseen_plans(options.timit, options.noise, options.seed)
    if own and options.split == "TEST":
        files = [MODELS / "fcn.h5", *expert_paths("noise", options.experts)]
        judged[UNSEEN] = judge(own, [open_expert(path) for path in files], arbiter, rankers)
    result = {
        "split": options.split,
        "mixtures": {test: len(scores) for test, (scores, _) in judged.items()},
        "sdr_db": {
            test: {
                "experts": scores.mean(axis=0).tolist(),
                "chance": float(scores.mean()),
                "oracle": float(scores.max(axis=1).mean()),
                "selected": {name: float(own.mean()) for name, own in selected.items()},
            }
            for test, (scores, selected) in judged.items()
        },
        "judges": tabulate(judged),
        "files": {
            path.name: sha256_of(path)
            for path in (options.dae, options.ranker, *(path for _, path in options.other))
        },
    }
    print(format_table(result))
    common.write_result(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
