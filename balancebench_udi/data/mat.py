"""MATLAB files, read without scipy, whose reader ends the process on some damaged ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from balancebench_udi.errors import UserError

MOST = 2**28
"""Bytes that a file may unpack to: those that are read take at most 11 MB."""
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Type of an element -> numpy's."""
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS, _NAMED = range(6, 16), range(1, 16)
"""Classes of arrays: of numbers; those that begin with flags, dimensions and name."""
_COMPLEX = 0x800


def read_mat(data: bytes, path: Path | str, variables: Iterable[str]) -> dict[str, np.ndarray]:
    """The ``variables`` of a MATLAB v5 file, finite numbers, in the type they are stored in.

    Args:
        data: the file's bytes.
        path: what an error calls the file.

    Raises:
        UserError: a damaged file, one that unpacks to more than :data:`MOST` bytes, an absent variable, or one that
            is not of finite real numbers.
    """
    try:
        found = dict(_arrays(data))
    except OverflowError:
        raise UserError(f"{path} must unpack to at most {MOST} bytes, it is larger; fetch it again") from None
    except (LookupError, ValueError, struct.error, zlib.error):
        raise UserError(f"{path} must be a whole MATLAB v5 file, it is damaged; fetch it again") from None
    arrays = {}
    for name in variables:
        if name not in found:
            raise UserError(f"{path} must hold the variable {name}, it does not; fetch it again")
        if (value := found[name]) is None or not np.isfinite(value).all():
            raise UserError(f"{name} in {path} must hold finite numbers only, found something else; fetch it again")
        arrays[name] = value
    return arrays


def _arrays(data: bytes) -> Iterator[tuple[str, np.ndarray | None]]:
    """Name and value of each variable, None where that is not of real numbers.

    Raises:
        OverflowError: they unpack to more than :data:`MOST` bytes.
    """
    order = {b"IM": "<", b"MI": ">"}[data[126:128]]
    at, left = 128, MOST
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        element = data[at + 8 : at + 8 + size]
        at += 8 + size
        if at > len(data):
            raise ValueError
        if kind == _COMPRESSED:
            inflate = zlib.decompressobj()
            element = inflate.decompress(element, left + 1)
            left -= len(element)
            if left < 0:
                raise OverflowError
            kind, size = struct.unpack_from(f"{order}II", element)
            element = element[8:]
            if not inflate.eof or len(element) != size:
                raise ValueError
        if kind == _MATRIX:
            parts = _parts(element, order)
            (flags,) = struct.unpack_from(f"{order}I", next(parts, (0, b""))[1])
            if flags & 0xFF in _NAMED:
                dims, name, values = (next(parts, (0, b"")) for _ in range(3))
                numbers = flags & 0xFF in _NUMBERS and not flags & _COMPLEX
                yield name[1].decode("utf-8"), _values(dims[1], *values, order) if numbers else None


def _values(dims: bytes, kind: int, values: bytes, order: str) -> np.ndarray:
    shape = np.frombuffer(dims, f"{order}i4").tolist()
    if min(shape) < 0:
        raise ValueError
    return np.frombuffer(values, f"{order}{_TYPES[kind]}").reshape(shape[::-1]).T


def _parts(element: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each part of an array."""
    at = 0
    while at < len(element):
        kind, size = struct.unpack_from(f"{order}II", element, at)
        at += 8
        if kind >> 16:  # at most 4 bytes, which stand where its size would
            kind, size, at = kind & 0xFFFF, kind >> 16, at - 4
            if size > 4:
                raise ValueError
        content = element[at : at + size]
        if len(content) != size:
            raise ValueError
        yield kind, content
        at = -(-(at + size) // 8) * 8
