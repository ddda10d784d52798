"""JSON lines to fixed-length rows of tokens, in three splits: train, decision, validation.

A record is `{"text"}`, `{"prompt", "answer"}`, or one of a data set's own, recognized by its keys in FORMATS
below. LoRA learns from `train`; criteria, and a generator that learns in passes of its own, from `decision`
(both are training data); `validation` is only ever measured. A record's split follows from a hash of its text:
the order of files and records plays no part, and equal records are never on both sides.

Try it:  python -m pytest tests/test_data.py
"""
import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama import IGNORE, InputError, Tokenizer


SPLITS = ("train", "decision", "validation")


class Example(NamedTuple):
    prompt: str                    # "" for plain text
    answer: str                    # what the loss is on with --answer-only; the whole text of plain text
    options: tuple[str, ...] = ()  # the candidate answers of a multiple-choice question


def _choice(prompt: str, options, answer: str) -> Example:
    return Example(prompt, options[options.index(answer)], tuple(options))  # ValueError if it is none of them


def _holding(prompt: str, options: list, label) -> Example:
    return Example(prompt + "\nThe cited holding:", options[list("01234").index(str(label))], tuple(options))


def _pubmed(contexts: list, question: str, decision: str) -> Example:
    if not isinstance(contexts, list):
        raise TypeError("the contexts are not a list")
    return _choice("\n".join(contexts) + f"\nQuestion: {question}\nAnswer:", ["yes", "no", "maybe"], decision)


# The first row whose keys a record has makes the Example. A prompt ends where the answer's space begins.
FORMATS = {
    "prompt and answer": (("prompt", "answer"), lambda r: Example(r["prompt"], r["answer"])),
    "BillSum": (("source", "summary"), lambda r: Example(f"{r['source']}\nSummary of the bill:", r["summary"])),
    "BillSum (Hugging Face)": (("text", "summary"), lambda r: Example(
        f"{r['text']}\nSummary of the bill:", r["summary"])),
    "CaseHOLD": (("citing_prompt", "holding_0", "label"), lambda r: _holding(
        r["citing_prompt"], [r[f"holding_{i}"] for i in range(5)], r["label"])),
    "CaseHOLD (LexGLUE)": (("context", "endings", "label"), lambda r: _holding(
        r["context"], [*r["endings"]], r["label"])),
    "MedNLI": (("sentence1", "sentence2", "gold_label"), lambda r: _choice(
        f"Premise: {r['sentence1']}\nHypothesis: {r['sentence2']}\nRelation:",
        ["entailment", "contradiction", "neutral"], r["gold_label"])),
    "PubMedQA": (("QUESTION", "CONTEXTS", "final_decision"), lambda r: _pubmed(
        r["CONTEXTS"], r["QUESTION"], r["final_decision"])),
    "PubMedQA (Hugging Face)": (("question", "context", "final_decision"), lambda r: _pubmed(
        r["context"]["contexts"], r["question"], r["final_decision"])),
    "HQS": (("CHQ", "Summary"), lambda r: Example(f"{r['CHQ']}\nThe question in short:", r["Summary"])),
    "text": (("text",), lambda r: Example("", r["text"])),
}
STRUCTURED = {"label", "endings", "context", "CONTEXTS"}  # keys whose value may be something other than a string


EXPECTED = 'expected {"text": ...} or {"prompt": ..., "answer": ...}'


def parse(record, where: str) -> tuple[str, Example]:
    """A JSON record to its format's name and an Example. Raises InputError that names `where`."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object; {EXPECTED}")
    for name, (keys, make) in FORMATS.items():
        if all(key in record for key in keys):
            try:
                example = make(record)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(f"{where}: a {name} record with a missing or unexpected value "
                                 f"({type(error).__name__}: {str(error)[:80]})") from None
            texts = [example.prompt, example.answer, *example.options]
            texts += [record[key] for key in keys if key not in STRUCTURED]
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"{where}: one of {', '.join(keys)} is not a string")
            if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
                raise InputError(f"{where}: half a character (a lone surrogate such as \\ud83d); mend the text")
            if not example.answer.strip() or (name == "prompt and answer" and not example.prompt.strip()):
                raise InputError(f"{where}: one of {', '.join(keys)} is empty; remove the record")
            return name, example
    keys = ", ".join(repr(key[:40]) for key in list(record)[:6])
    raise InputError(f"{where}: keys {keys or '(none)'} fit no known format; {EXPECTED}")


def read(path: str | Path) -> list[tuple[str, Example]]:
    """The examples of a JSON lines file, with their formats. Raises InputError that names file and line."""
    examples = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    try:
                        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                    except (ValueError, RecursionError) as error:
                        raise InputError(f"{where}: not JSON in UTF-8 ({str(error)[:80]})") from None
                    examples.append(parse(record, where))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a JSON lines file") from None
    if not examples:
        raise InputError(f"{path}: holds no records; expected one JSON object a line")
    return examples


def split(examples: list[Example], fraction: float) -> dict[str, list[Example]]:
    """Examples to train, decision and validation; the last two get `fraction` each, and at least one.

    The order within a split is that of the hash: shuffled, and the same every time."""
    by_hash = {}
    for example in examples:
        key = hashlib.sha256("\0".join(example[:2]).encode()).digest()
        by_hash.setdefault(key, []).append(example)
    unique = [by_hash[key] for key in sorted(by_hash)]
    n = max(1, round(fraction * len(unique)))
    parts = {"validation": unique[:n], "decision": unique[n:2 * n], "train": unique[2 * n:]}
    return {name: [example for same in part for example in same] for name, part in parts.items()}


class Rows(NamedTuple):
    tokens: Tensor   # N T, int32
    targets: Tensor  # N T, int32: the next token, or IGNORE

    def batch(self, size: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """The `step`-th batch of an endless shuffled stream, [size, T] twice. A pure function, no state."""
        n = len(self.tokens)
        picks = [_permutation(n, seed, i // n)[i % n] for i in range(step * size, (step + 1) * size)]
        return self.at(picks)

    def at(self, picks, device="cpu") -> tuple[Tensor, Tensor]:
        return self.tokens[picks].long().to(device), self.targets[picks].long().to(device)


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng((seed, epoch)).permutation(n).tolist()


def encode(examples: list[Example], tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of each example, with BOS and EOS; tells how far it is when it takes long."""
    pairs, begin, told = [], time.monotonic(), time.monotonic()
    for i in range(0, len(examples), 1000):
        some = examples[i:i + 1000]
        prompts = tokenizer.encode([example.prompt for example in some])
        answers = tokenizer.encode([tokenizer.space * bool(e.prompt) + e.answer for e in some])
        pairs += [([tokenizer.bos] + p, a + [tokenizer.eos]) for p, a in zip(prompts, answers)]
        if time.monotonic() - told > 5:
            told = time.monotonic()
            left = (told - begin) * (len(examples) / len(pairs) - 1)
            print(f"tokenizing: {len(pairs):,} of {len(examples):,} records, {left:.0f} s left", flush=True)
    return pairs


def pack(pairs: list[tuple[list[int], list[int]]], seq_len: int, answer_only: bool, pad: int) -> Rows:
    """Documents end to end, cut into rows, the last one filled up. A document's first token is no target."""
    stream, wanted = [np.empty(0, np.int32)], [np.empty(0, bool)]
    for prompt, answer in pairs:
        stream.append(np.array(prompt + answer, np.int32))
        flags = np.ones(len(prompt) + len(answer), bool)
        flags[0] = False
        if answer_only:
            flags[:len(prompt)] = False
        wanted.append(flags)
    stream, wanted = np.concatenate(stream), np.concatenate(wanted)
    n = max(0, -(-(len(stream) - 1) // seq_len))
    room = n * seq_len + 1 - len(stream)
    stream, wanted = np.pad(stream, (0, max(0, room)), constant_values=pad), np.pad(wanted, (0, max(0, room)))
    targets = np.where(wanted, stream, IGNORE).astype(np.int32)
    return Rows(torch.from_numpy(stream[:n * seq_len].reshape(n, seq_len)),
                torch.from_numpy(targets[1:n * seq_len + 1].reshape(n, seq_len)))


@dataclass
class Data:
    train: Rows
    decision: Rows
    validation: Rows
    questions: list[Example]   # of the validation split: choices, and answers short enough to be right
    records: dict[str, int]    # how many of each format


def load(paths: list[str], tokenizer: Tokenizer, seq_len: int, answer_only=False, fraction=0.05,
         max_questions=200) -> Data:
    """Reads, splits, tokenizes and packs data files. Raises InputError."""
    found = [pair for path in paths for pair in read(path)]
    if len({example for _, example in found}) < 3:
        raise InputError(f"{', '.join(map(str, paths))}: fewer than three different records, one a split")
    parts = split([example for _, example in found], fraction)
    pairs = {name: encode(part, tokenizer) for name, part in parts.items()}
    rows = {name: pack(part, seq_len, answer_only, tokenizer.eos) for name, part in pairs.items()}
    questions = [example for example, (_, answer) in zip(parts["validation"], pairs["validation"])
                 if example.options or (example.prompt and len(answer) <= 32)]
    return Data(**rows, questions=questions[:max_questions], records=Counter(name for name, _ in found))
