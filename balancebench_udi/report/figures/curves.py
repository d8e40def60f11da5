"""The figures of training: accuracies, gradients and controller weights over epochs, a panel a method or phase."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from balancebench_udi.report.budget import fused_accuracy
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.figures.classes import counted
from balancebench_udi.report.figures.style import BLACK, COLOURS, Drawing, canvas, looks, styled, titled

READOUTS = {
    "alone": "own head",
    "share": "its part of the fused logits",
    "masked": "the features of all others at zero",
}
"""How a modality is read while a method trains; the first one that the method has."""
WEIGHT = "alpha/"
"""What the names of a controller's weights begin with."""
GRADIENTS = {
    "cosine": "cosine of fused and\nown gradient",
    "norm_ratio": "norm of fused /\nown gradient",
}
MARKS = 4
"""Markers on a line in each phase."""

Records = Sequence[Mapping[str, Any]]


def training_curves(records: Records) -> Drawing:
    """Validation accuracy after every epoch: a panel a method, a line a modality and one for the fusion.

    A modality is read by the method's own head (``alone``), else by its share of the fused logits, else with the others
    masked; one read-out a panel. Lines are means over seeds, bands one sample standard deviation; a line stops where
    the score does not exist, and at the start of a phase. In a phase that reads only some of the modalities there is
    no fused accuracy: where that holds for the last phase, a star at the end is that of the finished run, read at
    ``last``. Phases follow each other on the axis of epochs, each as long as in the longest of the runs.
    Every panel has its own scale of epochs, because methods train for different numbers of them.

    Args:
        records: of one dataset and protocol, as :func:`balancebench_udi.store.read_record` returns them.

    Raises:
        UserError: what :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    comparison, groups = compare(records, "last"), _groups(records)
    modalities = comparison.modalities
    look = _looks(modalities)
    told, used, phased, starred = [], dict.fromkeys(READOUTS, False), [], False
    with styled():
        figure, panels = _grid(len(groups), 3, 1.75, "epochs done")
        titled(figure, "validation accuracy over training", comparison.title)
        figure.supylabel("validation accuracy (%)", fontsize=9)
        for axes, (method, group) in zip(panels, groups.items(), strict=False):
            readout = _readout(group, modalities)
            names = {m: f"{readout}/{m}" for m in modalities} if readout else {}
            ends = {}
            for line, read in {"fused": _fused(modalities), **{m: _score(n) for m, n in names.items()}}.items():
                table = _timeline(group, read) * 100
                if line == "fused" and math.isnan(table.iloc[-1].mean()):
                    star = 100 * np.mean([r["result"]["readings"]["last"]["val"]["accuracy"] for r in group])
                    end: dict[str, Any] = {"color": "black", "markersize": 9, "clip_on": False, "zorder": 4}
                    axes.plot(table.index[-1], star, "*", label="finished", **end)
                    starred, ends[line] = True, star
                if table.notna().any(axis=None):
                    mean = _draw(axes, table, line, look[line], bounds=(0, 100))
                    ends.setdefault(line, mean.dropna().iloc[-1])
            axes.set_title(f"{method} ({readout})" if readout else method, fontsize=9, parse_math=False)
            phased += _phases(axes, method, group)
            told.append(f"{method}: " + ", ".join(f"{line} {value:.1f}" for line, value in ends.items()))
            used |= {readout: True} if readout else {}
        low, high = panels[0].get_ylim()
        panels[0].set_ylim(max(low, -1), min(high, 101))
        _legend(figure, look, starred)
    readouts = "; ".join(f"{name}: {meaning}" for name, meaning in READOUTS.items() if used[name])
    return Drawing(
        figure,
        f"Validation accuracy in percent over epochs. At the end of training: {'; '.join(told)}.",
        f"Validation accuracy after every epoch, {comparison.title}: mean over {counted(comparison.table['n'])}, "
        f"bands ± one standard deviation. Modalities are read as named in the titles ({readouts or 'not at all'})."
        + " Star: fused accuracy of the finished run, where its last phase has none." * starred
        + _listed(phased),
    )


def gradient_curves(records: Records) -> Drawing | None:
    """How the fused loss and a modality's own loss pull at its encoder, epoch by epoch; a column a method.

    Above the cosine between both gradients (-1 to 1), below the ratio of their norms on a logarithmic axis (1: as
    strong as its own loss). Cosines are means over seeds with a band of one sample standard deviation; ratios are
    geometric means, with the standard deviation of the logarithm.

    Args:
        records: of one dataset and protocol; methods without gradients are left out.

    Returns:
        None where no record has gradients.

    Raises:
        UserError: what :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    groups = {m: group for m, group in _groups(records).items() if any(map(_pulls, group))}
    if not groups:
        return None
    comparison = compare([record for group in groups.values() for record in group], "last")
    look = _looks(comparison.modalities)
    del look["fused"]
    blocks = math.ceil(len(groups) / 4)
    columns = math.ceil(len(groups) / blocks)
    told, phased = [], []
    with styled():
        figure, panels = canvas(6.8, 1.1 + 2.9 * blocks, 2 * blocks, columns, sharex=True)
        titled(figure, "gradients of the fused loss", comparison.title)
        grid: np.ndarray = np.array(panels, dtype=object).reshape(blocks, 2, columns)
        filled = len(groups) - (blocks - 1) * columns  # columns of the last block
        for row, (kind, label) in enumerate(GRADIENTS.items()):
            first, *rest = grid[:, row].ravel()
            for axes in rest:
                axes.sharey(first)
            for axes, (method, group) in zip([first, *rest], groups.items(), strict=False):
                for m in comparison.modalities:
                    table = _timeline(group, _gradient(f"{kind}/{m}"))
                    if table.notna().any(axis=None):
                        ratio = kind == "norm_ratio"
                        bounds = (-math.inf, math.inf) if ratio else (-1, 1)
                        mean = _draw(axes, table, m, look[m], ratio, bounds).dropna()
                        told.append(f"{method} {m} {mean.iloc[0]:.2f} to {mean.iloc[-1]:.2f} ({kind})")
                axes.axhline(kind == "norm_ratio", color="0.4", linewidth=0.8, zorder=1, label="neutral")
                axes.set_title(method if row == 0 else "", fontsize=9, parse_math=False)
                noted = _phases(axes, method, group, numbered=row == 0)
                phased += noted if row == 0 else []
            first.set_yscale("log" if kind == "norm_ratio" else "linear")
            for axes in grid[:, row, 0]:
                axes.set_ylabel(label, fontsize=8)
        for axes in panels:
            axes.label_outer()
        for axes in grid[-1, :, filled:].ravel():
            axes.set_visible(False)
        lowest = [*grid[-1, 1, :filled], *(grid[-2, 1, filled:] if blocks > 1 else ())]
        for axes in lowest:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epochs done")
        _legend(figure, look)
    return Drawing(
        figure,
        f"Gradients of the fused loss against those of the modality's own, first to last epoch: {'; '.join(told)}.",
        f"Gradients at each encoder, {comparison.title}: cosine between those of the fused and of the modality's own "
        "loss, and the ratio of their norms (logarithmic, 1: as strong), after every epoch on training samples; mean "
        f"(of the ratio: geometric) over {counted(comparison.table['n'])}, bands ± one standard deviation."
        + _listed(phased),
    )


def controller_weights(records: Records) -> Drawing | None:
    """The weights that a controller gives the terms of a loss, epoch by epoch; a panel a method's phase that has them.

    They are the training logs called ``alpha/<term>``. Lines are means over the seeds whose run has the phase, bands
    one sample standard deviation.

    Args:
        records: of one dataset and protocol; methods without such weights are left out.

    Returns:
        None where no record has weights.

    Raises:
        UserError: what :func:`balancebench_udi.report.comparison.compare` refuses.
    """
    weighed = [r for r in records if any(map(_weights, r["result"]["curves"]))]
    if not weighed:
        return None
    comparison = compare(weighed, "last")
    entries = pd.DataFrame(
        {"method": r["spec"]["method"], "phase": e["phase"], "seed": r["spec"]["seed"], "epoch": e["epoch"] + 1, **w}
        for group in _groups(weighed).values()
        for r in group
        for e in r["result"]["curves"]
        if (w := _weights(e))
    )
    terms = sorted(entries.columns.drop(["method", "phase", "seed", "epoch"]))
    look, told = looks(terms), []
    parts = list(entries.groupby(["method", "phase"], sort=False))
    low, high = min(0, entries[terms].min(axis=None)), max(1, entries[terms].max(axis=None))
    with styled():
        figure, panels = _grid(len(parts), 2, 2.3, "epochs of the phase done")
        titled(figure, "weights of the controller", comparison.title)
        figure.supylabel("mean weight of the term in an epoch", fontsize=9)
        for axes, ((method, phase), part) in zip(panels, parts, strict=False):
            seeds = counted([part["seed"].nunique()])
            axes.set_title(f"{method}: {phase} ({seeds})", fontsize=9, parse_math=False)
            shown = []
            for term in terms:
                table = part.pivot(index="epoch", columns="seed", values=term)
                if table.notna().any(axis=None):
                    mean = _draw(axes, table, term, look[term], bounds=(low, high)).dropna()
                    shown.append(f"{term} {mean.mean():.2f} ({mean.iloc[0]:.2f} to {mean.iloc[-1]:.2f})")
            told.append(f"{method}, {phase} ({seeds}): {', '.join(shown)}")
        panels[0].set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        _legend(figure, look)
    return Drawing(
        figure,
        f"Weights of the loss terms, mean over a phase (first to last epoch): {'; '.join(told)}.",
        f"Weights of the loss terms over the epochs of each phase that has them, {comparison.title}: mean over the "
        "seeds of a panel, bands ± one standard deviation.",
    )


def _groups(records: Records) -> dict[str, list[Mapping[str, Any]]]:
    """The records of every method, seeds ascending; methods in the order of their first record."""
    groups: dict[str, list[Mapping[str, Any]]] = {record["spec"]["method"]: [] for record in records}
    for record in sorted(records, key=lambda record: record["spec"]["seed"]):
        groups[record["spec"]["method"]].append(record)
    return groups


def _runs(group: Records) -> list[list[list[Mapping[str, Any]]]]:
    """``[seed][phase][epoch]``: the entries of the curves."""
    curves = [record["result"]["curves"] for record in group]
    return [[list(phase) for _, phase in itertools.groupby(c, lambda entry: entry["phase"])] for c in curves]


def _starts(group: Records) -> list[int]:
    """Epochs done before each phase, and after the last one; a phase is as long as in the longest run."""
    lengths = itertools.zip_longest(*([len(phase) for phase in run] for run in _runs(group)), fillvalue=0)
    return [0, *itertools.accumulate(map(max, lengths))]


def _timeline(group: Records, read: Callable[[Mapping[str, Any]], float]) -> pd.DataFrame:
    """``read(entry)`` by epochs done (rows) and run (columns), NaN where there is none and between phases."""
    starts = _starts(group)
    columns = [
        pd.Series({starts[i] + e + 1: read(entry) for i, phase in enumerate(run) for e, entry in enumerate(phase)})
        for run in _runs(group)
    ]
    between = [start + 0.5 for start in starts[1:-1]]
    return pd.concat(columns, axis=1).reindex([*range(1, starts[-1] + 1), *between]).sort_index()


def _draw(
    axes: Axes,
    table: pd.DataFrame,
    label: str,
    look: Mapping[str, Any],
    logarithmic: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> pd.Series:
    """The mean of the columns as a line, with a band of one standard deviation within ``bounds``; returns the mean."""
    values = np.log(table) if logarithmic else table
    back = np.exp if logarithmic else np.asarray
    mean, sd = values.mean(axis=1), values.std(axis=1, ddof=1)
    if sd.notna().any():
        low, high = (np.clip(back(end), *bounds) for end in (mean - sd, mean + sd))
        axes.fill_between(table.index, low, high, color=look["color"], alpha=0.18, linewidth=0)
    known = mean.notna().to_numpy()
    marks: list[int] = []
    for present, part in itertools.groupby(range(len(known)), lambda i: known[i]):
        if present:
            places = list(part)
            marks += sorted({places[int(i)] for i in np.linspace(0, len(places) - 1, MARKS)})
    style = {"markersize": 3.5, "linewidth": 1.2, **look}
    axes.plot(table.index, back(mean), label=label, markevery=marks, **style)
    return pd.Series(back(mean), table.index)


def _phases(axes: Axes, method: str, group: Records, numbered: bool = True) -> list[str]:
    """A thin line where a phase starts, and its number above; returns ``["udi: 1 alone/a, 2 follow/b"]``."""
    starts = _starts(group)
    if len(starts) == 2:
        return []
    for start in starts[1:-1]:
        axes.axvline(start, color="0.55", linewidth=0.7, zorder=1, label="phase")
    names = [
        " or ".join(dict.fromkeys(phase for phase in phases if phase))
        for phases in itertools.zip_longest(*([phase[0]["phase"] for phase in run] for run in _runs(group)))
    ]
    if numbered:
        axes.set_title(axes.get_title(), fontsize=9, pad=14, parse_math=False)
        for i, (start, end) in enumerate(itertools.pairwise(starts)):
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text((start + end) / 2, 1.02, str(i + 1), fontsize=8, color="0.35", **place)
    return [f"{method}: " + ", ".join(f"{i + 1} {name}" for i, name in enumerate(names))]


def _listed(phased: Sequence[str]) -> str:
    return f" Thin lines: a phase starts ({'; '.join(phased)})." if phased else ""


def _grid(number: int, columns: int, height: float, label: str) -> tuple[Figure, list[Axes]]:
    """Axes for ``number`` panels of ``height`` inches with a common scale of values; those left over are hidden."""
    columns = min(number, columns)
    rows = math.ceil(number / columns)
    figure, panels = canvas(6.8, 1.4 + rows * height, rows, columns, sharey=True)
    for axes in panels[number:]:
        axes.set_visible(False)
    for axes in panels[:number]:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in panels[number - columns : number]:  # the lowest of every column
        axes.set_xlabel(label)
    return figure, panels


def _looks(modalities: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same for a modality in every figure."""
    names = ["fused", *modalities]
    names.insert(COLOURS.index(BLACK), "")  # whose look nothing else gets
    look = looks(names)
    del look[""]
    look["fused"] |= {"color": BLACK, "linewidth": 1.6}
    return look


def _legend(figure: Figure, look: Mapping[str, Mapping[str, Any]], starred: bool = False) -> None:
    handles = [Line2D([], [], label=name, **{"markersize": 4, **kind}) for name, kind in look.items()]
    if starred:
        star: dict[str, Any] = {"marker": "*", "color": "black", "linestyle": "", "markersize": 8}
        handles.append(Line2D([], [], label="fused, run finished", **star))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), fontsize=8, frameon=False)


def _readout(group: Records, modalities: Sequence[str]) -> str | None:
    """The first of READOUTS that the curves have for any modality."""
    names = {name for record in group for entry in record["result"]["curves"] for name in entry["val"]}
    return next((r for r in READOUTS if any(f"{r}/{m}" in names for m in modalities)), None)


def _score(name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda entry: entry["val"].get(name, math.nan)


def _gradient(name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda entry: entry.get("gradients", {}).get(name, math.nan)


def _fused(modalities: Sequence[str]) -> Callable[[Mapping[str, Any]], float]:
    return lambda entry: fused_accuracy(entry, modalities)


def _pulls(record: Mapping[str, Any]) -> bool:
    return any(entry.get("gradients") for entry in record["result"]["curves"])


def _weights(entry: Mapping[str, Any]) -> dict[str, float]:
    """``{term: weight}`` in the training logs of an epoch."""
    return {name.removeprefix(WEIGHT): v for name, v in entry["train"].items() if name.startswith(WEIGHT)}
