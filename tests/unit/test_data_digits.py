"""The embedded digits and the rules by which they are coloured."""

import pytest
import torch
from scipy.stats import kstest, truncnorm
from sklearn.datasets import load_digits

from balancebench_udi.data.colour import MEAN_COLOURS, ColourOptions, coloured_split, draw_colours
from balancebench_udi.data.digits import Digits, DigitsOptions
from balancebench_udi.errors import UserError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def bundle():
    return Digits().load(None)


def test_shapes_types_and_counts(bundle):
    assert list(bundle.modalities) == ["gray", "colour"]
    assert sum(len(bundle.split(s)) for s in SPLITS) == 1797
    assert bundle.facts["counts"] == {s: len(bundle.split(s)) for s in SPLITS}
    assert bundle.facts["generated"] is True
    for s in SPLITS:
        for name, modality in bundle.modalities.items():
            values = bundle.split(s).inputs[name]
            assert values.dtype == torch.uint8
            assert values.shape[1:] == modality.shape
            assert modality.transform(values, None).shape == values.shape


def test_gray_is_scikit_learns_and_normalised(bundle):
    images = torch.from_numpy(load_digits().images)
    gray = torch.cat([bundle.split(s).inputs["gray"] for s in SPLITS])
    assert sorted(map(bytes, gray.numpy())) == sorted(
        map(bytes, (images * 255 / 16).round().to(torch.uint8).numpy())
    )  # every image once: the splits are disjoint
    shown = bundle.modalities["gray"].transform(gray, None)
    assert shown.mean().item() == pytest.approx(0, abs=1e-3)
    assert shown.std().item() == pytest.approx(1, abs=1e-3)


def test_splits_are_stratified(bundle):
    total = torch.stack([torch.bincount(bundle.split(s).target, minlength=10) for s in SPLITS]).sum(0)
    for s, share in zip(SPLITS, (0.6, 0.15, 0.25), strict=True):
        counts = torch.bincount(bundle.split(s).target, minlength=10)
        assert (counts - share * total).abs().max() <= 1.5


def test_colour_is_gray_times_one_colour(bundle):
    for s in SPLITS:
        gray, colour = (bundle.split(s).inputs[m].float() for m in ("gray", "colour"))
        peak = gray.flatten(1).argmax(1)
        rows = torch.arange(len(peak))
        draw = colour.flatten(2)[rows, :, peak] / gray.flatten(1)[rows, peak, None]
        assert (colour - gray * draw[:, :, None, None]).abs().max() <= 1.01  # rounding, twice
        assert colour[gray.expand_as(colour) == 0].max() == 0


def colour_by_class(split):
    """Accuracy with which the nearest mean colour names the class."""
    gray, colour = (split.inputs[m].double().flatten(2) for m in ("gray", "colour"))
    draw = (gray * colour).sum(2) / (gray**2).sum(2)  # least squares
    nearest = torch.cdist(draw, torch.tensor(MEAN_COLOURS["first"]).double() / 255).argmin(1)
    return (nearest == split.target).double().mean().item()


def test_the_colour_tells_the_class_in_training_only(bundle):
    labelled = Digits(DigitsOptions(val_colour="label")).load(None)
    assert colour_by_class(bundle.train) > 0.6
    assert colour_by_class(labelled.val) > 0.6
    assert colour_by_class(bundle.val) < 0.2
    assert colour_by_class(bundle.test) < 0.2
    # the choice concerns the colours of the validation split and nothing else
    assert torch.equal(labelled.val.inputs["gray"], bundle.val.inputs["gray"])
    for s in ("train", "test"):
        assert torch.equal(labelled.split(s).inputs["colour"], bundle.split(s).inputs["colour"])
    assert labelled.fingerprint != bundle.fingerprint
    assert labelled.facts["colour_rule"] == {"train": "label", "val": "label", "test": "random"}
    assert bundle.facts["colour_rule"]["val"] == "random"


@pytest.mark.parametrize("recipe", MEAN_COLOURS)
def test_drawn_colours_follow_the_rule(recipe):
    target = torch.arange(100_000) % 10
    means = torch.tensor(MEAN_COLOURS[recipe]) / 255
    exact = ColourOptions(variance=0, recipe=recipe)
    assert torch.equal(draw_colours(target, "label", exact, "train"), means[target])
    drawn = draw_colours(target, "random", exact, "test")
    which = torch.cdist(drawn, means).argmin(1)
    table = torch.zeros(10, 10).index_put_((target, which), torch.ones(len(target)), accumulate=True)
    chi_square = ((table - 1000) ** 2 / 1000).sum().item()
    assert chi_square < 148.2  # the 99.99 % point with 90 degrees of freedom (rows are fixed): independence, uniformity
    jitter = draw_colours(target, "label", ColourOptions(variance=0.0001, recipe=recipe), "train") - means[target]
    inside = (means[target] > 0.05) & (means[target] < 0.95)  # where neither law changes anything
    assert jitter[inside].var().item() == pytest.approx(0.0001, rel=0.03)


def test_the_first_recipe_is_clipped_and_the_published_one_truncated():
    """Against scipy's truncated normal distribution, of every class and channel (Kolmogorov-Smirnov, 30 tests)."""
    target = torch.arange(60_000) % 10
    clipped = draw_colours(target, "label", ColourOptions(recipe="first"), "train")
    assert (clipped.min().item(), clipped.max().item()) == (0.0, 1.0)
    drawn = draw_colours(target, "label", ColourOptions(), "train")
    assert ((drawn > 0) & (drawn < 1)).all()
    deviation = 0.03**0.5
    for c, mean in enumerate((torch.tensor(MEAN_COLOURS["published"]).double() / 255).tolist()):
        for channel, centre in enumerate(mean):
            law = truncnorm(-centre / deviation, (1 - centre) / deviation, loc=centre, scale=deviation)
            assert kstest(drawn[target == c, channel].numpy(), law.cdf).pvalue > 1e-4


def test_published_colours_lie_closer_and_tell_fewer_classes():
    """The figures that third parties' versions of the recipe give: .227 apart, some 73 % by Bayes' rule."""
    means = torch.tensor(MEAN_COLOURS["published"]).double() / 255
    assert torch.pdist(means).min().item() == pytest.approx(0.227, abs=5e-4)
    target, deviation = torch.arange(60_000) % 10, 0.03**0.5
    drawn = draw_colours(target, "label", ColourOptions(), "train").double()
    normal = torch.distributions.Normal(means, deviation)
    mass = (normal.cdf(torch.ones_like(means)) - normal.cdf(torch.zeros_like(means))).log().sum(1)
    score = -torch.cdist(drawn, means).square() / (2 * deviation**2) - mass
    assert (score.argmax(1) == target).double().mean().item() == pytest.approx(0.733, abs=0.008)


def test_a_subset_keeps_its_colours():
    gray, target = torch.full((50, 1, 2, 2), 200, dtype=torch.uint8), torch.arange(50) % 10
    rows = torch.tensor([3, 40, 7])
    everything = coloured_split(gray, target, torch.arange(50), "random", ColourOptions(), "test")
    some = coloured_split(gray, target, rows, "random", ColourOptions(), "test")
    assert torch.equal(some.inputs["colour"], everything.inputs["colour"][rows])
    exact = 200 * draw_colours(target, "random", ColourOptions(), "test")
    assert (everything.inputs["colour"] - exact[:, :, None, None]).abs().max() < 0.501  # rounded, not cut off
    assert torch.equal(some.target, target[rows])


def test_same_options_same_bytes_other_options_other_fingerprint(bundle):
    again = Digits().load(None)
    assert again.fingerprint == bundle.fingerprint
    for s in SPLITS:
        assert torch.equal(again.split(s).inputs["colour"], bundle.split(s).inputs["colour"])
        assert torch.equal(again.split(s).target, bundle.split(s).target)
    prints = {bundle.fingerprint}
    for change in ({"variance": 0.02}, {"colour_seed": 1}, {"val_seed": 1}, {"test_seed": 1}, {"val_share": 0.2}):
        prints.add(Digits(DigitsOptions(**change)).load(None).fingerprint)
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_colour": "train"}, r"digits\.val_colour must be one of random, label, found train"),
        ({"variance": -1}, r"digits\.variance must be >= 0, found -1.0"),
        ({"val_share": 0.8}, r"digits\.val_share plus test_share must be < 1, found 0.8 \+ 0.25"),
        ({"color_seed": 1}, r"digits has no option 'color_seed'; did you mean 'colour_seed'"),
    ],
)
def test_wrong_options(values, message):
    with pytest.raises(UserError, match=message):
        DigitsOptions.build("digits", values)
