"""Small random models, a small tokenizer and small data for all tests: offline, on the CPU, in temporary folders."""
import json
import random
import sys

import pytest
import sentencepiece
import torch

import export
import llama
import train

torch.set_num_threads(1)  # the models are so small that a second thread only costs


def random_model(n_kv_heads=2, seed=0, lora=True, tied=False, **config) -> llama.Llama:
    """Three layers with 4 heads of 8; weights and LoRA large enough that every part shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(dim=32, n_layers=3, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=320, multiple_of=8) | config
    model = llama.Llama(llama.LlamaConfig(**options), tied)
    if lora:
        export.add_lora(model, rank=3, scale=2.0)
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
    who, what = ["the lessee", "the lessor", "the bank", "a tenant", "the court"], ["pay", "repair", "sell", "insure", "keep"]
    return [f"On day {rng.randint(1, 28)} {rng.choice(who)} shall {rng.choice(what)} lot {rng.randint(100, 999)} "
            f"for {rng.randint(1, 99)} dollars, unless {rng.choice(who)} gives notice." for _ in range(n)]


def command(monkeypatch, *arguments, main=train.main) -> int:
    """Runs a command as from the shell, in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)
    try:
        llama.command(main)
    except SystemExit as error:
        return error.code
    return 0


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences(300, 1)), model_writer=file, vocab_size=320,
                                                 model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                                                 remove_extra_whitespaces=False, minloglevel=2, num_threads=1)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file):
    return llama.Tokenizer(tokenizer_file)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer_file):
    """A random GQA base model in the raw format."""
    path = tmp_path_factory.mktemp("base")
    llama.save(random_model(lora=False), path, tokenizer_file)
    return path


@pytest.fixture(scope="session")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    texts = sentences(240, 2)
    records = [{"text": t} for t in texts[:120]]
    records += [{"prompt": f"{t} Question: which day? Answer:", "answer": t.split()[2]} for t in texts[120:]]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def options(model_dir, data_file, tmp_path):
    return ["--model", model_dir, "--data", data_file, "--out", tmp_path / "run", "--device", "cpu", "--steps", 16,
            "--seq-len", 32, "--batch-size", 4, "--lr", 1e-2, "--eval-every", 4, "--log-every", 2, "--checkpoint-every", 5,
            "--freeze-at", 0.5]


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the long version of the tests that have one (minutes)")
