"""Anyone's own data: a CSV with a sample a row, and a few lines of YAML that say what its columns hold."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from balancebench_udi.data.base import Bundle, Modality, long_cells, stratified_holdout
from balancebench_udi.data.kinds import KINDS, Kind, ManifestOptions, Text, Video
from balancebench_udi.data.pack import MANIFEST, PROBLEMS, Item, Listing, Pack, Packed, Problem, Stored, read_manifest
from balancebench_udi.errors import UserError, near_misses
from balancebench_udi.seeding import generator
from balancebench_udi.text import found as shown
from balancebench_udi.yaml_files import absent, read_yaml

DECLARATIONS = ("manifest.yaml", "manifest.yml")
"""Names of the YAML file in the folder that ``--source`` names."""
COLUMNS = ("label", "id", "split", "group")
"""Columns of the CSV that are no modality; only ``label`` must be there."""
PARTS = ("train", "val", "test")
_KEPT = ("split", "group")  # columns that the index of a pack has, too
LONGEST = 200
"""Bytes of the name of a pack: file systems take 255, and what is built in its place has a longer one."""
_GUIDE = "docs/own-data.md"


@dataclass(frozen=True)
class Source:
    """What a folder with a YAML and a CSV declares: modality -> kind in the order of fusion, and the samples."""

    kinds: Mapping[str, Kind]
    listing: Listing


class Manifest(Packed):
    """Your own data: a CSV with a row a sample, and a YAML that says what its columns hold. See ``docs/own-data.md``.

    Columns: ``label``, the class; ``id``, unique, the number of the row where there is none; ``split``: ``train``,
    ``val`` or ``test``; ``group``, such as the speaker or the recording, never in two splits; and one or more for the
    modalities, with a path (absolute, or relative to the CSV) or a text. Separators may be commas, semicolons or tabs.
    One column may feed two modalities: sound and pictures of a video.

    Without ``split`` the stratified share ``test_share`` is drawn for test; without ``val`` in it, ``val_share`` of
    train for validation. With ``group``, whole groups are drawn, as near to these shares of every class as they come.

    A sample of which a file is missing or damaged is left out and listed. What a pack holds is decided by the YAML, so
    that a pack is found by its ``name`` alone, below ``packed/manifest/``.
    """

    name = "manifest"
    version = 3
    reference = "your own data"
    needs = "what prepare.py made of a folder of yours"
    source = f"manifest.yaml and the CSV that it names, see {_GUIDE}"
    beside = ", or add --set manifest.name=NAME for a pack beside it"
    prepared = ("name",)
    Options = ManifestOptions
    unit = "group"
    unit_columns = ("group",)

    def __init__(self, options: ManifestOptions | None = None, found: Source | None = None) -> None:
        super().__init__(options)
        self._found = found
        self._kinds: Mapping[str, Kind] = found.kinds if found is not None else {}

    def for_source(self, source: Path) -> Manifest:
        """This dataset as ``source`` declares it, named after its folder unless the option ``name`` is set.

        Args:
            source: a folder with ``manifest.yaml``, or the YAML file itself.

        Raises:
            UserError: a YAML or CSV that is absent or malformed, with what was expected.
        """
        declaration = _find_declaration(source)
        name = self.options.name or declaration.parent.resolve().name
        return Manifest(dataclasses.replace(self.options, name=name), read_source(declaration))

    def listing(self, source: Path) -> Listing:
        """The rows of the CSV.

        Raises:
            UserError: called on a dataset that :meth:`for_source` did not make.
        """
        if self._found is None:
            raise UserError(f"dataset {self.name} must be prepared from {self.source}: call for_source({source}) first")
        return self._found.listing

    def prepared_options(self) -> dict[str, Any]:
        """What the YAML declares, defaults filled in."""
        declared = [{"name": m, "kind": kind.kind, **kind.as_dict()} for m, kind in self._kinds.items()]
        return {"modalities": declared}

    def prepared_changes(self) -> dict[str, Any]:
        """The name, which is all that finds a pack."""
        return {"name": self.options.name}

    def folder(self, root: Path) -> Path:
        """Where the pack belongs below the data root: ``packed/manifest/<name>``.

        Raises:
            UserError: no name, or one that is no folder's.
        """
        name = self.options.name
        above = root / "packed" / self.name
        if not name:
            raise UserError(
                f"{self.name}.name must name prepared data, found none{_prepared(above, name)}; add --set "
                f"{self.name}.name=NAME"
            )
        if Path(name).name != name or name.startswith(".") or "\0" in name or len(os.fsencode(name)) > LONGEST:
            raise UserError(
                f"{self.name}.name must be a plain folder name of at most {LONGEST} bytes, found {name[:80]!r}; add "
                f"--set {self.name}.name=NAME"
            )
        return above / name

    def stored(self) -> Mapping[str, Stored]:
        """As the YAML declares, in its order."""
        return {m: kind.stored() for m, kind in self._kinds.items()}

    def decode(self, item: Item) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """Each modality of a row by its kind."""
        values, remarks = {}, []
        for m, kind in self._kinds.items():
            content: Any = item.detail[m]
            values[m], found = kind.decode(content if isinstance(content, str) else [item.files[i] for i in content])
            remarks += found
        return values, remarks

    def load(self, root: Path | None) -> Bundle:
        """Map the pack.

        Raises:
            UserError: not prepared (with the names that are), damaged, or a split that cannot be drawn.
        """
        folder = self.folder(self._root(root))
        try:
            manifest = read_manifest(folder)
        except FileNotFoundError:
            raise UserError(
                f"{folder} must hold prepared data, found none{_prepared(folder.parent, folder.name)}; call python "
                f"benchmarks/prepare.py {self.name} --source DIR --data-root {root}, where DIR has {self.source}"
            ) from None
        if manifest["version"] != self.version:
            raise UserError(
                f"{folder} must be of version {self.version} of dataset {self.name}, found {manifest['version']}; "
                "remove it and prepare again"
            )
        self._kinds = {
            m["name"]: KINDS[m["kind"]].build(m["name"], {k: v for k, v in m.items() if k not in ("name", "kind")})
            for m in manifest["options"]["modalities"]
        }
        return super().load(root)

    def partition(self, pack: Pack) -> dict[str, Tensor]:
        """By the column ``split``, what it lacks drawn by seed."""
        o = self.options
        parts = pack.index["split"].tolist() if "split" in pack.index else None
        groups = pack.index["group"].to_numpy() if "group" in pack.index else None
        _check_classes(
            pack.index["class"].tolist(),
            parts,
            pack.manifest["classes"],
            f"{pack.folder} (what could not be read is in its {PROBLEMS})",
        )
        if parts is None:
            train, test = hold_out(pack.target, groups, o.test_share, o.test_seed)
            rows = {"train": train, "test": test}
        else:
            rows = {
                part: torch.tensor([i for i, p in enumerate(parts) if p == part]) for part in PARTS if part in parts
            }
        if "val" not in rows:
            train = rows["train"]
            chosen = groups[train.numpy()] if groups is not None else None
            kept, held = hold_out(pack.target[train], chosen, o.val_share, o.val_seed)
            rows |= {"train": train[kept], "val": train[held]}
        return rows

    def modalities(self, pack: Pack) -> Mapping[str, Modality]:
        """Each by its kind; features are standardised by the training samples."""
        train = self.partition(pack)["train"]
        return {m: kind.modality(self.options, pack.inputs[m], train) for m, kind in self._kinds.items()}


def _prepared(folder: Path, name: str) -> str:
    """What there is instead, for an error message."""
    names = [path.parent.name for path in folder.glob(f"*/{MANIFEST}")]
    return near_misses(name, names) if names else ""


def hold_out(target: Tensor, groups: np.ndarray | None, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split ``range(N)`` into (kept, held out), stratified, whole groups where there are groups.

    Groups are met in a random order, again and again, and one is held out or put back where that brings the count of
    every class nearer (in squared distance) to ``share`` of it, until none does. At least one group is held out, and
    never the last kept one of a class.

    Args:
        target: ``[N]`` int64.
        groups: ``[N]``, or None.

    Returns:
        Two sorted int64 index tensors, disjoint, together everything.

    Raises:
        UserError: too few samples or groups of a class.
    """
    if groups is None:
        return stratified_holdout(target, share, seed)
    names, member = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), int(target.max()) + 1))
    np.add.at(counts, (member, target.numpy()), 1)
    total = counts.sum(0)

    def distance(held: np.ndarray) -> float:
        """Infinite where a class would be left without a sample."""
        return float("inf") if ((held == total) & (total > 0)).any() else float(((held - share * total) ** 2).sum())

    order = torch.randperm(len(names), generator=generator(seed, "holdout")).tolist()
    chosen = np.zeros(len(names), dtype=bool)
    held, moved = np.zeros_like(total), True
    while moved:
        moved = False
        for g in order:
            changed = held - counts[g] if chosen[g] else held + counts[g]
            if distance(changed) < distance(held):
                held, moved = changed, True
                chosen[g] = not chosen[g]
    if not chosen.any():
        nearest = min(order, key=lambda g: distance(counts[g]))
        if distance(counts[nearest]) == float("inf"):
            raise UserError(
                f"at least one group must be free to be held out with every class still in the others, found none of "
                f"{len(names)}; use smaller groups, or say in a column split what belongs where"
            )
        chosen[nearest] = True
    mask = torch.from_numpy(chosen[member])
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()


# -- reading YAML and CSV ---------------------------------------------------------------------------------------------


def _find_declaration(source: Path) -> Path:
    if os.path.isfile(source):  # Path.is_file raises where a name is too long
        return source
    for name in DECLARATIONS:
        if os.path.isdir(source) and not absent(source / name):
            return source / name
    raise UserError(f"{source} must hold {DECLARATIONS[0]}, found none; {_GUIDE} shows how to write one")


def read_source(path: Path) -> Source:
    """What the YAML at ``path`` and its CSV declare. Of ``.npy`` files the headers are read, of all others nothing.

    Raises:
        UserError: absent, malformed, an unknown kind, key or column (with near misses), too few samples of a class, or
            no row with all of its files.
    """
    table, kinds = _read_yaml(path)
    header, rows = _read_csv(table)
    classes = _check_rows(table, header, rows)
    for m, kind in kinds.items():
        columns = [c for c in header if c not in COLUMNS]
        if kind.column not in columns:
            raise UserError(
                f"{table} must have the column {kind.column!r} of modality {m}, found none"
                f"{near_misses(kind.column, columns)}"
            )
    items: list[Item] = []
    problems: list[Problem] = []
    files: dict[str, list[Path]] = {m: [] for m in kinds}
    first: dict[tuple[tuple[Path, ...], str], dict[str, str]] = {}
    for _, row in rows:
        places: dict[Path, int] = {}
        detail: dict[str, Any] = {}
        missing: dict[str, None] = {}
        for m, kind in kinds.items():
            cell = row[kind.column]
            found = () if isinstance(kind, Text) or not cell else _files(kind, table.parent / cell)
            files[m] += found
            detail[m] = cell if isinstance(kind, Text) else [places.setdefault(p, len(places)) for p in found]
            if not cell:
                missing[f"column {kind.column} must not be empty, it is"] = None
            elif not detail[m]:
                missing[f"{table.parent / cell} must {_absent(kind, table.parent / cell)}"] = None
        if missing:
            problems.append(Problem(row["id"], "; ".join(missing)))
        else:
            same = first.setdefault((tuple(places), str(detail)), row)
            if same is not row and _may_part(row, same):
                remark = f"all of it is what {same['id']} has, too, which may be in another split; give both one group"
                problems.append(Problem(row["id"], remark, kept=True))
            known = {c: row[c] for c in _KEPT if c in row}
            items.append(Item(row["id"], row["label"], tuple(places), known, detail))
    if not items:
        raise UserError(
            f"at least one row of {table} must have all of its files, found none of {len(rows)}, the first: "
            f"{problems[0].reason}"
        )
    return Source({m: kind.settled(m, files[m]) for m, kind in kinds.items()}, Listing(items, classes, problems))


def _may_part(row: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two rows are, or may be drawn, into different splits."""
    what = "split" if "split" in row else "group"
    return what not in row or row[what] != other[what]


def _files(kind: Kind, path: Path) -> tuple[Path, ...]:
    try:
        return kind.files(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a text is no path
            return ()
        raise  # a folder that cannot be read: its files must not count as missing


def _absent(kind: Kind, path: Path) -> str:
    """What should be at a path that gives no file, and what is."""
    if not os.path.isdir(path):
        return "be a file, it is missing"
    if isinstance(kind, Video):
        return "hold frames (.jpg, .jpeg or .png), it holds none"
    return "be a file, it is a folder"


def _read_yaml(path: Path) -> tuple[Path, dict[str, Kind]]:
    """The CSV and the modalities that a YAML declares."""
    values = read_yaml(path, "a manifest")
    if not values:
        raise UserError(f"{path} must hold csv and modalities, found neither; {_GUIDE} shows how to write one")
    for key in values:
        if key not in ("csv", "modalities"):
            raise UserError(f"{path} has no key {shown(key)}{near_misses(key, ('csv', 'modalities'))}")
    table, declared = values.get("csv"), values.get("modalities")
    if not isinstance(table, str) or not table:
        raise UserError(
            f"csv of {path} must be the path of a CSV, found {shown(table)}; {_GUIDE} shows how to write one"
        )
    if not isinstance(declared, dict) or len(declared) < 2:
        found = ", ".join(declared) if isinstance(declared, dict) else shown(declared)
        raise UserError(f"modalities of {path} must name at least two, each with its kind, found {found}; add some")
    return path.parent / table, {m: _read_kind(m, given, path) for m, given in declared.items()}


def _read_kind(m: str, given: Any, path: Path) -> Kind:
    """One modality of the YAML."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{,63}", m):
        raise UserError(
            f"a modality of {path} must be named by at most 64 letters, digits and _, found {shown(m)}; rename it"
        )
    if m in COLUMNS or hasattr(nn.ModuleDict(), m):
        raise UserError(f"a modality of {path} must not be named {m}, which means something else; rename it")
    if not isinstance(given, dict) or "kind" not in given:
        raise UserError(f"modality {m} of {path} must have a kind ({', '.join(KINDS)}), found {shown(given)}; add it")
    kind = given["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"modality {m} of {path} has no kind {shown(kind)}{near_misses(kind, KINDS)}")
    settings = {"column": m, **{key: value for key, value in given.items() if key != "kind"}}
    return KINDS[kind].build(m, settings)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The named columns of a CSV, and of every row its last line in the file and its cells."""
    try:
        if not path.is_file():
            what = "none" if absent(path) else "a folder" if path.is_dir() else "a pipe or a device"
            raise UserError(f"csv must name a file, found {what} at {shown(str(path), 200)}; correct the YAML")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} must be a CSV in UTF-8, it is not; save it as such") from None
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise UserError(
            f"csv must name a file that can be read, found {shown(str(path), 200)}: {reason}; correct the YAML"
        ) from None
    told = re.match(r"sep=([,;\t])\s*\n", text)  # Excel's own first line
    separator = told[1] if told else max(",;\t", key=text.strip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        with long_cells(text):
            lines = [(reader.line_num, [c.strip() for c in cells]) for cells in reader if any(c.strip() for c in cells)]
    except csv.Error as error:
        raise UserError(f"{path} must be a CSV, found a mistake in line {reader.line_num}: {error}") from None
    lines = lines[1:] if told else lines
    header = lines[0][1] if lines else []
    for name, count in Counter(name for name in header if name).items():
        if count > 1:
            raise UserError(f"{path} must name every column once, found {name!r} {count} times; rename one")
    rows = []
    for line, cells in lines[1:]:
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise UserError(
                f"{path} must have {len(header)} cells in every row, found {len(cells)} in line {line}; put a text "
                f"with {separator!r} in double quotes"
            )
        rows.append((line, {name: cell for name, cell in zip(header, cells, strict=False) if name}))
    return [name for name in header if name], rows


def _check_rows(path: Path, header: Sequence[str], rows: Sequence[tuple[int, dict[str, str]]]) -> tuple[str, ...]:
    """Check what is no modality, give every row an ``id``, and return the classes: numbers by size, then words."""
    if "label" not in header:
        raise UserError(f"{path} must have a column label, found none{near_misses('label', header)}")
    if not rows:
        raise UserError(f"{path} must have a row a sample, found none; add them")
    ids: dict[str, int] = {}
    groups: dict[str, str] = {}
    for number, (line, row) in enumerate(rows, start=1):
        where = f"line {line} of {path}"
        row.setdefault("id", f"{number:06d}")
        for name in COLUMNS:
            if row.get(name) == "":
                raise UserError(f"{where} must have a {name}, found none; add it")
        if row["id"] in ids:
            raise UserError(f"{where} must have an id of its own, found {row['id']!r} in line {ids[row['id']]}, too")
        ids[row["id"]] = line
        if "split" in row:
            row["split"] = row["split"].lower()
            if row["split"] not in PARTS:
                raise UserError(f"split in {where} must be one of {', '.join(PARTS)}, found {row['split']!r}")
            first = groups.setdefault(row.get("group", row["id"]), row["split"])
            if first != row["split"]:
                raise UserError(
                    f"no group of {path} may be in two splits, found {row['group']!r} in {first} and, in line "
                    f"{line}, in {row['split']}; move its rows to one"
                )
    labels = [row["label"] for _, row in rows]
    classes = sorted(set(labels), key=lambda c: (0, int(c), c) if re.fullmatch(r"[+-]?[0-9]{1,100}", c) else (1, 0, c))
    if len(classes) < 2:
        raise UserError(f"{path} must have at least two classes, found {classes[0]!r} only; add another")
    _check_classes(labels, [row["split"] for _, row in rows] if "split" in header else None, classes, str(path))
    return tuple(classes)


def _check_classes(labels: Sequence[str], parts: Sequence[str] | None, classes: Sequence[str], where: str) -> None:
    """Refuse splits that cannot be drawn, or that lack what training and testing need."""
    if parts is None:
        count, least, what = Counter(labels), 3, "samples of every class, to train, validate and test on"
    else:
        for part in ("train", "test"):
            if part not in parts:
                raise UserError(
                    f"{where} must hold samples whose split is {part}, found none; add some, or leave the column split "
                    "out to have it drawn"
                )
        count = Counter(label for label, part in zip(labels, parts, strict=True) if part == "train")
        drawn = "val" not in parts
        least, what = (
            (2, "train samples of every class, one to validate on") if drawn else (1, "train sample of every class")
        )
    for name in classes:
        if count[name] < least:
            raise UserError(f"{where} must hold at least {least} {what}, found {count[name]} of {name!r}; add some")
