"""AGM against an independent implementation with hooks and whole-network passes, and its laws.

Planted bugs, each caught here: sign flipped; tau and r exchanged; sign of the score; r inverted; M / (M-1) missing;
half term of the own modality missing; kappas on the wrong modality; probability floor missing; cap ignored; batch norm
in train mode in the ablated passes; model left in eval mode; every module put to train mode; ablated passes
without gradient, or made before the training pass; features at zero for inputs at zero; full pass in eval mode; running
mean before tau, as a moving average, or only inside the window; running means or step count not saved; clip always,
never, on the fusion alone, or outside the window; surrogate's value reported as the loss; hidden samples shown.
"""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from balancebench_udi import Batch, UserError
from balancebench_udi.seeding import generator
from baselines.agm import eval_mode, shapley_weights, standing
from tests.helpers import make_trainer, run_steps, state_digest, stop_and_resume, tiny_bundle, train

LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-4
DOUBLE = {"rtol": 1e-9, "atol": 1e-12}
FREE = {"clip_above": None}


def image_trainer(options=None, modalities=2, method="agm", dtype=torch.float64, **overrides):
    return make_trainer(tiny_bundle(modalities, "image", dtype=dtype), method, options, **overrides)


def oracle(model, batches, alpha=1.5, cap=10.0, clip_above=1.0, clip_norm=1.0):
    """Updates ``model`` in place, as the official code does it; returns (scores, kappas, clipped) of every step."""
    names = list(model.encoders)
    history, past, momenta = [], [0.0] * len(names), {}

    def network(inputs):
        return model.fusion({m: model.encoders[m](inputs[m]) for m in names})

    for step, batch in enumerate(batches, 1):

        def f(*present, batch=batch):
            return network({m: x if m in present else torch.zeros_like(x) for m, x in batch.inputs.items()})

        model.train()
        full = f(*names)
        model.eval()
        if len(names) == 2:
            a, v = names
            shares = [0.5 * (full - f(v) + f(a)), 0.5 * (full - f(a) + f(v))]
        else:
            shares = [
                (full - f(p, q) + f(t)) / 3 + (f(t, p) - f(p) + f(t, q) - f(q)) / 6
                for t, p, q in (names, names[1:] + names[:1], names[2:] + names[:2])
            ]
        model.train()
        torch.testing.assert_close(sum(shares), full, **DOUBLE)

        scores = []
        for share in shares:
            p = share.detach().softmax(1)
            scores.append(-sum(math.log(max(float(p[i, y]), 1e-8)) for i, y in enumerate(batch.target)) / len(p))

        def ratio(values, m):
            others = [values[j] - values[m] for j in range(len(values)) if j != m]
            return math.exp(sum(others) / len(others))

        kappas = [
            math.exp(alpha * min(ratio(past, m) - ratio(scores, m), math.inf if cap is None else cap))
            for m in range(len(names))
        ]
        past = [old * (step - 1) / step + new / step for old, new in zip(past, scores, strict=True)]
        for share, kappa in zip(shares, kappas, strict=True):
            share.register_hook(lambda g, kappa=kappa: kappa * g)
        model.zero_grad()
        F.cross_entropy(sum(shares), batch.target).backward()
        head = [p.grad for p in model.fusion.parameters() if p.dim() == 2]
        clipped = clip_above is not None and any(g.max() > clip_above or g.min() < -clip_above for g in head)
        if clipped:
            nn.utils.clip_grad_norm_(list(model.parameters()), clip_norm)
        with torch.no_grad():
            for name, p in model.named_parameters():
                change = p.grad + DECAY * p
                momenta[name] = MOMENTUM * momenta[name] + change if name in momenta else change
                p -= LR * momenta[name]
        history.append((scores, kappas, clipped))
    return history, past


@pytest.mark.parametrize(
    ("modalities", "fusion", "options", "clips"),
    [
        (2, "concat", {}, None),
        (2, "concat", {"alpha": 2.5, "cap": 0.01, "clip_above": None}, False),
        (2, "concat", {"clip_above": 0.01, "clip_norm": 0.05}, True),
        (2, "concat", {"clip_above": 100.0, "clip_norm": 0.01}, False),
        (2, "film", {"clip_above": None}, False),
        (2, "sum", {"cap": None}, None),
        (3, "concat", {"clip_above": None}, False),
        (3, "sum", {"clip_above": 0.01, "clip_norm": 0.05}, True),
    ],
)
def test_first_three_updates(modalities, fusion, options, clips):
    trainer = image_trainer(options, modalities, fusion=fusion)
    reference = copy.deepcopy(trainer.strategy.model)
    logs = []
    batches = run_steps(trainer, 3, lambda batch, log: logs.append(log))
    history, past = oracle(reference, batches, **options)
    found, expected = trainer.strategy.model.state_dict(), reference.state_dict()
    # the oracle's eval-mode passes leave batch norm alone, so all buffers must agree too
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **DOUBLE, msg=lambda text, name=name: f"{name}: {text}")
    for log, (scores, kappas, _) in zip(logs, history, strict=True):
        for i, m in enumerate(reference.encoders):
            assert float(log[f"score/{m}"]) == pytest.approx(scores[i], rel=1e-9)
            assert float(log[f"kappa/{m}"]) == pytest.approx(kappas[i], rel=1e-9)
    assert trainer.strategy.running.tolist() == pytest.approx(past, rel=1e-9)
    assert any(abs(kappa - 1) > 1e-3 for _, kappas, _ in history for kappa in kappas)
    if clips is not None:
        assert all(clipped == clips for _, _, clipped in history)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("options", [{"alpha": 0, **FREE}, {"window": (1, 1), "clip_above": 0, "clip_norm": 0.01}])
def test_neutral_settings_are_bit_identical_to_joint(options, modalities):
    bundle = tiny_bundle(modalities, "image", n=(64, 12, 12))
    expected = train(bundle, "joint", epochs=2)[1]
    assert state_digest(train(bundle, "agm", options, epochs=2)[1].model) == state_digest(expected.model)
    assert state_digest(train(bundle, "agm", epochs=2)[1].model) != state_digest(expected.model)


@pytest.mark.parametrize("modalities", [2, 3])
def test_equal_coefficients_rescale_the_joint_gradient(modalities):
    joint = image_trainer(None, modalities, "joint")
    run_steps(joint, 1)
    agm = image_trainer(FREE, modalities)
    agm.strategy.coefficients = lambda score: torch.full_like(score, 0.7)
    run_steps(agm, 1)
    for (name, p), q in zip(agm.strategy.model.named_parameters(), joint.strategy.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 0.7 * q.grad, **DOUBLE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_weights_are_those_of_the_average_over_orders_of_joining(count):
    names = list("abcd"[:count])
    coalitions = [set(s) for size in range(1, count + 1) for s in itertools.combinations(names, size)]
    value = torch.randn(len(coalitions), generator=generator(0, "game"), dtype=torch.float64).tolist()

    def worth(members):
        return value[coalitions.index(set(members))] if members else 0.0

    orders = list(itertools.permutations(names))
    expected = [sum(worth(o[: o.index(m) + 1]) - worth(o[: o.index(m)]) for o in orders) / len(orders) for m in names]
    weights = shapley_weights(names, coalitions).double()
    found = (weights @ torch.tensor(value, dtype=torch.float64) / math.factorial(count)).tolist()
    assert found == pytest.approx(expected, rel=1e-12)
    assert sum(found) == pytest.approx(worth(names), rel=1e-12)
    assert weights.sum(0).tolist() == [0.0] * (len(coalitions) - 1) + [math.factorial(count)]


@pytest.mark.parametrize("modalities", [2, 3])
def test_the_loss_reported_is_the_cross_entropy_of_the_training_pass(modalities):
    trainer, plain = (image_trainer(None, modalities, method) for method in ("agm", "joint"))
    logs = []
    for one in (trainer, plain):
        run_steps(one, 1, lambda batch, log: logs.append(log))
    assert float(logs[0]["loss"]) == pytest.approx(float(logs[1]["loss"]), rel=1e-12)
    assert float(logs[0]["accuracy"]) == float(logs[1]["accuracy"])


def agm(modalities=2, **options):
    return make_trainer(tiny_bundle(modalities), "agm", options).strategy


def test_coefficients_damp_what_is_better_than_its_history():
    strategy = agm()
    assert torch.equal(strategy.coefficients(torch.tensor([0.7, 0.7])), torch.ones(2))
    kappa = strategy.coefficients(torch.tensor([0.5, 0.9]))
    assert float(kappa[0]) < 1 < float(kappa[1])
    expected = [math.exp(1.5 * (1 - math.exp(0.4))), math.exp(1.5 * (1 - math.exp(-0.4)))]
    assert kappa.tolist() == pytest.approx(expected, rel=1e-6)
    strategy.running.copy_(torch.tensor([0.5, 0.9]))
    assert strategy.coefficients(torch.tensor([0.5, 0.9])).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_standings_multiply_to_one_and_are_the_mean_of_the_differences():
    for score in (torch.tensor([0.3, 1.1]), torch.tensor([0.3, 1.1, 0.6])):
        found = standing(score)
        assert float(found.prod()) == pytest.approx(1, rel=1e-6)
        for m, r in enumerate(found.tolist()):
            others = [float(score[j] - score[m]) for j in range(len(score)) if j != m]
            assert r == pytest.approx(math.exp(sum(others) / len(others)), rel=1e-6)
    first, second = standing(torch.tensor([0.5, 0.9])).tolist()
    assert first > 1 > second


def test_coefficients_stay_finite_and_below_the_cap():
    worst = -math.log(1e-8)
    strategy = agm()
    kappa = strategy.coefficients(torch.tensor([0.0, worst]))
    assert float(kappa[0]) == 0.0
    assert float(kappa[1]) == pytest.approx(math.exp(1.5), rel=1e-5)
    strategy.running.copy_(torch.tensor([0.0, worst]))
    kappa = strategy.coefficients(torch.tensor([worst, 0.0]))
    assert float(kappa[0]) == pytest.approx(math.exp(15), rel=1e-5)
    logits = torch.stack([torch.full((4, 3), 1e4), torch.zeros(4, 3), torch.zeros(4, 3)])
    logits[:, :, 0] = -1e4
    score = strategy.scores(logits, torch.zeros(4, dtype=torch.int64))
    assert bool(torch.isfinite(score).all())
    assert float(score.max()) <= worst + 1e-5


@pytest.mark.parametrize("modalities", [2, 3])
def test_running_means_are_arithmetic_means_and_do_not_hold_the_current_batch(modalities):
    trainer = make_trainer(tiny_bundle(modalities), "agm", {"window": (0, 0.5)}, epochs=4)
    before, seen = [], []
    original = trainer.strategy.coefficients

    def spy(score):
        before.append(trainer.strategy.running.tolist())
        return original(score)

    trainer.strategy.coefficients = spy
    run_steps(trainer, 11, lambda batch, log: seen.append([float(log[f"score/{m}"]) for m in trainer.task.modalities]))
    for step, running in enumerate(before):
        means = [sum(values) / step for values in zip(*seen[:step], strict=True)] if step else [0.0] * modalities
        assert running == pytest.approx(means, rel=1e-6)
    assert len(before) == 9  # 3 steps an epoch, epochs 0 to 2 of 4
    assert trainer.strategy.running.tolist() == pytest.approx(torch.tensor(seen).mean(0).tolist(), rel=1e-5)
    assert float(trainer.strategy.steps) == 11


@pytest.mark.parametrize("modalities", [2, 3])
def test_batch_norm_sees_exactly_one_training_pass(modalities):
    agm, joint = (image_trainer(None, modalities, method) for method in ("agm", "joint"))
    run_steps(joint, 1)
    run_steps(agm, 1)
    expected = dict(joint.strategy.model.named_buffers())
    buffers = {name: value for name, value in agm.strategy.model.named_buffers() if name in expected}
    assert len(buffers) == 3 * modalities
    for name, value in buffers.items():
        assert torch.equal(value, expected[name]), name
        if name.endswith("num_batches_tracked"):
            assert int(value) == 1


def test_every_module_keeps_its_own_mode():
    trainer = image_trainer()
    model = trainer.strategy.model
    (batch,) = run_steps(trainer, 1)
    model.train()
    frozen = model.encoders["audio"].body[0]
    frozen.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    trainer.strategy.ablated(batch)
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert not frozen.training

    def failing():
        with eval_mode(model):
            assert not any(part.training for part in model.modules())
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        failing()
    assert {name: part.training for name, part in model.named_modules()} == modes


@pytest.mark.parametrize("modalities", [2, 3])
def test_passes_are_counted_and_no_backward_is_paid_outside_the_window(modalities):
    for window, backward in (((0, 1), 65), ((1, 1), 32)):
        trainer = image_trainer({"window": window}, modalities)
        run_steps(trainer, 1)
        passes = trainer.strategy.model.passes
        assert passes.forward == dict.fromkeys(trainer.task.modalities, 65)
        assert passes.backward == dict.fromkeys(trainer.task.modalities, backward)


def test_window_includes_both_edges():
    result, _ = train(tiny_bundle(), "agm", {"window": (0.25, 0.5)}, epochs=4)
    kappa = [[curve["train"][f"kappa/{m}"] for m in ("audio", "visual")] for curve in result["curves"]]
    assert kappa[0] == kappa[3] == [1.0, 1.0]
    assert kappa[1] != [1.0, 1.0]
    assert kappa[2] != [1.0, 1.0]


@pytest.mark.parametrize("modalities", [2, 3])
def test_hidden_modalities_are_hidden_in_every_pass(modalities):
    trainer = image_trainer(FREE, modalities)
    (batch,) = run_steps(trainer, 1)
    strategy = trainer.strategy
    shown = {m: torch.ones(len(batch), dtype=torch.bool) for m in batch.inputs}
    states = []
    for keep in (None, shown):
        copied = copy.deepcopy(strategy.state_dict())
        strategy.step(Batch(batch.inputs, batch.target, batch.index, keep))
        states.append([p.grad.clone() for p in strategy.parameters()])
        strategy.load_state_dict(copied)
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    strategy.step(Batch(batch.inputs, batch.target, batch.index, {**shown, "audio": ~shown["audio"]}))
    for m, encoder in strategy.model.encoders.items():
        reached = any(bool(p.grad.any()) for p in encoder.parameters())
        assert reached == (m != "audio"), m


@pytest.mark.parametrize("modalities", [2, 3])
def test_resumed_run_equals_uninterrupted(modalities, tmp_path):
    bundle = tiny_bundle(modalities, "image", n=(64, 12, 12))
    expected, strategy = train(bundle, "agm", epochs=3)
    result, again, reports = stop_and_resume(2, bundle, "agm", None, tmp_path, epochs=3)
    assert result == expected
    assert reports == ["resumed", "training", "training"]
    assert state_digest(again.strategy) == state_digest(strategy)
    assert float(again.strategy.steps) == 6


def test_options_out_of_bounds_are_refused():
    build = type(agm()).Options.build
    assert build("agm", {"cap": "none", "clip_above": "none"}).cap is None
    for values, text in (
        ({"alpha": -1}, r"agm\.alpha must be >= 0"),
        ({"cap": 0}, r"agm\.cap must be > 0"),
        ({"clip_norm": 0}, r"agm\.clip_norm must be > 0"),
        ({"window": (0.6, 0.5)}, r"agm\.window must be two fractions"),
    ):
        with pytest.raises(UserError, match=text):
            build("agm", values)
    with pytest.raises(UserError, match="at least 2 modalities"):
        type(agm()).check(build("agm", {}), ["audio"], True)
