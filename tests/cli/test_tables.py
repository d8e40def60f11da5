"""Tables as YAML: which runs their cells want, what is printed, trained, skipped and refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from calls import ROOT, Called, content

import benchmarks.tables as script
import registry
from balancebench_udi.errors import UserError
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.report import tidy
from balancebench_udi.runner import Outcome
from balancebench_udi.spec import keys_of
from balancebench_udi.store import Store
from benchmarks.run import make_plan
from benchmarks.table_specs import (
    VALUES,
    Column,
    Row,
    _check_values,
    applies,
    groups,
    known,
    load_table,
    namespace,
    table_names,
    wanted,
)
from benchmarks.tables import Archive, places

TINY = {
    "about": "Seconds.",
    "run": {"epochs": 1, "batch_size": 16, "precision": "auto"},
    "methods": {"ogm": {"alpha": 0.3}},
}
DATA = {"synthetic.n_train": 32, "synthetic.n_val": 16, "synthetic.n_test": 24, "synthetic.dims": 8}
FOREIGN = {
    *("mmcosine", "umt", "mbsd", "cml", "g_blend", "lfm", "relearning", "reconboost", "mla", "opm", "greedy", "amco"),
    *("valuation", "balanced_av"),
}
"""Methods and data of others that tables show published numbers of."""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """``call("mine.yaml", "--list", ...)`` in this process, from the folder with the tables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BALANCEBENCH_DATA", raising=False)

    def run(*arguments: object, out: Path = tmp_path / "out") -> Called:
        capsys.readouterr()
        code = script.main([*map(str, arguments), "--out", str(out)])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    return run


def describe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write ``mine.yaml`` and its protocol ``tiny.yaml``; returns what the table holds."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    values: dict[str, Any] = {
        "title": "Mine",
        "seeds": "0-1",
        "columns": [
            {"name": "Made", "dataset": "synthetic", "protocol": "tiny.yaml", "set": DATA},
            {"name": "Far", "dataset": "cremad", "protocol": "tiny.yaml"},
        ],
        "rows": [
            {"name": "joint", "method": "joint"},
            {"name": "joint, longer", "method": "joint", "epochs": "2x"},
            {"name": "OGM", "method": "ogm", "set": {"alpha": 0.5}},
            {"name": "later", "method": "mmcosine"},
        ],
        **changes,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    return values


def fake(out: Path, row: Row, column: Column, seed: int, select: str = "best_val", **spec: Any) -> dict[str, Any]:
    """Put down the record of a run that the cell wants, right on the first ``20 + seed`` of 40 samples."""
    runs = wanted(row, column, select)
    target = torch.arange(40) % 2
    fused = torch.where(torch.arange(40) < 20 + seed, target, 1 - target)
    encoders = {m: {"name": "mlp", "width": 128, "depth": 2} for m in ("m0", "m1")}
    full = {"precision": "fp32", **runs.spec, "fingerprint": "0" * 12, "encoders": encoders, "seed": seed, **spec}
    reading = {"test": {"accuracy": 0.5 + seed / 40}, "predictions": {"fused": pack(fused)}}
    ones = {"m0": 1, "m1": 1}
    epochs = full["epochs"]
    phase = {"seconds": 90.0 * epochs, "cpu_seconds": 90.0 * epochs, "evaluation_seconds": 10.0 * epochs}
    phase |= {"phase": "training", "reused_from": None, "forward": ones, "backward": ones}
    key, cell = keys_of(full)
    record = {
        "format": 1,
        "key": key,
        "cell": cell,
        "spec": full,
        "result": {
            "readings": {select: reading, "last": reading},
            "test_target": pack(target),
            "modalities": ["m0", "m1"],
            "passes": {"forward": ones, "backward": ones},
        },
        "cost": {
            "phases": [phase],
            "wall_seconds": 1.0,  # of the last of several processes
        },
        "data": {"classes": ["x", "y"], "facts": {}},
        "machine": {"device_type": "cpu", "device": "Some CPU", "threads": 1, "torch": "2.0"},
    }
    path = out / "records" / full["dataset"] / full["method"] / f"{record['key']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return record


def found(out: Path, select: str = "best_val") -> dict[tuple[str, str], list[int]]:
    """Row and column -> seeds of the records in the cell."""
    table = dataclasses.replace(load_table("mine.yaml"), select=select)
    return {
        (place.row.name, place.column.name): sorted(r["spec"]["seed"] for r in place.records)
        for place in places(table, Archive(Store(out)))
    }


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The table of :func:`describe`, and its first column."""
    monkeypatch.chdir(tmp_path)
    describe(tmp_path)
    return load_table("mine.yaml")


# -- the tables of this checkout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", table_names())
def test_every_table_can_be_planned(name: str) -> None:
    table = load_table(name)
    for row in table.rows:
        assert row.method in registry.METHODS or row.method in FOREIGN
        for column in table.columns:
            assert column.dataset in registry.DATASETS or column.dataset in FOREIGN
            if applies(row, column) and known(row, column):
                assert wanted(row, column, table.select).spec["method"] == row.method
    assert any(applies(row, column) and known(row, column) for row in table.rows for column in table.columns)
    groups_known = {claim.group for claim in script.load_published(script.PUBLISHED)}
    assert set(table.published) <= groups_known
    assert script.make(table, Archive(Store(Path("nowhere")))).title == table.title


def test_the_main_table_has_every_method() -> None:
    assert {row.method for row in load_table("udi-main").rows} == set(registry.METHODS)


# -- what a cell wants -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"method": "joint"}, {}),
        ({"method": "ogm", "epochs": "3x"}, {}),
        ({"method": "ogm", "epochs": "0.5x"}, {"epochs": 6}),
        ({"method": "ogm", "set": {"window": [0.0, 0.25], "noise": True}}, {"fusion": "sum"}),
        ({"method": "udi", "set": {"follower_epochs": None, "synthetic": {"anchor": "m1"}}}, {"epochs": 2}),
        ({"method": "joint"}, {"precision": "fp32", "encoders": {"m1": {"name": "mlp", "width": 16}}}),
        ({"method": "pmr", "epochs": 4}, {"set": {**DATA, "optimizer.lr": 0.5, "schedule.name": "cosine"}}),
    ],
)
@pytest.mark.parametrize("select", ["best_val", "best_test"])
def test_a_cell_wants_what_the_runner_would_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], column: dict[str, Any], select: str
) -> None:
    monkeypatch.chdir(tmp_path)
    describe(tmp_path)
    mine = Row(name="mine", **row)
    there = Column(**{"name": "Made", "dataset": "synthetic", "protocol": "tiny.yaml", "set": DATA, **column})
    jobs = make_plan(namespace(there, [mine], select, seeds="3", out=tmp_path / "out"))[0]
    spec = jobs[0].spec.as_dict()
    runs = wanted(mine, there, select)
    assert runs.has(spec)
    multiple = str(mine.epochs).endswith("x")
    assert not multiple or spec["epochs"] == float(mine.epochs.removesuffix("x")) * (there.epochs or 1)
    left = set(spec) - set(runs.spec)
    assert left <= {"seed", "fingerprint", "encoders", "precision"}
    assert ("precision" in left) == ("precision" not in column)
    for name in runs.spec:
        assert not runs.has({**copy.deepcopy(spec), name: "something else"}), name
    if column.get("encoders"):
        assert not runs.has({**spec, "encoders": {**spec["encoders"], "m1": {"name": "mlp", "width": 8, "depth": 2}}})


def test_runs_of_other_options_seeds_and_protocols_are_left_out(mine: Any, tmp_path: Path) -> None:
    out, column, ogm = tmp_path / "out", mine.columns[0], mine.rows[2]
    for seed in (0, 1, 7):
        fake(out, ogm, column, seed)
    fake(out, dataclasses.replace(ogm, set={"alpha": 0.1}), column, 1)
    fake(out, ogm, dataclasses.replace(column, epochs=5), 1)
    fake(out, ogm, dataclasses.replace(column, set={**DATA, "synthetic.noise": 0.1}), 1)
    assert found(out)["OGM", "Made"] == [0, 1]
    assert found(out)["joint", "Made"] == []


def test_automatic_precision_is_that_of_most_runs_of_the_column(mine: Any, tmp_path: Path) -> None:
    out, column = tmp_path / "out", mine.columns[0]
    for row, seed, precision in ((0, 0, "bf16"), (0, 1, "bf16"), (2, 0, "bf16"), (2, 0, "fp32"), (2, 1, "fp32")):
        fake(out, mine.rows[row], column, seed, precision=precision)
    cells = found(out)
    assert (cells["joint", "Made"], cells["OGM", "Made"]) == ([0, 1], [0])
    fake(out, mine.rows[1], column, 0, precision="fp32")
    fake(out, mine.rows[1], column, 1, precision="fp32")
    assert found(out)["OGM", "Made"] == [0, 1]


def test_encoders_left_open_are_those_of_the_unchanged_protocol(mine: Any, tmp_path: Path) -> None:
    out, column = tmp_path / "out", mine.columns[0]
    fake(out, mine.rows[0], column, 0)
    other = {m: {"name": "mlp", "width": 9, "depth": 2} for m in ("m0", "m1")}
    fake(out, mine.rows[1], column, 0)
    fake(out, mine.rows[1], column, 0, encoders=other)
    assert found(out)["joint, longer", "Made"] == [0]


def test_records_that_differ_in_what_no_plan_tells_are_refused(
    mine: Any, tmp_path: Path, call: Callable[..., Called]
) -> None:
    fake(tmp_path / "out", mine.rows[0], mine.columns[0], 0)
    fake(tmp_path / "out", mine.rows[0], mine.columns[0], 1, fingerprint="1" * 12)
    done = call("mine.yaml")
    assert done.code == 2
    assert "agree in everything but the seed to be averaged, found fingerprint 000000000000 and 1111" in done.err


def test_options_of_one_dataset_hold_there_only() -> None:
    row = Row("r", "udi", {"weights": "static", "synthetic": {"anchor": "m1"}})
    columns = {name: Column(name, name, "quick") for name in ("synthetic", "digits")}
    assert [applies(row, column) for column in columns.values()] == [True, False]
    options = wanted(row, columns["synthetic"], "best_val").spec["method_options"]
    assert (options["weights"], options["anchor"]) == ("static", "m1")


def test_rows_that_one_call_can_train_are_together() -> None:
    rows = [
        Row("a", "joint"),
        Row("b", "ogm"),
        Row("c", "ogm", {"alpha": 0}),
        Row("d", "udi", epochs="2x"),
        Row("e", "udi"),
    ]
    assert [[row.name for row in group] for group in groups(rows)] == [["a", "b", "e"], ["c"], ["d"]]


# -- the command -----------------------------------------------------------------------------------------------------


def test_a_table_is_trained_printed_and_listed(tmp_path: Path, call: Callable[..., Called]) -> None:
    describe(tmp_path)
    before = call("mine.yaml", "--list")
    assert (before.code, before.err) == (0, "")
    assert before.out == (
        "mine: Mine\n  0 of 12 runs exist; unknown time for 6; 6 need data that no run has used here (Far); 4 more of "
        "methods or data that are not implemented here\n"
    )
    done = call("mine.yaml", "--run", "--jobs", 1)
    assert done.code == 0, done.err
    (skipped,) = [line for line in done.out.splitlines() if line.startswith("skipped")]
    assert skipped.startswith("skipped Far: dataset cremad needs --data-root")
    out = tmp_path / "out"
    assert len(list(out.glob("records/synthetic/joint/*.json"))) == 4
    frame = pd.read_csv(out / "tables" / "mine" / "table.csv")
    assert list(frame["row"]) == ["joint", "joint, longer", "OGM"]
    assert list(frame["n"]) == [2, 2, 2]
    assert list(frame["wanted"]) == [2, 2, 2]
    records = [json.loads(path.read_text()) for path in out.glob("records/synthetic/ogm/*.json")]
    assert {record["spec"]["method_options"]["alpha"] for record in records} == {0.5}
    accuracy = [record["result"]["readings"]["best_val"]["test"]["accuracy"] for record in records]
    assert frame.loc[2, "mean"] == pytest.approx(sum(accuracy) / 2)
    written = content(out)
    again = call("mine.yaml")
    assert {name: sha for name, (_, sha) in content(out).items()} == {name: sha for name, (_, sha) in written.items()}
    assert again.out.splitlines()[-4:] == done.out.splitlines()[-4:]
    assert "6 of 12 runs exist; 6 need data" in call("mine.yaml", "--list").out


def test_nothing_is_planned_where_nothing_is_missing(
    mine: Any, tmp_path: Path, call: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(
        tmp_path, columns=[dataclasses.asdict(mine.columns[0]) | {"epochs": 1, "fusion": "sum", "precision": "fp32"}]
    )
    table = load_table("mine.yaml")
    for row in table.rows[:3]:
        for seed in (0, 1):
            fake(tmp_path / "out", row, table.columns[0], seed)
    monkeypatch.setattr(script, "make_plan", lambda given: pytest.fail("planned"))
    assert call("mine.yaml", "--run").code == 0


def test_a_refused_row_and_a_failed_run_leave_the_others(
    tmp_path: Path, call: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = describe(tmp_path)
    refused = {"name": "refused", "method": "ogm", "fusion": "film"}
    describe(tmp_path, columns=values["columns"][:1], rows=[refused, *values["rows"][:1]], seeds=0)
    seen: list[str] = []

    def fail(jobs: list[Any], *_: Any) -> Outcome:
        seen.extend(job.spec.method for job in jobs)
        return Outcome(failed=[(job, "it broke") for job in jobs])

    monkeypatch.setattr(script, "run_all", fail)
    done = call("mine.yaml", "--run", "--jobs", 1)
    assert done.code == 1
    assert "refused refused on Made: ogm with readout=share needs a fusion" in done.out
    assert seen == ["joint"]
    assert "joint seed 0: it broke" in done.out


def test_a_refused_row_does_not_take_those_planned_with_it(
    tmp_path: Path, call: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
) -> None:
    column = {"name": "Made", "dataset": "synthetic", "protocol": "tiny.yaml", "set": DATA, "fusion": "film"}
    describe(tmp_path, columns=[column], rows=[{"name": m, "method": m} for m in ("joint", "ogm")], seeds=0)
    seen: list[str] = []
    monkeypatch.setattr(script, "run_all", lambda jobs, *_: seen.extend(j.spec.method for j in jobs) or Outcome())
    done = call("mine.yaml", "--run", "--jobs", 1)
    assert (done.code, seen) == (1, ["joint"])


def test_the_list_tells_the_time_by_runs_of_the_same_kind(
    mine: Any, tmp_path: Path, call: Callable[..., Called]
) -> None:
    fake(tmp_path / "out", mine.rows[0], mine.columns[0], 0)
    text = call("mine.yaml", "--list").out
    assert "1 of 12 runs exist; about 8 min 20 s for 3; unknown time for 2; 6 need data" in text


def test_changes_on_the_command_line_go_to_a_folder_of_their_own(
    mine: Any, tmp_path: Path, call: Callable[..., Called]
) -> None:
    for seed in (0, 1):
        fake(tmp_path / "out", mine.rows[0], mine.columns[0], seed)
    done = call("mine.yaml", "--select", "last", "--seeds", 1, "--format", "csv")
    assert done.code == 0, done.err
    assert [str(p.relative_to(tmp_path / "out" / "tables")) for p in (tmp_path / "out" / "tables").rglob("*.*")] == [
        "mine-last-seeds-1/table.csv"
    ]
    frame = pd.read_csv(tmp_path / "out" / "tables" / "mine-last-seeds-1" / "table.csv")
    assert (frame.loc[0, "select"], frame.loc[0, "mean"], frame.loc[0, "n"]) == ("last", 0.525, 1)


def test_the_best_test_epoch_wants_runs_that_tested_each_epoch(mine: Any, tmp_path: Path) -> None:
    out, row, column = tmp_path / "out", mine.rows[0], mine.columns[0]
    fake(out, row, column, 0)
    fake(out, row, column, 1, select="best_test")
    assert found(out, "best_val")["joint", "Made"] == [0]
    assert found(out, "best_test")["joint", "Made"] == [1]


def test_published_numbers_stand_beside_the_method_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    group = {"source": "S", "protocol": "P", "select": "last", "confidence": "paper", "run": "none"}
    rows = [
        {"method": "ogm", "dataset": "synthetic", "accuracy": 50.0},
        {"method": "ogm", "label": "a", "dataset": "synthetic", "accuracy": 51.0, "fusion": "sum"},
        {"method": "ogm", "label": "b", "dataset": "synthetic", "accuracy": 52.0, "set": {"ogm.alpha": 0.3}},
        {"method": "ogm", "label": "c", "dataset": "synthetic", "accuracy": 53.0, "set": {"ogm.alpha": 0.4}},
        {"method": "mmcosine", "dataset": "synthetic", "accuracy": 54.0},
        {"method": "ogm", "dataset": "digits", "accuracy": 55.0},
    ]
    (tmp_path / "published.yaml").write_text(
        yaml.safe_dump({"groups": {"g": {**group, "rows": rows}, "h": {**group, "rows": rows}}})
    )
    monkeypatch.setattr(script, "PUBLISHED", tmp_path / "published.yaml")
    extra = [{"name": "plain", "method": "ogm"}, {"name": "OGM", "method": "ogm", "set": {"alpha": 0.3}}]
    describe(tmp_path, rows=[*extra, {"name": "later", "method": "mmcosine"}], published=["g"])
    made = script.make(load_table("mine.yaml"), Archive(Store(tmp_path)))
    assert [(one.row, one.claim.accuracy) for one in made.beside] == [("plain", 50.0), ("plain", 52.0), ("later", 54.0)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "tables.py needs the name of a table, found none: name one of agm, "),
        ([","], "tables.py needs the name of a table, found none: name one of agm, "),
        (["", "--list"], "or all, or a YAML file; --list prints what there is"),
        (["udi-mian"], "there is no table called 'udi-mian'; did you mean 'udi-main'"),
        (["mine.yaml", "--format", "pdf"], "--format takes md, csv, tex, html, found 'pdf'"),
        (["mine.yaml", "--seeds", "x"], "--seeds takes whole numbers"),
        (["mine.yaml", "--jobs", "0"], "--jobs must be at least 1, found 0"),
        (["mine.yaml", "--select", "first"], "invalid choice: 'first'"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, call: Callable[..., Called], arguments: list[str], sentence: str
) -> None:
    describe(tmp_path)
    done = call(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rwos": []}, "mine.yaml has no key 'rwos'; did you mean 'rows'"),
        ({"rows": []}, "the rows of mine.yaml must be one or more with names of their own, found none"),
        ({"rows": [{"name": "a", "method": "joint"}] * 2}, "found 'a' twice"),
        ({"rows": [{"name": "a", "methd": "joint"}]}, "a row of mine.yaml has no key 'methd'; did you mean 'method'"),
        ({"rows": [{"name": "a"}]}, "a row of mine.yaml must have the key 'method', found name"),
        ({"rows": [{"name": "a", "method": "joint", "epochs": "twice"}]}, "a multiple such as 2x, found 'twice'"),
        ({"rows": [{"name": "a", "method": "joint", "epochs": "0x"}]}, "a multiple such as 2x, found '0x'"),
        (
            {"rows": [{"name": "a", "method": "joint", "epochs": 0}]},
            "whole number >= 1 or a multiple such as 2x, found 0",
        ),
        (
            {"rows": [{"name": "a", "method": "ogm", "set": {"alhpa": 1}}]},
            "ogm has no option 'alhpa'; did you mean 'alpha'",
        ),
        ({"columns": ["toy"]}, "a column of mine.yaml must hold names with values, found 'toy'"),
        ({"select": "best"}, "select of mine.yaml must be one of last, best_val, best_test, found 'best'"),
        ({"values": "accuracy"}, "values of mine.yaml must be a list, found 'accuracy'"),
        ({"seeds": "a-b"}, "--seeds takes whole numbers and ranges such as 0-4, found 'a-b'"),
        ({"published": ["nobody"]}, "there is no published group called 'nobody'"),
        (
            {"rows": [{"name": "a", "method": "udii"}]},
            "method of 'a', a row of mine.yaml, must be implemented, published or listed under elsewhere, "
            "found 'udii'; did you mean 'udi'?",
        ),
        (
            {"columns": [{"name": "c", "dataset": "synthetc", "protocol": "tiny.yaml"}]},
            "dataset of 'c', a column of mine.yaml, must be implemented, published or listed under elsewhere, "
            "found 'synthetc'; did you mean 'synthetic'?",
        ),
        (
            {"rows": [{"name": "a", "method": "udi", "set": {"synthetc": {"anchor": "m0"}}}]},
            "dataset of the options of 'a', a row of mine.yaml, must be implemented, published or listed under "
            "elsewhere, found 'synthetc'; did you mean 'synthetic'?",
        ),
        ({"elsewhere": "udii"}, "elsewhere of mine.yaml must be a list, found 'udii'"),
        (
            {"values": ["macrof1"]},
            "value of mine.yaml must be one that runs have, found 'macrof1'; did you mean 'macro_f1'",
        ),
        (
            {"values": ["aloen/*"]},
            "value of mine.yaml must be one that runs have, found 'aloen/*'; did you mean 'alone/*'",
        ),
        ({"values": ["alone"]}, "value of mine.yaml must be one that runs have, found 'alone'; did you mean 'alone/*'"),
        ({"values": ["accuracy/m0"]}, "value of mine.yaml must be one that runs have, found 'accuracy/m0'"),
        ({"values": ["device"]}, "value of mine.yaml must be one that runs have, found 'device'"),
        ({"values": ["accurate*"]}, "value of mine.yaml must be one that runs have, found 'accurate*'"),
        ({"values": [1]}, "values of mine.yaml must be a list of texts, found 1: put it in quotes"),
    ],
)
def test_mistakes_in_a_table(
    tmp_path: Path, call: Callable[..., Called], changes: dict[str, Any], sentence: str
) -> None:
    describe(tmp_path, **changes)
    (tmp_path / "out" / "records").mkdir(parents=True)
    done = call("mine.yaml")
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_names_that_are_published_or_listed_stay_empty(mine: Any, tmp_path: Path, call: Callable[..., Called]) -> None:
    fake(tmp_path / "out", mine.rows[0], mine.columns[0], 0)
    rows = [{"name": name, "method": name} for name in ("joint", "mmcosine", "udii")]
    column = {"name": "theirs", "dataset": "synthetc", "protocol": "tiny.yaml"}
    describe(
        tmp_path,
        rows=rows,
        columns=[describe(tmp_path)["columns"][0], column, {**column, "name": "published", "dataset": "balanced_av"}],
        elsewhere=["udii", "synthetc"],
        values=["accuracy", "imbal*", "*/m0", "probe/m0"],
    )
    done = call("mine.yaml", "--format", "md")
    assert done.code == 0, done.err
    lines = (tmp_path / "out" / "tables" / "mine" / "table.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| udii |")]
    assert set(line.split(" | ")[1:]) == {"not here", "not here |"}


def test_every_score_of_a_record_is_a_value(mine: Any) -> None:
    archive = Archive(Store(ROOT / "results"))
    names = {name for m in ("joint", "udi") for record in archive.of("mosi", m) for name in tidy.rows(record)[0]}
    scores = [name for name in names if name.rpartition("/")[0] or name in VALUES]
    assert {"accuracy", "share/text", "cka/text+audio", "utilisation/text", "passes"} <= set(scores)
    _check_values(dataclasses.replace(mine, values=scores), "mine.yaml")


@pytest.mark.parametrize(
    ("column", "row", "said"),
    [
        (
            {"fusion": "concta"},
            {},
            "fusion of 'Made', a column of mine.yaml, must name one, found 'concta'; did",
        ),
        (
            {},
            {"fusion": "sun"},
            "fusion of 'joint', a row of mine.yaml, must name one, found 'sun'; did you mean 'sum'?",
        ),
        (
            {"encoders": {"m00": {"name": "mlp"}}},
            {},
            "synthetic of 'Made', a column, has no modality 'm00'; did you mean 'm0'",
        ),
        ({}, {"method": "udi", "set": {"anchor": "m00"}}, "'joint', a row, on synthetic: "),
        ({}, {"method": "udi", "set": {"synthetic": {"anchor": "m00"}}}, "'joint', a row, on synthetic: "),
    ],
)
def test_what_run_would_refuse_is_refused_where_the_data_is_known(
    mine: Any, tmp_path: Path, call: Callable[..., Called], column: Any, row: Any, said: str
) -> None:
    values = describe(tmp_path)
    fake(tmp_path / "out", mine.rows[0], mine.columns[0], 0)
    describe(tmp_path, columns=[{**values["columns"][0], **column}], rows=[{**values["rows"][0], **row}])
    for flags in ((), ("--list",)):
        called = call("mine.yaml", *flags)
        assert called.code == 2
        assert said in called.err
        assert called.err.count("\n") == 1


def test_runs_with_other_options_of_the_data_tell_nothing_of_its_modalities(
    mine: Any, tmp_path: Path, call: Callable[..., Called]
) -> None:
    values = describe(tmp_path)
    fake(tmp_path / "out", mine.rows[0], mine.columns[0], 0)
    third = {"name": "Three", "encoders": {"m2": {"name": "mlp"}}}
    column = {**values["columns"][0], **third, "set": {**DATA, "synthetic.modalities": 3}}
    describe(tmp_path, columns=[values["columns"][0], column], rows=values["rows"][:1])
    assert call("mine.yaml").code == 0


@pytest.mark.parametrize("value", ["alone/m00*", "alone/n*", "masked/m0+n*"])
def test_a_pattern_that_no_run_fits_is_refused(
    mine: Any, tmp_path: Path, call: Callable[..., Called], value: str
) -> None:
    values = describe(tmp_path)
    fake(tmp_path / "out", mine.rows[0], mine.columns[0], 0)
    describe(tmp_path, columns=values["columns"][:1], values=["accuracy", value])
    assert f"a value of mine must be one that runs have, found {value!r}" in call("mine.yaml").err
    fits = value.replace("00", "?").replace("/n", "/m").replace("+n", "+m")
    describe(tmp_path, columns=values["columns"][:1], values=["accuracy", fits])
    assert call("mine.yaml").code == 0


def test_a_modality_that_no_run_has_is_refused(mine: Any, tmp_path: Path, call: Callable[..., Called]) -> None:
    values = describe(tmp_path)
    record = fake(tmp_path / "out", mine.rows[0], mine.columns[0], 0)
    describe(tmp_path, columns=values["columns"][:1], values=["accuracy", "alone/m1"])
    assert call("mine.yaml").code == 0  # no run tells any such value
    describe(tmp_path, columns=values["columns"][:1], values=["accuracy", "alone/m00"])
    assert "found 'alone/m00'; did you mean 'alone/m0' or 'alone/m1'?" in call("mine.yaml").err
    record["result"]["readings"]["best_val"]["test"]["alone/m0"] = 0.5
    path = tmp_path / "out" / "records" / "synthetic" / "joint" / f"{record['key']}.json"
    path.write_text(json.dumps(record))
    done = call("mine.yaml")
    assert done.code == 2
    assert done.err == (
        "error: a value of mine must be one that runs have, found 'alone/m00'; did you mean 'alone/m0'?\n"
    )
    describe(tmp_path, columns=values["columns"][:1], values=["accuracy", "alone/m0"])
    assert call("mine.yaml").code == 0
    describe(tmp_path, values=["accuracy", "alone/m00"])  # a column without runs, which may have it
    assert call("mine.yaml").code == 0


@pytest.mark.parametrize("name", ["absent", "out"])
def test_a_folder_without_records_is_refused(tmp_path: Path, call: Callable[..., Called], name: str) -> None:
    describe(tmp_path)
    (tmp_path / "out").mkdir()
    before = sorted(tmp_path.rglob("*"))
    script_out = tmp_path / name
    done = call("mine.yaml", out=script_out)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: --out must be a folder with the records of runs, found no folder {script_out / 'records'}: "
        "train with benchmarks/run.py, or name another --out\n"
    )
    assert call("mine.yaml", "--list", out=script_out).code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_reading_that_no_run_has_is_refused(mine: Any, tmp_path: Path, call: Callable[..., Called]) -> None:
    out = tmp_path / "out"
    fake(out, mine.rows[0], mine.columns[0], 0)
    done = call("mine.yaml", "--select", "best_test")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: mine must have runs that were evaluated for best_test, found only such for last and best_val: "
        "name one of these with --select, or train with --run\n"
    )
    assert not (out / "tables").exists()
    fake(out, mine.rows[0], mine.columns[0], 1, select="best_test")
    assert call("mine.yaml", "--select", "best_test").code == 0


def test_training_nothing_is_refused(tmp_path: Path, call: Callable[..., Called]) -> None:
    column = {"name": "Far", "dataset": "cgmnist", "protocol": "tiny.yaml"}
    describe(tmp_path, columns=[column], rows=[{"name": "joint", "method": "joint"}])
    (tmp_path / "near.yaml").write_text((tmp_path / "mine.yaml").read_text().replace("cgmnist", "digits"))
    done = call("mine.yaml", "--run", "--data-root", tmp_path / "absent")
    assert done.code == 2
    assert done.out.startswith("skipped Far: ")
    assert done.err == (
        "error: mine must have data to train on or runs to print, found neither: "
        "name the folder with the datasets as --data-root, or another --out\n"
    )
    assert not (tmp_path / "out" / "tables").exists()
    both = call("mine.yaml", "near.yaml", "--run", "--seeds", 0, "--jobs", 1, "--data-root", tmp_path / "absent")
    assert both.code == 0
    assert "error" not in both.err
    assert "not written, without data to train on and without runs: mine\n" in both.out
    assert [path.name for path in (tmp_path / "out" / "tables").iterdir()] == ["near-seeds-0"]
    table = load_table("mine.yaml")
    fake(tmp_path / "out", table.rows[0], table.columns[0], 0)
    assert call("mine.yaml", "--run", "--data-root", tmp_path / "absent").code == 0  # a run to print


def test_the_main_table_shows_a_published_number_once() -> None:
    made = script.make(load_table("udi-main"), Archive(Store(Path("nowhere"))))
    shown = [(one.row, one.column, one.value, one.accuracy, one.claim.source) for one in made.beside]
    assert ("PMR", "CREMA-D") in {one[:2] for one in shown}
    assert len(set(shown)) == len(shown)


def test_an_encoder_of_a_column_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = describe(tmp_path)
    values["columns"][0]["encoders"] = {"m0": {"width": 8}}
    describe(tmp_path, columns=values["columns"])
    with pytest.raises(UserError, match=r"encoder m0 of 'Made', a column of mine\.yaml, must name one of resnet18"):
        load_table("mine.yaml")
