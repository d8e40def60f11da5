"""OGM and OGM-GE against an independent float64 loop, and their laws.

Planted bugs, each caught here: ratio inverted; weaker modality damped; coefficients on the wrong encoder; tie damps
nobody; sum for mean over the others; own ratio counted; tanh without alpha; k_form ignored; masked read-out shows the
others; share of a non-additive fusion let through; score of zero unguarded; linear layers or all encoder tensors
modulated; last epoch of the window left out; window ignored; noise only in the damped encoder; noise from the scaled
gradient; noise scaled by k; root mean square or biased deviation for sigma; sigma of one element not a number; one draw
for all tensors; noise from the global generator.
"""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from balancebench_udi import UserError
from balancebench_udi.seeding import generator
from tests.helpers import make_trainer, run_steps, state_digest, stop_and_resume, tiny_bundle, train

LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-4
DOUBLE = {"rtol": 1e-9, "atol": 1e-12}


def image_trainer(method, options=None, modalities=2, dtype=torch.float64, store=None, **overrides):
    return make_trainer(tiny_bundle(modalities, "image", dtype=dtype), method, options, store, **overrides)


def oracle(model, batches, alpha, noise_seed=None, continuous=False):
    """Updates ``model`` (concat fusion, float64) in place; returns the list of (S, rho, k) of every step."""
    names = list(model.encoders)
    stream = None if noise_seed is None else generator(noise_seed, "strategy")
    momenta = {}
    history = []
    model.train()
    for batch in batches:
        features = [model.encoders[m](batch.inputs[m]) for m in names]
        weight, bias = model.fusion.out.weight, model.fusion.out.bias
        logits = torch.cat(features, 1) @ weight.t() + bias
        model.zero_grad()
        F.cross_entropy(logits, batch.target).backward()

        masses, start = [], 0
        for f in features:
            stop = start + f.shape[1]
            z = (f @ weight[:, start:stop].t() + bias / len(names)).detach()
            masses.append(sum(math.exp(z[i, y] - z[i].logsumexp(0)) for i, y in enumerate(batch.target.tolist())))
            start = stop
        if len(names) == 2:
            ratio = masses[1] / masses[0]
            rho = [1 / ratio, ratio]
            strong = [1] if ratio > 1 else [0]
        else:
            rho = [
                sum(masses[m] / masses[j] for j in range(len(names)) if j != m) / (len(names) - 1)
                for m in range(len(names))
            ]
            strong = [m for m in range(len(names)) if rho[m] > 1]
        shrink = (lambda r: 1 - alpha * math.tanh(r - 1)) if continuous else (lambda r: 1 - math.tanh(alpha * r))
        k = [shrink(rho[m]) if m in strong else 1.0 for m in range(len(names))]
        history.append((masses, rho, k))

        for m, factor in zip(names, k, strict=True):
            chosen = [p for p in model.encoders[m].parameters() if p.dim() == 4]
            draw = None
            if stream is not None:
                draw = torch.randn(sum(p.numel() for p in chosen), generator=stream, dtype=torch.float64)
            for p in chosen:
                original = p.grad.clone()
                p.grad = factor * original
                if draw is not None:
                    n = original.numel()
                    sigma = math.sqrt(float(((original - original.mean()) ** 2).sum()) / (n - 1)) + 1e-8
                    p.grad = p.grad + sigma * draw[:n].reshape(original.shape)
                    draw = draw[n:]
        with torch.no_grad():
            for name, p in model.named_parameters():
                step = p.grad + DECAY * p
                momenta[name] = MOMENTUM * momenta[name] + step if name in momenta else step
                p -= LR * momenta[name]
    return history


def assert_same_state(found, expected):
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **DOUBLE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ogm", {}),
        ("ogm", {"alpha": 0.3}),
        ("ogm", {"alpha": 0.9, "k_form": "alpha_tanh_rho_minus_1"}),
        ("ogm_ge", {}),
    ],
)
def test_first_three_updates(method, options, modalities):
    trainer = image_trainer(method, options, modalities)
    reference = copy.deepcopy(trainer.strategy.model)
    logs = []
    batches = run_steps(trainer, 3, lambda batch, log: logs.append(log))
    history = oracle(
        reference,
        batches,
        options.get("alpha", 0.8),
        noise_seed=0 if method == "ogm_ge" else None,
        continuous="k_form" in options,
    )
    assert_same_state(trainer.strategy.model.state_dict(), reference.state_dict())
    for log, (_, rho, k) in zip(logs, history, strict=True):
        for i, m in enumerate(reference.encoders):
            assert float(log[f"rho/{m}"]) == pytest.approx(rho[i], rel=1e-9)
            assert float(log[f"k/{m}"]) == pytest.approx(k[i], rel=1e-9)
    assert any(k_m < 1 for _, _, k in history for k_m in k)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ogm", {"alpha": 0}),
        ("ogm", {"alpha": 0, "k_form": "alpha_tanh_rho_minus_1", "readout": "masked"}),
        ("ogm", {"window": (1, 1)}),
        ("ogm_ge", {"alpha": 0, "noise": False}),
        ("ogm_ge", {"window": (1, 1)}),
    ],
)
def test_neutral_settings_are_bit_identical_to_joint(method, options, modalities):
    bundle = tiny_bundle(modalities, "image", n=(64, 12, 12))
    expected = train(bundle, "joint", epochs=2)[1]
    assert state_digest(train(bundle, method, options, epochs=2)[1]) == state_digest(expected)
    assert state_digest(train(bundle, method, epochs=2)[1]) != state_digest(expected)


@pytest.mark.parametrize("modalities", [2, 3])
def test_only_convolutions_of_encoders_change_and_by_exactly_k(modalities):
    joint = image_trainer("joint", None, modalities, torch.float32)
    run_steps(joint, 1)
    logs = []
    ogm = image_trainer("ogm", None, modalities, torch.float32)
    run_steps(ogm, 1, lambda batch, log: logs.append(log))
    plain = dict(joint.strategy.named_parameters())
    seen = set()
    for name, p in ogm.strategy.named_parameters():
        _, part, m, *_ = name.split(".")
        if part == "encoders" and p.dim() == 4:
            assert torch.equal(p.grad, plain[name].grad * logs[0][f"k/{m}"]), name
            seen.add(m)
        else:
            assert torch.equal(p.grad, plain[name].grad), name
    assert seen == set(ogm.task.modalities)
    assert any(float(logs[0][f"k/{m}"]) < 1 for m in seen)


def ogm(modalities=2, **options):
    return make_trainer(tiny_bundle(modalities), "ogm", options).strategy


def random_logits(count, seed=0):
    draw = generator(seed, "logits")
    return [torch.randn(7, 3, generator=draw) * (1 + m) for m in range(count)], torch.arange(7) % 3


def test_with_two_modalities_exactly_one_is_damped_the_stronger():
    strategy = ogm()
    for seed in range(20):
        logits, target = random_logits(2, seed)
        mass = [float(z.softmax(1)[torch.arange(7), target].sum()) for z in logits]
        rho = strategy.ratios(logits, target)
        k = strategy.coefficients(rho)
        strong = 0 if mass[0] >= mass[1] else 1
        assert float(k[1 - strong]) == 1.0
        assert 0 < float(k[strong]) < 1
        assert float(rho.prod()) == pytest.approx(1, rel=1e-6)
        swapped = strategy.coefficients(strategy.ratios(logits[::-1], target))
        torch.testing.assert_close(swapped, k.flip(0))


def test_a_tie_damps_the_first_of_two_and_nobody_of_three():
    logits, target = random_logits(1)
    pair = ogm()
    k = pair.coefficients(pair.ratios(logits * 2, target))
    torch.testing.assert_close(k, torch.tensor([1 - math.tanh(0.8), 1.0]))
    triple = ogm(3)
    assert torch.equal(triple.coefficients(triple.ratios(logits * 3, target)), torch.ones(3))


def test_three_modalities_duplicates_agree_and_the_weakest_is_never_damped():
    strategy = ogm(3)
    several = 0
    for seed in range(20):
        (a, b), target = random_logits(2, seed)
        rho = strategy.ratios([a, b, a.clone()], target)
        assert float(rho[0]) == pytest.approx(float(rho[2]), rel=1e-6)
        logits, target = random_logits(3, seed)
        mass = torch.stack([z.softmax(1)[torch.arange(7), target].sum() for z in logits])
        rho = strategy.ratios(logits, target)
        k = strategy.coefficients(rho)
        assert float(k[mass.argmin()]) == 1.0
        assert float(k[mass.argmax()]) < 1.0
        assert torch.equal(k < 1, rho > 1)
        several += int((k < 1).sum() == 2)
        order = [2, 0, 1]
        permuted = strategy.ratios([logits[i] for i in order], target)
        torch.testing.assert_close(permuted, rho[order])
    assert several > 0


def test_known_values_of_k():
    rho = torch.tensor([0.5, 2.0])
    for alpha, expected in ((0.8, 0.078), (0.1, 0.803)):
        assert float(ogm(alpha=alpha).coefficients(rho)[1]) == pytest.approx(expected, abs=5e-4)
    continuous = ogm(alpha=1, k_form="alpha_tanh_rho_minus_1").coefficients
    assert float(continuous(torch.tensor([1 / (1 + 1e-6), 1 + 1e-6]))[1]) == pytest.approx(1, abs=1e-5)


def test_scores_of_zero_stay_finite():
    target = torch.zeros(4, dtype=torch.int64)
    wrong = torch.tensor([[-1e4, 0.0, 0.0]]).expand(4, 3)
    right = -wrong
    strategy = ogm(alpha=0.8)
    for logits in ([wrong, right], [wrong, wrong]):
        k = strategy.coefficients(strategy.ratios(logits, target))
        assert bool(torch.isfinite(k).all())
    assert torch.equal(ogm(alpha=0).coefficients(strategy.ratios([wrong, right], target)), torch.ones(2))


@pytest.mark.parametrize("modalities", [2, 3])
def test_noise_has_the_deviation_of_the_unscaled_gradient_in_every_encoder(modalities):
    strategy = image_trainer("ogm_ge", None, modalities).strategy
    strategy.task.epoch = 0
    names = strategy.task.modalities
    k = torch.tensor([0.25, 1.0, 0.5][:modalities], dtype=torch.float64)
    draw = generator(1, "gradients")
    base = {
        name: 1 + 0.01 * (i + 1) * torch.randn(p.shape, generator=draw, dtype=torch.float64)
        for i, (name, p) in enumerate(strategy.named_parameters())
    }
    output = strategy.forward(next(iter(strategy.task._loader.train(0, names))))
    extra = {name: [] for name in base}
    for _ in range(60):
        for name, p in strategy.named_parameters():
            p.grad = base[name].clone()
        strategy._k = k
        strategy.after_backward(output, None)
        for name, p in strategy.named_parameters():
            m = name.split(".")[2]
            factor = k[names.index(m)] if m in names and p.dim() == 4 else 1.0
            extra[name].append(p.grad - factor * base[name])
    flat = []
    for name, p in strategy.named_parameters():
        noise = torch.stack(extra[name])
        if name.split(".")[1] != "encoders" or p.dim() != 4:
            assert torch.equal(noise, torch.zeros_like(noise)), name
            continue
        sigma = float(base[name].std()) + 1e-8
        n = noise.numel()
        assert abs(float(noise.mean())) < 5 * sigma / math.sqrt(n), name
        assert float(noise.std()) == pytest.approx(sigma, rel=5 / math.sqrt(2 * n)), name
        flat.append((noise / sigma).flatten()[:40000])
    for i, one in enumerate(flat):
        for other in flat[:i]:
            n = min(len(one), len(other))
            assert abs(float((one[:n] * other[:n]).mean())) < 5 / math.sqrt(n)


def test_a_single_weight_has_no_deviation():
    bundle = tiny_bundle()
    narrow = {m: {"name": "mlp", "width": 1, "depth": 2} for m in bundle.modalities}
    trainer = make_trainer(bundle, "ogm_ge", encoders=narrow, epochs=1)
    run_steps(trainer, 3)
    assert all(bool(torch.isfinite(p).all()) for p in trainer.strategy.parameters())


def test_window_holds_both_edges_and_reproduces_epochs_0_to_50_of_100():
    strategy = ogm()
    strategy.task.epochs = 100
    inside = []
    for strategy.task.epoch in range(100):
        if strategy.active:
            inside.append(strategy.task.epoch)
    assert inside == list(range(51))


@pytest.mark.parametrize("method", ["ogm", "ogm_ge"])
def test_outside_the_window_gradients_are_those_of_joint(method):
    result, _ = train(tiny_bundle(), method, {"window": (0.25, 0.5)}, epochs=4)
    k = [[curve["train"][f"k/{m}"] for m in ("audio", "visual")] for curve in result["curves"]]
    assert k[0] == k[3] == [1.0, 1.0]
    assert min(k[1]) < 1
    assert min(k[2]) < 1
    bundle = tiny_bundle(n=(32, 8, 8))
    late = make_trainer(bundle, method, {"window": (0.5, 1)}, epochs=2)
    plain = make_trainer(bundle, "joint", epochs=2)
    for trainer in (late, plain):
        run_steps(trainer, 1)
    assert state_digest(late.strategy) == state_digest(plain.strategy)


@pytest.mark.parametrize("fusion", ["concat", "sum", "film", "gated"])
def test_masked_readout_sees_one_modality_through_the_whole_fusion(fusion):
    trainer = make_trainer(tiny_bundle(), "ogm", {"readout": "masked"}, fusion=fusion)
    strategy = trainer.strategy
    (batch,) = run_steps(trainer, 1)
    features = strategy.model.encode(batch.inputs)
    found = strategy.unimodal_logits(features)
    with torch.no_grad():
        audio, visual = features["audio"], features["visual"]
        torch.testing.assert_close(found[0], strategy.model.fusion({"audio": audio, "visual": visual * 0}))
        torch.testing.assert_close(found[1], strategy.model.fusion({"audio": audio * 0, "visual": visual}))
    assert not any(z.requires_grad for z in found)


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_share_readout_adds_up_to_the_fused_logits(fusion):
    trainer = make_trainer(tiny_bundle(3), "ogm", fusion=fusion)
    (batch,) = run_steps(trainer, 1)
    output = trainer.strategy.forward(batch)
    total = torch.stack(trainer.strategy.unimodal_logits(output.features)).sum(0)
    torch.testing.assert_close(total, output.logits.detach(), atol=1e-5, rtol=0)


def test_share_with_a_fusion_without_shares_is_refused():
    cls = type(ogm())
    for names in (["audio", "visual"], ["audio", "visual", "text"]):
        cls.check(cls.Options(), names, True)
        cls.check(cls.Options(readout="masked"), names, False)
        with pytest.raises(UserError, match=r"set ogm\.readout=masked"):
            cls.check(cls.Options(), names, False)
    with pytest.raises(UserError, match="at least 2 modalities"):
        cls.check(cls.Options(), ["audio"], True)


def test_options_out_of_bounds_are_refused():
    build = type(ogm()).Options.build
    with pytest.raises(UserError, match=r"ogm\.alpha must be <= 1 with k_form"):
        build("ogm", {"alpha": 2.6, "k_form": "alpha_tanh_rho_minus_1"})
    for window in ("0.5,0.2", "0.5", "0,0.5,1"):
        with pytest.raises(UserError, match=r"ogm\.window must be two fractions"):
            build("ogm", {"window": window})
    with pytest.raises(UserError, match=r"window must be <= 1"):
        build("ogm", {"window": (0, 50)})
    with pytest.raises(UserError, match=r"alpha must be >= 0"):
        build("ogm", {"alpha": -0.1})


def test_encoders_without_convolutions_are_modulated_by_auto_and_refused_by_conv():
    vectors = tiny_bundle()
    strategy = make_trainer(vectors, "ogm").strategy
    assert [p.dim() for p in strategy.modulated["audio"]] == [2, 2]
    with pytest.raises(UserError, match=r"none in that of audio: set ogm\.tensors=auto"):
        make_trainer(vectors, "ogm", {"tensors": "conv"})
    images = image_trainer("ogm").strategy
    assert [p.dim() for p in images.modulated["visual"]] == [4, 4, 4, 4]
    assert [p.dim() for p in image_trainer("ogm", {"tensors": "matrix"}).strategy.modulated["visual"]] == [4] * 4 + [2]
    joint, modulated = make_trainer(vectors, "joint"), make_trainer(vectors, "ogm")
    for trainer in (joint, modulated):
        run_steps(trainer, 1)
    assert state_digest(joint.strategy) != state_digest(modulated.strategy)


@pytest.mark.parametrize("modalities", [2, 3])
def test_resumed_run_equals_uninterrupted(modalities, tmp_path):
    bundle = tiny_bundle(modalities, "image", n=(64, 12, 12))
    window = {"window": (0, 1)}
    expected, strategy = train(bundle, "ogm_ge", window, epochs=3)
    result, again, reports = stop_and_resume(2, bundle, "ogm_ge", window, tmp_path, epochs=3)
    assert result == expected
    assert reports == ["resumed", "training", "training"]
    assert state_digest(again.strategy) == state_digest(strategy)
