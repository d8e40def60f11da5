"""Records as one tidy table, for people with notebooks of their own: one row a run and reading, one column a number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.balance import bayes_distance, complementarity, probe_gap, sample_shapley, utilisation
from balancebench_udi.metrics.predictions import unpack
from balancebench_udi.report.budget import passes
from balancebench_udi.report.comparison import FREE, RULES
from balancebench_udi.spec import canonical

IDENTITY = (
    *("key", "cell", "dataset", "dataset_version", "dataset_options", "fingerprint", "modalities"),
    *("protocol", "protocol_version", "method", "method_version", "method_options", "encoders", "fusion"),
    *("optimizer", "schedule", "lr", "epochs", "batch_size", "precision", "test_each_epoch", "seed"),
    *("reading", "reading_epochs"),
)
SCORES = (
    *("accuracy", "macro_f1", "loss", "ece", "top5", "share/", "masked/", "alone/", "probe/", "shapley/"),
    *("imbalance", "imbalance_relative", "discrepancy/", "cka/"),
)
"""The test scores in the order of their columns; a name that ends in ``/`` stands for all that begin with it."""
DERIVED = ("val_accuracy", "val_loss", "utilisation/", "complementarity/", "bayes_distance/", "probe_gap/")
COSTS = (
    *("parameters", "flops_per_sample", "passes_forward", "passes_backward", "passes", "flops"),
    *("seconds", "cpu_seconds", "wall_seconds", "peak_memory_bytes"),
    *("device_type", "device", "threads", "torch", "commit"),
)
ORDER = ("dataset", "protocol", "protocol_version", "method", "cell", "seed", "key")
"""By what the rows are sorted; the readings of a run stay in the order last, best_val, best_test."""
SAMPLE = (
    *("key", "cell", "dataset", "fingerprint", "protocol", "method", "seed", "reading"),
    *("sample", "target", "prediction", "right"),
)
"""The columns of :func:`samples`, before the contributions."""


Alone = Mapping[tuple[str, str], Mapping[str, float]]
"""Of :func:`trained_alone`: what is the same about two runs, reading -> test scores."""


def trained_alone(records: Iterable[Mapping[str, Any]], methods: Sequence[str]) -> Alone:
    """The test scores of runs that train every modality alone, to be found by the runs of other methods beside them.

    Args:
        records: in any order; those of other methods are passed over.
        methods: those that train every modality alone, in order of preference. Of one that has several versions beside
            a run the latest counts, of several sets of options the first in canonical order.
    """
    found: dict[tuple[str, str], tuple[Any, Mapping[str, float]]] = {}
    for record in records:
        spec = record["spec"]
        if spec["method"] not in methods:
            continue
        rank = (methods.index(spec["method"]), -spec["method_version"], canonical(spec["method_options"]))
        for name, reading in record["result"]["readings"].items():
            place = (_beside(spec), name)
            if place not in found or rank < found[place][0]:
                found[place] = (rank, reading["test"])
    return {place: test for place, (_, test) in found.items()}


def _beside(spec: Mapping[str, Any]) -> str:
    """What two runs have in common that may be compared one by one: all but the method, the seed included."""
    return canonical({name: value for name, value in spec.items() if name not in FREE} | {"seed": spec["seed"]})


def rows(record: Mapping[str, Any], select: str | None = None, alone: Alone | None = None) -> list[dict[str, Any]]:
    """One row for every reading of a run.

    A row holds, in this order:

    - the specification, with mappings as canonical JSON; ``lr`` is the learning rate at the start of a phase;
    - ``reading``, and ``reading_epochs``: the epoch that was read of every phase, as a JSON list;
    - every test score under the name that the record gives it: accuracies in [0, 1], ``loss`` in nats;
    - ``val_accuracy`` and ``val_loss``, and from the test split ``utilisation/m``, ``complementarity/...`` and, where
      the best possible accuracies are known, ``bayes_distance/...`` (:mod:`balancebench_udi.metrics.balance`), and
      ``probe_gap/m`` where ``alone`` has a run of the same data, protocol, seed and reading;
    - costs: ``parameters``; ``flops_per_sample`` of one forward pass through all encoders; ``passes_forward`` and
      ``passes_backward`` (samples through the encoders, summed over them), ``passes`` (forward + 2 x backward) and
      ``flops`` of all of them; ``seconds`` and ``cpu_seconds`` of training, all as if the run had been made alone;
      ``wall_seconds`` with evaluation and preparation, of all processes that an interrupted run took, up to the
      checkpoints from which it went on; ``peak_memory_bytes`` while the run was made, allocated on a GPU or resident on
      a CPU, none where only that of a process with several runs was recorded; the machine.

    Args:
        record: as :func:`balancebench_udi.store.read_record` returns it.
        select: ``last``, ``best_val`` or ``best_test``: this reading only, and no row where the run does not have it;
            None: all that it has.
        alone: the modalities trained alone, of :func:`trained_alone`.

    Raises:
        UserError: an unknown reading.
    """
    result, identity, spent = record["result"], _identity(record), costs(record)
    target = unpack(result["test_target"])
    made = []
    for name, reading in _readings(record, select).items():
        bayes = record.get("data", {}).get("facts", {}).get("bayes_accuracy")
        derived = _derived(reading, target, result["modalities"], bayes)
        if alone:
            gaps = probe_gap(alone.get((_beside(record["spec"]), name), {}), reading["test"], result["modalities"])
            derived |= {f"probe_gap/{m}": value for m, value in gaps.items()}
        epochs = canonical(reading["epochs"])
        made.append({**identity, "reading": name, "reading_epochs": epochs, **reading["test"], **derived, **spent})
    return made


def frame(records: Iterable[Mapping[str, Any]], select: str | None = None, alone: Alone | None = None) -> pd.DataFrame:
    """The :func:`rows` of many records, NaN where a run lacks a score.

    Records are taken one at a time. Rows and columns are sorted, so that the order of the records leaves no trace.

    Args:
        records: for example :meth:`balancebench_udi.store.Store.records`.
        select: see :func:`rows`.
        alone: see :func:`rows`.

    Raises:
        UserError: an unknown reading; a file that is not a record.
    """
    table = pd.DataFrame([row for record in records for row in rows(record, select, alone)])
    if table.empty:
        return pd.DataFrame(columns=[*IDENTITY, *COSTS])
    table = table.sort_values(list(ORDER), kind="stable", ignore_index=True)
    return table[sorted(table.columns, key=_place)]


def samples(record: Mapping[str, Any], select: str | None = None) -> pd.DataFrame:
    """One row for every test sample and reading of a run.

    Columns: what names the run and the reading; ``sample``, counted from 0 in the order of the test split, the same in
    all runs with the same ``fingerprint``; ``target`` and ``prediction``, names of classes; ``right``; and
    ``shapley/m``, what modality m contributes to the sample's being right
    (:func:`balancebench_udi.metrics.balance.sample_shapley`).

    Args:
        record: as :func:`balancebench_udi.store.read_record` returns it.
        select: see :func:`rows`.

    Raises:
        UserError: an unknown reading.
    """
    result, classes = record["result"], np.array(record["data"]["classes"], dtype=object)
    target = unpack(result["test_target"])
    parts = []
    for name, reading in _readings(record, select).items():
        predicted = _Unpacked(reading["predictions"])
        fused = predicted["fused"]
        told = {"key": record["key"], "cell": record["cell"], **record["spec"], "reading": name}
        told |= {"sample": np.arange(len(target)), "target": classes[target], "prediction": classes[fused]}
        told |= {"right": (fused == target).numpy()}
        gained = sample_shapley(predicted, target, result["modalities"])
        contributions = {f"shapley/{m}": value.numpy() for m, value in gained.items()}
        parts.append(pd.DataFrame({**{name: told[name] for name in SAMPLE}, **contributions}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _readings(record: Mapping[str, Any], select: str | None) -> dict[str, Any]:
    """The readings asked for, as far as the run has them, in the order of ``RULES``."""
    if select is not None and select not in RULES:
        raise UserError(f"select must be one of {', '.join(RULES)}, found {select!r}")
    readings = record["result"]["readings"]
    return {name: readings[name] for name in RULES if name in readings and select in (None, name)}


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    spec = record["spec"]
    values = {name: canonical(value) if isinstance(value, Mapping) else value for name, value in spec.items()}
    values |= {"key": record["key"], "cell": record["cell"], "lr": spec["optimizer"]["lr"]}
    return {**values, "modalities": canonical(record["result"]["modalities"])}


def _derived(
    reading: Mapping[str, Any], target: Tensor, modalities: list[str], bayes: Mapping[str, float] | None
) -> dict[str, float]:
    known = utilisation(reading["test"], modalities)
    below = bayes_distance(reading["test"], bayes, modalities) if bayes else {}
    knew = complementarity(_Unpacked(reading["predictions"]), target, modalities)
    return {
        "val_accuracy": reading["val"]["accuracy"],
        "val_loss": reading["val"]["loss"],
        **{f"utilisation/{m}": value for m, value in known.items()},
        **{f"complementarity/{case}": value for case, value in knew.items()},
        **{f"bayes_distance/{who}": value for who, value in below.items()},
    }


class _Unpacked(Mapping[str, Tensor]):
    """Predictions as classes ``[N]``, unpacked when they are asked for: most read-outs never are."""

    def __init__(self, packed: Mapping[str, str]) -> None:
        self.packed = packed

    def __getitem__(self, name: str) -> Tensor:
        return unpack(self.packed[name])

    def __contains__(self, name: object) -> bool:
        return name in self.packed

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)


def costs(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run took, as in :func:`rows`, and on what machine."""
    result, cost, machine = record["result"], record["cost"], record["machine"]
    return {
        "parameters": result["parameters"],
        "flops_per_sample": sum(cost["flops_per_sample"].values()),
        "passes_forward": sum(result["passes"]["forward"].values()),
        "passes_backward": sum(result["passes"]["backward"].values()),
        "passes": passes(record),
        "flops": cost["flops"],
        "seconds": sum(phase["seconds"] for phase in cost["phases"]),
        "cpu_seconds": sum(phase["cpu_seconds"] for phase in cost["phases"]),
        "wall_seconds": cost["wall_seconds"],
        "peak_memory_bytes": _peak_memory(record),
        **{name: machine[name] for name in ("device_type", "device", "threads", "torch", "commit")},
    }


def _peak_memory(record: Mapping[str, Any]) -> float:
    """NaN on a CPU where the record was made before the peak was begun anew for every run."""
    cost, on_gpu = record["cost"], record["machine"]["device_type"] == "cuda"
    known = cost["peak_memory_bytes"] if on_gpu or cost.get("peak_memory_of") == "run" else None
    return math.nan if known is None else known


def _place(column: str) -> tuple[int, str]:
    """Where a column stands; a score that is not listed comes after those that are."""
    order = [*IDENTITY, *SCORES, "", *DERIVED, *COSTS]
    family = column.partition("/")[0] + "/" if "/" in column else column
    return order.index(family if family in order else ""), column
