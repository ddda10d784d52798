"""Tune and prune in one run (ATP, arXiv 2412.14426), then export the smaller model.

    python train.py --data legal.jsonl                                  # built-in base/, on a laptop
    python train.py --model Llama-2-7b --data legal.jsonl --prune 0.4   # one GPU

One pass through soft decisions teaches LoRA the task and the generator G which groups to keep; at T_end
(`--freeze-at`) the others are cut out, and the rest is plain LoRA. The loop is `tune`, a step `Run.advance`.
"""
import argparse, dataclasses, hashlib, json, math, os, platform, shlex, signal, statistics, sys, time
from pathlib import Path

import torch
from torch import Tensor

import atp, data, export, llama
from data import InputError
from scripts import find_model, measures, screen

VERSION, RUN_FILES = 3, ("ckpt.pt", "log.jsonl", "summary.json", "pruned", "dense", "report.html")
PLAIN = ("step", "seconds", "log", "base")  # a run's attributes that a checkpoint holds as they are
CALIBRATION, CLIP, WEIGHT_DECAY, WARMUP = 4, 1.0, 0.01, 0.03  # batches for criteria; LoRA's constants

# ---------------------------------------------------------------------------------------------------- options
def option(default, text: str, low=0, high=2**31, part="", **how):
    """A field and flag: help, a number's range with its ends, the part that begins here, argparse's rest."""
    return dataclasses.field(default=default, metadata=dict(help=text, range=(low, high), part=part, how=how))

@dataclasses.dataclass
class Config:
    model: str = option("", "model directory (default: the built-in base/)", part="model and data")
    data: list = option("legal.jsonl", "files of JSON, CSV, TSV or text", nargs="+")
    out: str = option("", "run directory (default: out/ and the first data file's name)")
    seq_len: int = option(256, "tokens of a row", 2)
    answer_only: bool = option(False, "no loss on prompts, only on answers")
    prune: float = option(0.4, "fraction of the prunable parameters to remove", 0.001, 0.999, part="pruning")
    space: str = option("dims", "remove head dimensions or heads, and FFN units", choices=list(atp.SPACES))
    uniform: bool = option(False, "the same sizes in every layer, for engines that want that")
    round_to: int = option(1, "keep dimensions and FFN units in multiples of this, 1 or even", 1)
    dense: bool = option(False, "also tune without pruning, to see what pruning costs; on for base/")
    decisions: str = option("atp", "learned while tuning (atp) or before (two-stage); by a criterion; none",
                            choices="atp two-stage taylor magnitude activation random none".split())
    slice_at_freeze: bool = option(True, "cut at the freeze, tune the small model; else mask to the end")
    steps: int = option(300, "LoRA steps", 1, part="LoRA")
    batch_size: int = option(8, "rows of one forward pass", 1)
    accumulate: int = option(1, "forward passes of one LoRA step", 1)
    lr: float = option(0.0, "peak learning rate; 0: 1.28 / the model's width", 0, 1e3)
    rank: int = option(8, "of A and B", 1)
    lora_scale: float = option(2.0, "s in W + s B A", 1e-9)
    freeze_at: float = option(0.25, "T_end: fraction of the steps that search", 0, 1, part="the search")
    warm_start: float = option(0.5, "fraction of the search that only measures what matters", 0, 1)
    anneal: float = option(0.6, "fraction of its rest in which the budget goes from 1 to the target", 0, 1)
    temperature: float = option(0.4, "T of the sigmoid in soft decisions", 1e-3)
    straight_through: bool = option(False, "hard decisions with the soft ones' gradient")
    budget: str = option("threshold", "how it is met: the paper has a loss", choices=["threshold", "loss"])
    sample: bool = option(False, "hard decisions are the generator's own, not the best in the budget")
    generator_lr: float = option(3e-3, "the generator's learning rate", 1e-9, 1e3)
    lasso: str = option("proximal", "on removed groups' LoRA", choices=["proximal", "loss", "none"])
    lasso_weight: float = option(5.0, "lambda of the lasso; if proximal, times the learning rate")
    alternate: bool = option(False, "G and LoRA learn in turns, by passes of their own, as in the paper")
    generator_every: int = option(2, "with --alternate, LoRA steps between two generator steps", 1)
    aware: bool = option(True, "LoRA steps under 0/1 decisions mask the frozen weight only; else LoRA, too")
    seed: int = option(0, "of everything random", 0, 2**32 - 1, part="machine and log")
    device: str = option("auto", "cuda, mps or cpu; auto: the best there is")
    dtype: str = option("auto", "auto: bfloat16 where it is fast", choices=["auto", "float32", "bfloat16"])
    shard: bool = option(False, "under torchrun: spread the base over the processes; implies --checkpointing")
    compile: bool = option(False, "torch.compile every layer: faster steps after a minute or more")
    checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, slower")
    log_every: int = option(10, "steps between two lines of the log", 1)
    eval_every: int = option(100, "steps between two evaluations and checkpoints", 1)

    def __post_init__(self):
        """Raises InputError for a value of another type, out of range or not among the choices."""
        self.model = self.model or str(Path(__file__).with_name("base"))
        self.data = [self.data] if isinstance(self.data, str) else [*map(str, self.data)]
        for field in dataclasses.fields(self):
            flag, value = "--" + field.name.replace("_", "-"), getattr(self, field.name)
            kind, (low, high) = (int, float) if field.type is float else field.type, field.metadata["range"]
            if isinstance(value, (int, float)) and not low <= value <= high:
                raise InputError(f"{flag} {value}: must be from {low} to {high}")
            if not isinstance(value, kind) or value not in field.metadata["how"].get("choices", [value]):
                raise InputError(f"{flag} {value}: {field.metadata['help']}")

# The authors' procedure: noise, offset and a loss term for the budget; no warm start, masks to the end.
PAPER = dict(alternate=True, freeze_at=0.5, generator_every=1, budget="loss", sample=True, warm_start=0.0,
             anneal=0.0, generator_lr=1e-3, lasso="loss", lasso_weight=10.0, slice_at_freeze=False)

def parse_arguments() -> tuple[dict, Path | None, bool]:
    """The options that were given, by their fields' names; --resume; --overwrite."""
    parser = data.Parser(description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(Config):
        flag, about, kind = "--" + field.name.replace("_", "-"), field.metadata, type(field.default)
        if about["part"]:
            part = parser.add_argument_group(about["part"])
        text = about["help"] + (f" (default: {field.default})" if field.default not in ("", "auto") else "")
        parsed = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        part.add_argument(flag, help=text, **parsed, **about["how"])
    parser.add_argument("--paper", action="store_true", help=f"the authors' procedure: {PAPER}")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on, up to --steps if given")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    given = vars(parser.parse_args())
    paper, resume, overwrite = (given.pop(name, None) for name in ("paper", "resume", "overwrite"))
    if resume and (given.keys() - {"steps"} or paper or overwrite):
        raise InputError("--resume goes on with the run's own options; give none but --steps with it")
    own = {} if resume else {"dense": "model" not in given} | (PAPER if paper else {})
    return own | given, resume, bool(overwrite)

# ------------------------------------------------------------------------------------- the loop and its steps
def tune(run: "Run", out: Path) -> None:
    """ATP's one-stage loop, from `run.step` to the last one, or until it is asked to stop (`run.stop`)."""
    config, terms, lasted = run.config, {}, []
    screen.begins(run)
    while run.step < run.steps and not run.stop:
        # learn
        phase, before = "tune" if run.decisions.frozen else "search", sum(run.seconds.values())
        terms |= run.timed(phase, run.advance)
        lasted.append(sum(run.seconds.values()) - before)
        # evaluate: at the freeze, at the end, and now and then between
        frozen = phase == "search" and run.decisions.frozen
        milestone = frozen or run.step == run.steps or run.step % config.eval_every == 0
        if milestone:
            terms["val_loss"] = run.timed("evaluation", lambda: export.validation_loss(
                run.model, run.rows.validation, config.batch_size, run.masks()))
        # log
        often = max(3, run.decisions.search_steps // 8) if phase == "search" else config.log_every
        if milestone or run.step % min(often, config.log_every) == 0:
            if phase == "search":
                terms["budget"] = run.groups.kept(run.decisions.d) / run.groups.total
            shown = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
            seconds = statistics.median(lasted)  # a step that compiled does not count
            speed = config.batch_size * config.accumulate * config.seq_len / seconds
            print(f"step {run.step:4d}/{run.steps} {phase:6s}  {shown}  {speed:,.0f} tok/s, "
                  f"{(run.steps - run.step) * seconds / 60:.1f} min left", flush=True)
            terms |= {"kept": run.groups.sizes(run.decisions.d)} if phase == "search" else {}
            run.log.append({"step": run.step, "phase": phase, **terms, "tokens_per_second": speed})
            terms, lasted = {}, []
        if frozen:
            screen.cut(run)
        # save; all processes stop at the same step, or none
        run.stop = bool(data.add_up([torch.tensor([float(run.stop)], device=run.device)])[0])
        if (milestone or run.stop) and data.RANK == 0:
            save(run, out)

class Run:
    """All that changes while training, and the steps that change it."""

    def __init__(self, config: Config, model: llama.Llama, rows: data.Data):
        self.config, self.model, self.rows = config, model, rows
        config.lr = config.lr or 1.28 / model.config.dim
        self.device, self.dtype = model.norm.weight.device, model.norm.weight.dtype
        self.step, self.cut, self.stop, self.log, self.base = 0, False, False, [], {}
        self.seconds = {"search": 0.0, "tune": 0.0, "evaluation": 0.0}
        self.prune = 0.0 if config.decisions == "none" else config.prune
        searches = config.decisions in ("atp", "two-stage")
        search_steps = max(1, round(config.freeze_at * config.steps)) if searches else 0
        self.lora_begins = search_steps if config.decisions == "two-stage" else 0  # LoRA's first step
        self.steps = self.lora_begins + config.steps
        self.groups = atp.Groups(model.config, config.space, config.round_to, config.uniform, self.device)
        self.groups.budget(1 - self.prune)  # refused now if out of reach
        torch.manual_seed(config.seed)
        model.add_lora(config.rank, config.lora_scale)
        model.checkpointing = config.checkpointing or config.shard  # else what is put together would be kept
        self.lora = list(model.lora().values())
        self.optimizer = atp.adamw(self.lora, lr=config.lr, weight_decay=WEIGHT_DECAY)
        self.decisions = atp.Decisions(self.groups, config, search_steps)
        if config.compile:  # layer by layer, as equal ones share their code; new decisions need none
            torch._dynamo.config.recompile_limit = 8 * len(model.layers)  # after the cut, sizes differ
            for layer in model.layers:
                layer.compile(fullgraph=not config.shard)

    def advance(self) -> dict[str, float]:
        """One step of ATP: who learns from which pass, and at T_end the freeze. Returns what is to log."""
        if self.decisions.frozen:               # plain LoRA, on what is left
            terms = self.lora_step()
        elif self.step < self.lora_begins:      # two-stage: G alone, on the pretrained model
            terms = self.generator_step(self.step)
        elif self.config.alternate:             # the paper: in turns
            turn, between = divmod(self.step, self.config.generator_every)
            terms = {} if between else self.generator_step(turn)
            terms |= self.lora_step()
        else:                                   # both, from one pass
            terms = self.joint_step()
        self.step += 1
        if self.step == self.decisions.search_steps:
            self.freeze(self.decisions.final())
        return terms

    def joint_step(self) -> dict[str, float]:
        """G and LoRA learn from one pass over train batches, by the pruned forward with soft decisions."""
        d = self.decisions.soft(self.step).requires_grad_()
        loss, *of_lora, of_d = self.gradients(self.train_batches(), d, False, [*self.lora, d])
        return self.decisions.learn(self.step, d, of_d) | self.update_lora(loss, of_lora)

    def generator_step(self, turn: int) -> dict[str, float]:
        """G learns from a decision batch through the pruned forward, LoRA frozen."""
        d = self.decisions.soft(self.step).requires_grad_()
        batch = self.batch(self.rows.decision, turn, self.config.seed + 1)
        loss, of_d = self.gradients([batch], d, False, [d])
        return {"gen_loss": loss.item()} | self.decisions.learn(self.step, d, of_d)

    def lora_step(self) -> dict[str, float]:
        """LoRA learns from train batches: by the LoRA-aware forward, decisions fixed, or on the cut model."""
        loss, *of_lora = self.gradients(self.train_batches(), self.decisions.d, self.config.aware, self.lora)
        return self.update_lora(loss, of_lora)

    def update_lora(self, loss: Tensor, gradients: list[Tensor]) -> dict[str, float]:
        """AdamW's step with these gradients, and the lasso on removed groups."""
        config, d, terms = self.config, self.decisions.d, {"loss": loss.item()}
        lr = config.lr * schedule(self.step - self.lora_begins, config.steps)
        self.optimizer.param_groups[0]["lr"] = lr
        for parameter, gradient in zip(self.lora, gradients):
            parameter.grad = gradient
        if config.lasso == "loss" and not self.cut:
            penalty = atp.group_lasso(self.model.layers, self.groups, d)
            (config.lasso_weight * penalty).backward()
            terms["lasso"] = penalty.item()
        terms["grad_norm"] = atp.clip_gradients(self.lora, CLIP)
        self.optimizer.step()
        if config.lasso == "proximal" and not self.cut:
            atp.proximal_lasso(self.model.layers, self.groups, d, lr * config.lasso_weight)
        return terms | {"lr": lr}

    def gradients(self, batches, d: Tensor, aware: bool, wanted: list[Tensor]) -> list[Tensor]:
        """The loss in nats a token over `batches` under decisions d [G], and its gradients in `wanted`."""
        count, sums = sum(n for *_, n in batches).clamp(min=1), [0.0] * (1 + len(wanted))
        for tokens, targets, _ in batches:
            masks = None if self.cut else self.groups.masks(d, aware, self.dtype)
            loss = self.model.nll(tokens, targets, masks) / count
            sums = [a + b for a, b in zip(sums, [loss.detach(), *torch.autograd.grad(loss, wanted)])]
        return data.add_up(sums)

    def train_batches(self) -> list:
        first, n = (self.step - self.lora_begins) * self.config.accumulate, self.config.accumulate
        return [self.batch(self.rows.train, i, self.config.seed) for i in range(first, first + n)]

    def batch(self, rows: data.Rows, index: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's rows of a batch, tokens and targets; and how many targets count in all of it."""
        tokens, targets = rows.batch(self.config.batch_size, index, seed)
        mine = slice(data.RANK, None, data.PROCESSES)
        return tokens[mine].to(self.device), targets[mine].to(self.device), (targets != data.IGNORE).sum()

    def decide_first(self) -> None:
        """Decides before the first step, for methods that do not learn decisions."""
        from scripts.criteria import CRITERIA  # the method itself needs none
        criterion, d = CRITERIA.get(self.config.decisions), self.decisions.d
        if criterion:
            batches = [self.batch(self.rows.decision, i, self.config.seed) for i in range(CALIBRATION)]
            d = self.groups.decide(criterion(self.model, self.groups, batches), 1 - self.prune)
        if not self.decisions.search_steps:
            self.freeze(data.first_process_says(d))

    def freeze(self, d: Tensor) -> None:
        """T_end: fixes the decisions d [G], and cuts out all that they remove."""
        self.decisions.freeze(d)
        if self.config.slice_at_freeze:
            export.cut(self.model, self.groups, d, self.optimizer)
            self.lora, self.cut = self.optimizer.param_groups[0]["params"], True

    def timed(self, part: str, work):
        """What `work()` returns; the time that it takes is added to a part of `seconds`."""
        begin = time.monotonic()
        result = work()
        self.seconds[part] += time.monotonic() - begin
        return result

    def masks(self):
        """For the pruned forward: what would be exported now, whether it is cut already or not."""
        return None if self.cut else self.groups.masks(self.decisions.final(), aware=False, dtype=self.dtype)

    def export(self, target: Path) -> float:
        """Writes the pruned model; returns the largest logit difference. Uses up the run's model."""
        d, (rows, _) = None if self.cut else self.decisions.d, self.rows.validation.at(slice(4))
        return export.write(self.model, self.groups, d, Path(self.config.model), rows, target)

    def state(self) -> dict:
        """What a checkpoint holds: all that is learned, and torch's CPU generator, for all that is random."""
        generator, optimizers = self.decisions.generator, (self.optimizer, self.decisions.optimizer)
        return {name: getattr(self, name) for name in PLAIN} | {
            "version": VERSION, "config": vars(self.config), "d": self.decisions.d,
            "generator": generator and dict(generator.state_dict()),
            "moments": [optimizer.state_dict()["state"] for optimizer in optimizers if optimizer],
            "lora": {name: p.data for name, p in self.model.lora().items()}, "rng": torch.get_rng_state()}

    def load_state(self, saved: dict) -> None:
        """Goes on where `state` gave `saved`. Raises InputError unless it is of such a run, data and base."""
        for name, own in (("step", self.step), ("d", self.decisions.d)):
            llama.restore(own, saved.get(name, ...), f"ckpt.pt, {name}")
        if saved["step"] >= self.decisions.search_steps:
            self.freeze(self.decisions.d)
        llama.restore(self.state(), saved, "ckpt.pt")
        if saved["base"]["sha256"] != self.base["sha256"]:
            raise InputError("data or base changed since the checkpoint; restore them or start anew")
        if saved["step"] > self.steps:
            raise InputError(f"ckpt.pt: {saved['step']} steps are done, {self.steps} asked for; ask for more")
        counts = [adam["step"] for moments in saved["moments"] for adam in moments.values()]
        try:
            if not all(0 <= n <= saved["step"] for n in counts):
                raise ValueError("its moments' steps do not fit its own")
            json.dumps(saved["log"])
            torch.set_rng_state(saved["rng"])
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"ckpt.pt: {data.first_line(error)}; it is damaged, start anew") from None
        vars(self).update({name: saved[name] for name in PLAIN})

def schedule(step: int, steps: int, warmup=WARMUP) -> float:
    """Fraction of the peak learning rate: linear up over `warmup` of the steps, a cosine down to a tenth."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

def measure(run: Run, model: llama.Llama, masks=None) -> dict:
    """What the summary says of a model."""
    removed = run.groups.total - run.groups.kept(run.decisions.d) if masks else 0
    return {"params": llama.count_parameters(model) - removed,
            "val_loss": export.validation_loss(model, run.rows.validation, run.config.batch_size, masks),
            "accuracy": measures.answer_accuracy(
                model, run.tokenizer, run.rows.questions, run.config.seq_len, masks)}

# ----------------------------------------------------------------------------------------- the way in and out
def open_run(config: Config, saved: dict | None = None) -> Run:
    """A run at its first step, or where `saved` left it. Raises InputError for what could only fail later."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # which "cuda" means from here on
    device, base, files = data.find_device(config.device), Path(config.model), ", ".join(config.data)
    if config.shard and data.PROCESSES == 1:
        raise InputError("--shard needs several processes: torchrun --nproc_per_node=GPUS train.py ...")
    if data.PROCESSES > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        sys.stdout = open(os.devnull, "w") if data.RANK else sys.stdout
    tokenizer, shape = data.Tokenizer(base), llama.LlamaConfig.read(base / "params.json")
    tokenizer.check(shape.vocab_size)
    weights = llama.open_shards(base)[0]
    if config.dtype == "auto":  # a CPU's pays for wide models that are stored in it
        stored = shape.dim >= 512 and all(weight.dtype == torch.bfloat16 for weight in weights.values())
        fast = data.fast_bfloat16(device) and (stored or device.type == "cuda")
        config.dtype = "bfloat16" if fast else "float32"
    tokens, dtype = config.batch_size * config.seq_len // data.PROCESSES, getattr(torch, config.dtype)
    data.fits(tokens * shape.dim * shape.n_layers * dtype.itemsize, device, "--batch-size rows of --seq-len")
    rows = data.load(config.data, tokenizer, config.seq_len, config.answer_only)
    if len(rows.train.tokens) < config.batch_size * config.accumulate:
        raise InputError(f"{files}: fewer than one batch; lower --batch-size or --seq-len, or add data")
    run = Run(config, llama.load(base, dtype, device, config.shard), rows)
    digest = hashlib.sha256(rows.train.tokens.numpy())
    for weight in weights.values():
        digest.update(weight.flatten()[:16].float().numpy())
    run.base = {"params": 0, "val_loss": 0.0, "accuracy": 0.0 if rows.questions else None,
                "sha256": digest.hexdigest()}  # the numbers come from `saved` or from `measure`
    run.tokenizer = tokenizer
    if saved:
        run.load_state(saved)
    run.base |= {} if saved else measure(run, run.model)  # LoRA adds nothing yet
    if not math.isfinite(run.base["val_loss"]):
        raise InputError(f"{base}: its loss is not finite; the weights are damaged, or need --dtype float32")
    screen.opened(run)
    return run

def open_saved(out: Path, dtype: str | None = None, steps: int | None = None) -> Run:
    """The run whose checkpoint is in `out`; of another dtype, or more steps, if asked. Raises InputError."""
    saved = llama.read_tensors(out / "ckpt.pt", mmap=False)
    if str(saved.get("version")) != str(VERSION):
        raise InputError(f"{out / 'ckpt.pt'}: not a checkpoint of this version of train.py; start anew")
    llama.restore(vars(Config()) | {"data": []}, saved.get("config"), f"{out / 'ckpt.pt'}, config")
    config = Config(**saved["config"])
    config.dtype, config.shard = dtype or config.dtype, config.shard and data.PROCESSES > 1
    if steps is not None:  # the search ends where it would have ended
        searched = config.freeze_at * config.steps / max(1, steps)
        config = dataclasses.replace(config, steps=steps, freeze_at=searched)
    return open_run(config, saved)

def start(config: Config, out: Path, replace: bool) -> Run:
    """A new run in `out`, which it claims, until the process ends, when it has shown that it can start."""
    config.model = str(find_model.find(Path(config.model)))
    claim(out, config, replace)
    run = open_run(config)
    run.decide_first()
    if data.RANK == 0:
        out.mkdir(parents=True, exist_ok=True)
        run.lock = data.lock(out)
        claim(out, config, replace)  # another process may have come first
        save(run, out)  # from now on it can be resumed, and has replaced the run before
        for name in ("log.jsonl", "summary.json", "report.html", "dense/ckpt.pt"):  # `pruned` is replaced
            (out / name).unlink(missing_ok=True)
    return run

def save(run: Run, out: Path) -> None:
    """The log, then the checkpoint: what is lost between them, a resumed run does again."""
    if run.log:
        lines = "".join(json.dumps(line) + "\n" for line in run.log)
        data.write_atomic(out / "log.jsonl", lambda file: file.write(lines.encode()))
    data.write_atomic(out / "ckpt.pt", lambda file: torch.save(run.state(), file))

def work(run: Run, out: Path, whole: Path) -> dict:
    """Goes on to the run's last step and finishes it; if asked to stop, saves and says how to go on."""
    def ask_to_stop(signum, frame):
        if run.stop or run.step == run.steps:  # a second signal, or one during the export, ends at once
            sys.exit(130)
        run.stop = True  # after this step
    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)
    tune(run, out)
    if run.stop:
        print(f"stopped at step {run.step} of {run.steps}; go on with: python train.py --resume {whole}")
        sys.exit(130)
    return finish(run, out)

def finish(run: Run, out: Path) -> dict:
    """Exports, measures, tunes without pruning if asked to; writes and returns the summary."""
    config, groups, d, name = run.config, run.groups, run.decisions.d, "pruned" if run.prune else "tuned"
    tuned = run.timed("evaluation", lambda: measure(run, run.model, run.masks()))
    difference = run.export(out / "pruned")
    model = llama.load(out / "pruned", run.dtype, run.device, config.shard)
    exported = run.timed("evaluation", lambda: measure(run, model))
    by_format = measures.loss_by_format(run, model)
    del model
    rows, memory = {"base": run.base, name: tuned, "exported": exported}, measures.peak_memory(run.device)
    seconds, retained = dict(run.seconds), None
    if config.dense and run.prune:
        dense = tune_dense(config, out)
        rows = {"base": run.base, "dense": {key: dense[key]["tuned"] for key in tuned}} | rows
        seconds["dense"] = sum(dense["seconds"].values())
        retained = math.exp(rows["dense"]["val_loss"] - tuned["val_loss"])
    sizes = {"base": groups.sizes(torch.ones_like(d)), "kept": groups.sizes(d)}
    summary = {"version": VERSION, "command": shlex.join(["python", *sys.argv]), "config": vars(config),
               "versions": {"python": platform.python_version(), "torch": torch.__version__},
               "requested_prune": run.prune, "obtained_prune": 1 - groups.kept(d) / groups.total,
               "prunable": {"base": groups.total, "kept": groups.kept(d)}, "retained": retained,
               "max_logit_diff": difference, "by_format": by_format, "seconds": seconds,
               "kinds": atp.SPACES[config.space], "groups": sizes, "peak_memory_bytes": memory}
    summary |= {key: {name: row[key] for name, row in rows.items()} for key in tuned}
    if data.RANK == 0:
        data.write_json(out / "summary.json", summary)
    return summary

def tune_dense(config: Config, out: Path) -> dict:
    """The same tuning without pruning, a run of its own in out/dense, resumed like any; its summary."""
    print("\nfor comparison, the same without pruning:")
    own, dense = dataclasses.replace(config, decisions="none", log_every=config.eval_every), out / "dense"
    going = (dense / "ckpt.pt").exists()
    data.wait_for_all()  # before one of them makes it
    run = open_saved(dense, steps=config.steps) if going else start(own, dense, replace=True)
    return work(run, dense, out)

def claim(out: Path, config: Config, replace: bool) -> None:
    """Raises InputError if `out` holds a run that may not be replaced, or if the new one reads from it."""
    held = {(out / name).resolve() for name in RUN_FILES if (out / name).exists()}
    if held and not replace:
        raise InputError(f"{out}: holds a run already; --resume {out}, --overwrite, or choose another --out")
    for path in map(Path, [config.model, *config.data]):
        if held & {path.resolve(), *path.resolve().parents}:
            raise InputError(f"{path}: is part of the run that would be replaced; choose another --out")

def main() -> None:
    given, out, overwrite = parse_arguments()
    if out:
        lock = data.lock(out) if data.RANK == 0 and (out / "ckpt.pt").exists() else None
        run = open_saved(out, **given)
        if run.step == run.steps and (out / "summary.json").exists():
            print(f"{out} is finished; --steps N goes on to step N, python export.py {out} exports it again")
            return
    else:
        config = Config(**given)
        out = Path(config.out or Path("out") / Path(config.data[0]).stem)
        run = start(config, out, overwrite)
    screen.finished(work(run, out, out), run, out)
    if data.PROCESSES > 1:
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # DTensor's caches keep gloo's threads alive, which can abort the interpreter's own end

if __name__ == "__main__":
    data.command(main)
