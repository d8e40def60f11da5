"""Lazy names: a table ``name -> "module:Class"``, extended by installed packages through entry points."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

from balancebench_udi.errors import UserError, near_misses


class Catalogue:
    """The names of one kind (``method``, ``dataset``) and where each one's class lives.

    Nothing is imported before :meth:`get` asks for it, so a broken file breaks only its own name.

    Args:
        kind: what the names stand for, as it appears in error sentences.
        table: ``name -> "module:Class"``.
        group: entry-point group whose members extend the table (the same string form).
    """

    def __init__(self, kind: str, table: Mapping[str, str], group: str) -> None:
        self.kind = kind
        self._sources: dict[str, list[tuple[str, str]]] = {
            name: [(target, "the table in registry.py")] for name, target in table.items()
        }
        for point in entry_points(group=group):
            origin = f"the package {point.dist.name}" if point.dist is not None else "an entry point"
            source = (point.value, origin)
            offers = self._sources.setdefault(point.name, [])
            if source not in offers:  # one installation can be seen twice on sys.path
                offers.append(source)

    def names(self) -> list[str]:
        """All names, the table's first, in the table's order."""
        return list(self._sources)

    def get(self, name: str) -> Any:
        """The class called ``name``.

        Raises:
            UserError: unknown (with near misses), offered twice (naming both sources), or not importable.
        """
        offers = self._sources.get(name)
        if offers is None:
            raise UserError(f"there is no {self.kind} called {name!r}{near_misses(name, self._sources)}")
        if len(offers) > 1:
            places = " and ".join(f"{origin} ({target})" for target, origin in offers)
            raise UserError(f"{self.kind} {name!r} must have one source, found {places}: uninstall or rename one")
        target, origin = offers[0]
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:  # any failure inside that one file
            raise UserError(
                f"{self.kind} {name!r} could not be loaded from {target} ({origin}): {type(error).__name__}: {error}"
            ) from error

    def match(self, patterns: Iterable[str]) -> list[str]:
        """Names for ``all``, exact names and wildcards (``mm*``), without repeats, in the order asked for.

        Raises:
            UserError: a pattern that matches nothing.
        """
        chosen: dict[str, None] = {}
        for pattern in patterns:
            if pattern == "all":
                hits = self.names()
            elif any(c in pattern for c in "*?["):
                hits = fnmatch.filter(self.names(), pattern)
            else:
                hits = [pattern] if pattern in self._sources else []
            if not hits:
                raise UserError(f"there is no {self.kind} called {pattern!r}{near_misses(pattern, self._sources)}")
            chosen.update(dict.fromkeys(hits))
        return list(chosen)
