"""Measures a model directory, dense or pruned, on the paper's tasks, from the data sets' own files.

    python benchmarks/evaluate.py out/legal/pruned legal.jsonl
    python benchmarks/evaluate.py MODEL casehold.jsonl us_bills.jsonl --limit 200 --json result.json

What is measured follows from the records (`FORMATS` in scripts/prepare.py):
plain text (MultiLegalPile)           perplexity of a token
options (CaseHOLD, MedNLI, PubMedQA)  accuracy, macro-F1; the option of highest mean log-likelihood
other answers (BillSum, HQS, ...)     ROUGE-1, -2, -L F1 of greedy generation, and the share of exact answers
"""
import collections
import math
import re
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import export  # noqa: E402
import llama  # noqa: E402
from data import InputError  # noqa: E402
from scripts import measures, prepare  # noqa: E402


def macro_f1(truth: list, said: list) -> float:
    """The mean over the classes that occur of F1 = 2 TP / (2 TP + FP + FN)."""
    scores = []
    for label in sorted(set(truth) | set(said)):
        hits = sum(t == s == label for t, s in zip(truth, said))
        scores.append(2 * hits / (truth.count(label) + said.count(label)))
    return sum(scores) / len(scores)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_n(reference: str, said: str, n: int) -> float:
    """F1 of the n-grams of lower-cased words (Lin 2004), without stemming."""
    counts = [collections.Counter(zip(*(words(text)[i:] for i in range(n)))) for text in (reference, said)]
    return f1(sum((counts[0] & counts[1]).values()), counts[0].total(), counts[1].total())


def rouge_l(reference: str, said: str) -> float:
    """F1 of the longest common subsequence of words."""
    a, b = words(reference), words(said)
    row = [0] * (len(b) + 1)
    for x in a:
        last = row
        row = [0]
        for j, y in enumerate(b):
            row.append(last[j] + 1 if x == y else max(last[j + 1], row[j]))
    return f1(row[-1], len(a), len(b))


def f1(hits: int, wanted: int, said: int) -> float:
    return 2 * hits / (wanted + said) if hits else 0.0


def choices(model, tokenizer, examples, seq_len, tell) -> dict:
    truth, said = [], []
    for i, example in enumerate(examples):
        options = [example._replace(answer=option) for option in example.options]
        scores = measures.answer_scores(model, tokenizer, options, seq_len)
        said.append(scores.index(max(scores)))
        truth.append(example.options.index(example.answer))
        tell(i + 1)
    # Classes are positions: CaseHOLD's options are other ones for every record, the others' always the same.
    right = sum(t == s for t, s in zip(truth, said))
    return {"accuracy": right / len(truth), "macro_f1": macro_f1(truth, said)}


def answers(model, tokenizer, examples, seq_len, max_tokens, tell) -> dict:
    totals = collections.Counter()
    for i, example in enumerate(examples):
        prompt, _ = data.last_answer(*data.encode([example], tokenizer)[0])
        prompt = prompt[-(seq_len - max_tokens):]  # long prompts lose their beginning, as in training
        said = tokenizer.decode(list(llama.generate(model, prompt, max_tokens, stop=tokenizer.stop)))
        totals += collections.Counter({
            "rouge1": rouge_n(example.answer, said, 1), "rouge2": rouge_n(example.answer, said, 2),
            "rougeL": rouge_l(example.answer, said), "exact": float(said.strip() == example.answer.strip())})
        tell(i + 1)
    return {name: totals[name] / len(examples) for name in ("rouge1", "rouge2", "rougeL", "exact")}


def evaluate(model, tokenizer, path: Path, seq_len=512, max_tokens=64, limit=0,
             tell=lambda task, n, total: None) -> dict:
    """{format: {metric: value}} for one file. `limit`: at most so many records a format; 0: all."""
    by_format, results = {}, {}
    for example in prepare.read(path):
        by_format.setdefault((example.format, bool(example.options)), []).append(example)
    for (name, choice), examples in by_format.items():
        examples = examples[:limit or None]
        task = f"{name} and options" if choice and (name, False) in by_format else name

        def told(n):
            tell(task, n, len(examples))

        if choice:
            found = choices(model, tokenizer, examples, seq_len, told)
        elif examples[0].prompt:
            found = answers(model, tokenizer, examples, seq_len, max_tokens, told)
        else:
            rows = data.pack(data.encode(examples, tokenizer), seq_len, False, tokenizer.eos)
            loss = export.validation_loss(model, rows, batch_size=4)
            found = {"perplexity": math.exp(min(loss, 700)),
                     "tokens": int((rows.targets != data.IGNORE).sum())}
        results[task] = {"records": len(examples), **found}
    return results


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("files", nargs="+", type=Path, help="data files")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens of a row, or a prompt and answer")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest generated answer")
    parser.add_argument("--limit", type=int, default=0, help="records of a format at most; 0: all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    if args.max_tokens < 1 or args.seq_len <= args.max_tokens or args.limit < 0:
        raise InputError("--seq-len must be more than --max-tokens, which must be positive, as must --limit")
    device = data.find_device(args.device)
    model = llama.load(args.model, torch.float32 if device.type == "cpu" else None, device)
    tokenizer = data.Tokenizer(args.model)
    tokenizer.check(model.config.vocab_size)
    begin, last = time.monotonic(), [0.0]

    def tell(task, n, total):
        if time.monotonic() - last[0] > 5 and n < total:
            last[0] = time.monotonic()
            left = (last[0] - begin) / n * (total - n)
            print(f"  {task}: {n:,} of {total:,}, {left:.0f} s left", flush=True)

    results = {}
    for path in args.files:
        begin = time.monotonic()
        results[str(path)] = evaluate(model, tokenizer, path, args.seq_len, args.max_tokens, args.limit, tell)
        for task, found in results[str(path)].items():
            print(f"{path}  {task}: " + "  ".join(f"{key} {value:,}" if isinstance(value, int) else
                                                  f"{key} {value:.4f}" for key, value in found.items()))
    if args.json:
        data.write_json(args.json, results)


if __name__ == "__main__":
    data.command(main)
