"""Converts weights of the original FCN into a model file, and says what a model file holds.

::

    python -m speech.weights import model.json weights.hdf5 -o model.h5
    python -m speech.weights import weights.hdf5 -o model.h5
    python -m speech.weights info model.h5 [--json FILE]

``import`` turns the Keras 1.1 pair of the original FCN (docs/papers.md, "ICSE: the old model
files") into a model file. The old BatchNormalization of mode 2 normalises by the statistics of the
batch at hand, which for one utterance is GroupNormalization with one group per channel; its
running statistics are not used. ``info`` prints the layers, sizes and ``speech_meta`` of a file.
Neither command needs TensorFlow. ``speech.net.keras_models`` loads a model file into Keras.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.base import cli
from speech.base.files import sha256_of, write_json
from speech.modelfile import hdf5
from speech.modelfile.exam import plan_layers
from speech.modelfile.h5 import (
    MAX_CONFIG_BYTES,
    child_group,
    hard_linked,
    names_attribute,
    open_hdf5,
    read_array,
    write_model_file,
)
from speech.modelfile.meta import parse_json
from speech.modelfile.read import read_model_file
from speech.modelfile.rules import a_number
from speech.modelfile.spec import LayerSpec, ModelFile, ModelFileError, refusals
from speech.net.fcn import FCNConfig
from speech.net.reach import summary_of

# --------------------------------------------------------------------------------------------
# The old files (docs/papers.md, "ICSE: the old model files")

_KERAS1_NAME = re.compile(r"(convolution1d|batchnormalization|leakyrelu|activation)_(\d{1,6})")

# Per class: (setting, the value it must have, the value Keras 1.1 takes if it is absent).
_KERAS1_SETTINGS: dict[str, list[tuple[str, Any, Any]]] = {
    "Convolution1D": [
        ("border_mode", "same", "valid"),
        ("subsample_length", 1, 1),
        ("bias", True, True),
        ("activation", "linear", "linear"),
    ],
    "BatchNormalization": [("mode", 2, 0), ("axis", -1, -1)],
    "LeakyReLU": [],
    "Activation": [("activation", "tanh", None)],
}


def import_keras1(
    weights_path: str | os.PathLike, json_path: str | os.PathLike | None = None
) -> tuple[LayerSpec, ...]:
    """Reads the FCN of the original authors' Keras 1.1 files.

    Args:
        weights_path: HDF5 file of weights, checked like a model file.
        json_path: The model's JSON. Without it the shapes of the weights give the network, and
            its slope and epsilon are the paper's.

    Returns:
        The same network as standard layers of today.

    Raises:
        FileNotFoundError: A file is missing.
        ModelFileError: A file is refused, or the two do not belong together.
    """
    weights_path = Path(weights_path)
    asked, json_names = FCNConfig(), None
    if json_path is not None:
        asked, json_names = _read_keras1_json(Path(json_path))
    with open_hdf5(weights_path) as file:
        groups = _keras1_groups(file)
        convolutions, normalizations = groups["convolution1d"], groups["batchnormalization"]
        kernels = [_keras1_dataset(group, "W") for group in convolutions]
        config = _config_of([getattr(kernel, "shape", None) for kernel in kernels], asked)
        if len(normalizations) != config.num_hidden_layers:
            raise ModelFileError(
                f"{len(normalizations)} BatchNormalization layers, expected one less than the "
                f"{len(convolutions)} convolutions"
            )
        if json_names is not None:
            names = [group.name[1:] for group in (*convolutions, *normalizations)]
            if config != asked or names != json_names:
                raise ModelFileError(
                    f"the weights are those of {config}, expected {asked} as {json_path} says; "
                    "give the JSON file that was saved with these weights"
                )
        entries = [
            {"class_name": class_name, "config": settings}
            for class_name, settings in config.layer_configs()
        ]
        plan = plan_layers({"class_name": "Sequential", "config": {"layers": entries}})
        old_groups = {"Conv1D": iter(convolutions), "GroupNormalization": iter(normalizations)}
        layers = []
        for spec, shapes in plan:
            weights = {}
            if shapes:
                weights = _read_keras1_weights(next(old_groups[spec.class_name]), shapes)
            layers.append(LayerSpec(spec.class_name, spec.name, spec.config, weights))
    return tuple(layers)


def _read_keras1_json(path: Path) -> tuple[FCNConfig, list[str]]:
    """Returns the network in a JSON file, and its layers' names: convolutions, then norms."""
    with refusals(path):
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelFileError(f"over {MAX_CONFIG_BYTES:,} bytes, expected a model's JSON")
        model = parse_json(path.read_text(encoding="utf-8", errors="replace"), "the file")
        layers = _keras1_layers(model)
        for class_name, config in layers:
            for key, expected, default in _KERAS1_SETTINGS[class_name]:
                if config.get(key, default) != expected:
                    raise ModelFileError(
                        f"layer {config['name']!r:.60}: {key!r} is "
                        f"{config.get(key)!r:.60}, expected {expected!r}"
                    )
        convolutions = [config for kind, config in layers if kind == "Convolution1D"]
        normalizations = [config for kind, config in layers if kind == "BatchNormalization"]
        filters = [config.get("nb_filter") for config in convolutions]
        if filters[-1] != 1:
            raise ModelFileError(f"the last 'nb_filter' is {filters[-1]!r:.60}, expected 1")
        slopes = [config.get("alpha") for kind, config in layers if kind == "LeakyReLU"]
        try:
            network = FCNConfig(
                num_hidden_layers=len(normalizations),
                num_filters=_same_or_all(filters[:-1]),
                kernel_size=_the_one(
                    "filter_length", [c.get("filter_length") for c in convolutions]
                ),
                negative_slope=_float32("alpha", slopes),
                normalization_epsilon=_float32(
                    "epsilon", [c.get("epsilon") for c in normalizations]
                ),
            )
        except ValueError as error:
            raise ModelFileError(str(error)) from None
        return network, [config["name"] for config in (*convolutions, *normalizations)]


def _keras1_layers(model: Any) -> list[tuple[str, dict[str, Any]]]:
    """Returns (class name, settings) of the layers of a Keras 1 FCN's JSON, in order."""
    match model:
        case {"class_name": "Sequential", "keras_version": str(version), "config": list(entries)}:
            if not version.startswith("1."):
                raise ModelFileError(f"written by Keras {version!r:.20}, expected Keras 1")
        case _:
            raise ModelFileError("expected the JSON of a Keras 1 Sequential model")
    layers = []
    for entry in entries:
        match entry:
            case {"class_name": str(class_name), "config": {"name": str()} as config}:
                layers.append((class_name, config))
            case _:
                raise ModelFileError("a layer lacks 'class_name', 'config' or 'name'")
    found = [class_name for class_name, _ in layers]
    hidden = ["Convolution1D", "BatchNormalization", "LeakyReLU"]
    num_hidden = max(1, (len(found) - 2) // 3)
    if found != [*hidden * num_hidden, "Convolution1D", "Activation"]:
        raise ModelFileError(
            f"the layers are {' '.join(found)!r:.200}, expected {' '.join(hidden)!r} once or "
            "more, then 'Convolution1D Activation'"
        )
    return layers


def _the_one(key: str, values: list[Any]) -> Any:
    if any(value != values[0] for value in values):
        raise ModelFileError(f"{key!r} differs from layer to layer: {values!r:.100}, expected one")
    return values[0]


def _float32(key: str, values: list[Any]) -> float:
    """Undoes the digits that Keras 1.1 wrote for float32: 0.30000001192092896 is 0.3."""
    value = _the_one(key, values)
    try:
        return float(f"{a_number(0.0, 1.0)(value):.7g}")
    except ValueError as error:
        raise ModelFileError(f"{key!r} is {value!r:.60}, expected {error}") from None


def _keras1_groups(file: hdf5.Group) -> dict[str, list[hdf5.Group]]:
    """Returns the groups of the layers by kind, in numeric order: convolution1d_10 after _9."""
    found: dict[str, list[tuple[int, hdf5.Group]]] = {
        "convolution1d": [],
        "batchnormalization": [],
        "leakyrelu": [],
        "activation": [],
    }
    for name in names_attribute(file, "layer_names"):
        match = _KERAS1_NAME.fullmatch(name)
        if match is None:
            raise ModelFileError(
                f"layer {name!r:.60}, expected convolution1d_<i>, batchnormalization_<i>, "
                "leakyrelu_<i> and activation_<i> only"
            )
        found[match[1]].append((int(match[2]), child_group(file, name)))
    return {
        kind: [group for _, group in sorted(groups, key=lambda pair: pair[0])]
        for kind, groups in found.items()
    }


def _keras1_dataset(group: hdf5.Group, key: str) -> hdf5.Group | hdf5.Dataset:
    return hard_linked(group, f"{group.name[1:]}_{key}:0")


def _read_keras1_weights(
    group: hdf5.Group, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Reads one old layer's weights under their names and ``shapes`` of today."""
    if "kernel" in shapes:
        taps, channels, filters = shapes["kernel"]
        old = {"W": (taps, 1, channels, filters), "b": shapes["bias"]}
    else:
        keys = ("gamma", "beta", "running_mean", "running_std")
        old = dict.fromkeys(keys, shapes["gamma"])
    expected = {f"{group.name[1:]}_{key}:0" for key in old}
    names = names_attribute(group, "weight_names")
    if set(names) != expected:
        raise ModelFileError(
            f"{group.name!r} lists the weights {names[:8]!r:.200}, expected {sorted(expected)}"
        )
    found = {key: read_array(_keras1_dataset(group, key), shape) for key, shape in old.items()}
    if "kernel" in shapes:
        return {"kernel": found["W"][:, 0], "bias": found["b"]}
    return {key: found[key] for key in shapes}


def _config_of(kernel_shapes: list[Any], asked: FCNConfig) -> FCNConfig:
    """Returns the network that kernels of these shapes make, with the constants of ``asked``."""
    channels = 1
    for shape in kernel_shapes:
        if shape is None or len(shape) != 4 or shape[:3] != (kernel_shapes[0][0], 1, channels):
            raise ModelFileError(
                f"a kernel has shape {shape}, expected (taps, 1, {channels}, filters) with the "
                "same number of taps in all layers"
            )
        channels = shape[3]
    if len(kernel_shapes) < 2 or channels != 1:
        raise ModelFileError(
            f"{len(kernel_shapes)} convolutions with {channels} channels out, expected at least "
            "2 with 1 channel out"
        )
    try:
        return FCNConfig(
            num_hidden_layers=len(kernel_shapes) - 1,
            num_filters=_same_or_all([shape[3] for shape in kernel_shapes[:-1]]),
            kernel_size=kernel_shapes[0][0],
            negative_slope=asked.negative_slope,
            normalization_epsilon=asked.normalization_epsilon,
        )
    except ValueError as error:
        raise ModelFileError(str(error)) from None


def _same_or_all(numbers: list[Any]) -> Any:
    return numbers[0] if all(number == numbers[0] for number in numbers) else tuple(numbers)


# --------------------------------------------------------------------------------------------
# Commands


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 if done, 1 if it failed with a one-line reason."""
    parser = argparse.ArgumentParser(
        prog="python -m speech.weights",
        description="Import old weights, or print what a model file holds.",
        **cli.examples(
            "python -m speech.weights info models/fcn.h5",
            "python -m speech.weights import model.json weights.hdf5 -o model.h5",
        ),
    )
    commands = parser.add_subparsers(dest="command", required=True)
    importer = commands.add_parser(
        "import", help="turn a Keras 1.1 pair of the original FCN into a model file"
    )
    importer.add_argument(
        "files", nargs="+", metavar="FILE", help="read [model.json] weights.hdf5, in this order"
    )
    importer.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE.h5", help="write this file"
    )
    info = commands.add_parser("info", help="print layers, sizes and meta data of a model file")
    info.add_argument("model", type=Path, metavar="MODEL", help="read this .h5 or .icse file")
    for command in (importer, info):
        command.add_argument("--json", **cli.JSON)
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        return cli.run(lambda: _show_info(arguments.model, arguments.json))
    if len(arguments.files) > 2:
        parser.error(f"import takes [model.json] weights.hdf5, got {len(arguments.files)} files")
    return cli.run(lambda: _import(arguments.files, arguments.out, arguments.json))


def _import(files: list[str], out: Path, json_path: Path | None) -> int:
    *model_json, weights = files
    layers = import_keras1(weights, *model_json)
    meta = {
        "kind": "waveform",
        "sample_rate_hz": 16_000,
        "created_by": "python -m speech.weights import",
        "imported_from": {Path(name).name: sha256_of(name) for name in files},
    }
    write_model_file(out, layers, meta)
    print(
        "normalisation by each utterance's own statistics, as in mode 2; the old running "
        "statistics are not used"
    )
    if not model_json:
        print("no JSON given: slope 0.3 and epsilon 1e-5 are the paper's")
    return _show_info(out, json_path)


def _show_info(path: Path, json_path: Path | None) -> int:
    file = read_model_file(path)
    info = describe(file)
    heads = ["layer", "class", *([] if file.is_chain else ["reads"]), "weights", "parameters"]
    rows = [heads]
    for layer in info["layers"]:
        weights = " ".join(f"{key}{tuple(shape)}" for key, shape in layer["weights"].items())
        reads = [] if file.is_chain else [" ".join(layer["inputs"])]
        rows.append(
            [layer["name"], layer["class_name"], *reads, weights, f"{layer['parameters']:,}"]
        )
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*cells, row[-1].rjust(widths[-1])]))
    print(f"kind        {info['kind'] or 'not said'}")
    print(f"parameters  {info['parameters']:,} ({info['weight_bytes']:,} bytes)")
    if "summary" in info:
        print(f"network     {info['summary']['text']}")
    print(f"file        {info['file_bytes']:,} bytes")
    print(f"sha256      {info['sha256']}")
    print(f"meta        {json.dumps(info['meta'])}")
    if json_path:
        write_json(json_path, info)
    return 0


def describe(file: ModelFile) -> dict[str, Any]:
    """Returns what ``info`` prints as JSON values; sizes in bytes, weights as shapes.

    A network of the kind 'complex_mask' has a 'summary' too (`speech.net.reach.MaskSummary`).
    """
    summary = summary_of(file)
    return {
        "path": str(file.path),
        "sha256": file.sha256,
        "kind": file.kind,
        **({} if summary is None else {"summary": summary.to_json()}),
        "file_bytes": file.path.stat().st_size,
        "weight_bytes": 4 * file.num_parameters,
        "parameters": file.num_parameters,
        "meta": file.meta,
        "layers": [
            {
                "name": layer.name,
                "class_name": layer.class_name,
                "inputs": list(layer.inputs),
                "config": layer.config,
                "weights": {key: list(array.shape) for key, array in layer.weights.items()},
                "parameters": sum(array.size for array in layer.weights.values()),
            }
            for layer in file.layers
        ],
    }


if __name__ == "__main__":
    raise SystemExit(main())
