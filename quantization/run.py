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
zero (``--keep-biases`` keeps them). ``clustered.h5`` holds the same values.

Without k, ``--lambda`` weighs the error of the output against the bits of the coder, weight by
weight (``quantization.ratedistortion``), and ``--target-bytes`` or ``--target-percent`` look for
the lambda, or with ``--allocate k`` for the k of each layer, with which the file just fits;
``--target-snr`` looks for the lambda at which the output is just as close to the model's as asked.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech.base import cli
from speech.base.cli import natural_number
from speech.training.common_options import (
    add_data_options,
    add_training_options,
    check_data_options,
)

if TYPE_CHECKING:
    from quantization.plans import ByK, ByLambda
    from speech.modelfile.spec import LayerSpec, ModelFile
    from speech.training.continuing import Continuation

    Layers = tuple[LayerSpec, ...]
    Plan = ByK | ByLambda

K = 16
#: Of a target's bytes: what meta data may differ by from the search to the end.
SLACK_BYTES = 24
FINETUNE_EPOCHS = 2
FINETUNE_LEARNING_RATE = 3e-4
METHODS = ("kmeans", "tfmot")
CLUSTERED, PACKED = "clustered.h5", "model.icse"
#: A variance can be too small for FP16.
_STATISTICS = ("moving_mean", "moving_variance")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in CONTAINER_COMMANDS:
        return _container(argv)
    parser = _parser()
    options = parser.parse_args(argv)
    _check_usage(parser, options)
    cli.log_to_stderr()
    return cli.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from speech.base.files import held
    from speech.modelfile.read import read_model_file

    file = read_model_file(options.model)
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"{options.out}: is not a folder; choose another -o")
    if options.model.resolve() in ((options.out / x).resolve() for x in (CLUSTERED, PACKED)):
        raise ValueError(f"{options.out}: would overwrite the model; choose another -o")
    is_long = options.finetune or options.score or options.method == "tfmot"
    with held(options.out) if is_long else contextlib.nullcontext():
        return _quantize(file, options)


def _quantize(file: ModelFile, options: argparse.Namespace) -> int:
    from quantization.accounting import account, format_sizes, to_dict
    from speech.base.files import sha256_of
    from speech.modelfile.h5 import write_model_file
    from speech.modelfile.icse import inspect_compact, write_compact
    from speech.modelfile.read import read_model_file

    if not options.keep_norms:
        file = _folded(file)
    training = None
    if options.finetune or options.method == "tfmot":
        from speech.training.continuing import check_trains

        check_trains(file)
        training = _load_training(file, options)
    plan = _plan(file, options, training)
    layers, test = _quantized(file, plan, training, options)
    layers = _packable(layers, options)
    num_dead = 0 if options.keep_biases else len(dead_biases(layers))
    if num_dead:
        print(f"biases      of {num_dead} layers in front of a normalisation have no effect: zero")
    settings = _settings(file, plan, options)
    meta = _meta(file, settings)
    clustered, packed = options.out / CLUSTERED, options.out / PACKED
    write_model_file(clustered, layers, meta)
    write_compact(packed, layers, meta, entropy=not options.no_entropy)
    found = inspect_compact(packed)
    _check_same(read_model_file(clustered), found.model)
    rows = account(found, plan.k_of(layers), settings["centroids"])
    original = options.model.stat().st_size
    print("\n" + format_sizes(rows, original))
    print(
        f"\nfile        {original:,} -> {found.file_bytes:,} bytes "
        f"({100 * found.file_bytes / original:.2f} %)"
    )
    result = {"model": str(options.model), "settings": settings, **to_dict(rows, original),
              "clustered": {"path": str(clustered), "sha256": sha256_of(clustered)},
              "packed": {"path": str(packed), "sha256": found.model.sha256}}  # fmt: skip
    if test and options.score is not False:
        result["scores"] = _score(options, test)
    if options.json is not None:
        from speech.base.files import write_json
        from speech.base.runinfo import run_info

        write_json(options.json, result | run_info())
    print(f"written     {clustered}, {packed}")
    return 0


def _folded(file: ModelFile) -> ModelFile:
    """Returns a model without batch normalisation, as far as it can be folded away."""
    from dataclasses import replace

    from speech.net.folding import fold_batch_normalization

    def count(layers: Layers) -> int:
        return sum(layer.class_name == "BatchNormalization" for layer in layers)

    layers = fold_batch_normalization(file.layers) if count(file.layers) else file.layers
    gone, left = count(file.layers) - count(layers), count(layers)
    if gone:
        rest = f", {left} are left" if left else ""
        print(f"folded      {gone} batch normalisations into the layers before them{rest}")
    return replace(file, layers=layers)


def _plan(file: ModelFile, options: argparse.Namespace, training: Continuation | None) -> Plan:
    """Returns how to quantize."""
    from quantization.budget import can_measure
    from quantization.kmeans import FORMATS, Codebooks
    from quantization.plans import ByK, ByLambda
    from quantization.ratedistortion import RateDistortion

    target = options.target_bytes
    if options.target_percent is not None:
        target = int(options.model.stat().st_size * options.target_percent / 100)
    by_lambda = _is_by_lambda(options)
    if by_lambda:
        how = RateDistortion(
            lam=RateDistortion.lam if options.lam is None else options.lam,
            centroids=options.centroids or "fp16",
            weighting=options.weighting,
        )
    else:
        codebooks = Codebooks(
            k=K if options.k is None else options.k,
            k_last=options.k_last,
            k_of=dict(options.layer_k),
            per_sign=options.per_sign,
            centroids=options.centroids or "fp32",
            algorithm=options.algorithm,
            seed=options.seed,
        )

    def size_of(layers: Layers) -> int:
        from speech.modelfile.icse import pack

        meta = _meta(file, _settings(file, plan, options))
        return (
            len(pack(_packable(layers, options), meta, entropy=not options.no_entropy))
            + SLACK_BYTES
        )

    signals = []
    if by_lambda or target is not None:
        signals = _signals(file, training)
    if options.target_snr is not None and not can_measure(file.layers, signals):
        raise ValueError(
            f"{file.path}: --target-snr measures outputs, and networks of this kind are not run "
            "here; give --lambda or a size"
        )
    if by_lambda:
        plan: Plan = ByLambda(how, file.layers, signals, target, size_of, options.target_snr)
    else:
        formats = (options.centroids,) if options.centroids else FORMATS[1:]
        plan = ByK(codebooks, signals, target, formats, size_of)
    return plan


def _is_by_lambda(options: argparse.Namespace) -> bool:
    """Returns whether error and code length decide about each weight."""
    has_target = options.target_bytes is not None or options.target_percent is not None
    return (
        options.lam is not None
        or options.target_snr is not None
        or (has_target and options.allocate == "lambda")
    )


def _signals(file: ModelFile, training: Continuation | None) -> list[Any]:
    """Returns signals to quantize for: of the training data, or of the bundled corpus."""
    from quantization import graphs
    from quantization.calibration import bundled_signals, signals_of
    from speech.modelfile.meta import COMPLEX_MASK, MaskConventions

    signals = bundled_signals() if training is None else signals_of(training.training)
    if file.kind != COMPLEX_MASK:
        return signals
    if not graphs.is_known(file.layers):
        return []
    signals = graphs.at_levels(signals) if training is None else signals
    return graphs.spectra_of(signals, MaskConventions.of(file.meta))


def _settings(file: ModelFile, plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "method": options.method,
        **plan.settings,
        "rounds": options.rounds if options.finetune else 0,
        "epochs": options.epochs if options.finetune else 0,
        "from_sha256": file.sha256,
    }


def _quantized(
    file: ModelFile, plan: Plan, training: Continuation | None, options: argparse.Namespace
) -> tuple[Layers, list[Any]]:
    """Returns the quantized network, trained on if asked, and the test set to score on."""
    start = plan(file.layers, final=training is None)
    if training is None:
        if not options.score:
            print("one-shot    not fine-tuned (--finetune-epochs uses the bundled corpus)")
            return start, []
        from speech.training.datasets import load_data

        return start, load_data(options, _work(options, start) / "test").test
    work = _work(options, start)
    if options.method == "tfmot":
        layers = _with_tfmot(file.layers, start, training, work, options)
    else:
        layers = _with_kmeans(file.layers, start, plan, training, work, options)
    if (
        plan.target is not None
        and plan.size_of is not None
        and plan.size_of(plan.finish(layers)) > plan.target
    ):
        print("target      missed by fine-tuning: quantized once more")
        return plan(layers, final=True), training.test
    return plan.finish(layers), training.test


def _work(options: argparse.Namespace, start: Layers) -> Path:
    return options.work or Path("runs") / "quantization" / _run_name(options, start)


def _with_kmeans(
    original: Layers,
    layers: Layers,
    plan: Plan,
    training: Continuation,
    work: Path,
    options: argparse.Namespace,
) -> Layers:
    """Trains with free weights and quantizes again, ``--rounds`` times; then with tied weights."""
    from dataclasses import replace

    from quantization.finetune import fine_tune

    for number in range(1, options.rounds + 1):
        label = f"round-{number}"
        config = training.config
        one = replace(training, config=replace(config, epochs=1, seed=config.seed + number))
        layers = fine_tune(layers, one, work / label, held=original, on_epoch=_printer(label))
        layers = plan(layers)
    return fine_tune(layers, training, work / "tied", on_epoch=_printer("tied"))


def _with_tfmot(
    layers: Layers,
    start: Layers,
    training: Continuation,
    work: Path,
    options: argparse.Namespace,
) -> Layers:
    """Clusters and fine-tunes through TF-MOT, from the centroids that k-means found."""
    try:
        from quantization.tfmot_bridge import CHECKPOINT, cluster
    except ImportError as error:
        raise ValueError(f"--method tfmot is not available here: {error}") from None
    from speech.base.files import held

    config = training.config
    with held(work / CHECKPOINT):
        return cluster(
            layers,
            codebooks_of(layers, start),
            data=training.training,
            validation=training.validation,
            epochs=(config.epochs or 0) if options.finetune else 0,
            learning_rate=config.learning_rate,
            loss=config.loss,
            seed=config.seed,
            progress=_printer("tfmot"),
            work=work,
            conv=config.conv,
            conventions=training.conventions,
        )


def codebooks_of(layers: Layers, clustered: Layers) -> dict[str, Any]:
    """Returns the values that the non-zero weights of each layer have after clustering.

    TF-MOT needs two: to a single one its neighbour among floats is added.
    """
    import numpy as np

    from quantization.kmeans import clustered_layers

    after = {
        layer.name: layer.weights["kernel"] for layer in clustered if "kernel" in layer.weights
    }
    found = {}
    for layer in clustered_layers(layers):
        # A centroid may be zero; the zero of what is pruned is none.
        values = np.unique(after[layer.name][layer.weights["kernel"] != 0])
        if len(values) == 1:
            values = np.append(values, np.nextafter(values[0], np.float32(np.inf)))
        found[layer.name] = values
    return found


def _printer(label: str) -> Any:
    def show(row: dict[str, float]) -> None:
        training = row.get("training_loss")
        shown = "" if training is None else f"training {training:.5f}  "
        if "validation_loss" in row:
            shown += f"validation {row['validation_loss']:.5f}  "
        print(f"{label:<11} epoch {row['epoch']}  {shown}{row['seconds']:.1f} s", flush=True)

    return show


def _load_training(file: ModelFile, options: argparse.Namespace) -> Continuation:
    from speech.base.device import select_devices
    from speech.training.continuing import continuation

    select_devices(options.gpu, several=options.method != "tfmot")
    # A folder that is held: another run's test set must not get in between.
    test_folder = (options.work or options.out) / "test"
    found = continuation(file, options, FINETUNE_LEARNING_RATE, test_folder)
    print(f"data        {found.description}")
    return found


def _run_name(options: argparse.Namespace, layers: Layers) -> str:
    """Returns the name of the folder of checkpoints: other weights are another run."""
    import hashlib

    from speech.modelfile.spec import sha256_of_weights

    start = f"{options.method} {options.rounds} {sha256_of_weights(layers)}"
    return f"{_result_name(options)}-{hashlib.sha256(start.encode()).hexdigest()[:8]}"


def _result_name(options: argparse.Namespace) -> str:
    """Returns the model's name with what is done to it, as 'fcn.k16'."""
    if options.target_bytes is not None:
        how = f"{options.target_bytes}b"
    elif options.target_percent is not None:
        how = f"{options.target_percent:g}p"
    elif options.target_snr is not None:
        how = f"{options.target_snr:g}db"
    elif options.lam is not None:
        how = f"lambda{options.lam:g}"
    else:
        how = f"k{K if options.k is None else options.k}"
    return f"{options.model.stem}.{how}"


def _packable(layers: Layers, options: argparse.Namespace) -> Layers:
    """Returns the network with what is not a kernel as it is stored, and no negative zeros."""
    from dataclasses import replace

    import numpy as np

    dead = set() if options.keep_biases else dead_biases(layers)
    rounded = []
    for layer in layers:
        weights = {key: array + np.float32(0) for key, array in layer.weights.items()}
        if layer.name in dead:
            weights["bias"] = np.zeros_like(weights["bias"])
        if options.others == "fp16":
            for key in weights.keys() - {"kernel", *_STATISTICS}:
                weights[key] = _as_fp16(weights[key])
        rounded.append(replace(layer, weights=weights))
    return tuple(rounded)


def _as_fp16(array: Any) -> Any:
    """Returns an array rounded to FP16, as it is if that can't hold it."""
    import numpy as np

    if np.abs(array).max() > float(np.finfo(np.float16).max):
        return array
    return array.astype(np.float16).astype(np.float32)


def dead_biases(layers: Sequence[LayerSpec]) -> set[str]:
    """Returns the layers whose bias the next layer, a normalisation over time, takes out again."""
    found = set()
    for layer, after in zip(layers, layers[1:], strict=False):
        if (
            layer.class_name == "Conv1D"
            and layer.config["activation"] == "linear"
            and "bias" in layer.weights
            and after.class_name == "GroupNormalization"
            and after.config["groups"] in (-1, layer.config["filters"])
        ):
            found.add(layer.name)
    return found


def _meta(file: ModelFile, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the meta data of the results; the masks are left to the zeros that they made."""
    meta = {**file.meta, "created_by": "python -m quantization.run", "quantization": settings}
    if isinstance(meta.get("pruning"), dict):
        meta["pruning"] = {k: v for k, v in meta["pruning"].items() if k != "masks"}
    return meta


def _check_same(one: ModelFile, other: ModelFile) -> None:
    """Raises ValueError unless two files hold the same weights, bit for bit."""
    for a, b in zip(one.layers, other.layers, strict=True):
        for key, array in a.weights.items():
            if array.tobytes() != b.weights[key].tobytes():
                raise ValueError(f"{other.path}: {a.name}/{key} differs from {one.path}")


def _score(options: argparse.Namespace, test: list[Any]) -> Any:
    from eval.points import Point
    from eval.scoring import json_ready
    from eval.sweep import format_points, sweep
    from speech.modelfile.read import read_model_file

    quantization = read_model_file(options.out / PACKED).meta["quantization"]
    labels = {key: quantization.get(key) for key in ("k", "lambda", "centroids", "method")}
    labels = {key: value for key, value in labels.items() if value is not None}
    points = [Point("before", options.model), Point("after", options.out / PACKED, labels)]
    table = sweep(points, test, options.out / "scores", num_jobs=options.jobs)
    print("\n" + format_points(table))
    return json_ready(table)


# --------------------------------------------------------------------------------------------
# The container alone


def _container(argv: Sequence[str]) -> int:
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
    return cli.run(lambda: CONTAINER_COMMANDS[options.command](options))


def _pack(options: argparse.Namespace) -> int:
    from speech.modelfile.icse import SUFFIX, write_compact
    from speech.modelfile.read import read_model_file

    file = read_model_file(options.file)
    out = options.out or options.file.with_suffix(SUFFIX)
    write_compact(out, file.layers, file.meta, entropy=not options.no_entropy)
    _say_sizes(options.file, out)
    return 0


def _unpack(options: argparse.Namespace) -> int:
    from speech.modelfile.h5 import write_model_file

    file = _compact(options.file).model
    out = options.out or options.file.with_suffix(".h5")
    write_model_file(out, file.layers, file.meta)
    _say_sizes(options.file, out)
    return 0


def _say_sizes(source: Path, target: Path) -> None:
    before, after = source.stat().st_size, target.stat().st_size
    print(f"{source} -> {target}: {before:,} -> {after:,} bytes ({100 * after / before:.2f} %)")


def _compact(path: Path) -> Any:
    from speech.modelfile.icse import inspect_compact

    return inspect_compact(path)


def _info(options: argparse.Namespace) -> int:
    import json

    from quantization.accounting import CENTROID_BYTES, account, format_sizes, to_dict
    from speech.base.files import write_json

    found = _compact(options.file)
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
    if options.json is not None:
        write_json(options.json, {"meta": found.model.meta, "codings": found.codings,
                                  **to_dict(rows, None)})  # fmt: skip
    return 0


CONTAINER_COMMANDS = {"pack": _pack, "unpack": _unpack, "info": _info}


# --------------------------------------------------------------------------------------------
# Options


def _check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    check_data_options(parser, options)
    options.finetune = bool(options.epochs or options.timit or options.train_noisy)
    if options.rounds and not options.finetune:
        parser.error("--rounds needs fine-tuning: give --finetune-epochs or data")
    if options.rounds and options.method == "tfmot":
        parser.error("--rounds is for --method kmeans; TF-MOT chooses centroids anew by itself")
    if options.init is not None:
        parser.error("--init has no meaning here: MODEL is where it starts")
    if options.finetune or options.method == "tfmot":
        options.epochs = options.epochs or FINETUNE_EPOCHS
        options.schedule = options.schedule or "cosine"
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
        if has_target or options.lam is not None or by_k or options.allocate == "k":
            parser.error("--target-snr, a size, --lambda and k are several ways: give one of them")
    if options.lam is not None and (by_k or options.allocate == "k"):
        parser.error("--lambda and k are two ways: give one of them")
    if options.allocate == "k" and not has_target:
        parser.error("--allocate k goes with --target-bytes or --target-percent")
    by_lambda = _is_by_lambda(options)
    if options.weighting != "correlation" and not by_lambda:
        parser.error("--weighting goes with --lambda, or a target that --allocate lambda meets")
    if by_lambda:
        if options.method == "tfmot" or options.per_sign or options.algorithm != "exact":
            parser.error(
                "--method tfmot, --per-sign and --algorithm are for k: with a target size, give "
                "--allocate k"
            )
        if options.no_entropy:
            parser.error("--no-entropy has no meaning with --lambda: it is about code lengths")
    if options.out is None:
        options.out = options.model.with_name(_result_name(options))


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
    add("--centroids", choices=("fp32", "fp16", "int8"),
        help="store centroids in this format (default fp32; fp16 with --lambda; with --allocate k "
        "what "
        "suits each layer)")  # fmt: skip
    add("--algorithm", choices=("exact", "lloyd"), default="exact",
        help="cluster exactly (default), or by Lloyd's k-means with k-means++ and "
        "restarts")  # fmt: skip
    add("--method", choices=METHODS, default="kmeans",
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
    add("--allocate", choices=("lambda", "k"), default="lambda",
        help="reach the target by lambda (default) or by the k of each layer")  # fmt: skip
    add("--weighting", choices=("correlation", "power", "plain"), default="correlation",
        help="weight errors (with --lambda) by the correlation of a layer's inputs (default), by "
        "their power, or all alike")  # fmt: skip
    add = parser.add_argument_group("file").add_argument
    add("--others", choices=("fp16", "fp32"), default="fp16",
        help="store biases and normalisation in this format (default %(default)s)")  # fmt: skip
    add("--keep-biases", action="store_true", help="keep biases that have no effect")
    add("--keep-norms", action="store_true",
        help="keep BatchNormalization, to train further (default: fold it away)")  # fmt: skip
    add("--no-entropy", action="store_true", help="write indices of fixed length")
    add_data_options(parser)
    add_training_options(parser, epochs_flag="--finetune-epochs")
    add = parser.add_argument_group("run").add_argument
    add("--gpu", default="0", metavar="LIST",
        help="run on this GPU: 0 (default), several as 0,1, or -1 for the CPU")  # fmt: skip
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
