"""The model that comes with the repository, and its maker."""
from pathlib import Path

import pytest
from conftest import command

import data
import llama
from scripts import tiny_base

ROOT = Path(llama.__file__).parent


def test_the_built_in_base_is_what_its_maker_makes():
    """As the maker says: its sizes, and a tokenizer that has an embedding for every token."""
    model, tokenizer = llama.load(ROOT / "base"), data.Tokenizer(ROOT / "base")
    tokenizer.check(model.config.vocab_size)
    for key, value in tiny_base.CONFIG.items():
        assert getattr(model.config, key) == value
    text = "The old mill by the river stood empty."
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_a_few_steps_of_the_maker_lower_the_loss(tmp_path, monkeypatch, capsys):
    losses = tiny_base.make(tmp_path / "new", steps=12)
    assert losses[0] > 6 and losses[-1] < losses[0] - 0.5
    assert llama.count_parameters(llama.load(tmp_path / "new")) == 1_000_576
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    with pytest.raises(data.InputError, match="exists already"):
        tiny_base.make(tmp_path / "new")
    assert command(monkeypatch, tmp_path / "new", main=tiny_base.main) == 2
    assert "exists already" in capsys.readouterr().err


def test_every_record_of_the_built_in_corpus_is_read():
    examples = data.read(ROOT / "legal.jsonl")
    assert len(examples) > 1000 and any(len(example.turns) > 1 for example in examples)
