"""Bad input to the real commands: exit status 2, one line that says what and where, and nothing on disk changed."""
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
from conftest import command

import data
import export
import llama
import train
from llama import InputError, LlamaConfig


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


ARGUMENTS = [
    (["--prune", "0"], "--prune"), (["--prune", "1"], "--prune"), (["--prune", "nan"], "--prune"), (["--prune", "40%"], "--prune"),
    (["--prune", "0.998"], "out of reach"), (["--round-to", "64", "--prune", "0.9"], "--round-to"), (["--round-to", "0"], "--round-to"),
    (["--steps", "0"], "--steps"), (["--steps", "ten"], "--steps"), (["--steps", "1e3"], "--steps"), (["--batch-size", "-2"], "--batch-size"),
    (["--batch-size", "100000"], "fewer than one batch"), (["--seq-len", "100000"], "fewer than one batch"), (["--seq-len", "1"], "--seq-len"),
    (["--lr", "-1"], "--lr"), (["--lr", "inf"], "--lr"), (["--rank", "0"], "--rank"), (["--freeze-at", "1.5"], "--freeze-at"),
    (["--temperature", "0"], "--temperature"), (["--seed", "-1"], "--seed"), (["--seed", "4294967296"], "--seed"),
    (["--space", "layers"], "--space"), (["--dtype", "float16"], "--dtype"), (["--device", "tpu"], "--device tpu"),
    (["--device", "cuda:99"], "--device cuda:99"), (["--alpha", "3"], "--alpha has no effect"), (["--frobnicate"], "--frobnicate"),
    (["--resume", "nowhere"], "no others"), (["--data", "missing.jsonl"], "missing.jsonl"), (["--data", "."], "cannot be read"),
    (["--model", "missing"], "missing"), (["--model", "."], "."), (["--out", "/proc/run"], "cannot be written"),
    (["--round-to", "3"], "--round-to 3"), (["--decisions", "taylor"], "--freeze-at has no effect"), (["--generator-every", "3"], "--generator-every has no effect"), (["--generator-batch-size", "4"], "--generator-batch-size has no effect"),
    (["--spread", "0", "--warm-start", "0.5"], "--warm-start has no effect"), (["--warm-start", "1.1"], "--warm-start 1.1"),
    (["--lasso", "none", "--lasso-weight", "1"], "--lasso-weight has no effect"),
]
LINES = [  # the third line of a data file
    (b'{"text": "a"', "not JSON"), (b"plain text", "not JSON"), (b'{"text": "\xff\xfe"}', "UTF-8"), ("{\"text\": \"é\"}".encode("utf-16"), "UTF-8"),
    (b'{"text": "a\x00b"}', "not JSON"), (b"\x00" * 100, "not JSON"), (b"[" * 200000, "not JSON"), (b'{"a":' * 100000, "not JSON"),
    (b"[]", "not a JSON object"), (b"null", "not a JSON object"), (b'"text"', "not a JSON object"), (b"{}", "fit no known format"),
    (b'{"Text": "a"}', "fit no known format"), (b'{"prompt": "p"}', "fit no known format"), (b'{"answer": "a"}', "fit no known format"),
    (b'{"text": 5}', "not a string"), (b'{"text": null}', "not a string"), (b'{"text": ["a"]}', "not a string"), (b'{"text": {"text": "a"}}', "not a string"),
    (b'{"prompt": "p", "answer": 42}', "not a string"), (b'{"text": "\\ud83d..."}', "lone surrogate"), (b'{"text": ""}', "empty"), (b'{"text": "  "}', "empty"),
    (b'{"prompt": "", "answer": "a"}', "empty"), (b'{"prompt": "p", "answer": ""}', "empty"), (b'{"source": "s", "summary": 1}', "not a string"),
    (b'{"citing_prompt": "c", "holding_0": "h", "label": "0"}', "missing or unexpected"),
    (b'{"citing_prompt": "c", "holding_0": "h", "holding_1": "h", "holding_2": "h", "holding_3": "h", "holding_4": "h", "label": "9"}', "unexpected"),
    (b'{"citing_prompt": "c", "holding_0": "h", "holding_1": "h", "holding_2": "h", "holding_3": "h", "holding_4": "h", "label": -1}', "unexpected"),
    (b'{"sentence1": "a", "sentence2": "b", "gold_label": "perhaps"}', "unexpected"),
    (b'{"question": "q", "context": "not nested", "final_decision": "yes"}', "unexpected"), (b"9" * 6000, "not JSON"),
]
MODELS = [
    (lambda d: write(d / "params.json", "{"), "params.json"), (lambda d: write(d / "params.json", "[]"), "not a JSON object"),
    (lambda d: write(d / "params.json", b"\xff\xfe"), "params.json"), (lambda d: write(d / "params.json", "[" * 100000), "params.json"),
    (lambda d: (d / "params.json").unlink(), "params.json"), (lambda d: params(d, dim=...), "missing 1 required positional argument: 'dim'"),
    (lambda d: params(d, dim=-32), "'dim'"), (lambda d: params(d, dim="32"), "'dim'"), (lambda d: params(d, dim=True), "'dim'"),
    (lambda d: params(d, dim=1e9), "'dim'"), (lambda d: params(d, dim=2**23), "shape"), (lambda d: params(d, n_layers=10**6), "layers"),
    (lambda d: params(d, n_layers=4, layers=...), "the checkpoint has 3 layers"), (lambda d: params(d, norm_eps=0), "'norm_eps'"),
    (lambda d: params(d, rope_theta=-1.0), "'rope_theta'"), (lambda d: params(d, vocab_size=400), "tok_embeddings.weight has shape"),
    (lambda d: params(d, moe={"n": 8}), "unexpected keyword argument 'moe'"), (lambda d: params(d, head_dim=7), "params.json"),
    (lambda d: layer(d, n_kv_heads=3), "cannot share"), (lambda d: layer(d, rotary_pairs=[0, 99]), "rotary pairs"),
    (lambda d: layer(d, rotary_pairs=["0"]), "rotary pairs"), (lambda d: layer(d, hidden_dim=0), "'hidden_dim'"),
    (lambda d: (d / "consolidated.00.pth").unlink(), "no consolidated"), (lambda d: write(d / "consolidated.00.pth", b""), "damaged"),
    (lambda d: os.truncate(d / "consolidated.00.pth", 9000), "damaged"), (lambda d: write(d / "consolidated.00.pth", "text"), "damaged"),
    (lambda d: write(d / "consolidated.00.pth", pickle.dumps(Bomb())), "damaged"),
    (lambda d: torch.save({"norm.weight": Bomb()}, d / "consolidated.00.pth"), "damaged"), (compressed, "compressed"),
    (lambda d: weights(d, lambda s: [1]), "holds a list"), (lambda d: weights(d, lambda s: s | {"norm.weight": 1.0}), "is a float"),
    (lambda d: weights(d, lambda s: {n: t for n, t in s.items() if n != "layers.1.attention.wq.weight"}), "wq.weight is missing"),
    (lambda d: weights(d, lambda s: s | {"layers.1.attention.wq.bias": s["norm.weight"]}), "wq.bias is not part"),
    (lambda d: weights(d, lambda s: s | {"norm.weight": torch.ones(1).expand(2**40)}), "norm.weight has shape"),
    (lambda d: weights(d, lambda s: s | {"norm.weight": torch.ones(32, dtype=torch.int8)}), "quantized"),
    (lambda d: shutil.copy(d / "consolidated.00.pth", d / "consolidated.01.pth"), "2 shards"),
    (lambda d: shutil.copy(d / "consolidated.00.pth", d / "consolidated.02.pth"), "consolidated.01.pth is missing"),
    (lambda d: weights(d, half_a_shard), "a shard is missing"), (larger_vocabulary, "320 tokens"),
    (lambda d: (d / "tokenizer.model").unlink(), "tokenizer.model"), (lambda d: write(d / "tokenizer.model", b"\x00\x01"), "tokenizer.model"),
    (lambda d: write(d / "tokenizer.model", b""), "tokenizer.model"), (smaller_vocabulary, "320 tokens"),
]


@pytest.fixture
def refused(monkeypatch, options, tmp_path, capsys):
    """Runs a command that must fail: checks the status, the line, and that no file changed."""
    def run(arguments, says, main=train.main):
        monkeypatch.chdir(tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert command(monkeypatch, *arguments, main=main) == 2
        error = capsys.readouterr().err
        assert says in error and error.startswith("error: ") and error.count("\n") == 1 and len(error) < 600, error
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert not Path("ran").exists()
    return run


@pytest.mark.parametrize("arguments, says", ARGUMENTS, ids=str)
def test_arguments(refused, options, arguments, says):
    refused([*options, *arguments], says)


@pytest.mark.parametrize("line, says", LINES, ids=lambda value: str(value)[:40])
def test_data_lines(refused, options, tmp_path, line, says):
    path = write(tmp_path / "bad.jsonl", b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine too"}\n')
    refused([*options, "--data", path], says)
    with pytest.raises(InputError, match="line 3"):
        data.read(path)


@pytest.mark.parametrize("content, says", [("", "no records"), ("\n\n", "no records"), ('{"text": "a"}\n' * 50, "fewer than three"),
                                           ('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n', "fewer than one batch")])
def test_data_files(refused, options, tmp_path, content, says):
    refused([*options, "--data", write(tmp_path / "bad.jsonl", content)], says)


@pytest.mark.parametrize("number", range(len(MODELS)))
def test_models(refused, options, model_dir, tmp_path, number):
    damage, says = MODELS[number]
    shutil.copytree(model_dir, tmp_path / "model")
    damage(tmp_path / "model")
    refused([*options, "--model", tmp_path / "model"], says)
    refused([tmp_path / "model"], says, main=llama.main)


def test_checkpoints(refused, options, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert command(monkeypatch, *options, "--steps", 4) == 0
    good = (run / "ckpt.pt").read_bytes()
    with zipfile.ZipFile(run / "ckpt.pt") as archive:
        record = max(archive.infolist(), key=lambda record: record.file_size)
    flipped = bytearray(good)
    flipped[good.index(record.filename.encode()) + 1000] ^= 1
    for damage in (b"", good[:len(good) // 2], bytes(flipped), pickle.dumps(Bomb())):
        write(run / "ckpt.pt", damage)
        refused(["--resume", run], "ckpt.pt")
        refused([run], "ckpt.pt", main=export.main)
    torch.save({"step": 1}, run / "ckpt.pt")
    refused(["--resume", run], "not a checkpoint")
    state = export.llama.read_tensors(write(run / "ckpt.pt", good), mmap=False)
    state["config"]["colour"] = "blue"
    torch.save(state, run / "ckpt.pt")
    refused(["--resume", run], "another version")
    state = export.llama.read_tensors(write(run / "ckpt.pt", good), mmap=False)
    state.pop("in_a_row")
    torch.save(state, run / "ckpt.pt")
    refused(["--resume", run], "another version")
    (run / "ckpt.pt").unlink()
    refused(["--resume", run], "no ckpt.pt")
    refused(["--resume", tmp_path / "nowhere"], "no ckpt.pt")


def test_nothing_of_others_is_overwritten(refused, options, tmp_path, monkeypatch):
    run, precious = tmp_path / "run", tmp_path / "precious"
    assert command(monkeypatch, *options, "--steps", 4, "--space", "heads") == 0
    precious.mkdir()
    write(precious / "thesis.tex", "years of work")
    again = [*options, "--space", "heads", "--model", run / "pruned", "--prune", "0.1", "--overwrite"]
    refused(again, "replace the model it starts from")  # a second round of pruning, into the same run
    for target in (precious, run, tmp_path):
        refused([run, "--out", target], "exists already", main=export.main)
        refused([run, "--hf", target], "exists already", main=export.main)
    refused([run, "--hf", tmp_path / "hf", "--dtype", "bfloat16"], "--dtype", main=export.main)
    refused([tmp_path / "nowhere", "--hf", tmp_path / "hf"], "no consolidated", main=export.main)
    refused([run, "--out", tmp_path / "new", "--device", "meta"], "--device meta", main=export.main)
    refused([run / "pruned", "--max-tokens", "-9"], "--max-tokens", main=llama.main)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")])
def test_out_of_memory_names_what_lowers_the_need(monkeypatch, options, capsys, tmp_path, error):
    """After the first steps; the checkpoint is still good."""
    step = train.Run.lora_step

    def full(run):
        if run.step == 7:
            raise error
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "lora_step", full)
        assert command(patch, *options) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "step 7" in line
    assert all(flag in line for flag in ("--batch-size with --accumulate 2", "--seq-len", "--checkpointing", "--dtype bfloat16"))
    assert command(monkeypatch, "--resume", tmp_path / "run") == 0


def test_bfloat16_where_there_is_none(monkeypatch, refused, options):
    monkeypatch.setattr(train, "has_bfloat16", lambda device: False)
    refused([*options, "--dtype", "bfloat16"], "use --dtype float32")


def test_as_from_the_shell(tmp_path):
    """One of them in a process of its own: the real exit status, one line, no traceback."""
    for script in ("train.py", "llama.py", "export.py"):
        arguments = ["--data", "missing.jsonl", "--out", str(tmp_path / "run")] if script == "train.py" else [str(tmp_path / "none")]
        done = subprocess.run([sys.executable, script, *arguments], cwd=Path(llama.__file__).parent, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr


VALUES = [None, True, 0, 1, -1, 2, 3, 7, 2**31, 10**30, 0.5, -0.0, 1e308, "", "32", "\x00", [], [1], {}, {"a": 1}, [None], "NaN"]


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
    rng, path = random.Random(0), tmp_path / "params.json"
    good, accepted = json.loads((model_dir / "params.json").read_text()), 0
    for _ in range(3000):
        value = good
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = mutate(value, rng)
        path.write_text(json.dumps(value))
        try:
            config = LlamaConfig.read(path)
            assert len(config.layers) == config.n_layers and all(size.hidden_dim > 0 for size in config.layers)
            accepted += 1
        except InputError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
    assert 0 < accepted < 2000


def test_fuzz_json_lines(tmp_path):
    """3,000 mutated lines, as JSON and as bytes: examples of strings, or refused with the line."""
    rng, path, accepted = random.Random(1), tmp_path / "fuzz.jsonl", 0
    holdings = {f"holding_{i}": "h" for i in range(5)}
    good = [{"text": "a text"}, {"prompt": "p", "answer": "a"}, {"source": "s", "summary": "t"},
            {"citing_prompt": "c", "label": "1", **holdings}, {"sentence1": "a", "sentence2": "b", "gold_label": "neutral"},
            {"question": "q", "context": {"contexts": ["a", "b"]}, "final_decision": "no"}, {"CHQ": "q", "Summary": "s"}]
    for _ in range(3000):
        line = json.dumps(mutate(rng.choice(good), rng)).encode()
        if rng.random() < 0.5:
            line = bytearray(line)
            for _ in range(rng.randint(1, 3)):
                line[rng.randrange(len(line))] = rng.randrange(256)
        path.write_bytes(bytes(line) + b"\n")
        try:
            for _, example in data.read(path):
                assert isinstance(example.prompt, str) and example.answer.strip()
            accepted += 1
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
    assert 0 < accepted < 2500
