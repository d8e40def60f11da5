"""Whether a media file is whole, or was cut short: FFmpeg decodes what is there and does not tell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av

from balancebench_udi.data.container import open_media

_MISSING, _SHARE = 0.5, 0.05
"""Seconds, and share, of the length that a file states which may be missing, the less of both, besides one frame."""
_UNSTATED = ("aac", "mp3", "mpeg", "mpegts", "ogg")
"""Formats of which FFmpeg takes the length from the bytes that are there."""
_TOGETHER = ("flv", "matroska,webm", "asf")
"""Formats that state one length for all streams."""
_STREAMED = 2**31 - 2**16
"""Bytes that programs write which cannot go back to a header of wav: this many, more, or none."""

_Read = Callable[[int, int], bytes]
"""From offset and size to the bytes there, with zeros for those behind the end of the file."""


def is_whole(path: Path, container: av.container.InputContainer, kind: str, end: float, longest: float) -> bool:
    """Whether a file has all of its bytes, and a stream of it all of its time.

    Bytes: the parts of a file (chunks, boxes, pages, tags) state their sizes, and none may reach beyond its end. Time:
    the stream must last as long as the file states; where that is of all its streams together, any of them must.

    A file passes that was cut where it might as well end: ``.aac`` between two frames; ``.mp3`` between two frames, or
    anywhere if its bit rate varies, without a Xing or VBRI header; ``.mpg`` between two packets, unless it has sound of
    a constant bit rate; what was streamed, so that no header states a length: ``.wav`` anywhere, ``.mkv``, ``.webm``
    and ``.mp4`` between two blocks or fragments. Of MPEG-TS nothing but a torn frame of sound is noticed. Refused
    though whole are a streamed ``.avi``, whose header states lengths that are none, ogg without a page that is marked
    as the last, ``.mp3`` of a constant bit rate with zeros or lyrics behind it, and a
    streamed ``.wmv``, which states no length, just as one that was cut does not.

    Args:
        end: seconds at which the last frame begins (of pictures) or ends (of sound).
        longest: seconds that the longest frame lasts.
    """
    if is_torn(path) or (container.format.name == "asf" and container.duration is None):
        return False
    if container.format.name in _UNSTATED:
        return not _ends_in_a_frame(path)
    if container.format.name == "matroska,webm" and not _states_duration(path):  # FFmpeg guesses one
        return True
    stream = getattr(container.streams, kind)[0]
    if own := stream.duration is not None and container.format.name not in _TOGETHER:
        stated = float(stream.duration * stream.time_base)
    else:
        stated = (container.duration or 0) / av.time_base
    least = stated - min(_MISSING, _SHARE * stated) - longest
    return end >= least or (not own and _end(path) >= least)


def _end(path: Path) -> float:
    """Seconds at which the last packet of any stream ends, if it lasts as long as the longest of its stream."""
    begins: dict[int, float] = {}
    longest: dict[int, float] = {}
    with open_media(path) as container:
        for packet in container.demux():
            if packet.pts is not None:
                i, time = packet.stream_index, float(packet.pts * packet.time_base)
                lasts = max(float((packet.duration or 0) * packet.time_base), time - begins.get(i, time))
                longest[i] = max(longest.get(i, 0.0), lasts)
                begins[i] = max(begins.get(i, time), time)
    return max((begins[i] + longest[i] for i in begins), default=0.0)


def _ends_in_a_frame(path: Path) -> bool:
    """Whether all frames of sound have one size, give or take a byte of padding, but the last, which is smaller."""
    with open_media(path) as container:
        sizes = [p.size for p in container.demux() if p.size and p.stream.type == "audio"]
    return len(sizes) > 2 and max(sizes[:-1]) - min(sizes[:-1]) <= 1 and sizes[-1] < min(sizes[:-1])


def _states_duration(path: Path) -> bool:
    """Whether the header of a Matroska file, before its first cluster, has the element Duration, of 4 or 8 bytes."""
    with path.open("rb") as file:
        header = file.read(2**20).partition(b"\x1f\x43\xb6\x75")[0]
    return b"\x44\x89\x84" in header or b"\x44\x89\x88" in header


def is_torn(path: Path) -> bool:
    """Whether a part of a file reaches beyond its end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)

        def read(offset: int, count: int) -> bytes:
            file.seek(offset)
            return file.read(count).ljust(count, b"\0")

        ends = next((ends(read) for mark, offset, ends in _FORMATS if read(offset, len(mark)) == mark), iter(()))
        return next((end for end in ends if end >= size), size) > size


def _number(content: bytes) -> int:
    return int.from_bytes(content, "big")


def _riff(read: _Read) -> Iterator[int]:
    """Where the chunks of wav and avi end that hold sound, pictures or other chunks."""
    at, large = 12, 0
    while (name := read(at, 4)).strip(b"\0"):
        length = int.from_bytes(read(at + 4, 4), "little")
        if name == b"ds64":  # of files beyond 4 GB, whose chunk data states 2**32 - 1
            large = int.from_bytes(read(at + 16, 8), "little")
        elif name == b"data":
            length = large or length
            if 0 < length < _STREAMED or large:
                yield at + 8 + length
            return
        at += 8 + length
        if name in (b"LIST", b"RIFF", b"idx1"):
            yield at
        at += length % 2


def _mp4(read: _Read) -> Iterator[int]:
    """Where the boxes of mp4, mov, m4a and 3gp end."""
    at = 0
    while read(at + 4, 4).isalnum():
        length = _number(read(at, 4))
        length = _number(read(at + 8, 8)) if length == 1 else length
        if length < 8:  # to the end of the file, wherever that is
            return
        at += length
        yield at


def _matroska(read: _Read) -> Iterator[int]:
    """Where the elements of mkv and webm end: those inside of one that states no length, too."""
    at = 0
    while (first := read(at, 1)[0]) and (second := read(at + 9 - first.bit_length(), 1)[0]):
        at += 9 - first.bit_length()
        width = 9 - second.bit_length()
        length = _number(read(at, width)) % (1 << 7 * width)
        at += width
        if length != (1 << 7 * width) - 1:
            at += length
            yield at


def _flv(read: _Read) -> Iterator[int]:
    """Where the tags of flv end."""
    at = _number(read(5, 4)) + 4
    while read(at, 1) in (b"\x08", b"\x09", b"\x12"):
        at += 11 + _number(read(at + 1, 3))
        yield at
        at += 4


def _ogg(read: _Read) -> Iterator[int]:
    """Where ogg and opus end: with a page that is marked as the last, and nowhere without."""
    at, last = 0, True
    while (page := read(at, 282)).startswith(b"OggS"):
        at += 27 + page[26] + sum(page[27 : 27 + page[26]])
        last = bool(page[5] & 4)
        if last:
            yield at
    if not last:
        yield sys.maxsize


def _mpeg(read: _Read) -> Iterator[int]:
    """Where the packets of mpg end."""
    at = 0
    while (packet := read(at, 14))[:3] == b"\0\0\1" and packet[3] >= 0xBA:
        pack = 14 + packet[13] % 8 if packet[4] & 0x40 else 12
        at += pack if packet[3] == 0xBA else 6 + _number(packet[4:6])
        yield at


def _mp3(read: _Read) -> Iterator[int]:
    """Where mp3 ends by the Xing or VBRI header in its first frame, less one frame."""
    at = 0
    while (tag := read(at, 10)).startswith(b"ID3"):
        at += 10 + sum(b << 7 * i for i, b in enumerate(tag[9:5:-1]))
    frame = read(at, 64)
    for mark, where in ((b"Xing", (12, 8)), (b"Info", (12, 8)), (b"VBRI", (10, 14))):
        found = frame.find(mark, 4, 44)
        if found > 0 and frame[0] == 0xFF and (mark == b"VBRI" or frame[found + 7] & 3 == 3):
            length, frames = (_number(frame[found + i : found + i + 4]) for i in where)
            yield at + length - length // max(1, frames)


_FORMATS: Sequence[tuple[bytes, int, Callable[[_Read], Iterator[int]]]] = (
    (b"RIFF", 0, _riff),
    (b"RF64", 0, _riff),
    *((mark, 4, _mp4) for mark in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (b"\x1aE\xdf\xa3", 0, _matroska),
    (b"FLV", 0, _flv),
    (b"OggS", 0, _ogg),
    (b"\0\0\1\xba", 0, _mpeg),
    (b"ID3", 0, _mp3),
    (b"\xff", 0, _mp3),
)
"""What a file of a format holds, and where; and the ends of its parts."""
