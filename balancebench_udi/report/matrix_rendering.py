"""A table of rows x columns in print: for a terminal, in Markdown, as csv, in LaTeX and in HTML."""

from __future__ import annotations

import html as escaping
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
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
FLOORED = ("accuracy", "share", "masked", "alone", "probe")
"""Scores that majority class and chance can be held against, by the part of their name before the slash."""
WIDE = 14
"""Columns above which Markdown and HTML put the columns of a table below each other, a part each."""


def _cell(matrix: Matrix, row: str, column: str, value: str, style: Style) -> str:
    """Our mean, and what was published."""
    parts = []
    number = matrix.numbers.get((row, column, value))
    if number is not None:
        mean = style.signed(printed(number.mean, value))
        text = style.bold.format(mean) if number.best else mean
        if not math.isnan(number.sd) and value not in COUNTS:
            text += style.plus_minus + printed(number.sd, value)
        if not number.best:
            text += style.mark(number.verdict)
        first = value == matrix.columns[column][0]
        if first and number.n < number.wanted:
            text += f" {number.n}/{number.wanted}"
        parts.append(text)
    for one in matrix.beside:
        if (one.row, one.column, one.value) == (row, column, value):
            parts.append(style.claim.format(value=_percent(one.accuracy), source=one.source))
    return " ".join(parts) or matrix.absent[row, column]


def _floors(matrix: Matrix, places: Sequence[tuple[str, str]]) -> dict[str, dict[tuple[str, str], float]]:
    """What needs no learning, by name, in the places where it can be compared; nothing without such a place."""
    kept = [(c, v) for c, v in places if v.partition("/")[0] in FLOORED and c in matrix.samples]
    if not kept:
        return {}
    return {
        "majority class": {place: matrix.samples[place[0]].majority for place in kept},
        "chance": {place: matrix.samples[place[0]].chance for place in kept},
    }


def _lines(
    matrix: Matrix,
    places: Sequence[tuple[str, str]],
    style: Style,
    floors: Mapping[str, Mapping[tuple[str, str], float]],
) -> list[tuple[str, list[str]]]:
    """Every line of the table: its name, its cells in ``places``; last those of ``floors``."""
    lines = [(row, [_cell(matrix, row, column, value, style) for column, value in places]) for row in matrix.rows]
    for name, found in floors.items():
        lines.append((name, [printed(found[place], place[1]) if place in found else "" for place in places]))
    return lines


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
    floors = _floors(matrix, filled)
    for column, value in filled:
        heads = [escape_controls(column), *([_head(value)] if several else [])]
        grid.append([*heads, *(cells[0] for _, cells in _lines(matrix, [(column, value)], TERMINAL, floors))])
    if matrix.ranks:
        grid.append(
            [*["", "rank"][-(1 + several) :], *(_rank(matrix, row) for row in matrix.rows), *[""] * len(floors)]
        )
    names = [*([""] * (1 + several)), *map(escape_controls, matrix.rows), *floors]
    for block in _blocks(grid, WIDTH - max(map(len, names))):
        for earlier, later in zip(reversed(block[:-1]), reversed(block[1:]), strict=True):
            later[0] = "" if several and later[0] == earlier[0] else later[0]  # a column's name once
        lines += ["", *_aligned([names, *block])]
    lines += ["", *textwrap.wrap(f"without any number: {', '.join(empty)}", WIDTH)] if empty else []
    legend = "*: best of a column; †: not significantly different from it; ‡: too noisy to say"
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
    places = _places(matrix)
    floors = _floors(matrix, places)
    lines = [f"# {in_markdown(matrix.title)}"]
    parts = [places]
    if several and len(places) > WIDE:
        parts = [[place for place in places if place[0] == column] for column in matrix.columns]
    for part in parts:
        whole = len(parts) == 1
        lines += ["", *([] if whole else [f"## {in_markdown(part[0][0])}", ""])]
        heads = [f"{column} {_head(value)}" if several and whole else _head(value) for column, value in part]
        heads = heads if several else [column for column, _ in part]
        ranked = bool(matrix.ranks) and whole
        lines += [line(["", *heads, *(["rank"] if ranked else [])]), "|:--|" + "--:|" * (len(heads) + ranked)]
        for row, cells in _lines(matrix, part, MARKDOWN, floors):
            lines.append(line([row, *cells, *([_rank(matrix, row) if row in matrix.rows else ""] if ranked else [])]))
    if matrix.ranks and len(parts) > 1:
        ranks = ", ".join(f"{row} {_rank(matrix, row)}" for row in matrix.rows)
        lines += ["", f"Average ranks by accuracy: {in_markdown(ranks)}."]
    if matrix.findings:
        lines += ["", "What it says:", "", *(f"- {in_markdown(sentence)}" for sentence in matrix.findings)]
    notes = (*matrix.notes, *_counts(matrix))
    lines += ["", "How to read it:", "", *(f"- {in_markdown(sentence)}" for sentence in notes)]
    if matrix.sources:
        lines += ["", "Published:", "", *(f"- [{n}] {in_markdown(s)}" for n, s in enumerate(matrix.sources, 1))]
    return "\n".join(lines) + "\n"


def csv(matrix: Matrix) -> str:
    """One line a number at full precision, accuracies in [0, 1]; what was published has ``published`` true."""
    frame = matrix.frame()
    for name in ("best", "published"):
        frame[name] = frame[name].map({True: "true", False: "false"})
    counts = {"n": "Int64", "wanted": "Int64"}
    return guard_frame(frame.astype(counts)).to_csv(index=False, lineterminator="\n")


def latex(matrix: Matrix) -> str:
    """Floats of the columns that hold anything; needs booktabs and graphicx."""
    several = any(len(values) > 1 for values in matrix.columns.values())
    filled, empty = _filled(matrix)
    floors = _floors(matrix, filled)
    columns = []
    for column, value in filled:
        cells = tuple(cells[0] for _, cells in _lines(matrix, [(column, value)], LATEX, floors))
        columns.append(tex.Column(column, _head(value), cells) if several else tex.Column("", column, cells))
    if matrix.ranks:
        columns.append(tex.Column("", "rank", (*(_rank(matrix, row) for row in matrix.rows), *[""] * len(floors))))
    said = {
        "What it says": matrix.findings,
        "How to read it": [
            *matrix.notes,
            *_counts(matrix),
            *([f"Without any number: {', '.join(empty)}."] if empty else []),
        ],
        "Published": [f"[{number}] {source}" for number, source in enumerate(matrix.sources, 1)],
    }
    first = tex.Column("", "", (*map(tex.escaped, matrix.rows), *floors))
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
    for row, shown in _lines(matrix, _places(matrix), HTML, _floors(matrix, _places(matrix))):
        cells = [f"<td>{cell}</td>" for cell in shown]
        cells += [f"<td>{_rank(matrix, row) if row in matrix.rows else ''}</td>"] if matrix.ranks else []
        lines.append(f'<tr><th scope="row">{_html(row)}</th>{"".join(cells)}</tr>')
    lines += ["</tbody>", "</table>", "</div>", "<figcaption>"]
    notes = (*matrix.notes, *_counts(matrix))
    for head, sentences in (("What it says", matrix.findings), ("How to read it", notes)):
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
