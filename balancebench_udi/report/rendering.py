"""A comparison in print: for a terminal, in Markdown, as csv and in LaTeX."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from balancebench_udi.metrics.statistics import CLOSE, NOISY
from balancebench_udi.report import tex
from balancebench_udi.text import escape_controls, guard_frame

if TYPE_CHECKING:
    from balancebench_udi.report.comparison import Comparison

READOUTS = ("share", "masked", "alone")
"""The three ways to read one modality out; they are never mixed."""
WIDTH = 100
"""Of a terminal."""


@dataclass(frozen=True)
class Style:
    """How a rendering marks things."""

    bold: str = "{}"
    close: str = " †"
    noisy: str = " ‡"
    plus_minus: str = " ± "
    minus: str = "-"
    claim: str = "{value} [{source}]"

    def signed(self, number: str) -> str:
        """A number in print with this style's minus; a dash that stands for none stays one."""
        return number if number == "-" else number.replace("-", self.minus)

    def mark(self, verdict: str | None) -> str:
        """What follows a mean, by the verdict on its row and the best."""
        return {CLOSE: self.close, NOISY: self.noisy}.get(verdict or "", "")


TERMINAL = Style(bold="*{}", claim="[{value}]")
MARKDOWN = Style(bold="**{}**", claim="_{value}_ [{source}]")
LATEX = Style(r"\textbf{{{}}}", r"$^\dagger$", r"$^\ddagger$", r" $\pm$ ", "$-$", r"\textit{{{value}}} [{source}]")


def text(comparison: Comparison, rule: str) -> str:
    """The table for a terminal, at most 100 columns wide for up to three modalities."""
    heads = ["method", "n", "accuracy", "macro-F1", *(escape_controls(m)[:7] for m in comparison.modalities)]
    rows = [[*heads, "imbalance", "passes", "seconds"]]
    used = set()
    marked = comparison.contest is not None
    accuracies = _cells(comparison, _Column("", "accuracy", "accuracy", best=marked), TERMINAL)
    marks = (TERMINAL.close, TERMINAL.noisy)
    if any(cell.endswith(marks) for cell in accuracies):
        accuracies = [cell if cell.endswith(marks) else f"{cell}  " for cell in accuracies]
    for row, accuracy in zip(comparison.table.to_dict("records"), accuracies, strict=True):
        name = escape_controls(row["method"])[:12]
        cells = [name, f"{row['n']}/{row['wanted']}", accuracy, _number(row["macro_f1"], 100, 1)]
        for m in comparison.modalities:
            kind = next(k for k in ("alone", "share", "masked") if k == "masked" or pd.notna(row[f"{k}/{m}"]))
            cells.append(f"{_number(row[f'{kind}/{m}'], 100, 1)} {kind[0]}")
            used.add(kind)
        cells.append(_number(row["imbalance"], 100, 1))
        rows.append(cells + [_number(row[f"{name}_relative"], 1, 2) for name in ("passes", "seconds")])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [comparison.title]
    for cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        lines.append("  ".join([cells[0].ljust(widths[0]), *right]))
    kinds = {"alone": "a: own head", "share": "s: share of the fused logits", "masked": "m: the others masked"}
    notes = "*: best accuracy; †: not significantly different; ‡: too noisy to say; " if marked else ""
    floors = comparison.samples
    notes += f"majority class {100 * floors.majority:.1f}, chance {100 * floors.chance:.1f}; "
    notes += "; ".join(meaning for kind, meaning in kinds.items() if kind in used)
    if comparison.reference:
        notes += f"; passes and seconds relative to {comparison.reference}"
    lines += textwrap.wrap(notes, WIDTH) + textwrap.wrap(rule, WIDTH)
    return "\n".join(map(escape_controls, lines + bullets(comparison.findings)))


def in_markdown(text: str) -> str:
    """``text`` on one line of Markdown, also inside a table: no HTML, no code, no end of a cell."""
    text = " ".join(text.split()).replace("\\", r"\\").replace("`", r"\`").replace("|", r"\|")
    return escape_controls(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def bullets(sentences: Sequence[str]) -> list[str]:
    """A list of sentences for a terminal."""
    wrapped = [textwrap.wrap(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ") for sentence in sentences]
    return list(itertools.chain.from_iterable(wrapped))


def _number(value: float, scale: float, digits: int) -> str:
    return "-" if pd.isna(value) else f"{value * scale:z.{digits}f}"


@dataclass(frozen=True)
class _Column:
    """A column of the printed tables; ``best``: its highest mean of those that were compared is bold."""

    group: str
    head: str
    name: str
    scale: float = 100.0
    digits: int = 1
    best: bool = False


def _columns(comparison: Comparison) -> list[_Column]:
    single = [_Column(k, m, f"{k}/{m}", best=True) for k in (*READOUTS, "probe") for m in comparison.modalities]
    newer = [_Column("", "top-5", "top5", best=True), _Column("", "calibration error", "ece")]
    over = f" / {comparison.reference}" if comparison.reference else ""
    return [
        _Column("", "accuracy", "accuracy", best=True),
        _Column("", "macro-F1", "macro_f1", best=True),
        *(column for column in (*newer, *single) if column.name in comparison.table),
        *(_Column("Shapley", m, f"shapley/{m}") for m in comparison.modalities),
        _Column("imbalance", "absolute", "imbalance"),
        _Column("imbalance", "relative", "imbalance_relative", 1, 2),
        _Column("", f"passes{over}", "passes_relative", 1, 2),
        _Column("", f"seconds{over}", "seconds_relative", 1, 2),
        *(
            _Column("validation after", f"{k}×", f"budget_{k}x")
            for k in (1, 2, 3)
            if f"budget_{k}x" in comparison.table
        ),
    ]


def _cells(comparison: Comparison, column: _Column, style: Style) -> list[str]:
    """The column in print; means that print alike are best together."""
    table, contest = comparison.table.set_index("method"), comparison.contest
    means = [_number(v, column.scale, column.digits) for v in table[column.name]]
    rivals = table.loc[list(comparison.fullest), column.name].dropna()
    best = _number(rivals.max(), column.scale, column.digits) if column.best and len(rivals) > 1 else None
    judged = contest if column.name == "accuracy" else None
    spreads = table.get(f"{column.name}_sd", [float("nan")] * len(means))
    cells = []
    for method, mean, sd in zip(table.index, means, spreads, strict=True):
        first = mean == best and method in rivals
        cell = style.bold.format(mean) if first else style.signed(mean)
        cell += "" if pd.isna(sd) else style.plus_minus + _number(sd, column.scale, column.digits)
        cells.append(cell + style.mark(judged.kind(method) if judged and not first else None))
    return cells


def _floors(comparison: Comparison, columns: Sequence[_Column]) -> list[list[str]]:
    """The lines of the majority class and of chance, in print: they have accuracies only."""
    samples = comparison.samples
    lines = []
    for name, value in {"majority class": samples.majority, "chance": samples.chance}.items():
        shown = _number(value, 100, 1)
        kinds = ("accuracy", *READOUTS, "probe")
        lines.append([name, "", *(shown if c.name.partition("/")[0] in kinds else "" for c in columns)])
    return lines


def _counts(comparison: Comparison) -> list[str]:
    return [f"{n} of {wanted}" for n, wanted in zip(comparison.table["n"], comparison.table["wanted"], strict=True)]


def _percent(row: Mapping[str, Any]) -> str:
    return "-" if row["accuracy"] is None else f"{row['accuracy']:g}"


def markdown(comparison: Comparison) -> str:
    """The table, published numbers below it in one of their own, then the caption."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(in_markdown, cells))} |"

    columns = _columns(comparison)
    heads = ["method", "n", *(f"{c.group} {c.head}".strip() for c in columns)]
    cells = [_cells(comparison, c, MARKDOWN) for c in columns]
    lines = [f"# {in_markdown(comparison.title)}", "", line(heads), "|" + ":--|" + "--:|" * (len(heads) - 1)]
    lines += [line(row) for row in zip(comparison.table["method"], _counts(comparison), *cells, strict=True)]
    lines += [line(row) for row in _floors(comparison, columns)]
    if comparison.published:
        lines += ["", "## Published", "", "From the literature, each under its own protocol; in no mean above.", ""]
        lines += [line(["method", "accuracy", "protocol", "source"]), "|:--|--:|:--|:--|"]
        lines += [line([r["label"], _percent(r), r["protocol"], r["source"]]) for r in comparison.published]
    if comparison.findings:
        lines += [
            "",
            "What it says:",
            "",
            *(f"- {in_markdown(sentence)}" for sentence in comparison.findings),
            "",
            "How to read it:",
        ]
    told = (*comparison.caption, *comparison.notes)
    return "\n".join([*lines, "", *(f"- {in_markdown(sentence)}" for sentence in told)]) + "\n"


def csv(comparison: Comparison) -> str:
    """One row a method at full precision, accuracies in [0, 1]; published rows have ``published`` true."""
    rows = comparison.table.to_dict("records")
    for row in comparison.published:
        share = None if row["accuracy"] is None else row["accuracy"] / 100
        named = {"method": row["label"], "protocol": row["protocol"], "source": row["source"]}
        rows.append({**named, "dataset": rows[0]["dataset"], "published": True, "accuracy": share})
    frame = pd.DataFrame(rows, columns=[*comparison.table.columns, "source"])
    frame["published"] = frame["published"].map({True: "true", False: "false"})
    counts = dict.fromkeys(("n", "wanted", "method_version"), "Int64")  # whole numbers that may be absent
    return guard_frame(frame.astype(counts)).to_csv(index=False, lineterminator="\n")


def latex(comparison: Comparison) -> str:
    """Floats of the methods with their costs, then with their modalities one by one; needs booktabs and graphicx."""
    ordered = sorted(_columns(comparison), key=lambda column: "/" in column.name)
    methods, runs, *below = zip(*_floors(comparison, ordered), strict=True)
    names = tex.Column("", "method", (*map(tex.escaped, comparison.table["method"]), *methods))
    counts = tex.Column("", "n", (*_counts(comparison), *runs))
    columns = [
        tex.Column(c.group, c.head, (*_cells(comparison, c, LATEX), *floor))
        for c, floor in zip(ordered, below, strict=True)
    ]
    rows = comparison.published
    said = {
        "What it says": comparison.findings,
        "How to read it": [*comparison.caption, *comparison.notes],
        "Published, each under its own protocol": [
            f"{row['label']}: {_percent(row)}; {row['protocol']}; {row['source']}" for row in rows
        ],
    }
    return tex.table(comparison.title, [names, counts], columns, said)
