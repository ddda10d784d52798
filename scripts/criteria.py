"""Other ways to decide which groups stay: once, by the pretrained model, before tuning begins.

    python train.py --data legal.jsonl --decisions taylor      # or magnitude, activation, random

A criterion gives every group a score, `Groups.decide` keeps the best in the budget. To add one, write a function
and name it in CRITERIA; `Config.decisions` in train.py lists the names for the command line.
"""
import torch
from torch import Tensor

from atp import Groups, log_saliency
from data import add_up
from llama import Llama
from lora import whole


def taylor(model: Llama, groups: Groups, batches) -> Tensor:
    """|dL / d mask|, mean over batches: |sum of w * g| over the group (LLM-Pruner, arXiv 2305.11627)."""
    d, total = torch.ones_like(groups.cost, dtype=torch.float32, requires_grad=True), 0
    for tokens, targets, n in batches:
        loss = model.nll(tokens, targets, groups.masks(d, False, model.norm.weight.dtype)) / n.clamp(min=1)
        total += add_up([*torch.autograd.grad(loss, d)])[0].abs() / len(batches)
    return log_saliency(groups, total)


@torch.no_grad()
def magnitude(model: Llama, groups: Groups, batches, inputs: dict | None = None) -> Tensor:
    """Root mean square of a group's weights, relative to that of its kind in its layer; with `inputs`
    {linear: sums of squares of what goes in [in]}, of |w| times the norm of its input."""
    squares = torch.zeros(len(groups), device=groups.cost.device)
    for block, axes in zip(model.layers, groups.axes):
        for (weight, axis), (group, _) in axes.items():
            linear = block.linears()[weight]
            of_weights = whole(linear.weight).float().square() * (inputs[linear] if inputs else 1)
            squares.index_add_(0, group, of_weights.sum(1 - axis))
    segments = (squares / groups.cost).sqrt().split([n for *_, n in groups.segments])
    return torch.cat([segment / segment.mean() for segment in segments])


@torch.no_grad()
def activation(model: Llama, groups: Groups, batches) -> Tensor:
    """Magnitude of weights and their inputs (Wanda, arXiv 2306.11695; FLAP, 2312.11983)."""
    squares = dict.fromkeys(model.linears(), 0)

    def add(linear, inputs, output):
        squares[linear] += inputs[0].float().square().flatten(0, -2).sum(0)
    hooks = [linear.register_forward_hook(add) for linear in squares]
    for tokens, *_ in batches:
        model.hidden(tokens)
    for hook in hooks:
        hook.remove()
    return magnitude(model, groups, batches, dict(zip(squares, add_up([*squares.values()]))))


def random(model: Llama, groups: Groups, batches) -> Tensor:
    return torch.rand(len(groups)).to(groups.cost.device)


# Scores [G] of the pretrained model. A batch: tokens, targets, how many of these count in all processes.
CRITERIA = {"taylor": taylor, "magnitude": magnitude, "activation": activation, "random": random}
