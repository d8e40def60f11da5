"""What a call does: the plan, the records, the table; and what the next call does with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from calls import ROOT, command, content, records, shas

import registry
from balancebench_udi import Strategy
from balancebench_udi.catalogue import Catalogue
from benchmarks.command import LARGE_PAGES, manage_memory_for
from benchmarks.run import PROTOCOLS

ON = ("--dataset", "digits", "--protocol", "quick", "--device", "cpu", "--epochs", "2")
SWEEP = ("--methods", "joint,unimodal", *ON, "--seeds", "0-1")
TABLE = ("comparison.csv", "comparison.md", "comparison.tex")
FIGURE = ("accuracy_against_imbalance.png", "accuracy_against_imbalance.svg")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep by a process of its own, from another working directory: (how it ended, its results folder)."""
    here = tmp_path_factory.mktemp("elsewhere")
    called = command(*SWEEP, "--out", "results", cwd=here)
    assert called.code == 0, called.err
    assert [p.name for p in here.iterdir()] == ["results"]
    return called, here / "results"


@pytest.fixture
def out(swept, tmp_path):
    """A copy of the swept results, times of change included."""
    return shutil.copytree(swept[1], tmp_path / "out")


def table(out, pattern="*"):
    """The only table below ``out`` that matches, by method."""
    (path,) = out.glob(f"tables/{pattern}/comparison.csv")
    return pd.read_csv(path).set_index("method")


def only(out, pattern="*"):
    """The text of the only markdown table that matches."""
    (path,) = out.glob(f"tables/{pattern}/comparison.md")
    return path.read_text()


def test_a_sweep_tells_its_plan_and_leaves_records_a_table_and_a_figure(swept):
    called, out = swept
    lines = called.out.splitlines()
    assert lines[0] == "digits (train 1078, val 269, test 450; gray, colour) under quick+ v1: 2 epochs, fp32, on cpu"
    assert re.fullmatch(r"  joint +0 done, 2 to do", lines[1])
    assert re.fullmatch(r"  unimodal +0 done, 2 to do", lines[2])
    assert re.fullmatch(r"about (\d+ min )?\d+ s for 4 of 4 runs", lines[3])
    assert "100%" in called.err
    assert "Traceback" not in called.err

    made = records(out)
    assert sorted((r["spec"]["method"], r["spec"]["seed"]) for r in made.values()) == [
        ("joint", 0),
        ("joint", 1),
        ("unimodal", 0),
        ("unimodal", 1),
    ]
    for path, record in made.items():
        assert path.parts[:3] == ("records", "digits", record["spec"]["method"])
        assert path.stem == record["key"]
        assert (record["spec"]["protocol"], record["spec"]["epochs"]) == ("quick+", 2)
    assert not list(out.glob("checkpoints/*"))
    assert not list(out.glob("failures/*"))

    (tables,), (figures,) = out.glob("tables/*"), out.glob("figures/*")
    assert sorted(p.name for p in tables.iterdir()) == list(TABLE)
    assert sorted(p.name for p in figures.iterdir()) == list(FIGURE)
    assert re.fullmatch(r"digits-quick\+-[0-9a-f]{6}", tables.name)
    assert figures.name == tables.name
    rows = table(out)
    assert list(rows.index) == ["joint", "unimodal"]
    for method, row in rows.iterrows():
        scores = [r["result"]["readings"]["best_val"]["test"] for r in made.values() if r["spec"]["method"] == method]
        assert row["accuracy"] == pytest.approx(sum(s["accuracy"] for s in scores) / 2)
        assert row["macro_f1"] == pytest.approx(sum(s["macro_f1"] for s in scores) / 2)
        assert (row["n"], row["wanted"]) == (2, 2)
    assert rows.loc["joint", "passes_relative"] == 1
    assert rows["verdict"].notna().all()
    shown = called.out[called.out.index("digits, protocol quick+ v1\n") : called.out.index("written: ")]
    assert max(map(len, shown.splitlines())) <= 100
    for text in (shown, only(out), (tables / "comparison.tex").read_text()):
        said = " ".join(text.split())
        assert re.search(r"On digits, (joint|unimodal) has the highest mean \([\d.]+ \\?%\)[;,]", said)
        assert "Not significantly different is not the same as equal" in said
    assert "*: best accuracy; †: not significantly different; ‡: too noisy" in shown
    for path in (*(tables / name for name in TABLE), *(figures / name for name in FIGURE)):
        assert path.name in called.out
        assert path.stat().st_size > 500


def test_the_next_call_trains_nothing_and_writes_the_same_bytes(cli, swept, out):
    before = content(out)
    called = cli(*SWEEP, "--out", out)
    assert called.code == 0
    assert re.search(r"joint +2 done, 0 to do\n", called.out)
    assert "all 4 runs are done" in called.out
    after = content(out)
    assert {k: v for k, v in after.items() if k.startswith("records")} == {
        k: v for k, v in before.items() if k.startswith("records")
    }
    assert {k: digest for k, (_, digest) in after.items()} == {k: digest for k, (_, digest) in before.items()}
    text = called.out.split("all 4 runs are done\n")[1].split("written:")[0]
    assert text in swept[0].out


def test_another_process_gets_the_same_results(cli, swept, tmp_path):
    assert cli(*SWEEP, "--out", tmp_path / "again").code == 0
    assert shas(tmp_path / "again") == shas(swept[1])
    again, first = (
        {k: v for k, v in table(o).items() if not re.match("seconds|spent", k)} for o in (tmp_path / "again", swept[1])
    )
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(first), check_exact=True)


@pytest.mark.skipif(sys.platform != "linux", reason="speaks to the GNU C library")
@pytest.mark.parametrize("way", ["--no-spare-memory", "--spare-memory"])
def test_what_becomes_of_freed_memory_changes_no_result(swept, tmp_path, way):
    called = command(*SWEEP, way, "--out", "again", cwd=tmp_path)
    assert called.code == 0, called.err
    assert shas(tmp_path / "again") == shas(swept[1])


@pytest.mark.parametrize(
    ("precision", "words", "spares"),
    [
        ("fp32", (), True),
        ("fp32", ("--no-spare-memory",), False),
        ("bf16", (), False),
        ("bf16", ("--spare-memory",), True),
    ],
)
def test_memory_is_spared_in_fp32_and_where_asked_and_else_kept(cli, monkeypatch, precision, words, spares):
    calls = []
    monkeypatch.setattr("benchmarks.command.manage_memory", lambda spare: not calls.append(spare))
    assert cli(*SWEEP, "--precision", precision, "--dry-run", *words).code == 0
    assert calls == [spares]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such pages")
def test_large_tensors_ask_for_large_pages_whatever_was_imported():
    """torch is told at its first tensor or never; what reads sound makes one when it is imported.

    Such tensors begin at a page; others 64 bytes behind the beginning of one.
    """
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import benchmarks.run, registry, torch\n"
        "for name in registry.datasets.names(): registry.datasets.get(name)\n"
        "print([torch.ones(2**22).data_ptr() % 4096 for _ in range(3)])"
    )
    environment = {k: v for k, v in os.environ.items() if k != LARGE_PAGES}
    told = subprocess.run([sys.executable, "-c", code, str(ROOT)], env=environment, capture_output=True, check=True)
    assert told.stdout.decode().strip() == "[0, 0, 0]"


def test_on_a_gpu_memory_is_managed_only_where_asked(monkeypatch):
    calls = []
    monkeypatch.setattr("benchmarks.command.manage_memory", lambda spare: not calls.append(spare))
    for spare in (None, False, True):
        assert manage_memory_for("bf16", torch.device("cuda"), spare)
    assert calls == [True]


def test_another_c_library_is_a_mistake_only_where_sparing_was_asked(cli, monkeypatch):
    monkeypatch.setattr("benchmarks.command.manage_memory", lambda spare: False)
    assert cli(*SWEEP, "--dry-run").code == 0
    assert cli(*SWEEP, "--dry-run", "--no-spare-memory").code == 0
    called = cli(*SWEEP, "--dry-run", "--spare-memory")
    assert called.code == 2
    assert called.err == "error: --spare-memory needs the GNU C library, found another one: leave it out\n"


def test_a_wider_sweep_trains_only_what_is_missing(cli, out):
    before = {k: v for k, v in content(out).items() if k.startswith("records")}
    arguments = [a if a != "0-1" else "0-2" for a in SWEEP]
    called = cli(*arguments, "--out", out)
    assert called.code == 0
    assert re.search(r"joint +2 done, 1 to do\n", called.out)
    after = {k: v for k, v in content(out).items() if k.startswith("records")}
    assert len(after) == 6
    assert before.items() <= after.items()
    assert list(table(out)["n"]) == [3, 3]


def test_a_few_steps_are_counted_and_not_timed_beforehand(cli, tmp_path, monkeypatch):
    """Two of them would be much of the work. A dry run tells the time, and so do records."""
    few = ["--methods", "joint", *ON, "--epochs", "1", "--out", tmp_path]
    assert re.search(
        r"joint +0 done, 1 to do\nabout .* s for 1 of 1 runs\n$", cli(*few, "--seeds", "0", "--dry-run").out
    )
    with monkeypatch.context() as patch:
        patch.setattr("balancebench_udi.runner._probe", None)  # must not be called
        assert re.search(r"joint +0 done, 1 to do\n17 steps for 1 of 1 runs\n", cli(*few, "--seeds", "0").out)
        assert re.search(r"joint +0 done, 1 to do\nabout .* s for 1 of 1 runs\n", cli(*few, "--seeds", "1").out)


def test_a_dry_run_trains_and_writes_nothing(cli, tmp_path):
    called = cli(*SWEEP, "--out", tmp_path / "out", "--dry-run")
    assert called.code == 0
    assert re.search(r"unimodal +0 done, 2 to do\nabout .* s for 4 of 4 runs\n$", called.out)
    assert called.err == ""
    assert not (tmp_path / "out").exists()


def test_a_changed_preset_is_not_called_by_its_name(cli, tmp_path):
    def first(*more):
        called = cli("--methods", "joint", *ON[:4], "--seeds", "0", "--out", tmp_path / "out", "--dry-run", *more)
        return called.out.splitlines()[0]

    assert " under quick v1: 30 epochs" in first()
    assert " under quick v1: 30 epochs" in first("--set", "optimizer.lr=1e-2", "--epochs", "30")  # its own values
    assert " under quick+ v1: 29 epochs" in first("--epochs", "29")
    assert " under quick+ v1: 30 epochs" in first("--set", "optimizer.lr=0.02")


def test_every_method_can_be_planned_and_wildcards_resolve(cli, tmp_path):
    def planned(methods):
        called = cli("--methods", methods, *SWEEP[2:], "--out", tmp_path / "out", "--dry-run")
        assert called.code == 0, called.err
        return re.findall(r"^  (\w+) +0 done, 2 to do$", called.out, re.M)

    assert planned("all") == registry.methods.names()
    assert planned("ogm*") == ["ogm", "ogm_ge"]
    assert planned("u?i") == ["udi"]
    assert planned("joint,ogm*,joint, ogm") == ["joint", "ogm", "ogm_ge"]


def test_the_list_names_everything(cli):
    called = cli("--list")
    assert (called.code, called.err) == (0, "")
    assert "could not be loaded" not in called.out
    methods, rest = called.out.split("\ndatasets:\n")
    datasets, protocols = rest.split("\nprotocols:\n")
    for catalogue, text in ((registry.methods, methods), (registry.datasets, datasets)):
        blocks = dict(re.findall(r"^  (\w+): (.*\n(?:    .*\n)*)", text + "\n", re.M))
        assert list(blocks) == catalogue.names()
        for name in catalogue.names():
            for option, default, meaning, source in catalogue.get(name).Options.describe():
                assert f"    {option} = {default}: {meaning} [{source}]\n" in blocks[name]
            assert getattr(catalogue.get(name), "needs", "") in blocks[name]
    assert re.findall(r"^  (\w+) v\d+: \S", protocols, re.M) == sorted(p.stem for p in PROTOCOLS.glob("*.yaml"))


def test_a_reading_is_not_a_run(cli, out):
    before = content(out / "records")
    called = cli(*SWEEP, "--out", out, "--select", "last")
    assert called.code == 0
    assert content(out / "records") == before
    last = table(out, "*-last")
    for method, row in last.iterrows():
        scores = [
            r["result"]["readings"]["last"]["test"]["accuracy"]
            for r in records(out).values()
            if r["spec"]["method"] == method
        ]
        assert row["accuracy"] == pytest.approx(sum(scores) / 2)
    assert set(last["select"]) == {"last"}
    assert "read at its last epoch" in only(out, "*-last")
    assert "best validation accuracy" in only(out, "*[!t]")


def test_picking_on_test_is_asked_for_and_said(cli, tmp_path):
    out = tmp_path / "out"
    arguments = ("--methods", "joint", *ON, "--seeds", "0", "--out", out, "--test-each-epoch")
    called = cli(*arguments, "--select", "best_test")
    assert called.code == 0
    assert "selected on the test split" in called.out
    text = only(out, "*-best_test")
    assert "selected on the test split, these numbers are optimistic" in text
    (record,) = records(out).values()
    scores = [c["test"]["accuracy"] for c in record["result"]["curves"]]
    assert table(out)["accuracy"]["joint"] == pytest.approx(max(scores))
    before = content(out / "records")
    assert cli(*arguments).code == 0
    assert content(out / "records") == before
    assert "selected on the test split" not in only(out, "*[!t]")


def test_what_is_set_makes_another_run(cli, out):
    def keys():
        return {path.stem for path in records(out)}

    def call(*more):
        arguments = ("--methods", "joint", *ON, "--seeds", "0", "--out", out)
        called = cli(*arguments, *more)
        assert called.code == 0, called.err
        return re.search(r"^  \w+ +(\d+ done, \d+ to do)", called.out, re.M)[1]

    old, tables = keys(), len(list(out.glob("tables/*")))
    assert call("--set", "optimizer.lr=0.01") == "1 done, 0 to do"  # the protocol's own value, written in another way
    assert keys() == old
    assert call("--set", "optimizer.lr=0.02") == "0 done, 1 to do"
    assert call("--set", "optimizer.lr=2e-2") == "1 done, 0 to do"
    assert call("--set", "digits.val_colour=label") == "0 done, 1 to do"
    assert call("--set", "encoder.gray.name=mlp") == "0 done, 1 to do"
    assert call("--fusion", "sum") == "0 done, 1 to do"
    assert call("--batch-size", "128") == "0 done, 1 to do"
    assert len(keys() - old) == 5
    assert len(list(out.glob("tables/*"))) == tables + 7  # no table is overwritten by that of another call


def test_results_lie_in_the_checkout_or_the_named_folder():
    from benchmarks.run import default_out

    assert default_out() == ROOT / "results"


def test_a_loss_that_is_not_finite_is_a_failure_and_the_sweep_goes_on(cli, tmp_path):
    out = tmp_path / "out"
    called = cli(*SWEEP, "--out", out, "--set", "optimizer.lr=1e30")
    assert called.code == 1
    assert "Traceback" not in called.err + called.out
    assert "4 runs failed and are not in the table; the same command tries them again:" in called.out
    for run in ("joint seed 0", "joint seed 1", "unimodal seed 0", "unimodal seed 1"):
        assert re.search(
            rf"  {run}: RunFailed: the training loss must stay finite, found nan in epoch .*\.txt\)$", called.out, re.M
        )
    failures = list(out.glob("failures/*.txt"))
    assert len(failures) == 4
    for path in failures:
        text = path.read_text()
        assert text.startswith("Traceback")
        assert "RunFailed" in text
        assert str(path) in called.out
    assert not records(out)


class Breaks(Strategy):
    """A method that breaks in its second seed until it is mended."""

    name = "breaks"
    mended = False

    def begin_epoch(self):
        if not type(self).mended and self.task._spec.seed == 0:
            raise RuntimeError("a tensor has the wrong shape\nin a second line")


def test_one_broken_method_does_not_take_the_others_with_it(cli, tmp_path, monkeypatch):
    table_of_contents = {**registry.METHODS, "breaks": f"{__name__}:Breaks"}
    monkeypatch.setattr(registry, "methods", Catalogue("method", table_of_contents, "balancebench_udi.methods"))
    monkeypatch.setattr(Breaks, "mended", False)
    out = tmp_path / "out"
    arguments = ("--methods", "breaks,joint", *ON, "--seeds", "0-1", "--out", out)
    called = cli(*arguments)
    assert called.code == 1
    assert "1 runs failed" in called.out or "1 run failed" in called.out
    (failure,) = out.glob("failures/*.txt")
    assert f"  breaks seed 0: RuntimeError: a tensor has the wrong shape (traceback in {failure})" in called.out
    assert "in begin_epoch" in failure.read_text()
    assert "Traceback" not in called.err + called.out
    assert list(table(out)["n"]) == [1, 2]
    assert "1 of 2" in called.out or "1/2" in called.out

    before = content(out / "records")
    assert cli(*arguments).code == 1  # tried again, and broken again
    assert content(out / "records") == before

    monkeypatch.setattr(Breaks, "mended", True)
    called = cli(*arguments)
    assert called.code == 0, called.out
    assert not failure.exists()
    assert len(records(out)) == 4
    assert before.items() <= content(out / "records").items()
    assert list(table(out)["n"]) == [2, 2]


def test_weights_are_kept_where_asked_also_of_runs_that_were_trained_before(out, tmp_path):
    before = content(out / "records")
    (joint,) = [p for p, record in records(out).items() if p.parent.name == "joint" and record["spec"]["seed"] == 1]
    wanted = ("--methods", "joint", *ON, "--seeds", "1", "--keep-weights", "--out", out)
    called = command(*wanted, cwd=tmp_path)
    assert called.code == 0, called.err
    assert "0 done, 1 to do" in called.out
    kept = torch.load(out / "weights" / f"{joint.stem}.pt", weights_only=True)
    assert set(kept) == {"last", "best_val"}
    assert "model.fusion.out.weight" in kept["last"]
    assert content(out / "records") == before
    assert "all 1 runs are done" in command(*wanted, cwd=tmp_path).out
