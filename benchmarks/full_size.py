"""Everything once at LLaMA's true shapes: write a raw checkpoint of random weights, load it, tune and prune
for a few steps, cut, export, load the result and generate; time and peak memory of each part.

    python benchmarks/full_size.py 1B                   # LLaMA-3.2-1B's shape; 3B, 7B (LLaMA-2), 8B (LLaMA-3)
    python benchmarks/full_size.py 7B --folder /scratch # 14 GB there; 24 GB of memory, bfloat16, on a CPU
    python benchmarks/full_size.py 8B --device cuda --checkpointing --batch-size 8 --seq-len 512 # a 24 GB GPU

It also reports tokens/s and FLOP/s, counting 4 FLOPs a weight and token (forward, and the gradient of the
activations; frozen weights need none), and their share of the device's peak if --peak-tflops names it.
"""
import gc
import multiprocessing
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import atp  # noqa: E402
import data  # noqa: E402
import llama  # noqa: E402
import train  # noqa: E402

LLAMA3 = dict(n_kv_heads=8, vocab_size=128256, rope_theta=500000.0)
SHAPES = {"tiny": dict(dim=256, n_layers=4, n_heads=8, vocab_size=4096, multiple_of=64),
          "1B": dict(dim=2048, n_layers=16, n_heads=32, ffn_dim_multiplier=1.5, **LLAMA3),
          "3B": dict(dim=3072, n_layers=28, n_heads=24, ffn_dim_multiplier=1.0, **LLAMA3),
          "7B": dict(dim=4096, n_layers=32, n_heads=32, vocab_size=32000),
          "8B": dict(dim=4096, n_layers=32, n_heads=32, ffn_dim_multiplier=1.3, multiple_of=1024, **LLAMA3)}
TIED = ("1B", "3B")


def write_checkpoint(shape: str, folder: Path) -> None:
    """A raw checkpoint in bfloat16; in a process of its own, so that nothing of it stays in memory."""
    with torch.device("meta"):
        model = llama.Llama(llama.LlamaConfig(**SHAPES[shape]), tied=shape in TIED).to(torch.bfloat16)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.02) if p.dim() == 2 else p.data.fill_(1)
    llama.save(model, folder / "base", folder)  # without a tokenizer: no text is read or written here


class Parts:
    """Prints a line of the table for each part: seconds, the peak while it ran, and what is held after it."""

    def __init__(self, device: torch.device):
        self.device = device
        print("| part | seconds | peak GB | held after GB |\n|---|---|---|---|", flush=True)

    def __call__(self, name: str, part):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        result = part()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        gc.collect()
        peak, held = self.memory()
        print(f"| {name} | {seconds:.1f} | {peak / 2**30:.2f} | {held / 2**30:.2f} |", flush=True)
        return result, seconds

    def memory(self) -> tuple[int, int]:
        """Bytes of tensors on a GPU; else of the process, without file pages that are only mapped."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak, now, files = (int(status[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS", "RssFile"))
        return peak, now - files


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("--folder", type=Path, help="where to write, and clean up (default: /tmp)")
    parser.add_argument("--space", choices=list(atp.SPACES), default="dims")
    parser.add_argument("--prune", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=2, help="search steps, and tuning steps after the cut")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bfloat16, for the utilization")
    args = parser.parse_args()
    device = data.find_device(args.device)
    folder = Path(tempfile.mkdtemp(prefix="full_size_", dir=args.folder))
    try:
        run_parts(args, device, folder)
    finally:
        shutil.rmtree(folder)


def run_parts(args, device: torch.device, folder: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(write_checkpoint, args.shape, folder).result()
    size = (folder / "base/consolidated.00.pth").stat().st_size
    print(f"{args.shape}: {size / 2**30:.2f} GB of weights in bfloat16; {args.batch_size} x {args.seq_len} "
          f"tokens, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n", flush=True)
    part = Parts(device)
    model, _ = part("load", lambda: llama.load(folder / "base", torch.bfloat16, device))
    config = train.Config(model=str(folder / "base"), steps=2 * args.steps, freeze_at=0.5, prune=args.prune,
                          space=args.space, batch_size=args.batch_size, seq_len=args.seq_len,
                          checkpointing=args.checkpointing, compile=args.compile)
    shape = max(16, args.batch_size), args.seq_len
    tokens = torch.randint(0, model.config.vocab_size, shape, dtype=torch.int32)
    base, rows, row = llama.count_parameters(model), *(data.Rows(t, t) for t in (tokens, tokens[:1]))
    run = train.Run(config, model, data.Data(rows, rows, row, questions=[]))

    def steps(of):
        for _ in range(args.steps):
            of()
            run.step += 1

    _, seconds = part(f"{args.steps} search steps", lambda: steps(run.joint_step))
    part("freeze and cut", lambda: run.freeze(run.decisions.final()))
    _, sliced = part(f"{args.steps} LoRA steps of the cut model", lambda: steps(run.lora_step))
    left = llama.count_parameters(model)
    difference, _ = part("export, with its proof", lambda: run.export(folder / "pruned"))
    removed = (base - left) / run.groups.total
    del model, run
    pruned, _ = part("load the pruned model", lambda: llama.load(folder / "pruned", torch.bfloat16, device))
    part("generate 16 tokens", lambda: list(llama.generate(pruned, tokens[0, :8].tolist(), 16)))
    file_size = (folder / "pruned/consolidated.00.pth").stat().st_size / 2**30
    print(f"\n{base:,} parameters, {left:,} after pruning ({removed:.2%} of the prunable removed); "
          f"exported and pruned logits differ by {difference:.1e} at most; file {file_size:.2f} GB")
    looked_up = 0 if args.shape in TIED else pruned.tok_embeddings.weight.numel()  # costs no FLOPs
    for name, n, time_taken in (("search step", base - looked_up, seconds),
                                ("LoRA step after the cut", left - looked_up, sliced)):
        rate = args.steps * args.batch_size * args.seq_len / time_taken
        used = f", {4 * n * rate / 1e12 / args.peak_tflops:.1%} of the peak" if args.peak_tflops else ""
        print(f"{name}: {rate:,.0f} tokens/s, {4 * n * rate / 1e12:.2f} TFLOP/s{used}")


if __name__ == "__main__":
    data.command(main)
