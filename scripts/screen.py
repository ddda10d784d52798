"""What a run shows in the terminal, beside the lines of its log: what it begins with, the cut, the summary.

A run is train.Run, a summary what it writes as summary.json.
"""
import math
import shlex

from atp import SPACES

LEGEND = """loss in nats a token; flips: fraction of the decisions that changed; budget: of the prunable parameters kept;
grad_norm: LoRA's gradient before clipping; lr: the learning rate"""


def opened(run) -> None:
    """Model, data and where it stands."""
    config, rows = run.config, run.rows
    sizes = {name: len(getattr(rows, name).tokens) for name in ("train", "decision", "validation")}
    epochs = config.steps * config.batch_size * config.accumulate / sizes["train"]
    print(f"model: {config.model}, {config.dtype} on {run.device}; {len(run.groups):,} groups ({config.space}) of "
          f"{run.groups.total:,} parameters; learning rate {config.lr:.2g}\ndata: {', '.join(config.data)}; rows: "
          + ", ".join(f"{n:,} {name}" for name, n in sizes.items()) + f"; {epochs:.2g} epochs")
    if sizes["validation"] < 20:
        print("warning: fewer than 20 rows of validation say little")
    print(f"base: {run.base['params']:,} parameters, validation loss {run.base['val_loss']:.4f}\n"
          f"step {run.step}/{run.steps}", flush=True)


def begins(run) -> None:
    """What the words in the log's lines mean; or, if it goes on after the search, what was cut."""
    if not run.decisions.frozen:
        print(LEGEND)
    elif run.prune:
        cut(run)
    if run.config.compile and run.step < run.steps:
        print("compiling: some steps, the first and those after the cut, take minutes", flush=True)


def cut(run) -> None:
    """Parameters before and after the cut; for every kind a bar for each layer, by how many groups stay."""
    groups, d, before = run.groups, run.decisions.d, run.base["params"]
    after = before - groups.total + groups.kept(d)
    print(f"cut: {before:,} to {after:,} parameters; what stays of each layer, from first to last:")
    for number, kind in enumerate(SPACES[run.config.space]):
        bars = "".join("▁▂▃▄▅▆▇█"[7 * int(d[start:start + n].sum()) // n]
                       for _, of, start, n in groups.segments if of == kind)
        print(f"  {kind:5s}{bars}  {d[groups.kind == number].float().mean():.0%}", flush=True)


def finished(summary: dict, run, out) -> None:
    """The table, and the commands to type next; a prompt is how the first validation record begins."""
    print(f"\n{'':8s}{'parameters':>14s}{'val loss':>12s}{'val ppl':>12s}{'accuracy':>12s}")
    for name, loss in summary["val_loss"].items():
        right, perplexity = summary["accuracy"][name], math.exp(min(loss, 700))
        accuracy = "-" if right is None else f"{right:.1%}"
        print(f"{name:8s}{summary['params'][name]:14,}{loss:12.4f}{perplexity:12.2f}{accuracy:>12s}")
    print(f"pruned: {run.prune:.2%} requested, {summary['obtained_prune']:.2%} obtained of {run.groups.total:,} parameters")
    if summary["by_format"]:
        print("perplexity by format:", ", ".join(f"{name} {math.exp(min(loss, 700)):.2f}"
                                                 for name, loss in summary["by_format"].items()))
    if summary["retained"]:
        print(f"retained: {summary['retained']:.1%}, the perplexity of dense over that of pruned")
    elif run.prune:
        print("what pruning cost: the same command with --dense says it")
    *_, tuned, exported = summary["val_loss"].values()
    print(f"export: rounding moves logits by at most {summary['max_logit_diff']:.1e}, the loss by {abs(exported - tuned):.1e}")
    minutes, memory = sum(summary["seconds"].values()) / 60, summary["peak_memory_bytes"] / 2**30
    opening = " ".join(run.tokenizer.decode(run.rows.validation.tokens[0, 1:16].tolist()).split()[:4])
    print(f"""{minutes:.1f} minutes, peak memory {memory:.2f} GB; more in {out / 'summary.json'}

next: python llama.py {out} --prompt {shlex.quote(opening)}
      python scripts/report.py {out}          # curves, what was pruned, samples, as a page
      python export.py {out} --hf {out}-hf    # for Hugging Face transformers""")
