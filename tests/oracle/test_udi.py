"""UDI against an independent float64 loop written from its formulas, and its invariants.

Planted bugs that were tried, each of which made a test here (or of the unit tests of its parts) fail: the anchor left
in train mode; the anchor trained along; CLUB conditioned the wrong way round, in the bound and in q's fit; KL(m || p)
in the place of KL(p || m); the positive part left out of the weights, or absolute values, or a softmax; the two
weights exchanged; the head among the parameters that are aligned; the controller's batch statistics left behind, its
forward pass in eval mode, its draws from the global stream; q trained through the follower's graph; the bound's
gradient let into q; negatives without gradient; q not renewed for a follower; q's Adam left out of checkpoints; the
method's generator not set anew for a follower; the follower's head not renewed; its encoder replaced, so that the
optimiser held the old one; the anchor by entropy alone, or by the accuracies that followers end with; smoothing in
the first epoch; ``hold`` ignored; static weights not set; the temperature on one side; the warm-up of q with running
statistics, or leaving its own behind; the fused monitor ignored; validation counted as training passes; gradients not
cleared. Of the alternatives: the sum of losses over several anchors, or those of the first alone; a q fitted for the
first anchor alone; only the anchor for a second follower; cached rows of other samples, in a step or in the warm-up;
the cache counted again after a resume, or never; the present epoch's last batch for the previous one's; all parameters
for the last block; patience left out of a follower or of the label of a shared phase; the probe read out before it is
trained, or never, or trained with one modality, or with the encoders or heads; the standard error of the worse branch,
of the size of the training split, or twice.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancebench_udi import Batch, Phase
from balancebench_udi.data.base import Bundle
from balancebench_udi.seeding import derive
from balancebench_udi.strategy import Task
from balancebench_udi.trainer import Trainer
from balancebench_udi.udi import CLUB, UDI, UDIOptions
from tests.helpers import Enough, make_trainer, state_digest, tiny_bundle, train

LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-4


# -- the oracle ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Start:
    """What a follower's phase begins with, and what it then saw and became."""

    anchors: list[nn.Module]
    anchor_heads: list[nn.Linear]
    encoder: nn.Module
    head: nn.Linear
    q: list[list[Tensor]]
    names: tuple[str, ...]
    batches: list[Batch] = dataclasses.field(default_factory=list)
    states: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)
    logs: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)


class Spied(UDI):
    """UDI that keeps where each follower began and what came of every step."""

    def setup(self, task: Task) -> None:
        super().setup(task)
        self.starts: list[Start] = []

    def begin_phase(self) -> None:
        super().begin_phase()
        phase = self.task.phase
        if phase.name.startswith("follow/"):
            *anchors, m = phase.modalities or ()
            self.starts.append(
                Start(
                    [copy.deepcopy(self.model.encoders[a]).eval() for a in anchors],
                    [copy.deepcopy(self.heads[a]) for a in anchors],
                    copy.deepcopy(self.model.encoders[m]).train(),
                    copy.deepcopy(self.heads[m]),
                    [[p.detach().clone() for p in q.parameters()] for q in self.networks(anchors, m)],
                    (*anchors, m),
                )
            )

    def networks(self, anchors: Sequence[str], m: str) -> list[nn.Module]:
        if self.options.followers == "sequential":
            return [self.aux_q[f"{a}>{m}"] for a in anchors]
        return [next(iter(self.aux_q.values()))]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        logs = super().step(batch)
        if self.task.phase.name.startswith("follow/"):
            start = self.starts[-1]
            *anchors, m = start.names
            state = {f"encoder.{n}": v for n, v in self.model.encoders[m].state_dict().items()}
            state.update({f"head.{n}": v for n, v in self.heads[m].state_dict().items()})
            for k, q in enumerate(self.networks(anchors, m)):
                state.update({f"q.{k}.{i}": p for i, p in enumerate(q.parameters())})
            start.states.append({n: v.detach().clone() for n, v in state.items()})
            start.batches.append(batch)
            start.logs.append({n: v.clone() for n, v in logs.items()})
        return logs


class Oracle:
    """One follower's phase in plain float64."""

    def __init__(self, start: Start, steps_per_epoch: int, options: UDIOptions) -> None:
        self.start, self.steps_per_epoch, self.o = start, steps_per_epoch, options
        self.encoder, self.head = copy.deepcopy(start.encoder), copy.deepcopy(start.head)
        self.q = [[p.clone().requires_grad_() for p in q] for q in start.q]
        self.adam = [[(torch.zeros_like(p), torch.zeros_like(p)) for p in q] for q in self.q]
        self.adam_steps = 0
        self.speed: list[Tensor | None] = [None] * len(self.weights)
        self.alpha = [0.0, 0.0]

    @property
    def weights(self) -> list[Tensor]:
        return [*self.encoder.parameters(), *self.head.parameters()]

    def run(self) -> Iterator[tuple[dict[str, Tensor], dict[str, float]]]:
        """State and logs after every update."""
        for i, batch in enumerate(self.start.batches):
            if i % self.steps_per_epoch == 0:
                seen = self.start.batches[i - 1] if i > 0 and self.o.controller_batch == "previous" else batch
                self.control(seen, first=i == 0)
            yield self.update(batch)

    def control(self, batch: Batch, first: bool) -> None:
        """Every gradient from a forward pass of its own, on copies that are thrown away."""
        scores = []
        for kind in ("consistency", "complementarity"):
            product, lengths = 0.0, [0.0, 0.0]
            pair = [self.control_gradient(batch, "classification"), self.control_gradient(batch, kind)]
            for a, b in zip(*pair, strict=True):
                product += float((a * b).sum())
                lengths = [lengths[0] + float((a * a).sum()), lengths[1] + float((b * b).sum())]
            if self.o.similarity == "cosine":
                product /= math.sqrt(lengths[0] * lengths[1])
            scores.append(max(0.0, product))
        if sum(scores) > 0:
            fresh = [s / sum(scores) for s in scores]
        else:
            fresh = self.alpha if self.o.unaligned == "hold" else [0.0, 0.0]
        keep = 0.0 if first else self.o.smoothing
        self.alpha = [keep * a + (1 - keep) * b for a, b in zip(self.alpha, fresh, strict=True)]

    def control_gradient(self, batch: Batch, kind: str) -> list[Tensor]:
        encoder = copy.deepcopy(self.encoder)
        features = encoder(batch.inputs[self.start.names[-1]])
        loss = self.losses(features, self.head(features), batch)[kind]
        wrt = {"encoder": list(encoder.parameters()), "last_block": [encoder.out.weight, encoder.out.bias]}
        return list(torch.autograd.grad(loss, wrt.get(self.o.align, [features])))

    def update(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
        features = self.encoder(batch.inputs[self.start.names[-1]])
        logits = self.head(features)
        if self.o.q_order == "before":
            fitted = self.fit(batch, features)
        losses = self.losses(features, logits, batch)
        total = (
            losses["classification"] + self.alpha[0] * losses["consistency"] + self.alpha[1] * losses["complementarity"]
        )
        gradients = torch.autograd.grad(total, self.weights)
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(self.weights, gradients, strict=True)):
                g = g + DECAY * p
                before = self.speed[i]
                v = self.speed[i] = g if before is None else MOMENTUM * before + g
                p -= LR * v
        if self.o.q_order == "after":
            fitted = self.fit(batch, features)
        logs = {f"loss/{n}": float(v.detach()) for n, v in losses.items()}
        logs.update({"loss": float(total.detach()), "loss/q": fitted})
        logs.update({"alpha/consistency": self.alpha[0], "alpha/complementarity": self.alpha[1]})
        state = {f"encoder.{n}": v for n, v in self.encoder.state_dict().items()}
        state.update({f"head.{n}": v for n, v in self.head.state_dict().items()})
        state.update({f"q.{k}.{i}": v for k, q in enumerate(self.q) for i, v in enumerate(q)})
        return {n: v.detach().clone() for n, v in state.items()}, logs

    def guide(self, k: int, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = self.start.anchors[k](batch.inputs[self.start.names[k]])
            return features, self.start.anchor_heads[k](features)

    def losses(self, features: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Means over the anchors."""
        found = [self.losses_beside(k, features, logits, batch) for k in range(len(self.q))]
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}  # type: ignore[misc]

    def losses_beside(self, k: int, features: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        anchor, anchor_logits = self.guide(k, batch)
        size = len(batch.target)
        p_a, p_m = ((z / self.o.temperature).exp() for z in (anchor_logits, logits))
        p_a, p_m = p_a / p_a.sum(1, keepdim=True), p_m / p_m.sum(1, keepdim=True)
        middle = (p_a + p_m) / 2
        consistency = sum(
            0.5 * (p_a[i] * (p_a[i] / middle[i]).log()).sum() + 0.5 * (p_m[i] * (p_m[i] / middle[i]).log()).sum()
            for i in range(size)
        )
        p = logits.exp() / logits.exp().sum(1, keepdim=True)
        classification = sum(-p[i, int(batch.target[i])].log() for i in range(size))
        x, y = self.scaled(anchor), self.scaled(features)
        complementarity: Any = 0.0
        for i in range(size):
            mean, log_variance = (t.detach() for t in self.gaussian(self.q[k], x[i]))
            log_q = (-0.5 * (y - mean) ** 2 / log_variance.exp()).sum(1)  # of every y_j given x_i
            complementarity = complementarity + log_q[i] - log_q.sum() / size
        dims = y.shape[1] if self.o.reduction == "mean" else 1
        return {
            "classification": classification / size,
            "consistency": consistency / size,
            "complementarity": complementarity / (size * dims),
        }

    def scaled(self, f: Tensor) -> Tensor:
        if self.o.normalise == "none":
            return f
        centred = f - f.mean(1, keepdim=True)
        return centred / ((centred**2).mean(1, keepdim=True) + 1e-5).sqrt()

    def gaussian(self, q: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        mean = q[2] @ (q[0] @ x + q[1]).clamp_min(0) + q[3]
        if self.o.variance == "one":
            return mean, torch.zeros_like(mean)
        return mean, torch.tanh(q[6] @ (q[4] @ x + q[5]).clamp_min(0) + q[7])

    def fit(self, batch: Batch, features: Tensor) -> float:
        """Adam written out: rates 0.9 and 0.999, epsilon 1e-8."""
        y = self.scaled(features.detach())
        for _ in range(self.o.q_steps):
            self.adam_steps += 1
            last = []
            for k, (q, adam) in enumerate(zip(self.q, self.adam, strict=True)):
                x = self.scaled(self.guide(k, batch)[0])
                loss: Any = 0.0
                for i in range(len(x)):
                    mean, log_variance = self.gaussian(q, x[i])
                    loss = loss + ((y[i] - mean) ** 2 / log_variance.exp() + log_variance).sum() / len(x)
                gradients = torch.autograd.grad(loss, q)
                with torch.no_grad():
                    for p, g, (first, second) in zip(q, gradients, adam, strict=True):
                        first.mul_(0.9).add_(0.1 * g)
                        second.mul_(0.999).add_(0.001 * g * g)
                        corrected = first / (1 - 0.9**self.adam_steps)
                        p -= self.o.q_lr * corrected / ((second / (1 - 0.999**self.adam_steps)).sqrt() + 1e-8)
                last.append(float(loss.detach()))
        return sum(last) / len(last)


ORACLES: list[tuple[int, int, dict[str, Any]]] = [
    (2, 0, {}),
    (3, 0, {}),
    (2, 0, {"similarity": "cosine", "reduction": "sum", "normalise": "none", "q_order": "after", "smoothing": 0.3}),
    (
        2,
        2,
        {
            "align": "features",
            "variance": "one",
            "temperature": 2.0,
            "q_steps": 2,
            "unaligned": "hold",
            "smoothing": 0.3,
        },
    ),
    (3, 0, {"followers": "sequential"}),
    (2, 7, {"align": "last_block", "controller_batch": "previous", "similarity": "cosine"}),
]


@pytest.mark.parametrize(("modalities", "seed", "values"), ORACLES)
def test_first_updates_equal_the_loop(modalities: int, seed: int, values: dict[str, Any]) -> None:
    """Three epochs of three updates of every follower: weights, batch statistics, q, and everything logged."""
    options = UDIOptions(follower_epochs=3, q_hidden=16, q_warmup_epochs=0, **values)
    bundle = live(tiny_bundle(modalities, kind="image", n=(36, 16, 16), dtype=torch.float64, seed=seed))
    trainer = make_trainer(bundle, Spied, options, epochs=2, batch_size=12, schedule={"name": "constant"})
    trainer.run()
    starts = trainer.strategy.starts
    anchor = trainer.strategy.anchor
    followers = [m for m in bundle.modalities if m != anchor]
    if options.followers == "sequential":
        assert [s.names for s in starts] == [(anchor, *followers[: i + 1]) for i in range(len(followers))]
    else:
        assert [s.names for s in starts] == [(anchor, m) for m in followers]
    for start in starts:
        assert len(start.batches) == 9
        alphas = []
        expected = Oracle(start, 3, options).run()
        for (state, logs), found, reported in zip(expected, start.states, start.logs, strict=True):
            assert set(state) == set(found)
            for name, value in state.items():
                torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
            assert set(reported) == {*logs, "accuracy"}
            for name, number in logs.items():
                assert float(reported[name]) == pytest.approx(number, rel=1e-8, abs=1e-10), name
            alphas.append((logs["alpha/consistency"], logs["alpha/complementarity"]))
        if start is starts[0]:  # the case is worth its name: both terms at once, and neither, or what was held
            assert any(0.01 < con < 1 and 0.01 < com < 1 for con, com in alphas)
            assert (0, 0) in alphas or (options.unaligned == "hold" and alphas[6] == pytest.approx(alphas[3]))


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
def test_the_anchor_stands_still(modalities: int) -> None:
    """Parameters and batch statistics, through every follower's phase; and an earlier follower's, too."""
    seen: list[dict[str, str]] = []

    class Watched(UDI):
        def begin_epoch(self) -> None:
            seen.append({m: branch(trainer, m) for m in self.modalities})
            super().begin_epoch()

    bundle = small(modalities)
    trainer = make_trainer(bundle, Watched, brief(), **BRIEF)
    trainer.run()
    anchor = trainer.strategy.anchor
    follow = [s for s, c in zip(seen, trainer.progress.curves, strict=True) if c["phase"].startswith("follow/")]
    assert len(follow) == 2 * (modalities - 1)
    assert {s[anchor] for s in follow} == {branch(trainer, anchor)}
    own = trainer.strategy.state_dict()
    kept = trainer.progress.snapshots[list(bundle.modalities).index(anchor)]["best_val"]["tensors"]
    assert all(torch.equal(own[n], v) for n, v in kept.items())
    if modalities == 3:
        first, second = (m for m in bundle.modalities if m != anchor)
        assert follow[2][first] == follow[3][first] == branch(trainer, first)  # its own phase is over
        assert follow[0][second] != branch(trainer, second)


class Dropping(UDI):
    """The encoders draw from torch's global generator in train mode."""

    def setup(self, task: Task) -> None:
        super().setup(task)
        for encoder in task.model.encoders.values():
            encoder.register_forward_hook(lambda module, inputs, out: F.dropout(out, 0.1, module.training))


@pytest.mark.parametrize("align", ["encoder", "last_block", "features"])
def test_the_controller_touches_nothing(align: str) -> None:
    compared = []

    class Watched(Dropping):
        def begin_epoch(self) -> None:
            def state() -> tuple[Any, ...]:
                rest = {n: v for n, v in self.state_dict().items() if n != "alpha"}
                rest = {n: v.clone() if isinstance(v, Tensor) else repr(v) for n, v in rest.items()}
                gradients = [p.grad for p in self.parameters()]
                modes = [m.training for m in self.modules()]
                draw = self.task.generator.get_state(), torch.get_rng_state()
                return rest, gradients, modes, draw, repr(self.task.optimizer.state_dict())

            before = state()
            super().begin_epoch()
            if not self.task.phase.name.startswith("follow/") or self.task.epoch == 0:
                return
            after = state()
            assert all(
                torch.equal(v, after[0][n]) if isinstance(v, Tensor) else v == after[0][n] for n, v in before[0].items()
            )
            assert any(g is not None for g in before[1])
            assert all(a is b for a, b in zip(before[1], after[1], strict=True))
            assert before[2] == after[2]
            assert all(torch.equal(a, b) for a, b in zip(before[3], after[3], strict=True))
            assert before[4] == after[4]
            assert self.alpha.abs().sum() > 0
            compared.append(True)

    make_trainer(small(), Watched, brief(align=align, follower_epochs=3), **BRIEF).run()
    assert compared


class Unstreamed(Dropping):
    """Followers start from the weights from which every branch started alone."""

    def setup(self, task: Task) -> None:
        super().setup(task)
        encoder, head = task.make_encoder, task.make_head
        task.make_encoder = lambda m, *stream: encoder(m)  # type: ignore[method-assign]
        task.make_head = lambda m, *stream: head(m)  # type: ignore[method-assign]


class Silenced(Unstreamed):
    """Every term, q and its warm-up at work, with weight 0; the global stream is that of the branch alone."""

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self.alpha.zero_()
        if self.task.phase.name.startswith("follow/"):
            index = self.modalities.index(self.task.phase.follower)
            torch.random.default_generator.manual_seed(derive(0, "global", index, self.task.epoch))


@pytest.mark.parametrize(
    "values",
    [{}, {"estimator": "sampled"}, {"weights": "static", "alpha_con": 0, "alpha_com": 0}],
    ids=["dynamic", "sampled", "static"],
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


def test_one_modality_is_that_modality_alone() -> None:
    bundle = small(1)
    result, strategy = train(bundle, "udi", brief(), **BRIEF)
    other, unimodal = train(bundle, "unimodal", **BRIEF)
    assert strategy.facts()["anchor"] == "audio"
    assert result["curves"] == other["curves"]
    found, expected = result["readings"]["best_val"], other["readings"]["best_val"]
    assert found["epochs"] == expected["epochs"]
    assert found["test"]["loss"] == expected["test"]["loss"]
    assert all(found["predictions"][n] == v for n, v in expected["predictions"].items())
    inputs = bundle.test.inputs
    strategy.eval()
    assert torch.equal(strategy.predict(inputs).logits, strategy.branch("audio", inputs)[1])
    assert torch.equal(strategy.predict(inputs).logits, unimodal.eval().predict(inputs).logits)


class Backwards(UDI):
    """The second follower first."""

    def phase(self, index: int) -> Phase | None:
        return super().phase({3: 4, 4: 3}.get(index, index))


def test_followers_do_not_depend_on_their_order() -> None:
    bundle = tiny_bundle(3, n=(48, 16, 16))
    options = brief(estimator="sampled")
    trainers = [make_trainer(bundle, cls, options, **BRIEF) for cls in (UDI, Backwards)]
    for trainer in trainers:
        trainer.run()
    phases = [[c["phase"] for c in t.progress.costs][3:] for t in trainers]
    assert phases[0] == phases[1][::-1]
    assert phases[0] != phases[1]
    for m in bundle.modalities:
        assert branch(trainers[0], m) == branch(trainers[1], m)


@pytest.mark.parametrize("name", ["visual", "audio"])
def test_the_anchor_can_be_named(name: str) -> None:
    result, strategy = train(small(), "udi", brief(anchor=name), **BRIEF)
    assert strategy.facts()["anchor"] == name
    phases = [c["phase"] for c in result["curves"]]
    assert (
        phases
        == ["alone/audio"] * 2 + ["alone/visual"] * 2 + [f"follow/{'audio' if name == 'visual' else 'visual'}"] * 2
    )


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
    """Is killed in the middle of an epoch of its second follower phase."""

    countdown = -1

    def step(self, batch: Batch) -> dict[str, Tensor]:
        if self.task.phase.name == "follow/text" and self.task.epoch == 2:
            Stopped.countdown -= 1
            if Stopped.countdown == 0:
                raise Enough
        return super().step(batch)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"estimator": "sampled", "unaligned": "hold", "smoothing": 0.5},
        {"followers": "sequential", "controller_batch": "previous"},
        {"followers": "sequential", "anchor_view": "cached", "fusion": "probe"},
    ],
)
def test_resume_in_a_follower_phase(tmp_path: Path, values: dict[str, Any]) -> None:
    """Same weights, q, state of q's Adam, curves, predictions and passes as without the interruption."""
    bundle = augmented(tiny_bundle(3, n=(48, 16, 16)))
    options = brief(anchor="audio", follower_epochs=4, **values)
    Stopped.countdown = -1
    whole = make_trainer(bundle, Stopped, options, tmp_path / "whole", **BRIEF)
    expected = whole.run()["result"]
    Stopped.countdown = 2
    with pytest.raises(Enough):
        make_trainer(bundle, Stopped, options, tmp_path / "cut", **BRIEF).run()
    again = make_trainer(bundle, Stopped, options, tmp_path / "cut", **BRIEF)
    found = again.run()["result"]
    assert [c["phase"] for c in again.progress.curves].count("follow/text") == 4
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


def test_warm_up_of_q_moves_nothing_else() -> None:
    def begun(**values: Any) -> tuple[UDI, Tensor]:
        class Halted(Dropping):
            def begin_epoch(self) -> None:
                if self.task.phase.name.startswith("follow/"):
                    raise Enough
                super().begin_epoch()

        trainer = make_trainer(small(n=(37, 16, 16)), Halted, brief(**values), **BRIEF)
        with pytest.raises(Enough):
            trainer.run()
        return trainer.strategy, torch.get_rng_state()

    def q_loss(strategy: UDI) -> float:
        """On the features of the initial follower, normalised with the statistics of the whole split."""
        inputs = small(n=(37, 16, 16)).train.inputs
        strategy.model.encoders["visual"].train()
        with torch.no_grad():
            x, y = (F.layer_norm(strategy.model.encoders[m](inputs[m]), (512,)) for m in ("audio", "visual"))
            return float(strategy.aux_q["512x512"].learning_loss(x, y))

    (cold, cold_state), (warm, warm_state) = begun(q_warmup_epochs=0), begun(q_warmup_epochs=8)
    assert torch.equal(cold_state, warm_state)
    for part in ("model", "heads"):
        assert state_digest(getattr(cold, part)) == state_digest(getattr(warm, part))
    assert q_loss(warm) < q_loss(cold) - 50


def test_warm_up_sees_the_follower_as_training_will(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its features come from batch statistics, each of them once an epoch, beside those of the same sample's anchor."""
    pairs: list[tuple[Tensor, Tensor]] = []
    fit = CLUB.fit

    def spied(self: CLUB, x: Tensor, y: Tensor, steps: int = 1) -> Tensor:
        pairs.append((x, y))
        return fit(self, x, y, steps)

    class Halted(UDI):
        def begin_epoch(self) -> None:
            if self.task.phase.name.startswith("follow/"):
                raise Enough

    monkeypatch.setattr(CLUB, "fit", spied)
    bundle = small()
    trainer = make_trainer(bundle, Halted, brief(anchor="audio", q_warmup_epochs=2), **BRIEF)
    with pytest.raises(Enough):
        trainer.run()
    assert [len(x) for x, _ in pairs] == [12] * 6
    encoders = trainer.strategy.model.encoders
    encoders["audio"].eval()
    encoders["visual"].train()
    with torch.no_grad():
        expected = torch.cat([F.layer_norm(encoders[m](x), (512,)) for m, x in bundle.train.inputs.items()], 1)
    for epoch in (pairs[:3], pairs[3:]):
        seen = torch.cat([torch.cat(pair, 1) for pair in epoch])
        assert not torch.allclose(seen, expected, atol=1e-3)  # shuffled
        order = torch.cdist(expected, seen).argmin(1)
        assert sorted(order.tolist()) == list(range(36))
        torch.testing.assert_close(seen[order], expected, rtol=1e-3, atol=1e-3)
    assert not torch.equal(pairs[0][0], pairs[3][0])


def test_the_anchor_rests_on_the_first_phases_alone() -> None:
    """Nothing that later phases write can change it, or the schedule of a resumed run would differ."""
    trainer = make_trainer(tiny_bundle(3, n=(48, 64, 16)), "udi", brief(fusion="accuracy_weighted"), **BRIEF)
    trainer.run()
    strategy: Any = trainer.strategy
    anchor = strategy.anchor
    for m in range(3):
        strategy.trust.copy_(torch.eye(3)[m])
        assert strategy.anchor == anchor
        assert [strategy.phase(i).name for i in (3, 4)] == [f"follow/{n}" for n in strategy.modalities if n != anchor]
        assert strategy.phase(5) is None


@pytest.mark.parametrize("fusion", ["sum", "mean_probability", "accuracy_weighted"])
def test_fusion(fusion: str) -> None:
    bundle = tiny_bundle(3, n=(48, 16, 16))
    result, strategy = train(bundle, "udi", brief(fusion=fusion), **BRIEF)
    inputs = bundle.test.inputs
    with torch.no_grad():
        output = strategy.eval().predict(inputs)
        z = {m: strategy.heads[m](strategy.model.encoders[m](inputs[m])) for m in inputs}
        if fusion == "sum":  # the head that concatenation would have
            weight = torch.cat([strategy.heads[m].weight for m in inputs], 1)
            bias = sum(strategy.heads[m].bias for m in inputs)
            expected = torch.cat([output.features[m] for m in inputs], 1) @ weight.T + bias
        elif fusion == "mean_probability":
            expected = (sum(v.softmax(1) for v in z.values()) / 3).log()
        else:
            hits = {
                m: float((v.argmax(1) == bundle.val.target).float().mean()) for m, v in validation(strategy, bundle)
            }
            expected = sum(hits[m] / sum(hits.values()) * z[m] for m in z)
        torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
        shares = strategy.shares(output.features)
        if fusion == "mean_probability":
            assert shares is None
        else:
            torch.testing.assert_close(sum(shares.values()), output.logits)
        alone = strategy.predict({"visual": inputs["visual"]})
        assert torch.equal(alone.logits, z["visual"])
    assert math.isfinite(result["readings"]["best_val"]["test"]["loss"])


def validation(strategy: UDI, bundle: Bundle) -> list[tuple[str, Tensor]]:
    return [(m, strategy.heads[m](strategy.model.encoders[m](x))) for m, x in bundle.val.inputs.items()]


OTHERS: dict[str, dict[str, Any]] = {
    "checkpoint": {"checkpoint": "last"},
    "anchor": {"anchor": "visual"},  # audio by itself
    "tie": {"tie": 100},
    "tie_rule": {"tie_rule": "standard_error"},
    "follower_epochs": {"follower_epochs": 3},
    "patience": {"patience": 1},
    "warm_start": {"warm_start": True},
    "select": {"select": "fused"},
    "weights": {"weights": "static"},
    "alpha_con": {"weights": "static", "alpha_con": 1},
    "alpha_com": {"weights": "static", "alpha_com": 1},
    "unaligned": {"unaligned": "hold"},
    "smoothing": {"smoothing": 0.5},
    "controller_batch": {"controller_batch": "previous"},
    "align": {"align": "features"},
    "similarity": {"similarity": "cosine"},
    "temperature": {"temperature": 2},
    "estimator": {"estimator": "sampled"},
    "reduction": {"reduction": "sum"},
    "normalise": {"normalise": "none"},
    "variance": {"variance": "one"},
    "q_hidden": {"q_hidden": 32},
    "q_lr": {"q_lr": 0.01},
    "q_steps": {"q_steps": 3},
    "q_order": {"q_order": "after"},
    "q_warmup_epochs": {"q_warmup_epochs": 0},
    "followers": {"followers": "sequential"},
    "anchor_view": {"anchor_view": "cached"},
    "fusion": {"fusion": "accuracy_weighted"},
}
BASES = {"alpha_con": "static", "alpha_com": "static", "followers": "three"} | {
    "anchor_view": "augmented",
    "tie_rule": "close",
}


def outcome(values: dict[str, Any], base: str) -> str:
    # entropy and accuracy disagree, and gradients do in some epoch
    bundle = tiny_bundle(3 if base == "three" else 2, n=(48, 16, 16), seed=9)
    if base == "augmented":
        bundle = augmented(bundle)
    if base == "close":  # the branch that is right less often, by a sample, has the lower entropy
        bundle = augmented(tiny_bundle(2, n=(48, 16, 16), classes=12, seed=11))
    trainer = make_trainer(bundle, "udi", brief(**values), epochs=5, batch_size=12)
    result = trainer.run()["result"]
    return comparable(result["curves"]) + comparable(result["readings"]) + state_digest(trainer.strategy.heads)


@pytest.fixture(scope="module")
def default_outcomes() -> dict[str, str]:
    bases = ("dynamic", "static", "three", "augmented", "close")
    return {base: outcome({"weights": "static"} if base == "static" else {}, base) for base in bases}


def test_every_option_is_tried_below() -> None:
    assert set(OTHERS) == {f.name for f in dataclasses.fields(UDIOptions)}


@pytest.mark.parametrize("name", OTHERS)
def test_no_option_is_without_effect(name: str, default_outcomes: dict[str, str]) -> None:
    base = BASES.get(name, "dynamic")
    assert outcome(OTHERS[name], base) != default_outcomes[base]


# -- followers as anchors ----------------------------------------------------------------------------------------------


def test_sequential_is_independent_until_there_is_a_second_follower() -> None:
    for modalities in (2, 3):
        bundle, found = live(small(modalities)), {}
        for followers in ("independent", "sequential"):
            trainer = make_trainer(bundle, "udi", brief(anchor="audio", followers=followers), **BRIEF)
            result = trainer.run()["result"]
            found[followers] = [branch(trainer, m) for m in bundle.modalities], result["curves"][: modalities * 2 + 2]
            passes = result["passes"]["forward"]
        assert found["independent"][1] == found["sequential"][1]
        same = [a == b for a, b in zip(found["independent"][0], found["sequential"][0], strict=True)]
        assert same == [True, True, False][:modalities]
    follow = 2 * 36 + 2 * 12 + 36
    assert passes == {"audio": 72 + 2 * follow, "visual": 72 + 2 * follow, "text": 72 + follow}


def test_a_follower_that_has_become_an_anchor_stands_still() -> None:
    seen = []

    class Watched(UDI):
        def begin_epoch(self) -> None:
            super().begin_epoch()
            assert [m for m, e in self.model.encoders.items() if e.training] == [self.task.phase.name.split("/")[1]]
            seen.append((self.task.phase.name, branch(trainer, "visual")))

    trainer = make_trainer(live(small(3)), Watched, brief(anchor="audio", followers="sequential"), **BRIEF)
    trainer.run()
    assert {state for name, state in seen if name == "follow/text"} == {branch(trainer, "visual")}
    assert trainer.strategy.phase(4).modalities == ("audio", "visual", "text")


# -- the anchor's view -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("followers", ["independent", "sequential"])
def test_cached_is_the_same_without_augmentation(followers: str) -> None:
    """In float64; batches of another size may round the last bit of a convolution otherwise.

    Without augmentation the view of the batch is made once, too, and then equal bit for bit.
    """
    runs = {}
    for view in ("batch", "cached", "once"):
        bundle = small(3, dtype=torch.float64)
        bundle = bundle if view == "once" else live(bundle)
        options = brief(anchor="audio", followers=followers, anchor_view="cached" if view == "cached" else "batch")
        trainer = make_trainer(bundle, "udi", options, **BRIEF)
        runs[view] = trainer.run()["result"], dict(trainer.strategy.state_dict())
    for name, value in runs["batch"][1].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(runs["cached"][1][name], value, rtol=1e-10, atol=1e-12)
    for curve, other in zip(*(runs[view][0]["curves"] for view in ("batch", "cached")), strict=True):
        assert curve["train"] == pytest.approx(other["train"], rel=1e-9)
    follow = 2 * 36 + 2 * 12 + 36
    assert runs["cached"][0]["curves"] == runs["once"][0]["curves"]
    assert runs["cached"][0]["passes"] == runs["once"][0]["passes"]
    forward = runs["cached"][0]["passes"]["forward"]
    anchors = 36 if followers == "sequential" else 0
    assert forward == {"audio": 72 + 2 * 36, "visual": 72 + follow + anchors, "text": 72 + follow}


def test_cached_is_of_clean_data() -> None:
    """The first step's consistency, by hand, from the clean anchor and the augmented follower."""
    found: list[float] = []

    class Watched(UDI):
        def step(self, batch: Batch) -> dict[str, Tensor]:
            if not self.task.phase.name.startswith("follow/"):
                return super().step(batch)
            assert list(batch.inputs) == ["visual"]
            assert not torch.equal(batch.inputs["visual"], bundle.train.inputs["visual"][batch.index])
            with torch.no_grad():
                clean = {"audio": bundle.train.inputs["audio"][batch.index], "visual": batch.inputs["visual"]}
                p, q = (self.heads[m](self.model.encoders[m](x)).softmax(1) for m, x in clean.items())
                gaps = [0.5 * (r * (r / ((p + q) / 2)).log()).sum(1).mean() for r in (p, q)]
            logs = super().step(batch)
            assert float(logs["loss/consistency"]) == pytest.approx(float(sum(gaps)), rel=1e-9)
            found.append(float(sum(gaps)))
            return logs

    bundle = augmented(tiny_bundle(2, n=(48, 16, 16), dtype=torch.float64))
    train(bundle, Watched, brief(anchor="audio", anchor_view="cached"), epochs=2)
    assert len(found) == 4


# -- the probe ---------------------------------------------------------------------------------------------------------


def test_probe() -> None:
    """Three updates by hand; nothing but the fusion moves; the prediction is linear in all features."""
    bundle, seen = small(3, dtype=torch.float64), []

    class Watched(UDI):
        def step(self, batch: Batch) -> dict[str, Tensor]:
            if self.task.phase.name != "probe":
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

    trainer = make_trainer(bundle, Watched, brief(fusion="probe"), schedule={"name": "constant"}, **BRIEF)
    result = trainer.run()["result"]
    strategy = trainer.strategy
    assert len(seen) == 6
    assert [c["phase"] for c in trainer.progress.costs][-1] == "probe"
    assert set(trainer.progress.snapshots[-1]["last"]["tensors"]) == {
        "model.fusion.out.weight",
        "model.fusion.out.bias",
    }
    assert trainer.progress.costs[-1]["forward"] == dict.fromkeys(bundle.modalities, 72)
    assert trainer.progress.costs[-1]["backward"] == dict.fromkeys(bundle.modalities, 0)
    assert len(result["curves"]) == UDI.planned_epochs(strategy.options, 2, list(bundle.modalities)) == 12
    with torch.no_grad():
        output = strategy.eval().predict(bundle.test.inputs)
        kept = [strategy.model.encoders[m](x) for m, x in bundle.test.inputs.items()]
        expected = torch.cat(kept, 1) @ strategy.model.fusion.out.weight.T + strategy.model.fusion.out.bias
        torch.testing.assert_close(output.logits, expected)
        shares = strategy.shares(output.features)
        torch.testing.assert_close(sum(shares.values()), output.logits)
        assert not torch.allclose(shares["audio"], output.unimodal["audio"])


@pytest.mark.parametrize("select", ["follower", "fused"])
def test_the_probe_changes_nothing_before_its_phase(select: str) -> None:
    """Two modalities, all of which a follower's validation with ``fused`` gets."""
    found = {}
    for fusion in ("sum", "probe"):
        trainer = make_trainer(small(), "udi", brief(fusion=fusion, select=select), **BRIEF)
        trainer.run()
        found[fusion] = trainer.progress.curves[:6], [branch(trainer, m) for m in ("audio", "visual")]
    assert found["sum"] == found["probe"]


def test_one_modality_has_no_probe() -> None:
    result, _ = train(small(1), "udi", brief(fusion="probe"), **BRIEF)
    assert {c["phase"] for c in result["curves"]} == {"alone/audio"}
    assert UDI.planned_epochs(brief(fusion="probe"), 2, ["audio"]) == 2


# -- patience ----------------------------------------------------------------------------------------------------------


def test_patience_ends_phases_alone_and_following_and_is_part_of_the_label(tmp_path: Path) -> None:
    bundle = tiny_bundle(2, n=(48, 16, 16))
    train(bundle, "unimodal", store=tmp_path, epochs=8)
    trainer = make_trainer(bundle, "udi", brief(patience=2, fusion="probe"), tmp_path, epochs=8)
    result = trainer.run()["result"]
    assert all(c["reused_from"] is None for c in trainer.progress.costs)  # not the phases that went all the way
    lengths = {}
    for cost in trainer.progress.costs:
        scores = [c["val"]["accuracy"] for c in result["curves"] if c["phase"] == cost["phase"]]
        lengths[cost["phase"]] = len(scores)
        best = scores.index(max(scores))
        assert len(scores) == (8 if cost["phase"] == "probe" else min(8, best + 3))
    assert min(lengths.values()) < 8
    again = make_trainer(bundle, "udi", brief(patience=2), tmp_path, epochs=8)
    again.run()
    assert [c["reused_from"] is None for c in again.progress.costs] == [False, False, True]
    other = make_trainer(bundle, "udi", brief(patience=3), tmp_path, epochs=8)
    other.run()
    assert all(c["reused_from"] is None for c in other.progress.costs)
    assert {UDI.phase(other.strategy, 0).shared, UDI.phase(again.strategy, 0).shared} == {
        "alone/audio/patience=3",
        "alone/audio/patience=2",
    }


# -- the choice of the anchor ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "count", "anchor"),
    [
        ((0.80, 0.77), 100, "visual"),  # one standard error: sqrt(0.8 * 0.2 / 100) = 0.04
        ((0.80, 0.75), 100, "audio"),
        ((0.80, 0.77), 400, "audio"),  # 0.02
        ((0.77, 0.80), 100, "visual"),
        ((0.90, 0.868), 100, "audio"),  # 0.03 of the best one; it would be 0.034 of the other
        ((1.00, 0.99), 100, "audio"),  # no error at all
    ],
)
def test_ties_within_a_standard_error(accuracy: tuple[float, float], count: int, anchor: str) -> None:
    """The second modality has the lower entropy."""
    trainer = make_trainer(tiny_bundle(n=(32, count, 16)), "udi", brief(tie_rule="standard_error"))
    strategy: Any = trainer.strategy
    strategy.alone_accuracy.copy_(torch.tensor(accuracy))
    strategy.alone_entropy.copy_(torch.tensor([1.0, 0.1]))
    assert strategy.anchor == anchor


def test_cost_in_passes() -> None:
    """36 samples, 2 epochs: alone 2 x 36 each; a follower 2 x 36 + 2 batches of 12; the warm-up 36 of both."""
    result, _ = train(live(small(3)), "udi", brief(anchor="audio"), **BRIEF)
    follow = 2 * 36 + 2 * 12 + 36
    assert result["passes"]["forward"] == {"audio": 72 + 2 * follow, "visual": 72 + follow, "text": 72 + follow}
    back = 72 + 72 + 2 * 12 * 3
    assert result["passes"]["backward"] == {"audio": 72, "visual": back, "text": back}
    result, _ = train(small(), "udi", brief(anchor="audio", weights="static", alpha_con=0, alpha_com=0), **BRIEF)
    assert result["passes"]["forward"] == {"audio": 72, "visual": 144}


def test_static_weights_leave_out_the_term_they_switch_off() -> None:
    result, strategy = train(small(), "udi", brief(weights="static", alpha_con=1, alpha_com=0), **BRIEF)
    logged = set(result["curves"][-1]["train"])
    assert logged == {"loss", "accuracy", "loss/classification", "loss/consistency", "alpha/consistency"}
    assert result["curves"][-1]["train"]["alpha/consistency"] == 1
    assert strategy.alpha.tolist() == [1, 0]


def test_a_branch_that_follows_starts_from_its_own_stream() -> None:
    """Neither from the weights it ended with alone nor from those it began with; warm_start is the former."""
    firsts = {}
    for warm in (False, True):
        trainer = make_trainer(small(), Spied, brief(warm_start=warm), **BRIEF)
        began = trainer.strategy.heads["visual"].weight.detach().clone()
        trainer.run()
        alone = trainer.progress.snapshots[1]["best_val"]["tensors"]["heads.visual.weight"]
        firsts[warm] = trainer.strategy.starts[0].head.weight
        assert torch.equal(firsts[warm], alone) == warm
        assert not torch.equal(firsts[warm], began)
    assert not torch.equal(firsts[False], firsts[True])


def test_building_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    make_trainer(small(3), "udi", brief())
    assert torch.equal(before, torch.get_rng_state())
