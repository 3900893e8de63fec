"""Model files (.h5) as data: read without running anything in them, written whole or not at all.

A model file is the legacy Keras HDF5 format: a ``model_config`` attribute (JSON) and one group of
weights per layer. Any Keras 3 opens a file written here, without our code; one that holds the
modified ReLU needs the few lines in ``speech.layers``. Files are read by ``speech.hdf5``, in Python
and with bounds on time and memory, and written by h5py; Keras is never asked, so reading a
stranger's file cannot deserialise an object. A packed file (.icse, ``speech.compact``) is read in
the same call and gives the same.

What is accepted:

* ``model_config`` is a Sequential model, or a Functional one that is a simple chain.
* Every layer is in ``LAYER_RULES`` and every setting is in range; settings that only matter for
  training from scratch (initializers, regularizers, constraints) are dropped.
* Every weight is a float32 dataset stored in the file itself (hard links only; no external,
  virtual, chunked or never-written storage), of the shape its layer's settings imply, checked
  before it is read; every value is finite; all weights together take at most 512 MiB, no
  more than the file.

Anything else is a ``ModelFileError`` of one line that names the file (docs/security.md).

The attribute ``speech_meta`` (optional, at most 1 MiB) holds one JSON object on what the network
is for. All keys are optional, and readers ignore keys they do not know:

* ``kind``: what goes in and comes out: 'waveform' (samples in, samples out), or, over spectra,
  'mask' and 'autoencoder', which add ``stft``, ``context`` and ``input_scale`` (``mnn.features``).
* ``sample_rate_hz``: the rate the network was trained at.
* ``created_by``: the command that wrote the file.
* ``training``: a summary such as epochs, seed, data hash and validation error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech import hdf5
from speech.files import atomic_path, sha256_of

META_ATTRIBUTE = "speech_meta"
#: The first bytes of a packed file (``speech.compact``).
COMPACT_MAGIC = b"\x89ICSE"

MAX_FILE_BYTES = 2 << 30  # leaves room for an optimizer's state, which is not read
MAX_WEIGHT_BYTES = 512 << 20
MAX_CONFIG_BYTES = 4 << 20
MAX_META_BYTES = 1 << 20
MAX_JSON_DEPTH = 50
MAX_JSON_PARTS = 100_000
MAX_WEIGHT_DEPTH = 20
MAX_LAYERS = 1000
MAX_UNITS = 65_536
MAX_KERNEL_SIZE = 8_192
MAX_DILATION = 1_024

#: Activations that may be named by an ``Activation``, ``Conv1D`` or ``Dense`` layer.
ACTIVATIONS = ["linear", "relu", "sigmoid", "tanh"]

# What Keras should take our files for: weights in TensorFlow order, layout of Keras 3. Readers
# that find no version assume Keras 1 and transpose convolution kernels.
_FILE_ATTRIBUTES = {"keras_version": "3.0.0", "backend": "tensorflow"}

_LAYER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class ModelFileError(ValueError):
    """A model file was refused; the message is one line that names the file and the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class LayerSpec:
    """One layer: settings that passed the exam, and its weights.

    Attributes:
        class_name: Key of ``LAYER_RULES``, a Keras class such as 'Conv1D'.
        name: Name of the layer, unique in its file.
        config: The settings that matter for the forward pass, and no others.
        weights: float32 arrays by name ('kernel', 'bias', 'gamma', 'moving_mean', ...).
    """

    class_name: str
    name: str
    config: dict[str, Any]
    weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelFile:
    """A model file that passed the exam.

    Attributes:
        layers: The layers in the order of computation; the first is the InputLayer.
        meta: The ``speech_meta`` object, {} if the file has none.
        sha256: SHA-256 of the file's bytes, 64 hexadecimal digits.
        path: Where it was read.
    """

    layers: tuple[LayerSpec, ...]
    meta: dict[str, Any]
    sha256: str
    path: Path

    @property
    def num_parameters(self) -> int:
        """Number of stored weights, those that training does not change included."""
        return sum(array.size for layer in self.layers for array in layer.weights.values())


def sha256_of_weights(layers: Sequence[LayerSpec]) -> str:
    """Returns the SHA-256 of all weights of a network, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for layer in layers:
        for name, array in layer.weights.items():
            digest.update(f"{layer.name} {name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------
# The allow-list. A setting's check returns the value to keep or raises ValueError(what to expect)


Check = Callable[[Any], Any]
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """What a layer class may look like.

    Attributes:
        settings: Check of each setting that is kept; all of them must be present.
        shapes: ``(config, channels) -> (shape of each weight, channels out)``, called with
            checked settings; raises ValueError if they do not fit ``channels``. The order of the
            weights is the one in which Keras lists them. None: no weights, same channels.
        only: Settings that may be left out and must have exactly this value if present.
        ranks: Accepted number of axes of the input, the batch axis included.
    """

    settings: Mapping[str, Check] = dataclasses.field(default_factory=dict)
    shapes: Callable[[dict[str, Any], int], tuple[Shapes, int]] | None = None
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranks: tuple[int, ...] = (2, 3)


def an_integer(lowest: int, highest: int) -> Check:
    """Returns a check for an int in a range, which may stand in a list of one as in [55]."""

    def check(value: Any) -> int:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError(f"an integer from {lowest} to {highest}")
        return value

    return check


def a_number(lowest: float, highest: float, *, or_none: bool = False) -> Check:
    """Returns a check for a finite number in a range, or None if allowed."""

    def check(value: Any) -> float | None:
        if value is None and or_none:
            return None
        if type(value) not in (int, float) or not lowest <= value <= highest:
            raise ValueError(f"a number from {lowest:g} to {highest:g}")
        return float(value)

    return check


def one_of(*choices: Any) -> Check:
    """Returns a check for one of a few values."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError(" or ".join(repr(choice) for choice in choices))
        return value

    return check


def an_activation(value: Any) -> str:
    """Checks the name of an activation; a function or object is never accepted."""
    if value not in ACTIVATIONS:
        raise ValueError("one of the names " + ", ".join(ACTIVATIONS))
    return value


def _an_input_shape(value: Any) -> list[int | None]:
    if isinstance(value, list) and len(value) in (2, 3) and value[0] is None:
        channels, time = value[-1], value[1:-1]
        with contextlib.suppress(ValueError):
            an_integer(1, MAX_UNITS)(channels)
            if time not in ([], [None]):
                an_integer(1, 1 << 31)(time)
            return value
    raise ValueError("[null, time or null, channels] or [null, channels]")


def _conv1d_shapes(config: dict[str, Any], channels: int) -> tuple[Shapes, int]:
    filters = config["filters"]
    shapes: Shapes = {"kernel": (config["kernel_size"], channels, filters)}
    return shapes | ({"bias": (filters,)} if config["use_bias"] else {}), filters


def _dense_shapes(config: dict[str, Any], channels: int) -> tuple[Shapes, int]:
    units = config["units"]
    shapes: Shapes = {"kernel": (channels, units)}
    return shapes | ({"bias": (units,)} if config["use_bias"] else {}), units


def _scale_and_center(config: dict[str, Any], channels: int) -> Shapes:
    names = [name for name, key in (("gamma", "scale"), ("beta", "center")) if config[key]]
    return {name: (channels,) for name in names}


def _batch_normalization_shapes(config: dict[str, Any], channels: int) -> tuple[Shapes, int]:
    moving: Shapes = {"moving_mean": (channels,), "moving_variance": (channels,)}
    return _scale_and_center(config, channels) | moving, channels


def _group_normalization_shapes(config: dict[str, Any], channels: int) -> tuple[Shapes, int]:
    groups = config["groups"]
    if groups == 0 or (groups > 0 and channels % groups):
        raise ValueError(f"'groups' is {groups}, expected -1 or a divisor of {channels} channels")
    return _scale_and_center(config, channels), channels


_a_flag = one_of(True, False)
_an_epsilon = a_number(1e-12, 1.0)
_a_slope = a_number(0.0, 1000.0)

#: The layers a model file may hold. The one place to add a class: a layer of our own stands here
#: under the name that ``speech.layers`` registers with Keras.
LAYER_RULES: dict[str, LayerRule] = {
    "InputLayer": LayerRule(
        {"batch_shape": _an_input_shape},
        only={"sparse": False, "ragged": False, "optional": False},
    ),
    "Conv1D": LayerRule(
        {
            "filters": an_integer(1, MAX_UNITS),
            "kernel_size": an_integer(1, MAX_KERNEL_SIZE),
            "strides": an_integer(1, 1),
            "padding": one_of("same", "valid"),
            "data_format": one_of("channels_last"),
            "dilation_rate": an_integer(1, MAX_DILATION),
            "activation": an_activation,
            "use_bias": _a_flag,
        },
        _conv1d_shapes,
        only={"groups": 1},
        ranks=(3,),
    ),
    "Dense": LayerRule(
        {"units": an_integer(1, MAX_UNITS), "activation": an_activation, "use_bias": _a_flag},
        _dense_shapes,
        only={"quantization_config": None},
    ),
    "BatchNormalization": LayerRule(
        {
            "axis": one_of(-1),
            "momentum": a_number(0.0, 1.0),
            "epsilon": _an_epsilon,
            "center": _a_flag,
            "scale": _a_flag,
        },
        _batch_normalization_shapes,
        # 'renorm_*' only matter with 'renorm'.
        only={
            "renorm": False,
            "renorm_clipping": None,
            "renorm_momentum": 0.99,
            "synchronized": False,
        },
    ),
    "GroupNormalization": LayerRule(
        {
            "groups": an_integer(-1, MAX_UNITS),
            "axis": one_of(-1),
            "epsilon": _an_epsilon,
            "center": _a_flag,
            "scale": _a_flag,
        },
        _group_normalization_shapes,
        ranks=(3,),
    ),
    "LeakyReLU": LayerRule({"negative_slope": _a_slope}),
    "ReLU": LayerRule(
        {
            "max_value": a_number(0.0, 1e9, or_none=True),
            "negative_slope": _a_slope,
            "threshold": a_number(0.0, 1e9),
        }
    ),
    "Activation": LayerRule({"activation": an_activation}),
    "Dropout": LayerRule({"rate": a_number(0.0, 0.999)}, only={"noise_shape": None}),
    "icse>ModifiedReLU": LayerRule({"epsilon": _an_epsilon}),
}

# Classes by which Keras runs what the file says.
_RUN_CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "__lambda__", "function")

# Settings of any layer that do not change what a trained network computes.
_HARMLESS = re.compile(r"name|trainable|autocast|seed|\w+_(initializer|regularizer|constraint)")


# --------------------------------------------------------------------------------------------
# Reading


def read_model_file(path: str | os.PathLike) -> ModelFile:
    """Reads a model file as data.

    Args:
        path: A legacy Keras .h5 file, or a packed one (``speech.compact``); the first bytes tell.

    Returns:
        Layers, weights and meta data that passed every check of the module docstring.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: The file is refused; the message says why and what to do.
    """
    path = Path(path)
    if is_compact(path):
        from speech.compact import read_compact

        return read_compact(path)
    with open_hdf5(path) as file:
        text = text_attribute(file, "model_config", MAX_CONFIG_BYTES)
        if text is None:
            raise ModelFileError(
                "no 'model_config' attribute, expected a whole Keras model; import old weights "
                "with 'python -m speech.weights import', or save it again with model.save()"
            )
        plan = plan_layers(parse_json(text, "'model_config'"))
        text = text_attribute(file, META_ATTRIBUTE, MAX_META_BYTES)
        meta = {} if text is None else parse_json(text, f"'{META_ATTRIBUTE}'")
        if not isinstance(meta, dict):
            raise ModelFileError(f"'{META_ATTRIBUTE}' is {_show(meta)}, expected a JSON object")
        num_bytes = sum(4 * math.prod(shape) for _, shapes in plan for shape in shapes.values())
        if num_bytes > file.file.num_bytes:
            raise ModelFileError(
                f"the layers call for {num_bytes:,} bytes of weights, the file has "
                f"{file.file.num_bytes:,}"
            )
        groups = child_group(file, "model_weights")
        layers = tuple(
            dataclasses.replace(layer, weights=_read_weights(groups, layer, shapes))
            for layer, shapes in plan
        )
    return ModelFile(layers, meta, sha256_of(path), path)


def is_compact(path: str | os.PathLike) -> bool:
    """Returns whether a file starts as a packed one does; False if there is none."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        return stream.read(len(COMPACT_MAGIC)) == COMPACT_MAGIC


def plan_layers(model_config: Any) -> list[tuple[LayerSpec, Shapes]]:
    """Checks a Keras model configuration and says which weights it calls for.

    Args:
        model_config: Parsed JSON, ``{"class_name": ..., "config": {"layers": [...]}}``.

    Returns:
        Per layer, in order: its spec, still without weights, and the shape of each weight.

    Raises:
        ModelFileError: A class, a setting or the graph is not on the allow-list. The message
            does not name the file; ``refusals`` adds that.
    """
    _refuse_code_and_strangers(model_config)
    entries = _chain(model_config)
    plan: list[tuple[LayerSpec, Shapes]] = []
    names: set[str] = set()
    channels = rank = num_bytes = 0
    for entry in entries:
        layer, rule = _checked_layer(entry)
        where = f"layer {layer.name!r} ({layer.class_name})"
        if layer.name in names:
            raise ModelFileError(f"two layers are named {layer.name!r}, expected unique names")
        names.add(layer.name)
        if (layer.class_name == "InputLayer") != (not plan):
            raise ModelFileError(
                f"{where} is layer {len(plan) + 1}, expected one InputLayer, as the first; "
                "build the model with keras.Input and save it again with Keras 3"
            )
        if not plan:
            rank, channels = len(layer.config["batch_shape"]), layer.config["batch_shape"][-1]
        if rank not in rule.ranks:
            raise ModelFileError(f"{where} got {rank} axes, expected (batch, time, channels)")
        shapes: Shapes = {}
        if rule.shapes is not None:
            try:
                shapes, channels = rule.shapes(layer.config, channels)
            except ValueError as error:
                raise ModelFileError(f"{where}: {error}") from None
        num_bytes += sum(4 * math.prod(shape) for shape in shapes.values())
        plan.append((layer, shapes))
    if num_bytes > MAX_WEIGHT_BYTES:
        raise ModelFileError(
            f"the layers call for {num_bytes:,} bytes of weights, expected at most "
            f"{MAX_WEIGHT_BYTES:,}"
        )
    return plan


def _chain(model_config: Any) -> list[Any]:
    """Returns the entries of the layers of a Sequential or simple Functional model."""
    class_name = _get(model_config, "class_name")
    config = _get(model_config, "config")
    entries = _get(config, "layers")
    if class_name not in ("Sequential", "Functional"):
        raise ModelFileError(
            f"the model is a {_show(class_name)}, expected a Sequential or Functional model"
        )
    if not isinstance(entries, list) or not 2 <= len(entries) <= MAX_LAYERS:
        raise ModelFileError(f"expected a list of 2 to {MAX_LAYERS} layers in 'model_config'")
    if class_name == "Functional":
        names = [_get(entry, "name") for entry in entries]
        ends = [_end(_get(config, key)) for key in ("input_layers", "output_layers")]
        inbound = [_inbound(_get(entry, "inbound_nodes")) for entry in entries]
        if ends != [names[0], names[-1]] or inbound != [None, *names[:-1]]:
            raise ModelFileError(
                "the Functional graph is not a simple chain, expected each layer to read the "
                "one before it and nothing else; rebuild it as a Sequential model"
            )
    return entries


def _end(value: Any) -> Any:
    """Returns the layer's name in ["name", 0, 0] or [["name", 0, 0]], else a non-name."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value[0] if isinstance(value, list) and value[1:] == [0, 0] else value


def _inbound(nodes: Any) -> Any:
    """Returns the name of the one layer that is read, None for no layer, else a non-name."""
    match nodes:
        case []:
            return None
        case [{"args": [{"class_name": "__keras_tensor__", "config": tensor}], "kwargs": options}]:
            # Keras notes {"mask": null} or {"training": false} for a plain call of some layers.
            if isinstance(options, dict) and all(v is None or v is False for v in options.values()):
                return _end(_get(tensor, "keras_history"))
    return nodes


def _checked_layer(entry: Any) -> tuple[LayerSpec, LayerRule]:
    """Checks one entry of the list of layers against its rule."""
    class_name = _get(entry, "class_name")
    config = _get(entry, "config")
    rule = LAYER_RULES.get(class_name) if isinstance(class_name, str) else None
    if rule is None:
        raise ModelFileError(
            f"refused: layer {_show(class_name)} is not known; only {', '.join(LAYER_RULES)} are "
            "accepted (see docs/security.md)"
        )
    name = _get(config, "name")
    if not isinstance(name, str) or not _LAYER_NAME.fullmatch(name):
        raise ModelFileError(
            f"a {class_name} layer is named {_show(name)}, expected letters, digits and _ . -"
        )
    where = f"layer {name!r} ({class_name})"
    kept = {}
    for key, check in rule.settings.items():
        if key not in config:
            raise ModelFileError(f"{where} lacks {key!r}; save it again with Keras 3")
        try:
            kept[key] = check(config[key])
        except ValueError as error:
            raise ModelFileError(
                f"{where}: {key!r} is {_show(config[key])}, expected {error}"
            ) from None
    for key, value in config.items():
        if key in kept:
            continue
        if key == "dtype":
            _check_dtype_policy(value, where)
        elif key in rule.only:
            if value != rule.only[key]:
                raise ModelFileError(
                    f"{where}: {key!r} is {_show(value)}, expected {rule.only[key]!r}"
                )
        elif not _HARMLESS.fullmatch(key):
            raise ModelFileError(
                f"{where}: unknown setting {_show(key)}, expected {', '.join(rule.settings)}; "
                "save it again with Keras 3"
            )
    return LayerSpec(class_name, name, kept), rule


def _check_dtype_policy(value: Any, where: str) -> None:
    name = value
    if isinstance(value, dict):
        name = _get(_get(value, "config"), "name")
    if name != "float32":
        raise ModelFileError(f"{where} computes in {_show(name)}, expected 'float32'")


def _refuse_code_and_strangers(value: Any) -> None:
    """Refuses a configuration that names code, or what is not Keras's own, anywhere in it."""
    if isinstance(value, dict):
        if value.get("class_name") in _RUN_CODE:
            raise ModelFileError(
                f"refused: layer {_show(value['class_name'])} can run code; only "
                f"{', '.join(LAYER_RULES)} are accepted (see docs/security.md)"
            )
        module = value.get("module")
        if module is not None and not re.fullmatch(r"keras(\.\w+)*", str(module)):
            raise ModelFileError(
                f"refused: the configuration names module {_show(module)}, expected keras only "
                "(see docs/security.md)"
            )
        registered = value.get("registered_name")
        if registered not in (None, value.get("class_name"), *LAYER_RULES):
            raise ModelFileError(
                f"refused: the configuration asks for the registered object {_show(registered)} "
                "(see docs/security.md)"
            )
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_code_and_strangers(item)


def _read_weights(groups: hdf5.Group, layer: LayerSpec, shapes: Shapes) -> dict[str, np.ndarray]:
    """Reads the weights of one layer, all of ``shapes`` and no others."""
    if not shapes:
        return {}
    group = child_group(groups, layer.name)
    names = names_attribute(group, "weight_names")
    paths = {name.removesuffix(":0").rpartition("/")[2]: name for name in names}
    if len(names) != len(paths) or paths.keys() != shapes.keys():
        raise ModelFileError(
            f"layer {layer.name!r} ({layer.class_name}) holds the weights {_show(names)}, "
            f"expected {sorted(shapes)}"
        )
    return {key: read_array(_follow(group, paths[key]), shape) for key, shape in shapes.items()}


def _follow(group: hdf5.Group, path: str) -> hdf5.Group | hdf5.Dataset:
    """Returns what lies at a path such as 'model/layer/kernel', hard links all the way."""
    *parents, name = path.split("/")
    if len(parents) > MAX_WEIGHT_DEPTH:
        raise ModelFileError(
            f"a weight lies {len(parents):,} groups deep, expected at most {MAX_WEIGHT_DEPTH}"
        )
    for parent in parents:
        group = child_group(group, parent)
    return hard_linked(group, name)


# --------------------------------------------------------------------------------------------
# Writing


def write_model_file(
    path: str | os.PathLike, layers: Sequence[LayerSpec], meta: Mapping[str, Any]
) -> None:
    """Writes a model file atomically; what is written passes the exam of ``read_model_file``.

    Args:
        path: The file to write, ending in '.h5', by which Keras tells the format.
        layers: The layers in the order of computation, InputLayer first, with all weights.
        meta: The ``speech_meta`` object: JSON values, no NaN or infinity.

    Raises:
        ModelFileError: A layer, a weight or ``meta`` would not pass; nothing is written.
    """
    path = Path(path)
    entries = [
        {"class_name": layer.class_name, "config": {"name": layer.name, **layer.config}}
        for layer in layers
    ]
    model_config = {"class_name": "Sequential", "config": {"name": "model", "layers": entries}}
    with refusals(path):
        if path.suffix != ".h5":
            raise ModelFileError("cannot be written: expected a name that ends in .h5")
        config_text = json.dumps(model_config)
        text_of_meta = meta_text(meta)
        arrays = {}
        for layer, (_, shapes) in zip(layers, plan_layers(json.loads(config_text)), strict=True):
            if layer.weights.keys() != shapes.keys():
                raise ModelFileError(
                    f"layer {layer.name!r} ({layer.class_name}) has the weights "
                    f"{sorted(layer.weights)}, expected {sorted(shapes)}"
                )
            arrays[layer.name] = {key: np.asarray(layer.weights[key]) for key in shapes}
            for key, shape in shapes.items():
                _check_array(arrays[layer.name][key], shape, f"{layer.name}/{key}")
    import h5py

    # In memory first: on a full disk HDF5 can neither write nor close a file, and crashes.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update(_FILE_ATTRIBUTES)
        file.attrs["model_config"] = config_text
        file.attrs[META_ATTRIBUTE] = text_of_meta
        groups = file.create_group("model_weights")
        groups.attrs.update(_FILE_ATTRIBUTES)
        groups.attrs["layer_names"] = _bytes_array(arrays)
        for name, weights in arrays.items():
            group = groups.create_group(name)
            group.attrs["weight_names"] = _bytes_array(f"{name}/{key}" for key in weights)
            for key, array in weights.items():
                group[f"{name}/{key}"] = array
        file.flush()
        image = file.id.get_file_image()
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)


def meta_text(meta: Mapping[str, Any]) -> str:
    """Returns the ``speech_meta`` object as JSON text; ModelFileError if it is none."""
    try:
        text = json.dumps(dict(meta), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"the meta data is not plain JSON ({error})") from None
    if len(text.encode()) > MAX_META_BYTES:
        raise ModelFileError(f"the meta data is {len(text):,} bytes, at most {MAX_META_BYTES:,}")
    return text


def _bytes_array(names: Any) -> np.ndarray:
    return np.array([name.encode() for name in names] or np.empty(0, "S1"))


# --------------------------------------------------------------------------------------------
# HDF5 and JSON as hostile input. Also used by the importer of old weights.


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Puts the file's name in front of every ``ModelFileError`` raised in the block."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[hdf5.Group]:
    """Opens an HDF5 file for reading; inside the block, any failure is a ``ModelFileError``.

    Yields:
        Its root group.

    Raises:
        FileNotFoundError: There is no such file.
        ModelFileError: Not a regular file, too big, not HDF5, damaged, or refused in the block.
    """
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such model file; check the path", str(path))
    with refusals(path):
        if not path.is_file():
            raise ModelFileError("not a regular file, expected an HDF5 model file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path.stat().st_size:,} bytes, expected at most {MAX_FILE_BYTES:,}"
            )
        try:
            with open(path, "rb") as stream:
                yield hdf5.File(stream).root
        except (hdf5.Hdf5Error, OSError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(
                f"not a readable HDF5 file ({reason}); it may be truncated or of another "
                "format: copy it again or save it again"
            ) from None


def parse_json(text: str, what: str) -> Any:
    """Parses strict JSON.

    Raises:
        ModelFileError: Not JSON, nested too deeply, of too many parts, or with NaN or an infinity.
    """
    num_parts = text.count("[") + text.count("{")  # each takes far more memory than text
    if num_parts > MAX_JSON_PARTS:
        raise ModelFileError(
            f"{what} holds {num_parts:,} lists and objects, expected at most {MAX_JSON_PARTS:,}"
        )
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{what} is not valid JSON ({error}), save it again") from None
    _check_depth(value, what)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _check_depth(value: Any, what: str) -> None:
    """Refuses what would exhaust the stack of whoever walks through it."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        lists = [list(item.values()) if isinstance(item, dict) else item
                 for item in level if isinstance(item, dict | list)]  # fmt: skip
        level = list(itertools.chain.from_iterable(lists))
        if not level:
            return
    raise ModelFileError(f"{what} is not valid JSON (nested too deeply), save it again")


def text_attribute(owner: hdf5.Group, name: str, max_bytes: int) -> str | None:
    """Returns a string attribute of at most ``max_bytes``, None if there is none."""
    attribute = owner.attribute(name)
    if attribute is None:
        return None
    if attribute.shape != () or not attribute.datatype.is_string:
        raise ModelFileError(f"attribute {name!r} is not a string, expected JSON text")
    num_bytes = attribute.string_bytes()
    if num_bytes > max_bytes:
        raise ModelFileError(f"{name!r} is {num_bytes:,} bytes, expected at most {max_bytes:,}")
    return attribute.strings()[0].decode("utf-8", "replace")


def names_attribute(owner: hdf5.Group, name: str) -> list[str]:
    """Returns an attribute that lists names, such as ``layer_names`` of a Keras file."""
    attribute = owner.attribute(name)
    if attribute is None:
        raise ModelFileError(f"no attribute {name!r} in {owner.name!r:.80}, expected Keras weights")
    count = attribute.count if len(attribute.shape) == 1 else -1
    if count == 0:
        return []
    # Strings of free length may all point at the same bytes: bound what they can grow to.
    if (
        not attribute.datatype.is_string
        or not 0 < count <= 10 * MAX_LAYERS
        or attribute.string_bytes() > MAX_META_BYTES
    ):
        raise ModelFileError(f"attribute {name!r} of {owner.name!r:.80} is not a list of names")
    return [value.decode("utf-8", "replace") for value in attribute.strings()]


def hard_linked(group: hdf5.Group, name: str) -> hdf5.Group | hdf5.Dataset:
    """Returns a direct child of a group that is stored in this very file.

    Raises:
        ModelFileError: No such child, or it is a soft or external link or a named type.
    """
    where = f"{group.name}/{name}".replace("//", "/")
    simple = name not in ("", ".", "..") and "/" not in name
    link = group.link(name) if simple else None
    if link is None:
        raise ModelFileError(f"no {_show(where)} in the file; save it again")
    if link.kind != "HardLink":
        raise ModelFileError(
            f"refused: {_show(where)} is a link ({link.kind}), expected the data "
            "itself (see docs/security.md)"
        )
    child = group.child(name)
    if child is None:
        raise ModelFileError(f"{_show(where)} is neither a group nor a dataset, expected weights")
    return child


def child_group(group: hdf5.Group, name: str) -> hdf5.Group:
    """Returns a hard-linked child that is a group."""
    child = hard_linked(group, name)
    if not isinstance(child, hdf5.Group):
        raise ModelFileError(f"{_show(child.name)} is a dataset, expected a group")
    return child


def read_array(dataset: hdf5.Group | hdf5.Dataset, shape: tuple[int, ...]) -> np.ndarray:
    """Reads a float32 dataset after checking its type, shape and storage.

    Args:
        dataset: What was found where the weight should be.
        shape: The shape it must have.

    Returns:
        A float32 array of ``shape``, all finite.

    Raises:
        ModelFileError: It is something else.
    """
    if not isinstance(dataset, hdf5.Dataset):
        raise ModelFileError(f"{_show(dataset.name)} is a group, expected a dataset")
    where = _show(dataset.name)
    if dataset.datatype.dtype is None:
        raise ModelFileError(f"{where} is {dataset.datatype.name}, expected float32")
    if dataset.shape != shape:
        raise ModelFileError(f"{where} has shape {_show(dataset.shape)}, expected {shape}")
    # Chunks may be compressed bombs far bigger than the dataset; Keras writes none.
    if dataset.storage not in ("contiguous", "compact"):
        raise ModelFileError(
            f"refused: {where} has virtual, chunked or compressed storage, "
            "expected plain storage in this file; save it again with Keras"
        )
    if dataset.is_external:
        raise ModelFileError(
            f"refused: {where} has external storage, expected the data in this "
            "file (see docs/security.md)"
        )
    if dataset.num_bytes != 4 * math.prod(shape):
        raise ModelFileError(f"{where} was never written; save it again")
    array = dataset.read()
    _check_array(array, shape, dataset.name)
    return array


def _check_type_and_shape(array: Any, shape: tuple[int, ...], name: str) -> None:
    if array.dtype.newbyteorder("=") != np.float32:
        raise ModelFileError(f"{_show(name)} is {array.dtype}, expected float32")
    if array.shape != shape:
        raise ModelFileError(f"{_show(name)} has shape {array.shape}, expected {shape}")


def _check_array(array: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    _check_type_and_shape(array, shape, name)
    if not np.isfinite(array).all():
        raise ModelFileError(
            f"{_show(name)} holds NaN or infinite values, expected finite weights; "
            "the training may have diverged: use an earlier checkpoint"
        )


def _get(value: Any, key: str) -> Any:
    """Returns ``value[key]`` of a JSON object."""
    if not isinstance(value, dict) or key not in value:
        raise ModelFileError(f"the configuration lacks {key!r}; save it again with Keras 3")
    return value[key]


def _show(value: Any) -> str:
    """Returns a short repr: what a stranger wrote must not flood or drive a terminal."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
