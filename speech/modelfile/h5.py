"""Model files (.h5) as data: read without running anything in them, written whole or not at all.

A model file is the legacy Keras HDF5 format: a ``model_config`` attribute (JSON) and one group of
weights per layer, as Keras 3, Keras 2 and tf.keras write it. Any Keras 3 opens a file written here,
without our code; one that holds the modified ReLU needs the few lines in ``speech.net.layers``.
Files are read by ``speech.modelfile.hdf5``, in Python and with bounds on time and memory, and
written by h5py. Keras is never asked: reading a stranger's file cannot deserialise an object. A
packed file (.icse, ``speech.modelfile.icse``) is read in the same call and gives the same.

What is accepted:

* ``model_config`` is a Sequential model, or a Functional one: a graph of layers with one input and
  one output, in which each layer is called once. Nodes, settings and inputs may be written as
  Keras 3 or as Keras 2 writes them; they are kept as Keras 3 has them.
* Every layer is in ``LAYER_RULES`` and every setting is in range; settings that only matter for
  training from scratch (initializers, regularizers, constraints) are dropped.
* The shapes fit: all axes are followed through the graph, the axis of time as the input's plus a
  number of frames (``Frames``), so that an Add of two lengths is refused here and not by Keras. For
  one frame of input, all layers together compute at most ``MAX_VALUES`` values.
* Every weight is a float32 dataset stored in the file itself (hard links only; no external,
  virtual, chunked or never-written storage), of the shape its layer's settings imply, checked
  before it is read; every value is finite; all weights together take at most 512 MiB, no
  more than the file.

Anything else is a ``ModelFileError`` of one line that names the file (docs/security.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speech.base.files import atomic_path, sha256_of
from speech.base.lazy import h5py
from speech.modelfile import hdf5
from speech.modelfile.exam import MAX_LAYERS, model_config_of, plan_layers
from speech.modelfile.meta import (
    MAX_META_BYTES,
    META_ATTRIBUTE,
    check_conventions,
    meta_text,
    parse_json,
)
from speech.modelfile.rules import Shapes
from speech.modelfile.spec import (
    LayerSpec,
    ModelFile,
    ModelFileError,
    is_chain,
    linked,
    refusals,
    show,
)

MAX_FILE_BYTES = 2 << 30  # leaves room for an optimizer's state, which is not read
MAX_CONFIG_BYTES = 4 << 20
MAX_WEIGHT_DEPTH = 20

# What Keras should take our files for: weights in TensorFlow order, layout of Keras 3. Readers
# that find no version assume Keras 1 and transpose convolution kernels.
_FILE_ATTRIBUTES = {"keras_version": "3.0.0", "backend": "tensorflow"}


def read_h5(path: str | os.PathLike) -> ModelFile:
    """Reads a legacy Keras .h5 file; see ``read_model_file``."""
    path = Path(path)
    with open_hdf5(path) as file:
        text = text_attribute(file, "model_config", MAX_CONFIG_BYTES)
        if text is None:
            raise ModelFileError(
                "no 'model_config' attribute, expected a whole Keras model; import old weights "
                "with 'python -m speech.weights import', or save it again with model.save()"
            )
        plan = plan_layers(parse_json(text, "'model_config'"))
        _refuse_reversed_kernels(file)
        text = text_attribute(file, META_ATTRIBUTE, MAX_META_BYTES)
        meta = {} if text is None else parse_json(text, f"'{META_ATTRIBUTE}'")
        if not isinstance(meta, dict):
            raise ModelFileError(f"'{META_ATTRIBUTE}' is {show(meta)}, expected a JSON object")
        check_conventions([layer for layer, _ in plan], meta)
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


def _refuse_reversed_kernels(file: hdf5.Group) -> None:
    attribute = file.attribute("backend")
    if attribute is not None and attribute.datatype.is_string:
        backend = text_attribute(file, "backend", 100)
        if backend in ("theano", "cntk"):
            raise ModelFileError(
                f"saved with the backend {backend!r}, whose kernels run backwards; load it in "
                "Keras 2 with TensorFlow and save it again"
            )


def _read_weights(groups: hdf5.Group, layer: LayerSpec, shapes: Shapes) -> dict[str, np.ndarray]:
    """Reads the weights of one layer, all of ``shapes`` and no others."""
    if not shapes:
        return {}
    group = child_group(groups, layer.name)
    names = names_attribute(group, "weight_names")
    ends = [name.removesuffix(":0").rpartition("/")[2] for name in names]
    if layer.class_name == "Bidirectional" and ends == [key.partition("_")[2] for key in shapes]:
        ends = list(shapes)  # Keras gives both directions the same names, the forward one first
    paths = dict(zip(ends, names, strict=True))
    if len(names) != len(paths) or paths.keys() != shapes.keys():
        raise ModelFileError(
            f"layer {layer.name!r} ({layer.class_name}) holds the weights {show(names)}, "
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
    with refusals(path):
        if path.suffix != ".h5":
            raise ModelFileError("cannot be written: expected a name that ends in .h5")
        layers = linked(layers)
        config_text = json.dumps(
            model_config_of(layers), separators=None if is_chain(layers) else (",", ":")
        )
        text_of_meta = meta_text(meta)
        plan = plan_layers(json.loads(config_text))
        check_conventions([layer for layer, _ in plan], meta)
        by_name = {layer.name: layer for layer in layers}
        arrays = {}
        for planned, shapes in plan:
            layer = by_name[planned.name]
            if layer.weights.keys() != shapes.keys():
                raise ModelFileError(
                    f"{layer.where} has the weights {sorted(layer.weights)}, expected "
                    f"{sorted(shapes)}"
                )
            weights = {key: np.asarray(layer.weights[key]) for key in shapes}
            for key, shape in shapes.items():
                _check_array(weights[key], shape, f"{layer.name}/{key}")
            arrays[layer.name] = weights
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            _hdf5_image(config_text, text_of_meta, arrays, lean=not is_chain(layers))
        )


def _hdf5_image(
    config_text: str,
    text_of_meta: str,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    *,
    lean: bool,
) -> bytes:
    """Returns the bytes of a model file.

    By default HDF5 takes 2.8 kB for the two groups of a layer, which is as much as the weights of a
    layer of a small network with skips. A list of links instead of a symbol table (any HDF5 since
    1.8 reads both), room for structures asked for as it is needed, and no groups for layers
    without weights leave a third. Chains, which have few layers, are written as they always were.

    Args:
        config_text: The ``model_config`` attribute.
        text_of_meta: The ``speech_meta`` attribute.
        arrays: Layer name -> its weights by name.
        lean: Whether to save these bytes.
    """
    options: dict[str, Any] = {"driver": "core", "backing_store": False}
    if lean:
        arrays = {name: weights for name, weights in arrays.items() if weights}
        options["meta_block_size"] = 1
        as_links = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        as_links.set_link_creation_order(h5py.h5p.CRT_ORDER_TRACKED)
    # In memory: on a full disk HDF5 can neither write nor close a file, and crashes.
    with h5py.File("model.h5", "w", **options) as file:
        file.attrs.update(_FILE_ATTRIBUTES)
        file.attrs["model_config"] = config_text
        file.attrs[META_ATTRIBUTE] = text_of_meta
        groups = file.create_group("model_weights")
        groups.attrs.update(_FILE_ATTRIBUTES)
        groups.attrs["layer_names"] = _bytes_array(arrays)
        for name, weights in arrays.items():
            if lean:
                for path in (name, f"{name}/{name}"):
                    h5py.h5g.create(groups.id, path.encode(), gcpl=as_links)
            group = groups.require_group(name)
            group.attrs["weight_names"] = _bytes_array(f"{name}/{key}" for key in weights)
            for key, array in weights.items():
                group[f"{name}/{key}"] = array
        file.flush()
        return file.id.get_file_image()


def _bytes_array(names: Any) -> np.ndarray:
    return np.array([name.encode() for name in names] or np.empty(0, "S1"))


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
            raise ModelFileError(
                "not a regular file, expected an HDF5 model file; of a SavedModel folder, load the "
                "model and save it with model.save('NAME.h5')"
            )
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelFileError(
                f"{path.stat().st_size:,} bytes, expected at most {MAX_FILE_BYTES:,}"
            )
        try:
            with open(path, "rb") as stream:
                if stream.read(4) == b"PK\3\4":
                    raise ModelFileError(
                        "an archive, as .keras files are, expected an HDF5 file; load the model "
                        "with Keras and save it with model.save('NAME.h5')"
                    )
                yield hdf5.File(stream).root
        except (hdf5.Hdf5Error, OSError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(
                f"not a readable HDF5 file ({reason}); it may be truncated or of another "
                "format: copy it again or save it again"
            ) from None


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
        raise ModelFileError(f"no {show(where)} in the file; save it again")
    if link.kind != "HardLink":
        raise ModelFileError(
            f"refused: {show(where)} is a link ({link.kind}), expected the data "
            "itself (see docs/security.md)"
        )
    child = group.child(name)
    if child is None:
        raise ModelFileError(f"{show(where)} is neither a group nor a dataset, expected weights")
    return child


def child_group(group: hdf5.Group, name: str) -> hdf5.Group:
    """Returns a hard-linked child that is a group."""
    child = hard_linked(group, name)
    if not isinstance(child, hdf5.Group):
        raise ModelFileError(f"{show(child.name)} is a dataset, expected a group")
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
        raise ModelFileError(f"{show(dataset.name)} is a group, expected a dataset")
    where = show(dataset.name)
    if dataset.datatype.dtype is None:
        raise ModelFileError(f"{where} is {dataset.datatype.name}, expected float32")
    if dataset.shape != shape:
        raise ModelFileError(f"{where} has shape {show(dataset.shape)}, expected {shape}")
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
        raise ModelFileError(f"{show(name)} is {array.dtype}, expected float32")
    if array.shape != shape:
        raise ModelFileError(f"{show(name)} has shape {array.shape}, expected {shape}")


def _check_array(array: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    _check_type_and_shape(array, shape, name)
    if not np.isfinite(array).all():
        raise ModelFileError(
            f"{show(name)} holds NaN or infinite values, expected finite weights; "
            "the training may have diverged: use an earlier checkpoint"
        )
