"""Figures of modalities, classes, ranks and intervals: what they draw, read back, against numbers computed by hand."""

import math
import random
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from scipy import stats
from sklearn.metrics import confusion_matrix, recall_score

from balancebench_udi.errors import UserError
from balancebench_udi.metrics import ranks, statistics
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.metrics.statistics import CLOSE, DIFFERENT, NOISY
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.figures import style
from balancebench_udi.report.figures.classes import confusion, counted, per_class_differences, shortened
from balancebench_udi.report.figures.intervals import accuracy_intervals
from balancebench_udi.report.figures.modalities import joint_against_alone
from balancebench_udi.report.figures.ranks import critical_difference_diagram
from tests.helpers import written_spec

SPEC = written_spec(optimizer={"name": "sgd"}, epochs=1)


def make(method, seed, scores=None, *, fused=(0, 1), target=(0, 1), classes=2, modalities=("audio", "visual")):
    """One record with these test scores and fused predictions of the test split."""
    names = classes if isinstance(classes, list) else [f"c{i}" for i in range(classes)]
    hits = np.equal(fused, target).mean()
    test = {"accuracy": hits, "macro_f1": 0.5, "imbalance": 0.1, "imbalance_relative": 0.1, **(scores or {})}
    predictions = {"fused": pack(torch.tensor(fused))}
    wrong = {"test": {"accuracy": 0.0}, "predictions": {"fused": pack(torch.zeros(len(target), dtype=torch.int64))}}
    return {
        "key": f"{method}-{seed}",
        "cell": f"cell-{method}",
        "spec": {**SPEC, "method": method, "seed": seed, "encoders": {m: {"name": "mlp"} for m in modalities}},
        "result": {
            "readings": {"best_val": {"test": test, "predictions": predictions}, "last": wrong},
            "test_target": pack(torch.tensor(target)),
            "modalities": list(modalities),
            "passes": {"forward": dict.fromkeys(modalities, 1), "backward": dict.fromkeys(modalities, 1)},
        },
        "cost": {"phases": [{"cpu_seconds": 1.0, "seconds": 1.0, "reused_from": None}]},
        "data": {"classes": names, "facts": {}},
        "machine": {"device_type": "cpu", "device": "Some CPU", "threads": 1, "torch": "2.0"},
    }


def inside(share=(0.5, 0.25), kinds=("probe", "share", "masked"), step=0.0, **scores):
    """Scores of the encoders in a multimodal model; every kind of read-out has values of its own."""
    audio, visual = share
    found = {f"{kind}/audio": audio + i * step for i, kind in enumerate(kinds)}
    return {**found, **{f"{kind}/visual": visual + i * step for i, kind in enumerate(kinds)}, **scores}


def problem():
    """Alone 87.5 ± 12.5 and 50; joint 25 ± 12.5 (probe of audio) and 12.5, fused 62.5; three seeds."""
    alone = [make("single", s, {"alone/audio": 0.75 + s / 8, "alone/visual": 0.5, "accuracy": 0.75}) for s in range(3)]
    joint = [make("joint", s, inside((0.125 + s / 8, 0.125), step=0.125, accuracy=0.625)) for s in range(3)]
    other = [make("other", s, inside((0.75, 0.625), step=0.125, accuracy=0.875)) for s in range(3)]
    return alone + joint + other


def bars(axes):
    (container,) = [c for c in axes.containers if isinstance(c, BarContainer)]
    return container


def whiskers(axes):
    """Half the length of each error bar, 0 where there is none."""
    container = bars(axes)
    if container.errorbar is None:
        return [0.0] * len(container)
    (lines,) = container.errorbar.lines[2]
    return [(end[0] - start[0]) / 2 for start, end in lines.get_segments()]


def names(labels):
    return [label.get_text() for label in labels]


def texts(drawing):
    """Every text that is visible in the figure, with its box on the canvas."""
    figure = drawing.figure
    with style.styled():
        figure.draw_without_rendering()
        found = [figure._suptitle, figure._supxlabel, *(t for legend in figure.legends for t in legend.get_texts())]
        for axes in (a for a in figure.axes if a.get_visible()):
            found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            for axis in (axes.xaxis, axes.yaxis):
                ticks = axis._update_ticks()  # those in view
                found += [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
        return [(t, t.get_window_extent()) for t in found if t is not None and t.get_text()]


def assert_readable(drawing):
    boxes = texts(drawing)
    assert boxes
    width, height = drawing.figure.bbox.size
    assert 6 <= drawing.figure.get_size_inches()[0] <= 7
    for text, box in boxes:
        assert text.get_fontsize() >= 8, text
        assert -0.5 <= box.x0 < box.x1 <= width + 0.5, f"{text} leaves the figure"
        assert -0.5 <= box.y0 < box.y1 <= height + 0.5, f"{text} leaves the figure"
    edges = np.array([box.padded(-1).extents for _, box in boxes])  # left, bottom, right, top
    meet = ((edges[:, None, :2] < edges[:, 2:]) & (edges[:, None, 2:] > edges[:, :2])).all(-1)
    overlapping = [(boxes[a][0], boxes[b][0]) for a, b in np.argwhere(np.triu(meet, 1))]
    assert not overlapping


# modalities


def test_every_modality_alone_against_inside_and_fused():
    figure = joint_against_alone(problem(), "best_val", "single").figure
    audio, visual, fused = figure.axes
    assert [a.get_title() for a in figure.axes] == ["audio", "visual", "fused"]
    assert names(audio.get_yticklabels()) == ["trained alone", "joint", "other"]
    assert audio.get_ylim()[0] > audio.get_ylim()[1]  # the first row is on top
    assert list(bars(audio).datavalues) == [87.5, 25, 75]
    assert list(bars(visual).datavalues) == [50, 12.5, 62.5]
    assert list(bars(fused).datavalues) == [87.5, 62.5, 87.5]  # the best single modality, not the accuracy of single
    assert whiskers(audio) == [12.5, 12.5, 0]  # with N in the denominator 10.2
    assert whiskers(fused) == [12.5, 0, 0]
    for axes, value in ((audio, 87.5), (visual, 50), (fused, 87.5)):
        assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "--"] == [[value, value]]
        assert names(axes.texts) == [f"{v:.1f}" for v in bars(axes).datavalues]


@pytest.mark.parametrize(
    ("kinds", "value"), [(("share", "masked"), 25), (("masked",), 25), (("masked", "share", "probe"), 50)]
)
def test_encoders_are_read_by_the_fairest_readout_that_all_have(kinds, value):
    records = [make("single", 0, {"alone/audio": 0.75, "alone/visual": 0.5})]
    records += [make("joint", s, inside((0.25, 0.25), kinds, step=0.125)) for s in range(2)]
    drawing = joint_against_alone(records, "best_val", "single")
    assert bars(drawing.figure.axes[0]).datavalues[1] == value
    kind = next(k for k in ("probe", "share", "masked") if k in kinds)
    assert f"inside the methods ({kind})" in drawing.alt
    assert f"still gives ({kind}: " in drawing.caption
    assert f"inside the method ({kind})" in names(drawing.figure.legends[0].get_texts())


def test_probes_are_compared_with_probes():
    """The best single modality is what it predicts by itself, by its own head."""
    records = problem()
    for record in records[:3]:
        record["result"]["readings"]["best_val"]["test"] |= {"probe/audio": 0.5, "probe/visual": 0.9375}
    drawing = joint_against_alone(records, "best_val", "single")
    audio, visual, fused = drawing.figure.axes
    assert [bars(axes).datavalues[0] for axes in (audio, visual, fused)] == [50, 93.75, 87.5]
    assert "trained alone (probe; under fused: audio)" in names(drawing.figure.legends[0].get_texts())
    assert "(single, probe; dashed line)" in drawing.caption
    assert "trained alone (probe) and inside the methods (probe)" in drawing.alt
    assert_readable(drawing)
    del records[1]["result"]["readings"]["best_val"]["test"]["probe/audio"]
    assert "(single, own head; dashed line)" in joint_against_alone(records, "best_val", "single").caption


def test_a_readout_that_one_run_lacks_is_not_used():
    records = problem()
    del records[4]["result"]["readings"]["best_val"]["test"]["probe/visual"]
    drawing = joint_against_alone(records, "best_val", "single")
    assert "(share)" in drawing.alt
    assert list(bars(drawing.figure.axes[0]).datavalues) == [87.5, 37.5, 87.5]


def test_kinds_of_bars_differ_without_colour():
    figure = joint_against_alone(problem(), "best_val", "single").figure
    audio, visual, fused = figure.axes
    hatches = [bars(audio)[0].get_hatch(), bars(audio)[1].get_hatch(), bars(fused)[1].get_hatch()]
    assert len(set(hatches)) == 3
    assert [p.get_hatch() for p in figure.legends[0].get_patches()] == hatches
    assert names(figure.legends[0].get_texts()) == [
        "trained alone (own head; under fused: audio)",
        "inside the method (probe)",
        "fused",
    ]
    assert bars(visual)[2].get_hatch() == hatches[1]
    assert bars(fused)[0].get_hatch() == hatches[0]


def test_words_of_the_modalities_figure():
    drawing = joint_against_alone(problem(), "best_val", "single")
    assert drawing.alt == (
        "Test accuracy in percent of each modality trained alone (own head) and inside the methods (probe). "
        "audio: 87.5 trained alone, 25.0 (joint) to 75.0 (other); visual: 50.0 trained alone, 12.5 (joint) to "
        "62.5 (other); fused: 87.5 by audio alone, 62.5 (joint) to 87.5 (other)."
    )
    assert "toy, protocol quick v1, read at best_val; mean over 3 seeds" in drawing.caption
    assert "(single, own head; dashed line)" in drawing.caption
    assert "the best modality trained alone (audio, own head)" in drawing.caption


def test_one_seed_and_two_methods():
    drawing = joint_against_alone(problem()[::3][:2], "best_val", "single")
    assert list(bars(drawing.figure.axes[0]).datavalues) == [75, 12.5]
    assert whiskers(drawing.figure.axes[0]) == [0, 0]
    assert "fused: 75.0 by audio alone, 62.5 (joint)." in drawing.alt
    assert "mean over 1 seed;" in drawing.caption
    assert_readable(drawing)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_any_number_of_modalities_and_long_names(count):
    modalities = ["spectrogram", "visual", "language", "depth", "thermal"][:count]
    draw = random.Random(0).random
    records = [
        make(
            name,
            seed,
            {f"{kind}/{m}": draw() for kind in ("alone", "masked") for m in modalities} | {"accuracy": draw()},
            modalities=modalities,
        )
        for name in ("single", *(f"a_method_of_a_very_long_name_{i}" for i in range(9)))
        for seed in range(2)
    ]
    drawing = joint_against_alone(records, "best_val", "single")
    shown = [axes for axes in drawing.figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [*modalities, "fused"]
    assert_readable(drawing)


@pytest.mark.parametrize(
    ("records", "alone", "message"),
    [
        (problem(), "singel", "alone must be a method with records here, found 'singel'; did you mean 'single'?"),
        (problem()[:3], "single", "records of another method than single, found none"),
        (problem(), "joint", "records of joint must have alone/audio, alone/visual, found not all"),
        ([*problem(), make("bare", 0)], "single", "read by one of probe, share, masked, found none that all have"),
        ([], "single", "needs at least one record"),
    ],
)
def test_refusals_of_the_modalities_figure(records, alone, message):
    with pytest.raises(UserError, match=re.escape(message)):
        joint_against_alone(records, "best_val", alone)


# classes

CLASSES = 4
TARGET = [0] * 4 + [1] * 4 + [2] * 8 + [3] * 2


def noisy(method, seeds, share, classes=CLASSES, target=TARGET, **changes):
    """Runs that are right with probability ``share``, else off by one (mostly) or two: confusions are lopsided."""
    runs = []
    for seed in seeds:
        draw = random.Random(f"{method} {seed}")
        fused = [t if draw.random() < share else (t + draw.choice((1, 1, 2))) % classes for t in target]
        runs.append(make(method, seed, fused=fused, target=target, classes=changes.get("names", classes)))
        runs[-1]["fused"] = fused
    return runs


def test_differences_of_recall_are_taken_seed_by_seed():
    mine, theirs = noisy("mine", (0, 1, 2), 0.7), noisy("theirs", (2, 0, 1), 0.4)
    drawing = per_class_differences([*mine, *theirs], "best_val", "mine", "theirs")
    of = {r["spec"]["seed"]: recall_score(TARGET, r["fused"], average=None) for r in theirs}
    gains = 100 * np.array([recall_score(TARGET, r["fused"], average=None) - of[r["spec"]["seed"]] for r in mine])
    order = sorted(range(CLASSES), key=lambda c: -gains.mean(0)[c])
    assert order != sorted(order)  # else the figure need not have been sorted
    (axes,) = drawing.figure.axes
    assert bars(axes).datavalues == pytest.approx(gains.mean(0)[order])
    assert whiskers(axes) == pytest.approx(gains.std(0, ddof=1)[order])
    assert names(axes.get_yticklabels()) == [f"c{i}" for i in order]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    best, worst = gains.mean(0)[order[0]], gains.mean(0)[order[-1]]
    assert f"highest {best:+.1f} for c{order[0]}, lowest {worst:+.1f} for c{order[-1]};" in drawing.alt
    assert f"higher in {(gains.mean(0) > 0).sum()}, lower in {(gains.mean(0) < 0).sum()} of 4 classes" in drawing.alt
    assert "mean over 3 seeds that both have" in drawing.caption


def test_gains_and_losses_differ_without_colour():
    mine = make("mine", 0, fused=[0, 0, 1, 0], target=[0, 0, 1, 1])
    theirs = make("theirs", 0, fused=[0, 1, 1, 1], target=[0, 0, 1, 1])
    drawing = per_class_differences([theirs, mine], "best_val", "mine", "theirs")
    (axes,) = drawing.figure.axes
    assert list(bars(axes).datavalues) == [50, -50]
    gain, loss = bars(axes)
    assert gain.get_hatch() != loss.get_hatch()
    assert whiskers(axes) == [0, 0]  # one seed
    assert drawing.alt == (
        "Recall of mine minus that of theirs in percentage points, by class: highest +50.0 for c0, lowest -50.0 for "
        "c1; higher in 1, lower in 1 of 2 classes."
    )
    assert "mean over 1 seed that both have" in drawing.caption


def test_only_seeds_that_both_have_are_compared():
    mine, theirs = noisy("mine", (0, 1, 2), 0.7), noisy("theirs", (1, 2, 3), 0.4)
    both = per_class_differences(mine + theirs, "best_val", "mine", "theirs")
    common = per_class_differences(mine[1:] + theirs[:2], "best_val", "mine", "theirs")
    assert list(bars(both.figure.axes[0]).datavalues) == list(bars(common.figure.axes[0]).datavalues)
    assert "over 2 seeds" in both.caption
    with pytest.raises(UserError, match="mine and theirs must have a seed in common, found 0 and 1, 2, 3"):
        per_class_differences(mine[:1] + theirs, "best_val", "mine", "theirs")


def test_a_class_without_a_sample_is_left_out():
    records = noisy("mine", (0, 1), 0.7, classes=6) + noisy("theirs", (0, 1), 0.4, classes=6)
    (axes,) = per_class_differences(records, "best_val", "mine", "theirs").figure.axes
    assert sorted(names(axes.get_yticklabels())) == ["c0", "c1", "c2", "c3"]
    image = confusion(records, "best_val", "mine").figure.axes[0].images[0].get_array()
    assert np.ma.getmaskarray(image).all(1).tolist() == [False] * 4 + [True] * 2


def test_of_many_classes_the_two_ends_are_shown():
    target = [i % 60 for i in range(600)]
    labels = [f"a class of a very long name, number {i}" for i in range(60)]
    records = noisy("mine", (0, 1), 0.7, 60, target, names=labels) + noisy(
        "theirs", (0, 1), 0.6, 60, target, names=labels
    )
    everything = per_class_differences(records, "best_val", "mine", "theirs", most=60)
    some = per_class_differences(records, "best_val", "mine", "theirs")
    whole, part = (list(bars(d.figure.axes[0]).datavalues) for d in (everything, some))
    assert len(whole) == 60
    assert part == whole[:20] + whole[-20:]
    assert "20 highest and lowest of 60 classes" in some.caption
    assert "highest and lowest" not in everything.caption
    assert some.alt == everything.alt
    assert_readable(some)


def test_confusion_is_summed_over_seeds_and_normalised_by_row():
    records = noisy("mine", (0, 1, 2), 0.6) + noisy("theirs", (0, 1, 2), 0.1)
    drawing = confusion(records, "best_val", "mine")
    expected = 100 * confusion_matrix(TARGET * 3, [p for r in records[:3] for p in r["fused"]], normalize="true")
    assert not np.allclose(expected, expected.T)
    axes = drawing.figure.axes[0]
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(expected)
    assert axes.images[0].get_clim() == (0, 100)
    assert {t.get_position()[::-1]: t.get_text() for t in axes.texts} == {
        (row, column): f"{expected[row, column]:.0f}" for row in range(4) for column in range(4)
    }
    assert axes.get_xlim() == (-0.5, 3.5)
    assert axes.get_ylim() == (3.5, -0.5)  # the first class is on top, and no cell is cut
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    recall, off = expected.diagonal(), expected - np.diag(expected.diagonal())
    row, column = np.unravel_index(off.argmax(), off.shape)
    assert f"recall from {recall.min():.1f} % (c{recall.argmin()}) to {recall.max():.1f} %" in drawing.alt
    assert f"most frequent confusion: {off.max():.1f} % of c{row} taken for c{column}" in drawing.alt
    assert "summed over 3 seeds" in drawing.caption
    assert_readable(drawing)


def test_confusion_without_a_mistake():
    alt = confusion(noisy("mine", (0,), 1), "best_val", "mine").alt
    assert alt.endswith("recall from 100.0 % (c0) to 100.0 % (c0); most frequent confusion: none.")


def test_confusion_in_grey():
    axes = confusion(noisy("mine", (0,), 0.6), "best_val", "mine").figure.axes[0]
    shades = axes.images[0].get_cmap()(np.linspace(0, 1, 256))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(shades) > 0).all()
    for text in axes.texts:
        column, row = text.get_position()
        under = axes.images[0].to_rgba(axes.images[0].get_array())[int(row), int(column), :3] @ [0.299, 0.587, 0.114]
        assert abs(under - np.dot(to_rgb(text.get_color()), [0.299, 0.587, 0.114])) > 0.4


@pytest.mark.parametrize(
    ("classes", "values", "ticks"), [(12, 144, 12), (13, 0, 13), (30, 0, 30), (31, 0, 16), (101, 0, 26)]
)
def test_confusion_of_many_classes_stays_readable(classes, values, ticks):
    labels = [f"a class of a long name {i}" for i in range(classes)]
    target = [i % classes for i in range(4 * classes)]
    drawing = confusion(noisy("mine", (0,), 0.6, classes, target, names=labels), "best_val", "mine")
    axes = drawing.figure.axes[0]
    assert len(axes.texts) == values
    step = math.ceil(classes / 30)
    for labelled in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert names(labelled) == shortened(labels, 30)[::step]
        assert len(labelled) == ticks
    assert list(axes.get_xticks()) == list(axes.get_yticks()) == list(range(0, classes, step))
    assert axes.get_xlim() == (-0.5, classes - 0.5)
    assert_readable(drawing)


def test_names_are_shortened_in_the_middle():
    assert shortened(["fourteen chars", "long_class_name_07"]) == ["fourteen chars", "long_clas…e_07"]
    assert len(shortened(["x" * 50], 16)[0]) == 16


def test_names_that_end_alike_stay_different():
    """UTD-MHAD has these."""
    names = ["draw circle clockwise", "draw circle counterclockwise", "draw triangle"]
    assert shortened(names, 16) == ["draw … clockwise", "draw …rclockwise", "draw triangle"]
    assert shortened(["a" * 30, "a" * 29], 16) == ["aaaaaaaaaaa…aaaa"] * 2  # nothing tells them apart


def test_seeds_are_counted():
    assert [counted(n) for n in ([1], [3, 3], [5, 2, 3])] == ["1 seed", "3 seeds", "2 to 5 seeds"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda records: confusion(records, "best_val", "mien"),
        lambda records: per_class_differences(records, "best_val", "mien", "mine"),
        lambda records: per_class_differences(records, "best_val", "mine", "mien"),
    ],
)
def test_an_unknown_method_is_refused(draw):
    with pytest.raises(UserError, match=re.escape("must have records here, found 'mien'; did you mean 'mine'?")):
        draw(noisy("mine", (0,), 0.6))


@pytest.mark.parametrize(
    "draw",
    [lambda records: confusion(records, "best_val", "mine"), lambda records: accuracy_intervals(records, "best_val")],
)
def test_runs_with_other_test_samples_are_refused(draw):
    records = [*noisy("mine", (0,), 0.6), *noisy("other", (3,), 0.6, target=TARGET[::-1])]
    with pytest.raises(UserError, match="tested on the same samples, found others in other seed 3"):
        draw(records)


# intervals

LONG = [i % 2 for i in range(400)]


def three():
    """Accuracies around 60, 90 and 89 %: the first is told from the second, the third is not."""
    return [r for name, p in (("low", 0.6), ("high", 0.9), ("near", 0.89)) for r in noisy(name, range(3), p, 2, LONG)]


def accuracies(records, method):
    """Of its seeds in ascending order, in percent."""
    runs = sorted((r for r in records if r["spec"]["method"] == method), key=lambda r: r["spec"]["seed"])
    return [100 * np.equal(r["fused"], LONG).mean() for r in runs]


def test_intervals_means_and_seeds_best_first():
    records = three()
    drawing = accuracy_intervals(records, "best_val")
    (axes,) = drawing.figure.axes
    order = names(axes.get_yticklabels())
    assert set(order) == {"low", "high", "near"}
    means = [np.mean(accuracies(records, m)) for m in order]
    assert means == sorted(means, reverse=True)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    lines = axes.collections[0].get_segments()
    marks = [line for line in axes.lines if len(line.get_xdata())]
    for row, method in enumerate(order):
        hits = np.array([np.equal(r["fused"], LONG) for r in records if r["spec"]["method"] == method])
        low, high = statistics.interval(hits)
        assert lines[row] == pytest.approx(np.array([[100 * low, row], [100 * high, row]]))
        (dot,) = [m for m in marks if m.get_marker() == "o" and np.all(m.get_ydata() == row)]
        assert list(dot.get_xdata()) == [pytest.approx(means[row])]
        (seeds,) = [m for m in marks if m.get_marker() == "|" and row < m.get_ydata()[0] < row + 0.5]
        assert list(seeds.get_xdata()) == pytest.approx(accuracies(records, method))
        told = f"{means[row]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        assert names(axes.texts)[row] == told
        assert f"{method} {told}" in drawing.alt
    assert "mean over 3 seeds, with 95 % intervals over seeds and test samples" in drawing.caption
    assert_readable(drawing)


def marks(drawing):
    """Method -> how the mark of its mean is filled: ``full``, ``left`` or ``none``."""
    (axes,) = drawing.figure.axes
    dots = [m for m in axes.lines if m.get_marker() == "o" and len(m.get_xdata())]
    fills = ["none" if m.get_markerfacecolor() == "white" else m.get_fillstyle() for m in dots]
    return {names(axes.get_yticklabels())[m.get_ydata()[0]]: fill for m, fill in zip(dots, fills, strict=True)}


def test_marks_are_filled_by_the_verdicts():
    rows = {"best": (396, 396, 396), "same": (395, 396, 396), "low": (120, 120, 120), "wild": (390, 80, 300)}
    records = []
    for method, counts in rows.items():
        for seed, right in enumerate(counts):
            fused = [t if i < right else 1 - t for i, t in enumerate(LONG)]
            records.append(make(method, seed, fused=fused, target=LONG))
    drawing = accuracy_intervals(records, "best_val")
    assert marks(drawing) == {"best": "full", "same": "full", "low": "none", "wild": "left"}
    for text in (drawing.alt, drawing.caption):
        assert (
            "Best: best; significantly below it: low; not significantly different: same; too noisy to say: wild" in text
        )
        assert "(over 3 seeds that all have). The majority class has 50.0 %, chance is 50.0 %." in text
    assert "mean, too noisy to say" in names(drawing.figure.legends[0].get_texts())


def test_figure_and_table_give_one_verdict_and_one_interval():
    records = three()
    for r in records:
        r["data"]["groups"] = {"unit": "video", "members": [i // 20 for i in range(len(LONG))]}
    drawing, comparison = accuracy_intervals(records, "best_val"), compare(records, "best_val")
    fills = {"best": "full", CLOSE: "full", NOISY: "left", DIFFERENT: "none"}
    assert marks(drawing) == {row["method"]: fills[row["verdict"]] for row in comparison.table.to_dict("records")}
    hits = np.array([np.equal(r["fused"], LONG) for r in records if r["spec"]["method"] == "near"])
    low, high = statistics.interval(hits, np.arange(len(LONG)) // 20)
    assert f"near {100 * hits.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]" in drawing.alt
    assert "intervals over seeds and videos of test samples" in drawing.caption


def test_methods_with_fewer_seeds_get_no_verdict():
    records = [*noisy("low", (1, 2, 3), 0.3, 2, LONG), *noisy("high", (1, 2, 3), 0.95, 2, LONG)]
    records += noisy("near", (1, 2), 0.94, 2, LONG)
    drawing = accuracy_intervals(records, "best_val")
    assert marks(drawing) == {"high": "full", "near": "full", "low": "none"}
    assert "not compared: near" in drawing.caption
    assert "mean over 2 to 3 seeds" in drawing.caption


def test_pairs_of_seeds_are_matched_whatever_the_order_of_the_records():
    records = three()
    shuffled = [records[i] for i in (2, 4, 6, 0, 3, 8, 1, 5, 7)]
    assert accuracy_intervals(records, "best_val").alt == accuracy_intervals(shuffled, "best_val").alt


def test_without_a_common_seed_or_a_second_method_nothing_is_tested():
    apart = noisy("low", (0, 1), 0.6, 2, LONG) + noisy("high", (2, 3), 0.9, 2, LONG)
    drawing = accuracy_intervals(apart, "best_val")
    assert set(marks(drawing).values()) == {"full"}
    assert "No verdicts: fewer than two methods with the most seeds." in drawing.caption
    alone = accuracy_intervals(apart[:1], "best_val")
    assert "No verdicts" in alone.caption
    assert "mean over 1 seed, with 95 % intervals over test samples." in alone.caption
    assert_readable(alone)


# ranks


def table():
    """Six datasets: a always first, d always last, b and c change places once; average ranks 1, 2.17, 2.83 and 4."""
    rows = [[0.9, 0.8, 0.7, 0.6]] * 5 + [[0.5, 0.3, 0.4, 0.2]]
    return pd.DataFrame(rows, columns=list("abcd"), index=[f"data{i}" for i in range(6)])


def stems(axes):
    """``{x: (where its name stands, how deep)}`` of the lines from the axis to the names."""
    return [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == 3]


def test_critical_difference_diagram():
    drawing = critical_difference_diagram(table())
    (axes,) = drawing.figure.axes
    ranks = {"a": 1, "b": 13 / 6, "c": 17 / 6, "d": 4}
    assert [line[0, 0] for line in stems(axes)] == pytest.approx(list(ranks.values()))
    assert [line[1, 0] for line in stems(axes)] == pytest.approx(list(ranks.values()))
    assert [line[0, 1] for line in stems(axes)] == [0, 0, 0, 0]
    assert [line[2, 0] for line in stems(axes)] == [1, 1, 4, 4]  # the better half is named at the left
    depth = [line[2, 1] for line in stems(axes)]
    assert depth[0] == depth[3] < depth[1] == depth[2]  # so that no line crosses another
    assert names(axes.texts)[1:] == ["a 1.00", "b 2.17", "2.83 c", "4.00 d"]
    for text, line in zip(axes.texts[1:], stems(axes), strict=True):
        assert text.xy == pytest.approx(tuple(line[2]))
    difference = 2.569 * math.sqrt(4 * 5 / (6 * 6))  # 2.569 for four methods: Demsar 2006, table 5
    assert difference == pytest.approx(1.915, abs=1e-3)
    flat = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == 2]
    above = [line for line in flat if line[0, 1] < 0]
    assert [line[:, 0].tolist() for line in above] == [[1, pytest.approx(1 + difference, abs=1e-3)]]
    joined = [line[:, 0].tolist() for line in flat if line[0, 1] > 0]
    assert joined == [pytest.approx([1, 17 / 6]), pytest.approx([13 / 6, 4])]
    assert axes.get_xlim() == (1, 4)
    assert drawing.alt == (
        "Average ranks, 1 is best: a 1.00, b 2.17, c 2.83, d 4.00. Critical difference 1.91; not distinguishable: "
        "a and b and c; b and c and d."
    )
    assert_readable(drawing)


def test_friedmans_test_is_in_the_caption():
    drawing = critical_difference_diagram(table())
    p = stats.friedmanchisquare(*table().to_numpy().T).pvalue
    assert p < 0.001
    assert "Friedman's test finds that the methods differ (p < 0.001)." in drawing.caption
    assert "over 6 datasets (data0, data1, data2, data3, data4, data5)" in drawing.caption
    assert "too few" not in drawing.caption
    frame = pd.DataFrame([[1, 2, 3], [2, 1, 3], [3, 2, 1], [2, 3, 1], [1, 3, 2]], columns=list("abc"))
    p = stats.friedmanchisquare(*frame.to_numpy().T).pvalue
    told = critical_difference_diagram(frame).caption
    assert f"finds no difference (p = {p:.3f}), so no two methods should be called different" in told


def test_few_datasets_are_called_too_few():
    for count, words in ((4, "4 datasets are too few"), (1, "1 dataset is too few")):
        drawing = critical_difference_diagram(table()[:count])
        for text in (drawing.alt, drawing.caption, drawing.figure.get_supxlabel()):
            assert f"{words} for ranks to mean much" in text
        assert_readable(drawing)
    assert "too few" not in critical_difference_diagram(table()[:5]).figure.get_supxlabel()


def test_two_methods_and_one_dataset():
    drawing = critical_difference_diagram(table()[["d", "a"]][:1])
    (axes,) = drawing.figure.axes
    assert names(axes.texts)[1:] == ["a 1.00", "2.00 d"]
    difference = ranks.critical_difference(2, 1)
    assert axes.get_xlim() == (1, 1 + difference)  # longer than the ranks: the axis makes room
    assert "Friedman's test needs three methods and two datasets." in drawing.caption


def test_ranks_of_many_methods_stay_readable():
    columns = ["first_of_a_very_long_name", *(f"method_{i}" for i in range(15)), "last_of_a_very_long_name"]
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(12, 17)) + np.arange(17) / 3, columns=columns)
    assert_readable(critical_difference_diagram(frame))
    equal = pd.DataFrame(0.5, index=range(3), columns=columns)
    assert_readable(critical_difference_diagram(equal))


@pytest.mark.parametrize("frame", [table()[["a"]], table()[:0], table().mask(table() == 0.2)])
def test_ranks_need_a_full_table(frame):
    with pytest.raises(UserError, match="ranks need"):
        critical_difference_diagram(frame)


# all

DRAWERS = {
    "modalities": lambda: joint_against_alone(problem(), "best_val", "single"),
    "differences": lambda: per_class_differences(three(), "best_val", "high", "low"),
    "confusion": lambda: confusion(three(), "best_val", "high"),
    "intervals": lambda: accuracy_intervals(three(), "best_val"),
    "ranks": lambda: critical_difference_diagram(table()),
}


@pytest.mark.parametrize("name", DRAWERS)
def test_equal_records_give_equal_files(tmp_path, name):
    before = dict(matplotlib.rcParams)
    first, second = (DRAWERS[name]().save(tmp_path / folder, name) for folder in "ab")
    assert dict(matplotlib.rcParams) == before
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("name", DRAWERS)
def test_figures_are_readable_and_in_words(name):
    drawing = DRAWERS[name]()
    assert_readable(drawing)
    for text in (drawing.alt, drawing.caption):
        assert text.endswith(".")
        assert "nan" not in text


def test_the_reading_decides_the_numbers():
    assert "high 50.0 [" in accuracy_intervals(three(), "last").alt
    assert "recall from 0.0 % (c1) to 100.0 % (c0)" in confusion(three(), "last", "high").alt
    (axes,) = per_class_differences(three(), "last", "high", "low").figure.axes
    assert list(bars(axes).datavalues) == [0, 0]
    with pytest.raises(UserError, match="best_test needs runs with test evaluated each epoch"):
        accuracy_intervals(three(), "best_test")
