"""The model against a naive implementation, the cache against recomputation, checkpoints against what was saved."""
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import random_model, random_tokens

import llama
from llama import IGNORE, InputError


def naive_logits(model, ids):
    """LLaMA one position, one head and one rotary pair at a time, from the definitions; no code shared with llama.py."""
    c, w = model.config, {name: p.double() for name, p in model.named_parameters()}

    def norm(x, g):
        return x / torch.sqrt((x * x).mean() + c.norm_eps) * g

    def rope(x, position):
        out = x.clone()
        for i in range(c.head_dim // 2):
            angle = position * c.rope_theta ** (-2 * i / c.head_dim)
            out[2 * i] = x[2 * i] * math.cos(angle) - x[2 * i + 1] * math.sin(angle)
            out[2 * i + 1] = x[2 * i] * math.sin(angle) + x[2 * i + 1] * math.cos(angle)
        return out

    xs = [w["tok_embeddings.weight"][i] for i in ids]
    for n in range(c.n_layers):
        p, h = f"layers.{n}.", c.head_dim
        normed = [norm(x, w[p + "attention_norm.weight"]) for x in xs]
        q, k, v = ([w[p + f"attention.w{z}.weight"] @ x for x in normed] for z in "qkv")
        for t in range(len(xs)):
            heads = []
            for head in range(c.n_heads):
                kv = head // (c.n_heads // c.n_kv_heads)
                query = rope(q[t][head * h:(head + 1) * h], t)
                scores = torch.stack([query @ rope(k[s][kv * h:(kv + 1) * h], s) / math.sqrt(h) for s in range(t + 1)])
                weights = scores.softmax(0)
                heads.append(sum(weights[s] * v[s][kv * h:(kv + 1) * h] for s in range(t + 1)))
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
    tokens = random_tokens(1, 11)
    assert torch.allclose(model(tokens)[0].double(), naive_logits(model, tokens[0].tolist()), atol=2e-5)


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
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    for chunk in (1, 5, 100):
        loss = model.nll(tokens, targets, chunk=chunk)
        assert torch.allclose(loss, expected, rtol=1e-5)
        for ours, theirs in zip(torch.autograd.grad(loss, lora), torch.autograd.grad(expected, lora, retain_graph=True)):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_checkpointing_changes_memory_not_gradients():
    model = random_model()
    tokens, targets = random_tokens(2, 9), random_tokens(2, 9, seed=1)
    lora = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(model.nll(tokens, targets), lora)
    model.checkpointing = True
    for a, b in zip(plain, torch.autograd.grad(model.nll(tokens, targets), lora)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_generation_with_cache_equals_recomputation(n_kv_heads):
    model = random_model(n_kv_heads)
    ids = random_tokens(6).tolist()
    for token in llama.generate(model, ids[:], 12):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 18


def test_cache_takes_several_tokens_after_the_first():
    model, tokens = random_model(), random_tokens(1, 10)
    caches = [llama.KeyValues(1, 10, size, model.norm.weight) for size in model.config.layers]
    parts = [model(tokens[:, a:b], caches=caches, start=a) for a, b in [(0, 4), (4, 9), (9, 10)]]
    assert torch.allclose(torch.cat(parts, 1), model(tokens), atol=1e-5)


def test_save_and_load_round_trip(tmp_path, tokenizer_file):
    for tied in (False, True):
        model = random_model(lora=False, tied=tied)
        llama.save(model, tmp_path / str(tied), tokenizer_file)
        again = llama.load(tmp_path / str(tied))
        assert dict(again.named_parameters()).keys() == dict(model.named_parameters()).keys()
        for a, b in zip(model.parameters(), again.parameters()):
            assert torch.equal(a, b) and not b.requires_grad
    assert llama.load(tmp_path / "True", torch.bfloat16).norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("embedding_axis", [0, 1])  # LLaMA-3 splits the vocabulary, LLaMA-2 the width
def test_shards_are_joined_as_meta_splits_them(tmp_path, model_dir, embedding_axis):
    whole = {name: p.data for name, p in llama.load(model_dir).named_parameters()}
    columns = ("wo.weight", "w2.weight") + (("tok_embeddings.weight",) if embedding_axis else ())
    for i in range(2):
        shard = {name: p if p.dim() == 1 else p.chunk(2, 1 if name.endswith(columns) else 0)[i].clone()
                 for name, p in whole.items()}
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_little_more_than_the_weights(tmp_path, tokenizer_file, request, dtype):
    if not request.config.getoption("--long"):
        pytest.skip("takes 4 GB and half a minute: --long")
    config = dict(dim=2048, n_layers=12, n_heads=32, n_kv_heads=8, vocab_size=32000, multiple_of=256)
    llama.save(llama.Llama(llama.LlamaConfig(**config)).to(torch.bfloat16), tmp_path, tokenizer_file)
    done = subprocess.run([sys.executable, "-c", LOADING, tmp_path, dtype], cwd=Path(llama.__file__).parent,
                          capture_output=True, text=True)
    assert float(done.stdout) < 1.1, done.stderr


def test_vocabulary_size_left_to_the_checkpoint(tmp_path, model_dir):
    params = json.loads((model_dir / "params.json").read_text()) | {"vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps(params))
    (tmp_path / "consolidated.00.pth").write_bytes((model_dir / "consolidated.00.pth").read_bytes())
    assert llama.load(tmp_path).config.vocab_size == 320


@pytest.mark.parametrize("change, says", [
    (lambda s: s.pop("norm.weight"), "norm.weight is missing"),
    (lambda s: s.update(extra=torch.ones(2)), "extra is not part of this LLaMA"),
    (lambda s: s.update({"norm.weight": torch.ones(31)}), "norm.weight has shape [31]"),
    (lambda s: s.update({"norm.weight": torch.ones(32, dtype=torch.int8)}), "quantized"),
    (lambda s: s.update({"norm.weight": "text"}), "is a str, not a tensor"),
])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path, model_dir, change, says):
    state = {name: p.data for name, p in llama.load(model_dir).named_parameters()}
    change(state)
    torch.save(state, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_bytes((model_dir / "params.json").read_bytes())
    with pytest.raises(InputError) as error:
        llama.load(tmp_path)
    assert says in str(error.value) and "\n" not in str(error.value)
