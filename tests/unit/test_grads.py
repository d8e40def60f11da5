"""Arithmetic on lists of gradients against flat vectors."""

import pytest
import torch
from torch import nn

from balancebench_udi.grads import dot, gradients, norm
from balancebench_udi.seeding import generator


@pytest.fixture
def parts():
    stream = generator(0, "grads")
    net = nn.ModuleList([nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(3, 2)])
    for p in net.parameters():
        p.data.normal_(generator=stream)
    return net, torch.randn(5, 4, generator=stream)


def lists(seed):
    stream = generator(seed, "lists")
    return [torch.randn(shape, generator=stream) for shape in [(3, 4), (7,), (), (2, 1, 5)]]


def flat(values):
    return torch.cat([v.double().flatten() for v in values])


def test_gradients_equal_backward_and_leave_grad_alone(parts):
    net, x = parts
    parameters = list(net.parameters())
    loss = net[1](torch.tanh(net[0](x))).square().sum()
    found = gradients(loss, parameters, retain_graph=True)
    assert all(p.grad is None for p in parameters)
    loss.backward()
    for g, p in zip(found, parameters, strict=True):
        assert g.shape == p.shape
        assert torch.equal(g, torch.zeros_like(p) if p.grad is None else p.grad)
    assert net[2].weight.grad is None
    assert found[0].abs().sum() > 0


def test_the_graph_is_kept_only_where_asked(parts):
    net, x = parts
    loss = net[0](x).tanh().sum()
    gradients(loss, list(net[0].parameters()), retain_graph=True)
    gradients(loss, list(net[0].parameters()))
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, list(net[0].parameters()))


def test_dot_is_the_inner_product_of_the_flat_vectors():
    a, b = lists(1), lists(2)
    assert dot(a, b).shape == ()
    torch.testing.assert_close(dot(a, b).double(), flat(a) @ flat(b), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dot(a, b), dot(b, a))
    assert dot(a, [torch.zeros_like(v) for v in a]) == 0


def test_norm_is_the_euclidean_norm_of_the_flat_vector():
    a = lists(3)
    assert norm(a).shape == ()
    torch.testing.assert_close(norm(a).double(), flat(a).norm(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm([3 * v for v in a]), 3 * norm(a))
    torch.testing.assert_close(norm(a) ** 2, dot(a, a))


def test_tuples_do_as_well():
    a = lists(4)
    assert torch.equal(dot(tuple(a), tuple(a)), dot(a, a))
    assert torch.equal(norm(tuple(a)), norm(a))
