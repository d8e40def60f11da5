"""The embedded dataset: scikit-learn's handwritten digits as gray and coloured images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from balancebench_udi.config import option
from balancebench_udi.data.base import Affine, Bundle, Dataset, fingerprint, stratified_holdout
from balancebench_udi.data.colour import FIRST, MEAN_COLOURS, ColourOptions, colour_facts, coloured_split, pair
from balancebench_udi.errors import UserError


@dataclass(frozen=True)
class DigitsOptions(ColourOptions):
    """Options of :class:`Digits`."""

    recipe: str = option(
        FIRST,
        "mean colours and law of the jitter: see cgmnist; first, as all recorded runs on digits have",
        source="ours",
        choices=tuple(MEAN_COLOURS),
    )
    test_share: float = option(0.25, "share of every class held out for testing", source="ours", above=0)
    test_seed: int = option(0, "seed of the test split", source="ours", at_least=0)
    val_share: float = option(0.15, "share of every class held out for validation", source="ours", above=0)
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_share + self.test_share >= 1:
            raise UserError(f"val_share plus test_share must be < 1, found {self.val_share} + {self.test_share}")


class Digits(Dataset):
    """1797 real digits of 8 x 8 pixels, gray and coloured, needing no download.

    Gray ``[1, 8, 8]`` comes first, then colour ``[3, 8, 8]``, coloured by the recipe ``first``
    (:mod:`balancebench_udi.data.colour`) and stored as uint8: scikit-learn's 0..16 scaled to 0..255 and rounded. Gray
    is normalised by the mean and standard deviation of its pixels. Stratified 60 / 15 / 25 % split.
    """

    name = "digits"
    reference = "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), as in scikit-learn"
    Options = DigitsOptions

    def load(self, root: Path | None) -> Bundle:
        """Read the digits from the installed scikit-learn and colour them; ``root`` is not used.

        Raises:
            UserError: a split would be empty.
        """
        from sklearn.datasets import load_digits  # here: its import takes a second and other datasets do without

        options: DigitsOptions = self.options
        images, labels = load_digits(return_X_y=True)
        target = torch.from_numpy(labels).long()
        gray = torch.from_numpy(images * (255 / 16)).round_().to(torch.uint8).view(-1, 1, 8, 8)

        rest, test = stratified_holdout(target, options.test_share, options.test_seed)
        share = options.val_share / (1 - options.test_share)
        train, val = (rest[part] for part in stratified_holdout(target[rest], share, options.val_seed))

        parameters = options.as_dict() | {
            "dataset": self.name,
            "version": self.version,
            "colours": MEAN_COLOURS[options.recipe],
        }
        return Bundle(
            modalities=pair(Affine.normalise((0.3053,), (0.3759,)), 8),
            classes=tuple("0123456789"),
            train=coloured_split(gray, target, train, "label", options, "train"),
            val=coloured_split(gray, target, val, options.val_colour, options, "val"),
            test=coloured_split(gray, target, test, "random", options, "test"),
            fingerprint=fingerprint(parameters, gray, target),
            facts=colour_facts(options) | {"counts": {"train": len(train), "val": len(val), "test": len(test)}},
        )
