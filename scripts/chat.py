"""Chats: how the turns become one document, and the loop of `llama.py --chat`.

The model's own chat template lays a chat out if it has one: `chat_template.jinja`, or in `tokenizer_config.json`.
It is a program, run by Jinja in its sandbox. Without one, turns read as in `PLAIN`. What is learned of a document
is what the assistant says, and what ends it. Try it:  python -m pytest tests/test_chat.py
"""
import functools
import json
import re
import sys

import data
from data import Example, InputError, Tokenizer

PLAIN = {"system": "System: {0}\n", "user": "User: {0}\n", "assistant": "Assistant: {0}{eos}\n"}
BOS, EOS, TURN = "\U000f0000", "\U000f0001", 0xf0002  # of private use: they stand for what is filled in later


def plain(messages, bos_token, eos_token, **unused) -> str:
    return bos_token + "".join(PLAIN[m["role"]].format(m["content"], eos=eos_token) for m in messages)


def refuse(message: str):
    raise InputError(message)


@functools.lru_cache(maxsize=1)
def template(tokenizer: Tokenizer):
    """What renders a chat: the chat template that lies beside the tokenizer, or else `plain`."""
    path, config = map(tokenizer.path.with_name, ("chat_template.jinja", "tokenizer_config.json"))
    text = json.loads(data.regular(config).read_text()).get("chat_template") if config.exists() else None
    text = data.regular(path).read_text() if path.exists() else text
    if not text:
        return plain
    sandbox = data.need("jinja2.sandbox", "a chat template").ImmutableSandboxedEnvironment
    return sandbox(trim_blocks=True, lstrip_blocks=True).from_string(text).render


def pieces(example: Example, tokenizer: Tokenizer) -> list[tuple[str | int, bool]]:
    """A chat's texts and special tokens in order, and whether each is an answer or ends one. The template sees
    characters in place of what is said, so nobody's words name special tokens. Raises InputError."""
    turns = [*example.chat[:-1], ("assistant", example.answer)]
    said = {mark: text.strip() for mark, (_, text) in enumerate(turns, TURN)}
    messages = [{"role": role, "content": chr(mark)} for mark, (role, _) in enumerate(turns, TURN)]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    try:
        text = template(tokenizer)(messages=messages, bos_token=BOS, eos_token=EOS, tools=None, raise_exception=refuse)
        text.index(answers[-1])  # a template that leaves it out fails, too
    except Exception as error:  # a template is a program
        raise InputError(f"{tokenizer.path.parent}: its chat template fails on the chat about "
                         f"{example.prompt[:40]!r} ({data.first_line(error)})") from None
    text = re.sub(f" (?=[{''.join(answers)}])", tokenizer.space, text)
    special = {BOS: tokenizer.bos, EOS: tokenizer.eos} | tokenizer.special
    borders = "|".join([f" ?[{''.join(answers)}]\\s*", *map(re.escape, sorted(special, reverse=True))])
    made, answer = [], False
    for part in filter(None, re.split(f"({borders})", text)):
        ends, answer = answer and part in special, part.strip() in answers
        made.append((special.get(part, part.translate(said)), answer or ends))
    made += answer * [(tokenizer.eos, True)]
    while not made[-1][1]:  # what a template puts after the last answer
        made.pop()
    return made


def talk(tokenizer: Tokenizer, say) -> None:
    """Answers each line of the input, with all that was said before it in mind. `say(ids, shown, stop)` prints the
    answer to the first of these and returns its ids; the last has those at which it ends."""
    turns, ready = [], "> " if sys.stdin.isatty() else ""
    sys.stdin.reconfigure(errors="replace")  # whatever bytes come
    print(ready, end="", flush=True)
    for line in filter(str.strip, sys.stdin):
        turns += [("user", line), ("assistant", "")]
        document, = data.encode([Example(turns[0][1], "", chat=tuple(turns))], tokenizer)
        before, end = data.last_answer(*document)
        turns[-1] = "assistant", tokenizer.decode(say(before, [], tokenizer.stop | {end[-1]}))
        print("\n" + ready, end="", flush=True)
