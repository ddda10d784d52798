"""A self-contained LLaMA: configuration, model, raw checkpoints, generation.

Reads Meta's raw format (`params.json`, `consolidated.NN.pth`, a tokenizer), and the same with unequal layers,
as pruning leaves them. Names are Meta's: w1 is the gate, w3 the up and w2 the down projection of SwiGLU.

    python llama.py out/legal/pruned --prompt "The lessee shall"      # or --chat

Shapes: B rows, T positions, S positions attended to, D model width, V vocabulary, H query heads, K key/value
heads (GQA: H / K query heads share one; MHA is H = K), Q query/key and E value dimensions of a head.
"""
import dataclasses, functools, itertools, json, time, zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data import (IGNORE, PROCESSES, InputError, Parser, Tokenizer, command, find_device, first_line, fits,
                  regular, write_atomic, write_json)
from lora import LoRALinear, Mask

@dataclasses.dataclass(frozen=True)
class LayerSize:
    """The sizes of one layer. Pruning makes them differ from layer to layer."""
    n_heads: int
    n_kv_heads: int
    qk_dim: int
    v_dim: int
    hidden_dim: int
    rotary_pairs: list | None = None  # which of the head_dim / 2 rotary pairs are left; None: all

@dataclasses.dataclass
class LlamaConfig:
    """`params.json`: Meta's keys, and what pruning needs: `head_dim` and `layers`."""
    dim: int
    n_layers: int
    n_heads: int
    vocab_size: int
    n_kv_heads: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | int | None = None
    norm_eps: float | int = 1e-5
    rope_theta: float | int = 10000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: float | int = 8.0  # LLaMA-3.1's; 3.2 has 32
    max_seq_len: int | None = None    # the longest text that it was made for
    head_dim: int | None = None       # before pruning: it fixes attention scale and rotary frequencies
    layers: list | None = None        # of LayerSize

    def __post_init__(self):
        """Fills in what is left out. Raises ValueError or TypeError unless the sizes fit each other."""
        check_values(self)
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        self.head_dim = self.head_dim or self.dim // self.n_heads
        hidden = int((self.ffn_dim_multiplier or 1) * int(8 * self.dim / 3))
        hidden = self.multiple_of * -(-hidden // self.multiple_of)
        dense = LayerSize(self.n_heads, self.n_kv_heads, self.head_dim, self.head_dim, hidden)
        layers = [dense] * min(self.n_layers, 1000) if self.layers is None else self.layers
        self.layers = [size if isinstance(size, LayerSize) else LayerSize(**size) for size in layers]
        if self.head_dim < 2 or self.head_dim % 2 or len(self.layers) != self.n_layers:
            raise ValueError(f"{self.n_layers} layers, {len(self.layers)} sizes; heads of {self.head_dim}")
        every = range(self.head_dim // 2)
        for i, size in enumerate(self.layers):
            check_values(size)
            pairs = every if size.rotary_pairs is None else size.rotary_pairs
            if size.n_heads % size.n_kv_heads or 2 * len(pairs) != size.qk_dim or {*pairs} - {*every}:
                raise ValueError(f"layer {i}: its heads or rotary pairs do not fit each other")

    @classmethod
    def read(cls, path: Path) -> "LlamaConfig":
        """Reads `params.json`. Raises InputError for anything from which no LLaMA can be built."""
        try:
            values = json.loads(regular(path).read_text())
            if values["vocab_size"] == -1:  # LLaMA-2 leaves it to the tokenizer
                values["vocab_size"] = len(open_shards(path.parent)[0].get("tok_embeddings.weight", ()))
            return cls(**values)
        except (OSError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise InputError(f"{path}: {first_line(error)}; expected a LLaMA's params.json") from None

def check_values(sizes) -> None:
    """Raises ValueError that names a value which is not of its field's type, or not a positive number."""
    for field in dataclasses.fields(sizes):
        value = getattr(sizes, field.name)
        fits = isinstance(value, field.type) and isinstance(value, bool) == (field.type is bool)
        limit = 1e12 if field.name == "max_seq_len" or isinstance(1.0, field.type) else 2**20
        if not fits or (type(value) in (int, float) and not 0 < value < limit):
            raise ValueError(f"{field.name!r} is {str(value)[:40]}: not positive, too large or of wrong type")

# ----------------------------------------------------------------------------------------------------- model
def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """The angle per position of each rotary pair, [head_dim / 2]; stretched as in LLaMA-3.1 if asked for."""
    freqs = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    if config.use_scaled_rope:
        # Wavelengths beyond 8192 positions are stretched by the factor, under 2048 left, a ramp between.
        ramp = ((8192 * freqs / (2 * torch.pi) - 1) / (4 - 1)).clamp(0, 1)
        freqs *= ramp + (1 - ramp) / config.rope_scaling_factor
    return freqs

def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x [B, T, heads, Q]: pairs are neighbours (2i, 2i+1); cos, sin [T, 1, Q / 2] in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)

class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, size: LayerSize):
        super().__init__()
        self.wq = LoRALinear(config.dim, size.n_heads * size.qk_dim)
        self.wk = LoRALinear(config.dim, size.n_kv_heads * size.qk_dim)
        self.wv = LoRALinear(config.dim, size.n_kv_heads * size.v_dim)
        self.wo = LoRALinear(size.n_heads * size.v_dim, config.dim)
        self.size, self.scale = size, config.head_dim ** -0.5  # as unpruned: the softmax must not change

    def forward(self, x: Tensor, rope: Tensor, mask: dict[str, Mask], cache: list | None) -> Tensor:
        size = self.size
        q = self.wq(x, mask.get("wq")).unflatten(-1, (-1, size.qk_dim))  # B T H Q
        k = self.wk(x, mask.get("wk")).unflatten(-1, (-1, size.qk_dim))  # B T K Q
        v = self.wv(x, mask.get("wv")).unflatten(-1, (-1, size.v_dim))   # B T K E
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, *rope), rotate(k, *rope), v))  # B heads T dims
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)  # B K S dims
            cache[:] = k, v
        if size.qk_dim != size.v_dim:  # zeros change nothing, and only equal widths reach the fused kernels
            width = -(-max(size.qk_dim, size.v_dim) // 8) * 8
            q, k, v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, scale=self.scale,
                                           enable_gqa=size.n_heads != size.n_kv_heads)
        return self.wo(y[..., :size.v_dim].transpose(1, 2).flatten(-2), mask.get("wo"))

class FeedForward(nn.Module):
    def __init__(self, config: LlamaConfig, size: LayerSize):
        super().__init__()
        self.w1 = LoRALinear(config.dim, size.hidden_dim)
        self.w2 = LoRALinear(size.hidden_dim, config.dim)
        self.w3 = LoRALinear(config.dim, size.hidden_dim)

    def forward(self, x: Tensor, mask: dict[str, Mask]) -> Tensor:
        return self.w2(F.silu(self.w1(x, mask.get("w1"))) * self.w3(x, mask.get("w3")), mask.get("w2"))

class Block(nn.Module):
    def __init__(self, config: LlamaConfig, size: LayerSize):
        super().__init__()
        self.attention = Attention(config, size)
        self.feed_forward = FeedForward(config, size)
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rope: Tensor, mask: dict[str, Mask], cache: list | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x), mask)

    def linears(self) -> dict[str, LoRALinear]:
        """The layer's seven linears by their short names, wq wk wv wo w1 w2 w3."""
        return dict(self.attention.named_children()) | dict(self.feed_forward.named_children())

class Llama(nn.Module):
    """A decoder-only transformer. `masks`: a dict of linear name -> Mask for each layer, or None. `caches`: a
    list for each layer, which is filled with keys and values: a whole prompt first, then token by token."""

    def __init__(self, config: LlamaConfig, tied: bool = False):
        super().__init__()
        self.config, self.checkpointing = config, False  # True: blocks recompute activations, keep none
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, size) for size in config.layers)
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.output = None if tied else LoRALinear(config.dim, config.vocab_size)
        self.requires_grad_(False)

    def linears(self) -> list[LoRALinear]:
        """All linears that can carry LoRA, layer by layer."""
        return [linear for block in self.layers for linear in block.linears().values()]

    def add_lora(self, rank: int, scale: float) -> None:
        inner = sum(sum(linear.weight.shape) for linear in self.linears())
        fits(16 * rank * inner, self.norm.weight.device, f"LoRA of --rank {rank}")  # gradient, two moments
        for linear in self.linears():
            linear.add_lora(rank, scale)

    def lora(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if name.endswith((".A", ".B"))}

    def hidden(self, tokens: Tensor, masks=None, caches=None) -> Tensor:
        """tokens [B, T] to what the output layer reads, [B, T, D]."""
        start = caches[0][0].shape[2] if caches and caches[0] else 0
        positions = torch.arange(start, start + tokens.shape[1], dtype=torch.float32, device=tokens.device)
        angles = torch.outer(positions, rotary_frequencies(self.config).to(tokens.device))[:, None]
        rope = torch.stack((angles.cos(), angles.sin()))  # 2 T 1 head_dim/2
        x, recompute = self.tok_embeddings(tokens), self.checkpointing and torch.is_grad_enabled()
        for i, layer in enumerate(self.layers):
            pairs = layer.attention.size.rotary_pairs or slice(None)
            given = x, rope[..., pairs], masks[i] if masks else {}, caches[i] if caches else None
            x = checkpoint(layer, *given, use_reentrant=False) if recompute else layer(*given)
        return self.norm(x)

    def forward(self, tokens: Tensor, masks=None, caches=None) -> Tensor:
        """tokens [B, T] to float32 logits [B, T, V]."""
        output = self.output or self.tok_embeddings
        return F.linear(self.hidden(tokens, masks, caches), output.weight).float()

    def nll(self, tokens: Tensor, targets: Tensor, masks=None, chunk: int = 1024) -> Tensor:
        """Summed negative log-likelihood in nats of targets [B, T]; positions marked IGNORE do not count.
        Logits [N, V] exist for `chunk` positions at a time, and their gradient is taken while they do."""
        hidden, W = self.hidden(tokens, masks).flatten(0, 1), (self.output or self.tok_embeddings).weight
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.zeros_like(hidden)
        with torch.no_grad():
            for h, t, g in zip(hidden.split(chunk), targets.flatten().split(chunk), gradient.split(chunk)):
                logp = F.linear(h, W).float().log_softmax(-1)
                total += F.nll_loss(logp, t, ignore_index=IGNORE, reduction="sum")
                if hidden.requires_grad:  # d loss / d logits = softmax - one-hot
                    p = logp.exp_().scatter_add_(1, t.clamp(min=0)[:, None], -torch.ones_like(logp[:, :1]))
                    g.copy_(p.mul_((t != IGNORE)[:, None]).to(h.dtype) @ W)
        return total + ((hidden - hidden.detach()).float() * gradient).sum()  # adds 0, with that gradient

def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith((".A", ".B")))

# ------------------------------------------------------------------------------------------------ checkpoints
BESIDE_WEIGHTS = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                  "chat_template.jinja")

def form(value) -> str:
    """What was read, in words: dtype and shape of a tensor that has all its numbers, or else the type."""
    if not isinstance(value, Tensor):
        return "missing" if value is ... else type(value).__name__
    odd = value.layout != torch.strided or value.is_nested or value.is_meta
    if odd or value.untyped_storage().nbytes() < value.nbytes:
        return "sparse, nested, expanded or on the meta device"
    return f"{value.dtype} {[*value.shape]}"

def restore(own, saved, name: str) -> None:
    """Copies the tensors in `saved`, a structure of dicts and lists, into those of `own`. Raises InputError
    unless all keys, types, shapes and dtypes are the same; an empty list stands for any."""
    if form(saved) != form(own):
        raise InputError(f"{name[-120:]}: is {form(saved)}, expected {form(own)}; damaged or foreign")
    if isinstance(own, Tensor):
        own.copy_(saved.detach())
    if isinstance(own, list):
        own, saved = dict(enumerate(own or saved)), dict(enumerate(saved))
    for key in own | saved if isinstance(own, dict) else ():
        restore(own.get(key, ...), saved.get(key, ...), f"{name}, {key}")

def read_tensors(path: Path, mmap: bool) -> dict:
    """What `torch.save` wrote: tensors and plain values, nothing that could run. Raises InputError."""
    try:
        with zipfile.ZipFile(regular(path)) as archive:  # torch misreads compressed records
            if any(record.compress_type for record in archive.infolist()) or (not mmap and archive.testzip()):
                raise ValueError("a compressed record, or one that does not match its checksum")
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        return {str(name): getattr(value, "data", value) for name, value in found.items()}  # of nn.Parameters
    except Exception as error:  # damage shows as BadZipFile, RuntimeError, UnpicklingError, EOFError, ...
        raise InputError(f"{path}: not a readable checkpoint, or damaged ({first_line(error)})") from None

def open_shards(directory: Path) -> list[dict[str, Tensor]]:
    """The model-parallel shards of a directory, memory-mapped. Raises InputError."""
    shards = []
    for i in range(max(1, len(list(directory.glob("consolidated.*.pth"))))):
        path = directory / f"consolidated.{i:02d}.pth"
        shards.append(read_tensors(path, mmap=True))
        for name, value in shards[-1].items():
            if not isinstance(value, Tensor) or "float" not in form(value):
                raise InputError(f"{path}: {name[:40]!r} is {form(value)}; expected unquantized tensors")
    return shards

@torch.no_grad()
def load(directory: str | Path, dtype=None, device="cpu", sharded=False) -> Llama:
    """Loads a model directory, its weights frozen, in `dtype` or as stored; without `output.weight`, output
    and embedding are tied. If `sharded`, layers are spread over torchrun's processes. Raises InputError."""
    directory = Path(directory)
    names = open_shards(directory)[0].keys() - {"rope.freqs"}  # LLaMA-2 stores rotary frequencies, too
    with torch.device("meta"):
        model = Llama(LlamaConfig.read(directory / "params.json"), tied="output.weight" not in names)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name in sorted(names ^ shapes.keys()):
        problem = "is missing" if name in shapes else "is not part of this LLaMA"
        raise InputError(f"{directory}: tensor {name[:40]} {problem}; it does not fit params.json")
    size = count_parameters(model) * (dtype or torch.float16).itemsize // (PROCESSES if sharded else 1)
    fits(size, torch.device(device), f"{directory}: its weights")
    for (part, _), names in itertools.groupby(shapes, lambda name: name.split(".")[:2]):
        shards = open_shards(directory)  # anew for every layer: what has been read need not stay in memory
        for name in names:
            w = join([shard.get(name) for shard in shards], shapes[name], f"{directory}: tensor {name}")
            w = w.to(device, dtype or w.dtype, copy=True)
            if sharded and part == "layers" and w.dim() == 2:
                w = spread(w)
            model.get_submodule(name.removesuffix(".weight")).weight = nn.Parameter(w, requires_grad=False)
    return model

def join(pieces: list[Tensor | None], shape: torch.Size, what: str) -> Tensor:
    """A weight of `shape` from its model-parallel pieces, side by side where they are smaller (rows of most,
    columns of wo and w2, either of the embedding; norms are in every shard). Raises InputError."""
    shapes = [list(getattr(piece, "shape", [])) for piece in pieces]
    n = 1 if len(shape) == 1 else len(pieces)
    for axis, size in enumerate(shape):
        if shapes == len(pieces) * [[*shape[:axis], size / n, *shape[axis + 1:]]]:
            return pieces[0] if n == 1 else torch.cat(pieces, axis)
    raise InputError(f"{what} has shapes {shapes} in {len(pieces)} shards, params.json wants {list(shape)}")

def spread(weight: Tensor) -> Tensor:
    """A weight's rows spread over the processes; `LoRALinear` puts them together where it multiplies."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    return distribute_tensor(weight, init_device_mesh(weight.device.type, (PROCESSES,)), [Shard(0)])

def save(model: Llama, directory: Path, source: Path) -> None:
    """Writes a model directory that `load` reads, with what `source`, another one, has beside its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: p.data for name, p in model.named_parameters()}
    write_atomic(directory / "consolidated.00.pth", lambda file: torch.save(weights, file))
    for name in BESIDE_WEIGHTS:
        if (source / name).is_file():
            write_atomic(directory / name, lambda file: file.write((source / name).read_bytes()))
    write_json(directory / "params.json", dataclasses.asdict(model.config))

@torch.no_grad()
def generate(model: Llama, prompt: list[int], max_tokens: int, temperature=0.0, top_k=0, stop=()):
    """Yields token ids after `prompt`, a pass each. Temperature 0 is greedy, top_k 0 samples from all."""
    tokens, caches = torch.tensor([prompt], device=model.norm.weight.device), [[] for _ in model.layers]
    each = model.norm.weight.itemsize * sum(s.n_kv_heads * (s.qk_dim + s.v_dim) for s in model.config.layers)
    fits((len(prompt) + max_tokens) * each, tokens.device, "keys and values of --max-tokens")
    for _ in range(max_tokens):
        logits = model(tokens, caches=caches)[0, -1]
        if top_k:
            logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -torch.inf
        p = (logits / (temperature or 1)).softmax(-1)
        if not p.isfinite().all():
            raise InputError("logits are not finite: the weights are damaged, or --temperature is too low")
        tokens = p.multinomial(1)[None] if temperature else logits.argmax().view(1, 1)
        if int(tokens) in stop:
            return
        yield int(tokens)

def say(model: Llama, tokenizer: Tokenizer, args, ids: list[int], shown: list[int], stop) -> list[int]:
    """Prints `shown`, and what `generate` adds to `ids` as it is made; returns the latter."""
    new, printed = [], ""
    for token in generate(model, ids, args.max_tokens, args.temperature, args.top_k, stop):
        new.append(token)
        text = tokenizer.decode(shown + new).rstrip("\ufffd")  # the part of a character that has more tokens
        print(text[len(printed):], end="", flush=True)
        printed = text
    return new

def main() -> None:
    parser = Parser(description="Generate text from a model directory, dense or pruned.")
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("--prompt", default="The ", type=str.encode, help="text to continue")
    parser.add_argument("--chat", action="store_true", help="answer what is typed, or piped in, line by line")
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=40, help="sample among the k likeliest; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="as stored, but on CPUs float32")
    args = parser.parse_args()
    if args.max_tokens < 1 or args.top_k < 0 or not 0 <= args.temperature < 1e6 or not 0 <= args.seed < 2**63:
        raise InputError("--max-tokens must be at least 1, --top-k, --temperature and --seed at least 0")
    torch.manual_seed(args.seed)
    from scripts.find_model import find
    directory, device = find(args.model), find_device(args.device)
    dtype = getattr(torch, args.dtype) if args.dtype else torch.float32 if device.type == "cpu" else None
    model, tokenizer = load(directory, dtype, device), Tokenizer(directory)
    tokenizer.check(model.config.vocab_size)
    if args.chat:
        from scripts.chat import talk
        return talk(tokenizer, functools.partial(say, model, tokenizer, args))
    (prompt,), begin = tokenizer.encode([args.prompt.decode()]), time.perf_counter()
    new = say(model, tokenizer, args, [tokenizer.bos, *prompt], prompt, tokenizer.stop)
    n, s, params = len(new), time.perf_counter() - begin, count_parameters(model)
    print(f"\n\n{n} tokens in {s:.1f} s, {n / s:.1f} tokens/s, {params:,} parameters")

if __name__ == "__main__":
    command(main)
