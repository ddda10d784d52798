"""The LoRA linear against its two formulas, and merging."""
import pytest
import torch

from lora import FrozenAndLowRank, LoRALinear, Mask


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
        grad, = torch.autograd.grad(linear(torch.randn(3, 6), Mask(None, d_out, aware)).square().sum(), linear.B)
        assert bool(grad[2].abs().sum() > 0) == aware and grad[0].abs().sum() > 0


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_merged_equals_unmerged(linear, dtype, tolerance):
    linear.weight.data = linear.weight.data.to(dtype)
    x = torch.randn(3, 6).to(dtype)
    before = linear(x)
    linear.merge()
    assert linear.A is None and linear.B is None and linear.weight.dtype == dtype
    assert torch.allclose(linear(x), before, atol=tolerance)


def test_keep_cuts_weight_and_lora_alike(linear):
    x, rows = torch.randn(3, 6), torch.tensor([0, 3])
    before = linear(x)
    linear.keep(0, rows)
    assert torch.allclose(linear(x), before[:, rows], atol=1e-6) and linear.B.shape == (2, 2)


@pytest.mark.parametrize("masked", [False, True])
def test_the_linear_with_lora_has_autograds_own_gradients(masked):
    torch.manual_seed(0)
    W, d_in, d_out = torch.randn(7, 6).double(), torch.tensor([1., 0, 1, 1, 0, 1]).double(), torch.tensor([1., 1, 0, 1, 0, 1, 1]).double()
    masks = (d_in, d_out) if masked else (None, None)
    x, A, B = tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(5, 6), (3, 6), (7, 3)]]

    def linear(x, A, B):
        return FrozenAndLowRank.apply(x, W, A, B, 1.7, *masks)

    assert torch.autograd.gradcheck(linear, tensors)
    left = W * d_out[:, None] * d_in if masked else W
    torch.testing.assert_close(linear(x, A, B), x @ (left + 1.7 * B @ A).t())
