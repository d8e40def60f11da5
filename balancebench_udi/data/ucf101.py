"""UCF101: human actions from RGB frames and optical flow, with the three official splits."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import Modality
from balancebench_udi.data.clips import VIDEO, find_clips
from balancebench_udi.data.frames import CROP, PICKED, PICKS, FrameTransform, segment_centres
from balancebench_udi.data.media import as_candidates, read_pictures, read_video
from balancebench_udi.data.pack import Item, Listing, Pack, Packed, Problem, Stored
from balancebench_udi.errors import UserError
from balancebench_udi.seeding import generator

CLASSES = 101
SIZES = {"1": (9537, 3783), "2": (9586, 3734), "3": (9624, 3696)}
"""Clips of train and test of each official split."""
LISTS = ("ucfTrainTestlist", "annotations", ".")
VIDEOS = ("UCF-101", "videos")
PICTURES = ("jpegs_256", "rawframes")
FLOWS = ("tvl1_flow", "flow", "rawframes")
"""Where lists, videos, extracted frames and flow may lie below the dataset's folder; the first that has a clip."""
_ASPECT = 4 / 3
_CENTRED = (0.5, 0.5)
_LINE = re.compile(r"(\w+)/(v_(\w+)_(g\d\d)_c\d\d)\.avi(?:\s+(\d+))?")
_PICTURE = r".*?(\d+)\.(?i:jpe?g|png)"


@dataclass(frozen=True)
class UCF101Options(Options):
    """Options of :class:`UCF101`."""

    split: str = option("1", "official split", source="BalanceBenchmark, official code", choices=tuple(SIZES))
    candidates: int = option(
        6,
        "most candidate frames kept of a clip, the centres of equal segments",
        source="BalanceBenchmark, official code",
        at_least=1,
    )
    stored_size: int = option(256, "side of the stored square frames and flow, pixels", source="ours", at_least=CROP)
    n_frames: int = option(
        3, "frames of a clip that the encoder sees", source="BalanceBenchmark, official code", at_least=1
    )
    pick: str = option(
        "segment",
        PICKED,
        source="BalanceBenchmark, official code",
        choices=PICKS,
    )
    same_crop: bool = option(False, "one crop and mirror for all frames of a clip instead of one each", source="ours")
    val_share: float = option(
        0.1, "share of every class of train held out, in whole groups", source="ours", above=0, at_most=0.5
    )
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)


class UCF101(Packed):
    """UCF101, 13320 clips of 101 actions: ``rgb`` frames ``[3, T, 224, 224]``, ``flow`` ``[2, T, 224, 224]`` (u, v).

    Source: the official lists in ``ucfTrainTestlist/``. Frames of a clip come from ``jpegs_256/<clip>/``, else
    ``rawframes/``, else ``UCF-101/<class>/<clip>.avi``. Optical flow is read, not computed: grey pictures with 127.5
    standing still, in ``tvl1_flow/u/<clip>/`` (horizontal) and ``tvl1_flow/v/<clip>/``, as Feichtenhofer et al.
    distribute them, or ``flow_x_*`` and ``flow_y_*`` in ``tvl1_flow/``, ``flow/`` or ``rawframes/<clip>/``, as
    dense_flow writes them. Folders of classes between are accepted, and so is v_HandStandPushups for
    v_HandstandPushups, which the distributions spell differently. A clip without frames or flow is left out and listed.

    Candidate k of ``rgb`` and candidate k of ``flow`` are the same moment: positions are the centres of equal segments
    of the shorter of the two lists, and position i of n is i N / n (rounded down) of the longer, which has N. In
    training, choice, crop and mirror are drawn for each modality on its own, as in BalanceBenchmark. Flow is scaled to
    -1..1; mirrored, its u is negated. Its values are not rescaled with the picture.

    Splits: ``1``, ``2`` and ``3`` are official and have no validation. Clips of one group (``gNN``) are cut from one
    video, so validation takes whole groups of every class of train, in a random order, until ``val_share`` of the
    class is reached.

    The defaults are BalanceBenchmark's 3 frames, one of each third of 6, in testing the first of each. It draws flow
    from all frames of each third, resizes the whole picture instead of a random crop, does not negate u, and leaves
    flow in 0..1; these are not options. MMPareto differs by encoders that begin with ImageNet's weights: protocol
    mmpareto, with the file named by ``--set encoder.rgb.weights=FILE --set encoder.flow.weights=FILE``. DI-MML
    draws consecutive frames and one crop for both modalities: ``same_crop=true`` is one crop for all frames of a
    modality, consecutive frames are not offered.

    Reference: K. Soomro, A. R. Zamir and M. Shah, UCF101: A Dataset of 101 Human Actions Classes From Videos in The
    Wild, arXiv:1212.0402 (2012). Flow: C. Feichtenhofer, A. Pinz and A. Zisserman, Convolutional Two-Stream Network
    Fusion, CVPR 2016. Frames: BalanceBenchmark (Xu et al., 2025), official code; Y. Wei and D. Hu, MMPareto, ICML 2024;
    Y. Fan et al., DI-MML, ACM MM 2024, official code.
    """

    name = "ucf101"
    version = 2
    reference = "Soomro et al., arXiv:1212.0402 (2012); flow of Feichtenhofer et al., CVPR 2016"
    needs = "what prepare.py made of UCF101"
    source = (
        "UCF101 (www.crcv.ucf.edu/data/UCF101.php): the lists in ucfTrainTestlist/, the videos in UCF-101/ or "
        "extracted frames in jpegs_256/, and optical flow in tvl1_flow/u/ and tvl1_flow/v/ "
        "(github.com/feichtenhofer/twostreamfusion)"
    )
    lists = {split: f"trainlist0{split}.txt and testlist0{split}.txt in ucfTrainTestlist/" for split in SIZES}
    prepared = ("candidates", "stored_size")
    Options = UCF101Options
    unit = "video"
    unit_columns = ("class", "group")

    def stored(self) -> Mapping[str, Stored]:
        """Uint8 candidates ``[K, S, S, 3]`` and ``[K, S, S, 2]``."""
        k, s = self.options.candidates, self.options.stored_size
        return {"rgb": Stored((k, s, s, 3), "uint8"), "flow": Stored((k, s, s, 2), "uint8")}

    def listing(self, source: Path) -> Listing:
        """Every clip that a list names."""
        folder, lists = _folders(source)
        classes, clips = read_lists(lists)
        files = _Files.below(folder)
        items: list[Item] = []
        problems = []
        for name, columns in clips.items():
            found = files.find(name)
            if isinstance(found, str):
                problems.append(Problem(name, found))
            else:
                label = columns.pop("class")
                items.append(self._item(name, label, *found, columns))
        return Listing(items, classes, problems)

    def _item(
        self,
        name: str,
        label: str,
        frames: Sequence[Path],
        u: Sequence[Path],
        v: Sequence[Path],
        columns: Mapping[str, str],
    ) -> Item:
        most, whole = self.options.candidates, len(u)
        video = frames[0].suffix.lower() in VIDEO
        at, flow_at = moments(whole if video else len(frames), whole, most)
        chosen = frames if video else [frames[i] for i in at]
        detail = {"video": {"at": at, "of": whole} if video else None, "frames": len(chosen)}
        return Item(name, label, (*chosen, *(u[i] for i in flow_at), *(v[i] for i in flow_at)), columns, detail)

    def decode(self, item: Item) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """The candidates of both modalities."""
        detail: Any = item.detail
        frames, flow = item.files[: detail["frames"]], item.files[detail["frames"] :]
        if detail["video"] is not None:
            every = read_video(frames[0], math.inf)
            pictures = [every[i * len(every) // detail["video"]["of"]] for i in detail["video"]["at"]]
        else:
            pictures = read_pictures(frames)
        k, s = self.options.candidates, self.options.stored_size
        grey = [picture.getchannel(0) for picture in read_pictures(flow)]
        u, v = (as_candidates(part, k, s) for part in (grey[: len(grey) // 2], grey[len(grey) // 2 :]))
        return {"rgb": as_candidates(pictures, k, s), "flow": np.concatenate([u, v], axis=-1)}, []

    def modalities(self, pack: Pack) -> Mapping[str, Modality]:
        """Frames and flow, two ResNet-18."""
        o = self.options
        frames = FrameTransform(o.n_frames, o.candidates, o.pick, o.same_crop, _ASPECT)
        flow = FrameTransform(o.n_frames, o.candidates, o.pick, o.same_crop, _ASPECT, _CENTRED, _CENTRED, flow=True)
        return {
            "rgb": Modality("frames", (3, o.n_frames, CROP, CROP), "resnet18", frames),
            "flow": Modality("flow", (2, o.n_frames, CROP, CROP), "resnet18", flow),
        }

    def partition(self, pack: Pack) -> dict[str, Tensor]:
        """By official list; validation is whole groups of train."""
        parts = super().partition(pack)
        train = parts["train"]
        groups = pack.index["group"].to_numpy()[train.numpy()]
        held = hold_out_groups(pack.target[train].numpy(), groups, self.options.val_share, self.options.val_seed)
        return {**parts, "train": train[torch.from_numpy(~held)], "val": train[torch.from_numpy(held)]}


def hold_out_groups(target: np.ndarray, groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose whole groups of every class, in a random order, until ``share`` of its samples is reached.

    Args:
        target: ``[N]`` the class of each sample.
        groups: ``[N]`` its group within the class.

    Returns:
        bool ``[N]``, True where the sample is held out; at least one group of a class is, and at least one is not.

    Raises:
        UserError: a class of one group.
    """
    stream = generator(seed, "holdout")
    held = np.zeros(len(target), dtype=bool)
    for c in np.unique(target):
        of_class = target == c
        names = np.unique(groups[of_class])
        if len(names) < 2:
            raise UserError(
                f"every class needs training clips of at least 2 groups to hold one out, found {len(names)} of class "
                f"{c}; prepare from a source with more of its clips"
            )
        for i in torch.randperm(len(names), generator=stream).tolist()[:-1]:
            if held[of_class].sum() >= share * of_class.sum():
                break
            held |= of_class & (groups == names[i])
    return held


def moments(frames: int, flows: int, most: int) -> tuple[list[int], list[int]]:
    """Positions of up to ``most`` candidates in a list of frames and in one of flow, at the same moments."""
    shorter = min(frames, flows)
    at = segment_centres(torch.tensor([shorter]), min(most, shorter))[0].tolist()
    return [i * frames // shorter for i in at], [i * flows // shorter for i in at]


def read_lists(folder: Path) -> tuple[tuple[str, ...], dict[str, dict[str, str]]]:
    """The classes in order, and of every clip its ``class``, its ``group`` and its part of each split that is there.

    Raises:
        UserError: absent or malformed lists, sizes other than the official ones, a clip in train and test.
    """
    classes = _read_classes(folder / "classInd.txt")
    clips: dict[str, dict[str, str]] = {}
    for split, sizes in SIZES.items():
        paths = {part: folder / f"{part}list0{split}.txt" for part in ("train", "test")}
        if not any(path.is_file() for path in paths.values()):
            continue
        for (part, path), size in zip(paths.items(), sizes, strict=True):
            found = _read_list(path, classes)
            if len(found) != size:
                raise UserError(f"{path} must list the {size} official clips, found {len(found)}; fetch it again")
            for name, columns in found.items():
                if split in clips.setdefault(name, columns):
                    raise UserError(f"a clip must be in train or test of split {split}, found {name} in both")
                clips[name][split] = part
    if not clips:
        raise UserError(f"{folder} must hold trainlist01.txt and testlist01.txt, found no such pair; fetch them again")
    return classes, clips


def _read_classes(path: Path) -> tuple[str, ...]:
    rows = [line.split() for line in _lines(path)]
    if [row[0] for row in rows] != [str(i + 1) for i in range(CLASSES)] or any(len(row) != 2 for row in rows):
        raise UserError(f"{path} must name {CLASSES} classes, '1 ApplyEyeMakeup' first, it does not; fetch it again")
    return tuple(row[1] for row in rows)


def _read_list(path: Path, classes: Sequence[str]) -> dict[str, dict[str, str]]:
    clips: dict[str, dict[str, str]] = {}
    for number, line in enumerate(_lines(path), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[1].casefold() != match[3].casefold():
            raise UserError(
                f"{path} must hold lines such as Archery/v_Archery_g01_c01.avi, found {line!r} in line {number}"
            )
        if match[1] not in classes or match[5] not in (None, str(classes.index(match[1]) + 1)):
            raise UserError(f"classes in {path} must be those of classInd.txt, found {line!r} in line {number}")
        if match[2] in clips:
            raise UserError(f"{path} must list a clip once, found {match[2]} again in line {number}")
        clips[match[2]] = {"class": match[1], "group": match[4]}
    return clips


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path} must be one of UCF101's lists, it is absent; put it beside the other lists")
    content = path.read_bytes().decode("utf-8-sig", errors="replace")
    return [line.strip() for line in content.splitlines() if line.strip()]


def _folders(source: Path) -> tuple[Path, Path]:
    """The dataset's folder and that of its lists."""
    for folder in (source, source / "ucf101", source / "UCF101"):
        for lists in LISTS:
            if (folder / lists / "classInd.txt").is_file():
                return folder, folder / lists
    raise UserError(f"{source} must hold {UCF101.source}; found no classInd.txt in {', '.join(LISTS)} below it")


@dataclass(frozen=True)
class _Files:
    """Where each clip's files are, by its name in lower case; u and v may share a folder."""

    videos: Mapping[str, Path]
    pictures: Mapping[str, Path]
    u: Mapping[str, Path]
    v: Mapping[str, Path]

    @classmethod
    def below(cls, folder: Path) -> _Files:
        videos: dict[str, Path] = {}
        pictures: dict[str, Path] = {}
        u: dict[str, Path] = {}
        v: dict[str, Path] = {}
        for name in VIDEOS:
            videos = {clip.casefold(): path for clip, path in find_clips(folder / name, VIDEO).items()} | videos
        for name in PICTURES:
            pictures = _clip_folders(folder / name) | pictures
        for name in FLOWS:
            apart = (folder / name / "u").is_dir() or (folder / name / "v").is_dir()
            u = _clip_folders(folder / name / "u" if apart else folder / name) | u
            v = _clip_folders(folder / name / "v" if apart else folder / name) | v
        return cls(videos, pictures, u, v)

    def find(self, clip: str) -> tuple[Sequence[Path], Sequence[Path], Sequence[Path]] | str:
        """Frames (or one video) and flow u, v of a clip in order, or what is missing."""
        key = clip.casefold()
        frames = list(_numbered(self.pictures.get(key), "(?!flow_)").values())
        if not frames:
            if key not in self.videos:
                return f"its frames must be in {', '.join(PICTURES)} or its video in {VIDEOS[0]}, they are missing"
            frames = [self.videos[key]]
        together = self.u.get(key) == self.v.get(key)
        u = _numbered(self.u.get(key), "flow_x" if together else "")
        v = _numbered(self.v.get(key), "flow_y" if together else "")
        if not u or not v:
            missing = " and ".join(name for name, found in (("u", u), ("v", v)) if not found)
            return f"its optical flow must be in {', '.join(FLOWS)}, {missing} of it is missing"
        if u.keys() != v.keys():
            return f"u and v of its flow must be of the same frames, found {len(u)} and {len(v)} that differ"
        return frames, list(u.values()), list(v.values())


def _clip_folders(folder: Path) -> dict[str, Path]:
    """Lower-case name -> folder of each clip in ``folder``, or one level below in folders of classes."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else ():
        clips = [path] if path.name.startswith("v_") else [p for p in path.glob("v_*") if p.is_dir()]
        found.update((clip.name.casefold(), clip) for clip in clips)
    return found


def _numbered(folder: Path | None, start: str) -> dict[int, Path]:
    """Number -> picture whose name ends with it and begins as the pattern says; in order."""
    if folder is None:
        return {}
    matches = (re.fullmatch(start + _PICTURE, name) for name in os.listdir(folder) if name[0] != ".")
    return dict(sorted((int(match[1]), folder / match[0]) for match in matches if match is not None))
