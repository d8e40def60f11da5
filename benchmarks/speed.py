#!/usr/bin/env python
"""Measure what the harness costs: every method against joint, and joint against a bare training loop.

    python benchmarks/speed.py --parts methods,floor --cases digit --precision fp32,bf16

All data are random and in memory. What is compared runs in one process, in turns: one round is one short training of
each competitor, ratios are taken within a round, tables show medians (quartiles) over rounds. Evaluation is left out.
The results are in ``results/speed/<name>/`` (speed.md, speed.json); parts measured before under that name stay there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # a plain checkout, called from anywhere
    sys.path.insert(0, str(HERE.parent))

from benchmarks.start import begin

if __name__ == "__main__":
    begin()

import registry
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.runner import describe_machine
from benchmarks.command import Parser, choose_device, default_out, duration, folder_name, guarded, words
from benchmarks.speed_parts import PARTS, PRECISIONS, Setting, Table, find_videos
from benchmarks.speed_runs import CASES, REFERENCE, STATUS, make_case

FORMAT = 1
"""Version of the report's format."""
LENGTHS = ("batch", "steps", "epochs", "rounds")


def parser() -> Parser:
    """The command line."""
    p = Parser(prog="speed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", help=f"of {', '.join(PARTS)} (default: all, preparing where there are --clips)")
    p.add_argument("--clips", type=Path, help="folder of videos for the part preparing, such as CREMA-D's VideoFlash")
    p.add_argument("--methods", default="all", help="names, wildcards or 'all', separated by commas; joint is added")
    p.add_argument("--cases", help=f"of {', '.join(CASES)} (default: all; with --quick: digit)")
    p.add_argument("--precision", help="fp32, bf16 or both, separated by a comma (default: both; with --quick: fp32)")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    p.add_argument("--batch", type=_positive, help="samples in a batch (default: by case and device)")
    p.add_argument("--epochs", type=_positive, help="epochs of a phase (default: 2)")
    p.add_argument("--steps", type=_positive, help="steps of an epoch (default: by case and device)")
    p.add_argument("--rounds", type=_positive, help="how often every competitor runs (default: by case and device)")
    p.add_argument("--frames", type=_positive, default=1, help="frames of a clip, for the case av (default: 1)")
    p.add_argument("--out", type=Path, help="results folder (default: results in this checkout, else in this folder)")
    p.add_argument("--name", help="folder below OUT/speed (default: the device's name)")
    p.add_argument("--minutes", type=_positive, help="after so many, begin no part and no round of methods")
    p.add_argument("--quick", action="store_true", help="as small as can be: shows that all works, measures nothing")
    return p


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, found {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 some run failed, 2 a mistake, 130 interrupted."""
    return guarded(run, parser(), arguments, "the parts that were finished are written")


def run(given: argparse.Namespace) -> int:
    """Measure part after part and write after each."""
    left_out = {"preparing": given.clips is None, "compiled": given.quick}
    every = ",".join(part for part in PARTS if not left_out.get(part))
    parts = _chosen(given.parts, every, "--parts", "part", PARTS)
    names = _chosen(given.cases, "digit" if given.quick else ",".join(CASES), "--cases", "case", CASES)
    default = "fp32" if given.quick else ",".join(PRECISIONS)
    precisions = _chosen(given.precision, default, "--precision", "precision", PRECISIONS)
    if "preparing" in parts:
        find_videos(given.clips or Path("no folder"))
    wanted = registry.methods.match([REFERENCE, *words(given.methods, "--methods")])
    if given.name is not None:
        folder_name(given.name)
    device = choose_device(given.device)
    if not STATUS.exists() and {"memory", "scaling"} & set(parts):
        raise UserError(f"memory and scaling need {STATUS}, as on Linux, found none: leave them out of --parts")
    lengths = {k: getattr(given, k) for k in LENGTHS if getattr(given, k) is not None}
    cases = [make_case(name, device, given.frames, given.quick, **lengths) for name in names]
    methods = {name: registry.methods.get(name) for name in wanted}
    setting = Setting(device, methods, precisions, cases, given.quick, clips=given.clips)
    label = re.sub(r"[^a-z0-9]+", "-", describe_machine(device)["device"].lower()).strip("-") + "-quick" * given.quick
    label = label if given.name is None else given.name
    folder = (given.out if given.out is not None else default_out()) / "speed" / label
    report = read_report(folder / "speed.json")
    writable(folder)
    if given.minutes is not None:
        setting.until = time.monotonic() + 60 * given.minutes
    for number, part in enumerate(parts):
        if number and time.monotonic() > setting.until:
            print(f"left out after {given.minutes} min: {', '.join(parts[number:])}", file=sys.stderr)
            break
        started, failed_before = time.perf_counter(), len(setting.failed)
        tables = PARTS[part](setting)
        report["parts"][part] = {
            "machine": describe_machine(device),
            "versions": {name: version(name) for name in ("torch", "torchvision", "numpy")},
            "settings": {
                "quick": given.quick,
                "methods": list(methods),
                "precision": precisions,
                "cases": {c.name: {k: getattr(c, k) for k in LENGTHS} for c in cases},
            },
            "seconds": time.perf_counter() - started,
            "tables": [vars(table) for table in tables],
            "failed": setting.failed[failed_before:],
        }
        write_report(report, folder)
        print(part_markdown(part, report["parts"][part]))
    print(f"written: {folder / 'speed.md'}, {folder / 'speed.json'}")
    for sentence in setting.failed:
        print(f"failed: {sentence}", file=sys.stderr)
    return 1 if setting.failed else 0


def read_report(path: Path) -> dict[str, Any]:
    """What was measured before under this name, or an empty report.

    Raises:
        UserError: a file that no ``speed.py`` of this format has written.
    """
    if not path.exists():
        return {"format": FORMAT, "parts": {}}
    try:
        report = json.loads(path.read_text())
        if report["format"] == FORMAT and isinstance(report["parts"], dict):
            return report
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(
        f"{path} must be a report of format {FORMAT}, found another file: remove it or choose another --name"
    )


def writable(folder: Path) -> None:
    """Make the folder, before anything is measured.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out must be a folder that can be written, found {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out must be a folder that can be written, found {folder}: no permission")


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """``speed.json`` and ``speed.md``, each replaced as a whole."""
    order = [part for part in PARTS if part in report["parts"]]
    text = "# What the harness costs\n\n" + "\n".join(part_markdown(part, report["parts"][part]) for part in order)
    for name, content in (("speed.json", json.dumps(report, indent=1) + "\n"), ("speed.md", text)):
        draft = folder / f".{name}.{os.getpid()}"
        draft.write_text(content)
        draft.replace(folder / name)


def part_markdown(name: str, part: Mapping[str, Any]) -> str:
    """One part with the machine it was measured on."""
    machine = part["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in part["versions"].items())
    lines = [
        f"## {name}",
        "",
        f"{machine['device']}, {machine['threads']} threads of {machine['cores']} cores; {versions}, Python "
        f"{machine['python']}; commit {machine['commit'] or 'unknown'}; {machine['finished']}; "
        f"took {duration(part['seconds'])}.",
        "",
    ]
    if part["settings"]["quick"]:
        lines += ["**Measured with --quick: too short for its figures to mean anything.**", ""]
    for table in part["tables"]:
        lines += Table(**table).markdown()
    lines += [f"- failed: {sentence}" for sentence in part["failed"]]
    return "\n".join(lines)


def _chosen(text: str | None, default: str, flag: str, kind: str, known: Mapping[str, Any]) -> list[str]:
    chosen = words(default if text is None else text, flag)
    for word in chosen:
        if word not in known:
            raise UserError(f"{flag}: there is no {kind} called {word!r}{near_misses(word, known)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
