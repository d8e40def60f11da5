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
with the branches; in joint training the guide's logits and features not detached.
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
            branches = {m: (copy.deepcopy(self.model.encoders[m]), copy.deepcopy(self.heads[m])) for m in self.modalities}
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
    assert any(0.001 < con and 0.001 < com for con, com in alphas), alphas  # both terms at once: worth its name


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


