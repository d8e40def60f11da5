"""CREMA-D: acted emotions, sound and face, read from the dataset's own files."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from balancebench_udi.config import Options, option
from balancebench_udi.data.audio import read_wav
from balancebench_udi.data.base import (
    Affine,
    Bundle,
    Dataset,
    Modality,
    Split,
    fingerprint,
    require_root,
    stratified_holdout,
)
from balancebench_udi.errors import UserError

CLASSES = {
    "OGM-GE": ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"),
    "alphabetical": ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
}
SIZES = {"train": 6698, "test": 744}
"""Clips in OGM-GE's lists."""
LISTS = {"OGM-GE": ("split_OGM-GE", "data/CREMAD", "CREMAD", "."), "own": ("lists",)}
"""Where the lists of each ``split`` may lie below the dataset's folder."""
SHAPES = {"ogm_stft": (1, 257, 188), "fbank": (1, 128, 1024)}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ASPECT = 480 / 360
"""Width by height of CREMA-D's videos."""
CROP = 224
"""Side of the frames the encoder sees."""
_CUT_SHORT = 0.5
"""Seconds that may be missing from a stream, compared with the file's own duration."""
_NAME = re.compile(r"\d{4}_[A-Z]{3}_([A-Z]{3})_[A-Z]{2}")


@dataclass(frozen=True)
class CREMADOptions(Options):
    """Options of :class:`CREMAD`."""

    split: str = option(
        "OGM-GE",
        "OGM-GE: its published lists, 6698 / 744, and a stratified share of train for validation; "
        "own: train.csv, test.csv and, if there, val.csv in lists/",
        source="official code of OGM-GE",
        choices=tuple(LISTS),
    )
    class_order: str = option(
        "OGM-GE", "order of the classes", source="official code of OGM-GE", choices=tuple(CLASSES)
    )
    val_share: float = option(0.1, "share of every class of train held out", source="ours", above=0)
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)
    missing: str = option(
        "error",
        "error or drop: what to do about listed clips that are absent or damaged",
        source="ours",
        choices=("error", "drop"),
    )
    audio: str = option(
        "ogm_stft",
        "ogm_stft: log magnitude, 22.05 kHz, 3 s; fbank: 128 mel bands, 16 kHz, 10 s",
        source="official code of OGM-GE; fbank: of MMPareto",
        choices=tuple(SHAPES),
    )
    n_frames: int = option(3, "frames of a clip", source="ours, as InfoReg", choices=(1, 2, 3))
    fps: int = option(3, "frames a second that are candidates", source="ours, as InfoReg", at_least=1, at_most=30)
    candidates: int = option(
        8, "most candidate frames kept of a clip (uniform segment centres of more)", source="ours", at_least=3
    )
    stored_size: int = option(256, "side of the stored square frames, pixels", source="ours", at_least=CROP)
    same_crop: bool = option(
        False, "one crop and flip for all frames of a clip instead of one each", source="official code of OGM-GE"
    )


class CREMAD(Dataset):
    """CREMA-D, 7442 clips of 91 actors, six emotions: ``audio`` spectrogram and ``video`` frames ``[3, T, 224, 224]``.

    Folder: ``cremad/``, ``CREMA-D/`` or the data root itself. The sound of a clip is taken from ``AudioWAV/<id>.wav``,
    else ``AudioMP3/<id>.mp3``, else the track of ``VideoFlash/<id>.flv``; its frames from ``Image-03-FPS/<id>/*.jpg``
    (the option fps), sorted by name, else from ``VideoFlash/<id>.flv``, one every 1/fps s from the first. Clips are
    decoded at every load by several threads (about 60 ms a clip, 8 minutes of one core for all of them); decoded arrays
    are not kept on disk. Memory for the full set: 11.7 GB of frames and 0.7 GB (ogm_stft) or 2.0 GB (fbank) of sound;
    ``stored_size=224`` and ``candidates=3`` make the frames 3.4 GB.

    Split: OGM-GE's lists, not speaker-independent: all 91 actors are in train and in test. No clip is in two splits.

    Audio, as float16:

    - ``ogm_stft [1, 257, 188]``: mono at 22,050 Hz, repeated three times (more where a clip is shorter than 1 s), cut
      to 66,150 samples, clipped to +-1, STFT with a periodic Hann window of 512, hop 353, centred with zeros,
      ``log(|X| + 1e-7)``, no normalisation.
    - ``fbank [1, 128, 1024]``: mono at 16 kHz minus its mean, Kaldi's 128 log mel bands, Hanning window of 25 ms every
      10 ms, no dither, zero-padded or cut to 1024 frames, ``(x + 4.503877) / (2 * 5.141276)``. Stored bands by time;
      the official codes differ in the order.

    Both resample with torchaudio's windowed sinc, where the official codes use librosa's or none.

    Frames: see :class:`FrameTransform`. In training ``n_frames`` of the candidates at random, in order; in evaluation
    the centres of ``n_frames`` equal segments of them.

    Reference: H. Cao et al., CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE Trans. Affective
    Computing 5(4), 2014. Lists and audio: X. Peng et al., OGM-GE, CVPR 2022 (official code). fbank: Y. Wei and D. Hu,
    MMPareto, ICML 2024 (official code).
    """

    name = "cremad"
    reference = "Cao et al., IEEE Trans. Affective Computing 5(4), 2014; protocol of Peng et al., OGM-GE, CVPR 2022"
    needs = (
        "CREMA-D (github.com/CheyneyComputerScience/CREMA-D) in cremad/, CREMA-D/ or directly in it: VideoFlash/ or "
        "AudioWAV/ with Image-03-FPS/, and OGM-GE's train.csv and test.csv "
        "(github.com/GeWu-Lab/OGM-GE_CVPR2022, data/CREMAD) in split_OGM-GE/"
    )
    Options = CREMADOptions

    def load(self, root: Path | None) -> Bundle:
        """Read the lists and decode every listed clip.

        Raises:
            UserError: absent or malformed lists, absent or damaged clips (``missing=error``), PyAV not
                installed where flv or mp3 must be decoded.
        """
        folder = self._folder(require_root(self, root))
        o = self.options
        lists = self._lists(folder)
        if "val" not in lists:
            ids, target = list(lists["train"]), torch.tensor(list(lists["train"].values()))
            kept, held = stratified_holdout(target, o.val_share, o.val_seed)
            lists["val"] = {ids[i]: lists["train"][ids[i]] for i in held.tolist()}
            lists["train"] = {ids[i]: lists["train"][ids[i]] for i in kept.tolist()}

        clips = {i: _find(folder, i, o.fps) for ids in lists.values() for i in ids}
        absent = [i for i, clip in clips.items() if clip is None]
        if absent and o.missing == "error":
            raise UserError(
                f"every listed clip must have sound and frames in {folder}, found {len(absent)} of {len(clips)} "
                f"without, the first {absent[0]}; complete the files or set missing=drop"
            )
        found = {i: clip for i, clip in clips.items() if clip is not None}
        if any(clip.needs_av() for clip in found.values()):
            _import_av()

        splits, damaged = {}, []
        for s, labels in lists.items():
            splits[s], broken = self._decode({i: found[i] for i in labels if i in found}, labels, s)
            damaged += broken
            if len(splits[s]) == 0:
                raise UserError(f"{s} must have at least one whole clip in {folder}, found none of its {len(labels)}")
        frames = FrameTransform(o.n_frames, o.same_crop)
        used = sorted({(str(p.relative_to(folder)), p.stat().st_size) for clip in found.values() for p in clip.files()})
        return Bundle(
            modalities={
                "audio": Modality("spectrogram", SHAPES[o.audio], "resnet18", Affine()),
                "video": Modality("frames", (3, o.n_frames, CROP, CROP), "resnet18", frames),
            },
            classes=CLASSES[o.class_order],
            fingerprint=fingerprint(
                {
                    "dataset": self.name,
                    "version": self.version,
                    "options": o.as_dict(),
                    "clips": {s: list(labels.items()) for s, labels in lists.items()},
                    "files": used,
                    "damaged": damaged,
                }
            ),
            facts={
                "generated": False,
                "clips": {s: len(split) for s, split in splits.items()},
                "absent": len(absent),
                "damaged": damaged,
                "sound_from": dict(Counter(clip.sound.suffix[1:] for clip in found.values())),
                "frames_from": dict(Counter("jpg" if clip.images else "flv" for clip in found.values())),
            },
            **splits,
        )

    def _folder(self, root: Path) -> Path:
        for folder in (root / "cremad", root / "CREMA-D", root):
            if any((folder / part).is_dir() for part in ("VideoFlash", "AudioWAV", "AudioMP3")):
                return folder
        raise UserError(f"dataset cremad needs {self.needs}; found no VideoFlash/, AudioWAV/ or AudioMP3/ under {root}")

    def _lists(self, folder: Path) -> dict[str, dict[str, int]]:
        """Split -> {clip: class index}."""
        o = self.options
        places = [folder / place for place in LISTS[o.split]]
        where = next((p for p in places if (p / "train.csv").is_file() and (p / "test.csv").is_file()), None)
        if where is None:
            raise UserError(
                f"split={o.split} needs train.csv and test.csv, found in none of {', '.join(map(str, places))}; "
                "OGM-GE's are in github.com/GeWu-Lab/OGM-GE_CVPR2022, data/CREMAD"
            )
        names = ["train", "test"]
        if o.split == "own" and (where / "val.csv").is_file():
            names.append("val")
        lists = {s: read_list(where / f"{s}.csv", CLASSES[o.class_order]) for s in names}
        if o.split == "OGM-GE":
            for s, n in SIZES.items():
                if len(lists[s]) != n:
                    raise UserError(
                        f"{where / s}.csv must list OGM-GE's {n} clips, found {len(lists[s])}; fetch it again or, for "
                        "lists of your own, put them in lists/ and set split=own"
                    )
        seen = Counter(i for ids in lists.values() for i in ids)
        for i, times in seen.items():
            if times > 1:
                raise UserError(f"a clip must be in one split only, found {i} in {times} lists of {where}")
        return lists

    def _decode(self, clips: Mapping[str, _Clip], labels: Mapping[str, int], split: str) -> tuple[Split, list[str]]:
        """The clips of one split, and with ``missing=drop`` the names of those left out because they are damaged."""
        o = self.options
        frames = torch.zeros(len(clips), 3, o.candidates, o.stored_size, o.stored_size, dtype=torch.uint8)
        audio = torch.zeros(len(clips), *SHAPES[o.audio], dtype=torch.float16)

        def decode(row: int, clip: _Clip) -> None:
            audio[row] = spectrogram(*read_sound(clip.sound), o.audio).to(torch.float16)
            images = read_frames(clip, o.fps, o.candidates, o.stored_size)
            frames[row, :, : images.shape[1]] = images

        # decoders let go of the interpreter, so threads run side by side
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
            jobs = [pool.submit(decode, row, clip) for row, clip in enumerate(clips.values())]
            damaged = []
            try:
                for name, job in zip(clips, tqdm(jobs, desc=f"cremad {split}", unit="clip", disable=None), strict=True):
                    try:
                        job.result()
                    except UserError:
                        if o.missing == "error":
                            raise
                        damaged.append(name)
            finally:
                pool.shutdown(cancel_futures=True)
        target = torch.tensor([labels[i] for i in clips], dtype=torch.int64)
        decoded = Split({"audio": audio, "video": frames}, target)
        if damaged:
            whole = [row for row, name in enumerate(clips) if name not in damaged]
            decoded = decoded.take(torch.tensor(whole, dtype=torch.int64))
        return decoded, damaged


@dataclass(frozen=True)
class FrameTransform:
    """From stored candidates ``[B, 3, K, S, S]`` uint8 to ``[B, 3, T, 224, 224]`` float32, ImageNet mean and std.

    A clip's own candidates come first and hold no 0 (black is 1); the first of the slots left over is 0 throughout.

    With a generator: T candidates drawn without replacement, in order of time; of each (or, with ``same_crop``, of all
    of a clip alike) a random crop of 8 to 100 % of the area with an aspect of 3/4 to 4/3 *in the original 480 x 360
    picture*, resized to 224 x 224 bilinearly, and mirrored half the time (torchvision's RandomResizedCrop and flip).
    Without: the middle candidates of T equal segments, resized whole (the aspect is not kept, as in the official
    codes). A clip with fewer than T candidates repeats some of them, either way.

    Attributes:
        n_frames: T.
        same_crop: the same crop and flip for the frames of one clip.
    """

    n_frames: int
    same_crop: bool = False

    def __call__(self, stored: Tensor, generator: torch.Generator | None = None) -> Tensor:
        count = (stored[:, 0, :, 0, 0] > 0).sum(1)
        index = segment_centres(count, self.n_frames)
        if generator is not None:
            slot = torch.arange(stored.shape[2], device=stored.device)
            draw = torch.rand(len(stored), stored.shape[2], generator=generator, device=generator.device)
            draw = draw.to(stored.device).masked_fill(slot >= count[:, None], -1.0)
            drawn = draw.topk(self.n_frames, dim=1).indices.sort(dim=1).values
            index = torch.where(count[:, None] >= self.n_frames, drawn, index)
        rows = torch.arange(len(stored), device=stored.device)[:, None]
        images = stored.transpose(1, 2)[rows, index].flatten(0, 1).to(torch.float32)  # [B T, 3, S, S]
        if generator is not None:
            images = self._crop(images, generator)
        elif images.shape[-1] != CROP:
            images = functional.interpolate(images, (CROP, CROP), mode="bilinear", antialias=True)
        images = Affine.normalise(*IMAGENET)(images)
        return images.unflatten(0, (len(stored), self.n_frames)).transpose(1, 2).contiguous()

    def _crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        repeats = self.n_frames if self.same_crop else 1
        boxes, flip = random_boxes(len(images) // repeats, ASPECT, generator)
        boxes, flip = (x.repeat_interleave(repeats, 0).to(images.device) for x in (boxes, flip))
        centre, size = boxes[:, :2], boxes[:, 2:]
        mirror = torch.where(flip, -1.0, 1.0)
        theta = torch.zeros(len(images), 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 1, 1] = size[:, 0] * mirror, size[:, 1]
        theta[:, :, 2] = 2 * centre - 1
        grid = functional.affine_grid(theta, [len(images), 3, CROP, CROP], align_corners=False)
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_boxes(n: int, aspect: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crops by the law of torchvision's RandomResizedCrop (scale 0.08-1, ratio 3/4-4/3, ten tries, else a central one).

    Args:
        n: how many.
        aspect: width by height of the picture.
        generator: drawn from, on its own device.

    Returns:
        ``[n, 4]`` centre x, centre y, width, height as fractions of the picture, and ``[n]`` bool, mirrored or not.
    """
    tries = 10
    draws = torch.rand(n, 2 * tries + 3, generator=generator, device=generator.device)
    area = 0.08 + 0.92 * draws[:, :tries]
    low, high = np.log(3 / 4), np.log(4 / 3)
    ratio = torch.exp(low + (high - low) * draws[:, tries : 2 * tries])
    width, height = torch.sqrt(area * ratio / aspect), torch.sqrt(area / ratio * aspect)
    fits = (width <= 1) & (height <= 1)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    any_fits = fits.any(1, keepdim=True)
    whole = min(max(aspect, 3 / 4), 4 / 3)  # else the largest central crop of an allowed ratio
    width = torch.where(any_fits, width.gather(1, first), min(1.0, whole / aspect))
    height = torch.where(any_fits, height.gather(1, first), min(1.0, aspect / whole))
    size = torch.cat([width, height], 1)
    position = torch.where(any_fits, draws[:, -3:-1], 0.5)
    return torch.cat([size / 2 + position * (1 - size), size], 1), draws[:, -1] < 0.5


def segment_centres(count: Tensor, parts: int) -> Tensor:
    """Index of the middle element of each of ``parts`` equal segments of ``count`` elements: ``[B] -> [B, parts]``."""
    part = torch.arange(parts, device=count.device)
    return (2 * part + 1) * count[:, None] // (2 * parts)


def read_list(path: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """``{clip: class index}`` of a list without header, ``1001_DFA_ANG_XX,ANG`` a line; BOM and CRLF are accepted.

    Raises:
        UserError: malformed line, emotion that is unknown or not that of the clip's name, clip listed twice.
    """
    clips: dict[str, int] = {}
    content = path.read_bytes().decode("utf-8-sig", errors="replace")
    for number, row in enumerate(csv.reader(io.StringIO(content, newline="")), start=1):
        if not row:
            continue
        name, emotion = (field.strip() for field in (row if len(row) == 2 else ("", "")))
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(
                f"{path} must hold lines such as 1001_DFA_ANG_XX,ANG, found {','.join(row)!r} in line {number}"
            )
        if emotion not in classes:
            raise UserError(f"emotions in {path} must be {', '.join(classes)}, found {emotion!r} in line {number}")
        if match[1] != emotion:
            raise UserError(f"line {number} of {path} must carry the emotion of its clip {name}, found {emotion}")
        if name in clips:
            raise UserError(f"{path} must list a clip once, found {name} again in line {number}")
        clips[name] = classes.index(emotion)
    return clips


@dataclass(frozen=True)
class _Clip:
    """Where the sound and the frames of one clip are: ``images``, or the video ``flv`` where there are none."""

    sound: Path
    images: tuple[Path, ...]
    flv: Path

    def files(self) -> tuple[Path, ...]:
        return (self.sound, *(self.images or (self.flv,)))

    def needs_av(self) -> bool:
        return any(p.suffix in (".flv", ".mp3") for p in self.files())


def _find(folder: Path, name: str, fps: int) -> _Clip | None:
    """The files of a clip, or None where the sound or the frames are absent."""
    flv = folder / "VideoFlash" / f"{name}.flv"
    sounds = (folder / "AudioWAV" / f"{name}.wav", folder / "AudioMP3" / f"{name}.mp3", flv)
    sound = next((p for p in sounds if p.is_file()), None)
    images = tuple(sorted((folder / f"Image-{fps:02d}-FPS" / name).glob("*.jpg")))
    if sound is None or not (images or flv.is_file()):
        return None
    return _Clip(sound, images, flv)


def read_sound(path: Path) -> tuple[Tensor, int]:
    """Mono samples ``[n]`` float32 and the sampling rate of a wav, mp3 or flv file.

    Raises:
        UserError: a damaged file, or one without sound.
    """
    if path.suffix == ".wav":
        return read_wav(path.read_bytes(), str(path))
    av = _import_av()
    try:
        with av.open(str(path)) as container:
            mono = av.AudioResampler(format="fltp", layout="mono")
            frames = [f for packet in container.decode(audio=0) for f in mono.resample(packet)] + mono.resample(None)
            samples, rate = np.concatenate([f.to_ndarray()[0] for f in frames]), frames[0].sample_rate
            missing = (container.duration or 0) / av.time_base - len(samples) / rate
    except (av.FFmpegError, IndexError, ValueError):
        samples, rate, missing = np.zeros(0), 1, 0.0
    if len(samples) == 0 or missing > _CUT_SHORT:
        raise UserError(f"{path} must be a media file with sound, it is damaged, cut short or has none; fetch it again")
    return torch.from_numpy(samples), rate


def read_frames(clip: _Clip, fps: int, most: int, size: int) -> Tensor:
    """Candidate frames of a clip, the centres of ``most`` equal segments where there are more.

    Returns:
        uint8 ``[3, K, size, size]`` in 1..255 with 1 <= K <= most, in order of time.

    Raises:
        UserError: a damaged file, or one without frames.
    """
    pictures = _open_images(clip.images) if clip.images else _decode_video(clip.flv, fps)
    if len(pictures) > most:
        pictures = [pictures[i] for i in segment_centres(torch.tensor([len(pictures)]), most)[0].tolist()]
    arrays = [np.asarray(p.resize((size, size), Image.Resampling.BILINEAR)) for p in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(3, 0, 1, 2).clamp(min=1)


def _open_images(paths: tuple[Path, ...]) -> list[Image.Image]:
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        except (UnidentifiedImageError, OSError):
            raise UserError(f"{path} must be a whole picture, it is damaged; extract it again") from None
    return pictures


def _decode_video(path: Path, fps: int) -> list[Image.Image]:
    """The first frame at or after each multiple of 1/fps s, counted from the first frame."""
    av = _import_av()
    pictures: list[Image.Image] = []
    start, last = None, 0.0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                start = frame.time if start is None else start
                last = frame.time
                if frame.time - start >= len(pictures) / fps - 0.002:  # times are whole milliseconds in flv
                    pictures.append(frame.to_image())
            length = (container.duration or 0) / av.time_base
    except (av.FFmpegError, IndexError):
        pictures, length = [], 0.0
    if not pictures or length - last > _CUT_SHORT:
        raise UserError(f"{path} must be a whole video, it is damaged or cut short; fetch it again")
    return pictures


def _import_av():  # type: ignore[no-untyped-def]
    try:
        import av
    except ImportError:
        raise UserError(
            "cremad needs PyAV to decode flv and mp3, it is not installed; pip install av, or provide AudioWAV/ and "
            "frames as jpg"
        ) from None
    return av


def spectrogram(samples: Tensor, rate: int, preset: str) -> Tensor:
    """The audio input of a preset, see :class:`CREMAD`.

    Args:
        samples: mono ``[n]``.
        rate: Hz.
        preset: ``ogm_stft`` or ``fbank``.

    Returns:
        float32 ``[1, 257, 188]`` or ``[1, 128, 1024]``.
    """
    if preset == "ogm_stft":
        wave = torchaudio.functional.resample(samples, rate, 22050)
        length = 3 * 22050
        wave = wave.repeat(max(3, -(-length // len(wave))))[:length].clamp(-1.0, 1.0)
        window = torch.hann_window(512)
        bins = torch.stft(wave, 512, 353, window=window, center=True, pad_mode="constant", return_complex=True)
        return torch.log(bins.abs() + 1e-7).unsqueeze(0)
    wave = torchaudio.functional.resample(samples, rate, 16000)
    bands = torchaudio.compliance.kaldi.fbank(
        (wave - wave.mean()).unsqueeze(0),
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    bands = functional.pad(bands[:1024], (0, 0, 0, max(0, 1024 - len(bands))))
    return ((bands + 4.503877) / (2 * 5.141276)).T.unsqueeze(0)
