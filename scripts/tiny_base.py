"""The built-in base: a LLaMA of about 1 M parameters, pretrained on english.jsonl in about a minute.

    python scripts/tiny_base.py NEW        # what base/ is, but for the last bits of another processor

Deterministic on one machine: fixed seed, fixed number of steps.
"""
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data  # noqa: E402
import llama  # noqa: E402
from train import schedule  # noqa: E402

CONFIG = dict(dim=128, n_layers=4, n_heads=8, n_kv_heads=4, vocab_size=1024, multiple_of=32)
STEPS, ROWS, SEQ_LEN, LR = 400, 16, 128, 3e-3


def make(target: Path, steps: int = STEPS) -> list[float]:
    """Trains a tokenizer and a model on english.jsonl and writes the new model directory `target`; the loss of every
    step in nats a token. Raises InputError."""
    import sentencepiece
    if target.exists():
        raise data.InputError(f"{target}: exists already; name a new directory")
    examples = data.read(ROOT / "english.jsonl")
    beside = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=target.name + "."))
    with open(beside / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(e.turns[0][1] for e in examples), model_writer=file, vocab_size=CONFIG["vocab_size"],
            model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, minloglevel=2, num_threads=1)  # the settings of LLaMA's
    tokenizer = data.Tokenizer(beside)
    rows = data.pack(data.encode(examples, tokenizer), SEQ_LEN, answer_only=False, pad=tokenizer.eos)

    torch.manual_seed(0)
    model = llama.Llama(llama.LlamaConfig(**CONFIG))
    for name, p in model.named_parameters():
        p.requires_grad_(True)
        if p.dim() == 2:  # GPT-2's rule: what adds to the residual stream starts smaller, the deeper the model
            depth = 2 * CONFIG["n_layers"] if name.endswith(("wo.weight", "w2.weight")) else 1
            torch.nn.init.normal_(p, std=0.02 / depth ** 0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1, betas=(0.9, 0.95))
    begin, losses = time.monotonic(), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR * schedule(step, STEPS, warmup=0.05)
        tokens, targets = rows.batch(ROWS, step, seed=0)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=data.IGNORE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            left = (time.monotonic() - begin) / (step + 1) * (steps - step - 1)
            print(f"pretraining step {step:4d}/{steps}  loss {loss.item():.3f}  {left:3.0f} s left", flush=True)
    llama.save(model, beside, beside)
    beside.chmod(0o755)  # mkdtemp's own is for its maker alone
    os.rename(beside, target)
    return losses


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="model directory to write")
    make(parser.parse_args().target)


if __name__ == "__main__":
    data.command(main)
