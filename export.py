"""From a run to a smaller, ordinary model: cut the removed groups out, merge LoRA, write, and prove it.

    python export.py out/legal                 # again, from the run's checkpoint, to out/legal/pruned
    python export.py out/legal --out small --dtype bfloat16
    python export.py out/legal --hf out/legal-hf       # for Hugging Face transformers (scripts/convert_hf.py)

The result is a model directory (params.json, consolidated.00.pth, tokenizer.model) for `llama.py`. It is loaded
back, and its logits on validation rows are compared with the pruned forward's, before it gets its name.
"""
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

import data
import llama
from atp import Groups, pruned_size
from llama import InputError, Llama, Tokenizer, command

# How far rounding may carry logits, as root mean square of the difference over that of the logits, in units of
# the dtype's epsilon x sqrt(layers). Random models of 3 to 48 layers come to at most 3.5 (float32) and 1.0
# (bfloat16); one FFN unit lost or two rows swapped come to 10,000 in float32.
TOLERANCE = {torch.float32: 16, torch.bfloat16: 3}


@torch.no_grad()
def cut(model: Llama, groups: Groups, d: Tensor, optimizer: Optimizer | None = None) -> None:
    """Removes the groups that decisions d [G] switch off, in place: weights, LoRA and the optimizer's state.

    One weight at a time (a sharded model: one layer), so memory only ever falls."""
    replaced = {}
    for layer, (axes, kept) in enumerate(zip(groups.axes, groups.kept_groups(d))):
        sharded = llama.unshard(model, layer)
        block = model.layers[layer]
        linears = block.linears()
        for (weight, axis), (group, _) in axes.items():
            linear, index, partner = linears[weight], d[group].nonzero().flatten(), "BA"[axis]
            old = getattr(linear, partner)
            linear.keep(axis, index)
            if optimizer and old is not None:
                new = replaced[old] = getattr(linear, partner)
                optimizer.state[new] = {  # AdamW's moments are cut alike; its step count has no dimensions
                    name: value.index_select(axis, index) if value.dim() else value
                    for name, value in optimizer.state.pop(old, {}).items()}
        model.config.layers[layer] = pruned_size(block.attention.size, kept)
        block.attention.resize(model.config.layers[layer])
        if sharded:
            llama.shard(model, layer)
    for group in optimizer.param_groups if optimizer else []:
        group["params"] = [replaced.get(p, p) for p in group["params"]]


@torch.no_grad()
def merge(model: Llama) -> None:
    """Adds every LoRA pair into its weight."""
    for linear in model.linears():
        linear.merge()


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def logits_of(model: Llama, tokens: Tensor, masks=None) -> Tensor:
    """Logits [B, T, V] on the CPU, a row at a time."""
    return torch.cat([model(row[None], masks).cpu() for row in tokens])


def write(model: Llama, groups: Groups, d: Tensor | None, tokenizer: Path, tokens: Tensor, target: Path):
    """Cuts (unless d is None: done before), merges and writes `target`; returns the largest logit difference on
    `tokens` [B, T] between the pruned forward before and the written model after.

    `model` is used up: all is done in place, so that no second copy of the weights is needed. Of several
    processes the first does it, on the CPU if the model is sharded. Raises InputError, leaving what was at
    `target` as it is, when the difference is more than rounding.
    """
    dtype, device, first = model.norm.weight.dtype, model.norm.weight.device, llama.process_rank() == 0
    masks = None if d is None else groups.masks(d, aware=False, dtype=dtype)
    expected = logits_of(model, tokens.to(device), masks)
    sharded = [llama.unshard(model, layer, "cpu" if first else "meta") for layer in range(len(model.layers))]
    beside = target.with_name(target.name + ".tmp")
    if first:
        if d is not None:
            cut(model, groups, d)
        merge(model)
        shutil.rmtree(beside, ignore_errors=True)
        llama.save(model, beside, tokenizer)
    llama.wait_for_all()
    model.to("meta")  # lets go of the weights before the written ones are read
    written = logits_of(llama.load(beside, dtype, device, any(sharded)), tokens.to(device))
    llama.wait_for_all()
    error = float((written - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    allowed = TOLERANCE[dtype] * torch.finfo(dtype).eps * len(model.layers) ** 0.5
    if not error <= allowed:
        raise InputError(f"{beside}: its logits differ from the pruned forward's by {error:.1e} of their size, "
                         f"rounding explains only {allowed:.1e}; not exported")
    if first:
        old = target.with_name(target.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.rename(target, old)
        os.rename(beside, target)
        shutil.rmtree(old, ignore_errors=True)
    llama.wait_for_all()
    return float((written - expected).abs().max())


# ------------------------------------------------------------------------------------------ from a checkpoint

def read_checkpoint(run: Path) -> dict:
    """`ckpt.pt` of a run directory. Raises InputError."""
    if not (run / "ckpt.pt").is_file():
        raise InputError(f"{run}: no ckpt.pt; expected a run directory that train.py has written")
    checkpoint = llama.read_tensors(run / "ckpt.pt", mmap=False)
    if not {"config", "lora", "d", "frozen", "sliced", "step"} <= checkpoint.keys():
        raise InputError(f"{run / 'ckpt.pt'}: not a checkpoint of train.py's")
    return checkpoint


def lora_parameters(model: Llama) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name.endswith((".A", ".B"))}


def restore(checkpoint: dict, model: Llama) -> tuple[Groups, Tensor]:
    """Makes the loaded base `model` the checkpoint's (cut if the run's was, with LoRA); its groups and d [G]."""
    options = checkpoint["config"]
    device = model.norm.weight.device
    groups = Groups(model.config, options["space"], options["round_to"], options["uniform"], device)
    d = checkpoint["d"].to(groups.cost.device)
    if checkpoint["sliced"]:
        cut(model, groups, d)
    add_lora(model, options["rank"], options["lora_scale"])
    for name, parameter in lora_parameters(model).items():
        parameter.data.copy_(checkpoint["lora"][name])
    return groups, d


def add_lora(model: Llama, rank: int, scale: float) -> None:
    for linear in model.linears():
        linear.add_lora(rank, scale)


def main() -> None:
    parser = llama.Parser(description="Export the pruned model of a run.")
    parser.add_argument("run", type=Path, help="run directory, out/NAME")
    parser.add_argument("--hf", type=Path, metavar="DIR", help="write RUN/pruned for transformers")
    parser.add_argument("--out", type=Path, help="where to write the model (default: RUN/pruned)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the weights (default: the run's)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.out and args.out.exists() or args.hf and args.hf.exists():
        raise InputError(f"{args.hf or args.out}: exists already; name a new directory")
    if args.hf:
        if args.out or args.dtype:
            raise InputError("--hf writes RUN/pruned as it is; give no --out or --dtype with it")
        from scripts import convert_hf
        model = args.run if (args.run / "params.json").exists() else args.run / "pruned"
        return print(convert_hf.write(model, args.hf))
    checkpoint = read_checkpoint(args.run)
    options = checkpoint["config"]
    if not checkpoint["frozen"]:
        raise InputError(f"{args.run}: stopped at step {checkpoint['step']} of {checkpoint['steps']}, before its "
                         f"decisions were frozen; go on first: python train.py --resume {args.run}")
    dtype = getattr(torch, args.dtype or options["dtype"])
    model = llama.load(options["model"], dtype, llama.find_device(args.device))
    groups, d = restore(checkpoint, model)
    tokenizer = Tokenizer(Path(options["model"]) / "tokenizer.model")
    rows = data.load(options["data"], tokenizer, options["seq_len"]).validation
    target = args.out or args.run / "pruned"
    difference = write(model, groups, None if checkpoint["sliced"] else d, tokenizer.path,
                       rows.at(slice(4))[0], target)
    if checkpoint["step"] < checkpoint["steps"]:
        print(f"the run stopped at step {checkpoint['step']} of {checkpoint['steps']}; this is its model so far")
    print(f"{target}: {groups.kept(d):,} of {groups.total:,} prunable parameters, "
          f"largest logit difference to the pruned forward {difference:.1e}\n"
          f"next: python llama.py {target} --prompt \"...\"")


if __name__ == "__main__":
    command(main)
