"""Stored pictures to frames: choice of frames, random crop and mirror for the whole batch on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from balancebench_udi.data.base import Affine

CROP = 224
"""Side of the frames that the encoder sees, pixels."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of the channels, of values in [0, 1]."""
PICKS = ("random", "segment", "start", "first", "centre", "bml")
PICKED = (
    "frames of a clip's c candidates: random (in testing, centres of equal segments); segment: one of each of n_frames "
    "parts of c // n_frames (in testing, the first or middle one). Alike in training and testing are start: the first "
    "one of each part; first: the first ones of all; centre: centres of equal segments; bml: those that BML reads"
)
"""What an option called ``pick`` says of them."""
LEAST_AREA = 0.08
"""Least share of a picture that a random crop shows, as in torchvision."""
_TRIES = 10
BOX_DRAWS = 2 * _TRIES + 3
"""Random numbers a crop takes."""


@dataclass(frozen=True)
class FrameTransform:
    """From stored candidates ``[B, K, S, S, C]`` uint8 to ``[B, C, T, 224, 224]`` float32.

    A sample's own candidates come first and hold no 0 (black is 1); the first of the slots left over is 0 throughout.

    Choice of T of a sample's c candidates, numbered from 0, with s = c // T; the names are those of :data:`PICKS`:

    - ``random``: training draws T without replacement, in order of time (Huang et al., InfoReg, official code);
      evaluation takes the centres of T equal segments, as training does with c < T;
    - ``segment``: training draws one of ``i s .. i s + s - 1`` for frame i, evaluation takes ``i s + max(s // 2, 1) -
      1`` (official codes of MMPareto, InfoReg and BalanceBenchmark): the parts' first ones up to s = 3;
    - ``start``: ``i s`` (MLA; OGM-GE on Kinetics-Sounds);
    - ``first``: ``i``, with c < T the last one again (PMR, IGM);
    - ``centre``: the centres of T equal segments;
    - ``bml``: BML's reader puts the last frame before the first one, of which its loader takes positions
      ``i (c - 1) // (T - 1)``: of ten frames 9, 3 and 8, in this order.

    The last four are the same in training and in evaluation.

    In training each frame (with ``same_crop``, all of a sample alike) is cropped at random to ``least_area`` to 1 of
    the area with an aspect of 3/4 to 4/3 *in the original picture*, resized to ``size`` x ``size`` bilinearly and
    mirrored half the time: the law of torchvision's RandomResizedCrop and RandomHorizontalFlip. In evaluation the whole
    picture is resized (the aspect is not kept, as in most official codes) or, with ``central``, the central square.

    Attributes:
        n_frames: T.
        candidates: K.
        pick: one of :data:`PICKS`.
        same_crop: the same crop and mirror for the frames of one sample.
        aspect: width by height of the original pictures, which are stored as squares.
        mean, std: of each channel, of values in [0, 1].
        flow: the pictures are optical flow (u, v), 127.5 standing still; mirroring negates u.
        size: side of the frames, at most :data:`CROP`.
        least_area: of a crop, as a share of the picture.
        central: evaluation shows the central square (Resize of the shorter side and CenterCrop).
        augment: false presents training samples as in evaluation.
        few: with ``segment``, the first one throughout where there are at most so many candidates.
    """

    n_frames: int
    candidates: int
    pick: str = "random"
    same_crop: bool = False
    aspect: float = 4 / 3
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    flow: bool = False
    size: int = CROP
    least_area: float = LEAST_AREA
    central: bool = False
    augment: bool = True
    few: int = 0

    @property
    def draws(self) -> int:
        """K (at least T) for the choice of frames, and those of each crop; 0 without augmentation."""
        if not self.augment:
            return 0
        return self._picking + BOX_DRAWS * (1 if self.same_crop else self.n_frames)

    @property
    def _picking(self) -> int:
        return max(self.candidates, self.n_frames)

    def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
        return self.present(self.choose(stored, torch.arange(len(stored), device=stored.device), draws), draws)

    def choose(self, values: Tensor, rows: Tensor, draws: Tensor | None) -> Tensor:
        """The chosen frames ``[B, T, S, S, C]`` of the samples ``rows`` of ``values [N, K, S, S, C]``."""
        count = (values[:, :, 0, 0, 0].index_select(0, rows) > 0).sum(1)
        index = self._choose(count, None if draws is None else draws[:, : self._picking])
        frames = rows[:, None] * values.shape[1] + index
        return values.flatten(0, 1).index_select(0, frames.flatten()).unflatten(0, (len(rows), self.n_frames))

    def present(self, chosen: Tensor, draws: Tensor | None) -> Tensor:
        """From chosen frames to ``[B, C, T, size, size]``."""
        images = chosen.flatten(0, 1).permute(0, 3, 1, 2).float()  # [B T, C, S, S]
        if draws is not None:
            images = self._crop(images, draws[:, self._picking :])
        elif self.central:
            images = _central(images, self.aspect)
        if images.shape[-2:] != (self.size, self.size):
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        images = Affine.normalise(self.mean, self.std)(images)
        return images.unflatten(0, (len(chosen), self.n_frames)).transpose(1, 2)

    def _choose(self, count: Tensor, draws: Tensor | None) -> Tensor:
        """Index of the chosen candidates ``[B, T]``."""
        part = torch.arange(self.n_frames, device=count.device)
        many = count.clamp_min(1)[:, None]  # of an empty sample the first slot
        length = many // self.n_frames
        if self.pick == "start":
            return part * length
        if self.pick == "first":
            return torch.minimum(part, many - 1)
        if self.pick == "bml":
            return (part * (many - 1) // max(1, self.n_frames - 1) - 1) % many
        if self.pick == "segment":
            inside = (length // 2 - 1).clamp_min(0)
            if draws is not None:
                inside = (draws[:, : self.n_frames] * length).long()
            return torch.where(many > self.few, part * length + inside, 0)
        centres = segment_centres(count, self.n_frames)
        if draws is None or self.pick == "centre":
            return centres
        slot = torch.arange(self.candidates, device=count.device)
        order = draws[:, : self.candidates].masked_fill(slot >= count[:, None], -1.0)
        if self.n_frames > self.candidates:
            return centres
        drawn = order.topk(self.n_frames, dim=1).indices.sort(dim=1).values
        return torch.where(count[:, None] >= self.n_frames, drawn, centres)

    def _crop(self, images: Tensor, draws: Tensor) -> Tensor:
        repeats = self.n_frames if self.same_crop else 1
        boxes, flip = random_boxes(draws.reshape(-1, BOX_DRAWS), self.aspect, self.least_area)
        boxes, flip = (x.repeat_interleave(repeats, 0) for x in (boxes, flip))
        pixel = (2 * torch.arange(CROP, device=images.device) + 1) / CROP - 1  # centres, in [-1, 1]
        x, y = (2 * boxes[:, :2] - 1 + pixel[:, None, None] * boxes[:, 2:]).unbind(2)  # [CROP, B T] each
        x = torch.where(flip, x.flip(0), x)
        shape = (len(images), CROP, CROP)
        grid = torch.stack([x.T[:, None].expand(shape), y.T[:, :, None].expand(shape)], 3)
        cropped = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.flow:
            cropped[:, 0] = torch.where(flip[:, None, None], 255 - cropped[:, 0], cropped[:, 0])
        return cropped


def random_boxes(draws: Tensor, aspect: float, least: float = LEAST_AREA) -> tuple[Tensor, Tensor]:
    """Crops by the law of torchvision's RandomResizedCrop (ratio 3/4-4/3, ten tries, else a central one).

    Args:
        draws: ``[n, BOX_DRAWS]`` uniform in [0, 1).
        aspect: width by height of the picture.
        least: least share of the picture's area.

    Returns:
        ``[n, 4]`` centre x, centre y, width, height as fractions of the picture, and ``[n]`` bool, mirrored or not.
    """
    area = least + (1 - least) * draws[:, :_TRIES]
    low, high = np.log(3 / 4), np.log(4 / 3)
    ratio = torch.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    width, height = torch.sqrt(area * ratio / aspect), torch.sqrt(area / ratio * aspect)
    fits = (width <= 1) & (height <= 1)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    any_fits = fits.any(1, keepdim=True)
    whole = min(max(aspect, 3 / 4), 4 / 3)  # else the largest central crop of an allowed ratio
    width = torch.where(any_fits, width.gather(1, first), min(1.0, whole / aspect))
    height = torch.where(any_fits, height.gather(1, first), min(1.0, aspect / whole))
    size = torch.cat([width, height], 1)
    position = torch.where(any_fits, draws[:, -3:-1], 0.5)
    return torch.cat([size / 2 + position * (1 - size), size], 1), draws[:, -1] < 0.5


def _central(images: Tensor, aspect: float) -> Tensor:
    """What of pictures ``[n, C, S, S]``, stored as squares, is the largest central square of the originals."""
    side = images.shape[-1]
    height, width = round(side * min(1.0, aspect)), round(side * min(1.0, 1 / aspect))
    top, left = (side - height) // 2, (side - width) // 2
    return images[:, :, top : top + height, left : left + width]


def segment_centres(count: Tensor, parts: int) -> Tensor:
    """Index of the middle element of each of ``parts`` equal segments of ``count`` elements: ``[B] -> [B, parts]``."""
    part = torch.arange(parts, device=count.device)
    return (2 * part + 1) * count[:, None] // (2 * parts)


@dataclass(frozen=True)
class TimeCrop:
    """From stored spectrograms ``[B, 1, F, L]`` to ``[B, 1, F, length]`` float32.

    In training a random part of the time, in evaluation the middle.
    """

    length: int

    @property
    def draws(self) -> int:
        """One for the offset."""
        return 1

    def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
        room = stored.shape[3] - self.length + 1
        offset = torch.full((len(stored), 1), (room - 1) // 2, device=stored.device)
        if draws is not None:
            offset = (draws * room).long()
        index = offset + torch.arange(self.length, device=stored.device)
        index = index[:, None, None].expand(-1, *stored.shape[1:3], -1)
        return stored.gather(3, index).to(torch.float32)
