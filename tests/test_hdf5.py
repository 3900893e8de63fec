"""The HDF5 reader against the library: the same content, and refusals where it would go astray."""

import contextlib

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from speech.modelfile import hdf5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


@pytest.fixture
def opened():
    """Returns what opens a file and gives its root; files are closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda path: hdf5.File(stack.enter_context(open(path, "rb"))).root


def assert_same(ours, theirs):
    """Compares links, attributes and arrays of a group with what h5py reads."""
    for name in theirs:
        link = theirs.get(name, getlink=True)
        assert ours.link(name).kind == type(link).__name__
        if not isinstance(link, h5py.HardLink):
            continue
        child, other = ours.child(name), theirs[name]
        assert child.name == other.name
        for key, value in other.attrs.items():
            texts = [text if isinstance(text, bytes) else text.encode() for text in np.ravel(value)]
            assert child.attribute(key).strings() == texts
        if isinstance(other, h5py.Group):
            assert_same(child, other)
        else:
            assert child.shape == other.shape
            assert_array_equal(child.read(), other[...])


def fill(group, rng, children):
    for index in range(children):
        group[f"x{index}"] = rng.standard_normal((index % 3, 2, 5)).astype("f4")
        group[f"x{index}"].attrs["free"] = ["a", "bc", "é"]
        group[f"x{index}"].attrs["fixed"] = np.array([b"ab", b"c"])


@pytest.mark.parametrize("children", [0, 1, 8, 9, 40, 700])
def test_groups_of_every_size_are_read_as_the_library_does(children, opened, path, rng):
    """Past 256 entries, the index of a group has a second level."""
    with h5py.File(path, "w") as file:
        fill(file.create_group("g").create_group("h"), rng, children)
    with h5py.File(path) as file:
        assert_same(opened(path), file)


def test_links_are_told_apart(opened, path):
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(3, "f4")
        file["soft"] = h5py.SoftLink("/x")
        file["loop"] = file["/"]
        group = file.create_group("g")
        group["far"] = h5py.ExternalLink("other.h5", "/x")
        group["near"] = file["x"]
    root = opened(path)
    assert root.link("soft").kind == "SoftLink"
    assert root.child("loop").child("loop").child("x").read().tolist() == [1, 1, 1]
    assert root.child("g").link("far").kind == "ExternalLink"
    assert root.child("g").child("near").read().tolist() == [1, 1, 1]
    assert root.link("absent") is None
    for name in ("soft", "absent"):
        with pytest.raises(hdf5.Hdf5Error, match="not a hard link"):
            root.child(name)


@pytest.mark.parametrize("many", [1, 9, 200])
def test_attributes(many, opened, path):
    with h5py.File(path, "w") as file:
        for index in range(many):
            file.attrs[f"a{index}"] = f"value {index}" * index
    root = opened(path)
    for index in range(many):
        attribute = root.attribute(f"a{index}")
        assert attribute.shape == () and attribute.datatype.is_string
        assert attribute.string_bytes() == len(f"value {index}") * index
        assert attribute.strings() == [f"value {index}".encode() * index]
    assert root.attribute("absent") is None


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("<f4", "float32"), (">f4", "float32"), ("f2", "float16"), ("f8", "float64"),
     ("i4", "int32"), ("u8", "uint64"), ("?", "enum"), ("S7", "string"), ("V3", "opaque"),
     ([("a", "f4")], "compound"), (h5py.string_dtype(), "string")],
)  # fmt: skip
def test_types(dtype, name, opened, path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (2, 3), dtype)
        if np.dtype(dtype).kind == "f":
            data[...] = 1.5
    found = opened(path).child("x")
    assert found.datatype.name == name
    if name == "float32":
        assert found.read().dtype == np.float32
        assert_array_equal(found.read(), np.full((2, 3), 1.5, "f4"))
    else:
        with pytest.raises(hdf5.Hdf5Error, match="not a plain float32 dataset"):
            found.read()


def test_storage(opened, path):
    with h5py.File(path, "w") as file:
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, dcpl=compact)
        file["compact"][...] = np.arange(4)
        file.create_dataset("chunked", (4,), "f4", chunks=(2,))
        file.create_dataset("packed", (4,), "f4", compression="gzip")
        file.create_dataset("absent", (4,), "f4")
        file.create_dataset("external", (4,), "f4", external=[("other", 0, 16)])
        layout = h5py.VirtualLayout((4,), "f4")
        layout[...] = h5py.VirtualSource("other.h5", "x", (4,))
        file.create_virtual_dataset("virtual", layout)
    root = opened(path)
    kinds = {name: root.child(name).storage for name in
             ("compact", "chunked", "packed", "absent", "external", "virtual")}  # fmt: skip
    assert kinds == {
        "compact": "compact", "chunked": "chunked", "packed": "chunked", "absent": "contiguous",
        "external": "contiguous", "virtual": "virtual",
    }  # fmt: skip
    assert root.child("compact").read().tolist() == [0, 1, 2, 3]
    assert root.child("absent").num_bytes == 0
    assert root.child("external").is_external and not root.child("absent").is_external
    for name in kinds.keys() - {"compact"}:
        with pytest.raises(hdf5.Hdf5Error, match="not a plain"):
            root.child(name).read()


def test_the_newer_format_is_named(opened, path):
    with h5py.File(path, "w", libver="latest") as file:
        file["x"] = 1
    with pytest.raises(hdf5.Hdf5Error, match="superblock [23], expected 0 or 1"):
        opened(path)
    with h5py.File(path, "w") as file:
        file.create_group("g", track_order=True)
    with pytest.raises(hdf5.Hdf5Error, match="newer format than Keras writes"):
        opened(path).child("g")


def test_what_a_file_may_ask_for_is_bounded(opened, path, monkeypatch):
    with h5py.File(path, "w") as file:
        for index in range(50):
            file[f"x{index}"] = np.ones(3, "f4")
    for limit, most in (("MAX_STEPS", 50), ("MAX_METADATA_BYTES", 2000)):
        with monkeypatch.context() as patch:
            patch.setattr(hdf5, limit, most)
            with pytest.raises(hdf5.Hdf5Error, match=f"over {most:,} "):
                opened(path).link("x1")


def test_a_file_that_shrinks_is_refused(opened, path):
    with h5py.File(path, "w") as file:
        file["x"] = np.ones(100_000, "f4")
    data = opened(path).child("x")
    with open(path, "r+b") as stream:
        stream.truncate(100_000)
    with pytest.raises(hdf5.Hdf5Error, match="became shorter"):
        data.read()
