"""The figures of single classes: what a method gains and loses per class, and which classes it confuses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.metrics.predictions import unpack
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.figures.style import COLOURS, HATCHES, Drawing, canvas, styled, titled
from balancebench_udi.text import escape_controls

MOST = 40
"""Classes that :func:`per_class_differences` has room for: of more, it shows the two ends."""
TICKS = 30
"""Names that fit along an axis of a confusion matrix."""
VALUES = 12
"""Classes up to which the cells of a confusion matrix have room for their values."""


def per_class_differences(
    records: Sequence[Mapping[str, Any]], select: str, method: str, baseline: str, most: int = MOST
) -> Drawing:
    """Recall of ``method`` minus that of ``baseline``: one bar a class, sorted, in percentage points.

    Differences are taken seed by seed, over the seeds that both have; classes without a test sample are left out.

    Args:
        records: of one dataset and protocol, as :func:`balancebench_udi.store.read_record` returns them.
        select: the reading: ``last``, ``best_val`` or ``best_test``.
        method: whose gains are shown.
        baseline: what they are gains over.
        most: classes shown; of more, half from either end.

    Raises:
        UserError: a method without records, no seed in common, and what
            :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    comparison, (predicted, target) = compare(records, select), fused(records, select)
    mine, theirs = (_of(predicted, name) for name in (method, baseline))
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        raise UserError(
            f"{method} and {baseline} must have a seed in common, found {_listed(mine)} and {_listed(theirs)}: "
            "train both with the same seeds"
        )
    names = records[0]["data"]["classes"]
    gains = [_recall(mine[s], target, len(names)) - _recall(theirs[s], target, len(names)) for s in seeds]
    table = pd.DataFrame(gains, columns=range(len(names))) * 100
    shown = pd.DataFrame({"mean": table.mean(), "sd": table.std(ddof=1)}).dropna(subset="mean")
    shown = shown.sort_values("mean", ascending=False, kind="stable")
    shown.index = [names[i] for i in shown.index]
    ends = "" if len(shown) <= most else f" ({most // 2} highest and lowest of {len(shown)} classes)"
    kept = shown if len(shown) <= most else pd.concat([shown[: most // 2], shown[-(most // 2) :]])
    with styled():
        figure, (axes,) = canvas(6.4, 1.5 + 0.2 * len(kept))
        titled(figure, "classes gained and lost", f"{comparison.title}, {select}")
        axes.set_title(f"recall of {method} − recall of {baseline}{ends}", fontsize=8, parse_math=False)
        axes.set_xlabel("difference in recall (percentage points, ± 1 sd over seeds)")
        axes.barh(
            range(len(kept)),
            kept["mean"],
            xerr=kept["sd"].fillna(0) if len(seeds) > 1 else None,
            color=[COLOURS[5] if value >= 0 else COLOURS[4] for value in kept["mean"]],
            hatch=[HATCHES[0] if value >= 0 else HATCHES[1] for value in kept["mean"]],
            edgecolor="black",
            linewidth=0.6,
            error_kw={"ecolor": "black", "elinewidth": 1, "capsize": 2},
        )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(kept)), shortened([*kept.index], 30), fontsize=8, parse_math=False)
        axes.set_ylim(len(kept) - 0.4, -0.6)
        axes.grid(False, axis="y")
    best, worst = shown.iloc[0], shown.iloc[-1]
    return Drawing(
        figure,
        f"Recall of {method} minus that of {baseline} in percentage points, by class: highest {best['mean']:+.1f} for "
        f"{shown.index[0]}, lowest {worst['mean']:+.1f} for {shown.index[-1]}; higher in {(shown['mean'] > 0).sum()}, "
        f"lower in {(shown['mean'] < 0).sum()} of {len(shown)} classes.",
        f"Per-class recall on the test split, {method} minus {baseline}{ends}, {comparison.title}, read at {select}; "
        f"mean over {counted([len(seeds)])} that both have; lines: one standard deviation of the difference over "
        "seeds; hatched: the method is worse.",
    )


def confusion(records: Sequence[Mapping[str, Any]], select: str, method: str) -> Drawing:
    """The confusion matrix of ``method`` on the test split, summed over seeds, every row in percent of its class.

    The cells hold their values for up to 12 classes; for more than 30 not every class is named.

    Raises:
        UserError: ``method`` has no records, and what :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    comparison, (predicted, target) = compare(records, select), fused(records, select)
    mine, names = _of(predicted, method), records[0]["data"]["classes"]
    count = np.zeros((len(names), len(names)))
    for prediction in mine.values():
        np.add.at(count, (target, prediction), 1)
    with np.errstate(invalid="ignore"):  # a class without a test sample has no row
        share = count / count.sum(1, keepdims=True) * 100
    with styled():
        figure, (axes,) = canvas(6.4, 5.8)
        titled(figure, f"confusion matrix of {method}", f"{comparison.title}, {select}")
        figure.set_layout_engine("compressed")  # the matrix is square
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_facecolor("0.85")  # rows of classes without a test sample
        image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
        figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.85)
        axes.set(xlabel="predicted class", ylabel="true class")
        _name(axes, shortened(names, 30))
        if len(names) <= VALUES:
            for row, column in np.argwhere(np.isfinite(share)):
                value = share[row, column]
                shade = "white" if value < 50 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=shade)
    off = np.where(np.eye(len(names), dtype=bool), -1, np.nan_to_num(share))
    row, column = np.unravel_index(off.argmax(), off.shape)
    confused = f"{share[row, column]:.1f} % of {names[row]} taken for {names[column]}" if off.max() > 0 else "none"
    recall = np.diag(share)
    low, high = np.nanargmin(recall), np.nanargmax(recall)
    return Drawing(
        figure,
        f"Confusion matrix of {method}, {len(names)} classes: recall from {recall[low]:.1f} % ({names[low]}) to "
        f"{recall[high]:.1f} % ({names[high]}); most frequent confusion: {confused}.",
        f"Confusion matrix of {method} on the test split, {comparison.title}, read at {select}; counts summed over "
        f"{counted([len(mine)])}, every row in percent of the samples of its true class.",
    )


def fused(records: Sequence[Mapping[str, Any]], select: str) -> tuple[dict[str, dict[int, np.ndarray]], np.ndarray]:
    """Fused test predictions ``{method: {seed: [N]}}``, seeds ascending, and the classes ``[N]`` they should be.

    Raises:
        UserError: runs with different test samples.
    """
    found: dict[str, dict[int, np.ndarray]] = {}
    truth = records[0]["result"]["test_target"]
    for record in sorted(records, key=lambda r: r["spec"]["seed"]):
        spec = record["spec"]
        if record["result"]["test_target"] != truth:
            raise UserError(
                f"all runs must be tested on the same samples, found others in {spec['method']} seed {spec['seed']}: "
                "draw them in separate figures"
            )
        text = record["result"]["readings"][select]["predictions"]["fused"]
        found.setdefault(spec["method"], {})[spec["seed"]] = unpack(text).numpy()
    order = dict.fromkeys(record["spec"]["method"] for record in records)
    return {method: found[method] for method in order}, unpack(truth).numpy()


def counted(numbers: Sequence[int]) -> str:
    """``"3 seeds"``, ``"1 seed"``, or ``"2 to 5 seeds"`` where the numbers differ."""
    low, high = min(numbers), max(numbers)
    return f"{high} seed{'s' * (high > 1)}" if low == high else f"{low} to {high} seeds"


def shortened(names: Sequence[str], most: int = 14) -> list[str]:
    """Each in at most ``most`` characters: its beginning, and of its end four or as many as tell it from the others.

    Control characters are written out: as labels of an axis they would make an SVG that nothing reads.
    """
    names = [escape_controls(name) for name in names]

    def short(name: str, end: int) -> str:
        return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[-end:]}"

    def alone(name: str, end: int) -> bool:
        return all(short(other, end) != short(name, end) for other in names if other != name)

    return [short(name, next((end for end in range(4, most - 1) if alone(name, end)), 4)) for name in names]


def _of(found: Mapping[str, Mapping[int, np.ndarray]], method: str) -> Mapping[int, np.ndarray]:
    if method not in found:
        raise UserError(f"a method of the figure must have records here, found {method!r}{near_misses(method, found)}")
    return found[method]


def _recall(prediction: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """``[C]`` in [0, 1]; NaN for a class without a sample."""
    hits, all_of = (np.bincount(x, minlength=classes) for x in (target[prediction == target], target))
    return np.divide(hits, all_of, out=np.full(classes, np.nan), where=all_of > 0)


def _listed(seeds: Mapping[int, Any]) -> str:
    return ", ".join(map(str, seeds))


def _name(axes: Axes, names: Sequence[str]) -> None:
    """Class names on both axes, upright below where they would run into each other, every n-th where too many."""
    at = range(0, len(names), math.ceil(len(names) / TICKS))
    labels = [names[i] for i in at]
    room = 4.2 / len(at) / 0.09  # characters of this size in the width of a cell
    upright = max(map(len, labels)) > room
    axes.set_xticks(at, labels, fontsize=8, rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(at, labels, fontsize=8, parse_math=False)
