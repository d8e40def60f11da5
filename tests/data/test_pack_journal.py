"""Damage to a pack in the making: what is sound is kept, the rest is decoded again, and the pack is the same."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancebench_udi.data.pack import JOURNAL, verify_pack
from balancebench_udi.data.pack import builder as building
from tests.packs import JSON, QUICK
from tests.unit.test_pack import Toy, contents, interrupt, prepare, write

# journals


def spoil(journal, how):
    """Damage the journal of five rows that are done."""
    first, *lines = journal.read_bytes().split(b"\n")[:-1]
    entry = json.loads(lines[1])

    def signed(**changes):
        return building.journal.journal_line({k: v for k, v in {**entry, **changes}.items() if k != "check"}).encode()

    changed = {
        "binary": os.urandom(500),
        "not UTF-8": b"\n".join([first, b"\xff\xfe", *lines]),
        "a line cut": b"\n".join([first, lines[0], lines[1][:30], *lines[2:]]) + b"\n",
        "a line changed": b"\n".join([first, lines[0], lines[1].replace(b'"row": 1', b'"row": 3')]) + b"\n",
        "a digest of its source changed": journal.read_bytes().replace(
            entry["files"][0].encode(), entry["files"][0][::-1].encode()
        ),
        "a number of thousands of digits": b"\n".join([first, *lines, b"9" * 5000]) + b"\n",
        "deep": b"\n".join([first, *lines, b"[" * 100_000]) + b"\n",
        "other types": b"\n".join([first, b"null", b"[]", b'"a"', b"7", *lines]) + b"\n",
        "rows out of range": first + b"\n" + signed(row=99) + signed(row=-1) + signed(row="1") + signed(row=True),
        "a row twice": b"\n".join([first, *lines, *lines]) + b"\n",
        "missing fields": first + b"\n" + b"".join(signed(**{name: 0}) for name in entry if name != "check"),
        "digests of another row": first + b"\n" + signed(row=3, stamps=json.loads(lines[3])["stamps"]),
        "only its first line": first,
        "another plan": b"0" * 64 + b"\n" + b"\n".join(lines) + b"\n",
        "empty": b"",
    }[how]
    journal.write_bytes(changed)


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ("binary", 0),
        ("not UTF-8", 5),
        ("a line cut", 4),
        ("a line changed", 1),
        ("a digest of its source changed", 4),
        ("a number of thousands of digits", 5),
        ("deep", 5),
        ("other types", 5),
        ("rows out of range", 0),
        ("a row twice", 5),
        ("missing fields", 0),
        ("digests of another row", 0),
        ("only its first line", 0),
        ("another plan", 0),
        ("empty", 0),
    ],
)
def test_a_damaged_journal_costs_at_most_what_it_says(tmp_path, root, how, kept):
    source = write(tmp_path / "whole")
    spoil(interrupt(source, root) / JOURNAL, how)
    made = prepare(source, root)
    assert (made.resumed, made.decoded) == (kept, 8 - kept)
    assert contents(made.folder) == contents(prepare(source, root / "expected").folder)


@pytest.mark.parametrize("how", ["a value", "cut", "another shape", "no array", "absent"])
def test_an_array_in_the_making_that_was_damaged(tmp_path, root, how):
    """The journal says what was decoded: rows that are something else are decoded again."""
    source = write(tmp_path / "whole")
    path = interrupt(source, root) / "wide.npy"
    if how == "a value":
        array = np.load(path, mmap_mode="r+")
        array[2] = 99
        array.flush()
    elif how == "cut":
        os.truncate(path, path.stat().st_size - 4)
    elif how == "another shape":
        np.save(path, np.zeros((8, 5), np.float32))
    elif how == "no array":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.unlink()
    made = prepare(source, root)
    kept = 4 if how == "a value" else 0
    assert (made.resumed, made.decoded, made.discarded) == (kept, 8 - kept, 0 if kept else 5)
    assert contents(made.folder) == contents(prepare(source, root / "expected").folder)


@given(
    lines=st.lists(JSON.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=20), max_size=4),
    changes=st.dictionaries(st.sampled_from(["row", "files", "stamps", "values", "remarks", "problem"]), JSON),
    at=st.integers(0, 5),
)
@settings(QUICK, max_examples=15)
def test_any_journal(tmp_path, lines, changes, at):
    root, source = tmp_path / "root", tmp_path / "whole"
    shutil.rmtree(root, ignore_errors=True)
    journal = interrupt(write(source), root) / JOURNAL
    found = journal.read_bytes().split(b"\n")[:-1]
    entry = {name: v for name, v in json.loads(found[1]).items() if name != "check"}
    signed = building.journal.journal_line({**entry, **changes}).encode().strip()
    journal.write_bytes(b"\n".join([*found[:at], *lines, signed, *found[at:]]) + b"\n")
    made = prepare(source, root)
    assert made.manifest["samples"] == 8
    assert np.load(made.folder / "wide.npy")[:, 0].tolist() == [2.0 * i for i in range(8)]
    verify_pack(Toy(), root, quiet=True)
