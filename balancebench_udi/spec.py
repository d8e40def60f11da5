"""What a run is: every choice that can move a number, and the key made of them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from balancebench_udi.config import Options, option
from balancebench_udi.errors import UserError


@dataclass(frozen=True)
class Optimizer(Options):
    """The optimiser of every phase of every method, so that methods differ in their rule only."""

    name: str = option("sgd", "kind of optimiser", source="OGM-GE, PMR, MMPareto code", choices=("sgd", "adamw"))
    lr: float = option(1e-3, "learning rate at the start of a phase", source="OGM-GE, PMR code", above=0)
    momentum: float = option(0.9, "momentum of SGD", source="OGM-GE, PMR code", at_least=0, at_most=1)
    weight_decay: float = option(1e-4, "weight decay", source="OGM-GE, PMR code", at_least=0)


@dataclass(frozen=True)
class Schedule(Options):
    """Learning-rate factor as a function of the optimiser's own progress (epochs done / epochs of the phase)."""

    name: str = option(
        "step",
        "shape: step drops once, steps at every multiple of the same progress",
        source="OGM-GE, PMR code",
        choices=("constant", "step", "steps", "cosine"),
    )
    at: float = option(
        0.7, "progress at which step and steps drop", source="OGM-GE: epoch 70 of 100", at_least=0, at_most=1
    )
    factor: float = option(0.1, "what a drop multiplies by", source="OGM-GE code", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "steps" and self.at == 0:
            raise UserError("at must be > 0 for the schedule steps, found 0")


@dataclass(frozen=True)
class RunSpec:
    """One run, completely: two runs with the same key are the same run.

    Mappings hold JSON types with every default filled in. Paths, device and worker counts are not here: they are
    recorded beside the key.
    """

    protocol: str
    protocol_version: int
    dataset: str
    dataset_version: int
    dataset_options: Mapping[str, Any]
    fingerprint: str
    method: str
    method_version: int
    method_options: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]
    fusion: str
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    epochs: int
    batch_size: int
    precision: str
    seed: int
    test_each_epoch: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSpec:
        """The inverse of :meth:`as_dict`."""
        return cls(**values)

    @property
    def key(self) -> str:
        """12 hex digits of SHA-256 of the canonical JSON."""
        return _digest(self.as_dict())

    @property
    def cell(self) -> str:
        """The key of everything but the seed: records of one cell may be averaged."""
        values = self.as_dict()
        del values["seed"]
        return _digest(values)

    def stage_key(self, label: str) -> str:
        """The key of a training phase that is the same in several methods.

        It covers everything except which method asked for it; ``label`` names the phase's own rule and outcome.
        """
        values = self.as_dict()
        for name in ("method", "method_version", "method_options", "fusion", "protocol", "protocol_version"):
            del values[name]
        return _digest({**values, "stage": label})

    def difference(self, other: RunSpec) -> dict[str, tuple[Any, Any]]:
        """Fields in which two runs differ, with both values."""
        mine, theirs = self.as_dict(), other.as_dict()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def keys_of(values: Mapping[str, Any]) -> tuple[str, str]:
    """Key and cell of the run that a specification describes, as a record holds it.

    Raises:
        TypeError: fields that a run does not have, or has not.
    """
    if values.keys() != FIELDS:
        values = RunSpec.from_dict(values).as_dict()
    others = orjson.dumps({name: value for name, value in values.items() if name != "seed"})
    before, after, cell = _around_seed(others)
    return _sha(f"{before}{canonical(values['seed'])}{after}"), cell


@functools.lru_cache(maxsize=4096)
def _around_seed(others: bytes) -> tuple[str, str, str]:
    """The canonical JSON of a specification before and after its seed's value, and its cell."""
    values = orjson.loads(others)
    before = canonical({name: value for name, value in values.items() if name < "seed"})[:-1]
    after = canonical({name: value for name, value in values.items() if name > "seed"})[1:]
    return f'{before},"seed":', f",{after}", _sha(f"{before},{after}")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinity refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(value: Any) -> str:
    return _sha(canonical(value))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


FIELDS = {field.name for field in dataclasses.fields(RunSpec)}
