"""A protocol: a named, versioned preset of everything that is not the method and not the seed, kept as YAML.

Options of methods belong to it where a paper sets them. ``methods`` has those of every dataset, ``methods_on`` those of
one, which come over them::

    methods:
      pmr: {alpha: 1.0, window: [0.0, 0.6]}
    methods_on:
      cremad:
        pmr: {alpha: 2.0}  # on cremad, where the window stays [0, 0.6]

Options of the command line come over both. ``run_on`` does the same for the sections ``run``, ``optimizer`` and
``schedule``, where a paper has other settings on one dataset::

    run_on:
      ucf101: {optimizer: {lr: 0.001}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balancebench_udi.config import Options, option
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.spec import Optimizer, Schedule
from balancebench_udi.text import escape_controls, found, shortened
from balancebench_udi.yaml_files import absent, read_yaml

PUBLISHED = ("label", "accuracy", "source", "protocol")
"""What a published row has."""

MOST = 1_000_000
"""Epochs of a phase, samples in a batch."""


@dataclass(frozen=True)
class RunOptions(Options):
    """The numbers of a run that belong to no part in particular."""

    epochs: int = option(100, "epochs of a training phase", source="OGM-GE, PMR code", at_least=1, at_most=MOST)
    batch_size: int = option(
        64, "training samples in a batch", source="OGM-GE, PMR, MMPareto code", at_least=2, at_most=MOST
    )
    fusion: str = option("concat", "name of the fusion", source="OGM-GE code")
    precision: str = option(
        "fp32",
        "arithmetic of the encoders; auto: bf16 where the device computes in it, else fp32, recorded as what it was",
        source="ours",
        choices=("fp32", "bf16", "auto"),
    )
    test_each_epoch: bool = option(False, "evaluate test every epoch, for the reading best_test", source="ours")


@dataclass(frozen=True)
class Protocol:
    """A protocol file with every default filled in.

    Attributes:
        name, version, about: as in the file; the name is the file's, with a ``+`` where the caller changed the preset
            in anything but precision, which is told beside it.
        run, optimizer, schedule: see :class:`RunOptions`, :class:`~spec.Optimizer`, :class:`~spec.Schedule`.
        encoders: modality -> {"name": ..., options}; modalities not named get their dataset's default.
        datasets, methods: name -> options that this protocol sets.
        methods_on: dataset -> method -> options that it sets on this dataset alone, over those of ``methods``.
        run_on: dataset -> section -> options that it sets on this dataset alone; already in ``run``, ``optimizer`` and
            ``schedule`` where the protocol was loaded for that dataset.
        published: rows shown beside ours: label, accuracy in percent, source, protocol; never part of a mean.
    """

    name: str
    version: int
    about: str
    run: RunOptions = field(default_factory=RunOptions)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    datasets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods_on: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    run_on: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    published: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    def options_on(self, dataset: str) -> dict[str, dict[str, Any]]:
        """Method -> options that this protocol sets for it on ``dataset``."""
        here = self.methods_on.get(dataset, {})
        return {m: {**self.methods.get(m, {}), **here.get(m, {})} for m in (*self.methods, *here)}


OPTIONS = (dict, "options with values")
PARTS: dict[str, type[Options]] = {"run": RunOptions, "optimizer": Optimizer, "schedule": Schedule}
"""Section of options that every run has -> what it holds."""
OWNED: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("encoders", "datasets", "methods"), OPTIONS),
    "methods_on": (dict, "methods with options"),
    "run_on": (dict, "sections with options"),
    "published": (list, "a list of rows"),
}
"""Section of names -> what each of them must hold."""
SECTIONS = ("version", "about", "run", "optimizer", "schedule", *OWNED)


def load_protocol(
    name: str, folder: Path, overrides: Mapping[str, Mapping[str, Any]], dataset: str | None = None
) -> Protocol:
    """Protocol ``name`` of ``folder`` (or a path to a YAML file), with single options replaced.

    Args:
        dataset: the one that runs are planned on, whose ``run_on`` counts; None: of no dataset in particular.
        overrides: section (``run``, ``optimizer``, ``schedule``) -> {option: value}.

    Raises:
        UserError: no such protocol (with near misses), damaged YAML, an unknown section or option.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if absent(path):
        known = [p.stem for p in folder.glob("*.yaml")]
        raise UserError(f"there is no protocol called {found(name)}{near_misses(name, known)}")
    values = read_yaml(path, "a protocol")
    if escape_controls(path.stem) != path.stem:
        raise UserError(f"the name of a protocol must be of printable characters, found {found(path.stem)}: rename it")
    _check_sections(path, values)
    here = (values.get("run_on") or {}).get(dataset, {})

    def parts(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {
            s: c.build(s, {**(values.get(s) or {}), **here.get(s, {}), **changes.get(s, {})}) for s, c in PARTS.items()
        }

    wanted = parts(overrides)
    rest: dict[str, Any] = {s: values.get(s) or {} for s in OWNED}
    return Protocol(
        name=path.stem if _named(wanted) == _named(parts({})) else f"{path.stem}+",
        version=values.get("version", 1),
        about=values.get("about") or "",
        **wanted,
        **rest,
    )


def _check_sections(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse unknown sections, and what none of a protocol's readers could use."""
    for section, given in values.items():
        if section not in SECTIONS:
            raise UserError(f"{path} has no section {found(section)}{near_misses(section, SECTIONS)}")
        if section not in ("version", "about") and not isinstance(given, dict | None):
            raise UserError(f"section {section!r} of {path} must hold names with values, found {found(given)}")
    version, about = values.get("version", 1), values.get("about")
    if type(version) is not int:
        raise UserError(f"the version of {path} must be a whole number, found {found(version)}")
    if not isinstance(about, str | None):
        raise UserError(f"about of {path} must be a text, found {found(about)}: put it in quotes")
    for section, holds in OWNED.items():
        for owner, given in (values.get(section) or {}).items():
            where = f"{section}.{owner} of {path}"
            _check_kind(where, given, *holds)
            if section == "methods_on":
                for method, options in given.items():
                    _check_kind(f"{section}.{owner}.{method} of {path}", options, *OPTIONS)
            if section == "run_on":
                for part, options in given.items():
                    if part not in PARTS:
                        raise UserError(f"{where} has no section {found(part)}{near_misses(part, PARTS)}")
                    _check_kind(f"{section}.{owner}.{part} of {path}", options, *OPTIONS)
                    PARTS[part].build(f"{section}.{owner}.{part}", {**(values.get(part) or {}), **options})
            if section == "encoders" and not isinstance(given.get("name", ""), str):
                raise UserError(f"the name in {where} must be that of an encoder, found {found(given['name'])}")
            if section == "published":
                for row in given:
                    check_published(row, f" in {where}")


def check_published(row: Any, where: str = "") -> None:
    """Refuse a published row that no table can show.

    Args:
        row: what should be a mapping of ``label``, ``accuracy`` (in percent, or None), ``source`` and ``protocol``.
        where: where it stands, for a sentence.

    Raises:
        UserError: it is not.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"a published row{where} must have {', '.join(PUBLISHED)}, found {found(row)}")
    for name in PUBLISHED:
        if name not in row:
            raise UserError(
                f"a published row{where} must have label, accuracy, source and protocol, found no {name}: {found(row)}"
            )
        if name != "accuracy" and not isinstance(row[name], str):
            raise UserError(f"{name} of a published row{where} must be a text, found {found(row[name])}: use quotes")
    value = row["accuracy"]
    if value is not None and (type(value) not in (int, float) or not 0 <= value <= 100):
        raise UserError(
            f"a published accuracy{where} must be in percent, 0 to 100, found {found(value)} for "
            f"{shortened(row['label'], 60)}"
        )


def _check_kind(owner: str, given: Any, kind: type, what: str) -> None:
    if not isinstance(given, kind):
        raise UserError(f"{owner} must hold {what}, found {found(given)}")


def _named(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What a protocol's name stands for: evaluating test more often changes nothing, precision is told beside it."""
    return {**parts, "run": dataclasses.replace(parts["run"], test_each_epoch=False, precision="auto")}


def check_names(protocol: Protocol, methods: Collection[str], datasets: Collection[str]) -> None:
    """Refuse a protocol that names a method or a dataset that is not here: its options would be passed over in silence.

    Args:
        methods, datasets: the names that are here.

    Raises:
        UserError: such a name, with near misses.
    """
    asked = [("datasets", "dataset", name) for name in protocol.datasets]
    asked += [("run_on", "dataset", name) for name in protocol.run_on]
    asked += [("methods", "method", name) for name in protocol.methods]
    for dataset, given in protocol.methods_on.items():
        asked += [("methods_on", "dataset", dataset)]
        asked += [(f"methods_on.{dataset}", "method", name) for name in given]
    for section, kind, name in asked:
        known = datasets if kind == "dataset" else methods
        if name not in known:
            raise UserError(
                f"a {kind} in {section} of protocol {protocol.name} must be one that is here, found {found(name)}"
                f"{near_misses(name, known)}"
            )
