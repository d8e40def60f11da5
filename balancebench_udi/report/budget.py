"""What a method reaches with how much training: accuracy against passes through the encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

READOUTS = ("alone", "share", "masked")
"""How a modality may be read while a method trains."""


def passes(record: Mapping[str, Any]) -> float:
    """Samples through the encoders, forward + 2 x backward, summed over the encoders, as if trained on its own."""
    return _weighed(record["result"]["passes"])


def fused_accuracy(entry: Mapping[str, Any], modalities: Sequence[str]) -> float:
    """The fused accuracy of an entry of the curves; NaN where it reads some modalities but not all.

    So it is in a phase that trains one of them: what is watched there is a branch, not the method.
    """
    seen = sum(any(f"{r}/{m}" in entry["val"] for r in READOUTS) for m in modalities)
    return entry["val"]["accuracy"] if seen in (0, len(modalities)) else math.nan


def budget_curve(record: Mapping[str, Any], select: str = "best_val") -> list[tuple[float, float]]:
    """``(passes, accuracy)`` after every epoch with a fused prediction: the best validation accuracy so far.

    A method whose phases train one modality each has a single point, where it is finished: before, nothing fuses. The
    last point is the finished run, read at ``select``. The passes of a phase are spread evenly over its epochs.
    """
    spent: list[float] = []
    before = 0.0
    for cost in record["cost"]["phases"]:
        epochs = sum(entry["phase"] == cost["phase"] for entry in record["result"]["curves"])
        whole = _weighed(cost)
        spent += [before + whole * (epoch + 1) / epochs for epoch in range(epochs)]
        before += whole
    curve, best = [], 0.0
    for at, entry in list(zip(spent, record["result"]["curves"], strict=True))[:-1]:
        fused = fused_accuracy(entry, record["result"]["modalities"])
        if not math.isnan(fused):
            best = max(best, fused)
            curve.append((at, best))
    return [*curve, (before, record["result"]["readings"][select]["val"]["accuracy"])]


def at_budget(curve: Sequence[tuple[float, float]], budget: float) -> float | None:
    """The accuracy of a :func:`budget_curve` after at most ``budget`` passes; None where nothing fuses by then.

    ``max {v_e : c_e <= b}`` over the epochs e, with ``v_e`` the fused validation accuracy and ``c_e`` the passes spent
    by then; in [0, 1], and no lower for more passes where the finished run is read at its best epoch. Ours.
    """
    reached = [accuracy for spent, accuracy in curve if spent <= budget * (1 + 1e-9)]
    return reached[-1] if reached else None


def _weighed(cost: Mapping[str, Any]) -> float:
    return sum(cost["forward"].values()) + 2 * sum(cost["backward"].values())
