"""Encoders, fusions, the model: shapes, closed forms, equal starts, counted passes."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

import registry
from balancebench_udi.errors import UserError
from balancebench_udi.nets.encoders import ENCODERS, Encoder, build_encoder, encoder_options, initialise
from balancebench_udi.nets.fusion import FUSIONS, check_fusion
from balancebench_udi.nets.model import build_model, seeded
from balancebench_udi.nets.resnet import widened
from balancebench_udi.seeding import generator
from tests.helpers import make_trainer, state_digest, tiny_bundle

MLP = {"name": "mlp", "width": 6, "depth": 2}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, "noise"))


def built(name, shape, seed=0, **options):
    with seeded(seed, "test"):
        return build_encoder({"name": name, **options}, shape)


# -- encoders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "options", "features"),
    [
        ("resnet18", (1, 65, 47), {}, 512),
        ("resnet18", (2, 2, 32, 32), {}, 512),
        ("resnet18", (3, 32, 32), {}, 512),
        ("resnet18", (3, 3, 32, 40), {}, 512),
        ("digit", (1, 28, 28), {}, 512),
        ("digit", (2, 28, 28), {}, 512),
        ("digit", (3, 8, 8), {}, 512),
        ("digit", (1, 65, 47), {}, 512),
        ("mlp", (12,), {"width": 5, "depth": 1}, 5),
        ("mlp", (3, 8, 8), {"width": 7, "depth": 3}, 7),
        ("mlp", (4, 6), {"width": 7, "depth": 2}, 7),
        ("temporal", (11, 6), {"width": 9}, 9),
    ],
)
def test_an_encoder_maps_its_shape_to_features(name, shape, options, features):
    encoder = built(name, shape, **options)
    out = encoder(noise(2, *shape))
    assert out.shape == (2, features)
    assert encoder.features == features
    assert out.isfinite().all()
    encoder.eval()
    with torch.no_grad():
        both, one = encoder(noise(3, *shape)), encoder(noise(3, *shape)[1:2])
    torch.testing.assert_close(both[1:2], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "options", "last"),
    [
        ("resnet18", (1, 32, 32), {}, ["net.layer4."]),
        ("digit", (1, 28, 28), {}, ["out."]),
        ("mlp", (12,), {"width": 5, "depth": 1}, ["body.0."]),
        ("mlp", (12,), {"width": 5, "depth": 3}, ["body.4."]),
        ("temporal", (11, 6), {"width": 9}, ["body.6.", "body.7."]),
        ("tokens", (7,), {"width": 5, "vocabulary": 20, "depth": 2}, ["blocks.1."]),
        ("tokens", (7,), {"width": 5, "vocabulary": 20, "depth": 0}, ["embedding."]),
    ],
)
def test_the_last_block_of_an_encoder(name, shape, options, last):
    """Its parameters, by what they are called in the encoder."""
    encoder = built(name, shape, **options)
    names = {id(p): n for n, p in encoder.named_parameters()}
    expected = {n for n in names.values() if n.startswith(tuple(last))}
    assert expected
    assert {names[id(p)] for p in encoder.last_block().parameters()} == expected
    assert set(encoder.state_dict()) >= set(names.values())
    assert [id(p) for p in encoder.parameters()] == list(names)  # asking for it registers nothing


def test_the_last_block_of_an_encoder_without_parts_is_itself():
    class Bare(Encoder):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.relu = nn.ReLU()

    bare = Bare()
    assert bare.last_block() is bare


@pytest.mark.parametrize("bias", [True, False])
def test_more_channels_of_zeros_change_no_value_and_no_gradient(bias):
    conv = nn.Conv2d(1, 8, 7, stride=2, padding=3, bias=bias).double()
    found = []
    for convolve in (conv, lambda x: widened(conv, x)):
        x = torch.randn(3, 1, 21, 18, dtype=torch.float64, generator=generator(0), requires_grad=True)
        y = convolve(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *conv.parameters()])))
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_resnet_takes_the_channels_it_is_given(channels):
    encoder = built("resnet18", (channels, 32, 32))
    assert encoder.net.conv1.weight.shape == (64, channels, 7, 7)
    assert sum(p.numel() for p in encoder.parameters()) == 11_176_512 - (3 - channels) * 64 * 49


def torchvision_alike(encoder: Encoder) -> Encoder:
    """A copy of the encoder whose network is torchvision's own, with the same weights."""
    plain = copy.deepcopy(encoder)
    net = resnet18(num_classes=1).to(next(encoder.parameters()).dtype)
    net.conv1, net.fc = plain.net.conv1, nn.Identity()
    net.load_state_dict(encoder.net.state_dict())
    plain.net = net.to(memory_format=torch.channels_last).train(encoder.training)
    return plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("frozen", [(), ("conv1", "bn1"), ("conv1", "bn1", "layer1"), ("layer2",)], ids=str)
def test_resnet_saves_memory_without_moving_a_bit(dtype, frozen):
    """Against torchvision's own, two steps long."""
    shape = (3, 65, 48)
    ours = built("resnet18", shape).to(torch.float64 if dtype == torch.float64 else torch.float32)
    plain = torchvision_alike(ours)
    kept = {}
    for encoder in (ours, plain):
        for part in frozen:
            getattr(encoder.net, part).requires_grad_(False)
        kept[encoder] = 0
        optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
        for step in range(2):
            x = noise(4, *shape, seed=step).to(next(encoder.parameters()).dtype)

            def count(saved, encoder=encoder):
                kept[encoder] += saved.nbytes
                return saved

            with (
                torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved),
                torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
            ):
                features = encoder(x)
            optimizer.zero_grad()
            features.float().square().sum().backward()
            optimizer.step()
    assert state_digest(ours) == state_digest(plain)
    stem = 64 * 33 * 24 if not frozen or frozen == ("layer2",) else 0
    blocks = [2 * 64 * 17 * 12, 2 * 128 * 9 * 6, 2 * 256 * 5 * 3, 2 * 512 * 3 * 2]  # what stands between convolutions
    if "layer1" in frozen:
        del blocks[0]
    spared = 2 * 4 * (stem + sum(blocks)) * torch.empty(0, dtype=dtype).element_size()  # of both steps
    assert kept[plain] - kept[ours] > 0.9 * spared
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), plain.eval()(x))
    assert state_digest(ours) == state_digest(plain)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resnet_goes_backward_twice_through_one_forward_pass(dtype, training):
    """As the methods do that ask for several gradients, some of them in eval mode: torchvision's, bit by bit."""
    shape = (3, 33, 32)
    encoder = built("resnet18", shape).train(training)
    found = []
    for net in (encoder, torchvision_alike(encoder)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = net(noise(4, *shape)).float()
        wrt = list(net.parameters())
        first = torch.autograd.grad(features.sum(), wrt, retain_graph=True)
        found.append([*first, *torch.autograd.grad(features.square().sum(), wrt)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("channels", [2, 3])
def test_frames_are_pooled_after_the_backbone(channels):
    encoder = built("resnet18", (channels, 3, 32, 32)).eval()
    x = noise(2, channels, 3, 32, 32)
    with torch.no_grad():
        frames = torch.stack([encoder(x[:, :, t]) for t in range(3)])
        torch.testing.assert_close(encoder(x), frames.mean(0), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(frames[0], frames[1])


def test_the_digit_network_at_28x28_is_the_one_with_a_7x7_average():
    encoder = built("digit", (3, 28, 28)).eval()
    x = noise(4, 3, 28, 28)
    with torch.no_grad():
        maps = encoder.body(x)
        assert maps.shape == (4, 64, 7, 7)
        expected = nn.Sequential(encoder.body, nn.AvgPool2d(7), nn.Flatten(), encoder.out)(x)
        torch.testing.assert_close(encoder(x), expected)
    kinds = [type(part).__name__ for part in encoder.body]
    assert kinds == ["BatchNorm2d", "Conv2d", "MaxPool2d", "ReLU"] + ["Conv2d", "ReLU"] * 3
    assert all(part.bias is not None for part in encoder.body if isinstance(part, nn.Conv2d))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_digit_network_pools_before_its_relu_without_moving_a_bit(channels, dtype):
    """In the original the ReLU comes first."""
    ours, original = (built("digit", (channels, 28, 28)) for _ in range(2))
    parts = list(original.body)
    assert isinstance(parts[2], nn.MaxPool2d)
    parts[2], parts[3] = parts[3], parts[2]
    original.body = nn.Sequential(*parts)
    assert state_digest(ours) == state_digest(original)
    x = noise(16, channels, 28, 28)
    for encoder in (ours, original):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            encoder(x).float().square().sum().backward()
    for a, b in zip(ours.parameters(), original.parameters(), strict=True):
        assert a.grad.abs().sum() > 0
        assert torch.equal(a.grad, b.grad)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), original.eval()(x))


def test_the_mlp_has_a_relu_after_every_layer():
    encoder = built("mlp", (5,), width=4, depth=2)
    x = noise(3, 5)
    first, _, second, _ = encoder.body
    torch.testing.assert_close(encoder(x), second(first(x).clamp(min=0)).clamp(min=0))


def test_the_temporal_network_sees_a_window_of_fifteen_steps():
    encoder = built("temporal", (40, 3), width=32).eval()
    x = noise(1, 40, 3).requires_grad_()
    encoder.body(x.transpose(1, 2))[0, :, 20].sum().backward()
    assert torch.nonzero(x.grad[0].abs().sum(1)).flatten().tolist() == list(range(13, 28))


TOKENS = {"width": 8, "vocabulary": 50, "depth": 2}


def texts(*rows, length=12):
    """Token ids ``[B, length]`` as the transform gives them: floats, padded with 0."""
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], dtype=torch.float32)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_padding_changes_no_feature_and_no_gradient(depth):
    """Not of one text, and not beside a longer one; nor does what the embedding of the padding holds."""
    encoder = built("tokens", (12,), **{**TOKENS, "depth": depth})
    x = texts([3, 9, 4], [7] * 12, [5])
    short = encoder(x[:1, :3])
    weights = noise(1, 8)
    expected = torch.autograd.grad((short * weights).sum(), list(encoder.parameters()))
    with torch.no_grad():
        encoder.embedding.weight[0] = 1e3
    both = encoder(x)
    assert both.shape == (3, 8)
    assert encoder.features == 8
    torch.testing.assert_close(both[:1], short)
    found = torch.autograd.grad((both[:1] * weights).sum(), list(encoder.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert not any(g.eq(0).all() for g in found)
    touched = torch.nonzero(found[0].abs().sum(1)).flatten().tolist()
    assert touched == [3, 4, 9]


def test_order_matters_to_neighbours_alone_and_not_without_convolutions():
    a, b, apart = texts([3, 9, 4, 8], [9, 3, 4, 8], [4, 8, 0, 0, 0, 3, 9])
    bag = built("tokens", (12,), **{**TOKENS, "depth": 0})
    rows = bag.embedding.weight[[3, 9, 4, 8]]
    torch.testing.assert_close(bag(a[None])[0], rows.mean(0))
    torch.testing.assert_close(bag(a[None]), bag(b[None]))
    torch.testing.assert_close(bag(a[None]), bag(apart[None]))
    net = built("tokens", (12,), **{**TOKENS, "depth": 1})
    assert not torch.allclose(net(a[None]), net(b[None]))
    x = noise(1, 9, 8).requires_grad_()
    net.blocks[0](x)[0, 4].square().sum().backward()
    assert torch.nonzero(x.grad[0].abs().sum(1)).flatten().tolist() == [3, 4, 5]
    pairs = [net(texts(pair)) for pair in ([3, 9], [4, 8])]
    torch.testing.assert_close(net(apart[None]), sum(pairs) / 2)  # two phrases out of each other's sight


def test_a_text_without_words_has_the_feature_zero_and_stands_in_nobodys_way():
    encoder = built("tokens", (12,), **TOKENS)
    x = texts([], [3, 9], []).requires_grad_()
    out = encoder(x)
    assert out[[0, 2]].eq(0).all()
    out.sum().backward()
    with_it = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    encoder(x[1:2]).sum().backward()
    for a, p in zip(with_it, encoder.parameters(), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, p.grad)
    encoder.zero_grad()
    encoder(x[:1]).sum().backward()
    assert all(p.grad.eq(0).all() for p in encoder.parameters())


def test_ids_are_read_exactly_and_larger_ones_folded():
    big = built("tokens", (3,), width=1, vocabulary=2**24, depth=0)
    ids = torch.tensor([2**24 - 1, 2**24 - 2, 1])
    for i in ids:
        assert big(i.float().view(1, 1)).item() == big.embedding.weight[i].item()
    small = built("tokens", (1,), width=4, vocabulary=11, depth=0)
    found = small(torch.arange(1, 31).float().view(-1, 1))
    torch.testing.assert_close(found, small.embedding.weight[1:].repeat(3, 1))


def test_tokens_in_reduced_precision():
    encoder = built("tokens", (12,), **TOKENS)
    x = texts([3, 9, 4], [], [7] * 12)
    full = encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = encoder(x)
    assert not torch.equal(reduced, full)
    torch.testing.assert_close(reduced.float(), full, rtol=0.05, atol=0.05)
    reduced.sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in encoder.parameters())


def test_initial_weights_follow_the_scheme():
    net = nn.Sequential(
        nn.Conv2d(8, 64, 5),
        nn.BatchNorm2d(64),
        nn.Linear(300, 200),
        nn.Conv1d(16, 128, 3, bias=False),
        nn.BatchNorm1d(3),
        nn.Embedding(500, 40),
        nn.LayerNorm(4),
        nn.LayerNorm(4, elementwise_affine=False),
    )
    for p in net.parameters():
        p.data.fill_(9.0)
    with seeded(0, "init"):
        initialise(net)
    conv, norm, linear, conv1, norm1, embedding, norm2, _ = net
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 25)), rel=0.03)
    assert conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 3)), rel=0.03)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.03)
    assert embedding.weight.std().item() == pytest.approx(1, rel=0.03)
    assert embedding.weight.mean().item() == pytest.approx(0, abs=0.03)
    for part in (conv, norm, linear, norm1, norm2):
        assert part.bias.eq(0).all()
    assert norm2.weight.eq(1).all()
    assert norm.weight.eq(1).all()
    assert norm1.weight.eq(1).all()


def test_encoders_are_described_completely_and_refused_where_they_do_not_fit():
    assert encoder_options("mlp", "vector", {"width": "7"}) == {"name": "mlp", "width": 7, "depth": 2}
    assert encoder_options("resnet18", "frames", {}) == {"name": "resnet18"}
    tokens = {"name": "tokens", "width": 128, "vocabulary": 16384, "depth": 2}
    assert encoder_options("tokens", "tokens", {}) == tokens
    with pytest.raises(UserError, match=r"^there is no encoder called 'resnet'; did you mean 'resnet18'\?$"):
        encoder_options("resnet", "frames", {})
    with pytest.raises(
        UserError, match=r"^encoder resnet18 reads digit, .*; the modality is a vector: choose another$"
    ):
        encoder_options("resnet18", "vector", {})
    with pytest.raises(UserError, match=r"^encoder digit has no option 'width'; it has none$"):
        encoder_options("digit", "digit", {"width": 3})
    with pytest.raises(UserError, match=r"^encoder mlp\.depth must be >= 1, found 0$"):
        encoder_options("mlp", "vector", {"depth": 0})


@pytest.mark.parametrize("name", list(ENCODERS))
def test_every_encoder_option_tells_its_meaning_and_source(name):
    assert ENCODERS[name].kinds
    for option, _, doc, source in ENCODERS[name].options.describe():
        assert doc, option
        assert source, option


# -- fusion ------------------------------------------------------------------------------------------------------------

SIZES = {"audio": 5, "visual": 7, "text": 3}


def fusion_and_features(name, count, seed=0):
    sizes = dict(list(SIZES.items())[:count])
    with seeded(seed, "fusion"):
        fusion = FUSIONS[name](sizes, 4)
    for p in fusion.parameters():
        p.data.normal_(generator=generator(seed, "weights"))
    return fusion, {m: noise(6, d, seed=seed + i) for i, (m, d) in enumerate(sizes.items())}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["concat", "sum"])
def test_shares_add_up_to_the_logits(name, count):
    fusion, features = fusion_and_features(name, count)
    assert fusion.additive
    shares = fusion.shares(features)
    assert list(shares) == list(features)
    torch.testing.assert_close(sum(shares.values()), fusion(features), rtol=0, atol=1e-5)
    for m in features:  # a share is a function of its own modality alone
        others = {k: f if k == m else noise(*f.shape, seed=50) for k, f in features.items()}
        assert torch.equal(fusion.shares(others)[m], shares[m])


def test_the_bias_is_split_evenly_by_concat_and_kept_whole_by_sum():
    fusion, features = fusion_and_features("concat", 3)
    zero = {m: torch.zeros_like(f) for m, f in features.items()}
    for share in fusion.shares(zero).values():
        torch.testing.assert_close(share, (fusion.out.bias / 3).expand(6, 4))
    fusion, features = fusion_and_features("sum", 3)
    for m, share in fusion.shares(zero).items():
        torch.testing.assert_close(share, fusion.out[m].bias.expand(6, 4))


def test_concat_reads_the_modalities_in_their_order():
    fusion, features = fusion_and_features("concat", 3)
    expected = F.linear(torch.cat([features[m] for m in SIZES], 1), fusion.out.weight, fusion.out.bias)
    turned = {m: features[m] for m in reversed(SIZES)}
    assert torch.equal(fusion(turned), expected)


def test_film_and_gated_in_closed_form():
    film, features = fusion_and_features("film", 2)
    scale_shift = features["audio"] @ film.film.weight.T + film.film.bias
    hidden = scale_shift[:, :7] * features["visual"] + scale_shift[:, 7:]
    torch.testing.assert_close(film(features), hidden @ film.out.weight.T + film.out.bias)
    gated, features = fusion_and_features("gated", 2)
    gate = 1 / (1 + torch.exp(-(features["audio"] @ gated.gate.weight.T + gated.gate.bias)))
    hidden = gate * (features["visual"] @ gated.value.weight.T + gated.value.bias)
    torch.testing.assert_close(gated(features), hidden @ gated.out.weight.T + gated.out.bias)


@pytest.mark.parametrize("name", ["film", "gated"])
def test_film_and_gated_take_two_modalities_and_have_no_shares(name):
    fusion, features = fusion_and_features(name, 2)
    assert not fusion.additive
    assert fusion.shares(features) is None
    for count in (1, 3):
        sizes = dict(list(SIZES.items())[:count])
        sentence = f"^fusion {name} takes exactly 2 modalities, found {count}: use concat or sum$"
        with pytest.raises(UserError, match=sentence):
            check_fusion(name, count)
        with pytest.raises(UserError, match=sentence):
            FUSIONS[name](sizes, 4)
    assert check_fusion(name, 2) is FUSIONS[name]


def test_an_unknown_fusion_lists_near_misses():
    with pytest.raises(UserError, match=r"^there is no fusion called 'concate'; did you mean 'concat'"):
        check_fusion("concate", 2)


# -- the model ---------------------------------------------------------------------------------------------------------


def model(fusion="concat", seed=0, modalities=2, autocast=None):
    names = list(SIZES)[:modalities]
    return build_model(dict.fromkeys(names, MLP), dict.fromkeys(names, (4,)), fusion, 3, seed, autocast)


def test_encoders_start_the_same_under_every_fusion_and_number_of_modalities():
    first = model()
    for other in (model("sum"), model("film"), model("gated"), model(modalities=3)):
        for m in first.modalities:
            assert state_digest(first.encoders[m]) == state_digest(other.encoders[m])
    assert state_digest(first) == state_digest(model())
    assert state_digest(first) != state_digest(model(seed=1))
    assert state_digest(first.encoders["audio"]) != state_digest(model(seed=1).encoders["audio"])
    assert state_digest(first.fusion) != state_digest(model(seed=1).fusion)


def test_two_equal_encoders_start_differently():
    built = model()
    assert state_digest(built.encoders["audio"]) != state_digest(built.encoders["visual"])


@pytest.mark.parametrize("name", registry.methods.names())
def test_the_model_starts_the_same_in_every_method(name):
    bundle = tiny_bundle(2)
    torch.manual_seed(11)
    reference = make_trainer(bundle, "joint").strategy.model
    torch.manual_seed(12)
    assert state_digest(make_trainer(bundle, name).strategy.model) == state_digest(reference)
    assert state_digest(make_trainer(bundle, name, seed=1).strategy.model) != state_digest(reference)


def test_own_heads_start_the_same_in_every_method():
    bundle = tiny_bundle(3)
    uniform, unimodal = (make_trainer(bundle, n).strategy.heads for n in ("uniform", "unimodal"))
    assert state_digest(uniform) == state_digest(unimodal)
    assert all(head.bias.eq(0).all() for head in uniform.values())


def test_building_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    trainer = make_trainer(tiny_bundle(2), "uniform")
    trainer.task.make_encoder("audio", "teacher")
    trainer.task.make_head("audio", "probe")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_encoder_starts_as_the_models_own_or_from_its_stream():
    task = make_trainer(tiny_bundle(2), "joint").task
    own = state_digest(task.model.encoders["audio"])
    assert state_digest(task.make_encoder("audio")) == own
    assert state_digest(task.make_encoder("audio", "teacher")) != own
    assert state_digest(task.make_encoder("audio", "teacher")) == state_digest(task.make_encoder("audio", "teacher"))
    assert state_digest(task.make_head("audio")) != state_digest(task.make_head("audio", "probe"))


def test_seeded_puts_the_stream_back_also_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(0, "x"):
        raise ZeroDivisionError(torch.rand(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_encode_gives_the_modalities_it_was_given_in_the_order_of_fusion():
    built = model(modalities=3)
    x = {m: noise(2, 4) for m in ("text", "audio")}
    assert list(built.encode(x)) == ["audio", "text"]


def test_features_leave_reduced_precision():
    built = model(autocast=torch.bfloat16)
    x = {m: noise(8, 4) for m in built.modalities}
    full = model().encode(x)
    for m, f in built.encode(x).items():
        assert f.dtype == torch.float32
        assert not torch.equal(f, full[m])
        torch.testing.assert_close(f, full[m], rtol=0.05, atol=0.05)
        f.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in built.encoders.parameters())


def test_passes_are_counted_forward_and_backward():
    built = model()
    x = {m: noise(5, 4) for m in built.modalities}
    zero = {"audio": 0, "visual": 0}
    assert (built.passes.forward, built.passes.backward) == (zero, zero)
    features = built.encode(x)
    assert (built.passes.forward, built.passes.backward) == ({"audio": 5, "visual": 5}, zero)
    built.fusion(features).sum().backward()
    assert built.passes.backward == {"audio": 5, "visual": 5}

    features = built.encode({"audio": x["audio"][:2]})
    features["audio"].sum().backward(retain_graph=True)
    features["audio"].square().sum().backward()
    assert built.passes.forward == {"audio": 7, "visual": 5}
    assert built.passes.backward == {"audio": 9, "visual": 5}

    with torch.no_grad():
        built.encode(x)
    assert built.passes.forward == {"audio": 12, "visual": 10}
    for p in built.encoders["audio"].parameters():
        p.requires_grad_(False)
    built.fusion(built.encode(x)).sum().backward()
    assert built.passes.forward == {"audio": 17, "visual": 15}
    assert built.passes.backward == {"audio": 9, "visual": 10}
    with built.passes.paused():
        built.fusion(built.encode(x)).sum().backward()
    assert built.passes.counting
    assert built.passes.forward == {"audio": 17, "visual": 15}
    assert built.passes.backward == {"audio": 9, "visual": 10}


def test_a_gradient_that_stops_at_the_fusion_is_no_pass_through_the_encoders():
    built = model()
    features = built.encode({m: noise(5, 4) for m in built.modalities})
    torch.autograd.grad(built.fusion(features).sum(), list(built.fusion.parameters()))
    assert built.passes.backward == {"audio": 0, "visual": 0}
