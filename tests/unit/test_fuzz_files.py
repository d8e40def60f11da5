"""Every parser of files and options, on valid documents that were mutated: one bounded sentence, or it works.

More examples and other seeds, by hand: ``FUZZ_EXAMPLES=5000 FUZZ_RANDOM=1 pytest tests/unit/test_fuzz_files.py``.
"""

import copy
import csv
import dataclasses
import io
import json
import os

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import registry
from balancebench_udi.config import Options
from balancebench_udi.data.kinds import KINDS
from balancebench_udi.data.manifest import read_source
from balancebench_udi.errors import LONGEST, UserError
from balancebench_udi.nets.encoders import ENCODERS
from balancebench_udi.protocol import RunOptions, check_names, load_protocol
from balancebench_udi.report.published import load_published
from balancebench_udi.spec import Optimizer, Schedule
from balancebench_udi.store import read_record
from balancebench_udi.text import escape_controls
from benchmarks import table_specs
from benchmarks.command import PROTOCOLS
from tests.helpers import written_spec

BY_HAND = "FUZZ_RANDOM" in os.environ


def bounded(examples):
    """Settings of a test: the same examples every time, unless by hand."""
    return settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", examples // 2)),
        derandomize=not BY_HAND,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def lawful(parse, *arguments):
    """What ``parse`` returns, or None where it refuses, which it must do in a sentence that can be shown."""
    try:
        return parse(*arguments)
    except UserError as error:
        said = str(error)
        assert 0 < len(said) <= LONGEST
        assert escape_controls(said) == said
        return None


SHORT = (
    "a b| |no|on|null|nan|inf|-1|1e400|1_000|٣|²|2x|nanx|infx|1:30|2020-01-01|=1+1|a=b|"
    "a/b|../x|~|*|all|alone/*|<<|joint|ogm|digits|gray|mlp|name|label|split|train|test|accuracy|a,b|0,1"
)
WORDS = st.sampled_from(["", "x" * 400, "9" * 400, "\x1b[31m", "a\nb", "\u202e", *SHORT.split("|")])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 2**64, 10**17, 10**18, 10**400, 1e308])
PLAIN = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8) | st.binary(max_size=4)
VALUES = st.recursive(PLAIN, lambda v: st.lists(v, max_size=3) | st.dictionaries(WORDS, v, max_size=3), max_leaves=6)


def places(value, at=()):
    """The path of everything inside a document."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*at, key))


@st.composite
def mutated(draw, document):
    """``document`` with up to three of its parts replaced, removed, added or renamed."""
    made = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from([*places(made)][1:] or [()]))
        if not at:
            return draw(VALUES)
        above = made
        for key in at[:-1]:
            above = above[key]
        what = draw(st.sampled_from(["replace", "remove", "add", "rename"]))
        if what == "replace":
            above[at[-1]] = draw(VALUES)
        elif what == "remove":
            del above[at[-1]]
        elif isinstance(above, list):
            above.append(draw(VALUES))
        else:
            above[draw(WORDS | st.text(max_size=5))] = above.pop(at[-1]) if what == "rename" else draw(VALUES)
    return made


class Lenient(yaml.SafeDumper):
    """Writes any value, without aliases."""

    def ignore_aliases(self, data):
        return True


@st.composite
def files(draw, document):
    """The bytes of a YAML: of a mutated document, some of them changed."""
    value = draw(mutated(document))
    try:
        data = yaml.dump(value, Dumper=Lenient, allow_unicode=True, sort_keys=False).encode()
    except (ValueError, UnicodeEncodeError):  # a number of too many digits, a surrogate
        data = json.dumps(document).encode()
    return draw(damaged(data))


SNIPPETS = [
    b"\0",
    b"\t",
    b"\xff",
    b"\xef\xbb\xbf",
    b"[",
    b"{",
    b": ",
    b"- ",
    b"&a ",
    b"*a ",
    b"<<: ",
    b"!!python/name:x ",
    b"'",
]
SNIPPETS += [
    b'"',
    b"#",
    b"\n",
    b"\r",
    b"---\n",
    b"%YAML 9.9\n",
    b"\\",
    b"9" * 50,
    b"[" * 60,
    b"\xe2\x80\xae",
    b"\x85",
    b"? ",
]


@st.composite
def damaged(draw, data):
    """Bytes of which up to three were replaced, cut, or repeated."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2, 3]))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["insert", "byte", "cut", "repeat", "encode"]))
        if what == "insert":
            data = data[:at] + draw(st.sampled_from(SNIPPETS)) + data[at:]
        elif what == "byte":
            data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
        elif what == "cut":
            data = data[:at]
        elif what == "repeat":  # keys and rows twice
            lines = data.splitlines(keepends=True) or [b""]
            line = draw(st.sampled_from(lines))
            data = data + line if draw(st.booleans()) else line + data
        else:
            data = data.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32"])))
    return data


PROTOCOL = {
    "version": 1,
    "about": "What it is.",
    "run": {"epochs": 3, "batch_size": 16, "fusion": "concat", "precision": "fp32", "test_each_epoch": True},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    "schedule": {"name": "steps", "at": 0.4, "factor": 0.1},
    "encoders": {"gray": {"name": "mlp", "width": 16}},
    "datasets": {"digits": {"val_share": 0.2}},
    "methods": {"ogm": {"alpha": 0.5, "window": [0.0, 0.5]}},
    "methods_on": {"digits": {"pmr": {"mu": 0.0}}},
    "published": {"digits": [{"label": "joint", "accuracy": 65.5, "source": "a paper", "protocol": "one run"}]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@bounded(200)
@given(data=files(PROTOCOL))
def test_protocols(folder, data):
    path = folder / "mine.yaml"
    path.write_bytes(data)

    def load():
        protocol = load_protocol(str(path), PROTOCOLS, {})
        check_names(protocol, registry.methods.names(), registry.datasets.names())
        return protocol

    protocol = lawful(load)
    if protocol is None:
        return
    json.dumps([protocol.optimizer.as_dict(), protocol.schedule.as_dict(), protocol.run.as_dict()], allow_nan=False)
    for row in (row for rows in protocol.published.values() for row in rows):
        assert all(isinstance(row[name], str) for name in ("label", "source", "protocol"))
    for dataset in [*protocol.datasets, *protocol.methods_on]:
        cls = registry.datasets.get(dataset)
        lawful(cls.Options.build, dataset, protocol.datasets.get(dataset, {}))
        for method, options in protocol.options_on(dataset).items():
            lawful(registry.methods.get(method).Options.build, method, options)
    for m, encoder in protocol.encoders.items():
        name = encoder.get("name", "mlp")
        if name in ENCODERS:
            lawful(ENCODERS[name].options.build, m, {k: v for k, v in encoder.items() if k != "name"})


TABLE = {
    "title": "A table",
    "about": "What it is for.",
    "seeds": "0-1",
    "select": "best_val",
    "values": ["accuracy", "alone/*"],
    "published": ["some-paper"],
    "elsewhere": ["theirs"],
    "caption": ["A sentence."],
    "columns": [
        {"name": "D", "dataset": "digits", "protocol": "quick", "set": {"digits.val_share": 0.2}, "epochs": 2},
        {"name": "S", "dataset": "synthetic", "protocol": "quick", "encoders": {"m0": {"name": "mlp", "width": 8}}},
    ],
    "rows": [
        {"name": "j", "method": "joint", "epochs": "2x", "fusion": "sum", "note": "A note."},
        {"name": "o", "method": "ogm", "set": {"alpha": 0.5, "digits": {"noise": True}}},
    ],
}


@bounded(150)
@given(data=files(TABLE))
def test_tables(folder, data):
    path = folder / "table.yaml"
    path.write_bytes(data)
    table = lawful(table_specs.load_table, str(path))
    if table is None:
        return
    assert all(isinstance(text, str) for text in (table.title, *table.values, *table.caption, *table.published))
    for row in table.rows:
        assert isinstance(row.about, str)
        for column in table.columns:
            if table_specs.applies(row, column) and table_specs.known(row, column):
                lawful(table_specs.wanted, row, column, table.select)


GROUP = {
    "source": "a paper",
    "url": "https://x.y",
    "protocol": "100 epochs",
    "select": "best_test",
    "confidence": "paper",
    "run": {"protocol": "ogm", "set": {"ogm.alpha": 0.5}},
    "tolerance": 2.0,
    "rows": [
        {"method": "ogm", "label": "OGM", "dataset": "cremad", "accuracy": 61.9, "sd": 0.5, "set": {"ogm.alpha": 0.8}},
        {"method": "joint", "dataset": "cremad", "modality": "audio", "fusion": "sum", "frames": 1, "accuracy": None},
    ],
}


@bounded(200)
@given(data=files({"groups": {"some-paper": GROUP}}))
def test_published_numbers(folder, data):
    path = folder / "published.yaml"
    path.write_bytes(data)
    for claim in lawful(load_published, path) or []:
        hash(claim)
        assert claim.accuracy is None or 0 <= claim.accuracy <= 100
        assert all(
            isinstance(text, str) for text in (claim.group, claim.label, claim.source, claim.protocol, claim.note)
        )


DECLARATION = {
    "csv": "list.csv",
    "modalities": {
        "pose": {"kind": "npy", "column": "pose", "width": 4},
        "caption": {"kind": "text", "length": 5, "vocabulary": 100},
    },
}
HEAD = ["label", "id", "split", "group", "pose", "caption"]
ROWS = [[f"c{i % 2}", f"s{i}", ("train", "val", "test")[i // 4], f"g{i}", "0.npy", f"words, {i}"] for i in range(12)]


def listed(head=HEAD, rows=ROWS, **dialect):
    """A CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", **dialect).writerows([head, *rows])
    return text.getvalue().encode()


@pytest.fixture(scope="module")
def source(folder):
    """A folder with a YAML, a CSV and one file of features."""
    made = folder / "source"
    made.mkdir()
    np.save(made / "0.npy", np.zeros(4, np.float32))
    return made


def read(source, declaration, table):
    (source / "manifest.yaml").write_bytes(declaration)
    (source / "list.csv").write_bytes(table)
    found = lawful(read_source, source / "manifest.yaml")
    if found is not None:
        assert len(found.kinds) >= 2
        assert found.listing.items
        for m, kind in found.kinds.items():
            json.dumps({m: kind.as_dict()}, allow_nan=False)
            kind.stored()


@bounded(150)
@given(data=files(DECLARATION))
def test_manifests(source, data):
    read(source, data, listed())


CELLS = WORDS | st.text(max_size=10) | st.sampled_from(["0.npy", "c0", "s1", "train", "Test", "g1", "007", "9" * 5000])


@st.composite
def tables(draw):
    """The bytes of a CSV: cells and names replaced, rows left out, in any dialect, some bytes changed."""
    rows = [list(row) for row in [HEAD, *ROWS]]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(rows))
        if row and draw(st.booleans()):
            row[draw(st.integers(0, len(row) - 1))] = draw(CELLS)
        elif draw(st.booleans()):
            row.append(draw(CELLS))
        elif row:
            row.pop()
    separator = draw(st.sampled_from([",", ";", "\t"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=end).writerows(rows)
    return draw(damaged(text.getvalue().encode("utf-8", "surrogatepass")))


@bounded(250)
@given(data=tables())
def test_lists_of_samples(source, data):
    read(source, yaml.safe_dump(DECLARATION).encode(), data)


OWNERS = {
    "run": RunOptions,
    "optimizer": Optimizer,
    "schedule": Schedule,
    **{name: registry.methods.get(name).Options for name in registry.METHODS},
    **{name: registry.datasets.get(name).Options for name in registry.DATASETS},
    **{f"encoder {name}": entry.options for name, entry in ENCODERS.items()},
    **{f"kind {name}": kind for name, kind in KINDS.items()},
}
"""Everything that has options, and their class."""
CONCRETE = {owner: cls if issubclass(cls, Options) else cls.Options for owner, cls in OWNERS.items()}
FIELDS = [(owner, f.name) for owner, cls in CONCRETE.items() for f in dataclasses.fields(cls)]


@bounded(1200)
@given(place=st.sampled_from(FIELDS), value=VALUES | st.lists(NUMBERS | WORDS, max_size=4))
def test_options(place, value):
    owner, name = place
    made = lawful(CONCRETE[owner].build, owner, {name: value})
    if made is not None:
        text = json.dumps(made.as_dict(), allow_nan=False)
        assert (
            CONCRETE[owner].build(owner, json.loads(text)) == made or not dataclasses.fields(made)[0].metadata["keyed"]
        )


RECORD = {
    "key": "0123456789ab",
    "cell": "0123456789ab",
    "spec": written_spec(),
    "result": {"readings": {"best_val": {"epochs": [1]}}, "modalities": ["audio", "visual"], "curves": []},
    "cost": {"phases": []},
    "machine": {"device_type": "cpu"},
    "data": {"classes": ["a", "b"]},
}


@st.composite
def recorded(draw):
    """The bytes of a record, mutated and damaged."""
    value = draw(mutated(RECORD))
    try:
        data = json.dumps(value).encode()
    except (TypeError, ValueError):
        data = json.dumps(RECORD).encode()
    return draw(damaged(data))


@bounded(200)
@given(data=recorded())
def test_records(folder, data):
    path = folder / "record.json"
    path.write_bytes(data)
    record = lawful(read_record, path)
    if record is not None:
        assert {"key", "spec", "result", "cost", "machine"} <= set(record)
