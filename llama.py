"""A self-contained LLaMA: model, raw checkpoints, tokenizer, generation.

Reads Meta's raw format (`params.json`, `consolidated.NN.pth`, `tokenizer.model`) and the same directory with
layers of unequal size, which is what pruning leaves. Parameter names are the checkpoint's own, so loading
needs no table; in `feed_forward`, w1 is the gate, w3 the up and w2 the down projection of SwiGLU.

    python llama.py out/legal/pruned --prompt "The lessee shall"

Shapes: B rows, T positions, S positions attended to, D model width, V vocabulary, H query heads, K key/value
heads (GQA: H / K query heads share one; MHA is H = K), Q query/key and E value dimensions of a head.
"""
import argparse
import base64
import dataclasses
import json
import os
import re
import sys
import time
import types
import typing
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lora import LoRALinear, Mask

IGNORE = -100  # a target that carries no loss


class InputError(Exception):
    """Something the user gave cannot be used. The message is one line: what, where, and what to do."""


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, without the usage."""
    def error(self, message):
        raise InputError(f"{message} (see --help)")


def command(main) -> None:
    """Runs `main()`; what is not a fault of the program becomes one line on stderr and exit status 2."""
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
    except torch.OutOfMemoryError as error:
        sys.exit(print(f"error: out of GPU memory ({first_line(error)}); use a smaller model or a larger device",
                       file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print("interrupted", file=sys.stderr) or 130)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def write_atomic(path: Path, write) -> None:
    """Calls `write(file)` on a file beside `path`, then renames it: a reader never sees half a file.

    Raises InputError if the disk does not take it; then what was at `path` is still there."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides a full disk
        if not isinstance(cause, OSError):
            raise
        raise InputError(f"{path}: cannot be written ({cause.strerror}); make room, or go elsewhere") from None
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    write_atomic(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


# ---------------------------------------------------------------------------------------------- configuration

@dataclass
class LayerSize:
    """The sizes of one layer. Pruning makes them differ from layer to layer."""
    n_heads: int
    n_kv_heads: int
    qk_dim: int
    v_dim: int
    hidden_dim: int
    rotary_pairs: list[int] | None = None  # which of the head_dim / 2 rotary pairs are left; None: all


@dataclass
class LlamaConfig:
    """`params.json`: Meta's keys, plus `head_dim` and `layers`, which only a pruned model has."""
    dim: int
    n_layers: int
    n_heads: int
    vocab_size: int
    n_kv_heads: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: float = 8.0  # LLaMA-3.1's; 3.2 has 32
    head_dim: int | None = None  # before pruning: it fixes the attention scale and the rotary frequencies
    layers: list[LayerSize] | None = None

    def __post_init__(self):
        """Fills in what is left out. Raises ValueError unless the sizes fit each other."""
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        self.head_dim = self.head_dim or self.dim // self.n_heads
        if self.layers is None:
            hidden = int(8 * self.dim / 3)
            if self.ffn_dim_multiplier is not None:
                hidden = int(self.ffn_dim_multiplier * hidden)
            hidden = self.multiple_of * -(-hidden // self.multiple_of)
            size = LayerSize(self.n_heads, self.n_kv_heads, self.head_dim, self.head_dim, hidden)
            self.layers = [dataclasses.replace(size) for _ in range(min(self.n_layers, 1000))]  # more is a lie
        if self.head_dim < 2 or self.head_dim % 2 or len(self.layers) != self.n_layers:
            raise ValueError(f"{len(self.layers)} layers of {self.n_layers}, {self.head_dim} dimensions a head")
        pairs = self.head_dim // 2
        for i, size in enumerate(self.layers):
            kept = range(pairs) if size.rotary_pairs is None else size.rotary_pairs
            if size.n_heads % size.n_kv_heads:
                raise ValueError(f"layer {i}: {size.n_heads} heads cannot share {size.n_kv_heads} keys")
            if 2 * len(kept) != size.qk_dim or not all(type(p) is int and 0 <= p < pairs for p in kept):
                raise ValueError(f"layer {i}: its rotary pairs do not fit qk_dim {size.qk_dim}")

    @classmethod
    def read(cls, path: Path) -> "LlamaConfig":
        """Reads `params.json`. Raises InputError for anything that does not describe a LLaMA."""
        try:
            values = json.loads(path.read_text())
            if isinstance(values, dict):
                if values.get("vocab_size") == -1:  # LLaMA-2 leaves it to the tokenizer
                    values["vocab_size"] = len(open_shards(path.parent)[0].get("tok_embeddings.weight", ()))
                if isinstance(values.get("layers"), list):
                    values["layers"] = [build(LayerSize, size, "in a layer, ") for size in values["layers"]]
            return build(cls, values)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: {str(error)[:160]}; expected a LLaMA checkpoint's params.json") from None


def fits(value, kind) -> bool:
    """Whether a JSON value is what a field annotated `kind` may hold."""
    if isinstance(kind, types.UnionType):
        return any(fits(value, one) for one in kind.__args__)
    if kind is int:
        return type(value) is int and 0 < value < 2**24
    if kind is float:
        return type(value) in (int, float) and 0 < value < 1e12
    return type(value) is (typing.get_origin(kind) or kind)


def build(kind, values, where: str = ""):
    """A dataclass from a JSON object, its values checked against the annotations. Raises ValueError."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}not a JSON object")
    annotations = {field.name: field.type for field in dataclasses.fields(kind)}
    for key, value in values.items():
        if key in annotations and not fits(value, annotations[key]):
            raise ValueError(f"{where}{key!r} is {str(value)[:40]}")
    try:
        return kind(**values)
    except TypeError as error:  # "LlamaConfig.__init__() got an unexpected keyword argument 'moe'"
        raise ValueError(where + str(error).partition("__init__() ")[2]) from None


# ----------------------------------------------------------------------------------------------------- model

class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).type_as(x) * self.weight


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """The angle per position of each rotary pair, [head_dim / 2]; stretched as in LLaMA-3.1 if asked for."""
    freqs = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    if config.use_scaled_rope:
        # Wavelengths beyond 8192 positions are stretched by the factor, under 2048 left, a ramp between.
        turns = 8192 * freqs / (2 * torch.pi)
        ramp = ((turns - 1) / (4 - 1)).clamp(0, 1)
        freqs = freqs * (ramp + (1 - ramp) / config.rope_scaling_factor)
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
        self.scale = config.head_dim ** -0.5  # of the unpruned head: pruning must not change the softmax
        self.resize(size)

    def resize(self, size: LayerSize) -> None:
        """Takes note of the sizes that the weights have now."""
        self.size, self.pairs = size, None  # the rotary pairs as a tensor, made where it is first needed

    def rotary(self, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of cos and sin [T, 1, head_dim / 2], the columns of the pairs that are left."""
        if self.size.rotary_pairs is None:
            return tables
        if self.pairs is None:
            self.pairs = torch.tensor(self.size.rotary_pairs, device=tables[0].device)
        return tuple(table[:, :, self.pairs] for table in tables)

    def forward(self, x: Tensor, rope: tuple, mask: dict[str, Mask], cache, start: int) -> Tensor:
        size = self.size
        q = self.wq(x, mask.get("wq")).unflatten(-1, (-1, size.qk_dim))  # B T H Q
        k = self.wk(x, mask.get("wk")).unflatten(-1, (-1, size.qk_dim))  # B T K Q
        v = self.wv(x, mask.get("wv")).unflatten(-1, (-1, size.v_dim))   # B T K E
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, *rope), rotate(k, *rope), v))  # B heads T dims
        if cache is not None:
            k, v = cache.extend(k, v, start)
        if size.qk_dim != size.v_dim:
            # Zeros change neither scores nor values; only equal widths reach the fused kernels.
            width = -(-max(size.qk_dim, size.v_dim) // 8) * 8
            q, k, v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
        T, S = q.shape[2], k.shape[2]
        causal, seen = T > 1 and start == 0, None
        if T > 1 and start > 0:
            seen = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal,
                                           scale=self.scale, enable_gqa=size.n_heads != size.n_kv_heads)
        y = y[..., :size.v_dim].transpose(1, 2).flatten(-2)  # B T H*E
        return self.wo(y, mask.get("wo"))


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
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, rope: tuple, mask: dict[str, Mask], cache=None, start: int = 0) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, start)
        return x + self.feed_forward(self.ffn_norm(x), mask)

    def linears(self) -> dict[str, LoRALinear]:
        """The layer's seven linears by their short names, wq wk wv wo w1 w2 w3."""
        return {name: child for part in (self.attention, self.feed_forward)
                for name, child in part.named_children()}


class KeyValues:
    """One layer's key/value cache: keys [B, K, room, Q] and values [B, K, room, E]."""

    def __init__(self, batch: int, room: int, size: LayerSize, like: Tensor):
        self.k = like.new_zeros(batch, size.n_kv_heads, room, size.qk_dim)
        self.v = like.new_zeros(batch, size.n_kv_heads, room, size.v_dim)

    def extend(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, K, T, ·] from position `start` on; returns all up to their end."""
        end = start + k.shape[2]
        self.k[:, :, start:end], self.v[:, :, start:end] = k, v
        return self.k[:, :, :end], self.v[:, :, :end]


class ChunkedNLL(torch.autograd.Function):
    """Summed negative log-likelihood of targets, from hidden states and a *frozen* output weight.

    Logits [N, V] exist only for `chunk` positions at a time. As the weight takes no gradient, the gradient of
    the hidden states is made while they do: nothing is recomputed, nothing of size V kept for backward.
    """
    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else hidden
        for h, t, g in zip(hidden.split(chunk), targets.split(chunk), grad.split(chunk)):
            logp = (h @ weight.t()).float().log_softmax(-1)
            loss += F.nll_loss(logp, t, ignore_index=IGNORE, reduction="sum")
            if ctx.needs_input_grad[0]:
                p = logp.exp_()
                p.scatter_add_(1, t.clamp(min=0)[:, None], -torch.ones_like(p[:, :1]))
                g.copy_(p.mul_((t != IGNORE)[:, None]).to(h.dtype) @ weight)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return ctx.saved_tensors[0] * grad_loss, None, None, None


class Llama(nn.Module):
    """A decoder-only transformer. `masks` are always a dict of linear name -> Mask for each layer, or None."""

    def __init__(self, config: LlamaConfig, tied: bool = False):
        super().__init__()
        self.config = config
        self.checkpointing = False  # recompute each block in the backward pass, keep no activations in it
        self.frequencies = None     # of the rotary pairs, made at the first forward pass
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, size) for size in config.layers)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = None if tied else LoRALinear(config.dim, config.vocab_size)
        self.requires_grad_(False)

    def linears(self) -> list[LoRALinear]:
        """All linears that can carry LoRA, layer by layer."""
        return [linear for block in self.layers for linear in block.linears().values()]

    @property
    def output_weight(self) -> Tensor:
        return (self.output or self.tok_embeddings).weight

    def hidden(self, tokens: Tensor, masks=None, caches=None, start: int = 0) -> Tensor:
        """tokens [B, T] to what the output layer reads, [B, T, D]."""
        positions = torch.arange(start, start + tokens.shape[1], dtype=torch.float32, device=tokens.device)
        if self.frequencies is None:
            self.frequencies = rotary_frequencies(self.config).to(tokens.device)
        angles = torch.outer(positions, self.frequencies)[:, None]
        rope = angles.cos(), angles.sin()  # T 1 head_dim/2
        x = self.tok_embeddings(tokens)
        for i, layer in enumerate(self.layers):
            mask, cache = masks[i] if masks else {}, caches[i] if caches else None
            arguments = x, layer.attention.rotary(rope), mask, cache, start
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return self.norm(x)

    def forward(self, tokens: Tensor, masks=None, caches=None, start: int = 0) -> Tensor:
        """tokens [B, T] to float32 logits [B, T, V]."""
        return F.linear(self.hidden(tokens, masks, caches, start), self.output_weight).float()

    def nll(self, tokens: Tensor, targets: Tensor, masks=None, chunk: int = 1024) -> Tensor:
        """Summed negative log-likelihood in nats of targets [B, T]; positions marked IGNORE do not count."""
        hidden = self.hidden(tokens, masks).flatten(0, 1)
        return ChunkedNLL.apply(hidden, self.output_weight.to(hidden.dtype), targets.flatten(), chunk)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith((".A", ".B")))


# ------------------------------------------------------------------------------------------------ checkpoints

def read_tensors(path: Path, mmap: bool) -> dict:
    """What `torch.save` wrote to `path`: tensors and plain values, nothing that could run.

    Compressed records are refused: torch writes none, so they could only be a decompression bomb. Mapped
    files are read when used; others are read now, and their checksums verified. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise ValueError("compressed records")
            if not mmap and archive.testzip():
                raise ValueError("a checksum does not match")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damage shows as BadZipFile, RuntimeError, UnpicklingError, EOFError, ...
        raise InputError(f"{path}: not a readable checkpoint of tensors ({first_line(error)}); it is damaged "
                         "or was not written by torch.save") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, expected named tensors")
    return state


def open_shards(directory: Path) -> list[dict[str, Tensor]]:
    """The model-parallel shards of a directory, memory-mapped. Raises InputError."""
    paths = sorted(directory.glob("consolidated.*.pth"))
    if not paths:
        raise InputError(f"{directory}: no consolidated.NN.pth; expected a raw LLaMA checkpoint directory")
    for i in range(len(paths)):
        if paths[i].name != f"consolidated.{i:02d}.pth":
            raise InputError(f"{directory}: consolidated.{i:02d}.pth is missing; download it again")
    shards = [read_tensors(path, mmap=True) for path in paths]
    for path, shard in zip(paths, shards):
        for name, value in shard.items():
            if not isinstance(value, Tensor):
                raise InputError(f"{path}: {str(name)[:40]!r} is a {type(value).__name__}, not a tensor")
    return shards


def stored_dtype(directory: Path) -> torch.dtype:
    return getattr(open_shards(directory)[0].get("norm.weight"), "dtype", torch.float32)


def load(directory: str | Path, dtype=torch.float32, device="cpu", sharded=False) -> Llama:
    """Loads a model directory, every weight frozen. Without `output.weight`, output and embedding are tied.

    Shards are joined along the axis on which they are smaller than the model: Meta splits rows of wq, wk, wv,
    w1, w3 and output, columns of wo and w2. Each weight goes from the mapped file straight to its place. Files
    are mapped anew after every 64th of the weights, so that the pages read so far can go, and what is outside of
    layers comes first: a vocabulary's pages on top of all weights would be the peak. If `sharded`, every layer is
    spread over torchrun's processes as soon as it is complete. Raises InputError.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; a model is params.json, consolidated.NN.pth and "
                         "tokenizer.model")
    config = LlamaConfig.read(directory / "params.json")
    names = set(open_shards(directory)[0]) - {"rope.freqs"}  # LLaMA-2 also stores its rotary frequencies
    found = len({name.split(".")[1] for name in names if name.startswith("layers.")})
    if found != config.n_layers:
        raise InputError(f"{directory}: the checkpoint has {found} layers, params.json {config.n_layers}")
    with torch.device("meta"):
        model = Llama(config, tied="output.weight" not in names)
    expected = dict(model.named_parameters())
    for name in sorted(names ^ set(expected)):
        problem = "is missing" if name in expected else "is not part of this LLaMA"
        raise InputError(f"{directory}: tensor {name} {problem}; params.json and the checkpoint do not fit")
    shards, read, total = open_shards(directory), 0, sum(p.numel() for p in expected.values())
    in_order = sorted(expected.items(), key=lambda item: item[0].startswith("layers."))
    last = {name.split(".")[1]: name for name, _ in in_order if name.startswith("layers.")}
    for name, parameter in in_order:
        if read > total / 64:
            shards, read = open_shards(directory), 0
        read += parameter.numel()
        pieces = [shard.get(name) for shard in shards]
        axis = split_axis(pieces, parameter.shape, f"{directory}: tensor {name}")
        weight = torch.empty(parameter.shape, dtype=dtype, device=device)
        for part, piece in zip(weight.chunk(len(pieces) if axis >= 0 else 1, axis), pieces):
            part.copy_(piece)
        module = model.get_submodule(name.rpartition(".")[0])
        module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        if sharded and name in last.values():
            shard(model, int(name.split(".")[1]))
    return model


def split_axis(pieces: list[Tensor | None], shape: torch.Size, what: str) -> int:
    """The axis on which model-parallel pieces make up a tensor of `shape`; -1 if each is the whole tensor.

    Raises InputError if they do not fit."""
    shapes = [None if piece is None else list(piece.shape) for piece in pieces]
    if shapes[0] is None or any(other != shapes[0] for other in shapes):
        raise InputError(f"{what} differs between shards ({shapes}); one is missing or of another model")
    if not pieces[0].is_floating_point():
        raise InputError(f"{what} is {pieces[0].dtype}; a quantized model cannot be tuned, use the original")
    if shapes[0] == list(shape) and (len(pieces) == 1 or len(shape) == 1):  # norms are in every shard
        return -1
    for axis in range(len(shapes[0])):
        if [n * (len(pieces) if i == axis else 1) for i, n in enumerate(shapes[0])] == list(shape):
            return axis
    raise InputError(f"{what} has shape {shapes[0]} in {len(pieces)} shards, params.json wants {list(shape)}; "
                     "a shard is missing, or params.json is another model's")


def shard(model: Llama, layer: int) -> None:
    """Spreads a layer's weights over the processes (FSDP2): each is whole only while its layer computes.

    LoRA stays whole everywhere; embedding and output, which the loss reads, too."""
    from torch.distributed.fsdp import fully_shard
    block = model.layers[layer]
    mesh = dist.init_device_mesh(block.ffn_norm.weight.device.type, (dist.get_world_size(),))
    lora = {p for p in block.parameters() if p.requires_grad}
    fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=lora)


def whole(p: Tensor) -> Tensor:
    """All of a parameter; if it is sharded, a collective call."""
    return p.full_tensor() if hasattr(p, "full_tensor") else p


def unshard(model: Llama, layer: int, device=None) -> bool:
    """Makes a sharded layer an ordinary one, on `device`. False if it is one already; else a collective call."""
    old = model.layers[layer]
    if not hasattr(old.ffn_norm.weight, "full_tensor"):
        return False
    with torch.device("meta"):
        new = Block(model.config, old.attention.size)
    for name, part in old.named_children():  # FSDP's hooks stay behind, with the old block
        setattr(new, name, part)
    for module in new.modules():
        if isinstance(module, (LoRALinear, RMSNorm)):
            module.weight = nn.Parameter(module.weight.full_tensor(), requires_grad=False)
            module.to(device or module.weight.device)  # one at a time, LoRA with it
    model.layers[layer] = new
    return True


def process_rank() -> int:
    """This process's number among those that torchrun started; 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def save(model: Llama, directory: Path, tokenizer: Path) -> None:
    """Writes a model directory that `load` reads: params.json, consolidated.00.pth and the tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / "consolidated.00.pth", lambda file: torch.save(
        {name: p.data for name, p in model.named_parameters()}, file))
    write_atomic(directory / "tokenizer.model", lambda file: file.write(Path(tokenizer).read_bytes()))
    write_json(directory / "params.json", dataclasses.asdict(model.config))


# -------------------------------------------------------------------------------------------------- tokenizer

class Tokenizer:
    """`tokenizer.model`: SentencePiece (LLaMA-2, Mistral, TinyLlama) or tiktoken (LLaMA-3), as the file is.

    `bos` and `eos` open and close a document; `stop` ends generation; `space` goes before a text that
    continues another one (SentencePiece adds it by itself)."""

    # LLaMA-3's rule for cutting text into words before byte pairs are merged, and its special tokens' places.
    WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
             r"\s*[\r\n]+|\s+(?!\S)|\s+")
    SPECIAL = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
            self.is_sentencepiece = not re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content)
            if self.is_sentencepiece:
                from sentencepiece import SentencePieceProcessor
                self.model = SentencePieceProcessor(model_proto=content)
                self.bos, self.eos = self.model.bos_id(), self.model.eos_id()
                first = self.model.id_to_piece(self.model.encode("a")[0])
                self.stop, self.space = (self.eos,), "" if first.startswith("\u2581") else " "
            else:
                self._open_tiktoken(content)
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            raise InputError(f"{path}: neither a SentencePiece nor a tiktoken tokenizer.model "
                             f"({first_line(error)})") from None
        if min(self.bos, self.eos) < 0:
            raise InputError(f"{path}: the tokenizer has no BOS or no EOS token, a LLaMA needs both")

    def _open_tiktoken(self, content: bytes) -> None:
        try:
            import tiktoken
        except ImportError:
            raise InputError(f"{self.path}: a LLaMA-3 tokenizer; pip install tiktoken") from None
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
        n = len(ranks)
        special = {f"<|{self.SPECIAL.get(i, f'reserved_{i}')}|>": n + i for i in range(256)}
        self.model = tiktoken.Encoding("llama3", pat_str=self.WORDS, mergeable_ranks=ranks,
                                       special_tokens=special)
        self.bos, self.eos, self.stop, self.space = n, n + 1, (n + 1, n + 9), " "

    def __len__(self) -> int:
        return len(self.model) if self.is_sentencepiece else self.model.n_vocab

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Texts to token ids, without BOS and EOS. What looks like a special token is plain text."""
        if self.is_sentencepiece:
            return self.model.encode(texts, num_threads=-1)
        return self.model.encode_ordinary_batch(texts)

    def decode(self, ids: list[int]) -> str:
        return self.model.decode(ids)

    def check(self, config: LlamaConfig) -> None:
        """Raises InputError unless every token has an embedding, and but a few embeddings have no token."""
        if not len(self) <= config.vocab_size < len(self) + 1024:
            raise InputError(f"{self.path}: {len(self)} tokens for a model with a vocabulary of "
                             f"{config.vocab_size}; use the tokenizer that came with the model")


# ------------------------------------------------------------------------------------------------- generation

@torch.no_grad()
def generate(model: Llama, prompt: list[int], max_tokens: int, temperature=0.0, top_k=0, stop=()):
    """Yields token ids after `prompt`, a forward pass each. Temperature 0: greedy; top_k 0: sample from all."""
    device = model.tok_embeddings.weight.device
    caches = [KeyValues(1, len(prompt) + max_tokens, size, model.norm.weight) for size in model.config.layers]
    tokens, start = torch.tensor([prompt], device=device), 0
    for _ in range(max_tokens):
        logits = model(tokens, caches=caches, start=start)[0, -1]
        start += tokens.shape[1]
        if temperature > 0:
            if top_k:
                logits[logits < logits.topk(min(top_k, len(logits))).values[-1]] = -torch.inf
            token = int(torch.multinomial((logits / temperature).softmax(-1), 1))
        else:
            token = int(logits.argmax())
        if token in stop:
            return
        yield token
        tokens = torch.tensor([[token]], device=device)


def find_device(name: str = "auto") -> torch.device:
    """The named device, or for "auto" the best one there is: CUDA, then MPS, then CPU. Raises InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise InputError(f"--device {name}: expected cuda, mps or cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: {first_line(error)}") from None


def main() -> None:
    parser = Parser(description="Generate text from a model directory, dense or pruned.")
    parser.add_argument("model", type=Path, help="model directory: params.json, consolidated.NN.pth, ...")
    parser.add_argument("--prompt", default="The ", help="text to continue")
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--top-k", type=int, default=40, help="sample among the k likeliest; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: as stored; float32 on a CPU")
    args = parser.parse_args()
    if args.max_tokens < 1 or args.top_k < 0 or not 0 <= args.temperature < 1e6:
        raise InputError("--max-tokens must be at least 1, --top-k and --temperature at least 0")
    torch.manual_seed(args.seed)
    device = find_device(args.device)
    dtype = getattr(torch, args.dtype or "float32")
    if device.type != "cpu" and not args.dtype:
        dtype = stored_dtype(args.model)
    model = load(args.model, dtype, device)
    tokenizer = Tokenizer(args.model / "tokenizer.model")
    tokenizer.check(model.config)

    prompt, new, shown = tokenizer.encode([args.prompt])[0], [], ""
    begin = time.perf_counter()
    for token in generate(model, [tokenizer.bos] + prompt, args.max_tokens, args.temperature, args.top_k,
                          tokenizer.stop):
        new.append(token)
        text = tokenizer.decode(prompt + new)
        if not text.endswith("\ufffd"):  # the middle of a character that spans several tokens
            print(text[len(shown):], end="", flush=True)
            shown = text
    seconds = time.perf_counter() - begin
    print(f"\n\n{len(new)} tokens in {seconds:.1f} s, {len(new) / seconds:.1f} tokens/s, "
          f"{count_parameters(model):,} parameters")


if __name__ == "__main__":
    command(main)
