"""Tokenizers that come as `tokenizer.json`: transformers' ids, here and in the folder we export."""
import json
import random
import sys

import pytest
from conftest import command, content, random_model, sentences

import llama
from data import InputError, Tokenizer
from scripts import convert_hf

WORDS = {  # a \p{N} of LLaMA-3 takes up to three digits, one of Qwen2 one
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                 r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
             r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SCRIPTS = [(0x20, 0x7e), (0xa0, 0x24f), (0x300, 0x36f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0xdff),
           (0xe00, 0x10ff), (0x1200, 0x137f), (0x2000, 0x2bff), (0x3040, 0x30ff), (0x4e00, 0x9fff),
           (0xac00, 0xd7a3), (0x1d400, 0x1d7ff), (0x1f300, 0x1faff), (0x20000, 0x2a6df), (1, 0x1f)]
PIECES = [*SPECIAL, " ", "  ", "\n", "\r\n", "\t", "don't", "IT'S", "1,234.50", "\u00bd", "\u0663", "\u2167",
          "\u00a0", "\u3000", "e\u0301", "\ufeff", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "<s>",
          "</s>", "[INST]", "<0x0A>", " the lessee", "The bank shall pay"]


def texts(n: int = 1000) -> list[str]:
    """Of every script, of what looks like special tokens, and of all kinds of space."""
    rng, made = random.Random(0), []
    for _ in range(n):
        parts = []
        for _ in range(rng.randint(1, 12)):
            low, high = rng.choice(SCRIPTS)
            letters = "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))
            parts.append(rng.choice([letters, rng.choice(PIECES)]) + rng.choice(["", "", " "]))
        made.append("".join(parts))
    return made


def write_tokenizer(folder, pre="smollm", bos=None, special=SPECIAL, change=None, **config):
    """tokenizer.json (byte pairs, 320 tokens, " lessee" found before all others) and the configs beside it,
    as a Hugging Face directory has them."""
    made = pytest.importorskip("tokenizers")
    cut = made.pre_tokenizers
    steps = {"gpt-2": [], "smollm": [cut.Digits(individual_digits=True)]}.get(pre)
    if steps is None:
        steps = [cut.Split(made.Regex(WORDS[pre]), "isolated")]
    tokenizer = made.Tokenizer(made.models.BPE(ignore_merges=pre == "llama-bpe"))
    steps.append(cut.ByteLevel(add_prefix_space=False, use_regex=pre not in WORDS))
    tokenizer.pre_tokenizer = cut.Sequence(steps)
    tokenizer.decoder = made.decoders.ByteLevel()
    tokenizer.train_from_iterator(sentences(300, 1), made.trainers.BpeTrainer(
        vocab_size=319, special_tokens=special, initial_alphabet=cut.ByteLevel.alphabet(),
        show_progress=False))
    tokenizer.add_tokens([made.AddedToken(" lessee", normalized=False)])
    if bos:
        tokenizer.post_processor = made.processors.TemplateProcessing(
            f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    if change:
        change(tokenizer, made)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>",
         "chat_template": "{{ messages }}"} | config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "temperature": 0.2}))


def raw_model(folder, **tokenizer):
    """A random model in the raw format, with such a tokenizer."""
    write_tokenizer(folder, **tokenizer)
    llama.save(random_model(lora=False, max_seq_len=512), folder, folder)
    return folder


def assert_as_in_transformers(raw, exported):
    transformers = pytest.importorskip("transformers")
    convert_hf.write(raw, exported)
    ours, some = Tokenizer(raw), texts()
    came = transformers.PreTrainedTokenizerFast.from_pretrained(raw)
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    ids = ours.encode(some)
    assert came(some, split_special_tokens=True, add_special_tokens=False)["input_ids"] == ids
    assert theirs(some, split_special_tokens=True)["input_ids"] == [[ours.bos, *row] for row in ids]
    assert [theirs.decode(row) for row in ids] == [ours.decode(row) for row in ids]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos, ours.eos)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_ids_are_those_of_transformers(tmp_path, pre):
    raw = raw_model(tmp_path / "raw", pre=pre, tokenizer_class="LlamaTokenizerFast")
    assert_as_in_transformers(raw, tmp_path / "hf")
    tokenizer, some = Tokenizer(raw), texts()
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(some)] == some  # all bytes have a token
    assert not {0, 1, 2} & {i for ids in tokenizer.encode(some) for i in ids}  # text forges no special token


@pytest.mark.parametrize("bos, special, expected", [
    ("<|im_start|>", SPECIAL, "<|im_start|>"), (None, SPECIAL, "<|endoftext|>"),
    (None, SPECIAL[1:], "<|im_end|>")], ids=["its own", "endoftext", "EOS"])
def test_bos_is_the_tokenizers_own_or_endoftext_or_eos_and_exports_say_so(tmp_path, bos, special, expected):
    raw = raw_model(tmp_path / "raw", bos=bos, special=special, add_bos_token=False)
    tokenizer = Tokenizer(raw)
    assert tokenizer.model.id_to_token(tokenizer.bos) == expected
    convert_hf.write(raw, tmp_path / "hf")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = [tokenizer.bos, *tokenizer.encode(["The bank"])[0]]
    assert theirs("The bank")["input_ids"] == ids and theirs.bos_token == expected
    assert json.loads((tmp_path / "hf/tokenizer_config.json").read_text())["add_bos_token"]
    bare = type(tokenizer.model).from_file(str(tmp_path / "hf/tokenizer.json"))  # what other engines read
    assert bare.encode("The bank").ids == ids


def test_a_directory_comes_in_and_goes_out_whole(tmp_path):
    """Tokenizer, chat template, what ends generation, context length."""
    convert_hf.write(raw_model(tmp_path / "made", bos="<|endoftext|>"), tmp_path / "hf")
    (tmp_path / "hf/chat_template.jinja").write_text("{{ messages[0] }}")
    convert_hf.convert(tmp_path / "hf", tmp_path / "raw")
    assert llama.load(tmp_path / "raw").config.max_seq_len == 512
    convert_hf.write(tmp_path / "raw", tmp_path / "out")
    came, went = content(tmp_path / "hf"), content(tmp_path / "out")
    came, went = ({path.name: data for path, data in files.items()} for files in (came, went))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
                 "config.json"):
        assert came[name] == went[name], name
    generation = {"eos_token_id": [2, 0], "bos_token_id": 0, "temperature": 0.2}
    assert json.loads(went["generation_config.json"]) == generation
    assert json.loads(went["config.json"])["max_position_embeddings"] == 512
    assert Tokenizer(tmp_path / "raw").stop == {0, 2}
    (tmp_path / "raw/generation_config.json").write_text("{}")
    assert Tokenizer(tmp_path / "raw").stop == {2}


def test_a_chat_template_that_fails_fails_only_where_it_is_rendered(tmp_path):
    raw = raw_model(tmp_path / "raw", chat_template="{% for %}")
    transformers = pytest.importorskip("transformers")
    convert_hf.write(raw, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("The bank")["input_ids"][0] == theirs.bos_token_id
    with pytest.raises(Exception, match="[Ee]xpected"):
        theirs.apply_chat_template([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("damage, says", [
    (lambda path: path.write_text("{}"), "tokenizer.json"),
    (lambda path: path.write_bytes(path.read_bytes()[:5000]), "tokenizer.json"),
    (lambda path: path.write_bytes(b"\xff\x00"), "tokenizer.json"),
    (lambda path: path.unlink(), "tokenizer.model"),
    (lambda path: path.with_name("tokenizer_config.json").write_text("{}"), "eos_token"),
    (lambda path: path.with_name("tokenizer_config.json").write_text('{"eos_token": "<|nope|>"}'), "EOS"),
    (lambda path: path.with_name("tokenizer_config.json").write_text("["), "tokenizer.json")],
    ids=["empty", "truncated", "not text", "missing", "no EOS", "unknown EOS", "config"])
def test_what_is_not_a_tokenizer_is_refused(tmp_path, monkeypatch, capsys, damage, says):
    convert_hf.write(raw_model(tmp_path / "made"), tmp_path / "hf")
    damage(tmp_path / "hf/tokenizer.json")
    before = content(tmp_path)
    assert command(monkeypatch, tmp_path / "hf", tmp_path / "new/raw", main=convert_hf.main) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert content(tmp_path) == before and not (tmp_path / "new").exists()


def test_the_missing_package_is_named(tmp_path, monkeypatch, capsys):
    convert_hf.write(raw_model(tmp_path / "made"), tmp_path / "hf")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert command(monkeypatch, tmp_path / "hf", tmp_path / "raw", main=convert_hf.main) == 2
    assert "pip install tokenizers" in capsys.readouterr().err and not (tmp_path / "raw").exists()
    with pytest.raises(InputError, match="pip install tokenizers"):
        Tokenizer(tmp_path / "made")
