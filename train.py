"""Tune and prune in one run (ATP, arXiv 2412.14426), then export the smaller model.

    python train.py --data legal.jsonl                                  # built-in tiny base, a few minutes on a laptop
    python train.py --model Llama-2-7b --data legal.jsonl --prune 0.4   # one GPU

Every step: the generator G learns on a batch which groups to keep, LoRA frozen (pruned forward); then LoRA learns on
another batch, decisions fixed (LoRA-aware forward), and the lasso shrinks what it learned in removed groups. From
`--freeze-at` on, decisions are frozen, the removed groups are cut out, and the rest is plain LoRA on the small model.
"""
import argparse
import dataclasses
import hashlib
import json
import math
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import export
import llama
from atp import (SPACES, Generator, Groups, budget_term, group_lasso, gumbel, proximal_lasso, straight_through,
                 taylor_saliency, warm_start)
from llama import InputError, Llama, LlamaConfig, Tokenizer

HERE = Path(__file__).resolve().parent


def option(default, text: str, low=None, high=None, **more):
    """A Config field that becomes a flag: default, help, the range of a number (ends included), argparse's rest."""
    how = {"default_factory": lambda: default} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**how, metadata={"help": text, "range": (low, high), "more": more})


@dataclass
class Config:
    model: str = option("", "model directory in the raw format; without it, a tiny base is made once")
    data: list[str] = option(["legal.jsonl"], "JSON lines files", nargs="+")
    out: str = option("", "run directory (default: out/ and the first data file's name)")
    prune: float = option(0.4, "fraction of the prunable parameters to remove", 0.001, 0.999)
    space: str = option("dims", "what goes: head dimensions or whole heads, and FFN units", choices=list(SPACES))
    round_to: int = option(1, "keep dimensions and FFN units in multiples of this, for kernels and quantizers", 1)
    steps: int = option(300, "LoRA steps", 1)
    batch_size: int = option(8, "rows of one forward pass", 1)
    accumulate: int = option(1, "forward passes of one LoRA step", 1)
    seq_len: int = option(256, "tokens of a row", 2)
    answer_only: bool = option(False, "no loss on prompts, only on answers")
    lr: float = option(1e-3, "LoRA's peak learning rate", 1e-9, 1e3)
    warmup: float = option(0.03, "fraction of the steps over which it rises; then cosine to a tenth", 0, 1)
    weight_decay: float = option(0.01, "AdamW's, on LoRA", 0, 1e3)
    clip: float = option(1.0, "largest gradient norm of a LoRA step", 1e-9)
    rank: int = option(8, "of LoRA", 1)
    lora_scale: float = option(2.0, "s in W + s B A", 1e-9)
    freeze_at: float = option(0.5, "fraction of the steps after which decisions are frozen (T_end)", 0, 1)
    slice_at_freeze: bool = option(True, "cut at the freeze and tune the small model; otherwise mask to the end")
    generator_every: int = option(1, "LoRA steps between two generator steps", 1)
    generator_lr: float = option(3e-3, "the generator's learning rate", 1e-9, 1e3)
    temperature: float = option(0.4, "T of the sigmoid in the decisions", 1e-3)
    spread: float = option(1.0, "warm start: deviation of the logits from Taylor saliency; 0: none", 0, 1e3)
    anneal: float = option(0.6, "fraction of the search over which the budget goes from 1 to the target", 0, 1)
    budget: str = option("threshold", "the generator's budget: a threshold that fits it, or the paper's loss term",
                         choices=["threshold", "loss"])
    alpha: float = option(5.0, "weight of the budget term with --budget loss", 0)
    offset: float = option(3.0, "added to the logits with --budget loss: training starts nearly dense", -1e3, 1e3)
    straight_through: bool = option(False, "hard decisions in the generator's step, the soft ones' gradient")
    sample: bool = option(False, "LoRA steps take the generator's noisy decisions, not the best in the budget")
    lasso: str = option("proximal", "group lasso on removed groups' LoRA", choices=["proximal", "loss", "none"])
    lasso_weight: float = option(5.0, "lambda of the lasso (per step: times the learning rate if proximal)", 0)
    checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    seed: int = option(0, "of everything random", 0, 2**32 - 1)
    device: str = option("auto", "cuda, mps or cpu (default: the best there is)")
    dtype: str = option("auto", "of base and activations (default: bfloat16 where the GPU has it)",
                        choices=["auto", "float32", "bfloat16"])
    log_every: int = option(10, "steps between two lines of the log", 1)
    eval_every: int = option(100, "steps between two evaluations on the validation split", 1)
    checkpoint_every: int = option(100, "steps between two checkpoints", 1)


# The authors' procedure: noise, offset and loss term in place of the threshold, no warm start, masks to the end.
PAPER = dict(budget="loss", sample=True, spread=0.0, anneal=0.0, generator_lr=1e-3, lasso="loss",
             lasso_weight=10.0, slice_at_freeze=False)


def number(kind, low, high):
    """A converter for argparse: `kind` from `low` to `high`."""
    def convert(text: str):
        value = kind(text)
        if not (low if low is not None else -math.inf) <= value <= (high or 2**31):
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high or 2**31}")
        return value
    convert.__name__ = kind.__name__  # argparse names it: "invalid int value: 'x'"
    return convert


def parse_arguments() -> tuple[Config, argparse.Namespace]:
    """The command line as a Config, and --resume and --overwrite. Raises InputError."""
    parser = llama.Parser(description="Tune and prune a LLaMA in one run.", argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(Config):
        how = dict(field.metadata["more"], help=field.metadata["help"])
        if field.default not in ("", "auto", dataclasses.MISSING):
            how["help"] += f" (default: {field.default})"
        if field.type is bool:
            how["action"] = argparse.BooleanOptionalAction
        elif field.type in (int, float):
            how["type"] = number(field.type, *field.metadata["range"])
        parser.add_argument("--" + field.name.replace("_", "-"), **how)
    preset = " ".join(f"--no-{k}" if v is False else f"--{k}" if v is True else f"--{k} {v}" for k, v in PAPER.items())
    parser.add_argument("--paper", action="store_true", help=f"the authors' procedure: {preset.replace('_', '-')}")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run from its checkpoint, with its options")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in the output directory")
    given = vars(parser.parse_args())
    paper, resume, overwrite = (given.pop(name, None) for name in ("paper", "resume", "overwrite"))
    if resume and (given or paper or overwrite):
        raise InputError("--resume goes on with the run's own options; give no others with it")
    return Config(**((PAPER if paper else {}) | given)), argparse.Namespace(resume=resume, overwrite=overwrite)


def tiny_base() -> str:
    """The built-in base model's directory; pretrains it on english.jsonl the first time, in about a minute."""
    target = HERE / "out" / "tiny-base"
    if not (target / "params.json").exists():
        print(f"base: no --model given; pretraining the built-in tiny one, once, for {target}", flush=True)
        subprocess.run([sys.executable, HERE / "scripts" / "tiny_base.py", target], check=True)
    return str(target)


# ------------------------------------------------------------------------------------------------ pure functions

def schedule(step: int, steps: int, warmup: float) -> float:
    """Fraction of the peak learning rate: a linear rise over `warmup` of the steps, then a cosine to a tenth."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def annealed_keep(config: Config, step: int, freeze: int) -> float:
    """The fraction to keep at a step of the search: from 1 down to the target over `anneal` of it."""
    return 1 - config.prune * min(1.0, (step + 1) / max(1.0, config.anneal * freeze))


def fingerprint(model: Llama, tokenizer: Path, files: list[str]) -> dict[str, str]:
    """What a resumed run must find unchanged, as digests: the tokenizer and data files whole, weights by samples."""
    weights = hashlib.sha256()
    for name, p in model.named_parameters():
        sample = p.detach().flatten()[::max(1, p.numel() // 64)].float().cpu()
        weights.update(f"{name} {tuple(p.shape)}".encode() + sample.numpy().tobytes())
    digests = {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in [tokenizer, *files]}
    return {"the model's weights": weights.hexdigest(), **digests}


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that the process took otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------------------------------------------- evaluation

@torch.no_grad()
def validation_loss(model: Llama, rows: data.Rows, batch_size: int, masks=None) -> tuple[float, float]:
    """Mean negative log-likelihood in nats over all targets of `rows`, and the tokens per second of measuring it."""
    total, count, begin = 0.0, 0, time.perf_counter()
    device = model.norm.weight.device
    for i in range(0, len(rows.tokens), batch_size):
        tokens, targets = rows.at(slice(i, i + batch_size), device)
        total += float(model.nll(tokens, targets, masks))
        count += int((targets != llama.IGNORE).sum())
    return total / max(1, count), rows.tokens.numel() / (time.perf_counter() - begin)


@torch.no_grad()
def answer_accuracy(model: Llama, tokenizer: Tokenizer, questions: list[data.Example], seq_len: int, masks=None) -> float | None:
    """Fraction of questions answered right, or None if there are none.

    With options: the true one has the highest mean log-likelihood a token. Without: greedy decoding gives exactly the
    answer and EOS (each of its tokens is the likeliest after the ones before). Long prompts lose their beginning."""
    device, right = model.norm.weight.device, 0
    for example in questions:
        candidates = example.options or (example.answer,)
        pairs = data.encode([data.Example(example.prompt, option) for option in candidates], tokenizer)
        rows = [(prompt + answer)[-seq_len - 1:] for prompt, answer in pairs]
        T = max(map(len, rows)) - 1
        tokens = torch.tensor([row + [tokenizer.eos] * (T + 1 - len(row)) for row in rows], device=device)
        hidden = model.hidden(tokens[:, :-1], masks)
        scores = []
        for row, h, (_, answer) in zip(rows, hidden, pairs):
            n = min(len(answer), len(row) - 1)
            logits = F.linear(h[len(row) - 1 - n:len(row) - 1], model.output_weight).float()  # n V
            wanted = torch.tensor(row[-n:], device=device)
            if not example.options:
                right += bool((logits.argmax(-1) == wanted).all())
            scores.append(float(logits.log_softmax(-1).gather(1, wanted[:, None]).mean()))
        if example.options:
            right += scores.index(max(scores)) == example.options.index(example.answer)
    return right / len(questions) if questions else None


# -------------------------------------------------------------------------------------------------------- a run

class Run:
    """All that changes while training, and the steps that change it."""

    def __init__(self, config: Config, model: Llama, groups: Groups, rows: data.Data):
        self.config, self.model, self.groups, self.rows = config, model, groups, rows
        self.device, self.dtype = groups.cost.device, model.norm.weight.dtype
        self.freeze_step = max(1, round(config.freeze_at * config.steps))
        self.step, self.frozen, self.sliced, self.skipped, self.stop_asked = 0, False, False, 0, False
        self.record = {"seconds": 0.0}  # what the summary needs from before a resume
        self.optimizer = torch.optim.AdamW(export.lora_parameters(model).values(), lr=config.lr, weight_decay=config.weight_decay)
        self.generator = Generator(groups, torch.zeros(len(groups), device=self.device))
        self.generator_optimizer = torch.optim.AdamW(self.generator.parameters(), lr=config.generator_lr)
        self.d = torch.ones(len(groups), dtype=torch.bool, device=self.device)

    def warm_start(self) -> None:
        """Starts the search from Taylor saliency on the decision split (spread 0: from nothing)."""
        if self.config.spread:
            n = min(24, len(self.rows.decision.tokens) // self.config.batch_size + 1)
            batches = [self.rows.decision.batch(self.config.batch_size, i, self.config.seed, self.device) for i in range(n)]
            saliency = taylor_saliency(self.model, self.groups, batches)
            self.generator.prior.copy_(warm_start(saliency, self.groups, self.config.spread))

    def soft_decisions(self, logits: Tensor, keep: float) -> Tensor:
        """Decisions [G] in (0, 1) with a gradient, for the generator's step."""
        if self.config.budget == "threshold":
            return torch.sigmoid((logits - self.groups.decide(logits, keep)[1]) / self.config.temperature)
        return torch.sigmoid((logits + gumbel(logits) + self.config.offset) / self.config.temperature)

    def generator_step(self) -> dict[str, float]:
        """One update of G on a decision batch, LoRA frozen; then the decisions of the next LoRA steps."""
        config = self.config
        keep = annealed_keep(config, self.step, self.freeze_step)
        tokens, targets = self.rows.decision.batch(config.batch_size, self.step // config.generator_every, config.seed + 1, self.device)
        p = self.soft_decisions(self.generator(), keep)
        d = straight_through(p) if config.straight_through else p
        nll = self.model.nll(tokens, targets, self.groups.masks(d, aware=False, dtype=self.dtype))
        loss = nll / (targets != llama.IGNORE).sum().clamp(min=1)
        terms = {"gen_loss": loss.item()}
        if config.budget == "loss":
            term = budget_term((d * self.groups.share).sum(), keep)
            loss, terms["budget"] = loss + config.alpha * term, term.item()
        self.generator_optimizer.zero_grad()
        loss.backward(inputs=list(self.generator.parameters()))
        norm = torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 3.0)
        if self.finite(norm):
            self.generator_optimizer.step()
        with torch.no_grad():
            logits, last = self.generator(), self.d
            self.d = self.soft_decisions(logits, keep) > 0.5 if config.sample else self.groups.decide(logits, keep)[0]
        return terms | {"flips": (self.d != last).float().mean().item()}

    def lora_step(self) -> dict[str, float]:
        """One update of LoRA on train batches, decisions fixed."""
        config, masks = self.config, None
        if not self.sliced:
            masks = self.groups.masks(self.d, aware=True, dtype=self.dtype)
        lr = config.lr * schedule(self.step, config.steps, config.warmup)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        batches = [self.rows.train.batch(config.batch_size, self.step * config.accumulate + i, config.seed, self.device)
                   for i in range(config.accumulate)]
        count = sum((targets != llama.IGNORE).sum() for _, targets in batches).clamp(min=1)
        terms = {"loss": 0.0}
        for tokens, targets in batches:
            loss = self.model.nll(tokens, targets, masks) / count
            loss.backward()
            terms["loss"] += loss.item()
        if masks and config.lasso == "loss":
            penalty = group_lasso(self.model.layers, self.groups, self.d)
            (config.lasso_weight * penalty).backward()
            terms["lasso"] = penalty.item()
        norm = torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], config.clip)
        if self.finite(norm):
            self.optimizer.step()
            if masks and config.lasso == "proximal":
                proximal_lasso(self.model.layers, self.groups, self.d, lr * config.lasso_weight)
        return terms | {"lr": lr, "grad_norm": float(norm)}

    def finite(self, norm: Tensor) -> bool:
        """Whether an update may be made. Raises InputError when it may not three times in a row."""
        self.skipped = 0 if norm.isfinite() else self.skipped + 1
        if self.skipped == 3:
            raise InputError(f"step {self.step}: the loss or its gradient is not finite, three times in a row; the last "
                             "checkpoint is kept. Try a lower --lr or --generator-lr, or --dtype float32")
        return self.skipped == 0

    @torch.no_grad()
    def target_decisions(self) -> Tensor:
        """The decisions [G] that the model would be exported with now: the best that fit the final budget."""
        return self.d if self.frozen else self.groups.decide(self.generator(), 1 - self.config.prune)[0]

    def freeze(self) -> None:
        """T_end: fixes the decisions and lets go of the generator, and of all that they remove."""
        self.d, self.frozen = self.target_decisions(), True
        self.generator = self.generator_optimizer = None
        if self.config.slice_at_freeze:
            export.cut(self.model, self.groups, self.d, self.optimizer)
            self.sliced = True

    def pruned_masks(self):
        """For the pruned forward: what is exported, whether it is cut already or not."""
        return None if self.sliced else self.groups.masks(self.target_decisions(), aware=False, dtype=self.dtype)

    def evaluate(self) -> tuple[float, float]:
        return validation_loss(self.model, self.rows.validation, self.config.batch_size, self.pruned_masks())

    # Everything that `state` writes, `load_state` reads; model, LoRA and decisions come back by export.restore.
    def state(self) -> dict:
        searching = None if self.frozen else {
            "generator": self.generator.state_dict(), "optimizer": self.generator_optimizer.state_dict()}
        cuda = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        return {"config": vars(self.config), "step": self.step,
                "frozen": self.frozen, "sliced": self.sliced, "skipped": self.skipped, "record": self.record, "d": self.d, "searching": searching,
                "lora": {n: p.data for n, p in export.lora_parameters(self.model).items()},
                "optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state(), "cuda_rng": cuda}

    def load_state(self, saved: dict) -> None:
        for name in ("step", "frozen", "sliced", "skipped", "record"):
            setattr(self, name, saved[name])
        self.d = saved["d"].to(self.device)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.frozen:
            self.generator = self.generator_optimizer = None
        else:
            self.generator.load_state_dict(saved["searching"]["generator"])
            self.generator_optimizer.load_state_dict(saved["searching"]["optimizer"])
        torch.set_rng_state(saved["rng"])
        if saved["cuda_rng"]:
            torch.cuda.set_rng_state_all(saved["cuda_rng"])


def tune(run: Run, save, log) -> None:
    """The one-stage loop, from `run.step` to the last step. `save()` writes a checkpoint, `log(object)` a line."""
    config = run.config
    tokens_per_step = config.batch_size * config.accumulate * config.seq_len
    last_step, seconds = run.step, 0.0
    while run.step < config.steps and not run.stop_asked:
        begin, terms = time.monotonic(), {}
        if not run.frozen and run.step % config.generator_every == 0:
            terms = run.generator_step()
        terms |= run.lora_step()
        seconds += time.monotonic() - begin
        run.step += 1
        if run.step == run.freeze_step:
            run.freeze()
        milestone = run.step in (run.freeze_step, config.steps) or run.stop_asked
        if milestone or run.step % config.eval_every == 0:
            terms["val_loss"] = run.evaluate()[0]
        if "val_loss" in terms or run.step % config.log_every == 0:
            rate = (run.step - last_step) / max(1e-9, seconds)
            line = {"step": run.step, "phase": "tune" if run.frozen else "search", **terms,
                    "kept": run.groups.kept(run.d) / run.groups.total, "target": 1 - config.prune,
                    "tokens_per_second": rate * tokens_per_step}
            log(line)
            print(log_line(line, config.steps, (config.steps - run.step) / rate), flush=True)
            last_step, seconds = run.step, 0.0
        if milestone or run.step % config.checkpoint_every == 0:
            save()


def log_line(line: dict, steps: int, left: float) -> str:
    parts = [f"step {line['step']:{len(str(steps))}d}/{steps} {line['phase']:6s} loss {line['loss']:.3f}"]
    parts += [f"{name} {line[key]:.3f}" for name, key in [("gen", "gen_loss"), ("budget", "budget"), ("lasso", "lasso"),
                                                          ("flips", "flips")] if key in line]
    parts += [f"kept {line['kept']:.3f}/{line['target']:.3f}", f"lr {line['lr']:.1e}",
              f"{line['tokens_per_second']:,.0f} tok/s", f"{left / 60:.1f} min left"]
    if "val_loss" in line:
        parts.append(f"val {line['val_loss']:.4f}")
    return "  ".join(parts)


# ------------------------------------------------------------------------------------------------------ the whole

def measure(model: Llama, tokenizer: Tokenizer, rows: data.Data, config: Config, masks=None) -> dict:
    """One line of the summary table."""
    loss, speed = validation_loss(model, rows.validation, config.batch_size, masks)
    return {"params": llama.count_parameters(model), "val_loss": loss, "tokens_per_second": speed,
            "accuracy": answer_accuracy(model, tokenizer, rows.questions, config.seq_len, masks)}


def file_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("consolidated.*.pth"))


def finish(run: Run, tokenizer: Tokenizer, out: Path) -> None:
    """Exports, measures the exported model, writes summary.json and prints the table."""
    config, groups, record = run.config, run.groups, run.record
    pruned = measure(run.model, tokenizer, run.rows, config, run.pruned_masks())
    kept = groups.kept(run.d)
    pruned["params"] = record["base"]["params"] - groups.total + kept
    difference = export.write(run.model, groups, None if run.sliced else run.d, tokenizer.path,
                              run.rows.validation.at(slice(4))[0], out / "pruned")
    exported = measure(llama.load(out / "pruned", run.dtype, run.device), tokenizer, run.rows, config)
    base = record["base"]
    rows = {"base": base, "pruned": pruned, "exported": exported}
    exported["bytes"] = file_bytes(out / "pruned")
    summary = {"requested_prune": config.prune, "obtained_prune": 1 - kept / groups.total,
               "params": {"base": base["params"], "pruned": exported["params"]},
               "prunable": {"base": groups.total, "kept": kept},
               **{key: {name: row[key] for name, row in rows.items()} for key in ("val_loss", "accuracy", "tokens_per_second")},
               "file_bytes": {"base": base["bytes"], "exported": exported["bytes"]}, "max_logit_diff": difference,
               "seconds": record["seconds"], "peak_memory_bytes": peak_memory(run.device)}
    llama.write_json(out / "summary.json", summary)

    print(f"\n{'':10s}{'parameters':>14s}{'prunable':>14s}{'kept':>8s}{'val ppl':>10s}{'accuracy':>10s}{'tokens/s':>10s}{'file':>10s}")
    for name, row in rows.items():
        prunable = groups.total if name == "base" else kept
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        size = f"{row['bytes'] / 1e6:.1f} MB" if "bytes" in row else "-"
        print(f"{name:10s}{row['params']:14,}{prunable:14,}{prunable / groups.total:8.2%}{math.exp(row['val_loss']):10.2f}"
              f"{accuracy:>10s}{row['tokens_per_second']:10,.0f}{size:>10s}")
    print(f"pruned: requested {config.prune:.2%}, obtained {summary['obtained_prune']:.2%}; largest logit difference of pruned "
          f"and exported: {difference:.1e}\n{record['seconds'] / 60:.1f} minutes, peak memory "
          f"{summary['peak_memory_bytes'] / 2**30:.2f} GB\n\nnext: python llama.py {out / 'pruned'} --prompt \"The lessee shall\"")


def open_run(config: Config, device: torch.device, checkpoint: dict | None) -> tuple[Run, Tokenizer]:
    """A run at its first step, or at the checkpoint's. Raises InputError for all that can be known to fail later."""
    for path in config.data:
        data.read(path)  # before the base is made: bad data should not cost a minute
    config.model = config.model or tiny_base()
    tokenizer = Tokenizer(Path(config.model) / "tokenizer.model")
    tokenizer.check(LlamaConfig.read(Path(config.model) / "params.json"))
    rows = data.load(config.data, tokenizer, config.seq_len, config.answer_only)
    if len(rows.train.tokens) < config.batch_size * config.accumulate:
        raise InputError(f"{', '.join(config.data)}: {len(rows.train.tokens)} rows of {config.seq_len} tokens to train on, fewer "
                         f"than one batch; lower --batch-size or --seq-len, or add data")
    dtype = getattr(torch, config.dtype)
    model = llama.load(config.model, dtype, device)
    digests = fingerprint(model, tokenizer.path, config.data)
    if checkpoint:
        for name, digest in checkpoint["record"]["fingerprint"].items():
            if digests.get(name) != digest:
                raise InputError(f"--resume: {name} changed since the checkpoint was written; bring the old back or start anew")
        model, groups, _ = export.restore(checkpoint, model)
        run = Run(config, model, groups, rows)
        run.load_state(checkpoint)
        return run, tokenizer

    groups = Groups(model.config, config.space, config.round_to, device)
    groups.check(1 - config.prune)
    print(f"model: {config.model}, {llama.count_parameters(model):,} parameters, {groups.total:,} prunable in {len(groups):,} "
          f"groups ({config.space}); {config.dtype} on {device}\n"
          f"data: {', '.join(f'{n:,} {name}' for name, n in rows.records.items())} records; rows of {config.seq_len} tokens: "
          + ", ".join(f"{len(getattr(rows, name).tokens):,} {name}" for name in ("train", "decision", "validation")), flush=True)
    torch.manual_seed(config.seed)
    base = measure(model, tokenizer, rows, config)
    print(f"base: validation loss {base['val_loss']:.4f}, perplexity {math.exp(base['val_loss']):.2f}", flush=True)
    export.add_lora(model, config.rank, config.lora_scale)
    run = Run(config, model, groups, rows)
    run.record |= {"base": base | {"bytes": file_bytes(Path(config.model))}, "fingerprint": digests}
    run.warm_start()
    return run, tokenizer


def main() -> None:
    config, args = parse_arguments()
    out = Path(args.resume or config.out or Path("out") / Path(config.data[0]).stem)
    checkpoint = export.read_checkpoint(out) if args.resume else None
    if checkpoint:
        config = Config(**checkpoint["config"])
    elif (out / "log.jsonl").exists() and not args.overwrite:
        raise InputError(f"{out}: holds a run already; go on with it (--resume {out}), replace it (--overwrite), "
                         "or write elsewhere (--out)")
    device = llama.find_device(config.device)
    if config.dtype == "auto":
        config.dtype = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    run, tokenizer = open_run(config, device, checkpoint)

    try:
        out.mkdir(parents=True, exist_ok=True)
        if not checkpoint:
            for name in ("ckpt.pt", "summary.json"):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / "pruned", ignore_errors=True)
        log_path = out / "log.jsonl"
        lines = log_path.read_text().splitlines(keepends=True) if checkpoint else []
        lines = [line for line in lines if json.loads(line)["step"] <= run.step]  # those after the checkpoint come again
        llama.write_atomic(log_path, lambda file: file.write("".join(lines).encode()))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    begin, before = time.monotonic(), run.record["seconds"]

    def save():
        run.record["seconds"] = before + time.monotonic() - begin
        llama.write_atomic(out / "ckpt.pt", lambda file: torch.save(run.state(), file))

    def ask_to_stop(signum, frame):
        run.stop_asked = True
        print("\nstopping after this step; once more ends at once", flush=True)
        signal.signal(signum, signal.SIG_DFL)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, ask_to_stop)
    with open(log_path, "a") as file:
        tune(run, save, lambda line: print(json.dumps(line), file=file, flush=True))
    if run.stop_asked:
        print(f"stopped at step {run.step} of {config.steps}; go on with: python train.py --resume {out}")
        sys.exit(130)
    finish(run, tokenizer, out)


if __name__ == "__main__":
    llama.command(main)
