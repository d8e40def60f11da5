"""Tables that repeat another source's numbers are found; those that only come close are not."""

import dataclasses
from pathlib import Path

from balancebench_udi.report.copies import copies
from balancebench_udi.report.published import Claim, load_published

CLAIMS = load_published(Path(__file__).resolve().parents[2] / "benchmarks" / "published.yaml")


def claim(group: str, method: str, dataset: str, accuracy: float | None, **changes: object) -> Claim:
    made = dataclasses.replace(CLAIMS[0], group=group, source=f"{group}, 2024", settings=(), modality=None)
    return dataclasses.replace(made, method=method, dataset=dataset, accuracy=accuracy, **changes)


def table(group: str, *shift: float) -> list[Claim]:
    values = [61.25, 62.37, 63.49, 64.51, 65.63, 66.75]
    shifts = [*shift, *[0.0] * (len(values) - len(shift))]
    return [claim(group, f"m{i}", "toy", v + d) for i, (v, d) in enumerate(zip(values, shifts, strict=True))]


def test_a_copied_table_is_found_with_what_differs():
    (found,) = copies([*table("a"), *table("b", 1.0)])
    assert (found.first, found.second, found.equal, found.common) == ("a", "b", 5, 6)
    assert found.differing == ((("m0", "toy", None), 61.25, 62.25),)
    assert found.moved == ()


def test_a_number_that_slipped_a_column_is_named():
    slipped = [*table("b"), claim("b", "m9", "other", 77.77)]
    (found,) = copies([*table("a"), claim("a", "m9", "elsewhere", 77.77), *slipped])
    assert found.moved == ((("m9", "other", None), "elsewhere"),)


def test_few_equal_cells_whole_numbers_and_the_same_source_are_no_copies():
    assert copies([*table("a"), *table("b", 1.0, 1.0)]) == []  # four are equal
    assert copies([*table("a"), *table("b", 0.01, 0.01, 0.01)]) == []
    whole = [[claim(g, f"m{i}", "toy", 60.0 + i) for i in range(8)] for g in "ab"]
    assert copies([*whole[0], *whole[1]]) == []
    same = [dataclasses.replace(c, source="a, Table 2") for c in table("b")]
    assert copies([*table("a"), *same]) == []
    gains = [[claim(g, f"m{i}", "toy", None) for i in range(8)] for g in "ab"]
    assert copies([*gains[0], *gains[1]]) == []


def test_the_copied_table_among_the_published_numbers():
    """Of the 63 baseline accuracies outside CG-MNIST 61 are another table's, one stands under another dataset there."""
    quoted = [c for c in CLAIMS if c.group == "udi-paper-quoted"]
    found = [c for c in copies(CLAIMS) if c.second == "udi-paper-quoted"]
    assert len(quoted) == 63
    assert {c.first: c.equal for c in found} == {"balancebenchmark": 49, "balancebenchmark-mosei": 12}
    (whole, _) = found
    assert whole.differing == ((("mmpareto", "kinetics_sounds", None), 74.55, 70.13),)
    assert whole.moved == ((("greedy", "food101", None), "balanced_av"),)
    assert {c.second for c in copies(CLAIMS)} == {"udi-paper-quoted"}
