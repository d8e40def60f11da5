"""The four controls (joint, uniform, unimodal, ensemble) against a plain float64 loop written from their definitions.

Network, loss and SGD with momentum and weight decay are written out below, from tensors alone. Planted bugs, each of
which failed a test here: the unimodal losses of uniform left out, or taken from the shares instead of the heads; weight
decay left out; momentum left out; the ensemble as a mean instead of a sum; unimodal predicting with the branch that is
worst on validation.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import make_trainer, run_steps, tiny_bundle, train

LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-3
counts = pytest.mark.parametrize("count", [2, 3])


def bundle(count: int):
    return tiny_bundle(count, "image", n=(96, 30, 30), dtype=torch.float64)


def trainer(name: str, count: int):
    optimizer = {"name": "sgd", "lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    return make_trainer(bundle(count), name, optimizer=optimizer, schedule={"name": "constant"})


def state(run) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.strategy.state_dict().items()}


def encode(w: dict[str, Tensor], m: str, x: Tensor) -> Tensor:
    """Batch norm by the batch's statistics, four convolutions, global average, linear."""
    p = f"model.encoders.{m}."
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    x = x * w[p + "body.0.weight"].view(1, -1, 1, 1) + w[p + "body.0.bias"].view(1, -1, 1, 1)
    x = F.conv2d(x, w[p + "body.1.weight"], w[p + "body.1.bias"], padding=2).clamp(min=0)
    x = F.max_pool2d(x, 3, 2, 1)
    x = F.conv2d(x, w[p + "body.4.weight"], w[p + "body.4.bias"], padding=1).clamp(min=0)
    x = F.conv2d(x, w[p + "body.6.weight"], w[p + "body.6.bias"], stride=2, padding=1).clamp(min=0)
    x = F.conv2d(x, w[p + "body.8.weight"], w[p + "body.8.bias"], padding=1).clamp(min=0)
    return x.mean((2, 3)) @ w[p + "out.weight"].T + w[p + "out.bias"]


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return (z.exp().sum(1).log() - z[torch.arange(len(y)), y]).mean()


def own_head(w: dict[str, Tensor], m: str, f: Tensor) -> Tensor:
    return f @ w[f"heads.{m}.weight"].T + w[f"heads.{m}.bias"]


def joint_loss(w, x, y):
    f = torch.cat([encode(w, m, x[m]) for m in x], 1)
    return cross_entropy(f @ w["model.fusion.out.weight"].T + w["model.fusion.out.bias"], y)


def uniform_loss(w, x, y):
    return joint_loss(w, x, y) + sum(cross_entropy(own_head(w, m, encode(w, m, x[m])), y) for m in x)


def branch_loss(w, x, y):
    (m,) = x
    return cross_entropy(own_head(w, m, encode(w, m, x[m])), y)


def loop(w: dict[str, Tensor], batches, loss, trained) -> dict[str, Tensor]:
    """SGD: v <- momentum v + (g + decay w), w <- w - lr v; in the first step v is g + decay w."""
    w = {name: value.clone() for name, value in w.items()}
    velocity: dict[str, Tensor] = {}
    for batch in batches:
        for name in trained:
            w[name] = w[name].detach().requires_grad_()
        grads = torch.autograd.grad(loss(w, batch.inputs, batch.target), [w[name] for name in trained])
        for name, g in zip(trained, grads, strict=True):
            step = g + DECAY * w[name].detach()
            velocity[name] = MOMENTUM * velocity[name] + step if name in velocity else step
            w[name] = w[name].detach() - LR * velocity[name]
    return w


def parameters(run, *prefixes: str) -> list[str]:
    return [name for name, _ in run.strategy.named_parameters() if name.startswith(prefixes)]


@counts
@pytest.mark.parametrize(("name", "loss"), [("joint", joint_loss), ("uniform", uniform_loss)])
def test_first_three_updates(name, loss, count):
    run = trainer(name, count)
    before = state(run)
    batches = run_steps(run, 3)
    after = state(run)
    expected = loop(before, batches, loss, parameters(run, "model.", "heads."))
    for key in parameters(run, "model.", "heads."):
        torch.testing.assert_close(after[key], expected[key], rtol=1e-9, atol=1e-11, msg=key)
        assert not torch.equal(after[key], before[key]), key


@counts
@pytest.mark.parametrize("name", ["unimodal", "ensemble"])
def test_first_three_updates_of_a_branch(name, count):
    run = trainer(name, count)
    before = state(run)
    batches = run_steps(run, 3)
    after = state(run)
    first = run.task.modalities[0]
    assert all(list(batch.inputs) == [first] for batch in batches)
    branch = parameters(run, f"model.encoders.{first}.", f"heads.{first}.")
    expected = loop(before, batches, branch_loss, branch)
    for key in branch:
        torch.testing.assert_close(after[key], expected[key], rtol=1e-9, atol=1e-11, msg=key)
        assert not torch.equal(after[key], before[key]), key
    for key in set(parameters(run, "")) - set(branch):
        assert torch.equal(after[key], before[key]), key


@counts
def test_what_the_branches_predict_together(count):
    data = bundle(count)
    _, ensemble = train(data, "ensemble", epochs=2)
    result, unimodal = train(data, "unimodal", epochs=2)
    ensemble.eval()
    unimodal.eval()
    with torch.no_grad():
        x = data.val.inputs
        each = {m: ensemble.heads[m](ensemble.model.encoders[m](x[m])) for m in x}
        total = sum(each.values())
        torch.testing.assert_close(ensemble.predict(x).logits, total, rtol=1e-10, atol=1e-10)
        hits = {m: (z.argmax(1) == data.val.target).double().mean().item() for m, z in each.items()}
        best = max(hits, key=lambda m: hits[m])
        torch.testing.assert_close(unimodal.predict(x).logits, each[best], rtol=1e-10, atol=1e-10)
    assert result["readings"]["best_val"]["val"]["accuracy"] == pytest.approx(max(hits.values()))
