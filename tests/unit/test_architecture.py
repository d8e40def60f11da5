"""Who may import whom: imports point down only. Where names of methods may occur. What importing a table costs."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import registry

ROOT = Path(registry.__file__).resolve().parent
FLOORS = {
    "balancebench_udi._version": 0,
    "balancebench_udi.text": 0,
    "balancebench_udi.errors": 0,
    "balancebench_udi.yaml_files": 0,
    "balancebench_udi.config": 0,
    "balancebench_udi.seeding": 0,
    "balancebench_udi.interruption": 0,
    "balancebench_udi.places": 0,
    "balancebench_udi.catalogue": 0,
    "balancebench_udi.spec": 0,
    "balancebench_udi.files": 0,
    "balancebench_udi.store": 0,
    "balancebench_udi.cleaning": 0,
    "balancebench_udi.protocol": 0,
    "balancebench_udi.data": 1,
    "balancebench_udi.nets": 1,
    "balancebench_udi.metrics": 1,
    "balancebench_udi.report": 1,
    "balancebench_udi.grads": 1,
    "balancebench_udi.watch": 1,
    "balancebench_udi.strategy": 2,
    "balancebench_udi.evaluation": 2,
    "balancebench_udi.replay": 2,
    "balancebench_udi.trainer": 2,
    "balancebench_udi.runner": 2,
    "balancebench_udi.branches": 2,
    "balancebench_udi": 2,  # the package itself offers the interface of floor 2
    "balancebench_udi.udi": 3,
    "baselines": 3,
    "registry": 4,
    "benchmarks": 5,
}
ROOMS = ("balancebench_udi", "baselines", "registry", "benchmarks")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_of(p): p
    for room in ("balancebench_udi", "baselines", "benchmarks")
    for p in sorted((ROOT / room).rglob("*.py"))
} | {"registry": ROOT / "registry.py"}
LIBRARY = [m for m in SOURCES if m.split(".")[0] == "balancebench_udi"]


def floor(module: str) -> int:
    """Of the longest name in FLOORS that covers the module; a file of the library needs a floor of its own."""
    best = max((f for f in FLOORS if module == f or module.startswith(f + ".")), key=len)
    assert best != "balancebench_udi" or module == best, f"{module} has no floor: give it one in FLOORS"
    return FLOORS[best]


def imports(name: str, source: str, is_package: bool = False, running: bool = False) -> set[str]:
    """Full names of our own modules that a source imports, also inside functions and (unless ``running``) for types."""
    found = set()
    tree = ast.parse(source)
    if running:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if is_package else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names}
            modules = {m for m in inside if m in SOURCES}
            found |= modules
            if len(modules) < len(inside):  # something defined in the module itself
                found.add(base)
    return {m for m in found if m.split(".")[0] in ROOMS}


GRAPH = {name: imports(name, path.read_text(), path.name == "__init__.py") for name, path in SOURCES.items()}
RUNNING = {n: imports(n, path.read_text(), path.name == "__init__.py", running=True) for n, path in SOURCES.items()}


def test_the_reader_of_imports_sees_every_form():
    source = """
import balancebench_udi.trainer
from balancebench_udi import Strategy, store
from balancebench_udi.nets.model import seeded
from . import joint
from .unimodal import Unimodal
if TYPE_CHECKING:
    import registry
def f():
    from benchmarks import run
import torch
"""
    everything = {
        "balancebench_udi.trainer",
        "balancebench_udi",
        "balancebench_udi.store",
        "balancebench_udi.nets.model",
        "baselines.joint",
        "baselines.unimodal",
        "registry",
        "benchmarks.run",
    }
    assert imports("baselines.new", source) == everything
    assert imports("baselines.new", source, running=True) == everything - {"registry"}
    assert imports("balancebench_udi.udi", "from .club import CLUB", True) == {"balancebench_udi.udi.club"}


def test_all_rooms_are_there():
    assert {m.split(".")[0] for m in SOURCES} == set(ROOMS)
    assert len(SOURCES) > 30
    assert sum(map(len, GRAPH.values())) > 60


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down_only(name):
    here = floor(name)
    up = {m for m in GRAPH[name] if floor(m) > here}
    assert not up, f"{name} (floor {here}) imports {', '.join(f'{m} (floor {floor(m)})' for m in sorted(up))}"


def test_there_is_no_circle():
    graph = {name: {m for m in found if m != name} for name, found in RUNNING.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) >= set(SOURCES)


def test_imports_exist():
    for name, found in GRAPH.items():
        assert found <= set(SOURCES), f"{name} imports {sorted(found - set(SOURCES))}"


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_knows_no_registry_baseline_or_script(name):
    assert {m for m in GRAPH[name] if m.split(".")[0] != "balancebench_udi"} == set()


@pytest.mark.parametrize("name", [m for m in SOURCES if m.startswith("baselines.")])
def test_no_baseline_imports_another(name):
    assert {m for m in GRAPH[name] if m.split(".")[0] == "baselines"} == set()


@pytest.mark.parametrize("name", [m for m in LIBRARY if not m.startswith("balancebench_udi.udi")])
def test_nothing_in_the_library_imports_a_method(name):
    assert {m for m in GRAPH[name] if m.startswith("balancebench_udi.udi")} == set()


def docstrings(tree: ast.AST) -> set[int]:
    """Ids of the string constants that stand alone as a statement."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


ENGLISH = {"joint", "uniform", "unimodal", "ensemble"}
"""Method names that are words of the field as well: only a string that consists of nothing else counts."""


def methods_named(source: str) -> set[str]:
    """Names of methods in the strings of a source, docstrings apart."""
    tree = ast.parse(source)
    skip = docstrings(tree)
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip
    ]
    whole = {name for name in registry.METHODS if name in texts}
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    return whole | (words & set(registry.METHODS) - ENGLISH)


def test_the_reader_of_strings_finds_names():
    assert methods_named('"""ogm"""\nx = {"ogm": 1}\n') == {"ogm"}
    assert methods_named('x = f"the rule of pmr {y}"') == {"pmr"}
    assert methods_named('x = "joint"') == {"joint"}
    assert methods_named('"""ogm and joint"""\ndef f():\n    "agm"\n    return "joint loss, OGM-GE code"') == set()


@pytest.mark.parametrize("name", [m for m in LIBRARY if not m.startswith("balancebench_udi.udi")])
def test_no_method_is_named_in_the_library(name):
    assert methods_named(SOURCES[name].read_text()) == set()


def in_a_new_process(code: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


def test_importing_the_registry_imports_no_method_and_no_dataset():
    loaded = set(in_a_new_process("import registry, sys; print(*sys.modules)"))
    assert "registry" in loaded
    targets = {target.partition(":")[0] for target in [*registry.METHODS.values(), *registry.DATASETS.values()]}
    assert loaded & targets == set()
    assert {m for m in loaded if m.startswith("baselines.")} == set()
    assert loaded & {"torchaudio", "pandas", "matplotlib", "av", "sklearn"} == set()


def test_importing_a_method_changes_no_table():
    code = (
        "import registry; before = registry.methods.names(); "
        "registry.methods.get('joint'); registry.methods.get('udi'); print(before == registry.methods.names())"
    )
    assert in_a_new_process(code) == ["True"]


def test_every_name_in_the_table_leads_to_a_class_of_that_name():
    for table, found in ((registry.METHODS, registry.methods), (registry.DATASETS, registry.datasets)):
        for name in table:
            assert found.get(name).name == name


def test_no_two_names_lead_to_one_class():
    assert len(set(registry.METHODS.values())) == len(registry.METHODS)
    assert len(set(registry.DATASETS.values())) == len(registry.DATASETS)


def test_a_foreign_package_called_baselines_is_refused(tmp_path):
    foreign = tmp_path / "baselines"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n    import registry\nexcept ImportError as error:\n    print(error)"
    )
    text = " ".join(in_a_new_process(code))
    assert text.startswith("the package 'baselines' must lie beside")
    assert str(foreign) in text


def test_importing_the_package_says_and_sets_nothing():
    code = (
        "import torch\n"
        "state, dtype, threads = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()\n"
        "import balancebench_udi, registry, baselines.joint\n"
        "assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == dtype\n"
        "assert torch.get_num_threads() == threads"
    )
    assert in_a_new_process(code) == []
