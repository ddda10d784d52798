"""Every format's records against examples written out by hand; what is bad is named by file and place."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command

from data import Example, InputError
from scripts import prepare

ROOT = Path(prepare.__file__).parent.parent

SYSTEM, HI, HELLO = ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!")
MORE, BYE = ("user", "Anything else?"), ("assistant", "No.")
QA, TRANSLATE = ("user", "Is a bank a party?"), ("user", "Translate.\n\nHi")


def chat(*turns, options=()) -> Example:
    return Example(next(text for role, text in turns if role == "user"), turns[-1][1], options, turns)


RECORDS = [  # format, record as its data set has it, the Example it stands for
    ("text", {"text": "t", "meta": {"pile_set_name": "FreeLaw"}}, Example("", "t")),
    ("prompt and answer", {"prompt": "p", "answer": "a", "id": 7}, Example("p", "a")),
    ("prompt and answer", {"prompt": "p", "answer": "a", "text": "p a"}, Example("p", "a")),
    ("prompt and answer", {"prompt": "p", "answer": "a", "options": ["a", "b"]},
     Example("p", "a", ("a", "b"))),
    ("prompt and answer", {"prompt": "p", "answer": "a", "options": None}, Example("p", "a")),
    ("question and answer", {"question": "Is a bank a party?", "answer": "yes", "options": ["yes", "no"]},
     chat(QA, ("assistant", "yes"), options=("yes", "no"))),
    ("messages", {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                               {"role": "assistant", "content": "Hello!"}]}, chat(SYSTEM, HI, HELLO)),
    ("messages", {"prompt": "Hi", "prompt_id": "f0e3", "messages": [  # UltraChat
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!", "weight": 1},
        {"role": "user", "content": "Anything else?"}, {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Bye"}]}, chat(HI, HELLO, MORE, BYE)),  # no answer: left out
    ("ShareGPT", {"id": "QWJhYvA_0", "conversations": [
        {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}, chat(HI, HELLO)),
    ("ShareGPT", {"conversations": [{"from": "system", "value": ""}, {"from": "human", "value": "Hi"},
                                    {"from": "gpt", "value": "Hello!"}]}, chat(HI, HELLO)),
    ("Alpaca", {"instruction": "Translate.", "input": "Hi", "output": "Salut", "text": "Below is an instruction ..."},
     chat(TRANSLATE, ("assistant", "Salut"))),
    ("Alpaca", {"instruction": "Hi", "input": "", "output": "Hello!"}, chat(HI, HELLO)),
    ("Alpaca", {"instruction": "Hi", "output": "Hello!"}, chat(HI, HELLO)),
    ("BillSum", {"source": "bill", "summary": "short"}, Example("bill\nSummary of the bill:", "short")),
    ("BillSum (Hugging Face)", {"text": "bill", "summary": "short", "title": "t"},
     Example("bill\nSummary of the bill:", "short")),
    ("CaseHOLD",
     {"citing_prompt": "cites", "label": "3", "example_id": 1, **{f"holding_{i}": f"h{i}" for i in range(5)}},
     Example("cites\nThe cited holding:", "h3", ("h0", "h1", "h2", "h3", "h4"))),
    ("CaseHOLD (LexGLUE)", {"context": "cites", "endings": ["a", "b", "c", "d", "e"], "label": 4},
     Example("cites\nThe cited holding:", "e", ("a", "b", "c", "d", "e"))),
    ("MedNLI", {"sentence1": "s", "sentence2": "t", "gold_label": "neutral"},
     Example("Premise: s\nHypothesis: t\nRelation:", "neutral", ("entailment", "contradiction", "neutral"))),
    ("PubMedQA", {"QUESTION": "q", "CONTEXTS": ["a", "b"], "final_decision": "no"},
     Example("a\nb\nQuestion: q\nAnswer:", "no", ("yes", "no", "maybe"))),
    ("PubMedQA (Hugging Face)",
     {"question": "q", "context": {"contexts": ["a", "b"]}, "final_decision": "no", "long_answer": "x"},
     Example("a\nb\nQuestion: q\nAnswer:", "no", ("yes", "no", "maybe"))),
    ("HQS", {"CHQ": "long", "Summary": "short"}, Example("long\nThe question in short:", "short"))]


@pytest.mark.parametrize("name, record, example", RECORDS)
def test_a_format_is_recognized_by_its_keys(name, record, example):
    assert prepare.parse(record) == example._replace(format=name)


def test_every_format_has_a_record_here():
    assert {name for name, *_ in RECORDS} == set(prepare.FORMATS)


ALPACA = [chat(("user", "Say, \"why\"\nnot?"), ("assistant", "a, b")), chat(HI, HELLO)]
FILES = {  # file name: (its content, what it holds)
    "lines.jsonl": ('\ufeff{"text": "a\u2028b"}\n\n{"prompt": "p", "answer": "c"}\r\n',
                    [Example("", "a\u2028b"), Example("p", "c")]),  # U+2028 ends no line
    "lines.json": ('{"text": "a"}\n{"text": "b"}\n', [Example("", "a"), Example("", "b")]),
    "array.json": ('[{"text": "a"}, {"text": "b"}]', [Example("", "a"), Example("", "b")]),
    "pretty.json": (json.dumps([record for _, record, _ in RECORDS], indent=2), [example for *_, example in RECORDS]),
    "report.txt": ("\ufeffOne\r\nparagraph.\r\n\r\n \t\r\n  Another.\n\n", [Example("", "One\nparagraph."),
                                                                           Example("", "Another.")]),
    "table.csv": ('instruction,input,output\n"Say, ""why""\nnot?",,"a, b"\n\nHi,,Hello!\n', ALPACA),
    "TABLE.TSV": ("id\tquestion\tanswer\r\n1\tIs it, too?\tyes\r\n",
                  [chat(("user", "Is it, too?"), ("assistant", "yes"))]),
    "long.csv": ("text\n" + 200_000 * "a", [Example("", 200_000 * "a")])}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_by_their_kind(tmp_path, name):
    content, examples = FILES[name]
    (tmp_path / name).write_bytes(content.encode())
    assert [e._replace(format="text") for e in prepare.read(tmp_path / name)] == examples


BAD = {  # file name: (its content, what the error says), test_bad_input.py has more JSON lines
    "no-column.csv": ("a;b\n1;2\n", "row 2: expected the keys of a format", "found ['a;b']"),
    "ragged.csv": ("prompt,answer\np,a\nq,b,c\n", "row 3: 3 columns, the header has 2"),
    "short.tsv": ("prompt\tanswer\np\ta\nq\n", "row 3: 1 columns, the header has 2"),
    "quote.csv": ('text\nfine\n"open\n', "row 3: not CSV"), "cell.csv": ("prompt,answer\np,\n", "row 2: ", "empty"),
    "latin.csv": (b"text\nfine\nl\xe9gal\n", "row 3: not CSV in UTF-8"), "header.csv": ("text\n", "no records"),
    "latin.txt": (b"One.\n\nL\xe9gal.\n", "paragraph 2: not text in UTF-8"), "blank.txt": (" \n\n", "no records"),
    "utf-16.csv": ("text\nfine\n".encode("utf-16"), "row "), "utf-16.txt": ("fine".encode("utf-16"), "UTF-8"),
    "array.json": ('[{"text": "a"}, {"text": 5}]', "record 2: ", "not a string"),
    "nested.json": ('[[{"text": "a"}]]', "record 1: expected the keys"), "none.json": ("[]", "no records"),
    "cut.json": ('[\n {"text": "a"},\n {"text', "not JSON", "line 3"), "deep.json": ("[" * 100_000, "not JSON"),
    "text.json": ("[Exhibit 10.1] This lease", "not JSON"),
    "paper.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF", "pdftotext"),
    "paper.txt": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF", "pdftotext"),
    "images.jsonl": ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},'
                     ' {"role": "assistant", "content": "Hello!"}]}', "line 1: ", "not a string"),
    **{f"chat-{i}.jsonl": (json.dumps({"messages": [{"role": who, "content": said} for who, said in turns]}),
                           "line 1: a chat needs a user's turn and an assistant's after it")
       for i, turns in enumerate([[], [HI], [SYSTEM, HELLO], [HELLO, HI]])},
    **{f"damaged-{i}.jsonl": (record, "line 1: a record of ", "with a missing or unexpected value (")
       for i, record in enumerate([
           '{"messages": null}', '{"messages": "Hi"}', '{"messages": [5]}', '{"messages": [{"role": "user"}]}',
           '{"messages": [{"role": ["user"], "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}',
           '{"messages": [{"role": "prompt", "content": "Hi"}, {"role": "answer", "content": "Hello!"}]}',
           '{"messages": [{"role": "tool", "content": "42"}]}',
           '{"conversations": [{"role": "user", "content": "Hi"}]}', '{"conversations": {"from": "human"}}',
           '{"instruction": 5, "output": "a"}', '{"instruction": "a", "input": {"a": 1}, "output": "a"}',
           '{"question": "q", "answer": "a", "options": "ab"}', '{"question": "q", "answer": "a", "options": {"a": 1}}'])},
    **{f"empty-{i}.jsonl": (record, "line 1: a value of ", "is empty or not a string") for i, record in enumerate([
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": null}]}',
        '{"instruction": "", "input": "", "output": "a"}', '{"question": "q", "answer": ["a"]}',
        '{"prompt": 5, "answer": "a"}', '{"question": " ", "answer": "a"}'])},
    "options.jsonl": ('{"question": "q", "answer": "a", "options": ["b"]}', "none of the options")}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_where_it_is_bad(tmp_path, name):
    content, *says = BAD[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        prepare.read(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and all(part in text for part in says), text


def test_files_become_records_that_are_read_alike(tmp_path, monkeypatch, capsys):
    """In their order, and made anew they stay as they are."""
    paths = [tmp_path / "a.jsonl", tmp_path / "b.json"]
    paths[0].write_text("".join(json.dumps(record) + "\n" for _, record, _ in RECORDS[:9]))
    paths[1].write_text(json.dumps([record for _, record, _ in RECORDS[9:]]))
    assert command(monkeypatch, *paths, main=prepare.main) == 0
    out, told = capsys.readouterr()
    paths[0].write_text(out)
    made = prepare.read(paths[0])
    assert [e._replace(format="text") for e in made] == [example for *_, example in RECORDS]
    assert {e.format for e in made} == {"text", "prompt and answer", "messages"}
    assert json.loads(out.splitlines()[0]) == {"text": "t"} and "3 Alpaca" in told
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
        prepare.read(bad)
    assert command(monkeypatch, good, bad, main=prepare.main) == 2
    out, error = capsys.readouterr()
    assert out == "" and f"{bad}, line 3: " in error and says in error and error.count("\n") == 1


def test_it_is_found_from_another_directory_whatever_else_has_its_name(tmp_path):
    for other in (tmp_path / "scripts", tmp_path / "site/scripts"):
        other.mkdir(parents=True)
        (other / "__init__.py").touch()
    ran = subprocess.run([sys.executable, ROOT / "train.py", "--data", "missing.jsonl"], capture_output=True, text=True,
                         cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")})
    assert ran.returncode == 2 and ran.stderr.startswith("error: missing.jsonl: cannot be read"), ran.stderr
