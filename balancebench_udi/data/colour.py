"""Gray digits coloured in the manner of CGMNIST: the colour gives the class away in training and nothing in testing.

One colour is drawn an image and multiplies it: ``pixel = gray * clip(mean[k] + N(0, variance I), 0, 1)``. Under the
rule ``label``, ``k`` is the class of the image; under ``random`` it is uniform over the ten colours. Training images
follow ``label``, test images ``random``. A validation split under ``label`` would rate a network by the shortcut that
fails in testing, so ``random`` is its default.

Reference: Kim et al., Learning Not to Learn (CVPR 2019), whose coloured digits Fan et al., PMR (CVPR 2023) paired with
the gray ones. Their file of images is not redistributed; the mean colours here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import Affine, Modality, Split
from balancebench_udi.seeding import generator

MEAN_COLOURS: tuple[tuple[int, int, int], ...] = (
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
)
"""RGB in 0..255 of classes 0..9. Ours: at least 0.46 apart in [0, 1], 2.7 standard deviations of the default jitter, so
that the colour alone names the class of 79 % of the training images and a network needs the shape for the rest."""

COLOUR_TRANSFORM = Affine.normalise((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""PMR's normalisation of the coloured images (official code; the constants are those of CIFAR-10)."""

_CHUNK = 4096  # images coloured at once: 40 MB of float32 at 28 x 28


@dataclass(frozen=True)
class ColourOptions(Options):
    """How a gray dataset is coloured."""

    variance: float = option(
        0.03, "variance of the colour jitter, for RGB in [0, 1]", source="official data, PMR", at_least=0
    )
    colour_seed: int = option(0, "seed of the colours", source="ours", at_least=0)
    val_colour: str = option(
        "random",
        "colours of the validation split: random, as in testing, or label, as in training, which rewards the shortcut",
        source="ours",
        choices=("random", "label"),
    )


def draw_colours(target: Tensor, rule: str, options: ColourOptions, stream: str) -> Tensor:
    """One colour an image, ``clip(mean[k] + N(0, variance I), 0, 1)``.

    Args:
        target: ``[N]`` int64 in 0..9.
        rule: ``label`` (``k`` is the target) or ``random`` (``k`` is uniform).
        options: variance and seed.
        stream: which numbers to draw; the jitter is the same under both rules.

    Returns:
        ``[N, 3]`` float32 in [0, 1].
    """
    draw = generator(options.colour_seed, "colour", stream)
    jitter = torch.randn(len(target), 3, generator=draw) * options.variance**0.5
    means = torch.tensor(MEAN_COLOURS) / 255
    k = target if rule == "label" else torch.randint(len(means), target.shape, generator=draw)
    return (means[k] + jitter).clamp_(0, 1)


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
        "mean_colours": [list(c) for c in MEAN_COLOURS],
    }
