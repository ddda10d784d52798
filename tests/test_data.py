"""Records, splits, packing and tokenizers, against results worked out by hand."""
import json

import pytest
import torch
from conftest import sentences

import data
from data import IGNORE, Example, InputError


def test_splits_are_deterministic_and_disjoint():
    """A record's place is its own affair: neither order nor other records matter. Equal ones are all on one
    side, and so are all answers to one prompt."""
    examples = [Example("", f"document {i}") for i in range(1000)] + [Example("", "document 7")] * 5
    examples += [Example("Which day?", str(i)) for i in range(26)]
    examples += [Example("Which day?", "5", chat=(*before, ("user", "Which day?"), ("assistant", "5")))
                 for before in ([], [("system", "Be brief.")])]
    parts = data.split(examples, 0.1)
    assert len(parts["validation"]) + len(parts["decision"]) + len(parts["train"]) == 1033
    assert 60 < len(set(parts["validation"])) < 140 and 60 < len(set(parts["decision"])) < 140
    assert data.split(examples[::-1], 0.1) == parts
    some = data.split(examples[500:], 0.1)
    assert all(set(some[name]) == set(parts[name]) & set(examples[500:]) for name in parts)
    places = {}
    for name, part in parts.items():
        for example in part:
            places.setdefault(example.prompt or example.answer, set()).add(name)
    assert len(places) == 1001 and all(len(names) == 1 for names in places.values())


def test_packing_worked_by_hand():
    """BOS is 1, EOS 2; the second document has no prompt. 1 10 11 12 | 2 1 20 21 | 2 1 30 31 | 2."""
    no = IGNORE
    documents = [([1, 10, 11, 12, 2], [no, no, no, 12, 2]), ([1, 20, 21, 2], [no, 20, 21, 2]),
                 ([1, 30, 31, 2], [no, no, 31, 2])]
    rows = data.pack(documents, 4, answer_only=False, pad=2)
    assert rows.tokens.tolist() == [[1, 10, 11, 12], [2, 1, 20, 21], [2, 1, 30, 31]]
    assert rows.targets.tolist() == [[10, 11, 12, 2], [IGNORE, 20, 21, 2], [IGNORE, 30, 31, 2]]
    answers = data.pack(documents, 4, answer_only=True, pad=2)
    assert answers.targets.tolist() == [[IGNORE, IGNORE, 12, 2], [IGNORE, 20, 21, 2], [IGNORE, IGNORE, 31, 2]]
    longer = data.pack(documents, 5, answer_only=False, pad=2)  # the last row is filled up, without targets
    assert longer.tokens.tolist()[-1] == [30, 31, 2, 2, 2]
    assert longer.targets.tolist()[-1] == [31, 2, IGNORE, IGNORE, IGNORE]


def test_batches_cover_every_row_once_an_epoch_and_depend_on_the_step_alone():
    rows = data.Rows(torch.arange(10)[:, None].int(), torch.arange(10)[:, None].int())
    stream = torch.cat([rows.batch(4, step, seed=3)[0] for step in range(5)]).flatten().tolist()
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10)) and stream[:10] != stream[10:]
    assert rows.batch(4, 3, seed=3)[0].flatten().tolist() == stream[12:16]
    assert rows.batch(4, 0, seed=4)[0].flatten().tolist() != stream[:4]


def test_load_tokenizes_with_bos_and_eos(data_file, tokenizer):
    loaded = data.load([str(data_file)], tokenizer, seq_len=32)
    assert sum(len(r.tokens) for r in (loaded.train, loaded.decision, loaded.validation)) > 100
    assert loaded.questions and all(q.prompt.endswith("Answer:") for q in loaded.questions)
    text = json.loads(data_file.read_text().splitlines()[0])["text"]
    (ids, answer), = data.encode([Example("", text)], tokenizer)
    assert ids[0] == tokenizer.bos and ids[-1] == tokenizer.eos and tokenizer.decode(ids[1:-1]) == text
    assert answer == [IGNORE, *ids[1:]]


def test_choices_and_short_answers_are_questions_but_no_texts(tmp_path, data_file, tokenizer):
    """Whatever their format, and however long the options."""
    path = tmp_path / "choices.json"
    long = [{"question": f"Does {text}", "answer": 3 * text, "options": [3 * text]} for text in sentences(100, 3)]
    path.write_text(json.dumps([{"text": f"Lot {i}."} for i in range(100)] + long))
    loaded = data.load([data_file, path], tokenizer, 32)
    assert {q.format for q in loaded.questions} == {"prompt and answer", "question and answer"}
    assert any(q.options and len(data.encode([q], tokenizer)[0][0]) > 64 for q in loaded.questions)


def test_the_papers_data_sets_are_read_as_they_are(tmp_path, tokenizer):
    path, prepared = tmp_path / "hqs.jsonl", tmp_path / "prepared.jsonl"
    path.write_text("".join(json.dumps({"CHQ": text, "Summary": text[:9]}) + "\n" for text in sentences(200, 3)))
    prepared.write_text("".join(json.dumps({"prompt": f"{text}\nThe question in short:", "answer": text[:9]}) + "\n"
                                for text in sentences(200, 3)))
    for one, other in zip(data.load([path], tokenizer, 32)[:3], data.load([prepared], tokenizer, 32)[:3]):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.targets, other.targets)


def test_an_answer_is_set_off_from_its_prompt(tokenizer):
    """Prompt and answer are encoded apart, and read as if they were one text with a space between."""
    prompt, answer = data.last_answer(*data.encode([Example("which day?", "5")], tokenizer)[0])
    assert tokenizer.decode(prompt[1:] + answer[:-1]) == "which day? 5"
    assert tokenizer.decode(answer[:-1]).strip() == "5"


@pytest.fixture
def json_tokenizer(tmp_path):
    """A byte-level tokenizer as Hugging Face stores it: 256 letters, one merge, three special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "th"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("t", "h")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|im_end|>", "<|eot|>"])  # 257, 258, 259
    made.enable_truncation(4)  # a setting that some models' files come with
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 259]}))
    return tmp_path


def test_a_tokenizer_json_worked_by_hand(json_tokenizer, tokenizer_file):
    tokenizer = data.Tokenizer(json_tokenizer)
    assert (tokenizer.kind, tokenizer.size, tokenizer.space) == ("json", 260, " ")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.stop) == (257, 258, {258, 259})
    (ids, _), (text, _) = data.encode([Example("the", "a"), Example("", "a")], tokenizer)
    assert tokenizer.decode(ids[1:-1]) == "the a" and tokenizer.decode(text[1:-1]) == "a"
    the, long = tokenizer.encode(["the", "the lessee shall"])
    assert the[0] == 256 and len(the) == 2 and tokenizer.decode(long) == "the lessee shall"  # nothing cut off
    assert not {257, 258, 259} & set(tokenizer.encode(["<|im_end|>"])[0])  # text cannot forge special tokens
    (json_tokenizer / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot|>"}))
    (json_tokenizer / "generation_config.json").unlink()
    assert data.Tokenizer(json_tokenizer).stop == {259}
    (json_tokenizer / "tokenizer.model").write_bytes(tokenizer_file.read_bytes())
    assert data.Tokenizer(json_tokenizer).kind == "sentencepiece"  # it comes first


@pytest.mark.parametrize("vocab_size, fits", [(319, False), (320, True), (1343, True), (1344, False)])
def test_a_tokenizer_belongs_to_a_vocabulary(tokenizer, vocab_size, fits):
    """320 tokens: each needs an embedding; a little room at the end is common, more is another model's."""
    if fits:
        tokenizer.check(vocab_size)
    else:
        with pytest.raises(InputError, match="320 tokens"):
            tokenizer.check(vocab_size)
