"""Between Hugging Face's LLaMA directories and the raw format, without importing transformers.

    python scripts/convert_hf.py TinyLlama-1.1B/ models/tinyllama       # in: for train.py --model models/tinyllama
    python export.py out/legal --hf out/legal-hf                        # out: calls `write` below

In: LLaMA, TinyLlama, Mistral, SmolLM2, Llama-3.x and whatever else has their architecture; weights from
`pytorch_model*.bin`, or from `*.safetensors` if that package is installed. What a config asks for and our LLaMA has
not is refused by name. Out: a MistralForCausalLM (LLaMA's architecture, with a free number of heads), which stock
transformers loads; layers of unequal size are padded with zeros to the largest, which changes no logit.
"""
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import llama  # noqa: E402
from llama import InputError, LayerSize, Llama, LlamaConfig, write_atomic, write_json  # noqa: E402

NAMES = {  # ours -> theirs; in a layer, and outside
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def hf_name(name: str) -> str:
    """layers.3.attention.wq.weight -> model.layers.3.self_attn.q_proj.weight"""
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        return f"model.layers.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return NAMES[name.removesuffix(".weight")] + ".weight"


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k weight from HF's order (all first halves of the rotary pairs, then all second) to pairs."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def deinterleave(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `interleave`."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


# --------------------------------------------------------------------------------------------------------- in

def read_config(path: Path) -> LlamaConfig:
    """`config.json` as a LlamaConfig. Raises InputError, by name, for what our LLaMA does not have."""
    try:
        c = json.loads(path.read_text())
        assert isinstance(c, dict)
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise InputError(f"{path}: not a readable config.json ({llama.first_line(error)})") from None
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    wanted = {"model_type": {"llama", "mistral"}, "hidden_act": {"silu"}, "attention_bias": {False},
              "mlp_bias": {False}, "sliding_window": {None}, "partial_rotary_factor": {1, 1.0}}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        wanted |= {"low_freq_factor": {1, 1.0}, "high_freq_factor": {4, 4.0}, "original_max_position_embeddings": {8192}}
    for key, values in wanted.items():
        value = c.get(key, rope.get(key, next(iter(values))))
        if isinstance(value, (dict, list)) or value not in values:
            raise InputError(f"{path}: {key} is {json.dumps(value)}, which this LLaMA does not have"
                             + ("; if rows stay shorter than that, set it to null" if key == "sliding_window" else ""))
    for key in ("quantization_config", "num_local_experts", "num_experts"):
        if c.get(key):
            raise InputError(f"{path}: {key} is set; expected a plain dense model, not quantized and no experts")
    if kind not in ("default", "llama3"):
        raise InputError(f"{path}: rope type {kind!r}; this LLaMA has the plain one and llama3's")
    try:
        heads, kv = c["num_attention_heads"], c.get("num_key_value_heads") or c["num_attention_heads"]
        head_dim = c.get("head_dim") or c["hidden_size"] // heads
        size = dict(n_heads=heads, n_kv_heads=kv, qk_dim=head_dim, v_dim=head_dim, hidden_dim=c["intermediate_size"])
        layers = [llama.build(LayerSize, size) for _ in range(c["num_hidden_layers"])]
        config = llama.build(LlamaConfig, dict(
            dim=c["hidden_size"], n_layers=c["num_hidden_layers"], n_heads=heads, n_kv_heads=kv, head_dim=head_dim,
            vocab_size=c["vocab_size"], norm_eps=c.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", c.get("rope_theta", 10000.0)), use_scaled_rope=kind == "llama3",
            rope_scaling_factor=rope.get("factor", 8.0) if kind == "llama3" else 8.0, layers=layers))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{path}: {type(error).__name__}: {llama.first_line(error)}; expected a LLaMA's config") from None
    return config


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory by their HF names, memory-mapped. Raises InputError."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        load_file = None
    for whole in ("model.safetensors", "pytorch_model.bin"):
        stem, suffix = whole.split(".")
        paths, index = sorted(directory.glob(f"{stem}*.{suffix}")), directory / f"{whole}.index.json"
        if paths and (suffix == "bin" or load_file):
            break
    else:
        if list(directory.glob("model*.safetensors")):
            raise InputError(f"{directory}: its weights are .safetensors files; pip install safetensors")
        raise InputError(f"{directory}: no pytorch_model*.bin and no model*.safetensors")
    if len(paths) > 1 or index.exists():
        try:
            names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index}: not a readable index of the weight files beside it") from None
        for name in sorted(names):  # names only, never paths: a shard lies in the folder or nowhere
            if Path(name).name != name or not (directory / name).is_file():
                raise InputError(f"{index}: names {name[:80]!r}, which is not a file in this folder")
        paths = [directory / name for name in sorted(names)]
    state = {}
    for path in paths:
        try:
            state |= llama.read_tensors(path, mmap=True) if suffix == "bin" else load_file(path)
        except InputError:
            raise
        except Exception as error:  # safetensors raises a class of its own
            raise InputError(f"{path}: not readable ({llama.first_line(error)})") from None
    return state


def convert(source: Path, target: Path) -> None:
    """Writes the HF directory `source` as the raw model directory `target`. Raises InputError."""
    config, theirs = read_config(source / "config.json"), read_weights(source)
    tied = "lm_head.weight" not in theirs
    with torch.device("meta"):
        expected = {name: p.shape for name, p in Llama(config, tied).named_parameters()}
    state = {}
    for name, shape in expected.items():
        weight = theirs.pop(hf_name(name), None)
        if not isinstance(weight, Tensor) or weight.shape != shape or not weight.is_floating_point():
            found = "missing" if weight is None else f"{tuple(getattr(weight, 'shape', ()))} {getattr(weight, 'dtype', '')}"
            raise InputError(f"{source}: tensor {hf_name(name)} is {found}, config.json wants {tuple(shape)}")
        if name.endswith(("wq.weight", "wk.weight")):
            weight = interleave(weight, config.n_heads if "wq" in name else config.n_kv_heads)
        state[name] = weight
    left = [name for name in theirs if not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise InputError(f"{source}: tensor {left[0]} is not part of this LLaMA ({len(left)} such)")
    target.mkdir(parents=True, exist_ok=True)
    write_atomic(target / "consolidated.00.pth", lambda file: torch.save(state, file))
    for tokenizer in (source / "tokenizer.model", source / "original" / "tokenizer.model"):
        if tokenizer.exists():
            shutil.copyfile(tokenizer, target / "tokenizer.model")
            break
    else:
        print(f"no tokenizer.model in {source}: copy the model's SentencePiece or tiktoken one to {target}")
    write_json(target / "params.json", dataclasses.asdict(config))


# -------------------------------------------------------------------------------------------------------- out

def padded(weight: Tensor, axis: int, heads: int, dims: list[int] | None, new_heads: int, new_dim: int) -> Tensor:
    """`weight` with `heads` x len(dims) indices along `axis` spread to `new_heads` x `new_dim`, zeros elsewhere.

    `dims` says where a head's dimensions go in the wider head (None: at its beginning)."""
    weight = weight.movedim(axis, 0).unflatten(0, (heads, -1))  # heads dims other
    places = torch.arange(weight.shape[1]) if dims is None else torch.tensor(dims)
    wide = weight.new_zeros(new_heads, new_dim, weight.shape[-1])
    wide[:heads, places] = weight
    return wide.flatten(0, 1).movedim(0, axis)


def hf_state(model: Llama) -> tuple[dict[str, Tensor], LayerSize]:
    """The model's tensors under HF names, every layer padded with zeros to the size returned.

    A zero in q, k or v leaves scores and values as they are, and what a zero hidden unit or a zero head says goes
    nowhere; so no logit changes. Cut rotary pairs go back to their places, as HF knows only whole heads."""
    config, layers = model.config, model.config.layers
    if len({size.n_heads // size.n_kv_heads for size in layers}) > 1:
        raise InputError("layers differ in how many query heads share a key/value head; Hugging Face has one number")
    big = LayerSize(*(max(getattr(size, name) for size in layers) for name in ("n_heads", "n_kv_heads")),
                    config.head_dim, config.head_dim, max(size.hidden_dim for size in layers))
    state = {}
    for name, p in model.named_parameters():
        weight, part = p.detach(), name.split(".")[-2]
        if name.startswith("layers.") and p.dim() == 2:
            size = layers[int(name.split(".")[1])]
            pairs = size.rotary_pairs if size.rotary_pairs is not None else range(config.head_dim // 2)
            dims = [2 * pair + i for pair in pairs for i in (0, 1)]
            if part in ("wq", "wk"):
                heads, room = (size.n_heads, big.n_heads) if part == "wq" else (size.n_kv_heads, big.n_kv_heads)
                weight = deinterleave(padded(weight, 0, heads, dims, room, config.head_dim), room)
            elif part == "wv":
                weight = padded(weight, 0, size.n_kv_heads, None, big.n_kv_heads, config.head_dim)
            elif part == "wo":
                weight = padded(weight, 1, size.n_heads, None, big.n_heads, config.head_dim)
            else:
                weight = padded(weight, 1 if part == "w2" else 0, 1, None, 1, big.hidden_dim)
        state[hf_name(name)] = weight.contiguous()
    return state, big


def fast_tokenizer(tokenizer: llama.Tokenizer) -> dict:
    """A SentencePiece BPE model as `tokenizer.json`: spaces become \u2581, BOS goes first, other bytes fall back.

    SentencePiece merges what gives the highest-scoring piece, so pieces in the order of their scores, each with the
    pairs of pieces that make it up, are the list of merges."""
    model, ids = tokenizer.model, range(len(tokenizer))
    vocab = {model.id_to_piece(i): i for i in ids}
    plain = [i for i in ids if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))]
    merges = []
    for i in sorted(plain, key=lambda i: -model.get_score(i)):
        piece = model.id_to_piece(i)
        pairs = [(piece[:n], piece[n:]) for n in range(1, len(piece)) if piece[:n] in vocab and piece[n:] in vocab]
        merges += [f"{a} {b}" for a, b in sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    special = [{"id": i, "content": model.id_to_piece(i), "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i in ids if model.is_control(i) or model.is_unknown(i)]
    bos, prepend = model.id_to_piece(tokenizer.bos), [] if tokenizer.space else [{"type": "Prepend", "prepend": "\u2581"}]
    template = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0", "added_tokens": special, "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", "normalizers": prepend + [
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template + [
            {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos], "tokens": [bos]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": model.id_to_piece(model.unk_id()), "fuse_unk": True,
                  "byte_fallback": True, "vocab": vocab, "merges": merges}}


def write(model_dir: Path, target: Path) -> str:
    """Writes the raw model directory as a Hugging Face directory; returns what to tell the user. Raises InputError."""
    dtype = llama.stored_dtype(model_dir)
    model = llama.load(model_dir, dtype)
    state, size = hf_state(model)
    config, tokenizer = model.config, llama.Tokenizer(model_dir / "tokenizer.model")
    rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.use_scaled_rope:
        rope |= {"rope_type": "llama3", "factor": config.rope_scaling_factor, "low_freq_factor": 1.0,
                 "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    target.mkdir(parents=True, exist_ok=True)
    write_atomic(target / "pytorch_model.bin", lambda file: torch.save(state, file))
    write_json(target / "config.json", {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers, "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_kv_heads, "head_dim": config.head_dim, "intermediate_size": size.hidden_dim,
        "vocab_size": config.vocab_size, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
        "rope_parameters": rope, "rope_scaling": rope if config.use_scaled_rope else None, "hidden_act": "silu",
        "sliding_window": None, "tie_word_embeddings": model.output is None, "attention_bias": False,
        "max_position_embeddings": 131072 if config.use_scaled_rope else 4096,
        "torch_dtype": str(dtype).removeprefix("torch."), **ids})
    write_json(target / "generation_config.json", ids)
    write_atomic(target / "tokenizer.model", lambda file: file.write(tokenizer.path.read_bytes()))
    if tokenizer.is_sentencepiece:
        special = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "unk_token": tokenizer.model.unk_id()}
        special = {name: tokenizer.model.id_to_piece(i) for name, i in special.items()}
        write_json(target / "tokenizer.json", fast_tokenizer(tokenizer))
        write_json(target / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    params, total = llama.count_parameters(model), sum(weight.numel() for weight in state.values())
    cost = "" if total == params else (
        f"\nits layers differ in size, so they were padded with zeros to the largest: {total:,} parameters instead "
        f"of {params:,}; same logits, less speed-up. Trained with --uniform --space heads, nothing is padded")
    if not tokenizer.is_sentencepiece:
        cost += "\ncopy tokenizer.json and tokenizer_config.json there from the base model's Hugging Face directory"
    return f"{target}: {total:,} parameters for stock transformers (AutoModelForCausalLM){cost}"


def main() -> None:
    parser = llama.Parser(description="Convert a Hugging Face LLaMA directory to the raw format.")
    parser.add_argument("source", type=Path, help="directory with config.json and the weights")
    parser.add_argument("target", type=Path, help="model directory to write")
    args = parser.parse_args()
    if (args.target / "params.json").exists():
        raise InputError(f"{args.target}: holds a model already; name another directory")
    convert(args.source, args.target)
    print(f"{args.target}: written; next: python train.py --model {args.target} --data FILE.jsonl")


if __name__ == "__main__":
    llama.command(main)
