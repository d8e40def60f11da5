"""The figure of accuracies with their uncertainty: a forest plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from balancebench_udi.metrics import statistics
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.figures.classes import counted, fused, shortened
from balancebench_udi.report.figures.style import COLOURS, Drawing, canvas, styled

LEVEL = 0.05


def accuracy_intervals(records: Sequence[Mapping[str, Any]], select: str) -> Drawing:
    """Test accuracy of every method, best first: the mean, its 95 % bootstrap interval, and every seed.

    The interval resamples seeds and test samples. The mean is an open circle where a paired test against the best
    method finds a difference (p < 0.05 after Holm's correction), over the seeds that all methods have.

    Args:
        records: of one dataset and protocol, as :func:`balancebench_udi.store.read_record` returns them.
        select: the reading: ``last``, ``best_val`` or ``best_test``.

    Raises:
        UserError: runs with different test samples, and what
            :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    comparison, (predicted, target) = compare(records, select), fused(records, select)
    hits = {method: np.stack([p == target for p in runs.values()]) for method, runs in predicted.items()}
    hits = dict(sorted(hits.items(), key=lambda item: -item[1].mean()))
    mean = [100 * h.mean() for h in hits.values()]
    low, high = 100 * np.transpose([statistics.bootstrap_interval(h) for h in hits.values()])
    apart, tested = _apart(predicted, target)
    number = [len(runs) for runs in predicted.values()]
    over = "test samples" if max(number) == 1 else "seeds and test samples"
    with styled():
        figure, (axes,) = canvas(6.4, 1.7 + 0.32 * len(hits))
        figure.suptitle(f"{comparison.title}, {select}", fontsize=11)
        axes.set_xlabel("test accuracy (%)")
        rows = range(len(hits))
        axes.hlines(rows, low, high, color="0.6", linewidth=5, label="95 % bootstrap interval of the mean")
        axes.plot([], [], "|", color="black", markersize=6, label="one seed")
        look: dict[str, Any] = {
            "marker": "o",
            "linestyle": "",
            "color": COLOURS[0],
            "markeredgewidth": 1.4,
            "zorder": 4,
        }
        open_ = {**look, "markerfacecolor": "white"}
        axes.plot([], [], **look, label="mean, not distinguishable from the best")
        axes.plot([], [], **open_, label=f"mean, distinguishable from the best (p < {LEVEL})")
        for row, (method, h) in enumerate(hits.items()):
            axes.plot(100 * h.mean(1), [row + 0.28] * len(h), "|", color="black", markersize=6)
            axes.plot(mean[row], row, **(open_ if method in apart else look))
            numbers = f"{mean[row]:.1f} [{low[row]:.1f}, {high[row]:.1f}]"
            axes.text(1.02, row, numbers, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.set_yticks(rows, shortened([*hits], 24), parse_math=False)
        axes.set_ylim(len(hits) - 0.4, -0.6)
        axes.grid(False, axis="y")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    told = [f"{m} {a:.1f} [{b:.1f}, {c:.1f}]" for m, a, b, c in zip(hits, mean, low, high, strict=True)]
    return Drawing(
        figure,
        f"Test accuracy in percent [95 % interval], best first: {'; '.join(told)}. {tested}",
        f"Test accuracy, {comparison.title}, read at {select}: mean over {counted(number)}, with "
        f"95 % bootstrap intervals over {over}. {tested}",
    )


def _apart(predicted: Mapping[str, Mapping[int, np.ndarray]], target: np.ndarray) -> tuple[list[str], str]:
    """The methods that can be told from the best, and a sentence about it."""
    seeds = sorted(set.intersection(*(set(runs) for runs in predicted.values())))
    if len(predicted) == 1:
        return [], "One method: no test."
    if not seeds:
        return [], "The methods have no seed in common: no test."
    hits = {method: np.stack([runs[s] == target for s in seeds]) for method, runs in predicted.items()}
    against = statistics.against_best(hits, LEVEL)
    apart = [method for method in predicted if method not in against.indistinguishable]
    return apart, (
        f"Distinguishable from the best, {against.best}: {', '.join(apart) or 'none'} (paired tests over "
        f"{counted([len(seeds)])} that all have, Holm's correction, level {LEVEL})."
    )
