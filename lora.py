"""LoRA on a frozen linear layer whose rows and columns can be switched off.

A frozen weight W gets a trainable low-rank update s B A (LoRA, arXiv 2106.09685). ATP (arXiv 2412.14426) adds
decisions d over W's rows (d_out) and columns (d_in), and uses two forwards:

    pruned       y = d_out * (W + s B A)(d_in * x)    what is exported; soft, what the generator learns by
    LoRA-aware   y = d_out * W(d_in * x) + s B A x    a LoRA step under 0/1 d: where W is off, LoRA learns on
                 x ──┬── d_in ── W ── d_out ──(+)── y
                     └────── A ── s ── B ──────┘          ([in] → [rank] → [out])

So a group can come back. With a LoRA of zeros its gradients are zero: the generator alone can bring it back.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

def whole(p: Tensor) -> Tensor:
    """All of a parameter; if it is spread over processes (`llama.spread`), a collective call."""
    return p.full_tensor() if hasattr(p, "full_tensor") else p

class Mask(NamedTuple):
    """What one linear is told of the decisions: `d_in` [in] and `d_out` [out], or None for "all on"."""
    d_in: Tensor | None = None
    d_out: Tensor | None = None
    aware: bool = False  # True: masks of W alone (LoRA-aware); False: of W and LoRA (pruned)

class Products(torch.autograd.Function):
    """x W^T [..., out] and x A^T [..., r], without a pass to add up x's two gradients: 3 to 5 % of a step."""
    @staticmethod
    def forward(ctx, x, W, A):
        ctx.save_for_backward(x, W, A)
        return F.linear(x, W), F.linear(x, A)

    @staticmethod
    def backward(ctx, grad_y, grad_h):
        (x, W, A), grad_h, grad_x = ctx.saved_tensors, grad_h.flatten(0, -2), None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_y @ W).flatten(0, -2).addmm_(grad_h, A).view_as(x)
        return grad_x, None, grad_h.t() @ x.flatten(0, -2)

class LoRALinear(nn.Module):
    """A linear layer without bias: frozen `weight` [out, in]; with LoRA, `A` [r, in] and `B` [out, r]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.A = self.B = None

    def add_lora(self, rank: int, scale: float) -> None:
        """Adds a float32 pair that starts as zero: A as nn.Linear initializes, B = 0."""
        (n_out, n_in), device = self.weight.shape, self.weight.device
        self.A = nn.Parameter(torch.empty(rank, n_in, device=device).uniform_(-1, 1) / n_in ** 0.5)
        self.B = nn.Parameter(torch.zeros(n_out, rank, device=device))
        self.scale = scale

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """x [..., in] to [..., out]. Without a mask, or with all of it on, the two forwards are the same."""
        d_in, d_out, aware = mask or Mask()
        kept, W = x if d_in is None else x * d_in, whole(self.weight)
        if self.A is None:
            y, h = F.linear(kept, W), None
        elif aware and d_in is not None:
            y, h = F.linear(kept, W), F.linear(x, self.A.to(x.dtype))
        else:
            y, h = Products.apply(kept, W, self.A.to(x.dtype))
        y = y if aware else self.add_update(y, h)
        y = y if d_out is None else y * d_out
        return self.add_update(y, h) if aware else y

    def add_update(self, y: Tensor, h: Tensor | None) -> Tensor:
        """y [..., out] + s B h in y's dtype, without a pass for the sum; A and B are float32 masters."""
        if h is None:
            return y
        B_t = self.B.to(y.dtype).t().contiguous()  # rows, by which backward's product for h is faster
        return torch.addmm(y.flatten(0, -2), h.flatten(0, -2), B_t, alpha=self.scale).view_as(y)

    @torch.no_grad()
    def merge(self) -> None:
        """W <- W + s B A in float32, rounded once to W's dtype, in place; the pair is dropped."""
        if self.A is not None:
            self.weight.copy_(self.weight.float().addmm_(self.B, self.A, alpha=self.scale))
            self.A = self.B = None

    @torch.no_grad()
    def keep(self, axis: int, index: Tensor) -> None:
        """Keeps rows (axis 0) or columns (1) `index`, as new Parameters: autograd may know the old shape."""
        cut = ("weight", "B" if axis == 0 else "A")
        for name, old in [item for item in self.named_parameters() if item[0] in cut]:
            new = whole(old).index_select(axis, index.to(old.device))
            if hasattr(old, "full_tensor"):
                new = torch.distributed.tensor.distribute_tensor(new, old.device_mesh, old.placements)
            setattr(self, name, nn.Parameter(new, old.requires_grad))
