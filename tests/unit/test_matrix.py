"""Tables of rows x columns, on records made by hand: every expected number can be checked in one's head."""

import io
import itertools
import math
import random
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.metrics.ranks import critical_difference, friedman
from balancebench_udi.metrics.statistics import DIFFERENT, NOISY, against_best, interval
from balancebench_udi.report import matrix_rendering as rendering
from balancebench_udi.report import tidy
from balancebench_udi.report.matrix import FORMATS, Cell, build, write
from tests.helpers import written_spec

SAMPLES = 64
SPEC = written_spec(encoders={"visual": {"name": "mlp"}, "audio": {"name": "mlp"}})


def record(method, seed, right, scores=None, **spec):
    """A run that is right on the samples ``right``; two classes, visual before audio in the order of fusion."""
    right = np.asarray(right, dtype=bool)
    target = torch.arange(len(right)) % 2
    fused = torch.where(torch.from_numpy(right), target, 1 - target)
    test = {
        "accuracy": float(right.mean()),
        "macro_f1": 0.5,
        "alone/audio": 0.25,
        "alone/visual": 0.75,
        "masked/visual+audio": float(right.mean()),
        "masked/visual": 0.5,
        "masked/audio": 0.25,
        **(scores or {}),
    }
    wrong = pack(1 - fused)
    ones = {"audio": 1_000_000, "visual": 500_000}
    return {
        "key": f"{method}-{seed}",
        "cell": f"cell-{method}",
        "spec": {**SPEC, "method": method, "seed": seed, **spec},
        "result": {
            "readings": {
                "best_val": {
                    "epochs": [1],
                    "val": {"accuracy": 0.5, "loss": 1.0},
                    "test": test,
                    "predictions": {"fused": pack(fused), "masked/visual": pack(fused), "masked/audio": wrong},
                }
            },
            "test_target": pack(target),
            "modalities": ["visual", "audio"],
            "passes": {"forward": ones, "backward": ones},
            "parameters": 250_000,
        },
        "cost": {
            **{"phases": [], "flops": 3e12, "flops_per_sample": {"audio": 2e6, "visual": 5e5}, "wall_seconds": 2.5},
            **{"peak_memory_bytes": 4e8, "peak_memory_of": "run"},
        },
        "data": {"classes": ["x", "y"], "facts": {}},
        "machine": {"device_type": "cpu", "device": "Some CPU", "threads": 1, "torch": "2.0", "commit": "abc"},
    }


def first(count):
    """Right on the first ``count`` samples."""
    return np.arange(SAMPLES) < count


def noisy(share, seed):
    """Right on a random ``share`` of the samples."""
    return np.random.default_rng(seed).random(SAMPLES) < share


def cell(method, counts=(32, 40, 48), wanted=3, **more):
    """A cell of runs that are right on the first ``counts`` samples, one for each seed."""
    records = [record(method, seed, first(count), **more.pop("scores", {})) for seed, count in enumerate(counts)]
    return Cell(tuple(records), wanted, **more)


def table(cells, **more):
    """The matrix of ``{(row, column): cell}`` with every name in the order in which it comes."""
    rows = dict.fromkeys((row for row, _ in cells), "")
    columns = dict.fromkeys((column for _, column in cells), "")
    return build("A table", more.pop("rows", rows), more.pop("columns", columns), cells, **more)


def claim(accuracy=61.9, **more):
    """A published number."""
    given = {"modality": None, "sd": None, "source": "Peng et al. <2022> | Table_1", "protocol": "100 % of it"}
    return SimpleNamespace(accuracy=accuracy, **{**given, "select": "best_test", "confidence": "paper", **more})


def grid(matrix):
    """The Markdown table: row -> head -> cell."""
    lines = [line[1:-1].split(" | ") for line in rendering.markdown(matrix).splitlines() if line.startswith("| ")]
    heads = [head.strip() for head in lines[0]]
    return {line[0].strip(): dict(zip(heads[1:], [c.strip() for c in line[1:]], strict=True)) for line in lines[1:]}


def sentence(matrix, start):
    """The only finding or note that begins so."""
    (found,) = [text for text in (*matrix.findings, *matrix.notes) if text.startswith(start)]
    return found


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_a_cell_is_the_mean_over_its_seeds():
    made = table({("joint", "toy"): cell("joint", wanted=5)})
    number = made.numbers["joint", "toy", "accuracy"]
    assert (number.mean, number.sd, number.n, number.wanted) == (0.625, 0.125, 3, 5)
    right = np.stack([first(count) for count in (32, 40, 48)])
    assert (number.low, number.high) == interval(right)
    assert grid(made)["joint"]["toy"] == "62.5 ± 12.5 3/5"


def test_one_run_has_no_deviation_and_no_rival_is_not_best():
    made = table({("joint", "toy"): cell("joint", [32], wanted=1)})
    number = made.numbers["joint", "toy", "accuracy"]
    assert math.isnan(number.sd)
    assert not number.best
    assert grid(made)["joint"]["toy"] == "50.0"
    assert made.findings == ()


def test_nothing_stands_where_there_is_nothing():
    made = table(
        {("joint", "toy"): cell("joint"), ("far", "toy"): Cell(absent="not here"), ("new", "toy"): Cell(wanted=3)}
    )
    assert grid(made)["far"]["toy"] == "not here"
    assert grid(made)["new"]["toy"] == "-"
    assert sentence(made, "3 of 6") == "3 of 6 runs exist; not implemented here: far."


def test_empty_columns_are_named():
    made = table({("joint", "toy"): cell("joint"), ("joint", "far"): Cell(wanted=3)})
    assert sentence(made, "3 of 6") == "3 of 6 runs exist; no run on far."


def test_the_order_of_records_does_not_matter():
    cells = {(row, "toy"): Cell(tuple(record(row, s, noisy(p, s + 9)) for s in range(4)), 4) for row, p in ROWS}
    one = table(cells)
    shuffled = {}
    for place, given in cells.items():
        records = list(given.records)
        random.Random(1).shuffle(records)
        shuffled[place] = Cell(tuple(records), 4)
    assert [made(table(shuffled)) for made in FORMATS.values()] == [made(one) for made in FORMATS.values()]


ROWS = (("a", 0.9), ("b", 0.85), ("c", 0.5))


# -- comparison within a column --------------------------------------------------------------------------------------


def test_the_test_is_that_of_the_statistics_over_seeds_in_order():
    right = {row: np.stack([noisy(p, 10 * i + s) for s in range(4)]) for i, (row, p) in enumerate(ROWS)}
    cells = {
        (row, "toy"): Cell(tuple(record(row, s, values[s]) for s in (2, 0, 3, 1)), 4) for row, values in right.items()
    }
    made = table(cells)
    expected = against_best(right)
    assert expected.best == "a"
    for row, verdict in expected.verdicts.items():
        number = made.numbers[row, "toy", "accuracy"]
        assert (number.p_adjusted, number.verdict, number.best) == (verdict.p, verdict.kind, False)
    assert {row: verdict.kind for row, verdict in expected.verdicts.items()} == {"b": NOISY, "c": DIFFERENT}
    best = made.numbers["a", "toy", "accuracy"]
    assert (best.verdict, best.best) == ("best", True)
    assert math.isnan(best.p_adjusted)
    shown = {row: cells["toy"] for row, cells in grid(made).items()}
    assert re.fullmatch(r"\*\*[\d.]+\*\* ± [\d.]+", shown["a"])
    assert re.fullmatch(r"[\d.]+ ± [\d.]+ ‡", shown["b"])
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", shown["c"])


def test_rows_with_fewer_seeds_are_neither_compared_nor_best():
    made = table(
        {
            ("a", "toy"): cell("a", (32, 32, 32)),
            ("b", "toy"): cell("b", (16, 16, 16)),
            ("high", "toy"): cell("high", (64, 64)),
        }
    )
    numbers = {row: made.numbers[row, "toy", "accuracy"] for row in ("a", "b", "high")}
    assert [numbers[row].best for row in numbers] == [True, False, False]
    assert math.isnan(numbers["high"].p_adjusted)
    assert numbers["high"].verdict is None
    said = sentence(made, "On toy")
    assert said.startswith("On toy, a has the highest mean (50.0 %)")
    assert said.endswith("Not compared, with fewer or other seeds: high.")


def test_rows_with_other_seeds_are_not_compared():
    other = Cell(tuple(record("b", seed, first(60)) for seed in (5, 6, 7)), 3)
    made = table({("a", "toy"): cell("a"), ("b", "toy"): other})
    assert made.findings == ()
    assert not any(number.best for number in made.numbers.values())


def test_means_that_print_alike_are_best_together():
    same = {row: Cell((record(row, 0, first(32)),), 1) for row in ("a", "b")}
    made = table({(row, "toy"): given for row, given in same.items()})
    assert [cells["toy"] for cells in grid(made).values()][:2] == ["**50.0**"] * 2


def told(counts, **more):
    """What a column says of rows that are right on these many samples of 64, in every seed or seed by seed."""
    cells = {(row, "toy"): cell(row, n if isinstance(n, tuple) else [n] * 3) for row, n in counts.items()}
    return sentence(table({**cells, **more.pop("cells", {})}, **more), more.pop("start", "On toy, a"))


def test_what_a_column_says_when_one_is_clearly_best():
    assert told({"a": 64, "b": 20, "c": 16}) == (
        "On toy, a has the highest mean (100.0 %), significantly above all others (at least 68.8 points)."
    )


def test_what_a_column_says_when_none_is():
    assert told({"a": 33, "b": 33}) == "On toy, a has the highest mean (51.6 %); not significantly different: b."
    assert told({"a": 33, "b": 32, "c": 32}) == (
        "On toy, a has the highest mean (51.6 %); too noisy to say: all others."
    )


def test_what_a_column_says_when_some_are():
    counts = {"a": 62, "b": 62, "c": (64, 10, 60), "d": 10}
    assert told(counts) == (
        "On toy, a has the highest mean (96.9 %), significantly above d (81.2 points); not significantly different: b; "
        "too noisy to say: c."
    )


def test_many_rows_are_counted_and_rows_without_runs_named():
    cells = {("x", "toy"): Cell(wanted=3), ("y", "toy"): Cell(absent="not here")}
    assert told({"a": 62, **dict.fromkeys("bcdef", 62), "g": 9}, cells=cells) == (
        "On toy, a has the highest mean (96.9 %), significantly above g (82.8 points); not significantly different: 5 "
        "rows. Without runs so far: x."
    )


def test_one_seed_is_called_one_run():
    made = table({(row, "toy"): cell(row, [count], wanted=1) for row, count in (("a", 64), ("b", 8))})
    assert sentence(made, "On toy").endswith("; this is of one run of each, training again may change it.")


def test_rows_are_held_against_a_reference_by_the_same_verdicts():
    counts = {"a": 63, "ref": 34, "same": 34, "low": 4, "wild": (60, 4, 30, 9, 50)}
    cells = {(row, "toy"): cell(row, n if isinstance(n, tuple) else [n] * 5, 5) for row, n in counts.items()}
    assert not any("held against" in text for text in table(cells).findings)
    said = sentence(table(cells, reference="ref"), "On toy, held")
    assert said == (
        "On toy, held against ref (53.1 %): significantly above it: a; significantly below it: low; not significantly "
        "different: same; too noisy to say: wild."
    )
    assert not any("held against" in text for text in table(cells, reference="a").findings)  # the best
    assert not any("held against" in text for text in table(cells, reference="absent").findings)


def test_a_pair_has_the_same_verdict_whatever_rows_stand_beside_it():
    """Many more rows, and fewer: neither the mark nor p changes."""
    rng = np.random.default_rng(2)
    counts = {"a": (60, 61, 62), "b": (50, 54, 52), **{f"r{i}": tuple(rng.integers(5, 45, 3)) for i in range(14)}}
    cells = {(row, "toy"): cell(row, n) for row, n in counts.items()}
    small = {place: cells[place] for place in [("a", "toy"), ("b", "toy")]}
    one, other = (table(given).numbers["b", "toy", "accuracy"] for given in (cells, small))
    assert (one.verdict, one.p_adjusted) == (other.verdict, other.p_adjusted)
    assert any("With 16 rows compared" in note for note in table(cells).notes)
    assert not any("rows compared" in note for note in table(small).notes)


def test_majority_class_and_chance_stand_below_the_accuracies_alone():
    made = table({("a", "toy"): cell("a"), ("b", "toy"): cell("b")}, values=["accuracy", "imbalance"])
    samples = made.samples["toy"]
    assert samples.chance == 0.5
    for rendered in (rendering.markdown, rendering.html, rendering.latex, rendering.text):
        text = rendered(made)
        assert "majority class" in text
        assert "chance" in text
    lines = grid(made)
    assert lines["majority class"] == {"toy accuracy": f"{100 * samples.majority:.1f}", "toy imbalance": ""}
    assert lines["chance"]["toy accuracy"] == "50.0"
    frame = made.frame()
    assert set(frame["chance"]) == {0.5}
    without = table({("a", "toy"): cell("a")}, values=["imbalance"])
    assert "majority class" not in rendering.markdown(without).split("How to read")[0]


def test_samples_of_a_group_count_together_and_that_is_said():
    groups = {"unit": "subject", "members": [i // 16 for i in range(SAMPLES)]}
    alike = {(row, "toy"): cell(row, [n] * 3) for row, n in (("a", 64), ("b", 10))}
    apart = {
        place: Cell(tuple({**r, "data": {**r["data"], "groups": groups}} for r in given.records), 3)
        for place, given in alike.items()
    }
    before, after = (table(cells).numbers["b", "toy", "accuracy"] for cells in (alike, apart))
    assert before.verdict == DIFFERENT
    assert after.verdict != DIFFERENT  # of 4 subjects
    assert after.high - after.low > before.high - before.low
    said = sentence(table(apart), "On toy, the 64 test samples are of 4 subjects and count by subject: the variance")
    assert said.endswith("times that of independent samples (design effect).")
    assert not any("design effect" in note for note in table(alike).notes)


def test_accuracy_and_imbalance_are_correlated_over_the_rows_in_words():
    scores = {"a": (60, 0.4), "b": (50, 0.3), "c": (40, 0.2), "d": (30, 0.1), "e": (20, 0.35)}
    cells = {
        (row, "toy"): Cell(tuple(record(row, s, first(n), {"imbalance": i}) for s in range(3)), 3)
        for row, (n, i) in scores.items()
    }
    said = sentence(table(cells, values=["accuracy", "imbalance"]), "On toy, accuracy and imbalance")
    assert "a rank correlation of +0.40 over 5 rows" in said
    assert said.endswith("the most balanced, d, has place 4 by accuracy.")
    assert not any("rank correlation" in text for text in table(cells).findings)


def test_columns_are_compared_apart():
    cells = {
        (row, c): cell(row, [n] * 3) for row, c, n in (("a", "x", 60), ("a", "y", 8), ("b", "x", 8), ("b", "y", 60))
    }
    made = table(cells)
    best = {(row, column) for (row, column, _), number in made.numbers.items() if number.best}
    assert best == {("a", "x"), ("b", "y")}


# -- what is refused -------------------------------------------------------------------------------------------------


def test_runs_of_a_cell_that_differ_are_refused_by_name():
    records = (record("joint", 0, first(9)), record("joint", 1, first(9), optimizer={"name": "sgd", "lr": 0.2}))
    with pytest.raises(UserError, match=r"found optimizer\.lr 0\.1 and 0\.2"):
        table({("joint", "toy"): Cell(records, 2)})


def test_rows_of_a_column_on_other_data_are_refused():
    other = Cell((record("b", 0, first(9), fingerprint="ba9876543210"),), 1)
    with pytest.raises(UserError, match="tested on the same data, found fingerprint 0123456789ab of a and ba98"):
        table({("a", "toy"): cell("a", [9], wanted=1), ("b", "toy"): other})
    table({("a", "toy"): cell("a", [9], wanted=1), ("b", "toy"): Cell(), ("a", "other"): Cell(), ("b", "other"): other})


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="one of md, csv, tex, html, found 'pdf'"):
        write(table({("a", "toy"): cell("a")}), tmp_path, ["pdf"])


# -- values ----------------------------------------------------------------------------------------------------------


def test_patterns_are_replaced_in_the_order_of_fusion():
    made = table({("joint", "toy"): cell("joint")}, values=["passes", "alone/*", "accuracy", "probe/*"])
    assert made.columns == {"toy": ("passes", "alone/visual", "alone/audio", "accuracy")}
    assert grid(made)["joint"] == {
        "toy passes (M)": "4.50",
        "toy alone visual": "75.0 ± 0.0",
        "toy alone audio": "25.0 ± 0.0",
        "toy accuracy": "62.5 ± 12.5",
    }


def test_what_is_derived_from_records_and_costs_are_values_too():
    values = ["utilisation/*", "complementarity/*", "bayes_distance/*", "parameters", "flops", "peak_memory_bytes"]
    values += ["flops_per_sample", "passes_forward"]
    records = tuple(record("joint", seed, first(count)) for seed, count in enumerate((32, 40, 48)))
    for one in records:
        one["data"]["facts"] = {"bayes_accuracy": {"visual+audio": 0.75, "visual": 0.8, "audio": 0.4}}
    made = table({("joint", "toy"): Cell(records, 3)}, values=values)
    rows = [tidy.rows(one)[0] for one in records]
    for name in ("utilisation/audio", "complementarity/only/visual", "complementarity/lost", "bayes_distance/fused"):
        assert made.numbers["joint", "toy", name].mean == pytest.approx(sum(row[name] for row in rows) / 3)
    assert made.numbers["joint", "toy", "bayes_distance/fused"].mean == pytest.approx(0.75 - 0.625)
    shown = grid(made)["joint"]
    assert shown["toy bayes_distance fused"] == "12.5 ± 12.5"
    assert shown["toy parameters (M)"] == "0.25"
    assert shown["toy TFLOP"] == "3.00"
    assert shown["toy MFLOP a sample"] == "2.50"
    assert shown["toy forward passes (k)"] == "1500.00"
    assert shown["toy peak memory (MB)"] == "400.00"
    assert any(note.startswith("bayes distance: ") for note in made.notes)
    assert not any(note.startswith("passes: ") for note in made.notes)


def test_the_probe_gap_is_a_value_where_runs_trained_alone_are_given():
    def probed(method, audio):
        return tuple(record(method, s, first(9), {"probe/audio": audio + s / 8, "probe/visual": 0.5}) for s in (0, 1))

    cells = {("joint", "toy"): Cell(probed("joint", 0.25), 2), ("old", "toy"): cell("old")}
    alone = tidy.trained_alone(probed("apart", 0.75)[:1], ["apart"])
    made = table(cells, values=["accuracy", "probe_gap/*"], alone=alone)
    assert made.columns["toy"] == ("accuracy", "probe_gap/visual", "probe_gap/audio")
    number = made.numbers["joint", "toy", "probe_gap/audio"]
    assert (number.mean, number.n, number.best) == (0.5, 1, False)  # of the seed that was trained alone, too
    assert grid(made)["joint"]["toy probe_gap audio"] == "50.0"
    assert grid(made)["old"]["toy probe_gap audio"] == "-"
    assert any(note.startswith("probe gap of a modality: ") for note in made.notes)
    assert table(cells, values=["accuracy", "probe_gap/*"]).columns["toy"] == ("accuracy",)


def test_a_value_that_some_records_lack_is_averaged_over_the_others():
    records = (record("joint", 0, first(9), {"probe/audio": 0.5}), record("joint", 1, first(9)))
    made = table({("joint", "toy"): Cell(records, 2), ("old", "toy"): cell("old")}, values=["probe/audio"])
    number = made.numbers["joint", "toy", "probe/audio"]
    assert (number.mean, number.n) == (0.5, 1)
    assert ("old", "toy", "probe/audio") not in made.numbers
    assert grid(made)["old"]["toy"] == "-"


@pytest.mark.parametrize(
    ("value", "number", "shown"),
    [
        ("accuracy", 0.12345, "12.3"),
        ("imbalance", -0.0001, "0.0"),
        ("shapley/audio", -0.25, "-25.0"),
        ("passes", 2_340_000, "2.34"),
        ("loss", 1.006, "1.01"),
        ("cka/a+b", 0.5, "0.50"),
        ("accuracy", math.nan, "-"),
    ],
)
def test_numbers_in_print(value, number, shown):
    assert rendering.printed(number, value) == shown


def test_only_scores_of_which_more_is_better_have_a_best():
    scores = {"scores": {"loss": 2.0, "imbalance": 0.3, "probe/audio": 0.5}}
    low = {"scores": {"loss": 1.0, "imbalance": 0.1, "probe/audio": 0.4}}
    cells = {("a", "toy"): cell("a", scores=scores), ("b", "toy"): cell("b", scores=low)}
    made = table(cells, values=["loss", "imbalance", "probe/audio"])
    assert {place for place, number in made.numbers.items() if number.best} == {("a", "toy", "probe/audio")}


# -- ranks -----------------------------------------------------------------------------------------------------------

COUNTS = {"a": (60, 50, 40, 1), "b": (50, 60, 30, 2), "c": (40, 40, 20, 3)}


def ranked(wanted=(1, 1, 1, 2), dataset=lambda column: column):
    """Four columns of which the last one lacks a run."""
    return table(
        {
            (row, column): Cell((record(row, 0, first(counts[i]), dataset=dataset(column)),), wanted[i])
            for row, counts in COUNTS.items()
            for i, column in enumerate("wxyz")
        }
    )


def test_ranks_are_means_over_the_complete_columns():
    made = ranked()
    assert made.ranks == {"a": pytest.approx(4 / 3), "b": pytest.approx(5 / 3), "c": pytest.approx(9 / 3)}
    assert [cells["rank"] for cells in grid(made).values()] == ["1.3", "1.7", "3.0", "", ""]
    scores = pd.DataFrame({row: [n / SAMPLES for n in counts[:3]] for row, counts in COUNTS.items()})
    p = friedman(scores)[1]
    assert p > 0.05
    assert sentence(made, "Over the 3 complete") == (
        "Over the 3 complete columns a has the lowest average rank (1.3 of 3); ranks such as these may come about by "
        f"chance over so few columns (Friedman p = {p:.3f})."
    )


def test_ranks_that_differ_say_how_far_apart_they_must_be():
    order = "abcdef"
    cells = {
        (row, column): Cell((record(row, 0, first(50 - 5 * place), dataset=column),), 1)
        for place, row in enumerate(order)
        for column in "uvwxyz"
    }
    said = sentence(table(cells), "Over the 6 complete")
    apart = critical_difference(6, 6)
    assert said == (
        "Over the 6 complete columns a has the lowest average rank (1.0 of 6); ranks differ beyond chance (Friedman "
        f"p < 0.001), two of them where they lie {apart:.1f} apart (Nemenyi, 5 %)."
    )


def test_too_few_complete_columns_have_no_ranks():
    made = ranked((1, 1, 2, 2))
    assert made.ranks == {}
    assert "rank" not in grid(made)["a"]


def test_columns_of_the_same_data_are_no_independent_test():
    made = ranked(dataset=lambda column: "toy")
    assert made.ranks
    assert sentence(made, "Over the 3").endswith("columns of the same data are no independent tests, so none is made.")


def test_rows_that_do_not_exist_on_a_column_have_no_rank():
    cells = {
        (row, column): Cell((record(row, 0, first(counts[i]), dataset=column),), 1)
        for row, counts in COUNTS.items()
        for i, column in enumerate("wxyz")
    }
    cells |= {("third", column): Cell() for column in "wxyz"} | {
        ("third", "w"): Cell((record("t", 0, first(9), dataset="w"),), 1)
    }
    made = table(cells)
    assert set(made.ranks) == {"a", "b", "c"}
    assert grid(made)["third"]["rank"] == "-"


# -- published -------------------------------------------------------------------------------------------------------


def published():
    claims = (claim(), claim(55.0, source="Other"), claim(70.5, modality="audio"), claim(None))
    cells = {
        ("joint", "toy"): cell("joint", claims=claims),
        ("far", "toy"): Cell(claims=(claim(50.0, sd=0.5),), absent="not here"),
    }
    return table(cells, values=["accuracy", "alone/audio"])


def test_published_numbers_stand_beside_and_in_no_mean():
    made = published()
    assert made.numbers["joint", "toy", "accuracy"].mean == 0.625
    assert ("far", "toy", "accuracy") not in made.numbers
    assert len(made.sources) == 2
    assert (
        made.sources[0] == "Peng et al. <2022> | Table_1. Protocol: 100 % of it. Epoch: best_test. Known from: paper."
    )
    shown = grid(made)
    assert shown["joint"]["toy accuracy"] == "62.5 ± 12.5 _61.9_ [1] _55.0_ [2]"
    assert shown["joint"]["toy alone audio"] == "25.0 ± 0.0 _70.5_ [1]"
    assert shown["far"]["toy accuracy"] == "_50.0_ [1]"


def test_a_published_number_whose_value_is_not_shown_is_left_out():
    made = table({("joint", "toy"): cell("joint", claims=(claim(70.5, modality="audio"),))})
    assert (made.beside, made.sources) == ((), ())


# -- renderings ------------------------------------------------------------------------------------------------------


def test_csv_has_every_number_at_full_precision():
    frame = pd.read_csv(io.StringIO(rendering.csv(published())))
    ours, theirs = frame[~frame["published"]], frame[frame["published"]]
    assert list(ours["value"]) == ["accuracy", "alone/audio"]
    assert list(ours["mean"]) == [0.625, 0.25]
    assert list(ours["n"]) == [3, 3]
    assert list(theirs["mean"]) == [0.619, 0.55, 0.705, 0.5]
    assert list(theirs["sd"].dropna()) == [0.005]
    assert theirs["n"].isna().all()
    assert (theirs["protocol"] == "100 % of it").all()


def test_html_is_a_table_with_named_cells():
    made = published()
    root = ElementTree.fromstring(rendering.html(made))
    body = root.find(".//table")
    assert body.find("caption").text == "A table"
    assert all(head.get("scope") in ("col", "row", "colgroup") for head in body.iter("th"))
    width = sum(map(len, made.columns.values()))
    assert [len(row.findall("td")) for row in body.find("tbody")] == [width] * (len(made.rows) + 2)
    top, below = body.find("thead")
    assert sum(int(head.get("colspan", 1)) for head in top.findall("th")) == width == len(below)
    assert "".join(root.find(".//tbody/tr/td").itertext()) == "62.5 ± 12.5 61.9 [1] 55.0 [2]"


def test_latex_has_as_many_cells_in_every_row_and_no_bare_sign():
    made = table({("a_b", "50 %"): cell("a"), ("c & d", "50 %"): cell("c", [1, 1, 1])}, values=["accuracy", "alone/*"])
    made = rendering.latex(made)
    body = made[made.index(r"\toprule") : made.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 6
    spans = [len(re.findall(r"(?<!\\)&", row)) for row in rows]
    assert spans == [1, 3, 3, 3, 3, 3]
    assert r"\multicolumn{3}{c}{50 \%}" in rows[0]
    assert made.count("{") - made.count(r"\{") == made.count("}") - made.count(r"\}")
    assert "a\\_b" in made
    assert not set("†±×") & set(made)


def test_latex_leaves_out_empty_columns_and_counts_only_what_is_incomplete():
    made = rendering.latex(table({("joint", "toy"): cell("joint", wanted=3), ("joint", "none"): Cell(wanted=3)}))
    assert r"\item Without any number: none." in made
    assert " & none" not in made
    assert "3/3" not in made
    assert "of all its 3 runs" in made
    assert " 3/5" in rendering.latex(table({("joint", "toy"): cell("joint", wanted=5)}))


def test_the_terminal_shows_every_column_within_its_width():
    cells = {
        (row, f"data {number}"): cell(row, (30 + number, 40, 50), wanted=3 + number)
        for row, number in itertools.product(("joint", "a method of a longer name"), range(12))
    }
    shown = table(cells).text()
    assert max(map(len, shown.splitlines())) <= rendering.WIDTH
    assert all(f"data {number}" in shown for number in range(12))
    assert "3/4" in shown
    assert "3/3" not in shown


def test_a_bar_in_a_name_ends_no_cell_of_markdown():
    lines = rendering.markdown(table({("a | b", "c|d"): cell("a")})).splitlines()
    assert lines[2] == r"|  | c\|d |"
    assert lines[4].startswith(r"| a \| b | 62.5")


def test_the_terminal_says_the_name_of_a_column_once():
    shown = table({("joint", "toy"): cell("joint")}, values=["accuracy", "alone/*"]).text()
    assert shown.splitlines()[2].split() == ["toy"]
    assert shown.splitlines()[3].split() == ["accuracy", "alone", "visual", "alone", "audio"]


def test_files_are_written_and_the_same_twice(tmp_path):
    made = published()
    one, two = write(made, tmp_path / "one"), write(published(), tmp_path / "two", ["html", "md"])
    assert [path.name for path in one] == ["table.md", "table.csv", "table.tex", "table.html"]
    assert [path.name for path in two] == ["table.html", "table.md"]
    for path in two:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()


def test_what_rows_and_columns_are_is_told():
    made = build(
        "A table",
        {"a": "With x.", "b": ""},
        {"toy": "toy data."},
        {("a", "toy"): cell("a"), ("b", "toy"): Cell()},
        caption=["Mine."],
    )
    assert made.notes[0] == "Mine."
    assert made.notes[-2:] == ("toy: toy data.", "a: With x.")
