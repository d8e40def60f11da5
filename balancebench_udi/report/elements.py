"""The elements of a page: tables that can be sorted, figures inline, sparklines. Strings of HTML, escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balancebench_udi.report.figures.style import Drawing
from balancebench_udi.text import escape_controls

MISSING = '<span class="none">–</span>'
"""A number that is not there."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows, as HTML.
        value: what it is sorted by: a number, or None for text and for what is missing.
        best: in bold.
    """

    text: str
    value: float | None = None
    best: bool = False


def escape(text: object) -> str:
    """``text`` as HTML, fit for attributes as well."""
    return html.escape(escape_controls(str(text)))


def prose(text: str) -> str:
    """A docstring's words as HTML: what stands between backticks is code."""
    return re.sub(r"(?::\w+:)?(`+)(.+?)\1", r"<code>\2</code>", escape(text))


def linked(text: str) -> str:
    """``text`` with its web addresses, and numbers of arXiv, as links."""
    text = re.sub(r"https?://[^\s<>\"',;()]+[^\s<>\"',;().]", r'<a href="\g<0>">\g<0></a>', escape(text))
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">\g<0></a>', text)


def listed(sentences: Sequence[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>"


def number(value: float, scale: float = 100.0, digits: int = 1, sd: float | None = None, best: bool = False) -> Cell:
    """A mean with its standard deviation; a dash where it is missing (NaN)."""
    if math.isnan(value):
        return Cell(MISSING)
    text = _signed(value, scale, digits)
    if sd is not None and not math.isnan(sd):
        text += f'<span class="sd"> ± {sd * scale:.{digits}f}</span>'
    return Cell(text, value, best)


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], sortable: bool = True) -> str:
    """A table in a box of its own that scrolls; the first cell of a row names it, every column sorts.

    Args:
        caption: as HTML.
        heads: one a column, as HTML.
        rows: cells, one a column.
        sortable: whether the heads are buttons. They work where scripts do, else they are plain text.
    """
    numeric = [all(row[i].value is not None or row[i].text == MISSING for row in rows) for i in range(len(heads))]
    head = "".join(
        f'<th scope="col"{_class(number)}>'
        + (f'<button type="button" disabled>{h}</button>' if sortable else h)
        + "</th>"
        for h, number in zip(heads, numeric, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{row[0].text}</th>' + "".join(map(_cell, row[1:], numeric[1:])) + "</tr>" for row in rows
    )
    label = escape(re.sub("<[^>]+>", "", caption).partition(".")[0])
    return (
        f'<div class="scroll" role="region" aria-label="Table: {label}" tabindex="0"><table{" data-sort" * sortable}>'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def figure(drawing: Drawing, title: str, name: str) -> str:
    """A drawing inline: its words stand beside it, its ids begin with ``name`` so that two of them never clash."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing.svg(), flags=re.S)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(drawing.alt)}"', 1)
    width, height = drawing.figure.get_size_inches()
    room = f"contain-intrinsic-size: auto {width:g}in auto {height:g}in"  # kept until the figure is in view and drawn
    return (
        f'<figure><div class="scroll card" role="region" aria-label="Figure: {escape(title)}" tabindex="0" '
        f'style="{room}">{svg}</div>'
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
    )


def sparkline(phases: Sequence[Sequence[float]], low: float, high: float, label: str) -> str:
    """Validation accuracy over epochs as a small line between ``low`` and ``high``, interrupted between phases."""
    width, height = 120, 28
    total, span = max(1, sum(map(len, phases)) - 1), (high - low) or 1.0
    path, at = "", 0
    for values in phases:
        points = [
            f"{(at + i) / total * width:.1f} {height - 2 - (v - low) / span * (height - 4):.1f}"
            for i, v in enumerate(values)
        ]
        path += f"M{points[0]}L{' '.join(points[1:] or points)}" if points else ""
        at += len(values)
    return (
        f'<svg class="spark" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><path d="{path}"/></svg>'
    )


def facts(pairs: Mapping[str, str]) -> str:
    """A list of names with their values, the values as HTML."""
    return "<dl>" + "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>" for k, v in pairs.items()) + "</dl>"


def _signed(value: float, scale: float, digits: int) -> str:
    return f"{value * scale:z.{digits}f}".replace("-", "−")


def _class(numeric: bool) -> str:
    return ' class="num"' if numeric else ""


def _cell(cell: Cell, numeric: bool) -> str:
    value = "" if cell.value is None else f' data-v="{cell.value:.6g}"'
    text = f"<b>{cell.text}</b>" if cell.best else cell.text
    return f"<td{_class(numeric)}{value}>{text}</td>"
