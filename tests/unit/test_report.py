"""Comparison tables and their figure, on records made by hand: every expected number can be checked in one's head."""

import copy
import csv
import itertools
import math
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.transforms import Bbox
from PIL import Image

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.metrics.statistics import CLOSE, DIFFERENT, NOISY, against_best
from balancebench_udi.report import rendering
from balancebench_udi.report.comparison import compare, write
from balancebench_udi.report.figures import imbalance, style
from balancebench_udi.report.figures.imbalance import accuracy_against_imbalance
from tests.helpers import written_spec

GOLDEN = Path(__file__).parent / "golden"
SPEC = written_spec(
    dataset_version=2,
    dataset_options={"noise": 0.5, "shuffle": True},
    encoders={"audio": {"name": "mlp", "width": 8}, "visual": {"name": "digit"}},
)
MACHINE = {"device_type": "cpu", "device": "Some CPU", "threads": 1, "torch": "2.0"}
PUBLISHED = (
    {"label": "OGM_x", "accuracy": 61.9, "source": "Peng et al., CVPR 2022 | table 1", "protocol": "100 % of the data"},
    {"label": "PMR", "accuracy": None, "source": "Fan et al., CVPR 2023", "protocol": "no number given"},
)


def make(method, seed, accuracy, scores=None, *, spec=None, **changes):
    """One record; ``changes`` are ``phases`` (cpu seconds, wall seconds, reused from), passes, machine and ``right``.

    The last is whether each test sample was right; True: the first of eight; without it there are no predictions.
    """
    test = {"accuracy": accuracy, "macro_f1": accuracy / 2, "loss": 1.0}
    test |= {"masked/audio": 0.5, "masked/visual": 0.25, "masked/audio+visual": accuracy, "masked/none": 0.25}
    test |= {"shapley/audio": 0.25, "shapley/visual": -0.125, "imbalance": 0.375, "imbalance_relative": 1.0}
    test |= scores or {}
    phases = changes.get("phases", [(2.0, 9.0, None)])
    right = changes.get("right")
    right = np.arange(8) < 8 * accuracy if right is True else right
    kept = {} if right is None else {"predictions": {"fused": pack(torch.from_numpy(right).long())}}
    return {
        "key": f"{method}-{seed}",
        "cell": f"cell-{method}",
        "spec": {**copy.deepcopy(SPEC), "method": method, "seed": seed, **(spec or {})},
        "result": {
            "readings": {
                "best_val": {"test": test, **kept},
                "last": {"test": {**test, "accuracy": accuracy - 0.125}},
                **changes.get("readings", {}),
            },
            "test_target": pack(torch.ones(8 if right is None else len(right)).long()),
            "modalities": ["audio", "visual"],
            "passes": changes.get(
                "passes", {"forward": {"audio": 100, "visual": 100}, "backward": {"audio": 100, "visual": 100}}
            ),
        },
        "cost": {"phases": [{"cpu_seconds": c, "seconds": w, "reused_from": r} for c, w, r in phases]},
        "data": {"classes": ["x", "y", "z"], "facts": {"generated": True, "generated_part": "all of it"}},
        "machine": {**MACHINE, **changes.get("machine", {})},
    }


COSTLY = {
    "phases": [(1.5, 1.0, "another-run"), (1.5, 1.0, None)],
    "passes": {"forward": {"audio": 250, "visual": 200}, "backward": {"audio": 125, "visual": 100}},
}


def joint(**changes):
    """Accuracy 0.5, 0.625 and 0.75: mean 0.625, standard deviation exactly 0.125."""
    shares = {"share/audio": 0.75, "share/visual": 0.5}
    return [make("joint", seed, 0.5 + 0.125 * seed, shares, **changes) for seed in range(3)]


def other(**changes):
    """Two seeds, own heads instead of shares, 1.5 times the cost of :func:`joint`."""
    heads = {"alone/audio": 0.75, "alone/visual": 0.625, "masked/visual": 0.5}
    return [make("ogm_ge", seed, 0.75, heads, **{**COSTLY, **changes}) for seed in (0, 2)]


def close():
    """Three seeds, and an accuracy that is below that of :func:`joint` by chance."""
    return [make("near", seed, accuracy, right=True) for seed, accuracy in enumerate((0.5, 0.625, 0.625))]


def drawn(share, seeds=(0, 1, 2), samples=64):
    """``[S, N]``: right on a random ``share`` of the samples."""
    return np.stack([np.random.default_rng([seed, round(100 * share)]).random(samples) < share for seed in seeds])


def noisy(method, share, seeds=(0, 1, 2), samples=64):
    """Runs that are right as :func:`drawn`."""
    right = drawn(share, seeds, samples)
    return [make(method, seed, hits.mean(), right=hits) for seed, hits in zip(seeds, right, strict=True)]


def cells(comparison, method):
    """The row of ``method`` in the Markdown table, head -> cell."""
    lines = [line.strip("| ").split(" | ") for line in markdown(comparison).splitlines() if line.startswith("| ")]
    return dict(zip(lines[0], next(line for line in lines if line[0] == method), strict=True))


def markdown(comparison):
    return rendering.markdown(comparison)


@pytest.mark.parametrize("suffix", ["md", "csv", "tex"])
def test_golden_table(tmp_path, suffix):
    comparison = compare(joint(right=True) + other() + close(), published=PUBLISHED, wanted=3, reference="joint")
    paths = write(comparison, tmp_path / "new" / "folder")
    assert [p.name for p in paths] == ["comparison.md", "comparison.csv", "comparison.tex"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)  # no temporary file is left
    path = next(p for p in paths if p.suffix == f".{suffix}")
    assert path.read_bytes() == (GOLDEN / path.name).read_bytes()


def test_golden_text():
    comparison = compare(joint() + other(), published=PUBLISHED, wanted=3, reference="joint")
    assert comparison.text().splitlines() == [
        "toy, protocol quick v1",
        "method    n     accuracy  macro-F1   audio  visual  imbalance  passes  seconds",
        "joint   3/3  62.5 ± 12.5      31.2  75.0 s  50.0 s       37.5    1.00     1.00",
        "ogm_ge  2/3   75.0 ± 0.0      37.5  75.0 a  62.5 a       37.5    1.50     1.50",
        "majority class 100.0, chance 33.3; a: own head; s: share of the fused logits; passes and seconds",
        "relative to joint",
        "Every phase of a run is read at its epoch with the best validation accuracy; the test split had no",
        "part in it.",
        "- Nothing is compared: the seeds of joint are still to train with ogm_ge.",
    ]


def test_golden_text_with_marks():
    comparison = compare(joint(right=True) + other() + close(), published=PUBLISHED, wanted=3, reference="joint")
    assert comparison.text().splitlines() == [
        "toy, protocol quick v1",
        "method    n        accuracy  macro-F1   audio  visual  imbalance  passes  seconds",
        "joint   3/3  *62.5 ± 12.5        31.2  75.0 s  50.0 s       37.5    1.00     1.00",
        "ogm_ge  2/3    75.0 ± 0.0        37.5  75.0 a  62.5 a       37.5    1.50     1.50",
        "near    3/3    58.3 ± 7.2 ‡      29.2  50.0 m  25.0 m       37.5    1.00     1.00",
        "*: best accuracy; †: not significantly different; ‡: too noisy to say; majority class 100.0, chance",
        "33.3; a: own head; s: share of the fused logits; m: the others masked; passes and seconds relative",
        "to joint",
        "Every phase of a run is read at its epoch with the best validation accuracy; the test split had no",
        "part in it.",
        "- On toy, joint has the highest mean (62.5 %); too noisy to say: near. Not compared, with fewer or",
        "  other seeds: ogm_ge.",
        "- Not significantly different is not the same as equal; and nothing here says how the rows would",
        "  compare on other data, under other protocols or with longer training.",
    ]


def test_the_verdicts_are_marked_in_every_rendering(tmp_path):
    right = {"best": drawn(0.9, samples=2000), "far": drawn(0.5, samples=2000)}
    right["near"] = right["best"].copy()
    right["near"][:, np.flatnonzero(right["best"].all(0))[:4]] = False
    right["wild"] = right["best"] & (np.arange(2000) >= np.array([[900], [0], [300]]))
    records = [make(m, seed, hits.mean(), right=hits) for m, rows in right.items() for seed, hits in enumerate(rows)]
    expected = against_best(right, floor=1)
    kinds = {method: found.kind for method, found in expected.verdicts.items()}
    assert (expected.best, kinds) == ("best", {"far": DIFFERENT, "near": CLOSE, "wild": NOISY})
    comparison = compare(records, published=PUBLISHED)
    shown = {method: cells(comparison, method)["accuracy"] for method in right}
    assert re.fullmatch(r"\*\*[\d.]+\*\* ± [\d.]+", shown["best"])
    assert re.fullmatch(r"[\d.]+ ± [\d.]+ †", shown["near"])
    assert re.fullmatch(r"[\d.]+ ± [\d.]+ ‡", shown["wild"])
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", shown["far"])
    assert not any("†" in cell for name, cell in cells(comparison, "near").items() if name != "accuracy")
    paths = write(comparison, tmp_path)
    frame = pd.read_csv(paths[1]).set_index("method")
    assert frame["verdict"].to_dict() == {"best": "best", **kinds, "OGM_x": pytest.approx(math.nan, nan_ok=True)} | {
        "PMR": pytest.approx(math.nan, nan_ok=True)
    }
    assert math.isnan(frame.loc["best", "p_adjusted"])
    for method, found in expected.verdicts.items():
        assert frame.loc[method, "p_adjusted"] == pytest.approx(found.p)
    tex = paths[2].read_text()
    assert (tex.count(r"$^\dagger$"), tex.count(r"$^\ddagger$")) == (1, 1)
    assert not set("†‡±×") & set(tex)
    lines = {line.split()[0]: line for line in comparison.text().splitlines()}
    assert re.search(r" \*[\d.]+ ± ", lines["best"])
    assert " † " in lines["near"]
    assert " ‡ " in lines["wild"]
    assert not set("*†‡") & set(lines["far"])


@pytest.mark.parametrize("rendered", [rendering.markdown, rendering.latex, lambda made: made.text()])
def test_what_a_table_shows_and_what_it_does_not_is_said(rendered):
    said = " ".join(
        rendered(compare([*noisy("best", 0.9, samples=500), *noisy("far", 0.3, samples=500)]))
        .replace("\\%", "%")
        .split()
    )
    assert "On toy, best has the highest mean (" in said
    assert "significantly above far (" in said
    assert "Not significantly different is not the same as equal; and nothing here says" in said


def test_one_seed_speaks_of_these_runs_only():
    comparison = compare([*noisy("best", 0.9, [4]), *noisy("far", 0.5, [4])])
    assert comparison.findings[0].endswith("; this is of one run of each, training again may change it.")
    assert "**" in cells(comparison, "best")["accuracy"]


def test_methods_with_fewer_seeds_are_neither_compared_nor_best():
    comparison = compare([*noisy("best", 0.8), *noisy("near", 0.5), *noisy("high", 0.99, [0, 2])])
    assert cells(comparison, "best")["accuracy"].startswith("**")
    assert "*" not in cells(comparison, "high")["accuracy"] + cells(comparison, "high")["macro-F1"]
    assert comparison.findings[0].endswith("Not compared, with fewer or other seeds: high.")
    assert pd.isna(comparison.table.set_index("method").loc["high", "verdict"])
    assert "highest mean of a column among the methods with the most seeds," in comparison.caption[2]
    assert "among" not in compare([*noisy("best", 0.8), *noisy("near", 0.5)]).caption[2]


@pytest.mark.parametrize(
    "records",
    [
        noisy("only", 0.9),
        joint() + [make("older", seed, 0.5) for seed in range(3)],
        joint(right=True) + [make("older", seed, 0.5) for seed in range(3)],
        noisy("one", 1.0, [0], samples=1) + noisy("two", 0.0, [0], samples=1),
    ],
    ids=["one method", "no predictions", "some without predictions", "one sample of one seed"],
)
def test_where_there_is_nothing_to_test_nothing_is_marked(tmp_path, records):
    comparison = compare(records)
    assert (comparison.contest, comparison.findings) == (None, ())
    for path in write(comparison, tmp_path):
        text = path.read_text()
        assert not re.search("†|‡|dagger|significant", text.replace("no claim of significance", ""))
    assert not re.search("†|‡|significant", comparison.text())
    assert comparison.table["verdict"].isna().all()
    assert comparison.table["p_adjusted"].isna().all()


@pytest.mark.parametrize("seeds", [[0, 1], [2, 3], [2, 3, 4]])
def test_a_method_alone_with_its_seeds_is_no_winner_and_that_is_said(seeds):
    """As after an interruption."""
    comparison = compare([*noisy("one", 0.5), *noisy("two", 0.9, seeds)])
    assert comparison.contest is None
    assert comparison.findings == ("Nothing is compared: the seeds of one are still to train with two.",)
    assert "**" not in "".join(cells(comparison, "one").values()) + "".join(cells(comparison, "two").values())
    assert "among the methods with the most seeds" in comparison.caption[2]
    assert comparison.findings[0] in " ".join(comparison.text().split())


def test_of_equally_many_seeds_those_count_that_most_methods_have():
    comparison = compare([*noisy("one", 0.9), *noisy("two", 0.5, [2, 3, 4]), *noisy("three", 0.6, [2, 3, 4])])
    assert set(comparison.fullest) == {"two", "three"}
    assert "Not compared, with fewer or other seeds: one." in comparison.findings[0]


def test_same_records_in_another_order_give_the_same_bytes(tmp_path):
    one, two = joint(), other()
    write(compare(one + two, reference="joint"), tmp_path / "a")
    write(compare([one[2], two[1], one[0], two[0], one[1]], reference="joint"), tmp_path / "b")
    for suffix in ("md", "csv", "tex"):
        assert (tmp_path / f"a/comparison.{suffix}").read_bytes() == (tmp_path / f"b/comparison.{suffix}").read_bytes()


def test_methods_come_in_the_order_of_their_first_record():
    assert list(compare(other() + joint()).table["method"]) == ["ogm_ge", "joint"]


def test_mean_and_sample_standard_deviation():
    row = compare(joint()).table.iloc[0]
    assert row["accuracy"] == 0.625
    assert row["accuracy_sd"] == 0.125  # with N in the denominator it were 0.102
    assert cells(compare(joint()), "joint")["accuracy"] == "62.5 ± 12.5"


def test_one_seed_has_no_standard_deviation():
    comparison = compare(joint()[:1], wanted=3)
    assert math.isnan(comparison.table["accuracy_sd"][0])
    assert cells(comparison, "joint")["accuracy"] == "50.0"
    assert cells(comparison, "joint")["n"] == "1 of 3"
    assert "50.0 " in comparison.text()


def test_seeds_that_are_missing_are_named():
    comparison = compare(joint() + other(), wanted=5)
    assert cells(comparison, "ogm_ge")["n"] == "2 of 5"
    assert "over n of 5 seeds (0, 1, 2; ogm_ge has 0, 2)" in comparison.caption[2]


def test_scores_that_a_method_lacks_are_dashes():
    comparison = compare(joint() + other())
    assert cells(comparison, "joint")["alone audio"] == "-"
    assert cells(comparison, "ogm_ge")["share visual"] == "-"
    assert cells(comparison, "ogm_ge")["alone visual"] == "62.5 ± 0.0"  # alone in its column: nothing to be best of


def test_best_of_each_accuracy_column_is_bold_ties_too():
    tied = [make("tied", seed, 0.7499, {"imbalance": 0.5}) for seed in (0, 2)]  # prints as 75.0
    comparison = compare(joint()[::2] + other() + tied)
    assert cells(comparison, "ogm_ge")["accuracy"] == "**75.0** ± 0.0"
    assert cells(comparison, "tied")["accuracy"] == "**75.0** ± 0.0"
    assert "**" not in cells(comparison, "joint")["accuracy"]
    assert "**" not in cells(comparison, "tied")["imbalance absolute"]


def test_negative_contributions_keep_their_sign_and_zero_has_none():
    comparison = compare([make("joint", 0, 0.5, {"shapley/audio": -1e-9})])
    assert cells(comparison, "joint")["Shapley visual"] == "-12.5"
    assert cells(comparison, "joint")["Shapley audio"] == "0.0"


def test_reading_decides_the_numbers():
    assert compare(joint(), "last").table["accuracy"][0] == 0.5
    assert "last epoch" in compare(joint(), "last").caption[3]


def test_best_test_says_so_in_every_rendering(tmp_path):
    reading = {"best_test": {"test": joint()[0]["result"]["readings"]["best_val"]["test"]}}
    comparison = compare([make("joint", 0, 0.5, readings=reading)], "best_test")
    for path in write(comparison, tmp_path):
        assert (
            "best_test" in path.read_text()
            if path.suffix == ".csv"
            else "selected on the test split" in path.read_text()
        )
    assert "selected on the test split" in comparison.text()


def test_best_test_needs_runs_that_have_it():
    with pytest.raises(
        UserError, match="best_test needs runs with test evaluated each epoch, found none in joint seed 0"
    ):
        compare(joint(), "best_test")


def test_costs_relative_to_the_reference():
    table = compare(joint() + other(), reference="joint").table.set_index("method")
    assert table["passes"].tolist() == [600, 900]  # 200 + 2 * 200, 450 + 2 * 225
    assert table["passes_relative"].tolist() == [1, 1.5]
    assert table["seconds_relative"].tolist() == [1, 1.5]  # of the CPU: (1.5 + 1.5) / 2
    assert table["spent_relative"].tolist() == [1, 0.75]  # 1.5 / 2: the reused phase is not paid again


def test_a_gpu_is_timed_by_the_wall_clock():
    gpu = {"machine": {"device_type": "cuda", "device": "Some GPU"}}
    comparison = compare(joint(**gpu) + other(**gpu), reference="joint")
    assert comparison.table["seconds_relative"].tolist() == [1, 2 / 9]
    assert "elapsed seconds" in comparison.notes[-2]
    assert "CPU seconds" in compare(joint(), reference="joint").notes[-2]


def test_seconds_of_different_machines_are_not_compared():
    comparison = compare(joint() + other(machine={"device": "A faster CPU"}), reference="joint")
    assert cells(comparison, "ogm_ge")["seconds / joint"] == "-"
    assert cells(comparison, "ogm_ge")["passes / joint"] == "1.50"
    assert "Not on the machine of joint, so without seconds: ogm_ge" in comparison.notes[-1]


@pytest.mark.parametrize("reference", [None, "absent"])
def test_without_the_reference_there_are_no_ratios(reference):
    comparison = compare(joint() + other(), reference=reference)
    assert cells(comparison, "ogm_ge")["passes"] == "-"
    assert cells(comparison, "ogm_ge")["seconds"] == "-"
    assert "which is not in the table" in comparison.notes[-2]
    assert comparison.table["passes"].tolist() == [600, 900]


def test_records_of_a_method_may_differ_in_the_seed_only():
    mixed = [*joint(), make("joint", 3, 0.5, spec={"method_options": {"alpha": 0.8}, "method_version": 2})]
    with pytest.raises(
        UserError, match=re.escape("method_version 1 and 2, method_options.alpha absent and 0.8 (seeds 0 and 3)")
    ):
        compare(mixed)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("protocol_version", 2, "protocol_version 1 and 2"),
        ("dataset", "tic", "dataset toy and tic"),
        ("dataset_options", {"noise": 0.25, "shuffle": True}, "dataset_options.noise 0.5 and 0.25"),
        ("fingerprint", "f" * 12, "fingerprint 0123456789ab and ffffffffffff"),
        ("encoders", {**SPEC["encoders"], "visual": {"name": "mlp"}}, "encoders.visual.name digit and mlp"),
        ("fusion", "sum", "fusion concat and sum"),
        ("optimizer", {"name": "sgd", "lr": 0.2}, "optimizer.lr 0.1 and 0.2"),
        ("schedule", {"name": "step"}, "schedule.name constant and step"),
        ("epochs", 5, "epochs 4 and 5"),
        ("batch_size", 64, "batch_size 32 and 64"),
        ("precision", "bf16", "precision fp32 and bf16"),
    ],
)
def test_methods_of_a_table_share_one_protocol(field, value, named):
    with pytest.raises(UserError, match=re.escape(f"found {named} (joint and ogm_ge)")):
        compare([*joint(), make("ogm_ge", 0, 0.5, spec={field: value})])


def test_what_belongs_to_the_method_may_differ_between_methods():
    free = {"method_version": 7, "method_options": {"alpha": 1}, "test_each_epoch": True}
    assert len(compare([*joint(), make("ogm_ge", 0, 0.5, spec=free)]).table) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"records": []}, "needs at least one record"),
        ({"select": "best"}, "select must be one of last, best_val, best_test, found 'best'"),
        ({"records": [*joint(), make("joint", 1, 0.5)]}, "found two records of joint seed 1"),
        ({"wanted": 2}, "found 2 < 3"),
        ({"published": [{"label": "x", "accuracy": 1.0, "source": "y"}]}, "found no protocol"),
        ({"published": [{**PUBLISHED[0], "accuracy": 619}]}, "in percent, 0 to 100, found 619"),
        ({"published": [{**PUBLISHED[0], "accuracy": "61.9"}]}, "in percent, 0 to 100, found '61.9'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compare(**{"records": joint(), **arguments})


def test_published_numbers_stay_out_of_ours(tmp_path):
    alone, beside = (compare(joint(), published=rows) for rows in ((), PUBLISHED))
    pd.testing.assert_frame_equal(alone.table, beside.table)
    assert "Published" not in markdown(alone)
    frame = pd.read_csv(write(beside, tmp_path)[1])
    assert frame["published"].tolist() == [False, True, True]
    assert frame["accuracy"][1] == pytest.approx(0.619)
    assert math.isnan(frame["accuracy"][2])
    assert frame["source"][2] == "Fan et al., CVPR 2023"


def test_csv_holds_full_precision(tmp_path):
    records = [make("joint", seed, accuracy) for seed, accuracy in enumerate((0.1, 1 / 3, 0.7))]
    comparison = compare(records)
    (row,) = csv.DictReader(write(comparison, tmp_path)[1].read_text().splitlines())
    assert (
        float(row["accuracy"]) == comparison.table["accuracy"][0] == pytest.approx((0.1 + 1 / 3 + 0.7) / 3, abs=1e-15)
    )
    assert float(row["accuracy_sd"]) == comparison.table["accuracy_sd"][0]


def test_latex_escapes_what_it_must(tmp_path):
    rows = [{"label": "50%_a&b", "accuracy": 1, "source": "~x^2 {y} #1 $", "protocol": "a\\b"}]
    text = write(compare(joint(), published=rows), tmp_path)[2].read_text()
    assert r"50\%\_a\&b" in text
    assert r"\textasciitilde{}x\textasciicircum{}2 \{y\} \#1 \$" in text
    assert r"a\textbackslash{}b" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_text_of_three_modalities_fits_a_terminal():
    close = [True] * 63 + [False]
    records = [
        make(name, seed, 0.0, right=np.array(close[seed and i :] + close[: seed and i]))
        for i, name in enumerate(("a_method_of_a_long_name", "joint"))
        for seed in range(10)
    ]
    names = ("spectrogram", "visual", "language")
    for record in records:
        scores = {"accuracy": 1.0, "macro_f1": 1.0, "imbalance": 1.0, "imbalance_relative": 1.0}
        scores |= {f"{kind}/{m}": 1.0 for kind in ("masked", "shapley") for m in names}
        record["spec"]["encoders"] = {m: {"name": "mlp"} for m in names}
        if record["spec"]["method"] == "joint":
            scores["accuracy"] = 0.8 + 0.2 * (record["spec"]["seed"] % 2)
        kept = record["result"]["readings"]["best_val"]["predictions"]
        record["result"] |= {"modalities": list(names), "readings": {"best_val": {"test": scores, "predictions": kept}}}
    text = compare(records, wanted=10, reference="joint").text()
    assert max(map(len, text.splitlines())) <= 100
    assert " *100.0 ± 0.0 " in text
    assert " 90.0 ± 10.5 ‡ " in text
    assert "100.0 m" in text
    assert "m: the others masked" in text


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="a file lies where a folder should be"):
        write(compare(joint()), tmp_path / "taken")


NAMES = ["joint", "uniform", "unimodal", "ensemble", "ogm", "ogm_ge", "agm", "pmr", "mmpareto", "udi"]


def crowded(suffix=""):
    """Ten methods: seven within one point of each other, two apart, and the best far away."""
    places = [(0.300 + 0.002 * (i % 3), 0.750 + 0.001 * i) for i in range(7)] + [(0.2, 0.7), (0.15, 0.76), (0.05, 0.9)]
    return compare(
        [
            make(name + suffix, seed, accuracy + 0.004 * seed, {"imbalance": imbalance - 0.004 * seed})
            for name, (imbalance, accuracy) in zip(NAMES, places, strict=True)
            for seed in range(3)
        ]
    )


def test_figure_files_are_valid_and_always_the_same(tmp_path):
    before = dict(matplotlib.rcParams)
    first = accuracy_against_imbalance(crowded()).save(tmp_path / "a", "place")
    second = accuracy_against_imbalance(crowded()).save(tmp_path / "b", "place")
    assert [p.name for p in first] == ["place.svg", "place.png"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert dict(matplotlib.rcParams) == before
    assert sorted((tmp_path / "a").iterdir()) == sorted(first)

    svg = first[0].read_text()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert "dc:date" not in svg
    for label in [*NAMES, "toy, protocol quick v1, best_val", "test accuracy (%)"]:
        assert f"<!-- {label} -->" in svg
    with Image.open(first[1]) as image:
        image.verify()
        assert image.size == (960, 675)


def clustered():
    """Nine methods strewn over 1.2 points of accuracy, and one far away."""
    draw = random.Random(6).random
    spots = [(0.95, 0.05), *((0.7 + 0.012 * draw(), 0.3 + 0.02 * draw()) for _ in NAMES[1:])]
    return compare([make(name, 0, y, {"imbalance": x}) for name, (y, x) in zip(NAMES, spots, strict=True)])


@pytest.mark.parametrize("comparison", [crowded(), crowded("_of_a_long_name"), clustered()], ids=["", "long", "near"])
def test_figure_labels_overlap_neither_each_other_nor_points_nor_the_edge(comparison):
    drawing = accuracy_against_imbalance(comparison)
    with style.styled():
        axes = drawing.figure.axes[0]
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert list(boxes) == list(comparison.table["method"])
    for (a, box), (b, another) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(another), f"{a} and {b} overlap"
    places = axes.transData.transform(comparison.table[["imbalance", "accuracy"]].to_numpy() * 100)
    size = 7 * style.DPI / 72  # of a marker
    marks = [Bbox.from_bounds(x - size / 2, y - size / 2, size, size) for x, y in places]
    for name, box in boxes.items():
        assert not any(box.overlaps(mark) for mark in marks), f"{name} hides a point"
        assert axes.bbox.contains(box.x0, box.y0), f"{name} leaves the figure"
        assert axes.bbox.contains(box.x1, box.y1), f"{name} leaves the figure"


def test_figure_of_one_run_and_of_equal_points(tmp_path):
    accuracy_against_imbalance(compare([make("joint", 0, 0.5)])).save(tmp_path, "one")
    equal = compare([make(name, 0, 0.5) for name in NAMES])
    assert all(path.stat().st_size > 1000 for path in accuracy_against_imbalance(equal).save(tmp_path, "equal"))


def test_pareto_front():
    points = pd.DataFrame(
        {"imbalance": [30, 10, 20, 20, 5, 5], "accuracy": [90, 70, 80, 75, 50, 50]}, index=list("abcdef")
    )
    assert list(imbalance._front(points).index) == ["e", "b", "c", "a"]  # d is beaten by c, f is no better than e
    points.loc["g"] = (1, 95)
    assert list(imbalance._front(points).index) == ["g"]


def test_accuracy_at_equal_budget_is_read_where_records_have_curves():
    def record(method, seed, accuracies, count):
        made = make(method, seed, 0.5)
        made["result"]["curves"] = [
            {"phase": "training", "epoch": e, "val": {"accuracy": a}} for e, a in enumerate(accuracies)
        ]
        each = {"audio": count, "visual": 0}
        made["result"]["passes"] = {"forward": each, "backward": {"audio": 0, "visual": 0}}
        made["cost"]["phases"] = [{**made["cost"]["phases"][0], "phase": "training", **made["result"]["passes"]}]
        made["result"]["readings"]["best_val"]["val"] = {"accuracy": max(accuracies)}
        return made

    records = [record("joint", s, [0.25, 0.5], 100) for s in (0, 1)]
    records += [record("long", s, [0.125, 0.25 + s / 8, 0.25, 0.75], 400) for s in (0, 1)]
    records += [record("coarse", s, [0.625], 200) for s in (0, 1)]
    table = compare(records, reference="joint").table.set_index("method")
    names = ["budget_1x", "budget_2x", "budget_3x"]
    assert table.loc["joint", names].tolist() == [0.5, 0.5, 0.5]
    assert table.loc["long", names].tolist() == [0.125, 0.3125, 0.3125]
    assert math.isnan(table.loc["coarse", "budget_1x"])
    assert table.loc["coarse", names[1:]].tolist() == [0.625, 0.625]
    shown = rendering.markdown(compare(records, reference="joint"))
    assert "| validation after 1× | validation after 2× | validation after 3× |" in shown
    assert "50.0 | 50.0 | 50.0 |" in shown
    assert "budget_1x" not in compare(records).table
    assert "budget_1x" not in compare(joint(), reference="joint").table


def test_probes_top_5_and_calibration_are_shown_where_some_record_has_them():
    found = {"probe/audio": 0.75, "probe/visual": 0.5, "ece": 0.125, "top5": 0.875}
    made = compare([make("new", 0, 0.5, found), make("old", 0, 0.5)])
    assert made.table.set_index("method").loc["new", list(found)].to_dict() == found
    shown = rendering.markdown(made)
    assert "| top-5 | calibration error |" in shown
    assert "| probe audio | probe visual |" in shown
    assert "87.5" in shown
    assert "- probe: accuracy of a linear classifier" in shown
    assert "probe" not in rendering.markdown(compare([make("old", 0, 0.5)]))
