"""The reader of MNIST's files on small files of its own making."""

import gzip
import struct

import numpy as np
import pytest
import torch

from balancebench_udi.data.mnist import FOLDERS, read_mnist
from balancebench_udi.errors import UserError


def idx(array):
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def contents():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28))
    return {
        "train-images-idx3-ubyte": idx(pixels),
        "train-labels-idx1-ubyte": idx(np.arange(7)),
        "t10k-images-idx3-ubyte": idx(pixels[:3] ^ 255),
        "t10k-labels-idx1-ubyte": idx(np.array([9, 8, 0])),
    }


def write(root, folder=FOLDERS[0], packed=True, **changed):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in (contents() | changed).items():
        (root / folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return root


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("packed", [True, False])
def test_values_and_places(tmp_path, folder, packed):
    splits = read_mnist(write(tmp_path, folder, packed))
    pixels = np.random.default_rng(0).integers(0, 256, (7, 28, 28))
    assert list(splits) == ["train", "test"]
    for split, expected, labels in (("train", pixels, range(7)), ("test", pixels[:3] ^ 255, (9, 8, 0))):
        images, target = splits[split]
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy(), expected)
        assert target.dtype == torch.int64
        assert target.tolist() == list(labels)


def test_absent(tmp_path):
    with pytest.raises(UserError, match="mnist/"):
        read_mnist(tmp_path)
    write(tmp_path)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte"):
        read_mnist(tmp_path)


@pytest.mark.parametrize("length", [*range(20), 400])
def test_cut_short_anywhere(tmp_path, length):
    whole = contents()["train-images-idx3-ubyte"]
    with pytest.raises(UserError, match="train-images"):
        read_mnist(write(tmp_path, packed=False, **{"train-images-idx3-ubyte": whole[:length]}))


def test_cut_gzip(tmp_path):
    path = write(tmp_path) / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="train-images"):
        read_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3-ubyte", np.zeros((7, 28)), "magic"),
        ("train-images-idx3-ubyte", np.zeros((7, 28, 27)), "28 x 28"),
        ("train-labels-idx1-ubyte", np.zeros(6), "one label"),
        ("t10k-labels-idx1-ubyte", np.array([0, 10, 1]), "0..9"),
    ],
)
def test_mistaken_content(tmp_path, name, array, message):
    with pytest.raises(UserError, match=message):
        read_mnist(write(tmp_path, **{name: idx(array)}))


def test_official_counts(data_root):
    if not (data_root / "mnist").is_dir():
        pytest.skip(f"{data_root / 'mnist'} is absent")
    splits = read_mnist(data_root)
    assert [tuple(splits[s][0].shape) for s in ("train", "test")] == [(60000, 28, 28), (10000, 28, 28)]
    assert splits["train"][1][:5].tolist() == [5, 0, 4, 1, 9]
    assert splits["test"][1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
