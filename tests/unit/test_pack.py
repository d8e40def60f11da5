"""Packs: what is kept, what survives a kill, what is refused, and what the fingerprint depends on."""

import csv
import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import Affine, Modality
from balancebench_udi.data.loader import Loader
from balancebench_udi.data.pack import (
    INDEX,
    JOURNAL,
    LABEL,
    MANIFEST,
    PROBLEMS,
    Item,
    Listing,
    Packed,
    Problem,
    Stored,
    builder,
    preparation,
)
from balancebench_udi.data.pack import prepare as prepare_pack
from balancebench_udi.data.pack.format import VERIFIED
from balancebench_udi.errors import UserError
from tests.conftest import ROOT

CLASSES = ("cat", "dog")
SHARES = ["train"] * 6 + ["test"] * 2


@dataclass(frozen=True)
class ToyOptions(Options):
    gain: int = option(2, "factor", source="ours", at_least=1)
    split: str = option("official", "column", source="ours")
    val_share: float = option(0.25, "share", source="ours", above=0)
    val_seed: int = option(0, "seed", source="ours", at_least=0)


class Toy(Packed):
    """``list.csv`` of ``id,class,part`` lines; ``<id>.txt`` holds a number, ``bad``, or a number and ``quiet``."""

    name = "toy"
    version = 1
    reference = "none"
    needs = "what prepare.py made of toy"
    source = "list.csv and a text file a sample"
    prepared = ("gain",)
    Options = ToyOptions
    size = 4
    wait = 0.0
    spoil = staticmethod(lambda values: values)

    def stored(self):
        return {"wide": Stored((self.size,), "float32"), "small": Stored((2, 2), "uint8")}

    def listing(self, source):
        items, problems = [], []
        for line in (source / "list.csv").read_text().splitlines():
            name, label, part = line.split(",")
            path = source / f"{name}.txt"
            if path.is_file():
                items.append(Item(name, label, (path,), {"official": part}, {"length": len(name)}))
            else:
                problems.append(Problem(name, "its file is missing"))
        return Listing(items, CLASSES, problems)

    def decode(self, item):
        with Path(f"{item.files[0]}.calls").open("a") as calls:
            calls.write("x")
        time.sleep(self.wait)
        number, *remarks = item.files[0].read_text().split()
        if number == "bad":
            raise UserError(f"{item.files[0]} must hold a number, found bad; write one")
        value = int(number) * self.options.gain
        wide, small = np.full(self.size, value, np.float32), np.full((2, 2), value % 256, np.uint8)
        return self.spoil({"wide": wide, "small": small}), remarks

    def modalities(self, pack):
        return {"wide": Modality("vector", (self.size,), "mlp"), "small": Modality("digit", (2, 2), "mlp", Affine())}


def write(folder, texts=None, shares=SHARES, order=None):
    """A source of samples a, b, ...: sample i holds the number i unless ``texts`` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"s{i:03d}" for i in range(len(shares))]
    for i, name in enumerate(names):
        (folder / f"{name}.txt").write_text((texts or {}).get(i, str(i)))
    lines = [f"{name},{CLASSES[i % 2]},{share}" for i, (name, share) in enumerate(zip(names, shares, strict=True))]
    (folder / "list.csv").write_text("".join(f"{lines[i]}\n" for i in order or range(len(lines))))
    return folder


def prepare(source, root, dataset=None, workers=2, **kw):
    return prepare_pack(dataset or Toy(), source, root, workers, quiet=True, **kw)


def contents(folder):
    """Every byte of a pack, but for the times and inodes of its arrays."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != VERIFIED}


def calls(source):
    """How often each sample was decoded."""
    return {path.name[:4]: len(path.read_text()) for path in sorted(source.glob("*.calls"))}


def only_the_pack(made):
    assert [path.name for path in made.folder.parent.iterdir()] == [made.folder.name]


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


# what is kept


def test_round_trip(source, root):
    made = prepare(source, root)
    assert made.folder == Toy().folder(root)
    assert (made.decoded, made.resumed, len(made.problems)) == (8, 0, 0)
    assert set(contents(made.folder)) == {"wide.npy", "small.npy", LABEL, INDEX, PROBLEMS, MANIFEST}
    assert np.array_equal(np.load(made.folder / "wide.npy"), np.repeat(2.0 * np.arange(8, dtype="f4")[:, None], 4, 1))
    assert np.load(made.folder / "small.npy").dtype == np.uint8
    assert np.load(made.folder / LABEL).tolist() == [0, 1] * 4
    index = pd.read_csv(made.folder / INDEX)
    assert list(index.columns) == ["id", "class", "official"]
    assert index["class"].tolist() == ["cat", "dog"] * 4
    assert made.manifest["splits"] == {"official": {"train": 6, "test": 2}}
    assert made.manifest["samples"] == 8
    assert made.manifest["options"] == {"gain": 2}
    only_the_pack(made)
    bundle = Toy().load(root)
    assert bundle.classes == CLASSES
    assert [len(bundle.split(s)) for s in ("train", "val", "test")] == [4, 2, 2]
    for name in ("train", "val", "test"):
        split = bundle.split(name)
        rows = torch.arange(len(split))
        number = split.stored("wide", rows)[:, 0] / 2
        assert (number >= 6).all() if name == "test" else (number < 6).all()
        assert torch.equal(number.long() % 2, split.target)
        assert torch.equal(split.stored("small", rows)[:, 0, 0].long(), 2 * number.long())
    assert bundle.facts["pack"] == made.manifest["fingerprint"]
    assert bundle.facts["samples"] == {"train": 4, "val": 2, "test": 2}


def test_a_second_call_does_nothing(source, root):
    first = prepare(source, root)
    again = prepare(source, root)
    assert (again.decoded, again.resumed) == (0, 0)
    assert again.manifest == first.manifest
    assert set(calls(source).values()) == {1}


def test_rows_are_in_the_order_of_ids(tmp_path, root):
    straight = prepare(write(tmp_path / "a"), root / "a")
    other = prepare(write(tmp_path / "b", order=[5, 0, 7, 3, 1, 6, 2, 4]), root / "b", workers=3)
    assert contents(straight.folder) == contents(other.folder)


def test_a_column_of_validation_is_used(tmp_path, root):
    prepare(write(tmp_path / "a", shares=["train", "train", "val", "test", "train", ""]), root)
    bundle = Toy().load(root)
    found = {
        s: (bundle.split(s).stored("wide", torch.arange(len(bundle.split(s))))[:, 0] / 2).tolist()
        for s in ["train", "val", "test"]
    }
    assert found == {"train": [0, 1, 4], "val": [2], "test": [3]}


def test_validation_is_drawn_from_train_wherever_its_rows_are(tmp_path, root):
    prepare(write(tmp_path / "a", shares=["test"] * 3 + ["train"] * 4 + ["", "train", "train"]), root)
    bundle = Toy().load(root)
    assert sorted([*bundle.train.rows.tolist(), *bundle.val.rows.tolist()]) == [3, 4, 5, 6, 8, 9]
    assert len(bundle.val) == 2
    assert bundle.test.rows.tolist() == [0, 1, 2]
    assert torch.equal(bundle.val.target, bundle.val.rows % 2)


def test_splits_share_one_map(source, root):
    prepare(source, root)
    bundle = Toy().load(root)
    for m in bundle.modalities:
        assert bundle.train.inputs[m].data_ptr() == bundle.val.inputs[m].data_ptr() == bundle.test.inputs[m].data_ptr()
    assert not torch.isin(bundle.val.rows, bundle.train.rows).any()
    assert torch.cat([bundle.train.rows, bundle.val.rows]).sort().values.tolist() == list(range(6))


def own_memory():
    """kB that this process allocated itself."""
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x).split()[1])


def read_all(root, size):
    """Write over every batch of ``wide`` and ``small``: kB it allocated meanwhile at most."""
    dataset = Toy()
    dataset.size = size
    start, most, seen = own_memory(), 0, 0.0
    bundle = dataset.load(root)
    for batch in Loader(bundle, torch.device("cpu"), 2, 0).train(0, ["wide", "small"]):
        seen += float(batch.inputs["wide"][:, -1].sum())
        batch.inputs["small"].zero_()
        most = max(most, own_memory())
    assert seen == 2 * float(bundle.train.rows.sum())
    assert bundle.train.stored("small", torch.tensor([5]))[0, 0, 0] == 2 * int(bundle.train.rows[5])
    return most - start


def test_reading_copies_what_is_read_only(tmp_path, root):
    """Neither the map nor the file changes when a batch does, and 200 MB are read without 200 MB of memory."""
    dataset = Toy()
    dataset.size = 1_000_000
    made = prepare(write(tmp_path / "a", shares=["train"] * 48 + ["test"] * 2), root, dataset)
    before = (made.folder / "small.npy").read_bytes()
    assert made.manifest["bytes"]["wide.npy"] > 200e6
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # one that has freed nothing yet
        assert pool.submit(read_all, root, dataset.size).result() < 60_000
    assert (made.folder / "small.npy").read_bytes() == before


# fingerprint


def test_the_same_source_elsewhere_has_the_same_fingerprint(tmp_path, root):
    first = prepare(write(tmp_path / "a"), root / "a", workers=1)
    second = prepare(write(tmp_path / "far" / "b", order=range(7, -1, -1)), root / "b", workers=4)
    assert first.manifest["fingerprint"] == second.manifest["fingerprint"]
    assert Toy().load(root / "a").fingerprint == Toy().load(root / "b").fingerprint


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("s003.txt", "3", "3 "),  # bytes that decode to the same
        ("list.csv", "s003,dog", "s003,cat"),
        ("list.csv", "s003,dog,train", "s003,dog,test"),
        ("list.csv", "s003,dog,train\n", ""),
        ("s003.txt", "3", "bad"),
        ("s003.txt", "3", None),
    ],
)
def test_what_changes_the_fingerprint(tmp_path, root, name, old, new):
    first = prepare(write(tmp_path / "a"), root / "a")
    other = write(tmp_path / "b")
    if new is None:
        (other / name).unlink()
    else:
        (other / name).write_text((other / name).read_text().replace(old, new))
    assert prepare(other, root / "b").manifest["fingerprint"] != first.manifest["fingerprint"]


def test_options_and_the_reader_s_version_change_the_fingerprint(source, root, monkeypatch):
    first = prepare(source, root)
    gained = prepare(source, root, Toy(ToyOptions(gain=3)))
    monkeypatch.setattr(Toy, "version", 2)
    newer = prepare(source, root)
    assert len({x.manifest["fingerprint"] for x in (first, gained, newer)}) == 3
    assert len({x.folder for x in (first, gained, newer)}) == 3


def test_free_options_change_the_bundle_only(source, root):
    prepare(source, root)
    default, other = Toy().load(root), Toy(ToyOptions(val_seed=1)).load(root)
    assert default.facts["pack"] == other.facts["pack"]
    assert default.fingerprint != other.fingerprint


def test_versions_of_libraries_are_noted_but_not_in_the_fingerprint(source, root, monkeypatch):
    first = prepare(source, root / "a")
    monkeypatch.setattr(builder.importlib.metadata, "version", lambda name: "99")
    second = prepare(source, root / "b")
    assert second.manifest["libraries"]["numpy"] == "99" != first.manifest["libraries"]["numpy"]
    assert first.manifest["fingerprint"] == second.manifest["fingerprint"]


# samples that are not as they should be


def test_problems_are_left_out_and_listed_remarks_are_kept_and_listed(tmp_path, root):
    source = write(tmp_path / "a", {2: "bad", 5: "5 quiet", 7: "7 quiet dark"})
    (source / "s003.txt").unlink()
    made = prepare(source, root)
    assert made.problems.values.tolist() == [
        ["s002", f"{source / 's002.txt'} must hold a number, found bad; write one", False],
        ["s003", "its file is missing", False],
        ["s005", "quiet", True],
        ["s007", "dark", True],
        ["s007", "quiet", True],
    ]
    assert pd.read_csv(made.folder / PROBLEMS).values.tolist() == made.problems.values.tolist()
    assert (made.manifest["samples"], made.manifest["left_out"], made.manifest["remarked"]) == (6, 2, 3)
    assert np.load(made.folder / "wide.npy")[:, 0].tolist() == [0, 2, 8, 10, 12, 14]
    assert np.load(made.folder / LABEL).tolist() == [0, 1, 0, 1, 0, 1]
    assert pd.read_csv(made.folder / INDEX)["id"].tolist() == ["s000", "s001", "s004", "s005", "s006", "s007"]
    only_the_pack(made)
    bundle = Toy().load(root)
    assert bundle.test.stored("wide", torch.arange(2))[:, 0].tolist() == [12, 14]
    assert bundle.facts["left_out"] == 2
    again = prepare(source, root)
    assert again.problems.values.tolist() == made.problems.values.tolist()
    assert again.problems["kept"].dtype == bool


def test_strict_refuses_and_goes_on_when_the_files_are_replaced(tmp_path, root):
    source = write(tmp_path / "a", {2: "bad", 4: "4 odd", 5: "5 silent"})
    with pytest.raises(UserError, match=r"found 2 that are not, the first s002: ") as caught:
        prepare(source, root, strict=True)
    assert "\n" not in str(caught.value)
    assert not Toy().folder(root).exists()
    for number in (2, 5):
        (source / f"s{number:03d}.txt").write_text(str(number))
    made = prepare(source, root, strict=True)
    assert (made.decoded, made.resumed) == (3, 5)
    assert made.problems.values.tolist() == [["s004", "odd", True]]
    other = write(tmp_path / "b", {4: "4 odd"})
    assert contents(made.folder) == contents(prepare(other, root / "b").folder)


def test_a_source_by_another_path_goes_on_and_elsewhere_begins_anew(tmp_path, root, monkeypatch):
    source = write(tmp_path / "a", {2: "bad"})
    with pytest.raises(UserError, match="s002"):
        prepare(source, root, strict=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="s002"):
        prepare(Path("a"), root, strict=True)
    assert calls(source) == {f"s{i:03d}": 2 if i == 2 else 1 for i in range(8)}
    made = prepare(write(tmp_path / "b"), root, strict=True)
    assert (made.decoded, made.resumed, made.discarded) == (8, 0, 8)


def test_names_of_any_bytes_in_problems(tmp_path, root):
    source, dataset = write(tmp_path / os.fsdecode(b"caf\xe9"), {2: "bad"}), Toy()
    listing = dataset.listing(source)
    dataset.listing = lambda source: dataclasses.replace(listing, problems=[Problem(os.fsdecode(b"\xe9"), "is odd")])
    assert prepare(source, root, dataset).problems[["id", "problem"]].values.tolist() == [
        ["\\udce9", "is odd"],
        ["s002", f"{tmp_path}/caf\\udce9/s002.txt must hold a number, found bad; write one"],
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v | {"wide": v["wide"][:3]}, r"wide of s000 must be float32 \(4,\), found float32 \(3,\)"),
        (lambda v: v | {"wide": v["wide"].astype("f8")}, r"wide of s000 must be float32 \(4,\), found float64"),
        (lambda v: v | {"small": v["small"] * 1.0}, r"small of s000 must be uint8 .* found float64"),
        (lambda v: v | {"wide": v["wide"] / np.float32(0)}, "wide of s000 must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_what_a_reader_returns_is_checked(source, root, spoil, message):
    dataset = Toy()
    dataset.spoil = spoil
    with pytest.raises(UserError, match=rf"found none of 8, the first: {message}"):
        prepare(source, root, dataset)


def test_a_sample_that_cannot_be_opened_is_left_out(source, root):
    dataset = Toy()
    dataset.listing = lambda folder, of=dataset.listing: (of(folder), (folder / "s001.txt").unlink())[0]
    made = prepare(source, root, dataset)
    assert made.problems["problem"].tolist() == [
        f"{source / 's001.txt'} must be readable, found: No such file or directory"
    ]


def test_whatever_a_decoder_raises_is_that_sample_s_problem(tmp_path, root):
    made = prepare(write(tmp_path / "source", {3: "word"}), root)
    assert made.manifest["samples"] == 7
    (problem,) = made.problems.itertuples()
    assert (problem.id, problem.kept) == ("s003", False)
    assert problem.problem.startswith("s003 must be decodable, found ValueError: ")


def test_lists_are_checked(source, root):
    (source / "list.csv").write_text("s000,cat,train\ns000,cat,test\n")
    with pytest.raises(UserError, match="listed once, found s000 2 times"):
        prepare(source, root)
    (source / "list.csv").write_text("s000,cow,train\n")
    with pytest.raises(UserError, match="the class of s000 must be one of cat, dog, found 'cow'"):
        prepare(source, root)
    (source / "list.csv").write_text("s900,cat,train\n")
    with pytest.raises(
        UserError, match=r"must hold list\.csv and a text file .*, found none of 1 samples, the first: s900: its"
    ):
        prepare(source, root)
    (source / "list.csv").write_text("")
    with pytest.raises(
        UserError, match=r"must hold list\.csv and a text file a sample, found no sample; see prepare\.py"
    ):
        prepare(source, root)
    assert not root.exists()


@pytest.mark.parametrize("error", [NotADirectoryError(20, "Not a directory", "x/list.csv"), csv.Error("limit")])
def test_lists_that_cannot_be_read_are_a_sentence(source, root, monkeypatch, error):
    def listing(self, source):
        raise error

    monkeypatch.setattr(Toy, "listing", listing)
    with pytest.raises(UserError, match=r"must be the folder of toy as it is distributed, .*(x/list\.csv|limit)"):
        prepare(source, root)


def test_a_split_without_samples(tmp_path, root):
    prepare(write(tmp_path / "a", {6: "bad", 7: "bad"}), root)
    with pytest.raises(UserError, match=r"the test split must hold at least one sample.*problems\.csv"):
        Toy().load(root)


# interruptions

SLOW = """
import sys
from pathlib import Path
from balancebench_udi.data.pack import builder
from tests.unit.test_pack import Toy, prepare
builder._FLUSH_EVERY = 0.2
Toy.wait = 0.05
prepare(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def start(source, root):
    """A process that prepares slowly."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SLOW, str(source), str(root)], cwd=ROOT, env=environment)


def journalled(root):
    """Rows that the journal of a pack in the making holds."""
    journals = list((root / "packed" / "toy").glob(f"*.partial/{JOURNAL}"))
    lines = journals[0].read_text().split("\n")[1:-1] if journals else []
    return len({json.loads(line)["row"] for line in lines})


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_called_again(tmp_path, root, kill):
    source = write(tmp_path / "a", {3: "bad", 4: "4 quiet"}, ["train"] * 60 + ["test"] * 20)
    process = start(source, root)
    try:
        until(lambda: journalled(root) >= 10)
        with pytest.raises(UserError, match=r"must be built by one process, another is at it; wait for it"):
            prepare(source, root)
    finally:
        process.send_signal(kill)
        assert process.wait(60) != 0
    assert not Toy().folder(root).exists()
    done, before = journalled(root), calls(source)
    assert 10 <= done < 80
    if kill == signal.SIGINT:  # what was being decoded is kept
        assert done == len(before)
    made = prepare(source, root)
    assert (made.resumed, made.decoded) == (done - 2, 80 - done + 2)
    twice = {name for name, count in calls(source).items() if count == 2}
    assert {"s003", "s004"} <= twice  # the files may have been replaced
    assert len(twice) == len(before) - done + 2
    plain = prepare(write(tmp_path / "b", {3: "bad", 4: "4 quiet"}, ["train"] * 60 + ["test"] * 20), root / "b")
    ours, other = contents(made.folder), contents(plain.folder)
    assert ours.pop(PROBLEMS).replace(bytes(source), b"") == other.pop(PROBLEMS).replace(bytes(tmp_path / "b"), b"")
    assert ours.pop(MANIFEST).count(plain.manifest["fingerprint"].encode()) == 1
    other.pop(MANIFEST)
    assert ours == other
    only_the_pack(made)


def test_rows_are_on_disk_before_the_journal_says_so(source, root, monkeypatch):
    """Else a power cut leaves rows of zeros that count as done."""
    steps = []
    flush, sync = np.memmap.flush, os.fsync
    monkeypatch.setattr(np.memmap, "flush", lambda array: (steps.append("rows"), flush(array))[1])
    monkeypatch.setattr(builder.os, "fsync", lambda number: (steps.append("journal"), sync(number))[1])
    with pytest.raises(Stop):
        prepare(source, root, stop_after(5))
    assert steps == ["rows", "rows", "journal"]


class Stop(BaseException):
    """What no handler stops."""


def stop_after(count):
    """A decode that ends the process, as it were, after so many samples."""
    dataset, seen = Toy(), []

    def decode(item):
        if len(seen) == count:
            raise Stop
        seen.append(item.id)
        return Toy.decode(dataset, item)

    dataset.decode = decode
    return dataset


def interrupt(source, root, count=5):
    with pytest.raises(Stop):
        prepare(source, root, stop_after(count), workers=1)
    return next((root / "packed" / "toy").glob("*.partial"))


def test_a_half_written_line_of_the_journal(source, root):
    journal = interrupt(source, root) / JOURNAL
    assert journalled(root) == 5
    content = journal.read_bytes()
    journal.write_bytes(content[:-20])
    made = prepare(source, root)
    assert (made.resumed, made.decoded) == (4, 4)
    assert contents(made.folder) == contents(prepare(write(source), root / "b").folder)


def test_a_half_written_line_is_gone_when_it_goes_on(source, root):
    """The next line is not glued to it."""
    journal = interrupt(source, root) / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    interrupt(source, root, 2)
    assert prepare(source, root).resumed == 6


def replace(path, text, how):
    """Put other bytes in the place of a file, as many and as old as before where ``how`` says so."""
    before = path.stat()
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    os.replace(fresh, path)
    if how == "restored":  # as unpacking an archive does
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size == before.st_size) == (how != "longer")


@pytest.mark.parametrize(("how", "text"), [("longer", "70"), ("touched", "7"), ("restored", "7")])
def test_a_file_replaced_before_it_goes_on_is_read_again(source, root, how, text):
    interrupt(source, root)
    replace(source / "s001.txt", text, how)
    made = prepare(source, root)
    assert (made.resumed, made.decoded) == (4, 4)
    assert np.load(made.folder / "wide.npy")[1, 0] == 2 * int(text)
    again = write(root.parent / "again", {1: text})
    assert made.manifest["fingerprint"] == prepare(again, root / "b").manifest["fingerprint"]


@pytest.mark.parametrize(
    "change", ["a class", "a list", "a new sample", "a missing one", "a size", "another folder", "the reader's version"]
)
def test_a_whole_pack_of_another_source_is_not_taken_for_this_one(source, root, change, monkeypatch):
    made = prepare(source, root)
    before, lines = contents(made.folder), (source / "list.csv").read_text()
    if change == "a class":
        (source / "list.csv").write_text(lines.replace("s007,dog", "s007,cat"))
    elif change == "a list":
        (source / "list.csv").write_text(lines.replace("s005,dog,train", "s005,dog,val"))
    elif change == "a new sample":
        write(source, shares=[*SHARES, "test"])
    elif change == "a missing one":
        (source / "list.csv").write_text(lines + "s008,cat,train\n")
    elif change == "a size":
        (source / "s003.txt").write_text("33")
    elif change == "another folder":
        source = write(root.parent / "other", {0: "100"})
    else:
        monkeypatch.setattr(Toy, "version", 2)
        monkeypatch.setattr(Toy, "key", lambda self: made.folder.name)
    with pytest.raises(
        UserError,
        match=rf"{made.folder} must be the pack of .* as it is now, .*; remove that folder to prepare again, or",
    ):
        prepare(source, root)
    assert contents(made.folder) == before
    shutil.rmtree(made.folder)
    assert prepare(source, root).manifest["source"] != made.manifest["source"] or change == "the reader's version"


def test_the_same_source_elsewhere_is_already_prepared(source, root, tmp_path):
    made = prepare(source, root)
    again = prepare(write(tmp_path / "elsewhere", order=range(7, -1, -1)), root)
    assert (again.decoded, again.resumed, again.manifest) == (0, 0, made.manifest)


@pytest.mark.parametrize("how", ["touched", "restored"])
def test_files_replaced_after_the_pack_was_made_are_counted(source, root, how):
    """Of the same size, so that it may be the same file: it is said, not refused."""
    assert prepare(source, root).newer == 0
    assert prepare(source, root).newer == 0
    time.sleep(0.02)  # more than the clock of a file system
    replace(source / "s001.txt", "7", how)
    assert prepare(source, root).newer == 1


@pytest.mark.parametrize("change", ["list", "version of what is stored", "other source"])
def test_a_journal_of_something_else_is_not_used(source, root, tmp_path, change, monkeypatch):
    interrupt(source, root)
    if change == "list":
        (source / "list.csv").write_text((source / "list.csv").read_text().replace("s007,dog", "s007,cat"))
    elif change == "other source":
        source = write(tmp_path / "other", {0: "70"})
    else:
        monkeypatch.setattr(Toy, "size", 6)
    made = prepare(source, root)
    assert (made.resumed, made.decoded) == (0, 8)
    assert np.load(made.folder / "wide.npy")[0].tolist() == [140.0 if change == "other source" else 0.0] * Toy.size


def test_a_list_of_splits_may_change_before_it_goes_on(source, root):
    """No value depends on it: what is decoded is kept, and the pack is that of the new list."""
    interrupt(source, root)
    (source / "list.csv").write_text((source / "list.csv").read_text().replace("s005,dog,train", "s005,dog,val"))
    made = prepare(source, root)
    assert (made.resumed, made.decoded) == (5, 3)
    assert contents(made.folder) == contents(prepare(source, root / "b").folder)
    assert made.manifest["splits"] == {"official": {"train": 5, "val": 1, "test": 2}}


def test_a_journal_does_not_speak_for_arrays_of_another_source(source, root, tmp_path, monkeypatch):
    """Interrupted, called for something else, killed while that gets its arrays, and called again."""
    interrupt(source, root)
    with monkeypatch.context() as patch:
        patch.setattr(builder.os, "posix_fallocate", lambda *args: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            prepare(write(tmp_path / "other"), root)
    assert prepare(source, root).resumed == 0
    assert np.load(Toy().folder(root) / "wide.npy")[:, 0].tolist() == [2 * i for i in range(8)]


STEPS = {
    "link": (builder.os, "link"),
    "labels": (builder.np, "save"),
    "tables": (pd.DataFrame, "to_csv"),
    "manifest": (builder.json, "dumps"),
    "sync": (builder.os, "fsync"),
    "note of what was verified": (builder.os, "replace"),
    "rename": (builder.os, "rename"),
    "clean up": (builder.shutil, "rmtree"),
}


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_pack_is_whole_or_absent(tmp_path, root, monkeypatch, step, left_out):
    """Whatever step is the last of a process, a pack is there whole or not at all, and the next call makes it."""
    source = write(tmp_path / "a", {1: "bad"} if left_out else {})
    expected = contents(prepare(source, root / "expected").folder)
    owner, name = STEPS[step]
    real, at, reached = getattr(owner, name), 0, 1
    while reached:  # stop at the first call of it, then at the second, ...
        at, reached, place = at + 1, 0, root / f"{at}"
        count = iter(range(1, 10_000))

        def stopping(*args, count=count, at=at, **kw):
            if next(count) == at:
                raise Stop
            return real(*args, **kw)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping)
            try:
                prepare(source, place, workers=1)
            except Stop:
                reached = 1
        folder = Toy().folder(place)
        if folder.exists():
            assert contents(folder) == expected
        made = prepare(source, place)
        assert contents(made.folder) == expected
        only_the_pack(made)
    assert at > 1 or (step == "link" and left_out)


def test_a_file_system_without_links(source, root, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    expected = contents(prepare(source, root / "expected").folder)
    monkeypatch.setattr(builder.os, "link", refuse)
    assert contents(prepare(source, root).folder) == expected


def test_another_process_finished_in_the_meantime(source, root, monkeypatch):
    alone = preparation._alone

    def late(partial):
        monkeypatch.undo()
        prepare(source, root)
        partial.mkdir()
        return alone(partial)

    monkeypatch.setattr(preparation, "_alone", late)
    with pytest.raises(UserError, match="another has just built it; use that"):
        prepare(source, root)
    assert set(calls(source).values()) == {1}
    only_the_pack(prepare(source, root))


def test_the_lock_is_a_lock(source, root):
    partial = interrupt(source, root)
    with (partial / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another is at it"):
            prepare(source, root)

    assert prepare(source, root).resumed == 5


# no room


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert "Errno" not in text
    return text


def test_too_little_room_is_said_at_once(source, root, monkeypatch):
    usage = shutil.disk_usage(source)
    monkeypatch.setattr(builder.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match=r"must have room for 1 MB of wide, found 0 MB; free some") as caught:
        prepare(source, root)
    one_sentence(caught)
    assert not calls(source)


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk(tmp_path, root, monkeypatch, call, left_out):
    """Also where the array is copied without the samples that are left out: writing to a map would end the process."""
    source = write(tmp_path / "a", {1: "bad"} if left_out else {})
    count = iter(range(1, 100))

    def full(*args):
        if next(count) == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(builder.os, "posix_fallocate", full)
        if call == 3 and not left_out:
            prepare(source, root)  # two arrays, which are not copied
            return
        with pytest.raises(
            UserError, match="must have more room, the disk is full; free some and call again"
        ) as caught:
            prepare(source, root)
    assert str(root) in one_sentence(caught)
    assert prepare(source, root).manifest["samples"] == 8 - left_out


SMALL = """
import sys, resource
from pathlib import Path
from balancebench_udi.errors import UserError
from tests.unit.test_pack import Toy, prepare
Toy.size = 200_000
if sys.argv[3] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize(("how", "message"), [("limit", "File too large"), ("mount", "more room|must have room")])
def test_a_real_limit(source, root, how, message):
    root.mkdir()
    command = [sys.executable, "-c", SMALL, str(source), str(root), how]
    if how == "mount":
        shell = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", shell, str(root), *command]
        if (
            shutil.which("unshare") is None
            or subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode
        ):
            pytest.skip("a mount of its own needs unshare")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2, found.stderr
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == 1
    assert pd.Series(found.stdout).str.contains(message).all()


# packs that are absent or damaged


def test_a_missing_pack_names_the_command(source, root):
    with pytest.raises(UserError, match=r"toy needs --data-root DIR with what prepare\.py made of toy"):
        Toy().load(None)
    root.mkdir()
    dataset = Toy(ToyOptions(gain=5))
    with pytest.raises(UserError) as caught:
        dataset.load(root)
    command = f"call python benchmarks/prepare.py toy --source DIR --data-root {root} --set toy.gain=5"
    assert str(caught.value).endswith(command)
    assert f"found no pack in {dataset.folder(root)}: call" in str(caught.value)
    prepare(source, root)
    prepare(source, root, Toy(ToyOptions(gain=3)))
    with pytest.raises(UserError) as caught:
        dataset.load(root)
    assert "there are packs with" in str(caught.value)
    assert {"gain=2", "gain=3"} == {part for part in ("gain=2", "gain=3", "gain=4") if part in str(caught.value)}
    (Toy().folder(root) / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"there are packs with gain=3\)"):
        dataset.load(root)


@pytest.mark.parametrize("name", ["wide.npy", "small.npy", LABEL, INDEX, PROBLEMS])
def test_a_damaged_pack(source, root, name):
    path = prepare(source, root).folder / name
    size = path.stat().st_size
    with path.open("ab") as handle:
        handle.write(b"x")
    with pytest.raises(UserError, match=rf"{name} must have {size} bytes, found {size + 1}; remove .* prepare again"):
        Toy().load(root)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} must have {size} bytes, found no file; remove"):
        Toy().load(root)


@pytest.mark.parametrize("name", ["wide.npy", LABEL])
def test_a_pack_of_the_right_size_that_is_no_pack(source, root, name):
    path = prepare(source, root).folder / name
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=rf"{name}( must be an array, it is not)?; remove .* and prepare again"):
        Toy().load(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1,', "must be JSON, it is damaged"),
        (b"\xff\xfe{", "must be JSON, it is damaged"),
        (b"[]", "must have format 3, found None"),
        (b'{"format": 7}', "must have format 3, found 7"),
    ],
)
def test_a_manifest_that_is_none(source, root, content, message):
    folder = prepare(source, root).folder
    (folder / MANIFEST).write_bytes(content)
    for call in (lambda: Toy().load(root), lambda: prepare(source, root)):
        with pytest.raises(UserError, match=rf"manifest\.json {message}.*; remove {folder} and prepare again"):
            call()


@pytest.mark.parametrize("name", [MANIFEST, PROBLEMS])
def test_preparing_what_lacks_a_file(source, root, name):
    folder = prepare(source, root).folder
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} must .*(it is not|found no file); remove {folder} and prepare again"):
        prepare(source, root)


def test_a_split_whose_lists_are_not_there(source, root):
    with pytest.raises(UserError, match=rf"split=other needs samples .*, found none in {source}; add its lists$"):
        prepare(source, root, Toy(ToyOptions(split="other")))
    assert not calls(source)
    assert not root.exists()


def test_a_split_whose_lists_were_not_there(source, root):
    prepare(source, root)
    with pytest.raises(UserError, match=r"split=other needs its lists beside the source .*prepare again"):
        Toy(ToyOptions(split="other")).load(root)


def test_the_manifest_is_readable(source, root):
    text = (prepare(source, root).folder / MANIFEST).read_text()
    assert json.loads(text)["stored"] == {
        "wide": {"shape": [4], "dtype": "float32"},
        "small": {"shape": [2, 2], "dtype": "uint8"},
    }
