"""Published numbers beside ours: which are reproduced, which are not, and which cannot be judged with these records."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from balancebench_udi.report.copies import Copy, copies
from balancebench_udi.report.published import TOLERANCE, Claim

VERDICTS = {
    "reproduced": "our mean under the same protocol lies within the tolerance of the published number.",
    "not reproduced": "our mean under the same protocol lies outside of it.",
    "other protocol": "our runs of this method on this dataset were made under other protocols only. Their means stand "
    "in the last column for orientation; they say nothing about the published number.",
    "not trained": "the dataset and the method are here, a run with this fusion (which may be absent itself) and these "
    "options is not.",
    "no data here": "no record has this dataset, whose files were not to be had.",
    "method not here": "the method is not implemented here.",
    "no number": "the source tells a gain only.",
}
"""Every verdict with its meaning."""

FALLBACK = "best_val"
"""How our runs are read where they lack the reading of the claim, or where the claim does not tell its own."""


@dataclass(frozen=True)
class Wanted:
    """The run that a claim asks for.

    Attributes:
        fields: what its specification must hold.
        options: the rest of the command line that trains it, after the methods.
    """

    fields: Mapping[str, Any]
    options: str


@dataclass(frozen=True)
class Run:
    """What is needed of a record: its specification, its cell, and the scores of each reading on the test split."""

    spec: Mapping[str, Any]
    cell: str
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Ours:
    """Runs of ours that differ in the seed only: protocol, how they were read, accuracy in percent over n seeds."""

    protocol: str
    precision: str
    reading: str
    n: int
    mean: float
    sd: float | None

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{spread} ({_counted(self.n, 'seed')}, {self.reading})"


@dataclass(frozen=True)
class Finding:
    """A claim and what our records say about it.

    Attributes:
        ours: under the same protocol; None where there is no such run.
        elsewhere: under other protocols, by their names; empty where ``ours`` is given.
        wanted: the run that it asks for; None where it cannot be trained here.
    """

    claim: Claim
    verdict: str
    ours: Ours | None
    elsewhere: tuple[Ours, ...]
    wanted: Wanted | None

    @property
    def gap(self) -> float | None:
        """Ours less published, in points."""
        if self.ours is None or self.claim.accuracy is None:
            return None
        return self.ours.mean - self.claim.accuracy


def reproduce(
    claims: Sequence[Claim],
    records: Iterable[Mapping[str, Any]],
    methods: Collection[str],
    wanted: Callable[[Claim, str], Wanted | None],
) -> list[Finding]:
    """Judge every claim by the records, in the order of the claims.

    A run is of the same protocol where its specification holds everything that ``wanted`` names: protocol, data,
    options, fusion, optimiser, schedule. Its mean over the seeds, read as the claim was where that is possible, is
    compared with the claim. Where several cells qualify (of another precision, say), one that has the reading of the
    claim counts, and of these the one with most seeds.

    Args:
        records: as :func:`balancebench_udi.store.read_record` returns them, in any order.
        methods: names of the methods that are implemented.
        wanted: claim and name of a protocol -> the run; None where it cannot be trained under that protocol.
    """
    named = {(claim.method, claim.dataset) for claim in claims}
    runs: dict[tuple[str, str], list[Run]] = {}
    datasets = set()
    for record in records:
        spec = record["spec"]
        datasets.add(spec["dataset"])
        if (spec["method"], spec["dataset"]) in named:
            readings = {name: reading["test"] for name, reading in record["result"]["readings"].items()}
            runs.setdefault((spec["method"], spec["dataset"]), []).append(Run(spec, record["cell"], readings))
    return [
        _judge(claim, runs.get((claim.method, claim.dataset), []), claim.method in methods, datasets, wanted)
        for claim in claims
    ]


def _judge(
    claim: Claim,
    runs: Sequence[Run],
    implemented: bool,
    datasets: Collection[str],
    wanted: Callable[[Claim, str], Wanted | None],
) -> Finding:
    asked = wanted(claim, claim.run_protocol) if claim.run_protocol and implemented else None
    ours = _ours(claim, runs, asked)
    others = sorted({run.spec["protocol"].rstrip("+") for run in runs} - {claim.run_protocol})
    found = () if ours else tuple(o for name in others if (o := _ours(claim, runs, wanted(claim, name))) is not None)
    if claim.accuracy is None:
        verdict = "no number"
    elif not implemented:
        verdict = "method not here"
    elif claim.dataset not in datasets:
        verdict = "no data here"
    elif ours is not None:
        within = abs(ours.mean - claim.accuracy) <= claim.tolerance + 1e-9
        verdict = "reproduced" if within else "not reproduced"
    else:
        verdict = "other protocol" if found else "not trained"
    return Finding(claim, verdict, ours, found, asked)


def _ours(claim: Claim, runs: Sequence[Run], wanted: Wanted | None) -> Ours | None:
    """The cell that ``wanted`` describes, in the score of the claim."""
    if wanted is None:
        return None
    score = "accuracy" if claim.modality is None else f"alone/{claim.modality}"
    cells: dict[str, list[Run]] = {}
    for run in runs:
        if all(run.spec.get(name) == value for name, value in wanted.fields.items()) and score in run.scores[FALLBACK]:
            cells.setdefault(run.cell, []).append(run)
    if not cells:
        return None
    reading, chosen = max(
        ((_reading(claim, cell), cell) for cell in cells.values()),
        key=lambda pair: (pair[0] == claim.select, len(pair[1]), pair[1][0].cell),
    )
    values = [100 * run.scores[reading][score] for run in sorted(chosen, key=lambda run: run.spec["seed"])]
    spec = chosen[0].spec
    sd = statistics.stdev(values) if len(values) > 1 else None
    name = f"{spec['protocol']} v{spec['protocol_version']}"
    return Ours(name, spec["precision"], reading, len(values), statistics.fmean(values), sd)


def _reading(claim: Claim, cell: Sequence[Run]) -> str:
    """As the claim was read, where every run has that reading."""
    return claim.select if all(claim.select in run.scores for run in cell) else FALLBACK


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Verdict -> how many findings have it, in the order of :data:`VERDICTS`."""
    found = Counter(finding.verdict for finding in findings)
    return {verdict: found[verdict] for verdict in VERDICTS}


def markdown(findings: Sequence[Finding]) -> str:
    """The page: what the verdicts mean, a table of their counts, then every number by source with its command."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.claim.group, []).append(finding)
    judged = [finding for finding in findings if finding.ours is not None and finding.claim.accuracy is not None]
    lines = ["# Published numbers, and ours", "", *_summary(findings, judged), ""]
    if judged:
        lines += ["## Judged", "", _line(["numbers", "dataset", "method", "published", "ours", "gap", "verdict"])]
        lines.append("|:--|:--|:--|--:|--:|--:|:--|")
        lines += [_line([f"[{one.claim.group}](#{one.claim.group})", *_row(one)]) for one in judged]
    if copied := copies([finding.claim for finding in findings]):
        lines += [*([""] if judged else []), "## Numbers that equal another source's to the last digit", ""]
        lines += [f"- {_copied(one)}" for one in copied]
    lines += ["", "## How they are judged", "", *_explanation(), "", "## Overview", ""]
    heads = ["numbers", "source", "confidence", "all", *VERDICTS]
    lines += [_line(heads), "|:--|:--|:--|" + "--:|" * (1 + len(VERDICTS))]
    for name, mine in groups.items():
        about = [f"[{name}](#{name})", mine[0].claim.source, mine[0].claim.confidence]
        lines.append(_line([*about, len(mine), *_nonzero(mine)]))
    lines.append(_line(["all", "", "", len(findings), *_nonzero(findings)]))
    for name, mine in groups.items():
        lines += ["", *_section(name, mine)]
    return "\n".join(lines) + "\n"


def _nonzero(findings: Sequence[Finding]) -> list[str]:
    return [str(n) if n else "-" for n in counts(findings).values()]


def _summary(findings: Sequence[Finding], judged: Sequence[Finding]) -> list[str]:
    """What was judged, first."""
    found = Counter(finding.verdict for finding in judged)
    told = " and ".join(f"{found[verdict]} {verdict}" for verdict in ("reproduced", "not reproduced"))
    seeds = sorted({finding.ours.n for finding in judged if finding.ours is not None})
    of = f", ours of {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])} each" if seeds else ""
    rest = {verdict: n for verdict, n in counts(findings).items() if n and verdict not in found}
    return [
        f"Of {_counted(len(findings), 'number')} in papers and repositories {len(judged)} can be judged with the runs "
        f"recorded here{f': {told}{of}' if judged else ''}. The others: "
        f"{', '.join(f'{n} {verdict}' for verdict, n in rest.items()) or 'none'}.",
        "",
        "A published number is judged where a run here has the same method, data, options, fusion, optimiser and "
        "schedule as far as they are known, by whether our mean lies within the tolerance; no paper is judged by it.",
    ]


def _explanation() -> list[str]:
    return [
        "All numbers are accuracies on the test split in percent. A published number is evidence about its own "
        "protocol only: the joint baseline on CREMA-D spans more than twenty points between papers.",
        "",
        *(f"- **{verdict}**: {meaning}" for verdict, meaning in VERDICTS.items()),
        "",
        "What counts as the same protocol: a preset of `benchmarks/protocols` that follows the published one as far "
        "as it is known, unchanged but for the fusion and the options that a claim names. Differences that remain: a "
        "tenth of train is held out for validation here, which most sources do not do; whatever the source does not "
        "tell; and data made anew here, such as the coloured images of cgmnist.",
        "",
        f"The tolerance is {TOLERANCE:g} points, or twice the standard deviation where the source gives one. The "
        "spread of our own seeds is shown and widens nothing. Ours are read at the epoch that the source read where a "
        "run evaluated it, else at the best validation epoch (best_val), also where the source does not say. A verdict "
        "on a number that is told by third parties or unconfirmed is a verdict on what was told.",
    ]


def _section(name: str, findings: Sequence[Finding]) -> list[str]:
    claim = findings[0].claim
    source = f"[{claim.source}]({claim.url})" if claim.url else claim.source
    lines = [f"## {name}", "", f"{source}. Confidence: {claim.confidence}. Read at: {_words(claim.select)}.", ""]
    lines += [f"Protocol: {claim.protocol.rstrip('.')}. {_nearest(claim)}", ""]
    if claim.remarks:
        lines += ["What does not fit:", "", *(f"- {remark}" for remark in claim.remarks), ""]
    elsewhere = any(finding.elsewhere for finding in findings)
    heads = [
        "dataset",
        "method",
        "published",
        "ours",
        "gap",
        "verdict",
        *(["under other protocols of ours"] * elsewhere),
    ]
    lines += [_line(heads), "|:--|:--|--:|--:|--:|:--|" + ":--|" * elsewhere]
    for finding in findings:
        others = "; ".join(f"{ours.protocol}{_precise(ours)}: {ours}" for ours in finding.elsewhere) or "-"
        lines.append(_line([*_row(finding), *([others] * elsewhere)]))
    commands = _commands(findings)
    return [*lines, "", "```", *commands, "```"] if commands else lines


def _copied(one: Copy) -> str:
    """What two tables share, and where they do not."""

    def place(method: str, dataset: str, modality: str | None) -> str:
        return f"{method}{f' ({modality})' if modality else ''} on {dataset}"

    told = f"[{one.second}](#{one.second}) has {one.equal} of {one.common} in common with [{one.first}](#{one.first})."
    differing = "; ".join(f"{place(*where)} {second:g} there {first:g}" for where, first, second in one.differing)
    moved = "; ".join(f"{place(*where)} is its number on {dataset}" for where, dataset in one.moved)
    return " ".join(
        [told, *([f"Not equal: {differing}."] if differing else []), *([f"Moved: {moved}."] if moved else [])]
    )


def _row(finding: Finding) -> list[str]:
    claim, gap = finding.claim, finding.gap
    told = [claim.label]
    told += [] if claim.fusion is None or claim.fusion in claim.label.lower() else [claim.fusion]
    told += [f"{_counted(claim.frames, 'frame')}"] if claim.frames else []
    told += [f"{name} {value}" for name, value in claim.settings] + ([claim.note] if claim.note else [])
    told += [f"F1 {claim.f1:g}"] if claim.f1 is not None else []
    number = "-" if claim.accuracy is None else f"{claim.accuracy:g}" + ("" if claim.sd is None else f" ± {claim.sd:g}")
    ours = "-" if finding.ours is None else f"{finding.ours}{_precise(finding.ours)}"
    return [claim.dataset, ", ".join(told), number, ours, "-" if gap is None else f"{gap:+z.2f}", finding.verdict]


def _commands(findings: Sequence[Finding]) -> list[str]:
    """One command for all methods that share the rest of it."""
    methods: dict[str, dict[str, None]] = {}
    for finding in findings:
        if finding.wanted is not None:
            methods.setdefault(finding.wanted.options, {})[finding.claim.method] = None
    return [f"python benchmarks/run.py --methods {','.join(names)} {rest}" for rest, names in methods.items()]


def _nearest(claim: Claim) -> str:
    if claim.run_protocol is None:
        return "No preset here stands for it."
    return f"Nearest preset here: {claim.run_protocol}; tolerance {claim.tolerance:g} points" + (
        ", of a number with a standard deviation twice that." if claim.sd is not None else "."
    )


def _precise(ours: Ours) -> str:
    return "" if ours.precision == "fp32" else f" {ours.precision}"


def _words(select: str) -> str:
    return {"unknown": "not told", "last": "the last epoch"}.get(
        select, f"the best epoch on {select.rpartition('_')[2]}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in cells)} |"
