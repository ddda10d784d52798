"""Bad input to the real commands: status 2, one line that says what and where, nothing on disk changed."""
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import command, content

import data
import export
import llama
import train
from data import InputError
from llama import LlamaConfig


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
    "--resume nowhere": "no others", "--data missing.jsonl": "missing.jsonl", "--data .": "cannot be read",
    "--decisions guessing": "--decisions",
    "--model missing": "missing/", "--model .": "tokenizer.model", "--out /proc/run": "/proc/run",
}
HOLDINGS = b', '.join(b'"holding_%d": "h"' % i for i in range(5))
EXPECTED = ("expected the keys prompt+answer, ", ", text, found [", "scripts/prepare.py")
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
    "options: a string": (b'{"prompt": "p", "answer": "a", "options": "abc"}', "options", "not a string"),
    "options: a number": (b'{"prompt": "p", "answer": "a", "options": 3}', "options", "not a string"),
    "options: numbers": (b'{"prompt": "p", "answer": "a", "options": ["a", 3]}', "not a string"),
    "options without the answer": (b'{"prompt": "p", "answer": "a", "options": ["b", "c"]}', "none of the"),
    "CaseHOLD": (b'{"citing_prompt": "c", "label": "0", %s}' % HOLDINGS, *EXPECTED),
    "BillSum": (b'{"source": "s", "summary": "t"}', *EXPECTED),
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
    "no tokenizer.json": (lambda d: (d / "tokenizer.model").rename(d / "tokenizer.json"), "tokenizer.json"),
}


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Runs a command that must fail: checks the status, the line, and that no file changed."""
    def run(arguments, *says, main=train.main):
        monkeypatch.chdir(tmp_path)
        before = content(tmp_path)
        assert command(monkeypatch, *arguments, main=main) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 600, error
        error = error.replace(str(tmp_path), "")  # it has the test's own name in it
        assert all(text in error for text in says), error
        assert content(tmp_path) == before and not Path("ran").exists()
    return run


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments(refused, options, arguments):
    refused([*options, *arguments.split()], ARGUMENTS[arguments])


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


VALUES = [None, True, 0, 1, -1, 2, 3, 7, 2**31, 10**30, 0.5, -0.0, 1e308, "", "32", "\x00", "NaN", [], [1],
          [None], {}, {"a": 1}]


def mutate(value, rng: random.Random):
    """One random change somewhere in a JSON value."""
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


def test_fuzz_params(tmp_path, model_dir):
    """3,000 mutated params.json: read to a config that can be built on, or refused in one line."""
    rng, good, accepted = random.Random(0), json.loads((model_dir / "params.json").read_text()), 0
    for i in range(3000):
        path, value = tmp_path / f"{i}.json", good  # a new file each time: to overwrite one is slow
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = mutate(value, rng)
        path.write_text(json.dumps(value))
        try:
            config = LlamaConfig.read(path)
            assert len(config.layers) == config.n_layers
            assert all(size.hidden_dim > 0 for size in config.layers)
            accepted += 1
        except InputError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
    assert 0 < accepted < 2000


def test_fuzz_json_lines(tmp_path):
    """3,000 mutated lines, as JSON and as bytes: examples of strings, or refused with the line."""
    rng, accepted = random.Random(1), 0
    good = [{"text": "a text"}, {"prompt": "p", "answer": "a"},
            {"prompt": "p", "answer": "b", "options": ["a", "b", "c"]},
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            {"instruction": "q", "input": "more", "output": "a"}]
    for i in range(3000):
        path = tmp_path / f"{i}.jsonl"
        line = json.dumps(mutate(rng.choice(good), rng)).encode()
        if rng.random() < 0.5:
            line = bytearray(line)
            for _ in range(rng.randint(1, 3)):
                line[rng.randrange(len(line))] = rng.randrange(256)
        path.write_bytes(bytes(line) + b"\n")
        try:
            for example in data.read(path):
                assert data.asked(example.turns) and all(who in data.PLAIN for who, _ in example.turns)
                assert all(said.strip() for _, said in example.turns) and example.turns[-1][0] in data.ANSWERS
                assert all(isinstance(option, str) for option in example.options)
                assert not example.options or example.turns[-1][1] in example.options
            accepted += 1
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
    assert 0 < accepted < 2500
