"""Probes against scikit-learn, alignment of features against its definition by kernels."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from balancebench_udi.metrics.features import cka, fit_probe


def clusters(seed, n=240, dims=12, classes=4, spread=1.5):
    """Gaussian classes on very different scales."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    target = rng.integers(0, classes, n)
    x = (centres[target] + spread * rng.normal(size=(n, dims))) * np.logspace(-2, 2, dims) + 3
    return torch.from_numpy(x).float(), torch.from_numpy(target)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 50.0])
def test_a_probe_is_the_logistic_regression_of_scikit_learn(penalty):
    (x, y), (seen, _) = clusters(0), clusters(1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000)).fit(x, y)
    found = fit_probe(x, y, 4, penalty)(seen).double().softmax(1)
    assert np.abs(found.numpy() - model.predict_proba(seen)).max() < 2e-3


def test_a_probe_knows_classes_that_the_features_do_not_have_and_survives_constant_features():
    x, y = clusters(0)
    x[:, 0] = 7.0
    logits = fit_probe(x, y, 6)(x)
    assert logits.shape == (240, 6)
    assert logits.isfinite().all()
    assert (logits.argmax(1) == y).double().mean() > 0.6
    assert (logits.argmax(1) < 4).all()


def test_a_probe_leaves_features_and_generators_alone_and_is_the_same_twice():
    x, y = clusters(0)
    x.requires_grad_()
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second = fit_probe(x, y, 4)(x), fit_probe(x, y, 4)(x)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def by_kernels(x, y):
    """HSIC of linear kernels, with the centring matrix written out."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, j = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return np.trace(k @ j) / np.sqrt(np.trace(k @ k) * np.trace(j @ j))


@pytest.mark.parametrize("seed", range(4))
def test_alignment_equals_its_definition_by_kernels(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 5)) + 4
    y = x[:, :3] @ rng.normal(size=(3, 7)) + rng.normal(size=(30, 7))
    assert cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(by_kernels(x, y), abs=1e-10)


def test_alignment_does_not_see_rotation_scale_or_shift():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6))
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(6, 6)))[0] + 5
    assert cka(torch.from_numpy(x), torch.from_numpy(turned)) == pytest.approx(1)
    other = torch.from_numpy(rng.normal(size=(50, 6)))
    assert cka(torch.from_numpy(x), other) == pytest.approx(cka(torch.from_numpy(turned), other))
    assert 0 < cka(torch.from_numpy(x), other) < 0.5
    assert cka(torch.ones(50, 2), other) == 0
