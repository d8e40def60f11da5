"""Typed, validated options: one frozen dataclass for a method, a dataset, an optimiser.

A field is declared with :func:`option`, which keeps its meaning and the provenance of its default beside it::

    @dataclass(frozen=True)
    class Config(Options):
        alpha: float = option(0.8, "strength of the modulation", source="official code, CREMA-D", at_least=0)

Values may arrive as text (``--set ogm.alpha=0.5``) or from YAML; both are coerced to the declared type, so that
``1``, ``1.0`` and ``"1"`` are the same run.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.text import found, shortened

WHOLE = 2**63
"""Whole numbers are smaller than this, and not smaller than its negative: no record can hold others."""
MOST_ITEMS = 1000
"""Values of a list."""


def option(
    default: Any,
    doc: str,
    *,
    source: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: tuple[Any, ...] | None = None,
    keyed: bool = True,
) -> Any:
    """A dataclass field with its meaning, the source of its default (paper / official code / ours) and its bounds.

    ``keyed=False`` keeps an option that cannot move a number (a download) out of the run's key.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "choices": choices, "keyed": keyed}
    return field(default=default, metadata={"doc": doc, "source": source, **bounds})


@dataclass(frozen=True)
class Options:
    """Base of every set of options: coerces and validates on construction.

    Raises:
        UserError: a value of the wrong type or outside its bounds.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = _coerce(f.name, getattr(self, f.name), hints[f.name])
            _check(f.name, value, f.metadata)
            object.__setattr__(self, f.name, value)

    @classmethod
    def build(cls, owner: str, values: Mapping[str, Any]) -> Self:
        """The options of ``owner`` (a method, say) with ``values`` set and the rest at their defaults.

        Raises:
            UserError: an unknown option (with near misses) or a bad value.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                hint = near_misses(name, known) if known else "; it has none"
                raise UserError(f"{owner} has no option {found(name)}{hint}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{owner}.{error}") from None

    def as_dict(self) -> dict[str, Any]:
        """Every option that can move a number, with its value, as JSON types."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("keyed", True)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def describe(cls) -> list[tuple[str, Any, str, str]]:
        """(name, default, meaning, source of the default) of every option."""
        return [
            (f.name, f.default, f.metadata.get("doc", ""), f.metadata.get("source", ""))
            for f in dataclasses.fields(cls)
        ]


def check_window(window: tuple[float, ...]) -> None:
    """Refuse a ``window`` that is not two fractions of the run, the first not above the last.

    Raises:
        UserError: with what was found.
    """
    if len(window) != 2 or window[0] > window[1]:
        values = shortened(", ".join(map(str, window)), 100)
        raise UserError(f"window must be two fractions of the run, the first not above the last, found {values}")


def _coerce(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in arguments:  # "X | None"
        if value is None or (isinstance(value, str) and value.lower() in {"none", "null"}):
            return None
        (hint,) = (a for a in arguments if a is not type(None))
        return _coerce(name, value, hint)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            items = [items]
        if len(items) > MOST_ITEMS:
            raise UserError(f"{name} must be a list of at most {MOST_ITEMS} values, found {len(items)}")
        return tuple(_coerce(name, item, arguments[0]) for item in items)
    if hint is bool:
        text = str(value).lower() if isinstance(value, str | bool) or value in (0, 1) else ""
        if text in {"true", "1", "yes", "on"}:
            return True
        if text in {"false", "0", "no", "off"}:
            return False
        raise UserError(f"{name} must be true or false, found {found(value)}")
    try:
        if hint is int:
            if isinstance(value, bool):
                raise ValueError
            exact = isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("+-").isdigit())
            return _whole(name, int(value) if exact else float(value))
        if hint is float:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
    except (TypeError, ValueError, OverflowError):
        kind = "a whole number" if hint is int else "a number"
        raise UserError(f"{name} must be {kind}, found {found(value)}") from None
    if hint is str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{name} must be a text, found {found(value)}")
        return str(_coerce(name, value, int) if isinstance(value, int) else value)
    raise TypeError(f"option {name}: the type {hint} is not supported")


def _whole(name: str, value: float) -> int:
    if int(value) != value:
        raise ValueError
    if not -WHOLE <= value < WHOLE:
        raise UserError(f"{name} must be a whole number of 64 bits, found {found(value)}")
    return int(value)


def _check(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    choices = bounds.get("choices")
    if choices is not None and value not in choices:
        raise UserError(f"{name} must be one of {', '.join(map(str, choices))}, found {shortened(str(value), 100)}")
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, float) and not math.isfinite(one):  # no record can hold it
            kind = "a number" if math.isnan(one) else "finite"
            raise UserError(f"{name} must be {kind}, found {one}")
    for key, words, holds in (
        ("at_least", ">=", lambda v, b: v >= b),
        ("above", ">", lambda v, b: v > b),
        ("at_most", "<=", lambda v, b: v <= b),
    ):
        bound = bounds.get(key)
        values = value if isinstance(value, tuple) else (value,)
        for one in values:
            if bound is not None and one is not None and not holds(one, bound):
                raise UserError(f"{name} must be {words} {bound}, found {one}")
