"""Tune and prune in one run (ATP, arXiv 2412.14426), then export the smaller model.

    python train.py --data legal.jsonl                                  # built-in tiny base, on a laptop
    python train.py --model Llama-2-7b --data legal.jsonl --prune 0.4   # one GPU

First the search: one pass through soft decisions teaches LoRA the task and the generator G which groups to keep,
and the lasso shrinks what LoRA learned in removed groups. Its first half, the warm start, keeps everything, and only
measures what each group matters. With `--alternate`, as in the paper, the two take turns: G learns on a batch with LoRA
frozen (pruned forward), LoRA on others with decisions fixed (LoRA-aware forward).
From `--freeze-at` on, decisions are frozen, the removed groups are cut out, and the rest is plain LoRA on the
small model. The loop is `tune`, a step is `Run.advance`.
"""
import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import data
import export
import llama
from atp import (SPACES, Generator, Groups, budget_term, group_lasso, gumbel, proximal_lasso, saliency,
                 straight_through)
from llama import InputError, Llama, LlamaConfig, Tokenizer

HERE = Path(__file__).resolve().parent


def option(default, text: str, low=None, high=2**31, **more):
    """A Config field that becomes a flag: default, help, a number's range with its ends, argparse's rest."""
    how = {"default_factory": lambda: default} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**how, metadata={"help": text, "range": (low, high), "more": more})


CALIBRATION = 4  # batches of the decision split that static criteria are measured on
CRITERIA = ["taylor", "magnitude", "activation", "random"]
DECISIONS = ["atp", "two-stage", *CRITERIA, "none"]


@dataclass
class Config:
    model: str = option("", "model directory in the raw format; without it, a tiny base is made once")
    data: list[str] = option(["legal.jsonl"], "JSON lines files", nargs="+")
    out: str = option("", "run directory (default: out/ and the first data file's name)")
    prune: float = option(0.4, "fraction of the prunable parameters to remove", 0.001, 0.999)
    space: str = option("dims", "remove head dimensions or whole heads, and FFN units", choices=list(SPACES))
    uniform: bool = option(False, "the same sizes in every layer, for engines that want that")
    round_to: int = option(1, "keep dimensions and FFN units in multiples of this", 1)
    decisions: str = option("atp", "learned while tuning (atp); learned first, or taken by a criterion, on the "
                            "pretrained model; or none: everything is kept", choices=DECISIONS)
    steps: int = option(300, "LoRA steps", 1)
    batch_size: int = option(8, "rows of one forward pass", 1)
    accumulate: int = option(1, "forward passes of one LoRA step", 1)
    seq_len: int = option(256, "tokens of a row", 2)
    answer_only: bool = option(False, "no loss on prompts, only on answers")
    lr: float = option(5e-3, "LoRA's peak learning rate", 1e-9, 1e3)
    warmup: float = option(0.03, "fraction of the steps over which it rises; then cosine to a tenth", 0, 1)
    weight_decay: float = option(0.01, "AdamW's, on LoRA", 0, 1e3)
    clip: float = option(1.0, "largest gradient norm of a LoRA step", 1e-9)
    rank: int = option(8, "of LoRA", 1)
    lora_scale: float = option(2.0, "s in W + s B A", 1e-9)
    freeze_at: float = option(0.04, "fraction of the steps after which decisions are frozen (T_end)", 0, 1)
    aware: bool = option(True, "under 0/1 decisions, LoRA steps mask the frozen weight only; else LoRA, too")
    slice_at_freeze: bool = option(True, "cut at the freeze, tune the small model; else mask to the end")
    alternate: bool = option(False, "in the search, G and LoRA learn in turns, by passes and batches of their own "
                             "(the paper); else by the same pass, through soft decisions: less time")
    generator_every: int = option(2, "with --alternate, LoRA steps between two generator steps", 1)
    generator_batch_size: int = option(0, "rows of each calibration batch, and of a generator step if G learns in "
                                       "passes of its own (0: --batch-size)", 0)
    generator_lr: float = option(3e-3, "the generator's learning rate", 1e-9, 1e3)
    temperature: float = option(0.4, "T of the sigmoid in the decisions", 1e-3)
    warm_start: float = option(0.5, "fraction of the search that keeps everything: Taylor saliency, from which the "
                               "rest starts, is the mean of its passes' |gradients|", 0, 1)
    spread: float = option(2.0, "deviation of the logits that the warm start sets; 0: no warm start", 0, 1e3)
    anneal: float = option(0.6, "fraction of the search after its warm start in which the budget goes from 1 to the "
                           "target", 0, 1)
    budget: str = option("threshold", "the generator's budget: a threshold that fits it, or a loss term",
                         choices=["threshold", "loss"])
    alpha: float = option(5.0, "weight of the budget term with --budget loss", 0)
    offset: float = option(3.0, "added to the logits with --budget loss: starts nearly dense", -1e3, 1e3)
    straight_through: bool = option(False, "in the search, hard decisions with the soft ones' gradient")
    sample: bool = option(False, "LoRA steps take the generator's decisions, not the best in the budget")
    lasso: str = option("proximal", "group lasso on removed groups' LoRA",
                        choices=["proximal", "loss", "none"])
    lasso_weight: float = option(5.0, "lambda of the lasso; if proximal, times the learning rate", 0)
    shard: bool = option(False, "under torchrun: spread the frozen base over the processes (FSDP2)")
    compile: bool = option(False, "torch.compile every layer: faster steps after some minutes' compilation")
    checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    seed: int = option(0, "of everything random", 0, 2**32 - 1)
    device: str = option("auto", "cuda, mps or cpu (default: the best there is)")
    dtype: str = option("auto", "of base and activations (default: bfloat16 where the GPU has it)",
                        choices=["auto", "float32", "bfloat16"])
    log_every: int = option(10, "steps between two lines of the log", 1)
    eval_every: int = option(100, "steps between two evaluations on the validation split", 1)
    checkpoint_every: int = option(100, "steps between two checkpoints", 1)


# The authors' procedure: noise, offset and a loss term for the budget; no warm start, masks to the end.
PAPER = dict(alternate=True, freeze_at=0.5, generator_every=1, budget="loss", sample=True, spread=0.0, anneal=0.0,
             generator_lr=1e-3, lasso="loss", lasso_weight=10.0, slice_at_freeze=False)

LEARNED = ["atp", "two-stage"]
NEEDS = [(["prune"], "--decisions other than none", lambda c: c.decisions != "none"),
         (["alternate"], "--decisions atp", lambda c: c.decisions == "atp"),
         (["freeze_at", "generator_lr", "temperature", "warm_start", "spread", "anneal", "budget",
           "straight_through"],
          "--decisions atp or two-stage", lambda c: c.decisions in LEARNED),
         (["warm_start"], "--spread above 0", lambda c: c.spread),
         (["generator_every"], "--alternate", lambda c: c.alternate),
         (["generator_batch_size"], "--alternate, or --decisions two-stage, taylor or activation",
          lambda c: c.alternate or c.decisions in ("two-stage", "taylor", "activation")),
         (["aware"], "--alternate or --no-slice-at-freeze", lambda c: c.alternate or not c.slice_at_freeze),
         (["alpha", "offset"], "--budget loss", lambda c: c.budget == "loss"),
         (["sample"], "--budget loss and --alternate", lambda c: c.budget == "loss" and c.alternate),
         (["lasso", "lasso_weight"], "--decisions atp or --no-slice-at-freeze",
          lambda c: c.decisions == "atp" or not c.slice_at_freeze),
         (["lasso_weight"], "--lasso other than none", lambda c: c.lasso != "none")]


def parse_arguments() -> tuple[Config, str | None, bool | None]:
    """The command line: a Config, --resume and --overwrite. Raises InputError."""
    parser = llama.Parser(description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(Config):
        how = dict(field.metadata["more"], help=field.metadata["help"])
        if field.default not in ("", "auto", dataclasses.MISSING):
            how["help"] += f" (default: {field.default})"
        if field.type is bool:
            how["action"] = argparse.BooleanOptionalAction
        elif field.type in (int, float):
            how["type"] = field.type
        parser.add_argument("--" + field.name.replace("_", "-"), **how)
    preset = ", ".join(f"{name} {value}" for name, value in PAPER.items())
    parser.add_argument("--paper", action="store_true", help=f"the authors' procedure ({preset})")
    parser.add_argument("--resume", metavar="RUN", help="go on from a run's checkpoint, with its options")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    given = vars(parser.parse_args())
    paper, resume, overwrite = (given.pop(name, None) for name in ("paper", "resume", "overwrite"))
    if resume and (given or paper or overwrite):
        raise InputError("--resume goes on with the run's own options; give no others with it")
    config = Config(**((PAPER if paper else {}) | given))
    for field in dataclasses.fields(Config):
        low, high = field.metadata["range"]
        if low is not None and not low <= getattr(config, field.name) <= high:
            raise InputError(f"--{field.name.replace('_', '-')} {getattr(config, field.name)}: "
                             f"must be from {low} to {high}")
    for flags, needed, holds in NEEDS:
        for flag in given if not holds(config) else ():
            if flag in flags:
                raise InputError(f"--{flag.replace('_', '-')} has no effect here: it needs {needed}")
    if config.round_to > 1 and config.round_to % 2:
        raise InputError(f"--round-to {config.round_to}: must be 1 or even, as rotary pairs go two by two")
    return config, resume, overwrite


def tiny_base() -> str:
    """The built-in base's directory; pretrains it on english.jsonl the first time, in about a minute."""
    target = HERE / "out" / "tiny-base"
    if not (target / "params.json").exists() and llama.process_rank() == 0:
        print(f"base: no --model given; pretraining the built-in tiny one, once, for {target}", flush=True)
        made = subprocess.run([sys.executable, HERE / "scripts" / "tiny_base.py", target])
        if made.returncode:
            sys.exit(made.returncode)  # it has said why
    llama.wait_for_all()
    return str(target)


# -------------------------------------------------------------------------------------------- pure functions

def schedule(step: int, steps: int, warmup: float) -> float:
    """Fraction of the peak learning rate: linear up over `warmup` of the steps, a cosine down to a tenth."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def fingerprint(model: Llama, tokenizer: Path, files: list[str]) -> dict[str, str]:
    """Digests of what a resumed run must find unchanged: tokenizer and data whole, weights by samples."""
    weights = hashlib.sha256()
    for name, p in model.named_parameters():
        sample = llama.whole(p.detach()).flatten()[::max(1, p.numel() // 64)].float().cpu()
        weights.update(f"{name} {tuple(p.shape)}".encode() + sample.numpy().tobytes())
    digests = {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in [tokenizer, *files]}
    return {"the model's weights": weights.hexdigest(), **digests}


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU, or that the process took otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ------------------------------------------------------------------------------------------------ evaluation

@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # not worth a compilation
def validation_loss(model: Llama, rows: data.Rows, batch_size: int, masks=None) -> tuple[float, float]:
    """Mean negative log-likelihood in nats of all targets of `rows`, and tokens read per second."""
    total, count, device = 0.0, 0, model.norm.weight.device
    model.nll(*rows.at(slice(batch_size), device), masks)  # a warm-up, not timed
    begin = time.perf_counter()
    for i in range(0, len(rows.tokens), batch_size):
        tokens, targets = rows.at(slice(i, i + batch_size), device)
        total += model.nll(tokens, targets, masks).item()
        count += int((targets != llama.IGNORE).sum())
    return total / max(1, count), rows.tokens.numel() / (time.perf_counter() - begin)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def answer_scores(model: Llama, tokenizer: Tokenizer, prompt: str, answers, seq_len: int, masks=None):
    """For each candidate answer after `prompt`: its mean log-likelihood a token (EOS included), and whether
    greedy decoding would give just this answer: each token is the likeliest after those before. Long prompts
    lose their beginning, so that prompt and answer fit in `seq_len`."""
    pairs = data.encode([data.Example(prompt, answer) for answer in answers], tokenizer)
    rows = [(ids + answer)[-seq_len - 1:] for ids, answer in pairs]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [tokenizer.eos] * (width - len(row)) for row in rows])
    hidden = model.hidden(tokens[:, :-1].to(model.norm.weight.device), masks)
    scores = []
    for row, h, (_, answer) in zip(rows, hidden, pairs):
        end, n = len(row) - 1, min(len(answer), len(row) - 1)
        logp = F.linear(h[end - n:end], model.output_weight).float().log_softmax(-1)  # n V
        wanted = torch.tensor(row[-n:], device=h.device)
        likelihood = logp.gather(1, wanted[:, None]).mean().item()
        scores.append((likelihood, bool((logp.argmax(-1) == wanted).all())))
    return scores


def answer_accuracy(model: Llama, tokenizer: Tokenizer, questions, seq_len: int, masks=None) -> float | None:
    """Fraction of questions answered right, None if there are none: the likeliest option is the true one, or
    without options, greedy decoding gives exactly the answer."""
    right = 0
    for question in questions:
        answers = question.options or [question.answer]
        scores = answer_scores(model, tokenizer, question.prompt, answers, seq_len, masks)
        best = answers[scores.index(max(scores))]
        right += best == question.answer if question.options else scores[0][1]
    return right / len(questions) if questions else None


# ---------------------------------------------------------------------------------------------------- a run

class Run:
    """All that changes while training, and the steps that change it."""

    def __init__(self, config: Config, model: Llama, groups: Groups, rows: data.Data):
        self.config, self.model, self.groups, self.rows = config, model, groups, rows
        model.checkpointing = config.checkpointing
        self.compile()
        self.device, self.dtype = groups.cost.device, model.norm.weight.dtype
        self.prune = 0.0 if config.decisions == "none" else config.prune
        learned = config.decisions in LEARNED
        self.freeze_step = max(1, round(config.freeze_at * config.steps)) if learned else 0
        self.warm_steps = math.ceil(config.warm_start * self.freeze_step) if config.spread else 0
        self.first_lora_step = self.freeze_step if config.decisions == "two-stage" else 0
        self.one_pass = not (config.alternate or self.first_lora_step)
        self.generator_every = 1 if self.first_lora_step else config.generator_every
        self.generator_rows = config.generator_batch_size or config.batch_size
        self.steps = self.first_lora_step + config.steps
        self.step, self.frozen, self.sliced, self.stop_asked = 0, False, False, False
        self.skipped, self.in_a_row = 0, 0  # updates not made because something was not finite; steps with such
        self.record = {"seconds": 0.0}  # what the summary needs from before a resume
        self.processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.optimizer = torch.optim.AdamW(export.lora_parameters(model).values(), lr=config.lr,
                                           weight_decay=config.weight_decay)
        self.generator = Generator(groups).to(self.device)
        if self.warm_steps or not learned:  # the prior is all there is to begin with
            torch.nn.init.zeros_(self.generator.head.weight)
            torch.nn.init.zeros_(self.generator.head.bias)
        self.generator_optimizer = torch.optim.AdamW(self.generator.parameters(), lr=config.generator_lr)
        self.d = torch.ones(len(groups), dtype=torch.bool, device=self.device)

    def compile(self) -> None:
        """Layer by layer: equal layers share their code, and decisions are tensors, so new ones need none."""
        if self.config.compile:
            torch._dynamo.config.recompile_limit = 8 * len(self.model.layers)  # after the cut, sizes differ
            for layer in self.model.layers:
                layer.compile(fullgraph=not self.config.shard)

    def batch(self, rows: data.Rows, size: int, index: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's rows of a batch, tokens and targets; and how many targets count in all of it."""
        tokens, targets = rows.batch(size, index, seed)
        mine = slice(llama.process_rank(), None, self.processes)
        return tokens[mine].to(self.device), targets[mine].to(self.device), (targets >= 0).sum().clamp(min=1)

    def add_up(self, tensors: list[Tensor]) -> None:
        """Sums over the processes, in place, in one message: data parallelism is no more than this, as what is
        trained is small beside the base. Sums are equal in every process, and so is all that follows from them."""
        if self.processes > 1:
            flat = torch.cat([t.flatten() for t in tensors])
            dist.all_reduce(flat)
            for t, part in zip(tensors, flat.split([t.numel() for t in tensors])):
                t.copy_(part.view_as(t))

    def agree(self, d: Tensor) -> Tensor:
        """The first process's decisions, for all: on a GPU the last bit of a sum may differ from one to another."""
        if self.processes > 1:
            dist.broadcast(d := d.byte(), 0)
        return d.bool()

    def decide_first(self) -> None:
        """Decides before the first step, for methods that do not learn decisions."""
        criterion = self.config.decisions
        if criterion in CRITERIA:
            batches = [self.batch(self.rows.decision, self.generator_rows, i, self.config.seed)
                       for i in range(CALIBRATION)]
            self.generator.prior.copy_(saliency(criterion, self.model, self.groups, batches, self.add_up))
        if self.freeze_step == 0:
            self.freeze()

    @property
    def warming(self) -> bool:
        """Whether this step of the search keeps everything."""
        return self.step < self.warm_steps

    def keep(self) -> float:
        """The fraction to keep at this step after the warm start: from 1 down to the target over `anneal` of them."""
        annealed = self.config.anneal * (self.freeze_step - self.warm_steps)
        return 1 - self.prune * min(1.0, (self.step + 1 - self.warm_steps) / max(1.0, annealed))

    def soft_decisions(self) -> Tensor:
        """The generator's decisions [G] in (0, 1), for the pruned forward; in the warm start, all 1."""
        if self.warming:
            return torch.ones(len(self.groups), device=self.device)
        config, logits = self.config, self.generator()
        if config.budget == "threshold":
            logits = logits - self.groups.edge(logits, self.keep(), config.temperature)
        else:
            logits = logits + gumbel(logits) + config.offset
        p = torch.sigmoid(logits / config.temperature)
        return straight_through(p) if config.straight_through else p

    def generator_step(self) -> dict[str, float]:
        """G learns from a decision batch, LoRA frozen."""
        tokens, targets, count = self.batch(self.rows.decision, self.generator_rows,
                                            self.step // self.generator_every, self.config.seed + 1)
        d = self.soft_decisions()
        leaf = d.detach().requires_grad_()
        loss = self.model.nll(tokens, targets, self.groups.masks(leaf, aware=False, dtype=self.dtype)) / count
        gradient, = torch.autograd.grad(loss, leaf)
        self.add_up([total := loss.detach(), gradient])
        return {"gen_loss": total.item()} | self.update_generator(d, gradient)

    def update_generator(self, d: Tensor, gradient: Tensor) -> dict[str, float]:
        """Takes the loss's gradient in soft decisions d on to G, and its new hard decisions for LoRA steps and lasso.

        In the warm start, the gradient only goes into G's prior."""
        if self.warming:
            if self.finite(gradient.sum()):
                self.generator.warm_up(self.groups, gradient, self.config.spread)
            return {}
        objective, terms = (d * gradient).sum(), {}
        if self.config.budget == "loss":
            term = budget_term((d * self.groups.share).sum(), self.keep())
            objective, terms["budget"] = objective + self.config.alpha * term, term.item()
        self.generator_optimizer.zero_grad()
        objective.backward()
        if self.finite(torch.nn.utils.clip_grad_norm_(self.generator.parameters(), 3.0)):  # the authors' bound
            self.generator_optimizer.step()
        last = self.d
        with torch.no_grad():
            self.d = self.agree(self.soft_decisions() > 0.5 if self.config.sample
                                else self.groups.decide(self.generator(), self.keep())[0])
        return terms | {"flips": (self.d != last).float().mean().item()}

    def lora_step(self) -> dict[str, float]:
        """One update of LoRA on train batches: decisions fixed, or in the same pass as G, through soft ones."""
        config, parameters = self.config, self.optimizer.param_groups[0]["params"]
        both = self.one_pass and not self.frozen
        d = self.soft_decisions() if both else self.d
        leaf = d.detach().requires_grad_(both)
        step = self.step - self.first_lora_step
        lr = config.lr * schedule(step, config.steps, config.warmup)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        first = step * config.accumulate
        batches = [self.batch(self.rows.train, config.batch_size, first + i, config.seed)
                   for i in range(config.accumulate)]
        count = sum(n for *_, n in batches)
        total, terms = torch.zeros((), device=self.device), {}
        for tokens, targets, _ in batches:
            masks = None if self.sliced else self.groups.masks(leaf, config.aware and not both, self.dtype)
            loss = self.model.nll(tokens, targets, masks) / count
            loss.backward()
            total += loss.detach()
        self.add_up([total, *(p.grad for p in parameters), *([leaf.grad] if both else [])])
        if both:
            terms = self.update_generator(d, leaf.grad)
        if not self.sliced and config.lasso == "loss":
            penalty = group_lasso(self.model.layers, self.groups, self.d)
            (config.lasso_weight * penalty).backward()
            terms["lasso"] = penalty.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        if self.finite(norm):
            self.optimizer.step()
            if not self.sliced and config.lasso == "proximal":
                proximal_lasso(self.model.layers, self.groups, self.d, lr * config.lasso_weight)
        return terms | {"loss": total.item(), "lr": lr, "grad_norm": norm.item()}

    def finite(self, norm: Tensor) -> bool:
        """Whether an update with this gradient norm may be made; counts those that may not."""
        self.skipped += not norm.isfinite()
        return bool(norm.isfinite())

    def advance(self) -> dict[str, float]:
        """One step of the loop. Raises InputError if updates had to be skipped in three steps in a row."""
        terms, before = {}, self.skipped
        if not (self.frozen or self.one_pass or self.step % self.generator_every):
            terms = self.generator_step()
        if self.step >= self.first_lora_step:
            terms |= self.lora_step()
        self.in_a_row = self.in_a_row + 1 if self.skipped > before else 0
        if self.in_a_row == 3:
            raise InputError(f"step {self.step}: loss or gradient not finite, three steps in a row; the last "
                             "checkpoint is kept. Try a lower --lr or --generator-lr, or --dtype float32")
        self.step += 1
        if self.step == self.freeze_step:
            self.freeze()
        return terms | {"skipped": self.skipped}

    @torch.no_grad()
    def target_decisions(self) -> Tensor:
        """The decisions [G] that the model would be exported with now: the best that fit the final budget."""
        return self.d if self.frozen else self.agree(self.groups.decide(self.generator(), 1 - self.prune)[0])

    def freeze(self) -> None:
        """T_end: fixes the decisions and lets go of the generator, and of all that they remove."""
        self.d, self.frozen = self.target_decisions(), True
        self.generator = self.generator_optimizer = None
        if self.config.slice_at_freeze:
            export.cut(self.model, self.groups, self.d, self.optimizer)
            self.sliced = True
            self.compile()

    def pruned_masks(self):
        """For the pruned forward: what is exported, whether it is cut already or not."""
        if not self.sliced:
            return self.groups.masks(self.target_decisions(), aware=False, dtype=self.dtype)

    # What `state` writes, `load_state` reads; the model comes back by export.restore. Batches are a function
    # of the step and noise is drawn on the CPU, so torch's CPU generator is the only random state.
    PLAIN = ("step", "steps", "frozen", "sliced", "skipped", "in_a_row", "record", "d")

    def state(self) -> dict:
        parts = () if self.frozen else (self.generator, self.generator_optimizer)
        return {name: getattr(self, name) for name in self.PLAIN} | {
            "config": vars(self.config), "optimizer": self.optimizer.state_dict(),
            "searching": [part.state_dict() for part in parts],
            "lora": {name: p.data for name, p in export.lora_parameters(self.model).items()},
            "rng": torch.get_rng_state()}

    def load_state(self, saved: dict) -> None:
        for name in self.PLAIN:
            setattr(self, name, saved[name])
        self.d = self.d.to(self.device)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.frozen:
            self.generator = self.generator_optimizer = None
        else:
            self.generator.load_state_dict(saved["searching"][0])
            self.generator_optimizer.load_state_dict(saved["searching"][1])
        torch.set_rng_state(saved["rng"])


def tune(run: Run, save, log) -> bool:
    """The one-stage loop, from `run.step` to the last. `save()` writes a checkpoint, `log(dict)` a line.

    Returns whether it was asked to stop before the end."""
    config, stop, terms = run.config, False, {}
    last_step, seconds = run.step, 0.0
    while run.step < run.steps and not stop:
        begin = time.monotonic()
        terms |= run.advance()
        seconds += time.monotonic() - begin
        at_end, asked = run.step == run.steps, torch.tensor([float(run.stop_asked)], device=run.device)
        run.add_up([asked])  # all processes stop at the same step, or none
        stop = bool(asked)
        milestone = at_end or run.step == run.freeze_step
        if milestone or run.step % config.eval_every == 0:
            terms["val_loss"], _ = validation_loss(run.model, run.rows.validation, config.batch_size,
                                                   run.pruned_masks())
        if "val_loss" in terms or run.step % config.log_every == 0:
            rate = (run.step - last_step) / max(1e-9, seconds)
            line = {"step": run.step, "phase": "tune" if run.frozen else "search", **terms,
                    "kept": run.groups.kept(run.d) / run.groups.total, "target": 1 - run.prune,
                    "tokens_per_second": rate * config.batch_size * config.accumulate * config.seq_len}
            log(line)
            print(log_line(line, run.steps, (run.steps - run.step) / rate), flush=True)
            last_step, seconds, terms = run.step, 0.0, {}
        if at_end or stop or not run.in_a_row and (milestone or run.step % config.checkpoint_every == 0):
            save()
    return stop


def log_line(line: dict, steps: int, left: float) -> str:
    """A line of the log for the eye. `left`: seconds."""
    shown = [("loss", "loss"), ("gen_loss", "gen"), ("budget", "budget"), ("lasso", "lasso"), ("flips", "flips")]
    parts = [f"step {line['step']:{len(str(steps))}d}/{steps} {line['phase']:6s}"]
    parts += [f"{name} {line[key]:.3f}" for key, name in shown if key in line]
    parts += [f"kept {line['kept']:.3f}/{line['target']:.3f}"]
    parts += [f"lr {line['lr']:.1e}"] if "lr" in line else []
    parts += [f"{line['tokens_per_second']:,.0f} tok/s", f"{left / 60:.1f} min left"]
    parts += [f"val {line['val_loss']:.4f}"] if "val_loss" in line else []
    return "  ".join(parts + ([f"skipped {line['skipped']}"] if line["skipped"] else []))


# ------------------------------------------------------------------------------------------------ the whole

def measure(model: Llama, tokenizer: Tokenizer, rows: data.Data, config: Config, masks=None) -> dict:
    """One line of the summary table."""
    loss, speed = validation_loss(model, rows.validation, config.batch_size, masks)
    return {"params": llama.count_parameters(model), "val_loss": loss, "tokens_per_second": speed,
            "accuracy": answer_accuracy(model, tokenizer, rows.questions, config.seq_len, masks)}


def file_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("consolidated.*.pth"))


def finish(run: Run, tokenizer: Tokenizer, out: Path) -> None:
    """Exports, measures the exported model, writes summary.json and prints the table."""
    config, groups, base = run.config, run.groups, run.record["base"]
    kept, pruned = groups.kept(run.d), measure(run.model, tokenizer, run.rows, config, run.pruned_masks())
    pruned["params"] = base["params"] - groups.total + kept
    difference = export.write(run.model, groups, None if run.sliced else run.d, tokenizer.path,
                              run.rows.validation.at(slice(4))[0], out / "pruned")
    model = llama.load(out / "pruned", run.dtype, run.device, config.shard)
    exported = measure(model, tokenizer, run.rows, config)
    exported["bytes"] = file_bytes(out / "pruned")
    rows = {"base": base, "pruned": pruned, "exported": exported}
    summary = {"requested_prune": run.prune, "obtained_prune": 1 - kept / groups.total,
               "params": {"base": base["params"], "pruned": exported["params"]},
               "prunable": {"base": groups.total, "kept": kept},
               "file_bytes": {"base": base["bytes"], "exported": exported["bytes"]},
               "max_logit_diff": difference, "seconds": run.record["seconds"],
               "peak_memory_bytes": peak_memory(run.device)}
    for key in ("val_loss", "accuracy", "tokens_per_second"):
        summary[key] = {name: row[key] for name, row in rows.items()}
    if llama.process_rank() == 0:
        llama.write_json(out / "summary.json", summary)

    titles = ("parameters", "prunable", "kept", "val ppl", "accuracy", "tokens/s", "file")
    print("\n" + " " * 8 + "".join(f"{title:>12s}" for title in titles))
    for name, row in rows.items():
        left = groups.total if name == "base" else kept
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        size = f"{row['bytes'] / 1e6:,.1f} MB" if "bytes" in row else "-"
        cells = (f"{row['params']:,}", f"{left:,}", f"{left / groups.total:.2%}",
                 f"{math.exp(row['val_loss']):.2f}", accuracy, f"{row['tokens_per_second']:,.0f}", size)
        print(f"{name:8s}" + "".join(f"{cell:>12s}" for cell in cells))
    print(f"pruned: {run.prune:.2%} requested, {summary['obtained_prune']:.2%} obtained\n"
          f"largest logit difference of pruned and exported: {difference:.1e}\n"
          f"{summary['seconds'] / 60:.1f} minutes, peak memory "
          f"{summary['peak_memory_bytes'] / 2**30:.2f} GB\n\n"
          f"next: python llama.py {out / 'pruned'} --prompt \"The lessee shall\"")


def check_room(out: Path, run: Run) -> None:
    """Raises InputError unless `out` can be written and has room for two checkpoints and the export."""
    learned = [*run.optimizer.param_groups[0]["params"], *run.generator.parameters()]
    checkpoint = 3 * 4 * sum(p.numel() for p in learned)  # a parameter and AdamW's two moments, float32
    kept = llama.count_parameters(run.model) - run.prune * run.groups.total
    needed, folder = int(2 * checkpoint + kept * run.dtype.itemsize), out.resolve()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    if free < needed:
        raise InputError(f"{out}: checkpoints and export need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
                         "make room, choose another --out or lower --rank")


def open_run(config: Config, device, out: Path, checkpoint: dict | None) -> tuple[Run, Tokenizer]:
    """A run at its first step or at the checkpoint's. Raises InputError for what could only fail later."""
    if not config.model:
        for path in config.data:
            data.read(path)  # before the base is made: bad data should not cost a minute
        config.model = tiny_base()
    tokenizer = Tokenizer(Path(config.model) / "tokenizer.model")
    tokenizer.check(LlamaConfig.read(Path(config.model) / "params.json"))
    rows = data.load(config.data, tokenizer, config.seq_len, config.answer_only)
    if len(rows.train.tokens) < config.batch_size * config.accumulate:
        raise InputError(f"{', '.join(config.data)}: {len(rows.train.tokens)} rows of {config.seq_len} tokens, "
                         "fewer than one batch; lower --batch-size or --seq-len, or add data")
    model = llama.load(config.model, getattr(torch, config.dtype), device, config.shard)
    digests = fingerprint(model, tokenizer.path, config.data)
    if checkpoint:
        for name, digest in checkpoint["record"]["fingerprint"].items():
            if digests.get(name) != digest:
                raise InputError(f"--resume: {name} changed since the checkpoint; bring it back or start anew")
        groups, _ = export.restore(checkpoint, model)
        run = Run(config, model, groups, rows)
        try:
            run.load_state(checkpoint)
        except (KeyError, RuntimeError):
            raise InputError("--resume: the checkpoint is of another version of train.py; start anew") from None
        print(f"resuming at step {run.step} of {run.steps}", flush=True)
        return run, tokenizer

    groups = Groups(model.config, config.space, config.round_to, config.uniform, device)
    records = ", ".join(f"{n:,} {name}" for name, n in rows.records.items())
    splits = ", ".join(f"{len(getattr(rows, name).tokens):,} {name}" for name in data.SPLITS)
    print(f"model: {config.model}, {llama.count_parameters(model):,} parameters, {groups.total:,} prunable "
          f"in {len(groups):,} groups ({config.space}); {config.dtype} on {device}\n"
          f"data: {records} records; rows of {config.seq_len} tokens: {splits}", flush=True)
    torch.manual_seed(config.seed)
    export.add_lora(model, config.rank, config.lora_scale)
    run = Run(config, model, groups, rows)
    groups.check(1 - run.prune)
    check_room(out, run)
    base = measure(model, tokenizer, rows, config)  # LoRA adds nothing yet
    print(f"base: validation loss {base['val_loss']:.4f}, perplexity {math.exp(base['val_loss']):.2f}",
          flush=True)
    run.record |= {"base": base | {"bytes": file_bytes(Path(config.model))}, "fingerprint": digests}
    return run, tokenizer


def join_processes(config: Config) -> torch.device:
    """This process's device; under torchrun, joins the others and mutes all but the first. Raises InputError."""
    if torch.cuda.is_available() and config.device in ("auto", "cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # which "cuda" means from here on
    device = llama.find_device(config.device)
    if "RANK" not in os.environ:
        if config.shard:
            raise InputError("--shard needs several processes: torchrun --nproc_per_node=GPUS train.py ...")
        return device
    processes = int(os.environ["WORLD_SIZE"])
    for name in ("batch_size", "generator_batch_size"):
        if getattr(config, name) % processes:
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: {processes} processes cannot "
                             f"share its rows alike; make it a multiple of {processes}")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if llama.process_rank():
        sys.stdout = open(os.devnull, "w")
    return device


def has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        one = torch.ones(1, 1, dtype=torch.bfloat16, device=device)
        return bool(one @ one == 1)
    except (RuntimeError, TypeError):
        return False


def out_of_memory(run: Run, error: RuntimeError) -> InputError | RuntimeError:
    """What takes how much, and which option lowers it; any other error is handed back."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        return error
    config, layers = run.config, len(run.model.layers)
    weights = sum(p.numel() * p.element_size() for p in run.model.parameters()) / 1e9
    rest = max(0.0, peak_memory(run.device) / 1e9 - weights)
    ways = [f"half --seq-len saves {rest / 2:.1f} GB"]
    if config.batch_size > 1:
        ways += [f"half --batch-size with --accumulate {2 * config.accumulate} {rest / 2:.1f} GB"]
    if not config.checkpointing and layers > 1:
        ways += [f"--checkpointing about {rest * 0.9 * (1 - 1 / layers):.1f} GB"]
    if config.dtype == "float32":
        ways += [f"--dtype bfloat16 {weights / 2:.1f} GB"]
    return InputError(f"out of memory at step {run.step}: {weights:.1f} GB of weights and {rest:.1f} GB or more "
                      f"for {config.batch_size} rows of {config.seq_len} tokens; {', '.join(ways)}")


def prepare_directory(out: Path, run: Run, resuming: bool) -> Path:
    """Makes or clears the run directory; returns log.jsonl's path, cut back to `run.step`."""
    out.mkdir(parents=True, exist_ok=True)
    if not resuming:
        for name in ("ckpt.pt", "summary.json"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "pruned", ignore_errors=True)
    path = out / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if resuming else []
    lines = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= run.step]
    llama.write_atomic(path, lambda file: file.write("".join(lines).encode()))
    return path


def main() -> None:
    config, resume, overwrite = parse_arguments()
    out = Path(resume or config.out or Path("out") / Path(config.data[0]).stem)
    checkpoint = export.read_checkpoint(out) if resume else None
    if checkpoint:
        try:
            config = Config(**checkpoint["config"])
        except TypeError as error:
            raise InputError(f"{out / 'ckpt.pt'}: written by another version of train.py ({error})") from None
    elif any((out / name).exists() for name in ("ckpt.pt", "pruned", "summary.json")) and not overwrite:
        raise InputError(f"{out}: holds a run already; go on with it (--resume {out}), replace it "
                         "(--overwrite), or write elsewhere (--out)")
    if config.model and (out / "pruned").resolve() == Path(config.model).resolve():
        raise InputError(f"{out}: the run would replace the model it starts from; choose another --out")
    device = join_processes(config)
    if config.dtype == "auto":
        config.dtype = "bfloat16" if device.type == "cuda" and has_bfloat16(device) else "float32"
    if config.dtype == "bfloat16" and not has_bfloat16(device):
        raise InputError(f"--dtype bfloat16: {device} cannot compute in it; use --dtype float32")
    run, tokenizer = open_run(config, device, out, checkpoint)
    first = llama.process_rank() == 0
    log_path = prepare_directory(out, run, resuming=bool(resume)) if first else os.devnull
    begin, before = time.monotonic(), run.record["seconds"]

    def save():
        run.record["seconds"] = before + time.monotonic() - begin
        if first:
            llama.write_atomic(out / "ckpt.pt", lambda file: torch.save(run.state(), file))

    def ask_to_stop(signum, frame):
        run.stop_asked = True  # after this step; a second signal ends at once
        signal.signal(signum, signal.SIG_DFL)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, ask_to_stop)
    with open(log_path, "a") as file:
        try:
            if not resume:
                run.decide_first()
                save()  # a run can be resumed from its first moment on
            stopped = tune(run, save, lambda line: print(json.dumps(line), file=file, flush=True))
        except RuntimeError as error:
            raise out_of_memory(run, error) from None
    if stopped:
        print(f"stopped at step {run.step} of {run.steps}; go on with: python train.py --resume {out}")
        sys.exit(130)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    finish(run, tokenizer, out)
    if run.processes > 1:
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # DTensor's caches keep gloo's threads alive, and they can abort the interpreter's own end


if __name__ == "__main__":
    llama.command(main)
