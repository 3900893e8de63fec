"""Lets several experts enhance recordings, and keeps what an autoencoder of speech judges best.

::

    python -m mnn.select                                          # shipped experts, bundled clips
    python -m mnn.select --experts a.h5 b.h5 c.icse noisy/ -o chosen/
    python -m mnn.select --experts a.h5 b.h5 --candidates rnnoise=DIR noisy/ -o chosen/
    python -m mnn.select --selector-experts a.icse b.icse --experts a.h5 b.h5 noisy/ -o chosen/

Experts are of any kind (`mnn.pool`); how they are scored says `mnn.scoring`. Every file is given
to all of them, one is chosen, and its signal written with the rate, channels, length, format and
place in the tree that the file has. With ``--granularity segment`` the choice is made anew for each
few seconds and cross-faded; with ``--combine`` all estimates are added with weights that follow
from their scores. Experts over samples are scaled to fit the mixture (`mnn.arbiter`).

With ``--selector-experts``, compressed copies of the experts in the same order, those are run to
choose, and of ``--experts`` only the winner is run. ``--check`` runs them all and says how often
they would have chosen the same.

All channels of a file share one choice: their statistics are added.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.base import cli
from speech.base.cli import natural_number

if TYPE_CHECKING:
    from mnn.pool import Expert
    from mnn.selector import Selector

_MODELS = Path(__file__).resolve().parent.parent / "models"

#: Used when none is named.
DEFAULT_DAE = _MODELS / "dae_128.h5"
DEFAULT_EXPERTS = tuple(_MODELS / f"expert_{name}.icse" for name in ("birds", "typing", "engine"))

DEFAULT_OUT = Path("runs") / "select"
SEGMENT_SECONDS = 2.0

#: The clips that are made where no input is named: so many for each bundled noise.
NUM_CLIPS_EACH = 2
CLIPS_SNR_DB = 0.0


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
    import numpy as np

    from speech.enhance import level_for, writable_subtype
    from speech.sound.audio import (
        SAMPLE_RATE_HZ,
        fit_length,
        read_multichannel,
        resample,
        write_audio,
    )

    audio = read_multichannel(source)
    samples = audio.samples
    channels = [
        resample(np.ascontiguousarray(column), audio.source_rate_hz, SAMPLE_RATE_HZ)
        for column in samples.T
    ]
    if not len(channels[0]):
        raise ValueError(f"{source}: too short, nothing is left at {SAMPLE_RATE_HZ} Hz")
    decision, signals = selector.choose(channels, relative)
    del channels
    for number in range(samples.shape[1]):
        result = resample(signals.pop(0), SAMPLE_RATE_HZ, audio.source_rate_hz)
        samples[:, number] = fit_length(result, len(samples))
    subtype = writable_subtype(target, audio.subtype)
    turned: dict[str, float] = {}
    samples *= level_for(subtype, float(np.abs(samples).max()), turned)
    write_audio(target, samples, audio.source_rate_hz, subtype)
    seconds = [float(bound) / SAMPLE_RATE_HZ for bound in decision.bounds[:-1]]
    counts = Counter(decision.picks)
    return {
        "input": str(source),
        "output": str(target),
        "audio_seconds": len(samples) / audio.source_rate_hz,
        "channels": samples.shape[1],
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
        **turned,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    _check_usage(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.base.files import remove_leftovers
    from speech.enhance import plan_outputs, say_turned_down

    selector, refused = _selector(options)
    inputs, out = options.inputs, options.out
    if not inputs:
        inputs, out = [_bundled_clips(options.out)], options.out / "selected"
    jobs = plan_outputs(inputs, out)
    for folder in {target.parent for _, target in jobs}:
        remove_leftovers(folder)
    roots = {path: item for item in inputs if item.is_dir() for path, _ in jobs
             if path.is_relative_to(item)}  # fmt: skip
    experts = selector.experts
    for kind, pool in (("expert", experts), ("selector", selector.selectors)):
        for expert in pool:
            digest = f"sha256 {expert.sha256[:12]}" if expert.sha256 else "a folder"
            print(f"{kind:10s}  {expert.name}: {expert.source} ({expert.kind}, {digest})")
    print(f"dae         {selector.arbiter.dae.file.path} "
          f"(sha256 {selector.arbiter.dae.file.sha256[:12]})")  # fmt: skip
    if len(experts) == 1:
        print("one expert: there is nothing to choose")
    unit = " in dB, the largest wins" if options.metric == "snr" else ", the smallest wins"
    print(f"scores      {options.metric}, {options.scoring}{unit}")
    width = max(len(_short(source, roots)) for source, _ in jobs)
    rows, skipped = [], []
    started = time.perf_counter()
    for source, target in cli.progress(jobs, total=len(jobs), label="selecting"):
        root = roots.get(source)
        relative = source.relative_to(root) if root else Path(source.name)
        try:
            row = select_file(selector, source, relative, target)
        except ValueError as error:
            if options.strict:
                raise
            skipped.append((str(source), cli.one_line(error)))
            continue
        rows.append(row)
        print(_line(row, _short(source, roots), width), flush=True)
        for name, reason in row["disqualified"].items():
            print(f"disqualified for {source}: {name}: {reason}", file=sys.stderr)
            if options.strict:
                raise ValueError(f"{name}: {reason}")
    say_turned_down(rows)
    _report(options, selector, refused, rows, skipped, time.perf_counter() - started)
    named = all(item.is_file() for item in inputs)
    return 0 if rows and not (named and skipped) else 1


def _short(source: Path, roots: dict[Path, Path]) -> str:
    return str(source.relative_to(roots[source])) if source in roots else source.name


def _line(row: dict[str, Any], name: str, width: int) -> str:
    scores = "  ".join(
        f"{expert} {score:.0f}" if abs(score) >= 1000 else f"{expert} {score:.4g}"
        for expert, score in row["scores"].items()
    )
    counts = Counter(segment["pick"] for segment in row["segments"])
    picks = row["pick"]
    if len(row["segments"]) > 1:
        picks = ", ".join(f"{expert} x {count}" for expert, count in counts.most_common())
    silent = " (silent input)" if row["silent"] else ""
    return f"{name:{width}s}  {scores}  -> {picks}{silent}"


def _report(
    options: argparse.Namespace,
    selector: Selector,
    refused: Sequence[str],
    rows: Sequence[dict[str, Any]],
    skipped: Sequence[tuple[str, str]],
    wall_seconds: float,
) -> None:
    from speech.base.files import write_json

    seconds = {name: float(value) for name, value in selector.seconds.items()}
    picks = Counter({expert.name: 0 for expert in selector.experts})
    picks.update(row["pick"] for row in rows)
    audio_seconds = sum(row["audio_seconds"] * row["channels"] for row in rows)
    print("picks       " + ", ".join(f"{name} {count}" for name, count in sorted(picks.items())))
    print(
        f"time        {audio_seconds:.1f} s of audio in {wall_seconds:.1f} s: experts "
        f"{seconds.get('experts', 0):.2f} s, judging {seconds.get('judging', 0):.2f} s"
        + (f", selectors {seconds['choosing']:.2f} s" if selector.selectors else "")
    )
    agreement = None
    if selector.agreement:
        agreement = sum(selector.agreement) / len(selector.agreement)
        print(f"agreement   {100 * agreement:.1f} % of {len(selector.agreement)} choices are those "
              "of the full experts")  # fmt: skip
    if rows:
        print(f"written     {rows[0]['output'] if len(rows) == 1 else len(rows)}"
              + ("" if len(rows) == 1 else " files"))  # fmt: skip
    for _, reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if options.json:
        dae = selector.arbiter.dae.file
        result = {
            "dae": {"source": str(dae.path), "sha256": dae.sha256},
            "experts": [_described(expert) for expert in selector.experts],
            "selector_experts": [_described(expert) for expert in selector.selectors],
            "refused": list(refused),
            "metric": options.metric,
            "scoring": options.scoring,
            "draws": options.draws,
            "seed": options.seed,
            "segment_seconds": selector.segment_seconds,
            "combine": options.combine,
            "files": list(rows),
            "skipped": [{"input": source, "reason": why} for source, why in skipped],
            "picks": dict(picks),
            "agreement": agreement,
            "audio_seconds": audio_seconds,
            "seconds": seconds | {"wall": wall_seconds},
        }
        write_json(options.json, result)


def _described(expert: Expert) -> dict[str, Any]:
    return {
        "name": expert.name,
        "kind": expert.kind,
        "source": str(expert.source),
        "sha256": expert.sha256 or None,
    }


def _selector(options: argparse.Namespace) -> tuple[Selector, list[str]]:
    """Opens autoencoder and pool; says on stderr which experts were refused.

    Raises:
        ValueError: The autoencoder is refused or missing, or no expert is left.
    """
    from mnn.arbiter import Arbiter
    from mnn.dae import Autoencoder
    from mnn.pool import open_pool
    from mnn.scoring import needs_of
    from mnn.selector import Selector

    paths = options.experts
    _check_shipped(options.dae, paths)
    dae = Autoencoder(options.dae)
    opened, refused = open_pool(paths, options.candidates, strict=options.strict)
    selectors: list[Expert] = []
    if options.selector_experts:
        copies, more = open_pool(options.selector_experts, strict=options.strict)
        refused = refused + more
        both = [(e, s) for e, s in zip(opened, copies, strict=True) if e and s]
        experts, selectors = [e for e, _ in both], [s for _, s in both]
    else:
        experts = [expert for expert in opened if expert is not None]
    for reason in refused:
        print(f"refused: {reason}", file=sys.stderr)
    if not experts:
        raise ValueError("no expert is left, all were refused; give others with --experts")
    arbiter = Arbiter(
        dae,
        needs_of(options.metric, options.scoring),
        options.draws,
        options.seed,
        fit=options.scoring != "paper",
    )
    segment = options.segment_seconds if options.granularity == "segment" else None
    return (
        Selector(
            arbiter, experts, options.metric, options.scoring, segment, options.combine,
            selectors, options.check,
        ),
        refused,
    )  # fmt: skip


def _check_shipped(dae: Path, experts: Sequence[Path]) -> None:
    shipped = [("autoencoder", "--dae", dae)] if dae == DEFAULT_DAE else []
    shipped += [("expert", "--experts", path) for path in experts if path in DEFAULT_EXPERTS]
    for what, option, path in shipped:
        if not path.exists():
            raise ValueError(
                f"{path}: the shipped {what} is not there; train one with python -m mnn.train, "
                f"and name it with {option}"
            )


def _bundled_clips(out: Path) -> Path:
    """Writes noisy test clips of the bundled corpus, the same each time; returns their folder."""
    from speech.data import corpus
    from speech.data.prepared import write_mixtures

    plans = corpus.spread_mixtures(
        corpus.bundled_speech("TEST"), corpus.bundled_noise("TEST"), [CLIPS_SNR_DB], NUM_CLIPS_EACH
    )
    write_mixtures(plans, out)
    return out / "noisy"


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    from speech.sound.audio import is_audio_name

    asked = options.experts is not None
    # Inputs may follow --experts, which takes all it can get.
    for name in ("experts", "selector_experts"):
        given = getattr(options, name) or []
        audio = [p for p in given if p.is_dir() or is_audio_name(p)]
        options.inputs += audio
        setattr(options, name, [path for path in given if path not in audio])
    if asked and not options.experts and not options.candidates:
        parser.error("--experts names no model file")
    if not options.experts and not options.candidates:
        options.experts = list(DEFAULT_EXPERTS)
    if options.selector_experts:
        if len(options.selector_experts) != len(options.experts):
            parser.error(
                f"{len(options.selector_experts)} --selector-experts for "
                f"{len(options.experts)} --experts: give as many, in the same order"
            )
        if options.candidates:
            parser.error("--candidates have no compressed copies; leave out --selector-experts")
    elif options.check:
        parser.error("--check compares --selector-experts with --experts")
    if not 0.1 <= options.segment_seconds <= 3600:
        parser.error(f"--segment-seconds is {options.segment_seconds}; give 0.1 to 3600")


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=DIR")
    return name, Path(path)


def _parser() -> argparse.ArgumentParser:
    from mnn.scoring import DEFAULT_SCORING, METRICS, SCORINGS

    parser = argparse.ArgumentParser(
        prog="python -m mnn.select",
        description="Let several experts enhance each recording and keep what an autoencoder of "
        "speech judges best. Without inputs: noisy test clips of the bundled corpus.",
        **cli.examples(
            "python -m mnn.select",
            "python -m mnn.select noisy/ -o chosen/ --experts a.h5 b.icse models/fcn.h5",
            "python -m mnn.select noisy/ --experts a.h5 b.h5 --candidates rnnoise=FOLDER",
            "python -m mnn.select noisy/ --selector-experts a.icse b.icse --experts a.h5 b.h5",
        ),
    )
    add = parser.add_argument
    add("inputs", type=Path, nargs="*", metavar="INPUT", help="audio files or folders")
    add("-o", "--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
        help="folder, or file for one file (default %(default)s)")  # fmt: skip
    add("--json", **cli.JSON)
    add("--strict", action="store_true",
        help="end at the first model, file or estimate that is no good")  # fmt: skip
    pool = parser.add_argument_group("the pool").add_argument
    pool("--experts", type=Path, nargs="+", metavar="FILE",
         help="models (.h5, .icse, .onnx) of any kind (default: the shipped ones)")  # fmt: skip
    pool("--candidates", type=_named_folder, action="append", default=[], metavar="NAME=DIR",
         help="files that another tool has made of the inputs; repeatable")  # fmt: skip
    pool("--selector-experts", type=Path, nargs="+", metavar="FILE",
         help="compressed copies of the experts, which choose; only the winner is run")  # fmt: skip
    pool("--check", action="store_true",
         help="compare: run all experts too, and say how often the selectors choose "
         "alike")  # fmt: skip
    how = parser.add_argument_group("how to choose").add_argument
    how("--dae", type=Path, default=DEFAULT_DAE, metavar="FILE",
        help="autoencoder of speech (default: the shipped one)")  # fmt: skip
    how("--metric", choices=METRICS, default="ae",
        help="ae: eq. 10 of the paper, snr: eq. 11 (default %(default)s)")  # fmt: skip
    how("--scoring", choices=SCORINGS, default=DEFAULT_SCORING,
        help="form of the error; paper is the literal one (default %(default)s)")  # fmt: skip
    how("--draws", type=natural_number, default=0, metavar="N",
        help="average over N draws of dropout; 0 for none (default)")  # fmt: skip
    how("--seed", **cli.SEED)
    how("--granularity", choices=("utterance", "segment"), default="utterance",
        help="choose once a file, or for each segment (default %(default)s)")  # fmt: skip
    how("--segment-seconds", type=float, default=SEGMENT_SECONDS, metavar="S",
        help="length of a segment (default %(default)s)")  # fmt: skip
    how("--combine", action="store_true",
        help="add all estimates, weighted by their scores, in place of one")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
