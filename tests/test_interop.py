"""In from and out to other tools' formats. What needs an optional package is skipped without it."""
import json

import pytest
import torch
from conftest import command, random_model, random_tokens

import export
import llama
from atp import Groups
from llama import InputError
from scripts import convert_hf, to_gguf

CONFIGS = {"MHA": dict(n_kv_heads=4), "GQA": dict(n_kv_heads=2), "tied": dict(n_kv_heads=2, tied=True),
           "scaled rope": dict(n_kv_heads=2, use_scaled_rope=True, rope_scaling_factor=32.0, rope_theta=500000.0)}


def pruned(space, uniform=False, **how):
    model = random_model(lora=False, **how)
    groups = Groups(model.config, space, uniform=uniform)
    export.cut(model, groups, groups.decide(torch.randn(len(groups), generator=torch.Generator().manual_seed(1)), 0.6)[0])
    return model


def stock(directory):
    """What stock transformers makes of a directory."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("how", CONFIGS.values(), ids=CONFIGS)
def test_raw_to_hf_to_raw_is_bit_identical(tmp_path, tokenizer_file, how):
    model = random_model(lora=False, **how)
    llama.save(model, tmp_path / "raw", tokenizer_file)
    convert_hf.write(tmp_path / "raw", tmp_path / "hf")
    convert_hf.convert(tmp_path / "hf", tmp_path / "again")
    again = llama.load(tmp_path / "again")
    assert again.config.layers == model.config.layers
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(llama.rotary_frequencies(model.config), llama.rotary_frequencies(again.config))


def test_sharded_hf_directory_equals_whole(tmp_path, model_dir):
    convert_hf.write(model_dir, tmp_path / "hf")
    state = torch.load(tmp_path / "hf/pytorch_model.bin", weights_only=True)
    names = list(state)
    (tmp_path / "hf/pytorch_model.bin").unlink()
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, tmp_path / "hf" / file)
    index = tmp_path / "hf/pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    convert_hf.convert(tmp_path / "hf", tmp_path / "raw")
    for a, b in zip(llama.load(model_dir).parameters(), llama.load(tmp_path / "raw").parameters(), strict=True):
        assert torch.equal(a, b)
    index.write_text(json.dumps({"weight_map": files | {names[0]: "../secret.bin"}}))
    with pytest.raises(InputError, match="not a file in this folder"):
        convert_hf.convert(tmp_path / "hf", tmp_path / "other")


@pytest.mark.parametrize("change, says", [
    (dict(attention_bias=True), "attention_bias"), (dict(sliding_window=4096), "sliding_window"), (dict(model_type="mixtral"), "model_type"),
    (dict(num_local_experts=8), "num_local_experts"), (dict(quantization_config={"bits": 4}), "quantization_config"),
    (dict(hidden_act="gelu"), "hidden_act"), (dict(rope_parameters={"rope_type": "yarn"}), "yarn"), (dict(hidden_size=None), "config"),
    (dict(num_attention_heads=0), "config"), (dict(intermediate_size=40), "config.json wants"), (dict(num_hidden_layers=2), "not part of")])
def test_hf_config_that_cannot_be_represented_is_refused_by_name(tmp_path, model_dir, monkeypatch, capsys, change, says):
    convert_hf.write(model_dir, tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert command(monkeypatch, tmp_path / "hf", tmp_path / "raw", main=convert_hf.main) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "raw").exists()


@pytest.mark.parametrize("how", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_transformers(tmp_path, tokenizer_file, how):
    model, tokens = random_model(lora=False, **how), random_tokens(2, 40)
    llama.save(model, tmp_path / "raw", tokenizer_file)
    convert_hf.write(tmp_path / "raw", tmp_path / "hf")
    assert (stock(tmp_path / "hf")(tokens).logits - model(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("how", [
    dict(num_key_value_heads=4), dict(num_key_value_heads=2, head_dim=16), dict(num_key_value_heads=1, tie_word_embeddings=True),
    dict(num_key_value_heads=2, rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
                                                     high_freq_factor=4.0, original_max_position_embeddings=8192))])
def test_models_that_transformers_wrote(tmp_path, how):
    """Their initialization, their files (safetensors), through our converter: the same logits, and back the same tensors."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4,
                                      vocab_size=320, initializer_range=0.2, **how)
    theirs, tokens = transformers.LlamaForCausalLM(config).eval(), random_tokens(2, 40)
    theirs.save_pretrained(tmp_path / "hf")
    convert_hf.convert(tmp_path / "hf", tmp_path / "raw")
    ours = llama.load(tmp_path / "raw")
    assert (ours.output is None) == bool(how.get("tie_word_embeddings"))
    assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-4
    back, _ = convert_hf.hf_state(ours)
    assert all(torch.equal(back[name], weight) for name, weight in theirs.state_dict().items() if name in back)


@pytest.mark.parametrize("space, uniform", [("heads", True), ("heads", False), ("dims", False)])
def test_pruned_model_in_stock_transformers(tmp_path, tokenizer_file, space, uniform):
    model, tokens = pruned(space, uniform), random_tokens(2, 20)
    llama.save(model, tmp_path / "raw", tokenizer_file)
    message = convert_hf.write(tmp_path / "raw", tmp_path / "hf")
    assert ("padded" in message) == (not uniform)
    theirs = stock(tmp_path / "hf")
    assert (theirs(tokens).logits - model(tokens)).abs().max() < 1e-4
    if uniform:
        assert sum(p.numel() for p in theirs.parameters()) == llama.count_parameters(model)
    prompt = random_tokens(5).tolist()
    ours = list(llama.generate(model, prompt, 64))
    assert theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None)[0, 5:].tolist() == ours


def test_hf_tokenizer_files_tokenize_alike(tmp_path, model_dir, tokenizer):
    transformers = pytest.importorskip("transformers")
    convert_hf.write(model_dir, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("On day 5 the lessee shall pay lot 17.", "Unless  the court gives\nnotice, \u00e9t\u00e9: \u4f60."):
        ids = [tokenizer.bos] + tokenizer.encode([text])[0]
        assert theirs(text)["input_ids"] == ids and theirs.decode(ids, skip_special_tokens=True) == text


@pytest.fixture
def llama3_tokenizer(tmp_path):
    """A tiktoken-format file: the 256 bytes and a few merges."""
    import base64
    tokens = [bytes([i]) for i in range(256)] + [b"th", b"he", b" t", b"the", b" the", b"ee", b"see", b"less", b"lessee"]
    path = tmp_path / "tokenizer.model"
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)))
    return path


def test_tiktoken_file_is_told_apart(llama3_tokenizer, monkeypatch):
    pytest.importorskip("tiktoken")
    tokenizer = llama.Tokenizer(llama3_tokenizer)
    assert (tokenizer.bos, tokenizer.eos, len(tokenizer), tokenizer.stop) == (265, 266, 265 + 256, (266, 274))
    (ids,) = tokenizer.encode(["see the"])
    assert ids == [262, 260] and tokenizer.decode(ids) == "see the"
    assert tokenizer.encode(["<|end_of_text|>"])[0][-1] != tokenizer.eos  # text cannot forge special tokens
    monkeypatch.setitem(__import__("sys").modules, "tiktoken", None)
    with pytest.raises(InputError, match="pip install tiktoken"):
        llama.Tokenizer(llama3_tokenizer)


def test_gguf_merges_rebuild_the_vocabulary():
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256, b"he": 257, b"the": 258, b"ethe": 259}
    assert to_gguf.last_merge(ranks, b"the") == [b"th", b"e"] and to_gguf.last_merge(ranks, b"ethe") == [b"e", b"the"]
    letters = to_gguf.byte_letters()
    assert len(set(letters.values())) == 256 and letters[ord("a")] == "a" and letters[ord(" ")] == "Ġ"


@pytest.mark.parametrize("space, uniform, arch", [("heads", True, "llama"), ("heads", False, "deci"), ("dims", False, "deci")])
def test_gguf_holds_every_tensor(tmp_path, tokenizer_file, space, uniform, arch):
    gguf = pytest.importorskip("gguf")
    model = pruned(space, uniform)
    llama.save(model, tmp_path / "raw", tokenizer_file)
    assert to_gguf.write(tmp_path / "raw", tmp_path / "model.gguf", "f32") == arch
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert tensors.keys() == {to_gguf.gguf_name(name) for name, _ in model.named_parameters()}
    size, layer = model.config.layers[1], model.layers[1]
    pairs = range(4) if size.rotary_pairs is None else size.rotary_pairs
    wq = torch.from_numpy(tensors["blk.1.attn_q.weight"].data.copy())  # heads of 8, as before pruning
    for head in range(size.n_heads):
        for pair in range(4):
            rows = wq[8 * head + 2 * pair:8 * head + 2 * pair + 2]
            if pair in pairs:
                at = head * size.qk_dim + 2 * list(pairs).index(pair)
                assert torch.equal(rows, layer.attention.wq.weight[at:at + 2])
            else:
                assert not rows.any()
    wo = torch.from_numpy(tensors["blk.1.attn_output.weight"].data.copy()).unflatten(1, (size.n_heads, 8))
    assert torch.equal(wo[:, :, :size.v_dim], layer.attention.wo.weight.unflatten(1, (size.n_heads, size.v_dim)))
    assert not wo[:, :, size.v_dim:].any()
    for name, weight in [("token_embd", model.tok_embeddings), ("output_norm", model.norm), ("output", model.output),
                         ("blk.1.ffn_gate", layer.feed_forward.w1), ("blk.1.ffn_up", layer.feed_forward.w3),
                         ("blk.1.ffn_down", layer.feed_forward.w2), ("blk.1.ffn_norm", layer.ffn_norm)]:
        assert torch.equal(torch.from_numpy(tensors[f"{name}.weight"].data.copy()), weight.weight), name


def test_export_hf_from_a_run(monkeypatch, options, tmp_path, capsys):
    assert command(monkeypatch, *options, "--space", "heads", "--uniform") == 0
    assert command(monkeypatch, tmp_path / "run", "--hf", tmp_path / "hf", main=export.main) == 0
    assert "stock transformers" in capsys.readouterr().out and (tmp_path / "hf/config.json").exists()
