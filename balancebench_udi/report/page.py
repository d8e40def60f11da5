"""One self-contained page about many runs: tables, figures, what the methods are, and what to use. No network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.balance import probe_gap
from balancebench_udi.metrics.statistics import CLOSE, DIFFERENT, NOISY
from balancebench_udi.report import advice, elements
from balancebench_udi.report.comparison import RULES, Comparison, compare
from balancebench_udi.report.contest import clustered, crowded, judge
from balancebench_udi.report.elements import Cell, escape, number
from balancebench_udi.report.figures.budget import accuracy_against_budget
from balancebench_udi.report.figures.classes import confusion, per_class_differences
from balancebench_udi.report.figures.curves import controller_weights, gradient_curves, training_curves
from balancebench_udi.report.figures.imbalance import accuracy_against_imbalance
from balancebench_udi.report.figures.intervals import accuracy_intervals
from balancebench_udi.report.figures.modalities import joint_against_alone
from balancebench_udi.report.figures.ranks import critical_difference_diagram
from balancebench_udi.report.figures.style import Drawing
from balancebench_udi.report.groups import Group

FIGURED = 4
"""Groups that get figures by default: those with most runs."""
MOST = 24
"""Methods up to which figures can be read."""
FEW = 5
"""Seeds below which a caveat is written."""
READOUTS = {
    "alone": "of the method's own head for the modality",
    "probe": "of a linear classifier on the frozen encoder",
    "share": "of the modality's exact part of the fused logits",
    "masked": "of the fused prediction with the other modalities at zero",
}
COSTS = {
    "parameters": ("parameters (k)", 1e3),
    "flops_per_sample": ("MFLOP / sample", 1e6),
    "passes_forward": ("forward (k)", 1e3),
    "passes_backward": ("backward (k)", 1e3),
    "flops": ("GFLOP", 1e9),
    "peak_memory_bytes": ("memory (MB)", 1e6),
}
"""Head and unit of each of :data:`balancebench_udi.report.groups.SPENT`."""
OPTIONAL = ("ece", "probe", "cka", "discrepancy")
"""Scores that older records lack."""


@dataclass(frozen=True)
class MethodFacts:
    """What the page says of a method: its idea in two sentences, its source, its kind, the defaults of its options."""

    name: str
    summary: str
    reference: str
    family: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Roles:
    """Which methods have a part of their own: names, in order of preference.

    Attributes:
        reference: the method that gains and costs are relative to.
        alone: those that train every modality by itself.
        single: those whose prediction is that of one modality.
    """

    reference: str
    alone: tuple[str, ...]
    single: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A group with all that follows from its runs; ``order`` has the methods, which look alike in all figures."""

    group: Group
    slug: str
    select: str
    comparison: Comparison
    mean: pd.DataFrame
    sd: pd.DataFrame
    reference: str | None
    alone: str | None
    readout: str | None
    lost: list[advice.Gap]
    remedies: list[advice.Remedy]
    leaders: advice.Leaders | None
    choice: advice.Choice | None
    sentences: list[str]
    order: tuple[str, ...] = ()


Figures = tuple[tuple[str, Callable[[Part, Sequence[Mapping[str, Any]]], Drawing | None]], ...]


def _alone(part: Part, records: Sequence[Mapping[str, Any]]) -> Drawing:
    if part.alone is None:
        raise UserError("it needs runs of each modality trained alone")
    return joint_against_alone(records, part.select, part.alone)


def _classes(part: Part, records: Sequence[Mapping[str, Any]]) -> Drawing:
    if part.reference is None or len(part.mean) < 2:
        raise UserError("it needs the reference and another method")
    return per_class_differences(records, part.select, _shown(part), part.reference)


def _shown(part: Part) -> str:
    """The row to look at closely: of the recommended method, else of the most accurate beside the reference."""
    main = _main(part.group)
    if part.choice is not None and part.choice.method is not None:
        return main[part.group.methods[part.choice.method]]
    accuracy = part.mean["accuracy"][list(main.values())]
    others = accuracy.drop(part.reference) if part.reference and len(accuracy) > 1 else accuracy
    return others.idxmax()


FIGURES: Figures = (
    ("Accuracy, with intervals", lambda p, r: accuracy_intervals(r, p.select)),
    ("Each modality alone and inside the methods", _alone),
    ("Accuracy against imbalance", lambda p, r: accuracy_against_imbalance(compare(r, p.select), p.order)),
    ("Accuracy against training budget", lambda p, r: accuracy_against_budget(r, p.select, p.reference, p.order)),
    ("Training curves", lambda p, r: training_curves(r)),
    ("Gradients of the fused loss", lambda p, r: gradient_curves(r)),
    ("Weights of the controller", lambda p, r: controller_weights(r)),
    ("Classes gained and lost", _classes),
    ("Confusion matrix", lambda p, r: confusion(r, p.select, _shown(p))),
)
"""The figures of a group. One that returns None, or refuses, is named among the caveats instead."""


def page(
    groups: Sequence[Group],
    select: str,
    methods: Mapping[str, MethodFacts],
    roles: Roles,
    read: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
    published: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]] | None = None,
    lacking: int = 0,
    figured: int = FIGURED,
    figures: Figures = FIGURES,
) -> str:
    """The page as HTML; equal runs, equal text.

    Args:
        groups: of :func:`balancebench_udi.report.groups.collect`.
        select: the reading that they were collected with.
        methods: name -> what it is; methods without an entry are shown by name.
        roles: the methods with a part of their own.
        read: specification -> whole record, asked for groups with figures only.
        published: specification -> rows from the literature for its dataset: label, accuracy in percent or None,
            source, protocol. They stand beside ours and are part of no mean.
        lacking: records that were left out because they have no such reading.
        figured: how many groups get figures.
        figures: names and functions of the figures.

    Raises:
        UserError: no groups.
    """
    if not groups:
        raise UserError("a page needs at least one run, found none: train a method first")
    parts = [analyse(group, f"g{i}", select, roles, tuple(methods)) for i, group in enumerate(groups, 1)]
    drawn = [part for part in parts[:figured] if len(_main(part.group)) <= MOST]
    sections, entries = [], []
    for part in parts:
        records = _whole(part.group, read) if part in drawn else None
        claims = published(part.group.spec) if published else []
        sections.append(_section(part, records, claims, figures))
        entries.append((part.slug, part.group.title))
    ranks = _ranks(parts)
    names = [m for m in methods if any(m in p.group.methods.values() for p in parts)]
    names += sorted({m for p in parts for m in p.group.methods.values()} - set(names))
    if ranks:
        entries.append(("ranks", "Across datasets"))
    entries += [("methods", "Methods"), ("caveats", "Caveats")]
    cards = "".join(_card(methods.get(m) or MethodFacts(m, "", "", ""), parts, drawn) for m in names)
    contents = "".join(f'<li><a href="#{slug}">{escape(title)}</a></li>' for slug, title in entries)
    here = Path(__file__)
    style, script = (here.with_name(f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    return f"""<!doctype html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'; img-src data:">
<title>Multimodal imbalance: {escape(_datasets(parts))}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<div class="page">
<header>
<h1>Multimodal imbalance: methods compared</h1>
<p class="lede">In joint training a strong modality can starve a weak one. This page shows what methods against it do
on {escape(_datasets(parts))}, from the runs of one results folder.</p>
{_header(parts, select)}
</header>
<nav aria-labelledby="contents"><h2 id="contents">Contents</h2>
<ol><li><a href="#use">What should I use?</a></li>{contents}</ol></nav>
<main id="content">
<section aria-labelledby="use"><h2 id="use">What should I use?</h2>
{_overview(parts, roles)}
</section>
{"".join(sections)}
{ranks}
<section aria-labelledby="methods"><h2 id="methods">Methods</h2>
{cards}</section>
<section aria-labelledby="caveats"><h2 id="caveats">Caveats</h2>
{elements.listed(_general(parts, drawn, figured, select, roles, lacking))}
</section>
</main>
</div>
<script>
{script}</script>
</body>
</html>
"""


def analyse(group: Group, slug: str, select: str, roles: Roles, order: tuple[str, ...] = ()) -> Part:
    """Means, verdicts and advice of a group."""
    modalities = group.runs[0].record["result"]["modalities"]
    reference = _row(group, roles.reference)
    comparison, samples = compare([run.record for run in group.runs], select, reference=reference), group.samples
    whole = [f"alone/{m}" for m in modalities]
    rows = [label for name in roles.alone if (label := _row(group, name)) is not None]
    alone = next((label for label in rows if all(group.hits(label, name) for name in whole)), None)
    scores = pd.concat([group.scores(), _probe_gaps(group, alone)], axis=1).groupby(level=0, sort=False)
    fused = {label: group.hits(label, "fused") for label in group.rows}
    main = {label: fused[label] for label in _main(group).values()}  # to pick among variants is to select on test
    single = [label for label, method in group.methods.items() if method in roles.single]
    readout, measured, lost, remedies = None, "alone", [], []
    if reference is not None:
        complete = (k for k in advice.INSIDE if all(group.hits(reference, f"{k}/{m}") for m in modalities))
        readout = next(complete, None)
        inside = {
            label: {m: hits for m in modalities if (hits := group.hits(label, f"{readout}/{m}"))}
            for label in group.rows
        }
        if alone is not None:
            if readout == "probe" and all(group.hits(alone, f"probe/{m}") for m in modalities):
                measured = "probe"
            apart = {m: group.hits(alone, f"{measured}/{m}") for m in modalities}
            lost = advice.gaps(apart, inside[reference], samples)
        passes = dict(zip(comparison.table["method"], comparison.table["passes_relative"], strict=True))
        starved = [gap.modality for gap in lost if gap.starved]
        read = {label: inside[label] for label in main}
        remedies = advice.remedies(main, read, reference, starved, passes, samples)
    choice = advice.choose(main, reference, remedies, samples, single)
    told = advice.sentences(reference or roles.reference, readout, lost, remedies, choice, single, measured)
    mean, sd = scores.mean(), scores.std(ddof=1)
    leaders = advice.leaders(fused, samples)
    found = (comparison, mean, sd, reference, alone, readout, lost, remedies, leaders, choice, told)
    return Part(group, slug, select, *found, order)


def _probe_gaps(group: Group, alone: str | None) -> pd.DataFrame:
    """One row a run, as :meth:`Group.scores`: ``probe_gap/m`` against the run of ``alone`` with the same seed."""
    apart = {run.seed: _test(run) for run in group.rows.get(alone or "", [])}
    modalities = group.runs[0].record["result"]["modalities"]
    found = [probe_gap(apart.get(run.seed, {}), _test(run), modalities) for run in group.runs]
    return pd.DataFrame(found, index=group.labels).add_prefix("probe_gap/")


def _row(group: Group, method: str) -> str | None:
    """The row of ``method``; of several the one with most runs, or with usual options."""
    labels = [label for label, name in group.methods.items() if name == method]
    return max(labels, key=lambda label: (len(group.rows[label]), label == method), default=None)


def _main(group: Group) -> dict[str, str]:
    """Method -> its row for figures and ranks, which have no room for several."""
    rows = {method: _row(group, method) for method in group.methods.values()}
    return {method: label for method, label in rows.items() if label is not None}


def _whole(group: Group, read: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """The whole records of the main rows, with the labels of their rows."""
    main = set(_main(group).values())
    specs = [spec for spec, label in zip(group.specs(), group.labels, strict=True) if label in main]
    return group.labelled(filter(None, map(read, specs)))


def _datasets(parts: Sequence[Part]) -> str:
    names = sorted({part.group.spec["dataset"] for part in parts})
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _header(parts: Sequence[Part], select: str) -> str:
    specs = [part.group.spec for part in parts]
    runs = sum(len(part.group.runs) for part in parts)
    protocols = sorted({f"{spec['protocol']} v{spec['protocol_version']}" for spec in specs})
    seeds = sorted({run.seed for part in parts for run in part.group.runs})
    methods = {method for part in parts for method in part.group.methods.values()}
    return elements.facts(
        {
            "Datasets": escape(_datasets(parts)),
            "Protocols": escape(", ".join(protocols)),
            "Runs": f"{runs} of {len(methods)} methods in {len(parts)} groups, seeds {seeds[0]} to {seeds[-1]}",
            "Read at": f"<code>{escape(select)}</code>. {escape(RULES[select])}",
            "Numbers": "Test split, in percent, mean ± sample standard deviation over seeds. A group holds runs that "
            "agree in everything but the method, its options and the seed; nothing is averaged across groups.",
        }
    )


def _overview(parts: Sequence[Part], roles: Roles) -> str:
    """One line a group: who starves, what to use."""
    rows = []
    for part in parts:
        read = "" if part.readout == "probe" else f", {part.readout}"
        starved = [f"{escape(g.modality)} (−{g.found.difference * 100:.1f}{read})" for g in part.lost if g.starved]
        remedy = next((r for r in part.remedies if part.choice and r.method == part.choice.method), None)
        if remedy is not None and part.choice is not None:
            use = (
                f"<b>{escape(remedy.method)}</b>"
                if part.choice.fusion_wins
                else f"none; to fuse, {escape(remedy.method)}"
            )
            gain, cost = number(remedy.gain.difference), number(remedy.passes, 1, 2)
        else:
            use = "none of them" if part.choice and part.remedies else "no answer yet"
            gain = cost = number(math.nan)
        doubts = []
        if part.choice is not None and part.remedies:
            doubts = ["no single modality to compare with"] * (part.choice.lead is None)
            doubts += ["one seed"] * (part.choice.leaders.seeds == 1)
        use += f'<br><small class="none">{"; ".join(doubts)}</small>' if doubts else ""
        unknown = "none" if part.lost else '<span class="none">not known</span>'
        link = f'<a href="#{part.slug}">{escape(part.group.title)}</a>'
        rows.append([Cell(link), Cell(use), gain, cost, Cell(", ".join(starved) or unknown)])
    reference = escape(roles.reference)
    caption = (
        f"The answer of every group. Starved: modalities that are worse inside {reference} than trained alone, with "
        "the points that a probe of the encoder loses or, where so marked, the share of the fused logits or the "
        "prediction with the others masked, which also depend on the fusion. Use: of the methods that fuse, are not "
        f"significantly different from the most accurate of them and beat {reference}, the one with fewest passes; "
        f"none, where one modality alone does as well. Gain: points of test accuracy over {reference}; passes: encoder "
        f"passes as a multiple of {reference}'s. No answer yet: {reference} and another method have no seed in common."
    )
    return elements.table(caption, ["group", "use", "gain", "passes", f"starved in {reference}"], rows)


def _section(
    part: Part, records: list[dict[str, Any]] | None, claims: Sequence[Mapping[str, Any]], figures: Figures
) -> str:
    title, slug = escape(part.group.title), part.slug
    shown, left_out = _figures(part, records, figures) if records else ("", [])
    blocks = [
        f'<section class="group" aria-labelledby="{slug}"><h2 id="{slug}">{title}</h2>',
        "".join(f"<p>{escape(sentence)}</p>" for sentence in part.comparison.caption[:2]),
        "<h3>What should I use here?</h3>",
        '<div class="answer">' + "".join(f"<p>{escape(s)}</p>" for s in part.sentences) + "</div>",
        "<h3>Results</h3>",
        _results(part),
        _against(part),
        _costs(part),
        _published(claims),
        f"<h3>Figures</h3>{shown}" if shown else "",
        "<h3>Caveats of this group</h3>",
        elements.listed(_caveats(part, left_out)),
        "</section>\n",
    ]
    return "\n".join(filter(None, blocks))


def _results(part: Part) -> str:
    """The main table."""
    table = part.comparison.table.set_index("method")
    over = f"<small>of {escape(part.reference)}’s</small> " if part.reference else ""
    columns = [("accuracy", "accuracy"), ("macro_f1", "macro-F1"), ("ece", "ECE"), ("top5", "top-5")]
    columns += [(f"{k}/{m}", f"<small>{k}</small> {escape(m)}") for k in READOUTS for m in part.comparison.modalities]
    columns += [(f"probe_gap/{m}", f"<small>probe gap</small> {escape(m)}") for m in part.comparison.modalities]
    columns = [c for c in [*columns, ("imbalance", "imbalance")] if c[0] in part.mean and part.mean[c[0]].notna().any()]
    costs = [("passes_relative", f"{over}passes"), ("seconds_relative", f"{over}seconds")]
    costs = [c for c in costs if table[c[0]].notna().any()]
    ties = part.leaders.ties if part.leaders else ()
    best = part.leaders.best if part.leaders else part.mean["accuracy"].idxmax()
    rows = []
    for label, row in table.iterrows():
        counts = Cell(f"{row['n']} of {row['wanted']}", row["n"])
        cells = [number(part.mean[name][label], sd=part.sd[name][label], best=label == best) for name, _ in columns[:1]]
        cells += [number(row[name], 1, 2) for name, _ in costs]
        cells += [number(part.mean[name][label], sd=part.sd[name][label]) for name, _ in columns[1:]]
        if label != best and (label in ties or (part.leaders and label in part.leaders.noisy)):
            sign, words = ("†", CLOSE) if label in ties else ("‡", NOISY)
            mark = f' <span class="tie">{sign}<span class="hidden">{words}</span></span>'
            cells[0] = Cell(cells[0].text + mark, cells[0].value)
        rows.append([Cell(escape(label)), counts, *cells])
    samples = part.comparison.samples
    kinds = ("accuracy", *READOUTS)
    for name, value in (("majority class", samples.majority), ("chance", samples.chance)):
        shown = {c: number(value if c.partition("/")[0] in kinds else math.nan) for c, _ in columns}
        accuracy, *others = shown.values()
        rows.append([Cell(name), Cell(""), accuracy, *[number(math.nan)] * len(costs), *others])
    used = {name.partition("/")[0] for name, _ in columns}
    told = [f"{k}: accuracy {meaning}." for k, meaning in READOUTS.items() if k in used]
    if "probe_gap" in used:
        told.append(
            f"Probe gap: what a probe reads in the encoder trained alone ({escape(part.alone)}, same seed) minus what "
            "it reads here, in points; above 0 where training together cost the encoder that much."
        )
    told += ["ECE: expected calibration error, 15 bins."] if "ece" in used else []
    told.append("Imbalance: mean difference between the modalities' Shapley contributions, in points; 0 is balanced.")
    if part.reference:
        told.append("Passes: samples through the encoders, forward + 2 × backward, as a multiple of the reference's.")
    caption = f"Test results of {escape(part.group.title)}. Bold: most accurate. {_ties(part)} {' '.join(told)}"
    return elements.table(caption, ["method", "n", *(head for _, head in [columns[0], *costs, *columns[1:]])], rows)


def _ties(part: Part) -> str:
    if part.leaders is None:
        return "" if len(part.mean) == 1 else "No test against the best: the methods have no seed in common."
    seeds = f"{part.leaders.seeds} seed{'s' * (part.leaders.seeds > 1)}"
    left = (
        f" Not compared, with fewer or other seeds: {escape(', '.join(part.leaders.left))}."
        if part.leaders.left
        else ""
    )
    return (
        f"†: not significantly different from it; ‡: too noisy to say (over the test samples of {seeds}, allowing for "
        f"ten methods, 5 %: the verdicts of all tables).{left}"
    )


def _against(part: Part) -> str:
    """Gains over the reference, and what starved modalities get back."""
    if not part.remedies:
        return ""
    starved = [gap.modality for gap in part.lost if gap.starved]
    rows = []
    for remedy in part.remedies:
        gain = remedy.gain
        interval = f"{number(gain.low).text} to {number(gain.high).text}"
        changes = [number(remedy.change.get(m, math.nan), best=m in remedy.recovered) for m in starved]
        cells = [number(gain.difference, best=gain.kind == DIFFERENT), Cell(interval, gain.low), Cell(gain.kind)]
        rows.append([Cell(escape(remedy.method)), *cells, *changes, number(remedy.passes, 1, 2)])
    reference = escape(part.reference)
    caption = (
        f"Gains over {reference}. Points of test accuracy; intervals (95 %) over seeds and samples, allowing for ten "
        "methods."
    )
    if starved:
        caption += (
            f" Modalities: change of what {part.readout} reads for a modality that starves in {reference}, over "
            f"{reference}; bold: significant and at least {advice.MARGIN * 100:g} point."
        )
    heads = [
        "method",
        "gain",
        "95 % interval",
        "verdict",
        *(f"<small>{part.readout}</small> {escape(m)}" for m in starved),
    ]
    return f"<h3>Against {reference}</h3>\n" + elements.table(caption, [*heads, "passes"], rows)


def _costs(part: Part) -> str:
    """What a run of each method takes."""
    spent = pd.DataFrame([run.record["costs"] for run in part.group.runs], index=part.group.labels, columns=list(COSTS))
    means = spent.astype(float).groupby(level=0, sort=False).mean()
    columns = [name for name in COSTS if means[name].notna().any()]
    rows = [
        [Cell(escape(label)), *(number(row[name], 1 / COSTS[name][1], 2) for name in columns)]
        for label, row in means.iterrows()
    ]
    told = (
        "Forward and backward: passes of samples through the encoders. GFLOP: of all of them, a backward pass counted "
        "as two forward ones."
    )
    if "peak_memory_bytes" in columns:
        told += " Memory: the most allocated on a GPU; on a CPU the most resident, with libraries and data."
    caption = f"What a run takes in {escape(part.group.title)}, mean over seeds. {told}"
    return "<h3>Costs</h3>\n" + elements.table(caption, ["method", *(COSTS[name][0] for name in columns)], rows)


def _published(claims: Sequence[Mapping[str, Any]]) -> str:
    if not claims:
        return ""
    rows = [
        [
            Cell(escape(c["label"])),
            number(math.nan if c["accuracy"] is None else c["accuracy"], 1),
            Cell(f'<span class="wide">{escape(c["protocol"])}</span>'),
            Cell(f'<span class="wide">{elements.linked(c["source"])}</span>'),
        ]
        for c in claims
    ]
    caption = (
        "Published numbers. From the literature, each under its own protocol; in no mean, and not comparable as such."
    )
    return "<h3>Published</h3>\n" + elements.table(caption, ["method", "accuracy", "protocol", "source"], rows)


def _figures(part: Part, records: list[dict[str, Any]], figures: Figures) -> tuple[str, list[str]]:
    shown, left_out = [], []
    for i, (name, draw) in enumerate(figures, 1):
        try:
            drawing = draw(part, records)
        except UserError as error:
            left_out.append(f"No figure “{name}”: {error}.")
            continue
        if drawing is None:
            left_out.append(f"No figure “{name}”: the runs hold nothing for it.")
        else:
            shown.append(f"<h4>{escape(name)}</h4>" + elements.figure(drawing, name, f"{part.slug}f{i}"))
    return "\n".join(shown), left_out


def _ranks(parts: Sequence[Part]) -> str:
    """Average ranks over datasets: one group each, the one with most runs, of those that have all its methods."""
    wanted = list(_main(parts[0].group))
    first: dict[str, pd.Series] = {}
    for part in parts:
        main = _main(part.group)
        if set(wanted) <= set(main):
            accuracies = {method: part.mean["accuracy"][main[method]] for method in wanted}
            first.setdefault(part.group.spec["dataset"], pd.Series(accuracies, name=part.group.title))
    if len(first) < 2 or len(wanted) < 2:
        return ""
    diagram = critical_difference_diagram(pd.DataFrame(list(first.values())))
    figure = elements.figure(diagram, "Average ranks", "rank")
    return (
        '<section class="group" aria-labelledby="ranks"><h2 id="ranks">Across datasets</h2>\n'
        "<p>The methods of the group with most runs, on every dataset that has a group with all of them; one group a "
        f"dataset.</p>\n{figure}</section>"
    )


def _card(facts: MethodFacts, parts: Sequence[Part], drawn: Sequence[Part]) -> str:
    """What a method is, where it wins, what it costs."""
    mine = [(part, label) for part in parts for label, name in part.group.methods.items() if name == facts.name]
    won = {part.group.title: None for part, label in mine if part.leaders and part.leaders.best == label}
    level = {p.group.title: None for p, label in mine if p.leaders and label in p.leaders.ties}
    about = {
        "Family": escape(facts.family) or "not known here",
        "Reference": elements.linked(facts.reference) or "not known here",
        "Most accurate": _some([*won]),
        "Not significantly different": _some([title for title in level if title not in won]),
    }
    rows = []
    for part, label in [(part, label) for part, label in mine if part in drawn]:
        row = part.comparison.table.set_index("method").loc[label]
        link = f'<a href="#{part.slug}">{escape(part.group.title)}</a>'
        rows.append(
            [
                Cell(link),
                Cell(escape(_options(facts, part.group.rows[label][0].record["spec"]))),
                number(row["accuracy"], sd=row["accuracy_sd"]),
                number(row["passes_relative"], 1, 2),
                number(row["seconds_relative"], 1, 2),
                Cell(_spark(part, label)),
            ]
        )
    heads = ["group", "options changed", "accuracy", "passes", "seconds", "validation"]
    caption = (
        f"{escape(facts.name)} in the groups with figures. Passes and seconds are relative to the reference; the line "
        "is the validation accuracy over the epochs, mean over seeds, interrupted between phases."
    )
    idea = f"<p>{elements.prose(facts.summary)}</p>" if facts.summary else ""
    return (
        f'<article class="method"><h3>{escape(facts.name)}</h3>{idea}{elements.facts(about)}'
        f"{elements.table(caption, heads, rows, sortable=False) if rows else ''}</article>\n"
    )


def _some(titles: Sequence[str], most: int = 6) -> str:
    rest = f"; and {len(titles) - most} more" if len(titles) > most else ""
    return escape("; ".join(titles[:most])) + rest if titles else "nowhere here"


def _options(facts: MethodFacts, spec: Mapping[str, Any]) -> str:
    """The options of a run that are not at their default."""
    changed = {k: v for k, v in spec["method_options"].items() if k in facts.defaults and v != facts.defaults[k]}
    return ", ".join(f"{k} {v}" for k, v in changed.items()) or "none"


def _spark(part: Part, label: str) -> str:
    """The mean validation curve, on an axis that all methods of the group share."""
    every = [v for run in part.group.runs for phase in run.curve for v in phase]
    phases = _mean_curve([run.curve for run in part.group.rows[label]])
    if not phases:
        return ""
    told = "; ".join(f"{phase[0] * 100:.1f} to {phase[-1] * 100:.1f} %" for phase in phases)
    return elements.sparkline(phases, min(every), max(every), f"Validation accuracy of {label}, by phase: {told}")


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Point by point over the runs that have the phase and the point."""
    phases = []
    for i in range(max(map(len, curves))):
        mine = pd.DataFrame([curve[i] for curve in curves if len(curve) > i])
        phases.append(mine.mean().tolist())
    return phases


def _caveats(part: Part, left_out: Sequence[str]) -> list[str]:
    """What limits the numbers of a group, from its records."""
    runs = part.group.runs
    spec, facts = part.group.spec, runs[0].record["data"]["facts"]
    counts = {label: len(rows) for label, rows in part.group.rows.items()}
    least = min(counts.values())
    told = []
    if least < FEW:
        few = "one seed: no spread, and no word on training anew" if least == 1 else f"{least} seeds: small differences"
        who = "Every method has" if len(set(counts.values())) == 1 else "Some method has only"
        told.append(f"{who} {few}{'' if least == 1 else ' mean little'}.")
    if len(set(counts.values())) > 1:
        told.append("Seeds differ between methods: " + ", ".join(f"{label} {n}" for label, n in counts.items()) + ".")
    if facts.get("generated"):
        told.append("The data is generated, at least in part: it shows the mechanism, not performance on real data.")
    if spec["precision"] != "fp32":
        told.append(f"Encoders computed in {spec['precision']}; figures under fp32 can differ in the last digit.")
    for name in OPTIONAL:
        having = sum(any(k.partition("/")[0] == name for k in _test(run)) for run in runs)
        if having < len(runs):
            told.append(
                f"{name} is missing in {len(runs) - having} of {len(runs)} runs: they were recorded without it."
            )
    if part.readout in ("share", "masked"):
        told.append(
            f"Modalities inside the methods are read by {part.readout}, which also depends on how they were fused; a "
            "probe would read the encoder alone."
        )
    if len(part.mean) > len(_main(part.group)):
        told.append(
            "Some methods have several sets of options. To pick the best of them by these numbers is to select on the "
            "test split; figures show one row a method, the one with most runs."
        )
    if part.reference and any(remedy.passes > 1.05 for remedy in part.remedies):
        told.append(
            f"Methods cost up to {max(r.passes for r in part.remedies):.1f} times the passes of {part.reference}; "
            f"whether {part.reference} trained as long would do as well is another run."
        )
    found = judge({label: part.group.hits(label, "fused") for label in part.group.rows}, part.group.samples)
    told += [
        note for note in (found and clustered(spec["dataset"], found), found and crowded(len(found.means))) if note
    ]
    told.append(part.comparison.notes[-1])
    return [*told, *left_out]


def _test(run: Any) -> Mapping[str, float]:
    return next(iter(run.record["result"]["readings"].values()))["test"]


def _general(
    parts: Sequence[Part], drawn: Sequence[Part], figured: int, select: str, roles: Roles, lacking: int
) -> list[str]:
    """What limits the page as a whole."""
    told = [RULES[select]]
    if lacking:
        told.append(
            f"{lacking} run{'s were' if lacking > 1 else ' was'} left out: not evaluated so that {select} can be read."
        )
    if len(drawn) < len(parts):
        told.append(
            f"{len(drawn)} of {len(parts)} groups have figures: of the {figured} with most runs those with at most "
            f"{MOST} methods. The others have their tables."
        )
    without = [part.group.title for part in parts if part.reference is None]
    if without:
        told.append(f"No run of {roles.reference}, so neither gains nor relative costs: {_plain(without)}.")
    unknown = [part.group.title for part in parts if not part.lost]
    if unknown:
        told.append(
            f"No run of each modality alone ({' or '.join(roles.alone)}) or no read-out beside it, so nothing is said "
            f"about starving: {_plain(unknown)}."
        )
    told += [
        "Seconds are those of the machine as it was: beside other work they say little. Encoder passes are exact.",
        "Verdicts treat seeds and test samples, or groups of these, as drawn at random; they do not cover other "
        "splits, encoders or options.",
        "Options are those of the protocol or of the method's source, not tuned for each dataset unless a row says so.",
    ]
    return told


def _plain(titles: Sequence[str], most: int = 6) -> str:
    return "; ".join(titles[:most]) + (f"; and {len(titles) - most} more" if len(titles) > most else "")
