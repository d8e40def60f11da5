"""The figure of a comparison: how accurate every method is against how unevenly it uses its modalities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from balancebench_udi.report.comparison import Comparison
from balancebench_udi.report.figures.style import DPI, Drawing, canvas, literal, looks, styled, titled

RADII = (8, 14, 20, 28, 38, 50, 64, 80, 100)
"""Distances of a name from its point that are tried, in typographical points."""


def accuracy_against_imbalance(comparison: Comparison, order: Sequence[str] = (), where: str | None = None) -> Drawing:
    """Test accuracy against the imbalance of the Shapley contributions: one labelled point a method.

    Bars are the standard deviation over seeds; the line is the Pareto front of the means (no method is both more
    accurate and better balanced than one on it).

    Args:
        comparison: of one dataset and protocol.
        order: methods by name, each of which looks the same in all figures that are given the same order.
        where: what the title says of data and protocol, instead of the comparison's title.
    """
    points = comparison.table.set_index("method")[["accuracy", "accuracy_sd", "imbalance", "imbalance_sd"]] * 100
    with styled():
        figure = _draw(points, order, f"{where or comparison.title}, {comparison.select}")
    told = [f"{name} {point.accuracy:.1f} at {point.imbalance:.1f}" for name, point in points.iterrows()]
    front = ", ".join(_front(points).index)
    return Drawing(
        figure,
        f"Test accuracy in percent at imbalance in percentage points: {'; '.join(told)}. On the Pareto front: {front}.",
        f"Accuracy against imbalance, {comparison.title}, read at {comparison.select}; bars: one standard deviation "
        "over seeds; dashed: Pareto front of the means.",
    )


def _draw(points: pd.DataFrame, order: Sequence[str], where: str) -> Figure:
    figure, (axes,) = canvas(6.4, 4.5)
    titled(figure, "accuracy against imbalance", where)
    look = looks([str(name) for name in points.index], order)
    axes.set_title("bars: ± 1 standard deviation over seeds; dashed: Pareto front", fontsize=8, color="0.35")
    axes.set_xlabel("imbalance of Shapley contributions (percentage points, 0 = balanced)")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(0.14)

    for name, point in points.iterrows():
        axes.errorbar(
            point["imbalance"],
            point["accuracy"],
            xerr=point["imbalance_sd"],
            yerr=point["accuracy_sd"],
            marker=look[str(name)]["marker"],
            color=look[str(name)]["color"],
            markeredgecolor="black",
            markeredgewidth=0.6,
            markersize=7,
            ecolor="0.55",
            elinewidth=0.8,
            zorder=3,
        )
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left, top = max(left, -0.02 * right), min(top, 101.5)  # little room where no value can be
    axes.set(xlim=(left, right), ylim=(bottom, top))
    front = _front(points)
    x, y = (front[name].repeat(2).tolist() for name in ("imbalance", "accuracy"))
    corners = np.array([[*x, right], [bottom, *y]]).T
    axes.plot(*corners.T, color="0.55", linestyle="--", linewidth=1, zorder=1)
    literal(figure)
    figure.draw_without_rendering()  # fixes the layout, so that places on the canvas are known
    figure.set_layout_engine("none")
    _label(axes, points, corners)
    return figure


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats in accuracy and imbalance, by growing imbalance."""
    ordered = points.sort_values(["imbalance", "accuracy"], ascending=[True, False], kind="stable")
    return ordered[~ordered["accuracy"].cummax().duplicated()]


def _label(axes: Axes, points: pd.DataFrame, front: np.ndarray) -> None:
    """Put every name where it hides least, close to its point, with a line to it where it had to move away.

    The candidates are rings of places around each point. Each name in turn takes its cheapest one given all the
    others, the most crowded first, a few times over. Boxes are (left, bottom, right, top) on the canvas.
    """
    means, unit = points[["imbalance", "accuracy"]].to_numpy(), DPI / 72  # canvas units a typographical point
    at = axes.transData.transform(means)
    spread = axes.transData.transform(means + points[["imbalance_sd", "accuracy_sd"]].fillna(0).to_numpy()) - at
    marks = np.hstack([at - 5.5 * unit, at + 5.5 * unit])
    dashes = axes.transData.transform(front)
    dashes = np.hstack([np.minimum(dashes[1:], dashes[:-1]) - 1, np.maximum(dashes[1:], dashes[:-1]) + 1])
    thin = [np.hstack([at - spread * axis - 1, at + spread * axis + 1]) for axis in ([1, 0], [0, 1])]
    bars = np.vstack([*thin, dashes])
    look: dict[str, Any] = {"fontsize": 8.5, "ha": "center", "va": "center", "parse_math": False}
    texts = [axes.text(x, y, name, **look) for name, (x, y) in zip(points.index, means, strict=True)]
    apart = np.linalg.norm(at[:, None] - at, axis=-1)
    ring = np.array([(r, math.cos(k * math.pi / 12), math.sin(k * math.pi / 12)) for r in RADII for k in range(24)])
    radius, way = ring[:, 0], ring[:, 1:]
    low, high = axes.bbox.get_points()
    boxes, lines = np.full((len(at), 4), np.inf), np.full((len(at), 24, 2), np.inf)
    for i in [*np.argsort(-(apart < 60 * unit).sum(0), kind="stable")] * 4:
        extent = texts[i].get_window_extent()
        half = np.array([extent.width / 2 + unit, extent.height / 2])
        centre = at[i] + (radius[:, None] * unit + half) * way
        box = np.hstack([centre - half, centre + half])
        line = at[i] + np.linspace(0, 1, 24)[:, None] * (np.clip(at[i], box[:, :2], box[:, 2:]) - at[i])[:, None]
        others = np.arange(len(at)) != i
        inside = ((box[:, :2] > low + 2) & (box[:, 2:] < high - 2)).all(1)
        crossing = _holds(box, lines[others]).sum(1)
        crossing += _holds(np.vstack([boxes[others], marks[others]]), line).sum(0)
        gap = np.linalg.norm(np.clip(at, box[:, None, :2], box[:, None, 2:]) - at, axis=-1)
        nearer = (gap < gap[:, [i]]).sum(1)  # points that a reader would rather take the name for
        cost = 1000 * ~inside + 100 * _hits(box, boxes[others]) + 60 * _hits(box, marks) + 4 * _hits(box, bars)
        cost = cost + 40 * crossing + 15 * nearer + 0.3 * radius + np.abs(way[:, 1])
        best = int(cost.argmin())
        texts[i].set_position(axes.transData.inverted().transform(centre[best]))
        boxes[i] = box[best]
        lines[i] = line[best] if radius[best] > RADII[1] or nearer[best] else np.inf
    for line in lines[np.isfinite(lines).all((1, 2))]:
        ends = axes.transData.inverted().transform(line[[0, -1]])
        axes.plot(*ends.T, color="0.3", linewidth=0.6, zorder=2, scalex=False, scaley=False)


def _hits(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """``[K]``: how many of ``boxes`` ``[B, 4]`` each of ``box`` ``[K, 4]`` overlaps."""
    return ((box[:, None, :2] < boxes[:, 2:]) & (box[:, None, 2:] > boxes[:, :2])).all(-1).sum(-1)


def _holds(box: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """``[K, L]``: does any point of each of ``paths`` ``[L, P, 2]`` lie in each of ``box`` ``[K, 4]``?"""
    within = (paths > box[:, None, None, :2]) & (paths < box[:, None, None, 2:])
    return np.any(within.all(-1), axis=-1)
