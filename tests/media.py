"""Small real media files with known content: what was written can be told from what is read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from scipy.io import wavfile

CODECS = {
    ".mp4": ("mpeg4", "aac"),
    ".mov": ("mpeg4", "aac"),
    ".mkv": ("mpeg4", "aac"),
    ".avi": ("mpeg4", "mp3"),
    ".flv": ("flv", "mp3"),
}
TONE = 440.0
"""Hz of the sound of :func:`write_video`, and of :func:`tone`."""
STEP = 4
"""How much brighter each frame of :func:`write_video` is than the one before."""


def tone(seconds: float, rate: int, pitch: float = TONE, peak: float = 0.5) -> np.ndarray:
    """A sine ``[n]`` float32."""
    return (peak * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def brightness(number: int, start: int = 40) -> int:
    """Grey level of the right half of frame ``number``: it starts over after 40 frames."""
    return start + STEP * (number % 40)


def frame(number: int, size: tuple[int, int] = (64, 48), start: int = 40) -> np.ndarray:
    """Frame ``number`` of :func:`write_video`, ``[height, width, 3]``: left half 240, right half by the number."""
    picture = np.full((size[1], size[0], 3), brightness(number, start), dtype=np.uint8)
    picture[:, : size[0] // 2] = 240
    return picture


def write_video(
    path: Path,
    seconds: float = 2,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    sound: bool = True,
    rate: int = 16000,
    silent: bool = False,
    codec: tuple[str, str] | None = None,
    pictures: bool = True,
    start: int = 40,
    colour: tuple[int, int, int] | None = None,
) -> Path:
    """Write a video whose frame i is :func:`frame` of i, with a tone of 440 Hz.

    Args:
        path: its suffix decides about container and codecs (:data:`CODECS`); folders are made.
        size: width and height, both even.
        sound: with a track of sound, silent or not.
        rate: of the sound, Hz; flv takes 11025, 22050 or 44100 and gets 22050 for anything else.
        codec: of pictures and sound, where not by suffix.
        pictures: with pictures.
        start: brightness of frame 0.
        colour: every frame this plain colour instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    video_codec, audio_codec = codec or CODECS[path.suffix]
    if path.suffix == ".flv" and rate not in (11025, 22050, 44100):
        rate = 22050
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=fps) if pictures else None
        if video is not None:
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            video.bit_rate = 2_000_000
            video.gop_size = 12
        audio = container.add_stream(audio_codec, rate=rate, layout="mono") if sound else None
        if video is not None:
            for i in range(round(seconds * fps)):
                picture = frame(i, size, start) if colour is None else np.full((size[1], size[0], 3), colour, np.uint8)
                made = av.VideoFrame.from_ndarray(picture, format="rgb24")
                made.pts, made.time_base = i, Fraction(1, fps)
                container.mux(video.encode(made))
            container.mux(video.encode(None))
        if audio is not None:
            samples = tone(seconds, rate, peak=0.0 if silent else 0.5)
            fifo = av.AudioFifo()
            resampler = av.AudioResampler(format=audio.format, layout="mono", rate=rate)
            whole = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
            whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
            for part in [*resampler.resample(whole), *resampler.resample(None)]:
                fifo.write(part)
            step = audio.codec_context.frame_size or 1024
            while (part := fifo.read(step, partial=True)) is not None:
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    return path


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    """Write a wav: floats in -1..1 as 16-bit, anything else as it is; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples.dtype.kind == "f":
        samples = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    wavfile.write(path, rate, samples)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """Keep the first ``share`` of a file's bytes, as a broken download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
