"""Batches: order from (seed, epoch) alone, views, groups, what is left out and what is not."""

import dataclasses

import pytest
import torch

from balancebench_udi.data.base import Bundle, Modality, Split
from balancebench_udi.data.loader import Batch, Loader, View
from balancebench_udi.errors import UserError
from tests.helpers import tiny_bundle

CPU = torch.device("cpu")
BOTH = ["audio", "visual"]


def loader(n=50, batch_size=16, seed=0, **kw):
    return Loader(tiny_bundle(n=(n, 20, 30), **kw), CPU, batch_size, seed)


def orders(batches):
    return [b.index.tolist() for b in batches]


def flat(batches):
    return [i for b in batches for i in b.index.tolist()]


def test_an_epoch_holds_every_sample_once_with_its_own_inputs_and_target():
    made = loader()
    train = made.bundle.train
    seen = []
    for batch in made.train(0, BOTH):
        assert list(batch.inputs) == BOTH
        assert batch.keep is None
        assert len(batch) == len(batch.target) == len(batch.index)
        assert torch.equal(batch.target, train.target[batch.index])
        for m in BOTH:
            assert torch.equal(batch.inputs[m], train.inputs[m][batch.index])
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(50))
    assert seen != sorted(seen)


def test_the_order_depends_on_seed_and_epoch_alone():
    reference = orders(loader().train(3, BOTH))
    torch.manual_seed(5)
    again = loader()
    orders(again.train(0, BOTH))  # earlier epochs do not matter
    next(again.train(1, BOTH))
    assert orders(again.train(3, BOTH)) == reference
    assert orders(loader().train(3, ["visual"])) == reference
    assert orders(loader(kind="image").train(3, BOTH)) == reference
    assert orders(loader().train(3, BOTH, View(torch.arange(50)))) == reference
    assert orders(loader().train(4, BOTH)) != reference
    assert orders(loader(seed=1).train(3, BOTH)) != reference


def test_making_batches_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    list(loader().train(0, BOTH))
    list(loader().ordered("val", BOTH))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("n", "sizes"), [(48, [16] * 3), (49, [16] * 3), (50, [16, 16, 16, 2]), (17, [16]), (5, [5])])
def test_a_last_batch_of_one_is_left_out(n, sizes):
    made = loader(n)
    assert [len(b) for b in made.train(0, BOTH)] == sizes
    assert made.steps() == len(sizes)


def test_a_training_set_of_one_sample_is_used():
    target = torch.tensor([0])
    split = Split({"audio": torch.ones(1, 3)}, target)
    bundle = Bundle({"audio": Modality("vector", (3,), "mlp")}, ("a", "b"), split, split, split, "0" * 12)
    assert [len(b) for b in Loader(bundle, CPU, 4, 0).train(0, ["audio"])] == [1]


def test_which_sample_is_left_out_changes_with_the_epoch():
    made = loader(49)
    out = {(set(range(49)) - set(flat(made.train(e, BOTH)))).pop() for e in range(8)}
    assert len(out) > 3


def test_a_view_refers_to_the_base_split():
    made = loader()
    index = torch.tensor([7] * 20 + [3] * 13 + [41])
    keep = {"audio": torch.arange(34) % 2 == 0, "visual": torch.arange(34) < 20}
    batches = list(made.train(0, BOTH, View(index, keep)))
    assert made.steps(View(index, keep)) == len(batches) == 3
    assert sorted(flat(batches)) == sorted(index.tolist())
    rows = torch.cat([torch.stack([b.index, b.keep["audio"], b.keep["visual"]], 1) for b in batches])
    assert sorted(rows.tolist()) == sorted(torch.stack([index, keep["audio"], keep["visual"]], 1).tolist())
    for b in batches:
        assert torch.equal(b.target, made.bundle.train.target[b.index])
        assert torch.equal(b.inputs["audio"], made.bundle.train.inputs["audio"][b.index])


def test_a_view_of_one_modality_keeps_that_one():
    keep = {"audio": torch.zeros(50, dtype=torch.bool), "visual": torch.ones(50, dtype=torch.bool)}
    batch = next(loader().train(0, ["visual"], View(torch.arange(50), keep)))
    assert list(batch.inputs) == list(batch.keep) == ["visual"]
    assert batch.keep["visual"].all()


@pytest.mark.parametrize("epoch", range(4))
def test_groups_are_never_mixed(epoch):
    made = loader(50, batch_size=8)
    group = torch.arange(50) % 3
    view = View(torch.arange(50), group=group)
    batches = list(made.train(epoch, BOTH, view))
    of = [set(group[b.index].tolist()) for b in batches]
    assert all(len(g) == 1 for g in of)
    missing = set(range(50)) - set(flat(batches))
    assert len(flat(batches)) == 48
    assert {int(group[i]) for i in missing} == {0, 1}  # two groups of 17 = 8 + 8 + 1, and one of 16
    assert len(missing) == 2
    assert [next(iter(g)) for g in of] != sorted(next(iter(g)) for g in of)  # batches of the groups are interleaved
    assert made.steps(view) == len(batches)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_ordered_covers_everything_in_order(split, batch_size):
    made = loader(50)
    batches = list(made.ordered(split, BOTH, batch_size=batch_size))
    part = made.bundle.split(split)
    assert flat(batches) == list(range(len(part)))
    assert torch.equal(torch.cat([b.target for b in batches]), part.target)
    assert torch.equal(torch.cat([b.inputs["visual"] for b in batches]), part.inputs["visual"])
    assert made.size(split) == len(part)
    assert torch.equal(made.target(split), part.target)


def test_ordered_takes_rows():
    made = loader(50)
    rows = torch.tensor([4, 4, 0, 49])
    (batch,) = made.ordered("train", ["audio"], rows)
    assert batch.index.tolist() == rows.tolist()
    assert torch.equal(batch.inputs["audio"], made.bundle.train.inputs["audio"][rows])


def jitter(stored, generator):
    return stored if generator is None else stored + torch.rand(len(stored), 1, generator=generator)


def augmented(seed=0):
    bundle = tiny_bundle(n=(50, 20, 30))
    modalities = {m: dataclasses.replace(x, transform=jitter) for m, x in bundle.modalities.items()}
    return Loader(dataclasses.replace(bundle, modalities=modalities), CPU, 16, seed)


def values(batches, m="visual"):
    return torch.cat([b.inputs[m] for b in batches])


def test_augmentation_depends_on_seed_epoch_and_modality_alone():
    reference = values(augmented().train(2, BOTH))
    assert torch.equal(values(augmented().train(2, BOTH)), reference)
    assert torch.equal(values(augmented().train(2, ["visual"])), reference)  # a phase on one modality sees the same
    train = augmented().bundle.train
    shifts = []
    for seed, epoch in ((0, 2), (0, 3), (1, 2)):
        batches = list(augmented(seed).train(epoch, BOTH))
        rows = torch.cat([b.index for b in batches])
        shifts += [values(batches, m)[:, :5] - train.inputs[m][rows][:, :5] for m in BOTH]
    for i, first in enumerate(shifts):
        assert first.min() > -1e-5
        assert first.max() < 1 + 1e-5
        assert all(not torch.allclose(first, second) for second in shifts[:i])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_is_never_augmented(split):
    made = augmented()
    assert torch.equal(values(made.ordered(split, BOTH)), made.bundle.split(split).inputs["visual"])


def test_a_batch_counts_its_samples():
    assert len(Batch({}, torch.zeros(3), torch.arange(3))) == 3


def test_a_bundle_is_checked():
    bundle = tiny_bundle()
    with pytest.raises(UserError, match="modality audio must have one row a sample"):
        Split({"audio": torch.zeros(3, 2)}, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UserError, match="the val split must hold at least one sample"):
        dataclasses.replace(bundle, val=bundle.val.take(torch.tensor([], dtype=torch.int64)))
    with pytest.raises(UserError, match=r"targets must lie in 0\.\.1, found 0\.\.2 in train"):
        dataclasses.replace(bundle, classes=("a", "b"))
    with pytest.raises(UserError, match=r"the train split must hold \['audio'\], found \['audio', 'visual'\]"):
        dataclasses.replace(bundle, modalities={"audio": bundle.modalities["audio"]})


def noisy(stored, generator=None):
    return stored if generator is None else stored + torch.rand(stored.shape, generator=generator)


@pytest.mark.parametrize("count", [50, 48, 49])  # 49: the last sample by itself is left out
@pytest.mark.parametrize("augmented", [(), ("visual",), ("audio", "visual")])
def test_the_last_batch_is_that_of_the_epoch(count, augmented):
    made = loader(count)
    calls = []

    def counted(transform):
        def call(stored, generator=None):
            calls.append(len(stored))
            return transform(stored, generator)

        return call

    for m in BOTH:
        before = made.bundle.modalities[m]
        transform = counted(noisy if m in augmented else before.transform)
        made.bundle.modalities[m] = dataclasses.replace(before, transform=transform)
    for epoch in (0, 3):
        *_, expected = made.train(epoch, BOTH)
        calls.clear()
        found = made.last(epoch, BOTH)
        if not augmented:  # nothing else was made
            assert calls == [len(expected)] * 2
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.target, expected.target)
        for m in BOTH:
            assert torch.equal(found.inputs[m], expected.inputs[m])
            assert torch.equal(found.inputs[m], made.bundle.train.inputs[m][found.index]) == (m not in augmented)
    assert list(made.last(0, ["visual"]).inputs) == ["visual"]
