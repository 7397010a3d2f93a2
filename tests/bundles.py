"""A writer of TensorFlow's checkpoint format, for tests: as plain as can be, and without TensorFlow."""

import struct
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import numpy as np

MAGIC = 0xDB4775248B80FB57


def write_bundle(prefix: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """`prefix`.index and `prefix`.data-00000-of-00001 with fp32 tensors."""
    data, pairs = b"", [(b"", _number(1, 1) + _bytes(3, _number(1, 1)))]
    for name, tensor in sorted(tensors.items()):
        numbers = np.ascontiguousarray(tensor, dtype="<f4").tobytes()
        shape = b"".join(_bytes(2, _number(1, length)) for length in tensor.shape)
        entry = _number(1, 1) + _bytes(2, shape) + _number(4, len(data)) + _number(5, len(numbers))
        pairs.append((name.encode(), entry + b"\x35" + struct.pack("<I", masked(numbers))))
        data += numbers
    table = _sealed(block(pairs))
    meta_at, table_size = len(table), len(table) - 5
    table += _sealed(block([]))
    addresses_at = len(table)
    addresses = block([(pairs[-1][0], _varint(0) + _varint(table_size))])
    table += _sealed(addresses)
    footer = _varint(meta_at) + _varint(len(block([]))) + _varint(addresses_at) + _varint(len(addresses))
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
    prefix.with_name(prefix.name + ".index").write_bytes(table + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC))


def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Pairs whose keys leave out nothing, and one address to jump in."""
    body = b"".join(_varint(0) + _varint(len(key)) + _varint(len(value)) + key + value for key, value in pairs)
    return body + struct.pack("<II", 0, 1)


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _sealed(contents: bytes) -> bytes:
    return contents + b"\0" + struct.pack("<I", masked(contents + b"\0"))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])
