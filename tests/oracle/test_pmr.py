"""PMR against an independent float64 loop written from the paper's formulas, and its invariants.

Planted bugs that were tried, each of which made a test here fail: the ratio of the scores inverted, with clipped and
with hard coefficients; beta and gamma swapped; no guard for scores of zero; coefficients not detached; squared
distances; distances with a plain root (NaN at 0); a temperature of 2; prototypes in train mode; prototypes of the whole
train split; prototypes of the validation split; momentum the wrong way round; momentum already at the first
computation; no update after an epoch; updates that never stop; the entropy's sign; the entropy in all epochs; the
entropy's last epoch included; the window's last epoch left out; the sum over the batch in place of the mean in PCE; the
class mask left out, or made of -inf; absent classes divided by zero; the subset not stratified, drawn from the global
generator, or not saved.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from balancebench_udi import Batch, Options, UserError
from balancebench_udi.data.base import Bundle
from balancebench_udi.trainer import Trainer
from baselines.pmr import PMR, coefficients
from tests.helpers import make_trainer, run_steps, state_digest, stop_and_resume, tiny_bundle, train

LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-4


def double_bundle(modalities: int, **kwargs: Any) -> Bundle:
    return tiny_bundle(modalities, kind="image", n=(64, 16, 16), dtype=torch.float64, **kwargs)


# -- the oracle ------------------------------------------------------------------------------------------------------


class Oracle:
    """Encoders and a linear fusion in float64; PMR and SGD written out."""

    def __init__(self, trainer: Trainer, bundle: Bundle, subset: Tensor, **knobs: Any) -> None:
        model = trainer.strategy.model
        self.names = list(bundle.modalities)
        self.encoders = copy.deepcopy(model.encoders)
        self.weight = model.fusion.out.weight.detach().clone().requires_grad_()
        self.bias = model.fusion.out.bias.detach().clone().requires_grad_()
        self.data = {m: bundle.train.inputs[m][subset] for m in self.names}
        self.labels = bundle.train.target[subset]
        self.classes = len(bundle.classes)
        self.knobs = knobs
        self.speed: dict[int, Tensor] = {}
        self.seen: list[tuple[list[float], list[float]]] = []
        self.prototypes = self.means()

    def parameters(self) -> list[Tensor]:
        return [*self.encoders.parameters(), self.weight, self.bias]

    def means(self) -> dict[str, list[Tensor]]:
        found = {}
        self.encoders.eval()
        with torch.no_grad():
            for m in self.names:
                features = self.encoders[m](self.data[m])
                found[m] = [
                    torch.stack([f for f, y in zip(features, self.labels, strict=True) if y == k]).mean(0)
                    for k in range(self.classes)
                ]
        return found

    def epoch_ends(self) -> None:
        eps = self.knobs["momentum"]
        fresh = self.means()
        self.prototypes = {
            m: [eps * old + (1 - eps) * new for old, new in zip(self.prototypes[m], fresh[m], strict=True)]
            for m in self.names
        }

    def update(self, batch: Batch, window: bool, entropy: bool) -> float:
        self.encoders.train()
        features = {m: self.encoders[m](batch.inputs[m]) for m in self.names}
        y = batch.target
        logits = torch.cat([features[m] for m in self.names], 1) @ self.weight.T + self.bias
        loss = -torch.stack([row[k] - row.logsumexp(0) for row, k in zip(logits, y, strict=True)]).mean()
        if window:
            loss = loss + self.extra(features, y, entropy)
        gradients = torch.autograd.grad(loss, self.parameters())
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(self.parameters(), gradients, strict=True)):
                g = g + DECAY * p
                self.speed[i] = MOMENTUM * self.speed[i] + g if i in self.speed else g
                p -= LR * self.speed[i]
        return float(loss.detach())

    def extra(self, features: dict[str, Tensor], y: Tensor, entropy: bool) -> Tensor:
        scores, pce, spread = [], [], []
        for m in self.names:
            total, losses, entropies = 0.0, [], []
            for f, k in zip(features[m], y, strict=True):
                z = torch.stack([-((f - c) ** 2).sum().sqrt() for c in self.prototypes[m]])
                p = z.exp() / z.exp().sum()
                total += float(p[k].detach())
                losses.append(-p[k].log())
                entropies.append(-(p * p.log()).sum())
            scores.append(total)
            pce.append(sum(losses) / len(y))
            spread.append(sum(entropies) / len(y))
        beta, gamma = self.rule(scores)
        self.seen.append((beta, gamma))
        extra = sum(self.knobs["alpha"] * b * x for b, x in zip(beta, pce, strict=True))
        if entropy:
            extra = extra - sum(self.knobs["mu"] * g * h for g, h in zip(gamma, spread, strict=True))
        return extra  # type: ignore[return-value]

    def rule(self, s: list[float]) -> tuple[list[float], list[float]]:
        """The paper's two cases for two modalities; the later rule for three."""
        hard = self.knobs["coef"] == "hard"
        if len(s) == 2:
            rho = s[0] / s[1]
            first = min(max(1 / rho - 1, 0.0), 1.0) if rho < 1 else 0.0
            second = 0.0 if rho < 1 else min(max(rho - 1, 0.0), 1.0)
            if hard:
                first, second = float(first > 0), float(second > 0)
            return [first, second], [second, first]
        beta = [float(max(s) > x) if hard else min(1.0, max(s) / x - 1) for x in s]
        gamma = [float(x > min(s)) if hard else min(1.0, x / min(s) - 1) for x in s]
        return beta, gamma


@pytest.mark.parametrize("coef", ["clip", "hard"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_updates_equal_an_independent_loop(modalities: int, coef: str) -> None:
    """Two steps an epoch: epoch 0 has PCE and entropy, epoch 1 (momentum) PCE, epoch 2 nothing."""
    knobs = {"alpha": 0.7, "mu": 0.3, "momentum": 0.25, "coef": coef}
    bundle = double_bundle(modalities)
    options = PMR.Options(window=(0, 0.34), entropy_until=0.25, subset=0.3, **knobs)
    trainer = make_trainer(bundle, PMR, options, epochs=4)
    oracle = Oracle(trainer, bundle, trainer.strategy.subset, **knobs)
    strategy, losses, step = trainer.strategy, [], 0

    def after(batch: Batch, logs: dict[str, Tensor]) -> None:
        nonlocal step
        epoch = step // 2
        if step and step % 2 == 0:
            oracle.epoch_ends()
        if epoch < 2:
            for m in oracle.names:
                torch.testing.assert_close(strategy.prototypes[m], torch.stack(oracle.prototypes[m]))
        losses.append((float(logs["loss"]), oracle.update(batch, window=epoch < 2, entropy=epoch < 1)))
        expected, found = oracle.parameters(), [*strategy.model.encoders.parameters(), *fusion_tensors(strategy)]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(
            dict(strategy.model.encoders.named_buffers()), dict(oracle.encoders.named_buffers()), rtol=1e-9, atol=1e-12
        )
        step += 1

    run_steps(trainer, 5, after)
    assert losses == [pytest.approx((mine, mine), rel=1e-9) for _, mine in losses]
    graded = [x for beta, gamma in oracle.seen for x in (*beta, *gamma)]
    assert any(x > 0 for x in graded)
    if coef == "clip":
        assert any(0 < x < 1 for x in graded)  # the clip is not all that was compared


def fusion_tensors(strategy: PMR) -> list[Tensor]:
    return [strategy.model.fusion.out.weight, strategy.model.fusion.out.bias]


# -- neutral settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("options", [{"alpha": 0, "mu": 0}, {"window": (1, 1)}])
def test_neutral_settings_are_joint_bit_for_bit(modalities: int, options: dict[str, Any]) -> None:
    bundle = tiny_bundle(modalities)
    joint, reference = train(bundle, "joint")
    result, strategy = train(bundle, PMR, options)
    assert state_digest(strategy.model) == state_digest(reference.model)
    assert result["readings"] == joint["readings"]
    assert result["passes"] == joint["passes"]  # and costs nothing
    assert state_digest(train(bundle, PMR)[1].model) != state_digest(reference.model)


# -- the window ------------------------------------------------------------------------------------------------------


def test_official_window_of_a_hundred_epochs() -> None:
    strategy = make_trainer(tiny_bundle(), PMR, PMR.Options(alpha=2), epochs=100).strategy
    assert [e for e in range(100) if strategy.strengths(e)[0]] == list(range(71))
    assert [e for e in range(100) if strategy.strengths(e)[1]] == list(range(10))
    late = make_trainer(tiny_bundle(), PMR, PMR.Options(window=(0.29, 0.58), entropy_until=0.4), epochs=100).strategy
    assert [e for e in range(100) if late.strengths(e)[0]] == list(range(29, 59))
    assert [e for e in range(100) if late.strengths(e)[1]] == list(range(29, 40))


def test_a_short_run_has_its_entropy_in_the_first_epoch() -> None:
    strategy = make_trainer(tiny_bundle(), PMR, epochs=4).strategy
    assert [strategy.strengths(e) for e in range(4)] == [(1.0, 0.01), (1.0, 0.0), (1.0, 0.0), (0.0, 0.0)]


# -- the posterior and the coefficients ------------------------------------------------------------------------------


def started(modalities: int = 2, **options: Any) -> tuple[Trainer, PMR, Batch]:
    """A float64 trainer with prototypes in place, and its first batch."""
    trainer = make_trainer(double_bundle(modalities), PMR, PMR.Options(**options), epochs=4)
    strategy = trainer.strategy
    trainer.task.phase = strategy.phase(0)
    strategy.begin_phase()
    return trainer, strategy, trainer.task.first_batch()


def test_posterior_is_a_softmax_over_plain_distances() -> None:
    _, strategy, batch = started()
    strategy.prototype_audio.zero_()
    strategy.prototype_audio[0, 0], strategy.prototype_audio[1, 1] = 3.0, 4.0
    point = torch.zeros(1, 512, dtype=torch.float64)
    weights = torch.tensor([math.exp(-3), math.exp(-4), 1.0], dtype=torch.float64)
    torch.testing.assert_close(strategy.log_posterior("audio", point).exp()[0], weights / weights.sum())

    features = strategy.model.encode(batch.inputs)["visual"]
    before = strategy.log_posterior("visual", features)
    torch.testing.assert_close(before.exp().sum(1), torch.ones(len(batch), dtype=torch.float64))
    shift = torch.linspace(-2, 2, 512, dtype=torch.float64)
    strategy.prototype_visual += shift
    torch.testing.assert_close(strategy.log_posterior("visual", features + shift), before)


def test_a_sample_on_its_prototype_has_a_finite_gradient() -> None:
    _, strategy, _ = started()
    point = strategy.prototype_audio[:2].clone().requires_grad_()
    F.nll_loss(strategy.log_posterior("audio", point), torch.tensor([0, 0])).backward()
    assert point.grad is not None
    assert point.grad.isfinite().all()
    assert point.grad.abs().sum() > 0


def test_coefficients_of_two_follow_the_papers_cases() -> None:
    stream = torch.Generator().manual_seed(0)
    for pair in torch.rand(200, 2, generator=stream).double() * 3 + 0.1:
        rho = float(pair[0] / pair[1])
        expected = min(max(1 / rho, rho) - 1, 1.0)
        slower = 0 if rho < 1 else 1
        beta, gamma = coefficients(pair, "clip")
        assert float(beta[slower]) == pytest.approx(expected)
        assert float(gamma[1 - slower]) == pytest.approx(expected)
        assert beta[1 - slower] == gamma[slower] == 0
        hard = coefficients(pair, "hard")
        assert hard[0][slower] == hard[1][1 - slower] == 1
        assert hard[0][1 - slower] == hard[1][slower] == 0


@pytest.mark.parametrize("kind", ["clip", "hard"])
def test_coefficients_stay_in_range_and_vanish_on_ties(kind: str) -> None:
    stream = torch.Generator().manual_seed(1)
    for scores in torch.rand(100, 3, generator=stream) * 20:
        beta, gamma = coefficients(scores, kind)
        for x in (beta, gamma):
            assert ((x >= 0) & (x <= 1)).all()
        assert beta[scores.argmax()] == 0
        assert gamma[scores.argmin()] == 0
        order = torch.tensor([2, 0, 1])
        turned = coefficients(scores[order], kind)
        assert torch.equal(turned[0], beta[order])
        assert torch.equal(turned[1], gamma[order])
    for tied in (torch.full((3,), 1.7), torch.zeros(2)):
        beta, gamma = coefficients(tied, kind)
        assert not beta.any()
        assert not gamma.any()
    beta, gamma = coefficients(torch.tensor([0.0, 5.0]), kind)
    assert beta.tolist() == [1, 0]
    assert gamma.tolist() == [0, 1]


def gradients(strategy: PMR, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    strategy.zero_grad(set_to_none=True)
    model = copy.deepcopy(strategy.model.state_dict())
    output = strategy.forward(batch)
    loss, logs = strategy.loss(output, batch)
    loss.backward()
    found = {n: p.grad.clone() for n, p in strategy.model.named_parameters() if p.grad is not None}
    strategy.model.load_state_dict(model)  # batch norm has seen nothing
    return found, logs, loss.detach()


def test_prototype_loss_reaches_only_the_slower_encoder() -> None:
    trainer, strategy, batch = started(mu=0)
    trainer.task.epoch = 3  # outside the window: cross-entropy alone
    plain, _, _ = gradients(strategy, batch)
    trainer.task.epoch = 0
    ours, logs, _ = gradients(strategy, batch)
    assert not any(p.requires_grad for p in strategy.prototypes.values())
    slower, faster = ("audio", "visual") if logs["beta/audio"] > 0 else ("visual", "audio")
    assert logs[f"beta/{slower}"] > 0
    for name, g in plain.items():
        assert torch.equal(ours[name], g) == (not name.startswith(f"encoders.{slower}.")), name
    assert any(n.startswith(f"encoders.{faster}.") for n in plain)
    assert any(n.startswith("fusion.") for n in plain)


def test_entropy_of_the_faster_modality_lowers_the_loss() -> None:
    _, strategy, batch = started(mu=0.5, alpha=0)
    fused = F.cross_entropy(strategy.forward(batch).logits, batch.target)
    _, logs, loss = gradients(strategy, batch)
    reward = sum(0.5 * logs[f"gamma/{m}"] * logs[f"entropy/{m}"] for m in ("audio", "visual"))
    assert reward > 0
    torch.testing.assert_close(loss, fused.detach() - reward)
    for m in ("audio", "visual"):
        assert 0 <= logs[f"entropy/{m}"] <= math.log(3)
        assert (logs[f"gamma/{m}"] > 0) == (logs[f"score/{m}"] == max(logs["score/audio"], logs["score/visual"]))


# -- the prototypes --------------------------------------------------------------------------------------------------


def test_subset_is_stratified_fixed_and_of_this_seed() -> None:
    bundle = tiny_bundle(n=(200, 16, 16), classes=7)
    options = PMR.Options(subset=0.1)
    trainer = make_trainer(bundle, PMR, options, epochs=3)
    subset = trainer.strategy.subset.clone()
    count = torch.bincount(bundle.train.target)
    assert torch.bincount(bundle.train.target[subset]).tolist() == [max(1, round(0.1 * int(c))) for c in count]
    assert len(subset.unique()) == len(subset)
    trainer.run()
    assert torch.equal(trainer.strategy.subset, subset)
    same = make_trainer(bundle, PMR, PMR.Options(alpha=2, momentum=0.9), epochs=7).strategy.subset
    other = make_trainer(bundle, PMR, options, epochs=3, seed=1).strategy.subset
    assert torch.equal(same, subset)
    assert not torch.equal(other, subset)
    least = make_trainer(bundle, PMR, PMR.Options(subset=1e-6)).strategy.subset
    assert torch.bincount(bundle.train.target[least]).tolist() == [1] * 7


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_zero_follows_and_one_never_moves(momentum: float) -> None:
    bundle = tiny_bundle()
    trainer = make_trainer(bundle, PMR, PMR.Options(momentum=momentum, window=(0, 1)), epochs=4)
    strategy = trainer.strategy
    seen: list[Tensor] = []
    run_steps(trainer, 7, lambda batch, logs: seen.append(strategy.prototype_audio.clone()))  # 3 steps an epoch
    assert torch.equal(seen[2], seen[0])
    assert torch.equal(seen[3], seen[0]) == torch.equal(seen[6], seen[3]) == (momentum == 1)
    if momentum == 0:
        strategy.end_epoch()
        strategy.eval()
        rows = strategy.subset
        with torch.no_grad():
            features = strategy.model.encode({m: x[rows] for m, x in bundle.train.inputs.items()})["audio"]
        expected = torch.stack([features[bundle.train.target[rows] == k].mean(0) for k in range(3)])
        torch.testing.assert_close(strategy.prototype_audio, expected)


def test_prototypes_come_from_train_without_augmentation() -> None:
    augmented: list[bool] = []

    class Watched:
        draws = 1

        def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
            augmented.append(draws is not None)
            return stored

    bundle = tiny_bundle()
    modalities = {m: dataclasses.replace(x, transform=Watched()) for m, x in bundle.modalities.items()}
    bundle = dataclasses.replace(bundle, modalities=modalities)
    trainer = make_trainer(bundle, PMR, epochs=4)
    calls: list[tuple[str, Any]] = []
    collect = trainer.task.collect

    def watched(fn: Any, split: str, index: Any = None, modalities: Any = None) -> Any:
        start = len(augmented)
        found = collect(fn, split, index, modalities)
        calls.append((split, index))
        assert not any(augmented[start:])
        assert trainer.strategy.training  # the mode is put back
        return found

    trainer.task.collect = watched  # type: ignore[method-assign]
    passes = trainer.run()["result"]["passes"]
    assert any(augmented)
    assert len(calls) == 3  # before training and after epochs 0 and 1: epoch 3 lies outside the window
    assert all(split == "train" and torch.equal(index, trainer.strategy.subset) for split, index in calls)
    assert passes["forward"]["audio"] == 4 * 96 + 3 * len(trainer.strategy.subset)
    assert passes["backward"]["audio"] == 4 * 96


def test_a_class_that_train_lacks_is_left_out() -> None:
    bundle = tiny_bundle(3)
    bundle = dataclasses.replace(bundle, train=bundle.train.take(torch.nonzero(bundle.train.target != 1).flatten()))
    trainer = make_trainer(bundle, PMR, PMR.Options(mu=0.1, entropy_until=1, window=(0, 1)))
    seen: list[dict[str, Tensor]] = []
    run_steps(trainer, 4, lambda batch, logs: seen.append(logs))
    assert all(v.isfinite() for logs in seen for v in logs.values())
    assert all(p.isfinite().all() for p in trainer.strategy.state_dict().values())
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    p = trainer.strategy.log_posterior("text", features).exp()
    assert not p[:, 1].any()
    torch.testing.assert_close(p.sum(1), torch.ones(5))
    assert max(float(logs["entropy/text"]) for logs in seen) <= math.log(2) + 1e-6


def test_equal_samples_stay_finite() -> None:
    bundle = tiny_bundle()
    bundle = dataclasses.replace(bundle, train=bundle.train.take(torch.zeros(64, dtype=torch.int64)))
    trainer = make_trainer(bundle, PMR)
    seen: list[Tensor] = []
    run_steps(trainer, 4, lambda batch, logs: seen.extend(logs.values()))
    assert all(v.isfinite() for v in seen)
    assert all(p.isfinite().all() for p in trainer.strategy.parameters())


# -- resume, options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [2, 3])
def test_resume_equals_uninterrupted(modalities: int, tmp_path: Path) -> None:
    bundle = tiny_bundle(modalities)
    expected, strategy = train(bundle, PMR, epochs=5)
    result, again, reports = stop_and_resume(3, bundle, PMR, None, tmp_path, epochs=5)
    assert result == expected
    assert state_digest(again.strategy) == state_digest(strategy)
    assert len(reports) == 1 + 3  # two epochs were kept


def test_the_drawn_subset_survives_in_the_checkpoint() -> None:
    state = make_trainer(tiny_bundle(), PMR).strategy.state_dict()
    other = make_trainer(tiny_bundle(), PMR, seed=5).strategy
    assert not torch.equal(other.subset, state["subset"])
    other.load_state_dict(state)
    assert torch.equal(other.subset, state["subset"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": -1}, "pmr.alpha must be >= 0, found -1.0"),
        ({"window": (0.5, 0.2)}, "pmr.window must be two fractions of the run"),
        ({"window": (0.5,)}, "pmr.window must be two fractions of the run"),
        ({"window": "0,70"}, "pmr.window must be <= 1, found 70.0"),
        ({"coef": "soft"}, "pmr.coef must be one of clip, hard, found soft"),
        ({"subset": 0}, "pmr.subset must be > 0, found 0.0"),
    ],
)
def test_bad_options_cost_one_sentence(values: dict[str, Any], message: str) -> None:
    options: type[Options] = PMR.Options
    with pytest.raises(UserError) as caught:
        options.build("pmr", values)
    assert str(caught.value).startswith(message)


def test_one_modality_is_refused() -> None:
    with pytest.raises(UserError, match="pmr needs at least 2 modalities, found 1"):
        PMR.check(PMR.Options(), ["audio"], additive=True)
