"""What all figures share: colours, markers, sizes, how they are written."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from balancebench_udi.store import Store
from balancebench_udi.text import escape_controls

MARKERS = "osD^vPX<>*phd8"
BLACK = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", BLACK, "#F0E442")
"""Okabe and Ito: distinguishable by colour-blind readers; markers, dashes and labels do without colour."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")

STYLE: dict[Any, Any] = {"svg.hashsalt": "balancebench", "font.family": "DejaVu Sans", "font.size": 9}
DPI = 150


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        figure: as drawn, not yet written.
        alt: what it shows, in words, for readers who do not see it: one to three sentences with the main figures.
        caption: what is plotted, over how many seeds, how it was read.
    """

    figure: Figure
    alt: str
    caption: str

    def svg(self) -> str:
        """The figure as an ``<svg>`` element, to stand inside a page; equal drawings, equal text.

        Its words are text, not outlines: they can be searched, and a page with hundreds of them opens faster.
        """
        text = _rendered(self.figure, "svg", {"svg.fonttype": "none"}).decode()
        return text[text.index("<svg") :].replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")  # same widths

    def save(self, folder: Path, name: str) -> list[Path]:
        """Write ``<name>.svg`` and ``<name>.png`` into ``folder``; equal drawings give equal bytes.

        Raises:
            UserError: ``folder`` cannot be written.
        """
        paths = [folder / f"{name}.{suffix}" for suffix in ("svg", "png")]
        for path in paths:
            data = _rendered(self.figure, path.suffix[1:])
            Store(folder).replace(path, lambda handle: handle.write(data))
        return paths


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` x ``height`` inches with a grid of plain axes, row by row; inside :func:`styled`."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **grid).ravel().tolist()
    for one in axes:
        plain(one)
    return figure, axes


def plain(axes: Axes) -> None:
    """A light grid behind the data, no box around it."""
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def styled() -> Any:
    """The context in which figures are drawn and written."""
    return matplotlib.rc_context(STYLE)


def titled(figure: Figure, what: str, where: str) -> None:
    """A title of two lines: what is shown, and of which data and protocol."""
    figure.suptitle(f"{what}\n{where}", fontsize=10.5, parse_math=False)


def looks(names: Sequence[str], order: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """``{name: {"color", "marker", "linestyle"}}`` for ``axes.plot``: no two alike for 14 names.

    Args:
        names: of lines or points; ``agm (alpha 1.5)`` looks like ``agm`` where that is not among them.
        order: names with a place of their own, so that one looks the same in every figure; others follow.
    """
    plain = {name: name.partition(" (")[0] for name in names}
    own = {name: name if name in order else plain[name] if plain[name] not in names else "" for name in names}
    places = {name: order.index(base) for name, base in own.items() if base in order}
    rest = [name for name in names if name not in places]
    places |= {name: len(order) + i for i, name in enumerate(rest)}
    return {
        name: {
            "color": COLOURS[places[name] % len(COLOURS)],
            "marker": MARKERS[places[name] % len(MARKERS)],
            "linestyle": DASHES[places[name] % len(DASHES)],
        }
        for name in names
    }


def literal(figure: Figure) -> None:
    """Show names as they are: no formula between two dollar signs, and what no XML can hold written out.

    To be called before a layout is computed; the labels of logarithmic axes are formulas and stay so.
    """
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis) if axis.get_scale() == "log"]
    formulas = {label for axis in axes for label in axis.get_ticklabels(which="both")}
    for text in set(figure.findobj(Text)) - formulas:
        text.set_parse_math(False)
        shown = escape_controls(text.get_text(), keep="\n")
        if shown != text.get_text():
            text.set_text(shown)


def _rendered(figure: Figure, suffix: str, style: Mapping[Any, Any] = MappingProxyType({})) -> bytes:
    unwanted = {"svg": ("Date", "Creator"), "png": ("Software",)}[suffix]  # they differ from one call to the next
    literal(figure)
    handle = io.BytesIO()
    with matplotlib.rc_context({**STYLE, **style}):
        figure.savefig(handle, format=suffix, dpi=DPI, metadata=dict.fromkeys(unwanted))
    return handle.getvalue()
