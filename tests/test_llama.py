"""The model against a naive implementation, the cache against recomputation, loading against saving."""
import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import random_model, random_tokens

import export
import llama
from atp import Groups
from data import IGNORE


def naive_logits(config, weights, ids):
    """LLaMA one position, one head and one rotary pair at a time, in float64, from the definitions; layers
    may differ in size and lack rotary pairs. No code shared with llama.py."""
    w = {name: weight.double() for name, weight in weights.items()}

    def norm(x, g):
        return x / torch.sqrt((x * x).mean() + config.norm_eps) * g

    def rope(x, position, pairs):
        out = x.clone()
        for i, pair in enumerate(pairs):  # where it is now, and which of the unpruned head's it was
            angle = position * config.rope_theta ** (-2 * pair / config.head_dim)
            out[2 * i] = x[2 * i] * math.cos(angle) - x[2 * i + 1] * math.sin(angle)
            out[2 * i + 1] = x[2 * i] * math.sin(angle) + x[2 * i + 1] * math.cos(angle)
        return out

    xs = [w["tok_embeddings.weight"][i] for i in ids]
    for n, size in enumerate(config.layers):
        p, Q, E = f"layers.{n}.", size.qk_dim, size.v_dim
        pairs = range(Q // 2) if size.rotary_pairs is None else size.rotary_pairs
        normed = [norm(x, w[p + "attention_norm.weight"]) for x in xs]
        q, k, v = ([w[p + f"attention.w{z}.weight"] @ x for x in normed] for z in "qkv")
        for t in range(len(xs)):
            heads = []
            for head in range(size.n_heads):
                kv = head // (size.n_heads // size.n_kv_heads)
                query = rope(q[t][head * Q:(head + 1) * Q], t, pairs)
                keys = [rope(k[s][kv * Q:(kv + 1) * Q], s, pairs) for s in range(t + 1)]
                scores = torch.stack([query @ key / math.sqrt(config.head_dim) for key in keys]).softmax(0)
                heads.append(sum(scores[s] * v[s][kv * E:(kv + 1) * E] for s in range(t + 1)))
            xs[t] = xs[t] + w[p + "attention.wo.weight"] @ torch.cat(heads)
            x = norm(xs[t], w[p + "ffn_norm.weight"])
            gate = w[p + "feed_forward.w1.weight"] @ x
            up = w[p + "feed_forward.w3.weight"] @ x
            xs[t] = xs[t] + w[p + "feed_forward.w2.weight"] @ (gate / (1 + torch.exp(-gate)) * up)
    output = w.get("output.weight", w["tok_embeddings.weight"])
    return torch.stack([output @ norm(x, w["norm.weight"]) for x in xs])


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_naive_implementation(n_kv_heads, tied):
    model = random_model(n_kv_heads, lora=False, tied=tied, rope_theta=100.0)
    ids = random_tokens(11)
    naive = naive_logits(model.config, dict(model.named_parameters()), ids.tolist())
    assert torch.allclose(model(ids[None])[0].double(), naive, atol=2e-5)


def without_removed(model, groups, d):
    """The dense model's weights with W + s B A for W, and zeros where `d` removes: from the definitions."""
    c, w = model.config, {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("weight")}
    H, K, D = c.n_heads, c.n_kv_heads, c.head_dim
    for n, block in enumerate(model.layers):
        for name, linear in block.linears().items():
            part = "attention" if name in ("wq", "wk", "wv", "wo") else "feed_forward"
            w[f"layers.{n}.{part}.{name}.weight"] += linear.scale * linear.B.detach() @ linear.A.detach()
        a, f = f"layers.{n}.attention.", f"layers.{n}.feed_forward."
        for kind, kept in groups.kept_groups(d)[n].items():
            if kind == "ffn":
                for i in set(range(len(w[f + "w1.weight"]))) - set(kept):
                    w[f + "w1.weight"][i] = w[f + "w3.weight"][i] = w[f + "w2.weight"][:, i] = 0
            if kind == "qk":
                for i in set(range(D // 2)) - set(kept):
                    for z, heads in (("q", H), ("k", K)):
                        for h in range(heads):
                            w[a + f"w{z}.weight"][h * D + 2 * i:h * D + 2 * i + 2] = 0
            if kind == "vo":
                for i in set(range(D)) - set(kept):
                    w[a + "wv.weight"][i::D] = w[a + "wo.weight"][:, i::D] = 0
            if kind == "head":
                for i in set(range(K)) - set(kept):
                    w[a + "wo.weight"][:, i * H // K * D:(i + 1) * H // K * D] = 0
    return w


@pytest.mark.parametrize("space", ["dims", "heads"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_a_cut_model_equals_naive_implementations(space, n_kv_heads):
    """Of its own sizes and rotary pairs, and of the dense model with zeros in place of what was cut."""
    model = random_model(n_kv_heads, rope_theta=100.0)
    groups, ids = Groups(model.config, space), random_tokens(11)
    d = groups.decide(torch.randn(len(groups), generator=torch.Generator().manual_seed(1)), 0.5)
    dense, zeroed = model.config, without_removed(model, groups, d)
    dense = llama.LlamaConfig(**vars(dense) | {"layers": list(dense.layers)})
    masked = model(ids[None], groups.masks(d, aware=False))[0]
    export.cut(model, groups, d)
    for linear in model.linears():
        linear.merge()
    fresh = llama.Llama(model.config)
    fresh.load_state_dict(model.state_dict())
    sizes = model.config.layers
    assert len({str(size) for size in sizes}) == 3
    if space == "dims":
        assert all(0 < len(size.rotary_pairs) < 4 for size in sizes) and sizes[0].qk_dim != sizes[0].v_dim
    logits, weights = model(ids[None])[0].double(), dict(model.named_parameters())
    assert torch.allclose(logits, naive_logits(model.config, weights, ids.tolist()), atol=2e-5)
    assert torch.allclose(logits, naive_logits(dense, zeroed, ids.tolist()), atol=2e-5)
    assert torch.allclose(masked.double(), logits, atol=2e-5)
    assert torch.equal(fresh(ids[None])[0].double(), logits)  # as when it is loaded, already small


def test_scaled_rope_stretches_only_long_wavelengths():
    config = dict(dim=128, n_layers=1, n_heads=1, vocab_size=8, rope_theta=500000.0)
    plain = llama.rotary_frequencies(llama.LlamaConfig(**config))
    scaled = llama.rotary_frequencies(llama.LlamaConfig(**config, use_scaled_rope=True))
    wavelength = 2 * math.pi / plain
    assert torch.equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    assert torch.allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)
    i = int(((wavelength > 2048) & (wavelength < 8192)).nonzero()[0])
    share = (8192 / float(wavelength[i]) - 1) / 3  # of the unstretched frequency, by Meta's formula
    assert math.isclose(float(scaled[i]), float(plain[i]) * (share + (1 - share) / 8), rel_tol=1e-5)


def test_nll_and_its_gradient_equal_cross_entropy():
    model = random_model()
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    targets[0, :4] = IGNORE
    lora = [p for p in model.parameters() if p.requires_grad]
    logits = model(tokens).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    wanted = torch.autograd.grad(expected, lora)
    for chunk in (1, 5, 100):
        loss = model.nll(tokens, targets, chunk=chunk)
        assert torch.allclose(loss, expected, rtol=1e-5)
        for ours, theirs in zip(torch.autograd.grad(loss, lora), wanted):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_checkpointing_changes_memory_not_gradients():
    model = random_model()
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    lora = [p for p in model.parameters() if p.requires_grad]
    gradients, kept = [], []
    for model.checkpointing in (False, True):
        kept.append(0)

        def keep(tensor):
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.nll(tokens, targets)
        gradients.append(torch.autograd.grad(loss, lora))
    assert all(map(torch.equal, *gradients))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_generation_with_cache_equals_recomputation(n_kv_heads):
    model = random_model(n_kv_heads)
    ids = random_tokens(6).tolist()
    for token in llama.generate(model, ids[:], 12):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 18


def test_generation_samples_among_the_likeliest_and_stops():
    model, prompt = random_model(), random_tokens(6).tolist()
    greedy = list(llama.generate(model, prompt, 8))
    assert list(llama.generate(model, prompt, 8, temperature=2.0, top_k=1)) == greedy
    first = greedy.index(greedy[5])
    assert list(llama.generate(model, prompt, 8, stop={greedy[5]})) == greedy[:first]
    torch.manual_seed(0)
    drawn = {next(llama.generate(model, prompt, 1, temperature=3.0, top_k=4)) for _ in range(60)}
    assert drawn == set(model(torch.tensor([prompt]))[0, -1].topk(4).indices.tolist())


def test_a_character_of_several_tokens_is_printed_whole(tokenizer, monkeypatch, capsys):
    """As soon as it is complete, and what stands before it at once; at the end, half of one is left out."""
    prompt, new = tokenizer.encode(["day \u00e9"])[0], tokenizer.encode(["\u20ac5\u20ac"])[0][:-1]
    assert len(new) > 5 and tokenizer.decode(new).endswith("5\ufffd\ufffd")
    printed = []

    def generate(*_):
        for token in new:
            yield token
            printed.append(capsys.readouterr().out)

    monkeypatch.setattr(llama, "generate", generate)
    how = argparse.Namespace(max_tokens=9, temperature=0, top_k=0)
    assert llama.say(None, tokenizer, how, [1, *prompt], prompt, {2}) == new
    assert "".join(printed) == "day \u00e9 \u20ac5" and printed[0].startswith("day \u00e9")
    assert all(text in ("", "\u20ac", "5") for text in printed[1:])


@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load_round_trip(tmp_path, tokenizer_file, tied):
    source, saved = tmp_path / "source", tmp_path / "saved"
    source.mkdir()
    (source / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    (source / "tokenizer_config.json").write_text("{}")
    (source / "thesis.tex").write_text("not the model's")
    model = random_model(lora=False, tied=tied)
    llama.save(model, saved, source)
    again = llama.load(saved)
    assert again.config == model.config
    assert dict(again.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a, b) and not b.requires_grad
    names = {"params.json", "consolidated.00.pth", "tokenizer.model", "tokenizer_config.json"}
    assert {path.name for path in saved.iterdir()} == names
    llama.save(llama.load(saved, torch.bfloat16), saved, source)
    assert llama.load(saved).norm.weight.dtype == torch.bfloat16  # as stored
    assert llama.load(saved, torch.float32).norm.weight.dtype == torch.float32


@pytest.mark.parametrize("embedding_axis", [0, 1])  # LLaMA-3 splits the vocabulary, LLaMA-2 the width
def test_shards_are_joined_as_meta_splits_them(tmp_path, model_dir, embedding_axis):
    whole = {name: p.data for name, p in llama.load(model_dir).named_parameters()}
    columns = ("wo.weight", "w2.weight") + (("tok_embeddings.weight",) if embedding_axis else ())
    for i in range(2):
        shard = {name: p if p.dim() == 1 else p.chunk(2, 1 if name.endswith(columns) else 0)[i].clone()
                 for name, p in whole.items()}
        shard["rope.freqs"] = torch.ones(4)  # LLaMA-2's files have them, nobody needs them
        torch.save(shard, tmp_path / f"consolidated.0{i}.pth")
    (tmp_path / "params.json").write_bytes((model_dir / "params.json").read_bytes())
    for name, p in llama.load(tmp_path).named_parameters():
        assert torch.equal(p, whole[name]), name


LOADING = """
import resource, sys, torch, llama
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = llama.load(sys.argv[1], getattr(torch, sys.argv[2]))
print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.long  # 4 GB and half a minute
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_little_more_than_the_weights(tmp_path, tokenizer_file, dtype):
    config = dict(dim=2048, n_layers=12, n_heads=32, n_kv_heads=8, vocab_size=32000, multiple_of=256)
    model = llama.Llama(llama.LlamaConfig(**config)).to(torch.bfloat16)
    llama.save(model, tmp_path, tokenizer_file.parent)
    done = subprocess.run([sys.executable, "-c", LOADING, tmp_path, dtype], cwd=Path(llama.__file__).parent,
                          capture_output=True, text=True)
    assert float(done.stdout) < 1.1, done.stderr


def test_vocabulary_size_left_to_the_checkpoint(tmp_path, model_dir):
    params = json.loads((model_dir / "params.json").read_text()) | {"vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    (tmp_path / "consolidated.00.pth").write_bytes((model_dir / "consolidated.00.pth").read_bytes())
    assert llama.load(tmp_path).config.vocab_size == 320
