"""Text made safe to show: escapes, bounded sentences, cells that no spreadsheet calculates."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancebench_udi.errors import LONGEST, UserError, near_misses
from balancebench_udi.text import (
    escape_controls,
    found,
    guard_cell,
    guard_frame,
    shortened,
    unguard_cell,
    unguard_frame,
)

TEXTS = st.text(st.characters(codec=None), max_size=60) | st.text("'=+-@\t\r\n\x1b\u202e\ud800a1", max_size=12)
QUICK = settings(max_examples=200, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
        ("\u202e\u2066\u2028\u2029", r"\u202e\u2066\u2028\u2029"),
        ("\ud800\ufffe\uffff", r"\ud800\ufffe\uffff"),
        ("Zoë, 東京, عربى, 😀, a\\x1b", "Zoë, 東京, عربى, 😀, a\\x1b"),
    ],
)
def test_what_is_written_out(text, shown):
    assert escape_controls(text) == shown
    assert escape_controls(shown) == shown


def test_lines_may_be_kept():
    assert escape_controls("a\n\x1bb", keep="\n") == "a\n\\x1bb"


@QUICK
@given(TEXTS, st.integers(8, 100))
def test_a_shortened_text_is_one_line_of_bounded_length(text, most):
    short = shortened(text, most)
    assert len(short) <= most
    assert escape_controls(short) == short
    short.encode()  # no lone surrogate
    if len(escape_controls(text)) <= most:
        assert short == escape_controls(text)


class Broken:
    def __repr__(self):
        raise ValueError("no")


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_any_value_can_be_shown():
    for value in (10**5000, nested(5000), Broken(), "x" * 10**6, [1] * 10**6, "\x1b", b"\x1b"):
        assert len(found(value)) <= 100
        assert found(value).isprintable()


def test_usual_values_are_shown_as_they_are():
    assert [found(v) for v in ("a", 5, None, [1, "b"])] == ["'a'", "5", "None", "[1, 'b']"]


@pytest.mark.parametrize(
    "text", ["first\nsecond\x1b[31m\u202e", "x" * 10**6, "\ud800"], ids=["lines", "long", "surrogate"]
)
def test_a_users_mistake_is_one_bounded_line(text):
    error = UserError(f"this must hold, found {text}")
    assert str(error).startswith("this must hold, found ")
    assert len(str(error)) <= LONGEST
    assert escape_controls(str(error)) == str(error)
    assert str(error).encode()


@pytest.mark.parametrize("name", [5, None, ["a"], "x" * 10**6, "\x1b"], ids=["number", "none", "list", "long", "ESC"])
def test_near_misses_of_anything(name):
    assert near_misses(name, ["ogm", "agm"]) == "; known: agm, ogm"


@QUICK
@given(TEXTS)
def test_guarding_has_an_exact_inverse_and_leaves_no_formula(text):
    guarded = guard_cell(text)
    assert unguard_cell(guarded) == text
    number = re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", text)
    assert number or not guarded.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert guarded in (text, f"'{text}")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("-x", "'-x"),
        ("-1.5", "-1.5"),
        ("+1e-3", "+1e-3"),
        ("-1+1", "'-1+1"),
        ("'-1.5", "''-1.5"),
        ("@a", "'@a"),
        ("\tx", "'\tx"),
        ("'=1", "''=1"),
        ("'quoted'", "'quoted'"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_cells(text, cell):
    assert guard_cell(text) == cell


def test_a_table_keeps_its_numbers_and_its_shape():
    table = pd.DataFrame(
        {
            "=name": ["=1+1", "plain", None],
            "number": [-1.5, 2.0, np.nan],
            "count": pd.array([-1, None, 3], dtype="Int64"),
            "mixed": pd.Series([-1, "-x", True], dtype=object),
            "kind": pd.Categorical(["+a", "b", "+a"]),
            "right": [True, False, True],
        }
    )
    before = table.copy()
    guarded = guard_frame(table)
    assert list(guarded.columns) == ["'=name", "number", "count", "mixed", "kind", "right"]
    assert guarded["'=name"].tolist()[:2] == ["'=1+1", "plain"]
    assert guarded["mixed"].tolist() == [-1, "'-x", True]
    assert guarded["kind"].tolist() == ["'+a", "b", "'+a"]
    for name in ("number", "count", "right"):
        pd.testing.assert_series_equal(guarded[name], table[name])
    pd.testing.assert_frame_equal(table, before)
    written = io.StringIO()
    guarded.to_csv(written, index=False)
    again = unguard_frame(pd.read_csv(io.StringIO(written.getvalue())))
    assert list(again.columns) == list(table.columns)
    assert again["=name"].tolist()[:2] == ["=1+1", "plain"]
    assert again["number"].tolist()[:2] == [-1.5, 2.0]


def test_a_table_without_formulas_is_written_as_before():
    table = pd.DataFrame(
        {"a": ["x", None], "b": pd.Series([1, None], dtype=object), "c": [1.0, 2.5], "d": [True, False]}
    )
    assert guard_frame(table).to_csv() == table.to_csv()
    empty = table.iloc[:0]
    assert guard_frame(empty).to_csv() == empty.to_csv()
