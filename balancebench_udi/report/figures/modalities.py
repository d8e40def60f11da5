"""The figure of the problem: what a modality can do by itself, and what is left of it in a multimodal model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.figures.classes import counted, shortened
from balancebench_udi.report.figures.style import COLOURS, HATCHES, Drawing, canvas, styled, titled

READOUTS = {
    "probe": "a linear classifier on the frozen encoder",
    "share": "the modality's part of the fused logits",
    "masked": "the fused prediction with the features of all others at zero",
}
"""How an encoder inside a multimodal model is read, the fairest first."""
ALONE = "trained alone"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
"""A white ground, so that lines do not run through numbers."""


def joint_against_alone(records: Sequence[Mapping[str, Any]], select: str, alone: str) -> Drawing:
    """A panel a modality: its accuracy trained alone, and what each method's encoder still gives; a last one, fused.

    The encoders are read by the first of ``probe``, ``share`` and ``masked`` that every method has for every modality:
    if by a probe, those trained alone are read by one, too, where they have it, else by their own heads.
    The last panel compares the fused accuracies with the best modality trained alone. As Figure 1 of the UDI paper,
    IJCAI 2025, https://arxiv.org/abs/2509.02281.

    Args:
        records: of one dataset and protocol, as :func:`balancebench_udi.store.read_record` returns them.
        select: the reading: ``last``, ``best_val`` or ``best_test``.
        alone: the method that trains every modality by itself; it must have all ``alone/m`` scores.

    Raises:
        UserError: ``alone`` has no records or not every ``alone/m``, there is no other method, no read-out that all
            others have, and what :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    comparison = compare(records, select)
    modalities = comparison.modalities
    names = [record["spec"]["method"] for record in records]
    runs = pd.DataFrame([record["result"]["readings"][select]["test"] for record in records], index=names)
    groups = runs.groupby(level=0, sort=False)
    mean, sd = groups.mean() * 100, groups.std(ddof=1) * 100
    if alone not in mean.index:
        raise UserError(f"alone must be a method with records here, found {alone!r}{near_misses(alone, mean.index)}")
    others = list(mean.index.drop(alone))
    if not others:
        raise UserError(f"there must be records of another method than {alone}, found none: train one")
    single = [f"alone/{m}" for m in modalities]
    if not _complete(runs, [alone], single):
        raise UserError(f"records of {alone} must have {', '.join(single)}, found not all: name a method that has them")
    readout = next((r for r in READOUTS if _complete(runs, others, [f"{r}/{m}" for m in modalities])), None)
    if readout is None:
        raise UserError(
            f"the encoders of all methods must be read by one of {', '.join(READOUTS)}, found none that all have: "
            "train the older runs again"
        )
    strongest = max(modalities, key=lambda m: mean.loc[alone, f"alone/{m}"])
    probed = readout == "probe" and _complete(runs, [alone], [f"probe/{m}" for m in modalities])
    read, how = ("probe", "probe") if probed else ("alone", "own head")
    pairs = {m: (f"{read}/{m}", f"{readout}/{m}") for m in modalities} | {"fused": (f"alone/{strongest}", "accuracy")}

    kinds = {
        f"{ALONE} ({how}; under fused: {strongest})": {"color": COLOURS[5], "hatch": HATCHES[0]},
        f"inside the method ({readout})": {"color": COLOURS[4], "hatch": HATCHES[1]},
        "fused": {"color": COLOURS[7], "hatch": HATCHES[2]},
    }
    with styled():
        columns = len(pairs) if len(pairs) <= 4 else 3
        lines = math.ceil(len(pairs) / columns)
        height = 1.5 + lines * (0.4 + 0.24 * (1 + len(others)))
        figure, panels = canvas(6.8, height, lines, columns, sharex=True, sharey=True)
        titled(figure, "each modality alone and inside the methods", f"{comparison.title}, {select}")
        for axes in panels[len(pairs) :]:
            axes.set_visible(False)
        for axes, (title, (own, inside)) in zip(panels, pairs.items(), strict=False):
            values = [mean.loc[alone, own], *mean.loc[others, inside]]
            spread = pd.Series([sd.loc[alone, own], *sd.loc[others, inside]]).fillna(0)
            first, inner, outer = kinds.values()
            looks = [first, *[outer if title == "fused" else inner] * len(others)]
            _bars(axes, values, spread, looks)
            axes.set_title(title, fontsize=9, parse_math=False)
            axes.tick_params(labelsize=8, labelbottom=True)
        for axes in panels[: len(pairs)][-columns:]:
            axes.set_xlabel("test accuracy (%)", fontsize=8)
        panels[0].set_yticks(range(1 + len(others)), [ALONE, *shortened(others, 24)], parse_math=False)
        panels[0].set_ylim(len(others) + 0.6, -0.6)
        panels[0].set(xlim=(0, 128), xticks=(0, 50, 100))
        patches = [Patch(facecolor=k["color"], hatch=k["hatch"], edgecolor="black", label=n) for n, k in kinds.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    told = [
        f"{title}: {mean.loc[alone, own]:.1f} {ALONE if title != 'fused' else f'by {strongest} alone'}, "
        f"{_range(mean.loc[others, inside])}"
        for title, (own, inside) in pairs.items()
    ]
    return Drawing(
        figure,
        f"Test accuracy in percent of each modality trained alone ({how}) and inside the methods ({readout}). "
        f"{'; '.join(told)}.",
        f"Test accuracy of every modality trained alone ({alone}, {how}; dashed line) and of what each method's "
        f"encoder still gives ({readout}: {READOUTS[readout]}); last, fused accuracies against the best modality "
        f"trained alone ({strongest}, own head); "
        f"{comparison.title}, read at {select}; mean over {counted(comparison.table['n'])}; "
        "lines: one standard deviation over seeds.",
    )


def _bars(axes: Axes, values: Sequence[float], spread: Sequence[float], looks: Sequence[Mapping[str, str]]) -> None:
    """One bar a row, its value written behind it; the dashed line continues the first one."""
    rows = range(len(values))
    axes.barh(
        rows,
        values,
        xerr=spread,
        color=[look["color"] for look in looks],
        hatch=[look["hatch"] for look in looks],
        edgecolor="black",
        linewidth=0.6,
        error_kw={"ecolor": "black", "elinewidth": 1.2},
    )
    axes.axvline(values[0], color="black", linestyle="--", linewidth=0.9)
    for row, value, sd in zip(rows, values, spread, strict=True):
        axes.text(min(value + sd, 100) + 3, row, f"{value:.1f}", va="center", fontsize=8, bbox=BEHIND)
    axes.grid(False, axis="y")


def _complete(runs: pd.DataFrame, methods: Sequence[str], scores: Sequence[str]) -> bool:
    """Does every run of ``methods`` have all ``scores``?"""
    return bool(runs.loc[list(methods)].reindex(columns=scores).notna().all(axis=None))


def _range(values: pd.Series) -> str:
    """``"25.0 (agm) to 50.0 (pmr)"``; ``"25.0 (agm)"`` of one."""
    low, high = (f"{values[name]:.1f} ({name})" for name in (values.idxmin(), values.idxmax()))
    return low if len(values) == 1 else f"{low} to {high}"
