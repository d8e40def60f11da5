"""Lazy names: a table ``name -> "module:Class"``, extended by installed packages through entry points."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any

from balancebench_udi.config import Options
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.text import escape_controls, found, shortened

FACTS = {
    **dict.fromkeys(("name", "reference", "family", "idea", "needs"), (str, "a text")),
    **dict.fromkeys(("version", "min_modalities"), (int, "a whole number")),
    "max_modalities": (int | None, "a whole number or None"),
}
"""Class attributes -> their type, as far as the base of a catalogue has them."""


class Catalogue:
    """The names of one kind (``method``, ``dataset``) and where each one's class lives.

    Nothing is imported before :meth:`get` asks for it, so a broken file breaks only its own name.

    Args:
        kind: what the names stand for, as it appears in error sentences.
        table: ``name -> "module:Class"``.
        group: entry-point group whose members extend the table (the same string form).
        base: ``"module:Class"`` that every class must derive from; None where anything will do.
    """

    def __init__(self, kind: str, table: Mapping[str, str], group: str, base: str | None = None) -> None:
        self.kind = kind
        self._base = base
        self._sources: dict[str, list[tuple[str, str]]] = {
            name: [(target, "the table in registry.py")] for name, target in table.items()
        }
        for point in _points(group):
            origin = f"the package {point.dist.name}" if point.dist is not None else "an entry point"
            source = (point.value, origin)
            offers = self._sources.setdefault(escape_controls(point.name), [])
            if source not in offers:  # one installation can be seen twice on sys.path
                offers.append(source)

    def names(self) -> list[str]:
        """All names, the table's first, in the table's order."""
        return list(self._sources)

    def get(self, name: str) -> Any:
        """The class called ``name``.

        Raises:
            UserError: unknown (with near misses), offered twice (naming both sources), not importable, whatever the
                reason, or not a class of this kind.
        """
        offers = self._sources.get(name)
        if offers is None:
            raise UserError(f"there is no {self.kind} called {found(name)}{near_misses(name, self._sources)}")
        if len(offers) > 1:
            places = " and ".join(f"{origin} ({target})" for target, origin in offers)
            raise UserError(f"{self.kind} {name!r} must have one source, found {places}: uninstall or rename one")
        target, origin = offers[0]
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what a file prints is no part of a listing or a table
                made = _import(target)
                if self._base is not None:
                    _check(made, _import(self._base), name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit: any failure inside that one file
            raise UserError(
                f"{self.kind} {name!r} could not be loaded from {shortened(target, 200)} ({origin}): {_told(error)}"
            ) from error
        return made

    def load(self, patterns: Iterable[str], say: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Name -> class of :meth:`match`. What only ``all`` or a wildcard asks for is left out where it is broken.

        Args:
            patterns: as for :meth:`match`.
            say: told in a line what is left out; None prints it to stderr.

        Raises:
            UserError: a pattern that matches nothing, a name that was asked for by itself and is broken, or nothing
                left.
        """
        patterns = list(patterns)
        say = say or (lambda line: print(line, file=sys.stderr))
        classes: dict[str, Any] = {}
        broken: UserError | None = None
        for name in self.match(patterns):
            try:
                classes[name] = self.get(name)
            except UserError as error:
                if name in patterns:
                    raise
                broken = error
                say(f"left out: {error}")
        if broken is not None and not classes:
            raise broken
        return classes

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
                raise UserError(f"there is no {self.kind} called {found(pattern)}{near_misses(pattern, self._sources)}")
            chosen.update(dict.fromkeys(hits))
        return list(chosen)


def _points(group: str) -> list[EntryPoint]:
    """The entry points of a group; a package whose list of them is damaged is left out with a line."""
    try:
        return list(entry_points(group=group))
    except Exception:
        found_points: dict[tuple[str, str], EntryPoint] = {}
        for package in distributions():
            try:
                for point in package.entry_points.select(group=group):
                    found_points.setdefault((point.name, point.value), point)
            except Exception as error:
                print(
                    f"left out: the entry points of {package.metadata['Name']} cannot be read: {_told(error)}",
                    file=sys.stderr,
                )
        return list(found_points.values())


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _check(cls: Any, base: type, name: str) -> None:
    """Refuse a class that is registered as ``name`` and is what a listing, a page or a plan could not use.

    Raises:
        TypeError: with what should hold.
    """
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"it must be a class derived from {base.__module__}.{base.__name__}")
    if inspect.isabstract(cls):
        raise TypeError(f"it must define {', '.join(sorted(cls.__abstractmethods__))}")  # type: ignore[attr-defined]
    for attribute, (kind, words) in FACTS.items():
        if hasattr(base, attribute) or attribute in base.__annotations__:
            value = getattr(cls, attribute, NotImplemented)
            if value is NotImplemented:
                raise TypeError(f"its attribute {attribute} must be {words}, found none")
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"its attribute {attribute} must be {words}, found {found(value)}")
    if (own := getattr(cls, "name", None)) != name:
        raise TypeError(f"its attribute name must be {found(name)}, as it is registered, found {found(own)}")
    if not isinstance(cls.__doc__, str | None):
        raise TypeError(f"its docstring must be a text, found {found(cls.__doc__)}")
    _check_options(getattr(cls, "Options", None))


def _check_options(options: Any) -> None:
    """Refuse options that cannot be made from their defaults, or not be described."""
    if not (isinstance(options, type) and issubclass(options, Options) and dataclasses.is_dataclass(options)):
        raise TypeError("its attribute Options must be a dataclass derived from balancebench_udi.config.Options")
    options().as_dict()
    for name, _, doc, source in options.describe():
        if not (isinstance(doc, str) and isinstance(source, str)):
            raise TypeError(f"the meaning and the source of its option {name} must be texts")


def _told(error: BaseException) -> str:
    """An error on one line, whatever it is."""
    try:
        said = str(error)
    except Exception:
        said = "(without a readable message)"
    return shortened(f"{type(error).__name__}: {said}", 300)
