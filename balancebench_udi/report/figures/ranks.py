"""The figure of methods over several datasets: average ranks, and which of them are too close to be told apart."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes

from balancebench_udi.metrics import ranks as statistics
from balancebench_udi.report.figures.classes import shortened
from balancebench_udi.report.figures.style import COLOURS, Drawing, canvas, styled, titled

FEW = 5
"""Datasets below which average ranks say little: the critical difference is then nearly as long as the axis."""


def critical_difference_diagram(scores: pd.DataFrame, title: str = "", level: float = 0.05) -> Drawing:
    """Average ranks on an axis, best at the left; a thick bar joins methods that the Nemenyi test cannot tell apart.

    Demsar, *Statistical comparisons of classifiers over multiple data sets*, JMLR 7, 2006,
    https://jmlr.org/papers/v7/demsar06a.html, section 3.2.2 and Figure 1.

    Args:
        scores: one row a dataset, one column a method; higher is better.
        title: of the table that the scores are from.
        level: of the tests.

    Raises:
        UserError: fewer than two methods, no dataset, or a method without a score on some dataset.
    """
    ranks = statistics.average_ranks(scores).sort_values(kind="stable")
    difference = statistics.critical_difference(len(ranks), len(scores), level)
    cliques = statistics.cliques(ranks, difference)
    told, short = _tested(scores, level)
    few = f"{_counted(len(scores))} {'are' if len(scores) > 1 else 'is'} too few for ranks to mean much"
    note = f"1 = best; Nemenyi test at {level}; {short}"
    warning = ""
    if len(scores) < FEW:
        note, warning = f"{note}\n{few}", f" {few}: read the accuracies instead."
    with styled():
        figure, (axes,) = canvas(6.4, 1.8 + 0.16 * len(cliques) + 0.27 * math.ceil(len(ranks) / 2))
        titled(figure, title or "all methods", f"average ranks over {_counted(len(scores))}")
        figure.supxlabel(note, fontsize=8, color="0.35")
        _draw(axes, ranks, difference, cliques)
    listed = ", ".join(f"{name} {rank:.2f}" for name, rank in ranks.items())
    groups = "; ".join(" and ".join(clique) for clique in cliques) or "none"
    return Drawing(
        figure,
        f"Average ranks, 1 is best: {listed}. Critical difference {difference:.2f}; "
        f"not distinguishable: {groups}.{warning}",
        f"Average rank of every method over {_counted(len(scores))} ({', '.join(map(str, scores.index))}), "
        f"ties averaged; bars join methods whose ranks differ by at most the critical difference of the Nemenyi test, "
        f"{difference:.2f} at level {level}. {told}{warning}",
    )


def _tested(scores: pd.DataFrame, level: float) -> tuple[str, str]:
    """What Friedman's test says, as a sentence and in short."""
    if scores.shape[1] < 3 or len(scores) < 2:
        return "Friedman's test needs three methods and two datasets.", "no Friedman test"
    _, p = statistics.friedman(scores)
    found = f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    if p < level:
        return f"Friedman's test finds that the methods differ ({found}).", f"Friedman {found}"
    return (
        f"Friedman's test finds no difference ({found}), so no two methods should be called different.",
        f"Friedman {found}",
    )


def _draw(axes: Axes, ranks: pd.Series, difference: float, cliques: list[tuple[str, ...]]) -> None:
    """The axis at y = 0 with the critical difference above it; below it cliques, and names towards both sides."""
    last, step = max(len(ranks), 1 + difference), 0.6  # in heights of a label
    under = 0.5 + step * len(cliques)
    half = math.ceil(len(ranks) / 2)
    axes.set(
        xlim=(1, last),
        ylim=(under + half, -1.9),
        yticks=[],
        xticks=range(1, len(ranks) + 1, math.ceil(len(ranks) / 12)),
    )
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.spines["top"].set_position(("data", 0))
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, labelsize=8)

    axes.plot([1, 1 + difference], [-1.5, -1.5], "|-", color="black", linewidth=1.2, clip_on=False)
    axes.text(1 + difference / 2, -1.6, f"critical difference {difference:.2f}", ha="center", va="bottom", fontsize=8)
    for i, clique in enumerate(cliques):
        ends = [ranks[list(clique)].min(), ranks[list(clique)].max()]
        axes.plot(ends, [0.5 + step * i] * 2, color=COLOURS[1], linewidth=4, solid_capstyle="round")
    for i, (name, rank) in enumerate(zip(shortened([*ranks.index], 32), ranks, strict=True)):
        left = i < half
        depth = under + (i if left else len(ranks) - 1 - i) + 0.4
        end = 1 if left else last
        axes.plot([rank, rank, end], [0, depth, depth], color="black", linewidth=0.9, clip_on=False)
        axes.annotate(
            f"{name} {rank:.2f}" if left else f"{rank:.2f} {name}",
            (end, depth),
            (-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            parse_math=False,
        )


def _counted(datasets: int) -> str:
    return f"{datasets} dataset{'s' * (datasets > 1)}"
