"""CREMA-D: acted emotions, sound and face, from the dataset's own files."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from balancebench_udi.config import option
from balancebench_udi.data.clips import Clip, ClipOptions, Clips, extracted_frames
from balancebench_udi.data.pack import Item, Listing, Pack, Problem
from balancebench_udi.errors import UserError

CLASSES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
"""In the order of OGM-GE's code; other repositories sort them, which changes no result."""
OGM_LISTS = ("split_OGM-GE", "data/CREMAD", "CREMAD", ".")
"""Where OGM-GE's lists may lie below the dataset's folder."""
RELEARNING_LISTS = ("split_relearning", "code/dataset/cremad", ".")
"""Where those of Diagnosing & Re-learning may lie."""
SIZES = {"OGM-GE": {"train": 6698, "test": 744}, "relearning": {"train": 5954, "val": 744, "test": 744}}
"""Clips in each part of each published scheme."""
FOLDS = 5
_OGM = "OGM-GE's train.csv and test.csv (github.com/GeWu-Lab/OGM-GE_CVPR2022, data/CREMAD) in split_OGM-GE/"
_RELEARNING = (
    "the my_train.csv, val.csv and test.csv of Diagnosing & Re-learning "
    "(github.com/GeWu-Lab/Diagnosing_Relearning_ECCV2024, code/dataset/cremad) in split_relearning/"
)
_NAME = re.compile(r"(\d{4})_[A-Z]{3}_([A-Z]{3})_[A-Z]{2}")


@dataclass(frozen=True)
class CREMADOptions(ClipOptions):
    """Options of :class:`CREMAD`."""

    split: str = option(
        "OGM-GE",
        "OGM-GE: its published lists, 6698 / 744, and a stratified share of train for validation; relearning: those of "
        "Diagnosing & Re-learning, 5954 / 744 / 744; speaker: no actor in two splits, see fold; own: lists in lists/",
        source="official code of OGM-GE",
        choices=(*SIZES, "speaker", "own"),
    )
    fold: int = option(
        0,
        f"which of {FOLDS} groups of actors the split speaker tests on; the next one validates",
        source="ours",
        at_least=0,
        at_most=FOLDS - 1,
    )


class CREMAD(Clips):
    """CREMA-D, 7442 clips of 91 actors, six emotions: ``audio`` spectrogram and ``video`` frames ``[3, T, 224, 224]``.

    Source: the authors' folder. The sound of a clip is taken from ``AudioWAV/<id>.wav``, else ``AudioMP3/<id>.mp3``,
    else the track of ``VideoFlash/<id>.flv``; its frames from ``Image-03-FPS/<id>/*.jpg`` (the option fps), sorted by
    name, else from ``VideoFlash/<id>.flv`` by the option sampling.

    Splits: ``OGM-GE`` and ``relearning`` are not speaker-independent: all 91 actors are in train and in test. The
    latter holds out 744 clips of OGM-GE's train, with as many of each class as test has. ``speaker`` deals the actors
    in the order of their numbers to 5 groups: one tests, the next validates, three train. ``own`` reads ``train.csv``,
    ``test.csv`` and, if there, ``val.csv`` in ``lists/``.

    Sound that is not at the rate of ``audio`` is resampled as by librosa before 0.10 (``kaiser_best``): AudioWAV, at
    16 kHz, for ``ogm_stft`` alone. That PMR's arrays of 299 columns (``pmr_299``) were made at 16 kHz follows from
    their size and from the rate in its script, which makes 1004 columns (``pmr_1004``).

    Reference: H. Cao et al., CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE Trans. Affective
    Computing 5(4), 2014. Lists and audio: X. Peng et al., OGM-GE, CVPR 2022 (official code). fbank: Y. Wei and D. Hu,
    MMPareto, ICML 2024 (official code).
    """

    name = "cremad"
    version = 4
    reference = "Cao et al., IEEE Trans. Affective Computing 5(4), 2014; protocol of Peng et al., OGM-GE, CVPR 2022"
    needs = "what prepare.py made of CREMA-D"
    source = (
        "CREMA-D (github.com/CheyneyComputerScience/CREMA-D): VideoFlash/, or AudioWAV/ or AudioMP3/ with "
        f"Image-NN-FPS/, NN being the option fps; for its split {_OGM}, or {_RELEARNING}; lists of your own in lists/"
    )
    lists = {"OGM-GE": _OGM, "relearning": _RELEARNING, "own": "train.csv and test.csv in lists/"}
    Options = CREMADOptions
    unit = "actor"
    unit_columns = ("actor",)

    def listing(self, source: Path) -> Listing:
        """Every clip that a list names or that is there."""
        folder = _folder(source)
        columns = _columns(folder)
        names = sorted(set(columns) | _named(folder) | _present(folder))
        items: list[Item] = []
        problems = []
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None or match[2] not in CLASSES:
                problems.append(Problem(name, "its name must be like 1001_DFA_ANG_XX, with one of the six emotions"))
                continue
            clip = _find(folder, name, self.options.fps)
            if isinstance(clip, str):
                problems.append(Problem(name, clip))
                continue
            items.append(self.item(name, match[2], clip, {"actor": match[1], **columns.get(name, {})}))
        return Listing(items, CLASSES, problems)

    def scheme(self) -> str:
        """The lists, or the actor."""
        return "actor" if self.options.split == "speaker" else str(self.options.split)

    def partition(self, pack: Pack) -> dict[str, Tensor]:
        """By list, or by actor."""
        if self.options.split != "speaker":
            return super().partition(pack)
        fold = fold_of_actors(pack.index["actor"])
        test = self.options.fold
        val = (test + 1) % FOLDS
        found = {"test": fold == test, "val": fold == val, "train": (fold != test) & (fold != val)}
        return {name: torch.from_numpy(np.flatnonzero(rows)) for name, rows in found.items()}


def fold_of_actors(actors: Sequence[str]) -> np.ndarray:
    """The group ``[N]`` of the actor of each clip: CREMA-D's 91 actors, 1001 to 1091, dealt round."""
    return np.array([(int(actor) - 1001) % FOLDS for actor in actors])


def _folder(source: Path) -> Path:
    for folder in (source, source / "cremad", source / "CREMA-D"):
        if any((folder / part).is_dir() for part in ("VideoFlash", "AudioWAV", "AudioMP3")):
            return folder
    raise UserError(
        f"{source} must hold {CREMAD.source}; found no VideoFlash/, AudioWAV/ or AudioMP3/ in it, cremad/ or CREMA-D/"
    )


def _columns(folder: Path) -> dict[str, dict[str, str]]:
    """Clip -> {split: part} of all lists that are there."""
    columns: dict[str, dict[str, str]] = {}
    for scheme, places, first in (("OGM-GE", OGM_LISTS, "train"), ("relearning", RELEARNING_LISTS, "my_train")):
        where = next((folder / p for p in places if (folder / p / f"{first}.csv").is_file()), None)
        if where is None:
            continue
        files = {part: where / f"{first if part == 'train' else part}.csv" for part in SIZES[scheme]}
        for part, clips in _lists(files, header=True).items():
            if len(clips) != SIZES[scheme][part]:
                raise UserError(
                    f"{files[part]} must list the {SIZES[scheme][part]} clips of {scheme}, found {len(clips)}; fetch "
                    "it again or, for lists of your own, put them in lists/ and set split=own"
                )
            for name in clips:
                columns.setdefault(name, {})[scheme] = part
    if (folder / "lists" / "train.csv").is_file():
        parts = ["train", "test"] + (["val"] if (folder / "lists" / "val.csv").is_file() else [])
        for part, clips in _lists({part: folder / "lists" / f"{part}.csv" for part in parts}).items():
            for name in clips:
                columns.setdefault(name, {})["own"] = part
    return columns


def _lists(files: Mapping[str, Path], header: bool = False) -> dict[str, dict[str, str]]:
    lists = {part: read_list(path, header) for part, path in files.items()}
    for name, times in Counter(name for clips in lists.values() for name in clips).items():
        if times > 1:
            where = files["train"].parent
            raise UserError(f"a clip must be in one split only, found {name} in {times} lists of {where}")
    return lists


def read_list(path: Path, header: bool = False) -> dict[str, str]:
    """``{clip: emotion}`` of a list, ``1001_DFA_ANG_XX,ANG`` a line; BOM and CRLF are accepted.

    Args:
        header: the first line may be one, with neither a clip nor an emotion in it.

    Raises:
        UserError: absent list, malformed line, clip listed twice, emotion unknown or not that of the clip's name.
    """
    clips: dict[str, str] = {}
    if not path.is_file():
        raise UserError(f"{path} must be a list of clips, it is absent; put it beside the other lists")
    content = path.read_bytes().decode("utf-8-sig", errors="replace")
    for number, row in enumerate(csv.reader(io.StringIO(content, newline="")), start=1):
        if not row:
            continue
        name, emotion = (part.strip() for part in (row if len(row) == 2 else ("", "")))
        match = _NAME.fullmatch(name)
        if header and number == 1 and match is None and emotion and emotion not in CLASSES:
            continue
        if match is None:
            raise UserError(
                f"{path} must hold lines such as 1001_DFA_ANG_XX,ANG, found {','.join(row)!r} in line {number}"
            )
        if emotion not in CLASSES:
            raise UserError(f"emotions in {path} must be {', '.join(CLASSES)}, found {emotion!r} in line {number}")
        if match[2] != emotion:
            raise UserError(f"line {number} of {path} must carry the emotion of its clip {name}, found {emotion}")
        if name in clips:
            raise UserError(f"{path} must list a clip once, found {name} again in line {number}")
        clips[name] = emotion
    return clips


def _named(folder: Path) -> set[str]:
    """The clips that the authors' own list names, where it is there: a missing one is noticed."""
    path = folder / "SentenceFilenames.csv"
    if not path.is_file():
        return set()
    rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig", errors="replace"), newline=""))
    return {row[1] for row in rows if len(row) > 1 and _NAME.fullmatch(row[1])}


def _present(folder: Path) -> set[str]:
    found = set()
    for part, suffix in (("VideoFlash", ".flv"), ("AudioWAV", ".wav"), ("AudioMP3", ".mp3")):
        found |= {path.stem for path in (folder / part).glob(f"*{suffix}")}
    return found


def _find(folder: Path, name: str, fps: int) -> Clip | str:
    """The files of a clip, or what is missing."""
    flv = folder / "VideoFlash" / f"{name}.flv"
    sounds = (folder / "AudioWAV" / f"{name}.wav", folder / "AudioMP3" / f"{name}.mp3", flv)
    sound = next((p for p in sounds if p.is_file()), None)
    pictures = extracted_frames(folder / f"Image-{fps:02d}-FPS" / name) or ((flv,) if flv.is_file() else ())
    if sound is None:
        return "its sound must be in AudioWAV/, AudioMP3/ or VideoFlash/, it is missing"
    if not pictures:
        return f"its frames must be in Image-{fps:02d}-FPS/ or VideoFlash/, they are missing"
    return Clip(sound, pictures)
