"""Damage to a pack or to a pack in the making: it is one sentence, or the pack loads and equals the original."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balancebench_udi import runner
from balancebench_udi.data.pack import INDEX, JOURNAL, LABEL, MANIFEST, PROBLEMS, Item, Listing, digests, verify_pack
from balancebench_udi.data.pack import builder as building
from balancebench_udi.data.pack.format import VERIFIED, manifest_text
from balancebench_udi.data.pack.tables import read_table, write_table
from balancebench_udi.errors import UserError
from balancebench_udi.protocol import load_protocol
from balancebench_udi.store import Store
from baselines.joint import Joint
from benchmarks.command import PROTOCOLS
from tests.unit.test_pack import Toy, contents, interrupt, prepare, write

QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SMALL_FILES = (LABEL, INDEX, PROBLEMS, MANIFEST)
ARRAYS = ("wide.npy", "small.npy")


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source", {2: "bad", 5: "5 quiet"})


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


@pytest.fixture
def folder(source, root):
    """A whole pack."""
    return prepare(source, root).folder


def sentence(call):
    """The sentence that ``call`` ends with; None where it just ends."""
    try:
        call()
    except UserError as error:
        text = str(error)
    else:
        return None
    assert "\n" not in text
    assert 20 < len(text) < 1500
    return text


def refused(call):
    """The sentence that ``call`` ends with."""
    text = sentence(call)
    assert text is not None, "it was not refused"
    return text


def every_way(source, root):
    """Whatever reads a pack, the source being as it was."""
    return (lambda: Toy().load(root), lambda: prepare(source, root), lambda: verify_pack(Toy(), root, quiet=True))


def flip(path, at, bit=0, restore=False):
    """Change one bit; with the time of the last change as before where ``restore``."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
    if restore:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def reseal(folder, **changes):
    """Change fields of the manifest (None removes one), with the digest that belongs to it."""
    manifest = {**json.loads((folder / MANIFEST).read_text()), **changes}
    (folder / MANIFEST).write_text(manifest_text({n: v for n, v in manifest.items() if v is not None}))


def values(root):
    """All that a loaded pack gives to training."""
    bundle = Toy().load(root)
    bundle.verify()
    splits = {name: bundle.split(name) for name in ("train", "val", "test")}
    rows = {name: torch.arange(len(split)) for name, split in splits.items()}
    return (
        bundle.classes,
        bundle.fingerprint,
        dict(bundle.facts),
        {name: split.target.tolist() for name, split in splits.items()},
        {(n, m): s.stored(m, rows[n]).tolist() for n, s in splits.items() for m in bundle.modalities},
    )


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were read in full, in order."""
    seen, real = [], digests.compute_digests

    def spy(folder, manifest, names, quiet):
        names = list(names)
        seen.extend(names)
        return real(folder, manifest, names, quiet)

    monkeypatch.setattr(digests, "compute_digests", spy)
    return seen


# whole packs


def test_changed_labels_are_noticed_wherever_the_pack_is_read(source, root, folder):
    label = np.load(folder / LABEL)
    label[:3] = 1 - label[:3]
    np.save(folder / LABEL, label)
    for call in every_way(source, root):
        assert f"found another one of {LABEL}; remove {folder} and prepare again" in refused(call)


@pytest.mark.parametrize("name", SMALL_FILES)
def test_any_bit_of_a_small_file_is_noticed_at_open(source, root, folder, name):
    original, path = values(root), folder / name
    content = path.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 40)):
        flip(path, at, bit=at % 7, restore=True)
        refused(lambda: Toy().load(root))
        path.write_bytes(content)
    assert values(root) == original


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("at", [-1, -9, -20])
def test_any_bit_of_an_array_is_noticed_before_training(root, folder, name, at):
    flip(folder / name, at)
    bundle = Toy().load(root)
    assert f"found another one of {name};" in refused(bundle.verify)
    assert f"found another one of {name};" in refused(bundle.verify)  # it is not remembered as good


@pytest.mark.parametrize("name", ARRAYS)
def test_with_its_time_restored_it_is_noticed_by_a_full_check(root, folder, name):
    flip(folder / name, -1, restore=True)
    other = folder / (set(ARRAYS) - {name}).pop()
    flip(other, -1)
    said = refused(lambda: verify_pack(Toy(), root, quiet=True))
    assert name in said
    assert other.name in said
    flip(other, -1)
    flip(folder / name, -1)
    assert verify_pack(Toy(), root, quiet=True).folder == folder


@pytest.mark.parametrize("change", ["dtype", "order", "count", "shape", "no array"])
def test_headers_are_compared_with_the_manifest(source, root, folder, change):
    path = folder / "wide.npy"
    array, size = np.load(path), path.stat().st_size
    changed = {
        "dtype": array.view(np.int32),
        "order": np.asfortranarray(array),
        "count": array.reshape(-1, 2, 4)[:, 0] if len(array) % 2 == 0 else array[1:],
        "shape": array.reshape(-1, 2, 2),
        "no array": None,
    }[change]
    path.write_bytes(bytes(size)) if changed is None else np.save(path, changed)
    reseal(folder, bytes={p.name: p.stat().st_size for p in folder.iterdir() if p.name not in (MANIFEST, VERIFIED)})
    for call in every_way(source, root):
        assert "wide.npy" in refused(call)


def test_arrays_are_read_once_after_they_were_copied(root, folder, reads):
    Toy().load(root).verify()
    assert not set(reads) & set(ARRAYS)  # they were hashed when they were made
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)
    Toy().load(root).verify()
    assert [name for name in reads if name in ARRAYS] == list(ARRAYS)
    Toy().load(root).verify()
    assert len([name for name in reads if name in ARRAYS]) == 2
    os.utime(folder / "wide.npy")
    Toy().load(root).verify()
    assert len([name for name in reads if name in ARRAYS]) == 4


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", None])
def test_a_note_that_is_damaged_counts_for_nothing(root, folder, reads, content):
    (folder / VERIFIED).unlink()
    if content is None:
        (folder / VERIFIED).mkdir()
    else:
        (folder / VERIFIED).write_bytes(content)
    flip(folder / "wide.npy", -1, restore=True)
    assert "wide.npy" in refused(Toy().load(root).verify)


def test_where_nothing_can_be_written_the_process_remembers(root, folder, reads, monkeypatch):
    def refuse(*args):
        raise OSError(30, "Read-only file system")

    os.utime(folder / "wide.npy")
    monkeypatch.setattr(digests, "write_verified", refuse)
    for _ in range(3):
        Toy().load(root).verify()
    assert [name for name in reads if name in ARRAYS] == list(ARRAYS)
    monkeypatch.setattr(digests, "_trusted", set())  # another process
    Toy().load(root).verify()
    assert len([name for name in reads if name in ARRAYS]) == 4


def test_building_reads_no_array_again(source, root, monkeypatch):
    def refuse(*args):
        raise AssertionError("read again")

    monkeypatch.setattr(digests, "_whole_array", refuse)
    prepare(source, root)
    Toy().load(root).verify()
    monkeypatch.undo()
    verify_pack(Toy(), root, quiet=True)  # and the digests are those of the files


def test_a_disk_that_cannot_be_read_is_a_sentence(root, folder, monkeypatch):
    def broken(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(digests.os, "pread", broken)
    assert "wide.npy, small.npy" in refused(lambda: verify_pack(Toy(), root, quiet=True))


def test_nothing_is_trained_on_damaged_data(source, root, tmp_path, monkeypatch):
    folder = prepare(source, root).folder
    flip(folder / "wide.npy", -1)
    dataset, store, trained = Toy(), Store(tmp_path / "results"), []
    protocol = load_protocol("default", PROTOCOLS, {})
    planned = runner.plan({"joint": Joint}, dataset, dataset.load(root), protocol, [0, 1], {}, {})
    monkeypatch.setattr(runner, "_run", lambda job, *rest: trained.append(job))
    assert "wide.npy" in refused(lambda: runner.run_all(planned, store, torch.device("cpu")))
    assert trained == []
    assert not store.root.exists()
    runner.run_all(planned, store, torch.device("cpu"), verified=True)  # a worker, whose parent has checked
    assert trained == planned
    trained.clear()
    flip(folder / "wide.npy", -1)
    runner.run_all(planned, store, torch.device("cpu"))
    assert trained == planned


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


# packs of before


def age(folder):
    """Make a pack as it was before packs had digests."""
    (folder / VERIFIED).unlink()
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest = {name: v for name, v in manifest.items() if name not in ("digests", "digest")}
    times = (folder / MANIFEST).stat()
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 2}, indent=1) + "\n")
    os.utime(folder / MANIFEST, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_pack_of_before_gets_digests(source, root, folder, reads):
    expected, found = contents(folder), values(root)
    age(folder)
    for call in (lambda: Toy().load(root), lambda: verify_pack(Toy(), root)):
        assert "must have format 3, found 2; prepare again, which adds the digests of its files" in refused(call)
    made = prepare(source, root)
    assert (made.decoded, made.resumed, made.newer, made.upgraded) == (0, 0, 0, True)
    assert {name: json.loads(c) if name == MANIFEST else c for name, c in contents(folder).items()} == {
        name: json.loads(c) if name == MANIFEST else c for name, c in expected.items()
    }
    reads.clear()
    assert values(root) == found
    assert not set(reads) & set(ARRAYS)
    assert not prepare(source, root).upgraded
    assert prepare(source, root).newer == 0


@pytest.mark.parametrize("how", ["a label", "its class, too", "a size", "a header"])
def test_a_pack_of_before_that_is_damaged_gets_none(source, root, folder, how):
    label = np.load(folder / LABEL)
    label[0] = 1 - label[0]
    np.save(folder / LABEL, label)
    if how == "its class, too":
        frame = read_table(folder / INDEX)
        frame.loc[0, "class"] = "dog"
        write_table(frame, folder / INDEX)
    elif how == "a size":
        os.truncate(folder / "wide.npy", 20)
    elif how == "a header":
        flip(folder / "wide.npy", 30)
    age(folder)
    before = contents(folder)
    assert "prepare again" in refused(lambda: prepare(source, root))
    assert contents(folder) == before


def test_a_full_disk_while_digests_are_added(source, root, folder, monkeypatch):
    age(folder)
    before = contents(folder)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "must have more room" in refused(lambda: prepare(source, root))
    assert contents(folder) == before
    assert prepare(source, root).upgraded


# any damage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


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
