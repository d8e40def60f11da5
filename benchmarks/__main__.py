"""The installed command ``balancebench``, and ``python -m benchmarks``: :mod:`benchmarks.run`."""

from __future__ import annotations

import sys

from benchmarks.start import begin


def main() -> int:
    """Run the command line; returns the exit status."""
    begin()
    from benchmarks.run import main as run  # after begin: it imports libraries for seconds

    return run()


if __name__ == "__main__":
    sys.exit(main())
