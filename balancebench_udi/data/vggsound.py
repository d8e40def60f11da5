"""VGGSound: 309 classes of sounds whose source can be seen, from clips and the published list."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from balancebench_udi.config import option
from balancebench_udi.data.clips import CLIP_PREPARED, ClipOptions, audio_option
from balancebench_udi.data.pack import Listing
from balancebench_udi.data.youtube import CutClips, Name, clip_name
from balancebench_udi.errors import UserError

CLASSES = 309
"""Number of classes of the published list."""
SIZES = {"train": 183971, "test": 15496}
"""Its lines, as counted in issue 19 of github.com/hche11/VGGSound."""
FILES = {"official": "vggsound.csv", "own": "own.csv"}
_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class VGGSoundOptions(ClipOptions):
    """Options of :class:`VGGSound`."""

    split: str = option(
        "official",
        "official: vggsound.csv, and a stratified share of train for validation; own: own.csv beside it, fewer classes "
        "or clips, say, with validation (val) or without",
        source="Chen et al., ICASSP 2020",
        choices=tuple(FILES),
    )
    audio: str = audio_option("vgg_stft", "official code of OGM-GE")


class VGGSound(CutClips):
    """VGGSound, 309 classes, about 200 000 clips of 10 s: ``audio`` spectrogram, ``video`` frames ``[3, T, 224, 224]``.

    Source: a folder with ``vggsound.csv`` and, at any depth, clips: videos named ``<YouTube id>_<start>`` (seconds,
    as six digits or without zeros), ``<id>_<start>_<end>`` or ``<id>``; or folders of extracted frames (their names may
    end in .mp4, as OGM-GE's) and sound files of such names. Lines of the list are ``id,start,label,split``, labels with
    a comma in quotes. A listed clip that is missing is listed as a problem. Classes are in the order of their first
    line in train.

    ``audio=vgg_stft`` shows the encoder 5 s of 10: a random part in training, the middle in validation and test.
    OGM-GE's code draws at random in test too, so that its score differs from call to call; ours does not. It also
    leaves out clips with 3 extracted frames or fewer; here frames repeat. Its sound files were resampled by FFmpeg and
    rounded to 16 bits: of speech at 44.1 kHz that changes ``vgg_stft`` by 0.2 nats in the mean, by 0.65 in the upper
    quarter of the bands. With ``pick=segment`` clips of six frames and less show the first one throughout, as in
    BalanceBenchmark's code.

    A pack of everything takes 1.9 MB a clip at the defaults, some 380 GB; ``candidates=4`` and ``stored_size=224`` take
    0.9 MB.

    ``aspect`` 16/9: what YouTube plays; clips keep the shape they were uploaded with, and no count was published.

    Reference: H. Chen et al., VGGSound: A Large-scale Audio-Visual Dataset, ICASSP 2020. Audio: X. Peng et al., OGM-GE,
    CVPR 2022 (official code).
    """

    name = "vggsound"
    reference = "Chen et al., VGGSound, ICASSP 2020; protocol of Peng et al., OGM-GE, CVPR 2022"
    needs = "what prepare.py made of VGGSound"
    source = (
        "clips of VGGSound (<id>_<start>.mp4, any depth) with vggsound.csv (www.robots.ox.ac.uk/~vgg/data/vggsound); a "
        "list of your own in own.csv"
    )
    prepared = (*CLIP_PREPARED, "split")
    Options = VGGSoundOptions

    def listing(self, source: Path) -> Listing:
        """Every clip that the list names."""
        split = self.options.split
        path = source / FILES[split]
        if not path.is_file():
            raise UserError(f"{source} must hold {self.source}; found no {path.name}")
        listed = read_list(path)
        found = {part: {label for label, p in listed.values() if p == part} for part in _PARTS}
        classes = tuple(dict.fromkeys(label for label, part in listed.values() if part == "train"))
        if split == "official" and (len(classes) != CLASSES or found["test"] != found["train"] or found["val"]):
            raise UserError(
                f"{path} must have the same {CLASSES} classes in train and in test, and no val, found "
                + ", ".join(f"{len(labels)} in {part}" for part, labels in found.items())
                + "; fetch it again or, for a list of your own, name it own.csv and set split=own"
            )
        sizes = Counter(part for _, part in listed.values())
        if split == "official" and sizes != SIZES:
            raise UserError(
                f"{path} must list {SIZES['train']} clips in train and {SIZES['test']} in test, found {sizes['train']} "
                f"and {sizes['test']}; fetch it again whole (clips may be missing) or, for a list of your own, name it "
                "own.csv and set split=own"
            )
        for part in ("val", "test"):
            if extra := sorted(found[part] - found["train"]):
                raise UserError(f"every class in {path} must be in train, found {extra[0]!r} in {part} only")
        named = {name: (label, {split: part}) for name, (label, part) in listed.items()}
        items, problems = self.items(source, named)
        return Listing(items, classes, problems)


def read_list(path: Path) -> dict[Name, tuple[str, str]]:
    """``{(id, start): (class, part)}`` of a list without header, ``id,start,label,split`` a line, in its order.

    Raises:
        UserError: a malformed line, a part that is not train, val or test, or a clip listed twice.
    """
    clips: dict[Name, tuple[str, str]] = {}
    lines = path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    for number, row in enumerate(csv.reader(lines), start=1):
        if not row:
            continue
        name = clip_name("_".join(row[:2])) if len(row) == 4 else None
        label = row[2].strip() if len(row) == 4 else ""
        if name is None or name[1] is None or not label:
            raise UserError(
                f"{path} must hold lines such as --0PQM4-hqg,30,waterfall burbling,train with commas of a label in "
                f"quotes, found {','.join(row)!r} in line {number}"
            )
        part = row[3].strip()
        if part not in _PARTS:
            raise UserError(f"the last field of {path} must be {', '.join(_PARTS)}, found {part!r} in line {number}")
        if name in clips:
            raise UserError(f"{path} must list a clip once, found {row[0]} from {row[1]} s again in line {number}")
        clips[name] = label, part
    return clips
