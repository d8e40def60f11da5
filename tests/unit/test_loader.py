"""Batches: order from (seed, epoch) alone, views, groups, what is left out and what is not."""

import contextlib
import dataclasses
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from balancebench_udi.data import loader as module
from balancebench_udi.data.base import Bundle, Modality, Split
from balancebench_udi.data.loader import Batch, Loader, View, ahead, beside
from balancebench_udi.errors import UserError
from balancebench_udi.seeding import generator
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


class Jitter:
    """Shifts every sample by its own draw."""

    draws = 1

    def __call__(self, stored, draws=None):
        assert draws is None or draws.shape == (len(stored), 1)
        return stored if draws is None else stored + draws


def augmented(seed=0, batch_size=16, names=BOTH):
    bundle = tiny_bundle(n=(50, 20, 30))
    modalities = {
        m: dataclasses.replace(x, transform=Jitter()) if m in names else x for m, x in bundle.modalities.items()
    }
    return Loader(dataclasses.replace(bundle, modalities=modalities), CPU, batch_size, seed)


def shifts(made, batches, m):
    """By how much each sample was shifted, ``[N]``; NaN where it did not come."""
    found = torch.full((50,), torch.nan)
    for b in batches:
        found[b.index] = (b.inputs[m] - made.bundle.train.inputs[m][b.index])[:, 0]
    return found


def values(batches, m="visual"):
    return torch.cat([b.inputs[m] for b in batches])


def test_augmentation_depends_on_seed_epoch_and_modality_alone():
    reference = values(augmented().train(2, BOTH))
    assert torch.equal(values(augmented().train(2, BOTH)), reference)
    assert torch.equal(values(augmented().train(2, ["visual"])), reference)  # a phase on one modality sees the same
    made = augmented()
    tables = []
    for seed, epoch in ((0, 2), (0, 3), (1, 2)):
        tables += [shifts(made, list(augmented(seed).train(epoch, BOTH)), m) for m in BOTH]
    for i, first in enumerate(tables):
        assert first.min() > -1e-5
        assert first.max() < 1 + 1e-5
        assert len(set(first.tolist())) == 50  # every sample by its own
        assert all(not torch.allclose(first, second, atol=1e-3) for second in tables[:i])


def test_augmentation_of_a_sample_does_not_depend_on_its_batch():
    made = augmented()
    reference = shifts(made, made.train(2, BOTH), "visual")
    group = torch.arange(50) % 3
    for batches in (
        augmented(batch_size=5).train(2, BOTH),
        augmented(names=["visual"]).train(2, BOTH),
        made.train(2, BOTH, View(torch.arange(49, -1, -1))),
        made.train(2, BOTH, View(torch.tensor([7] * 20 + [3] * 13 + [41]))),
        made.train(2, BOTH, View(torch.arange(50), group=group)),
        [made.last(2, BOTH)],
    ):
        found = shifts(made, list(batches), "visual")
        there = ~found.isnan()
        assert there.any()
        assert torch.allclose(found[there], reference[there], atol=1e-6)


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


@pytest.mark.parametrize("count", [50, 48, 49])  # 49: the last sample by itself is left out
@pytest.mark.parametrize("names", [(), ("visual",), ("audio", "visual")])
def test_the_last_batch_is_that_of_the_epoch(count, names):
    made = loader(count)
    calls = []

    class Counted:
        def __init__(self, m):
            self.draws = int(m in names)

        def __call__(self, stored, draws=None):
            calls.append(len(stored))
            assert (draws is not None) == bool(self.draws)
            return stored if draws is None else stored + draws

    for m in BOTH:
        made.bundle.modalities[m] = dataclasses.replace(made.bundle.modalities[m], transform=Counted(m))
    for epoch in (0, 3):
        *_, expected = made.train(epoch, BOTH)
        calls.clear()
        found = made.last(epoch, BOTH)
        assert calls == [len(expected)] * 2  # nothing else was made
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.target, expected.target)
        for m in BOTH:
            assert torch.equal(found.inputs[m], expected.inputs[m])
            assert torch.equal(found.inputs[m], made.bundle.train.inputs[m][found.index]) == (m not in names)
    assert list(made.last(0, ["visual"]).inputs) == ["visual"]


# evaluation's batches


def batch_sizes(shapes, n=600):
    inputs = {f"m{i}": torch.zeros(n, *shape) for i, shape in enumerate(shapes)}
    split = Split(inputs, torch.zeros(n, dtype=torch.int64))
    modalities = {f"m{i}": Modality("vector", shape, "mlp") for i, shape in enumerate(shapes)}
    made = Loader(Bundle(modalities, ("a", "b"), split, split, split, "0" * 12), CPU, 16, 0)
    return [len(b) for b in made.ordered("val", list(inputs))], [len(b) for b in made.ordered("val", ["m0"])]


def test_batches_of_evaluation_are_limited_by_count_and_by_bytes(monkeypatch):
    assert batch_sizes([(10,), (20,)]) == ([512, 88], [512, 88])
    monkeypatch.setattr(module, "EVALUATION_BYTES", {"cpu": 100_000})
    assert batch_sizes([(100,), (25,)]) == ([200] * 3, [250, 250, 100])
    monkeypatch.setattr(module, "EVALUATION_BYTES", {"cpu": 10})
    assert batch_sizes([(100,)], 3)[0] == [1, 1, 1]


# splits that are rows of one array


def mapped(bundle, seed=0):
    """The bundle with its splits scattered over one array."""
    counts = [len(bundle.split(s)) for s in ("train", "val", "test")]
    order = torch.randperm(sum(counts) + 5, generator=generator(seed))[: sum(counts)]
    inputs = {}
    for m in bundle.modalities:
        values = torch.cat([bundle.split(s).inputs[m] for s in ("train", "val", "test")])
        inputs[m] = torch.full((len(order) + 5, *values.shape[1:]), torch.nan)
        inputs[m][order] = values
    parts = dict(zip(("train", "val", "test"), order.split(counts), strict=True))
    splits = {s: Split(inputs, bundle.split(s).target, rows) for s, rows in parts.items()}
    return dataclasses.replace(bundle, **splits)


def test_a_mapped_split_gives_the_batches_of_one_of_its_own():
    bundle = augmented().bundle
    one, other = (Loader(b, CPU, 16, 0) for b in (bundle, mapped(bundle)))
    view = View(torch.tensor([7] * 20 + [3] * 13 + [41]), {m: torch.arange(34) % 2 == 0 for m in BOTH})
    for calls in (
        lambda made: made.train(1, BOTH),
        lambda made: made.train(1, ["visual"], view),
        lambda made: made.ordered("val", BOTH),
        lambda made: made.ordered("test", BOTH, torch.tensor([3, 3, 29, 0]), 3),
        lambda made: [made.last(1, BOTH)],
    ):
        for a, b in zip(calls(one), calls(other), strict=True):
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.target, b.target)
            assert list(a.inputs) == list(b.inputs)
            assert all(torch.equal(a.inputs[m], b.inputs[m]) for m in a.inputs)
    taken, expected = (made.bundle.train.take(torch.tensor([4, 0, 4])) for made in (other, one))
    assert torch.equal(taken.stored("audio", torch.arange(3)), expected.stored("audio", torch.arange(3)))
    assert torch.equal(taken.target, expected.target)


def test_what_was_read_of_a_map_is_let_go(tmp_path):
    """It stays in the system's memory; this process's does not grow with the data."""
    if not STATUS.exists():
        pytest.skip("/proc/self/status tells what is mapped, on Linux")
    np.save(tmp_path / "a.npy", np.arange(256 * 2**18, dtype=np.int16).reshape(256, 2**18))  # 134 MB
    array = np.load(tmp_path / "a.npy", mmap_mode="c")
    expected = array[:, -1].copy()
    target = torch.arange(256) % 2
    vector = {"a": Modality("vector", (2**18,), "mlp")}
    found = {}
    for maps in ([array.base], []):
        split = Split({"a": torch.from_numpy(array)}, target, maps=maps)
        made = Loader(Bundle(vector, ("0", "1"), split, split, split, "0" * 12), CPU, 4, 0)
        split = dataclasses.replace(split, maps=[array.base])
        split.let_go()
        before = mapped_bytes()
        for epoch in range(2):
            for batch in made.train(epoch, ["a"]):
                assert batch.inputs["a"][:, -1].tolist() == expected[batch.index].tolist()
        found[bool(maps)] = mapped_bytes() - before
    assert found[True] < 40e6
    assert found[False] > 100e6


@pytest.mark.parametrize(("free", "tries"), [(1.9, 0), (2.1, 2)])
def test_a_split_that_does_not_fit_a_gpu_stays_where_it_is(monkeypatch, free, tries):
    """Whether that is known before, or another run fills the memory meanwhile."""
    split, empty, tried = tiny_bundle().train, torch.empty, []
    size = sum(x.nbytes for x in split.inputs.values())

    def nearly_full(*shape, dtype, device):
        tried.append(device.type)
        if len(tried) == 2:
            raise torch.OutOfMemoryError
        return empty(*shape, dtype=dtype)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * size), 99 * size))
    monkeypatch.setattr(torch, "empty", nearly_full)
    assert module._place(split, torch.device("cuda")) is split
    assert tried == ["cuda"] * tries


STATUS = Path("/proc/self/status")


def mapped_bytes():
    return 1024 * int(re.search(r"^RssFile:\s+(\d+)", STATUS.read_text(), re.MULTILINE)[1])


def test_rows_are_checked():
    inputs = {"audio": torch.zeros(3, 2)}
    with pytest.raises(UserError, match=r"must have one row a sample \(2\), found 3"):
        Split(inputs, torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1, 2]))
    with pytest.raises(UserError, match="modality audio must hold row 3, found 3 rows"):
        Split(inputs, torch.zeros(2, dtype=torch.int64), torch.tensor([0, 3]))
    assert len(Split(inputs, torch.zeros(0, dtype=torch.int64), torch.tensor([], dtype=torch.int64))) == 0


# reading ahead


def test_ahead_is_map():
    assert list(ahead(lambda x: x * x, range(50), 3)) == [x * x for x in range(50)]
    assert list(ahead(lambda x: x, [], 3)) == []
    assert list(ahead(lambda x: x, [None, 1], 1)) == [None, 1]


def settle(seen, count):
    """Wait until so many were begun, and a little longer for one too many."""
    end = time.monotonic() + 10
    while len(seen) < count and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(0.05)
    return len(seen)


@pytest.mark.parametrize("depth", [1, 3])
def test_ahead_is_as_far_ahead_as_asked(depth):
    seen = []
    results = ahead(lambda x: seen.append(x) or x, range(20), depth)
    assert seen == []  # nothing before the first is asked for
    for taken in range(1, 6):
        next(results)
        assert settle(seen, taken + depth) == taken + depth
    results.close()


def test_ahead_raises_what_the_function_raises_in_its_place():
    """And computes nothing beyond."""
    seen, got = [], []

    def function(x):
        seen.append(x)
        if x == 3:
            raise UserError("three")
        return x

    with pytest.raises(UserError, match="three"):
        got.extend(ahead(function, range(10), 5))
    assert got == [0, 1, 2]
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("taken", [1, 4])
def test_ahead_ends_its_thread_when_closed(taken):
    before = threading.active_count()
    seen = []
    results = ahead(lambda x: seen.append(x) or x, range(1000), 2)
    for _ in range(taken):
        next(results)
    assert threading.active_count() == before + 1
    results.close()
    assert threading.active_count() == before
    begun = len(seen)
    assert begun <= taken + 3
    assert settle(seen, begun) == begun


def test_ahead_ends_its_thread_when_done_or_failed():
    before = threading.active_count()
    list(ahead(lambda x: x, range(5), 2))
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda x: 1 / x, [1, 0, 1], 2))
    assert threading.active_count() == before


def test_on_a_gpu_a_batch_is_made_before_the_step_of_the_one_before_it_which_waits_for_its_own(monkeypatch):
    """The calls of torch.cuda alone; tests/gpu has the values."""
    told = []

    class Stream:
        device = CPU

        def __init__(self, name):
            self.name = name

        def __getattr__(self, call):
            return lambda *given: told.append((self.name, call, *given)) or len(told)

    class Value:
        def __init__(self, name):
            self.record_stream = lambda stream: told.append((name, "kept for", stream.name))

    own, user = Stream("own"), Stream("user")
    monkeypatch.setattr(module.torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(module.torch.cuda, "current_stream", lambda device: user)

    def make():
        for i in range(3):
            told.append(("made", i))
            yield Batch({"m": Value(f"m{i}")}, Value(f"y{i}"), Value(f"i{i}"))

    for i, _ in enumerate(beside(make(), own)):
        told.append(("step", i))
    assert told[0] == ("own", "wait_stream", user)
    assert told[-1] == ("user", "wait_stream", own)
    ready = [n + 1 for n, call in enumerate(told) if call[:2] == ("own", "record_event")]
    for i in range(3):
        step = told.index(("step", i))
        assert told.index(("user", "wait_event", ready[i])) < step
        assert all(told.index((f"{what}{i}", "kept for", "user")) < step for what in "myi")
        assert told.index(("made", i)) < ready[i]
        assert i == 2 or told.index(("made", i + 1)) < step
