"""Opening media files with FFmpeg: one file, of a format that holds sound or pictures itself, and nothing besides."""

from __future__ import annotations

from pathlib import Path

import av

FORMATS = (
    "aac",
    "ac3",
    "aiff",
    "amr",
    "ape",
    "asf",
    "au",
    "avi",
    "caf",
    "dv",
    "eac3",
    "flac",
    "flv",
    "h264",
    "hevc",
    "ivf",
    "m4v",
    "matroska",
    "mov",
    "mp3",
    "mpeg",
    "mpegts",
    "mpegvideo",
    "mxf",
    "nut",
    "ogg",
    "tta",
    "voc",
    "w64",
    "wav",
    "wv",
)
"""FFmpeg's names of the formats that are read: none of them names other files, as playlists do."""
MOST_PIXELS = 2**26
"""Of a frame of a video: 8192 x 8192."""
_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    "protocol_whitelist": "file",
    "enable_drefs": "0",  # of mov: media that lie in other files
    "use_absolute_path": "0",
    "max_pixels": str(MOST_PIXELS),
}


def open_media(path: Path) -> av.container.InputContainer:
    """The file, whatever its name is and whatever bytes its title and the like hold.

    Raises:
        av.ArgumentError: of a format that is not in :data:`FORMATS`.
        av.FFmpegError: damaged, or no media file.
    """
    return av.open(f"file:{path}", metadata_errors="ignore", options=_OPTIONS)  # else c:d.mp4 is of a protocol c
