"""The group table and what is read off it: counts, masks, decisions, the generator's gradient, the lasso."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_model, random_tokens

import atp
from atp import Decisions, Generator, Groups
from data import IGNORE, InputError
from llama import LayerSize, LlamaConfig
from scripts import criteria

SMALL = LlamaConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=320, multiple_of=8)
# One layer of five groups: two heads of 4 * 8 parameters each, three FFN units of 4 * 3; 100 in all.
FIVE = LlamaConfig(dim=4, n_layers=1, n_heads=2, vocab_size=8, layers=[LayerSize(2, 2, 2, 2, 3)])


def random_logits(groups, seed=0):
    return torch.randn(len(groups), generator=torch.Generator().manual_seed(seed))


def random_decisions(groups, keep=0.6, seed=0):
    return groups.decide(random_logits(groups, seed), keep)


# ------------------------------------------------------------------------------------------------- the groups

def test_group_table_of_a_layer_worked_by_hand():
    """Two query heads share one KV head of 4 dimensions (2 rotary pairs); 3 FFN units."""
    table = {kind: (n, {where: index.tolist() for where, index in members.items()}) for kind, (n, members)
             in atp.group_table(LayerSize(n_heads=2, n_kv_heads=1, qk_dim=4, v_dim=4, hidden_dim=3)).items()}
    assert table["qk"] == (2, {("wq", 0): [0, 0, 1, 1, 0, 0, 1, 1], ("wk", 0): [0, 0, 1, 1]})
    assert table["vo"] == (4, {("wo", 1): [0, 1, 2, 3, 0, 1, 2, 3], ("wv", 0): [0, 1, 2, 3]})
    assert table["head"] == (1, {("wo", 1): [0] * 8, ("wq", 0): [0] * 8,
                                 ("wk", 0): [0] * 4, ("wv", 0): [0] * 4})
    assert table["ffn"] == (3, {("w2", 1): [0, 1, 2], ("w1", 0): [0, 1, 2], ("w3", 0): [0, 1, 2]})


@pytest.mark.parametrize("space", ["dims", "heads"])
def test_groups_own_every_prunable_parameter_once(space):
    model = random_model(lora=False)
    groups = Groups(model.config, space)
    linears = [linear for block in model.layers for linear in block.linears().values()]
    assert groups.total == sum(linear.weight.numel() for linear in linears) == int(groups.cost.sum())


# --------------------------------------------------------------------------------------------- hard decisions

def together(kind, round_to):
    """How many groups `--round-to` makes stay or go at a time."""
    return 1 if kind == "head" else max(1, round_to // 2) if kind == "qk" else round_to


def greedy(groups, logits, keep, round_to):
    """What `decide` promises, in plain loops: in order of their mean logit, chunks are kept while they fit; a
    kind whose next chunk does not fit is full; the best chunk of every segment comes before all others."""
    chunks = {}  # (layer, or None if uniform; kind; place) -> groups
    for layer, kind, start, n in groups.segments:
        ranked = sorted(range(start, start + n), key=lambda group: -logits[group])
        for place, group in enumerate(ranked):
            chunk = (None if groups.uniform else layer, kind, place // together(kind, round_to))
            chunks.setdefault(chunk, []).append(group)

    def order(chunk):
        return chunk[2] > 0, -sum(logits[group] for group in chunks[chunk]) / len(chunks[chunk])

    kept, used, full = [], 0, set()
    for chunk in sorted(chunks, key=order):
        cost = sum(int(groups.cost[group]) for group in chunks[chunk])
        if chunk[1] in full or used + cost > keep * groups.total + 0.5:
            full.add(chunk[1])
        else:
            kept += chunks[chunk]
            used += cost
    return [group in kept for group in range(len(logits))]


@pytest.mark.parametrize("space", ["dims", "heads"])
@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("uniform", [False, True])
def test_decisions_are_the_highest_logits_that_fit(space, round_to, uniform):
    groups = Groups(SMALL, space, round_to, uniform)
    for seed, keep in enumerate((0.9, 0.7, 0.5, 0.4)):
        logits = random_logits(groups, seed)
        assert groups.decide(logits, keep).tolist() == greedy(groups, logits.tolist(), keep, round_to)
    assert groups.decide(logits, 1.0).all()


@pytest.mark.parametrize("space", ["dims", "heads"])
@pytest.mark.parametrize("n_kv_heads", [2, 4])
@pytest.mark.parametrize("round_to", [1, 8])
def test_decisions_meet_the_budget_to_within_one_group(space, n_kv_heads, round_to):
    config = LlamaConfig(dim=64, n_layers=4, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=320, multiple_of=8)
    groups = Groups(config, space, round_to)
    fewest = sum(int(groups.cost[start]) * min(n, together(kind, round_to))
                 for _, kind, start, n in groups.segments)
    for ratio in range(1, 10):
        keep, budget = 1 - ratio / 10, (10 - ratio) * groups.total / 10  # 1 - 0.8 is a little less than 0.2
        if fewest > budget:
            with pytest.raises(InputError, match="lower --prune"):
                groups.budget(keep)
            continue
        for seed in range(5):
            d = random_decisions(groups, keep, seed)
            missing = budget - groups.kept(d)
            assert 0 <= missing < int(groups.chunk_cost.max())
            for _, kind, start, n in groups.segments:
                left = int(d[start:start + n].sum())
                dims = 2 * left if kind == "qk" else left
                assert left >= 1 and (kind == "head" or dims % round_to == 0 or left == n)


@pytest.mark.parametrize("space", ["dims", "heads"])
def test_uniform_decisions_leave_layers_of_equal_size(space):
    config = LlamaConfig(dim=64, n_layers=4, n_heads=8, n_kv_heads=4, vocab_size=320, multiple_of=8)
    groups = Groups(config, space, round_to=4, uniform=True)
    for seed in range(5):
        logits = random_logits(groups, seed)
        d = groups.decide(logits, 0.6)
        sizes = [{kind: len(kept) for kind, kept in layer.items()} for layer in groups.kept_groups(d)]
        assert all(size == sizes[0] for size in sizes)
        assert 0 <= 0.6 * groups.total - groups.kept(d) < int(groups.chunk_cost.max())
        # In every segment, the best of its groups.
        assert torch.equal(logits > groups.edge(logits, 0.6, temperature=0.4), d)
    kept = [set(layer["ffn"]) for layer in groups.kept_groups(d)]
    assert kept[0] != kept[1]  # which ones is each layer's own choice


# --------------------------------------------------------------------------------------------------- the edge

@pytest.mark.parametrize("logits, keep, d, edge", [
    # The best head and the best unit always stay: 44 parameters. Then, from the highest logit down:
    ((1.0, -1.0, 2.0, 0.5, 0.0), 0.6, (1, 0, 1, 1, 0), 0.25),   # a unit, 56 of 60; the next one does not fit
    ((1.0, -1.0, 2.0, 0.5, 0.0), 0.9, (1, 0, 1, 1, 1), -0.5),   # two units, 68 of 90; the head does not fit
    ((1.0, -1.0, 2.0, 0.5, 0.0), 0.5, (1, 0, 1, 0, 0), 0.5),    # nothing, 44 of 50; the edge: the next logit
    ((1.0, 0.7, 2.0, 0.5, 0.0), 0.6, (1, 0, 1, 1, 0), 0.7),     # the head does not fit, but then a unit does
    ((-3.0, -4.0, 2.0, 0.5, 0.0), 0.7, (1, 0, 1, 1, 1), -2.0),  # both units, 68 of 70, after them the head
])
def test_decisions_and_edge_of_five_groups_worked_by_hand(logits, keep, d, edge):
    groups = Groups(FIVE, "heads")
    assert groups.cost.tolist() == [32, 32, 12, 12, 12]
    assert groups.decide(torch.tensor(logits), keep).tolist() == list(map(bool, d))
    assert groups.edge(torch.tensor(logits), keep, temperature=0.4).item() == pytest.approx(edge)


def test_uniform_edges_of_two_layers_worked_by_hand():
    """Layers keep equal numbers, the best head and two units: 56 of 60 parameters each. Every kind in every
    layer has its own edge between the last that stays and the first that goes."""
    two = LlamaConfig(**vars(FIVE) | dict(n_layers=2, layers=FIVE.layers * 2))
    groups = Groups(two, "heads", uniform=True)
    logits = torch.tensor([1.0, -1.0, 2.0, 0.5, 0.0, -2.0, 3.0, 0.0, 4.0, 1.0])
    assert groups.decide(logits, 0.6).int().tolist() == [1, 0, 1, 1, 0, 0, 1, 0, 1, 1]
    edge = groups.edge(logits, 0.6, temperature=0.4)
    assert edge.tolist() == pytest.approx([0, 0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5])


def test_how_the_edge_of_five_groups_moves_worked_by_hand():
    """Decisions of 0.9 0.1 for the heads and 0.75 0.75 0.25 for the units: when a logit rises by a little, p
    rises by p (1 - p) of it, 0.09 or 0.1875; the edge goes along in proportion to what that costs."""
    groups = Groups(FIVE, "heads")
    nine, three = math.log(9), math.log(3)
    logits = torch.tensor([nine, -nine, three, three, -three], requires_grad=True)
    edge = groups.edge(logits, 0.6, temperature=1.0)
    assert edge.item() == pytest.approx(0, abs=1e-6)
    assert torch.sigmoid(logits - edge).tolist() == pytest.approx([0.9, 0.1, 0.75, 0.75, 0.25])
    moves, = torch.autograd.grad(edge, logits)
    head, unit = 32 * 0.09, 12 * 0.1875  # 2.88 and 2.25; all five 12.51
    assert moves.tolist() == pytest.approx([x / 12.51 for x in (head, head, unit, unit, unit)])


@pytest.mark.parametrize("uniform", [False, True])
def test_the_edge_moves_with_the_logits(uniform):
    """A group's gradient is what it is worth above the average parameter at the edge; none raises cost."""
    groups, T = Groups(SMALL, "dims", uniform=uniform), 0.4
    logits = random_logits(groups, 1).requires_grad_()
    p = torch.sigmoid((logits - groups.edge(logits, 0.6, T)) / T)
    slope = (p * (1 - p) / T).detach()
    of_budget, = torch.autograd.grad((p * groups.cost).sum(), logits, retain_graph=True)
    assert of_budget.abs().max() < 1e-4 * (slope * groups.cost).max()
    worth = random_logits(groups, 2)
    gradient, = torch.autograd.grad((p * worth).sum(), logits)
    average = (slope * worth).sum() / (slope * groups.cost).sum()
    assert torch.allclose(gradient, slope * (worth - average * groups.cost), atol=1e-5)


# --------------------------------------------------------------------------------------------- soft decisions

def test_budget_term_and_straight_through_worked_by_hand():
    kept = torch.tensor(0.8, requires_grad=True)
    term = atp.budget_term(kept, 0.6)
    assert math.isclose(term.item(), math.log(0.8 / 0.6), rel_tol=1e-5)
    assert math.isclose(float(torch.autograd.grad(term, kept)[0]), 1 / 0.8, rel_tol=1e-5)  # log(kept)'
    kept = torch.tensor(0.3, requires_grad=True)
    term = atp.budget_term(kept, 0.6)
    assert math.isclose(term.item(), math.log(2), rel_tol=1e-5)
    assert math.isclose(float(torch.autograd.grad(term, kept)[0]), -1 / 0.3, rel_tol=1e-5)

    assert set(atp.straight_through(torch.rand(1000)).tolist()) == {0.0, 1.0}
    logit = torch.tensor([-0.2, 0.4], requires_grad=True)
    d = atp.straight_through(torch.sigmoid(logit / 0.4))
    assert d.tolist() == [0, 1]
    grad, = torch.autograd.grad((d * torch.tensor([3.0, 5.0])).sum(), logit)
    for g, x, weight in zip(grad, (-0.5, 1.0), (3, 5)):  # weight * p (1 - p) / T at logit / T = x
        p = 1 / (1 + math.exp(-x))
        assert math.isclose(float(g), weight * p * (1 - p) / 0.4, rel_tol=1e-5)


def test_gumbel_noise_has_its_mean_and_deviation():
    torch.manual_seed(0)
    decisions = Decisions(Groups(SMALL, "dims"), choices(budget="loss", temperature=5.0), 10)
    torch.nn.init.zeros_(decisions.generator.head.weight)
    torch.nn.init.zeros_(decisions.generator.head.bias)
    with torch.no_grad():
        noise = torch.cat([5 * decisions.soft(0).logit() - 3 for _ in range(500)])
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)  # Euler's constant
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)


def owned(kind, i, heads=4, kv_heads=2, dim=8):
    """(weight, axis, index) of every row (axis 0) and column (axis 1) of group i, from the definitions."""
    if kind == "ffn":
        return [("w1", 0, i), ("w3", 0, i), ("w2", 1, i)]
    if kind == "qk":  # a rotary pair, in every head
        pair = (2 * i, 2 * i + 1)
        return [(w, 0, h * dim + p) for w, n in (("wq", heads), ("wk", kv_heads)) for h in range(n)
                for p in pair]
    if kind == "vo":
        return ([("wv", 0, h * dim + i) for h in range(kv_heads)] +
                [("wo", 1, h * dim + i) for h in range(heads)])
    share = heads // kv_heads * dim  # a KV head, and the query heads that share it
    return ([(w, 0, x) for w in ("wk", "wv") for x in range(i * dim, (i + 1) * dim)] +
            [("wq", 0, x) for x in range(i * share, (i + 1) * share)] +
            [("wo", 1, x) for x in range(i * share, (i + 1) * share)])


@pytest.mark.parametrize("space, kind, weight", [
    ("dims", "vo", "wo"), ("dims", "ffn", "w2"), ("dims", "qk", "wq"), ("heads", "head", "wo"),
    ("heads", "ffn", "w2")])
def test_a_soft_decision_acts_once(space, kind, weight):
    """At 0.5 on one group, the pruned forward has this group's contribution halved, not quartered."""
    model, tokens = random_model(lora=False), random_tokens(1, 5)
    groups = Groups(model.config, space)
    layer, _, start, _ = [segment for segment in groups.segments if segment[1] == kind][1]
    soft = torch.ones(len(groups))
    soft[start + 1] = 0.5
    got, dense = model(tokens, groups.masks(soft, aware=False)), model(tokens)
    W = model.layers[layer].linears()[weight].weight.data
    for name, axis, index in owned(kind, 1):
        if name == weight:
            W.select(axis, index).mul_(0.5)
    assert torch.allclose(model(tokens), got, atol=1e-5) and not torch.allclose(got, dense, atol=1e-3)


# --------------------------------------------------------------------------- the generator, and its decisions

def choices(**change):
    """train.py's options, as far as decisions read them."""
    defaults = dict(prune=0.4, warm_start=0.0, anneal=0.0, temperature=0.4, budget="threshold", sample=False,
                    straight_through=False, generator_lr=1e-3)
    return SimpleNamespace(**defaults | change)


def test_each_layers_logits_come_from_its_own_vector_and_head():
    torch.manual_seed(0)
    groups = Groups(SMALL, "dims")
    generator = Generator(groups)
    torch.nn.init.normal_(generator.head.bias)
    assert torch.allclose(generator.inputs @ generator.inputs.T, torch.eye(3), atol=1e-5)

    def from_layers(of_layer):
        """By hand: a group's logit is its head's row times what the encoder makes of its layer's vector."""
        h = generator.encoder(generator.inputs[None])[0]
        return [float(h[of_layer[layer]] @ generator.head.weight[g] + generator.head.bias[g])
                for layer, _, start, n in groups.segments for g in range(start, start + n)]

    with torch.no_grad():
        logits = generator()
        assert np.allclose(logits, from_layers([0, 1, 2]), atol=1e-5)
        assert not np.allclose(logits, from_layers([1, 0, 2]), atol=0.1)
        generator.prior.fill_(7.0)
        assert torch.allclose(generator(), logits + 7, atol=1e-4)
        generator.prior.zero_()
        generator.inputs[2] = generator.inputs[1]  # attention: what one layer is told, the others hear
        first = sum(n for layer, _, _, n in groups.segments if layer == 0)
        assert not torch.allclose(generator()[:first], logits[:first], atol=1e-3)


def test_the_generator_can_learn_any_logits():
    torch.manual_seed(0)
    groups = Groups(SMALL, "dims")
    generator, wanted = Generator(groups), torch.randn(len(groups))
    first = generator()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (generator() - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * (first - wanted).square().mean()


def test_the_budget_goes_from_all_to_the_target_worked_by_hand():
    """Of 20 steps, 10 keep everything, in 6 (0.6 of the rest) the budget falls to 0.6, for 4 it stays."""
    decisions = Decisions(Groups(SMALL, "dims"), choices(warm_start=0.5, anneal=0.6), 20)
    assert decisions.warm_steps == 10 and decisions.soft(9).tolist() == [1] * len(decisions.d)
    budgets = [decisions.keep(step) for step in (10, 12, 15, 16, 19)]
    assert budgets == pytest.approx([1 - 0.4 / 6, 0.8, 0.6, 0.6, 0.6])
    decisions = Decisions(Groups(SMALL, "dims"), choices(), 20)
    assert decisions.warm_steps == 0 and decisions.keep(0) == pytest.approx(0.6)


def test_the_papers_decisions_worked_by_hand():
    """Soft ones, with Gumbel noise and offset 3; what LoRA gets is 1 where they are above 1/2, drawn anew."""
    groups = Groups(SMALL, "heads")
    decisions = Decisions(groups, choices(budget="loss", sample=True, temperature=0.7), 10)
    torch.nn.init.normal_(decisions.generator.head.bias, mean=-4.0, std=2.0)

    def drawn():
        torch.manual_seed(5)
        return decisions.generator() - torch.empty(len(groups)).exponential_().log() + 3

    by_hand = torch.sigmoid(drawn() / 0.7)
    torch.manual_seed(5)
    assert torch.allclose(decisions.soft(4), by_hand, atol=1e-6)
    torch.manual_seed(5)
    decisions.learn(4, by_hand, torch.zeros(len(groups)))
    assert torch.equal(decisions.d, drawn() > 0) and 0.2 < decisions.d.float().mean() < 0.8


@pytest.mark.parametrize("budget", ["threshold", "loss"])
def test_straight_through_decisions_are_hard(budget):
    groups = Groups(SMALL, "dims")
    decisions = Decisions(groups, choices(budget=budget, straight_through=True), 10)
    torch.nn.init.normal_(decisions.generator.head.bias, mean=-3.0)
    d = decisions.soft(4)
    assert set(d.tolist()) == {0, 1} and torch.autograd.grad(d.sum(), decisions.generator.head.bias)[0].any()


@pytest.mark.parametrize("space", list(atp.SPACES))
@pytest.mark.parametrize("offset", [-1.0, 3.0])  # fewer, and more than the budget wants
def test_the_budget_loss_pulls_a_group_by_the_parameters_that_go_with_it(space, offset):
    """R = |log(kept / keep)|, kept = sum of d cost / total: +-5 cost / (total kept) p (1 - p) / T a logit."""
    torch.manual_seed(0)
    groups = Groups(SMALL, space)
    decisions = Decisions(groups, choices(budget="loss", temperature=0.7), 10)
    d = torch.sigmoid((decisions.generator() + offset) / 0.7)
    whole = torch.autograd.grad(5 * (d @ groups.cost.float()).log(), list(decisions.generator.parameters()),
                                retain_graph=True)
    found = decisions.learn(4, d, torch.zeros(len(groups)))["R"]
    p, cost = d.tolist(), groups.cost.tolist()
    kept = sum(a * b for a, b in zip(p, cost)) / sum(cost)
    assert found == pytest.approx(abs(math.log(kept / 0.6)), rel=1e-4) and (kept > 0.6) == (offset > 0)
    wanted = [math.copysign(5, offset) * b / (sum(cost) * kept) * a * (1 - a) / 0.7 for a, b in zip(p, cost)]
    clipping = min(1, 3 / float(torch.stack([g.norm() for g in whole]).norm()))
    assert np.allclose(decisions.generator.head.bias.grad, clipping * np.array(wanted), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("space", list(atp.SPACES))
def test_the_warm_start_ranks_by_mean_saliency_all_kinds_alike(space):
    groups = Groups(SMALL, space)
    generator = Generator(groups)
    batches = torch.randn(5, len(groups), generator=torch.Generator().manual_seed(0))
    for gradient in batches:
        generator.warm_up(groups, gradient)
    log = np.log(batches.abs().mean(0).numpy() / groups.cost.numpy())
    kinds = np.concatenate([[kind] * n for _, kind, _, n in groups.segments])
    for kind in set(kinds):
        log[kinds == kind] -= log[kinds == kind].mean()
    assert np.allclose(generator.prior, 2 * log / log.std(ddof=1), atol=0.01)


# -------------------------------------------------------------------------------------------------- the lasso

def test_lasso_zeroes_removed_lora_and_leaves_the_rest():
    model = random_model()
    groups = Groups(model.config, "dims")
    d = random_decisions(groups)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    by_hand = 0.0
    for layer, kind, start, n in groups.segments:
        for i in range(n):
            for weight, axis, index in owned(kind, i):
                linear = model.layers[layer].linears()[weight]
                row = (linear.A[:, index] if axis else linear.B[index]).tolist()
                by_hand += 0 if d[start + i] else math.sqrt(sum(x ** 2 for x in row))
    assert math.isclose(atp.group_lasso(model.layers, groups, d).item(), by_hand, rel_tol=1e-4)

    rows, removed = next(atp.removed_lora(model.layers, groups, d))
    row = rows[removed][0].clone()
    atp.proximal_lasso(model.layers, groups, d, step=0.1)
    assert torch.allclose(rows[removed][0], row * max(0, 1 - 0.1 / row.norm().item()), atol=1e-6)
    for _ in range(60):
        atp.proximal_lasso(model.layers, groups, d, step=0.1)
    for rows, removed in atp.removed_lora(model.layers, groups, d):
        assert (rows[removed] == 0).all() and (rows[~removed] != 0).any(dim=1).all()
    for name, p in model.named_parameters():
        kept = (p != 0) if name.endswith((".A", ".B")) else torch.ones_like(p, dtype=torch.bool)
        assert torch.equal(p[kept], before[name][kept])


def test_gradient_of_the_loss_form_is_finite_at_zero_rows():
    model = random_model()
    groups = Groups(model.config, "dims")
    for p in model.parameters():
        if p.requires_grad:
            p.data.zero_()
    atp.group_lasso(model.layers, groups, random_decisions(groups)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# --------------------------------------------------------------------------------------------------- saliency

def test_taylor_saliency_is_the_gradient_of_the_mask():
    model = random_model(lora=False)
    groups = Groups(model.config, "dims")
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    targets[0, :3] = IGNORE
    count, empty = (targets != IGNORE).sum(), torch.full_like(targets, IGNORE)
    nothing = criteria.taylor(model, groups, [(tokens, empty, torch.tensor(1))])
    assert nothing.abs().max() < 1e-3  # no logarithm of zero
    saliency, expected = criteria.taylor(model, groups, [(tokens, targets, count)]), []
    for group in range(len(groups)):  # against a central difference
        losses = []
        for change in (1e-2, -1e-2):
            d = torch.ones(len(groups))
            d[group] += change
            losses.append(float(model.nll(tokens, targets, groups.masks(d, aware=False)) / count))
        expected.append(abs(losses[0] - losses[1]) / 2e-2 / int(groups.cost[group]))
    kinds = np.concatenate([[kind] * n for _, kind, _, n in groups.segments])
    for kind in set(kinds):
        wanted = np.log(np.array(expected)[kinds == kind] + 1e-6 * np.mean(expected))
        found = saliency.numpy()[kinds == kind]
        assert np.allclose(np.exp(found), np.exp(wanted - wanted.mean()), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("space", list(atp.SPACES))
def test_magnitude_and_activation_saliency_against_loops(space):
    model = random_model(lora=False)
    groups = Groups(model.config, space)
    tokens, norms = random_tokens(3, 9), {}

    def keep_norm(name):
        return lambda linear, inputs, output: norms.__setitem__(name, inputs[0].flatten(0, 1).norm(dim=0))

    for layer, block in enumerate(model.layers):
        for name, linear in block.linears().items():
            linear.register_forward_hook(keep_norm((layer, name)))
    model(tokens)
    for criterion in (criteria.magnitude, criteria.activation):
        expected = []
        for layer, kind, _, n in groups.segments:
            sizes = []
            for i in range(n):
                total, cost = 0.0, 0
                for name, axis, index in owned(kind, i):
                    weight = model.layers[layer].linears()[name].weight
                    weight = weight * norms[layer, name] if criterion is criteria.activation else weight
                    total += float(weight.select(axis, index).square().sum())
                    cost += weight.shape[1 - axis]
                sizes.append(math.sqrt(total / cost))
            expected += [size / (sum(sizes) / n) for size in sizes]
        found = criterion(model, groups, [(tokens[:1], None, None), (tokens[1:], None, None)])
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
