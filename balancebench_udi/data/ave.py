"""AVE: audio-visual events in YouTube videos, from the authors' videos and lists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from balancebench_udi.config import option
from balancebench_udi.data.clips import CLIP_PREPARED, ClipOptions, Clips, audio_option
from balancebench_udi.data.pack import Item, Listing, Problem
from balancebench_udi.data.sound import WHOLE, Span
from balancebench_udi.data.youtube import find_media
from balancebench_udi.errors import UserError

SIZES = {"train": 3339, "val": 402, "test": 402}
"""Lines of the published lists."""
CLASSES = 28
SECONDS = 10
"""Length of a video."""
PLACES = (".", "AVE_Dataset", "AVE")
"""Where the lists may lie below the source."""
_ID = re.compile(r"[\w-]{11}", re.ASCII)


@dataclass(frozen=True)
class AVEOptions(ClipOptions):
    """Options of :class:`AVE`."""

    audio: str = audio_option("pmr_1004", "official code of PMR")
    n_frames: int = option(4, "frames of a clip that the encoder sees", source="paper of PMR", at_least=1)
    segment: str = option(
        "event",
        "what of a video is the sample: its event, from its start to its end (event), or all of its 10 s (clip)",
        source="official code of PMR (its folders -SE)",
        choices=("event", "clip"),
    )


@dataclass(frozen=True)
class Event:
    """One line of a list: class, YouTube id, and the seconds from and to which it can be seen and heard."""

    label: str
    video: str
    start: int
    end: int


class AVE(Clips):
    """AVE, 28 classes of events in videos of 10 s: ``audio`` spectrogram and ``video`` frames ``[3, T, 224, 224]``.

    Source: a folder with ``trainSet.txt``, ``valSet.txt`` and ``testSet.txt`` (3339 / 402 / 402 lines
    ``class&id&quality&start&end``; also in ``AVE_Dataset/``) and, at any depth, videos ``<YouTube id>.mp4``; or sound
    files of that name with extracted frames in ``Image-NN-FPS-SE/<id>/`` (``segment=clip``: ``Image-NN-FPS/<id>/``),
    NN being the option fps. A listed video that is missing is listed as a problem. Classes are in the order of their
    first line in ``testSet.txt``, as in PMR's code.

    A video with several events has several lines. As in PMR's code the first line of a list counts, the others are
    left out and listed. One video may stand in two lists, as another class: such samples are kept, as published, and
    listed. An event of no length (the published 0 to 0 of VWi2ENBuTbw) is taken as the whole video, and listed.

    This is classification of whole events; localisation of events second by second, with a class for the background,
    is another task on the same videos and its figures do not compare.

    ``aspect`` 16/9: what YouTube plays; videos keep the shape they were uploaded with, and no count was published.

    Departures from PMR's code: the event ends with its last second, where PMR adds one more frame; an event of fewer
    than 10 frames is not filled with randomly drawn ones, its last one repeats (``pick=first``); and each line has its
    own event, where PMR's files hold that of the video's last line in Annotations.txt.

    Reference: Y. Tian et al., Audio-Visual Event Localization in Unconstrained Videos, ECCV 2018
    (github.com/YapengTian/AVE-ECCV18). Protocol: Y. Fan et al., PMR, CVPR 2023 (official code).
    """

    name = "ave"
    reference = "Tian et al., ECCV 2018; protocol of Fan et al., PMR, CVPR 2023"
    needs = "what prepare.py made of AVE"
    source = (
        "AVE (github.com/YapengTian/AVE-ECCV18): trainSet.txt, valSet.txt and testSet.txt with the videos <id>.mp4 at "
        "any depth"
    )
    prepared = (*CLIP_PREPARED, "segment")
    aspect = 16 / 9
    Options = AVEOptions

    def scheme(self) -> str:
        """There is one: the authors' lists."""
        return "official"

    def listing(self, source: Path) -> Listing:
        """Every video that a list names, once a list."""
        lists = _lists(source)
        classes = tuple(dict.fromkeys(event.label for event in lists["test"]))
        labels = {event.label for events in lists.values() for event in events}
        if len(classes) != CLASSES or set(classes) != labels:
            raise UserError(
                f"AVE's lists must have {CLASSES} classes, all of them in testSet.txt, found {len(classes)} there and "
                f"{len(labels)} in all; fetch the lists again"
            )
        event = self.options.segment == "event"
        frames = f"Image-{self.options.fps:02d}-FPS{'-SE' if event else ''}"
        media = find_media(source, frames, lambda text: text if _ID.fullmatch(text) else None)
        items: list[Item] = []
        problems = []
        first: dict[tuple[str, str], str] = {}
        for part, events in lists.items():
            for e in events:
                name = f"{e.video}_{part}"
                if (e.video, part) in first:
                    reason = f"the line as {e.label} is left out: the first of a video counts, {first[e.video, part]}"
                    problems.append(Problem(name, reason, kept=True))
                    continue
                first[e.video, part] = e.label
                whole = e.start == e.end or not event
                found = media.clip([e.video], WHOLE if whole else Span(e.start, e.end))
                if isinstance(found, str):
                    problems.append(Problem(name, found))
                    continue
                for other in SIZES:
                    if other != part and (e.video, other) in first:
                        reason = f"its video is in {other}, too, as {first[e.video, other]}"
                        problems.append(Problem(name, reason, kept=True))
                if event and e.start == e.end:
                    reason = f"its event has no length ({e.start} to {e.end} s), the whole video is taken"
                    problems.append(Problem(name, reason, kept=True))
                items.append(self.item(name, e.label, found, {self.scheme(): part}))
        return Listing(items, classes, problems)


def _lists(source: Path) -> dict[str, list[Event]]:
    folder = next((source / p for p in PLACES if (source / p / "testSet.txt").is_file()), None)
    if folder is None:
        raise UserError(f"{source} must hold {AVE.source}; found no testSet.txt")
    lists = {part: read_list(folder / f"{part}Set.txt") for part in SIZES}
    for part, size in SIZES.items():
        if len(lists[part]) != size:
            raise UserError(
                f"{folder / part}Set.txt must have the {size} lines of AVE, found {len(lists[part])}; fetch it again "
                "whole (videos may be missing)"
            )
    return lists


def read_list(path: Path) -> list[Event]:
    """The events of a list, ``class&id&quality&start&end`` a line, in its order; a header is accepted.

    Raises:
        UserError: absent list, or a malformed line.
    """
    if not path.is_file():
        raise UserError(f"{path} must be a list of events, it is absent; put it beside the other lists")
    events = []
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig", errors="replace").splitlines(), start=1):
        fields = [field.strip() for field in line.split("&")]
        if not line.strip() or (number == 1 and fields[:2] == ["Category", "VideoID"]):
            continue
        event = _event(fields)
        if event is None:
            raise UserError(
                f"{path} must hold lines such as Church bell&MH3m4AwEcRY&good&6&8, seconds in 0 to {SECONDS}, found "
                f"{line!r} in line {number}"
            )
        events.append(event)
    return events


def _event(fields: list[str]) -> Event | None:
    if len(fields) != 5 or not fields[0] or not _ID.fullmatch(fields[1]):
        return None
    if not (fields[3].isdecimal() and fields[4].isdecimal() and int(fields[3]) <= int(fields[4]) <= SECONDS):
        return None
    return Event(fields[0], fields[1], int(fields[3]), int(fields[4]))
