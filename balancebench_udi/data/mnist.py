"""The four IDX files of MNIST, compressed or not, wherever users keep them."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from balancebench_udi.errors import UserError

FOLDERS = ("mnist", "MNIST/raw", ".")
"""Where the files may lie below the data root; the second is torchvision's layout."""
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MOST = 2**26
"""Bytes that one of them may unpack to: MNIST's largest takes 47 MB."""
NEEDS = "MNIST's four IDX files, plain or .gz, in mnist/ or MNIST/raw/"
"""For :attr:`Dataset.needs`."""


def find_mnist(root: Path) -> list[Path]:
    """Paths of the four files in the order of :data:`FILES`, each with or without ``.gz``.

    Raises:
        UserError: no folder holds all four.
    """
    best: list[str] = list(FILES)
    for folder in FOLDERS:
        paths = [next((p for p in (root / folder / f, root / folder / f"{f}.gz") if p.is_file()), None) for f in FILES]
        found = [p for p in paths if p is not None]
        if len(found) == len(FILES):
            return found
        best = min(best, [f for f, p in zip(FILES, paths, strict=True) if p is None], key=len)
    raise UserError(
        f"--data-root must hold {NEEDS}, found no {', '.join(best)} under {root}; "
        "copy them there or fetch them with --set cgmnist.download=true"
    )


def read_idx(path: Path, dims: int) -> Tensor:
    """One IDX file of unsigned bytes with ``dims`` dimensions, as uint8.

    Raises:
        UserError: unreadable, truncated or another kind of file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} must be a readable file, found: {error}; download it again") from None
    if len(raw) > MOST:
        raise UserError(f"{path} must unpack to at most {MOST} bytes, it is larger; download it again")
    start = 4 + 4 * dims
    expected = 0x800 + dims  # two zero bytes, 0x08 for unsigned bytes, the number of dimensions
    magic, *shape = (int(n) for n in np.frombuffer(raw[:start].ljust(start, b"\0"), dtype=">u4"))
    if magic != expected:
        raise UserError(f"{path} must begin with the IDX magic number {expected}, found {magic}; download it again")
    size, found = prod(shape), max(0, len(raw) - start)
    if found != size or size == 0:
        raise UserError(f"{path} must hold {shape} bytes after its header, found {found}; download it again")
    return torch.frombuffer(bytearray(raw[start:]), dtype=torch.uint8).view(shape)


def read_mnist(root: Path, download: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """MNIST's ``train`` (60000) and ``test`` (10000) in the order of the files.

    Args:
        root: the data root.
        download: fetch the files through torchvision into ``<root>/MNIST/raw`` where they are absent.

    Returns:
        split -> (images ``[N, 28, 28]`` uint8, labels ``[N]`` int64).

    Raises:
        UserError: files absent, damaged or not fetched.
    """
    try:
        paths = find_mnist(root)
    except UserError:
        if not download:
            raise
        _download(root)
        paths = find_mnist(root)
    return {"train": _read_pair(paths[0], paths[1]), "test": _read_pair(paths[2], paths[3])}


def _read_pair(image_path: Path, label_path: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(image_path, 3), read_idx(label_path, 1).long()
    if tuple(images.shape[1:]) != (28, 28):
        raise UserError(f"{image_path} must hold images of 28 x 28, found {images.shape[1]} x {images.shape[2]}")
    if len(images) != len(labels):
        raise UserError(
            f"{label_path} must hold one label an image ({len(images)}), found {len(labels)}; download both again"
        )
    if len(labels) and int(labels.max()) > 9:
        raise UserError(f"{label_path} must hold labels 0..9, found {int(labels.max())}; download it again")
    return images, labels


def _download(root: Path) -> None:
    from torchvision.datasets import MNIST  # here: its import takes a second and needs no one else

    try:
        MNIST(str(root), download=True)
    except (OSError, RuntimeError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"download=true must reach MNIST's mirrors, found: {reason}; copy the files to {root / FOLDERS[0]} instead"
        ) from None
