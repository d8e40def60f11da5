"""A comparison table made of records: one row a method, one protocol a table, every number from the same reading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from balancebench_udi.errors import UserError
from balancebench_udi.protocol import check_published
from balancebench_udi.report import rendering
from balancebench_udi.report.budget import at_budget, budget_curve
from balancebench_udi.report.contest import (
    CAUTION,
    MARKED,
    Contest,
    Samples,
    clustered,
    contest,
    crowded,
    finding,
    floors,
    fullest,
    held_against,
    listed,
    samples_of,
    seeds_of,
    tradeoff,
)
from balancebench_udi.spec import canonical
from balancebench_udi.store import Store

RULES = {
    "last": "Every phase of a run is read at its last epoch.",
    "best_val": "Every phase of a run is read at its epoch with the best validation accuracy; the test split had no "
    "part in it.",
    "best_test": "Every phase of a run is read at its epoch with the best test accuracy: selected on the test split, "
    "these numbers are optimistic and comparable only with numbers selected in the same way.",
}
"""What each reading means, in the words of the caption."""

MEANINGS = (
    "share: accuracy of a modality's exact part of the fused logits (additive fusion only).",
    "masked: accuracy of the fused prediction with the features of all other modalities at zero.",
    "alone: accuracy of the method's own head for the modality.",
    "Shapley: contribution of a modality to the accuracy, over all subsets of modalities read out as masked, in "
    "percentage points.",
    "imbalance: mean absolute difference between those contributions, in percentage points (absolute) and divided by "
    "the sum of their absolute values (relative); 0 is balanced.",
)

NEWER = (
    "probe: accuracy of a linear classifier fitted to what the frozen encoder makes of the train split.",
    "calibration error: mean gap between confidence and accuracy over 15 bins of confidence, in percentage points.",
)

BUDGETS = (1, 2, 3)
"""Multiples of the reference's passes at which accuracies are read."""

MIXED = "CPU seconds of runs on a CPU and elapsed seconds of those on a GPU"

FREE = ("method", "method_version", "method_options", "seed", "test_each_epoch")
"""What may differ between the records of one table; everything else is its protocol."""


@dataclass(frozen=True)
class Comparison:
    """A finished table.

    Attributes:
        title: dataset and protocol.
        select: the reading: ``last``, ``best_val`` or ``best_test``.
        table: one row a method: its identity, ``n`` and ``wanted`` seeds, mean and ``<name>_sd`` (sample standard
            deviation, NaN for one seed) of every score in [0, 1], costs; NaN where a method lacks a score.
            ``p_adjusted`` is that of the accuracy's difference from the best method's (NaN for the best itself),
            ``verdict`` what it says (``best`` for that one, nothing for methods that were not compared), ``majority``
            and ``chance`` the accuracies that need no learning.
        published: rows from the literature: label, accuracy in percent or None, source, protocol.
        caption: data, protocol, seeds and selection, a sentence each.
        notes: machines, and what each column means.
        findings: what the accuracies say, for readers without statistics, a sentence each; none without a contest.
        contest: the methods compared with the best one; None where there is nothing to test.
        samples: of the test split.
        fullest: the methods with the most seeds; only they can be best.
        modalities: in the order of fusion.
        reference: the method that costs are relative to; None where it is not in the table.
    """

    title: str
    select: str
    table: pd.DataFrame
    published: tuple[Mapping[str, Any], ...]
    caption: tuple[str, ...]
    notes: tuple[str, ...]
    findings: tuple[str, ...]
    contest: Contest | None
    samples: Samples
    fullest: tuple[str, ...]
    modalities: tuple[str, ...]
    reference: str | None

    def text(self) -> str:
        """The table for a terminal, at most 100 columns wide for up to three modalities."""
        return rendering.text(self, RULES[self.select])


def compare(
    records: Sequence[Mapping[str, Any]],
    select: str = "best_val",
    published: Sequence[Mapping[str, Any]] = (),
    wanted: int | None = None,
    reference: str | None = None,
) -> Comparison:
    """Average records over their seeds, and put the methods below each other in the order of their first record.

    Args:
        records: as :func:`balancebench_udi.store.read_record` returns them; all of one protocol.
        select: the reading: ``last``, ``best_val`` or ``best_test``.
        published: rows from the literature, shown beside ours and never part of a mean: ``label``, ``accuracy`` in
            percent or None, ``source`` and ``protocol``.
        wanted: seeds asked for; by default the most that any method has.
        reference: the method whose encoder passes and seconds are 1, and that others are held against.

    Raises:
        UserError: no records, an unknown or absent reading, records of a method that differ in more than the seed,
            a seed twice, methods under different protocols, a published row that is incomplete.
    """
    if select not in RULES:
        raise UserError(f"select must be one of {', '.join(RULES)}, found {select!r}")
    if not records:
        raise UserError("a comparison needs at least one record, found none: train a method first")
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        _check(record, records[0], runs.setdefault(record["spec"]["method"], []), select)
        runs[record["spec"]["method"]].append(record)
    for claim in published:
        check_published(claim)
    most = max(map(len, runs.values()))
    wanted = most if wanted is None else wanted
    if wanted < most:
        raise UserError(f"wanted must be >= the number of seeds of every method, found {wanted} < {most}")
    for group in runs.values():
        group.sort(key=lambda r: r["spec"]["seed"])
    modalities = tuple(records[0]["result"]["modalities"])
    reference = reference if reference in runs else None

    scores = ["accuracy", "macro_f1", *(f"{k}/{m}" for k in (*rendering.READOUTS, "shapley") for m in modalities)]
    scores += ["imbalance", "imbalance_relative"]
    newer = [*(f"probe/{m}" for m in modalities), "top5", "ece"]  # which older records lack
    scores += [n for n in newer if any(n in r["result"]["readings"][select]["test"] for r in records)]
    figures = pd.DataFrame([_figures(r, select, scores) for group in runs.values() for r in group])
    groups = figures.groupby("method", sort=False)
    mean, sd = groups.mean(), groups[scores].std(ddof=1)
    samples = samples_of(records[0])
    rows, untimed, held = [], [], contest(runs, select, reference=reference)
    for method, group in runs.items():
        spec = group[0]["spec"]
        row: dict[str, Any] = {
            "dataset": spec["dataset"],
            "protocol": f"{spec['protocol']} v{spec['protocol_version']}",
            "select": select,
            "published": False,
            "method": method,
            "method_version": spec["method_version"],
            "method_options": canonical(spec["method_options"]),
            "cell": group[0]["cell"],
            "n": len(group),
            "wanted": wanted,
        }
        for name in scores:
            row |= {name: mean[name][method], f"{name}_sd": sd[name][method]}
            if name == "accuracy":
                row |= _judged(method, held, samples)
        row |= {name: mean[name][method] for name in ("passes", "seconds", "spent")}
        one = mean.loc[reference] if reference else None
        timed = reference is not None and _machines(group) == _machines(runs[reference])
        if reference and not timed:
            untimed.append(method)
        row["passes_relative"] = row["passes"] / one["passes"] if one is not None else float("nan")
        for name in ("seconds", "spent"):  # what was spent is less than the seconds where a phase was reused
            row[f"{name}_relative"] = row[name] / one["seconds"] if one is not None and timed else float("nan")
        if one is not None and all("curves" in r["result"] for r in records):
            row |= _at_budgets(group, select, one["passes"])
        rows.append(row)
    full = tuple(fullest(seeds_of(runs)))
    caption, notes = _caption(runs, select, wanted, held, samples), _notes(runs, select, reference, untimed)
    findings = _findings(rows, held)
    if len(full) == 1 < len(runs):
        others = listed([method for method in runs if method not in full])
        findings = (f"Nothing is compared: the seeds of {full[0]} are still to train with {others}.",)
    title = f"{rows[0]['dataset']}, protocol {rows[0]['protocol']}"
    table = pd.DataFrame(rows)
    return Comparison(
        title, select, table, tuple(published), caption, notes, findings, held, samples, full, modalities, reference
    )


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``comparison.md``, ``comparison.csv`` and ``comparison.tex`` into ``folder``; equal records, equal bytes.

    The csv holds one row a method with accuracies in [0, 1] at full precision; the LaTeX table needs the packages
    booktabs and graphicx.

    Raises:
        UserError: ``folder`` cannot be written.
    """
    made = {"md": rendering.markdown, "csv": rendering.csv, "tex": rendering.latex}
    paths = []
    for suffix, rendered in made.items():
        paths.append(folder / f"comparison.{suffix}")
        Store(folder).replace(paths[-1], lambda handle: handle.write(rendered(comparison).encode()))
    return paths


def _judged(method: str, held: Contest | None, samples: Samples) -> dict[str, Any]:
    """What the contest says of one method, and what needs no learning."""
    told: dict[str, Any] = {"p_adjusted": float("nan"), "verdict": None}
    if held is not None:
        told = {"p_adjusted": held.p(method), "verdict": held.kind(method)}
    return {**told, "majority": samples.majority, "chance": samples.chance}


def _findings(rows: Sequence[Mapping[str, Any]], held: Contest | None) -> tuple[str, ...]:
    """What the accuracies say."""
    if held is None:
        return ()
    where = rows[0]["dataset"]
    imbalance = {row["method"]: row["imbalance"] for row in rows if row["method"] in held.means}
    told = (finding(where, held), held_against(where, held), tradeoff(where, held.means, imbalance), CAUTION)
    return tuple(sentence for sentence in told if sentence)


def _check(record: Mapping[str, Any], first: Mapping[str, Any], mates: list[Mapping[str, Any]], select: str) -> None:
    """Refuse a record that has no place beside ``first`` and the records of the same method so far."""
    spec = record["spec"]
    name = f"{spec['method']} seed {spec['seed']}"
    if mates:
        differing = _difference(mates[0]["spec"], spec, ("seed",))
        if differing:
            raise UserError(
                f"records of {spec['method']} must agree in everything but the seed to be averaged, found {differing} "
                f"(seeds {mates[0]['spec']['seed']} and {spec['seed']}): compare them in separate tables"
            )
        if any(mate["spec"]["seed"] == spec["seed"] for mate in mates):
            raise UserError(f"every seed must count once, found two records of {name}: pass one of them")
    differing = _difference(first["spec"], spec, FREE)
    if differing:
        raise UserError(
            f"a table must have one protocol, found {differing} ({first['spec']['method']} and {spec['method']}): "
            "compare them in separate tables"
        )
    if select not in record["result"]["readings"]:
        raise UserError(
            f"{select} needs runs with test evaluated each epoch, found none in {name}: "
            "train it again with --test-each-epoch, or select last or best_val"
        )


def _difference(mine: Mapping[str, Any], theirs: Mapping[str, Any], free: Sequence[str]) -> str:
    """``"optimizer.lr 0.1 and 0.2, epochs 3 and 4"``; empty where the specifications agree outside of ``free``."""
    a, b = (dict(_leaves({k: v for k, v in spec.items() if k not in free})) for spec in (mine, theirs))
    names = [k for k in {**a, **b} if a.get(k, "absent") != b.get(k, "absent")]
    return ", ".join(f"{k} {a.get(k, 'absent')} and {b.get(k, 'absent')}" for k in names)


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def _figures(record: Mapping[str, Any], select: str, scores: Sequence[str]) -> dict[str, Any]:
    """What one run adds to a mean."""
    test, passes = record["result"]["readings"][select]["test"], record["result"]["passes"]
    clock = "cpu_seconds" if record["machine"]["device_type"] == "cpu" else "seconds"
    phases = record["cost"]["phases"]
    return {
        "method": record["spec"]["method"],
        **{name: test.get(name, float("nan")) for name in scores},
        "passes": sum(passes["forward"].values()) + 2 * sum(passes["backward"].values()),
        "seconds": sum(p[clock] for p in phases),
        "spent": sum(p[clock] for p in phases if p["reused_from"] is None),
    }


def _at_budgets(group: Sequence[Mapping[str, Any]], select: str, unit: float) -> dict[str, float]:
    """Mean validation accuracy after 1, 2 and 3 times ``unit`` passes; NaN where some run had nothing to predict by."""
    found = {}
    for times in BUDGETS:
        reached = [at_budget(budget_curve(record, select), times * unit) for record in group]
        known = [accuracy for accuracy in reached if accuracy is not None]
        found[f"budget_{times}x"] = sum(known) / len(known) if len(known) == len(reached) else float("nan")
    return found


def _machines(group: Sequence[Mapping[str, Any]]) -> set[str]:
    """What the seconds of ``group`` depend on, in words."""
    found = set()
    for machine in (record["machine"] for record in group):
        threads = f"CPU, {machine['threads']} thread{'s' * (machine['threads'] > 1)}"
        kind = threads if machine["device_type"] == "cpu" else "GPU"
        found.add(f"{machine['device']} ({kind}, torch {machine['torch']})")
    return found


def _caption(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], select: str, wanted: int, held: Contest | None, samples: Samples
) -> tuple[str, ...]:
    """What was measured and how, from the records."""
    first = next(iter(runs.values()))[0]
    spec, facts, modalities = first["spec"], first["data"]["facts"], first["result"]["modalities"]
    parts = [f"modalities {', '.join(modalities)}", f"{len(first['data']['classes'])} classes"]
    if "generated" in facts:
        part = f": {facts['generated_part']}" if "generated_part" in facts else ""
        parts.append(f"generated data{part}" if facts["generated"] else "real data")
    if spec["dataset_options"]:
        parts.append(f"options {_listed(spec['dataset_options'])}")
    encoders = ", ".join(f"{m} {_described(spec['encoders'][m])}" for m in modalities)
    seeds = {method: [r["spec"]["seed"] for r in group] for method, group in runs.items()}
    union = sorted({seed for group in seeds.values() for seed in group})
    among = " among the methods with the most seeds" if len(fullest(seeds_of(runs))) < len(runs) else ""
    fewer = [f"; {m} has {', '.join(map(str, s))}" for m, s in seeds.items() if s != union]
    return (
        f"Test split of {spec['dataset']} v{spec['dataset_version']} ({'; '.join(parts)}; "
        f"fingerprint {spec['fingerprint']}).",
        f"Protocol {spec['protocol']} v{spec['protocol_version']}: encoders {encoders}; {spec['fusion']} fusion; "
        f"optimiser {_described(spec['optimizer'])}; learning-rate schedule {_described(spec['schedule'])}; "
        f"{spec['epochs']} epoch{'s' * (spec['epochs'] != 1)} a phase; "
        f"batches of {spec['batch_size']}; {spec['precision']}.",
        f"Accuracies in percent, mean ± sample standard deviation over n of {wanted} seed{'s' * (wanted != 1)} "
        f"({', '.join(map(str, union))}{''.join(fewer)}); in bold the highest mean of a column{among}, "
        "which is no claim of significance.",
        RULES[select],
        floors(spec["dataset"], samples),
        *([MARKED] if held else []),
        *(note for note in (held and clustered(spec["dataset"], held), held and crowded(len(held.means))) if note),
    )


def _notes(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], select: str, reference: str | None, untimed: Sequence[str]
) -> tuple[str, ...]:
    """What the columns mean, and where the runs were trained."""
    everything = [record for group in runs.values() for record in group]
    meanings: tuple[str, ...] = MEANINGS
    if any("ece" in record["result"]["readings"][select]["test"] for record in everything):
        meanings += NEWER
    machines = f"Trained on {'; '.join(sorted(_machines(everything)))}."
    versions = {method: group[0]["spec"]["method_version"] for method, group in runs.items()}
    if later := [f"{method} {version}" for method, version in versions.items() if version != 1]:
        machines += f" Versions of methods, where not 1: {', '.join(later)}."
    if reference is None:
        return (
            *meanings,
            "passes and seconds are relative to a reference method, which is not in the table.",
            machines,
        )
    kinds = {record["machine"]["device_type"] == "cpu" for record in everything}
    clock = "CPU seconds" if kinds == {True} else "elapsed seconds" if kinds == {False} else MIXED
    costs = (
        "passes: samples through the encoders, forward + 2 × backward, summed over the encoders; seconds: "
        f"{clock} of training, without evaluation; both as if the method had been trained on its own, as a multiple of "
        f"{reference}."
    )
    if all("curves" in record["result"] for record in everything):
        costs += (
            f" validation after 1×, 2×, 3×: best validation accuracy so far after that many times the passes of "
            f"{reference}, of the fused prediction; none before a method that fuses last is finished."
        )
    if untimed:
        machines += f" Not on the machine of {reference}, so without seconds: {', '.join(untimed)}."
    return (*meanings, costs, machines)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {str(v).lower() if isinstance(v, bool) else v}" for k, v in sorted(values.items()))


def _described(values: Mapping[str, Any]) -> str:
    """``{"name": "sgd", "lr": 0.1}`` as ``sgd (lr 0.1)``."""
    rest = {k: v for k, v in values.items() if k != "name"}
    return values["name"] + (f" ({_listed(rest)})" if rest else "")
