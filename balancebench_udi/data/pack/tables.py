"""The CSV files of a pack, ``index.csv`` and ``problems.csv``: one place that writes them and one that reads them.

People open them in spreadsheets: no cell begins as a formula does.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from balancebench_udi.errors import UserError
from balancebench_udi.text import guard_frame, unguard_frame

_KEPT = ("False", "True")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write ``table``, of which every text went through :func:`stored_text`."""
    # csv leaves a lone carriage return without quotes, and a reader takes it for the end of the line
    returns = any("\r" in str(cell) for column in table for cell in (column, *table[column]))
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    guard_frame(table).to_csv(path, index=False, quoting=quoting)


def read_table(path: Path) -> pd.DataFrame:
    """The table at ``path``: texts as they are, and ``kept`` as bool where there is such a column.

    Raises:
        UserError: absent, or no such table.
    """
    try:
        table = unguard_frame(pd.read_csv(path, dtype=str, keep_default_na=False))
    except (OSError, ValueError) as error:  # also what pandas raises, and not UTF-8
        found = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise UserError(
            f"{path} must be the CSV that was written, found: {' '.join(found.split())}; remove {path.parent} and "
            "prepare again"
        ) from None
    if "kept" in table:
        if not table["kept"].isin(_KEPT).all():
            raise UserError(f"kept in {path} must be True or False, it is not; remove {path.parent} and prepare again")
        table["kept"] = table["kept"] == "True"
    return table


def stored_text(text: str) -> str:
    """``text`` with what UTF-8 cannot hold escaped: names of files are bytes, not always of an encoding."""
    return text.encode(errors="backslashreplace").decode()
