"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import sys

import pandas as pd
import pytest
from calls import ROOT, records

import registry
from balancebench_udi import Strategy
from balancebench_udi.catalogue import Catalogue
from benchmarks.run import PROTOCOLS, parse_seeds, parser

README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """The text below the heading that contains ``title``, up to the next one of its level or above."""
    level, start = next((len(m[1]), m.end()) for m in re.finditer(r"^(#+) .*$", README, re.M) if title in m[0])
    fenced = re.compile(rf"^```.*?^```$|^#{{1,{level}}} ", re.M | re.S)
    end = next((m.start() for m in fenced.finditer(README, start) if not m[0].startswith("```")), len(README))
    return README[start:end]


def commands() -> list[list[str]]:
    """The arguments of every ``python benchmarks/run.py ...`` in the README, fenced or inline."""
    text = README.replace("\\\n", " ")
    found = re.findall(r"python benchmarks/run\.py([^`\n]*)", text)
    return [shlex.split(line, comments=True) for line in found]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The README's method, saved and registered as the README says; its class."""
    text = section("Adding a method")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert "`baselines/mine.py`" in text
    (name, attribute) = re.search(r'`"(\w+)": "baselines\.mine:(\w+)"`', text).groups()
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "readme_mine.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    table = {**registry.METHODS, name: f"readme_mine:{attribute}"}
    catalogue = Catalogue("method", table, "balancebench_udi.methods")
    monkeypatch.setattr(registry, "methods", catalogue)
    yield catalogue.get(name)
    sys.modules.pop("readme_mine", None)


def test_the_method_trains_and_is_compared(cli, mine, tmp_path):
    assert issubclass(mine, Strategy)
    out = tmp_path / "out"
    arguments = ("--dataset", "digits", "--protocol", "quick", "--epochs", "1", "--seeds", "0", "--out", out)
    called = cli("--methods", f"{mine.name},joint", *arguments)
    assert called.code == 0, called.err
    (path,) = out.glob("tables/*/comparison.csv")
    assert list(pd.read_csv(path)["method"]) == [mine.name, "joint"]
    made = {r["spec"]["method"]: r for r in records(out).values()}
    assert made[mine.name]["result"]["readings"] != made["joint"]["result"]["readings"]
    for option, default, meaning, source in mine.Options.describe():
        assert f"    {option} = {default}: {meaning} [{source}]" in cli("--list").out


def test_the_method_is_short():
    (code,) = re.findall(r"```python\n(.*?)```", section("Adding a method"), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 35


def test_every_command_can_be_called(cli, mine, tmp_path):
    shown = commands()
    assert len(shown) >= 3
    for arguments in shown:
        given = parser().parse_args(arguments)
        parse_seeds(given.seeds)
        if given.list:
            assert cli(*arguments).code == 0
            continue
        registry.methods.match(given.methods.split(","))
        dataset = registry.datasets.get(given.dataset)
        assert given.protocol.endswith(".yaml") or (PROTOCOLS / f"{given.protocol}.yaml").is_file(), given.protocol
        planned = cli(*arguments, "--out", tmp_path / "out", "--dry-run")
        if dataset.needs:  # such as --data-root DIR: refused for want of data, and for nothing else
            assert planned.code == 2, arguments
            assert re.search("--data-root (must be a folder|DIR) with", planned.err), planned.err
        else:
            assert planned.code == 0, planned.err


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    fenced = re.findall(r"^make ([a-z][\w-]*)", README, re.M)
    inline = re.findall(r"`make ([a-z][\w-]*)[^`]*`", README)
    assert {"bench", "test"} <= set(fenced + inline) <= targets


def test_every_file_it_names_exists():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    named = re.findall(r"`((?:balancebench_udi|baselines|benchmarks|tests)/[\w./-]*)`", README)
    missing = [name for name in (*links, *named) if not (ROOT / name).exists()]
    assert [name for name in missing if name != "baselines/mine.py"] == []


def test_the_tables_name_every_method_and_dataset():
    for title, names in (("Methods", registry.METHODS), ("Data", registry.DATASETS)):
        first = re.findall(r"^\| (`[^|]*`) \|", section(title), re.M)
        assert set(re.findall(r"`(\w+)`", " ".join(first))) == set(names)


def test_the_results_folder_is_described_as_it_is(cli, tmp_path):
    out = tmp_path / "out"
    arguments = ("--methods", "joint", "--dataset", "digits", "--protocol", "quick", "--epochs", "1", "--seeds", "0")
    assert cli(*arguments, "--out", out).code == 0
    text = section("Comparing methods")
    for path in (*out.glob("tables/*/*"), *out.glob("figures/*/*")):
        assert path.stem in text, path.name
        assert f"`{path.suffix}`" in text or f"{path.suffix}`" in text
    for folder in ("records", "tables", "figures", "claims"):
        assert (out / folder).is_dir()
        assert f"`{folder}/" in text
