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


class Cell:
    """A cell of a committed table in percent: ``{}`` prints its mean, ``{:±}`` its mean and standard deviation.

    Args:
        table: folder below results/tables.
        row: name of a row; in the table of one dataset, of a method.
        column: name of a column, that is of a dataset.
        value: name of a score.
    """

    def __init__(self, table: str, row: str, column: str, value: str = "accuracy") -> None:
        folder = RESULTS / "tables" / table
        if (folder / "table.csv").exists():
            cells = pd.read_csv(folder / "table.csv")
            chosen = (cells["row"] == row) & (cells["column"] == column) & (cells["value"] == value)
            keys = ["mean", "sd"]
        else:
            cells = pd.read_csv(folder / "comparison.csv")
            chosen = (cells["method"] == row) & (cells["dataset"] == column)
            keys = [value, f"{value}_sd"]
        ((self.mean, self.sd),) = cells[chosen & ~cells["published"].astype(bool)][keys].to_numpy()

    def __format__(self, spec: str) -> str:
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.sd:.1f}" if spec == "±" else "")


MAIN, BUDGET, WEIGHTS, ABLATION = "udi-main", "udi-budget", "udi-weights", "udi-ablation"
AGM, OGM, MMPARETO = "agm", "ogm", "mmpareto"
QUOTES: list[tuple[str, list[tuple[str, ...]]]] = [
    ("{} %, where gray alone reaches {} %", [(MAIN, "joint", "CG-MNIST"), (MAIN, "unimodal", "CG-MNIST")]),
    (
        "has {} for joint training and {} for PMR",
        [("pmr-paper", "joint", "CG-MNIST (concat)"), ("pmr-paper", "PMR", "CG-MNIST (concat)")],
    ),
    ("linear probe reads {} %", [("cgmnist-small", "joint", "cgmnist", "probe/gray")]),
    ("is right for {} %", [("avdigits-small", "joint", "avdigits", "share/audio")]),
    (
        "a probe reads {} % in its encoder, and {} % in one trained alone",
        [
            ("avdigits-small", "joint", "avdigits", "probe/audio"),
            ("avdigits-small", "unimodal", "avdigits", "probe/audio"),
        ],
    ),
    ("{:±} against {:±}", [(MAIN, "UDI (version 2)", "CG-MNIST"), (MAIN, "ensemble", "CG-MNIST")]),
    ("{} against {}", [(MAIN, "UDI (version 2)", "Digits"), (MAIN, "ensemble", "Digits")]),
    ("{}, {} and {}", [(MAIN, m, "Synthetic") for m in ("UDI (version 2)", "ensemble", "joint")]),
    ("{} points above", [("balance", "joint", "Synthetic", "bayes_distance/fused")]),
    ("reaches {}", [(BUDGET, "joint (2x epochs)", "CG-MNIST")]),
    ("no more passes than UDI, has {:±}", [(BUDGET, "ensemble (1.5x epochs)", "CG-MNIST")]),
    ("as long {:±}", [(BUDGET, "ensemble (1.75x epochs)", "CG-MNIST")]),
    ("trained half as long has {}", [(BUDGET, "UDI (version 2, followers half as long)", "CG-MNIST")]),
    ("({})", [(BUDGET, "UDI (version 2, followers half as long)", "UTD-MHAD")]),
    ("{} against {}", [(BUDGET, "UDI (version 2, warm start)", "MOSI"), (BUDGET, "UDI (version 2)", "MOSI")]),
    ("{:±}", [(WEIGHTS, "complementarity at 1", "CG-MNIST")]),
    ("{} with both terms at 0.5", [(WEIGHTS, "both at 0.5", "CG-MNIST")]),
    ("have {}, those of UDI {}", [(ABLATION, r, "CG-MNIST") for r in ("without interaction", "UDI (version 2)")]),
    ("itself has {}", [(WEIGHTS, "consistency at 1", "CG-MNIST")]),
    (
        "{} at a strength of 0.1 and, significantly more, {} at 0.5",
        [(OGM, "OGM (alpha 0.1)", "CG-MNIST"), (OGM, "OGM (alpha 0.5)", "CG-MNIST")],
    ),
    (
        "AGM has {} at 0.1, where joint training has {}",
        [(AGM, "AGM (alpha 0.1)", "CG-MNIST"), (AGM, "joint", "CG-MNIST")],
    ),
    ("significantly less, {}, at its authors' 1.5", [(AGM, "AGM (alpha 1.5)", "CG-MNIST")]),
    ("reads {:±} points less", [("balance", "MMPareto", "AV digits", "probe_gap/audio")]),
    (
        "({} and {}, not significantly different)",
        [(MMPARETO, r, "AV digits") for r in ("MMPareto", "plain sum always")],
    ),
    ("MMPareto has {}", [(MMPARETO, "MMPareto", "CG-MNIST")]),
    ("has {}, and without enlarging {}", [(MMPARETO, r, "CG-MNIST") for r in ("plain sum always", "uniform")]),
    ("`udi` has {} on", [("cgmnist-laptop", "udi", "cgmnist")]),
    ("and the ensemble {}", [("cgmnist-laptop", "ensemble", "cgmnist")]),
    ("{} and {} against joint's {}", [(MAIN, m, "AV digits") for m in ("OGM", "OGM-GE", "joint")]),
    ("have {} and {} against joint's {}", [("avdigits-laptop", m, "avdigits") for m in ("ogm", "ogm_ge", "joint")]),
]


def test_the_readme_quotes_the_seeds_in_which_audio_is_silenced() -> None:
    section = " ".join((ROOT / "README.md").read_text().split())
    for weights, phrase in (
        ("pareto", "{}, {}, {}, {} and {} % (chance"),
        ("uniform", "{}, {}, {}, {} and {} %, and a probe"),
    ):
        runs = [r for r in ARCHIVE.of("avdigits", "mmpareto") if r["spec"]["protocol"] == "small"]
        options = {"gamma": 1.5, "rescale": "tensor", "weights": weights}
        runs = [r for r in runs if r["spec"]["method_options"] == options]
        alone = {r["spec"]["seed"]: r["result"]["readings"]["best_val"]["test"]["alone/audio"] for r in runs}
        assert phrase.format(*(f"{100 * alone[seed]:.0f}" for seed in range(5))) in section


def test_the_readme_quotes_the_rank_correlations_and_verdicts() -> None:
    section = " ".join((ROOT / "README.md").read_text().split())
    for dataset, protocol in (("synthetic", "features"), ("utd_mhad", "features"), ("mosi", "features")):
        text = (RESULTS / "tables" / f"{dataset}-{protocol}" / "comparison.md").read_text()
        (found,) = re.findall(r"a rank correlation of ([+-][\d.]+)", text)
        assert f"{found} on `{dataset}`" in section
    everything = [path.read_text() for path in RESULTS.glob("tables/*/table.md")]
    for name in ("MOSI", "UTD-MHAD"):
        said = [
            line
            for text in everything
            for line in re.findall(rf"^- On {name}[^,]*, .* has the highest mean.*", text, re.M)
        ]
        assert said
        assert not any("significantly above" in line for line in said)


@pytest.mark.parametrize(("phrase", "cells"), QUOTES)
def test_the_readme_quotes_each_headline_from_its_cell(phrase: str, cells: list[tuple[str, ...]]) -> None:
    """The phrase, with the numbers that these cells print, stands in the README's results."""
    section = re.search(r"^## Results$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert section is not None
    said = phrase.format(*[Cell(*cell) for cell in cells])
    found = re.search(rf"(?<![\d.]){re.escape(said)}(?!\d)", " ".join(section[1].split()))
    assert found, f"the README lacks {said!r}, which {cells} give"
