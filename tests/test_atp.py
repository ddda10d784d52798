"""The group table and what is read off it: counts, masks, decisions, the generator's gradient, the lasso."""
import math

import numpy as np
import pytest
import torch
from conftest import random_model, random_tokens

import atp
from atp import Groups, Generator
from llama import IGNORE, InputError, LayerSize, LlamaConfig

SMALL = LlamaConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=320, multiple_of=8)


def random_decisions(groups, keep=0.6, seed=0):
    logits = torch.randn(len(groups), generator=torch.Generator().manual_seed(seed))
    return groups.decide(logits, keep)[0]


def test_group_table_of_a_layer_worked_by_hand():
    """Two query heads share one KV head of 4 dimensions (2 rotary pairs); 3 FFN units."""
    table = atp.group_table(LayerSize(n_heads=2, n_kv_heads=1, qk_dim=4, v_dim=4, hidden_dim=3))
    table = {kind: (n, {where: index.tolist() for where, index in members.items()}) for kind, (n, members) in table.items()}
    assert table["qk"] == (2, {("wq", 0): [0, 0, 1, 1, 0, 0, 1, 1], ("wk", 0): [0, 0, 1, 1]})
    assert table["vo"] == (4, {("wo", 1): [0, 1, 2, 3, 0, 1, 2, 3], ("wv", 0): [0, 1, 2, 3]})
    assert table["head"] == (1, {("wo", 1): [0] * 8, ("wq", 0): [0] * 8, ("wk", 0): [0] * 4, ("wv", 0): [0] * 4})
    assert table["ffn"] == (3, {("w2", 1): [0, 1, 2], ("w1", 0): [0, 1, 2], ("w3", 0): [0, 1, 2]})


@pytest.mark.parametrize("space", ["dims", "heads"])
def test_groups_own_every_prunable_parameter_once(space):
    model = random_model(lora=False)
    groups = Groups(model.config, space)
    linears = [linear for block in model.layers for linear in block.linears().values()]
    assert groups.total == sum(linear.weight.numel() for linear in linears) == int(groups.cost.sum())


@pytest.mark.parametrize("space", ["dims", "heads"])
@pytest.mark.parametrize("n_kv_heads", [2, 4])
@pytest.mark.parametrize("round_to", [1, 8])
def test_decisions_meet_the_budget_to_within_one_group(space, n_kv_heads, round_to):
    config = LlamaConfig(dim=64, n_layers=4, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=320, multiple_of=8)
    groups = Groups(config, space, round_to)
    for ratio in range(1, 10):
        keep, budget = 1 - ratio / 10, (10 - ratio) * groups.total / 10  # 1 - 0.8 is a little less than 0.2
        if groups.floor > budget:
            with pytest.raises(InputError):
                groups.check(keep)
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
        logits = torch.randn(len(groups), generator=torch.Generator().manual_seed(seed))
        d, edge = groups.decide(logits, 0.6)
        sizes = [{kind: len(kept) for kind, kept in layer.items()} for layer in groups.kept_groups(d)]
        assert all(size == sizes[0] for size in sizes)
        assert 0 <= 0.6 * groups.total - groups.kept(d) < int(groups.chunk_cost.max())
        assert torch.equal(logits > edge, d)  # in every segment, the best of its groups
    kept = [set(layer["ffn"]) for layer in groups.kept_groups(d)]
    assert kept[0] != kept[1]  # which ones is each layer's own choice


def test_decisions_are_the_highest_logits():
    groups = Groups(SMALL, "dims")
    logits = torch.randn(len(groups), generator=torch.Generator().manual_seed(1))
    d, edge = groups.decide(logits, 0.6)
    for _, _, start, n in groups.segments:
        kept, removed = logits[start:start + n][d[start:start + n]], logits[start:start + n][~d[start:start + n]]
        assert not len(removed) or kept.min() >= removed.max()
    # Whatever is on the wrong side of the edge is there for a reason: the last of its kind, or a kind that filled up.
    assert ((logits > edge) == d).float().mean() > 0.97
    assert groups.decide(logits, 1.0)[0].all()


@pytest.mark.parametrize("uniform", [False, True])
def test_the_edge_moves_with_the_logits(uniform):
    """A group's gradient is what it is worth above the average parameter at the edge, and none raises the budget."""
    groups, T = Groups(SMALL, "dims", uniform=uniform), 0.4
    logits = torch.randn(len(groups), generator=torch.Generator().manual_seed(1)).requires_grad_()
    edge = groups.edge(logits, 0.6, T)
    assert torch.allclose(edge, groups.decide(logits.detach(), 0.6)[1], atol=1e-6)
    p = torch.sigmoid((logits - edge) / T)
    slope = (p * (1 - p) / T).detach()
    of_budget, = torch.autograd.grad((p * groups.cost).sum(), logits, retain_graph=True)
    assert of_budget.abs().max() < 1e-4 * (slope * groups.cost).max()
    worth = torch.randn(len(groups), generator=torch.Generator().manual_seed(2))
    gradient, = torch.autograd.grad((p * worth).sum(), logits)
    average = (slope * worth).sum() / (slope * groups.cost).sum()
    assert torch.allclose(gradient, slope * (worth - average * groups.cost), atol=1e-5)


def test_budget_term_and_straight_through_worked_by_hand():
    kept = torch.tensor(0.8, requires_grad=True)
    term = atp.budget_term(kept, 0.6)
    assert math.isclose(term.item(), math.log(0.8 / 0.6), rel_tol=1e-5)
    assert math.isclose(float(torch.autograd.grad(term, kept)[0]), 1 / 0.8, rel_tol=1e-5)  # d log(kept) / d kept
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


def test_kept_parameters_are_counted_differentiably():
    groups = Groups(SMALL, "heads")
    d = random_decisions(groups)
    soft = d.float().requires_grad_()
    kept = (soft * groups.share).sum()
    assert math.isclose(kept.item(), groups.kept(d) / groups.total, rel_tol=1e-5)
    grad, = torch.autograd.grad(kept, soft)
    assert torch.allclose(grad * groups.total, groups.cost.float())


def test_a_soft_decision_acts_once():
    """At 0.5 on one group, the pruned forward has this group's contribution halved, not quartered."""
    model = random_model(lora=False)
    tokens = random_tokens(1, 5)
    groups = Groups(model.config, "dims")
    for kind, weight, columns in [("vo", "wo", True), ("ffn", "w2", True), ("qk", "wq", False)]:
        layer, _, start, _ = next(s for s in groups.segments if s[1] == kind)
        soft = torch.ones(len(groups))
        soft[start] = 0.5
        got = model(tokens, groups.masks(soft, aware=False))
        linear = model.layers[layer].linears()[weight]
        axis, saved = (1 if columns else 0), linear.weight.data.clone()
        owned = (groups.axes[layer][(weight, axis)][0] == start).nonzero().flatten()
        linear.weight.data.index_copy_(axis, owned, saved.index_select(axis, owned) / 2)
        assert torch.allclose(model(tokens), got, atol=1e-5)
        linear.weight.data = saved


def test_generator_depends_on_its_layer_and_learns():
    torch.manual_seed(0)
    groups = Groups(SMALL, "dims")
    generator = Generator(groups)
    assert torch.allclose(generator.inputs @ generator.inputs.T, torch.eye(3), atol=1e-5)
    first = generator()
    wanted = torch.randn(len(groups))
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (generator() - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * (first - wanted).square().mean()
    before = generator()
    generator.prior.fill_(7.0)
    assert torch.allclose(generator(), before + 7, atol=1e-4)


def test_lasso_zeroes_removed_lora_and_leaves_the_rest():
    model = random_model()
    groups = Groups(model.config, "dims")
    d = random_decisions(groups)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    by_hand = 0.0
    for layer, (block, axes) in enumerate(zip(model.layers, groups.axes)):
        for (weight, axis), (group, _) in axes.items():
            rows = block.linears()[weight].B if axis == 0 else block.linears()[weight].A.T
            by_hand += sum(math.sqrt(sum(x ** 2 for x in row)) for row, keep in zip(rows.tolist(), d[group]) if not keep)
    assert math.isclose(atp.group_lasso(model.layers, groups, d).item(), by_hand, rel_tol=1e-4)

    row, = [rows[int(removed.nonzero()[0])].clone() for rows, removed in [next(atp.removed_lora(model.layers, groups, d))]]
    atp.proximal_lasso(model.layers, groups, d, step=0.1)
    rows, removed = next(atp.removed_lora(model.layers, groups, d))
    assert torch.allclose(rows[int(removed.nonzero()[0])], row * max(0, 1 - 0.1 / row.norm().item()), atol=1e-6)
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


def test_taylor_saliency_is_the_gradient_of_the_mask():
    model = random_model(lora=False)
    groups = Groups(model.config, "dims")
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    targets[0, :3] = IGNORE
    empty = torch.full_like(targets, IGNORE)
    assert atp.saliency("taylor", model, groups, [(tokens, empty, 1)]).abs().max() < 1e-3  # no logarithm of zero
    saliency, kinds, expected = atp.saliency("taylor", model, groups, [(tokens, targets, (targets != IGNORE).sum())]), [], []
    for layer, kind, start, n in groups.segments:
        kinds += [(kind, group) for group in range(start, start + n)]
    for _, group in kinds:  # against a central difference
        losses = []
        for change in (1e-2, -1e-2):
            d = torch.ones(len(groups))
            d[group] += change
            losses.append(float(model.nll(tokens, targets, groups.masks(d, aware=False)) / (targets != IGNORE).sum()))
        expected.append(abs(losses[0] - losses[1]) / 2e-2 / int(groups.cost[group]))
    for kind in {kind for kind, _ in kinds}:
        wanted = np.log([expected[group] + 1e-6 * np.mean(expected) for of, group in kinds if of == kind])
        found = saliency[[group for of, group in kinds if of == kind]].numpy()
        assert np.allclose(np.exp(found), np.exp(wanted - wanted.mean()), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("space", list(atp.SPACES))
def test_the_warm_start_ranks_by_mean_saliency_all_kinds_alike(space):
    groups = Groups(SMALL, space)
    generator, batches = Generator(groups), torch.randn(5, len(groups), generator=torch.Generator().manual_seed(0))
    for gradient in batches:
        generator.warm_up(groups, gradient, spread=2.0)
    log = np.log(batches.abs().mean(0).numpy() / groups.cost.numpy())
    kinds = np.concatenate([[kind] * n for _, kind, _, n in groups.segments])
    for kind in set(kinds):
        log[kinds == kind] -= log[kinds == kind].mean()
    assert np.allclose(generator.prior, 2 * log / log.std(ddof=1), atol=0.01)


@pytest.mark.parametrize("space", list(atp.SPACES))
def test_magnitude_and_activation_saliency_against_loops(space):
    model = random_model(lora=False)
    groups = Groups(model.config, space)
    tokens = random_tokens(3, 9)
    norms = {}

    def keep_norm(name):
        return lambda linear, inputs, output: norms.__setitem__(name, inputs[0].flatten(0, 1).norm(dim=0))

    for layer, block in enumerate(model.layers):
        for name, linear in block.linears().items():
            linear.register_forward_hook(keep_norm((layer, name)))
    model(tokens)
    for criterion in ("magnitude", "activation"):
        expected = torch.zeros(len(groups))
        for layer, kind, start, n in groups.segments:
            for i in range(n):
                for (name, axis), index in atp.group_table(model.config.layers[layer])[kind][1].items():
                    weight = model.layers[layer].linears()[name].weight
                    weight = weight * norms[layer, name] if criterion == "activation" else weight
                    for at in (index == i).nonzero().flatten():
                        expected[start + i] += weight.select(axis, int(at)).square().sum()
            part = slice(start, start + n)
            expected[part] = expected[part].sqrt() / expected[part].sqrt().mean()
        found = atp.saliency(criterion, model, groups, [(tokens[:1], None, None), (tokens[1:], None, None)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
