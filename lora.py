"""LoRA on a frozen linear layer whose rows and columns can be switched off.

A frozen weight W gets a trainable low-rank update s B A (LoRA, arXiv 2106.09685). ATP (arXiv 2412.14426) adds
decisions d over W's rows (d_out) and columns (d_in), and uses two forwards:

    pruned       y = d_out * (W + s B A)(d_in * x)         what will be exported: a removed group does nothing;
                                                           with soft d, what the generator learns through
    LoRA-aware   y = d_out * W(d_in * x) + s B A x         a LoRA step under 0/1 d: B and A still learn where W
                                                           is off, so a group can come back

                 x ──┬── d_in ── W ── d_out ──(+)── y
                     └────── A ── s ── B ──────┘            (LoRA-aware; [in] → [rank] → [out])

Both are exact for 0/1 decisions. In a group that is off and whose LoRA is exactly zero on all sides, gradients
are zero too (a product of zeros): such a group comes back by the generator, not by LoRA.

Try it:  python -m pytest tests/test_lora.py
"""
import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class Mask(NamedTuple):
    """What one linear is told of the decisions. `d_in` [in] and `d_out` [out], or None for "all on"."""
    d_in: Tensor | None = None
    d_out: Tensor | None = None
    aware: bool = False  # True: 0/1 masks of W alone (LoRA-aware), without gradient; False: of W and LoRA (pruned)


class FrozenAndLowRank(torch.autograd.Function):
    """d_out * W (d_in * x) + s B A x for x [N, in], frozen W [out, in], A [r, in], B [out, r]; masks may be None.

    What autograd would do, but no pass over activations is spent on additions, thin matrices go in the order in
    which they are fast (g^T h for B's gradient takes several times as long as (h^T g)^T on a CPU), and the masks,
    0/1 here, take no gradient."""

    @staticmethod
    def forward(ctx, x, W, A, B, scale, d_in, d_out):
        y = F.linear(x if d_in is None else x * d_in, W)
        if d_out is not None:
            y *= d_out
        h = F.linear(x, A) * scale  # N r
        ctx.scale = scale
        ctx.save_for_backward(x, h, W, A, B, d_in, d_out)
        return y.addmm_(h, B.t())

    @staticmethod
    def backward(ctx, g):
        x, h, W, A, B, d_in, d_out = ctx.saved_tensors
        grad_x = grad_A = grad_B = None
        grad_h = F.linear(g, B.t().contiguous()) * ctx.scale
        if ctx.needs_input_grad[2]:
            grad_A, grad_B = grad_h.t() @ x, (h.t() @ g).t()
        if ctx.needs_input_grad[0]:
            grad_x = (g if d_out is None else g * d_out) @ W
            if d_in is not None:
                grad_x *= d_in
            grad_x.addmm_(grad_h, A)
        return grad_x, None, grad_A, grad_B, None, None, None


class LoRALinear(nn.Module):
    """A linear layer without bias: frozen `weight` [out, in]; after `add_lora`, `A` [r, in] and `B` [out, r]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.A = self.B = None
        self.scale = 0.0

    def add_lora(self, rank: int, scale: float) -> None:
        """Adds a float32 pair that starts as zero: A as nn.Linear initializes, B = 0."""
        out_features, in_features = self.weight.shape
        like = dict(device=self.weight.device, dtype=torch.float32)
        self.A = nn.Parameter(torch.empty(rank, in_features, **like).uniform_(-1, 1) / math.sqrt(in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank, **like))
        self.scale = scale

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """x [..., in] to [..., out]. Without a mask, or with all of it on, the two forwards are the same."""
        d_in, d_out, aware = mask or Mask()
        if aware and self.A is not None:
            return self.with_lora(x, d_in, d_out)
        x = x if d_in is None else x * d_in
        y = F.linear(x, self.weight) if self.A is None else self.with_lora(x)
        return y if d_out is None else y * d_out

    def with_lora(self, x: Tensor, d_in=None, d_out=None) -> Tensor:
        """d_out * W (d_in * x) + s B A x, in x's dtype: A and B are float32 masters."""
        y = FrozenAndLowRank.apply(x.flatten(0, -2), self.weight, self.A.to(x.dtype), self.B.to(x.dtype), self.scale,
                                   d_in, d_out)
        return y.unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def merge(self) -> None:
        """W <- W + s B A in float32, rounded once to W's dtype; the pair is dropped. In place, no second W."""
        if self.A is not None:
            self.weight.copy_(self.weight.float().addmm_(self.B, self.A, alpha=self.scale))
            self.A = self.B = None

    @torch.no_grad()
    def keep(self, axis: int, index: Tensor) -> None:
        """Keeps the rows (axis 0) or columns (axis 1) `index` of W, with the rows of B or the columns of A.

        What is cut becomes a new Parameter: autograd may still hold on to the old one's shape."""
        for name in ("weight", "B" if axis == 0 else "A"):
            old = getattr(self, name)
            if old is not None:
                setattr(self, name, nn.Parameter(old.index_select(axis, index.to(old.device)), old.requires_grad))
