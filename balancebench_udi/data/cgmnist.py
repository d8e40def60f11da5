"""Coloured-and-gray MNIST: the shortcut benchmark of PMR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from balancebench_udi.config import option
from balancebench_udi.data.base import Affine, Bundle, Dataset, fingerprint, require_root, stratified_holdout
from balancebench_udi.data.colour import FIRST, MEAN_COLOURS, ColourOptions, colour_facts, coloured_split, pair
from balancebench_udi.data.mnist import NEEDS, read_mnist
from balancebench_udi.errors import UserError
from balancebench_udi.seeding import generator


@dataclass(frozen=True)
class CGMNISTOptions(ColourOptions):
    """Options of :class:`CGMNIST`."""

    val_share: float = option(
        0.1, "share of every class of the training images held out for validation", source="ours", above=0, at_most=0.5
    )
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)
    train_size: int = option(
        0, "training images used, validation included (stratified; 0: all)", source="ours", at_least=0
    )
    test_size: int = option(0, "test images used (stratified; 0: all)", source="ours", at_least=0)
    download: bool = option(False, "fetch MNIST into the data root where it is absent", source="ours", keyed=False)


class CGMNIST(Dataset):
    """MNIST as a gray and a coloured image of the same digit, paired by index; see :mod:`balancebench_udi.data.colour`.

    Gray ``[1, 28, 28]`` comes first, then colour ``[3, 28, 28]``; both are stored as uint8 and normalised as in PMR's
    official code. The official 60000 / 10000 split, of which the published protocol uses no part for validation; here
    ``val_share`` of the training images are held out. The colours are generated, so published numbers are comparable
    in kind but were measured on another file of images; a colour network alone reaches what PMR has for it
    (:mod:`balancebench_udi.data.colour`). The smaller sets of ``train_size`` and ``test_size`` are
    stratified and nested, and every image keeps the colour it has in the full set.
    """

    name = "cgmnist"
    version = 2
    reference = "Fan et al., PMR (CVPR 2023), https://arxiv.org/abs/2211.07089; LeCun et al., MNIST (1998)"
    needs = f"{NEEDS} (or --set cgmnist.download=true)"
    Options = CGMNISTOptions

    def __init__(self, options: CGMNISTOptions | None = None) -> None:
        super().__init__(options)
        if self.options.recipe == FIRST:
            self.version = 1  # type: ignore[misc]

    def load(self, root: Path | None) -> Bundle:
        """Read MNIST and colour it; a few seconds for all of it.

        Raises:
            UserError: files absent, damaged or not fetched, or a subset larger than the data.
        """
        options: CGMNISTOptions = self.options
        if options.download and root is not None:
            root.mkdir(parents=True, exist_ok=True)
        mnist = read_mnist(require_root(self, root), options.download)
        (gray, target), (test_gray, test_target) = ((mnist[s][0][:, None], mnist[s][1]) for s in ("train", "test"))

        used = stratified_subset("train_size", target, options.train_size)
        train, val = (used[part] for part in stratified_holdout(target[used], options.val_share, options.val_seed))
        test = stratified_subset("test_size", test_target, options.test_size)

        parameters = options.as_dict() | {
            "dataset": self.name,
            "version": self.version,
            "colours": MEAN_COLOURS[options.recipe],
        }
        return Bundle(
            modalities=pair(Affine.normalise((0.1307,), (0.3081,)), 28),
            classes=tuple("0123456789"),
            train=coloured_split(gray, target, train, "label", options, "train"),
            val=coloured_split(gray, target, val, options.val_colour, options, "val"),
            test=coloured_split(test_gray, test_target, test, "random", options, "test"),
            fingerprint=fingerprint(parameters, gray, target, test_gray, test_target),
            facts=colour_facts(options) | {"counts": {"train": len(train), "val": len(val), "test": len(test)}},
        )


def stratified_subset(name: str, target: Tensor, size: int) -> Tensor:
    """Sorted indices of ``size`` samples with the class shares of all of them; 0 takes all. Smaller lie in larger ones.

    Raises:
        UserError: ``size``, the option ``name``, exceeds the number of samples.
    """
    if size > len(target):
        raise UserError(f"{name} must be <= {len(target)}, the number of images, found {size}")
    if size == 0:
        return torch.arange(len(target))
    stream = generator(0, "subset")
    place = torch.empty(len(target), dtype=torch.float64)  # of each sample, in its class, from 0 to 1
    for c in torch.unique(target):
        rows = torch.nonzero(target == c).flatten()
        place[rows[torch.randperm(len(rows), generator=stream)]] = (torch.arange(len(rows)).double() + 0.5) / len(rows)
    return torch.argsort(place, stable=True)[:size].sort().values
