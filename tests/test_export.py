"""Exactness: the pruned forward, the sliced model and the exported model are the same function."""
import json

import pytest
import torch
from conftest import random_model, random_tokens

import export
import llama
from atp import Groups, pruned_size
from data import InputError

SPACES, KV_HEADS, SEEDS = ["dims", "heads"], [4, 2], range(10)
DTYPES = [pytest.param(dtype, units * torch.finfo(dtype).eps * 3 ** 0.5, id=str(dtype)) for dtype, units
          in export.TOLERANCE.items()]  # of three layers


def decisions(groups, seed, keep=0.55):
    return groups.decide(torch.randn(len(groups), generator=torch.Generator().manual_seed(seed)), keep)


def error(a, b):
    """Root mean square of the difference, relative to that of `a`."""
    return float((a - b).square().mean().sqrt() / a.square().mean().sqrt())


def cast(model, dtype):
    """Frozen weights in `dtype`, LoRA in float32, as in training."""
    for name, p in model.named_parameters():
        if not name.endswith((".A", ".B")):
            p.data = p.data.to(dtype)
    return model


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("n_kv_heads", KV_HEADS)
@pytest.mark.parametrize("dtype, tolerance", DTYPES)
def test_pruned_forward_equals_sliced_model(space, n_kv_heads, dtype, tolerance):
    tokens = random_tokens(2, 12)
    for seed in SEEDS:
        model = cast(random_model(n_kv_heads, seed), dtype)
        groups = Groups(model.config, space)
        d = decisions(groups, seed)
        with torch.no_grad():
            dense = model(tokens)
            masked = model(tokens, groups.masks(d, aware=False, dtype=dtype))
            export.cut(model, groups, d)
            sliced = model(tokens)
            for linear in model.linears():
                linear.merge()
            merged = model(tokens)
        assert error(masked, sliced) < tolerance and error(masked, merged) < tolerance
        assert error(masked, dense) > 10 * tolerance  # the decisions do matter


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("n_kv_heads", KV_HEADS)
def test_counted_parameters_equal_numel_after_slicing(space, n_kv_heads):
    for seed in SEEDS:
        model = random_model(n_kv_heads, seed)
        before, groups = llama.count_parameters(model), Groups(model.config, space)
        d = decisions(groups, seed)
        export.cut(model, groups, d)
        linears = [linear for block in model.layers for linear in block.linears().values()]
        assert groups.kept(d) == sum(linear.weight.numel() for linear in linears)
        assert llama.count_parameters(model) == before - groups.total + groups.kept(d)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("n_kv_heads", KV_HEADS)
def test_slicing_in_mid_training_equals_masking(space, n_kv_heads):
    """Two steps masked, then one more: on the masked model, or on the one cut with its optimizer's state."""
    tokens, targets = random_tokens(2, 12), random_tokens(2, 12, seed=1)
    outcomes = []
    for slicing in (False, True):
        model = random_model(n_kv_heads)
        groups = Groups(model.config, space)
        d = decisions(groups, 3)
        masks = groups.masks(d, aware=False)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(3):
            if slicing and step == 2:
                export.cut(model, groups, d, optimizer)
                masks = None
            optimizer.zero_grad()
            loss = model.nll(tokens, targets, masks)
            loss.backward()
            optimizer.step()
        if not slicing:
            export.cut(model, groups, d, optimizer)
        moments = [optimizer.state[p]["exp_avg"] for p in model.parameters() if p.requires_grad]
        outcomes.append((float(loss.detach()), dict(model.named_parameters()), moments))
    (loss, masked, m1), (loss_sliced, sliced, m2) = outcomes
    assert abs(loss - loss_sliced) < 1e-4 * loss
    for name in masked:
        assert torch.allclose(masked[name], sliced[name], atol=2e-5), name
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(m1, m2, strict=True))


@pytest.mark.parametrize("space", SPACES)
def test_exported_model_loads_generates_and_can_be_pruned_again(tmp_path, tokenizer_file, space):
    tokens = random_tokens(3, 12)
    model = random_model()
    groups = Groups(model.config, space)
    d = decisions(groups, 0)
    expected = model(tokens, groups.masks(d, aware=False))
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned/notes.txt").write_text("not the model's, so it stays")
    assert export.write(model, groups, d, tokenizer_file.parent, tokens, tmp_path / "pruned") < 1e-4
    assert (tmp_path / "pruned/notes.txt").exists()
    loaded = llama.load(tmp_path / "pruned")
    assert torch.allclose(loaded(tokens), expected, atol=1e-4)
    ids = list(llama.generate(loaded, [1, 2, 3], 5))
    assert ids == [int(loaded(torch.tensor([[1, 2, 3] + ids[:i]]))[0, -1].argmax()) for i in range(5)]
    params = json.loads((tmp_path / "pruned" / "params.json").read_text())
    assert params["head_dim"] == 8 and len(params["layers"]) == 3

    again = Groups(loaded.config, space)  # its layers differ in size now
    d = decisions(again, 1, keep=0.7)
    masked = loaded(tokens, again.masks(d, aware=False))
    export.cut(loaded, again, d)
    assert again.total == groups.kept(decisions(groups, 0))
    assert torch.allclose(loaded(tokens), masked, atol=1e-4)


@pytest.mark.parametrize("n_layers", [3, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_of_deep_models_passes_for_what_it_is(tmp_path, tokenizer_file, n_layers, dtype):
    model = cast(random_model(n_layers=n_layers), dtype)
    groups = Groups(model.config, "dims")
    d, tokens = decisions(groups, 0), random_tokens(4, 64)
    export.write(model, groups, d, tokenizer_file.parent, tokens, tmp_path / "pruned")


def test_an_export_that_differs_is_refused_and_the_old_one_stays(tmp_path, tokenizer_file, monkeypatch):
    model = random_model()
    groups = Groups(model.config, "dims")
    target = tmp_path / "pruned"
    target.mkdir()
    (target / "precious").write_text("old")
    save = llama.save

    def damaged(model, *rest):
        model.layers[1].feed_forward.w2.weight.data[0, 0] += 1e-3
        save(model, *rest)

    monkeypatch.setattr(llama, "save", damaged)
    with pytest.raises(InputError, match="differ from the pruned forward"):
        export.write(model, groups, decisions(groups, 0), tokenizer_file.parent, random_tokens(2, 12), target)
    assert (target / "precious").read_text() == "old"


def test_pruned_size_keeps_the_surviving_rotary_pairs():
    size = llama.LayerSize(n_heads=4, n_kv_heads=2, qk_dim=8, v_dim=8, hidden_dim=6)
    once = pruned_size(size, {"qk": [0, 2, 3], "vo": [1, 5], "ffn": [0]})
    wanted = dict(n_heads=4, n_kv_heads=2, qk_dim=6, v_dim=2, hidden_dim=1, rotary_pairs=[0, 2, 3])
    assert once == llama.LayerSize(**wanted)
    assert pruned_size(once, {"qk": [1, 2]}).rotary_pairs == [2, 3]
    heads = pruned_size(size, {"head": [1], "ffn": [0, 4]})
    assert (heads.n_heads, heads.n_kv_heads, heads.hidden_dim, heads.rotary_pairs) == (2, 1, 2, None)
