"""Archives, arrays and weights that are larger than they look, or hold what they must not: one sentence each."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from scipy.sparse import eye
from torchvision.models import resnet18, resnet34

from balancebench_udi.data import mat, mnist
from balancebench_udi.data.archive import read_archive
from balancebench_udi.data.food101 import FEATURE_IDS, FEATURES, read_features
from balancebench_udi.data.mat import read_mat
from balancebench_udi.data.npy import map_npy
from balancebench_udi.errors import UserError
from balancebench_udi.nets.encoders import read_weights

KINDS = ("a.zip", "a.tar", "a.tar.gz")


def refused(call, match):
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def archive(path, files):
    """An archive of the name and bytes of files, or of members of tar."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as whole:
            for name, content in files:
                whole.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as whole:
            for name, content in files:
                info, content = (name, content) if isinstance(name, tarfile.TarInfo) else member(name, content)
                whole.addfile(info, io.BytesIO(content) if info.isfile() else None)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_known_by_their_names_without_folders(tmp_path, kind):
    files = [("/etc/a.wav", b"a"), ("../../b.wav", b"bb"), ("c/d.wav", b""), ("c/e.txt", b"e")]
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / kind, files)
    assert read_archive(path, ".wav") == {"a.wav": b"a", "b.wav": b"bb", "d.wav": b""}
    assert {p.name for p in tmp_path.rglob("*")} == {"in", kind}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_there_twice(tmp_path, kind):
    path = archive(tmp_path / kind, [("x/a.wav", b"1"), ("y/a.wav", b"2")])
    refused(lambda: read_archive(path, ".wav"), r"must hold every file once, found two of 'a\.wav'; fetch it again$")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_unpacks_to_more_than_fits(tmp_path, kind):
    path = archive(tmp_path / kind, [("a.wav", bytes(30_000)), ("b.wav", bytes(30_000))])
    assert len(read_archive(path, ".wav", 80_000)) == 2
    refused(lambda: read_archive(path, ".wav", 50_000), r"must unpack to at most 50000 bytes, it is larger; fetch it")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_links_and_devices_in_a_tar(tmp_path, name, kind):
    files = [("b.wav", b"b"), member("a.wav", type=kind, linkname="b.wav")]
    refused(
        lambda: read_archive(archive(tmp_path / name, files), ".wav"), r"plain files, 'a\.wav' in it is a link or a"
    )


def test_a_link_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("a.wav")
    info.external_attr = 0o120777 << 16
    path = archive(tmp_path / "a.zip", [(info, b"/etc/passwd")])
    refused(lambda: read_archive(path, ".wav"), r"plain files, 'a\.wav' in it is a link or a device; fetch it again$")


def changed_zip(path, local, central, value):
    """A zip with two bytes of the headers of its only file replaced."""
    content = bytearray(archive(path, [("a.wav", b"abc")]).read_bytes())
    for mark, at in ((b"PK\3\4", local), (b"PK\1\2", central)):
        start = content.index(mark) + at
        content[start : start + 2] = struct.pack("<H", value)
    path.write_bytes(content)
    return path


def test_encrypted_and_unknown_files_of_a_zip(tmp_path):
    path = changed_zip(tmp_path / "a.zip", 6, 8, 1)
    refused(
        lambda: read_archive(path, ".wav"), r"must be without password, 'a\.wav' in it is encrypted; fetch it again$"
    )
    path = changed_zip(tmp_path / "a.zip", 8, 10, 97)
    refused(lambda: read_archive(path, ".wav"), r"deflate, found method 97 of 'a\.wav' in it; pack it again$")


@pytest.mark.parametrize("size", [2**33, 2**62])
def test_a_stated_size_that_is_enormous(tmp_path, size):
    info, _ = member("a.wav", size=size)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "a.tar").write_bytes(info.tobuf(form) + bytes(2048))
        refused(
            lambda: read_archive(tmp_path / "a.tar", ".wav"), "must unpack to at most 268435456 bytes, it is larger"
        )


def test_a_sparse_file_of_a_tar(tmp_path):
    """4 GB of holes in 2 KB, in GNU's format."""
    header = bytearray(member("a.wav", type=tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**32
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getmembers()[0].size == 2**32
    refused(lambda: read_archive(tmp_path / "a.tar", ".wav"), "must unpack to at most 268435456 bytes, it is larger")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_anywhere(tmp_path, kind):
    path = archive(tmp_path / kind, [(f"{i}.wav", os.urandom(300)) for i in range(3)])
    content = path.read_bytes()
    for at in range(0, len(content), 101):
        for made in (content[:at], content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :]):
            path.write_bytes(made)
            try:
                read_archive(path, ".wav")
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_memory_stays_bounded(tmp_path):
    """Files of some MB that unpack to 4 GB."""
    zeros = gzip.compress(bytes(2**24))
    head = member("a.txt", size=2**32)[0].tobuf(tarfile.GNU_FORMAT)
    for name, start in (("a.tar.gz", head), ("idx.gz", struct.pack(">IIII", 0x803, 2**17, 256, 128))):
        (tmp_path / name).write_bytes(gzip.compress(start) + zeros * 2**8)
        assert (tmp_path / name).stat().st_size < 2**23
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from balancebench_udi.data.archive import read_archive; from balancebench_udi.data.mnist import read_idx\n"
        "from balancebench_udi.errors import UserError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for call in (lambda p: read_archive(p / 'a.tar.gz', '.wav'), lambda p: read_idx(p / 'idx.gz', 3)):\n"
        "    try:\n        call(Path(sys.argv[1]))\n    except UserError as error:\n        print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    *said, grown = done.stdout.splitlines()
    assert ["must unpack to at most" in line for line in said] == [True, True]
    assert int(grown) < 600 * 2**10


# IDX


def test_an_idx_file_that_unpacks_to_more_than_fits(tmp_path, monkeypatch):
    content = struct.pack(">IIII", 0x803, 5, 28, 28) + bytes(5 * 784)
    monkeypatch.setattr(mnist, "MOST", len(content))
    for name, made in (("x", content), ("x.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(made)
        assert mnist.read_idx(tmp_path / name, 3).shape == (5, 28, 28)
    monkeypatch.setattr(mnist, "MOST", len(content) - 1)
    for name in ("x", "x.gz"):
        refused(
            lambda name=name: mnist.read_idx(tmp_path / name, 3), "must unpack to at most 3935 bytes, it is larger;"
        )


# MATLAB


def saved(compressed, **variables):
    file = io.BytesIO()
    savemat(file, variables, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_arrays_are_those_scipy_reads(compressed, kind):
    values = {f"v{'x' * n}": np.arange(n * 6).reshape(n, 2, 3).astype(kind) for n in (1, 2, 5, 30)}
    values["small"] = np.ones((1, 3), "u1" if kind[0] == "u" else "i1")
    content = saved(compressed, other={"a": 1}, text="abc", **values)
    found, expected = read_mat(content, "a.mat", values), loadmat(io.BytesIO(content))
    for name in values:
        assert found[name].dtype == expected[name].dtype
        assert found[name].strides == expected[name].strides
        assert np.array_equal(found[name], expected[name])


def test_the_published_files_are_read_as_scipy_reads_them(data_root):
    contents = [path.read_bytes() for path in data_root.glob("*/*.mat")]
    for path in data_root.glob("utd_mhad/*.tar"):
        contents += list(read_archive(path, ".mat").values())[::40]
    assert len(contents) > 40
    for content in contents:
        for name, expected in loadmat(io.BytesIO(content)).items():
            if not name.startswith("__") and expected.dtype.kind in "iuf":
                assert np.array_equal(read_mat(content, "a.mat", [name])[name], expected)


@pytest.mark.parametrize("value", [eye(3).tocsc(), {"a": 1}, np.array([1, "a"], object), np.eye(2) * 1j, "text"])
def test_what_is_no_array_of_real_numbers(value):
    refused(
        lambda: read_mat(saved(False, x=value), "a.mat", ["x"]), "x in a.mat must hold finite numbers only, found some"
    )


def test_a_class_on_which_scipy_ends_the_process():
    content = bytearray(saved(False, x={"a": 1.0}))
    at = content.index(struct.pack("<II", 6, 8)) + 8
    for number in range(256):
        content[at] = number
        if number in range(6, 16):  # its parts are read as those of an array
            assert read_mat(bytes(content), "a.mat", ["x"])["x"].shape == (1, 1)
        else:
            refused(lambda: read_mat(bytes(content), "a.mat", ["x"]), "^(a.mat|x in a.mat) must ")


def test_a_matlab_file_that_unpacks_to_more_than_fits(monkeypatch):
    content = saved(True, x=np.zeros((100, 100)))
    monkeypatch.setattr(mat, "MOST", 80_064)
    assert read_mat(content, "a.mat", ["x"])["x"].shape == (100, 100)
    monkeypatch.setattr(mat, "MOST", 80_000)
    refused(
        lambda: read_mat(content, "a.mat", ["x"]), "^a.mat must unpack to at most 80000 bytes, it is larger; fetch it"
    )


# numpy


def header(shape, descr="<f8"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text + b"\n"


class Mark:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "content",
    [
        header((10**12,)) + bytes(100),
        header((10**6, 10**6, 10**6, 10**6)) + bytes(100),
        header((-1,)) + bytes(100),
        header((3,), "|O") + bytes(100),
        header("(" * 500 + "3,)") + bytes(100),
        header("9" * 5000) + bytes(100),
        b"",
        b"\x93NUMPY\1\0\xff\xff",
        b"PK\3\4",
    ],
)
def test_other_arrays(tmp_path, content):
    path = tmp_path / FEATURES
    path.write_bytes(content)
    (tmp_path / FEATURE_IDS).write_text("a\n")
    for call in (lambda: map_npy(path), lambda: read_features(tmp_path, 3)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            refused(call, r"must be a whole \.npy file of numbers, it is not; save it again$")
        assert not caught


def test_an_npz_is_no_npy_and_nothing_is_unpickled(tmp_path):
    path = tmp_path / FEATURES
    (tmp_path / FEATURE_IDS).write_text("a\n")
    with path.open("wb") as file:
        np.savez(file, a=np.eye(3))
    refused(lambda: read_features(tmp_path, 3), r"must be a whole \.npy file of numbers, it is not; save it again$")
    with path.open("wb") as file:
        np.save(file, np.array([Mark(tmp_path / "mark")], object), allow_pickle=True)
    refused(lambda: read_features(tmp_path, 3), r"must be a whole \.npy file of numbers, it is not; save it again$")
    assert not (tmp_path / "mark").exists()


# weights


@pytest.fixture(scope="module")
def state():
    return resnet18().state_dict()


def test_weights_with_code_are_not_run(tmp_path, state):
    path = tmp_path / "a.pth"
    for number, save in enumerate((torch.save, lambda value, path: path.write_bytes(pickle.dumps(value)))):
        mark = tmp_path / f"mark{number}"
        save({**state, "x": Mark(mark)}, path)
        refused(lambda: read_weights(path), "must be a state dict that torch.save wrote, found another content in")
        assert not mark.exists()
    with path.open("wb") as file:
        torch.save({**state, "fc.bias": torch.zeros(3)}, file)
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(lambda: read_weights(path), "must be a state dict that torch.save wrote, found another content in")


def test_layers_that_a_resnet18_lacks(tmp_path, state):
    path = tmp_path / "a.pth"
    torch.save(resnet34().state_dict(), path)
    refused(lambda: read_weights(path), r"torchvision's resnet18, found layer1\.2\.conv1\.weight in .*, which it lacks")
    torch.save({**state, "extra": torch.zeros(3)}, path)
    refused(lambda: read_weights(path), r"torchvision's resnet18, found extra in .*, which it lacks$")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "whole numbers"])
@pytest.mark.parametrize("name", ["conv1.weight", "layer4.1.bn2.running_var"])
def test_weights_that_are_not_finite(tmp_path, state, name, value):
    wrong = state[name].int() if isinstance(value, str) else state[name].clone().fill_(value)
    torch.save({**state, name: wrong}, tmp_path / "a.pth")
    refused(
        lambda: read_weights(tmp_path / "a.pth"), f"must be finite numbers, found others in {name} of .*; use another"
    )
