"""The command inside this process: cheap, where a process of its own would show nothing more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from calls import Called

from benchmarks.run import main


@pytest.fixture(autouse=True)
def memory_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command called in this process changes what becomes of its memory: that would hold for all later tests."""
    monkeypatch.setattr("benchmarks.command.manage_memory", lambda spare: True)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """``cli("--methods", "joint", ...)`` in this process, from an empty working directory."""
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("BALANCEBENCH_DATA", raising=False)

    def call(*arguments: object) -> Called:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    return call
