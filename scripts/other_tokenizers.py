"""The tokenizers that need other packages than SentencePiece: Hugging Face's `tokenizer.json`, LLaMA-3's ranks.

data.Tokenizer hands over itself and the content of such a file. Try it:  python -m pytest tests/test_tokenizer.py
"""
import base64
import json

from data import Tokenizer, need, regular

# LLaMA-3's rule for cutting text into words before byte pairs are merged, and its special tokens' places.
LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_SPECIAL = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}


def fill_in(tokenizer: Tokenizer, content: bytes) -> None:
    """Sets what the tokenizer has by its file's content. Raises InputError without the package, and anything
    for a damaged file."""
    read = hugging_face if tokenizer.path.suffix == ".json" else llama3
    read(tokenizer, content)
    tokenizer.decode = tokenizer.model.decode


def hugging_face(tokenizer: Tokenizer, content: bytes) -> None:
    model = need("tokenizers", tokenizer.path).Tokenizer.from_str(content.decode())
    model.encode_special_tokens = True
    model.no_truncation()
    model.no_padding()
    config, more = (tokenizer.path.with_name(f"{key}_config.json") for key in ("tokenizer", "generation"))
    eos = json.loads(regular(config).read_text())["eos_token"]
    eos = model.token_to_id(eos["content"] if isinstance(eos, dict) else eos)
    stop = json.loads(regular(more).read_text()).get("eos_token_id") if more.exists() else None
    tokenizer.kind, tokenizer.model, tokenizer.size = "json", model, model.get_vocab_size()
    tokenizer.encode = lambda texts: [e.ids for e in model.encode_batch(texts, add_special_tokens=False)]
    tokenizer.special = {t.content: i for i, t in model.get_added_tokens_decoder().items() if t.special}
    tokenizer.eos, tokenizer.stop = eos, {eos, *(stop if isinstance(stop, list) else [stop])} - {None}
    own, bare = model.encode("a").ids[0], tokenizer.encode(["a"])[0][0]  # BOS is what it puts first itself
    tokenizer.bos = own if own != bare else model.get_vocab().get("<|endoftext|>", eos)


def llama3(tokenizer: Tokenizer, content: bytes) -> None:
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    n = len(ranks)
    if sorted(ranks.values()) != [*range(n)] or not all(bytes([i]) in ranks for i in range(256)):
        raise ValueError("its ranks are not 0, 1, 2, ... or a byte has none")  # tiktoken would panic
    special = {f"<|{LLAMA3_SPECIAL.get(i, f'reserved_{i}')}|>": n + i for i in range(256)}
    model = need("tiktoken", tokenizer.path).Encoding(
        "", pat_str=LLAMA3_WORDS, mergeable_ranks=ranks, special_tokens=special)
    tokenizer.kind, tokenizer.model, tokenizer.size = "tiktoken", model, n + 256
    tokenizer.encode, tokenizer.special = model.encode_ordinary_batch, special
    tokenizer.bos, tokenizer.eos, tokenizer.stop = n, n + 1, {n + 1, n + 9}
