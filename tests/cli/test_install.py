"""The wheel, away from the checkout, with methods that other packages add by entry point."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from calls import ROOT, records

CONTENT = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "registry.py")
PACKAGES = ("balancebench_udi", "baselines", "benchmarks")

SETUP_CFG = """
[metadata]
name = {name}
version = 0.1

[options]
py_modules = {modules}

[options.entry_points]
balancebench_udi.methods =
{points}
"""
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
"""
MINE = '''
"""A method of a package of its own; it imports nothing but the library."""

from dataclasses import dataclass

from balancebench_udi import Options, Strategy, option


@dataclass(frozen=True)
class MineOptions(Options):
    weight: float = option(1.0, "factor on the loss", source="ours", above=0)


class Mine(Strategy):
    name = "mine"
    family = "objective"
    reference = "a plug-in"
    Options = MineOptions

    def loss(self, output, batch):
        loss, logs = super().loss(output, batch)
        return self.options.weight * loss, logs
'''


def plug_in(folder: Path, name: str, modules: dict[str, str], points: dict[str, str]) -> Path:
    """The sources of a small package."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    lines = "\n".join(f"    {k} = {v}" for k, v in points.items())
    (folder / "setup.cfg").write_text(SETUP_CFG.format(name=name, modules=", ".join(modules), points=lines))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    return folder


def pip(*arguments: object) -> None:
    """Pip without the network."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments)],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The project's wheel and those of two other packages, built from copies: the checkout stays clean."""
    major = int(version("setuptools").split(".")[0])
    assert major >= 71, f"building a wheel needs setuptools 71 or newer, found {major}: pip install -e '.[test]'"
    base = tmp_path_factory.mktemp("sources")
    project = base / "project"
    project.mkdir()
    for name in CONTENT:
        shutil.copy(ROOT / name, project)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    mine = plug_in(
        base / "mine",
        "mine-plugin",
        {"mine_plugin": MINE, "broken_plugin": "import there_is_no_such_module\n"},
        {"mine": "mine_plugin:Mine", "twice": "mine_plugin:Mine", "broken": "broken_plugin:Broken"},
    )
    other = plug_in(base / "other", "other-plugin", {"other_plugin": MINE}, {"twice": "other_plugin:Mine"})
    made = base / "wheels"
    pip("wheel", project, mine, other, "--no-deps", "--no-build-isolation", "--wheel-dir", made)
    return sorted(made.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """A folder with the three packages installed."""
    target = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", target, *wheels)
    return target


def call(installed, cwd, *words: object) -> subprocess.CompletedProcess[str]:
    """A process that finds the project in ``installed`` and nowhere else."""
    env = {k: v for k, v in os.environ.items() if k != "BALANCEBENCH_DATA"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**env, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_wheel_holds_every_module_and_preset(wheels):
    (wheel,) = (w for w in wheels if w.name.startswith("balancebench_udi-"))
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
    wanted |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "benchmarks").rglob("*.yaml")}
    wanted |= {"registry.py", "balancebench_udi/py.typed"}
    assert wanted - inside == set()
    assert not [name for name in inside if name.startswith(("tests", "results"))]


SCRIPT = """
import sys
from importlib.metadata import entry_points
import balancebench_udi, baselines, benchmarks.__main__, benchmarks.run, registry
from balancebench_udi.errors import UserError

for module in (balancebench_udi, baselines, benchmarks.run, registry):
    print("at", module.__file__)
print("names", *registry.methods.names())
for name in (*registry.METHODS, "mine"):
    registry.methods.get(name)
assert "broken_plugin" not in sys.modules  # nothing is imported before it is asked for
for name in ("twice", "broken"):
    status = benchmarks.run.main(["--methods", name, "--out", "unused"])
    print("status", status)
print("listed", benchmarks.run.main(["--list"]))
(point,) = entry_points(group="console_scripts", name="balancebench")
assert point.load() is benchmarks.__main__.main
print("results in", benchmarks.run.default_out())
"""


def test_a_plug_in_breaks_only_its_own_name(installed, tmp_path):
    done = call(installed, tmp_path, "-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    places = re.findall(r"^at (.*)$", done.stdout, re.M)
    assert len(places) == 4
    assert all(Path(place).is_relative_to(installed) for place in places), places
    (names,) = re.findall(r"^names (.*)$", done.stdout, re.M)
    assert {"mine", "twice", "broken", "joint", "udi"} <= set(names.split())

    assert re.findall(r"^status (\d)$", done.stdout, re.M) == ["2", "2"]
    twice, broken = done.stderr.splitlines()
    assert twice.startswith("error: method 'twice' must have one source, found ")
    assert "the package mine-plugin (mine_plugin:Mine)" in twice
    assert "the package other-plugin (other_plugin:Mine)" in twice
    assert re.search(r"error: method 'broken' could not be loaded .*mine-plugin.*ModuleNotFoundError", broken)

    assert "listed 0" in done.stdout
    assert "  mine: objective; a plug-in\n    weight = 1.0: factor on the loss [ours]\n" in done.stdout
    assert re.search(r"^  broken: method 'broken' could not be loaded", done.stdout, re.M)
    assert re.search(r"^  joint: none; ", done.stdout, re.M)
    assert "results in results\n" in done.stdout  # no checkout: the working directory
    assert (installed / "bin" / "balancebench").is_file()
    assert not list(tmp_path.iterdir())


def test_a_plug_in_is_compared_with_the_rest(installed, tmp_path):
    arguments = (
        "--methods",
        "joint,mine",
        "--dataset",
        "digits",
        "--protocol",
        "quick",
        "--epochs",
        "1",
        "--seeds",
        "0",
    )
    done = call(installed, tmp_path, "-m", "benchmarks.run", *arguments, "--out", "here", "--set", "mine.weight=2")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    made = {r["spec"]["method"]: r for r in records(tmp_path / "here").values()}
    assert made["mine"]["spec"]["method_options"] == {"weight": 2.0}
    assert made["mine"]["result_sha256"] != made["joint"]["result_sha256"]
    assert made["mine"]["machine"]["commit"] is None  # not a checkout
    (path,) = tmp_path.glob("here/tables/*/comparison.csv")
    assert list(pd.read_csv(path)["method"]) == ["joint", "mine"]
