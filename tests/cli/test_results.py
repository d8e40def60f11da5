"""What is committed in results/ follows from the committed records, and the README quotes it as it is."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from calls import ROOT

import registry
from balancebench_udi.metrics.predictions import accuracy, unpack
from balancebench_udi.protocol import load_protocol
from balancebench_udi.report import matrix
from balancebench_udi.report.comparison import compare, write
from balancebench_udi.spec import RunSpec
from balancebench_udi.store import Store
from benchmarks import tables
from benchmarks.run import PROTOCOLS, REFERENCE
from benchmarks.table_specs import load_table

RESULTS = ROOT / "results"
MATRICES = sorted(path.parent for path in (RESULTS / "tables").glob("*/table.csv"))
ARCHIVE = tables.Archive(Store(RESULTS))
TABLES = sorted((RESULTS / "tables").glob("*/comparison.csv"))
RECORDS = list(Store(RESULTS).records())


def test_there_are_results():
    assert {path.parent.name for path in TABLES} >= {"cgmnist-laptop", "avdigits-laptop"}


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.parent.name)
def test_tables_are_what_the_records_give(table: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(table)
    rows = rows[~rows["published"].astype(bool)]
    records = [r for cell in rows["cell"] for r in RECORDS if r["cell"] == cell]
    assert [len([r for r in records if r["cell"] == cell]) for cell in rows["cell"]] == list(rows["n"])
    spec = records[0]["spec"]
    published = load_protocol(spec["protocol"].rstrip("+"), PROTOCOLS, {}).published.get(spec["dataset"], [])
    (select,) = set(rows["select"])
    (wanted,) = set(rows["wanted"])
    made = compare(records, select, wanted=int(wanted), reference=REFERENCE, published=published)
    for path in write(made, tmp_path):
        assert path.read_bytes() == (table.parent / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["cgmnist-laptop", "avdigits-laptop"])
def test_the_main_tables_hold_every_method_with_three_seeds(name: str) -> None:
    rows = pd.read_csv(RESULTS / "tables" / name / "comparison.csv")
    rows = rows[~rows["published"].astype(bool)]
    assert set(rows["method"]) == set(registry.METHODS)
    assert (rows["n"] >= 3).all()


@pytest.mark.parametrize("folder", MATRICES, ids=lambda path: path.name)
def test_tables_of_variants_are_what_the_records_give(folder: Path, tmp_path: Path) -> None:
    table = load_table(folder.name)
    made = tables.make(table, ARCHIVE)
    paths = matrix.write(made, tmp_path / "tables") + tables.draw_ranks(table, made, tmp_path / "figures")
    for path in paths:
        there = folder if path.parent.name == "tables" else RESULTS / "figures" / folder.name
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name


def test_the_evidence_has_five_seeds_of_every_method() -> None:
    for dataset in ("avdigits", "cgmnist", "mosi", "utd_mhad", "synthetic"):
        found = [r["spec"] for r in RECORDS if r["spec"]["dataset"] == dataset]
        for method in registry.METHODS:
            seeds = Counter(
                (s["protocol"], str(s["method_options"]), str(s["dataset_options"]))
                for s in found
                if s["method"] == method and s["protocol"] in ("small", "features")
            )
            assert max(seeds.values(), default=0) >= 5, (dataset, method)


def test_records_are_what_they_say() -> None:
    for record in RECORDS:
        spec = RunSpec.from_dict(record["spec"])
        assert (spec.key, spec.cell) == (record["key"], record["cell"])
        target = unpack(record["result"]["test_target"])
        for reading in record["result"]["readings"].values():
            fused = unpack(reading["predictions"]["fused"])
            assert accuracy(fused, target) == pytest.approx(reading["test"]["accuracy"], abs=1e-12)
        assert not record["machine"]["commit"].endswith("+"), record["key"]


def test_the_readme_quotes_the_speed_reports() -> None:
    """Every figure with a decimal in the README's section on speed stands in one of the reports."""
    section = re.search(r"^## Speed$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert section is not None
    figures = set(re.findall(r"(?<![\w.-])\d+\.\d+(?![\w.]*\w)", section[1]))
    reports = list(RESULTS.glob("speed/*/speed.md"))
    assert all("--quick" not in path.read_text() for path in reports)
    known = {figure for path in reports for figure in re.findall(r"\d+\.\d+", path.read_text())}
    assert figures
    assert figures <= known, sorted(figures - known)


def test_the_readme_quotes_the_tables() -> None:
    """Every figure with a decimal in the README's results stands in one of the tables or in a protocol (published)."""
    text = (ROOT / "README.md").read_text()
    section = re.search(r"^## Results$(.*?)^## ", text, re.M | re.S)
    assert section is not None
    figures = set(re.findall(r"(?<![\w.-])\d+\.\d+(?![\w.]*\w)", section[1]))
    sources = [*RESULTS.glob("tables/*/*.md"), *PROTOCOLS.glob("*.yaml")]
    known = {figure for path in sources for figure in re.findall(r"\d+\.\d+", path.read_text())}
    assert figures
    assert figures <= known, sorted(figures - known)
