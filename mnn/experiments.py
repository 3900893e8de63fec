"""Runs the paper's three experiments: experts by noise, by gender, by SNR (docs/papers.md).

::

    python -m mnn.experiments noise                               # bundled corpus, minutes
    python -m mnn.experiments gender --timit TIMIT --noise NOISES # the paper's sizes
    python -m mnn.experiments snr --scale open --timit corpus/speech --noise corpus/noise

It trains autoencoders and experts (`mnn.train`), mixes test utterances and lets every expert
enhance each of them. It compares the choices by eqs. (10) and (11) with each autoencoder, and by
the other scorings of `mnn.scoring`, with chance (the mean of the experts) and the oracle (the best
expert for each utterance). Recovery is (selected - chance) / (oracle - chance). 'combined' does not
choose: all estimates are added, with the weights of `mnn.select --combine`, and the sum is scored.

It writes to ``--out`` the models, rows.jsonl (one line per mixture; the same command, killed or
not, does none twice), report.md, scores.csv, results.json and report.png.

At bundled scale all sizes are smaller than in the paper; `SCALES` has them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics import METRICS as SCORES
from eval.plots import COLORS
from mnn import published
from mnn.arbiter import Arbiter
from mnn.conditions import description, matching
from mnn.config import EXPERT_SNRS_DB, FitConfig, TrainConfig
from mnn.dae import Autoencoder
from mnn.expert_files import Expert, open_expert
from mnn.features import fingerprint
from mnn.scoring import (
    DEFAULT_SCORING,
    SCORINGS,
    VERSION,
    costs,
    needs_of,
    pick,
    segment_bounds,
    segment_sums,
    soft_weights,
)
from mnn.tables import METRICS, confusion, report_markdown, tabulate
from mnn.train import lines_of, train
from speech.base import cli, schema
from speech.base.files import append_text, atomic_path, held, sha256_of, write_json, write_text
from speech.base.lazy import matplotlib
from speech.base.runinfo import run_info
from speech.base.words import csv_text
from speech.data import corpus
from speech.data.corpus import MixturePlan, Noise, Utterance, render, spread_mixtures
from speech.training.request import DataOptions

_logger = logging.getLogger("speech")

EXPERIMENTS = ("noise", "gender", "snr")
DAES = ("128", "2048x2")

#: Noise types of experiment 1; without the paper's noises the engine stands for the motorcycle.
NOISE_TYPES = {
    "bundled": ("birds", "typing", "engine"),
    "open": ("birds", "typing", "engine"),
    "paper": ("birds", "typing", "motorcycle"),
}

#: Noises of experiments 2 and 3; () for all. The paper has ten. Of the open corpus's, two have no
#: test part (forest, printer).
MIXED_NOISES = {
    "bundled": (),
    "open": (
        "birds", "typing", "engine", "frogs", "ocean", "forest", "crowd", "printer", "rain",
        "traffic",
    ),
    "paper": (),
}  # fmt: skip

SNRS_DB = (-5.0, 0.0, 5.0)
GENDERS = {"male": "M", "female": "F"}


@dataclass(frozen=True)
class Scale:
    """The size of an experiment.

    Attributes:
        expert_nets: Key of `mnn.experts.NETS` by experiment.
        expert_fit: Settings of the experts' training.
        dae_fits: Settings of the autoencoders' training, by net.
        num_test: By experiment, test utterances per noise and condition; 0 for all.
        dae_per_speaker: The most utterances of each speaker that autoencoders are trained on; None
            for the default of `mnn.train`.
    """

    expert_nets: dict[str, str]
    expert_fit: FitConfig
    dae_fits: dict[str, FitConfig]
    num_test: dict[str, int]
    dae_per_speaker: int | None = None


#: The paper: Rprop, batches of 1000 frames, up to 5000 iterations, tests of 20 (noise), 50 x 10
#: noises (gender) and 20 x 10 noises (SNR) utterances. Open: the paper's nets and sizes on a corpus
#: of ten training voices (`speech.opencorpus`). Autoencoders are trained on 40 utterances of each
#: voice, 400 in all as in the paper. Adam gets further than Rprop in few iterations, so this takes
#: hours on two cores instead of days. Bundled: also Adam, and the smaller net in all experiments.
#: Small: shows in minutes that everything runs.
SCALES = {
    "paper": Scale(
        {"noise": "512x2", "gender": "2048x2", "snr": "2048x2"},
        FitConfig(),
        {"128": FitConfig(), "2048x2": FitConfig()},
        {"noise": 20, "gender": 50, "snr": 20},
    ),
    "open": Scale(
        {"noise": "512x2", "gender": "2048x2", "snr": "2048x2"},
        FitConfig(1000, optimizer="adam", learning_rate=5e-4, patience=300),
        {
            "128": FitConfig(4000, optimizer="adam"),
            "2048x2": FitConfig(1500, optimizer="adam", learning_rate=5e-4),
        },
        {"noise": 20, "gender": 50, "snr": 20},
        dae_per_speaker=40,
    ),
    "small": Scale(
        dict.fromkeys(EXPERIMENTS, "512x2"),
        FitConfig(40, optimizer="adam"),
        {
            "128": FitConfig(150, optimizer="adam"),
            "2048x2": FitConfig(20, batch_size=250, optimizer="adam", learning_rate=5e-4),
        },
        {"noise": 4, "gender": 1, "snr": 1},
    ),
    "bundled": Scale(
        dict.fromkeys(EXPERIMENTS, "512x2"),
        FitConfig(500, optimizer="adam"),
        {
            "128": FitConfig(1500, optimizer="adam"),
            "2048x2": FitConfig(800, batch_size=500, optimizer="adam", learning_rate=5e-4),
        },
        {"noise": 20, "gender": 0, "snr": 0},
    ),
}


@dataclass(frozen=True)
class ExperimentConfig:
    """One call of `run`.

    Attributes:
        experiment: One of `EXPERIMENTS`.
        speech: TIMIT, or any tree with TRAIN and TEST; None for the bundled corpus.
        noise: Folder of noises to mix with it.
        noise_types: Names of noises: the experiment 'noise' trains one expert for each, and the
            other experiments mix all data with them; () for the default of the scale.
        scale: Key of `SCALES`; None for 'bundled', with ``speech`` 'paper'.
        out: Folder to write; None for runs/mnn_EXPERIMENT_SCALE.
        models: Folder of the models, which experiments may share; None for OUT/models.
        seed: Of data, weights and dropout.
        gpu: As ``--gpu``.
    """

    experiment: str
    speech: Path | None = None
    noise: Path | None = None
    noise_types: tuple[str, ...] = ()
    scale: str | None = None
    out: Path | None = None
    models: Path | None = None
    seed: int = 0
    gpu: str = "0"

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense or do not go together."""
        if self.experiment not in EXPERIMENTS:
            names = ", ".join(EXPERIMENTS)
            raise ValueError(f"experiment is {self.experiment!r}; give one of {names}")
        if self.scale is not None and self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; give one of {', '.join(SCALES)}")
        for name in self.noise_types:
            if self.noise_types.count(name) > 1:
                raise ValueError(f"noise {name!r} occurs twice; give each once")
        if (self.speech is None) != (self.noise is None):
            raise ValueError("--timit and --noise go together")

    @property
    def scale_name(self) -> str:
        """The scale, also where it is left open."""
        return self.scale or ("bundled" if self.speech is None else "paper")

    @property
    def folder(self) -> Path:
        """The folder to write, also where it is left open."""
        return self.out or Path("runs") / f"mnn_{self.experiment}_{self.scale_name}"

    @property
    def noises(self) -> tuple[str, ...]:
        """Names of the noises, also where they are left open; () for all."""
        if self.noise_types:
            return self.noise_types
        # Sizes and noises go by different things: --scale bundled may be asked for on TIMIT.
        bundled = self.speech is None
        kind = "bundled" if bundled else self.scale_name.replace("bundled", "paper")
        return (NOISE_TYPES if self.experiment == "noise" else MIXED_NOISES)[kind]


@dataclass(frozen=True)
class Condition:
    """A condition that one expert is trained for, and that is one row of the test.

    Attributes:
        name: Name of the expert and of the row.
        noises: Patterns of the noise's name; () for all.
        gender: 'F', 'M' or '' for both.
        snr_db: SNR of the test mixtures.
    """

    name: str
    noises: tuple[str, ...] = ()
    gender: str = ""
    snr_db: float = EXPERT_SNRS_DB[0]

    @property
    def filters(self) -> dict[str, list[str]]:
        """Conditions on the training data of the expert, for `mnn.conditions.matching`."""
        found = {"gender": [self.gender], "noise": list(self.noises)}
        return {column: patterns for column, patterns in found.items() if any(patterns)}


def conditions_of(experiment: str, noises: Sequence[str]) -> list[Condition]:
    """Returns the conditions of an experiment; each has its expert.

    Args:
        experiment: One of `EXPERIMENTS`.
        noises: Names: an expert each for experiment noise, otherwise what all are mixed with;
            then () is for all that there are.
    """
    if experiment == "noise":
        return [Condition(name, (name,)) for name in noises]
    mixed = tuple(noises)
    if experiment == "gender":
        return [Condition(name, mixed, gender=key) for name, key in GENDERS.items()]
    return [Condition(f"{snr_db:g} dB", mixed, snr_db=snr_db) for snr_db in SNRS_DB]


def plan_tests(
    condition: Condition,
    utterances: Sequence[Utterance],
    noises: Sequence[Noise],
    num_each: int,
    seed: int,
) -> list[MixturePlan]:
    """Plans the test mixtures of a condition.

    Args:
        condition: See there.
        utterances: Of test speakers.
        noises: Parts that are not trained on.
        num_each: Utterances for each noise; 0 for all.
        seed: Of the noise segments.

    Raises:
        ValueError: No utterance or noise meets the condition.
    """
    if condition.noises:
        noises = matching(noises, {"noise": condition.noises})
    if condition.gender:
        utterances = matching(utterances, {"gender": [condition.gender]})
    return spread_mixtures(utterances, noises, [condition.snr_db], num_each or None, seed)


def selections() -> list[tuple[str, str, str]]:
    """Returns (metric, scoring, net of the autoencoder) of all that is compared."""
    plain = [("snr", "paper", net) for net in DAES]
    return plain + [("ae", scoring, net) for scoring in SCORINGS for net in DAES]


def combination(net: str) -> str:
    """Returns the name of the estimate that is all of them, weighted as an autoencoder says."""
    return f"combined {net}"


def all_selections() -> list[str]:
    """Returns the names of the `selections` ('ae voiced 128') and of the combinations."""
    return [" ".join(each) for each in selections()] + [combination(net) for net in DAES]


def judge_mixture(
    plan: MixturePlan, experts: Sequence[Expert], daes: dict[str, Autoencoder]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Runs all experts on a mixture, scores what they give, and lets all selections choose.

    Args:
        plan: The mixture.
        experts: The pool.
        daes: Autoencoders by net.

    Returns:
        Scores by expert and metric, including combinations of experts, and the pick by selection
        ('ae paper 128').
    """
    mixture = render(plan)
    noisy = mixture.noisy.astype(np.float32)
    bounds = segment_bounds(len(noisy), None)
    scores: dict[str, dict[str, float]] = {}
    picks: dict[str, str] = {}
    signals: list[np.ndarray] = []

    def score(signal: np.ndarray) -> dict[str, float]:
        return {name: SCORES[name](mixture.clean, signal).value for name in METRICS}

    keys = [(expert.name, expert.sha256) for expert in experts]
    for net, dae in daes.items():
        chosen = [(metric, scoring) for metric, scoring, own in selections() if own == net]
        needs = dict.fromkeys(name for each in chosen for name in needs_of(*each))
        hearings = Arbiter(dae, tuple(needs)).hear(noisy, experts, keep=not signals)
        for hearing in hearings:
            if hearing.reason:
                raise ValueError(f"{hearing.expert.name}: {hearing.reason}")
            if hearing.signal is not None:
                signals.append(hearing.signal.astype(np.float64))
                scores[hearing.expert.name] = score(signals[-1])
        hop = dae.conventions.stft.hop
        found = [hearing.statistics for hearing in hearings if hearing.statistics is not None]
        sums = [segment_sums(own, bounds, hop) for own in found]
        for metric, scoring in chosen:
            _, cost = costs(sums, metric, scoring)
            picks[f"{metric} {scoring} {net}"] = keys[pick(cost, keys)[0]][0]
        _, cost = costs(sums)
        both = combination(net)
        scores[both] = score(np.tensordot(soft_weights(cost)[:, 0], signals, 1))
        picks[both] = both
    return scores, picks


def run(config: ExperimentConfig, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Trains, tests and tabulates; writes everything to ``config.folder``.

    Args:
        config: Which experiment, on what.
        say: Gets lines that say what is being done.

    Returns:
        What results.json holds: tables, confusions, hashes of the models, seconds.

    Raises:
        ValueError: Data, models or folders are not as they should be.
        OSError: A file can't be read or written.
    """
    folder = config.folder
    cli.check_folder(folder)
    with held(folder):
        return _run_alone(config, say or (lambda line: None))


def _run_alone(config: ExperimentConfig, say: Callable[[str], None]) -> dict[str, Any]:
    started = time.perf_counter()
    scale = SCALES[config.scale_name]
    conditions = conditions_of(config.experiment, config.noises)
    plans = test_plans(
        conditions, scale.num_test[config.experiment], config.speech, config.noise, config.seed
    )
    paths = _train(config, conditions, scale, say)
    trained = time.perf_counter()
    rows = _judge(config, plans, paths)
    names = [condition.name for condition in conditions]
    table = tabulate(rows, names, all_selections())
    default = f"ae {DEFAULT_SCORING} {DAES[0]}"
    result = {
        "experiment": config.experiment,
        "scale": config.scale_name,
        "experts": names,
        "default": default,
        "models": {name: sha for name, (_, sha) in paths.items()},
        "table": table,
        "confusion": {
            which: confusion(rows, names, which) for which in (default, f"ae paper {DAES[0]}")
        },
        "published": {
            metric: {
                "experts": published.EXPERTS[config.experiment],
                "columns": published.COLUMNS,
                "rows": tables[config.experiment],
            }
            for metric, tables in published.TABLES.items()
        },
        "seconds": {
            "training": trained - started, "testing": time.perf_counter() - trained,
        },
    }  # fmt: skip
    _write(config.folder, result, rows)
    return result


def file_name(name: str) -> str:
    """Returns the file name of a model in the folder of models, such as '-5_dB.h5'."""
    return f"{name.replace(' ', '_')}.h5"


def _train(
    config: ExperimentConfig,
    conditions: Sequence[Condition],
    scale: Scale,
    say: Callable[[str], None],
) -> dict[str, tuple[Path, str]]:
    """Trains what is not there yet; returns the path and hash of each model."""
    speech = () if config.speech is None else (config.speech,)
    data = DataOptions(speech, config.noise, snrs_db=EXPERT_SNRS_DB, seed=config.seed)
    models = config.models or config.folder / "models"

    def job(name: str, what: str, net: str, fit: FitConfig, **more: Any) -> TrainConfig:
        out = models / file_name(name)
        more = {"data": data, **more}
        fit = replace(fit, seed=config.seed)
        return TrainConfig(what, out, net, fit=fit, gpu=config.gpu, **more)

    jobs = {
        f"dae_{net}": job(
            f"dae_{net}", "dae", net, scale.dae_fits[net], per_speaker=scale.dae_per_speaker
        )
        for net in DAES
    }
    net = scale.expert_nets[config.experiment]
    for own in conditions:
        mixed = replace(data, snrs_db=(own.snr_db,))
        jobs[own.name] = job(
            own.name, "expert", net, scale.expert_fit, data=mixed, conditions=own.filters
        )
    paths = {}
    for name, asked in jobs.items():
        say(f"\n{name}: {asked.out}")
        for line in lines_of(train(asked, say)):
            say(line)
        paths[name] = asked.out, sha256_of(asked.out)
    return paths


def test_plans(
    conditions: Sequence[Condition],
    num_each: int,
    speech: Path | None = None,
    noise: Path | None = None,
    seed: int = 0,
) -> list[tuple[Condition, MixturePlan]]:
    """Returns the test mixtures of all conditions.

    Args:
        conditions: See `conditions_of`.
        num_each: Utterances for each condition and noise; 0 for all.
        speech: Tree with TEST; None for the bundled corpus.
        noise: Folder of noises to mix with it.
        seed: Of the noise segments.

    Raises:
        ValueError: No utterance or noise meets a condition.
    """
    utterances, noises = corpus.recordings(speech, noise, "TEST")
    return [
        (condition, plan)
        for condition in conditions
        for plan in plan_tests(condition, utterances, noises, num_each, seed)
    ]


def _judge(
    config: ExperimentConfig,
    plans: Sequence[tuple[Condition, MixturePlan]],
    paths: dict[str, tuple[Path, str]],
) -> list[dict[str, Any]]:
    """Returns a row for each mixture; rows of an earlier run with the same models are kept."""
    daes = {net: Autoencoder(paths[f"dae_{net}"][0]) for net in DAES}
    experts = [
        open_expert(path, name) for name, (path, _) in paths.items() if not name.startswith("dae_")
    ]
    models = fingerprint(
        [f"{name} {sha}" for name, (_, sha) in paths.items()]
        + all_selections()
        + [f"version {VERSION}"]
    )
    path = config.folder / "rows.jsonl"
    known = _read_rows(path, models)
    write_text(path, "".join(json.dumps(row) + "\n" for row in known.values()))
    rows = []
    for condition, plan in cli.progress(plans, total=len(plans), label="testing"):
        key = fingerprint([condition.name, *description([plan])])
        if key not in known:
            try:
                scores, picks = judge_mixture(plan, experts, daes)
            except ValueError as error:
                _logger.warning("skipped in the test: %s", cli.one_line(error))
                continue
            known[key] = {
                "key": key,
                "models": models,
                "condition": condition.name,
                "name": plan.relative_path.as_posix(),
                "scores": {
                    name: {m: v if math.isfinite(v) else None for m, v in own.items()}
                    for name, own in scores.items()
                },
                "picks": picks,
            }
            append_text(path, json.dumps(known[key]) + "\n")
        rows.append(known[key])
    if not rows:
        raise ValueError("no test mixture could be made; the reasons stand above")
    return rows


@dataclass
class Row:
    """A line of the journal of mixtures, as far as it is always alike."""

    models: str
    key: str
    scores: dict[str, dict[str, int | float | None]]
    picks: dict[str, str]


def _read_rows(path: Path, models: str) -> dict[str, dict[str, Any]]:
    rows = {}
    if path.exists():
        for row in schema.lines(path, dict[str, Any]):
            with contextlib.suppress(schema.SchemaError):
                if schema.check(row, Row).models == models:
                    rows[row["key"]] = row
    return rows


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws SDR by test condition: experts, chance, selections, oracle; the published beside."""
    names, default = result["experts"], result["default"]
    lines = [ln for ln in result["table"] if ln["metric"] == "sdr" and ln["condition"] != "all"]
    columns = [*names, "chance", "snr paper 128", "ae paper 128", default, "oracle"]
    num_experts = len(names)
    own = result["published"]["sdr"]
    figure = matplotlib.figure.Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    ours = {line["condition"]: [line[c] for c in columns] for line in lines if line["n"]}
    places = [*range(num_experts + 1), num_experts + 1, num_experts + 3, num_experts + 5]
    paper = {name: [values[place] for place in places] for name, values in own["rows"].items()}
    labels = [*(f"expert {n}" for n in names), "chance", "eq. 11, 128", "eq. 10, 128",
              f"{default.split()[1]}, 128", "oracle"]  # fmt: skip
    for ax, groups, heads, title in (
        (axes[0], ours, labels, f"ours ({result['scale']} scale)"),
        (axes[1], paper, [h for h in labels if h != labels[-2]], published.SOURCE),
    ):
        width = 0.8 / len(heads)
        for index, head in enumerate(heads):
            x = [place + (index - len(heads) / 2 + 0.5) * width for place in range(len(groups))]
            heights = [values[index] for values in groups.values()]
            color = COLORS[labels.index(head) % len(COLORS)]
            ax.bar(x, heights, width, label=head, color=color)
        ax.set_xticks(range(len(groups)), list(groups))
        ax.set_title(title)
        ax.axhline(0, color="black", linewidth=0.6)
    axes[0].set_ylabel("SDR in dB")
    axes[0].legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _write(out: Path, result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    picks, names = list(rows[0]["picks"]), list(rows[0]["scores"])
    table = [
        {"condition": row["condition"], "name": row["name"]}
        | {f"{metric} {name}": row["scores"][name][metric] for metric in METRICS for name in names}
        | {f"pick {which}": row["picks"][which] for which in picks}
        for row in rows
    ]
    write_text(out / "scores.csv", csv_text(table, list(table[0])))
    write_text(out / "report.md", report_markdown(result))
    write_json(out / "results.json", {**result, **run_info()})
    draw(result, out / "report.png")


# --------------------------------------------------------------------------------------------
# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        config = ExperimentConfig(
            options.experiment, options.timit, options.noise, tuple(options.noise_types or ()),
            options.scale, options.out, options.models, options.seed, options.gpu,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    cli.log_to_stderr()
    return cli.run(lambda: _print_run(config))


def _print_run(config: ExperimentConfig) -> int:
    result = run(config, lambda line: print(line, flush=True))
    training, testing = (result["seconds"][name] for name in ("training", "testing"))
    print(report_markdown(result))
    print(f"total time  {training + testing:.0f} s, training {training:.0f} s")
    print(f"results     {config.folder.resolve()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mnn.experiments",
        description="Train experts and autoencoders, let them choose, and print the paper's "
        "tables beside ours. The same command goes on after an interruption.",
        **cli.examples(
            "python -m mnn.experiments noise",
            "python -m mnn.experiments snr --timit TIMIT --noise noises -o runs/mnn_snr",
        ),
    )
    add = parser.add_argument
    add("experiment", choices=EXPERIMENTS, help="let the experts differ in this")
    add("--timit", type=Path, metavar="DIR",
        help="read speech from TIMIT, or from any tree with TRAIN and TEST")  # fmt: skip
    add("--noise", type=Path, metavar="DIR", help="mix these noise recordings (with --timit)")
    add("--noise-types", nargs="+", metavar="NAME",
        help="take noises of these names: the experiment noise trains an expert for each (default: "
        "birds typing motorcycle, or engine for it), the others mix them (default: all; open "
        "scale: ten)")  # fmt: skip
    add("--scale", choices=tuple(SCALES),
        help="take sizes and iterations of this scale (default: bundled, with --timit paper; open "
        "is "
        "for the corpus of speech.opencorpus)")  # fmt: skip
    add("-o", "--out", type=Path, metavar="DIR",
        help="write to this folder (default runs/mnn_EXPERIMENT_SCALE)")  # fmt: skip
    add("--models", type=Path, metavar="DIR",
        help="keep models in this folder (default OUT/models); experiments of one scale that share "
        "it train the autoencoders once")  # fmt: skip
    add("--seed", **cli.SEED)
    add("--gpu", **cli.GPU)
    return parser


if __name__ == "__main__":
    sys.exit(main())
