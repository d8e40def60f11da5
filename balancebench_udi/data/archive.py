"""Archives of many small files."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from pathlib import Path

from balancebench_udi.errors import UserError


def read_archive(archive: Path, suffix: str) -> dict[str, bytes]:
    """File name, without its folder -> bytes of the files of a zip, tar or tar.gz that end in ``suffix``.

    Raises:
        UserError: a damaged archive.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as whole:
                names = [name for name in whole.namelist() if name.endswith(suffix) and "__MACOSX" not in name]
                return {Path(name).name: whole.read(name) for name in names}
        with tarfile.open(archive) as tar:
            files = ((member.name, tar.extractfile(member)) for member in tar if member.name.endswith(suffix))
            return {Path(name).name: file.read() for name, file in files if file is not None}
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error):
        kind = {".gz": "tar.gz", ".zip": "zip"}.get(archive.suffix, "tar")
        raise UserError(f"{archive} must be a whole {kind}, it is cut short or damaged; fetch it again") from None
