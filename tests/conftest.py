"""A small random model, tokenizer and data for all tests: offline, on the CPU, in temporary folders."""
import gc
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch

import data
import llama
import train

torch.set_num_threads(1)  # the models are so small that a second thread only costs


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the long tests, too (some ten minutes)")


def pytest_configure(config):
    config.addinivalue_line("markers", "long: only with --long")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="a long test: --long"))


def random_model(n_kv_heads=2, seed=0, lora=True, tied=False, **config) -> llama.Llama:
    """Three layers with 4 heads of 8; weights and LoRA large enough that every part shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(dim=32, n_layers=3, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=320, multiple_of=8)
    model = llama.Llama(llama.LlamaConfig(**options | config), tied)
    if lora:
        model.add_lora(rank=3, scale=2.0)
    for name, p in model.named_parameters():
        std = 1.0 if "tok_embeddings" in name else p.shape[-1] ** -0.5
        p.data = torch.randn(p.shape, generator=generator) * (0.2 if name.endswith((".A", ".B")) else std)
        if "norm" in name:
            p.data = 1 + 0.1 * torch.randn(p.shape, generator=generator)
    return model


def random_tokens(*shape, seed=0, vocab=320):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def sentences(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    who = ["the lessee", "the lessor", "the bank", "a tenant", "the court"]
    what = ["pay", "repair", "sell", "insure", "keep"]
    return [f"On day {rng.randint(1, 28)} {rng.choice(who)} shall {rng.choice(what)} lot "
            f"{rng.randint(100, 999)} for {rng.randint(1, 99)} dollars, unless {rng.choice(who)} gives "
            "notice." for _ in range(n)]


def command(monkeypatch, *arguments, main=train.main) -> int:
    """Runs a command as from the shell, in this process; its exit status."""
    if any(os.path.exists(f"{argument}/lock") for argument in arguments):
        gc.collect()  # closes what an earlier command in this process left open, as its end would have
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    try:
        data.command(main)
    except SystemExit as error:
        return error.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def content(directory: Path) -> dict[Path, bytes]:
    """Every file in and under a directory."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def read_log(run: Path) -> list[dict]:
    """log.jsonl, without what depends on the machine."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def assert_same_run(run: Path, reference: Path) -> None:
    """The same log and, bit for bit, the same exported weights."""
    assert read_log(run) == read_log(reference)
    ours, theirs = (torch.load(path / "pruned/consolidated.00.pth") for path in (run, reference))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences(300, 1)), model_writer=file, vocab_size=320, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            minloglevel=2, num_threads=1)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file):
    return data.Tokenizer(tokenizer_file.parent)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer_file):
    """A random GQA base model in the raw format."""
    path = tmp_path_factory.mktemp("base")
    llama.save(random_model(lora=False), path, tokenizer_file.parent)
    return path


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    texts = sentences(240, 2)
    records = [{"text": t} for t in texts[:120]]
    records += [{"prompt": f"{t} Question: which day? Answer:", "answer": t.split()[2]} for t in texts[120:]]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def small_run(model_dir, data_file, out) -> list:
    return ["--model", model_dir, "--data", data_file, "--out", out, "--device", "cpu", "--steps", 16,
            "--seq-len", 32, "--batch-size", 4, "--lr", 1e-2, "--freeze-at", 0.5, "--eval-every", 4,
            "--log-every", 2]


@pytest.fixture
def options(model_dir, data_file, tmp_path):
    """Of a run of 16 steps, 8 of them search."""
    return small_run(model_dir, data_file, tmp_path / "run")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, model_dir, data_file):
    """The directory of a run with `options`, to be read only; to go on with it, take a copy."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *small_run(model_dir, data_file, out)) == 0
    before = content(out)
    yield out
    assert content(out) == before
