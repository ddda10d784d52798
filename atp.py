"""ATP: which groups to remove, learned while LoRA tunes (arXiv 2412.14426).

    in the code     in the paper              meaning
    d               d, the pruning decision   1: the group stays, 0: it goes; [G], over all layers
    logits          output of G               the generator's score of each group, [G]
    Generator       G, decision generator     a small transformer over the layers of the model
    keep            p                         fraction of the prunable parameters to keep, 1 - pruned
    budget_term     R, parameter regularizer  |log(kept / keep)|
    group_lasso     sparsity regularization   sum of the norms of removed groups' LoRA rows and columns
    temperature     T                         of the sigmoid in the decisions
    edge            -                         the logit at which the kept groups fill the budget
    freeze          T_end                     the step from which the decisions no longer change

One table, `group_table`, says which rows and columns a group owns. Masks, parameter counts, decisions in the
budget, the lasso and the slicing (export.py) are read off it. Try it:  python -m pytest tests/test_atp.py
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from llama import InputError, LayerSize, Llama, LlamaConfig, whole
from lora import LoRALinear, Mask

SPACES = {"dims": ("qk", "vo", "ffn"),  # head dimensions, alike in all heads of a layer (the paper's space)
          "heads": ("head", "ffn")}     # whole heads (what existing engines run)
ROWS, COLUMNS = 0, 1


def group_table(size: LayerSize) -> dict[str, tuple[int, dict[tuple[str, int], Tensor]]]:
    """The groups of one layer: kind -> (how many, {(weight, axis): the group of each index along that axis}).

    The first entry of a kind is where a soft decision acts in the pruned forward: once, or 0.5 would be 0.25.
    Query/key dimensions go in rotary pairs, as RoPE mixes the two; heads with the query heads that share one.
    """
    H, K, Q, E = size.n_heads, size.n_kv_heads, size.qk_dim, size.v_dim
    unit = torch.arange(size.hidden_dim)

    def by_dim(heads, dim, together=1):
        return (torch.arange(dim) // together).repeat(heads)

    def by_head(heads, dim):
        return (torch.arange(heads) // (heads // K)).repeat_interleave(dim)

    return {
        "qk": (Q // 2, {("wq", ROWS): by_dim(H, Q, 2), ("wk", ROWS): by_dim(K, Q, 2)}),
        "vo": (E, {("wo", COLUMNS): by_dim(H, E), ("wv", ROWS): by_dim(K, E)}),
        "head": (K, {("wo", COLUMNS): by_head(H, E), ("wq", ROWS): by_head(H, Q),
                     ("wk", ROWS): by_head(K, Q), ("wv", ROWS): by_head(K, E)}),
        "ffn": (size.hidden_dim, {("w2", COLUMNS): unit, ("w1", ROWS): unit, ("w3", ROWS): unit}),
    }


def pruned_size(size: LayerSize, kept: dict[str, list[int]]) -> LayerSize:
    """The size of a layer of which only the groups `kept` (kind -> their indices) are left."""
    new = LayerSize(**vars(size))
    if "qk" in kept:
        pairs = range(size.qk_dim // 2) if size.rotary_pairs is None else size.rotary_pairs
        new.rotary_pairs = [pairs[i] for i in kept["qk"]]
        new.qk_dim = 2 * len(kept["qk"])
    if "vo" in kept:
        new.v_dim = len(kept["vo"])
    if "head" in kept:
        new.n_kv_heads = len(kept["head"])
        new.n_heads = len(kept["head"]) * (size.n_heads // size.n_kv_heads)
    if "ffn" in kept:
        new.hidden_dim = len(kept["ffn"])
    return new


def midpoint(above: Tensor, below: Tensor) -> Tensor:
    """Between the two; where one is infinite (there is nothing on that side), the other."""
    return torch.where(above.isinf(), below, torch.where(below.isinf(), above, (above + below) / 2))


class Groups:
    """All groups of a model in one flat order: layer by layer, kind by kind (a *segment*), index by index.

    segment [G]    the segment of each group; `segments` lists (layer, kind, first group, number of groups)
    kind [G]       the kind of each group, a place in SPACES[space]
    cost [G]       parameters that go with a group, exact integers
    axes           of each layer, {(weight, axis): (group of each index, whether soft decisions act here)}
    chunk [G]      groups are kept or removed a chunk at a time. A chunk is `round_to` dimensions or units (or
                   one head) of one segment; if `uniform`, that of all layers: they keep equal sizes
    """

    def __init__(self, config: LlamaConfig, space: str, round_to=1, uniform=False, device="cpu"):
        if uniform and any(size != config.layers[0] for size in config.layers):
            raise InputError("--uniform needs a model whose layers are of equal size")
        self.uniform, self.segments, self.axes = uniform, [], []
        cost, segment, chunk, first_chunks, n_chunks = [], [], [], {}, 0
        for layer, size in enumerate(config.layers):
            table, axes = group_table(size), {}
            for kind in SPACES[space]:
                n, members = table[kind]
                start = sum(map(len, segment))
                rows_and_columns = sum(torch.bincount(index, minlength=n) for index in members.values())
                for i, (where, index) in enumerate(members.items()):
                    axes[where] = (index.to(device) + start, i == 0)
                # Every row and column of a layer's prunable weights is as long as the model is wide.
                cost.append(rows_and_columns * config.dim)
                segment.append(torch.full((n,), len(self.segments)))
                self.segments.append((layer, kind, start, n))
                together = {"head": 1, "qk": max(1, round_to // 2)}.get(kind, round_to)
                first = first_chunks.setdefault((kind, 0 if uniform else layer), n_chunks)
                chunk.append(torch.arange(n) // together + first)
                n_chunks = max(n_chunks, first - (-n // together))
            self.axes.append(axes)
        self.cost, self.segment, self.chunk = (torch.cat(t).to(device) for t in (cost, segment, chunk))
        kinds = [SPACES[space].index(kind) for _, kind, *_ in self.segments]
        self.kind = torch.tensor(kinds, device=device)[self.segment]
        self.total = int(self.cost.sum())
        self.share = (self.cost / self.total).float()
        # Within a segment all groups cost the same, so a chunk's cost does not depend on which are in it.
        self.chunk_size = torch.bincount(self.chunk)
        self.chunk_cost = torch.zeros_like(self.chunk_size).index_add_(0, self.chunk, self.cost)
        self.chunk_kind = torch.zeros_like(self.chunk_size).scatter_(0, self.chunk, self.kind)
        self.first_chunks = list(first_chunks.values())
        self.floor = int(self.chunk_cost[self.first_chunks].sum())

    def __len__(self) -> int:
        return len(self.cost)

    def kept(self, d: Tensor) -> int:
        """Prunable parameters that decisions d [G] (bool) leave: exact, what `numel` counts after slicing."""
        return int(self.cost[d].sum())

    def check(self, keep: float) -> None:
        """Raises InputError if not even the fewest groups with which every layer works fit in the budget."""
        if self.floor > keep * self.total + 1e-3:
            raise InputError(f"--prune {1 - keep:.3f} is out of reach: one group (or --round-to of them) of each "
                             f"kind in every layer is {self.floor / self.total:.1%}; lower --prune or --round-to")

    @torch.no_grad()
    def decide(self, logits: Tensor, keep: float) -> tuple[Tensor, Tensor]:
        """The highest-scoring groups that fit in the budget: d [G] (bool); and the logit at the edge, [] or [G].

        Groups are ranked within their segment, and chunks of them by mean logit. The best chunk of every
        segment always stays, so that every layer goes on working. A kind whose next chunk no longer fits is
        full; cheaper kinds may fill what is left. The budget is met to within one chunk, never exceeded.
        """
        logits = logits.float()
        by_logit = logits.argsort(descending=True, stable=True)
        order = by_logit[self.segment[by_logit].argsort(stable=True)]  # segment by segment, best group first
        score = logits.new_zeros(len(self.chunk_cost)).index_add_(0, self.chunk, logits[order]) / self.chunk_size
        lowest = score.min()
        score[self.first_chunks] = torch.inf
        best = score.argsort(descending=True, stable=True)
        cost, kind = self.chunk_cost[best], self.chunk_kind[best]
        fits, limit = torch.ones_like(best, dtype=torch.bool), keep * self.total + 1e-3  # 1 - 0.8 is less than 0.2
        first_over = None
        while len(over := ((cost * fits).cumsum(0) > limit).logical_and(fits).nonzero()):
            first = int(over[0])
            first_over = first_over or first
            fits[first:] &= kind[first:] != kind[first]
        chunk_kept, d = torch.zeros_like(fits), torch.zeros_like(self.segment, dtype=torch.bool)
        chunk_kept[best] = fits
        d[order] = chunk_kept[self.chunk]
        if self.uniform:  # every segment has an edge of its own
            end = logits.new_full((len(self.segments),), torch.inf)
            lowest_kept = end.scatter_reduce(0, self.segment[d], logits[d], "amin")
            highest_removed = (-end).scatter_reduce(0, self.segment[~d], logits[~d], "amax")
            return d, midpoint(lowest_kept, highest_removed)[self.segment]
        if first_over is None:
            return d, lowest
        return d, midpoint(score[best[first_over - 1]], score[best[first_over]])

    def edge(self, logits: Tensor, keep: float, temperature: float) -> Tensor:
        """`decide`'s edge ([], or [G] if uniform), moving with the logits [G] so that sigmoid((logits - edge) /
        temperature) costs the same.

        So the gradient of a loss in a logit is relative to that of all groups at the edge, per parameter: without,
        every group would rise, as keeping one more helps nearly always, and only noise would tell them apart.
        """
        edge = self.decide(logits, keep)[1]
        p = torch.sigmoid((logits.detach() - edge) / temperature)
        weight = p * (1 - p) * self.cost  # what a group gives back when the edge rises
        return edge + (weight * (logits - logits.detach())).sum() / weight.sum().clamp(min=1e-30)

    def masks(self, d: Tensor, aware: bool, dtype=torch.float32) -> list[dict[str, Mask]]:
        """What each layer's linears are told of decisions d [G], hard or soft, for `Llama.forward`."""
        masks = []
        for axes in self.axes:
            layer = {}
            for (weight, axis), (group, acts) in axes.items():
                if acts or aware:
                    layer[weight] = Mask(**{"d_out" if axis == ROWS else "d_in": d[group].to(dtype)}, aware=aware)
            masks.append(layer)
        return masks

    def kept_groups(self, d: Tensor) -> list[dict[str, list[int]]]:
        """Decisions d [G] as {kind: indices of the groups that stay}, one dict a layer."""
        layers = [{} for _ in self.axes]
        for layer, kind, start, n in self.segments:
            layers[layer][kind] = d[start:start + n].nonzero().flatten().tolist()
        return layers


# ---------------------------------------------------------------------------------------------- the generator

class Generator(nn.Module):
    """G: one fixed orthogonal vector a layer -> transformer encoder over the layers -> a linear head a layer.

    `prior` [G] is added to the output: zero in the paper, else what the warm start has found.
    """

    def __init__(self, groups: Groups, width: int = 64, depth: int = 2, heads: int = 4):
        super().__init__()
        width = max(width, -(-len(groups.axes) // heads) * heads)  # vectors are orthogonal only if they fit
        self.per_layer = [0] * len(groups.axes)
        for layer, _, _, n in groups.segments:
            self.per_layer[layer] += n
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(groups))  # its rows are cut into one head a layer
        self.register_buffer("inputs", nn.init.orthogonal_(torch.empty(len(groups.axes), width)))
        self.register_buffer("gradients", torch.zeros(len(groups)))
        self.register_buffer("prior", torch.zeros(len(groups)))

    def forward(self) -> Tensor:
        """Logits [G]."""
        h = self.encoder(self.inputs[None])[0]
        logits = [F.linear(x, w) for x, w in zip(h, self.head.weight.split(self.per_layer))]
        return torch.cat(logits) + self.head.bias + self.prior

    def warm_up(self, groups: Groups, gradient: Tensor, spread: float) -> None:
        """Adds |gradient|, of a batch's loss in decisions [G] that are all 1; the prior is `log_saliency` of the sum so
        far, scaled to the standard deviation `spread`."""
        log = log_saliency(groups, self.gradients.add_(gradient.abs()))
        self.prior.copy_(spread * log / log.std().clamp(min=1e-3))


def straight_through(p: Tensor) -> Tensor:
    """1[p > 1/2] in the forward pass, the gradient of p in the backward pass."""
    return (p > 0.5).to(p.dtype) + (p - p.detach())  # in this order, for exact zeros and ones


def gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise in the shape of `like`: what the paper adds to the logits to explore.

    Drawn on the CPU: the same on every device, and one random state to save."""
    return -torch.empty(like.shape).exponential_().log().to(like.device)


def budget_term(kept: Tensor, keep: float) -> Tensor:
    """R = log(max(kept, keep) / min(kept, keep)), of fractions: zero on the budget, steep on either side."""
    return (kept.log() - math.log(keep)).abs()


# -------------------------------------------------------------------------------------------------- the lasso

def removed_lora(layers, groups: Groups, d: Tensor):
    """Every LoRA matrix whose rows or columns belong to groups: (B or A^T [n, r], which n are removed)."""
    for block, axes in zip(layers, groups.axes):
        linears: dict[str, LoRALinear] = block.linears()
        for (weight, axis), (group, _) in axes.items():
            linear = linears[weight]
            yield linear.B if axis == ROWS else linear.A.t(), ~d[group]


def group_lasso(layers, groups: Groups, d: Tensor) -> Tensor:
    """The paper's loss form: sum over removed rows of B and columns of A of their Euclidean norms."""
    return sum((rows.norm(dim=1) * removed).sum() for rows, removed in removed_lora(layers, groups, d))


@torch.no_grad()
def proximal_lasso(layers, groups: Groups, d: Tensor, step: float) -> None:
    """The same lasso as one proximal step of size `step` = eta * lambda after the optimizer's:
    row <- row * max(0, 1 - step / ||row||) on removed rows. It reaches exact zeros and needs no gradient."""
    for rows, removed in removed_lora(layers, groups, d):
        shrink = 1 - step * removed / rows.norm(dim=1).clamp(min=1e-12)
        rows.mul_(shrink.clamp_(min=0)[:, None])


# ----------------------------------------------------- saliency: the warm start, and methods that decide first

def log_saliency(groups: Groups, gradient: Tensor) -> Tensor:
    """Taylor saliency [G], of |gradient| [G] in decisions of 1: its logarithm per parameter, less the mean of the kind.

    It is of the first order, which says which units matter more, and which heads, but cannot weigh a whole head against
    a unit a hundred times smaller. So all kinds start alike; the search shifts their balance."""
    score = gradient / groups.cost
    log = (score + 1e-6 * score.mean()).clamp(min=1e-30).log()
    for kind in groups.kind.unique():
        log[groups.kind == kind] -= log[groups.kind == kind].mean()
    return log


def saliency(criterion: str, model: Llama, groups: Groups, batches, add_up=lambda tensors: None) -> Tensor:
    """A score to rank groups by, measured on the pretrained model, [G]. `criterion` is one of

    taylor      |dL / d mask|, mean over batches: the sum of w * g over the group (LLM-Pruner, arXiv 2305.11627);
                as `log_saliency`, all kinds alike
    magnitude   root mean square of the group's weights, relative to that of its kind in its layer
    activation  the same with |w| times the norm of its input (Wanda, arXiv 2306.11695; FLAP, 2312.11983)
    random      from a hat

    `batches` of (tokens, targets, how many targets count) are those to calibrate on; LoRA must still be zero.
    `add_up` sums a list of tensors over processes in place, if each has only its part of every batch."""
    score = torch.zeros(len(groups), device=groups.cost.device)
    if criterion == "random":
        return torch.rand(score.shape).to(score.device)
    if criterion == "taylor":
        for tokens, targets, count in batches:
            ones = torch.ones_like(score, requires_grad=True)
            masks = groups.masks(ones, aware=False, dtype=model.norm.weight.dtype)
            gradient, = torch.autograd.grad(model.nll(tokens, targets, masks) / count, ones)
            add_up([gradient])
            score += gradient.abs() / len(batches)
        return log_saliency(groups, score)
    inputs = input_squares(model, batches) if criterion == "activation" else {}
    add_up(list(inputs.values()))
    for block, axes in zip(model.layers, groups.axes):
        for (weight, axis), (group, _) in axes.items():
            linear = block.linears()[weight]
            squares = whole(linear.weight).float().square() * inputs.get(linear, 1)
            score.index_add_(0, group, squares.sum(1 - axis))
    score = (score / groups.cost).sqrt()
    mean = [segment.mean().expand(len(segment)) for segment in score.split([n for *_, n in groups.segments])]
    return score / torch.cat(mean)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # the hooks would be compiled with the layers
def input_squares(model: Llama, batches) -> dict[LoRALinear, Tensor]:
    """The sum of squares of what goes into each linear, {linear: [in]}, over batches."""
    squares = dict.fromkeys(model.linears(), 0)

    def add(linear, inputs, output):
        squares[linear] += inputs[0].float().square().flatten(0, -2).sum(0)

    hooks = [linear.register_forward_hook(add) for linear in squares]
    for tokens, *_ in batches:
        model.hidden(tokens)
    for hook in hooks:
        hook.remove()
    return squares
