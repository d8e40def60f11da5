"""What cannot be written, printed or held is refused before the first step."""

from __future__ import annotations

import os
import re

import pytest
from calls import content
from test_mistakes import QUICK, mistake, sentence  # noqa: F401

from balancebench_udi import places
from balancebench_udi.trainer import Trainer
from benchmarks import embedding, tables
from benchmarks.run import parse_seeds

ONE = ("--methods", "joint", *QUICK, "--epochs", "1")
SYNTHETIC = ("--methods", "joint", "--dataset", "synthetic", "--seeds", "0")


@pytest.fixture
def untrained(monkeypatch):
    """No step may be taken."""

    def step(self, batch):
        pytest.fail("a step was taken")

    monkeypatch.setattr(Trainer, "step", step)


WRONG = {
    "long name": ((*ONE, "--name", "x" * 300), r"--name must have at most 255 bytes, found 300: shorten it"),
    "name of two lines": ((*ONE, "--name", "a\nb"), r"--name must be a plain folder name, found 'a\\nb'"),
    "NUL in a name": ((*ONE, "--name", "a\0b"), r"--name must be a plain folder name"),
    "surrogate in a name": ((*ONE, "--name", "\ud800"), r"--name must be a plain folder name"),
    "empty name": ((*ONE, "--name", ""), r"--name must be a plain folder name, found ''"),
    "empty data root": ((*ONE, "--data-root", ""), r"--data-root: must name a file or a folder, found ''"),
    "NUL in a path": ((*ONE, "--tensorboard", "a\0b"), r"--tensorboard: must name a file or a folder, found 'a\\x00b'"),
    "surrogate in a path": ((*ONE, "--tensorboard", "\ud800"), r"--tensorboard: must be text that can name a file"),
    "home of nobody": ((*ONE, "--data-root", "~nobody-here/x"), r"home of a user that is here"),
    "long path of curves": ((*ONE, "--tensorboard", "x" * 300), r"x must take the events .*its name is too long"),
    "seeds --": (("--methods", "joint", "--seeds=--"), r"argument --seeds: expected a value, found '--'"),
    "set --": (("--methods", "joint", "--set=--"), r"argument --set: expected a value, found '--'"),
    "jobs --": (("--methods", "joint", "--jobs=--"), r"argument --jobs: expected a value, found '--'"),
    "seeds of 5000 digits": (
        ("--seeds", "1" * 5000),
        r"--seeds takes numbers up to 9223372036854775807, found '1+",
    ),
    "seed too large": (("--seeds", str(2**63)), r"--seeds takes numbers up to"),
    "too many seeds": (("--seeds", "0-9999,10000"), r"--seeds takes at most 10000 seeds, found more at '10000'"),
    "seeds in other digits": (("--seeds", "²"), r"--seeds takes whole numbers"),
    "batch size of 30 digits": ((*ONE, "--batch-size", "1" * 30), r"run\.batch_size must be a whole number of 64 bits"),
    "batch size": ((*ONE, "--batch-size", "1000001"), r"run\.batch_size must be <= 1000000, found 1000001"),
    "epochs of 30 digits": ((*ONE, "--epochs", "1" * 30), r"run\.epochs must be a whole number of 64 bits"),
    "epochs": ((*ONE, "--epochs", "1000001"), r"run\.epochs must be <= 1000000, found 1000001"),
    "jobs": ((*ONE, "--jobs", "99999"), r"--jobs must be at most \d+ on this machine, found 99999"),
    **{
        f"checkpoint every {value}": (
            (*ONE, f"--checkpoint-every={value}"),
            r"--checkpoint-every must be a number of seconds >= 0",
        )
        for value in ("nan", "inf", "-1")
    },
    "samples": ((*SYNTHETIC, "--set", "synthetic.n_train=1e12"), r"must fit in this machine's memory .* choose fewer"),
    "samples that the system grants": ((*SYNTHETIC, "--set", "synthetic.n_train=1e9"), r"must fit in this machine's"),
    "whole number": (
        (*SYNTHETIC, "--set", f"synthetic.dims={'1' * 40}"),
        r"dims must be a whole number of 64 bits",
    ),
    "encoder": ((*SYNTHETIC, "--set", "encoder.m0.width=1e12"), r"data and networks must fit in memory"),
    "layers": ((*SYNTHETIC, "--set", "encoder.m0.depth=1e9"), r"depth must be <= 1000"),
    "not a number": ((*ONE, "--set", "run.epochs=nanx"), r"'run' takes no part in this call"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_before_a_step(mistake, untrained, name):  # noqa: F811
    arguments, expected = WRONG[name]
    assert re.search(expected, mistake(*arguments))


@pytest.mark.parametrize("out", ["", "a\0b", "\ud800"])
def test_a_results_folder_that_cannot_be(cli, untrained, out):
    assert re.search(r"argument --out: must ", sentence(cli(*ONE, "--out", out)))
    assert not os.listdir()


@pytest.mark.parametrize(
    "row",
    [
        "5",
        "text",
        "{label: a, accuracy: 5}",
        "{label: a, accuracy: high, source: s, protocol: p}",
        "{label: a, accuracy: true, source: s, protocol: p}",
        "{label: a, accuracy: .nan, source: s, protocol: p}",
        "{label: [a], accuracy: 5, source: s, protocol: p}",
        "{label: a, accuracy: 5, source: null, protocol: p}",
    ],
)
def test_published_rows_that_no_table_can_show(mistake, untrained, tmp_path, row):  # noqa: F811
    path = tmp_path / "mine.yaml"
    path.write_text(f"published: {{digits: [{row}]}}\n")
    said = mistake("--methods", "joint", "--dataset", "digits", "--seeds", "0", "--protocol", path, "--epochs", "1")
    assert re.search(r"published .*in published\.digits of .*mine\.yaml", said)


def test_a_long_protocol_has_a_table(cli, tmp_path):
    path = tmp_path / f"{'p' * 249}.yaml"
    path.write_text("run: {epochs: 1}\n")
    arguments = (
        "--methods",
        "joint",
        "--dataset",
        "digits",
        "--seeds",
        "0",
        "--protocol",
        path,
        "--out",
        tmp_path / "o",
    )
    assert cli(*arguments).code == 0
    (folder,) = tmp_path.glob("o/tables/*")
    assert re.fullmatch(r"digits-p+-[0-9a-f]{6}", folder.name)
    assert len(folder.name) <= 255


PLACES = ("tables", "figures", "records", "records/digits/joint", "checkpoints", "stages", "failures", "claims")


@pytest.mark.parametrize("where", PLACES)
def test_a_file_in_the_place_of_a_folder(cli, untrained, tmp_path, where):
    blocked = tmp_path / "out" / where
    blocked.parent.mkdir(parents=True)
    blocked.write_text("mine\n")
    said = sentence(cli(*ONE, "--out", tmp_path / "out"))
    assert re.search(rf"out/{where}.* could not be written because a file lies where a folder should be: ", said)
    assert list(content(tmp_path / "out")) == [where]


def test_a_folder_in_the_place_of_a_file(cli, untrained, tmp_path):
    (tmp_path / "out/tables/mine/comparison.md").mkdir(parents=True)
    said = sentence(cli(*ONE, "--name", "mine", "--out", tmp_path / "out"))
    assert re.search(r"tables/mine could not .*a folder lies where a file should be, comparison\.md", said)


def test_a_folder_without_permission(cli, untrained, tmp_path, monkeypatch):
    closed = tmp_path / "out" / "figures"
    closed.mkdir(parents=True)
    allows = os.access
    monkeypatch.setattr(places.os, "access", lambda path, mode: path != closed and allows(path, mode))
    said = sentence(cli(*ONE, "--out", tmp_path / "out"))
    assert re.search(r"out/figures/\S+ could not be written because it is not writable: ", said)


def test_curves_that_cannot_be_written(cli, untrained, tmp_path):
    taken = tmp_path / "curves" / "digits"
    taken.parent.mkdir()
    taken.write_text("mine\n")
    said = sentence(cli(*ONE, "--out", tmp_path / "out", "--tensorboard", tmp_path / "curves"))
    assert re.search(r"curves must take the events .*a file lies where a folder should be", said)


TABLE = """
title: Mine
about: Two.
seeds: "0"
columns: [{{name: Made, dataset: digits, protocol: quick, epochs: 1}}]
rows: [{{name: joint, method: joint}}]
{more}
"""


@pytest.mark.parametrize(
    ("more", "blocked", "expected"),
    [
        ("published: [nowhere]", None, r"there is no published group called 'nowhere'"),
        ("", "tables", r"out/tables/mine could not be written because a file lies where a folder should be"),
        ("", "figures", r"out/figures/mine could not be written because a file lies where a folder should be"),
        ("", "records", r"out/records/digits/joint could not be written because a file lies where a folder should be"),
    ],
)
def test_tables_are_checked_before_they_are_trained(tmp_path, monkeypatch, capsys, untrained, more, blocked, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(TABLE.format(more=more).replace("about: Two.\n", ""))
    if blocked:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / blocked).write_text("mine\n")
    assert tables.main(["mine.yaml", "--run", "--out", "out"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.search(expected, err)


@pytest.mark.parametrize(
    ("more", "expected"),
    [(["--name", ""], r"--name must be a plain folder name, found ''"), ([], r"out/figures/digits-quick could not be")],
)
def test_a_figure_is_checked_before_it_is_trained(tmp_path, monkeypatch, capsys, untrained, more, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "figures").write_text("mine\n")
    words = ["--dataset", "digits", "--protocol", "quick", "--modality", "gray", "--panel", "a: joint", "--out", "out"]
    assert embedding.main([*words, *more]) == 2
    assert re.search(expected, capsys.readouterr().err.splitlines()[-1])


def test_a_table_of_many_seeds_has_a_folder_that_can_be():
    given = tables.parser().parse_args(["mine", "--seeds", ",".join(map(str, range(300)))])
    other = tables.parser().parse_args(["mine", "--seeds", ",".join(map(str, range(301)))])
    table = tables.Table(name="mine", title="", columns=(), rows=())
    names = [tables._folder(table, one) for one in (given, other)]
    assert len(set(names)) == 2
    assert all(len(name) <= 255 and name.startswith("mine-seeds-0,1,2,") for name in names)
    assert tables._folder(table, tables.parser().parse_args(["mine", "--seeds", "0-4"])) == "mine-seeds-0-4"


def test_some_run_failed_goes_before_some_are_missing():
    assert [tables.worst(found) for found in ({0}, {0, 3}, {0, 1, 3}, set())] == [0, 3, 1, 0]


def test_seeds_with_zeros_before_them():
    assert parse_seeds("0" * 5000 + "7, 1 - 3,2") == [7, 1, 2, 3]
