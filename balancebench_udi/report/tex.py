"""A wide table in LaTeX: panels as wide as a line of text, floats no higher than a page, all words below."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from balancebench_udi.text import escape_controls

LINE = 84
"""Characters of footnotesize in a line of ``article`` at 10 points, two for each gap between columns."""
HEIGHT = 50
"""Lines of footnotesize on a page of it, less a caption."""
SIGNS = str.maketrans(
    {c: f"\\{c}" for c in "_%&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"±": r"$\pm$", "×": r"$\times$", "†": r"$\dagger$", "‡": r"$\ddagger$"}
)


@dataclass(frozen=True)
class Column:
    """A column in print: ``group`` and ``head`` as they are, ``cells`` in LaTeX."""

    group: str
    head: str
    cells: tuple[str, ...]

    def width(self) -> int:
        """Characters of its widest word or cell."""
        return 2 + max(len(word) for word in (*self.head.split(), *map(_shown, self.cells), ""))


def escaped(text: str) -> str:
    """``text`` with every sign that LaTeX would read replaced."""
    return escape_controls(text).translate(SIGNS)


def table(title: str, first: Sequence[Column], columns: Sequence[Column], said: Mapping[str, Sequence[str]]) -> str:
    """One or more floats of a table under one number, and what is ``said`` of it, by its head, as text after them.

    ``first`` columns stand in every panel; needs booktabs and graphicx.
    """
    label = f"tab:{'-'.join(''.join(c if c.isalnum() else ' ' for c in title).split())}"
    lines = [r"% needs \usepackage{booktabs,graphicx}"]
    panels = [_panel(first, panel) for panel in _panels(first, columns)]
    for number, page in enumerate(_pages(panels)):
        again = [r"\addtocounter{table}{-1}"] if number else []
        named = rf"\caption[]{{{escaped(title)} (continued).}}" if number else rf"\caption{{{escaped(title)}.}}"
        lines += [r"\begin{table}[tp]", r"\centering\footnotesize", *again, named]
        lines += [rf"\label{{{label}}}"] if not number else []
        lines += [*itertools.chain.from_iterable(page), r"\end{table}"]
    for head, sentences in said.items():
        if sentences:
            lines += ["", rf"\medskip\noindent\textbf{{Table~\ref{{{label}}}. {escaped(head)}:}}", r"\begin{itemize}"]
            lines += [*(rf"\item {_item(sentence)}" for sentence in sentences), r"\end{itemize}"]
    return "\n".join(lines) + "\n"


def _item(sentence: str) -> str:
    """A sentence of which the first sign is no option of ``\\item``."""
    return rf"{{}}{escaped(sentence)}" if sentence.startswith("[") else escaped(sentence)


def _shown(cell: str) -> str:
    """About what is seen of a cell."""
    return re.sub(r"\\[a-z]+(?![a-z])|\\(?=[^a-z])|[{}$]", lambda sign: "x" if sign[0] == r"\pm" else "", cell)


def _panels(first: Sequence[Column], columns: Iterable[Column]) -> Iterator[list[Column]]:
    """The columns in sets that fit a line; those of one group stay together where they can."""
    room = LINE - sum(column.width() for column in first)
    panel: list[Column] = []
    for _, group in itertools.groupby(columns, key=lambda column: column.group):
        members = list(group)
        together = sum(column.width() for column in members)
        if panel and _width(panel) + together > room >= together:
            yield panel
            panel = []
        for column in members:
            if panel and _width(panel) + column.width() > room:
                yield panel
                panel = []
            panel.append(column)
    if panel:
        yield panel


def _width(columns: Sequence[Column]) -> int:
    return sum(column.width() for column in columns)


def _pages(panels: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    page: list[list[str]] = []
    for panel in panels:
        if page and sum(map(len, page)) + len(panel) > HEIGHT:
            yield page
            page = []
        page.append([*([r"\par\medskip"] if page else []), *panel])
    if page:
        yield page


def _panel(first: Sequence[Column], columns: Sequence[Column]) -> list[str]:
    """A tabular; made smaller where a column alone is wider than the text."""
    above, rules, at = [""] * len(first), "", len(first) + 1
    for group, members in itertools.groupby(columns, key=lambda column: column.group):
        span = len(list(members))
        above += [rf"\multicolumn{{{span}}}{{c}}{{{escaped(group)}}}"] if group else [""] * span
        rules += rf"\cmidrule(lr){{{at}-{at + span - 1}}}" if group else ""
        at += span
    names = [_head(column.head) for column in (*first, *columns)]
    rows = zip(*(column.cells for column in (*first, *columns)), strict=True)
    return [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
        r"\toprule",
        *([" & ".join(above) + r" \\", rules] if rules else []),
        " & ".join(names) + r" \\",
        r"\midrule",
        *(_row(row) for row in rows),
        r"\bottomrule",
        r"\end{tabular}}",
    ]


def _row(cells: Sequence[str]) -> str:
    """A line of a tabular, of which the first sign is no option of what ends the line above."""
    text = " & ".join(cells)
    return f"{'{}' if text.startswith(('[', '*')) else ''}{text} \\\\"


def _head(head: str) -> str:
    """Its words one below the other."""
    words = r"\\".join(map(escaped, re.split(r"(?<!/) ", head)))
    return rf"\shortstack[r]{{{words}}}" if r"\\" in words else words
