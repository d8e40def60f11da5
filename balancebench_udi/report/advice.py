"""What should I use? The answer that a set of runs gives: which modality starves, which method helps, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from balancebench_udi.metrics.statistics import CLOSE, DIFFERENT, Verdict
from balancebench_udi.report.contest import Hits, Samples, judge, listed, two

MARGIN = 0.01
"""The least difference in accuracy that counts, 1 percentage point. Ours."""

MOST = 3
"""Methods that a sentence names."""

ALONE = {"probe": "a linear probe of its encoder reads", "alone": "its own head reaches"}
"""How a modality is read where it is trained alone, best first: as inside the method where that is a probe, because a
head that is not trained to the end understates the encoder."""

INSIDE = {
    "probe": "a linear probe of its encoder reads",
    "share": "its share of the fused logits gives",
    "masked": "the prediction with the other modalities masked gives",
}
"""How a modality is read inside a method, best first; one answer uses one of them throughout."""


@dataclass(frozen=True)
class Gap:
    """What joint training costs a modality; accuracies in [0, 1].

    Attributes:
        modality: its name.
        alone: accuracy of the modality trained alone, read as ``ALONE`` says.
        inside: accuracy of what the reference method's encoder still gives.
        found: the verdict on the difference ``alone - inside``.
        starved: the difference is at least the margin, and significant.
    """

    modality: str
    alone: float
    inside: float
    found: Verdict
    starved: bool


@dataclass(frozen=True)
class Remedy:
    """What a method changes against the reference; accuracies in [0, 1].

    Attributes:
        method: its name.
        gain: the verdict on its fused accuracy minus the reference's.
        change: starved modality -> change of its accuracy inside the method; empty where it cannot be read alike.
        recovered: the starved modalities whose change is at least the margin, and significant.
        passes: encoder passes as a multiple of the reference's.
    """

    method: str
    gain: Verdict
    change: Mapping[str, float]
    recovered: tuple[str, ...]
    passes: float


@dataclass(frozen=True)
class Leaders:
    """The most accurate method, and those that are not significantly different from it.

    Attributes:
        best: the method of highest accuracy.
        ties: it and every method that is not significantly different from it, in the order given.
        seeds: how many seeds the verdicts use.
        left: methods that lack some of these seeds, and so are not compared.
        noisy: methods of which the runs do not say whether they differ from the best.
    """

    best: str
    ties: tuple[str, ...]
    seeds: int
    left: tuple[str, ...] = ()
    noisy: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What to use among the methods that fuse the modalities, and whether a single modality does as well.

    Attributes:
        leaders: of the methods that fuse.
        method: the one to use: of the leaders that beat the reference the one of fewest passes, and of those alike to
            a tenth of the reference's passes the one of largest gain; None: none of them.
        single: the method that uses one modality only; None where there is none.
        lead: the verdict on the accuracy of ``single`` minus that of ``method``, or of the best where that is None.
    """

    leaders: Leaders
    method: str | None
    single: str | None = None
    lead: Verdict | None = None

    @property
    def fusion_wins(self) -> bool:
        """Whether what is chosen beats the single modality significantly, as far as there are runs of one."""
        return self.lead is None or (self.lead.difference < 0 and self.lead.kind == DIFFERENT)


def common(*runs: Hits) -> list[np.ndarray]:
    """The runs as ``[S, N]`` matrices over the seeds that all of them have; S may be 0."""
    seeds = sorted(set.intersection(*(set(one) for one in runs)))
    return [np.array([one[seed] for seed in seeds]) for one in runs]


def gaps(alone: Mapping[str, Hits], inside: Mapping[str, Hits], samples: Samples, margin: float = MARGIN) -> list[Gap]:
    """How much worse each modality is inside the reference method than trained alone, largest difference first.

    Args:
        alone: modality -> runs of it trained alone.
        inside: modality -> runs of the reference method, read out for that modality.
        samples: of the test split.
        margin: least difference in [0, 1] that counts.
    """
    pairs = {m: common(alone[m], inside[m]) for m in inside if m in alone}
    tests = {m: two(pair[0], pair[1], samples) for m, pair in pairs.items() if len(pair[0])}
    found = [
        Gap(m, float(pairs[m][0].mean()), float(pairs[m][1].mean()), test, _counts(test, margin))
        for m, test in tests.items()
    ]
    return sorted(found, key=lambda gap: -gap.found.difference)


def remedies(
    fused: Mapping[str, Hits],
    inside: Mapping[str, Mapping[str, Hits]],
    reference: str,
    starved: Sequence[str],
    passes: Mapping[str, float],
    samples: Samples,
    margin: float = MARGIN,
) -> list[Remedy]:
    """What every method changes against the reference, highest gain first.

    Args:
        fused: method -> its runs.
        inside: method -> modality -> its runs read out for that modality, alike in all methods; methods and
            modalities may lack.
        reference: the method that the others are compared with; one of ``fused``.
        starved: the modalities to recover.
        passes: method -> encoder passes as a multiple of the reference's.
        samples: of the test split.
        margin: least change in [0, 1] that counts as recovered.
    """
    gains: dict[str, Verdict] = {}
    changes: dict[tuple[str, str], Verdict] = {}
    for method in (name for name in fused if name != reference):
        pair = common(fused[method], fused[reference])
        if len(pair[0]):
            gains[method] = two(pair[0], pair[1], samples)
        for m in starved:
            mine, theirs = inside.get(method, {}).get(m), inside.get(reference, {}).get(m)
            if mine and theirs and len((read := common(mine, theirs))[0]):
                changes[method, m] = two(read[0], read[1], samples)
    found = []
    for method, gain in gains.items():
        change = {m: test for (name, m), test in changes.items() if name == method}
        recovered = tuple(m for m, test in change.items() if _counts(test, margin))
        moved = {m: test.difference for m, test in change.items()}
        found.append(Remedy(method, gain, moved, recovered, passes.get(method, float("nan"))))
    return sorted(found, key=lambda remedy: -remedy.gain.difference)


def leaders(fused: Mapping[str, Hits], samples: Samples) -> Leaders | None:
    """The most accurate method, and those that are not significantly different from it.

    The methods with the most seeds are compared; one with fewer or others is left out, so that one begun late does not
    weaken the comparison of the others.

    Returns:
        None where there is nothing to compare.
    """
    found = judge(fused, samples)
    if found is None:
        return None
    ties = tuple(name for name in fused if found.kind(name) in ("best", CLOSE))
    return Leaders(found.best, ties, len(found.seeds), found.left, tuple(found.noisy))


def choose(
    fused: Mapping[str, Hits],
    reference: str | None,
    found: Sequence[Remedy],
    samples: Samples,
    single: Sequence[str] = (),
) -> Choice | None:
    """The cheapest method that is as accurate as the best one as far as the runs tell, and beats the reference.

    Args:
        fused: method -> its runs, the reference among them.
        reference: the method to beat; None where it has no runs, and so nothing can be recommended.
        found: of :func:`remedies`.
        samples: of the test split.
        single: methods that use one modality only; they are compared with the choice, but are no remedy.

    Returns:
        None where :func:`leaders` finds none among the methods that fuse.
    """
    lead = leaders({method: runs for method, runs in fused.items() if method not in single}, samples)
    if lead is None:
        return None
    helps = [r for r in found if r.method in lead.ties and r.gain.difference > 0 and r.gain.kind == DIFFERENT]
    if reference in lead.ties:
        helps = []
    method = min(helps, key=lambda r: (round(r.passes, 1), -r.gain.difference)).method if helps else None
    rivals = {name: common(fused[name], fused[method or lead.best]) for name in single if name in fused}
    rivals = {name: pair for name, pair in rivals.items() if len(pair[0])}
    if not rivals:
        return Choice(lead, method)
    rival = max(rivals, key=lambda name: rivals[name][0].mean())
    return Choice(lead, method, rival, two(rivals[rival][0], rivals[rival][1], samples))


def sentences(
    reference: str,
    readout: str | None,
    lost: Sequence[Gap],
    found: Sequence[Remedy],
    choice: Choice | None,
    apart: Sequence[str] = (),
    measured: str = "alone",
) -> list[str]:
    """The answer in words: the recommendation first, then what starves, then what recovers it.

    Args:
        reference: the method that the others are compared with.
        readout: of ``INSIDE``; None where modalities cannot be read.
        lost: of :func:`gaps`; empty where no modality was trained alone.
        found: of :func:`remedies`.
        choice: of :func:`choose`.
        apart: methods that use one modality only: they recover nothing.
        measured: of ``ALONE``, behind ``lost``.
    """
    fusing = [remedy for remedy in found if remedy.method not in apart]
    return [
        *_recommendation(reference, fusing, choice),
        *_starvation(reference, readout, lost, measured),
        *_recovery(lost, fusing),
    ]


def _recommendation(reference: str, found: Sequence[Remedy], choice: Choice | None) -> list[str]:
    if choice is None or not found:
        return [f"There is no answer yet: {reference} and another method must have a seed in common; train them."]
    best, ties = choice.leaders.best, choice.leaders.ties
    remedy = next((r for r in found if r.method == choice.method), None)
    told = []
    if remedy is None and reference in ties:
        mean = (
            "the most accurate" if best == reference else f"not significantly different from {best}, the most accurate"
        )
        told.append(f"None of them: {reference} is {mean}.")
    elif remedy is None:
        told.append(
            f"None of them can be recommended: {best} has the highest mean, but the runs are too noisy to say whether "
            f"one of the best is more accurate than {reference}."
        )
    else:
        use = (
            f"{remedy.method}: {_points(remedy.gain)} more accurate than {reference}, at {_times(remedy.passes)} its "
            f"encoder passes."
        )
        if choice.fusion_wins:
            told.append(f"Use {use}")
        else:
            told += [f"None of them for accuracy alone: {_rival(choice)}", f"To fuse the modalities, use {use}"]
        rest = [name for name in ties if name != remedy.method]
        if rest and best == remedy.method:
            told.append(f"Not significantly different from it in accuracy: {listed(rest)}.")
        elif rest:
            others = [name for name in rest if name != best]
            neither = f"; neither {'is' if len(others) == 1 else 'are'} {listed(others)}" if others else ""
            told.append(f"It is not significantly different from {best}, the most accurate{neither}.")
    noisy = [name for name in choice.leaders.noisy if name != reference]
    if noisy:
        told.append(f"Too noisy to say whether they differ from {best}: {listed(noisy)}.")
    if choice.lead is not None and (remedy is None or choice.fusion_wins):
        told.append(f"{_rival(choice)[0].upper()}{_rival(choice)[1:]}")
    if choice.lead is None:
        told.append("No run of a single modality is here to compare with: whether it pays to fuse them is not known.")
    if choice.leaders.seeds == 1:
        told.append("This rests on one seed: the tests speak of these trained networks, not of the methods.")
    return told


def _rival(choice: Choice) -> str:
    """How the best single modality does against what is chosen, or against the best."""
    assert choice.lead is not None
    other = choice.method or choice.leaders.best
    who = f"the best single modality, trained alone ({choice.single}),"
    if choice.lead.kind == CLOSE:
        return f"{who} is not significantly different from {other} in accuracy."
    if choice.lead.kind != DIFFERENT:
        return f"{who} has runs too noisy to say whether it is more or less accurate than {other}."
    less = choice.lead.difference < 0
    shown = choice.lead.turned() if less else choice.lead
    return f"{who} is {_points(shown)} {'less' if less else 'more'} accurate than {other}."


def _starvation(reference: str, readout: str | None, lost: Sequence[Gap], measured: str) -> list[str]:
    if not lost or readout is None:
        return [
            "Which modality starves cannot be said: no runs of each modality alone, or no read-out inside the methods."
        ]
    starved = [gap for gap in lost if gap.starved]
    if not starved:
        most = lost[0]
        return [
            f"No modality starves in {reference}: the largest loss is that of {most.modality}, "
            f"{most.alone * 100:.1f} % alone and {most.inside * 100:.1f} % inside, which is below "
            f"{MARGIN * 100:g} point or not significant."
        ]
    doubt = "" if readout == "probe" else " No probe was recorded, so part of this may be the fusion, not the encoder."
    inside = "" if measured == readout else f"{INSIDE[readout]} "
    return [
        f"In {reference}, {gap.modality} starves: trained alone {ALONE[measured]} {gap.alone * 100:.1f} %, inside "
        f"{reference} {inside}{gap.inside * 100:.1f} %, {_points(gap.found)} less.{doubt}"
        for gap in starved
    ]


def _recovery(lost: Sequence[Gap], found: Sequence[Remedy]) -> list[str]:
    told = []
    for m in (gap.modality for gap in lost if gap.starved):
        helping = sorted((r for r in found if m in r.recovered), key=lambda r: -r.change[m])
        if helping:
            named = [f"{r.method} (+{r.change[m] * 100:.1f} points, {_times(r.passes)} the passes)" for r in helping]
            rest = [f"{len(named) - MOST} more"] if len(named) > MOST else []
            told.append(f"Recovered significantly, {m}: by {listed([*named[:MOST], *rest])}.")
        else:
            told.append(f"Recovered significantly, {m}: by none.")
    return told


def _counts(test: Verdict, margin: float) -> bool:
    """Whether a difference is large enough and significant."""
    return test.difference >= margin and test.kind == DIFFERENT


def _points(test: Verdict) -> str:
    low, high = test.low * 100, test.high * 100
    return f"{test.difference * 100:.1f} points (95 % interval {low:.1f} to {high:.1f})"


def _times(passes: float) -> str:
    return "an unknown multiple of" if np.isnan(passes) else f"{passes:.2f} times"
