"""Gray digits coloured in the manner of CGMNIST: the colour gives the class away in training and nothing in testing.

One colour is drawn an image and multiplies it: ``pixel = round(gray * c)``. Under the rule ``label`` the colour is
drawn around the mean of the image's class, under ``random`` around one of the ten means, chosen uniformly (the own
class included). Training images follow ``label``, test images ``random``. A validation split under ``label`` would rate
a network by the shortcut that fails in testing, so ``random`` is its default.

Recipes (option ``recipe``):

- ``published``: the ten mean colours and the law of the supplement of Kim et al., Learning Not to Learn (CVPR 2019):
  every channel is drawn from ``N(mean, variance)`` again and again until it lies strictly inside (0, 1). The supplement
  itself could not be read; three unrelated groups of public repositories give the same ten colours from it, two of
  them the same law, one the test rule.
- ``first``: ten colours of our own, ``clip(mean + N(0, variance), 0, 1)``: version 1 of the coloured datasets. The
  colour alone tells the class of more training images (79 % against 73 %), and a colour network reaches some nine
  points more in testing.

Fan et al., PMR (CVPR 2023), paired the coloured digits with the gray ones. Their file of images is not redistributed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import Affine, Modality, Split
from balancebench_udi.seeding import generator

PUBLISHED, FIRST = "published", "first"
MEAN_COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    PUBLISHED: (
        (220, 20, 60),
        (0, 128, 128),
        (253, 233, 16),
        (0, 149, 182),
        (237, 145, 33),
        (145, 30, 188),
        (70, 240, 240),
        (250, 197, 187),
        (210, 245, 60),
        (128, 0, 0),
    ),
    FIRST: (
        (212, 45, 45),
        (45, 212, 45),
        (45, 45, 212),
        (212, 212, 45),
        (212, 45, 212),
        (45, 212, 212),
        (212, 212, 212),
        (128, 128, 45),
        (128, 45, 128),
        (45, 128, 128),
    ),
}
"""Recipe -> RGB in 0..255 of classes 0..9."""

COLOUR_TRANSFORM = Affine.normalise((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""PMR's normalisation of the coloured images (official code; the constants are those of CIFAR-10)."""

_CHUNK = 4096  # images coloured at once: 40 MB of float32 at 28 x 28


@dataclass(frozen=True)
class ColourOptions(Options):
    """How a gray dataset is coloured."""

    variance: float = option(
        0.03,
        "variance of a channel, for RGB in [0, 1]; the official data come in .02 to .05",
        source="official data, PMR",
        at_least=0,
    )
    colour_seed: int = option(0, "seed of the colours", source="ours", at_least=0)
    val_colour: str = option(
        "random",
        "colours of the validation split: random, as in testing, or label, as in training, which rewards the shortcut",
        source="ours",
        choices=("random", "label"),
    )
    recipe: str = option(
        PUBLISHED,
        "mean colours and law of the jitter: published, or first, those of version 1 of the dataset",
        source="supplement of Learning Not to Learn, as public repositories quote it",
        choices=(PUBLISHED, FIRST),
    )

    def as_dict(self) -> dict[str, Any]:
        """As of every set of options; runs made before there was a recipe keep their keys."""
        values = super().as_dict()
        if self.recipe == FIRST:
            del values["recipe"]
        return values


def draw_colours(target: Tensor, rule: str, options: ColourOptions, stream: str) -> Tensor:
    """One colour an image, by ``options.recipe``.

    Args:
        target: ``[N]`` int64 in 0..9.
        rule: ``label`` (around the mean of the target) or ``random`` (around any of the ten).
        options: recipe, variance and seed.
        stream: which numbers to draw.

    Returns:
        ``[N, 3]`` float32 in [0, 1].
    """
    draw = generator(options.colour_seed, "colour", stream)
    means, deviation = torch.tensor(MEAN_COLOURS[options.recipe]) / 255, options.variance**0.5
    if options.recipe == FIRST:
        jitter = torch.randn(len(target), 3, generator=draw) * deviation
        k = target if rule == "label" else torch.randint(len(means), target.shape, generator=draw)
        return (means[k] + jitter).clamp_(0, 1)
    k = target if rule == "label" else torch.randint(len(means), target.shape, generator=draw)
    return truncated_normal(means[k], deviation, draw)


def truncated_normal(mean: Tensor, deviation: float, draw: torch.Generator) -> Tensor:
    """``N(mean, deviation^2)`` of every element, drawn again until it lies strictly inside (0, 1).

    A deviation of 0 gives the means themselves, also those at 0 and 1.
    """
    if deviation == 0:
        return mean.clone()
    values = mean + deviation * torch.randn(mean.shape, generator=draw)
    while (out := (values <= 0) | (values >= 1)).any():
        values[out] = mean[out] + deviation * torch.randn(int(out.sum()), generator=draw)
    return values


def coloured_split(gray: Tensor, target: Tensor, rows: Tensor, rule: str, options: ColourOptions, stream: str) -> Split:
    """The images ``rows`` in gray and in colour.

    Colours are drawn for all of ``target``, so that an image has the same one whichever rows are asked for.

    Args:
        gray: ``[N, 1, H, W]`` uint8.
        target: ``[N]`` int64 in 0..9.
        rows: ``[n]`` indices.
        rule: see :func:`draw_colours`, as for ``options`` and ``stream``.

    Returns:
        ``gray`` ``[n, 1, H, W]`` and ``colour`` ``[n, 3, H, W]``, both uint8; black stays black.
    """
    colours = draw_colours(target, rule, options, stream)[rows, :, None, None]
    gray = gray[rows]
    colour = torch.empty(len(gray), 3, *gray.shape[2:], dtype=torch.uint8)
    for start in range(0, len(gray), _CHUNK):
        part = slice(start, start + _CHUNK)
        colour[part] = (gray[part] * colours[part]).round_()
    return Split({"gray": gray, "colour": colour}, target[rows])


def pair(gray_transform: Affine, size: int) -> dict[str, Modality]:
    """The two modalities of gray and coloured images of ``size`` x ``size`` pixels, gray first as in PMR."""
    return {
        "gray": Modality("digit", (1, size, size), "digit", gray_transform),
        "colour": Modality("digit", (3, size, size), "digit", COLOUR_TRANSFORM),
    }


def colour_facts(options: ColourOptions) -> dict[str, Any]:
    """What a record should say about the colours."""
    return {
        "generated": True,
        "generated_part": "the colours; the gray digits are real",
        "colour_rule": {"train": "label", "val": options.val_colour, "test": "random"},
        "colour_variance": options.variance,
        "mean_colours": [list(c) for c in MEAN_COLOURS[options.recipe]],
    }
