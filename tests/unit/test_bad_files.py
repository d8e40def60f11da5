"""Values of another kind than meant in protocols, tables, manifests and options: refused before anything is trained."""

import os

import pytest

import registry
from balancebench_udi.config import MOST_ITEMS, WHOLE, Options
from balancebench_udi.data.manifest import read_source
from balancebench_udi.errors import UserError
from balancebench_udi.protocol import MOST, RunOptions, load_protocol
from balancebench_udi.report.comparison import compare
from balancebench_udi.spec import Optimizer
from benchmarks import table_specs
from benchmarks.command import PROTOCOLS

ROW = "{label: a, accuracy: 60.5, source: s, protocol: p}"
PROTOCOL = {
    "number for an encoder": (
        "encoders: {gray: {name: 5}}",
        "the name in encoders.gray of .* must be that of an encoder, found 5",
    ),
    "list for an encoder": ("encoders: {gray: {name: [a]}}", r"found \['a'\]"),
    "nothing for an encoder": ("encoders: {gray: {name: }}", "found None"),
    "false for a section": ("run: false", "section 'run' of .* must hold names with values, found False"),
    "empty list for a section": ("methods: []", r"section 'methods' of .* must hold names with values, found \[\]"),
    "number for about": ("about: 5", "about of .* must be a text, found 5: put it in quotes"),
    "list for a fusion": ("run: {fusion: [a]}", r"run.fusion must be a text, found \['a'\]"),
    "nothing for a fusion": ("run: {fusion: }", "run.fusion must be a text, found None"),
    "true for a fusion": ("run: {fusion: true}", "run.fusion must be a text, found True"),
    "epochs for ever": ("run: {epochs: 10000000}", f"run.epochs must be <= {MOST}"),
    "published number": (
        "published: {digits: [5]}",
        "a published row in published.digits of .* must have label, .* found 5",
    ),
    "published without": (
        "published: {digits: [{label: a}]}",
        "must have label, accuracy, source and protocol, found no accuracy",
    ),
    "published text": (
        f"published: {{digits: [{ROW.replace('60.5', 'high')}]}}",
        "must be in percent, 0 to 100, found 'high' for a",
    ),
    "published true": (
        f"published: {{digits: [{ROW.replace('60.5', 'true')}]}}",
        "must be in percent, 0 to 100, found True for a",
    ),
    "published nan": (
        f"published: {{digits: [{ROW.replace('60.5', '.nan')}]}}",
        "must be in percent, 0 to 100, found nan for a",
    ),
    "published 101": (
        f"published: {{digits: [{ROW.replace('60.5', '101')}]}}",
        "must be in percent, 0 to 100, found 101 for a",
    ),
    "label": (
        f"published: {{digits: [{ROW.replace('label: a', 'label: 5')}]}}",
        "label of a published row .* must be a text, found 5",
    ),
    "source": (
        f"published: {{digits: [{ROW.replace('source: s', 'source: ')}]}}",
        "source of a published row .* found None",
    ),
    "keys twice": (
        "run: {epochs: 1}\nrun: {epochs: 2}",
        "must have every key once, found 'run' in line 1 and in line 2",
    ),
}


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_protocol_is_refused_when_it_is_read(tmp_path, name):
    text, message = PROTOCOL[name]
    path = tmp_path / "mine.yaml"
    path.write_text(f"{text}\n")
    with pytest.raises(UserError, match=message):
        load_protocol(str(path), PROTOCOLS, {})


def test_published_rows_that_are_whole(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"published: {{digits: [{ROW}, {ROW.replace('60.5', '~')}]}}\n")
    rows = load_protocol(str(path), PROTOCOLS, {}).published["digits"]
    assert [row["accuracy"] for row in rows] == [60.5, None]


def test_a_comparison_checks_its_published_rows():
    record = {"spec": {"method": "m", "seed": 0}, "result": {"readings": {}}}
    with pytest.raises(UserError):
        compare([record], published=[{"label": 5, "accuracy": 1, "source": "s", "protocol": "p"}])


@pytest.mark.parametrize("name", ["folder.yaml", "pipe.yaml"])
def test_a_protocol_and_a_table_that_are_no_file(tmp_path, name):
    path = tmp_path / name
    if name == "folder.yaml":
        path.mkdir()
    else:
        os.mkfifo(path)
    for load, what in ((lambda p: load_protocol(p, PROTOCOLS, {}), "a protocol"), (table_specs.load_table, "a table")):
        with pytest.raises(UserError, match=rf"{name} must be {what}, found a (folder|pipe or a device): name a file"):
            load(str(path))


def test_a_protocol_whose_name_a_terminal_would_obey(tmp_path):
    path = tmp_path / "\x1b[31m.yaml"
    path.write_text("version: 1\n")
    with pytest.raises(UserError, match=r"name of a protocol must be of printable characters, found '\\x1b\[31m'"):
        load_protocol(str(path), PROTOCOLS, {})


TABLE = """title: t
columns:
  - {name: D, dataset: digits, protocol: quick}
rows:
  - {name: j, method: joint}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: joint", "method: joint, epochs: nanx", "whole number or a multiple such as 2x, found 'nanx'"),
        ("method: joint", "method: joint, epochs: infx", "found 'infx'"),
        ("method: joint", "method: joint, epochs: ٣x", "found '٣x'"),
        ("method: joint", "method: joint, epochs: 1_0x", "found '1_0x'"),
        ("method: joint", f"method: joint, epochs: {'9' * 400}x", r"found '9+\.\.\.9+x'"),
        ("rows:", "caption: [5]\nrows:", "caption of mine.yaml must be a list of texts, found 5: put it in quotes"),
        ("rows:", "published: [[x]]\nrows:", r"published of mine.yaml must be a list of texts, found \['x'\]"),
        ("rows:", "elsewhere: [~]\nrows:", "elsewhere of mine.yaml must be a list of texts, found None"),
        ("rows:", "values: [{a: 1}]\nrows:", "values of mine.yaml must be a list of texts"),
        ("rows:", "seeds: [0, 1]\nrows:", "seeds of mine.yaml must be whole numbers and ranges such as 0-4"),
        ("quick", "quick, encoders: {gray: {name: [1]}}", "encoder gray of 'D'.* must name one of resnet18"),
        ("method: joint", "method: ogm, set: {digits: }", "digits in set of 'j', a row of .* must hold the options"),
        ("method: joint", "method: ogm, set: {cremad: 5}", "cremad in set of 'j', a row of .* found 5"),
        ("name: j", "name: ' '", "name of a row of mine.yaml must be a text, found ' ': write one"),
        ("title: t", "title: t\ntitle: u", "must have every key once, found 'title' in line 1 and in line 2"),
        ("name: j, method: joint", "name: j, method: joint, method: ogm", "must have every key once, found 'method'"),
    ],
)
def test_a_table_is_refused_when_it_is_read(tmp_path, old, new, message):
    assert old in TABLE
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        table_specs.load_table(str(path))


def test_a_multiple_that_is_too_much_is_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE.replace("joint", f"joint, epochs: {'9' * 100}x"))
    table = table_specs.load_table(str(path))
    with pytest.raises(UserError, match=rf"run\.epochs must be <= {MOST}"):
        table_specs.wanted(table.rows[0], table.columns[0], "best_val")


def test_a_name_or_a_title_of_several_lines_comes_on_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE.replace("title: t", 'title: "a\\nb"').replace("name: j", 'name: "c\\n\\td"'))
    table = table_specs.load_table(str(path))
    assert (table.title, table.rows[0].name) == ("a b", "c d")


@pytest.mark.parametrize(
    ("owner", "name", "value", "message"),
    [
        (RunOptions, "epochs", "9" * 5000, r"x.epochs must be a whole number, found '9+\.\.\.9+'"),
        (RunOptions, "epochs", str(WHOLE), f"x.epochs must be a whole number of 64 bits, found {WHOLE}"),
        (RunOptions, "epochs", -WHOLE - 1, "x.epochs must be a whole number of 64 bits"),
        (RunOptions, "epochs", "²", "x.epochs must be a whole number, found '²'"),
        (RunOptions, "epochs", [1] * 10**6, r"x.epochs must be a whole number, found \[1, 1"),
        (RunOptions, "test_each_epoch", {"a": 1}, "x.test_each_epoch must be true or false"),
        (RunOptions, "test_each_epoch", 2, "x.test_each_epoch must be true or false, found 2"),
        (RunOptions, "fusion", {"a": 1}, "x.fusion must be a text, found {'a': 1}"),
        (RunOptions, "precision", "x" * 10**6, r"x.precision must be one of fp32, bf16, auto, found xxx"),
        (Optimizer, "lr", "1e400", "x.lr must be finite, found inf"),
        (Optimizer, "name", [None], r"x.name must be a text, found \[None\]"),
        ("ogm", "window", [0.5] * 10**6, f"x.window must be a list of at most {MOST_ITEMS} values, found 1000000"),
        ("ogm", "window", [0.5] * 500, "x.window must be two fractions of the run"),
        ("ogm", "alpha", "\x1b[31m", r"x.alpha must be a number, found '\\x1b\[31m'"),
    ],
    ids=range(14),
)
def test_an_option_of_another_kind(owner, name, value, message):
    options: type[Options] = registry.methods.get(owner).Options if isinstance(owner, str) else owner
    with pytest.raises(UserError, match=message) as error:
        options.build("x", {name: value})
    assert len(str(error.value)) < 300


def test_numbers_of_too_many_digits_to_be_written():
    for name in ("epochs", "test_each_epoch", "fusion"):
        with pytest.raises(UserError, match=rf"x\.{name} must be "):
            RunOptions.build("x", {name: 10**5000})
    with pytest.raises(UserError, match=r"x\.lr must be a number, found a value of the type int"):
        Optimizer.build("x", {"lr": 10**5000})


def test_numbers_that_people_write():
    assert RunOptions.build("x", {"epochs": "٣"}).epochs == 3
    assert RunOptions.build("x", {"epochs": "1_000"}).epochs == 1000
    assert RunOptions.build("x", {"epochs": 1e3}).epochs == 1000
    assert RunOptions.build("x", {"fusion": 5}).fusion == "5"


MANIFEST = "csv: list.csv\nmodalities: {a: {kind: text, column: a}, b: {kind: text, column: 5}}\n"


@pytest.fixture
def manifest(tmp_path):
    """``manifest(csv)``: what a folder with two modalities of text declares."""

    def read(table, yaml=MANIFEST):
        (tmp_path / "manifest.yaml").write_text(yaml)
        if table is not None:
            (tmp_path / "list.csv").write_text(table)
        return read_source(tmp_path / "manifest.yaml")

    return read


def test_numbers_as_texts_and_as_names_of_columns(manifest):
    found = manifest("label,a,5\n" + "".join(f"{i % 2},{i},0{i}\n" for i in range(8)))
    assert found.listing.items[3].detail == {"a": "3", "b": "03"}
    assert found.listing.classes == ("0", "1")


def test_a_column_called_no(manifest):
    found = manifest("label,a,no\n" + "".join(f"{i % 2},x,y\n" for i in range(8)), MANIFEST.replace("5", "no"))
    assert found.kinds["b"].column == "no"


def test_labels_of_many_digits_are_sorted_as_words(manifest):
    found = manifest("label,a,5\n" + "".join(f"{('9' * 5000, '10', '9')[i % 3]},x,y\n" for i in range(9)))
    assert found.listing.classes == ("9", "10", "9" * 5000)


def test_a_pipe_or_a_folder_in_place_of_the_csv(manifest, tmp_path):
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(UserError, match=r"csv must name a file, found a pipe or a device at '.*list\.csv'"):
        manifest(None)
    (tmp_path / "list.csv").unlink()
    (tmp_path / "list.csv").mkdir()
    with pytest.raises(UserError, match=r"csv must name a file, found a folder at '.*list\.csv'"):
        manifest(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("column: 5", "column: "), "b.column must be a text, found None"),
        (("column: 5", "column: [a]"), r"b.column must be a text, found \['a'\]"),
        (("kind: text, column: 5", "kind: 5"), "modality b of .* has no kind 5"),
        (("csv: list.csv", "csv: 5"), "csv of .* must be the path of a CSV, found 5"),
        (("csv: list.csv", "csv: ''"), "csv of .* must be the path of a CSV, found ''"),
        (("b: {", f"{'b' * 65}: {{"), "must be named by at most 64 letters, digits and _, found 'bbb"),
    ],
    ids=range(6),
)
def test_a_manifest_of_other_kinds(manifest, change, message):
    with pytest.raises(UserError, match=message):
        manifest("label,a,5\n" + "".join(f"{i % 2},x,y\n" for i in range(8)), MANIFEST.replace(*change))
