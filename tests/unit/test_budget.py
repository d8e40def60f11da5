"""Accuracy against passes, on records made by hand."""

import pytest

from balancebench_udi.report.budget import at_budget, budget_curve, passes


def record(phases, final=None):
    """``phases``: name -> (passes forward, passes backward of one encoder, accuracies after each epoch)."""
    costs = [
        {"phase": name, "forward": {"a": f, "b": 0}, "backward": {"a": 0, "b": b}} for name, (f, b, _) in phases.items()
    ]
    curves = [
        {"phase": name, "epoch": e, "val": {"accuracy": v}}
        for name, (_, _, values) in phases.items()
        for e, v in enumerate(values)
    ]
    best = max(c["val"]["accuracy"] for c in curves) if final is None else final
    total = {way: {m: sum(c[way][m] for c in costs) for m in "ab"} for way in ("forward", "backward")}
    return {
        "cost": {"phases": costs},
        "result": {"curves": curves, "passes": total, "readings": {"best_val": {"val": {"accuracy": best}}}},
    }


def test_one_phase():
    made = record({"training": (40, 80, [0.5, 0.4, 0.7, 0.6])})
    assert passes(made) == 200
    assert budget_curve(made) == [(50, 0.5), (100, 0.5), (150, 0.7), (200, 0.7)]


def test_phases_follow_each_other_at_their_own_pace_and_end_with_the_fusion():
    made = record({"alone/a": (20, 0, [0.5, 0.6]), "alone/b": (60, 15, [0.3, 0.4, 0.2])}, final=0.8)
    assert budget_curve(made) == [(10, 0.5), (20, 0.6), (50, 0.6), (80, 0.6), (110, 0.8)]
    assert budget_curve(made)[-1][0] == passes(made)
    worse = record({"alone/a": (20, 0, [0.5, 0.6]), "alone/b": (60, 15, [0.3, 0.4, 0.2])}, final=0.55)
    assert [accuracy for _, accuracy in budget_curve(worse)] == [0.5, 0.6, 0.6, 0.6, 0.55]


def test_reading_at_a_budget():
    curve = [(50.0, 0.5), (100.0, 0.6), (200.0, 0.7)]
    assert [at_budget(curve, b) for b in (49, 50, 99, 100 - 1e-8, 150, 1000)] == [None, 0.5, 0.5, 0.6, 0.6, 0.7]


def test_a_phase_that_stopped_early_is_spread_over_the_epochs_it_had():
    made = record({"alone/a": (30, 0, [0.1, 0.2, 0.3]), "alone/b": (10, 0, [0.4])})
    assert [at for at, _ in budget_curve(made)] == pytest.approx([10, 20, 30, 40])
