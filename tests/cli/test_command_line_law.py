"""Whatever is typed: status 0, or status 2 and one sentence. Random command lines, the same ones in every call."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from balancebench_udi.config import Options, option
from balancebench_udi.errors import UserError
from benchmarks import run
from benchmarks.command import parse_settings

MANY = settings(max_examples=300, deadline=None, derandomize=True)
NUMBERS = st.one_of(
    st.integers(-3, 40).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "--", "nan", "-inf", "1e400", "1e12", "9" * 30, "9" * 5000, "²", "٣", "1_0", "0x1f", " 4 ", "a"]
    ),
)
TEXTS = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "..", "/", "a\0b", "\ud800", "\udcff", "x" * 300, "a\nb", "-x"])
)
SEEDS = st.one_of(
    NUMBERS,
    st.lists(st.one_of(NUMBERS, st.tuples(NUMBERS, NUMBERS).map("-".join)), max_size=4).map(",".join),
    st.text("0123456789-, ", max_size=12),
    TEXTS,
)
OWNERS = st.sampled_from(
    ["optimizer", "schedule", "joint", "digits", "encoder.gray", "encoder.", "run", "", "synthetic"]
)
NAMES = st.sampled_from(["lr", "at", "factor", "name", "val_share", "momentum", "noise", "width", "", "epochs"])
SET = st.one_of(st.tuples(OWNERS, NAMES, st.one_of(NUMBERS, TEXTS)).map(lambda t: f"{t[0]}.{t[1]}={t[2]}"), TEXTS)
FLAGS = {
    "--seeds": SEEDS,
    "--set": SET,
    "--epochs": NUMBERS,
    "--batch-size": NUMBERS,
    "--name": TEXTS,
    "--checkpoint-every": NUMBERS,
    "--jobs": NUMBERS,
    "--select": st.one_of(st.sampled_from(["last", "best_val", "best_test", "best"]), TEXTS),
    "--methods": st.one_of(st.sampled_from(["joint", "*", "jo*", ",", "joint,joint"]), TEXTS),
    "--fusion": st.one_of(st.sampled_from(["sum", "film"]), TEXTS),
    "--precision": st.one_of(st.sampled_from(["fp32", "fp16", "auto"]), TEXTS),
    "--protocol": st.one_of(st.sampled_from(["quick", "quik", "."]), TEXTS),
    "--data-root": TEXTS,
    "--out": TEXTS.filter(lambda text: text != "/"),
    "--tensorboard": TEXTS,
}


@st.composite
def flags(draw):
    """Some of the flags with values, each as two words or as one."""
    words = []
    for flag in draw(st.lists(st.sampled_from(sorted(FLAGS)), min_size=1, max_size=3)):
        value = draw(FLAGS[flag])
        words += [flag, value] if draw(st.booleans()) else [f"{flag}={value}"]
    return words


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("somewhere")


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@example(words=["--seeds=--"])
@example(words=["--set=--"])
@example(words=["--data-root", "~nobody-here/x"])
@given(words=flags())
def test_a_command_line_is_right_or_refused_in_one_sentence(somewhere, words):
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(somewhere)
        patched.setattr(run, "estimate", lambda *_: 0.0)  # takes two steps, whatever the command line
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run.main(["--methods", "joint", "--dataset", "digits", "--protocol", "quick", *words, "--dry-run"])
    assert status in (0, 2), words
    said = err.getvalue()
    assert (status == 0) == (said == "")
    if said:
        assert said.startswith("error: ")
        assert said.splitlines() == [said[:-1]], words
    assert not list(somewhere.iterdir())


@MANY
@given(text=SEEDS)
def test_seeds_are_numbers_or_refused(text):
    try:
        seeds = run.parse_seeds(text)
    except UserError:
        return
    assert 0 < len(seeds) == len(set(seeds)) <= run.MOST_SEEDS
    assert all(0 <= seed <= run.LARGEST_SEED for seed in seeds)


@MANY
@given(numbers=st.lists(st.integers(0, run.LARGEST_SEED), min_size=1, max_size=5, unique=True))
def test_seeds_that_are_named_are_found(numbers):
    assert run.parse_seeds(",".join(map(str, numbers))) == numbers


@MANY
@given(texts=st.lists(SET, max_size=4))
def test_settings_are_kept_as_text_or_refused(texts):
    try:
        found = parse_settings(texts, ["joint", "digits"])
    except UserError:
        return
    rebuilt = {f"{owner}.{name}={value}" for owner, values in found.items() for name, value in values.items()}
    assert rebuilt <= set(texts)
    assert {text.partition("=")[0] for text in texts} == {text.partition("=")[0] for text in rebuilt}


@dataclass(frozen=True)
class Every(Options):
    """An option of every type."""

    count: int = option(1, "a whole number", source="here", at_least=0)
    size: float = option(1.0, "a number", source="here", above=0)
    flag: bool = option(False, "yes or no", source="here")
    word: str = option("a", "a name", source="here", choices=("a", "b"))
    window: tuple[float, ...] = option((0.0, 1.0), "numbers", source="here", at_least=0, at_most=1)
    maybe: float | None = option(None, "a number or none", source="here")
    some: int | None = option(None, "a whole number or none", source="here")


@MANY
@given(name=st.sampled_from([*Every.__dataclass_fields__, "other"]), text=st.one_of(NUMBERS, TEXTS))
def test_options_of_texts_hold_what_they_say_or_are_refused(name, text):
    try:
        made = Every.build("every", {name: text})
    except UserError:
        return
    assert type(made.count) is int
    assert 0 <= made.count < 2**63
    assert 0 < made.size < math.inf
    assert type(made.flag) is bool
    assert made.word in ("a", "b")
    assert all(0 <= value <= 1 for value in made.window)
    assert made.maybe is None or math.isfinite(made.maybe)
    assert made.some is None or abs(made.some) < 2**63
    assert Every.build("every", made.as_dict()) == made  # as a record holds it
