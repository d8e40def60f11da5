"""Options: coercion, bounds, sentences."""

import json
import math
from dataclasses import dataclass

import pytest

from balancebench_udi.config import Options, check_window, option
from balancebench_udi.errors import UserError


@dataclass(frozen=True)
class Example(Options):
    alpha: float = option(0.8, "strength", source="paper", at_least=0, at_most=2)
    steps: int = option(3, "steps", source="ours", above=0)
    shape: str = option("step", "shape", source="ours", choices=("step", "cosine"))
    window: tuple[float, float] = option((0.0, 0.5), "when", source="paper", at_least=0, at_most=1)
    sizes: tuple[int, ...] = option((1,), "sizes", source="ours")
    cap: float | None = option(None, "cap", source="ours", above=0)
    seed: int = option(0, "seed", source="ours")
    loud: bool = option(False, "loud", source="ours")


@dataclass(frozen=True)
class Empty(Options):
    pass


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", " 1"])
def test_the_same_number_in_any_notation_is_the_same_option(value):
    built = Example(alpha=value, steps=value, cap=value)
    assert built == Example(alpha=1.0, steps=1, cap=1.0)
    assert (type(built.alpha), type(built.steps), type(built.cap)) == (float, int, float)
    assert json.dumps(built.as_dict()) == json.dumps(Example(alpha=1, steps=1, cap=1).as_dict())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "Yes", "1", "on", True, 1)),
        *((text, False) for text in ("false", "NO", "0", "off", False, 0)),
    ],
)
def test_booleans(text, value):
    assert Example(loud=text).loud is value


@pytest.mark.parametrize("value", ["0.25,0.75", "0.25, 0.75", [0.25, 0.75], (0.25, 0.75), ["0.25", "0.75"]])
def test_lists_become_tuples(value):
    assert Example(window=value).window == (0.25, 0.75)
    assert Example(window=value).as_dict()["window"] == [0.25, 0.75]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_open_lists_have_any_length(count):
    assert Example(sizes=list(range(count))).sizes == tuple(range(count))


@pytest.mark.parametrize("value", [None, "none", "null", "None"])
def test_none(value):
    assert Example(cap=value).cap is None


def test_whole_numbers_are_exact_however_large():
    assert Example(seed=2**53 + 1).seed == 2**53 + 1
    assert Example(seed=str(2**62 + 1)).seed == 2**62 + 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": -1}, "alpha must be >= 0, found -1.0"),
        ({"alpha": "2.5"}, "alpha must be <= 2, found 2.5"),
        ({"steps": 0}, "steps must be > 0, found 0"),
        ({"steps": 1.5}, "steps must be a whole number, found 1.5"),
        ({"steps": True}, "steps must be a whole number, found True"),
        ({"steps": "many"}, "steps must be a whole number, found 'many'"),
        ({"steps": "inf"}, "steps must be a whole number, found 'inf'"),
        ({"alpha": "much"}, "alpha must be a number, found 'much'"),
        ({"alpha": False}, "alpha must be a number, found False"),
        ({"alpha": None}, "alpha must be a number, found None"),
        ({"alpha": "nan"}, "alpha must be a number, found nan"),
        ({"cap": 0}, "cap must be > 0, found 0.0"),
        ({"shape": "line"}, "shape must be one of step, cosine, found line"),
        ({"window": [0.0, 1.5]}, "window must be <= 1, found 1.5"),
        ({"loud": "perhaps"}, "loud must be true or false, found 'perhaps'"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(values, words):
    with pytest.raises(UserError) as error:
        Example(**values)
    assert str(error.value) == words
    with pytest.raises(UserError) as error:
        Example.build("toy", values)
    assert str(error.value) == "toy." + words


def test_bounds_belong_to_their_range_unless_said_otherwise():
    assert Example(alpha=0).alpha == 0
    assert Example(alpha=2).alpha == 2
    assert Example(window=(0, 1)).window == (0.0, 1.0)
    assert Example(steps=1).steps == 1
    with pytest.raises(UserError, match="steps must be > 0"):
        Example(steps=0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, "inf"])
def test_infinity_is_refused_because_no_record_can_hold_it(value):
    with pytest.raises(UserError, match="cap must be"):
        Example(cap=value)


def test_nan_inside_a_list_is_refused():
    @dataclass(frozen=True)
    class Free(Options):
        window: tuple[float, ...] = option((0.0,), "when", source="ours")

    with pytest.raises(UserError, match="window must be"):
        Free(window="0.5,nan")


@pytest.mark.parametrize("value", [3, "3", [3], "3.0"])
def test_one_value_is_a_list_of_one(value):
    assert Example(sizes=value).sizes == (3,)


@pytest.mark.parametrize("window", [(0.0, 0.5), (0.3, 0.3), (0.0, 1.0), (1.0, 1.0)])
def test_a_window_is_two_fractions(window):
    check_window(window)


@pytest.mark.parametrize("window", [(0.5, 0.2), (0.5,), (0.1, 0.2, 0.3), ()])
def test_anything_else_is_no_window(window):
    found = ", ".join(map(str, window))
    with pytest.raises(UserError) as error:
        check_window(window)
    assert str(error.value) == (f"window must be two fractions of the run, the first not above the last, found {found}")


def test_an_option_that_moves_no_number_is_described_but_not_part_of_the_key():
    @dataclass(frozen=True)
    class Partly(Options):
        alpha: float = option(1.0, "strength", source="ours")
        workers: int = option(2, "processes that prepare data", source="ours", keyed=False)

    assert Partly(workers="4").workers == 4
    assert Partly(workers=4).as_dict() == {"alpha": 1.0}
    assert [row[0] for row in Partly.describe()] == ["alpha", "workers"]


def test_an_unknown_option_lists_near_misses():
    with pytest.raises(UserError, match=r"^toy has no option 'alhpa'; did you mean 'alpha'"):
        Example.build("toy", {"alhpa": 1})
    with pytest.raises(UserError, match=r"^toy has no option 'zzzzz'; known: alpha, cap, "):
        Example.build("toy", {"zzzzz": 1})
    with pytest.raises(UserError, match=r"^toy has no option 'alpha'; it has none$"):
        Empty.build("toy", {"alpha": 1})


def test_build_keeps_the_other_defaults():
    assert Example.build("toy", {"steps": "7"}) == Example(steps=7)
    assert Example.build("toy", {}) == Example()


def test_options_cannot_be_changed_afterwards():
    with pytest.raises(AttributeError):
        Example().alpha = 3.0


def test_describe_carries_meaning_and_provenance():
    assert Example.describe()[0] == ("alpha", 0.8, "strength", "paper")
    assert [row[0] for row in Example.describe()] == list(Example().as_dict())
