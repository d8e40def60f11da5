"""Accuracy against passes, on records made by hand."""

import pytest

from balancebench_udi.report.budget import at_budget, budget_curve, passes


def record(phases, final=None):
    """``phases``: name -> (passes forward, passes backward of one encoder, accuracies after each epoch)."""
    costs = [
        {"phase": name, "forward": {"a": f, "b": 0}, "backward": {"a": 0, "b": b}} for name, (f, b, _) in phases.items()
    ]
    read = {"alone/a": ["alone/a"], "alone/b": ["share/b"], "both": ["alone/a", "alone/b"], "training": []}
    curves = [
        {"phase": name, "epoch": e, "val": {"accuracy": v, **dict.fromkeys(read[name], v)}}
        for name, (_, _, values) in phases.items()
        for e, v in enumerate(values)
    ]
    best = max(c["val"]["accuracy"] for c in curves) if final is None else final
    total = {way: {m: sum(c[way][m] for c in costs) for m in "ab"} for way in ("forward", "backward")}
    readings = {"best_val": {"val": {"accuracy": best}}}
    return {
        "cost": {"phases": costs},
        "result": {"curves": curves, "passes": total, "modalities": ["a", "b"], "readings": readings},
    }


@pytest.mark.parametrize("phase", ["training", "both"])
def test_one_phase(phase):
    made = record({phase: (40, 80, [0.5, 0.4, 0.7, 0.6])})
    assert passes(made) == 200
    assert budget_curve(made) == [(50, 0.5), (100, 0.5), (150, 0.7), (200, 0.7)]


def test_a_branch_by_itself_is_no_accuracy_of_the_method():
    made = record({"alone/a": (20, 0, [0.5, 0.6]), "alone/b": (60, 15, [0.3, 0.4, 0.2])}, final=0.55)
    assert budget_curve(made) == [(110, 0.55)]
    assert budget_curve(made)[-1][0] == passes(made)


def test_phases_follow_each_other_at_their_own_pace():
    made = record({"alone/a": (20, 0, [0.5, 0.6]), "both": (60, 15, [0.3, 0.4, 0.2])})
    assert budget_curve(made) == [(50, 0.3), (80, 0.4), (110, 0.6)]


def test_reading_at_a_budget():
    curve = [(50.0, 0.5), (100.0, 0.6), (200.0, 0.7)]
    assert [at_budget(curve, b) for b in (49, 50, 99, 100 - 1e-8, 150, 1000)] == [None, 0.5, 0.5, 0.6, 0.6, 0.7]


def test_a_phase_that_stopped_early_is_spread_over_the_epochs_it_had():
    made = record({"training": (30, 0, [0.1, 0.2, 0.3]), "both": (10, 0, [0.4])})
    assert [at for at, _ in budget_curve(made)] == pytest.approx([10, 20, 30, 40])
