#!/usr/bin/env python
"""Write REPRODUCTION.md: every published number we know, ours under the same protocol, and a verdict.

    python benchmarks/reproduction.py

Only existing records are read; the page has the commands that train what is missing.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

from benchmarks.start import begin

if __name__ == "__main__":
    begin()

import registry
from balancebench_udi.nets.fusion import FUSIONS
from balancebench_udi.protocol import load_protocol
from balancebench_udi.report.published import Claim, load_published
from balancebench_udi.report.reproduction import Wanted, counts, markdown, reproduce
from benchmarks.command import PROTOCOLS, PUBLISHED, Parser, guarded, parse_settings, recorded, short

PAGE = "REPRODUCTION.md"
SEEDS = "0-4"
"""Of the commands on the page."""


def parser() -> Parser:
    """The command line."""
    p = Parser(prog="reproduction.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, help="results folder (default: results in this checkout, else in this folder)")
    p.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is out of date")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 the page is out of date, 2 a mistake."""
    return guarded(run, parser(), arguments, "nothing was written")


def run(given: argparse.Namespace) -> int:
    """Judge, and write or compare the page."""
    store = recorded(given.out)
    claims = load_published(PUBLISHED)
    findings = reproduce(claims, store.records(), registry.methods.names(), wanted)
    page, path = markdown(findings).encode(), store.root / PAGE
    print(
        f"{len(findings)} published numbers: " + ", ".join(f"{n} {verdict}" for verdict, n in counts(findings).items())
    )
    if given.check:
        if path.is_file() and path.read_bytes() == page:
            print(f"{short(path)} is what the records give")
            return 0
        print(f"{short(path)} is not what the records give: write it again with benchmarks/reproduction.py")
        return 1
    store.replace(path, lambda handle: handle.write(page))
    print(f"written: {short(path)}")
    return 0


def wanted(claim: Claim, name: str) -> Wanted | None:
    """The run of ``claim`` under the preset ``name``; None where method, dataset, fusion or preset are not here.

    Raises:
        UserError: options of the claim that do not belong to its method, its dataset, the optimiser or the schedule.
    """
    if claim.method not in registry.methods.names() or claim.dataset not in registry.datasets.names():
        return None
    if claim.fusion not in (None, *FUSIONS) or not (PROTOCOLS / f"{name}.yaml").is_file():
        return None
    return _wanted(claim.method, claim.dataset, claim.fusion, claim.settings, claim.select, name)


@functools.cache
def _wanted(
    method: str, dataset: str, fusion: str | None, options: tuple[tuple[str, Any], ...], select: str, name: str
) -> Wanted:
    texts = [f"{option}={value}" for option, value in options]
    settings = parse_settings(texts, [method, dataset])
    changes = {part: settings.get(part, {}) for part in ("optimizer", "schedule")}
    changes["run"] = {} if fusion is None else {"fusion": fusion}
    protocol = load_protocol(name, PROTOCOLS, changes, dataset)
    data, rule = registry.datasets.get(dataset), registry.methods.get(method)
    chosen = data(data.Options.build(dataset, {**protocol.datasets.get(dataset, {}), **settings.get(dataset, {})}))
    fields = {
        "protocol": protocol.name,
        "protocol_version": protocol.version,
        "dataset_version": chosen.version,
        "dataset_options": chosen.options.as_dict(),
        "method_version": rule.version,
        "method_options": _options(rule, method, protocol.options_on(dataset), settings),
        "fusion": protocol.run.fusion,
        "optimizer": protocol.optimizer.as_dict(),
        "schedule": protocol.schedule.as_dict(),
        "epochs": protocol.run.epochs,
        "batch_size": protocol.run.batch_size,
    }
    words = [f"--dataset {dataset}", f"--protocol {name}"]
    words += [f"--fusion {fusion}"] if protocol.name != name and fusion is not None else []
    words += [f"--set {text}" for text in texts]
    words += [f"--seeds {SEEDS}", "--data-root DIR"]
    if select == "best_test":
        words += ["--select best_test"] if protocol.run.test_each_epoch else ["--test-each-epoch --select best_test"]
    return Wanted(fields, " ".join(words))


def _options(cls: Any, name: str, preset: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a method or a dataset: of the preset, under what the claim sets."""
    return cls.Options.build(name, {**preset.get(name, {}), **settings.get(name, {})}).as_dict()


if __name__ == "__main__":
    sys.exit(main())
