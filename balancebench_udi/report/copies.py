"""Which published tables repeat another source's numbers: cells that are equal to the last digit."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from balancebench_udi.report.published import Claim

FEWEST = 5
"""Equal cells from which two sources are reported; fewer may be chance."""
Place = tuple[str, str, str | None]
"""Method, dataset and modality of a number."""


@dataclass(frozen=True)
class Copy:
    """Two groups of published numbers that agree where independent experiments would not.

    Attributes:
        first, second: the groups, in the order of the file.
        equal: cells of both that are equal to the last digit.
        common: cells that both have: same method, dataset and modality.
        differing: (place, number in first, number in second) of the others.
        moved: (place in second, dataset in first) of numbers that stand on another dataset of the same method there.
    """

    first: str
    second: str
    equal: int
    common: int
    differing: tuple[tuple[Place, float, float], ...]
    moved: tuple[tuple[Place, str], ...]


def copies(claims: Iterable[Claim], fewest: int = FEWEST) -> list[Copy]:
    """The pairs of sources of which at least ``fewest`` and more than half of the common cells are equal.

    Only numbers with decimals count, and only groups of different sources are compared: a source may repeat its own.
    """
    groups: dict[str, dict[Place, float]] = {}
    sources: dict[str, str] = {}
    for claim in claims:
        if claim.accuracy is not None and claim.accuracy != int(claim.accuracy) and not claim.settings:
            groups.setdefault(claim.group, {})[claim.method, claim.dataset, claim.modality] = claim.accuracy
            sources[claim.group] = claim.source.partition(",")[0]
    found = []
    for first, second in itertools.combinations(groups, 2):
        mine, other = groups[first], groups[second]
        common = [place for place in other if place in mine]
        equal = [place for place in common if mine[place] == other[place]]
        if sources[first] == sources[second] or len(equal) < fewest or 2 * len(equal) <= len(common):
            continue
        differing = tuple((p, mine[p], other[p]) for p in common if mine[p] != other[p])
        moved = tuple(
            (place, dataset)
            for place, value in other.items()
            if place not in equal
            for (method, dataset, modality), there in mine.items()
            if (method, modality) == (place[0], place[2]) and dataset != place[1] and there == value
        )
        found.append(Copy(first, second, len(equal), len(common), differing, moved))
    return found
