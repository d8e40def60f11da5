"""Arrays in ``.npy`` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from balancebench_udi.errors import UserError


def map_npy(path: Path) -> np.ndarray:
    """The array in a ``.npy`` file, memory-mapped: nothing is unpickled, and no memory taken for what it claims.

    Raises:
        UserError: another content, or a damaged file.
        OSError: a file that cannot be read.
    """
    try:
        with np.errstate(over="ignore"):  # of a shape that the file is too short for
            return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception:  # a damaged header lets errors of Python's own parser through
        raise UserError(f"{path} must be a whole .npy file of numbers, it is not; save it again") from None
