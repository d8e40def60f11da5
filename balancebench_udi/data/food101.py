"""UPMC Food-101: photographs of dishes and the titles of the web pages they come from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from balancebench_udi.config import Options as AnyOptions
from balancebench_udi.config import option
from balancebench_udi.data.base import Modality, long_cells
from balancebench_udi.data.clips import PICTURES
from balancebench_udi.data.frames import CROP, FrameTransform
from balancebench_udi.data.media import as_candidates, read_pictures
from balancebench_udi.data.npy import map_npy
from balancebench_udi.data.pack import Item, Listing, Pack, Packed, Problem, Stored
from balancebench_udi.data.text import LENGTH, VOCABULARY, tokens, words
from balancebench_udi.errors import UserError

FEATURES, FEATURE_IDS = "text_features.npy", "text_features.txt"
"""Precomputed features of the texts, and the sample of each row, beside the lists."""
_TITLES = {"train": "train_titles.csv", "test": "test_titles.csv"}
_JSONL = {"train": "train.jsonl", "val": "dev.jsonl", "test": "test.jsonl"}


@dataclass(frozen=True)
class Food101Options(AnyOptions):
    """Options of :class:`Food101`."""

    split: str = option(
        "titles",
        "titles: texts/train_titles.csv and test_titles.csv, with a stratified share of train for validation; jsonl: "
        "train.jsonl, dev.jsonl and test.jsonl, with the texts in them",
        source="BalanceBenchmark (titles); official code of MMBT, as MLA (jsonl)",
        choices=("titles", "jsonl"),
    )
    text: str = option(
        "tokens",
        f"tokens: hashed words; features: {FEATURES} with {FEATURE_IDS}, from a text encoder of your own",
        source="ours",
        choices=("tokens", "features"),
    )
    length: int = option(LENGTH, "words kept of a text, of tokens", source="BalanceBenchmark", at_least=1)
    vocabulary: int = option(VOCABULARY, "number of token ids, of tokens", source="ours", at_least=2, at_most=2**24)
    width: int = option(768, "numbers in a row, of features", source="BERT base", at_least=1)
    stored_size: int = option(256, "side of the stored square images, pixels", source="ours", at_least=CROP)
    val_share: float = option(0.1, "share of every class of train held out", source="ours", above=0)
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)


class Food101(Packed):
    """UPMC Food-101, some 90000 pages of recipes, 101 dishes: ``image [3, 1, 224, 224]`` and ``text``.

    Source: the distributed folder, ``images/{train,test}/<class>/<class>_<n>.jpg`` with ``texts/train_titles.csv`` and
    ``texts/test_titles.csv``, lines of image, title, class (a header is skipped); or the lists of MMBT's script, which
    MLA uses, ``train.jsonl``, ``test.jsonl`` and, if there, ``dev.jsonl``, lines of ``img`` (a path from the list),
    ``text`` (of the whole page, there) and ``label``. The pages were found by searching for the names of the dishes:
    labels are noisy, and a title often names the dish. Classes are those of the training images that are there, sorted.

    Image: squeezed to a square, as in BalanceBenchmark. In training a random part of it (with an aspect of 3/4 to 4/3
    in the square: the photographs have no common aspect) is resized, and mirrored half the time, where BalanceBenchmark
    rotates by up to 30 degrees and mirrors; see :class:`~balancebench_udi.data.frames.FrameTransform`.

    Of a title, not of MMBT's texts, a leading ``RT``, everything from a web address to the end of its line, and ``#``
    are removed, as in BalanceBenchmark.

    Text: the ids ``[length]`` of its first words (:func:`~balancebench_udi.data.text.tokens`) for the encoder
    ``tokens``, where BalanceBenchmark and MLA use BERT's word pieces, 40 and 256; or, with ``text=features``, a vector
    ``[width]`` from ``text_features.npy`` ``[N, width]``, whose row i belongs to the image in line i of
    ``text_features.txt`` (``images/train/apple_pie/apple_pie_0.jpg``), both beside the lists.

    A sample without a whole image, or without a text, is left out; one whose text holds no word is kept. Both are
    listed.

    Reference: X. Wang, D. Kumar, N. Thome, M. Cord, F. Precioso, Recipe recognition with large multimodal food dataset,
    ICME Workshops 2015. Protocols: BalanceBenchmark, arXiv 2502.10816 (official code); D. Kiela et al., MMBT, arXiv
    1909.02950 (official code); X. Zhang et al., MLA, CVPR 2024 (official code).
    """

    name = "food101"
    version = 2
    reference = "Wang et al., Recipe recognition with large multimodal food dataset, ICME Workshops 2015"
    needs = "what prepare.py made of UPMC Food-101"
    source = (
        "UPMC Food-101 (kaggle.com/datasets/gianmarco96/upmcfood101): images/train/ and images/test/ with "
        "texts/train_titles.csv and texts/test_titles.csv; or, for split=jsonl, images/ with train.jsonl and test.jsonl"
    )
    prepared = ("split", "text", "length", "vocabulary", "width", "stored_size")
    Options = Food101Options

    def __init__(self, options: AnyOptions | None = None) -> None:
        super().__init__(options)
        self._features: Mapping[str, np.ndarray] = {}

    def listing(self, source: Path) -> Listing:
        """Every image that a list names; of the split titles, also those that are there without a title.

        Raises:
            UserError: lists or features that are absent or malformed.
        """
        o = self.options
        folder, lists = _lists(source, o.split)
        if o.text == "features":
            self._features = read_features(lists["train"].parent, o.width)
        rows, again = _rows(lists, o.split)
        items = []
        problems = []
        for image, row in rows.items():
            detail = self._detail(row)
            if not (folder / image).is_file():
                problems.append(Problem(image, "its image must be there, it is missing"))
            elif detail is None:
                what = "its text must not be empty, it is" if o.text == "tokens" else f"it must be in {FEATURE_IDS}"
                problems.append(Problem(image, what))
            else:
                items.append(Item(image, row.label, (folder / image,), {o.split: row.part}, detail))
        classes = tuple(sorted({item.label for item in items if item.columns[o.split] == "train"}))
        for item in items:
            if item.label not in classes:
                problems.append(Problem(item.id, f"its class must be one of train's, found {item.label!r}"))
            elif item.id in again:
                problems.append(Problem(item.id, "its list must name it once, the first line is taken", True))
        if o.split == "titles":
            problems += [
                Problem(image, f"its title must be in {path.name}, it is missing")
                for part, path in lists.items()
                for image in _images(folder, part)
                if image not in rows
            ]
        return Listing([item for item in items if item.label in classes], classes, problems)

    def _detail(self, row: _Row) -> str | None:
        """What decoding needs of the text: the words that are kept, or the hash of its features; None where missing."""
        if self.options.text == "features":
            found = self._features.get(row.image)
            return None if found is None else hashlib.sha256(found.tobytes()).hexdigest()
        return " ".join(words(row.text)[: self.options.length]) if row.text.strip() else None

    def stored(self) -> Mapping[str, Stored]:
        """uint8 image ``[1, S, S, 3]``; int32 ids ``[length]`` or float32 features ``[width]``."""
        o = self.options
        text = Stored((o.length,), "int32") if o.text == "tokens" else Stored((o.width,), "float32")
        return {"image": Stored((1, o.stored_size, o.stored_size, 3), "uint8"), "text": text}

    def decode(self, item: Item) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """The image, squeezed, and the text's ids or features."""
        o = self.options
        detail: Any = item.detail
        image = as_candidates(read_pictures(item.files), 1, o.stored_size)
        if o.text == "features":
            return {"image": image, "text": self._features[item.id].astype(np.float32)}, []
        remarks = [] if detail else ["its text has no word"]
        return {"image": image, "text": tokens(detail, o.length, o.vocabulary)}, remarks

    def modalities(self, pack: Pack) -> Mapping[str, Modality]:
        """Frames, of which there is one, and tokens or a vector."""
        o = self.options
        text = ("tokens", (o.length,), "tokens") if o.text == "tokens" else ("vector", (o.width,), "mlp")
        frame = FrameTransform(1, 1, "segment", aspect=1.0)
        return {"image": Modality("frames", (3, 1, CROP, CROP), "resnet18", frame), "text": Modality(*text)}


@dataclass(frozen=True)
class _Row:
    """A line of a list: the image's path below the dataset's folder, its text and class, and the list's part."""

    image: str
    text: str
    label: str
    part: str


def _lists(source: Path, split: str) -> tuple[Path, dict[str, Path]]:
    """The dataset's folder and the list of each part."""
    below, names = ("texts", _TITLES) if split == "titles" else (".", _JSONL)
    for folder in (source, source / "food101", source / "UPMC-Food-101", source / "FOOD101"):
        lists = {part: folder / below / name for part, name in names.items() if (folder / below / name).is_file()}
        if lists:
            break
    for part in ("train", "test"):
        if part not in lists:
            raise UserError(
                f"{source} must hold {Food101.source}; found no {Path(below) / names[part]} for split={split} in it, "
                "food101/, UPMC-Food-101/ or FOOD101/"
            )
    return folder, lists


def _rows(lists: Mapping[str, Path], split: str) -> tuple[dict[str, _Row], set[str]]:
    """Image -> its first line in the lists, and the images of which there are more lines."""
    rows: dict[str, _Row] = {}
    again = set()
    for part, path in lists.items():
        for row in read_titles(path, part) if split == "titles" else read_jsonl(path, part):
            first = rows.setdefault(row.image, row)
            if first.part != part:
                raise UserError(
                    f"an image must be in one list only, found {row.image} in those of {first.part} and {part}; "
                    "remove it from one"
                )
            if first is not row:
                again.add(row.image)
    return rows, again


def _images(folder: Path, part: str) -> list[str]:
    """The images of one part that are there."""
    found = (folder / "images" / part).glob("*/*")
    return sorted(path.relative_to(folder).as_posix() for path in found if path.suffix.lower() in PICTURES)


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", errors="replace")


def read_titles(path: Path, part: str) -> list[_Row]:
    """The lines ``apple_pie_0.jpg,its title,apple_pie`` of a list; BOM, CRLF and a header are accepted.

    Raises:
        UserError: a malformed line.
    """
    rows = []
    content = _text(path)
    reader = csv.reader(io.StringIO(content, newline=""))
    with long_cells(content):
        for number, fields in enumerate(reader):
            if not fields:
                continue
            name, text, label = (field.strip() for field in (fields if len(fields) == 3 else ("", "", "")))
            if number == 0 and label and not name.lower().endswith(PICTURES):
                continue
            if not name.lower().endswith(PICTURES) or not label:
                raise UserError(
                    f"{path} must hold lines such as apple_pie_0.jpg,its title,apple_pie, found "
                    f"{','.join(fields)[:80]!r} in line {reader.line_num}; fetch it again"
                )
            rows.append(_Row(f"images/{part}/{label}/{name}", clean_title(text), label, part))
    return rows


def clean_title(text: str) -> str:
    """Without a leading RT, web addresses and what follows them in their line, and the character ``#``."""
    return re.sub(r"https?://.*", "", re.sub(r"^RT\s+", "", text)).replace("#", "")


def read_jsonl(path: Path, part: str) -> list[_Row]:
    """The lines ``{"img": "images/train/apple_pie/apple_pie_0.jpg", "text": ..., "label": "apple_pie"}`` of a list.

    Raises:
        UserError: a malformed line.
    """
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            row = _Row(found["img"], found["text"], found["label"], part)
        except (json.JSONDecodeError, KeyError, TypeError):
            row = None
        if row is None or not all(isinstance(v, str) for v in (row.image, row.text, row.label)) or not row.label:
            raise UserError(
                f"{path} must hold a JSON object with the texts img, text and label in each line, found "
                f"{line[:80]!r} in line {number}; make it again"
            )
        rows.append(row)
    return rows


def read_features(folder: Path, width: int) -> dict[str, np.ndarray]:
    """Image -> its ``[width]`` row of the features of texts in ``folder``, memory-mapped.

    Raises:
        UserError: absent or malformed files, another width, or a number of rows that is not that of the images.
    """
    path, ids = folder / FEATURES, folder / FEATURE_IDS
    for file in (path, ids):
        if not file.is_file():
            raise UserError(f"text=features needs {file}, which is absent; make it with a text encoder of your own")
    table = map_npy(path)
    names = [line.strip() for line in _text(ids).split("\n") if line.strip()]
    if table.ndim != 2 or table.shape[1] != width or table.dtype.kind not in "fiu":
        raise UserError(
            f"{path} must hold numbers [N, {width}], found {table.dtype} {list(table.shape)}; set width to its columns"
        )
    if len(names) != len(table) or len(set(names)) != len(names):
        raise UserError(
            f"{ids} must name one image a row of {FEATURES} ({len(table)}), each once, found {len(names)} names, "
            f"{len(set(names))} of them different; make both again"
        )
    return dict(zip(names, table, strict=True))
