"""What a method reaches with how much training: accuracy against passes through the encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def passes(record: Mapping[str, Any]) -> float:
    """Samples through the encoders, forward + 2 x backward, summed over the encoders, as if trained on its own."""
    return _weighed(record["result"]["passes"])


def budget_curve(record: Mapping[str, Any], select: str = "best_val") -> list[tuple[float, float]]:
    """``(passes, accuracy)`` after every epoch: the best validation accuracy so far, of what could predict by then.

    Within a phase of several the accuracy is that of what the phase watches (a branch by itself, say). The last point
    is the finished run, read at ``select``: where it fuses its parts at the end, and they are worse together than the
    best of them alone, the curve drops there. The passes of a phase are spread evenly over its epochs.
    """
    spent: list[float] = []
    before = 0.0
    for cost in record["cost"]["phases"]:
        epochs = sum(entry["phase"] == cost["phase"] for entry in record["result"]["curves"])
        whole = _weighed(cost)
        spent += [before + whole * (epoch + 1) / epochs for epoch in range(epochs)]
        before += whole
    curve, best = [], 0.0
    for at, entry in zip(spent, record["result"]["curves"], strict=True):
        best = max(best, entry["val"]["accuracy"])
        curve.append((at, best))
    final = record["result"]["readings"][select]["val"]["accuracy"]
    return [*curve[:-1], (before, final)]


def at_budget(curve: Sequence[tuple[float, float]], budget: float) -> float | None:
    """The accuracy of a :func:`budget_curve` after at most ``budget`` passes; None where one epoch costs more.

    ``max {v_e : c_e <= b}`` over the epochs e, with ``v_e`` the validation accuracy and ``c_e`` the passes spent by
    then (but for the last point, see there); in [0, 1], and no lower for more passes until the run is finished. Ours.
    """
    reached = [accuracy for spent, accuracy in curve if spent <= budget * (1 + 1e-9)]
    return reached[-1] if reached else None


def _weighed(cost: Mapping[str, Any]) -> float:
    return sum(cost["forward"].values()) + 2 * sum(cost["backward"].values())
