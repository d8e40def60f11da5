"""Published numbers: accuracies of papers and repositories, each with its source, its protocol and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.text import found
from balancebench_udi.yaml_files import read_yaml

SELECTS = ("best_test", "best_val", "last", "unknown")
CONFIDENCES = ("paper", "repository", "third party", "unconfirmed")
TOLERANCE = 2.0
"""Points within which a mean counts as reproduced, where neither the file nor a standard deviation says so."""

GROUP = ("source", "url", "protocol", "select", "confidence", "run", "tolerance", "remarks", "rows")
ROW = ("method", "label", "dataset", "modality", "fusion", "frames", "set", "accuracy", "sd", "f1", "note")
OPTIONAL = ("url", "tolerance", "remarks", "label", "modality", "fusion", "frames", "set", "sd", "f1", "note")


@dataclass(frozen=True)
class Claim:
    """One published number.

    Attributes:
        group: the group it stands in: one source and one protocol.
        method: its name in the registry, where it is there.
        label: as printed; by default the method.
        dataset: its name in the registry, where it is there.
        modality: the one that was trained alone; None for a multimodal number.
        fusion: None where the source does not say or names no other.
        accuracy: on the test split, in percent; None where only a gain is told.
        sd: standard deviation over seeds, in points; None where none is told.
        source: where the number stands.
        protocol: what is known of networks, frames, optimiser and epochs.
        select: the epoch that was read: ``best_test``, ``best_val``, ``last`` or ``unknown``.
        confidence: ``paper``, ``repository``, ``third party`` or ``unconfirmed``.
        run_protocol: the nearest of our protocols; None where there is none.
        tolerance: points within which a mean of ours counts as reproduced; by default 2 sd, or 2 without one.
        note: what else there is to say.
        settings: ``("ogm.alpha", 0.8)`` pairs: the options that our run needs besides those of its protocol.
        frames: of a clip; None where the source does not say.
        url: of the source.
        f1: macro-F1 in percent; None where none is told. It is never compared with an accuracy.
        remarks: what does not fit in the numbers of its group, a sentence each.
    """

    group: str
    method: str
    label: str
    dataset: str
    modality: str | None
    fusion: str | None
    accuracy: float | None
    sd: float | None
    source: str
    protocol: str
    select: str
    confidence: str
    run_protocol: str | None
    tolerance: float
    note: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    frames: int | None = None
    url: str = ""
    f1: float | None = None
    remarks: tuple[str, ...] = ()


def load_published(path: Path) -> list[Claim]:
    """Every claim of a YAML file, in its order.

    The file holds ``groups: {name: {source, url?, protocol, select, confidence, run, tolerance?, rows}}``; ``run`` is
    ``none`` or ``{protocol, set?}``, a row is ``{method, label?, dataset, modality?, fusion?, frames?, set?, accuracy,
    sd?, note?}``.

    Raises:
        UserError: no such file, damaged YAML, an unknown key (with near misses), one that is missing, a value of the
            wrong kind or outside of its bounds, a claim twice.
    """
    values = read_yaml(path, "a file of published numbers")
    _keys(str(path), values, ("groups",))
    if not isinstance(values["groups"], dict):
        raise UserError(f"groups of {path} must hold names with values, found {found(values['groups'])}")
    claims = [claim for name, group in values["groups"].items() for claim in _group(name, group)]
    seen = set()
    for claim in claims:
        place = (claim.group, claim.method, claim.label, claim.dataset, claim.modality, claim.fusion, claim.settings)
        if place in seen:
            raise UserError(
                f"{claim.group} must have every number once, found two of {claim.label} on {claim.dataset}: "
                "tell them apart by label"
            )
        seen.add(place)
    return claims


def _group(name: str, group: Any) -> list[Claim]:
    _keys(name, group, GROUP)
    for key, choices in (("select", SELECTS), ("confidence", CONFIDENCES)):
        if group[key] not in choices:
            raise UserError(f"{key} of {name} must be one of {', '.join(choices)}, found {found(group[key])}")
    run_protocol, settings = _run(name, group["run"])
    if not isinstance(group["rows"], list) or not group["rows"]:
        raise UserError(f"rows of {name} must be a list of numbers, found {found(group['rows'])}")
    tolerance = _number(f"tolerance of {name}", group.get("tolerance"))
    shared = {
        "group": name,
        "source": _text(name, group, "source"),
        "url": _text(name, group, "url"),
        "protocol": _text(name, group, "protocol"),
        "select": group["select"],
        "confidence": group["confidence"],
        "run_protocol": run_protocol,
        "remarks": _remarks(name, group.get("remarks", [])),
    }
    return [_claim(f"row {i} of {name}", row, settings, tolerance, shared) for i, row in enumerate(group["rows"], 1)]


def _claim(
    owner: str, row: Any, settings: Mapping[str, Any], tolerance: float | None, shared: Mapping[str, Any]
) -> Claim:
    _keys(owner, row, ROW)
    frames = row.get("frames")
    if frames is not None and (type(frames) is not int or frames < 1):
        raise UserError(f"frames of {owner} must be a whole number from 1, found {found(frames)}")
    sd = _number(f"sd of {owner}", row.get("sd"))
    if tolerance is None:
        tolerance = TOLERANCE if sd is None else 2 * sd
    return Claim(
        method=_text(owner, row, "method"),
        label=_text(owner, row, "label") or _text(owner, row, "method"),
        dataset=_text(owner, row, "dataset"),
        modality=_text(owner, row, "modality") or None,
        fusion=_text(owner, row, "fusion") or None,
        accuracy=_number(f"accuracy of {owner}", row["accuracy"]),
        sd=sd,
        tolerance=tolerance,
        note=_text(owner, row, "note"),
        settings=tuple({**settings, **_settings(owner, row.get("set"))}.items()),
        frames=frames,
        f1=_number(f"f1 of {owner}", row.get("f1")),
        **shared,
    )


def _remarks(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
        raise UserError(f"remarks of {name} must be a list of sentences, found {value!r}")
    return tuple(" ".join(one.split()) for one in value)


def _run(name: str, value: Any) -> tuple[str | None, dict[str, Any]]:
    """The protocol of ours and its options."""
    if value == "none":
        return None, {}
    if not isinstance(value, dict):
        raise UserError(f"run of {name} must be none, or a protocol with options, found {found(value)}")
    _keys(f"run of {name}", value, ("protocol", "set"))
    return _text(f"run of {name}", value, "protocol"), _settings(f"run of {name}", value.get("set"))


def _settings(owner: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(all(k.rpartition(".")) for k in value):
        raise UserError(f"set of {owner} must hold options such as optimizer.lr: 0.01, found {found(value)}")
    for key, one in value.items():
        if not isinstance(one, str | int | float):
            raise UserError(f"{key} in set of {owner} must be a text or a number, found {found(one)}")
    return value


def _keys(owner: str, value: Any, known: Sequence[str]) -> None:
    """Refuse what is no mapping, has a key that is not known, or lacks one that is needed."""
    if not isinstance(value, dict):
        raise UserError(f"{owner} must hold names with values, found {found(value)}")
    for key in value:
        if key not in known:
            raise UserError(f"{owner} has no key {found(key)}{near_misses(key, known)}")
    for key in known:
        if key not in value and key not in OPTIONAL:
            raise UserError(f"{owner} must have {key}, found only {', '.join(map(str, value)) or 'nothing'}: add it")


def _text(owner: str, values: Mapping[str, Any], key: str) -> str:
    """A text on one line; empty for an optional one that is absent."""
    value = values.get(key)
    if value is None and key in OPTIONAL:
        return ""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{key} of {owner} must be a text, found {found(value)}")
    return " ".join(value.split())


def _number(what: str, value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 100:
        raise UserError(f"{what} must be in percent, 0 to 100, found {found(value)}")
    return float(value)
