"""Calls of the command as a user makes them, and what they leave on disk."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Called:
    """How a call ended."""

    code: int
    out: str
    err: str


def spawn(*arguments: object, cwd: Path, script: Path | None = None, env: Mapping[str, str] | None = None) -> Any:
    """The command as a process; ``env`` adds variables."""
    given = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "BALANCEBENCH_DATA")}
    return subprocess.Popen(
        [sys.executable, str(script or ROOT / "benchmarks" / "run.py"), *map(str, arguments)],
        cwd=cwd,
        env={**given, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: Any, timeout: float = 120) -> Called:
    """Wait for a process of :func:`spawn`; it never outlives its test."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Called(process.returncode, out, err)


def command(*arguments: object, cwd: Path) -> Called:
    """``python benchmarks/run.py ...`` from ``cwd``."""
    return finish(spawn(*arguments, cwd=cwd))


def records(out: Path) -> dict[Path, dict[str, Any]]:
    """Path below ``out`` -> record."""
    return {p.relative_to(out): json.loads(p.read_text()) for p in sorted(out.glob("records/*/*/*.json"))}


def shas(out: Path) -> dict[str, str]:
    """Name of the record -> checksum of its result."""
    return {path.name: record["result_sha256"] for path, record in records(out).items()}


def content(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below ``folder``: time of its last change and checksum."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
