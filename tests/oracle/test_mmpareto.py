"""MMPareto against an independent float64 loop written from the paper's rule, and its invariants.

Planted bugs that were tried, each of which made a test here fail: gradients not cleared between the backward calls;
the two weights swapped; the weight's numerator of the other gradient; the min-norm branch never taken; the min-norm
branch always taken; cosine 0 averaged; gamma applied to the heads; gamma applied to the fusion; gamma left out; the
factor 2 left out; the magnitude restored per encoder where it should be per tensor, and the other way round; no lower
bound 1 on the rescaling; the guards of the norms and of the weight left out; batch norm left out of the gradient
vectors; a unimodal loss that reaches another encoder, or holds another modality's loss; idle unimodal heads; gradients
that keep another memory layout than their parameters.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from balancebench_udi import Batch, UserError
from balancebench_udi.data.base import Bundle
from balancebench_udi.trainer import Trainer
from baselines.mmpareto import MMPareto, combine
from tests.helpers import make_trainer, run_steps, state_digest, stop_and_resume, tiny_bundle, train

LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-4


def double_bundle(modalities: int) -> Bundle:
    return tiny_bundle(modalities, kind="image", n=(96, 16, 16), dtype=torch.float64)


def oppose(trainer: Trainer, *modalities: str) -> None:
    """Start these heads against the fusion's columns, so that the two gradients conflict."""
    strategy = trainer.strategy
    names = list(strategy.heads)
    with torch.no_grad():
        columns = strategy.model.fusion.out.weight.chunk(len(names), 1)
        for m, column in zip(names, columns, strict=True):
            strategy.heads[m].weight.copy_(-2 * column if m in modalities else column)


# -- the oracle ------------------------------------------------------------------------------------------------------


class Oracle:
    """Encoders, a linear fusion and linear heads in float64; MMPareto and SGD written out."""

    def __init__(self, trainer: Trainer, gamma: float, rescale: str) -> None:
        strategy = trainer.strategy
        self.gamma, self.rescale = gamma, rescale
        self.encoders = copy.deepcopy(strategy.model.encoders)
        self.names = list(self.encoders)
        out = strategy.model.fusion.out
        self.linear = {"fusion": [out.weight, out.bias]}
        self.linear.update({m: [h.weight, h.bias] for m, h in strategy.heads.items()})
        self.linear = {n: [t.detach().clone().requires_grad_() for t in pair] for n, pair in self.linear.items()}
        self.speed: dict[int, Tensor] = {}
        self.conflicts: list[bool] = []

    def parameters(self) -> list[Tensor]:
        return [*self.encoders.parameters(), *(t for pair in self.linear.values() for t in pair)]

    def update(self, batch: Batch) -> float:
        features = {m: self.encoders[m](batch.inputs[m]) for m in self.names}
        seen = {"fusion": torch.cat([features[m] for m in self.names], 1), **features}
        losses = {}
        for name, x in seen.items():
            weight, bias = self.linear[name]
            p = torch.softmax(x @ weight.T + bias, 1)
            losses[name] = -torch.stack([row[k].log() for row, k in zip(p, batch.target, strict=True)]).mean()
        every = self.parameters()
        gradients = {
            name: torch.autograd.grad(loss, every, retain_graph=True, materialize_grads=True)
            for name, loss in losses.items()
        }
        final = [sum(parts) for parts in zip(*gradients.values(), strict=True)]  # what a plain sum would give
        start = 0
        for m in self.names:
            stop = start + len(list(self.encoders[m].parameters()))
            final[start:stop] = self.pareto(gradients["fusion"][start:stop], gradients[m][start:stop])
            start = stop
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(every, final, strict=True)):
                g = g + DECAY * p
                self.speed[i] = MOMENTUM * self.speed[i] + g if i in self.speed else g
                p -= LR * self.speed[i]
        return float(sum(loss.detach() for loss in losses.values()))

    def pareto(self, joint: tuple[Tensor, ...], own: tuple[Tensor, ...]) -> list[Tensor]:
        x, y = (torch.cat([g.reshape(-1) for g in part]) for part in (joint, own))
        self.conflicts.append(float(torch.cosine_similarity(x, y, dim=0)) <= 0)
        w = float(torch.dot(y - x, y) / (x - y).pow(2).sum()) if self.conflicts[-1] else 0.5
        found = []
        for a, b in zip(joint, own, strict=True):
            h, s = 2 * w * a + 2 * (1 - w) * b, a + b
            if self.rescale == "encoder":
                factor = float((x + y).norm() / (2 * w * x + 2 * (1 - w) * y).norm())
            else:
                factor = float(s.norm() / h.norm())
            found.append(self.gamma * h * max(1.0, factor))
        return found


@pytest.mark.parametrize("rescale", ["tensor", "encoder"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_updates_equal_an_independent_loop(modalities: int, rescale: str) -> None:
    """Three steps in which the last modality's gradients conflict at first and the others' do not."""
    bundle = double_bundle(modalities)
    trainer = make_trainer(bundle, MMPareto, MMPareto.Options(rescale=rescale))
    oppose(trainer, list(bundle.modalities)[-1])
    oracle = Oracle(trainer, 1.5, rescale)
    strategy = trainer.strategy

    def after(batch: Batch, logs: dict[str, Tensor]) -> None:
        assert float(logs["loss"]) == pytest.approx(oracle.update(batch), rel=1e-9)
        found = [*strategy.model.encoders.parameters(), *strategy.model.fusion.parameters()]
        found += [*strategy.heads.parameters()]
        torch.testing.assert_close(found, oracle.parameters(), rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(
            dict(strategy.model.encoders.named_buffers()), dict(oracle.encoders.named_buffers()), rtol=1e-9, atol=1e-12
        )

    run_steps(trainer, 3, after)
    assert any(oracle.conflicts)
    assert not all(oracle.conflicts)


# -- its controls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [2, 3])
def test_uniform_weights_without_gamma_are_uniform_bit_for_bit(modalities: int) -> None:
    bundle = tiny_bundle(modalities)
    expected, reference = train(bundle, "uniform")
    result, strategy = train(bundle, MMPareto, {"weights": "uniform", "gamma": 1})
    assert state_digest(strategy) == state_digest(reference)
    assert result["readings"] == expected["readings"]
    assert result["passes"] == expected["passes"]
    for other in ({}, {"weights": "uniform"}, {"gamma": 1}):
        assert state_digest(train(bundle, MMPareto, other)[1]) != state_digest(reference)


def one_step(bundle: Bundle, method: Any, options: Any = None, against: tuple[str, ...] | None = ()) -> Any:
    """(strategy, gradients by name, logs) after one step; ``against``: heads opposed to the fusion, None: as built."""
    trainer = make_trainer(bundle, method, options)
    if against is not None:
        oppose(trainer, *against)
    seen: list[dict[str, Tensor]] = []
    run_steps(trainer, 1, lambda batch, logs: seen.append(logs))
    return trainer.strategy, {n: p.grad for n, p in trainer.strategy.named_parameters()}, seen[0]


@pytest.mark.parametrize("modalities", [2, 3])
def test_without_conflict_the_gradient_is_gamma_times_uniforms(modalities: int) -> None:
    bundle = double_bundle(modalities)
    _, expected, _ = one_step(bundle, "uniform")
    for gamma, options in ((1, {"gamma": 1}), (1.5, {}), (2, {"gamma": 2, "weights": "uniform"})):
        _, found, logs = one_step(bundle, MMPareto, options)
        if "weights" not in options:
            assert all(logs[f"weight/{m}"] == 0.5 for m in bundle.modalities)
        for name, g in found.items():
            factor = gamma if name.startswith("model.encoders.") else 1
            torch.testing.assert_close(g, factor * expected[name], rtol=1e-10, atol=1e-12)


def test_heads_and_fusion_have_uniforms_gradients_in_conflict() -> None:
    bundle = double_bundle(3)
    conflict = ("audio", "text")
    _, expected, _ = one_step(bundle, "uniform", None, conflict)
    _, found, logs = one_step(bundle, MMPareto, None, conflict)
    assert all(logs[f"cosine/{m}"] < 0 and 0 < logs[f"weight/{m}"] < 1 for m in conflict)
    for name, g in found.items():
        if not name.startswith("model.encoders."):
            torch.testing.assert_close(g, expected[name], rtol=1e-10, atol=1e-13)
        elif "audio" in name and g.numel() > 1:  # one number alone has only a sign
            assert not torch.allclose(g, 1.5 * expected[name], rtol=1e-3, atol=0)


def test_a_unimodal_loss_reaches_only_its_own_encoder_and_head() -> None:
    bundle = double_bundle(3)
    _, plain, _ = one_step(bundle, MMPareto, None, ("text",))
    _, other, _ = one_step(bundle, MMPareto, None, ("text", "audio"))
    for name, g in plain.items():
        assert torch.equal(g, other[name]) == ("audio" not in name), name


def test_batch_norm_belongs_to_the_encoders_vector() -> None:
    """The logged cosine is that of all parameters; leaving out the batch norm's would change it."""
    bundle = double_bundle(2)
    trainer = make_trainer(bundle, MMPareto)
    oppose(trainer, "visual")
    encoder, fusion = trainer.strategy.model.encoders, trainer.strategy.model.fusion
    initial = copy.deepcopy(trainer.strategy.state_dict())
    cosine: list[Tensor] = []
    (batch,) = run_steps(trainer, 1, lambda batch, logs: cosine.append(logs["cosine/visual"]))
    trainer.strategy.load_state_dict(initial)
    features = {m: encoder[m](batch.inputs[m]) for m in encoder}
    parameters = list(encoder["visual"].parameters())
    losses = [
        torch.nn.functional.cross_entropy(z, batch.target)
        for z in (fusion(features), trainer.strategy.heads["visual"](features["visual"]))
    ]
    g = [torch.autograd.grad(x, parameters, retain_graph=True) for x in losses]

    def of(skip: int) -> Tensor:
        x, y = (torch.cat([t.flatten() for t in part[skip:]]) for part in g)
        return torch.cosine_similarity(x, y, dim=0)

    assert parameters[0].shape == (3,)  # batch norm's weight comes first
    torch.testing.assert_close(cosine[0], of(0), rtol=1e-9, atol=0)
    assert abs(float(of(0) - of(2))) > 1e-7


# -- the closed form -------------------------------------------------------------------------------------------------


def pair(seed: int, conflict: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """Two gradients of three tensors with negative (or positive) inner product."""
    stream = torch.Generator().manual_seed(seed)
    shapes = ((4, 3), (5,), (2, 2, 2))
    first = [torch.randn(s, generator=stream, dtype=torch.float64) for s in shapes]
    second = [1.7 * torch.randn(s, generator=stream, dtype=torch.float64) for s in shapes]
    if (float(sum((a * b).sum() for a, b in zip(first, second, strict=True))) < 0) != conflict:
        second = [-b for b in second]
    return first, second


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([v.reshape(-1) for v in values])


@pytest.mark.parametrize("seed", range(8))
def test_conflicting_gradients_get_the_point_of_least_norm(seed: int) -> None:
    first, second = pair(seed)
    x, y = flat(first), flat(second)
    combined, weight, cosine = combine(first, second, 1.5, "encoder")
    grid = torch.linspace(0, 1, 10001, dtype=torch.float64)
    norms = (grid[:, None] * x + (1 - grid)[:, None] * y).norm(dim=1)
    assert cosine < 0
    assert 0 <= float(weight) <= 1
    assert abs(float(weight) - float(grid[norms.argmin()])) <= 1e-4
    h = 2 * weight * x + 2 * (1 - weight) * y
    for g in (x, y):  # the optimality condition; equality inside the segment
        assert float(h @ g) >= 2 * float((h / 2) @ (h / 2)) - 1e-9
        assert float(flat(combined) @ g) > 0  # common descent
    torch.testing.assert_close(torch.cosine_similarity(flat(combined), h, dim=0), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(flat(combined).norm(), 1.5 * (x + y).norm())  # the magnitude is restored exactly


@pytest.mark.parametrize("conflict", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_no_tensor_loses_magnitude(seed: int, conflict: bool) -> None:
    first, second = pair(seed, conflict)
    combined, weight, _ = combine(first, second, 1.5, "tensor")
    for g, a, b in zip(combined, first, second, strict=True):
        h, s = 2 * weight * a + 2 * (1 - weight) * b, a + b
        assert g.norm() >= 1.5 * s.norm() * (1 - 1e-9)
        torch.testing.assert_close(g.norm(), 1.5 * torch.maximum(s.norm(), h.norm()))
        torch.testing.assert_close(g / g.norm(), h / h.norm())
        if not conflict:
            assert torch.equal(g, 1.5 * s)


@pytest.mark.parametrize("rescale", ["tensor", "encoder"])
def test_degenerate_gradients_stay_finite(rescale: str) -> None:
    first, _ = pair(0)
    zero = [torch.zeros_like(g) for g in first]
    for c in (0.25, 1.0, 4.0):
        combined, weight, cosine = combine(first, [-c * g for g in first], 1.5, rescale)
        assert float(weight) == pytest.approx(c / (1 + c))
        assert float(cosine) == pytest.approx(-1)
        assert flat(combined).isfinite().all()
    combined, weight, _ = combine(first, [g.clone() * 3 for g in first], 1.5, rescale)
    assert weight == 0.5
    torch.testing.assert_close(flat(combined), 6 * flat(first))
    for joint, own in ((first, zero), (zero, first), (zero, zero)):
        combined, weight, cosine = combine(joint, own, 1.5, rescale)
        assert not flat(combined).any()  # the point of least norm is zero
        assert 0 <= float(weight) <= 1
        assert cosine == 0
    one, two = [torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 2.0])]
    assert float(combine(one, two, 1.0, rescale)[1]) == pytest.approx(0.8)  # cosine 0 is a conflict


# -- the machinery ---------------------------------------------------------------------------------------------------


def test_gradients_have_the_layout_of_their_parameters() -> None:
    """Convolutions may return channels_last gradients for weights that are not; a fused optimiser misreads those."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        trainer = make_trainer(tiny_bundle(kind="image"), MMPareto)
        oppose(trainer, "visual")
        trainer.strategy.model.to(memory_format=layout)
        run_steps(trainer, 2)
        found.append(dict(trainer.strategy.named_parameters()))
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in found[-1].values())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("modalities", [2, 3])
def test_one_forward_and_two_backward_passes(modalities: int) -> None:
    result, _ = train(tiny_bundle(modalities), MMPareto)
    for m in result["modalities"]:
        assert result["passes"]["forward"][m] == 4 * 96
        assert result["passes"]["backward"][m] == 2 * 4 * 96


def test_the_fusion_predicts_and_the_heads_are_read_out() -> None:
    bundle = tiny_bundle(3)
    _, strategy = train(bundle, MMPareto)
    strategy.eval()
    output = strategy.predict(bundle.test.inputs)
    assert torch.equal(output.logits, strategy.model.fusion(output.features))
    assert {m: z.shape for m, z in output.unimodal.items()} == dict.fromkeys(bundle.modalities, (40, 3))
    for m, z in output.unimodal.items():
        assert torch.equal(z, strategy.heads[m](output.features[m]))


def test_equal_and_confident_samples_stay_finite() -> None:
    bundle = tiny_bundle()
    bundle = dataclasses.replace(bundle, train=bundle.train.take(torch.zeros(64, dtype=torch.int64)))
    trainer = make_trainer(bundle, MMPareto)
    label = int(bundle.train.target[0])
    with torch.no_grad():
        trainer.strategy.model.fusion.out.bias[label] = 200.0
        for head in trainer.strategy.heads.values():
            head.bias[label] = 200.0
    seen: list[Tensor] = []
    run_steps(trainer, 4, lambda batch, logs: seen.extend(logs.values()))
    assert all(v.isfinite() for v in seen)
    assert all(p.isfinite().all() for p in trainer.strategy.parameters())


@pytest.mark.parametrize("modalities", [2, 3])
def test_resume_equals_uninterrupted(modalities: int, tmp_path: Path) -> None:
    bundle = tiny_bundle(modalities)
    expected, strategy = train(bundle, MMPareto, epochs=5)
    result, again, _ = stop_and_resume(3, bundle, MMPareto, None, tmp_path, epochs=5)
    assert result == expected
    assert state_digest(again.strategy) == state_digest(strategy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gamma": 0}, "mmpareto.gamma must be > 0, found 0.0"),
        ({"rescale": "layer"}, "mmpareto.rescale must be one of tensor, encoder, found layer"),
        ({"weights": "equal"}, "mmpareto.weights must be one of pareto, uniform, found equal"),
    ],
)
def test_bad_options_cost_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        MMPareto.Options.build("mmpareto", values)
    assert str(caught.value) == message
