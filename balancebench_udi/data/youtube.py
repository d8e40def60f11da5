"""Clips cut out of YouTube videos: finding them below a folder, by the names that they are distributed under."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from balancebench_udi.data.clips import PICTURES, SOUND, VIDEO, Clip, Clips, extracted_frames, walk
from balancebench_udi.data.pack import Item, Problem
from balancebench_udi.data.sound import WHOLE, Span
from balancebench_udi.errors import UserError

LONGEST = 15.0
"""Seconds: a longer video is not a clip of 10 s but what it was cut from."""
Name = tuple[str, int | None]
"""YouTube id, and second at which the clip starts; None where a file's name does not tell."""
_NAME = re.compile(r"([\w-]{11})(?:_(\d{1,8})(?:_(\d{1,8}))?)?", re.ASCII)
_REPLACED = "replacement"
"""How folders begin whose clips stand for damaged ones of the same name (CVDF's copy of Kinetics)."""


@dataclass(frozen=True)
class Media:
    """What lies below a folder: name of a clip -> its sound file, its video, its folder of extracted frames.

    Attributes:
        again: another file or folder of a name, by the first one.
    """

    sounds: Mapping[Hashable, Path]
    videos: Mapping[Hashable, Path]
    frames: Mapping[Hashable, Path]
    again: Mapping[Path, Path] = field(default_factory=dict)

    def clip(self, names: Sequence[Hashable], span: Span = WHOLE) -> Clip | str:
        """The clip that has one of the names, or what is missing of it.

        Sound is that of a sound file, else of the video; pictures are those of the video, else the extracted ones.

        Raises:
            UserError: it is there twice.
        """
        for found in (self.sounds, self.videos, self.frames):
            for path in (found[n] for n in names if n in found):
                if path in self.again:
                    raise UserError(f"a clip must be there once, found {path} and {self.again[path]}; remove one")
        sound = next((found[n] for found in (self.sounds, self.videos) for n in names if n in found), None)
        video = next((self.videos[n] for n in names if n in self.videos), None)
        folder = next((self.frames[n] for n in names if n in self.frames), None)
        if sound is None:
            return "its sound or video file must be below the source, it is missing"
        if video is not None:
            return Clip(sound, (video,), span)
        if folder is not None:
            return Clip(sound, extracted_frames(folder), span)
        return "its video or a folder of its frames must be below the source, it is missing"


def find_media(source: Path, frames: str, name: Callable[[str], Hashable | None]) -> Media:
    """Everything below ``source`` that ``name`` recognises, at any depth, in each folder once however it is linked.

    What lies in a folder ``replacement...`` goes before what is elsewhere.

    Args:
        frames: regular expression of the name of a folder that may hold folders of frames, one a clip.
        name: from a file's or folder's name without suffix to a clip's name, None where it is not one.
    """
    kinds = dict.fromkeys(SOUND, "sounds") | dict.fromkeys(VIDEO, "videos")
    found: dict[str, dict[Hashable, Path]] = {"sounds": {}, "videos": {}, "frames": {}}
    again: dict[Path, Path] = {}
    for here, files in walk(source):
        suffixes = {file: os.path.splitext(file)[1].lower() for file in files}
        paths = [(kinds[suffix], here / file) for file, suffix in suffixes.items() if suffix in kinds]
        if not set(PICTURES).isdisjoint(suffixes.values()) and re.fullmatch(frames, here.parent.name):
            paths.append(("frames", here))
        for kind, path in paths:
            key = name(path.stem if path.suffix.lower() in kinds else path.name)
            if key is None:
                continue
            known = found[kind].setdefault(key, path)
            replaces = _is_replacement(path, source)
            if known is not path and replaces == _is_replacement(known, source):
                again[known] = path
            elif replaces:
                found[kind][key] = path
    return Media(**found, again=again)


def _is_replacement(path: Path, source: Path) -> bool:
    return any(part.startswith(_REPLACED) for part in path.relative_to(source).parts[:-1])


def clip_name(text: str) -> Name | None:
    """``<YouTube id>``, ``<id>_<start>`` or ``<id>_<start>_<end>``, zeros or not, to id and start; None for others.

    Start and end are seconds; milliseconds where they lie 1000 and more apart.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    start, end = (None if number is None else int(number) for number in match.groups()[1:])
    if start is not None and end is not None and end - start >= 1000:
        start //= 1000
    return match[1], start


class CutClips(Clips):
    """Base of datasets of 10 s clips that were cut out of YouTube videos."""

    aspect = 16 / 9
    few = 6
    """As in the codes of InfoReg and BalanceBenchmark: at one frame a second, clips of 6 s and less."""

    def items(
        self, source: Path, listed: Mapping[Name, tuple[str, Mapping[str, str]]]
    ) -> tuple[list[Item], list[Problem]]:
        """An item for each listed clip that lies below the source, a problem for each other.

        A file or folder may be named by the id alone where only one clip of that id is listed. Folders of frames may
        lie anywhere, and those in ``Image-NN-FPS/`` must have the option's frames a second.

        Args:
            listed: name -> class and columns.
        """
        own = rf"Image-{self.options.fps:02d}-FPS|(?!Image-\d+-FPS).*"
        media = find_media(source, own, clip_name)
        times = Counter(name[0] for name in listed)
        items, problems = [], []
        for name, (label, columns) in sorted(listed.items()):
            names = [name] if times[name[0]] > 1 else [name, (name[0], None)]
            clip = media.clip(names)
            title = f"{name[0]}_{name[1]:06d}"
            if isinstance(clip, str):
                problems.append(Problem(title, clip))
            else:
                items.append(self.item(title, label, clip, columns))
        found = {**media.frames, **media.sounds, **media.videos}
        known = {name for start in listed for name in (start, (start[0], None))}
        if found and known.isdisjoint(found):
            raise UserError(
                f"clips in {source} must be named as its list names them, such as {problems[0].id}, found {len(found)} "
                f"others, such as {next(iter(found.values()))}; rename them or give their list"
            )
        return items, problems

    def decode(self, item: Item) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """As :meth:`Clips.decode`, but not of a video that was not cut."""
        for path in item.files:
            seconds = _duration(path) if path.suffix.lower() in (*VIDEO, *SOUND) else 0.0
            if seconds > LONGEST:
                raise UserError(f"{path} must be the clip of 10 s alone, it lasts {seconds:.0f} s; cut it out")
        return super().decode(item)


def _duration(path: Path) -> float:
    """Seconds that a file says it lasts; 0 where it does not, or cannot be read."""
    import av  # here: prepared data do without

    from balancebench_udi.data.container import open_media

    try:
        with open_media(path) as container:
            return (container.duration or 0) / av.time_base
    except (av.FFmpegError, ValueError):
        return 0.0
