"""The generated dataset: its Bayes accuracies against a brute-force twin and against its own samples."""

import math
from itertools import product

import pytest
import torch

from balancebench_udi.data.synthetic import Code, Synthetic, SyntheticOptions, bayes_accuracies, draw_symbols
from balancebench_udi.errors import UserError

MODELS = {
    "default": SyntheticOptions(),
    "noisy": SyntheticOptions(classes=3, label_noise=0.3, strength=(0.5, 0.9), unique=(0.2, 0.7)),
    "synergy": SyntheticOptions(classes=4, redundancy=0, unique=(0,), synergy=0.8),
    "redundant": SyntheticOptions(classes=4, redundancy=0.7, unique=(0,), synergy=0, strength=(1.0, 0.4)),
    "three": SyntheticOptions(modalities=3, classes=2, strength=(0.9, 0.5, 0.7), unique=(0.5, 0.8), synergy=0.4),
    "certain": SyntheticOptions(classes=3, unique=(1.0, 0.1), synergy=0.5),
    "weakest": SyntheticOptions(classes=3, strength=(0.0, 0.8)),
}


def names(options):
    return tuple(f"m{m}" for m in range(options.modalities))


def keep(p, a, b, classes):
    """P(b | a) of the channel with fidelity p."""
    return p * (a == b) + (1 - p) / classes


def twin(options, subset):
    """The accuracy from the joint probability of *all* symbols of the subset, no symmetry or sufficiency used."""
    n, every = options.classes, range(options.modalities)
    strength = [options.of("strength", m) for m in every]
    order = sorted(every, key=lambda m: -strength[m])
    likelihood = {}
    for c in range(n):
        for redundant in product(range(n), repeat=options.modalities):
            p_redundant = 0.0
            for common in range(n):
                p, before, last = keep(options.redundancy, c, common, n), 1.0, common
                for m in order:
                    p *= keep(strength[m] / before if before else 0.0, last, redundant[m], n)
                    before, last = strength[m], redundant[m]
                p_redundant += p
            for shares in product(range(n), repeat=options.modalities):
                p_shares = keep(options.synergy, c, sum(shares) % n, n) / n ** (options.modalities - 1)
                seen = tuple((redundant[m], shares[m]) for m in subset)
                likelihood[c, seen] = likelihood.get((c, seen), 0.0) + p_redundant * p_shares
    total = 0.0
    for seen in {s for _, s in likelihood}:
        for unique in product(range(n), repeat=len(subset)):
            by_class = []
            for c in range(n):
                p = likelihood[c, seen] / n
                for m, u in zip(subset, unique, strict=True):
                    p *= keep(options.of("unique", m) * strength[m], c, u, n)
                by_class.append(p)
            e = options.label_noise
            target = [(1 - e) * p + e * (sum(by_class) - p) / (n - 1) for p in by_class]
            total += max(target)
    return total


@pytest.mark.parametrize("name", ["noisy", "synergy", "redundant", "three", "certain", "weakest"])
def test_bayes_accuracy_equals_the_brute_force_twin(name):
    options = MODELS[name]
    for key, accuracy in bayes_accuracies(options, names(options)).items():
        subset = [int(m[1:]) for m in key.split("+")]
        assert accuracy == pytest.approx(twin(options, subset), abs=1e-12), key


@pytest.mark.parametrize("name", sorted(MODELS))
def test_counting_samples_encloses_the_bayes_accuracy(name):
    """The modal target of each observation is rated too well on the samples it was counted on, too badly on others."""
    options, n = MODELS[name], 400_000
    target, symbols = draw_symbols(options, n, "train")
    for key, accuracy in bayes_accuracies(options, names(options)).items():
        subset = [int(m[1:]) for m in key.split("+")]
        columns = [symbols[m, :, column] for m in subset for column in (0, 1)]
        if len(subset) == options.modalities:  # fewer shares tell nothing, as the twin shows
            columns.append(symbols[:, :, 2].sum(0) % options.classes)
        seen = torch.zeros(n, dtype=torch.int64)
        for column in columns:
            seen = seen * options.classes + column
        counts = torch.zeros(options.classes ** len(columns), options.classes)
        half = n // 2
        counts.index_put_((seen[:half], target[:half]), torch.ones(half), accumulate=True)
        right = (counts.argmax(1)[seen] == target).double()
        above, below = right[:half].mean().item(), right[half:].mean().item()
        error = 4 * 0.5 / half**0.5  # four standard errors at most
        assert below - error < accuracy < above + error, key
        assert above - below < 0.03, key


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_best_decoder_of_the_features_reaches_the_bayes_accuracy(noise):
    """From stored features to a vote of the symbols, each with the logarithm of its odds."""
    options = SyntheticOptions(n_test=50_000, label_noise=noise)
    bundle = Synthetic(options).load(None)
    (r0, u0, a0), (r1, u1, a1) = (
        Code.draw(options, m).decode(bundle.test.inputs[f"m{m}"]).T for m in range(options.modalities)
    )
    secret = (a0 + a1) % 6
    views = {
        "m0": [(r0, 0.4), (u0, 0.6)],
        "m1": [(r1, 0.4 * 0.6), (u1, 0.6 * 0.6)],
        "m0+m1": [(r0, 0.4), (u0, 0.6), (u1, 0.6 * 0.6), (secret, 0.3)],
    }
    for key, accuracy in bundle.facts["bayes_accuracy"].items():
        score = torch.zeros(50_000, 6, dtype=torch.float64)
        for symbol, p in views[key]:
            score += torch.nn.functional.one_hot(symbol, 6) * math.log((p + (1 - p) / 6) / ((1 - p) / 6))
        reached = (score.argmax(1) == bundle.test.target).double().mean().item()
        assert reached == pytest.approx(accuracy, abs=4 * 0.5 / 50_000**0.5), key


@pytest.mark.parametrize(
    "options",
    [
        SyntheticOptions(noise=0.99, n_train=3000),
        SyntheticOptions(noise=0.99, classes=40, dims=12, modalities=3, n_train=3000),
        SyntheticOptions(scale=(1.0, 0.05), n_train=3000),
    ],
)
def test_features_carry_their_symbols_without_loss(options):
    bundle = Synthetic(options).load(None)
    target, symbols = draw_symbols(options, options.n_train, "train")
    assert torch.equal(bundle.train.target, target)
    for m, name in enumerate(bundle.modalities):
        code = Code.draw(options, m)
        features = bundle.train.inputs[name] / options.of("scale", m)
        assert torch.equal(code.decode(features), symbols[m])
        clean = code.encode(symbols[m], 0.0, torch.Generator())
        length = (features - clean).norm(dim=1).max()
        assert 0.9 * options.noise * code.margin < length < code.margin
        # half the smallest distance between any two vectors of a kind, found the slow way
        smallest = min((v[i] - v[j]).norm() for v in code.vectors for i in range(len(v)) for j in range(i))
        assert code.margin == pytest.approx(float(smallest) / 2)


def test_information_behaves_as_its_name_says():
    redundant = bayes_accuracies(MODELS["redundant"], ("m0", "m1"))
    assert redundant["m0"] > redundant["m1"]
    assert redundant["m0+m1"] == pytest.approx(redundant["m0"])  # the weaker adds nothing
    synergy = bayes_accuracies(MODELS["synergy"], ("m0", "m1"))
    assert synergy["m0"] == synergy["m1"] == pytest.approx(1 / 4)
    assert synergy["m0+m1"] == pytest.approx(0.8 + 0.2 / 4)
    unique = bayes_accuracies(SyntheticOptions(redundancy=0, synergy=0, unique=(0.5,), strength=(1,)), ("m0", "m1"))
    assert unique["m0+m1"] == pytest.approx(unique["m0"])  # two equal votes: a tie-break gains nothing
    three = SyntheticOptions(modalities=3, redundancy=0, synergy=0, unique=(0.5,), strength=(1,))
    votes = bayes_accuracies(three, ("m0", "m1", "m2"))
    assert votes["m0+m1+m2"] > votes["m0+m1"] + 0.05


def test_all_subsets_up_to_six_modalities():
    options = SyntheticOptions(modalities=6, classes=12, n_train=10, n_val=10, n_test=10)
    bundle = Synthetic(options).load(None)
    accuracy = bundle.facts["bayes_accuracy"]
    assert len(accuracy) == 63
    assert list(bundle.modalities) == ["m0", "m1", "m2", "m3", "m4", "m5"]
    for smaller, a in accuracy.items():
        for larger, b in accuracy.items():
            if set(smaller.split("+")) <= set(larger.split("+")):
                assert a <= b + 1e-12


def test_shapes_and_determinism():
    options = SyntheticOptions(n_train=70, n_val=30, n_test=50, dims=10, classes=3)
    one, two = Synthetic(options).load(None), Synthetic(options).load(None)
    assert [len(one.split(s)) for s in ("train", "val", "test")] == [70, 30, 50]
    assert one.fingerprint == two.fingerprint
    for split in ("train", "val", "test"):
        assert torch.equal(one.split(split).target, two.split(split).target)
        for name, modality in one.modalities.items():
            values = one.split(split).inputs[name]
            assert values.dtype == torch.float32
            assert torch.equal(values, two.split(split).inputs[name])
            assert modality.transform(values, None).shape[1:] == modality.shape == (10,)
    assert not torch.equal(one.train.target[:30], one.val.target)


@pytest.mark.parametrize(
    "change",
    [{"data_seed": 1}, {"noise": 0.4}, {"label_noise": 0.1}, {"scale": (2,)}, {"n_test": 51}, {"synergy": 0.31}],
)
def test_other_options_have_other_fingerprints(change):
    base = {"n_train": 70, "n_val": 30, "n_test": 50}
    one, two = (Synthetic(SyntheticOptions(**o)).load(None).fingerprint for o in (base, base | change))
    assert one != two


def test_presented_as_spectrogram_and_frames():
    options = SyntheticOptions(shape="av", frames=2, n_train=4, n_val=2, n_test=2)
    bundle, vectors = (
        Synthetic(options).load(None),
        Synthetic(SyntheticOptions(n_train=4, n_val=2, n_test=2)).load(None),
    )
    assert set(bundle.facts["bayes_accuracy"]) == {"audio", "visual", "audio+visual"}
    shapes = {"audio": (1, 257, 188), "visual": (3, 2, 224, 224)}
    for m, (name, shape) in enumerate(shapes.items()):
        modality, stored = bundle.modalities[name], bundle.train.inputs[name]
        assert torch.equal(stored, vectors.train.inputs[f"m{m}"])
        shown = modality.transform(stored, None)
        assert shown.shape == (4, *modality.shape) == (4, *shape)
        image = shown if name == "audio" else shown[:, :, -1]
        rows = ((torch.arange(8) + 0.5) * shape[-2] / 8).long()
        columns = ((torch.arange(8) + 0.5) * shape[-1] / 8).long()
        centres = image[:, :, rows][:, :, :, columns].flatten(1)
        assert torch.equal(centres[:, : options.dims], stored)  # nothing is lost


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modalities": 7}, r"synthetic\.modalities must be <= 6, found 7"),
        ({"strength": "0.1,0.2,0.3"}, r"strength must have 1 to 2 values, one a modality, found 3"),
        ({"strength": (1.0, -0.1)}, r"strength must be >= 0, found -0.1"),
        ({"scale": ()}, r"scale must have 1 to 2 values, one a modality, found 0"),
        ({"label_noise": 0.9}, r"label_noise must be <= 0.8333 for 6 classes, found 0.9"),
        ({"noise": 1}, r"noise must be < 1, found 1.0"),
        ({"shape": "av", "modalities": 3}, r"shape av must have 2 modalities, audio and visual, found 3"),
        ({"shape": "av", "dims": 65}, r"dims must be <= 64 for the shape av, found 65"),
        ({"shape": "text"}, r"shape must be one of vector, av, found text"),
    ],
)
def test_wrong_options(values, message):
    with pytest.raises(UserError, match=message):
        SyntheticOptions.build("synthetic", values)


def test_too_many_classes_for_the_dimensions():
    with pytest.raises(UserError, match="dims must be large enough to tell 3000 classes apart, found 6"):
        Synthetic(SyntheticOptions(classes=3000, dims=6)).load(None)
