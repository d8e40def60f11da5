"""MATLAB files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from balancebench_udi.errors import UserError


def read_mat(data: bytes, path: Path | str, variables: Iterable[str]) -> dict[str, np.ndarray]:
    """The ``variables`` of a MATLAB v5 file, finite numbers, in the type they are stored in.

    Args:
        data: the file's bytes.
        path: what an error calls the file.

    Raises:
        UserError: a damaged file, an absent variable, or one that is not of finite numbers.
    """
    from scipy.io import loadmat  # here: other datasets do without

    try:
        found = loadmat(io.BytesIO(data))
    except Exception:  # a damaged file makes scipy raise nearly anything
        raise UserError(f"{path} must be a whole MATLAB v5 file, it is damaged; fetch it again") from None
    for name in variables:
        if name not in found:
            raise UserError(f"{path} must hold the variable {name}, it does not; fetch it again")
        if found[name].dtype.kind not in "iuf" or not np.isfinite(found[name]).all():
            raise UserError(f"{name} in {path} must hold finite numbers only, found something else; fetch it again")
    return {name: found[name] for name in variables}
