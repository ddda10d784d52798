"""What a step costs and a run holds, by arithmetic, for models too large to try here; writes ARITHMETIC.md.

    python benchmarks/arithmetic.py

Parameters are counted on the model itself, without storage. FLOPs follow from them and are checked against
what torch counts on one layer of the true width. The activations that backward needs are those that autograd
keeps for one such layer, in bytes a token.
"""
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import atp  # noqa: E402
import data  # noqa: E402
import llama  # noqa: E402
import train  # noqa: E402
from full_size import LLAMA3, SHAPES, TIED  # noqa: E402

SHAPES = SHAPES | {
    "13B": dict(dim=5120, n_layers=40, n_heads=40, vocab_size=32000),
    "70B": dict(dim=8192, n_layers=80, n_heads=64, multiple_of=4096, ffn_dim_multiplier=1.3, **LLAMA3)}
ROWS, LENGTH = 8, 512  # of a step
GB = 2 ** 30


def one_layer(shape: dict, device: str) -> llama.Llama:
    with torch.device("meta"):
        model = llama.Llama(llama.LlamaConfig(**shape | dict(n_layers=1, vocab_size=16))).to(torch.bfloat16)
    model.to_empty(device=device)
    for p in model.parameters():
        p.data.zero_()
    model.add_lora(train.Config().rank, 2.0)
    return model


def kept_for_backward(shape: dict, tokens: int = 64) -> float:
    """Bytes a token that autograd keeps of one layer in a step of the search, without its weights."""
    model, seen = one_layer(shape, "cpu"), {}
    groups = atp.Groups(model.config, "dims")
    masks = groups.masks(torch.ones(len(groups), requires_grad=True), aware=False, dtype=torch.bfloat16)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(torch.zeros(1, tokens, dtype=torch.long), masks)
    return sum(storage.nbytes() for storage in seen.values()) / tokens


def flops(config: llama.LlamaConfig, weights: int, lora: int, length: int, backward=True) -> float:
    """A token's: 2 a weight, again for the activations' gradient and LoRA's own; all attention scores."""
    passes = 2 if backward else 1
    size = config.layers[0]
    attention = 2 * length * size.n_heads * (size.qk_dim + size.v_dim) * config.n_layers
    return passes * 2 * weights + (3 if backward else 1) * 2 * lora + (2.5 if backward else 1) * attention


def numbers(name: str) -> dict:
    shape = SHAPES[name]
    with torch.device("meta"):
        model = llama.Llama(llama.LlamaConfig(**shape), tied=name in TIED)
        model.add_lora(train.Config().rank, 2.0)
    groups = atp.Groups(model.config, "dims")
    with torch.device("meta"):
        generator = atp.Generator(groups)
    linears = sum(linear.weight.numel() for linear in model.linears())
    lora = sum(p.numel() for p in model.lora().values())
    config, params = train.Config(), llama.count_parameters(model)
    weights = linears + (model.output or model.tok_embeddings).weight.numel()
    dense = flops(model.config, weights, lora, LENGTH)
    keep = 1 - config.prune
    cut = dense * (1 - config.prune * linears / weights)
    run = config.freeze_at * dense + (1 - config.freeze_at) * cut
    learned = 16 * lora  # float32 weight, gradient and AdamW's two moments
    search_only = 16 * sum(p.numel() for p in generator.parameters())
    a_layer, tokens = kept_for_backward(shape), ROWS * LENGTH
    whole = a_layer * model.config.n_layers * tokens
    recomputed = (2 * model.config.dim * model.config.n_layers + a_layer) * tokens
    loss = 1024 * model.config.vocab_size * 4 * 2
    blocks = params - (model.output or model.tok_embeddings).weight.numel() * (1 if name in TIED else 2)
    held = learned + search_only + loss
    sharded = 2 * (params - blocks) + 2 * blocks / 8 + 2 * blocks / model.config.n_layers  # 1/8, and a layer
    return {"parameters, billions": f"{params / 1e9:.2f}", "prunable": f"{groups.total / params:.0%}",
            "LoRA, millions (rank 8)": f"{lora / 1e6:.1f}",
            "generator, millions": f"{search_only / 16e6:.1f}",
            "dense LoRA, TFLOP a step": f"{dense * tokens / 1e12:.1f}",
            "ATP, after the cut": f"{cut / dense:.2f} of it",
            "ATP, the whole run": f"{run / dense:.2f} of it",
            "base, bfloat16, GB": f"{2 * params / GB:.1f}",
            "after the cut": f"{2 * (params - (1 - keep) * groups.total) / GB:.1f}",
            "LoRA with AdamW, float32": f"{learned / GB:.2f}",
            "generator with AdamW, until the freeze": f"{search_only / GB:.2f}",
            "activations": f"{whole / GB:.1f}", "activations with --checkpointing": f"{recomputed / GB:.1f}",
            "1 GPU": f"{(2 * params + held + whole) / GB:.0f}",
            "1 GPU, --checkpointing": f"{(2 * params + held + recomputed) / GB:.0f}",
            "each of 8 GPUs": f"{(2 * params + held + whole / 8) / GB:.0f}",
            "each of 8 GPUs, --shard --checkpointing": f"{(sharded + held + recomputed / 8) / GB:.0f}"}


def check_flops(name: str) -> float:
    """What torch counts in one layer's forward and backward over what `flops` says."""
    model, length = one_layer(SHAPES[name], "cpu"), 128
    model.tok_embeddings.weight.requires_grad_()  # as if there were layers below
    with FlopCounterMode(display=False) as counter:
        model.hidden(torch.zeros(1, length, dtype=torch.long)).sum().backward()
    linears = sum(linear.weight.numel() for linear in model.linears())
    lora = sum(p.numel() for p in model.lora().values())
    return counter.get_total_flops() / (length * flops(model.config, linears, lora, length))


def main() -> None:
    names, config = ("1B", "3B", "7B", "8B", "13B", "70B"), train.Config()
    found = {name: numbers(name) for name in names}
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [f"| {row} | " + " | ".join(found[name][row] for name in names) + " |" for row in found["1B"]]
    table, counted = "\n".join(lines), ", ".join(f"{name} {check_flops(name):.3f}" for name in ("1B", "7B"))
    page = f"""# What a run must cost

Made by `python benchmarks/arithmetic.py`; counted and derived, not measured on GPUs of that size. A step is
{ROWS} rows of {LENGTH} tokens; {config.prune:.0%} of `dims` pruned, decisions frozen after
{config.freeze_at:.0%} of the steps.

{table}

FLOPs of a token: 2 a weight forward and 2 backward (a frozen weight has no gradient of its own), 6 a LoRA
parameter, and attention's. A step of the search costs as much; the generator's own arithmetic and that of
masks, decisions and lasso is under a thousandth. With `--alternate` it costs half as much again. The cut
saves in proportion to the prunable share.

Memory, in GB: weights; 16 bytes a learned parameter (float32 weight, gradient, two moments); the activations
that the search's backward needs, those before and after the masks among them; the loss's chunk of 1,024
positions of logits. `--checkpointing` keeps a layer's input and recomputes the rest. `--shard` keeps an
eighth of every layer, and one whole layer while it computes. What allocators lose to fragmentation comes on
top.

Against torch's own count (FlopCounterMode, one layer, forward and backward): {counted} of the formula's.
"""
    data.write_atomic(HERE / "ARITHMETIC.md", lambda file: file.write(page.encode()))
    print(page)


if __name__ == "__main__":
    data.command(main)
