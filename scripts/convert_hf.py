"""Between Hugging Face's LLaMA directories and the raw format, without importing transformers.

    python scripts/convert_hf.py TinyLlama-1.1B/ models/tinyllama     # in, for train.py --model
    python scripts/convert_hf.py --out out/legal/pruned out/legal-hf  # out; also export.py RUN --hf DIR

In: LLaMA, TinyLlama, Mistral, SmolLM2, Llama-3.x and whatever else has their architecture; weights from
`pytorch_model*.bin`, or from `*.safetensors` if that package is installed. What a config asks for and our
LLaMA has not is refused by name. Out: a MistralForCausalLM (LLaMA's architecture, with a free number of
heads), which stock transformers loads; layers of unequal size are padded with zeros to the largest, which
changes no logit. Tokenizer, chat template, the ids that end generation and context length go both ways.
"""
import dataclasses
import json
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import llama  # noqa: E402
from data import InputError, Tokenizer, first_line, regular, write_atomic, write_json  # noqa: E402
from llama import LayerSize, Llama, LlamaConfig  # noqa: E402

NAMES = {  # ours -> theirs; in a layer, and outside
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def hf_name(name: str) -> str:
    """layers.3.attention.wq.weight -> model.layers.3.self_attn.q_proj.weight"""
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        return f"model.layers.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return NAMES[name.removesuffix(".weight")] + ".weight"


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k weight from HF's order (first halves of all rotary pairs, then second) to pairs."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def deinterleave(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `interleave`."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


# ------------------------------------------------------------------------------------------------- both ways

@contextmanager
def new_directory(target: Path):
    """Gives a folder to fill, which is `target` in the end; after an error nothing is left of it.

    Raises InputError if there is something at `target` already."""
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists already; name a new directory")
    home = next(folder for folder in target.absolute().parents if folder.exists())
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", suffix=".tmp", dir=home) as unfinished:
        folder = Path(unfinished) / target.name
        folder.mkdir()  # with the user's permissions, which a temporary directory has not
        try:
            yield folder
        except InputError as error:
            raise InputError(str(error).replace(str(folder), str(target))) from None
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, target)


def read_json(path: Path, otherwise: dict | None = None) -> dict:
    """A JSON object from a file, or `otherwise` if there is no file. Raises InputError."""
    if otherwise is not None and not path.exists():
        return otherwise
    try:
        content = json.loads(regular(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def context_length(config: LlamaConfig) -> int:
    """For formats that want one. Meta's params.json has none: LLaMA-2 has 4,096, LLaMA-3.1 131,072."""
    return config.max_seq_len or (131072 if config.use_scaled_rope else 4096)


# --------------------------------------------------------------------------------------------------------- in

def read_config(path: Path) -> LlamaConfig:
    """`config.json` as a LlamaConfig. Raises InputError, by name, for what our LLaMA does not have."""
    c = read_json(path)
    rope = next((c[key] for key in ("rope_parameters", "rope_scaling") if c.get(key) is not None), {})
    if not isinstance(rope, dict) or any(isinstance(value, (dict, list)) for value in rope.values()):
        raise InputError(f"{path}: its rotary parameters are {json.dumps(rope)[:80]}, not one object of numbers")
    wanted = {"model_type": {"llama", "mistral"}, "hidden_act": {"silu"}, "attention_bias": {False},
              "mlp_bias": {False}, "sliding_window": {None}, "partial_rotary_factor": {1, 1.0}}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        wanted |= {"low_freq_factor": {1, 1.0}, "high_freq_factor": {4, 4.0},
                   "original_max_position_embeddings": {8192}}
    for key, values in wanted.items():
        value = c.get(key, rope.get(key, next(iter(values))))
        if isinstance(value, (dict, list)) or value not in values:
            advice = "; if rows stay shorter than that, set it to null" if key == "sliding_window" else ""
            raise InputError(f"{path}: {key} is {json.dumps(value)}, which this LLaMA does not have{advice}")
    for key in ("quantization_config", "num_local_experts", "num_experts"):
        if c.get(key):
            raise InputError(f"{path}: {key} is set; expected a dense model, not quantized, without experts")
    if kind not in ("default", "llama3"):
        raise InputError(f"{path}: rope type {kind!r}; this LLaMA has the plain one and llama3's")
    try:
        heads, dim, n = c["num_attention_heads"], c["hidden_size"], c["num_hidden_layers"]
        kv, head_dim = c.get("num_key_value_heads") or heads, c.get("head_dim") or dim // heads
        size = LayerSize(heads, kv, head_dim, head_dim, c["intermediate_size"])
        config = LlamaConfig(
            dim=dim, n_layers=n, n_heads=heads, n_kv_heads=kv, head_dim=head_dim,
            layers=[dataclasses.replace(size) for _ in range(min(n, 1000))], vocab_size=c["vocab_size"],
            max_seq_len=c.get("max_position_embeddings"), norm_eps=c.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", c.get("rope_theta", 10000.0)),
            use_scaled_rope=kind == "llama3", rope_scaling_factor=rope["factor"] if kind == "llama3" else 8.0)
        with torch.device("meta"):
            Llama(config)
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{path}: not a LLaMA's config ({what})") from None
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
        listed = read_json(index).get("weight_map")
        names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        for name in names:  # names only, never paths: a shard lies in the folder or nowhere
            if Path(name).name != name or not (directory / name).is_file():
                raise InputError(f"{index}: names {name[:80]!r}, which is not a file in this folder")
        paths = [directory / name for name in names]
    state = {}
    for path in paths:
        try:
            state |= llama.read_tensors(path, mmap=True) if suffix == "bin" else load_file(regular(path))
        except InputError:
            raise
        except Exception as error:  # safetensors raises a class of its own
            raise InputError(f"{path}: not readable ({first_line(error)})") from None
    return state


def convert(source: Path, target: Path) -> None:
    """Writes the HF directory `source` as the raw model directory `target`. Raises InputError."""
    with new_directory(target) as folder:
        config = read_config(source / "config.json")
        Tokenizer(source).check(config.vocab_size)
        theirs, state = read_weights(source), {}
        with torch.device("meta"):
            model = Llama(config, tied="lm_head.weight" not in theirs)
        for name, p in model.named_parameters():
            weight = theirs.pop(hf_name(name), ...)
            found, wanted = llama.form(weight), list(p.shape)
            if not isinstance(weight, Tensor) or "float" not in found or list(weight.shape) != wanted:
                raise InputError(f"{source}: tensor {hf_name(name)} is {found}, config.json wants {wanted}, "
                                 "floating point")
            if name.endswith(("wq.weight", "wk.weight")):
                weight = interleave(weight, config.n_heads if "wq" in name else config.n_kv_heads)
            state[name] = weight
        left = [name for name in theirs if not name.endswith("rotary_emb.inv_freq")]
        if left:
            raise InputError(f"{source}: tensor {left[0]} is not part of this LLaMA ({len(left)} such)")
        model.load_state_dict(state, assign=True)
        llama.save(model, folder, source)


# -------------------------------------------------------------------------------------------------------- out

def whole_heads(model: Llama, name: str, weight: Tensor) -> Tensor:
    """`weight` with cut head dimensions put back as zeros: others know whole heads of head_dim only."""
    part, dim = name.split(".")[-2], model.config.head_dim
    if part not in ("wq", "wk", "wv", "wo"):
        return weight
    size, axis = model.config.layers[int(name.split(".")[1])], int(part == "wo")
    pairs = range(dim // 2) if size.rotary_pairs is None else size.rotary_pairs
    rotary = [2 * pair + i for pair in pairs for i in (0, 1)]
    places = rotary if part in ("wq", "wk") else list(range(size.v_dim))
    heads = weight.movedim(axis, 0).unflatten(0, (-1, len(places)))  # heads dims other
    wide = heads.new_zeros(len(heads), dim, heads.shape[-1])
    wide[:, places] = heads
    return wide.flatten(0, 1).movedim(0, axis)


def hf_state(model: Llama) -> tuple[dict[str, Tensor], LayerSize]:
    """The model's tensors under HF names, every layer padded with zeros to the size returned.

    A zero in q, k or v leaves scores and values as they are, and what a zero hidden unit or a zero head says
    goes nowhere; so no logit changes."""
    config, layers = model.config, model.config.layers
    if len({size.n_heads // size.n_kv_heads for size in layers}) > 1:
        raise InputError("layers differ in how many query heads share a key/value head; transformers has one")
    heads, kv = max(size.n_heads for size in layers), max(size.n_kv_heads for size in layers)
    big = LayerSize(heads, kv, config.head_dim, config.head_dim, max(size.hidden_dim for size in layers))
    with torch.device("meta"):
        wide = Llama(dataclasses.replace(config, layers=[big] * config.n_layers), tied=model.output is None)
    state = {}
    for (name, p), place in zip(model.named_parameters(), wide.parameters(), strict=True):
        weight = whole_heads(model, name, p.detach())
        missing = [room - had for room, had in zip(place.shape, weight.shape)]
        weight = F.pad(weight, [n for after in reversed(missing) for n in (0, after)])
        if name.endswith(("wq.weight", "wk.weight")):
            weight = deinterleave(weight, heads if "wq" in name else kv)
        state[hf_name(name)] = weight.contiguous()
    return state, big


def put_bos_first(theirs: dict, bos: str, i: int) -> dict:
    """A `tokenizer.json` whose post-processor puts the token `bos`, of id `i`, before every text."""
    text = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return theirs | {"post_processor": {
        "type": "TemplateProcessing", "single": text,
        "pair": [*text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [i], "tokens": [bos]}}}}


def added_token(i: int, content: str, special: bool) -> dict:
    """A `tokenizer.json`'s entry for a token that is found in the text as it is, and never made of others."""
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special}


def fast_tokenizer(tokenizer: Tokenizer) -> dict:
    """A SentencePiece BPE model as `tokenizer.json`: spaces become \u2581, BOS goes first, bytes fall back.

    SentencePiece merges what gives the highest-scoring piece, so pieces in the order of their scores, each
    with the pairs of pieces that make it up, are the list of merges."""
    model, ids = tokenizer.model, range(tokenizer.size)
    vocab = {model.id_to_piece(i): i for i in ids}
    plain = [i for i in ids if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))]
    merges = []
    for i in sorted(plain, key=lambda i: -model.get_score(i)):
        piece = model.id_to_piece(i)
        pairs = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += [f"{a} {b}" for a, b in sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    special = [i for i in ids if model.is_control(i) or model.is_unknown(i)]
    prepend = [] if tokenizer.space else [{"type": "Prepend", "prepend": "\u2581"}]
    return put_bos_first({
        "version": "1.0", "pre_tokenizer": None,
        "added_tokens": [added_token(i, model.id_to_piece(i), special=True) for i in special],
        "normalizer": {"type": "Sequence", "normalizers": prepend + [
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": model.id_to_piece(model.unk_id()), "fuse_unk": True,
                  "byte_fallback": True, "vocab": vocab, "merges": merges}},
        model.id_to_piece(tokenizer.bos), tokenizer.bos)


def write_tokenizer(tokenizer: Tokenizer, target: Path) -> None:
    """What transformers reads of a tokenizer: all that came with the model, with BOS, and the ids that end
    generation, as they are here. Raises InputError."""
    source, bos, special = tokenizer.path.parent, tokenizer.bos, {}
    for name in llama.BESIDE_WEIGHTS:
        if (source / name).exists():
            write_atomic(target / name, lambda file: file.write((source / name).read_bytes()))
    if tokenizer.kind == "json":
        name = tokenizer.model.id_to_token(bos)
        special = {"bos_token": name}
        if tokenizer.model.encode("").ids != [bos]:
            write_json(target / "tokenizer.json", put_bos_first(read_json(tokenizer.path), name, bos))
    elif tokenizer.kind == "sentencepiece" and not (source / "tokenizer.json").exists():
        ids = {"bos_token": bos, "eos_token": tokenizer.eos, "unk_token": tokenizer.model.unk_id()}
        special = {name: tokenizer.model.id_to_piece(i) for name, i in ids.items()}
        write_json(target / "tokenizer.json", fast_tokenizer(tokenizer))
    if special:  # this class is tokenizer.json as it is; others rebuild a tokenizer from its vocabulary
        came = read_json(source / "tokenizer_config.json", {})
        write_json(target / "tokenizer_config.json", came | special | {
            "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False})
    came = read_json(source / "generation_config.json", {})
    more = came.get("eos_token_id")
    ends = tokenizer.stop.union(more if isinstance(more, list) else [more]) - {tokenizer.eos, None}
    write_json(target / "generation_config.json", came | {
        "bos_token_id": bos, "eos_token_id": [tokenizer.eos, *sorted(ends)]})


def write(model_dir: Path, target: Path) -> str:
    """Writes a raw model directory as an HF one; returns what to tell the user. Raises InputError."""
    with new_directory(target) as folder:
        model, tokenizer = llama.load(model_dir), Tokenizer(model_dir)
        config, dtype = model.config, str(model.tok_embeddings.weight.dtype).removeprefix("torch.")
        tokenizer.check(config.vocab_size)
        state, size = hf_state(model)
        rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
        if config.use_scaled_rope:
            rope |= {"rope_type": "llama3", "factor": config.rope_scaling_factor, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        write_atomic(folder / "pytorch_model.bin", lambda file: torch.save(state, file))
        write_json(folder / "config.json", {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": config.dim,
            "num_hidden_layers": config.n_layers, "num_attention_heads": size.n_heads,
            "num_key_value_heads": size.n_kv_heads, "head_dim": config.head_dim,
            "intermediate_size": size.hidden_dim, "vocab_size": config.vocab_size,
            "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "rope_parameters": rope,
            "rope_scaling": rope if config.use_scaled_rope else None, "hidden_act": "silu",
            "sliding_window": None, "tie_word_embeddings": model.output is None, "attention_bias": False,
            "max_position_embeddings": context_length(config), "torch_dtype": dtype,
            "bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos})
        write_tokenizer(tokenizer, folder)
        complete = (folder / "tokenizer.json").exists()
    params, total = llama.count_parameters(model), sum(weight.numel() for weight in state.values())
    note = "" if total == params else (
        f"\nits layers differ in size, so they were padded with zeros to the largest: {total:,} parameters, "
        f"not {params:,}; same logits, less speed-up. After --uniform --space heads, nothing is padded")
    if not complete:
        note += "\ncopy tokenizer.json and tokenizer_config.json there from the base's Hugging Face directory"
    return f"{target}: {total:,} parameters for stock transformers (AutoModelForCausalLM){note}"


def main() -> None:
    parser = data.Parser(description="Convert a Hugging Face LLaMA directory to the raw format, or back.")
    parser.add_argument("source", type=Path, help="the directory to read")
    parser.add_argument("target", type=Path, help="a new directory to write")
    parser.add_argument("--out", action="store_true", help="from the raw format to Hugging Face's")
    args = parser.parse_args()
    if args.out:
        print(write(args.source, args.target))
    else:
        convert(args.source, args.target)
        print(f"{args.target}: written; next: python train.py --model {args.target} --data FILE.jsonl")


if __name__ == "__main__":
    data.command(main)
