"""The figure of cost: what every method reaches with how much training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from balancebench_udi.report.budget import budget_curve
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.figures.classes import counted
from balancebench_udi.report.figures.style import COLOURS, DPI, Drawing, canvas, literal, looks, styled, titled

TIMES = (1, 2, 3)
"""Multiples of the reference's passes that are marked."""
PALE = COLOURS[7]
"""Too light for a line without an edge."""


def accuracy_against_budget(
    records: Sequence[Mapping[str, Any]], select: str, reference: str | None = None, order: Sequence[str] = ()
) -> Drawing:
    """Best validation accuracy so far against passes through the encoders: a line a method, a labelled dot at its end.

    Lines are means over seeds of the step functions of :func:`balancebench_udi.report.budget.budget_curve`; they begin
    where every seed has a fused prediction, which a method that fuses last has when it is finished. A run that is over
    keeps its accuracy. The dot is that of the finished runs.

    Args:
        records: of one dataset and protocol, as :func:`balancebench_udi.store.read_record` returns them.
        select: the reading of the finished run: ``last``, ``best_val`` or ``best_test``.
        reference: the method whose mean passes are 1; without it, or without its records, the unit is a million passes.
        order: methods by name, each of which looks the same in all figures that are given the same order.

    Raises:
        UserError: what :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    comparison = compare(records, select, reference=reference)
    table = comparison.table.set_index("method")
    unit = table["passes"][comparison.reference] if comparison.reference else 1e6
    means = {method: _mean(records, method, select, unit) for method in table.index}
    final = _final(records, select)
    ends = {method: (mean.index[-1], final[method]) for method, mean in means.items()}
    sign = "×" if comparison.reference else " million"
    what = f"relative to {comparison.reference}" if comparison.reference else "in millions"
    look = looks(list(means), order)
    with styled():
        figure, (axes,) = canvas(6.8, 4.5)
        titled(figure, "accuracy against training budget", f"{comparison.title}, {select}")
        axes.set_xlabel(f"passes through the encoders, {what} (forward + 2 × backward)", parse_math=False)
        axes.set_ylabel("best fused validation accuracy so far (%)")
        for method, mean in means.items():
            x, y = ends[method]
            kind = {**look[method], "marker": "", "linewidth": 1.3}
            if kind["color"] == PALE:
                kind["path_effects"] = [patheffects.withStroke(linewidth=2.2, foreground="0.4")]
            axes.plot([*mean.index, x], [*mean, y], drawstyle="steps-post", **kind)
            dot = {"marker": look[method]["marker"], "color": look[method]["color"], "markersize": 7}
            axes.plot(x, y, markeredgecolor="black", label=method, **dot)
        axes.set_xlim(left=0)
        furthest = max(x for x, _ in ends.values())
        for times in TIMES if comparison.reference else ():
            if times <= furthest * 1.01:
                axes.axvline(times, color="0.45", linewidth=0.9, zorder=1, label=f"{times}{sign}")
        _label(figure, axes, ends)
    told = [f"{method} {y:.1f} at {x:.2f}{sign}" for method, (x, y) in ends.items()]
    early = [
        f"{method} {mean.loc[:1.000001].iloc[-1]:.1f}"
        for method, mean in means.items()
        if comparison.reference and mean.index[-1] > 1.01 and mean.index[0] <= 1
    ]
    return Drawing(
        figure,
        f"Validation accuracy in percent of the finished runs, and their passes: {'; '.join(told)}."
        + f" Best so far at the passes of {comparison.reference}: {'; '.join(early)}." * bool(early),
        f"Best validation accuracy so far against passes (samples through the encoders, forward + 2 × backward, all "
        f"encoders; {what}), {comparison.title}: mean over {counted(comparison.table['n'])}. A method that fuses "
        f"last has a fused prediction when it is finished, and no line before. The dot is the finished run, read at "
        f"{select}.",
    )


def _mean(records: Sequence[Mapping[str, Any]], method: str, select: str, unit: float) -> pd.Series:
    """Mean accuracy in percent by passes, at every place where the step function of some seed may change."""
    mine = sorted((r for r in records if r["spec"]["method"] == method), key=lambda r: r["spec"]["seed"])
    runs = [pd.Series(dict(budget_curve(record, select))) for record in mine]
    grid = pd.concat(runs, axis=1).sort_index().ffill().dropna()
    return pd.Series(100 * grid.mean(axis=1).to_numpy(), grid.index / unit)


def _final(records: Sequence[Mapping[str, Any]], select: str) -> pd.Series:
    """Mean validation accuracy in percent of the finished runs, by method."""
    read = [(r["spec"]["method"], 100 * r["result"]["readings"][select]["val"]["accuracy"]) for r in records]
    return pd.DataFrame(sorted(read), columns=["method", "accuracy"]).groupby("method")["accuracy"].mean()


def _label(figure: Figure, axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Name and accuracy to the right of every end; names that would hide each other or a dot are moved apart.

    Ends whose names are in each other's way form a group, whose names stand in a column to the right of its ends.
    """
    point = DPI / 72
    halo = [patheffects.withStroke(linewidth=4, foreground="white")]
    look: dict[str, Any] = {"fontsize": 8.5, "va": "center", "parse_math": False, "path_effects": halo, "zorder": 5}
    texts = {name: axes.text(x, y, f"{name} {y:.1f}", **look) for name, (x, y) in ends.items()}
    literal(figure)
    figure.draw_without_rendering()  # fixes the layout, so that places on the canvas are known
    figure.set_layout_engine("none")
    sizes = {name: text.get_window_extent().size for name, text in texts.items()}
    need = max(width for width, _ in sizes.values()) + 16 * point
    axes.set_xlim(right=max(x for x, _ in ends.values()) * axes.bbox.width / (axes.bbox.width - need))

    at = {name: axes.transData.transform(end) for name, end in ends.items()}
    dots = {name: Bbox([place, place]).padded(5 * point) for name, place in at.items()}
    groups = [[name] for name in ends]
    while True:
        boxes = [_column(axes, group, at, sizes, 12 * point) for group in groups]
        taken = [[*column.values(), *(dots[name] for name in column)] for column in boxes]
        clash = (
            (i, j)
            for i, j in itertools.permutations(range(len(groups)), 2)
            if any(box.overlaps(other) for box in boxes[i].values() for other in taken[j])
        )
        i, j = next(clash, (0, 0))
        if i == j:
            break
        groups[i] += groups[j]
        del groups[j]
    for column in boxes:
        for name, box in column.items():
            place = np.array([box.x0, (box.y0 + box.y1) / 2])
            x, y = axes.transData.inverted().transform(place)
            texts[name].set_position((x, y))
            line = axes.transData.inverted().transform(np.array([at[name], place - (1.5 * point, 0)]))
            axes.plot(*line.T, color="0.3", linewidth=0.6, zorder=2, label=f"to {name}")


def _column(
    axes: Axes, names: Sequence[str], at: Mapping[str, Any], sizes: Mapping[str, Any], distance: float
) -> dict[str, Bbox]:
    """Where the names of a group stand: as high as their ends if possible, ``distance`` to the right of them all."""
    order = sorted(names, key=lambda name: at[name][1])
    left = max(at[name][0] for name in names) + distance
    gap = max(sizes[name][1] for name in names) + DPI / 72
    heights = _apart([at[name][1] for name in order], gap, *axes.bbox.intervaly)
    return {
        name: Bbox.from_bounds(left, y - gap / 2, sizes[name][0], gap) for name, y in zip(order, heights, strict=True)
    }


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Heights close to ``wanted`` (ascending), at least ``gap`` apart, between ``low`` and ``high`` where they fit."""
    from sklearn.isotonic import isotonic_regression

    steps = gap * np.arange(len(wanted))
    shifted = np.asarray(isotonic_regression(np.subtract(wanted, steps)))
    return np.clip(shifted, low + gap / 2, max(high - gap / 2 - steps[-1], low + gap / 2)) + steps
