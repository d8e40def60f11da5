"""What every method owes the trainer, for two and for three modalities."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import re
import shutil
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import registry
from balancebench_udi import trainer as trainer_module
from balancebench_udi.errors import RunFailed, UserError
from balancebench_udi.seeding import generator
from balancebench_udi.store import Store
from balancebench_udi.strategy import Strategy, View
from balancebench_udi.trainer import Trainer, is_auxiliary
from tests.helpers import NAMES, Enough, make_trainer, run_steps, state_digest, tiny_bundle, train

METHODS = list(registry.METHODS)
FAMILIES = {"none", "data", "forward", "objective", "optimization", "strategy"}
EPOCHS = 3
STEPS = 3
"""Batches in an epoch."""

methods = pytest.mark.parametrize("name", METHODS)
counts = pytest.mark.parametrize("count", [2, 3])


def bundle(count):
    """Images: convolutions and batch norm, as in the methods' own experiments."""
    return tiny_bundle(count, "image", n=(48, 24, 24))


def make(name, count, store=None, data=None, **overrides) -> Trainer:
    settings = {"epochs": EPOCHS, "batch_size": 16, "optimizer": {"lr": 0.02}, **overrides}
    return make_trainer(data or bundle(count), name, store=store, **settings)


def as_json(outcome) -> str:
    return json.dumps(outcome["result"], sort_keys=True, allow_nan=False)


@dataclass
class Run:
    """One uninterrupted run without a store, and what was seen on the way."""

    trainer: Trainer
    result: dict[str, Any]
    text: str
    digest: str
    streams: tuple[bytes, ...]
    """The trainer's and the method's generator at the end."""
    order: dict[tuple[int, int], list[list[int]]] = field(default_factory=dict)
    """(phase, epoch) -> the indices of every batch."""


@functools.cache
def reference(name: str, count: int) -> Run:
    torch.manual_seed(1)
    trainer = make(name, count)
    order: dict[tuple[int, int], list[list[int]]] = {}
    original = trainer.strategy.step

    def step(batch):
        order.setdefault((trainer.progress.phase, trainer.task.epoch), []).append(batch.index.tolist())
        return original(batch)

    trainer.strategy.step = step  # type: ignore[method-assign]
    outcome = trainer.run()
    del trainer.strategy.step
    return Run(trainer, outcome["result"], as_json(outcome), state_digest(trainer.strategy), ends(trainer), order)


def ends(trainer) -> tuple[bytes, ...]:
    return (trainer.task.generator.get_state().numpy().tobytes(),)


# -- training ----------------------------------------------------------------------------------------------------------


def plain_values(strategy) -> dict[str, object]:
    """Everything that the strategy and its parts keep in Python and that is no tensor."""
    kinds = (int, float, str, bool, tuple, type(None))
    return {
        f"{path}.{name}": value
        for path, part in strategy.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, kinds) and not path.startswith("model.passes")
    }


@counts
@methods
def test_what_a_step_changes_are_tensors_where_steps_may_be_replayed(name, count):
    trainer = make(name, count)
    original, replayable = trainer.strategy.step, []

    def step(batch):
        before, key = plain_values(trainer.strategy), trainer.strategy.replay_key()
        logs = original(batch)
        if key is not None:
            replayable.append(plain_values(trainer.strategy) == before)
        return logs

    trainer.strategy.step = step
    trainer.run()
    assert replayable
    assert all(replayable)


@counts
@methods
def test_it_learns(name, count):
    widths = {m: {"name": "mlp", "width": w, "depth": 2} for m, w in zip(NAMES[:count], (16, 12, 20), strict=False)}
    result, _ = train(tiny_bundle(count), name, epochs=6, encoders=widths)
    for reading in ("last", "best_val"):
        scores = result["readings"][reading]["test"]
        assert scores["accuracy"] > 0.6, "chance is a third"
        assert all(np.isfinite(v) for v in scores.values())
    first, last = result["curves"][0], result["curves"][-1]
    assert last["val"]["accuracy"] > 0.6
    assert first["train"]["loss"] > 0


@counts
@methods
def test_it_trains_to_finite_numbers_on_images(name, count):
    run = reference(name, count)
    for value in run.trainer.strategy.state_dict().values():
        assert not isinstance(value, torch.Tensor) or torch.isfinite(value).all()
    for curve in run.result["curves"]:
        assert all(np.isfinite(v) for part in ("train", "val") for v in curve[part].values())
    assert json.loads(run.text) == run.result


@counts
@methods
def test_the_same_seed_gives_the_same_bytes(name, count):
    torch.manual_seed(77)  # the state in which the caller left the global streams must not matter
    np.random.seed(77)
    random.seed(77)
    again = make(name, count)
    outcome = again.run()
    run = reference(name, count)
    assert as_json(outcome) == run.text
    assert state_digest(again.strategy) == run.digest
    assert ends(again) == run.streams


@methods
def test_another_seed_gives_other_numbers(name):
    other = make(name, 2, seed=1)
    outcome = other.run()
    run = reference(name, 2)
    assert state_digest(other.strategy) != run.digest
    assert as_json(outcome) != run.text
    for a, b in zip(other.strategy.model.parameters(), run.trainer.strategy.model.parameters(), strict=True):
        assert a.dim() < 2 or not torch.equal(a, b)


@counts
@methods
def test_the_order_of_samples_is_the_loaders_own(name, count):
    run = reference(name, count)
    loader = make("joint", count).loader
    phases = sorted({phase for phase, _ in run.order})
    assert phases == list(range(len(run.result["readings"]["last"]["epochs"])))
    for phase in phases:
        epochs = sorted(e for p, e in run.order if p == phase)
        assert epochs == list(range(len(epochs)))
        for epoch in epochs:
            expected = [b.index.tolist() for b in loader.train(epoch, NAMES[:count])]
            assert run.order[phase, epoch] == expected
            assert len(expected) == STEPS


@counts
@methods
def test_the_plan_counts_the_epochs_of_all_phases(name, count):
    run = reference(name, count)
    strategy = run.trainer.strategy
    planned = type(strategy).planned_epochs(strategy.options, EPOCHS, list(NAMES[:count]))
    assert planned == len(run.result["curves"]) == len(run.order)


@methods
def test_a_step_leaves_the_global_streams_alone(name):
    trainer = make(name, 2)
    original = trainer.strategy.step
    steps = []

    def watched(batch):
        before = streams()
        logs = original(batch)
        assert streams() == before
        steps.append(logs)
        return logs

    trainer.strategy.step = watched  # type: ignore[method-assign]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trainer.run()
    assert len(steps) == STEPS * len(reference(name, 2).order)
    assert not torch.equal(torch.get_rng_state(), before)  # the trainer sets it: else nothing was watched


@counts
@methods
def test_building_leaves_the_global_streams_alone(name, count):
    before = streams()
    trainer = make(name, count)
    assert streams() == before
    torch.manual_seed(1234)
    assert state_digest(make(name, count).strategy) == state_digest(trainer.strategy)


def streams():
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()


@methods
def test_what_a_step_logs_are_detached_scalars(name):
    trainer = make(name, 2)
    names = []

    def look(batch, logs):
        names.append(((trainer.progress.phase, trainer.task.epoch), frozenset(logs)))
        for value in logs.values():
            assert isinstance(value, torch.Tensor)
            assert value.shape == ()
            assert not value.requires_grad
            assert value.is_floating_point()

    run_steps(trainer, STEPS * len(reference(name, 2).order), look)
    assert all("loss" in logged for _, logged in names)
    assert len(set(names)) == len({epoch for epoch, _ in names})  # else a mean over the epoch would be wrong


# -- prediction --------------------------------------------------------------------------------------------------------


@counts
@methods
def test_predict_is_pure(name, count):
    run = reference(name, count)
    strategy, inputs = run.trainer.strategy, run.trainer.loader.bundle.test.inputs
    strategy.eval()
    own = run.trainer.task.generator.get_state()
    before, noise = state_digest(strategy), streams()
    with torch.no_grad():
        first, second = strategy.predict(inputs), strategy.predict(inputs)
    for a, b in zip(flat(first), flat(second), strict=True):
        assert torch.equal(a, b)
    assert state_digest(strategy) == before
    assert streams() == noise
    assert torch.equal(run.trainer.task.generator.get_state(), own)
    assert not any(part.training for part in strategy.modules())


@counts
@methods
def test_predict_treats_samples_one_by_one(name, count):
    run = reference(name, count)
    strategy, inputs = run.trainer.strategy, run.trainer.loader.bundle.test.inputs
    strategy.eval()
    with torch.no_grad():
        together = strategy.predict(inputs)
        for i in (0, 7):
            alone = strategy.predict({m: x[i : i + 1] for m, x in inputs.items()})
            for a, b in zip(flat(together), flat(alone), strict=True):
                torch.testing.assert_close(a[i : i + 1], b, rtol=1e-3, atol=1e-4)


@counts
@methods
def test_read_outs_agree_with_each_other(name, count):
    run = reference(name, count)
    strategy, inputs = run.trainer.strategy, run.trainer.loader.bundle.test.inputs
    strategy.eval()
    with torch.no_grad():
        output = strategy.predict(inputs)
        assert output.logits.shape == (24, 3)
        assert list(output.features) == list(NAMES[:count])
        assert set(output.unimodal) <= set(NAMES[:count])
        torch.testing.assert_close(strategy.fuse(output.features), output.logits, rtol=1e-5, atol=1e-5)
        shares = strategy.shares(output.features)
        if shares is not None:
            assert list(shares) == list(NAMES[:count])
            torch.testing.assert_close(sum(shares.values()), output.logits, rtol=1e-4, atol=1e-4)
        for m in output.unimodal:  # a modality's own head hears nothing of the others
            others = {k: f if k == m else torch.zeros_like(f) for k, f in output.features.items()}
            torch.testing.assert_close(strategy.alone(others)[m], output.unimodal[m])


def flat(output):
    return [output.logits, *output.features.values(), *output.unimodal.values()]


# -- what stands still -------------------------------------------------------------------------------------------------


def held(strategy: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, and the buffers of modules with parameters (batch norm); not a method's own notes."""
    owners = {id(part) for part in strategy.modules() if list(part.parameters(recurse=False))}
    found = dict(strategy.named_parameters())
    for prefix, part in strategy.named_modules():
        if prefix.startswith("model.") or (prefix and id(part) in owners):
            found.update({f"{prefix}.{n}": b for n, b in part.named_buffers(recurse=False)})
    return {n: v for n, v in found.items() if not is_auxiliary(n)}


@counts
@methods
def test_what_a_phase_denies_stands_still(name, count):
    trainer = make(name, count)
    strategy = trainer.strategy
    begin, close = strategy.begin_phase, trainer._close
    state: dict[str, torch.Tensor] = {}
    seen = []

    def begin_phase():
        state.clear()
        state.update({n: v.detach().clone() for n, v in held(strategy).items()})
        begin()

    def close_phase(phase):
        moved = {n for n, v in held(strategy).items() if not torch.equal(v, state[n])}
        granted = {n for n in state if phase.trainable(n)}
        assert moved <= granted, f"phase {phase.name} moved {sorted(moved - granted)}"
        assert moved, f"phase {phase.name} moved nothing"
        weights = {n for n in granted if n.startswith("model.encoders.") and n.endswith("weight")}
        assert weights <= moved, f"phase {phase.name} left {sorted(weights - moved)}"
        seen.append(phase.name)
        close(phase)

    strategy.begin_phase = begin_phase  # type: ignore[method-assign]
    trainer._close = close_phase  # type: ignore[method-assign]
    trainer.run()
    assert len(seen) == len(set(seen)) == len(reference(name, count).result["readings"]["last"]["epochs"])


# -- going on after an interruption ------------------------------------------------------------------------------------


def interrupt(trainer: Trainer, phase: int, epoch: int, step: int) -> None:
    """Run until just before this step (0-based), then stop as Ctrl-C would."""
    original = trainer.strategy.step
    done = 0

    def counted(batch):
        nonlocal done
        if (trainer.progress.phase, trainer.task.epoch) == (phase, epoch):
            if done == step:
                raise Enough
            done += 1
        return original(batch)

    trainer.strategy.step = counted  # type: ignore[method-assign]
    with pytest.raises(Enough):
        trainer.run()


@counts
@methods
def test_a_run_interrupted_in_every_phase_ends_with_the_same_bytes(name, count, tmp_path):
    run = reference(name, count)
    store = Store(tmp_path)
    for phase in sorted({phase for phase, _ in run.order}):
        last = max(e for p, e in run.order if p == phase)
        # at the very start; in the middle of an epoch; in the middle of the last one
        for epoch, step in sorted({(0, 0), (min(1, last), 1), (last, 2)}):
            torch.manual_seed(random.Random(f"{phase}{epoch}{step}").randrange(10**6))
            interrupt(make(name, count, store), phase, epoch, step)
    again = make(name, count, store)
    assert store.checkpoint_path(again.spec).exists()
    outcome = again.run()
    assert as_json(outcome) == run.text
    assert state_digest(again.strategy) == run.digest
    assert ends(again) == run.streams


@methods
def test_a_run_killed_right_after_a_checkpoint_ends_with_the_same_bytes(name, tmp_path):
    run = reference(name, 2)
    store = Store(tmp_path)
    for _ in range(len(run.order) - 1):  # every call makes one epoch and is killed by the next one's progress report
        ticks = 0

        def tick(phase, steps):
            nonlocal ticks
            if phase != "resumed" and steps == STEPS:
                ticks += 1
                if ticks == 2:
                    raise Enough

        trainer = make(name, 2, store)
        trainer.tick = tick
        try:
            outcome = trainer.run()
        except Enough:
            continue
        break
    else:
        trainer = make(name, 2, store)
        outcome = trainer.run()
    assert as_json(outcome) == run.text
    assert state_digest(trainer.strategy) == run.digest


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """(method, number of modalities) -> a folder with the phases that this method left for others."""

    @functools.cache
    def trained(name, count):
        folder = tmp_path_factory.mktemp("stages")
        make(name, count, Store(folder)).run()
        return folder

    return trained


@counts
@methods
def test_phases_that_others_trained_change_nothing(name, count, stages, tmp_path):
    run = reference(name, count)
    shutil.copytree(stages("unimodal" if name != "unimodal" else "ensemble", count), tmp_path / "results")
    trainer = make(name, count, Store(tmp_path / "results"))
    phases = [trainer.strategy.phase(i) for i in range(count)]
    shared = sum(p is not None and p.shared is not None for p in phases)
    outcome = trainer.run()
    assert sum(c["reused_from"] is not None for c in outcome["cost"]["phases"]) == shared
    assert as_json(outcome) == run.text
    assert state_digest(trainer.strategy) == run.digest


# -- the test split is out of reach ------------------------------------------------------------------------------------


class Locked(dict):
    """The loader's splits, of which ``test`` opens at the end of training."""

    open = False

    def __getitem__(self, name):
        assert self.open or name != "test", "the test split was read during training"
        return super().__getitem__(name)


@counts
@methods
def test_the_test_split_is_not_read_before_the_end(name, count, monkeypatch):
    run = reference(name, count)
    made = []

    class Guarded(trainer_module.Loader):
        def __init__(self, *args):
            super().__init__(*args)
            self.splits = Locked(self.splits)
            made.append(self)

    monkeypatch.setattr(trainer_module, "Loader", Guarded)
    data = bundle(count)
    stream = generator(3, "garbage")
    garbage = {m: 50 * torch.randn(x.shape, generator=stream) for m, x in data.test.inputs.items()}
    data = dataclasses.replace(data, test=dataclasses.replace(data.test, inputs=garbage))
    trainer = make(name, count, data=data)
    finish = trainer._outcome
    with pytest.raises(AssertionError, match="read during training"):
        next(trainer.loader.ordered("test", NAMES[:count]))

    def outcome():
        assert len(made) == 1
        made[0].splits.open = True
        return finish()

    trainer._outcome = outcome  # type: ignore[method-assign]
    found = trainer.run()["result"]
    assert state_digest(trainer.strategy) == run.digest
    assert found["curves"] == run.result["curves"]
    assert found["readings"]["last"]["val"] == run.result["readings"]["last"]["val"]
    assert found["readings"]["last"]["test"] != run.result["readings"]["last"]["test"]


# -- masks -------------------------------------------------------------------------------------------------------------

USES_THE_DEFAULT_FORWARD = [n for n in ("joint", "uniform") if n in METHODS]


@counts
@pytest.mark.parametrize("name", USES_THE_DEFAULT_FORWARD)
def test_masks_work_in_the_default_step(name, count):
    data = tiny_bundle(count)
    hide = torch.arange(96) % 2 == 0
    keep = {m: torch.ones(96, dtype=torch.bool) for m in NAMES[:count]} | {"visual": ~hide}
    cls = registry.methods.get(name)

    class Masked(cls):
        def sample_view(self):
            return View(torch.arange(96), keep)

    trainer = make_trainer(data, Masked, epochs=2)
    looks = []
    original = trainer.strategy.loss

    def loss(output, batch):
        hidden = hide[batch.index]
        assert output.features["visual"][hidden].eq(0).all()
        assert output.features["visual"][~hidden].ne(0).any(1).all()
        assert output.features["audio"].ne(0).any(1).all()
        assert torch.equal(batch.keep["visual"], ~hidden)
        looks.append(len(batch))
        return original(output, batch)

    trainer.strategy.loss = loss  # type: ignore[method-assign]
    trainer.run()
    assert sum(looks) == 2 * 96
    plain = make_trainer(data, name, epochs=2)
    plain.run()
    assert state_digest(plain.strategy) != state_digest(trainer.strategy)


def test_a_hidden_sample_gives_its_encoder_no_gradient():
    keep = {"audio": torch.ones(96, dtype=torch.bool), "visual": torch.zeros(96, dtype=torch.bool)}

    class Masked(Strategy):
        name = "masked"

        def sample_view(self):
            return View(torch.arange(96), keep)

    trainer = make_trainer(tiny_bundle(2), Masked, optimizer={"momentum": 0, "weight_decay": 0})
    before = state_digest(trainer.strategy.model.encoders["visual"])
    audio = state_digest(trainer.strategy.model.encoders["audio"])
    run_steps(trainer, 3)
    assert state_digest(trainer.strategy.model.encoders["visual"]) == before
    assert state_digest(trainer.strategy.model.encoders["audio"]) != audio


# -- refusals ----------------------------------------------------------------------------------------------------------


def sentence(error) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert not re.search(r"[.!] [A-Z]", text), f"more than one sentence: {text}"
    return text


@methods
def test_the_number_of_modalities_is_checked(name):
    cls = registry.methods.get(name)
    options = cls.Options()
    names = [f"m{i}" for i in range(6)]
    assert cls.min_modalities >= 1
    for count in range(7):
        fits = count >= cls.min_modalities and (cls.max_modalities is None or count <= cls.max_modalities)
        if fits:
            cls.check(options, names[:count], additive=True)
        else:
            with pytest.raises(UserError, match=rf"{name} .*\b{count}\b"):
                cls.check(options, names[:count], additive=True)
    for count in (2, 3):
        cls.check(options, names[:count], additive=True)


def test_the_base_refuses_too_few_and_too_many():
    class Pair(Strategy):
        name = "pair"
        min_modalities = 2
        max_modalities = 2

    Pair.check(Pair.Options(), ["a", "b"], True)
    with pytest.raises(UserError) as error:
        Pair.check(Pair.Options(), ["a"], True)
    assert sentence(error) == "pair needs at least 2 modalities, found 1"
    with pytest.raises(UserError) as error:
        Pair.check(Pair.Options(), ["a", "b", "c"], True)
    assert sentence(error) == ("pair takes at most 2 modalities, found 3 (a, b, c): choose another method or dataset")


@pytest.mark.parametrize("fusion", ["sum", "film", "gated"])
@methods
def test_every_fusion_works_or_is_refused_before_training(name, fusion):
    cls = registry.methods.get(name)
    refusal = None
    try:
        cls.check(cls.Options(), list(NAMES[:2]), additive=fusion == "sum")
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert fusion != "sum"
        assert name in refusal
        return
    result, _ = train(tiny_bundle(2), name, fusion=fusion, epochs=2)
    assert np.isfinite(result["curves"][-1]["train"]["loss"])
    shares = [n for n in result["readings"]["last"]["test"] if n.startswith("share/")]
    alone = [n for n in result["readings"]["last"]["test"] if n.startswith("alone/")]
    assert not shares or fusion == "sum" or alone, "shares without an additive fusion or heads of the method's own"


@methods
def test_a_loss_that_is_not_finite_fails_the_run_in_one_sentence(name):
    data = tiny_bundle(2)
    broken = {m: torch.full_like(x, float("nan")) for m, x in data.train.inputs.items()}
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, inputs=broken))
    with pytest.raises(RunFailed) as error:
        train(data, name)
    assert "found nan" in sentence(error)
    assert name in sentence(error)


# -- what is written about it ------------------------------------------------------------------------------------------


@methods
def test_it_is_described(name):
    cls = registry.methods.get(name)
    assert issubclass(cls, Strategy)
    assert cls.name == name
    assert isinstance(cls.version, int)
    assert cls.version >= 1
    assert cls.family in FAMILIES
    assert len(cls.reference) > 20
    doc = vars(cls).get("__doc__") or ""
    assert len(doc) > 250, "what it does, its update, its defaults, its cost"
    assert "Cost" in doc


@methods
def test_every_option_has_a_meaning_and_a_source(name):
    cls = registry.methods.get(name)
    assert dataclasses.is_dataclass(cls.Options)
    for option, default, doc, source in cls.Options.describe():
        assert default is not dataclasses.MISSING, option
        assert len(doc) > 5, option
        assert len(source) >= 4, option
    built = cls.Options()
    assert cls.Options.build(name, built.as_dict()) == built
    assert json.loads(json.dumps(built.as_dict(), allow_nan=False)) == built.as_dict()
    with pytest.raises(UserError, match=f"{name} has no option 'no_such_option'"):
        cls.Options.build(name, {"no_such_option": 1})


@methods
def test_its_facts_are_json(name):
    for count in (2, 3):
        facts = reference(name, count).trainer.strategy.facts()
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_cross_entropy_of_the_base_is_the_joint_loss():
    trainer = make_trainer(tiny_bundle(2), "joint")
    batch = next(trainer.loader.train(0, NAMES[:2]))
    output = trainer.strategy(batch)
    assert torch.equal(trainer.strategy.loss(output, batch)[0], F.cross_entropy(output.logits, batch.target))
