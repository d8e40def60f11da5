"""Frames: which are chosen, and that crops follow torchvision's law, in their boxes and in the pictures they give."""

import gc
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from balancebench_udi.data.base import Bundle, Modality, Split
from balancebench_udi.data.frames import (
    BOX_DRAWS,
    CROP,
    IMAGENET,
    PICKS,
    FrameTransform,
    TimeCrop,
    random_boxes,
    segment_centres,
)
from balancebench_udi.data.loader import Loader, View
from balancebench_udi.data.media import as_candidates
from balancebench_udi.seeding import generator
from tests.helpers import Waits

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in IMAGENET)


def draws(transform, rows, seed=0):
    return torch.rand(rows, transform.draws, generator=generator(seed, "draws"))


def numbered(counts, size=CROP, slots=8):
    """Stored frames whose every pixel is 10 (k + 1) in slot k."""
    stored = torch.zeros(len(counts), slots, size, size, 3, dtype=torch.uint8)
    for row, count in enumerate(counts):
        for k in range(count):
            stored[row, k] = 10 * (k + 1)
    return stored


def slots(frames):
    """Which slots the frames of a transformed batch ``[B, 3, T, H, W]`` came from."""
    pixel = frames[:, 0, :, 100, 100] * IMAGENET[1][0] + IMAGENET[0][0]
    return (pixel * 255 / 10 - 1).round().long().tolist()


def ramps(rows, frames=3, size=256):
    """Red is x, green is y, blue is 128."""
    ramp = torch.linspace(1, 255, size).round().to(torch.uint8)
    stored = torch.full((rows, frames, size, size, 3), 128, dtype=torch.uint8)
    stored[..., 0], stored[..., 1] = ramp, ramp[:, None]
    return stored


def smooth(width, height, seed=0):
    """A picture without fine detail."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def in_pixels(frames):
    """Transformed frames ``[3, H, W]`` in 0..255."""
    return (frames * STD + MEAN) * 255


# the choice of frames


def test_segment_centres():
    counts = torch.tensor([8, 7, 3, 2, 1])
    assert segment_centres(counts, 3).tolist() == [[1, 4, 6], [1, 3, 5], [0, 1, 2], [0, 1, 1], [0, 0, 0]]
    assert segment_centres(counts, 1).tolist() == [[4], [3], [1], [1], [0]]


def official(pick, count, frames=3, few=0):
    """Frames of a clip that the authors' codes show in testing, from 0; their files are numbered from 1."""
    seg = int(count / frames)
    if pick == "segment":  # i * seg + max(int(seg / 2), 1)
        return [0 if count <= few or seg == 0 else i * seg + max(int(seg / 2), 1) - 1 for i in range(frames)]
    if pick == "start":  # seg * i + 1
        return [seg * i for i in range(frames)]
    if pick == "first":  # the listing in order
        return [min(i, count - 1) for i in range(frames)]
    if pick == "bml":  # the reader begins with the last frame
        video = [range(count)[i - 1] for i in range(count)]
        return [video[0], video[int((count - 1) / 2)], video[count - 1]]
    return segment_centres(torch.tensor([count]), frames)[0].tolist()


@pytest.mark.parametrize("pick", PICKS)
def test_evaluation(pick):
    counts = [11, 10, 9, 8, 7, 6, 4, 3, 2, 1]
    found = slots(FrameTransform(3, 11, pick)(numbered(counts, slots=11)))
    assert found == [official(pick, count) for count in counts]


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        ("random", [[1, 5, 8], [1, 4, 6]]),
        ("segment", [[0, 3, 6], [0, 2, 4]]),  # seconds 0, 3 and 6 of ten
        ("start", [[0, 3, 6], [0, 2, 4]]),
        ("first", [[0, 1, 2], [0, 1, 2]]),
        ("centre", [[1, 5, 8], [1, 4, 6]]),
        ("bml", [[9, 3, 8], [7, 2, 6]]),
    ],
)
def test_evaluation_of_ten_and_of_eight(pick, expected):
    assert slots(FrameTransform(3, 10, pick)(numbered([10, 8], slots=10))) == expected


def test_few_candidates_show_the_first():
    """As Kinetics-Sounds in InfoReg and BalanceBenchmark: six frames and less; in training, too."""
    counts = [11, 7, 6, 5, 1]
    transform = FrameTransform(3, 11, "segment", few=6)
    stored = numbered(counts, slots=11)
    assert slots(transform(stored)) == [official("segment", count, few=6) for count in counts]
    drawn = slots(transform(stored, draws(transform, 5)))
    assert drawn[2:] == [[0, 0, 0]] * 3
    assert drawn[0] != [0, 0, 0] != drawn[1]


def test_random_draws_without_replacement_in_order():
    transform, counts = FrameTransform(3, 8), [8, 5, 3, 2] * 60
    drawn = slots(transform(numbered(counts), draws(transform, 240)))
    for count, chosen in zip(counts, drawn, strict=True):
        assert chosen == sorted(chosen)
        assert max(chosen) < count
        assert len(set(chosen)) == min(3, count)
    assert len({tuple(chosen) for chosen in drawn[1::4]}) == 10  # all of 5 over 3
    assert {tuple(chosen) for chosen in drawn[2::4]} == {(0, 1, 2)}
    assert {tuple(chosen) for chosen in drawn[3::4]} == {(0, 1, 1)}


def test_random_draws_every_set_alike():
    transform = FrameTransform(2, 5)
    chosen = transform._choose(torch.full((6000,), 5), draws(transform, 6000)[:, :5])
    seen = torch.bincount(5 * chosen[:, 0] + chosen[:, 1])
    assert (seen > 0).sum() == 10
    assert seen[seen > 0].float().sub(600).abs().max() < 100  # 4.3 standard deviations


@pytest.mark.parametrize(("count", "frames"), [(11, 3), (8, 3), (6, 3), (3, 3), (8, 2), (7, 2)])
def test_segment_draws_one_of_each_segment(count, frames):
    """Frame i is one of i seg + 1 to i seg + seg, seg = int(count / frames), all alike, counted from 1."""
    transform, seg = FrameTransform(frames, 11, "segment"), int(count / frames)
    chosen = transform._choose(torch.full((3000,), count), draws(transform, 3000)[:, :11])
    for i, column in enumerate(chosen.T):
        seen = torch.bincount(column, minlength=count)
        assert set(torch.nonzero(seen).flatten().tolist()) == set(range(i * seg, i * seg + seg))
        assert seen[i * seg : i * seg + seg].sub(3000 / seg).abs().max() < 150  # 5 standard deviations and more


@pytest.mark.parametrize("pick", ["start", "first", "centre", "bml"])
def test_choices_that_draw_nothing(pick):
    transform, counts = FrameTransform(3, 10, pick), [10, 8, 2]
    stored = numbered(counts, slots=10)
    assert slots(transform(stored, draws(transform, 3))) == [official(pick, count) for count in counts]


@pytest.mark.parametrize("pick", PICKS)
def test_more_frames_than_candidates(pick):
    transform = FrameTransform(5, 3, pick)
    expected = {"segment": [0] * 5, "start": [0] * 5, "first": [0, 1, 2, 2, 2], "bml": [2, 2, 0, 0, 1]}
    found = slots(transform(numbered([3, 3], slots=3), draws(transform, 2)))
    assert found == [expected.get(pick, [0, 0, 1, 2, 2])] * 2
    assert slots(transform(numbered([1, 1], slots=3), draws(transform, 2))) == [[0] * 5] * 2


@pytest.mark.parametrize("pick", PICKS)
def test_without_augmentation_training_is_as_testing(pick):
    transform = FrameTransform(2, 3, pick, augment=False)
    batches = loader(pick=pick, augment=False)
    assert transform.draws == 0
    (batch,) = list(batches.train(0, ["video"]))[:1]
    assert torch.equal(batch.inputs["video"], transform(batches.bundle.train.stored("video", batch.index)))
    (other,) = list(loader(pick=pick).train(0, ["video"]))[:1]
    assert not torch.equal(batch.inputs["video"], other.inputs["video"])


def test_numbers_that_a_sample_takes():
    assert FrameTransform(3, 8).draws == 8 + 3 * BOX_DRAWS
    assert FrameTransform(3, 8, same_crop=True).draws == 8 + BOX_DRAWS
    assert FrameTransform(5, 3).draws == 5 + 5 * BOX_DRAWS
    assert TimeCrop(5).draws == 1


# boxes


@pytest.mark.parametrize(("aspect", "least"), [*((a, 0.08) for a in (4 / 3, 1.0, 2.0, 0.5, 6.0)), (16 / 9, 0.25)])
def test_boxes_follow_torchvision(aspect, least):
    """Kolmogorov-Smirnov on everything a box has, where torchvision's own has hardly any rounding."""
    height, n = 3000, 4000
    width = round(height * aspect)
    boxes, flip = random_boxes(torch.rand(n, BOX_DRAWS, generator=generator(0, "boxes")), width / height, least)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        law = v2.RandomResizedCrop(CROP, (least, 1.0))
        drawn = [list(law.make_params([torch.empty(1, height, width)]).values()) for _ in range(n)]
    y, x, h, w = torch.tensor(drawn, dtype=torch.float64).T
    expected = {"w": w / width, "h": h / height, "x": x / width, "y": y / height}
    size, corner = boxes[:, 2:].double(), boxes[:, :2].double() - boxes[:, 2:].double() / 2
    found = {"w": size[:, 0], "h": size[:, 1], "x": corner[:, 0], "y": corner[:, 1]}
    for other in (found, expected):
        other["area"] = other["w"] * other["h"]
        other["ratio"] = other["w"] / other["h"] * aspect
        other["corners"] = other["x"] - other["y"]
    for name, values in found.items():
        assert ks_2samp(values.numpy().round(3), expected[name].numpy().round(3)).pvalue > 0.002, name
    correlations = [np.corrcoef(o["w"][o["area"] < 0.4], o["h"][o["area"] < 0.4])[0, 1] for o in (found, expected)]
    assert correlations[0] == pytest.approx(correlations[1], abs=0.06)
    assert corner.min() >= -1e-6
    assert (corner + size).max() <= 1 + 1e-6
    assert float(flip.float().mean()) == pytest.approx(0.5, abs=0.03)
    for name in ("w", "h", "x", "y"):
        assert abs(np.corrcoef(flip, found[name])[0, 1]) < 0.06


def test_a_picture_that_no_box_fits():
    """Ten tries in vain: the largest central box of an allowed ratio, as torchvision's."""
    numbers = torch.rand(50, BOX_DRAWS, generator=generator(0))
    for width, height in ((4000, 200), (200, 4000)):
        boxes, _ = random_boxes(numbers, width / height)
        y, x, h, w = v2.RandomResizedCrop(CROP).make_params([torch.empty(1, height, width)]).values()
        expected = torch.tensor([x + w / 2, y + h / 2, w, h]) / torch.tensor([width, height, width, height])
        assert torch.allclose(boxes, expected.expand(50, 4), atol=0.003)


def numbers_of(box, size=256):
    """Draws of a frame of aspect 1 that give the box (left, top, width, height) in pixels, not mirrored."""
    left, top, width, height = (v / size for v in box)
    row = torch.rand(BOX_DRAWS, generator=generator(0), dtype=torch.float64)
    row[0] = (width * height - 0.08) / 0.92
    row[10] = math.log(width / height * 4 / 3) / math.log(16 / 9)
    row[20] = left / (1 - width) if width < 1 else 0.3
    row[21] = top / (1 - height) if height < 1 else 0.3
    row[22] = 0.9
    return row.float()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "box", [(10, 30, 120, 100), (0, 0, 256, 200), (36, 16, 220, 240), (100, 156, 90, 100), (0, 0, 256, 256)]
)
def test_a_crop_is_torchvision_s(box, mirrored):
    picture = torch.from_numpy(np.asarray(smooth(256, 256)).copy()).clamp(min=1)
    transform = FrameTransform(1, 1, aspect=1.0)
    row = torch.cat([torch.zeros(1), numbers_of(box)])
    row[-1] = 0.4 if mirrored else 0.5
    found = in_pixels(transform(picture[None, None], row[None])[0, :, 0])
    left, top, width, height = box
    image = picture.permute(2, 0, 1).float()
    expected = tv.resized_crop(image, top, left, height, width, [CROP, CROP], antialias=True)
    expected = tv.horizontal_flip(expected) if mirrored else expected
    inside = (slice(None), slice(3, -3), slice(3, -3))
    assert (found - expected)[inside].abs().max() < (0.05 if max(width, height) <= CROP else 1.0)
    assert (found - expected).abs().max() < 4  # at the edges torchvision sees nothing outside the box
    assert (tv.horizontal_flip(found) - expected).abs().max() > 20


@pytest.mark.parametrize("same_crop", [True, False])
def test_crops_show_the_box_they_drew(same_crop):
    """A crop's corners are its box, mirrored or not; frames of a sample share it or do not."""
    transform = FrameTransform(3, 3, same_crop=same_crop)
    numbers = draws(transform, 24)
    frames = transform(ramps(24), numbers).transpose(1, 2).flatten(0, 1)
    boxes, flip = random_boxes(numbers[:, 3:].reshape(-1, BOX_DRAWS), 4 / 3)
    if same_crop:
        boxes, flip = boxes.repeat_interleave(3, 0), flip.repeat_interleave(3, 0)
    x = (frames[:, 0] * IMAGENET[1][0] + IMAGENET[0][0])[:, 112]
    y = (frames[:, 1] * IMAGENET[1][1] + IMAGENET[0][1])[:, :, 112]
    left = torch.where(flip, x[:, -1], x[:, 0])
    right = torch.where(flip, x[:, 0], x[:, -1])
    for found, edge in ((left, -0.5), (right, 0.5)):
        assert torch.allclose(found, boxes[:, 0] + edge * boxes[:, 2], atol=0.012)
    for found, edge in ((y[:, 0], -0.5), (y[:, -1], 0.5)):
        assert torch.allclose(found, boxes[:, 1] + edge * boxes[:, 3], atol=0.012)
    assert flip.any()
    assert not flip.all()
    alike = (frames.unflatten(0, (24, 3)) - frames.unflatten(0, (24, 3))[:, :1]).abs().amax((2, 3, 4)) < 1e-6
    assert alike.all() if same_crop else not alike[:, 1:].any()
    first = frames.unflatten(0, (24, 3))[:, 0]
    assert len({tuple(f[:2, 0, 0].tolist()) for f in first}) == 24  # no two samples alike


def test_crops_of_a_least_area():
    """Of the whole area there is one crop of a square, itself; of less there are others."""
    stored = ramps(20)
    for least, whole in ((1.0, True), (0.25, False)):
        transform = FrameTransform(3, 3, aspect=1.0, least_area=least)
        frames = transform(stored, draws(transform, 20))
        widths = (frames[:, 0, :, 0, 0] - frames[:, 0, :, 0, -1]).abs() * IMAGENET[1][0]
        assert (widths.min() > 0.98) == whole
        assert widths.min() > 0.4  # the narrowest has a width of sqrt(0.25 * 3 / 4)


@pytest.mark.parametrize("size", [(320, 240), (160, 240)])
def test_the_mean_picture_is_torchvision_s(size):
    """The mean and the spread of many augmented pictures, torchvision's applied one by one to the original."""
    original, n = smooth(*size), 300
    transform = FrameTransform(1, 1, aspect=size[0] / size[1])
    stored = torch.from_numpy(as_candidates([original], 1, 256))[None].expand(50, -1, -1, -1, -1)
    ours = torch.cat([transform(stored, draws(transform, 50, seed))[:, :, 0] for seed in range(n // 50)])
    chain = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(CROP, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*IMAGENET),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = torch.stack([chain(original) for _ in range(n)])
    error = (ours.var(0) + other.var(0)).div(n).sqrt()
    assert ((ours.mean(0) - other.mean(0)) / error).abs().max() < 4.5
    assert (ours.std(0) / other.std(0)).sub(1).abs().mean() < 0.08


# evaluation


@pytest.mark.parametrize("size", [(480, 360), (320, 240), (200, 300)])
def test_evaluation_is_resize_and_normalise(size):
    original = smooth(*size)
    stored = torch.from_numpy(as_candidates([original], 1, 256))[None]
    found = FrameTransform(1, 1)(stored)[0, :, 0]
    image = stored[0, 0].permute(2, 0, 1).float()
    exact = (tv.resize(image, [CROP, CROP], antialias=True) / 255 - MEAN) / STD
    assert torch.allclose(found, exact, atol=1e-4)
    chain = v2.Compose(
        [v2.ToImage(), v2.Resize((CROP, CROP)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)]
    )
    assert (in_pixels(found) - in_pixels(chain(original))).abs().max() < 4
    assert (in_pixels(found) - in_pixels(chain(original))).abs().mean() < 0.6


@pytest.mark.parametrize("size", [(480, 270), (340, 256), (200, 300), (256, 256)])
def test_the_central_square(size):
    """As Resize of the shorter side to 112 and CenterCrop, of the whole picture."""
    original = smooth(*size)
    stored = torch.from_numpy(as_candidates([original], 1, 256))[None]
    found = in_pixels(FrameTransform(1, 1, aspect=size[0] / size[1], central=True, size=112)(stored)[0, :, 0])
    assert found.shape == (3, 112, 112)
    expected = v2.Compose([v2.ToImage(), v2.Resize(112), v2.CenterCrop(112)])(original).float()
    assert (found - expected).abs().mean() < 1.5  # CenterCrop rounds to whole pixels
    squeezed = in_pixels(FrameTransform(1, 1, size=112)(stored)[0, :, 0])
    assert (squeezed - expected).abs().mean() > 3 or size[0] == size[1]


@pytest.mark.parametrize("box", [(10, 30, 200, 180), (0, 0, 256, 256)])
def test_a_smaller_crop_is_torchvision_s(box):
    """Fine detail is averaged, as PIL and torchvision do."""
    noise = np.random.default_rng(0).integers(1, 256, (256, 256, 3), dtype=np.uint8)
    picture = torch.from_numpy(noise)
    row = torch.cat([torch.zeros(1), numbers_of(box)])
    found = in_pixels(FrameTransform(1, 1, aspect=1.0, size=112)(picture[None, None], row[None])[0, :, 0])
    left, top, width, height = box
    expected = tv.resized_crop(picture.permute(2, 0, 1).float(), top, left, height, width, [112, 112], antialias=True)
    inside = (slice(None), slice(3, -3), slice(3, -3))
    assert (found - expected)[inside].std() < 0.5 * expected.std()
    assert float(found.std()) == pytest.approx(float(expected.std()), rel=0.2)


def test_pictures_of_the_right_size_are_not_resized():
    stored = torch.from_numpy(as_candidates([smooth(300, 200)], 1, CROP))[None]
    exact = (stored[0, 0].permute(2, 0, 1) / 255 - MEAN) / STD
    assert torch.allclose(FrameTransform(1, 1)(stored)[0, :, 0], exact, atol=1e-5)


# flow


def test_mirrored_flow_goes_the_other_way():
    transform = FrameTransform(2, 2, flow=True, mean=(0.0, 0.0), std=(1 / 255, 1 / 255), same_crop=True)
    stored = torch.empty(40, 2, 256, 256, 2, dtype=torch.uint8)
    stored[..., 0], stored[..., 1] = 200, 60
    numbers = draws(transform, 40)
    frames = transform(stored, numbers)
    flip = numbers[:, -1] < 0.5
    assert 5 < flip.sum() < 35
    expected = torch.where(flip, 55.0, 200.0)[:, None, None, None].expand_as(frames[:, 0])
    assert torch.allclose(frames[:, 0], expected, atol=1e-3)
    assert torch.allclose(frames[:, 1], torch.full_like(frames[:, 1], 60), atol=1e-3)
    still = transform(stored)
    assert torch.allclose(still[:, 0], torch.full_like(still[:, 0], 200), atol=1e-3)
    colour = FrameTransform(2, 2, mean=(0.0, 0.0), std=(1 / 255, 1 / 255))(stored, draws(FrameTransform(2, 2), 40))
    assert torch.allclose(colour[:, 0], torch.full_like(colour[:, 0], 200), atol=1e-3)


# what an augmentation depends on


def loader(batch_size=4, seed=0, n=12, same=False, pick="random", augment=True):
    transform = FrameTransform(2, 3, pick, same, augment=augment)
    frames = Modality("frames", (3, 2, CROP, CROP), "resnet18", transform)
    sound = Modality("spectrogram", (1, 3, 16), "resnet18", TimeCrop(16))
    pictures = ramps(n, 3, 64)
    times = torch.arange(400, dtype=torch.float16).expand(n, 1, 3, 400)
    split = Split({"video": pictures, "other": pictures, "sound": times}, torch.arange(n) % 2)
    modalities = {"video": frames, "other": frames, "sound": sound}
    return Loader(Bundle(modalities, ("a", "b"), split, split, split, "0" * 12), torch.device("cpu"), batch_size, seed)


class Copies(TorchDispatchMode):
    """The sizes of the uint8 tensors that are made, views aside."""

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.uint8 and not func.is_view:
            self.sizes.add(made.numel())
        return made


def test_frames_that_are_not_chosen_are_not_copied():
    """Two of three are; a pack holds eight."""
    batches = loader()
    transform = batches.bundle.modalities["video"].transform
    with Copies() as seen:
        (first, *_) = batches.train(0, ["video"])
    assert max(seen.sizes) == 4 * 2 * 64 * 64 * 3
    table = batches._draws(0, ["video"])["video"]
    stored = batches.bundle.train.stored("video", first.index)
    assert torch.equal(first.inputs["video"], transform(stored, table[first.index]))


def test_what_is_stored_does_not_wait_beside_the_step():
    batches = loader().train(0, ["video"])
    next(batches)
    alive = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.dtype == torch.uint8]
    assert {tuple(x.shape) for x in alive if x.shape[2:] == (64, 64, 3)} == {(12, 3, 64, 64, 3)}  # the split itself


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("same", [True, False])
def test_no_batch_would_wait_for_a_gpu(pick, same):
    batches = loader(same=same, pick=pick)
    with Waits() as waits:
        made = [*batches.train(1, ["video", "sound"]), *batches.ordered("val", ["video", "sound"])]
    assert len(made) == 4
    assert waits.seen == []


def by_sample(batches, m):
    found = {}
    for batch in batches:
        for i, values in zip(batch.index.tolist(), batch.inputs[m], strict=True):
            assert i not in found or torch.allclose(found[i], values, atol=1e-3)
            found[i] = values
    return torch.stack([found[i] for i in sorted(found)]), sorted(found)


@pytest.mark.parametrize("m", ["video", "sound"])
def test_a_sample_is_augmented_alike_in_any_company(m):
    """Whatever the batch size, the order, the other samples and modalities, and how often it comes."""
    state = torch.get_rng_state()
    names = ["video", "other", "sound"]
    reference, rows = by_sample(loader().train(1, names), m)
    assert rows == list(range(12))
    for batches in (
        loader().train(1, [m]),
        loader(batch_size=5).train(1, names),
        loader(batch_size=12).train(1, names),
        loader().train(1, names, View(torch.tensor([3, 3, 7, 1, 3, 11]))),
        loader().train(1, names, View(torch.arange(11, -1, -1), group=torch.arange(12) % 2)),
        [loader().last(1, names)],
    ):
        found, rows = by_sample(batches, m)
        assert torch.allclose(found, reference[rows], atol=1e-3)
    assert torch.equal(state, torch.get_rng_state())


def test_samples_modalities_epochs_and_seeds_are_augmented_independently():
    names = ["video", "other"]
    tables = [
        by_sample(loader(seed=seed).train(epoch, names), m)[0] for seed in (0, 1) for epoch in (0, 1) for m in names
    ]
    corners = torch.stack([t[:, :2, :, 0, 0] for t in tables]).transpose(2, 3)  # table, sample, frame, (x, y)
    assert len({tuple(c.tolist()) for c in corners.reshape(-1, 2)}) == 8 * 12 * 2
    offsets = [by_sample(loader(seed=s).train(e, ["sound"]), "sound")[0][:, 0, 0, 0] for s in (0, 1) for e in (0, 1)]
    assert len(set(offsets[0].tolist())) > 8
    assert all(not torch.equal(a, b) for i, a in enumerate(offsets) for b in offsets[:i])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_draws_nothing(split):
    first, second = (by_sample(loader().ordered(split, ["video", "sound"]), "video")[0] for _ in range(2))
    assert torch.equal(first, second)
    assert (first - first[:1]).abs().max() == 0


# time


def test_time_crop():
    stored = torch.arange(100, dtype=torch.float16).expand(2000, 1, 3, 100)
    transform = TimeCrop(40)
    assert transform(stored)[0, 0].tolist() == [list(range(30, 70))] * 3
    found = transform(stored, draws(transform, 2000))
    assert (found.shape, found.dtype) == ((2000, 1, 3, 40), torch.float32)
    offset = found[:, 0, 0, 0]
    assert torch.equal(found, (offset[:, None] + torch.arange(40))[:, None, None].expand(-1, 1, 3, -1))
    assert set(offset.tolist()) == set(range(61))
    assert kstest((offset.numpy() + np.random.default_rng(0).random(2000)) / 61, "uniform").pvalue > 0.01
    almost = torch.full((1, 1), 1 - 2.0**-24)
    assert transform(stored[:1], almost)[0, 0, 0, 0] == 60
    assert transform(stored[:1], torch.zeros(1, 1))[0, 0, 0, 0] == 0
    assert TimeCrop(100)(stored[:1], almost).shape == (1, 1, 3, 100)


@pytest.mark.gpu
def test_gpu_agrees():
    transform = FrameTransform(3, 8)
    stored = torch.stack([torch.from_numpy(as_candidates([smooth(320, 240, s)] * 6, 8, 256)) for s in range(4)])
    numbers = draws(transform, 4)
    assert torch.allclose(transform(stored.cuda()).cpu(), transform(stored), atol=1e-3)
    assert torch.allclose(transform(stored.cuda(), numbers.cuda()).cpu(), transform(stored, numbers), atol=0.02)
