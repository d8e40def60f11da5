"""The trainer: schedules, phases, readings, shared phases, freezing, checkpoints, evaluation."""

from __future__ import annotations

import copy
import json
import math
import re
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import registry
from balancebench_udi import runner
from balancebench_udi import trainer as trainer_module
from balancebench_udi.branches import BranchStrategy
from balancebench_udi.errors import RunFailed, UserError
from balancebench_udi.evaluation import Reading, compare_gradients, evaluate, fit_probes
from balancebench_udi.metrics.features import cka, fit_probe
from balancebench_udi.metrics.predictions import accuracy, calibration_error, unpack
from balancebench_udi.spec import Schedule
from balancebench_udi.store import Store
from balancebench_udi.strategy import Output, Phase, Strategy, View
from balancebench_udi.trainer import schedule_factor
from tests.helpers import make_trainer, run_steps, state_digest, tiny_bundle, train


class Plain(Strategy):
    """Joint training under a test's own name."""

    name = "plain"


class Twice(Plain):
    """A phase on everything, then one that freezes the audio encoder and the head's bias."""

    name = "twice"
    second: dict = {}

    def phase(self, index):
        phases = [
            Phase("all", self.task.epochs),
            Phase("rest", self.task.epochs, trainable=self.granted, **self.second),
        ]
        return phases[index] if index < 2 else None

    @staticmethod
    def granted(name):
        return not name.startswith("model.encoders.audio.") and name != "model.fusion.out.bias"


@pytest.fixture
def bundle():
    return tiny_bundle()


@pytest.fixture
def images():
    return tiny_bundle(kind="image", n=(48, 24, 24))


def tensors(module):
    return {n: v.clone() for n, v in module.state_dict().items()}


def moved(before, after):
    return {n for n in before if not torch.equal(before[n], after[n])}


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "epochs", "factor"),
    [(0, 100, 1), (69, 100, 1), (70, 100, 0.1), (99, 100, 0.1), (6, 10, 1), (7, 10, 0.1), (2, 3, 1), (3, 4, 0.1)],
)
def test_step_drops_once_at_its_share(epoch, epochs, factor):
    assert schedule_factor(Schedule(), epoch / epochs) == factor


@pytest.mark.parametrize("at", [0.1, 0.29, 0.3, 0.57, 0.58, 0.7, 0.9])
def test_step_is_exact_in_spite_of_rounding(at):
    drop = next(e for e in range(100) if schedule_factor(Schedule(at=at), e / 100) != 1)
    assert drop == round(100 * at)


@pytest.mark.parametrize(
    ("at", "epochs", "drops"), [(0.3333, 30, [10, 20]), (0.4, 100, [40, 80]), (0.1, 10, range(1, 10))]
)
def test_steps_drops_at_every_multiple(at, epochs, drops):
    schedule = Schedule(name="steps", at=at)
    for epoch in range(epochs):
        assert schedule_factor(schedule, epoch / epochs) == pytest.approx(0.1 ** sum(epoch >= d for d in drops))


def test_steps_needs_a_distance():
    with pytest.raises(UserError, match="at must be > 0 for the schedule steps, found 0"):
        Schedule(name="steps", at=0)


def test_cosine_and_constant():
    assert [schedule_factor(Schedule(name="constant"), p) for p in (0, 0.5, 0.99)] == [1, 1, 1]
    cosine = [schedule_factor(Schedule(name="cosine"), e / 8) for e in range(8)]
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * e / 8)) for e in range(8)])
    assert cosine[0] == 1
    assert cosine[4] == pytest.approx(0.5)


def test_every_phase_starts_its_own_schedule_and_its_own_optimizer(bundle):
    trainer = make_trainer(bundle, Twice, epochs=10, optimizer={"lr": 0.02})
    seen, optimizers = [], []

    def note(batch, logs):
        optimizer = trainer.task.optimizer
        if not optimizers or optimizers[-1] is not optimizer:
            optimizers.append(optimizer)
            assert all(len(s) <= 1 for s in optimizer.state.values())
        seen.append((trainer.task.phase.name, trainer.task.epoch, optimizer.param_groups[0]["lr"]))

    run_steps(trainer, 60, note)
    expected = [(p, e, 0.02 if e < 7 else 0.02 * 0.1) for p in ("all", "rest") for e in range(10) for _ in range(3)]
    assert [s[:2] for s in seen] == [s[:2] for s in expected]
    assert [s[2] for s in seen] == pytest.approx([s[2] for s in expected])
    assert len(optimizers) == 2


def test_the_curves_tell_phase_epoch_and_rate(bundle):
    result, _ = train(bundle, Twice, epochs=4)
    rows = [(c["phase"], c["epoch"], c["lr"]) for c in result["curves"]]
    assert rows == [(p, e, pytest.approx(0.05 if e < 3 else 0.005)) for p in ("all", "rest") for e in range(4)]
    assert all(set(c["train"]) == {"loss", "accuracy"} and "val" in c and "test" not in c for c in result["curves"])
    losses = [c["train"]["loss"] for c in result["curves"]]
    assert losses[3] < losses[0]


def test_the_training_curve_is_the_mean_over_samples(bundle):
    trainer = make_trainer(bundle, Plain, epochs=1, batch_size=40)  # batches of 40, 40, 16
    rows = []
    run_steps(trainer, 3, lambda batch, logs: rows.append((len(batch), float(logs["loss"]))))
    result, _ = train(bundle, Plain, epochs=1, batch_size=40)
    assert [n for n, _ in rows] == [40, 40, 16]
    expected = sum(n * loss for n, loss in rows) / 96
    assert result["curves"][0]["train"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_tick_follows_every_epoch(bundle):
    calls = []
    make_trainer(bundle, Twice, epochs=2, tick=lambda phase, steps: calls.append((phase, steps))).run()
    assert calls == [("all", 3), ("all", 3), ("rest", 3), ("rest", 3)]


def test_the_hooks_are_called_in_order(bundle):
    calls = []

    class Watched(Twice):
        def setup(self, task):
            super().setup(task)
            calls.append("setup")

        def begin_phase(self):
            assert self.task.optimizer.param_groups
            calls.append(f"begin {self.task.phase.name}")

        def end_phase(self):
            calls.append(f"end {self.task.phase.name}")

        def begin_epoch(self):
            assert self.training
            calls.append(f"epoch {self.task.epoch}")

        def end_epoch(self):
            calls.append("done")

        def step(self, batch):
            calls.append("step")
            return super().step(batch)

    train(bundle, Watched, epochs=2)
    epoch = ["step"] * 3 + ["done"]
    phases = [[f"begin {p}", "epoch 0", *epoch, "epoch 1", *epoch, f"end {p}"] for p in ("all", "rest")]
    assert calls == ["setup", *phases[0], *phases[1]]


@pytest.mark.parametrize(
    ("window", "epochs", "inside"),
    [
        ((0.0, 0.5), 100, range(51)),
        ((0.0, 0.5), 10, range(6)),
        ((0.0, 0.7), 10, range(8)),
        ((0.1, 0.3), 10, range(1, 4)),
        ((0.0, 1.0), 7, range(7)),
        ((0.0, 0.0), 5, range(1)),
        ((1.0, 1.0), 5, range(0)),
        ((0.29, 0.57), 100, range(29, 58)),
    ],
)
def test_a_window_holds_both_its_edges(bundle, window, epochs, inside):
    task = make_trainer(bundle, Plain, epochs=epochs).task
    assert [e for e in range(epochs) if task.within(window, e)] == list(inside)
    for task.epoch in range(epochs):
        assert task.within(window) == (task.epoch in inside)


# -- freezing ----------------------------------------------------------------------------------------------------------


def test_what_a_phase_denies_stands_still_with_its_buffers(images):
    states, checks = {}, []

    class Watched(Twice):
        def begin_phase(self):
            states["begin", self.task.phase.name] = tensors(self)

        def end_epoch(self):
            states["end", self.task.phase.name] = tensors(self)

        def step(self, batch):
            logs = super().step(batch)
            if self.task.phase.name == "rest":
                audio = self.model.encoders["audio"]
                assert not any(part.training for part in audio.modules())
                assert all(p.grad is None and not p.requires_grad for p in audio.parameters())
                held = {id(p) for g in self.task.optimizer.param_groups for p in g["params"]}
                assert held.isdisjoint({id(p) for p in audio.parameters()} | {id(self.model.fusion.out.bias)})
                assert len(held) == sum(1 for n, _ in self.named_parameters() if self.granted(n))
            else:
                assert all(part.training for part in self.modules())
            assert self.model.encoders["visual"].body[0].training
            assert self.model.fusion.training  # it holds something trainable
            checks.append(self.task.phase.name)
            return logs

    _, strategy = train(images, Watched, epochs=2, batch_size=16)
    assert checks == ["all"] * 6 + ["rest"] * 6
    everything = set(strategy.state_dict())
    assert moved(states["begin", "all"], states["end", "all"]) == everything
    frozen = {n for n in everything if not Twice.granted(n)}
    assert any("running_mean" in n for n in frozen)
    assert moved(states["begin", "rest"], states["end", "rest"]) == everything - frozen


def test_a_phase_on_one_modality_neither_pays_for_nor_moves_the_others(images):
    result, _ = train(images, "unimodal", epochs=2, batch_size=16)
    assert result["passes"] == {"forward": {"audio": 96, "visual": 96}, "backward": {"audio": 96, "visual": 96}}


def test_what_a_step_does_not_reach_stands_still_in_spite_of_momentum_and_decay(bundle):
    class InTurns(Strategy):
        name = "in_turns"
        turn = 0

        def loss(self, output, batch):
            m = self.task.modalities[self.turn % 2]
            return F.cross_entropy(output.features[m][:, :3], batch.target), {}

    trainer = make_trainer(bundle, InTurns, optimizer={"momentum": 0.9, "weight_decay": 0.1})
    strategy = trainer.strategy
    states = [tensors(strategy)]

    def note(batch, logs):
        states.append(tensors(strategy))
        strategy.turn += 1

    run_steps(trainer, 6, note)
    for i, m in enumerate(["audio", "visual"] * 3):
        assert {n.split(".")[2] for n in moved(states[i], states[i + 1])} == {m}


def test_a_phase_without_anything_to_train_is_refused(bundle):
    class Nothing(Twice):
        name = "nothing"

        @staticmethod
        def granted(name):
            return False

    with pytest.raises(UserError, match="phase rest of nothing must train some parameter, found none"):
        train(bundle, Nothing, epochs=1)


def test_a_phase_keeps_a_reading_that_exists(bundle):
    class Wrong(Twice):
        second = {"keep": "best"}

    with pytest.raises(UserError, match="phase rest must keep last or best_val, found 'best'"):
        train(bundle, Wrong, epochs=1)


def test_networks_of_the_methods_own_are_left_to_it(images):
    class Helped(Twice):
        def setup(self, task):
            super().setup(task)
            self.aux_net = nn.Sequential(nn.Linear(512, 3), nn.BatchNorm1d(3))

        def step(self, batch):
            held = {id(p) for g in self.task.optimizer.param_groups for p in g["params"]}
            assert held.isdisjoint(id(p) for p in self.aux_net.parameters())
            assert all(p.requires_grad for p in self.aux_net.parameters())
            assert all(part.training for part in self.aux_net.modules())
            return super().step(batch)

    trainer = make_trainer(images, Helped, epochs=1, batch_size=16)
    before = tensors(trainer.strategy.aux_net)
    trainer.run()
    assert not moved(before, tensors(trainer.strategy.aux_net))
    assert not any(n.startswith("aux_") for s in trainer.progress.snapshots for n in s["last"]["tensors"])


def test_hidden_modalities_count_as_zero_features(bundle):
    keep = {"audio": torch.arange(96) % 2 == 0, "visual": torch.arange(96) % 3 > 0}

    class Masked(Plain):
        def sample_view(self):
            return View(torch.arange(96), keep)

    trainer = make_trainer(bundle, Masked, schedule={"name": "constant"})
    twin = copy.deepcopy(trainer.strategy.model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    batches = run_steps(trainer, 5)
    for batch in batches:
        columns = []
        for m in ("audio", "visual"):
            assert torch.equal(batch.keep[m], keep[m][batch.index])
            columns.append(twin.encoders[m](batch.inputs[m]) * keep[m][batch.index].float()[:, None])
        optimizer.zero_grad()
        F.cross_entropy(twin.fusion.out(torch.cat(columns, 1)), batch.target).backward()
        optimizer.step()
    for p, q in zip(trainer.strategy.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    plain = make_trainer(bundle, Plain)
    run_steps(plain, 5)
    assert state_digest(plain.strategy) != state_digest(trainer.strategy)


def test_a_view_that_hides_nothing_changes_nothing(bundle):
    class Whole(Plain):
        def sample_view(self):
            return View(torch.arange(96), {m: torch.ones(96, dtype=torch.bool) for m in self.task.modalities})

    assert state_digest(train(bundle, Whole)[1]) == state_digest(train(bundle, Plain)[1])


# -- readings ----------------------------------------------------------------------------------------------------------


def scripted(monkeypatch, **scores):
    """Evaluation after each epoch gives the scripted accuracies; the one at the end stays real."""
    calls = dict.fromkeys(scores, 0)

    def fake(strategy, loader, split, modalities, subsets=False, probes=None):
        if subsets:
            return evaluate(strategy, loader, split, modalities, subsets)
        calls[split] += 1
        return Reading({"accuracy": scores[split][calls[split] - 1], "loss": 0.0}, {})

    monkeypatch.setattr(trainer_module, "evaluate", fake)
    return calls


def history(trainer):
    """Weights after every epoch, filled as the trainer runs."""
    kept = []
    trainer.tick = lambda phase, steps: kept.append(tensors(trainer.strategy))
    return kept


def test_readings_are_the_epochs_they_say(bundle, monkeypatch):
    trainer = make_trainer(bundle, Plain, epochs=5, test_each_epoch=True)
    calls = scripted(monkeypatch, val=[0.1, 0.6, 0.5, 0.6, 0.2], test=[0.3, 0.1, 0.2, 0.9, 0.9])
    weights = history(trainer)
    readings = trainer.run()["result"]["readings"]
    assert calls == {"val": 5, "test": 5}
    assert {r: readings[r]["epochs"] for r in readings} == {"last": [4], "best_val": [1], "best_test": [3]}
    for reading, epoch in (("last", 4), ("best_val", 1), ("best_test", 3)):
        trainer.strategy.load_state_dict(weights[epoch])
        for split in ("val", "test"):
            found = evaluate(trainer.strategy, trainer.loader, split, ["audio", "visual"], subsets=True)
            assert readings[reading][split] == found.scores
        for name, values in found.predicted.items():
            assert torch.equal(unpack(readings[reading]["predictions"][name]), values)


def test_the_test_split_is_read_each_epoch_only_where_asked(bundle):
    result, _ = train(bundle, Plain)
    assert set(result["readings"]) == {"last", "best_val"}
    result, _ = train(bundle, Plain, test_each_epoch=True)
    assert set(result["readings"]) == {"last", "best_val", "best_test"}
    assert all("test" in c for c in result["curves"])
    best = max(c["test"]["accuracy"] for c in result["curves"])
    assert result["readings"]["best_test"]["test"]["accuracy"] == best


def test_reading_test_each_epoch_does_not_change_the_training(bundle):
    plain, watched = (train(bundle, Plain, test_each_epoch=t)[0] for t in (False, True))
    for reading in ("last", "best_val"):
        assert plain["readings"][reading] == watched["readings"][reading]


def test_equal_readings_agree(bundle, monkeypatch):
    trainer = make_trainer(bundle, Plain, epochs=3)
    scripted(monkeypatch, val=[0.1, 0.2, 0.3])
    readings = trainer.run()["result"]["readings"]
    assert readings["last"] == readings["best_val"]
    assert readings["last"]["epochs"] == [2]


@pytest.mark.parametrize("keep", ["last", "best_val"])
def test_the_next_phase_stands_on_the_kept_weights(bundle, monkeypatch, keep):
    starts = []

    class Kept(Twice):
        def phase(self, index):
            return [Phase("all", 3, keep=keep), Phase("rest", 3, trainable=self.granted), None][index]

        def end_phase(self):
            starts.append(tensors(self))

    trainer = make_trainer(bundle, Kept)
    scripted(monkeypatch, val=[0.5, 0.9, 0.1, 0.1, 0.2, 0.8])
    weights = history(trainer)
    trainer.run()
    assert not moved(starts[0], weights[2 if keep == "last" else 1])
    assert not moved(starts[1], weights[5])


def test_a_reading_is_assembled_from_every_phase(bundle, monkeypatch):
    trainer = make_trainer(bundle, "ensemble", {"checkpoint": "last"}, epochs=3)
    scripted(monkeypatch, val=[0.1, 0.9, 0.2, 0.7, 0.1, 0.3])  # best epochs: 1 for audio, 0 for visual
    weights = history(trainer)
    result = trainer.run()["result"]
    assert result["readings"]["best_val"]["epochs"] == [1, 0]
    assert result["readings"]["last"]["epochs"] == [2, 2]
    encoders = [{n.split(".")[2] for n in s["last"]["tensors"] if "encoders" in n} for s in trainer.progress.snapshots]
    assert encoders == [{"audio"}, {"visual"}]
    for reading, (audio, visual) in (("best_val", (1, 3)), ("last", (2, 5))):
        assembled = {n: weights[visual if ".visual." in n else audio][n] for n in weights[0]}
        trainer.strategy.load_state_dict(assembled)
        found = evaluate(trainer.strategy, trainer.loader, "test", ["audio", "visual"], subsets=True)
        assert result["readings"][reading]["test"] == found.scores


@pytest.mark.parametrize("keep", ["last", "best_val"])
def test_of_a_chain_only_the_last_phase_is_read_at_several_epochs(bundle, monkeypatch, keep):
    """What the last phase was trained on is what it is read with: no composite that never existed is scored."""

    class Chain(Twice):
        def phase(self, index):
            return [Phase("all", 3, keep=keep), Phase("rest", 3, trainable=self.granted), None][index]

    trainer = make_trainer(bundle, Chain)
    scripted(monkeypatch, val=[0.5, 0.9, 0.1, 0.1, 0.8, 0.2])
    weights = history(trainer)
    readings = trainer.run()["result"]["readings"]
    handed = 2 if keep == "last" else 1
    assert {r: readings[r]["epochs"] for r in readings} == {"last": [handed, 2], "best_val": [handed, 1]}
    for reading, row in (("last", 5), ("best_val", 4)):
        trainer.strategy.load_state_dict(weights[row])
        found = evaluate(trainer.strategy, trainer.loader, "test", ["audio", "visual"], subsets=True)
        assert readings[reading]["test"] == found.scores
        kept = trainer.weights()[reading]
        assert all(torch.equal(value, weights[row][n]) for n, value in kept.items())


def test_a_snapshot_holds_what_its_phase_trains(images):
    trainer = make_trainer(images, Twice, epochs=1, batch_size=16)
    trainer.run()
    first, second = (set(s["last"]["tensors"]) for s in trainer.progress.snapshots)
    everything = set(trainer.strategy.state_dict())
    assert first == everything
    assert second == {n for n in everything if Twice.granted(n)}


def test_the_number_of_parameters_counts_what_was_trained(bundle):
    joint, _ = train(bundle, "joint", epochs=1)
    encoders = (12 * 16 + 16 + 16 * 16 + 16) + (10 * 16 + 16 + 16 * 16 + 16)
    assert joint["parameters"] == encoders + 32 * 3 + 3
    unimodal, _ = train(bundle, "unimodal", epochs=1)
    assert unimodal["parameters"] == encoders + 2 * (16 * 3 + 3)  # the fusion is not trained


def test_the_result_is_json_and_complete(bundle):
    result, _ = train(bundle, "uniform", epochs=2)
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again == result
    assert torch.equal(unpack(result["test_target"]), bundle.test.target)
    assert result["modalities"] == ["audio", "visual"]
    names = {"fused", "share/audio", "share/visual", "alone/audio", "alone/visual"}
    names |= {"masked/none", "masked/audio", "masked/visual", "masked/audio+visual"}
    names |= {"probe/audio", "probe/visual"}
    assert set(result["readings"]["last"]["predictions"]) == names


# -- patience ----------------------------------------------------------------------------------------------------------


class Patient(Twice):
    """Stops its first phase, and its second one, after two epochs without a better score."""

    name = "patient"
    wait: int | None = 2

    def phase(self, index):
        phases = [
            Phase("all", self.task.epochs, keep="best_val", patience=self.wait),
            Phase("rest", self.task.epochs, trainable=self.granted, patience=self.wait),
        ]
        return phases[index] if index < 2 else None


SCORES = [0.5, 0.4, 0.6, 0.6, 0.5, 0.3, 0.4, 0.2, 0.4]  # best at 2, over after 4; then best at 1, over after 3


def test_patience_ends_a_phase(bundle, monkeypatch):
    trainer = make_trainer(bundle, Patient, epochs=8)
    calls = scripted(monkeypatch, val=SCORES)
    weights, ends = history(trainer), []
    trainer.strategy.end_phase = lambda: ends.append(tensors(trainer.strategy))
    result = trainer.run()["result"]
    assert calls == {"val": 9}
    rows = [(c["phase"], c["epoch"]) for c in result["curves"]]
    assert rows == [("all", e) for e in range(5)] + [("rest", e) for e in range(4)]
    assert [c["lr"] for c in result["curves"]] == [0.05] * 9  # of 8 planned epochs, none is beyond 0.7
    assert result["readings"]["last"]["epochs"] == [2, 3]
    assert result["readings"]["best_val"]["epochs"] == [2, 1]
    assert not moved(ends[0], weights[2])
    last = trainer.progress.snapshots[0]["last"]["tensors"]
    assert not moved(last, {n: weights[4][n] for n in last})


def test_patience_counts_from_the_best_epoch_and_not_beyond_the_plan(bundle, monkeypatch):
    class Once(Plain):
        def phase(self, index):
            return Phase("all", self.task.epochs, patience=1) if index == 0 else None

    scripted(monkeypatch, val=[0.1, 0.2, 0.3, 0.4])
    assert len(train(bundle, Once, epochs=4)[0]["curves"]) == 4
    scripted(monkeypatch, val=[0.4, 0.4])  # as good is not better
    assert len(train(bundle, Once, epochs=4)[0]["curves"]) == 2


@pytest.mark.parametrize("done", range(1, 9))
def test_a_patient_run_resumes_wherever_it_stopped(bundle, tmp_path, monkeypatch, done):
    """Killed right after an epoch's checkpoint or the end of a phase, or in the middle of the epoch that follows."""
    scripted(monkeypatch, val=SCORES)
    whole = make_trainer(bundle, Patient, epochs=8)
    expected = whole.run()["result"]
    calls = scripted(monkeypatch, val=SCORES)
    store = Store(tmp_path)
    run_steps(make_trainer(bundle, Patient, store=store, epochs=8), 3 * done + 1)
    again = make_trainer(bundle, Patient, store=store, epochs=8)
    resumed = []
    again.tick = lambda phase, steps: resumed.append((phase, steps))
    saved = 4 if done == 5 else done  # no checkpoint follows the last epoch of a phase: it is trained again
    calls["val"] = saved
    assert json.dumps(again.run()["result"], sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert resumed[0] == ("resumed", 3 * saved)
    assert state_digest(again.strategy) == state_digest(whole.strategy)


def test_wall_seconds_are_those_of_all_processes(bundle, tmp_path):
    store = Store(tmp_path)
    first = make_trainer(bundle, "joint", store=store, epochs=3)
    first._begun -= 1000
    run_steps(first, 4)
    again = make_trainer(bundle, "joint", store=store, epochs=3)
    assert again.wall_seconds() < 1000
    again.run()
    assert 1000 < again.wall_seconds() < 1100


def test_a_checkpoint_after_patience_ran_out_trains_no_further(bundle, tmp_path, monkeypatch):
    """As a run with a longer patience leaves it: the phase is over as soon as it is entered."""

    class Longer(Patient):
        wait = 3

    store = Store(tmp_path)
    scripted(monkeypatch, val=SCORES)
    run_steps(make_trainer(bundle, Longer, store=store, epochs=8), 16)  # five epochs and a step
    calls = scripted(monkeypatch, val=SCORES[5:])
    result = make_trainer(bundle, Patient, store=store, epochs=8).run()["result"]
    assert [c["phase"] for c in result["curves"]] == ["all"] * 5 + ["rest"] * 4
    assert calls == {"val": 4}
    assert result["readings"]["last"]["epochs"] == [2, 3]


def test_a_phase_refuses_a_patience_of_nothing():
    with pytest.raises(UserError, match=r"^phase all must have a patience of at least 1 epoch, found 0$"):
        Phase("all", 3, patience=0)


def test_a_shared_patient_phase_is_reused_as_it_was(bundle, tmp_path):
    class Branches(BranchStrategy):
        name = "branches"
        patience = 2

    train(bundle, "unimodal", store=Store(tmp_path), epochs=8)
    alone, _ = train(bundle, Branches, epochs=8)
    assert len(alone["curves"]) < 16
    for reused in (False, True):
        trainer = make_trainer(bundle, Branches, store=Store(tmp_path), epochs=8)
        result = trainer.run()["result"]
        assert [c["reused_from"] is not None for c in trainer.progress.costs] == [reused, reused]
        assert json.dumps(result, sort_keys=True) == json.dumps(alone, sort_keys=True)
        trainer.store.checkpoint_path(trainer.spec).unlink(missing_ok=True)


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1025])
def test_evaluation_covers_every_sample(count):
    bundle = tiny_bundle(n=(32, 16, count))
    trainer = make_trainer(bundle, "uniform", epochs=1)
    found = evaluate(trainer.strategy, trainer.loader, "test", ["audio", "visual"], subsets=True)
    assert {len(p) for p in found.predicted.values()} == {count}
    trainer.strategy.eval()
    with torch.no_grad():
        output = trainer.strategy.predict(bundle.test.inputs)
    logits = {"fused": output.logits, **{f"alone/{m}": z for m, z in output.unimodal.items()}}
    for name, z in logits.items():
        score = found.scores["accuracy" if name == "fused" else name]
        assert score == pytest.approx(accuracy(z.argmax(1), bundle.test.target), abs=2 / count)  # ties of rounding
    assert found.scores["loss"] == pytest.approx(F.cross_entropy(output.logits, bundle.test.target).item(), rel=1e-4)


def test_evaluation_leaves_no_trace(images):
    trainer = make_trainer(images, "uniform")
    strategy = trainer.strategy
    strategy.train()
    strategy.model.encoders["audio"].eval()
    modes = [part.training for part in strategy.modules()]
    before, stream = state_digest(strategy), torch.get_rng_state()
    evaluate(strategy, trainer.loader, "val", ["audio", "visual"], subsets=True)
    assert state_digest(strategy) == before
    assert [part.training for part in strategy.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    assert strategy.model.passes.forward == {"audio": 0, "visual": 0}
    assert strategy.model.passes.counting
    assert all(p.grad is None for p in strategy.parameters())


def test_calibration_top_5_and_discrepancy_are_those_of_the_logits():
    bundle = tiny_bundle(classes=7)
    trainer = make_trainer(bundle, "uniform", epochs=2)
    trainer.run()
    found = evaluate(trainer.strategy, trainer.loader, "test", ["audio", "visual"]).scores
    trainer.strategy.eval()
    with torch.no_grad():
        output = trainer.strategy.predict(bundle.test.inputs)
    p, y = output.logits.softmax(1), bundle.test.target
    assert found["ece"] == pytest.approx(calibration_error(p.amax(1), p.argmax(1) == y), abs=1e-6)
    assert found["top5"] == sum(int(t in row.argsort(descending=True)[:5]) for t, row in zip(y, p, strict=True)) / 40
    sure = {m: z.softmax(1)[torch.arange(40), y].sum().item() for m, z in output.unimodal.items()}
    assert found["discrepancy/audio"] == pytest.approx(sure["audio"] / sure["visual"], rel=1e-4)
    few = make_trainer(tiny_bundle(), Plain)
    assert "top5" not in evaluate(few.strategy, few.loader, "test", ["audio", "visual"]).scores


def test_the_probe_reads_the_encoder_and_not_the_head(bundle):
    trainer = make_trainer(bundle, Plain, epochs=8)
    result = trainer.run()["result"]["readings"]["best_val"]  # whose weights the strategy is left with
    for split, count in (("val", 32), ("test", 40)):
        x = {s: trainer.loader.bundle.split(s) for s in ("train", split)}
        model = trainer.strategy.model.eval()
        with torch.no_grad():
            f = {s: model.encode(x[s].inputs)["audio"] for s in x}
        right = fit_probe(f["train"], x["train"].target, 3)(f[split]).argmax(1) == x[split].target
        assert result[split]["probe/audio"] == pytest.approx(right.double().mean().item(), abs=1.5 / count)
    told = unpack(result["predictions"]["probe/audio"])
    assert accuracy(told, bundle.test.target) == result["test"]["probe/audio"]
    assert result["test"]["cka/audio+visual"] == pytest.approx(
        cka(*(model.encode(bundle.test.inputs)[m].detach() for m in ("audio", "visual"))), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["vector", "image"])
@pytest.mark.parametrize("most", [None, 1000])
def test_gradients_are_compared_as_plain_autograd_does(kind, most, monkeypatch):
    """Also where the samples come in several batches, to save memory."""
    if most is not None:
        monkeypatch.setattr("balancebench_udi.data.loader.EVALUATION_BYTES", {"cpu": most})
    bundle = tiny_bundle(kind=kind)
    trainer = make_trainer(bundle, "uniform", epochs=1)
    trainer.strategy.train()
    strategy = trainer.strategy
    before, stream = state_digest(strategy), torch.get_rng_state()
    found = compare_gradients(strategy, trainer.loader, ["audio", "visual"], 32)
    assert state_digest(strategy) == before
    assert torch.equal(torch.get_rng_state(), stream)
    assert strategy.model.passes.forward == {"audio": 0, "visual": 0}
    assert all(p.grad is None for p in strategy.parameters())
    rows = torch.arange(0, 96, 3)
    strategy.eval()
    output = strategy.predict({m: x[rows] for m, x in bundle.train.inputs.items()})
    y = bundle.train.target[rows]
    for m in ("audio", "visual"):
        flat = []
        for z in (output.logits, strategy.heads[m](output.features[m])):
            strategy.zero_grad()
            F.cross_entropy(z, y).backward(retain_graph=True)
            flat.append(torch.cat([p.grad.flatten().clone() for p in strategy.model.encoders[m].parameters()]))
        assert found[f"norm_ratio/{m}"] == pytest.approx((flat[0].norm() / flat[1].norm()).item(), rel=1e-4)
        assert found[f"cosine/{m}"] == pytest.approx(torch.cosine_similarity(*flat, dim=0).item(), abs=1e-4)


@pytest.mark.parametrize("most", [7, 95, 96, 97])
def test_probes_of_a_large_split_take_evenly_spaced_samples(bundle, monkeypatch, most):
    trainer = make_trainer(bundle, Plain)
    monkeypatch.setattr("balancebench_udi.evaluation.PROBE_SAMPLES", most)
    found = fit_probes(trainer.strategy, trainer.loader, ["audio"])["audio"]
    rows = [i * 96 // min(most, 96) for i in range(min(most, 96))]
    with torch.no_grad():
        features = trainer.strategy.model.eval().encode(bundle.train.inputs)["audio"]
    wanted = fit_probe(features[rows], bundle.train.target[rows], 3)
    assert torch.allclose(found(features), wanted(features), atol=1e-3)


@pytest.mark.parametrize(("train", "batch", "samples"), [(96, 32, 8), (400, 32, 20), (2000, 32, 32)])
def test_gradients_are_compared_on_a_batch_or_a_twentieth_of_the_data(train, batch, samples):
    trainer = make_trainer(tiny_bundle(n=(train, 32, 40)), Plain, batch_size=batch)
    assert trainer._compared() == samples


@pytest.mark.parametrize(("seconds", "steps"), [(0.1, 2), (1.5, 2), (3.0, 1)])
def test_an_estimate_takes_two_steps_or_a_long_one_after_one_of_two_samples(bundle, monkeypatch, seconds, steps):
    clock = types.SimpleNamespace(perf_counter=lambda: clock.now, now=0.0)
    sizes = []

    def step(self, batch):
        sizes.append(len(batch))
        clock.now += seconds if len(sizes) > 1 else 10.0  # the first one prepares kernels
        return {"loss": torch.zeros(())}

    monkeypatch.setattr(runner, "time", clock)
    monkeypatch.setattr(runner.Strategy, "step", step)
    trainer = make_trainer(bundle, "joint")
    job = runner.Job(trainer.spec, registry.methods.get("joint"), trainer.strategy.options, bundle)
    assert runner._probe(job, torch.device("cpu")) == pytest.approx(seconds * trainer.task.steps_per_epoch)
    assert sizes == [2] + [trainer.spec.batch_size] * steps


def test_gradients_are_compared_where_there_is_something_to_compare(bundle):
    trainer = make_trainer(bundle, Plain, epochs=2)
    assert compare_gradients(trainer.strategy, trainer.loader, ["audio"], 8) == {}
    trainer.strategy.model.encoders["audio"].requires_grad_(False)
    found = compare_gradients(trainer.strategy, trainer.loader, ["audio", "visual"], 8)
    assert set(found) == {"norm_ratio/visual", "cosine/visual"}
    gated, _ = train(bundle, Plain, epochs=2, fusion="gated")
    assert all("gradients" not in entry for entry in gated["curves"])  # no logits of a modality's own
    joint, _ = train(bundle, Plain, epochs=2)
    assert all(set(entry["gradients"]) >= found.keys() for entry in joint["curves"])
    alone, _ = train(bundle, "ensemble", epochs=2)
    assert all("gradients" not in entry for entry in alone["curves"])


@pytest.mark.parametrize("method", ["joint", "unimodal", "udi"])
def test_weights_that_were_kept_say_what_the_record_says(bundle, method):
    trainer = make_trainer(bundle, method, epochs=3)
    readings = trainer.run()["result"]["readings"]
    kept = trainer.weights()
    assert set(kept) == {"last", "best_val"}
    for reading, tensors in kept.items():
        fresh = make_trainer(bundle, method, epochs=3)
        fresh.restore(tensors)
        found = evaluate(fresh.strategy, fresh.loader, "test", ["audio", "visual"], subsets=True)
        assert found.scores == {k: v for k, v in readings[reading]["test"].items() if not k.startswith("probe")}


def test_whoever_watches_sees_every_entry_of_the_curves(bundle, tmp_path):
    seen = []
    trainer = make_trainer(bundle, "ensemble", store=tmp_path, epochs=2)
    trainer.watch = seen.append
    assert trainer.run()["result"]["curves"] == seen
    again = []
    trainer.store.checkpoint_path(trainer.spec).unlink()
    trainer = make_trainer(bundle, "ensemble", store=tmp_path, epochs=2)  # takes the phases of the first one
    trainer.watch = again.append
    assert trainer.run()["result"]["curves"] == again == seen
    assert all(cost["reused_from"] for cost in trainer.progress.costs)
    resumed = []
    trainer.store.stage_path(trainer.spec.stage_key("alone/visual")).unlink()
    trainer = make_trainer(bundle, "ensemble", store=tmp_path, epochs=2)
    trainer.watch = resumed.append
    assert trainer.run()["result"]["curves"] == resumed == seen


def test_the_masked_read_out_zeroes_the_other_features(bundle):
    trainer = make_trainer(bundle, Plain, epochs=1)
    trainer.run()
    found = evaluate(trainer.strategy, trainer.loader, "test", ["audio", "visual"], subsets=True)
    model = trainer.strategy.model.eval()
    with torch.no_grad():
        features = model.encode(bundle.test.inputs)
        weight, bias = model.fusion.out.weight, model.fusion.out.bias
        audio, visual = features["audio"] @ weight[:, :16].T, features["visual"] @ weight[:, 16:].T
    expected = {
        "masked/none": bias.expand_as(audio),
        "masked/audio": audio + bias,
        "masked/visual": visual + bias,
        "masked/audio+visual": audio + visual + bias,
        "share/audio": audio + bias / 2,
        "share/visual": visual + bias / 2,
    }
    for name, z in expected.items():
        assert torch.equal(found.predicted[name], z.argmax(1)), name
    assert found.scores["shapley/audio"] + found.scores["shapley/visual"] == pytest.approx(
        found.scores["accuracy"] - found.scores["masked/none"]
    )


def test_a_method_cannot_ask_for_the_test_split(bundle):
    task = make_trainer(bundle, Plain).task
    for ask in (lambda: task.target("test"), lambda: task.collect(lambda b: b.target, "test")):
        with pytest.raises(UserError, match="a method may read the splits train and val, found 'test'"):
            ask()
    assert torch.equal(task.target("val"), bundle.val.target)
    with pytest.raises(KeyError):  # nor by what it asks with
        task._loader.target("test")
    assert task._loader.bundle.test is None
    assert "test" not in task._loader.splits


def test_collect_runs_in_order_in_eval_mode_over_everything(images):
    trainer = make_trainer(images, Plain)
    strategy, task = trainer.strategy, trainer.task
    strategy.train()

    def probe(batch):
        assert not torch.is_grad_enabled()
        assert not any(part.training for part in strategy.modules())
        return {"index": batch.index, "target": batch.target}

    before = state_digest(strategy)
    found = task.collect(probe, "train")
    assert found["index"].tolist() == list(range(48))
    assert torch.equal(found["target"], images.train.target)
    assert strategy.training
    assert state_digest(strategy) == before
    rows = task.collect(lambda b: b.index, "val", torch.tensor([3, 1]), ["visual"])
    assert rows.tolist() == [3, 1]


# -- randomness --------------------------------------------------------------------------------------------------------


class Dice(Plain):
    """Notes what torch's global stream gives in every step."""

    name = "dice"

    def setup(self, task):
        super().setup(task)
        self.rolls = []

    def phase(self, index):
        return Phase(f"p{index}", self.task.epochs) if index < 2 else None

    def step(self, batch):
        self.rolls.append(torch.rand(()).item())
        return super().step(batch)


def test_the_global_stream_follows_from_seed_phase_and_epoch(bundle):
    rolls = []
    for noise, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(noise)
        rolls.append(train(bundle, Dice, epochs=2, seed=seed)[1].rolls)
    assert rolls[0] == rolls[1]
    assert len(set(rolls[0]) | set(rolls[2])) == 2 * len(rolls[0]) == 24


def test_a_method_that_uses_the_global_stream_resumes_all_the_same(bundle, tmp_path):
    whole = train(bundle, Dice, epochs=3)[1].rolls
    store = Store(tmp_path)
    first = make_trainer(bundle, Dice, store=store, epochs=3)
    run_steps(first, 13)  # into the second epoch of the second phase
    torch.manual_seed(99)
    second = make_trainer(bundle, Dice, store=store, epochs=3)
    second.run()
    assert second.strategy.rolls == whole[12:]


# -- phases shared between methods -------------------------------------------------------------------------------------


def comparable(result):
    return json.dumps(result, sort_keys=True)


def test_a_shared_phase_gives_what_training_gives(bundle, tmp_path):
    alone, strategy = train(bundle, "ensemble")
    store = Store(tmp_path)
    train(bundle, "unimodal", store=store)
    assert len(list((tmp_path / "stages").iterdir())) == 2
    reused = make_trainer(bundle, "ensemble", store=store)
    reused.strategy.step = None  # a step would fail
    outcome = reused.run()
    assert comparable(outcome["result"]) == comparable(alone)
    assert state_digest(reused.strategy) == state_digest(strategy)
    source = make_trainer(bundle, "unimodal").spec.key
    assert [c["reused_from"] for c in outcome["cost"]["phases"]] == [source, source]
    assert [c["phase"] for c in outcome["cost"]["phases"]] == ["alone/audio", "alone/visual"]
    assert all(c["seconds"] > 0 for c in outcome["cost"]["phases"])  # what it would have cost


def test_a_shared_phase_leaves_no_trace_of_who_trained_it(bundle, tmp_path):
    class Probing(BranchStrategy):
        """Has no shares, and looks at the training split at the end of every phase."""

        name = "probing"

        def shares(self, features):
            return None

        def end_phase(self):
            (m,) = self.task.phase.modalities
            self.task.collect(lambda batch: self.branch(m, batch.inputs)[1], "train", modalities=(m,))

    alone, _ = train(bundle, Probing)
    assert alone["passes"]["forward"] == {"audio": 5 * 96, "visual": 5 * 96}
    train(bundle, "ensemble", store=Store(tmp_path))
    reused = make_trainer(bundle, Probing, store=Store(tmp_path))
    result = reused.run()["result"]
    assert all(c["reused_from"] for c in reused.progress.costs)
    assert result["passes"] == alone["passes"]
    assert comparable(result) == comparable(alone)


def test_a_shared_phase_serves_another_checkpoint_rule(bundle, tmp_path):
    alone, _ = train(bundle, "ensemble", {"checkpoint": "last"})
    train(bundle, "unimodal", {"checkpoint": "best_val"}, store=Store(tmp_path))
    reused = make_trainer(bundle, "ensemble", {"checkpoint": "last"}, store=Store(tmp_path))
    reused.strategy.step = None
    assert comparable(reused.run()["result"]) == comparable(alone)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 3}, {"batch_size": 16}, {"optimizer": {"lr": 0.01}}, {"test_each_epoch": True}],
)
def test_a_phase_of_another_specification_is_not_reused(bundle, tmp_path, change):
    train(bundle, "unimodal", store=Store(tmp_path))
    outcome = make_trainer(bundle, "ensemble", store=Store(tmp_path), **change).run()
    assert [c["reused_from"] for c in outcome["cost"]["phases"]] == [None, None]


def test_a_damaged_shared_phase_is_trained_again(bundle, tmp_path):
    alone, _ = train(bundle, "ensemble")
    train(bundle, "unimodal", store=Store(tmp_path))
    for path in (tmp_path / "stages").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    outcome = make_trainer(bundle, "ensemble", store=Store(tmp_path)).run()
    assert comparable(outcome["result"]) == comparable(alone)
    assert [c["reused_from"] for c in outcome["cost"]["phases"]] == [None, None]
    again = make_trainer(bundle, "ensemble", {"checkpoint": "last"}, store=Store(tmp_path)).run()
    assert all(c["reused_from"] for c in again["cost"]["phases"])


def test_without_a_store_nothing_is_shared(bundle):
    outcome = make_trainer(bundle, "ensemble").run()
    assert [c["reused_from"] for c in outcome["cost"]["phases"]] == [None, None]


def test_a_reused_phase_moves_the_progress_as_a_trained_one(bundle, tmp_path):
    ticks = {}
    for name in ("unimodal", "ensemble"):
        total = []
        trainer = make_trainer(bundle, name, store=Store(tmp_path), tick=lambda phase, n, total=total: total.append(n))
        trainer.run()
        ticks[name] = total
    assert sum(ticks["unimodal"]) == sum(ticks["ensemble"]) == 2 * 4 * 3
    assert len(ticks["ensemble"]) == 2


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_checkpoints_are_as_rare_as_asked(bundle, tmp_path):
    trainer = make_trainer(bundle, Plain, store=Store(tmp_path), checkpoint_every=1000.0)
    trainer.run()
    assert not trainer.store.checkpoint_path(trainer.spec).exists()
    trainer = make_trainer(bundle, Plain, store=Store(tmp_path), checkpoint_every=0.0)
    trainer.run()
    assert trainer.store.checkpoint_path(trainer.spec).exists()


def test_a_resumed_run_trains_only_what_is_left(bundle, tmp_path):
    store = Store(tmp_path)
    run_steps(make_trainer(bundle, Plain, store=store, epochs=5), 8)  # two epochs and two steps
    ticks = []
    trainer = make_trainer(bundle, Plain, store=store, epochs=5, tick=lambda phase, n: ticks.append((phase, n)))
    trainer.run()
    assert [n for _, n in ticks] == [6, 3, 3, 3]
    assert [phase for phase, _ in ticks].count("resumed") == 1


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" * 50])
def test_a_damaged_checkpoint_starts_the_run_again(bundle, tmp_path, damage):
    whole, strategy = train(bundle, Plain)
    store = Store(tmp_path)
    first = make_trainer(bundle, Plain, store=store)
    run_steps(first, 7)
    path = store.checkpoint_path(first.spec)
    path.write_bytes(damage(path.read_bytes()))
    again = make_trainer(bundle, Plain, store=store)
    assert comparable(again.run()["result"]) == comparable(whole)
    assert state_digest(again.strategy) == state_digest(strategy)


def test_the_checkpoint_of_another_run_is_not_taken(bundle, tmp_path):
    store = Store(tmp_path)
    run_steps(make_trainer(bundle, Plain, store=store, seed=1), 8)
    ticks = []
    make_trainer(bundle, Plain, store=store, seed=0, tick=lambda phase, n: ticks.append(phase)).run()
    assert "resumed" not in ticks


# -- failures ----------------------------------------------------------------------------------------------------------


class Diverging(Plain):
    """Its loss is not finite from the second epoch on."""

    name = "diverging"
    bad = float("nan")

    def loss(self, output, batch):
        value = F.cross_entropy(output.logits, batch.target)
        return (value * self.bad if self.task.epoch == 1 else value), {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_in_one_sentence(bundle, bad):
    class Bad(Diverging):
        pass

    Bad.bad = bad
    with pytest.raises(RunFailed) as error:
        train(bundle, Bad)
    text = str(error.value)
    assert re.match(r"the training loss must stay finite, found (nan|inf) in epoch 1 of phase \w+ ", text)
    assert "(diverging, seed 0)" in text
    assert "lower optimizer.lr (now 0.05)" in text
    assert "\n" not in text
    assert ". " not in text


def test_scores_that_are_not_finite_end_the_run_in_one_sentence(bundle):
    class Late(Plain):
        name = "late"

        def end_epoch(self):
            if self.task.epoch == 3:
                self.model.fusion.out.weight.data.fill_(float("nan"))

    with pytest.raises(RunFailed) as error:
        train(bundle, Late)
    text = str(error.value)
    assert text.startswith("scores must be finite, found {")
    assert "late, seed 0: lower optimizer.lr" in text
    assert "\n" not in text


def test_a_logged_value_that_is_not_finite_never_reaches_the_record(bundle):
    class Chatty(Plain):
        def loss(self, output, batch):
            loss, _ = super().loss(output, batch)
            return loss, {"k": torch.tensor(float("nan"))}

    with pytest.raises(RunFailed, match=r"\bk\b"):
        train(bundle, Chatty)


def test_output_is_what_predict_gives(bundle):
    trainer = make_trainer(bundle, "uniform")
    trainer.strategy.eval()
    output = trainer.strategy.predict(bundle.val.inputs)
    assert isinstance(output, Output)
    assert output.logits.shape == (32, 3)
    assert {m: f.shape for m, f in output.features.items()} == {"audio": (32, 16), "visual": (32, 16)}
    assert {m: z.shape for m, z in output.unimodal.items()} == {"audio": (32, 3), "visual": (32, 3)}


def test_a_checkpoint_of_other_code_starts_the_run_again(bundle, tmp_path):
    class Before(Plain):
        pass

    class After(Plain):
        def setup(self, task):
            super().setup(task)
            self.register_buffer("more", torch.zeros(2))

    alone, _ = train(bundle, After)
    store = Store(tmp_path)
    first = make_trainer(bundle, Before, store=store)
    run_steps(first, 4)  # one epoch, its checkpoint, and a step of the next
    again = make_trainer(bundle, After, store=store)
    assert again.spec.key == first.spec.key
    assert store.checkpoint_path(again.spec).exists()
    assert comparable(again.run()["result"]) == comparable(alone)
