"""Figures over training, of budgets and of features: what they draw, read back, against numbers computed by hand."""

import itertools
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.report.budget import at_budget, budget_curve
from balancebench_udi.report.figures import curves, embedding, style
from balancebench_udi.report.figures.budget import _apart, accuracy_against_budget
from balancebench_udi.report.figures.curves import controller_weights, gradient_curves, training_curves
from tests.helpers import written_spec

nan = float("nan")
SPEC = written_spec(optimizer={"name": "sgd"}, epochs=2)
TARGET = pack(torch.tensor([0, 1]))


def make(method, seed, phases, final=0.75, cost=(100, 100), modalities=("audio", "visual")):
    """One record; ``phases``: name -> entries of its epochs, each val scores and, under their names, the rest.

    ``cost``: forward and backward passes of the first modality in every phase; the second takes none.
    """
    curves = [
        {"phase": name, "epoch": epoch, "lr": 0.1, "train": {"loss": 1.0}, **entry}
        for name, entries in phases.items()
        for epoch, entry in enumerate(entries)
    ]
    first, second = modalities[0], modalities[-1]
    passed = [{first: number, second: 0} if first != second else {first: number} for number in cost]
    test = {"accuracy": 0.5, "macro_f1": 0.5, "imbalance": 0.1, "imbalance_relative": 0.1}
    reading = {"test": test, "val": {"accuracy": final}}
    return {
        "key": f"{method}-{seed}",
        "cell": f"cell-{method}",
        "spec": {**SPEC, "method": method, "seed": seed, "encoders": {m: {"name": "mlp"} for m in modalities}},
        "result": {
            "readings": {"best_val": reading, "last": {"test": test, "val": {"accuracy": final - 0.125}}},
            "curves": curves,
            "modalities": list(modalities),
            "test_target": TARGET,
            "passes": {
                way: {m: n * len(phases) for m, n in counts.items()}
                for way, counts in zip(("forward", "backward"), passed, strict=True)
            },
        },
        "cost": {
            "phases": [
                {
                    "phase": name,
                    "forward": passed[0],
                    "backward": passed[1],
                    "seconds": 1.0,
                    "cpu_seconds": 1.0,
                    "reused_from": None,
                }
                for name in phases
            ]
        },
        "data": {"classes": ["x", "y"], "facts": {}},
        "machine": {"device_type": "cpu", "device": "Some CPU", "threads": 1, "torch": "2.0"},
    }


def val(accuracy, **scores):
    """``val(0.5, alone_audio=0.25)``: the entry of an epoch."""
    return {"val": {"accuracy": accuracy, **{name.replace("_", "/", 1): v for name, v in scores.items()}}}


def joint(seeds=(0, 1, 2)):
    """Fused 25, 50 and 75 + 12.5 at the seeds; audio constant at 62.5, visual falls from 50 to 25."""
    return [
        make(
            "joint",
            s,
            {
                "training": [
                    val(0.25 + s / 4, share_audio=0.625, share_visual=0.5),
                    val(0.375 + s / 4, share_audio=0.625, share_visual=0.25),
                ]
            },
        )
        for s in seeds
    ]


def staged(seeds=(0, 1), order=("alone/audio", "alone/visual", "follow/visual")):
    """Phases on one modality each, of two epochs: 25 and 50, one eighth more at seed 1."""

    def entry(phase, value):
        m = phase.split("/")[1]
        return val(value, **{f"alone_{m}": value, f"share_{m}": value / 2})

    return [
        make("staged", s, {phase: [entry(phase, 0.25 + s / 8), entry(phase, 0.5 + s / 8)] for phase in order})
        for s in seeds
    ]


def panel(drawing, title):
    return next(axes for axes in drawing.figure.axes if axes.get_title().startswith(title))


def line(axes, label):
    """``{x: y}`` of the line of this name, NaN as None so that it can be compared."""
    (found,) = [one for one in axes.get_lines() if one.get_label() == label]
    return {float(x): None if np.isnan(y) else round(float(y), 6) for x, y in found.get_xydata()}


def verticals(axes, label="phase"):
    return [one.get_xdata()[0] for one in axes.get_lines() if one.get_label() == label]


def bands(axes):
    """``{colour: {x: (low, high)}}`` of the filled bands."""
    found = {}
    for band in axes.collections:
        corners = np.concatenate([path.vertices for path in band.get_paths()])
        sides = pd.DataFrame(corners, columns=["x", "y"]).groupby("x")["y"].agg(["min", "max"]).round(6)
        found[matplotlib.colors.to_hex(band.get_facecolor()[0])] = {
            x: (low, high) for x, low, high in sides.itertuples()
        }
    return found


def colour(axes, label):
    return next(matplotlib.colors.to_hex(one.get_color()) for one in axes.get_lines() if one.get_label() == label)


# Training curves


def test_curves_are_means_over_seeds_with_a_band_of_one_standard_deviation():
    axes = panel(training_curves(joint()), "joint")
    assert line(axes, "fused") == {1: 50, 2: 62.5}  # 25, 50, 75 and 37.5, 62.5, 87.5
    assert line(axes, "audio") == {1: 62.5, 2: 62.5}
    assert line(axes, "visual") == {1: 50, 2: 25}
    found = bands(axes)
    assert found[colour(axes, "fused")] == {1: (25, 75), 2: (37.5, 87.5)}  # with N in the denominator 20.4, not 25
    assert found[colour(axes, "visual")] == {1: (50, 50), 2: (25, 25)}
    assert axes.get_title() == "joint (share)"
    assert verticals(axes) == []


def test_bands_end_where_values_do():
    shares = [make("joint", s, {"training": [val(a), val(a)]}) for s, a in enumerate((1.0, 1.0, 0.25))]
    axes = panel(training_curves(shares), "joint")
    assert bands(axes)[colour(axes, "fused")][1] == pytest.approx((31.69873, 100))  # not 118.3
    above, _ = gradient_curves([pulled(s) for s in (-2, 1, 2)]).figure.axes  # -1, 0.5 and 1
    assert bands(above)[colour(above, "audio")][1][1] == 1  # not 1.21
    (axes,) = controller_weights([controlled(s) for s in (0, 2, 3)]).figure.axes  # 0.25, 0.75 and 1
    assert bands(axes)[colour(axes, "first")][1][1] == 1  # not 1.05
    assert bands(axes)[colour(axes, "second")][1][0] == 0


def test_no_modality_looks_like_the_fusion():
    looks = [curves._looks([f"m{i}" for i in range(count)]) for count in range(1, 8)]
    for look in looks:
        assert [name for name, kind in look.items() if kind["color"] == style.BLACK] == ["fused"]
        assert all(looks[-1][name] == kind for name, kind in look.items())  # whatever the number of the others


def test_one_seed_has_no_band():
    axes = panel(training_curves(joint((0,))), "joint")
    assert line(axes, "fused") == {1: 25, 2: 37.5}
    assert len(axes.collections) == 0


def test_phases_follow_each_other_and_lines_stop_where_a_score_does_not_exist():
    drawing = training_curves(staged())
    axes = panel(drawing, "staged")
    assert axes.get_title() == "staged (alone)"
    gap = {2.5: None, 4.5: None}  # a phase starts anew: its line is not joined to the one before
    assert line(axes, "audio") == {1: 31.25, 2: 56.25, 3: None, 4: None, 5: None, 6: None, **gap}
    assert line(axes, "visual") == {1: None, 2: None, 3: 31.25, 4: 56.25, 5: 31.25, 6: 56.25, **gap}
    assert verticals(axes) == [2, 4]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    assert [text.get_position()[0] for text in axes.texts] == [1, 3, 5]
    assert "Thin lines: a phase starts (staged: 1 alone/audio, 2 alone/visual, 3 follow/visual)." in drawing.caption


def test_the_accuracy_of_a_phase_on_one_modality_is_not_that_of_the_fusion():
    drawing = training_curves(staged())
    axes = panel(drawing, "staged")
    assert "fused" not in {one.get_label() for one in axes.get_lines()}
    assert line(axes, "finished") == {6: 62.5}  # read at last
    assert "staged: fused 62.5, audio 56.2, visual 56.2" in drawing.alt
    assert "Star: fused accuracy of the finished run" in drawing.caption
    assert "Star" not in training_curves(joint()).caption
    assert "finished" not in {one.get_label() for one in panel(training_curves(joint()), "joint").get_lines()}


def test_fused_accuracy_of_a_last_phase_on_everything():
    last = [val(0.75, share_audio=0.5, share_visual=0.25), val(1.0, share_audio=0.5, share_visual=0.25)]
    first = [val(0.5, alone_audio=0.5)]
    axes = panel(training_curves([make("staged", 0, {"alone/audio": first, "probe": last})]), "staged")
    assert line(axes, "fused") == {1: None, 1.5: None, 2: 75, 3: 100}
    assert line(axes, "audio") == {1: 50, 1.5: None, 2: None, 3: None}  # read-outs are not mixed within a line
    assert "finished" not in {one.get_label() for one in axes.get_lines()}


def test_a_modality_is_read_by_its_own_head_first_then_by_its_share_then_masked():
    everything = {f"{kind}_{m}": v for kind, v in (("masked", 0.1), ("share", 0.2), ("alone", 0.3)) for m in SIDES}
    for kind, percent in (("alone", 30), ("share", 20), ("masked", 10)):
        drawing = training_curves([make("joint", 0, {"training": [val(0.5, **everything)]})])
        axes = panel(drawing, "joint")
        assert axes.get_title() == f"joint ({kind})"
        assert line(axes, "visual") == {1: percent}
        assert f"named in the titles ({kind}: " in drawing.caption
        everything = {name: v for name, v in everything.items() if not name.startswith(kind)}
    drawing = training_curves([make("joint", 0, {"training": [val(0.5)]})])  # a fusion that cannot be split
    assert [one.get_label() for one in panel(drawing, "joint").get_lines()] == ["fused"]
    assert "(not at all)" in drawing.caption


SIDES = ("audio", "visual")


def test_a_run_that_stopped_early_leaves_the_others_where_they_are():
    short, long = staged((0, 1), order=("alone/audio", "alone/visual"))
    del short["result"]["curves"][1]
    axes = panel(training_curves([short, long]), "staged")
    assert line(axes, "audio") == {1: 31.25, 2: 62.5, 2.5: None, 3: None, 4: None}
    assert line(axes, "visual") == {1: None, 2: None, 2.5: None, 3: 31.25, 4: 56.25}
    assert verticals(axes) == [2]


def test_phases_that_differ_between_seeds_are_both_named():
    mixed = staged((0,)) + staged((1,), order=("alone/audio", "alone/visual", "follow/audio"))
    drawing = training_curves(mixed)
    assert "3 follow/visual or follow/audio" in drawing.caption
    assert training_curves(mixed[::-1]).caption == drawing.caption
    assert line(panel(drawing, "staged"), "audio")[6] == 62.5  # of the one seed that has it


def test_panels_share_the_scale_of_accuracy_and_come_in_the_order_of_the_records():
    drawing = training_curves(staged() + joint())
    shown = [axes for axes in drawing.figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["staged (alone)", "joint (share)"]
    assert shown[0].get_ylim() == shown[1].get_ylim()
    assert shown[0].get_xlim()[1] > 6 > shown[1].get_xlim()[1]  # epochs are as many as each method has
    assert "mean over 2 to 3 seeds" in drawing.caption
    assert "toy, protocol quick v1" in drawing.caption
    assert drawing.figure.get_suptitle().splitlines()[1:] == ["toy, protocol quick v1"]
    assert drawing.alt == (
        "Validation accuracy in percent over epochs. At the end of training: "
        "staged: fused 62.5, audio 56.2, visual 56.2; joint: fused 62.5, audio 62.5, visual 25.0."
    )


def test_legend_names_every_line_once():
    (legend,) = training_curves(staged() + joint()).figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fused", *SIDES, "fused, run finished"]
    (legend,) = training_curves(joint()).figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fused", *SIDES]


def test_lines_differ_without_colour_and_every_run_of_points_is_marked():
    axes = panel(training_curves(staged() + joint()), "joint")
    lines = [one for one in axes.get_lines() if one.get_label() in ("fused", *SIDES)]
    assert len({one.get_marker() for one in lines}) == len({one.get_linestyle() for one in lines}) == 3
    axes = panel(training_curves(staged()), "staged")
    (visual,) = [one for one in axes.get_lines() if one.get_label() == "visual"]
    assert list(visual.get_xdata()[visual.get_markevery()]) == [3, 4, 5, 6]


def many(number):
    return [record for i in range(number) for record in named(joint((0, 1)), f"method_{i}")]


def named(records, name):
    for record in records:
        record["spec"]["method"] = name
    return records


@pytest.mark.parametrize("number", [1, 4, 12])
def test_every_method_has_a_panel_and_the_lowest_of_a_column_its_epochs(number):
    drawing = training_curves(many(number))
    shown = [axes for axes in drawing.figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [f"method_{i} (share)" for i in range(number)]
    with style.styled():
        drawing.figure.draw_without_rendering()
    for axes in shown[-3:]:
        assert any(label.label1.get_visible() for label in axes.xaxis.get_major_ticks())


# Gradients


def pulled(seed, method="joint"):
    """Cosine of audio 0, 0.5 and 1 at the seeds, ratio 0.1, 1 and 10; visual constant, with no second epoch."""
    first = {"cosine/audio": seed / 2, "norm_ratio/audio": 10.0 ** (seed - 1)}
    second = {"cosine/audio": 1.0, "norm_ratio/audio": 0.01}
    return make(
        method,
        seed,
        {
            "training": [
                {**val(0.5), "gradients": {**first, "cosine/visual": 0.25, "norm_ratio/visual": 2.0}},
                {**val(0.5), "gradients": second},
            ]
        },
    )


def test_cosines_are_means_and_ratios_geometric_means():
    drawing = gradient_curves([pulled(s) for s in range(3)])
    above, below = drawing.figure.axes
    assert line(above, "audio") == {1: 0.5, 2: 1}
    assert line(above, "visual") == {1: 0.25, 2: None}
    assert line(below, "audio") == {1: 1, 2: 0.01}  # the arithmetic mean of the first were 3.7
    assert bands(above)[colour(above, "audio")][1] == (0, 1)
    assert bands(below)[colour(below, "audio")][1] == (0.1, 10)
    assert (above.get_yscale(), below.get_yscale()) == ("linear", "log")
    assert set(line(above, "neutral").values()) == {0}
    assert set(line(below, "neutral").values()) == {1}
    assert "joint audio 0.50 to 1.00 (cosine)" in drawing.alt
    assert "joint audio 1.00 to 0.01 (norm_ratio)" in drawing.alt
    assert "mean (of the ratio: geometric) over 3 seeds" in drawing.caption


def test_gradients_of_those_that_have_them():
    assert gradient_curves(joint()) is None
    assert [axes.get_title() for axes in gradient_curves([*joint(), pulled(0, "other")]).figure.axes] == ["other", ""]


def test_gradients_of_many_methods_share_their_scales_and_stand_in_two_rows():
    drawing = gradient_curves([pulled(s, f"method_{i}") for i in range(5) for s in range(2)])
    shown = [axes for axes in drawing.figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown if axes.get_title()] == [f"method_{i}" for i in range(5)]
    cosines, ratios = ([axes for axes in shown if axes.get_yscale() == scale] for scale in ("linear", "log"))
    assert len(cosines) == len(ratios) == 5
    for group in (cosines, ratios):
        assert len({axes.get_ylim() for axes in group}) == 1
        assert all(line(axes, "audio") == line(group[0], "audio") for axes in group)
    assert shown[0].get_xlim() == shown[-1].get_xlim()


# Weights of a controller


def controlled(seed, phase="follow/visual", method="staged", terms=("first", "second")):
    """Weight of the first term 0.25 + seed / 4 and then 1, the second is what is missing to 1."""
    weights = ((0.25 + seed / 4, 0.75 - seed / 4), (1.0, 0.0))
    logs = [{f"alpha/{term}": w for term, w in zip(terms, ws, strict=True)} for ws in weights]
    entries = [{**val(0.5, alone_visual=0.5), "train": {"loss": 1.0, "loss/q": 3.0, **log}} for log in logs]
    return make(method, seed, {"alone/visual": [val(0.5, alone_visual=0.5)], phase: entries})


def test_weights_over_the_epochs_of_their_phase():
    drawing = controller_weights([*joint(), *(controlled(s) for s in range(3))])
    (axes,) = drawing.figure.axes
    assert axes.get_title() == "staged: follow/visual (3 seeds)"
    assert line(axes, "first") == {1: 0.5, 2: 1}
    assert line(axes, "second") == {1: 0.5, 2: 0}
    assert bands(axes)[colour(axes, "first")] == {1: (0.25, 0.75), 2: (1, 1)}
    assert "staged, follow/visual (3 seeds): first 0.75 (0.50 to 1.00), second 0.25 (0.50 to 0.00)" in drawing.alt
    assert controller_weights(joint()) is None


def test_weights_of_seeds_with_another_follower_have_their_own_panel():
    drawing = controller_weights([controlled(2), controlled(1, "follow/audio"), controlled(0)])
    left, right = drawing.figure.axes
    assert (left.get_title(), right.get_title()) == (
        "staged: follow/visual (2 seeds)",
        "staged: follow/audio (1 seed)",
    )
    assert line(left, "first")[1] == 0.5
    assert line(right, "first")[1] == 0.5
    assert len(right.collections) == 0


def test_weights_of_several_methods_keep_their_looks():
    drawing = controller_weights([controlled(0), controlled(0, method="other", terms=("second", "third"))])
    left, right = drawing.figure.axes
    assert colour(left, "second") == colour(right, "second") != colour(right, "third")
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["first", "second", "third"]
    assert left.get_ylim() == right.get_ylim()


# Accuracy against budget


def costly(seed, values=(0.25, 0.5, 0.375), cost=(100, 100), method="costly", final=0.75):
    return make(method, seed, {"training": [val(value) for value in values]}, final=final, cost=cost)


def steps(drawing, method):
    """The line of ``method`` without the step to its dot, and the dot."""
    lines = drawing.figure.axes[0].get_lines()
    dot = next(i for i, one in enumerate(lines) if one.get_label() == method)
    assert lines[dot - 1].get_drawstyle() == "steps-post"
    assert np.array_equal(lines[dot - 1].get_xydata()[-1], lines[dot].get_xydata()[0])
    return lines[dot - 1].get_xydata()[:-1], lines[dot].get_xydata()[0]


def test_budget_is_the_running_best_against_passes_relative_to_the_reference():
    cheap, dear = costly(0, method="joint"), costly(0, cost=(200, 200))
    drawing = accuracy_against_budget([cheap, dear], "best_val", "joint")
    path, dot = steps(drawing, "joint")
    assert path == pytest.approx(np.array([[1 / 3, 25], [2 / 3, 50], [1, 75]]))  # 50 is kept, then the finished run
    path, dot = steps(drawing, "costly")
    assert path == pytest.approx(np.array([[2 / 3, 25], [4 / 3, 50], [2, 75]]))
    assert dot == pytest.approx([2, 75])
    (axes,) = drawing.figure.axes
    assert [verticals(axes, f"{times}×") for times in (1, 2, 3)] == [[1], [2], []]
    assert "joint 75.0 at 1.00×; costly 75.0 at 2.00×. Best so far at the passes of joint: costly 25.0." in drawing.alt
    assert axes.get_xlabel() == "passes through the encoders, relative to joint (forward + 2 × backward)"


def test_budget_of_seeds_of_different_length_is_the_mean_of_step_functions():
    records = [costly(0), costly(1, values=(0.5, 0.625), cost=(80, 110), final=0.625), costly(2, cost=(400, 400))]
    path, dot = steps(accuracy_against_budget(records, "best_val"), "costly")
    curves = [budget_curve(record) for record in records]
    for x, y in path:
        assert y == pytest.approx(100 * np.mean([at_budget(curve, x * 1e6) for curve in curves]))
    assert path[0, 0] == pytest.approx(400e-6)  # where the slowest has finished an epoch
    assert dot == pytest.approx([1200e-6, 100 * (0.75 + 0.625 + 0.75) / 3])
    assert len(path) == 3


def test_budget_without_a_reference_is_in_millions():
    for reference in (None, "absent"):
        drawing = accuracy_against_budget([costly(0, cost=(500_000, 500_000))], "best_val", reference)
        (axes,) = drawing.figure.axes
        assert steps(drawing, "costly")[1] == pytest.approx([1.5, 75])
        assert "in millions" in axes.get_xlabel()
        assert "costly 75.0 at 1.50 million" in drawing.alt
        assert not any(verticals(axes, f"{times}×") for times in (1, 2, 3))


def test_the_dot_is_the_finished_run_also_where_an_earlier_stage_was_better():
    path, dot = steps(accuracy_against_budget([costly(0), costly(1, final=0.5)], "last"), "costly")
    assert dot[1] == path[-1, 1] == (62.5 + 37.5) / 2  # the best so far would be 56.25


def crowd(number=8, prefix="method_"):
    """Most end at 1, close together; one at 1.02, one at 2."""
    spots = [(300, 0.9 + i / 1000) for i in range(number - 2)] + [(306, 0.5), (600, 0.903)]
    return [costly(0, (0.2, 0.3, 0.4), (n / 3, n / 3), f"{prefix}{i}", y) for i, (n, y) in enumerate(spots)]


def tower():
    """Eight ends in one place, whose names in a column reach up to the one of the end above."""
    return [costly(0, (0.2, 0.3, 0.4), method=f"m{i}", final=0.5 if i else 0.54) for i in range(9)]


LABELLED = {"short": crowd(10, "m"), "long": crowd(10, "method_of_a_long_name_"), "tower": tower()}


@pytest.mark.parametrize("records", LABELLED.values(), ids=LABELLED)
def test_budget_labels_overlap_neither_each_other_nor_dots_nor_the_edge(records):
    drawing = accuracy_against_budget(records, "best_val", records[0]["spec"]["method"])
    with style.styled():
        drawing.figure.draw_without_rendering()
        (axes,) = drawing.figure.axes
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert sorted(boxes) == sorted(
        f"{r['spec']['method']} {100 * r['result']['readings']['best_val']['val']['accuracy']:.1f}" for r in records
    )
    for (a, box), (b, another) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(another), f"{a} and {b} overlap"
    dots = axes.transData.transform([steps(drawing, record["spec"]["method"])[1] for record in records])
    for name, box in boxes.items():
        assert not any(box.padded(3).contains(*dot) for dot in dots), f"{name} hides a dot"
        assert axes.bbox.contains(box.x0, box.y0), f"{name} leaves the figure"
        assert axes.bbox.contains(box.x1, box.y1), f"{name} leaves the figure"


def test_heights_of_labels():
    assert _apart([0, 10, 50], 10, -100, 100) == pytest.approx([0, 10, 50])
    assert _apart([20, 20, 20], 10, -100, 100) == pytest.approx([10, 20, 30])  # as little moved as can be
    assert _apart([98, 99], 10, 0, 100) == pytest.approx([85, 95])
    assert _apart([0, 1], 10, 0, 100) == pytest.approx([5, 15])


# Maps of features


def blobs(spread=0.1, number=40, classes=4, width=8, seed=0):
    generator = np.random.default_rng(seed)
    target = np.arange(number) % classes
    return generator.normal(size=(classes, width))[target] + spread * generator.normal(size=(number, width)), target


@pytest.fixture(scope="module")
def mapped():
    """Panels "apart" and "mixed", as given and as places."""
    given = {"apart": blobs(), "mixed": blobs(50.0, seed=1)}
    return given, embedding.coordinates(given)


def test_map_keeps_samples_in_order_and_classes_together(mapped):
    given, places = mapped
    assert list(places.columns) == ["panel", "x", "y", "target"]
    assert list(places["panel"]) == ["apart"] * 40 + ["mixed"] * 40
    assert list(places["target"]) == [*given["apart"][1], *given["mixed"][1]]
    apart, mixed = (places[places["panel"] == name] for name in given)
    nearest = KNeighborsClassifier(3)
    assert nearest.fit(apart[["x", "y"]], apart["target"]).score(apart[["x", "y"]], apart["target"]) == 1
    assert nearest.fit(mixed[["x", "y"]], mixed["target"]).score(mixed[["x", "y"]], mixed["target"]) < 0.8


def test_same_features_same_places_for_tensors_too_and_whatever_the_other_panels(mapped):
    given, places = mapped
    features, target = given["mixed"]
    again = embedding.coordinates({"mixed": (torch.tensor(features), torch.tensor(target))})
    pd.testing.assert_frame_equal(again, places[places["panel"] == "mixed"].reset_index(drop=True))


@pytest.mark.parametrize(("number", "perplexity"), [(40, 13), (120, 30)])
def test_map_is_that_of_scikit_learn_after_fifty_components(number, perplexity):
    features, target = blobs(spread=1.0, number=number, width=60)
    places = embedding.coordinates({"p": (features, target)})[["x", "y"]].to_numpy()
    with threadpool_limits(1):  # t-SNE of few samples is chaotic: the last bit decides
        reduced = PCA(min(number, 50), svd_solver="full").fit_transform(features)
        twin = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    assert np.abs(places - twin).max() < 0.001


def test_drawing_from_a_csv_gives_the_same_picture(mapped, tmp_path):
    _, places = mapped
    places.to_csv(tmp_path / "places.csv", index=False)
    again = pd.read_csv(tmp_path / "places.csv")
    pd.testing.assert_frame_equal(again, places, check_dtype=False)
    classes = ["a", "b", "c", "d"]
    assert embedding.draw(again, classes, "toy").svg() == embedding.draw(places, classes, "toy").svg()


def test_map_shows_every_sample_by_colour_and_marker(mapped):
    given, places = mapped
    drawing = embedding.draw(places, ["a", "b", "c", "d", "absent"], "toy, protocol quick v1")
    assert [axes.get_title().split("\n")[0] for axes in drawing.figure.axes] == ["apart", "mixed"]
    for axes, name in zip(drawing.figure.axes, given, strict=True):
        lines = axes.get_lines()
        part = places[places["panel"] == name]
        for index, one in enumerate(lines):
            assert np.array_equal(one.get_xydata(), part[part["target"] == index][["x", "y"]].to_numpy())
        assert len({one.get_color() for one in lines}) == len({one.get_marker() for one in lines}) == 4
    (legend,) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c", "d"]
    assert drawing.figure.get_suptitle() == "toy, protocol quick v1"


def test_map_counts_neighbours_of_the_same_class():
    # 0-1 and 2-3 are each other's nearest, 4 is nearest to 3: right are 0, 1 and 4
    places = pd.DataFrame({"panel": "p", "x": [0, 1, 10, 11, 12.5], "y": 0.0, "target": [0, 0, 0, 1, 1]})
    drawing = embedding.draw(places, ["a", "b"], "toy")
    assert drawing.figure.axes[0].get_title() == "p\nneighbour of its class: 60.0 %"
    assert "60.0 % in p (5 samples)" in drawing.alt


@pytest.mark.parametrize(
    ("panels", "said"),
    [
        ({}, "at least one panel, found none"),
        ({"p": blobs(number=6)}, "at least 7 samples to be mapped, found 6"),
        ({"p": (blobs()[0], blobs()[1][:-1])}, "one target a sample, found (39,) for 40 samples"),
        ({"p": (blobs()[0][:, :1], blobs()[1])}, "a matrix of at least two columns, found shape (40, 1)"),
        ({"p": (blobs()[0] * nan, blobs()[1])}, "must be finite, found NaN"),
    ],
)
def test_features_that_cannot_be_mapped(panels, said):
    with pytest.raises(UserError, match=re.escape(said)):
        embedding.coordinates(panels)


def test_places_that_cannot_be_drawn(mapped):
    _, places = mapped
    with pytest.raises(UserError, match="must have the columns panel, x, y and target, found no y"):
        embedding.draw(places.drop(columns="y"), ["a", "b", "c", "d"], "toy")
    with pytest.raises(UserError, match="must be indices of the 3 classes, found 3: pass all names"):
        embedding.draw(places, ["a", "b", "c"], "toy")


def test_map_of_few_samples_and_of_many_panels():
    drawing = embedding.tsne({f"p{i}": blobs(number=7, seed=i) for i in range(2)}, ["a", "b", "c", "d"], "toy")
    assert [len(axes.get_lines()) for axes in drawing.figure.axes] == [4, 4]


# All of them

DRAWN = {
    "training": training_curves,
    "gradients": gradient_curves,
    "weights": controller_weights,
    "budget": lambda records: accuracy_against_budget(records, "best_val", "joint"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_equal_records_give_equal_bytes_whatever_the_order_of_seeds(name, tmp_path):
    before = dict(matplotlib.rcParams)
    groups = [
        joint(),
        staged(),
        [pulled(s, "pulled") for s in (0, 1)],
        [controlled(s, method="weighed") for s in (0, 1)],
    ]
    for folder, step in (("a", 1), ("b", -1)):
        paths = DRAWN[name]([record for group in groups for record in group[::step]]).save(tmp_path / folder, name)
        assert [path.name for path in paths] == [f"{name}.svg", f"{name}.png"]
    for suffix in ("svg", "png"):
        assert (tmp_path / f"a/{name}.{suffix}").read_bytes() == (tmp_path / f"b/{name}.{suffix}").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_no_words_overlap():
    drawings = [
        training_curves(staged() + many(4)),
        gradient_curves([pulled(s, f"method_{i}") for i in range(5) for s in range(2)]),
        controller_weights([controlled(0), controlled(2), controlled(1, "follow/audio")]),
        accuracy_against_budget(staged() + joint(), "best_val", "joint"),
        embedding.draw(pd.DataFrame({"panel": list("pq") * 4, "x": range(8), "y": 0.0, "target": 0}), ["a"], "toy"),
    ]
    for drawing in drawings:
        with style.styled():
            drawing.figure.draw_without_rendering()
            figure, shown = drawing.figure, [axes for axes in drawing.figure.axes if axes.get_visible()]
            texts = [figure._suptitle, *figure.legends[0].get_texts()] if figure.legends else [figure._suptitle]
            texts += [text for axes in shown for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
            texts += [text for text in (figure._supxlabel, figure._supylabel) if text is not None]
            boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
            assert min(text.get_fontsize() for text in texts) >= 8
        for (a, box), (b, another) in itertools.combinations(boxes, 2):
            assert not box.overlaps(another), f"{a} and {b} overlap"
        for name, box in boxes:
            assert figure.bbox.contains(box.x0, box.y0), f"{name} leaves the figure"
            assert figure.bbox.contains(box.x1, box.y1), f"{name} leaves the figure"


@pytest.mark.parametrize("draw", [training_curves, lambda records: accuracy_against_budget(records, "best_val")])
def test_records_of_two_protocols_are_refused(draw):
    mixed = joint() + named(joint(), "other")
    for record in mixed[3:]:
        record["spec"] = {**record["spec"], "epochs": 3}
    with pytest.raises(UserError, match="a table must have one protocol, found epochs 2 and 3"):
        draw(mixed)
    with pytest.raises(UserError, match="at least one record"):
        draw([])
