"""What the parts of a step cost, before and after the freeze: one process, measured in turns, medians and ratios.

    python benchmarks/speed.py                                   # random weights, 8 layers of width 256
    python benchmarks/speed.py --model DIR --json speed.json
"""
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import atp  # noqa: E402
import export  # noqa: E402
import llama  # noqa: E402


def medians(parts: dict, repeats: int, device) -> dict[str, float]:
    """Median seconds of each function, called in turns so that a slow moment of the machine hits all alike."""
    seconds = {name: [] for name in parts}
    for round in range(repeats + 1):
        for name, part in parts.items():
            begin = time.perf_counter()
            part()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = llama.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: random weights)")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--space", choices=list(atp.SPACES), default="dims")
    parser.add_argument("--prune", type=float, default=0.4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write medians and ratios to this file")
    args = parser.parse_args()
    device = llama.find_device(args.device)
    torch.manual_seed(0)
    if args.model:
        model = llama.load(args.model, device=device)
    else:
        model = llama.Llama(llama.LlamaConfig(dim=args.dim, n_layers=args.layers, n_heads=args.dim // 32,
                                              n_kv_heads=args.dim // 64, vocab_size=4096, multiple_of=16)).to(device)
        for p in model.parameters():
            p.data.normal_(std=0.02) if p.dim() == 2 else p.data.fill_(1)
    export.add_lora(model, rank=8, scale=2.0)
    groups = atp.Groups(model.config, args.space, device=device)
    keep = 1 - args.prune
    d, _ = groups.decide(torch.randn(len(groups), device=device), keep)
    generator = atp.Generator(groups, torch.zeros(len(groups), device=device))
    tokens = torch.randint(0, model.config.vocab_size, (args.batch_size, args.seq_len), device=device)

    small = copy.deepcopy(model)
    export.cut(small, groups, d)

    def step(model, masks=None):
        model.nll(tokens, tokens, masks).backward()
        for p in export.lora_parameters(model).values():
            p.grad = None

    def generator_step():
        p = torch.sigmoid(generator() - groups.decide(generator(), keep)[1])
        model.nll(tokens, tokens, groups.masks(p, aware=False)).backward(inputs=list(generator.parameters()))
        groups.decide(generator(), keep)

    parts = {"lora": lambda: step(model), "aware": lambda: step(model, groups.masks(d, aware=True)),
             "sliced": lambda: step(small), "generator_step": generator_step,
             "generator_alone": lambda: generator().sum().backward(), "decide": lambda: groups.decide(generator.prior, keep),
             "masks": lambda: groups.masks(d, aware=True), "lasso": lambda: atp.proximal_lasso(model.layers, groups, d, 1e-9)}
    found = medians(parts, args.repeats, device)
    bookkeeping = sum(found[name] for name in ("generator_alone", "decide", "masks", "lasso"))
    ratios = {"aware_vs_lora": found["aware"] / found["lora"], "lora_vs_sliced": found["lora"] / found["sliced"],
              "aware_vs_sliced": found["aware"] / found["sliced"], "generator_step_vs_lora": found["generator_step"] / found["lora"],
              "bookkeeping_share": bookkeeping / (found["aware"] + found["generator_step"])}
    print(f"{llama.count_parameters(model):,} parameters, {llama.count_parameters(small):,} after slicing, {args.batch_size} x {args.seq_len} tokens, {device}")
    for name, value in found.items():
        print(f"{name:24s}{value * 1e3:10.1f} ms")
    for name, value in ratios.items():
        print(f"{name:24s}{value:10.3f}")
    if args.json:
        llama.write_json(args.json, {"seconds": found, **ratios})


if __name__ == "__main__":
    llama.command(main)
