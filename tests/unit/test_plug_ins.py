"""A broken plug-in breaks only itself, by name: in a listing, a page, a plan of all methods, and by itself."""

import sys

import pytest

import registry
from balancebench_udi import catalogue
from balancebench_udi.errors import UserError
from benchmarks import prepare, report, run

GOOD = """
from dataclasses import dataclass
from balancebench_udi import Strategy
from balancebench_udi.config import Options, option

class Odd(Strategy):
    '''A plug-in.'''
    name = "odd"
    family = "objective"
    reference = "nobody"
"""
OPTIONS = """
    @dataclass(frozen=True)
    class Options(Options):
        weight: float = option(1.0, "factor", source="ours")
"""
BROKEN = {
    "sys.exit(0)": ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
    "sys.exit(3)": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "SystemExit": ("raise SystemExit\n", "SystemExit"),
    "error": ("raise ValueError('first\\nsecond \\x1b[31m')\n", r"ValueError: first\nsecond \x1b[31m"),
    "recursion": ("def f(): f()\nf()\n", "RecursionError"),
    "BaseException": ("class Mine(BaseException): pass\nraise Mine('deep')\n", "Mine: deep"),
    "GeneratorExit": ("raise GeneratorExit\n", "GeneratorExit"),
    "error without words": (
        "class Mine(Exception):\n    def __str__(self): raise ValueError\nraise Mine\n",
        "Mine: (without a readable message)",
    ),
    "long error": ("raise ValueError('x' * 10**6)\n", "ValueError: xxx"),
    "syntax": ("def broken(:\n", "SyntaxError"),
    "import": ("import a_module_that_is_not_there\n", "No module named 'a_module_that_is_not_there'"),
    "attribute": ("Other = 1\n", "has no attribute 'Odd'"),
    "no class": ("Odd = 5\n", "must be a class derived from balancebench_udi.strategy.Strategy"),
    "other class": ("class Odd: name = 'odd'\n", "must be a class derived from balancebench_udi.strategy.Strategy"),
    "instance": (GOOD + "Odd = Odd()\n", "must be a class derived from"),
    "repr": (
        "class Meta(type):\n    def __repr__(cls): raise ValueError\nclass Odd(metaclass=Meta): pass\n",
        "must be a class derived from",
    ),
    "no name": (GOOD.replace('    name = "odd"\n', ""), "its attribute name must be a text, found none"),
    "other name": (GOOD + "    name = 'even'\n", "its attribute name must be 'odd', as it is registered, found 'even'"),
    "family": (GOOD + "    family = 5\n", "its attribute family must be a text, found 5"),
    "reference": (GOOD + "    reference = None\n", "its attribute reference must be a text, found None"),
    "idea": (GOOD + "    idea = ['x']\n", "its attribute idea must be a text, found ['x']"),
    "version": (GOOD + "    version = '1'\n", "its attribute version must be a whole number, found '1'"),
    "version true": (GOOD + "    version = True\n", "its attribute version must be a whole number, found True"),
    "modalities": (GOOD + "    max_modalities = 'two'\n", "max_modalities must be a whole number or None, found 'two'"),
    "docstring": (GOOD + "    __doc__ = 5\n", "its docstring must be a text, found 5"),
    "no options": (GOOD + "    Options = None\n", "its attribute Options must be a dataclass derived from"),
    "other options": (GOOD + "    class Options: pass\n", "its attribute Options must be a dataclass derived from"),
    "default": (GOOD + OPTIONS.replace("1.0", "'much'"), "weight must be a number, found 'much'"),
    "type": (GOOD + OPTIONS.replace("float", "bytes"), "weight: the type <class 'bytes'> is not supported"),
    "options that end the program": (
        GOOD + OPTIONS + "        def __post_init__(self): raise SystemExit(0)\n",
        "SystemExit: 0",
    ),
    "meaning": (GOOD + OPTIONS.replace('"factor"', "5"), "the meaning and the source of its option weight"),
    "attribute that ends the program": (
        "class Meta(type):\n    def __getattr__(cls, name): raise SystemExit(0)\nclass Odd(metaclass=Meta): pass\n",
        "must be a class",
    ),
}


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    """``plugged(source)``: the method ``odd`` in the real catalogue, from a module of this source."""

    def plug(source, module="odd_plug_in", kind=registry.methods):
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setitem(kind._sources, "odd", [(f"{module}:Odd", "the package odd-one")])

    yield plug
    sys.modules.pop("odd_plug_in", None)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plug_in_is_refused_by_name(plugged, name, capsys):
    source, words = BROKEN[name]
    plugged(source)
    with pytest.raises(UserError) as error:
        registry.methods.get("odd")
    said = str(error.value)
    assert said.startswith("method 'odd' could not be loaded from odd_plug_in:Odd (the package odd-one): ")
    assert words in said
    assert len(said) < 600
    assert said.isprintable()
    assert registry.methods.get("joint")

    assert "odd" not in report.method_facts()  # a page goes on
    assert "joint" in report.method_facts()
    classes = registry.methods.load(["all"])
    assert "odd" not in classes
    assert set(registry.METHODS) <= set(classes)
    assert capsys.readouterr().err == f"left out: {said}\n"
    with pytest.raises(UserError, match="method 'odd' could not be loaded"):
        registry.methods.load(["odd", "all"])  # asked for by its name
    with pytest.raises(UserError, match="method 'odd' could not be loaded"):
        registry.methods.load(["od*"])  # nothing is left


@pytest.mark.parametrize("name", ["sys.exit(0)", "no options", "family", "meaning", "default", "other class"])
def test_a_listing_names_it_and_goes_on(plugged, name, capsys):
    plugged(BROKEN[name][0])
    assert run.main(["--list"]) == 0
    told = capsys.readouterr().out
    assert "  odd: method 'odd' could not be loaded from odd_plug_in:Odd" in told
    assert "\n  joint: none; " in told
    assert "\nprotocols:\n" in told


def test_a_broken_dataset_breaks_only_itself(plugged, capsys):
    plugged("raise SystemExit(0)\n", kind=registry.datasets)
    assert prepare.main(["--list"]) == 0
    assert "odd: dataset 'odd' could not be loaded" in capsys.readouterr().out
    source = "from balancebench_udi.data.base import Dataset\nclass Odd(Dataset):\n    name = 'odd'\n"
    plugged(source, "odd_data_a", registry.datasets)
    with pytest.raises(UserError, match=r"dataset 'odd' .*it must define load"):
        registry.datasets.get("odd")
    plugged(f"{source}    def load(self, root): ...\n", "odd_data_b", registry.datasets)
    with pytest.raises(UserError, match=r"dataset 'odd' .*its attribute reference must be a text, found none"):
        registry.datasets.get("odd")
    plugged(f"{source}    reference = ''\n    def load(self, root): ...\n", "odd_data_c", registry.datasets)
    assert registry.datasets.get("odd").name == "odd"


def test_a_good_plug_in_may_print_but_not_into_a_listing(plugged, capsys):
    plugged("print('hello')\nimport warnings\nwarnings.warn('old')\n" + GOOD + OPTIONS)
    with pytest.warns(UserWarning, match="old"):
        assert run.main(["--list"]) == 0
    told = capsys.readouterr()
    assert "  odd: objective; nobody\n    weight = 1.0: factor [ours]\n" in told.out
    assert "hello" not in told.out
    assert "hello" in told.err


def test_an_interruption_while_loading_is_one(plugged):
    plugged("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        registry.methods.get("odd")


def test_a_name_that_a_terminal_would_obey_is_written_out(monkeypatch):
    point = catalogue.EntryPoint("\x1b[31modd", "odd_plug_in:Odd", "some.group")
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [point])
    assert catalogue.Catalogue("method", {}, "some.group").names() == [r"\x1b[31modd"]


def test_a_package_whose_entry_points_are_damaged_is_left_out(tmp_path, monkeypatch, capsys):
    for name, lines in {
        "good_one": "[some.group]\nmine = collections:Counter\n",
        "bad_one": "[some.group]\nmine\n",
    }.items():
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    found = catalogue.Catalogue("method", {}, "some.group")
    assert found.names() == ["mine"]
    assert "left out: the entry points of bad_one cannot be read" in capsys.readouterr().err
