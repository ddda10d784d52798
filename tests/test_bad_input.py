"""Bad input to the real commands: status 2, one line that says what and where, nothing on disk changed."""
import importlib.util
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import command, content, small_run
from test_interop import write_llama3_tokenizer
from torch import nn

import data
import export
import llama
import train
from data import InputError
from scripts import convert_hf, from_gguf, measures, prepare, to_gguf


class Bomb:
    """Unpickling this would create the file `ran`."""
    def __reduce__(self):
        return os.mkdir, ("ran",)


def write(path: Path, content) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def params(directory, **change):
    """Changes params.json; a value of `...` removes the key."""
    path = directory / "params.json"
    values = json.loads(path.read_text()) | change
    write(path, json.dumps({key: value for key, value in values.items() if value is not ...}))


def layer(directory, **change):
    values = json.loads((directory / "params.json").read_text())["layers"]
    values[1] |= change
    params(directory, layers=values)


def weights(directory, change):
    state = torch.load(directory / "consolidated.00.pth", weights_only=True)
    torch.save(change(state), directory / "consolidated.00.pth")


def compressed(directory):
    """A checkpoint of 64 MB of zeros in some 64 KB: repacked with deflate."""
    path = directory / "consolidated.00.pth"
    torch.save({"norm.weight": torch.zeros(2**24)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(directory / "new", "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    (directory / "new").replace(path)


def smaller_vocabulary(directory):
    weights(directory, lambda s: {n: t[:300].clone() if len(t) == 320 else t for n, t in s.items()})
    params(directory, vocab_size=300)


def larger_vocabulary(directory):
    weights(directory, lambda s: {n: torch.zeros(5000, 32) if len(t) == 320 else t for n, t in s.items()})
    params(directory, vocab_size=5000)


def weight(name, change):
    """Damage to one tensor of a model directory."""
    return lambda d: weights(d, lambda state: state | {name: change(state[name])})


def expanded(directory):
    """A model of 4 TB whose checkpoint has one number a tensor."""
    params(directory, dim=2**18, head_dim=8, layers=...)
    with torch.device("meta"):
        model = llama.Llama(llama.LlamaConfig.read(directory / "params.json"))
    weights(directory, lambda _: {name: torch.ones(1).expand(p.shape) for name, p in model.named_parameters()})


def tiktoken(*replace):
    """LLaMA-3's kind of tokenizer, damaged."""
    def damage(directory):
        pytest.importorskip("tiktoken")
        write_llama3_tokenizer(directory)
        path = directory / "tokenizer.model"
        write(path, path.read_bytes().replace(*replace))
    return damage


def instead(name, make):
    """Puts something that is no file in a file's place."""
    def damage(directory):
        (directory / name).unlink(missing_ok=True)
        make(directory / name)
    return damage


def zeros(path):
    path.symlink_to("/dev/zero")


def half_a_shard(state):
    return {n: t if t.dim() == 1 else t[:len(t) // 2].clone() for n, t in state.items()}


ARGUMENTS = {  # the arguments: what the error names
    "--prune 0": "--prune", "--prune 1": "--prune", "--prune nan": "--prune", "--prune 40%": "--prune",
    "--prune 0.998": "lower --prune", "--round-to 64 --prune 0.9": "--round-to", "--round-to 0": "--round-to",
    "--round-to 3": "--round-to 3", "--steps 0": "--steps", "--steps ten": "--steps",
    "--steps 1e3": "--steps", "--batch-size -2": "--batch-size",
    "--batch-size 100000": "fewer than one batch",
    "--seq-len 1": "--seq-len", "--seq-len 100000": "fewer than one batch", "--lr -1": "--lr",
    "--lr inf": "--lr", "--rank 0": "--rank", "--freeze-at 1.5": "--freeze-at",
    "--warm-start 1.1": "--warm-start 1.1", "--temperature 0": "--temperature", "--seed -1": "--seed",
    "--seed 4294967296": "--seed", "--space layers": "--space", "--dtype float16": "--dtype",
    "--device tpu": "--device tpu", "--device meta": "--device meta", "--device cuda:99": "--device cuda:99",
    "--frobnicate": "--frobnicate",
    "--resume nowhere": "none but --steps", "--data missing.jsonl": "missing.jsonl", "--data .": "cannot be read",
    "--model missing": "no such directory", "--model .": "no params.json", "--out /proc/run": "/proc/run",
    "--rank 2147483648": "LoRA of --rank 2147483648", "--seq-len 2147483648": "--seq-len: at least",
    "--seq-len 1000000000": "--seq-len: at least", "--batch-size 2147483648": "--batch-size rows",
    "--accumulate 2147483648": "fewer than one batch", "--round-to 2147483648": "--round-to",
    "--seq-len 99999999999999999999": "--seq-len", "--data /dev/zero": "not a regular file",
    "--data /dev/null": "not a regular file", "--data small.jsonl/more": "small.jsonl/more",
    "--model /dev": "no params.json", "--log-every 0": "--log-every", "--lora-scale -1": "--lora-scale",
    "--data LONG": "xxx", "--out LONG": "xxx", "--model LONG": "xxx",
}
GENERATION = {"--max-tokens 1000000000": "--max-tokens: at least", "--max-tokens 0": "--max-tokens",
              "--max-tokens 1%s" % (30 * "0"): "--max-tokens: at least", "--top-k -1": "--top-k",
              "--temperature nan": "--temperature", "--temperature -1": "--temperature",
              "--temperature 1e-40": "--temperature is too low", "--seed 99999999999999999999": "--seed",
              "--seed -1": "--seed", "--device meta": "--device meta", "--prompt \udcff": "--prompt"}
HOLDINGS = b', '.join(b'"holding_%d": "h"' % i for i in range(5))
EXPECTED = ("expected the keys of a format in README.md", "found [")
LINES = {  # name: (the third line of a data file, what the error says)
    "cut off": (b'{"text": "a"', "not JSON"), "plain text": (b"plain text", "not JSON"),
    "not UTF-8": (b'{"text": "\xff\xfe"}', "UTF-8"),
    "UTF-16": ('{"text": "\u00e9"}'.encode("utf-16"), "UTF-8"),
    "control character": (b'{"text": "a\x00b"}', "not JSON"), "zeros": (b"\x00" * 100, "not JSON"),
    "deep lists": (b"[" * 200000, "not JSON"), "deep objects": (b'{"a":' * 100000, "not JSON"),
    "huge number": (b"9" * 6000, "not JSON"), "list": (b"[]", *EXPECTED), "null": (b"null", *EXPECTED),
    "string": (b'"text"', *EXPECTED), "no keys": (b"{}", *EXPECTED),
    "other case": (b'{"Text": "a"}', *EXPECTED, "['Text']"),
    "no answer": (b'{"prompt": "p"}', *EXPECTED, "['prompt']"),
    "no prompt": (b'{"answer": "a"}', *EXPECTED, "['answer']"),
    "number": (b'{"text": 5}', "not a string"), "text null": (b'{"text": null}', "not a string"),
    "list in text": (b'{"text": ["a"]}', "not a string"),
    "nested": (b'{"text": {"text": "a"}}', "not a string"),
    "answer 42": (b'{"prompt": "p", "answer": 42}', "not a string"),
    "half a character": (b'{"text": "\\ud83d..."}', "surrogate"),
    "empty text": (b'{"text": ""}', "empty"),
    "blank text": (b'{"text": "  "}', "empty"), "empty prompt": (b'{"prompt": "", "answer": "a"}', "empty"),
    "empty answer": (b'{"prompt": "p", "answer": ""}', "empty"),
    "options: a string": (b'{"prompt": "p", "answer": "a", "options": "abc"}', "options", "not a list"),
    "options: a number": (b'{"prompt": "p", "answer": "a", "options": 3}', "options", "not a list"),
    "options: numbers": (b'{"prompt": "p", "answer": "a", "options": ["a", 3]}', "not a string"),
    "options without the answer": (b'{"prompt": "p", "answer": "a", "options": ["b", "c"]}', "none of the"),
    "100,000 options": (json.dumps({"prompt": "p", "answer": "0", "options": [*map(str, range(100000))]}).encode(),
                        "100,000 options"),
    "CaseHOLD": (b'{"citing_prompt": "c", "label": "5", %s}' % HOLDINGS, "CaseHOLD", "unexpected value"),
    "BillSum": (b'{"source": "s", "summary": 5}', "not a string"),
}
FILES = {"empty": ("", "no records"), "blank lines": ("\n\n", "no records"),
         "one record": ('{"text": "a"}\n' * 50, "record"),
         "three records": ('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', "bad.jsonl")}
WEIGHTS, WQ = "consolidated.00.pth", "layers.1.attention.wq"
MODELS = {  # name: (what is done to a model directory, what the error says)
    "params cut off": (lambda d: write(d / "params.json", "{"), "params.json"),
    "params a list": (lambda d: write(d / "params.json", "[]"), "expected a LLaMA"),
    "params not UTF-8": (lambda d: write(d / "params.json", b"\xff\xfe"), "params.json"),
    "params deep": (lambda d: write(d / "params.json", "[" * 100000), "params.json"),
    "no params": (lambda d: (d / "params.json").unlink(), "params.json"),
    "no dim": (lambda d: params(d, dim=...), "missing 1 required positional argument: 'dim'"),
    "dim negative": (lambda d: params(d, dim=-32), "params.json", "dim"),
    "dim a string": (lambda d: params(d, dim="32"), "params.json", "dim"),
    "dim true": (lambda d: params(d, dim=True), "params.json", "dim"),
    "dim a float": (lambda d: params(d, dim=1e9), "params.json", "dim"),
    "dim huge": (lambda d: params(d, dim=2**23), "params.json", "dim"),
    "a million layers": (lambda d: params(d, n_layers=10**6), "layers"),
    "a layer too many": (lambda d: params(d, n_layers=4, layers=...), "layers.3.attention.wk.weight"),
    "norm_eps 0": (lambda d: params(d, norm_eps=0), "params.json", "norm_eps"),
    "rope_theta negative": (lambda d: params(d, rope_theta=-1.0), "params.json", "rope_theta"),
    "other vocabulary": (lambda d: params(d, vocab_size=400), "[320, 32]", "[400, 32]"),
    "unknown key": (lambda d: params(d, moe={"n": 8}), "unexpected keyword argument 'moe'"),
    "odd head": (lambda d: params(d, head_dim=7), "params.json"),
    "heads not shared": (lambda d: layer(d, n_kv_heads=3), "layer 1", "heads"),
    "no such pair": (lambda d: layer(d, rotary_pairs=[0, 99]), "rotary pairs"),
    "pair a string": (lambda d: layer(d, rotary_pairs=["0"]), "rotary pairs"),
    "no units": (lambda d: layer(d, hidden_dim=0), "params.json", "hidden_dim"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "consolidated.00.pth"),
    "weights empty": (lambda d: write(d / WEIGHTS, b""), "damaged"),
    "weights cut off": (lambda d: os.truncate(d / WEIGHTS, 9000), "damaged"),
    "weights text": (lambda d: write(d / WEIGHTS, "text"), "damaged"),
    "pickle": (lambda d: write(d / WEIGHTS, pickle.dumps(Bomb())), "damaged"),
    "pickle by torch": (lambda d: torch.save({"norm.weight": Bomb()}, d / WEIGHTS), "damaged"),
    "compressed": (compressed, "compressed"),
    "weights a list": (lambda d: weights(d, lambda s: [1]), "consolidated.00.pth", "not a readable"),
    "weight a number": (lambda d: weights(d, lambda s: s | {"norm.weight": 1.0}), "norm.weight"),
    "weight a string": (lambda d: weights(d, lambda s: s | {"norm.weight": "text"}), "norm.weight"),
    "weight missing": (lambda d: weights(d, lambda s: {n: t for n, t in s.items() if n != WQ + ".weight"}),
                       "wq.weight is missing"),
    "weight too many": (lambda d: weights(d, lambda s: s | {WQ + ".bias": s["norm.weight"]}),
                        "wq.bias is not part"),
    "name a number": (lambda d: weights(d, lambda s: s | {7: s["norm.weight"]}), "7 is not part"),
    "other shape": (lambda d: weights(d, lambda s: s | {"norm.weight": torch.ones(31)}),
                    "norm.weight", "[31]"),
    "huge shape": (lambda d: weights(d, lambda s: s | {"norm.weight": torch.ones(1).expand(2**40)}),
                   "norm.weight"),
    "quantized": (lambda d: weights(d, lambda s: s | {"norm.weight": torch.ones(32, dtype=torch.int8)}),
                  "norm.weight", "quantized"),
    "weights twice": (lambda d: shutil.copy(d / WEIGHTS, d / "consolidated.01.pth"), "2 shards"),
    "a shard missing": (lambda d: shutil.copy(d / WEIGHTS, d / "consolidated.02.pth"), "consolidated.01.pth"),
    "half a shard": (lambda d: weights(d, half_a_shard), "[160, 32]"),
    "larger vocabulary": (larger_vocabulary, "320 tokens"),
    "smaller vocabulary": (smaller_vocabulary, "320 tokens"),
    "no tokenizer": (lambda d: (d / "tokenizer.model").unlink(), "tokenizer.model"),
    "tokenizer bytes": (lambda d: write(d / "tokenizer.model", b"\x00\x01"), "tokenizer.model"),
    "tokenizer empty": (lambda d: write(d / "tokenizer.model", b""), "tokenizer.model"),
    "nn.Parameters, one too many": (
        lambda d: weights(d, lambda s: {n: nn.Parameter(t) for n, t in (s | {"x": s["norm.weight"]}).items()}),
        "x is not part"),
    "sparse": (weight(WQ + ".weight", torch.Tensor.to_sparse), "wq.weight", "sparse"),
    "sparse rows": (weight(WQ + ".weight", torch.Tensor.to_sparse_csr), "wq.weight", "sparse"),
    "meta": (weight(WQ + ".weight", lambda t: t.to("meta")), "wq.weight", "meta device"),
    "nested": (weight(WQ + ".weight", lambda t: torch.nested.nested_tensor([t])), "wq.weight", "nested"),
    "complex": (weight(WQ + ".weight", lambda t: t.to(torch.complex64)), "wq.weight", "complex"),
    "a list of numbers": (weight(WQ + ".weight", torch.Tensor.tolist), "wq.weight", "list"),
    "all meta": (lambda d: weights(d, lambda s: {n: t.to("meta") for n, t in s.items()}), "meta device"),
    "4 TB of one number": (expanded, "expanded"),
    "no tensors": (lambda d: weights(d, lambda s: {}), "layers.0.attention.wk.weight is missing"),
    "names are numbers": (lambda d: weights(d, lambda s: dict(enumerate(s.values()))), "0 is not part"),
    "a name is a pair": (lambda d: weights(d, lambda s: s | {(1, 2): s["norm.weight"]}), "(1, 2) is not part"),
    "a name of many lines": (lambda d: weights(d, lambda s: s | {5000 * "\n": s["norm.weight"]}), "not part"),
    "524,288 layers": (lambda d: params(d, n_layers=2**19, layers=...), "524288 layers"),
    "10 million layers": (lambda d: params(d, n_layers=10**7, layers=...), "n_layers"),
    "weights a pipe": (instead(WEIGHTS, os.mkfifo), WEIGHTS, "not a regular file"),
    "weights a device": (instead(WEIGHTS, zeros), WEIGHTS, "not a regular file"),
    "weights a folder": (instead(WEIGHTS, Path.mkdir), WEIGHTS, "not a regular file"),
    "weights a loop": (instead(WEIGHTS, lambda path: path.symlink_to(path.name)), WEIGHTS),
    "params a pipe": (instead("params.json", os.mkfifo), "params.json", "not a regular file"),
    "params a device": (instead("params.json", zeros), "params.json", "not a regular file"),
    "tokenizer a pipe": (instead("tokenizer.model", os.mkfifo), "tokenizer.model", "not a regular file"),
    "tokenizer a device": (instead("tokenizer.model", zeros), "tokenizer.model", "not a regular file"),
    "tokenizer a folder": (instead("tokenizer.model", Path.mkdir), "tokenizer.model", "not a regular file"),
    "tiktoken: a rank twice": (tiktoken(b" 265\n", b" 264\n"), "ranks"),
    "tiktoken: a rank missing": (tiktoken(b" 265\n", b" 270\n"), "ranks"),
    "tiktoken: a negative rank": (tiktoken(b" 265\n", b" -1\n"), "ranks"),
    "tiktoken: a byte missing": (tiktoken(b"YQ== 97\n", b"YWE= 97\n"), "a byte has none"),
    "tiktoken: three columns": (tiktoken(b" 265\n", b" 265 1\n"), "tokenizer.model"),
    "tiktoken: not base64": (tiktoken(b" 265\n", b"= 265\n"), "tokenizer.model"),
    "no tokenizer.json": (lambda d: (d / "tokenizer.model").rename(d / "tokenizer.json"), "tokenizer.json"),
}



def put(*path_and_value):
    """Damage to a loaded checkpoint: the value at a path of keys replaced, changed by a function, or left out
    (`...`)."""
    *path, last, value = path_and_value

    def damage(saved):
        for key in path:
            saved = saved[key]
        if value is ...:
            del saved[last]
        else:
            saved[last] = value(saved[last]) if callable(value) else value
    return damage


A = "layers.0.attention.wq.A"
CHECKPOINTS = {  # name: (what is done to a loaded ckpt.pt, what the error says)
    "step a string": (put("step", "16"), "step: is str"), "step a float": (put("step", 8.0), "step: is float"),
    "step true": (put("step", True), "step: is bool"), "no step": (put("step", ...), "step: is missing"),
    "step negative": (put("step", -1), "ckpt.pt"), "step 1e12": (put("step", 10**12), "ckpt.pt"),
    "seconds a string": (put("seconds", "1"), "seconds: is str"), "log a string": (put("log", "[]"), "log: is str"),
    "a tensor in the log": (put("log", [{"step": torch.ones(3)}]), "not JSON serializable"),
    "a set in the log": (put("log", [{1}]), "not JSON serializable"),
    "base none": (put("base", None), "base: is NoneType"), "base empty": (put("base", {}), "base, params: is missing"),
    "base loss a string": (put("base", "val_loss", "1"), "val_loss: is str"),
    "base loss not finite": (put("base", "val_loss", float("nan")), "loss is not finite"),
    "other data or base": (put("base", "sha256", "0"), "data or base changed"),
    "seconds of one part": (put("seconds", "tune", 1), "seconds, tune: is int"),
    "more keys": (put("more", 1), "more: is int, expected missing"),
    "decisions none": (put("d", None), "d: is NoneType"), "decisions as int": (put("d", torch.Tensor.long), "d: is"),
    "too few decisions": (put("d", lambda d: d[:5].clone()), "d: is torch.bool [5]"),
    "too many decisions": (put("d", lambda d: torch.cat((d, d))), "d: is torch.bool"),
    "decisions sparse": (put("d", torch.Tensor.to_sparse), "sparse"),
    "decisions meta": (put("d", lambda d: d.to("meta")), "meta device"),
    "lora none": (put("lora", None), "lora: is NoneType"), "lora empty": (put("lora", {}), f"{A}: is missing"),
    "lora of [1]": (put("lora", A, torch.zeros(1)), f"{A}: is torch.float32 [1]"),
    "lora expanded": (put("lora", A, torch.zeros(1).expand(8, 32)), "expanded"),
    "lora of 4 TB": (put("lora", A, torch.zeros(1).expand(2**20, 2**20)), "expanded"),
    "lora of another rank": (put("lora", A, lambda a: a[:4].clone()), f"{A}: is torch.float32 [4, 32]"),
    "lora in float64": (put("lora", A, torch.Tensor.double), f"{A}: is torch.float64"),
    "lora a number": (put("lora", A, 5), f"{A}: is int"), "lora a list": (put("lora", []), "lora: is list"),
    "lora by numbers": (put("lora", lambda lora: dict(enumerate(lora.values()))), f"{A}: is missing"),
    "the base in lora": (put("lora", "norm.weight", torch.ones(32)), "norm.weight: is torch.float32"),
    "moments none": (put("moments", None), "moments: is NoneType"), "no moments": (put("moments", []), "is missing"),
    "a moment of [1]": (put("moments", 0, 0, "exp_avg", torch.zeros(1)), "moments, 0, 0, exp_avg"),
    "a moment missing": (put("moments", 0, 3, ...), "moments, 0, 3: is missing"),
    "moments by names": (put("moments", 0, lambda state: {str(k): v for k, v in state.items()}), "0: is"),
    "AdamW's step 1e12": (put("moments", 0, 0, "step", torch.tensor(1e12)), "steps do not fit"),
    "AdamW's step negative": (put("moments", 0, 0, "step", torch.tensor(-1.0)), "steps do not fit"),
    "AdamW's step no number": (put("moments", 0, 7, "step", torch.tensor(float("nan"))), "steps do not fit"),
    "random state short": (put("rng", lambda rng: rng[:10].clone()), "rng: is torch.uint8 [10]"),
    "random state zero": (put("rng", torch.zeros_like), "state"),
    "no random state": (put("rng", ...), "rng: is missing"),
    "options none": (put("config", None), "config: is NoneType"),
    "an option too many": (put("config", "frobnicate", 5), "frobnicate: is int"),
    "an option missing": (put("config", "rank", ...), "rank: is missing"),
    "an option a string": (put("config", "rank", "8"), "rank: is str"),
    "an option true": (put("config", "rank", True), "rank: is bool"),
    "an option too large": (put("config", "rank", 2**31), "LoRA of --rank"),
    "an option not a number": (put("config", "lr", float("nan")), "--lr"),
    "other steps": (put("config", "steps", 3), "ckpt.pt"), "other space": (put("config", "space", "heads"), "d: is"),
    "data a number": (put("config", "data", [5]), "5: cannot be read"),
    "a name that is no path": (put("config", "model", "a\0b"), "null"),
    "version a tensor": (put("version", torch.ones(3)), "not a checkpoint of this version"),
    "version a string": (put("version", "3.0"), "not a checkpoint of this version"),
}
SEARCHING = {"a generator's bias": (put("generator", "head.bias", torch.zeros(3)), "head.bias: is torch.float32 [3]"),
             "no generator": (put("generator", None), "generator: is NoneType"),
             "generator empty": (put("generator", {}), "generator, "),
             "generator's moments missing": (put("moments", lambda both: both[:1]), "moments, 1: is missing"),
             "search over": (put("step", 9), "ckpt.pt")}
K = "model.layers.1.self_attn.q_proj.weight"
ROPE = {"rope_type": "llama3", "rope_theta": 1e4}


def config(**change):
    def damage(directory):
        path = directory / "config.json"
        write(path, json.dumps(json.loads(path.read_text()) | change))
    return damage


def hf_weights(change):
    def damage(directory):
        state = torch.load(directory / "pytorch_model.bin", weights_only=True)
        torch.save(change(state), directory / "pytorch_model.bin")
    return damage


HF = {  # name: (what is done to a Hugging Face directory, what the error says)
    "rope_parameters a number": (config(rope_parameters=5), "rotary"),
    "rope_parameters 0": (config(rope_parameters=0), "rotary"),
    "rope_parameters a list": (config(rope_parameters=[1]), "rotary"),
    "rope_scaling a string": (config(rope_parameters=None, rope_scaling="linear"), "rotary"),
    "rope_scaling linear": (config(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}), "'linear'"),
    "rope a layer type each": (config(rope_parameters={"full_attention": {"rope_type": "default"}}), "rotary"),
    "rope_type a list": (config(rope_parameters={"rope_type": ["default"]}), "rotary"),
    "rope_type null": (config(rope_parameters={"rope_type": None}), "rope type None"),
    "no rope factor": (config(rope_parameters=ROPE), "'factor'"),
    "rope factor a string": (config(rope_parameters=ROPE | {"factor": "8"}), "rope_scaling_factor"),
    "rope_theta a string": (config(rope_parameters={"rope_theta": "1e4"}), "rope_theta"),
    "10 million layers": (config(num_hidden_layers=10**7), "n_layers"),
    "no heads": (config(num_attention_heads=None), "n_heads"), "vocabulary -1": (config(vocab_size=-1), "vocab_size"),
    "config a pipe": (instead("config.json", os.mkfifo), "not a regular file"),
    "config a device": (instead("config.json", zeros), "not a regular file"),
    "weights a pipe": (instead("pytorch_model.bin", os.mkfifo), "not a regular file"),
    "weights sparse": (hf_weights(lambda s: s | {K: s[K].to_sparse()}), "q_proj", "sparse"),
    "weights meta": (hf_weights(lambda s: s | {K: s[K].to("meta")}), "q_proj", "meta device"),
    "weights of 4 TB": (hf_weights(lambda s: s | {K: torch.ones(1).expand(2**20, 2**20)}), "q_proj", "expanded"),
    "weight a number": (hf_weights(lambda s: s | {K: 5}), "q_proj", "is int"),
    "name a number": (hf_weights(lambda s: s | {7: s[K]}), "7 is not part"),
    "a name of two lines": (hf_weights(lambda s: s | {"a\nb": s[K]}), "a b is not part"),
    "tokenizer a pipe": (instead("tokenizer.model", os.mkfifo), "not a regular file"),
    "tokenizer.json a pipe": (instead("tokenizer.json", os.mkfifo), "not a regular file"),
    "tokenizer_config.json a pipe": (instead("tokenizer_config.json", os.mkfifo), "not a regular file"),
}
FILES_IN = {"a pipe": os.mkfifo, "a device": zeros, "a folder": Path.mkdir, "missing": lambda path: None,
            "text": lambda path: write(path, "text"), "empty": lambda path: write(path, "")}


@pytest.fixture
def refused(monkeypatch, tmp_path, capfd):
    """Runs a command that must fail: checks the status, the line (nor does C++ or Rust write another), and
    that no file changed."""
    def run(arguments, *says, main=train.main):
        monkeypatch.chdir(tmp_path)
        before = content(tmp_path)
        assert command(monkeypatch, *arguments, main=main) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 600, error
        error = error.replace(str(tmp_path), "")  # it has the test's own name in it
        assert all(text in error for text in says), error
        assert content(tmp_path) == before and not Path("ran").exists()
    return run


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments(refused, options, arguments):
    refused([*options, *arguments.replace("LONG", 5000 * "x").split()], ARGUMENTS[arguments])


@pytest.mark.parametrize("arguments", GENERATION)
def test_arguments_of_generation(refused, model_dir, arguments):
    refused([model_dir, *arguments.split()], GENERATION[arguments], main=llama.main)


@pytest.mark.parametrize("name", LINES)
def test_data_lines(refused, options, tmp_path, name):
    line, *says = LINES[name]
    path = write(tmp_path / "bad.jsonl", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine too"}\n')
    refused([*options, "--data", path], "line 3", *says)


@pytest.mark.parametrize("name", FILES)
def test_data_files(refused, options, tmp_path, name):
    text, says = FILES[name]
    refused([*options, "--data", write(tmp_path / "bad.jsonl", text)], says)


@pytest.mark.parametrize("name", MODELS)
def test_models(refused, options, model_dir, tmp_path, name):
    damage, *says = MODELS[name]
    shutil.copytree(model_dir, tmp_path / "model")
    damage(tmp_path / "model")
    refused([*options, "--model", tmp_path / "model"], *says)
    refused([tmp_path / "model"], *says, main=llama.main)


def test_checkpoints(refused, tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    good = (run / "ckpt.pt").read_bytes()
    with zipfile.ZipFile(run / "ckpt.pt") as archive:
        record = max(archive.infolist(), key=lambda record: record.file_size)
    flipped = bytearray(good)
    flipped[good.index(record.filename.encode()) + 1000] ^= 1
    for damage in (b"", good[:len(good) // 2], bytes(flipped), pickle.dumps(Bomb())):
        write(run / "ckpt.pt", damage)
        refused(["--resume", run], "ckpt.pt")
        refused([run], "ckpt.pt", main=export.main)
    state = llama.read_tensors(write(run / "ckpt.pt", good), mmap=False)
    for other in ({"step": 1}, state | {"version": -1}):
        torch.save(other, run / "ckpt.pt")
        refused(["--resume", run], "not a checkpoint of this version")
        refused([run], "not a checkpoint of this version", main=export.main)
    (run / "ckpt.pt").unlink()
    for missing in (run, tmp_path / "nowhere"):
        refused(["--resume", missing], missing.name)
        refused([missing], missing.name, main=export.main)


@pytest.fixture(scope="module")
def searching_run(tmp_path_factory, model_dir, data_file):
    """The directory of a run of which a checkpoint of step 4 is left, in its search."""
    out = tmp_path_factory.mktemp("searching") / "run"

    def stop(run):
        if run.step == 5:
            raise InputError("enough")
        return step(run)

    step = train.Run.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Run, "advance", stop)
        assert command(patch, *small_run(model_dir, data_file, out)) == 2
    return out


def damaged(run, copy, damage):
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("lock"))
    saved = torch.load(copy / "ckpt.pt", weights_only=True)
    damage(saved)
    torch.save(saved, copy / "ckpt.pt")
    return copy


@pytest.mark.parametrize("name", CHECKPOINTS | SEARCHING)
def test_values_of_a_checkpoint(refused, tmp_path, finished_run, searching_run, name):
    damage, says = (CHECKPOINTS | SEARCHING)[name]
    run = damaged(searching_run if name in SEARCHING else finished_run, tmp_path / "run", damage)
    data.lock(run).close()  # its file stays
    refused(["--resume", run], says)


def test_a_checkpoint_of_parameters_goes_on(monkeypatch, tmp_path, finished_run, capsys):
    """And a resumed run says which model and data it follows."""
    def as_parameters(saved):
        saved["lora"] = {name: nn.Parameter(p) for name, p in saved["lora"].items()}
    run = damaged(finished_run, tmp_path / "run", as_parameters)
    config = torch.load(run / "ckpt.pt", weights_only=True)["config"]
    assert command(monkeypatch, "--resume", run) == 0
    out = capsys.readouterr().out
    assert f"model: {config['model']}, " in out and f"data: {config['data'][0]}; " in out


def test_a_model_of_parameters_is_trained_and_generates(monkeypatch, tmp_path, options, model_dir, capsys):
    shutil.copytree(model_dir, tmp_path / "model")
    weights(tmp_path / "model", lambda state: {name: nn.Parameter(p) for name, p in state.items()})
    assert command(monkeypatch, *options, "--model", tmp_path / "model") == 0
    assert command(monkeypatch, tmp_path / "model", main=llama.main) == 0


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory, model_dir):
    path = tmp_path_factory.mktemp("hf") / "hf"
    convert_hf.write(model_dir, path)
    return path


@pytest.mark.parametrize("name", HF)
def test_hugging_face_directories(refused, tmp_path, hf_dir, name):
    damage, *says = HF[name]
    shutil.copytree(hf_dir, tmp_path / "hf")
    if name.startswith("tokenizer"):
        pytest.importorskip("tokenizers")
    if name.startswith("tokenizer_config") or "json" in name:
        (tmp_path / "hf/tokenizer.model").unlink()
    damage(tmp_path / "hf")
    refused([tmp_path / "hf", tmp_path / "new"], *says, main=convert_hf.main)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", FILES_IN)
def test_files_of_every_reader(refused, options, tmp_path, finished_run, name):
    """Data, data to prepare, a GGUF file and a checkpoint that are no such thing."""
    path, run = tmp_path / "input", tmp_path / "run"
    run.mkdir()
    (run / "input").mkdir()
    FILES_IN[name](path)
    FILES_IN[name](run / "input/ckpt.pt")
    refused([*options, "--out", tmp_path / "new", "--data", path], "/input")
    refused([path], "/input", main=prepare.main)
    pytest.importorskip("gguf")
    refused([path, tmp_path / "new"], "/input", main=from_gguf.main)
    refused([run / "input"], "ckpt.pt", main=export.main)


def test_an_empty_name_of_a_run(refused, finished_run, tmp_path):
    refused(["--resume", ""], "ckpt.pt")
    refused([""], "ckpt.pt", main=export.main)


def test_what_the_terminal_cannot_show_is_spelled_out(monkeypatch, model_dir, options):
    """Generated text, and the name of a file in an error."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", shown)
    assert command(monkeypatch, model_dir, "--temperature", 5, "--top-k", 0, main=llama.main) == 0
    assert b"\\u" in shown.buffer.getvalue()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), "ascii", "backslashreplace", write_through=True))
    assert command(monkeypatch, *options, "--data", "h\u00e9.jsonl") == 2
    assert b"h\\xe9.jsonl" in sys.stderr.buffer.getvalue()


@pytest.mark.parametrize("says, factor", [("loss is not finite", float("nan")), ("", 1e4)], ids=["NaN", "1e4 nats"])
def test_a_base_with_an_absurd_loss(refused, monkeypatch, options, tmp_path, model_dir, finished_run, says, factor):
    """Refused before anything of an old run is touched; or trained, if a perplexity of e^700 is a number."""
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copytree(model_dir, tmp_path / "model")
    weight("output.weight", lambda w: factor * w)(tmp_path / "model")
    new = [*options, "--model", tmp_path / "model", "--overwrite"]
    if says:
        return refused(new, says)
    assert command(monkeypatch, *new) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["val_loss"]["base"] > 709


def test_nothing_of_others_is_overwritten(refused, tmp_path, finished_run):
    run, precious = tmp_path / "run", tmp_path / "precious"
    shutil.copytree(finished_run, run)
    precious.mkdir()
    write(precious / "thesis.tex", "years of work")
    for target in (precious, run, tmp_path):
        refused([run, "--out", target], "exists already", main=export.main)
    refused(["--resume", precious], "precious")
    refused([run, "--hf", tmp_path / "hf", "--dtype", "bfloat16"], "--dtype", main=export.main)
    refused([run / "pruned", "--max-tokens", "-9"], "--max-tokens", main=llama.main)


def test_a_run_that_another_process_works_on_is_left_alone(refused, options, tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    held = data.lock(run)
    refused(["--resume", run], "is at work there")
    refused([*options, "--overwrite"], "is at work there")
    held.close()


def test_an_export_for_transformers_spares_what_is_there(monkeypatch, tmp_path, finished_run, capfd):
    write(tmp_path / "thesis.tex", "years of work")
    assert command(monkeypatch, finished_run, "--hf", tmp_path, main=export.main) == 2
    error = capfd.readouterr().err
    assert str(tmp_path) in error and error.count("\n") == 1 and os.listdir(tmp_path) == ["thesis.tex"]


def test_a_run_does_not_replace_the_model_it_starts_from(refused, options, tmp_path, finished_run):
    """A second round of pruning, into the same directory."""
    shutil.copytree(finished_run, tmp_path / "run")
    refused([*options, "--model", tmp_path / "run/pruned", "--prune", "0.1", "--overwrite"], "/run")


@pytest.mark.parametrize("error, says", [
    (torch.OutOfMemoryError, "CUDA out of memory."),
    (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")],
    ids=["GPU", "CPU"])
def test_out_of_memory_names_what_lowers_the_need(monkeypatch, options, capsys, tmp_path, error, says):
    """After the first steps; the checkpoint is still good."""
    step = train.Run.advance

    def full(run):
        if run.step == 7:
            raise error(says)
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "advance", full)
        assert command(patch, *options) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "out of memory" in line
    assert all(flag in line for flag in ("--batch-size", "--seq-len", "--checkpointing", "--dtype bfloat16"))
    assert command(monkeypatch, "--resume", tmp_path / "run") == 0


@pytest.mark.parametrize("script", ["train.py", *[pytest.param(name, marks=pytest.mark.long)
                                                  for name in ("llama.py", "export.py")]])
def test_as_from_the_shell(tmp_path, script):
    """One of them in a process of its own: the real exit status, one line, no traceback."""
    missing = tmp_path / "missing"
    arguments = ["--data", missing, "--out", tmp_path / "run"] if script == "train.py" else [missing]
    done = subprocess.run([sys.executable, script, *arguments], cwd=Path(llama.__file__).parent,
                          capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr


# ------------------------------------------------------------------------------------------------- fuzzing

VALUES = [None, True, 0, 1, -1, 2, 3, 7, 2**31, 10**30, 0.5, -0.0, 1e308, "", "32", "\x00", "NaN", [], [1],
          [None], {}, {"a": 1}]
TENSORS = [lambda t: t.double(), lambda t: t.int(), lambda t: t.flatten()[:1].clone(), lambda t: t[None],
           lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: t.flatten()[:1].expand(2**40),
           lambda t: torch.full_like(t, 255), lambda t: t.flatten()[:0], lambda t: t.unsqueeze(-1).mT, lambda t: t + 1]


def mutate(value, rng: random.Random):
    """One random change somewhere in a JSON value, or one with tensors."""
    if isinstance(value, torch.Tensor) and llama.form(value).startswith("torch.") and rng.random() < 0.8:
        return rng.choice(TENSORS)(value)
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key, action = rng.choice(list(value)), rng.random()
        if action < 0.2:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.3:
            return value | {rng.choice(["x", "", "text", "prompt", "layers", "label"]): rng.choice(VALUES)}
        return value | {key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return value[:i] + [mutate(value[i], rng)] * rng.choice([0, 1, 1, 2]) + value[i + 1:]
    return rng.choice(VALUES)


def mutated_json(path, rng):
    value = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = mutate(value, rng)
    path.write_text(json.dumps(value))


def mutated_bytes(path, rng, within=None):
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(within or len(content))] = rng.randrange(256)
    path.write_bytes(content[:rng.randrange(len(content))] if rng.random() < 0.1 else content)


def mutated_tensors(path, rng):
    value = torch.load(path, weights_only=True)
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = mutate(value, rng)
    torch.save(value, path)


def fuzz_params(folder, rng):
    mutated_json(folder / "model/params.json", rng)
    return llama.main, [folder / "model", "--max-tokens", 2]


def fuzz_weights(folder, rng):
    rng.choice([mutated_tensors, mutated_bytes])(folder / "model/consolidated.00.pth", rng)
    return llama.main, [folder / "model", "--max-tokens", 2]


def fuzz_data(folder, rng):
    good = [{"text": "a text"}, {"prompt": "p", "answer": "a"},
            {"prompt": "p", "answer": "b", "options": ["a", "b", "c"]},
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            {"instruction": "q", "input": "more", "output": "a"}]
    lines = [json.dumps(mutate(rng.choice(good), rng)) for _ in range(rng.choice([1, 1, 2, 20]))]
    path = write(folder / "data.jsonl", "\n".join(lines))
    if rng.random() < 0.5:
        mutated_bytes(path, rng)
    return prepare.main, [path]


def fuzz_checkpoint(folder, rng):
    path = folder / "run/ckpt.pt"
    value = torch.load(path, weights_only=True)
    for _ in range(rng.choice([1, 1, 2, 3])):
        key = rng.choice(list(value))  # all parts alike, however long
        value[key] = mutate(value[key], rng)
    if isinstance(value["config"], dict):
        value["config"]["compile"] = False  # which may take a minute
    torch.save(value, path)
    return export.main, [folder / "run", "--out", folder / "new"]


def fuzz_hf(folder, rng):
    mutated_json(folder / "hf" / rng.choice(["config.json", "config.json", "generation_config.json"]), rng)
    return convert_hf.main, [folder / "hf", folder / "new"]


def fuzz_hf_tokenizer(folder, rng):
    (folder / "hf/tokenizer.model").unlink()
    name = rng.choice(["tokenizer.json", "tokenizer_config.json"])
    rng.choice([mutated_json, mutated_bytes])(folder / "hf" / name, rng)
    return convert_hf.main, [folder / "hf", folder / "new"]


def fuzz_gguf(folder, rng):
    mutated_bytes(folder / "model.gguf", rng, 2000)  # where its keys and values are
    return from_gguf.main, [folder / "model.gguf", folder / "new"]


# What may lie in a folder after a command has failed; `unproven`: an export whose logits differ, it says so.
KNOWN = {"model", "hf", "run", "model.gguf", "data.jsonl", "new.unproven"}


class Hang(BaseException):
    """A command that took too long."""


@pytest.fixture
def inputs(tmp_path_factory, model_dir, hf_dir, finished_run):
    """Makes a folder of good inputs, a new one each time."""
    good = tmp_path_factory.mktemp("good")
    shutil.copytree(model_dir, good / "model")
    shutil.copytree(hf_dir, good / "hf")
    shutil.copytree(finished_run, good / "run", ignore=shutil.ignore_patterns("lock", "pruned"))
    if importlib.util.find_spec("gguf"):
        to_gguf.write(model_dir, good / "model.gguf", "f32")
    return lambda i: shutil.copytree(good, tmp_path_factory.mktemp("fuzz") / str(i))


@pytest.mark.parametrize("kind, package, at_a_time, cases", [
    (fuzz_params, "torch", 40, 2000), (fuzz_weights, "torch", 40, 1500), (fuzz_data, "torch", 100, 2000),
    (fuzz_checkpoint, "torch", 40, 1500), (fuzz_hf, "torch", 40, 1000),
    (fuzz_hf_tokenizer, "tokenizers", 40, 1000), (fuzz_gguf, "gguf", 40, 1000)])
def test_fuzz(request, monkeypatch, inputs, capfd, kind, package, at_a_time, cases):
    """10,000 random inputs with --long, 340 without: done, or refused in one line; in time, with memory for
    nothing large, and with no byte changed of what was there."""
    pytest.importorskip(package)

    def hang(signum, frame):
        raise Hang

    statuses, before = [], signal.signal(signal.SIGALRM, hang)
    for i in range(cases if request.config.getoption("--long") else at_a_time):
        folder, rng = inputs(i), random.Random(i)
        main, arguments = kind(folder, rng)
        files = content(folder)
        signal.alarm(20)
        try:
            statuses.append(command(monkeypatch, *arguments, main=main))
        except BaseException as error:
            pytest.fail(f"case {i}: {error!r}")
        finally:
            signal.alarm(0)
        error = capfd.readouterr().err
        if kind is fuzz_hf_tokenizer and "panicked" in error:  # Rust's panics write lines of their own before
            error = error.splitlines(keepends=True)[-1]
        assert statuses[-1] in (0, 2) and error.count("\n") <= 1, (i, error)
        assert (statuses[-1] == 2) == error.startswith("error: ") or main is prepare.main, (i, error)
        after = content(folder)
        assert {path: after[path] for path in files} == files, i
        assert statuses[-1] == 0 or {*os.listdir(folder)} <= KNOWN, (i, os.listdir(folder))
        shutil.rmtree(folder)
    signal.signal(signal.SIGALRM, before)
    assert {*statuses} == {0, 2} and measures.peak_memory(torch.device("cpu")) < 4e9
