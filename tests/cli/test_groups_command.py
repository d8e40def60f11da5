"""groups.py: the groups of test samples for records that were made before runs recorded them."""

import shutil

import pytest
from calls import ROOT

from balancebench_udi.data.groups import FOLDER
from benchmarks.groups import main

FOLDERS = ("cmu_mosi_utterance",)


@pytest.fixture
def results(tmp_path):
    """A results folder with one run on MOSI."""
    (path,) = sorted((ROOT / "results" / "records" / "mosi" / "joint").glob("*.json"))[:1]
    there = tmp_path / "results" / "records" / "mosi" / "joint"
    there.mkdir(parents=True)
    shutil.copy(path, there)
    return tmp_path / "results"


@pytest.fixture
def data(data_root, tmp_path):
    if not (data_root / FOLDERS[0]).is_dir():
        pytest.skip(f"{data_root / FOLDERS[0]} is absent")
    shutil.copytree(data_root / FOLDERS[0], tmp_path / "data" / FOLDERS[0])
    return tmp_path / "data"


def test_the_committed_groups_are_what_the_data_give(results, data, tmp_path, capsys):
    assert main(["--out", str(results), "--data-root", str(data), "--to", str(tmp_path / "made")]) == 0
    (path,) = (tmp_path / "made").iterdir()
    assert path.read_bytes() == (FOLDER / path.name).read_bytes()
    assert "22 groups (video)" in capsys.readouterr().out


def test_other_data_are_refused(results, data, tmp_path, capsys):
    with (data / FOLDERS[0] / "transcripts.csv").open("a") as handle:
        handle.write("\n")
    assert main(["--out", str(results), "--data-root", str(data), "--to", str(tmp_path / "made")]) == 2
    assert "must be the data of the records, 27a64ef4fafd with their test labels, found" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_data_that_are_not_there_are_named(results, tmp_path, capsys):
    assert main(["--out", str(results), "--data-root", str(tmp_path), "--to", str(tmp_path / "made")]) == 0
    assert "mosi 27a64ef4fafd: not read: " in capsys.readouterr().out
