"""The command inside this process: cheap, where a process of its own would show nothing more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from calls import Called

from benchmarks.run import main


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """``cli("--methods", "joint", ...)`` in this process, from an empty working directory."""
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("BALANCEBENCH_DATA", raising=False)
    monkeypatch.setattr("benchmarks.run.spare_memory", lambda: True)  # it would hold for this whole process

    def call(*arguments: object) -> Called:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        seen = capsys.readouterr()
        return Called(code, seen.out, seen.err)

    return call
