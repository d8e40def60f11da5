"""A table of rows x columns in print: for a terminal, in Markdown, as csv, in LaTeX and in HTML."""

from __future__ import annotations

import html as escaping
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from balancebench_udi.report import tex
from balancebench_udi.report.rendering import LATEX, MARKDOWN, TERMINAL, WIDTH, Style, bullets, in_markdown
from balancebench_udi.text import escape_controls, guard_frame

if TYPE_CHECKING:
    from balancebench_udi.report.matrix import Matrix

ABOVE_100 = ("accuracy", "macro_f1", "top5", "share", "masked", "alone", "probe")
"""Scores of which more is better, by the part of their name before the slash; all in percent."""
PLAIN = ("loss", "val_loss", "imbalance_relative", "cka", "discrepancy")
"""Scores that are no share, printed as they are; every other one is printed in percent."""
SCALES = {
    "passes": 1e6,
    "parameters": 1e6,
    "flops_per_sample": 1e6,
    "flops": 1e12,
    "passes_forward": 1e3,
    "passes_backward": 1e3,
    "peak_memory_bytes": 1e6,
}
"""Units of what is no score and not printed as it is."""
COUNTS = (*SCALES, "seconds", "cpu_seconds", "wall_seconds")
"""Costs: printed without a spread."""
HEADS = {
    "passes": "passes (M)",
    "passes_forward": "forward passes (k)",
    "passes_backward": "backward passes (k)",
    "cpu_seconds": "CPU seconds",
    "parameters": "parameters (M)",
    "flops_per_sample": "MFLOP a sample",
    "flops": "TFLOP",
    "peak_memory_bytes": "peak memory (MB)",
    "macro_f1": "macro-F1",
    "imbalance_relative": "relative imbalance",
}


def higher_is_better(value: str) -> bool:
    """Whether a row can be the best one in ``value``."""
    return value.partition("/")[0] in ABOVE_100


def printed(number: float, value: str) -> str:
    """``number`` as every rendering shows it: percent with a decimal, costs or a plain score with two."""
    if math.isnan(number):
        return "-"
    if value in COUNTS:
        return f"{number / SCALES.get(value, 1):.2f}"
    if value.partition("/")[0] in PLAIN:
        return f"{number:z.2f}"
    return f"{100 * number:z.1f}"


HTML = Style(bold="<strong>{}</strong>", claim="<em>{value}</em> [{source}]")


def _cell(matrix: Matrix, row: str, column: str, value: str, style: Style) -> str:
    """Our mean, and what was published."""
    parts = []
    number = matrix.numbers.get((row, column, value))
    if number is not None:
        mean = style.signed(printed(number.mean, value))
        text = style.bold.format(mean) if number.best else mean
        if not math.isnan(number.sd) and value not in COUNTS:
            text += style.plus_minus + printed(number.sd, value)
        if number.indistinguishable and not number.best:
            text += style.close
        first = value == matrix.columns[column][0]
        if first and (style.counted or number.n < number.wanted):
            text += f" ({number.n} of {number.wanted})" if style.counted else f" {number.n}/{number.wanted}"
        parts.append(text)
    for one in matrix.beside:
        if (one.row, one.column, one.value) == (row, column, value):
            parts.append(style.claim.format(value=_percent(one.accuracy), source=one.source))
    return " ".join(parts) or matrix.absent[row, column]


def _percent(accuracy: float) -> str:
    """As it was published, with a decimal at least."""
    return f"{accuracy:.1f}" if accuracy == round(accuracy, 1) else f"{accuracy:g}"


def _places(matrix: Matrix) -> list[tuple[str, str]]:
    return [(column, value) for column, values in matrix.columns.items() for value in values]


def _filled(matrix: Matrix) -> tuple[list[tuple[str, str]], list[str]]:
    """The places of columns with a number, and the columns without; all where no column has one."""
    filled = {place[1] for place in matrix.numbers} | {one.column for one in matrix.beside} or set(matrix.columns)
    places = [place for place in _places(matrix) if place[0] in filled]
    return places, [column for column in matrix.columns if column not in filled]


def _head(value: str) -> str:
    return HEADS.get(value, value.replace("/", " "))


def _rank(matrix: Matrix, row: str) -> str:
    return f"{matrix.ranks[row]:.1f}" if row in matrix.ranks else "-"


def text(matrix: Matrix) -> str:
    """The table for a terminal: columns that do not fit are put below, empty ones are only named."""
    several = any(len(values) > 1 for values in matrix.columns.values())
    lines = [matrix.title]
    grid = []
    filled, empty = _filled(matrix)
    for column, value in filled:
        heads = [escape_controls(column), *([_head(value)] if several else [])]
        grid.append([*heads, *(_cell(matrix, row, column, value, TERMINAL) for row in matrix.rows)])
    if matrix.ranks:
        grid.append([*["", "rank"][-(1 + several) :], *(_rank(matrix, row) for row in matrix.rows)])
    names = [*([""] * (1 + several)), *map(escape_controls, matrix.rows)]
    for block in _blocks(grid, WIDTH - max(map(len, names))):
        for earlier, later in zip(reversed(block[:-1]), reversed(block[1:]), strict=True):
            later[0] = "" if several and later[0] == earlier[0] else later[0]  # a column's name once
        lines += ["", *_aligned([names, *block])]
    lines += ["", *textwrap.wrap(f"without any number: {', '.join(empty)}", WIDTH)] if empty else []
    legend = "*: best of a column; †: cannot be told from it"
    if matrix.beside:
        legend += "; [published, under its own protocol]"
    lines += ["", *textwrap.wrap(legend, WIDTH)]
    return "\n".join(map(escape_controls, lines + bullets(matrix.findings)))


def _blocks(grid: Sequence[list[str]], room: int) -> Iterator[list[list[str]]]:
    """The columns in groups that fit."""
    block: list[list[str]] = []
    used = 0
    for column in grid:
        width = 2 + max(map(len, column))
        if block and used + width > room:
            yield block
            block, used = [], 0
        block.append(column)
        used += width
    if block:
        yield block


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        right = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        lines.append("  ".join([cells[0].ljust(widths[0]), *right]).rstrip())
    return lines


def markdown(matrix: Matrix) -> str:
    """The table, what it says, how to read it, and the sources of what was published."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(in_markdown, cells))} |"

    several = any(len(values) > 1 for values in matrix.columns.values())
    heads = [f"{column} {_head(value)}" if several else column for column, value in _places(matrix)]
    lines = [f"# {in_markdown(matrix.title)}", "", line(["", *heads, *(["rank"] if matrix.ranks else [])])]
    lines.append("|:--|" + "--:|" * (len(heads) + bool(matrix.ranks)))
    for row in matrix.rows:
        cells = [_cell(matrix, row, column, value, MARKDOWN) for column, value in _places(matrix)]
        lines.append(line([row, *cells, *([_rank(matrix, row)] if matrix.ranks else [])]))
    if matrix.findings:
        lines += ["", "What it says:", "", *(f"- {in_markdown(sentence)}" for sentence in matrix.findings)]
    lines += ["", "How to read it:", "", *(f"- {in_markdown(sentence)}" for sentence in matrix.notes)]
    if matrix.sources:
        lines += ["", "Published:", "", *(f"- [{n}] {in_markdown(s)}" for n, s in enumerate(matrix.sources, 1))]
    return "\n".join(lines) + "\n"


def csv(matrix: Matrix) -> str:
    """One line a number at full precision, accuracies in [0, 1]; what was published has ``published`` true."""
    frame = matrix.frame()
    for name in ("best", "indistinguishable", "published"):
        frame[name] = frame[name].map({True: "true", False: "false"})
    counts = {"n": "Int64", "wanted": "Int64"}
    return guard_frame(frame.astype(counts)).to_csv(index=False, lineterminator="\n")


def latex(matrix: Matrix) -> str:
    """Floats of the columns that hold anything; needs booktabs and graphicx."""
    several = any(len(values) > 1 for values in matrix.columns.values())
    filled, empty = _filled(matrix)
    columns = []
    for column, value in filled:
        cells = tuple(_cell(matrix, row, column, value, LATEX) for row in matrix.rows)
        columns.append(tex.Column(column, _head(value), cells) if several else tex.Column("", column, cells))
    if matrix.ranks:
        columns.append(tex.Column("", "rank", tuple(_rank(matrix, row) for row in matrix.rows)))
    said = {
        "What it says": matrix.findings,
        "How to read it": [
            *matrix.notes,
            *_counts(matrix),
            *([f"Without any number: {', '.join(empty)}."] if empty else []),
        ],
        "Published": [f"[{number}] {source}" for number, source in enumerate(matrix.sources, 1)],
    }
    first = tex.Column("", "", tuple(map(tex.escaped, matrix.rows)))
    return tex.table(matrix.title, [first], columns, said)


def _counts(matrix: Matrix) -> list[str]:
    """How many runs a mean is of that does not say it."""
    wanted = sorted({number.wanted for number in matrix.numbers.values() if number.n == number.wanted})
    if not wanted:
        return []
    return [f"A mean without a count is of all its {' or '.join(map(str, wanted))} runs; n/N: of n of its N runs."]


def html(matrix: Matrix) -> str:
    """A fragment that stands on its own or in a page: a figure of the table, what it says and how to read it."""
    several = any(len(values) > 1 for values in matrix.columns.values())
    span = ' rowspan="2"' if several else ""
    groups = [
        f'<th scope="colgroup" colspan="{len(values)}">{_html(column)}</th>' if several else _column(column)
        for column, values in matrix.columns.items()
    ]
    rank = f'<th scope="col"{span}>rank</th>' if matrix.ranks else ""
    lines = [
        '<figure class="matrix">',
        f"<style>{STYLE}</style>",
        f'<div class="scroll" role="region" aria-label="{_html(matrix.title)}" tabindex="0">',
        "<table>",
        f"<caption>{_html(matrix.title)}</caption>",
        "<thead>",
        f"<tr><td{span}></td>{''.join(groups)}{rank}</tr>",
    ]
    if several:
        lines.append(f"<tr>{''.join(_column(_head(value)) for _, value in _places(matrix))}</tr>")
    lines += ["</thead>", "<tbody>"]
    for row in matrix.rows:
        cells = [f"<td>{_cell(matrix, row, c, v, HTML)}</td>" for c, v in _places(matrix)]
        cells += [f"<td>{_rank(matrix, row)}</td>"] if matrix.ranks else []
        lines.append(f'<tr><th scope="row">{_html(row)}</th>{"".join(cells)}</tr>')
    lines += ["</tbody>", "</table>", "</div>", "<figcaption>"]
    for head, sentences in (("What it says", matrix.findings), ("How to read it", matrix.notes)):
        if sentences:
            lines += [f"<p>{head}:</p>", "<ul>", *(f"<li>{_html(sentence)}</li>" for sentence in sentences), "</ul>"]
    if matrix.sources:
        lines += ["<p>Published:</p>", "<ol>", *(f"<li>{_html(sentence)}</li>" for sentence in matrix.sources), "</ol>"]
    return "\n".join([*lines, "</figcaption>", "</figure>"]) + "\n"


STYLE = (
    ".matrix{margin:0;font:15px/1.5 system-ui,sans-serif}.matrix .scroll{overflow-x:auto}"
    ".matrix table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    ".matrix caption{text-align:left;font-weight:600;padding:.4em 0}"
    ".matrix th,.matrix td{padding:.25em .7em;text-align:right;white-space:nowrap;border-bottom:1px solid #8885}"
    ".matrix th[scope=row]{text-align:left;font-weight:400}.matrix th[scope=colgroup]{text-align:center}"
    ".matrix figcaption{max-width:48rem;font-size:.9em}"
)
"""Of the fragment alone, in colours of the page around it."""


def _html(sentence: str) -> str:
    return escaping.escape(escape_controls(sentence))


def _column(name: str) -> str:
    return f'<th scope="col">{_html(name)}</th>'
