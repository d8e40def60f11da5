"""Archives of many small files, and compressed files, read in bounded memory."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from balancebench_udi.errors import UserError

MOST = 2**28
"""Bytes that an archive may unpack to: those that are read take at most 21 MB (FSDD)."""
_KINDS = {".gz": "tar.gz", ".zip": "zip"}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def read_archive(archive: Path, suffix: str, most: int = MOST) -> dict[str, bytes]:
    """File name, without its folder -> bytes of the files of a zip, tar or tar.gz that end in ``suffix``.

    Raises:
        UserError: a damaged archive; one that unpacks to more than ``most`` bytes; a file in it that is a link,
            encrypted, of an unknown compression, or there twice.
        OSError: an archive that cannot be opened.
    """
    found: dict[str, bytes] = {}
    with archive.open("rb") as file:
        try:
            for name, content in (_zip if archive.suffix == ".zip" else _tar)(file, archive, suffix, most):
                if (base := Path(name).name) in found:
                    raise UserError(f"{archive} must hold every file once, found two of {base!r}; fetch it again")
                found[base] = content
        except (UserError, MemoryError):
            raise
        except Exception:  # zipfile, tarfile and what they unpack with raise nearly anything on a damaged archive
            kind = _KINDS.get(archive.suffix, "tar")
            raise UserError(f"{archive} must be a whole {kind}, it is cut short or damaged; fetch it again") from None
    return found


def _zip(file: IO[bytes], archive: Path, suffix: str, most: int) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as whole:
        left = most
        for member in whole.infolist():
            if not member.filename.endswith(suffix) or "__MACOSX" in member.filename:
                continue
            if (member.external_attr >> 28) == 0o12:  # upper half: the mode under Unix
                raise _linked(archive, member.filename)
            if member.flag_bits & 1:
                raise UserError(
                    f"{archive} must be without password, {member.filename!r} in it is encrypted; fetch it again"
                )
            if member.compress_type not in _METHODS:
                raise UserError(
                    f"{archive} must be compressed by deflate, found method {member.compress_type} of "
                    f"{member.filename!r} in it; pack it again"
                )
            if member.file_size > left:
                raise _large(archive, most)
            with whole.open(member) as inner:
                content = inner.read(left + 1)
            left -= len(content)
            if left < 0:
                raise _large(archive, most)
            yield member.filename, content


def _tar(file: IO[bytes], archive: Path, suffix: str, most: int) -> Iterator[tuple[str, bytes]]:
    plain = gzip.GzipFile(fileobj=file) if archive.suffix == ".gz" else file
    with tarfile.open(fileobj=_Bounded(plain, archive, most), mode="r|") as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members.clear()  # which it remembers all
            if not member.name.endswith(suffix) or member.isdir():
                continue
            if not member.isfile():
                raise _linked(archive, member.name)
            if member.size > most:
                raise _large(archive, most)
            inner = tar.extractfile(member)
            assert inner is not None
            content = inner.read()
            if len(content) != member.size:
                raise EOFError
            yield member.name, content


class _Bounded:
    """A stream that says so when more than ``most`` bytes of it are asked for."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, archive: Path, most: int) -> None:
        self.file, self.archive, self.most, self.left = file, archive, most, most

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, or those that are left."""
        content = self.file.read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise _large(self.archive, self.most)
        return content


def _linked(archive: Path, name: str) -> UserError:
    return UserError(f"{archive} must hold plain files, {name!r} in it is a link or a device; fetch it again")


def _large(archive: Path, most: int) -> UserError:
    return UserError(f"{archive} must unpack to at most {most} bytes, it is larger; fetch it again")
