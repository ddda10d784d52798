"""The ground floor: errors, files, the machine, tokenizers, and records as rows of tokens in three splits.

scripts/prepare.py reads records, scripts/chat.py lays out chats. LoRA learns from `train`; criteria, and a
generator in passes of its own, from `decision` (both are training data); `validation` is only ever measured.
"""
import argparse, errno, functools, hashlib, importlib, json, os, re, secrets, sys, time, typing
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
        raise InputError(f"{what}: needs one more package; pip install {package.split('.')[0]}") from None

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
class Tokenizer:
    """`tokenizer.model` of a directory (SentencePiece, or LLaMA-3's ranks), or else `tokenizer.json` (Hugging
    Face). `encode` takes texts to ids without BOS and EOS, special tokens being plain text, `decode` ids to a
    text. `bos` and `eos` open and close a document, `stop` ends generation, `space` goes before a text that
    continues another (some add it unasked), `special` has special tokens' ids by name. Raises InputError."""

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
        if self.path.suffix == ".json" or re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content):
            from scripts.other_tokenizers import fill_in
            return fill_in(self, content)
        self.kind, sentencepiece = "sentencepiece", need("sentencepiece", self.path)
        model = sentencepiece.SentencePieceProcessor(model_proto=content or b"-")  # b"" would be no error
        self.size, self.encode = len(model), lambda texts: model.encode(texts, num_threads=-1)
        self.special = {model.id_to_piece(i): i for i in range(self.size) if model.is_control(i)}
        self.bos, self.eos, self.stop = model.bos_id(), model.eos_id(), {model.eos_id()}
        self.model, self.decode = model, model.decode

    def check(self, vocab_size: int) -> None:
        """Raises InputError unless every token has an embedding, and but a few embeddings have no token."""
        if not self.size <= vocab_size < self.size + 1024:
            raise InputError(f"{self.path}: {self.size} tokens, the model has {vocab_size}; use its own one")

class Example(typing.NamedTuple):
    prompt: str                    # "" for plain text; what the user of a chat says first
    answer: str                    # the last one of a chat; the whole text of plain text
    options: tuple[str, ...] = ()  # the candidate answers of a multiple-choice question
    chat: tuple[tuple[str, str], ...] = ()  # (role, text) of all its turns up to the answer, and with it
    format: str = "text"           # a key of FORMATS in scripts/prepare.py

def split(examples: list[Example], fraction: float = 0.05) -> dict[str, list[Example]]:
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

def pieces(example: Example, tokenizer: Tokenizer) -> list[tuple[str | int, bool]]:
    """A document's texts and special tokens in order, and whether each is an answer or ends one."""
    if example.chat:
        from scripts import chat
        return chat.pieces(example, tokenizer)
    answer = (tokenizer.space if example.prompt else "") + example.answer
    return [(tokenizer.bos, False), (example.prompt, False), (answer, True), (tokenizer.eos, True)]

def encode(examples: list[Example], tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """Each example's document: all its ids, and those of answers, IGNORE for others; tells how far it is."""
    made, begin = [], time.monotonic()
    for some in (examples[i:i + 5000] for i in range(0, len(examples), 5000)):
        parts = [pieces(example, tokenizer) for example in some]
        ids = iter(tokenizer.encode([text for part in parts for text, _ in part if isinstance(text, str)]))
        for part in parts:
            runs = [(next(ids) if isinstance(text, str) else [text], learned) for text, learned in part]
            answers = [run if learned else len(run) * [IGNORE] for run, learned in runs]
            made.append((sum((run for run, _ in runs), []), sum(answers, [])))
        left = (time.monotonic() - begin) * (len(examples) / len(made) - 1)
        if left > 5:
            print(f"tokenizing: {len(made):,} of {len(examples):,} records, {left:.0f} s left", flush=True)
    return made

def last_answer(ids: list[int], answers: list[int]) -> tuple[list[int], list[int]]:
    """The ids before a document's last answer, and the answer's own."""
    n = answers[::-1].index(IGNORE)
    return ids[:-n], ids[-n:]

def pack(documents: list[tuple[list[int], list[int]]], seq_len: int, answer_only: bool, pad: int) -> Rows:
    """Documents end to end, cut into rows, the last one filled up. A document's first token is no target.
    Of 1 7 8 2 and, with the answer 6 2, 1 5 6 2, where BOS is 1 and EOS 2, rows of 4 are tokens [1 7 8 2],
    [1 5 6 2] and targets [7 8 2 -], [5 6 2 -]; if `answer_only`, [7 8 2 -], [- 6 2 -]."""
    tokens = [i for ids, _ in documents for i in ids]
    targets = [i for ids, answers in documents for i in [IGNORE] + (answers if answer_only else ids)[1:]]
    room = (1 - len(tokens)) % seq_len  # to whole rows, and one token more: the last target
    tokens, targets = torch.tensor([tokens + room * [pad], targets + room * [IGNORE]], dtype=torch.int32)
    return Rows(tokens[:-1].view(-1, seq_len), targets[1:].view(-1, seq_len))

class Data(typing.NamedTuple):
    train: Rows
    decision: Rows
    validation: Rows
    questions: list[Example]  # of the validation split: choices, and answers short enough to be right

def load(paths, tokenizer: Tokenizer, seq_len: int, answer_only=False) -> Data:
    """Reads, splits, tokenizes and packs data files. Raises InputError."""
    from scripts.prepare import read
    parts = split([example for path in paths for example in read(path)])
    if not all(parts.values()):
        raise InputError(f"{', '.join(map(str, paths))}: too few different records, a split of them is empty")
    documents = {name: encode(part, tokenizer) for name, part in parts.items()}
    rows = {name: pack(part, seq_len, answer_only, tokenizer.eos) for name, part in documents.items()}
    questions = [e for e, document in zip(parts["validation"], documents["validation"])
                 if e.options or (e.prompt and len(last_answer(*document)[1]) <= 32)]
    return Data(**rows, questions=questions[:200])
