"""The ground floor: errors, files, the machine, tokenizers, and JSON lines as rows of tokens in three splits.

A record is `{"text"}`, or `{"prompt", "answer"}` with the candidates of a choice as `"options"`. LoRA learns
from `train`; criteria, and a generator in passes of its own, from `decision` (both are training data);
`validation` is only ever measured. Try it:  python -m pytest tests/test_data.py
"""
import argparse, base64, errno, functools, hashlib, importlib, json, os, re, secrets, sys, time, typing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed as dist

IGNORE = -100  # a target that carries no loss
RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun

# ------------------------------------------------------------------------------------- errors, files, machine
class InputError(Exception):
    """Something the user gave cannot be used. The message is one line: what, where, and what to do."""

class Parser(argparse.ArgumentParser):
    def error(self, message):  # in one line, without the usage
        raise InputError(f"{message} (see --help)")

def command(main) -> None:
    """Runs `main()`; what is not a fault of the program becomes one line on stderr and exit status 2."""
    sys.stdout.reconfigure(errors="backslashreplace")  # for what the terminal's encoding cannot show
    try:
        return main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as error:
        problem = " ".join(str(error).splitlines())[:500]
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("out of memory|can't allocate mem", str(error)):
            raise
        problem = "out of memory; --checkpointing, --dtype bfloat16, a lower --seq-len or --batch-size help"
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)

def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]

def need(package: str, what):
    """An optional package. Raises InputError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"{what}: needs one more package; pip install {package}") from None

def regular(path: Path) -> Path:
    """`path`. Raises OSError if it is a folder, or a pipe or device: reading these might never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path

def write_atomic(path: Path, write) -> None:
    """Calls `write(file)` on a file beside `path`, then renames it. Raises InputError, `path` untouched."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides a full disk
        if not isinstance(cause, OSError):
            raise
        raise InputError(f"{path}: cannot be written ({cause.strerror}); make room or go elsewhere") from None
    finally:
        beside.unlink(missing_ok=True)

def write_json(path: Path, value) -> None:
    write_atomic(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))

def lock(directory: Path):
    """Takes a directory until this process ends, however it ends. Raises InputError if another has it."""
    file = open(directory / "lock", "a+")
    try:
        need("fcntl", "--out").flock(file, 2 | 4)  # LOCK_EX | LOCK_NB
    except BlockingIOError:
        raise InputError(f"{directory}: {Path(file.name).read_text()} is at work there; choose another --out")
    file.truncate(0)
    print("process", os.getpid(), end="", file=file, flush=True)
    for left in directory.glob("*." + 8 * "[0-9a-f]" + ".tmp"):  # by a process that was killed
        left.unlink()
    return file

def find_device(name: str = "auto") -> torch.device:
    """The named device, or for "auto" the best there is: CUDA, then MPS, then CPU. Raises InputError."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        probe = torch.zeros(1, device=best if name == "auto" else name)
        probe.item()  # the meta device has no values
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {first_line(error)}; expected cuda, mps or cpu") from None
    return probe.device

def fits(size: int, device: torch.device, what: str) -> None:
    """Raises InputError if `size` bytes are more than the GPU has, or the machine and its container."""
    room, limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), Path("/sys/fs/cgroup/memory.max")
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[1]
    elif limit.exists() and limit.read_text().strip().isdigit():
        room = min(room, int(limit.read_text()))
    if size > room:
        raise InputError(f"{what}: at least {size >> 30:,} GB, and there are {room >> 30:,}; ask for less")

def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16: CUDA's from Ampere on, CPUs with AVX512-BF16 (or AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()

def wait_for_all() -> None:
    if PROCESSES > 1:
        dist.barrier()

def add_up(tensors: list[Tensor]) -> list[Tensor]:
    """Sums each over the processes, in place: all of data parallelism, for equal sums lead to equal steps."""
    for tensor in tensors if PROCESSES > 1 else []:
        dist.all_reduce(tensor)
    return tensors

def first_process_says(d: Tensor) -> Tensor:
    """The first process's decisions, for all: on a GPU the last bit of a sum may differ between them."""
    return add_up([d.byte() if RANK == 0 else 0 * d.byte()])[0].bool()

# -------------------------------------------------------------------------------------------------- tokenizer
# LLaMA-3's rule for cutting text into words before byte pairs are merged, and its special tokens' places.
LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_SPECIAL = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}

class Tokenizer:
    """`tokenizer.model` of a directory, SentencePiece (LLaMA-2, Mistral) or tiktoken (LLaMA-3), or else its
    `tokenizer.json` (Hugging Face). `encode` takes texts to lists of ids, without BOS and EOS, special tokens
    being plain text; `decode` ids to a text. `bos` and `eos` open and close a document, the ids `stop` end
    generation, `space` goes before a text that continues another (some add it unasked). Raises InputError."""

    def __init__(self, directory: str | Path):
        paths = [Path(directory) / name for name in ("tokenizer.model", "tokenizer.json")]
        self.path = next((path for path in paths if path.exists()), paths[0])
        try:
            self._open(regular(self.path).read_bytes())
            self.space = " " if self.decode(2 * self.encode(["a"])[0]) == "aa" else ""
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:  # Rust's packages panic over a damaged file, and that is no Exception
            raise InputError(f"{self.path}: no tokenizer that can be read ({first_line(error)})") from None
        if {self.bos, self.eos} & {-1, None}:
            raise InputError(f"{self.path}: the tokenizer has no BOS or no EOS token, a LLaMA needs both")

    def _open(self, content: bytes) -> None:
        if self.path.suffix == ".json":
            self.kind, model = "json", need("tokenizers", self.path).Tokenizer.from_str(content.decode())
            model.encode_special_tokens = True
            model.no_truncation()
            model.no_padding()
            self.encode = lambda texts: [e.ids for e in model.encode_batch(texts, add_special_tokens=False)]
            config, more = (self.path.with_name(f"{key}_config.json") for key in ("tokenizer", "generation"))
            self.size, eos = model.get_vocab_size(), json.loads(regular(config).read_text())["eos_token"]
            self.eos = model.token_to_id(eos["content"] if isinstance(eos, dict) else eos)
            stop = json.loads(regular(more).read_text()).get("eos_token_id") if more.exists() else None
            self.stop = {self.eos, *(stop if isinstance(stop, list) else [stop])} - {None}
            own, bare = model.encode("a").ids[0], self.encode(["a"])[0][0]  # BOS is what it puts first itself
            self.bos = own if own != bare else model.get_vocab().get("<|endoftext|>", self.eos)
        elif re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content):
            ranks = {base64.b64decode(t): int(rank) for t, rank in map(bytes.split, content.splitlines())}
            n = len(ranks)
            if sorted(ranks.values()) != [*range(n)] or not all(bytes([i]) in ranks for i in range(256)):
                raise ValueError("its ranks are not 0, 1, 2, ... or a byte has none")  # tiktoken would panic
            special = {f"<|{LLAMA3_SPECIAL.get(i, f'reserved_{i}')}|>": n + i for i in range(256)}
            self.kind, tiktoken = "tiktoken", need("tiktoken", self.path)
            model = tiktoken.Encoding("", pat_str=LLAMA3_WORDS, mergeable_ranks=ranks, special_tokens=special)
            self.encode = model.encode_ordinary_batch
            self.size, self.bos, self.eos, self.stop = n + 256, n, n + 1, {n + 1, n + 9}
        else:
            self.kind, sentencepiece = "sentencepiece", need("sentencepiece", self.path)
            model = sentencepiece.SentencePieceProcessor(model_proto=content or b"-")  # b"" would be no error
            self.size, self.encode = len(model), lambda texts: model.encode(texts, num_threads=-1)
            self.bos, self.eos, self.stop = model.bos_id(), model.eos_id(), {model.eos_id()}
        self.model, self.decode = model, model.decode

    def check(self, vocab_size: int) -> None:
        """Raises InputError unless every token has an embedding, and but a few embeddings have no token."""
        if not self.size <= vocab_size < self.size + 1024:
            raise InputError(f"{self.path}: {self.size} tokens, the model has {vocab_size}; use its own one")

class Example(typing.NamedTuple):
    prompt: str                    # "" for plain text
    answer: str                    # what the loss is on with --answer-only; the whole text of plain text
    options: tuple[str, ...] = ()  # the candidate answers of a multiple-choice question

def parse(record) -> Example:
    """A JSON record as an Example. Raises InputError."""
    fields = record if isinstance(record, dict) else {}
    found, options = str([*fields])[:80], fields.get("options", [])
    if fields.keys() >= {"prompt", "answer"}:
        texts = [fields["prompt"], fields["answer"], *(options if isinstance(options, list) else [None])]
    elif "text" in fields:
        texts = [fields["text"]]
    else:
        raise InputError(f'expected {{"text": ...}} or {{"prompt": ..., "answer": ...}}, found {found}; '
                         "python scripts/prepare.py FILE > NEW.jsonl knows more formats")
    if not all(isinstance(text, str) and text.strip().encode() for text in texts):  # half a character raises
        raise InputError(f"a value of {found} is empty or not a string; mend or remove the record")
    prompt, answer, *options = texts if len(texts) > 1 else ("", *texts)
    if len(options) > 256:  # each costs a pass of its own
        raise InputError(f"{len(options):,} options, at most 256 can be weighed; remove some or the record")
    if options and answer not in options:
        raise InputError("the answer is none of the options; mend the record")
    return Example(prompt, answer, tuple(options))

def read(path: str | Path, parse=parse) -> list[Example]:
    """The examples of a JSON lines file, each by `parse(record)`. Raises InputError naming file and line."""
    examples, number = [], 0
    try:
        content = regular(Path(path)).read_bytes().removeprefix(b"\xef\xbb\xbf")
        for number, line in enumerate(content.split(b"\n"), 1):
            if line.strip():
                examples.append(parse(json.loads(line.decode())))
    except (ValueError, RecursionError, InputError) as error:
        found = error if isinstance(error, InputError) else f"not JSON in UTF-8 ({first_line(error)})"
        raise InputError(f"{path}, line {number}: {found}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a JSON lines file") from None
    if not examples:
        raise InputError(f"{path}: holds no records; expected one JSON object a line")
    return examples

def split(examples: list[Example], fraction: float) -> dict[str, list[Example]]:
    """Examples to validation, decision and train; the first two get about `fraction` each. A hash of the
    prompt or text alone says where one goes, and in which order: equal questions are never on both sides."""
    keyed = sorted((hashlib.sha256((e.prompt or e.answer).strip().encode()).hexdigest(), e) for e in examples)
    ends = {"validation": (0, fraction), "decision": (fraction, 2 * fraction), "train": (2 * fraction, 1)}
    return {name: [e for h, e in keyed if a <= int(h[:12], 16) / 16**12 < b] for name, (a, b) in ends.items()}

class Rows(typing.NamedTuple):
    tokens: Tensor   # N T, int32
    targets: Tensor  # N T, int32: the next token, or IGNORE

    def batch(self, size: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """The `step`-th batch of an endless shuffled stream, [size, T] twice. A pure function, no state."""
        n = len(self.tokens)
        return self.at([permutation(n, seed, i // n)[i % n] for i in range(step * size, (step + 1) * size)])

    def at(self, picks) -> tuple[Tensor, Tensor]:
        return self.tokens[picks].long(), self.targets[picks].long()

@functools.lru_cache(maxsize=8)
def permutation(n: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng((seed, epoch)).permutation(n).tolist()

def encode(examples: list[Example], tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of each example, with BOS and EOS; tells how far it is when it takes long."""
    pairs, begin = [], time.monotonic()
    for some in (examples[i:i + 5000] for i in range(0, len(examples), 5000)):
        prompts = tokenizer.encode([e.prompt for e in some])
        answers = tokenizer.encode([(tokenizer.space if e.prompt else "") + e.answer for e in some])
        pairs += [([tokenizer.bos] + p, a + [tokenizer.eos]) for p, a in zip(prompts, answers)]
        left = (time.monotonic() - begin) * (len(examples) / len(pairs) - 1)
        if left > 5:
            print(f"tokenizing: {len(pairs):,} of {len(examples):,} records, {left:.0f} s left", flush=True)
    return pairs

def pack(pairs: list[tuple[list[int], list[int]]], seq_len: int, answer_only: bool, pad: int) -> Rows:
    """Documents end to end, cut into rows, the last one filled up. A document's first token is no target.
    With 1 for BOS and 2 for EOS, ([1], [7, 8, 2]) and ([1, 5], [6, 2]) in rows of 4: tokens [1 7 8 2],
    [1 5 6 2] and targets [7 8 2 -], [5 6 2 -]; answers only, [7 8 2 -], [- 6 2 -]."""
    tokens, targets = [], []
    for prompt, answer in pairs:
        silent = len(prompt) if answer_only else 1
        tokens += prompt + answer
        targets += silent * [IGNORE] + (prompt + answer)[silent:]
    room = (1 - len(tokens)) % seq_len  # to whole rows, and one token more: the last target
    tokens, targets = torch.tensor([tokens + room * [pad], targets + room * [IGNORE]], dtype=torch.int32)
    return Rows(tokens[:-1].view(-1, seq_len), targets[1:].view(-1, seq_len))

class Data(typing.NamedTuple):
    train: Rows
    decision: Rows
    validation: Rows
    questions: list[Example]  # of the validation split: choices, and answers short enough to be right

def load(paths, tokenizer: Tokenizer, seq_len: int, answer_only=False, fraction=0.05) -> Data:
    """Reads, splits, tokenizes and packs data files. Raises InputError."""
    parts = split([example for path in paths for example in read(path)], fraction)
    if not all(parts.values()):
        raise InputError(f"{', '.join(map(str, paths))}: too few different records, a split of them is empty")
    pairs = {name: encode(part, tokenizer) for name, part in parts.items()}
    rows = {name: pack(part, seq_len, answer_only, tokenizer.eos) for name, part in pairs.items()}
    questions = [e for e, (_, answer) in zip(parts["validation"], pairs["validation"])
                 if e.options or (e.prompt and len(answer) <= 32)]
    return Data(**rows, questions=questions[:200])
