"""Takes trained runs through every way out and compares each engine with our own model.

    pip install transformers gguf xllamacpp
    python benchmarks/interop.py out/legal out/legal-uniform --out benchmarks/INTEROP.md

For a run's base and its pruned model: stock Hugging Face transformers (largest logit difference, 64 greedy tokens) and
llama.cpp by way of GGUF in several types (largest difference of next-token log-probabilities along 64 greedy tokens,
how many of them are ours, tokens/s). An engine whose package is missing is left out, and said so. Where our two best
candidates are closer than the tolerance, either is counted as ours.
"""
import json
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import export  # noqa: E402
import llama  # noqa: E402
from scripts import convert_hf, to_gguf  # noqa: E402

TOLERANCE = {"transformers": 1e-4, "f32": 0.02, "f16": 0.05}  # bf16 and q8_0 round the weights, and are only reported
NEW, PROMPT, PROMPTS = 64, 24, 4


@torch.no_grad()
def agreement(model, prompt, new, tolerance, banned=()) -> int:
    """How many of the tokens `new` after `prompt` are our greedy choice, or as good as it to within the tolerance."""
    logp = model(torch.tensor([prompt + new]))[0, len(prompt) - 1:-1].log_softmax(-1)
    logp[:, list(banned)] = -torch.inf
    behind = logp.max(-1).values - logp.gather(1, torch.tensor(new)[:, None])[:, 0]
    return int((behind <= tolerance).sum())


def in_transformers(model, source, prompts, folder) -> dict:
    import transformers
    convert_hf.write(source, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        difference = max(float((theirs(p).logits - model(p)).abs().max()) for p in (torch.tensor([p]) for p in prompts))
    same = 0
    for prompt in prompts:
        new = theirs.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        same += agreement(model, prompt, new[0, len(prompt):].tolist(), TOLERANCE["transformers"])
    return {"difference": difference, "same": same / (NEW * len(prompts)),
            "size": sum(p.numel() * p.element_size() for p in theirs.parameters())}


class LlamaCpp:
    """One GGUF file in llama.cpp, with its default f16 cache and flash attention."""
    def __init__(self, file: Path):
        import xllamacpp
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(file), 1024, 1, 0
        params.cpuparams.n_threads = torch.get_num_threads()
        self.server = xllamacpp.Server(params)

    def complete(self, prompt: list[int], new: int, logprobs: int = 0) -> dict:
        return self.server.handle_completions(
            {"prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
             **({"logprobs": logprobs} if logprobs else {})})


def in_llama_cpp(model, engine: LlamaCpp, prompts, kind: str, eos: int) -> dict:
    worst, same, count = 0.0, 0, 0
    for prompt in prompts:
        steps = engine.complete(prompt, NEW, logprobs=10)["choices"][0]["logprobs"]["content"]
        new = [step["id"] for step in steps]
        with torch.no_grad():
            logp = model(torch.tensor([prompt + new]))[0, len(prompt) - 1:-1].log_softmax(-1)
        for ours, step in zip(logp, steps):
            worst = max([worst] + [abs(float(ours[top["id"]]) - top["logprob"]) for top in step["top_logprobs"]])
        # `ignore_eos` keeps llama.cpp from saying EOS, so our choice is among the other tokens too.
        same += agreement(model, prompt, new, TOLERANCE.get(kind, 0), banned=(eos,))
        count += len(new)
    return {"difference": worst, "same": same / count}


def speeds(engines: dict[str, LlamaCpp], prompt: list[int], repeats: int = 7) -> dict[str, tuple[float, float]]:
    """Median tokens/s of prefill and decoding of each engine, measured in turns."""
    found = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            timings = engine.complete(prompt * 8, NEW)["timings"]
            found[name].append((timings["prompt_per_second"], timings["predicted_per_second"]))
    return {name: tuple(map(statistics.median, zip(*values))) for name, values in found.items()}


def report(run: Path, say) -> bool:
    """The rows of one run; whether any engine was there and every difference is within its tolerance."""
    options, good, tried = export.read_checkpoint(run)["config"], True, False
    sources = {"base": Path(options["model"]), "pruned": run / "pruned"}
    models = {name: llama.load(source) for name, source in sources.items()}
    tokenizer = llama.Tokenizer(sources["base"] / "tokenizer.model")
    rows = data.load(options["data"], tokenizer, 256).validation.tokens
    prompts = [[tokenizer.bos] + rows[i, 1:PROMPT].tolist() for i in range(PROMPTS)]
    params = {name: llama.count_parameters(model) for name, model in models.items()}
    uniform = ", uniform" if options["uniform"] else ""
    shape = f"{options['space']}{uniform}, {params['pruned'] / params['base']:.2f} of the parameters"
    with tempfile.TemporaryDirectory() as folder:
        for name, source in sources.items():
            try:
                found = in_transformers(models[name], source, prompts, Path(folder) / name)
                within = found["difference"] <= TOLERANCE["transformers"] and found["same"] == 1
                good, tried = good and within, True
                say(f"| {run.name} ({shape}) | {name} | transformers, float32 | {found['difference']:.1e} (logits) | "
                    f"{found['same']:.1%} | {found['size'] / 1e6:.1f} MB | | |")
            except ImportError:
                print("transformers is not installed: left out")
        try:
            import gguf  # noqa: F401
            import xllamacpp  # noqa: F401
        except ImportError:
            print("gguf or xllamacpp is not installed: left out")
            return good and tried
        for kind in ("f32", "f16", "bf16", "q8_0"):
            engines, archs = {}, {}
            for name, source in sources.items():
                file = Path(folder) / f"{name}-{kind}.gguf"
                archs[name] = to_gguf.write(source, file, kind)
                engines[name] = LlamaCpp(file)
            speed = speeds(engines, prompts[0])
            for name, engine in engines.items():
                found = in_llama_cpp(models[name], engine, prompts, kind, tokenizer.eos)
                if kind in TOLERANCE:
                    good &= found["difference"] <= TOLERANCE[kind] and found["same"] == 1
                size = (Path(folder) / f"{name}-{kind}.gguf").stat().st_size
                ratio = [a / b for a, b in zip(speed[name], speed["base"])]
                say(f"| {run.name} ({shape}) | {name} | llama.cpp, {archs[name]}, {kind} | "
                    f"{found['difference']:.1e} (log-prob.) | {found['same']:.1%} | {size / 1e6:.1f} MB | "
                    f"{speed[name][0]:,.0f} ({ratio[0]:.2f}x) | {speed[name][1]:,.0f} ({ratio[1]:.2f}x) |")
    return good


def main() -> None:
    parser = llama.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories that have ended")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    args = parser.parse_args()
    lines = ["| run | model | engine | largest difference | greedy tokens as ours | weights | prefill tokens/s "
             "| decoding tokens/s |",
             "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines))

    def say(line):
        lines.append(line)
        print(line, flush=True)

    good = all([report(run, say) for run in args.runs])
    verdict = "All within their tolerances" if good else "NOT all within their tolerances"
    print(f"{verdict}: {json.dumps(TOLERANCE)}")
    if args.out:
        head = (f"# Interoperability\n\nMade by `python benchmarks/interop.py {' '.join(map(str, args.runs))}` on "
                f"{torch.get_num_threads()} CPU cores. {verdict} (logits 1e-4 for transformers; log-probabilities "
                "0.02 for f32 files, 0.05 for f16; bf16 and q8_0 round the weights and are only reported). "
                "x: over the base in the same engine and type, measured in turns.\n\n")
        llama.write_atomic(args.out, lambda file: file.write((head + "\n".join(lines) + "\n").encode()))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    llama.command(main)
