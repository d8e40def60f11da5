"""The records as one file for a notebook: what it holds, that it is always the same, and every mistake a sentence."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pandas as pd
import pytest
from calls import ROOT, Called, finish, spawn

from balancebench_udi.report.comparison import FREE
from balancebench_udi.report.tidy import SAMPLE, frame, samples
from balancebench_udi.store import Store, read_record
from benchmarks import records

COMMITTED = ROOT / "results" / "records"
CHOSEN = [("cgmnist", "joint"), ("cgmnist", "udi"), ("mosi", "joint")]


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """``call("--to", "x.csv", ...)`` in this process, from an empty folder; the results folder is ``out`` beside it."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def call(*arguments):
        capsys.readouterr()
        code = records.main(["--out", str(tmp_path / "out"), *map(str, arguments)])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    return call


def copy(root, order=1):
    """Two records of each of CHOSEN below ``root``."""
    for dataset, method in CHOSEN[::order]:
        for path in sorted((COMMITTED / dataset / method).glob("*.json"))[:2][::order]:
            place = root / "records" / dataset / method / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return Store(root)


@pytest.fixture
def store(tmp_path):
    return copy(tmp_path / "out")


def refused(called):
    """The one sentence with which a call ended, and nothing on disk."""
    assert called.code == 2, called
    assert called.out == ""
    assert called.err.startswith("error: ")
    assert called.err.count("\n") == 1
    assert os.listdir() == []
    return called.err.removeprefix("error: ").rstrip()


def test_csv_holds_the_table(call, store):
    expected = frame(store.records(), "best_val")
    called = call("--to", "runs.csv")
    assert called.code == 0
    assert called.out == f"6 rows of 6 runs, {expected.shape[1]} columns; written: runs.csv\n"
    assert os.listdir() == ["runs.csv"]
    table = pd.read_csv("runs.csv")
    assert list(table.columns) == list(expected.columns)
    pd.testing.assert_frame_equal(table, expected, rtol=1e-14, check_dtype=False)


def test_a_result_that_was_changed_is_found(call, store):
    done = call("--check")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{len(store.record_paths())} records are as they were written\n"
    path = store.record_paths()[-1]
    record = json.loads(path.read_text())
    record["result"]["readings"]["best_val"]["test"]["accuracy"] += 1e-9
    path.write_text(json.dumps(record))
    called = call("--check")
    assert (called.code, called.out) == (2, "")
    assert called.err == (
        f"error: {path} must hold the result that was recorded, found another: delete it to train again\n"
        "1 of 6 records are damaged\n"
    )


@pytest.mark.parametrize("cut", ["result", "cost", "readings", "modalities"])
def test_a_record_without_its_parts_is_one_sentence(call, store, cut):
    path = store.record_paths()[0]
    record = json.loads(path.read_text())
    del (record if cut in record else record["result"])[cut]
    path.write_text(json.dumps(record))
    assert refused(call("--to", "runs.csv")).startswith(f"{path} must be a record, found a damaged file ('")


def test_parquet_holds_the_table(call, store):
    called = call("--to", "new/folder/runs.parquet", "--select", "all")
    assert called.out.startswith("12 rows of 6 runs, ")
    assert called.out.endswith("written: new/folder/runs.parquet\n")
    table = pd.read_parquet("new/folder/runs.parquet")
    pd.testing.assert_frame_equal(table, frame(store.records()), check_exact=True)
    assert table["seed"].dtype == table["parameters"].dtype == "int64"
    assert list(table["reading"]) == ["last", "best_val"] * 6


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (("--dataset", "mosi"), {("mosi", "joint")}),
        (("--dataset", "mosi,cgmnist", "--method", "joint"), {("mosi", "joint"), ("cgmnist", "joint")}),
        (("--method", " udi ,joint", "--dataset", "cgmnist"), {("cgmnist", "joint"), ("cgmnist", "udi")}),
        (("--method", "udi"), {("cgmnist", "udi")}),
    ],
)
def test_datasets_and_methods(call, store, arguments, keys):
    assert call(*arguments, "--to", "runs.csv").code == 0
    table = pd.read_csv("runs.csv")
    assert set(zip(table["dataset"], table["method"], strict=True)) == keys
    assert len(table) == 2 * len(keys)


@pytest.mark.parametrize("select", ["last", "best_val"])
def test_select(call, store, select):
    assert call("--to", "runs.csv", "--select", select).code == 0
    table = pd.read_csv("runs.csv")
    assert set(table["reading"]) == {select}
    accuracies = {r["key"]: r["result"]["readings"][select]["test"]["accuracy"] for r in store.records()}
    assert dict(zip(table["key"], table["accuracy"], strict=True)) == accuracies


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_equal_records_give_equal_bytes(call, store, tmp_path, suffix):
    copy(tmp_path / "another", order=-1)
    assert call("--to", f"a.{suffix}", "--select", "all", "--dataset", "cgmnist,mosi").code == 0
    assert call("--to", f"b.{suffix}", "--select", "all", "--out", tmp_path / "another").code == 0
    assert call("--to", f"c.{suffix}", "--select", "all", "--dataset", "mosi,cgmnist,mosi").code == 0
    with open(f"a.{suffix}", "rb") as a, open(f"b.{suffix}", "rb") as b, open(f"c.{suffix}", "rb") as c:
        assert a.read() == b.read() == c.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "cgmnits"), "has no record of a dataset called 'cgmnits'; did you mean 'cgmnist'?"),
        (("--method", "joint,udl"), "has no record of a method called 'udl'; did you mean 'udi'?"),
        (("--method", "zzzz"), "has no record of a method called 'zzzz'; known: joint, udi"),
        (("--method", "udi", "--dataset", "mosi"), "needs at least one record of udi on mosi, found none in "),
        (("--method", ","), "--method needs at least one value, found ','"),
        (("--select", "best_test"), "needs runs that were evaluated for best_test, found none among 6: "),
        (("--select", "best"), "--select: invalid choice: 'best'"),
        (("--to", "runs.xlsx"), "--to must name a .csv or a .parquet file, found 'runs.xlsx'"),
        (("--to", "runs"), "--to must name a .csv or a .parquet file, found 'runs'"),
    ],
)
def test_mistakes(call, store, arguments, message):
    assert message in refused(call("--to", "runs.csv", *arguments))


def test_no_file_named(call, store):
    assert refused(call()).endswith("needs the file to write, found none: name it with --to, or call with --check")


def test_no_records(call, tmp_path):
    said = refused(call("--to", "runs.csv", "--dataset", "mosi"))
    assert said.startswith(f"the table needs at least one record, found none in {tmp_path / 'out'}: train with ")
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_named_and_nothing_written(call, store):
    path = store.record_paths("mosi")[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(call("--to", "runs.csv")).startswith(f"{path} must be a record, found a damaged file")
    assert call("--to", "runs.csv", "--dataset", "cgmnist").code == 0


def test_the_probe_gap_stands_in_the_table_whichever_methods_are_asked_for(call, store):
    (path,) = [p for p in store.record_paths("mosi", "joint") if read_record(p)["spec"]["protocol"] == "features"][:1]
    joint = read_record(path)
    assert call("--to", "runs.csv", "--method", "joint", "--dataset", "mosi").code == 0
    assert not any(name.startswith("probe_gap") for name in pd.read_csv("runs.csv").columns)
    for one in sorted((COMMITTED / "mosi" / "unimodal").glob("*.json")):
        place = store.root / "records" / "mosi" / "unimodal" / one.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(one, place)
    assert call("--to", "runs.csv", "--method", "joint", "--dataset", "mosi").code == 0
    table = pd.read_csv("runs.csv").set_index("key")
    assert set(table["method"]) == {"joint"}
    (alone,) = [
        record["result"]["readings"]["best_val"]["test"]
        for record in store.records("mosi", "unimodal")
        if all(record["spec"][k] == v for k, v in joint["spec"].items() if k not in FREE or k == "seed")
    ]
    mine = joint["result"]["readings"]["best_val"]["test"]
    for m in joint["result"]["modalities"]:
        gap = alone[f"probe/{m}"] - mine[f"probe/{m}"]
        assert table.loc[joint["key"], f"probe_gap/{m}"] == pytest.approx(gap)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_samples_of_runs_with_different_modalities(call, store, suffix):
    called = call("--samples", "--to", f"samples.{suffix}", "--select", "all")
    assert called.code == 0
    table = (
        pd.read_csv("samples.csv", dtype={"target": str, "prediction": str})
        if suffix == "csv"
        else pd.read_parquet("samples.parquet")
    )
    assert called.out == f"{len(table)} rows of 6 runs, {table.shape[1]} columns; written: samples.{suffix}\n"
    own = {f"shapley/{m}" for m in ("gray", "colour", "text", "audio", "video")}
    assert set(table.columns) - set(SAMPLE) == own
    for record in store.records():
        theirs = {f"shapley/{m}" for m in record["result"]["modalities"]}
        for name, reading in record["result"]["readings"].items():
            mine = table[(table["key"] == record["key"]) & (table["reading"] == name)]
            assert mine["right"].mean() == pytest.approx(reading["test"]["accuracy"])
            assert {c: mine[c].mean() for c in theirs} == {c: pytest.approx(reading["test"][c]) for c in theirs}
            assert mine[list(own - theirs)].isna().all(axis=None)
            assert list(mine["sample"]) == list(range(len(mine)))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_equal_records_give_equal_samples(call, store, tmp_path, suffix):
    copy(tmp_path / "another", order=-1)
    assert call("--samples", "--to", f"a.{suffix}", "--method", "joint").code == 0
    assert call("--samples", "--to", f"b.{suffix}", "--method", "joint", "--out", tmp_path / "another").code == 0
    with open(f"a.{suffix}", "rb") as a, open(f"b.{suffix}", "rb") as b:
        assert a.read() == b.read()


def test_samples_of_a_run_are_written_before_the_next_is_read(call, store, monkeypatch):
    seen = []
    written = pd.DataFrame.to_csv
    monkeypatch.setattr(records, "samples", lambda *given: (seen.append("read"), samples(*given))[1])
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *a, **k: (seen.append("written"), written(*a, **k))[1])
    assert call("--samples", "--to", "samples.csv").code == 0
    assert seen == ["read", "written"] * 6


def test_mistakes_with_samples(call, store):
    said = refused(call("--samples", "--to", "samples.csv", "--select", "best_test"))
    assert said.startswith("the table needs runs that were evaluated for best_test, found none among 6: ")
    path = store.record_paths("mosi")[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert refused(call("--samples", "--to", "samples.csv")).startswith(
        f"{path} must be a record, found a damaged file"
    )


def test_parquet_without_pyarrow_is_one_sentence(call, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    store.record_paths()[0].write_text("damaged")  # it is said before anything is read
    said = refused(call("--to", "runs.parquet"))
    assert said.startswith("a .parquet file needs the package pyarrow, found none: ")
    assert "pip install 'balancebench-udi[parquet]'" in said
    assert call("--to", "runs.csv", "--dataset", "mosi").code == 0


def test_a_file_that_is_there_is_replaced(call, store):
    assert call("--to", "runs.csv").code == 0
    assert call("--to", "runs.csv", "--dataset", "mosi").code == 0
    assert len(pd.read_csv("runs.csv")) == 2
    assert os.listdir() == ["runs.csv"]


def test_as_a_script_from_anywhere(store, tmp_path):
    script = ROOT / "benchmarks" / "records.py"
    called = finish(spawn("--to", "runs.csv", "--dataset", "mosi", "--out", "out", cwd=tmp_path, script=script))
    assert called.code == 0, called
    assert called.out.startswith("2 rows of 2 runs, ")
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 2
