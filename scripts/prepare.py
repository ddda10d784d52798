"""What data may look like: files of records, and the formats of records, those of the paper's data sets among them.

    python scripts/prepare.py casehold.jsonl us_bills.jsonl > prepared.jsonl

train.py reads all of it as it is. The command makes JSON lines of it, {"text"}, {"prompt", "answer"} or {"messages"},
each with "options" if it is a choice. Nothing is written before all files are read.
"""
import csv
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
from data import Example, InputError  # noqa: E402

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}


# --- records ---

def choice(record: dict) -> tuple:
    """The options of a record of which they are part. Raises TypeError."""
    options = record.get("options") or []
    if not isinstance(options, list):
        raise TypeError("options: not a list")
    return tuple(options)


def chat(turns: list[tuple], options=()) -> Example:
    """Of (role, text) up to the last answer. Raises InputError, or KeyError for an unknown role."""
    turns = [(ROLES[role], text) for role, text in turns if (role, text) != ("system", "")]
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    asked = [text for role, text in turns if role == "user"]
    if not asked:
        raise InputError("a chat needs a user's turn and an assistant's after it; mend the record")
    return Example(asked[0], turns[-1][1], options, tuple(turns))


def asked(lines: list[str], answer: str, options=()) -> Example:
    return Example("\n".join(lines), answer, tuple(options))


def holding(context: str, options: list[str], label) -> Example:
    return asked([context, "The cited holding:"], options[list("01234").index(str(label))], options)


def pubmed(contexts: list[str], question: str, answer: str) -> Example:
    return asked(contexts + ["Question: " + question, "Answer:"], answer, ["yes", "no", "maybe"])


# A record's format is the first of which it has all keys. A prompt ends where the answer's space begins.
FORMATS = {
    "prompt and answer": (("prompt", "answer"), lambda r: Example(r["prompt"], r["answer"], choice(r))),
    "messages": (("messages",), lambda r: chat([(m["role"], m["content"]) for m in r["messages"]], choice(r))),
    "ShareGPT": (("conversations",), lambda r: chat(
        [(m["from"], m["value"]) for m in r["conversations"]], choice(r))),
    "Alpaca": (("instruction", "output"), lambda r: chat(
        [("user", "\n\n".join(filter(None, [r["instruction"], r.get("input")]))), ("assistant", r["output"])],
        choice(r))),
    "question and answer": (("question", "answer"), lambda r: chat(
        [("user", r["question"]), ("assistant", r["answer"])], choice(r))),
    "BillSum": (("source", "summary"), lambda r: asked([r["source"], "Summary of the bill:"], r["summary"])),
    "BillSum (Hugging Face)": (("text", "summary"), lambda r: asked(
        [r["text"], "Summary of the bill:"], r["summary"])),
    "CaseHOLD": (("citing_prompt", "holding_0", "label"), lambda r: holding(
        r["citing_prompt"], [r[f"holding_{i}"] for i in range(5)], r["label"])),
    "CaseHOLD (LexGLUE)": (("context", "endings", "label"), lambda r: holding(
        r["context"], r["endings"], r["label"])),
    "MedNLI": (("sentence1", "sentence2", "gold_label"), lambda r: asked(
        ["Premise: " + r["sentence1"], "Hypothesis: " + r["sentence2"], "Relation:"], r["gold_label"],
        ["entailment", "contradiction", "neutral"])),
    "PubMedQA": (("QUESTION", "CONTEXTS", "final_decision"), lambda r: pubmed(
        r["CONTEXTS"], r["QUESTION"], r["final_decision"])),
    "PubMedQA (Hugging Face)": (("question", "context", "final_decision"), lambda r: pubmed(
        r["context"]["contexts"], r["question"], r["final_decision"])),
    "HQS": (("CHQ", "Summary"), lambda r: asked([r["CHQ"], "The question in short:"], r["Summary"])),
    "text": (("text",), lambda r: Example("", r["text"])),
}


def parse(record) -> Example:
    """A record as an Example. Raises InputError, or ValueError for half a character."""
    fields = record if isinstance(record, dict) else {}
    found = str([*fields])[:80]
    name = next((name for name, (keys, _) in FORMATS.items() if fields.keys() >= {*keys}), None)
    if name is None:
        raise InputError("expected the keys of a format in README.md, such as text, messages or prompt and answer, "
                         f"found {found}; mend the record")
    try:
        example = FORMATS[name][1](fields)._replace(format=name)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"a record of {name} with a missing or unexpected value ({type(error).__name__}: "
                         f"{str(error)[:80]}); mend the record") from None
    texts = [example.answer, *example.options, *(text for _, text in example.chat)]
    texts += [] if name == "text" else [example.prompt]
    if not all(isinstance(text, str) and text.strip().encode() for text in texts):  # half a character raises
        raise InputError(f"a value of {found} is empty or not a string; mend or remove the record")
    if len(example.options) > 256:  # each costs a pass of its own
        raise InputError(f"{len(example.options):,} options, at most 256 can be weighed; remove some or the record")
    if example.options and example.answer not in example.options:
        raise InputError("the answer is none of the options; mend the record")
    return example


# --- files ---

def records(path: Path):
    """Yields the records of text (paragraphs), CSV, TSV, a JSON array or JSON lines; "" for an empty line."""
    content, kind = data.regular(path).read_bytes().removeprefix(b"\xef\xbb\xbf"), path.suffix.lower()
    if content.startswith(b"%PDF"):
        raise InputError(f"a PDF; make it text first: pdftotext {path}")
    text = content.decode(errors="surrogateescape").replace("\r\n", "\n")  # `parse` refuses what is not UTF-8
    if kind == ".txt":
        yield from (part and {"text": part} for part in re.split(r"\n\s*\n\s*", text.strip()))
    elif kind in (".csv", ".tsv"):
        csv.field_size_limit(2**31 - 1)
        rows = csv.reader(io.StringIO(text), delimiter="," if kind == ".csv" else "\t", strict=True)
        header = next(rows, [])
        yield ""
        for row in rows:
            if len(row) not in (0, len(header)):
                raise InputError(f"{len(row)} columns, the header has {len(header)}; mend the row")
            yield dict(zip(header, row)) if row else ""
    elif text.lstrip().startswith("["):
        yield from json.loads(text)
    else:
        yield from (line.strip() and json.loads(line) for line in text.split("\n"))


def read(path: str | Path, parse=parse) -> list[Example]:
    """The examples of a file, each by `parse(record)`. Raises InputError naming file and place."""
    examples, place = [], 1
    try:
        for record in records(Path(path)):
            examples += [parse(record)] if record != "" else []
            place += 1
    except (ValueError, RecursionError, csv.Error, InputError) as error:
        kind, unit = {".txt": ("text", "paragraph"), ".csv": ("CSV", "row"), ".tsv": ("TSV", "row"),
                      ".json": ("JSON", "record")}.get(Path(path).suffix.lower(), ("JSON", "line"))
        found = error if isinstance(error, InputError) else f"not {kind} in UTF-8 ({data.first_line(error)})"
        raise InputError(f"{path}, {unit} {place}: {found}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file of records") from None
    if not examples:
        raise InputError(f"{path}: holds no records; README.md, Formats, says what it can hold")
    return examples


# --- the command ---

def as_record(example: Example) -> dict:
    """A record of which `parse` makes this Example, but for the format's name."""
    record = {"prompt": example.prompt, "answer": example.answer} if example.prompt else {"text": example.answer}
    if example.chat:
        record = {"messages": [{"role": role, "content": text} for role, text in example.chat]}
    return record | ({"options": [*example.options]} if example.options else {})


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="data files")
    found = [example for path in parser.parse_args().files for example in read(path)]
    for example in found:
        print(json.dumps(as_record(example)))
    counts = Counter(example.format for example in found)
    print("records:", ", ".join(f"{n:,} {name}" for name, n in counts.items()), file=sys.stderr)


if __name__ == "__main__":
    data.command(main)
