"""The built-in base, the data it is tuned on, and the maker of both."""
import hashlib
import json
import sys
from pathlib import Path

import torch

import data
import export
import llama
from scripts.prepare import read

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import make_corpora  # noqa: E402
import pretrain  # noqa: E402


def test_a_few_steps_of_pretraining_lower_the_loss(tmp_path):
    tokenizer = pretrain.make_tokenizer(make_corpora.make_english(0, 300), tmp_path, 512)
    rows = pretrain.rows_of(1, 300, tokenizer, seq_len=64)
    sizes = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=512, multiple_of=8)
    model = pretrain.make_model(sizes)
    optimizers = pretrain.make_optimizers(model)
    losses = [pretrain.learn(model, optimizers, rows, step, steps=1000) for step in range(60)]
    assert 5.5 < losses[0] < 7 and sum(losses[-5:]) / 5 < losses[0] - 0.8


def test_the_learning_rate_rises_stays_and_falls_whatever_the_number_of_steps():
    rates = [pretrain.schedule(step, 1000) for step in range(1000)]
    assert rates[0] == 0.01 and rates[99] == rates[500] == 1 and rates[900] == 0.5 and rates[-1] == 0.005
    assert rates[:800] == [pretrain.schedule(step, 2000) for step in range(800)]


def test_the_maker_writes_the_same_bytes_every_time():
    texts = make_corpora.make_english(3, 50)
    assert texts == make_corpora.make_english(3, 50) != make_corpora.make_english(4, 50)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == "f1074a3e8679e618f37d1b816142e427cbaac4503904258b469c470cee7e6901"  # on every machine


def test_legal_jsonl_is_what_the_maker_writes(tmp_path):
    make_corpora.write(tmp_path / "legal.jsonl", make_corpora.make_legal())
    assert (tmp_path / "legal.jsonl").read_bytes() == (ROOT / "legal.jsonl").read_bytes()


def test_every_record_of_legal_jsonl_is_text_or_a_question_with_its_answer():
    records = [json.loads(line) for line in (ROOT / "legal.jsonl").read_text().splitlines()]
    examples = read(ROOT / "legal.jsonl")
    questions = [example for example in examples if example.prompt]
    assert len(examples) == len(records) and sum("text" in record for record in records) == make_corpora.TEXTS
    assert all(example.answer in example.options for example in questions)
    assert all(question.prompt.endswith("?\nAnswer:") for question in questions)
    by_kind = {"clause": [], "amount": [], "yes or no": [], "party": []}
    for question in questions:
        of_two = "yes or no" if question.options[0] == "Yes" else "party"
        by_kind[{4: "clause", 3: "amount"}.get(len(question.options), of_two)].append(question)
    assert {kind: len(found) for kind, found in by_kind.items()} == make_corpora.QUESTIONS
    in_text = by_kind["amount"] + by_kind["party"]
    assert all(question.answer.removeprefix("the ") in question.prompt for question in in_text)
    yes = [question.answer for question in by_kind["yes or no"]]
    assert 0.4 < yes.count("Yes") / len(yes) < 0.6


def long_sentences(texts):
    parts = [part for text in texts for line in text.split("\n") for part in line.split(". ")]
    return {part for part in parts if len(part) > 35}


def test_the_base_has_not_read_the_sentences_of_legal_jsonl():
    legal = [example.prompt.split("\n")[0] or example.answer for example in read(ROOT / "legal.jsonl")]
    assert len(long_sentences(legal)) > 4000
    assert len(long_sentences(legal) & long_sentences(make_corpora.make_english(1, 2000))) < 3


def test_the_base_loads_and_its_tokenizer_fits():
    base = ROOT / "base"
    model, tokenizer = llama.load(base, torch.float32), data.Tokenizer(base)
    tokenizer.check(model.config.vocab_size)
    assert model.config.n_kv_heads < model.config.n_heads
    assert llama.load(base).norm.weight.dtype == torch.bfloat16  # as stored
    assert sum(path.stat().st_size for path in base.iterdir()) < 8e6
    questions = data.load([ROOT / "legal.jsonl"], tokenizer, 256).questions
    assert len(questions) >= 60


def test_the_base_has_learned_its_english():
    model, tokenizer = llama.load(ROOT / "base", torch.float32), data.Tokenizer(ROOT / "base")
    unread = pretrain.rows_of(10**6, 60, tokenizer, 256)
    assert export.validation_loss(model, unread, 8) < 0.9
