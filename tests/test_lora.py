"""The LoRA linear against its two formulas, merging, and cutting."""
import pytest
import torch

from lora import LoRALinear, Mask, Products


@pytest.fixture
def linear():
    torch.manual_seed(0)
    layer = LoRALinear(6, 5)
    layer.weight.data.normal_()
    layer.add_lora(rank=2, scale=1.5)
    layer.B.data.normal_()
    return layer


def test_starts_as_the_frozen_weight():
    layer, x = LoRALinear(6, 5), torch.randn(3, 6)
    layer.weight.data.normal_()
    before = layer(x)
    layer.add_lora(rank=2, scale=1.5)
    assert torch.equal(layer(x), before)
    assert not layer.weight.requires_grad and layer.A.requires_grad and layer.B.requires_grad


def test_the_two_forwards(linear):
    x = torch.randn(3, 6)
    d_in, d_out = torch.tensor([1., 0, 1, 1, 0, 1]), torch.tensor([1., 1, 0, 1, 0])
    update = 1.5 * linear.B @ linear.A
    pruned = torch.diag(d_out) @ (linear.weight + update) @ torch.diag(d_in)
    aware = torch.diag(d_out) @ linear.weight @ torch.diag(d_in) + update
    assert torch.allclose(linear(x, Mask(d_in, d_out)), x @ pruned.T, atol=1e-5)
    assert torch.allclose(linear(x, Mask(d_in, d_out, aware=True)), x @ aware.T, atol=1e-5)
    assert torch.allclose(linear(x), x @ (linear.weight + update).T, atol=1e-5)


def test_only_the_aware_forward_gives_gradients_to_removed_groups(linear):
    d_out = torch.tensor([1., 1, 0, 1, 0])
    for aware in (False, True):
        y = linear(torch.randn(3, 6), Mask(None, d_out, aware))
        grad, = torch.autograd.grad(y.square().sum(), linear.B)
        assert bool(grad[2].abs().sum() > 0) == aware and grad[0].abs().sum() > 0


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_merged_equals_unmerged(linear, dtype, tolerance):
    linear.weight.data = linear.weight.data.to(dtype)
    x = torch.randn(3, 6).to(dtype)
    before = linear(x)
    assert before.dtype == dtype and linear.A.dtype == linear.B.dtype == torch.float32
    linear.merge()
    assert linear.A is None and linear.B is None and linear.weight.dtype == dtype
    assert torch.allclose(linear(x), before, atol=tolerance)


def test_keep_cuts_weight_and_lora_alike(linear):
    x, rows, columns = torch.randn(3, 6), torch.tensor([0, 3]), torch.tensor([1, 4, 5])
    before = linear(x)
    linear.keep(0, rows)
    assert torch.allclose(linear(x), before[:, rows], atol=1e-6) and linear.B.shape == (2, 2)
    only = torch.zeros(6).index_fill(0, columns, 1)
    before = linear(x * only)
    linear.keep(1, columns)
    assert torch.allclose(linear(x[:, columns]), before, atol=1e-6) and linear.A.shape == (2, 3)
    assert not linear.weight.requires_grad and linear.A.requires_grad and linear.B.requires_grad


def test_products_have_autograds_own_gradients():
    torch.manual_seed(0)
    x, W, A = (torch.randn(shape, dtype=torch.float64) for shape in [(2, 5, 6), (7, 6), (3, 6)])
    x.requires_grad_()
    A.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, A: Products.apply(x, W, A), (x, A))
    for ours, theirs in zip(Products.apply(x, W, A), (x @ W.T, x @ A.T)):
        torch.testing.assert_close(ours, theirs)


def test_soft_decisions_and_lora_have_autograds_own_gradients(linear):
    """In both forwards, of x, A, B and the decisions themselves."""
    linear.weight.data = linear.weight.data.double()
    x, d_in, d_out = (torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in [(3, 6), (6,), (5,)])
    A, B = (p.detach().double().requires_grad_() for p in (linear.A, linear.B))
    for aware in (False, True):
        linear.A, linear.B = torch.nn.Parameter(A.detach()), torch.nn.Parameter(B.detach())
        y = linear(x, Mask(d_in, d_out, aware))
        ours = torch.autograd.grad(y.square().sum(), (x, d_in, d_out, linear.A, linear.B))
        update, W = 1.5 * B @ A, linear.weight
        y = (x * d_in) @ W.T * d_out + x @ update.T if aware else (x * d_in) @ (W + update).T * d_out
        theirs = torch.autograd.grad(y.square().sum(), (x, d_in, d_out, A, B))
        for one, other in zip(ours, theirs):
            torch.testing.assert_close(one, other)
