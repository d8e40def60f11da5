"""Kinetics-Sounds: the 31 classes of Kinetics-400 that can be seen and heard, from clips and the published lists."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancebench_udi.config import option
from balancebench_udi.data.clips import ClipOptions, audio_option
from balancebench_udi.data.pack import Listing
from balancebench_udi.data.youtube import CutClips, Name, clip_name
from balancebench_udi.errors import UserError

CLASSES = (
    "blowing_nose",
    "blowing_out_candles",
    "bowling",
    "chopping_wood",
    "dribbling_basketball",
    "laughing",
    "mowing_lawn",
    "playing_accordion",
    "playing_bagpipes",
    "playing_bass_guitar",
    "playing_clarinet",
    "playing_drums",
    "playing_guitar",
    "playing_harmonica",
    "playing_keyboard",
    "playing_organ",
    "playing_piano",
    "playing_saxophone",
    "playing_trombone",
    "playing_trumpet",
    "playing_violin",
    "playing_xylophone",
    "ripping_paper",
    "shoveling_snow",
    "shuffling_cards",
    "singing",
    "stomping_grapes",
    "tap_dancing",
    "tapping_guitar",
    "tapping_pen",
    "tickling",
)
"""In the order of the indices in OGM-GE's lists and of ``labels`` in BML's."""
SIZES = {
    "OGM-GE": {"train": 14799, "test": 2597},
    "BML": {"train": 17396, "test": 1320},
    "BML-val": {"train": 14799, "val": 1320, "test": 2597},
}
"""Clips in each part of each published scheme."""
BML_LISTS = {
    "BML": ("KS.json", {"training": "train", "validation": "test"}),
    "BML-val": ("KS_train_val.json", {"training": "train", "validation": "val", "testing": "test"}),
}
"""Scheme -> its file, and what the subsets in it are used for."""
PLACES = (".", "lists", "KineticSound", "data/KineticSound", "code/dataset")
"""Where published lists may lie below the source."""


@dataclass(frozen=True)
class KineticsSoundsOptions(ClipOptions):
    """Options of :class:`KineticsSounds`."""

    split: str = option(
        "OGM-GE",
        "OGM-GE: its lists, 14799 / 2597, and a stratified share of train for validation; BML: its KS.json, 17396 "
        "(both of those) / 1320; BML-val: its KS_train_val.json, 14799 / 1320 / 2597; own: the lists in lists/",
        source="official code of OGM-GE",
        choices=(*SIZES, "own"),
    )
    audio: str = audio_option("fbank", "official code of OGM-GE (process_audio.py) and MMPareto")


class KineticsSounds(CutClips):
    """Kinetics-Sounds, 31 classes, clips of 10 s: ``audio`` spectrogram and ``video`` frames ``[3, T, 224, 224]``.

    Source: a folder with lists and, at any depth, clips: videos named ``<YouTube id>_<start>_<end>``,
    ``<id>_<start>`` (seconds, with zeros in front or not) or ``<id>``; or folders of extracted frames and sound files
    of such names. Clips of other classes are not looked at. A listed clip that is missing is listed as a problem.

    Lists: OGM-GE's ``my_train.txt`` and ``my_test.txt``, lines ``<id>_<start>_<end>,10,<class>`` (in its test list
    ``<id>_<start>,10,<class>``) with the index of the class or its name; BML's ``KS.json`` and ``KS_train_val.json``.
    They must be whole, whatever clips are there. ``own`` reads ``train.txt``, ``test.txt`` and, if there, ``val.txt``
    in ``lists/``, lines as OGM-GE's, of any number.

    Two protocols are called Kinetics-Sounds: ``OGM-GE`` tests on 2597 clips that ``BML`` trains on; figures of one
    must not stand beside those of the other. BML's code as published runs on ``KS_train_val.json`` (``BML-val``):
    the clips of ``OGM-GE`` with validation clips of their own.

    ``aspect`` 16/9: what YouTube plays; clips keep the shape they were uploaded with, and no count was published. In
    copies of Kinetics scaled to 340 x 256 all are 4/3.

    Departures from the official code: its script takes the fbank of each file's first channel at the file's own rate,
    here it is that of the channels' mean at 16 kHz. Its frames 1, 1 + n/3 and 1 + 2n/3, in training and test alike, are
    ``fps=1 n_frames=3 pick=start``. With ``pick=segment`` clips of six frames and less show the first one throughout,
    as in the codes of InfoReg and BalanceBenchmark, which leave out those of three and less. Clips of 10 s at one frame
    a second have ten or eleven.

    Reference: R. Arandjelovic and A. Zisserman, Look, Listen and Learn, ICCV 2017; W. Kay et al., The Kinetics Human
    Action Video Dataset, arXiv 1705.06950. Lists: X. Peng et al., OGM-GE, CVPR 2022 (github.com/GeWu-Lab/
    OGM-GE_CVPR2022, data/KineticSound); Y. Wei et al., On-the-fly Modulation for Balanced Multimodal Learning, TPAMI
    2024 (github.com/GeWu-Lab/BML_TPAMI2024, code/dataset).
    """

    name = "kinetics_sounds"
    reference = "Arandjelovic and Zisserman, ICCV 2017; protocol of Peng et al., OGM-GE, CVPR 2022"
    needs = "what prepare.py made of Kinetics-Sounds"
    source = (
        "clips of Kinetics-400 (<id>_<start>_<end>.mp4, any depth) with OGM-GE's my_train.txt and my_test.txt "
        "(github.com/GeWu-Lab/OGM-GE_CVPR2022, data/KineticSound) or BML's KS.json or KS_train_val.json "
        "(github.com/GeWu-Lab/BML_TPAMI2024, code/dataset); lists of your own in lists/"
    )
    lists = {
        "OGM-GE": "OGM-GE's my_train.txt and my_test.txt (github.com/GeWu-Lab/OGM-GE_CVPR2022, data/KineticSound)",
        **{s: f"BML's {file} (github.com/GeWu-Lab/BML_TPAMI2024, code/dataset)" for s, (file, _) in BML_LISTS.items()},
        "own": "train.txt and test.txt in lists/",
    }
    Options = KineticsSoundsOptions

    def listing(self, source: Path) -> Listing:
        """Every clip that a list names."""
        items, problems = self.items(source, _listed(source))
        return Listing(items, CLASSES, problems)


def _listed(source: Path) -> dict[Name, tuple[str, dict[str, str]]]:
    """Clip -> class and {scheme: part} of all lists that are there."""
    schemes = _schemes(source)
    if not schemes:
        raise UserError(f"{source} must hold {KineticsSounds.source}; found no list")
    listed: dict[Name, tuple[str, dict[str, str]]] = {}
    for scheme, parts in schemes.items():
        for part, clips in parts.items():
            for name, label in clips.items():
                known, columns = listed.setdefault(name, (label, {}))
                if known != label:
                    raise UserError(f"a clip must have one class in all lists, found {name} as {known} and {label}")
                if scheme in columns:
                    raise UserError(
                        f"a clip must be in one part of a split only, found {name} in {columns[scheme]} and {part} of "
                        f"{scheme}"
                    )
                columns[scheme] = part
    return listed


def _schemes(source: Path) -> dict[str, dict[str, dict[Name, str]]]:
    """Scheme -> part -> clip -> class of all lists that are there."""
    schemes = {}
    if (path := _place(source, "my_train.txt")) is not None:
        schemes["OGM-GE"] = {part: read_list(path.with_name(f"my_{part}.txt")) for part in ("train", "test")}
    for scheme, (file, subsets) in BML_LISTS.items():
        if (path := _place(source, file)) is not None:
            schemes[scheme] = read_json(path, subsets)
    for scheme, parts in schemes.items():
        found = {part: len(clips) for part, clips in parts.items()}
        if found != SIZES[scheme]:
            raise UserError(
                f"the lists of {scheme} must have {_sizes(SIZES[scheme])} clips, found {_sizes(found)}; fetch them "
                "again whole (clips may be missing) or, for lists of your own, put them in lists/ and set split=own"
            )
    if (source / "lists" / "train.txt").is_file():
        own = ["train", "test"] + (["val"] if (source / "lists" / "val.txt").is_file() else [])
        schemes["own"] = {part: read_list(source / "lists" / f"{part}.txt") for part in own}
    return schemes


def _sizes(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {count}" for part, count in parts.items())


def _place(source: Path, file: str) -> Path | None:
    return next((path for place in PLACES if (path := source / place / file).is_file()), None)


def read_list(path: Path) -> dict[Name, str]:
    """``{(id, start): class}`` of a list without header, ``<id>_<start>_<end>,10,<class>`` a line.

    The class is an index into :data:`CLASSES` or a name, with spaces or underscores; the end may be left out.

    Raises:
        UserError: absent list, malformed line, unknown class, or a clip listed twice.
    """
    if not path.is_file():
        raise UserError(f"{path} must be a list of clips, it is absent; put it beside the other lists")
    lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    rows = [(f"line {number}", row) for number, row in enumerate(csv.reader(lines), start=1) if row]
    for where, row in rows:
        if len(row) != 3:
            raise UserError(
                f"{path} must hold lines such as -00nar1nEPc_000033_000043,10,13, found {','.join(row)!r} in {where}"
            )
    return _collect(path, ((where, row[0], row[2]) for where, row in rows))


def read_json(path: Path, subsets: Mapping[str, str]) -> dict[str, dict[Name, str]]:
    """``{part: {(id, start): class}}`` of a list of BML.

    Args:
        path: ``{"labels": [...], "database": {"<id>_<start>_<end>": {"subset": "training", "label": "<class>"}}}``.
        subsets: subset -> part.

    Raises:
        UserError: not such JSON, or an unknown subset or class.
    """
    try:
        database = json.loads(path.read_bytes())["database"]
        rows = [(name, entry["subset"], entry["label"]) for name, entry in database.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f'{path} must be JSON such as {{"database": {{"<id>_<start>_<end>": {{"subset": "training", "label": '
            '"bowling"}}}}, it is not; fetch it again'
        ) from None
    for name, subset, _ in rows:
        if subset not in subsets:
            raise UserError(f"subsets in {path} must be {', '.join(subsets)}, found {subset!r} of {name}")
    return {
        part: _collect(path, ((f"{name!r}", name, label) for name, found, label in rows if found == subset))
        for subset, part in subsets.items()
    }


def _collect(path: Path, rows: Iterable[tuple[str, str, Any]]) -> dict[Name, str]:
    """Checked rows (where it stands, name of the clip, class)."""
    clips: dict[Name, str] = {}
    for where, text, label in rows:
        name = clip_name(text.strip())
        if name is None or name[1] is None:
            raise UserError(f"{path} must name clips like -00nar1nEPc_000033_000043, found {text!r} in {where}")
        label = str(label).strip().replace(" ", "_")
        if label.isdecimal() and int(label) < len(CLASSES):
            label = CLASSES[int(label)]
        if label not in CLASSES:
            raise UserError(
                f"classes in {path} must be 0 to {len(CLASSES) - 1} or names such as {CLASSES[2]}, found {label!r} in "
                f"{where}"
            )
        if name in clips:
            raise UserError(f"{path} must list a clip once, found {text} again in {where}")
        clips[name] = label
    return clips
