"""Files of sound and pictures that claim, name or hide what they must not: one sentence, and nothing else happens."""

import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from scipy.io import wavfile

from balancebench_udi.data import media
from balancebench_udi.data.audio import check_rate
from balancebench_udi.data.container import FORMATS, open_media
from balancebench_udi.data.media import PICTURE_FORMATS, read_pictures, read_sound, read_video
from balancebench_udi.data.sound import Span
from balancebench_udi.errors import UserError
from tests.media import tone, write_sound, write_video, write_wav

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def refused(call, match):
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# what must not be started or opened


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a.jpg"])
def test_a_picture_starts_no_program(tmp_path, monkeypatch, name):
    path, mark, script = tmp_path / name, tmp_path / "mark", tmp_path / "bin" / "gs"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\ntouch {mark}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path.write_bytes(EPS)
    refused(lambda: read_pictures([path]), "must be a whole picture, it is damaged or of a format that is not read")
    assert not mark.exists()
    with pytest.raises(OSError), Image.open(path) as picture:  # noqa: PT011
        picture.load()
    assert mark.exists()  # so it can be told


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_pictures_that_users_have(tmp_path, kind):
    grey = Image.new("RGB", (32, 24), (100, 150, 200))
    grey.save(tmp_path / "a.jpg", kind)
    (read,) = read_pictures([tmp_path / "a.jpg"])
    assert read.size == (32, 24)
    assert np.abs(np.asarray(read, int) - (100, 150, 200)).max() < 8
    assert kind in PICTURE_FORMATS


PLAYLISTS = {
    "concat": ("a.wav", "ffconcat version 1.0\nfile other.wav\n"),
    "hls": (
        "a.m3u8",
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
    ),
    "sdp": ("a.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"),
    "srt": ("a.wav", "1\n00:00:00,000 --> 00:00:01,000\nhi\n\n2\n00:00:01,000 --> 00:00:02,000\nhi\n"),
    "ffmetadata": ("a.wav", ";FFMETADATA1\ntitle=x\n"),
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_list_of_other_files_is_refused(tmp_path, kind):
    name, content = PLAYLISTS[kind]
    write_wav(tmp_path / "other.wav", tone(1, 16000))
    write_video(tmp_path / "other.mp4", 1)
    path = tmp_path / name
    path.write_text(content)
    if kind != "sdp":  # FFmpeg would wait for packets
        with av.open(str(path)) as container:
            assert container.format.name == kind
    for read in (read_sound, lambda path: read_video(path, 3)):
        refused(lambda read=read: read(path), "it is damaged or of a format that is not read; fetch it again, or")


def test_pictures_by_a_pattern_and_generators_are_no_video(tmp_path):
    for i in range(3):
        Image.new("RGB", (32, 24)).save(tmp_path / f"{i}.png")
    with av.open(str(tmp_path / "%d.png")) as container:
        assert container.format.name == "image2"
    with pytest.raises(FileNotFoundError):
        read_video(tmp_path / "%d.png", 3)
    refused(
        lambda: read_video(tmp_path / "0.png", 3), "must be a whole video, it is damaged or of a format that is not"
    )


def test_every_format_is_one_that_ffmpeg_knows():
    for name in FORMATS:
        av.ContainerFormat(name, "r")


NAMES = ["c:d.mp4", "http:x.mp4", "-i.mp4", "%d.mp4", "concat:a|b.mp4", "file:x.mp4", "a\n'b\".mp4", "pipe:0.mp4"]


@pytest.mark.parametrize("folder", [".", "c:d", "http:"])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_addresses(tmp_path, monkeypatch, folder, name):
    monkeypatch.chdir(tmp_path)
    plain = write_video(tmp_path / "plain.mp4", 1)
    path = Path(folder) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plain.read_bytes())
    assert read_sound(path)[0].equal(read_sound(plain)[0])
    assert len(read_video(path, 3)) == len(read_video(plain, 3)) == 3
    path.write_bytes(plain.read_bytes()[:900])
    refused(lambda: read_sound(path), "it is damaged or cut short; fetch it again$")
    refused(lambda: read_video(path, 3), "it is damaged or cut short; fetch it again$")


def test_names_that_are_not_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))
    path.write_bytes(write_video(tmp_path / "plain.mp4", 1).read_bytes())
    assert len(read_video(path, 3)) == 3
    path.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        read_video(path, 3)
    str(caught.value).encode()


# what a file claims

COMMON = (8000, 11025, 12345, 16000, 22050, 24000, 32000, 37800, 44100, 48000, 88200, 96000, 176400, 192000, 384000)


@pytest.mark.parametrize("rate", COMMON)
def test_rates_in_use(rate):
    check_rate(rate, "a.wav")


@pytest.mark.parametrize("rate", [0, 1, 999, 44_057, 96_001, 767_999, 768_001, 1_000_003, 2**31 - 1])
def test_rates_that_take_too_much_memory(tmp_path, rate):
    """At 96001 Hz torchaudio takes 8.5 GB, at 1000003 Hz 88 GB."""
    path = write_wav(tmp_path / "a.wav", tone(0.5, 16000))
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    refused(
        lambda: read_sound(path), rf"^{path} must be sampled at .*, found {rate} Hz.*; convert it with ffmpeg -ar 48"
    )
    if 999 < rate < 100_000:
        write_sound(tmp_path / "a.flac", "flac", tone(0.5, 16000)[None], rate=rate)
        refused(lambda: read_sound(tmp_path / "a.flac"), f"must be sampled at .*, found {rate} Hz")


def wav_header(channels=1, rate=16000, size=0, bits=16):
    block = channels * bits // 8
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits)
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", size)


@pytest.mark.parametrize(
    "header",
    [
        {"size": 0x70000000},
        {"channels": 65535, "size": 65535 * 2 * 1000},
        {"channels": 0, "size": 1000},
        {"bits": 0, "size": 1000},
        {"bits": 65528, "size": 1000},
    ],
)
def test_claims_of_a_wav(tmp_path, header):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_header(**header) + bytes(2000))
    refused(lambda: read_sound(path), "must be a media file with sound, it is damaged or cut short; fetch it again$")


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_sound_that_is_too_long(tmp_path, monkeypatch, name):
    codec = {"a.wav": "pcm_s16le", "a.flac": "flac"}[name]
    path = write_sound(tmp_path / name, codec, tone(1, 16000)[None])
    monkeypatch.setattr(media, "_MOST_SAMPLES", 16000)
    assert len(read_sound(path)[0]) == 16000
    monkeypatch.setattr(media, "_MOST_SAMPLES", 15999)
    refused(lambda: read_sound(path), r"must hold at most 15999 samples, found more; cut it$")


def test_sound_that_begins_after_years(tmp_path, monkeypatch):
    """Silence stands for the time before, but takes no more memory than the longest sound."""
    path = write_sound(tmp_path / "a.flac", "flac", tone(1, 16000)[None])
    decoded = media._decode_sound(path)
    monkeypatch.setattr(media, "_decode_sound", lambda path: (*decoded[:2], 1e12))
    monkeypatch.setattr(media, "_MOST_SAMPLES", 160_000)
    assert float(read_sound(path, Span(0, 2))[0].abs().max()) == 0


def test_floats_that_are_none_make_no_warning(tmp_path):
    values = np.array([[np.nan, 1], [3e38, 3e38], [np.inf, -np.inf]], np.float32)
    wavfile.write(tmp_path / "a.wav", 16000, values)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not read_sound(tmp_path / "a.wav")[0].isfinite().any()
    assert not caught


def png(width, height, rows=b"", more=()):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    text = b"".join(chunk(*part) for part in more)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + text + chunk(b"IEND", b"")
    )


def test_pictures_that_are_too_large(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png(60_000, 60_000))
    refused(lambda: read_pictures([path]), r"a\.png must have at most \d+ pixels, found more; scale it down$")
    path.write_bytes(png(40, 30, bytes(30 * 121)))
    monkeypatch.setattr(media, "_MOST_HELD", 3 * 2 * 40 * 30)
    assert len(read_pictures([path, path])) == 2
    refused(
        lambda: read_pictures([path] * 3),
        "pictures of a sample must take at most 7200 bytes, found more with .* of 40 x",
    )


def test_pillow_says_nothing_on_stderr(tmp_path):
    """Of a picture with many pixels, and of one whose EXIF is cut."""
    large, torn = tmp_path / "a.png", tmp_path / "a.jpg"
    Image.new("L", (9500, 9500)).save(large, compress_level=1)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2\1\x12\0\3\0\0\0\1\0\6\0\0\1\0"
    Image.new("RGB", (16, 16)).save(torn, exif=exif)
    code = (
        "import sys; from pathlib import Path; from balancebench_udi.data.media import read_pictures\n"
        "print(*(p.size for p in read_pictures([Path(a) for a in sys.argv[1:]])))"
    )
    for paths in ([large], [torn], [large, torn]):
        done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
        assert done.stderr == ""
    assert done.stdout == "(9500, 9500) (16, 16)\n"


def test_a_text_in_a_picture_that_unpacks_to_much(tmp_path):
    """Pillow raises what it raises nowhere else."""
    path, text = tmp_path / "a.png", b"Comment\0\0" + zlib.compress(bytes(2**24))
    path.write_bytes(png(40, 30, bytes(30 * 121), [(b"zTXt", text)]))
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"), Image.open(path) as picture:
        picture.load()
    refused(lambda: read_pictures([path]), "must be a whole picture, it is damaged or cut short; fetch it again$")


@pytest.mark.parametrize("size", [(0, 0), (0, 10), (10, 0)])
def test_pictures_without_pixels(tmp_path, size):
    path = tmp_path / "a.png"
    path.write_bytes(png(*size))
    refused(lambda: read_pictures([path]), "must be a whole picture, it is damaged")
    (tmp_path / "a.ppm").write_bytes(b"P6 %d %d 255\n" % size)
    refused(lambda: read_pictures([tmp_path / "a.ppm"]), "must be a whole picture, it is damaged")


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_of_an_animated_picture_the_first(tmp_path, suffix):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    first, *rest = [Image.new("RGB", (16, 16), c) for c in colours]
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=rest)
    (read,) = read_pictures([tmp_path / f"a{suffix}"])
    assert np.abs(np.asarray(read, int) - colours[0]).max() < 8


def test_videos_that_are_too_large(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 1)
    monkeypatch.setattr(media, "_MOST_HELD", 3 * 3 * 64 * 48)
    assert len(read_video(path, 3)) == 3
    refused(
        lambda: read_video(path, 4),
        "pictures of a sample must take at most 27648 bytes, found more in .*of 64 x 48; sc",
    )
    monkeypatch.setattr(media, "MOST_PIXELS", 64 * 48 - 1)
    refused(
        lambda: read_video(path, 3), "must be a whole video, of at most 3071 pixels a frame, found 64 x 48; scale it"
    )


def test_a_video_whose_frames_are_larger_than_it_says(tmp_path, monkeypatch):
    """A header of flv states none; the decoder refuses them."""
    monkeypatch.setattr(media, "_is_large", lambda stream: False)
    path = write_video(tmp_path / "a.flv", 1, sound=False)
    assert len(read_video(path, 3)) == 3
    monkeypatch.setattr(media, "MOST_PIXELS", 64 * 48 - 1)
    refused(lambda: read_video(path, 3), "must be a whole video, it is damaged")


def test_an_mp4_that_states_a_thousand_million_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", 1, sound=False)
    content = bytearray(path.read_bytes())
    for name, values in ((b"stsz", (1, 10**9)), (b"stts", (1, 10**9, 512)), (b"stsc", (1, 1, 10**9, 1))):
        at = content.index(name) + 8
        content[at : at + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    path.write_bytes(content)
    refused(lambda: read_video(path, 3), "must be a whole video, it is damaged or cut short; fetch it again$")


def test_media_in_other_files_stay_closed(tmp_path):
    """An alias record of QuickTime that leads to another file, which FFmpeg follows if asked to."""
    other = write_video(tmp_path / "other.mov", 1, sound=False)
    content = other.read_bytes()
    at = content.index(b"dref") - 4
    name = b"other.mov"
    path = b"v:" + name
    record = bytes(10) + bytes([1]) + b"v".ljust(27, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0")
    record += bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    record += struct.pack(">HH", 2, len(path)) + path + bytes(len(path) % 2) + struct.pack(">HH", 0xFFFF, 0)
    entry = b"alis" + bytes(4) + record
    box = b"dref" + bytes(4) + struct.pack(">I", 1) + struct.pack(">I", 4 + len(entry)) + entry
    box = struct.pack(">I", 4 + len(box)) + box
    (size,) = struct.unpack_from(">I", content, at)
    grown, changed = len(box) - size, bytearray(content)
    assert changed.index(b"moov") > changed.index(b"mdat")  # so offsets of chunks stay
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        where = content.rindex(parent, 0, at) - 4
        changed[where : where + 4] = struct.pack(">I", struct.unpack_from(">I", content, where)[0] + grown)
    changed[at : at + size] = box
    linked = tmp_path / "a.mov"
    linked.write_bytes(changed)

    def packets(container):
        with container:
            return sum(p.size for p in container.demux())

    assert packets(av.open(str(linked), options={"enable_drefs": "1"})) > 0
    assert packets(open_media(linked)) == 0
    refused(lambda: read_video(linked, 3), "must be a whole video")
