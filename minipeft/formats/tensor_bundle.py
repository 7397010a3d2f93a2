"""TensorFlow's checkpoint format, the *tensor bundle*, read without TensorFlow.

A bundle is an index and a data file. The index (`model.ckpt.index`) is a sorted table as LevelDB writes it: blocks of
key-value pairs, in which a key leaves out what it shares with the one before; behind each block one byte that says how
it is compressed and a checksum; at the end of the file a footer that says where the block of block addresses lies. A
key is a tensor's name, a value a Protocol Buffers message `BundleEntryProto`: type, shape, and where the numbers lie in
`model.ckpt.data-00000-of-00001`, with their CRC-32C. The empty key holds the header.

Sources: LevelDB's `doc/table_format.md`; TensorFlow's `tensor_bundle.proto`.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import torch
from torch import Tensor

from minipeft.files import CheckpointError
from minipeft.formats.stored import PART_BYTES, Stored

INDEX_SUFFIX, DATA_SUFFIX = ".index", ".data-00000-of-00001"
MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES, TRAILER_BYTES = 48, 5
MAX_INDEX_BYTES = 50_000_000
DTYPES = {1: torch.float32, 19: torch.float16, 14: torch.bfloat16}
"""TensorFlow's DT_FLOAT, DT_HALF, DT_BFLOAT16: what weights can be."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""The wire types of Protocol Buffers."""


class _Broken(Exception):
    """What is wrong in the bytes; becomes a CheckpointError that names the file."""


@dataclass(frozen=True)
class _Entry:
    """One `BundleEntryProto`."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


def read_bundle(prefix: Path) -> dict[str, Stored]:
    """The tensors of the bundle `prefix`.index and `prefix`.data-00000-of-00001, by name.

    Raises FileNotFoundError if either is missing, CheckpointError on anything that is no whole bundle; `Stored.read`
    raises it where the numbers do not have the checksum that the index gives them.
    """
    index, data = (prefix.with_name(prefix.name + suffix) for suffix in (INDEX_SUFFIX, DATA_SUFFIX))
    for path in (index, data):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}.")
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{index} has {index.stat().st_size:,} bytes, far more than an index needs.")
    try:
        entries = dict(_entries(index.read_bytes()))
        return {name: _stored(name, entry, data) for name, entry in entries.items()}
    except (_Broken, IndexError, struct.error, UnicodeDecodeError) as error:
        reason = error if isinstance(error, _Broken) else "it ends in the middle of something"
        raise CheckpointError(f"{index} is no whole index of a TensorFlow checkpoint: {reason}.") from None


def _stored(name: str, entry: _Entry, data: Path) -> Stored:
    if entry.dtype not in DTYPES:
        raise _Broken(f"tensor {name} has TensorFlow's type number {entry.dtype}, which no weights have")
    dtype = DTYPES[entry.dtype]
    if entry.sliced or entry.shard != 0:
        raise _Broken(f"tensor {name} is spread over several places, which GPT-2's files never are")
    if entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise _Broken(f"tensor {name} has {entry.size} bytes, but its shape {entry.shape} needs another number")
    if entry.offset + entry.size > data.stat().st_size:
        raise _Broken(f"tensor {name} reaches beyond the end of {data.name}; was a copy or download cut short")

    def read() -> Tensor:
        tensor = torch.empty(entry.size, dtype=torch.uint8)
        numbers, crc = tensor.numpy().data, 0
        with open(data, "rb") as file:
            file.seek(entry.offset)
            for start in range(0, entry.size, PART_BYTES):  # the only memory beside the tensor's own is one such part
                part = numbers[start : start + PART_BYTES]
                whole = file.readinto(part) == len(part)
                crc = google_crc32c.extend(crc, bytes(part)) if whole else -1
                if not whole:
                    break
        if crc != _unmasked(entry.crc):
            raise CheckpointError(f"{data}: tensor {name} does not have the checksum in the index; it is damaged.")
        return tensor.view(dtype).reshape(entry.shape)

    return Stored(entry.shape, dtype, read)


def _entries(index: bytes) -> Iterator[tuple[str, _Entry]]:
    """Every tensor of an index."""
    if len(index) < FOOTER_BYTES or struct.unpack("<Q", index[-8:])[0] != MAGIC:
        raise _Broken("its last eight bytes are not those of such a file")
    footer = index[-FOOTER_BYTES:]
    _, place = _handle(footer, 0)  # of a block about the table itself, which nobody needs
    addresses, _ = _handle(footer, place)
    for _, address in _pairs(_block(index, addresses)):
        for key, value in _pairs(_block(index, _handle(address, 0)[0])):
            if key:
                yield key.decode("utf-8"), _entry(value)
            else:
                _check_header(value)


def _block(index: bytes, handle: tuple[int, int]) -> bytes:
    """A block without its trailer, its checksum verified."""
    offset, size = handle
    end = offset + size
    if end + TRAILER_BYTES > len(index) - FOOTER_BYTES:
        raise _Broken("a block reaches beyond its end")
    compression, stored = struct.unpack("<BI", index[end : end + TRAILER_BYTES])
    if google_crc32c.value(index[offset : end + 1]) != _unmasked(stored):
        raise _Broken("a block does not have its checksum")
    if compression != 0:
        raise _Broken("a block is compressed, which TensorFlow's are not")
    return index[offset:end]


def _unmasked(stored: int) -> int:
    """The checksum that LevelDB and TensorFlow stored as `stored`: they rotate it and add a constant."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The key-value pairs of a block. At its end stand addresses for jumping in, 4 bytes each, and their number."""
    (jumps,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * jumps
    if end < 0:
        raise _Broken("a block is shorter than it says")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        unshared, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + unshared + length > end:
            raise _Broken("a key or value reaches beyond its block")
        key = key[:shared] + block[place : place + unshared]
        place += unshared
        yield key, block[place : place + length]
        place += length


def _entry(message: bytes) -> _Entry:
    dtype = shard = offset = size = crc = 0
    shape: tuple[int, ...] = ()
    sliced = False
    for field, value in _fields(message):
        match field, value:
            case 1, int():
                dtype = value
            case 2, bytes():
                shape = tuple(_dimension(part) for number, part in _fields(value) if number == 2)
            case 3, int():
                shard = value
            case 4, int():
                offset = value
            case 5, int():
                size = value
            case 6, int():
                crc = value
            case 7, _:
                sliced = True
    return _Entry(dtype, shape, shard, offset, size, crc, sliced)


def _dimension(message: int | bytes) -> int:
    """`TensorShapeProto.Dim`: its size; a size of 0 is not written."""
    if not isinstance(message, bytes):
        raise _Broken("a shape is none")
    size = next((value for field, value in _fields(message) if field == 1), 0)
    if not isinstance(size, int) or size >= 1 << 63:
        raise _Broken("a shape has a negative length")
    return size


def _check_header(message: bytes) -> None:
    """`BundleHeaderProto`: number of data files, and 0 for numbers with the lowest byte first."""
    header = dict(_fields(message))
    if header.get(1) != 1 or header.get(2, 0) != 0:
        raise _Broken("it belongs to several data files, or to a machine with another order of bytes")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a Protocol Buffers message: (number, value)."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, place = _varint(message, place)
            yield field, value
            continue
        if kind == BYTES:
            length, place = _varint(message, place)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise _Broken("a message holds an unknown kind of field")
        if place + length > len(message):
            raise _Broken("a field reaches beyond its message")
        part = message[place : place + length]
        yield field, part if kind == BYTES else int.from_bytes(part, "little")
        place += length


def _handle(source: bytes, place: int) -> tuple[tuple[int, int], int]:
    """(offset, size) of a block, and the place behind the handle."""
    offset, place = _varint(source, place)
    size, place = _varint(source, place)
    return (offset, size), place


def _varint(source: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = source[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _Broken("a number has more than ten bytes")
