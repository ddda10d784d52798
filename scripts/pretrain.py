"""The built-in base: a GQA LLaMA of 2.4 M parameters, pretrained on general English of our own grammar.

    nice python scripts/pretrain.py --compile --out base    # what base/ is: 37 M tokens, 80 minutes on one core
    python scripts/pretrain.py --steps 200 --out out/quick

The text is made as it is read (make_corpora.py), and no part of it comes twice. The state is kept in
OUT/pretrain.pt every 200 steps: the same command goes on from there, and removes it at the end. Deterministic
on one machine with one number of threads.
"""
import math
import sys
import time
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
import data  # noqa: E402
import llama  # noqa: E402
import make_corpora  # noqa: E402
import train  # noqa: E402

SIZES = dict(dim=192, n_layers=4, n_heads=6, n_kv_heads=3, vocab_size=2048, multiple_of=32)
SEQ_LEN, ROWS, PART, RECORDS = 256, 8, 800, 20000  # a part: RECORDS texts, read for PART steps of ROWS rows
LR, WARMUP, DECAY, SEED = 3e-3, 100, 0.2, 0


def make_tokenizer(texts: list[str], directory: Path, vocab_size: int) -> data.Tokenizer:
    """SentencePiece with the settings of LLaMA's."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=vocab_size, model_type="bpe",
            byte_fallback=True, split_digits=True, normalization_rule_name="identity", character_coverage=1.0,
            remove_extra_whitespaces=False, minloglevel=2, num_threads=1)
    return data.Tokenizer(directory)


def make_model(sizes: dict) -> llama.Llama:
    """A random model, all of it trainable."""
    torch.manual_seed(SEED)
    model = llama.Llama(llama.LlamaConfig(**sizes)).requires_grad_(True)
    for name, p in model.named_parameters():
        if p.dim() == 2:  # GPT-2's rule: what adds to the residual stream starts smaller if deep
            depth = 2 * sizes["n_layers"] if name.endswith(("wo.weight", "w2.weight")) else 1
            torch.nn.init.normal_(p, std=0.02 / depth ** 0.5)
    return model


def rows_of(part: int, records: int, tokenizer: data.Tokenizer, seq_len: int) -> data.Rows:
    """A part of the corpus in rows of tokens. Part 0 is for the tokenizer and for measuring."""
    examples = [data.Example("", text) for text in make_corpora.make_english(part, records)]
    return data.pack(data.encode(examples, tokenizer), seq_len, answer_only=False, pad=tokenizer.eos)


def schedule(step: int, steps: int) -> float:
    """Fraction of the peak learning rate: up over WARMUP steps, constant, down over the last DECAY of all.

    Up to the decay nothing depends on `steps`: it can be chosen late, and a stopped run prolonged."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def make_optimizers(model: llama.Llama) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which learns from fewer tokens; AdamW for the rest."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return [torch.optim.Muon(matrices, LR, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, LR, weight_decay=0.01, betas=(0.9, 0.95))]


def learn(model: llama.Llama, optimizers: list, rows: data.Rows, step: int, steps: int) -> float:
    """One step on the `step`-th batch; its loss in nats a token."""
    tokens, targets = rows.batch(ROWS, step % PART, SEED)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=data.IGNORE)
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = LR * schedule(step, steps)
        optimizer.step()
    return loss.item()


def main() -> None:
    parser = data.Parser(description="Pretrain the built-in base.")
    parser.add_argument("--out", type=Path, default=ROOT / "base", help="model directory to write")
    parser.add_argument("--steps", type=int, default=18000, help=f"of {ROWS} x {SEQ_LEN} tokens")
    parser.add_argument("--compile", action="store_true", help="a quarter faster; needs a C++ compiler")
    args = parser.parse_args()
    saved = args.out / "pretrain.pt"
    model = make_model(SIZES)
    optimizers, first = make_optimizers(model), 0
    if saved.exists():
        state = llama.read_tensors(saved, mmap=False)
        first, tokenizer = state["step"], data.Tokenizer(args.out)
        model.load_state_dict(state["model"])
        for optimizer, part in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(part)
    else:
        tokenizer = make_tokenizer(make_corpora.make_english(0, RECORDS), args.out, SIZES["vocab_size"])
    if args.compile:
        for layer in model.layers:
            layer.compile()
    begin, sums = time.monotonic(), []
    for step in range(first, args.steps):
        if step == first or step % PART == 0:
            rows = rows_of(1 + step // PART, RECORDS, tokenizer, SEQ_LEN)
        sums.append(learn(model, optimizers, rows, step, args.steps))
        if (step + 1) % 50 == 0:
            left = (time.monotonic() - begin) / (step + 1 - first) * (args.steps - step - 1)
            print(f"step {step + 1}/{args.steps}  loss {sum(sums) / len(sums):.4f}  {left / 60:.1f} min left",
                  flush=True)
            sums = []
        if (step + 1) % 200 == 0:
            state = {"step": step + 1, "model": model.state_dict(),
                     "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
            data.write_atomic(saved, lambda file: torch.save(state, file))
    loss = train.validation_loss(model, rows_of(0, 1000, tokenizer, SEQ_LEN), ROWS)
    llama.save(model.bfloat16(), args.out, args.out)
    saved.unlink(missing_ok=True)
    print(f"{args.out}: {llama.count_parameters(model):,} parameters, {(first and 'resumed, ') or ''}"
          f"loss {loss:.4f}, perplexity {math.exp(loss):.2f} on text that it has not seen")


if __name__ == "__main__":
    data.command(main)
