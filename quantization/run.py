"""Quantizes a model: gives each layer a codebook and writes a small file (docs/papers.md).

::

    python -m quantization.run model.h5 -k 16                       # k-means alone
    python -m quantization.run pruned.h5 -k 8 --finetune-epochs 4   # on the bundled corpus
    python -m quantization.run pruned.h5 --timit TIMIT --noise NOISES --centroids fp16
    python -m quantization.run pruned.h5 --target-percent 4 --finetune-epochs 4
    python -m quantization.run pack|unpack|info FILE

It writes to ``-o DIR``: ``clustered.h5``, which any Keras opens, and ``model.icse``, which has the
same weights bit for bit in a fraction of the bytes (docs/format.md). Both work wherever a model
file does. Zeros stay zero. The same command goes on with an interrupted fine-tuning where it stood.

First of all, BatchNormalization is folded into the layers before it (``speech.net.folding``);
``--keep-norms`` leaves it for those who want to train the network further.

Before packing, biases and normalisation are rounded to FP16 (``--others fp32`` keeps them), and
biases in front of a normalisation of each channel over time, which takes them out again, are set to
zero. ``clustered.h5`` holds the same values.

Without k, ``--lambda`` weighs the error of the output against the bits of the coder, weight by
weight (``quantization.ratedistortion``), and ``--target-bytes`` or ``--target-percent`` look for
the lambda with which the file just fits; ``--target-snr`` looks for the lambda at which the output
is just as close to the model's as asked.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.points import Point
from eval.scoring import json_ready
from quantization.accounting import CENTROID_BYTES, account, format_sizes, to_dict
from quantization.config import (
    FINETUNE_LEARNING_RATE,
    FORMATS,
    METHODS,
    WEIGHTINGS,
    K,
    QuantizationConfig,
)
from speech.base import cli, lazy
from speech.base.cli import natural_number
from speech.base.files import write_json
from speech.base.runinfo import run_info
from speech.modelfile.h5 import write_model_file
from speech.modelfile.icse import inspect_compact, write_compact
from speech.modelfile.read import read_model_file
from speech.training.common_options import (
    add_data_options,
    add_training_options,
    check_data_options,
    train_on,
)

if TYPE_CHECKING:
    from eval import sweep
    from quantization import process
else:
    process = lazy.module("quantization.process")
    sweep = lazy.module("eval.sweep")

CONTAINER_COMMANDS = ("pack", "unpack", "info")


@dataclass(frozen=True)
class Command:
    """What one call of the command does.

    Attributes:
        model: The model file.
        out: The folder to write.
        config: How it is quantized.
        json: File for the results.
    """

    model: Path
    out: Path
    config: QuantizationConfig
    json: Path | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in CONTAINER_COMMANDS:
        return cli.run(_container(argv))
    asked = parse(argv)
    cli.log_to_stderr()
    return cli.run(lambda: _run(asked))


def parse(argv: Sequence[str] | None = None) -> Command:
    """Returns what the options ask for; exits with code 2 if they make no sense."""
    parser = _parser()
    options = parser.parse_args(argv)
    is_finetuned = bool(options.epochs or options.timit or options.train_noisy)
    _check_usage(parser, options, is_finetuned)
    config = QuantizationConfig(
        k=K if options.k is None else options.k,
        k_last=options.k_last,
        k_of=dict(options.layer_k),
        per_sign=options.per_sign,
        centroids=options.centroids,
        lam=options.lam,
        target_bytes=options.target_bytes,
        target_percent=options.target_percent,
        target_snr_db=options.target_snr,
        weighting=options.weighting,
        method=options.method,
        finetune=is_finetuned,
        train_on=train_on(options),
        rounds=options.rounds,
        others=options.others,
        keep_norms=options.keep_norms,
        entropy=not options.no_entropy,
        score=options.score,
        work=options.work,
        gpu=options.gpu,
    )
    if config.is_by_lambda:
        if config.method == "tfmot" or config.per_sign:
            parser.error("--method tfmot and --per-sign are for k; leave out --lambda and targets")
        if not config.entropy:
            parser.error("--no-entropy has no meaning with --lambda: it is about code lengths")
    elif config.weighting != WEIGHTINGS[0]:
        parser.error("--weighting goes with --lambda or a target")
    out = options.out or options.model.with_name(config.name(options.model.stem))
    return Command(options.model, out, config, options.json)


def _run(asked: Command) -> int:
    process.quantize_file(
        asked.model, asked.out, asked.config, say=cli.say, finish=partial(_print_result, asked)
    )
    return 0


def _print_result(asked: Command, found: process.QuantizationResult) -> None:
    original = found.original_bytes
    print("\n" + format_sizes(found.rows, original))
    print(
        f"\nfile        {original:,} -> {found.packed_bytes:,} bytes "
        f"({100 * found.packed_bytes / original:.2f} %)"
    )
    result = {
        "model": str(asked.model),
        "settings": found.settings,
        **to_dict(found.rows, original),
        "clustered": {"path": str(found.clustered), "sha256": found.clustered_sha256},
        "packed": {"path": str(found.packed), "sha256": found.packed_sha256},
    }
    if found.test:
        result["scores"] = _score(asked, found)
    if asked.json is not None:
        write_json(asked.json, result | run_info())
    print(f"written     {found.clustered}, {found.packed}")


def _score(asked: Command, found: process.QuantizationResult) -> list[dict[str, Any]]:
    labels = {key: found.settings.get(key) for key in ("k", "lambda", "centroids", "method")}
    labels = {key: value for key, value in labels.items() if value is not None}
    points = [Point("before", asked.model), Point("after", found.packed, labels)]
    num_jobs = asked.config.train_on.num_jobs
    table = sweep.sweep(points, found.test, asked.out / "scores", num_jobs=num_jobs)
    print("\n" + sweep.format_points(table))
    return json_ready(table)


# --------------------------------------------------------------------------------------------
# The container alone


def _container(argv: Sequence[str]) -> Callable[[], int]:
    """Returns what the options of a command on the small file alone ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m quantization.run",
        description="Pack a model file, unpack it, or print what a packed file holds.",
        **cli.examples(
            "python -m quantization.run pack models/fcn.h5 -o fcn.icse",
            "python -m quantization.run unpack models/fcn_small.icse -o small.h5",
            "python -m quantization.run info models/fcn_small.icse",
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="pack any model file, without loss")
    unpack = commands.add_parser("unpack", help="write the .h5 file of a packed one")
    info = commands.add_parser("info", help="print what a packed file holds and takes")
    for command, ending in ((pack, "icse"), (unpack, "h5")):
        command.add_argument("file", type=Path, metavar="FILE", help="read this model file")
        command.add_argument("-o", "--out", type=Path, metavar=f"FILE.{ending}",
            help="write this file (default: beside FILE)")  # fmt: skip
    pack.add_argument("--no-entropy", action="store_true", help="write indices of fixed length")
    info.add_argument("file", type=Path, metavar="FILE.icse", help="read this packed file")
    info.add_argument("--json", **cli.JSON)
    options = parser.parse_args(argv)
    file: Path = options.file
    if options.command == "info":
        return lambda: _info(file, options.json)
    out = options.out or file.with_suffix(".icse" if options.command == "pack" else ".h5")
    if options.command == "pack":
        return lambda: _pack(file, out, entropy=not options.no_entropy)
    return lambda: _unpack(file, out)


def _pack(path: Path, out: Path, *, entropy: bool) -> int:
    file = read_model_file(path)
    write_compact(out, file.layers, file.meta, entropy=entropy)
    _print_sizes(path, out)
    return 0


def _unpack(path: Path, out: Path) -> int:
    file = inspect_compact(path).model
    write_model_file(out, file.layers, file.meta)
    _print_sizes(path, out)
    return 0


def _print_sizes(source: Path, target: Path) -> None:
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{source} -> {target}: {before:,} -> {after:,} bytes ({100 * after / before:.2f} %)")


def _info(path: Path, json_path: Path | None) -> int:
    found = inspect_compact(path)
    stored = found.model.meta.get("quantization")
    stored = stored if isinstance(stored, dict) else {}
    centroids = stored.get("centroids")
    rows = account(found, {}, centroids if centroids in CENTROID_BYTES else "fp32")
    print(format_sizes(rows))
    print(f"\nkernels     {', '.join(f'{n} {how}' for n, how in found.codings.items())}")
    print(f"parameters  {found.model.num_parameters:,}")
    print(f"file        {found.file_bytes:,} bytes")
    print(f"sha256      {found.model.sha256}")
    print(f"meta        {json.dumps(found.model.meta)}")
    if json_path is not None:
        write_json(json_path, {"meta": found.model.meta, "codings": found.codings,
                               **to_dict(rows, None)})  # fmt: skip
    return 0


# --------------------------------------------------------------------------------------------
# Options


def _check_usage(
    parser: argparse.ArgumentParser, options: argparse.Namespace, is_finetuned: bool
) -> None:
    check_data_options(parser, options)
    if options.rounds and not is_finetuned:
        parser.error("--rounds needs fine-tuning: give --finetune-epochs or data")
    if options.rounds and options.method == "tfmot":
        parser.error("--rounds is for --method kmeans; TF-MOT chooses centroids anew by itself")
    if options.init is not None:
        parser.error("--init has no meaning here: MODEL is where it starts")
    by_k = [name for name, given in (
        ("-k", options.k), ("--k-last", options.k_last), ("--layer-k", options.layer_k),
    ) if given]  # fmt: skip
    if options.target_percent is not None and not 0 < options.target_percent < 100:
        parser.error(f"--target-percent is {options.target_percent:g}; give more than 0, under 100")
    targets = [options.target_bytes, options.target_percent]
    if None not in targets:
        parser.error("--target-bytes and --target-percent are two ways: give one of them")
    has_target = targets != [None, None]
    if has_target and by_k:
        parser.error(f"{by_k[0]} and a target are two ways: give one of them")
    if options.lam is not None and has_target:
        parser.error("--lambda and a target are two ways: give one of them")
    if options.target_snr is not None:
        if not 0 < options.target_snr <= 60:
            parser.error(f"--target-snr is {options.target_snr:g}; give more than 0, at most 60 dB")
        if has_target or options.lam is not None or by_k:
            parser.error("--target-snr, a size, --lambda and k are several ways: give one of them")
    if options.lam is not None and by_k:
        parser.error("--lambda and k are two ways: give one of them")


def parse_bytes(text: str) -> int:
    """Reads a number of bytes such as 60000, 60k or 1.2M; k is 1000.

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text)
    number = round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6}[match[2].lower()]) if match else 0
    if number < 1:
        raise ValueError(f"{text!r} is no number of bytes; give one such as 60000 or 60k")
    return number


def _layer_and_k(text: str) -> tuple[str, int]:
    name, equals, k = text.partition("=")
    if not (name and equals):
        raise ValueError
    return name, int(k)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m quantization.run",
        description="Replace the weights of each layer by few values, fine-tune them if there are "
        "data, and write a small file. The same command goes on after an interruption.",
        **cli.examples(
            "python -m quantization.run models/fcn.h5 -k 16",
            "python -m quantization.run p22.h5 -k 16 --finetune-epochs 2 -o p22k16",
            "python -m quantization.run p22.h5 --target-percent 4 -o small",
            "python -m quantization.run info small/model.icse",
            note="With pack, unpack or info in place of MODEL the command works on packed files: "
            "python -m quantization.run pack --help. Fine-tuning goes on with the loss that the "
            f"model was trained with, at a learning rate of {FINETUNE_LEARNING_RATE:g} that falls "
            "along a cosine, unless options say otherwise.",
        ),
    )
    parser.add_argument("model", type=Path, metavar="MODEL.h5", help="quantize this model file")
    parser.add_argument("-o", "--out", type=Path, metavar="DIR",
        help="write to this folder (default: MODEL.k<K>, or a name by the target)")  # fmt: skip
    add = parser.add_argument_group("codebooks").add_argument
    add("-k", type=int, metavar="K",
        help=f"give each layer K centroids, besides zero (default {K})")  # fmt: skip
    add("--k-last", type=int, metavar="K", help="give the last layer another K")
    add("--layer-k", type=_layer_and_k, nargs="+", default=[], metavar="LAYER=K",
        help="give single layers another K, as conv1=32 conv2=8")  # fmt: skip
    add("--per-sign", action="store_true",
        help="take K centroids for each sign, as in the released model")  # fmt: skip
    add("--centroids", choices=FORMATS,
        help="store centroids in this format (default fp32; fp16 with --lambda or a "
        "target)")  # fmt: skip
    add("--method", choices=METHODS, default=METHODS[0],
        help="fine-tune tied weights (kmeans, the default), or by TF-MOT")  # fmt: skip
    add("--rounds", type=natural_number, default=0, metavar="N",
        help="first train with free weights for an epoch and cluster again, N times")  # fmt: skip
    add = parser.add_argument_group("smallest file, instead of K").add_argument
    add("--lambda", type=float, metavar="X", dest="lam",
        help="let one bit per weight be worth this relative error of the output, as 0.003, which "
        "leaves an error about 20 dB below the output")  # fmt: skip
    add("--target-bytes", type=parse_bytes, metavar="N",
        help="write at most N bytes, as 60000 or 60k")  # fmt: skip
    add("--target-percent", type=float, metavar="P",
        help="write at most P percent of the bytes of MODEL.h5")  # fmt: skip
    add("--target-snr", type=float, metavar="DB",
        help="write the smallest file whose output is this far above its error, as 25")  # fmt: skip
    add("--weighting", choices=WEIGHTINGS, default=WEIGHTINGS[0],
        help="weight errors (with --lambda) by the correlation of a layer's inputs (default), by "
        "their power, or all alike")  # fmt: skip
    add = parser.add_argument_group("file").add_argument
    add("--others", choices=("fp16", "fp32"), default="fp16",
        help="store biases and normalisation in this format (default %(default)s)")  # fmt: skip
    add("--keep-norms", action="store_true",
        help="keep BatchNormalization, to train further (default: fold it away)")  # fmt: skip
    add("--no-entropy", action="store_true", help="write indices of fixed length")
    add_data_options(parser)
    add_training_options(parser, epochs_flag="--finetune-epochs")
    add = parser.add_argument_group("run").add_argument
    add("--gpu", **cli.GPUS)
    add("--work", type=Path, metavar="DIR",
        help="keep checkpoints in this folder (default runs/quantization/MODEL-...)")  # fmt: skip
    add("--score", action=argparse.BooleanOptionalAction,
        help="score by PESQ and STOI before and after, on the test data given or the bundled ones; "
        "fine-tuning implies it")  # fmt: skip
    add("--jobs", **cli.JOBS)
    add("--json", **cli.JSON)
    return parser


if __name__ == "__main__":
    sys.exit(main())
