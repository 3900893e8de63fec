"""Lets several experts enhance recordings and keeps the result that a judge finds best.

::

    python -m mnn.select                                          # shipped experts, bundled clips
    python -m mnn.select --experts a.h5 b.h5 c.icse noisy/ -o chosen/
    python -m mnn.select --experts a.h5 b.h5 --candidates rnnoise=DIR noisy/ -o chosen/
    python -m mnn.select --selector-experts a.icse b.icse --experts a.h5 b.h5 noisy/ -o chosen/
    python -m mnn.select --calibration pool.json noisy/ -o chosen/          # of mnn.calibrate

Experts may be of any kind (`mnn.expert_files`); `mnn.scoring` says how they are scored. Every file
is given to all of them, one is chosen, and its signal is written with the rate, channels, length,
format and place in the tree of the file. With ``--granularity segment`` the choice is made anew
every few seconds, with cross-fades; with ``--combine`` all estimates are added with weights that
follow from their scores. Experts over samples are scaled to fit the mixture (`mnn.arbiter`).

``--selector-experts`` names compressed copies of the experts in the same order: these are run to
choose, and of ``--experts`` only the winner is run. ``--check`` runs them all and says how often
they would have chosen the same.

All channels of a file share one choice, for which their statistics are added.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mnn.arbiter import Arbiter
from mnn.calibration import read_calibration
from mnn.dae import Autoencoder
from mnn.expert_files import Expert
from mnn.pool import open_pool
from mnn.ranker import Ranker
from mnn.scoring import DEFAULT_JUDGE, DEFAULT_SCORING, JUDGES, METRICS, SCORINGS, needs_of
from mnn.selector import Selector
from speech.base import cli
from speech.base.cli import natural_number
from speech.base.files import remove_leftovers, write_json
from speech.base.words import shown
from speech.data import corpus
from speech.data.made import MadeFiles
from speech.data.prepared import write_mixtures
from speech.sound.audio import SAMPLE_RATE_HZ, is_audio_name, read_multichannel
from speech.sound.audiofiles import (
    at_16k,
    file_row,
    plan_outputs,
    put_channel,
    say_turned_down,
    write_like,
)

_logger = logging.getLogger("speech")

_MODELS = Path(__file__).resolve().parent.parent / "models"

#: Used when none is named.
DEFAULT_DAE = _MODELS / "dae_128.h5"
DEFAULT_RANKER = _MODELS / "ranker.icse"
DEFAULT_EXPERTS = tuple(_MODELS / f"expert_{name}.icse" for name in ("birds", "typing", "engine"))

DEFAULT_OUT = Path("runs") / "select"
SEGMENT_SECONDS = 2.0
COMBINATIONS = ("files", "bands")

#: Options of this command and of `mnn.calibrate`.
CANDIDATES: dict[str, Any] = {
    "type": cli.named_path,
    "action": "append",
    "default": [],
    "metavar": "NAME=DIR",
    "help": "take files that another tool has made of the noisy ones as an expert; repeatable",
}
RANKER: dict[str, Any] = {
    "type": Path,
    "default": DEFAULT_RANKER,
    "metavar": "FILE",
    "help": "judge by this ranker (default: the shipped one)",
}

#: The clips that are made where no input is named: so many for each bundled noise.
NUM_CLIPS_EACH = 2
CLIPS_SNR_DB = 0.0


@dataclass(frozen=True)
class SelectConfig:
    """What to choose from, and how.

    Attributes:
        inputs: Noisy files and folders; none for noisy test clips of the bundled corpus.
        out: Folder to write, or a file for one file.
        experts: Model files of any kind (`mnn.expert_files`).
        candidates: Name and folder of files that other tools have made of the inputs.
        selector_experts: Compressed copies of the experts, in their order, which choose; of
            ``experts`` only the winner is run.
        check: Whether all experts are run all the same, to count how often both choose alike.
        judge: One of `mnn.scoring.JUDGES`; None for the ranker, or for the autoencoder where
            ``dae``, ``metric`` or ``scoring`` is another than the shipped judges go with.
        ranker: Model file of the ranker.
        calibration: File of `mnn.calibrate` about the experts that are judged and this ranker;
            None for none.
        dae: Model file of the autoencoder of speech.
        metric: Key of `mnn.scoring.METRICS`.
        scoring: Key of `mnn.scoring.SCORINGS`.
        num_draws: Draws of dropout that the error is averaged over; 0 for none.
        seed: Of these draws.
        segment_s: Length of a segment in seconds, each with its own choice; None for one choice a
            file.
        combine: 'files' to add all estimates, weighted by their scores, 'bands' to weight them anew
            for each 64 ms and each band (which a ranker does); '' to choose one.
        strict: Whether the first model, file or estimate that is no good is an error.
    """

    inputs: tuple[Path, ...] = ()
    out: Path = DEFAULT_OUT
    experts: tuple[Path, ...] = DEFAULT_EXPERTS
    candidates: tuple[tuple[str, Path], ...] = ()
    selector_experts: tuple[Path, ...] = ()
    check: bool = False
    judge: str | None = None
    ranker: Path = DEFAULT_RANKER
    calibration: Path | None = None
    dae: Path = DEFAULT_DAE
    metric: str = "ae"
    scoring: str = DEFAULT_SCORING
    num_draws: int = 0
    seed: int = 0
    segment_s: float | None = None
    combine: str = ""
    strict: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for values that make no sense or do not go together."""
        if self.selector_experts:
            if len(self.selector_experts) != len(self.experts):
                raise ValueError(
                    f"{len(self.selector_experts)} --selector-experts for "
                    f"{len(self.experts)} --experts: give as many, in the same order"
                )
            if self.candidates:
                raise ValueError(
                    "--candidates have no compressed copies; leave out --selector-experts"
                )
        elif self.check:
            raise ValueError("--check compares --selector-experts with --experts")
        if self.judge is not None and self.judge not in JUDGES:
            raise ValueError(f"--judge is {self.judge!r}; give one of {', '.join(JUDGES)}")
        if self.judged_by != "autoencoder" and self.metric != "ae":
            raise ValueError("eq. (11) is of the autoencoder: --metric snr goes with no ranker")
        if self.calibration is not None:
            if self.judged_by != "ranker":
                raise ValueError("--calibration goes with --judge ranker")
            if self.scoring == "paper":
                raise ValueError(
                    "--calibration was made with fitted levels; --scoring paper is not"
                )
            if self.check:
                raise ValueError("--calibration is of the selectors: --check compares nothing")
        if self.combine not in ("", *COMBINATIONS):
            raise ValueError(
                f"--combine is {self.combine!r}; give one of {', '.join(COMBINATIONS)}"
            )
        if self.combine == "bands" and self.judged_by == "autoencoder":
            raise ValueError(
                "--combine bands needs the errors that a ranker expects; choose another "
                "--judge, or --combine files"
            )
        if self.segment_s is not None and not 0.1 <= self.segment_s <= 3600:
            raise ValueError(f"--segment-seconds is {self.segment_s}; give 0.1 to 3600")

    @property
    def judged_by(self) -> str:
        """Who judges, also where it is left open."""
        if self.judge is not None:
            return self.judge
        shipped = (DEFAULT_DAE, "ae", DEFAULT_SCORING)
        return DEFAULT_JUDGE if (self.dae, self.metric, self.scoring) == shipped else "autoencoder"


@dataclass(eq=False)
class SelectResult:
    """What `select` did.

    Attributes:
        config: What was asked for.
        selector: What chose.
        refused: Reasons of the experts that were refused.
        files: The row of each file, from `select_file`.
        skipped: Input and reason of those that failed.
        wall_s: What it took, without opening the models.
    """

    config: SelectConfig
    selector: Selector
    refused: Sequence[str]
    files: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def picks(self) -> Counter[str]:
        """How many files each expert has won."""
        picks = Counter({expert.name: 0 for expert in self.selector.experts})
        picks.update(row["pick"] for row in self.files)
        return picks

    @property
    def audio_s(self) -> float:
        """Seconds of audio, channels counted apart."""
        return sum(row["audio_seconds"] * row["channels"] for row in self.files)

    @property
    def agreement(self) -> float | None:
        """Share of the choices that experts and selectors have made alike; None unless checked."""
        found = self.selector.agreement
        return sum(found) / len(found) if found else None

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain JSON values."""
        config, dae = self.config, self.selector.arbiter.dae.file
        seconds = {name: float(value) for name, value in self.selector.seconds.items()}
        return {
            "judge": config.judged_by,
            "ranker": _source(self.selector.ranker),
            "calibration": str(config.calibration) if config.calibration else None,
            "dae": {"source": str(dae.path), "sha256": dae.sha256},
            "experts": [_described(expert) for expert in self.selector.experts],
            "selector_experts": [_described(expert) for expert in self.selector.selectors],
            "refused": list(self.refused),
            "metric": config.metric,
            "scoring": config.scoring,
            "draws": config.num_draws,
            "seed": config.seed,
            "segment_seconds": config.segment_s,
            "combine": config.combine or None,
            "files": self.files,
            "skipped": [{"input": source, "reason": why} for source, why in self.skipped],
            "picks": dict(self.picks),
            "agreement": self.agreement,
            "audio_seconds": self.audio_s,
            "seconds": seconds | {"wall": self.wall_s},
        }


def select(
    config: SelectConfig,
    *,
    on_start: Callable[[Selector, Sequence[Path]], None] | None = None,
    on_file: Callable[[Path, dict[str, Any]], None] | None = None,
) -> SelectResult:
    """Chooses for every file and writes the results.

    Args:
        config: What to choose from, and how.
        on_start: Gets the selector and the path of each file below its input folder.
        on_file: Gets the path and the row of each file, as soon as it is written.

    Raises:
        ValueError: The autoencoder is refused, no expert is left, or inputs and outputs do not go
            together; if ``strict``, whatever else fails.
        OSError: A file can't be read or written.
    """
    inputs, out = config.inputs, config.out
    filled = [] if inputs else [out / name for name in ("noisy", "clean", "selected")]
    cli.check_out(out, [folder for _, folder in config.candidates], filled)
    result = SelectResult(config, *open_selector(config))
    if not inputs:
        inputs, out = (_bundled_clips(config.out),), config.out / "selected"
    jobs = plan_outputs(inputs, out)
    _check_candidates(jobs, config.candidates)
    for folder in {target.parent for _, target in jobs}:
        remove_leftovers(folder)
    folders = [item for item in inputs if item.is_dir()]
    relatives = [_below(folders, source) for source, _ in jobs]
    for expert in result.selector.experts:
        if expert.kind == "folder":
            MadeFiles(expert.source).check_apart(relatives)
    if on_start is not None:
        on_start(result.selector, relatives)
    started = time.perf_counter()
    todo = cli.progress(zip(jobs, relatives, strict=True), total=len(jobs), label="selecting")
    for (source, target), relative in todo:
        try:
            row = select_file(result.selector, source, relative, target)
        except ValueError as error:
            if config.strict:
                raise
            result.skipped.append((str(source), cli.one_line(error)))
            continue
        result.files.append(row)
        if on_file is not None:
            on_file(relative, row)
        for name, reason in row["disqualified"].items():
            words = cli.one_line(ValueError(f"{source}: {name}: {reason}"))
            _logger.warning("disqualified for %s", words)
            if config.strict:
                raise ValueError(f"{name}: {reason}")
    result.wall_s = time.perf_counter() - started
    return result


def _below(folders: Sequence[Path], source: Path) -> Path:
    """Returns the path of a file below the last of the folders that holds it, or its name."""
    roots = [folder for folder in folders if source.is_relative_to(folder)]
    return source.relative_to(roots[-1]) if roots else Path(source.name)


def select_file(selector: Selector, source: Path, relative: Path, target: Path) -> dict[str, Any]:
    """Chooses for one file and writes the result.

    Args:
        selector: How.
        source: The noisy file.
        relative: Its path below the input folder, or its name.
        target: The file to write.

    Returns:
        The row of the report: JSON values only.

    Raises:
        ValueError: The file can't be read or written, or no expert is left.
    """
    audio = read_multichannel(source)
    numbers = range(audio.samples.shape[1])
    decision, signals = selector.choose([at_16k(audio, number) for number in numbers], relative)
    for number in numbers:
        put_channel(audio, number, signals.pop(0))
    row = file_row(source, target, audio.source_rate_hz, audio.samples.shape)
    write_like(target, audio, row)
    seconds = [float(bound) / SAMPLE_RATE_HZ for bound in decision.bounds[:-1]]
    counts = Counter(decision.picks)
    return row | {
        "silent": decision.is_silent,
        "scores": dict(zip(decision.names, decision.scores, strict=True)),
        "pick": min(counts, key=lambda name: (-counts[name], name)),
        "segments": [
            {"start_s": start, "pick": name}
            for start, name in zip(seconds, decision.picks, strict=True)
        ],
        "weights": {
            name: [float(weight) for weight in own]
            for name, own in zip(decision.names, decision.weights, strict=True)
        },
        "disqualified": decision.out,
    }


def _check_candidates(
    jobs: Sequence[tuple[Path, Path]], candidates: Sequence[tuple[str, Path]]
) -> None:
    """Refuses to write among the files of another tool, which a chosen one would replace."""
    folders = [folder.resolve() for _, folder in candidates]
    for target, real in ((target, target.resolve()) for _, target in jobs):
        if any(real.is_relative_to(folder) for folder in folders):
            raise ValueError(f"{target}: lies inside a folder of --candidates; choose another -o")


def open_selector(config: SelectConfig) -> tuple[Selector, list[str]]:
    """Opens autoencoder and pool; announces the experts that are refused, and returns why.

    Raises:
        ValueError: The autoencoder is refused or missing, or no expert is left.
    """
    _check_shipped(config)
    dae = Autoencoder(config.dae)
    ranker = None if config.judged_by == "autoencoder" else Ranker(config.ranker)
    opened, refused = open_pool(config.experts, config.candidates, strict=config.strict)
    selectors: list[Expert] = []
    if config.selector_experts:
        copies, more = open_pool(config.selector_experts, strict=config.strict)
        refused = refused + more
        both = [(e, s) for e, s in zip(opened, copies, strict=True) if e and s]
        experts, selectors = [e for e, _ in both], [s for _, s in both]
    else:
        experts = [expert for expert in opened if expert is not None]
    for reason in refused:
        _logger.warning("refused: %s", reason)
    if not experts:
        raise ValueError("no expert is left, all were refused; give others with --experts")
    calibration = None
    if config.calibration is not None and ranker is not None:
        calibration = read_calibration(config.calibration)
        try:
            calibration.require(selectors or experts, ranker)
        except ValueError as error:
            why = f"{config.calibration}: {error}"
            raise ValueError(refused[0] if refused else why) from None
    arbiter = Arbiter(
        dae,
        needs_of(config.metric, config.scoring),
        config.num_draws,
        config.seed,
        fit=config.scoring != "paper",
    )
    selector = Selector(
        arbiter, experts, config.metric, config.scoring, config.segment_s, config.combine,
        selectors, config.check, ranker, config.judged_by, calibration,
    )  # fmt: skip
    return selector, refused


def _check_shipped(config: SelectConfig) -> None:
    shipped = [("autoencoder", "--dae", config.dae)] if config.dae == DEFAULT_DAE else []
    if config.judged_by != "autoencoder" and config.ranker == DEFAULT_RANKER:
        shipped.append(("ranker", "--ranker", config.ranker))
    experts = [path for path in config.experts if path in DEFAULT_EXPERTS]
    shipped += [("expert", "--experts", path) for path in experts]
    for what, option, path in shipped:
        if not path.exists():
            raise ValueError(
                f"{path}: the shipped {what} is not there; train one with python -m mnn.train, "
                f"and name it with {option}"
            )


def _bundled_clips(out: Path) -> Path:
    """Writes noisy test clips of the bundled corpus, the same each time; returns their folder."""
    plans = corpus.spread_mixtures(
        corpus.bundled_speech("TEST"), corpus.bundled_noise("TEST"), [CLIPS_SNR_DB], NUM_CLIPS_EACH
    )
    write_mixtures(plans, out)
    return out / "noisy"


# --------------------------------------------------------------------------------------------
# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    config = _config(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(config, options.json))


def _run(config: SelectConfig, json: Path | None) -> int:
    width = 0

    def start(selector: Selector, relatives: Sequence[Path]) -> None:
        nonlocal width
        width = max(len(shown(str(relative))) for relative in relatives)
        _print_pool(config, selector)

    result = select(
        config,
        on_start=start,
        on_file=lambda relative, row: print(
            _line(row, shown(str(relative)), width, config.combine), flush=True
        ),
    )
    say_turned_down(result.files)
    _print_result(result)
    if json:
        write_json(json, result.to_json())
    are_files = bool(config.inputs) and all(item.is_file() for item in config.inputs)
    return 0 if result.files and not (are_files and result.skipped) else 1


def _print_pool(config: SelectConfig, selector: Selector) -> None:
    for kind, pool in (("expert", selector.experts), ("selector", selector.selectors)):
        for expert in pool:
            digest = f", sha256 {expert.sha256[:12]}" if expert.sha256 else ""
            print(f"{kind:10s}  {expert.name}: {expert.source} ({expert.kind}{digest})")
    for name, judge in (("dae", selector.arbiter.dae), ("ranker", selector.ranker)):
        if judge is not None and (name == "ranker" or config.judged_by != "ranker"):
            print(f"{name:10s}  {judge.file.path} (sha256 {judge.file.sha256[:12]})")
    if len(selector.experts) == 1:
        print("one expert: there is nothing to choose")
    unit = " in dB, the largest wins" if config.metric == "snr" else ", the smallest wins"
    what = {
        "autoencoder": f"{config.metric}, {config.scoring}",
        "ranker": f"of the {'calibrated ' if config.calibration else ''}ranker: expected error, a "
        "share of the speech's energy",
        "both": f"of both: the root of expected error times {config.scoring}",
    }[config.judged_by]
    print(f"scores      {what}{unit}")


def _line(row: dict[str, Any], name: str, width: int, combine: str) -> str:
    scores = "  ".join(
        f"{expert} {score:.0f}" if abs(score) >= 1000 else f"{expert} {score:.4g}"
        for expert, score in row["scores"].items()
    )
    counts = Counter(segment["pick"] for segment in row["segments"])
    picks = row["pick"]
    if len(row["segments"]) > 1:
        picks = ", ".join(f"{expert} x {count}" for expert, count in counts.most_common())
    if combine == "bands":
        picks = "all, by time and band"
    elif combine:
        shares = {expert: sum(own) / len(own) for expert, own in row["weights"].items()}
        picks = " + ".join(f"{100 * share:.0f} % {expert}" for expert, share in shares.items())
    silent = " (silent input)" if row["silent"] else ""
    return f"{name:{width}s}  {scores}  -> {picks}{silent}"


def _print_result(result: SelectResult) -> None:
    seconds, files = result.selector.seconds, result.files
    picks = ", ".join(f"{name} {count}" for name, count in sorted(result.picks.items()))
    print(f"{'best' if result.config.combine else 'picks':12s}{picks}")
    print(
        f"time        {result.audio_s:.1f} s of audio in {result.wall_s:.1f} s: experts "
        f"{seconds.get('experts', 0):.2f} s, judging {seconds.get('judging', 0):.2f} s"
        + (f", selectors {seconds['choosing']:.2f} s" if result.selector.selectors else "")
    )
    if result.agreement is not None:
        print(f"agreement   {100 * result.agreement:.1f} % of {len(result.selector.agreement)} "
              "choices are those of the full experts")  # fmt: skip
    out = Counter(name for row in files for name in row["disqualified"])
    for name, count in sorted(out.items()):
        print(f"out         {name}: {count} of {len(files)} files")
    if files:
        print(f"written     {files[0]['output'] if len(files) == 1 else f'{len(files)} files'}")
    for _, reason in result.skipped:
        print(f"skipped: {reason}", file=sys.stderr)


def _source(ranker: Ranker | None) -> dict[str, Any] | None:
    if ranker is None:
        return None
    return {"source": str(ranker.file.path), "sha256": ranker.file.sha256}


def _described(expert: Expert) -> dict[str, Any]:
    return {
        "name": expert.name,
        "kind": expert.kind,
        "source": str(expert.source),
        "sha256": expert.sha256 or None,
    }


def _config(parser: argparse.ArgumentParser, options: argparse.Namespace) -> SelectConfig:
    """Returns what the options say; exits with code 2 if they make no sense."""
    inputs, models = list(options.inputs), {}
    # Inputs may follow --experts, which takes all it can get.
    for name in ("experts", "selector_experts"):
        given = getattr(options, name) or []
        audio = [path for path in given if path.is_dir() or is_audio_name(path)]
        inputs += audio
        models[name] = tuple(path for path in given if path not in audio)
    combine = options.combine or ""
    if combine and combine not in COMBINATIONS:  # an input may follow it, too
        inputs.append(Path(combine))
        combine = COMBINATIONS[0]
    if not models["experts"] and not options.candidates:
        if options.experts is not None:
            parser.error("--experts names no model file")
        models["experts"] = DEFAULT_EXPERTS
    try:
        config = SelectConfig(
            inputs=tuple(inputs),
            out=options.out,
            **models,
            candidates=tuple(options.candidates),
            check=options.check,
            judge=options.judge,
            ranker=options.ranker,
            calibration=options.calibration,
            dae=options.dae,
            metric=options.metric,
            scoring=options.scoring,
            num_draws=options.draws,
            seed=options.seed,
            segment_s=options.segment_seconds,
            combine=combine,
            strict=options.strict,
        )
    except ValueError as error:
        parser.error(str(error))
    if options.granularity == "utterance":
        return replace(config, segment_s=None)
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mnn.select",
        description="Let several experts enhance each recording and keep the result that a judge "
        "of clean speech, a ranker or an autoencoder, finds best. Without inputs it takes noisy "
        "test clips of the bundled corpus.",
        **cli.examples(
            "python -m mnn.select",
            "python -m mnn.select noisy/ -o chosen/ --experts a.h5 b.icse models/fcn.h5",
            "python -m mnn.select noisy/ --experts a.h5 b.h5 --candidates rnnoise=FOLDER",
            "python -m mnn.select noisy/ --selector-experts a.icse b.icse --experts a.h5 b.h5",
        ),
    )
    add = parser.add_argument
    add("inputs", type=Path, nargs="*", metavar="INPUT",
        help="enhance these audio files or folders")  # fmt: skip
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
        help="write to this folder, or file for one file (default %(default)s)")  # fmt: skip
    add("--json", **cli.JSON)
    add("--strict", action="store_true",
        help="end at the first model, file or estimate that is refused")  # fmt: skip
    pool = parser.add_argument_group("the pool").add_argument
    pool("--experts", type=Path, nargs="+", metavar="FILE",
         help="take these models (.h5, .icse, .onnx) as experts (default: the shipped "
         "ones)")  # fmt: skip
    pool("--candidates", **CANDIDATES)
    pool("--selector-experts", type=Path, nargs="+", metavar="FILE",
         help="let these compressed copies of the experts choose, and run only the "
         "winner")  # fmt: skip
    pool("--check", action="store_true",
         help="compare: run all experts too, and say how often the selectors choose "
         "alike")  # fmt: skip
    how = parser.add_argument_group("how to choose").add_argument
    how("--judge", choices=JUDGES,
        help="let these judge (default: the ranker; the autoencoder with --dae, --metric or "
        "--scoring)")  # fmt: skip
    how("--ranker", **RANKER)
    how("--calibration", type=Path, metavar="FILE",
        help="correct the ranker by what python -m mnn.calibrate has measured of these "
        "experts")  # fmt: skip
    how("--dae", type=Path, default=DEFAULT_DAE, metavar="FILE",
        help="judge by this autoencoder of speech (default: the shipped one)")  # fmt: skip
    how("--metric", choices=METRICS, default="ae",
        help="judge by eq. 10 of the paper (ae) or by eq. 11 (snr; default "
        "%(default)s)")  # fmt: skip
    how("--scoring", choices=SCORINGS, default=DEFAULT_SCORING,
        help="use this form of the error, where paper is the literal one (default "
        "%(default)s)")  # fmt: skip
    how("--draws", type=natural_number, default=0, metavar="N",
        help="average over N draws of dropout; 0 for none (default)")  # fmt: skip
    how("--seed", **cli.SEED)
    how("--granularity", choices=("utterance", "segment"), default="utterance",
        help="choose once per file, or for each segment (default %(default)s)")  # fmt: skip
    how("--segment-seconds", type=float, default=SEGMENT_SECONDS, metavar="S",
        help="let segments last S seconds (default %(default)s)")  # fmt: skip
    how("--combine", nargs="?", const=COMBINATIONS[0], metavar="HOW",
        help="add all estimates instead of choosing one, weighted by their scores (files), or anew "
        "for each 64 ms and each band (bands)")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
