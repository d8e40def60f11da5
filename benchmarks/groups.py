#!/usr/bin/env python
"""Write which test samples belong together, for data whose records do not say it, from the data themselves.

    python benchmarks/groups.py --data-root DIR

Runs record the groups of their test samples (of one subject, video, speaker). Of records made before they did, this
command loads the data, checks that fingerprint and test labels are theirs, and writes one file a test split to
``balancebench_udi/data/groups/``, which tables, figures and pages then read.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

import numpy as np

import registry
from balancebench_udi.data.groups import FOLDER, digest_of
from balancebench_udi.errors import UserError
from balancebench_udi.metrics.predictions import unpack
from balancebench_udi.store import Store
from benchmarks.command import Parser, data_root, default_data, guarded, recorded, short


def parser() -> Parser:
    """The command line."""
    p = Parser(prog="groups.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data-root", type=Path, help="folder with the datasets (default: $BALANCEBENCH_DATA, else data/)")
    p.add_argument("--out", type=Path, help="results folder (default: results in this checkout, else in this folder)")
    p.add_argument("--to", type=Path, default=FOLDER, help="where the groups are written (default: in the library)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 a mistake."""
    return guarded(run, parser(), arguments, "what was written is whole")


def run(given: argparse.Namespace) -> int:
    """Write a file a test split that has groups."""
    root = data_root(given.data_root) or default_data()
    found: dict[str, dict[str, Any]] = {}
    for record in recorded(given.out).records():
        if "groups" not in record["data"]:
            found.setdefault(record["spec"]["fingerprint"], record)
    for fingerprint, record in sorted(found.items(), key=lambda item: (item[1]["spec"]["dataset"], item[0])):
        spec = record["spec"]
        cls = registry.datasets.get(spec["dataset"])
        try:
            bundle = cls(cls.Options.build(spec["dataset"], dict(spec["dataset_options"]))).load(root)
        except UserError as error:
            print(f"{spec['dataset']} {fingerprint}: not read: {error}")
            continue
        if bundle.groups is None:
            print(f"{spec['dataset']} {fingerprint}: all samples are exchangeable")
            continue
        labels = unpack(record["result"]["test_target"]).numpy()
        if bundle.fingerprint != fingerprint or not np.array_equal(bundle.test.target.numpy(), labels):
            raise UserError(
                f"{spec['dataset']} below {root} must be the data of the records, {fingerprint} with their test "
                f"labels, found {bundle.fingerprint}: name the folder that they were trained on as --data-root"
            )
        path = given.to / f"{fingerprint}.json"
        told = {
            "dataset": spec["dataset"],
            "about": f"One number a test sample, in the order of the records: its {bundle.groups.unit}.",
            "labels_sha256": digest_of(labels),
            **bundle.groups.as_dict(),
        }
        text = json.dumps(told).replace(', "', ',\n"').replace("{", "{\n", 1) + "\n"
        Store(given.to).replace(path, functools.partial(_write, text))
        print(f"{spec['dataset']} {fingerprint}: {len(bundle.groups)} groups ({bundle.groups.unit}), {short(path)}")
    return 0


def _write(text: str, handle: BinaryIO) -> None:
    handle.write(text.encode())


if __name__ == "__main__":
    sys.exit(main())
