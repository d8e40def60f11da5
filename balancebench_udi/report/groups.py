"""Many records in little memory: what a page needs of each, grouped by what may stand in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from balancebench_udi.metrics.predictions import unpack
from balancebench_udi.report.comparison import FREE
from balancebench_udi.report.contest import Samples, samples_of
from balancebench_udi.report.tidy import costs
from balancebench_udi.spec import canonical

SPENT = ("parameters", "flops_per_sample", "passes_forward", "passes_backward", "flops", "peak_memory_bytes")
"""Of :func:`balancebench_udi.report.tidy.costs`, what a page shows beside passes and seconds."""
POINTS = 60
"""Most points of a validation curve that are kept."""
NAMED = ("protocol", "protocol_version", "dataset")
"""What every title names already."""
ABSENT = "absent"
"""What is said of a leaf that one of several lacks."""


@dataclass(frozen=True)
class Run:
    """One run, without what no page shows.

    Attributes:
        record: what :func:`balancebench_udi.report.comparison.compare` reads; its method is the label of the row.
        hits: read-out -> whether each of the N test samples was right, as packed bits.
        samples: N.
        curve: validation accuracy over the epochs, a list a phase, of at most ``POINTS`` in all.
    """

    record: dict[str, Any]
    hits: dict[str, np.ndarray]
    samples: int
    curve: list[list[float]]

    @property
    def seed(self) -> int:
        return self.record["spec"]["seed"]

    def correct(self, readout: str) -> np.ndarray:
        """``[N]`` bool."""
        return np.unpackbits(self.hits[readout], count=self.samples).astype(bool)


@dataclass
class Group:
    """The runs of one table: they agree in everything but the method, its options and the seed.

    Attributes:
        title: dataset, protocol, and what tells this group from others of the same two.
        rows: label -> its runs, seeds ascending. A method with several sets of options has a row each.
        methods: label -> name of the method.
    """

    title: str = ""
    rows: dict[str, list[Run]] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        return [run for runs in self.rows.values() for run in runs]

    @property
    def spec(self) -> dict[str, Any]:
        """The specification of the first run."""
        return self.specs()[0]

    @property
    def samples(self) -> Samples:
        """The test split."""
        return samples_of(self.runs[0].record)

    @property
    def labels(self) -> list[str]:
        """The label of every run, in the order of :attr:`runs`."""
        return [label for label, runs in self.rows.items() for _ in runs]

    def specs(self) -> list[dict[str, Any]]:
        """The specification of every run as it was recorded."""
        return [
            {**run.record["spec"], "method": self.methods[label]} for label, runs in self.rows.items() for run in runs
        ]

    def labelled(self, records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Whole records of this group with the label of their row in place of the method; in the order of the rows."""
        labels = {run.record["key"]: label for label, runs in self.rows.items() for run in runs}
        known = {record["key"]: record for record in records}
        return [
            {**known[k], "spec": {**known[k]["spec"], "method": label}} for k, label in labels.items() if k in known
        ]

    def hits(self, label: str, readout: str) -> dict[int, np.ndarray]:
        """Seed -> ``[N]`` whether each test sample was right; empty where a run of the row lacks the read-out."""
        runs = self.rows.get(label, [])
        return {r.seed: r.correct(readout) for r in runs} if all(readout in r.hits for r in runs) else {}

    def scores(self) -> pd.DataFrame:
        """One row a run: its label as index, every score of the test split in [0, 1]."""
        tests = {
            label: [next(iter(r.record["result"]["readings"].values()))["test"] for r in runs]
            for label, runs in self.rows.items()
        }
        frame = pd.DataFrame([test for of_row in tests.values() for test in of_row])
        return frame.set_axis([label for label, of_row in tests.items() for _ in of_row])


def collect(
    records: Iterable[Mapping[str, Any]],
    select: str,
    usual: Mapping[str, Mapping[str, Any]] | None = None,
    of_protocol: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, Any]]] = lambda spec: {},
) -> tuple[list[Group], int]:
    """Group ``records`` as they come, keeping little of each; the groups with most runs first.

    Args:
        records: as :func:`balancebench_udi.store.read_record` returns them, in any order.
        select: the reading; records without it are left out.
        usual: method -> its default options, which its label leaves out. It gives the order of the methods within a
            group, too; others follow by name.
        of_protocol: method -> options that the protocol of a specification sets instead of the defaults.

    Returns:
        The groups, and how many records had no such reading.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    shared: dict[str, Any] = {}
    lacking = 0
    for record in records:
        if select not in record["result"]["readings"]:
            lacking += 1
            continue
        spec = record["spec"]
        key = canonical({k: v for k, v in spec.items() if k not in FREE})
        # Runs of a cell share one specification in memory, groups one list of classes and of labels.
        spec = {**shared.setdefault(record["cell"], spec), "seed": spec["seed"]}
        data = shared.setdefault(key, _facts(record["data"]))
        target = shared.setdefault(record["result"]["test_target"], record["result"]["test_target"])
        found.setdefault(key, {}).setdefault(record["cell"], []).append(_run(record, select, spec, data, target))
    groups = []
    for cells in found.values():
        here = of_protocol(next(iter(cells.values()))[0].record["spec"])
        groups.append(_group(cells, {name: {**given, **here.get(name, {})} for name, given in (usual or {}).items()}))
    for group, difference in zip(groups, _differences(groups), strict=True):
        spec = group.spec
        group.title = f"{spec['dataset']}, protocol {spec['protocol']} v{spec['protocol_version']}{difference}"
    return sorted(groups, key=lambda g: (-len(g.runs), g.title)), lacking


def _run(record: Mapping[str, Any], select: str, spec: dict[str, Any], data: Any, packed: str) -> Run:
    result = record["result"]
    reading = result["readings"][select]
    target = unpack(packed)
    single = ("fused", *(f"{k}/{m}" for k in ("alone", "probe", "share", "masked") for m in result["modalities"]))
    hits = {
        name: np.packbits((unpack(reading["predictions"][name]) == target).numpy())
        for name in single
        if name in reading["predictions"]
    }
    lite = {
        "key": record["key"],
        "cell": record["cell"],
        "spec": spec,
        "result": {
            "readings": {select: {"test": reading["test"]}},
            "modalities": result["modalities"],
            "test_target": packed,
            "passes": result["passes"],
        },
        "cost": {"phases": record["cost"]["phases"]},
        "costs": {name: value for name, value in costs(record).items() if name in SPENT},
        "data": data,
        "machine": {k: record["machine"][k] for k in ("device_type", "device", "threads", "torch")},
    }
    return Run(lite, hits, len(target), _curve(result["curves"]))


def _curve(curves: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Validation accuracy a phase, every n-th epoch and the last where there are more than ``POINTS``."""
    phases: dict[str, list[float]] = {}
    for entry in curves:
        phases.setdefault(entry["phase"], []).append(entry["val"]["accuracy"])
    step = max(1, -(-len(curves) // POINTS))
    return [values[::-step][::-1] for values in phases.values()]


def _facts(data: Mapping[str, Any]) -> dict[str, Any]:
    facts = {k: v for k, v in data["facts"].items() if k in ("generated", "generated_part")}
    return {"classes": data["classes"], "facts": facts, **{k: data[k] for k in ("groups",) if k in data}}


def _group(cells: Mapping[str, list[Run]], usual: Mapping[str, Mapping[str, Any]]) -> Group:
    """Name the rows: a method, with the options in which its variants differ where it has several."""
    variants: dict[str, list[list[Run]]] = {}
    for runs in cells.values():
        variants.setdefault(runs[0].record["spec"]["method"], []).append(sorted(runs, key=lambda r: r.seed))
    places = {name: i for i, name in enumerate(usual)}
    group = Group()
    for method in sorted(variants, key=lambda name: (places.get(name, len(places)), name)):
        specs = [runs[0].record["spec"] for runs in variants[method]]
        differing = described(
            [{k: s[k] for k in FREE if k in s and k not in ("method", "seed")} for s in specs],
            {"method_options": usual.get(method, {}), "test_each_epoch": False},
        )
        for difference, runs in sorted(zip(differing, variants[method], strict=True), key=lambda pair: pair[0]):
            label = f"{method} ({difference})" if difference else method
            group.methods[label] = method
            group.rows[label] = runs
            for run in runs:
                run.record["spec"]["method"] = label
    return group


def _differences(groups: Sequence[Group]) -> Iterator[str]:
    """``" (val_colour label)"`` where groups have dataset and protocol in common."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, group in enumerate(groups):
        alike.setdefault(tuple(group.spec[k] for k in NAMED), []).append(i)
    texts = [""] * len(groups)
    for members in alike.values():
        specs = [{k: v for k, v in groups[i].spec.items() if k not in (*FREE, *NAMED)} for i in members]
        plain = [{k: v for k, v in spec.items() if k != "fingerprint"} for spec in specs]
        told = described(plain) if len(set(map(canonical, plain))) == len(plain) else described(specs)
        for i, text in zip(members, told, strict=True):
            texts[i] = f" ({text})" if text else ""
    yield from texts


def described(values: Sequence[Mapping[str, Any]], usual: Mapping[str, Any] | None = None) -> list[str]:
    """For each of several nested mappings the leaves in which they are not all alike: ``"alpha 0.5, noise false"``.

    Leaves that are as in ``usual`` go without saying, and so do those that one lacks, where the others tell it apart.
    """
    silent = dict(_leaves(usual or {}))
    flat = [dict(_leaves(value)) for value in values]
    names = sorted({name for row in flat for name in row})
    differing = [name for name in names if len({row.get(name, ABSENT) for row in flat}) > 1]
    told = [{n: row.get(n, ABSENT) for n in differing} for row in flat]
    whole = [_text(row, silent) for row in told]
    short = [_text({n: v for n, v in row.items() if v != ABSENT}, silent) or whole[i] for i, row in enumerate(told)]
    return short if len(set(short)) == len(short) else whole


def _text(leaves: Mapping[str, str], silent: Mapping[str, str]) -> str:
    return ", ".join(f"{n.partition('.')[2] or n} {v}" for n, v in leaves.items() if silent.get(n) != v)


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of everything that is no mapping."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner if isinstance(inner, str) else canonical(inner)
