"""The one reader of YAML: what it reads, its limits, and that every mistake is one short sentence with its line."""

import os
import time

import pytest
import yaml

from balancebench_udi.errors import UserError
from balancebench_udi.text import escape_controls
from balancebench_udi.yaml_files import DEEPEST, LONGEST, MOST_BYTES, absent, read_yaml
from benchmarks.command import PROTOCOLS


def read(folder, content):
    path = folder / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return read_yaml(path, "a protocol")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("=", "="),
        ("'5'", "5"),
        ('"a\\tb"', "a\tb"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("5", 5),
        ("-5", -5),
        ("+0", 0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ("1.0e+2", 100.0),
        (".inf", float("inf")),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("9" * 18, 10**18 - 1),
    ],
)
def test_values(tmp_path, text, value):
    (found,) = read(tmp_path, f"a: {text}\n").values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("path", sorted(PROTOCOLS.parent.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_of_this_checkout_mean_what_they_meant(path):
    assert read_yaml(path, "a file") == yaml.safe_load(path.read_text())


def test_anchors_and_merge_keys(tmp_path):
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 5}, *a]}\nd: *a\ne: {'<<': 1}\n"
    found = read(tmp_path, text)
    assert found["b"] == {"x": 1, "y": 3}
    assert found["c"] == {"x": 5, "y": 2}
    assert found["d"] == found["a"] == {"x": 1, "y": 2}
    assert found["e"] == {"<<": 1}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~\n"])
def test_an_empty_file_holds_nothing(tmp_path, text):
    assert read(tmp_path, text) == {}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    assert read(tmp_path, "a: Zoë\r\nb: 1\r\n".encode(encoding)) == {"a": "Zoë", "b": 1}


def bomb(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


MERGES = "\n".join(
    ["a0: &a0 {x: 1, y: 2}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 9)]
)
REFUSED = {
    "key twice": ("a: 1\nb: 2\na: 3\n", r"must have every key once, found 'a' in line 1 and in line 3: remove one"),
    "key twice inside": ("a:\n  b: 1\n  c: 2\n  b: 3\n", r"found 'b' in line 2 and in line 4"),
    "key twice by an alias": ("a: &x b\nc: {*x : 1, b: 2}\n", r"found 'b' in line 2 and in line 2"),
    "merge key twice": ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", r"found '<<'"),
    "merge of a number": ("a: {<<: 5}\n", r"must merge mappings by <<, found 5 in line 1"),
    "number as a key": ("a: {1: 2}\n", r"must have texts as keys, found 1 in line 1: put it in quotes"),
    "nothing as a key": ("a: {~: 2}\n", r"must have texts as keys, found None in line 1"),
    "list as a key": ("? [a]\n: 2\n", r"must have texts as keys, found \['a'\] in line 1"),
    "mapping as a key": ("{a: 1}: 2\n", r"must have texts as keys, found {'a': 1}"),
    "digits": (f"a: {'9' * 5000}\n", r"whole numbers of at most 18 digits, found 9+\.\.\.9+ in line 1"),
    "one digit too many": (f"a: -{'9' * 19}\n", r"whole numbers of at most 18 digits"),
    "deep lists": ("a: " + "[" * 5000, rf"must be at most {DEEPEST} levels deep, found more in line 1"),
    "deep mappings": ("a: " + "{a: " * 5000, rf"must be at most {DEEPEST} levels deep"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(300)), rf"must be at most {DEEPEST} levels deep"),
    "bomb": (bomb(9), r"must hold at most \d+ values, aliases included, found more in line 5"),
    "bomb of merges": (MERGES, r"must hold at most \d+ values, aliases included"),
    "bomb of long texts": (f"a: &a {'x' * 400_000}\nb: [{'*a, ' * 100_000}]\n", r"must hold at most \d+ values"),
    "alias of itself": ("a: &a [*a]\n", r"must name what stands whole before it, found \*a in line 1"),
    "alias of nothing": ("a: *b\n", r"found \*b in line 1"),
    "python": (
        "a: !!python/object/apply:os.system [ls]\n",
        r"must hold no tags, found tag:yaml.org.*in line 1",
    ),
    "tag": ("a: !!binary aGk=\n", r"must hold no tags"),
    "own tag": ("a: !mine 5\n", r"must hold no tags, found !mine"),
    "tab": ("a:\n\tb: 1\n", r"must be YAML, found a mistake in line 2: a tab; indent by spaces"),
    "unclosed": ("a: [1,\n", r"must be YAML, found a mistake in line 2: "),
    "NUL": ("a: 1\nb: \0\n", r"must be YAML, found the character \\x00 in line 2: remove it"),
    "ESC": ('a: "\\e[31m"\n', r"must hold no control characters, found '\\x1b\[31m' in line 1"),
    "bidi": ("a: x\u202ey\n", r"must hold no control characters, found 'x\\u202ey' in line 1"),
    "surrogate": ('a: "\\ud800"\n', r"must hold no control characters, found '\\ud800'"),
    "no character": ('a: "\\UFFFFFFFF"\n', r"must be YAML, found a mistake: "),
    "version of many digits": (f"%YAML {'1' * 5000}.1\n---\na: 1\n", r"must be YAML, found a mistake"),
    "two documents": ("a: 1\n---\nb: 2\n", r"must hold one document, found another in line 2"),
    "list": ("- a\n", r"must hold names with values, found \['a'\]"),
    "text": ("x" * 10000, r"must hold names with values, found 'xxx"),
    "UTF-16 without a mark": ("a: 1\n".encode("utf-16-le"), r"must be YAML, found the character \\x00"),
    "UTF-32": ("a: 1\n".encode("utf-32"), r"must be YAML, found the character"),
    "latin-1": ("a: Zo\xeb\n".encode("latin-1"), r"must be YAML in UTF-8, it is not: save it as such"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), r"must be YAML in UTF-8"),
    "size": (b"a: 1\n" + b"#" * MOST_BYTES, rf"must be of at most {MOST_BYTES} bytes, found {MOST_BYTES + 5}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_short_sentence(tmp_path, name):
    content, message = REFUSED[name]
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"mine\.yaml .*{message}") as error:
        read(tmp_path, content)
    said = str(error.value)
    assert len(said) <= LONGEST
    assert escape_controls(said) == said
    assert time.monotonic() - started < 60


def test_a_folder_a_pipe_and_nothing_in_place_of_a_file(tmp_path):
    folder, pipe, none = (tmp_path / f"{name}.yaml" for name in ("folder", "pipe", "none"))
    folder.mkdir()
    os.mkfifo(pipe)
    for path, words in {folder: "a folder", pipe: "a pipe or a device", none: "none"}.items():
        with pytest.raises(UserError, match=rf"{path.name} must be a table, found {words}: name "):
            read_yaml(path, "a table")
        assert absent(path) is (path == none)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "mine.yaml").write_text("a: 1\n")
    monkeypatch.setattr(type(tmp_path), "read_bytes", refuse)
    with pytest.raises(UserError, match="must be a file that can be read, found: permission denied"):
        read_yaml(tmp_path / "mine.yaml", "a table")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\x1b[31m" + "y" * 200], ids=["long", "NUL", "ESC"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(UserError) as error:
        read_yaml(tmp_path / f"{name}.yaml", "a table")
    said = str(error.value)
    assert len(said) <= LONGEST
    assert escape_controls(said) == said
