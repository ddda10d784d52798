"""Every data set's records against prompts written out by hand; what is bad is named by file and line."""
import json

import pytest
from conftest import command, document, question

import data
from data import InputError
from scripts import prepare

RECORDS = [  # format, record, prompt, answer and options
    ("BillSum", {"source": "bill", "summary": "short"}, "bill\nSummary of the bill:", "short", ()),
    ("BillSum (Hugging Face)", {"text": "bill", "summary": "short", "title": "t"},
     "bill\nSummary of the bill:", "short", ()),
    ("CaseHOLD",
     {"citing_prompt": "cites", "label": "3", "example_id": 1, **{f"holding_{i}": f"h{i}" for i in range(5)}},
     "cites\nThe cited holding:", "h3", ("h0", "h1", "h2", "h3", "h4")),
    ("CaseHOLD (LexGLUE)", {"context": "cites", "endings": ["a", "b", "c", "d", "e"], "label": 4},
     "cites\nThe cited holding:", "e", ("a", "b", "c", "d", "e")),
    ("MedNLI", {"sentence1": "s", "sentence2": "t", "gold_label": "neutral"},
     "Premise: s\nHypothesis: t\nRelation:", "neutral", ("entailment", "contradiction", "neutral")),
    ("PubMedQA", {"QUESTION": "q", "CONTEXTS": ["a", "b"], "final_decision": "no"},
     "a\nb\nQuestion: q\nAnswer:", "no", ("yes", "no", "maybe")),
    ("PubMedQA (Hugging Face)",
     {"question": "q", "context": {"contexts": ["a", "b"]}, "final_decision": "no", "long_answer": "x"},
     "a\nb\nQuestion: q\nAnswer:", "no", ("yes", "no", "maybe")),
    ("HQS", {"CHQ": "long", "Summary": "short"}, "long\nThe question in short:", "short", ())]
PLAIN = [  # what data.py reads goes through, with its own formats' names
    ({"text": "t", "language": "en"}, document("t")), ({"prompt": "p", "answer": "a"}, question("p", "a")),
    ({"prompt": "p", "answer": "a", "options": ["a", "b"]}, question("p", "a", ["a", "b"])),
    ({"question": "q", "answer": "a", "options": ["a", "b"]},
     data.Example((("user", "q"), ("assistant", "a")), ("a", "b"), "question"))]


@pytest.mark.parametrize("name, record, prompt, answer, options", RECORDS)
def test_a_format_is_recognized_by_its_keys(name, record, prompt, answer, options):
    assert prepare.parse(record) == question(prompt, answer, options, name)


def test_files_become_records_that_data_reads(tmp_path, monkeypatch, capsys):
    """In their order, and made anew they stay as they are."""
    paths = [tmp_path / "a.jsonl", tmp_path / "b.json"]
    paths[0].write_text("".join(json.dumps(record) + "\n" for _, record, *_ in RECORDS))
    paths[1].write_text(json.dumps([record for record, _ in PLAIN]))
    assert [name for name, *_ in RECORDS] == [*prepare.FORMATS]
    assert command(monkeypatch, *paths, main=prepare.main) == 0
    out, told = capsys.readouterr()
    paths[0].write_text(out)
    expected = [question(*prompted) for _, _, *prompted in RECORDS] + [example for _, example in PLAIN]
    expected[-1] = expected[-1]._replace(format="messages")
    assert data.read(paths[0]) == expected
    assert '{"text": "t"}' in out.splitlines() and "2 prompt and answer" in told
    assert command(monkeypatch, paths[0], main=prepare.main) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("line, says", [
    ('{"txt": "a"}', "found ['txt']"), ("[1]", "found []"),
    ('{"text": 5}', "not a string"), ('{"source": 5, "summary": "a"}', "expected str instance, int found"),
    ('{"source": "a", "summary": 5}', "not a string"), ('{"source": "a", "summary": " "}', "empty"),
    ('{"CHQ": "half a character \\ud83d", "Summary": "a"}', "surrogate"),
    ('{"context": ["c"], "endings": ["a"], "label": 0}', "missing or unexpected"),
    ('{"context": "c", "endings": ["a"], "label": 1}', "missing or unexpected"),
    ('{"context": "c", "endings": ["a"], "label": -1}', "missing or unexpected"),
    ('{"context": "c", "endings": [5], "label": 0}', "not a string"),
    ('{"question": "q", "context": {"contexts": "c"}, "final_decision": "no"}', "missing or unexpected"),
    ('{"question": "q", "context": {"contexts": ["c"]}, "final_decision": "perhaps"}', "none of the options"),
    ('{"text": "a"', "not JSON"), ('{"text": ""}', "empty"), ('{"prompt": "", "answer": "a"}', "empty"),
    ('{"citing_prompt": "c", "holding_0": "h", "label": 0}', "missing or unexpected"),
    ("[" * 100000, "not JSON")])
def test_a_bad_record_is_named_by_its_line(tmp_path, monkeypatch, capsys, line, says):
    """And nothing is written, not even what the files before it hold."""
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"text": "good"}\n')
    bad.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(InputError, match="line 3"):
        data.read(bad, prepare.parse)
    assert command(monkeypatch, good, bad, main=prepare.main) == 2
    out, error = capsys.readouterr()
    assert out == "" and f"{bad}, line 3: " in error and says in error and error.count("\n") == 1
