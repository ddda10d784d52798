"""GGUF files out and in: every tensor, every token, and what cannot be read or written."""
import dataclasses
import json
import sys

import pytest
import sentencepiece
import torch
from conftest import command, content, random_model, random_tokens, sentences
from test_faults import files_of_at_most
from test_interop import CONFIGS, pruned, write_llama3_tokenizer
from test_tokenizer import raw_model, texts, write_tokenizer

import llama
from data import Tokenizer
from scripts import convert_hf, from_gguf, to_gguf

gguf = pytest.importorskip("gguf")


def read(file):
    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def test_merges_rebuild_the_vocabulary():
    ranks = {bytes([i]): i for i in range(256)} | {b"th": 256, b"he": 257, b"the": 258, b"ethe": 259}
    assert to_gguf.last_merge(ranks, b"the") == [b"th", b"e"]
    assert to_gguf.last_merge(ranks, b"ethe") == [b"e", b"the"]
    letters = to_gguf.byte_letters()
    assert len(set(letters.values())) == 256 and letters[ord("a")] == "a" and letters[ord(" ")] == "Ġ"


@pytest.mark.parametrize("space, uniform, arch", [
    ("heads", True, "llama"), ("heads", False, "deci"), ("dims", False, "deci")])
def test_a_file_holds_every_tensor(tmp_path, tokenizer_file, space, uniform, arch):
    model = pruned(space, uniform)
    llama.save(model, tmp_path / "raw", tokenizer_file.parent)
    assert to_gguf.write(tmp_path / "raw", tmp_path / "model.gguf", "f32") == arch
    tensors = read(tmp_path / "model.gguf")[1]
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
    cut = layer.attention.wo.weight.unflatten(1, (size.n_heads, size.v_dim))
    assert torch.equal(wo[:, :, :size.v_dim], cut) and not wo[:, :, size.v_dim:].any()
    for name, weight in [("token_embd", model.tok_embeddings), ("output_norm", model.norm),
                         ("output", model.output), ("blk.1.ffn_gate", layer.feed_forward.w1),
                         ("blk.1.ffn_up", layer.feed_forward.w3),
                         ("blk.1.ffn_down", layer.feed_forward.w2), ("blk.1.ffn_norm", layer.ffn_norm)]:
        assert torch.equal(torch.from_numpy(tensors[f"{name}.weight"].data.copy()), weight.weight), name


def there_and_back(raw, tmp_path, kind="f32"):
    to_gguf.write(raw, tmp_path / "model.gguf", kind)
    message = from_gguf.convert(tmp_path / "model.gguf", tmp_path / "again")
    return llama.load(tmp_path / "again"), message


@pytest.mark.parametrize("how", CONFIGS.values(), ids=CONFIGS)
def test_a_whole_model_comes_back_bit_for_bit(tmp_path, tokenizer_file, how):
    model = random_model(lora=False, max_seq_len=512, norm_eps=1e-6, **how)
    llama.save(model, tmp_path / "raw", tokenizer_file.parent)
    again, message = there_and_back(tmp_path / "raw", tmp_path)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    wanted = {"multiple_of": 256, "rope_scaling_factor": pytest.approx(model.config.rope_scaling_factor)}
    assert vars(again.config) == vars(model.config) | wanted and "rounded" not in message


@pytest.mark.parametrize("space, uniform", [("heads", True), ("heads", False), ("dims", False)])
def test_a_pruned_model_comes_back_with_zeros_for_cut_dimensions(tmp_path, tokenizer_file, space, uniform):
    model, tokens = pruned(space, uniform), random_tokens(2, 20)
    llama.save(model, tmp_path / "raw", tokenizer_file.parent)
    again, _ = there_and_back(tmp_path / "raw", tmp_path)
    for ours, theirs in zip(model.config.layers, again.config.layers, strict=True):
        assert theirs == dataclasses.replace(ours, qk_dim=8, v_dim=8, rotary_pairs=None)
    assert (again(tokens) - model(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("kind, dtype, bits", [
    ("f16", torch.float16, 16), ("bf16", torch.bfloat16, 16), ("q8_0", torch.bfloat16, 8)])
def test_rounded_weights_are_as_the_file_has_them_and_it_says_so(tmp_path, tokenizer_file, kind, dtype, bits):
    model = random_model(lora=False, multiple_of=32)
    llama.save(model, tmp_path / "raw", tokenizer_file.parent)
    again, message = there_and_back(tmp_path / "raw", tmp_path, kind)
    a, b = model.layers[1].feed_forward.w2.weight, again.layers[1].feed_forward.w2.weight
    assert b.dtype == dtype and f"rounded to {bits} bits" in message
    assert torch.equal(a.to(dtype), b) if bits == 16 else 0 < (a - b).abs().max() < 0.02


# ------------------------------------------------------------------------------------------------- tokenizers

def assert_same_tokenizer(raw, again):
    ours, theirs, some = Tokenizer(raw), Tokenizer(again), texts()
    assert theirs.encode(some) == ours.encode(some)
    assert [(t.bos, t.eos, t.space) for t in (ours, theirs)] == [(ours.bos, ours.eos, ours.space)] * 2
    return ours, theirs


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_json_tokenizer_comes_back(tmp_path, pre):
    raw = raw_model(tmp_path / "raw", pre=pre)
    there_and_back(raw, tmp_path)
    ours, theirs = assert_same_tokenizer(raw, tmp_path / "again")
    assert theirs.stop == ours.stop == {0, 2}
    fields = read(tmp_path / "model.gguf")[0]
    said = {key: fields[f"tokenizer.{key}"] for key in
            ("ggml.model", "ggml.pre", "ggml.bos_token_id", "ggml.eos_token_id", "ggml.eot_token_id",
             "ggml.add_bos_token", "ggml.add_eos_token", "chat_template")}
    assert list(said.values()) == ["gpt2", pre, 0, 2, 0, True, False, "{{ messages }}"]
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1] and fields["llama.context_length"] == 512
    config = json.loads((tmp_path / "again/tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize("names", [{}, dict(bos_piece="<bos>", eos_piece="<eos>", add_dummy_prefix=False)])
def test_a_sentencepiece_tokenizer_comes_back(tmp_path, names):
    (tmp_path / "raw").mkdir()
    with open(tmp_path / "raw/tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(300, 1)), model_writer=file, vocab_size=320, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            minloglevel=2, num_threads=1, **names)
    llama.save(random_model(lora=False), tmp_path / "raw", tmp_path / "raw")
    there_and_back(tmp_path / "raw", tmp_path)
    ours, theirs = assert_same_tokenizer(tmp_path / "raw", tmp_path / "again")
    assert theirs.kind == "sentencepiece" and theirs.stop == ours.stop and theirs.space == " " * bool(names)


def test_a_tiktoken_tokenizer_comes_back_as_tokenizer_json(tmp_path):
    pytest.importorskip("tiktoken")
    pytest.importorskip("tokenizers")
    write_llama3_tokenizer(tmp_path)
    llama.save(random_model(lora=False, vocab_size=266 + 256), tmp_path / "raw", tmp_path)
    there_and_back(tmp_path / "raw", tmp_path)
    ours, theirs = assert_same_tokenizer(tmp_path / "raw", tmp_path / "again")
    assert theirs.kind == "json" and theirs.stop == ours.stop == {267, 275}


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "sentencepiece"])
def test_ids_in_llama_cpp(tmp_path, model_dir, pre):
    """llama.cpp reads the file, and cuts and joins text to the same ids."""
    pytest.importorskip("xllamacpp")
    from benchmarks.interop import LlamaCpp
    raw = model_dir if pre == "sentencepiece" else raw_model(tmp_path / "raw", pre=pre)
    to_gguf.write(raw, tmp_path / "model.gguf", "f32")
    engine, ours = LlamaCpp(tmp_path / "model.gguf"), Tokenizer(raw)
    for text, ids in zip(texts(200), ours.encode(texts(200))):
        assert engine.tokenize(text) == [ours.bos, *ids], text


@pytest.mark.parametrize("says, change", [
    ("Whitespace", lambda ours, made: setattr(ours, "pre_tokenizer", made.pre_tokenizers.Whitespace())),
    ("NFC", lambda ours, made: setattr(ours, "normalizer", made.normalizers.NFC())),
    ("BPE", lambda ours, made: setattr(ours.model, "unk_token", "<|endoftext|>")),
    ("BPE", lambda ours, made: setattr(ours.model, "ignore_merges", True))],
    ids=["words", "normalizer", "unknown token", "merges"])
def test_a_tokenizer_without_a_name_in_llama_cpp_is_refused(tmp_path, monkeypatch, capsys, says, change):
    raw = raw_model(tmp_path / "raw", change=change)
    error = refused(monkeypatch, capsys, tmp_path, raw, tmp_path / "model.gguf", main=to_gguf.main)
    assert says in error and "smollm" in error


# -------------------------------------------------------------------------------------------------- bad input

def file_with(tmp_path, model_dir, change):
    """A GGUF file with other metadata (None: without this key), or without the `tensor` named in `change`."""
    to_gguf.write(model_dir, tmp_path / "good.gguf", "f32")
    fields, tensors = read(tmp_path / "good.gguf")
    types = gguf.GGUFReader(tmp_path / "good.gguf").fields
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", change.get("general.architecture", "llama"))
    for key, value in (fields | change).items():
        if key.startswith("GGUF.") or key in ("general.architecture", "tensor") or value is None:
            continue
        like = key if key in types and type(value) is type(fields[key]) else None
        known = types[like or ("llama.block_count" if isinstance(value, int) else "general.name")].types
        writer.add_key_value(key, value, known[0], known[-1] if len(known) > 1 else None)
    for name, tensor in tensors.items():
        if name != change.get("tensor"):
            writer.add_tensor(name, tensor.data.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def refused(monkeypatch, capsys, tmp_path, *arguments, main=from_gguf.main) -> str:
    """The one line with which a command refuses its arguments, after which all is as it was."""
    before = content(tmp_path), sorted(tmp_path.rglob("*"))
    assert command(monkeypatch, *arguments, main=main) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and (content(tmp_path), sorted(tmp_path.rglob("*"))) == before
    return error


@pytest.mark.parametrize("change, says", [
    ({"general.architecture": "qwen2"}, "qwen2"), ({"llama.expert_count": 8}, "expert_count"),
    ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type"), ({"tokenizer.ggml.model": "t5"}, "t5"),
    ({"llama.attention.sliding_window": 4096}, "sliding_window"),
    ({"llama.attention.value_length": 16}, "value_length"),
    ({"tokenizer.ggml.model": "gpt2"}, "default"), ({"llama.embedding_length": 64}, "token_embd"),
    ({"llama.block_count": 2}, "not part of this LLaMA"), ({"llama.block_count": 2**31}, "blk.3"),
    ({"llama.feed_forward_length": 0}, "'hidden_dim' is 0"), ({"llama.attention.head_count": None}, "head_count"),
    ({"llama.attention.head_count": "four"}, "not a readable"), ({"tensor": "blk.1.ffn_up.weight"}, "ffn_up"),
    ({"tokenizer.ggml.eos_token_id": 999}, "IndexError"),
    ({"tokenizer.ggml.tokens": ["a"]}, "not a readable")],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)))
def test_what_is_not_our_llama_is_refused_by_name(tmp_path, model_dir, monkeypatch, capsys, change, says):
    file = file_with(tmp_path, model_dir, change)
    error = refused(monkeypatch, capsys, tmp_path, file, tmp_path / "new/raw")
    assert says in error and str(file) in error


def test_otherwise_stretched_rotary_frequencies_are_refused(tmp_path, tokenizer_file, monkeypatch, capsys):
    model = random_model(lora=False, use_scaled_rope=True)
    llama.save(model, tmp_path / "raw", tokenizer_file.parent)
    with monkeypatch.context() as patch:
        patch.setattr(to_gguf, "rope_factors", lambda config: torch.tensor([1.0, 2.0, 3.0, 4.0]))
        to_gguf.write(tmp_path / "raw", tmp_path / "model.gguf", "f32")
    assert "rope_freqs" in refused(monkeypatch, capsys, tmp_path, tmp_path / "model.gguf", tmp_path / "again")


def test_truncated_and_damaged_files_are_refused(tmp_path, model_dir, monkeypatch, capsys):
    to_gguf.write(model_dir, tmp_path / "model.gguf", "f32")
    whole, file = (tmp_path / "model.gguf").read_bytes(), tmp_path / "bad.gguf"
    for cut in (0, 3, 4, 20, 100, 1000, 5000, 12000, len(whole) // 2, len(whole) - 100):
        file.write_bytes(whole[:cut])
        assert "not a readable GGUF" in refused(monkeypatch, capsys, tmp_path, file, tmp_path / "raw"), cut
    key = b"tokenizer.ggml.token_type"
    length = whole.index(key) + len(key) + 8  # of an array of int32
    for at in [*range(0, 1200, 7), length + 2]:  # keys, types, lengths, values; some only make another name
        file.write_bytes(whole[:at] + b"\xff\xff\xff" + whole[at + 3:])
        status = command(monkeypatch, file, tmp_path / f"raw{at}", main=from_gguf.main)
        error = capsys.readouterr().err
        assert status in (0, 2) and error.count("\n") == (status == 2), at
        assert (status == 2) == (str(file) in error) != (tmp_path / f"raw{at}").exists(), at
    assert not list(tmp_path.glob("*.tmp"))


def test_packages_are_looked_into_and_never_imported(tmp_path, model_dir, monkeypatch, capsys):
    package = tmp_path / "some_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    error = refused(monkeypatch, capsys, tmp_path, "some_model", tmp_path / "raw")
    assert "holds 0 .gguf files" in error and str(package) in error
    to_gguf.write(model_dir, package / "weights.gguf", "f16")
    assert command(monkeypatch, "some-model", tmp_path / "raw", main=from_gguf.main) == 0
    assert "rounded to 16 bits" in capsys.readouterr().out
    assert Tokenizer(tmp_path / "raw").kind == "sentencepiece"
    to_gguf.write(model_dir, package / "other.gguf", "f16")
    assert "2 .gguf files" in refused(monkeypatch, capsys, tmp_path, "some_model", tmp_path / "again")
    assert "no_such_model" in refused(monkeypatch, capsys, tmp_path, "no_such_model", tmp_path / "again")
    assert "no/such.gguf" in refused(monkeypatch, capsys, tmp_path, "no/such.gguf", tmp_path / "again")


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    to_gguf.write(raw_model(tmp_path / "raw"), tmp_path / "model.gguf", "f32")
    for package in ("tokenizers", "gguf"):
        monkeypatch.setitem(sys.modules, package, None)
        error = refused(monkeypatch, capsys, tmp_path, tmp_path / "model.gguf", tmp_path / "new")
        assert f"pip install {package}" in error
    error = refused(monkeypatch, capsys, tmp_path, tmp_path / "raw", tmp_path / "new.gguf", main=to_gguf.main)
    assert "pip install gguf" in error


def test_nothing_is_ever_replaced(tmp_path, model_dir, monkeypatch, capsys):
    convert_hf.write(model_dir, tmp_path / "hf")
    to_gguf.write(model_dir, tmp_path / "model.gguf", "f32")
    (tmp_path / "file").write_text("precious")
    for taken in (tmp_path / "hf", tmp_path / "file"):
        for main, *arguments in ((from_gguf.main, tmp_path / "model.gguf"),
                                 (convert_hf.main, tmp_path / "hf"),
                                 (convert_hf.main, "--out", model_dir), (to_gguf.main, model_dir)):
            error = refused(monkeypatch, capsys, tmp_path, *arguments, taken, main=main)
            assert "exists already" in error and str(taken) in error
    (tmp_path / "empty").mkdir()
    assert command(monkeypatch, tmp_path / "model.gguf", tmp_path / "empty", main=from_gguf.main) == 0
    error = refused(monkeypatch, capsys, tmp_path, model_dir, tmp_path / "no/model.gguf", main=to_gguf.main)
    assert str(tmp_path / "no") in error


def test_a_full_disk_leaves_nothing_behind(tmp_path, model_dir, monkeypatch, capsys):
    convert_hf.write(model_dir, tmp_path / "hf")
    to_gguf.write(model_dir, tmp_path / "model.gguf", "f32")
    for main, *arguments in ((from_gguf.main, tmp_path / "model.gguf", tmp_path / "new/raw"),
                             (convert_hf.main, tmp_path / "hf", tmp_path / "new/raw"),
                             (convert_hf.main, "--out", model_dir, tmp_path / "new/hf"),
                             (to_gguf.main, model_dir, tmp_path / "new.gguf")):
        with files_of_at_most(30_000):
            error = refused(monkeypatch, capsys, tmp_path, *arguments, main=main)
        assert "cannot be written" in error and str(arguments[-1]) in error


def test_a_chat_template_goes_along_unread(tmp_path):
    raw = raw_model(tmp_path / "raw", chat_template="{% for %}")
    there_and_back(raw, tmp_path)
    assert read(tmp_path / "model.gguf")[0]["tokenizer.chat_template"] == "{% for %}"
    (raw / "chat_template.jinja").write_text("{{ newer }}")
    to_gguf.write(raw, tmp_path / "newer.gguf", "f32")
    assert read(tmp_path / "newer.gguf")[0]["tokenizer.chat_template"] == "{{ newer }}"


def test_embeddings_without_a_token_are_unused(tmp_path):
    write_tokenizer(tmp_path / "raw")
    llama.save(random_model(lora=False, vocab_size=384), tmp_path / "raw", tmp_path / "raw")
    there_and_back(tmp_path / "raw", tmp_path)
    assert read(tmp_path / "model.gguf")[0]["tokenizer.ggml.token_type"][318:321] == [1, 4, 5]
    ours, theirs = assert_same_tokenizer(tmp_path / "raw", tmp_path / "again")
    assert ours.size == theirs.size == 320
