"""UDI against an independent float64 loop written from its paper's equations, and its invariants.

Bugs planted to see a test here, or a unit test of its parts, fail: the anchor in train mode, or trained along; CLUB
conditioned the wrong way round, in the bound and in q's fit; KL(m || p) in the place of KL(p || m); the positive part
left out of the weights; the two weights exchanged; the head left out of the inner product; the follower's own loss for
the fused one, and the other way round; the guides' logits left out of the fused loss; the controller in every batch,
or in none after the first epoch; q trained through the follower's graph; the bound's gradient let into q; q fitted
after the bound; q not renewed for a follower; q's Adam left out of checkpoints; the follower's head not renewed; its
encoder replaced, so that the optimiser held the old one; followers in the order of fusion; a second follower guided by
the anchor alone; JS to the mean of the guides' own predictions; the sum of the bounds over guides; cached rows of other
samples; the cache counted again after a resume, or never; the classifier read out before it is trained, or trained
with the branches; in joint training the guide's logits not detached.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancebench_udi import Batch
from balancebench_udi.data.base import Bundle
from balancebench_udi.seeding import derive
from balancebench_udi.strategy import Task
from balancebench_udi.trainer import Trainer
from balancebench_udi.udi import UDI, UDIOptions
from tests.helpers import Enough, make_trainer, state_digest, tiny_bundle, train

LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-4


# -- the oracle ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Start:
    """What a phase of followers begins with, and what it then saw and became."""

    branches: dict[str, tuple[nn.Module, nn.Linear]]
    guides: tuple[str, ...]
    followers: tuple[str, ...]
    q: dict[tuple[str, str], list[Tensor]]
    batches: list[Batch] = dataclasses.field(default_factory=list)
    states: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)
    logs: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)


class Spied(UDI):
    """UDI that keeps where each phase of followers began and what came of every step."""

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.starts: list[Start] = []

    @property
    def follows(self) -> bool:
        return self.task.phase.name.startswith(("follow/", "joint"))

    def begin_phase(self) -> None:
        super().begin_phase()
        if self.follows:
            phase: Any = self.task.phase
            pairs = [(g, m) for m in phase.followers for g in phase.guides]
            branches = {
                m: (copy.deepcopy(self.model.encoders[m]), copy.deepcopy(self.heads[m])) for m in self.modalities
            }
            q = {(g, m): [p.detach().clone() for p in self.aux_q[f"{g}>{m}"].parameters()] for g, m in pairs}
            self.starts.append(Start(branches, phase.guides, phase.followers, q))

    def step(self, batch: Batch) -> dict[str, Tensor]:
        logs = super().step(batch)
        if self.follows:
            start, state = self.starts[-1], {}
            for m in start.followers if self.options.decoupled else self.modalities:
                state |= {f"{m}.encoder.{n}": v for n, v in self.model.encoders[m].state_dict().items()}
                state |= {f"{m}.head.{n}": v for n, v in self.heads[m].state_dict().items()}
            for g, m in start.q:
                state |= {f"q.{g}>{m}.{i}": p for i, p in enumerate(self.aux_q[f"{g}>{m}"].parameters())}
            start.states.append({n: v.detach().clone() for n, v in state.items()})
            start.batches.append(batch)
            start.logs.append({n: v.clone() for n, v in logs.items()})
        return logs


class Oracle:
    """One phase of followers in plain float64, from Eq. 4, 8, 10 and 12 to 16, 26 and 27."""

    def __init__(self, start: Start, steps_per_epoch: int, options: UDIOptions) -> None:
        self.start, self.steps_per_epoch, self.o = start, steps_per_epoch, options
        self.trained = start.followers if options.decoupled else tuple(start.branches)
        self.branches = {m: (copy.deepcopy(e), copy.deepcopy(h)) for m, (e, h) in start.branches.items()}
        for m, (encoder, _) in self.branches.items():
            encoder.train(m in self.trained)
        self.q = {pair: [p.clone().requires_grad_() for p in q] for pair, q in start.q.items()}
        self.adam = {pair: [(torch.zeros_like(p), torch.zeros_like(p)) for p in q] for pair, q in self.q.items()}
        self.adam_steps = 0
        self.weights = [p for m in self.trained for part in self.branches[m] for p in part.parameters()]
        self.speed: list[Tensor | None] = [None] * len(self.weights)
        given = (options.alpha_con, options.alpha_com) if options.weights == "static" else (0.0, 0.0)
        self.alpha = {m: list(given) for m in start.followers}

    def run(self) -> Iterator[tuple[dict[str, Tensor], dict[str, float]]]:
        """State and logs after every update."""
        for i, batch in enumerate(self.start.batches):
            acts = self.o.controller == "batch" or i % self.steps_per_epoch == 0
            yield self.update(batch, acts and self.o.weights == "dynamic")

    def passes(self, batch: Batch, branches: Any = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Modality -> features and logits; of frozen branches without a graph."""
        found = {}
        for m in {*self.start.guides, *self.trained}:
            encoder, head = (branches or self.branches)[m]
            with torch.set_grad_enabled(m in self.trained):
                features = encoder(batch.inputs[m])
                found[m] = features, head(features)
        return found

    def update(self, batch: Batch, acts: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        before = {m: copy.deepcopy(b) for m, b in self.branches.items()}  # batch statistics not yet moved
        seen = self.passes(batch)
        fitted = [self.fit(m, seen) for m in self.start.followers]
        if acts:
            for m in self.start.followers:
                self.control(m, batch, before)
        told: dict[str, list[float]] = {"loss/q": fitted}
        logits = [z for _, z in seen.values()]
        own = seen[self.start.followers[0]][1]
        classification = self.cross_entropy(own if self.o.decoupled else sum(logits), batch)  # type: ignore[arg-type]
        total = classification
        for m in self.start.followers:
            losses = self.terms(m, seen)
            for k, name in enumerate(("consistency", "complementarity")):
                total = total + self.alpha[m][k] * losses[name]
                told.setdefault(f"loss/{name}", []).append(float(losses[name].detach()))
                told.setdefault(f"alpha/{name}", []).append(self.alpha[m][k])
        gradients = torch.autograd.grad(total, self.weights)
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(self.weights, gradients, strict=True)):
                g = g + DECAY * p
                earlier = self.speed[i]
                v = self.speed[i] = g if earlier is None else MOMENTUM * earlier + g
                p -= LR * v
        logs = {name: sum(values) / len(values) for name, values in told.items()}
        logs |= {"loss": float(total.detach()), "loss/classification": float(classification.detach())}
        state = {}
        for m in self.trained:
            encoder, head = self.branches[m]
            state |= {f"{m}.encoder.{n}": v for n, v in encoder.state_dict().items()}
            state |= {f"{m}.head.{n}": v for n, v in head.state_dict().items()}
        state |= {f"q.{g}>{m}.{i}": p for (g, m), q in self.q.items() for i, p in enumerate(q)}
        return {n: v.detach().clone() for n, v in state.items()}, logs

    def control(self, m: str, batch: Batch, before: Any) -> None:
        """Eq. 13 to 16, every gradient from a forward pass of its own, on copies that are thrown away."""
        scores = []
        for name in ("consistency", "complementarity"):
            found = {}
            for kind in ("task", name):
                copies = {n: copy.deepcopy(b) for n, b in before.items()}
                seen = self.passes(batch, copies)
                if kind != "task":
                    loss = self.terms(m, seen)[name]
                elif self.o.task_loss == "own":
                    loss = self.cross_entropy(seen[m][1], batch)
                else:
                    loss = self.cross_entropy(sum(z for _, z in seen.values()), batch)  # type: ignore[arg-type]
                wrt = dict(copies[m][0].named_parameters(prefix="encoder"))
                if name == "consistency":  # the head has no gradient of complementarity
                    wrt |= dict(copies[m][1].named_parameters(prefix="head"))
                found[kind] = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
            scores.append(max(0.0, sum(float((g * found[name][n]).sum()) for n, g in found["task"].items())))
        self.alpha[m] = [s / sum(scores) if sum(scores) > 0 else 0.0 for s in scores]

    @staticmethod
    def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
        p = logits.exp() / logits.exp().sum(1, keepdim=True)
        return sum(-p[i, int(batch.target[i])].log() for i in range(len(p))) / len(p)  # type: ignore[return-value]

    def terms(self, m: str, seen: Any) -> dict[str, Tensor]:
        """Eq. 4 and 8; with several guides Eq. 26 and 27. Whatever comes from a guide is data."""
        features, logits = seen[m]
        leading = sum(seen[g][1].detach() for g in self.start.guides)
        p_a, p_m = (z.exp() / z.exp().sum(1, keepdim=True) for z in (leading, logits))
        middle, size = (p_a + p_m) / 2, len(logits)
        consistency = sum(
            0.5 * (p_a[i] * (p_a[i] / middle[i]).log()).sum() + 0.5 * (p_m[i] * (p_m[i] / middle[i]).log()).sum()
            for i in range(size)
        )
        y, complementarity = self.scaled(features), torch.zeros(())
        for g in self.start.guides:
            x = self.scaled(seen[g][0].detach())
            for i in range(size):
                mean, log_variance = (t.detach() for t in self.gaussian(self.q[g, m], x[i]))
                log_q = (-0.5 * (y - mean) ** 2 / log_variance.exp()).sum(1)  # of every y_j given x_i
                complementarity = complementarity + log_q[i] - log_q.sum() / size
        dims = y.shape[1] if self.o.information == "normalised" else 1
        return {
            "consistency": consistency / size,
            "complementarity": complementarity / (size * dims * len(self.start.guides)),
        }

    def scaled(self, f: Tensor) -> Tensor:
        if self.o.information == "as_written":
            return f
        centred = f - f.mean(1, keepdim=True)
        return centred / ((centred**2).mean(1, keepdim=True) + 1e-5).sqrt()

    @staticmethod
    def gaussian(q: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        mean = q[2] @ (q[0] @ x + q[1]).clamp_min(0) + q[3]
        return mean, torch.tanh(q[6] @ (q[4] @ x + q[5]).clamp_min(0) + q[7])

    def fit(self, m: str, seen: Any) -> float:
        """Eq. 10 by Adam written out: learning rate 1e-3, rates 0.9 and 0.999, epsilon 1e-8."""
        y = self.scaled(seen[m][0].detach())
        self.adam_steps += m == self.start.followers[0]
        last = []
        for g in self.start.guides:
            x, q = self.scaled(seen[g][0].detach()), self.q[g, m]
            for k in range(self.o.q_steps):
                count = (self.adam_steps - 1) * self.o.q_steps + k + 1
                loss: Any = 0.0
                for i in range(len(x)):
                    mean, log_variance = self.gaussian(q, x[i])
                    loss = loss + ((y[i] - mean) ** 2 / log_variance.exp() + log_variance).sum() / len(x)
                gradients = torch.autograd.grad(loss, q)
                with torch.no_grad():
                    for p, d, (first, second) in zip(q, gradients, self.adam[g, m], strict=True):
                        first.mul_(0.9).add_(0.1 * d)
                        second.mul_(0.999).add_(0.001 * d * d)
                        p -= 1e-3 * first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
            last.append(float(loss.detach()))
        return sum(last) / len(last)


ORACLES: list[tuple[int, int, dict[str, Any]]] = [
    (2, 0, {}),
    (2, 6, {"task_loss": "own"}),
    (2, 2, {"information": "as_written", "q_steps": 2}),
    (2, 0, {"controller": "batch"}),
    (3, 0, {}),
    (3, 0, {"followers": "independent", "controller": "batch"}),
    (2, 0, {"weights": "static", "alpha_con": 0.25, "alpha_com": 2.0}),
    (2, 6, {"decoupled": False}),
    (3, 0, {"decoupled": False, "controller": "batch", "task_loss": "own"}),
]


@pytest.mark.parametrize(("modalities", "seed", "values"), ORACLES)
def test_first_updates_equal_the_loop(modalities: int, seed: int, values: dict[str, Any]) -> None:
    """Three epochs of three updates of every follower: weights, batch statistics, q, and everything logged."""
    options = UDIOptions(follower_epochs=3, q_hidden=16, **values)
    bundle = live(tiny_bundle(modalities, kind="image", n=(36, 16, 16), dtype=torch.float64, seed=seed))
    trainer = make_trainer(bundle, Spied, options, epochs=2, batch_size=12, schedule={"name": "constant"})
    trainer.run()
    starts, order = trainer.strategy.starts, trainer.strategy.order
    if not options.decoupled:
        assert [(s.guides, s.followers) for s in starts] == [((order[0],), tuple(order[1:]))]
    else:
        guides = [order[: i + 1] if options.followers == "progressive" else order[:1] for i in range(len(order) - 1)]
        assert [(s.guides, s.followers) for s in starts] == [
            (tuple(g), (m,)) for g, m in zip(guides, order[1:], strict=True)
        ]
    alphas = []
    for start in starts:
        assert len(start.batches) == 9
        expected = Oracle(start, 3, options).run()
        for (state, logs), found, reported in zip(expected, start.states, start.logs, strict=True):
            assert set(state) == set(found)
            for name, value in state.items():
                torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
            assert set(reported) == {*logs, "accuracy"}
            for name, number in logs.items():
                assert float(reported[name]) == pytest.approx(number, rel=1e-8, abs=1e-10), name
            alphas.append((logs["alpha/consistency"], logs["alpha/complementarity"]))
    assert any(min(con, com) > 0.001 for con, com in alphas), alphas  # both terms at once: worth its name


# -- helpers of the invariants ---------------------------------------------------------------------------------------


def small(modalities: int = 2, **overrides: Any) -> Bundle:
    """Images for a network with batch norm."""
    return tiny_bundle(modalities, **{"kind": "image", "n": (36, 16, 16), **overrides})


BRIEF: dict[str, Any] = {"epochs": 2, "batch_size": 12}


def augmented(bundle: Bundle) -> Bundle:
    """The same samples, with noise on every training batch."""

    class Noisy:
        draws = 1

        def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
            return stored if draws is None else stored + (draws - 0.5).view(-1, *[1] * (stored.dim() - 1))

    modalities = {m: dataclasses.replace(x, transform=Noisy()) for m, x in bundle.modalities.items()}
    return dataclasses.replace(bundle, modalities=modalities, fingerprint=f"noisy {bundle.fingerprint}")


def live(bundle: Bundle) -> Bundle:
    """The same samples, called augmented: followers then read their anchors on every batch."""

    class Still:
        draws = 1

        def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
            return stored

    modalities = {m: dataclasses.replace(x, transform=Still()) for m, x in bundle.modalities.items()}
    return dataclasses.replace(bundle, modalities=modalities, fingerprint=f"live {bundle.fingerprint}")


def brief(**values: Any) -> UDIOptions:
    return UDIOptions(**{"q_hidden": 16, **values})


def branch(trainer: Trainer, m: str) -> str:
    """Digest of branch m, buffers included."""
    strategy: Any = trainer.strategy
    return state_digest(strategy.model.encoders[m]) + state_digest(strategy.heads[m])


def assert_same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def comparable(result: Any) -> str:
    return json.dumps(result, sort_keys=True)


# -- invariants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [2, 3])
def test_guides_stand_still(modalities: int) -> None:
    """Parameters and batch statistics of the anchor, and of a follower that has become a guide."""
    seen: list[tuple[str, dict[str, str]]] = []

    class Watched(UDI):
        def begin_epoch(self) -> None:
            super().begin_epoch()
            if (name := self.task.phase.name).startswith("follow/"):
                assert [m for m, e in self.model.encoders.items() if e.training] == [name.removeprefix("follow/")]
                seen.append((name, {m: branch(trainer, m) for m in self.modalities}))

    trainer = make_trainer(live(small(modalities)), Watched, brief(), **BRIEF)
    trainer.run()
    anchor, *followers = trainer.strategy.order
    assert [name for name, _ in seen] == [f"follow/{m}" for m in followers for _ in range(2)]
    assert {state[anchor] for _, state in seen} == {branch(trainer, anchor)}
    for i, m in enumerate(followers):
        assert seen[2 * i][1][m] != branch(trainer, m)
        assert all(state[m] == branch(trainer, m) for _, state in seen[2 * (i + 1) :])  # its own phase is over
    own = trainer.strategy.state_dict()
    kept = trainer.progress.snapshots[trainer.strategy.modalities.index(anchor)]["best_val"]["tensors"]
    assert all(torch.equal(own[n], v) for n, v in kept.items())


class Dropping(UDI):
    """The encoders draw from torch's global generator in train mode."""

    def setup(self, task: Task) -> None:
        super().setup(task)
        for encoder in task.model.encoders.values():
            encoder.register_forward_hook(lambda module, inputs, out: F.dropout(out, 0.1, module.training))


@pytest.mark.parametrize("controller", ["epoch", "batch"])
def test_when_the_controller_acts(controller: str) -> None:
    """It sets the weights of one follower, and moves nothing else: no gradient, mode or generator."""
    acted: list[bool] = []

    class Watched(Dropping):
        def _weights(self, m: str, task: Tensor, losses: Any) -> Tensor:
            before = [p.grad for p in self.parameters()], [n.training for n in self.modules()], torch.get_rng_state()
            states = {n: v.clone() for n, v in self.state_dict().items() if isinstance(v, Tensor)}
            found = super()._weights(m, task, losses)
            after = [p.grad for p in self.parameters()], [n.training for n in self.modules()], torch.get_rng_state()
            assert all(a is b for a, b in zip(before[0], after[0], strict=True))
            assert before[1] == after[1]
            assert torch.equal(before[2], after[2])
            assert all(torch.equal(v, self.state_dict()[n]) for n, v in states.items())
            acted[-1] = True
            return found

        def step(self, batch: Batch) -> dict[str, Tensor]:
            if not self.task.phase.name.startswith("follow/"):
                return super().step(batch)
            acted.append(False)
            key, alpha = self.replay_key(), self.alpha.clone()
            logs = super().step(batch)
            assert (key is None) == (acted[-1] and controller == "epoch")
            assert acted[-1] or torch.equal(alpha, self.alpha)
            assert not self.alpha[self.modalities.index(self.order[0])].any()
            return logs

    make_trainer(small(), Watched, brief(controller=controller, follower_epochs=3), **BRIEF).run()
    assert acted == [True, False, False] * 3 if controller == "epoch" else all(acted)
    assert len(acted) == 9


class Unstreamed(Dropping):
    """Followers start from the weights from which every branch started alone."""

    def setup(self, task: Task) -> None:
        super().setup(task)
        encoder, head = task.make_encoder, task.make_head
        task.make_encoder = lambda m, *stream: encoder(m)  # type: ignore[method-assign]
        task.make_head = lambda m, *stream: head(m)  # type: ignore[method-assign]

    def begin_epoch(self) -> None:
        """The global stream is that of the branch alone."""
        super().begin_epoch()
        if (name := self.task.phase.name).startswith("follow/"):
            index = self.modalities.index(name.removeprefix("follow/"))
            torch.random.default_generator.manual_seed(derive(0, "global", index, self.task.epoch))


class Silenced(Unstreamed):
    """Every term and q at work, with weight 0."""

    def _weights(self, m: str, task: Tensor, losses: Any) -> Tensor:
        return torch.zeros_like(super()._weights(m, task, losses))


@pytest.mark.parametrize(
    "values", [{}, {"weights": "static", "alpha_con": 0, "alpha_com": 0}], ids=["dynamic", "static"]
)
@pytest.mark.parametrize("modalities", [2, 3])
def test_without_weight_a_follower_trains_as_if_alone(modalities: int, values: dict[str, Any]) -> None:
    """Bit for bit, with batch norm, momentum, and an encoder with dropout."""
    trainer = make_trainer(small(modalities), Silenced, brief(**values), epochs=3, batch_size=12)
    trainer.run()
    names = [c["phase"] for c in trainer.progress.costs]
    snapshots = dict(zip(names, trainer.progress.snapshots, strict=True))
    followers = [n for n in names if n.startswith("follow/")]
    assert len(followers) == modalities - 1
    for name in followers:
        alone = snapshots[name.replace("follow/", "alone/")]
        for reading in ("last", "best_val"):
            assert snapshots[name][reading]["epoch"] == alone[reading]["epoch"]
            assert_same_tensors(snapshots[name][reading]["tensors"], alone[reading]["tensors"])


def test_with_weight_it_does_not() -> None:
    """The comparison above can fail."""
    trainer = make_trainer(small(), Unstreamed, brief(weights="static"), epochs=3, batch_size=12)
    trainer.run()
    m = trainer.progress.costs[2]["phase"].removeprefix("follow/")
    tensors = {
        c["phase"]: s["last"]["tensors"]
        for c, s in zip(trainer.progress.costs, trainer.progress.snapshots, strict=True)
    }
    name = f"heads.{m}.weight"
    assert not torch.equal(tensors[f"alone/{m}"][name], tensors[f"follow/{m}"][name])


def test_joint_training_without_weight_is_the_joint_loss_of_summed_branches() -> None:
    """``decoupled=false`` at weights 0: ``joint`` with sum fusion, from the same initial weights, bit for bit."""

    class Same(UDI):
        def begin_phase(self) -> None:
            super().begin_phase()
            if self.task.phase.name == "joint":
                for m in self.modalities:
                    self.model.encoders[m].load_state_dict(self.task.make_encoder(m).state_dict())
                    self.heads[m].load_state_dict(self.start[m])

        def setup(self, task: Task) -> None:
            super().setup(task)
            self.start = {m: copy.deepcopy(task.model.fusion.out[m].state_dict()) for m in task.modalities}

    options = brief(decoupled=False, weights="static", alpha_con=0, alpha_com=0)
    trainer = make_trainer(small(), Same, options, fusion="sum", **BRIEF)
    trainer.run()
    plain = make_trainer(small(), "joint", fusion="sum", **BRIEF)
    plain.run()
    found, expected = trainer.progress.snapshots[-1]["last"]["tensors"], plain.progress.snapshots[0]["last"]["tensors"]
    for m in ("audio", "visual"):
        assert torch.equal(found[f"heads.{m}.weight"], expected[f"model.fusion.out.{m}.weight"])
        names = [n for n in expected if n.startswith(f"model.encoders.{m}.")]
        assert names
        assert all(torch.equal(found[n], expected[n]) for n in names)


def test_one_modality_is_that_modality_alone() -> None:
    bundle = small(1)
    for values in ({}, {"fusion": "classifier"}, {"decoupled": False}):
        result, strategy = train(bundle, "udi", brief(**values), **BRIEF)
        other, unimodal = train(bundle, "unimodal", **BRIEF)
        assert strategy.facts()["anchor"] == "audio"
        assert result["curves"] == other["curves"]
        found, expected = result["readings"]["best_val"], other["readings"]["best_val"]
        assert found["epochs"] == expected["epochs"]
        assert found["test"]["loss"] == expected["test"]["loss"]
        assert all(found["predictions"][n] == v for n, v in expected["predictions"].items())
        inputs = bundle.test.inputs
        assert torch.equal(strategy.eval().predict(inputs).logits, unimodal.eval().predict(inputs).logits)
        assert UDI.planned_epochs(strategy.options, 2, ["audio"]) == 2


def test_followers_come_in_descending_order_of_accuracy() -> None:
    strategy: Any = make_trainer(tiny_bundle(3, n=(48, 16, 16)), "udi", brief()).strategy
    strategy.alone_accuracy.copy_(torch.tensor([0.5, 0.7, 0.6]))
    strategy.alone_entropy.copy_(torch.tensor([0.1, 1.0, 1.0]))
    assert strategy.order == ["visual", "text", "audio"]
    assert [strategy.phase(i).guides for i in (3, 4)] == [("visual",), ("visual", "text")]
    assert strategy.phase(5) is None
    strategy.alone_accuracy.copy_(torch.tensor([0.698, 0.7, 0.6]))  # within half a point the entropy decides
    assert strategy.order == ["audio", "visual", "text"]
    strategy.alpha.fill_(1.0)  # nothing that later phases write can change it, or a resumed run would differ
    assert strategy.order == ["audio", "visual", "text"]


@pytest.mark.parametrize("name", ["visual", "audio"])
def test_the_anchor_can_be_named(name: str) -> None:
    result, strategy = train(small(), "udi", brief(anchor=name), **BRIEF)
    assert strategy.facts()["anchor"] == name
    other = "audio" if name == "visual" else "visual"
    phases = [c["phase"] for c in result["curves"]]
    assert phases == ["alone/audio"] * 2 + ["alone/visual"] * 2 + [f"follow/{other}"] * 2


def test_facts_are_what_validation_said() -> None:
    """Of the kept epoch of each branch; and the anchor follows from them."""
    bundle = tiny_bundle(3, n=(48, 64, 16))
    result, strategy = train(bundle, "udi", brief(), epochs=3)
    facts = json.loads(json.dumps(strategy.facts()))
    assert list(facts) == ["anchor", "validation_accuracy", "validation_entropy"]
    for m, accuracy in facts["validation_accuracy"].items():
        best = max(c["val"]["accuracy"] for c in result["curves"] if c["phase"] == f"alone/{m}")
        assert accuracy == pytest.approx(best, abs=1e-6)
        assert 0 < facts["validation_entropy"][m] <= math.log(3)
    assert facts["validation_accuracy"]["audio"] > facts["validation_accuracy"]["visual"] + 0.005
    assert facts["anchor"] == "audio"
    with torch.no_grad():
        p = strategy.eval().branch("audio", bundle.val.inputs)[1].softmax(1)
    assert facts["validation_entropy"]["audio"] == pytest.approx(float(-(p * p.log()).sum(1).mean()), rel=1e-5)


class Stopped(UDI):
    """Is killed in the middle of an epoch of its last phase of followers."""

    countdown = -1

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if self.task.phase.name in ("follow/text", "joint") and self.task.epoch == 2:
            Stopped.countdown -= 1
            if Stopped.countdown == 0:
                raise Enough
        return super().step(batch)


@pytest.mark.parametrize(
    "values",
    [{}, {"controller": "batch", "followers": "independent"}, {"fusion": "classifier"}, {"decoupled": False}],
    ids=["default", "batch", "classifier", "joint"],
)
@pytest.mark.parametrize("noisy", [True, False])
def test_resume_in_a_follower_phase(tmp_path: Path, values: dict[str, Any], noisy: bool) -> None:
    """Same weights, q, state of q's Adam, curves, predictions and passes as without the interruption."""
    bundle = tiny_bundle(3, n=(48, 16, 16))
    bundle = augmented(bundle) if noisy else bundle
    options = brief(anchor="audio", follower_epochs=4, **values)
    Stopped.countdown = -1
    whole = make_trainer(bundle, Stopped, options, tmp_path / "whole", **BRIEF)
    expected = whole.run()["result"]
    Stopped.countdown = 2
    with pytest.raises(Enough):
        make_trainer(bundle, Stopped, options, tmp_path / "cut", **BRIEF).run()
    again = make_trainer(bundle, Stopped, options, tmp_path / "cut", **BRIEF)
    found = again.run()["result"]
    assert comparable(found) == comparable(expected)
    assert state_digest(again.strategy) == state_digest(whole.strategy)


@pytest.mark.parametrize("first", ["unimodal", "ensemble"])
def test_first_phase_is_that_of_unimodal_and_ensemble(tmp_path: Path, first: str) -> None:
    bundle = small(3)
    alone = make_trainer(bundle, "udi", brief(), **BRIEF)
    expected = alone.run()["result"]
    train(bundle, first, store=tmp_path, **BRIEF)
    reusing = make_trainer(bundle, "udi", brief(), tmp_path, **BRIEF)
    found = reusing.run()["result"]
    reused = [c["reused_from"] is not None for c in reusing.progress.costs]
    assert reused == [True] * 3 + [False] * 2
    assert comparable(found) == comparable(expected)
    assert state_digest(reusing.strategy) == state_digest(alone.strategy)


def test_prediction_is_the_sum_of_the_branches() -> None:
    bundle = tiny_bundle(3, n=(48, 16, 16))
    result, strategy = train(bundle, "udi", brief(), **BRIEF)
    inputs = bundle.test.inputs
    with torch.no_grad():
        output = strategy.eval().predict(inputs)
        z = {m: strategy.heads[m](strategy.model.encoders[m](inputs[m])) for m in inputs}
        torch.testing.assert_close(output.logits, sum(z.values()), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sum(strategy.shares(output.features).values()), output.logits)
        assert torch.equal(strategy.predict({"visual": inputs["visual"]}).logits, z["visual"])
    assert math.isfinite(result["readings"]["best_val"]["test"]["loss"])


OTHERS: dict[str, dict[str, Any]] = {
    "checkpoint": {"checkpoint": "last"},
    "anchor": {"anchor": "visual"},  # audio by itself
    "weights": {"weights": "static"},
    "alpha_con": {"weights": "static", "alpha_con": 1},
    "alpha_com": {"weights": "static", "alpha_com": 1},
    "task_loss": {"task_loss": "own"},
    "controller": {"controller": "batch"},
    "decoupled": {"decoupled": False},
    "followers": {"followers": "independent"},
    "information": {"information": "as_written"},
    "q_hidden": {"q_hidden": 32},
    "q_steps": {"q_steps": 3},
    "warm_start": {"warm_start": True},
    "follower_epochs": {"follower_epochs": 3},
    "fusion": {"fusion": "classifier"},
}
BASES = {"alpha_con": "static", "alpha_com": "static", "followers": "three"}


def outcome(values: dict[str, Any], base: str) -> str:
    bundle = tiny_bundle(3 if base == "three" else 2, n=(48, 16, 16), seed=9)
    trainer = make_trainer(bundle, "udi", brief(**values), epochs=5, batch_size=12)
    result = trainer.run()["result"]
    return comparable(result["curves"]) + comparable(result["readings"]) + state_digest(trainer.strategy.heads)


@pytest.fixture(scope="module")
def default_outcomes() -> dict[str, str]:
    bases = ("dynamic", "static", "three")
    return {base: outcome({"weights": "static"} if base == "static" else {}, base) for base in bases}


def test_every_option_is_tried_below() -> None:
    assert set(OTHERS) == {f.name for f in dataclasses.fields(UDIOptions)}


@pytest.mark.parametrize("name", OTHERS)
def test_no_option_is_without_effect(name: str, default_outcomes: dict[str, str]) -> None:
    base = BASES.get(name, "dynamic")
    assert outcome(OTHERS[name], base) != default_outcomes[base]


def test_progressive_is_independent_until_there_is_a_second_follower() -> None:
    for modalities in (2, 3):
        found = {}
        for followers in ("independent", "progressive"):
            trainer = make_trainer(live(small(modalities)), "udi", brief(anchor="audio", followers=followers), **BRIEF)
            result = trainer.run()["result"]
            order = trainer.strategy.order
            found[followers] = [branch(trainer, m) for m in order]
        same = [a == b for a, b in zip(found["independent"], found["progressive"], strict=True)]
        assert same == [True, True, False][:modalities]
    forward = {m: result["passes"]["forward"][m] for m in order}
    assert list(forward.values()) == [72 + 2 * 72, 72 + 72 + 72, 72 + 72]


# -- what followers see of their guides --------------------------------------------------------------------------------


@pytest.mark.parametrize("followers", ["independent", "progressive"])
def test_guides_read_the_split_once_where_nothing_is_augmented(followers: str) -> None:
    """In float64; batches of another size may round the last bit of a convolution otherwise."""
    runs = {}
    for view in ("batch", "once"):
        bundle = small(3, dtype=torch.float64)
        trainer = make_trainer(
            live(bundle) if view == "batch" else bundle, "udi", brief(anchor="audio", followers=followers), **BRIEF
        )
        runs[view] = trainer.run()["result"], dict(trainer.strategy.state_dict()), trainer.strategy.order
    for name, value in runs["batch"][1].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(runs["once"][1][name], value, rtol=1e-9, atol=1e-11)
    for curve, other in zip(*(runs[view][0]["curves"] for view in runs), strict=True):
        assert curve["train"] == pytest.approx(other["train"], rel=1e-8)
    result, _, order = runs["once"]
    guided = 36 if followers == "progressive" else 0
    forward = {m: result["passes"]["forward"][m] for m in order}
    assert list(forward.values()) == [72 + 2 * 36, 72 + 72 + guided, 72 + 72]


# -- the classifier ----------------------------------------------------------------------------------------------------


def test_classifier() -> None:
    """Three updates by hand; nothing but the fusion moves; the prediction is linear in all features."""
    bundle, seen = small(3, dtype=torch.float64), []

    class Watched(UDI):
        def step(self, batch: Batch) -> dict[str, Tensor]:
            if self.task.phase.name != "classifier":
                return super().step(batch)
            assert not any(part.training for m in self.modalities for part in self.model.encoders[m].modules())
            out = self.model.fusion.out
            if not seen:
                self.weight, self.bias = (p.detach().clone() for p in (out.weight, out.bias))
                self.speed = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
            frozen = [branch(trainer, m) for m in self.modalities]
            with torch.no_grad():
                f = torch.cat([self.model.encoders[m](x) for m, x in batch.inputs.items()], 1)
            p = (f @ self.weight.T + self.bias).softmax(1)
            expected = -p[torch.arange(len(f)), batch.target].log().mean()
            wrong = (p - F.one_hot(batch.target, 3)) / len(f)
            logs = super().step(batch)
            assert float(logs["loss"]) == pytest.approx(float(expected), rel=1e-9)
            for i, (w, g) in enumerate(((self.weight, wrong.T @ f), (self.bias, wrong.sum(0)))):
                self.speed[i] = MOMENTUM * self.speed[i] + g + DECAY * w
                w -= LR * self.speed[i]
            torch.testing.assert_close(out.weight.detach(), self.weight, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(out.bias.detach(), self.bias, rtol=1e-9, atol=1e-12)
            assert frozen == [branch(trainer, m) for m in self.modalities]
            seen.append(expected)
            return logs

    trainer = make_trainer(bundle, Watched, brief(fusion="classifier"), schedule={"name": "constant"}, **BRIEF)
    result = trainer.run()["result"]
    strategy = trainer.strategy
    assert len(seen) == 6
    assert [c["phase"] for c in trainer.progress.costs][-1] == "classifier"
    kept = set(trainer.progress.snapshots[-1]["last"]["tensors"])
    assert kept == {"model.fusion.out.weight", "model.fusion.out.bias"}
    assert trainer.progress.costs[-1]["forward"] == dict.fromkeys(bundle.modalities, 72)
    assert trainer.progress.costs[-1]["backward"] == dict.fromkeys(bundle.modalities, 0)
    assert len(result["curves"]) == UDI.planned_epochs(strategy.options, 2, list(bundle.modalities)) == 12
    with torch.no_grad():
        output = strategy.eval().predict(bundle.test.inputs)
        features = [strategy.model.encoders[m](x) for m, x in bundle.test.inputs.items()]
        expected = torch.cat(features, 1) @ strategy.model.fusion.out.weight.T + strategy.model.fusion.out.bias
        torch.testing.assert_close(output.logits, expected)
        shares = strategy.shares(output.features)
        torch.testing.assert_close(sum(shares.values()), output.logits)
        assert not torch.allclose(shares["audio"], output.unimodal["audio"])


def test_the_classifier_changes_nothing_before_its_phase() -> None:
    found = {}
    for fusion in ("sum", "classifier"):
        trainer = make_trainer(small(), "udi", brief(fusion=fusion), **BRIEF)
        trainer.run()
        found[fusion] = trainer.progress.curves[:6], [branch(trainer, m) for m in ("audio", "visual")]
    assert found["sum"] == found["classifier"]


def test_cost_in_passes() -> None:
    """36 samples, 2 epochs: alone 2 x 36 each; a follower 2 x 36, its guide 2 x 36; controller 3 x 12 an epoch."""
    result, _ = train(live(small()), "udi", brief(anchor="audio"), **BRIEF)
    assert result["passes"]["forward"] == {"audio": 72 + 72, "visual": 72 + 72}
    assert result["passes"]["backward"] == {"audio": 72, "visual": 72 + 72 + 2 * 12 * 3}
    result, _ = train(small(), "udi", brief(anchor="audio", weights="static", alpha_con=0, alpha_com=0), **BRIEF)
    assert result["passes"]["forward"] == {"audio": 72, "visual": 144}
    assert result["passes"]["backward"] == {"audio": 72, "visual": 144}


def test_static_weights_leave_out_the_term_they_switch_off() -> None:
    result, _ = train(small(), "udi", brief(weights="static", alpha_con=1, alpha_com=0), **BRIEF)
    logged = set(result["curves"][-1]["train"])
    assert logged == {"loss", "accuracy", "loss/classification", "loss/consistency", "alpha/consistency"}
    assert result["curves"][-1]["train"]["alpha/consistency"] == 1


def test_a_branch_that_follows_starts_from_its_own_stream() -> None:
    """Neither from the weights it ended with alone nor from those it began with; warm_start is the former."""
    firsts = {}
    for warm in (False, True):
        trainer = make_trainer(small(), Spied, brief(anchor="audio", warm_start=warm), **BRIEF)
        began = trainer.strategy.heads["visual"].weight.detach().clone()
        trainer.run()
        alone = trainer.progress.snapshots[1]["best_val"]["tensors"]["heads.visual.weight"]
        firsts[warm] = trainer.strategy.starts[0].branches["visual"][1].weight
        assert torch.equal(firsts[warm], alone) == warm
        assert not torch.equal(firsts[warm], began)
    assert not torch.equal(firsts[False], firsts[True])


def test_building_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    make_trainer(small(3), "udi", brief())
    assert torch.equal(before, torch.get_rng_state())
