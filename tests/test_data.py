"""Records, splits and packing, against results worked out by hand."""
import json

import pytest
import torch

import data
from data import Example
from llama import IGNORE, InputError


def test_formats_are_recognized_by_their_keys():
    holdings = {f"holding_{i}": f"h{i}" for i in range(5)}
    name, example = data.parse({"citing_prompt": "cites", "label": "3", "example_id": 1, **holdings}, "here")
    assert name == "CaseHOLD" and example.answer == "h3" and example.options == ("h0", "h1", "h2", "h3", "h4")
    assert data.parse({"source": "bill", "summary": "short"}, "")[0] == "BillSum"
    assert data.parse({"text": "t", "language": "en"}, "") == ("text", Example("", "t"))
    assert data.parse({"prompt": "p", "answer": "a"}, "") == ("prompt and answer", Example("p", "a"))
    assert data.parse({"sentence1": "s", "sentence2": "t", "gold_label": "neutral"}, "")[1].answer == "neutral"
    question = {"question": "q", "context": {"contexts": ["a", "b"]}, "final_decision": "no", "long_answer": "x"}
    name, example = data.parse(question, "")
    assert name.startswith("PubMedQA") and example.answer == "no" and example.prompt == "a\nb\nQuestion: q\nAnswer:"
    assert data.parse({"QUESTION": "q", "CONTEXTS": ["a", "b"], "final_decision": "no"}, "") == ("PubMedQA", example)
    name, example = data.parse({"context": "cites", "endings": ["a", "b", "c", "d", "e"], "label": 4}, "")
    assert name == "CaseHOLD (LexGLUE)" and example.answer == "e"
    assert data.parse({"text": "bill", "summary": "short", "title": "t"}, "")[1].answer == "short"
    assert data.parse({"CHQ": "long", "Summary": "short"}, "")[1].answer == "short"


@pytest.mark.parametrize("line, says", [
    ('{"txt": "a"}', "'txt' fit no known format"), ('{"text": 5}', "not a string"), ("[1]", "not a JSON object"),
    ('{"source": 5, "summary": "a"}', "not a string"), ('{"context": ["c"], "endings": ["a"], "label": 0}', "missing or unexpected"),
    ('{"question": "q", "context": {"contexts": "c"}, "final_decision": "no"}', "missing or unexpected"),
    ('{"text": "a"', "not JSON"), ('{"text": ""}', "empty"), ('{"prompt": "", "answer": "a"}', "empty"),
    ('{"citing_prompt": "c", "holding_0": "h", "label": 0}', "missing or unexpected"), ("[" * 100000, "not JSON")])
def test_a_bad_record_is_named_by_its_line(tmp_path, line, says):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(InputError) as error:
        data.read(path)
    assert "line 3" in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


def test_splits_are_deterministic_and_disjoint():
    examples = [Example("", f"document {i}") for i in range(100)] + [Example("", "document 7")] * 5
    parts = data.split(examples, 0.1)
    assert {name: len(set(part)) for name, part in parts.items()} == {"validation": 10, "decision": 10, "train": 80}
    assert sum(map(len, parts.values())) == 105
    assert data.split(examples[::-1], 0.1) == parts
    sets = [set(part) for part in parts.values()]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])  # the copies are all on one side


def test_packing_worked_by_hand():
    pairs = [([1, 10, 11], [12, 2]), ([1], [20, 21, 2]), ([1, 30], [31, 2])]  # BOS is 1, EOS 2; the second has no prompt
    #        1 10 11 12 | 2 1 20 21 | 2 1 30 31 | 2
    rows = data.pack(pairs, 4, answer_only=False, pad=2)
    assert rows.tokens.tolist() == [[1, 10, 11, 12], [2, 1, 20, 21], [2, 1, 30, 31]]
    assert rows.targets.tolist() == [[10, 11, 12, 2], [IGNORE, 20, 21, 2], [IGNORE, 30, 31, 2]]
    answers = data.pack(pairs, 4, answer_only=True, pad=2)
    assert answers.targets.tolist() == [[IGNORE, IGNORE, 12, 2], [IGNORE, 20, 21, 2], [IGNORE, IGNORE, 31, 2]]
    longer = data.pack(pairs, 5, answer_only=False, pad=2)  # the last row is filled up and the filling is no target
    assert longer.tokens.tolist()[-1] == [30, 31, 2, 2, 2] and longer.targets.tolist()[-1] == [31, 2, IGNORE, IGNORE, IGNORE]


def test_batches_cover_every_row_once_an_epoch_and_depend_on_the_step_alone():
    rows = data.Rows(torch.arange(10)[:, None].int(), torch.arange(10)[:, None].int())
    stream = torch.cat([rows.batch(4, step, seed=3)[0] for step in range(5)]).flatten().tolist()
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10)) and stream[:10] != stream[10:]
    assert rows.batch(4, 3, seed=3)[0].flatten().tolist() == stream[12:16]
    assert rows.batch(4, 0, seed=4)[0].flatten().tolist() != stream[:4]


def test_load_tokenizes_with_bos_and_eos(data_file, tokenizer):
    loaded = data.load([str(data_file)], tokenizer, seq_len=32)
    assert loaded.records == {"text": 120, "prompt and answer": 120}
    assert sum(len(r.tokens) for r in (loaded.train, loaded.decision, loaded.validation)) > 100
    assert loaded.questions and all(q.prompt.endswith("Answer:") for q in loaded.questions)
    records = [json.loads(line) for line in data_file.read_text().splitlines()]
    text = records[0]["text"]
    (prompt, answer), = data.encode([Example("", text)], tokenizer)
    assert prompt == [tokenizer.bos] and answer[-1] == tokenizer.eos and tokenizer.decode(answer[:-1]) == text
