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
    aware: bool = False  # True: the mask touches W alone (LoRA-aware); False: W and LoRA alike (pruned)


class LowRankUpdate(torch.autograd.Function):
    """y + s x A^T B^T for y [N, out], x [N, in], A [r, in], B [out, r].

    What autograd would do, but in the order in which thin matrices are fast: g^T h for B's gradient takes several
    times as long as (h^T g)^T on a CPU, and no pass over y is spent on the addition."""

    @staticmethod
    def forward(ctx, y, x, A, B, scale):
        h = F.linear(x, A) * scale  # N r
        ctx.scale = scale
        ctx.save_for_backward(x, h, A, B)
        return torch.addmm(y, h, B.t())

    @staticmethod
    def backward(ctx, g):
        x, h, A, B = ctx.saved_tensors
        grad_h = F.linear(g, B.t().contiguous()) * ctx.scale
        learns = ctx.needs_input_grad[2]
        return g, grad_h @ A, grad_h.t() @ x if learns else None, (h.t() @ g).t() if learns else None, None


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
        kept = x if d_in is None else x * d_in
        y = F.linear(kept, self.weight)
        if self.A is None:
            return y if d_out is None else y * d_out
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)  # float32 masters, the base's dtype to compute in
        if aware and d_out is not None:
            y = y * d_out
        y = LowRankUpdate.apply(y.flatten(0, -2), (x if aware else kept).flatten(0, -2), A, B,
                                self.scale).unflatten(0, x.shape[:-1])
        return y if aware or d_out is None else y * d_out

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
