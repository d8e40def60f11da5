"""Every reader of users' files on damaged bytes: it works or raises one sentence, and never anything else.

Each example takes a small valid file, changes its bytes at places that hypothesis chooses, and may swap its suffix.
"""

import gzip
import io
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from balancebench_udi.data.archive import read_archive
from balancebench_udi.data.audio import read_wav
from balancebench_udi.data.mat import read_mat
from balancebench_udi.data.media import as_candidates, read_pictures, read_sound, read_video
from balancebench_udi.data.mnist import read_idx
from balancebench_udi.data.npy import map_npy
from balancebench_udi.errors import UserError
from tests.media import CODECS, tone, write_sound, write_video, write_wav

READERS = {
    "sound": read_sound,
    "video": lambda path: read_video(path, 3, 8),
    "picture": lambda path: as_candidates(read_pictures([path]), 1, 32),
    "archive": lambda path: read_archive(path, ".wav"),
    "wav": lambda path: read_wav(path.read_bytes(), path.name),
    "mat": lambda path: read_mat(path.read_bytes(), path, ["a", "b"]),
    "npy": map_npy,
    "idx": lambda path: read_idx(path, 3),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Reader -> suffix and bytes of small files that it reads."""
    folder = tmp_path_factory.mktemp("valid")
    wave = tone(0.3, 16000)
    videos = [write_video(folder / f"a{suffix}", 0.5) for suffix in CODECS]
    sounds = [
        write_sound(folder / name, codec, wave[None])
        for name, codec in (("a.flac", "flac"), ("a.mp3", "mp3"), ("a.m4a", "aac"), ("b.wav", "pcm_s24le"))
    ]
    wav = write_wav(folder / "c.wav", wave)
    pictures = []
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp", "a.gif", "a.tiff", "a.ppm", "a.jp2", "a.avif"):
        Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(folder / name)
        pictures.append(folder / name)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as whole:
        whole.writestr("d/a.wav", bytes(range(256)))
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as whole:
            info = tarfile.TarInfo("d/é.wav")
            info.size = 256
            whole.addfile(info, io.BytesIO(bytes(range(256))))
    for name, compressed in (("a.mat", False), ("b.mat", True)):
        savemat(folder / name, {"a": np.eye(3), "b": np.arange(5)}, do_compression=compressed)
    np.save(folder / "a.npy", np.eye(3))
    idx = struct.pack(">IIII", 0x803, 2, 4, 4) + bytes(32)
    (folder / "a.idx").write_bytes(idx)
    (folder / "b.gz").write_bytes(gzip.compress(idx))
    files = {
        "sound": [*sounds, wav, videos[0]],
        "video": videos,
        "picture": pictures,
        "archive": [folder / name for name in ("a.zip", "a.tar", "b.tar.gz")],
        "wav": [wav],
        "mat": [folder / "a.mat", folder / "b.mat"],
        "npy": [folder / "a.npy"],
        "idx": [folder / "a.idx", folder / "b.gz"],
    }
    return {name: [(path.suffix, path.read_bytes()) for path in paths] for name, paths in files.items()}


EXTREMES = [b"\0", b"\xff", b"\x7f", b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "set", "cut", "insert", "remove", "splice"]),
        st.floats(0, 1, exclude_max=True).map(lambda share: share**3),  # most at the front, where the headers are
        st.integers(0, 7),
        st.sampled_from(EXTREMES) | st.binary(min_size=1, max_size=40),
    ),
    min_size=1,
    max_size=6,
)


def damaged(content, changes):
    for what, share, bit, piece in changes:
        at = int(share * len(content))
        if what == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        elif what == "set":
            content = content[:at] + piece + content[at + len(piece) :]
        elif what == "cut":
            content = content[: len(content) - at]
        elif what == "insert":
            content = content[:at] + piece + content[at:]
        elif what == "remove":
            content = content[:at] + content[at + len(piece) :]
        else:
            content = content[:at] + content[len(content) // (bit + 1) :]
    return content


@pytest.mark.parametrize("name", READERS)
def test_a_reader_works_or_says_one_sentence(tmp_path, valid, name):
    suffixes = [suffix for suffix, _ in valid[name]]

    @settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(file=st.sampled_from(valid[name]), other=st.none() | st.sampled_from(suffixes), changes=CHANGES)
    def check(file, other, changes):
        suffix, content = file
        path = tmp_path / f"x{other or suffix}"
        path.write_bytes(damaged(content, changes))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", module=r"PIL\.")
            try:
                READERS[name](path)
            except UserError as error:
                assert str(error).isprintable()  # noqa: PT017
        assert not caught

    for suffix, content in valid[name]:  # unchanged they are read
        (tmp_path / f"x{suffix}").write_bytes(content)
        READERS[name](tmp_path / f"x{suffix}")
    check()
