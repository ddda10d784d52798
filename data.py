"""The ground floor: errors, files, the machine, tokenizers, and records as rows of tokens in three splits.

`FORMATS` has the records that are known, `records` the files that hold them. LoRA learns from `train`;
criteria, and a generator in passes of its own, from `decision` (both are training data); `validation` is only
ever measured. Try it:  python -m pytest tests/test_data.py
"""
import argparse, base64, csv, functools, hashlib, importlib, io, json, os, re, secrets, sys, time, typing
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
    try:
        return main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as error:
        problem = error
    except RuntimeError as error:
        if not re.search("out of memory|can't allocate memory", str(error)):
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
    generation, `space` goes before a text that continues another (some add it unasked), `special` has the ids
    of special tokens by name. Raises InputError."""

    def __init__(self, directory: str | Path):
        paths = [Path(directory) / name for name in ("tokenizer.model", "tokenizer.json")]
        self.path = next((path for path in paths if path.exists()), paths[0])
        try:
            self._open(self.path.read_bytes())
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
            self.special = {t.content: i for i, t in model.get_added_tokens_decoder().items() if t.special}
            self.size, eos = model.get_vocab_size(), json.loads(config.read_text())["eos_token"]
            self.eos = model.token_to_id(eos["content"] if isinstance(eos, dict) else eos)
            stop = json.loads(more.read_text()).get("eos_token_id") if more.exists() else None
            self.stop = {self.eos, *(stop if isinstance(stop, list) else [stop])} - {None}
            own, bare = model.encode("a").ids[0], self.encode(["a"])[0][0]  # BOS is what it puts first itself
            self.bos = own if own != bare else model.get_vocab().get("<|endoftext|>", self.eos)
        elif re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content):
            ranks = {base64.b64decode(t): int(rank) for t, rank in map(bytes.split, content.splitlines())}
            n = len(ranks)
            names = {f"<|{LLAMA3_SPECIAL.get(i, f'reserved_{i}')}|>": n + i for i in range(256)}
            self.kind, tiktoken = "tiktoken", need("tiktoken", self.path)
            model = tiktoken.Encoding("", pat_str=LLAMA3_WORDS, mergeable_ranks=ranks, special_tokens=names)
            self.special, self.encode = names, model.encode_ordinary_batch
            self.size, self.bos, self.eos, self.stop = n + 256, n, n + 1, {n + 1, n + 9}
        else:
            self.kind, sentencepiece = "sentencepiece", need("sentencepiece", self.path)
            model = sentencepiece.SentencePieceProcessor(model_proto=content)
            self.size, self.encode = len(model), lambda texts: model.encode(texts, num_threads=-1)
            self.special = {model.id_to_piece(i): i for i in range(self.size) if model.is_control(i)}
            self.bos, self.eos, self.stop = model.bos_id(), model.eos_id(), {model.eos_id()}
        self.model, self.decode = model, model.decode

    def check(self, vocab_size: int) -> None:
        """Raises InputError unless every token has an embedding, and but a few embeddings have no token."""
        if not self.size <= vocab_size < self.size + 1024:
            raise InputError(f"{self.path}: {self.size} tokens, the model has {vocab_size}; use its own one")

    @functools.cached_property
    def template(self):
        """What renders a chat: the chat template that lies beside the tokenizer, or else `plain`."""
        path, config = map(self.path.with_name, ("chat_template.jinja", "tokenizer_config.json"))
        text = json.loads(config.read_text()).get("chat_template") if config.exists() else None
        text = path.read_text() if path.exists() else text
        if not text:
            return plain
        sandbox = need("jinja2.sandbox", "a chat template").ImmutableSandboxedEnvironment
        return sandbox(trim_blocks=True, lstrip_blocks=True).from_string(text).render

# -------------------------------------------------------------------------------------------- records, splits
class Example(typing.NamedTuple):
    turns: tuple[tuple[str, str], ...]  # who (a key of PLAIN) says what; the last one is an answer
    options: tuple[str, ...] = ()       # the candidates for it of a multiple-choice question
    format: str = "text"                # a key of FORMATS

    def answered(self, text: str) -> "Example":
        return self._replace(turns=(*self.turns[:-1], (self.turns[-1][0], text)))

# How a turn reads where no chat template says otherwise; and the ones that --answer-only learns.
PLAIN = {"document": "{0}{eos}", "prompt": "{0}", "answer": " {0}{eos}",
         "system": "System: {0}\n", "user": "User: {0}\n", "assistant": "Assistant: {0}{eos}\n"}
ANSWERS = ("document", "answer", "assistant")
ROLES = {name: name for name in ("system", "user", "assistant")} | {"human": "user", "gpt": "assistant"}

# A record's format is the first whose keys it has all of. The function gives its turns.
FORMATS = {
    "prompt and answer": (("prompt", "answer"), lambda r: [("prompt", r["prompt"]), ("answer", r["answer"])]),
    "messages": (("messages",), lambda r: [(ROLES[m["role"]], m["content"]) for m in r["messages"]]),
    "ShareGPT": (("conversations",), lambda r: [(ROLES[m["from"]], m["value"]) for m in r["conversations"]]),
    "Alpaca": (("instruction", "output"), lambda r: [
        ("user", "\n\n".join(filter(None, [r["instruction"], r.get("input")]))), ("assistant", r["output"])]),
    "question": (("question", "answer"), lambda r: [("user", r["question"]), ("assistant", r["answer"])]),
    "text": (("text",), lambda r: [("document", r["text"])]),
}

def parse(record) -> Example:
    """A record as an Example; of a chat, all up to its last answer. Raises InputError."""
    fields = record if isinstance(record, dict) else {}
    found, options = str([*fields])[:80], fields.get("options") or []
    name = next((name for name, (keys, _) in FORMATS.items() if fields.keys() >= {*keys}), None)
    if name is None:
        known = ", ".join("+".join(keys) for keys, _ in FORMATS.values())
        raise InputError(f"expected the keys {known}, found {found}; "
                         "python scripts/prepare.py FILE > NEW.jsonl knows more formats")
    try:
        turns = [turn for turn in FORMATS[name][1](fields) if turn != ("system", "")]
        texts = [text for _, text in turns] + (options if isinstance(options, list) else [None])
        while turns and turns[-1][0] not in ANSWERS:
            turns.pop()
    except (LookupError, TypeError):
        texts = [None]
    if not all(isinstance(text, str) and text.strip().encode() for text in texts):  # half a character raises
        raise InputError(f"a value of {found} is missing, unknown, empty or not a string; mend the record")
    if not asked(turns):
        raise InputError("a chat needs a user's turn and an assistant's after it; mend the record")
    if options and turns[-1][1] not in options:
        raise InputError("the answer is none of the options; mend the record")
    return Example(tuple(turns), tuple(options), name)

def asked(turns) -> str:
    """What the user says first, or the prompt, or the whole text; "" if nobody asks."""
    return next((text for who, text in turns if who in ("user", "prompt", "document")), "")

def records(path: Path):
    """Yields the records of text (paragraphs), CSV, TSV, a JSON array or JSON lines; "" for an empty line."""
    content, kind = path.read_bytes().removeprefix(b"\xef\xbb\xbf"), path.suffix.lower()
    if content.startswith(b"%PDF"):
        raise InputError(f"a PDF; make it text first: pdftotext {path}")
    text = content.decode(errors="surrogateescape").replace("\r\n", "\n")  # `parse` refuses what is not UTF-8
    if kind == ".txt":
        yield from (part and {"text": part} for part in re.split(r"\n\s*\n\s*", text.strip()))
    elif kind in (".csv", ".tsv"):
        csv.field_size_limit(2**31 - 1)
        rows = csv.reader(io.StringIO(text), delimiter="," if kind == ".csv" else "\t", strict=True)
        header = next(rows, [])
        yield ""
        for row in rows:
            if len(row) not in (0, len(header)):
                raise InputError(f"{len(row)} columns, the header has {len(header)}; mend the row")
            yield dict(zip(header, row)) if row else ""
    elif text.lstrip().startswith("["):
        yield from json.loads(text)
    else:
        yield from (line.strip() and json.loads(line) for line in text.split("\n"))

def read(path: str | Path, parse=parse) -> list[Example]:
    """The examples of a file, each by `parse(record)`. Raises InputError naming file and place."""
    examples, place = [], 1
    try:
        for record in records(Path(path)):
            examples += [parse(record)] if record != "" else []
            place += 1
    except (ValueError, RecursionError, csv.Error, InputError) as error:
        kind, unit = {".txt": ("text", "paragraph"), ".csv": ("CSV", "row"), ".tsv": ("TSV", "row"),
                      ".json": ("JSON", "record")}.get(Path(path).suffix.lower(), ("JSON", "line"))
        found = error if isinstance(error, InputError) else f"not {kind} in UTF-8 ({first_line(error)})"
        raise InputError(f"{path}, {unit} {place}: {found}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a file of records") from None
    if not examples:
        raise InputError(f"{path}: holds no records; README.md, Formats, says what it can hold")
    return examples

def split(examples: list[Example], fraction: float) -> dict[str, list[Example]]:
    """Examples to validation, decision and train; the first two get about `fraction` each. A hash of what is
    `asked` alone says where one goes, and in which order: equal questions are never on both sides."""
    keyed = sorted((hashlib.sha256(asked(e.turns).strip().encode()).hexdigest(), e) for e in examples)
    ends = {"validation": (0, fraction), "decision": (fraction, 2 * fraction), "train": (2 * fraction, 1)}
    return {name: [e for h, e in keyed if a <= int(h[:12], 16) / 16**12 < b] for name, (a, b) in ends.items()}

# ------------------------------------------------------------------------------- documents, rows of tokens
BOS, EOS, TURN = "\U000f0000", "\U000f0001", 0xf0002  # of private use: they stand for what is filled in later

def plain(messages, bos_token, eos_token, **unused) -> str:
    return bos_token + "".join(PLAIN[m["role"]].format(m["content"], eos=eos_token) for m in messages)

def refuse(message: str):
    raise InputError(message)

def pieces(example: Example, tokenizer: Tokenizer) -> list[tuple[str | int, bool]]:
    """A document's texts and special tokens in order, and whether each is an answer or ends one. A template
    sees characters in place of what turns say, so nobody's words name special tokens. Raises InputError."""
    chat, turns = example.turns[-1][0] == "assistant", dict(enumerate(example.turns, TURN))
    messages = [{"role": who, "content": chr(mark)} for mark, (who, _) in turns.items()]
    answers = [chr(mark) for mark, (who, _) in turns.items() if who in ANSWERS]
    try:
        render = tokenizer.template if chat else plain
        text = render(messages=messages, bos_token=BOS, eos_token=EOS, tools=None, raise_exception=refuse)
        text.index(answers[-1])  # a template that leaves it out fails, too
    except Exception as error:  # a template is a program
        raise InputError(f"{tokenizer.path.parent}: its chat template fails on the chat about "
                         f"{asked(example.turns)[:40]!r} ({first_line(error)})") from None
    special = {BOS: tokenizer.bos, EOS: tokenizer.eos} | (tokenizer.special if chat else {})
    text = re.sub(f" (?=[{''.join(answers)}])", tokenizer.space, text)
    borders = "|".join([f" ?[{''.join(answers)}]\\s*", *map(re.escape, sorted(special, reverse=True))])
    said = {mark: words.strip() if chat else words for mark, (_, words) in turns.items()}
    made, answer = [], False
    for part in filter(None, re.split(f"({borders})", text)):
        ends, answer = answer and part in special, part.strip() in answers
        made.append((special.get(part, part.translate(said)), answer or ends))
    made += answer * [(tokenizer.eos, True)]
    while not made[-1][1]:  # what a template puts after the last answer
        made.pop()
    return made

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

def last_answer(document: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    """The ids before a document's last answer, and the answer's own."""
    ids, answers = document
    n = answers[::-1].index(IGNORE)
    return ids[:-n], ids[-n:]

def pack(documents: list[tuple[list[int], list[int]]], seq_len: int, answer_only: bool, pad: int) -> Rows:
    """Documents end to end, cut into rows, the last one filled up. A document's first token is no target.
    With 1 for BOS and 2 for EOS, 1 7 8 2 and, with the answer 6 2, 1 5 6 2 in rows of 4: tokens [1 7 8 2],
    [1 5 6 2] and targets [7 8 2 -], [5 6 2 -]; answers only, [7 8 2 -], [- 6 2 -]."""
    tokens, targets = [], []
    for ids, answers in documents:
        tokens += ids
        targets += [IGNORE] + (answers if answer_only else ids)[1:]
    room = (1 - len(tokens)) % seq_len  # to whole rows, and one token more: the last target
    tokens, targets = torch.tensor([tokens + room * [pad], targets + room * [IGNORE]], dtype=torch.int32)
    return Rows(tokens[:-1].view(-1, seq_len), targets[1:].view(-1, seq_len))

class Data(typing.NamedTuple):
    train: Rows
    decision: Rows
    validation: Rows
    questions: list[Example]  # of the validation split: choices, and answers short enough to be right
    formats: dict[str, Rows]  # the validation split's documents apart, by the record's format

def load(paths, tokenizer: Tokenizer, seq_len: int, answer_only=False, fraction=0.05) -> Data:
    """Reads, splits, tokenizes and packs data files. Raises InputError."""
    parts = split([example for path in paths for example in read(path)], fraction)
    if not all(parts.values()):
        raise InputError(f"{', '.join(map(str, paths))}: too few different records, a split of them is empty")
    documents = {name: encode(part, tokenizer) for name, part in parts.items()}
    questions, formats = [], {}
    for example, document in zip(parts["validation"], documents["validation"]):
        formats.setdefault(example.format, []).append(document)
        if example.options or (len(example.turns) > 1 and len(last_answer(document)[1]) <= 32):
            questions.append(example)
    rows, formats = ({name: pack(part, seq_len, answer_only, tokenizer.eos) for name, part in of.items()}
                     for of in (documents, formats))
    return Data(**rows, questions=questions[:200], formats=formats)
