"""A model directory, dense or pruned, as a GGUF file for llama.cpp, Ollama and LM Studio.

    pip install gguf
    python scripts/to_gguf.py out/legal/pruned legal.gguf --type f16

Layers of equal size are written as architecture `llama`. Layers that differ in heads and FFN units (space `heads`)
are written as `deci`, which llama.cpp runs with LLaMA's graph and sizes of each layer's own. Cut head dimensions
(space `dims`) fit neither; their zeros are put back, so such a file is no smaller in its attention.
"""
import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import llama  # noqa: E402
from llama import InputError, Llama, Tokenizer  # noqa: E402
from scripts.convert_hf import padded  # noqa: E402

NAMES = {"attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v", "attention.wo": "attn_output",
         "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up",
         "attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
OUTER = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "output.weight": "output.weight"}


def gguf_name(name: str) -> str:
    """layers.3.attention.wq.weight -> blk.3.attn_q.weight"""
    if name in OUTER:
        return OUTER[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def whole_heads(model: Llama, name: str, weight: torch.Tensor) -> torch.Tensor:
    """`weight` with cut head dimensions put back as zeros: engines know whole heads of head_dim only."""
    part = name.split(".")[-2]
    if part not in ("wq", "wk", "wv", "wo"):
        return weight
    size, dim = model.config.layers[int(name.split(".")[1])], model.config.head_dim
    heads = size.n_heads if part in ("wq", "wo") else size.n_kv_heads
    pairs = size.rotary_pairs if size.rotary_pairs is not None else range(dim // 2)
    dims = [2 * pair + i for pair in pairs for i in (0, 1)] if part in ("wq", "wk") else None
    return padded(weight, 1 if part == "wo" else 0, heads, dims, heads, dim)


def add_tokenizer(writer, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Tokens, scores and types as llama.cpp's SentencePiece reads them, or LLaMA-3's byte pairs with their merges."""
    import gguf
    kinds = gguf.TokenType
    if tokenizer.is_sentencepiece:
        model = tokenizer.model
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        tokens = [model.id_to_piece(i).encode() for i in range(len(tokenizer))]
        scores = [model.get_score(i) for i in range(len(tokenizer))]
        types = [kinds.UNKNOWN if model.is_unknown(i) else kinds.CONTROL if model.is_control(i) else
                 kinds.BYTE if model.is_byte(i) else kinds.UNUSED if model.is_unused(i) else kinds.NORMAL
                 for i in range(len(tokenizer))]
        writer.add_unk_token_id(model.unk_id())
        writer.add_add_space_prefix(not tokenizer.space)
    else:
        ranks, encoding = tokenizer.model._mergeable_ranks, tokenizer.model
        letters = byte_letters()
        spell = lambda token: "".join(letters[byte] for byte in token)  # noqa: E731
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        names = {i: name for name, i in encoding._special_tokens.items()}
        by_rank = {rank: token for token, rank in ranks.items()}
        tokens = [spell(by_rank[i]) if i in by_rank else names[i] for i in range(len(tokenizer))]
        types = [kinds.NORMAL if i in by_rank else kinds.CONTROL for i in range(len(tokenizer))]
        scores = None
        writer.add_token_merges([" ".join(map(spell, last_merge(ranks, token))) for token in ranks if len(token) > 1])
    rest = vocab_size - len(tokens)  # embeddings without a token
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(rest)])
    writer.add_token_types(types + [kinds.UNUSED] * rest)
    if scores is not None:
        writer.add_token_scores(scores + [-1e4] * rest)
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.eos)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def byte_letters() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others as letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def last_merge(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two parts that merge into `token`, found by merging its bytes in the order of the ranks before its own."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [(ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1)]
        _, i = min(candidates)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def write(source: Path, target: Path, kind: str) -> str:
    """Writes the GGUF file; returns its architecture. Raises InputError."""
    try:
        import gguf
    except ImportError:
        raise InputError("to_gguf.py needs one more package: pip install gguf") from None
    model, tokenizer = llama.load(source), Tokenizer(source / "tokenizer.model")
    config, layers = model.config, model.config.layers
    tokenizer.check(config)
    shapes = [(size.n_heads, size.n_kv_heads, size.hidden_dim) for size in layers]
    uniform = len(set(shapes)) == 1
    arch = "llama" if uniform else "deci"
    quantized = {"f32": None, "f16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16,
                 "q8_0": gguf.GGMLQuantizationType.Q8_0}[kind]
    beside = target.with_name(target.name + ".tmp")
    writer = gguf.GGUFWriter(beside, arch)
    column = (lambda i: shapes[0][i]) if uniform else (lambda i: [shape[i] for shape in shapes])
    writer.add_name(source.resolve().parent.name)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(131072 if config.use_scaled_rope else 4096)
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
    writer.add_file_type({"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16,
                          "bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind])
    add_tokenizer(writer, tokenizer, config.vocab_size)
    if config.use_scaled_rope:  # llama.cpp divides each pair's frequency by this
        plain = llama.rotary_frequencies(dataclasses.replace(config, use_scaled_rope=False))
        writer.add_tensor("rope_freqs.weight", (plain / llama.rotary_frequencies(config)).numpy())
    fallbacks = 0
    for name, p in model.named_parameters():
        array = whole_heads(model, name, p.detach().float()).contiguous().numpy()
        as_type = quantized if p.dim() == 2 else None
        if as_type == gguf.GGMLQuantizationType.Q8_0 and array.shape[1] % 32:
            as_type, fallbacks = gguf.GGMLQuantizationType.F16, fallbacks + 1
        if as_type is not None:
            array = gguf.quants.quantize(np.ascontiguousarray(array), as_type)
        writer.add_tensor(gguf_name(name), array, raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.replace(target)
    if fallbacks:
        print(f"{fallbacks} tensors stay f16: q8_0 needs sizes that are multiples of 32 (train with --round-to 32)")
    return arch


def main() -> None:
    parser = llama.Parser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("file", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=["f32", "f16", "bf16", "q8_0"], default="f16")
    args = parser.parse_args()
    arch = write(args.model, args.file, args.type)
    print(f"{args.file}: architecture {arch}, {args.file.stat().st_size / 1e6:,.1f} MB; "
          f"next: llama-cli -m {args.file} -p \"...\"")


if __name__ == "__main__":
    llama.command(main)
