"""The installed command ``balancebench``, and ``python -m benchmarks``.

``balancebench COMMAND ...`` is one of the scripts of this folder; without a command it is ``run``.
"""

from __future__ import annotations

import importlib
import sys

from benchmarks.start import begin

COMMANDS = {
    **{name: (name, ()) for name in ("run", "prepare", "tables", "report", "records", "embedding", "groups", "speed")},
    "reproduce": ("reproduction", ()),
    "clean": ("records", ("--clean",)),
}
"""Command -> the script, and what it is called with before the rest."""


def main() -> int:
    """Run the command line; returns the exit status."""
    begin()
    given = sys.argv[1:]
    script, first = COMMANDS["run"]
    if given and given[0] in COMMANDS:
        script, first = COMMANDS[given.pop(0)]
    module = importlib.import_module(f"benchmarks.{script}")  # after begin: it imports libraries for seconds
    return module.main([*first, *given])


if __name__ == "__main__":
    sys.exit(main())
