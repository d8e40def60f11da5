"""Runs of a former version of a method can be shown in a table, and no longer be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from calls import ROOT

import registry
from balancebench_udi.errors import UserError
from balancebench_udi.store import Store
from benchmarks.table_specs import FORMER, Column, Row, wanted
from benchmarks.tables import main

MOSI = Column("MOSI", "mosi", "features", {"mosi.val_from": "test", "mosi.val_share": 0.3})
ROW = Row("then", "udi", version=2)


def test_a_row_of_a_former_version_finds_the_runs_that_were_recorded() -> None:
    """Of its defaults and of a variant; the present version is another one."""
    records = list(Store(ROOT / "results").records("mosi", "udi"))
    for row in (ROW, Row("then", "udi", {"weights": "static", "alpha_con": 0, "alpha_com": 0}, version=2)):
        found = [r for r in records if wanted(row, MOSI, "best_val").has(r["spec"])]
        assert {r["spec"]["seed"] for r in found} == {0, 1, 2, 3, 4}
        assert {r["spec"]["method_version"] for r in found} == {2}
    now = [r for r in records if wanted(Row("now", "udi"), MOSI, "best_val").has(r["spec"])]
    assert {r["spec"]["method_version"] for r in now} <= {registry.methods.get("udi").version}


def test_every_former_version_is_one_that_was_recorded() -> None:
    for method, versions in yaml.safe_load(FORMER.read_text()).items():
        records = [r["spec"] for r in Store(ROOT / "results").records(method=method)]
        for version, options in versions.items():
            assert int(version) < registry.methods.get(method).version
            mine = [spec["method_options"] for spec in records if spec["method_version"] == int(version)]
            assert mine
            assert all(set(one) == set(options) for one in mine)
            assert options in mine  # its defaults were run


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (Row("then", "udi", version=1), r"version of 'then', a row, must be one of 2, \d+ of udi, found 1"),
        (Row("then", "joint", version=9), r"version of 'then', a row, must be one of 1 of joint, found 9"),
        (Row("then", "udi", {"task_loss": "own"}, version=2), r"udi, version 2, had no option 'task_loss'"),
    ],
)
def test_a_version_or_an_option_that_never_was(row: Row, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        wanted(row, MOSI, "best_val")


def test_it_is_said_and_not_trained(tmp_path: Path) -> None:
    table = tmp_path / "mine.yaml"
    table.write_text(
        "title: mine\nseeds: '0'\ncolumns: [{name: D, dataset: digits, protocol: quick}]\n"
        "rows: [{name: then, method: udi, version: 2}]\n"
    )
    main([str(table), "--run", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.glob("out/records/**/*.json"))
    assert "then: udi, version 2." in (tmp_path / "out" / "tables" / "mine" / "table.md").read_text()
