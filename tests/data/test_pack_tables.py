"""Manifests and tables of packs: of any content they are one sentence, or the pack equals the original."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancebench_udi.data.pack import INDEX, LABEL, MANIFEST, PROBLEMS, Item, Listing, digests
from balancebench_udi.data.pack.format import VERIFIED
from balancebench_udi.data.pack.tables import read_table, write_table
from tests.packs import ARRAYS, JSON, QUICK, SMALL_FILES, every_way, refused, reseal, sentence, values
from tests.unit.test_pack import Toy, prepare, write

# manifests

WRONG = [None, 7, -1, 2.5, True, "text", [], [1], {}, {"a": 1}, {"a": [1]}, {"a": None}, [["x"]], 1e999]
FIELDS = [
    "format",
    "dataset",
    "version",
    "options",
    "classes",
    "samples",
    "left_out",
    "remarked",
    "splits",
    "stored",
    "bytes",
    "digests",
]


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_type_is_a_sentence(source, root, folder, field):
    """None is a field that is not there. What is as good as what was written may be taken."""
    original = json.loads((folder / MANIFEST).read_text())
    found = values(root)
    for wrong in WRONG:
        reseal(folder, **{**original, field: wrong})
        for call in every_way(source, root):
            said = sentence(call)
            assert said is None or str(folder) in said
            assert said is not None or type(wrong) is type(original[field])
        loads = sentence(lambda: Toy().load(root)) is None
        assert not loads or values(root) == found
        assert not loads or wrong == original[field] or field == "splits"  # a note for the reader


@pytest.mark.parametrize("field", ["bytes", "classes", "options", "fingerprint", "samples", "source", "libraries"])
def test_a_manifest_without_a_field_is_a_sentence(source, root, folder, field):
    reseal(folder, **{field: None})
    for call in every_way(source, root):
        assert f"{field} in {folder / MANIFEST} must be" in refused(call)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{",
        b"null",
        b'{"format": 3}',
        b'{"format": 3.0}',
        b'{"format": true}',
        b'{"format": 3, "samples": NaN}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" + b'"format": 3,' * 2 + b"}",
        bytes(4096),
        None,
    ],
    ids=lambda content: "a folder" if content is None else repr(content[:24]),
)
def test_a_manifest_that_is_none_is_a_sentence(source, root, folder, content):
    (folder / MANIFEST).unlink()
    if content is None:
        (folder / MANIFEST).mkdir()
    else:
        (folder / MANIFEST).write_bytes(content)
    for call in every_way(source, root):
        assert str(folder / MANIFEST) in refused(call)


def test_any_word_of_a_manifest_is_under_its_digest(source, root, folder):
    path = folder / MANIFEST
    text = path.read_text()
    for old, new in (('"cat"', '"cow"'), ('"samples": 7', '"samples": 6'), ('"numpy": "', '"numpy": "9')):
        assert old in text
        path.write_text(text.replace(old, new))
        for call in every_way(source, root):
            assert f"{path} must be as it was written" in refused(call)


@pytest.mark.parametrize(
    "changes", [{"dataset": "other"}, {"version": 9}, {"options": {"gain": 3}}], ids=lambda changes: next(iter(changes))
)
def test_a_pack_of_something_else_in_this_place(root, folder, changes):
    reseal(folder, **changes)
    said = refused(lambda: Toy().load(root))
    assert f"{folder} must be the pack of these options of toy, found another {next(iter(changes))}; remove" in said


# tables


def table(folder, name, change):
    """Change a table or the labels, sizes and digests being made to fit."""
    if name == LABEL:
        np.save(folder / LABEL, change(np.load(folder / LABEL)))
    else:
        write_table(change(read_table(folder / name)), folder / name)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["bytes"][name] = (folder / name).stat().st_size
    manifest["digests"][name] = digests.file_digest(folder / name)
    reseal(folder, **manifest)


CHANGES = {
    "a row less": (INDEX, lambda t: t[1:]),
    "a row more": (INDEX, lambda t: pd.concat([t, t[:1]])),
    "another class": (INDEX, lambda t: t.assign(**{"class": "cat"})),
    "no classes": (INDEX, lambda t: t.drop(columns="class")),
    "a problem less": (PROBLEMS, lambda t: t[1:]),
    "another that is kept": (PROBLEMS, lambda t: t.assign(kept=True)),
    "no word of what is kept": (PROBLEMS, lambda t: t.assign(kept="perhaps")),
    "no column": (PROBLEMS, lambda t: t.drop(columns="kept")),
    "a label less": (LABEL, lambda a: a[1:]),
    "a label below 0": (LABEL, lambda a: a - 1),
    "a label above": (LABEL, lambda a: a + 1),
    "labels of another type": (LABEL, lambda a: a.astype(np.int32)),
    "labels of two dimensions": (LABEL, lambda a: a[:, None]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_tables_and_labels_that_do_not_belong_to_the_arrays(source, root, folder, change):
    name, how = CHANGES[change]
    table(folder, name, how)
    for call in every_way(source, root):
        assert name in refused(call)


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1, max_size=4))
@settings(QUICK, max_examples=80)
def test_tables_hold_any_text(tmp_path, texts):
    frame = pd.DataFrame({"id": texts, "problem": texts[::-1], "kept": [len(t) % 2 == 0 for t in texts]})
    write_table(frame, tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv").values.tolist() == frame.values.tolist()


def test_a_name_that_utf_8_cannot_hold_is_escaped(tmp_path, root):
    source, name = write(tmp_path / "whole"), os.fsdecode(b"caf\xe9")
    lines = (source / "list.csv").read_text().replace("s003", name)
    (source / "s003.txt").rename(source / f"{name}.txt")
    (source / "list.csv").write_text(lines, errors="surrogateescape")
    dataset = Toy()
    dataset.listing = lambda folder: Listing(
        [Item(n, c, (folder / f"{n}.txt",), {"official": p}) for n, c, p in (x.split(",") for x in lines.split())],
        ("cat", "dog"),
    )
    made = prepare(source, root, dataset)
    assert read_table(made.folder / INDEX)["id"].tolist()[0] == "caf\\udce9"
    assert len(Toy().load(root).test) == 2


# any damage


@pytest.fixture
def whole(folder, root):
    """A pack, what it gives, and how to make it as it was."""
    files = {path.name: (path.read_bytes(), path.stat()) for path in folder.iterdir()}

    def restore():
        for name, (content, found) in files.items():
            (folder / name).write_bytes(content)
            os.utime(folder / name, ns=(found.st_atime_ns, found.st_mtime_ns))

    return folder, values(root), restore


def law(root, expected):
    """A UserError of one sentence, or the pack equals the original."""
    found = []
    assert sentence(lambda: found.append(values(root))) is not None or found == [expected]


@given(field=st.sampled_from([*FIELDS, "fingerprint", "source", "libraries"]), value=JSON, inside=st.booleans())
@QUICK
def test_any_content_of_a_manifest(root, whole, field, value, inside):
    folder, expected, restore = whole
    manifest = json.loads((folder / MANIFEST).read_text())
    if inside and isinstance(manifest[field], dict):
        value = {**manifest[field], next(iter(manifest[field]), "a"): value}
    reseal(folder, **{field: value})
    try:
        if field not in ("fingerprint", "classes", "left_out"):  # names that nothing can be compared with
            law(root, expected)
        else:
            sentence(lambda: Toy().load(root))
    finally:
        restore()


@given(
    name=st.sampled_from([*SMALL_FILES, *ARRAYS, VERIFIED]),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3),
    how=st.sampled_from(["replace", "insert", "cut"]),
)
@QUICK
def test_any_bytes_of_a_pack(root, whole, name, edits, how):
    folder, expected, restore = whole
    content = bytearray((folder / name).read_bytes())
    for at, byte in edits:
        at %= len(content) or 1
        if how == "replace" and content:
            content[at] = byte
        elif how == "insert":
            content.insert(at, byte)
        else:
            del content[at:]
    (folder / name).write_bytes(content)
    try:
        law(root, expected)
    finally:
        restore()
