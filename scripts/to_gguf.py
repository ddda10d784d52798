"""A model directory, dense or pruned, as a GGUF file for llama.cpp, Ollama and LM Studio.

    pip install gguf
    python scripts/to_gguf.py out/legal/pruned legal.gguf --type f16

Layers of equal size are written as architecture `llama`. Layers that differ in heads and FFN units (space
`heads`) are written as `deci`, which llama.cpp runs with LLaMA's graph and each layer's own sizes. Cut head
dimensions (space `dims`) fit neither; their zeros are put back: such a file is no smaller in its attention.
"""
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import llama  # noqa: E402
from data import InputError, Tokenizer, need, write_atomic  # noqa: E402
from scripts.convert_hf import context_length, read_json, whole_heads  # noqa: E402
from scripts.other_tokenizers import LLAMA3_WORDS  # noqa: E402

NAMES = {"attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v",
         "attention.wo": "attn_output", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
         "feed_forward.w3": "ffn_up", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
OUTER = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight",
         "output.weight": "output.weight"}


def gguf_name(name: str) -> str:
    """layers.3.attention.wq.weight -> blk.3.attn_q.weight"""
    if name in OUTER:
        return OUTER[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


# -------------------------------------------------------------------------------------------------- tokenizer

def words(regex: str) -> list[dict]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return [split, GPT2 | {"use_regex": False}]


# How a byte-pair tokenizer cuts text into words: llama.cpp's name for it, and the steps in a tokenizer.json.
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE = {"gpt-2": [GPT2], "smollm": [{"type": "Digits", "individual_digits": True}, GPT2],
       "llama-bpe": words(LLAMA3_WORDS), "qwen2": words(LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}"))}
ODD = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")  # in none


def pre_tokenizer(theirs: dict, path: Path) -> str:
    """llama.cpp's name for what a `tokenizer.json` does to a text. Raises InputError if it has none."""
    cut, model, normalizer = theirs["pre_tokenizer"] or {}, theirs["model"], theirs["normalizer"]
    steps = [step | {"trim_offsets": True} if "trim_offsets" in step else step  # which changes no id
             for step in cut.get("pretokenizers", [cut])]
    for name, known in PRE.items():
        same = steps == known and model["type"] == "BPE" and not any(map(model.get, ODD))
        normal = normalizer is None or (name == "qwen2" and normalizer == {"type": "NFC"})
        if same and normal and model["ignore_merges"] == (name == "llama-bpe"):
            return name
    kinds = [str((part or {}).get("type")) for part in (normalizer, *steps, model)]
    raise InputError(f"{path}: llama.cpp has no name that we know for such a tokenizer ({', '.join(kinds)}); "
                     f"expected byte pairs of words as in {', '.join(PRE)}")


def json_vocabulary(tokenizer: Tokenizer, kinds) -> tuple:
    """{id: (token, type)}, merges and pre-tokenizer of a `tokenizer.json`."""
    theirs = json.loads(tokenizer.model.to_str())
    added = {token["id"]: kinds.CONTROL if token["special"] else kinds.USER_DEFINED
             for token in theirs["added_tokens"]}
    tokens = {i: (token, added.get(i, kinds.NORMAL)) for token, i in tokenizer.model.get_vocab().items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in theirs["model"]["merges"]]
    return tokens, merges, pre_tokenizer(theirs, tokenizer.path)


def tiktoken_vocabulary(tokenizer: Tokenizer, kinds) -> tuple:
    """The same of LLaMA-3's file, which has ranks for merges."""
    ranks, letters = tokenizer.model._mergeable_ranks, byte_letters()
    spell = lambda token: "".join(letters[byte] for byte in token)  # noqa: E731
    tokens = {i: (spell(token), kinds.NORMAL) for token, i in ranks.items()}
    tokens |= {i: (name, kinds.CONTROL) for name, i in tokenizer.model._special_tokens.items()}
    merges = [" ".join(map(spell, last_merge(ranks, token))) for token in ranks if len(token) > 1]
    return tokens, merges, "llama-bpe"


def sentencepiece_type(model, i: int, kinds):
    return (kinds.UNKNOWN if model.is_unknown(i) else kinds.CONTROL if model.is_control(i) else
            kinds.BYTE if model.is_byte(i) else kinds.UNUSED if model.is_unused(i) else kinds.NORMAL)


def byte_letters() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others as letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def last_merge(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two parts that merge into `token`, found by merging its bytes in the order of the lower ranks."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [(ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1)]
        _, i = min(candidates)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def add_tokenizer(writer, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Tokens with types and scores (SentencePiece) or merges; BOS, what ends generation, chat template."""
    from gguf import TokenType as kinds
    if tokenizer.kind == "sentencepiece":
        model = tokenizer.model
        ids = range(tokenizer.size)
        found = {i: (model.id_to_piece(i), sentencepiece_type(model, i, kinds)) for i in ids}
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([model.get_score(i) if i in found else -1e4 for i in range(vocab_size)])
        writer.add_unk_token_id(model.unk_id())
        writer.add_add_space_prefix(not tokenizer.space)
    else:
        vocabulary = json_vocabulary if tokenizer.kind == "json" else tiktoken_vocabulary
        found, merges, pre = vocabulary(tokenizer, kinds)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
    tokens, types = zip(*(found.get(i, (f"[PAD{i}]", kinds.UNUSED)) for i in range(vocab_size)))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.eos)
    for i in sorted(tokenizer.stop - {tokenizer.eos})[:1]:  # room for one more; llama.cpp knows many by name
        writer.add_eot_token_id(i)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    beside = tokenizer.path.parent
    template = read_json(beside / "tokenizer_config.json", {}).get("chat_template")
    if (beside / "chat_template.jinja").exists():
        template = (beside / "chat_template.jinja").read_text()
    if template:
        writer.add_chat_template(template)


# ------------------------------------------------------------------------------------------------------- file

def write(source: Path, target: Path, kind: str) -> str:
    """Writes the GGUF file; returns its architecture. Raises InputError."""
    gguf = need("gguf", "to_gguf.py")
    if target.exists() or not target.parent.is_dir():
        raise InputError(f"{target}: " + ("exists already; name a new file" if target.exists() else
                                          "its folder does not exist; make it first"))
    model, tokenizer = llama.load(source), Tokenizer(source)
    config, layers = model.config, model.config.layers
    tokenizer.check(config.vocab_size)
    shapes = [(size.n_heads, size.n_kv_heads, size.hidden_dim) for size in layers]
    uniform = len(set(shapes)) == 1
    arch = "llama" if uniform else "deci"
    quantized = None if kind == "f32" else gguf.GGMLQuantizationType[kind.upper()]
    writer = gguf.GGUFWriter(None, arch)
    column = (lambda i: shapes[0][i]) if uniform else (lambda i: [shape[i] for shape in shapes])
    writer.add_name(source.resolve().parent.name)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(column(2))
    writer.add_head_count(column(0))
    writer.add_head_count_kv(column(1))
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    add_tokenizer(writer, tokenizer, config.vocab_size)
    if config.use_scaled_rope:  # llama.cpp divides each pair's frequency by this
        writer.add_tensor("rope_freqs.weight", rope_factors(config).numpy())
    fallbacks = 0
    for name, p in model.named_parameters():
        array = whole_heads(model, name, p.detach().float()).contiguous().numpy()
        as_type = quantized if p.dim() == 2 else None
        if as_type == gguf.GGMLQuantizationType.Q8_0 and array.shape[1] % 32:
            as_type, fallbacks = gguf.GGMLQuantizationType.F16, fallbacks + 1
        if as_type is not None:
            array = gguf.quants.quantize(np.ascontiguousarray(array), as_type)
        writer.add_tensor(gguf_name(name), array, raw_dtype=as_type)

    def save(file):
        writer.write_header_to_file(Path(file.name))  # opens it once more
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomic(target, save)
    if fallbacks:
        print(f"{fallbacks} tensors stay f16: q8_0 needs sizes in multiples of 32 (train with --round-to 32)")
    return arch


def rope_factors(config: llama.LlamaConfig):
    """By what LLaMA-3.1's stretching divides each rotary pair's frequency, [head_dim / 2]."""
    plain = llama.rotary_frequencies(dataclasses.replace(config, use_scaled_rope=False))
    return plain / llama.rotary_frequencies(config)


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("file", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=["f32", "f16", "bf16", "q8_0"], default="f16")
    args = parser.parse_args()
    arch = write(args.model, args.file, args.type)
    print(f"{args.file}: architecture {arch}, {args.file.stat().st_size / 1e6:,.1f} MB; "
          f"next: llama-cli -m {args.file} -p \"...\"")


if __name__ == "__main__":
    data.command(main)
