"""Sound and pictures from files, decoded by PyAV and Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from balancebench_udi.data.audio import read_wav
from balancebench_udi.data.frames import segment_centres
from balancebench_udi.data.sound import WHOLE, Span
from balancebench_udi.data.whole import is_torn, is_whole, open_media
from balancebench_udi.errors import UserError

_POINTER = b"version https://git-lfs.github.com/spec/v1"
_DAMAGED = "it is damaged or cut short; fetch it again"
_HELD = 2**28
"""Bytes of decoded pictures of one video that are held while it is not known yet which of them are wanted."""


def read_sound(path: Path, span: Span = WHOLE) -> tuple[Tensor, int]:
    """Samples ``[n]`` float32, channels averaged, and the sampling rate of a sound or video file.

    Raises:
        UserError: a damaged file, one cut short, without sound, or without any inside ``span``.
    """
    if path.suffix.lower() == ".wav":
        samples, rate = _wav(path)
    else:
        samples, rate, begins = _decode_sound(path)
        if span != WHOLE:  # a track that begins later than the pictures is silent until then
            samples = functional.pad(samples, (round(begins * rate), 0))
    samples = span.cut(samples, rate)
    if len(samples) == 0:
        raise UserError(f"{path} must have sound from {span.start} to {span.end} s, it ends before; correct the list")
    return samples, rate


def _wav(path: Path) -> tuple[Tensor, int]:
    try:
        return read_wav(path.read_bytes(), str(path))
    except UserError:  # 24-bit, float and the like, or cut short
        return _decode_sound(path)[:2]


def _decode_sound(path: Path) -> tuple[Tensor, int, float]:
    """Samples, rate, and how many seconds behind the start of the file the first of them is heard."""
    try:
        with open_media(path) as container:
            floats = av.AudioResampler(format="flt")  # PyAV's arrays of planes crash from 8 channels on
            frames = [f for part in container.decode(audio=0) for f in floats.resample(part)] + floats.resample(None)
            mixed = [f.to_ndarray().reshape(-1, f.layout.nb_channels).mean(1) for f in frames]
            samples, rate = np.concatenate(mixed), frames[0].sample_rate
            begins = max(0.0, (frames[0].time or 0.0) - (container.start_time or 0) / av.time_base)
            end = max(len(samples), *(round((f.time or 0.0) * rate) + f.samples for f in frames)) / rate
            whole = is_whole(path, container, "audio", end, max(f.samples for f in frames) / rate)
    except (av.FFmpegError, IndexError, ValueError):
        samples, rate, begins, whole = np.zeros(0), 1, 0.0, False
    if len(samples) == 0 or not whole:
        raise UserError(f"{path} must be a media file with sound, {_fault(path, 'audio')}")
    return torch.from_numpy(samples), rate, begins


def _fault(path: Path, kind: str | None = None) -> str:
    """What is the matter with a file that cannot be decoded, and what to do.

    Args:
        kind: the stream that is wanted of it, ``audio`` or ``video``.
    """
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if not start:
        return "it is empty; fetch it again"
    if start == _POINTER:
        return "it is a pointer of git LFS; call git lfs pull where it was cloned"
    try:
        with open_media(path) as container:
            if kind and not getattr(container.streams, kind) and not is_torn(path):
                return f"it has no {kind} track; give one that has, or leave the sample out"
    except (av.FFmpegError, IndexError, ValueError):
        pass
    return _DAMAGED


def read_pictures(paths: Sequence[Path], most: int | None = None) -> list[Image.Image]:
    """Extracted pictures as RGB, upright by their EXIF; the centres of ``most`` equal segments where there are more.

    Raises:
        UserError: none, a damaged one, or one of more than 8 bits a channel.
    """
    if most is not None and len(paths) > most:
        paths = [paths[i] for i in segment_centres(torch.tensor([len(paths)]), most)[0].tolist()]
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                if picture.mode[0] in "IF":  # Pillow would clip 16 bits to white
                    raise UserError(f"{path} must have 8 bits a channel, found mode {picture.mode}; convert it")
                pictures.append(_upright(picture).convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            fault = _fault(path)
            if fault == _DAMAGED and isinstance(error, UnidentifiedImageError):
                fault = "it is damaged or of a format that is not read; fetch it again, or convert it to JPEG or PNG"
            raise UserError(f"{path} must be a whole picture, {fault}") from None
    if not pictures:
        raise UserError("a sample must have at least one picture, found none; extract them again")
    return pictures


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # EXIF that Pillow cannot take apart, or not put together again, lets any of them through
        return picture


def read_video(
    path: Path, fps: float, most: int | None = None, span: Span = WHOLE, published: bool = False
) -> list[Image.Image]:
    """Of a video, upright, the first frame at or after each multiple of 1/fps s, counted from the first of the span.

    Args:
        most: the centres of so many equal segments of them where there are more.
        span: counted from the first frame.
        published: those that OGM-GE's code extracts instead (:func:`is_published`); a second, of the span too, is then
            as many frames as it takes for one.

    Raises:
        UserError: a damaged file, one cut short, without pictures, or without any inside ``span``.
    """
    pictures, count = _decode_video(path, fps, span, published)
    wanted: Sequence[int] = range(count)
    if most is not None and count > most:
        wanted = segment_centres(torch.tensor([count]), most)[0].tolist()
    if len(pictures) == count:
        return [pictures[i] for i in wanted]
    del pictures
    return _decode_video(path, fps, span, published, frozenset(wanted))[0]


def is_published(number: int, rate: int, fps: float) -> bool:
    """Whether OGM-GE's code (``video2frame_update``, which PMR and InfoReg took over) saves a frame of a video.

    Of each ``rate`` frames, which it takes for a second, it keeps ``fps``, each ``rate // fps`` after the one before:
    at 29.97 frames a second 0, 29, 58, ... for one, and 0, 9, 18, 29, 38, 47, ... for three.

    Args:
        number: of the frame, from 0.
        rate: frames a second, rounded down.
    """
    step = max(1, int(rate / fps))
    return number % rate < step * fps and number % rate % step == 0


def _decode_video(
    path: Path, fps: float, span: Span, published: bool, wanted: frozenset[int] | None = None
) -> tuple[list[Image.Image], int]:
    """Those of the sampled frames that are wanted, or as many as may be held, and how many there are."""
    pictures: list[Image.Image] = []
    count, held = 0, 0
    origin = first = None
    last, whole = 0.0, True
    try:
        with open_media(path) as container:
            stream = container.streams.video[0]
            longest = 1 / float(stream.average_rate) if stream.average_rate else 0.0
            rate = max(1, int(stream.guessed_rate or stream.average_rate or 1))
            number = -1
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                origin = frame.time if origin is None else origin
                longest = max(longest, float(frame.duration * (frame.time_base or 0)))
                last = frame.time - origin  # within 0.002: times are whole milliseconds in flv and mkv
                number += 1
                now = number / rate if published else last
                if now < (span.start or 0.0) - 0.002:
                    continue
                if span.end is not None and now >= span.end - 0.002:
                    break
                first = now if first is None else first
                if is_published(number, rate, fps) if published else now - first >= count / fps - 0.002:
                    held += 3 * frame.width * frame.height
                    if count in wanted if wanted is not None else held <= _HELD:
                        pictures.append(_displayed(frame))
                    count += 1
            else:
                whole = is_whole(path, container, "video", (origin or 0.0) + last, longest)
    except (av.FFmpegError, IndexError):
        count, whole = 0, False
    if not count and first is None and last > 0:
        raise UserError(f"{path} must have pictures from {span.start} to {span.end} s, it ends at {last:.1f} s")
    if not count or not whole:
        raise UserError(f"{path} must be a whole video, {_fault(path, 'video')}")
    return pictures, count


def _displayed(frame: av.VideoFrame) -> Image.Image:
    """A frame as players show it: turned as the file says, which phones do of what was filmed upright."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def as_candidates(pictures: Sequence[Image.Image], slots: int, size: int) -> np.ndarray:
    """Pictures as :class:`~balancebench_udi.data.frames.FrameTransform` stores them.

    Returns:
        uint8 ``[slots, size, size, C]``: the pictures, squeezed to squares, in 1..255; then zeros.
    """
    arrays = [np.atleast_3d(np.asarray(p.resize((size, size), Image.Resampling.BILINEAR))) for p in pictures]
    stored = np.zeros((slots, size, size, arrays[0].shape[2]), dtype=np.uint8)
    stored[: len(arrays)] = np.maximum(np.stack(arrays), 1)
    return stored
