"""Small real media files with known content: what was written can be told from what is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    ".webm": ("libvpx", "libopus"),
    ".mpg": ("mpeg2video", "mp2"),
    ".wmv": ("wmv2", "wmav2"),
}
RATES = {".flv": (22050, 11025, 44100), ".webm": (48000,), ".mpg": (44100, 48000), ".wmv": (44100,)}
"""Of the sound that a container takes, the first for any other."""
TONE = 440.0
"""Hz of the sound of :func:`write_video`, and of :func:`tone`."""
STEP = 4
"""How much brighter each frame of :func:`write_video` is than the one before."""


def tone(seconds: float, rate: int, pitch: float = TONE, peak: float = 0.5) -> np.ndarray:
    """A sine ``[n]`` float32."""
    return (peak * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, rate: int, scale: float = 0.3) -> np.ndarray:
    """White noise ``[n]`` float64 of this standard deviation, the same in every call."""
    return np.random.default_rng(0).normal(0, scale, round(seconds * rate))


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
    heard: float | None = None,
    times: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Write a video whose frame i is :func:`frame` of i, with a tone of 440 Hz.

    Args:
        path: its suffix decides about container and codecs (:data:`CODECS`); folders are made.
        size: width and height, both even.
        sound: with a track of sound, silent or not.
        rate: of the sound, Hz, if the container takes it (:data:`RATES`).
        codec: of pictures and sound, where not by suffix.
        pictures: with pictures.
        start: brightness of frame 0.
        colour: every frame this plain colour instead.
        heard: seconds of the sound, where they are not those of the pictures.
        times: when each frame is shown, and when the last one ends, milliseconds, where that is not every 1/fps s.
        options: of FFmpeg's writer of the container.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    video_codec, audio_codec = codec or CODECS[path.suffix]
    if rate not in RATES.get(path.suffix, (rate,)):
        rate = RATES[path.suffix][0]
    with av.open(str(path), "w", options=dict(options or {})) as container:
        packets: list[av.Packet] = []
        video = container.add_stream(video_codec, rate=fps) if pictures else None
        if video is not None:
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            video.bit_rate = 2_000_000
            video.gop_size = 12
        audio = container.add_stream(audio_codec, rate=rate, layout="mono") if sound else None
        if audio is not None and audio_codec == "wmav2":
            audio.bit_rate = 64_000  # what it begins with is more than mono may have
        if video is not None:
            base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            video.codec_context.time_base = base
            for i, time in enumerate(range(round(seconds * fps)) if times is None else times[:-1]):
                picture = frame(i, size, start) if colour is None else np.full((size[1], size[0], 3), colour, np.uint8)
                made = av.VideoFrame.from_ndarray(picture, format="rgb24")
                made.pts, made.time_base = time, base
                packets += video.encode(made)
            packets += video.encode(None)
            for packet in packets if times is not None else ():
                now = round(packet.pts * packet.time_base * 1000)
                packet.duration = int((times[times.index(now) + 1] - now) / packet.time_base / 1000)
        if audio is not None:
            packets += _encode(audio, tone(heard or seconds, rate, peak=0.0 if silent else 0.5)[None], "mono", rate)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def _encode(stream: av.AudioStream, channels: np.ndarray, layout: str, rate: int) -> list[av.Packet]:
    """All packets of a stream of ``channels [C, n]``, floats."""
    whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels, np.float32), format="fltp", layout=layout)
    whole.sample_rate, whole.pts, whole.time_base = rate, 0, Fraction(1, rate)
    size = stream.codec_context.frame_size or 1024
    to = av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=size)
    parts = [*to.resample(whole), *to.resample(None), None]
    return [packet for part in parts for packet in stream.encode(part)]


def write_sound(
    path: Path,
    codec: str,
    channels: np.ndarray,
    layout: str = "mono",
    rate: int = 16000,
    options: Mapping[str, str] | None = None,
    encoder: Mapping[str, str] | None = None,
) -> Path:
    """Channels ``[C, n]`` of floats with a codec of PyAV, with options of FFmpeg's writer and encoder."""
    form = {".aac": "adts"}.get(path.suffix)
    with av.open(str(path), "w", format=form, options=dict(options or {})) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.options = {"strict": "experimental", **(encoder or {})}  # FFmpeg's own vorbis
        container.mux(_encode(stream, channels, layout, rate))
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
