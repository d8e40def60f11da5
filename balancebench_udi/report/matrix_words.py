"""What a table of rows x columns says in words: its findings, how to read it, which runs it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from balancebench_udi.metrics.ranks import critical_difference, friedman
from balancebench_udi.metrics.statistics import LEVEL
from balancebench_udi.report.comparison import RULES
from balancebench_udi.report.contest import MARKED, Contest, clustered, crowded, finding, held_against, listed, tradeoff

if TYPE_CHECKING:
    from balancebench_udi.report.matrix import Cell, Number

MEANINGS = {
    "passes": "passes: million samples through the encoders, forward + 2 × backward, summed over the encoders.",
    "imbalance": "imbalance: mean difference between the modalities' Shapley contributions; 0 is balanced.",
    "utilisation": "utilisation of a modality: what it adds to all the others, as a share of the accuracy of all.",
    "complementarity": "complementarity: shares of test samples, a modality read with the others masked. only/m: of "
    "the modalities m alone is right; fusion_only: none is, the fusion is; lost: one is or more, the fusion is not.",
    "bayes_distance": "bayes distance: accuracy of the best possible classifier minus that reached, of all modalities "
    "(fused) and of what a probe reads in an encoder.",
    "probe_gap": "probe gap of a modality: what a linear probe reads in its encoder trained alone (same data, protocol "
    "and seed) minus what it reads here, in points; above 0 where training together cost the encoder that much.",
}
"""What a value is, by the part of its name before the slash."""


def findings(contests: Mapping[str, Contest], numbers: Mapping[tuple[str, str, str], Number]) -> list[str]:
    """What the accuracies of each column say, and how they go with imbalance where the table has that."""
    told: list[str | None] = []
    for column, found in contests.items():
        told += [finding(column, found), held_against(column, found)]
    for column, found in contests.items():
        places = {row: (row, column, "imbalance") for row in found.means}
        imbalance = {row: numbers[place].mean for row, place in places.items() if place in numbers}
        told.append(tradeoff(column, found.means, imbalance))
    return [sentence for sentence in told if sentence]


def ranking(scores: pd.DataFrame, ranks: pd.Series, cells: Mapping[tuple[str, str], Cell]) -> str:
    """Average ranks in a sentence, with their test where the columns are different datasets."""
    lowest = ranks.min()
    first = [str(row) for row, rank in ranks.items() if rank == lowest]
    text = (
        f"Over the {len(scores)} complete columns {listed(first)} {'has' if len(first) == 1 else 'have'} the lowest "
        f"average rank ({lowest:.1f} of {len(ranks)})"
    )
    datasets = {next(cells[row, c].records[0]["spec"]["dataset"] for row in scores.columns) for c in scores.index}
    if len(datasets) < len(scores):
        return f"{text}; columns of the same data are no independent tests, so none is made."
    if len(ranks) < 3:
        return f"{text}; two rows are too few for a test of ranks."
    p = friedman(scores)[1]
    told = f"Friedman p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    if p >= LEVEL:
        return f"{text}; ranks such as these may come about by chance over so few columns ({told})."
    apart = critical_difference(len(ranks), len(scores), LEVEL)
    return f"{text}; ranks differ beyond chance ({told}), two of them where they lie {apart:.1f} apart (Nemenyi, 5 %)."


def reading(
    values: Sequence[str], select: str, contests: Mapping[str, Contest], ranked: bool, published: bool
) -> list[str]:
    """How to read the table."""
    percent = "scores of the test split in percent unless a column says otherwise"
    lines = [
        f"Cells: {percent}, mean ± sample standard deviation over seeds; bold: the highest mean of a column among the "
        "rows with the most seeds. Majority class and chance need no learning.",
        RULES[select],
    ]
    if contests:
        lines.append(MARKED)
        lines += [note for column, found in contests.items() if (note := clustered(column, found))]
        lines += [note for note in [crowded(max(len(found.means) for found in contests.values()))] if note]
    lines += [text for name, text in MEANINGS.items() if any(v.partition("/")[0] == name for v in values)]
    if ranked:
        lines.append("rank: average over the complete columns of the rank by mean accuracy; 1 is best.")
    if published:
        lines.append("Numbers with [a source] were published, each under its own protocol; no mean or test has them.")
    return lines


def coverage(cells: Mapping[tuple[str, str], Cell], rows: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """Which runs the table has, and which it lacks."""
    wanted = sum(cell.wanted for cell in cells.values())
    text = f"{sum(len(cell.records) for cell in cells.values())} of {wanted} runs exist"
    empty = [c for c in columns if not any(cells[row, c].records for row in rows)]
    if empty:
        text += f"; no run on {listed(empty)}"
    foreign = [row for row in rows if not any(cells[row, c].wanted for c in columns)]
    if foreign:
        text += f"; not implemented here: {listed(foreign)}"
    return f"{text}."
