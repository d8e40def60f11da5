"""Archives of many small files."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

from balancebench_udi.errors import UserError


def read_tar(archive: Path, suffix: str) -> dict[str, bytes]:
    """File name, without its folder -> bytes of the files of a tar or tar.gz that end in ``suffix``, such as ``.wav``.

    Raises:
        UserError: a damaged archive.
    """
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None and member.name.endswith(suffix):
                    found[Path(member.name).name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        kind = "tar.gz" if archive.suffix == ".gz" else "tar"
        raise UserError(f"{archive} must be a whole {kind}, it is cut short or damaged; fetch it again") from None
    return found
