"""HDF5 files of strangers, read in Python: the part of the format that Keras writes.

The HDF5 library parses a file in C and trusts much of it: damage made on purpose can make it hang,
ask for all memory or crash. This reader knows the few structures that h5py writes by default
(HDF5 File Format Specification, "earliest" versions), and

* reads nothing outside of the file, and refuses a file that is shorter than it says;
* visits at most `MAX_STEPS` structures and `MAX_METADATA_BYTES`, so that a circle or a tree that
  lies about its size ends;
* asks for memory only for bytes that the file holds;
* never opens another file, follows a link or decompresses: it says that they are there.

What it knows: superblock 0 and 1, object headers 1, groups as symbol tables or as lists of links,
attributes, strings of fixed and free length, contiguous and compact datasets of float32. What it
does not know it names in an `Hdf5Error`. Numbers are little-endian; sizes and addresses are in
bytes.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from io import BufferedReader
from typing import NamedTuple

import numpy as np

MAX_STEPS = 200_000
MAX_METADATA_BYTES = 64 << 20
MAX_NAME_BYTES = 1024
MAX_RANK = 32

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = (1 << 64) - 1

# Messages of an object header.
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT = 1, 2, 3, 6, 7, 8
_FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE, _ATTRIBUTE_INFO = 11, 12, 16, 17, 21
_SHARED = 0x02  # flag of a message: its body lies elsewhere

_LAYOUTS = ("compact", "contiguous", "chunked", "virtual")
_LINKS = {0: "HardLink", 1: "SoftLink", 64: "ExternalLink"}
_CLASSES = ("int", "float", "time", "string", "bits", "opaque", "compound", "reference", "enum",
            "variable-length", "array")  # fmt: skip
# Bit field and properties of IEEE float32: sign, offsets and sizes of the parts, bias.
_FLOAT32 = {b"\x20\x1f\x00": np.dtype("<f4"), b"\x21\x1f\x00": np.dtype(">f4")}
_FLOAT32_PROPERTIES = struct.pack("<2H4BI", 0, 32, 23, 8, 0, 23, 127)


class Hdf5Error(ValueError):
    """The file is damaged, or uses a part of HDF5 that Keras does not write."""


class Link(NamedTuple):
    """An entry of a group.

    Attributes:
        kind: 'HardLink', 'SoftLink', 'ExternalLink' or 'UserLink'.
        address: Of the object, for a hard link.
    """

    kind: str
    address: int


@dataclass(frozen=True)
class Datatype:
    """Type of the values of a dataset or an attribute.

    Attributes:
        name: For messages, such as 'float64' or 'compound'.
        size: Bytes of a value.
        dtype: NumPy's type of float32, None for all others.
        is_string: Whether values are strings.
        is_free_length: Whether they are references to strings in a heap.
    """

    name: str
    size: int
    dtype: np.dtype | None = None
    is_string: bool = False
    is_free_length: bool = False


class File:
    """An HDF5 file that is open for reading.

    Args:
        stream: The file, seekable; it stays open.

    Raises:
        Hdf5Error: It is not an HDF5 file, or truncated.
    """

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream
        self.num_bytes = os.fstat(stream.fileno()).st_size
        self._steps = self._metadata_bytes = 0
        self._messages: dict[int, list[tuple[int, bytes]]] = {}
        self._attributes: dict[int, dict[bytes, tuple[bytes, bytes, bytes]]] = {}
        self._links: dict[int, dict[str, Link]] = {}
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        root = self.open(self._root_address(), "/")
        if not isinstance(root, Group):
            raise Hdf5Error("the root is not a group")
        self.root = root

    def read(self, address: int, num_bytes: int) -> bytes:
        """Returns bytes of a structure, never beyond the end of the file."""
        self.count_steps()
        self._metadata_bytes += num_bytes
        if self._metadata_bytes > MAX_METADATA_BYTES:
            raise Hdf5Error(f"over {MAX_METADATA_BYTES:,} bytes of structures")
        self._check_range(address, num_bytes)
        self._stream.seek(address)
        data = self._stream.read(num_bytes)
        if len(data) != num_bytes:
            raise Hdf5Error("the file became shorter while it was read")
        return data

    def read_array(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array whose values lie at an address; asks for no memory if they cannot."""
        self._check_range(address, dtype.itemsize * math.prod(shape))
        array = np.empty(shape, dtype)
        self._stream.seek(address)
        if self._stream.readinto(array.data.cast("B")) != array.nbytes:
            raise Hdf5Error("the file became shorter while it was read")
        return array

    def open(self, address: int, name: str) -> Group | Dataset | None:
        """Returns the object at an address, None if it is neither a group nor a dataset.

        Args:
            address: Of its header.
            name: Its path, for messages.
        """
        messages = self._messages_at(address)
        self.count_steps(len(messages))  # many links may lead to one long header
        kinds = {kind for kind, _ in messages}
        if kinds & {_SYMBOL_TABLE, _LINK_INFO, _LINK}:
            return Group(self, address, name, messages)
        if {_DATASPACE, _DATATYPE, _LAYOUT} <= kinds:
            return Dataset(self, address, name, messages)
        return None

    def links_of(self, address: int) -> dict[str, Link]:
        """Returns the entries of the group whose header is at an address."""
        if address not in self._links:
            self._links[address] = self._read_links(self._messages_at(address))
        return self._links[address]

    def attributes_of(self, address: int) -> dict[bytes, tuple[bytes, bytes, bytes]]:
        """Returns name -> (datatype, dataspace, data) of the attributes of the object there."""
        if address not in self._attributes:
            found: dict[bytes, tuple[bytes, bytes, bytes]] = {}
            for kind, body in self._messages_at(address):
                if kind == _ATTRIBUTE_INFO and _dense_attributes(body) != _UNDEFINED:
                    raise Hdf5Error("attributes are of a newer format than Keras writes")
                if kind == _ATTRIBUTE:
                    name, parts = _attribute_name(body)
                    found.setdefault(name, parts)
            self._attributes[address] = found
        return self._attributes[address]

    def string_at(self, heap: int, index: int, num_bytes: int) -> bytes:
        """Returns a string out of a collection of strings (a "global heap")."""
        if heap not in self._heaps:
            self._heaps[heap] = self._read_heap(heap)
        address, size = self._heaps[heap].get(index, (0, -1))
        if num_bytes > size:
            raise Hdf5Error("its strings are damaged")
        return self.read(address, num_bytes)

    def count_steps(self, count: int = 1) -> None:
        """Counts structures that are looked at; Hdf5Error once there are over `MAX_STEPS`."""
        self._steps += count
        if self._steps > MAX_STEPS:
            raise Hdf5Error(f"over {MAX_STEPS:,} structures")

    def _check_range(self, address: int, num_bytes: int) -> None:
        if num_bytes < 0 or address + num_bytes > self.num_bytes:
            raise Hdf5Error(f"{num_bytes:,} bytes at {address:,} lie outside of the file")

    def _root_address(self) -> int:
        """Checks the superblock and returns the address of the root group."""
        if self.num_bytes < 100 or self.read(0, 8) != _SIGNATURE:
            raise Hdf5Error("it does not start as HDF5 does")
        version, *_, size_of_offsets, size_of_lengths = self.read(8, 7)
        if version not in (0, 1):
            raise Hdf5Error(f"superblock {version}, expected 0 or 1")
        if (size_of_offsets, size_of_lengths) != (8, 8):
            raise Hdf5Error("addresses are not of 8 bytes")
        start = 24 if version == 0 else 28
        base, _, end, _, _, root = struct.unpack("<6Q", self.read(start, 48))
        if base != 0:
            raise Hdf5Error(f"its data starts at {base:,}, expected 0")
        if end > self.num_bytes:
            raise Hdf5Error(f"truncated: {self.num_bytes:,} of {end:,} bytes are there")
        return root

    def _messages_at(self, address: int) -> list[tuple[int, bytes]]:
        """Returns (kind, body) of the messages in the object header at an address."""
        if address in self._messages:
            return self._messages[address]
        version, _, count, _, size = struct.unpack("<2BH2I", self.read(address, 16)[:12])
        if version != 1:
            raise Hdf5Error("an object header is damaged, or of a newer format than Keras writes")
        blocks, found, num_found = [(address + 16, size)], [], 0
        for start, num_bytes in blocks:  # continuations add to it on the way
            block, place = self.read(start, num_bytes), 0
            while num_found < count and place + 8 <= num_bytes:
                self.count_steps()
                num_found += 1
                kind, size, flags = struct.unpack_from("<2HB", block, place)
                body = block[place + 8 : place + 8 + size]
                place += 8 + size
                if len(body) < size:
                    raise Hdf5Error("an object header is damaged")
                if kind == _CONTINUATION:
                    blocks.append(_unpack("<2Q", body))
                elif kind and flags & _SHARED:
                    raise Hdf5Error("an object header shares a message with another")
                else:
                    found.append((kind, body))
        if num_found != count:
            raise Hdf5Error("an object header is damaged")
        self._messages[address] = found
        return found

    def _read_links(self, messages: list[tuple[int, bytes]]) -> dict[str, Link]:
        links: dict[str, Link] = {}
        for kind, body in messages:
            if kind == _SYMBOL_TABLE:
                found = self._symbols(*_unpack("<2Q", body))
            elif kind == _LINK:
                found = [_link_of(body)]
            elif kind == _LINK_INFO and _fractal_heap(body) != _UNDEFINED:
                raise Hdf5Error("a group is of a newer format than Keras writes")
            else:
                continue
            for name, link in found:
                if name in links:
                    raise Hdf5Error("a group has two entries of one name")
                links[name] = link
        return links

    def _symbols(self, tree: int, heap: int) -> list[tuple[str, Link]]:
        """Returns the entries of a symbol table: a B-tree of nodes, their names in a heap."""
        mark, version, size, _, names = struct.unpack("<4sB3x3Q", self.read(heap, 32))
        if mark != b"HEAP" or version != 0:
            raise Hdf5Error("the names of a group are damaged")
        self._check_range(names, size)
        found, pending = [], [(tree, -1)]
        while pending:
            address, expected = pending.pop()
            mark, kind, level, used = struct.unpack("<4s2BH16x", self.read(address, 24))
            if mark != b"TREE" or kind != 0 or expected not in (-1, level):
                raise Hdf5Error("the index of a group is damaged")
            keys_and_children = self.read(address + 24, 16 * used + 8)
            children = struct.unpack(f"<{2 * used + 1}Q", keys_and_children)[1::2]
            if level:
                pending += [(child, level - 1) for child in children]
                continue
            for child in children:
                found += self._entries(child, names, size)
        return found

    def _entries(self, address: int, names: int, size: int) -> list[tuple[str, Link]]:
        mark, version, count = struct.unpack("<4sBxH", self.read(address, 8))
        if mark != b"SNOD" or version != 1:
            raise Hdf5Error("the entries of a group are damaged")
        table, found = self.read(address + 8, 40 * count), []
        for offset, header, kind in struct.iter_unpack("<2QI20x", table):
            name = self._name(names + offset, size - offset)
            found.append((name, Link("SoftLink" if kind == 2 else "HardLink", header)))
        return found

    def _name(self, address: int, most: int) -> str:
        most = min(most, MAX_NAME_BYTES + 1, self.num_bytes - address)
        name, nul, _ = self.read(address, most).partition(b"\0")
        if not nul:
            raise Hdf5Error("the names of a group are damaged")
        return name.decode("utf-8", "surrogateescape")

    def _read_heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Returns index -> (address, bytes) of the strings in a collection."""
        mark, version, size = struct.unpack("<4sB3xQ", self.read(address, 16))
        if mark != b"GCOL" or version != 1:
            raise Hdf5Error("its strings are damaged")
        self._check_range(address, size)
        found, place, end = {}, address + 16, address + size
        while place + 16 <= end:
            index, num_bytes = struct.unpack("<H6xQ", self.read(place, 16))
            if index == 0:  # free space, always the last
                break
            if place + 16 + num_bytes > end:
                raise Hdf5Error("its strings are damaged")
            found[index] = place + 16, num_bytes
            place += 16 + (num_bytes + 7) // 8 * 8
        return found


class _Object:
    """The common part of groups and datasets: a path and attributes."""

    def __init__(
        self, file: File, address: int, name: str, messages: list[tuple[int, bytes]]
    ) -> None:
        self.file = file
        self.name = name
        self._address = address
        self._all = messages

    def attribute(self, name: str) -> Attribute | None:
        """Returns an attribute by name, None if there is none."""
        parts = self.file.attributes_of(self._address).get(name.encode())
        return None if parts is None else _attribute_of(self.file, *parts)

    def _message(self, kind: int) -> bytes | None:
        bodies = [body for found, body in self._all if found == kind]
        if len(bodies) > 1:
            raise Hdf5Error("an object header says a thing twice")
        return bodies[0] if bodies else None


class Group(_Object):
    """A group: named links to objects."""

    def link(self, name: str) -> Link | None:
        """Returns an entry by name, None if there is none."""
        return self.file.links_of(self._address).get(name)

    def child(self, name: str) -> Group | Dataset | None:
        """Returns the object behind a hard link; None if it is of neither kind.

        Raises:
            Hdf5Error: There is no such hard link, or the object is damaged.
        """
        link = self.link(name)
        if link is None or link.kind != "HardLink":
            raise Hdf5Error("not a hard link")
        return self.file.open(link.address, f"{self.name}/{name}".replace("//", "/"))


class Dataset(_Object):
    """A dataset; nothing of its data is read before `read`.

    Attributes:
        datatype: Type of its values.
        shape: Its shape.
        storage: 'contiguous', 'compact', 'chunked' or 'virtual'; filters only go with 'chunked'.
        is_external: Whether its data is in other files.
        num_bytes: What is stored in the file, 0 if it was never written.
    """

    def __init__(
        self, file: File, address: int, name: str, messages: list[tuple[int, bytes]]
    ) -> None:
        super().__init__(file, address, name, messages)
        self.datatype = _datatype_of(self._message(_DATATYPE) or b"")
        self.shape = _shape_of(self._message(_DATASPACE) or b"")
        self.is_external = self._message(_EXTERNAL) is not None
        layout = self._message(_LAYOUT) or b""
        version, kind = _unpack("<2B", layout)
        if version not in (3, 4) or kind >= len(_LAYOUTS):
            raise Hdf5Error("the layout of a dataset is damaged, or older than Keras")
        self.storage = "chunked" if self._message(_FILTERS) is not None else _LAYOUTS[kind]
        self.num_bytes = 0
        self._start, self._data = _UNDEFINED, b""
        if self.storage == "compact":
            (self.num_bytes,) = _unpack("<H", layout[2:])
            self._data = layout[4 : 4 + self.num_bytes]
        elif self.storage == "contiguous":
            self._start, size = _unpack("<2Q", layout[2:])
            self.num_bytes = 0 if self._start == _UNDEFINED else size

    def read(self) -> np.ndarray:
        """Returns the values of a float32 dataset that is stored in the file itself.

        Raises:
            Hdf5Error: It is of another type or storage, or does not lie in the file.
        """
        dtype = self.datatype.dtype
        plain = self.storage in ("compact", "contiguous") and not self.is_external
        if dtype is None or not plain or self.num_bytes != 4 * math.prod(self.shape):
            raise Hdf5Error(f"{self.name!r:.80} is not a plain float32 dataset")
        if self.storage == "compact":
            if len(self._data) != self.num_bytes:
                raise Hdf5Error("a dataset is damaged")
            return np.frombuffer(self._data, dtype).reshape(self.shape).astype(np.float32)
        if not self.num_bytes:
            return np.empty(self.shape, np.float32)
        return self.file.read_array(self._start, self.shape, dtype).astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Attribute:
    """An attribute.

    Attributes:
        file: Where it is stored.
        datatype: Type of its values.
        shape: Its shape, () for one value.
    """

    file: File
    datatype: Datatype
    shape: tuple[int, ...]
    _data: bytes

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def string_bytes(self) -> int:
        """Returns what its strings take together, as the file says."""
        if not self.datatype.is_free_length:
            return self.count * self.datatype.size
        return sum(length for length, _, _ in self._references())

    def strings(self) -> list[bytes]:
        """Returns its strings, without padding; look at `string_bytes` first."""
        self.file.count_steps(self.count)  # many links may lead to one long list
        if self.datatype.is_free_length:
            found = [self.file.string_at(heap, index, length)
                     for length, heap, index in self._references()]  # fmt: skip
            return [text.partition(b"\0")[0] for text in found]
        size = self.datatype.size
        return [self._data[i * size : (i + 1) * size].rstrip(b"\0") for i in range(self.count)]

    def _references(self) -> list[tuple[int, int, int]]:
        return list(struct.iter_unpack("<IQI", self._data[: 16 * self.count]))


# --------------------------------------------------------------------------------------------
# Messages


def _unpack(layout: str, data: bytes) -> tuple:
    """Unpacks the start of a message."""
    try:
        return struct.unpack_from(layout, data)
    except struct.error:
        raise Hdf5Error("an object header is damaged") from None


def _fractal_heap(body: bytes) -> int:
    """Returns where a group keeps many links, from its link info."""
    _, flags = _unpack("<2B", body)
    return _unpack("<Q", body[2 + (8 if flags & 1 else 0) :])[0]


def _dense_attributes(body: bytes) -> int:
    """Returns where an object keeps many attributes, from its attribute info."""
    _, flags = _unpack("<2B", body)
    return _unpack("<Q", body[2 + (2 if flags & 1 else 0) :])[0]


def _link_of(body: bytes) -> tuple[str, Link]:
    version, flags = _unpack("<2B", body)
    if version != 1:
        raise Hdf5Error("a link is damaged")
    place, kind = 2, 0
    if flags & 0x08:
        (kind,) = _unpack("<B", body[place:])
        place += 1
    place += (8 if flags & 0x04 else 0) + (1 if flags & 0x10 else 0)
    width = 1 << (flags & 0x03)
    length = int.from_bytes(body[place : place + width], "little")
    place += width
    name = body[place : place + length]
    if not 0 < length <= MAX_NAME_BYTES or len(name) < length:
        raise Hdf5Error("a link is damaged")
    address = _unpack("<Q", body[place + length :])[0] if kind == 0 else _UNDEFINED
    return name.decode("utf-8", "surrogateescape"), Link(_LINKS.get(kind, "UserLink"), address)


def _attribute_name(body: bytes) -> tuple[bytes, tuple[bytes, bytes, bytes]]:
    """Returns name, and then the bytes of datatype, dataspace and data of an attribute."""
    version, flags, *sizes = _unpack("<2B3H", body)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise Hdf5Error("an attribute is damaged, or shares its type")
    place, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(body[place : place + size])
        place += -(-size // 8) * 8 if version == 1 else size
    return parts[0].partition(b"\0")[0], (parts[1], parts[2], body[place:])


def _attribute_of(file: File, datatype: bytes, dataspace: bytes, data: bytes) -> Attribute:
    found, shape = _datatype_of(datatype), _shape_of(dataspace)
    if len(data) < found.size * math.prod(shape):
        raise Hdf5Error("an attribute is damaged")
    return Attribute(file, found, shape, data)


def _shape_of(body: bytes) -> tuple[int, ...]:
    """Returns the shape that a dataspace says; (0,) for one that holds nothing."""
    version, rank, _, kind = _unpack("<4B", body)
    if version not in (1, 2) or rank > MAX_RANK:
        raise Hdf5Error("a shape is damaged")
    if version == 2 and kind == 2:
        return (0,)
    return _unpack(f"<{rank}Q", body[8 if version == 1 else 4 :])


def _datatype_of(body: bytes) -> Datatype:
    first, bits, size = _unpack("<B3sI", body)
    number = first & 0x0F
    name = _CLASSES[number] if number < len(_CLASSES) else "of an unknown type"
    if name == "int":
        return Datatype(f"{'' if bits[0] & 0x08 else 'u'}int{8 * size}", size)
    if name == "float":
        plain = size == 4 and body[8:20] == _FLOAT32_PROPERTIES
        dtype = _FLOAT32.get(bits) if plain else None
        return Datatype(f"{'' if dtype or size != 4 else 'odd '}float{8 * size}", size, dtype)
    if name == "string":
        return Datatype(name, size, is_string=True)
    if name == "variable-length" and bits[0] & 0x0F == 1 and size == 16:
        return Datatype("string", size, is_string=True, is_free_length=True)
    return Datatype(name, size)
