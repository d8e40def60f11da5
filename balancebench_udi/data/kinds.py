"""What a modality of anyone's own data can be: sound, video, picture, text or an array, and how it is presented."""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import Affine, Modality
from balancebench_udi.data.clips import PICTURES, extracted_frames
from balancebench_udi.data.frames import CROP, PICKED, PICKS, FrameTransform, TimeCrop
from balancebench_udi.data.npy import map_npy
from balancebench_udi.data.pack import SILENT, Stored
from balancebench_udi.data.sound import SILENCE, SPECTROGRAMS
from balancebench_udi.data.text import LENGTH, VOCABULARY, tokens
from balancebench_udi.errors import UserError

_CHUNK = 2**26  # bytes read at once for mean and standard deviation


@dataclass(frozen=True)
class ManifestOptions(Options):
    """Options of :class:`Manifest`; all but ``name`` are free after preparation."""

    name: str = option("", "name of the prepared data; when preparing, that of the source's folder", source="ours")
    n_frames: int | None = option(
        None, "frames of a video that the encoder sees, instead of the YAML's", source="ours", at_least=1
    )
    pick: str = option(
        "random",
        PICKED,
        source="ours, as InfoReg",
        choices=PICKS,
    )
    same_crop: bool = option(
        False, "one crop and mirror for all frames of a video instead of one each", source="official code of OGM-GE"
    )
    test_share: float = option(
        0.2,
        "share of every class for test; read where the CSV has no column split",
        source="ours",
        above=0,
        at_most=0.5,
    )
    val_share: float = option(
        0.1,
        "share of every class of train for val; read where no row's split is val",
        source="ours",
        above=0,
        at_most=0.5,
    )
    test_seed: int = option(0, "seed of the test split", source="ours", at_least=0)
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)


@dataclass(frozen=True)
class Kind(Options, abc.ABC):
    """Base of what a modality of the YAML can be: its keys are the fields.

    Attributes:
        kind: its name in the YAML.
    """

    kind: ClassVar[str]
    column: str = option("", "column of the CSV; without, the one named as the modality", source="ours")

    def files(self, path: Path) -> tuple[Path, ...]:
        """The files that a cell with ``path`` stands for; none where there are none."""
        return (path,) if path.is_file() else ()

    def settled(self, m: str, files: Iterable[Path]) -> Self:
        """With the sizes that only the files of modality ``m`` tell."""
        return self

    @abc.abstractmethod
    def stored(self) -> Stored:
        """What a pack keeps of a sample."""

    @abc.abstractmethod
    def decode(self, content: Any) -> tuple[np.ndarray, list[str]]:
        """The stored values, and remarks, of a list of paths (or of the text)."""

    @abc.abstractmethod
    def modality(self, options: ManifestOptions, values: Tensor, train: Tensor) -> Modality:
        """How ``values [N, ...]``, of which the rows ``train`` are training samples, are presented to the networks."""


@dataclass(frozen=True)
class Audio(Kind):
    """The sound of a sound or video file, as a spectrogram ``[1, F, T]``."""

    kind = "audio"
    preset: str = option(
        "ogm_stft",
        "; ".join(f"{name}: {s.about}" for name, s in SPECTROGRAMS.items()),
        source="official code of OGM-GE",
        choices=tuple(SPECTROGRAMS),
    )

    def stored(self) -> Stored:
        """Float16 spectrogram."""
        return Stored(SPECTROGRAMS[self.preset].shape, "float16")

    def decode(self, content: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
        """Sound to a spectrogram; silence is remarked on."""
        from balancebench_udi.data.media import read_sound  # here: prepared data do without

        samples, rate = read_sound(content[0])
        remarks = [SILENT] if float(samples.abs().max()) < SILENCE else []
        return SPECTROGRAMS[self.preset](samples, rate).numpy().astype(np.float16), remarks

    def modality(self, options: ManifestOptions, values: Tensor, train: Tensor) -> Modality:
        """A spectrogram, of which the encoder sees a random part of the time where the preset says so."""
        sound = SPECTROGRAMS[self.preset]
        shape = (*sound.shape[:2], sound.crop or sound.shape[2])
        return Modality("spectrogram", shape, "resnet18", TimeCrop(sound.crop) if sound.crop else Affine())


@dataclass(frozen=True)
class Video(Kind):
    """A video file, or a folder of its extracted frames, as frames ``[3, T, 224, 224]``."""

    kind = "video"
    fps: float = option(3.0, "frames a second that are candidates", source="ours, as InfoReg", above=0, at_most=60)
    candidates: int = option(8, "most of them that are kept (centres of equal segments)", source="ours", at_least=1)
    n_frames: int = option(3, "T, frames that the encoder sees", source="ours, as InfoReg", at_least=1)
    stored_size: int = option(256, "side of the stored square frames, pixels", source="ours", at_least=CROP)
    aspect: float = option(4 / 3, "width by height of most videos", source="ours", above=0)

    def files(self, path: Path) -> tuple[Path, ...]:
        """A video, or the pictures in a folder by name."""
        return extracted_frames(path) or super().files(path)

    def stored(self) -> Stored:
        """Uint8 candidates ``[K, S, S, 3]``."""
        return Stored((self.candidates, self.stored_size, self.stored_size, 3), "uint8")

    def decode(self, content: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
        """Pictures to candidates."""
        from balancebench_udi.data.media import (  # here: prepared data do without
            as_candidates,
            read_pictures,
            read_video,
        )

        if content[0].suffix.lower() in PICTURES:
            pictures = read_pictures(content, self.candidates)
        else:
            pictures = read_video(content[0], self.fps, self.candidates)
        return as_candidates(pictures, self.candidates, self.stored_size), []

    def modality(self, options: ManifestOptions, values: Tensor, train: Tensor) -> Modality:
        """Frames; see :class:`~balancebench_udi.data.frames.FrameTransform`."""
        n = options.n_frames or self.n_frames
        transform = FrameTransform(n, self.candidates, options.pick, options.same_crop, self.aspect)
        return Modality("frames", (3, n, CROP, CROP), "resnet18", transform)


@dataclass(frozen=True)
class Image(Kind):
    """A picture as one frame ``[3, 1, 224, 224]``."""

    kind = "image"
    stored_size: int = option(256, "side of the stored square picture, pixels", source="ours", at_least=CROP)
    aspect: float = option(4 / 3, "width by height of most pictures", source="ours", above=0)

    def stored(self) -> Stored:
        """Uint8 ``[1, S, S, 3]``."""
        return Stored((1, self.stored_size, self.stored_size, 3), "uint8")

    def decode(self, content: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
        """The picture squeezed to a square."""
        from balancebench_udi.data.media import as_candidates, read_pictures  # here: prepared data do without

        return as_candidates(read_pictures(content), 1, self.stored_size), []

    def modality(self, options: ManifestOptions, values: Tensor, train: Tensor) -> Modality:
        """One frame."""
        return Modality("frames", (3, 1, CROP, CROP), "resnet18", FrameTransform(1, 1, aspect=self.aspect))


@dataclass(frozen=True)
class Text(Kind):
    """A text that stands in the CSV, as hashed words ``[L]``; see :func:`balancebench_udi.data.text.tokens`."""

    kind = "text"
    length: int = option(LENGTH, "L, words that are kept", source="BalanceBenchmark", at_least=1)
    vocabulary: int = option(
        VOCABULARY, "ids of words, the padding among them", source="ours", at_least=2, at_most=2**24
    )

    def stored(self) -> Stored:
        """Int32 ids, 0 behind the last word."""
        return Stored((self.length,), "int32")

    def decode(self, content: str) -> tuple[np.ndarray, list[str]]:
        """Ids of the words; a text without any is remarked on."""
        ids = tokens(content, self.length, self.vocabulary)
        return ids, [] if ids[0] else [f"{self.column} holds no word"]

    def modality(self, options: ManifestOptions, values: Tensor, train: Tensor) -> Modality:
        """Token ids."""
        return Modality("tokens", (self.length,), "tokens")


@dataclass(frozen=True)
class Npy(Kind):
    """Features in a ``.npy`` file: a vector ``[D]`` or a sequence ``[T, D]``, as most of the files have it.

    Every feature is standardised by its mean and standard deviation over the training samples, over all their steps;
    one that is constant there is only centred. A sequence of fewer steps than ``length`` is followed by zeros, which
    count for nothing in that; of a longer one the first ``length`` steps are kept.
    """

    kind = "npy"
    length: int | None = option(None, "T of a sequence; none: the longest of the files", source="ours", at_least=1)
    width: int | None = option(None, "D; none: that of most files", source="ours", at_least=1)

    def settled(self, m: str, files: Iterable[Path]) -> Npy:
        """With D, and T of sequences, from the headers of the files.

        Raises:
            UserError: no file can be read, or a length is given for vectors.
        """
        shapes = [shape for path in files if (shape := _shape(path)) is not None]
        if not shapes:
            raise UserError(
                f"at least one file of column {self.column} must be an .npy file with an array [D] or [T, D] for {m}, "
                "found none; save them with numpy.save"
            )
        ((dims, common), _) = Counter((len(s), s[-1]) for s in shapes).most_common(1)[0]
        if dims == 1 and self.length is not None:
            raise UserError(f"{m}.length is for sequences [T, D], found vectors [{common}] in its files; leave it out")
        width = self.width or common
        longest = max((s[0] for s in shapes if len(s) == 2 and s[1] == width), default=1)
        return dataclasses.replace(self, width=width, length=None if dims == 1 else self.length or longest)

    def stored(self) -> Stored:
        """Float32 ``[D]`` or ``[T, D + 1]``, the last of which is 1 at a step and 0 behind the last one."""
        assert self.width is not None
        return Stored((self.width,) if self.length is None else (self.length, self.width + 1), "float32")

    def decode(self, content: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
        """The array, a sequence cut or padded."""
        array = map_npy(content[0])
        if array.dtype.kind not in "biuf":
            raise UserError(f"{content[0]} must hold numbers, found {array.dtype}; save it as float32")
        dims = 1 if self.length is None else 2
        if array.ndim != dims or array.shape[-1] != self.width or not len(array):
            expected = f"({self.width},)" if dims == 1 else f"(steps, {self.width})"
            raise UserError(f"{content[0]} must have shape {expected}, found {array.shape}; save it as the others")
        with np.errstate(over="ignore"):  # becomes infinite, which no pack accepts
            if self.length is None:
                return array.astype(np.float32), []
            kept = array[: self.length].astype(np.float32)
        steps = np.zeros(self.stored().shape, dtype=np.float32)
        steps[: len(kept), :-1], steps[: len(kept), -1] = kept, 1
        return steps, []

    def modality(self, options: ManifestOptions, values: Tensor, train: Tensor) -> Modality:
        """Standardised features."""
        assert self.width is not None
        scale, shift = _standardisation(values, train, self.length is not None)
        if self.length is None:
            return Modality("vector", (self.width,), "mlp", Affine(scale, shift))
        return Modality("sequence", (self.length, self.width), "temporal", Steps(scale, shift))


KINDS: Mapping[str, type[Kind]] = {cls.kind: cls for cls in (Audio, Video, Image, Text, Npy)}


@dataclass(frozen=True)
class Steps:
    """From stored sequences ``[B, T, D + 1]`` to ``[B, T, D]``: scaled and shifted, 0 behind the last step."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    draws: ClassVar[int] = 0

    def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
        values = Affine(self.scale, self.shift)(stored[..., :-1].transpose(1, 2)).transpose(1, 2)
        return values * stored[..., -1:]


def _shape(path: Path) -> tuple[int, ...] | None:
    """Shape of a ``.npy`` file, where it is that of a vector or a sequence."""
    try:
        array = map_npy(path)
    except (OSError, UserError):
        return None
    return array.shape if array.ndim in (1, 2) and array.size else None


def _standardisation(values: Tensor, rows: Tensor, steps: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and shift of each feature that make mean 0 and standard deviation 1 of the rows of ``values``."""
    from sklearn.preprocessing import StandardScaler  # here: its import takes a second

    scaler = StandardScaler()
    for chunk in rows.split(max(1, _CHUNK // values[0].nbytes)):
        found = values[chunk].double().numpy()
        scaler.partial_fit(found[found[..., -1] > 0][:, :-1] if steps else found)
    return tuple((1 / scaler.scale_).tolist()), tuple((-scaler.mean_ / scaler.scale_).tolist())
