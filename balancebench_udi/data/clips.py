"""Audio-visual clips: what every dataset of sound and video shares, from files to a pack and from a pack to batches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import Affine, Modality
from balancebench_udi.data.frames import CROP, LEAST_AREA, PICKED, PICKS, FrameTransform, TimeCrop
from balancebench_udi.data.pack import SILENT, Item, Pack, Packed, Stored
from balancebench_udi.data.sound import SILENCE, SPECTROGRAMS, WHOLE, Span
from balancebench_udi.errors import UserError

SAMPLINGS = ("time", "as_published")
"""Which frames of a video are candidates."""


def audio_option(default: str, source: str) -> Any:
    """The option that says what sound becomes."""
    about = "; ".join(f"{name}: {s.about}" for name, s in SPECTROGRAMS.items())
    return option(default, f"what sound becomes: {about}", source=source, choices=tuple(SPECTROGRAMS))


@dataclass(frozen=True)
class ClipOptions(Options):
    """Options of every dataset of clips; a subclass adds ``split`` and changes defaults."""

    audio: str = audio_option("ogm_stft", "official code of OGM-GE")
    fps: int = option(3, "frames a second that are candidates", source="ours, as InfoReg", at_least=1, at_most=30)
    sampling: str = option(
        "time",
        "which frames of a video these are: the first one at or after every 1/fps s (time), or (as_published) those "
        "that OGM-GE's code extracts, which takes 29.97 frames a second for 29",
        source="ours",
        choices=SAMPLINGS,
    )
    candidates: int = option(
        8, "most candidate frames kept of a clip (uniform segment centres of more)", source="ours", at_least=1
    )
    stored_size: int = option(256, "side of the stored square frames, pixels", source="ours", at_least=CROP)
    n_frames: int = option(3, "frames of a clip that the encoder sees", source="ours, as InfoReg", at_least=1)
    pick: str = option("random", PICKED, source="ours, as InfoReg", choices=PICKS)
    augment: bool = option(
        True,
        "in training, choose and crop frames at random; false: show them as in testing",
        source="official codes, all but that of Diagnosing & Re-learning",
    )
    same_crop: bool = option(
        False,
        "one crop and mirror for all frames of a clip instead of one each",
        source="official codes, all but that of BML",
    )
    crop_area: float = option(
        LEAST_AREA, "least share of a picture that a training crop shows", source="torchvision", above=0, at_most=1
    )
    view: str = option(
        "whole",
        "what testing shows of a picture: all of it, squeezed to a square (whole), or the central square (centre)",
        source="official codes, all but that of BML",
        choices=("whole", "centre"),
    )
    size: int = option(
        CROP, "side of the frames that the encoder sees, pixels", source="official codes", at_least=32, at_most=CROP
    )
    val_share: float = option(0.1, "share of every class of train held out", source="ours", above=0)
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)


CLIP_PREPARED = ("audio", "fps", "sampling", "candidates", "stored_size")
"""The options of :class:`ClipOptions` that decide what a pack holds."""


@dataclass(frozen=True)
class Clip:
    """Where the sound and the pictures of one clip are.

    Attributes:
        sound: a sound or video file.
        pictures: extracted frames in order, or one video.
        span: the part of sound and video that is the clip; extracted frames are taken as they are.
    """

    sound: Path
    pictures: tuple[Path, ...]
    span: Span = WHOLE

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((self.sound, *self.pictures)))


VIDEO = (".mp4", ".avi", ".flv", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".3gp")
SOUND = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus")
PICTURES = (".jpg", ".jpeg", ".png")


class Clips(Packed):
    """Base of datasets of clips: ``audio`` spectrogram and ``video`` frames ``[3, T, 224, 224]``, two ResNet-18.

    A subclass lists its source: items whose ``detail`` is :meth:`describe` of a :class:`Clip`. In training ``n_frames``
    of the candidates are chosen by ``pick`` and cropped at random; see
    :class:`~balancebench_udi.data.frames.FrameTransform`. A silent clip is kept and listed.

    Attributes:
        aspect: width by height of most of its videos.
        few: candidates up to which ``pick=segment`` takes the first one throughout.
    """

    version: ClassVar[int] = 3
    prepared: ClassVar[tuple[str, ...]] = CLIP_PREPARED
    aspect: ClassVar[float] = 4 / 3
    few: ClassVar[int] = 0
    Options = ClipOptions

    @staticmethod
    def item(name: str, label: str, clip: Clip, columns: Mapping[str, str]) -> Item:
        """The item of a clip."""
        where = {path: i for i, path in enumerate(clip.files)}
        detail = {
            "sound": where[clip.sound],
            "pictures": [where[p] for p in clip.pictures],
            "span": [clip.span.start, clip.span.end],
        }
        return Item(name, label, clip.files, columns, detail)

    def stored(self) -> Mapping[str, Stored]:
        """Float16 spectrogram; uint8 candidates ``[K, S, S, 3]``."""
        o = self.options
        return {
            "audio": Stored(SPECTROGRAMS[o.audio].shape, "float16"),
            "video": Stored((o.candidates, o.stored_size, o.stored_size, 3), "uint8"),
        }

    def decode(self, item: Item) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """Sound to a spectrogram, pictures to candidates."""
        from balancebench_udi.data.media import (  # here: packs do without
            as_candidates,
            read_pictures,
            read_sound,
            read_video,
        )

        o = self.options
        detail: Any = item.detail
        span = Span(*detail["span"])
        samples, rate = read_sound(item.files[detail["sound"]], span)
        remarks = [SILENT] if float(samples.abs().max()) < SILENCE else []
        paths = [item.files[i] for i in detail["pictures"]]
        if paths and paths[0].suffix.lower() not in PICTURES:
            pictures = read_video(paths[0], o.fps, o.candidates, span, o.sampling == "as_published")
        else:
            pictures = read_pictures(paths, o.candidates)
        values = {
            "audio": SPECTROGRAMS[o.audio](samples, rate).numpy().astype(np.float16),
            "video": as_candidates(pictures, o.candidates, o.stored_size),
        }
        return values, remarks

    def modalities(self, pack: Pack) -> Mapping[str, Modality]:
        """A spectrogram and frames."""
        o = self.options
        sound = SPECTROGRAMS[o.audio]
        shape = (*sound.shape[:2], sound.crop or sound.shape[2])
        frames = FrameTransform(
            o.n_frames,
            o.candidates,
            o.pick,
            o.same_crop,
            self.aspect,
            size=o.size,
            least_area=o.crop_area,
            central=o.view == "centre",
            augment=o.augment,
            few=self.few,
        )
        return {
            "audio": Modality("spectrogram", shape, "resnet18", TimeCrop(sound.crop) if sound.crop else Affine()),
            "video": Modality("frames", (3, o.n_frames, o.size, o.size), "resnet18", frames),
        }


def extracted_frames(folder: Path) -> tuple[Path, ...]:
    """The pictures in a folder, by name, numbers in it by size (9.jpg, 10.jpg); hidden ones are none."""
    if not folder.is_dir():
        return ()
    pictures = (p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    return tuple(sorted(pictures, key=lambda p: (_by_number(p.name), p.name)))


def _by_number(name: str) -> list[str | int]:
    """What to sort names by, so that numbers in them go by size: text and numbers in turn."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from ``folder`` on, each once however it is linked, with its files; in order, nothing hidden.

    Raises:
        OSError: a folder that cannot be read: what is in it must not count as missing.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for here, below, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:  # by a link
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(here), sorted(name for name in files if not name.startswith("."))


def find_clips(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Name without suffix -> file, of all files below ``folder`` with one of the suffixes.

    Raises:
        UserError: two files of one name.
    """
    found: dict[str, Path] = {}
    for here, files in walk(folder) if folder.is_dir() else ():
        for path in (here / name for name in files):
            if path.suffix.lower() in suffixes:
                if path.stem in found:
                    raise UserError(f"a clip must be there once, found {found[path.stem]} and {path}; remove one")
                found[path.stem] = path
    return found
