"""From a run to a smaller, ordinary model: cut removed groups out, merge LoRA, write, prove and measure it.

    python export.py out/legal --dtype bfloat16     # again, from the run's checkpoint, to out/legal/pruned
    python export.py out/legal --hf out/legal-hf    # for Hugging Face transformers

The result is a model directory for `llama.py`. Before it gets its name it is loaded back, and its logits on
validation rows are compared with the pruned forward's.
"""
import os, subprocess, sys
from pathlib import Path

import torch
from torch import Tensor, nn

import data, llama
from atp import ROWS, Groups, pruned_size
from data import InputError, wait_for_all
from llama import Llama
from lora import whole

# How far rounding may carry logits (norm of the difference over theirs), in units of epsilon x sqrt(layers).
# Random models of 3 to 48 layers come to 3.5 (float32) and 1.0 (bfloat16), one lost FFN unit to 10,000.
TOLERANCE = {torch.float32: 16, torch.bfloat16: 3}

@torch.no_grad()
def cut(model: Llama, groups: Groups, d: Tensor, optimizer=None) -> None:
    """Removes the groups that decisions d [G] switch off from weights, LoRA and its optimizer's state."""
    for block, axes, kept in zip(model.layers, groups.axes, groups.kept_groups(d)):
        linears = block.linears()
        for (weight, axis), (group, _) in axes.items():
            linear, index = linears[weight], d[group].nonzero().flatten()
            partner = "B" if axis == ROWS else "A"  # the LoRA matrix with as many rows or columns
            old = getattr(linear, partner)
            linear.keep(axis, index)
            if optimizer:  # AdamW's moments are cut alike
                state = optimizer.state[getattr(linear, partner)] = optimizer.state.pop(old)
                state |= {name: state[name].index_select(axis, index) for name in ("exp_avg", "exp_avg_sq")}
        block.attention.size = pruned_size(block.attention.size, kept)
    model.config.layers = [block.attention.size for block in model.layers]
    if optimizer:
        optimizer.param_groups[0]["params"] = list(model.lora().values())

@torch.no_grad()
def logits_of(model: Llama, tokens: Tensor, masks=None) -> Tensor:
    """Logits [B, T, V] on the CPU, made a row at a time."""
    return torch.cat([model(row[None], masks).cpu() for row in tokens.to(model.norm.weight.device)])

def write(model: Llama, groups: Groups, d: Tensor | None, source: Path, tokens: Tensor, target: Path):
    """Cuts (unless d is None: done before), merges and writes `target`, a model directory, with the tokenizer
    of `source`; returns the largest logit difference on `tokens` [B, T] to the pruned forward before. Uses up
    `model`: there is no second copy of its weights. Raises InputError if more than rounding differs."""
    dtype, device = model.norm.weight.dtype, model.norm.weight.device
    unproven = target.with_name(target.name + ".unproven")
    sharded = hasattr(model.layers[0].attention.wq.weight, "full_tensor")
    expected = logits_of(model, tokens, None if d is None else groups.masks(d, aware=False, dtype=dtype))
    for linear in model.linears() if sharded else []:
        linear.weight = nn.Parameter(whole(linear.weight), requires_grad=False)
        linear.to("meta" if data.RANK else "cpu")  # one at a time, to where they have room together
    if data.RANK == 0:
        if d is not None:
            cut(model, groups, d)
        for linear in model.linears():
            linear.merge()
        for name in ("params.json", "consolidated.00.pth", *llama.BESIDE_WEIGHTS):
            for left in unproven.glob(name + "*"):  # by an export that was killed, whole or half written
                left.unlink()
        llama.save(model, unproven, source)
    wait_for_all()
    model.to("meta")  # lets go of the weights before the written ones are read
    written = logits_of(llama.load(unproven, dtype, device, sharded), tokens)
    wait_for_all()
    error = float((written - expected).norm() / expected.norm())
    allowed = TOLERANCE[dtype] * torch.finfo(dtype).eps * len(model.layers) ** 0.5
    if not error <= allowed:
        raise InputError(f"{unproven}: not exported: logits differ from the pruned forward's by {error:.1e} "
                         f"of their size, rounding explains {allowed:.1e}")
    if data.RANK == 0:  # file by file: nothing else that may lie there is touched
        target.mkdir(exist_ok=True)
        for name in llama.BESIDE_WEIGHTS:  # another model's, of a run before
            (target / name).unlink(missing_ok=True)
        for path in unproven.iterdir():
            os.replace(path, target / path.name)
        unproven.rmdir()
    wait_for_all()
    return float((written - expected).abs().max())

@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # not worth a compilation
def validation_loss(model: Llama, rows: data.Rows, batch_size: int, masks=None) -> float:
    """Mean negative log-likelihood in nats of all targets of `rows`."""
    total = 0.0
    for i in range(0, len(rows.tokens), batch_size):
        tokens, targets = (t.to(model.norm.weight.device) for t in rows.at(slice(i, i + batch_size)))
        total += model.nll(tokens, targets, masks).item()
    return total / max(1, int((rows.targets != data.IGNORE).sum()))

def main() -> None:
    parser = data.Parser(description="Export the pruned model of a run.")
    parser.add_argument("run", type=Path, help="run directory, out/NAME")
    parser.add_argument("--out", type=Path, help="where to write the model (default: RUN/pruned)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the weights: the run's")
    parser.add_argument("--hf", type=Path, metavar="DIR", help="write RUN/pruned for transformers instead")
    args = parser.parse_args()
    if args.hf and (args.out or args.dtype):
        raise InputError("--hf writes RUN/pruned as it is; give no --out or --dtype with it")
    if args.hf:
        convert = [sys.executable, Path(__file__).with_name("scripts") / "convert_hf.py", "--out"]
        sys.exit(subprocess.run([*convert, args.run / "pruned", args.hf]).returncode)
    if args.out and args.out.exists():
        raise InputError(f"{args.out}: exists already; name a new directory")
    import train  # a run is read where it is written; only this command, not the module, builds on train.py
    run, target = train.open_saved(args.run, args.dtype), args.out or args.run / "pruned"
    if not run.decisions.frozen:
        raise InputError(f"{args.run}: still searching; go on first: python train.py --resume {args.run}")
    print(f"{target}: at step {run.step} of {run.steps}, largest logit difference to the pruned forward "
          f"{run.export(target):.1e}\nnext: python llama.py {target} --prompt \"...\"")

if __name__ == "__main__":
    data.command(main)
