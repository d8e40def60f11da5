"""The figure of accuracies with their uncertainty: a forest plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from balancebench_udi.metrics import statistics
from balancebench_udi.metrics.statistics import CLOSE, DIFFERENT, NOISY
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.contest import Contest, judge, listed, stacked
from balancebench_udi.report.figures.classes import counted, fused, shortened
from balancebench_udi.report.figures.style import BLACK, Drawing, canvas, styled, titled

FILLS = {"best": "full", CLOSE: "full", NOISY: "left", DIFFERENT: "none"}
"""How the mark of a mean is filled, by the verdict on its method and the best; ``full`` where nothing is tested."""


def accuracy_intervals(records: Sequence[Mapping[str, Any]], select: str) -> Drawing:
    """Test accuracy of every method, best first: the mean, its 95 % interval, and every seed.

    Intervals and verdicts are those of the tables: over seeds and test samples, or groups of these.

    Args:
        records: of one dataset and protocol, as :func:`balancebench_udi.store.read_record` returns them.
        select: the reading: ``last``, ``best_val`` or ``best_test``.

    Raises:
        UserError: runs with different test samples, and what
            :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    comparison, (predicted, target) = compare(records, select), fused(records, select)
    right = {method: {s: p == target for s, p in runs.items()} for method, runs in predicted.items()}
    hits = {method: stacked(runs) for method, runs in right.items()}
    hits = dict(sorted(hits.items(), key=lambda item: -item[1].mean()))
    samples = comparison.samples
    mean = [100 * h.mean() for h in hits.values()]
    low, high = 100 * np.transpose([statistics.interval(h, samples.members) for h in hits.values()])
    found = judge(right, samples)
    tested = _told(found)
    number = [len(runs) for runs in predicted.values()]
    units = "test samples" if samples.groups is None else f"{samples.groups.unit}s of test samples"
    over = units if max(number) == 1 else f"seeds and {units}"
    with styled():
        figure, (axes,) = canvas(6.4, 1.9 + 0.32 * len(hits))
        titled(figure, "accuracy with 95 % intervals", f"{comparison.title}, {select}")
        axes.set_xlabel("test accuracy (%)")
        rows = range(len(hits))
        axes.hlines(rows, low, high, color="0.6", linewidth=5, label="95 % interval of the mean")
        axes.plot([], [], "|", color="black", markersize=6, label="one seed")
        look: dict[str, Any] = {
            "marker": "o",
            "linestyle": "",
            "color": BLACK,
            "markerfacecoloralt": "white",
            "markeredgewidth": 1.4,
            "zorder": 4,
        }
        axes.plot([], [], **look, label=f"mean, best or {CLOSE}")
        axes.plot([], [], **look, fillstyle="left", label=f"mean, {NOISY}")
        axes.plot([], [], **look, markerfacecolor="white", label="mean, significantly below the best")
        for row, (method, h) in enumerate(hits.items()):
            axes.plot(100 * h.mean(1), [row + 0.28] * len(h), "|", color="black", markersize=6)
            fill = FILLS[(found and found.kind(method)) or "best"]
            kind: dict[str, Any] = {"markerfacecolor": "white"} if fill == "none" else {"fillstyle": fill}
            axes.plot(mean[row], row, **look, **kind)
            numbers = f"{mean[row]:.1f} [{low[row]:.1f}, {high[row]:.1f}]"
            axes.text(1.02, row, numbers, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.set_yticks(rows, shortened([*hits], 24), parse_math=False)
        axes.set_ylim(len(hits) - 0.4, -0.6)
        axes.grid(False, axis="y")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    told = [f"{m} {a:.1f} [{b:.1f}, {c:.1f}]" for m, a, b, c in zip(hits, mean, low, high, strict=True)]
    floors = f"The majority class has {100 * samples.majority:.1f} %, chance is {100 * samples.chance:.1f} %."
    return Drawing(
        figure,
        f"Test accuracy in percent [95 % interval], best first: {'; '.join(told)}. {tested} {floors}",
        f"Test accuracy, {comparison.title}, read at {select}: mean over {counted(number)}, with 95 % intervals over "
        f"{over}. {tested} {floors}",
    )


def _told(found: Contest | None) -> str:
    """The verdicts in a sentence."""
    if found is None:
        return "No verdicts: fewer than two methods with the most seeds."
    kinds = {"significantly below it": found.clear, CLOSE: found.close, NOISY: found.noisy}
    told = "; ".join(f"{kind}: {listed(rows)}" for kind, rows in kinds.items() if rows)
    left = f"; not compared: {listed(found.left)}" if found.left else ""
    return f"Best: {found.best}; {told}{left} (over {counted([len(found.seeds)])} that all have)."
