#!/usr/bin/env python
"""Write one page about the runs of a results folder: tables, figures, the methods, and what to use.

    python benchmarks/report.py --dataset cgmnist,mosi

The page is a single HTML file that needs no network: it can be sent to a colleague. Only existing records are read.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

from benchmarks.start import begin

if __name__ == "__main__":
    begin()

import pandas as pd

import registry
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.protocol import load_protocol
from balancebench_udi.report.figures import embedding
from balancebench_udi.report.figures.style import Drawing
from balancebench_udi.report.groups import collect
from balancebench_udi.report.page import FIGURED, FIGURES, Figures, MethodFacts, Part, Roles, page
from balancebench_udi.report.published import Claim, load_published
from balancebench_udi.spec import RunSpec
from balancebench_udi.store import Store
from balancebench_udi.text import unguard_frame
from benchmarks.command import ALONE, PROTOCOLS, PUBLISHED, Parser, default_out, guarded, short, words

REFERENCE = "joint"
"""The method against which gains and costs are given."""

ROLES = Roles(REFERENCE, alone=ALONE, single=("unimodal",))


def parser() -> Parser:
    """The command line."""
    p = Parser(prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset", help="names, separated by commas (default: every dataset with records)")
    p.add_argument(
        "--select", default="best_val", choices=("last", "best_val", "best_test"), help="which epoch the page reads"
    )
    p.add_argument("--out", type=Path, help="results folder (default: results in this checkout, else in this folder)")
    p.add_argument("--to", type=Path, metavar="FILE.html", help="the page (default: report.html in the results folder)")
    p.add_argument("--save-figures", action="store_true", help="write the figures as SVG and PNG, too, below figures/")
    p.add_argument("--published", action="store_true", help="show published numbers beside ours")
    p.add_argument(
        "--figures", type=int, default=FIGURED, metavar="N", help=f"groups with figures (default: {FIGURED})"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 a mistake, 130 interrupted."""
    return guarded(run, parser(), arguments, "nothing was written")


def run(given: argparse.Namespace) -> int:
    """Read the records, write the page."""
    if given.figures < 0:
        raise UserError(f"--figures must be at least 0, found {given.figures}")
    store = Store(given.out or default_out())
    path = given.to or store.root / "report.html"
    if path.is_dir():
        raise UserError(
            f"the page must be a file, found the folder {path}: name a file with --to, such as {path / 'page.html'}"
        )
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"the page must be an .html file, found {str(path)!r}: name one with --to")
    facts = method_facts()
    usual = {name: one.defaults for name, one in facts.items()}
    former: Counter[str] = Counter()
    found = present(records(store, given.dataset), former)
    groups, lacking = collect(found, given.select, usual, protocol_options)
    if not groups:
        raise UserError(
            f"the page needs runs that were evaluated for {given.select}, found none in {store.root}: "
            "train with benchmarks/run.py, or name another --out or --select"
        )
    runs = sum(len(group.runs) for group in groups)
    for name, count in sorted(former.items()):
        print(f"left out: {count} runs of {name}, a former version")
    print(f"{runs} runs in {len(groups)} groups; figures for {min(given.figures, len(groups))} of them")
    text = page(
        groups,
        given.select,
        facts,
        ROLES,
        lambda spec: store.load(RunSpec.from_dict(dict(spec))),
        functools.partial(published, load_published(PUBLISHED)) if given.published else None,
        lacking,
        given.figures,
        (*(saved(store) if given.save_figures else FIGURES), ("Features of a modality, by t-SNE", mapped(store))),
    )
    if given.save_figures:
        print(f"figures: {short(store.root / 'figures')}")
    store.replace(path, lambda handle: handle.write(text.encode()))
    print(f"written: {short(path)} ({len(text) / 1e6:.1f} MB)")
    return 0


def saved(store: Store) -> Figures:
    """The figures of the page, each of which is also written below ``figures/<dataset>-<protocol>/`` when drawn."""

    def keeping(name: str, draw: Callable[[Part, Sequence[Mapping[str, Any]]], Drawing | None]) -> Any:
        def kept(part: Part, found: Sequence[Mapping[str, Any]]) -> Drawing | None:
            drawing = draw(part, found)
            if drawing is not None:
                drawing.save(folder(store, part), plain(name, "_"))
            return drawing

        return kept

    return tuple((name, keeping(name, draw)) for name, draw in FIGURES)


def folder(store: Store, part: Part) -> Path:
    """Where the figures of a group lie."""
    return store.root / "figures" / plain(re.sub(r"protocol | v\d+", "", part.group.title), "-")


def mapped(store: Store) -> Callable[[Part, Sequence[Mapping[str, Any]]], Drawing]:
    """The figure that ``embedding.py`` has drawn of runs of a group."""

    def drawn(part: Part, found: Sequence[Mapping[str, Any]]) -> Drawing:
        path = folder(store, part) / "tsne.csv"
        if not path.is_file():
            raise UserError("it needs networks, which no record holds; benchmarks/embedding.py trains and draws it")
        try:
            places = unguard_frame(pd.read_csv(path, dtype={"panel": str, "modality": str}))
            (modality,), keys = set(places["modality"]), set(places["key"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{short(path)} cannot be read ({error}); benchmarks/embedding.py writes it anew"
            ) from error
        if not keys <= {run.record["key"] for run in part.group.runs}:
            raise UserError(f"{short(path)} is of other runs; benchmarks/embedding.py draws it anew")
        spec = part.group.spec
        title = f"{spec['dataset']}, protocol {spec['protocol']}: {modality}"
        return embedding.draw(places, part.group.runs[0].record["data"]["classes"], title)

    return drawn


def plain(title: str, between: str) -> str:
    """``"Accuracy, with intervals"`` as ``"accuracy_with_intervals"``."""
    return re.sub(r"[^\w.]+", between, title.lower()).strip(between)


def records(store: Store, datasets: str | None) -> Iterator[Mapping[str, Any]]:
    """The records of the datasets asked for, one by one.

    Raises:
        UserError: a dataset without records.
    """
    if datasets is None:
        yield from store.records()
        return
    known = {path.parents[1].name for path in store.record_paths()}
    for name in words(datasets, "--dataset"):
        if name not in known:
            raise UserError(f"{store.root} has no record of a dataset called {name!r}{near_misses(name, known)}")
        yield from store.records(name)


def present(found: Iterable[Mapping[str, Any]], former: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The records of methods as they are now, or that are not here; those of former versions are counted."""
    versions: dict[str, int] = {}
    for name in registry.methods.names():
        with contextlib.suppress(UserError):  # a broken file breaks only itself
            versions[name] = registry.methods.get(name).version
    for record in found:
        spec = record["spec"]
        if versions.get(spec["method"]) in (None, spec["method_version"]):
            yield record
        else:
            former[f"{spec['method']} {spec['method_version']}"] += 1


def protocol_options(spec: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Method -> options that the protocol of a run sets on its dataset.

    None where that protocol, in that version, is not here.
    """
    name = spec["protocol"].removesuffix("+")
    if not (PROTOCOLS / f"{name}.yaml").is_file():
        return {}
    protocol = load_protocol(name, PROTOCOLS, {})
    return protocol.options_on(spec.get("dataset", "")) if protocol.version == spec["protocol_version"] else {}


def method_facts() -> dict[str, MethodFacts]:
    """What every registered method says of itself; one that cannot be loaded is left out."""
    facts = {}
    for name in registry.methods.names():
        try:
            cls = registry.methods.get(name)
        except UserError:  # a broken file breaks only itself
            continue
        defaults = cls.Options().as_dict()
        facts[name] = MethodFacts(name, summary(cls), cls.reference, cls.family, defaults)
    return facts


def summary(cls: type) -> str:
    """The idea of a method: its attribute ``idea``, else the first two sentences of its docstring that are prose."""
    if idea := getattr(cls, "idea", ""):
        return idea
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    prose = " ".join(" ".join(p.split()) for p in paragraphs if not p.startswith(" "))
    sentences = re.split(r"(?<=[.:])\s+(?=[A-Z])", prose)
    return " ".join([s for s in sentences if "http" not in s and s.endswith(".")][:2])


def published(claims: Sequence[Claim], spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the literature says of the dataset of a group: of fused modalities, under no other fusion."""
    return [
        {"label": c.label, "accuracy": c.accuracy, "source": f"{c.source} {c.url}".strip(), "protocol": c.protocol}
        for c in claims
        if c.dataset == spec["dataset"] and c.modality is None and c.fusion in (None, spec["fusion"])
    ]


if __name__ == "__main__":
    sys.exit(main())
