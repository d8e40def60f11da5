"""Tables as YAML: which methods by which data, and the runs that each of their cells wants."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import registry
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.nets.encoders import ENCODERS, encoder_options
from balancebench_udi.nets.fusion import FUSIONS, check_fusion
from balancebench_udi.protocol import MOST, Protocol, check_names, load_protocol
from balancebench_udi.report.comparison import RULES
from balancebench_udi.report.published import load_published
from balancebench_udi.report.tidy import COSTS, DERIVED, SCORES
from balancebench_udi.text import found
from balancebench_udi.yaml_files import absent, read_yaml
from benchmarks.command import PROTOCOLS, PUBLISHED, parse_settings
from benchmarks.run import parse_seeds, parser, run_overrides

TABLES = Path(__file__).resolve().parent / "tables"
FORMER = TABLES.parent / "former.yaml"
VALUES = tuple(name for name in (*SCORES, *DERIVED, *COSTS) if name not in ("device_type", "device", "torch", "commit"))
"""What a table can show; a name that ends in ``/`` stands for all that begin with it."""


@dataclass(frozen=True)
class Column:
    """Data under a protocol.

    Attributes:
        name: as printed.
        dataset: its name in the registry; one that is only published or in the table's ``elsewhere`` stays empty.
        protocol: a preset of ``benchmarks/protocols``, or a YAML file.
        set: what ``--set`` of ``run.py`` takes, such as ``cgmnist.train_size: 4000`` or ``optimizer.lr: 0.01``.
        epochs, fusion, precision: instead of the protocol's.
        encoders: modality -> ``{name: ..., options}``, instead of the protocol's.
    """

    name: str
    dataset: str
    protocol: str
    set: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    fusion: str | None = None
    precision: str | None = None
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A method and its options.

    Attributes:
        name: as printed.
        method: its name in the registry; one that is only published or in the table's ``elsewhere`` stays empty.
        set: its options; an entry whose value is a mapping is that of one dataset (``cgmnist: {anchor: gray}``), and a
            row with such entries exists on these datasets only.
        epochs: a number, or a multiple of the column's, such as ``2x``.
        fusion: instead of the column's.
        version: of the method, where runs of a former one are shown; ``benchmarks/former.yaml`` has its options.
        note: what there is to say about it.
    """

    name: str
    method: str
    set: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | str | None = None
    fusion: str | None = None
    version: int | None = None
    note: str = ""

    @property
    def former(self) -> bool:
        """Whether its runs are of a version that can be shown and no longer be trained."""
        return self.version is not None and self.version != registry.methods.get(self.method).version

    @property
    def plain(self) -> bool:
        """Whether it is the method as the protocol has it, which published numbers can stand beside."""
        return not self.set and self.epochs is None and not self.former

    @property
    def about(self) -> str:
        """What it is, in a sentence; empty for the method as it is."""
        parts = [] if self.fusion is None else [f"fusion {self.fusion}"]
        parts += [] if self.epochs is None else [f"{self.epochs} epochs"]
        for name, value in self.set.items():
            if isinstance(value, Mapping):
                parts.append(f"{', '.join(f'{k} {_text(v)}' for k, v in value.items())} on {name}")
            else:
                parts.append(f"{name} {_text(value)}")
        name = f"{self.method}, version {self.version}," if self.former else self.method
        made = f"{name} with {'; '.join(parts)}." if parts else f"{name.rstrip(',')}." if self.former else ""
        return " ".join(filter(None, [made, self.note]))


@dataclass(frozen=True)
class Table:
    """One YAML file; see :class:`Row` and :class:`Column`.

    Attributes:
        name: that of the file.
        title: in one line.
        rows, columns: at least one of each.
        about: what it is for, in a sentence or two.
        seeds: such as ``0-4``.
        select: the reading: ``last``, ``best_val`` or ``best_test``.
        values: scores that every column shows, or patterns of them.
        published: groups of ``benchmarks/published.yaml`` to stand beside.
        elsewhere: methods and datasets that are not implemented here, as far as ``benchmarks/published.yaml`` does not
            have them.
        caption: sentences that belong to it.
    """

    name: str
    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    about: str = ""
    seeds: str = "0-4"
    select: str = "best_val"
    values: Sequence[str] = ("accuracy",)
    published: Sequence[str] = ()
    elsewhere: Sequence[str] = ()
    caption: Sequence[str] = ()


@dataclass(frozen=True)
class Wanted:
    """The runs of one cell.

    Attributes:
        spec: what their specifications hold, seed, fingerprint, default encoders and automatic precision apart.
        encoders: modality -> description as far as it is given.
        protocol: that of the cell, every default filled in.
    """

    spec: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]
    protocol: Protocol

    def has(self, spec: Mapping[str, Any]) -> bool:
        """Whether a run is one of them, whatever its seed."""
        return all(spec.get(name, False) == value for name, value in self.spec.items()) and all(
            m in spec["encoders"] and _same_encoder(spec["encoders"][m], given) for m, given in self.encoders.items()
        )


def load_table(name: str) -> Table:
    """Table ``name`` of ``benchmarks/tables``, or a path to a YAML file.

    Raises:
        UserError: no such table (with near misses), damaged YAML, an unknown or absent key, a value of the wrong kind,
            a method, a dataset or a value that is not known.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else TABLES / f"{name}.yaml"
    if absent(path):
        raise UserError(f"there is no table called {found(name)}{near_misses(name, table_names())}")
    given = _keys(read_yaml(path, "a table"), Table, path.name, "name")
    parts = {
        "rows": [_part(Row, one, f"a row of {path.name}") for one in given["rows"]],
        "columns": [_part(Column, one, f"a column of {path.name}") for one in given["columns"]],
    }
    for kind, members in parts.items():
        names = [member.name for member in members]
        twice = [n for n in names if names.count(n) > 1]
        if twice or not names:
            seen = f"found {found(twice[0])} twice" if twice else "found none"
            raise UserError(f"the {kind} of {path.name} must be one or more with names of their own, {seen}: mend it")
    if given.get("select", "best_val") not in RULES:
        raise UserError(f"select of {path.name} must be one of {', '.join(RULES)}, found {found(given['select'])}")
    table = Table(**{"name": path.stem, **given, **parts, "seeds": str(given.get("seeds", "0-4"))})
    parse_seeds(table.seeds)
    _check_names(table, path.name)
    _check_values(table, path.name)
    return table


def _check_names(table: Table, where: str) -> None:
    """Refuse a method or a dataset that is neither implemented nor told to be elsewhere."""
    here: dict[str, list[str]] = {"method": registry.methods.names(), "dataset": registry.datasets.names()}
    for row in table.rows:
        for name in {*here["dataset"], *(column.dataset for column in table.columns)} & set(row.set):
            if not isinstance(row.set[name], Mapping):
                raise UserError(
                    f"{name} in set of {found(row.name)}, a row of {where}, must hold the options on that dataset, "
                    f"found {found(row.set[name])}"
                )
    asked = [("method", row.method, f"{row.name!r}, a row") for row in table.rows]
    asked += [("dataset", column.dataset, f"{column.name!r}, a column") for column in table.columns]
    asked += [
        ("dataset", name, f"the options of {row.name!r}, a row")
        for row in table.rows
        for name, value in row.set.items()
        if isinstance(value, Mapping)
    ]
    unknown = [one for one in asked if one[1] not in here[one[0]] and one[1] not in table.elsewhere]
    claims = load_published(PUBLISHED) if unknown else []
    for kind, name, owner in unknown:
        told = {claim.method if kind == "method" else claim.dataset for claim in claims}
        if name not in told:
            raise UserError(
                f"{kind} of {owner} of {where}, must be implemented, published or listed under elsewhere, "
                f"found {found(name)}{near_misses(name, here[kind])}"
            )


def _check_values(table: Table, where: str) -> None:
    """Refuse a value that no run could have."""
    for value in table.values:
        kind, slash, rest = value.partition("/")
        if "*" in kind:
            right = any(fnmatch.fnmatchcase(name.rstrip("/"), kind) for name in VALUES)
        else:
            right = f"{kind}/" in VALUES and bool(rest) if slash else kind in VALUES
        if not right:
            names = [f"{name}*" if name.endswith("/") else name for name in VALUES]
            raise UserError(
                f"a value of {where} must be one that runs have, found {found(value)}{near_misses(value, names)}"
            )


def table_names() -> list[str]:
    """The tables of this checkout."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("rows", "columns", "values", "published", "elsewhere", "caption"), (list, "a list")),
    **dict.fromkeys(("set", "encoders"), (dict, "names with values")),
    **dict.fromkeys(("name", "title", "about", "select", "dataset", "protocol", "method", "note"), (str, "text")),
    **dict.fromkeys(("fusion", "precision"), (str, "a name")),
    "seeds": (str | int, "whole numbers and ranges such as 0-4"),
    "version": (int, "a whole number"),
}
"""What a key of a table, a row or a column must hold."""
TEXTS = ("values", "published", "elsewhere", "caption")
"""Lists that hold texts only."""


def _keys(values: Any, cls: type, where: str, *derived: str) -> dict[str, Any]:
    """``values`` as the fields of ``cls``, ``derived`` ones apart: no key unknown, none of those it needs absent.

    Names and titles come on one line.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold names with values, found {found(values)}")
    fields = [f for f in dataclasses.fields(cls) if f.name not in derived]
    known = [f.name for f in fields]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where} has no key {found(key)}{near_misses(key, known)}")
        kind, words = KINDS.get(key, (object, ""))
        if not isinstance(value, kind):
            raise UserError(f"{key} of {where} must be {words}, found {found(value)}")
        for one in value if key in TEXTS else ():
            if not isinstance(one, str):
                raise UserError(f"{key} of {where} must be a list of texts, found {found(one)}: put it in quotes")
        if key in ("name", "title") and not value.strip():
            raise UserError(f"{key} of {where} must be a text, found {found(value)}: write one")
    for f in fields:
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and f.name not in values:
            raise UserError(f"{where} must have the key {f.name!r}, found {', '.join(values) or 'none'}")
    return {k: " ".join(v.split()) if k in ("name", "title") else v for k, v in values.items()}


def _part(cls: type, values: Any, where: str) -> Any:
    """A row or a column."""
    made = cls(**_keys(values, cls, where))
    where = f"{found(made.name)}, {where}"
    epochs = made.epochs
    if isinstance(epochs, str):
        _factor(epochs, where)
    elif epochs is not None and (type(epochs) is not int or epochs < 1):
        raise UserError(
            f"epochs of {where}, must be a whole number >= 1 or a multiple such as 2x, found {found(epochs)}"
        )
    if made.fusion is not None and made.fusion not in FUSIONS:
        raise UserError(
            f"fusion of {where}, must name one, found {found(made.fusion)}{near_misses(made.fusion, FUSIONS)}"
        )
    for m, encoder in getattr(made, "encoders", {}).items():
        if not isinstance(encoder, dict) or encoder.get("name") not in [*ENCODERS]:  # a list: the name may be anything
            raise UserError(f"encoder {m} of {where}, must name one of {', '.join(ENCODERS)}, found {found(encoder)}")
    return made


def _factor(epochs: str, where: str) -> float:
    """``"2x"`` as 2."""
    told = re.fullmatch(r"([0-9]*\.?[0-9]+)x", epochs)
    factor = float(told[1]) if told else 0.0
    if not 0 < factor < math.inf:
        raise UserError(f"epochs of {where}, must be a whole number or a multiple such as 2x, found {found(epochs)}")
    return factor


def applies(row: Row, column: Column) -> bool:
    """Whether the row exists on the column's dataset."""
    datasets = [name for name, value in row.set.items() if isinstance(value, Mapping)]
    return not datasets or column.dataset in datasets


def known(row: Row, column: Column) -> bool:
    """Whether both the method and the dataset are registered."""
    return row.method in registry.methods.names() and column.dataset in registry.datasets.names()


def namespace(column: Column, rows: Sequence[Row], select: str, **more: Any) -> argparse.Namespace:
    """The command line of ``run.py`` that trains ``rows`` (of one fusion and number of epochs) on the column.

    Args:
        more: other arguments of ``run.py``, such as ``seeds="0-4"``; None leaves its default.
    """
    given = {"dataset": column.dataset, "protocol": column.protocol, "select": select, **more}
    given |= {"methods": ",".join(row.method for row in rows), "fusion": rows[0].fusion or column.fusion}
    given |= {"epochs": epochs(rows[0], column), "precision": more.get("precision") or column.precision}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    settings = [f"{name}={_text(value)}" for name, value in column.set.items()]
    settings += [f"encoder.{m}.{k}={_text(v)}" for m, one in column.encoders.items() for k, v in one.items()]
    for row in rows:
        settings += [f"{row.method}.{name}={_text(value)}" for name, value in options(row, column).items()]
    each = ["--test-each-epoch"] if select == "best_test" else []
    return parser().parse_args([*words, *each, *(f"--set={text}" for text in settings)])


def options(row: Row, column: Column) -> dict[str, Any]:
    """The options that the row sets on the column's dataset."""
    common = {name: value for name, value in row.set.items() if not isinstance(value, Mapping)}
    return {**common, **row.set.get(column.dataset, {})}


def epochs(row: Row, column: Column) -> int | None:
    """Epochs of a phase, where they are not the protocol's."""
    if not isinstance(row.epochs, str):
        return row.epochs or column.epochs
    base = column.epochs or load_protocol(column.protocol, PROTOCOLS, {}, column.dataset).run.epochs
    return max(1, round(min(base * _factor(row.epochs, found(row.name)), MOST + 1)))


def wanted(row: Row, column: Column, select: str) -> Wanted:
    """The runs of one cell, as ``run.py`` would plan them, without reading any data.

    Raises:
        UserError: an option, a protocol or a name that ``run.py`` would refuse.
    """
    given = namespace(column, [dataclasses.replace(row, set={}) if row.former else row], select)
    settings = parse_settings(given.set, [row.method, column.dataset])
    protocol = load_protocol(given.protocol, PROTOCOLS, run_overrides(given, settings), column.dataset)
    check_names(protocol, registry.methods.names(), registry.datasets.names())
    method, data = registry.methods.get(row.method), registry.datasets.get(column.dataset)
    preset = protocol.options_on(column.dataset)
    chosen, options_of_data = (
        cls.Options.build(name, {**where.get(name, {}), **settings.get(name, {})})
        for cls, name, where in ((method, row.method, preset), (data, column.dataset, protocol.datasets))
    )
    dataset = data(options_of_data)
    if column.encoders and not protocol.name.endswith("+"):
        protocol = dataclasses.replace(protocol, name=f"{protocol.name}+")
    run = dataclasses.asdict(protocol.run)
    if run["precision"] == "auto":
        del run["precision"]
    spec = {
        "protocol": protocol.name,
        "protocol_version": protocol.version,
        "dataset": column.dataset,
        "dataset_version": dataset.version,
        "dataset_options": dataset.options.as_dict(),
        "method": row.method,
        "method_version": row.version if row.former else method.version,
        "method_options": _former_options(row, column) if row.former else chosen.as_dict(),
        "optimizer": protocol.optimizer.as_dict(),
        "schedule": protocol.schedule.as_dict(),
        **run,
    }
    return Wanted(spec, _encoders(protocol, column), protocol)


def _former_options(row: Row, column: Column) -> dict[str, Any]:
    """Every option of a former version of the row's method.

    Raises:
        UserError: a version that no record is of, or an option that it had not.
    """
    versions = read_yaml(FORMER, "options of former versions").get(row.method, {})
    had, given = versions.get(str(row.version)), options(row, column)
    if had is None:
        known = ", ".join(map(str, [*versions, registry.methods.get(row.method).version]))
        raise UserError(f"version of {row.name!r}, a row, must be one of {known} of {row.method}, found {row.version}")
    for name in given:
        if name not in had:
            raise UserError(f"{row.method}, version {row.version}, had no option {name!r}{near_misses(name, had)}")
    return {**had, **given}


def check_modalities(row: Row, column: Column, runs: Wanted, modalities: Sequence[str]) -> None:
    """Refuse what ``run.py`` would refuse on a dataset of these modalities.

    Raises:
        UserError: an encoder of a modality that is not there, a fusion or an option that cannot be.
    """
    for m in column.encoders:
        if m not in modalities:
            raise UserError(
                f"{column.dataset} of {column.name!r}, a column, has no modality {m!r}{near_misses(m, modalities)}"
            )
    if row.former:
        return
    method = registry.methods.get(row.method)
    chosen = method.Options.build(row.method, dict(runs.spec["method_options"]))
    try:
        method.check(chosen, list(modalities), check_fusion(runs.spec["fusion"], len(modalities)).additive)
    except UserError as error:
        raise UserError(f"{row.name!r}, a row, on {column.dataset}: {error}") from None


def _encoders(protocol: Protocol, column: Column) -> dict[str, dict[str, Any]]:
    """The encoders that are given; options of a protocol's encoder hold for another one no more."""
    given = {m: dict(one) for m, one in protocol.encoders.items()}
    for m, one in column.encoders.items():
        kept = given.get(m, {})
        given[m] = {**(kept if kept.get("name", one["name"]) == one["name"] else {}), **one}
    return given


def _same_encoder(found: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether the description ``found`` is that of ``given``, with every default filled in."""
    name, rest = given.get("name", found["name"]), {k: v for k, v in given.items() if k != "name"}
    return found["name"] == name and dict(found) == encoder_options(name, ENCODERS[name].kinds[0], rest)


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that one call of ``run.py`` can train: of the same epochs and fusion, no method twice."""
    found: list[list[Row]] = []
    for row in rows:
        for group in found:
            alike = (group[0].epochs, group[0].fusion) == (row.epochs, row.fusion)
            if alike and row.method not in [other.method for other in group]:
                group.append(row)
                break
        else:
            found.append([row])
    return found


def _text(value: Any) -> str:
    """A value of YAML as ``--set`` reads it."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
