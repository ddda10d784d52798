"""The records of the paper's data sets to what data.py reads: {"text"}, or {"prompt", "answer", "options"}.

    python scripts/prepare.py casehold.jsonl us_bills.jsonl > prepared.jsonl

BillSum, CaseHOLD, MedNLI, PubMedQA and HQS, as their authors or Hugging Face give them out, one JSON object a
line; what data.py reads already goes through. Nothing is written before all files are read.
"""
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
from data import Example, InputError  # noqa: E402


def asked(lines: list[str], answer: str, options=()) -> dict:
    return {"prompt": "\n".join(lines), "answer": answer, "options": [*options]}


def holding(context: str, options: list[str], label) -> dict:
    return asked([context, "The cited holding:"], options[list("01234").index(str(label))], options)


def pubmed(contexts: list[str], question: str, answer: str) -> dict:
    return asked(contexts + ["Question: " + question, "Answer:"], answer, ["yes", "no", "maybe"])


# As data.FORMATS, and looked into before it. A prompt ends where the answer's space begins.
FORMATS = {
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
}


def parse(record) -> Example:
    """A record of one of these formats, or one that data.py knows, as an Example. Raises InputError."""
    fields = record if isinstance(record, dict) else {}
    for name, (keys, make) in FORMATS.items():
        if fields.keys() >= {*keys}:
            try:
                return data.parse(make(record))._replace(format=name)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(f"a {name} record with a missing or unexpected value "
                                 f"({type(error).__name__}: {str(error)[:80]})") from None
    return data.parse(record)


def as_record(example: Example) -> dict:
    """A record of which data.parse makes this Example, but for the format's name."""
    named = {"options": [*example.options]} if example.options else {}
    if example.turns[-1][0] == "assistant":
        return {"messages": [{"role": who, "content": text} for who, text in example.turns]} | named
    return {"text" if who == "document" else who: text for who, text in example.turns} | named


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="data files")
    found = [example for path in parser.parse_args().files for example in data.read(path, parse)]
    for example in found:
        print(json.dumps(as_record(example)))
    counts = Counter(example.format for example in found)
    print("records:", ", ".join(f"{n:,} {name}" for name, n in counts.items()), file=sys.stderr)


if __name__ == "__main__":
    data.command(main)
