"""What the parts of a step and of a run cost, against plain LoRA and against transformers + peft.

    python benchmarks/speed.py                                # 2 layers of width 256, 1024 and 2048
    python benchmarks/speed.py --widths 4096 --layers 2 --seq-len 128 --json speed.json
    python benchmarks/speed.py --quick                        # one small shape, under three minutes

One process measures everything in turns, so that a slow moment of the machine hits all alike; medians. Random
weights. Without `pip install transformers peft` the comparison with them is left out. Memory is the peak of a
fresh process a case, less what it holds before the first step (on a GPU: what tensors took).
"""
import argparse
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import atp  # noqa: E402
import data  # noqa: E402
import export  # noqa: E402
import llama  # noqa: E402
import train  # noqa: E402


def medians(parts: dict, repeats: int, device) -> dict[str, float]:
    """Median seconds of each function, called in turns; a first round is not counted."""
    seconds = {name: [] for name in parts}
    for round in range(repeats + 1):
        for name, part in parts.items():
            synchronize(device)
            begin = time.perf_counter()
            part()
            synchronize(device)
            if round:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_model(args, width: int) -> llama.Llama:
    """A LLaMA of heads of 64 (GQA: two query heads share one) with random weights."""
    head = 32 if width < 512 else 64
    config = llama.LlamaConfig(dim=width, n_layers=args.layers, n_heads=width // head,
                               n_kv_heads=width // head // 2, vocab_size=args.vocab, multiple_of=64)
    with torch.device("meta"):
        model = llama.Llama(config)
    model.to_empty(device=args.device).to(getattr(torch, args.dtype))
    torch.manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.02) if p.dim() == 2 else p.data.fill_(1)
    return model


def a_run(args, width: int, **options) -> train.Run:
    """`train.py`'s own loop on random rows, ready for its first step."""
    config = train.Config(steps=300, batch_size=args.batch_size, seq_len=args.seq_len, prune=args.prune,
                          space=args.space, compile=args.compile, checkpointing=args.checkpointing, **options)
    model = random_model(args, width)
    tokens = torch.randint(0, args.vocab, (64, args.seq_len), dtype=torch.int32)
    run = train.Run(config, model, data.Data(*[data.Rows(tokens, tokens)] * 3, questions=[]))
    run.decide_first()
    return run


def peft_step(args, width: int):
    """One LoRA step of transformers + peft on the same shape, batch and dtype; None without them."""
    try:
        import peft
        import transformers
    except ImportError:
        return None
    own = random_model(args, width).config
    size = own.layers[0]
    config = transformers.LlamaConfig(
        vocab_size=args.vocab, hidden_size=width, intermediate_size=size.hidden_dim,
        num_hidden_layers=args.layers, num_attention_heads=size.n_heads, num_key_value_heads=size.n_kv_heads,
        head_dim=size.qk_dim, use_cache=False)
    model = transformers.LlamaForCausalLM(config).to(args.device, getattr(torch, args.dtype))
    names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=names))
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=5e-3, weight_decay=0.01)
    tokens = torch.randint(0, args.vocab, (args.batch_size, args.seq_len), device=args.device)

    def step():
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        return loss.item()
    return step


def measure(args, width: int) -> dict[str, float]:
    """Seconds and ratios by name, for one width."""
    plain, search, tune = a_run(args, width, decisions="none"), a_run(args, width), a_run(args, width)
    turns = a_run(args, width, alternate=True)
    for run in (search, turns, tune):
        run.generator_step(0)  # of the warm start, or all groups would be alike
    search.step = turns.step = 80  # at the target of the budget
    search.joint_step()
    turns.generator_step(1)
    tune.step = tune.decisions.search_steps
    begin = time.perf_counter()
    tune.freeze(tune.decisions.final())
    cut_seconds = time.perf_counter() - begin
    groups, decisions = search.groups, search.decisions

    def learn():
        d = decisions.soft(search.step)
        decisions.learn(search.step, d, torch.zeros_like(d))

    parts = {"lora": plain.lora_step, "aware": turns.lora_step, "search": search.joint_step,
             "sliced": tune.lora_step, "generator_step": lambda: turns.generator_step(1),
             "generator_alone": learn,
             "masks": lambda: groups.masks(decisions.d, aware=False, dtype=search.dtype),
             "lasso": lambda: atp.proximal_lasso(search.model.layers, groups, decisions.d, 1e-9)}
    other = peft_step(args, width)
    if other:
        parts["peft"] = other
    tokens = torch.randint(0, args.vocab, (1, args.prompt), device=args.device)
    prefill = {"prefill_dense": random_model(args, width), "prefill_sliced": random_model(args, width)}
    export.cut(prefill["prefill_sliced"], groups, tune.decisions.d)
    flops = {}
    for name, model in prefill.items():
        parts[name] = lambda model=model: no_grad(model.hidden, tokens)
        parts[name.replace("prefill", "decode")] = lambda model=model: list(
            llama.generate(model, tokens[0, :16].tolist(), max_tokens=16))
        with FlopCounterMode(display=False) as counter:
            no_grad(model.hidden, tokens)
        flops[name] = counter.get_total_flops()
    seconds = medians(parts, args.repeats, search.device)
    return seconds | {"cut": cut_seconds} | ratios(seconds, cut_seconds, flops, search)


def no_grad(function, *arguments):
    with torch.no_grad():
        return function(*arguments)


def ratios(seconds: dict, cut: float, flops: dict, run: train.Run) -> dict[str, float]:
    """A whole run is added up from its parts' medians: search, cut, tuning; each LoRA run from its steps."""
    config, steps = run.config, run.config.steps

    def whole(freeze_at: float, step: float = seconds["search"]) -> float:
        search = round(freeze_at * steps)
        return search * step + cut + (steps - search) * seconds["sliced"]

    bookkeeping = sum(seconds[name] for name in ("generator_alone", "masks", "lasso"))
    turns = seconds["aware"] + seconds["generator_step"] / config.generator_every
    found = {"aware_vs_lora": seconds["aware"] / seconds["lora"],
             "search_vs_lora": seconds["search"] / seconds["lora"],
             "sliced_vs_lora": seconds["sliced"] / seconds["lora"],
             "generator_step_vs_lora": seconds["generator_step"] / seconds["lora"],
             "bookkeeping_share": bookkeeping / seconds["search"],
             "prefill_speedup": seconds["prefill_dense"] / seconds["prefill_sliced"],
             "prefill_flop_speedup": flops["prefill_dense"] / flops["prefill_sliced"],
             "decode_speedup": seconds["decode_dense"] / seconds["decode_sliced"]}
    if "peft" in seconds:
        found["lora_vs_peft"] = seconds["lora"] / seconds["peft"]
    for other in [name for name in ("lora", "peft") if name in seconds]:
        found |= {f"run_vs_{other}": whole(config.freeze_at) / (steps * seconds[other]),
                  f"run_half_vs_{other}": whole(0.5) / (steps * seconds[other]),
                  f"run_half_alternate_vs_{other}": whole(0.5, turns) / (steps * seconds[other])}
    return found


# -------------------------------------------------------------------------------------------------- memory

def step_memory(args, width: int, case: str) -> int | None:
    """Bytes that three steps take on top of what there was before the first, in a process of its own."""
    if case == "peft":
        step = peft_step(args, width)
    else:
        run = a_run(args, width, decisions="none" if case == "lora" else "atp")
        run.step, step = 80, run.advance
    if step is None:
        return None
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(3):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 - before


def memory(args, width: int) -> dict[str, float]:
    """Ratios of the peaks, and how they grow when rows or layers are doubled."""
    cases = {"lora": (args, "lora"), "atp": (args, "atp"), "peft": (args, "peft")}
    doubled = {"rows": {"batch_size": 2 * args.batch_size}, "layers": {"layers": 2 * args.layers}}
    for name, change in doubled.items():
        cases[name] = (argparse.Namespace(**vars(args) | change), "lora")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        bytes_ = {name: pool.submit(step_memory, some, width, case).result()
                  for name, (some, case) in cases.items()}
    found = {f"memory_{name}": value for name, value in bytes_.items() if value}
    found |= {f"memory_of_doubled_{name}": bytes_[name] / bytes_["lora"] for name in doubled}
    found["memory_atp_vs_lora"] = bytes_["atp"] / bytes_["lora"]
    if bytes_["peft"]:
        found["memory_lora_vs_peft"] = bytes_["lora"] / bytes_["peft"]
    return found


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--space", choices=list(atp.SPACES), default="dims")
    parser.add_argument("--prune", type=float, default=0.4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-memory", action="store_true", help="without peaks, which need /proc or a GPU")
    parser.add_argument("--quick", action="store_true", help="one small shape, three repeats")
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    args = parser.parse_args()
    args.device = str(data.find_device(args.device))
    if args.quick:
        args.widths, args.layers, args.repeats, args.prompt = [512], 2, 3, 256
    found = {}
    for width in args.widths:
        begin = time.perf_counter()
        found[width] = measure(args, width) | ({} if args.no_memory else memory(args, width))
        print(f"width {width}: {time.perf_counter() - begin:.0f} s", flush=True)
    print(f"{args.layers} layers, {args.batch_size} rows of {args.seq_len} tokens, {args.dtype}, "
          f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| | " + " | ".join(f"width {width}" for width in found) + " |\n|---|" + "---|" * len(found))
    for name in found[args.widths[0]]:
        cells = []
        for width in found:
            value = found[width].get(name)
            ratio = any(part in name for part in ("_vs_", "speedup", "share", "doubled"))
            cells.append("-" if value is None else f"{value / 2**20:,.0f} MB" if value > 1e5 else
                         f"{value:.3f}" if ratio else f"{value * 1e3:.1f} ms")
        print(f"| {name} | " + " | ".join(cells) + " |")
    if args.json:
        data.write_json(args.json, found if len(found) > 1 else found[args.widths[0]])


if __name__ == "__main__":
    data.command(main)
