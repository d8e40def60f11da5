"""One reader for every YAML file that a person writes: protocols, tables, published numbers, manifests.

It reads what YAML 1.2 calls the core schema, within limits: texts, whole numbers, decimal numbers, ``true`` and
``false``, null, lists, and mappings whose keys are texts. ``no``, ``on``, dates, ``1:30`` and ``007`` are texts.
Anchors and merge keys work; a key that stands twice, a tag, and a control character are refused with their line.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from balancebench_udi.errors import UserError
from balancebench_udi.text import escape_controls, found, shortened

MOST_BYTES = 1_000_000
"""Of a file."""
MOST_VALUES = 50_000
"""Values of a file, those behind an alias counted wherever it stands."""
LONG = 64
"""Characters of a text from which on it counts as two values, from twice that as three."""
DEEPEST = 30
"""Mappings and lists inside each other."""
MOST_DIGITS = 18
"""Of a whole number: so many fit into 64 bits, which is what a record can hold."""
LONGEST = 300
"""Characters of a sentence about a file."""

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((f"{sign}.{word}" for sign in ("", "+") for word in ("inf", "Inf", "INF")), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def absent(path: Path) -> bool:
    """Whether nothing has this name; where the system does not say, :func:`read_yaml` tells why."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        pass
    return False


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; empty where the file is.

    Args:
        path: a regular file of at most :data:`MOST_BYTES`, in UTF-8 or, with a byte order mark, UTF-16.
        what: what the file should be, such as ``a protocol``, for a sentence.

    Raises:
        UserError: it cannot be read, is no YAML, breaks a limit, or holds something other than a mapping; in at most
            :data:`LONGEST` characters, with the line where there is one.
    """
    shown = escape_controls(str(path))
    shown = shown if len(shown) <= 160 else f"{shown[:160]}..."
    try:
        text = _text(path, what)
        try:
            values = _Reader(text).document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise UserError(f"must be YAML, found a mistake{_line(mark)}: {_said(error)}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            sign = escape_controls(chr(error.character))
            raise UserError(f"must be YAML, found the character {sign} in line {line}: remove it") from None
        except (ValueError, OverflowError) as error:  # of the parser: a character or a version that cannot be
            raise UserError(f"must be YAML, found a mistake: {shortened(str(error), 120)}") from None
        if not isinstance(values, dict):
            raise UserError(f"must hold names with values, found {found(values)}")
    except UserError as error:
        raise UserError(shortened(f"{shown} {error}", LONGEST)) from None
    return values


def _text(path: Path, what: str) -> str:
    try:
        about = path.stat()
        if stat.S_ISREG(about.st_mode) and about.st_size <= MOST_BYTES:
            data = path.read_bytes()
            return data.decode(_ENCODINGS.get(data[:2], "utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"must be {what}, found none: name one that exists") from None
    except UnicodeDecodeError:
        raise UserError("must be YAML in UTF-8, it is not: save it as such") from None
    except (OSError, ValueError) as error:  # a ValueError where the name holds a NUL
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"must be a file that can be read, found: {(reason or '').lower()}") from None
    if stat.S_ISDIR(about.st_mode):
        raise UserError(f"must be {what}, found a folder: name a file")
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"must be {what}, found a pipe or a device: name a file")
    raise UserError(f"must be of at most {MOST_BYTES} bytes, found {about.st_size}: it is another file")


def _line(mark: Any) -> str:
    return "" if mark is None else f" in line {mark.line + 1}"


def _said(error: yaml.MarkedYAMLError) -> str:
    """What the parser has to say, in short."""
    problem = " ".join(str(error.problem or error.context).split())
    if r"'\t'" in problem:
        return "a tab; indent by spaces"
    return shortened(problem, 120)


class _Reader:
    """Values out of the parser's events; counts them, so that nothing grows without bounds."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._known: dict[str, tuple[Any, int]] = {}  # anchor -> value and the number of values in it
        self._count = 0

    def document(self) -> Any:
        """The only document of a stream; an empty mapping where there is none."""
        next(self._events)  # the stream begins
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return {}
        value = self._value(next(self._events), 0)
        next(self._events)  # the document ends
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise UserError(f"must hold one document, found another{_line(after.start_mark)}: remove it")
        return {} if value is None else value

    def _value(self, event: Any, depth: int) -> Any:
        where = _line(event.start_mark)
        before = self._count
        self._grow(1 + len(getattr(event, "value", "")) // LONG, where)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._known:
                anchor = shortened(str(event.anchor), 40)
                raise UserError(f"must name what stands whole before it, found *{anchor}{where}")
            value, count = self._known[event.anchor]
            self._grow(count - 1, where)
            return value
        if event.tag is not None:
            raise UserError(f"must hold no tags, found {shortened(event.tag, 60)}{where}: remove it")
        if depth > DEEPEST:
            raise UserError(f"must be at most {DEEPEST} levels deep, found more{where}")
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event, where)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                value.append(self._value(inner, depth + 1))
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self._known[event.anchor] = (value, self._count - before)
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            where = _line(event.start_mark)
            key = self._value(event, depth + 1)
            if not isinstance(key, str):
                raise UserError(f"must have texts as keys, found {found(key, 60)}{where}: put it in quotes")
            if key in lines:
                raise UserError(
                    f"must have every key once, found {found(key, 60)} in line {lines[key]} and{where}: remove one"
                )
            lines[key] = event.start_mark.line + 1
            value = self._value(next(self._events), depth + 1)
            if key == "<<" and getattr(event, "implicit", (False,))[0]:  # in quotes it is a key like others
                merged = _merged(value, where)
            else:
                own[key] = value
        return {**merged, **own}

    def _grow(self, count: int, where: str) -> None:
        self._count += count
        if self._count > MOST_VALUES:
            raise UserError(f"must hold at most {MOST_VALUES} values, aliases included, found more{where}")


def _merged(value: Any, where: str) -> dict[str, Any]:
    """What ``<<`` stands for: a mapping, or a list of them of which the first goes before the others."""
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"must merge mappings by <<, found {found(value, 60)}{where}")
    return {key: one for part in reversed(parts) for key, one in part.items()}


def _scalar(event: Any, where: str) -> Any:
    text = event.value
    if event.implicit[0]:  # without quotes
        if text in _WORDS:
            return _WORDS[text]
        if _WHOLE.fullmatch(text):
            if len(text.lstrip("+-")) > MOST_DIGITS:
                raise UserError(
                    f"must hold whole numbers of at most {MOST_DIGITS} digits, found {shortened(text, 40)}{where}"
                )
            return int(text)
        if _DECIMAL.fullmatch(text):
            return float(text)
    if escape_controls(text, keep="\n\t") != text:
        raise UserError(f"must hold no control characters, found {found(text, 60)}{where}: remove them")
    return text
