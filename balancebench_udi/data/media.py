"""Sound and pictures from files, decoded by PyAV and Pillow."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from balancebench_udi.data.audio import check_rate, read_wav
from balancebench_udi.data.container import MOST_PIXELS, open_media
from balancebench_udi.data.frames import segment_centres
from balancebench_udi.data.sound import WHOLE, Span
from balancebench_udi.data.whole import is_torn, is_whole
from balancebench_udi.errors import UserError

_POINTER = b"version https://git-lfs.github.com/spec/v1"
_DAMAGED = "it is damaged or cut short; fetch it again"
_HELD = 2**28
"""Bytes of decoded pictures of one video that are held while it is not known yet which of them are wanted."""
_MOST_HELD = 2**31
"""Bytes that the wanted pictures of one sample may take."""
_MOST_SAMPLES = 2**28
"""Of a sound file: 93 min at 48 kHz, 1 GB."""
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Pillow's names of the formats of pictures that are read: none starts a program, as EPS does."""
_DECODING = (av.FFmpegError, ArithmeticError, LookupError, TypeError, ValueError)
"""What PyAV raises on damaged files."""

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of damaged pictures
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of twice that many pixels it is an error


def read_sound(path: Path, span: Span = WHOLE) -> tuple[Tensor, int]:
    """Samples ``[n]`` float32, channels averaged, and the sampling rate of a sound or video file.

    Raises:
        UserError: a damaged file, one cut short, without sound, or without any inside ``span``; more than 2**28
            samples; a sampling rate that :func:`~balancebench_udi.data.audio.check_rate` refuses.
    """
    begins = 0.0
    if path.suffix.lower() == ".wav":
        samples, rate = _wav(path)
    else:
        samples, rate, begins = _decode_sound(path)
    check_rate(rate, path)
    if span != WHOLE:  # a track that begins later than the pictures is silent until then
        samples = functional.pad(samples, (round(min(begins * rate, _MOST_SAMPLES)), 0))
    samples = span.cut(samples, rate)
    if len(samples) == 0:
        raise UserError(f"{path} must have sound from {span.start} to {span.end} s, it ends before; correct the list")
    return samples, rate


def _wav(path: Path) -> tuple[Tensor, int]:
    try:
        if path.stat().st_size <= 2 * _MOST_SAMPLES:
            return read_wav(path.read_bytes(), str(path))
    except UserError:  # 24-bit, float and the like, or cut short
        pass
    return _decode_sound(path)[:2]


def _decode_sound(path: Path) -> tuple[Tensor, int, float]:
    """Samples, rate, and how many seconds behind the start of the file the first of them is heard."""
    mixed: list[np.ndarray] = []
    times: list[float] = []
    rate, count, whole = 0, 0, False
    try:
        with open_media(path) as container:
            stream = container.streams.audio[0]
            floats = av.AudioResampler(format="flt")  # PyAV's arrays of planes crash from 8 channels on
            for part in itertools.chain(container.decode(stream), [None]):
                for frame in floats.resample(part):
                    rate = rate or frame.sample_rate
                    with np.errstate(all="ignore"):  # floats that are none: no pack keeps what comes of them
                        mixed.append(frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(1))
                    times.append(frame.time or 0.0)
                    count += len(mixed[-1])
                    if count > _MOST_SAMPLES:
                        raise UserError(f"{path} must hold at most {_MOST_SAMPLES} samples, found more; cut it")
            begins = max(0.0, times[0] - (container.start_time or 0) / av.time_base)
            end = max(count, *(round(t * rate) + len(m) for t, m in zip(times, mixed, strict=True))) / rate
            whole = is_whole(path, container, "audio", end, max(map(len, mixed)) / rate)
    except _DECODING:
        pass
    if not count or not whole:
        raise UserError(f"{path} must be a media file with sound, {_fault(path, 'audio')}")
    return torch.from_numpy(np.concatenate(mixed)), rate, begins


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
    if kind is None:
        return _DAMAGED
    try:
        with open_media(path) as container:
            streams = getattr(container.streams, kind)
            if not streams and not is_torn(path):
                return f"it has no {kind} track; give one that has, or leave the sample out"
            if kind == "video" and streams and _is_large(streams[0]):
                size = f"{streams[0].width} x {streams[0].height}"
                return f"of at most {MOST_PIXELS} pixels a frame, found {size}; scale it down with ffmpeg"
    except av.ArgumentError:
        return "it is damaged or of a format that is not read; fetch it again, or convert it to .mp4 or .wav"
    except _DECODING:
        pass
    return _DAMAGED


def _is_large(stream: av.VideoStream) -> bool:
    context = stream.codec_context  # None of an unknown codec
    return context is not None and context.width * context.height > MOST_PIXELS


def read_pictures(paths: Sequence[Path], most: int | None = None) -> list[Image.Image]:
    """Extracted pictures as RGB, upright by their EXIF; the centres of ``most`` equal segments where there are more.

    Of an animated one the first picture.

    Raises:
        UserError: none, a damaged one, one of a format that is not in :data:`PICTURE_FORMATS`, of more than 8 bits a
            channel, or too large.
    """
    if most is not None and len(paths) > most:
        paths = [paths[i] for i in segment_centres(torch.tensor([len(paths)]), most)[0].tolist()]
    pictures: list[Image.Image] = []
    held = 0
    for path in paths:
        try:
            with Image.open(path, formats=PICTURE_FORMATS) as picture:
                if picture.mode[0] in "IF":  # Pillow would clip 16 bits to white
                    raise UserError(f"{path} must have 8 bits a channel, found mode {picture.mode}; convert it")
                held += 3 * picture.width * picture.height
                if held > _MOST_HELD:
                    raise UserError(
                        f"the pictures of a sample must take at most {_MOST_HELD} bytes, found more with {path} of "
                        f"{picture.width} x {picture.height}; scale them down"
                    )
                picture.load()
                pictures.append(_upright(picture).convert("RGB"))
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise UserError(f"{path} must have at most {most} pixels, found more; scale it down") from None
        except (UserError, MemoryError):
            raise
        except Exception as error:  # Pillow raises nearly anything on a damaged file
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
        UserError: a damaged file, one cut short, without pictures, or without any inside ``span``, or with pictures
            that are too large.
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
    count, held, kept = 0, 0, 0
    origin = first = None
    last, whole = 0.0, True
    try:
        with open_media(path) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None or _is_large(stream):
                raise ValueError("the sentence of _fault")
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # frames may be larger than the file says
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
                        kept += 3 * frame.width * frame.height
                        if kept > _MOST_HELD:
                            raise UserError(
                                f"the pictures of a sample must take at most {_MOST_HELD} bytes, found more in {path}, "
                                f"of {frame.width} x {frame.height}; scale it down with ffmpeg or take fewer"
                            )
                        pictures.append(_displayed(frame))
                    count += 1
            else:
                whole = is_whole(path, container, "video", (origin or 0.0) + last, longest)
    except _DECODING:
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
