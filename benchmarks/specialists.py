r"""Whether choosing among specialists beats one general network of the same size.

::

    python -m benchmarks.specialists --speech corpus/speech librispeech --noise corpus/noise \
        --json specialists.json

Specialists are the default network over time and frequency (``models/denoise_fp32.icse``), trained
further on one condition alone: a noise, voices of one gender, an SNR, or speech with or without a
room. One more, the generalist gone on, is trained for as long on all of these conditions at once:
what it gains comes from more training on such mixtures, and not from being special. All are packed
into the bytes of ``models/denoise.icse``.

Specialists enhance the test mixtures of their experiment, with voices and parts of noises that are
not in training. What the judges choose (`mnn.select`) is compared with the generalists, mixture by
mixture, in SDR, PESQ-WB and STOI, with 95 % bootstrap intervals. The same command goes on after an
interruption: no training that is done is repeated, and no mixture.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.eq10 import MAX_SAMPLES, MODELS
from benchmarks.judges import SUMS, made, unseen_plans
from eval.metrics import METRICS as SCORES
from eval.statistics import paired_differences
from mnn import experiments
from mnn.arbiter import Arbiter
from mnn.conditions import description
from mnn.dae import Autoencoder
from mnn.expert_files import Expert, Place, open_expert
from mnn.features import fingerprint, level
from mnn.ranker import Ranker
from mnn.scoring import DEFAULT_JUDGE, DEFAULT_SCORING, JUDGES, VERSION, needs_of
from mnn.select import DEFAULT_DAE, DEFAULT_RANKER
from mnn.selector import Selector
from speech.base import cli, schema
from speech.base.files import append_text, held, sha256_of, strict_json, write_json
from speech.data import corpus
from speech.data.corpus import MixturePlan, Utterance, noise_segment
from speech.sound.audio import SAMPLE_RATE_HZ, read_audio
from speech.sound.augment import reverberate, room_response
from speech.sound.mixing import mix_at_snr

INIT, GENERALIST = MODELS / "denoise_fp32.icse", MODELS / "denoise.icse"
TARGET_BYTES, SMALL_TARGET_BYTES = 32700, 16350
METRICS = ("sdr", "pesq_wb", "stoi")

#: Test mixtures for each noise, by experiment.
MIXTURES = {"noise": 20, "gender": 8, "snr": 4, "room": 4}

#: Tests of the specialists by noise with the generalist in the pool: their noises, and others.
KNOWN, UNSEEN = "all three, and the generalist", "unseen, and the generalist"

#: Systems that are no specialist and no choice.
NOISY, GENERAL, GENERAL_FP32, GONE_ON = "noisy", "generalist", "generalist, FP32", "all"
ORACLE = "oracle"
BASES = (GENERAL, GENERAL_FP32, GONE_ON)

#: The form of selectors that save time, and what share of a specialist's training they have.
SMALL, SMALL_SHARE = "small", 0.5

#: The tests have none of these; so does the training, for the generalist that goes on as well.
OFF = (
    "second-noise", "babble", "synthetic-noise", "self-noise", "noise-only", "speech-only",
    "clipping", "codecs", "band-limit", "microphones",
)  # fmt: skip


@dataclass(frozen=True)
class Specialty:
    """A condition that a network is trained further on.

    Attributes:
        noises: Names of the noises; () for those of `mnn.experiments.MIXED_NOISES`.
        gender: 'F' or 'M'; '' for all voices.
        snr_range_db: (low, high), from which SNRs are drawn.
        room_share: Pieces whose speech is in a room.
    """

    noises: tuple[str, ...] = ()
    gender: str = ""
    snr_range_db: tuple[float, float] = (-4.0, 4.0)
    room_share: float = 0.0


#: Specialists by experiment and condition, as in `mnn.experiments`, and `room`.
SPECIALISTS = {
    "noise": {name: Specialty((name,)) for name in experiments.NOISE_TYPES["open"]},
    "gender": {name: Specialty(gender=key) for name, key in experiments.GENDERS.items()},
    "snr": {
        f"{snr_db:g} dB": Specialty(snr_range_db=(snr_db - 1, snr_db + 1))
        for snr_db in experiments.SNRS_DB
    },
    "room": {"dry": Specialty(), "reverberant": Specialty(room_share=1.0)},
}
EVERYTHING = Specialty(snr_range_db=(-6.0, 6.0), room_share=0.2)


def file_name(name: str) -> str:
    """Returns the name of a specialist's file: '-5 dB' is minus5_db, as the shipped experts are."""
    return name.lower().replace("-", "minus").replace(" ", "_")


def make_folders(
    specialty: Specialty, speech: Sequence[Path], noise: Path, folder: Path
) -> tuple[list[Path], Path]:
    """Links the training data of a specialist into a folder, which `speech.train` reads.

    Args:
        specialty: See there.
        speech: Trees; those whose file names say no gender are left out where it matters.
        noise: Folder with TRAIN.
        folder: Gets ``speech`` and ``noise``.

    Returns:
        What to give as ``--speech`` and as ``--noise``.

    Raises:
        ValueError: No voice or noise is left.
    """
    wanted = specialty.noises or experiments.MIXED_NOISES["open"]
    noises = [item for item in corpus.find_noise(noise, "TRAIN") if item.name in wanted]
    if len(noises) < len(wanted):
        raise ValueError(
            f"{noise}: holds {len(noises)} of the noises {' '.join(wanted)}; give the corpus of "
            "speech.opencorpus"
        )
    for path in (item.path for item in noises):
        _link(path, folder / "noise" / "TRAIN" / path.name)
    if not specialty.gender:
        return list(speech), folder / "noise"
    voices: list[Utterance] = []
    for tree in speech:
        if corpus.has_splits(tree):
            voices += [
                item
                for item in corpus.find_speech(tree, "TRAIN")
                if item.gender == specialty.gender
            ]
    if not voices:
        raise ValueError(f"{speech[0]}: no speaker is known to be {specialty.gender}")
    for item in voices:
        _link(item.path, folder / "speech" / "TRAIN" / item.speaker / item.path.name)
    return [folder / "speech"], folder / "noise"


def _link(path: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(path.resolve())


def training_arguments(
    specialty: Specialty,
    speech: Sequence[Path],
    noise: Path,
    hours: float,
    out: Path,
    size: str = "",
) -> list[str]:
    """Returns the arguments of ``python -m speech.train`` that train a specialist.

    With a ``size``, a network of this form starts anew, at the rate that `speech.train` has for it.
    """
    start = ["--size", size] if size else ["--init", str(INIT), "--learning-rate", "5e-4"]
    return [
        "--network", "tf", *start, "--speech", *map(str, speech),
        "--noise", str(noise), "--hours", f"{hours:g}", "--validate-minutes", f"{60 * hours:g}",
        "--warmup", "20", "--equalizer", "5", "--noise-speed", "1.1",
        "--snr-range", *(f"{snr_db:g}" for snr_db in specialty.snr_range_db),
        "--rooms", f"{specialty.room_share:g}",
        *(word for name in OFF for word in (f"--{name}", "0")),
        "--gpu", "-1", "--workers", "1", "-o", str(out),
    ]  # fmt: skip


def train(
    name: str,
    specialty: Specialty,
    speech: Sequence[Path],
    noise: Path,
    hours: float,
    out: Path,
    size: str = "",
) -> Path:
    """Trains and packs a specialist, unless that is done.

    Args:
        name: Of the specialist.
        specialty: What it is trained on.
        speech: Trees of speech.
        noise: Folder with TRAIN.
        hours: Of clock time.
        out: Folder of all specialists.
        size: Form of a network that starts anew; '' to go on from `INIT`.

    Returns:
        The packed file, of at most `TARGET_BYTES`; half of that for a small one.

    Raises:
        ValueError: No data are left, or a command failed.
    """
    folder = out / file_name(name)
    trees, noises = make_folders(specialty, speech, noise, folder)
    run, packed = folder / "run", out / f"{file_name(name)}.icse"
    arguments = training_arguments(specialty, trees, noises, hours, run, size)
    record = folder / "arguments.json"
    made_from = [*arguments, *([] if size else [sha256_of(INIT)])]
    if packed.exists() and record.exists() and json.loads(record.read_bytes()) == made_from:
        return packed
    common.run_command("speech.train", *arguments)
    model = run / "model.h5"
    target = SMALL_TARGET_BYTES if size else TARGET_BYTES
    if not packed.exists() or packed.stat().st_mtime < model.stat().st_mtime:
        common.run_command(
            "quantization.run", str(model), "--target-bytes", str(target), "--no-score",
            "--gpu", "-1", "-o", str(folder / "packed"),
        )  # fmt: skip
        (folder / "packed" / "model.icse").replace(packed)
    write_json(record, made_from)
    return packed


# --------------------------------------------------------------------------------------------
# Test


def plans_of(
    experiment: str, speech: Path, noise: Path, num_each: int, seed: int
) -> dict[str, list[MixturePlan]]:
    """Returns the test mixtures of an experiment, by condition.

    The experiment `room` has the mixtures of all voices at 0 dB, dry and in rooms of the test part
    (`speech.sound.augment.room_response`).

    Raises:
        ValueError: No utterance or noise meets a condition.
    """
    mixed = experiments.MIXED_NOISES["open"]
    if experiment != "room":
        table = experiments.NOISE_TYPES["open"] if experiment == "noise" else mixed
        conditions = experiments.conditions_of(experiment, table)
        found = experiments.test_plans(conditions, num_each, speech, noise, seed)
        return {
            condition.name: [plan for own, plan in found if own == condition]
            for condition in conditions
        }
    both = experiments.Condition("room", mixed)
    plans = [plan for _, plan in experiments.test_plans([both], num_each, speech, noise, seed)]
    return {"dry": plans, "reverberant": corpus.put_in_rooms(plans, 1.0, "TEST")}


def rendered(plan: MixturePlan) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `MAX_SAMPLES` of a mixture and of its target.

    In a room the target is the direct sound with its early reflections, as in training.

    Returns:
        Noisy, float32, and target, float64 [num_samples] each.

    Raises:
        ValueError: As `speech.data.corpus.render`.
    """
    speech = target = read_audio(plan.utterance.path).samples
    if plan.room is not None:
        speech, target = reverberate(speech, room_response(plan.room))
    mixture = mix_at_snr(speech, noise_segment(plan, len(speech))[0], plan.snr_db)
    target = mixture.gain * target.astype(np.float64)
    return mixture.noisy[:MAX_SAMPLES].astype(np.float32), target[:MAX_SAMPLES]


def score(clean: np.ndarray, signal: np.ndarray) -> dict[str, float]:
    """Returns the score by metric, NaN where there is none."""
    return {name: SCORES[name](clean, signal.astype(np.float64)).value for name in METRICS}


@dataclass(frozen=True)
class Judges:
    """What chooses.

    Attributes:
        arbiter: With the autoencoder.
        ranker: See `mnn.ranker`.
    """

    arbiter: Arbiter
    ranker: Ranker

    def choose(
        self, noisy: np.ndarray, signals: Mapping[str, np.ndarray], experts: Sequence[Expert]
    ) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """Lets all judges choose among estimates.

        Args:
            noisy: The mixture.
            signals: Estimate of each expert, [num_samples], by name.
            experts: Who made them.

        Returns:
            The name that each of `JUDGES` picks; and the sums of estimates by `SUMS`.
        """
        pool = [made(expert, signals[expert.name]) for expert in experts]
        picks = {}
        for judge in JUDGES:
            ranker = None if judge == "autoencoder" else self.ranker
            selector = Selector(self.arbiter, pool, ranker=ranker, judge=judge)
            picks[judge] = selector.choose([noisy])[0].picks[0]
        sums = {}
        for name, how in SUMS.items():
            selector = Selector(
                self.arbiter, pool, combine=how, ranker=self.ranker, judge=DEFAULT_JUDGE
            )
            sums[name] = selector.choose([noisy])[1][0]
        return picks, sums


def compare(
    plan: MixturePlan, experts: Sequence[Expert], generalists: Sequence[Expert], judges: Judges
) -> dict[str, Any]:
    """Lets specialists and generalists enhance a mixture, and judges choose among the specialists.

    Returns:
        'scores' by system and metric, None where there is none; 'picks' by judge.

    Raises:
        ValueError: A network fails, or the mixture can't be made.
    """
    noisy, clean = rendered(plan)
    hearings = judges.arbiter.run(noisy, experts)
    if reasons := [hearing.reason for hearing in hearings if hearing.reason]:
        raise ValueError("; ".join(reasons))
    signals = {h.expert.name: h.signal for h in hearings if h.signal is not None}
    picks, sums = judges.choose(noisy, signals, experts)
    others = {one.name: one.signal(noisy, level(noisy), Place()) for one in generalists}
    scores = {
        name: score(clean, signal)
        for name, signal in {NOISY: noisy, **signals, **sums, **others}.items()
    }
    picks[ORACLE] = max(signals, key=lambda name: np.nan_to_num(scores[name]["sdr"], nan=-np.inf))
    return {"scores": strict_json(scores), "picks": picks}


def compare_all(
    plans: Sequence[MixturePlan],
    experts: Sequence[Expert],
    generalists: Sequence[Expert],
    judges: Judges,
    journal: Path,
) -> list[dict[str, Any]]:
    """Returns a row of `compare` for each mixture; those in the journal are not made again."""
    models = fingerprint(
        [f"{one.name} {one.sha256}" for one in (*experts, *generalists)]
        + [sha256_of(DEFAULT_RANKER), sha256_of(DEFAULT_DAE), f"version {VERSION}"]
    )
    known = {}
    if journal.exists():
        for row in schema.lines(journal, experiments.Row):
            if row.models == models:
                known[row.key] = {"scores": row.scores, "picks": row.picks}
    rows = []
    for plan in cli.progress(plans, total=len(plans), label="testing"):
        key = fingerprint([*description([plan]), f"room {plan.room}"])
        if key not in known:
            known[key] = compare(plan, experts, generalists, judges)
            append_text(journal, json.dumps({"models": models, "key": key, **known[key]}) + "\n")
        rows.append(known[key])
    return rows


def tabulate(rows: Sequence[Mapping[str, Any]], bases: Sequence[str]) -> dict[str, Any]:
    """Returns means and gains of every system, and of what was picked, over the mixtures of a test.

    Args:
        rows: Of `compare`.
        bases: Systems to compare with.

    Returns:
        'mixtures', those in which every system has all scores; 'unscored', the others; 'means' by
        system and metric; and 'gains' by base, system and metric: mean difference and the ends of
        its 95 % interval.
    """
    scored = [
        row
        for row in rows
        if all(value is not None for own in row["scores"].values() for value in own.values())
    ]
    names = [*rows[0]["scores"], *rows[0]["picks"]]
    values = {
        name: np.array([
            [row["scores"][row["picks"].get(name, name)][metric] for metric in METRICS]
            for row in scored
        ]).reshape(-1, len(METRICS))
        for name in names
    }  # fmt: skip
    means = {
        name: dict(zip(METRICS, own.mean(axis=0).tolist(), strict=True)) if scored else {}
        for name, own in values.items()
    }
    gains: dict[str, Any] = {}
    for base in bases:
        gains[base] = {}
        for name, own in values.items():
            found = paired_differences(own - values[base])
            gains[base][name] = {
                metric: [one.mean, one.low, one.high]
                for metric, one in zip(METRICS, found, strict=True)
            }
    return {
        "mixtures": len(scored), "unscored": len(rows) - len(scored), "means": means,
        "gains": gains,
    }  # fmt: skip


def two_stages(
    plans: Sequence[MixturePlan],
    experts: Sequence[Expert],
    selectors: Mapping[str, Sequence[Expert]],
    judges: Judges,
) -> list[dict[str, Any]]:
    """Lets copies of the experts choose, and only the winner run in full.

    Args:
        plans: Test mixtures.
        experts: In full.
        selectors: Copies of each, in their order, by what they are.
        judges: See there; the ranker chooses.

    Returns:
        A row for all experts in full, and one for each kind of copies: 'chosen_by', bytes of the
        copies and of the experts and what has to be read for one choice ('read_bytes'),
        processor seconds for each second of audio, the share of choices that are those of the
        experts in full, and mean SDR in dB.
    """
    names = [one.name for one in experts]
    sizes = [Path(one.source).stat().st_size for one in experts]
    found: dict[str, list[tuple[float, float, int]]] = {}
    for plan in cli.progress(plans, total=len(plans), label="two stages"):
        noisy, clean = rendered(plan)
        for kind, copies in {"experts in full": (), **selectors}.items():
            selector = Selector(
                judges.arbiter, experts, selectors=copies, ranker=judges.ranker, judge=DEFAULT_JUDGE
            )
            started = time.process_time()
            decision, (signal,) = selector.choose([noisy])
            seconds = time.process_time() - started
            sdr_db = SCORES["sdr"](clean, signal.astype(np.float64)).value
            own = (seconds / (len(noisy) / SAMPLE_RATE_HZ), sdr_db, names.index(decision.picks[0]))
            found.setdefault(kind, []).append(own)
    full = next(iter(found.values()))
    rows = []
    for kind, values in found.items():
        own_bytes = [Path(one.source).stat().st_size for one in selectors.get(kind, ())]
        winners = [sizes[place] for _, _, place in values]
        alike = [one[2] == other[2] for one, other in zip(values, full, strict=True)]
        rows.append(
            {
                "chosen_by": kind,
                "mixtures": len(values),
                "selector_bytes": sum(own_bytes),
                "expert_bytes": sum(sizes),
                "read_bytes": sum(own_bytes) + float(np.mean(winners)) if own_bytes else sum(sizes),
                "seconds": float(np.median([value[0] for value in values])),
                "agreement": float(np.mean(alike)),
                "sdr_db": float(np.mean([value[1] for value in values])),
            }
        )  # fmt: skip
    return rows


def format_table(result: Mapping[str, Any], base: str) -> str:
    """Returns the gains over a generalist in Markdown: one row for each test and choice."""
    shown = [*JUDGES, *SUMS, ORACLE, GENERAL_FP32, GONE_ON]
    lines = [
        f"| test | n | system | gain over {base}: SDR, dB | PESQ-WB | STOI |",
        "|---" * 6 + "|",
    ]
    for test, found in result["tests"].items():
        for name in shown:
            if name == base:
                continue
            cells = [
                f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
                for (mean, low, high), digits in zip(
                    found["gains"][base][name].values(), (2, 3, 4), strict=True
                )
            ]
            lines.append("| " + " | ".join([test, str(found["mixtures"]), name, *cells]) + " |")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------
# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.specialists", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--speech", type=Path, nargs="+", required=True, metavar="DIR",
        help="trees of speech: the first, with TRAIN and TEST, is for tests too")  # fmt: skip
    add("--noise", type=Path, required=True, metavar="DIR", help="noises, with TRAIN and TEST")
    add("--experiments", nargs="+", choices=tuple(SPECIALISTS), default=list(SPECIALISTS),
        metavar="NAME", help="compare the specialists of these (default: "
        f"{' '.join(SPECIALISTS)})")  # fmt: skip
    add("--hours", type=cli.amount, default=0.085, metavar="H",
        help="train each specialist for so long by the clock (default %(default)s)")  # fmt: skip
    add("--mixtures", type=cli.positive_number, metavar="N",
        help=f"mixtures for each noise of each test (default {MIXTURES})")  # fmt: skip
    add("-o", "--out", type=Path, default=Path("runs/specialists"), metavar="DIR",
        help="write to this folder (default %(default)s)")  # fmt: skip
    add("--seed", **cli.SEED)
    add("--json", **cli.JSON)
    options = parser.parse_args(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    out = options.out
    cli.check_folder(out)
    with held(out):
        wanted = {GONE_ON: EVERYTHING}
        for experiment in options.experiments:
            wanted |= SPECIALISTS[experiment]
        packed = {
            name: train(name, own, options.speech, options.noise, options.hours, out)
            for name, own in wanted.items()
        }
        generalists = [
            open_expert(path, name)
            for name, path in {
                GENERAL: GENERALIST, GENERAL_FP32: INIT, GONE_ON: packed[GONE_ON]
            }.items()
        ]  # fmt: skip
        judges = Judges(
            Arbiter(Autoencoder(DEFAULT_DAE), needs_of("ae", DEFAULT_SCORING)),
            Ranker(DEFAULT_RANKER),
        )
        tests, stages = {}, []
        for experiment in options.experiments:
            experts = [open_expert(packed[name], name) for name in SPECIALISTS[experiment]]
            plans = plans_of(
                experiment, options.speech[0], options.noise,
                options.mixtures or MIXTURES[experiment], options.seed,
            )  # fmt: skip
            pools = {test: (own, experts) for test, own in plans.items()}
            if experiment == "noise":
                wider = [*experts, generalists[0]]
                every = [plan for own in plans.values() for plan in own]
                unseen = unseen_plans(options.speech[0], options.noise, options.seed)
                pools |= {KNOWN: (every, wider), UNSEEN: (unseen, wider)}
                stages = two_stages(
                    every,
                    [open_expert(out / name / "run" / "model.h5", name) for name in plans],
                    {"packed": experts, f"{SMALL} form": _small(options, out)},
                    judges,
                )
            for test, (own, pool) in pools.items():
                rows = compare_all(own, pool, generalists, judges, out / "rows.jsonl")
                tests[test] = {
                    "experiment": experiment,
                    **tabulate(rows, BASES),
                }
    result = {
        "hours": options.hours,
        "specialists": {name: _about(path) for name, path in packed.items()},
        "generalists": {one.name: _about(Path(one.source)) for one in generalists},
        "tests": tests,
        "two_stages": stages,
    }
    print(format_table(result, GENERAL))
    common.write_result(options.json, strict_json(result))
    return 0


def _small(options: argparse.Namespace, out: Path) -> list[Expert]:
    """Trains small specialists by noise, unless that is done; returns them."""
    return [
        open_expert(
            train(
                f"{SMALL} {name}", own, options.speech, options.noise,
                SMALL_SHARE * options.hours, out, SMALL,
            ),
            name,
        )
        for name, own in SPECIALISTS["noise"].items()
    ]  # fmt: skip


def _about(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


if __name__ == "__main__":
    sys.exit(main())
