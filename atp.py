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
from torch import Tensor, nn

from data import InputError, first_process_says
from llama import LayerSize, LlamaConfig
from lora import Mask

SPACES = {"dims": ("qk", "vo", "ffn"),  # head dimensions, alike in all heads of a layer (the paper's space)
          "heads": ("head", "ffn")}     # whole heads (what existing engines run)
ROWS, COLUMNS = 0, 1
ALPHA, OFFSET, CLIP = 5.0, 3.0, 3.0  # the authors': weight of R, a nearly dense start, G's gradient norm
SPREAD = 2.0  # standard deviation of the logits that the warm start sets

# ------------------------------------------------------------------------------------------------- the groups
def group_table(size: LayerSize) -> dict[str, tuple[int, dict[tuple[str, int], Tensor]]]:
    """The groups of one layer: kind -> (how many, {(weight, axis): the group of each index along that axis}).
    The first entry of a kind is where a soft decision acts in the pruned forward: once, or 0.5 would be 0.25.
    Query/key dimensions go in rotary pairs, as RoPE mixes the two; heads with the query heads that share one.
    For two heads of 4 dimensions on a KV head, "qk": 2, {("wq", 0): 0 0 1 1 0 0 1 1, ("wk", 0): 0 0 1 1}."""
    H, K, Q, E, N = size.n_heads, size.n_kv_heads, size.qk_dim, size.v_dim, size.hidden_dim
    pair, dim, unit = torch.arange(Q) // 2, torch.arange(E), torch.arange(N)
    by_head = torch.arange(K).repeat_interleave  # of how many indices belong to a KV head
    return {"qk": (Q // 2, {("wq", ROWS): pair.repeat(H), ("wk", ROWS): pair.repeat(K)}),
            "vo": (E, {("wo", COLUMNS): dim.repeat(H), ("wv", ROWS): dim.repeat(K)}),
            "head": (K, {("wo", COLUMNS): by_head(H // K * E), ("wq", ROWS): by_head(H // K * Q),
                         ("wk", ROWS): by_head(Q), ("wv", ROWS): by_head(E)}),
            "ffn": (N, {("w2", COLUMNS): unit, ("w1", ROWS): unit, ("w3", ROWS): unit})}

def pruned_size(size: LayerSize, kept: dict[str, list[int]]) -> LayerSize:
    """The size of a layer of which only the groups `kept` (kind -> their indices) are left."""
    n = {kind: len(kept.get(kind, range(n))) for kind, (n, _) in group_table(size).items()}
    old = size.rotary_pairs or range(size.qk_dim // 2)
    pairs = [old[i] for i in kept["qk"]] if "qk" in kept else size.rotary_pairs
    heads = size.n_heads // size.n_kv_heads * n["head"]
    return LayerSize(heads, n["head"], 2 * n["qk"], n["vo"], n["ffn"], pairs)

class Groups:
    """All groups of a model in one flat order: layer by layer, kind by kind (a *segment*), index by index.
    segments       of each segment (layer, kind, first group, number of groups)
    segment, kind  of each group, [G]: its segment, and its kind's place in SPACES[space]
    cost [G]       parameters that go with a group, in rows and columns as long as the model is wide
    axes           of each layer, {(weight, axis): (group of each index, whether soft decisions act here)}
    chunk [G]      groups are kept or removed a chunk at a time. A chunk is `round_to` dimensions or units (or
                   one head) of one segment; if `uniform`, that of all layers: they keep equal sizes"""

    def __init__(self, config: LlamaConfig, space: str, round_to=1, uniform=False, device="cpu"):
        if uniform and any(size != config.layers[0] for size in config.layers):
            raise InputError("--uniform needs a model whose layers are of equal size")
        if round_to > 1 and round_to % 2:
            raise InputError(f"--round-to {round_to}: must be 1 or even, as rotary pairs go two by two")
        self.uniform, self.segments, self.axes, columns, n_groups = uniform, [], [], [], 0
        for layer, size in enumerate(config.layers):
            self.axes.append({})
            for number, kind in enumerate(SPACES[space]):
                n, members = group_table(size)[kind]
                for i, (where, index) in enumerate(members.items()):
                    self.axes[layer][where] = (index.to(device) + n_groups, i == 0)
                cost = config.dim * sum(torch.bincount(index, minlength=n) for index in members.values())
                together = {"head": 1, "qk": max(1, round_to // 2)}.get(kind, round_to)
                first = self.segments[number][2] if uniform and layer else n_groups
                chunk = first + torch.arange(n) // together * together  # a chunk is called by its first group
                columns.append(torch.stack([torch.full_like(cost, len(self.segments)), cost, chunk]))
                self.segments.append((layer, kind, n_groups, n))
                n_groups += n
        self.segment, self.cost, chunk = torch.cat(columns, 1).to(device)
        self.kind, self.total = self.segment % len(SPACES[space]), int(self.cost.sum())
        first, self.chunk, self.chunk_size = chunk.unique(return_inverse=True, return_counts=True)
        self.chunk_cost, self.chunk_kind = self.cost[first] * self.chunk_size, self.kind[first]
        self.first_chunks = self.chunk[[start for _, _, start, _ in self.segments]].unique()

    def __len__(self) -> int:
        return len(self.cost)

    def kept(self, d: Tensor) -> int:
        """Prunable parameters that decisions d [G] (bool) leave: exact, what `numel` counts after slicing."""
        return int(self.cost[d].sum())

    def budget(self, keep: float) -> float:
        """Prunable parameters that may stay. Raises InputError if no layer could work with so few."""
        budget = keep * self.total + 1e-3  # 1 - 0.8 is less than 0.2
        low = int(self.chunk_cost[self.first_chunks].sum()) / self.total
        if low > budget / self.total:
            raise InputError(f"--prune {1 - keep:g}: layers must keep {low:.1%}; lower --prune or --round-to")
        return budget

    def rank(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Groups [G], segment after segment, each from best to worst; of their chunks [C], best first, the
        mean logits (infinite for a segment's first: every layer goes on working) and which they are."""
        by_logit = logits.argsort(descending=True, stable=True)
        order = by_logit[self.segment[by_logit].argsort(stable=True)]
        score = self.chunk.bincount(logits[order]) / self.chunk_size
        score[self.first_chunks] = torch.inf
        return order, *score.sort(descending=True, stable=True)

    @torch.no_grad()
    def decide(self, logits: Tensor, keep: float) -> Tensor:
        """The best groups that fit in the budget: d [G] (bool). Of five of a kind with logits 3 1 2 5 4 and
        keep 0.6: d = 1 0 0 1 1. Chunks are taken from the best on; a kind whose next one does not fit is
        full, cheaper kinds may fill the rest. So the budget is met to within one chunk, never exceeded."""
        order, _, best = self.rank(logits)
        cost, kind, budget = self.chunk_cost[best], self.chunk_kind[best], self.budget(keep)
        fits, over = torch.ones_like(best, dtype=torch.bool), cost.cumsum(0) > budget
        while over.any():
            first = int(over.nonzero()[0])
            fits[first:] &= kind[first:] != kind[first]
            over = fits & ((cost * fits).cumsum(0) > budget)
        return fits[best.argsort()][self.chunk][order.argsort()]  # argsort inverts an order

    def edge(self, logits: Tensor, keep: float, temperature: float) -> Tensor:
        """The logit, [] or if uniform [G], halfway between the groups that fill the budget and the next. It
        moves with the logits [G], so that decisions sigmoid((logits - edge) / temperature) cost the same. The
        gradient in a logit is then relative to that of all groups at the edge, per parameter: else all would
        rise, as keeping one more nearly always helps, and only noise would tell them apart."""
        x = logits.detach()
        _, score, best = self.rank(x)
        inside = int((self.chunk_cost[best].cumsum(0) <= self.budget(keep)).sum())
        above, below = score[inside - 1], score[min(inside, len(score) - 1)]
        if self.uniform:  # every segment has an edge of its own
            d, none = self.decide(x, keep), x.new_full((len(self.segments),), torch.inf)
            above = none.scatter_reduce(0, self.segment[d], x[d], "amin")[self.segment]
            below = (-none).scatter_reduce(0, self.segment[~d], x[~d], "amax")[self.segment]
        edge = torch.where(above.isinf(), below, torch.where(below.isinf(), above, (above + below) / 2))
        p = torch.sigmoid((x - edge) / temperature)
        weight = p * (1 - p) * self.cost  # what a group gives back when the edge rises
        return edge + (weight / weight.sum().clamp(min=1e-30) * (logits - x)).sum()

    def masks(self, d: Tensor, aware: bool, dtype=torch.float32) -> list[dict[str, Mask]]:
        """What each layer's linears are told of decisions d [G], hard or soft, for `Llama.forward`."""
        return [{weight: Mask(**{"d_out" if axis == ROWS else "d_in": d[group].to(dtype)}, aware=aware)
                 for (weight, axis), (group, acts) in axes.items() if acts or aware} for axes in self.axes]

    def kept_groups(self, d: Tensor) -> list[dict[str, list[int]]]:
        """Decisions d [G] as {kind: indices of the groups that stay}, one dict a layer."""
        return [{kind: d[start:start + n].nonzero().flatten().tolist()
                 for at, kind, start, n in self.segments if at == layer} for layer in range(len(self.axes))]

    def sizes(self, d: Tensor) -> list[list[int]]:
        """How many groups of each kind stay, one list a layer."""
        return [[len(groups) for groups in kept.values()] for kept in self.kept_groups(d)]

# --------------------------------------------------------------------------- the generator, and its decisions
class Generator(nn.Module):
    """G: one fixed orthogonal vector a layer -> transformer encoder over the layers -> a linear head a layer.
    Added to that, `prior` [G]: zero in the paper, else what the warm start has found."""

    def __init__(self, groups: Groups, width: int = 64, depth: int = 2, heads: int = 4):
        super().__init__()
        n_layers = len(groups.axes)
        width = max(width, -(-n_layers // heads) * heads)  # vectors are orthogonal only if they fit
        self.per_layer = [sum(n for at, _, _, n in groups.segments if at == i) for i in range(n_layers)]
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(groups))  # its rows are cut into one head a layer
        self.register_buffer("inputs", nn.init.orthogonal_(torch.empty(n_layers, width)))
        self.register_buffer("gradients", torch.zeros(len(groups)))
        self.register_buffer("prior", torch.zeros(len(groups)))

    def forward(self) -> Tensor:
        """Logits [G]."""
        h = self.encoder(self.inputs[None])[0]
        logits = [w @ x for x, w in zip(h, self.head.weight.split(self.per_layer))]
        return torch.cat(logits) + self.head.bias + self.prior

    def warm_up(self, groups: Groups, gradient: Tensor) -> None:
        """Adds a batch's |gradient| in decisions [G] of 1; the prior is the sum's `log_saliency`, scaled."""
        log = log_saliency(groups, self.gradients.add_(gradient.abs()))
        self.prior.copy_(SPREAD * log / log.std().clamp(min=1e-3))

class Decisions:
    """Which groups stay: soft while G learns, hard (d [G], bool) for LoRA and the lasso, and frozen. G learns
    for `search_steps`, the first of which warm it up; or a criterion decides. `options`: train.Config."""

    def __init__(self, groups: Groups, options, search_steps: int):
        self.groups, self.options, self.search_steps = groups, options, search_steps
        self.warm_steps = math.ceil(options.warm_start * search_steps)
        self.d, self.frozen = torch.ones_like(groups.cost, dtype=torch.bool), False
        self.generator = Generator(groups).to(self.d.device)
        for p in self.generator.head.parameters() if self.warm_steps else []:
            nn.init.zeros_(p)  # the prior is all there is to begin with
        self.optimizer = adamw(self.generator.parameters(), lr=options.generator_lr)

    def keep(self, step: int) -> float:
        """The fraction to keep at a step after the warm start: from 1 to the target in `anneal` of them."""
        annealed = max(1.0, self.options.anneal * (self.search_steps - self.warm_steps))
        return 1 - self.options.prune * min(1.0, (step + 1 - self.warm_steps) / annealed)

    def soft(self, step: int) -> Tensor:
        """The generator's decisions [G] in (0, 1), for the pruned forward; in the warm start, all 1."""
        if step < self.warm_steps:
            return torch.ones_like(self.d, dtype=torch.float32)
        logits, T = self.generator(), self.options.temperature
        if self.options.budget == "threshold":
            logits = logits - self.groups.edge(logits, self.keep(step), T)
        else:  # the paper's, with Gumbel noise to explore; from the CPU, the same for every device
            noise = -torch.empty(logits.shape).exponential_().log()
            logits = logits + noise.to(logits.device) + OFFSET
        p = torch.sigmoid(logits / T)
        return straight_through(p) if self.options.straight_through else p

    def learn(self, step: int, d: Tensor, gradient: Tensor) -> dict[str, float]:
        """One update of G by the loss's gradient [G] in the soft decisions d (chain rule), and its new hard
        ones; returns what there is to log. In the warm start the gradient only goes into G's prior."""
        if step < self.warm_steps:
            self.generator.warm_up(self.groups, gradient)
            return {}
        objective, keep, terms = (d * gradient).sum(), self.keep(step), {}
        if self.options.budget == "loss":
            term = budget_term((d * self.groups.cost).sum() / self.groups.total, keep)
            objective, terms["R"] = objective + ALPHA * term, term.item()
        self.optimizer.zero_grad()
        objective.backward()
        clip_gradients(self.generator.parameters(), CLIP)
        self.optimizer.step()
        new = self.soft(step) > 0.5 if self.options.sample else self.groups.decide(self.generator(), keep)
        before, self.d = self.d, first_process_says(new)
        return terms | {"flips": (self.d != before).float().mean().item()}

    def final(self) -> Tensor:
        """The decisions [G] that the model would be exported with now."""
        if self.frozen:
            return self.d
        return first_process_says(self.groups.decide(self.generator(), 1 - self.options.prune))

    def freeze(self, d: Tensor) -> None:
        """T_end: decisions change no more, and the generator is let go of."""
        self.d, self.frozen, self.generator, self.optimizer = d, True, None, None

def straight_through(p: Tensor) -> Tensor:
    """1[p > 1/2], with the gradient of p."""
    return (p > 0.5).to(p.dtype) + (p - p.detach())  # in this order, for exact zeros and ones

def adamw(parameters, **options) -> torch.optim.AdamW:
    """AdamW with its state there from the start, so that all checkpoints are alike."""
    optimizer = torch.optim.AdamW(parameters, **options)
    for p in optimizer.param_groups[0]["params"]:
        optimizer.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p.data),
                              "exp_avg_sq": torch.zeros_like(p.data)}
    return optimizer

def clip_gradients(parameters, bound: float) -> float:
    """Scales gradients to a norm of at most `bound`; returns what it was. Raises InputError if not finite."""
    norm = nn.utils.clip_grad_norm_(parameters, bound).item()
    if not math.isfinite(norm):
        raise InputError("a gradient is not finite; the last checkpoint stays. Lower --lr or --generator-lr")
    return norm

def log_saliency(groups: Groups, gradient: Tensor) -> Tensor:
    """Taylor saliency [G] of |gradient| [G] in decisions of 1: its log per parameter, less its kind's mean.
    First order cannot weigh a whole head against a unit 100 times smaller, so all kinds start alike."""
    score = gradient / groups.cost
    log = (score + 1e-6 * score.mean()).clamp(min=1e-30).log()
    means = torch.stack([log[groups.kind == kind].mean() for kind in groups.kind.unique()])
    return log - means[groups.kind]

# ------------------------------------------------------------------------------------------ the regularizers
def budget_term(kept: Tensor, keep: float) -> Tensor:
    """R = log(max(kept, keep) / min(kept, keep)), of fractions: zero on the budget, steep on either side."""
    return (kept.log() - math.log(keep)).abs()

def removed_lora(layers, groups: Groups, d: Tensor):
    """Every LoRA matrix whose rows or columns belong to groups: (B or A^T [n, r], which n are removed)."""
    for block, axes in zip(layers, groups.axes):
        linears = block.linears()
        for (weight, axis), (group, _) in axes.items():
            yield linears[weight].B if axis == ROWS else linears[weight].A.t(), ~d[group]

def group_lasso(layers, groups: Groups, d: Tensor) -> Tensor:
    """The paper's loss form: the sum of the norms of removed rows of B and columns of A."""
    return sum((rows.norm(dim=1) * removed).sum() for rows, removed in removed_lora(layers, groups, d))

@torch.no_grad()
def proximal_lasso(layers, groups: Groups, d: Tensor, step: float) -> None:
    """The same as a proximal step of size `step` = eta * lambda after the optimizer's: removed rows become
    row * max(0, 1 - step / ||row||). It reaches exact zeros and needs no gradient."""
    for rows, removed in removed_lora(layers, groups, d):
        shrink = 1 - step * removed / rows.norm(dim=1).clamp(min=1e-12)
        rows.mul_(shrink.clamp_(min=0)[:, None])
