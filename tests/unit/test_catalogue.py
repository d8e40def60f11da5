"""Lazy names: near misses, entry points, doubles, broken files."""

import sys
from importlib.metadata import EntryPoint

import pytest

from balancebench_udi import catalogue
from balancebench_udi.catalogue import Catalogue
from balancebench_udi.errors import UserError

GROUP = "balancebench_udi.methods"
TABLE = {"ordered": "collections:OrderedDict", "counter": "collections:Counter", "text": "textwrap:TextWrapper"}


@pytest.fixture
def offered(monkeypatch):
    """A list of entry points that stands for the installed packages."""
    points: list[EntryPoint] = []

    def entry_points(group):
        return [p for p in points if p.group == group]

    monkeypatch.setattr(catalogue, "entry_points", entry_points)
    return points


class _Package:
    def __init__(self, name):
        self.name = name


def point(name, target, package=None, group=GROUP):
    made = EntryPoint(name, target, group)
    return made._for(_Package(package)) if package else made


def make(table=TABLE):
    return Catalogue("method", table, GROUP)


def test_the_real_entry_points_are_asked_for(monkeypatch):
    asked = []

    def entry_points(*, group):
        asked.append(group)
        return []

    monkeypatch.setattr(catalogue, "entry_points", entry_points)
    make()
    assert asked == [GROUP]


def test_names_are_resolved_on_demand(offered):
    from collections import OrderedDict

    found = make()
    assert found.names() == list(TABLE)
    assert found.get("ordered") is OrderedDict


def test_nothing_is_imported_before_it_is_asked_for(offered, tmp_path, monkeypatch):
    (tmp_path / "catalogue_lazy_module.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = make({"mine": "catalogue_lazy_module:Mine"})
    assert found.names() == ["mine"]
    assert found.match(["all"]) == ["mine"]
    assert "catalogue_lazy_module" not in sys.modules
    assert found.get("mine").__name__ == "Mine"
    assert "catalogue_lazy_module" in sys.modules


def test_an_unknown_name_lists_near_misses(offered):
    with pytest.raises(UserError, match=r"^there is no method called 'countr'; did you mean 'counter'\?$"):
        make().get("countr")
    with pytest.raises(UserError, match=r"^there is no method called 'qqq'; known: counter, ordered, text$"):
        make().get("qqq")


def test_an_entry_point_extends_the_table(offered):
    from textwrap import TextWrapper

    offered.append(point("wrapped", "textwrap:TextWrapper", "mypkg"))
    offered.append(point("elsewhere", "textwrap:TextWrapper", "mypkg", group="another.group"))
    found = make()
    assert found.names() == [*TABLE, "wrapped"]
    assert found.get("wrapped") is TextWrapper


def test_a_name_offered_twice_names_both_sources_and_breaks_only_itself(offered):
    offered.append(point("counter", "otherpkg.counting:Counter", "otherpkg"))
    found = make()
    assert found.names() == list(TABLE)
    with pytest.raises(UserError) as error:
        found.get("counter")
    text = str(error.value)
    assert "registry.py" in text
    assert "collections:Counter" in text
    assert "otherpkg" in text
    assert "otherpkg.counting:Counter" in text
    assert found.get("ordered")


def test_two_packages_with_one_name_are_both_named(offered):
    offered += [point("new", "one.code:New", "first-package"), point("new", "two.code:New", "second-package")]
    with pytest.raises(UserError, match=r"first-package .*second-package"):
        make().get("new")


def test_one_installation_seen_twice_is_one_source(offered):
    offered += [point("new", "collections:deque", "mypkg"), point("new", "collections:deque", "mypkg")]
    assert make().get("new").__name__ == "deque"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ValueError('deep trouble')\n", "ValueError: deep trouble"),
        ("class Other: pass\n", "AttributeError"),
        ("def broken(:\n", "SyntaxError"),
        ("import a_module_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
    ],
)
def test_a_broken_file_breaks_only_its_own_name(offered, tmp_path, monkeypatch, source, words):
    (tmp_path / "catalogue_broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "catalogue_broken_module", raising=False)
    found = make({**TABLE, "broken": "catalogue_broken_module:Mine"})
    with pytest.raises(UserError) as error:
        found.get("broken")
    assert "method 'broken' could not be loaded from catalogue_broken_module:Mine" in str(error.value)
    assert words in str(error.value)
    assert found.get("counter")
    monkeypatch.delitem(sys.modules, "catalogue_broken_module", raising=False)


def test_patterns(offered):
    found = make()
    assert found.match(["all"]) == list(TABLE)
    assert found.match(["*e*"]) == ["ordered", "counter", "text"]
    assert found.match(["text", "ordered", "text"]) == ["text", "ordered"]
    assert found.match(["t*", "all"]) == ["text", "ordered", "counter"]
    assert found.match(["[co]*"]) == ["ordered", "counter"]
    assert found.match(["tex?"]) == ["text"]


@pytest.mark.parametrize("pattern", ["z*", "tetx"])
def test_a_pattern_that_matches_nothing_is_refused(offered, pattern):
    with pytest.raises(UserError, match="there is no method called"):
        make().match(["ordered", pattern])
