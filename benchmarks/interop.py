"""Takes trained runs through every way out and compares each engine with our own model, from text on.

    pip install transformers tokenizers gguf xllamacpp
    python benchmarks/interop.py out/legal out/legal-uniform --out table.md

For a run's base and its pruned model: stock Hugging Face transformers (largest logit difference, 64 greedy
tokens after each of four prompts) and llama.cpp by way of GGUF in several types (largest difference of
next-token log-probabilities along as many greedy tokens, how many of them are ours, tokens/s). Prompts are
text, which every engine tokenizes by itself. f32 files run with a float32 cache and without flash
attention, as we do, the others with llama.cpp's defaults. An engine whose package is missing is left out,
and said so. Where our two best candidates are closer than the tolerance, either is counted as ours.
"""
import json
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import llama  # noqa: E402
from scripts import convert_hf, to_gguf  # noqa: E402

TOLERANCE = {"transformers": 1e-3, "f32": 1e-3, "f16": 0.05}  # bf16 and q8_0 round the weights: only reported
NEW, PROMPT, PROMPTS = 64, 24, 4


@torch.no_grad()
def agreement(model, prompt: list[int], new: list[int], tolerance: float, banned=()) -> int:
    """How many of the tokens `new` after `prompt` are our greedy choice, or within the tolerance of it."""
    logp = model(torch.tensor([prompt + new]))[0, len(prompt) - 1:-1].log_softmax(-1)
    logp[:, list(banned)] = -torch.inf
    behind = logp.max(-1).values - logp.gather(1, torch.tensor(new)[:, None])[:, 0]
    return int((behind <= tolerance).sum())


def in_transformers(model, tokenizer, source, texts, folder) -> dict:
    import transformers
    convert_hf.write(source, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encode, difference, same = transformers.AutoTokenizer.from_pretrained(folder), 0.0, 0
    for text in texts:
        prompt = [tokenizer.bos, *tokenizer.encode([text])[0]]
        read = torch.tensor([encode(text)["input_ids"]])
        made = theirs.generate(read, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        new = made[0, read.shape[1]:].tolist()
        same += agreement(model, prompt, new, TOLERANCE["transformers"]) * (read[0].tolist() == prompt)
        with torch.no_grad():
            whole = torch.tensor([prompt + new])
            difference = max(difference, float((theirs(whole).logits - model(whole)).abs().max()))
    return {"difference": difference, "same": same / (NEW * len(texts)),
            "size": sum(p.numel() * p.element_size() for p in theirs.parameters())}


class LlamaCpp:
    """A GGUF file in llama.cpp, with its default f16 cache and flash attention, or in float32 throughout."""
    def __init__(self, file: Path, float32=False):
        import xllamacpp
        params = xllamacpp.CommonParams()
        if float32:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(file), 1024, 1, 0
        params.cpuparams.n_threads = torch.get_num_threads()
        self.server = xllamacpp.Server(params)

    def complete(self, prompt: str, new: int, banned=(), logprobs: int = 0) -> dict:
        return self.server.handle_completions(
            {"prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
             "logit_bias": [[i, False] for i in banned], **({"logprobs": logprobs} if logprobs else {})})

    def tokenize(self, text: str) -> list[int]:
        """With BOS, and special tokens as plain text."""
        question = json.dumps({"content": text, "add_special": True, "parse_special": False}).encode()
        url, kind = f"{self.server.listening_address}/tokenize", {"Content-Type": "application/json"}
        return json.load(urllib.request.urlopen(urllib.request.Request(url, question, kind)))["tokens"]


def in_llama_cpp(model, tokenizer, engine: LlamaCpp, texts, kind: str) -> dict:
    worst, same, count, banned = 0.0, 0, 0, special_tokens(tokenizer)
    for text in texts:
        prompt = [tokenizer.bos, *tokenizer.encode([text])[0]]
        steps = engine.complete(text, NEW, banned, logprobs=10)["choices"][0]["logprobs"]["content"]
        new = [step["id"] for step in steps]
        with torch.no_grad():
            logp = model(torch.tensor([prompt + new]))[0, len(prompt) - 1:-1].log_softmax(-1)
        for ours, step in zip(logp, steps):
            apart = [abs(float(ours[top["id"]]) - top["logprob"]) for top in step["top_logprobs"]]
            worst = max(worst, *apart)
        agreed = agreement(model, prompt, new, TOLERANCE.get(kind, 0), banned)
        same += agreed * (engine.tokenize(text) == prompt)
        count += len(new)
    return {"difference": worst, "same": same / count}


def special_tokens(tokenizer: data.Tokenizer) -> list[int]:
    """What neither side may say, so that no text ends early: llama.cpp knows more ends than the model."""
    if tokenizer.kind != "json":
        return sorted(tokenizer.stop)
    return [i for i, token in tokenizer.model.get_added_tokens_decoder().items() if token.special]


def speeds(engines: dict[str, LlamaCpp], text: str, repeats: int = 7) -> dict[str, tuple[float, float]]:
    """Median tokens/s of prefill and decoding of each engine, measured in turns."""
    found = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            timings = engine.complete(text * 8, NEW)["timings"]
            found[name].append((timings["prompt_per_second"], timings["predicted_per_second"]))
    return {name: tuple(map(statistics.median, zip(*values))) for name, values in found.items()}


def report(run: Path, say) -> bool:
    """The rows of one run; whether any engine was there and every difference is within its tolerance."""
    options, good, tried = llama.read_tensors(run / "ckpt.pt", mmap=False)["config"], True, False
    sources = {"base": Path(options["model"]), "pruned": run / "pruned"}
    models = {name: llama.load(source, torch.float32) for name, source in sources.items()}
    tokenizer = data.Tokenizer(sources["base"])
    rows = data.load(options["data"], tokenizer, 256).validation.tokens
    texts = [tokenizer.decode(rows[i, 1:PROMPT].tolist()) for i in range(PROMPTS)]
    params = {name: llama.count_parameters(model) for name, model in models.items()}
    uniform = ", uniform" if options["uniform"] else ""
    shape = f"{options['space']}{uniform}, {params['pruned'] / params['base']:.2f} of the parameters"
    with tempfile.TemporaryDirectory() as folder:
        for name, source in sources.items():
            try:
                found = in_transformers(models[name], tokenizer, source, texts, Path(folder) / name)
                within = found["difference"] <= TOLERANCE["transformers"] and found["same"] == 1
                good, tried = good and within, True
                say(f"| {run.name} ({shape}) | {name} | transformers, float32 | "
                    f"{found['difference']:.1e} (logits) | {found['same']:.1%} | "
                    f"{found['size'] / 1e6:.1f} MB | | |")
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
                engines[name] = LlamaCpp(file, float32=kind == "f32")
            speed = speeds(engines, texts[0])
            for name, engine in engines.items():
                found = in_llama_cpp(models[name], tokenizer, engine, texts, kind)
                if kind in TOLERANCE:
                    good &= found["difference"] <= TOLERANCE[kind] and found["same"] == 1
                size = (Path(folder) / f"{name}-{kind}.gguf").stat().st_size
                ratio = [a / b for a, b in zip(speed[name], speed["base"])]
                say(f"| {run.name} ({shape}) | {name} | llama.cpp, {archs[name]}, {kind} | "
                    f"{found['difference']:.1e} (log-prob.) | {found['same']:.1%} | {size / 1e6:.1f} MB | "
                    f"{speed[name][0]:,.0f} ({ratio[0]:.2f}x) | {speed[name][1]:,.0f} ({ratio[1]:.2f}x) |")
    return good


def main() -> None:
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories that have ended")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    args = parser.parse_args()
    lines = ["| run | model | engine | largest difference | greedy tokens as ours | weights "
             "| prefill tokens/s | decoding tokens/s |",
             "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines))

    def say(line):
        lines.append(line)
        print(line, flush=True)

    good = all([report(run, say) for run in args.runs])
    verdict = "All within their tolerances" if good else "NOT all within their tolerances"
    print(f"{verdict}: {json.dumps(TOLERANCE)}")
    if args.out:
        runs = " ".join(map(str, args.runs))
        head = (f"# Interoperability\n\nMade by `python benchmarks/interop.py {runs}` on "
                f"{torch.get_num_threads()} CPU cores. {verdict} (logits 1e-3 for transformers; "
                "log-probabilities 1e-3 for f32 files, 0.05 for f16; bf16 and q8_0 round the weights and are "
                "only reported). x: over the base in the same engine and type, measured in turns.\n\n")
        data.write_atomic(args.out, lambda file: file.write((head + "\n".join(lines) + "\n").encode()))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    data.command(main)
